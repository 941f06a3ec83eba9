-- Reconciliation (NIP-77): what we hold of a relay, which of its ids are archived, and what a comparison shows:
-- claimed observations, events a relay serves no more, ids it claims and does not hand out. And when which age of
-- a relay's timeline was looked at again.

CREATE TABLE event_gone (
    relay_id  integer NOT NULL,
    event_key bigint  NOT NULL,
    gone_at   bigint  NOT NULL,
    PRIMARY KEY (relay_id, event_key)
);
CREATE INDEX event_gone_event ON event_gone (event_key);
COMMENT ON TABLE  event_gone IS 'Events that were seen on a relay and that it had no more when its set was compared with ours. The observation stays.';
COMMENT ON COLUMN event_gone.relay_id IS 'relay.id';
COMMENT ON COLUMN event_gone.event_key IS 'event.event_key';
COMMENT ON COLUMN event_gone.gone_at IS 'When that was first noticed, Unix seconds.';

CREATE TABLE event_unserved (
    relay_id integer NOT NULL,
    event_id bytea   NOT NULL CHECK (octet_length(event_id) = 32),
    first_at bigint  NOT NULL,
    last_at  bigint  NOT NULL,
    tries    integer NOT NULL DEFAULT 1,
    PRIMARY KEY (relay_id, event_id)
);
COMMENT ON TABLE  event_unserved IS 'Ids that a relay lists as its own and does not hand out when asked twice.';
COMMENT ON COLUMN event_unserved.relay_id IS 'relay.id';
COMMENT ON COLUMN event_unserved.event_id IS 'The id; nothing else is known of it.';
COMMENT ON COLUMN event_unserved.first_at IS 'When it was first asked for in vain, Unix seconds.';
COMMENT ON COLUMN event_unserved.last_at IS 'When it last was, Unix seconds.';
COMMENT ON COLUMN event_unserved.tries IS 'Reconciliations in which it was.';

CREATE TABLE relay_revisit (
    relay_id  integer NOT NULL,
    age_s     bigint  NOT NULL CHECK (age_s > 0),
    until_at  bigint  NOT NULL,
    looked_at bigint  NOT NULL,
    seconds   bigint  NOT NULL DEFAULT 0,
    found     bigint  NOT NULL DEFAULT 0,
    PRIMARY KEY (relay_id, age_s)
);
COMMENT ON TABLE  relay_revisit IS 'How far a relay''s timeline was read again once it had a certain age, for late arrivals.';
COMMENT ON COLUMN relay_revisit.relay_id IS 'relay.id';
COMMENT ON COLUMN relay_revisit.age_s IS 'The age, seconds.';
COMMENT ON COLUMN relay_revisit.until_at IS 'Every second up to this one was read when it was at least so old, Unix seconds.';
COMMENT ON COLUMN relay_revisit.looked_at IS 'When that was last moved, Unix seconds.';
COMMENT ON COLUMN relay_revisit.seconds IS 'Seconds of the timeline read again at this age in all.';
COMMENT ON COLUMN relay_revisit.found IS 'Observations those readings added: what the first reading had missed, or came late.';

CREATE TABLE relay_sync (
    relay_id      integer PRIMARY KEY,
    neg_off_until bigint NOT NULL
);
COMMENT ON TABLE  relay_sync IS 'What syncing learnt of a relay that its capability record does not say.';
COMMENT ON COLUMN relay_sync.relay_id IS 'relay.id';
COMMENT ON COLUMN relay_sync.neg_off_until IS 'It did not reconcile when asked: not asked again before this, Unix seconds.';

CREATE FUNCTION relay_items(p_relay_id integer, p_since bigint, p_until bigint, p_limit integer)
RETURNS TABLE (created_at bigint, id bytea)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    lo bigint := greatest(least(p_since, 4294967295), 0) << 31;
    hi bigint := (greatest(least(p_until, 4294967295), 0) << 31) | 2147483647;
BEGIN
    RETURN QUERY
        SELECT e.created_at, e.id
        FROM (SELECT o.event_key FROM event_relay o
              WHERE o.relay_id = p_relay_id AND o.event_key BETWEEN lo AND hi
                AND NOT EXISTS (SELECT FROM event_gone g WHERE g.relay_id = p_relay_id AND g.event_key = o.event_key)
              ORDER BY o.event_key DESC LIMIT p_limit) k
        CROSS JOIN LATERAL (
            SELECT x.created_at, x.id FROM event x
            WHERE x.event_key = k.event_key AND x.event_key BETWEEN lo AND hi OFFSET 0) e
        WHERE e.created_at BETWEEN p_since AND p_until
        ORDER BY 1 DESC, 2;
