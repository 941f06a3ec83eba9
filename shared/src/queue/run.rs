//! One worker process: an apalis Monitor with a Worker per queue, and the loops that serve them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use apalis::prelude::*;
use tokio::sync::{Notify, SemaphorePermit, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::backend::{QueueBackend, Ticket, Tickets};
use super::held::{Held, Why};
use super::lanes::{LaneState, Lanes, Serving, most_ahead};
use super::{exchange, heartbeat, listen};
use crate::clock;
use crate::db::{Db, Registration};
use crate::jobs::{Attempt, Ending, Handler, JobError};
use crate::models::{Fence, JobKind, LOCAL, Network, Verdict};
use crate::net::Traffic;
use crate::telemetry::{Health, Labels, Metrics, Outage};

/// How a worker process takes part in the fleet.
#[derive(Debug, Clone)]
pub struct QueueOptions {
    /// Unique per start of a process.
    pub worker: String,
    /// Where it observes from.
    pub vantage: String,
    /// Queues and how many jobs of each run at once.
    pub queues: Vec<(String, u32)>,
    /// How long claims stand without a heartbeat.
    pub lease: Duration,
    /// How often an idle worker asks for work.
    pub poll: Duration,
    /// How long running jobs may finish after a stop.
    pub grace: Duration,
    /// Direct connection over which to hear of new jobs; without one, polling suffices.
    pub listen_url: Option<String>,
    /// Bytes moved per network, reported with the heartbeats.
    pub traffic: Traffic,
}

/// What the loops of one process share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) db: Db,
    pub(super) options: Arc<QueueOptions>,
    pub(super) metrics: Metrics,
    /// Something may be there to claim: a slot became free by itself, or a job was announced.
    pub(super) wake: Arc<Notify>,
    /// What runs here.
    pub(super) held: Held,
    /// The calls that claim.
    pub(super) claims: Calls,
    /// Something changed that the next heartbeat tells: it is due now.
    pub(super) tell: Arc<Notify>,
    health: Health,
    listens: Arc<AtomicBool>,
    /// When the lease was last known to begin, milliseconds of [`clock::boot_ms`].
    leased_ms: Arc<AtomicU64>,
}

/// How many calls have begun, and how many are over: with whatever they brought handed out. One at a time.
#[derive(Debug, Clone, Default)]
pub(super) struct Calls {
    begun: Arc<AtomicU64>,
    over: Arc<AtomicU64>,
}

impl Calls {
    /// One begins.
    pub(super) fn begin(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
    }

    /// All that began are over.
    pub(super) fn end(&self) {
        self.over.store(self.begun(), Ordering::SeqCst);
    }

    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    pub(super) fn over(&self) -> u64 {
        self.over.load(Ordering::SeqCst)
    }
}

impl Shared {
    pub(super) fn new(db: Db, options: QueueOptions, metrics: Metrics, health: Health) -> Self {
        Self {
            db,
            options: Arc::new(options),
            held: Held::new(metrics.clone()),
            metrics,
            wake: Arc::default(),
            claims: Calls::default(),
            tell: Arc::default(),
            health,
            listens: Arc::default(),
            leased_ms: Arc::new(AtomicU64::new(clock::boot_ms())),
        }
    }

    pub(super) fn registration(&self, traffic: Vec<(Network, u64)>) -> Registration {
        Registration {
            worker: self.options.worker.clone(),
            lease: self.options.lease,
            vantage: self.options.vantage.clone(),
            queues: self.options.queues.clone(),
            traffic,
            listens: self.listens.load(Ordering::Relaxed),
        }
    }

    /// Whoever enqueues notifies only where somebody is known to listen, so a change is told at once.
    pub(super) fn set_listening(&self, listens: bool) {
        if self.listens.swap(listens, Ordering::Relaxed) != listens {
            self.tell.notify_one();
        }
    }

    /// The lease stands from `asked_ms` on.
    pub(super) fn renewed(&self, asked_ms: u64) {
        self.leased_ms.store(asked_ms, Ordering::Relaxed);
    }

    /// How much of the lease is left by our own clock.
    pub(super) fn lease_left(&self) -> Duration {
        let age = clock::boot_ms().saturating_sub(self.leased_ms.load(Ordering::Relaxed));
        self.options.lease.saturating_sub(Duration::from_millis(age))
    }

    /// A loop of this process has just done its work.
    pub(super) fn beat(&self, part: &'static str) {
        self.health.beat(part, health_limit(&self.options));
    }

    /// A loop of this process has tried to do its work in vain.
    pub(super) fn turn(&self, part: &'static str) {
        self.health.turn(part);
    }
}

