-- What is known of relays by their checks and documents is kept as the rollups are: writers log whose changed, the refresher
-- makes these relays anew, and the views over it are plain ones. Before, one new check in five minutes made all of it anew.

CREATE TABLE relay_delta (
    id      bigint    GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    checked integer[] NOT NULL,
    told    integer[] NOT NULL
);
COMMENT ON TABLE  relay_delta IS 'Relays with new round-trip times or another NIP-11 document: one row per statement that wrote such, deleted once made anew.';
COMMENT ON COLUMN relay_delta.id IS 'Serial; not the order of commits.';
COMMENT ON COLUMN relay_delta.checked IS 'relay.id of those whose rtt checks changed.';
COMMENT ON COLUMN relay_delta.told IS 'relay.id of those whose NIP-11 document changed.';

CREATE TABLE relay_nip11 (
    relay_id integer   PRIMARY KEY,
    name     text,
    software text,
    version  text,
    nips     integer[] NOT NULL
);
COMMENT ON TABLE  relay_nip11 IS 'Of the newest NIP-11 document of each relay what the views count; kept by relay_latest_refresh.';
COMMENT ON COLUMN relay_nip11.relay_id IS 'relay.id';
COMMENT ON COLUMN relay_nip11.name IS 'name, its first 200 characters.';
COMMENT ON COLUMN relay_nip11.software IS 'software, its first 200 characters.';
COMMENT ON COLUMN relay_nip11.version IS 'version, its first 200 characters.';
COMMENT ON COLUMN relay_nip11.nips IS 'supported_nips that are numbers of at most five digits, each once, ascending.';

-- A refresh that runs ends first: it holds the materialized views that go.
SELECT pg_advisory_xact_lock(7302);
-- Views that somebody made over these would go with them, and who may read these besides our own roles is noted.
DO $$
DECLARE
    v_over text;
BEGIN
    SELECT string_agg(DISTINCT c.oid::regclass::text, ', ') INTO v_over
    FROM pg_depend d JOIN pg_rewrite w ON d.classid = 'pg_rewrite'::regclass AND w.oid = d.objid JOIN pg_class c ON c.oid = w.ev_class
    WHERE d.refclassid = 'pg_class'::regclass
      AND d.refobjid = ANY ('{public.relay_concentration,public.relay_stats,public.relay_software_counts,public.supported_nip_counts,public.relay_metadata_latest,public.relay_rtt_recent}'::regclass[])
      AND NOT c.oid = ANY ('{public.relay_concentration,public.relay_stats,public.relay_software_counts,public.supported_nip_counts,public.relay_metadata_latest,public.relay_rtt_recent}'::regclass[]);
    IF v_over IS NOT NULL THEN
        RAISE EXCEPTION 'views of somebody''s own read views that are made anew: %', v_over
            USING HINT = 'Keep their definitions (pg_dump -s -t), drop them, migrate, and make them again.';
    END IF;
END $$;
CREATE TEMP TABLE granted ON COMMIT DROP AS
SELECT c.relname, a.grantee FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) a
WHERE c.oid = ANY ('{public.relay_concentration,public.relay_stats,public.relay_software_counts,public.supported_nip_counts,public.relay_metadata_latest,public.relay_rtt_recent}'::regclass[])
  AND a.privilege_type = 'SELECT' AND a.grantee <> c.relowner;
DROP VIEW relay_concentration, relay_stats;
DROP MATERIALIZED VIEW relay_software_counts, supported_nip_counts, relay_metadata_latest, relay_rtt_recent;
DROP FUNCTION view_watermark(text, text);
ALTER TABLE view_state DROP COLUMN watermark;

