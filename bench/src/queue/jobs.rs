//! The jobs the figures are taken with.

use std::time::Duration;

use shared::db::{Db, NewJob};
use shared::models::{JobKind, LOCAL};

/// Jobs per enqueue.
pub(crate) const BATCH: usize = 10_000;

/// Queue of the tasks.
pub(crate) const TASKS: &str = "refresh.local";
/// Queue of the relays.
pub(crate) const RELAYS: &str = "monitor.clearnet";

/// A job without a host, due now.
pub(crate) fn task(i: u32) -> NewJob {
    job(JobKind::Refresh, LOCAL, format!("t{i}"))
}

/// A relay on a host of its own, due now.
pub(crate) fn relay(i: u32) -> NewJob {
    job(JobKind::Monitor, "clearnet", format!("wss://r{i}.example"))
}

fn job(kind: JobKind, network: &str, target: String) -> NewJob {
    NewJob {
        kind,
        network: network.to_owned(),
        target,
        class: 2,
        slack: Duration::from_secs(600),
        timeout: Duration::from_secs(600),
        max_attempts: 3,
    }
}

/// Enqueues in the largest batches the figures know.
pub(crate) async fn enqueue(db: &Db, jobs: &[NewJob]) -> anyhow::Result<()> {
    for batch in jobs.chunks(BATCH) {
        let new = db.job_enqueue(batch).await?;
        anyhow::ensure!(new == batch.len() as u64, "{new} of {} jobs were new", batch.len());
    }
    Ok(())
}
