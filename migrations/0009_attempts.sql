-- How attempts end: acknowledged, lost with their worker, given back. And the two calls of the loops:
-- job_exchange of a worker, scheduler_tick of a scheduler.

CREATE OR REPLACE FUNCTION job_finish(
    p_worker text, p_jobs text[], p_attempts integer[], p_verdicts text[], p_delays_s double precision[], p_results text[],
    p_now timestamptz DEFAULT now())
RETURNS SETOF text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
DECLARE
    v_done text[];
    v_ids text[];
    v_kinds text[];
    v_networks text[];
    v_targets text[];
    v_slacks integer[];
    v_timeouts integer[];
    v_attempts integer[];
    v_classes smallint[];
BEGIN
    -- Nearly always everything is done, and nothing was asked for meanwhile: then this is all.
    IF 'complete' = ALL (p_verdicts) THEN
        WITH ended AS (
            DELETE FROM apalis.jobs j USING unnest(p_jobs, p_attempts, p_results) u(job, attempt, result)
            WHERE j.id = u.job AND j.lock_by = p_worker AND j.attempts = u.attempt AND j.status = 'Running' AND j.again_class IS NULL
            RETURNING j.id, j.kind, j.network, j.target, j.attempts, j.lock_by, j.due_at, j.enqueued_at, j.lock_at, u.result
        ), history AS (
            INSERT INTO job_history (job_id, kind, network, target, state, attempt, worker_id, due_at, enqueued_at, started_at, finished_at, result)
            SELECT e.id, e.kind, e.network, e.target, 'complete', e.attempts, e.lock_by, e.due_at, e.enqueued_at, e.lock_at, p_now, e.result::jsonb
            FROM ended e
        )
        SELECT array_agg(e.id) INTO v_done FROM ended e;
        RETURN QUERY SELECT unnest(v_done);
        IF cardinality(v_done) = cardinality(p_jobs) THEN RETURN; END IF;
    END IF;
    WITH acked AS (
        SELECT j.id, j.max_attempts, u.verdict, u.delay_s, u.result
        FROM unnest(p_jobs, p_attempts, p_verdicts, p_delays_s, p_results) u(job, attempt, verdict, delay_s, result)
        JOIN apalis.jobs j ON j.id = u.job AND j.lock_by = p_worker AND j.attempts = u.attempt AND j.status = 'Running'
        WHERE u.verdict IN ('complete', 'retry', 'snooze', 'cancel', 'kill')
        ORDER BY j.id FOR UPDATE OF j
    ), ended AS (
        DELETE FROM apalis.jobs j USING acked a
        WHERE j.id = a.id
          AND (a.verdict IN ('complete', 'cancel', 'kill') OR j.cancel_why IS NOT NULL OR (a.verdict = 'retry' AND j.attempts >= a.max_attempts))
        RETURNING j AS job, a.verdict, a.result
    ), history AS (
        INSERT INTO job_history (job_id, kind, network, target, state, attempt, worker_id, due_at, enqueued_at, started_at, finished_at, result)
        SELECT (e.job).id, (e.job).kind, (e.job).network, (e.job).target,
               CASE WHEN e.verdict = 'complete' THEN 'complete'
                    WHEN e.verdict = 'cancel' OR (e.job).cancel_why IS NOT NULL THEN 'cancelled' ELSE 'dead' END,
               (e.job).attempts, (e.job).lock_by, (e.job).due_at, (e.job).enqueued_at, (e.job).lock_at, p_now,
               CASE WHEN (e.job).cancel_why IS NULL OR e.verdict = 'complete' THEN e.result::jsonb
                    ELSE jsonb_build_object('error', (e.job).cancel_why) END
        FROM ended e
    ), back AS (
        UPDATE apalis.jobs j
        SET status = 'Pending', lock_by = NULL, lock_at = NULL, run_deadline = NULL, gate = 'later',
            -- An attempt is given back by allowing one more: its number is part of the fence and never used twice.
            max_attempts = CASE a.verdict WHEN 'snooze' THEN j.max_attempts + 1 ELSE j.max_attempts END,
            run_at = p_now + make_interval(secs => a.delay_s),
            deadline_at = p_now + make_interval(secs => a.delay_s + j.slack_s),
            -- What was asked for while it ran is asked of its next attempt.
            class = least(j.class, j.again_class), again_class = NULL,
            last_result = a.result::jsonb
        FROM acked a
        WHERE j.id = a.id AND j.cancel_why IS NULL
          AND (a.verdict = 'snooze' OR (a.verdict = 'retry' AND j.attempts < a.max_attempts))
    )
    SELECT (SELECT array_agg(a.id) FROM acked a), array_agg((e.job).kind), array_agg((e.job).network), array_agg((e.job).target),
           array_agg((e.job).slack_s), array_agg((e.job).timeout_s),
           array_agg(greatest((e.job).max_attempts - (e.job).attempts + 1, 1)), array_agg((e.job).again_class)
    INTO v_ids, v_kinds, v_networks, v_targets, v_slacks, v_timeouts, v_attempts, v_classes
    FROM ended e WHERE (e.job).again_class IS NOT NULL AND (e.job).cancel_why IS NULL;
    IF v_kinds IS NOT NULL THEN
        PERFORM job_enqueue(v_kinds, v_networks, v_targets, array_fill(p_now, ARRAY[cardinality(v_kinds)]), v_slacks, v_timeouts, v_attempts,
                            p_now, v_classes);
    END IF;
    RETURN QUERY SELECT unnest(v_ids);
