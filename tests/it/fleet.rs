//! The whole line: seeds in, schedulers and workers at work, the archive complete and proved.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use shared::config::Config;
use shared::db::Db;
use shared::jobs::seed;
use shared::models::{AddressPolicy, RelayUrl};
use shared::telemetry::{Health, Metrics};
use tests::factory::Factory;
use tests::pg::{Bouncer, Generation, Role, TestDb};
use tests::programs::{Kind, Process, Program};
use tests::proxy::ChaosProxy;
use tests::publish::publish;
use tests::scripted::{Answer, Script, ScriptedRelay};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::support::{handle, migrated, polite, value};

/// Longest a fleet may take until its work is done.
const DONE: Duration = Duration::from_secs(90);

/// A fleet that looks often and waits briefly, on loopback.
pub(crate) fn environment(pooled: &str, direct: &str) -> BTreeMap<String, String> {
    [
        ("DATABASE_URL", pooled),
        ("BIGBROTR_DATABASE_DIRECT_URL", direct),
        ("BIGBROTR_NETWORK_ALLOW_LOCAL", "true"),
        ("BIGBROTR_SCHEDULER_TICK_MS", "100"),
        ("BIGBROTR_SCHEDULER_LEASE_S", "2"),
        ("BIGBROTR_WORKER_LEASE_S", "2"),
        ("BIGBROTR_WORKER_POLL_MS", "100"),
        ("BIGBROTR_WORKER_GRACE_S", "5"),
        ("BIGBROTR_ARCHIVE_DAYS", "7"),
        ("BIGBROTR_REFRESH_INTERVAL_S", "2"),
        ("BIGBROTR_DISCOVER_INTERVAL_S", "2"),
        // Relays of these tests stand on any port.
        ("BIGBROTR_DISCOVER_PORTS", "1-65535"),
        // All relays of a test are one machine.
        ("BIGBROTR_FLEET_HOST_JOBS", "1000"),
        ("BIGBROTR_FLEET_HOST_SPACING_MS", "0"),
        ("BIGBROTR_FLEET_BLOCK_JOBS", "1000"),
        ("BIGBROTR_FLEET_BLOCK_SPACING_MS", "0"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// Schedulers and workers of this process, stopped together.
struct Fleet {
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Fleet {
    fn start(environment: &BTreeMap<String, String>, schedulers: usize, workers: usize) -> Self {
        let config = Config::load(None, environment).unwrap();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        for _ in 0..schedulers {
            let (config, stop) = (config.clone(), stop.clone());
            tasks.spawn(async move {
                scheduler::run(&config, Metrics::new(), Health::default(), stop).await.unwrap();
            });
        }
        for _ in 0..workers {
            let (config, stop) = (config.clone(), stop.clone());
            tasks.spawn(async move {
                worker::run(&config, Metrics::new(), Health::default(), stop).await.unwrap();
            });
        }
        tasks.close();
        Self { stop, tasks }
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.tasks.wait())
            .await
            .expect("a fleet stops within its grace");
    }
}

/// Waits until `sql` gives `wanted`.
pub(crate) async fn until(test: &TestDb, sql: &'static str, wanted: &str) {
    let waiting = async {
        while value(test, sql).await != wanted {
            // bound: DONE, around the whole loop.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let done = tokio::time::timeout(DONE, waiting).await.is_ok();
    assert!(done, "after {DONE:?} {sql} is {}, not {wanted}", value(test, sql).await);
}

pub(crate) async fn seed_relays(test: &TestDb, urls: &[String]) {
    seed_relays_by(&test.url(Role::Writer), urls).await;
}

/// The same through a URL of its own.
pub(crate) async fn seed_relays_by(database: &str, urls: &[String]) {
    let urls: Vec<RelayUrl> =
        urls.iter().map(|url| RelayUrl::parse(url, &AddressPolicy::local()).unwrap()).collect();
    let db = Db::lazy(database, "bigbrotr test", 2).unwrap();
    assert_eq!(seed::insert(&db, &urls).await.unwrap(), urls.len() as u64);
}

const PROVED: &str =
    "SELECT count(DISTINCT relay_id)::text FROM coverage WHERE grade IN ('walked', 'finished', 'reconciled')";
const EVENTS: &str = "SELECT count(*)::text FROM event";
const PAIRS: &str = "SELECT count(*)::text FROM event_relay";
const VIEWS: &str = "SELECT count(*)::text FROM view_state";
const ALIVE: &str = "SELECT count(*)::text FROM relay_state WHERE state = 'alive'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_relays_are_found_checked_and_archived_and_a_second_run_adds_nothing() {
    let Some(test) = migrated().await else { return };
    let mut programs = Vec::new();
    for kind in Kind::here() {
        let Some(program) = Program::start(kind).await else { return };
        programs.push(program);
    }
    let events = Factory::new(21).events(900);
    let mut pairs = 0;
    for (i, program) in programs.iter().enumerate() {
        // Each event on one or two of the first three.
        let part: Vec<_> = events.iter().skip(i % 3 * 300).take(450).cloned().collect();
        pairs += publish(&program.url, &part).await.unwrap().accepted.len();
    }
    let distinct: BTreeSet<_> = events.iter().map(|event| event.id).collect();
    seed_relays(&test, &programs.iter().map(|program| program.url.clone()).collect::<Vec<_>>()).await;

    let environment = environment(&test.url(Role::Writer), &test.url(Role::Refresher));
    let fleet = Fleet::start(&environment, 1, 1);
    until(&test, EVENTS, &distinct.len().to_string()).await;
    until(&test, PAIRS, &pairs.to_string()).await;
    let all = programs.len().to_string();
    until(&test, ALIVE, &all).await;
    until(&test, PROVED, &all).await;
    until(&test, VIEWS, "13").await;
    until(&test, "SELECT count(*)::text FROM event_unmined", "0").await;
    fleet.stop().await;
    assert_eq!(value(&test, "SELECT count(*)::text FROM apalis.jobs WHERE status = 'Running'").await, "0");

    // Again, everything due at once: nothing is added.
    test.execute("UPDATE schedule SET due_at = now(); TRUNCATE job_history").await;
    let fleet = Fleet::start(&environment, 1, 1);
    until(&test, "SELECT count(*)::text FROM job_history WHERE kind = 'sync' AND state = 'complete'", &all)
        .await;
    fleet.stop().await;
    assert_eq!(
        (value(&test, EVENTS).await, value(&test, PAIRS).await),
        (distinct.len().to_string(), pairs.to_string())
    );
    let verified = handle(&test, Role::Reader).verify(None).await.unwrap();
    assert_eq!((verified.events, verified.corruptions), (distinct.len() as u64, vec![]));
}

/// A binary of the workspace, built beside this one.
pub(crate) fn binary(name: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let path = exe.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    path.unwrap_or_else(|| panic!("{name} is not built: cargo build -p {name}"))
}

pub(crate) fn child(name: &str, environment: &BTreeMap<String, String>) -> Process {
    child_telling(name, environment, Path::new("/dev/null"))
}

/// The same, and what it says is in this file.
pub(crate) fn child_telling(name: &str, environment: &BTreeMap<String, String>, log: &Path) -> Process {
    let mut command = Command::new(binary(name));
    command.arg("run").envs(environment);
    Process::spawn(&command, log)
}

/// Serves honestly, each page after a moment, so that a stop or a kill comes in the middle.
fn unhurried(events: &[nostr::event::Event], cap: usize) -> Script {
    Script::honest(events, cap).answering(Answer::LateEose(60))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_pgbouncer_with_two_of_each_a_worker_killed_in_the_middle_loses_and_doubles_nothing() {
    for generation in Generation::ALL {
        a_worker_is_killed_behind(generation).await;
    }
}

async fn a_worker_is_killed_behind(generation: Generation) {
    let Some(test) = migrated().await else { return };
    let Some(bouncer) = Bouncer::start(&test, generation).await else { return };
    let events = Factory::new(23).events(3_000);
    let relays = [
        ScriptedRelay::start(unhurried(&events[..2_000], 100)).await,
        ScriptedRelay::start(unhurried(&events[1_000..], 100)).await,
        ScriptedRelay::start(unhurried(&events[500..2_500], 100)).await,
    ];
    seed_relays(&test, &relays.iter().map(ScriptedRelay::url).collect::<Vec<_>>()).await;
    let mut environment = environment(&bouncer.url(Role::Writer), &test.url(Role::Refresher));
    environment.insert("BIGBROTR_SYNC_PAGE_LIMIT".to_owned(), "100".to_owned());
    let schedulers = [child("scheduler", &environment), child("scheduler", &environment)];
    let first = child("worker", &environment);
    until(&test, "SELECT (count(*) > 0)::text FROM event", "true").await;
    // SIGKILL, by its pid, in the middle of its work.
    drop(first);
    assert_ne!(value(&test, EVENTS).await, "3000");
    assert_ne!(
        value(&test, "SELECT count(*)::text FROM apalis.jobs WHERE kind = 'sync' AND status = 'Running'")
            .await,
        "0"
    );
    let workers = [child("worker", &environment), child("worker", &environment)];
    until(&test, EVENTS, "3000").await;
    until(&test, PAIRS, "6000").await;
    until(&test, "SELECT count(*)::text FROM (SELECT relay_id FROM coverage GROUP BY relay_id HAVING bool_and(grade IN ('walked', 'finished'))) x", "3").await;
    until(&test, VIEWS, "13").await;
    assert_eq!(value(&test, "SELECT (count(*) - count(DISTINCT id))::text FROM event").await, "0");
    drop((schedulers, workers));
    let verified = handle(&test, Role::Reader).verify(None).await.unwrap();
    assert_eq!((verified.events, verified.corruptions), (3_000, vec![]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fleet_waits_while_the_database_is_away_and_goes_on() {
    let Some(test) = migrated().await else { return };
    let proxy = ChaosProxy::start(test.address()).await;
    let events = Factory::new(25).events(500);
    let relay = ScriptedRelay::start(Script::honest(&events, 100)).await;
    let url = proxy.url_of(&test.url(Role::Writer));
    let fleet = Fleet::start(&environment(&url, &url), 1, 1);
    until(&test, "SELECT count(*)::text FROM apalis.workers WHERE lease_until > now()", "1").await;
    proxy.cut();
    seed_relays(&test, &[relay.url()]).await;
    until(&test, "SELECT count(*)::text FROM apalis.workers WHERE lease_until > now()", "0").await;
    assert_eq!(value(&test, "SELECT count(*)::text FROM relay").await, "0");
    proxy.restore();
    until(&test, EVENTS, "500").await;
    until(&test, PROVED, "1").await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_worker_gives_back_what_it_holds_and_the_next_goes_on_there() {
    let Some(test) = migrated().await else { return };
    let events = Factory::new(27).events(2_000);
    let relay = ScriptedRelay::start(unhurried(&events, 50)).await;
    seed_relays(&test, &[relay.url()]).await;
    let mut environment = environment(&test.url(Role::Writer), &test.url(Role::Refresher));
    // No lease may end by itself here: a page read twice would look like a stop that forgot.
    environment.insert("BIGBROTR_WORKER_LEASE_S".to_owned(), "30".to_owned());
    environment.insert("BIGBROTR_SYNC_PAGE_LIMIT".to_owned(), "50".to_owned());
    let fleet = Fleet::start(&environment, 1, 1);
    until(&test, "SELECT (count(*) >= 100)::text FROM event", "true").await;
    fleet.stop().await;
    let asked = relay.counts().reqs;
    assert_ne!(value(&test, EVENTS).await, "2000", "the stop came after the work");
    assert_eq!(value(&test, "SELECT count(*)::text FROM apalis.jobs WHERE status = 'Running'").await, "0");
    let fleet = Fleet::start(&environment, 1, 1);
    until(&test, EVENTS, "2000").await;
    fleet.stop().await;
    let all = relay.counts().reqs;
    assert!(all < 2_000 / 50 + 25, "{asked} requests before the stop, {all} in all: pages were read again");
    let names = "SELECT count(*)::text FROM apalis.workers WHERE worker_type = 'bigbrotr'";
    assert_eq!(value(&test, names).await, "2", "each start of a worker has a name of its own");
}

/// As the relay saw it: when its WebSockets opened, and the most that were open at once.
fn audit(relay: &ScriptedRelay) -> (Vec<u64>, i64) {
    let sockets = relay.sockets();
    let mut open = 0;
    let most = sockets
        .iter()
        .map(|(_, change)| {
            open += change;
            open
        })
        .max();
    (sockets.iter().filter(|(_, change)| *change > 0).map(|(at, _)| *at).collect(), most.unwrap_or(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_machine_sees_the_same_pace_whether_one_worker_serves_it_or_five() {
    const PATHS: usize = 8;
    let spacing = Duration::from_millis(250);
    // Between the database's word and the relay's accept lies a scheduler of a busy machine.
    let jitter = Duration::from_millis(150);
    for workers in [1, 5] {
        let Some(test) = polite().await else { return };
        let events = Factory::new(31).events(20);
        let relay = ScriptedRelay::start(Script::honest(&events, 500)).await;
        let urls: Vec<String> = (0..PATHS).map(|path| format!("{}/p{path}", relay.url())).collect();
        seed_relays(&test, &urls).await;
        let mut environment = environment(&test.url(Role::Writer), &test.url(Role::Refresher));
        environment.insert("BIGBROTR_FLEET_HOST_JOBS".to_owned(), "2".to_owned());
        environment.insert("BIGBROTR_FLEET_HOST_SPACING_MS".to_owned(), spacing.as_millis().to_string());
        let fleet = Fleet::start(&environment, 2, workers);
        until(&test, ALIVE, "8").await;
        until(&test, PROVED, "8").await;
        fleet.stop().await;
        let (opened, most) = audit(&relay);
        assert!(opened.len() >= 3 * PATHS, "each is validated, monitored and read: {}", opened.len());
        assert!(most <= 2, "{workers} workers had {most} sockets open at once");
        for (i, first) in opened.iter().enumerate() {
            for (n, later) in opened[i..].iter().enumerate().skip(1) {
                let least = spacing * u32::try_from(n).unwrap();
                let took = Duration::from_millis(later - first);
                assert!(took + jitter >= least, "{workers} workers: {n} starts in {took:?}");
            }
        }
    }
}
