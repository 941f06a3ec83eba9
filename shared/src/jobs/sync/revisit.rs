//! Which stretches of a relay's timeline are read again, for what arrives late: pure.
//!
//! Every second is read again once it is an hour, a day, three days, thirty days and half a year old. For each age
//! one number says how far that has come: every second up to it was read at that age or later. Invariant: the number
//! moves only over what was read, with proof or as a gap that the relay itself leaves (*partial*: it is asked again for
//! itself), and never beyond now minus the age.

use crate::models::{Coverage, Grade};

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

/// The ages, ascending, in seconds.
pub(super) const AGES: [i64; 5] = [HOUR, DAY, 3 * DAY, 30 * DAY, 180 * DAY];

/// The oldest age at which a relay that can only be paged is read again: paging costs every event once more.
const PAGED_AGE_MAX: i64 = 3 * DAY;

/// A stretch to read again, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Revisit {
    pub(super) age_s: i64,
    pub(super) since: i64,
    pub(super) until: i64,
}

impl Revisit {
    /// Whether it is read again also where that means paging.
    pub(super) const fn is_worth_paging(&self) -> bool {
        self.age_s <= PAGED_AGE_MAX
    }
}

/// How much must be due before it is worth a visit.
fn granule(age_s: i64) -> i64 {
    (age_s / 4).max(HOUR / 4)
}

/// How far an age has come: what is noted, or else what the coverage shows; never below the floor.
pub(super) fn reached(noted: &[(i64, i64)], coverage: &Coverage, age_s: i64, floor: i64) -> i64 {
    let noted = noted.iter().find(|(age, _)| *age == age_s).map(|(_, until)| *until);
    noted.unwrap_or_else(|| shown(coverage, age_s, floor)).max(floor - 1)
}

/// What the coverage shows of it: what was read from the floor up, as far as it was old enough then.
fn shown(coverage: &Coverage, age_s: i64, floor: i64) -> i64 {
    let mut until = floor - 1;
    for known in coverage.intervals().iter().filter(|known| known.until() >= floor) {
        let looked_at = known.grade().is_proof() || known.grade() == Grade::Partial;
        if !looked_at || known.since() > until + 1 {
            break;
        }
        let old_enough = known.until().min(known.observed_at() - age_s);
        until = until.max(old_enough);
        if old_enough < known.until() {
            break;
        }
    }
    until
}

/// What is due, youngest age first. `reconciles`: the relay compares sets, so that old age costs little.
pub(super) fn due(
    noted: &[(i64, i64)],
    coverage: &Coverage,
    floor: i64,
    now: i64,
    reconciles: bool,
) -> Vec<Revisit> {
    let ages = AGES.into_iter().filter(|age| reconciles || *age <= PAGED_AGE_MAX);
    ages.filter_map(|age_s| {
        let since = reached(noted, coverage, age_s, floor) + 1;
        let until = now - age_s;
        (until - since + 1 >= granule(age_s)).then_some(Revisit { age_s, since, until })
    })
    .collect()
}

/// How far an age comes by what was read in this pass (any order, both ends included).
pub(super) fn advance(reached: i64, age_s: i64, now: i64, read: &[(i64, i64)]) -> i64 {
    let mut read = read.to_vec();
    read.sort_unstable();
    let mut until = reached;
    for (since, top) in read {
        if since <= until + 1 {
            until = until.max(top.min(now - age_s));
        }
    }
    until
}

