//! Which stretches of a relay's timeline a sync pass asks for: pure.

use crate::models::{Coverage, GapReason, Grade, Interval};

/// A gap that the relay itself leaves (a dense second, a refused filter) is asked again after this long, seconds: the
/// shortest rest.
pub(super) const REST_S: i64 = 6 * 3_600;

/// How far below its floor a pass goes for what an earlier one left, seconds.
const BEGUN_S: i64 = 86_400;

/// A stretch to walk, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) floor: i64,
    pub(super) ceiling: i64,
    /// The newest one has no upper bound on the wire, so that events dated ahead of us come too.
    pub(super) open_top: bool,
}

/// A floor moves up while time goes on, and what is first wanted is not always read at once: what was begun within the last day
/// is read to its end, or the seconds between two passes would stay a gap that nobody asks for any more.
pub(super) fn begun(coverage: &Coverage, floor: i64) -> i64 {
    let left = coverage
        .at(floor)
        .filter(|known| known.grade() == Grade::Unknown && known.reason() != GapReason::Retired);
    left.map(Interval::since).filter(|since| floor.saturating_sub(*since) <= BEGUN_S).unwrap_or(floor)
}

/// What of `[floor, now]` to walk, newest first, never below the floor, which is the archive's horizon or above it: whatever no proof covers, except gaps looked at lately,
/// and the newest `rescan_s` seconds again, for late arrivals. A gap is looked at lately where that was no
/// more than `rest_s` seconds ago.
pub(super) fn plan(coverage: &Coverage, floor: i64, now: i64, rescan_s: i64, rest_s: i64) -> Vec<Window> {
    let lately = |second: i64| {
        coverage.at(second).is_some_and(|known| {
            known.grade() == Grade::Partial && now.saturating_sub(known.observed_at()) < rest_s
        })
    };
    let newest_read = coverage
        .intervals()
        .iter()
        .rev()
        .find(|known| (known.grade().is_proof() || lately(known.since())) && known.since() <= now)
        .map(|known| known.until().min(now));
    let mut wanted: Vec<(i64, i64)> = Vec::new();
    for (since, until) in coverage.unproved(floor, now) {
        // Known gaps lie inside the unproved stretch as intervals of their own: cut the fresh ones out.
        let mut from = since;
        for known in
            coverage.intervals().iter().filter(|known| known.since() <= until && known.until() >= since)
        {
            if lately(known.since().max(since)) {
                if from < known.since() {
                    wanted.push((from, known.since() - 1));
                }
                from = known.until().saturating_add(1);
            }
        }
        if from <= until {
            wanted.push((from, until));
        }
    }
    if let Some(read) = newest_read {
        wanted.push((read.saturating_sub(rescan_s).max(floor), now));
    }
    merge(wanted, now)
}

