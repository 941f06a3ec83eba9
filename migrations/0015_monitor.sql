-- The judgement over all vantages, its history and alerts, and uptime by hour and day.

ALTER TABLE relay_state ADD COLUMN stands_until bigint;
UPDATE relay_state SET stands_until = checked_at + CASE state WHEN 'down' THEN 259200 ELSE 10800 END;
ALTER TABLE relay_state ALTER COLUMN stands_until SET NOT NULL;
COMMENT ON COLUMN relay_state.stands_until IS 'Until when this opinion counts in the overall state, Unix seconds; not ahead when our own network was in doubt.';
-- Rewritten with every look, and no index is on what changes: room in the page keeps that cheap.
ALTER TABLE relay_state SET (fillfactor = 70);
ALTER TABLE relay_check_latest SET (fillfactor = 70);
COMMENT ON COLUMN relay_check.metadata_id IS 'SHA-256 of the document this check saw, where it is another one than the check before saw; relay_check_latest has the one in force.';

CREATE TABLE relay_overall (
    relay_id integer PRIMARY KEY,
    state    text    NOT NULL CHECK (state IN ('alive', 'suspect', 'down')),
    reason   text    NOT NULL,
    since_at bigint  NOT NULL,
    settled  text    CHECK (settled IN ('alive', 'down'))
);
COMMENT ON TABLE  relay_overall IS 'Liveness of a relay over all vantages, as of the latest look; rewritten only when it changes. Read it through relay_liveness.';
COMMENT ON COLUMN relay_overall.relay_id IS 'relay.id';
COMMENT ON COLUMN relay_overall.state IS 'alive: a standing opinion says so; down: all standing ones do, and enough of them; else suspect.';
COMMENT ON COLUMN relay_overall.reason IS 'Why (closed set of reasons); none when there is nothing to explain.';
COMMENT ON COLUMN relay_overall.since_at IS 'When this state began, Unix seconds.';
COMMENT ON COLUMN relay_overall.settled IS 'The latest state that was no doubt: alive or down.';

CREATE TABLE relay_alert (
    id         bigint   GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    relay_id   integer  NOT NULL,
    vantage_id smallint,
    at         bigint   NOT NULL,
    before     text     CHECK (before IN ('alive', 'suspect', 'down')),
    after      text     NOT NULL CHECK (after IN ('alive', 'suspect', 'down')),
    reason     text     NOT NULL,
    settles    boolean  NOT NULL,
    delivery   text     NOT NULL DEFAULT 'none' CHECK (delivery IN ('none', 'pending', 'sent', 'skipped', 'given_up')),
    due_at     timestamptz CHECK ((delivery = 'pending') = (due_at IS NOT NULL)),
    tries      integer  NOT NULL DEFAULT 0,
    answer     text
);
CREATE INDEX relay_alert_relay ON relay_alert (relay_id, at);
CREATE INDEX relay_alert_at ON relay_alert (at);
CREATE INDEX relay_alert_pending ON relay_alert (id) WHERE due_at IS NOT NULL;
COMMENT ON TABLE  relay_alert IS 'Every change of the overall liveness of a relay, written with the look that made it; and its way to the webhook, if there is one.';
COMMENT ON COLUMN relay_alert.id IS 'Serial; receivers tell repetitions by it.';
COMMENT ON COLUMN relay_alert.relay_id IS 'relay.id';
COMMENT ON COLUMN relay_alert.vantage_id IS 'vantage.id whose look decided; null for states that were there before changes were kept.';
COMMENT ON COLUMN relay_alert.at IS 'When, Unix seconds.';
COMMENT ON COLUMN relay_alert.before IS 'State before; null when this is the first.';
COMMENT ON COLUMN relay_alert.after IS 'State since.';
COMMENT ON COLUMN relay_alert.reason IS 'Why (closed set of reasons).';
COMMENT ON COLUMN relay_alert.settles IS 'Whether it went from alive to down or back, doubts in between left out; also the first such state.';
COMMENT ON COLUMN relay_alert.delivery IS 'none: nobody was to be told; pending; sent; skipped: of a state nobody asked for; given_up: too old.';
COMMENT ON COLUMN relay_alert.due_at IS 'When delivery is tried next; ahead after a failure.';
COMMENT ON COLUMN relay_alert.tries IS 'Deliveries that failed.';
COMMENT ON COLUMN relay_alert.answer IS 'What the webhook answered last.';

-- What is known so far: alive if any vantage says so, as the statistics have counted until now.
INSERT INTO relay_overall (relay_id, state, reason, since_at, settled)
SELECT DISTINCT ON (s.relay_id) s.relay_id, s.state, s.reason, s.since_at, nullif(s.state, 'suspect') FROM relay_state s
ORDER BY s.relay_id, CASE s.state WHEN 'alive' THEN 0 WHEN 'suspect' THEN 1 ELSE 2 END, s.checked_at DESC;
INSERT INTO relay_alert (relay_id, at, after, reason, settles)
SELECT o.relay_id, o.since_at, o.state, o.reason, o.state <> 'suspect' FROM relay_overall o ORDER BY o.relay_id;

-- Uptime. A histogram is a run of byte pairs (bucket, count): adding is appending, so a check costs two bytes.

CREATE FUNCTION ms_bucket(p_ms integer) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN p_ms <= 1 THEN 0 ELSE floor(ln(p_ms::double precision) / ln(2::double precision) * 8 + 1e-9)::integer END;
COMMENT ON FUNCTION ms_bucket IS 'The bucket of a time in milliseconds: eight to a doubling, 0 to 248.';

