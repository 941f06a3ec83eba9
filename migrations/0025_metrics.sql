-- What the archive says of the network, as views over the rollups. Definitions and errors: docs/METRICS.md.

CREATE VIEW replication_factor AS
WITH now AS (
    SELECT extract(year FROM now() AT TIME ZONE 'UTC') * 12 + extract(month FROM now() AT TIME ZONE 'UTC') - 1 AS month
), h AS (
    SELECT r.kind, a.age_months, r.copies, sum(r.events) AS n
    FROM public.rollup_replication r CROSS JOIN now n
    CROSS JOIN LATERAL (SELECT CASE WHEN n.month - r.month < 1 THEN 0 WHEN n.month - r.month < 3 THEN 1
                                    WHEN n.month - r.month < 12 THEN 3 WHEN n.month - r.month < 24 THEN 12 ELSE 24 END AS age_months) a
    WHERE r.events > 0 GROUP BY 1, 2, 3
), c AS (
    SELECT h.*, sum(h.n) OVER (PARTITION BY h.kind, h.age_months ORDER BY h.copies) AS upto, sum(h.n) OVER (PARTITION BY h.kind, h.age_months) AS total
    FROM h
)
SELECT c.kind, c.age_months, c.total::bigint AS events, round(sum(c.copies * c.n) / c.total, 2) AS mean_copies,
       min(c.copies) FILTER (WHERE c.upto * 2 >= c.total) AS median_copies, max(c.copies) AS most_copies,
       round(coalesce(sum(c.n) FILTER (WHERE c.copies <= 1), 0) / c.total, 4) AS single_share
FROM c GROUP BY c.kind, c.age_months, c.total;
COMMENT ON VIEW replication_factor IS 'On how many relays events were seen, by kind and age (whole calendar months: 0, from 1, 3, 12, 24 on; the future counts as 0): mean, median, most, and the share seen on one relay at most.';

CREATE VIEW relay_unique_content AS
SELECT r.url AS relay_url, s.events AS event_count, s.unique_events, round(s.unique_events::numeric / s.events, 4) AS unique_share
FROM public.rollup_relay s JOIN public.relay r ON r.id = s.relay_id WHERE s.events > 0;
COMMENT ON VIEW relay_unique_content IS 'How many of the events of each relay were seen on no other, and their share.';

CREATE VIEW relay_overlap AS
WITH shared AS (
    SELECT a.relay_id, b.relay_id AS other_id, greatest(a.level, b.level) AS level, count(*) AS sampled
    FROM (SELECT s.relay_id, s.level, k.event_key FROM public.rollup_sketch s CROSS JOIN LATERAL unnest(s.keys) k(event_key)) a
    JOIN (SELECT s.relay_id, s.level, k.event_key FROM public.rollup_sketch s CROSS JOIN LATERAL unnest(s.keys) k(event_key)) b
      ON b.event_key = a.event_key AND b.relay_id <> a.relay_id
    WHERE public.rollup_sample_of(a.event_key) >> (63 - greatest(a.level, b.level)) = 0
    GROUP BY 1, 2, 3
)
SELECT r.url AS relay_url, o.url AS other_url, (s.sampled * power(2::numeric, s.level))::bigint AS shared_events,
       round((sqrt(s.sampled * (1 - power(2::double precision, -s.level))) * power(2::double precision, s.level))::numeric, 1) AS standard_error,
       round(least(1, s.sampled * power(2::numeric, s.level) / e.events), 4) AS share, s.sampled
FROM shared s
JOIN public.relay r ON r.id = s.relay_id
JOIN public.relay o ON o.id = s.other_id
JOIN public.rollup_relay e ON e.relay_id = s.relay_id;
COMMENT ON VIEW relay_overlap IS 'Per ordered pair of relays, how many events both have (estimated from sampled common events, with its standard error) and which share of relay_url that is. Pairs without a common event in the samples are absent.';