END $$;
COMMENT ON FUNCTION relay_items IS 'Events seen on a relay in a stretch of created_at and not gone from it, newest first, at most p_limit.';

CREATE FUNCTION event_find(p_ids bytea[], p_since bigint, p_until bigint)
RETURNS TABLE (o integer, created_at bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    lo bigint := greatest(least(p_since, 4294967295), 0) << 31;
    hi bigint := (greatest(least(p_until, 4294967295), 0) << 31) | 2147483647;
BEGIN
    RETURN QUERY
        SELECT u.o::integer, e.created_at
        FROM unnest(p_ids) WITH ORDINALITY u(id, o)
        CROSS JOIN LATERAL (
            SELECT x.created_at FROM event x
            WHERE substring(x.id FROM 9 FOR 8) = substring(u.id FROM 9 FOR 8) AND x.id = u.id
              AND x.event_key BETWEEN lo AND hi OFFSET 0) e;
END $$;
COMMENT ON FUNCTION event_find IS 'Which of these ids are known within a stretch of created_at: 1-based position and time. Costs an index visit per month of the stretch.';

CREATE FUNCTION reconcile_store(
    p_job text, p_worker text, p_attempt integer, p_relay_id integer, p_at bigint,
    c_ids bytea[], c_keys bigint[], g_ids bytea[], g_keys bigint[], p_unserved bytea[],
    p_class text, v_sinces bigint[], v_untils bigint[], v_grades text[], v_reasons text[], v_observed_ats bigint[])
RETURNS TABLE (held boolean, new_observations integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE n integer := cardinality(c_ids);
BEGIN
    -- The gate that month_drop closes: here, before any lock on a table is held.
    PERFORM pg_advisory_xact_lock_shared(7310);
    held := EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt]));
    new_observations := 0;
    IF held THEN
        IF n > 0 THEN
            new_observations := event_relay_insert(c_ids, c_keys, array_fill(p_relay_id, ARRAY[n]),
                array_fill(p_at, ARRAY[n]), array_fill(1::smallint, ARRAY[n]));
            -- What was known when it was claimed may have been deleted since: then it is neither here nor covered.
            IF new_observations < n AND (SELECT count(DISTINCT r.o) FROM event_resolve(c_ids, c_keys) r) < n THEN
                RAISE EXCEPTION 'an event of this batch was deleted while it was claimed: it is asked for again' USING ERRCODE = 'serialization_failure';
            END IF;
            DELETE FROM event_gone g WHERE g.relay_id = p_relay_id
                AND g.event_key = ANY (ARRAY(SELECT k.event_key FROM event_resolve(c_ids, c_keys) k));
        END IF;
        INSERT INTO event_gone (relay_id, event_key, gone_at)
        SELECT p_relay_id, k.event_key, p_at FROM event_resolve(g_ids, g_keys) k ORDER BY 2
        ON CONFLICT DO NOTHING;
        INSERT INTO event_unserved AS u (relay_id, event_id, first_at, last_at)
        SELECT DISTINCT p_relay_id, x, p_at, p_at FROM unnest(p_unserved) x ORDER BY 2
        ON CONFLICT (relay_id, event_id) DO UPDATE SET last_at = excluded.last_at, tries = u.tries + 1;
        IF v_sinces IS NOT NULL THEN
            PERFORM coverage_put(p_relay_id, p_class, v_sinces, v_untils, v_grades, v_reasons, v_observed_ats);
        END IF;
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION reconcile_store IS 'What a reconciliation settled, in one fenced transaction: claimed observations (c_*), events gone from the relay (g_*), ids it does not serve, and the coverage it proves (null = unchanged).';

CREATE FUNCTION gone_clear(p_job text, p_worker text, p_attempt integer, p_relay_id integer, p_ids bytea[], p_keys bigint[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE n integer := 0;
BEGIN
    IF EXISTS (SELECT FROM event_gone g WHERE g.relay_id = p_relay_id)
       AND EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt])) THEN
        DELETE FROM event_gone g WHERE g.relay_id = p_relay_id
            AND g.event_key = ANY (ARRAY(SELECT k.event_key FROM event_resolve(p_ids, p_keys) k));
        GET DIAGNOSTICS n = ROW_COUNT;
    END IF;
    RETURN n;
