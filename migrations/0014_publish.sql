-- What we publish (NIP-66) on its way to the publishing relays, and what other monitors publish.

CREATE TABLE publication (
    pubkey     bytea   NOT NULL CHECK (octet_length(pubkey) = 32),
    kind       integer NOT NULL CHECK (kind BETWEEN 0 AND 65535),
    d_tag      text    NOT NULL CHECK (octet_length(d_tag) <= 2100),
    relay_url  text,
    event_id   bytea   NOT NULL CHECK (octet_length(event_id) = 32),
    created_at bigint  NOT NULL,
    digest     bytea   NOT NULL CHECK (octet_length(digest) = 32),
    put_at     bigint  NOT NULL,
    event      text    NOT NULL,
    PRIMARY KEY (pubkey, kind, d_tag)
);
COMMENT ON TABLE  publication IS 'The newest signed event of ours per author, kind and d: what each publishing relay should have.';
COMMENT ON COLUMN publication.pubkey IS 'Our public key; vantages may have keys of their own.';
COMMENT ON COLUMN publication.kind IS '30166 of a relay, 10166, 0 and 10002 of ourselves, 5 for a 30166 taken back.';
COMMENT ON COLUMN publication.d_tag IS 'Its d tag, empty without one; of kind 5 that of the event taken back.';
COMMENT ON COLUMN publication.relay_url IS 'relay.url it speaks of; null where it speaks of none.';
COMMENT ON COLUMN publication.event_id IS 'Its id.';
COMMENT ON COLUMN publication.created_at IS 'Its time, Unix seconds.';
COMMENT ON COLUMN publication.digest IS 'SHA-256 of kind, tags and content: equal when it says the same at another time.';
COMMENT ON COLUMN publication.put_at IS 'When it was put here, Unix seconds.';
COMMENT ON COLUMN publication.event IS 'The event as JSON text.';

CREATE TABLE publication_relay (
    id        integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    url       text        NOT NULL UNIQUE CHECK (octet_length(url) BETWEEN 6 AND 2048),
    failures  integer     NOT NULL DEFAULT 0,
    next_at   timestamptz NOT NULL DEFAULT now(),
    tried_at  timestamptz,
    words     text        NOT NULL DEFAULT ''
);
COMMENT ON TABLE  publication_relay IS 'Where we publish: the relays of publish.relays, with their back-off.';
COMMENT ON COLUMN publication_relay.id IS 'Small key of publication_delivery.';
COMMENT ON COLUMN publication_relay.url IS 'Canonical URL.';
COMMENT ON COLUMN publication_relay.failures IS 'Connections in a row that brought nothing: not made, or everything refused.';
COMMENT ON COLUMN publication_relay.next_at IS 'Not before; ahead after failures.';
COMMENT ON COLUMN publication_relay.tried_at IS 'Latest connection tried.';
COMMENT ON COLUMN publication_relay.words IS 'Why the latest one brought nothing; empty when it did.';

CREATE TABLE publication_delivery (
    relay_id    integer NOT NULL,
    pubkey      bytea   NOT NULL,
    kind        integer NOT NULL,
    d_tag       text    NOT NULL,
    event_id    bytea   NOT NULL,
    state       text    NOT NULL CHECK (state IN ('accepted', 'refused', 'waiting')),
    words       text    NOT NULL,
    tries       integer NOT NULL,
    at          bigint  NOT NULL,
    accepted_at bigint,
    next_at     timestamptz CHECK ((state = 'waiting') = (next_at IS NOT NULL)),
    PRIMARY KEY (relay_id, pubkey, kind, d_tag)
);
COMMENT ON TABLE  publication_delivery IS 'What became of each publication at each publishing relay. One without a row, or whose event is another, has not been brought yet.';
COMMENT ON COLUMN publication_delivery.relay_id IS 'publication_relay.id';
COMMENT ON COLUMN publication_delivery.pubkey IS 'publication.pubkey';
COMMENT ON COLUMN publication_delivery.kind IS 'publication.kind';
COMMENT ON COLUMN publication_delivery.d_tag IS 'publication.d_tag';
COMMENT ON COLUMN publication_delivery.event_id IS 'Which event this row speaks of.';
COMMENT ON COLUMN publication_delivery.state IS 'accepted; refused: not tried again; waiting: tried again at next_at.';
COMMENT ON COLUMN publication_delivery.words IS 'The relay''s words, cut.';
COMMENT ON COLUMN publication_delivery.tries IS 'How often this event was brought.';
COMMENT ON COLUMN publication_delivery.at IS 'When that was last, Unix seconds.';
COMMENT ON COLUMN publication_delivery.accepted_at IS 'When an event of this key was last accepted there, Unix seconds.';
COMMENT ON COLUMN publication_delivery.next_at IS 'When it is brought again; null where it is not.';

