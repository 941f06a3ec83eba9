//! `scale`: ten thousand relays and as many as twenty workers on one machine, to see where the first wall is.
//!
//! Each relay is asked, checked and read once: the same work however many workers share it. What PostgreSQL takes of
//! the machine, what the workers take and what the relays take is told apart, since they all run on it; nothing is
//! reckoned beyond what was seen. Real programs, a durable server, the queue, politeness with its defaults.

mod relays;
mod sample;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use shared::clock;
use shared::db::NewCandidate;
use shared::models::{AddressPolicy, RelayUrl};
use sqlx::PgConnection;
use tests::pg::{Role, TestDb};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::figure::{Figure, Goal, Report};
use crate::process::{Process, cpu_s, family_cpu_s};
use crate::queue::{Cluster, writer};
use relays::Relays;
use sample::{Counters, Sessions};

pub(crate) use relays::{Arguments as RelaysArguments, run as serve_relays};

/// Processes of relays.
const PROCESSES: usize = 2;
/// Between two looks at how far they are.
const LOOK: Duration = Duration::from_secs(1);
/// How long a fleet with nothing to do is watched.
const REST: Duration = Duration::from_secs(15);
/// Options of the server: statements are counted, every worker may have its connections, and it has the memory of a
/// small machine.
const SERVER: &str = "-c shared_preload_libraries=pg_stat_statements -c max_connections=400 -c shared_buffers=1GB -c max_wal_size=8GB";

/// How to measure.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Workers, one run for each number.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 5, 10, 20], value_parser = clap::value_parser!(u16).range(1..=20))]
    workers: Vec<u16>,
    /// Relays.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u16).range(100..=i64::from(relays::MOST)))]
    relays: u16,
    /// Seconds a run may take; what was done by then is what is told.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(10..=3_600))]
    limit_s: u64,
    /// A tenth of the relays and a minute a run: a look, not the figures.
    #[arg(long)]
    quick: bool,
    /// Gives the server the first processor and everything else the others, so that either shows when it is full.
    #[arg(long)]
    split: bool,
}

/// What one number of workers showed.
struct Run {
    /// Completed per second, first time each, between the 10th and the 90th percent: validate, monitor, sync.
    per_s: [f64; 3],
    /// Relays that were asked, checked and read.
    done: f64,
    seconds: f64,
    server_s: f64,
    workers_s: f64,
    scheduler_s: f64,
    relays_s: f64,
    machine: (f64, f64),
    sessions: Sessions,
    commits: f64,
    wal_bytes: f64,
    deadlocks: f64,
    workers_mib: f64,
    /// Processors of the server and of the fleet while nothing is due.
    rest: (f64, f64),
    missing: f64,
}

/// See the module.
pub(crate) async fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let mut options = options.clone();
    if options.quick {
        options.relays = options.relays.min(1_000);
        options.limit_s = options.limit_s.min(60);
    }
    if options.split {
        let last = std::thread::available_parallelism()?.get() - 1;
        ensure!(last > 0, "one processor cannot be split");
        // What is started from here on inherits it.
        confine(std::process::id(), &format!("1-{last}"))?;
    }
    let relays = Relays::start(PROCESSES, options.relays).await?;
    for workers in &options.workers {
        let run = Box::pin(measure(&options, *workers, &relays)).await?;
        eprintln!("bench: {workers} workers: sessions on average: {}", run.sessions.line());
        add(report, *workers, options.relays, &run);
    }
    Ok(())
}

