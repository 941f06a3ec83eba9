-- What fresh eyes found: time that was counted nowhere, a task that span, moments that two clocks see in two ways, a mark of
-- another server, and a policy that was not the stricter one.

CREATE OR REPLACE FUNCTION monitor_finish(
    p_jobs text[], p_workers text[], p_attempts integer[], p_urls text[], p_vantage text,
    p_states text[], p_reasons text[], p_failures integer[], p_successes integer[], p_alive boolean[], p_checked_ats bigint[],
    p_next_s double precision[], p_slacks integer[], p_whys text[],
    c_jobs integer[], c_kinds text[], c_outcomes text[], c_reasons text[], c_opens integer[], c_reads integer[], c_writes integer[],
    c_ids bytea[], c_types text[], c_data text[],
    p_stands integer[] DEFAULT NULL, p_overalls text[] DEFAULT NULL, p_overall_reasons text[] DEFAULT NULL, p_counted boolean[] DEFAULT NULL,
    c_statuses integer[] DEFAULT NULL)
RETURNS SETOF integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
DECLARE
    v_held integer[];
    v_vantage smallint;
    v_relays integer[];
    v_new integer[];
    v_told integer;
    v_seen integer[];
    v_up integer[];
BEGIN
    v_held := ARRAY(SELECT job_fence(p_jobs, p_workers, p_attempts));
    SELECT v.id INTO v_vantage FROM vantage v WHERE v.name = p_vantage;
    IF v_vantage IS NULL THEN
        INSERT INTO vantage (name) VALUES (p_vantage) ON CONFLICT (name) DO NOTHING;
        SELECT v.id INTO v_vantage FROM vantage v WHERE v.name = p_vantage;
    END IF;
    v_relays := ARRAY(SELECT r.id FROM unnest(p_urls) WITH ORDINALITY u(url, o) LEFT JOIN relay r ON r.url = u.url ORDER BY u.o);

    -- For how long the look before this one stood, unless the relay had refused us; and whether it was a good one.
    SELECT array_agg(CASE WHEN l.up OR l.reason NOT IN ('rate_limited', 'auth_required', 'blocked') THEN l.stood ELSE 0 END ORDER BY l.h),
           array_agg(CASE WHEN l.up THEN l.stood ELSE 0 END ORDER BY l.h) INTO v_seen, v_up
    FROM (SELECT h, s.reason, s.alive_at IS NOT DISTINCT FROM s.checked_at AS up,
                 greatest(least(p_checked_ats[h], s.stands_until) - s.checked_at, 0)::integer AS stood
          FROM generate_series(1, cardinality(p_jobs)) h LEFT JOIN relay_state s ON s.relay_id = v_relays[h] AND s.vantage_id = v_vantage) l;

    INSERT INTO relay_state AS s (relay_id, vantage_id, state, reason, since_at, checked_at, alive_at, failures, successes, stands_until)
    SELECT v_relays[h], v_vantage, p_states[h], p_reasons[h], p_checked_ats[h], p_checked_ats[h],
           CASE WHEN p_alive[h] THEN p_checked_ats[h] END, p_failures[h], p_successes[h], p_checked_ats[h] + coalesce(p_stands[h], 10800)
    FROM unnest(v_held) h WHERE v_relays[h] IS NOT NULL ORDER BY v_relays[h]
    ON CONFLICT (relay_id, vantage_id) DO UPDATE
        SET state = excluded.state, reason = excluded.reason, checked_at = excluded.checked_at,
            since_at = CASE WHEN s.state = excluded.state THEN s.since_at ELSE excluded.since_at END,
            alive_at = coalesce(excluded.alive_at, s.alive_at),
            failures = excluded.failures, successes = excluded.successes, stands_until = excluded.stands_until;

    -- Documents other than those this vantage saw last: what is unchanged is not looked up anywhere else, and a relay
    -- that tells two vantages different things does not change with every look.
    v_new := ARRAY(
        SELECT c.o FROM unnest(c_jobs, c_kinds, c_ids) WITH ORDINALITY c(job, kind, id, o)
        LEFT JOIN relay_check_latest l ON l.relay_id = v_relays[c.job] AND l.kind = c.kind AND l.vantage_id = v_vantage
        WHERE c.id IS NOT NULL AND c.job = ANY (v_held) AND c.id IS DISTINCT FROM l.metadata_id);
    IF cardinality(v_new) > 0 THEN
        PERFORM metadata_insert(array_agg(c_ids[n]), array_agg(c_types[n]), array_agg(c_data[n])) FROM unnest(v_new) n;
        PERFORM relay_metadata_insert(array_agg(v_relays[c_jobs[n]]), array_agg(c_types[n]), array_agg(p_checked_ats[c_jobs[n]]), array_agg(c_ids[n]))
        FROM unnest(v_new) n;
    END IF;

    INSERT INTO relay_check (checked_at, relay_id, vantage_id, kind, outcome, reason, open_ms, read_ms, write_ms, metadata_id, status)
    SELECT p_checked_ats[c.job], v_relays[c.job], v_vantage, c.kind, c.outcome, c.reason, c.open_ms, c.read_ms, c.write_ms,
           CASE WHEN c.o = ANY (v_new) THEN c.id END, c_statuses[c.o]
    FROM unnest(c_jobs, c_kinds, c_outcomes, c_reasons, c_opens, c_reads, c_writes, c_ids) WITH ORDINALITY
         c(job, kind, outcome, reason, open_ms, read_ms, write_ms, id, o)
    WHERE c.job = ANY (v_held) AND v_relays[c.job] IS NOT NULL
    ORDER BY 2, 4
    ON CONFLICT DO NOTHING;
    INSERT INTO relay_check_latest AS l (relay_id, kind, vantage_id, checked_at, outcome, reason, open_ms, read_ms, write_ms, metadata_id, confirmed_at, status)
    SELECT v_relays[c.job], c.kind, v_vantage, p_checked_ats[c.job], c.outcome, c.reason, c.open_ms, c.read_ms, c.write_ms, c.id,
           CASE WHEN c.id IS NOT NULL THEN p_checked_ats[c.job] END, c_statuses[c.o]
    FROM unnest(c_jobs, c_kinds, c_outcomes, c_reasons, c_opens, c_reads, c_writes, c_ids) WITH ORDINALITY
         c(job, kind, outcome, reason, open_ms, read_ms, write_ms, id, o)
    WHERE c.job = ANY (v_held) AND v_relays[c.job] IS NOT NULL
    ORDER BY 1, 2
    ON CONFLICT (relay_id, kind, vantage_id) DO UPDATE
        SET checked_at = excluded.checked_at, outcome = excluded.outcome, reason = excluded.reason, open_ms = excluded.open_ms,
            read_ms = excluded.read_ms, write_ms = excluded.write_ms, status = excluded.status,
            metadata_id = coalesce(excluded.metadata_id, l.metadata_id), confirmed_at = coalesce(excluded.confirmed_at, l.confirmed_at);

    -- A look that may have failed because of us, or that the relay refused us, says nothing about its uptime; but it ends the
    -- time for which the look before it stood.
    INSERT INTO relay_uptime AS u (relay_id, vantage_id, at, checks, up, refused, open_hist, read_hist, write_hist, seen_s, up_s)
    SELECT v_relays[l.h], v_vantage, p_checked_ats[l.h] - p_checked_ats[l.h] % 3600, l.counted::integer, (l.counted AND p_alive[l.h])::integer,
           coalesce(l.counted AND p_alive[l.h] AND c.outcome = 'refused', false)::integer,
           histogram_of(c.open_ms), histogram_of(c.read_ms), histogram_of(c.write_ms), coalesce(v_seen[l.h], 0), coalesce(v_up[l.h], 0)
    FROM (SELECT h, coalesce(p_counted[h], p_alive[h] OR p_failures[h] > 0) AS counted FROM unnest(v_held) h) l
    LEFT JOIN unnest(c_jobs, c_kinds, c_outcomes, c_opens, c_reads, c_writes) c(job, kind, outcome, open_ms, read_ms, write_ms)
        ON l.counted AND c.job = l.h AND c.kind = 'rtt'
    WHERE v_relays[l.h] IS NOT NULL
    ORDER BY 1
    ON CONFLICT (relay_id, vantage_id, at) DO UPDATE
        SET checks = u.checks + excluded.checks, up = u.up + excluded.up, refused = u.refused + excluded.refused,
            open_hist = u.open_hist || excluded.open_hist, read_hist = u.read_hist || excluded.read_hist, write_hist = u.write_hist || excluded.write_hist,
            seen_s = coalesce(u.seen_s, 0) + excluded.seen_s, up_s = coalesce(u.up_s, 0) + excluded.up_s;

    WITH judged AS (
        SELECT v_relays[h] AS relay_id, p_overalls[h] AS state, p_overall_reasons[h] AS reason, p_checked_ats[h] AS at,
               o.state AS before, o.reason AS reason_before, o.settled
        FROM unnest(v_held) h LEFT JOIN relay_overall o ON o.relay_id = v_relays[h]
        WHERE v_relays[h] IS NOT NULL AND p_overalls[h] IS NOT NULL
    ), judgement AS (
        INSERT INTO relay_overall AS o (relay_id, state, reason, since_at, settled)
        SELECT j.relay_id, j.state, j.reason, j.at, nullif(j.state, 'suspect') FROM judged j
        WHERE (j.before, j.reason_before) IS DISTINCT FROM (j.state, j.reason) ORDER BY j.relay_id
        ON CONFLICT (relay_id) DO UPDATE
            SET state = excluded.state, reason = excluded.reason, settled = coalesce(excluded.settled, o.settled),
                since_at = CASE WHEN o.state = excluded.state THEN o.since_at ELSE excluded.since_at END
    ), alert AS (
        INSERT INTO relay_alert (relay_id, vantage_id, at, before, after, reason, settles, delivery, due_at)
        SELECT j.relay_id, v_vantage, j.at, j.before, j.state, j.reason, j.state <> 'suspect' AND j.settled IS DISTINCT FROM j.state,
               CASE WHEN t.wanted THEN 'pending' ELSE 'none' END, CASE WHEN t.wanted THEN now() END
        FROM judged j CROSS JOIN LATERAL (
            -- A first judgement is no change; and nobody is told where nobody listens.
            SELECT j.before IS NOT NULL AND EXISTS (SELECT FROM schedule s WHERE s.kind = 'monitor' AND s.target = 'alerts') AS wanted) t
        WHERE j.before IS DISTINCT FROM j.state ORDER BY j.relay_id
        RETURNING due_at
    )
    SELECT count(*) FILTER (WHERE a.due_at IS NOT NULL) INTO v_told FROM alert a;

    PERFORM FROM schedule s WHERE s.kind = 'monitor' AND s.target IN (SELECT p_urls[h] FROM unnest(v_held) h)
    ORDER BY s.target FOR UPDATE;
    UPDATE schedule s SET due_at = now() + make_interval(secs => p_next_s[h]), slack_s = p_slacks[h], why = p_whys[h]
    FROM unnest(v_held) h WHERE s.kind = 'monitor' AND s.target = p_urls[h];
    IF v_told > 0 THEN
        -- Last, since everybody meets in this row; and not at all when it is due anyhow.
        UPDATE schedule s SET due_at = now() WHERE s.kind = 'monitor' AND s.target = 'alerts' AND s.due_at > now();
    END IF;
    RETURN QUERY SELECT o FROM generate_series(1, cardinality(p_jobs)) o WHERE o <> ALL (v_held);
