//! What the planner makes of a relay that leaves events out and keeps the rest in order.

use proptest::prelude::*;

use super::model_relay::{Failure, ModelRelay, Order as RelayOrder, Story, events_at};
use super::properties::{bound, check_sound, relays, specs};
use super::*;
use crate::nips::refusal::CloseClass;

const DAY: i64 = 86_400;
/// Ninety days, of which the relay was away for three.
const SPEC: WalkSpec =
    WalkSpec { floor: 0, ceiling: 90 * DAY, open_top: true, limit: 100, page_shown: 0, max_requests: 3_000 };
const SEEDS: u64 = 60;

/// So many events spread at random over ninety days but three.
fn spread(count: i64) -> Vec<(i64, EventId)> {
    let second = |number: i64| number.wrapping_mul(2_654_435_761).rem_euclid(90 * DAY);
    let seconds = (1..).map(second).filter(|second| !(40 * DAY..43 * DAY).contains(second));
    events_at(seconds.take(usize::try_from(count).unwrap()))
}

/// Events that were not delivered although their second is proved.
fn lost(relay: &ModelRelay, story: &Story) -> usize {
    let hidden = relay.events.iter().filter(|(_, id)| !story.delivered.contains(id));
    hidden.filter(|(second, _)| story.proves(*second)).count()
}

#[test]
fn a_sorted_subset_is_found_out_by_a_sample_and_then_read_whole_in_less_time() {
    for (count, least) in [(120, 57), (200, 58), (600, 58), (4_000, 58)] {
        let mut caught = 0;
        for seed in 0..SEEDS {
            let mut relay = ModelRelay::honest(100, spread(count));
            relay.order = RelayOrder::SortedSubset(seed);
            let story = relay.walk_sampling(SPEC, seed);
            caught += u64::from(story.caught);
            if story.caught {
                assert!(story.claims.iter().all(|claim| !story.proves(claim.since)), "{seed}");
                let came = relay.events.iter().filter(|(_, id)| story.delivered.contains(id)).count();
                assert_eq!(came, relay.events.len(), "{count} events, seed {seed}");
                assert!(
                    story.filters.len() <= 20 + usize::try_from(count).unwrap() / 5,
                    "{}",
                    story.filters.len()
                );
            }
        }
        assert!(caught >= least, "{caught} of {SEEDS} at {count} events");
    }
}

#[test]
fn what_a_full_queue_dropped_is_found_out_the_more_surely_the_more_pages_lack_something() {
    for (one_in, least) in [(1, 50), (2, 36), (5, 13), (10, 7)] {
        let caught = (0..SEEDS).filter(|seed| {
            let mut relay = ModelRelay::honest(100, spread(4_000));
            relay.drops = one_in;
            // Another run of pages each time.
            relay.asked = u32::try_from(seed * 200).unwrap();
            let mut walk = Walk::new(SPEC).sampling(*seed);
            while let Next::Request(filter) = walk.next() {
                let (facts, end) = relay.answer(&filter);
                walk.on_page(&facts, &end);
                if walk.caught.is_some() {
                    return true;
                }
            }
            false
        });
        let caught = caught.count();
        assert!(caught >= least, "{caught} of {SEEDS} where one page in {one_in} lacks events");
    }
}

#[test]
fn an_honest_relay_is_never_caught_and_pays_a_request_for_25_pages() {
    for seed in 0..10 {
        let mut relay = ModelRelay::honest(100, spread(10_000));
        relay.until_exclusive = seed % 2 == 1;
        let story = relay.walk_sampling(SPEC, seed);
        assert!(!story.caught && lost(&relay, &story) == 0);
        assert!(story.proves(0) && story.proves(SPEC.ceiling));
        assert!(story.filters.len() <= 114, "{}", story.filters.len());
    }
}

#[test]
fn what_may_still_come_late_is_no_lie() {
    let caught = |fills_from, seed| {
        let mut relay = ModelRelay::honest(100, spread(600));
        relay.order = RelayOrder::SortedSubset(seed);
        let mut walk = Walk::new(SPEC).sampling(seed).filling(fills_from);
        while let Next::Request(filter) = walk.next() {
            let (facts, end) = relay.answer(&filter);
            walk.on_page(&facts, &end);
        }
        walk.caught.is_some()
    };
    assert!((0..20).any(|seed| caught(SPEC.ceiling, seed)));
    assert!(!(0..20).any(|seed| caught(0, seed)));
}

