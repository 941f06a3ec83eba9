//! What the planner makes of a relay that answers without events it is known to have.

use super::model_relay::{ModelRelay, events_at, id};
use super::*;

const SPEC: WalkSpec =
    WalkSpec { floor: 0, ceiling: 1_000, open_top: true, limit: 50, page_shown: 0, max_requests: 100 };

fn mute(serves_ids: bool) -> ModelRelay {
    let mut relay = ModelRelay::honest(20, events_at((0..30).map(|n| 900 - n * 10)));
    relay.mutes = 1;
    relay.mutes_ids = !serves_ids;
    relay
}

fn known(relay: &ModelRelay) -> Vec<(i64, EventId)> {
    relay.events.iter().step_by(3).copied().collect()
}

#[test]
fn a_mute_relay_that_hands_out_by_id_what_it_left_out_has_lied() {
    let mut relay = mute(true);
    let known = known(&relay);
    for silence_is_known in [false, true] {
        let story = relay.walk_knowing(SPEC, known.clone(), silence_is_known);
        assert_eq!(story.filters.len(), 2, "{story:#?}");
        assert_eq!(story.filters[1].ids.len(), known.len());
        assert!((0..=1_000).all(|second| story.reason(second) == Some(GapReason::NotServed)));
        assert!(story.gone.is_empty() && known.iter().all(|(_, id)| story.delivered.contains(id)));
    }
}

#[test]
fn a_relay_that_says_nothing_at_all_is_believed_the_second_time() {
    let mut relay = mute(false);
    let known = known(&relay);
    let first = relay.walk_knowing(SPEC, known.clone(), false);
    assert!((0..=1_000).all(|second| first.reason(second) == Some(GapReason::NotServed)));
    assert!(first.gone.is_empty());
    let second = relay.walk_knowing(SPEC, known.clone(), true);
    assert!((0..=1_000).all(|at| second.proves(at)), "{second:#?}");
    assert_eq!(second.gone, known);
}

#[test]
fn what_an_honest_relay_has_no_more_is_gone_and_costs_one_request() {
    let mut relay = ModelRelay::honest(20, events_at((0..30).map(|n| 900 - n * 10)));
    let untold = relay.walk(SPEC).filters.len();
    let gone = vec![(705, id(900)), (5, id(901))];
    let mut known = gone.clone();
    known.extend(relay.events.iter().take(4));
    let story = relay.walk_knowing(SPEC, known, false);
    assert!((0..=1_000).all(|second| story.proves(second)), "{story:#?}");
    assert_eq!((story.gone, story.filters.len()), (gone, untold + 1));
}

#[test]
fn only_the_stretch_around_a_lie_is_a_gap() {
    let mut relay =
        ModelRelay::honest(10, events_at((0..30).map(|n| 900 - n * 10 - i64::from(n >= 15) * 100)));
    // Pages too small for a sample, and the widest gap is another one.
    relay.hides = Some((850, 850));
    let hidden: Vec<_> = relay.events.iter().filter(|(at, _)| *at == 850).copied().collect();
    let story = relay.walk_knowing(SPEC, hidden, false);
    assert_eq!(story.reason(850), Some(GapReason::NotServed));
    assert!(!story.proves(810) && story.proves(790) && story.proves(0), "{story:#?}");
}

#[test]
fn a_question_that_is_not_answered_leaves_no_proof() {
    let mut walk = Walk::new(SPEC).knowing(vec![(500, id(1))], true);
    let eose = PageEnd::Eose { hint: None };
    walk.next();
    assert!(walk.on_page(&PageFacts::default(), &eose).is_empty(), "nothing is told before that is answered");
    let Next::Request(filter) = walk.next() else { panic!("it is over") };
    assert_eq!(filter.ids, [id(1)]);
    let taken_back = Claim::over(0, 1_000, Grade::Partial, GapReason::NotServed).unwrap().overriding();
    assert_eq!(walk.on_page(&PageFacts::default(), &PageEnd::Disconnected), [taken_back]);
    assert_eq!((walk.next(), walk.finish(GapReason::Stopped)), (Next::Done, vec![]));
    // Nor does one that could not be put.
    for max_requests in [1, 100] {
        let mut walk = Walk::new(WalkSpec { max_requests, ..SPEC }).knowing(vec![(500, id(1))], true);
        walk.next();
        walk.on_page(&PageFacts::default(), &eose);
        let unknown = Claim::over(0, 1_000, Grade::Unknown, GapReason::Stopped).unwrap();
        assert_eq!(walk.finish(GapReason::Stopped), [unknown]);
    }
}

#[test]
fn a_proof_that_lacks_a_known_event_is_told_only_once_that_is_gone() {
    // Whoever dies before the end has told nothing that the next one would not ask again.
    let relay = ModelRelay::honest(20, events_at((0..30).map(|n| 900 - n * 10)));
    let (hidden, mut walk) =
        ((850, id(5)), Walk::new(SPEC).knowing(vec![(850, id(5)), (705, id(900))], true));
    let mut relay = ModelRelay { hides: Some((850, 850)), ..relay };
    let mut told = Vec::new();
    while let Next::Request(filter) = walk.next() {
        let (facts, end) = relay.answer(&filter);
        told.extend(walk.on_page(&facts, &end));
        let proves = |at| {
            told.iter()
                .any(|claim: &Claim| claim.grade.is_proof() && (claim.since..=claim.until).contains(&at))
        };
        assert!(!proves(hidden.0) && !proves(705), "{told:?}");
    }
    assert!(walk.take_gone().is_empty());
    let mut honest = ModelRelay::honest(20, events_at((0..30).map(|n| 900 - n * 10)));
    let story = honest.walk_knowing(SPEC, vec![(705, id(900))], false);
    assert!((0..=1_000).all(|second| story.proves(second)), "{story:#?}");
}
