-- The nouns. Times named *_at are Unix seconds (bigint) in the archive, as Nostr writes them;
-- the queue and the schedule use timestamptz on the database's own clock.

CREATE TABLE relay (
    id            integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    url           text    NOT NULL UNIQUE CHECK (octet_length(url) BETWEEN 6 AND 2048),
    network       text    NOT NULL CHECK (network IN ('clearnet', 'tor', 'i2p', 'loki')),
    discovered_at bigint  NOT NULL CHECK (discovered_at >= 0)
);
COMMENT ON TABLE  relay IS 'Relays that once proved to speak Nostr. Candidates live in candidate.';
COMMENT ON COLUMN relay.id IS 'Small key used by the large tables.';
COMMENT ON COLUMN relay.url IS 'Canonical URL, as RelayUrl normalises it; at most 2,048 bytes.';
COMMENT ON COLUMN relay.network IS 'clearnet, tor, i2p or loki; follows from the URL.';
COMMENT ON COLUMN relay.discovered_at IS 'When the relay was first proved, Unix seconds.';

CREATE TABLE candidate (
    url           text    PRIMARY KEY CHECK (octet_length(url) BETWEEN 6 AND 2048),
    network       text    NOT NULL CHECK (network IN ('clearnet', 'tor', 'i2p', 'loki')),
    source        text    NOT NULL,
    first_seen_at bigint  NOT NULL,
    last_seen_at  bigint  NOT NULL,
    seen_count    integer NOT NULL DEFAULT 1,
    failures      integer NOT NULL DEFAULT 0,
    last_tried_at bigint,
    last_outcome  text,
    last_reason   text,
    tombstoned_at bigint
);
COMMENT ON TABLE  candidate IS 'URLs that may be relays and have not proved it yet, with their own back-off.';
COMMENT ON COLUMN candidate.url IS 'Canonical URL.';
COMMENT ON COLUMN candidate.network IS 'clearnet, tor, i2p or loki.';
COMMENT ON COLUMN candidate.source IS 'Where it was first seen: seed, event, operator.';
COMMENT ON COLUMN candidate.first_seen_at IS 'First sighting, Unix seconds.';
COMMENT ON COLUMN candidate.last_seen_at IS 'Latest sighting, Unix seconds.';
COMMENT ON COLUMN candidate.seen_count IS 'How many batches named it.';
COMMENT ON COLUMN candidate.failures IS 'Consecutive failed validations.';
COMMENT ON COLUMN candidate.last_tried_at IS 'Latest validation, Unix seconds.';
COMMENT ON COLUMN candidate.last_outcome IS 'Outcome of the latest validation (closed set).';
COMMENT ON COLUMN candidate.last_reason IS 'Reason of the latest validation (closed set).';
COMMENT ON COLUMN candidate.tombstoned_at IS 'Given up since then; a new sighting alone does not revive it.';

CREATE TABLE vantage (
    id   smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text     NOT NULL UNIQUE CHECK (octet_length(name) BETWEEN 1 AND 64)
);
COMMENT ON TABLE  vantage IS 'Places from which relays are observed.';
COMMENT ON COLUMN vantage.id IS 'Small key used by the check series.';
COMMENT ON COLUMN vantage.name IS 'Name from the worker configuration.';

CREATE TABLE relay_state (
    relay_id     integer  NOT NULL,
    vantage_id   smallint NOT NULL,
    state        text     NOT NULL CHECK (state IN ('alive', 'suspect', 'down')),
    reason       text     NOT NULL,
    since_at     bigint   NOT NULL,
    checked_at   bigint   NOT NULL,
    alive_at     bigint,
    failures     integer  NOT NULL DEFAULT 0,
    successes    integer  NOT NULL DEFAULT 0,
    PRIMARY KEY (relay_id, vantage_id)
);
COMMENT ON TABLE  relay_state IS 'Liveness of a relay as one vantage judges it, with hysteresis.';
COMMENT ON COLUMN relay_state.relay_id IS 'relay.id';
COMMENT ON COLUMN relay_state.vantage_id IS 'vantage.id';
COMMENT ON COLUMN relay_state.state IS 'alive, suspect or down.';
COMMENT ON COLUMN relay_state.reason IS 'Why (closed set of reasons); none when alive.';
COMMENT ON COLUMN relay_state.since_at IS 'When this state began, Unix seconds.';
COMMENT ON COLUMN relay_state.checked_at IS 'Latest check, Unix seconds.';
COMMENT ON COLUMN relay_state.alive_at IS 'Latest check that found it alive, Unix seconds.';
COMMENT ON COLUMN relay_state.failures IS 'Consecutive failed checks.';
COMMENT ON COLUMN relay_state.successes IS 'Consecutive good checks.';

