//! One fleet, one database, one scheduler and one worker, and what is measured of them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use shared::clock;
use sqlx::PgConnection;
use tests::mmdb::{self, Value};
use tests::pg::{Role, TestDb};

use super::mock::{self, Conduct, Fleet};
use crate::process::{Process, cpu_s, family_cpu_s};
use crate::queue::Cluster;

/// Longest a fleet may take.
const LIMIT: Duration = Duration::from_secs(300);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// What the geo and net checks look into, beside the fleet's authority.
const PLACES: &str = "places.mmdb";
const NETWORKS: &str = "networks.mmdb";

/// Where every relay of the fleet is, as the free files write it.
fn place() -> Value {
    Value::Map(vec![
        ("city", Value::Text("Berlin")),
        ("country_code", Value::Text("DE")),
        ("latitude", Value::Float(52.52)),
        ("longitude", Value::Float(13.405)),
        ("postcode", Value::Text("10115")),
        ("state1", Value::Text("Land Berlin")),
        ("timezone", Value::Text("Europe/Berlin")),
    ])
}

/// And in whose network.
fn network() -> Value {
    Value::Map(vec![
        ("autonomous_system_number", Value::Number(64_500)),
        ("autonomous_system_organization", Value::Text("Mock Networks")),
    ])
}

/// The mock fleet: its relays by conduct, in an order in which each conduct is spread evenly.
pub(super) struct Stage {
    pub(super) fleet: Fleet,
    pub(super) dir: PathBuf,
    _process: Process,
}

impl Stage {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join(format!("bigbrotr-bench-fleet-{}", clock::random_hex(6)));
        std::fs::create_dir_all(&dir)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("mock-fleet").arg("--dir").arg(&dir);
        let process = Process::start(&command)?;
        let fleet = mock::ready(&dir).await?;
        let entry = |record| mmdb::write(4, &[("127.0.0.0", 8, record)]);
        std::fs::write(dir.join(PLACES), entry(place()))?;
        std::fs::write(dir.join(NETWORKS), entry(network()))?;
        Ok(Self { fleet, dir, _process: process })
    }

    /// 85 of 100 are honest, 10 refuse, 5 hang: spread evenly.
    pub(super) fn relays(n: u16) -> Vec<(Conduct, u16)> {
        (0..n)
            .map(|i| match i % 20 {
                3 | 13 => (Conduct::Refusing, i),
                7 => (Conduct::Hanging, i),
                _ => (Conduct::Honest, i),
            })
            .collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

/// A scheduler and a worker at work.
pub(super) struct Crew {
    worker: Process,
    _scheduler: Process,
    began: f64,
}

/// What a run showed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    /// Completed per second between the 10th and the 90th percent of the completions.
    pub(super) per_s: f64,
    /// From the first start to the last end.
    pub(super) total_s: f64,
    /// Processor seconds of the worker per thousand.
    pub(super) worker_cpu_s_per_1k: f64,
    /// Processor seconds of the server per thousand.
    pub(super) pg_cpu_s_per_1k: f64,
    /// Most resident memory of the worker.
    pub(super) peak_mib: f64,
}

impl Crew {
    pub(super) async fn start(
        db: &TestDb,
        fleet: &Fleet,
        kind: &str,
        admin: &mut PgConnection,
    ) -> anyhow::Result<Self> {
        let binaries = std::env::current_exe()?.parent().context("a directory of binaries")?.to_path_buf();
        let worker = service(&binaries, "worker", db, fleet, kind)?;
        let scheduler = service(&binaries, "scheduler", db, fleet, kind)?;
        let began = now(admin).await?;
        Ok(Self { worker, _scheduler: scheduler, began })
    }

