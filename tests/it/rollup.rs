//! The rollups behind the views: exact under writers, refreshers that are killed, and removals at once; filled by the
//! migration; left alone when nothing is new.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::{Rng as _, RngExt as _};
use proptest::test_runner::{RngAlgorithm, TestRng};
use serde_json::json;
use shared::db::{Backlog, MIGRATOR, MigrateOptions, VIEWS};
use shared::jobs::JobError;
use shared::models::JobKind;
use shared::queue;
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use tests::pg::{Role, TestDb};
use tokio::task::JoinSet;

use super::jobs::{config, context, run};
use super::support::{handle, migrated, value};

/// Rows of disagreement between the rollups and the archive.
const CHECK: &str =
    "SELECT coalesce(string_agg(concat_ws(' ', rollup, key, '|', ours, '|', recomputed), E'\\n'), '') FROM
    (SELECT * FROM rollup_check() LIMIT 5) x";
/// The views as they were defined when each refresh counted everything.
const NAIVE: &str = include_str!("../../migrations/0005_views.sql");
/// Those over rollups.
const ROLLED: &str = "event_stats relay_stats kind_counts kind_counts_by_relay pubkey_counts pubkey_counts_by_relay \
    network_stats event_daily_counts events_replaceable_latest events_addressable_latest";

/// Event `n` of the workload: few authors, kinds of every class, few seconds in months apart, times at both ends.
const EVENTS: &str = "CREATE FUNCTION made(p integer[]) RETURNS TABLE (id bytea, k bigint, at bigint, pubkey bytea, kind integer, d bytea)
    LANGUAGE sql AS $$
        SELECT y.id, (least(y.at, 4294967295) << 31) | ((get_byte(y.id, 0) * 16777216::bigint + get_byte(y.id, 1) * 65536
               + get_byte(y.id, 2) * 256 + get_byte(y.id, 3)) >> 1), y.at, sha256(('p' || n % 13)::bytea), y.kind,
               CASE WHEN y.kind = 30023 THEN ('d' || n % 3)::bytea END
        FROM (SELECT DISTINCT x AS n FROM unnest(p) x) x
        CROSS JOIN LATERAL (SELECT sha256(('c' || n)::bytea) AS id,
            CASE WHEN n % 97 = 0 THEN 9000000000000 + n % 3 WHEN n % 89 = 0 THEN 0
                 ELSE extract(epoch FROM now())::bigint - (n * 7919 % 5) * 2600000 - (n % 4) * 1800 END AS at,
            (ARRAY[1, 7, 0, 3, 30023, 20001, 10002])[1 + n % 7] AS kind) y
    $$;
    CREATE FUNCTION write(p integer[], p_relay integer) RETURNS integer LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM event_insert(array_agg(m.id), array_agg(m.k), array_agg(m.at), array_agg(m.pubkey), array_agg(m.kind),
            array_agg(''::bytea), array_agg(''::bytea), array_agg(m.id || m.id), array_agg(m.d), array_agg('{}'::text)) FROM made(p) m;
        RETURN (SELECT event_relay_insert(array_agg(m.id), array_agg(m.k), array_agg(p_relay), array_agg(1::bigint), array_agg(0::smallint)) FROM made(p) m);
    END $$;
    INSERT INTO relay (url, network, discovered_at)
    SELECT 'wss://r' || n || '.example', (ARRAY['clearnet', 'tor', 'i2p', 'loki'])[1 + n % 4], 1 FROM generate_series(1, 12) n;";

async fn populated() -> Option<TestDb> {
    let test = migrated().await?;
    test.execute(EVENTS).await;
    Some(test)
}

async fn try_run(connection: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await.map(drop)
}

fn code(error: &sqlx::Error) -> String {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).map(Into::into).unwrap_or_default()
}

/// Counts until nothing waits.
async fn settle(test: &TestDb) {
    let db = handle(test, Role::Refresher);
    while db.rollup_refresh(300).await.unwrap().backlog > 0 {}
}

