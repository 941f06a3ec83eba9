-- What storage promises, kept by whoever is there: deletions without a sync, months for what is imported, times by one clock,
-- the relays that an import may name.

-- Deletions ----------------------------------------------------------------------------------------------------------------

CREATE FUNCTION tombstone_waits(p_lag interval DEFAULT '15 minutes') RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
    SELECT EXISTS (SELECT FROM tombstone t WHERE t.what = 0 AND t.settled < 2 AND (t.settled = 0 OR t.noted_at <= now() - p_lag))
        OR EXISTS (SELECT FROM tombstone t WHERE t.what > 0 AND t.settled < 2 AND t.noted_at <= now() - p_lag)
        OR EXISTS (SELECT FROM tombstone t WHERE t.settled < 2) AND EXISTS (SELECT FROM tombstone_round)
$$;
COMMENT ON FUNCTION tombstone_waits IS 'Whether tombstone_step has something to do at this moment.';

-- Of a class that is not kept from now on, what was archived before is to be looked through once more.
CREATE FUNCTION archive_review_begin(p_deletes boolean) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    IF NOT p_deletes THEN
        DELETE FROM archive_cursor c WHERE c.name = 'review-deleted';
        RETURN false;
    END IF;
    INSERT INTO archive_cursor VALUES ('review-deleted', -1) ON CONFLICT (name) DO NOTHING;
    IF NOT found THEN RETURN false; END IF;
    DELETE FROM archive_cursor c WHERE c.name = 'review';
    RETURN found;
END $$;
COMMENT ON FUNCTION archive_review_begin IS 'Before a piece of the review: p_deletes says whether requests to delete are heeded. When they are and were not before, the round begins anew; whether one was under way or over.';
COMMENT ON COLUMN archive_cursor.name IS 'Which round: orphans, bodies, or review; review-deleted stands for a review that heeds requests to delete, and has no key of its own.';

-- Months -------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION month_ensure(p_at bigint) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET lock_timeout = '1s'
AS $$
DECLARE
    m timestamp := date_trunc('month', to_timestamp(p_at) AT TIME ZONE 'UTC');
    lo bigint := extract(epoch FROM m AT TIME ZONE 'UTC')::bigint;
    hi bigint := extract(epoch FROM (m + interval '1 month') AT TIME ZONE 'UTC')::bigint;
BEGIN
    RETURN partition_ensure('event', lo << 31, hi << 31, to_char(m, 'YYYYMM'))::integer
         + partition_ensure('event_relay', lo << 31, hi << 31, to_char(m, 'YYYYMM'))::integer;
END $$;
COMMENT ON FUNCTION month_ensure IS 'Makes the partitions of event and event_relay for the month (UTC) of a second, and moves what the default partitions hold of it; returns how many were made.';

CREATE FUNCTION month_is_light(p_at bigint, p_most integer DEFAULT 200000) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    m timestamp := date_trunc('month', to_timestamp(p_at) AT TIME ZONE 'UTC');
    lo bigint := extract(epoch FROM m AT TIME ZONE 'UTC')::bigint << 31;
    hi bigint := extract(epoch FROM (m + interval '1 month') AT TIME ZONE 'UTC')::bigint << 31;
BEGIN
    RETURN (SELECT count(*) FROM (SELECT FROM event_default e WHERE e.event_key >= lo AND e.event_key < hi LIMIT p_most + 1) x) <= p_most
       AND (SELECT count(*) FROM (SELECT FROM event_relay_default o WHERE o.event_key >= lo AND o.event_key < hi LIMIT p_most + 1) x) <= p_most;
END $$;
COMMENT ON FUNCTION month_is_light IS 'Whether the default partitions hold at most p_most events and p_most observations of the month of a second: so many move while everybody waits, in seconds. More are for an operator to move.';

CREATE FUNCTION month_missing(p_ats bigint[], p_now timestamptz DEFAULT now()) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
    SELECT x.at FROM (
        SELECT DISTINCT extract(epoch FROM date_trunc('month', to_timestamp(u.at) AT TIME ZONE 'UTC') AT TIME ZONE 'UTC')::bigint AS at
        FROM unnest(p_ats) u(at)
        -- Never before Nostr, and no further ahead than maintenance goes.
        WHERE u.at >= 1604188800 AND u.at < extract(epoch FROM date_trunc('month', p_now AT TIME ZONE 'UTC') + interval '2 months')) x
    CROSS JOIN LATERAL (SELECT to_char(to_timestamp(x.at) AT TIME ZONE 'UTC', 'YYYYMM') AS month) m
    WHERE to_regclass('public.event_' || m.month) IS NULL OR to_regclass('public.event_relay_' || m.month) IS NULL
    ORDER BY 1 LIMIT 1
$$;
COMMENT ON FUNCTION month_missing IS 'The first month (its first second) of these times that has no partitions and may have; null: none.';

CREATE FUNCTION month_of_import(p_ats bigint[]) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET lock_timeout = '1s'
AS $$
DECLARE v_at bigint := month_missing(p_ats);
BEGIN
    RETURN CASE WHEN v_at IS NOT NULL AND month_is_light(v_at, 10000) THEN month_ensure(v_at) ELSE 0 END;
