//! Closes the gap: changes of relays' liveness that the operator's webhook has not been told of.
//!
//! Whoever has the secret can tell that it was us: each request carries the HMAC-SHA256 of its body.
//!
//! At least once: what was sent is noted after the webhook took it, so a crash in between tells it again; the
//! serial in each alert is there for that. One that fails waits, longer each time, and the others behind it.

use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Attempt, Ctx, JobError, Report, cadence, lost};
use crate::clock;
use crate::db::{AlertRow, Delivery};
use crate::net::Web;

/// The task's name.
pub const TASK: &str = "alerts";
/// Alerts per request.
const BATCH: u32 = 100;
/// Requests per attempt: a flood is told over several.
const REQUESTS: u32 = 50;
/// A webhook that has not answered by then has failed.
const LIMIT: Duration = Duration::from_secs(10);
/// Nothing of the answer matters but its status.
const ANSWER_BYTES: usize = 64 * 1024;
/// Characters of an answer that are kept.
const ANSWER_CHARS: usize = 200;
/// First and longest pause after a failure, seconds.
const AGAIN: (u64, u64) = (15, 3_600);
/// What could not be told for so long is no news, seconds.
const STALE: i64 = 7 * 86_400;
/// Names the signature: `sha256=` and the HMAC of the body in hexadecimal.
const SIGNATURE: &str = "x-bigbrotr-signature";
/// A look although nothing is known to wait.
const IDLE: Duration = Duration::from_secs(900);

pub(super) async fn run(ctx: &Ctx, attempt: &Attempt) -> Result<Report, JobError> {
    let Some(webhook) = &ctx.config.alert_webhook else {
        return Err(JobError::cancel("no webhook is configured here (alert.webhook)"));
    };
    let web = Web::new(&ctx.dialer.permitting(&ctx.config.alert_allow), LIMIT)
        .map_err(|error| JobError::Kill { why: format!("no HTTP client: {error}") })?;
    let (mut sent, mut failure) = (0, None);
    for _ in 0..REQUESTS {
        let batch = ctx.db.alert_take(BATCH).await?;
        if batch.is_empty() || attempt.stop.is_cancelled() {
            break;
        }
        let (wanted, unwanted): (Vec<AlertRow>, Vec<AlertRow>) =
            batch.into_iter().partition(|alert| ctx.config.alert_states.contains(&alert.after));
        settle(ctx, attempt, &unwanted, |_| Delivery::Skipped, "").await?;
        // However long the webhook, or we, were away: not first told and then given up.
        let now = clock::unix_now();
        let (stale, wanted): (Vec<AlertRow>, Vec<AlertRow>) =
            wanted.into_iter().partition(|alert| is_stale(alert, now));
        settle(ctx, attempt, &stale, |_| Delivery::GivenUp, "could not be told for a week").await?;
        if wanted.is_empty() {
            continue;
        }
        let text = body(&wanted).to_string();
        let signature = ctx.config.alert_secret.as_ref().map(|secret| secret.sign(text.as_bytes()));
        match web.post_json(webhook, text, signature.as_deref().map(|s| (SIGNATURE, s)), ANSWER_BYTES).await {
            Ok(reply) if (200..300).contains(&reply.status) => {
                sent += wanted.len();
                settle(ctx, attempt, &wanted, |_| Delivery::Sent, &format!("HTTP {}", reply.status)).await?;
            }
            Ok(reply) => failure = Some(format!("HTTP {}", reply.status)),
            Err(error) => failure = Some(format!("{}: {}", error.reason, error.detail)),
        }
        if let Some(why) = &failure {
            let why: String = why.chars().filter(|c| !c.is_control()).take(ANSWER_CHARS).collect();
            tracing::warn!(
                alerts = wanted.len(),
                error = why,
                "the webhook did not take alerts; again later"
            );
            settle(ctx, attempt, &wanted, after_failure, &why).await?;
            break;
        }
    }
    let due = cadence::local(IDLE, TASK);
    if !ctx.db.alert_settle(&attempt.fence, &[], "", Some((due.after, due.slack, due.why))).await? {
        return Err(lost());
    }
    Ok(json!({ "sent": sent, "failure": failure }))
}

