-- What storage does beside its readers and writers: versions that go together, months that move, documents that are linked while
-- they are looked at, days of uptime that are dropped, and the days a share is of.

-- An author's kind is read once, however many of its versions go --------------------------------------------------------

CREATE FUNCTION rollup_mend_versions() RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = public, pg_temp SET jit = off
SET enable_nestloop = off SET enable_hashjoin = on SET enable_mergejoin = off SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan SET max_parallel_workers_per_gather = 0
AS $$
BEGIN
    -- Current versions that went have been deleted: the next one takes their place. What an author wrote of a kind is one loop over
    -- the index, whose rows then meet the versions in memory: a loop for each of them is their product.
    WITH fresh AS MATERIALIZED (
        SELECT y.event_key, y.relay_id FROM rollup_delta d CROSS JOIN LATERAL
            unnest(d.keys, CASE WHEN cardinality(d.relays) = 1 THEN array_fill(d.relays[1], ARRAY[d.n]) ELSE d.relays END) y(event_key, relay_id)
        WHERE NOT EXISTS (SELECT FROM pg_temp.rollup_known w WHERE w.id = d.id)
    ), t AS MATERIALIZED (
        SELECT c.* FROM (SELECT x.author_id, x.pubkey, x.kind, x.d_hash, max(x.created_at) AS hi FROM pg_temp.rollup_change x
                         WHERE x.change < 0 AND x.d_hash IS NOT NULL GROUP BY 1, 2, 3, 4) c
        CROSS JOIN LATERAL (SELECT count(*) AS n FROM rollup_addressable y
                            WHERE y.author_id = c.author_id AND y.kind = c.kind AND y.d_hash = c.d_hash OFFSET 0) h
        WHERE h.n = 0
    ), g AS MATERIALIZED (
        SELECT t.author_id, t.pubkey, t.kind, max(t.hi) AS hi FROM t GROUP BY 1, 2, 3
    )
    INSERT INTO rollup_addressable (author_id, kind, d_hash, event_key, created_at, id)
    SELECT DISTINCT ON (e.author_id, e.kind, e.d_hash) e.author_id, e.kind, e.d_hash, e.event_key, e.created_at, e.id
    FROM (
        SELECT g.author_id, g.kind, x.event_key, x.created_at, x.id, x.d_hash
        FROM g CROSS JOIN LATERAL (
            SELECT z.event_key, z.created_at, z.id, sha256(coalesce(z.d_tag, '')) AS d_hash FROM event z
            WHERE z.pubkey = g.pubkey AND z.kind = g.kind AND z.fate = 0
              AND z.event_key BETWEEN 0 AND ((least(greatest(g.hi, 0), 4294967295) << 31) | 2147483647) OFFSET 0) x
        OFFSET 0) e
    JOIN t ON t.author_id = e.author_id AND t.kind = e.kind AND t.d_hash = e.d_hash
    WHERE NOT EXISTS (SELECT FROM pg_temp.rollup_gone w WHERE w.event_key = e.event_key AND w.relay_id IS NULL)
      AND NOT EXISTS (SELECT FROM fresh w WHERE w.event_key = e.event_key AND w.relay_id IS NULL)
    ORDER BY e.author_id, e.kind, e.d_hash, e.created_at DESC, e.id;
END $$;
COMMENT ON FUNCTION rollup_mend_versions IS 'A step of rollup_mend: finds the current versions of addressable events anew whose own have gone; reads what each author wrote of the kind once.';

