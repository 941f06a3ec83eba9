-- What relays claim of themselves beside what they were seen to do, and what became of our write probes.

CREATE TABLE relay_capability (
    relay_id         integer  PRIMARY KEY,
    measured_at      bigint,
    vantage_id       smallint,
    claimed          jsonb,
    measured         jsonb,
    write_at         bigint,
    write_vantage_id smallint,
    write_outcome    text     CHECK (write_outcome IN ('ok', 'refused', 'timeout', 'invalid', 'skipped')),
    write_reason     text,
    write_detail     text     CHECK (octet_length(write_detail) <= 1024),
    write_ms         integer,
    write_pow        integer,
    CHECK ((measured IS NULL) = (measured_at IS NULL)),
    CHECK ((write_outcome IS NULL) = (write_at IS NULL))
);
COMMENT ON TABLE  relay_capability IS 'The newest capability record of each relay: its claims, what was measured, and the newest write probe. Neither corrects the other.';
COMMENT ON COLUMN relay_capability.relay_id IS 'relay.id';
COMMENT ON COLUMN relay_capability.measured_at IS 'When it was measured, Unix seconds.';
COMMENT ON COLUMN relay_capability.vantage_id IS 'vantage.id: from where.';
COMMENT ON COLUMN relay_capability.claimed IS 'What its NIP-11 document said then of what is measured; null without a document.';
COMMENT ON COLUMN relay_capability.measured IS 'What was seen: nip42, nip45, nip50, nip67, nip77, without_kinds, until, default_limit, max_limit, above_brings_less, page_max, requests, ended.';
COMMENT ON COLUMN relay_capability.write_at IS 'When an event was last published to it, or was not for its demands, Unix seconds.';
COMMENT ON COLUMN relay_capability.write_vantage_id IS 'vantage.id: from where.';
COMMENT ON COLUMN relay_capability.write_outcome IS 'ok only after OK true (closed set of outcomes).';
COMMENT ON COLUMN relay_capability.write_reason IS 'Why (closed set of reasons); none when ok.';
COMMENT ON COLUMN relay_capability.write_detail IS 'The relay''s own words with its OK, or ours when nothing was sent.';
COMMENT ON COLUMN relay_capability.write_ms IS 'Milliseconds from EVENT to OK true.';
COMMENT ON COLUMN relay_capability.write_pow IS 'Bits of proof of work it demanded.';

CREATE FUNCTION capability_put(
    p_jobs text[], p_workers text[], p_attempts integer[], p_urls text[], p_vantage text, p_ats bigint[],
    p_claimed text[], p_measured text[],
    w_outcomes text[], w_reasons text[], w_details text[], w_ms integer[], w_pows integer[])
RETURNS SETOF integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    v_held integer[];
    v_vantage smallint;
BEGIN
    v_held := ARRAY(SELECT job_fence(p_jobs, p_workers, p_attempts));
    SELECT v.id INTO v_vantage FROM vantage v WHERE v.name = p_vantage;
    IF v_vantage IS NULL THEN
        INSERT INTO vantage (name) VALUES (p_vantage) ON CONFLICT (name) DO NOTHING;
        SELECT v.id INTO v_vantage FROM vantage v WHERE v.name = p_vantage;
    END IF;
    INSERT INTO relay_capability AS c (relay_id, measured_at, vantage_id, claimed, measured,
        write_at, write_vantage_id, write_outcome, write_reason, write_detail, write_ms, write_pow)
    SELECT r.id, CASE WHEN p_measured[h] IS NOT NULL THEN p_ats[h] END, CASE WHEN p_measured[h] IS NOT NULL THEN v_vantage END,
           CASE WHEN p_measured[h] IS NOT NULL THEN p_claimed[h]::jsonb END, p_measured[h]::jsonb,
           CASE WHEN w_outcomes[h] IS NOT NULL THEN p_ats[h] END, CASE WHEN w_outcomes[h] IS NOT NULL THEN v_vantage END,
           w_outcomes[h], w_reasons[h], w_details[h], w_ms[h], w_pows[h]
    FROM unnest(v_held) h JOIN relay r ON r.url = p_urls[h]
    WHERE p_measured[h] IS NOT NULL OR w_outcomes[h] IS NOT NULL
    ORDER BY r.id
    ON CONFLICT (relay_id) DO UPDATE SET
        measured_at = coalesce(excluded.measured_at, c.measured_at),
        vantage_id = coalesce(excluded.vantage_id, c.vantage_id),
        claimed = CASE WHEN excluded.measured IS NULL THEN c.claimed ELSE excluded.claimed END,
        measured = coalesce(excluded.measured, c.measured),
        write_at = coalesce(excluded.write_at, c.write_at),
        write_vantage_id = coalesce(excluded.write_vantage_id, c.write_vantage_id),
        write_outcome = coalesce(excluded.write_outcome, c.write_outcome),
        write_reason = CASE WHEN excluded.write_at IS NULL THEN c.write_reason ELSE excluded.write_reason END,
        write_detail = CASE WHEN excluded.write_at IS NULL THEN c.write_detail ELSE excluded.write_detail END,
        write_ms = CASE WHEN excluded.write_at IS NULL THEN c.write_ms ELSE excluded.write_ms END,
        write_pow = CASE WHEN excluded.write_at IS NULL THEN c.write_pow ELSE excluded.write_pow END;
    RETURN QUERY SELECT o FROM generate_series(1, cardinality(p_jobs)) o WHERE o <> ALL (v_held);
