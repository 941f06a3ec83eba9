//! Claiming jobs for all queues of the process in one call, as many as slots are free.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::backend::Ticket;
use super::run::{FEEDER, Shared};
use crate::db::Claimed;

/// Between tries while the database is away.
const RETRY: Duration = Duration::from_millis(500);

/// One queue as the feeder sees it.
pub(super) struct Lane {
    pub(super) queue: String,
    pub(super) slots: Arc<Semaphore>,
    pub(super) tickets: mpsc::Sender<Ticket>,
}

/// Claims until told to stop; then drops the channels, so that the workers finish what they have.
pub(super) async fn run(shared: Shared, lanes: Vec<Lane>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let mut free: Vec<Vec<OwnedSemaphorePermit>> =
            lanes.iter().map(|lane| take_free(&lane.slots)).collect();
        let wanted: Vec<(String, u32)> = lanes
            .iter()
            .zip(&free)
            .filter(|(_, permits)| !permits.is_empty())
            .map(|(lane, permits)| (lane.queue.clone(), u32::try_from(permits.len()).unwrap_or(u32::MAX)))
            .collect();
        let pause = if wanted.is_empty() {
            // Every slot is busy: nothing to ask for is also work.
            shared.beat(FEEDER);
            shared.options.poll
        } else {
            match shared.db.job_claim(&shared.options.worker, &wanted).await {
                Ok(claimed) => {
                    shared.beat(FEEDER);
                    let full = claimed.len() == wanted.iter().map(|(_, n)| *n as usize).sum::<usize>();
                    let some = !claimed.is_empty();
                    hand_out(&shared, &lanes, &mut free, claimed).await;
                    // A full claim means there may be more; a partial one that the due jobs are all taken.
                    if some && full { Duration::ZERO } else { jittered(shared.options.poll) }
                }
                Err(error) => {
                    tracing::warn!(error = %error, "claiming again when the database answers");
                    shared.metrics.queue_errors.inc();
                    RETRY
                }
            }
        };
        drop(free);
        if !pause.is_zero() {
            tokio::select! {
                () = stop.cancelled() => break,
                () = shared.freed.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

fn take_free(slots: &Arc<Semaphore>) -> Vec<OwnedSemaphorePermit> {
    std::iter::from_fn(|| Arc::clone(slots).try_acquire_owned().ok()).collect()
}

/// Spreads the polls of a fleet that was started at once: three quarters to five quarters.
fn jittered(poll: Duration) -> Duration {
    let share = u32::from_str_radix(&crate::clock::random_hex(1), 16).unwrap_or(128);
    poll * 3 / 4 + poll / 2 * share / 256
}

async fn hand_out(
    shared: &Shared,
    lanes: &[Lane],
    free: &mut [Vec<OwnedSemaphorePermit>],
    claimed: Vec<Claimed>,
) {
    for claimed in claimed {
        let Some(index) = lanes.iter().position(|lane| lane.queue == claimed.queue) else { continue };
        let Some(permit) = free[index].pop() else { continue };
        let lost = shared.remember(&claimed.job, claimed.attempt);
        let ticket = Ticket { claimed, slot: Arc::new(permit), lost };
        // The channel holds as many tickets as there are slots, so this never waits.
        if lanes[index].tickets.send(ticket).await.is_err() {
            tracing::error!(
                queue = lanes[index].queue,
                "a queue's worker is gone; rescue will find its jobs"
            );
        }
    }
}
