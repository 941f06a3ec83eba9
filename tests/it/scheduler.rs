//! A scheduler's round and what goes on beside it; health and gauges while the database is away.

use std::time::Duration;

use scheduler::Scheduler;
use shared::config::Config;
use shared::models::JobKind;
use shared::telemetry::{Health, Metric, MetricOf, Metrics};
use sqlx::Connection as _;
use tests::pg::{Role, TestDb};
use tests::proxy::ChaosProxy;
use tokio_util::sync::CancellationToken;

use super::fleet::environment;
use super::support::{handle, job, migrated, register, registration, value};

/// A scheduler of the test's own pace, and what it shows.
pub(super) fn scheduler(url: &str) -> (Scheduler, Metrics) {
    let config = Config::load(None, &environment(url, url)).unwrap();
    let (db, metrics) = (shared::db::Db::lazy(url, "test scheduler", 3).unwrap(), Metrics::new());
    (Scheduler::new(db, metrics.clone(), config.scheduler_options()), metrics)
}

/// A round, and what it began.
pub(super) async fn round(scheduler: &mut Scheduler) {
    scheduler.gauge_soon();
    scheduler.tick().await.unwrap();
    scheduler.settle().await;
}

/// What `/metrics` says of a metric with these labels.
pub(super) fn shown(metrics: &Metrics, name: &str, labels: &[&str]) -> Option<String> {
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
    let failed = shown(&metrics, "bigbrotr_scheduler_errors_total{", &["outcome=\"gauges\""]);
    assert!(failed.is_some_and(|count| count.parse::<u32>().unwrap() > 0), "what fails beside is counted");
    until(&test, WAITING, "1").await;
    // Another leads from here on: what is left of the maintenance is that one's.
    test.execute("UPDATE leader SET holder = 'another', until = now() + interval '10 min', term = term + 1")
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
async fn a_round_that_takes_too_long_is_followed_by_smaller_ones_and_what_is_due_is_enqueued() {
    let Some(test) = migrated().await else { return };
    let config = Config::load(None, &environment(&test.url(Role::Writer), &test.url(Role::Writer))).unwrap();
    // A statement may take two seconds, and to enqueue all of it takes longer.
    test.execute(
        // bound: less than two seconds for a tenth of the rows
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.008); RETURN NEW; END';
         CREATE TRIGGER slow BEFORE INSERT ON apalis.jobs FOR EACH ROW EXECUTE FUNCTION slow();
         INSERT INTO schedule SELECT 'sync', 'wss://r' || n || '.example', 'clearnet', now(), 60, 'new' FROM generate_series(1, 300) n",
    )
    .await;
    let db = handle(&test, Role::Writer).with_timeout(Duration::from_secs(3));
    let mut scheduler = Scheduler::new(db, Metrics::new(), config.scheduler_options());
    let mut late = 0;
    while value(&test, "SELECT count(*)::text FROM apalis.jobs WHERE kind = 'sync'").await != "300" {
        match scheduler.tick().await {
            Ok(()) => {}
            Err(error) => {
                late += 1;
                assert!(late < 6, "{error}");
            }
        }
    }
    assert!(late > 0, "a round took too long");
    scheduler.settle().await;
}

/// A fleet of which every gauge has something to say.
const STATE: &str = "
    INSERT INTO relay (url, network, discovered_at) VALUES ('wss://a.example', 'clearnet', 1), ('wss://b.example', 'clearnet', 1), ('ws://c.onion', 'tor', 1);
    INSERT INTO relay_overall (relay_id, state, reason, since_at) SELECT id, 'down', 'none', 1 FROM relay WHERE url = 'wss://b.example';
    INSERT INTO candidate (url, network, source, first_seen_at, last_seen_at, tombstoned_at)
        VALUES ('wss://d.example', 'clearnet', 'seed', 1, 1, NULL), ('wss://e.example', 'clearnet', 'seed', 1, 1, 2);
    INSERT INTO breaker VALUES ('tor', 'here', 1, now(), now() + interval '1 min', 'why', 'w'), ('tor', 'there', 1, now(), now() - interval '1 min', 'why', 'w');
    UPDATE network_limit SET bytes_per_day = 1000 WHERE network = 'i2p';
    INSERT INTO network_usage SELECT 'i2p', (now() AT TIME ZONE 'UTC')::date, 77;
    INSERT INTO network_lease (network, worker_id, permits) VALUES ('clearnet', 'w', 4), ('clearnet', 'gone', 9);
    INSERT INTO queue_pause (queue, mode, actor, why) VALUES ('validate.loki', 'drain', 'me', 'why');
    INSERT INTO job_history SELECT 'dead' || d || n, 'sync', 'tor', 't', 'dead', 1, 'w', now(), now(), now(), now() - d, '{}'
        FROM unnest(ARRAY['5 min', '50 min', '70 min']::interval[]) d, generate_series(1, 2) n;
    INSERT INTO view_state (view_name, refreshed_at, duration_ms) VALUES ('old', now() - interval '2 h', 1), ('new', now(), 1);
    INSERT INTO relay_alert (relay_id, at, after, reason, settles, delivery, due_at, tries)
        VALUES (1, 1, 'down', 'none', true, 'pending', now(), 0), (1, 2, 'alive', 'none', true, 'pending', now(), 3), (1, 3, 'down', 'none', true, 'sent', NULL, 1);
    INSERT INTO publication_relay (url, failures) VALUES ('wss://p.example', 2), ('wss://q.example', 0);
    INSERT INTO publication_delivery (relay_id, pubkey, kind, d_tag, event_id, state, words, tries, at)
        SELECT 1, decode(repeat('00', 32), 'hex'), 30166, d, decode(repeat('00', 32), 'hex'), CASE d WHEN 'x' THEN 'refused' ELSE 'accepted' END, '', 1, 1
        FROM unnest(ARRAY['x', 'y', 'z']) d;
    INSERT INTO coverage VALUES (1, 'all', 100, 199, 'walked', 'none', 1), (2, 'all', 100, 149, 'partial', 'none', 1), (3, 'all', 100, 199, 'walked', 'none', 1);
    INSERT INTO rollup_total (events, authors) VALUES (9, 1) ON CONFLICT (singleton) DO UPDATE SET events = 9;
    INSERT INTO rollup_relay (events, authors, kinds, unique_events, relay_id) VALUES (5, 1, 1, 1, 1), (6, 1, 1, 1, 2);
    INSERT INTO event_quarantine (relay_id, seen_at, reason, raw) VALUES (1, 1, 'why', '')";

