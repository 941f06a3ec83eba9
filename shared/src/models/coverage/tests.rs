use proptest::prelude::*;

use super::*;

fn interval(since: i64, until: i64, grade: Grade, reason: GapReason, observed_at: i64) -> Interval {
    Interval::new(since, until, grade, reason, observed_at).unwrap()
}

fn walked(since: i64, until: i64) -> Interval {
    interval(since, until, Grade::Walked, GapReason::None, 100)
}

fn partial(since: i64, until: i64) -> Interval {
    interval(since, until, Grade::Partial, GapReason::Timeout, 200)
}

fn laid(intervals: &[Interval]) -> Coverage {
    let mut coverage = Coverage::empty();
    for interval in intervals {
        coverage.overlay(*interval);
    }
    coverage
}

#[test]
fn an_interval_is_checked() {
    let new = |since, until, grade, reason, at| Interval::new(since, until, grade, reason, at).map(|_| ());
    assert_eq!(new(0, 0, Grade::Walked, GapReason::None, 0), Ok(()));
    assert_eq!(new(0, i64::MAX, Grade::Unknown, GapReason::None, i64::MAX), Ok(()));
    assert_eq!(new(2, 1, Grade::Walked, GapReason::None, 0), Err(CoverageError::Reversed));
    assert_eq!(new(-1, 1, Grade::Walked, GapReason::None, 0), Err(CoverageError::Negative));
    assert_eq!(new(0, 1, Grade::Walked, GapReason::None, -1), Err(CoverageError::Negative));
    let reasoned = new(0, 1, Grade::Reconciled, GapReason::Timeout, 0);
    assert_eq!(reasoned, Err(CoverageError::ProofWithReason));
}

#[test]
fn what_nothing_speaks_of_is_neither_proved_nor_a_gap() {
    let coverage = laid(&[walked(10, 25), partial(31, 40)]);
    assert_eq!(coverage.unheard_of(0, 50), [(0, 9), (26, 30), (41, 50)]);
    assert_eq!(coverage.unheard_of(12, 25), []);
    assert_eq!(Coverage::empty().unheard_of(5, 5), [(5, 5)]);
    assert_eq!(Coverage::empty().unheard_of(5, 4), []);
}

#[test]
fn a_proof_replaces_everything_it_overlaps() {
    let finished = interval(20, 30, Grade::Finished, GapReason::None, 300);
    let coverage = laid(&[walked(10, 25), partial(26, 40), finished]);
    assert_eq!(coverage.intervals(), [walked(10, 19), finished, partial(31, 40)]);
    assert_eq!(laid(&[walked(10, 40), finished]).intervals(), [walked(10, 19), finished, walked(31, 40)]);
}

#[test]
fn what_is_no_proof_fills_only_the_holes_between_proofs() {
    let coverage = laid(&[walked(10, 19), walked(30, 39), partial(5, 50)]);
    assert_eq!(
        coverage.intervals(),
        [partial(5, 9), walked(10, 19), partial(20, 29), walked(30, 39), partial(40, 50)]
    );
    assert_eq!(laid(&[walked(0, 50), partial(10, 20)]), laid(&[walked(0, 50)]));
    assert_eq!(laid(&[walked(0, 15), partial(10, 20)]).intervals(), [walked(0, 15), partial(16, 20)]);
    assert_eq!(laid(&[walked(15, 30), partial(10, 20)]).intervals(), [partial(10, 14), walked(15, 30)]);
}

#[test]
fn the_latest_word_counts_where_nothing_is_proved() {
    let refused = interval(10, 20, Grade::Refused, GapReason::AuthRequired, 300);
    assert_eq!(laid(&[partial(0, 30), refused]).intervals(), [partial(0, 9), refused, partial(21, 30)]);
    assert_eq!(laid(&[refused, partial(0, 30)]).intervals(), [partial(0, 30)]);
}

#[test]
fn that_nothing_was_read_says_nothing_of_a_dense_second() {
    let dense = interval(20, 20, Grade::Partial, GapReason::DenseSecond, 200);
    for grade in [Grade::Unknown, Grade::Refused] {
        let nothing = |since, until| interval(since, until, grade, GapReason::RateLimited, 300);
        let coverage = laid(&[walked(0, 19), dense, nothing(0, 40)]);
        assert_eq!(coverage.intervals(), [walked(0, 19), dense, nothing(21, 40)]);
    }
    // What is read of it does: as a proof, or as a gap of another kind.
    assert_eq!(laid(&[dense, walked(10, 30)]).intervals(), [walked(10, 30)]);
    assert_eq!(laid(&[dense, partial(10, 30)]).intervals(), [partial(10, 30)]);
}