CREATE FUNCTION bucket_ms(p_bucket integer) RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN round(power(2::double precision, (p_bucket + 0.5) / 8))::integer;
COMMENT ON FUNCTION bucket_ms IS 'The time a bucket stands for, its geometric middle: within 4.5 % (and a millisecond) of what was measured.';

CREATE FUNCTION histogram_of(p_ms integer) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN p_ms IS NULL THEN ''::bytea ELSE substring(int4send(ms_bucket(p_ms) * 256 + 1) FROM 3) END;
COMMENT ON FUNCTION histogram_of IS 'The histogram of one time, or an empty one of none. Histograms add up by appending.';

CREATE FUNCTION histogram_pack(p_histogram bytea) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT coalesce(string_agg(substring(int4send(c.bucket * 256 + least(255, c.n - 255 * k)) FROM 3), ''::bytea ORDER BY c.bucket, k), ''::bytea)
    FROM (SELECT get_byte(p_histogram, 2 * i) AS bucket, sum(get_byte(p_histogram, 2 * i + 1))::integer AS n
          FROM generate_series(0, length(p_histogram) / 2 - 1) i GROUP BY 1) c
    CROSS JOIN LATERAL generate_series(0, (c.n - 1) / 255) k
$$;
COMMENT ON FUNCTION histogram_pack IS 'The same histogram in as few bytes as it takes, in order of its buckets.';