CREATE FUNCTION publication_pending(p_relay integer, p_limit integer)
RETURNS TABLE (pubkey bytea, kind integer, d_tag text, event_id bytea, event text, due_at timestamptz)
LANGUAGE sql STABLE SET search_path = public, pg_temp
AS $$
    SELECT p.pubkey, p.kind, p.d_tag, p.event_id, p.event,
           CASE WHEN d.event_id = p.event_id THEN d.next_at ELSE '-infinity'::timestamptz END
    FROM publication p
    LEFT JOIN publication_delivery d ON d.relay_id = p_relay AND d.pubkey = p.pubkey AND d.kind = p.kind AND d.d_tag = p.d_tag
    WHERE (d.event_id IS DISTINCT FROM p.event_id OR d.state = 'waiting')
      -- Who was not reached for a day hears no old news of relays; there will be new.
      AND (p.kind <> 30166 OR p.created_at > extract(epoch FROM now()) - 86400)
    ORDER BY 6, p.kind = 30166, p.put_at, p.pubkey, p.kind, p.d_tag LIMIT p_limit
$$;
COMMENT ON FUNCTION publication_pending IS 'What one publishing relay should have and has not settled, the earliest first: due_at is in the past where nothing was tried yet.';

CREATE FUNCTION publication_put(
    p_job text, p_worker text, p_attempt integer,
    p_pubkeys bytea[], p_kinds integer[], p_ds text[], p_relay_urls text[], p_event_ids bytea[], p_created_ats bigint[],
    p_digests bytea[], p_events text[], p_refresh_s integer[])
RETURNS TABLE (held boolean, written integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    held := EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt]));
    written := 0;
    IF held THEN
        INSERT INTO publication AS p (pubkey, kind, d_tag, relay_url, event_id, created_at, digest, put_at, event)
        SELECT u.pubkey, u.kind, u.d_tag, u.relay_url, u.event_id, u.created_at, u.digest, extract(epoch FROM now())::bigint, u.event
        FROM unnest(p_pubkeys, p_kinds, p_ds, p_relay_urls, p_event_ids, p_created_ats, p_digests, p_events)
             WITH ORDINALITY u(pubkey, kind, d_tag, relay_url, event_id, created_at, digest, event, o)
        LEFT JOIN publication x ON x.pubkey = u.pubkey AND x.kind = u.kind AND x.d_tag = u.d_tag
        WHERE CASE
            -- Taken back is only what somebody may have.
            WHEN u.kind = 5 THEN EXISTS (
                SELECT FROM publication_delivery d WHERE d.pubkey = u.pubkey AND d.kind = 30166 AND d.d_tag = u.d_tag
                   AND (d.accepted_at IS NOT NULL OR d.state = 'waiting'))
            -- The same is said again only after a while.
            ELSE x.digest IS DISTINCT FROM u.digest OR x.created_at + p_refresh_s[u.o] <= u.created_at END
        ORDER BY u.pubkey, u.kind, u.d_tag
        ON CONFLICT (pubkey, kind, d_tag) DO UPDATE
            SET relay_url = excluded.relay_url, event_id = excluded.event_id, created_at = excluded.created_at, digest = excluded.digest,
                put_at = excluded.put_at, event = excluded.event
            WHERE p.created_at < excluded.created_at;
        GET DIAGNOSTICS written = ROW_COUNT;
        -- What is said again is not taken back any more, and what is taken back is not said any more.
        DELETE FROM publication_delivery d USING unnest(p_pubkeys, p_kinds, p_ds) u(pubkey, kind, d_tag)
        WHERE d.pubkey = u.pubkey AND d.d_tag = u.d_tag AND (u.kind, d.kind) IN ((30166, 5), (5, 30166));
        DELETE FROM publication p USING unnest(p_pubkeys, p_kinds, p_ds) u(pubkey, kind, d_tag)
        WHERE p.pubkey = u.pubkey AND p.d_tag = u.d_tag AND (u.kind, p.kind) IN ((30166, 5), (5, 30166));
        IF written > 0 THEN
            -- Soon, so that several go together; and nobody waits for a row in which everybody meets.
            UPDATE schedule s SET due_at = now() + interval '2 seconds'
            FROM (SELECT x.kind, x.target FROM schedule x
                  WHERE x.kind = 'monitor' AND x.target = 'publish' AND x.due_at > now() + interval '2 seconds' FOR UPDATE SKIP LOCKED) y
            WHERE s.kind = y.kind AND s.target = y.target;
        END IF;
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION publication_put IS 'Puts newer events of ours into the outbox, where they say something else or the last one is p_refresh_s old; a kind 5 replaces the 30166 of its d, if somebody may have that, and the other way round. Returns whether the fence held and how many were written.';

