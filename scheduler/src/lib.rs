//! The scheduler: works out what is due and enqueues it; keeps the queue and the tables in order.
//!
//! Any number may run, one leads; a second leader would do no harm, since every step is idempotent.
//! It executes no jobs and talks to no relay.

use std::time::Duration;

use shared::clock;
use shared::config::Config;
use shared::db::{Db, DbError, ScheduleTarget, Tick, TickKind};
use shared::jobs::spec;
use shared::models::{JobKind, LOCAL};
use shared::telemetry::{Health, Labels, Metrics};
use tokio_util::sync::CancellationToken;

/// Name of the lease schedulers compete for.
const LEASE: &str = "scheduler";
/// Targets turned into jobs per kind, network and tick: a backlog is worked off over ticks.
const PER_TICK: u32 = 5_000;
/// Between two rounds of slow maintenance: partitions, retention, forgotten workers.
const SLOW_EVERY_MS: u64 = 60_000;
/// Between two looks for attempts that outlived their own deadline; lost workers are looked for in every round.
const DEADLINES_EVERY_MS: u64 = 5_000;
/// Between two readings of the fleet's gauges: no scrape is more frequent.
const GAUGE_EVERY_MS: u64 = 10_000;
/// Workers whose lease ended this long ago are forgotten.
const WORKER_MEMORY: Duration = Duration::from_secs(3_600);
/// Days of single checks kept.
const CHECK_DAYS: u16 = 90;
/// Documents deleted per round once no relay has them.
const ORPHANS: u32 = 1_000;
/// A target with a job outstanding is not looked at again for this long.
const AGAIN: Duration = Duration::from_secs(900);
/// Name under which health is reported.
const PART: &str = "scheduler";

/// Runs until `stop`; a database that is away is waited for.
///
/// # Errors
/// When the configuration cannot be used.
pub async fn run(
    config: &Config,
    metrics: Metrics,
    health: Health,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let db = Db::lazy(config.database_url(), "bigbrotr scheduler", 2)?;
    let options = config.scheduler_options();
    let limit = (options.tick * 5).max(Duration::from_secs(30));
    health.expect(PART, limit);
    let mut scheduler = Scheduler::new(db, metrics, options);
    tracing::info!(scheduler.id = scheduler.id, "scheduler starts");
    loop {
        match scheduler.tick().await {
            Ok(()) => health.beat(PART, limit),
            Err(error) => tracing::warn!(error = %error, "scheduling again when the database answers"),
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(scheduler.options.tick) => {}
        }
    }
    if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(5), scheduler.release()).await {
        tracing::warn!(error = %error, "could not hand over the lead; its lease will end by itself");
    }
    tracing::info!("scheduler stopped");
    Ok(())
}

/// What the scheduler needs to know.
#[derive(Debug, Clone)]
pub struct Scheduler {
    id: String,
    db: Db,
    metrics: Metrics,
    options: shared::config::SchedulerOptions,
    leads: bool,
    deadlines_ms: Option<u64>,
    slow_ms: Option<u64>,
    gauged_ms: Option<u64>,
}

impl Scheduler {
    /// A scheduler with an id of its own.
    pub fn new(db: Db, metrics: Metrics, options: shared::config::SchedulerOptions) -> Self {
        // A lead that ends between two ticks would wander for nothing.
        let options =
            shared::config::SchedulerOptions { lease: options.lease.max(options.tick * 3), ..options };
        let id = format!("scheduler-{}-{}", std::process::id(), clock::random_hex(4));
        Self { id, db, metrics, options, leads: false, deadlines_ms: None, slow_ms: None, gauged_ms: None }
    }

    /// One round: lead or stand by; if leading, rescue, enqueue what is due, and now and then maintain.
    ///
    /// # Errors
    /// When the database does not answer; nothing is lost by that.
    pub async fn tick(&mut self) -> Result<(), DbError> {
        let deadlines = due(self.deadlines_ms, DEADLINES_EVERY_MS);
        let tick = self
            .db
            .scheduler_tick(
                &self.id,
                self.options.lease,
                &kinds(),
                &self.options.networks,
                PER_TICK,
                deadlines,
            )
            .await?;
        if deadlines {
            self.deadlines_ms = Some(clock::monotonic_ms());
        }
        if tick.term.is_some() != self.leads {
            tracing::info!(
                scheduler.id = self.id,
                leads = tick.term.is_some(),
                term = tick.term,
                "the lead changed"
            );
        }
        if tick.term.is_some() && !self.leads {
            // Its configuration may differ from the last leader's.
            self.slow_ms = None;
        }
        self.leads = tick.term.is_some();
        self.metrics.leader.set(i64::from(self.leads));
        if !self.leads {
            // Gauges of the fleet are the leader's to show.
            self.metrics.queue_due.clear();
            self.metrics.queue_oldest_due_seconds.clear();
            self.metrics.relays.clear();
            return Ok(());
        }
        self.note(&tick);
        if due(self.slow_ms, SLOW_EVERY_MS) {
            // Maintenance that fails must not keep what is due from being done.
            if let Err(error) = self.maintain().await {
                tracing::warn!(error = %error, "maintenance again later");
            }
            self.slow_ms = Some(clock::monotonic_ms());
        }
        if due(self.gauged_ms, GAUGE_EVERY_MS) {
            self.gauge().await?;
            self.gauged_ms = Some(clock::monotonic_ms());
        }
        Ok(())
    }

