//! What storage does beside whoever reads and writes: nothing is lost between two of them, nobody is in the other's way for
//! good, and what is much is done in pieces.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use shared::db::{Backlog, ExportScope, Pace};
use shared::models::{
    AddressPolicy, EventId, Metadata, MetadataType, RelayUrl, Retention, Target, Tombstone, tombstones,
};
use sqlx::{AssertSqlSafe, Row as _};
use tests::factory::Factory;
use tests::pg::{Role, TestDb};

use super::keep::led_by;
use super::locks::{impatient, meets, open, run};
use super::retention::archive;
use super::support::{handle, migrated, value};
use super::uptime::{Bench, look};

const RELAY: &str = "wss://one.example";
const MONTH: i64 = 31 * 86_400;

/// A call that comes while what the default partitions hold of a month moves, and goes on when it has moved.
fn while_it_moves<'a, T: 'a>(
    test: &'a TestDb,
    at: i64,
    call: impl Future<Output = T> + 'a,
) -> LocalBoxFuture<'a, T> {
    async move {
        let mover = open(test, &format!("SELECT month_ensure({at})")).await;
        meets(test, mover, call.boxed_local(), "SELECT 1").await
    }
    .boxed_local()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_moves_meanwhile_is_counted_exported_judged_and_reviewed() {
    let Some(test) = migrated().await else { return };
    let (db, reader) = (handle(&test, Role::Writer), handle(&test, Role::Reader));
    let factory = Factory::new(161);
    // Months that nobody has made: 2021.
    let month = |n: i64| 1_610_000_000 + n * MONTH;
    let events = |n: i64| {
        (0..20).map(|i| factory.sign(1, 1, vec![], &format!("{n} {i}"), month(n) + i)).collect::<Vec<_>>()
    };

    archive(&db, RELAY, &events(0)).await;
    while_it_moves(&test, month(0), db.rollup_refresh(1_000)).await.unwrap();
    assert_eq!(db.rollup_backlog().await.unwrap(), Backlog { keys: 0, age_s: 0 });
    assert_eq!(value(&test, "SELECT event_count::text FROM event_stats").await, "20");
    assert_eq!(value(&test, "SELECT count(*)::text FROM rollup_check()").await, "0");

    archive(&db, RELAY, &events(1)).await;
    let scope = ExportScope { until: i64::MAX, as_of: 5, ..ExportScope::default() };
    let batch = while_it_moves(&test, month(1), reader.export_batch(&scope, scope.begin(), 1)).await.unwrap();
    assert_eq!((batch.items.len(), batch.items.iter().filter(|item| item.event.is_ok()).count()), (40, 40));

    archive(&db, RELAY, &events(2)).await;
    let (id, pubkey) = (events(2)[0].id.to_bytes(), events(2)[0].pubkey.to_bytes());
    let target = Target::Event(EventId(id));
    let stone = Tombstone { pubkey, target, until: 0, request: EventId([7; 32]) };
    db.tombstone_add(&[stone]).await.unwrap();
    test.execute("UPDATE tombstone SET noted_at = now() - interval '1 hour'").await;
    let mut pace = Pace::of(2_000);
    assert_eq!(while_it_moves(&test, month(2), db.tombstone_step(&mut pace)).await.unwrap(), 1);

    let asked = factory.sign(2, 5, vec![vec!["e".to_owned(), "ab".repeat(32)]], "", month(3));
    archive(&db, RELAY, &[asked]).await;
    let piece = while_it_moves(&test, month(3), db.archive_review_take(2_000)).await.unwrap().unwrap();
    assert_eq!(piece.requests.iter().flat_map(tombstones).count(), 1);

    let (later, now) = (events(4), events(5));
    archive(&db, RELAY, &[&later[..], &now].concat()).await;
    db.retention_put(&Retention { kinds: vec!["1:30".parse().unwrap()], ..Retention::default() }, false)
        .await
        .unwrap();
    let step = while_it_moves(&test, month(4), db.retention_step(&mut pace)).await.unwrap().unwrap();
    assert_eq!((step.what.as_str(), step.events), ("kind 1", 99));
    db.retention_put(&Retention::default(), false).await.unwrap();

    archive(&db, RELAY, &[factory.sign(3, 7, vec![], "body", month(6))]).await;
    test.execute("UPDATE archive_setting SET light = true, light_at = now(); DELETE FROM event_unmined")
        .await;
    let (looked, stripped) =
        while_it_moves(&test, month(6), db.archive_lighten(&mut Pace::of(5_000))).await.unwrap();
    assert_eq!((looked, stripped), (102, 2));
}

