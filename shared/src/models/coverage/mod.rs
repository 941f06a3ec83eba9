//! What is known of one relay over time, as intervals of `created_at`.
//!
//! Pure interval algebra: it does not know how a stretch was walked, only what came of it.
//! Invariant: intervals are ascending and disjoint, neighbours that say the same are one (gaps: where they were found in one
//! pass), and what was proved stays proved until another proof takes its place, as a second stays dense until something is
//! read of it.

use std::collections::HashSet;

use super::grade::{GapReason, Grade};

/// Gaps found so far apart, in seconds, stay apart: longer than any pass, and shorter than any gap rests.
const APART_S: u64 = 3_600;

/// Why an interval, or a set of them, is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum CoverageError {
    /// The interval ends before it begins.
    #[error("the interval ends before it begins")]
    Reversed,
    /// A bound or the time of observation is before the epoch, where no event can be.
    #[error("the interval has a time before the epoch")]
    Negative,
    /// A proof that gives a reason for not being one.
    #[error("the interval is a proof and has a reason for a gap")]
    ProofWithReason,
    /// Intervals that overlap, which stored ones never do.
    #[error("two intervals overlap")]
    Overlap,
}

/// A stretch of `created_at` and what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Interval {
    since: i64,
    until: i64,
    grade: Grade,
    reason: GapReason,
    observed_at: i64,
}

impl Interval {
    /// The seconds `since..=until`, as they were found at `observed_at` (seconds since the epoch).
    /// A proof has the reason `none`.
    pub fn new(
        since: i64,
        until: i64,
        grade: Grade,
        reason: GapReason,
        observed_at: i64,
    ) -> Result<Self, CoverageError> {
        if since < 0 || observed_at < 0 {
            return Err(CoverageError::Negative);
        }
        if until < since {
            return Err(CoverageError::Reversed);
        }
        if grade.is_proof() && reason != GapReason::None {
            return Err(CoverageError::ProofWithReason);
        }
        Ok(Self { since, until, grade, reason, observed_at })
    }

    /// The first second, inclusive.
    pub const fn since(&self) -> i64 {
        self.since
    }

    /// The last second, inclusive.
    pub const fn until(&self) -> i64 {
        self.until
    }

    /// What is known.
    pub const fn grade(&self) -> Grade {
        self.grade
    }

    /// Why it is not known better.
    pub const fn reason(&self) -> GapReason {
        self.reason
    }

    /// When it was found out, in seconds since the epoch; the earliest time where several
    /// observations became one interval.
    pub const fn observed_at(&self) -> i64 {
        self.observed_at
    }

    const fn is_proof(&self) -> bool {
        self.grade.is_proof()
    }

    /// The part of this interval inside `since..=until`.
    fn clipped(self, since: i64, until: i64) -> Option<Self> {
        let clipped = Self { since: self.since.max(since), until: self.until.min(until), ..self };
        (clipped.since <= clipped.until).then_some(clipped)
    }

    /// The parts of this interval before and behind `since..=until`.
    fn outside(self, since: i64, until: i64) -> [Option<Self>; 2] {
        let before = since.checked_sub(1).and_then(|last| self.clipped(i64::MIN, last));
        let behind = until.checked_add(1).and_then(|first| self.clipped(first, i64::MAX));
        [before, behind]
    }

    /// Whether `next` begins where this one ends and says the same. A gap that is read again bit by bit is not as old as what
    /// is still to be read of it.
    fn continues_as(&self, next: &Self) -> bool {
        let apart = self.grade == Grade::Partial && self.observed_at.abs_diff(next.observed_at) >= APART_S;
        self.until.checked_add(1) == Some(next.since)
            && self.grade == next.grade
            && self.reason == next.reason
            && !apart
    }
}

/// Everything known of one relay and filter class. What no interval speaks of is unknown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Coverage {
    intervals: Vec<Interval>,
}

impl Coverage {
    /// Nothing known.
    pub const fn empty() -> Self {
        Self { intervals: Vec::new() }
    }

    /// Puts stored intervals together, in any order; neighbours that say the same become one.
    ///
    /// # Errors
    /// `Overlap` when two of them speak of the same second.
    pub fn from_intervals(intervals: impl IntoIterator<Item = Interval>) -> Result<Self, CoverageError> {
        let mut intervals: Vec<Interval> = intervals.into_iter().collect();
        intervals.sort_unstable_by_key(Interval::since);
        if intervals.windows(2).any(|pair| pair[0].until >= pair[1].since) {
            return Err(CoverageError::Overlap);
        }
        Ok(Self { intervals: merged(intervals) })
    }

    /// Lays a new observation over what is known. A proof replaces everything it overlaps; anything
    /// else replaces only what is not proved, and that nothing was read says nothing of a dense second.
    pub fn overlay(&mut self, new: Interval) {
        let from = self.intervals.partition_point(|old| old.until < new.since);
        let to = self.intervals.partition_point(|old| old.since <= new.until);
        let mut laid = Vec::new();
        let mut next = Some(new.since);
        for old in &self.intervals[from..to] {
            let is_still_dense = old.reason == GapReason::DenseSecond && new.grade < Grade::Partial;
            if (old.is_proof() && !new.is_proof()) || is_still_dense {
                laid.extend(next.and_then(|first| new.clipped(first, old.since - 1)));
                laid.push(*old);
                next = old.until.checked_add(1);
            } else {
                laid.extend(old.outside(new.since, new.until).into_iter().flatten());
            }
        }
        laid.extend(next.and_then(|first| new.clipped(first, new.until)));
        laid.sort_unstable_by_key(Interval::since);
        // The neighbour on each side may now say the same as what lies beside it.
        let (before, behind) = (from.saturating_sub(1), self.intervals.len().min(to + 1));
        let around = [&self.intervals[before..from], &laid, &self.intervals[to..behind]].concat();
        self.intervals.splice(before..behind, merged(around));
    }