#[test]
fn neighbours_that_say_the_same_become_one_with_the_earlier_observation() {
    let later = interval(20, 29, Grade::Walked, GapReason::None, 500);
    let one = interval(10, 39, Grade::Walked, GapReason::None, 100);
    assert_eq!(laid(&[walked(10, 19), walked(30, 39), later]).intervals(), [one]);
    assert_eq!(Coverage::from_intervals([walked(30, 39), later, walked(10, 19)]).unwrap().intervals(), [one]);
    // A second between them, or another reason, keeps them apart.
    assert_eq!(laid(&[walked(10, 18), walked(20, 30)]).intervals().len(), 2);
    let other = interval(21, 30, Grade::Partial, GapReason::Closed, 200);
    assert_eq!(laid(&[partial(10, 20), other]).intervals(), [partial(10, 20), other]);
}

#[test]
fn a_gap_that_is_read_again_in_parts_is_no_older_than_each_of_them() {
    let known = partial(10, 40);
    let at = |since, until, ago| Interval { observed_at: known.observed_at() + ago, ..partial(since, until) };
    let again = [known, at(31, 40, 7_200), at(20, 30, 7_210)];
    assert_eq!(laid(&again).intervals(), [partial(10, 19), at(20, 40, 7_200)]);
    assert_eq!(laid(&[known, at(20, 40, 600)]).intervals(), [known]);
}

#[test]
fn stored_intervals_that_overlap_are_refused() {
    let overlap = Coverage::from_intervals([walked(10, 20), partial(20, 30)]);
    assert_eq!(overlap, Err(CoverageError::Overlap));
    assert_eq!(Coverage::from_intervals([]), Ok(Coverage::empty()));
}

#[test]
fn the_ends_of_time_are_seconds_like_others() {
    let mut coverage = laid(&[partial(0, i64::MAX)]);
    assert_eq!(coverage.unproved(0, i64::MAX), [(0, i64::MAX)]);
    coverage.overlay(walked(5, i64::MAX));
    assert_eq!(coverage.intervals(), [partial(0, 4), walked(5, i64::MAX)]);
    coverage.overlay(partial(0, i64::MAX));
    assert_eq!(coverage.intervals(), [partial(0, 4), walked(5, i64::MAX)]);
    coverage.overlay(walked(0, 10));
    assert_eq!(coverage.intervals(), [walked(0, i64::MAX)]);
    assert_eq!(coverage.unproved(i64::MIN, i64::MAX), [(i64::MIN, -1)]);
    assert!((coverage.proved_share(0, i64::MAX) - 1.0).abs() < f64::EPSILON);
    assert!((coverage.proved_share(i64::MIN, i64::MAX) - 0.5).abs() < 1e-9);
}

#[test]
fn gaps_and_shares_are_of_the_asked_range() {
    let coverage = laid(&[walked(10, 19), partial(20, 24), walked(30, 39)]);
    assert_eq!(coverage.unproved(0, 50), [(0, 9), (20, 29), (40, 50)]);
    assert_eq!(coverage.unproved(12, 35), [(20, 29)]);
    assert_eq!(coverage.unproved(12, 18), []);
    assert_eq!(coverage.unproved(20, 20), [(20, 20)]);
    assert_eq!(coverage.unproved(20, 19), []);
    assert_eq!(Coverage::empty().unproved(3, 4), [(3, 4)]);
    assert!((coverage.proved_share(10, 29) - 0.5).abs() < 1e-12);
    assert!((coverage.proved_share(20, 29)).abs() < 1e-12);
    assert!((coverage.proved_share(1, 0) - 1.0).abs() < 1e-12);
    assert_eq!(coverage.at(24).map(Interval::grade), Some(Grade::Partial));
    assert_eq!(coverage.at(25), None);
    assert_eq!(coverage.at(40), None);
}

/// How many seconds the naive model has.
const SPAN: usize = 40;

type Second = Option<(Grade, GapReason, i64)>;

/// The rules, second by second.
fn naive_overlay(model: &mut [Second; SPAN], new: &Interval) {
    for (second, known) in (0_i64..).zip(model.iter_mut()) {
        let inside = new.since() <= second && second <= new.until();
        let keeps = |(grade, reason, _): (Grade, GapReason, i64)| {
            (grade.is_proof() && !new.is_proof())
                || (reason == GapReason::DenseSecond && new.grade() < Grade::Partial)
        };
        if inside && !known.is_some_and(keeps) {
            *known = Some((new.grade(), new.reason(), new.observed_at()));
        }
    }
    let same = |a: Second, b: Second| a.map(|(g, r, _)| (g, r)) == b.map(|(g, r, _)| (g, r));
    for run in model.chunk_by_mut(|a, b| same(*a, *b)) {
        let oldest = run.iter().flatten().map(|known| known.2).min();
        for (_, _, at) in run.iter_mut().flatten() {
            *at = oldest.unwrap_or(*at);
        }
    }
}

