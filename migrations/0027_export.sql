-- Import: what another archive, or a dump of a relay, holds. An event comes with the observation that says where it
-- was seen, in one transaction: the archive has no event that no relay was seen to hold.

CREATE FUNCTION event_import(
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
BEGIN
    -- The gate of whoever drops whole months of events: here, before any lock on a table is held.
    PERFORM pg_advisory_xact_lock_shared(7310);
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
        ARRAY(SELECT relay_ids[u.i] FROM unnest(o_urls) WITH ORDINALITY u(i, o) ORDER BY u.o), o_seen_ats, o_evidence);
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION event_import IS 'One batch of an import in one transaction: relays (o_urls are 1-based positions in p_urls), new events (n_*), and observations of new and known ones (o_*). A new event without an observation is refused. Returns the counts of what was new.';
