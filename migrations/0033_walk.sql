-- What a walk goes by beside coverage: events a relay is known to have had, the authors it is asked for where it wants
-- authors named, and how much of what it serves is forged.

-- Witnesses ------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION relay_witnesses(p_relay_id integer, p_since bigint, p_until bigint, p_kinds integer[], p_authors bytea[], p_limit integer)
RETURNS TABLE (created_at bigint, id bytea)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
SET enable_hashjoin = off SET enable_mergejoin = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan SET jit = off
AS $$
DECLARE
    lo bigint := greatest(least(p_since, 4294967295), 0) << 31;
    hi bigint := (greatest(least(p_until, 4294967295), 0) << 31) | 2147483647;
    v_first bigint;
    v_last bigint;
BEGIN
    SELECT o.event_key INTO v_first FROM event_relay o WHERE o.relay_id = p_relay_id AND o.event_key BETWEEN lo AND hi ORDER BY o.event_key LIMIT 1;
    IF v_first IS NULL THEN RETURN; END IF;
    SELECT o.event_key INTO v_last FROM event_relay o WHERE o.relay_id = p_relay_id AND o.event_key BETWEEN lo AND hi ORDER BY o.event_key DESC LIMIT 1;
    RETURN QUERY
        SELECT DISTINCT w.created_at, w.id
        FROM generate_series(0, p_limit - 1) n
        CROSS JOIN LATERAL (
            SELECT x.created_at, x.id
            FROM (SELECT o.event_key FROM event_relay o
                  WHERE o.relay_id = p_relay_id AND o.event_key BETWEEN v_first + (v_last - v_first) / greatest(p_limit, 1) * n AND hi
                    AND NOT EXISTS (SELECT FROM event_gone g WHERE g.relay_id = p_relay_id AND g.event_key = o.event_key)
                  ORDER BY o.event_key LIMIT 50) k
            CROSS JOIN LATERAL (
                SELECT e.event_key, e.created_at, e.id, e.kind, e.pubkey, e.fate FROM event e
                WHERE e.event_key = k.event_key AND e.event_key BETWEEN lo AND hi OFFSET 0) x
            -- What relays replace, expire or never keep says nothing when it is not there.
            WHERE x.fate < 2 AND x.created_at BETWEEN p_since AND p_until
              AND x.kind NOT IN (0, 3) AND x.kind NOT BETWEEN 10000 AND 39999
              AND (cardinality(p_kinds) = 0 OR x.kind = ANY (p_kinds))
              AND (cardinality(p_authors) = 0 OR x.pubkey = ANY (p_authors))
            ORDER BY x.event_key LIMIT 1) w
        ORDER BY 1 DESC, 2;
END $$;
COMMENT ON FUNCTION relay_witnesses IS 'A few events that a relay is known to have had in a stretch of created_at, and is not known to have lost, the oldest and others spread over time: of kinds that relays keep, and of these kinds and authors (empty = any).';

-- Authors by whom a relay is asked -------------------------------------------------------------------------------------------

CREATE TABLE relay_batch (
    relay_id integer NOT NULL,
    class    text    NOT NULL CHECK (class ~ '^(authors|mentions):[0-9a-f]{16}$'),
    begun_at bigint  NOT NULL,
    pubkeys  bytea[] NOT NULL CHECK (cardinality(pubkeys) > 0),
    PRIMARY KEY (relay_id, class)
);
COMMENT ON TABLE  relay_batch IS 'What the filter classes mean in which a relay is walked that answers only requests for named authors, or for mentions of somebody.';
COMMENT ON COLUMN relay_batch.relay_id IS 'relay.id';
COMMENT ON COLUMN relay_batch.class IS 'coverage.class: authors: or mentions: and the first digits of the SHA-256 of the keys in their order.';
COMMENT ON COLUMN relay_batch.begun_at IS 'When it was first asked for, Unix seconds.';
COMMENT ON COLUMN relay_batch.pubkeys IS 'The authors, or whom the events mention (#p), ascending; never changed.';

