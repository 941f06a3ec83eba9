-- What strangers write, where it meets what we know: candidates have an end.

CREATE TABLE stranger_count (
    what       text        PRIMARY KEY CHECK (what IN ('candidate', 'candidate_report')),
    n          bigint      NOT NULL,
    counted_at timestamptz NOT NULL
);
INSERT INTO stranger_count VALUES ('candidate', 0, '-infinity'), ('candidate_report', 0, '-infinity');
COMMENT ON TABLE  stranger_count IS 'How many rows there are of what strangers can make without end, as those who add some go by it: a table is not counted for each of them.';
COMMENT ON COLUMN stranger_count.what IS 'candidate: those that are not given up; candidate_report.';
COMMENT ON COLUMN stranger_count.n IS 'Rows as last counted, and those added since.';
COMMENT ON COLUMN stranger_count.counted_at IS 'When they were last counted: candidates anew after a minute, reports when there may be too many.';

CREATE INDEX candidate_open ON candidate (first_seen_at) WHERE tombstoned_at IS NULL;
DROP FUNCTION candidate_sight(text[], text[], text[], text[], integer, integer, integer, text[], text[], integer);
CREATE FUNCTION candidate_sight(
    p_urls text[], p_networks text[], p_sources text[], p_origins text[], p_slack integer, p_per_host integer, p_per_site integer DEFAULT NULL,
    p_sites text[] DEFAULT NULL, p_hosters text[] DEFAULT NULL, p_per_hoster integer DEFAULT NULL, p_in_all integer DEFAULT NULL)
