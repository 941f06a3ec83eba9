//! One database, one worker, and relays of ours; what a pass over them cost.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use shared::clock;
use shared::db::NewJob;
use shared::models::{AddressPolicy, JobKind, RelayUrl};
use sqlx::PgConnection;
use tests::factory::Factory;
use tests::pg::{Role, TestDb};

use super::relay::{Item, Relay};
use crate::process::{Process, cpu_s, family_cpu_s};
use crate::queue::cluster::{Cluster, writer};

/// Longest a pass may take.
const LIMIT: Duration = Duration::from_secs(900);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// Signed events, the same for the same seed and second.
pub(super) fn items(seed: u64, count: usize, end: i64, dense: Option<(usize, i64)>) -> Vec<Arc<Item>> {
    let factory = Factory::new(seed).ending_at(end).over(90 * 86_400);
    let mut events = factory.events(count);
    if let Some((count, second)) = dense {
        events.extend(factory.dense(count, second));
    }
    events
        .into_iter()
        .map(|event| {
            Arc::new(Item {
                id: event.id.to_bytes(),
                created_at: i64::try_from(event.created_at.as_secs()).unwrap_or(i64::MAX),
                kind: u64::from(event.kind.as_u16()),
                author: event.pubkey.to_hex(),
                json: event.as_json(),
            })
        })
        .collect()
}

/// What a pass over all relays cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) seconds: f64,
    pub(super) worker_cpu_s: f64,
    pub(super) pg_cpu_s: f64,
    pub(super) peak_mib: f64,
    pub(super) requests: f64,
    pub(super) bytes: f64,
}

/// Workers at a database of their own.
pub(super) struct Scene {
    // In the order in which they end.
    workers: Vec<Process>,
    admin: PgConnection,
    pub(super) db: TestDb,
    urls: Vec<RelayUrl>,
}

impl Scene {
    /// One worker with its defaults.
    pub(super) async fn start(cluster: &Cluster, relays: &[Relay]) -> anyhow::Result<Self> {
        let urls = relays.iter().map(Relay::url).collect::<Vec<_>>();
        Self::fleet(cluster, &urls, 1, &[]).await
    }

    /// So many workers, configured like this beside their defaults.
    pub(super) async fn fleet(
        cluster: &Cluster,
        urls: &[String],
        workers: usize,
        configuration: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let db = cluster.migrated().await?;
        db.execute("UPDATE fleet_limit SET host_jobs = 10000, host_spacing_ms = 0, block_jobs = 10000, block_spacing_ms = 0").await;
        let handle = writer(&db)?;
        let parse = |url: &String| Ok(RelayUrl::parse(url, &AddressPolicy::local())?);
        let urls = urls.iter().map(parse).collect::<anyhow::Result<Vec<_>>>()?;
        handle.relay_insert(&urls.iter().map(|url| (url.clone(), 1)).collect::<Vec<_>>()).await?;
        db.execute("SELECT partition_maintain(extract(epoch FROM now() - interval '120 days')::bigint)")
            .await;
        let binaries = std::env::current_exe()?.parent().context("a directory of binaries")?.to_path_buf();
        let workers = (0..workers)
            .map(|_| worker(&binaries, &db, configuration))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let admin = db.connect(Role::Superuser).await;
        Ok(Self { workers, admin, db, urls })
    }

    /// Syncs every relay until each is up to date, with what these relays counted meanwhile.
    pub(super) async fn pass(&mut self, cluster: &Cluster, relays: &[Relay]) -> anyhow::Result<Cost> {
        let before = Relay::counted(relays);
        let cost = self.run(cluster).await?;
        let after = Relay::counted(relays);
        let number = |n: u64| u32::try_from(n).map(f64::from);
        Ok(Cost { requests: number(after.0 - before.0)?, bytes: number(after.1 - before.1)?, ..cost })
    }

    /// Syncs every relay until each is up to date; requests and bytes are for others to count.
    pub(super) async fn run(&mut self, cluster: &Cluster) -> anyhow::Result<Cost> {
        let (own, server) = (self.cpu_s(), family_cpu_s(cluster.postmaster));
        let since: f64 = sqlx::query_scalar("SELECT extract(epoch FROM clock_timestamp())::float8")
            .fetch_one(&mut self.admin)
            .await?;
        let began = clock::monotonic_ms();
        // One pass is enough for each: the time box is longer than any takes.
        self.enqueue().await?;
        let wanted = i64::try_from(self.urls.len())?;
        loop {
            let ended: i64 = sqlx::query_scalar(
                "SELECT count(DISTINCT target) FROM job_history WHERE kind = 'sync' AND state = 'complete' AND finished_at >= to_timestamp($1)",
            )
            .bind(since)
            .fetch_one(&mut self.admin)
            .await?;
            if ended >= wanted {
                break;
            }
            self.check()?;
            let spent = Duration::from_millis(clock::monotonic_ms() - began);
            ensure!(spent < LIMIT, "{ended} of {wanted} relays were done within {LIMIT:?}");
            tokio::time::sleep(LOOK).await;
        }
        let seconds = f64::from(u32::try_from(clock::monotonic_ms() - began)?) / 1_000.0;
        Ok(Cost {
            seconds,
            worker_cpu_s: self.cpu_s() - own,
            pg_cpu_s: family_cpu_s(cluster.postmaster) - server,
            peak_mib: self.peak_mib()?,
            requests: 0.0,
            bytes: 0.0,
        })
    }

    /// Makes every relay due.
    pub(super) async fn enqueue(&self) -> anyhow::Result<()> {
        writer(&self.db)?.job_enqueue(&self.urls.iter().map(job).collect::<Vec<_>>()).await?;
        Ok(())
    }

    /// An error if a worker has ended by itself.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        self.workers.iter_mut().try_for_each(Process::check)
    }

    /// The most resident memory that one of the workers has had.
    pub(super) fn peak_mib(&self) -> anyhow::Result<f64> {
        self.workers.iter().map(Process::peak_mib).try_fold(0.0, |most, one| Ok(f64::max(most, one?)))
    }

    fn cpu_s(&self) -> f64 {
        self.workers.iter().map(|worker| cpu_s(worker.pid())).sum()
    }

    /// One number, as the superuser.
    pub(super) async fn number(&mut self, sql: &'static str) -> anyhow::Result<f64> {
        let n: i64 = sqlx::query_scalar(sql).fetch_one(&mut self.admin).await?;
        Ok(f64::from(u32::try_from(n)?))
    }
}

fn job(url: &RelayUrl) -> NewJob {
    NewJob {
        kind: JobKind::Sync,
        network: "clearnet".to_owned(),
        target: url.as_str().to_owned(),
        class: 2,
        slack: Duration::from_secs(60),
        timeout: Duration::from_secs(900),
        max_attempts: 3,
    }
}

fn worker(binaries: &Path, db: &TestDb, configuration: &[(&str, &str)]) -> anyhow::Result<Process> {
    let program = binaries.join("worker");
    ensure!(
        program.exists(),
        "worker is not built beside this program: cargo build --release --workspace --bins"
    );
    Process::start(
        &*Command::new(program)
            .arg("run")
            .env("DATABASE_URL", db.url(Role::Writer))
            .env("BIGBROTR_LOG_LEVEL", "error")
            .env("BIGBROTR_WORKER_KINDS", "sync")
            .env("BIGBROTR_SYNC_TIME_BOX_S", "300")
            .env("BIGBROTR_NETWORK_ALLOW_LOCAL", "true")
            .envs(configuration.iter().copied()),
    )
}