CREATE FUNCTION publication_unwanted(p_pubkey bytea, p_limit integer)
RETURNS SETOF text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM relay_exclusion) THEN RETURN; END IF;
    RETURN QUERY SELECT p.d_tag FROM publication p
        WHERE p.pubkey = p_pubkey AND p.kind = 30166 AND url_excluded(p.relay_url) IS NOT NULL ORDER BY p.d_tag LIMIT p_limit;
END $$;
COMMENT ON FUNCTION publication_unwanted IS 'The d of what we say of relays that operators have excluded: to be taken back.';

CREATE FUNCTION publication_ids(p_pubkey bytea, p_kind integer, p_d text)
RETURNS SETOF bytea
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY
        SELECT d.event_id FROM publication_delivery d WHERE d.pubkey = p_pubkey AND d.kind = p_kind AND d.d_tag = p_d AND d.state <> 'refused'
        UNION SELECT p.event_id FROM publication p WHERE p.pubkey = p_pubkey AND p.kind = p_kind AND p.d_tag = p_d
        ORDER BY 1 LIMIT 20;
END $$;
COMMENT ON FUNCTION publication_ids IS 'The events of one author, kind and d that some relay may have now, by id.';

CREATE FUNCTION publication_begin(p_job text, p_worker text, p_attempt integer, p_relays text[])
RETURNS TABLE (relay_id integer, relay_url text, failures integer, due boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt])) THEN RETURN; END IF;
    INSERT INTO publication_relay (url) SELECT DISTINCT u FROM unnest(p_relays) u ORDER BY u ON CONFLICT (url) DO NOTHING;
    DELETE FROM publication_delivery d USING publication_relay r WHERE r.id = d.relay_id AND r.url <> ALL (p_relays);
    DELETE FROM publication_relay r WHERE r.url <> ALL (p_relays);
    RETURN QUERY SELECT r.id, r.url, r.failures, r.next_at <= now() FROM publication_relay r ORDER BY r.id;
END $$;
COMMENT ON FUNCTION publication_begin IS 'Makes p_relays the publishing relays, forgetting others, and returns them with their failures and whether they may be visited now. No row: the fence was lost.';

