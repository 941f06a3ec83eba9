-- What a second reading of the archive's functions found: locks that were missing, lookups that were not by key, plans without
-- statistics, and steps that only their callers may take.

-- Coverage: a horizon that rises and a page that is stored at the same moment changed one another's rows unseen.

CREATE FUNCTION coverage_lock(p_relay_id integer) RETURNS void
LANGUAGE sql VOLATILE SET search_path = public, pg_temp
AS $$ SELECT pg_advisory_xact_lock(7330, p_relay_id) $$;
COMMENT ON FUNCTION coverage_lock IS 'A step of whoever changes what is known of a relay''s coverage: one at a time until the end of the transaction, relays in order of their ids.';

CREATE OR REPLACE FUNCTION coverage_clip(p_relay_id integer, p_class text, p_before bigint) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    lo bigint;
    n integer;
BEGIN
    PERFORM coverage_lock(p_relay_id);
    SELECT min(c.since_at), count(*) FILTER (WHERE c.reason <> 'retired' OR c.grade <> 'unknown' OR c.until_at >= p_before)
    INTO lo, n FROM coverage c WHERE c.relay_id = p_relay_id AND c.class = p_class AND c.since_at < p_before;
    IF lo IS NULL OR n = 0 THEN RETURN 0; END IF;
    WITH gone AS (
        DELETE FROM coverage c WHERE c.relay_id = p_relay_id AND c.class = p_class AND c.since_at < p_before RETURNING c.*
    )
    INSERT INTO coverage (relay_id, class, since_at, until_at, grade, reason, observed_at)
    SELECT p_relay_id, p_class, p_before, g.until_at, g.grade, g.reason, g.observed_at FROM gone g WHERE g.until_at >= p_before;
    INSERT INTO coverage (relay_id, class, since_at, until_at, grade, reason, observed_at)
    VALUES (p_relay_id, p_class, lo, p_before - 1, 'unknown', 'retired', extract(epoch FROM now())::bigint);
    RETURN n;
END $$;