CREATE FUNCTION relay_batches(p_relay_id integer, p_what text)
RETURNS TABLE (class text, pubkeys bytea[])
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY SELECT b.class, b.pubkeys FROM relay_batch b
        WHERE b.relay_id = p_relay_id AND b.class LIKE p_what || ':%' ORDER BY b.begun_at, b.class;
END $$;
COMMENT ON FUNCTION relay_batches IS 'The batches by which a relay is asked, oldest first: p_what is authors or mentions.';

CREATE FUNCTION relay_batch_begin(p_job text, p_worker text, p_attempt integer, p_relay_id integer, p_at bigint, p_what text, p_size integer, p_most integer)
RETURNS TABLE (held boolean, class text, pubkeys bytea[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off SET plan_cache_mode = force_custom_plan
AS $$
DECLARE
    v_begun integer;
BEGIN
    held := EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt]));
    IF held THEN
        SELECT count(*) INTO v_begun FROM relay_batch b WHERE b.relay_id = p_relay_id AND b.class LIKE p_what || ':%';
        IF v_begun < p_most THEN
            SELECT array_agg(a.pubkey ORDER BY a.pubkey) INTO pubkeys FROM (
                SELECT u.pubkey FROM (
                    SELECT r.pubkey, r.events FROM rollup_author r
                    -- Those the rollups do not know yet.
                    UNION ALL SELECT e.pubkey, 1 FROM (SELECT x.pubkey FROM event x ORDER BY x.event_key DESC LIMIT 10000) e) u
                WHERE NOT EXISTS (SELECT FROM relay_batch b WHERE b.relay_id = p_relay_id AND b.class LIKE p_what || ':%' AND u.pubkey = ANY (b.pubkeys))
                GROUP BY u.pubkey ORDER BY sum(u.events) DESC, u.pubkey LIMIT p_size) a;
            -- A relay is begun with whoever is known; after that a batch waits until it is full.
            IF cardinality(pubkeys) = p_size OR (v_begun = 0 AND cardinality(pubkeys) > 0) THEN
                class := p_what || ':' || left(encode(sha256((SELECT string_agg(k.key, ''::bytea ORDER BY k.key) FROM unnest(pubkeys) k(key))), 'hex'), 16);
                INSERT INTO relay_batch VALUES (p_relay_id, class, p_at, pubkeys);
            ELSE
                pubkeys := NULL;
            END IF;
        END IF;
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION relay_batch_begin IS 'Begins a batch of the most frequent authors of the archive by whom a relay is not asked yet; null when there are as many batches as there may be, or too few such authors. held: false when the fence was lost.';

-- Relays that forge ----------------------------------------------------------------------------------------------------------

CREATE TABLE relay_aside (
    relay_id  integer PRIMARY KEY,
    since_at  bigint NOT NULL,
    delivered bigint NOT NULL,
    forged    bigint NOT NULL,
    aside_at  bigint,
    until_at  bigint
);
COMMENT ON TABLE  relay_aside IS 'Relays that serve forged events: how many lately, and whether they are set aside for it: not synced, looked at as before.';
COMMENT ON COLUMN relay_aside.relay_id IS 'relay.id';
COMMENT ON COLUMN relay_aside.since_at IS 'Since when it is counted, Unix seconds; anew after a week, and after it was set aside.';
COMMENT ON COLUMN relay_aside.delivered IS 'Events delivered since then, in passes that met forged ones.';
COMMENT ON COLUMN relay_aside.forged IS 'Those of them that did not verify.';
COMMENT ON COLUMN relay_aside.aside_at IS 'When it was set aside, Unix seconds; null: it is not.';
COMMENT ON COLUMN relay_aside.until_at IS 'Until when, Unix seconds.';