CREATE FUNCTION publication_take(p_relay integer, p_limit integer)
RETURNS TABLE (pubkey bytea, kind integer, d_tag text, event_id bytea, event text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY
        SELECT t.pubkey, t.kind, t.d_tag, t.event_id, t.event FROM (
            SELECT q.*, sum(octet_length(q.event)) OVER (ORDER BY q.position ROWS UNBOUNDED PRECEDING) AS running
            FROM publication_pending(p_relay, p_limit) WITH ORDINALITY q(pubkey, kind, d_tag, event_id, event, due_at, position)
            WHERE q.due_at <= now()) t
        WHERE t.running <= 1048576 OR t.position = 1
        ORDER BY t.position;
END $$;
COMMENT ON FUNCTION publication_take IS 'What is to be brought to one publishing relay now, at most p_limit events and 1 MiB.';

CREATE FUNCTION publication_settle(
    p_job text, p_worker text, p_attempt integer, p_relay integer,
    p_pubkeys bytea[], p_kinds integer[], p_ds text[], p_event_ids bytea[], p_states text[], p_words text[], p_next_s double precision[],
    p_failures integer, p_delay_s double precision, p_relay_words text)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE v_now bigint := extract(epoch FROM now())::bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt])) THEN RETURN false; END IF;
    INSERT INTO publication_delivery AS d (relay_id, pubkey, kind, d_tag, event_id, state, words, tries, at, accepted_at, next_at)
    SELECT p_relay, u.pubkey, u.kind, u.d_tag, u.event_id, u.state, u.words, 1, v_now,
           CASE u.state WHEN 'accepted' THEN v_now END, CASE u.state WHEN 'waiting' THEN now() + make_interval(secs => u.next_s) END
    FROM unnest(p_pubkeys, p_kinds, p_ds, p_event_ids, p_states, p_words, p_next_s)
         u(pubkey, kind, d_tag, event_id, state, words, next_s)
    -- What was taken back meanwhile leaves no trace but at the relay, where its deletion follows.
    WHERE EXISTS (SELECT FROM publication_relay r WHERE r.id = p_relay)
    ORDER BY u.pubkey, u.kind, u.d_tag
    ON CONFLICT (relay_id, pubkey, kind, d_tag) DO UPDATE
        SET event_id = excluded.event_id, state = excluded.state, words = excluded.words, at = excluded.at, next_at = excluded.next_at,
            tries = CASE WHEN d.event_id = excluded.event_id THEN d.tries + 1 ELSE 1 END,
            accepted_at = coalesce(excluded.accepted_at, d.accepted_at);
    UPDATE publication_relay r
    SET failures = p_failures, next_at = now() + make_interval(secs => p_delay_s), words = p_relay_words, tried_at = now()
    WHERE r.id = p_relay;
    RETURN true;
END $$;
COMMENT ON FUNCTION publication_settle IS 'What became of the events brought to one relay: accepted, refused, or waiting for p_next_s; and the relay''s own failures and when it may be visited again. False when the fence was lost.';

CREATE FUNCTION publication_next(p_job text, p_worker text, p_attempt integer, p_next_s double precision, p_slack integer, p_why text)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE v_due timestamptz;
BEGIN
    IF NOT EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt])) THEN RETURN false; END IF;
    SELECT min(greatest(r.next_at, q.due_at, now() + interval '1 second')) INTO v_due
    FROM publication_relay r CROSS JOIN LATERAL publication_pending(r.id, 1) q;
    UPDATE schedule s SET due_at = least(v_due, now() + make_interval(secs => p_next_s)), slack_s = p_slack, why = p_why
    WHERE s.kind = 'monitor' AND s.target = 'publish';
    RETURN true;
END $$;
COMMENT ON FUNCTION publication_next IS 'Sets when the outbox is next due: when the first event or relay is, at the latest p_next_s. False when the fence was lost.';

CREATE FUNCTION publication_retire(p_publish boolean, p_keep_days integer)
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_old bigint := extract(epoch FROM now())::bigint - p_keep_days * 86400::bigint;
    n integer;
