-- How long a relay is left in peace that wants to be asked less.

CREATE FUNCTION sync_limited_s(p_relay_id integer) RETURNS integer
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN (SELECT 4 * s.slack_s FROM relay r JOIN schedule s ON s.kind = 'sync' AND s.target = r.url
            WHERE r.id = p_relay_id AND s.why = 'rate limited');
END $$;
COMMENT ON FUNCTION sync_limited_s IS 'How long the pass over a relay that is under way was put off by its rate limit, seconds (four times the slack); null where it was due for another reason.';

-- Gaps that a relay leaves itself (a crowded second, an order that proves nothing) are read again after a rest, which
-- doubles as long as that brings nothing new.
CREATE TABLE relay_rest (
    relay_id integer NOT NULL,
    class    text    NOT NULL,
    rest_s   bigint  NOT NULL CHECK (rest_s > 0),
    PRIMARY KEY (relay_id, class)
);
COMMENT ON TABLE  relay_rest IS 'How long the gaps of a relay rest before they are read again, where reading them brought nothing new.';
COMMENT ON COLUMN relay_rest.relay_id IS 'relay.id';
COMMENT ON COLUMN relay_rest.class IS 'Filter class; all = no restriction.';
COMMENT ON COLUMN relay_rest.rest_s IS 'The rest, seconds.';

CREATE FUNCTION gap_rest(p_relay_id integer, p_class text) RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN (SELECT r.rest_s FROM relay_rest r WHERE r.relay_id = p_relay_id AND r.class = p_class);
END $$;
COMMENT ON FUNCTION gap_rest IS 'How long the gaps of a relay in this filter class rest before they are read again, seconds; null: as short as any.';

CREATE FUNCTION gap_rest_set(p_job text, p_worker text, p_attempt integer, p_relay_id integer, p_class text, p_rest_s bigint)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt])) THEN RETURN false; END IF;
    INSERT INTO relay_rest AS r (relay_id, class, rest_s) VALUES (p_relay_id, p_class, p_rest_s)
    ON CONFLICT (relay_id, class) DO UPDATE SET rest_s = excluded.rest_s;
    RETURN true;
END $$;
COMMENT ON FUNCTION gap_rest_set IS 'Notes how long the gaps of a relay in this filter class rest from now on. False when the fence was lost, and nothing was written.';
