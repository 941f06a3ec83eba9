//! The schema: migrations, comments, roles, partitions.

use shared::db::{Db, DbError, MigrateOptions};
use shared::queue;
use sqlx::Connection as _;
use tests::pg::{Role, TestDb};

use super::support::{handle, migrated, pairs, value};

#[tokio::test]
async fn a_second_and_many_concurrent_migrations_do_no_harm() {
    let Some(db) = TestDb::empty().await else { return };
    let url = db.url(Role::Superuser);
    let options = MigrateOptions::default();
    for run in futures_util::future::join_all((0..8).map(|_| queue::migrate(&url, &options))).await {
        run.unwrap();
    }
    queue::migrate(&url, &MigrateOptions::default()).await.unwrap();
    let wanted = shared::db::MIGRATOR.iter().count().to_string();
    assert_eq!(value(&db, "SELECT count(*)::text FROM _sqlx_migrations WHERE success").await, wanted);
}

#[tokio::test]
async fn views_of_operators_on_ours_outlive_a_migration_and_columns_of_another_version_are_replaced() {
    let Some(db) = migrated().await else { return };
    let migrate = async || queue::migrate(&db.url(Role::Superuser), &MigrateOptions::default()).await;
    let depth = "SELECT count(*)::text FROM mine.depth";
    db.execute(
        "CREATE SCHEMA mine; CREATE VIEW mine.depth AS SELECT kind, network, due FROM public.queue_depth",
    )
    .await;
    for _ in 0..2 {
        migrate().await.unwrap();
        assert_eq!(value(&db, depth).await, "15");
    }
    let columns = "SELECT string_agg(column_name, ' ' ORDER BY ordinal_position) FROM information_schema.columns WHERE table_schema = 'public' AND table_name = 'queue_depth'";
    let present = value(&db, columns).await;
    db.execute("DROP VIEW queue_depth CASCADE; CREATE VIEW queue_depth AS SELECT 1 AS old; ALTER VIEW queue_depth OWNER TO bigbrotr_admin").await;
    migrate().await.unwrap();
    assert_eq!(value(&db, columns).await, present);
    let unserved = handle(&db, Role::Reader).queues_unserved().await.unwrap();
    assert!(unserved.is_empty(), "and who may read may read it again");
}

#[tokio::test]
async fn every_table_column_and_function_is_explained() {
    let Some(db) = migrated().await else { return };
    let silent = pairs(
        &db,
        "SELECT c.relname::text, coalesce(a.attname::text, '(table)')
         FROM pg_class c
         CROSS JOIN LATERAL (SELECT 0 AS n, NULL::name AS attname UNION ALL
              SELECT x.attnum, x.attname FROM pg_attribute x WHERE x.attrelid = c.oid AND x.attnum > 0 AND NOT x.attisdropped AND c.relkind IN ('r', 'p')) a
         WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm') AND NOT c.relispartition
           AND c.relname <> '_sqlx_migrations' AND col_description(c.oid, a.n) IS NULL AND (a.n > 0 OR obj_description(c.oid) IS NULL)
         UNION ALL
         SELECT p.proname::text, '(function)' FROM pg_proc p
         WHERE p.pronamespace = 'public'::regnamespace AND obj_description(p.oid) IS NULL
           AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')",
    )
    .await;
    assert!(silent.is_empty(), "without a comment: {silent:?}");
}

#[tokio::test]
async fn the_writer_may_execute_and_nothing_else() {
    let Some(db) = migrated().await else { return };
    let mut writer = db.connect(Role::Writer).await;
    for statement in [
        "INSERT INTO relay (url, network, discovered_at) VALUES ('wss://a.example', 'clearnet', 1)",
        "UPDATE relay SET network = 'tor'",
        "DELETE FROM event",
        "SELECT count(*) FROM relay",
        "SELECT count(*) FROM apalis.jobs",
        "SELECT roles_grant('bigbrotr')",
    ] {
        let error = sqlx::raw_sql(statement).execute(&mut writer).await.unwrap_err();
        let code = error.as_database_error().and_then(|e| e.code().map(std::borrow::Cow::into_owned));
        assert_eq!(code.as_deref(), Some("42501"), "{statement}: {error}");
    }
    let handle = handle(&db, Role::Writer);
    let url =
        shared::models::RelayUrl::parse("wss://a.example", &shared::models::AddressPolicy::public()).unwrap();
    assert_eq!(handle.relay_insert(&[(url.clone(), 1), (url, 1)]).await.unwrap(), 1);
    writer.close().await.unwrap();
}

