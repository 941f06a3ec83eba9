-- How long a relay was left alone whose last pass a fault ended: where that lasts, the pause grows.

CREATE FUNCTION sync_interrupted_s(p_relay_id integer) RETURNS integer
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN (SELECT 4 * s.slack_s FROM relay r JOIN schedule s ON s.kind = 'sync' AND s.target = r.url
            WHERE r.id = p_relay_id AND s.why = 'interrupted');
END $$;
COMMENT ON FUNCTION sync_interrupted_s IS 'How long the pass over a relay that is under way was put off because a fault ended the one before, seconds (four times the slack); null where it was due for another reason.';
