//! What monitor jobs read and write: liveness per vantage and over all, checks, uptime.

use std::time::Duration;

use sqlx::postgres::PgRow;

use super::observe::{fences, lost, ms, slack_s};
use super::rows::{get, word};
use super::{Db, DbError};
use crate::models::{Fence, Metadata, Network, Outcome, Reason, RelayUrl};

/// A relay with its liveness from one vantage.
#[derive(Debug, Clone)]
pub struct RelayRow {
    /// `relay.id`.
    pub id: i32,
    /// State, absent before the first check.
    pub state: Option<String>,
    /// What the latest check gave for it.
    pub reason: Option<String>,
    /// When the state began, Unix seconds.
    pub since_at: Option<i64>,
    /// Consecutive failed checks; of a relay that was down, kept until it is alive again.
    pub failures: u32,
    /// Consecutive good checks.
    pub successes: u32,
    /// Latest look from there, Unix seconds.
    pub checked_at: Option<i64>,
    /// State over all vantages, absent before the first look.
    pub overall: Option<String>,
    /// When that state began, Unix seconds.
    pub overall_since_at: Option<i64>,
    /// What the other vantages say.
    pub others: Vec<OpinionRow>,
    /// The latest look from elsewhere, Unix seconds.
    pub others_checked_at: Option<i64>,
    /// After a failed look from there: whether a live worker of another vantage could look next.
    pub rivals: bool,
    /// Vantages that must agree that it is down, where a scheduler has said so.
    pub for_down: Option<u32>,
}

impl RelayRow {
    /// Whether nothing from there has said that it is down: when such a one fails, it may be us.
    pub fn was_up(&self) -> bool {
        matches!(self.state.as_deref(), Some("alive" | "suspect"))
    }
}

/// What one vantage says of a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpinionRow {
    /// alive, suspect or down.
    pub state: String,
    /// Why.
    pub reason: Reason,
    /// Until when it counts, Unix seconds.
    pub stands_until: i64,
}

/// One check of a monitor job.
#[derive(Debug, Clone)]
pub struct CheckRow {
    /// Kind of check, as stored.
    pub kind: &'static str,
    /// What was found.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// Milliseconds until open, to read, to write.
    pub rtt_ms: [Option<u32>; 3],
    /// The document it saw.
    pub document: Option<Metadata>,
    /// The HTTP status that it failed by.
    pub status: Option<u16>,
}

/// Result of one monitor job.
#[derive(Debug, Clone)]
pub struct MonitorResult {
    /// Proof that the job is still ours.
    pub fence: Fence,
    /// Which relay.
    pub url: RelayUrl,
    /// New state from this vantage: `alive`, `suspect` or `down`.
    pub state: &'static str,
    /// Why.
    pub reason: Reason,
    /// Consecutive failed checks.
    pub failures: u32,
    /// Consecutive good checks.
    pub successes: u32,
    /// Whether this check found it alive.
    pub alive: bool,
    /// When, Unix seconds.
    pub checked_at: i64,
    /// When to check again.
    pub next: Duration,
    /// How late that may be.
    pub slack: Duration,
    /// What set that time.
    pub why: String,
    /// For how long this opinion counts.
    pub stands: Duration,
    /// State over all vantages.
    pub overall: &'static str,
    /// Why.
    pub overall_reason: Reason,
    /// Whether the look says something about the relay, and so counts in its uptime.
    pub counted: bool,
    /// The checks.
    pub checks: Vec<CheckRow>,
}

/// Parallel arrays; null when nobody else has looked.
fn opinions(row: &PgRow, url: &RelayUrl) -> Result<Vec<OpinionRow>, DbError> {
    let states: Option<Vec<String>> = get(row, "other_states")?;
    let reasons: Option<Vec<String>> = get(row, "other_reasons")?;
    let stands: Option<Vec<i64>> = get(row, "other_stands")?;
    states
        .unwrap_or_default()
        .into_iter()
        .zip(reasons.unwrap_or_default())
        .zip(stands.unwrap_or_default())
        .map(|((state, reason), stands_until)| {
            let reason = word(&reason, "relay_state", "reason", || url.to_string())?;
            Ok(OpinionRow { state, reason, stands_until })
        })
        .collect()
}

