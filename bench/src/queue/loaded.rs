//! What a claim costs, and how fast the operators' views answer, when much is scheduled and remembered.

use std::time::Duration;

use anyhow::{Context, ensure};
use shared::clock;
use shared::db::{Claimed, Db, Finished, NewJob, Registration};
use shared::models::Verdict;
use sqlx::PgConnection;
use tests::pg::{Role, TestDb};
use tokio::time::Instant;

use super::Options;
use super::cluster::{Cluster, settle, writer};
use super::jobs::{RELAYS, enqueue, relay};
use super::seed::{self, Amounts};
use crate::figure::{Figure, Goal, Report, median, percentile};

/// Jobs asked for per claim.
const FREE: u32 = 64;
/// Claims per repetition.
const CLAIMS: u32 = 300;
/// Times each view is asked per repetition.
const ASKED: u32 = 5;
/// Longest a view may take, milliseconds.
const VIEW_MS: f64 = 50.0;

/// Each with its name.
const VIEWS: [(&str, &str); 9] = [
    ("queue_depth", "SELECT count(*) FROM (SELECT * FROM queue_depth OFFSET 0) v"),
    ("jobs_running", "SELECT count(*) FROM (SELECT * FROM jobs_running OFFSET 0) v"),
    ("workers", "SELECT count(*) FROM (SELECT * FROM workers OFFSET 0) v"),
    ("relay_due", "SELECT count(*) FROM (SELECT * FROM relay_due ORDER BY due_at LIMIT 1000) v"),
    (
        "relay_due by overdue_s",
        "SELECT count(*) FROM (SELECT * FROM relay_due WHERE overdue_s > 60 ORDER BY overdue_s DESC LIMIT 20) v",
    ),
    ("autoscale_desired", "SELECT count(*) FROM (SELECT * FROM autoscale_desired OFFSET 0) v"),
    (
        "job_history of a target",
        "SELECT count(*) FROM (SELECT * FROM job_history h WHERE h.target = 'wss://r77.example' \
         ORDER BY h.finished_at DESC LIMIT 100) v",
    ),
    (
        "job_history of the last hour",
        "SELECT count(*) FROM (SELECT * FROM job_history h WHERE h.kind = 'monitor' AND h.state = 'dead' \
         AND h.finished_at > now() - interval '1 hour' ORDER BY h.finished_at DESC LIMIT 100) v",
    ),
    (
        "job_history of a job",
        "SELECT count(*) FROM (SELECT * FROM job_history h WHERE h.job_id = \
         (SELECT max(j.id) FROM apalis.jobs j)) v",
    ),
];

/// Seeds, then claims on every database in turns, then asks the views.
pub(crate) async fn run(cluster: &Cluster, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let amounts = Amounts::new(options.quick);
    let (empty, full, cold) =
        (cluster.migrated().await?, cluster.migrated().await?, cluster.migrated().await?);
    seed::fill(&full, amounts).await?;
    seed::cool(&cold, amounts).await?;
    let mut sides = [Side::new(&empty).await?, Side::new(&full).await?, Side::new(&cold).await?];
    for _ in 0..options.n {
        for side in &mut sides {
            side.measure().await?;
        }
    }
    let [none, ahead, cooling] = &sides;
    let figure = |name: &str, ours: f64, reference: f64, against, goal| Figure {
        bench: "queue",
        name: name.to_owned(),
        ours,
        reference,
        against,
        unit: "ms",
        goal,
        n: options.n,
    };
    let against = "the same claims on tables with nothing else in them";
    let limit = Goal::RatioAtMost(2.0);
    report.add(&figure("claim_p99_ratio", median(&ahead.p99), median(&none.p99), against, limit));
    report.add(&figure("claim_p50_ratio", median(&ahead.p50), median(&none.p50), against, Goal::Stated));
    let (ours, reference) = (median(&cooling.p99), median(&none.p99));
    report.add(&figure("claim_cooling_host_ratio", ours, reference, against, limit));
    let (slowest, name) = views(&full, options.n).await?;
    let bare = timed(&mut full.connect(Role::Superuser).await, "SELECT count(*) FROM apalis.jobs").await?;
    report.add(&figure("views_ms", slowest, bare, "a bare count of the live jobs", Goal::Below(VIEW_MS)));
    eprintln!("bench: the slowest view is {name}");
    Ok(())
}

