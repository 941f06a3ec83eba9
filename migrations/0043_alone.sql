-- What is left alone is left alone whoever asks, and no dead job goes uncounted.

-- A row for each dead job of the history's days, so that counting them costs what there are of them.
CREATE INDEX job_history_dead ON job_history (finished_at) WHERE state = 'dead';

CREATE OR REPLACE FUNCTION fleet_gauges(p_now timestamptz DEFAULT now())
RETURNS TABLE (gauge text, kind text, network text, word text, value bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100 SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY
    SELECT 'queue_dead_jobs', q.kind, q.network, '', coalesce(s.dead, 0)
    FROM queue_list() q
    -- From the history itself: what ended in a transaction that was open when its time was sampled is in no sample.
    LEFT JOIN (SELECT h.kind, h.network, count(*) AS dead FROM job_history h
               WHERE h.state = 'dead' AND h.finished_at > p_now - interval '1 hour' GROUP BY 1, 2) s ON s.kind = q.kind AND s.network = q.network;
    RETURN QUERY
    SELECT 'queue_held', q.kind, q.network, '', count(p.queue)
    FROM queue_list() q LEFT JOIN queue_pause p ON p.queue = q.kind || '.' || q.network GROUP BY q.kind, q.network;
    RETURN QUERY
    SELECT 'queue_workers', q.kind, q.network, '', count(w.id)
    FROM queue_list() q
    LEFT JOIN apalis.workers w ON w.lease_until > p_now AND NOT w.draining AND q.kind || '.' || q.network = ANY (w.queues)
    GROUP BY q.kind, q.network;
    RETURN QUERY SELECT 'queue_dead_rows', '', '', '', pg_stat_get_dead_tuples('apalis.jobs'::regclass);
    RETURN QUERY
    SELECT 'workers', '', '', s.word, count(w.id)
    FROM (VALUES ('working', false), ('draining', true)) s(word, draining)
    LEFT JOIN apalis.workers w ON w.worker_type = 'bigbrotr' AND w.lease_until > p_now AND w.draining = s.draining
    GROUP BY s.word;
    RETURN QUERY
    SELECT g.gauge, '', '', '', g.value
    FROM autoscale_desired a
    CROSS JOIN LATERAL (VALUES ('autoscale_desired_workers', a.desired::bigint), ('autoscale_backlog_seconds', coalesce(a.backlog_s, 0)::bigint)) g(gauge, value);
    RETURN QUERY
    SELECT g.gauge, '', l.network, '', g.value
    FROM network_limit l
    CROSS JOIN LATERAL (VALUES
        ('network_permits', l.permits::bigint),
        ('network_permits_lent', (SELECT coalesce(sum(n.permits), 0)::bigint FROM network_lease n JOIN apalis.workers w ON w.id = n.worker_id
                                  WHERE n.network = l.network AND w.lease_until > p_now)),
        ('network_today_bytes', coalesce((SELECT u.bytes FROM network_usage u WHERE u.network = l.network AND u.day = (p_now AT TIME ZONE 'UTC')::date), 0)),
        ('network_limit_bytes', l.bytes_per_day),
        ('breakers', (SELECT count(*) FROM breaker b WHERE b.network = l.network))) g(gauge, value)
    WHERE g.value IS NOT NULL;
    RETURN QUERY
    SELECT 'view_age_seconds', '', '', '', extract(epoch FROM p_now - min(v.refreshed_at))::bigint FROM view_state v HAVING count(*) > 0;
    RETURN QUERY SELECT 'archive_bytes', '', '', '', pg_database_size(current_database());
    RETURN QUERY
    SELECT g.gauge, '', '', '', g.value
    FROM (SELECT count(*) AS waiting, count(*) FILTER (WHERE a.tries > 0) AS failing FROM relay_alert a WHERE a.due_at IS NOT NULL) c
    CROSS JOIN LATERAL (VALUES ('relay_alerts_waiting', c.waiting), ('relay_alerts_failing', c.failing)) g(gauge, value);
    RETURN QUERY
    SELECT 'publishing_relays_failing', '', '', '', count(*) FROM publication_relay p WHERE p.failures > 0;
END $$;

CREATE OR REPLACE FUNCTION job_run_now(p_targets text[], p_kinds text[], p_actor text, p_why text, p_now timestamptz DEFAULT now())
RETURNS TABLE (asked integer, enqueued integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_kinds text[];
    v_networks text[];
    v_targets text[];
BEGIN
    SELECT array_agg(w.kind), array_agg(w.network), array_agg(w.target) INTO v_kinds, v_networks, v_targets FROM (
        SELECT k.kind, r.network, r.url AS target FROM relay r CROSS JOIN (VALUES ('monitor'), ('sync')) k(kind)
        WHERE r.url = ANY (p_targets) AND url_excluded(r.url) IS NULL
        UNION ALL
        SELECT 'validate', c.network, c.url FROM candidate c WHERE c.url = ANY (p_targets) AND url_excluded(c.url) IS NULL
        UNION ALL
        SELECT s.kind, s.network, s.target FROM schedule s WHERE s.network = 'local' AND s.target = ANY (p_targets)) w
    WHERE p_kinds IS NULL OR w.kind = ANY (p_kinds);
    asked := coalesce(cardinality(v_kinds), 0);
    enqueued := 0;
    IF asked > 0 THEN
        -- Whoever names a candidate that was given up wants it looked at again.
        UPDATE candidate c SET tombstoned_at = NULL WHERE c.url = ANY (v_targets) AND c.tombstoned_at IS NOT NULL AND 'validate' = ANY (v_kinds);
        enqueued := job_enqueue(v_kinds, v_networks, v_targets, array_fill(p_now, ARRAY[asked]), array_fill(5, ARRAY[asked]),
                                ARRAY(SELECT job_timeout(k) FROM unnest(v_kinds) k), array_fill(3, ARRAY[asked]), p_now, array_fill(0::smallint, ARRAY[asked]));
    END IF;
    PERFORM operation_note(p_actor, 'run-now', jsonb_build_object('targets', p_targets, 'kinds', p_kinds), asked, v_targets, p_why);
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION job_run_now IS 'Wants relays, candidates or local tasks done before everything else: enqueued, raised where they wait, remembered where they run. Returns how many jobs that concerns and how many are new; 0 when nothing of that name is known, or it is excluded.';

CREATE OR REPLACE FUNCTION job_retry_match(p_which text, p_kind text, p_network text, p_since_s double precision, p_now timestamptz DEFAULT now())
RETURNS TABLE (job_id text, kind text, network text, target text, dead boolean)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY
        SELECT j.id, j.kind, j.network, j.target, false FROM job_match(p_which, p_kind, p_network) m JOIN apalis.jobs j ON j.id = m
        WHERE j.gate = 'later' AND j.run_at > p_now AND j.last_result ? 'error';
    -- Of a target that has a job again nothing is left to be done; a kind that no queue has is nobody's work.
    RETURN QUERY
        SELECT DISTINCT ON (h.kind, h.network, h.target) h.job_id, h.kind, h.network, h.target, true FROM job_history h
        JOIN queue_list() q ON q.kind = h.kind AND q.network = h.network
        WHERE h.state = 'dead' AND h.finished_at > p_now - make_interval(secs => p_since_s)
          AND (p_kind IS NULL OR h.kind = p_kind) AND (p_network IS NULL OR h.network = p_network)
          AND (p_which IS NULL OR h.job_id = p_which OR h.target = p_which OR (p_which LIKE '%*%' AND h.target LIKE name_pattern(p_which)))
          AND NOT EXISTS (SELECT FROM apalis.jobs j WHERE j.job_type = h.kind || '.' || h.network AND j.idempotency_key = h.target)
          AND (h.network = 'local' OR url_excluded(h.target) IS NULL)
        ORDER BY h.kind, h.network, h.target, h.finished_at DESC;
END $$;
COMMENT ON FUNCTION job_retry_match IS 'What a retry is about: live jobs that wait after a failure, and what died within the last p_since_s seconds, has no job since and is not excluded. Named as for job_match, dead ones by their last job.';
