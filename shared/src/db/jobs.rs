//! The queue's stored functions: enqueue, claim, heartbeat, finish.

use std::time::Duration;

use sqlx::postgres::PgRow;

use super::rows::{get, small_count, word};
use super::{Db, DbError};
use crate::models::{JobKind, Network, Verdict};

/// A job to enqueue at once, due now.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// What to do.
    pub kind: JobKind,
    /// Network of the queue, or `local`.
    pub network: String,
    /// Relay URL or task name.
    pub target: String,
    /// 0 run now, 1 new relays, 2 rechecks, 3 archive backfill.
    pub class: u8,
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
    /// Queues it claims from, and how many jobs of each it runs at once.
    pub queues: Vec<(String, u32)>,
    /// Bytes moved per network since the last heartbeat that arrived.
    pub traffic: Vec<(Network, u64)>,
    /// Whether it hears of new jobs.
    pub listens: bool,
}

/// What a worker tells the queue, and asks of it, in one call.
#[derive(Debug, Clone, Default)]
pub struct Exchange {
    /// Attempts that ended.
    pub finished: Vec<Finished>,
    /// Queues to claim from.
    pub wanted: Vec<Wanted>,
    /// Claims so far: deals the classes their shares.
    pub turn: i32,
    /// Most jobs run per network since the last report, when permits beyond are to go back.
    pub peaks: Vec<(String, u32)>,
}

/// One queue to claim from.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// `kind.network`.
    pub queue: String,
    /// Slots that are free.
    pub free: u32,
    /// Jobs of it that run here.
    pub running: u32,
    /// Per class: deadline (Unix seconds) below which there was nothing a moment ago.
    pub floors: [Option<f64>; 4],
}

/// What [`Db::job_exchange`] brought.
#[derive(Debug, Clone, Default)]
pub struct Exchanged {
    /// Ids whose fence held.
    pub finished: Vec<String>,
    /// New attempts.
    pub claimed: Vec<Claimed>,
    /// New attempts whose rows make no sense to us: nobody can run them.
    pub unreadable: Vec<Unreadable>,
    /// (job, attempt) pairs running here that an operator wants stopped.
    pub cancelled: Vec<(String, i32)>,
}

/// A claimed attempt whose row cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Id of the job.
    pub job: String,
    /// This attempt, from 1.
    pub attempt: i32,
    /// What is wrong with the row.
    pub why: String,
}

/// A claimed attempt.
#[derive(Debug, Clone, PartialEq)]
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
    /// Its class.
    pub class: u8,
    /// Its deadline, Unix seconds.
    pub deadline: f64,
    /// Whether it finds out for its whole vantage if the network works again.
    pub probe: bool,
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

fn claimed(row: &PgRow) -> Result<Claimed, DbError> {
    let job: String = get(row, "job_id")?;
    let kind: String = get(row, "kind")?;
    let timeout: i32 = get(row, "timeout_s")?;
    let class: i16 = get(row, "class")?;
    Ok(Claimed {
        kind: word(&kind, "apalis.jobs", "kind", || job.clone())?,
        job,
        queue: get(row, "queue")?,
        network: get(row, "network")?,
        target: get(row, "target")?,
        attempt: get(row, "attempt")?,
        max_attempts: get(row, "max_attempts")?,
        timeout: Duration::from_secs(u64::try_from(timeout).unwrap_or(0)),
        class: u8::try_from(class).unwrap_or(u8::MAX),
        deadline: get(row, "deadline")?,
        probe: get(row, "probe")?,
    })
}

/// A number of things as the database counts.
pub(super) fn count32(n: u32) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

pub(super) fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)
}

