//! Slow maintenance, beside the rounds: local tasks exist, partitions are ahead, history is bounded.
//!
//! Invariant: no step is begun on a term that is over.

use std::time::Duration;

use shared::clock;
use shared::config::SchedulerOptions;
use shared::db::{Db, DbError, Pace, ScheduleTarget};
use shared::jobs::{alerts, publish};
use shared::models::{JobKind, LOCAL, Unkept, tombstones};

use crate::lead::Lead;

/// Workers whose lease ended this long ago are forgotten.
const WORKER_MEMORY: Duration = Duration::from_secs(3_600);
/// Days uptime is kept by the day, and changes of liveness are: three years.
const UPTIME_DAYS: u16 = 1_096;
/// Days what we and other monitors said of relays is kept.
const REPORT_DAYS: u16 = 90;
/// Days for which what relays served and is no event is kept, one text of each reason.
const SPECIMEN_DAYS: u16 = 30;
/// Days a candidate that was given up is kept when nobody names it any more: to invent one costs nothing.
const CANDIDATE_DAYS: u16 = 90;
/// Such candidates forgotten per round.
const CANDIDATES: u32 = 1_000;
/// Jobs of networks that are switched off cancelled per round.
const OFF: u32 = 5_000;
/// Documents deleted per round once no relay has them; ten times as many are looked at.
const ORPHANS: u32 = 1_000;

/// Events looked at per round for having no relay: a round through ten million takes a day and a half.
const SWEEP: u32 = 5_000;
/// How long one round does what the policies ask for, milliseconds: the other steps have their turn.
const RETAIN_MS: u64 = 20_000;
/// How long one round makes events expire or deleted, and reviews what was archived before, milliseconds each.
const EXPIRE_MS: u64 = 5_000;
/// Events of one piece of each; of the first and the last, to begin with.
const EXPIRE: i32 = 500;
const REVIEW: u32 = 2_000;
const BURY: i32 = 2_000;
/// Months made per round for what the default partitions hold: five years within five minutes.
const MONTHS: u32 = 12;
/// Between two pieces of that.
const BREATH: Duration = Duration::from_millis(20);

/// What is done, in this order.
#[derive(Debug, Clone, Copy)]
enum Step {
    Tasks,
    Limits,
    Archive,
    Partitions,
    History,
    Checks,
    Uptime,
    Alerts,
    Publications,
    Specimens,
    Workers,
    Queues,
    Hosts,
    Schedule,
    Candidates,
    Statistics,
    Documents,
    Retention,
    Review,
    Deletions,
    Expiry,
    Orphans,
    Drift,
}

impl Step {
    const ALL: [Self; 23] = [
        Self::Tasks,
        Self::Limits,
        Self::Archive,
        Self::Partitions,
        Self::History,
        Self::Checks,
        Self::Uptime,
        Self::Alerts,
        Self::Publications,
        Self::Specimens,
        Self::Workers,
        Self::Queues,
        Self::Hosts,
        Self::Schedule,
        Self::Candidates,
        Self::Statistics,
        Self::Documents,
        Self::Retention,
        Self::Review,
        Self::Deletions,
        Self::Expiry,
        Self::Orphans,
        Self::Drift,
    ];

    /// What a number of it means; none where the number says nothing to an operator.
    const fn counts(self) -> Option<&'static str> {
        match self {
            Self::Tasks | Self::Hosts | Self::Statistics | Self::Drift => None,
            Self::Limits => Some("limits of the fleet published"),
            Self::Partitions => Some("partitions made"),
            Self::History => Some("days of history dropped"),
            Self::Checks => Some("days of checks dropped"),
            Self::Uptime => Some("days of uptime rolled up"),
            Self::Alerts => Some("changes of liveness forgotten"),
            Self::Publications => Some("publications forgotten"),
            Self::Specimens => Some("specimens forgotten"),
            Self::Workers => Some("workers forgotten"),
            Self::Queues => Some("jobs of networks that are switched off cancelled"),
            Self::Schedule => Some("schedule rows reconciled"),
            Self::Candidates => Some("candidates given up long ago forgotten"),
            Self::Documents => Some("documents deleted"),
            Self::Archive => Some("settings of the archive published"),
            Self::Retention => Some("events or observations retired"),
            Self::Review => Some("deletions and expirations found in what was archived before"),
            Self::Deletions => Some("events deleted as their authors asked"),
            Self::Expiry => Some("events expired"),
            Self::Orphans => Some("orphaned events deleted"),
        }
    }
}