fn add(report: &mut Report, workers: u16, relays: u16, run: &Run) {
    let mut add = |name: &str, ours: f64, unit, goal| {
        report.add(&Figure::alone("scale", format!("{name}_workers_{workers}"), ours, unit, goal));
    };
    let (thousands, seconds) = (run.done / 1_000.0, run.seconds);
    add("relays_done", run.done, "relays", Goal::Stated);
    add("relays_per_s", run.done / seconds, "relays/s", Goal::Stated);
    for (name, per_s) in ["validate_per_s", "monitor_per_s", "sync_per_s"].into_iter().zip(run.per_s) {
        add(name, per_s, "1/s", Goal::Stated);
    }
    add("pg_cpu_s_per_1k", run.server_s / thousands, "s", Goal::Stated);
    add("worker_cpu_s_per_1k", run.workers_s / thousands, "s", Goal::Stated);
    add("scheduler_cpu_s_per_1k", run.scheduler_s / thousands, "s", Goal::Stated);
    add("mock_cpu_s_per_1k", run.relays_s / thousands, "s", Goal::Stated);
    add("pg_cores", run.server_s / seconds, "processors", Goal::Stated);
    add("worker_cores", run.workers_s / seconds, "processors", Goal::Stated);
    add("machine_busy", run.machine.0 / run.machine.1, "of 1", Goal::Stated);
    add("transactions_per_s", run.commits / seconds, "1/s", Goal::Stated);
    add("wal_bytes_per_relay", run.wal_bytes / run.done, "bytes", Goal::Stated);
    add(
        "sessions_most",
        i32::try_from(run.sessions.most).map_or(f64::NAN, f64::from),
        "sessions",
        Goal::Stated,
    );
    add("sessions_running", run.sessions.mean("running"), "sessions", Goal::Stated);
    add("sessions_waiting_for_locks", run.sessions.mean("Lock"), "sessions", Goal::Stated);
    add("sessions_waiting_for_latches", run.sessions.mean("LWLock"), "sessions", Goal::Stated);
    add("sessions_waiting_for_disk", run.sessions.mean("IO"), "sessions", Goal::Stated);
    add("workers_rss_mib", run.workers_mib, "MiB", Goal::Stated);
    add("rest_pg_cores", run.rest.0, "processors", Goal::Stated);
    add("rest_fleet_cores", run.rest.1, "processors", Goal::Stated);
    add("deadlocks", run.deadlocks, "deadlocks", Goal::AtMost(0.0));
    if run.done >= f64::from(relays) {
        add("missing", run.missing, "observations", Goal::AtMost(0.0));
    }
}