/// Views whose rows are not those of their old definitions, with how many differ.
async fn differing(test: &TestDb) -> BTreeMap<&'static str, i64> {
    let mut connection = test.connect(Role::Superuser).await;
    let mut differing = BTreeMap::new();
    for view in ROLLED.split(' ') {
        let (_, definition) = NAIVE.split_once(&format!("CREATE MATERIALIZED VIEW {view} AS\n")).unwrap();
        let (definition, _) = definition.split_once(';').unwrap();
        let sql = format!(
            "WITH naive AS MATERIALIZED ({definition}), ours AS MATERIALIZED (SELECT * FROM {view})
             SELECT (SELECT count(*) FROM (TABLE ours EXCEPT ALL TABLE naive) x) + (SELECT count(*) FROM (TABLE naive EXCEPT ALL TABLE ours) x)"
        );
        let rows: i64 = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut connection).await.unwrap();
        if rows > 0 {
            differing.insert(view, rows);
        }
    }
    differing
}

fn rng(seed: u64) -> TestRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)
}

async fn writer(mut connection: PgConnection, mut rng: TestRng) {
    for _ in 0..40 {
        let events: Vec<String> =
            (0..rng.random_range(1..40)).map(|_| rng.random_range(0..300).to_string()).collect();
        let end = if rng.random_range(0..10) == 0 { "ROLLBACK" } else { "COMMIT" };
        let wait = if rng.random_range(0..5) == 0 { "SELECT pg_sleep(0.02);" } else { "" };
        let relay = rng.random_range(1..13);
        let sql = format!("BEGIN; SELECT write(ARRAY[{}], {relay}); {wait} {end}", events.join(","));
        try_run(&mut connection, &sql).await.unwrap();
    }
}

/// Refreshes in steps of every size; now and then it is killed in the middle of one.
async fn refresher(url: String, mut killer: PgConnection, mut rng: TestRng) {
    let mut connection = PgConnection::connect(&url).await.unwrap();
    for _ in 0..80 {
        let limit = [5, 30, 200, 5_000][rng.random_range(0..4)];
        let call = format!("SELECT rollup_refresh({limit})");
        if rng.random_range(0..4) == 0 {
            let pid: i32 =
                sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await.unwrap();
            let kill = format!(
                "SELECT pg_sleep(0.0{:02}); SELECT pg_terminate_backend({pid})",
                rng.random_range(1..60)
            );
            let (_, ended) = tokio::join!(try_run(&mut connection, &call), try_run(&mut killer, &kill));
            ended.unwrap();
            connection = PgConnection::connect(&url).await.unwrap();
        } else if let Err(error) = try_run(&mut connection, &call).await {
            assert_eq!(code(&error), "55P03", "{error}");
        }
    }
}

/// Takes events and observations away, changes fates and takes that back; some of it is undone.
async fn remover(mut connection: PgConnection, mut rng: TestRng) {
    for _ in 0..40 {
        let every = [3, 7, 20][rng.random_range(0..3)];
        let which = format!("fate = 0 AND event_key % {every} = {}", rng.random_range(0..every));
        let (which, deed) = match rng.random_range(0..10) {
            0..=3 => (
                which,
                "PERFORM rollup_forget_events(v); DELETE FROM event_relay WHERE event_key = ANY (v);
                              DELETE FROM event WHERE event_key = ANY (v);"
                    .to_owned(),
            ),
            4..=5 => (
                which,
                "PERFORM rollup_forget_events(v); UPDATE event SET fate = 2 WHERE event_key = ANY (v);"
                    .to_owned(),
            ),
            6..=7 => (
                "fate = 2".to_owned(),
                "UPDATE event SET fate = 0 WHERE event_key = ANY (v); PERFORM rollup_recall_events(v);"
                    .to_owned(),
            ),
            8 => (which, "PERFORM orphan_event_delete(5);".to_owned()),
            _ => {
                let relay = rng.random_range(1..13);
                (
                    which,
                    format!(
                        "PERFORM rollup_forget_observations(v, array_fill({relay}, ARRAY[cardinality(v)]));
                                 DELETE FROM event_relay WHERE relay_id = {relay} AND event_key = ANY (v);"
                    ),
                )
            }
        };
        let undo = if rng.random_range(0..8) == 0 {
            "RAISE EXCEPTION 'undone' USING ERRCODE = 'P0099';"
        } else {
            ""
        };
        let sql = format!(
            "DO $$ DECLARE v bigint[] := ARRAY(SELECT event_key FROM event WHERE {which} LIMIT 12); BEGIN {deed} {undo} END $$"
        );
        if let Err(error) = try_run(&mut connection, &sql).await {
            assert_eq!(code(&error), "P0099", "{error}");
        }
    }
}

