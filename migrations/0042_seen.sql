-- The truth of what the census says: the status by which a relay refuses us, time that somebody looked at, monitors of
-- others that are worth their place, and whose fault a refusal is.

ALTER TABLE relay_check ADD COLUMN status smallint;
COMMENT ON COLUMN relay_check.status IS 'HTTP status by which the check failed: of the upgrade (rtt), of the document (nip11); else null.';
ALTER TABLE relay_check_latest ADD COLUMN status smallint;
COMMENT ON COLUMN relay_check_latest.status IS 'HTTP status by which the check failed, else null.';
COMMENT ON COLUMN relay_capability.claimed IS 'What its NIP-11 document said then of what is measured, and of the window of created_at that it accepts, which is not: only writing would tell. Null without a document.';
COMMENT ON COLUMN relay_state.failures IS 'Failed checks in a row; of a relay that was down, kept until it is alive again.';

-- Each look stands until the next one, at most for as long as its opinion does: time is what shares are of.
ALTER TABLE relay_uptime ADD COLUMN seen_s integer, ADD COLUMN up_s integer;
COMMENT ON COLUMN relay_uptime.seen_s IS 'Seconds before these looks for which the looks before them stood; null where nobody counted yet.';
COMMENT ON COLUMN relay_uptime.up_s IS 'Of these, seconds for which they had found it alive.';
ALTER TABLE relay_uptime_day ADD COLUMN seen_s integer, ADD COLUMN up_s integer;
COMMENT ON COLUMN relay_uptime_day.seen_s IS 'Seconds before these looks for which the looks before them stood; null where nobody counted yet.';
COMMENT ON COLUMN relay_uptime_day.up_s IS 'Of these, seconds for which they had found it alive.';

CREATE OR REPLACE FUNCTION uptime_rollup(p_keep_days integer, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET lock_timeout = '1s'
AS $$
DECLARE
    v_until bigint := extract(epoch FROM date_trunc('day', p_now AT TIME ZONE 'UTC') AT TIME ZONE 'UTC')::bigint - p_keep_days * 86400::bigint;
    v_part text;
BEGIN
    IF p_keep_days < 1 THEN
        RAISE EXCEPTION 'at least one day is kept' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT pg_try_advisory_xact_lock(7303) THEN RETURN 0; END IF;
    SELECT c.relname INTO v_part FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'public.relay_uptime'::regclass AND c.relname ~ '^relay_uptime_[0-9]{8}$'
      AND extract(epoch FROM to_date(right(c.relname, 8), 'YYYYMMDD')) < v_until
    ORDER BY 1 LIMIT 1;
    -- Late rows of a day without partition are in the default one.
    IF v_part IS NULL AND EXISTS (SELECT FROM relay_uptime_default u WHERE u.at < v_until) THEN
        v_part := 'relay_uptime_default';
    END IF;
    IF v_part IS NULL THEN RETURN 0; END IF;
    -- In one transaction: a look is in the hours or in the days, never in both.
    EXECUTE format('LOCK TABLE public.%I IN ACCESS EXCLUSIVE MODE', v_part);
    EXECUTE format($f$
        INSERT INTO relay_uptime_day AS d (relay_id, vantage_id, at, checks, up, refused, open_hist, read_hist, write_hist, seen_s, up_s)
        SELECT u.relay_id, u.vantage_id, u.at - u.at %% 86400, sum(u.checks), sum(u.up), sum(u.refused),
               histogram_pack(string_agg(u.open_hist, ''::bytea)), histogram_pack(string_agg(u.read_hist, ''::bytea)),
               histogram_pack(string_agg(u.write_hist, ''::bytea)),
               -- An hour that nobody counted stands for itself.
               sum(coalesce(u.seen_s, 3600)), sum(coalesce(u.up_s, 3600 * u.up / greatest(u.checks, 1)))
        FROM public.%I u WHERE u.at < $1 GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        ON CONFLICT (relay_id, vantage_id, at) DO UPDATE
            SET checks = d.checks + excluded.checks, up = d.up + excluded.up, refused = d.refused + excluded.refused,
                open_hist = histogram_pack(d.open_hist || excluded.open_hist), read_hist = histogram_pack(d.read_hist || excluded.read_hist),
                write_hist = histogram_pack(d.write_hist || excluded.write_hist),
                seen_s = coalesce(d.seen_s, 86400) + excluded.seen_s,
                up_s = coalesce(d.up_s, 86400 * d.up / greatest(d.checks, 1)) + excluded.up_s $f$, v_part) USING v_until;
    IF v_part = 'relay_uptime_default' THEN
        DELETE FROM relay_uptime_default u WHERE u.at < v_until;
    ELSE
        EXECUTE format('DROP TABLE public.%I', v_part);
    END IF;
    RETURN 1;
END $$;

CREATE OR REPLACE VIEW relay_uptime_daily AS
SELECT d.relay_id, d.vantage_id, d.at, d.checks, d.up, d.refused, d.open_hist, d.read_hist, d.write_hist,
       coalesce(d.seen_s, 86400) AS seen_s, coalesce(d.up_s, 86400 * d.up / greatest(d.checks, 1)) AS up_s
FROM public.relay_uptime_day d
UNION ALL
SELECT u.relay_id, u.vantage_id, u.at - u.at % 86400, sum(u.checks)::integer, sum(u.up)::integer, sum(u.refused)::integer,
       string_agg(u.open_hist, ''::bytea), string_agg(u.read_hist, ''::bytea), string_agg(u.write_hist, ''::bytea),
       sum(coalesce(u.seen_s, 3600))::integer, sum(coalesce(u.up_s, 3600 * u.up / greatest(u.checks, 1)))::integer
FROM public.relay_uptime u GROUP BY u.relay_id, u.vantage_id, u.at - u.at % 86400;

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
    -- The latest look stands until now, or its opinion lapses.
    SELECT u.seen_s + l.left_s AS seen_s, u.up_s + CASE WHEN s.alive_at = s.checked_at THEN l.left_s ELSE 0 END AS up_s,
           extract(epoch FROM now())::bigint - greatest(u.first_at, r.discovered_at) AS span_s
    FROM (SELECT CASE WHEN s.alive_at = s.checked_at OR s.reason NOT IN ('rate_limited', 'auth_required', 'blocked')
                      THEN greatest(least(extract(epoch FROM now())::bigint, s.stands_until) - s.checked_at, 0) ELSE 0 END AS left_s) l) t
