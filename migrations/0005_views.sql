-- The analytics: materialized views with a unique index each, and one refresh function each.
-- Names are schema-qualified. Only archived events (fate 0) are counted.

CREATE FUNCTION kind_category(p_kind integer) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN p_kind IN (0, 3) OR p_kind BETWEEN 10000 AND 19999 THEN 'replaceable'
    WHEN p_kind BETWEEN 20000 AND 29999 THEN 'ephemeral'
    WHEN p_kind BETWEEN 30000 AND 39999 THEN 'addressable'
    WHEN p_kind IN (1, 2) OR p_kind BETWEEN 4 AND 44 OR p_kind BETWEEN 1000 AND 9999 THEN 'regular'
    ELSE 'other' END;
COMMENT ON FUNCTION kind_category IS 'NIP-01 class of a kind: regular, replaceable, ephemeral, addressable or other.';

CREATE MATERIALIZED VIEW relay_metadata_latest AS
SELECT * FROM (
    SELECT r.url AS relay_url, m.metadata_type, m.generated_at, m.metadata_id, d.data,
           (SELECT max(l.confirmed_at) FROM public.relay_check_latest l
            WHERE l.relay_id = m.relay_id AND l.metadata_id = m.metadata_id) AS confirmed_at
    FROM public.relay r
    CROSS JOIN (VALUES ('nip11_info'), ('nip66_ssl'), ('nip66_geo'), ('nip66_net'), ('nip66_dns'), ('nip66_http')) t(type)
    CROSS JOIN LATERAL (
        SELECT x.relay_id, x.metadata_type, x.generated_at, x.metadata_id FROM public.relay_metadata x
        WHERE x.relay_id = r.id AND x.metadata_type = t.type ORDER BY x.generated_at DESC LIMIT 1) m
    JOIN public.metadata d ON d.id = m.metadata_id AND d.type = m.metadata_type
    UNION ALL
    -- Round-trip times change with every check: they are measurements, not documents, and are built from them.
    SELECT r.url, 'nip66_rtt', l.checked_at, NULL::bytea,
           json_build_object(
               'data', json_strip_nulls(json_build_object('rtt_open', l.open_ms, 'rtt_read', l.read_ms, 'rtt_write', l.write_ms)),
               'logs', json_build_object('success', l.outcome = 'ok', 'outcome', l.outcome, 'reason', l.reason)),
           l.checked_at
    FROM public.relay r
    CROSS JOIN LATERAL (
        SELECT x.* FROM public.relay_check_latest x
        WHERE x.relay_id = r.id AND x.kind = 'rtt' ORDER BY x.checked_at DESC, x.vantage_id LIMIT 1) l
) latest;
CREATE UNIQUE INDEX relay_metadata_latest_key ON relay_metadata_latest (relay_url, metadata_type);
CREATE INDEX relay_metadata_latest_type ON relay_metadata_latest (metadata_type);
COMMENT ON MATERIALIZED VIEW relay_metadata_latest IS 'Newest document per relay and type; nip66_rtt is built from the newest rtt check.';

CREATE MATERIALIZED VIEW event_stats AS
SELECT 1 AS singleton_key, count(*) AS event_count, count(DISTINCT e.pubkey) AS unique_pubkeys, count(DISTINCT e.kind) AS unique_kinds,
       min(e.created_at) AS earliest_event_timestamp, max(e.created_at) AS latest_event_timestamp,
       count(*) FILTER (WHERE public.kind_category(e.kind) = 'regular') AS regular_event_count,
       count(*) FILTER (WHERE public.kind_category(e.kind) = 'replaceable') AS replaceable_event_count,
       count(*) FILTER (WHERE public.kind_category(e.kind) = 'ephemeral') AS ephemeral_event_count,
       count(*) FILTER (WHERE public.kind_category(e.kind) = 'addressable') AS addressable_event_count,
       count(*) FILTER (WHERE e.created_at BETWEEN t.now - 3600 AND t.now) AS event_count_last_1h,
       count(*) FILTER (WHERE e.created_at BETWEEN t.now - 86400 AND t.now) AS event_count_last_24h,
       count(*) FILTER (WHERE e.created_at BETWEEN t.now - 604800 AND t.now) AS event_count_last_7d,
       count(*) FILTER (WHERE e.created_at BETWEEN t.now - 2592000 AND t.now) AS event_count_last_30d,
       round(count(*)::numeric * 86400 / greatest(86400::numeric, coalesce(max(e.created_at), 0)::numeric - coalesce(min(e.created_at), 0)), 2) AS events_per_day