fn by_second(coverage: &Coverage) -> [Second; SPAN] {
    std::array::from_fn(|second| {
        coverage.at(i64::try_from(second).unwrap()).map(|i| (i.grade(), i.reason(), i.observed_at()))
    })
}

fn any_interval() -> impl Strategy<Value = Interval> {
    let reasons = vec![GapReason::None, GapReason::Timeout, GapReason::DenseSecond];
    let grades = prop::sample::select(Grade::ALL);
    (0..40_i64, 0..40_i64, grades, prop::sample::select(reasons), 0..50_i64).prop_map(
        |(a, b, grade, reason, at)| {
            let reason = if grade.is_proof() { GapReason::None } else { reason };
            interval(a.min(b), a.max(b), grade, reason, at)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn overlaying_is_what_it_is_second_by_second(news in prop::collection::vec(any_interval(), 0..14)) {
        let mut coverage = Coverage::empty();
        let mut model = [None; SPAN];
        for new in &news {
            let before = coverage.unproved(0, 39);
            coverage.overlay(*new);
            naive_overlay(&mut model, new);
            prop_assert_eq!(by_second(&coverage), model);
            if !new.is_proof() {
                prop_assert_eq!(coverage.unproved(0, 39), before, "a proof was lost or made of nothing");
            }
            for pair in coverage.intervals().windows(2) {
                prop_assert!(pair[0].until() < pair[1].since(), "ascending and disjoint");
                prop_assert!(!pair[0].continues_as(&pair[1]), "merged");
            }
        }
        let stored = Coverage::from_intervals(coverage.intervals().iter().rev().copied());
        prop_assert_eq!(stored, Ok(coverage));
    }

    #[test]
    fn gaps_and_shares_agree_with_the_seconds(
        news in prop::collection::vec(any_interval(), 0..14), lo in 0..40_i64, length in 0..40_i64,
    ) {
        let coverage = laid(&news);
        let hi = (lo + length).min(39);
        let gaps = coverage.unproved(lo, hi);
        let proved = |second| coverage.at(second).is_some_and(Interval::is_proof);
        for second in lo..=hi {
            let in_gap = gaps.iter().any(|(first, last)| (*first..=*last).contains(&second));
            prop_assert_eq!(in_gap, !proved(second));
        }
        prop_assert!(gaps.iter().all(|(first, last)| lo <= *first && first <= last && *last <= hi));
        prop_assert!(gaps.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0));
        let seconds = u32::try_from((lo..=hi).filter(|second| proved(*second)).count()).unwrap();
        let share = f64::from(seconds) / f64::from(u32::try_from(hi - lo + 1).unwrap());
        prop_assert!((coverage.proved_share(lo, hi) - share).abs() < 1e-12);
    }
}

#[test]
fn gaps_without_end_cost_the_shortest_proofs_and_widen_none() {
    // Ever longer proofs, one second of doubt behind each.
    let mut coverage = Coverage::empty();
    let mut at = 0;
    for length in 1..=100 {
        coverage.overlay(walked(at, at + length - 1));
        coverage.overlay(partial(at + length, at + length));
        at += length + 1;
    }
    let before = coverage.clone();
    coverage.coarsen(200);
    assert_eq!(coverage, before);
    coverage.coarsen(100);
    let proofs: Vec<i64> = coverage
        .intervals()
        .iter()
        .filter(|known| known.grade().is_proof())
        .map(|known| known.until() - known.since() + 1)
        .collect();
    assert_eq!(proofs, (76..=100).collect::<Vec<_>>());
    assert_eq!(coverage.intervals().len(), 51);
    assert_eq!(
        coverage.intervals()[0],
        partial(0, 75 * 76 / 2 + 74)
            .clipped(0, i64::MAX)
            .map(|gap| Interval { observed_at: 100, ..gap })
            .unwrap()
    );
}

proptest! {
    #[test]
    fn coarse_or_not_nothing_is_proved_that_was_not(
        parts in prop::collection::vec((0_i64..2_000, 1_i64..40, any::<bool>()), 0..200), most in 0_usize..60,
    ) {
        let laid_out: Vec<Interval> = parts.iter().map(|(since, length, proof)| {
            if *proof { walked(*since, since + length) } else { partial(*since, since + length) }
        }).collect();
        let before = laid(&laid_out);
        let mut after = before.clone();
        after.coarsen(most);
        let bound = if before.intervals().len() <= most { most } else { most / 2 + 1 };
        prop_assert!(after.intervals().len() <= bound);
        for second in 0..2_050 {
            let proved = |coverage: &Coverage| coverage.at(second).is_some_and(|known| known.grade().is_proof());
            prop_assert!(!proved(&after) || proved(&before));
            prop_assert!(before.at(second).is_none() || after.at(second).is_some());
        }
        prop_assert_eq!(Coverage::from_intervals(after.intervals().iter().copied()), Ok(after));
    }
}
