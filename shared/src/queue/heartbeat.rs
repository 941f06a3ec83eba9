//! Renewing the lease, and noticing what was lost meanwhile.

use std::collections::HashSet;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::run::{HEARTBEAT, Shared, Why};
use crate::clock;
use crate::db::{DbError, Finished};
use crate::models::Verdict;

/// Between tries while the database is away: a lease is worth more than a quiet log.
const RETRY: Duration = Duration::from_secs(1);

/// (job, attempt) pairs.
type Pairs = HashSet<(String, i32)>;

/// Beats until told to stop. A lease that could not be renewed in time is over by our own clock: whatever runs
/// here is stopped then, for another worker may have it.
pub(super) async fn run(shared: Shared, stop: CancellationToken) {
    let mut strays = Pairs::new();
    let mut late = false;
    loop {
        let beating = beat(&shared, &mut strays);
        tokio::pin!(beating);
        let result = tokio::select! {
            result = &mut beating => result,
            () = lease_end(&shared, late) => {
                shared.end_all(Why::Lost);
                beating.await
            }
        };
        // An answer that was longer on its way than the lease: since when that stands nobody here knows, so it is
        // renewed once more at once. Stopping what was claimed under it would spend attempts after every outage.
        late = result.is_ok() && shared.lease_left().is_zero();
        let pause = match result {
            Ok(()) if late => Duration::ZERO,
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

/// Waits for the end of the lease; of one that is known late, for the time an answer may take.
async fn lease_end(shared: &Shared, late: bool) {
    if late {
        tokio::time::sleep(shared.options.lease / 3).await;
    }
    loop {
        let left = shared.lease_left();
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left).await;
    }
}

/// One heartbeat: renews the lease, stops the attempts that another worker has taken over, and gives back
/// those the database thinks we run although their claim never reached us (`strays`, seen twice running).
pub(super) async fn beat(shared: &Shared, strays: &mut Pairs) -> Result<(), DbError> {
    let before = shared.held();
    // The lease counts from before the question: the answer may have been long on its way.
    let asked_ms = clock::monotonic_ms();
    let registration = shared.registration(shared.options.traffic.take());
    let held: Pairs = match shared.db.job_heartbeat(&registration).await {
        Ok(held) => held.into_iter().collect(),
        Err(error) => {
            for (network, bytes) in registration.traffic {
                shared.options.traffic.add(network, bytes);
            }
            return Err(error);
        }
    };
    shared.renewed(asked_ms);
    shared.beat(HEARTBEAT);
    for key in before {
        if !held.contains(&key) && shared.is_held(&key) {
            tracing::warn!(
                job.id = key.0,
                job.attempt = key.1,
                "this job is not ours any more; stopping it here"
            );
            shared.end(&key, Why::Lost);
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