CREATE TABLE relay_check (
    checked_at   bigint   NOT NULL,
    relay_id     integer  NOT NULL,
    vantage_id   smallint NOT NULL,
    kind         text     NOT NULL CHECK (kind IN ('nip11', 'rtt', 'ssl', 'dns', 'geo', 'net', 'http')),
    outcome      text     NOT NULL CHECK (outcome IN ('ok', 'refused', 'timeout', 'invalid', 'skipped')),
    reason       text     NOT NULL,
    open_ms      integer,
    read_ms      integer,
    write_ms     integer,
    metadata_id  bytea
) PARTITION BY RANGE (checked_at);
CREATE TABLE relay_check_default PARTITION OF relay_check DEFAULT;
CREATE UNIQUE INDEX relay_check_key ON relay_check (relay_id, kind, checked_at, vantage_id);
COMMENT ON TABLE  relay_check IS 'Every check of every relay, partitioned by day.';
COMMENT ON COLUMN relay_check.checked_at IS 'When, Unix seconds.';
COMMENT ON COLUMN relay_check.relay_id IS 'relay.id';
COMMENT ON COLUMN relay_check.vantage_id IS 'vantage.id: from where.';
COMMENT ON COLUMN relay_check.kind IS 'nip11, rtt, ssl, dns, geo, net or http.';
COMMENT ON COLUMN relay_check.outcome IS 'ok, refused, timeout, invalid or skipped.';
COMMENT ON COLUMN relay_check.reason IS 'Why (closed set); none when ok.';
COMMENT ON COLUMN relay_check.open_ms IS 'Milliseconds until the WebSocket was open (rtt).';
COMMENT ON COLUMN relay_check.read_ms IS 'Milliseconds from REQ to EOSE (rtt).';
COMMENT ON COLUMN relay_check.write_ms IS 'Milliseconds from EVENT to OK (rtt).';
COMMENT ON COLUMN relay_check.metadata_id IS 'SHA-256 of the document this check saw, if it saw one.';

CREATE TABLE relay_check_latest (
    relay_id     integer  NOT NULL,
    kind         text     NOT NULL,
    vantage_id   smallint NOT NULL,
    checked_at   bigint   NOT NULL,
    outcome      text     NOT NULL,
    reason       text     NOT NULL,
    open_ms      integer,
    read_ms      integer,
    write_ms     integer,
    metadata_id  bytea,
    confirmed_at bigint,
    PRIMARY KEY (relay_id, kind, vantage_id)
);
COMMENT ON TABLE  relay_check_latest IS 'The newest check per relay, kind and vantage: small, so that views need not read the series.';
COMMENT ON COLUMN relay_check_latest.relay_id IS 'relay.id';
COMMENT ON COLUMN relay_check_latest.kind IS 'Kind of check.';
COMMENT ON COLUMN relay_check_latest.vantage_id IS 'vantage.id';
COMMENT ON COLUMN relay_check_latest.checked_at IS 'When, Unix seconds.';
COMMENT ON COLUMN relay_check_latest.outcome IS 'Outcome (closed set).';
COMMENT ON COLUMN relay_check_latest.reason IS 'Reason (closed set).';
COMMENT ON COLUMN relay_check_latest.open_ms IS 'Milliseconds until open.';
COMMENT ON COLUMN relay_check_latest.read_ms IS 'Milliseconds from REQ to EOSE.';
COMMENT ON COLUMN relay_check_latest.write_ms IS 'Milliseconds from EVENT to OK.';
COMMENT ON COLUMN relay_check_latest.metadata_id IS 'Newest document this check saw; kept when a later check saw none.';
COMMENT ON COLUMN relay_check_latest.confirmed_at IS 'When that document was last seen unchanged, Unix seconds.';

CREATE TABLE metadata (
    id   bytea NOT NULL CHECK (octet_length(id) = 32),
    type text  NOT NULL CHECK (type IN ('nip11_info', 'nip66_rtt', 'nip66_ssl', 'nip66_geo', 'nip66_net', 'nip66_dns', 'nip66_http')),
    data json  NOT NULL,
    PRIMARY KEY (id, type)
);
COMMENT ON TABLE  metadata IS 'Content-addressed documents. The type is not hashed: deduplication is per type.';
COMMENT ON COLUMN metadata.id IS 'SHA-256 of data.';
COMMENT ON COLUMN metadata.type IS 'What the document is.';
COMMENT ON COLUMN metadata.data IS 'Canonical JSON, byte for byte what was hashed (type json, not jsonb, which rewrites numbers).';

