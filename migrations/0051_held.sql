-- What 0048 and 0050 made, held to its word: a table before its parts, and nobody's absence taken from a moment.

-- In the order of month_drop, which takes the tables first and their parts after them.
CREATE OR REPLACE FUNCTION month_hold() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    LOCK TABLE ONLY event, ONLY event_default, ONLY event_relay, ONLY event_relay_default IN ACCESS SHARE MODE;
END $$;

CREATE OR REPLACE FUNCTION queue_retire(p_networks text[], p_limit integer, p_now timestamptz DEFAULT now())
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
              AND NOT EXISTS (SELECT FROM apalis.workers w WHERE w.lease_until > p_now - interval '10 minutes' AND q.kind || '.' || q.network = ANY (w.queues))))
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
        -- Nobody was there to take it, or whoever took it knew no webhook; for a day, at whose beginning and end workers were at
        -- work: a fleet that was off has left nothing undone.
        IF (v_status = 'Pending' AND v_enqueued < p_now - interval '1 day'
            AND NOT EXISTS (SELECT FROM apalis.workers w WHERE w.lease_until > p_now - interval '10 minutes' AND 'monitor.local' = ANY (w.queues))
            AND EXISTS (SELECT FROM job_history h WHERE h.worker_id IS NOT NULL AND h.finished_at BETWEEN p_now - interval '24 hours' AND p_now - interval '23 hours')
            AND EXISTS (SELECT FROM job_history h WHERE h.worker_id IS NOT NULL AND h.finished_at > p_now - interval '1 hour'))
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
                      'event_remove', 'event_strip', 'event_lay', 'coverage_lock', 'coverage_clip', 'rollup_stage', 'rollup_fold', 'rollup_mend', 'rollup_mend_versions',
                      'rollup_subtract', 'month_hold') THEN
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
