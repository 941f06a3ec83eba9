//! Acknowledging attempts in batches, retried until the database answers.

use std::time::Duration;

use tokio::sync::mpsc;

use super::backend::Ticket;
use super::run::{Shared, network_label};
use crate::db::Finished;
use crate::jobs::Ending;
use crate::models::Verdict;
use crate::telemetry::Labels;

/// Attempts per statement; what queues up while one is under way goes with the next.
const BATCH: usize = 500;
/// Between tries while the database is away.
const RETRY: Duration = Duration::from_millis(500);

/// An attempt that ended; holds its slot until the database knows.
pub(super) struct Ended {
    pub(super) ticket: Ticket,
    pub(super) ending: Ending,
}

/// Runs until every sender is gone and everything is written.
pub(super) async fn run(shared: Shared, mut ended: mpsc::Receiver<Ended>) {
    let mut batch = Vec::new();
    while ended.recv_many(&mut batch, BATCH).await > 0 {
        let finished: Vec<Finished> = batch.iter().map(finished).collect();
        loop {
            match shared.db.job_finish(&shared.options.worker, &finished).await {
                Ok(held) => {
                    settle(&shared, &batch, &held);
                    break;
                }
                Err(error) if error.is_data() => {
                    // Cannot happen with results we made ourselves; rescue will run these again.
                    tracing::error!(error = %error, "the database refused an acknowledgement");
                    shared.metrics.queue_errors.inc();
                    settle(&shared, &batch, &[]);
                    break;
                }
                Err(error) => {
                    tracing::warn!(error = %error, jobs = finished.len(), "acknowledging again until the database answers");
                    shared.metrics.queue_errors.inc();
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        batch.clear();
        shared.freed.notify_one();
    }
}

fn finished(ended: &Ended) -> Finished {
    Finished {
        job: ended.ticket.claimed.job.clone(),
        attempt: ended.ticket.claimed.attempt,
        verdict: ended.ending.verdict,
        delay: ended.ending.delay.unwrap_or_else(|| backoff(ended.ticket.claimed.attempt)),
        // jsonb has no NUL; a handler's words might.
        result: ended.ending.result.to_string().replace("\\u0000", "\u{fffd}"),
    }
}

/// Delay before the next attempt when the handler names none: 5 s, 15 s, 45 s … at most 15 min, ± 25 %.
fn backoff(attempt: i32) -> Duration {
    let steps = u32::try_from(attempt.clamp(1, 10) - 1).unwrap_or(0);
    let base = 5_000_u64.saturating_mul(3_u64.saturating_pow(steps)).min(900_000);
    let jitter = u64::from_str_radix(&crate::clock::random_hex(2), 16).unwrap_or(0) % (base / 2);
    Duration::from_millis(base * 3 / 4 + jitter)
}

fn settle(shared: &Shared, batch: &[Ended], held: &[String]) {
    for ended in batch {
        let claimed = &ended.ticket.claimed;
        shared.forget(&claimed.job, claimed.attempt);
        if held.contains(&claimed.job) {
            let labels = Labels::new(
                claimed.kind.as_str(),
                network_label(&claimed.network),
                ended.ending.verdict.as_str(),
            );
            shared.metrics.jobs_finished.get_or_create(&labels).inc();
            if ended.ending.verdict != Verdict::Complete {
                tracing::info!(
                    job.id = claimed.job, job.kind = %claimed.kind, job.target = claimed.target, job.attempt = claimed.attempt,
                    job.verdict = %ended.ending.verdict, reason = %ended.ending.result, "a job did not complete"
                );
            }
        } else {
            shared.metrics.jobs_lost.inc();
            tracing::warn!(
                job.id = claimed.job,
                job.attempt = claimed.attempt,
                "the lease of a job was lost; its result was dropped"
            );
        }
    }
}
