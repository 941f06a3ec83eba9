-- Candidates, relays, checks, documents, and the fenced result functions of the job kinds.

CREATE FUNCTION candidate_insert(p_urls text[], p_networks text[], p_sources text[], p_slack integer DEFAULT 3600)
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    v_now bigint := extract(epoch FROM now())::bigint;
    n integer;
BEGIN
    WITH named AS (
        SELECT u.url, min(u.network) AS network, min(u.source) AS source
        FROM unnest(p_urls, p_networks, p_sources) u(url, network, source)
        WHERE NOT EXISTS (SELECT FROM relay r WHERE r.url = u.url)
        GROUP BY u.url
    ), fresh AS (
        INSERT INTO candidate AS c (url, network, source, first_seen_at, last_seen_at)
        SELECT m.url, m.network, m.source, v_now, v_now FROM named m ORDER BY m.url
        -- A sighting within the hour adds nothing worth a new row version.
        ON CONFLICT (url) DO UPDATE SET last_seen_at = v_now, seen_count = c.seen_count + 1
            WHERE c.last_seen_at < v_now - 3600
        RETURNING c.url, c.network, (c.seen_count = 1) AS is_new
    ), due AS (
        INSERT INTO schedule (kind, target, network, due_at, slack_s, why)
        SELECT 'validate', f.url, f.network, now(), p_slack, 'new candidate' FROM fresh f WHERE f.is_new ORDER BY f.url
        ON CONFLICT (kind, target) DO NOTHING
    )
    SELECT count(*) FILTER (WHERE f.is_new) INTO n FROM fresh f;
    RETURN n;
END $$;
COMMENT ON FUNCTION candidate_insert IS 'Records sightings of URLs that are not relays yet and schedules new ones for validation; returns how many were new. A tombstone stays one.';

