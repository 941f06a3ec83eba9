-- What the archive keeps: fates, horizons, retention, orphans. All in bounded batches, each a transaction of its own.
-- Whoever takes events or observations away holds archive_lock(): nobody stores an observation meanwhile, and nobody
-- rolls up. Nothing is dropped that a sync would fetch again: what goes by age leaves a horizon, all else its row.

COMMENT ON COLUMN event.fate IS '0 archived, 1 skipped by policy, 2 deleted, 3 expired: only 0 is counted, and only 0 may have a body (tags, content, signature, d tag, tag hashes).';
COMMENT ON COLUMN coverage.reason IS 'Why a gap is one (closed set); none for proof. retired: what was known was dropped by age.';

CREATE TABLE archive_horizon (
    scope     text        PRIMARY KEY,
    before_at bigint      NOT NULL CHECK (before_at > 0),
    set_at    timestamptz NOT NULL DEFAULT now(),
    reason    text        NOT NULL
);
COMMENT ON TABLE  archive_horizon IS 'Times below which nothing is kept and no relay is asked. What coverage had proved there is a gap with the reason retired.';
COMMENT ON COLUMN archive_horizon.scope IS 'all, or the URL of one relay.';
COMMENT ON COLUMN archive_horizon.before_at IS 'First second (created_at, Unix) that is still kept.';
COMMENT ON COLUMN archive_horizon.set_at IS 'When it came to stand there.';
COMMENT ON COLUMN archive_horizon.reason IS 'Which policy set it.';

CREATE TABLE retention_policy (
    name       text        PRIMARY KEY,
    what       text        NOT NULL CHECK (what IN ('age', 'kind', 'relay')),
    kind_from  integer,
    kind_to    integer,
    relay_url  text,
    days       integer     NOT NULL CHECK (days >= 0),
    set_at     timestamptz NOT NULL DEFAULT now(),
    cursor_key bigint      NOT NULL DEFAULT -1,
    again_at   timestamptz,
    CHECK ((what = 'kind') = (kind_from IS NOT NULL AND kind_to IS NOT NULL AND kind_from <= kind_to)),
    CHECK ((what = 'relay') = (relay_url IS NOT NULL)),
    CHECK (what <> 'age' OR days > 0)
);
COMMENT ON TABLE  retention_policy IS 'What is not kept; published by the leading scheduler from its section [retention], or by an operator''s retention apply.';
COMMENT ON COLUMN retention_policy.name IS 'The policy in words: age, kind 7, kinds 20000 to 29999, or a relay''s URL.';
COMMENT ON COLUMN retention_policy.what IS 'age: everything older; kind: events of these kinds; relay: what one relay showed us.';
COMMENT ON COLUMN retention_policy.kind_from IS 'First kind.';
COMMENT ON COLUMN retention_policy.kind_to IS 'Last kind.';
COMMENT ON COLUMN retention_policy.relay_url IS 'relay.url';
COMMENT ON COLUMN retention_policy.days IS 'Days by created_at that it is kept; 0: not at all.';
COMMENT ON COLUMN retention_policy.set_at IS 'Since when it is like this.';
COMMENT ON COLUMN retention_policy.cursor_key IS 'Up to this key its work is done.';
COMMENT ON COLUMN retention_policy.again_at IS 'When its work begins anew, once: for what was stored by workers that did not know it yet.';

CREATE TABLE archive_cursor (
    name       text   PRIMARY KEY,
    cursor_key bigint NOT NULL
);
COMMENT ON TABLE  archive_cursor IS 'Where rounds over the whole archive go on.';
COMMENT ON COLUMN archive_cursor.name IS 'Which round: orphans, or bodies.';
COMMENT ON COLUMN archive_cursor.cursor_key IS 'The last event.event_key looked at; -1: begin again.';

CREATE FUNCTION archive_lock() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET lock_timeout = '1s'
AS $$
BEGIN
    -- In this order: refreshes, then the making of partitions, then whoever stores observations. A writer takes its lock on
    -- event_relay before the snapshot of its statement: what it then resolves is what this transaction has left.
    PERFORM pg_advisory_xact_lock(7302);
    PERFORM pg_advisory_xact_lock(7303);
    LOCK TABLE ONLY event_relay IN SHARE ROW EXCLUSIVE MODE;
