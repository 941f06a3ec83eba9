//! Whose turn it is where permits are few: every worker that has work comes to one, and none waits for ever.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use shared::db::{Claimed, Db, Exchange, Finished, NewJob, Wanted};
use shared::jobs::{Attempt, Handler, JobError, Report};
use shared::models::{JobKind, Verdict};
use shared::net::Traffic;
use shared::queue::{self, QueueOptions};
use shared::telemetry::{Health, Metrics};
use sqlx::{PgConnection, Row as _};
use tests::pg::Role;
use tokio_util::sync::CancellationToken;

use super::fleet::until;
use super::model::{at, rows};
use super::support::{handle, job, migrated, register, value};

const LEASE: Duration = Duration::from_secs(60);

fn tor(n: usize) -> Vec<NewJob> {
    (0..n)
        .map(|i| NewJob { network: "tor".to_owned(), ..job(JobKind::Monitor, &format!("ws://{i}.onion")) })
        .collect()
}

fn wanted(queue: &str, free: u32) -> Wanted {
    Wanted { queue: queue.to_owned(), free, running: 0, floors: [None; 4] }
}

/// Ends what it runs and asks for as much as its slots hold.
async fn round(db: &Db, worker: &str, slots: u32, running: &mut Vec<Claimed>) {
    exchange(db, worker, vec![wanted("monitor.tor", slots)], running).await;
}

/// Ends what it runs and asks for this.
async fn exchange(db: &Db, worker: &str, wanted: Vec<Wanted>, running: &mut Vec<Claimed>) {
    let finished = running
        .drain(..)
        .map(|claimed| Finished {
            job: claimed.job,
            attempt: claimed.attempt,
            verdict: Verdict::Complete,
            delay: Duration::ZERO,
            result: "{}".to_owned(),
        })
        .collect();
    let exchange = Exchange { finished, wanted, ..Exchange::default() };
    *running = db.job_exchange(worker, &exchange).await.unwrap().claimed;
}

#[tokio::test]
async fn who_comes_to_a_full_table_has_a_permit_when_the_first_job_ends() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    db.job_enqueue(&tor(400)).await.unwrap();
    let mut runs: [Vec<Claimed>; 6] = Default::default();
    for (i, running) in runs.iter_mut().enumerate() {
        register(&db, &format!("w{i}"), LEASE).await;
        // Five hold two each; the sixth finds nothing.
        round(&db, &format!("w{i}"), 2, running).await;
    }
    assert_eq!(runs.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2, 2, 2, 0]);
    for turn in 0..20 {
        for (i, running) in runs.iter_mut().enumerate() {
            round(&db, &format!("w{i}"), 2, running).await;
        }
        let used: Vec<usize> = runs.iter().map(Vec::len).collect();
        assert!(used.iter().all(|n| *n > 0), "round {turn}: {used:?}");
        assert_eq!(used.iter().sum::<usize>(), 10, "round {turn}: {used:?}");
    }
}

#[tokio::test]
async fn a_network_with_a_long_backlog_takes_no_place_of_another() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    // Each of them is wanted earlier, and by a class that goes first.
    let pressing = |i| NewJob {
        class: 1,
        slack: Duration::ZERO,
        ..job(JobKind::Monitor, &format!("wss://{i}.example"))
    };
    db.job_enqueue(&(0..3_000).map(pressing).collect::<Vec<_>>()).await.unwrap();
    let patient = |job| NewJob { class: 3, slack: Duration::from_secs(86_400), ..job };
    db.job_enqueue(&tor(60).into_iter().map(patient).collect::<Vec<_>>()).await.unwrap();
    register(&db, "w", LEASE).await;
    let mut running = Vec::new();
    for turn in 0..10 {
        let both = ["monitor.clearnet", "monitor.tor"];
        exchange(&db, "w", vec![wanted(both[0], 20), wanted(both[1], 6)], &mut running).await;
        let got = both.map(|queue| running.iter().filter(|claimed| claimed.queue == queue).count());
        assert_eq!(got, [20, 6], "round {turn}: what another network waits for does not count here");
    }
}

