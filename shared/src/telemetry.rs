//! Logs and metrics: one subscriber, one registry, names from one enum, labels from closed sets.
//!
//! A relay URL, an event's content or a key is never a label; keys are never logged.

mod health;
mod outage;

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use health::Health;
pub use outage::Outage;

/// Every metric we export. The exported name is `bigbrotr_` + [`Metric::name`]; counters end in `_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Attempts ended, by kind, network and verdict.
    JobsFinished,
    /// Attempts whose fence was lost.
    JobsLost,
    /// Claimed jobs whose row could not be read.
    JobsUnreadable,
    /// How long attempts ran, seconds, by kind and network.
    JobRunSeconds,
    /// Jobs running in this process.
    JobsRunning,
    /// Database calls of the queue loops that failed.
    QueueErrors,
    /// Jobs enqueued by this scheduler, by kind.
    JobsEnqueued,
    /// Jobs whose worker or deadline was gone: put back, or dead when out of attempts.
    JobsRescued,
    /// 1 while this scheduler leads.
    Leader,
    /// Jobs of the fleet that are due, by kind and network (leader only).
    QueueDue,
    /// Age of the oldest due job, seconds, by kind and network (leader only).
    QueueOldestDueSeconds,
    /// Relays by state (leader only).
    Relays,
    /// Events received from relays, by what became of them.
    EventsReceived,
    /// Observations stored that were new.
    ObservationsStored,
    /// Checks made, by kind and outcome.
    Checks,
    /// Keys that writers logged and no refresh has counted yet (leader only).
    RollupBacklog,
    /// How long the calls took that acknowledge and claim, seconds.
    ExchangeSeconds,
    /// Jobs per call that asked for some.
    ClaimSize,
    /// Size of the database (leader only).
    ArchiveBytes,
    /// 1 while the disk budget has syncing rest (leader only).
    ArchiveRests,
}

impl Metric {
    /// Every metric, in declaration order.
    pub const ALL: [Self; 20] = [
        Self::JobsFinished,
        Self::JobsLost,
        Self::JobsUnreadable,
        Self::JobRunSeconds,
        Self::JobsRunning,
        Self::QueueErrors,
        Self::JobsEnqueued,
        Self::JobsRescued,
        Self::Leader,
        Self::QueueDue,
        Self::QueueOldestDueSeconds,
        Self::Relays,
        Self::EventsReceived,
        Self::ObservationsStored,
        Self::Checks,
        Self::RollupBacklog,
        Self::ExchangeSeconds,
        Self::ClaimSize,
        Self::ArchiveBytes,
        Self::ArchiveRests,
    ];

    /// Name without prefix and without the `_total` the encoder adds to counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::JobsFinished => "jobs_finished",
            Self::JobsLost => "jobs_lost",
            Self::JobsUnreadable => "jobs_unreadable",
            Self::JobRunSeconds => "job_run_seconds",
            Self::JobsRunning => "jobs_running",
            Self::QueueErrors => "queue_errors",
            Self::JobsEnqueued => "jobs_enqueued",
            Self::JobsRescued => "jobs_rescued",
            Self::Leader => "leader",
            Self::QueueDue => "queue_due_jobs",
            Self::QueueOldestDueSeconds => "queue_oldest_due_age_seconds",
            Self::Relays => "relays",
            Self::EventsReceived => "events_received",
            Self::ObservationsStored => "observations_stored",
            Self::Checks => "checks",
            Self::RollupBacklog => "rollup_backlog",
            Self::ExchangeSeconds => "queue_exchange_seconds",
            Self::ClaimSize => "queue_claim_size",
            Self::ArchiveBytes => "archive_bytes",
            Self::ArchiveRests => "archive_rests",
        }
    }

    /// What it says.
    pub const fn help(self) -> &'static str {
        match self {
            Self::JobsFinished => "Attempts that ended, by kind, network and verdict",
            Self::JobsLost => "Attempts whose lease was lost to another worker",
            Self::JobsUnreadable => "Claimed jobs whose row could not be read: they are dead",
            Self::JobRunSeconds => "Seconds an attempt ran, by kind and network",
            Self::JobsRunning => "Jobs running in this process",
            Self::QueueErrors => "Failed database calls of the queue loops",
            Self::JobsEnqueued => "Jobs this scheduler enqueued, by kind",
            Self::JobsRescued => {
                "Jobs whose worker or deadline was gone: put back, or dead when out of attempts"
            }
            Self::Leader => "1 while this scheduler leads",
            Self::QueueDue => "Due jobs of the whole fleet, by kind and network (leader only)",
            Self::QueueOldestDueSeconds => "Age of the oldest due job, by kind and network (leader only)",
            Self::Relays => "Relays by state (leader only)",
            Self::EventsReceived => "Events relays sent us, by what became of them",
            Self::ObservationsStored => "New observations stored",
            Self::Checks => "Checks made, by kind and outcome",
            Self::RollupBacklog => "Keys that writers logged and no refresh has counted yet (leader only)",
            Self::ExchangeSeconds => "Seconds of the calls in which a worker acknowledges and claims",
            Self::ClaimSize => "Jobs a call brought that asked for some",
            Self::ArchiveBytes => "Size of the database, bytes (leader only)",
            Self::ArchiveRests => "1 while syncing rests for the disk budget (leader only)",
        }
    }
}