fn merge(mut wanted: Vec<(i64, i64)>, now: i64) -> Vec<Window> {
    wanted.sort_unstable();
    let mut merged: Vec<(i64, i64)> = Vec::new();
    for (since, until) in wanted {
        match merged.last_mut() {
            Some(last) if since <= last.1.saturating_add(1) => last.1 = last.1.max(until),
            _ => merged.push((since, until)),
        }
    }
    merged
        .into_iter()
        .rev()
        .map(|(floor, ceiling)| Window { floor, ceiling, open_top: ceiling == now })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_000_000;

    fn interval(since: i64, until: i64, grade: Grade, observed_at: i64) -> Interval {
        let reason = if grade.is_proof() { GapReason::None } else { GapReason::DenseSecond };
        Interval::new(since, until, grade, reason, observed_at).unwrap()
    }

    fn windows(intervals: &[Interval], rescan: i64) -> Vec<(i64, i64)> {
        let coverage = Coverage::from_intervals(intervals.iter().copied()).unwrap();
        plan(&coverage, 0, NOW, rescan, REST_S).iter().map(|w| (w.floor, w.ceiling)).collect()
    }

    #[test]
    fn nothing_known_is_one_window_with_an_open_top() {
        let all = plan(&Coverage::empty(), 500, NOW, 3_600, REST_S);
        assert_eq!(all, [Window { floor: 500, ceiling: NOW, open_top: true }]);
    }

    #[test]
    fn a_proved_relay_is_read_from_a_little_below_its_newest_proof() {
        assert_eq!(
            windows(&[interval(0, NOW - 100, Grade::Walked, NOW - 100)], 3_600),
            [(NOW - 100 - 3_600, NOW)]
        );
    }

    #[test]
    fn what_was_begun_is_read_to_its_end_though_the_floor_has_moved() {
        let left = |since, reason| {
            let gap = Interval::new(since, 500_000, Grade::Unknown, reason, 5).unwrap();
            begun(&Coverage::from_intervals([gap]).unwrap(), 400_000)
        };
        assert_eq!(left(399_991, GapReason::Stopped), 399_991);
        assert_eq!(left(400_000 - BEGUN_S - 1, GapReason::Stopped), 400_000, "no longer than a day");
        assert_eq!(left(399_991, GapReason::Retired), 400_000);
        assert_eq!(begun(&Coverage::empty(), 7), 7);
    }

    #[test]
    fn below_the_floor_nothing_is_asked_for_whatever_is_known_there() {
        let mut coverage = Coverage::empty();
        for (since, until, grade, reason) in
            [(0, 399, Grade::Unknown, GapReason::Retired), (400, NOW - 100, Grade::Walked, GapReason::None)]
        {
            coverage.overlay(Interval::new(since, until, grade, reason, 5).unwrap());
        }
        let walked = |floor| -> Vec<i64> {
            plan(&coverage, floor, NOW, 3_600, REST_S).iter().map(|w| w.floor).collect()
        };
        assert_eq!(walked(400), [NOW - 3_700]);
        assert_eq!(walked(NOW - 50), [NOW - 50], "a floor above what is proved");
        assert_eq!(walked(100), [NOW - 3_700, 100], "a floor that came down asks again for what was retired");
    }

    #[test]
    fn a_fresh_gap_rests_and_an_old_one_is_asked_again() {
        let gap = |at| {
            [
                interval(0, 99, Grade::Walked, at),
                interval(100, 100, Grade::Partial, at),
                interval(101, NOW, Grade::Walked, at),
            ]
        };
        assert_eq!(windows(&gap(NOW - 60), 0), [(NOW, NOW)]);
        assert_eq!(windows(&gap(NOW - REST_S), 0), [(NOW, NOW), (100, 100)]);
    }

    #[test]
    fn a_gap_above_all_that_is_proved_rests_as_well() {
        let gap = |at| [interval(0, 99, Grade::Walked, at), interval(100, NOW - 50, Grade::Partial, at)];
        assert_eq!(windows(&gap(NOW - 50), 20), [(NOW - 70, NOW)]);
        assert_eq!(windows(&gap(NOW - REST_S), 20), [(79, NOW)]);
    }

    #[test]
    fn an_interrupted_walk_goes_on_where_it_stopped() {
        let known = [interval(NOW - 1_000, NOW - 10, Grade::Walked, NOW - 10)];
        assert_eq!(windows(&known, 60), [(NOW - 70, NOW), (0, NOW - 1_001)]);
    }

    proptest! {
        #[test]
        fn every_unproved_second_is_in_a_window_unless_it_rests(
            cuts in proptest::collection::vec((0_i64..NOW, 0_i64..5_000, 0_u8..3, 0_i64..NOW), 0..20),
            second in 0_i64..=NOW,
        ) {
            let mut coverage = Coverage::empty();
            for (since, length, grade, at) in cuts {
                let grade = [Grade::Walked, Grade::Partial, Grade::Unknown][grade as usize];
                let reason = if grade.is_proof() { GapReason::None } else { GapReason::Timeout };
                coverage.overlay(Interval::new(since, since + length, grade, reason, at).unwrap());
            }
            let windows = plan(&coverage, 0, NOW, 0, REST_S);
            let asked = windows.iter().any(|w| w.floor <= second && second <= w.ceiling);
            let known = coverage.at(second);
            let proved = known.is_some_and(|k| k.grade().is_proof());
            let rests = known.is_some_and(|k| k.grade() == Grade::Partial && NOW - k.observed_at() < REST_S);
            prop_assert!(asked || proved || rests);
            prop_assert!(windows.windows(2).all(|pair| pair[1].ceiling + 1 < pair[0].floor), "newest first, apart");
        }
    }
}
