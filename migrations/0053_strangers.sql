-- What strangers write, where it meets what we know: candidates have an end, words about relays that never spoke to us are
-- kept, and each key of ours says how often it looks.

CREATE TABLE stranger_count (
    what       text        PRIMARY KEY,
    n          bigint      NOT NULL,
    counted_at timestamptz NOT NULL
);
INSERT INTO stranger_count SELECT x, 0, '-infinity' FROM unnest(ARRAY['clearnet', 'tor', 'i2p', 'loki', 'candidate_report']) x;
COMMENT ON TABLE  stranger_count IS 'How many rows there are of what strangers can make without end, as those who add some go by it: a table is not counted for each of them.';
COMMENT ON COLUMN stranger_count.what IS 'A network: its candidates that are still to be asked; candidate_report: its rows.';
COMMENT ON COLUMN stranger_count.n IS 'Rows as last counted, and those added since.';
COMMENT ON COLUMN stranger_count.counted_at IS 'When they were last counted: candidates anew after a minute, reports when there may be too many.';

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
    -- Invented domains fill none of these, so all of a network have an end: whose names cost nothing, like those of an overlay that
    -- nobody here enters, fill their own. What operators list has its place whatever others wrote, and a tenth is left to what
    -- other monitors report. Who was given up or excluded is not asked any more, and does not count.
    IF p_in_all IS NOT NULL AND array_position(v_full, NULL) IS NOT NULL THEN
        PERFORM FROM stranger_count s WHERE s.what = ANY (p_networks) ORDER BY s.what FOR UPDATE;
        UPDATE stranger_count s SET n = (SELECT count(*) FROM schedule c WHERE c.kind = 'validate' AND c.network = s.what), counted_at = clock_timestamp()
        WHERE s.what = ANY (p_networks) AND s.counted_at < clock_timestamp() - interval '1 minute';
        SELECT array_agg(j.url ORDER BY j.url), array_agg(j.name ORDER BY j.url) INTO v_fresh, v_full
        FROM (SELECT r.url, CASE WHEN r.name IS NULL AND r.rank > 0
                                  AND r.turn > (SELECT p_in_all - s.n FROM stranger_count s WHERE s.what = r.network) - CASE r.rank WHEN 1 THEN 0 ELSE p_in_all / 10 END
                                 THEN '*' ELSE r.name END AS name
              FROM (SELECT g.*, row_number() OVER (PARTITION BY g.name IS NULL, g.network ORDER BY g.rank, octet_length(g.url), g.url) AS turn
                    FROM (SELECT f.url, f.name, min(u.network) AS network,
                                 min(CASE WHEN u.source IN ('seed', 'operator', 'http') THEN 0 WHEN u.source = 'monitor' THEN 1 ELSE 2 END) AS rank
                          FROM unnest(v_fresh, v_full) f(url, name) JOIN unnest(p_urls, p_networks, p_sources) u(url, network, source) ON u.url = f.url
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
    ), counted AS (
        UPDATE stranger_count s SET n = s.n + (SELECT count(*) FROM fresh f WHERE f.is_new AND f.network = s.what)
        WHERE p_in_all IS NOT NULL AND s.what IN (SELECT f.network FROM fresh f WHERE f.is_new)
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
COMMENT ON FUNCTION candidate_sight IS 'Records sightings of URLs that are not relays yet, with where they were seen, and schedules new ones for validation. A tombstone stays one. Not taken: what is excluded, and new URLs of a host that has p_per_host already, of a domain that has p_per_site with all hosts below it (p_sites; where null, url_site), or of a hoster whose domain has p_per_hoster (p_hosters; null = none); nor those of strangers when p_in_all candidates of their network wait to prove themselves, or nine tenths of that, if no monitor reports on them; null = no limit. Returns the counts.';
COMMENT ON COLUMN candidate_refusal.host IS 'Host part of relay URLs; *.domain where all hosts of a domain, or of a hoster''s, together have as many as they may; * where all candidates of a network are as many as they may be.';

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

-- Words about URLs that are no relay of ours ---------------------------------------------------------------------------------

CREATE TABLE candidate_report (
    url        text    NOT NULL CHECK (octet_length(url) BETWEEN 6 AND 2048),
    monitor    bytea   NOT NULL CHECK (octet_length(monitor) = 32),
    created_at bigint  NOT NULL,
    open_ms    integer,
    read_ms    integer,
    write_ms   integer,
    auth       boolean,
    writes     boolean,
    pow        boolean,
    payment    boolean,
    nips       integer[] NOT NULL,
    geohash    text,
    PRIMARY KEY (url, monitor)
);
COMMENT ON TABLE  candidate_report IS 'The newest words of each other monitor (kind 30166) about URLs that are no relays of ours: candidates, given up or not, and what is none. They move to monitor_report when the URL becomes a relay.';
COMMENT ON COLUMN candidate_report.url IS 'Canonical URL.';
COMMENT ON COLUMN candidate_report.monitor IS 'The monitor''s public key.';
COMMENT ON COLUMN candidate_report.created_at IS 'When, Unix seconds, as the monitor says.';
COMMENT ON COLUMN candidate_report.open_ms IS 'rtt-open, milliseconds.';
COMMENT ON COLUMN candidate_report.read_ms IS 'rtt-read, milliseconds.';
COMMENT ON COLUMN candidate_report.write_ms IS 'rtt-write, milliseconds.';
COMMENT ON COLUMN candidate_report.auth IS 'R auth or !auth; null when neither.';
COMMENT ON COLUMN candidate_report.writes IS 'R writes or !writes.';
COMMENT ON COLUMN candidate_report.pow IS 'R pow or !pow.';
COMMENT ON COLUMN candidate_report.payment IS 'R payment or !payment.';
COMMENT ON COLUMN candidate_report.nips IS 'N, ascending.';
COMMENT ON COLUMN candidate_report.geohash IS 'g.';

DROP FUNCTION monitor_report_put(bytea[], text[], bigint[], integer[], integer[], integer[], boolean[], boolean[], boolean[], boolean[], text[], text[]);
CREATE FUNCTION monitor_report_put(
    p_monitors bytea[], p_urls text[], p_created_ats bigint[], p_opens integer[], p_reads integer[], p_writes_ms integer[],
    p_auths boolean[], p_writes boolean[], p_pows boolean[], p_payments boolean[], p_nips text[], p_geohashes text[],
    p_strange integer DEFAULT 50000)
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_any boolean := EXISTS (SELECT FROM relay_exclusion);
    n integer;
    v_strange integer := 0;
    v_held bigint;
    v_gone integer;
BEGIN
    INSERT INTO monitor_report AS m (relay_id, monitor, created_at, open_ms, read_ms, write_ms, auth, writes, pow, payment, nips, geohash)
    SELECT v.relay_id, v.monitor, v.created_at, v.open_ms, v.read_ms, v.write_ms, v.auth, v.writes, v.pow, v.payment, v.nips::integer[], v.geohash
    FROM (
            SELECT DISTINCT ON (r.id, u.monitor) r.id AS relay_id, u.*
            FROM unnest(p_monitors, p_urls, p_created_ats, p_opens, p_reads, p_writes_ms, p_auths, p_writes, p_pows, p_payments, p_nips, p_geohashes)
                 u(monitor, url, created_at, open_ms, read_ms, write_ms, auth, writes, pow, payment, nips, geohash)
            JOIN relay r ON r.url = u.url
            -- What is dated ahead of its time would stand above all that comes; and our own words are no second opinion.
            WHERE u.created_at <= extract(epoch FROM now()) + 900 AND NOT EXISTS (SELECT FROM publication p WHERE p.pubkey = u.monitor)
            ORDER BY r.id, u.monitor, u.created_at DESC) v
    ORDER BY v.relay_id, v.monitor
    ON CONFLICT (relay_id, monitor) DO UPDATE
        SET created_at = excluded.created_at, open_ms = excluded.open_ms, read_ms = excluded.read_ms, write_ms = excluded.write_ms,
            auth = excluded.auth, writes = excluded.writes, pow = excluded.pow, payment = excluded.payment, nips = excluded.nips, geohash = excluded.geohash
        WHERE m.created_at < excluded.created_at;
    GET DIAGNOSTICS n = ROW_COUNT;
    -- Keys cost nothing: a relay has at most a hundred monitors. Those stay that report on most relays, since that is
    -- work, and of those that say who they are before the others.
    DELETE FROM monitor_report m USING (
        SELECT x.relay_id, x.monitor, row_number() OVER (
                   PARTITION BY x.relay_id ORDER BY w.relays DESC, a.monitor IS NULL, x.created_at DESC, x.monitor) AS place
        FROM monitor_report x
        LEFT JOIN monitor_announcement a ON a.monitor = x.monitor
        CROSS JOIN LATERAL (SELECT count(*) AS relays FROM (SELECT FROM monitor_report y WHERE y.monitor = x.monitor LIMIT 1000) z) w
        WHERE x.relay_id IN (
            SELECT c.relay_id FROM monitor_report c WHERE c.relay_id IN (SELECT r.id FROM relay r WHERE r.url = ANY (p_urls))
            GROUP BY c.relay_id HAVING count(*) > 100)) surplus
    WHERE surplus.place > 100 AND m.relay_id = surplus.relay_id AND m.monitor = surplus.monitor;
    GET DIAGNOSTICS v_gone = ROW_COUNT;
    n := greatest(n - v_gone, 0);
    IF NOT EXISTS (SELECT FROM unnest(p_urls) u WHERE NOT EXISTS (SELECT FROM relay r WHERE r.url = u)) THEN RETURN n; END IF;

    -- The others may become relays later, and their events are not read again; and where others find a relay that never
    -- spoke to us, that is to be seen.
    SELECT s.n INTO v_held FROM stranger_count s WHERE s.what = 'candidate_report' FOR UPDATE;
    INSERT INTO candidate_report AS c (url, monitor, created_at, open_ms, read_ms, write_ms, auth, writes, pow, payment, nips, geohash)
    SELECT v.url, v.monitor, v.created_at, v.open_ms, v.read_ms, v.write_ms, v.auth, v.writes, v.pow, v.payment, v.nips::integer[], v.geohash
    FROM (
            SELECT DISTINCT ON (u.url, u.monitor) u.*
            FROM unnest(p_monitors, p_urls, p_created_ats, p_opens, p_reads, p_writes_ms, p_auths, p_writes, p_pows, p_payments, p_nips, p_geohashes)
                 u(monitor, url, created_at, open_ms, read_ms, write_ms, auth, writes, pow, payment, nips, geohash)
            WHERE NOT EXISTS (SELECT FROM relay r WHERE r.url = u.url) AND CASE WHEN v_any THEN url_excluded(u.url) IS NULL ELSE true END
              AND u.created_at <= extract(epoch FROM now()) + 900 AND NOT EXISTS (SELECT FROM publication p WHERE p.pubkey = u.monitor)
            ORDER BY u.url, u.monitor, u.created_at DESC) v
    ORDER BY v.url, v.monitor
    ON CONFLICT (url, monitor) DO UPDATE
        SET created_at = excluded.created_at, open_ms = excluded.open_ms, read_ms = excluded.read_ms, write_ms = excluded.write_ms,
            auth = excluded.auth, writes = excluded.writes, pow = excluded.pow, payment = excluded.payment, nips = excluded.nips, geohash = excluded.geohash
        WHERE c.created_at < excluded.created_at;
    GET DIAGNOSTICS v_strange = ROW_COUNT;
    -- A URL has as many as a relay, which it may become. Rows that are just moving there are left to that.
    WITH surplus AS (
        SELECT x.url, x.monitor, row_number() OVER (
                   PARTITION BY x.url ORDER BY w.relays DESC, a.monitor IS NULL, x.created_at DESC, x.monitor) AS place
        FROM candidate_report x
        LEFT JOIN monitor_announcement a ON a.monitor = x.monitor
        CROSS JOIN LATERAL (SELECT count(*) AS relays FROM (SELECT FROM monitor_report y WHERE y.monitor = x.monitor LIMIT 1000) z) w
        WHERE x.url IN (SELECT c.url FROM candidate_report c WHERE c.url = ANY (p_urls) GROUP BY c.url HAVING count(*) > 100)
    ), free AS (
        SELECT c.url, c.monitor FROM candidate_report c JOIN surplus s ON s.url = c.url AND s.monitor = c.monitor AND s.place > 100
        FOR UPDATE OF c SKIP LOCKED
    )
    DELETE FROM candidate_report c USING free f WHERE c.url = f.url AND c.monitor = f.monitor;
    GET DIAGNOSTICS v_gone = ROW_COUNT;
    -- What was written may have been there before: counted when it may be too much, and then a tenth goes at once.
    v_held := v_held + v_strange - v_gone;
    IF v_held > p_strange THEN
        SELECT count(*) INTO v_held FROM candidate_report;
        IF v_held > p_strange THEN
            WITH known AS (
                SELECT x.monitor, (SELECT count(*) FROM (SELECT FROM monitor_report y WHERE y.monitor = x.monitor LIMIT 1000) z) AS relays
                FROM (SELECT DISTINCT c.monitor FROM candidate_report c) x
            ), surplus AS (
                SELECT x.url, x.monitor FROM candidate_report x JOIN known k ON k.monitor = x.monitor
                ORDER BY k.relays, x.created_at, x.url, x.monitor LIMIT v_held - p_strange * 9 / 10
            ), free AS (
                SELECT c.url, c.monitor FROM candidate_report c JOIN surplus s ON s.url = c.url AND s.monitor = c.monitor FOR UPDATE OF c SKIP LOCKED
            )
            DELETE FROM candidate_report c USING free f WHERE c.url = f.url AND c.monitor = f.monitor;
            GET DIAGNOSTICS v_strange = ROW_COUNT;
            v_held := v_held - v_strange;
            v_strange := 0;
        END IF;
    END IF;
    UPDATE stranger_count s SET n = v_held, counted_at = now() WHERE s.what = 'candidate_report';
    RETURN n + greatest(v_strange - v_gone, 0);
END $$;
COMMENT ON FUNCTION monitor_report_put IS 'Keeps what other monitors say of relays, and of URLs that are none of ours and nobody excluded, the newest per monitor and URL, at most a hundred monitors for each: those that report on most relays; and of URLs that are no relays p_strange in all, those of such monitors first. p_nips are array literals. Returns by how many rows there are more, or newer ones.';

CREATE FUNCTION relay_adopt() RETURNS trigger
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    PERFORM FROM candidate_report c WHERE c.url IN (SELECT a.url FROM added a) ORDER BY c.url, c.monitor FOR UPDATE;
    WITH moved AS (
        DELETE FROM candidate_report c USING added a WHERE c.url = a.url
        RETURNING a.id, c.monitor, c.created_at, c.open_ms, c.read_ms, c.write_ms, c.auth, c.writes, c.pow, c.payment, c.nips, c.geohash
    )
    INSERT INTO monitor_report (relay_id, monitor, created_at, open_ms, read_ms, write_ms, auth, writes, pow, payment, nips, geohash)
    SELECT m.* FROM moved m ORDER BY m.id, m.monitor
    ON CONFLICT (relay_id, monitor) DO NOTHING;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION relay_adopt IS 'Trigger of relay: what other monitors said of a URL is the relay''s when it becomes one, by whatever door.';
CREATE TRIGGER relay_adopt AFTER INSERT ON relay REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION relay_adopt();

CREATE OR REPLACE VIEW monitor_disagreement AS
SELECT w.relay_url, w.monitor, w.seen_at, w.our_state, w.our_checked_at, w.their_state, w.our_open_ms, w.their_open_ms,
       w.our_auth, w.their_auth, w.our_payment, w.their_payment,
       array_remove(ARRAY[
           CASE WHEN w.our_state = 'down' AND w.their_state = 'alive' OR w.our_state = 'alive' AND w.their_state = 'absent' THEN 'liveness'
                WHEN w.their_state <> 'alive' THEN NULL
                -- Nobody of ours has looked of late: that contradicts nobody.
                WHEN w.our_state = 'suspect' AND w.our_reason <> 'stale'
                THEN CASE WHEN w.our_reason IN ('auth_required', 'blocked', 'rate_limited') THEN 'refused' ELSE 'suspect' END
                WHEN w.our_state IN ('failing', 'given-up') THEN 'unproved' END,
           CASE WHEN w.our_auth <> w.their_auth THEN 'auth' END,
           CASE WHEN w.our_payment <> w.their_payment THEN 'payment' END], NULL) AS disagrees,
       w.our_outcome, w.our_reason
FROM (
    SELECT o.*, encode(o.author, 'hex') AS monitor,
           -- They say nothing of what they do not find: a word older than three of their rounds says so. A round is a
           -- week at most: whoever announces a century would vouch for ever, and whoever announces more made this view fail.
           CASE WHEN o.seen_at > extract(epoch FROM now()) - 3 * least(greatest(coalesce(a.frequency_s, 86400), 3600), 604800) THEN 'alive' ELSE 'absent' END AS their_state
    FROM (
        SELECT r.url AS relay_url, m.monitor AS author, m.created_at AS seen_at,
               coalesce(s.state, 'unchecked') AS our_state, s.checked_at AS our_checked_at,
               t.open_ms AS our_open_ms, m.open_ms AS their_open_ms,
               CASE WHEN t.reason = 'auth_required' THEN true WHEN t.outcome = 'ok' THEN false END AS our_auth, m.auth AS their_auth,
               CASE i.payment WHEN 'true' THEN true WHEN 'false' THEN false END AS our_payment, m.payment AS their_payment,
               t.outcome AS our_outcome, coalesce(s.reason, 'none') AS our_reason
        FROM public.monitor_report m
        JOIN public.relay r ON r.id = m.relay_id
        LEFT JOIN LATERAL (
            SELECT x.state, x.reason, x.checked_at FROM public.relay_liveness x WHERE x.relay_url = r.url) s ON true
        LEFT JOIN LATERAL (
            SELECT x.open_ms, x.reason, x.outcome FROM public.relay_check_latest x WHERE x.relay_id = r.id AND x.kind = 'rtt'
            ORDER BY x.checked_at DESC LIMIT 1) t ON true
        LEFT JOIN LATERAL (
            SELECT d.data -> 'data' -> 'limitation' ->> 'payment_required' AS payment
            FROM public.relay_check_latest x JOIN public.metadata d ON d.id = x.metadata_id AND d.type = 'nip11_info'
            WHERE x.relay_id = r.id AND x.kind = 'nip11' ORDER BY x.confirmed_at DESC LIMIT 1) i ON true
        UNION ALL
        SELECT m.url, m.monitor, m.created_at,
               CASE WHEN c.url IS NULL THEN 'unknown' WHEN c.tombstoned_at IS NOT NULL THEN 'given-up' WHEN c.last_tried_at IS NULL THEN 'untried' ELSE 'failing' END,
               c.last_tried_at, c.last_open_ms, m.open_ms, NULL::boolean, m.auth, NULL::boolean, m.payment,
               c.last_outcome, c.last_reason
        FROM public.candidate_report m
        LEFT JOIN public.candidate c ON c.url = m.url
        WHERE NOT EXISTS (SELECT FROM public.relay r WHERE r.url = m.url)) o
    LEFT JOIN public.monitor_announcement a ON a.monitor = o.author) w;
COMMENT ON VIEW monitor_disagreement IS 'What each other monitor says of each relay, or URL that is none of ours, beside what we say: liveness, time to open, auth and payment, and in which of them we differ. our_state of what is no relay: untried, failing, given-up, or unknown where it is no candidate; our_outcome and our_reason: our latest look. their_state absent: its last word is older than three of its rounds, of a week at most. disagrees: liveness where one says alive and the other down or nothing; of what they call alive refused where it will not have us, suspect where we doubt it, unproved where it never spoke Nostr to us; auth, payment.';

CREATE OR REPLACE FUNCTION publication_retire(p_publish boolean, p_keep_days integer)
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_old bigint := extract(epoch FROM now())::bigint - p_keep_days * 86400::bigint;
    n integer;
BEGIN
    IF NOT p_publish THEN
        DELETE FROM schedule s WHERE s.kind = 'monitor' AND s.target = 'publish';
    END IF;
    DELETE FROM publication_delivery d USING publication p
    WHERE p.pubkey = d.pubkey AND p.kind = d.kind AND p.d_tag = d.d_tag AND p.kind IN (5, 30166) AND p.put_at < v_old;
    DELETE FROM publication p WHERE p.kind IN (5, 30166) AND p.put_at < v_old;
    GET DIAGNOSTICS n = ROW_COUNT;
    DELETE FROM monitor_report m WHERE m.created_at < v_old;
    -- Rows that are just refreshed or adopted are left to that.
    WITH free AS (SELECT c.url, c.monitor FROM candidate_report c WHERE c.created_at < v_old FOR UPDATE SKIP LOCKED)
    DELETE FROM candidate_report c USING free f WHERE c.url = f.url AND c.monitor = f.monitor;
    DELETE FROM monitor_announcement a WHERE a.created_at < v_old AND NOT EXISTS (SELECT FROM monitor_report m WHERE m.monitor = a.monitor);
    RETURN n;
END $$;

-- How often a key of ours looks ------------------------------------------------------------------------------------------------

ALTER TABLE vantage ADD COLUMN pubkey bytea CHECK (octet_length(pubkey) = 32);
COMMENT ON COLUMN vantage.pubkey IS 'Public key under which its looks were last published; null where none was.';

CREATE OR REPLACE FUNCTION publication_put(
    p_job text, p_worker text, p_attempt integer,
    p_pubkeys bytea[], p_kinds integer[], p_ds text[], p_relay_urls text[], p_event_ids bytea[], p_created_ats bigint[],
    p_digests bytea[], p_events text[], p_refresh_s integer[])
RETURNS TABLE (held boolean, written integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    held := EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt]));
    written := 0;
    IF held THEN
        -- Whose looks are published under which key.
        UPDATE vantage v SET pubkey = p_pubkeys[1] FROM apalis.workers w
        WHERE w.id = p_worker AND v.name = w.vantage AND v.pubkey IS DISTINCT FROM p_pubkeys[1] AND cardinality(p_pubkeys) > 0;
        INSERT INTO vantage (name, pubkey) SELECT w.vantage, p_pubkeys[1] FROM apalis.workers w
        WHERE w.id = p_worker AND cardinality(p_pubkeys) > 0 AND NOT EXISTS (SELECT FROM vantage v WHERE v.name = w.vantage)
        ON CONFLICT (name) DO NOTHING;
        INSERT INTO publication AS p (pubkey, kind, d_tag, relay_url, event_id, created_at, digest, put_at, event)
        SELECT u.pubkey, u.kind, u.d_tag, u.relay_url, u.event_id, u.created_at, u.digest, extract(epoch FROM now())::bigint, u.event
        FROM unnest(p_pubkeys, p_kinds, p_ds, p_relay_urls, p_event_ids, p_created_ats, p_digests, p_events)
             WITH ORDINALITY u(pubkey, kind, d_tag, relay_url, event_id, created_at, digest, event, o)
        LEFT JOIN publication x ON x.pubkey = u.pubkey AND x.kind = u.kind AND x.d_tag = u.d_tag
        WHERE CASE
            -- Taken back is only what somebody may have.
            WHEN u.kind = 5 THEN EXISTS (
                SELECT FROM publication_delivery d WHERE d.pubkey = u.pubkey AND d.kind = 30166 AND d.d_tag = u.d_tag
                   AND (d.accepted_at IS NOT NULL OR d.state = 'waiting'))
            -- The same is said again only after a while.
            ELSE x.digest IS DISTINCT FROM u.digest OR x.created_at + p_refresh_s[u.o] <= u.created_at END
        ORDER BY u.pubkey, u.kind, u.d_tag
        ON CONFLICT (pubkey, kind, d_tag) DO UPDATE
            SET relay_url = excluded.relay_url, event_id = excluded.event_id, created_at = excluded.created_at, digest = excluded.digest,
                put_at = excluded.put_at, event = excluded.event
            WHERE p.created_at < excluded.created_at;
        GET DIAGNOSTICS written = ROW_COUNT;
        -- What is said again is not taken back any more, and what is taken back is not said any more.
        DELETE FROM publication_delivery d USING unnest(p_pubkeys, p_kinds, p_ds) u(pubkey, kind, d_tag)
        WHERE d.pubkey = u.pubkey AND d.d_tag = u.d_tag AND (u.kind, d.kind) IN ((30166, 5), (5, 30166));
        DELETE FROM publication p USING unnest(p_pubkeys, p_kinds, p_ds) u(pubkey, kind, d_tag)
        WHERE p.pubkey = u.pubkey AND p.d_tag = u.d_tag AND (u.kind, p.kind) IN ((30166, 5), (5, 30166));
        IF written > 0 THEN
            -- Soon, so that several go together; and nobody waits for a row in which everybody meets.
            UPDATE schedule s SET due_at = now() + interval '2 seconds'
            FROM (SELECT x.kind, x.target FROM schedule x
                  WHERE x.kind = 'monitor' AND x.target = 'publish' AND x.due_at > now() + interval '2 seconds' FOR UPDATE SKIP LOCKED) y
            WHERE s.kind = y.kind AND s.target = y.target;
        END IF;
    END IF;
    RETURN NEXT;
END $$;

CREATE FUNCTION publication_turns(p_pubkey bytea, p_vantage text)
RETURNS integer
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    -- A worker that starts anew has ten minutes to come.
    RETURN (
        SELECT coalesce(max(ceil(x.vantages::numeric / x.mine)), 1)::integer FROM (
            SELECT count(DISTINCT w.vantage) AS vantages, count(DISTINCT w.vantage) FILTER (WHERE v.pubkey = p_pubkey OR w.vantage = p_vantage) AS mine
            FROM apalis.workers w CROSS JOIN LATERAL unnest(w.queues) q(name) LEFT JOIN vantage v ON v.name = w.vantage
            WHERE w.lease_until > now() - interval '10 minutes' AND q.name LIKE 'monitor.%' AND q.name <> 'monitor.local'
            GROUP BY q.name) x
        WHERE x.mine > 0);
END $$;
COMMENT ON FUNCTION publication_turns IS 'Of how many looks at a relay one, on average, is published under this key, which p_vantage signs with: each is made from one vantage, of those that serve its network, and they may have keys of their own. Of the network where that is most.';