RETURNS TABLE (new_candidates integer, over_cap integer, left_alone integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_now bigint := extract(epoch FROM now())::bigint;
    v_any boolean := EXISTS (SELECT FROM relay_exclusion);
    v_fresh text[];
    v_full text[];
    v_taken text[];
    v_left bigint;
BEGIN
    SELECT count(DISTINCT u.url) INTO left_alone FROM unnest(p_urls) u(url) WHERE v_any AND url_excluded(u.url) IS NOT NULL;
    -- New URLs, each with what is full that it belongs to. In each the shortest come first: a root before what
    -- somebody put below it.
    WITH fresh AS MATERIALIZED (
        SELECT DISTINCT ON (u.url) u.url, url_host(u.url) AS host, coalesce(u.site, url_site(u.url)) AS site, u.hoster
        FROM unnest(p_urls, p_sites, p_hosters) u(url, site, hoster)
        WHERE NOT EXISTS (SELECT FROM relay r WHERE r.url = u.url) AND NOT EXISTS (SELECT FROM candidate c WHERE c.url = u.url)
          AND (NOT v_any OR url_excluded(u.url) IS NULL)
        ORDER BY u.url
    ), of_host AS MATERIALIZED (
        SELECT f.*, h.has + row_number() OVER (PARTITION BY f.host ORDER BY octet_length(f.url), f.url) > p_per_host AS full_host
        FROM fresh f
        LEFT JOIN (SELECT x.host, (SELECT count(*) FROM candidate c WHERE url_host(c.url) = x.host)
                                  + (SELECT count(*) FROM relay r WHERE url_host(r.url) = x.host) AS has
                   FROM (SELECT DISTINCT y.host FROM fresh y WHERE p_per_host IS NOT NULL) x) h ON h.host = f.host
    ), of_site AS MATERIALIZED (
        -- Names under one domain cost whoever has it nothing.
        SELECT f.*, s.has + row_number() OVER (PARTITION BY f.site ORDER BY octet_length(f.url), f.url) > p_per_site AS full_site
        FROM of_host f
        LEFT JOIN (SELECT x.site, site_urls(x.site, p_per_site) AS has
                   FROM (SELECT DISTINCT y.site FROM of_host y WHERE p_per_site IS NOT NULL) x) s ON s.site = f.site
        WHERE f.full_host IS NOT TRUE
    ), of_hoster AS MATERIALIZED (
        -- And names under a hoster's domain cost a stranger little.
        SELECT f.*, s.has + row_number() OVER (PARTITION BY f.hoster ORDER BY octet_length(f.url), f.url) > p_per_hoster AS full_hoster
        FROM of_site f
        LEFT JOIN (SELECT x.hoster, site_urls(x.hoster, p_per_hoster) AS has
                   FROM (SELECT DISTINCT y.hoster FROM of_site y WHERE p_per_hoster IS NOT NULL AND y.hoster IS NOT NULL) x) s ON s.hoster = f.hoster
        WHERE f.full_site IS NOT TRUE
    )
    SELECT array_agg(j.url ORDER BY j.url), array_agg(j.full_name ORDER BY j.url) INTO v_fresh, v_full
    FROM (SELECT f.url, CASE WHEN f.full_host THEN f.host WHEN s.full_site THEN '*.' || f.site WHEN h.full_hoster THEN '*.' || f.hoster END AS full_name
          FROM of_host f LEFT JOIN of_site s ON s.url = f.url LEFT JOIN of_hoster h ON h.url = f.url) j;
    -- Invented domains fill none of these, so all together have an end. What operators list has its place whatever others
    -- wrote, and a tenth is left to what other monitors report.
    IF p_in_all IS NOT NULL AND array_position(v_full, NULL) IS NOT NULL THEN
        UPDATE stranger_count s SET n = (SELECT count(*) FROM candidate c WHERE c.tombstoned_at IS NULL), counted_at = clock_timestamp()
        WHERE s.what = 'candidate' AND s.counted_at < clock_timestamp() - interval '1 minute';
        SELECT p_in_all - s.n INTO v_left FROM stranger_count s WHERE s.what = 'candidate' FOR UPDATE;
        SELECT array_agg(j.url ORDER BY j.url), array_agg(j.name ORDER BY j.url) INTO v_fresh, v_full
        FROM (SELECT r.url, CASE WHEN r.name IS NULL AND r.rank > 0 AND r.turn > v_left - CASE r.rank WHEN 1 THEN 0 ELSE p_in_all / 10 END THEN '*' ELSE r.name END AS name
              FROM (SELECT g.*, row_number() OVER (PARTITION BY g.name IS NULL ORDER BY g.rank, octet_length(g.url), g.url) AS turn
                    FROM (SELECT f.url, f.name, min(CASE WHEN u.source IN ('seed', 'operator', 'http') THEN 0 WHEN u.source = 'monitor' THEN 1 ELSE 2 END) AS rank
                          FROM unnest(v_fresh, v_full) f(url, name) JOIN unnest(p_urls, p_sources) u(url, source) ON u.url = f.url
                          GROUP BY f.url, f.name) g) r) j;
    END IF;
    SELECT array_agg(u.url) FILTER (WHERE u.name IS NULL), count(u.name) INTO v_taken, over_cap FROM unnest(v_fresh, v_full) u(url, name);
    IF over_cap > 0 THEN
        INSERT INTO candidate_refusal AS x (host, refused, last_url, last_at)
        SELECT u.name, count(*), min(u.url), v_now FROM unnest(v_fresh, v_full) u(url, name) WHERE u.name IS NOT NULL GROUP BY u.name ORDER BY u.name
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
    IF v_left IS NOT NULL THEN
        UPDATE stranger_count s SET n = s.n + new_candidates WHERE s.what = 'candidate';
    END IF;
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
COMMENT ON FUNCTION candidate_sight IS 'Records sightings of URLs that are not relays yet, with where they were seen, and schedules new ones for validation. A tombstone stays one. Not taken: what is excluded, and new URLs of a host that has p_per_host already, of a domain that has p_per_site with all hosts below it (p_sites; where null, url_site), or of a hoster whose domain has p_per_hoster (p_hosters; null = none); nor those of strangers when p_in_all candidates wait to prove themselves, or nine tenths of that, if no monitor reports on them; null = no limit. Returns the counts.';
COMMENT ON COLUMN candidate_refusal.host IS 'Host part of relay URLs; *.domain where all hosts of a domain, or of a hoster''s, together have as many as they may; * where all candidates are as many as they may be.';

DROP FUNCTION discover_store(text, text, integer, text[], text[], text[], bigint[], double precision, integer, text, text[], integer, text[], text[], text[], text[],
                             integer[], text, text, integer, text[], text[], integer);
CREATE FUNCTION discover_store(
    p_job text, p_worker text, p_attempt integer, p_urls text[], p_networks text[], p_sources text[], p_mined bigint[],
    p_next_s double precision, p_slack integer, p_why text,
    p_origins text[] DEFAULT NULL, p_per_host integer DEFAULT 32, p_names text[] DEFAULT NULL, p_domains text[] DEFAULT NULL,
    p_asked text[] DEFAULT NULL, p_outcomes text[] DEFAULT NULL, p_relays integer[] DEFAULT NULL,
    p_state_key text DEFAULT NULL, p_state_value text DEFAULT NULL, p_per_site integer DEFAULT 1024,
    p_sites text[] DEFAULT NULL, p_hosters text[] DEFAULT NULL, p_per_hoster integer DEFAULT NULL, p_in_all integer DEFAULT NULL)
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
            FROM candidate_sight(p_urls, p_networks, p_sources, p_origins, 3600, p_per_host, p_per_site, p_sites, p_hosters, p_per_hoster, p_in_all) s;
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
COMMENT ON FUNCTION discover_store IS 'Result of one discover batch in one fenced transaction: URLs found and where, events mined (which lose their bodies in a lightweight archive), NIP-05 names seen and domains asked, the state of an HTTP source, next due (null = unchanged). Returns what became of the URLs.';
