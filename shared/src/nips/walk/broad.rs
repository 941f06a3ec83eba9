//! What the planner makes of a relay that takes no long range, or does not answer one in time.

use proptest::prelude::*;

use super::model_relay::{Failure, ModelRelay, Order as RelayOrder, events_at};
use super::properties::{check_proofs, check_sound, relays, specs};
use super::*;
use crate::nips::CloseClass;

const SPEC: WalkSpec =
    WalkSpec { floor: 0, ceiling: 100_000, open_top: true, limit: 50, page_shown: 0, max_requests: 1_000 };

fn too_broad() -> PageEnd {
    let message = "error: time range too large".to_owned();
    PageEnd::Closed { class: crate::nips::classify(&message), message }
}

fn idle() -> PageEnd {
    PageEnd::Timeout { idle: true }
}

fn spread() -> ModelRelay {
    ModelRelay::honest(20, events_at((0..100).map(|number| number * 900 + 7)))
}

#[test]
fn a_relay_that_takes_no_long_range_is_walked_whole_by_shorter_ones() {
    for (balk, widest) in [(too_broad(), 100), (too_broad(), 5_000), (too_broad(), 90_000), (idle(), 5_000)] {
        for until_exclusive in [false, true] {
            let mut relay = ModelRelay { widest, balk: balk.clone(), until_exclusive, ..spread() };
            let story = relay.walk(WalkSpec { max_requests: 20_000, ..SPEC });
            for (second, id) in &relay.events {
                assert!(story.delivered.contains(id), "{second} by {widest} s");
            }
            assert!((0..=100_000).all(|second| story.proves(second)), "{widest}: {:?}", story.claims);
            let most = 3 * story.seconds + 16 + 12 * usize::try_from(100_000 / widest).unwrap();
            assert!(story.filters.len() <= most + 60, "{} requests by {widest} s", story.filters.len());
            assert!(story.failed <= 40, "{} refusals by {widest} s", story.failed);
        }
    }
}

#[test]
fn a_second_that_is_never_answered_is_a_gap_and_what_is_older_is_read() {
    for balk in [idle(), too_broad()] {
        let mut relay = ModelRelay { stuck: HashSet::from([45_007]), balk: balk.clone(), ..spread() };
        let story = relay.walk(SPEC);
        // What is stuck is one event, and the second below it while it is not known how `until` is read.
        assert!(story.delivered.len() >= 99, "{}", story.delivered.len());
        let gaps: Vec<i64> = (0..=100_000).filter(|second| !story.proves(*second)).collect();
        assert!(gaps.contains(&45_007) && gaps.len() <= 2, "{gaps:?}");
        assert_eq!(
            story.at(45_007).map(|claim| (claim.grade, claim.reason)),
            Some((Grade::Partial, balk.gap()))
        );
    }
}

#[test]
fn a_relay_that_answers_nothing_more_is_left_after_some_waits_and_nothing_is_said_of_what_they_were_for() {
    for (at, waits) in [(0, 2), (2, 5)] {
        let mut relay = spread();
        relay.failure = Some(Failure { at, end: idle() });
        relay.events.truncate(if at == 0 { 0 } else { 100 });
        let story = relay.walk(SPEC);
        assert_eq!(story.failed, waits);
        let rest = story.at(0).unwrap();
        assert_eq!((rest.since, rest.grade, rest.reason), (0, Grade::Unknown, GapReason::Timeout));
        assert!(story.claims.iter().all(|claim| claim.grade != Grade::Partial), "{:?}", story.claims);
        assert!((0..=100_000).all(|second| story.at(second).is_some()));
    }
}

#[test]
fn a_relay_that_calls_everything_too_broad_is_left_soon() {
    let mut relay = ModelRelay { widest: 0, balk: too_broad(), ..spread() };
    let story = relay.walk(SPEC);
    assert!(story.filters.len() <= 40, "{}", story.filters.len());
    assert_eq!(story.reason(500), Some(GapReason::Closed));
    assert!(story.claims.iter().all(|claim| claim.grade == Grade::Unknown), "{:?}", story.claims);
}

/// A relay that takes no range longer than this, or with one of these seconds in it.
fn picky_relays() -> impl Strategy<Value = ModelRelay> {
    let broad = PageEnd::Closed { class: CloseClass::Error, message: "error: query timed out".to_owned() };
    let balks = prop::sample::select(vec![broad, PageEnd::Timeout { idle: true }]);
    let widest = prop::sample::select(vec![0_i64, 1, 40, 30_000, i64::MAX]);
    let stuck = prop::collection::hash_set(0_i64..100_001, 0..4);
    (relays(), balks, widest, stuck).prop_map(|(relay, balk, widest, stuck)| ModelRelay {
        balk,
        widest,
        stuck,
        failure: None,
        mute_from: None,
        // What comes in no order comes in order by chance where windows are short.
        order: if relay.order == RelayOrder::OldestFirst { relay.order } else { RelayOrder::NewestFirst },
        ..relay
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_not_answered_for_its_length_hides_nothing(mut relay in picky_relays(), spec in specs()) {
        let story = relay.walk(spec);
        if relay.widest == i64::MAX {
            check_sound(&relay, &story, spec)?;
        } else {
            check_proofs(&relay, &story, spec)?;
        }
    }
}
