//! Comparisons that leave out an end, and relays whose pages do not bear them out.

use std::collections::HashMap;

use super::compare::NegEnd;
use super::model_relay::{ModelRelay, events_at, id};
use super::spec::{ReconcileSpec, Rest};
use super::tests::SPEC;
use crate::nips::{CloseClass, PageEnd};

const WHOLE: Rest = Rest::Page { floor: 0, ceiling: 10_000 };

#[test]
fn a_relay_that_compares_only_its_oldest_is_paged_above_them_and_nothing_is_gone() {
    let relay = events_at((0..1_000).map(|n| n * 5 + 3));
    let oldest = ModelRelay { truncates_oldest: 100, ..ModelRelay::honest(relay.clone()) };
    for ours in [&[], relay.as_slice()] {
        let story = oldest.clone().reconcile(SPEC, ours, &HashMap::new());
        assert_eq!((story.rest, story.aside.as_slice()), (Rest::None, [(498, 10_000)].as_slice()));
        assert!((0..498).all(|second| story.proves(second)));
        assert!((498..=10_000).all(|second| !story.proves(second)));
        assert!(story.gone.is_empty(), "{} of {}", story.gone.len(), ours.len());
    }
    // An answer of the days before, or none at all: what we hold, and nothing of what came since.
    let stale = ModelRelay { hides: Some((4_001, i64::MAX)), ..ModelRelay::honest(relay.clone()) };
    let story = stale.clone().reconcile(SPEC, &relay[..800], &HashMap::new());
    assert_eq!((story.aside.as_slice(), story.gone.len()), ([(3_998, 10_000)].as_slice(), 0));
    assert!(story.proves(3_997));
    // The newest event is more than we take: it is found by paging.
    let heavy = ModelRelay { heavy: [id(999)].into(), ..ModelRelay::honest(relay) };
    let story = heavy.clone().reconcile(SPEC, &[], &HashMap::new());
    assert_eq!((story.rest, story.aside.as_slice()), (Rest::None, [(4_993, 10_000)].as_slice()));
}

#[test]
fn pages_that_lack_what_was_compared_bear_nothing_out() {
    let relay = ModelRelay::honest(events_at((0..300).map(|n| n * 10)));
    let mute = ModelRelay { mutes: true, ..relay.clone() };
    let story = mute.clone().reconcile(SPEC, &[], &HashMap::new());
    assert_eq!((story.rest, story.claims.len()), (WHOLE, 0));
    let foreign = ModelRelay { ignores_until: true, ..relay.clone() };
    let story = foreign.clone().reconcile(SPEC, &[], &HashMap::new());
    assert_eq!((story.rest, story.claims.len()), (WHOLE, 0));
    // Who takes `until` as exclusive is asked so, known for it or not.
    let exclusive = ModelRelay { until_exclusive: true, ..relay.clone() };
    for (until_exclusive, pages) in [(false, 8), (true, 7)] {
        let spec = ReconcileSpec { until_exclusive, ..SPEC };
        let story = exclusive.clone().reconcile(spec, &[], &HashMap::new());
        assert_eq!((story.rest, story.pages), (Rest::None, pages));
        assert!((0..10_000).all(|second| story.proves(second)));
    }
    let story =
        relay.clone().reconcile(ReconcileSpec { until_exclusive: true, ..SPEC }, &[], &HashMap::new());
    assert_eq!((story.rest, story.claims.len()), (Rest::None, 1), "known for it in vain");
    // Nor does what lies above a window, and is asked for with it, hide that an empty comparison is none.
    let nothing = ModelRelay { truncates_at: 0, ..ModelRelay::honest(events_at([7, 9, 501])) };
    let spec = ReconcileSpec { until_exclusive: true, ceiling: 500, ..SPEC };
    let story = nothing.clone().reconcile(spec, &[], &HashMap::new());
    assert_eq!((story.rest, story.claims.len()), (Rest::Page { floor: 0, ceiling: 500 }, 0));
}

#[test]
fn what_would_be_gone_is_asked_for_first() {
    // One event left out, away from the widest gap.
    let relay = events_at((0..400).map(|n| if n < 200 { n * 10 } else { n * 10 + 3_000 }));
    let hiding = ModelRelay { hides: Some((95, 105)), ..ModelRelay::honest(relay.clone()) };
    let mut ours = relay.clone();
    ours.extend((0..5).map(|n| (1_000 + i64::try_from(n).unwrap(), id(800_000 + n))));
    let story = hiding.clone().reconcile(SPEC, &ours, &HashMap::new());
    assert_eq!((story.rest, story.gone.len()), (WHOLE, 0), "it hands out what it does not list");
    let honest = ModelRelay::honest(relay);
    let story = honest.clone().reconcile(SPEC, &ours, &HashMap::new());
    assert_eq!((story.rest, story.gone.len(), story.pages), (Rest::None, 5, 5));
    // Who does not answer for ids has said nothing of them.
    let refusing =
        PageEnd::Closed { class: CloseClass::Error, message: "error: no requests by ids".to_owned() };
    let mut relay = ModelRelay { page_end: Some((5, refusing)), ..honest };
    let story = relay.reconcile(SPEC, &ours, &HashMap::new());
    assert_eq!((story.rest, story.gone.len(), story.proves(100)), (Rest::None, 0, true));
}

