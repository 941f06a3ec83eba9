//! What the command line shows. These need a role that may SELECT (reader or admin), except the two stats
//! functions, which any of the four roles may call. Lists are keyset-paged and capped.

use sqlx::postgres::PgRow;

use super::rows::{count, get, small_count};
use super::{Db, DbError};
use crate::models::RelayUrl;

/// One relay with its state, as `relay list` shows it.
#[derive(Debug, Clone)]
pub struct RelayLine {
    /// Canonical URL.
    pub url: RelayUrl,
    /// When it was first proved, Unix seconds.
    pub discovered_at: i64,
    /// Over all vantages: alive, suspect, down, or unchecked.
    pub state: String,
    /// Why.
    pub reason: String,
    /// When that state began, Unix seconds.
    pub since_at: Option<i64>,
    /// Vantages that say alive, suspect, down, and whose word still counts.
    pub vantages: [u64; 3],
    /// Latest check, Unix seconds.
    pub checked_at: Option<i64>,
    /// Latest rtt: open and read, milliseconds.
    pub open_ms: Option<i32>,
    /// See `open_ms`.
    pub read_ms: Option<i32>,
    /// Kinds of checks that have a result.
    pub checks: Vec<String>,
    /// `opt_out` or `blocked`, when an operator excluded it.
    pub excluded: Option<String>,
    /// By what it was first proved, with outcome, reason and words where that was a refusal.
    pub proof: Option<String>,
}

/// One page of relays.
#[derive(Debug)]
pub struct RelayPage {
    /// The relays; a row that does not validate is an error in its place.
    pub lines: Vec<Result<RelayLine, DbError>>,
    /// Where the next page begins, if there may be one.
    pub next: Option<String>,
}

/// A stretch of coverage, as `relay show` prints it.
#[derive(Debug, Clone)]
pub struct CoverageLine {
    /// Filter class.
    pub class: String,
    /// First second.
    pub since_at: i64,
    /// Last second.
    pub until_at: i64,
    /// Grade.
    pub grade: String,
    /// Reason of a gap.
    pub reason: String,
    /// When established.
    pub observed_at: i64,
}

/// One queue with its numbers.
#[derive(Debug, Clone, Default)]
pub struct QueueLine {
    /// Job kind.
    pub kind: String,
    /// Network, or local.
    pub network: String,
    /// Due and unclaimed.
    pub due: u64,
    /// Not before later.
    pub waiting: u64,
    /// Claimed.
    pub running: u64,
    /// Age of the oldest due job, seconds.
    pub oldest_due_s: Option<f64>,
    /// Completed in the last minute.
    pub done_per_min: u64,
    /// Dead in the last minute.
    pub dead_per_min: u64,
}

/// A live or finished job.
#[derive(Debug, Clone)]
pub struct JobLine {
    /// Id.
    pub job: String,
    /// Kind.
    pub kind: String,
    /// Network, or local.
    pub network: String,
    /// Relay URL or task.
    pub target: String,
    /// ready, waiting, running, complete, cancelled or dead.
    pub state: String,
    /// Attempts begun.
    pub attempt: i32,
    /// Who holds or held it.
    pub worker: Option<String>,
    /// When it was due, Unix seconds.
    pub due_at: i64,
    /// When it ended, Unix seconds.
    pub finished_at: Option<i64>,
    /// Report or error, JSON text.
    pub result: Option<String>,
}

/// The observatory in numbers; events and observations are estimates of the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FleetStats {
    /// Proved relays.
    pub relays: u64,
    /// Alive over all vantages.
    pub alive: u64,
    /// Suspect.
    pub suspect: u64,
    /// Down over all vantages.
    pub down: u64,
    /// Candidates not given up.
    pub candidates: u64,
    /// Events known.
    pub events: u64,
    /// Observations.
    pub observations: u64,
    /// Workers with a standing lease.
    pub workers: u64,
    /// Size of the database, bytes.
    pub database_bytes: u64,
}

/// Rows per page of a list.
const PAGE: i32 = 1000;

const RELAY_LIST: &str = "
SELECT r.id, r.url, r.discovered_at, s.state, s.reason, s.since_at, s.checked_at,
       s.vantages_alive, s.vantages_suspect, s.vantages_down, l.open_ms, l.read_ms,
       ARRAY(SELECT c.kind || '=' || c.outcome FROM relay_check_latest c WHERE c.relay_id = r.id ORDER BY c.kind, c.vantage_id) AS checks,
       url_excluded(r.url) AS excluded,
       r.proof || CASE WHEN r.proof_outcome <> 'ok' THEN ' (' || concat_ws(', ', r.proof_outcome, r.proof_reason, r.proof_detail) || ')' ELSE '' END AS proof