/// One database and what claims cost on it, milliseconds.
struct Side {
    db: Db,
    worker: Registration,
    /// Targets used so far: every round takes new ones.
    used: u32,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Side {
    async fn new(test: &TestDb) -> anyhow::Result<Self> {
        let worker = worker();
        let db = writer(test)?;
        db.job_heartbeat(&worker).await?;
        Ok(Self { db, worker, used: 0, p50: vec![], p99: vec![] })
    }

    async fn measure(&mut self) -> anyhow::Result<()> {
        let jobs: Vec<NewJob> = (self.used..self.used + FREE * CLAIMS).map(relay).collect();
        self.used += FREE * CLAIMS;
        enqueue(&self.db, &jobs).await?;
        self.db.job_heartbeat(&self.worker).await?;
        let mut times = claims(&self.db, &self.worker.worker, RELAYS, CLAIMS).await?;
        // The first call on a connection plans.
        times.drain(..5);
        self.p50.push(percentile(&times, 50));
        self.p99.push(percentile(&times, 99));
        Ok(())
    }
}

/// A worker whose lease outlasts the benchmark.
pub(crate) fn worker() -> Registration {
    Registration {
        worker: format!("bench-{}", clock::random_hex(4)),
        lease: Duration::from_secs(7_200),
        vantage: "bench".to_owned(),
        queues: vec![(RELAYS.to_owned(), FREE)],
        traffic: Vec::new(),
        listens: false,
    }
}

/// Times claims of full batches, milliseconds; what they bring is finished between them.
pub(crate) async fn claims(db: &Db, worker: &str, queue: &str, n: u32) -> anyhow::Result<Vec<f64>> {
    let wanted = [(queue.to_owned(), FREE)];
    let mut times = Vec::new();
    for _ in 0..n {
        let began = Instant::now();
        let claimed = db.job_claim(worker, &wanted).await?;
        times.push(began.elapsed().as_secs_f64() * 1_000.0);
        ensure!(claimed.len() == FREE as usize, "a claim brought {} of {FREE} ready jobs", claimed.len());
        let done: Vec<Finished> = claimed.iter().map(completed).collect();
        ensure!(db.job_finish(worker, &done).await?.len() == done.len(), "a fence was lost");
    }
    Ok(times)
}

fn completed(claimed: &Claimed) -> Finished {
    Finished {
        job: claimed.job.clone(),
        attempt: claimed.attempt,
        verdict: Verdict::Complete,
        delay: Duration::ZERO,
        result: "{}".to_owned(),
    }
}

/// The slowest of the views, by the median of its answers, and its name.
async fn views(full: &TestDb, n: u32) -> anyhow::Result<(f64, &'static str)> {
    // Something runs while they are asked.
    let (db, worker) = (writer(full)?, worker());
    db.job_heartbeat(&worker).await?;
    let jobs: Vec<NewJob> = (10_000_000..10_000_000 + FREE).map(relay).collect();
    enqueue(&db, &jobs).await?;
    db.job_claim(&worker.worker, &[(RELAYS.to_owned(), FREE)]).await?;
    settle(full, &["apalis.jobs", "apalis.workers"]).await;
    let mut reader = full.connect(Role::Reader).await;
    let mut slowest = (0.0, "");
    for (name, sql) in VIEWS {
        let mut times = Vec::new();
        timed(&mut reader, sql).await.with_context(|| format!("asking {name}"))?;
        for _ in 0..n * ASKED {
            times.push(timed(&mut reader, sql).await?);
        }
        let middle = median(&times);
        if middle > slowest.0 {
            slowest = (middle, name);
        }
    }
    Ok(slowest)
}

async fn timed(connection: &mut PgConnection, sql: &'static str) -> anyhow::Result<f64> {
    let began = Instant::now();
    sqlx::query_scalar::<_, i64>(sql).fetch_one(connection).await?;
    Ok(began.elapsed().as_secs_f64() * 1_000.0)
}
