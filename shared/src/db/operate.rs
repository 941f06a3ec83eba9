//! What operators do to the queues and ask of them. The deeds need a role that may execute (writer or admin), the
//! questions one that may read.

use super::rows::{count, get, small_count};
use super::{Db, DbError};

/// Which live jobs are meant; at least one must be given.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Job id or target; `*` in a target stands for anything.
    pub which: Option<String>,
    /// Only this kind.
    pub kind: Option<String>,
    /// Only this network.
    pub network: Option<String>,
}

/// What a job says that was put back because our own way into its network does not work.
const OWN_WAY: [&str; 3] = ["our own way into", "has answered us lately", "fail all at once"];

/// Who does something, and why.
#[derive(Debug, Clone)]
pub struct Actor {
    /// Name.
    pub name: String,
    /// Reason, may be empty.
    pub why: String,
}

/// One reason why a job does not run.
#[derive(Debug, Clone)]
pub struct WhyLine {
    /// Job, if one is outstanding.
    pub job: Option<String>,
    /// `kind.network`, if known.
    pub queue: Option<String>,
    /// Relay URL or task.
    pub target: String,
    /// running, ready, host, later, idle, an end, or none.
    pub state: String,
    /// Word of a closed set.
    pub reason: String,
    /// A sentence.
    pub detail: String,
    /// Until when, Unix seconds.
    pub until: Option<f64>,
}

/// One thing an operator did.
#[derive(Debug, Clone)]
pub struct OperationLine {
    /// When, Unix seconds.
    pub at: i64,
    /// Who.
    pub actor: String,
    /// What.
    pub action: String,
    /// On what, JSON text.
    pub selector: String,
    /// How many.
    pub jobs: u64,
    /// Why.
    pub why: String,
}

/// How many workers are wanted.
#[derive(Debug, Clone)]
pub struct Autoscale {
    /// Workers.
    pub desired: u32,
    /// Seconds of work that are due or running.
    pub backlog_s: f64,
    /// What limits.
    pub binding: String,
}

const WORKERS: &str = "
SELECT ARRAY[worker_id, vantage, version, running || '/' || slots,
             CASE WHEN lease_until > now() + interval '61 minutes' THEN 'beyond any' ELSE round(extract(epoch FROM lease_until - now()))::text || ' s' END,
             concat_ws(' ', CASE WHEN draining THEN 'draining' END, CASE WHEN listens THEN 'listens' END)] AS cells
FROM workers WHERE live ORDER BY worker_id LIMIT 200";

const BREAKERS: &str = "
SELECT ARRAY[network, vantage, CASE WHEN until_at > now() THEN 'open ' || round(extract(epoch FROM until_at - now())) || ' s' ELSE 'half open' END, why] AS cells
FROM breaker ORDER BY network, vantage LIMIT 50";

const BUDGETS: &str = "
SELECT ARRAY[l.network, coalesce(r.n, 0) || '/' || l.permits,
             round(coalesce(u.bytes, 0) / 1e6)::text || ' MB today' || coalesce(' of ' || round(l.bytes_per_day / 1e6), '')] AS cells
FROM network_limit l
LEFT JOIN (SELECT network, count(*) AS n FROM jobs_running GROUP BY 1) r ON r.network = l.network
LEFT JOIN network_usage u ON u.network = l.network AND u.day = (now() AT TIME ZONE 'UTC')::date
ORDER BY array_position(ARRAY['clearnet', 'tor', 'i2p', 'loki'], l.network)";

const HOSTS: &str = "
SELECT ARRAY[h.host, count(*)::text, coalesce(round(extract(epoch FROM greatest(s.next_at, now()) - now())::numeric, 1), 0) || ' s'] AS cells
FROM apalis.jobs h LEFT JOIN host_state s ON s.host = h.host
WHERE h.gate = 'host' GROUP BY h.host, s.next_at ORDER BY count(*) DESC, h.host LIMIT 10";

/// Lists of the board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Board {
    /// Worker, vantage, version, slots, lease left, flags.
    Workers,
    /// Network, vantage, state, why.
    Breakers,
    /// Network, jobs of permits, bytes.
    Budgets,
    /// Host, jobs waiting behind it, cooling left.
    Hosts,
}

impl Db {
    /// Pauses, drains or resumes queues; returns their names.
    pub async fn queue_hold(
        &self,
        queues: &[String],
        mode: &str,
        actor: &Actor,
    ) -> Result<Vec<String>, DbError> {
        let query = sqlx::query("SELECT queue_hold($1, $2, $3, $4) AS held").bind(queues).bind(mode);
        get(&self.one(query.bind(&actor.name).bind(&actor.why)).await?, "held")
    }