END $$;
COMMENT ON FUNCTION archive_lock IS 'Keeps refreshes, the making of partitions and new observations out until the end of the transaction; gives up after a second each.';

CREATE FUNCTION second_key(p_at bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT CASE WHEN p_at > 4294967295 THEN 9223372036854775807 ELSE greatest(p_at, 0) << 31 END $$;
COMMENT ON FUNCTION second_key IS 'The smallest event key of a second; the largest of all for a second beyond the last that keys can tell apart.';

CREATE FUNCTION retention_before(p_what text, p_days integer, p_now timestamptz) RETURNS bigint
LANGUAGE sql STABLE
AS $$
    SELECT CASE
        WHEN p_what = 'age' THEN extract(epoch FROM date_trunc('month', (p_now - make_interval(days => p_days)) AT TIME ZONE 'UTC') AT TIME ZONE 'UTC')::bigint
        WHEN p_days = 0 THEN 9223372036854775807
        ELSE (extract(epoch FROM p_now)::bigint / 86400 - p_days) * 86400 END
$$;
COMMENT ON FUNCTION retention_before IS 'First second that a policy keeps: the first of a month by age, of a UTC day else.';

CREATE FUNCTION archive_before(p_relay_id integer) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
    SELECT coalesce(max(h.before_at), 0) FROM archive_horizon h
    WHERE h.scope = 'all' OR h.scope = (SELECT r.url FROM relay r WHERE r.id = p_relay_id)
$$;
COMMENT ON FUNCTION archive_before IS 'First second of one relay that is kept; 0 without a horizon.';

-- Coverage below a horizon ------------------------------------------------------------------------------------------------

CREATE FUNCTION coverage_clip(p_relay_id integer, p_class text, p_before bigint) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    lo bigint;
    n integer;
BEGIN
    SELECT min(c.since_at), count(*) FILTER (WHERE c.reason <> 'retired' OR c.grade <> 'unknown' OR c.until_at >= p_before)
    INTO lo, n FROM coverage c WHERE c.relay_id = p_relay_id AND c.class = p_class AND c.since_at < p_before;
    IF lo IS NULL OR n = 0 THEN RETURN 0; END IF;
    WITH gone AS (
        DELETE FROM coverage c WHERE c.relay_id = p_relay_id AND c.class = p_class AND c.since_at < p_before RETURNING c.*
    )
    INSERT INTO coverage (relay_id, class, since_at, until_at, grade, reason, observed_at)
    SELECT p_relay_id, p_class, p_before, g.until_at, g.grade, g.reason, g.observed_at FROM gone g WHERE g.until_at >= p_before;
    INSERT INTO coverage (relay_id, class, since_at, until_at, grade, reason, observed_at)
    VALUES (p_relay_id, p_class, lo, p_before - 1, 'unknown', 'retired', extract(epoch FROM now())::bigint);
    RETURN n;
END $$;
COMMENT ON FUNCTION coverage_clip IS 'Turns what coverage says below a horizon into one gap, unknown for the reason retired; returns how many intervals that changed.';

CREATE OR REPLACE FUNCTION coverage_put(
    p_relay_id integer, p_class text, p_sinces bigint[], p_untils bigint[], p_grades text[], p_reasons text[], p_observed_ats bigint[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET enable_nestloop = off
AS $$
DECLARE n integer;
BEGIN
    DELETE FROM coverage c WHERE c.relay_id = p_relay_id AND c.class = p_class
        AND NOT EXISTS (SELECT FROM unnest(p_sinces, p_untils, p_grades, p_reasons, p_observed_ats) u(s, t, g, r, o)
                        WHERE c.since_at = u.s AND c.until_at = u.t AND c.grade = u.g AND c.reason = u.r AND c.observed_at = u.o);
    INSERT INTO coverage (relay_id, class, since_at, until_at, grade, reason, observed_at)
    SELECT p_relay_id, p_class, u.s, u.t, u.g, u.r, u.o
    FROM unnest(p_sinces, p_untils, p_grades, p_reasons, p_observed_ats) u(s, t, g, r, o)
    ORDER BY u.s
    ON CONFLICT (relay_id, class, since_at) DO NOTHING;
    GET DIAGNOSTICS n = ROW_COUNT;
    -- A pass that began before a horizon was set must not bring back a proof of what is gone.
    IF EXISTS (SELECT FROM archive_horizon) THEN
        PERFORM coverage_clip(p_relay_id, p_class, archive_before(p_relay_id));
    END IF;
    RETURN n;
END $$;
COMMENT ON FUNCTION coverage_put IS 'Replaces the intervals of one relay and class by these (the caller computed them from coverage_get); unchanged rows are not rewritten. Below the horizon nothing is proved.';

CREATE FUNCTION coverage_retire(p_limit integer) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    r record;
    n integer := 0;
BEGIN
    FOR r IN
        SELECT c.relay_id, c.class, b.before_at
        FROM (SELECT x.id, max(h.before_at) AS before_at FROM archive_horizon h JOIN relay x ON h.scope IN ('all', x.url) GROUP BY x.id) b
        JOIN coverage c ON c.relay_id = b.id AND c.since_at < b.before_at
        WHERE c.grade <> 'unknown' OR c.reason <> 'retired' OR c.until_at >= b.before_at
        GROUP BY 1, 2, 3 ORDER BY 1, 2 LIMIT p_limit
    LOOP
        n := n + (coverage_clip(r.relay_id, r.class, r.before_at) > 0)::integer;
    END LOOP;
    RETURN n;
END $$;
COMMENT ON FUNCTION coverage_retire IS 'Clips the coverage of at most p_limit relays and classes at their horizons; returns how many. Call until it returns 0.';

-- Taking away -------------------------------------------------------------------------------------------------------------

CREATE FUNCTION event_remove(p_keys bigint[], OUT events integer, OUT observations integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    lo bigint;
    hi bigint;
BEGIN
    SELECT min(x), max(x) INTO lo, hi FROM unnest(p_keys) x;
    -- Only what is archived is counted anywhere.
    PERFORM rollup_forget_events(ARRAY(
        SELECT e.event_key FROM event e WHERE e.event_key = ANY (p_keys) AND e.event_key BETWEEN lo AND hi AND e.fate = 0 ORDER BY 1));
    DELETE FROM event_relay o WHERE o.event_key = ANY (p_keys) AND o.event_key BETWEEN lo AND hi;
    GET DIAGNOSTICS observations = ROW_COUNT;
    PERFORM FROM event_unmined u WHERE u.event_key = ANY (p_keys) ORDER BY u.event_key FOR UPDATE;
    DELETE FROM event_unmined u WHERE u.event_key = ANY (p_keys);
    DELETE FROM event_collision c WHERE c.event_key = ANY (p_keys);
    DELETE FROM event_gone g WHERE g.event_key = ANY (p_keys);
    DELETE FROM event e WHERE e.event_key = ANY (p_keys) AND e.event_key BETWEEN lo AND hi;
    GET DIAGNOSTICS events = ROW_COUNT;
END $$;
COMMENT ON FUNCTION event_remove IS 'Deletes events with all that hangs on them; a step of others, which hold archive_lock. Returns how many events and observations went.';

CREATE FUNCTION event_strip(p_keys bigint[], p_fate smallint) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    lo bigint;
    hi bigint;
    v_keys bigint[];
    n integer;
BEGIN
    IF p_fate NOT IN (1, 2, 3) THEN
        RAISE EXCEPTION 'fate % is none: 1 skipped, 2 deleted, 3 expired', p_fate USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT min(x), max(x) INTO lo, hi FROM unnest(p_keys) x;
    v_keys := ARRAY(SELECT e.event_key FROM event e WHERE e.event_key = ANY (p_keys) AND e.event_key BETWEEN lo AND hi AND e.fate = 0 ORDER BY 1);
    IF cardinality(v_keys) = 0 THEN RETURN 0; END IF;
    PERFORM rollup_forget_events(v_keys);
    PERFORM FROM event_unmined u WHERE u.event_key = ANY (v_keys) ORDER BY u.event_key FOR UPDATE;
    DELETE FROM event_unmined u WHERE u.event_key = ANY (v_keys);
    UPDATE event e SET fate = p_fate, sig = NULL, d_tag = NULL, tags = NULL, content = NULL, tag_hashes = NULL
    WHERE e.event_key = ANY (v_keys) AND e.event_key BETWEEN lo AND hi;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION event_strip IS 'Gives archived events another fate and takes their bodies; a step of others, which hold archive_lock. Observations stay: who has them is still known.';

CREATE FUNCTION event_fate_set(p_ids bytea[], p_keys bigint[], p_fate smallint) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    PERFORM archive_lock();
    RETURN event_strip(ARRAY(SELECT r.event_key FROM event_resolve(p_ids, p_keys) r WHERE r.fate = 0), p_fate);
END $$;
COMMENT ON FUNCTION event_fate_set IS 'Archived events become skipped (1), deleted (2) or expired (3, NIP-40): the row stays, the body goes, so that nothing fetches them again. At most a few thousand at once. Returns how many.';

CREATE FUNCTION event_tombstone(p_author bytea, p_ids bytea[]) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    PERFORM archive_lock();
    -- By id alone, through the index that visits every month. A deletion request deletes no deletion request.
    RETURN event_strip(ARRAY(
        SELECT e.event_key FROM unnest(p_ids) u(id)
        CROSS JOIN LATERAL (
            SELECT x.event_key, x.fate, x.kind, x.pubkey FROM event x
            WHERE substring(x.id FROM 9 FOR 8) = substring(u.id FROM 9 FOR 8) AND x.id = u.id OFFSET 0) e
        WHERE e.fate = 0 AND e.kind <> 5 AND e.pubkey = p_author), 2::smallint);
END $$;
COMMENT ON FUNCTION event_tombstone IS 'NIP-09: the author''s events of these ids become deleted; others'' events and deletion requests stay. Returns how many.';

CREATE FUNCTION event_vanish(p_pubkey bytea, p_until bigint, p_after bigint, p_look integer)
RETURNS TABLE (next_key bigint, deleted integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
DECLARE v_keys bigint[];
BEGIN
    PERFORM archive_lock();
    SELECT max(x.event_key), array_agg(x.event_key) FILTER (WHERE x.pubkey = p_pubkey AND x.fate = 0 AND x.created_at <= p_until) INTO next_key, v_keys FROM (
        SELECT e.event_key, e.pubkey, e.fate, e.created_at FROM event e
        WHERE e.event_key > p_after AND e.event_key <= second_key(p_until + 1) ORDER BY e.event_key LIMIT p_look) x;
    deleted := event_strip(coalesce(v_keys, '{}'), 2::smallint);
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION event_vanish IS 'NIP-62: looks at p_look events above the key p_after (-1: from the first) and makes those of the author up to the second p_until deleted. next_key: where to go on; null at the end.';

CREATE FUNCTION event_skip_insert(p_ids bytea[], p_keys bigint[], p_created_ats bigint[], p_pubkeys bytea[], p_kinds integer[]) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    n integer;
    k bigint;
    r record;
BEGIN
    INSERT INTO event (event_key, created_at, kind, fate, id, pubkey)
    SELECT u.key, u.created_at, u.kind, 1, u.id, u.pubkey
    FROM unnest(p_ids, p_keys, p_created_ats, p_pubkeys, p_kinds) u(id, key, created_at, pubkey, kind)
    WHERE NOT EXISTS (SELECT FROM event_collision c WHERE c.id = u.id)
    ORDER BY u.key, u.id
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n < cardinality(p_ids) THEN
        -- As event_insert does: another event may hold the key.
        FOR r IN
            SELECT u.* FROM unnest(p_ids, p_keys) WITH ORDINALITY u(id, key, o)
            CROSS JOIN LATERAL (SELECT x.id FROM event x WHERE x.event_key = u.key OFFSET 0) e
            WHERE e.id <> u.id ORDER BY u.id
        LOOP
            PERFORM pg_advisory_xact_lock(7301);
            IF EXISTS (SELECT FROM event_collision c WHERE c.id = r.id) THEN CONTINUE; END IF;
            k := r.key;
            LOOP
                k := CASE WHEN k = 9223372036854775807 THEN 9223372036854775807 - 4294967296 ELSE k + 1 END;
                INSERT INTO event (event_key, created_at, kind, fate, id, pubkey)
                VALUES (k, p_created_ats[r.o], p_kinds[r.o], 1, r.id, p_pubkeys[r.o])
                ON CONFLICT DO NOTHING;
                EXIT WHEN found;
            END LOOP;
            INSERT INTO event_collision VALUES (r.id, k);
            n := n + 1;
        END LOOP;
    END IF;
    RETURN n;
END $$;
COMMENT ON FUNCTION event_skip_insert IS 'Remembers events that a policy does not keep, without a body: known, so never fetched again. The caller verified them, or a forged copy would keep the real one out. Returns how many were new.';

CREATE FUNCTION sync_skip(p_job text, p_worker text, p_attempt integer, p_ids bytea[], p_keys bigint[], p_created_ats bigint[], p_pubkeys bytea[], p_kinds integer[])
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt])) THEN RETURN false; END IF;
    PERFORM event_skip_insert(p_ids, p_keys, p_created_ats, p_pubkeys, p_kinds);
    RETURN true;
END $$;
COMMENT ON FUNCTION sync_skip IS 'event_skip_insert for a sync job; false when the fence was lost, and nothing was written.';

CREATE OR REPLACE FUNCTION sync_store(
    p_job text, p_worker text, p_attempt integer, p_relay_id integer, p_seen_at bigint,
    p_ids bytea[], p_keys bigint[],
    n_ids bytea[], n_keys bigint[], n_created_ats bigint[], n_pubkeys bytea[], n_kinds integer[],
    n_tags bytea[], n_contents bytea[], n_sigs bytea[], n_d_tags bytea[], n_tag_hashes text[],
    p_class text, v_sinces bigint[], v_untils bigint[], v_grades text[], v_reasons text[], v_observed_ats bigint[],
    p_next_s double precision, p_slack integer, p_why text)
RETURNS TABLE (held boolean, new_events integer, new_observations integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE n integer := cardinality(p_ids);
BEGIN
    -- The gate that month_drop closes: here, before any lock on a table is held.
    PERFORM pg_advisory_xact_lock_shared(7310);
    held := EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt]));
    new_events := 0;
    new_observations := 0;
    IF held THEN
        IF cardinality(n_ids) > 0 THEN
            new_events := event_insert(n_ids, n_keys, n_created_ats, n_pubkeys, n_kinds, n_tags, n_contents, n_sigs, n_d_tags, n_tag_hashes);
        END IF;
        IF n > 0 THEN
            new_observations := event_relay_insert(p_ids, p_keys, array_fill(p_relay_id, ARRAY[n]),
                array_fill(p_seen_at, ARRAY[n]), array_fill(0::smallint, ARRAY[n]));
            -- What was known when it came may have been deleted since: then it is neither here nor covered.
            IF new_observations < n AND (SELECT count(DISTINCT r.o) FROM event_resolve(p_ids, p_keys) r) < n THEN
                RAISE EXCEPTION 'an event of this batch was deleted while it came: it is asked for again' USING ERRCODE = 'serialization_failure';
            END IF;
        END IF;
        IF v_sinces IS NOT NULL THEN
            PERFORM coverage_put(p_relay_id, p_class, v_sinces, v_untils, v_grades, v_reasons, v_observed_ats);
        END IF;
        IF p_next_s IS NOT NULL THEN
            UPDATE schedule s SET due_at = now() + make_interval(secs => p_next_s), slack_s = p_slack, why = p_why
            FROM relay r WHERE r.id = p_relay_id AND s.kind = 'sync' AND s.target = r.url;
        END IF;
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION sync_store IS 'One batch of a sync job in one fenced transaction: new events (n_*), observations of all delivered ones (p_ids, p_keys), the coverage they prove (null = unchanged), and the next due time (null = unchanged). Fails as a whole when a delivered event is not there any more.';

