-- A relay that is down stays down until it answers: a look that failed while our own network was in doubt ends no opinion that it is.

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
            failures = excluded.failures, successes = excluded.successes,
            -- A look in doubt stands for no time, and takes "down" from nobody: the looks before it stand as long as they did.
            stands_until = CASE WHEN s.state = 'down' AND excluded.state = 'down' THEN greatest(s.stands_until, excluded.stands_until)
                                ELSE excluded.stands_until END;

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
    -- time for which the look before it stood, unless the relay is down and stays so.
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
COMMENT ON COLUMN relay_state.stands_until IS 'Until when this opinion counts in the overall state, Unix seconds; not ahead when our own network was in doubt, unless the relay was down before: then as long as that stood.';
