//! Every metric there is, in one table: its name, what it is, who shows it, its labels and what it says.
//!
//! `docs/MONITORING.md` is this table, and a test holds the two together.

/// What a metric does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only rises; its exported name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts into buckets: `_bucket`, `_sum` and `_count`.
    Histogram,
    /// Always 1; its labels say something.
    Info,
}

/// Who shows a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricOf {
    /// Each process.
    Process,
    /// Each worker.
    Worker,
    /// Each scheduler.
    Scheduler,
    /// The scheduler that leads: it speaks of the whole fleet, and N of them would multiply it.
    Fleet,
}

impl MetricKind {
    /// The word of the documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

impl MetricOf {
    /// The word of the documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Worker => "worker",
            Self::Scheduler => "scheduler",
            Self::Fleet => "leader",
        }
    }
}

/// A row: variant, name, kind, whose, labels, meaning.
macro_rules! metrics {
    ($($variant:ident, $name:literal, $kind:ident, $of:ident, $labels:literal, $says:literal;)+) => {
        /// Every metric we export, as `bigbrotr_` + [`Metric::name`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Metric {
            $(#[doc = $says] $variant),+
        }

        impl Metric {
            /// Every metric, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Name without prefix and without the `_total` the encoder adds to counters.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// What it does.
            pub const fn kind(self) -> MetricKind {
                match self { $(Self::$variant => MetricKind::$kind),+ }
            }

            /// Who shows it.
            pub const fn of(self) -> MetricOf {
                match self { $(Self::$variant => MetricOf::$of),+ }
            }

            /// The labels it has, as the documents write them.
            pub const fn labels(self) -> &'static str {
                match self { $(Self::$variant => $labels),+ }
            }

            /// What it says.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $says),+ }
            }
        }
    };
}

