//! What holds for every relay, however it behaves.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::model_relay::{Failure, Hint, Ignores, ModelRelay, Order, Story, events_at, id};
use super::*;
use crate::nips::CloseClass;

/// Far beyond what the wire's 32 bits hold.
const FAR_FUTURE: i64 = 1 << 53;

fn ends() -> impl Strategy<Value = PageEnd> {
    let closed = |class| PageEnd::Closed { class, message: String::new() };
    prop::sample::select(vec![
        closed(CloseClass::AuthRequired),
        closed(CloseClass::Restricted),
        closed(CloseClass::RateLimited),
        closed(CloseClass::Error),
        PageEnd::Notice { message: "rate-limited: x".to_owned() },
        PageEnd::Auth,
        PageEnd::Timeout { idle: true },
        PageEnd::Timeout { idle: false },
        PageEnd::Disconnected,
        PageEnd::Oversize,
        PageEnd::TooMany,
        PageEnd::Violation,
    ])
}

/// Seconds with their number of events: sparse, dense, and at every edge.
fn timelines() -> impl Strategy<Value = Vec<i64>> {
    let dense = prop::collection::vec((0_i64..60, 1_usize..25), 0..12);
    let sparse = prop::collection::vec(0_i64..100_000, 0..60);
    let edges = prop::collection::vec(
        prop::sample::select(vec![
            0,
            4,
            5,
            6,
            59,
            60,
            61,
            100_000,
            100_001,
            LATEST_SECOND - 1,
            LATEST_SECOND,
            LATEST_SECOND + 1,
            FAR_FUTURE,
        ]),
        0..14,
    );
    (dense, sparse, edges).prop_map(|(dense, sparse, edges)| {
        let dense = dense.into_iter().flat_map(|(second, count)| std::iter::repeat_n(second, count));
        dense.chain(sparse).chain(edges).collect()
    })
}

pub(super) fn specs() -> impl Strategy<Value = WalkSpec> {
    let floors = prop::sample::select(vec![-7_i64, 0, 5, 60]);
    let ceilings = prop::sample::select(vec![5_i64, 60, 100_000, LATEST_SECOND, FAR_FUTURE]);
    let limits = prop::sample::select(vec![1_u32, 2, 9, 20, 50, 500]);
    let budgets = prop_oneof![3 => Just(1_000_u32), 1 => 0_u32..12];
    (floors, ceilings, any::<bool>(), limits, budgets).prop_map(
        |(floor, ceiling, open_top, limit, max_requests)| WalkSpec {
            floor,
            ceiling,
            open_top,
            limit,
            page_shown: 0,
            max_requests,
        },
    )
}

pub(super) fn relays() -> impl Strategy<Value = ModelRelay> {
    let orders = prop_oneof![
        3 => Just(Order::NewestFirst),
        1 => Just(Order::OldestFirst),
        1 => any::<u64>().prop_map(Order::Subset),
    ];
    let ignores =
        prop::sample::select(vec![Ignores::Nothing, Ignores::Nothing, Ignores::Until, Ignores::Limit]);
    let failures = prop::option::weighted(0.3, (0_u32..8, ends()));
    // a cap's quarter, too, is at least SMALLEST_CAP
    // one that never said anything cannot be told from one that has nothing
    let mute_from = prop::option::weighted(0.3, 1_u32..12);
    let stops_after = prop::option::weighted(0.2, 0_usize..8);
    let habits =
        (any::<bool>(), any::<bool>(), any::<bool>(), prop::bool::weighted(0.1), mute_from, stops_after);
    (timelines(), 40_usize..90, habits, orders, ignores, failures).prop_map(
        |(
            seconds,
            cap,
            (quarters, until_exclusive, hints, forgets, mute_from, stops_after),
            order,
            ignores,
            failure,
        )| {
            ModelRelay {
                quarters,
                order,
                ignores,
                until_exclusive,
                forgets,
                mute_from,
                stops_after,
                hint: if hints { Hint::Honest } else { Hint::None },
                failure: failure.map(|(at, end)| Failure { at, end }),
                ..ModelRelay::honest(if quarters { cap } else { cap / 4 }, events_at(seconds))
            }
        },
    )
}