    /// Lays an observation over what is known, proof included: for a proof that turned out to be none.
    pub fn overrule(&mut self, new: Interval) {
        let parts = self.intervals.drain(..).flat_map(|old| old.outside(new.since, new.until)).flatten();
        self.intervals = parts.collect();
        self.overlay(new);
    }

    /// Bounds what a relay can have us keep: of more than `most` intervals the longest proofs stay, a quarter of `most`,
    /// and all between two of them becomes one gap. Nothing is proved that was not.
    pub fn coarsen(&mut self, most: usize) {
        if self.intervals.len() <= most {
            return;
        }
        let mut proofs: Vec<Interval> = self.intervals.iter().copied().filter(Interval::is_proof).collect();
        proofs.sort_unstable_by_key(|proof| std::cmp::Reverse(seconds(proof.since, proof.until)));
        proofs.truncate(most / 4);
        let kept: HashSet<i64> = proofs.iter().map(Interval::since).collect();
        let mut coarse: Vec<Interval> = Vec::with_capacity(proofs.len() * 2 + 1);
        for interval in self.intervals.drain(..) {
            let keep = interval.is_proof() && kept.contains(&interval.since);
            match coarse.last_mut() {
                Some(last) if !keep && !last.is_proof() => {
                    last.until = interval.until;
                    last.grade = last.grade.min(interval.grade);
                    last.observed_at = last.observed_at.min(interval.observed_at);
                    if last.reason == GapReason::None {
                        last.reason = interval.reason;
                    }
                }
                _ if keep => coarse.push(interval),
                _ => coarse.push(Interval { grade: interval.grade.min(Grade::Partial), ..interval }),
            }
        }
        for gap in
            coarse.iter_mut().filter(|interval| !interval.is_proof() && interval.reason == GapReason::None)
        {
            gap.reason = GapReason::Stopped;
        }
        self.intervals = merged(coarse);
    }

    /// The intervals, ascending and disjoint.
    pub fn intervals(&self) -> &[Interval] {
        &self.intervals
    }

    /// What is known of one second; `None` when nothing is.
    pub fn at(&self, second: i64) -> Option<&Interval> {
        let index = self.intervals.partition_point(|interval| interval.until < second);
        self.intervals.get(index).filter(|interval| interval.since <= second)
    }

    /// The stretches of `lo..=hi`, bounds included, that no proof covers: ascending, disjoint, none
    /// touching the next. Empty when `hi` is before `lo`.
    pub fn unproved(&self, lo: i64, hi: i64) -> Vec<(i64, i64)> {
        outside(self.proofs(lo, hi), lo, hi)
    }

    /// The same of what no interval speaks of.
    pub fn unheard_of(&self, lo: i64, hi: i64) -> Vec<(i64, i64)> {
        outside(self.within(lo, hi), lo, hi)
    }

    /// The share of the seconds `lo..=hi` that a proof covers, 0 to 1; 1 where there are none.
    pub fn proved_share(&self, lo: i64, hi: i64) -> f64 {
        if hi < lo {
            return 1.0;
        }
        let proved: u64 = self.proofs(lo, hi).map(|proof| seconds(proof.since, proof.until)).sum();
        #[expect(clippy::cast_precision_loss, reason = "a share is read to a few digits")]
        let share = proved as f64 / seconds(lo, hi) as f64;
        share
    }

    /// What is known of `lo..=hi`, cut to it, ascending.
    pub fn within(&self, lo: i64, hi: i64) -> impl Iterator<Item = Interval> {
        let from = self.intervals.partition_point(|interval| interval.until < lo);
        let overlapping = self.intervals[from..].iter().take_while(move |interval| interval.since <= hi);
        overlapping.filter_map(move |interval| interval.clipped(lo, hi))
    }

    /// The proved parts of `lo..=hi`, ascending.
    fn proofs(&self, lo: i64, hi: i64) -> impl Iterator<Item = Interval> {
        self.within(lo, hi).filter(Interval::is_proof)
    }
}

/// The stretches of `lo..=hi` outside these intervals, which are ascending and apart.
fn outside(intervals: impl Iterator<Item = Interval>, lo: i64, hi: i64) -> Vec<(i64, i64)> {
    let mut gaps = Vec::new();
    let mut next = Some(lo);
    for known in intervals {
        gaps.extend(next.filter(|first| *first < known.since).map(|first| (first, known.since - 1)));
        next = known.until.checked_add(1);
    }
    gaps.extend(next.filter(|first| *first <= hi).map(|first| (first, hi)));
    gaps
}

/// How many seconds `since..=until` has, at most `u64::MAX`.
fn seconds(since: i64, until: i64) -> u64 {
    until.abs_diff(since).saturating_add(1)
}

/// Joins neighbours that say the same; the join was observed when its oldest part was.
fn merged(intervals: Vec<Interval>) -> Vec<Interval> {
    let mut out: Vec<Interval> = Vec::with_capacity(intervals.len());
    for interval in intervals {
        match out.last_mut() {
            Some(last) if last.continues_as(&interval) => {
                last.until = interval.until;
                last.observed_at = last.observed_at.min(interval.observed_at);
            }
            _ => out.push(interval),
        }
    }
    out
}

#[cfg(test)]
mod tests;