CREATE TABLE relay_metadata (
    relay_id      integer NOT NULL,
    metadata_type text    NOT NULL,
    generated_at  bigint  NOT NULL,
    metadata_id   bytea   NOT NULL,
    PRIMARY KEY (relay_id, metadata_type, generated_at)
);
CREATE INDEX relay_metadata_document ON relay_metadata (metadata_id, metadata_type);
COMMENT ON TABLE  relay_metadata IS 'One row each time a document of a relay changed.';
COMMENT ON COLUMN relay_metadata.relay_id IS 'relay.id';
COMMENT ON COLUMN relay_metadata.metadata_type IS 'metadata.type';
COMMENT ON COLUMN relay_metadata.generated_at IS 'When this version was first seen, Unix seconds.';
COMMENT ON COLUMN relay_metadata.metadata_id IS 'metadata.id';

CREATE TABLE service_state (
    service_name text  NOT NULL,
    state_type   text  NOT NULL,
    state_key    text  NOT NULL CHECK (state_key <> ''),
    state_value  jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (service_name, state_type, state_key)
);
COMMENT ON TABLE  service_state IS 'Small named facts that must survive a restart.';
COMMENT ON COLUMN service_state.service_name IS 'Who keeps it.';
COMMENT ON COLUMN service_state.state_type IS 'checkpoint or cursor.';
COMMENT ON COLUMN service_state.state_key IS 'Of what.';
COMMENT ON COLUMN service_state.state_value IS 'The fact.';

-- event_key = clamp(created_at, 0, 2^32-1) << 31 | top 31 bits of the id (ADR-002).
CREATE TABLE event (
    event_key  bigint   NOT NULL,
    created_at bigint   NOT NULL,
    kind       integer  NOT NULL,
    fate       smallint NOT NULL DEFAULT 0 CHECK (fate BETWEEN 0 AND 3),
    id         bytea    NOT NULL CHECK (octet_length(id) = 32),
    pubkey     bytea    NOT NULL CHECK (octet_length(pubkey) = 32),
    sig        bytea    CHECK (octet_length(sig) = 64),
    d_tag      bytea,
    tags       bytea,
    content    bytea,
    tag_hashes bigint[],
    PRIMARY KEY (event_key) INCLUDE (id)
) PARTITION BY RANGE (event_key);
CREATE TABLE event_default PARTITION OF event DEFAULT;
COMMENT ON TABLE  event IS 'Every event we know, once, partitioned by month of its key.';
COMMENT ON COLUMN event.event_key IS 'Time and the top of the id in one number; time order is key order.';
COMMENT ON COLUMN event.created_at IS 'The author''s claim, Unix seconds, unclamped.';
COMMENT ON COLUMN event.kind IS 'NIP-01 kind, 0 to 65535.';
COMMENT ON COLUMN event.fate IS '0 archived, 1 skipped by policy, 2 deleted, 3 expired: only 0 has a body.';
COMMENT ON COLUMN event.id IS 'SHA-256 of the NIP-01 serialisation.';
COMMENT ON COLUMN event.pubkey IS 'Author, x-only public key.';
COMMENT ON COLUMN event.sig IS 'BIP-340 signature over the id.';
COMMENT ON COLUMN event.d_tag IS 'First d tag of an addressable event (UTF-8), empty when absent; null for other kinds.';
COMMENT ON COLUMN event.tags IS 'Tags as JSON text, UTF-8: bytes, because text cannot hold NUL.';
COMMENT ON COLUMN event.content IS 'Content, UTF-8: bytes, because text cannot hold NUL.';
COMMENT ON COLUMN event.tag_hashes IS 'First 8 bytes of SHA-256("letter:value") of each single-letter tag; recheck tags after a hit.';
-- An id alone, without its time, is found here; it visits every month.
CREATE INDEX event_id ON event ((substring(id FROM 9 FOR 8)));
CREATE INDEX event_tag ON event USING gin (tag_hashes);

CREATE TABLE event_collision (
    id        bytea  PRIMARY KEY,
    event_key bigint NOT NULL UNIQUE
);
COMMENT ON TABLE  event_collision IS 'Events whose natural key was taken by another event, and the key they have instead. Normally empty.';
COMMENT ON COLUMN event_collision.id IS 'event.id';
COMMENT ON COLUMN event_collision.event_key IS 'event.event_key';