-- Orphans: archived events that no relay is known to have ----------------------------------------------------------------

CREATE OR REPLACE FUNCTION orphan_event_delete(p_batch_size integer DEFAULT 10000) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE v_keys bigint[];
BEGIN
    PERFORM archive_lock();
    v_keys := ARRAY(
        SELECT x.event_key FROM event x
        WHERE x.fate = 0 AND NOT EXISTS (SELECT FROM event_relay o WHERE o.event_key = x.event_key)
        ORDER BY x.event_key LIMIT p_batch_size);
    RETURN (SELECT r.events FROM event_remove(v_keys) r);
END $$;
COMMENT ON FUNCTION orphan_event_delete IS 'Deletes at most one batch of archived events seen on no relay, looking through the whole archive; returns how many. Call until it returns 0. Event and observation are stored in one transaction, which archive_lock waits for.';

CREATE FUNCTION orphan_event_sweep(p_look integer) RETURNS integer
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
        PERFORM archive_lock();
        v_keys := ARRAY(SELECT k FROM unnest(v_keys) k JOIN event e ON e.event_key = k
                        WHERE e.fate = 0 AND NOT EXISTS (SELECT FROM event_relay o WHERE o.event_key = k) ORDER BY 1);
        n := (SELECT r.events FROM event_remove(v_keys) r);
    END IF;
    INSERT INTO archive_cursor VALUES ('orphans', coalesce(v_last, -1)) ON CONFLICT (name) DO UPDATE SET cursor_key = excluded.cursor_key;
    RETURN n;
