-- What is removed, moved and filled stays within bounds: authors who wrote much, months that hold much, rollups that are owed,
-- and events dated ahead.

-- The ends of who wrote much --------------------------------------------------------------------------------------------

CREATE FUNCTION rollup_much() RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT 20000::bigint $$;
COMMENT ON FUNCTION rollup_much IS 'Events of an author and kind above which they are not read as a whole for one that goes: 0.1 s.';

CREATE FUNCTION rollup_mend_far() RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = public, pg_temp SET jit = off
SET enable_nestloop = on SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan SET max_parallel_workers_per_gather = 0
AS $$
DECLARE
    r record;
    v_up boolean;
    v_left integer[];
    v_relays integer[];
    v_seconds bigint[];
    v_more integer[];
    v_then bigint[];
    v_at bigint;
    v_next bigint;
    n integer;
BEGIN
    FOR r IN
        WITH much AS MATERIALIZED (
            SELECT z.author_id, z.kind FROM (SELECT DISTINCT x.author_id, x.kind FROM pg_temp.rollup_change x) z
            CROSS JOIN LATERAL (SELECT y.events FROM rollup_author_kind y WHERE y.author_id = z.author_id AND y.kind = z.kind OFFSET 0) y
            WHERE y.events > rollup_much()
        )
        SELECT c.author_id, c.pubkey, c.kind, (least(greatest(min(x.first_at), 0), 4294967295) << 31) AS lo,
               ((least(greatest(max(x.last_at), 0), 4294967295) << 31) | 2147483647) AS hi,
               array_agg(c.relay_id) FILTER (WHERE c.lo <= x.first_at) AS firsts, array_agg(c.relay_id) FILTER (WHERE c.hi >= x.last_at) AS lasts
        FROM (SELECT p.relay_id, z.author_id, z.pubkey, z.kind, min(z.created_at) AS lo, max(z.created_at) AS hi
              FROM much w JOIN pg_temp.rollup_change z ON z.author_id = w.author_id AND z.kind = w.kind
              CROSS JOIN LATERAL unnest(z.pairs) p(relay_id) GROUP BY 1, 2, 3, 4) c
        CROSS JOIN LATERAL (SELECT z.* FROM rollup_relay_author z WHERE z.relay_id = c.relay_id AND z.author_id = c.author_id AND z.kind = c.kind OFFSET 0) x
        WHERE c.lo <= x.first_at OR c.hi >= x.last_at
        GROUP BY 1, 2, 3
    LOOP
        FOREACH v_up IN ARRAY ARRAY[true, false] LOOP
            v_left := CASE WHEN v_up THEN r.firsts ELSE r.lasts END;
            v_relays := '{}'; v_seconds := '{}';
            v_at := CASE WHEN v_up THEN r.lo ELSE r.hi END;
            n := 200;
            WHILE cardinality(v_left) > 0 AND v_at IS NOT NULL LOOP
                -- fresh: as in rollup_mend. v_at is the first key that has not been looked at; one of the two halves is empty.
                WITH fresh AS MATERIALIZED (
                    SELECT y.event_key, y.relay_id FROM rollup_delta d CROSS JOIN LATERAL
                        unnest(d.keys, CASE WHEN cardinality(d.relays) = 1 THEN array_fill(d.relays[1], ARRAY[d.n]) ELSE d.relays END) y(event_key, relay_id)
                    WHERE NOT EXISTS (SELECT FROM pg_temp.rollup_known w WHERE w.id = d.id)
                ), e AS MATERIALIZED (
                    (SELECT z.event_key FROM event z
                     WHERE v_up AND z.pubkey = r.pubkey AND z.kind = r.kind AND z.fate = 0 AND z.event_key BETWEEN v_at AND r.hi
                     ORDER BY z.event_key LIMIT n)
                    UNION ALL
                    (SELECT z.event_key FROM event z
                     WHERE NOT v_up AND z.pubkey = r.pubkey AND z.kind = r.kind AND z.fate = 0 AND z.event_key BETWEEN r.lo AND v_at
                     ORDER BY z.event_key DESC LIMIT n)
                ), f AS (
                    SELECT o.relay_id, CASE WHEN v_up THEN min(e.event_key) ELSE max(e.event_key) END >> 31 << 31 AS second
                    FROM e CROSS JOIN LATERAL (
                        SELECT z.relay_id FROM event_relay z WHERE z.event_key = e.event_key AND z.relay_id = ANY (v_left) OFFSET 0) o
                    WHERE NOT EXISTS (SELECT FROM pg_temp.rollup_gone w WHERE w.event_key = e.event_key AND (w.relay_id IS NULL OR w.relay_id = o.relay_id))
                      AND NOT EXISTS (SELECT FROM fresh w WHERE w.event_key = e.event_key AND (w.relay_id IS NULL OR w.relay_id = o.relay_id))
                    GROUP BY 1
                )
                SELECT array_agg(f.relay_id), array_agg(f.second), (SELECT CASE WHEN v_up THEN nullif(max(e.event_key), 9223372036854775807) + 1 ELSE min(e.event_key) - 1 END FROM e)
                INTO v_more, v_then, v_next FROM f;
                v_relays := v_relays || v_more;
                v_seconds := v_seconds || v_then;
                v_left := ARRAY(SELECT x FROM unnest(v_left) x WHERE x <> ALL (v_relays));
                v_at := v_next;
                n := least(2 * n, 20000);
            END LOOP;
            -- In the second that is found created_at decides: at both ends keys tell no seconds apart.
            WITH fresh AS MATERIALIZED (
                SELECT y.event_key, y.relay_id FROM rollup_delta d CROSS JOIN LATERAL
                    unnest(d.keys, CASE WHEN cardinality(d.relays) = 1 THEN array_fill(d.relays[1], ARRAY[d.n]) ELSE d.relays END) y(event_key, relay_id)
                WHERE NOT EXISTS (SELECT FROM pg_temp.rollup_known w WHERE w.id = d.id)
            )
            UPDATE rollup_relay_author k
            SET first_at = CASE WHEN v_up THEN s.at ELSE k.first_at END, last_at = CASE WHEN v_up THEN k.last_at ELSE s.at END
            FROM (SELECT u.relay_id, e.created_at AS at FROM unnest(v_relays, v_seconds) u(relay_id, second)
                  CROSS JOIN LATERAL (
                      SELECT z.created_at FROM event z
                      WHERE z.pubkey = r.pubkey AND z.kind = r.kind AND z.fate = 0 AND z.event_key BETWEEN u.second AND (u.second | 2147483647)
                        AND EXISTS (SELECT FROM event_relay o WHERE o.relay_id = u.relay_id AND o.event_key = z.event_key)
                        AND NOT EXISTS (SELECT FROM pg_temp.rollup_gone w WHERE w.event_key = z.event_key AND (w.relay_id IS NULL OR w.relay_id = u.relay_id))
                        AND NOT EXISTS (SELECT FROM fresh w WHERE w.event_key = z.event_key AND (w.relay_id IS NULL OR w.relay_id = u.relay_id))
                      ORDER BY CASE WHEN v_up THEN z.created_at ELSE -z.created_at END LIMIT 1) e OFFSET 0) s
            WHERE k.author_id = r.author_id AND k.relay_id = s.relay_id AND k.kind = r.kind;
        END LOOP;
    END LOOP;