CREATE TABLE relay_rtt_recent (
    relay_id      integer PRIMARY KEY,
    avg_rtt_open  numeric,
    avg_rtt_read  numeric,
    avg_rtt_write numeric,
    since_at      bigint  NOT NULL
);
CREATE INDEX relay_rtt_recent_since ON relay_rtt_recent (since_at);
COMMENT ON TABLE  relay_rtt_recent IS 'Per relay, the means of its last 10 rtt checks; kept by relay_latest_refresh.';
COMMENT ON COLUMN relay_rtt_recent.relay_id IS 'relay.id';
COMMENT ON COLUMN relay_rtt_recent.avg_rtt_open IS 'Mean of open_ms, milliseconds to two digits; null where none opened.';
COMMENT ON COLUMN relay_rtt_recent.avg_rtt_read IS 'Mean of read_ms, milliseconds to two digits; null where none answered.';
COMMENT ON COLUMN relay_rtt_recent.avg_rtt_write IS 'Mean of write_ms, milliseconds to two digits; null where none was accepted.';
COMMENT ON COLUMN relay_rtt_recent.since_at IS 'checked_at of the oldest of the ten: whose day is dropped is made anew.';

CREATE VIEW relay_metadata_latest AS
SELECT r.url AS relay_url, t.type AS metadata_type, m.generated_at, m.metadata_id, d.data,
       (SELECT max(l.confirmed_at) FROM public.relay_check_latest l
        WHERE l.relay_id = r.id AND l.metadata_id = m.metadata_id) AS confirmed_at
FROM public.relay r
CROSS JOIN (VALUES ('nip11_info'), ('nip66_ssl'), ('nip66_geo'), ('nip66_net'), ('nip66_dns'), ('nip66_http')) t(type)
CROSS JOIN LATERAL (
    SELECT x.generated_at, x.metadata_id FROM public.relay_metadata x
    WHERE x.relay_id = r.id AND x.metadata_type = t.type ORDER BY x.generated_at DESC LIMIT 1) m
JOIN public.metadata d ON d.id = m.metadata_id AND d.type = t.type
UNION ALL
-- Round-trip times change with every check: they are measurements, not documents, and are built from them.
SELECT r.url, 'nip66_rtt', l.checked_at, NULL::bytea,
       json_build_object(
           'data', json_strip_nulls(json_build_object('rtt_open', l.open_ms, 'rtt_read', l.read_ms, 'rtt_write', l.write_ms)),
           'logs', json_build_object('success', l.outcome = 'ok', 'outcome', l.outcome, 'reason', l.reason)),
       l.checked_at
FROM public.relay r
CROSS JOIN LATERAL (
    SELECT x.* FROM public.relay_check_latest x
    WHERE x.relay_id = r.id AND x.kind = 'rtt' ORDER BY x.checked_at DESC, x.vantage_id LIMIT 1) l;
COMMENT ON VIEW relay_metadata_latest IS 'Newest document per relay and type, as of the query; nip66_rtt is built from the newest rtt check.';

CREATE VIEW relay_stats AS
SELECT r.url AS relay_url, r.network, r.discovered_at,
       s.first_at AS first_event_timestamp, s.last_at AS last_event_timestamp,
       t.avg_rtt_open, t.avg_rtt_read, t.avg_rtt_write,
       coalesce(s.events, 0) AS event_count, coalesce(s.authors, 0) AS unique_pubkeys, coalesce(s.kinds, 0) AS unique_kinds,
       i.name AS nip11_name, i.software AS nip11_software, i.version AS nip11_version
FROM public.relay r
LEFT JOIN public.rollup_relay s ON s.relay_id = r.id
LEFT JOIN public.relay_rtt_recent t ON t.relay_id = r.id
LEFT JOIN public.relay_nip11 i ON i.relay_id = r.id;
COMMENT ON VIEW relay_stats IS 'Per relay: what it holds, how fast it answers (last 10 rtt checks), what it says it is.';

CREATE VIEW relay_software_counts AS
SELECT i.software, coalesce(i.version, 'unknown') AS version, count(*) AS relay_count
FROM public.relay_nip11 i WHERE i.software IS NOT NULL GROUP BY 1, 2;
COMMENT ON VIEW relay_software_counts IS 'Relays per software and version, as their NIP-11 documents say (first 200 characters).';