CREATE OR REPLACE FUNCTION rollup_mend() RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = public, pg_temp
AS $$
BEGIN
    -- Every lookup is a loop over one index inside one statement: to start a plan over all months costs more than to run it.
    -- fresh: logged since the staging and so not counted; normally nothing. In the second that is found, created_at and id decide.
    WITH fresh AS MATERIALIZED (
        SELECT y.event_key, y.relay_id FROM rollup_delta d CROSS JOIN LATERAL
            unnest(d.keys, CASE WHEN cardinality(d.relays) = 1 THEN array_fill(d.relays[1], ARRAY[d.n]) ELSE d.relays END) y(event_key, relay_id)
        WHERE NOT EXISTS (SELECT FROM pg_temp.rollup_known w WHERE w.id = d.id)
    ), t AS MATERIALIZED (
        SELECT c.relay_id, c.author_id, c.pubkey, c.kind, c.lo, c.hi, x.events, x.first_at, x.last_at,
               y.events > 200 AND y.events <= 20 * x.events AS walk
        FROM (SELECT p.relay_id, z.author_id, z.pubkey, z.kind, min(z.created_at) AS lo, max(z.created_at) AS hi
              FROM pg_temp.rollup_change z CROSS JOIN LATERAL unnest(z.pairs) p(relay_id) GROUP BY 1, 2, 3, 4) c
        CROSS JOIN LATERAL (SELECT z.* FROM rollup_relay_author z WHERE z.relay_id = c.relay_id AND z.author_id = c.author_id AND z.kind = c.kind OFFSET 0) x
        CROSS JOIN LATERAL (SELECT z.events FROM rollup_author_kind z WHERE z.author_id = c.author_id AND z.kind = c.kind OFFSET 0) y
        WHERE c.lo <= x.first_at OR c.hi >= x.last_at
    )
    INSERT INTO rollup_relay_author AS k (relay_id, author_id, kind, events, first_at, last_at)
    -- What an author wrote is read once for all relays,
    SELECT o.relay_id, g.author_id, g.kind, 0, min(e.created_at), max(e.created_at)
    FROM (SELECT z.author_id, z.pubkey, z.kind, (least(greatest(min(z.first_at), 0), 4294967295) << 31) AS lo, ((least(greatest(max(z.last_at), 0), 4294967295) << 31) | 2147483647) AS hi, array_agg(z.relay_id) AS relays
          FROM t z WHERE NOT z.walk GROUP BY 1, 2, 3) g
    CROSS JOIN LATERAL (
        SELECT z.event_key, z.created_at FROM event z
        WHERE z.pubkey = g.pubkey AND z.kind = g.kind AND z.fate = 0 AND z.event_key BETWEEN g.lo AND g.hi OFFSET 0) e
    CROSS JOIN LATERAL (
        SELECT z.relay_id FROM event_relay z WHERE z.event_key = e.event_key AND z.relay_id = ANY (g.relays) OFFSET 0) o
    WHERE NOT EXISTS (SELECT FROM pg_temp.rollup_gone w WHERE w.event_key = e.event_key AND (w.relay_id IS NULL OR w.relay_id = o.relay_id))
              AND NOT EXISTS (SELECT FROM fresh w WHERE w.event_key = e.event_key AND (w.relay_id IS NULL OR w.relay_id = o.relay_id))
    GROUP BY 1, 2, 3
    UNION ALL
    -- but not where it is much and a relay has most of it: there a few steps from either end find one.
    SELECT t.relay_id, t.author_id, t.kind, 0, CASE WHEN t.lo > t.first_at THEN t.first_at ELSE f.created_at END,
           CASE WHEN t.hi < t.last_at THEN t.last_at ELSE l.created_at END
    FROM t
    LEFT JOIN LATERAL (
        SELECT e.* FROM (
            SELECT e.event_key >> 31 << 31 AS second FROM event e
            WHERE t.lo <= t.first_at AND e.pubkey = t.pubkey AND e.kind = t.kind AND e.fate = 0 AND e.event_key BETWEEN (least(greatest(t.first_at, 0), 4294967295) << 31) AND ((least(greatest(t.last_at, 0), 4294967295) << 31) | 2147483647)
              AND EXISTS (SELECT FROM event_relay o WHERE o.relay_id = t.relay_id AND o.event_key = e.event_key)
              AND NOT EXISTS (SELECT FROM pg_temp.rollup_gone w WHERE w.event_key = e.event_key AND (w.relay_id IS NULL OR w.relay_id = t.relay_id))
              AND NOT EXISTS (SELECT FROM fresh w WHERE w.event_key = e.event_key AND (w.relay_id IS NULL OR w.relay_id = t.relay_id))
            ORDER BY e.event_key ASC LIMIT 1) s
        CROSS JOIN LATERAL (
            SELECT e.created_at, e.event_key, e.id FROM event e
            WHERE e.pubkey = t.pubkey AND e.kind = t.kind AND e.fate = 0 AND e.event_key BETWEEN s.second AND (s.second | 2147483647)
              AND EXISTS (SELECT FROM event_relay o WHERE o.relay_id = t.relay_id AND o.event_key = e.event_key)
              AND NOT EXISTS (SELECT FROM pg_temp.rollup_gone w WHERE w.event_key = e.event_key AND (w.relay_id IS NULL OR w.relay_id = t.relay_id))
              AND NOT EXISTS (SELECT FROM fresh w WHERE w.event_key = e.event_key AND (w.relay_id IS NULL OR w.relay_id = t.relay_id))
            ORDER BY e.created_at ASC, e.id LIMIT 1) e) f ON true
    LEFT JOIN LATERAL (
        SELECT e.* FROM (
            SELECT e.event_key >> 31 << 31 AS second FROM event e
            WHERE t.hi >= t.last_at AND e.pubkey = t.pubkey AND e.kind = t.kind AND e.fate = 0 AND e.event_key BETWEEN (least(greatest(t.first_at, 0), 4294967295) << 31) AND ((least(greatest(t.last_at, 0), 4294967295) << 31) | 2147483647)
              AND EXISTS (SELECT FROM event_relay o WHERE o.relay_id = t.relay_id AND o.event_key = e.event_key)
              AND NOT EXISTS (SELECT FROM pg_temp.rollup_gone w WHERE w.event_key = e.event_key AND (w.relay_id IS NULL OR w.relay_id = t.relay_id))
              AND NOT EXISTS (SELECT FROM fresh w WHERE w.event_key = e.event_key AND (w.relay_id IS NULL OR w.relay_id = t.relay_id))
            ORDER BY e.event_key DESC LIMIT 1) s
        CROSS JOIN LATERAL (
            SELECT e.created_at, e.event_key, e.id FROM event e
            WHERE e.pubkey = t.pubkey AND e.kind = t.kind AND e.fate = 0 AND e.event_key BETWEEN s.second AND (s.second | 2147483647)
              AND EXISTS (SELECT FROM event_relay o WHERE o.relay_id = t.relay_id AND o.event_key = e.event_key)
              AND NOT EXISTS (SELECT FROM pg_temp.rollup_gone w WHERE w.event_key = e.event_key AND (w.relay_id IS NULL OR w.relay_id = t.relay_id))
              AND NOT EXISTS (SELECT FROM fresh w WHERE w.event_key = e.event_key AND (w.relay_id IS NULL OR w.relay_id = t.relay_id))
            ORDER BY e.created_at DESC, e.id LIMIT 1) e) l ON true
    WHERE t.walk
    ON CONFLICT (author_id, relay_id, kind) DO UPDATE SET first_at = excluded.first_at, last_at = excluded.last_at;

    WITH fresh AS MATERIALIZED (
        SELECT y.event_key, y.relay_id FROM rollup_delta d CROSS JOIN LATERAL
            unnest(d.keys, CASE WHEN cardinality(d.relays) = 1 THEN array_fill(d.relays[1], ARRAY[d.n]) ELSE d.relays END) y(event_key, relay_id)
        WHERE NOT EXISTS (SELECT FROM pg_temp.rollup_known w WHERE w.id = d.id)
    ), t AS MATERIALIZED (
        SELECT c.author_id, c.pubkey, c.kind, c.lo, c.hi, x.first_at, x.last_at, x.latest_key, x.latest_id
        FROM (SELECT z.author_id, z.pubkey, z.kind, min(z.created_at) AS lo, max(z.created_at) AS hi
              FROM pg_temp.rollup_change z WHERE z.change < 0 GROUP BY 1, 2, 3) c
        CROSS JOIN LATERAL (SELECT y.* FROM rollup_author_kind y WHERE y.author_id = c.author_id AND y.kind = c.kind OFFSET 0) x
        WHERE c.lo <= x.first_at OR c.hi >= x.last_at
    )
    INSERT INTO rollup_author_kind AS k (author_id, kind, events, first_at, last_at, latest_key, latest_id)
    SELECT t.author_id, t.kind, 0, CASE WHEN t.lo > t.first_at THEN t.first_at ELSE f.created_at END,
           CASE WHEN t.hi < t.last_at THEN t.last_at ELSE l.created_at END,
           CASE WHEN t.latest_key IS NOT NULL THEN CASE WHEN t.hi < t.last_at THEN t.latest_key ELSE l.event_key END END,
           CASE WHEN t.latest_key IS NOT NULL THEN CASE WHEN t.hi < t.last_at THEN t.latest_id ELSE l.id END END
    FROM t
    LEFT JOIN LATERAL (
        SELECT e.* FROM (
            SELECT e.event_key >> 31 << 31 AS second FROM event e
            WHERE t.lo <= t.first_at AND e.pubkey = t.pubkey AND e.kind = t.kind AND e.fate = 0 AND e.event_key BETWEEN (least(greatest(t.first_at, 0), 4294967295) << 31) AND ((least(greatest(t.last_at, 0), 4294967295) << 31) | 2147483647)
              AND NOT EXISTS (SELECT FROM pg_temp.rollup_gone w WHERE w.event_key = e.event_key AND w.relay_id IS NULL)
              AND NOT EXISTS (SELECT FROM fresh w WHERE w.event_key = e.event_key AND w.relay_id IS NULL)
            ORDER BY e.event_key ASC LIMIT 1) s
        CROSS JOIN LATERAL (
            SELECT e.created_at, e.event_key, e.id FROM event e
            WHERE e.pubkey = t.pubkey AND e.kind = t.kind AND e.fate = 0 AND e.event_key BETWEEN s.second AND (s.second | 2147483647)
              AND NOT EXISTS (SELECT FROM pg_temp.rollup_gone w WHERE w.event_key = e.event_key AND w.relay_id IS NULL)
              AND NOT EXISTS (SELECT FROM fresh w WHERE w.event_key = e.event_key AND w.relay_id IS NULL)
            ORDER BY e.created_at ASC, e.id LIMIT 1) e) f ON true
    LEFT JOIN LATERAL (
        SELECT e.* FROM (
            SELECT e.event_key >> 31 << 31 AS second FROM event e
            WHERE t.hi >= t.last_at AND e.pubkey = t.pubkey AND e.kind = t.kind AND e.fate = 0 AND e.event_key BETWEEN (least(greatest(t.first_at, 0), 4294967295) << 31) AND ((least(greatest(t.last_at, 0), 4294967295) << 31) | 2147483647)
              AND NOT EXISTS (SELECT FROM pg_temp.rollup_gone w WHERE w.event_key = e.event_key AND w.relay_id IS NULL)
              AND NOT EXISTS (SELECT FROM fresh w WHERE w.event_key = e.event_key AND w.relay_id IS NULL)
            ORDER BY e.event_key DESC LIMIT 1) s
        CROSS JOIN LATERAL (
            SELECT e.created_at, e.event_key, e.id FROM event e
            WHERE e.pubkey = t.pubkey AND e.kind = t.kind AND e.fate = 0 AND e.event_key BETWEEN s.second AND (s.second | 2147483647)
              AND NOT EXISTS (SELECT FROM pg_temp.rollup_gone w WHERE w.event_key = e.event_key AND w.relay_id IS NULL)
              AND NOT EXISTS (SELECT FROM fresh w WHERE w.event_key = e.event_key AND w.relay_id IS NULL)
            ORDER BY e.created_at DESC, e.id LIMIT 1) e) l ON true
    ON CONFLICT (author_id, kind) DO UPDATE SET first_at = excluded.first_at, last_at = excluded.last_at,
        latest_key = excluded.latest_key, latest_id = excluded.latest_id;

    INSERT INTO rollup_author AS a (id, pubkey, events, kinds, first_at, last_at, on_clearnet, on_tor, on_i2p, on_loki)
    SELECT x.id, x.pubkey, x.events, x.kinds, y.first_at, y.last_at, x.on_clearnet, x.on_tor, x.on_i2p, x.on_loki
    FROM (SELECT c.author_id, min(c.created_at) AS lo, max(c.created_at) AS hi FROM pg_temp.rollup_change c WHERE c.change < 0 GROUP BY 1) t
    CROSS JOIN LATERAL (SELECT z.* FROM rollup_author z WHERE z.id = t.author_id OFFSET 0) x
    CROSS JOIN LATERAL (SELECT min(z.first_at) AS first_at, max(z.last_at) AS last_at FROM rollup_author_kind z WHERE z.author_id = t.author_id OFFSET 0) y
    WHERE t.lo <= x.first_at OR t.hi >= x.last_at
    ON CONFLICT (id) DO UPDATE SET first_at = excluded.first_at, last_at = excluded.last_at;

    PERFORM rollup_mend_versions();

    WITH fresh AS MATERIALIZED (
        SELECT y.event_key, y.relay_id FROM rollup_delta d CROSS JOIN LATERAL
            unnest(d.keys, CASE WHEN cardinality(d.relays) = 1 THEN array_fill(d.relays[1], ARRAY[d.n]) ELSE d.relays END) y(event_key, relay_id)
        WHERE NOT EXISTS (SELECT FROM pg_temp.rollup_known w WHERE w.id = d.id)
    ), t AS MATERIALIZED (
        SELECT c.*, x.first_at, x.last_at FROM (
            SELECT p.relay_id, min(z.created_at) AS lo, max(z.created_at) AS hi
            FROM pg_temp.rollup_change z CROSS JOIN LATERAL unnest(z.pairs) p(relay_id) GROUP BY 1) c
        CROSS JOIN LATERAL (SELECT y.* FROM rollup_relay y WHERE y.relay_id = c.relay_id OFFSET 0) x
        WHERE c.lo <= x.first_at OR c.hi >= x.last_at
    )
    INSERT INTO rollup_relay AS r (relay_id, events, authors, kinds, unique_events, first_at, last_at)
    SELECT t.relay_id, 0, 0, 0, 0, CASE WHEN t.lo > t.first_at THEN t.first_at ELSE f.created_at END,
           CASE WHEN t.hi < t.last_at THEN t.last_at ELSE l.created_at END
    FROM t
    LEFT JOIN LATERAL (
        SELECT e.* FROM (
            SELECT o.event_key >> 31 << 31 AS second FROM event_relay o
            WHERE t.lo <= t.first_at AND o.relay_id = t.relay_id AND o.event_key BETWEEN (least(greatest(t.first_at, 0), 4294967295) << 31) AND ((least(greatest(t.last_at, 0), 4294967295) << 31) | 2147483647)
              AND EXISTS (SELECT FROM event e WHERE e.event_key = o.event_key AND e.fate = 0)
              AND NOT EXISTS (SELECT FROM pg_temp.rollup_gone w WHERE w.event_key = o.event_key AND (w.relay_id IS NULL OR w.relay_id = t.relay_id))
              AND NOT EXISTS (SELECT FROM fresh w WHERE w.event_key = o.event_key AND (w.relay_id IS NULL OR w.relay_id = t.relay_id))
            ORDER BY o.event_key ASC LIMIT 1) s
        CROSS JOIN LATERAL (
            SELECT e.created_at FROM event e
            WHERE e.fate = 0 AND e.event_key BETWEEN s.second AND (s.second | 2147483647)
              AND EXISTS (SELECT FROM event_relay o WHERE o.relay_id = t.relay_id AND o.event_key = e.event_key)
              AND NOT EXISTS (SELECT FROM pg_temp.rollup_gone w WHERE w.event_key = e.event_key AND (w.relay_id IS NULL OR w.relay_id = t.relay_id))
              AND NOT EXISTS (SELECT FROM fresh w WHERE w.event_key = e.event_key AND (w.relay_id IS NULL OR w.relay_id = t.relay_id))
            ORDER BY e.created_at ASC LIMIT 1) e) f ON true
    LEFT JOIN LATERAL (
        SELECT e.* FROM (
            SELECT o.event_key >> 31 << 31 AS second FROM event_relay o
            WHERE t.hi >= t.last_at AND o.relay_id = t.relay_id AND o.event_key BETWEEN (least(greatest(t.first_at, 0), 4294967295) << 31) AND ((least(greatest(t.last_at, 0), 4294967295) << 31) | 2147483647)
              AND EXISTS (SELECT FROM event e WHERE e.event_key = o.event_key AND e.fate = 0)
              AND NOT EXISTS (SELECT FROM pg_temp.rollup_gone w WHERE w.event_key = o.event_key AND (w.relay_id IS NULL OR w.relay_id = t.relay_id))
              AND NOT EXISTS (SELECT FROM fresh w WHERE w.event_key = o.event_key AND (w.relay_id IS NULL OR w.relay_id = t.relay_id))
            ORDER BY o.event_key DESC LIMIT 1) s
        CROSS JOIN LATERAL (
            SELECT e.created_at FROM event e
            WHERE e.fate = 0 AND e.event_key BETWEEN s.second AND (s.second | 2147483647)
              AND EXISTS (SELECT FROM event_relay o WHERE o.relay_id = t.relay_id AND o.event_key = e.event_key)
              AND NOT EXISTS (SELECT FROM pg_temp.rollup_gone w WHERE w.event_key = e.event_key AND (w.relay_id IS NULL OR w.relay_id = t.relay_id))
              AND NOT EXISTS (SELECT FROM fresh w WHERE w.event_key = e.event_key AND (w.relay_id IS NULL OR w.relay_id = t.relay_id))
            ORDER BY e.created_at DESC LIMIT 1) e) l ON true
    ON CONFLICT (relay_id) DO UPDATE SET first_at = excluded.first_at, last_at = excluded.last_at;

    WITH fresh AS MATERIALIZED (
        SELECT y.event_key, y.relay_id FROM rollup_delta d CROSS JOIN LATERAL
            unnest(d.keys, CASE WHEN cardinality(d.relays) = 1 THEN array_fill(d.relays[1], ARRAY[d.n]) ELSE d.relays END) y(event_key, relay_id)
        WHERE NOT EXISTS (SELECT FROM pg_temp.rollup_known w WHERE w.id = d.id)
    ), t AS MATERIALIZED (
        SELECT c.lo, c.hi, x.first_at, x.last_at FROM (SELECT min(z.created_at) AS lo, max(z.created_at) AS hi FROM pg_temp.rollup_change z WHERE z.change < 0) c
        CROSS JOIN rollup_total x WHERE c.lo <= x.first_at OR c.hi >= x.last_at
    )
    INSERT INTO rollup_total AS r (singleton, events, authors, first_at, last_at)
    SELECT 1, 0, 0, CASE WHEN t.lo > t.first_at THEN t.first_at ELSE f.created_at END,
           CASE WHEN t.hi < t.last_at THEN t.last_at ELSE l.created_at END
    FROM t
    LEFT JOIN LATERAL (
        SELECT e.* FROM (
            SELECT e.event_key >> 31 << 31 AS second FROM event e
            WHERE t.lo <= t.first_at AND e.fate = 0 AND e.event_key BETWEEN (least(greatest(t.first_at, 0), 4294967295) << 31) AND ((least(greatest(t.last_at, 0), 4294967295) << 31) | 2147483647)
              AND NOT EXISTS (SELECT FROM pg_temp.rollup_gone w WHERE w.event_key = e.event_key AND w.relay_id IS NULL)
              AND NOT EXISTS (SELECT FROM fresh w WHERE w.event_key = e.event_key AND w.relay_id IS NULL)
            ORDER BY e.event_key ASC LIMIT 1) s
        CROSS JOIN LATERAL (
            SELECT e.created_at, e.event_key, e.id FROM event e
            WHERE e.fate = 0 AND e.event_key BETWEEN s.second AND (s.second | 2147483647)
              AND NOT EXISTS (SELECT FROM pg_temp.rollup_gone w WHERE w.event_key = e.event_key AND w.relay_id IS NULL)
              AND NOT EXISTS (SELECT FROM fresh w WHERE w.event_key = e.event_key AND w.relay_id IS NULL)
            ORDER BY e.created_at ASC, e.id LIMIT 1) e) f ON true
    LEFT JOIN LATERAL (
        SELECT e.* FROM (
            SELECT e.event_key >> 31 << 31 AS second FROM event e
            WHERE t.hi >= t.last_at AND e.fate = 0 AND e.event_key BETWEEN (least(greatest(t.first_at, 0), 4294967295) << 31) AND ((least(greatest(t.last_at, 0), 4294967295) << 31) | 2147483647)
              AND NOT EXISTS (SELECT FROM pg_temp.rollup_gone w WHERE w.event_key = e.event_key AND w.relay_id IS NULL)
              AND NOT EXISTS (SELECT FROM fresh w WHERE w.event_key = e.event_key AND w.relay_id IS NULL)
            ORDER BY e.event_key DESC LIMIT 1) s
        CROSS JOIN LATERAL (
            SELECT e.created_at, e.event_key, e.id FROM event e
            WHERE e.fate = 0 AND e.event_key BETWEEN s.second AND (s.second | 2147483647)
              AND NOT EXISTS (SELECT FROM pg_temp.rollup_gone w WHERE w.event_key = e.event_key AND w.relay_id IS NULL)
              AND NOT EXISTS (SELECT FROM fresh w WHERE w.event_key = e.event_key AND w.relay_id IS NULL)
            ORDER BY e.created_at DESC, e.id LIMIT 1) e) l ON true
    ON CONFLICT (singleton) DO UPDATE SET first_at = excluded.first_at, last_at = excluded.last_at;