END $$;

CREATE OR REPLACE FUNCTION alert_settle(
    p_job text, p_worker text, p_attempt integer, p_ids bigint[], p_deliveries text[], p_delays_s double precision[], p_answers text[],
    p_next_s double precision, p_slack integer, p_why text)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt])) THEN RETURN false; END IF;
    PERFORM FROM relay_alert a WHERE a.id = ANY (p_ids) ORDER BY a.id FOR UPDATE;
    UPDATE relay_alert a
    SET delivery = u.delivery, answer = u.answer, tries = a.tries + (u.delivery = 'pending')::integer,
        due_at = CASE u.delivery WHEN 'pending' THEN now() + make_interval(secs => u.delay_s) END
    FROM unnest(p_ids, p_deliveries, p_delays_s, p_answers) u(id, delivery, delay_s, answer)
    WHERE a.id = u.id AND a.due_at IS NOT NULL;
    IF p_next_s IS NOT NULL THEN
        -- Nothing is delivered before what failed has its next try (alert_take): whatever else is due waits for it.
        UPDATE schedule s SET due_at = coalesce((SELECT coalesce(max(a.due_at) FILTER (WHERE a.due_at > now()), min(a.due_at))
                                                 FROM relay_alert a WHERE a.due_at IS NOT NULL), now() + make_interval(secs => p_next_s)),
                              slack_s = p_slack, why = p_why
        WHERE s.kind = 'monitor' AND s.target = 'alerts';
    END IF;
    RETURN true;
