//! The scheduler: works out what is due and enqueues it; keeps the queue and the tables in order.
//!
//! Any number may run, one leads; a second leader would do no harm, since every step is idempotent.
//! It executes no jobs and talks to no relay. A round is one short call; maintenance and gauges go on beside it, so that
//! neither keeps the lead from being renewed, or what is lost or due from being seen.

mod gauges;
mod lead;
mod maintain;

use std::time::Duration;

use shared::clock;
use shared::config::{Config, SchedulerOptions};
use shared::db::{Db, DbError, Tick, TickKind};
use shared::jobs::spec;
use shared::models::JobKind;
use shared::telemetry::{Health, Labels, Metrics, Outage};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use gauges::Gauges;
use lead::Lead;
use maintain::Maintenance;

/// Name of the lease schedulers compete for.
const LEASE: &str = "scheduler";
/// Targets turned into jobs per kind, network and tick: a backlog is worked off over ticks. A round that takes too long is
/// followed by smaller ones, which grow again: all of a round is one transaction, and none of it stands when it times out.
const PER_TICK: u32 = 5_000;
const PER_TICK_LEAST: u32 = 50;
/// Between two rounds of slow maintenance: partitions, retention, forgotten workers.
const SLOW_EVERY_MS: u64 = 60_000;
/// Between two looks for attempts that outlived their own deadline; lost workers are looked for in every round.
const DEADLINES_EVERY_MS: u64 = 5_000;
/// Between two readings of the fleet's gauges: no scrape is more frequent.
const GAUGE_EVERY_MS: u64 = 10_000;
/// Between two counts of relays and of the archive, which take a row for each.
const COUNT_EVERY_MS: u64 = 60_000;
/// A target with a job outstanding is not looked at again for this long.
const AGAIN: Duration = Duration::from_secs(900);
/// Connections: one for the rounds, one for maintenance, one for gauges.
const CONNECTIONS: u32 = 3;
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
    let db = Db::lazy(config.database_url(), "bigbrotr scheduler", CONNECTIONS)?;
    let options = config.scheduler_options();
    let limit = (options.tick * 5).max(Duration::from_secs(30));
    health.expect(PART, limit);
    let mut scheduler = Scheduler::new(db, metrics, options);
    scheduler.begin_counters();
    let mut outage = Outage::default();
    tracing::info!(scheduler.id = scheduler.id, "scheduler starts");
    loop {
        match scheduler.tick().await {
            Ok(()) => {
                outage.answered("the database");
                health.beat(PART, limit);
            }
            Err(error) => {
                scheduler.count_error("round");
                outage.failed(&error, "scheduling again when the database answers");
                health.turn(PART);
            }
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
#[derive(Debug)]
pub struct Scheduler {
    id: String,
    db: Db,
    metrics: Metrics,
    options: SchedulerOptions,
    lead: Lead,
    per_tick: u32,
    deadlines_ms: Option<u64>,
    slow_ms: Option<u64>,
    gauged_ms: Option<u64>,
    counted_ms: Option<u64>,
    /// At most one each; they end with the scheduler.
    maintenance: JoinSet<Result<(), DbError>>,
    gauges: JoinSet<Result<(), DbError>>,
    upkeep: Outage,
    reading: Outage,
}

impl Scheduler {
    /// A scheduler with an id of its own.
    pub fn new(db: Db, metrics: Metrics, options: SchedulerOptions) -> Self {
        // A lead that ends between two ticks would wander for nothing.
        let options = SchedulerOptions { lease: options.lease.max(options.tick * 3), ..options };
        let id = format!("scheduler-{}-{}", std::process::id(), clock::random_hex(4));
        Self {
            id,
            db,
            metrics,
            options,
            lead: Lead::default(),
            per_tick: PER_TICK,
            deadlines_ms: None,
            slow_ms: None,
            gauged_ms: None,
            counted_ms: None,
            maintenance: JoinSet::new(),
            gauges: JoinSet::new(),
            upkeep: Outage::default(),
            reading: Outage::default(),
        }
    }

    /// One round: lead or stand by; if leading, rescue, enqueue what is due, and now and then begin maintenance.
    ///
    /// # Errors
    /// When the database does not answer; nothing is lost by that.
    pub async fn tick(&mut self) -> Result<(), DbError> {
        self.look_beside();
        let deadlines = due(self.deadlines_ms, DEADLINES_EVERY_MS);
        let asked_ms = clock::boot_ms();
        let answer = self.ask(deadlines).await;
        self.per_tick = next_per_tick(self.per_tick, answer.as_ref().err());
        let tick = match answer {
            Ok(tick) => tick,
            Err(error) => {
                self.stand_down_if_over();
                return Err(error);
            }
        };
        if deadlines {
            self.deadlines_ms = Some(clock::monotonic_ms());
        }
        let Some(term) = tick.term else {
            if self.lead.end(|| gauges::clear(&self.metrics)) {
                tracing::info!(scheduler.id = self.id, leads = false, "the lead changed");
            }
            return Ok(());
        };
        if !self.lead.is_held() {
            tracing::info!(scheduler.id = self.id, leads = true, term, "the lead changed");
            // Its configuration may differ from the last leader's.
            self.slow_ms = None;
            // Nobody shows them now.
            self.gauge_soon();
        }
        self.lead.hold(term, asked_ms, self.options.lease);
        self.metrics.leader.set(1);
        self.note(&tick);
        self.begin_beside(term);
        Ok(())
    }

    /// The call of a round. A lead whose lease ends meanwhile is given up at once: the answer may be long in coming.
    async fn ask(&self, deadlines: bool) -> Result<Tick, DbError> {
        let (kinds, options) = (kinds(), &self.options);
        let answer = self.db.scheduler_tick(
            &self.id,
            options.lease,
            &kinds,
            &options.networks,
            self.per_tick,
            deadlines,
        );
        tokio::pin!(answer);
        tokio::select! {
            answer = &mut answer => return answer,
            () = self.lead.over() => self.stand_down_if_over(),
        }
        answer.await
    }

    /// Ends the lead, if this scheduler has it, and what it does beside.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn release(&mut self) -> Result<(), DbError> {
        self.lead.end(|| gauges::clear(&self.metrics));
        self.maintenance.shutdown().await;
        self.gauges.shutdown().await;
        self.db.leader_release(LEASE, &self.id).await.map(drop)
    }

    /// Waits until maintenance and gauges that are under way have ended.
    pub async fn settle(&mut self) {
        while let Some(ended) = self.maintenance.join_next().await {
            if !told(&mut self.upkeep, ended, "maintenance") {
                self.count_error("maintenance");
            }
        }
        while let Some(ended) = self.gauges.join_next().await {
            if !told(&mut self.reading, ended, "the gauges of the fleet") {
                self.count_error("gauges");
            }
        }
    }

    /// Has the gauges of the fleet read with the next round, whenever they were read last.
    pub const fn gauge_soon(&mut self) {
        (self.gauged_ms, self.counted_ms) = (None, None);
    }

    fn stand_down_if_over(&self) {
        let over = self.lead.is_held() && !self.lead.is_standing();
        if over && self.lead.end(|| gauges::clear(&self.metrics)) {
            tracing::warn!(
                scheduler.id = self.id,
                leads = false,
                "the lead could not be renewed in time; it is another's now"
            );
        }
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

    /// Begins what is due beside the rounds, and is not still under way.
    fn begin_beside(&mut self, term: i64) {
        let (db, lead) = (self.db.clone(), self.lead.clone());
        if due(self.slow_ms, SLOW_EVERY_MS) && self.maintenance.is_empty() {
            let work =
                Maintenance { db: db.clone(), options: self.options.clone(), lead: lead.clone(), term };
            self.maintenance.spawn(work.run());
            self.slow_ms = Some(clock::monotonic_ms());
        }
        if due(self.gauged_ms, GAUGE_EVERY_MS) && self.gauges.is_empty() {
            let (metrics, max_bytes) = (self.metrics.clone(), self.options.archive_max_bytes);
            let counts = due(self.counted_ms, COUNT_EVERY_MS);
            self.gauges.spawn(Gauges { db, metrics, lead, term, max_bytes, counts }.read());
            self.gauged_ms = Some(clock::monotonic_ms());
            if counts {
                self.counted_ms = self.gauged_ms;
            }
        }
    }

    /// Hears how what went on beside has ended.
    fn look_beside(&mut self) {
        while let Some(ended) = self.maintenance.try_join_next() {
            if !told(&mut self.upkeep, ended, "maintenance") {
                self.count_error("maintenance");
            }
        }
        while let Some(ended) = self.gauges.try_join_next() {
            if !told(&mut self.reading, ended, "the gauges of the fleet") {
                self.count_error("gauges");
            }
        }
    }

    /// From zero on, so that a rate sees the first one, too.
    fn begin_counters(&self) {
        for what in ["round", "maintenance", "gauges"] {
            self.metrics.scheduler_errors.get_or_create(&Labels::new("", "", what)).inc_by(0);
        }
        for kind in JobKind::ALL {
            self.metrics.jobs_enqueued.get_or_create(&Labels::new(kind.as_str(), "", "")).inc_by(0);
        }
    }

    fn count_error(&self, what: &'static str) {
        self.metrics.scheduler_errors.get_or_create(&Labels::new("", "", what)).inc();
    }
}

/// How a task beside the rounds has ended, and whether well: what fails is tried again when it is due.
fn told(outage: &mut Outage, ended: Result<Result<(), DbError>, tokio::task::JoinError>, what: &str) -> bool {
    let well = matches!(ended, Ok(Ok(())));
    match ended {
        Ok(Ok(())) => outage.answered(what),
        Ok(Err(error)) => outage.failed(&error, &format!("{what} again later")),
        Err(error) => outage.failed(&error, &format!("{what} again later")),
    }
    well
}

/// How many targets the next round takes, after one of so many that ended so.
fn next_per_tick(per_tick: u32, error: Option<&DbError>) -> u32 {
    match error {
        Some(DbError::Timeout { .. }) => (per_tick / 8).max(PER_TICK_LEAST),
        Some(_) => per_tick,
        None => (per_tick * 2).min(PER_TICK),
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
