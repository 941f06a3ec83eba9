-- What a page costs the server: events and observations are looked up all at once, in one walk over the index of a month,
-- and what is new is written without asking twice. Bodies change, signatures stay: workers of every version call these.

-- Of two months and less one scan with all keys is half of what a look for each of them is; each month looks for every key,
-- so that keys that are strewn over years are looked up one by one. Events that moved off their key (event_collision) lie
-- within a few seconds of it: only pages near them have to think of them.

CREATE FUNCTION tombstone_marked(p_pubkeys bytea[]) RETURNS SETOF integer
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
BEGIN
    RETURN QUERY
        SELECT u.o::integer
        FROM (SELECT DISTINCT x.pubkey FROM unnest(p_pubkeys) x(pubkey)
              WHERE EXISTS (SELECT FROM tombstone t WHERE t.pubkey = x.pubkey)) a
        JOIN unnest(p_pubkeys) WITH ORDINALITY u(pubkey, o) ON u.pubkey = a.pubkey;
END $$;
COMMENT ON FUNCTION tombstone_marked IS 'Which of these authors have asked for deletions: 1-based positions.';

CREATE OR REPLACE FUNCTION event_known(p_ids bytea[], p_keys bigint[], p_pubkeys bytea[])
RETURNS TABLE (o integer, fate smallint, sig_head bytea)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_nestloop = off SET enable_mergejoin = off SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    lo bigint;
    hi bigint;
BEGIN
    SELECT min(x), max(x) INTO lo, hi FROM unnest(p_keys) x;
    -- Eight bytes tell signatures apart as well as 64 do: who forges a body copies the whole of it.
    IF hi - lo <= (62 * 86400)::bigint << 31 THEN
        RETURN QUERY
            SELECT u.o::integer, e.fate, substring(e.sig FROM 1 FOR 8)
            FROM event e JOIN unnest(p_ids, p_keys) WITH ORDINALITY u(id, key, o) ON u.key = e.event_key AND u.id = e.id
            WHERE e.event_key = ANY (p_keys) AND e.event_key BETWEEN lo AND hi;
    ELSE
        RETURN QUERY
            SELECT u.o::integer, e.fate, substring(e.sig FROM 1 FOR 8)
            FROM unnest(p_ids, p_keys) WITH ORDINALITY u(id, key, o)
            CROSS JOIN LATERAL (
                SELECT x.fate, x.sig FROM event x
                WHERE x.event_key = u.key AND x.id = u.id AND x.event_key BETWEEN lo AND hi
                OFFSET 0) e;
    END IF;
    IF EXISTS (SELECT FROM event_collision c WHERE c.event_key BETWEEN lo - 8589934592 AND least(hi, 9223372028264841215) + 8589934592) THEN
        RETURN QUERY
            SELECT u.o::integer, e.fate, substring(e.sig FROM 1 FOR 8)
            FROM unnest(p_ids) WITH ORDINALITY u(id, o)
            JOIN event_collision c ON c.id = u.id
            CROSS JOIN LATERAL (
                SELECT x.fate, x.sig FROM event x
                WHERE x.event_key = c.event_key AND x.id = u.id OFFSET 0) e;
    END IF;
    IF EXISTS (SELECT FROM tombstone) THEN
        RETURN QUERY SELECT m.o, (-1)::smallint, NULL::bytea FROM tombstone_marked(p_pubkeys) m(o);
    END IF;
END $$;

