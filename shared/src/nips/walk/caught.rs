//! Rule 14's other half: what becomes of a walk over a relay that was found to leave events out in order.
//!
//! Decides what is taken back and how the rest is read. Invariant: from then on the walk proves nothing, and it goes back
//! once, to the top of the page that lied.

use super::spec::Claim;
use super::view::PageView;
use super::{SMALLEST_CAP, Walk};
use crate::models::{GapReason, Grade};
use crate::nips::PageEnd;

/// Pages of such a relay that are asked for again in less time.
const FULL_MAX: u32 = 500;

/// What a walk has proved, told or not.
#[derive(Debug, Default)]
pub(super) struct Proved(Vec<(i64, i64)>);

impl Proved {
    fn add(&mut self, (since, until): (i64, i64)) {
        // A walk goes downward: almost always below the last one.
        match self.0.last_mut() {
            Some(last) if until >= last.0 - 1 && since <= last.1 + 1 => {
                *last = (last.0.min(since), last.1.max(until));
            }
            _ => self.0.push((since, until)),
        }
    }

    fn remove(&mut self, (since, until): (i64, i64)) {
        let outside = |(low, top): (i64, i64)| [(low, top.min(since - 1)), (low.max(until + 1), top)];
        let parts = self.0.drain(..).flat_map(outside).filter(|(low, top)| low <= top);
        self.0 = parts.collect();
    }

    /// All of it, newest first and apart; nothing is left.
    fn take(&mut self) -> Vec<(i64, i64)> {
        let mut parts = std::mem::take(&mut self.0);
        parts.sort_unstable_by(|a, b| b.cmp(a));
        let mut merged: Vec<(i64, i64)> = Vec::new();
        for (since, until) in parts {
            match merged.last_mut() {
                Some(last) if until >= last.0 - 1 => *last = (last.0.min(since), last.1.max(until)),
                _ => merged.push((since, until)),
            }
        }
        merged
    }
}

impl Walk {
    /// Notes what was proved; of a relay that was caught nothing is.
    pub(super) fn disbelieve(&mut self, mut claims: Vec<Claim>) -> Vec<Claim> {
        for claim in &mut claims {
            if self.caught.is_some() && claim.grade.is_proof() {
                (claim.grade, claim.reason) = (Grade::Partial, GapReason::NotServed);
            } else if claim.grade.is_proof() {
                self.proved.add((claim.since, claim.until));
            } else if claim.overrides_proof {
                self.proved.remove((claim.since, claim.until));
            }
        }
        claims
    }

    /// An event that the page of `span` left out: nothing that the walk proved is proved, and from the top of that page
    /// down all is read again, in less time.
    pub(super) fn catch(&mut self, span: (i64, i64)) -> Vec<Claim> {
        self.proved.add(span);
        let taken_back = self.proved.take().into_iter().filter_map(|(since, until)| {
            Claim::over(since, until, Grade::Partial, GapReason::NotServed).map(Claim::overriding)
        });
        let claims = taken_back.collect();
        self.caught = Some(self.unclaimed());
        self.suspect = None;
        self.sampler.forget();
        self.silence.settle();
        self.distrusts_hints = true;
        self.finish_top = None;
        self.frontier = span.1;
        self.boundary.clear();
        self.last_frames = None;
        self.begin_again();
        claims
    }

    /// Whether a page of a relay that leaves out may be one of those: half as full as its fullest, at least.
    pub(super) fn is_too_full(&self, page: &PageView) -> bool {
        self.caught.is_some()
            && page.frames > (self.largest / 2).max(SMALLEST_CAP)
            && page.low().is_some_and(|low| low < self.frontier)
            && self.narrow.full < FULL_MAX
    }

    /// How many there were.
    #[cfg(test)]
    pub(super) fn fulls(&self) -> usize {
        usize::try_from(self.narrow.full).unwrap_or(usize::MAX)
    }

    /// Asks for it again in less time.
    pub(super) fn read_in_less(&mut self, page: &PageView) -> Vec<Claim> {
        self.narrow.full += 1;
        self.narrow_by(page, &PageEnd::TooMany);
        Vec::new()
    }
}