metrics! {
    Build, "build", Info, Process, "version", "The version of the program";
    ProcessStart, "process_start_time_seconds", Gauge, Process, "", "When this process started, Unix seconds";
    Ready, "ready", Gauge, Process, "", "1 while every part of this process has done its work within its limit, as /readyz says; 0 also while the database is away";
    JobsFinished, "jobs_finished", Counter, Worker, "kind, network, outcome (verdict)", "Attempts that ended and whose fence held";
    JobsLost, "jobs_lost", Counter, Worker, "", "Attempts whose lease was lost to another worker: their result was dropped";
    JobsUnreadable, "jobs_unreadable", Counter, Worker, "", "Claimed jobs whose row could not be read: they are dead, with the reason";
    JobRunSeconds, "job_run_seconds", Histogram, Worker, "kind, network", "How long attempts ran";
    JobsRunning, "jobs_running", Gauge, Worker, "", "Jobs that run in this process";
    WorkerSlots, "worker_slots", Gauge, Worker, "kind, network", "Jobs of a queue that this process runs at once";
    QueueErrors, "queue_errors", Counter, Worker, "", "Database calls of the queue's loops that failed";
    ExchangeSeconds, "queue_exchange_seconds", Histogram, Worker, "", "How long the calls took in which a worker acknowledges and claims";
    ClaimSize, "queue_claim_size", Histogram, Worker, "", "Jobs that a call brought which asked for some";
    EventsReceived, "events_received", Counter, Worker, "outcome", "Events that relays sent: new, known, a class that is not kept, or why they were refused";
    ObservationsStored, "observations_stored", Counter, Worker, "", "Observations stored that were new";
    Checks, "checks", Counter, Worker, "kind (of check), outcome", "Checks made";
    RelayReceivedBytes, "relay_received_bytes", Counter, Worker, "network", "Bytes received from relays and sources, without what TLS adds; reported with each heartbeat";
    RelaySentBytes, "relay_sent_bytes", Counter, Worker, "network", "Bytes sent to relays, without what TLS adds; reported with each heartbeat";
    EgressStandings, "egress_standings", Counter, Worker, "network, outcome (proved, unproved, sick)", "How our own way into a network stood each time a failed dial had to be judged by it";
    Leader, "leader", Gauge, Scheduler, "", "1 while this scheduler leads";
    JobsEnqueued, "jobs_enqueued", Counter, Scheduler, "kind", "Jobs that this scheduler enqueued";
    JobsRescued, "jobs_rescued", Counter, Scheduler, "", "Jobs whose worker or deadline was gone: put back, or dead when out of attempts";
    SchedulerErrors, "scheduler_errors", Counter, Scheduler, "outcome (round, maintenance, gauges)", "Rounds, maintenance and readings of gauges of this scheduler that failed";
    LeaderTerm, "leader_term", Gauge, Fleet, "", "Term of the lead: how often it has changed hands";
    QueueDue, "queue_due_jobs", Gauge, Fleet, "kind, network", "Jobs that are due and not claimed";
    QueueOldestDueSeconds, "queue_oldest_due_age_seconds", Gauge, Fleet, "kind, network", "Age of the oldest of them; 0 without one";
    QueueRunning, "queue_running_jobs", Gauge, Fleet, "kind, network", "Jobs that run, all workers together";
    QueueScheduled, "queue_scheduled_jobs", Gauge, Fleet, "kind, network", "Jobs scheduled ahead, as counted within the last minute";
    QueueDead, "queue_dead_jobs", Gauge, Fleet, "kind, network", "Jobs that died within the last hour: killed, or out of attempts";
    QueueHeld, "queue_held", Gauge, Fleet, "kind, network", "1 while an operator pauses or drains the queue";
    QueueWorkers, "queue_workers", Gauge, Fleet, "kind, network", "Live workers that serve the queue and are not draining";
    QueueDeadRows, "queue_dead_rows", Gauge, Fleet, "", "Dead rows of the live queue's table, by the server's estimate: vacuum is late when they grow";
    Workers, "workers", Gauge, Fleet, "outcome (working, draining)", "Worker processes whose lease stands";
    AutoscaleDesired, "autoscale_desired_workers", Gauge, Fleet, "", "How many workers would drain what is due within five minutes (autoscale_desired)";
    AutoscaleBacklog, "autoscale_backlog_seconds", Gauge, Fleet, "", "Seconds of work that are due or running";
    Permits, "network_permits", Gauge, Fleet, "network", "Jobs that the fleet may run at once on the network";
    PermitsLent, "network_permits_lent", Gauge, Fleet, "network", "Permits that live workers have borrowed of these";
    NetworkBytes, "network_today_bytes", Gauge, Fleet, "network", "Bytes moved on the network in this UTC day";
    NetworkBytesLimit, "network_limit_bytes", Gauge, Fleet, "network", "Bytes of a UTC day after which syncing rests; absent without a limit";
    Breakers, "breakers", Gauge, Fleet, "network", "Vantages whose breaker of the network is not closed";
    Relays, "relays", Gauge, Fleet, "network, outcome (alive, suspect, down, unchecked)", "Relays by state over all vantages (relay_liveness)";
    Candidates, "candidates", Gauge, Fleet, "network, outcome (waiting, tombstoned)", "URLs that may be relays, and those that were given up";
    Events, "archive_events", Gauge, Fleet, "", "Archived events, as far as the rollups have counted";
    Observations, "archive_observations", Gauge, Fleet, "", "Observations of archived events, as far as the rollups have counted";
    EventsAhead, "archive_events_ahead", Gauge, Fleet, "", "Archived events dated more than 15 minutes ahead (events_ahead); counted up to 100000";
    CoverageSeconds, "coverage_seconds", Gauge, Fleet, "outcome (grade)", "Seconds of timelines by the grade of their proof, all relays together";
    Quarantined, "events_quarantined", Gauge, Fleet, "", "Events that verified and that the database refused";
    RollupBacklog, "rollup_backlog", Gauge, Fleet, "", "Keys that writers logged and no refresh has counted yet";
    RollupBacklogAge, "rollup_backlog_age_seconds", Gauge, Fleet, "", "Age of the oldest of them; 0 without one";
    ViewAge, "view_age_seconds", Gauge, Fleet, "", "Since when the view that was refreshed longest ago was not; absent before the first refresh";
    AlertsWaiting, "relay_alerts_waiting", Gauge, Fleet, "", "Changes of relays' states that wait for the webhook";
    AlertsFailing, "relay_alerts_failing", Gauge, Fleet, "", "Those of them that were tried and failed";
    Publications, "publications", Gauge, Fleet, "outcome (accepted, refused, waiting)", "Deliveries of our publications to publishing relays, by what became of the newest";
    PublishingFailing, "publishing_relays_failing", Gauge, Fleet, "", "Publishing relays whose latest delivery failed as a whole";
    ArchiveBytes, "archive_bytes", Gauge, Fleet, "", "Size of the database, with what the rollups will take";
    ArchiveLimit, "archive_limit_bytes", Gauge, Fleet, "", "Its disk budget (archive.max_gb); absent without one";
    ArchiveRests, "archive_rests", Gauge, Fleet, "", "1 while syncing rests for the disk budget";
}

impl Metric {
    /// What all names begin with.
    pub const PREFIX: &'static str = "bigbrotr";

    /// The metric of a name without its prefix.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|metric| metric.name() == name)
    }

    /// The name as Prometheus stores it; of a histogram, what its three names begin with.
    pub fn exported(self) -> String {
        let end = match self.kind() {
            MetricKind::Counter => "_total",
            MetricKind::Info => "_info",
            MetricKind::Gauge | MetricKind::Histogram => "",
        };
        format!("{}_{}{end}", Self::PREFIX, self.name())
    }
}

/// Every metric with its meaning: exported name, kind, who shows it, labels, what it says.
pub fn metric_lines() -> Vec<[String; 5]> {
    let line = |metric: &Metric| {
        let [kind, of] = [metric.kind().as_str(), metric.of().as_str()].map(str::to_owned);
        [metric.exported(), kind, of, metric.labels().to_owned(), metric.help().to_owned()]
    };
    Metric::ALL.iter().map(line).collect()
}
