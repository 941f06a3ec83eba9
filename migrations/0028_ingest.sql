-- What ingest asks and notes beside events and observations: whether a known event came with our signature, forgeries per
-- relay, events known without a body, deletion requests (NIP-09, NIP-62), and what splits a second that is too dense.

CREATE TABLE relay_forgery (
    relay_id integer NOT NULL,
    reason   text    NOT NULL,
    events   bigint  NOT NULL,
    known    bigint  NOT NULL,
    first_at bigint  NOT NULL,
    last_at  bigint  NOT NULL,
    last_id  bytea   NOT NULL CHECK (octet_length(last_id) = 32),
    PRIMARY KEY (relay_id, reason)
);
COMMENT ON TABLE  relay_forgery IS 'Events that a relay served and that do not verify, counted per reason.';
COMMENT ON COLUMN relay_forgery.relay_id IS 'relay.id';
COMMENT ON COLUMN relay_forgery.reason IS 'What does not verify (closed set): bad_id, bad_signature, shape, range, …';
COMMENT ON COLUMN relay_forgery.events IS 'How often one was served, each page counted.';
COMMENT ON COLUMN relay_forgery.known IS 'How many of them came under the id of an event that we know.';
COMMENT ON COLUMN relay_forgery.first_at IS 'When the first one came, Unix seconds.';
COMMENT ON COLUMN relay_forgery.last_at IS 'When the latest one came, Unix seconds.';
COMMENT ON COLUMN relay_forgery.last_id IS 'The id that the latest one claims.';

CREATE VIEW relay_forgeries AS
SELECT r.url AS relay_url, f.reason, f.events, f.known, f.first_at, f.last_at, f.last_id
FROM public.relay_forgery f JOIN public.relay r ON r.id = f.relay_id;
COMMENT ON VIEW relay_forgeries IS 'Events that relays served and that do not verify.';
COMMENT ON COLUMN relay_forgeries.relay_url IS 'relay.url';
COMMENT ON COLUMN relay_forgeries.reason IS 'What does not verify.';
COMMENT ON COLUMN relay_forgeries.events IS 'How often one was served.';
COMMENT ON COLUMN relay_forgeries.known IS 'How many of them came under the id of an event that we know.';
COMMENT ON COLUMN relay_forgeries.first_at IS 'When the first one came, Unix seconds.';
COMMENT ON COLUMN relay_forgeries.last_at IS 'When the latest one came, Unix seconds.';
COMMENT ON COLUMN relay_forgeries.last_id IS 'The id that the latest one claims.';

CREATE TABLE tombstone (
    pubkey     bytea       NOT NULL CHECK (octet_length(pubkey) = 32),
    what       smallint    NOT NULL CHECK (what BETWEEN 0 AND 2),
    kind       integer     NOT NULL DEFAULT -1,
    target     bytea       NOT NULL DEFAULT '' CHECK (octet_length(target) = CASE what WHEN 2 THEN 0 ELSE 32 END),
    until_at   bigint      NOT NULL,
    request_id bytea       NOT NULL CHECK (octet_length(request_id) = 32),
    noted_at   timestamptz NOT NULL DEFAULT now(),
    settled    smallint    NOT NULL DEFAULT 0 CHECK (settled BETWEEN 0 AND 2),
    PRIMARY KEY (pubkey, what, kind, target)
);
CREATE INDEX tombstone_unsettled ON tombstone (what, noted_at) WHERE settled < 2;
COMMENT ON TABLE  tombstone IS 'What authors asked to have deleted (NIP-09, NIP-62): applied to what is held, and to what arrives later.';
COMMENT ON COLUMN tombstone.pubkey IS 'Author of the request, and of what it speaks of.';
COMMENT ON COLUMN tombstone.what IS '0 one event, 1 the versions of a replaceable or addressable event, 2 everything.';
COMMENT ON COLUMN tombstone.kind IS 'Kind of the address; -1 where there is none.';
COMMENT ON COLUMN tombstone.target IS 'The event''s id, or SHA-256 of the address''s d tag; empty for everything.';
COMMENT ON COLUMN tombstone.until_at IS 'created_at up to which it holds, Unix seconds; an event named by id is meant whenever it is.';
COMMENT ON COLUMN tombstone.request_id IS 'event.id of the request.';
COMMENT ON COLUMN tombstone.noted_at IS 'When it was noted.';
COMMENT ON COLUMN tombstone.settled IS '0 not applied yet, 1 applied at once, 2 applied also after everything that was under way meanwhile.';

