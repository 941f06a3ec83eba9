-- What a retry is about, said before it is done: preview and deed ask one function.

CREATE FUNCTION job_retry_match(p_which text, p_kind text, p_network text, p_since_s double precision, p_now timestamptz DEFAULT now())
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
        ORDER BY h.kind, h.network, h.target, h.finished_at DESC;
END $$;
COMMENT ON FUNCTION job_retry_match IS 'What a retry is about: live jobs that wait after a failure, and what died within the last p_since_s seconds and has no job since. Named as for job_match, dead ones by their last job.';

CREATE FUNCTION job_retry_preview(p_which text, p_kind text, p_network text, p_since_s double precision, p_now timestamptz DEFAULT now())
RETURNS TABLE (jobs bigint, sample text[])
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY SELECT count(*), coalesce((array_agg(m.kind || '.' || m.network || ' ' || m.target || CASE WHEN m.dead THEN ' dead' ELSE ' waits' END
                                                      ORDER BY m.dead, m.job_id))[1:10], '{}')
    FROM job_retry_match(p_which, p_kind, p_network, p_since_s, p_now) m;
END $$;
COMMENT ON FUNCTION job_retry_preview IS 'How many jobs a retry would touch, and the first ten.';

CREATE OR REPLACE FUNCTION job_retry(p_which text, p_kind text, p_network text, p_since_s double precision, p_slack integer, p_actor text, p_why text, p_now timestamptz DEFAULT now())
RETURNS TABLE (woken integer, enqueued integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_ids text[];
    v_kinds text[];
    v_networks text[];
    v_targets text[];
    n integer;
BEGIN
    -- As job_enqueue locks: first its turn, then jobs in the order of ids.
    PERFORM pg_advisory_xact_lock(7304);
    SELECT array_agg(m.job_id ORDER BY m.job_id) FILTER (WHERE NOT m.dead), array_agg(m.kind) FILTER (WHERE m.dead),
           array_agg(m.network) FILTER (WHERE m.dead), array_agg(m.target) FILTER (WHERE m.dead)
    INTO v_ids, v_kinds, v_networks, v_targets FROM job_retry_match(p_which, p_kind, p_network, p_since_s, p_now) m;
    PERFORM FROM apalis.jobs j WHERE j.id = ANY (v_ids) ORDER BY j.id FOR UPDATE;
    UPDATE apalis.jobs j SET run_at = p_now, deadline_at = least(j.deadline_at, p_now + make_interval(secs => j.slack_s))
    WHERE j.id = ANY (v_ids) AND j.gate = 'later' AND j.run_at > p_now;
    GET DIAGNOSTICS woken = ROW_COUNT;
    n := coalesce(cardinality(v_kinds), 0);
    enqueued := 0;
    IF n > 0 THEN
        -- As the next scheduled run would be: 3 attempts; the longest time limit of any kind bounds them.
        enqueued := job_enqueue(v_kinds, v_networks, v_targets, array_fill(p_now, ARRAY[n]), array_fill(p_slack, ARRAY[n]),
                                ARRAY(SELECT job_timeout(k) FROM unnest(v_kinds) k), array_fill(3, ARRAY[n]), p_now);
    END IF;
    PERFORM operation_note(p_actor, 'retry', jsonb_build_object('which', p_which, 'kind', p_kind, 'network', p_network, 'since_s', p_since_s),
                           woken + enqueued, coalesce(v_ids, '{}') || coalesce(v_targets, '{}'), p_why);
    RETURN NEXT;
END $$;
