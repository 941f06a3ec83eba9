//! Where events are, and how much of a relay's timeline we hold.

use super::rows::get;
use super::{Db, DbError};
use crate::models::{EventId, RelayUrl};

/// An event on one relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresenceLine {
    /// The relay.
    pub relay: String,
    /// The event's own time, Unix seconds.
    pub created_at: i64,
    /// When it was first seen there, Unix seconds.
    pub seen_at: i64,
    /// `delivered` or `claimed`.
    pub evidence: String,
    /// Since when the relay has it no more, Unix seconds.
    pub gone_at: Option<i64>,
}

/// One grade of one month of a relay's timeline.
#[derive(Debug, Clone, PartialEq)]
pub struct MonthLine {
    /// Filter class.
    pub class: String,
    /// `2026-11`.
    pub month: String,
    /// Grade.
    pub grade: String,
    /// Share of the month, 0 to 1.
    pub share: f64,
}

/// How much of a relay's timeline is proved.
#[derive(Debug, Clone, PartialEq)]
pub struct ShareLine {
    /// Filter class.
    pub class: String,
    /// Seconds proved over seconds ever asked for, 0 to 1.
    pub proved_share: Option<f64>,
    /// The stretch asked for, Unix seconds.
    pub since_at: i64,
    /// Its end.
    pub until_at: i64,
    /// Seconds known to be incomplete.
    pub partial_seconds: i64,
}

impl Db {
    /// Which relays hold, or held, an event.
    pub async fn event_presence(&self, id: EventId) -> Result<Vec<PresenceLine>, DbError> {
        let rows = self
            .all(
                sqlx::query(
                    "SELECT relay_url, created_at, seen_at, evidence, gone_at FROM event_presence_of($1)",
                )
                .bind(id.as_bytes().to_vec()),
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(PresenceLine {
                    relay: get(row, "relay_url")?,
                    created_at: get(row, "created_at")?,
                    seen_at: get(row, "seen_at")?,
                    evidence: get(row, "evidence")?,
                    gone_at: get(row, "gone_at")?,
                })
            })
            .collect()
    }

    /// How much of each month of a relay's timeline is known at which grade.
    pub async fn relay_months(&self, url: &RelayUrl) -> Result<Vec<MonthLine>, DbError> {
        let rows = self
            .all(
                sqlx::query(
                    "SELECT class, to_char(month, 'YYYY-MM') AS month, grade, share::double precision AS share \
                     FROM relay_coverage_month WHERE relay_url = $1 ORDER BY class, month, grade",
                )
                .bind(url.as_str()),
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(MonthLine {
                    class: get(row, "class")?,
                    month: get(row, "month")?,
                    grade: get(row, "grade")?,
                    share: get(row, "share")?,
                })
            })
            .collect()
    }

    /// What share of a relay's timeline is proved, per filter class.
    pub async fn relay_shares(&self, url: &RelayUrl) -> Result<Vec<ShareLine>, DbError> {
        let rows = self
            .all(
                sqlx::query(
                    "SELECT class, proved_share::double precision AS proved_share, since_at, until_at, partial_seconds \
                     FROM relay_coverage_share WHERE relay_url = $1 ORDER BY class",
                )
                .bind(url.as_str()),
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(ShareLine {
                    class: get(row, "class")?,
                    proved_share: get(row, "proved_share")?,
                    since_at: get(row, "since_at")?,
                    until_at: get(row, "until_at")?,
                    partial_seconds: get(row, "partial_seconds")?,
                })
            })
            .collect()
    }
}
