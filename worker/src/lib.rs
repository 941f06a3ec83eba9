//! The worker: claims jobs of every kind it is equipped for and executes them, from its named vantage.
//!
//! Any number may run; each may be killed at any moment and nothing is lost.

use std::sync::Arc;
use std::time::Duration;

use shared::clock;
use shared::config::{Config, ConfigError};
use shared::db::{Db, ScheduleTarget};
use shared::jobs::{Calls, Ctx, Egress, Known, PageRoom, Verifier, alerts, begin_counters, refresh};
use shared::models::{JobKind, LOCAL};
use shared::net::Dialer;
use shared::queue::{self, QueueOptions};
use shared::telemetry::{Health, Metrics};
use tokio_util::sync::CancellationToken;

/// Between two tries to say that somebody listens.
const AGAIN: Duration = Duration::from_secs(30);
/// Between two times that it is said: of a worker that was long away the task has been given up.
const ANEW: Duration = Duration::from_secs(3_600);

/// Sees to it that changes of liveness are told where this worker knows the webhook, which is a secret of the workers':
/// the scheduler need not know it.
async fn listened(ctx: &Ctx, stop: &CancellationToken) {
    if ctx.config.alert_webhook.is_none() {
        return;
    }
    let task = ScheduleTarget {
        kind: JobKind::Monitor,
        target: alerts::TASK.to_owned(),
        network: LOCAL.to_owned(),
        slack: Duration::from_secs(60),
    };
    loop {
        let said = ctx.db.schedule_ensure(std::slice::from_ref(&task)).await.is_ok();
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(if said { ANEW } else { AGAIN }) => {}
        }
    }
}

/// Says what no worker can work with: a key that is missing, certificates or proxies that are none.
///
/// # Errors
/// A sentence per problem.
pub fn check(config: &Config) -> Result<(), ConfigError> {
    config.require_publishing()?;
    Dialer::new(config.net_config()?)?;
    Ok(())
}

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
    let direct = Db::lazy(config.direct_url(), "bigbrotr worker refresh", 1)?.with_timeout(refresh::LIMIT);
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
    let handler = Arc::new(ctx.clone());
    let work = Box::pin(queue::run(queue_db, options, handler, metrics, health, stop.clone()));
    tokio::join!(work, listened(&ctx, &stop));
    tracing::info!(worker.id = worker, "worker stopped");
    Ok(())
}
