-- What the fleet shares: limits, permits, breakers, hosts, pauses. Worked on by the functions of 0008.

CREATE TABLE network_limit (
    network       text        PRIMARY KEY CHECK (network IN ('clearnet', 'tor', 'i2p', 'loki')),
    permits       integer     NOT NULL CHECK (permits >= 0),
    bytes_per_day bigint      CHECK (bytes_per_day > 0),
    updated_at    timestamptz NOT NULL DEFAULT now()
);
INSERT INTO network_limit (network, permits) VALUES ('clearnet', 256), ('tor', 10), ('i2p', 5), ('loki', 5);
COMMENT ON TABLE  network_limit IS 'What the whole fleet may do on a network at once and in a day; published by the leading scheduler.';
COMMENT ON COLUMN network_limit.network IS 'clearnet, tor, i2p or loki.';
COMMENT ON COLUMN network_limit.permits IS 'Jobs that may run at once, all workers together.';
COMMENT ON COLUMN network_limit.bytes_per_day IS 'Bytes of one UTC day beyond which syncing rests; null: no limit.';
COMMENT ON COLUMN network_limit.updated_at IS 'When it was last changed.';

CREATE TABLE network_lease (
    network   text    NOT NULL,
    worker_id text    NOT NULL,
    permits   integer NOT NULL DEFAULT 0,
    short     integer NOT NULL DEFAULT 0,
    PRIMARY KEY (network, worker_id)
) WITH (fillfactor = 50);
COMMENT ON TABLE  network_lease IS 'Permits a worker has borrowed from a network''s limit; they stand as long as the worker''s own lease.';
COMMENT ON COLUMN network_lease.network IS 'network_limit.network';
COMMENT ON COLUMN network_lease.worker_id IS 'apalis.workers.id';
COMMENT ON COLUMN network_lease.permits IS 'Jobs it may run there at once.';
COMMENT ON COLUMN network_lease.short IS 'How many more it had work for when it last asked: others give back what is over their share.';

CREATE TABLE network_usage (
    network text   NOT NULL,
    day     date   NOT NULL,
    bytes   bigint NOT NULL,
    PRIMARY KEY (network, day)
);
COMMENT ON TABLE  network_usage IS 'Bytes the fleet moved per network and UTC day, both directions, reported by heartbeats.';
COMMENT ON COLUMN network_usage.network IS 'clearnet, tor, i2p or loki.';
COMMENT ON COLUMN network_usage.day IS 'UTC day.';
COMMENT ON COLUMN network_usage.bytes IS 'Sent and received.';

CREATE TABLE breaker (
    network   text        NOT NULL,
    vantage   text        NOT NULL,
    level     integer     NOT NULL,
    opened_at timestamptz NOT NULL,
    until_at  timestamptz NOT NULL,
    why       text        NOT NULL,
    worker_id text        NOT NULL,
    PRIMARY KEY (network, vantage)
);
COMMENT ON TABLE  breaker IS 'Networks into which a vantage''s own way does not work: open until until_at, then one job at a time probes; closed when the row is gone.';
COMMENT ON COLUMN breaker.network IS 'clearnet, tor, i2p or loki.';
COMMENT ON COLUMN breaker.vantage IS 'Vantage whose egress is in doubt.';
COMMENT ON COLUMN breaker.level IS 'Times it opened in a row: each doubles the pause.';
COMMENT ON COLUMN breaker.opened_at IS 'When it first opened.';
COMMENT ON COLUMN breaker.until_at IS 'Nothing is claimed before.';
COMMENT ON COLUMN breaker.why IS 'What was seen.';
COMMENT ON COLUMN breaker.worker_id IS 'Who saw it last.';

CREATE TABLE fleet_limit (
    one              boolean PRIMARY KEY DEFAULT true CHECK (one),
    host_jobs        integer NOT NULL DEFAULT 2 CHECK (host_jobs > 0),
    host_spacing_ms  integer NOT NULL DEFAULT 1000 CHECK (host_spacing_ms >= 0),
    block_jobs       integer NOT NULL DEFAULT 16 CHECK (block_jobs > 0),
    block_spacing_ms integer NOT NULL DEFAULT 50 CHECK (block_spacing_ms >= 0)
);
INSERT INTO fleet_limit DEFAULT VALUES;
COMMENT ON TABLE  fleet_limit IS 'How the whole fleet treats one machine and one address block: a single row, published by the leading scheduler.';
COMMENT ON COLUMN fleet_limit.one IS 'Always true.';
COMMENT ON COLUMN fleet_limit.host_jobs IS 'Jobs at once on one host.';
COMMENT ON COLUMN fleet_limit.host_spacing_ms IS 'Milliseconds between two starts on one host.';
COMMENT ON COLUMN fleet_limit.block_jobs IS 'Jobs at once in one address block.';
COMMENT ON COLUMN fleet_limit.block_spacing_ms IS 'Milliseconds between two starts in one address block.';