CREATE TABLE tombstone_round (
    singleton  smallint    PRIMARY KEY DEFAULT 1 CHECK (singleton = 1),
    cursor_key bigint      NOT NULL,
    noted_to   timestamptz NOT NULL
);
COMMENT ON TABLE  tombstone_round IS 'The round through the archive that applies all open tombstones without an id at once; no row: none is under way.';
COMMENT ON COLUMN tombstone_round.singleton IS 'Always 1.';
COMMENT ON COLUMN tombstone_round.cursor_key IS 'The last event.event_key looked at.';
COMMENT ON COLUMN tombstone_round.noted_to IS 'Tombstones noted up to here are settled at its end.';

CREATE FUNCTION event_known(p_ids bytea[], p_keys bigint[], p_pubkeys bytea[])
RETURNS TABLE (o integer, fate smallint, sig_head bytea)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    lo bigint;
    hi bigint;
BEGIN
    SELECT min(x), max(x) INTO lo, hi FROM unnest(p_keys) x;
    -- As event_resolve: LATERAL … OFFSET 0 with the span of keys. Eight bytes tell signatures apart as well as 64 do:
    -- who forges a body copies the whole of it.
    RETURN QUERY
        SELECT u.o::integer, e.fate, substring(e.sig FROM 1 FOR 8)
        FROM unnest(p_ids, p_keys) WITH ORDINALITY u(id, key, o)
        CROSS JOIN LATERAL (
            SELECT x.fate, x.sig FROM event x
            WHERE x.event_key = u.key AND x.id = u.id AND x.event_key BETWEEN lo AND hi
            OFFSET 0) e;
    IF EXISTS (SELECT FROM event_collision) THEN
        RETURN QUERY
            SELECT u.o::integer, e.fate, substring(e.sig FROM 1 FOR 8)
            FROM unnest(p_ids) WITH ORDINALITY u(id, o)
            JOIN event_collision c ON c.id = u.id
            CROSS JOIN LATERAL (
                SELECT x.fate, x.sig FROM event x
                WHERE x.event_key = c.event_key AND x.id = u.id OFFSET 0) e;
    END IF;
    IF EXISTS (SELECT FROM tombstone) THEN
        RETURN QUERY
            SELECT u.o::integer, (-1)::smallint, NULL::bytea
            FROM (SELECT DISTINCT x.pubkey FROM unnest(p_pubkeys) x(pubkey)
                  WHERE EXISTS (SELECT FROM tombstone t WHERE t.pubkey = x.pubkey)) a
            JOIN unnest(p_pubkeys) WITH ORDINALITY u(pubkey, o) ON u.pubkey = a.pubkey;
    END IF;
END $$;
COMMENT ON FUNCTION event_known IS 'Which of these events are known: 1-based position, fate, first 8 bytes of the signature (null without a body). Unknown ones are absent. Fate -1: the author has asked for deletions, whether or not the event is known.';