CREATE OR REPLACE FUNCTION coverage_put(
    p_relay_id integer, p_class text, p_sinces bigint[], p_untils bigint[], p_grades text[], p_reasons text[], p_observed_ats bigint[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET enable_nestloop = off
AS $$
DECLARE n integer;
BEGIN
    PERFORM coverage_lock(p_relay_id);
    DELETE FROM coverage c WHERE c.relay_id = p_relay_id AND c.class = p_class
        AND NOT EXISTS (SELECT FROM unnest(p_sinces, p_untils, p_grades, p_reasons, p_observed_ats) u(s, t, g, r, o)
                        WHERE c.since_at = u.s AND c.until_at = u.t AND c.grade = u.g AND c.reason = u.r AND c.observed_at = u.o);
    INSERT INTO coverage (relay_id, class, since_at, until_at, grade, reason, observed_at)
    SELECT p_relay_id, p_class, u.s, u.t, u.g, u.r, u.o
    FROM unnest(p_sinces, p_untils, p_grades, p_reasons, p_observed_ats) u(s, t, g, r, o)
    WHERE NOT EXISTS (SELECT FROM coverage c WHERE c.relay_id = p_relay_id AND c.class = p_class AND c.since_at = u.s)
    ORDER BY u.s;
    GET DIAGNOSTICS n = ROW_COUNT;
    -- A pass that began before a horizon was set must not bring back a proof of what is gone.
    IF EXISTS (SELECT FROM archive_horizon) THEN
        PERFORM coverage_clip(p_relay_id, p_class, archive_before(p_relay_id));
    END IF;
    RETURN n;
END $$;

CREATE OR REPLACE VIEW relay_coverage_share AS
SELECT r.url AS relay_url, c.class,
       round(coalesce(sum(least(c.until_at, n.now) - c.since_at + 1) FILTER (WHERE c.grade IN ('walked', 'finished', 'reconciled') AND c.since_at <= n.now), 0)::numeric
             / nullif(max(least(c.until_at, n.now)) FILTER (WHERE c.since_at <= n.now) - min(c.since_at) + 1, 0), 6) AS proved_share,
       min(c.since_at) AS since_at, max(least(c.until_at, n.now)) AS until_at,
       coalesce(sum(least(c.until_at, n.now) - c.since_at + 1) FILTER (WHERE c.grade = 'partial' AND c.since_at <= n.now), 0)::bigint AS partial_seconds,
       min(c.observed_at) AS observed_at
FROM public.coverage c
JOIN public.relay r ON r.id = c.relay_id
CROSS JOIN (SELECT extract(epoch FROM now())::bigint AS now) n
GROUP BY r.url, c.class;

-- Deletion requests: by key, however many an author made.

CREATE FUNCTION tombstone_falls(p_id bytea, p_pubkey bytea, p_kind integer, p_created_at bigint, p_d_tag bytea, p_by_id boolean) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    RETURN EXISTS (SELECT FROM tombstone t WHERE t.pubkey = p_pubkey AND t.what = 2 AND t.kind = -1 AND t.target = '' AND t.until_at >= p_created_at)
        OR EXISTS (SELECT FROM tombstone t WHERE t.pubkey = p_pubkey AND t.what = 1 AND t.kind = p_kind
                   AND t.target = sha256(coalesce(p_d_tag, '')) AND t.until_at >= p_created_at)
        OR p_by_id AND EXISTS (SELECT FROM tombstone t WHERE t.pubkey = p_pubkey AND t.what = 0 AND t.kind = -1 AND t.target = p_id);
END $$;
COMMENT ON FUNCTION tombstone_falls IS 'Whether its author asked to have this event deleted: by a request to vanish, by its address, and, if asked for, by its id.';

CREATE OR REPLACE FUNCTION tombstone_hits(p_ids bytea[], p_pubkeys bytea[], p_kinds integer[], p_created_ats bigint[], p_d_tags bytea[])
RETURNS SETOF integer
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    -- A visit of the primary key for most, and for authors who ever asked for anything three: they ask for as much as they like.
    RETURN QUERY
        SELECT u.o::integer
        FROM (SELECT x.* FROM unnest(p_ids, p_pubkeys, p_kinds, p_created_ats, p_d_tags) WITH ORDINALITY x(id, pubkey, kind, created_at, d_tag, o)
              WHERE x.kind <> 62 AND EXISTS (SELECT FROM tombstone t WHERE t.pubkey = x.pubkey) OFFSET 0) u
        WHERE tombstone_falls(u.id, u.pubkey, u.kind, u.created_at, u.d_tag, u.kind <> 5)
        ORDER BY 1;
END $$;

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
    SELECT max(x.event_key), count(*), array_agg(x.event_key ORDER BY x.event_key) FILTER (
        WHERE x.fate = 0 AND x.kind <> 62 AND EXISTS (SELECT FROM tombstone t WHERE t.pubkey = x.pubkey AND t.what > 0)
              AND tombstone_falls(x.id, x.pubkey, x.kind, x.created_at, x.d_tag, false))
    INTO v_last, looked, v_keys
    FROM (SELECT e.event_key, e.id, e.fate, e.pubkey, e.created_at, e.kind, e.d_tag FROM event e
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

-- Forgetting: the rows it goes by are analyzed, or each event costs a pass over all of them.

CREATE OR REPLACE FUNCTION rollup_subtract(p_keys bigint[], p_relay_ids integer[]) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = public, pg_temp
AS $$
DECLARE n bigint;
BEGIN
    PERFORM rollup_stage();
    CREATE TEMP TABLE rollup_gone (event_key bigint, relay_id integer) ON COMMIT DROP;
    CREATE TEMP TABLE rollup_known (id bigint PRIMARY KEY) ON COMMIT DROP;
    -- What is not counted yet is neither subtracted nor taken for what is left; this and the staging see one snapshot.
    WITH rest AS MATERIALIZED (
        SELECT x.event_key, x.relay_id FROM rollup_delta d CROSS JOIN LATERAL
            unnest(d.keys, CASE WHEN cardinality(d.relays) = 1 THEN array_fill(d.relays[1], ARRAY[d.n]) ELSE d.relays END) x(event_key, relay_id)
    ), given AS MATERIALIZED (
        SELECT DISTINCT x.event_key, x.relay_id FROM unnest(p_keys, p_relay_ids) x(event_key, relay_id)
    ), t AS MATERIALIZED (
        SELECT k.event_key, e.created_at, e.kind, e.pubkey, e.id, e.d_hash, a.id AS author_id
        FROM (SELECT DISTINCT g.event_key FROM given g
              WHERE NOT EXISTS (SELECT FROM rest r WHERE r.event_key = g.event_key AND r.relay_id IS NULL) ORDER BY 1) k
        CROSS JOIN LATERAL (
            SELECT x.created_at, x.kind, x.pubkey, x.id,
                   CASE kind_category(x.kind) WHEN 'addressable' THEN sha256(coalesce(x.d_tag, '')) END AS d_hash
            FROM event x WHERE x.event_key = k.event_key AND x.fate = 0 OFFSET 0) e
        CROSS JOIN LATERAL (SELECT y.id FROM rollup_author y WHERE y.pubkey = e.pubkey OFFSET 0) a
    ), o AS (
        SELECT t.event_key, v.relay_id, p_relay_ids IS NULL OR g.event_key IS NOT NULL AS going,
               CASE n.network WHEN 'clearnet' THEN 1 WHEN 'tor' THEN 2 WHEN 'i2p' THEN 4 ELSE 8 END AS net
        FROM t CROSS JOIN LATERAL (SELECT x.relay_id FROM event_relay x WHERE x.event_key = t.event_key OFFSET 0) v
        JOIN relay n ON n.id = v.relay_id
        LEFT JOIN given g ON g.event_key = t.event_key AND g.relay_id = v.relay_id
        WHERE NOT EXISTS (SELECT FROM rest r WHERE r.event_key = t.event_key AND r.relay_id = v.relay_id)
    ), s AS (
        SELECT o.event_key, count(*) AS copies0, count(*) FILTER (WHERE NOT o.going) AS copies1,
               bit_or(o.net) AS nets0, bit_or(o.net) FILTER (WHERE NOT o.going) AS nets1,
               min(o.relay_id) AS one0, min(o.relay_id) FILTER (WHERE NOT o.going) AS one1,
               array_agg(o.relay_id) FILTER (WHERE o.going) AS pairs
        FROM o GROUP BY 1
    ), known AS (
        INSERT INTO pg_temp.rollup_known SELECT d.id FROM rollup_delta d
    ), gone AS (
        INSERT INTO pg_temp.rollup_gone SELECT r.event_key, r.relay_id FROM rest r
        UNION ALL SELECT g.event_key, g.relay_id FROM given g
    )
    INSERT INTO pg_temp.rollup_change
    SELECT t.event_key, t.created_at, t.author_id, t.kind, CASE WHEN p_relay_ids IS NULL THEN -1 ELSE 0 END,
           coalesce(s.copies0, 0), coalesce(s.copies1, 0), coalesce(s.nets0, 0), coalesce(s.nets1, 0),
           CASE s.copies0 WHEN 1 THEN s.one0 END, CASE s.copies1 WHEN 1 THEN s.one1 END, t.pubkey, t.id, t.d_hash, s.pairs
    FROM t LEFT JOIN s ON s.event_key = t.event_key
    WHERE p_relay_ids IS NULL OR s.pairs IS NOT NULL;
    GET DIAGNOSTICS n = ROW_COUNT;
    CREATE INDEX ON pg_temp.rollup_gone (event_key);
    -- Without statistics the planner takes nearly all of them for single observations, and reads the whole of it per event.
    IF n > 100 THEN
        ANALYZE pg_temp.rollup_gone;
    END IF;
    PERFORM rollup_fold(-1);

    -- Rows that count nothing any more go.
    DELETE FROM rollup_relay_author k WHERE k.ctid = ANY (ARRAY(
        SELECT x.ctid FROM (SELECT DISTINCT p.relay_id, c.author_id, c.kind FROM pg_temp.rollup_change c CROSS JOIN LATERAL unnest(c.pairs) p(relay_id)) t
        CROSS JOIN LATERAL (SELECT y.ctid FROM rollup_relay_author y WHERE y.relay_id = t.relay_id AND y.author_id = t.author_id AND y.kind = t.kind AND y.events = 0 OFFSET 0) x));
    DELETE FROM rollup_relay_kind k WHERE k.ctid = ANY (ARRAY(
        SELECT x.ctid FROM (SELECT DISTINCT p.relay_id, c.kind FROM pg_temp.rollup_change c CROSS JOIN LATERAL unnest(c.pairs) p(relay_id)) t
        CROSS JOIN LATERAL (SELECT y.ctid FROM rollup_relay_kind y WHERE y.relay_id = t.relay_id AND y.kind = t.kind AND y.events = 0 OFFSET 0) x));
    DELETE FROM rollup_author_kind k WHERE k.ctid = ANY (ARRAY(
        SELECT x.ctid FROM (SELECT DISTINCT c.author_id, c.kind FROM pg_temp.rollup_change c) t
        CROSS JOIN LATERAL (SELECT y.ctid FROM rollup_author_kind y WHERE y.author_id = t.author_id AND y.kind = t.kind AND y.events = 0 OFFSET 0) x));
    DELETE FROM rollup_author k WHERE k.ctid = ANY (ARRAY(
        SELECT x.ctid FROM (SELECT DISTINCT c.author_id FROM pg_temp.rollup_change c) t
        CROSS JOIN LATERAL (SELECT y.ctid FROM rollup_author y WHERE y.id = t.author_id AND y.events = 0 OFFSET 0) x));
    DELETE FROM rollup_kind k WHERE k.events = 0;
    DELETE FROM rollup_day_author k WHERE k.ctid = ANY (ARRAY(
        SELECT x.ctid FROM (SELECT DISTINCT rollup_day_of(c.created_at) AS day, c.author_id FROM pg_temp.rollup_change c) t
        CROSS JOIN LATERAL (SELECT y.ctid FROM rollup_day_author y WHERE y.day = t.day AND y.author_id = t.author_id AND y.events = 0 OFFSET 0) x));
    DELETE FROM rollup_day_kind k WHERE k.ctid = ANY (ARRAY(
        SELECT x.ctid FROM (SELECT DISTINCT rollup_day_of(c.created_at) AS day, c.kind FROM pg_temp.rollup_change c) t
        CROSS JOIN LATERAL (SELECT y.ctid FROM rollup_day_kind y WHERE y.day = t.day AND y.kind = t.kind AND y.events = 0 OFFSET 0) x));
    DELETE FROM rollup_day k WHERE k.day = ANY (ARRAY(SELECT DISTINCT rollup_day_of(c.created_at) FROM pg_temp.rollup_change c)) AND k.events = 0;
    DELETE FROM rollup_hour k WHERE k.hour = ANY (ARRAY(SELECT DISTINCT (least(c.created_at, 253402300799) / 3600)::integer FROM pg_temp.rollup_change c)) AND k.events = 0;

    DELETE FROM rollup_addressable k WHERE k.ctid = ANY (ARRAY(
        SELECT x.ctid FROM pg_temp.rollup_change t
        CROSS JOIN LATERAL (SELECT y.ctid FROM rollup_addressable y
                            WHERE y.author_id = t.author_id AND y.kind = t.kind AND y.d_hash = t.d_hash AND y.event_key = t.event_key OFFSET 0) x
        WHERE t.change < 0 AND t.d_hash IS NOT NULL));
    PERFORM rollup_mend();
    DROP TABLE pg_temp.rollup_change, pg_temp.rollup_gone, pg_temp.rollup_known;
    RETURN n;
END $$;
ALTER FUNCTION rollup_subtract SET enable_nestloop = off;
ALTER FUNCTION rollup_subtract SET enable_seqscan = off;
ALTER FUNCTION rollup_subtract SET plan_cache_mode = force_generic_plan;
ALTER FUNCTION rollup_subtract SET max_parallel_workers_per_gather = 0;
ALTER FUNCTION rollup_subtract SET work_mem = '32MB';
ALTER FUNCTION rollup_subtract SET jit = off;

ALTER FUNCTION month_drop SET lock_timeout = '500ms';

-- Addresses of I2P are all under one domain that nobody registers.

CREATE OR REPLACE FUNCTION url_site(p_url text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE
        WHEN h.host LIKE '%:%' OR h.host ~ '^[0-9.]+$' THEN public.host_block(h.host)
        -- The second level of a country that sells the third: co.uk, com.au, gob.mx. And what I2P makes of a key.
        WHEN h.host ~ '\.(ac|co|com|edu|gen|go|gob|gov|ind|mil|ne|net|nom|or|org|plc|sch)\.[a-z]{2}$' OR h.host ~ '\.b32\.i2p$'
            THEN substring(h.host FROM '[^.]+\.[^.]+\.[^.]+$')
        ELSE coalesce(substring(h.host FROM '[^.]+\.[^.]+$'), h.host) END
    FROM (SELECT public.url_host(p_url) AS host) h
$$;
COMMENT ON FUNCTION url_site IS 'What somebody registers once and can name endless hosts under: the last two labels of a host, three where a country sells the third and in b32.i2p, the block of an address.';
REINDEX INDEX candidate_site;
REINDEX INDEX relay_site;

-- The overlap of one relay with the others, without that of all with all.

CREATE FUNCTION relay_overlap_of(p_url text)
RETURNS TABLE (relay_url text, other_url text, shared_events bigint, standard_error numeric, share numeric, sampled bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
    WITH own AS MATERIALIZED (
        SELECT s.relay_id, s.level, k.event_key FROM relay r JOIN rollup_sketch s ON s.relay_id = r.id CROSS JOIN LATERAL unnest(s.keys) k(event_key)
        WHERE r.url = p_url
    ), shared AS (
        SELECT a.relay_id, b.relay_id AS other_id, greatest(a.level, b.level) AS level, count(*) AS sampled
        FROM own a
        JOIN (SELECT s.relay_id, s.level, k.event_key FROM rollup_sketch s CROSS JOIN LATERAL unnest(s.keys) k(event_key)) b
          ON b.event_key = a.event_key AND b.relay_id <> a.relay_id
        WHERE rollup_sample_of(a.event_key) >> (63 - greatest(a.level, b.level)) = 0
        GROUP BY 1, 2, 3
    )
    SELECT p_url, o.url, (s.sampled * power(2::numeric, s.level))::bigint,
           round((sqrt(s.sampled * (1 - power(2::double precision, -s.level))) * power(2::double precision, s.level))::numeric, 1),
           round(least(1, s.sampled * power(2::numeric, s.level) / e.events), 4), s.sampled
    FROM shared s JOIN relay o ON o.id = s.other_id JOIN rollup_relay e ON e.relay_id = s.relay_id
    ORDER BY 3 DESC, 2
$$;
COMMENT ON FUNCTION relay_overlap_of IS 'relay_overlap of one relay; costs one pass over the samples of all relays, where the view compares all of them with all.';

-- Who may call what.

CREATE OR REPLACE FUNCTION roles_grant(p_prefix text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = public, pg_temp
AS $$
DECLARE
    f record;
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA public, apalis TO %I, %I', p_prefix || '_reader', p_prefix || '_admin');
    EXECUTE format('GRANT USAGE ON SCHEMA public TO %I, %I', p_prefix || '_writer', p_prefix || '_refresher');
    EXECUTE format('GRANT ALL ON ALL TABLES IN SCHEMA public, apalis TO %I', p_prefix || '_admin');
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA public, apalis TO %I', p_prefix || '_reader');
    EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO %I', p_prefix || '_reader');
    FOR f IN
        SELECT p.oid::regprocedure AS signature, p.proname AS name, p.provolatile AS volatility
        FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e')
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f.signature);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', f.signature, p_prefix || '_admin');
        -- Steps of other functions, which hold the locks for them, are nobody's to call by themselves.
        IF f.name IN ('roles_grant', 'partition_ensure', 'job_lose', 'job_hold', 'network_borrow', 'job_admit', 'operation_note', 'schedule_move',
                      'event_remove', 'event_strip', 'event_lay', 'coverage_lock', 'coverage_clip', 'rollup_stage', 'rollup_fold', 'rollup_mend', 'rollup_subtract') THEN
            EXECUTE format('REVOKE ALL ON FUNCTION %s FROM %I', f.signature, p_prefix || '_writer');
        ELSE
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', f.signature, p_prefix || '_writer');
        END IF;
        IF f.name LIKE '%\_refresh' THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', f.signature, p_prefix || '_refresher');
        END IF;
        IF f.volatility <> 'v' THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', f.signature, p_prefix || '_reader');
        END IF;
    END LOOP;
END $$;
