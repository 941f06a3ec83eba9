//! What is kept of relays beside the archive: their latest round-trip times and documents are what all there is of them
//! says, and cost what changed.

use sqlx::{AssertSqlSafe, Connection as _};
use tests::pg::{Role, TestDb};

use super::support::{handle, migrated, value};
use super::views::pages;

/// The views as they were defined when each refresh made all of them anew.
const NAIVE: &str = include_str!("../../migrations/0005_views.sql");

/// 120 relays, every one with another rhythm and another number of looks, over a hundred days in partitions of a day; a
/// tenth of them never opens, and half of them have documents, which some changed. Two of the looks lie before all days.
const POPULATE: &str = "
    INSERT INTO vantage (name) VALUES ('here'), ('there');
    INSERT INTO relay (url, network, discovered_at) SELECT 'wss://m' || n || '.example', 'clearnet', 1 FROM generate_series(1, 120) n;
    SELECT partition_ensure('relay_check', d * 86400, (d + 1) * 86400, to_char(to_timestamp(d * 86400) AT TIME ZONE 'UTC', 'YYYYMMDD'))
    FROM (SELECT extract(epoch FROM now())::bigint / 86400 - x AS d FROM generate_series(0, 99) x) days;
    CREATE FUNCTION document(p integer) RETURNS bytea LANGUAGE sql AS $$ SELECT sha256(('d' || p)::bytea) $$;
    CREATE FUNCTION look(p_relay integer, p_ago bigint, p_vantage smallint) RETURNS void LANGUAGE sql AS $$
        INSERT INTO relay_check (checked_at, relay_id, vantage_id, kind, outcome, reason, open_ms, read_ms, write_ms)
        SELECT extract(epoch FROM now())::bigint - p_ago, p_relay, p_vantage, k, 'ok', 'none',
               CASE WHEN p_relay % 10 > 0 AND k = 'rtt' THEN 20 + (p_ago * 7919 + p_relay) % 400 END, CASE WHEN p_ago % 3 > 0 AND k = 'rtt' THEN 30 END, NULL
        FROM unnest(ARRAY['rtt', 'dns']) k;
        INSERT INTO relay_check_latest AS l (relay_id, kind, vantage_id, checked_at, outcome, reason, open_ms, read_ms, metadata_id, confirmed_at)
        SELECT c.relay_id, c.kind, c.vantage_id, c.checked_at, c.outcome, c.reason, c.open_ms, c.read_ms, CASE WHEN c.kind = 'dns' THEN document(p_relay) END, c.checked_at
        FROM relay_check c WHERE c.relay_id = p_relay AND c.vantage_id = p_vantage AND c.checked_at = extract(epoch FROM now())::bigint - p_ago
        ON CONFLICT (relay_id, kind, vantage_id) DO UPDATE SET checked_at = excluded.checked_at, open_ms = excluded.open_ms, read_ms = excluded.read_ms
        WHERE l.checked_at < excluded.checked_at;
    $$;
    INSERT INTO metadata (id, type, data)
    SELECT document(n), t, CASE n % 7
        WHEN 0 THEN '{\"data\": null}' WHEN 1 THEN '{\"data\": {\"software\": 5, \"supported_nips\": {\"1\": 2}}}' WHEN 2 THEN '{\"logs\": {}}'
        ELSE format('{\"data\": {\"name\": \"%s\", \"software\": \"s%s\", \"version\": \"%s\", \"supported_nips\": [1, \"01\", 11, %s, \"x\", 123456, [4]]}}', repeat('n', n * 3), n % 4, n % 3, n % 30) END::json
    FROM generate_series(1, 140) n, unnest(ARRAY['nip11_info', 'nip66_dns']) t;
    INSERT INTO relay_metadata SELECT n, t, 1000 + c, document(n + c) FROM generate_series(1, 60) n, generate_series(0, n % 4) c, unnest(ARRAY['nip11_info', 'nip66_dns']) t;
    SELECT look(n, ago, (1 + ago % 2)::smallint) FROM generate_series(1, 120) n CROSS JOIN LATERAL (
        SELECT (i * 3600::bigint * (1 + n * n % 97) + n % 12 * 86400 + n) AS ago FROM generate_series(0, n % 14) i) x WHERE ago < 95 * 86400;
    SELECT look(n, 200 * 86400, 1::smallint) FROM generate_series(3, 4) n";

/// How many rows of a view are not those of its old definition; JSON as text.
async fn differing(test: &TestDb, view: &str) -> String {
    let (_, definition) = NAIVE.split_once(&format!("CREATE MATERIALIZED VIEW {view} AS\n")).unwrap();
    let (definition, _) = definition.split_once(";\n").unwrap();
    let rows = |of: &str| format!("SELECT to_jsonb(x)::text FROM ({of}) x");
    let (naive, ours) = (rows(definition), rows(&format!("SELECT * FROM {view}")));
    let sql = format!(
        "SELECT ((SELECT count(*) FROM ({ours} EXCEPT ALL {naive}) x) + (SELECT count(*) FROM ({naive} EXCEPT ALL {ours}) x))::text"
    );
    let mut admin = test.connect(Role::Superuser).await;
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut admin).await.unwrap()
}