CREATE FUNCTION event_note(p_ids bytea[], p_keys bigint[], p_created_ats bigint[], p_pubkeys bytea[], p_kinds integer[], p_fates smallint[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    n integer;
    k bigint;
    r record;
BEGIN
    INSERT INTO event (event_key, created_at, kind, fate, id, pubkey)
    SELECT u.key, u.created_at, u.kind, u.fate, u.id, u.pubkey
    FROM unnest(p_ids, p_keys, p_created_ats, p_pubkeys, p_kinds, p_fates) u(id, key, created_at, pubkey, kind, fate)
    WHERE u.fate IN (1, 2, 3) AND NOT EXISTS (SELECT FROM event_collision c WHERE c.id = u.id)
    ORDER BY u.key, u.id
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n < cardinality(p_ids) THEN
        -- As event_insert does: another event may hold the key.
        FOR r IN
            SELECT u.* FROM unnest(p_ids, p_keys, p_fates) WITH ORDINALITY u(id, key, fate, o)
            CROSS JOIN LATERAL (SELECT x.id FROM event x WHERE x.event_key = u.key OFFSET 0) e
            WHERE e.id <> u.id AND u.fate IN (1, 2, 3) ORDER BY u.id
        LOOP
            PERFORM pg_advisory_xact_lock(7301);
            IF EXISTS (SELECT FROM event_collision c WHERE c.id = r.id) THEN CONTINUE; END IF;
            k := r.key;
            LOOP
                k := CASE WHEN k = 9223372036854775807 THEN 9223372036854775807 - 4294967296 ELSE k + 1 END;
                INSERT INTO event (event_key, created_at, kind, fate, id, pubkey)
                VALUES (k, p_created_ats[r.o], p_kinds[r.o], r.fate, r.id, p_pubkeys[r.o])
                ON CONFLICT DO NOTHING;
                EXIT WHEN found;
            END LOOP;
            INSERT INTO event_collision VALUES (r.id, k);
            n := n + 1;
        END LOOP;
    END IF;
    RETURN n;
END $$;
COMMENT ON FUNCTION event_note IS 'Remembers events without a body: skipped (1), deleted (2) or expired (3), so that nothing fetches them again. The caller verified them, or a forged copy would keep the real one out. Returns how many were new.';

CREATE FUNCTION sync_note(p_job text, p_worker text, p_attempt integer, p_ids bytea[], p_keys bigint[], p_created_ats bigint[], p_pubkeys bytea[], p_kinds integer[], p_fates smallint[])
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    -- The gate that month_drop closes: here, before any lock on a table is held.
    PERFORM pg_advisory_xact_lock_shared(7310);
    IF NOT EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt])) THEN RETURN false; END IF;
    PERFORM event_note(p_ids, p_keys, p_created_ats, p_pubkeys, p_kinds, p_fates);
    RETURN true;
END $$;
COMMENT ON FUNCTION sync_note IS 'event_note for a sync job; false when the fence was lost, and nothing was written.';

CREATE FUNCTION forgery_note(p_job text, p_worker text, p_attempt integer, p_relay_id integer, p_at bigint, p_ids bytea[], p_reasons text[], p_known boolean[])
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt])) THEN RETURN false; END IF;
    INSERT INTO relay_forgery AS f (relay_id, reason, events, known, first_at, last_at, last_id)
    SELECT p_relay_id, u.reason, count(*), count(*) FILTER (WHERE u.known), p_at, p_at, (array_agg(u.id ORDER BY u.o DESC))[1]
    FROM unnest(p_ids, p_reasons, p_known) WITH ORDINALITY u(id, reason, known, o)
    GROUP BY u.reason ORDER BY u.reason
    ON CONFLICT (relay_id, reason) DO UPDATE SET events = f.events + excluded.events, known = f.known + excluded.known,
        last_at = excluded.last_at, last_id = excluded.last_id;
    RETURN true;
END $$;
COMMENT ON FUNCTION forgery_note IS 'Counts events of a page that do not verify, for the relay that served them; false when the fence was lost, and nothing was written.';

