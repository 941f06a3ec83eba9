//! Candidates, relays, checks and documents.

use std::time::Duration;

use sqlx::postgres::PgRow;

use super::rows::{get, small_count, word};
use super::{Db, DbError};
use crate::models::{AddressPolicy, Fence, JobKind, Metadata, Network, Outcome, Reason, RelayUrl};

/// A URL seen somewhere that may be a relay.
#[derive(Debug, Clone)]
pub struct NewCandidate {
    /// Canonical URL.
    pub url: RelayUrl,
    /// Where it was seen: `seed`, `event`, `operator`.
    pub source: &'static str,
}

/// A candidate as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CandidateRow {
    /// Consecutive failed validations.
    pub failures: u32,
    /// First sighting, Unix seconds.
    pub first_seen_at: i64,
}

/// A relay with its liveness from one vantage.
#[derive(Debug, Clone)]
pub struct RelayRow {
    /// `relay.id`.
    pub id: i32,
    /// State, absent before the first check.
    pub state: Option<String>,
    /// When the state began, Unix seconds.
    pub since_at: Option<i64>,
    /// Consecutive failed checks.
    pub failures: u32,
    /// Consecutive good checks.
    pub successes: u32,
}

/// Result of one validation.
#[derive(Debug, Clone)]
pub struct ValidateResult {
    /// Proof that the job is still ours.
    pub fence: Fence,
    /// Which candidate.
    pub url: RelayUrl,
    /// Whether it spoke Nostr.
    pub alive: bool,
    /// What was found.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// When to try again, if not alive.
    pub next: Duration,
    /// How late that may be.
    pub slack: Duration,
    /// Never try again by itself.
    pub give_up: bool,
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
}

/// Result of one monitor job.
#[derive(Debug, Clone)]
pub struct MonitorResult {
    /// Proof that the job is still ours.
    pub fence: Fence,
    /// Which relay.
    pub url: RelayUrl,
    /// New state: `alive`, `suspect` or `down`.
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
    /// The checks.
    pub checks: Vec<CheckRow>,
}

/// A target that must have a schedule row.
#[derive(Debug, Clone)]
pub struct ScheduleTarget {
    /// Kind of job.
    pub kind: JobKind,
    /// Task name.
    pub target: String,
    /// Network, or `local`.
    pub network: String,
    /// How late it may run.
    pub slack: Duration,
}

fn slack_s(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)
}

pub(super) fn ms(value: Option<u32>) -> Option<i32> {
    value.map(|v| i32::try_from(v).unwrap_or(i32::MAX))
}

pub(super) fn lost(rows: &[PgRow]) -> Result<Vec<usize>, DbError> {
    rows.iter()
        .map(|row| {
            let position: i32 = get(row, "o")?;
            Ok(usize::try_from(position).unwrap_or(1).saturating_sub(1))
        })
        .collect()
}

pub(super) fn fences<'a>(
    fences: impl Iterator<Item = &'a Fence> + Clone,
) -> (Vec<String>, Vec<String>, Vec<i32>) {
    (
        fences.clone().map(|f| f.job().to_owned()).collect(),
        fences.clone().map(|f| f.worker().to_owned()).collect(),
        fences.map(Fence::attempt).collect(),
    )
}