fn window(spec: WalkSpec) -> (i64, i64) {
    (spec.floor.max(0), spec.ceiling.min(LATEST_SECOND - 1))
}

/// Every second that anything could go wrong at.
fn interesting(relay: &ModelRelay, story: &Story, spec: WalkSpec) -> Vec<i64> {
    let (floor, ceiling) = window(spec);
    let events = relay.events.iter().map(|&(second, _)| second);
    let ends = story.claims.iter().flat_map(|claim| [claim.since, claim.until]);
    let around =
        events.chain(ends).chain([floor, ceiling]).flat_map(|second| [second - 1, second, second + 1]);
    around.filter(|second| (floor..=ceiling).contains(second)).collect()
}

/// A relay with some events that are too much by themselves, and pages that we take only so much of.
fn heavy_relays() -> impl Strategy<Value = ModelRelay> {
    let heavy = prop::collection::hash_set(0_usize..120, 0..5);
    let takes = prop::sample::select(vec![12_usize, 25, usize::MAX]);
    (relays(), heavy, takes).prop_map(|(relay, heavy, takes)| ModelRelay {
        heavy: heavy.into_iter().map(id).collect(),
        takes,
        failure: None,
        mute_from: None,
        ..relay
    })
}

/// The stated bound of a walk's requests.
pub(super) fn bound(story: &Story) -> usize {
    match story.failed {
        _ if story.caught => 8 * story.seconds + 100 * story.failed + 16,
        0 => 3 * story.seconds + 8,
        failed => 5 * story.seconds + 100 * failed + 8,
    }
}

/// Whether what a claim proved stands when the walk is over.
fn proves_at_end(story: &Story, claim: &Claim) -> bool {
    [claim.since, claim.until].into_iter().any(|second| story.proves(second))
}

/// Nothing is lost, nothing is left without a claim, and what was taken back could not have been asked before.
pub(super) fn check_proofs(relay: &ModelRelay, story: &Story, spec: WalkSpec) -> Result<(), TestCaseError> {
    let (floor, ceiling) = window(spec);
    for (second, id) in &relay.events {
        if (floor..=ceiling).contains(second) {
            prop_assert!(
                story.delivered.contains(id)
                    || !story.proves(*second)
                    || (relay.forgets && relay.garbled(*id).is_some()),
                "lost at {second}: {story:#?}"
            );
        }
    }
    for second in interesting(relay, story, spec) {
        prop_assert!(story.at(second).is_some(), "{second} has no claim: {story:#?}");
    }
    for claim in &story.claims {
        prop_assert!(floor <= claim.since && claim.since <= claim.until && claim.until <= ceiling);
        prop_assert_eq!(claim.grade.is_proof(), claim.reason == GapReason::None);
    }
    // A walk that dies has told no proof that it could have asked to be taken back: disorder and cut seconds show later,
    // and so does, by samples, what was left out in order, and where they found nothing out.
    let shows_later = |claim: &Claim| {
        matches!(claim.reason, GapReason::Unordered | GapReason::DenseSecond)
            || (claim.reason == GapReason::NotServed && story.caught)
            || (claim.grade == Grade::Unknown && story.samples.contains(&(claim.since, claim.until)))
    };
    prop_assert!(
        !story.caught || story.claims.iter().all(|claim| !proves_at_end(story, claim)),
        "{story:#?}"
    );
    for (told, taken) in
        story.claims.iter().enumerate().filter(|(_, claim)| claim.overrides_proof && !shows_later(claim))
    {
        let early = story.claims[..told].iter().filter(|claim| claim.grade.is_proof());
        for proof in early {
            prop_assert!(proof.until < taken.since || taken.until < proof.since, "{proof:?}, then {taken:?}");
        }
    }
    Ok(())
}