/// Names under which health is reported: a worker that cannot renew its lease, asks for no work, or has a queue
/// without anybody to run its jobs, does none.
pub(super) const HEARTBEAT: &str = "heartbeat";
/// See [`HEARTBEAT`].
pub(super) const EXCHANGE: &str = "exchange";
/// See [`HEARTBEAT`].
pub(super) const QUEUES: &str = "queues";

fn health_limit(options: &QueueOptions) -> Duration {
    options.lease.max(options.poll * 5)
}

/// The network as a label of the closed set.
pub(super) fn network_label(network: &str) -> &'static str {
    network.parse::<Network>().map_or(LOCAL, Network::as_str)
}

/// A queue as labels of the closed sets.
fn queue_labels(queue: &str) -> Labels {
    let (kind, network) = queue.split_once('.').unwrap_or_default();
    let kind = kind.parse::<JobKind>().map_or("", JobKind::as_str);
    Labels::new(kind, network_label(network), "")
}

/// Runs jobs until `stop`, then lets the running ones finish within the grace and gives the rest back.
///
/// Its heartbeat and its feeder report to `health`.
pub async fn run(
    db: Db,
    options: QueueOptions,
    handler: Arc<dyn Handler>,
    metrics: Metrics,
    health: Health,
    stop: CancellationToken,
) {
    let shared = Shared::new(db, options, metrics, health);
    let options = Arc::clone(&shared.options);
    for part in [HEARTBEAT, EXCHANGE, QUEUES] {
        shared.health.expect(part, health_limit(&options));
    }
    // Registered before the first claim; the loop waits for the database for as long as it takes.
    let mut outage = Outage::default();
    while let Err(error) = heartbeat::beat(&shared, &mut heartbeat::Strays::default()).await {
        outage.failed(&error, "work begins when the database answers");
        shared.metrics.queue_errors.inc();
        for part in [HEARTBEAT, EXCHANGE, QUEUES] {
            shared.turn(part);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
    outage.answered("the database");
    for (queue, slots) in &options.queues {
        let labels = queue_labels(queue);
        shared.metrics.worker_slots.get_or_create(&labels).set(i64::from(*slots));
        // From zero on, so that a rate sees the first one, too.
        drop(shared.metrics.job_run_seconds.get_or_create(&labels));
        for verdict in Verdict::ALL {
            let labels = Labels { outcome: verdict.as_str(), ..labels.clone() };
            shared.metrics.jobs_finished.get_or_create(&labels).inc_by(0);
        }
    }
    let most: u32 = options.queues.iter().map(|(_, n)| *n + most_ahead(*n)).sum();
    let (ended_tx, ended_rx) = mpsc::channel(most.max(1) as usize);
    let runner = Runner { shared: shared.clone(), handler, tracker: TaskTracker::new(), stop: stop.clone() };
    let mut monitor = Monitor::new().should_restart(|_, error| {
        tracing::error!(error = %error, "a queue's worker failed; restarting it");
        true
    });
    let mut lanes = Lanes::new(Arc::clone(&shared.wake));
    for (queue, slots) in &options.queues {
        let (tickets_tx, tickets_rx) = mpsc::channel((*slots + most_ahead(*slots)).max(1) as usize);
        let lane = lanes.push(queue, *slots, tickets_tx);
        let tickets: Tickets = Arc::new(Mutex::new(tickets_rx));
        let (ended, runner, name) = (ended_tx.clone(), runner.clone(), format!("{queue}@{}", options.worker));
        monitor = monitor.register(move |restarts| {
            WorkerBuilder::new(format!("{name}#{restarts}"))
                .backend(QueueBackend::new(Arc::clone(&tickets), ended.clone(), Serving::new(&lane)))
                .catch_panic()
                .data(runner.clone())
                .build(handle)
        });
    }
    drop(ended_tx);
    let beating = CancellationToken::new();
    let tasks = TaskTracker::new();
    if let Some(url) = options.listen_url.clone() {
        tasks.spawn(listen::run(shared.clone(), url, stop.clone()));
    }
    let exchange = tasks.spawn(exchange::run(shared.clone(), lanes, ended_rx, stop.clone()));
    let heart = tasks.spawn(heartbeat::run(shared.clone(), beating.clone()));
    let (stopping, ending) = (stop.clone(), stop.clone());
    let workers = tasks.spawn(async move {
        // Told to stop, the workers take nothing more from their channels and finish what they run.
        let signal = async move {
            stopping.cancelled().await;
            Ok(())
        };
        if let Err(error) = monitor.run_with_signal(signal).await {
            tracing::error!(error = %error, "a queue's worker ended with an error");
        }
        if !ending.is_cancelled() {
            tracing::error!(
                "the workers of all queues have ended by themselves: this process runs no jobs any more"
            );
        }
    });
    stop.cancelled().await;
    let ends = [workers.abort_handle(), exchange.abort_handle(), heart.abort_handle()];
    let grace = async {
        drop(workers.await);
        drop(exchange.await);
        beating.cancel();
        drop(heart.await);
    };
    if tokio::time::timeout(options.grace, grace).await.is_err() {
        tracing::warn!(jobs = shared.held.keys().len(), "the grace is over; giving running jobs back");
        for end in ends {
            end.abort();
        }
    }
    match tokio::time::timeout(Duration::from_secs(5), shared.db.worker_stop(&options.worker)).await {
        Ok(Ok(0)) => {}
        Ok(Ok(jobs)) => tracing::info!(jobs, "gave unfinished jobs back"),
        Ok(Err(error)) => {
            tracing::warn!(error = %error, "could not give jobs back; their lease will end by itself");
        }
        Err(_) => tracing::warn!("the database did not answer; leases will end by themselves"),
    }
}

/// Longest wait of a task that was claimed ahead of a slot.
const AHEAD_WAIT: Duration = Duration::from_millis(50);

/// What every attempt needs, as apalis data.
#[derive(Clone)]
struct Runner {
    shared: Shared,
    handler: Arc<dyn Handler>,
    tracker: TaskTracker,
    stop: CancellationToken,
}

/// Aborts the task it guards when it is dropped, so that a dropped attempt leaves nothing running.
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One attempt: on a task of its own (apalis polls all handlers of a queue on one), within its time limit.
async fn handle(ticket: Ticket, runner: Data<Runner>) -> Result<Ending, std::convert::Infallible> {
    let claimed = &ticket.claimed;
    let lane = ticket.slot.lane();
    let _permit = match admit(&ticket, lane, &runner.stop).await {
        Ok(permit) => permit,
        Err(ending) => return Ok(ending),
    };
    let attempt = Attempt {
        kind: claimed.kind,
        network: claimed.network.clone(),
        target: claimed.target.clone(),
        fence: Fence::new(claimed.job.clone(), runner.shared.options.worker.clone(), claimed.attempt),
        last: claimed.attempt >= claimed.max_attempts,
        stop: runner.stop.clone(),
    };
    let labels = Labels::new(claimed.kind.as_str(), network_label(&claimed.network), "");
    let began = clock::monotonic_ms();
    let handler = Arc::clone(&runner.handler);
    let task = runner.tracker.spawn(async move { handler.run(attempt).await });
    let _guard = AbortOnDrop(task.abort_handle());
    // A little less than the deadline in the database, so that a late result still finds its fence.
    let limit = claimed.timeout.saturating_sub((claimed.timeout / 10).min(Duration::from_secs(5)));
    let ending = tokio::select! {
        joined = task => match joined {
            Ok(Ok(report)) => Ending::complete(report),
            Ok(Err(error)) => Ending::from(error),
            Err(error) if error.is_panic() => Ending::retry("the handler panicked"),
            Err(_) => Ending::from(JobError::snooze(Duration::ZERO, "stopped")),
        },
        () = tokio::time::sleep(limit) => Ending::retry("the attempt ran into its time limit"),
        why = ticket.holding.told() => told(why),
    };
    let ran_ms = clock::monotonic_ms().saturating_sub(began);
    lane.ran(ran_ms.saturating_mul(1_000));
    let seconds = Duration::from_millis(ran_ms).as_secs_f64();
    runner.shared.metrics.job_run_seconds.get_or_create(&labels).observe(seconds);
    Ok(ending)
}

/// A permit of the lane to run; what was claimed ahead of a slot waits for one, but not for long.
async fn admit<'a>(
    ticket: &Ticket,
    lane: &'a LaneState,
    stop: &CancellationToken,
) -> Result<SemaphorePermit<'a>, Ending> {
    if let Ok(permit) = lane.gate().try_acquire() {
        return Ok(permit);
    }
    let back = |why| Ending::from(JobError::snooze(Duration::ZERO, why));
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(back("stopped")),
        why = ticket.holding.told() => Err(told(why)),
        permit = lane.gate().acquire() => permit.map_err(|_| back("stopped")),
        () = tokio::time::sleep(AHEAD_WAIT) => {
            // What runs takes longer than what ran: others may be free.
            lane.ran(u64::from(u32::MAX));
            Err(back("no slot became free"))
        }
    }
}

/// How an attempt ends that was told to.
fn told(why: Why) -> Ending {
    match why {
        Why::Lost => Ending::retry("the lease was lost"),
        Why::Cancelled => Ending::from(JobError::cancel("cancelled by an operator")),
    }
}