/// A fleet of one network: how many workers and permits, the slots of each, and how its jobs and polls fall.
#[derive(Debug, Clone)]
struct Fleet {
    permits: i64,
    slots: Vec<i64>,
    /// Seconds jobs run, taken in turns.
    runs: Vec<i64>,
    /// Who asks first, taken in turns.
    first: Vec<usize>,
}

fn fleet() -> impl Strategy<Value = Fleet> {
    (1_i64..8, prop::collection::vec(1_i64..5, 2..12)).prop_flat_map(|(permits, slots)| {
        (
            Just(permits),
            Just(slots),
            prop::collection::vec(1_i64..LONGEST, 3..20),
            prop::collection::vec(0_usize..12, 5),
        )
            .prop_map(|(permits, slots, runs, first)| Fleet { permits, slots, runs, first })
    })
}

/// No job of the model runs longer, seconds.
const LONGEST: i64 = 8;
/// How long a worker keeps its only permit while others have none, seconds (`network_borrow`).
const TURN: i64 = 5;
/// Seconds a model fleet is watched.
const WATCHED: i64 = 150;

/// One worker's second: ends what is due to end, asks for more, and says how many it runs.
async fn second(
    db: &mut PgConnection,
    fleet: &Fleet,
    worker: usize,
    now: i64,
    running: &mut BTreeMap<(String, i32), i64>,
    begun: &mut usize,
) {
    let over: Vec<(String, i32)> =
        running.iter().filter(|(_, until)| **until <= now).map(|(key, _)| key.clone()).collect();
    for key in &over {
        running.remove(key);
    }
    let list = |words: Vec<String>| words.join(",");
    let sql = format!(
        "SELECT what, job_id, attempt FROM job_exchange('w{worker}', ARRAY[{}]::text[], ARRAY[{}]::integer[], ARRAY[{}]::text[], ARRAY[{}]::float8[], ARRAY[{}]::text[],
             ARRAY['monitor.tor'], ARRAY[{}], ARRAY[{}], 0, NULL, p_now => {})",
        list(over.iter().map(|(job, _)| format!("'{job}'")).collect()),
        list(over.iter().map(|(_, attempt)| attempt.to_string()).collect()),
        list(over.iter().map(|_| "'snooze'".to_owned()).collect()),
        list(over.iter().map(|_| "0".to_owned()).collect()),
        list(over.iter().map(|_| "'{}'".to_owned()).collect()),
        fleet.slots[worker] - i64::try_from(running.len()).unwrap(),
        running.len(),
        at(now),
    );
    for row in rows(db, sql).await {
        if row.get::<String, _>("what") == "claimed" {
            let runs = fleet.runs[*begun % fleet.runs.len()];
            *begun += 1;
            running.insert((row.get("job_id"), row.get("attempt")), now + runs);
        }
    }
}

