-- Times to expire are found by their event; those whose event is gone go, too. By itself: there may be many, and nobody stores one meanwhile.

CREATE INDEX event_expiry_key ON event_expiry (event_key);
COMMENT ON TABLE event_expiry IS 'When archived events that say so themselves expire (NIP-40); written with the event, deleted with it or when the time has come.';
-- An event is looked up by its key, in its month: reading all of them would take longer than there are times.
SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off;
SET LOCAL enable_seqscan = off;
DELETE FROM event_expiry x WHERE NOT EXISTS (SELECT FROM event e WHERE e.event_key = x.event_key AND e.fate = 0);
RESET enable_hashjoin;
RESET enable_mergejoin;
RESET enable_seqscan;