CREATE VIEW supported_nip_counts AS
SELECT n.nip, count(*) AS relay_count FROM public.relay_nip11 i CROSS JOIN LATERAL unnest(i.nips) n(nip) GROUP BY 1;
COMMENT ON VIEW supported_nip_counts IS 'Relays per NIP they say they support.';

CREATE VIEW relay_concentration AS
WITH up AS (
    SELECT r.id, r.url FROM public.relay r JOIN public.relay_liveness l ON l.relay_url = r.url WHERE l.state <> 'down'
), v AS (
    SELECT t.dimension, t.value, count(*)::numeric AS n, coalesce(sum(e.events), 0) AS events
    FROM up u
    JOIN public.relay_metadata_latest m ON m.relay_url = u.url AND m.metadata_type IN ('nip66_net', 'nip66_geo', 'nip11_info')
    CROSS JOIN LATERAL (
        SELECT 'asn' AS dimension, m.data -> 'data' ->> 'net_asn' AS value WHERE m.metadata_type = 'nip66_net'
        UNION ALL SELECT 'country', m.data -> 'data' ->> 'geo_country' WHERE m.metadata_type = 'nip66_geo'
        UNION ALL SELECT 'software', left(m.data -> 'data' ->> 'software', 200) WHERE m.metadata_type = 'nip11_info') t
    LEFT JOIN public.rollup_relay e ON e.relay_id = u.id
    WHERE t.value IS NOT NULL GROUP BY 1, 2
), s AS (
    SELECT v.*, sum(v.n) OVER (PARTITION BY v.dimension) AS known, nullif(sum(v.events) OVER (PARTITION BY v.dimension), 0) AS observations FROM v
)
SELECT s.dimension, (SELECT count(*) FROM up) AS relays, max(s.known)::bigint AS known, count(*) AS groups,
       round(sum((s.n / s.known) ^ 2), 4) AS hhi, (array_agg(s.value ORDER BY s.n DESC, s.value))[1] AS largest,
       round(max(s.n / s.known), 4) AS largest_share, round(sum((s.events / s.observations) ^ 2), 4) AS observation_hhi
FROM s GROUP BY s.dimension;
COMMENT ON VIEW relay_concentration IS 'How concentrated the relays that are not down are by ASN, country and software: the sum of squared shares (Herfindahl-Hirschman, 0 to 1) of relays, and of their observations. Relays of which the property is not known are left out of the shares (known of relays).';

-- Whoever writes: what is logged is what the statement really changed. A dump of some days of relay_check is read into those
-- parts and goes past it: the INSERT INTO relay_delta below makes all anew.
CREATE FUNCTION relay_check_note() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    INSERT INTO relay_delta (checked, told)
    SELECT array_agg(DISTINCT n.relay_id), '{}' FROM changed n WHERE n.kind = 'rtt' HAVING count(*) > 0;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION relay_check_note IS 'Of a trigger: logs the relays whose rtt checks a statement wrote.';

CREATE FUNCTION relay_metadata_note() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    INSERT INTO relay_delta (checked, told)
    SELECT '{}', array_agg(DISTINCT n.relay_id) FROM changed n WHERE n.metadata_type = 'nip11_info' HAVING count(*) > 0;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION relay_metadata_note IS 'Of a trigger: logs the relays of whose NIP-11 documents a statement wrote or deleted some.';

CREATE FUNCTION relay_latest_refresh() RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_now bigint := floor(extract(epoch FROM now()))::bigint;
    v_checked integer[];
    v_told integer[];
    v_since bigint;
    n integer;
