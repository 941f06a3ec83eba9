-- The fleet, mended: a turn for everybody where permits are few, breakers that stragglers do not hold open, one order of
-- locks from the scheduler to the last job, and views that answer at once under a backlog too.
--
-- The order in which rows are locked, from the first to the last; nobody waits for an earlier one while it holds a later:
-- leader, the worker, the turn to enqueue (advisory lock 7304), jobs by id, network_limit, schedule, host_state.

-- Views. What is due of the relays, in its order; local tasks are no relays.
CREATE INDEX schedule_due_at ON schedule (due_at) WHERE network <> 'local';

CREATE FUNCTION queue_count()
RETURNS TABLE (kind text, network text, due bigint, running bigint, oldest_due_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 15 SET search_path = public, pg_temp SET jit = off
SET enable_seqscan = off SET max_parallel_workers_per_gather = 0
AS $$
BEGIN
    RETURN QUERY
    SELECT q.kind, q.network, r.due + coalesce(o.due, 0), coalesce(o.running, 0), least(r.oldest, o.oldest)
    FROM queue_list() q
    -- Most of what is due stands here: counted without grouping, which costs twice as much.
    CROSS JOIN LATERAL (SELECT count(*) AS due, min(j.due_at) AS oldest FROM apalis.jobs j
                        WHERE j.job_type = q.kind || '.' || q.network AND j.gate = 'ready') r
    LEFT JOIN (
        SELECT w.job_type, sum(w.due)::bigint AS due, sum(w.running)::bigint AS running, min(w.oldest) AS oldest FROM (
            SELECT j.job_type, count(*) AS due, 0 AS running, min(j.due_at) AS oldest FROM apalis.jobs j WHERE j.gate = 'host' GROUP BY 1
            UNION ALL
            SELECT j.job_type, count(*), 0, min(j.due_at) FROM apalis.jobs j WHERE j.gate = 'later' AND j.run_at <= now() GROUP BY 1
            UNION ALL
            SELECT j.job_type, 0, count(*), NULL FROM apalis.jobs j WHERE j.status = 'Running' AND j.kind IS NOT NULL GROUP BY 1) w
        GROUP BY 1) o ON o.job_type = q.kind || '.' || q.network;
END $$;
COMMENT ON FUNCTION queue_count IS 'Every queue''s live jobs: due, running, and when the oldest of the due was due. Reads what is due and what runs, by partial indexes.';

CREATE FUNCTION crowd_count()
RETURNS TABLE (kind text, network text, jobs bigint, hosts bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 15 SET search_path = public, pg_temp SET jit = off
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashagg = off SET max_parallel_workers_per_gather = 0
AS $$
BEGIN
    RETURN QUERY
    SELECT split_part(h.job_type, '.', 1), split_part(h.job_type, '.', 2), sum(h.n)::bigint, count(*)
    FROM (SELECT j.host, j.job_type, count(*) AS n FROM apalis.jobs j WHERE j.gate = 'host' GROUP BY 1, 2) h GROUP BY h.job_type;
END $$;
COMMENT ON FUNCTION crowd_count IS 'Of queues in which jobs wait behind others of their host: how many, and on how many hosts. Reads them in the order of their index.';

-- Permits.
ALTER TABLE network_lease ADD COLUMN turn_at timestamptz NOT NULL DEFAULT now();
COMMENT ON COLUMN network_lease.turn_at IS 'Since when it has had permits or, having none, has waited for one.';

CREATE OR REPLACE FUNCTION network_borrow(
    p_worker text, p_network text, p_running integer, p_more integer, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    -- How long a worker keeps its only permit before others that have none are let before it.
    v_turn CONSTANT interval := '5 seconds';
    v_total integer;
    v_own integer;
    v_old_short integer;
    v_turn_at timestamptz;
    v_asked_at timestamptz;
    v_others integer;
    v_rivals integer;
    v_short integer;
    v_base integer;
    v_cap integer;
    v_owed integer;
    v_owed_before integer;
    v_new integer;
    v_locked boolean := false;
    v_now timestamptz := p_now;
BEGIN
    IF p_network = 'local' THEN RETURN p_more; END IF;
    LOOP
        SELECT l.permits INTO v_total FROM network_limit l WHERE l.network = p_network;
        IF NOT found THEN RETURN 0; END IF;
        SELECT l.permits, l.short, l.turn_at, l.asked_at INTO v_own, v_old_short, v_turn_at, v_asked_at
        FROM network_lease l WHERE l.network = p_network AND l.worker_id = p_worker;
        v_own := coalesce(v_own, 0);
        v_old_short := coalesce(v_old_short, 0);
        -- Having none, it waits since it first asked in vain; a wish that was forgotten begins anew.
        IF v_own = 0 AND (v_turn_at IS NULL OR v_old_short = 0 OR v_asked_at < v_now - interval '10 seconds') THEN v_turn_at := v_now; END IF;
        WITH rival AS (
            SELECT x.worker_id, x.permits, x.short, x.turn_at, x.short > 0 AND NOT w.draining AND x.asked_at > v_now - interval '10 seconds' AS wants
            FROM network_lease x JOIN apalis.workers w ON w.id = x.worker_id
            -- A lease that ends this moment may be renewed by a heartbeat under way.
            AND w.lease_until > v_now - interval '2 seconds'
            WHERE x.network = p_network AND x.worker_id <> p_worker
        ), share AS (
            SELECT count(*) FILTER (WHERE r.permits > 0 OR r.wants)::integer AS rivals FROM rival r
        ), poor AS (
            -- What rivals lack of the least that everybody may have: one permit, or the even share where that is more.
            SELECT least(greatest(v_total / (s.rivals + 1), 1) - r.permits, r.short) AS lacks, (r.turn_at, r.worker_id) < (v_turn_at, p_worker) AS before
            FROM rival r CROSS JOIN share s WHERE r.wants AND r.permits < greatest(v_total / (s.rivals + 1), 1)
        )
        SELECT s.rivals, coalesce((SELECT sum(r.permits) FROM rival r), 0), coalesce((SELECT max(r.short) FROM rival r WHERE r.wants), 0),
               coalesce((SELECT sum(p.lacks) FROM poor p), 0), coalesce((SELECT sum(p.lacks) FROM poor p WHERE p.before), 0)
        INTO v_rivals, v_others, v_short, v_owed, v_owed_before FROM share s;
        -- While another is short of permits, nobody keeps more than its share.
        v_cap := CASE WHEN v_short > 0 THEN ceil(v_total / (v_rivals + 1.0))::integer ELSE v_total END;
        v_base := least(greatest(v_total / (v_rivals + 1), 1), v_total);
        -- What is free goes first to those who have less than the least, whoever has waited longest before the others.
        v_new := least(p_running + p_more, v_cap,
                       greatest(v_total - v_others - v_owed, least(v_base, v_total - v_others - v_owed_before), 0));
        IF v_new <= v_own THEN
            v_new := CASE WHEN v_own > v_cap THEN greatest(v_cap, p_running) ELSE v_own END;
            -- Nothing is free for one that has less than the least: what is above it is given back, and in turn the last one too
            -- where there are more workers than permits.
            v_owed := v_owed - greatest(v_total - v_others - v_new, 0);
            IF v_owed > 0 AND v_own > 0 THEN
                v_new := greatest(v_new - v_owed, p_running, least(v_new, CASE
                    WHEN v_rivals >= v_total AND v_turn_at < v_now - v_turn THEN 0 ELSE v_base END));
            END IF;
            IF v_new > 0 AND v_new + v_others > v_total THEN
                -- More is lent than there is, since the limit was lowered: what ends is not begun again.
                IF NOT v_locked THEN
                    PERFORM FROM network_limit l WHERE l.network = p_network FOR UPDATE;
                    v_locked := true;
                    v_now := CASE WHEN p_now = now() THEN clock_timestamp() ELSE p_now END;
                    CONTINUE;
                END IF;
                v_new := greatest(p_running, least(v_new, v_total - v_others), 0);
            END IF;
        ELSIF NOT v_locked THEN
            -- Borrowers of one network take turns, and look again when it is theirs.
            PERFORM FROM network_limit l WHERE l.network = p_network FOR UPDATE;
            v_locked := true;
            v_now := CASE WHEN p_now = now() THEN clock_timestamp() ELSE p_now END;
            CONTINUE;
        END IF;
        v_short := greatest(least(p_running + p_more, v_total) - v_new, 0);
        -- A wish that stands is said again, or it would be forgotten.
        IF v_new <> v_own OR v_short <> v_old_short OR v_short > 0 THEN
            IF (v_new > 0) <> (v_own > 0) THEN v_turn_at := v_now; END IF;
            INSERT INTO network_lease AS l (network, worker_id, permits, short, asked_at, turn_at)
            VALUES (p_network, p_worker, v_new, v_short, v_now, coalesce(v_turn_at, v_now))
            ON CONFLICT (network, worker_id) DO UPDATE
                SET permits = excluded.permits, short = excluded.short, asked_at = excluded.asked_at, turn_at = excluded.turn_at;
        END IF;
        RETURN least(greatest(v_new - p_running, 0), p_more);
    END LOOP;
END $$;
COMMENT ON FUNCTION network_borrow IS 'How many more jobs a worker that runs p_running on a network may start, of p_more it could: borrows what it lacks from the network''s limit, gives back what is over its share while another is short, and what others lack of one permit each; with more workers than permits, whoever has waited longest comes next. Never more than the limit is lent.';

-- Breakers.
CREATE TABLE breaker_closed (
    network   text        NOT NULL,
    vantage   text        NOT NULL,
    closed_at timestamptz NOT NULL,
    PRIMARY KEY (network, vantage)
);
COMMENT ON TABLE  breaker_closed IS 'When a network''s breaker was last closed from a vantage: what began before that says nothing new.';
COMMENT ON COLUMN breaker_closed.network IS 'clearnet, tor, i2p or loki.';
COMMENT ON COLUMN breaker_closed.vantage IS 'Vantage whose egress was in doubt.';
COMMENT ON COLUMN breaker_closed.closed_at IS 'When a job found that the network works.';

DROP FUNCTION breaker_trip(text, text, text, text, timestamptz);
CREATE FUNCTION breaker_trip(
    p_network text, p_vantage text, p_worker text, p_why text, p_now timestamptz DEFAULT now(), p_age_s double precision DEFAULT NULL)
RETURNS double precision
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_until timestamptz;
    v_begun timestamptz := p_now - make_interval(secs => greatest(p_age_s, 0));
BEGIN
    IF v_begun IS NULL THEN
        -- Said by a worker of the version before: no sooner than the newest of what it runs there.
        SELECT max(j.lock_at) INTO v_begun FROM apalis.jobs j WHERE j.lock_by = p_worker AND j.network = p_network AND j.status = 'Running';
        v_begun := coalesce(v_begun, p_now);
    END IF;
    IF NOT EXISTS (SELECT FROM breaker b WHERE b.network = p_network AND b.vantage = p_vantage)
       AND EXISTS (SELECT FROM breaker_closed c WHERE c.network = p_network AND c.vantage = p_vantage AND c.closed_at > v_begun) THEN
        RETURN 0;
    END IF;
    INSERT INTO breaker AS b (network, vantage, level, opened_at, until_at, why, worker_id)
    VALUES (p_network, p_vantage, 1, p_now, p_now + interval '15 seconds', p_why, p_worker)
    ON CONFLICT (network, vantage) DO UPDATE
        -- Jobs that were under way when it opened report the same trouble: only what began since it was half open says more.
        SET level = b.level + (b.until_at <= least(p_now, v_begun))::integer,
            until_at = CASE WHEN b.until_at <= least(p_now, v_begun)
                            THEN p_now + least(interval '5 minutes', interval '15 seconds' * power(2, least(b.level, 10))) ELSE b.until_at END,
            why = CASE WHEN b.until_at <= least(p_now, v_begun) THEN p_why ELSE b.why END,
            worker_id = CASE WHEN b.until_at <= least(p_now, v_begun) THEN p_worker ELSE b.worker_id END
    RETURNING b.until_at INTO v_until;
    RETURN greatest(extract(epoch FROM v_until - p_now), 0);
END $$;
COMMENT ON FUNCTION breaker_trip IS 'Opens a network''s breaker for one vantage, 15 s and then twice as long each time up to 5 min, on a failure that began p_age_s seconds ago; one that began before the breaker was last half open, or closed, changes nothing. Returns the seconds it stays open; 0: not any more.';

CREATE OR REPLACE FUNCTION breaker_close(p_network text, p_vantage text)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    DELETE FROM breaker b WHERE b.network = p_network AND b.vantage = p_vantage;
    IF NOT found THEN RETURN false; END IF;
    INSERT INTO breaker_closed AS c (network, vantage, closed_at) VALUES (p_network, p_vantage, clock_timestamp())
    ON CONFLICT (network, vantage) DO UPDATE SET closed_at = excluded.closed_at;
    RETURN true;
END $$;

CREATE OR REPLACE FUNCTION job_exchange(
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
    -- The worker before its jobs, as its heartbeat and its stop lock them; the claim holds it in any case.
    PERFORM FROM apalis.workers w WHERE w.id = p_worker FOR KEY SHARE;
    IF cardinality(p_jobs) > 0 THEN
        RETURN QUERY SELECT 'finished', f, 0, '', '', '', '', 0, 0, 0::smallint, p_now, false
                     FROM job_finish(p_worker, p_jobs, p_attempts, p_verdicts, p_delays_s, p_results, p_now) f;
    END IF;
    -- Permits that were not needed for a while go back.
    IF cardinality(p_networks) > 0 THEN
        UPDATE network_lease l SET permits = u.peak, turn_at = CASE u.peak WHEN 0 THEN p_now ELSE l.turn_at END FROM unnest(p_networks, p_peaks) u(network, peak)
        WHERE l.worker_id = p_worker AND l.network = u.network AND l.permits > u.peak;
    END IF;
    IF cardinality(p_queues) > 0 THEN
        RETURN QUERY SELECT 'claimed', c.job_id, c.attempt, c.queue, c.kind, c.network, c.target, c.max_attempts, c.timeout_s, c.class, c.deadline_at, c.probe
                     FROM job_claim(p_worker, p_queues, p_free, p_now, p_running, p_turn, p_floors) c;
    END IF;
    RETURN QUERY SELECT 'cancel', j.id, j.attempts, j.job_type, j.kind, j.network, j.target, j.max_attempts, j.timeout_s, j.class, j.deadline_at, false
                 FROM apalis.jobs j WHERE j.lock_by = p_worker AND j.cancel_why IS NOT NULL AND j.status = 'Running';
END $$;

-- Locks. A scheduler takes jobs before the schedule, as those do who write results, and all jobs of a round at once.
CREATE FUNCTION schedule_due(p_kinds text[], p_networks text[], p_limit integer, p_now timestamptz DEFAULT now())
RETURNS TABLE (kind text, network text, target text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
BEGIN
    RETURN QUERY
        SELECT q.kind, q.network, x.target FROM unnest(p_kinds, p_networks) q(kind, network) CROSS JOIN LATERAL (
            SELECT s.target FROM schedule s
            WHERE s.kind = q.kind AND s.network = q.network AND s.due_at <= p_now
              -- What runs sets its next time itself.
              AND NOT EXISTS (SELECT FROM apalis.jobs j WHERE j.job_type = q.kind || '.' || q.network AND j.idempotency_key = s.target AND j.status = 'Running')
            ORDER BY s.due_at LIMIT p_limit) x
        WHERE NOT EXISTS (SELECT FROM queue_pause p WHERE p.queue = q.kind || '.' || q.network AND p.mode <> 'pause');
END $$;
COMMENT ON FUNCTION schedule_due IS 'What is due of the queues p_kinds[i].p_networks[i] and does not run, at most p_limit of each, by index; drained queues have nothing.';

CREATE FUNCTION schedule_move(
    p_kind text, p_targets text[], p_timeout integer, p_max_attempts integer, p_again_s integer, p_now timestamptz DEFAULT now())
RETURNS TABLE (due integer, enqueued integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
DECLARE
    v_networks text[];
    v_targets text[];
    v_dues timestamptz[];
    v_slacks integer[];
    v_classes smallint[];
BEGIN
    WITH picked AS (
        SELECT s.kind, s.target, s.network, s.due_at, s.slack_s, s.why FROM unnest(p_targets) u JOIN schedule s ON s.kind = p_kind AND s.target = u
        -- Looked at again, now that their jobs are held.
        WHERE s.due_at <= p_now
          AND NOT EXISTS (SELECT FROM apalis.jobs j WHERE j.job_type = s.kind || '.' || s.network AND j.idempotency_key = s.target AND j.status = 'Running')
        FOR UPDATE OF s SKIP LOCKED
    ), moved AS (
        UPDATE schedule s SET due_at = p_now + make_interval(secs => p_again_s)
        FROM picked p WHERE s.kind = p.kind AND s.target = p.target
    )
    SELECT array_agg(p.network), array_agg(p.target), array_agg(p.due_at), array_agg(p.slack_s), array_agg(job_class(p.kind, p.why))
    INTO v_networks, v_targets, v_dues, v_slacks, v_classes FROM picked p;
    due := coalesce(cardinality(v_targets), 0);
    enqueued := 0;
    IF due > 0 THEN
        enqueued := job_enqueue(array_fill(p_kind, ARRAY[due]), v_networks, v_targets, v_dues, v_slacks,
                                array_fill(p_timeout, ARRAY[due]), array_fill(p_max_attempts, ARRAY[due]), p_now, v_classes);
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION schedule_move IS 'Turns what is due of these targets into jobs, and moves each p_again_s ahead. The caller has locked their jobs.';

CREATE FUNCTION job_hold(p_kinds text[], p_networks text[], p_targets text[])
RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
BEGIN
    -- Nobody else makes jobs from here on, so that these are all.
    PERFORM pg_advisory_xact_lock(7304);
    PERFORM FROM apalis.jobs j WHERE j.id = ANY (ARRAY(
        SELECT x.id FROM unnest(p_kinds, p_networks, p_targets) u(kind, network, target)
        JOIN apalis.jobs x ON x.job_type = u.kind || '.' || u.network AND x.idempotency_key = u.target)) ORDER BY j.id FOR UPDATE;
END $$;
COMMENT ON FUNCTION job_hold IS 'Takes the turn to enqueue and locks the jobs of these targets, all of them in the order of ids, until the end of the transaction.';

CREATE OR REPLACE FUNCTION schedule_enqueue(
    p_kind text, p_networks text[], p_limit integer, p_timeout integer, p_max_attempts integer, p_again_s integer,
    p_now timestamptz DEFAULT now())
RETURNS TABLE (due integer, enqueued integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_networks text[];
    v_targets text[];
BEGIN
    due := 0;
    enqueued := 0;
    -- Looked at when it is our turn: who enqueues beside us takes others.
    PERFORM pg_advisory_xact_lock(7304);
    SELECT array_agg(d.network), array_agg(d.target) INTO v_networks, v_targets
    FROM schedule_due(array_fill(p_kind, ARRAY[cardinality(p_networks)]), p_networks, p_limit, p_now) d;
    IF v_targets IS NOT NULL THEN
        PERFORM job_hold(array_fill(p_kind, ARRAY[cardinality(v_targets)]), v_networks, v_targets);
        SELECT m.due, m.enqueued INTO due, enqueued FROM schedule_move(p_kind, v_targets, p_timeout, p_max_attempts, p_again_s, p_now) m;
    END IF;
    RETURN NEXT;
END $$;

CREATE OR REPLACE FUNCTION scheduler_tick(
    p_holder text, p_ttl_s double precision, p_kinds text[], p_networks text[], p_timeouts integer[], p_max_attempts integer[],
    p_again_s integer[], p_limit integer, p_deadlines boolean, p_now timestamptz DEFAULT now())
RETURNS TABLE (term bigint, rescued integer, killed integer, enqueued integer[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_kinds text[];
    v_networks text[];
    v_targets text[];
    n integer;
BEGIN
    term := leader_claim('scheduler', p_holder, p_ttl_s, p_now);
    IF term IS NOT NULL THEN
        SELECT array_agg(q.kind), array_agg(q.network) INTO v_kinds, v_networks
        FROM queue_list() q WHERE q.kind = ANY (p_kinds) AND (q.network = 'local' OR q.network = ANY (p_networks));
        SELECT array_agg(d.kind), array_agg(d.network), array_agg(d.target) INTO v_kinds, v_networks, v_targets
        FROM schedule_due(v_kinds, v_networks, p_limit, p_now) d;
        IF v_targets IS NOT NULL THEN
            -- Of all kinds at once: kind after kind they would be held in no order.
            PERFORM job_hold(v_kinds, v_networks, v_targets);
        END IF;
        FOR i IN 1 .. cardinality(p_kinds) LOOP
            enqueued[i] := 0;
            CONTINUE WHEN v_targets IS NULL;
            SELECT m.enqueued INTO n FROM schedule_move(
                p_kinds[i], ARRAY(SELECT u.target FROM unnest(v_kinds, v_targets) u(kind, target) WHERE u.kind = p_kinds[i]),
                p_timeouts[i], p_max_attempts[i], p_again_s[i], p_now) m;
            enqueued[i] := n;
        END LOOP;
        -- Last, and of what nobody holds: who enqueues has waited for the rows of jobs.
        SELECT r.rescued, r.killed INTO rescued, killed FROM job_rescue(1000, p_now, p_deadlines) r;
    END IF;
    RETURN NEXT;
END $$;

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
BEGIN
    -- Locked in a statement of its own, in the order of ids: the next ones see what whoever held them has done.
    PERFORM FROM apalis.jobs j WHERE j.id = ANY (p_jobs) ORDER BY j.id FOR UPDATE;
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
    ), over AS (
        SELECT a.*, j AS job, j.again_class FROM acked a JOIN apalis.jobs j ON j.id = a.id
        WHERE a.verdict IN ('complete', 'cancel', 'kill') OR j.cancel_why IS NOT NULL OR (a.verdict = 'retry' AND j.attempts >= a.max_attempts)
    ), ended AS (
        DELETE FROM apalis.jobs j USING over o WHERE j.id = o.id AND o.again_class IS NULL
    ), again AS (
        -- Asked for again while it ran: the row becomes the job that was asked for. Its id stays, since everybody locks jobs
        -- in the order of ids, and its attempts go on, since their numbers are part of the fence.
        UPDATE apalis.jobs j
        SET status = 'Pending', gate = 'later', max_attempts = j.attempts + 3,
            lock_by = NULL, lock_at = NULL, run_deadline = NULL, cancel_why = NULL, last_result = NULL, class = o.again_class, again_class = NULL,
            due_at = p_now, run_at = p_now, deadline_at = p_now + make_interval(secs => j.slack_s), enqueued_at = p_now
        FROM over o WHERE j.id = o.id AND o.again_class IS NOT NULL
    ), history AS (
        INSERT INTO job_history (job_id, kind, network, target, state, attempt, worker_id, due_at, enqueued_at, started_at, finished_at, result)
        SELECT (e.job).id, (e.job).kind, (e.job).network, (e.job).target,
               CASE WHEN e.verdict = 'complete' THEN 'complete'
                    WHEN e.verdict = 'cancel' OR (e.job).cancel_why IS NOT NULL THEN 'cancelled' ELSE 'dead' END,
               (e.job).attempts, (e.job).lock_by, (e.job).due_at, (e.job).enqueued_at, (e.job).lock_at, p_now,
               CASE WHEN (e.job).cancel_why IS NULL OR e.verdict = 'complete' THEN e.result::jsonb
                    ELSE jsonb_build_object('error', (e.job).cancel_why) END
        FROM over e
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
    SELECT array_agg(a.id) INTO v_ids FROM acked a;
    RETURN QUERY SELECT unnest(v_ids);
END $$;

CREATE OR REPLACE FUNCTION job_lose(p_jobs text[], p_whys text[], p_now timestamptz DEFAULT now())
RETURNS TABLE (again integer, ended integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
BEGIN
    WITH lost AS (
        SELECT j.id, u.why FROM unnest(p_jobs, p_whys) u(job, why) JOIN apalis.jobs j ON j.id = u.job AND j.status = 'Running'
    ), over AS (
        SELECT l.*, j AS job, j.again_class FROM lost l JOIN apalis.jobs j ON j.id = l.id WHERE j.cancel_why IS NOT NULL OR j.attempts >= j.max_attempts
    ), gone AS (
        DELETE FROM apalis.jobs j USING over o WHERE j.id = o.id AND o.again_class IS NULL
    ), anew AS (
        UPDATE apalis.jobs j
        SET status = 'Pending', gate = 'later', max_attempts = j.attempts + 3,
            lock_by = NULL, lock_at = NULL, run_deadline = NULL, cancel_why = NULL, last_result = NULL, class = o.again_class, again_class = NULL,
            due_at = p_now, run_at = p_now, deadline_at = p_now + make_interval(secs => j.slack_s), enqueued_at = p_now
        FROM over o WHERE j.id = o.id AND o.again_class IS NOT NULL
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
    -- Nobody is left to find out whether it could close.
    DELETE FROM breaker b WHERE b.until_at < p_now - interval '10 minutes'
      AND NOT EXISTS (SELECT FROM apalis.workers w WHERE w.vantage = b.vantage AND w.lease_until > p_now);
    DELETE FROM breaker_closed c WHERE c.closed_at < p_now - interval '1 day';
    RETURN n;
END $$;

COMMENT ON FUNCTION job_finish IS 'Acknowledges attempts: complete, cancel and kill move the job to history, retry and snooze put it back (snooze allows one attempt more; a retry beyond max_attempts is dead), and what was asked for again meanwhile becomes a new job in the same row, with its id and three more attempts. Returns the jobs whose fence held.';
COMMENT ON FUNCTION job_lose IS 'Takes running jobs from a worker that is gone: put back with the attempt spent, or ended when cancelled or out of attempts; what was asked for again meanwhile becomes a new job in the same row. The caller has locked them.';
COMMENT ON COLUMN job_history.job_id IS 'apalis.jobs.id while it lived; more than once where the job was asked for again while it ran.';