CREATE FUNCTION histogram_percentiles(p_histogram bytea) RETURNS integer[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    -- The nearest rank; a percentile that fewer measurements than this could bear is not stated.
    SELECT ARRAY[coalesce(max(t.total), 0)::integer,
                 CASE WHEN max(t.total) >= 10 THEN bucket_ms(min(t.bucket) FILTER (WHERE t.upto >= ceil(t.total * 0.50))) END,
                 CASE WHEN max(t.total) >= 20 THEN bucket_ms(min(t.bucket) FILTER (WHERE t.upto >= ceil(t.total * 0.95))) END,
                 CASE WHEN max(t.total) >= 100 THEN bucket_ms(min(t.bucket) FILTER (WHERE t.upto >= ceil(t.total * 0.99))) END]
    FROM (SELECT c.bucket, sum(c.n) OVER (ORDER BY c.bucket) AS upto, sum(c.n) OVER () AS total
          FROM (SELECT get_byte(p_histogram, 2 * i) AS bucket, sum(get_byte(p_histogram, 2 * i + 1)) AS n
                FROM generate_series(0, length(p_histogram) / 2 - 1) i GROUP BY 1) c) t
$$;
COMMENT ON FUNCTION histogram_percentiles IS 'How many measurements, then p50, p95 and p99 in milliseconds; null where fewer than 10, 20 or 100 say too little.';

CREATE TABLE relay_uptime (
    relay_id   integer  NOT NULL,
    vantage_id smallint NOT NULL,
    at         bigint   NOT NULL,
    checks     smallint NOT NULL,
    up         smallint NOT NULL,
    refused    smallint NOT NULL,
    open_hist  bytea    NOT NULL,
    read_hist  bytea    NOT NULL,
    write_hist bytea    NOT NULL,
    PRIMARY KEY (relay_id, vantage_id, at)
) PARTITION BY RANGE (at);
CREATE TABLE relay_uptime_default PARTITION OF relay_uptime DEFAULT;
COMMENT ON TABLE  relay_uptime IS 'Looks per relay, vantage and hour, partitioned by day; a day that is over long enough becomes rows of relay_uptime_day.';
COMMENT ON COLUMN relay_uptime.relay_id IS 'relay.id';
COMMENT ON COLUMN relay_uptime.vantage_id IS 'vantage.id';
COMMENT ON COLUMN relay_uptime.at IS 'First second of the hour, Unix seconds.';
COMMENT ON COLUMN relay_uptime.checks IS 'Looks that say something about the relay: not those that failed while our own network was in doubt.';
COMMENT ON COLUMN relay_uptime.up IS 'Of these, how many found it alive.';
COMMENT ON COLUMN relay_uptime.refused IS 'Of those, how many were refused to read.';
COMMENT ON COLUMN relay_uptime.open_hist IS 'Histogram of the milliseconds until open: byte pairs of bucket (ms_bucket) and count.';
COMMENT ON COLUMN relay_uptime.read_hist IS 'Histogram of the milliseconds from REQ to EOSE.';
COMMENT ON COLUMN relay_uptime.write_hist IS 'Histogram of the milliseconds from EVENT to OK.';

CREATE TABLE relay_uptime_day (
    relay_id   integer  NOT NULL,
    vantage_id smallint NOT NULL,
    at         bigint   NOT NULL,
    checks     integer  NOT NULL,
    up         integer  NOT NULL,
    refused    integer  NOT NULL,
    open_hist  bytea    NOT NULL,
    read_hist  bytea    NOT NULL,
    write_hist bytea    NOT NULL,
    PRIMARY KEY (relay_id, vantage_id, at)
);
CREATE INDEX relay_uptime_day_at ON relay_uptime_day USING brin (at);
COMMENT ON TABLE  relay_uptime_day IS 'Looks per relay, vantage and UTC day, of days whose hours are gone.';
COMMENT ON COLUMN relay_uptime_day.relay_id IS 'relay.id';
COMMENT ON COLUMN relay_uptime_day.vantage_id IS 'vantage.id';
COMMENT ON COLUMN relay_uptime_day.at IS 'First second of the day, Unix seconds.';
COMMENT ON COLUMN relay_uptime_day.checks IS 'Looks that say something about the relay.';
COMMENT ON COLUMN relay_uptime_day.up IS 'Of these, how many found it alive.';
COMMENT ON COLUMN relay_uptime_day.refused IS 'Of those, how many were refused to read.';
COMMENT ON COLUMN relay_uptime_day.open_hist IS 'Histogram of the milliseconds until open, packed.';
COMMENT ON COLUMN relay_uptime_day.read_hist IS 'Histogram of the milliseconds from REQ to EOSE, packed.';
COMMENT ON COLUMN relay_uptime_day.write_hist IS 'Histogram of the milliseconds from EVENT to OK, packed.';

CREATE FUNCTION uptime_rollup(p_keep_days integer, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET lock_timeout = '1s'
AS $$
DECLARE
    v_until bigint := extract(epoch FROM date_trunc('day', p_now AT TIME ZONE 'UTC') AT TIME ZONE 'UTC')::bigint - p_keep_days * 86400::bigint;
    v_part text;
BEGIN
    IF p_keep_days < 1 THEN
        RAISE EXCEPTION 'at least one day is kept' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT pg_try_advisory_xact_lock(7303) THEN RETURN 0; END IF;
    SELECT c.relname INTO v_part FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'public.relay_uptime'::regclass AND c.relname ~ '^relay_uptime_[0-9]{8}$'
      AND extract(epoch FROM to_date(right(c.relname, 8), 'YYYYMMDD')) < v_until
    ORDER BY 1 LIMIT 1;
    -- Late rows of a day without partition are in the default one.
    IF v_part IS NULL AND EXISTS (SELECT FROM relay_uptime_default u WHERE u.at < v_until) THEN
        v_part := 'relay_uptime_default';
    END IF;
    IF v_part IS NULL THEN RETURN 0; END IF;
    -- In one transaction: a look is in the hours or in the days, never in both.
    EXECUTE format('LOCK TABLE public.%I IN ACCESS EXCLUSIVE MODE', v_part);
    EXECUTE format($f$
        INSERT INTO relay_uptime_day AS d (relay_id, vantage_id, at, checks, up, refused, open_hist, read_hist, write_hist)
        SELECT u.relay_id, u.vantage_id, u.at - u.at %% 86400, sum(u.checks), sum(u.up), sum(u.refused),
               histogram_pack(string_agg(u.open_hist, ''::bytea)), histogram_pack(string_agg(u.read_hist, ''::bytea)),
               histogram_pack(string_agg(u.write_hist, ''::bytea))
        FROM public.%I u WHERE u.at < $1 GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        ON CONFLICT (relay_id, vantage_id, at) DO UPDATE
            SET checks = d.checks + excluded.checks, up = d.up + excluded.up, refused = d.refused + excluded.refused,
                open_hist = histogram_pack(d.open_hist || excluded.open_hist), read_hist = histogram_pack(d.read_hist || excluded.read_hist),
                write_hist = histogram_pack(d.write_hist || excluded.write_hist) $f$, v_part) USING v_until;
    IF v_part = 'relay_uptime_default' THEN
        DELETE FROM relay_uptime_default u WHERE u.at < v_until;
    ELSE
        EXECUTE format('DROP TABLE public.%I', v_part);
    END IF;
    RETURN 1;
END $$;
COMMENT ON FUNCTION uptime_rollup IS 'Turns the hours of the oldest day that is over for p_keep_days into one row per relay and vantage, and drops them; 1 if there was such a day. Call until it returns 0.';

CREATE FUNCTION uptime_retire(p_keep_days integer, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE n integer;
BEGIN
    DELETE FROM relay_uptime_day d WHERE d.ctid = ANY (ARRAY(
        SELECT x.ctid FROM relay_uptime_day x WHERE x.at < extract(epoch FROM p_now)::bigint - p_keep_days * 86400::bigint LIMIT 10000));
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION uptime_retire IS 'Deletes at most 10,000 daily rows older than p_keep_days; returns how many.';

CREATE VIEW relay_liveness AS
SELECT r.url AS relay_url, r.network,
       CASE WHEN o.state IS NULL THEN 'unchecked' WHEN o.state = 'alive' AND s.alive = 0 THEN 'suspect' ELSE o.state END AS state,
       CASE WHEN o.state = 'alive' AND s.alive = 0 THEN 'stale' ELSE coalesce(o.reason, 'none') END AS reason,
       o.since_at, s.checked_at, s.alive_at,
       coalesce(s.alive, 0) AS vantages_alive, coalesce(s.suspect, 0) AS vantages_suspect, coalesce(s.down, 0) AS vantages_down
FROM public.relay r
LEFT JOIN public.relay_overall o ON o.relay_id = r.id
LEFT JOIN LATERAL (
    SELECT max(x.checked_at) AS checked_at, max(x.alive_at) AS alive_at,
           count(*) FILTER (WHERE x.state = 'alive' AND x.stands_until >= extract(epoch FROM now())) AS alive,
           count(*) FILTER (WHERE x.state = 'suspect' AND x.stands_until >= extract(epoch FROM now())) AS suspect,
           count(*) FILTER (WHERE x.state = 'down' AND x.stands_until >= extract(epoch FROM now())) AS down
    FROM public.relay_state x WHERE x.relay_id = r.id) s ON true;
COMMENT ON VIEW relay_liveness IS 'Each relay over all vantages: alive if a standing opinion says so, down if enough do and none says otherwise, else suspect; unchecked before the first look. Reason stale: nobody has looked since its last opinion ran out. The counts are of standing opinions.';

CREATE VIEW relay_uptime_daily AS
SELECT d.relay_id, d.vantage_id, d.at, d.checks, d.up, d.refused, d.open_hist, d.read_hist, d.write_hist FROM public.relay_uptime_day d
UNION ALL
SELECT u.relay_id, u.vantage_id, u.at - u.at % 86400, sum(u.checks)::integer, sum(u.up)::integer, sum(u.refused)::integer,
       string_agg(u.open_hist, ''::bytea), string_agg(u.read_hist, ''::bytea), string_agg(u.write_hist, ''::bytea)
FROM public.relay_uptime u GROUP BY u.relay_id, u.vantage_id, u.at - u.at % 86400;
COMMENT ON VIEW relay_uptime_daily IS 'Looks per relay, vantage and UTC day, whether its hours are still there or not. Add up what it says of one day: late looks may be a row of their own.';

CREATE VIEW relay_uptime_30d AS
SELECT r.url AS relay_url, v.name AS vantage, u.checks, u.up, u.refused,
       CASE WHEN u.checks >= 10 THEN round(100.0 * u.up / u.checks, 3) END AS availability_pct,
       -- Wilson's lower bound: what the share is at least, with 97.5 % confidence.
       CASE WHEN u.checks >= 10 THEN round((100 * (u.up + 1.9208 - 1.96 * sqrt(u.up::numeric * (u.checks - u.up) / u.checks + 0.9604)) / (u.checks + 3.8416))::numeric, 3)
       END AS availability_low_pct,
       o.p[1] AS open_n, o.p[2] AS open_p50_ms, o.p[3] AS open_p95_ms, o.p[4] AS open_p99_ms,
       e.p[1] AS read_n, e.p[2] AS read_p50_ms, e.p[3] AS read_p95_ms, e.p[4] AS read_p99_ms,
       w.p[1] AS write_n, w.p[2] AS write_p50_ms, w.p[3] AS write_p95_ms, w.p[4] AS write_p99_ms
FROM public.relay r
CROSS JOIN LATERAL (
    SELECT d.vantage_id, sum(d.checks) AS checks, sum(d.up) AS up, sum(d.refused) AS refused,
           string_agg(d.open_hist, ''::bytea) AS open_hist, string_agg(d.read_hist, ''::bytea) AS read_hist, string_agg(d.write_hist, ''::bytea) AS write_hist
    FROM public.relay_uptime_daily d
    WHERE d.relay_id = r.id AND d.at > extract(epoch FROM now()) - 30 * 86400
    GROUP BY d.vantage_id) u
JOIN public.vantage v ON v.id = u.vantage_id
CROSS JOIN LATERAL (SELECT public.histogram_percentiles(u.open_hist) AS p) o
CROSS JOIN LATERAL (SELECT public.histogram_percentiles(u.read_hist) AS p) e
CROSS JOIN LATERAL (SELECT public.histogram_percentiles(u.write_hist) AS p) w;
COMMENT ON VIEW relay_uptime_30d IS 'Per relay and vantage, the last 30 UTC days: looks, share that found it alive, percentiles of its times (within 4.5 %). Null: too few for a figure; the *_n and checks say how many there are.';

CREATE VIEW relay_reliability_30d AS
SELECT r.url AS relay_url, t.observed_s, t.down_s,
       CASE WHEN t.observed_s >= 86400 THEN round(100.0 * (t.observed_s - t.down_s) / t.observed_s, 3) END AS availability_pct,
       t.failures, t.repairs, t.flaps, (t.observed_s - t.down_s) / nullif(t.failures, 0) AS mtbf_s, t.repair_s / nullif(t.repairs, 0) AS mttr_s
FROM public.relay r
CROSS JOIN LATERAL (
    SELECT coalesce(max(p.now) - greatest(min(p.at), max(p.since)), 0) AS observed_s,
           coalesce(sum(greatest(coalesce(p.ended_at, p.now) - greatest(p.at, p.since), 0)) FILTER (WHERE p.after = 'down'), 0)::bigint AS down_s,
           count(*) FILTER (WHERE p.after = 'down' AND p.began_at IS NOT NULL AND p.at >= p.since) AS failures,
           count(*) FILTER (WHERE p.after = 'alive' AND p.began_at IS NOT NULL AND p.at >= p.since) AS repairs,
           count(*) FILTER (WHERE p.began_at IS NOT NULL AND p.at >= p.since) AS flaps,
           coalesce(sum(p.at - p.began_at) FILTER (WHERE p.after = 'alive' AND p.at >= p.since), 0)::bigint AS repair_s
    FROM (SELECT a.at, a.after, lag(a.at) OVER w AS began_at, lead(a.at) OVER w AS ended_at, n.now, n.now - 30 * 86400 AS since
          FROM public.relay_alert a CROSS JOIN (SELECT extract(epoch FROM now())::bigint AS now) n
          WHERE a.relay_id = r.id AND a.settles WINDOW w AS (ORDER BY a.at, a.id)) p) t;
COMMENT ON VIEW relay_reliability_30d IS 'Per relay over all vantages, the last 30 days, from the changes between alive and down: seconds observed and down, failures, repairs, changes (flaps), mean time between failures (observed and not down, per failure) and to repair. Null: no failure, no repair, or less than a day observed.';

-- Functions of before whose results or arguments grow. Workers of the version before still find them.

DROP FUNCTION relay_get(text[], text);
CREATE FUNCTION relay_get(p_urls text[], p_vantage text)
RETURNS TABLE (o integer, relay_id integer, network text, state text, reason text, since_at bigint, failures integer, successes integer, alive_at bigint,
               checked_at bigint, overall text, overall_since_at bigint,
               other_states text[], other_reasons text[], other_stands bigint[], others_checked_at bigint, rivals boolean)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
BEGIN
    RETURN QUERY
        SELECT u.o::integer, r.id, r.network, s.state, s.reason, s.since_at, coalesce(s.failures, 0), coalesce(s.successes, 0), s.alive_at,
               s.checked_at, a.state, a.since_at, x.states, x.reasons, x.stands, x.checked_at,
               -- Who else could look is asked only after a look from here that failed.
               CASE WHEN s.successes = 0 THEN EXISTS (
                   SELECT FROM apalis.workers w
                   WHERE w.lease_until > now() AND NOT w.draining AND w.vantage <> p_vantage AND 'monitor.' || r.network = ANY (w.queues)
                     AND NOT EXISTS (SELECT FROM breaker b WHERE b.network = r.network AND b.vantage = w.vantage AND b.until_at > now()))
               ELSE false END
        FROM unnest(p_urls) WITH ORDINALITY u(url, o)
        JOIN relay r ON r.url = u.url
        LEFT JOIN vantage v ON v.name = p_vantage
        LEFT JOIN relay_state s ON s.relay_id = r.id AND s.vantage_id = v.id
        LEFT JOIN relay_overall a ON a.relay_id = r.id
        LEFT JOIN LATERAL (
            SELECT array_agg(y.state) AS states, array_agg(y.reason) AS reasons, array_agg(y.stands_until) AS stands, max(y.checked_at) AS checked_at
            FROM relay_state y WHERE y.relay_id = r.id AND y.vantage_id IS DISTINCT FROM v.id) x ON true
        WHERE url_excluded(u.url) IS NULL
        ORDER BY u.o;
END $$;
COMMENT ON FUNCTION relay_get IS 'Relays by URL with their liveness from one vantage, what the others say (parallel arrays, null when nobody else looked), and over all; absent and excluded ones are absent. rivals: after a failed look from here, whether a live worker elsewhere serves its network.';

DROP FUNCTION monitor_finish(text[], text[], integer[], text[], text, text[], text[], integer[], integer[], boolean[], bigint[], double precision[], integer[], text[],
                             integer[], text[], text[], text[], integer[], integer[], integer[], bytea[], text[], text[]);
CREATE FUNCTION monitor_finish(
    p_jobs text[], p_workers text[], p_attempts integer[], p_urls text[], p_vantage text,
    p_states text[], p_reasons text[], p_failures integer[], p_successes integer[], p_alive boolean[], p_checked_ats bigint[],
    p_next_s double precision[], p_slacks integer[], p_whys text[],
    c_jobs integer[], c_kinds text[], c_outcomes text[], c_reasons text[], c_opens integer[], c_reads integer[], c_writes integer[],
    c_ids bytea[], c_types text[], c_data text[],
    p_stands integer[] DEFAULT NULL, p_overalls text[] DEFAULT NULL, p_overall_reasons text[] DEFAULT NULL, p_counted boolean[] DEFAULT NULL)
RETURNS SETOF integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
DECLARE
    v_held integer[];
    v_vantage smallint;
    v_relays integer[];
    v_new integer[];
    v_told integer;
BEGIN
    v_held := ARRAY(SELECT job_fence(p_jobs, p_workers, p_attempts));
    SELECT v.id INTO v_vantage FROM vantage v WHERE v.name = p_vantage;
    IF v_vantage IS NULL THEN
        INSERT INTO vantage (name) VALUES (p_vantage) ON CONFLICT (name) DO NOTHING;
        SELECT v.id INTO v_vantage FROM vantage v WHERE v.name = p_vantage;
    END IF;
    v_relays := ARRAY(SELECT r.id FROM unnest(p_urls) WITH ORDINALITY u(url, o) LEFT JOIN relay r ON r.url = u.url ORDER BY u.o);

    INSERT INTO relay_state AS s (relay_id, vantage_id, state, reason, since_at, checked_at, alive_at, failures, successes, stands_until)
    SELECT v_relays[h], v_vantage, p_states[h], p_reasons[h], p_checked_ats[h], p_checked_ats[h],
           CASE WHEN p_alive[h] THEN p_checked_ats[h] END, p_failures[h], p_successes[h], p_checked_ats[h] + coalesce(p_stands[h], 10800)
    FROM unnest(v_held) h WHERE v_relays[h] IS NOT NULL ORDER BY v_relays[h]
    ON CONFLICT (relay_id, vantage_id) DO UPDATE
        SET state = excluded.state, reason = excluded.reason, checked_at = excluded.checked_at,
            since_at = CASE WHEN s.state = excluded.state THEN s.since_at ELSE excluded.since_at END,
            alive_at = coalesce(excluded.alive_at, s.alive_at),
            failures = excluded.failures, successes = excluded.successes, stands_until = excluded.stands_until;

    -- Documents other than those this vantage saw last: what is unchanged is not looked up anywhere else, and a relay
    -- that tells two vantages different things does not change with every look.
    v_new := ARRAY(
        SELECT c.o FROM unnest(c_jobs, c_kinds, c_ids) WITH ORDINALITY c(job, kind, id, o)
        LEFT JOIN relay_check_latest l ON l.relay_id = v_relays[c.job] AND l.kind = c.kind AND l.vantage_id = v_vantage
        WHERE c.id IS NOT NULL AND c.job = ANY (v_held) AND c.id IS DISTINCT FROM l.metadata_id);
    IF cardinality(v_new) > 0 THEN
        PERFORM metadata_insert(array_agg(c_ids[n]), array_agg(c_types[n]), array_agg(c_data[n])) FROM unnest(v_new) n;
        PERFORM relay_metadata_insert(array_agg(v_relays[c_jobs[n]]), array_agg(c_types[n]), array_agg(p_checked_ats[c_jobs[n]]), array_agg(c_ids[n]))
        FROM unnest(v_new) n;
    END IF;

    INSERT INTO relay_check (checked_at, relay_id, vantage_id, kind, outcome, reason, open_ms, read_ms, write_ms, metadata_id)
    SELECT p_checked_ats[c.job], v_relays[c.job], v_vantage, c.kind, c.outcome, c.reason, c.open_ms, c.read_ms, c.write_ms,
           CASE WHEN c.o = ANY (v_new) THEN c.id END
    FROM unnest(c_jobs, c_kinds, c_outcomes, c_reasons, c_opens, c_reads, c_writes, c_ids) WITH ORDINALITY
         c(job, kind, outcome, reason, open_ms, read_ms, write_ms, id, o)
    WHERE c.job = ANY (v_held) AND v_relays[c.job] IS NOT NULL
    ORDER BY 2, 4
    ON CONFLICT DO NOTHING;
    INSERT INTO relay_check_latest AS l (relay_id, kind, vantage_id, checked_at, outcome, reason, open_ms, read_ms, write_ms, metadata_id, confirmed_at)
    SELECT v_relays[c.job], c.kind, v_vantage, p_checked_ats[c.job], c.outcome, c.reason, c.open_ms, c.read_ms, c.write_ms, c.id,
           CASE WHEN c.id IS NOT NULL THEN p_checked_ats[c.job] END
    FROM unnest(c_jobs, c_kinds, c_outcomes, c_reasons, c_opens, c_reads, c_writes, c_ids)
         c(job, kind, outcome, reason, open_ms, read_ms, write_ms, id)
    WHERE c.job = ANY (v_held) AND v_relays[c.job] IS NOT NULL
    ORDER BY 1, 2
    ON CONFLICT (relay_id, kind, vantage_id) DO UPDATE
        SET checked_at = excluded.checked_at, outcome = excluded.outcome, reason = excluded.reason, open_ms = excluded.open_ms,
            read_ms = excluded.read_ms, write_ms = excluded.write_ms,
            metadata_id = coalesce(excluded.metadata_id, l.metadata_id), confirmed_at = coalesce(excluded.confirmed_at, l.confirmed_at);

    -- A look that may have failed because of us says nothing about the relay's uptime.
    INSERT INTO relay_uptime AS u (relay_id, vantage_id, at, checks, up, refused, open_hist, read_hist, write_hist)
    SELECT v_relays[h], v_vantage, p_checked_ats[h] - p_checked_ats[h] % 3600, 1, p_alive[h]::integer,
           coalesce(p_alive[h] AND c.outcome = 'refused', false)::integer, histogram_of(c.open_ms), histogram_of(c.read_ms), histogram_of(c.write_ms)
    FROM unnest(v_held) h
    LEFT JOIN unnest(c_jobs, c_kinds, c_outcomes, c_opens, c_reads, c_writes) c(job, kind, outcome, open_ms, read_ms, write_ms) ON c.job = h AND c.kind = 'rtt'
    WHERE v_relays[h] IS NOT NULL AND coalesce(p_counted[h], p_alive[h] OR p_failures[h] > 0)
    ORDER BY 1
    ON CONFLICT (relay_id, vantage_id, at) DO UPDATE
        SET checks = u.checks + 1, up = u.up + excluded.up, refused = u.refused + excluded.refused,
            open_hist = u.open_hist || excluded.open_hist, read_hist = u.read_hist || excluded.read_hist, write_hist = u.write_hist || excluded.write_hist;

    WITH judged AS (
        SELECT v_relays[h] AS relay_id, p_overalls[h] AS state, p_overall_reasons[h] AS reason, p_checked_ats[h] AS at,
               o.state AS before, o.reason AS reason_before, o.settled
        FROM unnest(v_held) h LEFT JOIN relay_overall o ON o.relay_id = v_relays[h]
        WHERE v_relays[h] IS NOT NULL AND p_overalls[h] IS NOT NULL
    ), judgement AS (
        INSERT INTO relay_overall AS o (relay_id, state, reason, since_at, settled)
        SELECT j.relay_id, j.state, j.reason, j.at, nullif(j.state, 'suspect') FROM judged j
        WHERE (j.before, j.reason_before) IS DISTINCT FROM (j.state, j.reason) ORDER BY j.relay_id
        ON CONFLICT (relay_id) DO UPDATE
            SET state = excluded.state, reason = excluded.reason, settled = coalesce(excluded.settled, o.settled),
                since_at = CASE WHEN o.state = excluded.state THEN o.since_at ELSE excluded.since_at END
    ), alert AS (
        INSERT INTO relay_alert (relay_id, vantage_id, at, before, after, reason, settles, delivery, due_at)
        SELECT j.relay_id, v_vantage, j.at, j.before, j.state, j.reason, j.state <> 'suspect' AND j.settled IS DISTINCT FROM j.state,
               CASE WHEN t.wanted THEN 'pending' ELSE 'none' END, CASE WHEN t.wanted THEN now() END
        FROM judged j CROSS JOIN LATERAL (
            -- A first judgement is no change; and nobody is told where nobody listens.
            SELECT j.before IS NOT NULL AND EXISTS (SELECT FROM schedule s WHERE s.kind = 'monitor' AND s.target = 'alerts') AS wanted) t
        WHERE j.before IS DISTINCT FROM j.state ORDER BY j.relay_id
        RETURNING due_at
    )
    SELECT count(*) FILTER (WHERE a.due_at IS NOT NULL) INTO v_told FROM alert a;

    PERFORM FROM schedule s WHERE s.kind = 'monitor' AND s.target IN (SELECT p_urls[h] FROM unnest(v_held) h)
    ORDER BY s.target FOR UPDATE;
    UPDATE schedule s SET due_at = now() + make_interval(secs => p_next_s[h]), slack_s = p_slacks[h], why = p_whys[h]
    FROM unnest(v_held) h WHERE s.kind = 'monitor' AND s.target = p_urls[h];
    IF v_told > 0 THEN
        -- Last, since everybody meets in this row; and not at all when it is due anyhow.
        UPDATE schedule s SET due_at = now() WHERE s.kind = 'monitor' AND s.target = 'alerts' AND s.due_at > now();
    END IF;
    RETURN QUERY SELECT o FROM generate_series(1, cardinality(p_jobs)) o WHERE o <> ALL (v_held);
END $$;
COMMENT ON FUNCTION monitor_finish IS 'Results of monitor jobs: state from this vantage and over all, alerts where that changed, check series, uptime of the hour, documents where they changed, next due. c_* are the checks, c_jobs the 1-based job each belongs to. p_counted: whether the look says something about the relay. Returns the positions whose fence was lost; nothing was written for them.';

CREATE FUNCTION alert_take(p_limit integer, p_now timestamptz DEFAULT now())
RETURNS TABLE (id bigint, relay_url text, network text, vantage text, at bigint, before text, after text, reason text, tries integer)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    -- One that waits after a failure holds the others back: they go the same way.
    IF EXISTS (SELECT FROM relay_alert a WHERE a.due_at > p_now) THEN RETURN; END IF;
    RETURN QUERY
        SELECT a.id, r.url, r.network, v.name, a.at, a.before, a.after, a.reason, a.tries
        FROM relay_alert a LEFT JOIN relay r ON r.id = a.relay_id LEFT JOIN vantage v ON v.id = a.vantage_id
        WHERE a.due_at IS NOT NULL ORDER BY a.id LIMIT p_limit;
END $$;
COMMENT ON FUNCTION alert_take IS 'Alerts to be delivered, oldest first; none while one that failed waits for its next try.';

CREATE FUNCTION alert_settle(
    p_job text, p_worker text, p_attempt integer, p_ids bigint[], p_deliveries text[], p_delays_s double precision[], p_answers text[],
    p_next_s double precision, p_slack integer, p_why text)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt])) THEN RETURN false; END IF;
    PERFORM FROM relay_alert a WHERE a.id = ANY (p_ids) ORDER BY a.id FOR UPDATE;
    UPDATE relay_alert a
    SET delivery = u.delivery, answer = u.answer, tries = a.tries + (u.delivery = 'pending')::integer,
        due_at = CASE u.delivery WHEN 'pending' THEN now() + make_interval(secs => u.delay_s) END
    FROM unnest(p_ids, p_deliveries, p_delays_s, p_answers) u(id, delivery, delay_s, answer)
    WHERE a.id = u.id AND a.due_at IS NOT NULL;
    IF p_next_s IS NOT NULL THEN
        -- Again when the first is due; what was written meanwhile is due already.
        UPDATE schedule s SET due_at = coalesce((SELECT min(a.due_at) FROM relay_alert a WHERE a.due_at IS NOT NULL), now() + make_interval(secs => p_next_s)),
                              slack_s = p_slack, why = p_why
        WHERE s.kind = 'monitor' AND s.target = 'alerts';
    END IF;
    RETURN true;
