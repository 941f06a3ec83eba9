//! From version 46, of which every table that came or changed since 28 holds rows: all of them are kept, and go on.

use shared::db::{MIGRATOR, MigrateOptions, Pace, SetLine};
use shared::models::{AddressPolicy, RelayUrl};
use shared::queue;
use sqlx::AssertSqlSafe;
use tests::factory::Factory;
use tests::pg::{Role, TestDb};

use super::retention::archive;
use super::support::{handle, pairs, value};
use super::upgrade28::version;

const VERSION: usize = 46;
/// Whatever came or changed after this version has rows.
const SINCE: i64 = 28;

/// Events of which three expire, two soon and one in the year 2286; one of them has been deleted, and its time is still here.
async fn version_forty_six() -> Option<TestDb> {
    let test = version(VERSION).await?;
    let db = handle(&test, Role::Writer);
    let factory = Factory::new(82).over(180 * 86_400);
    let mut events = factory.events(200);
    let now = shared::clock::unix_now();
    events.extend([now + 3_000, now + 3_600, 9_999_999_999].map(|at| {
        factory.sign(1, 1, vec![vec!["expiration".to_owned(), at.to_string()]], "short", now - at % 1_000)
    }));
    db.relay_insert(&["one", "two"].map(|name| (relay(name), 1))).await.unwrap();
    archive(&db, "wss://one.example", &events[..150]).await;
    test.execute("SELECT all_statistics_refresh()").await;
    archive(&db, "wss://two.example", &events[50..]).await;
    test.execute(include_str!("../fixtures/version46/populate.sql")).await;
    Some(test)
}

fn relay(name: &str) -> RelayUrl {
    RelayUrl::parse(&format!("wss://{name}.example"), &AddressPolicy::public()).unwrap()
}

/// Tables that migrations up to the newest make or alter after [`SINCE`], as far as version 46 has them.
async fn touched(test: &TestDb) -> Vec<String> {
    let mut names: Vec<String> = MIGRATOR
        .iter()
        .filter(|migration| migration.version > SINCE)
        .flat_map(|migration| migration.sql.as_str().lines())
        .filter_map(|line| line.strip_prefix("CREATE TABLE ").or_else(|| line.strip_prefix("ALTER TABLE ")))
        .map(|rest| rest.split([' ', '(']).next().unwrap().to_owned())
        .collect();
    names.sort();
    names.dedup();
    let there = pairs(test, "SELECT c.relname::text, '' FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')").await;
    names.retain(|name| there.contains_key(name));
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_version_forty_six_knew_in_every_table_since_twenty_eight_is_kept_and_goes_on() {
    let Some(test) = version_forty_six().await else { return };
    let touched = touched(&test).await;
    assert!(touched.len() > 12, "{touched:?}");
    let kept = pairs(&test, "SELECT t, kept.rows(t)::text FROM unnest(kept.tables()) t").await;
    let without: Vec<_> =
        touched.iter().filter(|table| kept.get(*table).is_none_or(|rows| rows == "0")).collect();
    assert!(
        without.is_empty(),
        "tests/fixtures/version46/populate.sql leaves these without rows: {without:?}"
    );

    queue::migrate(&test.url(Role::Superuser), &MigrateOptions::default()).await.unwrap();
    let changed = pairs(&test, "SELECT t, kept.changed(t) FROM unnest(kept.tables()) t").await;
    assert!(changed.len() >= touched.len() && changed.values().all(|rows| rows == "0"), "{changed:?}");

    // What relays were known by is there before anybody refreshes.
    let known = "SELECT avg_rtt_open || ' ' || nip11_software || ' ' || nip11_version FROM relay_stats WHERE relay_url = 'wss://one.example'";
    assert_eq!(value(&test, known).await, "45.50 strfry 2");
    assert_eq!(
        value(
            &test,
            "SELECT string_agg(nip || ' ' || relay_count, ', ' ORDER BY nip) FROM supported_nip_counts"
        )
        .await,
        "1 2, 11 1"
    );
    let (db, reader) = (handle(&test, Role::Writer), handle(&test, Role::Reader));
    test.execute("SELECT all_statistics_refresh()").await;
    assert_eq!(value(&test, known).await, "45.50 strfry 2");
    assert_eq!(value(&test, "SELECT count(*)::text FROM relay_latest_check()").await, "0");
    assert_eq!(
        value(&test, "SELECT string_agg(events::text, ' ' ORDER BY relay_id) FROM rollup_relay").await,
        "150 152"
    );
    let mut admin = test.connect(Role::Reader).await;
    for view in pairs(&test, "SELECT relname::text, '' FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'v'").await.into_keys() {
        let rows = sqlx::query(AssertSqlSafe(format!("SELECT * FROM {view}"))).fetch_all(&mut admin).await;
        assert!(rows.is_ok(), "{view}: {rows:?}");
    }

    // What was begun goes on: batches of authors, events that expire.
    let batches = db.relay_batches(1, "authors").await.unwrap();
    assert!(batches.len() == 1 && batches[0].kinds.is_empty(), "{batches:?}");
    test.execute("UPDATE event_expiry SET expires_at = 5 WHERE expires_at < 9999999999").await;
    let mut expired = 0;
    while let (1.., n) = db.event_expire(&mut Pace::of(100)).await.unwrap() {
        expired += n;
    }
    assert_eq!(expired, 1, "one of the two had been deleted before");
    let sets = reader.verify_sets(&mut |_| {}).await.unwrap();
    assert!(sets.iter().all(|set| !set.is_fault()), "{sets:?}");
    let strays: Vec<&SetLine> =
        sets.iter().filter(|set| set.problem.contains("expire") && set.n > 0).collect();
    assert!(strays.is_empty(), "{strays:?}");
    let report = reader.verify(None).await.unwrap();
    assert!(report.corruptions.is_empty() && report.documents == 3, "{report:?}");
}