impl Db {
    /// The relay of this URL with its liveness from `vantage`, if there is one.
    pub async fn relay_get(&self, url: &RelayUrl, vantage: &str) -> Result<Option<RelayRow>, DbError> {
        let rows = self
            .all(
                sqlx::query(
                    "SELECT relay_id, network, state, reason, since_at, failures, successes, checked_at, overall, overall_since_at, \
                     other_states, other_reasons, other_stands, others_checked_at, rivals, for_down FROM relay_get($1, $2)",
                )
                .bind(vec![url.as_str().to_owned()])
                .bind(vantage),
            )
            .await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let network: String = get(row, "network")?;
        let network: Network = word(&network, "relay", "network", || url.to_string())?;
        if network != url.network() {
            return Err(DbError::Corrupt {
                table: "relay",
                column: "network",
                row: url.to_string(),
                problem: format!("{network} is not the network of this URL"),
            });
        }
        let (failures, successes): (i32, i32) = (get(row, "failures")?, get(row, "successes")?);
        Ok(Some(RelayRow {
            id: get(row, "relay_id")?,
            state: get(row, "state")?,
            reason: get(row, "reason")?,
            since_at: get(row, "since_at")?,
            failures: u32::try_from(failures).unwrap_or(0),
            successes: u32::try_from(successes).unwrap_or(0),
            checked_at: get(row, "checked_at")?,
            overall: get(row, "overall")?,
            overall_since_at: get(row, "overall_since_at")?,
            others: opinions(row, url)?,
            others_checked_at: get(row, "others_checked_at")?,
            rivals: get(row, "rivals")?,
            for_down: get::<Option<i32>>(row, "for_down")?.and_then(|n| u32::try_from(n).ok()),
        }))
    }

    /// Stores results of monitor jobs from one vantage; returns the positions whose fence was lost.
    pub async fn monitor_finish(
        &self,
        vantage: &str,
        results: &[MonitorResult],
    ) -> Result<Vec<usize>, DbError> {
        let (jobs, workers, attempts) = fences(results.iter().map(|r| &r.fence));
        let checks: Vec<(i32, &CheckRow)> = results
            .iter()
            .zip(1_i32..)
            .flat_map(|(result, position)| result.checks.iter().map(move |check| (position, check)))
            .collect();
        let rows = self
            .all(
                sqlx::query(
                    "SELECT o FROM monitor_finish($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, \
                     $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29) AS o",
                )
                .bind(jobs)
                .bind(workers)
                .bind(attempts)
                .bind(results.iter().map(|r| r.url.as_str().to_owned()).collect::<Vec<_>>())
                .bind(vantage)
                .bind(results.iter().map(|r| r.state.to_owned()).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.reason.as_str().to_owned()).collect::<Vec<_>>())
                .bind(results.iter().map(|r| i32::try_from(r.failures).unwrap_or(i32::MAX)).collect::<Vec<_>>())
                .bind(results.iter().map(|r| i32::try_from(r.successes).unwrap_or(i32::MAX)).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.alive).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.checked_at).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.next.as_secs_f64()).collect::<Vec<_>>())
                .bind(results.iter().map(|r| slack_s(r.slack)).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.why.clone()).collect::<Vec<_>>())
                .bind(checks.iter().map(|(job, _)| *job).collect::<Vec<_>>())
                .bind(checks.iter().map(|(_, c)| c.kind.to_owned()).collect::<Vec<_>>())
                .bind(checks.iter().map(|(_, c)| c.outcome.as_str().to_owned()).collect::<Vec<_>>())
                .bind(checks.iter().map(|(_, c)| c.reason.as_str().to_owned()).collect::<Vec<_>>())
                .bind(checks.iter().map(|(_, c)| ms(c.rtt_ms[0])).collect::<Vec<_>>())
                .bind(checks.iter().map(|(_, c)| ms(c.rtt_ms[1])).collect::<Vec<_>>())
                .bind(checks.iter().map(|(_, c)| ms(c.rtt_ms[2])).collect::<Vec<_>>())
                .bind(checks.iter().map(|(_, c)| c.document.as_ref().map(|d| d.id().as_slice())).collect::<Vec<_>>())
                .bind(checks.iter().map(|(_, c)| c.document.as_ref().map(|d| d.kind().as_str().to_owned())).collect::<Vec<_>>())
                .bind(checks.iter().map(|(_, c)| c.document.as_ref().map(Metadata::canonical)).collect::<Vec<_>>())
                .bind(results.iter().map(|r| slack_s(r.stands)).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.overall.to_owned()).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.overall_reason.as_str().to_owned()).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.counted).collect::<Vec<_>>())
                .bind(checks.iter().map(|(_, c)| c.status.map(i32::from)).collect::<Vec<_>>()),
            )
            .await?;
        lost(&rows)
    }
}
