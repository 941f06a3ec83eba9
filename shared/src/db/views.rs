//! The analytics views and their refresh.

use super::rows::{count, get};
use super::{Db, DbError};

/// Every view with its refresh, in the order in which they are refreshed.
pub const VIEWS: [(&str, &str); 13] = [
    ("relay_metadata_latest", "SELECT relay_metadata_latest_refresh()"),
    ("event_stats", "SELECT event_stats_refresh()"),
    ("relay_stats", "SELECT relay_stats_refresh()"),
    ("kind_counts", "SELECT kind_counts_refresh()"),
    ("kind_counts_by_relay", "SELECT kind_counts_by_relay_refresh()"),
    ("pubkey_counts", "SELECT pubkey_counts_refresh()"),
    ("pubkey_counts_by_relay", "SELECT pubkey_counts_by_relay_refresh()"),
    ("network_stats", "SELECT network_stats_refresh()"),
    ("event_daily_counts", "SELECT event_daily_counts_refresh()"),
    ("events_replaceable_latest", "SELECT events_replaceable_latest_refresh()"),
    ("events_addressable_latest", "SELECT events_addressable_latest_refresh()"),
    ("relay_software_counts", "SELECT relay_software_counts_refresh()"),
    ("supported_nip_counts", "SELECT supported_nip_counts_refresh()"),
];

/// What one step of counting did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Keys of the log that were counted.
    pub applied: u64,
    /// Keys that wait.
    pub backlog: u64,
}

/// What the rollups have yet to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backlog {
    /// Keys in the log.
    pub keys: u64,
    /// Age of its oldest row, seconds; 0 without one.
    pub age_s: i64,
}

impl Db {
    /// Counts about `limit` keys of what writers logged; `DbError::is_busy` while another refresh runs.
    pub async fn rollup_refresh(&self, limit: i32) -> Result<Counted, DbError> {
        let row =
            self.one(sqlx::query("SELECT applied, backlog FROM rollup_refresh($1)").bind(limit)).await?;
        Ok(Counted { applied: count(&row, "applied")?, backlog: count(&row, "backlog")? })
    }

    /// How much waits to be counted, and for how long.
    pub async fn rollup_backlog(&self) -> Result<Backlog, DbError> {
        let row = self.one(sqlx::query("SELECT keys, age_s FROM rollup_backlog()")).await?;
        Ok(Backlog { keys: count(&row, "keys")?, age_s: get(&row, "age_s")? })
    }

    /// Refreshes one view of [`VIEWS`]; `DbError::is_busy` while another refresh runs.
    pub async fn refresh(&self, statement: &'static str) -> Result<(), DbError> {
        self.one(sqlx::query(statement)).await.map(drop)
    }

    /// Refreshes every view in one transaction.
    pub async fn all_statistics_refresh(&self) -> Result<(), DbError> {
        self.one(sqlx::query("SELECT all_statistics_refresh()")).await.map(drop)
    }
}
