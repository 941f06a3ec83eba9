//! The metrics of one process: a registry, and the fields and families behind it.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::{EncodeLabelSet, text::encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::metric::{Metric, MetricOf};
use crate::clock;

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

/// The metrics of one process. Cloning shares them, and costs as much as one of them would: every job has its own.
#[derive(Debug, Clone)]
pub struct Metrics {
    of_process: Arc<OfProcess>,
}

/// See [`Metrics`].
#[derive(Debug)]
pub struct OfProcess {
    registry: Registry,
    /// Those of [`MetricOf::Fleet`]: shown and taken away together.
    fleet: BTreeMap<Metric, Family<Labels, Gauge>>,
    /// [`Metric::ProcessStart`]
    pub process_start: Gauge,
    /// [`Metric::Ready`]
    pub ready: Gauge,
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
    /// [`Metric::WorkerSlots`]
    pub worker_slots: Family<Labels, Gauge>,
    /// [`Metric::QueueErrors`]
    pub queue_errors: Counter,
    /// [`Metric::ExchangeSeconds`]
    pub exchange_seconds: Histogram,
    /// [`Metric::ClaimSize`]
    pub claim_size: Histogram,
    /// [`Metric::EventsReceived`]
    pub events_received: Family<Labels, Counter>,
    /// [`Metric::ObservationsStored`]
    pub observations_stored: Counter,
    /// [`Metric::Checks`]
    pub checks: Family<Labels, Counter>,
    /// [`Metric::RelayReceivedBytes`]
    pub received_bytes: Family<Labels, Counter>,
    /// [`Metric::RelaySentBytes`]
    pub sent_bytes: Family<Labels, Counter>,
    /// [`Metric::EgressStandings`]
    pub egress_standings: Family<Labels, Counter>,
    /// [`Metric::Leader`]
    pub leader: Gauge,
    /// [`Metric::JobsEnqueued`]
    pub jobs_enqueued: Family<Labels, Counter>,
    /// [`Metric::JobsRescued`]
    pub jobs_rescued: Counter,
    /// [`Metric::SchedulerErrors`]
    pub scheduler_errors: Family<Labels, Counter>,
}

impl Metrics {
    /// A registry with every metric of [`Metric`].
    pub fn new() -> Self {
        let of_fleet = Metric::ALL.iter().filter(|metric| metric.of() == MetricOf::Fleet);
        let mut metrics = OfProcess {
            registry: Registry::default(),
            fleet: of_fleet.map(|metric| (*metric, Family::default())).collect(),
            process_start: Gauge::default(),
            ready: Gauge::default(),
            jobs_finished: Family::default(),
            jobs_lost: Counter::default(),
            jobs_unreadable: Counter::default(),
            job_run_seconds: Family::new_with_constructor(run_seconds),
            jobs_running: Gauge::<i64, AtomicI64>::default(),
            worker_slots: Family::default(),
            queue_errors: Counter::default(),
            exchange_seconds: Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5, 10.0]),
            claim_size: Histogram::new([0.0, 1.0, 4.0, 16.0, 64.0, 256.0]),
            events_received: Family::default(),
            observations_stored: Counter::default(),
            checks: Family::default(),
            received_bytes: Family::default(),
            sent_bytes: Family::default(),
            egress_standings: Family::default(),
            leader: Gauge::default(),
            jobs_enqueued: Family::default(),
            jobs_rescued: Counter::default(),
            scheduler_errors: Family::default(),
        };
        metrics.process_start.set(clock::unix_now());
        let mut registry = Registry::with_prefix(Metric::PREFIX);
        for metric in Metric::ALL {
            metrics.register(*metric, &mut registry);
        }
        metrics.registry = registry;
        Self { of_process: Arc::new(metrics) }
    }
}

impl Deref for Metrics {
    type Target = OfProcess;

    fn deref(&self) -> &OfProcess {
        &self.of_process
    }
}