    /// Lets a worker claim nothing more, or again; false when no live worker has the name.
    pub async fn worker_drain(&self, worker: &str, on: bool, actor: &Actor) -> Result<bool, DbError> {
        let query = sqlx::query("SELECT worker_drain($1, $2, $3, $4) AS found").bind(worker).bind(on);
        get(&self.one(query.bind(&actor.name).bind(&actor.why)).await?, "found")
    }

    /// How many live jobs a selection names, and the first ten.
    pub async fn job_preview(&self, selection: &Selection) -> Result<(u64, Vec<String>), DbError> {
        let query = sqlx::query("SELECT jobs, sample FROM job_preview($1, $2, $3)");
        let row =
            self.one(query.bind(&selection.which).bind(&selection.kind).bind(&selection.network)).await?;
        Ok((count(&row, "jobs")?, get(&row, "sample")?))
    }

    /// How many jobs a retry would touch, and the first ten.
    pub async fn job_retry_preview(
        &self,
        selection: &Selection,
        since_s: f64,
    ) -> Result<(u64, Vec<String>), DbError> {
        let query = sqlx::query("SELECT jobs, sample FROM job_retry_preview($1, $2, $3, $4)");
        let query = query.bind(&selection.which).bind(&selection.kind).bind(&selection.network);
        let row = self.one(query.bind(since_s)).await?;
        Ok((count(&row, "jobs")?, get(&row, "sample")?))
    }

    /// Cancels live jobs; returns how many ended at once, and how many are being stopped.
    pub async fn job_cancel(&self, selection: &Selection, actor: &Actor) -> Result<(u64, u64), DbError> {
        let query = sqlx::query("SELECT cancelled, stopping FROM job_cancel($1, $2, $3, $4, $5)");
        let query = query.bind(&selection.which).bind(&selection.kind).bind(&selection.network);
        let row = self.one(query.bind(&actor.name).bind(&actor.why)).await?;
        Ok((small_count(&row, "cancelled")?, small_count(&row, "stopping")?))
    }

    /// Makes jobs that wait after a failure due, and enqueues anew what died within `since_s` seconds; returns both
    /// counts.
    pub async fn job_retry(
        &self,
        selection: &Selection,
        since_s: f64,
        actor: &Actor,
    ) -> Result<(u64, u64), DbError> {
        let query = sqlx::query("SELECT woken, enqueued FROM job_retry($1, $2, $3, $4, 60, $5, $6)");
        let query = query.bind(&selection.which).bind(&selection.kind).bind(&selection.network).bind(since_s);
        let row = self.one(query.bind(&actor.name).bind(&actor.why)).await?;
        Ok((small_count(&row, "woken")?, small_count(&row, "enqueued")?))
    }

    /// Wants targets done before everything else, all their kinds or these; returns the jobs concerned and the new
    /// ones among them.
    pub async fn job_run_now(
        &self,
        targets: &[String],
        kinds: Option<&[String]>,
        actor: &Actor,
    ) -> Result<(u64, u64), DbError> {
        let query =
            sqlx::query("SELECT asked, enqueued FROM job_run_now($1, $2, $3, $4)").bind(targets).bind(kinds);
        let row = self.one(query.bind(&actor.name).bind(&actor.why)).await?;
        Ok((small_count(&row, "asked")?, small_count(&row, "enqueued")?))
    }

