//! Looks at the server and at the work as a whole, for `doctor` and `up`; needs a role that may SELECT.

use super::rows::{count, get};
use super::{Db, DbError, MIGRATOR};

/// A leader lease.
#[derive(Debug, Clone)]
pub struct LeaderLine {
    /// What is led.
    pub name: String,
    /// Who leads, or led last.
    pub holder: String,
    /// Grows with each change of holder.
    pub term: i64,
    /// Seconds of lease left; negative when nobody leads.
    pub left_s: f64,
}

/// What is still to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unsettled {
    /// Jobs due and unclaimed, and targets due without a job.
    pub due: u64,
    /// Jobs claimed.
    pub running: u64,
    /// Candidates on these networks never tried.
    pub untried: u64,
    /// Relays on these networks without one finished sync job.
    pub unsynced: u64,
}

impl Unsettled {
    /// Whether nothing is left.
    pub const fn is_settled(&self) -> bool {
        self.is_settled_but_for_syncing() && self.unsynced == 0
    }

    /// Whether nothing is left but relays that were never read.
    pub const fn is_settled_but_for_syncing(&self) -> bool {
        self.due == 0 && self.running == 0 && self.untried == 0
    }
}

const UNSETTLED: &str = "
SELECT (SELECT count(*) FROM apalis.jobs j WHERE j.kind IS NOT NULL AND j.status = 'Pending' AND j.run_at <= now()
           AND (j.network = 'local' OR j.network = ANY($1)))
     + (SELECT count(*) FROM schedule s WHERE s.due_at <= now() AND (s.network = 'local' OR s.network = ANY($1))) AS due,
       (SELECT count(*) FROM apalis.jobs j WHERE j.kind IS NOT NULL AND j.status = 'Running') AS running,
       (SELECT count(*) FROM candidate c WHERE c.tombstoned_at IS NULL AND c.last_tried_at IS NULL AND c.network = ANY($1)
           AND NOT EXISTS (SELECT FROM job_history h WHERE h.target = c.url AND h.kind = 'validate' AND h.state <> 'complete')) AS untried,
       (SELECT count(*) FROM relay r WHERE r.network = ANY($1) AND NOT EXISTS (
            SELECT FROM job_history h WHERE h.target = r.url AND h.kind = 'sync')) AS unsynced";

impl Db {
    /// Number of the newest migration this program knows.
    pub fn program_schema() -> i64 {
        MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0)
    }

    /// Number of the newest migration the database has.
    pub async fn schema_version(&self) -> Result<i64, DbError> {
        let row = self
            .one(sqlx::query(
                "SELECT coalesce(max(version), 0) AS version FROM _sqlx_migrations WHERE success",
            ))
            .await?;
        get(&row, "version")
    }

    /// Every leader lease.
    pub async fn leader_list(&self) -> Result<Vec<LeaderLine>, DbError> {
        let rows = self
            .all(sqlx::query(
                "SELECT name, holder, term, extract(epoch FROM until - now())::double precision AS left_s \
                 FROM leader ORDER BY name LIMIT 100",
            ))
            .await?;
        rows.iter()
            .map(|row| {
                Ok(LeaderLine {
                    name: get(row, "name")?,
                    holder: get(row, "holder")?,
                    term: get(row, "term")?,
                    left_s: get(row, "left_s")?,
                })
            })
            .collect()
    }

    /// What is still to do on these networks.
    pub async fn unsettled(&self, networks: &[String]) -> Result<Unsettled, DbError> {
        let row = self.one(sqlx::query(UNSETTLED).bind(networks)).await?;
        Ok(Unsettled {
            due: count(&row, "due")?,
            running: count(&row, "running")?,
            untried: count(&row, "untried")?,
            unsynced: count(&row, "unsynced")?,
        })
    }
}

/// A time below which nothing is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HorizonLine {
    /// `all`, or a relay's URL.
    pub scope: String,
    /// First second that is kept.
    pub before: i64,
    /// When it came to stand there, Unix seconds.
    pub set_at: i64,
    /// Which policy set it.
    pub reason: String,
}

impl Db {
    /// Every horizon.
    pub async fn horizon_list(&self) -> Result<Vec<HorizonLine>, DbError> {
        let sql = "SELECT scope, before_at, extract(epoch FROM set_at)::bigint AS set_at, reason FROM archive_horizon ORDER BY scope LIMIT 1000";
        let rows = self.all(sqlx::query(sql)).await?;
        rows.iter()
            .map(|row| {
                Ok(HorizonLine {
                    scope: get(row, "scope")?,
                    before: get(row, "before_at")?,
                    set_at: get(row, "set_at")?,
                    reason: get(row, "reason")?,
                })
            })
            .collect()
    }

    /// Every policy in force, with its days.
    pub async fn policy_list(&self) -> Result<Vec<(String, i32)>, DbError> {
        let sql = "SELECT name, days FROM retention_policy ORDER BY what, name LIMIT 1000";
        let rows = self.all(sqlx::query(sql)).await?;
        rows.iter().map(|row| Ok((get(row, "name")?, get(row, "days")?))).collect()
    }

    /// Rows in the default partitions of the archive, counted up to `cap` each.
    pub async fn default_rows(&self, cap: u64) -> Result<Vec<(&'static str, u64)>, DbError> {
        let sql = "SELECT (SELECT count(*) FROM (SELECT FROM event_default LIMIT $1) x) AS events,
                          (SELECT count(*) FROM (SELECT FROM event_relay_default LIMIT $1) x) AS observations";
        let row = self.one(sqlx::query(sql).bind(i64::try_from(cap).unwrap_or(i64::MAX))).await?;
        Ok(vec![
            ("event_default", count(&row, "events")?),
            ("event_relay_default", count(&row, "observations")?),
        ])
    }
}
