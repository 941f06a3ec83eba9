//! Candidates, relays, checks and documents.

use std::time::Duration;

use sqlx::postgres::PgRow;

use super::rows::{get, small_count};
use super::{Db, DbError};
use crate::models::{AddressPolicy, Fence, JobKind, Metadata, RelayUrl};

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

pub(super) fn slack_s(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)
}

pub(super) fn ms(value: Option<u32>) -> Option<i32> {
    value.map(|v| i32::try_from(v).unwrap_or(i32::MAX))
}

/// The place, from 0, of the question that a row answers.
pub(super) fn position(row: &PgRow) -> Result<usize, DbError> {
    let position: i32 = get(row, "o")?;
    Ok(usize::try_from(position).unwrap_or(1).saturating_sub(1))
}

pub(super) fn lost(rows: &[PgRow]) -> Result<Vec<usize>, DbError> {
    rows.iter().map(position).collect()
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