/// Watches a fleet in which everybody always has work; returns the longest time a worker had no permit, and the bound.
async fn watch(db: &mut PgConnection, fleet: &Fleet) -> (i64, i64) {
    let workers = fleet.slots.len();
    for sql in [
        "WITH a AS (DELETE FROM apalis.jobs), b AS (DELETE FROM network_lease), c AS (DELETE FROM apalis.workers) SELECT 1".to_owned(),
        format!("UPDATE network_limit SET permits = {} WHERE network = 'tor' RETURNING 1", fleet.permits),
        format!(
            "SELECT job_enqueue(array_agg('monitor'::text), array_agg('tor'::text), array_agg('ws://' || i || '.onion'), array_agg({0}),
                 array_agg(60), array_agg(600), array_agg(3), {0}) FROM generate_series(1, 60) i",
            at(0)
        ),
    ] {
        rows(db, sql).await;
    }
    for worker in 0..workers {
        let sql = format!(
            "SELECT * FROM job_heartbeat('w{worker}', 100000, 'v', '1', ARRAY['monitor.tor'], 8, {})",
            at(0)
        );
        rows(db, sql).await;
    }
    let mut running: Vec<BTreeMap<(String, i32), i64>> = vec![BTreeMap::new(); workers];
    let (mut since, mut longest, mut begun) = (vec![0; workers], 0, 0);
    for now in 1..WATCHED {
        let first = fleet.first[usize::try_from(now).unwrap() % fleet.first.len()];
        for turn in 0..workers {
            let worker = (first + turn) % workers;
            second(db, fleet, worker, now, &mut running[worker], &mut begun).await;
            let all: usize = running.iter().map(BTreeMap::len).sum();
            assert!(i64::try_from(all).unwrap() <= fleet.permits, "{all} run at {now}: {fleet:?}");
            if !running[worker].is_empty() {
                since[worker] = now;
            }
            longest = longest.max(now - since[worker]);
        }
    }
    let waves = (i64::try_from(workers).unwrap() + fleet.permits - 1) / fleet.permits;
    (longest, waves * (TURN + LONGEST + 2))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_worker_has_its_turn_within_a_bound_and_never_do_more_run_than_may() {
    let Some(test) = migrated().await else { return };
    let mut db = test.connect(Role::Superuser).await;
    let mut runner = TestRunner::default();
    for _ in 0..5 {
        let fleet = fleet().new_tree(&mut runner).unwrap().current();
        let (longest, bound) = watch(&mut db, &fleet).await;
        assert!(longest <= bound, "{longest} s without a permit, {bound} s are the bound: {fleet:?}");
    }
    // More workers than permits, by far; and as many.
    for permits in [1, 2, 11] {
        let fleet = Fleet { permits, slots: vec![4; 11], runs: vec![7, 1, 3], first: vec![0] };
        let (longest, bound) = watch(&mut db, &fleet).await;
        assert!(longest <= bound, "{longest} s without a permit, {bound} s are the bound: {fleet:?}");
    }
}

/// The seam: jobs that run until they are told to stop.
struct Busy;

impl Handler for Busy {
    fn run(&self, _: Attempt) -> BoxFuture<'static, Result<Report, JobError>> {
        std::future::pending().boxed()
    }
}

#[tokio::test]
async fn what_runs_in_a_full_queue_counts_against_the_permits_of_its_network() {
    const RUNNING: &str = "SELECT count(*)::text FROM apalis.jobs WHERE status = 'Running'";
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    test.execute("UPDATE network_limit SET permits = 5 WHERE network = 'tor'").await;
    let options = QueueOptions {
        worker: "full".to_owned(),
        vantage: "test".to_owned(),
        queues: vec![("monitor.tor".to_owned(), 4), ("sync.tor".to_owned(), 4)],
        lease: LEASE,
        poll: Duration::from_millis(50),
        grace: Duration::ZERO,
        listen_url: None,
        traffic: Traffic::default(),
    };
    let (stop, metrics) = (CancellationToken::new(), Metrics::new());
    let work =
        queue::run(db.clone(), options, Arc::new(Busy), metrics.clone(), Health::default(), stop.clone());
    let watch = async {
        db.job_enqueue(&tor(9)).await.unwrap();
        until(&test, RUNNING, "4").await;
        let syncs: Vec<NewJob> =
            tor(9).into_iter().map(|job| NewJob { kind: JobKind::Sync, ..job }).collect();
        db.job_enqueue(&syncs).await.unwrap();
        until(&test, RUNNING, "5").await;
        for _ in 0..20 {
            // bound: 20 looks, in which it asks for more a few times each
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(value(&test, RUNNING).await, "5", "five permits");
        }
        stop.cancel();
    };
    tokio::join!(work, watch);
}