pub(super) fn check_sound(relay: &ModelRelay, story: &Story, spec: WalkSpec) -> Result<(), TestCaseError> {
    check_proofs(relay, story, spec)?;
    let (floor, ceiling) = window(spec);
    for (number, filter) in story.filters.iter().enumerate().filter(|(_, filter)| filter.ids.is_empty()) {
        let until = filter.until.unwrap_or(ceiling);
        let listens = filter.limit == Some(1) && filter.since > Some(ceiling);
        prop_assert!(filter.until.is_some() || (number <= 1 && spec.open_top) || (listens && spec.open_top));
        if listens {
            prop_assert!(filter.since <= Some(LATEST_SECOND));
            continue;
        }
        prop_assert!((floor..=ceiling + 1).contains(&until) && until <= LATEST_SECOND);
        prop_assert!(filter.since >= Some(floor) && filter.since <= Some(until));
    }
    prop_assert!(story.filters.len() <= usize::try_from(spec.max_requests).unwrap());
    prop_assert!(
        story.filters.len() <= bound(story),
        "{} requests, {} too much",
        story.filters.len(),
        story.failed
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_event_is_delivered_or_lies_in_a_recorded_gap(mut relay in relays(), spec in specs()) {
        let story = relay.walk(spec);
        check_sound(&relay, &story, spec)?;
    }

    #[test]
    fn what_is_too_much_hides_nothing_else(mut relay in heavy_relays(), spec in specs()) {
        let story = relay.walk(spec);
        check_sound(&relay, &story, spec)?;
    }

    #[test]
    fn a_few_events_that_are_too_much_cost_their_own_seconds(
        seconds in prop::collection::btree_set(0_i64..100_000, 1..80), spec in specs(), cap in 10_usize..90,
        heavy in prop::collection::hash_set(0_usize..80, 1..3), until_exclusive in any::<bool>(), hints in any::<bool>(),
    ) {
        let spec = WalkSpec { max_requests: 5_000, ..spec };
        let mut relay = ModelRelay::honest(cap, events_at(seconds));
        relay.heavy = heavy.into_iter().map(id).collect();
        relay.until_exclusive = until_exclusive;
        relay.hint = if hints { Hint::Honest } else { Hint::None };
        let story = relay.walk(spec);
        check_sound(&relay, &story, spec)?;
        let (floor, ceiling) = window(spec);
        let inside = |second: &i64| (floor..=ceiling).contains(second);
        let at: Vec<i64> = relay.events.iter().filter(|(_, id)| relay.heavy.contains(id)).map(|event| event.0).collect();
        for (second, id) in relay.events.iter().filter(|(second, _)| inside(second)) {
            // The second below one is passed over with it while it is not known how `until` is read.
            let beside = at.contains(second) || at.contains(&(second + 1));
            prop_assert!(story.delivered.contains(id) || beside, "{second} was not read: {story:#?}");
        }
        for second in interesting(&relay, &story, spec).into_iter().filter(inside) {
            let beside = at.contains(&second) || at.contains(&(second + 1)) || spec.limit == 1;
            prop_assert!(story.proves(second) || beside, "{second} is not proved: {story:#?}");
        }
    }

    #[test]
    fn an_honest_relay_is_proved_whole_but_for_full_seconds(
        seconds in timelines(), spec in specs(), cap in 10_usize..90, hints in any::<bool>(),
        until_exclusive in any::<bool>(),
    ) {
        let spec = WalkSpec { max_requests: 1_000, ..spec };
        let mut relay = ModelRelay::honest(cap, events_at(seconds));
        relay.until_exclusive = until_exclusive;
        relay.hint = if hints { Hint::Honest } else { Hint::None };
        let story = relay.walk(spec);
        check_sound(&relay, &story, spec)?;
        let (floor, ceiling) = window(spec);
        let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
        for (second, _) in relay.events.iter().filter(|(second, _)| (floor..=ceiling).contains(second)) {
            *counts.entry(*second).or_default() += 1;
        }
        let page = relay.page_size(spec.limit);
        let oldest = counts.keys().next().copied();
        for second in interesting(&relay, &story, spec) {
            let count = counts.get(&second).copied().unwrap_or(0);
            let may_be_full = count >= page || (Some(second) == oldest && count >= SMALLEST_CAP);
            prop_assert!(story.proves(second) || may_be_full, "{second} unproved: {story:#?}");
            prop_assert!(story.proves(second) || story.reason(second) == Some(GapReason::DenseSecond));
        }
        let crowd = counts.values().copied().max().unwrap_or(0);
        if crowd < page {
            let events: usize = counts.values().sum();
            let most = 26 * (events / (page - crowd)) / 25 + 9;
            prop_assert!(story.filters.len() <= most, "{} requests", story.filters.len());
        }
    }

    #[test]
    fn what_cannot_be_read_hides_nothing_and_lies_in_a_gap(
        mut relay in relays(), spec in specs(), garbles in 1_usize..6, newest_first in any::<bool>(),
    ) {
        relay.garbles = garbles;
        relay.order = if newest_first { Order::NewestFirst } else { Order::OldestFirst };
        let story = relay.walk(spec);
        check_sound(&relay, &story, spec)?;
    }

    #[test]
    fn a_relay_that_always_says_finish_is_found_out(
        seconds in timelines(), spec in specs(), cap in 10_usize..90,
    ) {
        let mut relay = ModelRelay::honest(cap, events_at(seconds));
        relay.hint = Hint::AlwaysFinish;
        let story = relay.walk(spec);
        check_sound(&relay, &story, spec)?;
    }

    #[test]
    fn what_is_hidden_in_the_widest_gap_takes_its_page_back(
        newer in prop::collection::vec(50_000_i64..50_400, 1..60),
        older in prop::collection::vec(1_000_i64..1_400, 1..60),
        hidden in prop::collection::vec(10_000_i64..40_000, 1..20),
        cap in 10_usize..90, hints in any::<bool>(), budget in 6_u32..60,
        stops_after in prop::option::weighted(0.5, 1_usize..8),
    ) {
        let mut relay = ModelRelay::honest(cap, events_at(newer.into_iter().chain(older).chain(hidden)));
        relay.hides = Some((1_401, 49_999));
        relay.stops_after = stops_after;
        relay.hint = if hints { Hint::Honest } else { Hint::None };
        let spec = WalkSpec { floor: 0, ceiling: 60_000, open_top: true, limit: 50, page_shown: 0, max_requests: budget };
        let story = relay.walk(spec);
        // a walk that ran out of requests before the gap has claimed nothing of it
        check_sound(&relay, &story, spec)?;
    }

    #[test]
    fn an_event_known_to_be_there_is_delivered_or_gone_or_lies_in_a_gap(
        mut relay in relays(), spec in specs(), mutes in 0_u64..4, mutes_ids in prop::bool::weighted(0.2),
        silence_is_known in any::<bool>(), every in 1_usize..9,
    ) {
        relay.mutes = mutes;
        relay.mutes_ids = mutes_ids;
        let known: Vec<_> = relay.events.iter().step_by(every).take(10).copied().collect();
        let story = relay.walk_knowing(spec, known.clone(), silence_is_known);
        for (second, id) in &known {
            let gone = story.gone.contains(&(*second, *id));
            prop_assert!(story.delivered.contains(id) || !story.proves(*second) || gone, "{second}: {story:#?}");
        }
        prop_assert!(story.gone.is_empty() || relay.mutes_ids || relay.forgets, "{story:#?}");
        let spoke = !story.delivered.is_empty();
        prop_assert!(story.gone.is_empty() || spoke || silence_is_known, "{story:#?}");
        prop_assert!(story.filters.len() <= bound(&story), "{} requests", story.filters.len());
    }

    #[test]
    fn a_relay_that_answers_with_nothing_at_random_costs_proof_and_no_event_that_we_hold(
        seconds in timelines(), spec in specs(), cap in 10_usize..90, mutes in 1_u64..5, every in 1_usize..5,
    ) {
        let mut relay = ModelRelay::honest(cap, events_at(seconds));
        relay.mutes = mutes;
        let (floor, ceiling) = window(spec);
        let mut held: Vec<_> = relay.events.iter().step_by(every).copied().collect();
        held.retain(|(second, _)| (floor..=ceiling).contains(second));
        held.sort_unstable();
        // The oldest and some between, as the archive gives them.
        let known = held.iter().step_by((held.len() / 9).max(1)).take(10).copied().collect();
        let story = relay.walk_knowing(spec, known, false);
        for (second, id) in &held {
            prop_assert!(story.delivered.contains(id) || !story.proves(*second), "lost at {second}: {story:#?}");
        }
        prop_assert!(story.gone.is_empty());
    }
}