END $$;
COMMENT ON FUNCTION orphan_event_sweep IS 'Goes on with a round through the archive: looks at p_look events and deletes those archived ones that are seen on no relay; returns how many.';

-- Policies ----------------------------------------------------------------------------------------------------------------

CREATE FUNCTION retention_put(p_whats text[], p_froms integer[], p_tos integer[], p_urls text[], p_days integer[], p_again boolean, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    n integer;
    m integer;
BEGIN
    DELETE FROM retention_policy r WHERE NOT EXISTS (
        SELECT FROM unnest(p_whats, p_froms, p_tos, p_urls, p_days) u(what, a, b, url, days)
        WHERE r.name = retention_name(u.what, u.a, u.b, u.url) AND r.days = u.days);
    GET DIAGNOSTICS n = ROW_COUNT;
    -- Of two for the same thing the stricter one holds.
    INSERT INTO retention_policy AS r (name, what, kind_from, kind_to, relay_url, days, set_at, again_at)
    SELECT DISTINCT ON (1) retention_name(u.what, u.a, u.b, u.url), u.what, u.a, u.b, u.url, u.days, p_now, p_now + interval '15 minutes'
    FROM unnest(p_whats, p_froms, p_tos, p_urls, p_days) u(what, a, b, url, days)
    ORDER BY 1, u.days
    ON CONFLICT (name) DO UPDATE SET cursor_key = -1 WHERE p_again AND r.cursor_key > -1;
    GET DIAGNOSTICS m = ROW_COUNT;
    RETURN n + m;
END $$;
COMMENT ON FUNCTION retention_put IS 'Makes these the policies; unchanged ones go on where they are, unless p_again has them begin anew. Returns how many rows that changed. Workers know them with their next pass; what came before that is looked at again after 15 minutes.';

CREATE FUNCTION retention_name(p_what text, p_from integer, p_to integer, p_url text) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$ SELECT CASE p_what WHEN 'age' THEN 'age' WHEN 'relay' THEN p_url
          ELSE CASE WHEN p_from = p_to THEN 'kind ' || p_from ELSE 'kinds ' || p_from || ' to ' || p_to END END $$;
COMMENT ON FUNCTION retention_name IS 'A policy in words, which are its key.';

CREATE FUNCTION horizon_lower(p_now timestamptz DEFAULT now()) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    n integer;
    m integer;
BEGIN
    DELETE FROM archive_horizon h WHERE NOT EXISTS (
        SELECT FROM retention_policy r WHERE (r.what = 'age' AND h.scope = 'all') OR (r.what = 'relay' AND h.scope = r.relay_url));
    GET DIAGNOSTICS n = ROW_COUNT;
    UPDATE archive_horizon h SET before_at = retention_before(r.what, r.days, p_now), set_at = p_now, reason = r.name FROM retention_policy r
    WHERE ((r.what = 'age' AND h.scope = 'all') OR (r.what = 'relay' AND h.scope = r.relay_url)) AND retention_before(r.what, r.days, p_now) < h.before_at;
    GET DIAGNOSTICS m = ROW_COUNT;
    RETURN n + m;
END $$;
COMMENT ON FUNCTION horizon_lower IS 'Takes horizons back that no policy wants so high: what lies above them is fetched again. An operator''s deed; by themselves horizons only rise. Returns how many.';

CREATE FUNCTION month_drop(p_before bigint) RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET lock_timeout = '1s'
AS $$
DECLARE
    v_month text;
    v_end bigint;
    v_left boolean;
    v_part text;
BEGIN
    SELECT x.month, extract(epoch FROM (to_date(x.month, 'YYYYMM') + interval '1 month') AT TIME ZONE 'UTC')::bigint INTO v_month, v_end FROM (
        SELECT min(substring(c.relname FROM '_([0-9]{6})$')) AS month FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent IN ('public.event'::regclass, 'public.event_relay'::regclass) AND c.relname ~ '_[0-9]{6}$') x;
    IF v_month IS NULL OR v_end > p_before THEN RETURN 0; END IF;
    -- Whoever stores is let out and kept out first: it holds locks on both tables, in either order.
    PERFORM pg_advisory_xact_lock(7302);
    PERFORM pg_advisory_xact_lock(7303);
    PERFORM pg_advisory_xact_lock(7310);
    LOCK TABLE ONLY event IN ACCESS EXCLUSIVE MODE;
    LOCK TABLE ONLY event_relay IN ACCESS EXCLUSIVE MODE;
    FOREACH v_part IN ARRAY ARRAY['event_', 'event_relay_'] LOOP
        IF to_regclass('public.' || v_part || v_month) IS NOT NULL THEN
            EXECUTE format('SELECT EXISTS (SELECT FROM public.%I)', v_part || v_month) INTO v_left;
            IF v_left THEN RETURN 0; END IF;
        END IF;
    END LOOP;
    EXECUTE format('DROP TABLE IF EXISTS public.%I, public.%I', 'event_relay_' || v_month, 'event_' || v_month);
    RETURN 1;
END $$;
COMMENT ON FUNCTION month_drop IS 'Drops the oldest month of event and event_relay together, if it ends before p_before and holds nothing any more; returns 1 then. Gives up after a second of waiting for a lock.';

CREATE FUNCTION retention_step(p_look integer DEFAULT 2000, p_now timestamptz DEFAULT now())
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
COMMENT ON FUNCTION retention_step IS 'The next bounded piece of what the policies ask for: horizons rise, coverage below them becomes a gap, then at most p_look events, or observations of one relay, go. Returns what it was and how much; no row: nothing is left to do.';

CREATE FUNCTION retention_plan(p_whats text[], p_froms integer[], p_tos integer[], p_urls text[], p_days integer[], p_now timestamptz DEFAULT now())
RETURNS TABLE (policy text, before_at bigint, months integer, events bigint, observations bigint, bytes bigint, lowered_from bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    u record;
    v_key bigint;
    v_relay integer;
BEGIN
    FOR u IN
        SELECT DISTINCT ON (2, 3) x.what, x.what = 'age' AS by_age, retention_name(x.what, x.a, x.b, x.url) AS name, x.a, x.b, x.url, x.days
        FROM unnest(p_whats, p_froms, p_tos, p_urls, p_days) x(what, a, b, url, days) ORDER BY 2 DESC, 3, x.days
    LOOP
        policy := u.name; months := 0; events := 0; observations := 0; bytes := 0;
        before_at := retention_before(u.what, u.days, p_now);
        SELECT h.before_at INTO lowered_from FROM archive_horizon h
        WHERE h.scope = CASE u.what WHEN 'age' THEN 'all' WHEN 'relay' THEN u.url END AND h.before_at > retention_before(u.what, u.days, p_now);
        v_key := second_key(before_at);
        IF u.what = 'age' THEN
            SELECT count(*) INTO events FROM event e WHERE e.event_key < v_key;
            SELECT count(*) INTO observations FROM event_relay o WHERE o.event_key < v_key;
            SELECT count(DISTINCT m.month), coalesce(sum(pg_total_relation_size(m.oid)), 0) INTO months, bytes FROM (
                SELECT c.oid, substring(c.relname FROM '_([0-9]{6})$') AS month FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                WHERE i.inhparent IN ('public.event'::regclass, 'public.event_relay'::regclass) AND c.relname ~ '_[0-9]{6}$') m
            WHERE extract(epoch FROM (to_date(m.month, 'YYYYMM') + interval '1 month') AT TIME ZONE 'UTC') <= before_at;
        ELSIF u.what = 'kind' THEN
            SELECT count(*), coalesce(sum(event_body_bytes(e.tags, e.content, e.sig, e.d_tag, e.tag_hashes)), 0) INTO events, bytes
            FROM event e WHERE e.event_key < v_key AND e.fate = 0 AND e.kind BETWEEN u.a AND u.b;
        ELSE
            v_relay := (SELECT x.id FROM relay x WHERE x.url = u.url);
            SELECT count(*) INTO observations FROM event_relay o WHERE o.relay_id = v_relay AND o.event_key < v_key;
            SELECT count(*), coalesce(sum(event_body_bytes(e.tags, e.content, e.sig, e.d_tag, e.tag_hashes)), 0) INTO events, bytes
            FROM event_relay o JOIN event e ON e.event_key = o.event_key
            WHERE o.relay_id = v_relay AND o.event_key < v_key AND e.fate = 0
              AND NOT EXISTS (SELECT FROM event_relay y WHERE y.event_key = o.event_key AND y.relay_id <> v_relay);
            -- 94 bytes an observation, indexes included (ADR-002); about 120 of an event without its body.
            bytes := bytes + 94 * observations + 120 * events;
        END IF;
        RETURN NEXT;
    END LOOP;
    -- Horizons that no policy wants any more.
    FOR policy, lowered_from IN
        SELECT h.scope, h.before_at FROM archive_horizon h
        WHERE NOT EXISTS (SELECT FROM unnest(p_whats, p_urls) x(what, url) WHERE (x.what = 'age' AND h.scope = 'all') OR (x.what = 'relay' AND h.scope = x.url))
    LOOP
        before_at := 0; months := 0; events := 0; observations := 0; bytes := 0;
        RETURN NEXT;
    END LOOP;
END $$;
COMMENT ON FUNCTION retention_plan IS 'What policies would take now, each by itself: months dropped whole, events deleted (by kind: skipped from then on), observations, and bytes about: relations of dropped months, bodies, rows. lowered_from: the horizon that stands higher and would come down, so that what lies between is fetched again. Reads the archive.';

CREATE FUNCTION event_body_bytes(p_tags bytea, p_content bytea, p_sig bytea, p_d_tag bytea, p_hashes bigint[]) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT (coalesce(pg_column_size(p_tags), 0) + coalesce(pg_column_size(p_content), 0) + coalesce(pg_column_size(p_sig), 0)
              + coalesce(pg_column_size(p_d_tag), 0) + 2 * coalesce(pg_column_size(p_hashes), 0))::bigint $$;
COMMENT ON FUNCTION event_body_bytes IS 'Bytes of a body as stored, compressed where it is; tag hashes twice, for their index.';