CREATE TABLE event_relay (
    event_key bigint   NOT NULL,
    seen_at   bigint   NOT NULL,
    relay_id  integer  NOT NULL,
    evidence  smallint NOT NULL DEFAULT 0 CHECK (evidence IN (0, 1)),
    PRIMARY KEY (relay_id, event_key)
) PARTITION BY RANGE (event_key);
CREATE TABLE event_relay_default PARTITION OF event_relay DEFAULT;
CREATE INDEX event_relay_event ON event_relay (event_key);
COMMENT ON TABLE  event_relay IS 'Which event was seen on which relay. No foreign keys: event_relay_insert resolves both ends (ADR-002).';
COMMENT ON COLUMN event_relay.event_key IS 'event.event_key';
COMMENT ON COLUMN event_relay.seen_at IS 'When we first saw it there, Unix seconds.';
COMMENT ON COLUMN event_relay.relay_id IS 'relay.id';
COMMENT ON COLUMN event_relay.evidence IS '0 delivered to us by the relay, 1 claimed by it (reconciliation).';

CREATE TABLE event_unmined (
    event_key bigint PRIMARY KEY
);
COMMENT ON TABLE  event_unmined IS 'Archived events that discover has not looked into yet; written with the event, so each is mined once.';
COMMENT ON COLUMN event_unmined.event_key IS 'event.event_key';

CREATE TABLE event_quarantine (
    id        bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relay_id  integer NOT NULL,
    seen_at   bigint  NOT NULL,
    reason    text    NOT NULL,
    event_id  bytea,
    raw       bytea   NOT NULL
);
COMMENT ON TABLE  event_quarantine IS 'Events that verified and that the database refused, one by one, with its reason.';
COMMENT ON COLUMN event_quarantine.id IS 'Serial.';
COMMENT ON COLUMN event_quarantine.relay_id IS 'relay.id that delivered it.';
COMMENT ON COLUMN event_quarantine.seen_at IS 'When, Unix seconds.';
COMMENT ON COLUMN event_quarantine.reason IS 'The database''s words.';
COMMENT ON COLUMN event_quarantine.event_id IS 'Id, if it could be read.';
COMMENT ON COLUMN event_quarantine.raw IS 'The event as delivered.';
CREATE UNIQUE INDEX event_quarantine_once ON event_quarantine (relay_id, event_id);

CREATE TABLE coverage (
    relay_id    integer NOT NULL,
    class       text    NOT NULL,
    since_at    bigint  NOT NULL,
    until_at    bigint  NOT NULL,
    grade       text    NOT NULL CHECK (grade IN ('reconciled', 'finished', 'walked', 'partial', 'refused', 'unknown')),
    reason      text    NOT NULL,
    observed_at bigint  NOT NULL,
    PRIMARY KEY (relay_id, class, since_at),
    CHECK (since_at <= until_at)
);
COMMENT ON TABLE  coverage IS 'How well each stretch of a relay''s timeline is archived: disjoint intervals of created_at.';
COMMENT ON COLUMN coverage.relay_id IS 'relay.id';
COMMENT ON COLUMN coverage.class IS 'Filter class the interval speaks of; all = no restriction.';
COMMENT ON COLUMN coverage.since_at IS 'First second, inclusive.';
COMMENT ON COLUMN coverage.until_at IS 'Last second, inclusive.';
COMMENT ON COLUMN coverage.grade IS 'reconciled > finished > walked (proof) > partial > refused > unknown (gap).';
COMMENT ON COLUMN coverage.reason IS 'Why a gap is one (closed set); none for proof.';
COMMENT ON COLUMN coverage.observed_at IS 'When this was established, Unix seconds; the oldest where intervals were merged.';

CREATE TABLE schedule (
    kind       text        NOT NULL CHECK (kind IN ('discover', 'validate', 'monitor', 'sync', 'refresh')),
    target     text        NOT NULL,
    network    text        NOT NULL,
    due_at     timestamptz NOT NULL,
    slack_s    integer     NOT NULL CHECK (slack_s >= 0),
    why        text        NOT NULL,
    PRIMARY KEY (kind, target)
);
CREATE INDEX schedule_due ON schedule (kind, network, due_at);
COMMENT ON TABLE  schedule IS 'When each target next needs each kind of job: one row per pair, while the target is of interest.';
COMMENT ON COLUMN schedule.kind IS 'Job kind.';
COMMENT ON COLUMN schedule.target IS 'Canonical relay URL, or the name of a local task.';
COMMENT ON COLUMN schedule.network IS 'Network whose workers can do it; local needs none.';
COMMENT ON COLUMN schedule.due_at IS 'Not before; moved ahead when a job is enqueued, set exactly when it ends.';
COMMENT ON COLUMN schedule.slack_s IS 'How late a run may be without harm; deadline = due + slack.';
COMMENT ON COLUMN schedule.why IS 'What set this time.';