impl Db {
    /// Records sightings; returns how many URLs were new.
    pub async fn candidate_insert(&self, candidates: &[NewCandidate]) -> Result<u64, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT candidate_insert($1, $2, $3) AS n")
                    .bind(candidates.iter().map(|c| c.url.as_str().to_owned()).collect::<Vec<_>>())
                    .bind(candidates.iter().map(|c| c.url.network().as_str().to_owned()).collect::<Vec<_>>())
                    .bind(candidates.iter().map(|c| c.source.to_owned()).collect::<Vec<_>>()),
            )
            .await?;
        small_count(&row, "n")
    }

    /// The candidate of this URL, unless it is unknown or given up.
    pub async fn candidate_get(&self, url: &RelayUrl) -> Result<Option<CandidateRow>, DbError> {
        let rows = self
            .all(
                sqlx::query("SELECT failures, first_seen_at FROM candidate_get($1)")
                    .bind(vec![url.as_str().to_owned()]),
            )
            .await?;
        rows.first()
            .map(|row| {
                let failures: i32 = get(row, "failures")?;
                Ok(CandidateRow {
                    failures: u32::try_from(failures).unwrap_or(0),
                    first_seen_at: get(row, "first_seen_at")?,
                })
            })
            .transpose()
    }

    /// The relay of this URL with its liveness from `vantage`, if there is one.
    pub async fn relay_get(&self, url: &RelayUrl, vantage: &str) -> Result<Option<RelayRow>, DbError> {
        let rows = self
            .all(
                sqlx::query(
                    "SELECT relay_id, network, state, since_at, failures, successes FROM relay_get($1, $2)",
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
            since_at: get(row, "since_at")?,
            failures: u32::try_from(failures).unwrap_or(0),
            successes: u32::try_from(successes).unwrap_or(0),
        }))
    }

    /// Adds proved relays; returns how many were new.
    pub async fn relay_insert(&self, relays: &[(RelayUrl, i64)]) -> Result<u64, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT relay_insert($1, $2, $3) AS n")
                    .bind(relays.iter().map(|(u, _)| u.as_str().to_owned()).collect::<Vec<_>>())
                    .bind(relays.iter().map(|(u, _)| u.network().as_str().to_owned()).collect::<Vec<_>>())
                    .bind(relays.iter().map(|(_, at)| *at).collect::<Vec<_>>()),
            )
            .await?;
        small_count(&row, "n")
    }

    /// Stores results of validations; returns the positions whose fence was lost.
    pub async fn validate_finish(&self, results: &[ValidateResult]) -> Result<Vec<usize>, DbError> {
        let (jobs, workers, attempts) = fences(results.iter().map(|r| &r.fence));
        let rows = self
            .all(
                sqlx::query(
                    "SELECT o FROM validate_finish($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) AS o",
                )
                .bind(jobs)
                .bind(workers)
                .bind(attempts)
                .bind(results.iter().map(|r| r.url.as_str().to_owned()).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.url.network().as_str().to_owned()).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.alive).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.outcome.as_str().to_owned()).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.reason.as_str().to_owned()).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.next.as_secs_f64()).collect::<Vec<_>>())
                .bind(results.iter().map(|r| slack_s(r.slack)).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.give_up).collect::<Vec<_>>()),
            )
            .await?;
        lost(&rows)
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
                     $15, $16, $17, $18, $19, $20, $21, $22, $23, $24) AS o",
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
                .bind(checks.iter().map(|(_, c)| c.document.as_ref().map(|d| d.id().to_vec())).collect::<Vec<_>>())
                .bind(checks.iter().map(|(_, c)| c.document.as_ref().map(|d| d.kind().as_str().to_owned())).collect::<Vec<_>>())
                .bind(checks.iter().map(|(_, c)| c.document.as_ref().map(|d| d.canonical().to_owned())).collect::<Vec<_>>()),
            )
            .await?;
        lost(&rows)
    }

    /// Stores canonical documents; returns how many were new.
    pub async fn metadata_insert(&self, documents: &[Metadata]) -> Result<u64, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT metadata_insert($1, $2, $3) AS n")
                    .bind(documents.iter().map(|d| d.id().to_vec()).collect::<Vec<_>>())
                    .bind(documents.iter().map(|d| d.kind().as_str().to_owned()).collect::<Vec<_>>())
                    .bind(documents.iter().map(|d| d.canonical().to_owned()).collect::<Vec<_>>()),
            )
            .await?;
        small_count(&row, "n")
    }

    /// Records that relays have documents, where that is a change; returns how many changed.
    pub async fn relay_metadata_insert_cascade(
        &self,
        documents: &[(RelayUrl, Metadata, i64)],
    ) -> Result<u64, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT relay_metadata_insert_cascade($1, $2, $3, $4, $5, $6, $3) AS n")
                    .bind(documents.iter().map(|(u, _, _)| u.as_str().to_owned()).collect::<Vec<_>>())
                    .bind(
                        documents.iter().map(|(u, _, _)| u.network().as_str().to_owned()).collect::<Vec<_>>(),
                    )
                    .bind(documents.iter().map(|(_, _, at)| *at).collect::<Vec<_>>())
                    .bind(documents.iter().map(|(_, d, _)| d.id().to_vec()).collect::<Vec<_>>())
                    .bind(documents.iter().map(|(_, d, _)| d.kind().as_str().to_owned()).collect::<Vec<_>>())
                    .bind(documents.iter().map(|(_, d, _)| d.canonical().to_owned()).collect::<Vec<_>>()),
            )
            .await?;
        small_count(&row, "n")
    }

    /// Makes targets due now that were never scheduled; returns how many were new.
    pub async fn schedule_ensure(&self, targets: &[ScheduleTarget]) -> Result<u64, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT schedule_ensure($1, $2, $3, $4) AS n")
                    .bind(targets.iter().map(|t| t.kind.as_str().to_owned()).collect::<Vec<_>>())
                    .bind(targets.iter().map(|t| t.target.clone()).collect::<Vec<_>>())
                    .bind(targets.iter().map(|t| t.network.clone()).collect::<Vec<_>>())
                    .bind(targets.iter().map(|t| slack_s(t.slack)).collect::<Vec<_>>()),
            )
            .await?;
        small_count(&row, "n")
    }

    /// Sets when the target of a job one holds is next due; false when the fence was lost.
    pub async fn schedule_next(
        &self,
        fence: &Fence,
        next: Duration,
        slack: Duration,
        why: &str,
    ) -> Result<bool, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT schedule_next($1, $2, $3, $4, $5, $6) AS held")
                    .bind(fence.job())
                    .bind(fence.worker())
                    .bind(fence.attempt())
                    .bind(next.as_secs_f64())
                    .bind(slack_s(slack))
                    .bind(why),
            )
            .await?;
        get(&row, "held")
    }

    /// Reads a stored URL back, or names the row that does not parse.
    pub(super) fn stored_url(
        text: &str,
        table: &'static str,
        row: impl FnOnce() -> String,
    ) -> Result<RelayUrl, DbError> {
        // What policy let it in is not known here: any address that was ever allowed may be stored.
        match RelayUrl::parse(text, &AddressPolicy::any()) {
            Ok(url) if url.as_str() == text => Ok(url),
            Ok(url) => Err(DbError::Corrupt {
                table,
                column: "url",
                row: row(),
                problem: format!("{text:?} is not canonical, {:?} is", url.as_str()),
            }),
            Err(error) => Err(DbError::Corrupt {
                table,
                column: "url",
                row: row(),
                problem: format!("{text:?}: {error}"),
            }),
        }
    }
}