BEGIN
    IF NOT pg_try_advisory_xact_lock(7302) THEN
        RAISE EXCEPTION 'another refresh is running' USING ERRCODE = 'lock_not_available';
    END IF;
    -- What is seen here is committed, and so is what it speaks of: the next statements see that too.
    WITH taken AS (DELETE FROM relay_delta d RETURNING d.checked, d.told)
    SELECT coalesce((SELECT array_agg(DISTINCT c.id) FROM taken t CROSS JOIN unnest(t.checked) c(id)), '{}'),
           coalesce((SELECT array_agg(DISTINCT c.id) FROM taken t CROSS JOIN unnest(t.told) c(id)), '{}') INTO v_checked, v_told;
    n := cardinality(v_checked) + cardinality(v_told);

    -- Every day is a partition, and all that may hold a row are looked into: few days first, all for whom they are too few.
    FOREACH v_since IN ARRAY ARRAY[v_now - 2 * 86400, v_now - 20 * 86400, 0] LOOP
        EXIT WHEN cardinality(v_checked) = 0;
        WITH recent AS MATERIALIZED (
            SELECT r.id, t.* FROM unnest(v_checked) r(id)
            CROSS JOIN LATERAL (
                SELECT round(avg(x.open_ms), 2) AS open, round(avg(x.read_ms), 2) AS read, round(avg(x.write_ms), 2) AS write,
                       min(x.checked_at) AS since_at, count(*) = 10 OR v_since = 0 AS all_of_them
                FROM (SELECT c.open_ms, c.read_ms, c.write_ms, c.checked_at FROM relay_check c
                      WHERE c.relay_id = r.id AND c.kind = 'rtt' AND c.checked_at >= v_since
                      ORDER BY c.checked_at DESC, c.vantage_id DESC LIMIT 10) x) t
        ), kept AS (
            INSERT INTO relay_rtt_recent AS k (relay_id, avg_rtt_open, avg_rtt_read, avg_rtt_write, since_at)
            SELECT e.id, e.open, e.read, e.write, e.since_at FROM recent e WHERE e.all_of_them AND e.since_at IS NOT NULL ORDER BY 1
            ON CONFLICT (relay_id) DO UPDATE
                SET avg_rtt_open = excluded.avg_rtt_open, avg_rtt_read = excluded.avg_rtt_read, avg_rtt_write = excluded.avg_rtt_write,
                    since_at = excluded.since_at
        ), gone AS (
            DELETE FROM relay_rtt_recent k USING recent e WHERE k.relay_id = e.id AND e.all_of_them AND e.since_at IS NULL
        )
        SELECT coalesce(array_agg(e.id) FILTER (WHERE NOT e.all_of_them), '{}') INTO v_checked FROM recent e;
    END LOOP;

    IF cardinality(v_told) > 0 THEN
        WITH said AS MATERIALIZED (
            SELECT r.id, d.data -> 'data' AS data FROM unnest(v_told) r(id)
            LEFT JOIN LATERAL (
                SELECT x.metadata_id FROM relay_metadata x
                WHERE x.relay_id = r.id AND x.metadata_type = 'nip11_info' ORDER BY x.generated_at DESC LIMIT 1) m ON true
            LEFT JOIN metadata d ON d.id = m.metadata_id AND d.type = 'nip11_info'
        ), gone AS (
            DELETE FROM relay_nip11 k USING said s WHERE k.relay_id = s.id AND s.data IS NULL
        )
        INSERT INTO relay_nip11 AS k (relay_id, name, software, version, nips)
        SELECT s.id, left(s.data ->> 'name', 200), left(s.data ->> 'software', 200), left(s.data ->> 'version', 200),
               ARRAY(SELECT DISTINCT e.nip::integer
                     FROM json_array_elements_text(CASE json_typeof(s.data -> 'supported_nips') WHEN 'array' THEN s.data -> 'supported_nips' ELSE '[]'::json END) e(nip)
                     WHERE e.nip ~ '^[0-9]{1,5}$' ORDER BY 1)
        FROM said s WHERE s.data IS NOT NULL ORDER BY 1
        ON CONFLICT (relay_id) DO UPDATE
            SET name = excluded.name, software = excluded.software, version = excluded.version, nips = excluded.nips
            WHERE (k.name, k.software, k.version, k.nips) IS DISTINCT FROM (excluded.name, excluded.software, excluded.version, excluded.nips);
    END IF;
    RETURN n;
