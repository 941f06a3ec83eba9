-- What strangers invent has an end: candidates that were given up are forgotten, and domains that profiles name leave the
-- others their turn.

-- Not by last_seen_at: a sighting would then be a new entry in every index.
CREATE INDEX candidate_given_up ON candidate (tombstoned_at) WHERE tombstoned_at IS NOT NULL;

CREATE FUNCTION candidate_retire(p_limit integer, p_keep_days integer)
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
DECLARE
    v_before bigint := extract(epoch FROM now())::bigint - p_keep_days * 86400::bigint;
    v_urls text[];
    n integer;
BEGIN
    -- Who names or revives one of them at this moment has its row, and keeps it. Nobody is waited for.
    v_urls := ARRAY(
        SELECT c.url FROM candidate c
        WHERE c.tombstoned_at < v_before AND c.last_seen_at < v_before
          AND NOT EXISTS (SELECT FROM apalis.jobs j WHERE j.job_type = 'validate.' || c.network AND j.idempotency_key = c.url)
        ORDER BY c.tombstoned_at LIMIT p_limit FOR UPDATE OF c SKIP LOCKED);
    -- Where a relay was seen stays known, also when it was imported after it had been given up.
    DELETE FROM candidate_source s WHERE s.url = ANY (v_urls) AND NOT EXISTS (SELECT FROM relay r WHERE r.url = s.url);
    DELETE FROM candidate c WHERE c.url = ANY (v_urls);
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION candidate_retire IS 'Forgets at most p_limit candidates that were given up, and named by nobody, for p_keep_days, with where they were seen; none that has a job. Returns how many. Named again, they are new.';
COMMENT ON COLUMN candidate.tombstoned_at IS 'Given up since then; a new sighting alone does not revive it. Forgotten when nobody names it for long.';

-- Read whole once an hour, and no order of it serves: written for nothing.
DROP INDEX nip05_domain_turn;
CREATE OR REPLACE FUNCTION nip05_take(p_limit integer)
RETURNS TABLE (name text, domain text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_now bigint := extract(epoch FROM now())::bigint;
    v_any boolean := EXISTS (SELECT FROM relay_exclusion);
    v_again text[];
    v_never text[];
    v_share integer;
BEGIN
    v_again := ARRAY(
        SELECT x.domain FROM nip05_domain x
        WHERE x.asked_at < v_now - 30 * 86400 AND CASE WHEN v_any THEN url_excluded('wss://' || x.domain) IS NULL ELSE true END
        ORDER BY greatest(x.asked_at, x.tried_at), x.domain LIMIT p_limit);
    -- One that keeps its turn comes after those that have had none for a day. The others by lot: of what anybody can reckon,
    -- a name or its hash, he would invent what comes first.
    v_never := ARRAY(
        SELECT x.domain FROM nip05_domain x
        WHERE x.asked_at IS NULL AND CASE WHEN v_any THEN url_excluded('wss://' || x.domain) IS NULL ELSE true END
        ORDER BY CASE WHEN x.tried_at > v_now - 86400 THEN x.tried_at END NULLS FIRST, random() LIMIT p_limit);
    -- To invent domains costs nothing, so they have half of the places; of an odd number one half has more, by lot. What one
    -- half does not use the other has.
    v_share := least(cardinality(v_again), greatest((p_limit + (random() < 0.5)::integer) / 2, p_limit - cardinality(v_never)));
    v_again := v_again[1:v_share] || v_never[1:p_limit - v_share];
    PERFORM FROM nip05_domain d WHERE d.domain = ANY (v_again) ORDER BY d.domain FOR UPDATE;
    RETURN QUERY UPDATE nip05_domain d SET tried_at = v_now WHERE d.domain = ANY (v_again) RETURNING d.name, d.domain;
END $$;
COMMENT ON FUNCTION nip05_take IS 'Domains whose turn it is, with the name to ask for: half of them asked before and none within a month, those first whose turn is longest ago; half never asked, by lot. What one half does not use the other has.';

CREATE OR REPLACE FUNCTION discover_store(
    p_job text, p_worker text, p_attempt integer, p_urls text[], p_networks text[], p_sources text[], p_mined bigint[],
    p_next_s double precision, p_slack integer, p_why text,
    p_origins text[] DEFAULT NULL, p_per_host integer DEFAULT 32, p_names text[] DEFAULT NULL, p_domains text[] DEFAULT NULL,
    p_asked text[] DEFAULT NULL, p_outcomes text[] DEFAULT NULL, p_relays integer[] DEFAULT NULL,
    p_state_key text DEFAULT NULL, p_state_value text DEFAULT NULL, p_per_site integer DEFAULT 1024,
    p_sites text[] DEFAULT NULL, p_hosters text[] DEFAULT NULL, p_per_hoster integer DEFAULT NULL)
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
            FROM candidate_sight(p_urls, p_networks, p_sources, p_origins, 3600, p_per_host, p_per_site, p_sites, p_hosters, p_per_hoster) s;
        END IF;
        -- In the order of keys, as whoever deletes events takes them.
        PERFORM FROM event_unmined m WHERE m.event_key = ANY (p_mined) ORDER BY m.event_key FOR UPDATE;
        DELETE FROM event_unmined m WHERE m.event_key = ANY (p_mined);
        IF cardinality(p_mined) > 0 AND (SELECT s.light FROM archive_setting s) THEN
            UPDATE event e SET tags = NULL, content = NULL, sig = NULL, tag_hashes = NULL
            WHERE e.event_key = ANY (p_mined) AND e.fate = 0
              AND e.event_key BETWEEN (SELECT min(x) FROM unnest(p_mined) x) AND (SELECT max(x) FROM unnest(p_mined) x);
        END IF;
        IF cardinality(p_domains) > 0 THEN
            -- A sample, and a bounded one: whoever invents domains fills a table and no more. What is known is still seen then.
            INSERT INTO nip05_domain AS d (domain, name, seen_at)
            SELECT u.domain, min(u.name), v_now FROM unnest(p_domains, p_names) u(domain, name)
            WHERE (SELECT count(*) FROM nip05_domain) < 100000 OR EXISTS (SELECT FROM nip05_domain x WHERE x.domain = u.domain)
            GROUP BY 1 ORDER BY 1
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

COMMENT ON TABLE  relay_forgery IS 'Events that a relay served and whose id or signature is made up, counted per reason.';
COMMENT ON COLUMN relay_forgery.reason IS 'What does not verify: bad_id or bad_signature; of before version 46 also shape, range and the like.';
COMMENT ON FUNCTION forgery_note IS 'Counts events of a page whose id or signature is made up, for the relay that served them; false when the fence was lost, and nothing was written.';
