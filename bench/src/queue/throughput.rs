//! Jobs per second of 64 slots in one process and split over several, ours and the peer's, and what a
//! thousand jobs cost in processor time, server included.
//!
//! A backlog is enqueued, the processes start, and the time between the tenth and the ninetieth percent of
//! the completions counts, as the database wrote them down: neither the start nor the last few jobs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::ensure;
use shared::clock;
use sqlx::{AssertSqlSafe, PgConnection};
use tests::pg::{Role, TestDb};

use super::cluster::{Cluster, settle, writer};
use super::jobs::{RELAYS, TASKS, enqueue, relay, task};
use super::worker::{Arguments, poll_ms};
use super::{Options, peer};
use crate::figure::{Figure, Goal, Report, median};
use crate::process::{Process, cpu_s, family_cpu_s};

/// Slots of all processes together.
const SLOTS: u32 = 64;
/// Over how many processes.
const SPLITS: [u32; 4] = [1, 2, 4, 8];
/// Longest a backlog may take.
const LIMIT: Duration = Duration::from_secs(300);
/// Between two looks at whether the backlog is gone.
const LOOK: Duration = Duration::from_millis(500);
/// Between two readings of the processor time.
const SAMPLE: Duration = Duration::from_millis(50);
/// So that the peer does not idle between two backlogs of its buffer.
const PEER_POLL_MS: u64 = 100;

const AGAINST: &str = "apalis-postgres 1.0.0 as shipped, same slots and processes";

/// Whose jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    /// Tasks of no host.
    Ours,
    /// Relays, each on a host of its own, within the network's limit.
    OursHosts,
    Peer,
}

/// What one backlog showed.
#[derive(Debug, Clone, Copy)]
struct Measured {
    jobs_per_s: f64,
    cpu_s_per_1k: f64,
}

/// Measures every split `n` times, ours and the peer in turns.
pub(crate) async fn run(cluster: &Cluster, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let bench = Bench {
        cluster,
        ours: cluster.migrated().await?,
        theirs: TestDb::empty_in(&cluster.url).await,
        jobs: if options.quick { 10_000 } else { 30_000 },
    };
    peer::migrate(&bench.theirs.url(Role::Superuser)).await?;
    let mut measured: BTreeMap<(Side, u32), Vec<Measured>> = BTreeMap::new();
    for _ in 0..options.n {
        for split in SPLITS {
            for side in [Side::Ours, Side::OursHosts, Side::Peer] {
                if side != Side::OursHosts || split == 1 {
                    measured.entry((side, split)).or_default().push(bench.backlog(side, split).await?);
                }
            }
        }
    }
    for figure in figures(&measured, options.n) {
        report.add(&figure);
    }
    Ok(())
}

fn figures(measured: &BTreeMap<(Side, u32), Vec<Measured>>, n: u32) -> Vec<Figure> {
    let values = |side, split| measured.get(&(side, split)).map_or(&[][..], Vec::as_slice);
    let rate = |side, split| median(&values(side, split).iter().map(|m| m.jobs_per_s).collect::<Vec<_>>());
    let cost = |side, split| median(&values(side, split).iter().map(|m| m.cpu_s_per_1k).collect::<Vec<_>>());
    let figure = |name: String, ours, reference, against, unit, goal| Figure {
        bench: "queue",
        name,
        ours,
        reference,
        against,
        unit,
        goal,
        n,
    };
    let mut figures = Vec::new();
    for (name, side) in [("jobs_per_s_64_slots", Side::Ours), ("jobs_per_s_64_slots_hosts", Side::OursHosts)]
    {
        let (ours, reference) = (rate(side, 1), rate(Side::Peer, 1));
        figures.push(figure(name.to_owned(), ours, reference, AGAINST, "jobs/s", Goal::RatioAtLeast(3.0)));
    }
    for split in SPLITS.into_iter().filter(|split| *split > 1) {
        let (ours, whole, theirs) = (rate(Side::Ours, split), rate(Side::Ours, 1), rate(Side::Peer, split));
        let name = format!("split_{split}");
        let against = "the same slots in one process";
        figures.push(figure(name, ours, whole, against, "jobs/s", Goal::RatioAtLeast(0.9)));
        let name = format!("split_{split}_peer");
        figures.push(figure(name, ours, theirs, AGAINST, "jobs/s", Goal::RatioAtLeast(3.0)));
    }
    for split in SPLITS {
        let name = format!("cpu_s_per_1k_jobs_split_{split}");
        let (ours, theirs) = (cost(Side::Ours, split), cost(Side::Peer, split));
        figures.push(figure(name, ours, theirs, AGAINST, "s", Goal::Stated));
    }
    figures
}

struct Bench<'a> {
    cluster: &'a Cluster,
    ours: TestDb,
    theirs: TestDb,
    jobs: u32,
}

