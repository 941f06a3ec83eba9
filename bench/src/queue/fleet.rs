//! What a fleet with nothing to do asks of the server, and how soon it notices that there is something.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use shared::clock;
use tests::pg::{Role, TestDb};

use super::cluster::{Cluster, writer};
use super::jobs::{TASKS, task};
use super::worker::{Arguments, poll_ms};
use super::{Options, peer};
use crate::figure::{Figure, Goal, Report, median, percentile};
use crate::process::Process;

/// Worker processes.
const WORKERS: u32 = 4;
/// Slots of each.
const SLOTS: u32 = 16;
/// From the start to the first count: connections, first ticks, first partitions.
const SETTLE: Duration = Duration::from_secs(15);
/// Jobs enqueued one by one per repetition.
const CALLS: u32 = 40;
/// Longest the last of them may take.
const LIMIT_MS: u64 = 60_000;

/// Options of the server that counts statements.
pub(crate) const COUNTING: &str = "-c shared_preload_libraries=pg_stat_statements";

/// Statements of others, without those that only frame them.
const STATEMENTS: &str = "
SELECT coalesce(sum(s.calls), 0)::bigint FROM pg_stat_statements s
WHERE s.toplevel AND s.dbid = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
  AND s.query !~* '^\\s*(BEGIN|COMMIT|ROLLBACK|START|SET|RESET)\\M'
  AND s.query NOT LIKE '%pg_stat_statements%'";

/// The same statements one by one, the most frequent first: what to look at when there are too many.
const FREQUENT: &str = "
SELECT sum(s.calls)::bigint, left(regexp_replace(s.query, '\\s+', ' ', 'g'), 100) FROM pg_stat_statements s
WHERE s.toplevel AND s.dbid = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
  AND s.query !~* '^\\s*(BEGIN|COMMIT|ROLLBACK|START|SET|RESET)\\M' AND s.query NOT LIKE '%pg_stat_statements%'
GROUP BY 2 ORDER BY 1 DESC LIMIT 6";

const AGAINST: &str = "apalis-postgres 1.0.0 as shipped, as many workers, the same interval of polls";

/// Idle statements, then waking up by polls, then by notifications.
pub(crate) async fn run(cluster: &Cluster, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let theirs = TestDb::empty_in(&cluster.url).await;
    peer::migrate(&theirs.url(Role::Superuser)).await?;
    if let Err(error) = idle(cluster, &theirs, options, report).await {
        report.missing("idle_queries_per_s", &error);
    }
    for (name, listen, limit_ms) in
        [("wake_up_p95_ms", false, 1_000.0), ("wake_up_listen_p95_ms", true, 50.0)]
    {
        let ours = cluster.migrated().await?;
        let (mut own, mut other) = (Vec::new(), Vec::new());
        for _ in 0..options.n {
            let times = waking(&ours, false, listen).await?;
            let [p50, p95, max] = [50, 95, 100].map(|percent| percentile(&times, percent));
            eprintln!("bench: {name}: p50 {p50:.1}, p95 {p95:.1}, longest {max:.1} ms");
            own.push(p95);
            other.push(percentile(&waking(&theirs, true, listen).await?, 95));
        }
        report.add(&Figure {
            bench: "queue",
            name: name.to_owned(),
            ours: median(&own),
            reference: median(&other),
            against: AGAINST,
            unit: "ms",
            goal: Goal::Below(limit_ms),
            n: options.n,
        });
    }
    Ok(())
}

async fn idle(
    cluster: &Cluster,
    theirs: &TestDb,
    options: &Options,
    report: &mut Report,
) -> anyhow::Result<()> {
    let length = Duration::from_secs(if options.quick { 20 } else { 60 });
    let ours = cluster.migrated().await?;
    for db in [&ours, theirs] {
        db.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements").await;
    }
    let binaries = std::env::current_exe()?.parent().context("a directory of binaries")?.to_path_buf();
    let mut processes = vec![service(&binaries, "scheduler", &ours)?];
    for _ in 0..WORKERS {
        processes.push(service(&binaries, "worker", &ours)?);
    }
    let own = statements_per_s(&ours, &mut processes, length).await?;
    drop(processes);
    let mut processes =
        (0..WORKERS).map(|_| start(theirs, true, false)).collect::<anyhow::Result<Vec<_>>>()?;
    let other = statements_per_s(theirs, &mut processes, length).await?;
    report.add(&Figure {
        bench: "queue",
        name: "idle_queries_per_s".to_owned(),
        ours: own,
        reference: other,
        against: AGAINST,
        unit: "1/s",
        goal: Goal::Below(10.0),
        n: 1,
    });
    Ok(())
}

