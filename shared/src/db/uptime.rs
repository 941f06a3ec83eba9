//! Uptime by hour and day: rolling it up, and what `relay uptime` shows.

use super::rows::{count, get, small_count};
use super::{Db, DbError};
use crate::models::RelayUrl;

/// One vantage's opinion of a relay, and when it was formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LivenessLine {
    /// The vantage.
    pub vantage: String,
    /// alive, suspect or down.
    pub state: String,
    /// Why.
    pub reason: String,
    /// When the state began, Unix seconds.
    pub since_at: i64,
    /// Latest look, Unix seconds.
    pub checked_at: i64,
    /// Whether it counts in the overall state.
    pub stands: bool,
}

/// How many measurements, and their percentiles where these are enough.
pub type Percentiles = (i32, [Option<i32>; 3]);

/// The last 30 days of a relay as one vantage saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct UptimeLine {
    /// The vantage.
    pub vantage: String,
    /// Looks that say something.
    pub checks: u64,
    /// Of these, alive.
    pub up: u64,
    /// Of those, refused to read.
    pub refused: u64,
    /// Share of the time for which the looks found it alive, per cent; none when there were too few.
    pub availability_pct: Option<f64>,
    /// What it is at least: time for which no look stood taken as not alive.
    pub availability_low_pct: Option<f64>,
    /// Milliseconds to open, to read, to write: how many, and p50, p95, p99.
    pub times: [Percentiles; 3],
}

/// The last 30 days of a relay over all vantages.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ReliabilityLine {
    /// Seconds for which a look stood.
    pub observed_s: u64,
    /// Of these, seconds down.
    pub down_s: u64,
    /// Share of the time not down, per cent; none when less than a day was observed.
    pub availability_pct: Option<f64>,
    /// Times it went down.
    pub failures: u64,
    /// Times it came back.
    pub repairs: u64,
    /// Changes between alive and down.
    pub flaps: u64,
    /// Mean seconds between failures; none without a failure.
    pub mtbf_s: Option<i64>,
    /// Mean seconds to repair; none without a repair.
    pub mttr_s: Option<i64>,
}

const UPTIME: &str = "
SELECT vantage, checks::bigint AS checks, up::bigint AS up, refused::bigint AS refused,
       availability_pct::double precision AS availability_pct, availability_low_pct::double precision AS availability_low_pct,
       open_n, ARRAY[open_p50_ms, open_p95_ms, open_p99_ms] AS open, read_n, ARRAY[read_p50_ms, read_p95_ms, read_p99_ms] AS read,
       write_n, ARRAY[write_p50_ms, write_p95_ms, write_p99_ms] AS write
FROM relay_uptime_30d WHERE relay_url = $1 ORDER BY vantage";

const RELIABILITY: &str = "
SELECT observed_s::bigint AS observed_s, down_s, availability_pct::double precision AS availability_pct, failures, repairs, flaps,
       mtbf_s::bigint AS mtbf_s, mttr_s::bigint AS mttr_s
FROM relay_reliability_30d WHERE relay_url = $1";

const OPINIONS: &str = "
SELECT v.name AS vantage, s.state, s.reason, s.since_at, s.checked_at, s.stands_until >= extract(epoch FROM now()) AS stands
FROM relay_state s JOIN relay r ON r.id = s.relay_id JOIN vantage v ON v.id = s.vantage_id WHERE r.url = $1 ORDER BY v.name";

impl Db {
    /// Turns the hours of days older than `keep_days` into daily rows; returns how many days.
    pub async fn uptime_rollup(&self, keep_days: u16) -> Result<u64, DbError> {
        // A day at a time: each is a transaction that locks its partition.
        let mut days = 0;
        loop {
            let row =
                self.one(sqlx::query("SELECT uptime_rollup($1) AS n").bind(i32::from(keep_days))).await?;
            match small_count(&row, "n")? {
                0 => return Ok(days),
                n => days += n,
            }
        }
    }

    /// Deletes at most one batch of daily rows older than `keep_days`.
    pub async fn uptime_retire(&self, keep_days: u16) -> Result<u64, DbError> {
        let row = self.one(sqlx::query("SELECT uptime_retire($1) AS n").bind(i32::from(keep_days))).await?;
        small_count(&row, "n")
    }

    /// What each vantage says of a relay.
    pub async fn relay_opinions(&self, url: &RelayUrl) -> Result<Vec<LivenessLine>, DbError> {
        let rows = self.all(sqlx::query(OPINIONS).bind(url.as_str())).await?;
        rows.iter()
            .map(|row| {
                Ok(LivenessLine {
                    vantage: get(row, "vantage")?,
                    state: get(row, "state")?,
                    reason: get(row, "reason")?,
                    since_at: get(row, "since_at")?,
                    checked_at: get(row, "checked_at")?,
                    stands: get(row, "stands")?,
                })
            })
            .collect()
    }

    /// The last 30 days of a relay, per vantage.
    pub async fn relay_uptime(&self, url: &RelayUrl) -> Result<Vec<UptimeLine>, DbError> {
        let rows = self.all(sqlx::query(UPTIME).bind(url.as_str())).await?;
        rows.iter()
            .map(|row| {
                let times = |n, p| -> Result<Percentiles, DbError> {
                    let found: Vec<Option<i32>> = get(row, p)?;
                    let mut three = [None; 3];
                    for (slot, value) in three.iter_mut().zip(found) {
                        *slot = value;
                    }
                    Ok((get(row, n)?, three))
                };
                Ok(UptimeLine {
                    vantage: get(row, "vantage")?,
                    checks: count(row, "checks")?,
                    up: count(row, "up")?,
                    refused: count(row, "refused")?,
                    availability_pct: get(row, "availability_pct")?,
                    availability_low_pct: get(row, "availability_low_pct")?,
                    times: [times("open_n", "open")?, times("read_n", "read")?, times("write_n", "write")?],
                })
            })
            .collect()
    }

    /// The last 30 days of a relay over all vantages; none for an unknown relay.
    pub async fn relay_reliability(&self, url: &RelayUrl) -> Result<Option<ReliabilityLine>, DbError> {
        let rows = self.all(sqlx::query(RELIABILITY).bind(url.as_str())).await?;
        rows.first()
            .map(|row| {
                Ok(ReliabilityLine {
                    observed_s: count(row, "observed_s")?,
                    down_s: count(row, "down_s")?,
                    availability_pct: get(row, "availability_pct")?,
                    failures: count(row, "failures")?,
                    repairs: count(row, "repairs")?,
                    flaps: count(row, "flaps")?,
                    mtbf_s: get(row, "mtbf_s")?,
                    mttr_s: get(row, "mttr_s")?,
                })
            })
            .transpose()
    }

    /// Vantages with a live worker that monitors, by name.
    pub async fn monitoring_vantages(&self) -> Result<Vec<String>, DbError> {
        let rows = self
            .all(sqlx::query(
                "SELECT DISTINCT w.vantage FROM workers w \
                 WHERE w.live AND EXISTS (SELECT FROM unnest(w.queues) q WHERE q LIKE 'monitor.%' AND q <> 'monitor.local') ORDER BY 1",
            ))
            .await?;
        rows.iter().map(|row| get(row, "vantage")).collect()
    }
}
