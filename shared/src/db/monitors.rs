//! What other monitors say: of relays, and of themselves.

use std::collections::BTreeMap;

use super::rows::{get, small_count};
use super::{Db, DbError};
use crate::models::{MonitorAnnouncementRow, MonitorReportRow, RelayUrl};

/// Another monitor's word on a relay beside ours.
#[derive(Debug, Clone)]
pub struct DisagreementLine {
    /// Public key, hexadecimal.
    pub monitor: String,
    /// When, Unix seconds.
    pub seen_at: i64,
    /// alive, or absent when its last word is old.
    pub their_state: String,
    /// Ours: a relay's liveness; of what is no relay of ours `untried`, `failing`, `given-up`, or `unknown` where it is no
    /// candidate.
    pub our_state: String,
    /// Outcome of our latest look, and why that state, where there was one.
    pub our_end: [Option<String>; 2],
    /// Theirs, milliseconds.
    pub their_open_ms: Option<i32>,
    /// Whether it says that authentication and payment are asked for.
    pub their_needs: [Option<bool>; 2],
    /// In what it differs from us: `liveness`, `refused`, `suspect`, `unproved`, `auth`, `payment`.
    pub disagrees: Vec<String>,
}

/// Other monitors shown with a relay.
const MONITORS: i32 = 100;

fn ms(rows: &[MonitorReportRow], which: usize) -> Vec<Option<i32>> {
    rows.iter().map(|row| row.rtt_ms[which].and_then(|ms| i32::try_from(ms).ok())).collect()
}

impl Db {
    /// Keeps what other monitors say of relays, and of URLs that may become relays; returns how many rows were written.
    pub async fn monitor_report_put(&self, rows: &[MonitorReportRow]) -> Result<u64, DbError> {
        let nips = |row: &MonitorReportRow| {
            format!("{{{}}}", row.nips.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
        };
        let row = self
            .one(
                sqlx::query(
                    "SELECT monitor_report_put($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) AS n",
                )
                .bind(rows.iter().map(|r| r.monitor.to_vec()).collect::<Vec<_>>())
                .bind(rows.iter().map(|r| r.url.to_string()).collect::<Vec<_>>())
                .bind(rows.iter().map(|r| r.created_at).collect::<Vec<_>>())
                .bind(ms(rows, 0))
                .bind(ms(rows, 1))
                .bind(ms(rows, 2))
                .bind(rows.iter().map(|r| r.auth).collect::<Vec<_>>())
                .bind(rows.iter().map(|r| r.writes).collect::<Vec<_>>())
                .bind(rows.iter().map(|r| r.pow).collect::<Vec<_>>())
                .bind(rows.iter().map(|r| r.payment).collect::<Vec<_>>())
                .bind(rows.iter().map(nips).collect::<Vec<_>>())
                .bind(rows.iter().map(|r| r.geohash.clone()).collect::<Vec<_>>()),
            )
            .await?;
        small_count(&row, "n")
    }

    /// Keeps what other monitors say of themselves; returns how many rows were written.
    pub async fn monitor_announcement_put(&self, rows: &[MonitorAnnouncementRow]) -> Result<u64, DbError> {
        // An array literal: quoted like a JSON text, which the names of checks fit.
        let checks = |row: &MonitorAnnouncementRow| {
            let quoted: Vec<String> =
                row.checks.iter().map(|c| serde_json::Value::from(c.as_str()).to_string()).collect();
            format!("{{{}}}", quoted.join(","))
        };
        let timeouts = |row: &MonitorAnnouncementRow| {
            let map: BTreeMap<&str, u32> =
                row.timeouts_ms.iter().map(|(check, ms)| (check.as_str(), *ms)).collect();
            serde_json::json!(map).to_string()
        };
        let row = self
            .one(
                sqlx::query("SELECT monitor_announcement_put($1, $2, $3, $4, $5, $6) AS n")
                    .bind(rows.iter().map(|r| r.monitor.to_vec()).collect::<Vec<_>>())
                    .bind(rows.iter().map(|r| r.created_at).collect::<Vec<_>>())
                    .bind(
                        rows.iter()
                            .map(|r| r.frequency_s.and_then(|s| i32::try_from(s).ok()))
                            .collect::<Vec<_>>(),
                    )
                    .bind(rows.iter().map(checks).collect::<Vec<_>>())
                    .bind(rows.iter().map(timeouts).collect::<Vec<_>>())
                    .bind(rows.iter().map(|r| r.geohash.clone()).collect::<Vec<_>>()),
            )
            .await?;
        small_count(&row, "n")
    }

    /// What other monitors say of a relay, or of a URL that is none of ours, those that differ from us first; needs a role
    /// that may read.
    pub async fn disagreement_list(&self, url: &RelayUrl) -> Result<Vec<DisagreementLine>, DbError> {
        let rows = self
            .all(
                sqlx::query(
                    "SELECT monitor, seen_at, their_state, our_state, their_open_ms, their_auth, their_payment, disagrees, our_outcome, our_reason \
                     FROM monitor_disagreement WHERE relay_url = $1 ORDER BY cardinality(disagrees) DESC, monitor LIMIT $2",
                )
                .bind(url.as_str())
                .bind(MONITORS),
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(DisagreementLine {
                    monitor: get(row, "monitor")?,
                    seen_at: get(row, "seen_at")?,
                    their_state: get(row, "their_state")?,
                    our_state: get(row, "our_state")?,
                    our_end: [get(row, "our_outcome")?, get(row, "our_reason")?],
                    their_open_ms: get(row, "their_open_ms")?,
                    their_needs: [get(row, "their_auth")?, get(row, "their_payment")?],
                    disagrees: get(row, "disagrees")?,
                })
            })
            .collect()
    }
}