END $$;
COMMENT ON FUNCTION rollup_mend_far IS 'A step of rollup_mend: the first and last event on each relay of who wrote more than rollup_much of a kind. From either end in growing stretches, for all relays at once, until each has been met: what lies between two that go is passed once, not once for each of them.';

CREATE OR REPLACE FUNCTION rollup_mend() RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = public, pg_temp
AS $$
BEGIN
    PERFORM rollup_mend_far();
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
        WHERE (c.lo <= x.first_at OR c.hi >= x.last_at) AND y.events <= rollup_much()
    )
    INSERT INTO rollup_relay_author AS k (relay_id, author_id, kind, events, first_at, last_at)
    -- What an author wrote is read once for all relays (of what is more than rollup_much see rollup_mend_far),
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

-- Months that hold much ---------------------------------------------------------------------------------------------------

CREATE FUNCTION month_heavy(p_since bigint, p_now timestamptz DEFAULT now()) RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
    SELECT to_char(x.m, 'YYYY-MM')
    FROM generate_series(date_trunc('month', greatest(to_timestamp(p_since), TIMESTAMPTZ '2020-11-01 00:00:00+00') AT TIME ZONE 'UTC'),
                         (p_now + interval '2 months') AT TIME ZONE 'UTC', interval '1 month') x(m)
    WHERE (to_regclass('public.event_' || to_char(x.m, 'YYYYMM')) IS NULL OR to_regclass('public.event_relay_' || to_char(x.m, 'YYYYMM')) IS NULL)
      AND NOT month_is_light(extract(epoch FROM x.m AT TIME ZONE 'UTC')::bigint)
    ORDER BY 1
