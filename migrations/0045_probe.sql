-- The fleet, by fresh eyes: who finds out whether a network works, and a candidate that is wanted after all.

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
                -- A short job says it sooner: a pass would keep the network shut until it ends.
                IF EXISTS (SELECT FROM unnest(p_queues, v_left) q(name, n) JOIN apalis.jobs j ON j.job_type = q.name AND j.gate = 'ready'
                           WHERE q.n > 0 AND q.name IN ('validate.' || v_network, 'monitor.' || v_network)) THEN
                    v_left := ARRAY(SELECT CASE WHEN q.name = 'sync.' || v_network THEN 0 ELSE q.n END
                                    FROM unnest(p_queues, v_left) WITH ORDINALITY q(name, n, o) ORDER BY q.o);
                END IF;
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

CREATE OR REPLACE FUNCTION job_run_now(p_targets text[], p_kinds text[], p_actor text, p_why text, p_now timestamptz DEFAULT now())
RETURNS TABLE (asked integer, enqueued integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_kinds text[];
    v_networks text[];
    v_targets text[];
    v_revived text[];
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
        WITH revived AS (
            UPDATE candidate c SET tombstoned_at = NULL WHERE c.url = ANY (v_targets) AND c.tombstoned_at IS NOT NULL AND 'validate' = ANY (v_kinds)
            RETURNING c.url
        )
        SELECT array_agg(r.url) INTO v_revived FROM revived r;
        enqueued := job_enqueue(v_kinds, v_networks, v_targets, array_fill(p_now, ARRAY[asked]), array_fill(5, ARRAY[asked]),
                                ARRAY(SELECT job_timeout(k) FROM unnest(v_kinds) k), array_fill(3, ARRAY[asked]), p_now, array_fill(0::smallint, ARRAY[asked]));
        -- And again, should this job end without a verdict.
        INSERT INTO schedule (kind, target, network, due_at, slack_s, why)
        SELECT 'validate', c.url, c.network, p_now + interval '30 minutes', 300, 'asked for' FROM candidate c WHERE c.url = ANY (v_revived) ORDER BY 2
        ON CONFLICT (kind, target) DO NOTHING;
    END IF;
    PERFORM operation_note(p_actor, 'run-now', jsonb_build_object('targets', p_targets, 'kinds', p_kinds), asked, v_targets, p_why);
    RETURN NEXT;
END $$;