CREATE FUNCTION relay_get(p_urls text[], p_vantage text)
RETURNS TABLE (o integer, relay_id integer, network text, state text, reason text, since_at bigint, failures integer, successes integer, alive_at bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    RETURN QUERY
        SELECT u.o::integer, r.id, r.network, s.state, s.reason, s.since_at, coalesce(s.failures, 0), coalesce(s.successes, 0), s.alive_at
        FROM unnest(p_urls) WITH ORDINALITY u(url, o)
        JOIN relay r ON r.url = u.url
        LEFT JOIN vantage v ON v.name = p_vantage
        LEFT JOIN relay_state s ON s.relay_id = r.id AND s.vantage_id = v.id
        ORDER BY u.o;
END $$;
COMMENT ON FUNCTION relay_get IS 'Relays by URL with their liveness from one vantage; absent ones are absent.';

CREATE FUNCTION candidate_get(p_urls text[])
RETURNS TABLE (o integer, network text, failures integer, first_seen_at bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    RETURN QUERY SELECT u.o::integer, c.network, c.failures, c.first_seen_at
        FROM unnest(p_urls) WITH ORDINALITY u(url, o) JOIN candidate c ON c.url = u.url
        WHERE c.tombstoned_at IS NULL ORDER BY u.o;
END $$;
COMMENT ON FUNCTION candidate_get IS 'Candidates by URL that are not given up; absent ones are absent.';

CREATE FUNCTION validate_finish(
    p_jobs text[], p_workers text[], p_attempts integer[], p_urls text[], p_networks text[], p_alive boolean[],
    p_outcomes text[], p_reasons text[], p_next_s double precision[], p_slacks integer[], p_give_up boolean[])
RETURNS SETOF integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    v_now bigint := extract(epoch FROM now())::bigint;
    v_held integer[];
BEGIN
    v_held := ARRAY(SELECT job_fence(p_jobs, p_workers, p_attempts));
    PERFORM relay_insert(array_agg(p_urls[h] ORDER BY p_urls[h]), array_agg(p_networks[h] ORDER BY p_urls[h]), array_agg(v_now))
    FROM unnest(v_held) h WHERE p_alive[h] HAVING count(*) > 0;
    PERFORM schedule_ensure(array_agg(k.kind), array_agg(p_urls[h]), array_agg(p_networks[h]), array_agg(p_slacks[h]))
    FROM unnest(v_held) h CROSS JOIN (VALUES ('monitor'), ('sync')) k(kind) WHERE p_alive[h] HAVING count(*) > 0;
    -- Rows are locked in order first, so that batches that share targets cannot deadlock.
    PERFORM FROM candidate c WHERE c.url IN (SELECT p_urls[h] FROM unnest(v_held) h) ORDER BY c.url FOR UPDATE;
    PERFORM FROM schedule s WHERE s.kind = 'validate' AND s.target IN (SELECT p_urls[h] FROM unnest(v_held) h)
    ORDER BY s.target FOR UPDATE;
    DELETE FROM candidate c USING unnest(v_held) h WHERE p_alive[h] AND c.url = p_urls[h];
    DELETE FROM schedule s USING unnest(v_held) h
    WHERE s.kind = 'validate' AND s.target = p_urls[h] AND (p_alive[h] OR p_give_up[h]);
    UPDATE candidate c
    SET failures = c.failures + 1, last_tried_at = v_now, last_outcome = p_outcomes[h], last_reason = p_reasons[h],
        tombstoned_at = CASE WHEN p_give_up[h] THEN v_now END
    FROM unnest(v_held) h WHERE NOT p_alive[h] AND c.url = p_urls[h];
    UPDATE schedule s
    SET due_at = now() + make_interval(secs => p_next_s[h]), slack_s = p_slacks[h], why = 'candidate back-off: ' || p_reasons[h]
    FROM unnest(v_held) h
    WHERE NOT p_alive[h] AND NOT p_give_up[h] AND s.kind = 'validate' AND s.target = p_urls[h];
    RETURN QUERY SELECT o FROM generate_series(1, cardinality(p_jobs)) o WHERE o <> ALL (v_held);
END $$;
COMMENT ON FUNCTION validate_finish IS 'Results of validations: the living become relays and are scheduled, the others back off or are given up. Returns the positions whose fence was lost; nothing was written for them.';

CREATE FUNCTION metadata_insert(p_ids bytea[], p_types text[], p_data text[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE n integer;
BEGIN
    INSERT INTO metadata (id, type, data)
    SELECT u.id, u.type, u.data::json FROM unnest(p_ids, p_types, p_data) u(id, type, data)
    WHERE NOT EXISTS (SELECT FROM metadata m WHERE m.id = u.id AND m.type = u.type)
    ORDER BY u.id, u.type
    ON CONFLICT (id, type) DO NOTHING;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION metadata_insert IS 'Stores canonical documents; returns how many were new.';

CREATE FUNCTION relay_metadata_insert(p_relay_ids integer[], p_types text[], p_generated_ats bigint[], p_metadata_ids bytea[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE n integer;
BEGIN
    INSERT INTO relay_metadata (relay_id, metadata_type, generated_at, metadata_id)
    SELECT u.relay_id, u.type, least(u.at, extract(epoch FROM now())::bigint), u.id
    FROM unnest(p_relay_ids, p_types, p_generated_ats, p_metadata_ids) u(relay_id, type, at, id)
    WHERE EXISTS (SELECT FROM relay r WHERE r.id = u.relay_id)
      AND EXISTS (SELECT FROM metadata m WHERE m.id = u.id AND m.type = u.type)
      AND u.id IS DISTINCT FROM (
        SELECT x.metadata_id FROM relay_metadata x
        WHERE x.relay_id = u.relay_id AND x.metadata_type = u.type ORDER BY x.generated_at DESC LIMIT 1)
    ORDER BY u.relay_id, u.type, u.at
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION relay_metadata_insert IS 'Records that relays have these documents, only where that is a change; returns how many changed.';

CREATE FUNCTION relay_metadata_insert_cascade(
    p_relay_urls text[], p_relay_networks text[], p_relay_discovered_ats bigint[],
    p_ids bytea[], p_types text[], p_data text[], p_generated_ats bigint[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE relay_ids integer[];
BEGIN
    PERFORM relay_insert(p_relay_urls, p_relay_networks, p_relay_discovered_ats);
    PERFORM metadata_insert(p_ids, p_types, p_data);
    SELECT array_agg(r.id ORDER BY u.o) INTO relay_ids
    FROM unnest(p_relay_urls) WITH ORDINALITY u(url, o) JOIN relay r ON r.url = u.url;
    RETURN relay_metadata_insert(relay_ids, p_types, p_generated_ats, p_ids);
END $$;
COMMENT ON FUNCTION relay_metadata_insert_cascade IS 'Relays, documents and their relation in one call, for imports; returns how many relations changed.';

CREATE FUNCTION orphan_metadata_delete(p_batch_size integer DEFAULT 10000)
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE n integer;
BEGIN
    DELETE FROM metadata m USING (
        SELECT x.id, x.type FROM metadata x
        WHERE NOT EXISTS (SELECT FROM relay_metadata r WHERE r.metadata_id = x.id AND r.metadata_type = x.type)
        ORDER BY x.id LIMIT p_batch_size) d
    WHERE m.id = d.id AND m.type = d.type;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION orphan_metadata_delete IS 'Deletes at most one batch of documents no relay has; returns how many. Call until it returns 0.';

CREATE FUNCTION monitor_finish(
    p_jobs text[], p_workers text[], p_attempts integer[], p_urls text[], p_vantage text,
    p_states text[], p_reasons text[], p_failures integer[], p_successes integer[], p_alive boolean[], p_checked_ats bigint[],
    p_next_s double precision[], p_slacks integer[], p_whys text[],
    c_jobs integer[], c_kinds text[], c_outcomes text[], c_reasons text[], c_opens integer[], c_reads integer[], c_writes integer[],
    c_ids bytea[], c_types text[], c_data text[])
RETURNS SETOF integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    v_held integer[];
    v_vantage smallint;
    v_relays integer[];
BEGIN
    v_held := ARRAY(SELECT job_fence(p_jobs, p_workers, p_attempts));
    SELECT v.id INTO v_vantage FROM vantage v WHERE v.name = p_vantage;
    IF v_vantage IS NULL THEN
        INSERT INTO vantage (name) VALUES (p_vantage) ON CONFLICT (name) DO NOTHING;
        SELECT v.id INTO v_vantage FROM vantage v WHERE v.name = p_vantage;
    END IF;
    v_relays := ARRAY(SELECT r.id FROM unnest(p_urls) WITH ORDINALITY u(url, o) LEFT JOIN relay r ON r.url = u.url ORDER BY u.o);

    INSERT INTO relay_state AS s (relay_id, vantage_id, state, reason, since_at, checked_at, alive_at, failures, successes)
    SELECT v_relays[h], v_vantage, p_states[h], p_reasons[h], p_checked_ats[h], p_checked_ats[h],
           CASE WHEN p_alive[h] THEN p_checked_ats[h] END, p_failures[h], p_successes[h]
    FROM unnest(v_held) h WHERE v_relays[h] IS NOT NULL ORDER BY v_relays[h]
    ON CONFLICT (relay_id, vantage_id) DO UPDATE
        SET state = excluded.state, reason = excluded.reason, checked_at = excluded.checked_at,
            since_at = CASE WHEN s.state = excluded.state THEN s.since_at ELSE excluded.since_at END,
            alive_at = coalesce(excluded.alive_at, s.alive_at),
            failures = excluded.failures, successes = excluded.successes;

    PERFORM metadata_insert(array_agg(d.id), array_agg(d.type), array_agg(d.data))
    FROM unnest(c_jobs, c_ids, c_types, c_data) d(job, id, type, data)
    WHERE d.id IS NOT NULL AND d.job = ANY (v_held) HAVING count(*) > 0;
    PERFORM relay_metadata_insert(array_agg(v_relays[d.job]), array_agg(d.type), array_agg(p_checked_ats[d.job]), array_agg(d.id))
    FROM unnest(c_jobs, c_ids, c_types) d(job, id, type)
    WHERE d.id IS NOT NULL AND d.job = ANY (v_held) HAVING count(*) > 0;

    INSERT INTO relay_check (checked_at, relay_id, vantage_id, kind, outcome, reason, open_ms, read_ms, write_ms, metadata_id)
    SELECT p_checked_ats[c.job], v_relays[c.job], v_vantage, c.kind, c.outcome, c.reason, c.open_ms, c.read_ms, c.write_ms, c.id
    FROM unnest(c_jobs, c_kinds, c_outcomes, c_reasons, c_opens, c_reads, c_writes, c_ids)
         c(job, kind, outcome, reason, open_ms, read_ms, write_ms, id)
    WHERE c.job = ANY (v_held) AND v_relays[c.job] IS NOT NULL
    ORDER BY 2, 4
    ON CONFLICT DO NOTHING;
    INSERT INTO relay_check_latest AS l (relay_id, kind, vantage_id, checked_at, outcome, reason, open_ms, read_ms, write_ms, metadata_id, confirmed_at)
    SELECT v_relays[c.job], c.kind, v_vantage, p_checked_ats[c.job], c.outcome, c.reason, c.open_ms, c.read_ms, c.write_ms, c.id,
           CASE WHEN c.id IS NOT NULL THEN p_checked_ats[c.job] END
    FROM unnest(c_jobs, c_kinds, c_outcomes, c_reasons, c_opens, c_reads, c_writes, c_ids)
         c(job, kind, outcome, reason, open_ms, read_ms, write_ms, id)
    WHERE c.job = ANY (v_held) AND v_relays[c.job] IS NOT NULL
    ORDER BY 1, 2
    ON CONFLICT (relay_id, kind, vantage_id) DO UPDATE
        SET checked_at = excluded.checked_at, outcome = excluded.outcome, reason = excluded.reason, open_ms = excluded.open_ms,
            read_ms = excluded.read_ms, write_ms = excluded.write_ms,
            metadata_id = coalesce(excluded.metadata_id, l.metadata_id), confirmed_at = coalesce(excluded.confirmed_at, l.confirmed_at);

    PERFORM FROM schedule s WHERE s.kind = 'monitor' AND s.target IN (SELECT p_urls[h] FROM unnest(v_held) h)
    ORDER BY s.target FOR UPDATE;
    UPDATE schedule s SET due_at = now() + make_interval(secs => p_next_s[h]), slack_s = p_slacks[h], why = p_whys[h]
    FROM unnest(v_held) h WHERE s.kind = 'monitor' AND s.target = p_urls[h];
    RETURN QUERY SELECT o FROM generate_series(1, cardinality(p_jobs)) o WHERE o <> ALL (v_held);
END $$;
COMMENT ON FUNCTION monitor_finish IS 'Results of monitor jobs: state, check series, documents where they changed, next due. c_* are the checks, c_jobs the 1-based job each belongs to. Returns the positions whose fence was lost; nothing was written for them.';

CREATE FUNCTION sync_store(
    p_job text, p_worker text, p_attempt integer, p_relay_id integer, p_seen_at bigint,
    p_ids bytea[], p_keys bigint[],
    n_ids bytea[], n_keys bigint[], n_created_ats bigint[], n_pubkeys bytea[], n_kinds integer[],
    n_tags bytea[], n_contents bytea[], n_sigs bytea[], n_d_tags bytea[], n_tag_hashes text[],
    p_class text, v_sinces bigint[], v_untils bigint[], v_grades text[], v_reasons text[], v_observed_ats bigint[],
    p_next_s double precision, p_slack integer, p_why text)
RETURNS TABLE (held boolean, new_events integer, new_observations integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE n integer := cardinality(p_ids);
BEGIN
    held := EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt]));
    new_events := 0;
    new_observations := 0;
    IF held THEN
        IF cardinality(n_ids) > 0 THEN
            new_events := event_insert(n_ids, n_keys, n_created_ats, n_pubkeys, n_kinds, n_tags, n_contents, n_sigs, n_d_tags, n_tag_hashes);
        END IF;
        IF n > 0 THEN
            new_observations := event_relay_insert(p_ids, p_keys, array_fill(p_relay_id, ARRAY[n]),
                array_fill(p_seen_at, ARRAY[n]), array_fill(0::smallint, ARRAY[n]));
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
COMMENT ON FUNCTION sync_store IS 'One batch of a sync job in one fenced transaction: new events (n_*), observations of all delivered ones (p_ids, p_keys), the coverage they prove (null = unchanged), and the next due time (null = unchanged).';

CREATE FUNCTION discover_take(p_limit integer)
RETURNS TABLE (event_key bigint, kind integer, tags bytea, content bytea)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
BEGIN
    -- Only contact lists (kind 3) are read for their content; and at most 32 MiB at once, but always one event.
    RETURN QUERY
        SELECT t.event_key, t.kind, t.tags, t.content FROM (
            SELECT u.event_key, e.kind, e.tags, e.content,
                   sum(coalesce(e.bytes, 0)) OVER (ORDER BY u.event_key ROWS UNBOUNDED PRECEDING) AS running,
                   row_number() OVER (ORDER BY u.event_key) AS position
            FROM (SELECT x.event_key FROM event_unmined x ORDER BY x.event_key LIMIT p_limit) u
            LEFT JOIN LATERAL (
                SELECT y.kind, y.tags, CASE WHEN y.kind = 3 THEN y.content END AS content,
                       octet_length(y.tags) + CASE WHEN y.kind = 3 THEN octet_length(y.content) ELSE 0 END AS bytes
                FROM event y WHERE y.event_key = u.event_key AND y.fate = 0 OFFSET 0) e ON true) t
        WHERE t.running <= 33554432 OR t.position = 1
        ORDER BY t.event_key;
END $$;
COMMENT ON FUNCTION discover_take IS 'Archived events nobody has mined yet, in key order, at most 32 MiB of them; null body where the event has gone since, null content where it is not read.';

CREATE FUNCTION discover_store(
    p_job text, p_worker text, p_attempt integer, p_urls text[], p_networks text[], p_sources text[], p_mined bigint[],
    p_next_s double precision, p_slack integer, p_why text)
RETURNS TABLE (held boolean, new_candidates integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    held := EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt]));
    new_candidates := 0;
    IF held THEN
        IF cardinality(p_urls) > 0 THEN new_candidates := candidate_insert(p_urls, p_networks, p_sources); END IF;
        DELETE FROM event_unmined m WHERE m.event_key = ANY (p_mined);
        IF p_next_s IS NOT NULL THEN
            UPDATE schedule s SET due_at = now() + make_interval(secs => p_next_s), slack_s = p_slack, why = p_why
            FROM apalis.jobs j WHERE j.id = p_job AND s.kind = j.kind AND s.target = j.target;
        END IF;
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION discover_store IS 'Result of one discover batch: candidates found, events mined, next due (null = unchanged), in one fenced transaction.';

CREATE FUNCTION schedule_next(p_job text, p_worker text, p_attempt integer, p_next_s double precision, p_slack integer, p_why text)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt])) THEN RETURN false; END IF;
    UPDATE schedule s SET due_at = now() + make_interval(secs => p_next_s), slack_s = p_slack, why = p_why
    FROM apalis.jobs j WHERE j.id = p_job AND s.kind = j.kind AND s.target = j.target;
    RETURN true;
END $$;
COMMENT ON FUNCTION schedule_next IS 'Sets when the target of a job one holds is next due; false when the fence was lost.';

CREATE FUNCTION schedule_reconcile()
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    n integer;
    m integer;
BEGIN
    INSERT INTO schedule (kind, target, network, due_at, slack_s, why)
    SELECT k.kind, r.url, r.network, now(), 60, 'new'
    FROM relay r CROSS JOIN (VALUES ('monitor'), ('sync')) k(kind)
    WHERE NOT EXISTS (SELECT FROM schedule s WHERE s.kind = k.kind AND s.target = r.url)
    ORDER BY k.kind, r.url
    ON CONFLICT (kind, target) DO NOTHING;
    GET DIAGNOSTICS n = ROW_COUNT;
    DELETE FROM schedule s WHERE s.kind = 'validate'
        AND NOT EXISTS (SELECT FROM candidate c WHERE c.url = s.target AND c.tombstoned_at IS NULL);
    GET DIAGNOSTICS m = ROW_COUNT;
    RETURN n + m;
END $$;
COMMENT ON FUNCTION schedule_reconcile IS 'Schedules relays that no validation scheduled (imports), and drops validations of what is no candidate any more; returns how many rows that changed.';

CREATE FUNCTION service_state_upsert(p_services text[], p_types text[], p_keys text[], p_values text[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE n integer;
BEGIN
    INSERT INTO service_state (service_name, state_type, state_key, state_value)
    SELECT DISTINCT ON (u.service, u.type, u.key) u.service, u.type, u.key, u.value::jsonb
    FROM unnest(p_services, p_types, p_keys, p_values) WITH ORDINALITY u(service, type, key, value, o)
    ORDER BY u.service, u.type, u.key, u.o DESC
    ON CONFLICT (service_name, state_type, state_key) DO UPDATE SET state_value = excluded.state_value;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION service_state_upsert IS 'Sets named facts, whole values; the last of equal keys wins. Returns how many were written.';

CREATE FUNCTION service_state_get(p_service text, p_type text, p_key text DEFAULT NULL)
RETURNS TABLE (state_key text, state_value text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    RETURN QUERY SELECT s.state_key, s.state_value::text FROM service_state s
    WHERE s.service_name = p_service AND s.state_type = p_type AND (p_key IS NULL OR s.state_key = p_key)
    ORDER BY s.state_key;
END $$;
COMMENT ON FUNCTION service_state_get IS 'Facts of one service and type, one key or all, ordered by key.';

CREATE FUNCTION service_state_delete(p_services text[], p_types text[], p_keys text[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE n integer;
BEGIN
    DELETE FROM service_state s USING unnest(p_services, p_types, p_keys) u(service, type, key)
    WHERE s.service_name = u.service AND s.state_type = u.type AND s.state_key = u.key;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION service_state_delete IS 'Deletes named facts; returns how many.';

CREATE FUNCTION fleet_stats()
RETURNS TABLE (relays bigint, alive bigint, suspect bigint, down bigint, candidates bigint, events bigint, observations bigint, workers bigint, database_bytes bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    SELECT count(*) INTO relays FROM relay;
    -- A relay counts once: alive if any vantage sees it alive, down only if every one calls it down.
    SELECT count(*) FILTER (WHERE s.best = 0), count(*) FILTER (WHERE s.best = 1), count(*) FILTER (WHERE s.best = 2)
    INTO alive, suspect, down
    FROM (SELECT min(CASE x.state WHEN 'alive' THEN 0 WHEN 'suspect' THEN 1 ELSE 2 END) AS best FROM relay_state x GROUP BY x.relay_id) s;
    SELECT count(*) INTO candidates FROM candidate c WHERE c.tombstoned_at IS NULL;
    -- Estimates kept by the server: exact counts would read the archive.
    SELECT coalesce(sum(st.n_live_tup) FILTER (WHERE i.inhparent = 'public.event'::regclass), 0),
           coalesce(sum(st.n_live_tup) FILTER (WHERE i.inhparent = 'public.event_relay'::regclass), 0)
    INTO events, observations
    FROM pg_inherits i JOIN pg_stat_user_tables st ON st.relid = i.inhrelid;
    SELECT count(*) INTO workers FROM apalis.workers w WHERE w.lease_until > now();
    database_bytes := pg_database_size(current_database());
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION fleet_stats IS 'The observatory in one row, for progress lines and gauges. events and observations are the server''s running estimates.';