#[test]
fn ten_that_never_come_are_borne_only_beside_as_many_that_do() {
    let served = |count: i64| {
        let invents = (0..10).map(|n| (i64::try_from(n).unwrap() * 50 + 7, id(700_000 + n))).collect();
        let mut relay = ModelRelay { invents, ..ModelRelay::honest(events_at((0..count).map(|n| n * 50))) };
        relay.reconcile(SPEC, &[], &HashMap::new())
    };
    assert_eq!(served(2).rest, WHOLE);
    let story = served(10);
    assert_eq!((story.rest, story.unserved.len()), (Rest::None, 10));
}

#[test]
fn an_empty_set_proves_nothing_of_a_relay_that_has_served_something_and_takes_nothing_away() {
    let ours = events_at((0..300).map(|n| n * 10));
    // A store that does not answer: an empty set, empty pages, and no event by its id.
    let silent = ModelRelay::honest(Vec::new());
    for (is_known, ours) in [(true, ours.as_slice()), (false, ours.as_slice()), (true, &[])] {
        let story = silent.clone().reconcile(ReconcileSpec { is_known, ..SPEC }, ours, &HashMap::new());
        assert_eq!((story.rest, story.claims.len(), story.gone.len()), (WHOLE, 0, 0));
        assert_eq!((story.comparisons, story.pages), (1, 0));
    }
    // Of one that nobody ever saw serve anything, that is all there is to know.
    let story = silent.clone().reconcile(SPEC, &[], &HashMap::new());
    assert_eq!((story.rest, story.proves(5_000), story.pages), (Rest::None, true, 1));
}

#[test]
fn a_quiet_stretch_is_reconciled_of_a_relay_that_is_heard_above_it_and_of_no_other() {
    let relay = events_at((0..400).chain(9_600..10_000));
    let strict = ModelRelay { refuses_above: 100, ..ModelRelay::honest(relay.clone()) };
    for is_known in [false, true] {
        let spec = ReconcileSpec { is_known, ..SPEC };
        let story = strict.clone().reconcile(spec, &[], &HashMap::new());
        assert_eq!((story.rest, story.aside.len()), (Rest::None, 0));
        assert!((0..=10_000).all(|second| story.proves(second)));
        assert!(story.comparisons <= 60, "{} comparisons", story.comparisons);
    }
    // From some request on its store does not answer.
    let spec = ReconcileSpec { is_known: true, ..SPEC };
    for from in 0..60 {
        let nothing = NegEnd::Compared { have: Vec::new(), need: Vec::new() };
        let mut silent = ModelRelay {
            neg_end: Some((from, nothing)),
            page_end: Some((from, PageEnd::Eose { hint: None })),
            ..strict.clone()
        };
        let story = silent.reconcile(spec, &[], &HashMap::new());
        let lost = relay.iter().find(|(second, id)| story.proves(*second) && !story.held.contains(id));
        assert_eq!(lost, None, "silent from {from} on: {:?}", story.claims);
    }
}

#[test]
fn a_second_of_which_more_is_held_than_is_compared_is_a_gap_and_paged() {
    let relay = events_at(std::iter::repeat_n(500, 30).chain(0..20));
    let spec = ReconcileSpec { max_items: 20, ..SPEC };
    let story = ModelRelay::honest(relay.clone()).reconcile(spec, &relay, &HashMap::new());
    assert_eq!((story.rest, story.aside.as_slice()), (Rest::None, [(500, 500)].as_slice()));
    assert!(!story.proves(500) && story.proves(501) && story.proves(499));
}

#[test]
fn what_a_comparison_leaves_out_here_and_there_is_found_by_a_sample() {
    // The widest gap is another one, in which and beside which nothing is left out.
    let events = events_at((0..398).map(|n| n * 10 + if n < 202 { 0 } else { 3_000 }));
    for (skips, least) in [(3, 190), (20, 50), (100, 5)] {
        let caught = (0..200).filter(|seed| {
            let relay = ModelRelay { skips, seed: seed * 0x9e37_79b9, ..ModelRelay::honest(events.clone()) };
            let story = relay.clone().reconcile(SPEC, &[], &HashMap::new());
            assert!(story.rest == WHOLE || story.claims.len() == 1, "{story:?}");
            story.rest == WHOLE
        });
        let caught = caught.count();
        assert!(caught >= least, "{caught} of 200 where one in {skips} is left out");
    }
    let honest = ModelRelay::honest(events);
    for seed in 0..50 {
        let story = ModelRelay { seed, ..honest.clone() }.reconcile(SPEC, &[], &HashMap::new());
        assert_eq!((story.rest, story.claims.len()), (Rest::None, 1));
    }
}