END $$;
COMMENT ON FUNCTION capability_put IS 'Capability records and write probes of monitor jobs; what was not measured this time stays as it was. Returns the positions whose fence was lost; nothing was written for them.';

CREATE FUNCTION capability_get(p_relay_ids integer[])
RETURNS TABLE (o integer, measured_at bigint, vantage text, claimed text, measured text,
    write_at bigint, write_outcome text, write_reason text, write_detail text, write_ms integer, write_pow integer)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
BEGIN
    RETURN QUERY
        SELECT u.o::integer, c.measured_at, v.name, c.claimed::text, c.measured::text,
               c.write_at, c.write_outcome, c.write_reason, c.write_detail, c.write_ms, c.write_pow
        FROM unnest(p_relay_ids) WITH ORDINALITY u(id, o)
        JOIN relay_capability c ON c.relay_id = u.id
        LEFT JOIN vantage v ON v.id = c.vantage_id
        ORDER BY u.o;
END $$;
COMMENT ON FUNCTION capability_get IS 'Capability records by relay; absent ones are absent.';

CREATE VIEW relay_capability_difference AS
SELECT r.url, d.subject, d.claimed, d.measured, c.measured_at AS at, v.name AS vantage
FROM public.relay_capability c
JOIN public.relay r ON r.id = c.relay_id
LEFT JOIN public.vantage v ON v.id = c.vantage_id
CROSS JOIN LATERAL (
    -- NIPs whose work was seen, or denied: what stayed undecided or silent contradicts only a claim.
    SELECT 'nip' || n.nip AS subject,
           CASE WHEN c.claimed -> 'nips' @> to_jsonb(n.nip) THEN 'supported' ELSE 'not listed' END AS claimed, n.seen AS measured
    FROM (VALUES (45, c.measured -> 'nip45' ->> 'seen'), (50, c.measured -> 'nip50' ->> 'seen'),
                 (67, c.measured ->> 'nip67'), (77, c.measured -> 'nip77' ->> 'seen')) n(nip, seen)
    WHERE c.claimed IS NOT NULL
      AND CASE WHEN c.claimed -> 'nips' @> to_jsonb(n.nip) THEN n.seen IN ('refused', 'ignored', 'silent') ELSE n.seen = 'works' END
    UNION ALL
    SELECT 'nip42', 'not listed', c.measured ->> 'nip42'
    WHERE c.claimed IS NOT NULL AND NOT c.claimed -> 'nips' @> '42' AND c.measured ->> 'nip42' <> 'none'
    UNION ALL
    SELECT 'auth_required', c.claimed ->> 'auth_required', c.measured ->> 'nip42'
    WHERE CASE WHEN (c.claimed ->> 'auth_required')::boolean THEN c.measured ->> 'nip42' IN ('none', 'offered')
               WHEN NOT (c.claimed ->> 'auth_required')::boolean THEN c.measured ->> 'nip42' IN ('required', 'accepted', 'refused') END
    UNION ALL
    SELECT 'max_limit', c.claimed ->> 'max_limit', c.measured ->> 'max_limit'
    WHERE (c.claimed ->> 'max_limit')::bigint <> (c.measured ->> 'max_limit')::bigint
      -- A page of the claimed limit is no small request where that is large: more may well come.
      AND NOT ((c.measured ->> 'above_brings_less')::boolean AND (c.measured ->> 'max_limit')::bigint < (c.claimed ->> 'max_limit')::bigint)
    UNION ALL
    SELECT 'max_limit', c.claimed ->> 'max_limit', c.measured ->> 'page_max'
    WHERE (c.claimed ->> 'max_limit')::bigint < (c.measured ->> 'page_max')::bigint AND c.measured ->> 'max_limit' IS NULL
    UNION ALL
    SELECT 'default_limit', c.claimed ->> 'default_limit', c.measured ->> 'default_limit'
    WHERE (c.claimed ->> 'default_limit')::bigint <> (c.measured ->> 'default_limit')::bigint
    UNION ALL
    SELECT 'above_limit', 'clamped', 'brings less' WHERE (c.measured ->> 'above_brings_less')::boolean
    UNION ALL
    SELECT 'until', 'inclusive', c.measured ->> 'until' WHERE c.measured ->> 'until' IN ('exclusive', 'ignored')
    UNION ALL
    SELECT 'restricted_writes', c.claimed ->> 'restricted_writes', c.write_outcome || CASE WHEN c.write_reason = 'none' THEN '' ELSE ': ' || c.write_reason END
    WHERE CASE WHEN (c.claimed ->> 'restricted_writes')::boolean THEN c.write_outcome = 'ok'
               WHEN NOT (c.claimed ->> 'restricted_writes')::boolean THEN c.write_outcome = 'refused' END
) d;
COMMENT ON VIEW relay_capability_difference IS 'Where a relay does otherwise than its NIP-11 document, or NIP-01, says.';
COMMENT ON COLUMN relay_capability_difference.url IS 'relay.url';
COMMENT ON COLUMN relay_capability_difference.subject IS 'What differs: a NIP, a limit, auth_required, restricted_writes, until.';
COMMENT ON COLUMN relay_capability_difference.claimed IS 'What is said.';
COMMENT ON COLUMN relay_capability_difference.measured IS 'What was seen.';
COMMENT ON COLUMN relay_capability_difference.at IS 'When the record was measured, Unix seconds.';
COMMENT ON COLUMN relay_capability_difference.vantage IS 'From where.';