fn service(binaries: &Path, name: &str, db: &TestDb) -> anyhow::Result<Process> {
    let program = binaries.join(name);
    ensure!(program.exists(), "{name} is not built beside this program: cargo build --release");
    Process::start(
        &*Command::new(program)
            .arg("run")
            .env("DATABASE_URL", db.url(Role::Writer))
            .env("BIGBROTR_LOG_LEVEL", "error"),
    )
}

/// Statements per second of processes that have settled.
async fn statements_per_s(db: &TestDb, processes: &mut [Process], length: Duration) -> anyhow::Result<f64> {
    tokio::time::sleep(SETTLE).await;
    let mut admin = db.connect(Role::Superuser).await;
    let before: i64 = sqlx::query_scalar(STATEMENTS).fetch_one(&mut admin).await?;
    tokio::time::sleep(length).await;
    let after: i64 = sqlx::query_scalar(STATEMENTS).fetch_one(&mut admin).await?;
    for process in processes {
        process.check()?;
    }
    let all = (SETTLE + length).as_secs();
    for (calls, query) in sqlx::query_as::<_, (i64, String)>(FREQUENT).fetch_all(&mut admin).await? {
        eprintln!("bench: idle: {calls} in {all} s: {query}");
    }
    Ok(f64::from(i32::try_from(after - before)?) / length.as_secs_f64())
}

fn start(db: &TestDb, peer: bool, listen: bool) -> anyhow::Result<Process> {
    Arguments {
        url: db.url(if peer { Role::Superuser } else { Role::Writer }),
        queue: TASKS.to_owned(),
        slots: SLOTS,
        poll_ms: poll_ms()?,
        peer,
        listen,
    }
    .start()
}

/// Milliseconds from enqueueing to starting, job by job, with the fleet idle before each.
async fn waking(db: &TestDb, peer: bool, listen: bool) -> anyhow::Result<Vec<f64>> {
    db.execute(if peer { "TRUNCATE apalis.jobs" } else { "TRUNCATE apalis.jobs, job_history" }).await;
    let mut admin = db.connect(Role::Superuser).await;
    let mut processes = (0..WORKERS).map(|_| start(db, peer, listen)).collect::<anyhow::Result<Vec<_>>>()?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let ours = writer(db)?;
    let mut theirs = peer::Pusher::connect(&db.url(Role::Superuser)).await?;
    for i in 0..CALLS {
        // No rhythm that the polls could share.
        let jitter = u64::from_str_radix(&clock::random_hex(1), 16)?;
        tokio::time::sleep(Duration::from_millis(400 + jitter * 2)).await;
        if peer {
            let now: i64 =
                sqlx::query_scalar("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")
                    .fetch_one(&mut admin)
                    .await?;
            theirs.push(vec![u64::try_from(now)?]).await?;
        } else {
            ours.job_enqueue(&[task(i)]).await?;
        }
    }
    let sql = if peer {
        "SELECT (extract(epoch FROM j.lock_at) * 1000 - convert_from(j.job, 'UTF8')::bigint / 1000.0)::float8 \
         FROM apalis.jobs j WHERE j.status = 'Done'"
    } else {
        "SELECT (extract(epoch FROM h.started_at - h.enqueued_at) * 1000)::float8 FROM job_history h"
    };
    let began = clock::monotonic_ms();
    loop {
        let times: Vec<f64> = sqlx::query_scalar(sql).fetch_all(&mut admin).await?;
        if times.len() == CALLS as usize {
            return Ok(times);
        }
        for process in &mut processes {
            process.check()?;
        }
        ensure!(clock::monotonic_ms() - began < LIMIT_MS, "{} of {CALLS} jobs were seen", times.len());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
