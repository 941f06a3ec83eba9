-- The fleet explains itself: an address block that is full has a word of its own, and what ended in the last minute is
-- that of one minute also after a time without a leader.

CREATE OR REPLACE FUNCTION job_why(p_which text, p_now timestamptz DEFAULT now())
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
    -- What is left alone, by the exclusion that means it; a job of it that still runs is being stopped.
    FOR r IN SELECT x.* FROM relay_exclusion x WHERE x.target = ANY (exclusion_targets(p_which)) ORDER BY octet_length(x.target) DESC LOOP
        v_found := true;
        job_id := NULL; kind := NULL; network := NULL; target := p_which; state := 'excluded'; until_at := NULL;
        reason := CASE r.kind WHEN 'opt_out' THEN 'opted-out' ELSE 'blocked' END;
        detail := format('%s is left alone since %s, by %s%s', r.target, to_char(to_timestamp(r.excluded_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), r.actor,
                         CASE WHEN r.why = '' THEN '' ELSE ': ' || r.why END);
        RETURN NEXT;
    END LOOP;
    FOR j IN SELECT x.* FROM apalis.jobs x WHERE x.kind IS NOT NULL AND x.id IN (
        SELECT y.id FROM apalis.jobs y WHERE y.id = p_which
        UNION SELECT y.id FROM queue_list() q JOIN apalis.jobs y ON y.job_type = q.kind || '.' || q.network AND y.idempotency_key = p_which) ORDER BY x.kind LOOP
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
        FOR r IN SELECT q.mode, q.actor, q.why, q.since_at FROM queue_pause q WHERE q.queue = j.job_type AND q.mode <> 'drain' LOOP
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
        FOR r IN SELECT b.* FROM breaker b WHERE b.network = j.network
                 AND EXISTS (SELECT FROM apalis.workers w WHERE w.lease_until > p_now AND w.vantage = b.vantage AND j.job_type = ANY (w.queues)) LOOP
            reason := CASE WHEN r.until_at > p_now THEN 'breaker' ELSE 'breaker-half-open' END; until_at := r.until_at;
            detail := format('%s from %s: %s', r.network, r.vantage, r.why);
            RETURN NEXT;
            -- Another vantage may still have it.
            v_free := v_free AND EXISTS (
                SELECT FROM apalis.workers w WHERE w.lease_until > p_now AND NOT w.draining AND j.job_type = ANY (w.queues)
                  AND NOT EXISTS (SELECT FROM breaker x WHERE x.network = j.network AND x.vantage = w.vantage));
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
            SELECT count(*) AS n INTO r FROM apalis.jobs x WHERE x.status = 'Running' AND x.host IS NOT NULL AND host_block(x.host) = host_block(j.host);
            IF r.n >= v_limit.block_jobs AND host_block(j.host) <> j.host THEN
                reason := 'block-busy'; detail := format('%s: %s of %s jobs run', host_block(j.host), r.n, v_limit.block_jobs); RETURN NEXT; v_free := false;
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
        IF EXISTS (SELECT FROM queue_pause q WHERE q.queue = r.kind || '.' || r.network AND q.mode <> 'pause') THEN
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
COMMENT ON FUNCTION job_why IS 'Why a job, or the jobs of a relay or task, do not run: every reason that binds, the most binding first. Reasons: opted-out, blocked, running, cancelling, again, paused, put-back, scheduled, breaker, breaker-half-open, no-worker, workers-draining, no-slot, network-budget, bytes-budget, host-cooling, host-busy, block-busy, behind, ready, due, draining, given-up, ended, unknown.';

ALTER TABLE queue_sample ADD COLUMN since_at timestamptz;
COMMENT ON COLUMN queue_sample.since_at IS 'Beginning of the stretch; null in samples of older schedulers.';

CREATE OR REPLACE FUNCTION queue_sample_take(p_now timestamptz DEFAULT now())
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
    SELECT greatest(coalesce(max(s.sampled_at), v_until - interval '1 minute'), v_until - interval '10 minutes') INTO v_since FROM queue_sample s;
    v_count := NOT EXISTS (SELECT FROM queue_sample s WHERE s.scheduled IS NOT NULL AND s.sampled_at > v_until - interval '1 minute');
    INSERT INTO queue_sample (since_at, sampled_at, kind, network, complete, cancelled, dead, run_s, wait_s, scheduled)
    SELECT v_since, v_until, q.kind, q.network, coalesce(d.complete, 0), coalesce(d.cancelled, 0), coalesce(d.dead, 0),
           coalesce(d.run_s, 0), coalesce(d.wait_s, 0), CASE WHEN v_count THEN coalesce(l.n, 0) END
    FROM queue_list() q
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
        -- The newest samples reach nearly to now; what they cover is a minute, six or seven of them. One that covers more, the
        -- first after a time without a leader, counts by its share.
        SELECT x.kind, x.network, round(sum(x.complete * x.share))::bigint AS complete, ceil(sum(x.dead * x.share))::bigint AS dead
        FROM (SELECT y.kind, y.network, y.complete, y.dead,
                     coalesce(extract(epoch FROM y.sampled_at - greatest(y.since_at, p_now - interval '65 seconds'))
                              / nullif(extract(epoch FROM y.sampled_at - y.since_at), 0), 1) AS share
              FROM queue_sample y WHERE y.sampled_at > p_now - interval '65 seconds') x GROUP BY 1, 2) s ON s.kind = q.kind AND s.network = q.network
    WHERE q.kind IS NOT NULL AND (q.due + q.waiting + q.running > 0 OR coalesce(s.complete, 0) + coalesce(s.dead, 0) > 0)
    ORDER BY 1, 2;
END $$;

CREATE FUNCTION queue_drift() RETURNS SETOF text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY SELECT 'index ' || i.name || ' of apalis.jobs is missing'
    FROM unnest(ARRAY['bigbrotr_ready', 'bigbrotr_ready_host', 'bigbrotr_later', 'bigbrotr_host', 'bigbrotr_host_now', 'bigbrotr_running',
                      'bigbrotr_running_block', 'bigbrotr_cancel']) i(name) WHERE to_regclass('apalis.' || i.name) IS NULL
    UNION ALL
    SELECT 'index ' || c.relname || ' is invalid' FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid
    WHERE x.indrelid = 'apalis.jobs'::regclass AND NOT x.indisvalid
    UNION ALL
    SELECT 'trigger ' || t.tgname || ' notifies for every row' FROM pg_trigger t
    WHERE t.tgrelid = 'apalis.jobs'::regclass AND NOT t.tgisinternal;
END $$;
COMMENT ON FUNCTION queue_drift IS 'What is not as migrate leaves it with the queue''s table: indexes that are missing or invalid, triggers that came back.';

CREATE FUNCTION jobs_put_back(p_words text[]) RETURNS TABLE (network text, jobs bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY SELECT j.network, count(*) FROM apalis.jobs j
    WHERE j.gate = 'later' AND EXISTS (SELECT FROM unnest(p_words) w WHERE strpos(j.last_result ->> 'error', w) > 0) GROUP BY 1 ORDER BY 1;
END $$;
COMMENT ON FUNCTION jobs_put_back IS 'How many jobs of each network wait whose last attempt ended with one of these words.';