FROM public.event e CROSS JOIN (SELECT extract(epoch FROM now())::bigint AS now) t
WHERE e.fate = 0;
CREATE UNIQUE INDEX event_stats_key ON event_stats (singleton_key);
COMMENT ON MATERIALIZED VIEW event_stats IS 'The archive in one row, as of the refresh.';

CREATE MATERIALIZED VIEW relay_stats AS
SELECT r.url AS relay_url, r.network, r.discovered_at,
       s.first_event_timestamp, s.last_event_timestamp,
       t.avg_rtt_open, t.avg_rtt_read, t.avg_rtt_write,
       coalesce(s.event_count, 0) AS event_count, coalesce(s.unique_pubkeys, 0) AS unique_pubkeys, coalesce(s.unique_kinds, 0) AS unique_kinds,
       left(i.data -> 'data' ->> 'name', 200) AS nip11_name,
       left(i.data -> 'data' ->> 'software', 200) AS nip11_software,
       left(i.data -> 'data' ->> 'version', 200) AS nip11_version
FROM public.relay r
LEFT JOIN (
    SELECT o.relay_id, min(e.created_at) AS first_event_timestamp, max(e.created_at) AS last_event_timestamp,
           count(*) AS event_count, count(DISTINCT e.pubkey) AS unique_pubkeys, count(DISTINCT e.kind) AS unique_kinds
    FROM public.event_relay o JOIN public.event e ON e.event_key = o.event_key
    WHERE e.fate = 0 GROUP BY o.relay_id) s ON s.relay_id = r.id
LEFT JOIN LATERAL (
    SELECT round(avg(x.open_ms), 2) AS avg_rtt_open, round(avg(x.read_ms), 2) AS avg_rtt_read, round(avg(x.write_ms), 2) AS avg_rtt_write
    FROM (SELECT c.open_ms, c.read_ms, c.write_ms FROM public.relay_check c
          WHERE c.relay_id = r.id AND c.kind = 'rtt' ORDER BY c.checked_at DESC LIMIT 10) x) t ON true
LEFT JOIN public.relay_metadata_latest i ON i.relay_url = r.url AND i.metadata_type = 'nip11_info';
CREATE UNIQUE INDEX relay_stats_key ON relay_stats (relay_url);
CREATE INDEX relay_stats_network ON relay_stats (network);
COMMENT ON MATERIALIZED VIEW relay_stats IS 'Per relay: what it holds, how fast it answers (last 10 rtt checks), what it says it is.';

CREATE MATERIALIZED VIEW kind_counts AS
SELECT e.kind, count(*) AS event_count, count(DISTINCT e.pubkey) AS unique_pubkeys, public.kind_category(e.kind) AS category
FROM public.event e WHERE e.fate = 0 GROUP BY e.kind;
CREATE UNIQUE INDEX kind_counts_key ON kind_counts (kind);
COMMENT ON MATERIALIZED VIEW kind_counts IS 'Events and authors per kind.';

CREATE MATERIALIZED VIEW kind_counts_by_relay AS
SELECT e.kind, r.url AS relay_url, count(*) AS event_count, count(DISTINCT e.pubkey) AS unique_pubkeys
FROM public.event_relay o JOIN public.event e ON e.event_key = o.event_key JOIN public.relay r ON r.id = o.relay_id
WHERE e.fate = 0 GROUP BY e.kind, r.url;
CREATE UNIQUE INDEX kind_counts_by_relay_key ON kind_counts_by_relay (kind, relay_url);
CREATE INDEX kind_counts_by_relay_relay ON kind_counts_by_relay (relay_url);
COMMENT ON MATERIALIZED VIEW kind_counts_by_relay IS 'Events and authors per kind and relay.';

CREATE MATERIALIZED VIEW pubkey_counts AS
SELECT encode(e.pubkey, 'hex') AS pubkey, count(*) AS event_count, count(DISTINCT e.kind) AS unique_kinds,
       min(e.created_at) AS first_event_timestamp, max(e.created_at) AS last_event_timestamp
FROM public.event e WHERE e.fate = 0 GROUP BY e.pubkey;
CREATE UNIQUE INDEX pubkey_counts_key ON pubkey_counts (pubkey);
COMMENT ON MATERIALIZED VIEW pubkey_counts IS 'Events per author.';

