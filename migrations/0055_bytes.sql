-- What one stranger's documents may take of the disk: so many changes, and so many bytes.

CREATE OR REPLACE FUNCTION relay_metadata_insert(p_relay_ids integer[], p_types text[], p_generated_ats bigint[], p_metadata_ids bytea[])
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp SET jit = off
AS $$
DECLARE
    v_keep CONSTANT integer := 100;
    -- As stored: four of the longest documents that a look keeps whole, or a hundred of two and a half thousand bytes.
    v_bytes CONSTANT integer := 262144;
    n integer;
BEGIN
    INSERT INTO relay_metadata (relay_id, metadata_type, generated_at, metadata_id)
    SELECT u.relay_id, u.type, least(u.at, extract(epoch FROM now())::bigint), u.id
    FROM unnest(p_relay_ids, p_types, p_generated_ats, p_metadata_ids) u(relay_id, type, at, id)
    WHERE EXISTS (SELECT FROM relay r WHERE r.id = u.relay_id)
      AND EXISTS (SELECT FROM metadata m WHERE m.id = u.id AND m.type = u.type)
      AND u.id IS DISTINCT FROM (
        SELECT x.metadata_id FROM relay_metadata x
        WHERE x.relay_id = u.relay_id AND x.metadata_type = u.type ORDER BY x.generated_at DESC LIMIT 1)
    ORDER BY u.relay_id, u.type, u.at
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS n = ROW_COUNT;
    IF n > 0 THEN
        -- At most a hundred and one rows of a pair are looked at, and of a long document its pointer alone. The latest stays
        -- whatever its length: imports bring longer ones.
        DELETE FROM relay_metadata x USING (
            SELECT DISTINCT u.relay_id, u.type, (
                SELECT max(k.generated_at) FROM (
                    SELECT y.generated_at, row_number() OVER w AS turn, sum(pg_column_size(m.data)) OVER w AS bytes
                    FROM (
                        SELECT z.generated_at, z.metadata_id FROM relay_metadata z
                        WHERE z.relay_id = u.relay_id AND z.metadata_type = u.type ORDER BY z.generated_at DESC LIMIT v_keep + 1) y
                    JOIN metadata m ON m.id = y.metadata_id AND m.type = u.type
                    WINDOW w AS (ORDER BY y.generated_at DESC)) k
                WHERE k.turn > v_keep OR (k.turn > 1 AND k.bytes > v_bytes)) AS newest
            FROM unnest(p_relay_ids, p_types) u(relay_id, type)) g
        WHERE x.relay_id = g.relay_id AND x.metadata_type = g.type AND x.generated_at <= g.newest;
    END IF;
    RETURN n;
END $$;
COMMENT ON FUNCTION relay_metadata_insert IS 'Records that relays have these documents, only where that is a change, and forgets changes beyond the latest hundred, or the latest 256 KiB as stored, of a relay and type; returns how many changed.';
COMMENT ON TABLE relay_metadata IS 'Which document a relay had from when on: one row per change, of each type the latest hundred, or fewer that together take 256 KiB.';