/// One round of it.
#[derive(Debug)]
pub(crate) struct Maintenance {
    pub(crate) db: Db,
    pub(crate) options: SchedulerOptions,
    pub(crate) lead: Lead,
    pub(crate) term: i64,
}

impl Maintenance {
    /// Every step, as long as the lead is ours. A step that fails by itself does not keep the others from their work.
    pub(crate) async fn run(self) -> Result<(), DbError> {
        let (mut done, mut failed) = (Vec::new(), None);
        for step in Step::ALL {
            if !self.lead.stands(self.term) {
                tracing::info!(term = self.term, "maintenance ends with the lead");
                break;
            }
            match self.step(step).await {
                Ok(n) if n > 0 => done.extend(step.counts().map(|what| format!("{n} {what}"))),
                Ok(_) => {}
                Err(error @ (DbError::Unavailable(_) | DbError::Login(_))) => return Err(error),
                Err(error) => {
                    tracing::warn!(step = ?step, error = %error, "a step of maintenance failed");
                    failed = failed.or(Some(error));
                }
            }
        }
        if !done.is_empty() {
            tracing::info!(maintenance.done = done.join(", "), "maintenance");
        }
        failed.map_or(Ok(()), Err)
    }

    async fn step(&self, step: Step) -> Result<u64, DbError> {
        let (db, options) = (&self.db, &self.options);
        match step {
            Step::Tasks => {
                let task = |kind, target: &str| ScheduleTarget {
                    kind,
                    target: target.to_owned(),
                    network: LOCAL.to_owned(),
                    slack: Duration::from_secs(60),
                };
                let mut tasks: Vec<ScheduleTarget> =
                    options.discover_tasks.iter().map(|target| task(JobKind::Discover, target)).collect();
                tasks.push(task(JobKind::Refresh, "views"));
                tasks.extend(options.publish.then(|| task(JobKind::Monitor, publish::TASK)));
                tasks.extend(options.alerts.then(|| task(JobKind::Monitor, alerts::TASK)));
                db.schedule_ensure(&tasks).await.map(|_| 0)
            }
            Step::Limits => db.fleet_limits_set(&options.limits).await,
            Step::Archive => self.publish_archive().await,
            Step::Partitions => {
                let since =
                    options.archive_days.map_or(0, |days| clock::unix_now() - i64::from(days) * 86_400);
                // A month that retention has dropped is not made again.
                let before = db.archive_get(None).await?.before;
                let made = db.partition_maintain(since.max(before)).await?;
                // What is older than archive.days was imported, or asked for when that was more.
                Ok(made + db.month_adopt(before, MONTHS).await?)
            }
            Step::History => db.job_retire(options.history_days).await,
            Step::Checks => db.check_retire(options.checks_days).await,
            Step::Uptime => {
                db.uptime_retire(UPTIME_DAYS).await?;
                db.uptime_rollup(options.hours_days).await
            }
            Step::Alerts => db.alert_retire(UPTIME_DAYS, options.alerts).await,
            Step::Publications => db.publication_retire(options.publish, REPORT_DAYS).await,
            Step::Specimens => db.specimen_retire(SPECIMEN_DAYS).await,
            Step::Workers => db.worker_retire(WORKER_MEMORY).await,
            Step::Queues => db.queue_retire(&options.networks, OFF).await,
            Step::Hosts => db.host_retire().await,
            Step::Schedule => db.schedule_reconcile().await,
            Step::Candidates => db.candidate_retire(CANDIDATES, CANDIDATE_DAYS).await,
            Step::Statistics => db.statistics_maintain().await.map(|_| 0),
            Step::Documents => db.orphan_metadata_delete(ORPHANS).await,
            Step::Retention => self.retain().await,
            Step::Review => self.review().await,
            Step::Deletions => self.bury().await,
            Step::Expiry => self.expire().await,
            // Found, and not to be had at this moment: the round comes by again.
            Step::Orphans => {
                unless_busy(db.orphan_event_sweep(SWEEP).await.map(Some)).map(Option::unwrap_or_default)
            }
            // A queue without one of its indexes works, and ever more slowly.
            Step::Drift => match db.queue_drift().await? {
                drift if drift.is_empty() => Ok(0),
                drift => Err(DbError::Schema(drift.join(", "))),
            },
        }
    }

    /// The disk budget, the policies, and whether an empty archive begins as a lightweight one.
    async fn publish_archive(&self) -> Result<u64, DbError> {
        let (db, options) = (&self.db, &self.options);
        let budget = u64::from(db.archive_budget_set(options.archive_max_bytes).await?);
        let policies = db.retention_put(&options.retention, false).await?;
        if options.archive_light && !db.archive_light_begin().await? {
            tracing::warn!(
                "archive.light is set, and the archive holds whole events: `bigbrotr archive lighten` says what would be lost"
            );
        }
        Ok(budget + policies)
    }

