//! From version 28, of which the tables of reconciling, deletion requests and rollups hold rows: all of it goes on to be true.

use shared::db::{Db, MIGRATOR, MigrateOptions, Pace, SetLine};
use shared::queue;
use sqlx::Connection as _;
use sqlx::migrate::Migrator;
use tests::factory::Factory;
use tests::pg::{Role, TestDb};

use super::retention::archive;
use super::support::{handle, pairs, value};

const VERSION: usize = 28;
/// The queue's own tables, which migrating makes anew whatever they were.
const TABLES: &str = include_str!("../../shared/src/queue/tables.sql");
const VIEWS: &str = include_str!("../../shared/src/queue/views.sql");

/// A relay read whole, one read by kinds; what they let go, list and do not serve; requests to delete the oldest event of an author
/// and all of another's; and observations that nobody has counted yet.
const POPULATE: &str = "
    SELECT coverage_put(1, 'all', ARRAY[0, 1000]::bigint[], ARRAY[999, 2000000000]::bigint[], ARRAY['partial', 'reconciled'], ARRAY['dense_second', 'none'], ARRAY[7, 8]::bigint[]);
    SELECT coverage_put((SELECT id FROM relay WHERE url = 'wss://two.example'), 'kinds:1', ARRAY[0]::bigint[], ARRAY[2000000000]::bigint[], ARRAY['walked'], ARRAY['none'], ARRAY[8]::bigint[]);
    INSERT INTO relay_revisit SELECT r.id, a, 1000, 2000, 50, 3 FROM relay r, unnest(ARRAY[3600, 86400]) a;
    INSERT INTO relay_sync SELECT id, 9000000000 FROM relay WHERE url = 'wss://two.example';
    INSERT INTO event_gone SELECT 1, event_key, 5 FROM event ORDER BY event_key LIMIT 3;
    INSERT INTO event_unserved SELECT 1, sha256(n::text::bytea), 5, extract(epoch FROM now())::bigint, 2 FROM generate_series(1, 40) n;
    INSERT INTO tombstone (pubkey, what, target, until_at, request_id, noted_at) SELECT pubkey, 0, id, created_at, id, now() - interval '1 h' FROM event ORDER BY event_key LIMIT 1;
    INSERT INTO tombstone (pubkey, what, until_at, request_id, noted_at) SELECT pubkey, 2, 2000000000, id, now() - interval '1 h' FROM event ORDER BY event_key DESC LIMIT 1;
    CREATE SCHEMA kept;
    CREATE TABLE kept.event_relay AS TABLE event_relay;
    CREATE TABLE kept.coverage AS SELECT relay_id, class, since_at, until_at, grade, reason, observed_at FROM coverage;
    CREATE TABLE kept.gone AS TABLE event_gone;
    CREATE TABLE kept.unserved AS TABLE event_unserved;
    CREATE TABLE kept.tombstone AS SELECT pubkey, what, kind, target, until_at, request_id FROM tombstone;
    CREATE TABLE kept.rollup AS SELECT relay_id, events, unique_events FROM rollup_relay";

/// An empty database as the first so many migrations left it, with the queue's tables and the roles.
pub(crate) async fn version(version: usize) -> Option<TestDb> {
    let test = TestDb::empty().await?;
    let options = MigrateOptions::default();
    let mut connection = shared::db::connect_direct(&test.url(Role::Superuser)).await.unwrap();
    shared::db::prepare_roles(&mut connection, &options).await.unwrap();
    let old = MIGRATOR.iter().take(version).cloned().collect();
    Migrator::with_migrations(old).run(&mut connection).await.unwrap();
    queue::set_up_apalis(&mut connection).await.unwrap();
    for sql in [TABLES, VIEWS] {
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    }
    shared::db::apply_grants(&mut connection, &options).await.unwrap();
    connection.close().await.unwrap();
    Some(test)
}

