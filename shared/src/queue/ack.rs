//! How attempts are acknowledged: what is written, and what is learnt from the answer.

use std::time::Duration;

use serde_json::{Value, json};

use super::backend::Ticket;
use super::run::{Shared, network_label};
use crate::db::{DbError, Finished};
use crate::jobs::Ending;
use crate::models::{Network, Verdict};
use crate::telemetry::Labels;

/// An attempt that ended; holds its slot until the database knows.
pub(super) struct Ended {
    pub(super) ticket: Ticket,
    pub(super) ending: Ending,
    /// Delay before the next attempt: drawn once, so that saying it again says the same.
    pub(super) delay: Duration,
}

impl Ended {
    pub(super) fn new(ticket: Ticket, ending: Ending) -> Self {
        let delay = ending.delay.unwrap_or_else(|| backoff(ticket.claimed.attempt));
        Self { ticket, ending, delay }
    }
}

/// The acknowledgement of an attempt.
pub(super) fn finished(ended: &Ended, with_result: bool) -> Finished {
    let mut result =
        if with_result { ended.ending.result.clone() } else { json!({ "error": "unstorable result" }) };
    strip_nul(&mut result);
    Finished {
        job: ended.ticket.claimed.job.clone(),
        attempt: ended.ticket.claimed.attempt,
        verdict: ended.ending.verdict,
        delay: ended.delay,
        result: result.to_string(),
    }
}

/// Acknowledges a batch of which the database refuses a result: halves it until that one stands alone, and
/// acknowledges its attempt without it. Returns the jobs whose fence held.
pub(super) async fn bisect(shared: &Shared, batch: &[Ended]) -> Result<Vec<String>, DbError> {
    let mut held = Vec::new();
    let mut parts: Vec<(&[Ended], bool)> = vec![(batch, true)];
    while let Some((part, with_results)) = parts.pop() {
        let said: Vec<Finished> = part.iter().map(|ended| finished(ended, with_results)).collect();
        match shared.db.job_finish(&shared.options.worker, &said).await {
            Ok(ids) => held.extend(ids),
            Err(error) if error.is_data() && part.len() > 1 => {
                let (left, right) = part.split_at(part.len() / 2);
                parts.extend([(left, with_results), (right, with_results)]);
            }
            Err(error) if error.is_data() && with_results => {
                tracing::error!(error = %error, "the database refused a result; acknowledging without it");
                parts.push((part, false));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(held)
}

/// Opens the breakers of the networks a batch reports as out of our reach; how long they stay open is how long
/// its jobs wait.
pub(super) async fn trip(shared: &Shared, batch: &mut [Ended]) {
    let mut asked: Vec<(Network, Duration)> = Vec::new();
    for ended in batch {
        let Some(network) = ended.ending.trip.take() else { continue };
        if !asked.iter().any(|(known, _)| *known == network) {
            let why = ended.ending.result["error"].as_str().unwrap_or_default().to_owned();
            let options = &shared.options;
            let open = match shared.db.breaker_trip(network, &options.vantage, &options.worker, &why).await {
                Ok(open) => {
                    tracing::warn!(network = %network, seconds = open.as_secs(), reason = why, "the breaker of a network opens");
                    open
                }
                Err(error) => {
                    tracing::warn!(error = %error, network = %network, "the breaker could not be opened");
                    ended.delay
                }
            };
            asked.push((network, open));
        }
        if let Some((_, open)) = asked.iter().find(|(known, _)| *known == network) {
            ended.delay = *open;
        }
    }
}

/// Closes the breaker that a probing job of the batch has found to be needless.
pub(super) async fn close(shared: &Shared, batch: &[Ended]) {
    let probed = batch.iter().find(|e| e.ticket.claimed.probe && e.ending.verdict == Verdict::Complete);
    let Some(Ok(network)) = probed.map(|e| e.ticket.claimed.network.parse::<Network>()) else { return };
    match shared.db.breaker_close(network, &shared.options.vantage).await {
        Ok(_) => tracing::info!(network = %network, "the breaker of a network closes"),
        // The next probe closes it.
        Err(error) => tracing::warn!(error = %error, network = %network, "the breaker could not be closed"),
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

/// Takes note of what the database said about a batch.
pub(super) fn settle(shared: &Shared, batch: &[Ended], held: &[String]) {
    for ended in batch {
        let claimed = &ended.ticket.claimed;
        shared.forget(&claimed.job, claimed.attempt);
        ended.ticket.slot.settle();
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