/// Two versions each of so many articles by one author, counted.
const ARTICLES: &str = "
    SELECT relay_insert('{wss://one.example}', '{clearnet}', '{1}');
    CREATE TABLE x AS SELECT n, sha256(n::text::bytea) AS id, 1700000000 + n AS at FROM generate_series(1, 2000) n;
    SELECT event_insert(array_agg(id), array_agg(natural_key(at, id)), array_agg(at::bigint), array_agg(sha256('author')), array_agg(30023),
                        array_agg('[]'::bytea), array_agg(''::bytea), array_agg(id || id), array_agg((n % 1000)::text::bytea), array_agg('{}'::text)) FROM x;
    SELECT event_relay_insert(array_agg(id), array_agg(natural_key(at, id)), array_agg(1), array_agg(5::bigint), array_agg(0::smallint)) FROM x;
    SELECT all_statistics_refresh();
    SELECT tombstone_add(array_agg(sha256('author')), array_agg(0::smallint), array_agg(-1), array_agg(id), array_agg(0::bigint), array_agg(sha256('request')))
        FROM x WHERE n > 1800 OR n IN (801, 802)";

#[tokio::test]
async fn current_versions_that_go_together_cost_one_look_at_what_their_author_wrote() {
    let Some(test) = migrated().await else { return };
    test.execute(ARTICLES).await;
    let mut connection = open(&test, "SELECT tombstone_step(2000)").await;
    let read = "SELECT sum(idx_tup_fetch + seq_tup_read)::bigint AS n FROM pg_stat_xact_user_tables WHERE relname ~ '^event_(default|[0-9]{6})$'";
    let read: i64 = sqlx::query(read).fetch_one(&mut connection).await.unwrap().get("n");
    run(&mut connection, "COMMIT").await.unwrap();
    assert!(read < 20_000, "{read} rows were read, for 200 versions among 2,000");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event WHERE fate = 2").await, "202");
    // The older version took the place of the newer one; of two articles nothing is left.
    let current =
        "SELECT count(*) || ' ' || count(*) FILTER (WHERE created_at <= 1700001000) FROM rollup_addressable";
    assert_eq!(value(&test, current).await, "998 198");
    assert_eq!(value(&test, "SELECT count(*)::text FROM rollup_check()").await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_much_for_one_statement_expires_in_smaller_pieces_of_the_same_round() {
    let Some(test) = migrated().await else { return };
    let (factory, now) = (Factory::new(162), shared::clock::unix_now());
    let expires = |i: i64| vec![vec!["expiration".to_owned(), (now + 900 + i).to_string()]];
    let events: Vec<_> = (0..300).map(|i| factory.sign(1, 1, expires(i), "", now - i)).collect();
    archive(&handle(&test, Role::Writer), RELAY, &events).await;
    test.execute(
        // bound: 300 × 30 ms, longer than a statement may take, which is longer than such work has in a round
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.03); RETURN OLD; END';
         CREATE TRIGGER slow BEFORE DELETE ON event_expiry FOR EACH ROW EXECUTE FUNCTION slow();
         UPDATE event_expiry SET expires_at = expires_at - 2000",
    )
    .await;
    let db = handle(&test, Role::Writer).with_timeout(Duration::from_secs(8));
    let (mut scheduler, _) = led_by(db, &test, &[("BIGBROTR_SCHEDULER_LEASE_S", "60")]).await;
    scheduler.release().await.unwrap();
    let most = value(&test, "SELECT (count(*) FILTER (WHERE fate = 3) >= 62)::text FROM event").await;
    assert_eq!(most, "true");
}

fn document(n: usize) -> Metadata {
    Metadata::new(MetadataType::Nip11Info, &format!(r#"{{"data":{{"name":"{n}"}}}}"#)).unwrap()
}

/// Links, and those whose document is gone.
const LINKS: &str = "SELECT count(*) || ' ' || count(*) FILTER (WHERE NOT EXISTS (
        SELECT FROM metadata m WHERE m.id = r.metadata_id AND m.type = r.metadata_type)) FROM relay_metadata r";

#[tokio::test]
async fn a_document_that_is_linked_while_it_is_looked_at_stays() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let url = RelayUrl::parse(RELAY, &AddressPolicy::public()).unwrap();
    assert_eq!(db.metadata_insert(&[document(1)]).await.unwrap(), 1);
    let link = "SELECT relay_metadata_insert_cascade(ARRAY['wss://one.example'], ARRAY['clearnet'], ARRAY[5::bigint],
        (SELECT array_agg(id) FROM metadata), ARRAY['nip11_info'], (SELECT array_agg(data::text) FROM metadata), ARRAY[5::bigint])";
    let mut linking = open(&test, link).await;
    assert_eq!(db.orphan_metadata_delete(10).await.unwrap(), 0);
    run(&mut linking, "COMMIT").await.unwrap();
    assert_eq!(value(&test, LINKS).await, "1 0");
    // And who comes while it is being deleted brings it again.
    test.execute("DELETE FROM relay_metadata").await;
    let deleting = open(&test, "SELECT orphan_metadata_delete(10)").await;
    let links = [(url, document(1), 6)];
    let linked = db.relay_metadata_insert_cascade(&links);
    assert_eq!(meets(&test, deleting, linked, "SELECT 1").await.unwrap(), 1);
    assert_eq!(value(&test, LINKS).await, "1 0");
    assert_eq!(db.metadata_insert(&[document(1)]).await.unwrap(), 0);
}

