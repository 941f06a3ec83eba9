//! The queue's stored functions: enqueue, claim, heartbeat, finish, rescue, and the leader's lease.

use std::time::Duration;

use super::rows::{get, small_count, word};
use super::{Db, DbError};
use crate::models::{JobKind, Verdict};

/// A job to enqueue at once, due now.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// What to do.
    pub kind: JobKind,
    /// Network of the queue, or `local`.
    pub network: String,
    /// Relay URL or task name.
    pub target: String,
    /// How late it may run without harm.
    pub slack: Duration,
    /// How long one attempt may run.
    pub timeout: Duration,
    /// Attempts before it is dead.
    pub max_attempts: u16,
}

/// What [`Db::schedule_enqueue`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enqueued {
    /// Targets that were due.
    pub due: u64,
    /// Of those, the ones that had no job outstanding.
    pub enqueued: u64,
}

/// A worker process as its heartbeat announces it.
#[derive(Debug, Clone)]
pub struct Registration {
    /// Unique per start of a process.
    pub worker: String,
    /// How long its claims stand without a further heartbeat.
    pub lease: Duration,
    /// Where it observes from.
    pub vantage: String,
    /// Queues it claims from.
    pub queues: Vec<String>,
    /// Jobs it runs at once.
    pub slots: u32,
}

/// A claimed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// Id of the job.
    pub job: String,
    /// `kind.network`.
    pub queue: String,
    /// What to do.
    pub kind: JobKind,
    /// Network, or `local`.
    pub network: String,
    /// Relay URL or task name.
    pub target: String,
    /// This attempt, from 1.
    pub attempt: i32,
    /// Attempts allowed.
    pub max_attempts: i32,
    /// Limit of one attempt.
    pub timeout: Duration,
}

/// How one attempt ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Id of the job.
    pub job: String,
    /// Attempt that ended.
    pub attempt: i32,
    /// How.
    pub verdict: Verdict,
    /// For retry and snooze: not before this much later.
    pub delay: Duration,
    /// Report or error, as JSON without NUL.
    pub result: String,
}

fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)
}

impl Db {
    /// Enqueues jobs that are due now; returns how many had none outstanding.
    pub async fn job_enqueue(&self, jobs: &[NewJob]) -> Result<u64, DbError> {
        let row = self
            .one(
                sqlx::query(
                    "SELECT job_enqueue($1, $2, $3, array_fill(now(), ARRAY[cardinality($1)]), $4, $5, $6) AS n",
                )
                .bind(jobs.iter().map(|j| j.kind.as_str().to_owned()).collect::<Vec<_>>())
                .bind(jobs.iter().map(|j| j.network.clone()).collect::<Vec<_>>())
                .bind(jobs.iter().map(|j| j.target.clone()).collect::<Vec<_>>())
                .bind(jobs.iter().map(|j| seconds(j.slack)).collect::<Vec<_>>())
                .bind(jobs.iter().map(|j| seconds(j.timeout)).collect::<Vec<_>>())
                .bind(jobs.iter().map(|j| i32::from(j.max_attempts)).collect::<Vec<_>>()),
            )
            .await?;
        small_count(&row, "n")
    }

