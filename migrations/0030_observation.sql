-- The price of an observation: what a page costs the database beside its rows. Functions keep their signatures; those that
-- workers of the version before still call are marked with when they may go.

-- A fence is one look by key: a plan made for each array cost more than the look.
ALTER FUNCTION job_fence SET plan_cache_mode = force_generic_plan;

-- Observations of one relay -----------------------------------------------------------------------------------------------

CREATE FUNCTION relay_observe(p_relay_id integer, p_at bigint, p_evidence smallint, p_ids bytea[], p_keys bigint[], OUT fresh integer, OUT missing integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    n integer := coalesce(cardinality(p_ids), 0);
    v_moved boolean;
    v_keys bigint[];
    v_ids bytea[];
    v_resolved integer;
    lo bigint;
    hi bigint;
BEGIN
    fresh := 0;
    missing := 0;
    IF n = 0 OR NOT EXISTS (SELECT FROM relay r WHERE r.id = p_relay_id) THEN RETURN; END IF;
    -- Before the first look: whoever takes events away (archive_lock) is through with it, or waits until we are.
    LOCK TABLE ONLY event_relay IN ROW EXCLUSIVE MODE;
    v_moved := EXISTS (SELECT FROM event_collision);
    SELECT min(x), max(x) INTO lo, hi FROM unnest(p_keys) x;
    -- A page is mostly new or mostly known; eight of it tell which. To ask event_relay for every pair costs what is new a
    -- quarter more, not to ask costs what is known twice as much.
    IF NOT EXISTS (
        SELECT FROM generate_series(0, least(n, 8) - 1) i
        CROSS JOIN LATERAL (
            SELECT FROM event_relay o
            WHERE o.relay_id = p_relay_id AND o.event_key = p_keys[1 + i * n / least(n, 8)] AND o.event_key BETWEEN lo AND hi OFFSET 0) s)
    THEN
        BEGIN
            v_keys := ARRAY(
                SELECT e.event_key FROM unnest(p_ids, p_keys) u(id, key)
                CROSS JOIN LATERAL (
                    SELECT x.event_key FROM event x
                    WHERE x.event_key = u.key AND x.id = u.id AND x.event_key BETWEEN lo AND hi OFFSET 0) e
                UNION ALL
                SELECT e.event_key FROM unnest(p_ids) u(id) JOIN event_collision c ON c.id = u.id
                CROSS JOIN LATERAL (SELECT x.event_key FROM event x WHERE x.event_key = c.event_key AND x.id = u.id OFFSET 0) e
                WHERE v_moved
                ORDER BY 1);
            -- Without ON CONFLICT, which looks twice and writes a second record for each row.
            INSERT INTO event_relay (event_key, relay_id, seen_at, evidence) SELECT x, p_relay_id, p_at, p_evidence FROM unnest(v_keys) x;
            GET DIAGNOSTICS fresh = ROW_COUNT;
            missing := n - fresh;
            IF fresh > 0 THEN
                INSERT INTO rollup_delta (op, n, keys, relays) VALUES (1, fresh, v_keys, ARRAY[p_relay_id]);
            END IF;
            RETURN;
        EXCEPTION WHEN unique_violation THEN
            fresh := 0;
        END;
    END IF;
    -- A pair that is there has its event, by the lock above; a moved event's own key is another event's pair.
    SELECT array_agg(u.id), array_agg(u.key) INTO v_ids, v_keys FROM unnest(p_ids, p_keys) u(id, key)
    WHERE NOT EXISTS (
            SELECT FROM event_relay o WHERE o.relay_id = p_relay_id AND o.event_key = u.key AND o.event_key BETWEEN lo AND hi)
       OR v_moved AND EXISTS (SELECT FROM event_collision c WHERE c.id = u.id);
    IF v_ids IS NULL THEN RETURN; END IF;
    WITH known AS MATERIALIZED (
        SELECT r.o, r.event_key FROM event_resolve(v_ids, v_keys) r
    ), stored AS (
        INSERT INTO event_relay (event_key, relay_id, seen_at, evidence)
        SELECT DISTINCT k.event_key, p_relay_id, p_at, p_evidence FROM known k ORDER BY k.event_key
        ON CONFLICT DO NOTHING
        RETURNING event_key
    )
    SELECT (SELECT count(DISTINCT k.o) FROM known k), count(*), array_agg(s.event_key) INTO v_resolved, fresh, v_keys FROM stored s;
    missing := cardinality(v_ids) - v_resolved;
    IF fresh > 0 THEN
        INSERT INTO rollup_delta (op, n, keys, relays) VALUES (1, fresh, v_keys, ARRAY[p_relay_id]);
    END IF;
END $$;
COMMENT ON FUNCTION relay_observe IS 'Records that events, which the caller knows or has just stored, were seen on one relay (evidence as in event_relay). Returns how many observations are new, and how many of the events are not there any more. For an unknown relay it does nothing.';

CREATE OR REPLACE FUNCTION sync_store(
    p_job text, p_worker text, p_attempt integer, p_relay_id integer, p_seen_at bigint,
    p_ids bytea[], p_keys bigint[],
    n_ids bytea[], n_keys bigint[], n_created_ats bigint[], n_pubkeys bytea[], n_kinds integer[],
    n_tags bytea[], n_contents bytea[], n_sigs bytea[], n_d_tags bytea[], n_tag_hashes text[],
    p_class text, v_sinces bigint[], v_untils bigint[], v_grades text[], v_reasons text[], v_observed_ats bigint[],
    p_next_s double precision, p_slack integer, p_why text)
RETURNS TABLE (held boolean, new_events integer, new_observations integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_missing integer;
BEGIN
    -- The gate that month_drop closes: here, before any lock on a table is held.
    PERFORM pg_advisory_xact_lock_shared(7310);
    held := EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt]));
    new_events := 0;
    new_observations := 0;
    IF held THEN
        IF cardinality(n_ids) > 0 THEN
            new_events := event_insert(n_ids, n_keys, n_created_ats, n_pubkeys, n_kinds, n_tags, n_contents, n_sigs, n_d_tags, n_tag_hashes);
        END IF;
        IF cardinality(p_ids) > 0 THEN
            SELECT r.fresh, r.missing INTO new_observations, v_missing FROM relay_observe(p_relay_id, p_seen_at, 0::smallint, p_ids, p_keys) r;
            -- What was known when it came may have been deleted since: then it is neither here nor covered.
            IF v_missing > 0 THEN
                RAISE EXCEPTION 'an event of this batch was deleted while it came: it is asked for again' USING ERRCODE = 'serialization_failure';
            END IF;
        END IF;
        IF v_sinces IS NOT NULL THEN
            PERFORM coverage_put(p_relay_id, p_class, v_sinces, v_untils, v_grades, v_reasons, v_observed_ats);
        END IF;
        IF p_next_s IS NOT NULL THEN
            UPDATE schedule s SET due_at = now() + make_interval(secs => p_next_s), slack_s = p_slack, why = p_why
            FROM relay r WHERE r.id = p_relay_id AND s.kind = 'sync' AND s.target = r.url;
        END IF;
    END IF;
    RETURN NEXT;
