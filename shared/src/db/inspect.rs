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

/// No lead is leased for longer (`leader_claim`), seconds: one that is was written by a clock that has been set back.
const LEAD_MOST_S: f64 = 900.0;
/// The same of a worker, `worker.lease_s` and a minute.
const LEASE_MOST_S: f64 = 3_660.0;

impl LeaderLine {
    /// Whether somebody leads.
    pub fn stands(&self) -> bool {
        self.left_s > 0.0 && !self.is_beyond()
    }

    /// Whether its lease ends later than any can.
    pub fn is_beyond(&self) -> bool {
        self.left_s > LEAD_MOST_S
    }
}

/// Whether a worker's lease ends later than any can, with so many seconds of it left.
pub fn is_beyond_any_lease(left_s: f64) -> bool {
    left_s > LEASE_MOST_S
}

/// What is still to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unsettled {
    /// Jobs due and unclaimed, and targets due without a job, of what was not done since the start.
    pub due: u64,
    /// Jobs claimed, of what was not done since the start.
    pub running: u64,
    /// Candidates on these networks never tried; excluded ones are not.
    pub untried: u64,
    /// Relays on these networks, but for excluded ones, without one sync job that ended, however it did.
    pub unsynced: u64,
}

/// A relay no sync of which came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadLine {
    /// Its URL.
    pub url: String,
    /// How the last sync ended.
    pub ended: String,
    /// Why, where that is known.
    pub reason: Option<String>,
}

/// How many relays were read, and which were not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadCount {
    /// Relays with a sync that came to its end.
    pub read: u64,
    /// The others.
    pub unread: u64,
    /// The first thousand of these.
    pub lines: Vec<UnreadLine>,
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

/// Where a few hundred relays are known, one of them is always due again: what was done of relays since the start is left out,
/// unless a sync had to stop in the middle, by the words of `jobs::cadence`.
const UNSETTLED: &str = "
WITH done AS MATERIALIZED (
    SELECT DISTINCT h.kind, h.target FROM job_history h
    WHERE h.finished_at >= to_timestamp($2) AND h.network <> 'local' AND h.result ->> 'end' IS DISTINCT FROM 'more to read'
)
SELECT (SELECT count(*) FROM apalis.jobs j WHERE j.kind IS NOT NULL AND j.status = 'Pending' AND j.run_at <= now()
           AND (j.network = 'local' OR j.network = ANY($1))
           AND NOT EXISTS (SELECT FROM done d WHERE d.kind = j.kind AND d.target = j.target))
     + (SELECT count(*) FROM schedule s WHERE s.due_at <= now() AND (s.network = 'local' OR s.network = ANY($1))
           AND NOT EXISTS (SELECT FROM done d WHERE d.kind = s.kind AND d.target = s.target)) AS due,
       (SELECT count(*) FROM apalis.jobs j WHERE j.kind IS NOT NULL AND j.status = 'Running'
           AND NOT EXISTS (SELECT FROM done d WHERE d.kind = j.kind AND d.target = j.target)) AS running,
       (SELECT count(*) FROM candidate c WHERE c.tombstoned_at IS NULL AND c.last_tried_at IS NULL AND c.network = ANY($1)
           AND (NOT EXISTS (SELECT FROM relay_exclusion) OR url_excluded(c.url) IS NULL)
           AND NOT EXISTS (SELECT FROM job_history h WHERE h.target = c.url AND h.kind = 'validate' AND h.state <> 'complete')) AS untried,
       (SELECT count(*) FROM relay r WHERE r.network = ANY($1)
           AND (NOT EXISTS (SELECT FROM relay_exclusion) OR url_excluded(r.url) IS NULL)
           AND NOT EXISTS (SELECT FROM job_history h WHERE h.target = r.url AND h.kind = 'sync')) AS unsynced";

