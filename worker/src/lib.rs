//! The worker: claims jobs of every kind it is equipped for and executes them, from its named vantage.
//!
//! Any number may run; each may be killed at any moment and nothing is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shared::clock;
use shared::config::Config;
use shared::db::Db;
use shared::jobs::{Ctx, Egress};
use shared::net::Dialer;
use shared::queue;
use shared::telemetry::{Health, Metrics};
use tokio_util::sync::CancellationToken;

/// Name under which health is reported.
const PART: &str = "worker";
/// How often health is read from the heartbeat.
const WATCH: Duration = Duration::from_secs(1);
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
    let worker = format!("worker-{}-{}", std::process::id(), clock::random_hex(4));
    let options = config.queue_options(&worker);
    let queue_db = Db::lazy(config.database_url(), "bigbrotr worker queue", 3)?;
    let db = Db::lazy(config.database_url(), "bigbrotr worker", config.max_connections())?;
    let direct = Db::lazy(config.direct_url(), "bigbrotr worker refresh", 1)?.with_timeout(REFRESH_LIMIT);
    let jobs = config.jobs_config();
    let ctx = Ctx {
        db,
        direct,
        dialer: Dialer::new(config.net_config()?)?,
        policy: config.policy(),
        egress: Egress::new(jobs.canaries.clone()),
        config: Arc::new(jobs),
        metrics: metrics.clone(),
    };
    let limit = options.lease;
    health.expect(PART, limit);
    let beaten_ms = Arc::new(AtomicU64::new(0));
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
    let watching = CancellationToken::new();
    let watch = watch(Arc::clone(&beaten_ms), health, limit, watching.clone());
    let work = async {
        queue::run(queue_db, options, Arc::new(ctx), metrics, beaten_ms, stop).await;
        watching.cancel();
    };
    tokio::join!(work, watch);
    tracing::info!(worker.id = worker, "worker stopped");
    Ok(())
}

/// Health is the heartbeat's: a worker that cannot renew its lease does no work worth the name.
async fn watch(beaten_ms: Arc<AtomicU64>, health: Health, limit: Duration, stop: CancellationToken) {
    let mut seen = 0;
    loop {
        let beaten = beaten_ms.load(Ordering::Relaxed);
        if beaten != seen {
            seen = beaten;
            health.beat(PART, limit);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(WATCH) => {}
        }
    }
}
