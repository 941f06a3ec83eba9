//! What the planner makes of a relay that stops serving and goes on to say EOSE, and of checks that could not be made.

use super::model_relay::{Failure, ModelRelay, Order as RelayOrder, events_at, id};
use super::*;
use crate::nips::CloseClass;

const SPEC: WalkSpec =
    WalkSpec { floor: 0, ceiling: 1_000, open_top: true, limit: 50, page_shown: 0, max_requests: 100 };

fn gap(since: i64, until: i64, grade: Grade, reason: GapReason) -> Claim {
    Claim::over(since, until, grade, reason).unwrap()
}

fn eose() -> PageEnd {
    PageEnd::Eose { hint: None }
}

#[test]
fn a_relay_that_falls_silent_after_twenty_pages_proves_no_more_than_these() {
    let spec = WalkSpec { ceiling: 200_000, limit: 500, max_requests: 1_000, ..SPEC };
    let mut relay = ModelRelay::honest(500, events_at((0..50_000).map(|number| number * 3)));
    relay.mute_from = Some(20);
    let story = relay.walk(spec);
    let oldest = relay
        .events
        .iter()
        .filter(|(_, id)| story.delivered.contains(id))
        .map(|event| event.0)
        .min()
        .unwrap();
    assert!(story.delivered.len() > 9_000 && story.proves(oldest + 1), "{:?}", story.claims);
    assert_eq!(story.at(oldest), Some(gap(0, oldest, Grade::Partial, GapReason::NotServed)));
    // The empty page, and the look below it.
    assert_eq!(story.filters.len(), 22);
}

#[test]
fn nor_does_one_that_falls_silent_below_a_second_that_fills_a_page() {
    let seconds = || (0..400).chain(std::iter::repeat_n(500, 60));
    for mute_from in [1, 2, 3] {
        let mut relay = ModelRelay::honest(20, events_at(seconds()));
        relay.mute_from = Some(mute_from);
        let story = relay.walk(SPEC);
        for (second, id) in &relay.events {
            assert!(
                story.delivered.contains(id) || !story.proves(*second),
                "{mute_from}: lost at {second}: {story:#?}"
            );
        }
    }
    // Where nothing is below, that is heard in one more request.
    let mut relay = ModelRelay::honest(20, events_at(std::iter::repeat_n(500, 60)));
    let story = relay.walk(SPEC);
    assert!(story.proves(499) && story.proves(501) && !story.proves(500));
    assert!(
        story.filters.iter().any(|filter| (filter.since, filter.limit) == (Some(500), Some(1))),
        "{story:#?}"
    );
}

#[test]
fn what_was_empty_above_one_second_is_proved_no_more_when_nothing_comes_after_it() {
    let mut relay = ModelRelay::honest(20, events_at(std::iter::repeat_n(100, 30).chain(200..300)));
    relay.order = RelayOrder::OldestFirst;
    relay.mute_from = Some(1);
    let story = relay.walk(SPEC);
    assert_eq!(story.reason(250), Some(GapReason::NotServed), "{story:#?}");
}

#[test]
fn an_empty_window_is_believed_of_a_relay_that_is_heard_outside() {
    let walked = gap(0, 1_000, Grade::Walked, GapReason::None);
    for (heard, claims) in
        [(true, vec![walked]), (false, vec![gap(0, 1_000, Grade::Partial, GapReason::NotServed)])]
    {
        let mut walk = Walk::new(SPEC).listening(Some((2_000, 3_000)));
        walk.next();
        assert!(walk.on_page(&PageFacts::default(), &eose()).is_empty());
        let Next::Request(filter) = walk.next() else { panic!("it is over") };
        assert_eq!((filter.since, filter.until, filter.limit), (Some(2_000), Some(3_001), Some(1)));
        let seen = if heard { vec![(2_500, id(1))] } else { Vec::new() };
        let mut told = walk.on_page(&PageFacts { seen, ..PageFacts::default() }, &eose());
        assert_eq!(walk.next(), Next::Done);
        told.extend(walk.finish(GapReason::Stopped));
        assert_eq!(told, claims);
    }
    // Who brings something in the window need not be heard outside.
    let mut walk = Walk::new(SPEC).listening(Some((2_000, 3_000)));
    let mut relay = ModelRelay::honest(20, events_at([900, 800]));
    while let Next::Request(filter) = walk.next() {
        assert!(filter.since < Some(2_000));
        let (facts, end) = relay.answer(&filter);
        walk.on_page(&facts, &end);
    }
}

#[test]
fn a_gap_that_could_not_be_probed_is_unknown() {
    let relay = || ModelRelay::honest(20, events_at((880..900).chain([500]).chain(90..100)));
    let closed = || PageEnd::Closed { class: CloseClass::RateLimited, message: String::new() };
    for end in [closed(), PageEnd::Disconnected, PageEnd::Timeout { idle: true }] {
        let mut relay = relay();
        relay.hides = Some((400, 600));
        relay.failure = Some(Failure { at: 2, end });
        let story = relay.walk(SPEC);
        assert!(!story.proves(500) && story.proves(950), "{story:#?}");
        assert_eq!(story.at(500).unwrap().grade, Grade::Unknown);
    }
}

#[test]
fn a_probe_that_was_planned_and_not_sent_proves_nothing() {
    let mut relay = ModelRelay::honest(20, events_at((880..900).chain([500]).chain(90..100)));
    relay.hides = Some((400, 600));
    let probe = relay.clone().walk(SPEC).filters.iter().position(|filter| filter.limit == Some(1)).unwrap();
    relay.stops_after = Some(probe);
    let story = relay.walk(SPEC);
    assert_eq!((story.filters.len(), story.at(500).unwrap().grade), (probe, Grade::Unknown), "{story:#?}");
    assert!(story.proves(950) && story.proves(50), "the rest of its page is told all the same");
}

#[test]
fn a_walk_that_is_wound_up_asks_only_what_checks_its_proofs() {
    let mut relay = ModelRelay::honest(20, events_at((880..900).chain([500]).chain(90..100).chain(0..60)));
    relay.hides = Some((400, 600));
    let mut walk = Walk::new(SPEC);
    let mut told = Vec::new();
    for _ in 0..2 {
        let Next::Request(filter) = walk.next() else { panic!("it is over") };
        let (facts, end) = relay.answer(&filter);
        told.extend(walk.on_page(&facts, &end));
    }
    assert!(matches!(walk.next(), Next::Request(filter) if filter.limit == Some(50)));
    walk.wind_up();
    let Next::Request(probe) = walk.next() else { panic!("it is over") };
    assert_eq!(probe.limit, Some(1));
    let (facts, end) = relay.answer(&probe);
    told.extend(walk.on_page(&facts, &end));
    assert_eq!((walk.next(), walk.requests()), (Next::Done, 3));
    assert!(
        told.iter().any(|claim| claim.reason == GapReason::NotServed && claim.overrides_proof),
        "{told:?}"
    );
    let rest = walk.finish(GapReason::Stopped);
    assert!(rest.len() == 1 && rest[0].reason == GapReason::Stopped, "{rest:?}");
}
