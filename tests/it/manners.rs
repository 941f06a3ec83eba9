//! Hosts and permits under random claims, crashes and expiries: what must hold after every step, whoever did what.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sqlx::{PgConnection, Row};
use tests::pg::Role;

use super::model::{at, rows};
use super::support::migrated;

/// Few of each, so that they meet; four paths of each host.
const HOSTS: usize = 3;
const TARGETS: usize = 12;
const WORKERS: usize = 3;
const LEASE: i64 = 20;
const LIMIT: i64 = 30;
/// What the fleet is allowed.
const PERMITS: i64 = 4;
const HOST_JOBS: i64 = 2;
const SPACING: i64 = 2;

/// One step.
#[derive(Debug, Clone)]
enum Op {
    Enqueue { target: usize, class: i16 },
    Beat { worker: usize },
    Claim { worker: usize, free: i32 },
    Finish { nth: usize, verdict: usize, delay: i64 },
    Rescue,
    Wait { seconds: i64 },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..TARGETS, 0_i16..4).prop_map(|(target, class)| Op::Enqueue { target, class }),
        3 => (0..WORKERS).prop_map(|worker| Op::Beat { worker }),
        6 => (0..WORKERS, 1_i32..5).prop_map(|(worker, free)| Op::Claim { worker, free }),
        3 => (0_usize..40, 0_usize..3, 0_i64..10).prop_map(|(nth, verdict, delay)| Op::Finish { nth, verdict, delay }),
        1 => Just(Op::Rescue),
        3 => (1_i64..8).prop_map(|seconds| Op::Wait { seconds }),
    ]
}

const VERDICTS: [&str; 3] = ["complete", "retry", "snooze"];

fn target(n: usize) -> String {
    format!("wss://h{}.example/{n}", n % HOSTS)
}

/// What was seen.
#[derive(Debug, Default)]
struct Seen {
    now: i64,
    /// Attempts ever handed out: job, worker, attempt.
    handed: Vec<(String, usize, i32)>,
    /// When something last started on a host.
    started: BTreeMap<String, i64>,
}

async fn step(db: &mut PgConnection, seen: &mut Seen, op: &Op) {
    let now = at(seen.now);
    match op {
        Op::Wait { seconds } => seen.now += seconds,
        Op::Enqueue { target: n, class } => {
            let sql = format!(
                "SELECT job_enqueue(ARRAY['sync'], ARRAY['clearnet'], ARRAY['{}'], ARRAY[{now}], ARRAY[10], ARRAY[{LIMIT}], ARRAY[3], {now}, ARRAY[{class}::smallint])",
                target(*n)
            );
            rows(db, sql).await;
        }
        Op::Beat { worker } => {
            let sql = format!(
                "SELECT job_id FROM job_heartbeat('w{worker}', {LEASE}, 'v', '1', ARRAY['sync.clearnet'], 8, {now})"
            );
            rows(db, sql).await;
        }
        Op::Claim { worker, free } => {
            claim(db, seen, *worker, *free).await;
        }
        Op::Finish { nth, verdict, delay } if !seen.handed.is_empty() => {
            let (job, worker, attempt) = &seen.handed[nth % seen.handed.len()];
            let verdict = VERDICTS[*verdict];
            let sql = format!(
                "SELECT job_finish('w{worker}', ARRAY['{job}'], ARRAY[{attempt}], ARRAY['{verdict}'], ARRAY[{delay}::float8], ARRAY['{{}}'], {now})"
            );
            rows(db, sql).await;
        }
        Op::Finish { .. } => {}
        Op::Rescue => {
            rows(db, format!("SELECT job_rescue(1000, {now})")).await;
        }
    }
}

