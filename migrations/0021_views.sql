-- The views over the rollups. Names, columns, types and keys are those of 0005; relay_metadata_latest and what is
-- small stay materialized, and are left alone while nothing under them moved.

-- Writers that began before 0020 log nothing: they end first, then everything there is gets counted.
SELECT pg_advisory_xact_lock(7302);
DO $fill$
DECLARE
    v_old text[] := ARRAY(
        SELECT DISTINCT l.virtualtransaction FROM pg_locks l
        WHERE l.locktype = 'relation' AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
          AND l.relation IN ('public.event'::regclass, 'public.event_relay'::regclass)
          AND l.mode = 'RowExclusiveLock' AND l.granted AND l.pid <> pg_backend_pid());
BEGIN
    FOR i IN 1 .. 1200 LOOP
        EXIT WHEN NOT EXISTS (SELECT FROM pg_locks l WHERE l.virtualtransaction = ANY (v_old) AND l.mode = 'RowExclusiveLock'
                              AND l.relation IN ('public.event'::regclass, 'public.event_relay'::regclass));
        IF i = 1200 THEN
            RAISE EXCEPTION 'a writer has not ended for a minute; stop the workers and migrate again';
        END IF;
        PERFORM pg_sleep(0.05);
    END LOOP;
    PERFORM rollup_rebuild();
END $fill$;

ALTER TABLE view_state ADD COLUMN watermark text;
COMMENT ON COLUMN view_state.watermark IS 'What the latest refresh saw of the tables under a materialized view: if that has not moved, the next one has nothing to do.';

DROP MATERIALIZED VIEW event_stats, relay_stats, kind_counts, kind_counts_by_relay, pubkey_counts, pubkey_counts_by_relay,
    network_stats, event_daily_counts, events_replaceable_latest, events_addressable_latest;

CREATE FUNCTION event_count_within(p_seconds bigint, p_now bigint) RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_from bigint := greatest(p_now - p_seconds, 0);
    -- First whole hour, and the hour that is not over.
    v_first bigint := (v_from + 3599) / 3600;
    v_last bigint := greatest(p_now / 3600, (v_from + 3599) / 3600);
BEGIN
    RETURN (SELECT coalesce(sum(h.events), 0) FROM rollup_hour h WHERE h.hour >= v_first AND h.hour < v_last)
        + (SELECT count(*) FROM event e WHERE e.fate = 0 AND e.event_key >= v_from << 31 AND e.event_key < (v_first * 3600) << 31
             AND e.created_at BETWEEN v_from AND p_now)
        + (SELECT count(*) FROM event e WHERE e.fate = 0 AND e.event_key >= (v_last * 3600) << 31 AND e.event_key < (p_now + 1) << 31
             AND e.created_at BETWEEN v_from AND p_now);
END $$;
COMMENT ON FUNCTION event_count_within IS 'Archived events of the last p_seconds before p_now (Unix seconds) by created_at: whole hours from the rollup, the two broken ones from the archive itself.';

CREATE VIEW event_stats AS
SELECT 1 AS singleton_key, coalesce(t.events, 0) AS event_count, coalesce(t.authors, 0) AS unique_pubkeys, k.kinds AS unique_kinds,
       t.first_at AS earliest_event_timestamp, t.last_at AS latest_event_timestamp,
       k.regular AS regular_event_count, k.replaceable AS replaceable_event_count,
       k.ephemeral AS ephemeral_event_count, k.addressable AS addressable_event_count,
       public.event_count_within(3600, n.now) AS event_count_last_1h,
       public.event_count_within(86400, n.now) AS event_count_last_24h,
       public.event_count_within(604800, n.now) AS event_count_last_7d,
       public.event_count_within(2592000, n.now) AS event_count_last_30d,
       round(coalesce(t.events, 0)::numeric * 86400 / greatest(86400::numeric, coalesce(t.last_at, 0)::numeric - coalesce(t.first_at, 0)), 2) AS events_per_day