BEGIN
    IF NOT p_publish THEN
        DELETE FROM schedule s WHERE s.kind = 'monitor' AND s.target = 'publish';
    END IF;
    DELETE FROM publication_delivery d USING publication p
    WHERE p.pubkey = d.pubkey AND p.kind = d.kind AND p.d_tag = d.d_tag AND p.kind IN (5, 30166) AND p.put_at < v_old;
    DELETE FROM publication p WHERE p.kind IN (5, 30166) AND p.put_at < v_old;
    GET DIAGNOSTICS n = ROW_COUNT;
    DELETE FROM monitor_report m WHERE m.created_at < v_old;
    DELETE FROM monitor_announcement a WHERE a.created_at < v_old AND NOT EXISTS (SELECT FROM monitor_report m WHERE m.monitor = a.monitor);
    RETURN n;
END $$;
COMMENT ON FUNCTION publication_retire IS 'Forgets what we and others said of relays more than p_keep_days ago; where nothing is published (p_publish) also the task that does. Returns how many publications were forgotten.';

CREATE VIEW publication_status AS
SELECT r.url AS relay_url, s.pending, s.accepted, s.refused, s.waiting, r.failures, r.tried_at, r.next_at, r.words,
       s.accepted_at, x.words AS refusal, x.at AS refused_at, x.kind AS refused_kind, x.d_tag AS refused_d
FROM public.publication_relay r
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE d.event_id IS DISTINCT FROM p.event_id) AS pending,
           count(*) FILTER (WHERE d.event_id = p.event_id AND d.state = 'accepted') AS accepted,
           count(*) FILTER (WHERE d.event_id = p.event_id AND d.state = 'refused') AS refused,
           count(*) FILTER (WHERE d.event_id = p.event_id AND d.state = 'waiting') AS waiting,
           max(d.accepted_at) AS accepted_at
    FROM public.publication p
    LEFT JOIN public.publication_delivery d ON d.relay_id = r.id AND d.pubkey = p.pubkey AND d.kind = p.kind AND d.d_tag = p.d_tag) s
LEFT JOIN LATERAL (
    SELECT d.words, d.at, d.kind, d.d_tag FROM public.publication_delivery d
    WHERE d.relay_id = r.id AND d.state <> 'accepted' ORDER BY d.at DESC LIMIT 1) x ON true;
COMMENT ON VIEW publication_status IS 'Per publishing relay: events not brought yet (pending), accepted, refused, to be tried again (waiting), its back-off, and the newest one it did not take with its words.';

-- What other monitors say.

CREATE TABLE monitor_report (
    relay_id   integer NOT NULL,
    monitor    bytea   NOT NULL CHECK (octet_length(monitor) = 32),
    created_at bigint  NOT NULL,
    open_ms    integer,
    read_ms    integer,
    write_ms   integer,
    auth       boolean,
    writes     boolean,
    pow        boolean,
    payment    boolean,
    nips       integer[] NOT NULL,
    geohash    text,
    PRIMARY KEY (relay_id, monitor)
);
COMMENT ON TABLE  monitor_report IS 'The newest words of each other monitor (kind 30166) about relays we know: claims, never averaged with ours.';
COMMENT ON COLUMN monitor_report.relay_id IS 'relay.id';
COMMENT ON COLUMN monitor_report.monitor IS 'The monitor''s public key.';
COMMENT ON COLUMN monitor_report.created_at IS 'When, Unix seconds, as the monitor says.';
COMMENT ON COLUMN monitor_report.open_ms IS 'rtt-open, milliseconds.';
COMMENT ON COLUMN monitor_report.read_ms IS 'rtt-read, milliseconds.';
COMMENT ON COLUMN monitor_report.write_ms IS 'rtt-write, milliseconds.';
COMMENT ON COLUMN monitor_report.auth IS 'R auth or !auth; null when neither.';
COMMENT ON COLUMN monitor_report.writes IS 'R writes or !writes.';
COMMENT ON COLUMN monitor_report.pow IS 'R pow or !pow.';
COMMENT ON COLUMN monitor_report.payment IS 'R payment or !payment.';
COMMENT ON COLUMN monitor_report.nips IS 'N, ascending.';
COMMENT ON COLUMN monitor_report.geohash IS 'g.';