#[tokio::test]
async fn no_function_runs_as_a_superuser_or_with_a_search_path_of_the_callers() {
    let Some(db) = migrated().await else { return };
    let risky = pairs(
        &db,
        "SELECT p.proname::text, r.rolname::text FROM pg_proc p JOIN pg_roles r ON r.oid = p.proowner
         WHERE p.pronamespace = 'public'::regnamespace AND p.prosecdef
           AND (r.rolsuper OR NOT coalesce(p.proconfig::text LIKE '%search_path=%', false))",
    )
    .await;
    assert!(risky.is_empty(), "{risky:?}");
    assert_eq!(
        value(&db, "SELECT count(*)::text FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace AND p.prosecdef AND has_function_privilege('public', p.oid, 'EXECUTE')").await,
        "0"
    );
}

#[tokio::test]
async fn rows_of_a_coming_month_move_out_of_the_default_partition_when_it_is_made() {
    let Some(db) = migrated().await else { return };
    // An event dated next year, as some author wrote it.
    db.execute(
        "INSERT INTO event (event_key, created_at, kind, id, pubkey)
         SELECT (at << 31) + 5, at, 1, decode(repeat('ab', 32), 'hex'), decode(repeat('cd', 32), 'hex')
         FROM (SELECT extract(epoch FROM now() + interval '1 year')::bigint AS at) x",
    )
    .await;
    let place = "SELECT tableoid::regclass::text FROM event WHERE id = decode(repeat('ab', 32), 'hex')";
    assert_eq!(value(&db, place).await, "event_default");
    db.execute(
        "SELECT partition_maintain(extract(epoch FROM now())::bigint, 1000, now() + interval '1 year')",
    )
    .await;
    assert_eq!(
        value(&db, place).await,
        value(&db, "SELECT 'event_' || to_char((now() + interval '1 year') AT TIME ZONE 'UTC', 'YYYYMM')")
            .await
    );
}

#[tokio::test]
async fn faults_of_the_connection_are_told_apart_in_a_sentence() {
    let Some(db) = migrated().await else { return };
    let url = db.url(Role::Superuser);
    let error = Db::connect("postgres://nobody@127.0.0.1:1/none", "test", 1).await.unwrap_err();
    assert!(matches!(error, DbError::Unavailable(_)) && error.to_string().contains("127.0.0.1:1"), "{error}");
    let (server, _) = url.rsplit_once('/').unwrap();
    let error = Db::connect(&format!("{server}/gone"), "test", 1).await.unwrap_err();
    assert!(matches!(error, DbError::NoDatabase(_)), "{error}");
    assert!(matches!(Db::lazy("http://x", "test", 1).unwrap_err(), DbError::Url));
    let Some(empty) = TestDb::empty().await else { return };
    let bare = Db::lazy(&empty.url(Role::Superuser), "test", 1).unwrap();
    let error = bare.fleet_stats().await.unwrap_err();
    assert!(error.to_string().contains("bigbrotr migrate"), "{error}");
}

#[tokio::test]
async fn a_transaction_that_a_frozen_process_left_open_ends_and_lets_go() {
    let Some(test) = migrated().await else { return };
    let mut frozen = test.connect(Role::Writer).await;
    for sql in ["BEGIN", "SELECT leader_claim('x', 'frozen', 60)"] {
        sqlx::query(sql).execute(&mut frozen).await.unwrap();
    }
    let began = shared::clock::monotonic_ms();
    let mut other = test.connect(Role::Writer).await;
    let term: Option<i64> =
        sqlx::query_scalar("SELECT leader_claim('x', 'other', 60)").fetch_one(&mut other).await.unwrap();
    let waited = shared::clock::monotonic_ms() - began;
    assert!(term.is_some() && (3_000..15_000).contains(&waited), "{term:?} after {waited} ms");
}
