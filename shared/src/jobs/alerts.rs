//! Closes the gap: changes of relays' liveness that the operator's webhook has not been told of.
//!
//! At least once: what was sent is noted after the webhook took it, so a crash in between tells it again; the
//! serial in each alert is there for that. One that fails waits, longer each time, and the others behind it.

use std::time::Duration;

use serde_json::{Value, json};

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
/// A look although nothing is known to wait.
const IDLE: Duration = Duration::from_secs(900);

pub(super) async fn run(ctx: &Ctx, attempt: &Attempt) -> Result<Report, JobError> {
    let Some(webhook) = &ctx.config.alert_webhook else {
        return Err(JobError::cancel("no webhook is configured here (alert.webhook)"));
    };
    let web = Web::new(&ctx.dialer, LIMIT)
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
        if wanted.is_empty() {
            continue;
        }
        match web.post_json(webhook, body(&wanted).to_string(), ANSWER_BYTES).await {
            Ok(reply) if (200..300).contains(&reply.status) => {
                sent += wanted.len();
                settle(ctx, attempt, &wanted, |_| Delivery::Sent, &format!("HTTP {}", reply.status)).await?;
            }
            Ok(reply) => failure = Some(format!("HTTP {}", reply.status)),
            Err(error) => failure = Some(format!("{}: {}", error.reason, error.detail)),
        }
        if let Some(why) = &failure {
            let why: String = why.chars().filter(|c| !c.is_control()).take(ANSWER_CHARS).collect();
            let now = clock::unix_now();
            tracing::warn!(
                alerts = wanted.len(),
                error = why,
                "the webhook did not take alerts; again later"
            );
            settle(ctx, attempt, &wanted, |alert| after_failure(alert, now), &why).await?;
            break;
        }
    }
    let due = cadence::local(IDLE, TASK);
    if !ctx.db.alert_settle(&attempt.fence, &[], "", Some((due.after, due.slack, due.why))).await? {
        return Err(lost());
    }
    Ok(json!({ "sent": sent, "failure": failure }))
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

fn after_failure(alert: &AlertRow, now: i64) -> Delivery {
    if now - alert.at > STALE {
        return Delivery::GivenUp;
    }
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
        let delay = |tries| match after_failure(&alert(tries, 1_000), 1_000) {
            Delivery::Again(delay) => delay.as_secs(),
            other => panic!("{other:?}"),
        };
        assert_eq!([delay(0), delay(1), delay(5), delay(400)], [15, 30, 480, 3_600]);
        assert_eq!(after_failure(&alert(3, 1_000), 1_000 + STALE + 1), Delivery::GivenUp);
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