END $$;

CREATE OR REPLACE FUNCTION reconcile_store(
    p_job text, p_worker text, p_attempt integer, p_relay_id integer, p_at bigint,
    c_ids bytea[], c_keys bigint[], g_ids bytea[], g_keys bigint[], p_unserved bytea[],
    p_class text, v_sinces bigint[], v_untils bigint[], v_grades text[], v_reasons text[], v_observed_ats bigint[])
RETURNS TABLE (held boolean, new_observations integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_missing integer;
BEGIN
    -- The gate that month_drop closes: here, before any lock on a table is held.
    PERFORM pg_advisory_xact_lock_shared(7310);
    held := EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt]));
    new_observations := 0;
    IF held THEN
        -- Before the first look: whoever takes events away is through with it, or what is noted as gone would stay for ever.
        LOCK TABLE ONLY event_relay IN ROW EXCLUSIVE MODE;
        IF cardinality(c_ids) > 0 THEN
            SELECT r.fresh, r.missing INTO new_observations, v_missing FROM relay_observe(p_relay_id, p_at, 1::smallint, c_ids, c_keys) r;
            -- What was known when it was claimed may have been deleted since: then it is neither here nor covered.
            IF v_missing > 0 THEN
                RAISE EXCEPTION 'an event of this batch was deleted while it was claimed: it is asked for again' USING ERRCODE = 'serialization_failure';
            END IF;
            IF EXISTS (SELECT FROM event_gone g WHERE g.relay_id = p_relay_id) THEN
                DELETE FROM event_gone g WHERE g.relay_id = p_relay_id
                    AND g.event_key = ANY (ARRAY(SELECT k.event_key FROM event_resolve(c_ids, c_keys) k));
            END IF;
        END IF;
        INSERT INTO event_gone (relay_id, event_key, gone_at)
        SELECT p_relay_id, k.event_key, p_at FROM event_resolve(g_ids, g_keys) k ORDER BY 2
        ON CONFLICT DO NOTHING;
        INSERT INTO event_unserved AS u (relay_id, event_id, first_at, last_at)
        SELECT DISTINCT p_relay_id, x, p_at, p_at FROM unnest(p_unserved) x ORDER BY 2
        ON CONFLICT (relay_id, event_id) DO UPDATE SET last_at = excluded.last_at, tries = u.tries + 1;
        IF v_sinces IS NOT NULL THEN
            PERFORM coverage_put(p_relay_id, p_class, v_sinces, v_untils, v_grades, v_reasons, v_observed_ats);
        END IF;
    END IF;
    RETURN NEXT;
END $$;

