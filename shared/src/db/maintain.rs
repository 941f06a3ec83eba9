//! Maintenance by the leading scheduler: rescue, retention, partitions.

use std::time::Duration;

use super::jobs::count32;
use super::rows::{get, small_count};
use super::{Db, DbError};

/// Most partitions made in one round: a bound, far above what any archive needs.
const PARTITIONS: u32 = 2_000;

/// What one rescue pass did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rescued {
    /// Jobs put back.
    pub again: u64,
    /// Jobs out of attempts.
    pub dead: u64,
}

impl Db {
    /// Puts back jobs whose worker or run deadline is gone.
    pub async fn job_rescue(&self) -> Result<Rescued, DbError> {
        let row = self.one(sqlx::query("SELECT rescued, killed FROM job_rescue()")).await?;
        Ok(Rescued { again: small_count(&row, "rescued")?, dead: small_count(&row, "killed")? })
    }

    /// Forgets workers whose lease ended longer ago than `older`.
    pub async fn worker_retire(&self, older: Duration) -> Result<u64, DbError> {
        let row = self.one(sqlx::query("SELECT worker_retire($1) AS n").bind(older.as_secs_f64())).await?;
        small_count(&row, "n")
    }

    /// Cancels at most `most` jobs that are due, of networks that are none of these and that no live worker serves; returns how
    /// many.
    pub async fn queue_retire(&self, networks: &[String], most: u32) -> Result<u64, DbError> {
        let row = self
            .one(sqlx::query("SELECT queue_retire($1, $2) AS n").bind(networks).bind(count32(most)))
            .await?;
        small_count(&row, "n")
    }

    /// Schedules relays that nothing scheduled, drops validations of what is no candidate; returns the changes.
    pub async fn schedule_reconcile(&self) -> Result<u64, DbError> {
        small_count(&self.one(sqlx::query("SELECT schedule_reconcile() AS n")).await?, "n")
    }

    /// Counts again what the server lost its counters of; returns how many partitions.
    pub async fn statistics_maintain(&self) -> Result<u64, DbError> {
        small_count(&self.one(sqlx::query("SELECT statistics_maintain() AS n")).await?, "n")
    }

    /// Forgets specimens (`relay_specimen`) older than `keep_days`; returns how many.
    pub async fn specimen_retire(&self, keep_days: u16) -> Result<u64, DbError> {
        let row = self.one(sqlx::query("SELECT specimen_retire($1) AS n").bind(i32::from(keep_days))).await?;
        small_count(&row, "n")
    }

    /// Drops whole days of job history older than `keep_days`.
    pub async fn job_retire(&self, keep_days: u16) -> Result<u64, DbError> {
        let row = self.one(sqlx::query("SELECT job_retire($1) AS n").bind(i32::from(keep_days))).await?;
        small_count(&row, "n")
    }

    /// Drops whole days of the check series older than `keep_days`.
    pub async fn check_retire(&self, keep_days: u16) -> Result<u64, DbError> {
        let row = self.one(sqlx::query("SELECT check_retire($1) AS n").bind(i32::from(keep_days))).await?;
        small_count(&row, "n")
    }

    /// Makes the partitions of the coming days and months, and those back to `since` (Unix seconds).
    pub async fn partition_maintain(&self, since: i64) -> Result<u64, DbError> {
        // One at a time: each takes locks that readers and writers wait behind until its transaction ends.
        let mut made = 0;
        for _ in 0..PARTITIONS {
            let row = self.one(sqlx::query("SELECT partition_maintain($1, 1) AS n").bind(since)).await?;
            match small_count(&row, "n")? {
                0 => break,
                n => made += n,
            }
        }
        Ok(made)
    }

    /// Makes the months from `since` (Unix seconds) on of which the default partitions hold something, at most `most`;
    /// returns how many partitions.
    pub async fn month_adopt(&self, since: i64, most: u32) -> Result<u64, DbError> {
        let mut made = 0;
        for _ in 0..most {
            match self.one(sqlx::query("SELECT month_adopt($1) AS n").bind(since)).await {
                Ok(row) => match small_count(&row, "n")? {
                    0 => break,
                    n => made += n,
                },
                // Somebody reads or writes there for longer than others are kept waiting: in the next round.
                Err(error) if error.is_busy() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(made)
    }

    /// Goes on with the round for documents that no relay has: looks at ten times `batch` and deletes at most that many.
    pub async fn orphan_metadata_delete(&self, batch: u32) -> Result<u64, DbError> {
        let batch = i32::try_from(batch).unwrap_or(i32::MAX);
        small_count(&self.one(sqlx::query("SELECT orphan_metadata_delete($1) AS n").bind(batch)).await?, "n")
    }

    /// Deletes at most one batch of archived events seen on no relay.
    pub async fn orphan_event_delete(&self, batch: u32) -> Result<u64, DbError> {
        let batch = i32::try_from(batch).unwrap_or(i32::MAX);
        small_count(&self.one(sqlx::query("SELECT orphan_event_delete($1) AS n").bind(batch)).await?, "n")
    }

    /// Sets named facts; values are JSON texts. The last of equal keys wins.
    pub async fn service_state_upsert(&self, states: &[[String; 4]]) -> Result<u64, DbError> {
        let column = |i: usize| states.iter().map(|s| s[i].clone()).collect::<Vec<_>>();
        let row = self
            .one(
                sqlx::query("SELECT service_state_upsert($1, $2, $3, $4) AS n")
                    .bind(column(0))
                    .bind(column(1))
                    .bind(column(2))
                    .bind(column(3)),
            )
            .await?;
        small_count(&row, "n")
    }

    /// Facts of one service and type as (key, JSON text), one key or all.
    pub async fn service_state_get(
        &self,
        service: &str,
        state_type: &str,
        key: Option<&str>,
    ) -> Result<Vec<(String, String)>, DbError> {
        let rows = self
            .all(
                sqlx::query("SELECT state_key, state_value FROM service_state_get($1, $2, $3)")
                    .bind(service)
                    .bind(state_type)
                    .bind(key),
            )
            .await?;
        rows.iter().map(|row| Ok((get(row, "state_key")?, get(row, "state_value")?))).collect()
    }

    /// Deletes named facts given as (service, type, key).
    pub async fn service_state_delete(&self, states: &[[String; 3]]) -> Result<u64, DbError> {
        let column = |i: usize| states.iter().map(|s| s[i].clone()).collect::<Vec<_>>();
        let row = self
            .one(
                sqlx::query("SELECT service_state_delete($1, $2, $3) AS n")
                    .bind(column(0))
                    .bind(column(1))
                    .bind(column(2)),
            )
            .await?;
        small_count(&row, "n")
    }
}