CREATE FUNCTION forgery_weigh(p_job text, p_worker text, p_attempt integer, p_relay_id integer, p_at bigint, p_delivered bigint, p_forged bigint, p_floor bigint, p_percent integer, p_days integer)
RETURNS TABLE (held boolean, aside boolean)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    held := EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt]));
    aside := false;
    IF held THEN
        INSERT INTO relay_aside AS a (relay_id, since_at, delivered, forged) VALUES (p_relay_id, p_at, p_delivered, p_forged)
        ON CONFLICT (relay_id) DO UPDATE SET
            since_at  = CASE WHEN a.since_at < p_at - 7 * 86400 OR a.until_at IS NOT NULL THEN p_at ELSE a.since_at END,
            delivered = CASE WHEN a.since_at < p_at - 7 * 86400 OR a.until_at IS NOT NULL THEN 0 ELSE a.delivered END + p_delivered,
            forged    = CASE WHEN a.since_at < p_at - 7 * 86400 OR a.until_at IS NOT NULL THEN 0 ELSE a.forged END + p_forged,
            aside_at  = NULL, until_at = NULL;
        UPDATE relay_aside a SET aside_at = p_at, until_at = p_at + p_days::bigint * 86400
        WHERE a.relay_id = p_relay_id AND a.forged >= p_floor AND a.forged * 100 >= a.delivered * p_percent;
        aside := FOUND;
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION forgery_weigh IS 'Counts what a pass was served and what of it was forged, and sets the relay aside for p_days where within a week at least p_floor events and p_percent of all were. held: false when the fence was lost.';

CREATE FUNCTION relay_aside_until(p_relay_id integer)
RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN (SELECT a.until_at FROM relay_aside a WHERE a.relay_id = p_relay_id AND a.until_at > extract(epoch FROM now()));
END $$;
COMMENT ON FUNCTION relay_aside_until IS 'Until when a relay is set aside, Unix seconds; null: it is not.';

CREATE FUNCTION relay_forgive(p_urls text[], p_actor text, p_why text)
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE v_urls text[];
BEGIN
    PERFORM FROM relay_aside a WHERE a.relay_id IN (SELECT r.id FROM relay r WHERE r.url = ANY (p_urls)) ORDER BY a.relay_id FOR UPDATE;
    WITH forgiven AS (
        DELETE FROM relay_aside a USING relay r WHERE r.id = a.relay_id AND r.url = ANY (p_urls) RETURNING r.url, a.aside_at
    )
    SELECT array_agg(f.url ORDER BY f.url) INTO v_urls FROM forgiven f WHERE f.aside_at IS NOT NULL;
    PERFORM FROM schedule s WHERE s.kind = 'sync' AND s.target = ANY (v_urls) ORDER BY s.target FOR UPDATE;
    UPDATE schedule s SET due_at = now(), why = 'forgiven' WHERE s.kind = 'sync' AND s.target = ANY (v_urls);
    PERFORM operation_note(p_actor, 'forgive', to_jsonb(p_urls), coalesce(cardinality(v_urls), 0), v_urls, p_why);
    RETURN coalesce(cardinality(v_urls), 0);
END $$;
COMMENT ON FUNCTION relay_forgive IS 'Syncs relays again that were set aside, from now on, and counts their forged events anew. Returns how many were.';
COMMENT ON COLUMN operation.action IS 'pause, drain, resume, cancel, retry, run-now, drain-worker, resume-worker, exclude, include, revive, retention-apply, lighten, keep-bodies or forgive.';

CREATE VIEW relay_set_aside AS
SELECT r.url AS relay_url, a.aside_at, a.until_at, a.forged, a.delivered, a.since_at
FROM public.relay_aside a JOIN public.relay r ON r.id = a.relay_id
WHERE a.until_at > extract(epoch FROM now());
COMMENT ON VIEW relay_set_aside IS 'Relays that are not synced because they serve forged events.';
COMMENT ON COLUMN relay_set_aside.relay_url IS 'relay.url';
COMMENT ON COLUMN relay_set_aside.aside_at IS 'When it was set aside, Unix seconds.';
COMMENT ON COLUMN relay_set_aside.until_at IS 'Until when, unless somebody forgives it before, Unix seconds.';
COMMENT ON COLUMN relay_set_aside.forged IS 'Events that did not verify, in the week before.';
COMMENT ON COLUMN relay_set_aside.delivered IS 'Events delivered then, in passes that met forged ones.';
COMMENT ON COLUMN relay_set_aside.since_at IS 'Since when that was counted, Unix seconds.';