/// All views over it are what they would be anew.
async fn agrees(test: &TestDb, when: &str) {
    test.execute("SELECT all_statistics_refresh()").await;
    let kept = "SELECT coalesce(string_agg(concat_ws(' ', rollup, key, '|', ours, '|', recomputed), E'\\n'), '') FROM relay_latest_check()";
    assert_eq!(value(test, kept).await, "", "{when}");
    for view in ["relay_metadata_latest", "relay_stats", "relay_software_counts", "supported_nip_counts"] {
        assert_eq!(differing(test, view).await, "0", "{when}: {view}");
    }
}

#[tokio::test]
async fn what_is_kept_of_relays_is_what_all_their_checks_and_documents_say() {
    let Some(test) = migrated().await else { return };
    test.execute(POPULATE).await;
    agrees(&test, "at first").await;
    let seen = "SELECT (SELECT count(*) FROM relay_rtt_recent) || ' ' || (SELECT count(avg_rtt_open) FROM relay_stats) || ' ' || (SELECT count(*) FROM relay_nip11)";
    assert_eq!(value(&test, seen).await, "120 108 51");
    // Looks of now, one of yesterday that comes late, and one from before all the others.
    test.execute(
        "SELECT look(n, n + 1800, 1::smallint) FROM generate_series(5, 30) n; SELECT look(40, 90000, 1::smallint), look(41, 99 * 86400, 2::smallint)",
    )
    .await;
    agrees(&test, "after looks").await;
    // Documents that change, that change back, and that are gone; and what is no document of NIP-11.
    test.execute(
        "INSERT INTO relay_metadata SELECT n, 'nip11_info', 2000, document(n + 60) FROM generate_series(1, 80, 3) n;
         INSERT INTO relay_metadata SELECT n, 'nip66_dns', 2000, document(n + 5) FROM generate_series(2, 80, 3) n;
         DELETE FROM relay_metadata WHERE relay_id BETWEEN 20 AND 25; DELETE FROM relay_metadata WHERE relay_id = 30 AND generated_at = 2000",
    )
    .await;
    agrees(&test, "after documents").await;
    // Days that go take looks along of which means were; some relays have none left.
    let gone = handle(&test, Role::Writer).check_retire(7).await.unwrap();
    assert!(gone > 80, "{gone}");
    agrees(&test, "after days went").await;
    let rest: u32 = value(&test, "SELECT count(*)::text FROM relay_rtt_recent").await.parse().unwrap();
    assert!((60..110).contains(&rest), "{rest}");
    // A writer that is not through is not seen, and not lost.
    let mut writer = test.connect(Role::Superuser).await;
    let mut open = writer.begin().await.unwrap();
    let look = "SELECT look(51, 400, 1::smallint); DELETE FROM relay_metadata WHERE relay_id = 51";
    sqlx::raw_sql(look).execute(&mut *open).await.unwrap();
    agrees(&test, "beside a writer").await;
    open.commit().await.unwrap();
    let mean = "SELECT avg_rtt_open::text FROM relay_stats WHERE relay_url = 'wss://m51.example'";
    let before = value(&test, mean).await;
    agrees(&test, "after the writer").await;
    assert_ne!(value(&test, mean).await, before);
    // What is spoilt is found.
    test.execute("UPDATE relay_rtt_recent SET avg_rtt_open = 1 WHERE relay_id = 6; DELETE FROM relay_nip11 WHERE relay_id = 5").await;
    let found = "SELECT string_agg(rollup || ' ' || key, ', ' ORDER BY rollup) FROM relay_latest_check()";
    assert_eq!(value(&test, found).await, "relay_nip11 5, relay_rtt_recent 6");
    let sets = handle(&test, Role::Reader).verify_sets(&mut |_| {}).await.unwrap();
    assert!(sets.iter().any(|set| set.is_fault() && set.n == 2), "{sets:?}");
}

#[tokio::test]
async fn a_refresh_after_one_look_reads_what_is_known_of_one_relay() {
    let Some(test) = migrated().await else { return };
    test.execute(POPULATE).await;
    // Every relay was just looked at, and enough.
    test.execute("SELECT look(n, i * 60 + 1000, 1::smallint) FROM generate_series(1, 120) n, generate_series(1, 10) i; ANALYZE").await;
    let mut admin = test.connect(Role::Superuser).await;
    let refresh = "SELECT relay_metadata_latest_refresh(), relay_stats_refresh(), relay_software_counts_refresh(), supported_nip_counts_refresh()";
    let all = pages(&mut admin, refresh).await;
    // A second time, so that what a session does once is done.
    let mut costs = Vec::new();
    for deed in ["", "SELECT look(7, 400, 1::smallint)", "SELECT look(8, 400, 1::smallint)", ""] {
        sqlx::raw_sql(AssertSqlSafe(deed)).execute(&mut admin).await.unwrap();
        costs.push(pages(&mut admin, refresh).await);
    }
    assert!(costs[3] < 1_000 && costs[2] < costs[3] + 300 && all > 3_000, "all: {all}, then {costs:?}");
}
