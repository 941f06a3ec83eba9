//! Passwords of the fleet are changed while it works, the two ways docs/OPERATIONS.md describes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use shared::db::MigrateOptions;
use shared::queue;
use sqlx::{Connection as _, PgConnection};
use tests::factory::Factory;
use tests::pg::{Cluster, Role, TestDb};
use tests::programs::Process;
use tests::scripted::{Answer, Script, ScriptedRelay};

use super::fleet::{binary, environment, seed_relays_by, until};
use super::support::value;

/// Longest a program may take to stop.
const STOPPED: Duration = Duration::from_secs(30);

/// A server that asks for passwords, and a database in it whose writer has this one.
async fn guarded(password: &str) -> Option<(Cluster, TestDb)> {
    if tests::env::var(tests::env::TEST_PG).is_none() {
        tests::skip("a private PostgreSQL (run ./test, or tests/tools/pg.sh start)");
        return None;
    }
    let cluster = Cluster::start(None, &[("PG_PASSWORD", "super")]);
    let test = TestDb::empty_in(&cluster.url).await;
    set_password(&test, password).await;
    Some((cluster, test))
}

/// As `BIGBROTR_WRITER_PASSWORD=… bigbrotr migrate` does.
async fn set_password(test: &TestDb, password: &str) {
    let passwords = vec![("writer".to_owned(), password.to_owned())];
    let options = MigrateOptions { passwords, ..MigrateOptions::default() };
    queue::migrate(&test.url(Role::Superuser), &options).await.unwrap();
    test.execute("UPDATE fleet_limit SET host_jobs = 1000, host_spacing_ms = 0").await;
}

fn url(test: &TestDb, user: &str, password: &str) -> String {
    let own = test.url(Role::Writer);
    own.replacen("bigbrotr_writer@", &format!("{user}:{password}@"), 1)
}

/// Variables of a fleet that logs in so; a lease that no step here outlasts but those that mean to.
fn variables(url: &str, lease_s: u32) -> BTreeMap<String, String> {
    let mut variables = environment(url, url);
    variables.insert("BIGBROTR_WORKER_LEASE_S".to_owned(), lease_s.to_string());
    variables.insert("BIGBROTR_SYNC_PAGE_LIMIT".to_owned(), "50".to_owned());
    variables
}

fn started(name: &str, variables: &BTreeMap<String, String>, log: &str) -> Process {
    let mut command = Command::new(binary(name));
    command.arg("run").envs(variables);
    Process::spawn(&command, Path::new(log))
}

/// SIGTERM, and the end.
async fn stopped(mut process: Process) {
    assert!(Command::new("kill").args(["-TERM", &process.pid().to_string()]).status().unwrap().success());
    let ends = async {
        while !process.has_ended() {
            // bound: STOPPED, around the whole loop
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(STOPPED, ends).await.expect("a program that is told to stop does");
}

async fn may_log_in(url: &str) -> bool {
    match PgConnection::connect(url).await {
        Ok(connection) => connection.close().await.is_ok(),
        Err(_) => false,
    }
}

const EVENTS: &str = "SELECT count(*)::text FROM event";
const LEASES: &str = "SELECT count(*)::text FROM apalis.workers WHERE lease_until > now()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_login_role_takes_over_while_the_fleet_works_and_nothing_is_lost_or_read_twice() {
    let Some((_cluster, test)) = guarded("first").await else { return };
    let events = Factory::new(91).events(2_000);
    let relay = ScriptedRelay::start(Script::honest(&events, 50).answering(Answer::LateEose(60))).await;
    let old = variables(&url(&test, "bigbrotr_writer", "first"), 30);
    seed_relays_by(&url(&test, "bigbrotr_writer", "first"), &[relay.url()]).await;
    let (scheduler, worker) = (started("scheduler", &old, "/dev/null"), started("worker", &old, "/dev/null"));
    until(&test, "SELECT (count(*) >= 100)::text FROM event", "true").await;

    test.execute(
        "CREATE ROLE bigbrotr_writer_2 LOGIN PASSWORD 'second' IN ROLE bigbrotr_writer;
         ALTER ROLE bigbrotr_writer_2 SET idle_in_transaction_session_timeout = '5s'",
    )
    .await;
    let new = variables(&url(&test, "bigbrotr_writer_2", "second"), 30);
    let log = std::env::temp_dir().join(format!("bigbrotr-rotate-{}", shared::clock::random_hex(6)));
    let both = (started("scheduler", &new, "/dev/null"), started("worker", &new, &log.display().to_string()));
    until(&test, LEASES, "2").await;
    stopped(worker).await;
    stopped(scheduler).await;
    test.execute("ALTER ROLE bigbrotr_writer NOLOGIN").await;
    assert!(!may_log_in(&url(&test, "bigbrotr_writer", "first")).await, "the old password is worth nothing");
    until(&test, EVENTS, "2000").await;
    until(
        &test,
        "SELECT (count(*) > 0)::text FROM job_history WHERE kind = 'sync' AND state = 'complete'",
        "true",
    )
    .await;
    assert_eq!(value(&test, "SELECT count(*)::text FROM job_history WHERE state = 'dead'").await, "0");
    assert!(relay.counts().reqs < 2_000 / 50 + 25, "pages were read again: {}", relay.counts().reqs);
    // And back to the name that migrations know, with a new password: the same steps the other way round.
    set_password(&test, "third").await;
    test.execute("ALTER ROLE bigbrotr_writer LOGIN").await;
    assert!(may_log_in(&url(&test, "bigbrotr_writer", "third")).await);
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(!said.contains("WARN") && !said.contains("ERROR"), "{said}");
    drop(both);
    test.execute("DROP ROLE bigbrotr_writer_2").await;
    std::fs::remove_file(log).ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_whose_password_is_changed_works_on_until_a_connection_breaks_then_waits_for_its_restart() {
    let Some((_cluster, test)) = guarded("first").await else { return };
    let old = variables(&url(&test, "bigbrotr_writer", "first"), 4);
    let (mut scheduler, mut worker) =
        (started("scheduler", &old, "/dev/null"), started("worker", &old, "/dev/null"));
    until(&test, LEASES, "1").await;
    set_password(&test, "second").await;
    let later =
        "SELECT (count(*) > 0)::text FROM apalis.workers WHERE lease_until > now() + interval '3 seconds'";
    test.execute("UPDATE apalis.workers SET lease_until = now() + interval '1 second'").await;
    until(&test, later, "true").await;

    // Whatever breaks a connection (a restart of the server, two idle minutes) shows the change.
    test.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'bigbrotr_writer'")
        .await;
    until(&test, LEASES, "0").await;
    assert!(!worker.has_ended() && !scheduler.has_ended(), "they wait: nothing restarts them in a circle");
    let new = variables(&url(&test, "bigbrotr_writer", "second"), 4);
    let events = Factory::new(93).events(100);
    let relay = ScriptedRelay::start(Script::honest(&events, 50)).await;
    seed_relays_by(&url(&test, "bigbrotr_writer", "second"), &[relay.url()]).await;
    stopped(worker).await;
    stopped(scheduler).await;
    let both = (started("scheduler", &new, "/dev/null"), started("worker", &new, "/dev/null"));
    until(&test, EVENTS, "100").await;
    drop(both);
}
