//! The worker: claims jobs of every kind it is equipped for and executes them, from its named vantage.
//!
//! Any number may run; each may be killed at any moment and nothing is lost.

use std::sync::Arc;
use std::time::Duration;

use shared::clock;
use shared::config::Config;
use shared::db::Db;
use shared::jobs::{Calls, Ctx, Egress, Known, PageRoom, Verifier, begin_counters};
use shared::net::Dialer;
use shared::queue::{self, QueueOptions};
use shared::telemetry::{Health, Metrics};
use tokio_util::sync::CancellationToken;

/// A refresh of a large view takes as long as it takes; this only ends a hung one.
const REFRESH_LIMIT: Duration = Duration::from_secs(3_500);

/// Runs until `stop`, then finishes within the configured grace.
///
/// # Errors
/// When the configuration cannot be used.
pub async fn run(
    config: &Config,
    metrics: Metrics,
    health: Health,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    config.require_publishing()?;
    let worker = format!("worker-{}-{}", std::process::id(), clock::random_hex(4));
    let queue_db = Db::lazy(config.database_url(), "bigbrotr worker queue", 3)?;
    let db = Db::lazy(config.database_url(), "bigbrotr worker", config.max_connections())?;
    let direct = Db::lazy(config.direct_url(), "bigbrotr worker refresh", 1)?.with_timeout(REFRESH_LIMIT);
    let jobs = config.jobs_config();
    let dialer = Dialer::new(config.net_config()?)?;
    let options = QueueOptions { traffic: dialer.traffic(), ..config.queue_options(&worker) };
    let ctx = Ctx {
        direct,
        dialer,
        policy: config.policy(),
        egress: Egress::new(jobs.canaries.clone()).counted(&metrics),
        calls: Calls::new(&db, &jobs.vantage),
        db,
        pages: PageRoom::new(jobs.sync_memory_bytes),
        config: Arc::new(jobs),
        metrics: metrics.clone(),
        verifier: Verifier::default(),
        known: Known::default(),
    };
    begin_counters(&metrics, &config.served_networks());
    tracing::info!(
        worker.id = worker,
        worker.vantage = options.vantage,
        worker.queues = options
            .queues
            .iter()
            .map(|(queue, slots)| format!("{queue}:{slots}"))
            .collect::<Vec<_>>()
            .join(" "),
        "worker starts"
    );
    queue::run(queue_db, options, Arc::new(ctx), metrics, health, stop).await;
    tracing::info!(worker.id = worker, "worker stopped");
    Ok(())
}
