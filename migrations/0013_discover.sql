-- Where candidates come from, how many one host may have, who is left alone, and by what a relay was proved.

CREATE TABLE candidate_source (
    url           text    NOT NULL,
    source        text    NOT NULL,
    origin        text    NOT NULL DEFAULT '',
    first_seen_at bigint  NOT NULL,
    last_seen_at  bigint  NOT NULL,
    seen_count    integer NOT NULL DEFAULT 1,
    PRIMARY KEY (url, source, origin)
);
COMMENT ON TABLE  candidate_source IS 'Where each candidate was seen. Rows stay when the candidate becomes a relay; sightings of relays are not written.';
COMMENT ON COLUMN candidate_source.url IS 'Canonical URL.';
COMMENT ON COLUMN candidate_source.source IS 'Kind of place (closed set): seed, operator, event, relay_list, contacts, list, monitor, hint, tag, text, nip19, nip05, http.';
COMMENT ON COLUMN candidate_source.origin IS 'The list, for http; the domain, for nip05; empty otherwise.';
COMMENT ON COLUMN candidate_source.first_seen_at IS 'First sighting there, Unix seconds.';
COMMENT ON COLUMN candidate_source.last_seen_at IS 'Latest sighting there, Unix seconds; not moved within an hour, nor within a day once it is given up.';
COMMENT ON COLUMN candidate_source.seen_count IS 'Sightings that moved last_seen_at, and the first.';

CREATE TABLE candidate_refusal (
    host      text   PRIMARY KEY,
    refused   bigint NOT NULL,
    last_url  text   NOT NULL,
    last_at   bigint NOT NULL
);
COMMENT ON TABLE  candidate_refusal IS 'Hosts that have as many URLs as one host may have, and how often another was named.';
COMMENT ON COLUMN candidate_refusal.host IS 'Host part of relay URLs.';
COMMENT ON COLUMN candidate_refusal.refused IS 'URLs not taken, counted once per batch that named them.';
COMMENT ON COLUMN candidate_refusal.last_url IS 'One of the latest batch.';
COMMENT ON COLUMN candidate_refusal.last_at IS 'When that was, Unix seconds.';

CREATE TABLE relay_exclusion (
    target      text   PRIMARY KEY CHECK (octet_length(target) BETWEEN 1 AND 2048),
    kind        text   NOT NULL CHECK (kind IN ('opt_out', 'blocked')),
    why         text   NOT NULL,
    actor       text   NOT NULL,
    excluded_at bigint NOT NULL
);
COMMENT ON TABLE  relay_exclusion IS 'Relays that are left alone: no candidate, no schedule, no job.';
COMMENT ON COLUMN relay_exclusion.target IS 'A canonical URL, a host, or *.host for all hosts below one.';
COMMENT ON COLUMN relay_exclusion.kind IS 'opt_out: its operator asked for it; blocked: ours decided.';
COMMENT ON COLUMN relay_exclusion.why IS 'The reason given.';
COMMENT ON COLUMN relay_exclusion.actor IS 'Who did it, and the database role.';
COMMENT ON COLUMN relay_exclusion.excluded_at IS 'When, Unix seconds.';

CREATE TABLE nip05_domain (
    domain   text    PRIMARY KEY CHECK (octet_length(domain) <= 253),
    name     text    NOT NULL CHECK (octet_length(name) <= 64),
    seen_at  bigint  NOT NULL,
    asked_at bigint,
    outcome  text,
    relays   integer
);
COMMENT ON TABLE  nip05_domain IS 'Domains that profiles name, one name each as a sample, asked for relays (NIP-05) at most once a month.';
COMMENT ON COLUMN nip05_domain.domain IS 'Host that serves the names.';
COMMENT ON COLUMN nip05_domain.name IS 'The name that is asked for.';
COMMENT ON COLUMN nip05_domain.seen_at IS 'When a profile last named it, Unix seconds, to the day.';
COMMENT ON COLUMN nip05_domain.asked_at IS 'When it was last asked, Unix seconds.';
COMMENT ON COLUMN nip05_domain.outcome IS 'What came of that: ok, or a reason (closed set).';
COMMENT ON COLUMN nip05_domain.relays IS 'How many relays it named.';
CREATE INDEX nip05_domain_turn ON nip05_domain (asked_at NULLS FIRST, domain);