CREATE MATERIALIZED VIEW pubkey_counts_by_relay AS
SELECT r.url AS relay_url, encode(e.pubkey, 'hex') AS pubkey, count(*) AS event_count, count(DISTINCT e.kind) AS unique_kinds,
       min(e.created_at) AS first_event_timestamp, max(e.created_at) AS last_event_timestamp
FROM public.event_relay o JOIN public.event e ON e.event_key = o.event_key JOIN public.relay r ON r.id = o.relay_id
WHERE e.fate = 0 GROUP BY r.url, e.pubkey HAVING count(*) >= 2;
CREATE UNIQUE INDEX pubkey_counts_by_relay_key ON pubkey_counts_by_relay (pubkey, relay_url);
CREATE INDEX pubkey_counts_by_relay_relay ON pubkey_counts_by_relay (relay_url);
COMMENT ON MATERIALIZED VIEW pubkey_counts_by_relay IS 'Events per author and relay, where there are at least two.';

CREATE MATERIALIZED VIEW network_stats AS
SELECT n.network,
       (SELECT count(*) FROM public.relay r WHERE r.network = n.network) AS relay_count,
       coalesce(s.event_count, 0) AS event_count, coalesce(s.unique_pubkeys, 0) AS unique_pubkeys, coalesce(s.unique_kinds, 0) AS unique_kinds
FROM (SELECT DISTINCT r.network FROM public.relay r) n
LEFT JOIN (
    SELECT d.network, count(*) AS event_count, count(DISTINCT e.pubkey) AS unique_pubkeys, count(DISTINCT e.kind) AS unique_kinds
    FROM (SELECT DISTINCT r.network, o.event_key FROM public.event_relay o JOIN public.relay r ON r.id = o.relay_id) d
    JOIN public.event e ON e.event_key = d.event_key
    WHERE e.fate = 0 GROUP BY d.network) s ON s.network = n.network;
CREATE UNIQUE INDEX network_stats_key ON network_stats (network);
COMMENT ON MATERIALIZED VIEW network_stats IS 'Relays, and events counted once per network.';

CREATE MATERIALIZED VIEW event_daily_counts AS
-- Absurd times are lumped into the last day of the year 9999 instead of failing the refresh.
SELECT (DATE '1970-01-01' + (least(e.created_at, 253402300799) / 86400)::integer) AS day,
       count(*) AS event_count, count(DISTINCT e.pubkey) AS unique_pubkeys, count(DISTINCT e.kind) AS unique_kinds
FROM public.event e WHERE e.fate = 0 GROUP BY 1;
CREATE UNIQUE INDEX event_daily_counts_key ON event_daily_counts (day);
COMMENT ON MATERIALIZED VIEW event_daily_counts IS 'Events per UTC day of created_at.';

CREATE MATERIALIZED VIEW events_replaceable_latest AS
SELECT DISTINCT ON (e.pubkey, e.kind) e.id, e.pubkey, e.created_at, e.kind, e.tags, e.tag_hashes, e.content, e.sig
FROM public.event e WHERE e.fate = 0 AND public.kind_category(e.kind) = 'replaceable'
ORDER BY e.pubkey, e.kind, e.created_at DESC, e.id;
CREATE UNIQUE INDEX events_replaceable_latest_key ON events_replaceable_latest (pubkey, kind);
CREATE INDEX events_replaceable_latest_kind ON events_replaceable_latest (kind);
COMMENT ON MATERIALIZED VIEW events_replaceable_latest IS 'Current version of each replaceable event: newest, then lowest id (NIP-01).';

CREATE MATERIALIZED VIEW events_addressable_latest AS
SELECT DISTINCT ON (e.pubkey, e.kind, e.d_tag) e.id, e.pubkey, e.created_at, e.kind, e.tags, e.tag_hashes, e.content, e.sig,
       e.d_tag, sha256(e.d_tag) AS d_tag_hash
FROM public.event e WHERE e.fate = 0 AND public.kind_category(e.kind) = 'addressable'
ORDER BY e.pubkey, e.kind, e.d_tag, e.created_at DESC, e.id;
-- A d tag may be longer than an index row: its hash stands for it in the key.
CREATE UNIQUE INDEX events_addressable_latest_key ON events_addressable_latest (pubkey, kind, d_tag_hash);
CREATE INDEX events_addressable_latest_kind ON events_addressable_latest (kind);
COMMENT ON MATERIALIZED VIEW events_addressable_latest IS 'Current version of each addressable event: newest, then lowest id (NIP-01).';