/// Relays, and whether a sync of theirs has come to its end: by the words of `jobs::cadence` and `jobs::sync`.
const READ: &str = "
WITH known AS (
    SELECT r.id, r.url, EXISTS (
        SELECT FROM job_history h WHERE h.target = r.url AND h.kind = 'sync' AND h.state = 'complete'
            AND (h.result ->> 'end' = 'up to date' OR h.result ->> 'skipped' = 'nothing of it is kept')) AS is_read
    FROM relay r WHERE r.network = ANY($1) AND (NOT EXISTS (SELECT FROM relay_exclusion) OR url_excluded(r.url) IS NULL)
)
SELECT c.relays_read, c.relays_unread, u.url, u.ended, u.reason
FROM (SELECT count(*) FILTER (WHERE k.is_read) AS relays_read, count(*) FILTER (WHERE NOT k.is_read) AS relays_unread FROM known k) c
LEFT JOIN LATERAL (
    SELECT k.url, coalesce(h.result ->> 'end', h.result ->> 'skipped', h.state, 'not tried') AS ended,
           coalesce(h.result ->> 'error', (SELECT string_agg(DISTINCT v.reason, ', ') FROM coverage v
                                           WHERE v.relay_id = k.id AND v.grade IN ('refused', 'unknown') AND v.reason <> 'none')) AS reason
    FROM known k
    LEFT JOIN LATERAL (SELECT x.state, x.result FROM job_history x WHERE x.target = k.url AND x.kind = 'sync'
                       ORDER BY x.finished_at DESC LIMIT 1) h ON true
    WHERE NOT k.is_read ORDER BY k.url LIMIT 1000) u ON true";

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

    /// Which relays of these networks were read at least once, excluded ones left out.
    pub async fn read_count(&self, networks: &[String]) -> Result<ReadCount, DbError> {
        let rows = self.all(sqlx::query(READ).bind(networks)).await?;
        let mut found = ReadCount::default();
        for row in &rows {
            (found.read, found.unread) = (count(row, "relays_read")?, count(row, "relays_unread")?);
            if let Some(url) = get(row, "url")? {
                found.lines.push(UnreadLine { url, ended: get(row, "ended")?, reason: get(row, "reason")? });
            }
        }
        Ok(found)
    }

    /// The time by the database's clock, Unix seconds: what it has written since is told by it.
    pub async fn now(&self) -> Result<f64, DbError> {
        let sql = "SELECT extract(epoch FROM clock_timestamp())::double precision AS now";
        get(&self.one(sqlx::query(sql)).await?, "now")
    }

    /// What is still to do on these networks, by who began at `since` ([`Db::now`]).
    pub async fn unsettled(&self, networks: &[String], since: f64) -> Result<Unsettled, DbError> {
        let row = self.one(sqlx::query(UNSETTLED).bind(networks).bind(since)).await?;
        Ok(Unsettled {
            due: count(&row, "due")?,
            running: count(&row, "running")?,
            untried: count(&row, "untried")?,
            unsynced: count(&row, "unsynced")?,
        })
    }
}

/// How the archiving of the server's WAL goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalArchiving {
    /// The file that could not be archived, when that is what happened last.
    pub failing: Option<String>,
    /// When the last one was archived, Unix seconds.
    pub archived_at: Option<i64>,
}

impl Db {
    /// How the archiving of WAL goes; `None` where the server does none.
    pub async fn wal_archiving(&self) -> Result<Option<WalArchiving>, DbError> {
        let sql = "SELECT CASE WHEN last_failed_time > coalesce(last_archived_time, '-infinity') THEN last_failed_wal END AS failing, \
                   extract(epoch FROM last_archived_time)::bigint AS archived_at \
                   FROM pg_stat_archiver WHERE current_setting('archive_mode') <> 'off'";
        let rows = self.all(sqlx::query(sql)).await?;
        let line = |row| -> Result<WalArchiving, DbError> {
            Ok(WalArchiving { failing: get(row, "failing")?, archived_at: get(row, "archived_at")? })
        };
        rows.first().map(line).transpose()
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

    /// Months (2026-01) from `since` (Unix seconds) to two ahead that nobody makes but an operator: too much of them lies in
    /// the default partitions.
    pub async fn months_heavy(&self, since: i64) -> Result<Vec<String>, DbError> {
        let rows = self.all(sqlx::query("SELECT m FROM month_heavy($1) m").bind(since)).await?;
        rows.iter().map(|row| get(row, "m")).collect()
    }

    /// How many archived events are dated more than 15 minutes ahead; counts no further than `most`.
    pub async fn ahead_count(&self, most: u32) -> Result<u64, DbError> {
        count(&self.one(sqlx::query("SELECT ahead_count($1) AS n").bind(i64::from(most))).await?, "n")
    }
}
