-- "Do we know this" is answered from the key alone (ADR-006): fate fits into what the index row was padded with.
-- The index of every month is built anew: about a minute for 20 million events.
ALTER TABLE event DROP CONSTRAINT event_pkey, ADD PRIMARY KEY (event_key) INCLUDE (id, fate);