FROM (SELECT extract(epoch FROM now())::bigint AS now) n
LEFT JOIN public.rollup_total t ON t.events > 0
CROSS JOIN (
    SELECT count(*) AS kinds,
           coalesce(sum(x.events) FILTER (WHERE public.kind_category(x.kind) = 'regular'), 0)::bigint AS regular,
           coalesce(sum(x.events) FILTER (WHERE public.kind_category(x.kind) = 'replaceable'), 0)::bigint AS replaceable,
           coalesce(sum(x.events) FILTER (WHERE public.kind_category(x.kind) = 'ephemeral'), 0)::bigint AS ephemeral,
           coalesce(sum(x.events) FILTER (WHERE public.kind_category(x.kind) = 'addressable'), 0)::bigint AS addressable
    FROM public.rollup_kind x WHERE x.events > 0) k;
COMMENT ON VIEW event_stats IS 'The archive in one row, as of the refresh; the event_count_last_* as of the query.';

CREATE VIEW kind_counts AS
SELECT k.kind, k.events AS event_count, k.authors AS unique_pubkeys, public.kind_category(k.kind) AS category
FROM public.rollup_kind k WHERE k.events > 0;
COMMENT ON VIEW kind_counts IS 'Events and authors per kind.';

CREATE VIEW kind_counts_by_relay AS
SELECT k.kind, r.url AS relay_url, k.events AS event_count, k.authors AS unique_pubkeys
FROM public.rollup_relay_kind k JOIN public.relay r ON r.id = k.relay_id;
COMMENT ON VIEW kind_counts_by_relay IS 'Events and authors per kind and relay.';

CREATE VIEW pubkey_counts AS
SELECT encode(a.pubkey, 'hex') AS pubkey, a.events AS event_count, a.kinds::bigint AS unique_kinds,
       a.first_at AS first_event_timestamp, a.last_at AS last_event_timestamp
FROM public.rollup_author a;
COMMENT ON VIEW pubkey_counts IS 'Events per author.';

CREATE VIEW pubkey_counts_by_relay AS
SELECT r.url AS relay_url, encode(a.pubkey, 'hex') AS pubkey, sum(k.events) AS event_count, count(*) AS unique_kinds,
       min(k.first_at) AS first_event_timestamp, max(k.last_at) AS last_event_timestamp
FROM public.rollup_relay_author k JOIN public.rollup_author a ON a.id = k.author_id JOIN public.relay r ON r.id = k.relay_id
GROUP BY r.id, a.id HAVING sum(k.events) >= 2;
COMMENT ON VIEW pubkey_counts_by_relay IS 'Events per author and relay, where there are at least two.';

CREATE VIEW network_stats AS
SELECT n.network, n.relays AS relay_count, coalesce(s.events, 0) AS event_count, coalesce(s.authors, 0) AS unique_pubkeys,
       (SELECT count(*) FROM public.rollup_kind k
        WHERE CASE n.network WHEN 'clearnet' THEN k.on_clearnet WHEN 'tor' THEN k.on_tor WHEN 'i2p' THEN k.on_i2p ELSE k.on_loki END > 0) AS unique_kinds
FROM (SELECT r.network, count(*) AS relays FROM public.relay r GROUP BY r.network) n
LEFT JOIN public.rollup_network s ON s.network = n.network;
COMMENT ON VIEW network_stats IS 'Relays, and events counted once per network.';

CREATE VIEW event_daily_counts AS
SELECT DATE '1970-01-01' + d.day AS day, d.events AS event_count, d.authors AS unique_pubkeys, d.kinds AS unique_kinds
FROM public.rollup_day d;
COMMENT ON VIEW event_daily_counts IS 'Events per UTC day of created_at.';