END $$;
ALTER FUNCTION rollup_mend SET enable_seqscan = off;
ALTER FUNCTION rollup_mend SET enable_hashjoin = off;
ALTER FUNCTION rollup_mend SET enable_mergejoin = off;
ALTER FUNCTION rollup_mend SET enable_nestloop = on;
ALTER FUNCTION rollup_mend SET plan_cache_mode = force_generic_plan;
ALTER FUNCTION rollup_mend SET max_parallel_workers_per_gather = 0;
ALTER FUNCTION rollup_mend SET jit = off;

-- Months that move -------------------------------------------------------------------------------------------------------

CREATE FUNCTION month_hold() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    LOCK TABLE ONLY event_default, ONLY event_relay_default IN ACCESS SHARE MODE;
END $$;
COMMENT ON FUNCTION month_hold IS 'To be called before the first look of whoever looks at the archive once: until the end of the transaction no month moves out of the default partitions, and one that is moving has moved. What is planned during a move looks for its rows where they were.';

CREATE OR REPLACE FUNCTION rollup_refresh(p_limit integer DEFAULT 50000)
RETURNS TABLE (applied bigint, backlog bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    v_ids bigint[];
    v_total bigint;
BEGIN
    -- Never two at once: a second caller is told so instead of queueing up behind the first.
    IF NOT pg_try_advisory_xact_lock(7302) THEN
        RAISE EXCEPTION 'another refresh is running' USING ERRCODE = 'lock_not_available';
    END IF;
    -- The oldest come first. With a long backlog the steps grow (at most tenfold): each has to look through the rest.
    SELECT array_agg(s.id) FILTER (WHERE s.before < greatest(p_limit, least(s.total / 20, p_limit * 10::bigint))),
           sum(s.n) FILTER (WHERE s.before < greatest(p_limit, least(s.total / 20, p_limit * 10::bigint))), max(s.total)
    INTO v_ids, applied, v_total
    FROM (SELECT d.id, d.n, sum(d.n) OVER (ORDER BY d.id) - d.n AS before, sum(d.n) OVER () AS total FROM rollup_delta d) s;
    applied := coalesce(applied, 0);
    backlog := coalesce(v_total, 0) - applied;
    IF v_ids IS NULL THEN
        RETURN NEXT;
        RETURN;
    END IF;
    PERFORM month_hold();
    PERFORM rollup_stage();
    INSERT INTO pg_temp.rollup_change
    WITH b AS MATERIALIZED (
        SELECT x.event_key, x.relay_id FROM rollup_delta d CROSS JOIN LATERAL
            unnest(d.keys, CASE WHEN cardinality(d.relays) = 1 THEN array_fill(d.relays[1], ARRAY[d.n]) ELSE d.relays END) x(event_key, relay_id)
        WHERE d.id = ANY (v_ids)
    ), k AS MATERIALIZED (
        SELECT b.event_key, bool_or(b.relay_id IS NULL) AS archived FROM b GROUP BY 1
    ), rest AS MATERIALIZED (
        SELECT x.event_key, x.relay_id FROM rollup_delta d CROSS JOIN LATERAL
            unnest(d.keys, CASE WHEN cardinality(d.relays) = 1 THEN array_fill(d.relays[1], ARRAY[d.n]) ELSE d.relays END) x(event_key, relay_id)
        WHERE d.id <> ALL (v_ids) AND x.event_key IN (SELECT k.event_key FROM k)
    ), t AS MATERIALIZED (
        -- An event that was forgotten and came back is the business of its later row.
        SELECT k.event_key, k.archived, e.created_at, e.kind, e.pubkey, e.id, e.d_hash, a.id AS author_id
        FROM (SELECT k.event_key, k.archived FROM k
              WHERE NOT EXISTS (SELECT FROM rest r WHERE r.event_key = k.event_key AND r.relay_id IS NULL) ORDER BY 1) k
        CROSS JOIN LATERAL (
            SELECT x.created_at, x.kind, x.pubkey, x.id,
                   CASE kind_category(x.kind) WHEN 'addressable' THEN sha256(coalesce(x.d_tag, '')) END AS d_hash
            FROM event x WHERE x.event_key = k.event_key AND x.fate = 0 OFFSET 0) e
        LEFT JOIN LATERAL (SELECT y.id FROM rollup_author y WHERE y.pubkey = e.pubkey OFFSET 0) a ON true
    ), o AS (
        SELECT t.event_key, v.relay_id, t.archived OR b.event_key IS NOT NULL AS fresh,
               CASE n.network WHEN 'clearnet' THEN 1 WHEN 'tor' THEN 2 WHEN 'i2p' THEN 4 ELSE 8 END AS net
        FROM t CROSS JOIN LATERAL (SELECT x.relay_id FROM event_relay x WHERE x.event_key = t.event_key OFFSET 0) v
        JOIN relay n ON n.id = v.relay_id
        LEFT JOIN (SELECT DISTINCT b.event_key, b.relay_id FROM b WHERE b.relay_id IS NOT NULL) b ON b.event_key = t.event_key AND b.relay_id = v.relay_id
        WHERE NOT EXISTS (SELECT FROM rest r WHERE r.event_key = t.event_key AND r.relay_id = v.relay_id)
    ), s AS (
        SELECT o.event_key, count(*) FILTER (WHERE NOT o.fresh) AS copies0, count(*) AS copies1,
               bit_or(o.net) FILTER (WHERE NOT o.fresh) AS nets0, bit_or(o.net) AS nets1,
               min(o.relay_id) FILTER (WHERE NOT o.fresh) AS one0, min(o.relay_id) AS one1,
               array_agg(o.relay_id) FILTER (WHERE o.fresh) AS pairs
        FROM o GROUP BY 1
    )
    SELECT t.event_key, t.created_at, t.author_id, t.kind, t.archived::integer,
           coalesce(s.copies0, 0), coalesce(s.copies1, 0), coalesce(s.nets0, 0), coalesce(s.nets1, 0),
           CASE s.copies0 WHEN 1 THEN s.one0 END, CASE s.copies1 WHEN 1 THEN s.one1 END, t.pubkey, t.id, t.d_hash, s.pairs
    FROM t LEFT JOIN s ON s.event_key = t.event_key
    WHERE t.archived OR s.pairs IS NOT NULL;
    UPDATE pg_temp.rollup_change c SET author_id = f.id
    FROM (SELECT x.pubkey, nextval(pg_get_serial_sequence('public.rollup_author', 'id')) AS id
          FROM (SELECT DISTINCT y.pubkey FROM pg_temp.rollup_change y WHERE y.author_id IS NULL) x) f
    WHERE c.author_id IS NULL AND c.pubkey = f.pubkey;
    PERFORM rollup_fold(1);
    DELETE FROM rollup_delta d WHERE d.id = ANY (v_ids);
    DROP TABLE pg_temp.rollup_change;
    RETURN NEXT;
END $$;
ALTER FUNCTION rollup_refresh SET enable_nestloop = off;
ALTER FUNCTION rollup_refresh SET enable_seqscan = off;
ALTER FUNCTION rollup_refresh SET plan_cache_mode = force_generic_plan;
ALTER FUNCTION rollup_refresh SET max_parallel_workers_per_gather = 0;
ALTER FUNCTION rollup_refresh SET work_mem = '32MB';
ALTER FUNCTION rollup_refresh SET jit = off;

CREATE OR REPLACE FUNCTION rollup_rebuild() RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    v_seeded bigint;
    v_done bigint := 0;
    r record;
BEGIN
    PERFORM pg_advisory_xact_lock(7302);
    PERFORM month_hold();
    v_seeded := rollup_seed();
    -- What writers add meanwhile is the business of the next refresh.
    WHILE v_done < v_seeded LOOP
        SELECT * INTO r FROM rollup_refresh(50000);
        v_done := v_done + r.applied;
        EXIT WHEN r.backlog = 0;
    END LOOP;
    RETURN v_seeded;
END $$;
ALTER FUNCTION rollup_rebuild SET lock_timeout = '10s';
ALTER FUNCTION rollup_rebuild SET jit = off;

CREATE OR REPLACE FUNCTION retention_step(p_look integer DEFAULT 2000, p_now timestamptz DEFAULT now())
RETURNS TABLE (what text, events integer, observations integer, months integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    p retention_policy;
    v_before bigint;
    v_emptied bigint;
    v_last bigint;
    v_relay integer;
    v_keys bigint[];
    v_alone bigint[];
    v_shared bigint[];
    n integer;
BEGIN
    PERFORM month_hold();
    events := 0; observations := 0; months := 0;
    -- First what is asked for and what is claimed, then what is there.
    INSERT INTO archive_horizon AS h (scope, before_at, set_at, reason)
    SELECT CASE r.what WHEN 'age' THEN 'all' ELSE r.relay_url END, retention_before(r.what, r.days, p_now), p_now, r.name
    FROM retention_policy r WHERE r.what <> 'kind' AND retention_before(r.what, r.days, p_now) > 0 ORDER BY 1
    ON CONFLICT (scope) DO UPDATE SET before_at = excluded.before_at, set_at = excluded.set_at, reason = excluded.reason WHERE h.before_at < excluded.before_at;
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n > 0 THEN what := 'horizon'; RETURN NEXT; RETURN; END IF;
    IF coverage_retire(100) > 0 THEN what := 'coverage'; RETURN NEXT; RETURN; END IF;
    UPDATE retention_policy r SET cursor_key = -1, again_at = NULL WHERE r.again_at <= p_now;
    FOR p IN SELECT r.* FROM retention_policy r ORDER BY r.what, r.name LOOP
        what := p.name;
        IF p.what = 'age' THEN
            SELECT h.before_at INTO v_before FROM archive_horizon h WHERE h.scope = 'all';
            IF v_before IS NULL THEN CONTINUE; END IF;
            IF EXISTS (SELECT FROM event e WHERE e.event_key > p.cursor_key AND e.event_key < second_key(v_before)) THEN
                IF NOT rollup_settle(p_look * 25) THEN what := 'log'; RETURN NEXT; RETURN; END IF;
                PERFORM archive_lock();
                v_keys := ARRAY(SELECT e.event_key FROM event e WHERE e.event_key > p.cursor_key AND e.event_key < second_key(v_before) ORDER BY e.event_key LIMIT p_look);
                SELECT r.events, r.observations INTO events, observations FROM event_remove(v_keys) r;
                UPDATE retention_policy r SET cursor_key = v_keys[cardinality(v_keys)] WHERE r.name = p.name;
                RETURN NEXT;
                RETURN;
            END IF;
            v_emptied := v_before;
            IF p.cursor_key > -1 THEN UPDATE retention_policy r SET cursor_key = -1 WHERE r.name = p.name; RETURN NEXT; RETURN; END IF;
        ELSIF p.what = 'relay' THEN
            SELECT h.before_at, x.id INTO v_before, v_relay FROM archive_horizon h JOIN relay x ON x.url = h.scope WHERE h.scope = p.relay_url;
            IF v_before IS NULL THEN CONTINUE; END IF;
            IF EXISTS (SELECT FROM event_relay o WHERE o.relay_id = v_relay AND o.event_key > p.cursor_key AND o.event_key < second_key(v_before)) THEN
                IF NOT rollup_settle(p_look * 25) THEN what := 'log'; RETURN NEXT; RETURN; END IF;
                PERFORM archive_lock();
                v_keys := ARRAY(SELECT o.event_key FROM event_relay o WHERE o.relay_id = v_relay AND o.event_key > p.cursor_key
                                AND o.event_key < second_key(v_before) ORDER BY o.event_key LIMIT p_look);
                v_last := v_keys[cardinality(v_keys)];
                -- What only this relay had goes with it; what is not kept anyway keeps its row, so that nothing fetches it.
                SELECT array_agg(e.event_key) FILTER (WHERE NOT e.elsewhere), array_agg(e.event_key) FILTER (WHERE e.elsewhere) INTO v_alone, v_shared FROM (
                    SELECT x.event_key, EXISTS (SELECT FROM event_relay o WHERE o.event_key = x.event_key AND o.relay_id <> v_relay) AS elsewhere
                    FROM event x WHERE x.event_key = ANY (v_keys) AND x.event_key BETWEEN v_keys[1] AND v_last AND x.fate = 0 ORDER BY 1) e;
                SELECT r.events, r.observations INTO events, observations FROM event_remove(coalesce(v_alone, '{}')) r;
                IF v_shared IS NOT NULL THEN PERFORM rollup_forget_observations(v_shared, array_fill(v_relay, ARRAY[cardinality(v_shared)])); END IF;
                DELETE FROM event_relay o WHERE o.relay_id = v_relay AND o.event_key = ANY (v_keys) AND o.event_key BETWEEN v_keys[1] AND v_last;
                GET DIAGNOSTICS n = ROW_COUNT;
                observations := observations + n;
                UPDATE retention_policy r SET cursor_key = v_last WHERE r.name = p.name;
                RETURN NEXT;
                RETURN;
            END IF;
            IF p.cursor_key > -1 THEN UPDATE retention_policy r SET cursor_key = -1 WHERE r.name = p.name; RETURN NEXT; RETURN; END IF;
        ELSE
            v_before := retention_before(p.what, p.days, p_now);
            SELECT max(x.event_key), array_agg(x.event_key) FILTER (WHERE x.fate = 0 AND x.kind BETWEEN p.kind_from AND p.kind_to) INTO v_last, v_keys FROM (
                SELECT e.event_key, e.fate, e.kind FROM event e
                WHERE e.event_key > p.cursor_key AND e.event_key < second_key(v_before) ORDER BY e.event_key LIMIT p_look * 10) x;
            IF v_last IS NULL THEN CONTINUE; END IF;
            IF cardinality(v_keys) > p_look THEN
                v_last := v_keys[p_look];
                v_keys := v_keys[1:p_look];
            END IF;
            IF v_keys IS NOT NULL THEN
                IF NOT rollup_settle(p_look * 25) THEN what := 'log'; RETURN NEXT; RETURN; END IF;
                PERFORM archive_lock();
                events := event_strip(v_keys, 1::smallint);
            END IF;
            UPDATE retention_policy r SET cursor_key = v_last WHERE r.name = p.name;
            RETURN NEXT;
            RETURN;
        END IF;
    END LOOP;
    -- Last, for whoever reads for long keeps months from being dropped, and must keep nothing else from being done.
    IF v_emptied IS NOT NULL THEN
        BEGIN
            months := month_drop(v_emptied);
        EXCEPTION WHEN lock_not_available THEN months := 0;
        END;
        IF months > 0 THEN what := 'age'; RETURN NEXT; END IF;
    END IF;
END $$;

CREATE OR REPLACE FUNCTION tombstone_step(p_look integer, p_lag interval DEFAULT '15 minutes')
RETURNS TABLE (looked integer, deleted integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_round tombstone_round;
    v_keys bigint[];
    v_last bigint;
BEGIN
    looked := 0; deleted := 0;
    IF NOT EXISTS (SELECT FROM tombstone t WHERE t.settled < 2) OR NOT pg_try_advisory_xact_lock(7328) THEN RETURN NEXT; RETURN; END IF;
    PERFORM month_hold();
    IF NOT rollup_settle(5000) THEN RETURN NEXT; RETURN; END IF;
    -- By id, at once; and once more when whatever did not know of it yet has been stored.
    WITH due AS MATERIALIZED (
        SELECT t.pubkey, t.target FROM tombstone t
        WHERE t.what = 0 AND (t.settled = 0 OR t.settled = 1 AND t.noted_at <= now() - p_lag)
        ORDER BY t.noted_at LIMIT p_look
    ), open AS MATERIALIZED (
        SELECT t.pubkey, t.target FROM due d JOIN tombstone t ON t.pubkey = d.pubkey AND t.what = 0 AND t.kind = -1 AND t.target = d.target
        ORDER BY t.pubkey, t.target FOR UPDATE OF t SKIP LOCKED
    ), moved AS (
        UPDATE tombstone t SET settled = CASE WHEN t.noted_at <= now() - p_lag THEN 2 ELSE 1 END
        FROM open o WHERE t.pubkey = o.pubkey AND t.what = 0 AND t.kind = -1 AND t.target = o.target
    )
    SELECT array_agg(e.event_key ORDER BY e.event_key) INTO v_keys FROM open o
    CROSS JOIN LATERAL (
        SELECT x.event_key, x.fate, x.kind, x.pubkey FROM event x
        WHERE substring(x.id FROM 9 FOR 8) = substring(o.target FROM 9 FOR 8) AND x.id = o.target OFFSET 0) e
    WHERE e.fate = 0 AND e.kind NOT IN (5, 62) AND e.pubkey = o.pubkey;
    deleted := event_lay(v_keys);
    -- All others in one round through the archive, however many there are.
    SELECT * INTO v_round FROM tombstone_round;
    IF NOT found THEN
        IF NOT EXISTS (SELECT FROM tombstone t WHERE t.what > 0 AND t.settled < 2 AND t.noted_at <= now() - p_lag) THEN RETURN NEXT; RETURN; END IF;
        INSERT INTO tombstone_round VALUES (1, -1, now() - p_lag) RETURNING * INTO v_round;
    END IF;
    SELECT max(x.event_key), count(*), array_agg(x.event_key ORDER BY x.event_key) FILTER (
        WHERE x.fate = 0 AND x.kind <> 62 AND EXISTS (SELECT FROM tombstone t WHERE t.pubkey = x.pubkey AND t.what > 0)
              AND tombstone_falls(x.id, x.pubkey, x.kind, x.created_at, x.d_tag, false))
    INTO v_last, looked, v_keys
    FROM (SELECT e.event_key, e.id, e.fate, e.pubkey, e.created_at, e.kind, e.d_tag FROM event e
          WHERE e.event_key > v_round.cursor_key ORDER BY e.event_key LIMIT p_look) x;
    deleted := deleted + event_lay(v_keys);
    IF looked < p_look THEN
        WITH done AS MATERIALIZED (
            SELECT t.pubkey, t.what, t.kind, t.target FROM tombstone t WHERE t.what > 0 AND t.settled < 2 AND t.noted_at <= v_round.noted_to
            ORDER BY t.pubkey, t.what, t.kind, t.target FOR UPDATE SKIP LOCKED
        )
        UPDATE tombstone t SET settled = 2
        FROM done d WHERE t.pubkey = d.pubkey AND t.what = d.what AND t.kind = d.kind AND t.target = d.target;
        DELETE FROM tombstone_round;
    ELSE
        UPDATE tombstone_round SET cursor_key = v_last;
    END IF;
    RETURN NEXT;
END $$;
ALTER FUNCTION tombstone_step SET lock_timeout = '1s';

CREATE OR REPLACE FUNCTION archive_lighten(p_look integer DEFAULT 5000)
RETURNS TABLE (looked integer, stripped integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_after bigint := coalesce((SELECT c.cursor_key FROM archive_cursor c WHERE c.name = 'bodies'), -1);
    v_last bigint;
    v_keys bigint[];
BEGIN
    IF NOT (SELECT s.light FROM archive_setting s) THEN
        RAISE EXCEPTION 'the archive keeps bodies: make it lightweight first' USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM month_hold();
    SELECT max(x.event_key), count(*), array_agg(x.event_key ORDER BY x.event_key) FILTER (WHERE x.body) INTO v_last, looked, v_keys FROM (
        SELECT e.event_key, e.fate = 0 AND (e.tags IS NOT NULL OR e.content IS NOT NULL OR e.sig IS NOT NULL OR e.tag_hashes IS NOT NULL) AS body
        FROM event e WHERE e.event_key > v_after ORDER BY e.event_key LIMIT p_look) x;
    -- What is not mined yet loses its body when it is: discover_store.
    PERFORM FROM event e WHERE e.event_key = ANY (v_keys) AND e.event_key BETWEEN v_after AND v_last ORDER BY e.event_key FOR UPDATE;
    UPDATE event e SET tags = NULL, content = NULL, sig = NULL, tag_hashes = NULL
    WHERE e.event_key = ANY (v_keys) AND e.event_key BETWEEN v_after AND v_last AND e.fate = 0
      AND NOT EXISTS (SELECT FROM event_unmined u WHERE u.event_key = e.event_key);
    GET DIAGNOSTICS stripped = ROW_COUNT;
    INSERT INTO archive_cursor VALUES ('bodies', coalesce(v_last, -1)) ON CONFLICT (name) DO UPDATE SET cursor_key = excluded.cursor_key;
    RETURN NEXT;
END $$;

CREATE OR REPLACE FUNCTION archive_review_take(p_look integer)
RETURNS TABLE (after_key bigint, next_key bigint, ids bytea[], pubkeys bytea[], created_ats bigint[], kinds integer[], tags bytea[], contents bytea[], sigs bytea[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    after_key := coalesce((SELECT c.cursor_key FROM archive_cursor c WHERE c.name = 'review'), -1);
    IF after_key = 9223372036854775807 THEN RETURN; END IF;
    PERFORM month_hold();
    WITH look AS MATERIALIZED (
        SELECT e.event_key, CASE WHEN e.fate = 0 AND e.kind IN (5, 62) THEN octet_length(e.tags) + octet_length(e.content) END AS size
        FROM event e WHERE e.event_key > after_key ORDER BY e.event_key LIMIT p_look
    ), request AS (
        SELECT l.event_key, count(*) OVER w AS i, sum(l.size) OVER w - l.size AS before FROM look l WHERE l.size IS NOT NULL WINDOW w AS (ORDER BY l.event_key)
    ), cut AS (
        -- The first is taken whatever its size.
        SELECT min(r.event_key) AS event_key FROM request r WHERE r.i > 100 OR r.before > 4194304
    )
    SELECT coalesce(max(l.event_key), 9223372036854775807) INTO next_key FROM look l WHERE NOT l.event_key >= (SELECT c.event_key FROM cut c) IS TRUE;
    SELECT array_agg(e.id), array_agg(e.pubkey), array_agg(e.created_at), array_agg(e.kind), array_agg(e.tags), array_agg(e.content), array_agg(e.sig)
    INTO ids, pubkeys, created_ats, kinds, tags, contents, sigs
    FROM event e WHERE e.event_key > after_key AND e.event_key <= next_key AND e.fate = 0 AND e.kind IN (5, 62) AND e.tags IS NOT NULL AND e.content IS NOT NULL AND e.sig IS NOT NULL;
    RETURN NEXT;
END $$;

CREATE OR REPLACE FUNCTION archive_review_store(
    p_after bigint, p_next bigint, p_pubkeys bytea[], p_whats smallint[], p_kinds integer[], p_targets bytea[], p_untils bigint[], p_requests bytea[])
RETURNS TABLE (stones integer, expiries integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    PERFORM month_hold();
    stones := tombstone_add(p_pubkeys, p_whats, p_kinds, p_targets, p_untils, p_requests);
    INSERT INTO event_expiry
    SELECT x.at, x.event_key FROM (
        SELECT expiry_of(e.kind, e.tags) AS at, e.event_key FROM event e
        WHERE e.event_key > p_after AND e.event_key <= p_next AND e.fate = 0 AND e.tags IS NOT NULL OFFSET 0) x
    WHERE x.at IS NOT NULL ORDER BY 1, 2
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS expiries = ROW_COUNT;
    INSERT INTO archive_cursor VALUES ('review', p_next) ON CONFLICT (name) DO UPDATE SET cursor_key = excluded.cursor_key;
    RETURN NEXT;
END $$;

-- Documents that are linked while they are looked at ---------------------------------------------------------------------

CREATE OR REPLACE FUNCTION metadata_insert(p_ids bytea[], p_types text[], p_data text[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    n integer;
    v_back integer;
BEGIN
    INSERT INTO metadata (id, type, data)
    SELECT u.id, u.type, u.data::json FROM unnest(p_ids, p_types, p_data) u(id, type, data)
    WHERE NOT EXISTS (SELECT FROM metadata m WHERE m.id = u.id AND m.type = u.type)
    ORDER BY u.id, u.type
    ON CONFLICT (id, type) DO NOTHING;
    GET DIAGNOSTICS n = ROW_COUNT;
    -- What was there stays until this transaction has linked it; what somebody was just deleting comes back.
    PERFORM FROM unnest(p_ids, p_types) u(id, type) JOIN metadata x ON x.id = u.id AND x.type = u.type
    ORDER BY x.id, x.type FOR KEY SHARE OF x;
    INSERT INTO metadata (id, type, data)
    SELECT u.id, u.type, u.data::json FROM unnest(p_ids, p_types, p_data) u(id, type, data)
    WHERE NOT EXISTS (SELECT FROM metadata m WHERE m.id = u.id AND m.type = u.type)
    ORDER BY u.id, u.type
    ON CONFLICT (id, type) DO NOTHING;
    GET DIAGNOSTICS v_back = ROW_COUNT;
    RETURN n + v_back;
END $$;
COMMENT ON FUNCTION metadata_insert IS 'Stores canonical documents, none of which is deleted before the transaction ends; returns how many were new.';

CREATE OR REPLACE FUNCTION orphan_metadata_delete(p_batch_size integer DEFAULT 10000)
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
AS $$
DECLARE
    v_after bigint := coalesce((SELECT c.cursor_key FROM archive_cursor c WHERE c.name = 'documents'), -1);
    v_from bytea := CASE WHEN v_after < 0 THEN '' ELSE substring(int8send(v_after) FROM 2 FOR 7) END;
    v_last bytea;
    v_ids bytea[];
    v_types text[];
    n integer;
BEGIN
    -- Whoever links one of them at this moment has its row, and keeps it. Nobody is waited for.
    WITH look AS MATERIALIZED (
        SELECT x.id, x.type FROM metadata x WHERE x.id >= v_from ORDER BY x.id, x.type LIMIT p_batch_size * 10::bigint
    ), free AS MATERIALIZED (
        SELECT l.id, l.type FROM look l
        WHERE NOT EXISTS (SELECT FROM relay_metadata r WHERE r.metadata_id = l.id AND r.metadata_type = l.type)
        ORDER BY l.id, l.type LIMIT p_batch_size
    ), held AS MATERIALIZED (
        SELECT x.id, x.type FROM free f JOIN metadata x ON x.id = f.id AND x.type = f.type
        ORDER BY x.id, x.type FOR UPDATE OF x SKIP LOCKED
    )
    SELECT array_agg(h.id), array_agg(h.type),
           CASE WHEN (SELECT count(*) FROM free) = p_batch_size THEN (SELECT f.id FROM free f ORDER BY f.id DESC LIMIT 1)
                WHEN (SELECT count(*) FROM look) = p_batch_size * 10::bigint THEN (SELECT l.id FROM look l ORDER BY l.id DESC LIMIT 1) END
    INTO v_ids, v_types, v_last FROM held h;
    -- Linked since they were chosen, some of them stay.
    DELETE FROM metadata m USING unnest(v_ids, v_types) d(id, type)
    WHERE m.id = d.id AND m.type = d.type
      AND NOT EXISTS (SELECT FROM relay_metadata r WHERE r.metadata_id = m.id AND r.metadata_type = m.type);
    GET DIAGNOSTICS n = ROW_COUNT;
    -- The last one is looked at again: there may be others of its id.
    INSERT INTO archive_cursor VALUES ('documents', coalesce(('x' || encode(substring(v_last FROM 1 FOR 7), 'hex'))::bit(56)::bigint, -1))
    ON CONFLICT (name) DO UPDATE SET cursor_key = excluded.cursor_key;
    RETURN n;
END $$;
COMMENT ON FUNCTION orphan_metadata_delete IS 'Goes on with a round through the documents: looks at ten times p_batch_size and deletes at most p_batch_size that no relay has; returns how many.';
COMMENT ON COLUMN archive_cursor.name IS 'Which round: orphans, bodies, documents, or review; review-deleted stands for a review that heeds requests to delete, and has no key of its own.';
COMMENT ON COLUMN archive_cursor.cursor_key IS 'The last event.event_key looked at, of documents the first 56 bits of metadata.id; -1: begin again. The review is done once and ends at the largest key there can be.';

-- Days of uptime that are dropped ----------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION uptime_rollup(p_keep_days integer, p_now timestamptz DEFAULT now())
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
    -- As readers do, the table before its part; who reads that goes on until it is dropped.
    LOCK TABLE ONLY relay_uptime IN SHARE UPDATE EXCLUSIVE MODE;
    EXECUTE format('LOCK TABLE public.%I IN SHARE MODE', v_part);
    EXECUTE format($f$
        INSERT INTO relay_uptime_day AS d (relay_id, vantage_id, at, checks, up, refused, open_hist, read_hist, write_hist, seen_s, up_s)
        SELECT u.relay_id, u.vantage_id, u.at - u.at %% 86400, sum(u.checks), sum(u.up), sum(u.refused),
               histogram_pack(string_agg(u.open_hist, ''::bytea)), histogram_pack(string_agg(u.read_hist, ''::bytea)),
               histogram_pack(string_agg(u.write_hist, ''::bytea)),
               -- An hour that nobody counted stands for itself.
               sum(coalesce(u.seen_s, 3600)), sum(coalesce(u.up_s, 3600 * u.up / greatest(u.checks, 1)))
        FROM public.%I u WHERE u.at < $1 GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        ON CONFLICT (relay_id, vantage_id, at) DO UPDATE
            SET checks = d.checks + excluded.checks, up = d.up + excluded.up, refused = d.refused + excluded.refused,
                open_hist = histogram_pack(d.open_hist || excluded.open_hist), read_hist = histogram_pack(d.read_hist || excluded.read_hist),
                write_hist = histogram_pack(d.write_hist || excluded.write_hist),
                seen_s = coalesce(d.seen_s, 86400) + excluded.seen_s,
                up_s = coalesce(d.up_s, 86400 * d.up / greatest(d.checks, 1)) + excluded.up_s $f$, v_part) USING v_until;
    IF v_part = 'relay_uptime_default' THEN
        DELETE FROM relay_uptime_default u WHERE u.at < v_until;
    ELSE
        LOCK TABLE ONLY relay_uptime IN ACCESS EXCLUSIVE MODE;
        EXECUTE format('DROP TABLE public.%I', v_part);
    END IF;
    RETURN 1;
END $$;

-- The days a share is of ------------------------------------------------------------------------------------------------

CREATE OR REPLACE VIEW relay_uptime_30d AS
SELECT r.url AS relay_url, v.name AS vantage, u.checks, u.up, u.refused,
       CASE WHEN u.checks >= 10 THEN round(100.0 * t.up_s / nullif(t.seen_s, 0), 3) END AS availability_pct,
       CASE WHEN u.checks >= 10 THEN round(100.0 * t.up_s / nullif(greatest(t.seen_s, t.span_s), 0), 3) END AS availability_low_pct,
       o.p[1] AS open_n, o.p[2] AS open_p50_ms, o.p[3] AS open_p95_ms, o.p[4] AS open_p99_ms,
       e.p[1] AS read_n, e.p[2] AS read_p50_ms, e.p[3] AS read_p95_ms, e.p[4] AS read_p99_ms,
       w.p[1] AS write_n, w.p[2] AS write_p50_ms, w.p[3] AS write_p95_ms, w.p[4] AS write_p99_ms
FROM public.relay r
-- The first day that is summed: it has begun within 30 times 24 hours.
CROSS JOIN (SELECT ((extract(epoch FROM now())::bigint - 30 * 86400) / 86400 + 1) * 86400 AS first_at) n
CROSS JOIN LATERAL (
    SELECT d.vantage_id, sum(d.seen_s) AS seen_s, sum(d.up_s) AS up_s, min(d.at) AS first_at, sum(d.checks) AS checks, sum(d.up) AS up, sum(d.refused) AS refused,
           string_agg(d.open_hist, ''::bytea) AS open_hist, string_agg(d.read_hist, ''::bytea) AS read_hist, string_agg(d.write_hist, ''::bytea) AS write_hist
    FROM public.relay_uptime_daily d
    WHERE d.relay_id = r.id AND d.at >= n.first_at
    GROUP BY d.vantage_id) u
JOIN public.vantage v ON v.id = u.vantage_id
LEFT JOIN public.relay_state s ON s.relay_id = r.id AND s.vantage_id = u.vantage_id
CROSS JOIN LATERAL (
    -- Who looked at it before these days is asked about all of them.
    SELECT CASE WHEN EXISTS (SELECT FROM public.relay_uptime_day e WHERE e.relay_id = r.id AND e.vantage_id = u.vantage_id AND e.at < n.first_at)
                  OR EXISTS (SELECT FROM public.relay_uptime e WHERE e.relay_id = r.id AND e.vantage_id = u.vantage_id AND e.at < n.first_at)
                THEN n.first_at ELSE u.first_at END AS first_at) f
CROSS JOIN LATERAL (
    -- The latest look stands until now, or its opinion lapses.
    SELECT u.seen_s + l.left_s AS seen_s, u.up_s + CASE WHEN s.alive_at = s.checked_at THEN l.left_s ELSE 0 END AS up_s,
           extract(epoch FROM now())::bigint - greatest(f.first_at, r.discovered_at) AS span_s
    FROM (SELECT CASE WHEN s.alive_at = s.checked_at OR s.reason NOT IN ('rate_limited', 'auth_required', 'blocked')
                      THEN greatest(least(extract(epoch FROM now())::bigint, s.stands_until) - s.checked_at, 0) ELSE 0 END AS left_s) l) t
CROSS JOIN LATERAL (SELECT public.histogram_percentiles(u.open_hist) AS p) o
CROSS JOIN LATERAL (SELECT public.histogram_percentiles(u.read_hist) AS p) e
CROSS JOIN LATERAL (SELECT public.histogram_percentiles(u.write_hist) AS p) w;