/// Claims as a worker that knows what it runs; returns how many it got.
async fn claim(db: &mut PgConnection, seen: &mut Seen, worker: usize, free: i32) -> usize {
    let now = at(seen.now);
    let sql = format!(
        "SELECT c.job_id, c.attempt, c.target, (SELECT j.run_at <= {now} FROM apalis.jobs j WHERE j.id = c.job_id) AS due
         FROM job_claim('w{worker}', ARRAY['sync.clearnet'], ARRAY[{free}], {now},
                        ARRAY(SELECT count(*)::integer FROM apalis.jobs WHERE lock_by = 'w{worker}' AND status = 'Running'), 0) c"
    );
    let got = rows(db, sql).await;
    assert!(got.len() <= usize::try_from(free).unwrap(), "no more than its slots");
    for row in &got {
        let target: String = row.get("target");
        assert!(row.get::<bool, _>("due"), "{target} is not due");
        let host = target.split('/').nth(2).unwrap().to_owned();
        let before = seen.started.insert(host.clone(), seen.now);
        assert!(before.is_none_or(|at| at + SPACING <= seen.now), "{host}: {before:?} and {}", seen.now);
        let attempt = (row.get::<String, _>("job_id"), worker, row.get("attempt"));
        assert!(!seen.handed.contains(&attempt), "handed out twice: {attempt:?}");
        seen.handed.push(attempt);
    }
    got.len()
}

/// Nobody is over a limit.
async fn check(db: &mut PgConnection, seen: &Seen) {
    let sql = format!(
        "SELECT coalesce((SELECT max(n) FROM (SELECT count(*) AS n FROM apalis.jobs WHERE status = 'Running' GROUP BY host) x), 0) AS host,
                (SELECT count(*) FROM apalis.jobs j JOIN apalis.workers w ON w.id = j.lock_by
                 WHERE j.status = 'Running' AND w.lease_until > {now}) AS network",
        now = at(seen.now)
    );
    let row = &rows(db, sql).await[0];
    assert!(row.get::<i64, _>("host") <= HOST_JOBS, "a host bears more than {HOST_JOBS}");
    assert!(row.get::<i64, _>("network") <= PERMITS, "the network runs more than {PERMITS}");
}

/// Whatever state it was left in, workers that live and finish bring the queue to its end.
async fn drain(db: &mut PgConnection, seen: &mut Seen) {
    for _ in 0..80 {
        if rows(db, "SELECT FROM apalis.jobs LIMIT 1".to_owned()).await.is_empty() {
            return;
        }
        seen.now += SPACING;
        rows(db, format!("SELECT job_rescue(1000, {})", at(seen.now))).await;
        for worker in 0..WORKERS {
            step(db, seen, &Op::Beat { worker }).await;
            let got = claim(db, seen, worker, 4).await;
            check(db, seen).await;
            for back in 0..got {
                let nth = seen.handed.len() - 1 - back;
                step(db, seen, &Op::Finish { nth, verdict: 0, delay: 0 }).await;
            }
        }
    }
    panic!("jobs are left that nobody gets");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_order_of_events_overloads_a_host_or_a_network_or_strands_a_job() {
    let Some(test) = migrated().await else { return };
    test.execute(&format!(
        "UPDATE fleet_limit SET host_jobs = {HOST_JOBS}, host_spacing_ms = {SPACING} * 1000;
         UPDATE network_limit SET permits = {PERMITS} WHERE network = 'clearnet'"
    ))
    .await;
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        let mut runner = TestRunner::new(Config {
            cases: 20,
            failure_persistence: None,
            max_shrink_iters: 100,
            ..Config::default()
        });
        runner
            .run(&prop::collection::vec(op(), 1..60), |ops| {
                runtime.block_on(async {
                    let mut db = test.connect(Role::Superuser).await;
                    rows(&mut db, "WITH a AS (DELETE FROM apalis.jobs), b AS (DELETE FROM job_history), c AS (DELETE FROM apalis.workers), d AS (DELETE FROM network_lease), e AS (DELETE FROM host_state) SELECT 1".to_owned()).await;
                    rows(&mut db, "UPDATE queue_cursor SET ran_at = '-infinity', host = '' RETURNING 1".to_owned()).await;
                    let mut seen = Seen::default();
                    for op in &ops {
                        step(&mut db, &mut seen, op).await;
                        check(&mut db, &seen).await;
                    }
                    drain(&mut db, &mut seen).await;
                });
                Ok(())
            })
            .unwrap();
    });
}