FROM relay r
JOIN relay_liveness s ON s.relay_url = r.url
LEFT JOIN LATERAL (SELECT x.open_ms, x.read_ms FROM relay_check_latest x WHERE x.relay_id = r.id AND x.kind = 'rtt'
                   ORDER BY x.checked_at DESC LIMIT 1) l ON true
WHERE r.url > $1 AND ($2::text IS NULL OR s.state = $2) AND ($3::text IS NULL OR r.url = $3)
ORDER BY r.url LIMIT $4";

const QUEUE_LIST: &str = "
SELECT j.id, j.kind, j.network, j.target,
       CASE WHEN j.status = 'Running' THEN 'running' WHEN j.run_at <= now() THEN 'ready' ELSE 'waiting' END AS state,
       j.attempts AS attempt, j.lock_by AS worker, extract(epoch FROM j.due_at)::bigint AS due_at,
       NULL::bigint AS finished_at, j.last_result::text AS result
FROM apalis.jobs j
WHERE j.kind IS NOT NULL AND ($1::text IS NULL OR j.kind = $1) AND ($2::text IS NULL OR j.id = $2 OR j.target = $2)
ORDER BY j.deadline_at LIMIT $3";

const HISTORY: &str = "
SELECT h.job_id AS id, h.kind, h.network, h.target, h.state, h.attempt, h.worker_id AS worker,
       extract(epoch FROM h.due_at)::bigint AS due_at, extract(epoch FROM h.finished_at)::bigint AS finished_at, h.result::text AS result
FROM job_history h
WHERE ($1::text IS NULL OR h.kind = $1) AND (h.job_id = $2 OR h.target = $2)
ORDER BY h.finished_at DESC LIMIT $3";

impl Db {
    /// Relays after `after` in URL order, at most one page of 1,000. Every URL is parsed again; a row whose URL
    /// does not validate is an error in its place and hides no other.
    pub async fn relay_list(
        &self,
        after: &str,
        state: Option<&str>,
        only: Option<&str>,
    ) -> Result<RelayPage, DbError> {
        let rows = self.all(sqlx::query(RELAY_LIST).bind(after).bind(state).bind(only).bind(PAGE)).await?;
        let full = rows.len() >= usize::try_from(PAGE).unwrap_or(usize::MAX);
        let next = rows.last().filter(|_| full).map(|row| get(row, "url")).transpose()?;
        Ok(RelayPage { lines: rows.iter().map(relay_line).collect(), next })
    }