CREATE FUNCTION tombstone_note(p_job text, p_worker text, p_attempt integer, p_pubkeys bytea[], p_whats smallint[], p_kinds integer[], p_targets bytea[], p_untils bigint[], p_requests bytea[])
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt])) THEN RETURN false; END IF;
    INSERT INTO tombstone AS t (pubkey, what, kind, target, until_at, request_id)
    SELECT DISTINCT ON (u.pubkey, u.what, u.kind, u.target) u.pubkey, u.what, u.kind, u.target, u.until_at, u.request
    FROM unnest(p_pubkeys, p_whats, p_kinds, p_targets, p_untils, p_requests) u(pubkey, what, kind, target, until_at, request)
    ORDER BY u.pubkey, u.what, u.kind, u.target, u.until_at DESC
    ON CONFLICT (pubkey, what, kind, target) DO UPDATE
        SET until_at = excluded.until_at, request_id = excluded.request_id, noted_at = now(), settled = 0
        WHERE excluded.until_at > t.until_at AND t.what <> 0;
    RETURN true;
END $$;
COMMENT ON FUNCTION tombstone_note IS 'Notes what verified deletion requests ask for; of two for the same thing the later one holds. False when the fence was lost, and nothing was written.';

CREATE FUNCTION tombstone_hits(p_ids bytea[], p_pubkeys bytea[], p_kinds integer[], p_created_ats bigint[], p_d_tags bytea[])
RETURNS SETOF integer
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY
        SELECT DISTINCT u.o::integer
        FROM unnest(p_ids, p_pubkeys, p_kinds, p_created_ats, p_d_tags) WITH ORDINALITY u(id, pubkey, kind, created_at, d_tag, o)
        JOIN tombstone t ON t.pubkey = u.pubkey
        WHERE u.kind <> 62 AND CASE t.what
            WHEN 0 THEN t.target = u.id AND u.kind <> 5
            WHEN 1 THEN t.kind = u.kind AND t.until_at >= u.created_at AND t.target = sha256(coalesce(u.d_tag, ''))
            ELSE t.until_at >= u.created_at END;
END $$;
COMMENT ON FUNCTION tombstone_hits IS 'Which of these events their authors asked to have deleted: 1-based positions. A deletion request falls to a request to vanish only, that one to nothing.';

CREATE FUNCTION event_lay(p_keys bigint[]) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    IF coalesce(cardinality(p_keys), 0) = 0 THEN RETURN 0; END IF;
    PERFORM archive_lock();
    RETURN event_strip(p_keys, 2::smallint);
END $$;
COMMENT ON FUNCTION event_lay IS 'Makes archived events deleted: the row and its observations stay, the body goes. Returns how many.';

