//! What holds for every relay that reconciles, however it behaves.

use std::collections::HashMap;

use proptest::prelude::*;

use super::compare::NegEnd;
use super::model_relay::{ModelRelay, events_at, id};
use super::spec::{ReconcileSpec, Rest};
use crate::models::{EventId, GapReason, Grade};
use crate::nips::{CloseClass, Cut, PageEnd};

fn timelines() -> impl Strategy<Value = Vec<i64>> {
    let sparse = prop::collection::vec(0_i64..2_000, 0..80);
    let dense = prop::collection::vec((0_i64..50, 1_usize..15), 0..6);
    (sparse, dense).prop_map(|(sparse, dense)| {
        let dense = dense.into_iter().flat_map(|(second, count)| std::iter::repeat_n(second, count));
        sparse.into_iter().chain(dense).collect()
    })
}

fn neg_ends() -> impl Strategy<Value = NegEnd> {
    prop::sample::select(vec![
        NegEnd::TooMany { most: None },
        NegEnd::Unsupported,
        NegEnd::Silent,
        NegEnd::Refused { class: CloseClass::RateLimited, message: String::new() },
        NegEnd::Refused { class: CloseClass::Error, message: String::new() },
        NegEnd::Timeout,
        NegEnd::Violation,
        NegEnd::Cut(Cut::Disconnected),
    ])
}

fn page_ends() -> impl Strategy<Value = PageEnd> {
    prop::sample::select(vec![
        PageEnd::Closed { class: CloseClass::InvalidRequest, message: String::new() },
        PageEnd::Closed { class: CloseClass::RateLimited, message: String::new() },
        PageEnd::Notice { message: String::new() },
        PageEnd::Timeout { idle: true },
        PageEnd::Disconnected,
        PageEnd::Oversize,
        PageEnd::Violation,
    ])
}

fn relays() -> impl Strategy<Value = ModelRelay> {
    let caps = prop::sample::select(vec![10_usize, 11, 30, 500]);
    let limits = prop::sample::select(vec![0_usize, 1, 5, 20, usize::MAX]);
    let truncations = prop::sample::select(vec![0_usize, 1, 4, 25, usize::MAX]);
    let invented = prop::collection::vec(0_i64..2_000, 0..20);
    let broken = (
        prop::option::weighted(0.2, (0_u32..20, neg_ends())),
        prop::option::weighted(0.2, (0_u32..20, page_ends())),
    );
    let heavy = prop::collection::hash_set(0_usize..100, 0..4);
    let honest = ModelRelay::honest(Vec::new());
    let bent = prop_oneof![
        5 => Just(honest.clone()),
        1 => prop::sample::select(vec![0_usize, 1, 4, 25])
            .prop_map({ let honest = honest.clone(); move |most| ModelRelay { truncates_oldest: most, ..honest.clone() } }),
        1 => (0_i64..2_500)
            .prop_map({ let honest = honest.clone(); move |from| ModelRelay { hides: Some((from, i64::MAX)), ..honest.clone() } }),
        1 => Just(ModelRelay { mutes: true, ..honest.clone() }),
        1 => Just(ModelRelay { ignores_until: true, ..honest.clone() }),
        1 => Just(ModelRelay { until_exclusive: true, ..honest }),
    ];
    (timelines(), caps, limits, truncations, invented, broken, heavy, bent).prop_map(
        |(seconds, cap, refuses_above, truncates_at, invented, (neg_end, page_end), heavy, bent)| {
            ModelRelay {
                heavy: heavy.into_iter().map(id).collect(),
                cap,
                refuses_above,
                // What it leaves out at one end, it leaves out nowhere else.
                truncates_at: if bent.hides.is_some() || bent.truncates_oldest < usize::MAX {
                    usize::MAX
                } else {
                    truncates_at
                },
                invents: invented
                    .into_iter()
                    .enumerate()
                    .map(|(n, second)| (second, id(1_000_000 + n)))
                    .collect(),
                neg_end,
                page_end,
                events: events_at(seconds),
                ..bent
            }
        },
    )
}

fn specs() -> impl Strategy<Value = ReconcileSpec> {
    let ids = prop::sample::select(vec![1_usize, 10, 13, 100]);
    let items = prop::sample::select(vec![1_usize, 5, 30, 1_000]);
    let budgets = prop_oneof![4 => Just(2_000_u32), 1 => 0_u32..20];
    (-5_i64..100, 0_i64..2_500, ids, items, budgets, any::<bool>(), any::<bool>()).prop_map(
        |(floor, ceiling, ids_per_page, max_items, max_requests, until_exclusive, is_known)| ReconcileSpec {
            floor,
            ceiling,
            max_requests,
            ids_per_page,
            page_shown: 0,
            until_exclusive,
            max_items,
            is_known,
        },
    )
}

