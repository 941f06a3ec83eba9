//! What a monitored network leaves beside the archive: four weeks of checks in partitions of a day, and documents.

use tests::pg::TestDb;

/// Kinds of documents that checks leave.
const DOCUMENTS: &str =
    "ARRAY['nip11_info', 'nip66_ssl', 'nip66_geo', 'nip66_net', 'nip66_dns', 'nip66_http']";
/// Kinds of checks.
const KINDS: &str = "ARRAY['nip11', 'rtt', 'ssl', 'dns', 'geo', 'net', 'http']";

/// As many relays as a census finds; a twentieth for a look.
pub(super) const fn relays(quick: bool) -> u32 {
    if quick { 375 } else { 7_500 }
}

/// Relays with three documents of each kind, seven kinds of checks a day for four weeks, and of round-trip times three a day
/// and one an hour in the last three days: 315 checks each. Written in bulk, since it is not what is measured.
pub(super) async fn fill(test: &TestDb, relays: u32) {
    test.execute(&format!(
        "INSERT INTO vantage (name) VALUES ('bench') ON CONFLICT DO NOTHING;
         INSERT INTO relay (url, network, discovered_at) SELECT 'wss://looked-at-' || n || '.example', 'clearnet', 1 FROM generate_series(1, {relays}) n;
         SELECT partition_ensure('relay_check', d * 86400, (d + 1) * 86400, to_char(to_timestamp(d * 86400) AT TIME ZONE 'UTC', 'YYYYMMDD'))
         FROM (SELECT extract(epoch FROM now())::bigint / 86400 - x AS d FROM generate_series(-1, 28) x) days;
         CREATE TABLE looked_at AS SELECT r.id, row_number() OVER (ORDER BY r.id) AS n FROM relay r WHERE r.url LIKE 'wss://looked-at-%';
         CREATE FUNCTION document_of(p_type text, p bigint) RETURNS bytea LANGUAGE sql AS $$ SELECT sha256((p_type || p)::bytea) $$;
         INSERT INTO metadata (id, type, data)
         SELECT document_of(t, n), t, json_build_object('logs', json_build_object('success', true), 'data', json_build_object(
             'name', 'relay ' || n, 'software', 'git+https://example.com/s' || n % 40, 'version', '1.' || n % 15, 'geo_country', 'C' || n % 60, 'net_asn', n % 500,
             'supported_nips', (SELECT json_agg(x) FROM generate_series(1, 1 + n % 40) x), 'description', repeat(md5(n::text), 20)))
         FROM generate_series(1, {relays} + 100) n, unnest({DOCUMENTS}) t;
         INSERT INTO relay_metadata
         SELECT l.id, t, extract(epoch FROM now())::bigint - c * 400000, document_of(t, l.n + c) FROM looked_at l, unnest({DOCUMENTS}) t, generate_series(0, 2) c;
         INSERT INTO relay_check (checked_at, relay_id, vantage_id, kind, outcome, reason, open_ms, read_ms, write_ms)
         SELECT extract(epoch FROM now())::bigint - h * 3600 - l.n % 3600, l.id, 1, k, 'ok', 'none', 50 + l.n % 100, 60, 70
         FROM looked_at l, generate_series(0, 28 * 24 - 2) h, unnest({KINDS}) k
         WHERE h % 24 = 0 OR k = 'rtt' AND (h < 72 OR h % 8 = 0);
         INSERT INTO relay_check_latest (relay_id, kind, vantage_id, checked_at, outcome, reason, open_ms, read_ms, write_ms, metadata_id, confirmed_at)
         SELECT l.id, k, 1, c.at, 'ok', 'none', 50, 60, 70, CASE k WHEN 'nip11' THEN document_of('nip11_info', l.n) WHEN 'rtt' THEN NULL ELSE document_of('nip66_' || k, l.n) END, c.at
         FROM looked_at l CROSS JOIN LATERAL (SELECT extract(epoch FROM now())::bigint - l.n % 3600 AS at) c, unnest({KINDS}) k;
         ANALYZE relay, metadata, relay_metadata, relay_check, relay_check_latest"
    ))
    .await;
}

/// One look at one relay in a hundred, each with another NIP-11 document; `again` is another number for each.
pub(super) async fn look(test: &TestDb, again: u32) {
    test.execute(&format!(
        "INSERT INTO relay_check (checked_at, relay_id, vantage_id, kind, outcome, reason, open_ms, read_ms, write_ms)
         SELECT extract(epoch FROM now())::bigint + 10 * {again}, l.id, 1, k, 'ok', 'none', 40 + {again} % 7, 60, 70 FROM looked_at l, unnest({KINDS}) k WHERE l.n % 100 = 7;
         UPDATE relay_check_latest c SET checked_at = checked_at + 10, confirmed_at = confirmed_at + 10 FROM looked_at l WHERE l.id = c.relay_id AND l.n % 100 = 7;
         INSERT INTO relay_metadata
         SELECT l.id, 'nip11_info', extract(epoch FROM now())::bigint + 10 * {again}, document_of('nip11_info', l.n + 3 + {again} % 90) FROM looked_at l WHERE l.n % 100 = 7"
    ))
    .await;
}
