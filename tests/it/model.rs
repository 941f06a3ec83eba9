//! The queue's functions against a naive model: random claims, crashes, expiries, fences, in any order.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sqlx::{PgConnection, Row};
use tests::pg::Role;

use super::support::migrated;

/// Targets, workers and seconds are few, so that things meet.
const TARGETS: usize = 6;
const WORKERS: usize = 3;
const LEASE: i64 = 20;
const LIMIT: i64 = 60;
const ATTEMPTS: i32 = 3;

/// One step.
#[derive(Debug, Clone)]
enum Op {
    Enqueue {
        target: usize,
        class: i16,
        ahead: i64,
    },
    Beat {
        worker: usize,
    },
    Claim {
        worker: usize,
        free: i32,
    },
    /// Ends the nth attempt ever handed out, whoever may hold the job by now.
    Finish {
        nth: usize,
        verdict: usize,
        delay: i64,
    },
    Cancel {
        target: usize,
    },
    Rescue,
    Wait {
        seconds: i64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..TARGETS, 0_i16..4, prop_oneof![Just(0_i64), 1_i64..30]).prop_map(|(target, class, ahead)| Op::Enqueue { target, class, ahead }),
        3 => (0..WORKERS).prop_map(|worker| Op::Beat { worker }),
        5 => (0..WORKERS, 1_i32..4).prop_map(|(worker, free)| Op::Claim { worker, free }),
        5 => (0_usize..40, 0_usize..5, 0_i64..20).prop_map(|(nth, verdict, delay)| Op::Finish { nth, verdict, delay }),
        1 => (0..TARGETS).prop_map(|target| Op::Cancel { target }),
        3 => Just(Op::Rescue),
        3 => (1_i64..25).prop_map(|seconds| Op::Wait { seconds }),
    ]
}

/// Attempts of a job that was asked for while another ran.
const ATTEMPTS_ANEW: i32 = 3;

const VERDICTS: [&str; 5] = ["complete", "retry", "snooze", "cancel", "kill"];

/// A job as the model knows it.
#[derive(Debug, Clone, Default)]
struct Job {
    class: i16,
    run_at: i64,
    attempt: i32,
    allowed: i32,
    /// Worker and deadline of the running attempt.
    held: Option<(usize, i64)>,
    again: Option<i16>,
    cancelled: bool,
}

/// The model: what must be true whatever the database does to make it so.
#[derive(Debug, Default)]
struct Model {
    now: i64,
    jobs: BTreeMap<usize, Job>,
    leases: [Option<i64>; WORKERS],
    /// Attempts ever handed out: job id, target, worker, attempt.
    handed: Vec<(String, usize, usize, i32)>,
    ended: BTreeMap<&'static str, u64>,
    /// Ids of live jobs.
    ids: BTreeMap<usize, String>,
}

impl Model {
    fn lives(&self, worker: usize) -> bool {
        self.leases[worker].is_some_and(|until| until > self.now)
    }

    fn end(&mut self, target: usize, state: &'static str) {
        let job = self.jobs.remove(&target).unwrap_or_default();
        self.ids.remove(&target);
        *self.ended.entry(state).or_default() += 1;
        // A wish outlives the attempt it came during, however that ends: cancelling takes back earlier ones only.
        if let Some(class) = job.again {
            // Attempt numbers go on: they are part of the fence.
            let allowed = job.attempt + ATTEMPTS_ANEW;
            self.jobs.insert(
                target,
                Job { class, run_at: self.now, attempt: job.attempt, allowed, ..Job::default() },
            );
        }
    }

    /// The job goes back to the queue.
    fn back(&mut self, target: usize, run_at: i64, more: i32) {
        if let Some(job) = self.jobs.get_mut(&target) {
            job.held = None;
            job.run_at = run_at;
            job.allowed += more;
            job.class = job.again.take().map_or(job.class, |again| again.min(job.class));
        }
    }

    /// Its worker is gone.
    fn lose(&mut self, target: usize) {
        let job = &self.jobs[&target];
        if job.cancelled || job.attempt >= job.allowed {
            let state = if job.cancelled { "cancelled" } else { "dead" };
            self.end(target, state);
        } else {
            self.back(target, self.now, 0);
        }
    }

    fn held_by(&self, worker: usize) -> Vec<usize> {
        self.jobs
            .iter()
            .filter(|(_, job)| job.held.is_some_and(|(holder, _)| holder == worker))
            .map(|(t, _)| *t)
            .collect()
    }
}

/// The database's clock at a second of the model.
pub(crate) fn at(second: i64) -> String {
    format!("TIMESTAMPTZ '2026-01-01 00:00:00+00' + interval '{second} s'")
}

