//! Pages that are more than we take.

use super::model_relay::{Failure, Ignores, ModelRelay, events_at, id};
use super::*;

const SPEC: WalkSpec =
    WalkSpec { floor: 0, ceiling: 1_000, open_top: true, limit: 50, page_shown: 0, max_requests: 100 };

fn gap(since: i64, until: i64, grade: Grade, reason: GapReason) -> Claim {
    Claim::over(since, until, grade, reason).unwrap()
}

/// Events of which one is more than we take.
fn heavy(number: usize, seconds: impl IntoIterator<Item = i64>) -> ModelRelay {
    let mut relay = ModelRelay::honest(20, events_at(seconds));
    relay.heavy.insert(id(number));
    relay
}

#[test]
fn one_event_that_is_too_much_costs_its_second_and_nothing_older() {
    for number in [0, 1, 57, 298, 299] {
        // Every third second has an event.
        let mut relay = heavy(number, (0..300).map(|n| 3 * n + 1));
        let story = relay.walk(WalkSpec { max_requests: 500, ..SPEC });
        assert_eq!(story.delivered.len(), 299, "{number}");
        let lost = i64::try_from(3 * number + 1).unwrap();
        assert_eq!(story.at(lost), Some(gap(lost, lost, Grade::Partial, GapReason::Oversize)));
        let unproved: Vec<i64> = (0..=1_000).filter(|second| !story.proves(*second)).collect();
        assert!(unproved.iter().all(|second| [lost - 1, lost].contains(second)), "{number}: {unproved:?}");
        assert!(story.filters.len() <= 60, "{number}: {} requests", story.filters.len());
    }
}

#[test]
fn neighbours_that_are_too_much_are_passed_over_and_what_is_older_is_read() {
    let mut relay = ModelRelay::honest(20, events_at(0..300));
    relay.heavy = (150..162).map(id).collect();
    let story = relay.walk(WalkSpec { max_requests: 500, ..SPEC });
    let lost: Vec<i64> = (0..=1_000).filter(|second| !story.proves(*second)).collect();
    assert_eq!((lost.first(), lost.last()), (Some(&148), Some(&161)), "eight singly, then two, then four");
    assert!(story.failed <= 16 && story.filters.len() <= 80, "{} of {}", story.failed, story.filters.len());
}

#[test]
fn a_relay_that_ignores_the_limit_is_read_whole_in_windows_that_we_take() {
    let mut relay = ModelRelay::honest(20, events_at((0..900).map(|n| n + n / 7)));
    (relay.ignores, relay.takes) = (Ignores::Limit, 100);
    let spec = WalkSpec { ceiling: 2_000, limit: 20, max_requests: 500, ..SPEC };
    let story = relay.walk(spec);
    assert_eq!(story.delivered.len(), 900);
    assert!((0..=2_000).all(|second| story.proves(second)));
    assert!(story.failed <= 12 && story.filters.len() <= 120, "{} of {}", story.failed, story.filters.len());
}

#[test]
fn a_second_that_is_too_much_by_itself_is_a_gap_of_one_second() {
    let mut relay =
        ModelRelay::honest(20, events_at((0..100).chain(std::iter::repeat_n(100, 90)).chain(101..200)));
    (relay.ignores, relay.takes) = (Ignores::Limit, 50);
    let story = relay.walk(WalkSpec { max_requests: 500, ..SPEC });
    let unproved: Vec<i64> = (0..=1_000).filter(|second| !story.proves(*second)).collect();
    assert_eq!((unproved, story.reason(100)), (vec![100], Some(GapReason::Oversize)));
}

#[test]
fn a_relay_of_which_everything_is_too_much_is_given_up_within_the_bound() {
    let spec = WalkSpec { ceiling: 9_000, max_requests: 1_000, ..SPEC };
    for end in [PageEnd::Oversize, PageEnd::Timeout { idle: false }] {
        let reason = end.gap();
        let mut relay = ModelRelay::honest(20, events_at(0..5_000));
        relay.failure = Some(Failure { at: 1, end });
        let story = relay.clone().walk(spec);
        let at = |second| story.at(second).map(|claim| (claim.grade, claim.reason));
        assert!(story.proves(4_981) && story.proves(9_000));
        assert_eq!((at(4_980), at(4_463)), (Some((Grade::Partial, reason)), Some((Grade::Partial, reason))));
        assert_eq!((at(4_462), at(0)), (Some((Grade::Unknown, reason)), Some((Grade::Unknown, reason))));
        assert!(story.filters.len() <= 40, "{}", story.filters.len());
        // From the first request on: nothing is known of any second, but where there are but few.
        relay.failure.as_mut().unwrap().at = 0;
        let story = relay.clone().walk(spec);
        assert_eq!(story.claims, [gap(0, 9_000, Grade::Unknown, reason)]);
        let slow = relay.failure.as_ref().is_some_and(|failure| failure.end != PageEnd::Oversize);
        assert!(!slow || story.filters.len() == 2, "{} pages of a relay that drips", story.filters.len());
        let story = relay.walk(WalkSpec { floor: 40, ceiling: 42, open_top: false, ..spec });
        let grade = if slow { Grade::Unknown } else { Grade::Partial };
        assert_eq!(story.claims, [gap(40, 42, grade, reason)]);
    }
}

#[test]
fn a_flood_of_nothing_that_was_asked_for_ends_the_walk() {
    let mut relay = ModelRelay::honest(20, events_at(0..100));
    relay.failure = Some(Failure { at: 1, end: PageEnd::TooMany });
    let story = relay.walk(SPEC);
    assert_eq!(story.at(80), Some(gap(0, 80, Grade::Unknown, GapReason::Oversize)));
    assert_eq!(story.filters.len(), 2, "no retry");
}