CREATE VIEW events_replaceable_latest AS
SELECT e.id, a.pubkey, e.created_at, k.kind, e.tags, e.tag_hashes, e.content, e.sig
FROM public.rollup_author_kind k
JOIN public.rollup_author a ON a.id = k.author_id
JOIN public.event e ON e.event_key = k.latest_key
WHERE k.latest_key IS NOT NULL;
COMMENT ON VIEW events_replaceable_latest IS 'Current version of each replaceable event: newest, then lowest id (NIP-01).';

CREATE VIEW events_addressable_latest AS
SELECT e.id, a.pubkey, e.created_at, l.kind, e.tags, e.tag_hashes, e.content, e.sig, e.d_tag, l.d_hash AS d_tag_hash
FROM public.rollup_addressable l
JOIN public.rollup_author a ON a.id = l.author_id
JOIN public.event e ON e.event_key = l.event_key;
COMMENT ON VIEW events_addressable_latest IS 'Current version of each addressable event: newest, then lowest id (NIP-01).';

CREATE MATERIALIZED VIEW relay_rtt_recent AS
SELECT r.id AS relay_id, t.avg_rtt_open, t.avg_rtt_read, t.avg_rtt_write
FROM public.relay r
CROSS JOIN LATERAL (
    SELECT round(avg(x.open_ms), 2) AS avg_rtt_open, round(avg(x.read_ms), 2) AS avg_rtt_read, round(avg(x.write_ms), 2) AS avg_rtt_write
    FROM (SELECT c.open_ms, c.read_ms, c.write_ms FROM public.relay_check c
          WHERE c.relay_id = r.id AND c.kind = 'rtt' ORDER BY c.checked_at DESC LIMIT 10) x HAVING count(*) > 0) t;
CREATE UNIQUE INDEX relay_rtt_recent_key ON relay_rtt_recent (relay_id);
COMMENT ON MATERIALIZED VIEW relay_rtt_recent IS 'Per relay, the means of its last 10 rtt checks; refreshed with relay_stats.';

CREATE VIEW relay_stats AS
SELECT r.url AS relay_url, r.network, r.discovered_at,
       s.first_at AS first_event_timestamp, s.last_at AS last_event_timestamp,
       t.avg_rtt_open, t.avg_rtt_read, t.avg_rtt_write,
       coalesce(s.events, 0) AS event_count, coalesce(s.authors, 0) AS unique_pubkeys, coalesce(s.kinds, 0) AS unique_kinds,
       left(i.data -> 'data' ->> 'name', 200) AS nip11_name,
       left(i.data -> 'data' ->> 'software', 200) AS nip11_software,
       left(i.data -> 'data' ->> 'version', 200) AS nip11_version
FROM public.relay r
LEFT JOIN public.rollup_relay s ON s.relay_id = r.id
LEFT JOIN public.relay_rtt_recent t ON t.relay_id = r.id
LEFT JOIN public.relay_metadata_latest i ON i.relay_url = r.url AND i.metadata_type = 'nip11_info';
COMMENT ON VIEW relay_stats IS 'Per relay: what it holds, how fast it answers (last 10 rtt checks), what it says it is.';

CREATE FUNCTION view_watermark(p_view text, p_since text) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    -- Transaction ids as 64 bits; the row carries the lower 32. Our own may lie beyond the end of the snapshot, but not far.
    v_most bigint := pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 1048576;
    v_seen bigint := coalesce(split_part(p_since, ' ', 1)::bigint, 0);
    v_rows text;
    v_new boolean;
