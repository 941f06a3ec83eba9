//! From version 17, the last before fates and retention: its archive is migrated, by twenty at once, and is true.

use shared::db::{Db, MIGRATOR, MigrateOptions, SetLine};
use shared::queue;
use sqlx::Connection as _;
use sqlx::migrate::Migrator;
use tests::factory::Factory;
use tests::pg::{Role, TestDb};

use super::retention::{archive, retire};
use super::support::{handle, pairs, value};

const VERSION: usize = 17;
/// The tables and views of the queue as version 17 had them.
const TABLES: &str = include_str!("../fixtures/version17/tables.sql");
const VIEWS: &str = include_str!("../fixtures/version17/views.sql");
const POPULATE: &str = include_str!("../fixtures/version17/populate.sql");

/// A database of version 17 with events on two relays, over half a year.
async fn version_seventeen() -> Option<TestDb> {
    let test = TestDb::empty().await?;
    let options = MigrateOptions::default();
    let mut connection = shared::db::connect_direct(&test.url(Role::Superuser)).await.unwrap();
    shared::db::prepare_roles(&mut connection, &options).await.unwrap();
    let old = MIGRATOR.iter().take(VERSION).cloned().collect();
    Migrator::with_migrations(old).run(&mut connection).await.unwrap();
    queue::set_up_apalis(&mut connection).await.unwrap();
    for sql in [TABLES, VIEWS] {
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    }
    shared::db::apply_grants(&mut connection, &options).await.unwrap();
    connection.close().await.unwrap();
    let db = handle(&test, Role::Writer);
    let events = Factory::new(71).over(180 * 86_400).events(200);
    archive(&db, "wss://one.example", &events[..150]).await;
    archive(&db, "wss://two.example", &events[50..]).await;
    db.partition_maintain(shared::clock::unix_now() - 90 * 86_400).await.unwrap();
    test.execute(POPULATE).await;
    Some(test)
}

/// Rows that are not what they were, per table.
const CHANGED: &str = "
    SELECT 'event', count(*)::text FROM ((TABLE event EXCEPT TABLE kept.event) UNION ALL (TABLE kept.event EXCEPT TABLE event)) x
    UNION ALL SELECT 'event_relay', count(*)::text FROM ((TABLE event_relay EXCEPT TABLE kept.event_relay) UNION ALL (TABLE kept.event_relay EXCEPT TABLE event_relay)) x
    UNION ALL SELECT 'event_unmined', count(*)::text FROM ((TABLE event_unmined EXCEPT TABLE kept.event_unmined) UNION ALL (TABLE kept.event_unmined EXCEPT TABLE event_unmined)) x
    UNION ALL SELECT 'event_collision', count(*)::text FROM ((TABLE event_collision EXCEPT TABLE kept.event_collision) UNION ALL (TABLE kept.event_collision EXCEPT TABLE event_collision)) x
    UNION ALL SELECT 'event_quarantine', count(*)::text FROM ((TABLE event_quarantine EXCEPT TABLE kept.event_quarantine) UNION ALL (TABLE kept.event_quarantine EXCEPT TABLE event_quarantine)) x
    UNION ALL SELECT 'coverage', count(*)::text FROM ((SELECT relay_id, class, since_at, until_at, grade, reason, observed_at FROM coverage EXCEPT TABLE kept.coverage) UNION ALL (TABLE kept.coverage EXCEPT SELECT relay_id, class, since_at, until_at, grade, reason, observed_at FROM coverage)) x
    UNION ALL SELECT 'relay', count(*)::text FROM ((TABLE relay EXCEPT TABLE kept.relay) UNION ALL (TABLE kept.relay EXCEPT TABLE relay)) x
    UNION ALL SELECT 'event_stats', count(*)::text FROM ((SELECT event_count, unique_pubkeys, unique_kinds, earliest_event_timestamp FROM event_stats EXCEPT TABLE kept.event_stats) UNION ALL (TABLE kept.event_stats EXCEPT SELECT event_count, unique_pubkeys, unique_kinds, earliest_event_timestamp FROM event_stats)) x
    UNION ALL SELECT 'kind_counts_by_relay', count(*)::text FROM ((TABLE kind_counts_by_relay EXCEPT TABLE kept.kind_counts_by_relay) UNION ALL (TABLE kept.kind_counts_by_relay EXCEPT TABLE kind_counts_by_relay)) x";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_of_version_seventeen_is_migrated_by_twenty_at_once_and_loses_nothing() {
    let Some(test) = version_seventeen().await else { return };
    let (url, options) = (test.url(Role::Superuser), MigrateOptions::default());
    for run in futures_util::future::join_all((0..20).map(|_| queue::migrate(&url, &options))).await {
        run.unwrap();
    }
    let wanted = Db::program_schema().to_string();
    assert_eq!(value(&test, "SELECT max(version)::text FROM _sqlx_migrations WHERE success").await, wanted);
    let unchanged = |changed: &std::collections::BTreeMap<String, String>| {
        changed.len() == 9 && changed.values().all(|rows| rows == "0")
    };
    let changed = pairs(&test, CHANGED).await;
    assert!(unchanged(&changed), "{changed:?}");
    test.execute("SELECT all_statistics_refresh()").await;
    let changed = pairs(&test, CHANGED).await;
    assert!(unchanged(&changed), "what the views are made of is all there: {changed:?}");
    let reader = handle(&test, Role::Reader);
    let sets = reader.verify_sets(&mut |_| {}).await.unwrap();
    // The two of the collision were made up: they are on no relay, and have an id that is no hash.
    let faults: Vec<_> =
        sets.iter().filter(|line| line.is_fault()).map(|line| (&*line.problem, line.n)).collect();
    assert_eq!(faults, [("archived events seen on no relay", 2)], "{sets:?}");
    let report = reader.verify(None).await.unwrap();
    assert_eq!((report.events, report.corrupt), (202, 2), "{:?}", report.corruptions);
    // What is new works on what is old.
    let db = handle(&test, Role::Writer);
    db.retention_put(&shared::models::Retention { days: Some(60), ..Default::default() }, false)
        .await
        .unwrap();
    let took = retire(&db).await;
    assert!(took.events > 50 && took.observations > 70 && took.months >= 1, "{took:?}");
    let sets = reader.verify_sets(&mut |_| {}).await.unwrap();
    assert!(!sets.iter().any(SetLine::is_fault), "{sets:?}");
}

#[tokio::test]
async fn every_function_of_version_seventeen_can_be_called_as_it_was() {
    let Some(test) = version_seventeen().await else { return };
    queue::migrate(&test.url(Role::Superuser), &MigrateOptions::default()).await.unwrap();
    let gone = value(
        &test,
        "SELECT string_agg(k.proname, ', ') FROM kept.function k WHERE NOT EXISTS (
             SELECT FROM pg_proc p
             WHERE p.pronamespace = 'public'::regnamespace AND p.proname = k.proname AND p.pronargs >= k.pronargs
               AND (p.proargtypes::oid[])[0:k.pronargs - 1] = k.arguments[0:k.pronargs - 1]
               AND p.pronargs - p.pronargdefaults <= k.pronargs - k.pronargdefaults)",
    )
    .await;
    assert_eq!(gone, "");
}