END $$;

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
        -- Nor must one that is behind say that it was seen before this job began, which an export did not wait for.
        p_seen_at := greatest(p_seen_at, (SELECT floor(extract(epoch FROM j.lock_at))::bigint FROM apalis.jobs j WHERE j.id = p_job));
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
        -- Nor must one that is behind say that it was seen before this job began, which an export did not wait for.
        p_at := greatest(p_at, (SELECT floor(extract(epoch FROM j.lock_at))::bigint FROM apalis.jobs j WHERE j.id = p_job));
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

CREATE OR REPLACE FUNCTION view_watermark(p_view text, p_since text) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    -- Transaction ids as 64 bits; the row carries the lower 32. Our own may lie beyond the end of the snapshot, but not far.
    v_most bigint := pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 1048576;
    v_seen bigint := coalesce(split_part(p_since, ' ', 1)::bigint, 0);
    v_rows text;
    v_new boolean;
BEGIN
    IF p_view IN ('relay_software_counts', 'supported_nip_counts') THEN
        RETURN nullif('0 ' || md5(coalesce((
            SELECT string_agg(l.relay_url || encode(l.metadata_id, 'hex'), ' ' ORDER BY l.relay_url)
            FROM relay_metadata_latest l WHERE l.metadata_type = 'nip11_info'), '')), p_since);
    END IF;
    -- A mark from the future is another server's: its rows came here in a dump.
    IF v_seen > v_most - 1048576 THEN v_seen := 0; END IF;
    -- A row is new if its transaction may have been running at the latest look; a row that went shows in the number.
    SELECT concat_ws('/', string_agg(x.n::text, '/' ORDER BY x.o),
                     (SELECT count(*) FROM pg_inherits i WHERE i.inhparent = 'public.relay_check'::regclass)), coalesce(bool_or(x.newest >= v_seen), false)
    INTO v_rows, v_new FROM (
        SELECT 1 AS o, count(*) AS n, max(v_most - ((v_most - y.x) & 4294967295)) AS newest
        FROM (SELECT r.xmin::text::bigint AS x FROM relay r) y
        UNION ALL
        SELECT 2, count(*), max(v_most - ((v_most - y.x) & 4294967295))
        FROM (SELECT l.xmin::text::bigint AS x FROM relay_check_latest l) y
        UNION ALL
        SELECT 3, count(*), max(v_most - ((v_most - y.x) & 4294967295))
        FROM (SELECT m.xmin::text::bigint AS x FROM relay_metadata m WHERE p_view = 'relay_metadata_latest') y) x;
    IF NOT v_new AND split_part(p_since, ' ', 2) = v_rows THEN RETURN NULL; END IF;
    -- This may be the old mark again, while an old transaction is open.
    RETURN pg_snapshot_xmin(pg_current_snapshot())::text || ' ' || v_rows;
