//! The queues of a process as its loop sees them: slots, and where in the order of deadlines work begins.
//!
//! A slot is claimed for when it is free. Tasks of no host that take a few milliseconds are the exception: some
//! more of them are held ready, or each would pay for a call of its own ([`LaneState::ahead`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::{Notify, Semaphore, mpsc};

use super::ack::Ended;
use super::backend::Ticket;
use crate::clock;
use crate::db::{Claimed, Wanted};
use crate::models::LOCAL;

/// How long a floor is believed: what comes in below it, a retry or a rescue, waits at most this long.
const FLOOR_MS: u64 = 2_000;

/// Tasks that take longer are never held ready, microseconds: they would wait where another worker is free.
const SHORT_US: u32 = 5_000;
/// Most tasks held ready per lane, and per slot of it.
const AHEAD_MAX: u32 = 48;
const AHEAD_PER_SLOT: u32 = 6;

/// One queue: `kind.network` and its slots.
pub(super) struct Lane {
    queue: String,
    network: String,
    state: Arc<LaneState>,
    tickets: mpsc::Sender<Ticket>,
    floors: [Option<f64>; 4],
}

/// What the loop and the attempts of a lane share.
#[derive(Debug)]
pub(super) struct LaneState {
    slots: u32,
    /// Only tasks of no host may be held ready: a start on somebody's machine is reserved for now.
    hostless: bool,
    /// Claimed and not yet acknowledged.
    used: AtomicU32,
    /// One permit per slot: what was claimed ahead waits here.
    gate: Semaphore,
    /// How long attempts run of late, microseconds; 0: not known.
    run_us: AtomicU32,
    /// apalis's workers that take its tickets: one, while all is well.
    serving: AtomicU32,
}

impl LaneState {
    fn new(network: &str, slots: u32) -> Self {
        let (used, gate) = (AtomicU32::new(0), Semaphore::new(slots as usize));
        let (run_us, serving) = (AtomicU32::new(0), AtomicU32::new(0));
        Self { slots, hostless: network == LOCAL, used, gate, run_us, serving }
    }

    /// The permits of its slots.
    pub(super) const fn gate(&self) -> &Semaphore {
        &self.gate
    }

    /// Takes note of how long an attempt ran: one of eight counts an eighth.
    pub(super) fn ran(&self, us: u64) {
        let us = u32::try_from(us).unwrap_or(u32::MAX).max(1);
        let before = self.run_us.load(Ordering::Relaxed);
        let mean = if before == 0 { us } else { before / 8 * 7 + us / 8 };
        self.run_us.store(mean.max(1), Ordering::Relaxed);
    }

    /// How many tasks more than slots are worth having.
    fn ahead(&self) -> u32 {
        let short = (1..=SHORT_US).contains(&self.run_us.load(Ordering::Relaxed));
        if self.hostless && short { most_ahead(self.slots) } else { 0 }
    }
}

/// Somebody takes the tickets of a lane, for as long as this lives.
#[derive(Debug)]
pub(super) struct Serving(Arc<LaneState>);

impl Serving {
    pub(super) fn new(lane: &Arc<LaneState>) -> Self {
        lane.serving.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(lane))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.serving.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The most tasks a lane of so many slots holds ready.
pub(super) fn most_ahead(slots: u32) -> u32 {
    slots.saturating_mul(AHEAD_PER_SLOT).min(AHEAD_MAX)
}

/// A place taken in a lane; free when the last clone of its ticket is gone.
#[derive(Debug)]
pub(super) struct Slot {
    lane: Arc<LaneState>,
    freed: Arc<Notify>,
    settled: AtomicBool,
}

impl Slot {
    /// The lane it is a place of.
    pub(super) fn lane(&self) -> &LaneState {
        &self.lane
    }

    /// The loop itself frees it: no need to wake it for that.
    pub(super) fn settle(&self) {
        self.settled.store(true, Ordering::Relaxed);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.lane.used.fetch_sub(1, Ordering::Relaxed);
        if !self.settled.load(Ordering::Relaxed) {
            self.freed.notify_one();
        }
    }
}

/// All lanes of the process.
pub(super) struct Lanes {
    all: Vec<Lane>,
    freed: Arc<Notify>,
    floors_ms: u64,
    turn: i32,
    peaks: BTreeMap<String, u32>,
}

impl Lanes {
    pub(super) fn new(freed: Arc<Notify>) -> Self {
        // Workers begin their shares at different places.
        let turn = i32::from_str_radix(&clock::random_hex(1), 16).unwrap_or(0);
        Self { all: Vec::new(), freed, floors_ms: clock::monotonic_ms(), turn, peaks: BTreeMap::new() }
    }

    pub(super) fn push(&mut self, queue: &str, slots: u32, tickets: mpsc::Sender<Ticket>) -> Arc<LaneState> {
        let network = queue.split_once('.').map_or("", |(_, network)| network).to_owned();
        let state = Arc::new(LaneState::new(&network, slots));
        let pushed = Arc::clone(&state);
        self.all.push(Lane { queue: queue.to_owned(), network, state, tickets, floors: [None; 4] });
        pushed
    }

    /// Gives up the channels, so that the workers come to an end.
    pub(super) fn clear(&mut self) {
        self.all.clear();
    }

    pub(super) const fn turn(&self) -> i32 {
        self.turn
    }