/// Labels from closed sets; unused ones stay empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Labels {
    /// Job or check kind.
    pub kind: &'static str,
    /// Network, or local.
    pub network: &'static str,
    /// Verdict, outcome, state or fate.
    pub outcome: &'static str,
}

impl Labels {
    /// A label set; pass `""` where a metric has no such label.
    pub const fn new(kind: &'static str, network: &'static str, outcome: &'static str) -> Self {
        Self { kind, network, outcome }
    }
}

fn run_seconds() -> Histogram {
    // From a quick check to a time-boxed sync.
    Histogram::new([0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0])
}

/// The metrics of one process. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    /// [`Metric::JobsFinished`]
    pub jobs_finished: Family<Labels, Counter>,
    /// [`Metric::JobsLost`]
    pub jobs_lost: Counter,
    /// [`Metric::JobsUnreadable`]
    pub jobs_unreadable: Counter,
    /// [`Metric::JobRunSeconds`]
    pub job_run_seconds: Family<Labels, Histogram, fn() -> Histogram>,
    /// [`Metric::JobsRunning`]
    pub jobs_running: Gauge,
    /// [`Metric::QueueErrors`]
    pub queue_errors: Counter,
    /// [`Metric::JobsEnqueued`]
    pub jobs_enqueued: Family<Labels, Counter>,
    /// [`Metric::JobsRescued`]
    pub jobs_rescued: Counter,
    /// [`Metric::Leader`]
    pub leader: Gauge,
    /// [`Metric::QueueDue`]
    pub queue_due: Family<Labels, Gauge>,
    /// [`Metric::QueueOldestDueSeconds`]
    pub queue_oldest_due_seconds: Family<Labels, Gauge>,
    /// [`Metric::Relays`]
    pub relays: Family<Labels, Gauge>,
    /// [`Metric::EventsReceived`]
    pub events_received: Family<Labels, Counter>,
    /// [`Metric::ObservationsStored`]
    pub observations_stored: Counter,
    /// [`Metric::Checks`]
    pub checks: Family<Labels, Counter>,
    /// [`Metric::RollupBacklog`]
    pub rollup_backlog: Family<Labels, Gauge>,
    /// [`Metric::ExchangeSeconds`]
    pub exchange_seconds: Histogram,
    /// [`Metric::ClaimSize`]
    pub claim_size: Histogram,
    /// [`Metric::ArchiveBytes`]
    pub archive_bytes: Family<Labels, Gauge>,
    /// [`Metric::ArchiveRests`]
    pub archive_rests: Family<Labels, Gauge>,
}