/// What of `wanted` is not among `read` (disjoint, both ends included), newest first.
pub(super) fn left(wanted: (i64, i64), read: &[(i64, i64)]) -> Vec<(i64, i64)> {
    let mut parts = vec![wanted];
    for &(low, top) in read {
        parts = parts
            .into_iter()
            .flat_map(|(since, until)| [(since, until.min(low - 1)), (since.max(top + 1), until)])
            .filter(|(since, until)| since <= until)
            .collect();
    }
    parts.sort_unstable_by(|a, b| b.cmp(a));
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::models::{GapReason, Interval};

    const NOW: i64 = 1_000 * DAY;

    fn proved(since: i64, until: i64, at: i64) -> Coverage {
        let interval = Interval::new(since, until, Grade::Walked, GapReason::None, at).unwrap();
        Coverage::from_intervals([interval]).unwrap()
    }

    #[test]
    fn a_cold_read_is_as_good_as_every_revisit_of_what_was_old_by_then() {
        let coverage = proved(0, NOW, NOW);
        for age in AGES {
            assert_eq!(reached(&[], &coverage, age, 0), NOW - age);
        }
        assert!(due(&[], &coverage, 0, NOW + 60, true).is_empty());
        let later = due(&[], &coverage, 0, NOW + HOUR, true);
        assert_eq!(later, [Revisit { age_s: HOUR, since: NOW - HOUR + 1, until: NOW }]);
    }

    #[test]
    fn a_second_that_cannot_be_proved_does_not_have_all_above_it_read_again() {
        let mut coverage = proved(0, NOW, NOW);
        coverage
            .overrule(Interval::new(NOW / 2, NOW / 2, Grade::Partial, GapReason::DenseSecond, NOW).unwrap());
        assert_eq!(reached(&[], &coverage, HOUR, 0), NOW - HOUR);
        coverage.overrule(Interval::new(NOW / 3, NOW / 3, Grade::Unknown, GapReason::Timeout, NOW).unwrap());
        assert_eq!(reached(&[], &coverage, HOUR, 0), NOW / 3 - 1);
    }

    #[test]
    fn old_age_is_reconciled_and_not_paged() {
        let coverage = proved(0, NOW, NOW);
        let much_later = NOW + 400 * DAY;
        let ages = |reconciles| -> Vec<i64> {
            due(&[], &coverage, 0, much_later, reconciles).iter().map(|revisit| revisit.age_s).collect()
        };
        assert_eq!(ages(true), AGES);
        assert_eq!(ages(false), [HOUR, DAY, 3 * DAY]);
    }

    #[test]
    fn only_what_was_read_moves_it_and_never_beyond_its_age() {
        assert_eq!(advance(100, 50, 1_000, &[(300, 400), (50, 200)]), 200);
        assert_eq!(advance(100, 50, 1_000, &[(101, 400), (401, 1_000)]), 950);
        assert_eq!(advance(100, 50, 1_000, &[(102, 400)]), 100);
    }

    #[test]
    fn a_floor_that_rises_takes_it_along() {
        assert_eq!(reached(&[(HOUR, 10)], &Coverage::empty(), HOUR, 500), 499);
    }

    proptest! {
        #[test]
        fn what_is_left_and_what_was_read_make_the_whole(
            since in 0_i64..100, width in 0_i64..100, read in prop::collection::vec((0_i64..200, 0_i64..20), 0..6),
        ) {
            let read: Vec<(i64, i64)> = read.into_iter().map(|(low, width)| (low, low + width)).collect();
            let left = left((since, since + width), &read);
            for second in since..=since + width {
                let inside = |parts: &[(i64, i64)]| parts.iter().filter(|(low, top)| (*low..=*top).contains(&second)).count();
                prop_assert_eq!(inside(&left), usize::from(inside(&read) == 0));
            }
            prop_assert!(left.windows(2).all(|pair| pair[0].0 > pair[1].1));
        }

        #[test]
        fn reading_what_is_due_leaves_nothing_due(
            reached_at in prop::collection::vec(0_i64..400 * DAY, 5), now in 400 * DAY..800 * DAY, reconciles in any::<bool>(),
        ) {
            let noted: Vec<(i64, i64)> = AGES.into_iter().zip(reached_at).collect();
            let coverage = Coverage::empty();
            let wanted = due(&noted, &coverage, 0, now, reconciles);
            let read: Vec<(i64, i64)> = wanted.iter().map(|revisit| (revisit.since, revisit.until)).collect();
            let noted: Vec<(i64, i64)> = AGES.into_iter()
                .map(|age| (age, advance(reached(&noted, &coverage, age, 0), age, now, &read)))
                .collect();
            prop_assert!(due(&noted, &coverage, 0, now, reconciles).is_empty());
        }
    }
}