pub(crate) async fn rows(db: &mut PgConnection, sql: String) -> Vec<sqlx::postgres::PgRow> {
    sqlx::query(sqlx::AssertSqlSafe(sql)).persistent(false).fetch_all(db).await.unwrap()
}

async fn step(db: &mut PgConnection, model: &mut Model, op: &Op) {
    match op {
        Op::Wait { seconds } => model.now += seconds,
        Op::Enqueue { target, class, ahead } => {
            let sql = format!(
                "SELECT job_enqueue(ARRAY['refresh'], ARRAY['local'], ARRAY['t{target}'], ARRAY[{}], ARRAY[10], ARRAY[{LIMIT}], ARRAY[{ATTEMPTS}], {}, ARRAY[{class}::smallint]) AS n",
                at(model.now + ahead),
                at(model.now)
            );
            let fresh: i32 = rows(db, sql).await[0].get("n");
            let known = model.jobs.contains_key(target);
            assert_eq!(fresh, i32::from(!known), "one outstanding job per kind and target");
            let job = model.jobs.entry(*target).or_insert(Job {
                class: *class,
                run_at: model.now + ahead,
                allowed: ATTEMPTS,
                ..Job::default()
            });
            if known && job.held.is_some() {
                job.again = Some(job.again.map_or(*class, |again| again.min(*class)));
            } else if known && *class < job.class {
                job.class = *class;
                job.run_at = job.run_at.min(model.now + ahead);
            } else if known && *class == 0 && job.class == 0 {
                job.run_at = job.run_at.min(model.now + ahead);
            }
        }
        Op::Beat { worker } => {
            let sql = format!(
                "SELECT job_id FROM job_heartbeat('w{worker}', {LEASE}, 'v', '1', ARRAY['refresh.local'], 8, {})",
                at(model.now)
            );
            if !model.lives(*worker) && model.leases[*worker].is_some() {
                for target in model.held_by(*worker) {
                    model.lose(target);
                }
            }
            model.leases[*worker] = Some(model.now + LEASE);
            assert_eq!(
                rows(db, sql).await.len(),
                model.held_by(*worker).len(),
                "what the heartbeat says is held"
            );
        }
        Op::Claim { worker, free } => claim(db, model, *worker, *free).await,
        Op::Finish { nth, verdict, delay } => finish(db, model, *nth, VERDICTS[*verdict], *delay).await,
        Op::Cancel { target } => {
            let sql = format!(
                "SELECT cancelled, stopping FROM job_cancel('t{target}', NULL, NULL, 'x', '', {})",
                at(model.now)
            );
            let row = &rows(db, sql).await[0];
            let told: (i32, i32) = (row.get("cancelled"), row.get("stopping"));
            let running = model.jobs.get(target).map(|job| job.held.is_some());
            assert_eq!(told, (i32::from(running == Some(false)), i32::from(running == Some(true))));
            match running {
                Some(false) => model.end(*target, "cancelled"),
                Some(true) => {
                    if let Some(job) = model.jobs.get_mut(target) {
                        job.cancelled = true;
                        job.again = None;
                    }
                }
                None => {}
            }
        }
        Op::Rescue => {
            // Lost workers first; attempts beyond their own deadline when nobody was lost.
            let lost = |model: &Model| -> Vec<usize> {
                model
                    .jobs
                    .iter()
                    .filter(|(_, j)| j.held.is_some_and(|(w, _)| !model.lives(w)))
                    .map(|(t, _)| *t)
                    .collect()
            };
            let mut targets = lost(model);
            if targets.is_empty() {
                targets = model
                    .jobs
                    .iter()
                    .filter(|(_, j)| j.held.is_some_and(|(_, until)| until <= model.now))
                    .map(|(t, _)| *t)
                    .collect();
            }
            let row = &rows(db, format!("SELECT rescued, killed FROM job_rescue(1000, {})", at(model.now)))
                .await[0];
            let moved: i32 = row.get::<i32, _>("rescued") + row.get::<i32, _>("killed");
            assert_eq!(usize::try_from(moved).unwrap(), targets.len(), "what is rescued");
            for target in targets {
                model.lose(target);
            }
        }
    }
}