async fn version_twenty_eight() -> Option<TestDb> {
    let test = version(VERSION).await?;
    let db = handle(&test, Role::Writer);
    let events = Factory::new(81).over(180 * 86_400).events(200);
    archive(&db, "wss://one.example", &events[..150]).await;
    test.execute("SELECT all_statistics_refresh()").await;
    archive(&db, "wss://two.example", &events[50..]).await;
    test.execute(POPULATE).await;
    Some(test)
}

const CHANGED: &str = "
    SELECT 'event_relay', count(*)::text FROM ((TABLE event_relay EXCEPT TABLE kept.event_relay) UNION ALL (TABLE kept.event_relay EXCEPT TABLE event_relay)) x
    UNION ALL SELECT 'coverage', count(*)::text FROM ((SELECT relay_id, class, since_at, until_at, grade, reason, observed_at FROM coverage EXCEPT TABLE kept.coverage) UNION ALL (TABLE kept.coverage EXCEPT SELECT relay_id, class, since_at, until_at, grade, reason, observed_at FROM coverage)) x
    UNION ALL SELECT 'gone', count(*)::text FROM ((TABLE event_gone EXCEPT TABLE kept.gone) UNION ALL (TABLE kept.gone EXCEPT TABLE event_gone)) x
    UNION ALL SELECT 'unserved', count(*)::text FROM ((TABLE event_unserved EXCEPT TABLE kept.unserved) UNION ALL (TABLE kept.unserved EXCEPT TABLE event_unserved)) x
    UNION ALL SELECT 'tombstone', count(*)::text FROM ((SELECT pubkey, what, kind, target, until_at, request_id FROM tombstone EXCEPT TABLE kept.tombstone) UNION ALL (TABLE kept.tombstone EXCEPT SELECT pubkey, what, kind, target, until_at, request_id FROM tombstone)) x
    UNION ALL SELECT 'rollup', count(*)::text FROM ((SELECT relay_id, events, unique_events FROM rollup_relay EXCEPT TABLE kept.rollup) UNION ALL (TABLE kept.rollup EXCEPT SELECT relay_id, events, unique_events FROM rollup_relay)) x";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_version_twenty_eight_knew_of_relays_and_requests_is_kept_and_goes_on() {
    let Some(test) = version_twenty_eight().await else { return };
    queue::migrate(&test.url(Role::Superuser), &MigrateOptions::default()).await.unwrap();
    let wanted = Db::program_schema().to_string();
    assert_eq!(value(&test, "SELECT max(version)::text FROM _sqlx_migrations WHERE success").await, wanted);
    let changed = pairs(&test, CHANGED).await;
    assert!(changed.len() == 6 && changed.values().all(|rows| rows == "0"), "{changed:?}");
    // What was read again of a relay that is asked by kinds speaks of no class any more.
    let revisits =
        "SELECT string_agg(relay_id || ' ' || class || ' ' || age_s, ', ' ORDER BY age_s) FROM relay_revisit";
    assert_eq!(value(&test, revisits).await, "1 all 3600, 1 all 86400");
    // What nobody had counted is counted, and the requests do what they ask for.
    let (db, reader) = (handle(&test, Role::Writer), handle(&test, Role::Reader));
    test.execute("SELECT all_statistics_refresh()").await;
    let counts = "SELECT string_agg(events::text, ' ') FROM rollup_relay";
    assert_eq!(value(&test, counts).await, "150 150");
    let vanished =
        "SELECT count(*)::text FROM event e JOIN tombstone t USING (pubkey) WHERE t.what = 2 AND e.fate = 0";
    assert_ne!(value(&test, vanished).await, "0");
    for _ in 0..10 {
        db.tombstone_step(&mut Pace::of(100)).await.unwrap();
    }
    assert_eq!(value(&test, vanished).await, "0");
    let sets = reader.verify_sets(&mut |_| {}).await.unwrap();
    assert!(!sets.iter().any(SetLine::is_fault), "{sets:?}");
    assert!(reader.verify(None).await.unwrap().corruptions.is_empty());
}
