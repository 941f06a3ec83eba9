//! The database harness: clones of one template, dropped after use, and PgBouncer before them.

use std::time::Duration;

use shared::db::{Db, DbError};
use sqlx::Connection as _;
use sqlx::PgConnection;
use tests::pg::{Bouncer, Generation, Role, TestDb};
use tests::proxy::ChaosProxy;

/// A schema just large enough to tell a clone from an empty database; it counts how often it is made.
async fn migrate(url: String) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(&url).await?;
    sqlx::query("CREATE TABLE made AS SELECT clock_timestamp() AS at").execute(&mut connection).await?;
    // The connection is left to itself: the harness must cope with one that lingers.
    Ok(())
}

async fn clone_of_template() -> Option<TestDb> {
    TestDb::from_template("kit", migrate).await
}

async fn value(url: &str, sql: &'static str) -> String {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let value = sqlx::query_scalar(sql).persistent(false).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    value
}

#[tokio::test]
async fn clones_share_one_template_and_nothing_else() {
    let (Some(one), Some(two)) = tokio::join!(clone_of_template(), clone_of_template()) else { return };
    let made = "SELECT at::text FROM made";
    let (first, second) =
        (value(&one.url(Role::Superuser), made).await, value(&two.url(Role::Superuser), made).await);
    assert_eq!(first, second);
    one.execute("TRUNCATE made; CREATE TABLE mine ()").await;
    assert_eq!(value(&two.url(Role::Superuser), "SELECT count(*)::text FROM made").await, "1");
}

#[tokio::test]
async fn database_is_dropped_with_its_handle() {
    let Some(db) = TestDb::empty().await else { return };
    let Some(other) = TestDb::empty().await else { return };
    let name = db.name.clone();
    let mut lingering = db.connect(Role::Superuser).await;
    drop(db);
    lingering.ping().await.unwrap_err();
    let mut connection = other.connect(Role::Superuser).await;
    let known = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
    let exists: bool = sqlx::query_scalar(known).bind(name).fetch_one(&mut connection).await.unwrap();
    assert!(!exists);
}

#[tokio::test]
async fn failed_test_keeps_its_database() {
    let Some(db) = TestDb::empty().await else { return };
    let Some(other) = TestDb::empty().await else { return };
    let name = db.name.clone();
    // What a failing test does: the handle is dropped while its thread unwinds.
    let failing = std::thread::spawn(move || {
        let _db = db;
        std::panic::resume_unwind(Box::new("a failing test"));
    });
    failing.join().unwrap_err();
    let mut connection = other.connect(Role::Superuser).await;
    let known = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
    let exists: bool = sqlx::query_scalar(known).bind(&name).fetch_one(&mut connection).await.unwrap();
    assert!(exists);
    drop(connection);
    other.execute(&format!("DROP DATABASE \"{name}\"")).await;
}

#[tokio::test]
async fn bouncer_pools_transactions() {
    for generation in Generation::ALL {
        let Some(db) = clone_of_template().await else { return };
        let Some(bouncer) = Bouncer::start(&db, generation).await else { continue };
        let made = "SELECT count(*)::text FROM made";
        assert_eq!(value(&bouncer.url(Role::Superuser), made).await, "1");

        // Two clients, one after the other, get the same server connection: the pool is PgBouncer's, not ours.
        let backend = "SELECT pg_backend_pid()::text";
        let first = value(&bouncer.url(Role::Superuser), backend).await;
        assert_eq!(first, value(&bouncer.url(Role::Superuser), backend).await);
        let direct = value(&db.url(Role::Superuser), backend).await;
        assert_ne!(first, direct);
    }
}