END $$;
COMMENT ON FUNCTION relay_latest_refresh IS 'Makes relay_rtt_recent and relay_nip11 anew for the relays of the log; returns how many it named. Costs what changed. Raises lock_not_available while another refresh runs.';

CREATE FUNCTION relay_latest_check() RETURNS TABLE (rollup text, key text, ours text, recomputed text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
BEGIN
    RETURN QUERY
    WITH waiting AS MATERIALIZED (
        SELECT 'relay_rtt_recent' AS kept, c.id FROM relay_delta d CROSS JOIN unnest(d.checked) c(id)
        UNION SELECT 'relay_nip11', c.id FROM relay_delta d CROSS JOIN unnest(d.told) c(id)
    ), mine AS (
        SELECT 'relay_rtt_recent' AS kept, k.relay_id AS id, row(k.since_at, k.avg_rtt_open, k.avg_rtt_read, k.avg_rtt_write)::text AS said FROM relay_rtt_recent k
        UNION ALL SELECT 'relay_nip11', k.relay_id, row(k.name, k.software, k.version, k.nips)::text FROM relay_nip11 k
    ), anew AS (
        SELECT 'relay_rtt_recent' AS kept, r.id, row(t.since_at, t.open, t.read, t.write)::text AS said FROM relay r
        CROSS JOIN LATERAL (
            SELECT min(x.checked_at) AS since_at, round(avg(x.open_ms), 2) AS open, round(avg(x.read_ms), 2) AS read, round(avg(x.write_ms), 2) AS write
            FROM (SELECT c.checked_at, c.open_ms, c.read_ms, c.write_ms FROM relay_check c
                  WHERE c.relay_id = r.id AND c.kind = 'rtt' ORDER BY c.checked_at DESC, c.vantage_id DESC LIMIT 10) x
            HAVING count(*) > 0) t
        UNION ALL
        SELECT 'relay_nip11', r.id, row(left(d.data ->> 'name', 200), left(d.data ->> 'software', 200), left(d.data ->> 'version', 200),
               ARRAY(SELECT DISTINCT e.nip::integer
                     FROM json_array_elements_text(CASE json_typeof(d.data -> 'supported_nips') WHEN 'array' THEN d.data -> 'supported_nips' ELSE '[]'::json END) e(nip)
                     WHERE e.nip ~ '^[0-9]{1,5}$' ORDER BY 1))::text
        FROM relay r CROSS JOIN LATERAL (SELECT l.data -> 'data' AS data FROM relay_metadata_latest l WHERE l.relay_url = r.url AND l.metadata_type = 'nip11_info') d
        WHERE d.data IS NOT NULL
    )
    SELECT x.kept, x.id::text, x.mine, x.anew
    FROM (SELECT kept, id, m.said AS mine, a.said AS anew FROM mine m FULL JOIN anew a USING (kept, id)) x
    WHERE x.mine IS DISTINCT FROM x.anew AND NOT EXISTS (SELECT FROM waiting w WHERE w.kept = x.kept AND w.id = x.id);
END $$;
COMMENT ON FUNCTION relay_latest_check IS 'Makes relay_rtt_recent and relay_nip11 anew for every relay that the log does not name, in one snapshot; returns where they disagree. As costly as all checks have days.';

CREATE OR REPLACE FUNCTION view_refresh(p_view text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    began timestamptz := clock_timestamp();
    v_left bigint := 1;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relname = p_view AND c.relkind IN ('m', 'v')
                   AND EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = c.relnamespace AND p.proname = p_view || '_refresh')) THEN
        RAISE EXCEPTION 'there is no view % to refresh', p_view USING ERRCODE = 'undefined_table';
    END IF;
    -- Never two at once: a second caller is told so instead of queueing up behind the first.
    IF NOT pg_try_advisory_xact_lock(7302) THEN
        RAISE EXCEPTION 'another refresh is running' USING ERRCODE = 'lock_not_available';
    END IF;
    IF p_view IN ('relay_stats', 'relay_software_counts', 'supported_nip_counts') THEN
        PERFORM relay_latest_refresh();
    END IF;
    IF p_view NOT IN ('relay_metadata_latest', 'relay_software_counts', 'supported_nip_counts') THEN
        -- What the log holds is counted. The refresh job does that before, in small transactions.
        WHILE v_left > 0 LOOP
            SELECT r.backlog INTO v_left FROM rollup_refresh() r;
        END LOOP;
    END IF;
    INSERT INTO view_state (view_name, refreshed_at, duration_ms)
    VALUES (p_view, clock_timestamp(), (extract(epoch FROM clock_timestamp() - began) * 1000)::bigint)
    ON CONFLICT (view_name) DO UPDATE SET refreshed_at = excluded.refreshed_at, duration_ms = excluded.duration_ms;