ALTER TABLE candidate ADD COLUMN last_detail text, ADD COLUMN last_open_ms integer;
COMMENT ON COLUMN candidate.source IS 'Kind of place where it was first seen; all of them are in candidate_source.';
COMMENT ON COLUMN candidate.last_detail IS 'What the latest validation saw, in words.';
COMMENT ON COLUMN candidate.last_open_ms IS 'Milliseconds until its WebSocket was open in the latest validation; null when it was not.';
ALTER TABLE relay ADD COLUMN proof text, ADD COLUMN proof_outcome text, ADD COLUMN proof_reason text, ADD COLUMN proof_detail text,
                  ADD COLUMN proof_open_ms integer, ADD COLUMN proof_read_ms integer;
COMMENT ON COLUMN relay.proof IS 'By what it first proved to speak Nostr: eose, event, closed, auth or notice; null for imports and rows of before.';
COMMENT ON COLUMN relay.proof_outcome IS 'Outcome of that look: a refusal proves as well.';
COMMENT ON COLUMN relay.proof_reason IS 'Reason of that look.';
COMMENT ON COLUMN relay.proof_detail IS 'The relay''s own words, where it had some.';
COMMENT ON COLUMN relay.proof_open_ms IS 'Milliseconds until its WebSocket was open.';
COMMENT ON COLUMN relay.proof_read_ms IS 'Milliseconds from REQ to EOSE; null without EOSE.';
CREATE INDEX candidate_host ON candidate ((public.url_host(url)));
CREATE INDEX relay_host ON relay ((public.url_host(url)));

CREATE FUNCTION exclusion_targets(p_url text) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT ARRAY[p_url, h.host] || ARRAY(
        SELECT '*.' || array_to_string(h.labels[n:], '.') FROM generate_series(2, cardinality(h.labels)) n)
    FROM (SELECT public.url_host(p_url) AS host, string_to_array(public.url_host(p_url), '.') AS labels) h
$$;
COMMENT ON FUNCTION exclusion_targets IS 'What would exclude a URL: itself, its host, and *.parent of each name above that.';

CREATE FUNCTION url_excluded(p_url text) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE v_kind text;
BEGIN
    SELECT x.kind INTO v_kind FROM relay_exclusion x WHERE x.target = ANY (exclusion_targets(p_url)) ORDER BY x.kind DESC LIMIT 1;
    RETURN v_kind;
END $$;
COMMENT ON FUNCTION url_excluded IS 'opt_out or blocked when a URL is left alone; null otherwise.';