    /// The coverage of one relay, in order.
    pub async fn relay_coverage(&self, url: &RelayUrl) -> Result<Vec<CoverageLine>, DbError> {
        let rows = self
            .all(
                sqlx::query(
                    "SELECT class, since_at, until_at, grade, reason, observed_at FROM relay_coverage \
                     WHERE relay_url = $1 ORDER BY class, since_at LIMIT $2",
                )
                .bind(url.as_str())
                .bind(PAGE),
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(CoverageLine {
                    class: get(row, "class")?,
                    since_at: get(row, "since_at")?,
                    until_at: get(row, "until_at")?,
                    grade: get(row, "grade")?,
                    reason: get(row, "reason")?,
                    observed_at: get(row, "observed_at")?,
                })
            })
            .collect()
    }

    /// Every queue with its numbers.
    pub async fn queue_stats(&self) -> Result<Vec<QueueLine>, DbError> {
        let rows = self
            .all(sqlx::query(
                "SELECT kind, network, due, waiting, running, oldest_due_s, done_per_min, dead_per_min FROM queue_stats()",
            ))
            .await?;
        rows.iter()
            .map(|row| {
                Ok(QueueLine {
                    kind: get(row, "kind")?,
                    network: get(row, "network")?,
                    due: count(row, "due")?,
                    waiting: count(row, "waiting")?,
                    running: count(row, "running")?,
                    oldest_due_s: get(row, "oldest_due_s")?,
                    done_per_min: count(row, "done_per_min")?,
                    dead_per_min: count(row, "dead_per_min")?,
                })
            })
            .collect()
    }

    /// The observatory in numbers.
    pub async fn fleet_stats(&self) -> Result<FleetStats, DbError> {
        let row = self
            .one(sqlx::query(
                "SELECT relays, alive, suspect, down, candidates, events, observations, workers, database_bytes FROM fleet_stats()",
            ))
            .await?;
        Ok(FleetStats {
            relays: count(&row, "relays")?,
            alive: count(&row, "alive")?,
            suspect: count(&row, "suspect")?,
            down: count(&row, "down")?,
            candidates: count(&row, "candidates")?,
            events: count(&row, "events")?,
            observations: count(&row, "observations")?,
            workers: count(&row, "workers")?,
            database_bytes: count(&row, "database_bytes")?,
        })
    }

    /// Live jobs, earliest deadline first, at most `limit`.
    pub async fn job_list(
        &self,
        kind: Option<&str>,
        which: Option<&str>,
        limit: u32,
    ) -> Result<Vec<JobLine>, DbError> {
        let limit = i32::try_from(limit).unwrap_or(PAGE).min(PAGE);
        self.job_lines(sqlx::query(QUEUE_LIST).bind(kind).bind(which).bind(limit)).await
    }

    /// Finished jobs of one job id or target, newest first, at most `limit`.
    pub async fn job_past(
        &self,
        kind: Option<&str>,
        which: &str,
        limit: u32,
    ) -> Result<Vec<JobLine>, DbError> {
        let limit = i32::try_from(limit).unwrap_or(PAGE).min(PAGE);
        self.job_lines(sqlx::query(HISTORY).bind(kind).bind(which).bind(limit)).await
    }

    async fn job_lines(
        &self,
        query: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>,
    ) -> Result<Vec<JobLine>, DbError> {
        let rows = self.all(query).await?;
        rows.iter()
            .map(|row| {
                Ok(JobLine {
                    job: get(row, "id")?,
                    kind: get(row, "kind")?,
                    network: get(row, "network")?,
                    target: get(row, "target")?,
                    state: get(row, "state")?,
                    attempt: get(row, "attempt")?,
                    worker: get(row, "worker")?,
                    due_at: get(row, "due_at")?,
                    finished_at: get(row, "finished_at")?,
                    result: get(row, "result")?,
                })
            })
            .collect()
    }

    /// When each view was last refreshed: name, Unix seconds, milliseconds it took.
    pub async fn view_states(&self) -> Result<Vec<(String, i64, i64)>, DbError> {
        let rows = self
            .all(sqlx::query(
                "SELECT view_name, extract(epoch FROM refreshed_at)::bigint AS at, duration_ms FROM view_state ORDER BY view_name",
            ))
            .await?;
        rows.iter()
            .map(|row| Ok((get(row, "view_name")?, get(row, "at")?, get(row, "duration_ms")?)))
            .collect()
    }

    /// Live workers: id, vantage, version, slots, seconds of lease left.
    pub async fn worker_list(&self) -> Result<Vec<(String, String, String, u64, f64)>, DbError> {
        let rows = self
            .all(sqlx::query(
                "SELECT id, coalesce(vantage, '') AS vantage, coalesce(version, '') AS version, coalesce(slots, 0) AS slots, \
                 extract(epoch FROM lease_until - now())::double precision AS left_s \
                 FROM apalis.workers WHERE lease_until > now() ORDER BY id LIMIT 1000",
            ))
            .await?;
        rows.iter()
            .map(|row| {
                Ok((
                    get(row, "id")?,
                    get(row, "vantage")?,
                    get(row, "version")?,
                    small_count(row, "slots")?,
                    get(row, "left_s")?,
                ))
            })
            .collect()
    }

    /// Exact numbers of archived events and observations: reads the whole archive.
    pub async fn archive_count(&self) -> Result<(u64, u64), DbError> {
        let row = self
            .one(sqlx::query(
                "SELECT (SELECT count(*) FROM event) AS events, (SELECT count(*) FROM event_relay) AS observations",
            ))
            .await?;
        Ok((count(&row, "events")?, count(&row, "observations")?))
    }

    /// The server's setting `name`, as text.
    pub async fn server_setting(&self, name: &str) -> Result<Option<String>, DbError> {
        let row = self.one(sqlx::query("SELECT current_setting($1, true) AS value").bind(name)).await?;
        get(&row, "value")
    }

    /// Seconds by which the server's clock is ahead of ours (`now`, Unix seconds).
    pub async fn clock_skew(&self, now: i64) -> Result<i64, DbError> {
        let row =
            self.one(sqlx::query("SELECT extract(epoch FROM clock_timestamp())::bigint AS now")).await?;
        let server: i64 = get(&row, "now")?;
        Ok(server - now)
    }
}

fn relay_line(row: &PgRow) -> Result<RelayLine, DbError> {
    let text: String = get(row, "url")?;
    let id: i32 = get(row, "id")?;
    Ok(RelayLine {
        url: Db::stored_url(&text, "relay", || format!("id={id}"))?,
        discovered_at: get(row, "discovered_at")?,
        state: get(row, "state")?,
        reason: get(row, "reason")?,
        since_at: get(row, "since_at")?,
        vantages: [
            count(row, "vantages_alive")?,
            count(row, "vantages_suspect")?,
            count(row, "vantages_down")?,
        ],
        checked_at: get(row, "checked_at")?,
        open_ms: get(row, "open_ms")?,
        read_ms: get(row, "read_ms")?,
        checks: get(row, "checks")?,
        excluded: get(row, "excluded")?,
        proof: get(row, "proof")?,
    })
}