CREATE OR REPLACE FUNCTION event_insert(
    p_ids bytea[], p_keys bigint[], p_created_ats bigint[], p_pubkeys bytea[], p_kinds integer[],
    p_tags bytea[], p_contents bytea[], p_sigs bytea[], p_d_tags bytea[], p_tag_hashes text[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    n integer := cardinality(p_ids);
    v_keys bigint[];
    k bigint;
    r record;
    lo bigint;
    hi bigint;
    v_not bigint[];
    v_ids bytea[];
    v_ats bigint[];
    v_stored boolean := false;
BEGIN
    -- A policy looks through the archive once: what it has passed is judged here, by one clock, whoever stores it.
    IF EXISTS (SELECT FROM retention_policy p WHERE p.what = 'kind') THEN
        v_not := ARRAY(
            SELECT u.o FROM unnest(p_kinds, p_created_ats) WITH ORDINALITY u(kind, created_at, o)
            WHERE EXISTS (SELECT FROM retention_policy p WHERE p.what = 'kind' AND u.kind BETWEEN p.kind_from AND p.kind_to
                            AND u.created_at < retention_before('kind', p.days, now() + interval '15 minutes')));
        IF cardinality(v_not) > 0 THEN
            PERFORM event_note(array_agg(u.id), array_agg(u.key), array_agg(u.created_at), array_agg(u.pubkey), array_agg(u.kind), array_agg(1::smallint))
            FROM unnest(p_ids, p_keys, p_created_ats, p_pubkeys, p_kinds) WITH ORDINALITY u(id, key, created_at, pubkey, kind, o)
            WHERE u.o = ANY (v_not);
            RETURN (
                SELECT event_insert(array_agg(u.id ORDER BY u.o), array_agg(u.key ORDER BY u.o), array_agg(u.created_at ORDER BY u.o),
                    array_agg(u.pubkey ORDER BY u.o), array_agg(u.kind ORDER BY u.o), array_agg(u.tags ORDER BY u.o), array_agg(u.content ORDER BY u.o),
                    array_agg(u.sig ORDER BY u.o), array_agg(u.d_tag ORDER BY u.o), array_agg(u.hashes ORDER BY u.o))
                FROM unnest(p_ids, p_keys, p_created_ats, p_pubkeys, p_kinds, p_tags, p_contents, p_sigs, p_d_tags, p_tag_hashes)
                     WITH ORDINALITY u(id, key, created_at, pubkey, kind, tags, content, sig, d_tag, hashes, o)
                WHERE u.o <> ALL (v_not));
        END IF;
    END IF;
    SELECT min(x), max(x) INTO lo, hi FROM unnest(p_keys) x;
    -- Mostly all of them are new: then without ON CONFLICT, which looks twice and writes a second record for each row.
    IF hi - lo <= (62 * 86400)::bigint << 31
       AND NOT EXISTS (SELECT FROM event_collision c WHERE c.event_key BETWEEN lo - 8589934592 AND least(hi, 9223372028264841215) + 8589934592)
       AND NOT EXISTS (SELECT FROM event e WHERE e.event_key = ANY (p_keys) AND e.event_key BETWEEN lo AND hi)
    THEN
        BEGIN
            INSERT INTO event (event_key, created_at, kind, id, pubkey, sig, d_tag, tags, content, tag_hashes)
            SELECT u.key, u.created_at, u.kind, u.id, u.pubkey, u.sig, u.d_tag, u.tags, u.content, u.hashes::bigint[]
            FROM unnest(p_ids, p_keys, p_created_ats, p_pubkeys, p_kinds, p_tags, p_contents, p_sigs, p_d_tags, p_tag_hashes)
                 u(id, key, created_at, pubkey, kind, tags, content, sig, d_tag, hashes)
            ORDER BY u.key;
            INSERT INTO event_unmined SELECT x FROM unnest(p_keys) x ORDER BY 1;
            INSERT INTO rollup_delta (op, n, keys) VALUES (0, n, p_keys);
            v_stored := true;
        EXCEPTION WHEN unique_violation THEN NULL;
        END;
    END IF;
    IF NOT v_stored THEN
        WITH fresh AS (
            INSERT INTO event (event_key, created_at, kind, id, pubkey, sig, d_tag, tags, content, tag_hashes)
            SELECT u.key, u.created_at, u.kind, u.id, u.pubkey, u.sig, u.d_tag, u.tags, u.content, u.hashes::bigint[]
            FROM unnest(p_ids, p_keys, p_created_ats, p_pubkeys, p_kinds, p_tags, p_contents, p_sigs, p_d_tags, p_tag_hashes)
                 u(id, key, created_at, pubkey, kind, tags, content, sig, d_tag, hashes)
            WHERE NOT EXISTS (SELECT FROM event_collision c WHERE c.id = u.id)
            ORDER BY u.key, u.id
            ON CONFLICT DO NOTHING
            RETURNING event_key
        ), work AS (
            INSERT INTO event_unmined SELECT f.event_key FROM fresh f ORDER BY 1 ON CONFLICT DO NOTHING
        )
        SELECT count(*), array_agg(f.event_key) INTO n, v_keys FROM fresh f;
        IF n < cardinality(p_ids) THEN
            -- Either known already, or another event holds the key: the second kind moves to the next free key.
            FOR r IN
                SELECT u.* FROM unnest(p_ids, p_keys) WITH ORDINALITY u(id, key, o)
                CROSS JOIN LATERAL (SELECT x.id FROM event x WHERE x.event_key = u.key AND x.event_key BETWEEN lo AND hi OFFSET 0) e
                WHERE e.id <> u.id ORDER BY u.id
            LOOP
                PERFORM pg_advisory_xact_lock(7301);
                IF EXISTS (SELECT FROM event_collision c WHERE c.id = r.id) THEN CONTINUE; END IF;
                k := r.key;
                LOOP
                    -- The last key of all has no next one: look for a free one below.
                    k := CASE WHEN k = 9223372036854775807 THEN 9223372036854775807 - 4294967296 ELSE k + 1 END;
                    INSERT INTO event (event_key, created_at, kind, id, pubkey, sig, d_tag, tags, content, tag_hashes)
                    VALUES (k, p_created_ats[r.o], p_kinds[r.o], r.id, p_pubkeys[r.o], p_sigs[r.o], p_d_tags[r.o],
                            p_tags[r.o], p_contents[r.o], p_tag_hashes[r.o]::bigint[])
                    ON CONFLICT DO NOTHING;
                    EXIT WHEN found;
                END LOOP;
                INSERT INTO event_collision VALUES (r.id, k);
                INSERT INTO event_unmined VALUES (k) ON CONFLICT DO NOTHING;
                v_keys := v_keys || k;
                n := n + 1;
            END LOOP;
        END IF;
        IF n > 0 THEN
            INSERT INTO rollup_delta (op, n, keys) VALUES (0, n, v_keys);
        END IF;
    END IF;
    -- Few expire; those are looked up again.
    SELECT array_agg(u.id), array_agg(u.key), array_agg(x.at) INTO v_ids, v_keys, v_ats
    FROM unnest(p_ids, p_keys, p_kinds, p_tags) u(id, key, kind, tags)
    CROSS JOIN LATERAL (SELECT expiry_of(u.kind, u.tags) AS at OFFSET 0) x WHERE x.at IS NOT NULL;
    IF v_ids IS NOT NULL THEN
        INSERT INTO event_expiry SELECT v_ats[e.o], e.event_key FROM event_resolve(v_ids, v_keys) e WHERE e.fate = 0 ORDER BY 1, 2 ON CONFLICT DO NOTHING;
    END IF;
    RETURN n;
END $$;

CREATE OR REPLACE FUNCTION relay_observe(p_relay_id integer, p_at bigint, p_evidence smallint, p_ids bytea[], p_keys bigint[], OUT fresh integer, OUT missing integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_nestloop = off SET enable_mergejoin = off SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    n integer := coalesce(cardinality(p_ids), 0);
    v_moved boolean;
    v_there bigint[];
    v_keys bigint[] := p_keys;
    v_ids bytea[] := p_ids;
    v_resolved integer;
    lo bigint;
    hi bigint;
BEGIN
    fresh := 0;
    missing := 0;
    IF n = 0 OR NOT EXISTS (SELECT FROM relay r WHERE r.id = p_relay_id) THEN RETURN; END IF;
    -- Before the first look: whoever takes events away (archive_lock) is through with it, or waits until we are.
    LOCK TABLE ONLY event_relay IN ROW EXCLUSIVE MODE;
    SELECT min(x), max(x) INTO lo, hi FROM unnest(p_keys) x;
    v_moved := EXISTS (SELECT FROM event_collision c WHERE c.event_key BETWEEN lo - 8589934592 AND least(hi, 9223372028264841215) + 8589934592);
    -- A page is a stretch of a relay's timeline: what is known of the relay between its ends is either nothing, or mostly
    -- the page itself. Where it is much more, the pairs are asked for by name.
    v_there := ARRAY(SELECT o.event_key FROM event_relay o WHERE o.relay_id = p_relay_id AND o.event_key BETWEEN lo AND hi LIMIT 4 * n + 1);
    IF cardinality(v_there) > 4 * n THEN
        v_there := ARRAY(SELECT o.event_key FROM event_relay o WHERE o.relay_id = p_relay_id AND o.event_key = ANY (p_keys) AND o.event_key BETWEEN lo AND hi);
    END IF;
    -- A pair that is there has its event, by the lock above; a moved event's own key is another event's pair.
    IF cardinality(v_there) > 0 THEN
        SELECT array_agg(u.id), array_agg(u.key) INTO v_ids, v_keys FROM unnest(p_ids, p_keys) u(id, key)
        WHERE NOT EXISTS (SELECT FROM unnest(v_there) t WHERE t = u.key)
           OR v_moved AND EXISTS (SELECT FROM event_collision c WHERE c.id = u.id);
        IF v_ids IS NULL THEN RETURN; END IF;
    END IF;
    IF NOT v_moved AND hi - lo <= (62 * 86400)::bigint << 31 THEN
        BEGIN
            -- Without ON CONFLICT, which looks twice and writes a second record for each row.
            INSERT INTO event_relay (event_key, relay_id, seen_at, evidence)
            SELECT e.event_key, p_relay_id, p_at, p_evidence
            FROM event e JOIN unnest(v_ids, v_keys) u(id, key) ON u.key = e.event_key AND u.id = e.id
            WHERE e.event_key = ANY (v_keys) AND e.event_key BETWEEN lo AND hi
            ORDER BY 1;
            GET DIAGNOSTICS fresh = ROW_COUNT;
            missing := cardinality(v_ids) - fresh;
            IF missing > 0 THEN
                v_keys := ARRAY(SELECT o.event_key FROM event_relay o WHERE o.relay_id = p_relay_id AND o.event_key = ANY (v_keys) AND o.event_key BETWEEN lo AND hi);
            END IF;
            IF fresh > 0 THEN
                INSERT INTO rollup_delta (op, n, keys, relays) VALUES (1, fresh, v_keys, ARRAY[p_relay_id]);
            END IF;
            RETURN;
        EXCEPTION WHEN unique_violation THEN NULL;
        END;
    END IF;
    WITH known AS MATERIALIZED (
        SELECT r.o, r.event_key FROM event_resolve(v_ids, v_keys) r
    ), stored AS (
        INSERT INTO event_relay (event_key, relay_id, seen_at, evidence)
        SELECT DISTINCT k.event_key, p_relay_id, p_at, p_evidence FROM known k ORDER BY k.event_key
        ON CONFLICT DO NOTHING
        RETURNING event_key
    )
    SELECT (SELECT count(DISTINCT k.o) FROM known k), count(*), array_agg(s.event_key) INTO v_resolved, fresh, v_keys FROM stored s;
    missing := cardinality(v_ids) - v_resolved;
    IF fresh > 0 THEN
        INSERT INTO rollup_delta (op, n, keys, relays) VALUES (1, fresh, v_keys, ARRAY[p_relay_id]);
    END IF;
END $$;