async fn claim(db: &mut PgConnection, model: &mut Model, worker: usize, free: i32) {
    let sql = format!(
        "SELECT job_id, target, attempt, class FROM job_claim('w{worker}', ARRAY['refresh.local'], ARRAY[{free}], {}, ARRAY[0], 0)",
        at(model.now)
    );
    let got = rows(db, sql).await;
    let mut due: Vec<i16> = model
        .jobs
        .values()
        .filter(|job| job.held.is_none() && job.run_at <= model.now)
        .map(|job| job.class)
        .collect();
    due.sort_unstable();
    let wanted = if model.lives(worker) { due.len().min(usize::try_from(free).unwrap()) } else { 0 };
    assert_eq!(got.len(), wanted, "a live worker gets what is due, up to its slots; another gets nothing");
    // The first of ten places is the best class there is.
    if let Some(row) = got.first() {
        assert_eq!(
            got.iter().map(|row| row.get::<i16, _>("class")).min(),
            Some(due[0]),
            "{}",
            row.get::<String, _>("target")
        );
    }
    for row in got {
        let target: usize = row.get::<String, _>("target")[1..].parse().unwrap();
        let job = model.jobs.get_mut(&target).expect("only what was asked for is handed out");
        assert!(job.held.is_none(), "t{target} runs already");
        job.attempt += 1;
        job.held = Some((worker, model.now + LIMIT));
        assert_eq!(row.get::<i32, _>("attempt"), job.attempt, "attempt numbers are never used twice");
        model.handed.push((row.get("job_id"), target, worker, job.attempt));
        model.ids.insert(target, row.get("job_id"));
    }
}

async fn finish(db: &mut PgConnection, model: &mut Model, nth: usize, verdict: &'static str, delay: i64) {
    if model.handed.is_empty() {
        return;
    }
    let (id, target, worker, attempt) = model.handed[nth % model.handed.len()].clone();
    let sql = format!(
        "SELECT f FROM job_finish('w{worker}', ARRAY['{id}'], ARRAY[{attempt}], ARRAY['{verdict}'], ARRAY[{delay}::float8], ARRAY['{{}}'], {}) f",
        at(model.now)
    );
    let held = model.ids.get(&target) == Some(&id)
        && model.jobs.get(&target).is_some_and(|job| {
            job.attempt == attempt && job.held.is_some_and(|(holder, _)| holder == worker)
        });
    assert_eq!(rows(db, sql).await.len(), usize::from(held), "only who holds the attempt may end it");
    if !held {
        return;
    }
    let job = model.jobs[&target].clone();
    match verdict {
        "complete" => model.end(target, "complete"),
        "cancel" => model.end(target, "cancelled"),
        _ if job.cancelled => model.end(target, "cancelled"),
        "kill" => model.end(target, "dead"),
        "retry" if job.attempt >= job.allowed => model.end(target, "dead"),
        "retry" => model.back(target, model.now + delay, 0),
        _ => model.back(target, model.now + delay, 1),
    }
}

/// A live job: target, whether it runs, attempt, attempts allowed, class, class wanted again, not before.
type Seen = (String, bool, i32, i32, i16, Option<i16>, i64);

/// The tables say what the model says.
async fn compare(db: &mut PgConnection, model: &Model) {
    let live = rows(
        db,
        "SELECT target, status, attempts, max_attempts, class, again_class,
                extract(epoch FROM run_at - TIMESTAMPTZ '2026-01-01 00:00:00+00')::bigint FROM apalis.jobs ORDER BY target"
            .to_owned(),
    )
    .await;
    let found: Vec<Seen> = live
        .iter()
        .map(|r| {
            let runs = r.get::<String, _>(1) == "Running";
            (r.get(0), runs, r.get(2), r.get(3), r.get(4), r.get(5), r.get(6))
        })
        .collect();
    let known: Vec<Seen> = model
        .jobs
        .iter()
        .map(|(t, j)| (format!("t{t}"), j.held.is_some(), j.attempt, j.allowed, j.class, j.again, j.run_at))
        .collect();
    assert_eq!(found, known);
    let ended = rows(db, "SELECT state, count(*) FROM job_history GROUP BY 1 ORDER BY 1".to_owned()).await;
    let ended: BTreeMap<String, i64> = ended.iter().map(|r| (r.get(0), r.get(1))).collect();
    let counted: BTreeMap<String, i64> =
        model.ended.iter().map(|(s, n)| ((*s).to_owned(), i64::try_from(*n).unwrap())).collect();
    assert_eq!(ended, counted);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_does_what_the_model_says_in_any_order_of_events() {
    let Some(test) = migrated().await else { return };
    let runtime = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        let mut runner = TestRunner::new(Config {
            cases: 40,
            failure_persistence: None,
            max_shrink_iters: 200,
            ..Config::default()
        });
        runner
            .run(&prop::collection::vec(op(), 1..80), |ops| {
                runtime.block_on(async {
                    let mut db = test.connect(Role::Superuser).await;
                    rows(&mut db, "WITH a AS (DELETE FROM apalis.jobs), b AS (DELETE FROM job_history), c AS (DELETE FROM apalis.workers) SELECT 1".to_owned()).await;
                    rows(&mut db, "UPDATE queue_cursor SET ran_at = '-infinity' RETURNING 1".to_owned()).await;
                    let mut model = Model::default();
                    for op in &ops {
                        step(&mut db, &mut model, op).await;
                        compare(&mut db, &model).await;
                    }
                });
                Ok(())
            })
            .unwrap();
    });
}