CREATE TABLE host_state (
    host    text        PRIMARY KEY,
    next_at timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 50);
COMMENT ON TABLE  host_state IS 'When the next job may start on a host: its row is the lock that claims of one host take turns on.';
COMMENT ON COLUMN host_state.host IS 'Last known address of the host, else its name; net:… for an address block.';
COMMENT ON COLUMN host_state.next_at IS 'Not before; the latest start plus the spacing.';

CREATE TABLE host_address (
    host    text        PRIMARY KEY,
    address text        NOT NULL,
    seen_at timestamptz NOT NULL
);
COMMENT ON TABLE  host_address IS 'Last known address of a host name: names on one machine share its limits.';
COMMENT ON COLUMN host_address.host IS 'Host part of relay URLs.';
COMMENT ON COLUMN host_address.address IS 'Address dialled first when it was last resolved.';
COMMENT ON COLUMN host_address.seen_at IS 'When that was, to the hour.';

CREATE TABLE queue_pause (
    queue    text        PRIMARY KEY,
    mode     text        NOT NULL CHECK (mode IN ('pause', 'drain')),
    since_at timestamptz NOT NULL DEFAULT now(),
    actor    text        NOT NULL,
    why      text        NOT NULL
);
COMMENT ON TABLE  queue_pause IS 'Queues an operator holds: paused ones are not claimed from, drained ones get nothing new from the schedule.';
COMMENT ON COLUMN queue_pause.queue IS 'kind.network';
COMMENT ON COLUMN queue_pause.mode IS 'pause or drain.';
COMMENT ON COLUMN queue_pause.since_at IS 'Since when.';
COMMENT ON COLUMN queue_pause.actor IS 'Who.';
COMMENT ON COLUMN queue_pause.why IS 'Why.';

CREATE TABLE queue_cursor (
    name   text        PRIMARY KEY,
    host   text        NOT NULL,
    ran_at timestamptz NOT NULL
);
INSERT INTO queue_cursor VALUES ('admit', '', '-infinity');
COMMENT ON TABLE  queue_cursor IS 'Where a round over many hosts goes on.';
COMMENT ON COLUMN queue_cursor.name IS 'Which round.';
COMMENT ON COLUMN queue_cursor.host IS 'The last host looked at; empty: begin again.';
COMMENT ON COLUMN queue_cursor.ran_at IS 'When it last ran.';

