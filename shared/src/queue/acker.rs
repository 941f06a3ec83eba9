//! Acknowledging attempts in batches, retried until the database answers.

use std::time::Duration;

use serde_json::{Value, json};
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
        acknowledge(&shared, &batch).await;
        batch.clear();
        shared.freed.notify_one();
    }
}

/// Acknowledges a batch; if the database refuses a result as such, halves it until that one stands alone,
/// and acknowledges its attempt without it.
async fn acknowledge(shared: &Shared, batch: &[Ended]) {
    let mut parts: Vec<(&[Ended], bool)> = vec![(batch, true)];
    while let Some((part, with_results)) = parts.pop() {
        let finished: Vec<Finished> = part.iter().map(|ended| finished(ended, with_results)).collect();
        match shared.db.job_finish(&shared.options.worker, &finished).await {
            Ok(held) => settle(shared, part, &held),
            Err(error) if error.is_data() && part.len() > 1 => {
                let (left, right) = part.split_at(part.len() / 2);
                parts.extend([(left, with_results), (right, with_results)]);
            }
            Err(error) if error.is_data() && with_results => {
                tracing::error!(error = %error, "the database refused a result; acknowledging without it");
                parts.push((part, false));
            }
            Err(error) => {
                tracing::warn!(error = %error, jobs = part.len(), "acknowledging again until the database answers");
                shared.metrics.queue_errors.inc();
                parts.push((part, with_results));
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

fn finished(ended: &Ended, with_result: bool) -> Finished {
    let mut result =
        if with_result { ended.ending.result.clone() } else { json!({ "error": "unstorable result" }) };
    strip_nul(&mut result);
    Finished {
        job: ended.ticket.claimed.job.clone(),
        attempt: ended.ticket.claimed.attempt,
        verdict: ended.ending.verdict,
        delay: ended.ending.delay.unwrap_or_else(|| backoff(ended.ticket.claimed.attempt)),
        result: result.to_string(),
    }
}

/// jsonb has no NUL; a remote's words, quoted in a report, may.
fn strip_nul(value: &mut Value) {
    match value {
        Value::String(text) if text.contains('\0') => *text = text.replace('\0', "\u{fffd}"),
        Value::Array(items) => items.iter_mut().for_each(strip_nul),
        Value::Object(fields) => {
            *fields = std::mem::take(fields)
                .into_iter()
                .map(|(name, mut value)| {
                    strip_nul(&mut value);
                    (name.replace('\0', "\u{fffd}"), value)
                })
                .collect();
        }
        _ => {}
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nul_is_replaced_and_its_escape_is_left_alone() {
        let mut value = json!({ "a\0": ["x\0y", { "b": "\\u0000" }], "n": 1 });
        strip_nul(&mut value);
        assert_eq!(value, json!({ "a\u{fffd}": ["x\u{fffd}y", { "b": "\\u0000" }], "n": 1 }));
        assert_eq!(serde_json::from_str::<Value>(&value.to_string()).unwrap(), value);
    }

    #[test]
    fn the_back_off_grows_and_is_bounded() {
        for attempt in 1..=40 {
            let delay = backoff(attempt);
            assert!(
                delay >= Duration::from_millis(3_750) && delay <= Duration::from_secs(1_125),
                "{attempt}: {delay:?}"
            );
        }
        assert!(backoff(4) > backoff(1));
    }
}