/// What was to be sampled and was not: a gap of its own, in which all that is left of the page was read.
fn unsampled(story: &Story, reason: GapReason) -> usize {
    let gaps = story.claims.iter().filter(|claim| story.samples.contains(&(claim.since, claim.until)));
    let gaps: Vec<_> = gaps.filter(|claim| claim.overrides_proof && claim.reason == reason).collect();
    assert!(gaps.iter().all(|gap| gap.grade == Grade::Unknown && !story.proves(gap.since)), "{gaps:?}");
    gaps.len()
}

#[test]
fn what_a_relay_does_not_let_itself_be_sampled_in_is_a_gap() {
    for seed in 0..20 {
        let mut relay = ModelRelay::honest(100, spread(4_000));
        relay.closes_samples =
            Some(PageEnd::Closed { class: CloseClass::Error, message: "error: no".to_owned() });
        let story = relay.walk_sampling(SPEC, seed);
        assert_eq!((story.samples.len(), unsampled(&story, GapReason::Closed)), (2, 2), "{seed}");
        assert!(story.proves(0) && story.proves(SPEC.ceiling));
    }
}

#[test]
fn a_walk_that_ends_before_its_sample_leaves_that_as_a_gap() {
    for seed in 0..20 {
        let mut relay = ModelRelay::honest(100, spread(4_000));
        relay.failure = Some(Failure { at: 10, end: PageEnd::Disconnected });
        let story = relay.walk_sampling(SPEC, seed);
        assert_eq!((story.samples.len(), unsampled(&story, GapReason::Disconnected)), (1, 1), "{seed}");
        // Whoever stops it, at last when one is due, too.
        let mut relay = ModelRelay::honest(100, spread(4_000));
        relay.stops_after = Some(10 + usize::try_from(seed % 16).unwrap());
        let story = relay.walk_sampling(SPEC, seed);
        assert_eq!((story.samples.len(), unsampled(&story, GapReason::Stopped)), (1, 1), "{seed}");
        assert!(story.proves(SPEC.ceiling));
    }
}

#[test]
fn which_page_is_sampled_cannot_be_foreseen() {
    let asked = |seed| {
        let story = ModelRelay::honest(100, spread(1_000)).walk_sampling(SPEC, seed);
        let sample = story.filters.iter().find(|filter| filter.limit > Some(10) && filter.limit < Some(100));
        sample.map(|filter| (filter.since, filter.until))
    };
    let stretches: HashSet<_> = (0..50).filter_map(asked).collect();
    assert!(stretches.len() > 20, "{}", stretches.len());
    assert_eq!(asked(7), asked(7));
}

#[test]
fn a_walk_that_is_over_when_it_finds_out_keeps_what_it_read_as_a_gap() {
    let mut relay = ModelRelay::honest(100, spread(4_000));
    relay.order = RelayOrder::SortedSubset(1);
    let mut walk = Walk::new(SPEC);
    let mut claims = Vec::new();
    let Next::Request(filter) = walk.next() else { panic!("it is over") };
    let (facts, end) = relay.answer(&filter);
    claims.extend(walk.on_page(&facts, &end));
    walk.wind_up();
    while let Next::Request(filter) = walk.next() {
        let (facts, end) = relay.answer(&filter);
        claims.extend(walk.on_page(&facts, &end));
    }
    let oldest = facts.seen.last().unwrap().0;
    claims.extend(walk.finish(GapReason::Stopped));
    let gap = |since, until, grade, reason| Claim::over(since, until, grade, reason).unwrap();
    let lied = gap(oldest + 1, SPEC.ceiling, Grade::Partial, GapReason::NotServed).overriding();
    let unread = gap(0, oldest, Grade::Unknown, GapReason::Stopped);
    assert_eq!(claims[claims.len() - 2..], [lied, unread], "{claims:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_left_out_in_order_is_found_out_or_was_in_none_of_the_samples(
        mut relay in relays(), spec in specs(), seed in any::<u64>(), drops in 0_u64..3,
    ) {
        relay.order = RelayOrder::SortedSubset(seed);
        relay.drops = drops;
        let story = relay.walk_sampling(spec, seed);
        if story.caught {
            check_sound(&relay, &story, spec)?;
        }
        prop_assert!(story.filters.len() <= bound(&story), "{} requests", story.filters.len());
    }
}
