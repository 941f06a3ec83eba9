-- What operators switch off ends: breakers and jobs of networks that nobody serves, alerts that nobody tells; and a server's
-- clock that is set back holds nothing up.

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
    -- Nobody is left to find out whether it could close: no worker of that place serves the network.
    DELETE FROM breaker b WHERE b.until_at < p_now - interval '10 minutes'
      AND NOT EXISTS (SELECT FROM apalis.workers w CROSS JOIN LATERAL unnest(w.queues) q(queue)
                      WHERE w.vantage = b.vantage AND w.lease_until > p_now AND split_part(q.queue, '.', 2) = b.network);
    DELETE FROM breaker_closed c WHERE c.closed_at < p_now - interval '1 day';
    RETURN n;
END $$;
COMMENT ON FUNCTION worker_retire IS 'Forgets workers whose lease ended long ago and that hold nothing, and breakers that no live worker could close; returns how many workers.';

CREATE FUNCTION queue_retire(p_networks text[], p_limit integer, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
DECLARE
    v_ids text[];
    n integer;
BEGIN
    -- A worker that serves the network all the same does them; one that starts anew has ten minutes to come.
    v_ids := ARRAY(
        SELECT j.id FROM apalis.jobs j
        WHERE j.job_type = ANY (ARRAY(
            SELECT q.kind || '.' || q.network FROM queue_list() q
            WHERE q.network <> 'local' AND q.network <> ALL (p_networks)
              AND NOT EXISTS (SELECT FROM apalis.workers w WHERE w.lease_until > p_now AND q.kind || '.' || q.network = ANY (w.queues))))
          AND j.status = 'Pending' AND j.run_at < p_now - interval '10 minutes'
        LIMIT p_limit);
    v_ids := ARRAY(SELECT j.id FROM apalis.jobs j WHERE j.id = ANY (v_ids) AND j.status = 'Pending' ORDER BY j.id FOR UPDATE SKIP LOCKED);
    WITH gone AS (
        DELETE FROM apalis.jobs j WHERE j.id = ANY (v_ids)
        RETURNING j.id, j.kind, j.network, j.target, j.attempts, j.due_at, j.enqueued_at
    )
    INSERT INTO job_history (job_id, kind, network, target, state, attempt, worker_id, due_at, enqueued_at, started_at, finished_at, result)
    SELECT g.id, g.kind, g.network, g.target, 'cancelled', g.attempts, NULL, g.due_at, g.enqueued_at, NULL, p_now,
           jsonb_build_object('error', 'the network is switched off and nobody serves it')
    FROM gone g;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION queue_retire IS 'Cancels at most p_limit jobs that have been due for ten minutes, of networks that are none of p_networks, those the leading scheduler has on, and that no live worker serves; returns how many. The schedule brings them back when the network is on again.';

CREATE OR REPLACE FUNCTION alert_retire(p_keep_days integer, p_deliver boolean, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_job text;
    v_status text;
    v_enqueued timestamptz;
    n integer;
BEGIN
    -- A worker that knows the webhook does the task, and so keeps it, whatever a scheduler knows.
    IF NOT p_deliver AND NOT EXISTS (SELECT FROM queue_pause q WHERE q.queue = 'monitor.local')
       AND NOT EXISTS (SELECT FROM job_history h WHERE h.kind = 'monitor' AND h.target = 'alerts' AND h.state IN ('complete', 'dead')
                       AND h.finished_at > p_now - interval '1 day') THEN
        SELECT j.id, j.status, j.enqueued_at INTO v_job, v_status, v_enqueued
        FROM apalis.jobs j WHERE j.job_type = 'monitor.local' AND j.idempotency_key = 'alerts' FOR UPDATE;
        -- Nobody was there to take it, or whoever took it knew no webhook; for a day, at whose beginning the fleet was at work:
        -- one that was off has left nothing undone.
        IF (v_status = 'Pending' AND v_enqueued < p_now - interval '1 day'
            AND NOT EXISTS (SELECT FROM apalis.workers w WHERE w.lease_until > p_now AND 'monitor.local' = ANY (w.queues))
            AND EXISTS (SELECT FROM job_history h WHERE h.finished_at BETWEEN p_now - interval '24 hours' AND p_now - interval '23 hours'))
           OR (v_job IS NULL
               AND EXISTS (SELECT FROM job_history h WHERE h.kind = 'monitor' AND h.target = 'alerts' AND h.state = 'cancelled'
                           AND h.finished_at BETWEEN p_now - interval '24 hours' AND p_now - interval '23 hours')) THEN
            DELETE FROM apalis.jobs j WHERE j.id = v_job;
            DELETE FROM schedule s WHERE s.kind = 'monitor' AND s.target = 'alerts';
        END IF;
    END IF;
    IF NOT p_deliver THEN
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
COMMENT ON FUNCTION alert_retire IS 'Forgets at most 10,000 changes older than p_keep_days that a later one has overtaken; where the scheduler knows no webhook (p_deliver), and for a day of a fleet at work nobody took the task that tells it or all who did knew none, also what waits for it, and the task. Returns how many were forgotten.';

-- A clock that is set back -------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION leader_claim(p_name text, p_holder text, p_ttl_s double precision, p_now timestamptz DEFAULT now())
RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE v_term bigint;
BEGIN
    INSERT INTO leader AS l (name, holder, term, until)
    VALUES (p_name, p_holder, 1, p_now + make_interval(secs => p_ttl_s))
    ON CONFLICT (name) DO UPDATE
        SET term = CASE WHEN l.holder = p_holder THEN l.term ELSE l.term + 1 END,
            holder = p_holder, until = p_now + make_interval(secs => p_ttl_s)
        -- No lease is longer than ten minutes: one that ends later was written by a clock that has been set back.
        WHERE l.holder = p_holder OR l.until <= p_now OR l.until > p_now + interval '15 minutes'
    RETURNING l.term INTO v_term;
    RETURN v_term;
END $$;

CREATE OR REPLACE FUNCTION job_rescue(p_limit integer DEFAULT 1000, p_now timestamptz DEFAULT now(), p_deadlines boolean DEFAULT true)
RETURNS TABLE (rescued integer, killed integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
DECLARE
    v_jobs text[];
    v_whys text[];
    v_now timestamptz := CASE WHEN p_now = now() THEN clock_timestamp() ELSE p_now END;
BEGIN
    -- Heard of later than now: by a clock that has been set back since. Its lease is what it was, from now on; who lives renews it.
    UPDATE apalis.workers w SET last_seen = v_now, lease_until = v_now + (w.lease_until - w.last_seen)
    WHERE w.id = ANY (ARRAY(SELECT x.id FROM apalis.workers x WHERE x.worker_type = 'bigbrotr' AND x.last_seen > v_now + interval '1 minute'
                            FOR NO KEY UPDATE SKIP LOCKED));
    SELECT array_agg(l.id), array_agg(l.why) INTO v_jobs, v_whys FROM (
        SELECT j.id, 'worker lost' AS why FROM apalis.workers w JOIN apalis.jobs j ON j.lock_by = w.id AND j.status = 'Running'
        WHERE w.lease_until IS NULL OR w.lease_until <= p_now
        ORDER BY j.id LIMIT p_limit
        -- A lease that is being renewed is not over.
        FOR NO KEY UPDATE OF w SKIP LOCKED FOR UPDATE OF j SKIP LOCKED) l;
    IF v_jobs IS NULL AND p_deadlines THEN
        -- The same of how long an attempt may run.
        UPDATE apalis.jobs j SET run_deadline = v_now + make_interval(secs => j.timeout_s)
        WHERE j.id = ANY (ARRAY(
            SELECT x.id FROM apalis.jobs x
            WHERE x.status = 'Running' AND x.lock_by IS NOT NULL AND x.run_deadline > v_now + make_interval(secs => x.timeout_s) + interval '1 minute'
            ORDER BY x.id LIMIT p_limit FOR NO KEY UPDATE SKIP LOCKED));
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

CREATE OR REPLACE FUNCTION sync_begin(p_relay_id integer)
RETURNS TABLE (before_at bigint, light boolean, bytes bigint, max_bytes bigint, kinds_from integer[], kinds_to integer[], kinds_days integer[],
               neg_off_until bigint, ages bigint[], untils bigint[], has_gone boolean, measured text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    UPDATE archive_size s SET bytes = pg_database_size(current_database()), measured_at = clock_timestamp()
    WHERE s.measured_at < clock_timestamp() - interval '10 seconds' OR s.measured_at > clock_timestamp() + interval '10 seconds';
    SELECT s.bytes INTO bytes FROM archive_size s;
    before_at := archive_before(p_relay_id);
    SELECT s.light, s.max_bytes INTO light, max_bytes FROM archive_setting s;
    SELECT coalesce(array_agg(r.kind_from ORDER BY r.name), '{}'), coalesce(array_agg(r.kind_to ORDER BY r.name), '{}'), coalesce(array_agg(r.days ORDER BY r.name), '{}')
    INTO kinds_from, kinds_to, kinds_days FROM retention_policy r WHERE r.what = 'kind';
    SELECT f.neg_off_until, f.ages, f.untils, f.has_gone INTO neg_off_until, ages, untils, has_gone FROM sync_facts(p_relay_id) f;
    SELECT c.measured::text INTO measured FROM relay_capability c WHERE c.relay_id = p_relay_id;
    RETURN NEXT;
END $$;

CREATE OR REPLACE FUNCTION archive_room() RETURNS TABLE (bytes bigint, max_bytes bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    UPDATE archive_size s SET bytes = pg_database_size(current_database()), measured_at = clock_timestamp()
    WHERE s.measured_at < clock_timestamp() - interval '10 seconds' OR s.measured_at > clock_timestamp() + interval '10 seconds';
    SELECT s.bytes INTO bytes FROM archive_size s;
    SELECT s.max_bytes INTO max_bytes FROM archive_setting s;
    RETURN NEXT;
END $$;
