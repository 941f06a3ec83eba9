-- One text of each reason of what a relay served and that was taken for no event, or for a forged one.

CREATE TABLE relay_specimen (
    relay_id integer NOT NULL,
    reason   text    NOT NULL,
    at       bigint  NOT NULL,
    event    bytea   NOT NULL CHECK (octet_length(event) <= 8192),
    bytes    integer NOT NULL CHECK (bytes >= octet_length(event)),
    PRIMARY KEY (relay_id, reason)
);
COMMENT ON TABLE  relay_specimen IS 'Of what a relay served and that cannot be read or does not verify one text of each reason, as it came.';
COMMENT ON COLUMN relay_specimen.relay_id IS 'relay.id';
COMMENT ON COLUMN relay_specimen.reason IS 'Why it is no event, or none of that author (closed set): not_json, shape, range, bad_id, other_escape, bad_signature, too_large.';
COMMENT ON COLUMN relay_specimen.at IS 'When it came, Unix seconds; another one takes its place a day later at the earliest.';
COMMENT ON COLUMN relay_specimen.event IS 'The text as it came, at most the first 8 KiB of it; of a frame that is no JSON the whole frame. Nothing of it is verified.';
COMMENT ON COLUMN relay_specimen.bytes IS 'Bytes that the whole text had.';

CREATE FUNCTION specimen_note(p_job text, p_worker text, p_attempt integer, p_relay_id integer, p_at bigint, p_reasons text[], p_events bytea[], p_bytes integer[])
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY[p_worker], ARRAY[p_attempt])) THEN RETURN false; END IF;
    INSERT INTO relay_specimen AS s (relay_id, reason, at, event, bytes)
    SELECT DISTINCT ON (u.reason) p_relay_id, u.reason, p_at, substring(u.event FROM 1 FOR 8192), u.bytes
    FROM unnest(p_reasons, p_events, p_bytes) WITH ORDINALITY u(reason, event, bytes, o)
    -- Asked first: a conflict that changes nothing locks the row all the same, and that is a write. A clock that was ahead
    -- keeps nothing out for good.
    WHERE NOT EXISTS (SELECT FROM relay_specimen x WHERE x.relay_id = p_relay_id AND x.reason = u.reason AND abs(x.at - p_at) < 86400)
    ORDER BY u.reason, u.o
    ON CONFLICT (relay_id, reason) DO UPDATE SET at = excluded.at, event = excluded.event, bytes = excluded.bytes
        WHERE abs(s.at - excluded.at) >= 86400;
    RETURN true;
END $$;
COMMENT ON FUNCTION specimen_note IS 'Keeps texts of a page that are no events, or forged ones: of each reason one, the first 8 KiB, where the relay has none of the last 24 hours. False when the fence was lost, and nothing was written.';

CREATE FUNCTION specimen_retire(p_keep_days integer, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE n integer;
BEGIN
    -- A pass that is writing one of these writes a newer one.
    DELETE FROM relay_specimen s WHERE (s.relay_id, s.reason) IN (
        SELECT x.relay_id, x.reason FROM relay_specimen x
        WHERE x.at < extract(epoch FROM p_now)::bigint - p_keep_days * 86400::bigint
        ORDER BY x.relay_id, x.reason LIMIT 10000 FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;
COMMENT ON FUNCTION specimen_retire IS 'Forgets at most 10,000 specimens older than p_keep_days; returns how many.';

CREATE FUNCTION specimen_text(p_event bytea) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN convert_from(p_event, 'UTF8');
EXCEPTION WHEN character_not_in_repertoire THEN
    RETURN encode(p_event, 'escape');
END $$;
COMMENT ON FUNCTION specimen_text IS 'Bytes as text where they are UTF-8 without NUL; else with \nnn (octal) for each byte that is no ASCII or is NUL, and \\ for a backslash.';

CREATE VIEW relay_specimens AS
SELECT r.url AS relay_url, s.reason, s.at, s.bytes, public.specimen_text(s.event) AS event
FROM public.relay_specimen s JOIN public.relay r ON r.id = s.relay_id;
COMMENT ON VIEW relay_specimens IS 'Of what relays served and that cannot be read or does not verify one text of each reason.';
COMMENT ON COLUMN relay_specimens.relay_url IS 'relay.url';
COMMENT ON COLUMN relay_specimens.reason IS 'Why it is no event, or none of that author.';
COMMENT ON COLUMN relay_specimens.at IS 'When it came, Unix seconds.';
COMMENT ON COLUMN relay_specimens.bytes IS 'Bytes that the whole text had.';
COMMENT ON COLUMN relay_specimens.event IS 'The text, at most the first 8 KiB; escaped by specimen_text where it cannot be shown as it is. Nothing of it is verified.';
