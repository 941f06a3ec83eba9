-- What a stretch that is read again and proved whole lacks of what was seen there before.

CREATE FUNCTION relay_missing(p_relay_id integer, p_sinces bigint[], p_untils bigint[], p_keys bigint[], p_seen_until bigint, p_kinds integer[], p_authors bytea[], p_limit integer)
RETURNS TABLE (created_at bigint, id bytea, kept boolean)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    v_since bigint;
    v_until bigint;
    lo bigint;
    hi bigint;
BEGIN
    SELECT min(a), max(b) INTO v_since, v_until FROM unnest(p_sinces, p_untils) s(a, b);
    IF v_since IS NULL THEN RETURN; END IF;
    lo := greatest(least(v_since, 4294967295), 0) << 31;
    hi := (greatest(least(v_until, 4294967295), 0) << 31) | 2147483647;
    RETURN QUERY
        SELECT e.created_at, e.id, e.fate < 2 AND e.kind NOT IN (0, 3) AND e.kind NOT BETWEEN 10000 AND 39999
        FROM (
            SELECT m.event_key FROM (
                SELECT o.event_key
                FROM unnest(p_sinces, p_untils) s(a, b)
                CROSS JOIN LATERAL (
                    -- Of so many, p_limit at least are missing.
                    SELECT x.event_key FROM event_relay x
                    WHERE x.relay_id = p_relay_id AND x.event_key BETWEEN lo AND hi
                      AND x.event_key BETWEEN greatest(least(s.a, 4294967295), 0) << 31 AND (greatest(least(s.b, 4294967295), 0) << 31) | 2147483647
                      AND NOT EXISTS (SELECT FROM event_gone g WHERE g.relay_id = p_relay_id AND g.event_key = x.event_key)
                    ORDER BY x.event_key DESC LIMIT cardinality(p_keys) + p_limit) o
                EXCEPT SELECT k.key FROM unnest(p_keys) k(key)) m
            -- What has another key than its own cannot be told from it by keys.
            WHERE NOT EXISTS (SELECT FROM event_collision c WHERE c.event_key = m.event_key)
              AND EXISTS (SELECT FROM event_relay x WHERE x.relay_id = p_relay_id AND x.event_key = m.event_key AND x.event_key BETWEEN lo AND hi AND x.seen_at <= p_seen_until)
            ORDER BY 1 DESC LIMIT p_limit) n
        CROSS JOIN LATERAL (
            SELECT x.created_at, x.id, x.kind, x.pubkey, x.fate FROM event x
            WHERE x.event_key = n.event_key AND x.event_key BETWEEN lo AND hi OFFSET 0) e
        WHERE e.created_at BETWEEN v_since AND v_until
          AND (cardinality(p_kinds) = 0 OR e.kind = ANY (p_kinds))
          AND (cardinality(p_authors) = 0 OR e.pubkey = ANY (p_authors))
        ORDER BY 1 DESC, 2;
END $$;
COMMENT ON FUNCTION relay_missing IS 'Events of these kinds and authors (empty = any) that were seen on a relay, no later than p_seen_until, in stretches of created_at, that are not gone from it and whose keys are not among those it serves now: newest first, of the p_limit newest of any kind and author. kept: relays keep their kind, and they were neither deleted nor expired.';

COMMENT ON TABLE event_gone IS 'Events that were seen on a relay and that it had no more when its set was compared with ours, when a stretch was read again and proved whole without them, or when a walk watched for them and they did not come: of each such lot some were asked for by id, and none came. The observation stays.';