END $$;
COMMENT ON FUNCTION job_finish IS 'Acknowledges attempts: complete, cancel and kill move the job to history, retry and snooze put it back (snooze allows one attempt more; a retry beyond max_attempts is dead), and what was asked for again meanwhile is enqueued anew. Returns the jobs whose fence held.';

CREATE FUNCTION job_lose(p_jobs text[], p_whys text[], p_now timestamptz DEFAULT now())
RETURNS TABLE (again integer, ended integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
BEGIN
    WITH lost AS (
        SELECT j.id, u.why FROM unnest(p_jobs, p_whys) u(job, why) JOIN apalis.jobs j ON j.id = u.job AND j.status = 'Running'
    ), over AS (
        DELETE FROM apalis.jobs j USING lost l WHERE j.id = l.id AND (j.cancel_why IS NOT NULL OR j.attempts >= j.max_attempts)
        RETURNING j AS job, l.why
    ), history AS (
        INSERT INTO job_history (job_id, kind, network, target, state, attempt, worker_id, due_at, enqueued_at, started_at, finished_at, result)
        SELECT (o.job).id, (o.job).kind, (o.job).network, (o.job).target, CASE WHEN (o.job).cancel_why IS NULL THEN 'dead' ELSE 'cancelled' END,
               (o.job).attempts, (o.job).lock_by, (o.job).due_at, (o.job).enqueued_at, (o.job).lock_at, p_now,
               jsonb_build_object('error', coalesce((o.job).cancel_why, o.why))
        FROM over o
    ), back AS (
        UPDATE apalis.jobs j
        SET status = 'Pending', lock_by = NULL, lock_at = NULL, run_deadline = NULL, gate = 'later', run_at = p_now,
            class = least(j.class, j.again_class), again_class = NULL,
            last_result = jsonb_build_object('error', l.why, 'worker', j.lock_by)
        FROM lost l WHERE j.id = l.id AND j.cancel_why IS NULL AND j.attempts < j.max_attempts
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM back), (SELECT count(*) FROM over) INTO again, ended;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION job_lose IS 'Takes running jobs from a worker that is gone: put back with the attempt spent, or ended when cancelled or out of attempts. The caller has locked them.';

DROP FUNCTION job_rescue(integer, timestamptz);
CREATE FUNCTION job_rescue(p_limit integer DEFAULT 1000, p_now timestamptz DEFAULT now(), p_deadlines boolean DEFAULT true)
RETURNS TABLE (rescued integer, killed integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
DECLARE
    v_jobs text[];
    v_whys text[];
BEGIN
    SELECT array_agg(l.id), array_agg(l.why) INTO v_jobs, v_whys FROM (
        SELECT j.id, 'worker lost' AS why FROM apalis.workers w JOIN apalis.jobs j ON j.lock_by = w.id AND j.status = 'Running'
        WHERE w.lease_until IS NULL OR w.lease_until <= p_now
        ORDER BY j.id LIMIT p_limit FOR UPDATE OF j SKIP LOCKED) l;
    IF v_jobs IS NULL AND p_deadlines THEN
        SELECT array_agg(l.id), array_agg(l.why) INTO v_jobs, v_whys FROM (
            SELECT j.id, 'run deadline passed' AS why FROM apalis.jobs j
            WHERE j.status = 'Running' AND j.lock_by IS NOT NULL AND j.run_deadline <= p_now
            ORDER BY j.id LIMIT p_limit FOR UPDATE SKIP LOCKED) l;
    END IF;
    SELECT coalesce(l.again, 0), coalesce(l.ended, 0) INTO rescued, killed FROM job_lose(v_jobs, v_whys, p_now) l WHERE v_jobs IS NOT NULL;
    rescued := coalesce(rescued, 0);
    killed := coalesce(killed, 0);
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION job_rescue IS 'Puts jobs back whose worker''s lease has ended or, looked at with p_deadlines, whose own run deadline has passed; those out of attempts die. The attempt stays spent.';

DROP FUNCTION job_heartbeat(text, double precision, text, text, text[], integer, timestamptz);
CREATE FUNCTION job_heartbeat(
    p_worker text, p_lease_s double precision, p_vantage text, p_version text, p_queues text[], p_slots integer,
    p_now timestamptz DEFAULT now(), p_slots_of integer[] DEFAULT NULL, p_networks text[] DEFAULT NULL,
    p_bytes bigint[] DEFAULT NULL, p_listens boolean DEFAULT false)
RETURNS TABLE (job_id text, attempt integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
DECLARE v_until timestamptz;
BEGIN
    SELECT w.lease_until INTO v_until FROM apalis.workers w WHERE w.id = p_worker FOR UPDATE;
    IF found AND coalesce(v_until <= p_now, true) THEN
        -- A lease that ended is over: its jobs and permits are anybody's, also when nobody took them yet.
        PERFORM job_lose(array_agg(l.id), array_agg('worker lost'::text), p_now) FROM (
            SELECT j.id FROM apalis.jobs j WHERE j.lock_by = p_worker AND j.status = 'Running' ORDER BY j.id FOR UPDATE) l
        HAVING count(*) > 0;
        DELETE FROM network_lease l WHERE l.worker_id = p_worker;
    END IF;
    INSERT INTO apalis.workers AS w (id, worker_type, storage_name, layers, last_seen, started_at, lease_until, vantage, version, queues, slots, slots_of, listens)
    VALUES (p_worker, 'bigbrotr', 'bigbrotr', '', p_now, p_now, p_now + make_interval(secs => p_lease_s), p_vantage, p_version, p_queues, p_slots, p_slots_of, p_listens)
    ON CONFLICT (id) DO UPDATE SET last_seen = p_now, lease_until = p_now + make_interval(secs => p_lease_s), listens = p_listens;
    INSERT INTO network_usage AS x (network, day, bytes)
    SELECT u.network, (p_now AT TIME ZONE 'UTC')::date, u.bytes FROM unnest(p_networks, p_bytes) u(network, bytes) WHERE u.bytes > 0 ORDER BY 1
    ON CONFLICT (network, day) DO UPDATE SET bytes = x.bytes + excluded.bytes;
    RETURN QUERY SELECT j.id, j.attempts FROM apalis.jobs j WHERE j.lock_by = p_worker AND j.status = 'Running';
END $$;
COMMENT ON FUNCTION job_heartbeat IS 'Registers or renews a worker''s lease and adds to the day''s traffic; returns the (job, attempt) pairs it still holds, so that it can stop what it lost. A lease that had ended begins anew without jobs.';

CREATE OR REPLACE FUNCTION worker_stop(p_worker text)
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
DECLARE n integer;
BEGIN
    -- The lease first: a claim under way holds its row, so that nothing is claimed after the jobs went back.
    UPDATE apalis.workers w SET lease_until = now(), listens = false WHERE w.id = p_worker;
    PERFORM job_lose(array_agg(l.id), array_agg('stopped'::text)) FROM (
        SELECT j.id FROM apalis.jobs j WHERE j.lock_by = p_worker AND j.status = 'Running' AND j.cancel_why IS NOT NULL ORDER BY j.id FOR UPDATE) l
    HAVING count(*) > 0;
    UPDATE apalis.jobs j
    SET status = 'Pending', lock_by = NULL, lock_at = NULL, run_deadline = NULL, max_attempts = j.max_attempts + 1, gate = 'later', run_at = now(),
        class = least(j.class, j.again_class), again_class = NULL
    WHERE j.lock_by = p_worker AND j.status = 'Running';
    GET DIAGNOSTICS n = ROW_COUNT;
    DELETE FROM network_lease l WHERE l.worker_id = p_worker;
    RETURN n;
END $$;
COMMENT ON FUNCTION worker_stop IS 'A worker that stops gives back what it still holds, the attempt unspent, and ends its lease. Returns how many jobs went back.';

CREATE OR REPLACE FUNCTION worker_retire(p_older_s double precision, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE n integer;
BEGIN
    DELETE FROM apalis.workers w
    WHERE w.worker_type = 'bigbrotr' AND w.lease_until < p_now - make_interval(secs => p_older_s)
      AND NOT EXISTS (SELECT FROM apalis.jobs j WHERE j.lock_by = w.id);
    GET DIAGNOSTICS n = ROW_COUNT;
    DELETE FROM network_lease l WHERE NOT EXISTS (SELECT FROM apalis.workers w WHERE w.id = l.worker_id);
    RETURN n;
END $$;
COMMENT ON FUNCTION worker_retire IS 'Forgets workers whose lease ended long ago and that hold nothing; returns how many.';

CREATE FUNCTION job_exchange(
    p_worker text,
    p_jobs text[], p_attempts integer[], p_verdicts text[], p_delays_s double precision[], p_results text[],
    p_queues text[], p_free integer[], p_running integer[], p_turn integer, p_floors timestamptz[],
    p_networks text[] DEFAULT NULL, p_peaks integer[] DEFAULT NULL, p_now timestamptz DEFAULT now())
RETURNS TABLE (what text, job_id text, attempt integer, queue text, kind text, network text, target text, max_attempts integer,
               timeout_s integer, class smallint, deadline_at timestamptz, probe boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
BEGIN
    IF cardinality(p_jobs) > 0 THEN
        RETURN QUERY SELECT 'finished', f, 0, '', '', '', '', 0, 0, 0::smallint, p_now, false
                     FROM job_finish(p_worker, p_jobs, p_attempts, p_verdicts, p_delays_s, p_results, p_now) f;
    END IF;
    -- Permits that were not needed for a while go back.
    IF cardinality(p_networks) > 0 THEN
        UPDATE network_lease l SET permits = u.peak FROM unnest(p_networks, p_peaks) u(network, peak)
        WHERE l.worker_id = p_worker AND l.network = u.network AND l.permits > u.peak;
    END IF;
    IF cardinality(p_queues) > 0 THEN
        RETURN QUERY SELECT 'claimed', c.job_id, c.attempt, c.queue, c.kind, c.network, c.target, c.max_attempts, c.timeout_s, c.class, c.deadline_at, c.probe
                     FROM job_claim(p_worker, p_queues, p_free, p_now, p_running, p_turn, p_floors) c;
    END IF;
    RETURN QUERY SELECT 'cancel', j.id, j.attempts, j.job_type, j.kind, j.network, j.target, j.max_attempts, j.timeout_s, j.class, j.deadline_at, false
                 FROM apalis.jobs j WHERE j.lock_by = p_worker AND j.cancel_why IS NOT NULL AND j.status = 'Running';
END $$;
COMMENT ON FUNCTION job_exchange IS 'What a worker and the queue tell each other in one call: job_finish, then job_claim with the slots that became free, then which of its jobs an operator wants stopped. p_peaks: the most jobs it ran on p_networks since it last said so; permits beyond go back.';

CREATE FUNCTION scheduler_tick(
    p_holder text, p_ttl_s double precision, p_kinds text[], p_networks text[], p_timeouts integer[], p_max_attempts integer[],
    p_again_s integer[], p_limit integer, p_deadlines boolean, p_now timestamptz DEFAULT now())
RETURNS TABLE (term bigint, rescued integer, killed integer, enqueued integer[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE n integer;
BEGIN
    term := leader_claim('scheduler', p_holder, p_ttl_s, p_now);
    IF term IS NOT NULL THEN
        SELECT r.rescued, r.killed INTO rescued, killed FROM job_rescue(1000, p_now, p_deadlines) r;
        FOR i IN 1 .. cardinality(p_kinds) LOOP
            SELECT s.enqueued INTO n FROM schedule_enqueue(
                p_kinds[i], CASE WHEN p_kinds[i] IN ('validate', 'monitor', 'sync') THEN p_networks ELSE ARRAY['local'] END,
                p_limit, p_timeouts[i], p_max_attempts[i], p_again_s[i], p_now) s;
            enqueued[i] := n;
        END LOOP;
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION scheduler_tick IS 'One round of a scheduler in one transaction: takes or renews the lead (term; null while another leads), and only then rescues and enqueues what is due, so that a leader which was asleep does nothing on an old lead. enqueued: new jobs per kind of p_kinds.';

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
        -- Steps of other functions are nobody's to call by themselves.
        IF f.name NOT IN ('roles_grant', 'partition_ensure', 'job_lose', 'network_borrow', 'job_admit') THEN
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
