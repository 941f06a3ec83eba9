//! Renewing the lease, and noticing what was lost meanwhile.

use std::collections::HashSet;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::run::{HEARTBEAT, Shared};
use crate::db::DbError;

/// Between tries while the database is away: a lease is worth more than a quiet log.
const RETRY: Duration = Duration::from_secs(1);

/// Beats until told to stop.
pub(super) async fn run(shared: Shared, stop: CancellationToken) {
    loop {
        let pause = match beat(&shared).await {
            Ok(()) => shared.options.lease / 3,
            Err(error) => {
                tracing::warn!(error = %error, "heartbeat again when the database answers");
                shared.metrics.queue_errors.inc();
                RETRY.min(shared.options.lease / 3)
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One heartbeat: renews the lease and cancels the attempts that another worker has taken over.
pub(super) async fn beat(shared: &Shared) -> Result<(), DbError> {
    let before = shared.held();
    let held: HashSet<(String, i32)> =
        shared.db.job_heartbeat(&shared.options.registration()).await?.into_iter().collect();
    shared.beat(HEARTBEAT);
    for (key, lost) in before {
        if !held.contains(&key) && shared.is_held(&key) {
            tracing::warn!(
                job.id = key.0,
                job.attempt = key.1,
                "another worker took this job over; stopping it here"
            );
            lost.cancel();
        }
    }
    Ok(())
}