CREATE FUNCTION candidate_sight(p_urls text[], p_networks text[], p_sources text[], p_origins text[], p_slack integer, p_per_host integer)
RETURNS TABLE (new_candidates integer, over_cap integer, left_alone integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_now bigint := extract(epoch FROM now())::bigint;
    v_any boolean := EXISTS (SELECT FROM relay_exclusion);
    v_fresh text[];
    v_taken text[];
    v_hosts text[];
BEGIN
    SELECT count(DISTINCT u.url) INTO left_alone FROM unnest(p_urls) u(url) WHERE v_any AND url_excluded(u.url) IS NOT NULL;
    v_fresh := ARRAY(
        SELECT DISTINCT u.url FROM unnest(p_urls) u(url)
        WHERE NOT EXISTS (SELECT FROM relay r WHERE r.url = u.url) AND NOT EXISTS (SELECT FROM candidate c WHERE c.url = u.url)
          AND (NOT v_any OR url_excluded(u.url) IS NULL));
    over_cap := 0;
    v_taken := v_fresh;
    IF p_per_host IS NOT NULL AND cardinality(v_fresh) > 0 THEN
        v_hosts := ARRAY(SELECT DISTINCT url_host(u) FROM unnest(v_fresh) u);
        -- The shortest first: a host's root before what somebody put below it.
        v_taken := ARRAY(
            SELECT f.url FROM (
                SELECT u.url, h.host, h.has, row_number() OVER (PARTITION BY h.host ORDER BY octet_length(u.url), u.url) AS turn
                FROM unnest(v_fresh) u(url)
                JOIN (SELECT x.host, (SELECT count(*) FROM candidate c WHERE url_host(c.url) = x.host)
                                     + (SELECT count(*) FROM relay r WHERE url_host(r.url) = x.host) AS has
                      FROM unnest(v_hosts) x(host)) h ON h.host = url_host(u.url)) f
            WHERE f.has + f.turn <= p_per_host);
        over_cap := cardinality(v_fresh) - cardinality(v_taken);
        IF over_cap > 0 THEN
            INSERT INTO candidate_refusal AS x (host, refused, last_url, last_at)
            SELECT url_host(u), count(*), min(u), v_now FROM unnest(v_fresh) u WHERE u <> ALL (v_taken) GROUP BY 1 ORDER BY 1
            ON CONFLICT (host) DO UPDATE SET refused = x.refused + excluded.refused, last_url = excluded.last_url, last_at = v_now;
        END IF;
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
COMMENT ON FUNCTION candidate_sight IS 'Records sightings of URLs that are not relays yet, with where they were seen, and schedules new ones for validation. A tombstone stays one. Not taken: what is excluded, and new URLs of a host that has p_per_host already (null = no limit); returns the counts.';

CREATE OR REPLACE FUNCTION candidate_insert(p_urls text[], p_networks text[], p_sources text[], p_slack integer DEFAULT 3600)
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN (SELECT s.new_candidates FROM candidate_sight(p_urls, p_networks, p_sources, NULL, p_slack, NULL) s);
END $$;
COMMENT ON FUNCTION candidate_insert IS 'Candidates that somebody named on purpose: candidate_sight without a limit per host; returns how many were new.';

CREATE OR REPLACE FUNCTION candidate_get(p_urls text[])
RETURNS TABLE (o integer, network text, failures integer, first_seen_at bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY SELECT u.o::integer, c.network, c.failures, c.first_seen_at
        FROM unnest(p_urls) WITH ORDINALITY u(url, o) JOIN candidate c ON c.url = u.url
        WHERE c.tombstoned_at IS NULL AND url_excluded(u.url) IS NULL ORDER BY u.o;
END $$;
COMMENT ON FUNCTION candidate_get IS 'Candidates by URL that are neither given up nor excluded; absent ones are absent.';

CREATE OR REPLACE FUNCTION relay_get(p_urls text[], p_vantage text)
RETURNS TABLE (o integer, relay_id integer, network text, state text, reason text, since_at bigint, failures integer, successes integer, alive_at bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY
        SELECT u.o::integer, r.id, r.network, s.state, s.reason, s.since_at, coalesce(s.failures, 0), coalesce(s.successes, 0), s.alive_at
        FROM unnest(p_urls) WITH ORDINALITY u(url, o)
        JOIN relay r ON r.url = u.url
        LEFT JOIN vantage v ON v.name = p_vantage
        LEFT JOIN relay_state s ON s.relay_id = r.id AND s.vantage_id = v.id
        WHERE url_excluded(u.url) IS NULL
        ORDER BY u.o;
END $$;
COMMENT ON FUNCTION relay_get IS 'Relays by URL with their liveness from one vantage; absent and excluded ones are absent.';

DROP FUNCTION validate_finish(text[], text[], integer[], text[], text[], boolean[], text[], text[], double precision[], integer[], boolean[]);
CREATE FUNCTION validate_finish(
    p_jobs text[], p_workers text[], p_attempts integer[], p_urls text[], p_networks text[], p_alive boolean[],
    p_outcomes text[], p_reasons text[], p_next_s double precision[], p_slacks integer[], p_give_up boolean[],
    p_proofs text[] DEFAULT NULL, p_details text[] DEFAULT NULL, p_opens integer[] DEFAULT NULL, p_reads integer[] DEFAULT NULL)
RETURNS SETOF integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_now bigint := extract(epoch FROM now())::bigint;
    v_held integer[];
BEGIN
    v_held := ARRAY(SELECT job_fence(p_jobs, p_workers, p_attempts));
    INSERT INTO relay (url, network, discovered_at, proof, proof_outcome, proof_reason, proof_detail, proof_open_ms, proof_read_ms)
    SELECT p_urls[h], p_networks[h], v_now, p_proofs[h], p_outcomes[h], p_reasons[h], nullif(p_details[h], ''), p_opens[h], p_reads[h]
    FROM unnest(v_held) h WHERE p_alive[h] ORDER BY p_urls[h]
    ON CONFLICT (url) DO NOTHING;
    PERFORM schedule_ensure(array_agg(k.kind), array_agg(p_urls[h]), array_agg(p_networks[h]), array_agg(p_slacks[h]))
    FROM unnest(v_held) h CROSS JOIN (VALUES ('monitor'), ('sync')) k(kind)
    WHERE p_alive[h] AND url_excluded(p_urls[h]) IS NULL HAVING count(*) > 0;
    -- Rows are locked in order first, so that batches that share targets cannot deadlock.
    PERFORM FROM candidate c WHERE c.url IN (SELECT p_urls[h] FROM unnest(v_held) h) ORDER BY c.url FOR UPDATE;
    PERFORM FROM schedule s WHERE s.kind = 'validate' AND s.target IN (SELECT p_urls[h] FROM unnest(v_held) h)
    ORDER BY s.target FOR UPDATE;
    DELETE FROM candidate c USING unnest(v_held) h WHERE p_alive[h] AND c.url = p_urls[h];
    DELETE FROM schedule s USING unnest(v_held) h
    WHERE s.kind = 'validate' AND s.target = p_urls[h] AND (p_alive[h] OR p_give_up[h]);
    UPDATE candidate c
    SET failures = c.failures + 1, last_tried_at = v_now, last_outcome = p_outcomes[h], last_reason = p_reasons[h],
        last_detail = nullif(p_details[h], ''), last_open_ms = p_opens[h],
        tombstoned_at = CASE WHEN p_give_up[h] THEN v_now END
    FROM unnest(v_held) h WHERE NOT p_alive[h] AND c.url = p_urls[h];
    UPDATE schedule s
    SET due_at = now() + make_interval(secs => p_next_s[h]), slack_s = p_slacks[h], why = 'candidate back-off: ' || p_reasons[h]
    FROM unnest(v_held) h
    WHERE NOT p_alive[h] AND NOT p_give_up[h] AND s.kind = 'validate' AND s.target = p_urls[h];
    RETURN QUERY SELECT o FROM generate_series(1, cardinality(p_jobs)) o WHERE o <> ALL (v_held);
END $$;
COMMENT ON FUNCTION validate_finish IS 'Results of validations with their evidence: the living become relays and are scheduled, the others back off or are given up. Returns the positions whose fence was lost; nothing was written for them.';

DROP FUNCTION discover_take(integer);
CREATE FUNCTION discover_take(p_limit integer)
RETURNS TABLE (event_key bigint, kind integer, tags bytea, content bytea, pubkey bytea, created_at bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET jit = off
AS $$
BEGIN
    -- At most 32 MiB at once, but always one event.
    RETURN QUERY
        SELECT t.event_key, t.kind, t.tags, t.content, t.pubkey, t.created_at FROM (
            SELECT u.event_key, e.kind, e.tags, e.content, e.pubkey, e.created_at,
                   sum(coalesce(e.bytes, 0)) OVER (ORDER BY u.event_key ROWS UNBOUNDED PRECEDING) AS running,
                   row_number() OVER (ORDER BY u.event_key) AS position
            FROM (SELECT x.event_key FROM event_unmined x ORDER BY x.event_key LIMIT p_limit) u
            LEFT JOIN LATERAL (
                SELECT y.kind, y.tags, y.content, y.pubkey, y.created_at,
                       coalesce(octet_length(y.tags), 0) + coalesce(octet_length(y.content), 0) AS bytes
                FROM event y WHERE y.event_key = u.event_key AND y.fate = 0 OFFSET 0) e ON true) t
        WHERE t.running <= 33554432 OR t.position = 1
        ORDER BY t.event_key;
END $$;
COMMENT ON FUNCTION discover_take IS 'Archived events nobody has mined yet, in key order, at most 32 MiB of them; nulls where the event has gone since.';

DROP FUNCTION discover_store(text, text, integer, text[], text[], text[], bigint[], double precision, integer, text);
CREATE FUNCTION discover_store(
    p_job text, p_worker text, p_attempt integer, p_urls text[], p_networks text[], p_sources text[], p_mined bigint[],
    p_next_s double precision, p_slack integer, p_why text,
    p_origins text[] DEFAULT NULL, p_per_host integer DEFAULT 32, p_names text[] DEFAULT NULL, p_domains text[] DEFAULT NULL,
    p_asked text[] DEFAULT NULL, p_outcomes text[] DEFAULT NULL, p_relays integer[] DEFAULT NULL,
    p_state_key text DEFAULT NULL, p_state_value text DEFAULT NULL)
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
            FROM candidate_sight(p_urls, p_networks, p_sources, p_origins, 3600, p_per_host) s;
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

CREATE FUNCTION nip05_take(p_limit integer)
RETURNS TABLE (name text, domain text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY SELECT d.name, d.domain FROM nip05_domain d
        WHERE (d.asked_at IS NULL OR d.asked_at < extract(epoch FROM now())::bigint - 30 * 86400) AND url_excluded('wss://' || d.domain) IS NULL
        ORDER BY d.asked_at NULLS FIRST, d.domain LIMIT p_limit;
END $$;
COMMENT ON FUNCTION nip05_take IS 'Domains whose turn it is, with the name to ask for: never asked ones first, none within a month.';

CREATE FUNCTION nip05_retire() RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE n integer;
BEGIN
    DELETE FROM nip05_domain d WHERE d.seen_at < extract(epoch FROM now())::bigint - 90 * 86400;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION nip05_retire IS 'Forgets domains that no profile has named for 90 days; returns how many.';

CREATE OR REPLACE FUNCTION schedule_reconcile()
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    n integer;
    m integer;
BEGIN
    INSERT INTO schedule (kind, target, network, due_at, slack_s, why)
    SELECT k.kind, r.url, r.network, now(), 60, 'new'
    FROM relay r CROSS JOIN (VALUES ('monitor'), ('sync')) k(kind)
    WHERE NOT EXISTS (SELECT FROM schedule s WHERE s.kind = k.kind AND s.target = r.url) AND url_excluded(r.url) IS NULL
    ORDER BY k.kind, r.url
    ON CONFLICT (kind, target) DO NOTHING;
    GET DIAGNOSTICS n = ROW_COUNT;
    DELETE FROM schedule s WHERE s.kind = 'validate'
        AND NOT EXISTS (SELECT FROM candidate c WHERE c.url = s.target AND c.tombstoned_at IS NULL);
    GET DIAGNOSTICS m = ROW_COUNT;
    RETURN n + m;
END $$;
COMMENT ON FUNCTION schedule_reconcile IS 'Schedules relays that no validation scheduled (imports) and nobody excluded, and drops validations of what is no candidate any more; returns how many rows that changed.';

CREATE FUNCTION exclusion_matches(p_targets text[])
RETURNS SETOF text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY SELECT x.url FROM (SELECT r.url FROM relay r UNION SELECT c.url FROM candidate c) x
        WHERE exclusion_targets(x.url) && p_targets ORDER BY x.url;
END $$;
COMMENT ON FUNCTION exclusion_matches IS 'Known relays and candidates that these exclusions mean.';

CREATE FUNCTION relay_exclude(p_targets text[], p_kind text, p_actor text, p_why text, p_now timestamptz DEFAULT now())
RETURNS TABLE (known integer, cancelled integer, stopping integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_urls text[];
    v_jobs text[];
    v_text text := 'excluded by ' || p_actor || CASE WHEN p_why = '' THEN '' ELSE ': ' || p_why END;
BEGIN
    INSERT INTO relay_exclusion (target, kind, why, actor, excluded_at)
    SELECT DISTINCT u, p_kind, p_why, p_actor || ' (' || session_user || ')', extract(epoch FROM p_now)::bigint FROM unnest(p_targets) u ORDER BY 1
    ON CONFLICT (target) DO UPDATE SET kind = excluded.kind, why = excluded.why, actor = excluded.actor, excluded_at = excluded.excluded_at;
    v_urls := ARRAY(SELECT exclusion_matches(p_targets));
    known := cardinality(v_urls);
    -- Jobs before the schedule, as the result functions lock them.
    v_jobs := ARRAY(SELECT j.id FROM apalis.jobs j WHERE j.kind IS NOT NULL AND j.target = ANY (v_urls) ORDER BY j.id FOR UPDATE);
    PERFORM FROM schedule s WHERE s.target = ANY (v_urls) ORDER BY s.kind, s.target FOR UPDATE;
    DELETE FROM schedule s WHERE s.target = ANY (v_urls);
    WITH gone AS (
        DELETE FROM apalis.jobs j WHERE j.id = ANY (v_jobs) AND j.status = 'Pending'
        RETURNING j.id, j.kind, j.network, j.target, j.attempts, j.due_at, j.enqueued_at
    ), history AS (
        INSERT INTO job_history (job_id, kind, network, target, state, attempt, worker_id, due_at, enqueued_at, started_at, finished_at, result)
        SELECT g.id, g.kind, g.network, g.target, 'cancelled', g.attempts, NULL, g.due_at, g.enqueued_at, NULL, p_now, jsonb_build_object('error', v_text)
        FROM gone g
    ), marked AS (
        UPDATE apalis.jobs j SET cancel_why = v_text, again_class = NULL WHERE j.id = ANY (v_jobs) AND j.status = 'Running' RETURNING 1
    )
    SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM marked) INTO cancelled, stopping;
    PERFORM operation_note(p_actor, 'exclude', jsonb_build_object('targets', p_targets, 'kind', p_kind), known, v_urls, p_why);
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION relay_exclude IS 'Leaves relays alone from now on: the exclusion is kept, their schedule goes, pending jobs are cancelled, running ones stopped. Nothing known of them is deleted. Returns how many known URLs that concerns, and both counts of jobs.';

CREATE FUNCTION relay_include(p_targets text[], p_actor text, p_why text)
RETURNS TABLE (removed integer, scheduled integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_urls text[] := ARRAY(SELECT exclusion_matches(p_targets));
BEGIN
    DELETE FROM relay_exclusion x WHERE x.target = ANY (p_targets);
    GET DIAGNOSTICS removed = ROW_COUNT;
    INSERT INTO schedule (kind, target, network, due_at, slack_s, why)
    SELECT w.kind, w.url, w.network, now(), 3600, 'new' FROM (
        SELECT k.kind, r.url, r.network FROM relay r CROSS JOIN (VALUES ('monitor'), ('sync')) k(kind) WHERE r.url = ANY (v_urls)
        UNION ALL
        SELECT 'validate', c.url, c.network FROM candidate c WHERE c.url = ANY (v_urls) AND c.tombstoned_at IS NULL) w
    WHERE removed > 0 AND url_excluded(w.url) IS NULL
    ORDER BY w.kind, w.url
    ON CONFLICT (kind, target) DO NOTHING;
    GET DIAGNOSTICS scheduled = ROW_COUNT;
    PERFORM operation_note(p_actor, 'include', to_jsonb(p_targets), removed, p_targets, p_why);
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION relay_include IS 'Takes exclusions back; what no other one means is scheduled again. Returns how many there were, and how many schedule rows were made.';

CREATE FUNCTION candidate_revive(p_urls text[], p_actor text, p_why text)
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE v_revived text[];
BEGIN
    PERFORM FROM candidate c WHERE c.url = ANY (p_urls) ORDER BY c.url FOR UPDATE;
    WITH revived AS (
        UPDATE candidate c SET tombstoned_at = NULL, failures = 0
        WHERE c.url = ANY (p_urls) AND url_excluded(c.url) IS NULL RETURNING c.url, c.network
    ), due AS (
        INSERT INTO schedule (kind, target, network, due_at, slack_s, why)
        SELECT 'validate', r.url, r.network, now(), 60, 'new candidate' FROM revived r ORDER BY r.url
        ON CONFLICT (kind, target) DO UPDATE SET due_at = now(), slack_s = 60, why = 'new candidate'
    )
    SELECT array_agg(r.url ORDER BY r.url) INTO v_revived FROM revived r;
    PERFORM operation_note(p_actor, 'revive', to_jsonb(p_urls), coalesce(cardinality(v_revived), 0), v_revived, p_why);
    RETURN coalesce(cardinality(v_revived), 0);
END $$;
COMMENT ON FUNCTION candidate_revive IS 'Gives candidates a new life: no tombstone, no failures, due now; excluded ones stay as they are. Returns how many.';
COMMENT ON COLUMN operation.action IS 'pause, drain, resume, cancel, retry, run-now, drain-worker, resume-worker, exclude, include or revive.';

CREATE VIEW relay_demoted AS
SELECT r.url AS relay_url, v.name AS vantage, s.reason, s.since_at, s.checked_at, s.failures
FROM public.relay_state s
JOIN public.relay r ON r.id = s.relay_id
JOIN public.vantage v ON v.id = s.vantage_id
WHERE s.state = 'down' AND s.failures >= 3 AND s.reason IN ('not_nostr', 'silent')
  AND NOT EXISTS (SELECT FROM public.relay_state o WHERE o.relay_id = s.relay_id AND o.state = 'alive');
COMMENT ON VIEW relay_demoted IS 'Relays that proved fake since: a WebSocket opens and Nostr is not spoken, three looks in a row, and no vantage sees them alive. What is known of them stays; the next good look ends it.';

CREATE VIEW relay_alias AS
WITH fact AS (
    SELECT r.id, 'host' AS kind, public.url_host(r.url) AS value FROM public.relay r
    UNION
    SELECT r.id, 'address', a.address FROM public.relay r JOIN public.host_address a ON a.host = public.url_host(r.url)
    UNION
    SELECT l.relay_id, 'document', encode(l.metadata_id, 'hex') FROM public.relay_check_latest l
    WHERE l.kind = 'nip11' AND l.metadata_id IS NOT NULL
    UNION
    SELECT l.relay_id, 'pubkey', lower(m.data -> 'data' ->> 'pubkey') FROM public.relay_check_latest l
    JOIN public.metadata m ON m.id = l.metadata_id AND m.type = 'nip11_info'
    WHERE l.kind = 'nip11' AND m.data -> 'data' ->> 'pubkey' ~ '^[0-9a-fA-F]{64}$'
    UNION
    SELECT l.relay_id, 'certificate', m.data -> 'data' ->> 'ssl_fingerprint' FROM public.relay_check_latest l
    JOIN public.metadata m ON m.id = l.metadata_id AND m.type = 'nip66_ssl'
    WHERE l.kind = 'ssl' AND octet_length(m.data -> 'data' ->> 'ssl_fingerprint') BETWEEN 32 AND 200
), shared AS (
    -- What more relays than 32 share says where they are hosted, or what they were installed with; and pairs grow
    -- with the square.
    SELECT f.kind, f.value, array_agg(f.id ORDER BY f.id) AS ids FROM fact f
    GROUP BY f.kind, f.value HAVING count(*) BETWEEN 2 AND 32
), pair AS (
    SELECT a.id AS one, b.id AS other, s.kind, s.value
    FROM shared s CROSS JOIN LATERAL unnest(s.ids) a(id) CROSS JOIN LATERAL unnest(s.ids) b(id) WHERE a.id < b.id
)
SELECT r.url AS relay_url, o.url AS other_url, p.evidence, p.shared
FROM (SELECT x.one, x.other, array_agg(x.kind ORDER BY x.kind) AS evidence, array_agg(x.kind || '=' || x.value ORDER BY x.kind) AS shared
      FROM pair x GROUP BY x.one, x.other) p
JOIN public.relay r ON r.id = p.one
JOIN public.relay o ON o.id = p.other;
COMMENT ON VIEW relay_alias IS 'Pairs of relays that may be one, with what they share: host, address, certificate, NIP-11 document, NIP-11 pubkey. What more than 32 relays share is no evidence. Nothing is merged by it.';