END $$;

CREATE OR REPLACE FUNCTION retention_put(p_whats text[], p_froms integer[], p_tos integer[], p_urls text[], p_days integer[], p_again boolean, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    n integer;
    m integer;
BEGIN
    -- Of two for the same thing the stricter one holds, also where the other is in force.
    DELETE FROM retention_policy r WHERE r.days IS DISTINCT FROM (
        SELECT min(u.days) FROM unnest(p_whats, p_froms, p_tos, p_urls, p_days) u(what, a, b, url, days)
        WHERE r.name = retention_name(u.what, u.a, u.b, u.url));
    GET DIAGNOSTICS n = ROW_COUNT;
    INSERT INTO retention_policy AS r (name, what, kind_from, kind_to, relay_url, days, set_at, again_at)
    SELECT DISTINCT ON (1) retention_name(u.what, u.a, u.b, u.url), u.what, u.a, u.b, u.url, u.days, p_now, p_now + interval '15 minutes'
    FROM unnest(p_whats, p_froms, p_tos, p_urls, p_days) u(what, a, b, url, days)
    ORDER BY 1, u.days
    ON CONFLICT (name) DO UPDATE SET cursor_key = -1 WHERE p_again AND r.cursor_key > -1;
    GET DIAGNOSTICS m = ROW_COUNT;
    RETURN n + m;
END $$;

-- Availability: refused time is not observed, nothing is before the first judgement, and no clock is ahead of the reader's.

CREATE OR REPLACE FUNCTION relay_observed(p_relay_id integer, p_since bigint, p_now bigint) RETURNS int8multirange
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT coalesce(range_agg(x.stretch), '{}'::int8multirange)
    -- And an eighth: looks are a tenth apart from their interval, and an hour does not say when in it they were.
    FROM (SELECT int8range(x.until_at - x.seen_s * 9 / 8, x.until_at) AS stretch
          FROM (SELECT u.at + 3600 AS until_at, coalesce(u.seen_s, 86400) AS seen_s
                FROM public.relay_uptime u WHERE u.relay_id = p_relay_id AND u.at > p_since
                UNION ALL
                SELECT d.at + 86400, coalesce(d.seen_s, 86400)
                FROM public.relay_uptime_day d WHERE d.relay_id = p_relay_id AND d.at > p_since) x
          UNION ALL
          SELECT int8range(s.checked_at, greatest(least(s.stands_until, p_now), s.checked_at))
          FROM public.relay_state s
          WHERE s.relay_id = p_relay_id AND (s.alive_at = s.checked_at OR s.reason NOT IN ('rate_limited', 'auth_required', 'blocked'))) x
$$;

CREATE OR REPLACE VIEW relay_reliability_30d AS
SELECT r.url AS relay_url, t.observed_s, t.down_s,
       CASE WHEN t.observed_s >= 86400 THEN round(100.0 * (t.observed_s - t.down_s) / t.observed_s, 3) END AS availability_pct,
       t.failures, t.repairs, t.flaps, (t.observed_s - t.down_s) / nullif(t.failures, 0) AS mtbf_s, t.repair_s / nullif(t.repairs, 0) AS mttr_s
FROM public.relay r
CROSS JOIN (SELECT extract(epoch FROM now())::bigint AS now) n
CROSS JOIN LATERAL (
    SELECT o.seen, o.seen * int8multirange(int8range(n.now - 30 * 86400, n.now)) AS lately
    FROM (SELECT public.relay_observed(r.id, n.now - 60 * 86400, n.now) AS seen) o) o
CROSS JOIN LATERAL (
    -- Time in which nobody looked is neither good nor bad.
    SELECT public.ranges_s(o.lately * int8multirange(int8range(coalesce(min(p.at), n.now), n.now))) AS observed_s,
           public.ranges_s(o.lately * coalesce(range_agg(int8range(p.at, coalesce(p.ended_at, n.now))) FILTER (WHERE p.after = 'down'), '{}')) AS down_s,
           count(*) FILTER (WHERE p.after = 'down' AND p.began_at IS NOT NULL AND p.at >= p.since) AS failures,
           count(*) FILTER (WHERE p.after = 'alive' AND p.began_at IS NOT NULL AND p.at >= p.since) AS repairs,
           count(*) FILTER (WHERE p.began_at IS NOT NULL AND p.at >= p.since) AS flaps,
           public.ranges_s(o.seen * coalesce(range_agg(int8range(p.began_at, p.at)) FILTER (WHERE p.after = 'alive' AND p.began_at IS NOT NULL AND p.at >= p.since), '{}')) AS repair_s
    FROM (SELECT a.at, a.after, lag(a.at) OVER w AS began_at, lead(a.at) OVER w AS ended_at, n.now - 30 * 86400 AS since
          -- A worker's clock may be ahead of ours, and ours is that of the reader's transaction.
          FROM (SELECT least(c.at, n.now) AS at, c.id, c.after FROM public.relay_alert c WHERE c.relay_id = r.id AND c.settles) a
          WINDOW w AS (ORDER BY a.at, a.id)) p) t;

CREATE OR REPLACE VIEW relay_uptime_30d AS
SELECT r.url AS relay_url, v.name AS vantage, u.checks, u.up, u.refused,
       CASE WHEN u.checks >= 10 THEN round(100.0 * t.up_s / nullif(t.seen_s, 0), 3) END AS availability_pct,
       CASE WHEN u.checks >= 10 THEN round(100.0 * t.up_s / nullif(greatest(t.seen_s, t.span_s), 0), 3) END AS availability_low_pct,
       o.p[1] AS open_n, o.p[2] AS open_p50_ms, o.p[3] AS open_p95_ms, o.p[4] AS open_p99_ms,
       e.p[1] AS read_n, e.p[2] AS read_p50_ms, e.p[3] AS read_p95_ms, e.p[4] AS read_p99_ms,
       w.p[1] AS write_n, w.p[2] AS write_p50_ms, w.p[3] AS write_p95_ms, w.p[4] AS write_p99_ms
FROM public.relay r
CROSS JOIN LATERAL (
    SELECT d.vantage_id, sum(d.seen_s) AS seen_s, sum(d.up_s) AS up_s, min(d.at) AS first_at, sum(d.checks) AS checks, sum(d.up) AS up, sum(d.refused) AS refused,
           string_agg(d.open_hist, ''::bytea) AS open_hist, string_agg(d.read_hist, ''::bytea) AS read_hist, string_agg(d.write_hist, ''::bytea) AS write_hist
    FROM public.relay_uptime_daily d
    WHERE d.relay_id = r.id AND d.at > extract(epoch FROM now()) - 30 * 86400
    GROUP BY d.vantage_id) u
JOIN public.vantage v ON v.id = u.vantage_id
LEFT JOIN public.relay_state s ON s.relay_id = r.id AND s.vantage_id = u.vantage_id
CROSS JOIN LATERAL (
    -- Who looked at it before these days is asked about all of them.
    SELECT CASE WHEN EXISTS (SELECT FROM public.relay_uptime_day e WHERE e.relay_id = r.id AND e.vantage_id = u.vantage_id
                               AND e.at <= extract(epoch FROM now()) - 30 * 86400)
                THEN extract(epoch FROM now())::bigint - 30 * 86400 ELSE u.first_at END AS first_at) f
CROSS JOIN LATERAL (
    -- The latest look stands until now, or its opinion lapses.
    SELECT u.seen_s + l.left_s AS seen_s, u.up_s + CASE WHEN s.alive_at = s.checked_at THEN l.left_s ELSE 0 END AS up_s,
           extract(epoch FROM now())::bigint - greatest(f.first_at, r.discovered_at) AS span_s
    FROM (SELECT CASE WHEN s.alive_at = s.checked_at OR s.reason NOT IN ('rate_limited', 'auth_required', 'blocked')
                      THEN greatest(least(extract(epoch FROM now())::bigint, s.stands_until) - s.checked_at, 0) ELSE 0 END AS left_s) l) t
CROSS JOIN LATERAL (SELECT public.histogram_percentiles(u.open_hist) AS p) o
CROSS JOIN LATERAL (SELECT public.histogram_percentiles(u.read_hist) AS p) e
CROSS JOIN LATERAL (SELECT public.histogram_percentiles(u.write_hist) AS p) w;

-- Twelve digits: a second of seventy years shows, and what is not all of it is not called so.

CREATE OR REPLACE VIEW relay_coverage_share AS
SELECT r.url AS relay_url, c.class,
       round(coalesce(sum(least(c.until_at, n.now) - c.since_at + 1) FILTER (WHERE c.grade IN ('walked', 'finished', 'reconciled') AND c.since_at <= n.now), 0)::numeric
             / nullif(max(least(c.until_at, n.now)) FILTER (WHERE c.since_at <= n.now) - min(c.since_at) + 1, 0), 12) AS proved_share,
       min(c.since_at) AS since_at, max(least(c.until_at, n.now)) AS until_at,
       coalesce(sum(least(c.until_at, n.now) - c.since_at + 1) FILTER (WHERE c.grade = 'partial' AND c.since_at <= n.now), 0)::bigint AS partial_seconds,
       min(c.observed_at) AS observed_at
FROM public.coverage c
JOIN public.relay r ON r.id = c.relay_id
CROSS JOIN (SELECT extract(epoch FROM now())::bigint AS now) n
GROUP BY r.url, c.class;

CREATE OR REPLACE VIEW relay_coverage_month AS
SELECT r.url AS relay_url, c.class, m.month::date AS month, c.grade,
       sum(least(c.until_at, m.hi) - greatest(c.since_at, m.lo) + 1)::bigint AS seconds,
       round(sum(least(c.until_at, m.hi) - greatest(c.since_at, m.lo) + 1)::numeric / (m.hi - m.lo + 1), 12) AS share
FROM public.coverage c
JOIN public.relay r ON r.id = c.relay_id
CROSS JOIN LATERAL (
    SELECT s AS month, extract(epoch FROM s)::bigint AS lo,
           least(extract(epoch FROM s + interval '1 month')::bigint - 1, extract(epoch FROM now())::bigint) AS hi
    -- Nothing on Nostr is older than November 2020; what is older counts into no month, nor does what is ahead of now.
    FROM generate_series(
        date_trunc('month', to_timestamp(greatest(least(c.since_at, extract(epoch FROM now())::bigint), 1604188800)) AT TIME ZONE 'UTC'),
        to_timestamp(greatest(least(c.until_at, extract(epoch FROM now())::bigint), 0)) AT TIME ZONE 'UTC', interval '1 month') s) m
WHERE c.until_at >= 1604188800 AND c.since_at <= extract(epoch FROM now())::bigint
GROUP BY 1, 2, 3, 4, m.lo, m.hi;

COMMENT ON VIEW relay_demoted IS 'Relays that look fake since: three failed looks or more, at the last of which a WebSocket opened and Nostr was not spoken, and no vantage sees them alive. What is known of them stays; the next good look ends it.';
