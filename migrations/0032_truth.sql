-- What a record may claim: how far an age was read again, per filter class; since when an interval stands as it is; and a
-- bound on what a relay can have us remember of ids that it does not serve.

-- A relay read by kinds for a day has not been read again in full. What such relays noted so far says of no class, and
-- their coverage says it anew.
ALTER TABLE relay_revisit ADD COLUMN class text NOT NULL DEFAULT 'all';
COMMENT ON COLUMN relay_revisit.class IS 'Filter class that was read; all = no restriction.';
ALTER TABLE relay_revisit DROP CONSTRAINT relay_revisit_pkey;
ALTER TABLE relay_revisit ADD PRIMARY KEY (relay_id, class, age_s);
DELETE FROM relay_revisit v WHERE EXISTS (SELECT FROM coverage c WHERE c.relay_id = v.relay_id AND c.class <> 'all');

CREATE FUNCTION sync_facts_of(p_relay_id integer, p_class text)
RETURNS TABLE (neg_off_until bigint, ages bigint[], untils bigint[], has_gone boolean)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    SELECT s.neg_off_until INTO neg_off_until FROM relay_sync s WHERE s.relay_id = p_relay_id;
    SELECT coalesce(array_agg(v.age_s ORDER BY v.age_s), '{}'), coalesce(array_agg(v.until_at ORDER BY v.age_s), '{}')
    INTO ages, untils FROM relay_revisit v WHERE v.relay_id = p_relay_id AND v.class = p_class;
    has_gone := EXISTS (SELECT FROM event_gone g WHERE g.relay_id = p_relay_id);
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION sync_facts_of IS 'What a sync pass plans by besides coverage: until when not to reconcile, how far each age was read again in this filter class, whether events are gone.';

CREATE OR REPLACE FUNCTION sync_facts(p_relay_id integer)
RETURNS TABLE (neg_off_until bigint, ages bigint[], untils bigint[], has_gone boolean)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    RETURN QUERY SELECT f.neg_off_until, f.ages, f.untils, f.has_gone FROM sync_facts_of(p_relay_id, 'all') f;
END $$;
COMMENT ON FUNCTION sync_facts IS 'sync_facts_of the class all: what workers of the version before ask.';

CREATE FUNCTION unserved_bound(p_relay_id integer, p_at bigint)
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE n integer;
BEGIN
    DELETE FROM event_unserved u WHERE u.relay_id = p_relay_id AND (
        u.last_at < p_at - 90 * 86400
        OR u.event_id IN (SELECT x.event_id FROM event_unserved x WHERE x.relay_id = p_relay_id
                          ORDER BY x.last_at DESC, x.event_id OFFSET 10000));
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION unserved_bound IS 'Forgets ids that a relay does not serve: those not listed for 90 days, and all but its latest 10,000. Returns how many.';

CREATE FUNCTION sync_learn_of(
    p_job text, p_worker text, p_attempt integer, p_relay_id integer, p_at bigint, p_neg_off_until bigint,
    p_ages bigint[], p_untils bigint[], p_seconds bigint[], p_founds bigint[], p_class text)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt])) THEN RETURN false; END IF;
    IF p_neg_off_until IS NOT NULL THEN
        INSERT INTO relay_sync AS s (relay_id, neg_off_until) VALUES (p_relay_id, p_neg_off_until)
        ON CONFLICT (relay_id) DO UPDATE SET neg_off_until = excluded.neg_off_until;
    END IF;
    INSERT INTO relay_revisit AS v (relay_id, class, age_s, until_at, looked_at, seconds, found)
    SELECT p_relay_id, p_class, u.age, u.until, p_at, u.seconds, u.found
    FROM unnest(p_ages, p_untils, p_seconds, p_founds) u(age, until, seconds, found) ORDER BY u.age
    ON CONFLICT (relay_id, class, age_s) DO UPDATE
        SET until_at = greatest(v.until_at, excluded.until_at), looked_at = excluded.looked_at,
            seconds = v.seconds + excluded.seconds, found = v.found + excluded.found;
    PERFORM unserved_bound(p_relay_id, p_at);
    RETURN true;
END $$;
COMMENT ON FUNCTION sync_learn_of IS 'Notes what a sync pass learnt: that the relay does not reconcile (null = nothing new), and how far each age was read again in this filter class; bounds what is remembered of ids that it does not serve.';

CREATE OR REPLACE FUNCTION sync_learn(
    p_job text, p_worker text, p_attempt integer, p_relay_id integer, p_at bigint, p_neg_off_until bigint,
    p_ages bigint[], p_untils bigint[], p_seconds bigint[], p_founds bigint[])
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    RETURN sync_learn_of(p_job, p_worker, p_attempt, p_relay_id, p_at, p_neg_off_until, p_ages, p_untils, p_seconds, p_founds, 'all');
END $$;
COMMENT ON FUNCTION sync_learn IS 'sync_learn_of the class all: what workers of the version before call.';

-- Neighbours that say the same are one interval, observed when its oldest part was. When its newest part was is when the row
-- was written: unchanged rows never are.
ALTER TABLE coverage ADD COLUMN settled_at bigint NOT NULL DEFAULT extract(epoch FROM now())::bigint;
COMMENT ON COLUMN coverage.settled_at IS 'Since when it stands as it is, Unix seconds: no part of it was found out later.';