END $$;
COMMENT ON FUNCTION gone_clear IS 'Events that a relay delivered are not gone from it; returns how many were thought to be.';

CREATE FUNCTION sync_facts(p_relay_id integer)
RETURNS TABLE (neg_off_until bigint, ages bigint[], untils bigint[], has_gone boolean)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    SELECT s.neg_off_until INTO neg_off_until FROM relay_sync s WHERE s.relay_id = p_relay_id;
    SELECT coalesce(array_agg(v.age_s ORDER BY v.age_s), '{}'), coalesce(array_agg(v.until_at ORDER BY v.age_s), '{}')
    INTO ages, untils FROM relay_revisit v WHERE v.relay_id = p_relay_id;
    has_gone := EXISTS (SELECT FROM event_gone g WHERE g.relay_id = p_relay_id);
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION sync_facts IS 'What a sync pass plans by besides coverage: until when not to reconcile, how far each age was read again, whether events are gone.';

CREATE FUNCTION sync_learn(
    p_job text, p_worker text, p_attempt integer, p_relay_id integer, p_at bigint, p_neg_off_until bigint,
    p_ages bigint[], p_untils bigint[], p_seconds bigint[], p_founds bigint[])
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt])) THEN RETURN false; END IF;
    IF p_neg_off_until IS NOT NULL THEN
        INSERT INTO relay_sync AS s (relay_id, neg_off_until) VALUES (p_relay_id, p_neg_off_until)
        ON CONFLICT (relay_id) DO UPDATE SET neg_off_until = excluded.neg_off_until;
    END IF;
    INSERT INTO relay_revisit AS v (relay_id, age_s, until_at, looked_at, seconds, found)
    SELECT p_relay_id, u.age, u.until, p_at, u.seconds, u.found
    FROM unnest(p_ages, p_untils, p_seconds, p_founds) u(age, until, seconds, found) ORDER BY u.age
    ON CONFLICT (relay_id, age_s) DO UPDATE
        SET until_at = greatest(v.until_at, excluded.until_at), looked_at = excluded.looked_at,
            seconds = v.seconds + excluded.seconds, found = v.found + excluded.found;
    RETURN true;
END $$;
COMMENT ON FUNCTION sync_learn IS 'Notes what a sync pass learnt: that the relay does not reconcile (null = nothing new), and how far each age was read again.';

CREATE VIEW event_presence AS
SELECT e.id AS event_id, r.url AS relay_url, e.created_at, o.seen_at,
       CASE WHEN o.evidence = 1 THEN 'claimed' ELSE 'delivered' END AS evidence, g.gone_at
FROM public.event_relay o
JOIN public.event e ON e.event_key = o.event_key
JOIN public.relay r ON r.id = o.relay_id
LEFT JOIN public.event_gone g ON g.relay_id = o.relay_id AND g.event_key = o.event_key;
COMMENT ON VIEW event_presence IS 'Which relays hold an event, on what evidence, and since when one holds it no more.';
COMMENT ON COLUMN event_presence.event_id IS 'event.id';
COMMENT ON COLUMN event_presence.relay_url IS 'relay.url';
COMMENT ON COLUMN event_presence.created_at IS 'event.created_at';
COMMENT ON COLUMN event_presence.seen_at IS 'When it was first seen there, Unix seconds.';
COMMENT ON COLUMN event_presence.evidence IS 'delivered to us, or claimed by the relay in a reconciliation.';
COMMENT ON COLUMN event_presence.gone_at IS 'When the relay was first found without it, Unix seconds; null while it has it.';