    /// The rounds of a step that is done piece by piece, for so long.
    fn pieces(&self, limit_ms: u64) -> Pieces<'_> {
        Pieces { maintenance: self, limit_ms, until_ms: clock::monotonic_ms() + limit_ms, begun: false }
    }

    /// What the policies ask for.
    async fn retain(&self) -> Result<u64, DbError> {
        let (mut done, mut pace, mut pieces) = (0, Pace::default(), self.pieces(RETAIN_MS));
        while pieces.another().await {
            match unless_busy(self.db.retention_step(&mut pace).await) {
                Ok(Some(step)) => done += step.events + step.observations + step.months,
                Ok(None) => break,
                Err(error) => pieces.smaller(pace, error)?,
            }
        }
        Ok(done)
    }

    /// What was archived before anybody noted when it expires, or what it asks to have deleted: once through the archive.
    async fn review(&self) -> Result<u64, DbError> {
        let deletes = self.options.unkept.contains(&Unkept::Deleted);
        if self.db.archive_review_begin(deletes).await? {
            tracing::info!(
                "what is archived is looked through once more, for what authors asked to have deleted"
            );
        }
        let (mut found, mut pieces) = (0, self.pieces(EXPIRE_MS));
        while pieces.another().await {
            let Some(piece) = unless_busy(self.db.archive_review_take(REVIEW).await)? else { break };
            let asked = piece.requests.iter().filter(|_| deletes);
            let stones: Vec<_> = asked.flat_map(tombstones).collect();
            let (stones, expiries) = self.db.archive_review_store(&piece, &stones).await?;
            found += stones + expiries;
        }
        Ok(found)
    }

    /// Applies what authors asked to have deleted, where the operator heeds that; a pass over a relay does so too, where
    /// there is one.
    async fn bury(&self) -> Result<u64, DbError> {
        if !self.options.unkept.contains(&Unkept::Deleted) {
            return Ok(0);
        }
        let (mut done, mut pace, mut pieces) = (0, Pace::of(BURY), self.pieces(EXPIRE_MS));
        while pieces.another().await && self.db.tombstone_waits().await? {
            match unless_busy(self.db.tombstone_step(&mut pace).await.map(Some)) {
                Ok(Some(deleted)) => done += deleted,
                Ok(None) => break,
                Err(error) => pieces.smaller(pace, error)?,
            }
        }
        Ok(done)
    }

    /// Takes the bodies of events whose own time has come, where the operator does not keep them.
    async fn expire(&self) -> Result<u64, DbError> {
        if !self.options.unkept.contains(&Unkept::Expired) {
            return Ok(0);
        }
        let (mut done, mut pace, mut pieces) = (0, Pace::of(EXPIRE), self.pieces(EXPIRE_MS));
        while pieces.another().await {
            match unless_busy(self.db.event_expire(&mut pace).await.map(Some)) {
                Ok(None | Some((0, _))) => break,
                Ok(Some((_, expired))) => done += expired,
                Err(error) => pieces.smaller(pace, error)?,
            }
        }
        Ok(done)
    }
}

/// See [`Maintenance::pieces`].
struct Pieces<'a> {
    maintenance: &'a Maintenance,
    limit_ms: u64,
    until_ms: u64,
    begun: bool,
}

impl Pieces<'_> {
    /// Whether another piece may be begun: there is time, and the lead is ours. Between two of them others come to the locks.
    async fn another(&mut self) -> bool {
        if std::mem::replace(&mut self.begun, true) {
            tokio::time::sleep(BREATH).await;
        }
        clock::monotonic_ms() < self.until_ms && self.maintenance.lead.stands(self.maintenance.term)
    }

    /// A piece that ran into the time limit of statements has taken all of our time and done nothing: the next one is
    /// smaller and has its own, or every round would begin with the same one.
    fn smaller(&mut self, pace: Pace, error: DbError) -> Result<(), DbError> {
        if !matches!(error, DbError::Timeout { .. }) || pace.is_stuck() {
            return Err(error);
        }
        self.until_ms = clock::monotonic_ms() + self.limit_ms;
        Ok(())
    }
}

/// Nothing where what a piece locks is not to be had: that ends its step for this round.
fn unless_busy<T>(piece: Result<Option<T>, DbError>) -> Result<Option<T>, DbError> {
    match piece {
        Err(error) if error.is_busy() => Ok(None),
        piece => piece,
    }
}