    /// What to claim when the tickets of `ended` are as good as gone: all lanes of each network that has a free slot, for
    /// what runs in a full one counts against the network's permits, too.
    pub(super) fn wanted(&mut self, ended: &[Ended]) -> Vec<Wanted> {
        let now = clock::monotonic_ms();
        if now.saturating_sub(self.floors_ms) >= FLOOR_MS {
            self.forget_floors(now);
        }
        let wanted: Vec<(&str, Wanted)> = self
            .all
            .iter()
            .map(|lane| {
                let gone = ended.iter().filter(|ended| ended.ticket.claimed.queue == lane.queue).count();
                let used = lane.state.used.load(Ordering::Relaxed);
                let running = used.saturating_sub(u32::try_from(gone).unwrap_or(u32::MAX));
                let free = (lane.state.slots + lane.state.ahead()).saturating_sub(running);
                let wanted = Wanted { queue: lane.queue.clone(), free, running, floors: lane.floors };
                (lane.network.as_str(), wanted)
            })
            .collect();
        let open: BTreeSet<&str> =
            wanted.iter().filter(|(_, wanted)| wanted.free > 0).map(|(network, _)| *network).collect();
        wanted
            .iter()
            .filter(|(network, _)| open.contains(network))
            .map(|(_, wanted)| wanted.clone())
            .collect()
    }

    fn forget_floors(&mut self, now: u64) {
        self.floors_ms = now;
        for lane in &mut self.all {
            lane.floors = [None; 4];
        }
    }

    /// Takes note of a claim: whoever got all it asked for goes on from there, anybody else looks everywhere.
    pub(super) fn claimed(&mut self, wanted: &[Wanted], claimed: &[Claimed]) {
        let asked: u32 = wanted.iter().map(|w| w.free).sum();
        let got = u32::try_from(claimed.len()).unwrap_or(u32::MAX);
        self.turn = self.turn.wrapping_add(i32::try_from(got).unwrap_or(0)) & 0xffff;
        if got < asked {
            self.forget_floors(clock::monotonic_ms());
            return;
        }
        for claimed in claimed {
            let Some(lane) = self.all.iter_mut().find(|lane| lane.queue == claimed.queue) else { continue };
            if let Some(floor) = lane.floors.get_mut(usize::from(claimed.class)) {
                // A little less: equal deadlines, and the rounding of the number.
                let deadline = claimed.deadline - 0.001;
                *floor = Some(floor.map_or(deadline, |floor| floor.max(deadline)));
            }
        }
    }

    /// Whether every lane has somebody who takes its tickets.
    pub(super) fn served(&self) -> bool {
        self.all.iter().all(|lane| lane.state.serving.load(Ordering::Relaxed) > 0)
    }

    /// Slots taken, all lanes together.
    pub(super) fn running(&self) -> usize {
        self.all.iter().map(|lane| lane.state.used.load(Ordering::Relaxed) as usize).sum()
    }

    /// A place in the lane of `queue`, and the way to its worker.
    pub(super) fn take(&self, queue: &str) -> Option<(Slot, mpsc::Sender<Ticket>)> {
        let lane = self.all.iter().find(|lane| lane.queue == queue)?;
        lane.state.used.fetch_add(1, Ordering::Relaxed);
        let slot = Slot {
            lane: Arc::clone(&lane.state),
            freed: Arc::clone(&self.freed),
            settled: AtomicBool::new(false),
        };
        Some((slot, lane.tickets.clone()))
    }

    /// Notes how many jobs run per network now.
    pub(super) fn note_peaks(&mut self) {
        for (network, running) in self.per_network() {
            let peak = self.peaks.entry(network).or_default();
            *peak = running.max(*peak);
        }
    }

    /// The most jobs that ran per network since the last time this was asked.
    pub(super) fn take_peaks(&mut self) -> Vec<(String, u32)> {
        self.note_peaks();
        let peaks = std::mem::take(&mut self.peaks).into_iter().collect();
        self.note_peaks();
        peaks
    }

    fn per_network(&self) -> BTreeMap<String, u32> {
        let mut running = BTreeMap::new();
        for lane in &self.all {
            *running.entry(lane.network.clone()).or_default() += lane.state.used.load(Ordering::Relaxed);
        }
        running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ahead(network: &str, slots: u32, runs_us: &[u64]) -> u32 {
        let lane = LaneState::new(network, slots);
        for us in runs_us {
            lane.ran(*us);
        }
        lane.ahead()
    }

    #[test]
    fn only_short_tasks_of_no_host_are_held_ready() {
        assert_eq!(ahead(LOCAL, 8, &[]), 0, "nothing is known yet");
        assert_eq!(ahead(LOCAL, 8, &[1_000; 3]), 48);
        assert_eq!(ahead(LOCAL, 1, &[1_000; 3]), 6);
        assert_eq!(ahead(LOCAL, 8, &[30_000; 3]), 0);
        assert_eq!(ahead("clearnet", 8, &[1_000; 3]), 0);
    }

    #[test]
    fn a_lane_whose_worker_is_gone_is_not_served() {
        let mut lanes = Lanes::new(Arc::default());
        let serving = ["sync.clearnet", "refresh.local"]
            .map(|queue| Serving::new(&lanes.push(queue, 1, mpsc::channel(1).0)));
        assert!(lanes.served());
        let [first, second] = serving;
        let restarted = Serving::new(&first.0);
        drop(first);
        assert!(lanes.served(), "apalis made a new worker");
        drop((restarted, second));
        assert!(!lanes.served());
    }

    #[test]
    fn one_long_wait_ends_the_claiming_ahead_for_a_while() {
        let lane = LaneState::new(LOCAL, 8);
        for _ in 0..100 {
            lane.ran(1_000);
        }
        lane.ran(u64::from(u32::MAX));
        assert_eq!(lane.ahead(), 0);
        let runs = (1..1_000).find(|_| {
            lane.ran(1_000);
            lane.ahead() > 0
        });
        assert!(runs.is_some_and(|runs| (20..200).contains(&runs)), "{runs:?}");
    }
}
