//! Rule 9's other half: a page that is more than we take, or than the relay answers in time, is asked for again in less time, down to one second.
//!
//! Decides only how far down the next page goes. Invariant: whatever is passed over is claimed as a gap, and between two
//! failures the frontier has come down or the window is at most half as long.

use super::Walk;
use super::spec::{Ask, Claim};
use super::view::PageView;
use crate::models::{GapReason, Grade};
use crate::nips::PageEnd;

/// Pages that may be too much in one walk: halving from the longest window there is takes 32 of them.
pub const FAILURES_MAX: u32 = 100;

/// Seconds in a row that are passed over singly; after that 2, 4, 8 and so on at once.
const SINGLY: u32 = 8;
/// How often that is done in a row, which passes over nine minutes.
const ROW_MAX: u32 = 16;
/// The same before any page ended well.
const ROW_AT_FIRST: u32 = 3;
/// Pages that took too long in a row, before any ended well: half of what came of one would have come in half the time.
const SLOW_AT_FIRST: u32 = 2;
/// Pages in a row, at any point, that nothing more came of in time: each is as long a wait.
const IDLE_MAX: u32 = 5;
/// Of the seconds then passed over: 1, 64, 4,096.
const IDLE_STEP: u32 = 6;
/// How much longer than the last window the next one is, after one that was not answered for its length.
const LENGTHENS: i64 = 64;
/// Windows that are answered before one of twice the length is tried, where that is one too long; twice as many each time.
const PATIENCE: u32 = 2;

/// How far down pages go, as long as that is less than the floor.
#[derive(Debug)]
pub(super) struct Narrow {
    /// The lowest second of the window asked for now.
    low: Option<i64>,
    /// Seconds of that window.
    width: i64,
    /// A window down to this second failed before anything new came, so that what is too much lies there or above.
    wall: Option<i64>,
    /// Seconds in a row that failed by themselves.
    row: u32,
    /// Pages in a row that took too long, before one ended well.
    slow: u32,
    /// Pages in a row that nothing more came of in time.
    idle: u32,
    /// The longest window asked for: half of the last one that was refused for its length, or not answered.
    widest: i64,
    /// How many were answered since that was set, and how many are before it is doubled.
    answered: u32,
    patience: u32,
    /// Seconds of the last window that was answered.
    good: i64,
    /// Some window was not answered in time: windows grow step by step.
    waited: bool,
    /// The longest window was just doubled.
    grew: bool,
    /// Whether any page ended well.
    went_well: bool,
    /// The newest second passed over before any page ended well, and why: claimed once one does.
    held: Option<(i64, GapReason)>,
    failures: u32,
    /// Pages that were too full of a relay that leaves out.
    pub(super) full: u32,
    /// Most events that came of a window before it failed, since one was passed over, and those of the window asked for now.
    crowd: usize,
    brought: usize,
}

impl Default for Narrow {
    fn default() -> Self {
        Self {
            low: None,
            width: 0,
            wall: None,
            row: 0,
            slow: 0,
            idle: 0,
            widest: i64::MAX,
            answered: 0,
            patience: PATIENCE,
            grew: false,
            good: 0,
            waited: false,
            went_well: false,
            held: None,
            failures: 0,
            full: 0,
            crowd: 0,
            brought: 0,
        }
    }
}

impl Narrow {
    /// Notes a page that ended in EOSE.
    pub(super) const fn went_well(&mut self, frames: usize) {
        (self.row, self.idle, self.went_well) = (0, 0, true);
        self.brought = self.brought.saturating_add(frames);
    }

    /// Notes a window that was not answered.
    fn was_too_long(&mut self, width: i64) {
        if std::mem::take(&mut self.grew) {
            self.patience = self.patience.saturating_mul(2);
        }
        (self.widest, self.answered) = (self.widest.min(width / 2).max(1), 0);
    }

    /// Notes a window that was.
    const fn was_answered(&mut self) {
        self.good = self.width;
        if self.width < self.widest {
            return;
        }
        (self.answered, self.grew) = (self.answered + 1, false);
        if self.answered >= self.patience {
            (self.widest, self.answered, self.grew) = (self.widest.saturating_mul(2), 0, true);
        }
    }
}

impl Walk {
    /// The lowest second that pages go down to now.
    pub(super) fn low(&self) -> i64 {
        self.narrow.low.unwrap_or(self.floor)
    }

    /// Takes a page that was too much.
    pub(super) fn on_too_much(&mut self, ask: Ask, page: &PageView, end: &PageEnd) -> Vec<Claim> {
        self.narrow.failures += 1;
        // Too many frames, and fewer events than were asked for: a flood of something else, which time does not lessen.
        let flood =
            *end == PageEnd::TooMany && page.frames < usize::try_from(self.limit).unwrap_or(usize::MAX);
        self.narrow.slow = if matches!(end, PageEnd::Timeout { .. }) && !self.narrow.went_well {
            self.narrow.slow + 1
        } else {
            0
        };
        let idles = *end == PageEnd::Timeout { idle: true };
        self.narrow.idle = if idles { self.narrow.idle + 1 } else { 0 };
        let hopeless = self.narrow.slow >= SLOW_AT_FIRST || self.narrow.idle >= IDLE_MAX;
        if flood || hopeless || self.narrow.failures > FAILURES_MAX {
            return self.stop(end.grade(), end.gap());
        }
        if !end.is_too_much() {
            self.narrow.was_too_long(self.frontier - self.low() + 1);
        }
        self.last_frames = None;
        self.finish_top = None;
        match ask {
            // What is dated ahead of the ceiling is nobody's claim.
            Ask::Page { until: None } if !idles => self.plan = Some(Ask::Page { until: Some(self.frontier) }),
            Ask::Page { .. } if self.low() >= self.frontier => return self.pass_over(end),
            Ask::Page { .. } => self.narrow_by(page, end),
            // The frontier second by itself, and then what is below.
            Ask::Below { .. } => {
                self.narrow.wall = Some(self.low());
                self.set_width(1);
            }
            Ask::Above { low } => {
                self.boundary.clear();
                self.narrow.low = Some(low + 1);
                self.narrow_by(page, end);
            }
            Ask::Gap(_) | Ask::Sample | Ask::Known | Ask::Echo { .. } => {}
        }
        Vec::new()
    }