CREATE MATERIALIZED VIEW relay_software_counts AS
SELECT left(l.data -> 'data' ->> 'software', 200) AS software, coalesce(left(l.data -> 'data' ->> 'version', 200), 'unknown') AS version,
       count(*) AS relay_count
FROM public.relay_metadata_latest l
WHERE l.metadata_type = 'nip11_info' AND l.data -> 'data' ->> 'software' IS NOT NULL
GROUP BY 1, 2;
CREATE UNIQUE INDEX relay_software_counts_key ON relay_software_counts (software, version);
COMMENT ON MATERIALIZED VIEW relay_software_counts IS 'Relays per software and version, as their NIP-11 documents say (first 200 characters).';

CREATE MATERIALIZED VIEW supported_nip_counts AS
SELECT n.nip::integer AS nip, count(DISTINCT l.relay_url) AS relay_count
FROM public.relay_metadata_latest l
CROSS JOIN LATERAL json_array_elements_text(
    CASE json_typeof(l.data -> 'data' -> 'supported_nips') WHEN 'array' THEN l.data -> 'data' -> 'supported_nips' ELSE '[]'::json END) n(nip)
WHERE l.metadata_type = 'nip11_info' AND n.nip ~ '^[0-9]{1,5}$'
GROUP BY 1;
CREATE UNIQUE INDEX supported_nip_counts_key ON supported_nip_counts (nip);
COMMENT ON MATERIALIZED VIEW supported_nip_counts IS 'Relays per NIP they say they support.';

CREATE FUNCTION view_refresh(p_view text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE began timestamptz := clock_timestamp();
BEGIN
    IF NOT EXISTS (SELECT FROM pg_matviews m WHERE m.schemaname = 'public' AND m.matviewname = p_view) THEN
        RAISE EXCEPTION 'there is no materialized view %', p_view USING ERRCODE = 'undefined_table';
    END IF;
    -- Never two at once: a second caller is told so instead of queueing up behind the first.
    IF NOT pg_try_advisory_xact_lock(7302) THEN
        RAISE EXCEPTION 'another refresh is running' USING ERRCODE = 'lock_not_available';
    END IF;
    EXECUTE format('REFRESH MATERIALIZED VIEW CONCURRENTLY public.%I', p_view);
    INSERT INTO view_state (view_name, refreshed_at, duration_ms)
    VALUES (p_view, clock_timestamp(), (extract(epoch FROM clock_timestamp() - began) * 1000)::bigint)
    ON CONFLICT (view_name) DO UPDATE SET refreshed_at = excluded.refreshed_at, duration_ms = excluded.duration_ms;
END $$;
COMMENT ON FUNCTION view_refresh IS 'Refreshes one view without blocking readers and notes when; raises lock_not_available while another refresh runs.';

DO $make$
DECLARE
    v text;
BEGIN
    FOREACH v IN ARRAY ARRAY[
        'relay_metadata_latest', 'event_stats', 'relay_stats', 'kind_counts', 'kind_counts_by_relay', 'pubkey_counts',
        'pubkey_counts_by_relay', 'network_stats', 'event_daily_counts', 'events_replaceable_latest',
        'events_addressable_latest', 'relay_software_counts', 'supported_nip_counts']
    LOOP
        EXECUTE format($f$
            CREATE FUNCTION %I() RETURNS void LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
            AS $body$ BEGIN PERFORM view_refresh(%L); END $body$ $f$, v || '_refresh', v);
        EXECUTE format('COMMENT ON FUNCTION %I() IS %L', v || '_refresh', 'Refreshes ' || v || '; see view_refresh.');
    END LOOP;
END $make$;

CREATE FUNCTION all_statistics_refresh() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    PERFORM relay_metadata_latest_refresh();
    PERFORM event_stats_refresh();
    PERFORM relay_stats_refresh();
    PERFORM kind_counts_refresh();
    PERFORM kind_counts_by_relay_refresh();
    PERFORM pubkey_counts_refresh();
    PERFORM pubkey_counts_by_relay_refresh();
    PERFORM network_stats_refresh();
    PERFORM event_daily_counts_refresh();
    PERFORM events_replaceable_latest_refresh();
    PERFORM events_addressable_latest_refresh();
    PERFORM relay_software_counts_refresh();
    PERFORM supported_nip_counts_refresh();
END $$;
COMMENT ON FUNCTION all_statistics_refresh IS 'Refreshes every view in dependency order, in one transaction. The refresh job does them one by one instead.';