CREATE TABLE job_history (
    job_id      text        NOT NULL,
    kind        text        NOT NULL,
    network     text        NOT NULL,
    target      text        NOT NULL,
    state       text        NOT NULL CHECK (state IN ('complete', 'cancelled', 'dead')),
    attempt     integer     NOT NULL,
    worker_id   text,
    due_at      timestamptz NOT NULL,
    enqueued_at timestamptz NOT NULL,
    started_at  timestamptz,
    finished_at timestamptz NOT NULL,
    result      jsonb
) PARTITION BY RANGE (finished_at);
CREATE TABLE job_history_default PARTITION OF job_history DEFAULT;
CREATE INDEX job_history_finished ON job_history (finished_at);
CREATE INDEX job_history_job ON job_history (job_id);
CREATE INDEX job_history_target ON job_history (target, finished_at);
COMMENT ON TABLE  job_history IS 'Finished jobs, partitioned by day. The live queue is apalis.jobs.';
COMMENT ON COLUMN job_history.job_id IS 'apalis.jobs.id while it lived.';
COMMENT ON COLUMN job_history.kind IS 'Job kind.';
COMMENT ON COLUMN job_history.network IS 'Network, or local.';
COMMENT ON COLUMN job_history.target IS 'Relay URL or task name.';
COMMENT ON COLUMN job_history.state IS 'complete, cancelled or dead.';
COMMENT ON COLUMN job_history.attempt IS 'Attempt that ended it, from 1.';
COMMENT ON COLUMN job_history.worker_id IS 'Worker that held it last.';
COMMENT ON COLUMN job_history.due_at IS 'When it was due.';
COMMENT ON COLUMN job_history.enqueued_at IS 'When it was enqueued.';
COMMENT ON COLUMN job_history.started_at IS 'When its last attempt was claimed.';
COMMENT ON COLUMN job_history.finished_at IS 'When it ended.';
COMMENT ON COLUMN job_history.result IS 'Report of the handler, or its error.';

CREATE TABLE leader (
    name   text        PRIMARY KEY,
    holder text        NOT NULL,
    term   bigint      NOT NULL,
    until  timestamptz NOT NULL
);
COMMENT ON TABLE  leader IS 'Who leads, until when: a lease, so that a dead leader needs nobody''s help to be followed.';
COMMENT ON COLUMN leader.name IS 'What is led.';
COMMENT ON COLUMN leader.holder IS 'Process that leads.';
COMMENT ON COLUMN leader.term IS 'Grows by one with each change of holder.';
COMMENT ON COLUMN leader.until IS 'End of the lease, database clock.';

CREATE TABLE view_state (
    view_name    text        PRIMARY KEY,
    refreshed_at timestamptz NOT NULL,
    duration_ms  bigint      NOT NULL
);
COMMENT ON TABLE  view_state IS 'When each view was last refreshed.';
COMMENT ON COLUMN view_state.view_name IS 'Name of the view.';
COMMENT ON COLUMN view_state.refreshed_at IS 'End of the latest refresh.';
COMMENT ON COLUMN view_state.duration_ms IS 'How long it took, milliseconds.';

CREATE VIEW observation AS
SELECT e.id AS event_id, r.url AS relay_url, e.created_at, o.seen_at,
       CASE o.evidence WHEN 0 THEN 'delivered' ELSE 'claimed' END AS evidence
FROM public.event_relay o
JOIN public.event e ON e.event_key = o.event_key
JOIN public.relay r ON r.id = o.relay_id;
COMMENT ON VIEW observation IS 'Which event on which relay: the stable surface over event_relay.';

CREATE VIEW relay_coverage AS
SELECT r.url AS relay_url, c.class, c.since_at, c.until_at, c.grade, c.reason, c.observed_at
FROM public.coverage c
JOIN public.relay r ON r.id = c.relay_id;
COMMENT ON VIEW relay_coverage IS 'Coverage with URLs: the stable surface over coverage.';