END $$;
COMMENT ON FUNCTION alert_settle IS 'What became of deliveries: sent, skipped, given_up, or pending again after p_delays_s; and when the task is next due (null = unchanged, at the latest p_next_s when nothing waits). False when the fence was lost.';

CREATE FUNCTION alert_retire(p_keep_days integer, p_deliver boolean, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE n integer;
BEGIN
    IF NOT p_deliver THEN
        DELETE FROM schedule s WHERE s.kind = 'monitor' AND s.target = 'alerts';
        UPDATE relay_alert a SET delivery = 'given_up', due_at = NULL, answer = 'no webhook is configured any more' WHERE a.due_at IS NOT NULL;
    END IF;
    DELETE FROM relay_alert a WHERE a.id = ANY (ARRAY(
        SELECT x.id FROM relay_alert x
        WHERE x.at < extract(epoch FROM p_now)::bigint - p_keep_days * 86400::bigint
          -- The latest settled state of a relay is where its history begins.
          AND EXISTS (SELECT FROM relay_alert y WHERE y.relay_id = x.relay_id AND y.settles AND (y.at, y.id) > (x.at, x.id))
        ORDER BY x.at LIMIT 10000));
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION alert_retire IS 'Forgets at most 10,000 changes older than p_keep_days that a later one has overtaken; without delivery (p_deliver) also what waits for it, and its task. Returns how many were forgotten.';

CREATE OR REPLACE FUNCTION fleet_stats()
RETURNS TABLE (relays bigint, alive bigint, suspect bigint, down bigint, candidates bigint, events bigint, observations bigint, workers bigint, database_bytes bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    SELECT count(*), count(*) FILTER (WHERE l.state = 'alive'), count(*) FILTER (WHERE l.state = 'suspect'), count(*) FILTER (WHERE l.state = 'down')
    INTO relays, alive, suspect, down FROM relay_liveness l;
    SELECT count(*) INTO candidates FROM candidate c WHERE c.tombstoned_at IS NULL;
    -- Estimates kept by the server: exact counts would read the archive.
    SELECT coalesce(sum(st.n_live_tup) FILTER (WHERE i.inhparent = 'public.event'::regclass), 0),
           coalesce(sum(st.n_live_tup) FILTER (WHERE i.inhparent = 'public.event_relay'::regclass), 0)
    INTO events, observations
    FROM pg_inherits i JOIN pg_stat_user_tables st ON st.relid = i.inhrelid;
    SELECT count(*) INTO workers FROM apalis.workers w WHERE w.lease_until > now();
    database_bytes := pg_database_size(current_database());
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION fleet_stats IS 'The observatory in one row, for progress lines and gauges; states are those over all vantages. events and observations are the server''s running estimates.';

CREATE OR REPLACE FUNCTION partition_ensure(p_table text, p_from bigint, p_to bigint, p_suffix text)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET lock_timeout = '1s'
AS $$
DECLARE
    v_part text := p_table || '_' || p_suffix;
    v_column text := CASE p_table WHEN 'relay_check' THEN 'checked_at' WHEN 'relay_uptime' THEN 'at' ELSE 'event_key' END;
BEGIN
    IF p_table NOT IN ('event', 'event_relay', 'relay_check', 'relay_uptime') THEN
        RAISE EXCEPTION 'table % has no numeric partitions', p_table USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF to_regclass('public.' || quote_ident(v_part)) IS NOT NULL THEN RETURN false; END IF;
    IF NOT pg_try_advisory_xact_lock(7303) THEN RETURN false; END IF;
    EXECUTE format('CREATE TABLE public.%I (LIKE public.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', v_part, p_table);
    IF p_table = 'relay_uptime' THEN
        EXECUTE format('ALTER TABLE public.%I SET (fillfactor = 85)', v_part);
    END IF;
    -- Rows that arrived before their range was made move over, in the same transaction.
    EXECUTE format('LOCK TABLE public.%I IN ACCESS EXCLUSIVE MODE', p_table || '_default');
    EXECUTE format('WITH moved AS (DELETE FROM public.%I WHERE %I >= %s AND %I < %s RETURNING *) INSERT INTO public.%I SELECT * FROM moved',
                   p_table || '_default', v_column, p_from, v_column, p_to, v_part);
    EXECUTE format('ALTER TABLE public.%I ATTACH PARTITION public.%I FOR VALUES FROM (%s) TO (%s)', p_table, v_part, p_from, p_to);
    RETURN true;
END $$;
COMMENT ON FUNCTION partition_ensure IS 'Makes one range partition of event, event_relay (by event_key), relay_check or relay_uptime (by second) and moves what the default partition holds of it; false if it was there.';

CREATE OR REPLACE FUNCTION partition_maintain(p_since bigint, p_limit integer DEFAULT 10000, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET lock_timeout = '1s'
AS $$
DECLARE
    m timestamptz;
    d timestamptz;
    lo bigint;
    hi bigint;
    n integer := 0;
    v_part text;
BEGIN
    -- Months of the archive: from the first month wanted (never before Nostr) to two ahead.
    m := date_trunc('month', greatest(to_timestamp(p_since), TIMESTAMPTZ '2020-11-01 00:00:00+00') AT TIME ZONE 'UTC') AT TIME ZONE 'UTC';
    WHILE m < p_now + interval '2 months' AND n < p_limit LOOP
        lo := extract(epoch FROM m)::bigint;
        hi := extract(epoch FROM (m AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC')::bigint;
        n := n + partition_ensure('event', lo << 31, hi << 31, to_char(m AT TIME ZONE 'UTC', 'YYYYMM'))::integer;
        n := n + partition_ensure('event_relay', lo << 31, hi << 31, to_char(m AT TIME ZONE 'UTC', 'YYYYMM'))::integer;
        m := (m AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC';
    END LOOP;
    -- Days of the check series, of the hours and of the job history: yesterday, in case nobody maintained, and two ahead.
    FOR i IN -1 .. 2 LOOP
        EXIT WHEN n >= p_limit;
        d := (date_trunc('day', p_now AT TIME ZONE 'UTC') + make_interval(days => i)) AT TIME ZONE 'UTC';
        lo := extract(epoch FROM d)::bigint;
        n := n + partition_ensure('relay_check', lo, lo + 86400, to_char(d AT TIME ZONE 'UTC', 'YYYYMMDD'))::integer;
        n := n + partition_ensure('relay_uptime', lo, lo + 86400, to_char(d AT TIME ZONE 'UTC', 'YYYYMMDD'))::integer;
        v_part := 'job_history_' || to_char(d AT TIME ZONE 'UTC', 'YYYYMMDD');
        IF to_regclass('public.' || v_part) IS NULL AND pg_try_advisory_xact_lock(7303) THEN
            EXECUTE format('CREATE TABLE public.%I (LIKE public.job_history INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', v_part);
            LOCK TABLE job_history_default IN ACCESS EXCLUSIVE MODE;
            EXECUTE format('WITH moved AS (DELETE FROM job_history_default WHERE finished_at >= %L AND finished_at < %L RETURNING *) INSERT INTO public.%I SELECT * FROM moved',
                           d, d + interval '1 day', v_part);
            EXECUTE format('ALTER TABLE job_history ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)', v_part, d, d + interval '1 day');
            n := n + 1;
        END IF;
    END LOOP;
    RETURN n;
END $$;
COMMENT ON FUNCTION partition_maintain IS 'Makes at most p_limit partitions (or the few of one month or day): those of the coming days and months, and those back to p_since (Unix seconds); returns how many were made.';

-- What we say beside other monitors is what all our vantages say.
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
           -- They say nothing of what they do not find: a word older than three of their rounds says so.
           CASE WHEN m.created_at > extract(epoch FROM now()) - 3 * greatest(coalesce(a.frequency_s, 86400), 3600) THEN 'alive' ELSE 'absent' END AS their_state,
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
