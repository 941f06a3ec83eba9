//! How long the gaps that a relay leaves itself rest before they are read again: the longer, the less that brings.
//!
//! What is counted is what is new of those gaps alone. Invariant: the rest is never shorter than [`REST_S`], doubles only
//! after a reading of such gaps that brought nothing, and begins anew after one that did.

use super::Pass;
use super::windows::REST_S;
use crate::jobs::{JobError, lost};
use crate::models::{Coverage, EventId, Grade};

/// The longest rest, seconds.
const REST_MAX_S: i64 = 30 * 86_400;

/// The gaps of a class that are read again.
#[derive(Debug, Default)]
pub(super) struct Rest {
    length_s: i64,
    /// Both ends included, ascending.
    gaps: Vec<(i64, i64)>,
    found: u64,
}

impl Rest {
    fn holds(&self, second: i64) -> bool {
        let at = self.gaps.partition_point(|gap| gap.1 < second);
        self.gaps.get(at).is_some_and(|gap| gap.0 <= second)
    }

    pub(super) const fn seconds(&self) -> i64 {
        self.length_s
    }
}

/// Gaps of `[floor, now]` that have rested.
fn rested(coverage: &Coverage, floor: i64, now: i64, rest_s: i64) -> Vec<(i64, i64)> {
    let gaps = coverage.within(floor, now).filter(|known| known.grade() == Grade::Partial);
    let rested = gaps.filter(|known| now.saturating_sub(known.observed_at()) >= rest_s);
    rested.map(|known| (known.since(), known.until())).collect()
}

/// The next rest after one of so many seconds, and a reading that brought so much.
fn next(rest_s: i64, found: u64) -> i64 {
    if found > 0 { REST_S } else { rest_s.saturating_mul(2).clamp(REST_S, REST_MAX_S) }
}

/// Whether all of these (ascending, apart) lie in what was read.
fn are_read(gaps: &[(i64, i64)], read: &[(i64, i64)]) -> bool {
    let mut read = read.to_vec();
    read.sort_unstable();
    let mut merged: Vec<(i64, i64)> = Vec::new();
    for (since, until) in read {
        match merged.last_mut() {
            Some(last) if since <= last.1.saturating_add(1) => last.1 = last.1.max(until),
            _ => merged.push((since, until)),
        }
    }
    gaps.iter().all(|gap| {
        let at = merged.partition_point(|read| read.1 < gap.0);
        merged.get(at).is_some_and(|read| read.0 <= gap.0 && gap.1 <= read.1)
    })
}

impl Pass<'_> {
    /// Takes up the gaps of the class.
    pub(super) async fn wake(&mut self, floor: i64, now: i64) -> Result<(), JobError> {
        let gaps = rested(&self.coverage, floor, now, REST_S);
        let known = if gaps.is_empty() {
            None
        } else {
            self.ctx.db.gap_rest(self.relay_id, &self.class.name).await?
        };
        let rest_s = known.unwrap_or(REST_S).max(REST_S);
        let gaps = if rest_s > REST_S { rested(&self.coverage, floor, now, rest_s) } else { gaps };
        self.rest = Rest { length_s: rest_s, gaps, found: 0 };
        Ok(())
    }

    /// Takes what a page brought: `fresh` are the times of new events, and `observed` of all delivered were not known to be
    /// there. Those cannot be told apart, and count where all of the page lies in such gaps.
    pub(super) fn note_found(
        &mut self,
        delivered: &[(EventId, i64)],
        fresh: impl Iterator<Item = i64>,
        observed: u64,
    ) {
        if self.rest.gaps.is_empty() {
            return;
        }
        let fresh = fresh.filter(|second| self.rest.holds(*second)).count() as u64;
        let inside = !delivered.is_empty() && delivered.iter().all(|(_, second)| self.rest.holds(*second));
        self.rest.found += if inside { fresh.max(observed) } else { fresh };
    }

    /// Notes how long they rest from now on, if they were read.
    pub(super) async fn lay_down(&self) -> Result<(), JobError> {
        let rest_s = next(self.rest.length_s, self.rest.found);
        let gaps = &self.rest.gaps;
        if gaps.is_empty() || rest_s == self.rest.length_s || !are_read(gaps, &self.read) {
            return Ok(());
        }
        let (fence, class) = (&self.attempt.fence, &self.class.name);
        if self.ctx.db.gap_rest_set(fence, self.relay_id, class, rest_s).await? {
            Ok(())
        } else {
            Err(lost())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{GapReason, Interval};

    #[test]
    fn a_rest_doubles_up_to_a_month_and_begins_anew_with_what_is_found() {
        let mut rests = vec![REST_S];
        while rests.len() < 10 {
            rests.push(next(rests[rests.len() - 1], 0));
        }
        assert!(rests.is_sorted() && rests[1] == 2 * REST_S && rests[9] == REST_MAX_S, "{rests:?}");
        assert_eq!(next(REST_MAX_S, 1), REST_S);
    }

    #[test]
    fn gaps_are_read_when_every_second_of_them_was() {
        let read = [(50, 60), (10, 19), (20, 30), (25, 28)];
        assert!(are_read(&[(12, 29), (55, 60)], &read));
        assert!(!are_read(&[(12, 31)], &read) && !are_read(&[(12, 20), (40, 41)], &read));
    }

    #[test]
    fn what_is_found_is_found_in_gaps_that_rested() {
        let mut coverage = Coverage::empty();
        for (since, at) in [(10, 5_000), (30, 900_000), (50, 5_000)] {
            let gap = Interval::new(since, since + 9, Grade::Partial, GapReason::Unordered, at);
            coverage.overlay(gap.unwrap());
        }
        let gaps = rested(&coverage, 15, 900_001, REST_S);
        let rest = Rest { length_s: REST_S, gaps, found: 0 };
        let held: Vec<i64> = (0..70).filter(|second| rest.holds(*second)).collect();
        assert_eq!(held, (15..20).chain(50..60).collect::<Vec<i64>>());
    }
}