#[tokio::test]
async fn documents_that_no_relay_has_are_found_in_a_round_of_small_pieces() {
    let Some(test) = migrated().await else { return };
    test.execute(
        "INSERT INTO metadata SELECT sha256(n::text::bytea), 'nip11_info', '{}' FROM generate_series(1, 1000) n;
         INSERT INTO metadata SELECT sha256(n::text::bytea), 'nip66_dns', '{}' FROM generate_series(1, 50) n;
         INSERT INTO relay_metadata SELECT 1, type, row_number() OVER (), id FROM metadata",
    )
    .await;
    let mut connection = open(&test, "SELECT orphan_metadata_delete(1)").await;
    let read = "SELECT (idx_tup_fetch + seq_tup_read)::bigint AS n FROM pg_stat_xact_user_tables WHERE relname = 'metadata'";
    let read: i64 = sqlx::query(AssertSqlSafe(read)).fetch_one(&mut connection).await.unwrap().get("n");
    assert!(read < 50, "{read} of 1,050 documents were read");
    run(&mut connection, "COMMIT").await.unwrap();
    let db = handle(&test, Role::Writer);
    let mut gone = 0;
    for round in 0..2 {
        test.execute("DELETE FROM relay_metadata WHERE generated_at IN (SELECT generated_at FROM relay_metadata ORDER BY metadata_id LIMIT 12)").await;
        for _ in 0..150 {
            let deleted = db.orphan_metadata_delete(1).await.unwrap();
            assert!(deleted <= 1, "{deleted}");
            gone += deleted;
        }
        assert_eq!(gone, 12 * (round + 1), "round {round}");
    }
    assert_eq!(value(&test, LINKS).await, "1026 0");
}

#[tokio::test]
async fn a_day_of_uptime_is_dropped_beside_whoever_reads_it() {
    let Some(test) = migrated().await else { return };
    impatient(&test).await;
    test.execute(
        "SELECT partition_maintain(extract(epoch FROM now())::bigint, p_now => now() - interval '5 days');
         INSERT INTO relay_uptime SELECT 1, 1, floor(extract(epoch FROM now()) / 86400) * 86400 - 5 * 86400, 1, 1, 0, '', '', '', 3600, 3600",
    )
    .await;
    let db = handle(&test, Role::Writer);
    // A statement that has just begun: it has the table, and then wants its parts.
    let reader = open(&test, "LOCK TABLE ONLY relay_uptime IN ACCESS SHARE MODE").await;
    let read = "SELECT count(*) FROM relay_uptime";
    assert!(meets(&test, reader, db.uptime_rollup(2), read).await.unwrap() > 0);
    let days = "SELECT (SELECT count(*) FROM relay_uptime_day) || ' ' || (SELECT count(*) FROM relay_uptime)";
    assert_eq!(value(&test, days).await, "1 0");
}

#[tokio::test]
async fn a_relay_that_is_watched_without_a_break_has_all_of_its_time_at_any_hour() {
    let Some(test) = migrated().await else { return };
    let bench = Bench::new(&test, 1).await;
    bench.write(&look(0, true), "alive").await;
    // Forty days of it, and today until now.
    test.execute(
        "UPDATE relay_uptime SET at = at - at % 86400, checks = 24, up = 24;
         UPDATE relay_uptime SET seen_s = extract(epoch FROM now())::bigint - at, up_s = extract(epoch FROM now())::bigint - at;
         INSERT INTO relay_uptime_day SELECT u.relay_id, u.vantage_id, u.at - n * 86400, 24, 24, 0, '', '', '', 86400, 86400
             FROM relay_uptime u CROSS JOIN generate_series(1, 40) n",
    )
    .await;
    let reader = handle(&test, Role::Reader);
    let least = async || {
        let line = reader.relay_uptime(&bench.relays[0].0).await.unwrap().remove(0);
        assert!(line.availability_pct.unwrap() > 99.99, "{line:?}");
        line.availability_low_pct.unwrap()
    };
    assert!(least().await > 99.99, "{}", least().await);
    // Where the hours are kept for as long, the days before are among them.
    test.execute("INSERT INTO relay_uptime SELECT * FROM relay_uptime_day; DELETE FROM relay_uptime_day")
        .await;
    assert!(least().await > 99.99, "{}", least().await);
    test.execute("DELETE FROM relay_uptime WHERE at BETWEEN extract(epoch FROM now()) - 30 * 86400 AND extract(epoch FROM now()) - 20 * 86400").await;
    let found = least().await;
    assert!((60.0..70.0).contains(&found), "ten days of thirty in which nobody looked: {found}");
}
