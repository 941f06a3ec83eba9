-- What is kept, and how it comes in: an import goes by the policies of a sync, what is stored is judged by the policies
-- where it is stored, what expires while it is held goes, and a removal does not wait behind a log of any length.

CREATE FUNCTION archive_horizons() RETURNS TABLE (scope text, before_at bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$ SELECT h.scope, h.before_at FROM archive_horizon h ORDER BY 1 $$;
COMMENT ON FUNCTION archive_horizons IS 'Every horizon: all, or the URL of a relay, and the first second that is kept. What an import goes by.';

CREATE OR REPLACE FUNCTION event_import(
    n_ids bytea[], n_keys bigint[], n_created_ats bigint[], n_pubkeys bytea[], n_kinds integer[],
    n_tags bytea[], n_contents bytea[], n_sigs bytea[], n_d_tags bytea[], n_tag_hashes text[],
    p_urls text[], p_networks text[], p_discovered_ats bigint[],
    o_ids bytea[], o_keys bigint[], o_urls integer[], o_seen_ats bigint[], o_evidence smallint[])
RETURNS TABLE (new_relays integer, new_events integer, new_observations integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    relay_ids integer[];
    stray bytea;
    v_now bigint;
BEGIN
    -- The gate of whoever drops whole months of events: here, before any lock on a table is held.
    PERFORM pg_advisory_xact_lock_shared(7310);
    -- What an export waits for when it begins: by then whatever has an earlier time is stored.
    PERFORM pg_advisory_xact_lock_shared(7334);
    v_now := floor(extract(epoch FROM clock_timestamp()))::bigint;
    SELECT u.id INTO stray FROM unnest(n_ids) u(id)
    WHERE NOT EXISTS (SELECT FROM unnest(o_ids) o(id) WHERE o.id = u.id) LIMIT 1;
    IF stray IS NOT NULL THEN
        RAISE EXCEPTION 'event % was seen on no relay', encode(stray, 'hex') USING ERRCODE = 'raise_exception';
    END IF;
    new_relays := relay_insert(p_urls, p_networks, p_discovered_ats);
    SELECT array_agg(r.id ORDER BY u.o) INTO relay_ids
    FROM unnest(p_urls) WITH ORDINALITY u(url, o) JOIN relay r ON r.url = u.url;
    new_events := 0;
    IF cardinality(n_ids) > 0 THEN
        new_events := event_insert(n_ids, n_keys, n_created_ats, n_pubkeys, n_kinds, n_tags, n_contents, n_sigs, n_d_tags, n_tag_hashes);
    END IF;
    new_observations := event_relay_insert(o_ids, o_keys,
        ARRAY(SELECT relay_ids[u.i] FROM unnest(o_urls) WITH ORDINALITY u(i, o) ORDER BY u.o),
        ARRAY(SELECT coalesce(u.at, v_now) FROM unnest(o_seen_ats) WITH ORDINALITY u(at, o) ORDER BY u.o), o_evidence);
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION event_import IS 'One batch of an import in one transaction: relays (o_urls are 1-based positions in p_urls), new events (n_*), and observations of new and known ones (o_*; seen at null: now). A new event without an observation is refused. Returns the counts of what was new.';

-- What expires (NIP-40) ----------------------------------------------------------------------------------------------------

CREATE TABLE event_expiry (
    expires_at bigint NOT NULL,
    event_key  bigint NOT NULL,
    PRIMARY KEY (expires_at, event_key)
);
COMMENT ON TABLE  event_expiry IS 'When archived events that say so themselves expire (NIP-40); written with the event, deleted when the time has come. An event that went before leaves its row until then.';
COMMENT ON COLUMN event_expiry.expires_at IS 'The value of its first tag "expiration", Unix seconds.';
COMMENT ON COLUMN event_expiry.event_key IS 'event.event_key';

CREATE FUNCTION expiry_of(p_kind integer, p_tags bytea) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    -- The bytes ["expiration" with their quotes bare begin a tag and are nothing else: inside a string a quote is escaped.
    SELECT CASE WHEN p_kind NOT IN (5, 62) AND position('\x5b2265787069726174696f6e22'::bytea IN p_tags) > 0
        THEN substring(encode(substring(p_tags FROM position('\x5b2265787069726174696f6e22'::bytea IN p_tags) FOR 32), 'escape')
                       FROM '^\["expiration","([0-9]{1,10})"')::bigint END
$$;
COMMENT ON FUNCTION expiry_of IS 'When an event with these tags (JSON without blanks, as archived) expires; null: never. Requests to delete or to vanish do not: they say why something else is not there.';

-- Policies by kind: whatever is stored while one of them stands is judged by it ------------------------------------------

CREATE OR REPLACE FUNCTION retention_before(p_what text, p_days integer, p_now timestamptz) RETURNS bigint
LANGUAGE sql STABLE
AS $$
    SELECT CASE
        WHEN p_what = 'age' THEN extract(epoch FROM date_trunc('month', (p_now - make_interval(days => p_days)) AT TIME ZONE 'UTC') AT TIME ZONE 'UTC')::bigint
        WHEN p_days = 0 THEN 9223372036854775807
        WHEN p_what = 'kind' THEN ((extract(epoch FROM p_now)::bigint - 900) / 86400 - p_days) * 86400
        ELSE (extract(epoch FROM p_now)::bigint / 86400 - p_days) * 86400 END
$$;
COMMENT ON FUNCTION retention_before IS 'First second that a policy keeps: the first of a month by age, of a UTC day else. A day of a kind is over 15 minutes after midnight: whatever was judged before that is stored then.';

CREATE OR REPLACE FUNCTION event_insert(
    p_ids bytea[], p_keys bigint[], p_created_ats bigint[], p_pubkeys bytea[], p_kinds integer[],
    p_tags bytea[], p_contents bytea[], p_sigs bytea[], p_d_tags bytea[], p_tag_hashes text[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    n integer;
    v_keys bigint[];
    v_not bigint[];
    v_ids bytea[];
    v_ats bigint[];
    k bigint;
    r record;
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
            CROSS JOIN LATERAL (SELECT x.id FROM event x WHERE x.event_key = u.key OFFSET 0) e
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
    -- Few expire; those are looked up again.
    SELECT array_agg(u.id), array_agg(u.key), array_agg(x.at) INTO v_ids, v_keys, v_ats
    FROM unnest(p_ids, p_keys, p_kinds, p_tags) u(id, key, kind, tags)
    CROSS JOIN LATERAL (SELECT expiry_of(u.kind, u.tags) AS at OFFSET 0) x WHERE x.at IS NOT NULL;
    IF v_ids IS NOT NULL THEN
        INSERT INTO event_expiry SELECT v_ats[e.o], e.event_key FROM event_resolve(v_ids, v_keys) e WHERE e.fate = 0 ORDER BY 1, 2 ON CONFLICT DO NOTHING;
    END IF;
    RETURN n;
END $$;
COMMENT ON FUNCTION event_insert IS 'Stores events; returns how many were new. Those of a kind that is not kept, or not any more, are remembered without a body and not counted. Ids are not checked here: the caller verified them. p_tag_hashes are array literals.';

-- The log that a removal copies while others wait: 2 s for a million keys -----------------------------------------------

CREATE FUNCTION rollup_settle(p_limit integer) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    IF (SELECT coalesce(sum(d.n), 0) FROM rollup_delta d) <= 100000 THEN RETURN true; END IF;
    PERFORM rollup_refresh(p_limit);
    RETURN false;
END $$;
COMMENT ON FUNCTION rollup_settle IS 'Asked before events or observations are taken away: true when at most 100,000 keys wait to be counted. Else it counts about p_limit of them and says false: the removal is for the next call. Raises lock_not_available while a refresh runs.';

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
COMMENT ON FUNCTION retention_step IS 'The next bounded piece of what the policies ask for: horizons rise, coverage below them becomes a gap, then at most p_look events, or observations of one relay, go; before that the log of the rollups is made short (log). Returns what it was and how much; no row: nothing is left to do.';

CREATE OR REPLACE FUNCTION orphan_event_sweep(p_look integer) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_after bigint := coalesce((SELECT c.cursor_key FROM archive_cursor c WHERE c.name = 'orphans'), -1);
    v_last bigint;
    v_keys bigint[];
    n integer := 0;
BEGIN
    SELECT max(x.event_key) INTO v_last FROM (SELECT e.event_key FROM event e WHERE e.event_key > v_after ORDER BY e.event_key LIMIT p_look) x;
    -- Looked for without the lock, so that it costs nobody anything; looked at again under it.
    v_keys := ARRAY(SELECT e.event_key FROM event e WHERE e.event_key > v_after AND e.event_key <= v_last AND e.fate = 0
                    AND NOT EXISTS (SELECT FROM event_relay o WHERE o.event_key = e.event_key AND o.event_key > v_after AND o.event_key <= v_last));
    IF cardinality(v_keys) > 0 THEN
        IF NOT rollup_settle(50000) THEN RETURN 0; END IF;
        PERFORM archive_lock();
        v_keys := ARRAY(SELECT k FROM unnest(v_keys) k JOIN event e ON e.event_key = k
                        WHERE e.fate = 0 AND NOT EXISTS (SELECT FROM event_relay o WHERE o.event_key = k) ORDER BY 1);
        n := (SELECT r.events FROM event_remove(v_keys) r);
    END IF;
    INSERT INTO archive_cursor VALUES ('orphans', coalesce(v_last, -1)) ON CONFLICT (name) DO UPDATE SET cursor_key = excluded.cursor_key;
    RETURN n;
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
    IF NOT rollup_settle(5000) THEN RETURN NEXT; RETURN; END IF;
    -- By id, at once; and once more when whatever did not know of it yet has been stored.
    WITH open AS (
        SELECT t.pubkey, t.target, t.settled FROM tombstone t
        WHERE t.what = 0 AND (t.settled = 0 OR t.settled = 1 AND t.noted_at <= now() - p_lag)
        ORDER BY t.noted_at LIMIT p_look
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
        UPDATE tombstone t SET settled = 2 WHERE t.what > 0 AND t.settled < 2 AND t.noted_at <= v_round.noted_to;
        DELETE FROM tombstone_round;
    ELSE
        UPDATE tombstone_round SET cursor_key = v_last;
    END IF;
    RETURN NEXT;
END $$;
ALTER FUNCTION tombstone_step SET lock_timeout = '1s';

CREATE FUNCTION event_expire(p_look integer, p_now timestamptz DEFAULT now())
RETURNS TABLE (looked integer, expired integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_now bigint := extract(epoch FROM p_now)::bigint;
    v_keys bigint[];
BEGIN
    looked := 0; expired := 0;
    IF NOT EXISTS (SELECT FROM event_expiry x WHERE x.expires_at <= v_now) THEN RETURN NEXT; RETURN; END IF;
    IF NOT rollup_settle(p_look * 25) THEN looked := 1; RETURN NEXT; RETURN; END IF;
    PERFORM archive_lock();
    WITH due AS (
        DELETE FROM event_expiry d USING (SELECT x.expires_at, x.event_key FROM event_expiry x WHERE x.expires_at <= v_now ORDER BY 1, 2 LIMIT p_look) y
        WHERE d.expires_at = y.expires_at AND d.event_key = y.event_key RETURNING d.event_key
    )
    SELECT count(*), array_agg(d.event_key ORDER BY 1) INTO looked, v_keys FROM due d;
    expired := event_strip(v_keys, 3::smallint);
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION event_expire IS 'Makes at most p_look archived events expired whose own time (NIP-40) has come: the row and its observations stay, the body goes, nothing fetches them again. Returns how many it looked at, and how many it was; call until looked is 0.';

-- What was archived before somebody looked at it: once through the archive ----------------------------------------------

COMMENT ON COLUMN archive_cursor.name IS 'Which round: orphans, bodies, or review.';
COMMENT ON COLUMN archive_cursor.cursor_key IS 'The last event.event_key looked at; -1: begin again. The review is done once and ends at the largest key there can be.';

CREATE FUNCTION archive_review_take(p_look integer)
RETURNS TABLE (after_key bigint, next_key bigint, ids bytea[], pubkeys bytea[], created_ats bigint[], kinds integer[], tags bytea[], contents bytea[], sigs bytea[])
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    after_key := coalesce((SELECT c.cursor_key FROM archive_cursor c WHERE c.name = 'review'), -1);
    IF after_key = 9223372036854775807 THEN RETURN; END IF;
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
COMMENT ON FUNCTION archive_review_take IS 'The next piece of the one round through what was archived before version 34: where it begins and ends, at most p_look events, and the requests to delete or to vanish in it, whose bodies are here. No row: the round is over.';

CREATE FUNCTION archive_review_store(
    p_after bigint, p_next bigint, p_pubkeys bytea[], p_whats smallint[], p_kinds integer[], p_targets bytea[], p_untils bigint[], p_requests bytea[])
RETURNS TABLE (stones integer, expiries integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
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
COMMENT ON FUNCTION archive_review_store IS 'What a piece of the review found: what its requests ask to have deleted, and, looked up here, when its events expire. Returns how many of both were new.';

-- Called by no program of any version: tombstone_step does both.
DROP FUNCTION event_tombstone(bytea, bytea[]);
DROP FUNCTION event_vanish(bytea, bigint, bigint, integer);