CREATE VIEW relay_concentration AS
WITH up AS (
    SELECT r.id, r.url FROM public.relay r JOIN public.relay_liveness l ON l.relay_url = r.url WHERE l.state <> 'down'
), v AS (
    SELECT t.dimension, t.value, count(*)::numeric AS n, coalesce(sum(e.events), 0) AS events
    FROM up u
    JOIN public.relay_metadata_latest m ON m.relay_url = u.url
    CROSS JOIN LATERAL (
        SELECT 'asn' AS dimension, m.data -> 'data' ->> 'net_asn' AS value WHERE m.metadata_type = 'nip66_net'
        UNION ALL SELECT 'country', m.data -> 'data' ->> 'geo_country' WHERE m.metadata_type = 'nip66_geo'
        UNION ALL SELECT 'software', left(m.data -> 'data' ->> 'software', 200) WHERE m.metadata_type = 'nip11_info') t
    LEFT JOIN public.rollup_relay e ON e.relay_id = u.id
    WHERE t.value IS NOT NULL GROUP BY 1, 2
), s AS (
    SELECT v.*, sum(v.n) OVER (PARTITION BY v.dimension) AS known, nullif(sum(v.events) OVER (PARTITION BY v.dimension), 0) AS observations FROM v
)
SELECT s.dimension, (SELECT count(*) FROM up) AS relays, max(s.known)::bigint AS known, count(*) AS groups,
       round(sum((s.n / s.known) ^ 2), 4) AS hhi, (array_agg(s.value ORDER BY s.n DESC, s.value))[1] AS largest,
       round(max(s.n / s.known), 4) AS largest_share, round(sum((s.events / s.observations) ^ 2), 4) AS observation_hhi
FROM s GROUP BY s.dimension;
COMMENT ON VIEW relay_concentration IS 'How concentrated the relays that are not down are by ASN, country and software: the sum of squared shares (Herfindahl-Hirschman, 0 to 1) of relays, and of their observations. Relays of which the property is not known are left out of the shares (known of relays).';

CREATE FUNCTION hint_accuracy(p_events integer DEFAULT 1000, p_now bigint DEFAULT extract(epoch FROM now())::bigint)
RETURNS TABLE (events bigint, hints bigint, relay_known bigint, target_known bigint, judged bigint, hits bigint, accuracy numeric)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    RETURN QUERY
    WITH e AS MATERIALIZED (
        SELECT x.tags FROM event x
        WHERE x.fate = 0 AND x.tags IS NOT NULL AND x.event_key < (least(p_now, 4294967294) + 1) << 31
        ORDER BY x.event_key DESC LIMIT p_events
    ), hint AS MATERIALIZED (
        SELECT DISTINCT decode(t.value ->> 1, 'hex') AS id, rtrim(t.value ->> 2, '/') AS url
        FROM e CROSS JOIN LATERAL json_array_elements(convert_from(e.tags, 'UTF8')::json) t
        -- NUL, raw or escaped, and surrogates are what text cannot hold.
        WHERE position('\x00'::bytea IN e.tags) = 0 AND position('\x5c7530303030'::bytea IN e.tags) = 0
          AND position('\x5c7564'::bytea IN e.tags) = 0 AND position('\x5c7544'::bytea IN e.tags) = 0
          AND json_typeof(t.value) = 'array' AND t.value ->> 0 = 'e' AND t.value ->> 1 ~ '^[0-9a-f]{64}$' AND t.value ->> 2 ~* '^wss?://.'
    ), known AS MATERIALIZED (
        SELECT h.id, r.id AS relay_id, g.event_key, g.created_at FROM hint h
        LEFT JOIN LATERAL (SELECT y.id FROM relay y WHERE y.url IN (h.url, lower(h.url)) ORDER BY y.url <> h.url LIMIT 1) r ON true
        LEFT JOIN LATERAL (
            SELECT y.event_key, y.created_at FROM event y
            WHERE r.id IS NOT NULL AND substring(y.id FROM 9 FOR 8) = substring(h.id FROM 9 FOR 8) AND y.id = h.id AND y.fate = 0 OFFSET 0) g ON true
    ), seen AS (
        SELECT k.*, k.event_key IS NOT NULL AND EXISTS (SELECT FROM event_relay o WHERE o.relay_id = k.relay_id AND o.event_key = k.event_key) AS hit,
               EXISTS (SELECT FROM coverage c WHERE c.relay_id = k.relay_id AND c.class = 'all' AND c.grade IN ('reconciled', 'finished', 'walked')
                       AND k.created_at BETWEEN c.since_at AND c.until_at) AS covered
        FROM known k
    )
    SELECT (SELECT count(*) FROM e), count(*), count(s.relay_id), count(s.event_key), count(*) FILTER (WHERE s.hit OR s.covered),
           count(*) FILTER (WHERE s.hit), round(count(*) FILTER (WHERE s.hit)::numeric / nullif(count(*) FILTER (WHERE s.hit OR s.covered), 0), 4)
    FROM seen s;
END $$;
COMMENT ON FUNCTION hint_accuracy IS 'Of the relay hints in e tags of the newest p_events archived events: how many there are (distinct), name a relay we know, and an event we have; and of those that can be judged (seen there, or its second there is proved and it was not) the share that is right.';