CROSS JOIN LATERAL (SELECT public.histogram_percentiles(u.open_hist) AS p) o
CROSS JOIN LATERAL (SELECT public.histogram_percentiles(u.read_hist) AS p) e
CROSS JOIN LATERAL (SELECT public.histogram_percentiles(u.write_hist) AS p) w;
COMMENT ON VIEW relay_uptime_30d IS 'Per relay and vantage, the last 30 UTC days: looks, share of the time for which they found it alive (each look stands until the next, and no longer than its opinion), what that share is at least (time for which none stood taken as not alive), percentiles of its times (within 4.5 %). Looks at which it refused us tell nothing. Null: too few for a figure; the *_n and checks say how many there are.';

CREATE FUNCTION ranges_s(p_ranges int8multirange) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT coalesce(sum(upper(x) - lower(x)), 0)::bigint FROM unnest(p_ranges) x $$;
COMMENT ON FUNCTION ranges_s IS 'How many seconds such stretches of time have together.';

-- What was seen: from the look before to the look; of an hour or a day that nobody counted, the day before its end.
CREATE FUNCTION relay_observed(p_relay_id integer, p_since bigint, p_now bigint) RETURNS int8multirange
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
          FROM public.relay_state s WHERE s.relay_id = p_relay_id) x
$$;
COMMENT ON FUNCTION relay_observed IS 'When a look at a relay stood, from whatever vantage, since a moment: to the hour.';

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
    SELECT public.ranges_s(o.lately * int8multirange(int8range(min(p.at), n.now))) AS observed_s,
           public.ranges_s(o.lately * coalesce(range_agg(int8range(p.at, coalesce(p.ended_at, n.now))) FILTER (WHERE p.after = 'down'), '{}')) AS down_s,
           count(*) FILTER (WHERE p.after = 'down' AND p.began_at IS NOT NULL AND p.at >= p.since) AS failures,
           count(*) FILTER (WHERE p.after = 'alive' AND p.began_at IS NOT NULL AND p.at >= p.since) AS repairs,
           count(*) FILTER (WHERE p.began_at IS NOT NULL AND p.at >= p.since) AS flaps,
           public.ranges_s(o.seen * coalesce(range_agg(int8range(p.began_at, p.at)) FILTER (WHERE p.after = 'alive' AND p.began_at IS NOT NULL AND p.at >= p.since), '{}')) AS repair_s
    FROM (SELECT a.at, a.after, lag(a.at) OVER w AS began_at, lead(a.at) OVER w AS ended_at, n.now - 30 * 86400 AS since
          FROM public.relay_alert a
          WHERE a.relay_id = r.id AND a.settles WINDOW w AS (ORDER BY a.at, a.id)) p) t;
