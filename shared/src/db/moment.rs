//! Of when an export is: a moment whose observations are all there once they are read, whoever stores meanwhile.
//!
//! An observation has its time before its transaction begins. So a moment is settled when everybody who may have taken
//! an earlier time has stored what it has: batches of imports by their lock, sync jobs by their end.

use super::rows::get;
use super::{Db, DbError};

/// How long after its time of seeing an observation is there at the latest, seconds: twice the limit of a statement.
pub const SETTLE_S: i64 = 120;
/// An export that begins beside sync jobs is as of so many seconds later: whatever coverage claims then was seen by then.
const AHEAD_S: i64 = 2;

impl Db {
    /// The latest `as_of` that nothing can be added to any more: a second ago where no sync job runs, else as long ago
    /// as the slowest statement may take. On a standby that is reckoned from the last transaction it has replayed.
    pub async fn export_as_of(&self) -> Result<i64, DbError> {
        let at = self.export_now().await?;
        Ok(at - if self.export_syncing(i64::MAX).await? { SETTLE_S } else { 1 })
    }

    /// As of when an export is that begins now, and whether all that was seen by then is there. Coverage that is read at
    /// once claims nothing that will not be; to go back in time instead would lose the proof of every relay
    /// whose coverage has grown since.
    pub async fn export_moment(&self) -> Result<(i64, bool), DbError> {
        let at = self.export_now().await?;
        let syncing = self.export_syncing(i64::MAX).await?;
        Ok(if syncing { (at + AHEAD_S, false) } else { (at - 1, true) })
    }

    /// The second it is for an export, and whether all that was seen by `as_of` is there: every sync job that ran then has
    /// ended, or time enough is over. On a standby that replays nothing it is the same second for ever.
    pub async fn export_settled(&self, as_of: i64) -> Result<(i64, bool), DbError> {
        let at = self.export_now().await?;
        Ok((at, at >= as_of + SETTLE_S || (at > as_of && !self.export_syncing(as_of).await?)))
    }

    /// The second it is. Batches of an import that have an earlier one are stored: each holds the lock from before it
    /// takes its time until it is over.
    async fn export_now(&self) -> Result<i64, DbError> {
        let row = self
            .one(sqlx::query(
                "SELECT pg_advisory_xact_lock(7334)::text,
                        floor(extract(epoch FROM CASE WHEN pg_is_in_recovery()
                            THEN coalesce(pg_last_xact_replay_timestamp(), (pg_control_checkpoint()).checkpoint_time) ELSE now() END))::bigint AS at",
            ))
            .await?;
        get(&row, "at")
    }

    /// Whether a sync job runs that began by `until`.
    async fn export_syncing(&self, until: i64) -> Result<bool, DbError> {
        let row = self
            .one(
                sqlx::query(
                    "SELECT EXISTS (SELECT FROM jobs_running WHERE kind = 'sync' AND extract(epoch FROM started_at) < $1) AS syncing",
                )
                .bind(until.saturating_add(1)),
            )
            .await?;
        get(&row, "syncing")
    }
}