#[tokio::test]
async fn the_newer_bouncer_keeps_named_statements_on_whatever_connection_they_meet() {
    let Some(db) = clone_of_template().await else { return };
    let Some(bouncer) = Bouncer::start(&db, Generation::Newer).await else { return };
    let mut named = PgConnection::connect(&bouncer.url(Role::Superuser)).await.unwrap();
    let mut other = PgConnection::connect(&bouncer.url(Role::Superuser)).await.unwrap();
    let backend = sqlx::query_scalar::<_, i32>("SELECT pg_backend_pid() + $1").persistent(true);
    let first = backend.bind(0).fetch_one(&mut named).await.unwrap();
    // Holds the only server connection so far, so that the statement meets one that never heard of it.
    sqlx::query("BEGIN").persistent(false).execute(&mut other).await.unwrap();
    let backend = sqlx::query_scalar::<_, i32>("SELECT pg_backend_pid() + $1").persistent(true);
    assert_ne!(backend.bind(0).fetch_one(&mut named).await.unwrap(), first);
}

#[tokio::test]
async fn bouncer_survives_an_outage_of_the_server() {
    for generation in Generation::ALL {
        let Some(db) = clone_of_template().await else { return };
        let proxy = ChaosProxy::start(db.address()).await;
        let Some(bouncer) = Bouncer::start_before(&db, proxy.address(), generation).await else { continue };
        let mut client = PgConnection::connect(&bouncer.url(Role::Superuser)).await.unwrap();
        proxy.cut();
        let asked = sqlx::query("SELECT 1").persistent(false).execute(&mut client);
        // Cut before or behind PgBouncer's own check: an error at once, or none until the server is back.
        drop(tokio::time::timeout(Duration::from_millis(300), asked).await);
        proxy.restore();
        recovers(&bouncer).await;
    }
}

#[tokio::test]
async fn bouncer_listens_where_it_did_after_it_was_killed() {
    for generation in Generation::ALL {
        let Some(db) = clone_of_template().await else { return };
        let Some(mut bouncer) = Bouncer::start(&db, generation).await else { continue };
        let url = bouncer.url(Role::Superuser);
        let mut client = PgConnection::connect(&url).await.unwrap();
        bouncer.kill();
        client.ping().await.unwrap_err();
        assert!(!answers(&url).await, "nobody listens");
        bouncer.start_again().await;
        recovers(&bouncer).await;
    }
}

#[tokio::test]
async fn a_connection_that_goes_silent_gives_its_place_back() {
    let Some(test) = clone_of_template().await else { return };
    let proxy = ChaosProxy::start(test.address()).await;
    let db = Db::lazy(&proxy.url_of(&test.url(Role::Superuser)), "test", 1).unwrap();
    db.ping().await.unwrap();
    // Behind it, its connection is on its way back into the pool, or waits there, and is taken at its word.
    proxy.strand();
    let hasty = db.with_timeout(Duration::from_secs(1));
    assert!(matches!(hasty.ping().await, Err(DbError::Timeout { .. })));
    // The only place of the pool is free before whoever waits for it gives up (10 s).
    db.ping().await.unwrap();
    // bound: long enough for it to be back, and to be asked how it is before it is used; that is given up in time, too.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    proxy.strand();
    db.ping().await.unwrap();
}

async fn recovers(bouncer: &Bouncer) {
    let url = bouncer.url(Role::Superuser);
    let recovers = async {
        // PgBouncer answers with the last failure, at login or at the first query, until it logs in again.
        while !answers(&url).await {
            // bound: 20 s, around the whole loop.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), recovers).await.expect("the pool recovers");
}

async fn answers(url: &str) -> bool {
    let Ok(mut client) = PgConnection::connect(url).await else { return false };
    sqlx::query("SELECT FROM made").persistent(false).execute(&mut client).await.is_ok()
}

#[tokio::test]
async fn made_roles_are_known_to_the_bouncer_and_the_server() {
    let Some(db) = TestDb::empty().await else { return };
    // Roles belong to the cluster: tests of other databases may have made it, or make it now.
    db.execute(
        "DO $$ BEGIN CREATE ROLE bigbrotr_reader LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation \
         THEN ALTER ROLE bigbrotr_reader LOGIN; END $$",
    )
    .await;
    let whoami = "SELECT current_user::text";
    assert_eq!(value(&db.url(Role::Reader), whoami).await, "bigbrotr_reader");
    for generation in Generation::ALL {
        let Some(bouncer) = Bouncer::start(&db, generation).await else { continue };
        assert_eq!(value(&bouncer.url(Role::Reader), whoami).await, "bigbrotr_reader");
    }
}
