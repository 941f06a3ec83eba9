-- What operators do and see: holding queues, cancelling, retrying, running now, and why a job does not run.

CREATE TABLE operation (
    id       bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT now(),
    actor    text        NOT NULL,
    action   text        NOT NULL,
    selector jsonb       NOT NULL,
    jobs     integer     NOT NULL,
    sample   text[]      NOT NULL DEFAULT '{}',
    why      text        NOT NULL
);
COMMENT ON TABLE  operation IS 'What operators did to the queues: written with the deed.';
COMMENT ON COLUMN operation.id IS 'Serial.';
COMMENT ON COLUMN operation.at IS 'When.';
COMMENT ON COLUMN operation.actor IS 'Who, as the command line was told, and the database role.';
COMMENT ON COLUMN operation.action IS 'pause, drain, resume, cancel, retry, run-now, drain-worker or resume-worker.';
COMMENT ON COLUMN operation.selector IS 'What was asked for.';
COMMENT ON COLUMN operation.jobs IS 'How many queues, jobs or workers it touched.';
COMMENT ON COLUMN operation.sample IS 'The first ten of them.';
COMMENT ON COLUMN operation.why IS 'The reason given.';

CREATE TABLE queue_sample (
    sampled_at timestamptz      NOT NULL,
    kind       text             NOT NULL,
    network    text             NOT NULL,
    complete   integer          NOT NULL,
    cancelled  integer          NOT NULL,
    dead       integer          NOT NULL,
    run_s      double precision NOT NULL,
    wait_s     double precision NOT NULL,
    scheduled  bigint,
    PRIMARY KEY (sampled_at, kind, network)
);
COMMENT ON TABLE  queue_sample IS 'What ended in each queue between two samples of the leading scheduler, ten seconds apart: what the views count by, whatever the history holds.';
COMMENT ON COLUMN queue_sample.sampled_at IS 'End of the stretch.';
COMMENT ON COLUMN queue_sample.kind IS 'Job kind.';
COMMENT ON COLUMN queue_sample.network IS 'Network, or local.';
COMMENT ON COLUMN queue_sample.complete IS 'Jobs completed.';
COMMENT ON COLUMN queue_sample.cancelled IS 'Jobs cancelled.';
COMMENT ON COLUMN queue_sample.dead IS 'Jobs dead.';
COMMENT ON COLUMN queue_sample.run_s IS 'Seconds their last attempts ran, together.';
COMMENT ON COLUMN queue_sample.wait_s IS 'Seconds from due to that attempt, together.';
COMMENT ON COLUMN queue_sample.scheduled IS 'Live jobs not due yet; counted once a minute, null in between.';

