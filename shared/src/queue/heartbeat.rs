//! Renewing the lease, and noticing what was lost meanwhile.

use std::collections::HashSet;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::run::{HEARTBEAT, Shared};
use crate::db::{DbError, Finished};
use crate::models::Verdict;

/// Between tries while the database is away: a lease is worth more than a quiet log.
const RETRY: Duration = Duration::from_secs(1);

/// (job, attempt) pairs.
type Pairs = HashSet<(String, i32)>;

/// Beats until told to stop.
pub(super) async fn run(shared: Shared, stop: CancellationToken) {
    let mut strays = Pairs::new();
    loop {
        let pause = match beat(&shared, &mut strays).await {
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

/// One heartbeat: renews the lease, stops the attempts that another worker has taken over, and gives back
/// those the database thinks we run although their claim never reached us (`strays`, seen twice running).
pub(super) async fn beat(shared: &Shared, strays: &mut Pairs) -> Result<(), DbError> {
    let before = shared.held();
    let held: Pairs = shared.db.job_heartbeat(&shared.options.registration()).await?.into_iter().collect();
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
    let unknown: Pairs = held.into_iter().filter(|key| !shared.is_held(key)).collect();
    let give_back: Vec<Finished> = unknown.intersection(strays).map(given_back).collect();
    if !give_back.is_empty() {
        tracing::warn!(jobs = give_back.len(), "giving back jobs whose claim never arrived");
        shared.db.job_finish(&shared.options.worker, &give_back).await?;
    }
    *strays = unknown;
    Ok(())
}

fn given_back((job, attempt): &(String, i32)) -> Finished {
    Finished {
        job: job.clone(),
        attempt: *attempt,
        verdict: Verdict::Snooze,
        delay: Duration::ZERO,
        result: r#"{"error":"the claim never reached its worker"}"#.to_owned(),
    }
}