impl Db {
    /// Enqueues jobs that are due now; returns how many had none outstanding.
    pub async fn job_enqueue(&self, jobs: &[NewJob]) -> Result<u64, DbError> {
        let row = self
            .one(
                sqlx::query(
                    "SELECT job_enqueue($1, $2, $3, array_fill(now(), ARRAY[cardinality($1)]), $4, $5, $6, p_classes => $7::smallint[]) AS n",
                )
                .bind(jobs.iter().map(|j| j.kind.as_str().to_owned()).collect::<Vec<_>>())
                .bind(jobs.iter().map(|j| j.network.clone()).collect::<Vec<_>>())
                .bind(jobs.iter().map(|j| j.target.clone()).collect::<Vec<_>>())
                .bind(jobs.iter().map(|j| seconds(j.slack)).collect::<Vec<_>>())
                .bind(jobs.iter().map(|j| seconds(j.timeout)).collect::<Vec<_>>())
                .bind(jobs.iter().map(|j| i32::from(j.max_attempts)).collect::<Vec<_>>())
                .bind(jobs.iter().map(|j| i16::from(j.class)).collect::<Vec<_>>()),
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
        let slots: Vec<i32> = worker.queues.iter().map(|(_, n)| count32(*n)).collect();
        let rows = self
            .all(
                sqlx::query(
                    "SELECT job_id, attempt FROM job_heartbeat($1, $2, $3, $4, $5, $6, p_slots_of => $7, \
                     p_networks => $8, p_bytes => $9, p_listens => $10)",
                )
                .bind(&worker.worker)
                .bind(worker.lease.as_secs_f64())
                .bind(&worker.vantage)
                .bind(env!("CARGO_PKG_VERSION"))
                .bind(worker.queues.iter().map(|(queue, _)| queue.clone()).collect::<Vec<_>>())
                .bind(slots.iter().sum::<i32>())
                .bind(slots)
                .bind(
                    worker.traffic.iter().map(|(network, _)| network.as_str().to_owned()).collect::<Vec<_>>(),
                )
                .bind(
                    worker
                        .traffic
                        .iter()
                        .map(|(_, n)| i64::try_from(*n).unwrap_or(i64::MAX))
                        .collect::<Vec<_>>(),
                )
                .bind(worker.listens),
            )
            .await?;
        rows.iter().map(|row| Ok((get(row, "job_id")?, get(row, "attempt")?))).collect()
    }

    /// Claims at most `free` jobs of each queue for a worker that runs nothing else: earliest deadline first
    /// within a class. Unreadable ones are left to their run deadline.
    pub async fn job_claim(&self, worker: &str, free: &[(String, u32)]) -> Result<Vec<Claimed>, DbError> {
        let wanted = free
            .iter()
            .map(|(queue, n)| Wanted { queue: queue.clone(), free: *n, running: 0, floors: [None; 4] })
            .collect();
        let exchange = Exchange { wanted, ..Exchange::default() };
        Ok(self.job_exchange(worker, &exchange).await?.claimed)
    }

    /// Acknowledges attempts, claims new ones, and learns which to stop, in one transaction.
    pub async fn job_exchange(&self, worker: &str, exchange: &Exchange) -> Result<Exchanged, DbError> {
        let Exchange { finished, wanted, turn, peaks } = exchange;
        let rows = self
            .all(
                sqlx::query(
                    "SELECT what, job_id, attempt, queue, kind, network, target, max_attempts, timeout_s, class, \
                     extract(epoch FROM deadline_at)::double precision AS deadline, probe \
                     FROM job_exchange($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, \
                     ARRAY(SELECT to_timestamp(f.at) FROM unnest($11::double precision[]) WITH ORDINALITY f(at, o) ORDER BY f.o), $12, $13)",
                )
                .bind(worker)
                .bind(finished.iter().map(|f| f.job.clone()).collect::<Vec<_>>())
                .bind(finished.iter().map(|f| f.attempt).collect::<Vec<_>>())
                .bind(finished.iter().map(|f| f.verdict.as_str().to_owned()).collect::<Vec<_>>())
                .bind(finished.iter().map(|f| f.delay.as_secs_f64()).collect::<Vec<_>>())
                .bind(finished.iter().map(|f| f.result.clone()).collect::<Vec<_>>())
                .bind(wanted.iter().map(|w| w.queue.clone()).collect::<Vec<_>>())
                .bind(wanted.iter().map(|w| count32(w.free)).collect::<Vec<_>>())
                .bind(wanted.iter().map(|w| count32(w.running)).collect::<Vec<_>>())
                .bind(turn)
                .bind(wanted.iter().flat_map(|w| w.floors).collect::<Vec<_>>())
                .bind(peaks.iter().map(|(network, _)| network.clone()).collect::<Vec<_>>())
                .bind(peaks.iter().map(|(_, n)| count32(*n)).collect::<Vec<_>>()),
            )
            .await?;
        let mut exchanged = Exchanged::default();
        for row in &rows {
            let what: String = get(row, "what")?;
            match what.as_str() {
                "finished" => exchanged.finished.push(get(row, "job_id")?),
                // The call is committed: a row that is out of order is its own trouble, not its neighbours'.
                "claimed" => match claimed(row) {
                    Ok(claimed) => exchanged.claimed.push(claimed),
                    Err(error) => exchanged.unreadable.push(Unreadable {
                        job: get(row, "job_id")?,
                        attempt: get(row, "attempt")?,
                        why: error.to_string(),
                    }),
                },
                _ => exchanged.cancelled.push((get(row, "job_id")?, get(row, "attempt")?)),
            }
        }
        Ok(exchanged)
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
}