/// What of the relay's events we have seen there before, and what of them is archived from elsewhere.
fn split(relay: &ModelRelay, ours: &[bool], gone: usize) -> (Vec<(i64, EventId)>, HashMap<EventId, i64>) {
    let picked = |wanted: bool| {
        let marks = ours.iter().copied().cycle();
        relay
            .events
            .iter()
            .copied()
            .zip(marks)
            .filter(move |(_, mark)| *mark == wanted)
            .map(|(event, _)| event)
    };
    let deleted = (0..gone).map(|number| (i64::try_from(number).unwrap() * 31, id(2_000_000 + number)));
    let archived =
        picked(false).enumerate().filter(|(n, _)| n % 3 == 0).map(|(_, (second, id))| (id, second));
    (picked(true).chain(deleted).collect(), archived.collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_claimed_is_held_and_what_is_not_claimed_is_named(
        relay in relays(), spec in specs(), ours in prop::collection::vec(any::<bool>(), 1..20), gone in 0_usize..20,
    ) {
        let (known, archived) = split(&relay, &ours, gone);
        // Of one that has answered nothing since it was found, nothing can be told.
        let spec = ReconcileSpec { is_known: spec.is_known || relay.mutes, ..spec };
        let story = relay.clone().reconcile(spec, &known, &archived);
        // A proof means that we hold whatever the relay serves there, and that we take.
        for (second, id) in relay.events.iter().filter(|(_, id)| !relay.heavy.contains(id)) {
            // A relay of whose newest second nothing is compared, and that is not known to be asked so: the next pass.
            let unasked = relay.until_exclusive && !spec.until_exclusive;
            if story.at(*second).is_some_and(|claim| unasked && claim.until == *second) {
                continue;
            }
            if story.proves(*second) {
                prop_assert!(story.held.contains(id), "{second} is proved and {id:?} is missing");
            }
        }
        // Claims and the rest account for every second, each once.
        let (floor, ceiling) = (spec.floor.max(0), spec.ceiling);
        let mut next = ceiling;
        for claim in &story.claims {
            prop_assert_eq!(claim.until, next, "claims go downward without holes");
            prop_assert!(claim.since <= claim.until && claim.since >= floor);
            next = claim.since - 1;
        }
        match story.rest {
            Rest::None => prop_assert!(next < floor),
            Rest::Unsupported { floor: low, ceiling: top } | Rest::Page { floor: low, ceiling: top }
            | Rest::Stopped { floor: low, ceiling: top, .. } => prop_assert_eq!((low, top), (floor, next)),
        }
        // Gone is only what the relay does not have.
        for (_, id) in &relay.events {
            prop_assert!(!story.gone.contains(id));
        }
        // Invented events are named, never held.
        for (second, id) in &relay.invents {
            prop_assert!(!story.held.contains(id));
            let whole = relay.truncates_at == usize::MAX
                && relay.truncates_oldest == usize::MAX
                && relay.hides.is_none();
            let at_top = story.at(*second).is_some_and(|claim| claim.until == *second);
            if story.proves(*second) && whole && !(relay.until_exclusive && at_top) {
                prop_assert!(story.unserved.contains(id));
            }
        }
        // Nothing archived is fetched, and nothing we have seen there, unless a relay is asked for the second above a window
        // because it is wrongly known to leave that out.
        prop_assert!(!story.fetched.iter().any(|id| archived.contains_key(id)));
        let beyond = spec.until_exclusive && !relay.until_exclusive;
        prop_assert!(beyond || !known.iter().any(|(_, id)| story.fetched.contains(id)));
    }

    #[test]
    fn an_honest_relay_is_reconciled_whole_in_few_requests(
        seconds in timelines(), ours in prop::collection::vec(any::<bool>(), 1..20), gone in 0_usize..20,
    ) {
        // That it has nothing at all where something was is not believed of its comparison.
        prop_assume!(!seconds.is_empty());
        let relay = ModelRelay { cap: 50, ..ModelRelay::honest(events_at(seconds)) };
        let (known, archived) = split(&relay, &ours, gone);
        let spec = ReconcileSpec { floor: 0, ceiling: 3_000, max_requests: 100, ids_per_page: 50, max_items: 1_000, page_shown: 50, until_exclusive: false, is_known: true };
        let story = relay.clone().reconcile(spec, &known, &archived);
        prop_assert_eq!(story.rest, Rest::None);
        prop_assert_eq!(story.claims.len(), 1);
        prop_assert_eq!((story.claims[0].grade, story.claims[0].reason), (Grade::Reconciled, GapReason::None));
        prop_assert!(relay.events.iter().all(|(_, id)| story.held.contains(id)));
        prop_assert_eq!(story.gone.len(), gone);
        prop_assert_eq!(story.comparisons, 1);
        let missing = relay.events.len() + gone - known.len() - archived.len();
        prop_assert!(story.pages as usize <= missing.div_ceil(50) + 4 + usize::from(gone > 0), "{} pages for {missing}", story.pages);
    }
}