CREATE FUNCTION tombstone_step(p_look integer, p_lag interval DEFAULT '15 minutes')
RETURNS TABLE (looked integer, deleted integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_round tombstone_round;
    v_keys bigint[];
    v_last bigint;
BEGIN
    looked := 0; deleted := 0;
    IF NOT EXISTS (SELECT FROM tombstone t WHERE t.settled < 2) OR NOT pg_try_advisory_xact_lock(7328) THEN RETURN NEXT; RETURN; END IF;
    -- By id, at once; and once more when whatever did not know of it yet has been stored.
    WITH open AS (
        SELECT t.pubkey, t.target, t.settled FROM tombstone t
        WHERE t.what = 0 AND (t.settled = 0 OR t.settled = 1 AND t.noted_at <= now() - p_lag)
        ORDER BY t.noted_at LIMIT p_look
    ), moved AS (
        UPDATE tombstone t SET settled = CASE WHEN t.noted_at <= now() - p_lag THEN 2 ELSE 1 END
        FROM open o WHERE t.pubkey = o.pubkey AND t.what = 0 AND t.kind = -1 AND t.target = o.target
    )
    SELECT array_agg(e.event_key ORDER BY e.event_key) INTO v_keys FROM open o
    CROSS JOIN LATERAL (
        SELECT x.event_key, x.fate, x.kind, x.pubkey FROM event x
        WHERE substring(x.id FROM 9 FOR 8) = substring(o.target FROM 9 FOR 8) AND x.id = o.target OFFSET 0) e
    WHERE e.fate = 0 AND e.kind NOT IN (5, 62) AND e.pubkey = o.pubkey;
    deleted := event_lay(v_keys);
    -- All others in one round through the archive, however many there are.
    SELECT * INTO v_round FROM tombstone_round;
    IF NOT found THEN
        IF NOT EXISTS (SELECT FROM tombstone t WHERE t.what > 0 AND t.settled < 2 AND t.noted_at <= now() - p_lag) THEN RETURN NEXT; RETURN; END IF;
        INSERT INTO tombstone_round VALUES (1, -1, now() - p_lag) RETURNING * INTO v_round;
    END IF;
    SELECT max(x.event_key), count(*), array_agg(x.event_key ORDER BY x.event_key) FILTER (WHERE x.fate = 0 AND EXISTS (
        SELECT FROM tombstone t WHERE t.pubkey = x.pubkey AND t.what > 0 AND t.until_at >= x.created_at AND x.kind <> 62
          AND (t.what = 2 OR t.kind = x.kind AND t.target = sha256(coalesce(x.d_tag, '')))))
    INTO v_last, looked, v_keys
    FROM (SELECT e.event_key, e.fate, e.pubkey, e.created_at, e.kind, e.d_tag FROM event e
          WHERE e.event_key > v_round.cursor_key ORDER BY e.event_key LIMIT p_look) x;
    deleted := deleted + event_lay(v_keys);
    IF looked < p_look THEN
        UPDATE tombstone t SET settled = 2 WHERE t.what > 0 AND t.settled < 2 AND t.noted_at <= v_round.noted_to;
        DELETE FROM tombstone_round;
    ELSE
        UPDATE tombstone_round SET cursor_key = v_last;
    END IF;
    RETURN NEXT;
END $$;
ALTER FUNCTION tombstone_step SET lock_timeout = '1s';
COMMENT ON FUNCTION tombstone_step IS 'Applies tombstones to what is held: p_look of those by id, and p_look events of the round for the others, which begins p_lag after they were noted. Does nothing while another does it. Returns how many events it looked at in the round and how many it made deleted.';

CREATE FUNCTION dense_facts(p_second bigint, p_kinds integer, p_authors integer)
RETURNS TABLE (kinds integer[], authors bytea[])
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_at bigint := greatest(least(p_second, 4294967295), 0);
BEGIN
    SELECT array_agg(k.kind) INTO kinds FROM (
        SELECT u.kind FROM (
            SELECT x.kind, 9223372036854775807 AS n FROM event x WHERE x.event_key BETWEEN v_at << 31 AND (v_at << 31) | 2147483647
            UNION ALL SELECT c.kind, c.event_count FROM kind_counts c) u
        GROUP BY u.kind ORDER BY max(u.n) DESC, u.kind LIMIT p_kinds) k;
    -- Those of the second itself first, then the most frequent of the hour around it.
    SELECT array_agg(a.pubkey) INTO authors FROM (
        SELECT x.pubkey FROM (
            SELECT e.pubkey, e.event_key BETWEEN v_at << 31 AND (v_at << 31) | 2147483647 AS here
            FROM event e WHERE e.event_key BETWEEN greatest(v_at - 1800, 0) << 31 AND (v_at + 1800) << 31 LIMIT 50000) x
        GROUP BY x.pubkey ORDER BY bool_or(x.here) DESC, count(*) DESC, x.pubkey LIMIT p_authors) a;
    kinds := coalesce(kinds, '{}');
    authors := coalesce(authors, '{}');
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION dense_facts IS 'By what a dense second may be split: kinds known anywhere, those of the second first, then by number; authors of the second and of the hour around it.';

CREATE FUNCTION coverage_classes(p_relay_id integer) RETURNS SETOF text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY SELECT DISTINCT c.class FROM coverage c WHERE c.relay_id = p_relay_id ORDER BY 1;
END $$;
COMMENT ON FUNCTION coverage_classes IS 'The filter classes in which something is known of a relay''s coverage.';