#[tokio::test]
async fn the_leader_shows_the_whole_fleet_and_whoever_leads_no_more_shows_nothing_of_it() {
    let Some(test) = migrated().await else { return };
    let (mut scheduler, metrics) = scheduler(&test.url(Role::Writer));
    // Its maintenance, which publishes limits and forgets what nobody is to be told, is over for a minute.
    round(&mut scheduler).await;
    let db = handle(&test, Role::Writer);
    register(&db, "w", Duration::from_secs(60)).await;
    let mut draining = registration("d", Duration::from_secs(60));
    draining.queues = vec![("sync.clearnet".to_owned(), 1), ("sync.tor".to_owned(), 1)];
    db.job_heartbeat(&draining).await.unwrap();
    test.execute("UPDATE apalis.workers SET draining = true WHERE id = 'd'").await;
    test.execute(STATE).await;
    round(&mut scheduler).await;
    let shows = |name: &str, labels: &[&str]| {
        let labels: Vec<String> = labels.iter().map(|label| format!("\"{label}\"")).collect();
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        shown(&metrics, &format!("bigbrotr_{name}{{"), &labels).map(|value| value.parse::<i64>().unwrap())
    };
    for (name, labels, value) in [
        ("relays", &["clearnet", "unchecked"][..], 1),
        ("relays", &["clearnet", "down"], 1),
        ("relays", &["tor", "unchecked"], 1),
        ("relays", &["loki", "alive"], 0),
        ("candidates", &["clearnet", "waiting"], 1),
        ("candidates", &["clearnet", "tombstoned"], 1),
        ("breakers", &["tor"], 2),
        ("breakers", &["clearnet"], 0),
        ("network_limit_bytes", &["i2p"], 1_000),
        ("network_today_bytes", &["i2p"], 77),
        ("network_today_bytes", &["tor"], 0),
        ("network_permits", &["clearnet"], 256),
        ("network_permits_lent", &["clearnet"], 4),
        ("queue_held", &["validate", "loki"], 1),
        ("queue_held", &["validate", "tor"], 0),
        ("queue_dead_jobs", &["sync", "tor"], 4),
        ("queue_dead_jobs", &["sync", "clearnet"], 0),
        ("queue_workers", &["sync", "clearnet"], 1),
        ("queue_workers", &["sync", "tor"], 0),
        ("workers", &["working"], 1),
        ("workers", &["draining"], 1),
        ("autoscale_desired_workers", &[], 1),
        ("relay_alerts_waiting", &[], 2),
        ("relay_alerts_failing", &[], 1),
        ("publishing_relays_failing", &[], 1),
        ("publications", &["accepted"], 2),
        ("publications", &["refused"], 1),
        ("publications", &["waiting"], 0),
        ("coverage_seconds", &["walked"], 200),
        ("coverage_seconds", &["partial"], 50),
        ("coverage_seconds", &["reconciled"], 0),
        ("archive_events", &[], 9),
        ("archive_observations", &[], 11),
        ("events_quarantined", &[], 1),
        ("archive_rests", &[], 0),
        ("leader_term", &[], 1),
    ] {
        assert_eq!(shows(name, labels), Some(value), "{name} {labels:?}");
    }
    let age = shows("view_age_seconds", &[]).unwrap();
    assert!((7_200..7_300).contains(&age), "{age}");
    assert_eq!(shows("network_limit_bytes", &["tor"]), None, "it has no limit");
    assert_eq!(shows("archive_limit_bytes", &[]), None, "no budget was given");
    let mut silent: Vec<_> = Metric::ALL.iter().filter(|metric| metric.of() == MetricOf::Fleet).collect();
    silent.retain(|metric| shows(metric.name(), &[]).is_none());
    assert_eq!(silent, [&Metric::ArchiveLimit], "all others are shown");

    // A limit that is gone is shown no more.
    test.execute("UPDATE network_limit SET bytes_per_day = NULL").await;
    round(&mut scheduler).await;
    assert_eq!(shows("network_limit_bytes", &["i2p"]), None);

    scheduler.release().await.unwrap();
    let fleet = Metric::ALL.iter().filter(|metric| metric.of() == MetricOf::Fleet);
    let left: Vec<_> = fleet.filter(|metric| shows(metric.name(), &[]).is_some()).collect();
    assert!(left.is_empty(), "{left:?}");
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