CREATE FUNCTION url_host(p_url text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = public, pg_temp
AS $$
    SELECT trim(BOTH '[]' FROM substring(p_url FROM '^wss?://(\[[^]]*\]|[^/:?#]+)'))
$$;
COMMENT ON FUNCTION url_host IS 'The host of a relay URL, an IPv6 literal without its brackets; null for what is no URL.';

CREATE FUNCTION host_block(p_host text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE
        WHEN p_host ~ '^[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+$' THEN substring(p_host FROM '^[0-9]+\.[0-9]+\.[0-9]+')
        WHEN p_host LIKE '%:%' THEN array_to_string((string_to_array(p_host, ':'))[1:3], ':')
        ELSE p_host END
$$;
COMMENT ON FUNCTION host_block IS 'The address block of a host: /24 of an IPv4 address, /48 of an IPv6 one, the name itself otherwise.';

CREATE FUNCTION job_class(p_kind text, p_why text) RETURNS smallint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT (CASE
        WHEN p_kind = 'sync' THEN CASE WHEN p_why IN ('new', 'more to read') THEN 3 ELSE 2 END
        WHEN p_why IN ('new', 'new candidate') THEN 1
        ELSE 2 END)::smallint
$$;
COMMENT ON FUNCTION job_class IS 'The class of a scheduled job by what set its time: 1 new relays, 2 rechecks, 3 archive backfill. Class 0 is what an operator wants now.';

CREATE FUNCTION fleet_limits_set(
    p_networks text[], p_permits integer[], p_bytes_per_day bigint[],
    p_host_jobs integer, p_host_spacing_ms integer, p_block_jobs integer, p_block_spacing_ms integer)
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE n integer;
BEGIN
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
COMMENT ON FUNCTION fleet_limits_set IS 'Publishes the limits of the fleet; returns how many rows changed. Lowered permits are reached as running jobs end.';

CREATE FUNCTION breaker_trip(p_network text, p_vantage text, p_worker text, p_why text, p_now timestamptz DEFAULT now())
RETURNS double precision
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE v_until timestamptz;
BEGIN
    INSERT INTO breaker AS b (network, vantage, level, opened_at, until_at, why, worker_id)
    VALUES (p_network, p_vantage, 1, p_now, p_now + interval '15 seconds', p_why, p_worker)
    ON CONFLICT (network, vantage) DO UPDATE
        -- Jobs that were under way when it opened report the same trouble: they do not open it further.
        SET level = CASE WHEN b.until_at <= p_now THEN b.level + 1 ELSE b.level END,
            until_at = CASE WHEN b.until_at <= p_now THEN p_now + least(interval '5 minutes', interval '15 seconds' * power(2, least(b.level, 10)))
                       ELSE b.until_at END,
            why = p_why, worker_id = p_worker
    RETURNING b.until_at INTO v_until;
    RETURN extract(epoch FROM v_until - p_now);
END $$;
COMMENT ON FUNCTION breaker_trip IS 'Opens a network''s breaker for one vantage, 15 s and then twice as long each time up to 5 min; returns the seconds it stays open.';

CREATE FUNCTION breaker_close(p_network text, p_vantage text)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    DELETE FROM breaker b WHERE b.network = p_network AND b.vantage = p_vantage;
    RETURN found;
END $$;
COMMENT ON FUNCTION breaker_close IS 'Closes a breaker: the network works again from this vantage. False if it was closed.';

CREATE FUNCTION host_permit(
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
    -- Waiting for a place that is taken: about as long as a look at a relay.
    v_full CONSTANT double precision := 5;
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
        SELECT count(*) INTO v_running FROM apalis.jobs r
        WHERE r.status = 'Running' AND r.host IS NOT NULL AND host_block(r.host) = v_block AND r.host = p_address AND r.id <> p_job;
        wait_s := extract(epoch FROM greatest(v_next, p_now) - p_now);
        IF v_running >= v_limit.host_jobs THEN wait_s := greatest(wait_s, v_full); END IF;
        IF wait_s > v_short THEN RETURN NEXT; RETURN; END IF;
        UPDATE host_state h SET next_at = greatest(v_next, p_now) + make_interval(secs => v_limit.host_spacing_ms / 1000.0) WHERE h.host = p_address;
    END IF;
    INSERT INTO host_state (host) VALUES ('net:' || v_block) ON CONFLICT (host) DO NOTHING;
    SELECT h.next_at INTO v_next FROM host_state h WHERE h.host = 'net:' || v_block FOR UPDATE;
    SELECT count(*) INTO v_running FROM apalis.jobs r
    WHERE r.status = 'Running' AND r.host IS NOT NULL AND host_block(r.host) = v_block AND r.id <> p_job;
    wait_s := greatest(wait_s, extract(epoch FROM greatest(v_next, p_now) - p_now));
    IF v_running >= v_limit.block_jobs THEN wait_s := greatest(wait_s, v_full); END IF;
    IF wait_s <= v_short THEN
        UPDATE host_state h SET next_at = greatest(v_next, p_now) + make_interval(secs => v_limit.block_spacing_ms / 1000.0)
        WHERE h.host = 'net:' || v_block;
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION host_permit IS 'Asked after a name was resolved and before its address is dialled: at most 2 s to wait means that a start is reserved then; more, that the job should come back then. Not held: the lease was lost.';

CREATE FUNCTION host_retire(p_older_s double precision DEFAULT 86400, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE n integer;
BEGIN
    -- Rows of hosts that never started anything have no age; claims make a missing row anew.
    DELETE FROM host_state h WHERE h.host IN (
        SELECT x.host FROM host_state x
        WHERE x.next_at < p_now - make_interval(secs => p_older_s) AND x.next_at > '-infinity' LIMIT 10000);
    GET DIAGNOSTICS n = ROW_COUNT;
    DELETE FROM host_address a WHERE a.seen_at < p_now - interval '30 days';
    DELETE FROM network_usage u WHERE u.day < (p_now AT TIME ZONE 'UTC')::date - 400;
    RETURN n;
END $$;
COMMENT ON FUNCTION host_retire IS 'Forgets hosts on which nothing started for long, addresses not seen for a month, and traffic older than 400 days; returns how many hosts.';
