-- What is dated ahead of us breaks no view, and the names by which a dense second is split are drawn anew in each pass.

-- A gap left at a time that no calendar holds made every read of this view fail.
CREATE OR REPLACE VIEW relay_coverage_month AS
SELECT r.url AS relay_url, c.class, m.month::date AS month, c.grade,
       sum(least(c.until_at, m.hi) - greatest(c.since_at, m.lo) + 1)::bigint AS seconds,
       round(sum(least(c.until_at, m.hi) - greatest(c.since_at, m.lo) + 1)::numeric / (m.hi - m.lo + 1), 6) AS share
FROM public.coverage c
JOIN public.relay r ON r.id = c.relay_id
CROSS JOIN LATERAL (
    SELECT s AS month, extract(epoch FROM s)::bigint AS lo,
           least(extract(epoch FROM s + interval '1 month')::bigint - 1, extract(epoch FROM now())::bigint) AS hi
    -- Nothing on Nostr is older than November 2020; what is older counts into no month, nor does what is ahead of now.
    FROM generate_series(
        date_trunc('month', to_timestamp(greatest(least(c.since_at, extract(epoch FROM now())::bigint), 1604188800)) AT TIME ZONE 'UTC'),
        to_timestamp(greatest(least(c.until_at, extract(epoch FROM now())::bigint), 0)) AT TIME ZONE 'UTC', interval '1 month') s) m
WHERE c.until_at >= 1604188800 AND c.since_at <= extract(epoch FROM now())::bigint
GROUP BY 1, 2, 3, 4, m.lo, m.hi;

ALTER TABLE relay_sync ADD COLUMN dense_round integer NOT NULL DEFAULT 0;
COMMENT ON COLUMN relay_sync.dense_round IS 'Passes that split dense seconds of it: by this the kinds and authors are drawn by which they are asked for.';

CREATE FUNCTION dense_round(p_job text, p_worker text, p_attempt integer, p_relay_id integer) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_round integer;
BEGIN
    IF NOT EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt])) THEN RETURN NULL; END IF;
    INSERT INTO relay_sync AS s (relay_id, dense_round) VALUES (p_relay_id, 1)
    ON CONFLICT (relay_id) DO UPDATE SET dense_round = (s.dense_round + 1) % 2147483647
    RETURNING s.dense_round INTO v_round;
    RETURN v_round;
END $$;
COMMENT ON FUNCTION dense_round IS 'Begins another pass that splits dense seconds of a relay, and numbers it. Null when the fence was lost, and nothing was written.';
