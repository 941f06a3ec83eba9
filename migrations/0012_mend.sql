-- Mends of the fleet after a review: block limits that count starts and not claims, wishes that survive, one order of
-- locks, and the queue of local monitor tasks. Functions of 0007 to 0011 with the same arguments, made anew.

CREATE FUNCTION queue_list() RETURNS TABLE (kind text, network text)
LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 15 SET search_path = public, pg_temp
AS $$
    SELECT k, n FROM unnest(ARRAY['validate', 'monitor', 'sync']) k, unnest(ARRAY['clearnet', 'tor', 'i2p', 'loki']) n
    UNION ALL SELECT k, 'local' FROM unnest(ARRAY['discover', 'monitor', 'refresh']) k
$$;
COMMENT ON FUNCTION queue_list IS 'Every queue there is: the kinds that visit relays on each network, and the local tasks.';

ALTER TABLE queue_pause DROP CONSTRAINT queue_pause_mode_check;
ALTER TABLE queue_pause ADD CONSTRAINT queue_pause_mode_check CHECK (mode IN ('pause', 'drain', 'both'));
COMMENT ON COLUMN queue_pause.mode IS 'pause, drain, or both.';

ALTER TABLE network_lease ADD COLUMN asked_at timestamptz NOT NULL DEFAULT now();
COMMENT ON COLUMN network_lease.asked_at IS 'When it last asked: a wish older than a few polls counts no more.';

