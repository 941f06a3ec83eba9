-- The queue with classes, hosts and permits. Functions of 0003 whose arguments grew are made anew: calls of
-- workers of the version before, with fewer arguments, still find them.

DROP FUNCTION job_enqueue(text[], text[], text[], timestamptz[], integer[], integer[], integer[], timestamptz);
CREATE FUNCTION job_enqueue(
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
            WHERE (j.status = 'Pending' AND excluded.class < j.class)
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
        CONTINUE WHEN EXISTS (SELECT FROM queue_pause q WHERE q.queue = p_kind || '.' || v_network AND q.mode = 'drain');
        WITH picked AS (
            SELECT s.kind, s.target, s.due_at, s.slack_s, s.why FROM schedule s
            WHERE s.kind = p_kind AND s.network = v_network AND s.due_at <= p_now
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
COMMENT ON FUNCTION schedule_enqueue IS 'Turns what is due of one kind into jobs, by index, at most p_limit per network, and moves each p_again_s ahead: a job that is lost without a trace comes due again by itself. Drained queues get nothing.';

CREATE FUNCTION job_admit(p_limit integer DEFAULT 500, p_now timestamptz DEFAULT now())
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
        WHERE coalesce(h.next_at, '-infinity') <= p_now
          AND (w.now OR NOT EXISTS (SELECT FROM apalis.jobs x WHERE x.host = w.host AND x.job_type = w.job_type AND x.gate = 'ready'))
          AND (SELECT count(*) FROM apalis.jobs r
               WHERE r.status = 'Running' AND r.host IS NOT NULL AND host_block(r.host) = host_block(w.host) AND r.host = w.host)
              < (SELECT l.host_jobs FROM fleet_limit l)
    ), admitted AS (
        UPDATE apalis.jobs j SET gate = 'ready' WHERE j.id = ANY (ARRAY(SELECT f.id FROM free f)) AND j.gate = 'host' RETURNING 1
    )
    SELECT (SELECT count(*) FROM pairs), (SELECT p.host FROM pairs p ORDER BY p.nth DESC LIMIT 1), (SELECT count(*) FROM admitted)
    INTO v_seen, v_last, v_jobs;
    -- A round that was cut short begins again at the last host, whose other queues it may not have seen.
    UPDATE queue_cursor q SET ran_at = p_now, host = CASE WHEN v_seen < p_limit OR v_last = v_cursor THEN '' ELSE v_last END
    WHERE q.name = 'admit';
    RETURN n + v_jobs;
END $$;
COMMENT ON FUNCTION job_admit IS 'Lets jobs step forward whose time has come or whose host has a free place; one caller at a time, hosts five times a second. Returns how many moved.';

CREATE FUNCTION network_borrow(
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
BEGIN
    IF p_network = 'local' THEN RETURN p_more; END IF;
    LOOP
        SELECT l.permits INTO v_total FROM network_limit l WHERE l.network = p_network;
        IF NOT found THEN RETURN 0; END IF;
        SELECT coalesce(sum(l.permits) FILTER (WHERE l.worker_id = p_worker), 0),
               coalesce(max(l.short) FILTER (WHERE l.worker_id = p_worker), 0),
               coalesce(sum(l.permits) FILTER (WHERE l.worker_id <> p_worker), 0),
               coalesce(max(l.short) FILTER (WHERE l.worker_id <> p_worker), 0),
               count(*) FILTER (WHERE l.worker_id <> p_worker AND (l.permits > 0 OR l.short > 0))
        INTO v_own, v_old_short, v_others, v_short, v_rivals
        FROM network_lease l JOIN apalis.workers w ON w.id = l.worker_id AND w.lease_until > p_now
        WHERE l.network = p_network;
        -- While another is short of permits, nobody keeps more than its share.
        v_cap := CASE WHEN v_short > 0 THEN greatest(v_total / (v_rivals + 1), 1) ELSE v_total END;
        v_new := least(p_running + p_more, v_cap, greatest(v_total - v_others, 0));
        IF v_new <= v_own THEN
            v_new := CASE WHEN v_own > v_cap THEN greatest(v_cap, p_running) ELSE v_own END;
        ELSIF NOT v_locked THEN
            -- Borrowers of one network take turns, and look again when it is theirs.
            PERFORM FROM network_limit l WHERE l.network = p_network FOR UPDATE;
            v_locked := true;
            CONTINUE;
        END IF;
        v_short := greatest(least(p_running + p_more, v_total) - v_new, 0);
        IF v_new <> v_own OR v_short <> v_old_short THEN
            INSERT INTO network_lease AS l (network, worker_id, permits, short) VALUES (p_network, p_worker, v_new, v_short)
            ON CONFLICT (network, worker_id) DO UPDATE SET permits = excluded.permits, short = excluded.short;
        END IF;
        RETURN least(greatest(v_new - p_running, 0), p_more);
    END LOOP;
END $$;
COMMENT ON FUNCTION network_borrow IS 'How many more jobs a worker that runs p_running on a network may start, of p_more it could: borrows what it lacks from the network''s limit, gives back what is over its share while another is short. Never more than the limit is lent.';

DROP FUNCTION job_claim(text, text[], integer[], timestamptz);
CREATE FUNCTION job_claim(
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
BEGIN
    -- Only a worker whose lease stands may take work: one that slept through its lease renews first.
    SELECT w.vantage, w.draining, l.host_jobs, l.host_spacing_ms, ARRAY(SELECT q.queue FROM queue_pause q WHERE q.mode = 'pause'),
           EXISTS (SELECT FROM apalis.jobs j WHERE j.gate = 'later' AND j.run_at <= p_now) OR EXISTS (SELECT FROM apalis.jobs j WHERE j.gate = 'host')
    INTO v_vantage, v_drains, v_host_jobs, v_spacing_ms, v_paused, v_waiting
    FROM apalis.workers w CROSS JOIN fleet_limit l WHERE w.id = p_worker AND w.lease_until > p_now FOR SHARE OF w;
    IF NOT found OR v_drains THEN RETURN; END IF;
    IF v_waiting THEN PERFORM job_admit(500, p_now); END IF;
    v_left := p_free;
    FOR i IN 1 .. cardinality(v_left) LOOP
        IF p_queues[i] = ANY (v_paused) THEN v_left[i] := 0; END IF;
    END LOOP;
    FOR v_network, v_all IN SELECT split_part(q.name, '.', 2), sum(q.n) FROM unnest(p_queues, v_left) q(name, n) WHERE q.n > 0 GROUP BY 1 LOOP
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
                        SELECT array_agg(p.id) FILTER (WHERE p.host IS NULL OR p.nth <= p.room),
                               array_agg(p.id) FILTER (WHERE p.nth > p.room)
                        INTO v_taken, v_back
                        FROM (SELECT i.id, i.host, l.room, row_number() OVER (PARTITION BY i.host ORDER BY i.o) AS nth
                              FROM unnest(v_ids, v_hosts) WITH ORDINALITY i(id, host, o)
                              LEFT JOIN (SELECT u.host, CASE WHEN u.next_at > p_now THEN 0
                                                             WHEN v_spacing_ms > 0 THEN least(1, v_host_jobs - r.n)
                                                             ELSE v_host_jobs - r.n END AS room
                                         FROM unnest(v_locked, v_nexts) u(host, next_at) CROSS JOIN LATERAL (
                                             SELECT count(*) AS n FROM apalis.jobs r
                                             WHERE r.status = 'Running' AND r.host IS NOT NULL
                                               AND host_block(r.host) = host_block(u.host) AND r.host = u.host) r) l
                                ON l.host = i.host) p;
                        IF v_back IS NOT NULL THEN
                            UPDATE apalis.jobs j SET gate = 'host' WHERE j.id = ANY (v_back);
                        END IF;
                        IF v_taken IS NOT NULL AND v_spacing_ms > 0 THEN
                            UPDATE host_state s SET next_at = p_now + make_interval(secs => v_spacing_ms / 1000.0)
                            WHERE s.host = ANY (ARRAY(SELECT i.host FROM unnest(v_ids, v_hosts) i(id, host) WHERE i.id = ANY (v_taken)));
                        END IF;
                    END IF;
                    FOR v_got IN
                        UPDATE apalis.jobs j
                        SET status = 'Running', gate = NULL, lock_by = p_worker, lock_at = p_now, attempts = j.attempts + 1,
                            run_deadline = p_now + make_interval(secs => j.timeout_s)
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
COMMENT ON FUNCTION job_claim IS 'Claims at most p_free[i] due jobs of p_queues[i] for a worker with a standing lease that runs p_running[i] of each: by class with shares (p_turn: claims so far), earliest deadline first from p_floors on (four per queue), within the limits of networks and hosts. Index scans only, whatever the backlog. probe: the breaker is half open and this job finds out.';