impl Bench<'_> {
    /// One backlog from full to empty.
    async fn backlog(&self, side: Side, split: u32) -> anyhow::Result<Measured> {
        self.fill(side).await?;
        let db = if side == Side::Peer { &self.theirs } else { &self.ours };
        let arguments = Arguments {
            url: db.url(if side == Side::Peer { Role::Superuser } else { Role::Writer }),
            queue: if side == Side::OursHosts { RELAYS } else { TASKS }.to_owned(),
            slots: SLOTS / split,
            poll_ms: if side == Side::Peer { PEER_POLL_MS } else { poll_ms()? },
            peer: side == Side::Peer,
            listen: false,
        };
        let mut admin = db.connect(Role::Superuser).await;
        let mut processes = (0..split).map(|_| arguments.start()).collect::<anyhow::Result<Vec<_>>>()?;
        let meter = Meter::start(self.cluster.postmaster, &processes, &mut admin).await?;
        let done = match side {
            Side::Peer => "SELECT NOT EXISTS (SELECT FROM apalis.jobs WHERE status <> 'Done')",
            Side::Ours | Side::OursHosts => "SELECT NOT EXISTS (SELECT FROM apalis.jobs)",
        };
        let began = clock::monotonic_ms();
        while !sqlx::query_scalar::<_, bool>(done).fetch_one(&mut admin).await? {
            tokio::time::sleep(LOOK).await;
            for process in &mut processes {
                process.check()?;
            }
            let spent = Duration::from_millis(clock::monotonic_ms() - began);
            ensure!(spent < LIMIT, "{side:?} over {split} processes did not finish in {LIMIT:?}");
        }
        let readings = meter.stop();
        drop(processes);
        let (table, column) =
            if side == Side::Peer { ("apalis.jobs", "done_at") } else { ("job_history", "finished_at") };
        let (n, from, to) = percentiles(&mut admin, table, column).await?;
        ensure!(n == i64::from(self.jobs), "{side:?}: {n} of {} jobs completed", self.jobs);
        let counted = f64::from(self.jobs) * 0.8;
        let cpu = readings.at(to) - readings.at(from);
        Ok(Measured { jobs_per_s: counted / (to - from), cpu_s_per_1k: cpu / (counted / 1_000.0) })
    }

    /// The tables as on the first day, with the backlog enqueued.
    async fn fill(&self, side: Side) -> anyhow::Result<()> {
        if side == Side::Peer {
            self.theirs.execute("TRUNCATE apalis.jobs, apalis.workers").await;
            let mut pusher = peer::Pusher::connect(&self.theirs.url(Role::Superuser)).await?;
            pusher.push((0..u64::from(self.jobs)).collect()).await?;
            settle(&self.theirs, &["apalis.jobs"]).await;
            return Ok(());
        }
        self.ours
            .execute(
                "TRUNCATE apalis.jobs, apalis.workers, job_history, host_state, host_address, network_lease",
            )
            .await;
        let db = writer(&self.ours)?;
        let job = if side == Side::OursHosts { relay } else { task };
        enqueue(&db, &(0..self.jobs).map(job).collect::<Vec<_>>()).await?;
        db.close().await;
        settle(&self.ours, &["apalis.jobs", "host_state", "job_history"]).await;
        Ok(())
    }
}

/// How many completions, and when the tenth and the ninetieth percent of them were.
async fn percentiles(admin: &mut PgConnection, table: &str, column: &str) -> anyhow::Result<(i64, f64, f64)> {
    let sql = format!(
        "SELECT count(*), extract(epoch FROM percentile_disc(0.1) WITHIN GROUP (ORDER BY {column}))::float8, \
         extract(epoch FROM percentile_disc(0.9) WITHIN GROUP (ORDER BY {column}))::float8 FROM {table}"
    );
    Ok(sqlx::query_as(AssertSqlSafe(sql)).fetch_one(admin).await?)
}

/// Reads the processor time of a server and its clients again and again, by the database's clock.
struct Meter {
    stop: Arc<AtomicBool>,
    readings: JoinHandle<Vec<(f64, f64)>>,
}

/// (Unix seconds, processor seconds).
struct Readings(Vec<(f64, f64)>);

impl Meter {
    async fn start(postmaster: u32, processes: &[Process], admin: &mut PgConnection) -> anyhow::Result<Self> {
        let began = clock::monotonic_ms();
        let now = "SELECT extract(epoch FROM clock_timestamp())::float8";
        let epoch: f64 = sqlx::query_scalar(now).fetch_one(admin).await?;
        let pids: Vec<u32> = processes.iter().map(Process::pid).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let readings = std::thread::spawn(move || {
            let mut readings = Vec::new();
            while !told.load(Ordering::Relaxed) {
                let cpu = family_cpu_s(postmaster) + pids.iter().copied().map(cpu_s).sum::<f64>();
                let passed = Duration::from_millis(clock::monotonic_ms() - began).as_secs_f64();
                readings.push((epoch + passed, cpu));
                std::thread::sleep(SAMPLE);
            }
            readings
        });
        Ok(Self { stop, readings })
    }

    fn stop(self) -> Readings {
        self.stop.store(true, Ordering::Relaxed);
        Readings(self.readings.join().unwrap_or_default())
    }
}

impl Readings {
    /// Processor seconds at a moment, between the readings around it.
    fn at(&self, moment: f64) -> f64 {
        let after = self.0.partition_point(|(at, _)| *at < moment);
        match (after.checked_sub(1).and_then(|before| self.0.get(before)), self.0.get(after)) {
            (Some((t0, c0)), Some((t1, c1))) => c0 + (c1 - c0) * (moment - t0) / (t1 - t0),
            (Some((_, cpu)), None) | (None, Some((_, cpu))) => *cpu,
            (None, None) => f64::NAN,
        }
    }
}