END $$;
COMMENT ON FUNCTION view_refresh IS 'Makes one view fresh without blocking readers and notes when: applies what the log under it holds. Raises lock_not_available while another refresh runs.';

-- A day that goes takes checks along which a mean may be of.
CREATE OR REPLACE FUNCTION check_retire(p_keep_days integer, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET lock_timeout = '1s'
AS $$
DECLARE
    v_part text;
    v_first bigint := extract(epoch FROM date_trunc('day', p_now AT TIME ZONE 'UTC') - make_interval(days => p_keep_days))::bigint;
    n integer := 0;
    m integer;
BEGIN
    IF p_keep_days < 1 THEN
        RAISE EXCEPTION 'at least one day is kept' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR v_part IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'public.relay_check'::regclass AND c.relname ~ '^relay_check_[0-9]{8}$'
          AND to_date(right(c.relname, 8), 'YYYYMMDD') < (p_now AT TIME ZONE 'UTC')::date - p_keep_days
        ORDER BY 1
    LOOP
        EXECUTE format('DROP TABLE public.%I', v_part);
        n := n + 1;
    END LOOP;
    DELETE FROM relay_check_default c
    WHERE c.checked_at < extract(epoch FROM p_now)::bigint - (p_keep_days + 1) * 86400::bigint;
    GET DIAGNOSTICS m = ROW_COUNT;
    IF n + m > 0 THEN
        INSERT INTO relay_delta (checked, told)
        SELECT array_agg(k.relay_id), '{}' FROM relay_rtt_recent k WHERE k.since_at < v_first HAVING count(*) > 0;
    END IF;
    RETURN n;
END $$;

-- What is there is made now, and looked at once more by the first refresh: writers that ended meanwhile logged nothing.
INSERT INTO relay_delta (checked, told) SELECT array_agg(r.id), array_agg(r.id) FROM relay r HAVING count(*) > 0;
SELECT relay_latest_refresh();
-- In the order of writers, who log from here on.
CREATE TRIGGER relay_metadata_added AFTER INSERT ON relay_metadata
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION relay_metadata_note();
CREATE TRIGGER relay_metadata_removed AFTER DELETE ON relay_metadata
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION relay_metadata_note();
CREATE TRIGGER relay_check_added AFTER INSERT ON relay_check
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION relay_check_note();
INSERT INTO relay_delta (checked, told) SELECT array_agg(r.id), array_agg(r.id) FROM relay r HAVING count(*) > 0;

-- When an event expires is forgotten with the event, whatever takes it; what expires in the year 2286 stayed for as long. --------------

CREATE OR REPLACE FUNCTION event_remove(p_keys bigint[], OUT events integer, OUT observations integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    lo bigint;
    hi bigint;
BEGIN
    SELECT min(x), max(x) INTO lo, hi FROM unnest(p_keys) x;
    -- Only what is archived is counted anywhere.
    PERFORM rollup_forget_events(ARRAY(
        SELECT e.event_key FROM event e WHERE e.event_key = ANY (p_keys) AND e.event_key BETWEEN lo AND hi AND e.fate = 0 ORDER BY 1));
    DELETE FROM event_relay o WHERE o.event_key = ANY (p_keys) AND o.event_key BETWEEN lo AND hi;
    GET DIAGNOSTICS observations = ROW_COUNT;
    PERFORM FROM event_unmined u WHERE u.event_key = ANY (p_keys) ORDER BY u.event_key FOR UPDATE;
    DELETE FROM event_unmined u WHERE u.event_key = ANY (p_keys);
    DELETE FROM event_collision c WHERE c.event_key = ANY (p_keys);
    DELETE FROM event_gone g WHERE g.event_key = ANY (p_keys);
    DELETE FROM event_expiry x WHERE x.event_key = ANY (p_keys);
    DELETE FROM event e WHERE e.event_key = ANY (p_keys) AND e.event_key BETWEEN lo AND hi;
    GET DIAGNOSTICS events = ROW_COUNT;
END $$;

CREATE OR REPLACE FUNCTION event_strip(p_keys bigint[], p_fate smallint) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    lo bigint;
    hi bigint;
    v_keys bigint[];
    n integer;
BEGIN
    IF p_fate NOT IN (1, 2, 3) THEN
        RAISE EXCEPTION 'fate % is none: 1 skipped, 2 deleted, 3 expired', p_fate USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT min(x), max(x) INTO lo, hi FROM unnest(p_keys) x;
    v_keys := ARRAY(SELECT e.event_key FROM event e WHERE e.event_key = ANY (p_keys) AND e.event_key BETWEEN lo AND hi AND e.fate = 0 ORDER BY 1);
    IF cardinality(v_keys) = 0 THEN RETURN 0; END IF;
    PERFORM rollup_forget_events(v_keys);
    PERFORM FROM event_unmined u WHERE u.event_key = ANY (v_keys) ORDER BY u.event_key FOR UPDATE;
    DELETE FROM event_unmined u WHERE u.event_key = ANY (v_keys);
    DELETE FROM event_expiry x WHERE x.event_key = ANY (v_keys);
    UPDATE event e SET fate = p_fate, sig = NULL, d_tag = NULL, tags = NULL, content = NULL, tag_hashes = NULL
    WHERE e.event_key = ANY (v_keys) AND e.event_key BETWEEN lo AND hi;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;

CREATE OR REPLACE FUNCTION archive_review_store(
    p_after bigint, p_next bigint, p_pubkeys bytea[], p_whats smallint[], p_kinds integer[], p_targets bytea[], p_untils bigint[], p_requests bytea[])
RETURNS TABLE (stones integer, expiries integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    -- As writers do, and before the look: whoever takes events away is through with it, or what is noted of one would outlive it.
    PERFORM pg_advisory_xact_lock_shared(7310);
    -- Who applies a deletion holds its row, and then waits for the table.
    stones := tombstone_add(p_pubkeys, p_whats, p_kinds, p_targets, p_untils, p_requests);
    LOCK TABLE ONLY event_relay IN ROW EXCLUSIVE MODE;
    PERFORM month_hold();
    INSERT INTO event_expiry
    SELECT x.at, x.event_key FROM (
        SELECT expiry_of(e.kind, e.tags) AS at, e.event_key FROM event e
        WHERE e.event_key > p_after AND e.event_key <= p_next AND e.fate = 0 AND e.tags IS NOT NULL OFFSET 0) x
    WHERE x.at IS NOT NULL ORDER BY 1, 2
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS expiries = ROW_COUNT;
    INSERT INTO archive_cursor VALUES ('review', p_next) ON CONFLICT (name) DO UPDATE SET cursor_key = excluded.cursor_key;
    RETURN NEXT;
END $$;

CREATE OR REPLACE FUNCTION archive_check(p_from bigint, p_to bigint) RETURNS TABLE (problem text, bad boolean, n bigint, first_key bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    RETURN QUERY
        SELECT x.problem, true, x.n, x.first_key FROM (
            SELECT count(*) FILTER (WHERE e.event_key IS NULL) AS lost, min(o.event_key) FILTER (WHERE e.event_key IS NULL) AS lost_key,
                   count(*) FILTER (WHERE r.id IS NULL) AS strange, min(o.event_key) FILTER (WHERE r.id IS NULL) AS strange_key
            FROM event_relay o
            LEFT JOIN event e ON e.event_key = o.event_key AND e.event_key BETWEEN p_from AND p_to
            LEFT JOIN relay r ON r.id = o.relay_id
            WHERE o.event_key BETWEEN p_from AND p_to) c
        CROSS JOIN LATERAL (VALUES ('observations without their event', c.lost, c.lost_key), ('observations without their relay', c.strange, c.strange_key)) x(problem, n, first_key);
    RETURN QUERY
        SELECT x.problem, x.bad, x.n, x.first_key FROM (
            SELECT count(*) FILTER (WHERE e.wrong) AS wrong, min(e.event_key) FILTER (WHERE e.wrong) AS wrong_key,
                   count(*) FILTER (WHERE e.fate <> 0 AND e.body) AS body, min(e.event_key) FILTER (WHERE e.fate <> 0 AND e.body) AS body_key,
                   count(*) FILTER (WHERE e.fate = 0 AND e.orphan) AS orphan, min(e.event_key) FILTER (WHERE e.fate = 0 AND e.orphan) AS orphan_key
            FROM (SELECT y.event_key, y.fate,
                         coalesce(y.sig, y.d_tag, y.tags, y.content) IS NOT NULL OR y.tag_hashes IS NOT NULL AS body,
                         y.event_key <> natural_key(y.created_at, y.id) AND NOT EXISTS (SELECT FROM event_collision c WHERE c.id = y.id AND c.event_key = y.event_key) AS wrong,
                         NOT EXISTS (SELECT FROM event_relay o WHERE o.event_key = y.event_key AND o.event_key BETWEEN p_from AND p_to) AS orphan
                  FROM event y WHERE y.event_key BETWEEN p_from AND p_to) e) c
        CROSS JOIN LATERAL (VALUES ('events under a key that is not theirs', true, c.wrong, c.wrong_key), ('events that are not kept, and have a body', true, c.body, c.body_key),
                                   ('archived events seen on no relay', true, c.orphan, c.orphan_key)) x(problem, bad, n, first_key);
    RETURN QUERY
        SELECT 'events waiting to be mined that are not there', true, count(*), min(u.event_key) FROM event_unmined u
        WHERE u.event_key BETWEEN p_from AND p_to AND NOT EXISTS (SELECT FROM event e WHERE e.event_key = u.event_key AND e.event_key BETWEEN p_from AND p_to);
    RETURN QUERY
        SELECT 'collisions whose event is not there', true, count(*), min(c.event_key) FROM event_collision c
        WHERE c.event_key BETWEEN p_from AND p_to AND NOT EXISTS (
            SELECT FROM event e WHERE e.event_key = c.event_key AND e.id = c.id AND e.event_key BETWEEN p_from AND p_to);
    RETURN QUERY
        SELECT 'events gone from a relay that are not there', true, count(*), min(g.event_key) FROM event_gone g
        WHERE g.event_key BETWEEN p_from AND p_to AND NOT EXISTS (SELECT FROM event e WHERE e.event_key = g.event_key AND e.event_key BETWEEN p_from AND p_to);
    RETURN QUERY
        SELECT 'times to expire of events that are not archived', false, count(*), min(x.event_key) FROM event_expiry x
        WHERE x.event_key BETWEEN p_from AND p_to AND NOT EXISTS (
            SELECT FROM event e WHERE e.event_key = x.event_key AND e.event_key BETWEEN p_from AND p_to AND e.fate = 0);
END $$;

-- Whoever could read the views can again.
DO $$
DECLARE
    g record;
BEGIN
    FOR g IN SELECT x.relname, x.grantee FROM pg_temp.granted x LOOP
        EXECUTE format('GRANT SELECT ON public.%I TO %s', g.relname, CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(g.grantee)) END);
    END LOOP;
END $$;
