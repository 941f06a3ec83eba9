-- The queue: functions over apalis.jobs and apalis.workers (created by apalis-postgres, completed by
-- shared/src/queue/tables.sql). All times are this database's clock; p_now exists for tests.

CREATE FUNCTION job_id_new() RETURNS text
LANGUAGE sql VOLATILE SET search_path = public, pg_temp
AS $$
    SELECT '0' || upper(lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 11, '0')
           || substr(replace(gen_random_uuid()::text, '-', ''), 1, 14))
$$;
COMMENT ON FUNCTION job_id_new IS 'A 26-character id that sorts by time and parses as a ULID.';

CREATE FUNCTION job_enqueue(
    p_kinds text[], p_networks text[], p_targets text[], p_due_ats timestamptz[], p_slacks integer[],
    p_timeouts integer[], p_max_attempts integer[], p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE n integer;
BEGIN
    INSERT INTO apalis.jobs (id, job_type, job, status, attempts, max_attempts, run_at, idempotency_key,
                             kind, network, target, due_at, deadline_at, slack_s, timeout_s, enqueued_at)
    SELECT job_id_new(), u.kind || '.' || u.network,
           convert_to(json_build_object('kind', u.kind, 'network', u.network, 'target', u.target)::text, 'UTF8'),
           'Pending', 0, u.max_attempts, u.due_at, u.target,
           u.kind, u.network, u.target, u.due_at, u.due_at + make_interval(secs => u.slack), u.slack, u.timeout, p_now
    FROM unnest(p_kinds, p_networks, p_targets, p_due_ats, p_slacks, p_timeouts, p_max_attempts)
         u(kind, network, target, due_at, slack, timeout, max_attempts)
    ORDER BY u.kind, u.network, u.target
    ON CONFLICT (job_type, idempotency_key) DO NOTHING;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION job_enqueue IS 'Enqueues jobs; a target that already has one outstanding of the kind is left as it is. Returns how many were new.';

CREATE FUNCTION schedule_enqueue(
    p_kind text, p_networks text[], p_limit integer, p_timeout integer, p_max_attempts integer, p_again_s integer,
    p_now timestamptz DEFAULT now())
RETURNS TABLE (due integer, enqueued integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    v_network text;
    v_targets text[];
    v_dues timestamptz[];
    v_slacks integer[];
    n integer;
BEGIN
    due := 0;
    enqueued := 0;
    FOREACH v_network IN ARRAY p_networks LOOP
        WITH picked AS (
            SELECT s.kind, s.target, s.due_at, s.slack_s FROM schedule s
            WHERE s.kind = p_kind AND s.network = v_network AND s.due_at <= p_now
              -- A target whose job is still outstanding stays due: what was asked for meanwhile is not forgotten.
              AND NOT EXISTS (SELECT FROM apalis.jobs j WHERE j.job_type = p_kind || '.' || v_network AND j.idempotency_key = s.target)
            ORDER BY s.due_at LIMIT p_limit FOR UPDATE SKIP LOCKED
        ), moved AS (
            UPDATE schedule s SET due_at = p_now + make_interval(secs => p_again_s)
            FROM picked p WHERE s.kind = p.kind AND s.target = p.target
        )
        SELECT array_agg(p.target), array_agg(p.due_at), array_agg(p.slack_s) INTO v_targets, v_dues, v_slacks FROM picked p;
        n := coalesce(cardinality(v_targets), 0);
        CONTINUE WHEN n = 0;
        due := due + n;
        enqueued := enqueued + job_enqueue(
            array_fill(p_kind, ARRAY[n]), array_fill(v_network, ARRAY[n]), v_targets, v_dues, v_slacks,
            array_fill(p_timeout, ARRAY[n]), array_fill(p_max_attempts, ARRAY[n]), p_now);
    END LOOP;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION schedule_enqueue IS 'Turns what is due of one kind into jobs, by index, at most p_limit per network, and moves each p_again_s ahead: a job that is lost without a trace comes due again by itself.';

CREATE FUNCTION schedule_put(p_kinds text[], p_targets text[], p_networks text[], p_due_s double precision[], p_slacks integer[], p_whys text[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE n integer;
BEGIN
    INSERT INTO schedule AS s (kind, target, network, due_at, slack_s, why)
    SELECT u.kind, u.target, u.network, now() + make_interval(secs => u.due_s), u.slack, u.why
    FROM unnest(p_kinds, p_targets, p_networks, p_due_s, p_slacks, p_whys) u(kind, target, network, due_s, slack, why)
    ORDER BY u.kind, u.target
    ON CONFLICT (kind, target) DO UPDATE SET due_at = excluded.due_at, slack_s = excluded.slack_s, why = excluded.why;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION schedule_put IS 'Sets when targets are next due, in seconds from now; returns how many rows were written.';

CREATE FUNCTION schedule_ensure(p_kinds text[], p_targets text[], p_networks text[], p_slacks integer[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE n integer;
BEGIN
    INSERT INTO schedule (kind, target, network, due_at, slack_s, why)
    SELECT u.kind, u.target, u.network, now(), u.slack, 'new'
    FROM unnest(p_kinds, p_targets, p_networks, p_slacks) u(kind, target, network, slack)
    ORDER BY u.kind, u.target
    ON CONFLICT (kind, target) DO NOTHING;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION schedule_ensure IS 'Makes targets due now that were never scheduled; leaves the others alone. Returns how many were new.';

CREATE FUNCTION job_heartbeat(
    p_worker text, p_lease_s double precision, p_vantage text, p_version text, p_queues text[], p_slots integer,
    p_now timestamptz DEFAULT now())
RETURNS TABLE (job_id text, attempt integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    INSERT INTO apalis.workers AS w (id, worker_type, storage_name, layers, last_seen, started_at, lease_until, vantage, version, queues, slots)
    VALUES (p_worker, 'bigbrotr', 'bigbrotr', '', p_now, p_now, p_now + make_interval(secs => p_lease_s), p_vantage, p_version, p_queues, p_slots)
    ON CONFLICT (id) DO UPDATE SET last_seen = p_now, lease_until = p_now + make_interval(secs => p_lease_s);
    RETURN QUERY SELECT j.id, j.attempts FROM apalis.jobs j WHERE j.lock_by = p_worker AND j.status = 'Running';
END $$;
COMMENT ON FUNCTION job_heartbeat IS 'Registers or renews a worker''s lease; returns the (job, attempt) pairs it still holds, so that it can stop what it lost.';

CREATE FUNCTION job_claim(p_worker text, p_queues text[], p_free integer[], p_now timestamptz DEFAULT now())
RETURNS TABLE (job_id text, queue text, kind text, network text, target text, attempt integer, max_attempts integer, timeout_s integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET enable_bitmapscan = off
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    -- Only a worker whose lease stands may take work: one that slept through its lease renews first.
    PERFORM FROM apalis.workers w WHERE w.id = p_worker AND w.lease_until > p_now FOR SHARE;
    IF NOT found THEN RETURN; END IF;
    FOR i IN 1 .. cardinality(p_queues) LOOP
        CONTINUE WHEN p_free[i] <= 0;
        RETURN QUERY
            UPDATE apalis.jobs j
            SET status = 'Running', lock_by = p_worker, lock_at = p_now, attempts = j.attempts + 1,
                run_deadline = p_now + make_interval(secs => j.timeout_s)
            WHERE j.id = ANY (ARRAY(
                SELECT x.id FROM apalis.jobs x
                WHERE x.job_type = p_queues[i] AND x.status = 'Pending' AND x.run_at <= p_now
                  -- Rows that other tools of apalis pushed lack our columns: they are not ours to run.
                  AND x.kind IS NOT NULL
                ORDER BY x.deadline_at LIMIT p_free[i] FOR UPDATE SKIP LOCKED))
            RETURNING j.id, j.job_type, j.kind, j.network, j.target, j.attempts, j.max_attempts, j.timeout_s;
    END LOOP;
END $$;
COMMENT ON FUNCTION job_claim IS 'Claims at most p_free[i] due jobs of p_queues[i], earliest deadline first, for a worker with a standing lease. One index scan per queue, whatever the backlog.';

CREATE FUNCTION job_fence(p_jobs text[], p_workers text[], p_attempts integer[])
RETURNS SETOF integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
BEGIN
    RETURN QUERY
        SELECT h.o FROM (
            SELECT u.o::integer AS o, j.id
            FROM unnest(p_jobs, p_workers, p_attempts) WITH ORDINALITY u(job, worker, attempt, o)
            JOIN apalis.jobs j ON j.id = u.job AND j.lock_by = u.worker AND j.attempts = u.attempt AND j.status = 'Running'
            ORDER BY j.id
            FOR SHARE OF j) h;
END $$;
COMMENT ON FUNCTION job_fence IS 'Positions of the (job, worker, attempt) triples that still hold, their job rows locked FOR SHARE in id order until the end of the transaction.';

CREATE FUNCTION job_finish(
    p_worker text, p_jobs text[], p_attempts integer[], p_verdicts text[], p_delays_s double precision[], p_results text[],
    p_now timestamptz DEFAULT now())
RETURNS SETOF text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
BEGIN
    RETURN QUERY
    WITH acked AS (
        SELECT j.id, j.max_attempts, u.verdict, u.delay_s, u.result
        FROM unnest(p_jobs, p_attempts, p_verdicts, p_delays_s, p_results) u(job, attempt, verdict, delay_s, result)
        JOIN apalis.jobs j ON j.id = u.job AND j.lock_by = p_worker AND j.attempts = u.attempt AND j.status = 'Running'
        WHERE u.verdict IN ('complete', 'retry', 'snooze', 'cancel', 'kill')
        ORDER BY j.id FOR UPDATE OF j
    ), ended AS (
        DELETE FROM apalis.jobs j USING acked a
        WHERE j.id = a.id
          AND (a.verdict IN ('complete', 'cancel', 'kill') OR (a.verdict = 'retry' AND j.attempts >= a.max_attempts))
        RETURNING j.id, j.kind, j.network, j.target, j.attempts, j.lock_by, j.due_at, j.enqueued_at, j.lock_at, a.verdict, a.result
    ), history AS (
        INSERT INTO job_history (job_id, kind, network, target, state, attempt, worker_id, due_at, enqueued_at, started_at, finished_at, result)
        SELECT e.id, e.kind, e.network, e.target,
               CASE e.verdict WHEN 'complete' THEN 'complete' WHEN 'cancel' THEN 'cancelled' ELSE 'dead' END,
               e.attempts, e.lock_by, e.due_at, e.enqueued_at, e.lock_at, p_now, e.result::jsonb
        FROM ended e
    ), again AS (
        UPDATE apalis.jobs j
        SET status = 'Pending', lock_by = NULL, lock_at = NULL, run_deadline = NULL,
            -- An attempt is given back by allowing one more: its number is part of the fence and never used twice.
            max_attempts = CASE a.verdict WHEN 'snooze' THEN j.max_attempts + 1 ELSE j.max_attempts END,
            run_at = p_now + make_interval(secs => a.delay_s),
            deadline_at = p_now + make_interval(secs => a.delay_s + j.slack_s),
            last_result = a.result::jsonb
        FROM acked a
        WHERE j.id = a.id AND (a.verdict = 'snooze' OR (a.verdict = 'retry' AND j.attempts < a.max_attempts))
    )
    SELECT a.id FROM acked a;
END $$;
COMMENT ON FUNCTION job_finish IS 'Acknowledges attempts: complete, cancel and kill move the job to history, retry and snooze put it back (snooze allows one attempt more; a retry beyond max_attempts is dead). Returns the jobs whose fence held.';

CREATE FUNCTION job_rescue(p_limit integer DEFAULT 1000, p_now timestamptz DEFAULT now())
RETURNS TABLE (rescued integer, killed integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    WITH lost AS (
        SELECT j.id, CASE WHEN w.lease_until IS NULL OR w.lease_until <= p_now THEN 'worker lost' ELSE 'run deadline passed' END AS why
        FROM apalis.jobs j LEFT JOIN apalis.workers w ON w.id = j.lock_by
        WHERE j.status = 'Running' AND (w.lease_until IS NULL OR w.lease_until <= p_now OR j.run_deadline <= p_now)
        ORDER BY j.id LIMIT p_limit FOR UPDATE OF j SKIP LOCKED
    ), dead AS (
        DELETE FROM apalis.jobs j USING lost l WHERE j.id = l.id AND j.attempts >= j.max_attempts
        RETURNING j.*, l.why
    ), history AS (
        INSERT INTO job_history (job_id, kind, network, target, state, attempt, worker_id, due_at, enqueued_at, started_at, finished_at, result)
        SELECT d.id, d.kind, d.network, d.target, 'dead', d.attempts, d.lock_by, d.due_at, d.enqueued_at, d.lock_at, p_now,
               jsonb_build_object('error', d.why)
        FROM dead d
    ), again AS (
        UPDATE apalis.jobs j
        SET status = 'Pending', lock_by = NULL, lock_at = NULL, run_deadline = NULL, run_at = p_now,
            last_result = jsonb_build_object('error', l.why, 'worker', j.lock_by)
        FROM lost l WHERE j.id = l.id AND j.attempts < j.max_attempts
        RETURNING j.id
    )
    SELECT (SELECT count(*) FROM again), (SELECT count(*) FROM dead) INTO rescued, killed;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION job_rescue IS 'Puts jobs back whose worker''s lease or own run deadline has passed; those out of attempts die. The attempt stays spent.';

CREATE FUNCTION worker_retire(p_older_s double precision, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE n integer;
BEGIN
    DELETE FROM apalis.workers w
    WHERE w.worker_type = 'bigbrotr' AND w.lease_until < p_now - make_interval(secs => p_older_s)
      AND NOT EXISTS (SELECT FROM apalis.jobs j WHERE j.lock_by = w.id);
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION worker_retire IS 'Forgets workers whose lease ended long ago and that hold nothing; returns how many.';

CREATE FUNCTION worker_stop(p_worker text)
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE n integer;
BEGIN
    -- The lease first: a claim under way holds its row, so that nothing is claimed after the jobs went back.
    UPDATE apalis.workers w SET lease_until = now() WHERE w.id = p_worker;
    UPDATE apalis.jobs j
    SET status = 'Pending', lock_by = NULL, lock_at = NULL, run_deadline = NULL, max_attempts = j.max_attempts + 1, run_at = now()
    WHERE j.lock_by = p_worker AND j.status = 'Running';
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION worker_stop IS 'A worker that stops gives back what it still holds, the attempt unspent, and ends its lease. Returns how many jobs went back.';

CREATE FUNCTION leader_claim(p_name text, p_holder text, p_ttl_s double precision, p_now timestamptz DEFAULT now())
RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE v_term bigint;
BEGIN
    INSERT INTO leader AS l (name, holder, term, until)
    VALUES (p_name, p_holder, 1, p_now + make_interval(secs => p_ttl_s))
    ON CONFLICT (name) DO UPDATE
        SET term = CASE WHEN l.holder = p_holder THEN l.term ELSE l.term + 1 END,
            holder = p_holder, until = p_now + make_interval(secs => p_ttl_s)
        WHERE l.holder = p_holder OR l.until <= p_now
    RETURNING l.term INTO v_term;
    RETURN v_term;
END $$;
COMMENT ON FUNCTION leader_claim IS 'Takes or renews a leader lease; returns its term, or null while another holds it.';

CREATE FUNCTION leader_release(p_name text, p_holder text)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    UPDATE leader l SET until = now() WHERE l.name = p_name AND l.holder = p_holder AND l.until > now();
    RETURN found;
END $$;
COMMENT ON FUNCTION leader_release IS 'Ends a lease early, so that a clean stop hands over at once.';

CREATE FUNCTION queue_stats(p_now timestamptz DEFAULT now())
RETURNS TABLE (kind text, network text, due bigint, waiting bigint, running bigint, oldest_due_s double precision, done_per_min bigint, dead_per_min bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    RETURN QUERY
    WITH live AS (
        SELECT j.kind, j.network,
               count(*) FILTER (WHERE j.status = 'Pending' AND j.run_at <= p_now) AS due,
               count(*) FILTER (WHERE j.status = 'Pending' AND j.run_at > p_now) AS waiting,
               count(*) FILTER (WHERE j.status = 'Running') AS running,
               extract(epoch FROM p_now - min(j.due_at) FILTER (WHERE j.status = 'Pending' AND j.run_at <= p_now))::double precision AS oldest
        FROM apalis.jobs j WHERE j.kind IS NOT NULL GROUP BY 1, 2
    ), done AS (
        SELECT h.kind, h.network, count(*) FILTER (WHERE h.state = 'complete') AS done, count(*) FILTER (WHERE h.state = 'dead') AS dead
        FROM job_history h WHERE h.finished_at > p_now - interval '1 minute' GROUP BY 1, 2
    )
    SELECT coalesce(l.kind, d.kind), coalesce(l.network, d.network), coalesce(l.due, 0), coalesce(l.waiting, 0),
           coalesce(l.running, 0), l.oldest, coalesce(d.done, 0), coalesce(d.dead, 0)
    FROM live l FULL JOIN done d ON d.kind = l.kind AND d.network = l.network
    ORDER BY 1, 2;
END $$;
COMMENT ON FUNCTION queue_stats IS 'Per queue: due, waiting, running, age of the oldest due job in seconds, and what ended in the last minute. Reads live rows and one minute of history.';
