-- What proofs rest on: dense seconds that take turns, all authors of such a second, and locks in the order of their rows.

-- Seconds with more events than a page take turns: a pass splits a few of them, the next one those below.
ALTER TABLE relay_sync ALTER COLUMN neg_off_until DROP NOT NULL;
ALTER TABLE relay_sync ADD COLUMN dense_below bigint;
COMMENT ON COLUMN relay_sync.dense_below IS 'Of its dense seconds those below this one are split next, Unix seconds; null where none was.';

CREATE FUNCTION dense_turn(p_relay_id integer) RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN (SELECT s.dense_below FROM relay_sync s WHERE s.relay_id = p_relay_id);
END $$;
COMMENT ON FUNCTION dense_turn IS 'Below which second the dense ones of a relay are split next; null where none was yet.';

CREATE FUNCTION dense_turn_set(p_job text, p_worker text, p_attempt integer, p_relay_id integer, p_second bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt])) THEN RETURN false; END IF;
    INSERT INTO relay_sync AS s (relay_id, dense_below) VALUES (p_relay_id, p_second)
    ON CONFLICT (relay_id) DO UPDATE SET dense_below = excluded.dense_below;
    RETURN true;
END $$;
COMMENT ON FUNCTION dense_turn_set IS 'Notes which dense second of a relay was split last. False when the fence was lost, and nothing was written.';

-- The authors of the second itself are all asked for, however crowded the hour around it is.
CREATE OR REPLACE FUNCTION dense_facts(p_second bigint, p_kinds integer, p_authors integer)
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
    SELECT array_agg(a.pubkey ORDER BY a.place, a.n DESC, a.pubkey) INTO authors FROM (
        SELECT u.pubkey, min(u.place) AS place, max(u.n) AS n FROM (
            SELECT e.pubkey, 0 AS place, count(*) AS n
            FROM event e WHERE e.event_key BETWEEN v_at << 31 AND (v_at << 31) | 2147483647 GROUP BY e.pubkey
            UNION ALL
            SELECT x.pubkey, 1, count(*) FROM (
                SELECT e.pubkey FROM event e
                WHERE e.event_key BETWEEN greatest(v_at - 1800, 0) << 31 AND (v_at + 1800) << 31 LIMIT 50000) x
            GROUP BY x.pubkey) u
        GROUP BY u.pubkey ORDER BY min(u.place), max(u.n) DESC, u.pubkey LIMIT p_authors) a;
    authors := coalesce(authors, '{}');
    -- And then those who write most anywhere.
    IF cardinality(authors) < p_authors THEN
        authors := authors || coalesce((
            SELECT array_agg(a.pubkey ORDER BY a.events DESC, a.pubkey) FROM (
                SELECT r.pubkey, r.events FROM rollup_author r WHERE r.pubkey <> ALL (authors)
                ORDER BY r.events DESC, r.pubkey LIMIT p_authors - cardinality(authors)) a), '{}');
    END IF;
    kinds := coalesce(kinds, '{}');
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION dense_facts IS 'By what a dense second may be split: kinds known anywhere, those of the second first, then by number; authors of the second, then of the hour around it, then of most events.';

-- An operator who lowers horizons and retention at work took horizons and policies in two orders.
CREATE OR REPLACE FUNCTION retention_apply(p_whats text[], p_froms integer[], p_tos integer[], p_urls text[], p_days integer[], p_actor text, p_why text)
RETURNS TABLE (changed integer, lowered integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    -- Horizons before policies, as retention_step takes them.
    PERFORM FROM archive_horizon h ORDER BY h.scope FOR UPDATE;
    changed := retention_put(p_whats, p_froms, p_tos, p_urls, p_days, true);
    lowered := horizon_lower();
    PERFORM operation_note(p_actor, 'retention-apply', coalesce((SELECT jsonb_object_agg(r.name, r.days) FROM retention_policy r), '{}'),
                           changed + lowered, ARRAY(SELECT r.name FROM retention_policy r ORDER BY 1), p_why);
    RETURN NEXT;
END $$;

-- Tombstones are marked in the order of their keys, as tombstone_note writes them; one that is being written waits.
CREATE OR REPLACE FUNCTION tombstone_step(p_look integer, p_lag interval DEFAULT '15 minutes')
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
    IF NOT rollup_settle(5000) THEN RETURN NEXT; RETURN; END IF;
    -- By id, at once; and once more when whatever did not know of it yet has been stored.
    WITH due AS MATERIALIZED (
        SELECT t.pubkey, t.target FROM tombstone t
        WHERE t.what = 0 AND (t.settled = 0 OR t.settled = 1 AND t.noted_at <= now() - p_lag)
        ORDER BY t.noted_at LIMIT p_look
    ), open AS MATERIALIZED (
        SELECT t.pubkey, t.target FROM due d JOIN tombstone t ON t.pubkey = d.pubkey AND t.what = 0 AND t.kind = -1 AND t.target = d.target
        ORDER BY t.pubkey, t.target FOR UPDATE OF t SKIP LOCKED
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
    SELECT max(x.event_key), count(*), array_agg(x.event_key ORDER BY x.event_key) FILTER (
        WHERE x.fate = 0 AND x.kind <> 62 AND EXISTS (SELECT FROM tombstone t WHERE t.pubkey = x.pubkey AND t.what > 0)
              AND tombstone_falls(x.id, x.pubkey, x.kind, x.created_at, x.d_tag, false))
    INTO v_last, looked, v_keys
    FROM (SELECT e.event_key, e.id, e.fate, e.pubkey, e.created_at, e.kind, e.d_tag FROM event e
          WHERE e.event_key > v_round.cursor_key ORDER BY e.event_key LIMIT p_look) x;
    deleted := deleted + event_lay(v_keys);
    IF looked < p_look THEN
        WITH done AS MATERIALIZED (
            SELECT t.pubkey, t.what, t.kind, t.target FROM tombstone t WHERE t.what > 0 AND t.settled < 2 AND t.noted_at <= v_round.noted_to
            ORDER BY t.pubkey, t.what, t.kind, t.target FOR UPDATE SKIP LOCKED
        )
        UPDATE tombstone t SET settled = 2
        FROM done d WHERE t.pubkey = d.pubkey AND t.what = d.what AND t.kind = d.kind AND t.target = d.target;
        DELETE FROM tombstone_round;
    ELSE
        UPDATE tombstone_round SET cursor_key = v_last;
    END IF;
    RETURN NEXT;
END $$;
ALTER FUNCTION tombstone_step SET lock_timeout = '1s';