BEGIN
    IF p_view IN ('relay_software_counts', 'supported_nip_counts') THEN
        RETURN nullif('0 ' || md5(coalesce((
            SELECT string_agg(l.relay_url || encode(l.metadata_id, 'hex'), ' ' ORDER BY l.relay_url)
            FROM relay_metadata_latest l WHERE l.metadata_type = 'nip11_info'), '')), p_since);
    END IF;
    -- A row is new if its transaction may have been running at the latest look; a row that went shows in the number.
    SELECT concat_ws('/', string_agg(x.n::text, '/' ORDER BY x.o),
                     (SELECT count(*) FROM pg_inherits i WHERE i.inhparent = 'public.relay_check'::regclass)), coalesce(bool_or(x.newest >= v_seen), false)
    INTO v_rows, v_new FROM (
        SELECT 1 AS o, count(*) AS n, max(v_most - ((v_most - y.x) & 4294967295)) AS newest
        FROM (SELECT r.xmin::text::bigint AS x FROM relay r) y
        UNION ALL
        SELECT 2, count(*), max(v_most - ((v_most - y.x) & 4294967295))
        FROM (SELECT l.xmin::text::bigint AS x FROM relay_check_latest l) y
        UNION ALL
        SELECT 3, count(*), max(v_most - ((v_most - y.x) & 4294967295))
        FROM (SELECT m.xmin::text::bigint AS x FROM relay_metadata m WHERE p_view = 'relay_metadata_latest') y) x;
    IF NOT v_new AND split_part(p_since, ' ', 2) = v_rows THEN RETURN NULL; END IF;
    -- This may be the old mark again, while an old transaction is open.
    RETURN pg_snapshot_xmin(pg_current_snapshot())::text || ' ' || v_rows;
END $$;
COMMENT ON FUNCTION view_watermark IS 'Of a materialized view: null if nothing under it moved since p_since, the mark of its latest refresh, else the mark of now. It reads the small tables under the view for rows of transactions that were not over at that mark.';

CREATE OR REPLACE FUNCTION view_refresh(p_view text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    began timestamptz := clock_timestamp();
    v_made text := CASE p_view WHEN 'relay_stats' THEN 'relay_rtt_recent' ELSE p_view END;
    v_was text;
    v_mark text;
    v_left bigint := 1;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relname = p_view AND c.relkind IN ('m', 'v')
                   AND EXISTS (SELECT FROM pg_proc p WHERE p.pronamespace = c.relnamespace AND p.proname = p_view || '_refresh')) THEN
        RAISE EXCEPTION 'there is no view % to refresh', p_view USING ERRCODE = 'undefined_table';
    END IF;
    -- Never two at once: a second caller is told so instead of queueing up behind the first.
    IF NOT pg_try_advisory_xact_lock(7302) THEN
        RAISE EXCEPTION 'another refresh is running' USING ERRCODE = 'lock_not_available';
    END IF;
    IF EXISTS (SELECT FROM pg_matviews m WHERE m.schemaname = 'public' AND m.matviewname = v_made) THEN
        SELECT s.watermark INTO v_was FROM view_state s WHERE s.view_name = p_view;
        v_mark := view_watermark(v_made, v_was);
        IF v_mark IS NULL THEN
            v_mark := v_was;
        ELSE
            EXECUTE format('REFRESH MATERIALIZED VIEW CONCURRENTLY public.%I', v_made);
        END IF;
    END IF;
    IF v_made <> p_view OR v_mark IS NULL THEN
        -- Over rollups: what the log holds is counted. The refresh job does that before, in small transactions.
        WHILE v_left > 0 LOOP
            SELECT r.backlog INTO v_left FROM rollup_refresh() r;
        END LOOP;
    END IF;
    INSERT INTO view_state (view_name, refreshed_at, duration_ms, watermark)
    VALUES (p_view, clock_timestamp(), (extract(epoch FROM clock_timestamp() - began) * 1000)::bigint, v_mark)
    ON CONFLICT (view_name) DO UPDATE SET refreshed_at = excluded.refreshed_at, duration_ms = excluded.duration_ms, watermark = excluded.watermark;
END $$;
COMMENT ON FUNCTION view_refresh IS 'Makes one view fresh without blocking readers and notes when: counts what the log holds, or refreshes what is materialized if something under it moved. Raises lock_not_available while another refresh runs.';