CREATE FUNCTION event_presence_of(p_id bytea)
RETURNS TABLE (relay_url text, created_at bigint, seen_at bigint, evidence text, gone_at bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET jit = off
AS $$
BEGIN
    RETURN QUERY
        SELECT r.url, e.created_at, o.seen_at, CASE WHEN o.evidence = 1 THEN 'claimed' ELSE 'delivered' END, g.gone_at
        FROM event e
        JOIN event_relay o ON o.event_key = e.event_key
        JOIN relay r ON r.id = o.relay_id
        LEFT JOIN event_gone g ON g.relay_id = o.relay_id AND g.event_key = o.event_key
        WHERE substring(e.id FROM 9 FOR 8) = substring(p_id FROM 9 FOR 8) AND e.id = p_id
        ORDER BY o.seen_at, r.url;
END $$;
COMMENT ON FUNCTION event_presence_of IS 'event_presence of one event, by index.';

CREATE VIEW relay_coverage_month AS
SELECT r.url AS relay_url, c.class, m.month::date AS month, c.grade,
       sum(least(c.until_at, m.hi) - greatest(c.since_at, m.lo) + 1)::bigint AS seconds,
       round(sum(least(c.until_at, m.hi) - greatest(c.since_at, m.lo) + 1)::numeric / (m.hi - m.lo + 1), 6) AS share
FROM public.coverage c
JOIN public.relay r ON r.id = c.relay_id
CROSS JOIN LATERAL (
    SELECT s AS month, extract(epoch FROM s)::bigint AS lo,
           least(extract(epoch FROM s + interval '1 month')::bigint - 1, extract(epoch FROM now())::bigint) AS hi
    -- Nothing on Nostr is older than November 2020; what is older counts into no month.
    FROM generate_series(
        date_trunc('month', to_timestamp(greatest(c.since_at, 1604188800)) AT TIME ZONE 'UTC'),
        to_timestamp(least(c.until_at, extract(epoch FROM now())::bigint)) AT TIME ZONE 'UTC', interval '1 month') s) m
WHERE c.until_at >= 1604188800
GROUP BY 1, 2, 3, 4, m.lo, m.hi;
COMMENT ON VIEW relay_coverage_month IS 'How much of each month of a relay''s timeline is known at which grade; the current month counts up to now.';
COMMENT ON COLUMN relay_coverage_month.relay_url IS 'relay.url';
COMMENT ON COLUMN relay_coverage_month.class IS 'Filter class.';
COMMENT ON COLUMN relay_coverage_month.month IS 'First day of the month, UTC.';
COMMENT ON COLUMN relay_coverage_month.grade IS 'Grade.';
COMMENT ON COLUMN relay_coverage_month.seconds IS 'Seconds of the month with that grade.';
COMMENT ON COLUMN relay_coverage_month.share IS 'Share of the month with that grade, 0 to 1.';

CREATE VIEW relay_coverage_share AS
SELECT r.url AS relay_url, c.class,
       round(coalesce(sum(least(c.until_at, n.now) - c.since_at + 1) FILTER (WHERE c.grade IN ('walked', 'finished', 'reconciled') AND c.since_at <= n.now), 0)::numeric
             / nullif(max(least(c.until_at, n.now)) FILTER (WHERE c.since_at <= n.now) - min(c.since_at) + 1, 0), 6) AS proved_share,
       min(c.since_at) AS since_at, max(least(c.until_at, n.now)) AS until_at,
       coalesce(sum(c.until_at - c.since_at + 1) FILTER (WHERE c.grade = 'partial'), 0)::bigint AS partial_seconds,
       min(c.observed_at) AS observed_at
FROM public.coverage c
JOIN public.relay r ON r.id = c.relay_id
CROSS JOIN (SELECT extract(epoch FROM now())::bigint AS now) n
GROUP BY r.url, c.class;
COMMENT ON VIEW relay_coverage_share IS 'What share of the stretch of a relay''s timeline that was ever asked for we hold at grade walked or better.';
COMMENT ON COLUMN relay_coverage_share.relay_url IS 'relay.url';
COMMENT ON COLUMN relay_coverage_share.class IS 'Filter class.';
COMMENT ON COLUMN relay_coverage_share.proved_share IS 'Seconds proved over seconds of the stretch, 0 to 1.';
COMMENT ON COLUMN relay_coverage_share.since_at IS 'Where the stretch begins, Unix seconds.';
COMMENT ON COLUMN relay_coverage_share.until_at IS 'Where it ends, Unix seconds; never ahead of now.';
COMMENT ON COLUMN relay_coverage_share.partial_seconds IS 'Seconds known to be incomplete.';
COMMENT ON COLUMN relay_coverage_share.observed_at IS 'When the oldest part was last looked at, Unix seconds.';
