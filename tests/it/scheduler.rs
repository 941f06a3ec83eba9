//! A scheduler's round and what goes on beside it; health and gauges while the database is away.

use std::time::Duration;

use scheduler::Scheduler;
use shared::config::Config;
use shared::models::JobKind;
use shared::telemetry::{Health, Metrics};
use sqlx::Connection as _;
use tests::pg::{Role, TestDb};
use tests::proxy::ChaosProxy;
use tokio_util::sync::CancellationToken;

use super::fleet::environment;
use super::support::{handle, job, migrated, value};

/// A scheduler of the test's own pace, and what it shows.
fn scheduler(url: &str) -> (Scheduler, Metrics) {
    let config = Config::load(None, &environment(url, url)).unwrap();
    let (db, metrics) = (shared::db::Db::lazy(url, "test scheduler", 3).unwrap(), Metrics::new());
    (Scheduler::new(db, metrics.clone(), config.scheduler_options()), metrics)
}

/// A round, and what it began.
async fn round(scheduler: &mut Scheduler) {
    scheduler.gauge_soon();
    scheduler.tick().await.unwrap();
    scheduler.settle().await;
}

/// What `/metrics` says of a metric with these labels.
fn shown(metrics: &Metrics, name: &str, labels: &[&str]) -> Option<String> {
    let text = metrics.encode();
    let mut lines = text.lines().filter(|line| line.starts_with(name));
    let line = lines.find(|line| labels.iter().all(|label| line.contains(label)))?;
    line.rsplit(' ').next().map(str::to_owned)
}

const DUE: &str = "bigbrotr_queue_due_jobs{";
/// How many wait for the limits of the fleet.
const WAITING: &str = "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%fleet_limits_set%' AND wait_event_type = 'Lock'";
const SYNC: [&str; 2] = ["kind=\"sync\"", "network=\"clearnet\""];

#[tokio::test]
async fn a_queue_that_has_run_empty_shows_zero() {
    let Some(test) = migrated().await else { return };
    let (mut scheduler, metrics) = scheduler(&test.url(Role::Writer));
    let jobs = ["a", "b"].map(|host| job(JobKind::Sync, &format!("wss://{host}.example")));
    handle(&test, Role::Writer).job_enqueue(&jobs).await.unwrap();
    round(&mut scheduler).await;
    assert_eq!(shown(&metrics, DUE, &SYNC).as_deref(), Some("2"));
    test.execute("DELETE FROM apalis.jobs").await;
    round(&mut scheduler).await;
    assert_eq!(shown(&metrics, DUE, &SYNC).as_deref(), Some("0"));
    let never = ["kind=\"validate\"", "network=\"loki\""];
    assert_eq!(shown(&metrics, DUE, &never).as_deref(), Some("0"), "also one that never had any");
    assert_eq!(shown(&metrics, "bigbrotr_relays{", &["down"]).as_deref(), Some("0"));
}

#[tokio::test]
async fn gauges_that_cannot_be_read_and_maintenance_that_hangs_hold_up_no_round() {
    let Some(test) = migrated().await else { return };
    let (mut scheduler, metrics) = scheduler(&test.url(Role::Writer));
    test.execute("REVOKE EXECUTE ON FUNCTION queue_stats FROM bigbrotr_writer").await;
    // What maintenance wants to write is somebody else's for a while.
    let mut lock = test.connect(Role::Superuser).await;
    let mut lock = lock.begin().await.unwrap();
    sqlx::query("LOCK TABLE network_limit").execute(&mut *lock).await.unwrap();
    test.execute("INSERT INTO apalis.workers (id, worker_type, storage_name, layers, last_seen, started_at, lease_until)
                  VALUES ('old', 'bigbrotr', 'bigbrotr', '', now(), now(), now() - interval '1 day')").await;
    for _ in 0..20 {
        scheduler.gauge_soon();
        tokio::time::timeout(Duration::from_secs(5), scheduler.tick()).await.unwrap().unwrap();
    }
    assert_eq!(shown(&metrics, "bigbrotr_leader", &[]).as_deref(), Some("1"));
    until(&test, WAITING, "1").await;
    // Another leads from here on: what is left of the maintenance is that one's.
    test.execute("UPDATE leader SET holder = 'another', until = now() + interval '1 h', term = term + 1")
        .await;
    scheduler.tick().await.unwrap();
    lock.rollback().await.unwrap();
    scheduler.settle().await;
    assert_eq!(
        value(&test, "SELECT count(*)::text FROM apalis.workers WHERE id = 'old'").await,
        "1",
        "a later step of it was not begun"
    );
    test.execute("UPDATE leader SET until = now()").await;
    round(&mut scheduler).await;
    assert_eq!(value(&test, "SELECT count(*)::text FROM apalis.workers WHERE id = 'old'").await, "0");
}

#[tokio::test]
async fn a_leader_that_hears_nothing_for_a_lease_shows_that_it_leads_no_more() {
    let Some(test) = migrated().await else { return };
    let proxy = ChaosProxy::start(test.address()).await;
    let (mut scheduler, metrics) = scheduler(&proxy.url_of(&test.url(Role::Writer)));
    round(&mut scheduler).await;
    assert_eq!(shown(&metrics, "bigbrotr_leader", &[]).as_deref(), Some("1"));
    assert!(shown(&metrics, DUE, &SYNC).is_some());
    // The call neither fails nor answers: the lease of two seconds ends all the same.
    proxy.stall();
    let stalled = tokio::time::timeout(Duration::from_secs(4), scheduler.tick()).await;
    assert!(stalled.is_err(), "the call is still under way");
    assert_eq!(shown(&metrics, "bigbrotr_leader", &[]).as_deref(), Some("0"));
    assert_eq!(shown(&metrics, DUE, &SYNC), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_database_makes_a_worker_unready_and_restarts_nobody() {
    let Some(test) = migrated().await else { return };
    let proxy = ChaosProxy::start(test.address()).await;
    let url = proxy.url_of(&test.url(Role::Writer));
    let config = Config::load(None, &environment(&url, &url)).unwrap();
    let (health, stop) = (Health::default(), CancellationToken::new());
    let working = worker::run(&config, Metrics::new(), health.clone(), stop.clone());
    let watching = async {
        for _ in 0..200 {
            if health.ready().is_ok() {
                break;
            }
            // bound: 200 × 50 ms until the first beat
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        health.ready().unwrap();
        proxy.cut();
        // bound: more than three leases of two seconds
        tokio::time::sleep(Duration::from_secs(8)).await;
        let said = health.ready().unwrap_err();
        assert!(said.contains("heartbeat") && said.contains("exchange") && said.contains("queues"), "{said}");
        health.live().unwrap();
        proxy.restore();
        for _ in 0..300 {
            if health.ready().is_ok() {
                break;
            }
            // bound: 300 × 50 ms until it is back
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        health.ready().unwrap();
        stop.cancel();
    };
    let (worked, ()) = tokio::join!(Box::pin(working), watching);
    worked.unwrap();
}

/// Waits until `sql` says `wanted`.
async fn until(test: &TestDb, sql: &'static str, wanted: &str) {
    for _ in 0..100 {
        if value(test, sql).await == wanted {
            return;
        }
        // bound: 100 × 50 ms
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{sql}: not {wanted}");
}