    /// Why the jobs of a name do not run.
    pub async fn job_why(&self, which: &str) -> Result<Vec<WhyLine>, DbError> {
        let rows = self
            .all(
                sqlx::query(
                    "SELECT job_id, kind || '.' || network AS queue, target, state, reason, detail, \
                     extract(epoch FROM until_at)::double precision AS until FROM job_why($1)",
                )
                .bind(which),
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(WhyLine {
                    job: get(row, "job_id")?,
                    queue: get(row, "queue")?,
                    target: get(row, "target")?,
                    state: get(row, "state")?,
                    reason: get(row, "reason")?,
                    detail: get(row, "detail")?,
                    until: get(row, "until")?,
                })
            })
            .collect()
    }

    /// The last things operators did, newest first.
    pub async fn operation_list(&self, limit: u32) -> Result<Vec<OperationLine>, DbError> {
        let rows = self
            .all(
                sqlx::query(
                    "SELECT extract(epoch FROM at)::bigint AS at, actor, action, selector::text AS selector, jobs, why \
                     FROM operation ORDER BY id DESC LIMIT $1",
                )
                .bind(i32::try_from(limit).unwrap_or(i32::MAX)),
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(OperationLine {
                    at: get(row, "at")?,
                    actor: get(row, "actor")?,
                    action: get(row, "action")?,
                    selector: get(row, "selector")?,
                    jobs: small_count(row, "jobs")?,
                    why: get(row, "why")?,
                })
            })
            .collect()
    }

    /// How many workers are wanted.
    pub async fn autoscale(&self) -> Result<Autoscale, DbError> {
        let row = self
            .one(sqlx::query(
                "SELECT desired::integer AS desired, coalesce(backlog_s, 0) AS backlog_s, binding FROM autoscale_desired",
            ))
            .await?;
        Ok(Autoscale {
            desired: u32::try_from(small_count(&row, "desired")?).unwrap_or(u32::MAX),
            backlog_s: get(&row, "backlog_s")?,
            binding: get(&row, "binding")?,
        })
    }

    /// A list of the board: rows of cells.
    pub async fn board(&self, board: Board) -> Result<Vec<Vec<String>>, DbError> {
        let sql = match board {
            Board::Workers => WORKERS,
            Board::Breakers => BREAKERS,
            Board::Budgets => BUDGETS,
            Board::Hosts => HOSTS,
        };
        let rows = self.all(sqlx::query(sql)).await?;
        rows.iter()
            .map(|row| {
                let cells: Vec<Option<String>> = get(row, "cells")?;
                Ok(cells.into_iter().map(Option::unwrap_or_default).collect())
            })
            .collect()
    }

    /// Adds up what ended in the queues since the last time.
    pub async fn queue_sample_take(&self) -> Result<u64, DbError> {
        small_count(&self.one(sqlx::query("SELECT queue_sample_take() AS n")).await?, "n")
    }

    /// Queues held by operators, as (queue, mode).
    pub async fn queue_holds(&self) -> Result<Vec<(String, String)>, DbError> {
        let rows = self.all(sqlx::query("SELECT queue, mode FROM queue_pause ORDER BY queue")).await?;
        rows.iter().map(|row| Ok((get(row, "queue")?, get(row, "mode")?))).collect()
    }

    /// Due queues that no live worker serves.
    pub async fn queues_unserved(&self) -> Result<Vec<String>, DbError> {
        let rows = self
            .all(sqlx::query(
                "SELECT q.kind || '.' || q.network AS queue FROM queue_depth q WHERE q.due > 0 AND NOT EXISTS \
                 (SELECT FROM workers w WHERE w.live AND q.kind || '.' || q.network = ANY (w.queues)) ORDER BY 1",
            ))
            .await?;
        rows.iter().map(|row| get(row, "queue")).collect()
    }

    /// Jobs that were put back because our own way into their network does not work: how many per network.
    pub async fn jobs_without_way(&self) -> Result<Vec<(String, u64)>, DbError> {
        let words: Vec<&str> = OWN_WAY.to_vec();
        let rows = self.all(sqlx::query("SELECT network, jobs FROM jobs_put_back($1)").bind(words)).await?;
        rows.iter().map(|row| Ok((get(row, "network")?, count(row, "jobs")?))).collect()
    }

    /// Live workers that hear of new jobs, and live workers.
    pub async fn listening_workers(&self) -> Result<(u64, u64), DbError> {
        let row = self
            .one(sqlx::query(
                "SELECT count(*) FILTER (WHERE w.listens) AS hear, count(*) AS n FROM apalis.workers w \
                 WHERE w.worker_type = 'bigbrotr' AND w.lease_until > now()",
            ))
            .await?;
        Ok((count(&row, "hear")?, count(&row, "n")?))
    }

    /// Vantages that must agree that a relay is down, as a scheduler has said for the fleet; none until one has.
    pub async fn vantages_for_down(&self) -> Result<Option<u32>, DbError> {
        let row = self.one(sqlx::query("SELECT vantages_for_down AS n FROM fleet_limit")).await?;
        let n: Option<i32> = get(&row, "n")?;
        Ok(n.and_then(|n| u32::try_from(n).ok()))
    }

    /// What is not as it should be with the queue's table: indexes missing or invalid, triggers that came back.
    pub async fn queue_drift(&self) -> Result<Vec<String>, DbError> {
        let rows = self.all(sqlx::query("SELECT d AS drift FROM queue_drift() d")).await?;
        rows.iter().map(|row| get(row, "drift")).collect()
    }

    /// Who holds the oldest snapshot, as a sentence, with its age in transactions; as far as this role may see.
    pub async fn oldest_snapshot_holder(&self) -> Result<Option<(String, i64)>, DbError> {
        let rows = self
            .all(sqlx::query(
                "SELECT h.who, h.age FROM (\
                 SELECT 'backend ' || pid || ' (' || coalesce(nullif(application_name, ''), usename, 'unknown') || ', ' || coalesce(state, '') || ')' AS who, \
                 age(backend_xmin)::bigint AS age FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() \
                 UNION ALL SELECT 'prepared transaction ' || gid, age(transaction)::bigint FROM pg_prepared_xacts \
                 UNION ALL SELECT 'replication slot ' || slot_name, age(xmin)::bigint FROM pg_replication_slots WHERE xmin IS NOT NULL) h \
                 ORDER BY h.age DESC LIMIT 1",
            ))
            .await?;
        rows.first().map(|row| Ok((get(row, "who")?, get(row, "age")?))).transpose()
    }
}
