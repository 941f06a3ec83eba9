-- Relays that want kinds and authors named together, and relays that allow some kinds only.

ALTER TABLE relay_batch ADD COLUMN kinds integer[] NOT NULL DEFAULT '{}';
ALTER TABLE relay_batch DROP CONSTRAINT relay_batch_class_check;
ALTER TABLE relay_batch ADD CONSTRAINT relay_batch_class_check
    CHECK (class ~ '^(authors|mentions|kinds\+authors):[0-9a-f]{16}$' AND (class ~ '^kinds') = (cardinality(kinds) > 0));
COMMENT ON TABLE  relay_batch IS 'What the filter classes mean in which a relay is walked that answers only requests for named authors, for mentions of somebody, or for kinds and authors together.';
COMMENT ON COLUMN relay_batch.class IS 'coverage.class: authors:, mentions: or kinds+authors:, and the first digits of the SHA-256 of the keys in their order and the kinds after them.';
COMMENT ON COLUMN relay_batch.kinds IS 'The kinds that are named with the authors, ascending; never changed. Empty: none are.';

ALTER TABLE relay_sync ADD COLUMN kinds integer[];
ALTER TABLE relay_sync ADD COLUMN kinds_off_until bigint;
COMMENT ON COLUMN relay_sync.kinds IS 'It refuses requests that name other kinds than these, ascending: by these alone it is asked where it wants kinds named. Null: not known.';
COMMENT ON COLUMN relay_sync.kinds_off_until IS 'It refused some kinds, and no others were found that it allows: not tried again before this, Unix seconds.';

-- Batches ----------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION relay_batches_of(p_relay_id integer, p_what text)
RETURNS TABLE (class text, pubkeys bytea[], kinds integer[])
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY SELECT b.class, b.pubkeys, b.kinds FROM relay_batch b
        WHERE b.relay_id = p_relay_id AND b.class LIKE p_what || ':%' ORDER BY b.begun_at, b.class;
END $$;
COMMENT ON FUNCTION relay_batches_of IS 'The batches by which a relay is asked, oldest first, with the kinds that are named with them: p_what is authors, mentions or kinds+authors.';
COMMENT ON FUNCTION relay_batches IS 'relay_batches_of without the kinds: what workers of the version before ask.';

CREATE FUNCTION relay_batch_begin_of(p_job text, p_worker text, p_attempt integer, p_relay_id integer, p_at bigint, p_what text, p_size integer, p_most integer, p_kinds integer[])
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
                class := p_what || ':' || left(encode(sha256(
                    (SELECT string_agg(k.key, ''::bytea ORDER BY k.key) FROM unnest(pubkeys) k(key))
                    || convert_to(array_to_string(p_kinds, ','), 'UTF8')), 'hex'), 16);
                INSERT INTO relay_batch (relay_id, class, begun_at, pubkeys, kinds) VALUES (p_relay_id, class, p_at, pubkeys, p_kinds);
                -- It was asked by kinds alone before it was known that it wants authors, too.
                IF cardinality(p_kinds) > 0 THEN
                    PERFORM coverage_put(p_relay_id, c.class, '{}', '{}', '{}', '{}', '{}')
                    FROM (SELECT DISTINCT x.class FROM coverage x WHERE x.relay_id = p_relay_id AND x.class LIKE 'kinds:%') c;
                    DELETE FROM relay_revisit v WHERE v.relay_id = p_relay_id AND v.class LIKE 'kinds:%';
                    DELETE FROM relay_rest r WHERE r.relay_id = p_relay_id AND r.class LIKE 'kinds:%';
                END IF;
            ELSE
                pubkeys := NULL;
            END IF;
        END IF;
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION relay_batch_begin_of IS 'Begins a batch of the most frequent authors of the archive by whom a relay is not asked yet, with the kinds that are named with them (empty = none); null when there are as many batches as there may be, or too few such authors. What was read of the relay by kinds alone is forgotten where kinds are named. held: false when the fence was lost.';

CREATE OR REPLACE FUNCTION relay_batch_begin(p_job text, p_worker text, p_attempt integer, p_relay_id integer, p_at bigint, p_what text, p_size integer, p_most integer)
RETURNS TABLE (held boolean, class text, pubkeys bytea[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    RETURN QUERY SELECT b.held, b.class, b.pubkeys
        FROM relay_batch_begin_of(p_job, p_worker, p_attempt, p_relay_id, p_at, p_what, p_size, p_most, '{}') b;
END $$;
COMMENT ON FUNCTION relay_batch_begin IS 'relay_batch_begin_of without kinds: what workers of the version before call.';

-- Kinds that a relay allows ----------------------------------------------------------------------------------------------------

CREATE FUNCTION relay_kinds(p_relay_id integer)
RETURNS TABLE (kinds integer[], off_until bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    SELECT s.kinds, s.kinds_off_until INTO kinds, off_until FROM relay_sync s WHERE s.relay_id = p_relay_id;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION relay_kinds IS 'Which kinds a relay was found to allow in a request (null: not known), and before when that is not tried again because nothing was found (null: at any time).';

CREATE FUNCTION relay_kinds_set(p_job text, p_worker text, p_attempt integer, p_relay_id integer, p_kinds integer[])
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_name text := 'kinds:' || array_to_string(p_kinds, ',');
    v_classes text[];
BEGIN
    IF NOT EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt])) THEN RETURN false; END IF;
    INSERT INTO relay_sync AS s (relay_id, kinds) VALUES (p_relay_id, p_kinds)
    ON CONFLICT (relay_id) DO UPDATE SET kinds = excluded.kinds, kinds_off_until = NULL;
    -- What names another kind is asked for no more, and nothing is claimed of it any more.
    v_classes := ARRAY(
        SELECT c.class FROM coverage c WHERE c.relay_id = p_relay_id AND c.class LIKE 'kinds:%' AND c.class <> v_name
        UNION SELECT b.class FROM relay_batch b WHERE b.relay_id = p_relay_id AND NOT b.kinds <@ p_kinds
        ORDER BY 1);
    PERFORM coverage_put(p_relay_id, c.class, '{}', '{}', '{}', '{}', '{}') FROM unnest(v_classes) c(class);
    DELETE FROM relay_revisit v WHERE v.relay_id = p_relay_id AND v.class = ANY (v_classes);
    DELETE FROM relay_rest r WHERE r.relay_id = p_relay_id AND r.class = ANY (v_classes);
    DELETE FROM relay_batch b WHERE b.relay_id = p_relay_id AND b.class = ANY (v_classes);
    RETURN true;
END $$;
COMMENT ON FUNCTION relay_kinds_set IS 'Notes which kinds a relay allows in a request, and forgets the filter classes of it that name others: their coverage, how far they were read again, and their batches. False when the fence was lost, and nothing was written.';

CREATE FUNCTION relay_kinds_rest(p_job text, p_worker text, p_attempt integer, p_relay_id integer, p_until bigint)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt])) THEN RETURN false; END IF;
    INSERT INTO relay_sync AS s (relay_id, kinds_off_until) VALUES (p_relay_id, p_until)
    ON CONFLICT (relay_id) DO UPDATE SET kinds_off_until = excluded.kinds_off_until;
    RETURN true;
END $$;
COMMENT ON FUNCTION relay_kinds_rest IS 'Notes before when it is not tried again to find out which kinds a relay allows. False when the fence was lost, and nothing was written.';