    /// Waits until so many targets have been done once since the start.
    pub(super) async fn work(
        &mut self,
        cluster: &Cluster,
        admin: &mut PgConnection,
        kind: &str,
        targets: u16,
    ) -> anyhow::Result<Outcome> {
        let (own, server) = (cpu_s(self.worker.pid()), family_cpu_s(cluster.postmaster));
        let began = clock::monotonic_ms();
        loop {
            let done: i64 = sqlx::query_scalar(
                "SELECT count(DISTINCT target) FROM job_history \
                 WHERE kind = $1 AND network <> 'local' AND state = 'complete' AND finished_at >= to_timestamp($2)",
            )
            .bind(kind)
            .bind(self.began)
            .fetch_one(&mut *admin)
            .await?;
            if done >= i64::from(targets) {
                break;
            }
            self.worker.check()?;
            let spent = Duration::from_millis(clock::monotonic_ms() - began);
            ensure!(spent < LIMIT, "{done} of {targets} were done within {LIMIT:?}");
            tokio::time::sleep(LOOK).await;
        }
        let thousands = f64::from(targets) / 1_000.0;
        let worker_cpu_s_per_1k = (cpu_s(self.worker.pid()) - own) / thousands;
        let pg_cpu_s_per_1k = (family_cpu_s(cluster.postmaster) - server) / thousands;
        let (from, to, total_s): (f64, f64, f64) = sqlx::query_as(
            "SELECT extract(epoch FROM percentile_disc(0.1) WITHIN GROUP (ORDER BY finished_at))::float8, \
             extract(epoch FROM percentile_disc(0.9) WITHIN GROUP (ORDER BY finished_at))::float8, \
             extract(epoch FROM max(finished_at) - min(started_at))::float8 \
             FROM (SELECT DISTINCT ON (target) * FROM job_history WHERE kind = $1 AND network <> 'local' \
                   AND state = 'complete' AND finished_at >= to_timestamp($2) ORDER BY target, finished_at) h",
        )
        .bind(kind)
        .bind(self.began)
        .fetch_one(admin)
        .await?;
        let per_s = f64::from(targets) * 0.8 / (to - from);
        let peak_mib = self.worker.peak_mib()?;
        Ok(Outcome { per_s, total_s, worker_cpu_s_per_1k, pg_cpu_s_per_1k, peak_mib })
    }
}

impl Crew {
    /// Waits until so many archived events are mined.
    pub(super) async fn mine(
        &mut self,
        cluster: &Cluster,
        admin: &mut PgConnection,
        events: u32,
    ) -> anyhow::Result<Outcome> {
        let (own, server) = (cpu_s(self.worker.pid()), family_cpu_s(cluster.postmaster));
        let began = clock::monotonic_ms();
        let (mut first, mut left) = (None, i64::from(events));
        while left > 0 {
            self.worker.check()?;
            let spent = Duration::from_millis(clock::monotonic_ms() - began);
            ensure!(spent < LIMIT, "{left} of {events} were not mined within {LIMIT:?}");
            tokio::time::sleep(LOOK / 4).await;
            left = sqlx::query_scalar("SELECT count(*) FROM event_unmined").fetch_one(&mut *admin).await?;
            if left < i64::from(events) {
                // The first batch shows that the job runs; the clock starts there.
                first.get_or_insert((clock::monotonic_ms(), left));
            }
        }
        let (at, rest) = first.context("something was mined")?;
        let seconds = Duration::from_millis(clock::monotonic_ms() - at).as_secs_f64();
        let thousands = f64::from(events) / 1_000.0;
        Ok(Outcome {
            per_s: f64::from(u32::try_from(rest)?) / seconds,
            total_s: seconds,
            worker_cpu_s_per_1k: (cpu_s(self.worker.pid()) - own) / thousands,
            pg_cpu_s_per_1k: (family_cpu_s(cluster.postmaster) - server) / thousands,
            peak_mib: self.worker.peak_mib()?,
        })
    }
}

pub(super) async fn now(admin: &mut PgConnection) -> anyhow::Result<f64> {
    Ok(sqlx::query_scalar("SELECT extract(epoch FROM clock_timestamp())::float8").fetch_one(admin).await?)
}

fn service(binaries: &Path, name: &str, db: &TestDb, fleet: &Fleet, kind: &str) -> anyhow::Result<Process> {
    let program = binaries.join(name);
    ensure!(program.exists(), "{name} is not built beside this program: cargo build --release --workspace");
    let beside = |name| fleet.authority.with_file_name(name);
    Process::start(
        &*Command::new(program)
            .arg("run")
            .env("DATABASE_URL", db.url(Role::Writer))
            .env("BIGBROTR_LOG_LEVEL", "error")
            .env("BIGBROTR_WORKER_KINDS", kind)
            .env("BIGBROTR_NETWORK_ALLOW_LOCAL", "true")
            .env("BIGBROTR_NETWORK_NAME_SERVERS", fleet.dns.to_string())
            .env("BIGBROTR_NETWORK_TRUST", &fleet.authority)
            .env("BIGBROTR_GEO_PLACES", beside(PLACES))
            .env("BIGBROTR_GEO_NETWORKS", beside(NETWORKS)),
    )
}