/// What the webhook and we alone know; in no printed form.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// As configured.
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// HMAC-SHA256 (RFC 2104) of `message`, as the header says it.
    fn sign(&self, message: &[u8]) -> String {
        const BLOCK: usize = 64;
        let mut key = [0_u8; BLOCK];
        let secret = self.0.as_bytes();
        if secret.len() > BLOCK {
            key[..32].copy_from_slice(&Sha256::digest(secret));
        } else {
            key[..secret.len()].copy_from_slice(secret);
        }
        let padded = |pad: u8| key.map(|byte| byte ^ pad);
        let inner = Sha256::new().chain_update(padded(0x36)).chain_update(message).finalize();
        let outer = Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize();
        format!("sha256={}", hex::encode(outer))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

async fn settle(
    ctx: &Ctx,
    attempt: &Attempt,
    alerts: &[AlertRow],
    how: impl Fn(&AlertRow) -> Delivery,
    answer: &str,
) -> Result<(), JobError> {
    if alerts.is_empty() {
        return Ok(());
    }
    let settled: Vec<(i64, Delivery)> = alerts.iter().map(|alert| (alert.id, how(alert))).collect();
    if ctx.db.alert_settle(&attempt.fence, &settled, answer, None).await? { Ok(()) } else { Err(lost()) }
}

/// What the webhook is told.
fn body(alerts: &[AlertRow]) -> Value {
    let told = |alert: &AlertRow| {
        json!({
            "id": alert.id, "relay": alert.relay_url, "network": alert.network, "before": alert.before,
            "after": alert.after, "reason": alert.reason, "vantage": alert.vantage, "at": alert.at,
        })
    };
    json!({ "source": "bigbrotr", "alerts": alerts.iter().map(told).collect::<Vec<_>>() })
}

const fn is_stale(alert: &AlertRow, now: i64) -> bool {
    now - alert.at > STALE
}

fn after_failure(alert: &AlertRow) -> Delivery {
    let (first, longest) = AGAIN;
    Delivery::Again(Duration::from_secs(first.saturating_mul(1 << alert.tries.min(16)).min(longest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(tries: u32, at: i64) -> AlertRow {
        AlertRow {
            id: 7,
            relay_url: Some("wss://relay.example".to_owned()),
            network: Some("clearnet".to_owned()),
            vantage: Some("here".to_owned()),
            at,
            before: Some("alive".to_owned()),
            after: "down".to_owned(),
            reason: "connect_refused".to_owned(),
            tries,
        }
    }

    #[test]
    fn failures_back_off_and_old_news_are_given_up() {
        let delay = |tries| match after_failure(&alert(tries, 1_000)) {
            Delivery::Again(delay) => delay.as_secs(),
            other => panic!("{other:?}"),
        };
        assert_eq!([delay(0), delay(1), delay(5), delay(400)], [15, 30, 480, 3_600]);
        let stale = [STALE, STALE + 1].map(|age| is_stale(&alert(3, 1_000), 1_000 + age));
        assert_eq!(stale, [false, true]);
    }

    #[test]
    fn signatures_are_those_of_rfc_4231() {
        let signed = |key: &str, message: &str| Secret::new(key).sign(message.as_bytes());
        assert_eq!(
            signed("Jefe", "what do ya want for nothing?"),
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            signed(&"\u{b}".repeat(20), "Hi There"),
            "sha256=b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
        assert_eq!(format!("{:?}", Secret::new("hunter2hunter2hunter2")), "***");
    }

    #[test]
    fn the_webhook_is_told_which_relay_changed_how_and_why() {
        let told = body(&[alert(0, 5)]);
        assert_eq!(told["alerts"][0]["relay"], "wss://relay.example");
        assert_eq!(
            (&told["alerts"][0]["before"], &told["alerts"][0]["after"]),
            (&"alive".into(), &"down".into())
        );
        assert_eq!((&told["alerts"][0]["id"], &told["alerts"][0]["at"]), (&7.into(), &5.into()));
    }
}
