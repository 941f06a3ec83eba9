-- What a look costs, who is excluded and why, how many subdomains one domain may fill, and how many vantages must agree.

-- Without a search path of its own it is inlined: called per row of every index of URLs, that was a tenth of a validation.
CREATE OR REPLACE FUNCTION url_host(p_url text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT pg_catalog.btrim(pg_catalog.substring(p_url, '^wss?://(\[[^]]*\]|[^/:?#]+)'), '[]')
$$;

CREATE FUNCTION url_site(p_url text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE
        WHEN h.host LIKE '%:%' OR h.host ~ '^[0-9.]+$' THEN public.host_block(h.host)
        -- The second level of a country that sells the third: co.uk, com.au, gob.mx.
        WHEN h.host ~ '\.(ac|co|com|edu|gen|go|gob|gov|ind|mil|ne|net|nom|or|org|plc|sch)\.[a-z]{2}$' THEN substring(h.host FROM '[^.]+\.[^.]+\.[^.]+$')
        ELSE coalesce(substring(h.host FROM '[^.]+\.[^.]+$'), h.host) END
    FROM (SELECT public.url_host(p_url) AS host) h
$$;
COMMENT ON FUNCTION url_site IS 'What somebody registers once and can name endless hosts under: the last two labels of a host, three where a country sells the third, the block of an address.';
CREATE INDEX candidate_site ON candidate ((public.url_site(url)));
CREATE INDEX relay_site ON relay ((public.url_site(url)));
COMMENT ON COLUMN candidate_refusal.host IS 'Host part of relay URLs; *.site (url_site) where all hosts of one site together have as many as they may.';
COMMENT ON TABLE  candidate_refusal IS 'Hosts, and sites, that have as many URLs as one may have, and how often another was named.';

ALTER TABLE fleet_limit ADD COLUMN vantages_for_down integer CHECK (vantages_for_down > 0);
COMMENT ON COLUMN fleet_limit.vantages_for_down IS 'Vantages that must agree that a relay is down; null until a scheduler has said so: then each worker goes by its own configuration.';

DROP FUNCTION fleet_limits_set(text[], integer[], bigint[], integer, integer, integer, integer);
CREATE FUNCTION fleet_limits_set(
    p_networks text[], p_permits integer[], p_bytes_per_day bigint[],
    p_host_jobs integer, p_host_spacing_ms integer, p_block_jobs integer, p_block_spacing_ms integer, p_vantages_for_down integer DEFAULT NULL)
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
    SET host_jobs = p_host_jobs, host_spacing_ms = p_host_spacing_ms, block_jobs = p_block_jobs, block_spacing_ms = p_block_spacing_ms,
        vantages_for_down = coalesce(p_vantages_for_down, l.vantages_for_down)
    WHERE (l.host_jobs, l.host_spacing_ms, l.block_jobs, l.block_spacing_ms, l.vantages_for_down)
          IS DISTINCT FROM (p_host_jobs, p_host_spacing_ms, p_block_jobs, p_block_spacing_ms, coalesce(p_vantages_for_down, l.vantages_for_down));
    RETURN n + found::integer;
END $$;
COMMENT ON FUNCTION fleet_limits_set IS 'Publishes the limits of the fleet, and how many vantages must agree that a relay is down; returns how many rows changed. Lowered permits are reached as running jobs end.';

-- Starts for many jobs in one call. Locks: jobs in order of ids, then address blocks, then addresses, each in order;
-- whoever claims waits for none of the latter two.
CREATE FUNCTION host_permits(
    p_jobs text[], p_workers text[], p_attempts integer[], p_hosts text[], p_addresses text[], p_now timestamptz DEFAULT now())
RETURNS TABLE (o integer, held boolean, wait_s double precision)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
DECLARE
    v_held integer[] := ARRAY(SELECT f FROM job_fence(p_jobs, p_workers, p_attempts) f ORDER BY f);
    v_limit fleet_limit;
    v_blocks text[] := ARRAY(SELECT host_block(u.a) FROM unnest(p_addresses) WITH ORDINALITY u(a, o) ORDER BY u.o);
    v_nets text[];
    v_elsewhere integer[];
    v_turns integer[];
    v_now timestamptz := p_now;
    -- Waiting for a place that is taken: about as long as a look at a relay.
    v_full CONSTANT double precision := 4;
    -- Longest wait that is worth holding the slot for.
    v_short CONSTANT double precision := 2;
BEGIN
    SELECT * INTO v_limit FROM fleet_limit;
    v_nets := ARRAY(SELECT DISTINCT 'net:' || v_blocks[h] FROM unnest(v_held) h ORDER BY 1);
    INSERT INTO host_state (host) SELECT n FROM unnest(v_nets) n WHERE NOT EXISTS (SELECT FROM host_state s WHERE s.host = n)
    ORDER BY 1 ON CONFLICT (host) DO NOTHING;
    PERFORM FROM host_state s WHERE s.host = ANY (v_nets) ORDER BY s.host FOR UPDATE;
    -- The claim spaced these by another key: from here on they count for their addresses.
    v_elsewhere := ARRAY(SELECT h FROM unnest(v_held) h JOIN apalis.jobs j ON j.id = p_jobs[h] WHERE j.host IS DISTINCT FROM p_addresses[h]);
    PERFORM FROM host_state s WHERE s.host IN (SELECT p_addresses[h] FROM unnest(v_elsewhere) h) ORDER BY s.host FOR UPDATE;
    -- Locks were waited for: starts are spaced from now.
    v_now := CASE WHEN p_now = now() THEN clock_timestamp() ELSE p_now END;
    -- One of each block at a time, in the order of the question: the next one sees what the one before was given.
    v_turns := ARRAY(SELECT x.turn FROM (SELECT h, row_number() OVER (PARTITION BY v_blocks[h] ORDER BY h) AS turn FROM unnest(v_held) h) x ORDER BY x.h);
    FOR v_turn IN 1 .. coalesce((SELECT max(t) FROM unnest(v_turns) t), 0) LOOP
        RETURN QUERY
        WITH asked AS MATERIALIZED (
            SELECT u.h, p_jobs[u.h] AS job, p_addresses[u.h] AS address, 'net:' || v_blocks[u.h] AS net, u.h = ANY (v_elsewhere) AS elsewhere,
                   r.on_host, r.on_block,
                   -- A start further ahead than any could be reserved was written by a clock that has been set back.
                   CASE WHEN a.next_at <= v_now + make_interval(secs => v_limit.host_spacing_ms / 1000.0 + 5) THEN greatest(a.next_at, v_now) ELSE v_now END AS host_at,
                   CASE WHEN n.next_at <= v_now + make_interval(secs => v_limit.block_spacing_ms / 1000.0 + 5) THEN greatest(n.next_at, v_now) ELSE v_now END AS net_at
            FROM unnest(v_held, v_turns) u(h, turn)
            LEFT JOIN host_state a ON a.host = p_addresses[u.h]
            LEFT JOIN host_state n ON n.host = 'net:' || v_blocks[u.h]
            CROSS JOIN LATERAL (
                SELECT count(*) FILTER (WHERE x.host = p_addresses[u.h]) AS on_host,
                       -- Those that only ask, as this one does, must not keep each other out.
                       count(*) FILTER (WHERE x.permitted_at IS NOT NULL) AS on_block
                FROM apalis.jobs x
                WHERE x.status = 'Running' AND x.host IS NOT NULL AND host_block(x.host) = v_blocks[u.h] AND x.id <> p_jobs[u.h]) r
            WHERE u.turn = v_turn
        ), answered AS MATERIALIZED (
            SELECT k.*, greatest(
                extract(epoch FROM k.net_at - v_now)::double precision, CASE WHEN k.elsewhere THEN extract(epoch FROM k.host_at - v_now)::double precision END,
                CASE WHEN k.on_block >= v_limit.block_jobs OR (k.elsewhere AND k.on_host >= v_limit.host_jobs) THEN v_full + 3 * random() END) AS wait_s
            FROM asked k
        ), counted AS (
            UPDATE apalis.jobs j SET host = k.address, permitted_at = CASE WHEN k.wait_s <= v_short THEN p_now ELSE j.permitted_at END
            FROM answered k WHERE j.id = k.job AND (k.elsewhere OR k.wait_s <= v_short)
        ), reserved AS (
            INSERT INTO host_state AS s (host, next_at)
            SELECT r.host, r.next_at FROM (
                SELECT k.net AS host, k.net_at + make_interval(secs => v_limit.block_spacing_ms / 1000.0) AS next_at FROM answered k WHERE k.wait_s <= v_short
                UNION ALL
                SELECT k.address, k.host_at + make_interval(secs => v_limit.host_spacing_ms / 1000.0) FROM answered k WHERE k.wait_s <= v_short AND k.elsewhere
                UNION ALL
                SELECT k.address, '-infinity' FROM answered k WHERE k.wait_s > v_short AND k.elsewhere) r
            ORDER BY r.host
            ON CONFLICT (host) DO UPDATE SET next_at = excluded.next_at WHERE excluded.next_at <> '-infinity'
        )
        SELECT k.h, true, k.wait_s FROM answered k;
    END LOOP;
    INSERT INTO host_address AS a (host, address, seen_at)
    SELECT DISTINCT ON (p_hosts[h]) p_hosts[h], p_addresses[h], p_now FROM unnest(v_held) h ORDER BY p_hosts[h], h DESC
    ON CONFLICT (host) DO UPDATE SET address = excluded.address, seen_at = excluded.seen_at
        WHERE a.address <> excluded.address OR a.seen_at < p_now - interval '1 hour';
    RETURN QUERY SELECT x, false, 0::double precision FROM generate_series(1, cardinality(p_jobs)) x WHERE x <> ALL (v_held);
END $$;
COMMENT ON FUNCTION host_permits IS 'Asked after names were resolved and before their addresses are dialled: at most 2 s to wait means that a start is reserved then; more, that the job should come back then. Not held: the lease was lost. One row per question, in no order.';

-- For workers of the version before.
CREATE OR REPLACE FUNCTION host_permit(
    p_job text, p_worker text, p_attempt integer, p_host text, p_address text, p_now timestamptz DEFAULT now())
RETURNS TABLE (held boolean, wait_s double precision)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY SELECT p.held, p.wait_s FROM host_permits(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt], ARRAY[p_host], ARRAY[p_address], p_now) p;
END $$;
COMMENT ON FUNCTION host_permit IS 'host_permits for one job: what workers of the version before ask.';

-- An exclusion is looked for only while there is any.
CREATE OR REPLACE FUNCTION candidate_get(p_urls text[])
RETURNS TABLE (o integer, network text, failures integer, first_seen_at bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE v_any boolean := EXISTS (SELECT FROM relay_exclusion);
BEGIN
    RETURN QUERY SELECT u.o::integer, c.network, c.failures, c.first_seen_at
        FROM unnest(p_urls) WITH ORDINALITY u(url, o) JOIN candidate c ON c.url = u.url
        WHERE c.tombstoned_at IS NULL AND CASE WHEN v_any THEN url_excluded(u.url) IS NULL ELSE true END ORDER BY u.o;
END $$;

DROP FUNCTION relay_get(text[], text);
CREATE FUNCTION relay_get(p_urls text[], p_vantage text)
RETURNS TABLE (o integer, relay_id integer, network text, state text, reason text, since_at bigint, failures integer, successes integer, alive_at bigint,
               checked_at bigint, overall text, overall_since_at bigint,
               other_states text[], other_reasons text[], other_stands bigint[], others_checked_at bigint, rivals boolean, for_down integer)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
DECLARE
    v_any boolean := EXISTS (SELECT FROM relay_exclusion);
    v_down integer := (SELECT l.vantages_for_down FROM fleet_limit l);
BEGIN
    RETURN QUERY
        SELECT u.o::integer, r.id, r.network, s.state, s.reason, s.since_at, coalesce(s.failures, 0), coalesce(s.successes, 0), s.alive_at,
               s.checked_at, a.state, a.since_at, x.states, x.reasons, x.stands, x.checked_at,
               -- Who else could look is asked only after a look from here that failed.
               CASE WHEN s.successes = 0 THEN EXISTS (
                   SELECT FROM apalis.workers w
                   WHERE w.lease_until > now() AND NOT w.draining AND w.vantage <> p_vantage AND 'monitor.' || r.network = ANY (w.queues)
                     AND NOT EXISTS (SELECT FROM breaker b WHERE b.network = r.network AND b.vantage = w.vantage AND b.until_at > now()))
               ELSE false END,
               v_down
        FROM unnest(p_urls) WITH ORDINALITY u(url, o)
        JOIN relay r ON r.url = u.url
        LEFT JOIN vantage v ON v.name = p_vantage
        LEFT JOIN relay_state s ON s.relay_id = r.id AND s.vantage_id = v.id
        LEFT JOIN relay_overall a ON a.relay_id = r.id
        LEFT JOIN LATERAL (
            SELECT array_agg(y.state) AS states, array_agg(y.reason) AS reasons, array_agg(y.stands_until) AS stands, max(y.checked_at) AS checked_at
            FROM relay_state y WHERE y.relay_id = r.id AND y.vantage_id IS DISTINCT FROM v.id) x ON true
        WHERE CASE WHEN v_any THEN url_excluded(u.url) IS NULL ELSE true END
        ORDER BY u.o;
END $$;
COMMENT ON FUNCTION relay_get IS 'Relays by URL with their liveness from one vantage, what the others say (parallel arrays, null when nobody else looked), and over all; absent and excluded ones are absent. rivals: after a failed look from here, whether a live worker elsewhere serves its network. for_down: vantages that must agree that a relay is down, where a scheduler has said so.';

CREATE OR REPLACE FUNCTION validate_finish(
    p_jobs text[], p_workers text[], p_attempts integer[], p_urls text[], p_networks text[], p_alive boolean[],
    p_outcomes text[], p_reasons text[], p_next_s double precision[], p_slacks integer[], p_give_up boolean[],
    p_proofs text[] DEFAULT NULL, p_details text[] DEFAULT NULL, p_opens integer[] DEFAULT NULL, p_reads integer[] DEFAULT NULL)
RETURNS SETOF integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
DECLARE
    v_now bigint := extract(epoch FROM now())::bigint;
    v_any boolean := EXISTS (SELECT FROM relay_exclusion);
    v_held integer[];
    v_alive integer[];
    v_others integer[];
BEGIN
    v_held := ARRAY(SELECT job_fence(p_jobs, p_workers, p_attempts));
    v_alive := ARRAY(SELECT h FROM unnest(v_held) h WHERE p_alive[h] ORDER BY p_urls[h]);
    v_others := ARRAY(SELECT h FROM unnest(v_held) h WHERE NOT p_alive[h]);
    IF cardinality(v_alive) > 0 THEN
        INSERT INTO relay (url, network, discovered_at, proof, proof_outcome, proof_reason, proof_detail, proof_open_ms, proof_read_ms)
        SELECT p_urls[h], p_networks[h], v_now, p_proofs[h], p_outcomes[h], p_reasons[h], nullif(p_details[h], ''), p_opens[h], p_reads[h]
        FROM unnest(v_alive) h ORDER BY p_urls[h]
        ON CONFLICT (url) DO NOTHING;
        PERFORM schedule_ensure(array_agg(k.kind), array_agg(p_urls[h]), array_agg(p_networks[h]), array_agg(p_slacks[h]))
        FROM unnest(v_alive) h CROSS JOIN (VALUES ('monitor'), ('sync')) k(kind)
        WHERE CASE WHEN v_any THEN url_excluded(p_urls[h]) IS NULL ELSE true END HAVING count(*) > 0;
    END IF;
    -- Rows are locked in order first, so that batches that share targets cannot deadlock.
    PERFORM FROM candidate c WHERE c.url IN (SELECT p_urls[h] FROM unnest(v_held) h) ORDER BY c.url FOR UPDATE;
    PERFORM FROM schedule s WHERE s.kind = 'validate' AND s.target IN (SELECT p_urls[h] FROM unnest(v_held) h)
    ORDER BY s.target FOR UPDATE;
    IF cardinality(v_alive) > 0 THEN
        DELETE FROM candidate c USING unnest(v_alive) h WHERE c.url = p_urls[h];
    END IF;
    DELETE FROM schedule s USING unnest(v_held) h
    WHERE s.kind = 'validate' AND s.target = p_urls[h] AND (p_alive[h] OR p_give_up[h]);
    IF cardinality(v_others) > 0 THEN
        UPDATE candidate c
        SET failures = c.failures + 1, last_tried_at = v_now, last_outcome = p_outcomes[h], last_reason = p_reasons[h],
            last_detail = nullif(p_details[h], ''), last_open_ms = p_opens[h],
            tombstoned_at = CASE WHEN p_give_up[h] THEN v_now END
        FROM unnest(v_others) h WHERE c.url = p_urls[h];
        UPDATE schedule s
        SET due_at = now() + make_interval(secs => p_next_s[h]), slack_s = p_slacks[h], why = 'candidate back-off: ' || p_reasons[h]
        FROM unnest(v_others) h
        WHERE NOT p_give_up[h] AND s.kind = 'validate' AND s.target = p_urls[h];
    END IF;
    RETURN QUERY SELECT o FROM generate_series(1, cardinality(p_jobs)) o WHERE o <> ALL (v_held);
END $$;

DROP FUNCTION candidate_sight(text[], text[], text[], text[], integer, integer);
CREATE FUNCTION candidate_sight(
    p_urls text[], p_networks text[], p_sources text[], p_origins text[], p_slack integer, p_per_host integer, p_per_site integer DEFAULT NULL)
RETURNS TABLE (new_candidates integer, over_cap integer, left_alone integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_now bigint := extract(epoch FROM now())::bigint;
    v_any boolean := EXISTS (SELECT FROM relay_exclusion);
    v_fresh text[];
    v_taken text[];
    v_of_host text[];
BEGIN
    SELECT count(DISTINCT u.url) INTO left_alone FROM unnest(p_urls) u(url) WHERE v_any AND url_excluded(u.url) IS NOT NULL;
    v_fresh := ARRAY(
        SELECT DISTINCT u.url FROM unnest(p_urls) u(url)
        WHERE NOT EXISTS (SELECT FROM relay r WHERE r.url = u.url) AND NOT EXISTS (SELECT FROM candidate c WHERE c.url = u.url)
          AND (NOT v_any OR url_excluded(u.url) IS NULL));
    over_cap := 0;
    v_of_host := v_fresh;
    IF p_per_host IS NOT NULL AND cardinality(v_fresh) > 0 THEN
        -- The shortest first: a host's root before what somebody put below it.
        v_of_host := ARRAY(
            SELECT f.url FROM (
                SELECT u.url, h.has, row_number() OVER (PARTITION BY h.host ORDER BY octet_length(u.url), u.url) AS turn
                FROM unnest(v_fresh) u(url)
                JOIN (SELECT x.host, (SELECT count(*) FROM candidate c WHERE url_host(c.url) = x.host)
                                     + (SELECT count(*) FROM relay r WHERE url_host(r.url) = x.host) AS has
                      FROM (SELECT DISTINCT url_host(y) AS host FROM unnest(v_fresh) y) x) h ON h.host = url_host(u.url)) f
            WHERE f.has + f.turn <= p_per_host);
    END IF;
    v_taken := v_of_host;
    IF p_per_site IS NOT NULL AND cardinality(v_of_host) > 0 THEN
        -- Names under one domain cost whoever has it nothing.
        v_taken := ARRAY(
            SELECT f.url FROM (
                SELECT u.url, s.has, row_number() OVER (PARTITION BY s.site ORDER BY octet_length(u.url), u.url) AS turn
                FROM unnest(v_of_host) u(url)
                JOIN (SELECT x.site, (SELECT count(*) FROM candidate c WHERE url_site(c.url) = x.site)
                                     + (SELECT count(*) FROM relay r WHERE url_site(r.url) = x.site) AS has
                      FROM (SELECT DISTINCT url_site(y) AS site FROM unnest(v_of_host) y) x) s ON s.site = url_site(u.url)) f
            WHERE f.has + f.turn <= p_per_site);
    END IF;
    over_cap := cardinality(v_fresh) - cardinality(v_taken);
    IF over_cap > 0 THEN
        INSERT INTO candidate_refusal AS x (host, refused, last_url, last_at)
        SELECT n.name, count(*), min(n.url), v_now
        FROM (SELECT u AS url, CASE WHEN u = ANY (v_of_host) THEN '*.' || url_site(u) ELSE url_host(u) END AS name
              FROM unnest(v_fresh) u WHERE u <> ALL (v_taken)) n
        GROUP BY n.name ORDER BY n.name
        ON CONFLICT (host) DO UPDATE SET refused = x.refused + excluded.refused, last_url = excluded.last_url, last_at = v_now;
    END IF;
    WITH named AS (
        SELECT u.url, min(u.network) AS network, min(u.source) AS source
        FROM unnest(p_urls, p_networks, p_sources) u(url, network, source)
        WHERE u.url = ANY (v_taken) OR EXISTS (SELECT FROM candidate c WHERE c.url = u.url)
        GROUP BY u.url
    ), fresh AS (
        INSERT INTO candidate AS c (url, network, source, first_seen_at, last_seen_at)
        SELECT m.url, m.network, m.source, v_now, v_now FROM named m ORDER BY m.url
        -- A sighting within the hour adds nothing worth a new row version; of what was given up, within the day.
        ON CONFLICT (url) DO UPDATE SET last_seen_at = v_now, seen_count = c.seen_count + 1
            WHERE c.last_seen_at < v_now - CASE WHEN c.tombstoned_at IS NULL THEN 3600 ELSE 86400 END
        RETURNING c.url, c.network, (c.seen_count = 1) AS is_new
    ), due AS (
        INSERT INTO schedule (kind, target, network, due_at, slack_s, why)
        SELECT 'validate', f.url, f.network, now(), p_slack, 'new candidate' FROM fresh f WHERE f.is_new ORDER BY f.url
        ON CONFLICT (kind, target) DO NOTHING
    )
    SELECT count(*) FILTER (WHERE f.is_new) INTO new_candidates FROM fresh f;
    INSERT INTO candidate_source AS s (url, source, origin, first_seen_at, last_seen_at)
    SELECT DISTINCT u.url, u.source, coalesce(u.origin, ''), v_now, v_now
    FROM unnest(p_urls, p_sources, p_origins) u(url, source, origin)
    WHERE EXISTS (SELECT FROM candidate c WHERE c.url = u.url)
    ORDER BY 1, 2, 3
    ON CONFLICT (url, source, origin) DO UPDATE SET last_seen_at = v_now, seen_count = s.seen_count + 1
        WHERE s.last_seen_at < v_now - CASE WHEN EXISTS (SELECT FROM candidate c WHERE c.url = s.url AND c.tombstoned_at IS NOT NULL)
                                            THEN 86400 ELSE 3600 END;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION candidate_sight IS 'Records sightings of URLs that are not relays yet, with where they were seen, and schedules new ones for validation. A tombstone stays one. Not taken: what is excluded, and new URLs of a host that has p_per_host already, or of a site (url_site) that has p_per_site (null = no limit); returns the counts.';

DROP FUNCTION discover_store(text, text, integer, text[], text[], text[], bigint[], double precision, integer, text, text[], integer, text[], text[], text[], text[],
                             integer[], text, text);
CREATE FUNCTION discover_store(
    p_job text, p_worker text, p_attempt integer, p_urls text[], p_networks text[], p_sources text[], p_mined bigint[],
    p_next_s double precision, p_slack integer, p_why text,
    p_origins text[] DEFAULT NULL, p_per_host integer DEFAULT 32, p_names text[] DEFAULT NULL, p_domains text[] DEFAULT NULL,
    p_asked text[] DEFAULT NULL, p_outcomes text[] DEFAULT NULL, p_relays integer[] DEFAULT NULL,
    p_state_key text DEFAULT NULL, p_state_value text DEFAULT NULL, p_per_site integer DEFAULT 1024)
RETURNS TABLE (held boolean, new_candidates integer, over_cap integer, left_alone integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE v_now bigint := extract(epoch FROM now())::bigint;
BEGIN
    held := EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt]));
    new_candidates := 0; over_cap := 0; left_alone := 0;
    IF held THEN
        IF cardinality(p_urls) > 0 THEN
            SELECT s.new_candidates, s.over_cap, s.left_alone INTO new_candidates, over_cap, left_alone
            FROM candidate_sight(p_urls, p_networks, p_sources, p_origins, 3600, p_per_host, p_per_site) s;
        END IF;
        DELETE FROM event_unmined m WHERE m.event_key = ANY (p_mined);
        -- A sample, and a bounded one: whoever invents domains fills a table and no more.
        IF cardinality(p_domains) > 0 AND (SELECT count(*) FROM nip05_domain) < 100000 THEN
            INSERT INTO nip05_domain AS d (domain, name, seen_at)
            SELECT u.domain, min(u.name), v_now FROM unnest(p_domains, p_names) u(domain, name) GROUP BY 1 ORDER BY 1
            ON CONFLICT (domain) DO UPDATE SET name = excluded.name, seen_at = v_now WHERE d.seen_at < v_now - 86400;
        END IF;
        IF cardinality(p_asked) > 0 THEN
            UPDATE nip05_domain d SET asked_at = v_now, outcome = u.outcome, relays = u.relays
            FROM unnest(p_asked, p_outcomes, p_relays) u(domain, outcome, relays) WHERE d.domain = u.domain;
        END IF;
        IF p_state_key IS NOT NULL THEN
            PERFORM service_state_upsert(ARRAY['finder'], ARRAY['checkpoint'], ARRAY[p_state_key], ARRAY[p_state_value]);
        END IF;
        IF p_next_s IS NOT NULL THEN
            UPDATE schedule s SET due_at = now() + make_interval(secs => p_next_s), slack_s = p_slack, why = p_why
            FROM apalis.jobs j WHERE j.id = p_job AND s.kind = j.kind AND s.target = j.target;
        END IF;
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION discover_store IS 'Result of one discover batch in one fenced transaction: URLs found and where, events mined, NIP-05 names seen and domains asked, the state of an HTTP source, next due (null = unchanged). Returns what became of the URLs.';

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
COMMENT ON FUNCTION job_why IS 'Why a job, or the jobs of a relay or task, do not run: every reason that binds, the most binding first. Reasons: opted-out, blocked, running, cancelling, again, paused, put-back, scheduled, breaker, breaker-half-open, no-worker, workers-draining, no-slot, network-budget, bytes-budget, host-cooling, host-busy, behind, ready, due, draining, given-up, ended, unknown.';

CREATE OR REPLACE VIEW monitor_disagreement AS
SELECT w.relay_url, w.monitor, w.seen_at, w.our_state, w.our_checked_at, w.their_state, w.our_open_ms, w.their_open_ms,
       w.our_auth, w.their_auth, w.our_payment, w.their_payment,
       array_remove(ARRAY[
           CASE WHEN w.our_state = 'down' AND w.their_state = 'alive' OR w.our_state = 'alive' AND w.their_state = 'absent' THEN 'liveness' END,
           CASE WHEN w.our_auth <> w.their_auth THEN 'auth' END,
           CASE WHEN w.our_payment <> w.their_payment THEN 'payment' END], NULL) AS disagrees
FROM (
    SELECT r.url AS relay_url, encode(m.monitor, 'hex') AS monitor, m.created_at AS seen_at,
           coalesce(s.state, 'unchecked') AS our_state, s.checked_at AS our_checked_at,
           -- They say nothing of what they do not find: a word older than three of their rounds says so. A round is a
           -- week at most: whoever announces a century would vouch for ever, and whoever announces more made this view fail.
           CASE WHEN m.created_at > extract(epoch FROM now()) - 3 * least(greatest(coalesce(a.frequency_s, 86400), 3600), 604800) THEN 'alive' ELSE 'absent' END AS their_state,
           t.open_ms AS our_open_ms, m.open_ms AS their_open_ms,
           CASE WHEN t.reason = 'auth_required' THEN true WHEN t.outcome = 'ok' THEN false END AS our_auth, m.auth AS their_auth,
           CASE i.payment WHEN 'true' THEN true WHEN 'false' THEN false END AS our_payment, m.payment AS their_payment
    FROM public.monitor_report m
    JOIN public.relay r ON r.id = m.relay_id
    LEFT JOIN public.monitor_announcement a ON a.monitor = m.monitor
    LEFT JOIN LATERAL (
        SELECT x.state, x.checked_at FROM public.relay_liveness x WHERE x.relay_url = r.url) s ON true
    LEFT JOIN LATERAL (
        SELECT x.open_ms, x.reason, x.outcome FROM public.relay_check_latest x WHERE x.relay_id = r.id AND x.kind = 'rtt'
        ORDER BY x.checked_at DESC LIMIT 1) t ON true
    LEFT JOIN LATERAL (
        SELECT d.data -> 'data' -> 'limitation' ->> 'payment_required' AS payment
        FROM public.relay_check_latest x JOIN public.metadata d ON d.id = x.metadata_id AND d.type = 'nip11_info'
        WHERE x.relay_id = r.id AND x.kind = 'nip11' ORDER BY x.confirmed_at DESC LIMIT 1) i ON true) w;
COMMENT ON VIEW monitor_disagreement IS 'What each other monitor says of each relay beside what we say: liveness, time to open, auth and payment, and in which of them we differ. their_state absent: its last word is older than three of its rounds, of a week at most.';

-- A relay that says something else at every look fills no disk: of each kind of document its latest hundred changes stay.
CREATE OR REPLACE FUNCTION relay_metadata_insert(p_relay_ids integer[], p_types text[], p_generated_ats bigint[], p_metadata_ids bytea[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_keep CONSTANT integer := 100;
    n integer;
BEGIN
    INSERT INTO relay_metadata (relay_id, metadata_type, generated_at, metadata_id)
    SELECT u.relay_id, u.type, least(u.at, extract(epoch FROM now())::bigint), u.id
    FROM unnest(p_relay_ids, p_types, p_generated_ats, p_metadata_ids) u(relay_id, type, at, id)
    WHERE EXISTS (SELECT FROM relay r WHERE r.id = u.relay_id)
      AND EXISTS (SELECT FROM metadata m WHERE m.id = u.id AND m.type = u.type)
      AND u.id IS DISTINCT FROM (
        SELECT x.metadata_id FROM relay_metadata x
        WHERE x.relay_id = u.relay_id AND x.metadata_type = u.type ORDER BY x.generated_at DESC LIMIT 1)
    ORDER BY u.relay_id, u.type, u.at
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n > 0 THEN
        -- The row itself says how old the oldest kept one is: one step of the key per pair, and nothing where there are fewer.
        DELETE FROM relay_metadata x USING (
            SELECT DISTINCT u.relay_id, u.type, (
                SELECT y.generated_at FROM relay_metadata y WHERE y.relay_id = u.relay_id AND y.metadata_type = u.type
                ORDER BY y.generated_at DESC OFFSET v_keep - 1 LIMIT 1) AS oldest
            FROM unnest(p_relay_ids, p_types) u(relay_id, type)) k
        WHERE x.relay_id = k.relay_id AND x.metadata_type = k.type AND x.generated_at < k.oldest;
    END IF;
    RETURN n;
END $$;
COMMENT ON FUNCTION relay_metadata_insert IS 'Records that relays have these documents, only where that is a change, and forgets changes beyond the latest hundred of a relay and type; returns how many changed.';
COMMENT ON TABLE relay_metadata IS 'Which document a relay had from when on: one row per change, the latest hundred of each type.';