    /// Ends the lead, if this scheduler has it.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn release(&self) -> Result<(), DbError> {
        self.db.leader_release(LEASE, &self.id).await.map(drop)
    }

    fn note(&self, tick: &Tick) {
        let rescued = tick.rescued;
        self.metrics.jobs_rescued.inc_by(rescued.again + rescued.dead);
        if rescued.again + rescued.dead > 0 {
            tracing::warn!(
                jobs.again = rescued.again,
                jobs.dead = rescued.dead,
                "rescued jobs of lost workers"
            );
        }
        for (kind, enqueued) in JobKind::ALL.iter().zip(&tick.enqueued) {
            self.metrics.jobs_enqueued.get_or_create(&Labels::new(kind.as_str(), "", "")).inc_by(*enqueued);
            if *enqueued > 0 {
                tracing::debug!(job.kind = %kind, jobs = enqueued, "enqueued what is due");
            }
        }
    }

    /// Local tasks exist, partitions are ahead, history is bounded.
    async fn maintain(&self) -> Result<(), DbError> {
        let task = |kind, target: &str| ScheduleTarget {
            kind,
            target: target.to_owned(),
            network: LOCAL.to_owned(),
            slack: Duration::from_secs(60),
        };
        let mut tasks: Vec<ScheduleTarget> =
            self.options.discover_tasks.iter().map(|target| task(JobKind::Discover, target)).collect();
        tasks.push(task(JobKind::Refresh, "views"));
        self.db.schedule_ensure(&tasks).await?;
        let changed = self.db.fleet_limits_set(&self.options.limits).await?;
        if changed > 0 {
            tracing::info!(rows = changed, "published the limits of the fleet");
        }
        let since = self.options.archive_days.map_or(0, |days| clock::unix_now() - i64::from(days) * 86_400);
        let made = self.db.partition_maintain(since).await?;
        let days =
            self.db.job_retire(self.options.history_days).await? + self.db.check_retire(CHECK_DAYS).await?;
        let workers = self.db.worker_retire(WORKER_MEMORY).await?;
        self.db.host_retire().await?;
        let reconciled = self.db.schedule_reconcile().await?;
        self.db.statistics_maintain().await?;
        let documents = self.db.orphan_metadata_delete(ORPHANS).await?;
        if made + days + workers + documents + reconciled > 0 {
            tracing::info!(
                partitions.made = made,
                history.partitions_dropped = days,
                workers.forgotten = workers,
                documents.deleted = documents,
                schedule.reconciled = reconciled,
                "maintenance"
            );
        }
        Ok(())
    }

    /// Gauges of the whole fleet: from the leader only, or N schedulers would multiply them.
    async fn gauge(&self) -> Result<(), DbError> {
        self.db.queue_sample_take().await?;
        for line in self.db.queue_stats().await? {
            let Ok(kind) = line.kind.parse::<JobKind>() else { continue };
            let net = line.network.parse().map_or(LOCAL, shared::models::Network::as_str);
            let labels = Labels::new(kind.as_str(), net, "");
            self.metrics.queue_due.get_or_create(&labels).set(gauge(line.due));
            #[expect(clippy::cast_possible_truncation, reason = "an age in whole seconds")]
            let oldest = line.oldest_due_s.unwrap_or(0.0) as i64;
            self.metrics.queue_oldest_due_seconds.get_or_create(&labels).set(oldest);
        }
        let fleet = self.db.fleet_stats().await?;
        for (state, count) in [("alive", fleet.alive), ("suspect", fleet.suspect), ("down", fleet.down)] {
            self.metrics.relays.get_or_create(&Labels::new("", "", state)).set(gauge(count));
        }
        Ok(())
    }
}

/// Whether what was last done at `at` is to be done again.
fn due(at: Option<u64>, every_ms: u64) -> bool {
    at.is_none_or(|at| clock::monotonic_ms().saturating_sub(at) >= every_ms)
}

fn kinds() -> Vec<TickKind> {
    JobKind::ALL
        .iter()
        .map(|kind| {
            let spec = spec(*kind);
            TickKind {
                kind: *kind,
                timeout: spec.timeout,
                max_attempts: spec.max_attempts,
                again: AGAIN.max(spec.timeout * 2),
            }
        })
        .collect()
}

fn gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