END $$;
COMMENT ON FUNCTION month_of_import IS 'Makes the first month of these times that is missing; returns how many partitions. Call until 0. A month of which the default partitions hold much is left to maintenance.';

CREATE FUNCTION month_adopt(p_since bigint, p_now timestamptz DEFAULT now()) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET lock_timeout = '1s' SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_at bigint := greatest(p_since, 1604188800);
    v_end bigint := extract(epoch FROM date_trunc('month', p_now AT TIME ZONE 'UTC') + interval '2 months')::bigint;
    n integer;
BEGIN
    LOOP
        SELECT least((SELECT min(e.event_key) FROM event_default e WHERE e.event_key >= second_key(v_at) AND e.event_key < second_key(v_end)),
                     (SELECT min(o.event_key) FROM event_relay_default o WHERE o.event_key >= second_key(v_at) AND o.event_key < second_key(v_end))) >> 31
        INTO v_at;
        IF v_at IS NULL THEN RETURN 0; END IF;
        IF month_is_light(v_at) THEN
            n := month_ensure(v_at);
            IF n > 0 THEN RETURN n; END IF;
        END IF;
        v_at := extract(epoch FROM (date_trunc('month', to_timestamp(v_at) AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC')::bigint;
    END LOOP;
END $$;
COMMENT ON FUNCTION month_adopt IS 'Makes the oldest month from p_since on of which the default partitions hold something, if that is not too much to move at once; returns how many partitions. Call until 0.';

-- Room ---------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION archive_room() RETURNS TABLE (bytes bigint, max_bytes bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    UPDATE archive_size s SET bytes = pg_database_size(current_database()), measured_at = clock_timestamp()
    WHERE s.measured_at < clock_timestamp() - interval '10 seconds';
    SELECT s.bytes INTO bytes FROM archive_size s;
    SELECT s.max_bytes INTO max_bytes FROM archive_setting s;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION archive_room IS 'The size of the database, at most ten seconds old, and its budget: what a sync pass looks at again while it runs.';

-- Relays that an import names ---------------------------------------------------------------------------------------------

CREATE FUNCTION import_relays(
    p_urls text[], p_networks text[], p_open boolean[], p_sites text[], p_hosters text[], p_at bigint,
    p_per_host integer, p_per_site integer, p_per_hoster integer)
RETURNS TABLE (new_relays integer, excluded text[], full_up text[], closed text[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_any boolean := EXISTS (SELECT FROM relay_exclusion);
    v_urls text[];
    v_whys integer[];
BEGIN
    -- As candidate_sight counts: the shortest first, in each of host, site and hoster. What is a candidate is counted there already.
    WITH fresh AS MATERIALIZED (
        SELECT DISTINCT ON (u.url) u.url, url_host(u.url) AS host, coalesce(u.site, url_site(u.url)) AS site, u.hoster,
               CASE WHEN v_any AND url_excluded(u.url) IS NOT NULL THEN 1 WHEN NOT u.open THEN 3 ELSE 0 END AS why,
               NOT EXISTS (SELECT FROM candidate c WHERE c.url = u.url) AS adds
        FROM unnest(p_urls, p_open, p_sites, p_hosters) u(url, open, site, hoster)
        WHERE NOT EXISTS (SELECT FROM relay r WHERE r.url = u.url)
        ORDER BY u.url
    ), of_host AS MATERIALIZED (
        SELECT f.*, h.has + row_number() OVER (PARTITION BY f.host ORDER BY octet_length(f.url), f.url) > p_per_host AS is_full
        FROM fresh f
        JOIN (SELECT x.host, (SELECT count(*) FROM candidate c WHERE url_host(c.url) = x.host)
                             + (SELECT count(*) FROM relay r WHERE url_host(r.url) = x.host) AS has
              FROM (SELECT DISTINCT y.host FROM fresh y WHERE p_per_host IS NOT NULL AND y.why = 0 AND y.adds) x) h ON h.host = f.host
        WHERE f.why = 0 AND f.adds
    ), of_site AS MATERIALIZED (
        SELECT f.*, s.has + row_number() OVER (PARTITION BY f.site ORDER BY octet_length(f.url), f.url) > p_per_site AS site_full
        FROM of_host f
        JOIN (SELECT x.site, site_urls(x.site, p_per_site) AS has
              FROM (SELECT DISTINCT y.site FROM of_host y WHERE p_per_site IS NOT NULL) x) s ON s.site = f.site
        WHERE NOT f.is_full
    ), of_hoster AS MATERIALIZED (
        SELECT f.url, s.has + row_number() OVER (PARTITION BY f.hoster ORDER BY octet_length(f.url), f.url) > p_per_hoster AS hoster_full
        FROM of_site f
        JOIN (SELECT x.hoster, site_urls(x.hoster, p_per_hoster) AS has
              FROM (SELECT DISTINCT y.hoster FROM of_site y WHERE p_per_hoster IS NOT NULL AND y.hoster IS NOT NULL) x) s ON s.hoster = f.hoster
        WHERE NOT f.site_full
    )
    SELECT array_agg(f.url), array_agg(CASE WHEN f.why > 0 THEN f.why WHEN h.is_full OR s.site_full OR o.hoster_full THEN 2 ELSE 0 END) INTO v_urls, v_whys
    FROM fresh f LEFT JOIN of_host h ON h.url = f.url LEFT JOIN of_site s ON s.url = f.url LEFT JOIN of_hoster o ON o.url = f.url;
    SELECT coalesce(array_agg(u.url) FILTER (WHERE u.why = 1), '{}'), coalesce(array_agg(u.url) FILTER (WHERE u.why = 2), '{}'),
           coalesce(array_agg(u.url) FILTER (WHERE u.why = 3), '{}')
    INTO excluded, full_up, closed FROM unnest(v_urls, v_whys) u(url, why);
    new_relays := relay_insert(
        ARRAY(SELECT i.url FROM unnest(p_urls, p_networks) i(url, network) WHERE i.url IN (SELECT u.url FROM unnest(v_urls, v_whys) u(url, why) WHERE u.why = 0) ORDER BY i.url),
        ARRAY(SELECT i.network FROM unnest(p_urls, p_networks) i(url, network) WHERE i.url IN (SELECT u.url FROM unnest(v_urls, v_whys) u(url, why) WHERE u.why = 0) ORDER BY i.url),
        ARRAY(SELECT p_at FROM unnest(v_whys) w WHERE w = 0));
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION import_relays IS 'Relays that an import names, each URL once: unknown ones become known, but for those that are excluded, those whose host, site or hoster has as many URLs as one may have (null: any number), and those that are not open (on a port that strangers may not name). Returns how many are new, and the URLs of each kind left out.';

-- Times by one clock ------------------------------------------------------------------------------------------------------

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
    -- A worker's clock that is ahead of ours must not say that something was seen after an export that holds it.
    p_seen_at := least(p_seen_at, floor(extract(epoch FROM clock_timestamp()))::bigint);
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
    -- A worker's clock that is ahead of ours must not say that something was seen after an export that holds it.
    p_at := least(p_at, floor(extract(epoch FROM clock_timestamp()))::bigint);
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

CREATE OR REPLACE FUNCTION event_import(
    n_ids bytea[], n_keys bigint[], n_created_ats bigint[], n_pubkeys bytea[], n_kinds integer[],
    n_tags bytea[], n_contents bytea[], n_sigs bytea[], n_d_tags bytea[], n_tag_hashes text[],
    p_urls text[], p_networks text[], p_discovered_ats bigint[],
    o_ids bytea[], o_keys bigint[], o_urls integer[], o_seen_ats bigint[], o_evidence smallint[])
RETURNS TABLE (new_relays integer, new_events integer, new_observations integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    relay_ids integer[];
    stray bytea;
    v_now bigint;
BEGIN
    -- The gate of whoever drops whole months of events: here, before any lock on a table is held.
    PERFORM pg_advisory_xact_lock_shared(7310);
    -- What an export waits for when it begins: by then whatever has an earlier time is stored.
    PERFORM pg_advisory_xact_lock_shared(7334);
    v_now := floor(extract(epoch FROM clock_timestamp()))::bigint;
    SELECT u.id INTO stray FROM unnest(n_ids) u(id)
    WHERE NOT EXISTS (SELECT FROM unnest(o_ids) o(id) WHERE o.id = u.id) LIMIT 1;
    IF stray IS NOT NULL THEN
        RAISE EXCEPTION 'event % was seen on no relay', encode(stray, 'hex') USING ERRCODE = 'raise_exception';
    END IF;
    new_relays := relay_insert(p_urls, p_networks, p_discovered_ats);
    SELECT array_agg(r.id ORDER BY u.o) INTO relay_ids
    FROM unnest(p_urls) WITH ORDINALITY u(url, o) JOIN relay r ON r.url = u.url;
    new_events := 0;
    IF cardinality(n_ids) > 0 THEN
        new_events := event_insert(n_ids, n_keys, n_created_ats, n_pubkeys, n_kinds, n_tags, n_contents, n_sigs, n_d_tags, n_tag_hashes);
    END IF;
    new_observations := event_relay_insert(o_ids, o_keys,
        ARRAY(SELECT relay_ids[u.i] FROM unnest(o_urls) WITH ORDINALITY u(i, o) ORDER BY u.o),
        ARRAY(SELECT least(u.at, v_now) FROM unnest(o_seen_ats) WITH ORDINALITY u(at, o) ORDER BY u.o), o_evidence);
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION event_import IS 'One batch of an import in one transaction: relays (o_urls are 1-based positions in p_urls), new events (n_*), and observations of new and known ones (o_*; seen at null, or later than now: now). A new event without an observation is refused. Returns the counts of what was new.';

-- Proving it --------------------------------------------------------------------------------------------------------------

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
END $$;