-- What is known without a body has one writer: event_note. sync_skip, which calls this, is called by workers of version 29
-- and before; both may go with the migration after this one.
CREATE OR REPLACE FUNCTION event_skip_insert(p_ids bytea[], p_keys bigint[], p_created_ats bigint[], p_pubkeys bytea[], p_kinds integer[]) RETURNS integer
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$ SELECT event_note(p_ids, p_keys, p_created_ats, p_pubkeys, p_kinds, array_fill(1::smallint, ARRAY[cardinality(p_ids)])) $$;

-- What a pass begins with, in one question ---------------------------------------------------------------------------------

CREATE TABLE archive_size (
    singleton   smallint    PRIMARY KEY DEFAULT 1 CHECK (singleton = 1),
    bytes       bigint      NOT NULL,
    measured_at timestamptz NOT NULL
);
INSERT INTO archive_size VALUES (1, 0, '-infinity');
COMMENT ON TABLE  archive_size IS 'The size of the database as sync passes go by it: to measure it is to look at every file, a millisecond and more, and many passes begin at once.';
COMMENT ON COLUMN archive_size.singleton IS 'Always 1.';
COMMENT ON COLUMN archive_size.bytes IS 'Bytes, all files together.';
COMMENT ON COLUMN archive_size.measured_at IS 'When that was; after ten seconds it is measured again.';

CREATE FUNCTION sync_begin(p_relay_id integer)
RETURNS TABLE (before_at bigint, light boolean, bytes bigint, max_bytes bigint, kinds_from integer[], kinds_to integer[], kinds_days integer[],
               neg_off_until bigint, ages bigint[], untils bigint[], has_gone boolean, measured text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    UPDATE archive_size s SET bytes = pg_database_size(current_database()), measured_at = clock_timestamp()
    WHERE s.measured_at < clock_timestamp() - interval '10 seconds';
    SELECT s.bytes INTO bytes FROM archive_size s;
    before_at := archive_before(p_relay_id);
    SELECT s.light, s.max_bytes INTO light, max_bytes FROM archive_setting s;
    SELECT coalesce(array_agg(r.kind_from ORDER BY r.name), '{}'), coalesce(array_agg(r.kind_to ORDER BY r.name), '{}'), coalesce(array_agg(r.days ORDER BY r.name), '{}')
    INTO kinds_from, kinds_to, kinds_days FROM retention_policy r WHERE r.what = 'kind';
    SELECT f.neg_off_until, f.ages, f.untils, f.has_gone INTO neg_off_until, ages, untils, has_gone FROM sync_facts(p_relay_id) f;
    SELECT c.measured::text INTO measured FROM relay_capability c WHERE c.relay_id = p_relay_id;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION sync_begin IS 'What a sync pass over a relay begins with: what archive_get says (the size at most ten seconds old), what sync_facts says, and what was measured of the relay (null: nothing).';

-- Deletion requests that are imported ---------------------------------------------------------------------------------------

CREATE FUNCTION tombstone_add(p_pubkeys bytea[], p_whats smallint[], p_kinds integer[], p_targets bytea[], p_untils bigint[], p_requests bytea[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    n integer;
BEGIN
    INSERT INTO tombstone AS t (pubkey, what, kind, target, until_at, request_id)
    SELECT DISTINCT ON (u.pubkey, u.what, u.kind, u.target) u.pubkey, u.what, u.kind, u.target, u.until_at, u.request
    FROM unnest(p_pubkeys, p_whats, p_kinds, p_targets, p_untils, p_requests) u(pubkey, what, kind, target, until_at, request)
    ORDER BY u.pubkey, u.what, u.kind, u.target, u.until_at DESC
    ON CONFLICT (pubkey, what, kind, target) DO UPDATE
        SET until_at = excluded.until_at, request_id = excluded.request_id, noted_at = now(), settled = 0
        WHERE excluded.until_at > t.until_at AND t.what <> 0;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION tombstone_add IS 'Notes what verified deletion requests ask for, whoever brings them; of two for the same thing the later one holds. Returns how many that changed.';

CREATE OR REPLACE FUNCTION tombstone_note(p_job text, p_worker text, p_attempt integer, p_pubkeys bytea[], p_whats smallint[], p_kinds integer[], p_targets bytea[], p_untils bigint[], p_requests bytea[])
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt])) THEN RETURN false; END IF;
    PERFORM tombstone_add(p_pubkeys, p_whats, p_kinds, p_targets, p_untils, p_requests);
    RETURN true;
END $$;

CREATE FUNCTION import_note(p_ids bytea[], p_keys bigint[], p_created_ats bigint[], p_pubkeys bytea[], p_kinds integer[], p_fates smallint[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    -- The gate that month_drop closes: here, before any lock on a table is held.
    PERFORM pg_advisory_xact_lock_shared(7310);
    RETURN event_note(p_ids, p_keys, p_created_ats, p_pubkeys, p_kinds, p_fates);
END $$;
COMMENT ON FUNCTION import_note IS 'event_note for an import. Returns how many were new.';