    /// Turns what is due of one kind on these networks into jobs, at most `limit` per network.
    pub async fn schedule_enqueue(
        &self,
        kind: JobKind,
        networks: &[String],
        limit: u32,
        timeout: Duration,
        max_attempts: u16,
        again: Duration,
    ) -> Result<Enqueued, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT due, enqueued FROM schedule_enqueue($1, $2, $3, $4, $5, $6)")
                    .bind(kind.as_str())
                    .bind(networks)
                    .bind(i32::try_from(limit).unwrap_or(i32::MAX))
                    .bind(seconds(timeout))
                    .bind(i32::from(max_attempts))
                    .bind(seconds(again)),
            )
            .await?;
        Ok(Enqueued { due: small_count(&row, "due")?, enqueued: small_count(&row, "enqueued")? })
    }

    /// Registers or renews a worker; returns the (job, attempt) pairs it still holds.
    pub async fn job_heartbeat(&self, worker: &Registration) -> Result<Vec<(String, i32)>, DbError> {
        let rows = self
            .all(
                sqlx::query("SELECT job_id, attempt FROM job_heartbeat($1, $2, $3, $4, $5, $6)")
                    .bind(&worker.worker)
                    .bind(worker.lease.as_secs_f64())
                    .bind(&worker.vantage)
                    .bind(env!("CARGO_PKG_VERSION"))
                    .bind(&worker.queues)
                    .bind(i32::try_from(worker.slots).unwrap_or(i32::MAX)),
            )
            .await?;
        rows.iter().map(|row| Ok((get(row, "job_id")?, get(row, "attempt")?))).collect()
    }

    /// Claims at most `free` jobs of each queue, earliest deadline first.
    pub async fn job_claim(&self, worker: &str, free: &[(String, u32)]) -> Result<Vec<Claimed>, DbError> {
        let rows = self
            .all(
                sqlx::query(
                    "SELECT job_id, queue, kind, network, target, attempt, max_attempts, timeout_s FROM job_claim($1, $2, $3)",
                )
                .bind(worker)
                .bind(free.iter().map(|(queue, _)| queue.clone()).collect::<Vec<_>>())
                .bind(free.iter().map(|(_, n)| i32::try_from(*n).unwrap_or(i32::MAX)).collect::<Vec<_>>()),
            )
            .await?;
        rows.iter()
            .map(|row| {
                let job: String = get(row, "job_id")?;
                let kind: String = get(row, "kind")?;
                let timeout: i32 = get(row, "timeout_s")?;
                Ok(Claimed {
                    kind: word(&kind, "apalis.jobs", "kind", || job.clone())?,
                    job,
                    queue: get(row, "queue")?,
                    network: get(row, "network")?,
                    target: get(row, "target")?,
                    attempt: get(row, "attempt")?,
                    max_attempts: get(row, "max_attempts")?,
                    timeout: Duration::from_secs(u64::try_from(timeout).unwrap_or(0)),
                })
            })
            .collect()
    }

    /// Acknowledges attempts; returns the ids whose fence held.
    pub async fn job_finish(&self, worker: &str, finished: &[Finished]) -> Result<Vec<String>, DbError> {
        let rows = self
            .all(
                sqlx::query("SELECT id FROM job_finish($1, $2, $3, $4, $5, $6) AS id")
                    .bind(worker)
                    .bind(finished.iter().map(|f| f.job.clone()).collect::<Vec<_>>())
                    .bind(finished.iter().map(|f| f.attempt).collect::<Vec<_>>())
                    .bind(finished.iter().map(|f| f.verdict.as_str().to_owned()).collect::<Vec<_>>())
                    .bind(finished.iter().map(|f| f.delay.as_secs_f64()).collect::<Vec<_>>())
                    .bind(finished.iter().map(|f| f.result.clone()).collect::<Vec<_>>()),
            )
            .await?;
        rows.iter().map(|row| get(row, "id")).collect()
    }

    /// A worker that stops gives back what it holds; returns how many jobs went back.
    pub async fn worker_stop(&self, worker: &str) -> Result<u64, DbError> {
        let row = self.one(sqlx::query("SELECT worker_stop($1) AS n").bind(worker)).await?;
        small_count(&row, "n")
    }

    /// Takes or renews a leader lease; `None` while another process holds it.
    pub async fn leader_claim(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<Option<i64>, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT leader_claim($1, $2, $3) AS term")
                    .bind(name)
                    .bind(holder)
                    .bind(ttl.as_secs_f64()),
            )
            .await?;
        get(&row, "term")
    }

    /// Ends a leader lease early.
    pub async fn leader_release(&self, name: &str, holder: &str) -> Result<bool, DbError> {
        let row =
            self.one(sqlx::query("SELECT leader_release($1, $2) AS held").bind(name).bind(holder)).await?;
        get(&row, "held")
    }
}
