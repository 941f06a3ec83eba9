//! Whether a snapshot held open for long (a backup, an analyst) slows the queue: nothing dead can be removed
//! while it stands.

use std::time::Duration;

use anyhow::ensure;
use shared::db::NewJob;
use sqlx::{Connection, Executor};
use tests::pg::Role;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Options;
use super::cluster::{Cluster, writer};
use super::jobs::{TASKS, enqueue, task};
use super::loaded::{claims, worker};
use super::worker::{Arguments, poll_ms};
use crate::figure::{Figure, Goal, Report, percentile};

/// Offered per tick, ten ticks a second: 500 jobs/s.
const OFFERED: u32 = 50;
const TICK: Duration = Duration::from_millis(100);
/// Processes and slots of each.
const WORKERS: u32 = 4;
const SLOTS: u32 = 16;
/// Claims timed at the end.
const CLAIMS: u32 = 50;
/// Jobs per timed claim.
const FREE: u32 = 64;

/// What a run showed.
struct Outcome {
    jobs_per_s: f64,
    claim_p95_ms: f64,
}

/// A clean run and one under a held snapshot, once each: they are long.
pub(crate) async fn run(cluster: &Cluster, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let (clean_s, held_s) = if options.quick { (30, 60) } else { (120, 600) };
    let clean = offered(cluster, Duration::from_secs(clean_s), false).await?;
    let held = offered(cluster, Duration::from_secs(held_s), true).await?;
    let against = "the same without the snapshot";
    report.add(&Figure {
        bench: "queue",
        name: "held_snapshot_ratio".to_owned(),
        ours: held.jobs_per_s,
        reference: clean.jobs_per_s,
        against,
        unit: "jobs/s",
        goal: Goal::RatioAtLeast(0.9),
        n: 1,
    });
    report.add(&Figure {
        bench: "queue",
        name: "held_snapshot_claim_p95_ms".to_owned(),
        ours: held.claim_p95_ms,
        reference: clean.claim_p95_ms,
        against,
        unit: "ms",
        goal: Goal::Stated,
        n: 1,
    });
    Ok(())
}

async fn offered(cluster: &Cluster, length: Duration, hold: bool) -> anyhow::Result<Outcome> {
    let test = cluster.migrated().await?;
    let db = writer(&test)?;
    let mut holder = test.connect(Role::Superuser).await;
    if hold {
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM apalis.jobs").await?;
    }
    let arguments = Arguments {
        url: test.url(Role::Writer),
        queue: TASKS.to_owned(),
        slots: SLOTS,
        poll_ms: poll_ms()?,
        peer: false,
        listen: false,
    };
    let mut processes = (0..WORKERS).map(|_| arguments.start()).collect::<anyhow::Result<Vec<_>>>()?;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (began, mut next) = (Instant::now(), 0);
    while began.elapsed() < length {
        ticks.tick().await;
        let jobs: Vec<NewJob> = (next..next + OFFERED).map(task).collect();
        next += OFFERED;
        db.job_enqueue(&jobs).await?;
    }
    let seconds = began.elapsed().as_secs_f64();
    for process in &mut processes {
        process.check()?;
    }
    // Completed within the offer, not caught up on later.
    let mut admin = test.connect(Role::Superuser).await;
    let done: i64 = sqlx::query_scalar("SELECT count(*) FROM job_history").fetch_one(&mut admin).await?;
    drop(processes);
    let worker = worker();
    db.job_heartbeat(&worker).await?;
    let jobs: Vec<NewJob> = (next..next + FREE * CLAIMS * 2).map(task).collect();
    enqueue(&db, &jobs).await?;
    let times = claims(&db, &worker.worker, TASKS, CLAIMS).await?;
    if hold {
        let alive: i64 =
            sqlx::query_scalar("SELECT count(*) FROM apalis.jobs").fetch_one(&mut holder).await?;
        ensure!(alive == 0, "the snapshot did not stand: it sees {alive} jobs");
    }
    holder.close().await?;
    Ok(Outcome {
        jobs_per_s: f64::from(i32::try_from(done)?) / seconds,
        claim_p95_ms: percentile(&times, 95),
    })
}
