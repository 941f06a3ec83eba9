//! Capability records: claims, measurements and write probes of relays.

use super::observe::{fences, lost, ms};
use super::rows::{get, word};
use super::{Db, DbError};
use crate::models::{Claims, Fence, Measured, Outcome, Reason, RelayUrl};

/// What a monitor job found out about one relay, besides its checks.
#[derive(Debug, Clone)]
pub struct CapabilityResult {
    /// Proof that the job is still ours.
    pub fence: Fence,
    /// Which relay.
    pub url: RelayUrl,
    /// When, Unix seconds.
    pub at: i64,
    /// What its document says; kept only with a measurement.
    pub claims: Option<Claims>,
    /// What was measured, if anything was.
    pub measured: Option<Measured>,
    /// What became of an event of ours, if one was to be published.
    pub write: Option<WriteRow>,
}

/// What became of an event published as a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteRow {
    /// `ok` only after `OK true`.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// The relay's own words.
    pub detail: String,
    /// Milliseconds to `OK true`.
    pub write_ms: Option<u32>,
    /// Bits of proof of work it demanded.
    pub pow: Option<u32>,
}

/// The newest record of one relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CapabilityRow {
    /// When it was measured, Unix seconds; none before that.
    pub measured_at: Option<i64>,
    /// From where.
    pub vantage: Option<String>,
    /// What its document said then.
    pub claims: Option<Claims>,
    /// What was seen.
    pub measured: Option<Measured>,
    /// When the newest write probe was, Unix seconds, and what became of it.
    pub write: Option<(i64, WriteRow)>,
}

impl CapabilityRow {
    /// When the newest write probe was, Unix seconds.
    pub fn written_at(&self) -> Option<i64> {
        self.write.as_ref().map(|(at, _)| *at)
    }
}

fn json<T: serde::Serialize>(value: Option<&T>) -> Option<String> {
    value.map(|value| serde_json::to_string(value).expect("words and numbers always have a JSON form"))
}

impl Db {
    /// Stores records of monitor jobs from one vantage; returns the positions whose fence was lost.
    pub async fn capability_put(
        &self,
        vantage: &str,
        results: &[CapabilityResult],
    ) -> Result<Vec<usize>, DbError> {
        let (jobs, workers, attempts) = fences(results.iter().map(|r| &r.fence));
        let writes: Vec<Option<&WriteRow>> = results.iter().map(|r| r.write.as_ref()).collect();
        let pick = |of: fn(&WriteRow) -> String| -> Vec<Option<String>> {
            writes.iter().map(|write| write.map(of)).collect()
        };
        let rows = self
            .all(
                sqlx::query(
                    "SELECT o FROM capability_put($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) AS o",
                )
                .bind(jobs)
                .bind(workers)
                .bind(attempts)
                .bind(results.iter().map(|r| r.url.as_str().to_owned()).collect::<Vec<_>>())
                .bind(vantage)
                .bind(results.iter().map(|r| r.at).collect::<Vec<_>>())
                .bind(results.iter().map(|r| json(r.claims.as_ref())).collect::<Vec<_>>())
                .bind(results.iter().map(|r| json(r.measured.as_ref())).collect::<Vec<_>>())
                .bind(pick(|write| write.outcome.as_str().to_owned()))
                .bind(pick(|write| write.reason.as_str().to_owned()))
                .bind(pick(|write| write.detail.clone()))
                .bind(writes.iter().map(|w| w.and_then(|w| ms(w.write_ms))).collect::<Vec<_>>())
                .bind(writes.iter().map(|w| w.and_then(|w| ms(w.pow))).collect::<Vec<_>>()),
            )
            .await?;
        lost(&rows)
    }

    /// The newest record of a relay, if there is one: what the archive plans by.
    pub async fn capability_get(&self, relay_id: i32) -> Result<Option<CapabilityRow>, DbError> {
        let rows = self
            .all(
                sqlx::query(
                    "SELECT measured_at, vantage, claimed, measured, write_at, write_outcome, write_reason, \
                     write_detail, write_ms, write_pow FROM capability_get($1)",
                )
                .bind(vec![relay_id]),
            )
            .await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let name = || format!("relay {relay_id}");
        let number = |column| -> Result<Option<u32>, DbError> {
            Ok(get::<Option<i32>>(row, column)?.and_then(|number| u32::try_from(number).ok()))
        };
        let outcome: Option<String> = get(row, "write_outcome")?;
        let write = match (get::<Option<i64>>(row, "write_at")?, outcome) {
            (Some(at), Some(outcome)) => {
                let reason: Option<String> = get(row, "write_reason")?;
                let write = WriteRow {
                    outcome: word(&outcome, "relay_capability", "write_outcome", name)?,
                    reason: word(&reason.unwrap_or_default(), "relay_capability", "write_reason", name)?,
                    detail: get::<Option<String>>(row, "write_detail")?.unwrap_or_default(),
                    write_ms: number("write_ms")?,
                    pow: number("write_pow")?,
                };
                Some((at, write))
            }
            _ => None,
        };
        Ok(Some(CapabilityRow {
            measured_at: get(row, "measured_at")?,
            vantage: get(row, "vantage")?,
            claims: parsed(get(row, "claimed")?, "claimed", relay_id)?,
            measured: parsed(get(row, "measured")?, "measured", relay_id)?,
            write,
        }))
    }
}

/// Where a relay does otherwise than it, or NIP-01, says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DifferenceLine {
    /// What differs: a NIP, a limit, a way to read filters.
    pub subject: String,
    /// What is said.
    pub claimed: String,
    /// What was seen.
    pub measured: String,
    /// When, Unix seconds; none where only a write was probed.
    pub at: Option<i64>,
}

impl Db {
    /// Where one relay does otherwise than it says.
    pub async fn relay_differences(&self, url: &RelayUrl) -> Result<Vec<DifferenceLine>, DbError> {
        let rows = self
            .all(
                sqlx::query(
                    "SELECT subject, claimed, measured, at FROM relay_capability_difference \
                     WHERE url = $1 ORDER BY subject, measured",
                )
                .bind(url.as_str().to_owned()),
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(DifferenceLine {
                    subject: get(row, "subject")?,
                    claimed: get(row, "claimed")?,
                    measured: get(row, "measured")?,
                    at: get(row, "at")?,
                })
            })
            .collect()
    }
}

pub(super) fn parsed<T: serde::de::DeserializeOwned>(
    text: Option<String>,
    column: &'static str,
    relay_id: i32,
) -> Result<Option<T>, DbError> {
    text.map(|text| {
        serde_json::from_str(&text).map_err(|error| DbError::Corrupt {
            table: "relay_capability",
            column,
            row: format!("relay {relay_id}"),
            problem: error.to_string(),
        })
    })
    .transpose()
}