$$;
COMMENT ON FUNCTION month_heavy IS 'Months (2026-01) from p_since (Unix seconds) to two ahead that have no partitions and of which the default partitions hold so much that nobody moves it but an operator (month_ensure).';

CREATE OR REPLACE FUNCTION partition_maintain(p_since bigint, p_limit integer DEFAULT 10000, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET lock_timeout = '1s'
AS $$
DECLARE
    m timestamptz;
    d timestamptz;
    lo bigint;
    n integer := 0;
    v_part text;
BEGIN
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
    -- Months of the archive: from the first month wanted (never before Nostr) to two ahead. What would keep everybody waiting
    -- while it moves is left alone (month_heavy), and keeps nothing else from being made.
    m := date_trunc('month', greatest(to_timestamp(p_since), TIMESTAMPTZ '2020-11-01 00:00:00+00') AT TIME ZONE 'UTC') AT TIME ZONE 'UTC';
    WHILE m < p_now + interval '2 months' AND n < p_limit LOOP
        lo := extract(epoch FROM m)::bigint;
        v_part := to_char(m AT TIME ZONE 'UTC', 'YYYYMM');
        IF (to_regclass('public.event_' || v_part) IS NULL OR to_regclass('public.event_relay_' || v_part) IS NULL) AND month_is_light(lo) THEN
            n := n + month_ensure(lo);
        END IF;
        m := (m AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC';
    END LOOP;
    RETURN n;
END $$;
COMMENT ON FUNCTION partition_maintain IS 'Makes at most p_limit partitions (or the few of one month or day): those of the coming days, then of the coming months and those back to p_since (Unix seconds), except months of which the default partitions hold much (month_heavy); returns how many were made.';

-- Room --------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION archive_bytes() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
    -- 124 bytes of rollups an observation (docs/adr/007-rollups.md). The log is short, or about to be: its long columns lie elsewhere.
    SELECT pg_database_size(current_database()) + coalesce((SELECT sum(d.n) * 124 FROM rollup_delta d WHERE d.op = 1), 0)::bigint
$$;
COMMENT ON FUNCTION archive_bytes IS 'What the disk budget is held against: the size of the database, and what the rollups will take of observations that wait to be counted.';

CREATE OR REPLACE FUNCTION archive_room() RETURNS TABLE (bytes bigint, max_bytes bigint)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    UPDATE archive_size s SET bytes = archive_bytes(), measured_at = clock_timestamp()
    WHERE s.measured_at < clock_timestamp() - interval '10 seconds' OR s.measured_at > clock_timestamp() + interval '10 seconds';
    SELECT s.bytes INTO bytes FROM archive_size s;
    SELECT s.max_bytes INTO max_bytes FROM archive_setting s;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION archive_room IS 'The size of the archive (archive_bytes), at most ten seconds old, and its budget: what a sync pass looks at again while it runs.';

CREATE OR REPLACE FUNCTION sync_begin(p_relay_id integer)
RETURNS TABLE (before_at bigint, light boolean, bytes bigint, max_bytes bigint, kinds_from integer[], kinds_to integer[], kinds_days integer[],
               neg_off_until bigint, ages bigint[], untils bigint[], has_gone boolean, measured text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    UPDATE archive_size s SET bytes = archive_bytes(), measured_at = clock_timestamp()
    WHERE s.measured_at < clock_timestamp() - interval '10 seconds' OR s.measured_at > clock_timestamp() + interval '10 seconds';
    SELECT s.bytes INTO bytes FROM archive_size s;
    before_at := archive_before(p_relay_id);
    SELECT s.light, s.max_bytes INTO light, max_bytes FROM archive_setting s;
    SELECT coalesce(array_agg(r.kind_from ORDER BY r.name), '{}'), coalesce(array_agg(r.kind_to ORDER BY r.name), '{}'), coalesce(array_agg(r.days ORDER BY r.name), '{}')
    INTO kinds_from, kinds_to, kinds_days FROM retention_policy r WHERE r.what = 'kind';
    SELECT f.neg_off_until, f.ages, f.untils, f.has_gone INTO neg_off_until, ages, untils, has_gone FROM sync_facts(p_relay_id) f;
    SELECT c.measured::text INTO measured FROM relay_capability c WHERE c.relay_id = p_relay_id;
    RETURN NEXT;
END $$;

CREATE OR REPLACE FUNCTION archive_get(p_url text)
RETURNS TABLE (before_at bigint, light boolean, bytes bigint, max_bytes bigint, kinds_from integer[], kinds_to integer[], kinds_days integer[])
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    SELECT coalesce(max(h.before_at), 0) INTO before_at FROM archive_horizon h WHERE h.scope IN ('all', p_url);
    SELECT s.light, s.max_bytes INTO light, max_bytes FROM archive_setting s;
    bytes := archive_bytes();
    SELECT coalesce(array_agg(r.kind_from ORDER BY r.name), '{}'), coalesce(array_agg(r.kind_to ORDER BY r.name), '{}'), coalesce(array_agg(r.days ORDER BY r.name), '{}')
    INTO kinds_from, kinds_to, kinds_days FROM retention_policy r WHERE r.what = 'kind';
    RETURN NEXT;
END $$;

COMMENT ON COLUMN archive_size.bytes IS 'What archive_bytes was.';

-- Lightweight mode --------------------------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION archive_mode_set(p_light boolean, p_actor text, p_why text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE v_changed boolean;
BEGIN
    UPDATE archive_setting s SET light = p_light, light_at = CASE WHEN p_light THEN coalesce(s.light_at, now()) ELSE s.light_at END WHERE s.light <> p_light;
    v_changed := found;
    -- Who asks again goes on where the round was interrupted; one that came to its end begins anew by itself.
    IF v_changed THEN
        DELETE FROM archive_cursor c WHERE c.name = 'bodies';
    END IF;
    PERFORM operation_note(p_actor, CASE WHEN p_light THEN 'lighten' ELSE 'keep-bodies' END, '{}', v_changed::integer, '{}', p_why);
    RETURN v_changed;
END $$;

-- Events dated ahead ------------------------------------------------------------------------------------------------------

CREATE VIEW events_ahead AS
SELECT e.id, e.pubkey, e.created_at, e.kind, e.created_at - n.now AS ahead_s, o.seen_at
FROM (SELECT extract(epoch FROM now())::bigint AS now) n
CROSS JOIN LATERAL (
    SELECT x.event_key, x.id, x.pubkey, x.created_at, x.kind FROM public.event x
    WHERE x.event_key >= public.second_key(n.now + 901) AND x.fate = 0 OFFSET 0) e
CROSS JOIN LATERAL (SELECT min(y.seen_at) AS seen_at FROM public.event_relay y WHERE y.event_key = e.event_key OFFSET 0) o;
COMMENT ON VIEW events_ahead IS 'Archived events dated more than 15 minutes ahead: no limit by age takes them before their date has come and passed.';
COMMENT ON COLUMN events_ahead.id IS 'event.id';
COMMENT ON COLUMN events_ahead.pubkey IS 'Author.';
COMMENT ON COLUMN events_ahead.created_at IS 'The date they bear, Unix seconds.';
COMMENT ON COLUMN events_ahead.kind IS 'Kind.';
COMMENT ON COLUMN events_ahead.ahead_s IS 'How far ahead that is now.';
COMMENT ON COLUMN events_ahead.seen_at IS 'When we first saw them on any relay, Unix seconds.';

CREATE FUNCTION ahead_count(p_most bigint, p_now timestamptz DEFAULT now()) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
    SELECT count(*) FROM (
        SELECT FROM event e WHERE e.event_key >= second_key(extract(epoch FROM p_now)::bigint + 901) AND e.fate = 0 LIMIT p_most) x
$$;
COMMENT ON FUNCTION ahead_count IS 'How many archived events are dated more than 15 minutes ahead; counts no further than p_most.';