pub(crate) async fn storm(seed: u64, more: &str) {
    let Some(test) = populated().await else { return };
    test.execute(more).await;
    let mut rng = rng(seed);
    let mut fork = || self::rng(rng.next_u64());
    for round in 0..2 {
        let mut tasks = JoinSet::new();
        for _ in 0..3 {
            tasks.spawn(writer(test.connect(Role::Superuser).await, fork()));
        }
        for _ in 0..2 {
            let killer = test.connect(Role::Superuser).await;
            tasks.spawn(refresher(test.url(Role::Refresher), killer, fork()));
        }
        tasks.spawn(remover(test.connect(Role::Superuser).await, fork()));
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
        // With what waits left out, and with nothing waiting.
        assert_eq!(value(&test, CHECK).await, "", "seed {seed}, round {round}");
        settle(&test).await;
        assert_eq!(value(&test, CHECK).await, "", "seed {seed}, round {round}, settled");
        assert_eq!(differing(&test).await, BTreeMap::new(), "seed {seed}, round {round}");
    }
    let events: i64 = value(&test, "SELECT count(*)::text FROM event WHERE fate = 0").await.parse().unwrap();
    assert!(events > 50, "{events} events are left to compare");
    assert_eq!(value(&test, "SELECT event_count::text FROM event_stats").await, events.to_string());
    test.execute("SELECT rollup_rebuild()").await;
    assert_eq!(value(&test, CHECK).await, "", "seed {seed}, rebuilt");
    assert_eq!(differing(&test).await, BTreeMap::new(), "seed {seed}, rebuilt");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollups_are_exact_under_writers_killed_refreshers_and_removals_at_once() {
    storm(1, "SELECT 1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollups_are_exact_under_another_storm() {
    storm(20_261_126, "SELECT 1").await;
}

#[tokio::test]
async fn a_disagreement_is_found_and_a_rebuild_mends_it() {
    let Some(test) = populated().await else { return };
    test.execute("SELECT write(ARRAY(SELECT generate_series(1, 200)), 3), all_statistics_refresh()").await;
    let spoiled = "SELECT coalesce(string_agg(DISTINCT rollup, ' '), '') FROM rollup_check()";
    let rollups = value(
        &test,
        "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class
        WHERE relname LIKE 'rollup%' AND relkind = 'r' AND relname <> 'rollup_delta'",
    )
    .await;
    for rollup in rollups.split(' ') {
        let spoil = match rollup {
            "rollup_addressable" => "created_at = created_at + 1",
            "rollup_sketch" => "keys = keys[2:]",
            _ => "events = events + 1",
        };
        test.execute(&format!("UPDATE {rollup} SET {spoil}")).await;
        assert_eq!(value(&test, spoiled).await, rollup);
        test.execute("SELECT rollup_rebuild()").await;
        assert_eq!(value(&test, spoiled).await, "");
    }
}

#[tokio::test]
async fn a_refresh_with_nothing_new_writes_nothing_but_when_it_was() {
    let Some(test) = populated().await else { return };
    test.execute("SELECT write(ARRAY(SELECT generate_series(1, 200)), 3); SELECT all_statistics_refresh()")
        .await;
    let mut connection = test.connect(Role::Superuser).await;
    try_run(&mut connection, "BEGIN; SELECT all_statistics_refresh()").await.unwrap();
    let written: String = sqlx::query_scalar(
        "SELECT coalesce(string_agg(relname, ' ' ORDER BY relname), '') FROM pg_stat_xact_all_tables
         WHERE n_tup_ins + n_tup_upd + n_tup_del > 0 AND schemaname <> 'pg_toast'",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    try_run(&mut connection, "COMMIT").await.unwrap();
    assert_eq!(written, "view_state");
}

#[tokio::test]
async fn a_new_document_a_new_check_and_a_new_relay_reach_the_views_at_once() {
    let Some(test) = populated().await else { return };
    test.execute("SELECT all_statistics_refresh()").await;
    test.execute(
        "INSERT INTO metadata VALUES (decode(repeat('aa', 32), 'hex'), 'nip11_info', '{\"data\": {\"software\": \"s\", \"supported_nips\": [1, 11]}}');
         INSERT INTO relay_metadata VALUES (1, 'nip11_info', 5, decode(repeat('aa', 32), 'hex'));
         INSERT INTO relay_check VALUES (10, 2, 1, 'rtt', 'ok', 'none', 40), (20, 2, 1, 'rtt', 'ok', 'none', 60);
         INSERT INTO relay_check_latest VALUES (2, 'rtt', 1, 20, 'ok', 'none', 60);
         SELECT all_statistics_refresh()",
    )
    .await;
    let seen = "SELECT concat_ws(' ', (SELECT count(*) FROM relay_metadata_latest), (SELECT string_agg(software, ',') FROM relay_software_counts),
        (SELECT string_agg(nip::text, ',' ORDER BY nip) FROM supported_nip_counts), (SELECT avg_rtt_open FROM relay_stats WHERE relay_url = 'wss://r2.example'))";
    assert_eq!(value(&test, seen).await, "2 s 1,11 50.00");
    // While an old transaction is open, too.
    let mut holder = test.connect(Role::Superuser).await;
    try_run(&mut holder, "BEGIN; SELECT pg_current_xact_id()").await.unwrap();
    test.execute("SELECT all_statistics_refresh()").await;
    let rtt =
        "SELECT data -> 'data' ->> 'rtt_open' FROM relay_metadata_latest WHERE metadata_type = 'nip66_rtt'";
    test.execute("UPDATE relay_check_latest SET open_ms = 70; SELECT all_statistics_refresh()").await;
    assert_eq!(value(&test, rtt).await, "70");
    test.execute("DELETE FROM relay_metadata; SELECT all_statistics_refresh()").await;
    assert_eq!(value(&test, seen).await, "1 50.00");
}

#[tokio::test]
async fn a_refresh_beside_another_is_told_so_and_a_removal_waits_for_it() {
    let Some(test) = populated().await else { return };
    test.execute("SELECT write(ARRAY(SELECT generate_series(1, 200)), 3)").await;
    let ctx = context(&test, config());
    let mut holder = test.connect(Role::Superuser).await;
    try_run(&mut holder, "BEGIN; SELECT rollup_refresh(10)").await.unwrap();
    assert!(ctx.db.rollup_refresh(10).await.unwrap_err().is_busy());
    for (view, statement) in VIEWS {
        assert!(ctx.db.refresh(statement).await.unwrap_err().is_busy(), "{view}");
    }
    let error = run(&ctx, JobKind::Refresh, "views").await.unwrap_err();
    assert!(matches!(&error, JobError::Snooze { why, .. } if why.contains("another refresh")), "{error}");
    let mut remover = test.connect(Role::Superuser).await;
    let forget = "SET lock_timeout = 0; SELECT rollup_forget_events(ARRAY(SELECT event_key FROM event))";
    let forgetting = try_run(&mut remover, forget);
    let (forgotten, committed) = tokio::join!(forgetting, async {
        // bound: the removal waits meanwhile
        tokio::time::sleep(Duration::from_millis(200)).await;
        try_run(&mut holder, "COMMIT").await
    });
    committed.unwrap();
    forgotten.unwrap();
}

#[tokio::test]
async fn the_refresh_job_counts_what_writers_logged() {
    let Some(test) = populated().await else { return };
    test.execute("SELECT write(ARRAY(SELECT generate_series(1, 200)), 3)").await;
    let ctx = context(&test, config());
    assert_eq!(ctx.db.rollup_backlog().await.unwrap().keys, 400);
    let report = run(&ctx, JobKind::Refresh, "views").await.unwrap();
    assert_eq!(report, json!({ "counted": 400, "refreshed": 13, "failed": {} }));
    assert_eq!(ctx.db.rollup_backlog().await.unwrap(), Backlog { keys: 0, age_s: 0 });
    assert_eq!(value(&test, "SELECT event_count::text FROM event_stats").await, "200");
}

/// A database of version 17 that holds an archive, its views refreshed.
async fn version_seventeen() -> Option<TestDb> {
    let test = TestDb::empty().await?;
    let options = MigrateOptions::default();
    let mut connection = shared::db::connect_direct(&test.url(Role::Superuser)).await.unwrap();
    shared::db::prepare_roles(&mut connection, &options).await.unwrap();
    let old = MIGRATOR.iter().take_while(|migration| migration.version <= 17).cloned().collect();
    Migrator::with_migrations(old).run(&mut connection).await.unwrap();
    queue::set_up_apalis(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    test.execute(EVENTS).await;
    test.execute("SELECT write(ARRAY(SELECT x FROM generate_series(r * 20, r * 20 + 90) x), r) FROM generate_series(1, 12) r;
        UPDATE event SET fate = 2, sig = NULL, tags = NULL, content = NULL WHERE event_key % 10 = 0; SELECT all_statistics_refresh()").await;
    Some(test)
}

/// Waits until so many calls wait for a lock.
async fn waiting(test: &TestDb, calls: usize) {
    let sql = "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    for _ in 0..400 {
        if value(test, sql).await == calls.to_string() {
            return;
        }
        // bound: 400 × 25 ms
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("never {calls} calls waited");
}

#[tokio::test]
async fn an_archive_of_version_seventeen_is_counted_by_the_migration_with_what_its_writers_still_add() {
    let Some(test) = version_seventeen().await else { return };
    // Of two writers of the old version one is in the middle of its transaction when the migration comes, the other
    // waits for the migration in the middle of a function: neither logs what it adds.
    let mut old = test.connect(Role::Superuser).await;
    try_run(&mut old, "BEGIN; SELECT write(ARRAY(SELECT generate_series(900, 950)), 4)").await.unwrap();
    let mut late = test.connect(Role::Superuser).await;
    let url = test.url(Role::Superuser);
    let options = MigrateOptions::default();
    let (done, written, ()) = tokio::join!(
        queue::migrate(&url, &options),
        async {
            waiting(&test, 1).await;
            let write = "BEGIN; SELECT write(ARRAY(SELECT generate_series(951, 980)), 6); SELECT pg_sleep(1.5); COMMIT";
            try_run(&mut late, write).await
        },
        async {
            waiting(&test, 2).await;
            try_run(&mut old, "COMMIT").await.unwrap();
        }
    );
    written.unwrap();
    done.unwrap();
    assert_eq!(value(&test, CHECK).await, "");
    assert_eq!(differing(&test).await, BTreeMap::new());
    let all = value(&test, "SELECT count(*)::text FROM event WHERE fate = 0").await;
    assert_eq!(value(&test, "SELECT event_count::text FROM event_stats").await, all);
    test.execute("SELECT write(ARRAY(SELECT generate_series(940, 999)), 5)").await;
    settle(&test).await;
    assert_eq!(value(&test, CHECK).await, "");
}