    /// A window from the frontier down to what came before it was too much, and at most half as long as before.
    pub(super) fn narrow_by(&mut self, page: &PageView, end: &PageEnd) {
        let width = self.frontier - self.low() + 1;
        let half = (width / 2).max(1);
        if end.is_too_broad() {
            // It says so at once, and of the length alone.
            return self.set_width(half);
        }
        let came = page.seconds_beside(&self.boundary);
        self.narrow.crowd = self.narrow.crowd.max(came.len());
        // Where the sum is at fault, half of it is sure to pass; where one event is, all before it did.
        let at = if matches!(end, PageEnd::Oversize) { came.last() } else { came.get(came.len() / 2) };
        let width = if let Some(second) = at {
            (self.frontier - second).clamp(1, half)
        } else {
            let waits = self.narrow.idle > 0;
            self.narrow.waited |= waits;
            self.narrow.wall = (!waits).then_some(self.low());
            match self.narrow.idle {
                0 if self.narrow.low.is_some() => half,
                // Each wait is long: first what was just answered, and then what is sure to be.
                1 => self.narrow.good.clamp(1, half),
                _ => 1,
            }
        };
        self.set_width(width);
    }

    /// One second that is too much by itself, and where that goes on, more and more of them. A relay of which nothing at
    /// all comes to an end says nothing of its seconds.
    fn pass_over(&mut self, end: &PageEnd) -> Vec<Claim> {
        self.narrow.row += 1;
        let most = if self.narrow.went_well { ROW_MAX } else { ROW_AT_FIRST };
        if self.narrow.row > most {
            return self.stop(end.grade(), end.gap());
        }
        let waits = self.narrow.idle > 0;
        let doublings =
            if waits { IDLE_STEP * (self.narrow.row - 1) } else { self.narrow.row.saturating_sub(SINGLY) };
        let seconds = 1_i64 << doublings.min(32);
        let top = self.frontier;
        self.frontier = (top - seconds).max(self.floor - 1);
        self.narrow.crowd = 0;
        self.narrow.wall = None;
        if self.narrow.row == 1 {
            self.next_window(1);
        } else {
            self.boundary.clear();
            self.set_width(1);
        }
        self.narrow.held.get_or_insert((top, end.gap()));
        // Whoever answers nothing more says nothing of this second, until something else is answered.
        let told = self.narrow.went_well && !waits;
        if told || self.plan.is_none() { self.passed_over() } else { Vec::new() }
    }

    /// The newest second that no claim speaks of.
    pub(super) fn unclaimed(&self) -> i64 {
        self.narrow.held.map_or(self.frontier, |(top, _)| top)
    }

    /// Pages go down to the floor again.
    pub(super) fn begin_again(&mut self) {
        let (failures, full) = (self.narrow.failures, self.narrow.full);
        let (widest, patience) = (self.narrow.widest, self.narrow.patience);
        self.narrow = Narrow { failures, full, widest, patience, went_well: true, ..Narrow::default() };
        self.set_width(i64::MAX);
    }

    /// What was passed over and is not claimed yet.
    pub(super) fn passed_over(&mut self) -> Vec<Claim> {
        let held = self.narrow.held.take();
        let claim = held.and_then(|(top, why)| Claim::over(self.frontier + 1, top, Grade::Partial, why));
        claim.into_iter().collect()
    }

    /// Goes on below a window that is settled, unless that went down to the floor.
    pub(super) fn go_below(&mut self) {
        if self.narrow.low.is_some() {
            self.narrow.was_answered();
            self.next_window(self.narrow.width);
        }
    }

    /// The window below one of `width` seconds: down to the floor, unless a sum was too much, or what was lies between.
    fn next_window(&mut self, width: i64) {
        self.boundary.clear();
        self.last_frames = None;
        self.finish_top = None;
        self.narrow.wall = self.narrow.wall.filter(|wall| self.frontier >= *wall);
        let crowded = self.narrow.crowd > 0 && self.narrow.brought > self.narrow.crowd / 3;
        // Where length was at fault there is little to be found out in small steps.
        let wider = width.saturating_mul(if self.narrow.waited { LENGTHENS } else { 2 });
        let wider = if crowded { width } else { wider };
        let width = match self.narrow.wall {
            Some(wall) => wider.min((self.frontier - wall + 1) / 2),
            None if self.narrow.crowd == 0 && !self.narrow.waited => i64::MAX,
            None => wider,
        };
        self.set_width(width);
    }

    fn set_width(&mut self, width: i64) {
        let width = width.min(self.narrow.widest).max(1);
        let low = self.frontier.saturating_sub(width - 1);
        self.narrow.width = width;
        self.narrow.low = (low > self.floor).then_some(low);
        self.narrow.brought = 0;
        self.plan = (self.frontier >= self.floor).then_some(Ask::Page { until: Some(self.frontier) });
    }
}