CREATE OR REPLACE FUNCTION network_borrow(
    p_worker text, p_network text, p_running integer, p_more integer, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_total integer;
    v_own integer;
    v_others integer;
    v_rivals integer;
    v_short integer;
    v_old_short integer;
    v_cap integer;
    v_new integer;
    v_locked boolean := false;
    v_now timestamptz := p_now;
BEGIN
    IF p_network = 'local' THEN RETURN p_more; END IF;
    LOOP
        SELECT l.permits INTO v_total FROM network_limit l WHERE l.network = p_network;
        IF NOT found THEN RETURN 0; END IF;
        SELECT coalesce(sum(l.permits) FILTER (WHERE l.worker_id = p_worker), 0),
               coalesce(max(l.short) FILTER (WHERE l.worker_id = p_worker), 0),
               coalesce(sum(l.permits) FILTER (WHERE l.worker_id <> p_worker), 0),
               coalesce(max(l.short) FILTER (WHERE l.worker_id <> p_worker AND l.wants), 0),
               count(*) FILTER (WHERE l.worker_id <> p_worker AND (l.permits > 0 OR l.wants))
        INTO v_own, v_old_short, v_others, v_short, v_rivals
        FROM (SELECT x.*, x.short > 0 AND NOT w.draining AND x.asked_at > v_now - interval '10 seconds' AS wants
              FROM network_lease x JOIN apalis.workers w ON w.id = x.worker_id
              -- A lease that ends this moment may be renewed by a heartbeat under way.
              AND w.lease_until > v_now - interval '2 seconds') l
        WHERE l.network = p_network;
        -- While another is short of permits, nobody keeps more than its share.
        v_cap := CASE WHEN v_short > 0 THEN ceil(v_total / (v_rivals + 1.0))::integer ELSE v_total END;
        v_new := least(p_running + p_more, v_cap, greatest(v_total - v_others, 0));
        IF v_new <= v_own THEN
            v_new := CASE WHEN v_own > v_cap THEN greatest(v_cap, p_running) ELSE v_own END;
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
            INSERT INTO network_lease AS l (network, worker_id, permits, short, asked_at) VALUES (p_network, p_worker, v_new, v_short, v_now)
            ON CONFLICT (network, worker_id) DO UPDATE SET permits = excluded.permits, short = excluded.short, asked_at = excluded.asked_at;
        END IF;
        RETURN least(greatest(v_new - p_running, 0), p_more);
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION job_enqueue(
    p_kinds text[], p_networks text[], p_targets text[], p_due_ats timestamptz[], p_slacks integer[],
    p_timeouts integer[], p_max_attempts integer[], p_now timestamptz DEFAULT now(), p_classes smallint[] DEFAULT NULL)
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE n integer;
BEGIN
    -- One call at a time: callers with the same targets take turns instead of waiting for each other's rows.
    PERFORM pg_advisory_xact_lock(7304);
    -- What is there already is locked in the order of ids, as everybody locks jobs: acknowledgements go on meanwhile.
    PERFORM FROM apalis.jobs j WHERE j.id = ANY (ARRAY(
        SELECT x.id FROM unnest(p_kinds, p_networks, p_targets) u(kind, network, target)
        JOIN apalis.jobs x ON x.job_type = u.kind || '.' || u.network AND x.idempotency_key = u.target)) ORDER BY j.id FOR UPDATE;
    WITH asked AS MATERIALIZED (
        SELECT DISTINCT ON (u.kind, u.network, u.target)
               u.kind, u.network, u.target, u.due_at, u.due_at + make_interval(secs => u.slack) AS deadline_at, u.slack, u.timeout,
               u.max_attempts, coalesce(u.class, 2::smallint) AS class,
               CASE WHEN u.network <> 'local' THEN coalesce(a.address, url_host(u.target)) END AS host
        FROM unnest(p_kinds, p_networks, p_targets, p_due_ats, p_slacks, p_timeouts, p_max_attempts, p_classes)
             u(kind, network, target, due_at, slack, timeout, max_attempts, class)
        LEFT JOIN host_address a ON a.host = url_host(u.target)
        ORDER BY u.kind, u.network, u.target, u.class, u.due_at
    ), hosts AS (
        INSERT INTO host_state (host)
        SELECT DISTINCT a.host FROM asked a WHERE a.host IS NOT NULL AND NOT EXISTS (SELECT FROM host_state h WHERE h.host = a.host)
        ORDER BY 1 ON CONFLICT (host) DO NOTHING
    ), placed AS (
        SELECT a.*, CASE
                WHEN a.due_at > p_now THEN 'later'
                WHEN a.host IS NULL THEN 'ready'
                -- Of one host and queue one job stands in front, the others wait behind it: a crowd costs the claim nothing.
                WHEN row_number() OVER (PARTITION BY a.host, a.kind, a.network, a.due_at <= p_now ORDER BY a.class, a.deadline_at) > 1
                  OR EXISTS (SELECT FROM apalis.jobs j WHERE j.host = a.host AND j.job_type = a.kind || '.' || a.network AND j.gate = 'ready')
                  OR EXISTS (SELECT FROM apalis.jobs j WHERE j.host = a.host AND j.job_type = a.kind || '.' || a.network AND j.gate = 'host')
                THEN 'host' ELSE 'ready' END AS gate
        FROM asked a
    ), put AS (
        INSERT INTO apalis.jobs AS j (id, job_type, job, status, attempts, max_attempts, run_at, idempotency_key,
                                      kind, network, target, due_at, deadline_at, slack_s, timeout_s, enqueued_at, class, gate, host)
        SELECT job_id_new(), p.kind || '.' || p.network,
               convert_to(json_build_object('kind', p.kind, 'network', p.network, 'target', p.target)::text, 'UTF8'),
               'Pending', 0, p.max_attempts, p.due_at, p.target,
               p.kind, p.network, p.target, p.due_at, p.deadline_at, p.slack, p.timeout, p_now, p.class, p.gate, p.host
        FROM placed p ORDER BY p.kind, p.network, p.target
        -- Waiting already: only its class may rise. Running: what is asked for now was not seen by it.
        ON CONFLICT (job_type, idempotency_key) DO UPDATE
            SET class = CASE j.status WHEN 'Pending' THEN excluded.class ELSE j.class END,
                deadline_at = CASE j.status WHEN 'Pending' THEN least(j.deadline_at, excluded.deadline_at) ELSE j.deadline_at END,
                run_at = CASE WHEN j.gate = 'later' THEN least(j.run_at, excluded.run_at) ELSE j.run_at END,
                again_class = CASE j.status WHEN 'Running' THEN excluded.class END
            WHERE (j.status = 'Pending' AND (excluded.class < j.class
                   -- What was put back, and is wanted now by an operator.
                   OR (excluded.class = 0 AND j.class = 0 AND j.gate = 'later' AND excluded.run_at < j.run_at)))
               OR (j.status = 'Running' AND (j.again_class IS NULL OR excluded.class < j.again_class))
        RETURNING (xmax = 0) AS fresh, j.network, (j.gate = 'ready') AS ready
    )
    SELECT count(*) FILTER (WHERE p.fresh) INTO n FROM put p;
    -- Nobody is told who does not listen: a notification takes a lock of the whole server at commit.
    IF n > 0 AND EXISTS (SELECT FROM apalis.workers w WHERE w.listens AND w.lease_until > p_now) THEN
        PERFORM pg_notify('bigbrotr_jobs', '');
    END IF;
    RETURN n;
END $$;
COMMENT ON FUNCTION job_enqueue IS 'Enqueues jobs, each once per kind and target: one that waits already only rises to a better class, for one that runs the wish is remembered. Returns how many were new.';

CREATE OR REPLACE FUNCTION schedule_enqueue(
    p_kind text, p_networks text[], p_limit integer, p_timeout integer, p_max_attempts integer, p_again_s integer,
    p_now timestamptz DEFAULT now())
RETURNS TABLE (due integer, enqueued integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_network text;
    v_targets text[];
    v_dues timestamptz[];
    v_slacks integer[];
    v_classes smallint[];
    n integer;
BEGIN
    due := 0;
    enqueued := 0;
    FOREACH v_network IN ARRAY p_networks LOOP
        CONTINUE WHEN EXISTS (SELECT FROM queue_pause q WHERE q.queue = p_kind || '.' || v_network AND q.mode <> 'pause');
        WITH picked AS (
            SELECT s.kind, s.target, s.due_at, s.slack_s, s.why FROM schedule s
            WHERE s.kind = p_kind AND s.network = v_network AND s.due_at <= p_now
              -- What runs sets its next time itself; and it locks in the opposite order.
              AND NOT EXISTS (SELECT FROM apalis.jobs j WHERE j.job_type = p_kind || '.' || v_network AND j.idempotency_key = s.target AND j.status = 'Running')
            ORDER BY s.due_at LIMIT p_limit FOR UPDATE SKIP LOCKED
        ), moved AS (
            UPDATE schedule s SET due_at = p_now + make_interval(secs => p_again_s)
            FROM picked p WHERE s.kind = p.kind AND s.target = p.target
        )
        SELECT array_agg(p.target), array_agg(p.due_at), array_agg(p.slack_s), array_agg(job_class(p.kind, p.why))
        INTO v_targets, v_dues, v_slacks, v_classes FROM picked p;
        n := coalesce(cardinality(v_targets), 0);
        CONTINUE WHEN n = 0;
        due := due + n;
        enqueued := enqueued + job_enqueue(
            array_fill(p_kind, ARRAY[n]), array_fill(v_network, ARRAY[n]), v_targets, v_dues, v_slacks,
            array_fill(p_timeout, ARRAY[n]), array_fill(p_max_attempts, ARRAY[n]), p_now, v_classes);
    END LOOP;
    RETURN NEXT;
END $$;

CREATE OR REPLACE FUNCTION job_admit(p_limit integer DEFAULT 500, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    v_cursor text;
    v_ran timestamptz;
    v_last text;
    v_seen integer;
    v_jobs integer;
    n integer;
BEGIN
    IF NOT pg_try_advisory_xact_lock(7305) THEN RETURN 0; END IF;
    UPDATE apalis.jobs j
    SET gate = CASE WHEN d.host IS NOT NULL AND (d.nth > 1
            OR EXISTS (SELECT FROM apalis.jobs x WHERE x.host = d.host AND x.job_type = d.job_type AND x.gate = 'ready')
            OR EXISTS (SELECT FROM apalis.jobs x WHERE x.host = d.host AND x.job_type = d.job_type AND x.gate = 'host'))
        THEN 'host' ELSE 'ready' END
    FROM (SELECT l.id, l.host, l.job_type, row_number() OVER (PARTITION BY l.host, l.job_type ORDER BY l.class, l.deadline_at) AS nth
          FROM (SELECT x.id, x.host, x.job_type, x.class, x.deadline_at FROM apalis.jobs x
                WHERE x.gate = 'later' AND x.run_at <= p_now ORDER BY x.run_at LIMIT 1000 FOR UPDATE SKIP LOCKED) l) d
    WHERE j.id = d.id AND j.gate = 'later';
    GET DIAGNOSTICS n = ROW_COUNT;
    -- Often enough for every idle worker together; a clock that was set back does not stop it.
    SELECT q.host, q.ran_at INTO v_cursor, v_ran FROM queue_cursor q WHERE q.name = 'admit';
    IF v_ran BETWEEN p_now - interval '200 milliseconds' AND p_now THEN RETURN n; END IF;
    -- The best waiting job of each host and queue whose place is free, host after host: the round visits every host,
    -- however many wait on one. What an operator wants now does not wait for the round.
    WITH RECURSIVE pairs AS (
        (SELECT j.host, j.job_type, j.id, 1 AS nth FROM apalis.jobs j
         WHERE j.gate = 'host' AND j.host >= v_cursor ORDER BY j.host, j.job_type, j.class, j.deadline_at LIMIT 1)
        UNION ALL
        SELECT x.host, x.job_type, x.id, p.nth + 1 FROM pairs p CROSS JOIN LATERAL (
            SELECT j.host, j.job_type, j.id FROM apalis.jobs j
            WHERE j.gate = 'host' AND (j.host, j.job_type) > (p.host, p.job_type)
            ORDER BY j.host, j.job_type, j.class, j.deadline_at LIMIT 1) x
        WHERE p.nth < p_limit
    ), wanted AS (
        SELECT p.host, p.job_type, p.id, false AS now FROM pairs p
        UNION ALL
        (SELECT j.host, j.job_type, j.id, true FROM apalis.jobs j WHERE j.gate = 'host' AND j.class = 0 LIMIT p_limit)
    ), free AS (
        SELECT w.id FROM wanted w LEFT JOIN host_state h ON h.host = w.host
        WHERE (coalesce(h.next_at, '-infinity') <= p_now
               OR h.next_at > p_now + (SELECT make_interval(secs => l.host_spacing_ms / 1000.0 + 5) FROM fleet_limit l))
          AND (w.now OR NOT EXISTS (SELECT FROM apalis.jobs x WHERE x.host = w.host AND x.job_type = w.job_type AND x.gate = 'ready'))
          AND (SELECT count(*) FROM apalis.jobs r
               WHERE r.status = 'Running' AND r.host IS NOT NULL AND host_block(r.host) = host_block(w.host) AND r.host = w.host)
              < (SELECT l.host_jobs FROM fleet_limit l)
          AND (SELECT count(*) FROM apalis.jobs r
               WHERE r.status = 'Running' AND r.host IS NOT NULL AND host_block(r.host) = host_block(w.host))
              < (SELECT l.block_jobs FROM fleet_limit l)
    ), admitted AS (
        UPDATE apalis.jobs j SET gate = 'ready' WHERE j.id = ANY (ARRAY(
            SELECT x.id FROM apalis.jobs x WHERE x.id IN (SELECT f.id FROM free f) AND x.gate = 'host' ORDER BY x.id FOR UPDATE SKIP LOCKED)) RETURNING 1
    )
    SELECT (SELECT count(*) FROM pairs), (SELECT p.host FROM pairs p ORDER BY p.nth DESC LIMIT 1), (SELECT count(*) FROM admitted)
    INTO v_seen, v_last, v_jobs;
    -- A round that was cut short begins again at the last host, whose other queues it may not have seen.
    UPDATE queue_cursor q SET ran_at = p_now, host = CASE WHEN v_seen < p_limit OR v_last = v_cursor THEN '' ELSE v_last END
    WHERE q.name = 'admit';
    RETURN n + v_jobs;
END $$;

CREATE OR REPLACE FUNCTION job_claim(
    p_worker text, p_queues text[], p_free integer[], p_now timestamptz DEFAULT now(),
    p_running integer[] DEFAULT NULL, p_turn integer DEFAULT 0, p_floors timestamptz[] DEFAULT NULL)
RETURNS TABLE (job_id text, queue text, kind text, network text, target text, attempt integer, max_attempts integer, timeout_s integer,
               class smallint, deadline_at timestamptz, probe boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET enable_bitmapscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    -- Ten places are dealt like this while every class wants some; what one does not want goes to the first that does.
    v_deal CONSTANT integer[] := '{0,1,0,2,0,1,0,3,0,2}';
    v_vantage text;
    v_drains boolean;
    v_paused text[];
    v_waiting boolean;
    v_host_jobs integer;
    v_block_jobs integer;
    v_spacing_ms integer;
    v_network text;
    v_left integer[];
    v_all integer;
    v_more integer;
    v_runs integer;
    v_probe boolean;
    v_until timestamptz;
    v_classes integer[];
    v_class integer;
    v_quota integer;
    v_first integer;
    v_share integer;
    v_ids text[];
    v_hosts text[];
    v_locked text[];
    v_nexts timestamptz[];
    v_taken text[];
    v_back text[];
    v_got record;
    v_claimed integer := 0;
    v_now timestamptz := p_now;
    v_horizon timestamptz;
BEGIN
    -- Only a worker whose lease stands may take work: one that slept through its lease renews first.
    SELECT w.vantage, w.draining, l.host_jobs, l.block_jobs, l.host_spacing_ms, ARRAY(SELECT q.queue FROM queue_pause q WHERE q.mode <> 'drain'),
           EXISTS (SELECT FROM apalis.jobs j WHERE j.gate = 'later' AND j.run_at <= p_now) OR EXISTS (SELECT FROM apalis.jobs j WHERE j.gate = 'host')
    INTO v_vantage, v_drains, v_host_jobs, v_block_jobs, v_spacing_ms, v_paused, v_waiting
    FROM apalis.workers w CROSS JOIN fleet_limit l WHERE w.id = p_worker AND w.lease_until > p_now FOR KEY SHARE OF w;
    IF NOT found OR v_drains THEN RETURN; END IF;
    IF v_waiting THEN PERFORM job_admit(500, p_now); END IF;
    IF p_running IS NULL THEN
        -- Said by a worker of the version before: counted here.
        p_running := ARRAY(SELECT (SELECT count(*)::integer FROM apalis.jobs j WHERE j.lock_by = p_worker AND j.status = 'Running' AND j.job_type = q.name)
                           FROM unnest(p_queues) WITH ORDINALITY q(name, o) ORDER BY q.o);
    END IF;
    v_left := p_free;
    FOR i IN 1 .. cardinality(v_left) LOOP
        IF p_queues[i] = ANY (v_paused) THEN v_left[i] := 0; END IF;
    END LOOP;
    FOR v_network, v_all IN SELECT split_part(q.name, '.', 2), sum(q.n) FROM unnest(p_queues, v_left) q(name, n) WHERE q.n > 0 GROUP BY 1 ORDER BY 1 LOOP
        v_classes := ARRAY(
            SELECT c FROM generate_series(0, 3) c
            WHERE EXISTS (
                SELECT FROM unnest(p_queues, v_left) WITH ORDINALITY q(name, n, o) CROSS JOIN LATERAL (
                    SELECT FROM apalis.jobs j
                    WHERE j.job_type = q.name AND j.gate = 'ready' AND j.class = c
                      AND j.deadline_at >= coalesce(p_floors[(q.o - 1) * 4 + c + 1], '-infinity')
                    ORDER BY j.deadline_at LIMIT 1) x
                WHERE q.n > 0 AND split_part(q.name, '.', 2) = v_network)
            ORDER BY c);
        CONTINUE WHEN cardinality(v_classes) = 0;
        v_probe := false;
        v_more := v_all;
        IF v_network <> 'local' THEN
            SELECT b.until_at INTO v_until FROM breaker b WHERE b.network = v_network AND b.vantage = v_vantage;
            IF found THEN
                CONTINUE WHEN v_until > p_now;
                -- Half open: one job at a time of the whole vantage finds out.
                CONTINUE WHEN EXISTS (
                    SELECT FROM apalis.workers w JOIN apalis.jobs j ON j.lock_by = w.id AND j.status = 'Running' AND j.network = v_network
                    WHERE w.vantage = v_vantage AND w.lease_until > p_now AND j.lock_at >= v_until)
                    OR NOT pg_try_advisory_xact_lock(7306, hashtext(v_network || ' ' || v_vantage));
                v_probe := true;
                v_more := 1;
            END IF;
            -- A day's traffic is used up: what moves most of it rests.
            IF EXISTS (SELECT FROM network_limit l JOIN network_usage u ON u.network = l.network AND u.day = (p_now AT TIME ZONE 'UTC')::date
                       WHERE l.network = v_network AND u.bytes >= l.bytes_per_day) THEN
                v_left := ARRAY(SELECT CASE WHEN q.name = 'sync.' || v_network THEN 0 ELSE q.n END
                                FROM unnest(p_queues, v_left) WITH ORDINALITY q(name, n, o) ORDER BY q.o);
            END IF;
            -- Borrowed for what is there to do, not for what could be.
            SELECT count(*) INTO v_all FROM unnest(p_queues, v_left) WITH ORDINALITY q(name, n, o) CROSS JOIN LATERAL (
                SELECT FROM unnest(v_classes) c CROSS JOIN LATERAL (
                    SELECT FROM apalis.jobs j
                    WHERE j.job_type = q.name AND j.gate = 'ready' AND j.class = c
                      AND j.deadline_at >= coalesce(p_floors[(q.o - 1) * 4 + c + 1], '-infinity')
                    LIMIT q.n) y LIMIT q.n) x
            WHERE q.n > 0 AND split_part(q.name, '.', 2) = v_network;
            SELECT coalesce(sum(r.n), 0) INTO v_runs FROM unnest(p_queues, p_running) r(name, n) WHERE split_part(r.name, '.', 2) = v_network;
            v_more := network_borrow(p_worker, v_network, v_runs, least(v_more, v_all), p_now);
        END IF;
        v_first := p_turn + v_claimed;
        v_share := v_more;
        -- Twice round: each class its share first, then what is left in order of class.
        FOR v_round IN CASE WHEN cardinality(v_classes) = 1 THEN 2 ELSE 1 END .. 2 LOOP
            FOREACH v_class IN ARRAY v_classes LOOP
                v_quota := v_more;
                IF v_round = 1 THEN
                    SELECT least(count(*), v_more) INTO v_quota FROM generate_series(v_first, v_first + v_share - 1) t
                    WHERE v_deal[t % 10 + 1] = v_class;
                END IF;
                FOR v_try IN 1 .. 3 LOOP
                    EXIT WHEN v_quota <= 0 OR v_more <= 0;
                    SELECT array_agg(x.id ORDER BY x.deadline_at), array_agg(x.host ORDER BY x.deadline_at) INTO v_ids, v_hosts
                    FROM (SELECT y.* FROM unnest(p_queues, v_left) WITH ORDINALITY q(name, n, o) CROSS JOIN LATERAL (
                              SELECT j.id, j.host, j.deadline_at FROM apalis.jobs j
                              WHERE j.job_type = q.name AND j.gate = 'ready' AND j.class = v_class
                                AND j.deadline_at >= coalesce(p_floors[(q.o - 1) * 4 + v_class + 1], '-infinity')
                              ORDER BY j.deadline_at LIMIT least(q.n, v_quota) FOR UPDATE SKIP LOCKED) y
                          WHERE q.n > 0 AND split_part(q.name, '.', 2) = v_network
                          ORDER BY y.deadline_at LIMIT v_quota) x;
                    EXIT WHEN v_ids IS NULL;
                    v_back := NULL;
                    v_taken := v_ids;
                    IF v_network <> 'local' THEN
                        -- A host's row is the lock on it; who holds it is claiming there right now.
                        INSERT INTO host_state (host)
                        SELECT DISTINCT h FROM unnest(v_hosts) h WHERE h IS NOT NULL AND NOT EXISTS (SELECT FROM host_state s WHERE s.host = h)
                        ORDER BY 1 ON CONFLICT (host) DO NOTHING;
                        SELECT array_agg(l.host), array_agg(l.next_at) INTO v_locked, v_nexts
                        FROM (SELECT s.host, s.next_at FROM host_state s WHERE s.host = ANY (v_hosts) ORDER BY s.host FOR UPDATE SKIP LOCKED) l;
                        -- Locks were waited for: starts are spaced from now. A start further ahead than any could be reserved
                        -- was written by a clock that has been set back.
                        v_now := CASE WHEN p_now = now() THEN clock_timestamp() ELSE p_now END;
                        v_horizon := v_now + make_interval(secs => v_spacing_ms / 1000.0 + 5);
                        SELECT array_agg(p.id) FILTER (WHERE p.host IS NULL OR (p.nth <= p.room AND p.block_nth <= p.block_room)),
                               array_agg(p.id) FILTER (WHERE p.nth > p.room OR p.block_nth > p.block_room)
                        INTO v_taken, v_back
                        FROM (SELECT i.id, i.host, l.room, l.block_room, row_number() OVER (PARTITION BY i.host ORDER BY i.o) AS nth,
                                     row_number() OVER (PARTITION BY host_block(i.host) ORDER BY i.o) AS block_nth
                              FROM unnest(v_ids, v_hosts) WITH ORDINALITY i(id, host, o)
                              LEFT JOIN (SELECT u.host, CASE WHEN u.next_at > v_now AND u.next_at <= v_horizon THEN 0
                                                             WHEN v_spacing_ms > 0 THEN least(1, v_host_jobs - r.n)
                                                             ELSE v_host_jobs - r.n END AS room,
                                                -- An economy: what is over the block's limit would be sent back by host_permit.
                                                v_block_jobs - (SELECT count(*) FROM apalis.jobs x
                                                                WHERE x.status = 'Running' AND x.host IS NOT NULL
                                                                  AND host_block(x.host) = host_block(u.host)) AS block_room
                                         FROM unnest(v_locked, v_nexts) u(host, next_at) CROSS JOIN LATERAL (
                                             SELECT count(*) AS n FROM apalis.jobs r
                                             WHERE r.status = 'Running' AND r.host IS NOT NULL
                                               AND host_block(r.host) = host_block(u.host) AND r.host = u.host) r) l
                                ON l.host = i.host) p;
                        IF v_back IS NOT NULL THEN
                            UPDATE apalis.jobs j SET gate = 'host' WHERE j.id = ANY (v_back);
                        END IF;
                        IF v_taken IS NOT NULL AND v_spacing_ms > 0 THEN
                            UPDATE host_state s SET next_at = v_now + make_interval(secs => v_spacing_ms / 1000.0)
                            WHERE s.host = ANY (ARRAY(SELECT i.host FROM unnest(v_ids, v_hosts) i(id, host) WHERE i.id = ANY (v_taken)));
                        END IF;
                    END IF;
                    FOR v_got IN
                        UPDATE apalis.jobs j
                        SET status = 'Running', gate = NULL, lock_by = p_worker, lock_at = v_now, attempts = j.attempts + 1,
                            permitted_at = NULL, run_deadline = v_now + make_interval(secs => j.timeout_s)
                        WHERE j.id = ANY (v_taken)
                        RETURNING j.*
                    LOOP
                        job_id := v_got.id;
                        queue := v_got.job_type;
                        kind := v_got.kind;
                        network := v_got.network;
                        target := v_got.target;
                        attempt := v_got.attempts;
                        max_attempts := v_got.max_attempts;
                        timeout_s := v_got.timeout_s;
                        class := v_got.class;
                        deadline_at := v_got.deadline_at;
                        probe := v_probe;
                        RETURN NEXT;
                        v_left[array_position(p_queues, queue)] := v_left[array_position(p_queues, queue)] - 1;
                        v_quota := v_quota - 1;
                        v_more := v_more - 1;
                        v_claimed := v_claimed + 1;
                    END LOOP;
                    EXIT WHEN v_back IS NULL;
                END LOOP;
            END LOOP;
            EXIT WHEN v_more <= 0;
        END LOOP;
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION host_permit(
    p_job text, p_worker text, p_attempt integer, p_host text, p_address text, p_now timestamptz DEFAULT now())
RETURNS TABLE (held boolean, wait_s double precision)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
DECLARE
    v_limit fleet_limit;
    v_host text;
    v_block text := host_block(p_address);
    v_next timestamptz;
    v_running integer;
    v_now timestamptz := p_now;
    -- Waiting for a place that is taken: about as long as a look at a relay.
    v_full CONSTANT double precision := 4 + 3 * random();
    -- Longest wait that is worth holding the slot for.
    v_short CONSTANT double precision := 2;
BEGIN
    wait_s := 0;
    held := EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt]));
    IF NOT held THEN RETURN NEXT; RETURN; END IF;
    SELECT * INTO v_limit FROM fleet_limit;
    SELECT j.host INTO v_host FROM apalis.jobs j WHERE j.id = p_job;
    INSERT INTO host_address AS a (host, address, seen_at) VALUES (p_host, p_address, p_now)
    ON CONFLICT (host) DO UPDATE SET address = p_address, seen_at = p_now
        WHERE a.address <> p_address OR a.seen_at < p_now - interval '1 hour';
    IF v_host IS DISTINCT FROM p_address THEN
        -- The claim spaced it by another key: from here on it counts for its address.
        UPDATE apalis.jobs j SET host = p_address WHERE j.id = p_job;
        INSERT INTO host_state (host) VALUES (p_address) ON CONFLICT (host) DO NOTHING;
        SELECT h.next_at INTO v_next FROM host_state h WHERE h.host = p_address FOR UPDATE;
        v_now := CASE WHEN p_now = now() THEN clock_timestamp() ELSE p_now END;
        IF v_next > v_now + make_interval(secs => v_limit.host_spacing_ms / 1000.0 + 5) THEN v_next := v_now; END IF;
        SELECT count(*) INTO v_running FROM apalis.jobs r
        WHERE r.status = 'Running' AND r.host IS NOT NULL AND host_block(r.host) = v_block AND r.host = p_address AND r.id <> p_job;
        wait_s := extract(epoch FROM greatest(v_next, v_now) - v_now);
        IF v_running >= v_limit.host_jobs THEN wait_s := greatest(wait_s, v_full); END IF;
        IF wait_s > v_short THEN RETURN NEXT; RETURN; END IF;
        UPDATE host_state h SET next_at = greatest(v_next, v_now) + make_interval(secs => v_limit.host_spacing_ms / 1000.0) WHERE h.host = p_address;
    END IF;
    INSERT INTO host_state (host) VALUES ('net:' || v_block) ON CONFLICT (host) DO NOTHING;
    SELECT h.next_at INTO v_next FROM host_state h WHERE h.host = 'net:' || v_block FOR UPDATE;
    v_now := CASE WHEN p_now = now() THEN clock_timestamp() ELSE p_now END;
    IF v_next > v_now + make_interval(secs => v_limit.block_spacing_ms / 1000.0 + 5) THEN v_next := v_now; END IF;
    SELECT count(*) INTO v_running FROM apalis.jobs r
    WHERE r.status = 'Running' AND r.host IS NOT NULL AND host_block(r.host) = v_block AND r.id <> p_job
      -- Those that only ask, as this one does, must not keep each other out.
      AND r.permitted_at IS NOT NULL;
    wait_s := greatest(wait_s, extract(epoch FROM greatest(v_next, v_now) - v_now));
    IF v_running >= v_limit.block_jobs THEN wait_s := greatest(wait_s, v_full); END IF;
    IF wait_s <= v_short THEN
        UPDATE host_state h SET next_at = greatest(v_next, v_now) + make_interval(secs => v_limit.block_spacing_ms / 1000.0)
        WHERE h.host = 'net:' || v_block;
        UPDATE apalis.jobs j SET permitted_at = p_now WHERE j.id = p_job;
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION host_permit IS 'Asked after a name was resolved and before its address is dialled: at most 2 s to wait means that a start is reserved then; more, that the job should come back then. Not held: the lease was lost.';

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
        -- Asked for again while it ran: the row becomes the job that was asked for.
        UPDATE apalis.jobs j
        SET id = job_id_new(), status = 'Pending', gate = 'later', attempts = 0, max_attempts = 3,
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
COMMENT ON FUNCTION job_finish IS 'Acknowledges attempts: complete, cancel and kill move the job to history, retry and snooze put it back (snooze allows one attempt more; a retry beyond max_attempts is dead), and what was asked for again meanwhile becomes a new job in the same row. Returns the jobs whose fence held.';

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
        SET id = job_id_new(), status = 'Pending', gate = 'later', attempts = 0, max_attempts = 3,
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
COMMENT ON FUNCTION job_lose IS 'Takes running jobs from a worker that is gone: put back with the attempt spent, or ended when cancelled or out of attempts; what was asked for again meanwhile becomes a new job. The caller has locked them.';

CREATE OR REPLACE FUNCTION job_rescue(p_limit integer DEFAULT 1000, p_now timestamptz DEFAULT now(), p_deadlines boolean DEFAULT true)
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
        ORDER BY j.id LIMIT p_limit
        -- A lease that is being renewed is not over.
        FOR NO KEY UPDATE OF w SKIP LOCKED FOR UPDATE OF j SKIP LOCKED) l;
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

