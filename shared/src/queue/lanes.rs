//! The queues of a process as its loop sees them: slots, and where in the order of deadlines work begins.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::{Notify, mpsc};

use super::ack::Ended;
use super::backend::Ticket;
use crate::clock;
use crate::db::{Claimed, Wanted};

/// How long a floor is believed: what comes in below it, a retry or a rescue, waits at most this long.
const FLOOR_MS: u64 = 2_000;

/// One queue: `kind.network` and its slots.
pub(super) struct Lane {
    queue: String,
    network: String,
    slots: u32,
    used: Arc<AtomicU32>,
    tickets: mpsc::Sender<Ticket>,
    floors: [Option<f64>; 4],
}

/// A place taken in a lane; free when the last clone of its ticket is gone.
#[derive(Debug)]
pub(super) struct Slot {
    used: Arc<AtomicU32>,
    freed: Arc<Notify>,
    settled: AtomicBool,
}

impl Slot {
    /// The loop itself frees it: no need to wake it for that.
    pub(super) fn settle(&self) {
        self.settled.store(true, Ordering::Relaxed);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.used.fetch_sub(1, Ordering::Relaxed);
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

    pub(super) fn push(&mut self, queue: &str, slots: u32, tickets: mpsc::Sender<Ticket>) {
        let network = queue.split_once('.').map_or("", |(_, network)| network).to_owned();
        let queue = queue.to_owned();
        self.all.push(Lane { queue, network, slots, used: Arc::default(), tickets, floors: [None; 4] });
    }

    /// Gives up the channels, so that the workers come to an end.
    pub(super) fn clear(&mut self) {
        self.all.clear();
    }

    pub(super) const fn turn(&self) -> i32 {
        self.turn
    }

    /// What to claim when the tickets of `ended` are as good as gone.
    pub(super) fn wanted(&mut self, ended: &[Ended]) -> Vec<Wanted> {
        let now = clock::monotonic_ms();
        if now.saturating_sub(self.floors_ms) >= FLOOR_MS {
            self.forget_floors(now);
        }
        self.all
            .iter()
            .map(|lane| {
                let gone = ended.iter().filter(|ended| ended.ticket.claimed.queue == lane.queue).count();
                let running =
                    lane.used.load(Ordering::Relaxed).saturating_sub(u32::try_from(gone).unwrap_or(u32::MAX));
                Wanted {
                    queue: lane.queue.clone(),
                    free: lane.slots.saturating_sub(running),
                    running,
                    floors: lane.floors,
                }
            })
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

    /// Slots taken, all lanes together.
    pub(super) fn running(&self) -> usize {
        self.all.iter().map(|lane| lane.used.load(Ordering::Relaxed) as usize).sum()
    }

    /// A place in the lane of `queue`, and the way to its worker.
    pub(super) fn take(&self, queue: &str) -> Option<(Slot, mpsc::Sender<Ticket>)> {
        let lane = self.all.iter().find(|lane| lane.queue == queue)?;
        lane.used.fetch_add(1, Ordering::Relaxed);
        let slot = Slot {
            used: Arc::clone(&lane.used),
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
            *running.entry(lane.network.clone()).or_default() += lane.used.load(Ordering::Relaxed);
        }
        running
    }
}