COMMENT ON VIEW relay_reliability_30d IS 'Per relay over all vantages, the last 30 days, from the changes between alive and down: seconds observed (a look stood, from whatever vantage) and of these down, failures, repairs, changes (flaps), mean time between failures (observed and not down, per failure) and to repair (observed). Null: no failure, no repair, or less than a day observed.';

DROP FUNCTION monitor_finish(text[], text[], integer[], text[], text, text[], text[], integer[], integer[], boolean[], bigint[], double precision[], integer[], text[],
                             integer[], text[], text[], text[], integer[], integer[], integer[], bytea[], text[], text[], integer[], text[], text[], boolean[]);
CREATE FUNCTION monitor_finish(
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

    -- A look that may have failed because of us, or that the relay refused us, says nothing about its uptime.
    INSERT INTO relay_uptime AS u (relay_id, vantage_id, at, checks, up, refused, open_hist, read_hist, write_hist, seen_s, up_s)
    SELECT v_relays[h], v_vantage, p_checked_ats[h] - p_checked_ats[h] % 3600, 1, p_alive[h]::integer,
           coalesce(p_alive[h] AND c.outcome = 'refused', false)::integer, histogram_of(c.open_ms), histogram_of(c.read_ms), histogram_of(c.write_ms),
           coalesce(v_seen[h], 0), coalesce(v_up[h], 0)
    FROM unnest(v_held) h
    LEFT JOIN unnest(c_jobs, c_kinds, c_outcomes, c_opens, c_reads, c_writes) c(job, kind, outcome, open_ms, read_ms, write_ms) ON c.job = h AND c.kind = 'rtt'
    WHERE v_relays[h] IS NOT NULL AND coalesce(p_counted[h], p_alive[h] OR p_failures[h] > 0)
    ORDER BY 1
    ON CONFLICT (relay_id, vantage_id, at) DO UPDATE
        SET checks = u.checks + 1, up = u.up + excluded.up, refused = u.refused + excluded.refused,
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
COMMENT ON FUNCTION monitor_finish IS 'Results of monitor jobs: state from this vantage and over all, alerts where that changed, check series, uptime of the hour, documents where they changed, next due. c_* are the checks, c_jobs the 1-based job each belongs to. p_counted: whether the look says something about the relay; c_statuses: HTTP statuses by which checks failed. Returns the positions whose fence was lost; nothing was written for them.';


CREATE INDEX monitor_report_monitor ON monitor_report (monitor);
CREATE OR REPLACE FUNCTION monitor_report_put(
    p_monitors bytea[], p_urls text[], p_created_ats bigint[], p_opens integer[], p_reads integer[], p_writes_ms integer[],
    p_auths boolean[], p_writes boolean[], p_pows boolean[], p_payments boolean[], p_nips text[], p_geohashes text[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    n integer;
    v_gone integer;
BEGIN
    INSERT INTO monitor_report AS m (relay_id, monitor, created_at, open_ms, read_ms, write_ms, auth, writes, pow, payment, nips, geohash)
    SELECT v.relay_id, v.monitor, v.created_at, v.open_ms, v.read_ms, v.write_ms, v.auth, v.writes, v.pow, v.payment, v.nips::integer[], v.geohash
    FROM (
            SELECT DISTINCT ON (r.id, u.monitor) r.id AS relay_id, u.*
            FROM unnest(p_monitors, p_urls, p_created_ats, p_opens, p_reads, p_writes_ms, p_auths, p_writes, p_pows, p_payments, p_nips, p_geohashes)
                 u(monitor, url, created_at, open_ms, read_ms, write_ms, auth, writes, pow, payment, nips, geohash)
            JOIN relay r ON r.url = u.url
            -- What is dated ahead of its time would stand above all that comes; and our own words are no second opinion.
            WHERE u.created_at <= extract(epoch FROM now()) + 900 AND NOT EXISTS (SELECT FROM publication p WHERE p.pubkey = u.monitor)
            ORDER BY r.id, u.monitor, u.created_at DESC) v
    ORDER BY v.relay_id, v.monitor
    ON CONFLICT (relay_id, monitor) DO UPDATE
        SET created_at = excluded.created_at, open_ms = excluded.open_ms, read_ms = excluded.read_ms, write_ms = excluded.write_ms,
            auth = excluded.auth, writes = excluded.writes, pow = excluded.pow, payment = excluded.payment, nips = excluded.nips, geohash = excluded.geohash
        WHERE m.created_at < excluded.created_at;
    GET DIAGNOSTICS n = ROW_COUNT;
    -- Keys cost nothing: a relay has at most a hundred monitors. Those stay that report on most relays, since that is
    -- work, and of those that say who they are before the others.
    DELETE FROM monitor_report m USING (
        SELECT x.relay_id, x.monitor, row_number() OVER (
                   PARTITION BY x.relay_id ORDER BY w.relays DESC, a.monitor IS NULL, x.created_at DESC, x.monitor) AS place
        FROM monitor_report x
        LEFT JOIN monitor_announcement a ON a.monitor = x.monitor
        CROSS JOIN LATERAL (SELECT count(*) AS relays FROM (SELECT FROM monitor_report y WHERE y.monitor = x.monitor LIMIT 1000) z) w
        WHERE x.relay_id IN (
            SELECT c.relay_id FROM monitor_report c WHERE c.relay_id IN (SELECT r.id FROM relay r WHERE r.url = ANY (p_urls))
            GROUP BY c.relay_id HAVING count(*) > 100)) surplus
    WHERE surplus.place > 100 AND m.relay_id = surplus.relay_id AND m.monitor = surplus.monitor;
    GET DIAGNOSTICS v_gone = ROW_COUNT;
    RETURN greatest(n - v_gone, 0);
END $$;
COMMENT ON FUNCTION monitor_report_put IS 'Keeps what other monitors say of relays we know, the newest per monitor and relay, at most a hundred monitors per relay: those that report on most relays; p_nips are array literals. Returns by how many rows there are more, or newer ones.';

COMMENT ON TABLE  monitor_announcement IS 'The newest words of each other monitor about itself (kind 10166): of those that report on relays we know, and of a thousand others whose reports may yet come.';
CREATE OR REPLACE FUNCTION monitor_announcement_put(
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
    -- A few whose reports may yet come.
    DELETE FROM monitor_announcement a USING (
        SELECT x.monitor FROM monitor_announcement x
        WHERE NOT EXISTS (SELECT FROM monitor_report m WHERE m.monitor = x.monitor)
        ORDER BY x.created_at DESC, x.monitor OFFSET 1000) surplus
    WHERE a.monitor = surplus.monitor;
    RETURN n;
END $$;
COMMENT ON FUNCTION monitor_announcement_put IS 'Keeps what other monitors say of themselves, the newest of each, and of those without a report on a relay we know the newest thousand; p_checks are array literals, p_timeouts JSON objects. Returns how many rows were written.';

CREATE OR REPLACE VIEW relay_capability_difference AS
SELECT r.url, d.subject, d.claimed, d.measured, c.measured_at AS at, v.name AS vantage
FROM public.relay_capability c
JOIN public.relay r ON r.id = c.relay_id
LEFT JOIN public.vantage v ON v.id = c.vantage_id
CROSS JOIN LATERAL (
    -- NIPs whose work was seen, or denied: what stayed undecided or silent contradicts only a claim.
    SELECT 'nip' || n.nip AS subject,
           CASE WHEN c.claimed -> 'nips' @> to_jsonb(n.nip) THEN 'supported' ELSE 'not listed' END AS claimed, n.seen AS measured
    FROM (VALUES (45, c.measured -> 'nip45' ->> 'seen'), (50, c.measured -> 'nip50' ->> 'seen'),
                 (67, c.measured ->> 'nip67'), (77, c.measured -> 'nip77' ->> 'seen')) n(nip, seen)
    WHERE c.claimed IS NOT NULL
      AND CASE WHEN c.claimed -> 'nips' @> to_jsonb(n.nip) THEN n.seen IN ('refused', 'ignored', 'silent') ELSE n.seen = 'works' END
    UNION ALL
    SELECT 'nip42', 'not listed', c.measured ->> 'nip42'
    WHERE c.claimed IS NOT NULL AND NOT c.claimed -> 'nips' @> '42' AND c.measured ->> 'nip42' <> 'none'
    UNION ALL
    SELECT 'auth_required', c.claimed ->> 'auth_required', c.measured ->> 'nip42'
    WHERE CASE WHEN (c.claimed ->> 'auth_required')::boolean THEN c.measured ->> 'nip42' IN ('none', 'offered')
               WHEN NOT (c.claimed ->> 'auth_required')::boolean THEN c.measured ->> 'nip42' IN ('required', 'accepted', 'refused') END
    UNION ALL
    SELECT 'max_limit', c.claimed ->> 'max_limit', c.measured ->> 'max_limit'
    WHERE (c.claimed ->> 'max_limit')::bigint <> (c.measured ->> 'max_limit')::bigint
      -- A page of the claimed limit is no small request where that is large: more may well come.
      AND NOT ((c.measured ->> 'above_brings_less')::boolean AND (c.measured ->> 'max_limit')::bigint < (c.claimed ->> 'max_limit')::bigint)
    UNION ALL
    SELECT 'max_limit', c.claimed ->> 'max_limit', c.measured ->> 'page_max'
    WHERE (c.claimed ->> 'max_limit')::bigint < (c.measured ->> 'page_max')::bigint AND c.measured ->> 'max_limit' IS NULL
    UNION ALL
    SELECT 'default_limit', c.claimed ->> 'default_limit', c.measured ->> 'default_limit'
    WHERE (c.claimed ->> 'default_limit')::bigint <> (c.measured ->> 'default_limit')::bigint
    UNION ALL
    SELECT 'above_limit', 'clamped', 'brings less' WHERE (c.measured ->> 'above_brings_less')::boolean
    UNION ALL
    SELECT 'until', 'inclusive', c.measured ->> 'until' WHERE c.measured ->> 'until' IN ('exclusive', 'ignored')
    UNION ALL
    SELECT 'restricted_writes', c.claimed ->> 'restricted_writes', c.write_outcome || CASE WHEN c.write_reason = 'none' THEN '' ELSE ': ' || c.write_reason END
    WHERE CASE WHEN (c.claimed ->> 'restricted_writes')::boolean THEN c.write_outcome = 'ok'
               WHEN NOT (c.claimed ->> 'restricted_writes')::boolean
               -- Refused for what we are; any other refusal speaks of the event, or of the moment.
               THEN c.write_outcome = 'refused' AND c.write_reason IN ('auth_required', 'restricted', 'blocked') END
) d;

ALTER TABLE nip05_domain ADD COLUMN tried_at bigint;
COMMENT ON COLUMN nip05_domain.tried_at IS 'When its turn was last taken, Unix seconds, whether it could be asked or not.';
-- It writes now, which readers may not.
DROP FUNCTION nip05_take(integer);
DROP INDEX nip05_domain_turn;
CREATE INDEX nip05_domain_turn ON nip05_domain (greatest(asked_at, tried_at) NULLS FIRST, domain);
CREATE FUNCTION nip05_take(p_limit integer)
RETURNS TABLE (name text, domain text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    -- One that keeps its turn comes after those that have had none since.
    RETURN QUERY UPDATE nip05_domain d SET tried_at = extract(epoch FROM now())::bigint
        FROM (SELECT x.domain FROM nip05_domain x
              WHERE (x.asked_at IS NULL OR x.asked_at < extract(epoch FROM now())::bigint - 30 * 86400) AND url_excluded('wss://' || x.domain) IS NULL
              ORDER BY greatest(x.asked_at, x.tried_at) NULLS FIRST, x.domain LIMIT p_limit) t
        WHERE d.domain = t.domain RETURNING d.name, d.domain;
END $$;
COMMENT ON FUNCTION nip05_take IS 'Domains whose turn it is, with the name to ask for: those first whose turn is longest ago, none asked within a month.';

CREATE OR REPLACE FUNCTION alert_retire(p_keep_days integer, p_deliver boolean, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE n integer;
BEGIN
    IF NOT p_deliver THEN
        -- A worker that knows the webhook does the task, and so keeps it, whatever a scheduler knows.
        DELETE FROM schedule s WHERE s.kind = 'monitor' AND s.target = 'alerts' AND s.due_at < p_now - interval '1 day';
        UPDATE relay_alert a SET delivery = 'given_up', due_at = NULL, answer = 'no webhook is configured any more'
        WHERE a.due_at IS NOT NULL AND NOT EXISTS (SELECT FROM schedule s WHERE s.kind = 'monitor' AND s.target = 'alerts');
    END IF;
    DELETE FROM relay_alert a WHERE a.id = ANY (ARRAY(
        SELECT x.id FROM relay_alert x
        WHERE x.at < extract(epoch FROM p_now)::bigint - p_keep_days * 86400::bigint
          -- The latest settled state of a relay is where its history begins.
          AND EXISTS (SELECT FROM relay_alert y WHERE y.relay_id = x.relay_id AND y.settles AND (y.at, y.id) > (x.at, x.id))
        ORDER BY x.at LIMIT 10000));
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION alert_retire IS 'Forgets at most 10,000 changes older than p_keep_days that a later one has overtaken; where the scheduler knows no webhook (p_deliver) and no worker has told one for a day, also what waits for it, and its task. Returns how many were forgotten.';
