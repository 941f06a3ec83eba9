-- How much the archive keeps of an event, how large it may grow, and whether what it says of itself is true.

CREATE TABLE archive_setting (
    one       boolean     PRIMARY KEY DEFAULT true CHECK (one),
    light     boolean     NOT NULL DEFAULT false,
    light_at  timestamptz,
    max_bytes bigint      CHECK (max_bytes > 0),
    CHECK (NOT light OR light_at IS NOT NULL)
);
INSERT INTO archive_setting DEFAULT VALUES;
COMMENT ON TABLE  archive_setting IS 'What holds for the whole archive: a single row.';
COMMENT ON COLUMN archive_setting.one IS 'Always true.';
COMMENT ON COLUMN archive_setting.light IS 'Lightweight: of an event no tags, content, signature and tag hashes are kept once it has been mined; the d tag is, for it says which event replaces which.';
COMMENT ON COLUMN archive_setting.light_at IS 'Since when archived events without a body are in order: when it became lightweight first. Null: never.';
COMMENT ON COLUMN archive_setting.max_bytes IS 'The disk budget, published by the leading scheduler; null: none.';

CREATE FUNCTION archive_budget_set(p_max_bytes bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    UPDATE archive_setting s SET max_bytes = p_max_bytes WHERE s.max_bytes IS DISTINCT FROM p_max_bytes;
    RETURN found;
END $$;
COMMENT ON FUNCTION archive_budget_set IS 'Publishes the disk budget; true when that changed it.';

CREATE FUNCTION archive_get(p_url text)
RETURNS TABLE (before_at bigint, light boolean, bytes bigint, max_bytes bigint, kinds_from integer[], kinds_to integer[], kinds_days integer[])
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    SELECT coalesce(max(h.before_at), 0) INTO before_at FROM archive_horizon h WHERE h.scope IN ('all', p_url);
    SELECT s.light, s.max_bytes INTO light, max_bytes FROM archive_setting s;
    bytes := pg_database_size(current_database());
    SELECT coalesce(array_agg(r.kind_from ORDER BY r.name), '{}'), coalesce(array_agg(r.kind_to ORDER BY r.name), '{}'), coalesce(array_agg(r.days ORDER BY r.name), '{}')
    INTO kinds_from, kinds_to, kinds_days FROM retention_policy r WHERE r.what = 'kind';
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION archive_get IS 'What a sync of a relay (null: of any) must know of the archive: its horizon (0: none), whether bodies are kept, size and budget (null: none), and the kinds that are not kept, or for so many days.';

-- Lightweight mode --------------------------------------------------------------------------------------------------------

CREATE FUNCTION archive_light_begin() RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    IF (SELECT s.light FROM archive_setting s) THEN RETURN true; END IF;
    IF EXISTS (SELECT FROM event e WHERE e.fate = 0) THEN RETURN false; END IF;
    UPDATE archive_setting s SET light = true, light_at = coalesce(s.light_at, now());
    RETURN true;
END $$;
COMMENT ON FUNCTION archive_light_begin IS 'Makes an archive without events lightweight; returns whether it is. One with events loses bodies only by archive_lighten, which an operator asks for.';

CREATE FUNCTION archive_lighten(p_look integer DEFAULT 5000)
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
COMMENT ON FUNCTION archive_lighten IS 'Takes the bodies of the next p_look events of a lightweight archive; what has not been mined keeps its own until it is. Call until looked is 0. Nothing brings a body back.';

CREATE FUNCTION archive_lighten_plan()
RETURNS TABLE (light boolean, events bigint, unmined bigint, bytes bigint, index_bytes bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    SELECT s.light INTO light FROM archive_setting s;
    SELECT count(*), coalesce(sum(event_body_bytes(e.tags, e.content, e.sig, NULL, NULL) + coalesce(pg_column_size(e.tag_hashes), 0)), 0) INTO events, bytes
    FROM event e WHERE e.fate = 0 AND (e.tags IS NOT NULL OR e.content IS NOT NULL OR e.sig IS NOT NULL OR e.tag_hashes IS NOT NULL);
    SELECT count(*) INTO unmined FROM event_unmined;
    SELECT coalesce(sum(pg_relation_size(i.inhrelid)), 0)::bigint INTO index_bytes FROM pg_inherits i WHERE i.inhparent = 'public.event_tag'::regclass;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION archive_lighten_plan IS 'What archive_lighten would take: events with a body, those of them that are not mined yet, bytes of bodies as stored, and bytes of the index of tags. Reads the archive.';

CREATE FUNCTION archive_mode_set(p_light boolean, p_actor text, p_why text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE v_changed boolean;
BEGIN
    UPDATE archive_setting s SET light = p_light, light_at = CASE WHEN p_light THEN coalesce(s.light_at, now()) ELSE s.light_at END WHERE s.light <> p_light;
    v_changed := found;
    DELETE FROM archive_cursor c WHERE c.name = 'bodies';
    PERFORM operation_note(p_actor, CASE WHEN p_light THEN 'lighten' ELSE 'keep-bodies' END, '{}', v_changed::integer, '{}', p_why);
    RETURN v_changed;
END $$;
COMMENT ON FUNCTION archive_mode_set IS 'An operator has the archive be lightweight from now on, or keep bodies again, of what comes from now on: those that are gone stay gone. Whether that changed it; written down in any case.';

CREATE FUNCTION retention_apply(p_whats text[], p_froms integer[], p_tos integer[], p_urls text[], p_days integer[], p_actor text, p_why text)
RETURNS TABLE (changed integer, lowered integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    changed := retention_put(p_whats, p_froms, p_tos, p_urls, p_days, true);
    lowered := horizon_lower();
    PERFORM operation_note(p_actor, 'retention-apply', coalesce((SELECT jsonb_object_agg(r.name, r.days) FROM retention_policy r), '{}'),
                           changed + lowered, ARRAY(SELECT r.name FROM retention_policy r ORDER BY 1), p_why);
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION retention_apply IS 'An operator makes these the policies, which begin anew, and takes horizons back that stand higher; written down. What they take is taken by retention_step. Returns how many rows of policies and how many horizons changed.';

COMMENT ON COLUMN operation.action IS 'pause, drain, resume, cancel, retry, run-now, drain-worker, resume-worker, exclude, include, revive, retention-apply, lighten or keep-bodies.';
COMMENT ON COLUMN operation.jobs IS 'How many queues, jobs, workers, URLs or policies it touched.';

CREATE OR REPLACE FUNCTION discover_store(
    p_job text, p_worker text, p_attempt integer, p_urls text[], p_networks text[], p_sources text[], p_mined bigint[],
    p_next_s double precision, p_slack integer, p_why text,
    p_origins text[] DEFAULT NULL, p_per_host integer DEFAULT 32, p_names text[] DEFAULT NULL, p_domains text[] DEFAULT NULL,
    p_asked text[] DEFAULT NULL, p_outcomes text[] DEFAULT NULL, p_relays integer[] DEFAULT NULL,
    p_state_key text DEFAULT NULL, p_state_value text DEFAULT NULL, p_per_site integer DEFAULT 1024)
RETURNS TABLE (held boolean, new_candidates integer, over_cap integer, left_alone integer)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE v_now bigint := extract(epoch FROM now())::bigint;
BEGIN
    held := EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt]));
    new_candidates := 0; over_cap := 0; left_alone := 0;
    IF held THEN
        IF cardinality(p_urls) > 0 THEN
            SELECT s.new_candidates, s.over_cap, s.left_alone INTO new_candidates, over_cap, left_alone
            FROM candidate_sight(p_urls, p_networks, p_sources, p_origins, 3600, p_per_host, p_per_site) s;
        END IF;
        -- In the order of keys, as whoever deletes events takes them.
        PERFORM FROM event_unmined m WHERE m.event_key = ANY (p_mined) ORDER BY m.event_key FOR UPDATE;
        DELETE FROM event_unmined m WHERE m.event_key = ANY (p_mined);
        IF cardinality(p_mined) > 0 AND (SELECT s.light FROM archive_setting s) THEN
            UPDATE event e SET tags = NULL, content = NULL, sig = NULL, tag_hashes = NULL
            WHERE e.event_key = ANY (p_mined) AND e.fate = 0
              AND e.event_key BETWEEN (SELECT min(x) FROM unnest(p_mined) x) AND (SELECT max(x) FROM unnest(p_mined) x);
        END IF;
        -- A sample, and a bounded one: whoever invents domains fills a table and no more.
        IF cardinality(p_domains) > 0 AND (SELECT count(*) FROM nip05_domain) < 100000 THEN
            INSERT INTO nip05_domain AS d (domain, name, seen_at)
            SELECT u.domain, min(u.name), v_now FROM unnest(p_domains, p_names) u(domain, name) GROUP BY 1 ORDER BY 1
            ON CONFLICT (domain) DO UPDATE SET name = excluded.name, seen_at = v_now WHERE d.seen_at < v_now - 86400;
        END IF;
        IF cardinality(p_asked) > 0 THEN
            UPDATE nip05_domain d SET asked_at = v_now, outcome = u.outcome, relays = u.relays
            FROM unnest(p_asked, p_outcomes, p_relays) u(domain, outcome, relays) WHERE d.domain = u.domain;
        END IF;
        IF p_state_key IS NOT NULL THEN
            PERFORM service_state_upsert(ARRAY['finder'], ARRAY['checkpoint'], ARRAY[p_state_key], ARRAY[p_state_value]);
        END IF;
        IF p_next_s IS NOT NULL THEN
            UPDATE schedule s SET due_at = now() + make_interval(secs => p_next_s), slack_s = p_slack, why = p_why
            FROM apalis.jobs j WHERE j.id = p_job AND s.kind = j.kind AND s.target = j.target;
        END IF;
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION discover_store IS 'Result of one discover batch in one fenced transaction: URLs found and where, events mined (which lose their bodies in a lightweight archive), NIP-05 names seen and domains asked, the state of an HTTP source, next due (null = unchanged). Returns what became of the URLs.';

-- Proving it --------------------------------------------------------------------------------------------------------------

CREATE FUNCTION natural_key(p_created_at bigint, p_id bytea) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT (least(greatest(p_created_at, 0), 4294967295) << 31)
           | ((get_byte(p_id, 0)::bigint << 23) | (get_byte(p_id, 1)::bigint << 15) | (get_byte(p_id, 2)::bigint << 7) | (get_byte(p_id, 3)::bigint >> 1)) $$;
COMMENT ON FUNCTION natural_key IS 'The key of an event unless another one has it: its second and the top 31 bits of its id (ADR-002).';

CREATE FUNCTION archive_ranges() RETURNS TABLE (from_key bigint, to_key bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
    WITH cut AS (
        SELECT -1::bigint AS key
        UNION SELECT second_key(extract(epoch FROM to_date(substring(c.relname FROM '_([0-9]{6})$'), 'YYYYMM')::timestamp)::bigint)
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent IN ('public.event'::regclass, 'public.event_relay'::regclass) AND c.relname ~ '_[0-9]{6}$')
    SELECT key, coalesce(lead(key) OVER (ORDER BY key) - 1, 9223372036854775807) FROM cut ORDER BY 1
$$;
COMMENT ON FUNCTION archive_ranges IS 'Every event key there can be, cut at the first seconds of the months that have partitions; both ends included.';

CREATE FUNCTION archive_check(p_from bigint, p_to bigint) RETURNS TABLE (problem text, bad boolean, n bigint, first_key bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    RETURN QUERY
        SELECT x.problem, true, x.n, x.first_key FROM (
            SELECT count(*) FILTER (WHERE e.event_key IS NULL) AS lost, min(o.event_key) FILTER (WHERE e.event_key IS NULL) AS lost_key,
                   count(*) FILTER (WHERE r.id IS NULL) AS strange, min(o.event_key) FILTER (WHERE r.id IS NULL) AS strange_key
            FROM event_relay o
            LEFT JOIN event e ON e.event_key = o.event_key AND e.event_key BETWEEN p_from AND p_to
            LEFT JOIN relay r ON r.id = o.relay_id
            WHERE o.event_key BETWEEN p_from AND p_to) c
        CROSS JOIN LATERAL (VALUES ('observations without their event', c.lost, c.lost_key), ('observations without their relay', c.strange, c.strange_key)) x(problem, n, first_key);
    RETURN QUERY
        SELECT x.problem, x.bad, x.n, x.first_key FROM (
            SELECT count(*) FILTER (WHERE e.wrong) AS wrong, min(e.event_key) FILTER (WHERE e.wrong) AS wrong_key,
                   count(*) FILTER (WHERE e.fate <> 0 AND e.body) AS body, min(e.event_key) FILTER (WHERE e.fate <> 0 AND e.body) AS body_key,
                   count(*) FILTER (WHERE e.fate = 0 AND e.orphan) AS orphan, min(e.event_key) FILTER (WHERE e.fate = 0 AND e.orphan) AS orphan_key
            FROM (SELECT y.event_key, y.fate,
                         coalesce(y.sig, y.d_tag, y.tags, y.content) IS NOT NULL OR y.tag_hashes IS NOT NULL AS body,
                         y.event_key <> natural_key(y.created_at, y.id) AND NOT EXISTS (SELECT FROM event_collision c WHERE c.id = y.id AND c.event_key = y.event_key) AS wrong,
                         NOT EXISTS (SELECT FROM event_relay o WHERE o.event_key = y.event_key AND o.event_key BETWEEN p_from AND p_to) AS orphan
                  FROM event y WHERE y.event_key BETWEEN p_from AND p_to) e) c
        CROSS JOIN LATERAL (VALUES ('events under a key that is not theirs', true, c.wrong, c.wrong_key), ('events that are not kept, and have a body', true, c.body, c.body_key),
                                   ('archived events seen on no relay', false, c.orphan, c.orphan_key)) x(problem, bad, n, first_key);
    RETURN QUERY
        SELECT 'events waiting to be mined that are not there', true, count(*), min(u.event_key) FROM event_unmined u
        WHERE u.event_key BETWEEN p_from AND p_to AND NOT EXISTS (SELECT FROM event e WHERE e.event_key = u.event_key AND e.event_key BETWEEN p_from AND p_to);
    RETURN QUERY
        SELECT 'collisions whose event is not there', true, count(*), min(c.event_key) FROM event_collision c
        WHERE c.event_key BETWEEN p_from AND p_to AND NOT EXISTS (
            SELECT FROM event e WHERE e.event_key = c.event_key AND e.id = c.id AND e.event_key BETWEEN p_from AND p_to);
    RETURN QUERY
        SELECT 'events gone from a relay that are not there', true, count(*), min(g.event_key) FROM event_gone g
        WHERE g.event_key BETWEEN p_from AND p_to AND NOT EXISTS (SELECT FROM event e WHERE e.event_key = g.event_key AND e.event_key BETWEEN p_from AND p_to);
END $$;
COMMENT ON FUNCTION archive_check IS 'Counts what must not be among the keys of a range, with the first key of each; bad: whether it is a fault. Reads all of it.';

CREATE FUNCTION coverage_check(p_reasons text[]) RETURNS TABLE (problem text, n bigint, sample text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY
        SELECT x.problem, count(*), min(format('relay_id=%s class=%s since_at=%s', c.relay_id, c.class, c.since_at)) FROM (
            SELECT y.*, lag(y.until_at) OVER (PARTITION BY y.relay_id, y.class ORDER BY y.since_at) AS last_at,
                   y.grade IN ('reconciled', 'finished', 'walked') AS proof,
                   (SELECT r.url FROM relay r WHERE r.id = y.relay_id) AS url
            FROM coverage y) c
        CROSS JOIN LATERAL (
            SELECT 'intervals that overlap' WHERE c.last_at >= c.since_at
            UNION ALL SELECT 'intervals before the epoch' WHERE c.since_at < 0 OR c.observed_at < 0
            UNION ALL SELECT 'proofs with a reason for a gap' WHERE c.proof AND c.reason <> 'none'
            UNION ALL SELECT 'reasons that are none' WHERE c.reason <> ALL (p_reasons)
            UNION ALL SELECT 'intervals of no relay' WHERE c.url IS NULL
            UNION ALL SELECT 'proofs of what is below a horizon' WHERE c.proof AND c.since_at < (
                SELECT max(h.before_at) FROM archive_horizon h WHERE h.scope IN ('all', c.url))) x(problem)
        GROUP BY 1 ORDER BY 1;
END $$;
COMMENT ON FUNCTION coverage_check IS 'What is wrong with coverage, p_reasons being the reasons there are: how many intervals, and one of them. No row: nothing.';