/// From an empty database to every relay read.
async fn measure(options: &Options, workers: u16, relays: &Relays) -> anyhow::Result<Run> {
    let cluster = Cluster::start(SERVER)?;
    if options.split {
        let pid = cluster.postmaster;
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let children = children.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>()?;
        for pid in children.into_iter().chain([pid]) {
            confine(pid, "0")?;
        }
    }
    let test = cluster.migrated().await?;
    test.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements").await;
    let db = writer(&test)?;
    for chunk in (0..options.relays).collect::<Vec<_>>().chunks(1_000) {
        let candidates = chunk
            .iter()
            .map(|n| {
                Ok(NewCandidate {
                    url: RelayUrl::parse(&relays.url(*n), &AddressPolicy::local())?,
                    source: "seed",
                })
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        db.candidate_insert(&candidates).await?;
    }
    test.execute("ANALYZE").await;
    test.execute("CHECKPOINT").await;

    let mut admin = test.connect(Role::Superuser).await;
    let stop = CancellationToken::new();
    let mut watching = JoinSet::new();
    watching.spawn(Sessions::watch(test.connect(Role::Superuser).await, stop.clone()));
    let before = Counters::take(&mut admin).await?;
    let (began, machine) = (clock::monotonic_ms(), sample::machine_cpu_s()?);
    let server = family_cpu_s(cluster.postmaster);
    let mock: f64 = relays.pids().map(cpu_s).sum();
    let binaries = std::env::current_exe()?.parent().context("a directory of binaries")?.to_path_buf();
    let mut fleet = vec![service(&binaries, "scheduler", &test)?];
    for _ in 0..workers {
        fleet.push(service(&binaries, "worker", &test)?);
    }
    let limit = Duration::from_secs(options.limit_s);
    let mut done = 0;
    while done < i64::from(options.relays) && since(began) < limit {
        tokio::time::sleep(LOOK).await;
        for process in &mut fleet {
            process.check()?;
        }
        done = completed(&mut admin, "sync").await?;
    }
    let seconds = since(began).as_secs_f64();
    ensure!(done > 0, "no relay was read within {limit:?}");
    let server_s = family_cpu_s(cluster.postmaster) - server;
    let workers_s = fleet[1..].iter().map(|worker| cpu_s(worker.pid())).sum();
    let scheduler_s = cpu_s(fleet[0].pid());
    let relays_s = relays.pids().map(cpu_s).sum::<f64>() - mock;
    let after = Counters::take(&mut admin).await?;
    let busy = sample::machine_cpu_s()?;
    stop.cancel();
    let sessions = watching.join_next().await.context("the watcher was started")???;
    let mut per_s = [f64::NAN; 3];
    for (per_s, kind) in per_s.iter_mut().zip(["validate", "monitor", "sync"]) {
        *per_s = pace(&mut admin, kind).await?;
    }
    for line in sample::statements(&mut admin).await? {
        eprintln!("bench: {workers} workers: {line}");
    }
    let held: i64 = sqlx::query_scalar("SELECT count(*) FROM event_relay").fetch_one(&mut admin).await?;
    let workers_mib = fleet[1..].iter().map(Process::rss_mib).sum::<anyhow::Result<f64>>()?;
    let rest = at_rest(&cluster, &fleet, &test).await?;
    let number = |n: i64| i32::try_from(n).map_or(f64::NAN, f64::from);
    Ok(Run {
        per_s,
        done: number(done),
        seconds,
        server_s,
        workers_s,
        scheduler_s,
        relays_s,
        machine: (busy.0 - machine.0, busy.1 - machine.1),
        sessions,
        commits: number(after.commits - before.commits),
        wal_bytes: after.wal_bytes - before.wal_bytes,
        deadlocks: number(after.deadlocks - before.deadlocks),
        workers_mib,
        rest,
        missing: f64::from(options.relays) * number(i64::try_from(relays::HELD)?) - number(held),
    })
}

/// Processors of the server, and of scheduler and workers, while nothing is due.
async fn at_rest(cluster: &Cluster, fleet: &[Process], test: &TestDb) -> anyhow::Result<(f64, f64)> {
    test.execute("UPDATE schedule SET due_at = now() + interval '1 day'; DELETE FROM apalis.jobs WHERE status = 'Pending'").await;
    tokio::time::sleep(REST / 3).await;
    let all = || fleet.iter().map(|process| cpu_s(process.pid())).sum::<f64>();
    let (began, server, own) = (clock::monotonic_ms(), family_cpu_s(cluster.postmaster), all());
    tokio::time::sleep(REST).await;
    let seconds = since(began).as_secs_f64();
    Ok(((family_cpu_s(cluster.postmaster) - server) / seconds, (all() - own) / seconds))
}

fn since(began: u64) -> Duration {
    Duration::from_millis(clock::monotonic_ms() - began)
}

/// Relays of which a job of this kind has completed.
async fn completed(admin: &mut PgConnection, kind: &str) -> anyhow::Result<i64> {
    let sql = "SELECT count(DISTINCT target) FROM job_history WHERE kind = $1 AND network <> 'local' AND state = 'complete'";
    Ok(sqlx::query_scalar(sql).bind(kind).fetch_one(admin).await?)
}

/// First completions per second, between the 10th and the 90th percent of them.
async fn pace(admin: &mut PgConnection, kind: &str) -> anyhow::Result<f64> {
    let sql = "SELECT (count(*) * 0.8 / nullif(extract(epoch FROM percentile_disc(0.9) WITHIN GROUP (ORDER BY first) \
                       - percentile_disc(0.1) WITHIN GROUP (ORDER BY first)), 0))::float8 \
               FROM (SELECT min(finished_at) AS first FROM job_history \
                     WHERE kind = $1 AND network <> 'local' AND state = 'complete' GROUP BY target) h";
    Ok(sqlx::query_scalar::<_, Option<f64>>(sql).bind(kind).fetch_one(admin).await?.unwrap_or(f64::NAN))
}

/// Only these processors for a process, its threads, and whatever it starts.
fn confine(pid: u32, cpus: &str) -> anyhow::Result<()> {
    let status = Command::new("taskset")
        .args(["--all-tasks", "--pid", "--cpu-list", cpus, &pid.to_string()])
        .stdout(std::process::Stdio::null())
        .status()?;
    ensure!(status.success(), "taskset cannot confine {pid} to {cpus}");
    Ok(())
}

fn service(binaries: &Path, name: &str, db: &TestDb) -> anyhow::Result<Process> {
    let program = binaries.join(name);
    ensure!(program.exists(), "{name} is not built beside this program: cargo build --release --workspace");
    Process::start(
        &*Command::new(program)
            .arg("run")
            .env("DATABASE_URL", db.url(Role::Writer))
            .env("BIGBROTR_LOG_LEVEL", "error")
            .env("BIGBROTR_NETWORK_ALLOW_LOCAL", "true")
            // Nothing comes due a second time while it runs.
            .env("BIGBROTR_MONITOR_INTERVAL_S", "86400")
            .env("BIGBROTR_SYNC_INTERVAL_S", "86400"),
    )
}
