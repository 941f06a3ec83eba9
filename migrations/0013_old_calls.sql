-- Workers of version 6 during an upgrade: they do not say what they run of each queue, nor how many slots each has, so
-- it is looked up or taken from what they do say. Functions of 0008 and 0009 with the same arguments, made anew.

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
BEGIN
    IF p_network = 'local' THEN RETURN p_more; END IF;
    IF p_running = 0 THEN
        -- Who runs nothing there, or does not say what it runs.
        SELECT count(*) INTO p_running FROM apalis.jobs j WHERE j.lock_by = p_worker AND j.status = 'Running' AND j.network = p_network;
    END IF;
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
    -- Who names one number for all its queues may have all of them in any.
    v_slots_of integer[] := coalesce(p_slots_of, array_fill(p_slots, ARRAY[cardinality(p_queues)]));
BEGIN
    SELECT w.lease_until INTO v_until FROM apalis.workers w WHERE w.id = p_worker FOR UPDATE;
    IF found AND coalesce(v_until <= p_now, true) THEN
        -- A lease that ended is over: its jobs and permits are anybody's, also when nobody took them yet.
        PERFORM job_lose(array_agg(l.id), array_agg('worker lost'::text), p_now) FROM (
            SELECT j.id FROM apalis.jobs j WHERE j.lock_by = p_worker AND j.status = 'Running' ORDER BY j.id FOR UPDATE) l
        HAVING count(*) > 0;
        DELETE FROM network_lease l WHERE l.worker_id = p_worker;
    END IF;
    INSERT INTO apalis.workers AS w (id, worker_type, storage_name, layers, last_seen, started_at, lease_until, vantage, version, queues, slots, slots_of, listens)
    VALUES (p_worker, 'bigbrotr', 'bigbrotr', '', p_now, p_now, p_now + make_interval(secs => p_lease_s), p_vantage, p_version, p_queues, p_slots, v_slots_of, p_listens)
    ON CONFLICT (id) DO UPDATE SET last_seen = p_now, lease_until = p_now + make_interval(secs => p_lease_s), listens = p_listens,
        slots_of = coalesce(w.slots_of, v_slots_of);
    INSERT INTO network_usage AS x (network, day, bytes)
    SELECT u.network, (p_now AT TIME ZONE 'UTC')::date, u.bytes FROM unnest(p_networks, p_bytes) u(network, bytes) WHERE u.bytes > 0 ORDER BY 1
    ON CONFLICT (network, day) DO UPDATE SET bytes = x.bytes + excluded.bytes;
    RETURN QUERY SELECT j.id, j.attempts FROM apalis.jobs j WHERE j.lock_by = p_worker AND j.status = 'Running';
END $$;