CREATE FUNCTION queue_sample_take(p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    -- What ends in a transaction that is still open will be in the next sample.
    v_until timestamptz := p_now - interval '2 seconds';
    v_since timestamptz;
    v_count boolean;
    v_rows integer;
BEGIN
    SELECT greatest(max(s.sampled_at), v_until - interval '10 minutes') INTO v_since FROM queue_sample s;
    v_since := coalesce(v_since, v_until - interval '1 minute');
    v_count := NOT EXISTS (SELECT FROM queue_sample s WHERE s.scheduled IS NOT NULL AND s.sampled_at > v_until - interval '1 minute');
    INSERT INTO queue_sample (sampled_at, kind, network, complete, cancelled, dead, run_s, wait_s, scheduled)
    SELECT v_until, q.kind, q.network, coalesce(d.complete, 0), coalesce(d.cancelled, 0), coalesce(d.dead, 0),
           coalesce(d.run_s, 0), coalesce(d.wait_s, 0), CASE WHEN v_count THEN coalesce(l.n, 0) END
    FROM (SELECT k.kind, k.network FROM (
              SELECT k AS kind, n AS network FROM unnest(ARRAY['validate', 'monitor', 'sync']) k, unnest(ARRAY['clearnet', 'tor', 'i2p', 'loki']) n
              UNION ALL VALUES ('discover', 'local'), ('refresh', 'local')) k) q
    LEFT JOIN (
        SELECT h.kind, h.network, count(*) FILTER (WHERE h.state = 'complete') AS complete, count(*) FILTER (WHERE h.state = 'cancelled') AS cancelled,
               count(*) FILTER (WHERE h.state = 'dead') AS dead, sum(extract(epoch FROM h.finished_at - coalesce(h.started_at, h.finished_at))) AS run_s,
               sum(greatest(extract(epoch FROM h.started_at - h.due_at), 0)) AS wait_s
        FROM job_history h WHERE h.finished_at > v_since AND h.finished_at <= v_until GROUP BY 1, 2) d
      ON d.kind = q.kind AND d.network = q.network
    LEFT JOIN (SELECT j.job_type, count(*) AS n FROM apalis.jobs j WHERE v_count AND j.gate = 'later' AND j.run_at > p_now GROUP BY 1) l
      ON l.job_type = q.kind || '.' || q.network
    WHERE d.kind IS NOT NULL OR v_count
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS v_rows = ROW_COUNT;
    DELETE FROM queue_sample s WHERE s.sampled_at < p_now - interval '1 day';
    RETURN v_rows;
END $$;
COMMENT ON FUNCTION queue_sample_take IS 'Adds up what ended since the last sample; returns how many queues had anything. Reads the new part of the history by its index, and counts what is scheduled ahead once a minute.';

CREATE FUNCTION operation_note(p_actor text, p_action text, p_selector jsonb, p_jobs integer, p_sample text[], p_why text)
RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
    INSERT INTO operation (actor, action, selector, jobs, sample, why)
    VALUES (p_actor || ' (' || session_user || ')', p_action, p_selector, p_jobs, coalesce(p_sample[1:10], '{}'), p_why)
$$;
COMMENT ON FUNCTION operation_note IS 'Writes down what an operator did.';

CREATE FUNCTION queue_hold(p_queues text[], p_mode text, p_actor text, p_why text)
RETURNS text[]
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE v_named text[];
BEGIN
    SELECT array_agg(DISTINCT q.name ORDER BY q.name) INTO v_named FROM (
        SELECT k || '.' || n AS name FROM unnest(ARRAY['validate', 'monitor', 'sync']) k, unnest(ARRAY['clearnet', 'tor', 'i2p', 'loki']) n
        UNION ALL VALUES ('discover.local'), ('refresh.local')) q
    JOIN unnest(p_queues) u ON q.name LIKE replace(replace(u, '_', '\_'), '*', '%');
    IF v_named IS NULL THEN
        RAISE EXCEPTION 'no queue is named %: queues are kind.network, with * for any', array_to_string(p_queues, ', ') USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF p_mode = 'resume' THEN
        DELETE FROM queue_pause q WHERE q.queue = ANY (v_named);
    ELSE
        INSERT INTO queue_pause (queue, mode, actor, why) SELECT u, p_mode, p_actor, p_why FROM unnest(v_named) u ORDER BY 1
        ON CONFLICT (queue) DO UPDATE SET mode = p_mode, since_at = now(), actor = p_actor, why = p_why;
    END IF;
    PERFORM operation_note(p_actor, p_mode, to_jsonb(p_queues), cardinality(v_named), v_named, p_why);
    RETURN v_named;
END $$;
COMMENT ON FUNCTION queue_hold IS 'Pauses (nothing is claimed), drains (nothing new is enqueued) or resumes queues, named kind.network with * for any; returns them.';

CREATE FUNCTION worker_drain(p_worker text, p_on boolean, p_actor text, p_why text)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE v_found boolean;
BEGIN
    UPDATE apalis.workers w SET draining = p_on WHERE w.id = p_worker AND w.lease_until > now();
    v_found := found;
    PERFORM operation_note(p_actor, CASE WHEN p_on THEN 'drain-worker' ELSE 'resume-worker' END, to_jsonb(p_worker), v_found::integer, ARRAY[p_worker], p_why);
    RETURN v_found;
END $$;
COMMENT ON FUNCTION worker_drain IS 'Lets a live worker claim nothing more (or again); what it runs goes on. False if there is no such worker.';

CREATE FUNCTION job_match(p_which text, p_kind text, p_network text)
RETURNS SETOF text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    IF p_which IS NULL AND p_kind IS NULL AND p_network IS NULL THEN
        RAISE EXCEPTION 'name a job, a target, a kind or a network' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN QUERY SELECT j.id FROM apalis.jobs j
        WHERE j.kind IS NOT NULL AND (p_kind IS NULL OR j.kind = p_kind) AND (p_network IS NULL OR j.network = p_network)
          AND (p_which IS NULL OR j.id = p_which OR j.target = p_which
               OR (p_which LIKE '%*%' AND j.target LIKE replace(replace(replace(p_which, '\', '\\'), '_', '\_'), '*', '%')))
        ORDER BY j.id;
END $$;
COMMENT ON FUNCTION job_match IS 'Ids of the live jobs an operator names: by id, by target (* stands for anything), by kind, by network; at least one of them.';

CREATE FUNCTION job_preview(p_which text, p_kind text, p_network text)
RETURNS TABLE (jobs bigint, sample text[])
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY SELECT count(*), coalesce((array_agg(j.kind || '.' || j.network || ' ' || j.target || ' ' || coalesce(j.gate, 'running') ORDER BY j.id))[1:10], '{}')
    FROM job_match(p_which, p_kind, p_network) m JOIN apalis.jobs j ON j.id = m;
END $$;
COMMENT ON FUNCTION job_preview IS 'How many live jobs a selection names, and the first ten.';

CREATE FUNCTION job_cancel(p_which text, p_kind text, p_network text, p_actor text, p_why text, p_now timestamptz DEFAULT now())
RETURNS TABLE (cancelled integer, stopping integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_text text := 'cancelled by ' || p_actor || CASE WHEN p_why = '' THEN '' ELSE ': ' || p_why END;
    v_ids text[] := ARRAY(SELECT job_match(p_which, p_kind, p_network));
BEGIN
    PERFORM FROM apalis.jobs j WHERE j.id = ANY (v_ids) ORDER BY j.id FOR UPDATE;
    WITH gone AS (
        DELETE FROM apalis.jobs j WHERE j.id = ANY (v_ids) AND j.status = 'Pending'
        RETURNING j.id, j.kind, j.network, j.target, j.attempts, j.due_at, j.enqueued_at
    ), history AS (
        INSERT INTO job_history (job_id, kind, network, target, state, attempt, worker_id, due_at, enqueued_at, started_at, finished_at, result)
        SELECT g.id, g.kind, g.network, g.target, 'cancelled', g.attempts, NULL, g.due_at, g.enqueued_at, NULL, p_now, jsonb_build_object('error', v_text)
        FROM gone g
    ), marked AS (
        UPDATE apalis.jobs j SET cancel_why = v_text, again_class = NULL WHERE j.id = ANY (v_ids) AND j.status = 'Running' RETURNING 1
    )
    SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM marked) INTO cancelled, stopping;
    PERFORM operation_note(p_actor, 'cancel', jsonb_build_object('which', p_which, 'kind', p_kind, 'network', p_network), cancelled + stopping, v_ids, p_why);
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION job_cancel IS 'Cancels live jobs: pending ones move to history at once, running ones are stopped by their worker within its poll interval. Returns both counts.';

CREATE FUNCTION job_retry(p_which text, p_kind text, p_network text, p_since_s double precision, p_slack integer, p_actor text, p_why text, p_now timestamptz DEFAULT now())
RETURNS TABLE (woken integer, enqueued integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_ids text[] := ARRAY(SELECT job_match(p_which, p_kind, p_network));
    v_kinds text[];
    v_networks text[];
    v_targets text[];
    n integer;
BEGIN
    UPDATE apalis.jobs j SET run_at = p_now, deadline_at = least(j.deadline_at, p_now + make_interval(secs => j.slack_s))
    WHERE j.id = ANY (v_ids) AND j.gate = 'later' AND j.run_at > p_now AND j.last_result ? 'error';
    GET DIAGNOSTICS woken = ROW_COUNT;
    SELECT array_agg(d.kind), array_agg(d.network), array_agg(d.target) INTO v_kinds, v_networks, v_targets FROM (
        SELECT DISTINCT h.kind, h.network, h.target FROM job_history h
        WHERE h.state = 'dead' AND h.finished_at > p_now - make_interval(secs => p_since_s)
          AND (p_kind IS NULL OR h.kind = p_kind) AND (p_network IS NULL OR h.network = p_network)
          AND (p_which IS NULL OR h.job_id = p_which OR h.target = p_which
               OR (p_which LIKE '%*%' AND h.target LIKE replace(replace(replace(p_which, '\', '\\'), '_', '\_'), '*', '%')))) d;
    n := coalesce(cardinality(v_kinds), 0);
    enqueued := 0;
    IF n > 0 THEN
        -- As the next scheduled run would be: 3 attempts; the longest time limit of any kind bounds them.
        enqueued := job_enqueue(v_kinds, v_networks, v_targets, array_fill(p_now, ARRAY[n]), array_fill(p_slack, ARRAY[n]),
                                ARRAY(SELECT job_timeout(k) FROM unnest(v_kinds) k), array_fill(3, ARRAY[n]), p_now);
    END IF;
    PERFORM operation_note(p_actor, 'retry', jsonb_build_object('which', p_which, 'kind', p_kind, 'network', p_network, 'since_s', p_since_s),
                           woken + enqueued, v_targets, p_why);
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION job_retry IS 'Makes jobs that wait after a failure due now, and enqueues anew what died within the last p_since_s seconds. Returns both counts.';

CREATE FUNCTION job_timeout(p_kind text) RETURNS integer
LANGUAGE sql IMMUTABLE
AS $$ SELECT CASE p_kind WHEN 'discover' THEN 300 WHEN 'validate' THEN 600 WHEN 'refresh' THEN 3600 ELSE 900 END $$;
COMMENT ON FUNCTION job_timeout IS 'Seconds one attempt of a kind may run when an operator enqueues it; the same as the scheduler''s.';

CREATE FUNCTION job_run_now(p_targets text[], p_kinds text[], p_actor text, p_why text, p_now timestamptz DEFAULT now())
RETURNS TABLE (asked integer, enqueued integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_kinds text[];
    v_networks text[];
    v_targets text[];
BEGIN
    -- Whoever names a candidate that was given up wants it looked at again.
    UPDATE candidate c SET tombstoned_at = NULL WHERE c.url = ANY (p_targets) AND c.tombstoned_at IS NOT NULL;
    SELECT array_agg(w.kind), array_agg(w.network), array_agg(w.target) INTO v_kinds, v_networks, v_targets FROM (
        SELECT k.kind, r.network, r.url AS target FROM relay r CROSS JOIN (VALUES ('monitor'), ('sync')) k(kind) WHERE r.url = ANY (p_targets)
        UNION ALL
        SELECT 'validate', c.network, c.url FROM candidate c WHERE c.url = ANY (p_targets)
        UNION ALL
        SELECT s.kind, s.network, s.target FROM schedule s WHERE s.network = 'local' AND s.target = ANY (p_targets)) w
    WHERE p_kinds IS NULL OR w.kind = ANY (p_kinds);
    asked := coalesce(cardinality(v_kinds), 0);
    enqueued := 0;
    IF asked > 0 THEN
        enqueued := job_enqueue(v_kinds, v_networks, v_targets, array_fill(p_now, ARRAY[asked]), array_fill(5, ARRAY[asked]),
                                ARRAY(SELECT job_timeout(k) FROM unnest(v_kinds) k), array_fill(3, ARRAY[asked]), p_now, array_fill(0::smallint, ARRAY[asked]));
    END IF;
    PERFORM operation_note(p_actor, 'run-now', jsonb_build_object('targets', p_targets, 'kinds', p_kinds), asked, v_targets, p_why);
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION job_run_now IS 'Wants relays, candidates or local tasks done before everything else: enqueued, raised where they wait, remembered where they run. Returns how many jobs that concerns and how many are new; 0 when nothing of that name is known.';