CREATE OR REPLACE FUNCTION job_heartbeat(
    p_worker text, p_lease_s double precision, p_vantage text, p_version text, p_queues text[], p_slots integer,
    p_now timestamptz DEFAULT now(), p_slots_of integer[] DEFAULT NULL, p_networks text[] DEFAULT NULL,
    p_bytes bigint[] DEFAULT NULL, p_listens boolean DEFAULT false)
RETURNS TABLE (job_id text, attempt integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
DECLARE
    v_until timestamptz;
    v_now timestamptz;
    -- Who names one number for all its queues may have all of them in any.
    v_slots_of integer[] := coalesce(p_slots_of, array_fill(p_slots, ARRAY[cardinality(p_queues)]));
BEGIN
    SELECT w.lease_until INTO v_until FROM apalis.workers w WHERE w.id = p_worker FOR NO KEY UPDATE;
    -- A claim under way holds the row by its key: renewing does not wait for it.
    v_now := CASE WHEN p_now = now() THEN clock_timestamp() ELSE p_now END;
    IF found AND coalesce(v_until <= v_now, true) THEN
        PERFORM FROM apalis.workers w WHERE w.id = p_worker FOR UPDATE;
        -- A lease that ended is over: its jobs and permits are anybody's, also when nobody took them yet.
        PERFORM job_lose(array_agg(l.id), array_agg('worker lost'::text), p_now) FROM (
            SELECT j.id FROM apalis.jobs j WHERE j.lock_by = p_worker AND j.status = 'Running' ORDER BY j.id FOR UPDATE) l
        HAVING count(*) > 0;
        DELETE FROM network_lease l WHERE l.worker_id = p_worker;
    END IF;
    INSERT INTO apalis.workers AS w (id, worker_type, storage_name, layers, last_seen, started_at, lease_until, vantage, version, queues, slots, slots_of, listens)
    VALUES (p_worker, 'bigbrotr', 'bigbrotr', '', p_now, p_now, v_now + make_interval(secs => p_lease_s), p_vantage, p_version, p_queues, p_slots, v_slots_of, p_listens)
    ON CONFLICT (id) DO UPDATE SET last_seen = p_now, lease_until = v_now + make_interval(secs => p_lease_s), listens = p_listens,
        slots_of = coalesce(w.slots_of, v_slots_of);
    INSERT INTO network_usage AS x (network, day, bytes)
    SELECT u.network, (p_now AT TIME ZONE 'UTC')::date, u.bytes FROM unnest(p_networks, p_bytes) u(network, bytes) WHERE u.bytes > 0 ORDER BY 1
    ON CONFLICT (network, day) DO UPDATE SET bytes = x.bytes + excluded.bytes;
    RETURN QUERY SELECT j.id, j.attempts FROM apalis.jobs j WHERE j.lock_by = p_worker AND j.status = 'Running';
END $$;

CREATE OR REPLACE FUNCTION worker_stop(p_worker text)
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
DECLARE n integer;
BEGIN
    -- The lease first: a claim under way holds its row, so that nothing is claimed after the jobs went back.
    PERFORM FROM apalis.workers w WHERE w.id = p_worker FOR UPDATE;
    -- Well before now: a claim that began before this and waits for the row must find the lease over.
    UPDATE apalis.workers w SET lease_until = now() - interval '5 minutes', listens = false WHERE w.id = p_worker;
    -- In the order of ids, as everybody locks jobs.
    PERFORM FROM apalis.jobs j WHERE j.lock_by = p_worker AND j.status = 'Running' ORDER BY j.id FOR UPDATE;
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

CREATE OR REPLACE FUNCTION scheduler_tick(
    p_holder text, p_ttl_s double precision, p_kinds text[], p_networks text[], p_timeouts integer[], p_max_attempts integer[],
    p_again_s integer[], p_limit integer, p_deadlines boolean, p_now timestamptz DEFAULT now())
RETURNS TABLE (term bigint, rescued integer, killed integer, enqueued integer[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE n integer;
BEGIN
    term := leader_claim('scheduler', p_holder, p_ttl_s, p_now);
    IF term IS NOT NULL THEN
        FOR i IN 1 .. cardinality(p_kinds) LOOP
            SELECT s.enqueued INTO n FROM schedule_enqueue(
                p_kinds[i], ARRAY(SELECT q.network FROM queue_list() q WHERE q.kind = p_kinds[i] AND (q.network = 'local' OR q.network = ANY (p_networks))),
                p_limit, p_timeouts[i], p_max_attempts[i], p_again_s[i], p_now) s;
            enqueued[i] := n;
        END LOOP;
        -- Last: who enqueues waits for the rows of jobs, so that nobody waits for it while holding some.
        SELECT r.rescued, r.killed INTO rescued, killed FROM job_rescue(1000, p_now, p_deadlines) r;
    END IF;
    RETURN NEXT;
END $$;

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
    SELECT greatest(max(s.sampled_at), v_until - interval '10 minutes') INTO v_since FROM queue_sample s;
    v_since := coalesce(v_since, v_until - interval '1 minute');
    v_count := NOT EXISTS (SELECT FROM queue_sample s WHERE s.scheduled IS NOT NULL AND s.sampled_at > v_until - interval '1 minute');
    INSERT INTO queue_sample (sampled_at, kind, network, complete, cancelled, dead, run_s, wait_s, scheduled)
    SELECT v_until, q.kind, q.network, coalesce(d.complete, 0), coalesce(d.cancelled, 0), coalesce(d.dead, 0),
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

CREATE FUNCTION name_pattern(p_name text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT replace(replace(replace(replace(p_name, '\', '\\'), '_', '\_'), '%', '\%'), '*', '%')
$$;
COMMENT ON FUNCTION name_pattern IS 'The LIKE pattern of a name in which * stands for anything and nothing else is special.';

CREATE OR REPLACE FUNCTION queue_hold(p_queues text[], p_mode text, p_actor text, p_why text)
RETURNS text[]
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE v_named text[];
BEGIN
    SELECT array_agg(DISTINCT q.kind || '.' || q.network) INTO v_named
    FROM queue_list() q JOIN unnest(p_queues) u ON q.kind || '.' || q.network LIKE name_pattern(u);
    IF v_named IS NULL THEN
        RAISE EXCEPTION 'no queue is named %: queues are kind.network, with * for any', array_to_string(p_queues, ', ') USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF p_mode = 'resume' THEN
        DELETE FROM queue_pause q WHERE q.queue = ANY (v_named);
    ELSE
        INSERT INTO queue_pause AS q (queue, mode, actor, why) SELECT u, p_mode, p_actor, p_why FROM unnest(v_named) u ORDER BY 1
        ON CONFLICT (queue) DO UPDATE SET mode = CASE WHEN q.mode = p_mode THEN p_mode ELSE 'both' END, since_at = now(), actor = p_actor, why = p_why;
    END IF;
    PERFORM operation_note(p_actor, p_mode, to_jsonb(p_queues), cardinality(v_named), v_named, p_why);
    RETURN v_named;
END $$;
COMMENT ON FUNCTION queue_hold IS 'Pauses (nothing is claimed), drains (nothing new is enqueued; a paused queue stays paused) or resumes queues, named kind.network with * for any; returns them.';

CREATE OR REPLACE FUNCTION job_match(p_which text, p_kind text, p_network text)
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
               OR (p_which LIKE '%*%' AND j.target LIKE name_pattern(p_which)))
        ORDER BY j.id;
END $$;

CREATE OR REPLACE FUNCTION job_retry(p_which text, p_kind text, p_network text, p_since_s double precision, p_slack integer, p_actor text, p_why text, p_now timestamptz DEFAULT now())
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
    -- As job_enqueue locks: first its turn, then jobs in the order of ids.
    PERFORM pg_advisory_xact_lock(7304);
    PERFORM FROM apalis.jobs j WHERE j.id = ANY (v_ids) ORDER BY j.id FOR UPDATE;
    UPDATE apalis.jobs j SET run_at = p_now, deadline_at = least(j.deadline_at, p_now + make_interval(secs => j.slack_s))
    WHERE j.id = ANY (v_ids) AND j.gate = 'later' AND j.run_at > p_now AND j.last_result ? 'error';
    GET DIAGNOSTICS woken = ROW_COUNT;
    SELECT array_agg(d.kind), array_agg(d.network), array_agg(d.target) INTO v_kinds, v_networks, v_targets FROM (
        SELECT DISTINCT h.kind, h.network, h.target FROM job_history h
        WHERE h.state = 'dead' AND h.finished_at > p_now - make_interval(secs => p_since_s)
          AND (p_kind IS NULL OR h.kind = p_kind) AND (p_network IS NULL OR h.network = p_network)
          AND (p_which IS NULL OR h.job_id = p_which OR h.target = p_which
               OR (p_which LIKE '%*%' AND h.target LIKE name_pattern(p_which)))) d;
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
        SELECT k.kind, r.network, r.url AS target FROM relay r CROSS JOIN (VALUES ('monitor'), ('sync')) k(kind) WHERE r.url = ANY (p_targets)
        UNION ALL
        SELECT 'validate', c.network, c.url FROM candidate c WHERE c.url = ANY (p_targets)
        UNION ALL
        SELECT s.kind, s.network, s.target FROM schedule s WHERE s.network = 'local' AND s.target = ANY (p_targets)) w
    WHERE p_kinds IS NULL OR w.kind = ANY (p_kinds);
    asked := coalesce(cardinality(v_kinds), 0);
    enqueued := 0;
    IF asked > 0 THEN
        -- Whoever names a candidate that was given up wants it looked at again.
        UPDATE candidate c SET tombstoned_at = NULL WHERE c.url = ANY (p_targets) AND c.tombstoned_at IS NOT NULL AND 'validate' = ANY (v_kinds);
        enqueued := job_enqueue(v_kinds, v_networks, v_targets, array_fill(p_now, ARRAY[asked]), array_fill(5, ARRAY[asked]),
                                ARRAY(SELECT job_timeout(k) FROM unnest(v_kinds) k), array_fill(3, ARRAY[asked]), p_now, array_fill(0::smallint, ARRAY[asked]));
    END IF;
    PERFORM operation_note(p_actor, 'run-now', jsonb_build_object('targets', p_targets, 'kinds', p_kinds), asked, v_targets, p_why);
    RETURN NEXT;
END $$;

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
    RETURN n;
END $$;

CREATE OR REPLACE FUNCTION fleet_limits_set(
    p_networks text[], p_permits integer[], p_bytes_per_day bigint[],
    p_host_jobs integer, p_host_spacing_ms integer, p_block_jobs integer, p_block_spacing_ms integer)
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE n integer;
BEGIN
    PERFORM FROM network_limit l WHERE l.network = ANY (p_networks) ORDER BY l.network FOR UPDATE;
    UPDATE network_limit l SET permits = u.permits, bytes_per_day = u.bytes, updated_at = now()
    FROM unnest(p_networks, p_permits, p_bytes_per_day) u(network, permits, bytes)
    WHERE l.network = u.network AND (l.permits, l.bytes_per_day) IS DISTINCT FROM (u.permits, u.bytes);
    GET DIAGNOSTICS n = ROW_COUNT;
    UPDATE fleet_limit l
    SET host_jobs = p_host_jobs, host_spacing_ms = p_host_spacing_ms, block_jobs = p_block_jobs, block_spacing_ms = p_block_spacing_ms
    WHERE (l.host_jobs, l.host_spacing_ms, l.block_jobs, l.block_spacing_ms)
          IS DISTINCT FROM (p_host_jobs, p_host_spacing_ms, p_block_jobs, p_block_spacing_ms);
    RETURN n + found::integer;
END $$;

CREATE OR REPLACE FUNCTION breaker_trip(p_network text, p_vantage text, p_worker text, p_why text, p_now timestamptz DEFAULT now())
RETURNS double precision
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE v_until timestamptz;
BEGIN
    INSERT INTO breaker AS b (network, vantage, level, opened_at, until_at, why, worker_id)
    VALUES (p_network, p_vantage, 1, p_now, p_now + interval '15 seconds', p_why, p_worker)
    ON CONFLICT (network, vantage) DO UPDATE
        -- Jobs that were under way when it opened report the same trouble: they do not open it further.
        SET level = b.level + CASE WHEN b.until_at <= p_now AND EXISTS (
                SELECT FROM apalis.jobs j WHERE j.lock_by = p_worker AND j.network = p_network AND j.status = 'Running' AND j.lock_at >= b.until_at)
                THEN 1 ELSE 0 END,
            until_at = CASE WHEN b.until_at <= p_now THEN p_now + least(interval '5 minutes', interval '15 seconds' * power(2, least(b.level, 10)))
                       ELSE b.until_at END,
            why = p_why, worker_id = p_worker
    RETURNING b.until_at INTO v_until;
    RETURN extract(epoch FROM v_until - p_now);
END $$;

CREATE OR REPLACE FUNCTION host_block(p_host text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE
        WHEN p_host ~ '^[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+$' THEN substring(p_host FROM '^[0-9]+\.[0-9]+\.[0-9]+')
        WHEN p_host LIKE '%:%' THEN host(network(set_masklen(p_host::inet, 48)))
        ELSE p_host END
$$;
