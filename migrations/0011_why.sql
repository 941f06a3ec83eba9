-- Why a job does not run, and the numbers of the queues at a price that does not grow.

CREATE FUNCTION job_why(p_which text, p_now timestamptz DEFAULT now())
RETURNS TABLE (job_id text, kind text, network text, target text, state text, reason text, detail text, until_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    j record;
    r record;
    v_limit fleet_limit;
    v_found boolean := false;
    v_free boolean;
BEGIN
    SELECT * INTO v_limit FROM fleet_limit;
    FOR j IN SELECT x.* FROM apalis.jobs x WHERE x.kind IS NOT NULL AND (x.id = p_which OR x.target = p_which) ORDER BY x.kind LOOP
        v_found := true;
        job_id := j.id; kind := j.kind; network := j.network; target := j.target;
        state := CASE WHEN j.status = 'Running' THEN 'running' ELSE j.gate END;
        IF j.status = 'Running' THEN
            SELECT w.lease_until INTO r FROM apalis.workers w WHERE w.id = j.lock_by;
            reason := 'running'; until_at := j.run_deadline;
            detail := format('attempt %s of %s on %s, whose lease ends %s', j.attempts, j.max_attempts, j.lock_by, to_char(r.lease_until AT TIME ZONE 'UTC', 'HH24:MI:SS'));
            RETURN NEXT;
            IF j.cancel_why IS NOT NULL THEN reason := 'cancelling'; detail := j.cancel_why; until_at := NULL; RETURN NEXT; END IF;
            IF j.again_class IS NOT NULL THEN reason := 'again'; detail := 'asked for again while it runs: enqueued anew when it ends'; until_at := NULL; RETURN NEXT; END IF;
            CONTINUE;
        END IF;
        v_free := j.gate <> 'host';
        FOR r IN SELECT q.mode, q.actor, q.why, q.since_at FROM queue_pause q WHERE q.queue = j.job_type AND q.mode = 'pause' LOOP
            reason := 'paused'; until_at := NULL;
            detail := format('%s is paused by %s since %s%s', j.job_type, r.actor, to_char(r.since_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), CASE WHEN r.why = '' THEN '' ELSE ': ' || r.why END);
            RETURN NEXT;
            v_free := false;
        END LOOP;
        IF j.gate = 'later' AND j.run_at > p_now THEN
            reason := CASE WHEN j.last_result ? 'error' THEN 'put-back' ELSE 'scheduled' END; until_at := j.run_at;
            detail := coalesce(j.last_result ->> 'error', 'not before its time');
            RETURN NEXT;
            v_free := false;
        END IF;
        FOR r IN SELECT b.* FROM breaker b WHERE b.network = j.network LOOP
            reason := CASE WHEN r.until_at > p_now THEN 'breaker' ELSE 'breaker-half-open' END; until_at := r.until_at;
            detail := format('%s from %s: %s', r.network, r.vantage, r.why);
            RETURN NEXT;
            v_free := false;
        END LOOP;
        SELECT count(*) AS n, count(*) FILTER (WHERE NOT w.draining) AS takes,
               coalesce(sum(w.slots_of[array_position(w.queues, j.job_type)]) FILTER (WHERE NOT w.draining), 0) AS slots
        INTO r FROM apalis.workers w WHERE w.lease_until > p_now AND j.job_type = ANY (w.queues);
        until_at := NULL;
        IF r.n = 0 THEN
            reason := 'no-worker'; detail := 'no live worker serves ' || j.job_type; RETURN NEXT; v_free := false;
        ELSIF r.takes = 0 THEN
            reason := 'workers-draining'; detail := format('all %s workers of %s are draining', r.n, j.job_type); RETURN NEXT; v_free := false;
        ELSIF (SELECT count(*) FROM apalis.jobs x WHERE x.status = 'Running' AND x.job_type = j.job_type) >= r.slots THEN
            reason := 'no-slot'; detail := format('all %s slots of %s are taken', r.slots, j.job_type); RETURN NEXT; v_free := false;
        END IF;
        IF j.network <> 'local' THEN
            SELECT l.permits, l.bytes_per_day, u.bytes,
                   (SELECT count(*) FROM apalis.jobs x WHERE x.status = 'Running' AND x.network = j.network) AS running
            INTO r FROM network_limit l LEFT JOIN network_usage u ON u.network = l.network AND u.day = (p_now AT TIME ZONE 'UTC')::date WHERE l.network = j.network;
            IF r.running >= r.permits THEN
                reason := 'network-budget'; detail := format('%s: %s of %s jobs run', j.network, r.running, r.permits); RETURN NEXT; v_free := false;
            END IF;
            IF j.kind = 'sync' AND r.bytes >= r.bytes_per_day THEN
                reason := 'bytes-budget'; until_at := (date_trunc('day', p_now AT TIME ZONE 'UTC') + interval '1 day') AT TIME ZONE 'UTC';
                detail := format('%s: %s of %s bytes of today are used', j.network, r.bytes, r.bytes_per_day);
                RETURN NEXT;
                v_free := false;
                until_at := NULL;
            END IF;
        END IF;
        IF j.host IS NOT NULL THEN
            SELECT h.next_at INTO r FROM host_state h WHERE h.host = j.host;
            IF found AND r.next_at > p_now THEN
                reason := 'host-cooling'; until_at := r.next_at;
                detail := format('%s: %s s', j.host, round(extract(epoch FROM r.next_at - p_now)::numeric, 1));
                RETURN NEXT;
                v_free := false;
                until_at := NULL;
            END IF;
            SELECT count(*) AS n, string_agg(x.target, ', ' ORDER BY x.target) AS targets INTO r FROM apalis.jobs x
            WHERE x.status = 'Running' AND x.host IS NOT NULL AND host_block(x.host) = host_block(j.host) AND x.host = j.host;
            IF r.n >= v_limit.host_jobs THEN
                reason := 'host-busy'; detail := format('%s: %s of %s jobs run (%s)', j.host, r.n, v_limit.host_jobs, left(r.targets, 200)); RETURN NEXT; v_free := false;
            END IF;
            IF j.gate = 'host' THEN
                SELECT count(*) AS n INTO r FROM apalis.jobs x
                WHERE x.host = j.host AND x.job_type = j.job_type AND x.id <> j.id
                  AND (x.gate = 'ready' OR (x.gate = 'host' AND (x.class, x.deadline_at) < (j.class, j.deadline_at)));
                reason := 'behind'; detail := format('%s other jobs of %s on %s come before it', r.n, j.job_type, j.host); RETURN NEXT;
            END IF;
        END IF;
        IF v_free AND j.gate = 'ready' THEN
            SELECT count(*) AS n INTO r FROM apalis.jobs x WHERE x.gate = 'ready' AND x.job_type = j.job_type AND (x.class, x.deadline_at) < (j.class, j.deadline_at);
            reason := 'ready'; until_at := j.deadline_at;
            detail := format('claimable, class %s, %s before it in %s; its deadline is %s', j.class, r.n, j.job_type, to_char(j.deadline_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'));
            RETURN NEXT;
        ELSIF v_free AND j.gate = 'later' THEN
            reason := 'ready'; until_at := NULL; detail := 'its time has come: the next claim lets it step forward'; RETURN NEXT;
        END IF;
    END LOOP;
    FOR r IN SELECT s.* FROM schedule s WHERE s.target = p_which
             AND NOT EXISTS (SELECT FROM apalis.jobs x WHERE x.job_type = s.kind || '.' || s.network AND x.idempotency_key = s.target) ORDER BY s.kind LOOP
        v_found := true;
        job_id := NULL; kind := r.kind; network := r.network; target := r.target; state := 'idle'; until_at := r.due_at;
        reason := 'due'; detail := r.why;
        IF r.due_at <= p_now THEN detail := r.why || ': due, waits for a scheduler'; END IF;
        IF EXISTS (SELECT FROM queue_pause q WHERE q.queue = r.kind || '.' || r.network AND q.mode = 'drain') THEN
            reason := 'draining'; detail := 'nothing new is enqueued for ' || r.kind || '.' || r.network; END IF;
        RETURN NEXT;
    END LOOP;
    FOR r IN SELECT c.* FROM candidate c WHERE c.url = p_which AND c.tombstoned_at IS NOT NULL LOOP
        v_found := true;
        job_id := NULL; kind := 'validate'; network := r.network; target := r.url; state := 'idle'; until_at := NULL;
        reason := 'given-up'; detail := format('after %s failures, the last: %s', r.failures, r.last_reason);
        RETURN NEXT;
    END LOOP;
    IF NOT v_found THEN
        FOR r IN SELECT h.* FROM job_history h WHERE h.job_id = p_which ORDER BY h.finished_at DESC LIMIT 1 LOOP
            job_id := r.job_id; kind := r.kind; network := r.network; target := r.target; state := r.state; until_at := r.finished_at;
            reason := 'ended'; detail := coalesce(r.result ->> 'error', 'done'); RETURN NEXT; RETURN;
        END LOOP;
        job_id := NULL; kind := NULL; network := NULL; target := p_which; state := 'none'; reason := 'unknown'; until_at := NULL;
        detail := 'no job, relay, candidate or task of that name is known'; RETURN NEXT;
    END IF;
END $$;
COMMENT ON FUNCTION job_why IS 'Why a job, or the jobs of a relay or task, do not run: every reason that binds, the most binding first. Reasons: running, cancelling, again, paused, put-back, scheduled, breaker, breaker-half-open, no-worker, workers-draining, no-slot, network-budget, bytes-budget, host-cooling, host-busy, behind, ready, due, draining, given-up, ended, unknown.';

CREATE OR REPLACE FUNCTION queue_stats(p_now timestamptz DEFAULT now())
RETURNS TABLE (kind text, network text, due bigint, waiting bigint, running bigint, oldest_due_s double precision, done_per_min bigint, dead_per_min bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY
    SELECT q.kind, q.network, q.due, q.waiting, q.running, extract(epoch FROM p_now - q.oldest_due_at)::double precision,
           coalesce(s.complete, 0), coalesce(s.dead, 0)
    FROM queue_depth q
    FULL JOIN (
        -- The newest samples reach nearly to now; what they cover is a minute, six or seven of them.
        SELECT x.kind, x.network, sum(x.complete) AS complete, sum(x.dead) AS dead FROM queue_sample x
        WHERE x.sampled_at > p_now - interval '65 seconds' GROUP BY 1, 2) s ON s.kind = q.kind AND s.network = q.network
    WHERE q.kind IS NOT NULL AND (q.due + q.waiting + q.running > 0 OR coalesce(s.complete, 0) + coalesce(s.dead, 0) > 0)
    ORDER BY 1, 2;
END $$;
COMMENT ON FUNCTION queue_stats IS 'Per queue: due, waiting, running, age of the oldest due job in seconds, and what ended in the last minute as the leading scheduler has added it up. Costs nothing of what is scheduled ahead or remembered.';
