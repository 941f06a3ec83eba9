//! Changes of relays' liveness, and their way to the webhook.

use std::time::Duration;

use super::observe::slack_s;
use super::rows::{get, small_count};
use super::{Db, DbError};
use crate::models::Fence;

/// An alert to be delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertRow {
    /// Serial: receivers tell repetitions by it.
    pub id: i64,
    /// The relay; none when it is gone.
    pub relay_url: Option<String>,
    /// Its network.
    pub network: Option<String>,
    /// Whose look decided.
    pub vantage: Option<String>,
    /// When, Unix seconds.
    pub at: i64,
    /// State before.
    pub before: Option<String>,
    /// State since.
    pub after: String,
    /// Why.
    pub reason: String,
    /// Deliveries that failed.
    pub tries: u32,
}

/// What became of the delivery of one alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// The webhook took it.
    Sent,
    /// Nobody asked for changes to its state.
    Skipped,
    /// It failed for too long.
    GivenUp,
    /// It failed; again after so long.
    Again(Duration),
}

impl Delivery {
    const fn as_str(&self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Skipped => "skipped",
            Self::GivenUp => "given_up",
            Self::Again(_) => "pending",
        }
    }

    const fn delay(&self) -> Duration {
        match self {
            Self::Again(delay) => *delay,
            _ => Duration::ZERO,
        }
    }
}

/// A change of liveness, as `alerts` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertLine {
    /// The alert.
    pub alert: AlertRow,
    /// none, pending, sent, skipped or given_up.
    pub delivery: String,
    /// What the webhook answered last.
    pub answer: Option<String>,
}

const ALERTS: &str = "
SELECT a.id, r.url AS relay_url, r.network, v.name AS vantage, a.at, a.before, a.after, a.reason, a.tries, a.delivery, a.answer
FROM relay_alert a LEFT JOIN relay r ON r.id = a.relay_id LEFT JOIN vantage v ON v.id = a.vantage_id
WHERE a.before IS NOT NULL AND ($1::text IS NULL OR r.url = $1) AND (NOT $2 OR a.due_at IS NOT NULL)
ORDER BY a.id DESC LIMIT $3";

impl Db {
    /// Alerts to be delivered, oldest first; none while one that failed waits.
    pub async fn alert_take(&self, limit: u32) -> Result<Vec<AlertRow>, DbError> {
        let rows = self
            .all(
                sqlx::query(
                    "SELECT id, relay_url, network, vantage, at, before, after, reason, tries FROM alert_take($1)",
                )
                .bind(i32::try_from(limit).unwrap_or(i32::MAX)),
            )
            .await?;
        rows.iter().map(alert).collect()
    }

    /// Stores what became of deliveries, and with `next` (at the latest, how late, why) when the task is due again;
    /// false when the fence was lost.
    pub async fn alert_settle(
        &self,
        fence: &Fence,
        settled: &[(i64, Delivery)],
        answer: &str,
        next: Option<(Duration, Duration, &str)>,
    ) -> Result<bool, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT alert_settle($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) AS held")
                    .bind(fence.job())
                    .bind(fence.worker())
                    .bind(fence.attempt())
                    .bind(settled.iter().map(|(id, _)| *id).collect::<Vec<_>>())
                    .bind(settled.iter().map(|(_, d)| d.as_str().to_owned()).collect::<Vec<_>>())
                    .bind(settled.iter().map(|(_, d)| d.delay().as_secs_f64()).collect::<Vec<_>>())
                    .bind(vec![answer.to_owned(); settled.len()])
                    .bind(next.map(|(after, ..)| after.as_secs_f64()))
                    .bind(next.map(|(_, slack, _)| slack_s(slack)))
                    .bind(next.map(|(.., why)| why.to_owned())),
            )
            .await?;
        get(&row, "held")
    }

    /// Forgets changes older than `keep_days`; without `deliver` also what waits for delivery, and its task.
    pub async fn alert_retire(&self, keep_days: u16, deliver: bool) -> Result<u64, DbError> {
        let row = self
            .one(sqlx::query("SELECT alert_retire($1, $2) AS n").bind(i32::from(keep_days)).bind(deliver))
            .await?;
        small_count(&row, "n")
    }

    /// Changes of liveness, newest first: of one relay, or only those that wait for delivery; at most `limit`.
    pub async fn alert_list(
        &self,
        relay: Option<&str>,
        pending: bool,
        limit: u32,
    ) -> Result<Vec<AlertLine>, DbError> {
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        let rows = self.all(sqlx::query(ALERTS).bind(relay).bind(pending).bind(limit)).await?;
        rows.iter()
            .map(|row| {
                Ok(AlertLine {
                    alert: alert(row)?,
                    delivery: get(row, "delivery")?,
                    answer: get(row, "answer")?,
                })
            })
            .collect()
    }
}

fn alert(row: &sqlx::postgres::PgRow) -> Result<AlertRow, DbError> {
    let tries: i32 = get(row, "tries")?;
    Ok(AlertRow {
        id: get(row, "id")?,
        relay_url: get(row, "relay_url")?,
        network: get(row, "network")?,
        vantage: get(row, "vantage")?,
        at: get(row, "at")?,
        before: get(row, "before")?,
        after: get(row, "after")?,
        reason: get(row, "reason")?,
        tries: u32::try_from(tries).unwrap_or(0),
    })
}