impl Metrics {
    /// A registry with every metric of [`Metric`].
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("bigbrotr");
        let mut metrics = Self {
            registry: Arc::new(Registry::default()),
            jobs_finished: Family::default(),
            jobs_lost: Counter::default(),
            jobs_unreadable: Counter::default(),
            job_run_seconds: Family::new_with_constructor(run_seconds),
            jobs_running: Gauge::<i64, AtomicI64>::default(),
            queue_errors: Counter::default(),
            jobs_enqueued: Family::default(),
            jobs_rescued: Counter::default(),
            leader: Gauge::default(),
            queue_due: Family::default(),
            queue_oldest_due_seconds: Family::default(),
            relays: Family::default(),
            events_received: Family::default(),
            observations_stored: Counter::default(),
            checks: Family::default(),
            rollup_backlog: Family::default(),
            exchange_seconds: Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5, 10.0]),
            claim_size: Histogram::new([0.0, 1.0, 4.0, 16.0, 64.0, 256.0]),
            archive_bytes: Family::default(),
            archive_rests: Family::default(),
        };
        for metric in Metric::ALL {
            let (name, help) = (metric.name(), metric.help());
            match metric {
                Metric::JobsFinished => registry.register(name, help, metrics.jobs_finished.clone()),
                Metric::JobsLost => registry.register(name, help, metrics.jobs_lost.clone()),
                Metric::JobsUnreadable => registry.register(name, help, metrics.jobs_unreadable.clone()),
                Metric::JobRunSeconds => registry.register(name, help, metrics.job_run_seconds.clone()),
                Metric::JobsRunning => registry.register(name, help, metrics.jobs_running.clone()),
                Metric::QueueErrors => registry.register(name, help, metrics.queue_errors.clone()),
                Metric::JobsEnqueued => registry.register(name, help, metrics.jobs_enqueued.clone()),
                Metric::JobsRescued => registry.register(name, help, metrics.jobs_rescued.clone()),
                Metric::Leader => registry.register(name, help, metrics.leader.clone()),
                Metric::QueueDue => registry.register(name, help, metrics.queue_due.clone()),
                Metric::QueueOldestDueSeconds => {
                    registry.register(name, help, metrics.queue_oldest_due_seconds.clone());
                }
                Metric::Relays => registry.register(name, help, metrics.relays.clone()),
                Metric::EventsReceived => registry.register(name, help, metrics.events_received.clone()),
                Metric::ObservationsStored => {
                    registry.register(name, help, metrics.observations_stored.clone());
                }
                Metric::Checks => registry.register(name, help, metrics.checks.clone()),
                Metric::RollupBacklog => registry.register(name, help, metrics.rollup_backlog.clone()),
                Metric::ExchangeSeconds => registry.register(name, help, metrics.exchange_seconds.clone()),
                Metric::ClaimSize => registry.register(name, help, metrics.claim_size.clone()),
                Metric::ArchiveBytes => registry.register(name, help, metrics.archive_bytes.clone()),
                Metric::ArchiveRests => registry.register(name, help, metrics.archive_rests.clone()),
            }
        }
        metrics.registry = Arc::new(registry);
        metrics
    }

    /// The metrics in Prometheus' text format (OpenMetrics).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        if encode(&mut text, &self.registry).is_err() {
            text.clear();
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogOptions {
    /// JSON lines instead of text.
    pub json: bool,
    /// Most detailed level shown for our own code.
    pub level: Level,
}

/// Installs the process's subscriber, writing to standard error; a second call does nothing.
pub fn init(options: LogOptions) {
    let targets = Targets::new()
        .with_default(Level::WARN)
        .with_targets([
            ("shared", options.level),
            ("scheduler", options.level),
            ("worker", options.level),
            ("bigbrotr", options.level),
        ])
        // hickory warns about every odd answer of a hostile name server; those are outcomes of ours.
        .with_targets([
            ("hickory_proto", Level::ERROR),
            ("hickory_resolver", Level::ERROR),
            ("hickory_net", Level::ERROR),
            // Notices of the server while roles are granted what they have already.
            ("sqlx", Level::ERROR),
        ]);
    let registry = tracing_subscriber::registry().with(targets);
    let result = if options.json {
        registry.with(tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr)).try_init()
    } else {
        registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_target(false)
                    .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
                    .with_writer(std::io::stderr),
            )
            .try_init()
    };
    drop(result);
}