impl OfProcess {
    fn register(&self, metric: Metric, registry: &mut Registry) {
        let (name, help) = (metric.name(), metric.help());
        match metric {
            Metric::Build => {
                let version = [("version", env!("CARGO_PKG_VERSION"))];
                registry.register(name, help, Info::new(version));
            }
            Metric::ProcessStart => registry.register(name, help, self.process_start.clone()),
            Metric::Ready => registry.register(name, help, self.ready.clone()),
            Metric::JobsFinished => registry.register(name, help, self.jobs_finished.clone()),
            Metric::JobsLost => registry.register(name, help, self.jobs_lost.clone()),
            Metric::JobsUnreadable => registry.register(name, help, self.jobs_unreadable.clone()),
            Metric::JobRunSeconds => registry.register(name, help, self.job_run_seconds.clone()),
            Metric::JobsRunning => registry.register(name, help, self.jobs_running.clone()),
            Metric::WorkerSlots => registry.register(name, help, self.worker_slots.clone()),
            Metric::QueueErrors => registry.register(name, help, self.queue_errors.clone()),
            Metric::ExchangeSeconds => registry.register(name, help, self.exchange_seconds.clone()),
            Metric::ClaimSize => registry.register(name, help, self.claim_size.clone()),
            Metric::EventsReceived => registry.register(name, help, self.events_received.clone()),
            Metric::ObservationsStored => registry.register(name, help, self.observations_stored.clone()),
            Metric::Checks => registry.register(name, help, self.checks.clone()),
            Metric::RelayReceivedBytes => registry.register(name, help, self.received_bytes.clone()),
            Metric::RelaySentBytes => registry.register(name, help, self.sent_bytes.clone()),
            Metric::EgressStandings => registry.register(name, help, self.egress_standings.clone()),
            Metric::Leader => registry.register(name, help, self.leader.clone()),
            Metric::JobsEnqueued => registry.register(name, help, self.jobs_enqueued.clone()),
            Metric::JobsRescued => registry.register(name, help, self.jobs_rescued.clone()),
            Metric::SchedulerErrors => registry.register(name, help, self.scheduler_errors.clone()),
            Metric::LeaderTerm
            | Metric::QueueDue
            | Metric::QueueOldestDueSeconds
            | Metric::QueueRunning
            | Metric::QueueScheduled
            | Metric::QueueDead
            | Metric::QueueHeld
            | Metric::QueueWorkers
            | Metric::QueueDeadRows
            | Metric::Workers
            | Metric::AutoscaleDesired
            | Metric::AutoscaleBacklog
            | Metric::Permits
            | Metric::PermitsLent
            | Metric::NetworkBytes
            | Metric::NetworkBytesLimit
            | Metric::Breakers
            | Metric::Relays
            | Metric::Candidates
            | Metric::Events
            | Metric::Observations
            | Metric::EventsAhead
            | Metric::CoverageSeconds
            | Metric::Quarantined
            | Metric::RollupBacklog
            | Metric::RollupBacklogAge
            | Metric::ViewAge
            | Metric::AlertsWaiting
            | Metric::AlertsFailing
            | Metric::Publications
            | Metric::PublishingFailing
            | Metric::ArchiveBytes
            | Metric::ArchiveLimit
            | Metric::ArchiveRests => {
                if let Some(family) = self.fleet.get(&metric) {
                    registry.register(name, help, family.clone());
                }
            }
        }
    }

    /// Shows a gauge of the fleet; returns what it showed before, 0 at first. Of another metric there is nothing to show.
    pub fn show(&self, metric: Metric, labels: &Labels, value: i64) -> i64 {
        self.fleet.get(&metric).map_or(0, |family| family.get_or_create(labels).set(value))
    }

    /// Takes a gauge of the fleet away: what it spoke of is not there any more.
    pub fn hide(&self, metric: Metric) {
        if let Some(family) = self.fleet.get(&metric) {
            family.clear();
        }
    }

    /// Takes away what only a leader shows.
    pub fn hide_fleet(&self) {
        for family in self.fleet.values() {
            family.clear();
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_of_the_fleet_is_shown_and_taken_away_and_others_are_not_touched() {
        let metrics = Metrics::new();
        let labels = Labels::new("sync", "tor", "");
        assert_eq!(
            (metrics.show(Metric::QueueDue, &labels, 3), metrics.show(Metric::QueueDue, &labels, 4)),
            (0, 3)
        );
        metrics.jobs_lost.inc();
        let shown = |name: &str| metrics.encode().lines().any(|line| line.starts_with(name));
        assert!(shown("bigbrotr_queue_due_jobs{"));
        metrics.hide_fleet();
        assert!(!shown("bigbrotr_queue_due_jobs{") && shown("bigbrotr_jobs_lost_total 1"));
        assert_eq!(metrics.show(Metric::JobsLost, &labels, 9), 0, "a counter is not for show");
        assert!(shown("bigbrotr_build_info{version=\""));
    }
}