CREATE TABLE monitor_announcement (
    monitor     bytea   PRIMARY KEY CHECK (octet_length(monitor) = 32),
    created_at  bigint  NOT NULL,
    frequency_s integer,
    checks      text[]  NOT NULL,
    timeouts    jsonb   NOT NULL,
    geohash     text
);
COMMENT ON TABLE  monitor_announcement IS 'The newest words of each other monitor about itself (kind 10166), of those that report on relays we know.';
COMMENT ON COLUMN monitor_announcement.monitor IS 'The monitor''s public key.';
COMMENT ON COLUMN monitor_announcement.created_at IS 'When, Unix seconds, as the monitor says.';
COMMENT ON COLUMN monitor_announcement.frequency_s IS 'Seconds between two looks at a relay.';
COMMENT ON COLUMN monitor_announcement.checks IS 'What it looks at.';
COMMENT ON COLUMN monitor_announcement.timeouts IS 'Milliseconds by check; an empty name stands for all.';
COMMENT ON COLUMN monitor_announcement.geohash IS 'Where it is.';

CREATE FUNCTION monitor_report_put(
    p_monitors bytea[], p_urls text[], p_created_ats bigint[], p_opens integer[], p_reads integer[], p_writes_ms integer[],
    p_auths boolean[], p_writes boolean[], p_pows boolean[], p_payments boolean[], p_nips text[], p_geohashes text[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE n integer;
BEGIN
    INSERT INTO monitor_report AS m (relay_id, monitor, created_at, open_ms, read_ms, write_ms, auth, writes, pow, payment, nips, geohash)
    SELECT v.relay_id, v.monitor, v.created_at, v.open_ms, v.read_ms, v.write_ms, v.auth, v.writes, v.pow, v.payment, v.nips::integer[], v.geohash
    FROM (
        SELECT w.*, count(*) FILTER (WHERE NOT w.known) OVER (PARTITION BY w.relay_id ORDER BY w.monitor) AS position FROM (
            SELECT DISTINCT ON (r.id, u.monitor) r.id AS relay_id, u.*,
                   EXISTS (SELECT FROM monitor_report x WHERE x.relay_id = r.id AND x.monitor = u.monitor) AS known
            FROM unnest(p_monitors, p_urls, p_created_ats, p_opens, p_reads, p_writes_ms, p_auths, p_writes, p_pows, p_payments, p_nips, p_geohashes)
                 u(monitor, url, created_at, open_ms, read_ms, write_ms, auth, writes, pow, payment, nips, geohash)
            JOIN relay r ON r.url = u.url
            -- What is dated ahead of its time would stand above all that comes; and our own words are no second opinion.
            WHERE u.created_at <= extract(epoch FROM now()) + 900 AND NOT EXISTS (SELECT FROM publication p WHERE p.pubkey = u.monitor)
            ORDER BY r.id, u.monitor, u.created_at DESC) w) v
    -- Keys cost nothing: a relay has at most a hundred monitors.
    WHERE v.known OR v.position + (SELECT count(*) FROM monitor_report x WHERE x.relay_id = v.relay_id) <= 100
    ORDER BY v.relay_id, v.monitor
    ON CONFLICT (relay_id, monitor) DO UPDATE
        SET created_at = excluded.created_at, open_ms = excluded.open_ms, read_ms = excluded.read_ms, write_ms = excluded.write_ms,
            auth = excluded.auth, writes = excluded.writes, pow = excluded.pow, payment = excluded.payment, nips = excluded.nips, geohash = excluded.geohash
        WHERE m.created_at < excluded.created_at;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION monitor_report_put IS 'Keeps what other monitors say of relays we know, the newest per monitor and relay, at most a hundred monitors per relay; p_nips are array literals. Returns how many rows were written.';

CREATE FUNCTION monitor_announcement_put(
    p_monitors bytea[], p_created_ats bigint[], p_frequencies integer[], p_checks text[], p_timeouts text[], p_geohashes text[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE n integer;
BEGIN
    INSERT INTO monitor_announcement AS a (monitor, created_at, frequency_s, checks, timeouts, geohash)
    SELECT DISTINCT ON (u.monitor) u.monitor, u.created_at, u.frequency_s, u.checks::text[], u.timeouts::jsonb, u.geohash
    FROM unnest(p_monitors, p_created_ats, p_frequencies, p_checks, p_timeouts, p_geohashes) u(monitor, created_at, frequency_s, checks, timeouts, geohash)
    WHERE u.created_at <= extract(epoch FROM now()) + 900 AND NOT EXISTS (SELECT FROM publication p WHERE p.pubkey = u.monitor)
    ORDER BY u.monitor, u.created_at DESC
    ON CONFLICT (monitor) DO UPDATE
        SET created_at = excluded.created_at, frequency_s = excluded.frequency_s, checks = excluded.checks, timeouts = excluded.timeouts,
            geohash = excluded.geohash
        WHERE a.created_at < excluded.created_at;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION monitor_announcement_put IS 'Keeps what other monitors say of themselves, the newest of each; p_checks are array literals, p_timeouts JSON objects. Returns how many rows were written.';

CREATE VIEW monitor_disagreement AS
SELECT w.relay_url, w.monitor, w.seen_at, w.our_state, w.our_checked_at, w.their_state, w.our_open_ms, w.their_open_ms,
       w.our_auth, w.their_auth, w.our_payment, w.their_payment,
       array_remove(ARRAY[
           CASE WHEN w.our_state = 'down' AND w.their_state = 'alive' OR w.our_state = 'alive' AND w.their_state = 'absent' THEN 'liveness' END,
           CASE WHEN w.our_auth <> w.their_auth THEN 'auth' END,
           CASE WHEN w.our_payment <> w.their_payment THEN 'payment' END], NULL) AS disagrees
FROM (
    SELECT r.url AS relay_url, encode(m.monitor, 'hex') AS monitor, m.created_at AS seen_at,
           coalesce(s.state, 'unchecked') AS our_state, s.checked_at AS our_checked_at,
           -- They say nothing of what they do not find: a word older than three of their rounds says so.
           CASE WHEN m.created_at > extract(epoch FROM now()) - 3 * greatest(coalesce(a.frequency_s, 86400), 3600) THEN 'alive' ELSE 'absent' END AS their_state,
           t.open_ms AS our_open_ms, m.open_ms AS their_open_ms,
           CASE WHEN t.reason = 'auth_required' THEN true WHEN t.outcome = 'ok' THEN false END AS our_auth, m.auth AS their_auth,
           CASE i.payment WHEN 'true' THEN true WHEN 'false' THEN false END AS our_payment, m.payment AS their_payment
    FROM public.monitor_report m
    JOIN public.relay r ON r.id = m.relay_id
    LEFT JOIN public.monitor_announcement a ON a.monitor = m.monitor
    LEFT JOIN LATERAL (
        SELECT x.state, x.checked_at FROM public.relay_state x WHERE x.relay_id = r.id
        ORDER BY CASE x.state WHEN 'alive' THEN 0 WHEN 'suspect' THEN 1 ELSE 2 END, x.checked_at DESC LIMIT 1) s ON true
    LEFT JOIN LATERAL (
        SELECT x.open_ms, x.reason, x.outcome FROM public.relay_check_latest x WHERE x.relay_id = r.id AND x.kind = 'rtt'
        ORDER BY x.checked_at DESC LIMIT 1) t ON true
    LEFT JOIN LATERAL (
        SELECT d.data -> 'data' -> 'limitation' ->> 'payment_required' AS payment
        FROM public.relay_check_latest x JOIN public.metadata d ON d.id = x.metadata_id AND d.type = 'nip11_info'
        WHERE x.relay_id = r.id AND x.kind = 'nip11' ORDER BY x.confirmed_at DESC LIMIT 1) i ON true) w;
COMMENT ON VIEW monitor_disagreement IS 'What each other monitor says of each relay beside what we say: liveness, time to open, auth and payment, and in which of them we differ. their_state absent: its last word is older than three of its rounds.';
