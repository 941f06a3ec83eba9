//! The one loop that talks to the queue: it acknowledges what ended and claims what became free, in one call.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ack::{self, Ended};
use super::backend::Ticket;
use super::held::Why;
use super::lanes::Lanes;
use super::run::{EXCHANGE, QUEUES, Shared};
use crate::clock;
use crate::db::{Claimed, DbError, Exchange, Exchanged, Unreadable};
use crate::telemetry::Outage;

/// Attempts acknowledged per call; what ends while one is under way goes with the next.
const BATCH: usize = 500;
/// Between the beginnings of two calls, unless everything that ran has ended or enough has: short jobs share a
/// call, and a few milliseconds are nothing to a job of seconds.
const PACE: Duration = Duration::from_millis(25);
/// Attempts that are worth a call of their own: the next ones run meanwhile.
const ENOUGH: usize = 32;
/// Between tries while the database is away.
const RETRY: Duration = Duration::from_millis(500);

/// Runs until told to stop and every attempt is acknowledged: then the lanes' channels close, the workers come
/// to an end, and with them the senders of `ended`.
pub(super) async fn run(
    shared: Shared,
    mut lanes: Lanes,
    mut ended: mpsc::Receiver<Ended>,
    stop: CancellationToken,
) {
    let mut batch: Vec<Ended> = Vec::new();
    let mut peaks_ms = clock::monotonic_ms();
    let (mut outage, mut owed, mut unreadable) = (Outage::default(), ack::Trips::new(), Vec::new());
    loop {
        let began = tokio::time::Instant::now();
        if stop.is_cancelled() {
            lanes.clear();
        }
        let mut exchange =
            Exchange { wanted: lanes.wanted(&batch), turn: lanes.turn(), ..Exchange::default() };
        if clock::monotonic_ms().saturating_sub(peaks_ms) >= millis(shared.options.lease / 3) {
            exchange.peaks = lanes.take_peaks();
            peaks_ms = clock::monotonic_ms();
        }
        ack::trip(&shared, &mut batch, &mut owed).await;
        shared.claims.begin();
        let pause = match tell(&shared, &batch, exchange).await {
            Ok((exchange, exchanged)) => {
                outage.answered("the database");
                shared.beat(EXCHANGE);
                if lanes.served() {
                    shared.beat(QUEUES);
                }
                ack::settle(&shared, &batch, &exchanged.finished);
                ack::close(&shared, &batch).await;
                batch.clear();
                if !exchange.wanted.is_empty() {
                    shared.metrics.claim_size.observe(count(exchanged.claimed.len()));
                }
                lanes.claimed(&exchange.wanted, &exchanged.claimed);
                hand_out(&shared, &lanes, exchanged.claimed).await;
                lanes.note_peaks();
                for key in &exchanged.cancelled {
                    shared.held.end(key, Why::Cancelled);
                }
                note_unreadable(&shared, &exchanged.unreadable);
                unreadable.extend(exchanged.unreadable);
                ack::condemn(&shared, &mut unreadable).await;
                jittered(shared.options.poll)
            }
            Err(error) => {
                outage.failed(&error, "acknowledging and claiming again when the database answers");
                shared.metrics.queue_errors.inc();
                batch.iter_mut().for_each(|ended| ended.told = true);
                shared.turn(EXCHANGE);
                if lanes.served() {
                    shared.turn(QUEUES);
                }
                RETRY
            }
        };
        shared.claims.end();
        if !wait(&shared, &mut ended, &mut batch, pause, &stop).await {
            if !stop.is_cancelled() {
                tracing::error!("nobody is left who could run a job; nothing is claimed any more");
            }
            return;
        }
        while !batch.is_empty() && batch.len() < lanes.running().min(ENOUGH) {
            let room = BATCH.saturating_sub(batch.len());
            let more = tokio::time::timeout_at(began + PACE, ended.recv_many(&mut batch, room)).await;
            if matches!(more, Err(_) | Ok(0)) {
                break;
            }
        }
    }
}

/// Waits until there is something to tell or to ask; false when all is said.
async fn wait(
    shared: &Shared,
    ended: &mut mpsc::Receiver<Ended>,
    batch: &mut Vec<Ended>,
    pause: Duration,
    stop: &CancellationToken,
) -> bool {
    // What was not acknowledged yet waits for nothing but the database.
    let room = if batch.is_empty() { BATCH } else { 0 };
    tokio::select! {
        biased;
        n = ended.recv_many(batch, BATCH), if room > 0 => n > 0,
        () = stop.cancelled(), if !stop.is_cancelled() => true,
        () = shared.wake.notified() => true,
        () = tokio::time::sleep(pause) => true,
    }
}

/// One call: acknowledges and claims together, or, when the database refuses a result as such, one after the other.
async fn tell(
    shared: &Shared,
    batch: &[Ended],
    mut exchange: Exchange,
) -> Result<(Exchange, Exchanged), DbError> {
    let began = clock::monotonic_ms();
    exchange.finished = batch.iter().map(|ended| ack::finished(ended, true)).collect();
    let result = match shared.db.job_exchange(&shared.options.worker, &exchange).await {
        Err(error) if error.is_data() && !batch.is_empty() => {
            let held = ack::bisect(shared, batch).await?;
            exchange.finished = Vec::new();
            shared.db.job_exchange(&shared.options.worker, &exchange).await.map(|mut exchanged| {
                exchanged.finished = held;
                exchanged
            })
        }
        result => result,
    }?;
    let seconds = Duration::from_millis(clock::monotonic_ms().saturating_sub(began)).as_secs_f64();
    shared.metrics.exchange_seconds.observe(seconds);
    Ok((exchange, result))
}

/// Spreads the polls of a fleet that was started at once: three fifths to five fifths.
fn jittered(poll: Duration) -> Duration {
    let share = u32::from_str_radix(&clock::random_hex(1), 16).unwrap_or(128);
    poll * 3 / 5 + poll * 2 / 5 * share / 256
}

fn note_unreadable(shared: &Shared, unreadable: &[Unreadable]) {
    for bad in unreadable {
        shared.metrics.jobs_unreadable.inc();
        tracing::error!(
            job.id = bad.job,
            job.attempt = bad.attempt,
            reason = bad.why,
            "the row of a job cannot be read; the job is dead"
        );
    }
}

async fn hand_out(shared: &Shared, lanes: &Lanes, claimed: Vec<Claimed>) {
    for claimed in claimed {
        let Some((slot, tickets)) = lanes.take(&claimed.queue) else { continue };
        let holding = shared.held.remember(&claimed.job, claimed.attempt).into();
        let queue = claimed.queue.clone();
        let ticket = Ticket { claimed, claimed_ms: clock::boot_ms(), slot: slot.into(), holding };
        // The channel holds as many tickets as are ever claimed, so this does not wait.
        if tickets.send(ticket).await.is_err() {
            tracing::error!(queue, "a queue's worker is gone; the heartbeat gives its jobs back");
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
const fn count(n: usize) -> f64 {
    n as f64
}
