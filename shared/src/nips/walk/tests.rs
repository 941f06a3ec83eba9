//! One promise each, on relays written for it.

use super::model_relay::{Failure, Hint, Ignores, ModelRelay, Order, events_at, id};
use super::*;
use crate::nips::{CloseClass, EoseHint};

const SPEC: WalkSpec =
    WalkSpec { floor: 0, ceiling: 1_000, open_top: true, limit: 50, page_shown: 0, max_requests: 100 };

fn walked(since: i64, until: i64) -> Claim {
    Claim::over(since, until, Grade::Walked, GapReason::None).unwrap()
}

fn gap(since: i64, until: i64, grade: Grade, reason: GapReason) -> Claim {
    Claim::over(since, until, grade, reason).unwrap()
}

fn closed(class: CloseClass) -> PageEnd {
    PageEnd::Closed { class, message: String::new() }
}

#[test]
fn an_empty_relay_takes_one_request() {
    let story = ModelRelay::honest(50, Vec::new()).walk(SPEC);
    assert_eq!(story.claims, [walked(0, 1_000)]);
    assert_eq!(story.filters.len(), 1);
    assert_eq!((story.filters[0].since, story.filters[0].until), (Some(0), None));
}

#[test]
fn pages_go_down_and_each_proves_what_is_newer_than_its_oldest() {
    let story = ModelRelay::honest(20, events_at(0..50)).walk(WalkSpec { open_top: false, ..SPEC });
    let pages = story.filters.iter().filter(|filter| filter.limit == Some(50));
    let asked: Vec<_> = pages.map(|filter| filter.until.unwrap()).collect();
    assert_eq!(asked, [1_001, 30, 11, 0]);
    assert_eq!(story.filters.len(), 5, "and a sample of one page");
    assert_eq!(story.claims, [walked(31, 1_000), walked(12, 30), walked(1, 11), walked(0, 0)]);
    assert_eq!(story.delivered.len(), 50);
}

#[test]
fn fifty_thousand_events_take_a_hundred_pages() {
    let spec = WalkSpec { ceiling: 200_000, limit: 500, max_requests: 1_000, ..SPEC };
    let story = ModelRelay::honest(500, events_at((0..50_000).map(|number| number * 3))).walk(spec);
    assert_eq!(story.delivered.len(), 50_000);
    assert!(story.proves(0) && story.proves(200_000));
    // The pages, what ends them, the widest gap, and a sample of 25 pages each.
    assert!(story.filters.len() <= 108, "{}", story.filters.len());
}

#[test]
fn a_few_events_in_one_second_are_no_alarm() {
    let story = ModelRelay::honest(50, events_at([500, 500, 500])).walk(SPEC);
    assert!((0..=1_000).all(|second| story.proves(second)));
    assert_eq!(story.filters.len(), 3);
}

#[test]
fn a_dense_second_is_a_gap_of_one_second_and_the_walk_goes_on() {
    let seconds = (490..500).chain(std::iter::repeat_n(500, 60)).chain(501..510);
    let story = ModelRelay::honest(20, events_at(seconds)).walk(SPEC);
    assert_eq!(story.at(500), Some(gap(500, 500, Grade::Partial, GapReason::DenseSecond).overriding()));
    assert!((0..=1_000).all(|second| second == 500 || story.proves(second)));
}

#[test]
fn a_dense_oldest_second_is_a_gap_too() {
    for (count, proved) in [(19, true), (20, false), (60, false)] {
        let seconds = (501..540).chain(std::iter::repeat_n(500, count));
        let story = ModelRelay::honest(20, events_at(seconds)).walk(SPEC);
        assert_eq!(story.proves(500), proved, "{count} events, pages of 20");
        assert!(story.proves(499) && story.proves(501));
    }
}

#[test]
fn a_relay_of_one_dense_second_is_not_believed_whole() {
    let story = ModelRelay::honest(20, events_at(std::iter::repeat_n(500, 60))).walk(SPEC);
    assert_eq!(story.reason(500), Some(GapReason::DenseSecond));
    assert!(story.proves(499) && story.proves(501));
}

#[test]
fn future_events_arrive_and_move_nothing() {
    let future = (2_000..2_060).chain([LATEST_SECOND, LATEST_SECOND + 9, 1 << 53, i64::MAX]);
    let story = ModelRelay::honest(20, events_at(future.chain([700, 30]))).walk(SPEC);
    assert!(story.delivered.contains(&id(63)) && story.delivered.contains(&id(64)));
    assert!((0..=1_000).all(|second| story.proves(second)));
    let asked: Vec<_> = story.filters.iter().map(|filter| filter.until).collect();
    assert_eq!(asked[..2], [None, Some(1_001)]);
    assert!(story.claims.iter().all(|claim| claim.until <= 1_000));
}

#[test]
fn absurd_windows_are_clamped_to_what_the_wire_holds() {
    let spec = WalkSpec { floor: i64::MIN, ceiling: i64::MAX, open_top: false, ..SPEC };
    let story = ModelRelay::honest(20, events_at([0, 0, 5])).walk(spec);
    assert_eq!((story.filters[0].since, story.filters[0].until), (Some(0), Some(LATEST_SECOND)));
    assert!(story.filters.iter().all(|filter| filter.until >= Some(0)));
    assert!(story.proves(0) && story.proves(LATEST_SECOND - 1) && !story.proves(LATEST_SECOND));
    assert_eq!(story.delivered.len(), 3);
    let nothing = ModelRelay::honest(20, events_at([5])).walk(WalkSpec { floor: 9, ceiling: 8, ..SPEC });
    assert!(nothing.claims.is_empty() && nothing.filters.is_empty());
}

#[test]
fn an_oldest_first_relay_proves_only_what_is_below() {
    let mut relay = ModelRelay::honest(20, events_at(100..400));
    relay.order = Order::OldestFirst;
    let story = relay.walk(SPEC);
    assert_eq!(story.reason(350), Some(GapReason::Unordered));
    assert!(story.proves(99) && story.proves(100));
}

#[test]
fn a_page_of_one_second_shows_no_order() {
    let seconds = || std::iter::repeat_n(100, 30).chain(200..300);
    let mut relay = ModelRelay::honest(20, events_at(seconds()));
    relay.order = Order::OldestFirst;
    let story = relay.walk(SPEC);
    assert_eq!((story.filters[1].since, story.filters[1].until), (Some(101), Some(1_001)));
    assert_eq!(story.reason(250), Some(GapReason::Unordered));
    let story = ModelRelay::honest(20, events_at(std::iter::repeat_n(100, 30).chain(0..9))).walk(SPEC);
    assert_eq!((story.filters[1].since, story.filters[1].until), (Some(101), Some(1_001)));
    assert!(story.proves(101) && !story.proves(100) && story.proves(99));
}

#[test]
fn gross_disorder_takes_back_what_order_had_proved() {
    let mut walk = Walk::new(SPEC);
    let page =
        |seconds: &[i64]| PageFacts { seen: events_at(seconds.iter().copied()), ..PageFacts::default() };
    let eose = PageEnd::Eose { hint: None };
    walk.next();
    assert!(walk.on_page(&page(&[900, 800]), &eose).is_empty(), "its widest gap is still to be asked");
    walk.next();
    let mut tail = page(&[0, 800, 700, 750, 600, 650]);
    tail.seen.remove(0);
    let taken_back = gap(801, 1_000, Grade::Partial, GapReason::Unordered).overriding();
    let unordered = gap(601, 800, Grade::Partial, GapReason::Unordered);
    assert_eq!(walk.on_page(&tail, &eose), [taken_back, unordered]);
}

#[test]
fn one_event_out_of_order_costs_its_page_only() {
    let mut walk = Walk::new(SPEC);
    let facts = PageFacts { seen: events_at([900, 850, 880, 800]), ..PageFacts::default() };
    walk.next();
    let claims = walk.on_page(&facts, &PageEnd::Eose { hint: None });
    assert_eq!(claims, [gap(801, 1_000, Grade::Partial, GapReason::Unordered)]);
}

#[test]
fn a_relay_that_ignores_until_is_left_with_its_first_page() {
    let mut relay = ModelRelay::honest(20, events_at(0..100));
    relay.ignores = Ignores::Until;
    let story = relay.walk(SPEC);
    assert!(story.proves(81) && story.proves(1_000));
    assert_eq!(story.at(80), Some(gap(0, 80, Grade::Partial, GapReason::IgnoresFilter)));
    assert!(story.filters.len() <= 3);
}

#[test]
fn a_few_foreign_frames_are_borne_and_many_are_not() {
    let bear = |mismatched| {
        let mut walk = Walk::new(SPEC);
        walk.next();
        let facts = PageFacts { seen: events_at([900, 800]), mismatched, ..PageFacts::default() };
        assert!(walk.on_page(&facts, &PageEnd::Eose { hint: None }).is_empty());
        walk.finish(GapReason::Stopped)
    };
    let most = u32::try_from(MISMATCH_MAX).unwrap();
    assert!(bear(most).contains(&walked(900, 1_000)));
    assert_eq!(bear(most + 1), [gap(0, 1_000, Grade::Partial, GapReason::IgnoresFilter)]);
}

#[test]
fn any_end_but_eose_leaves_the_rest_with_its_reason() {
    let table = [
        (closed(CloseClass::AuthRequired), Grade::Refused, GapReason::AuthRequired),
        (closed(CloseClass::Restricted), Grade::Refused, GapReason::Restricted),
        (closed(CloseClass::RateLimited), Grade::Unknown, GapReason::RateLimited),
        (closed(CloseClass::Error), Grade::Unknown, GapReason::Closed),
        (PageEnd::Notice { message: "no".to_owned() }, Grade::Unknown, GapReason::Closed),
        (PageEnd::Auth, Grade::Refused, GapReason::AuthRequired),
        (PageEnd::Disconnected, Grade::Unknown, GapReason::Disconnected),
        (PageEnd::Violation, Grade::Unknown, GapReason::Protocol),
    ];
    for (end, grade, reason) in table {
        // Pages too small to be sampled.
        let mut relay = ModelRelay::honest(10, events_at(0..100));
        relay.failure = Some(Failure { at: 1, end });
        let story = relay.walk(SPEC);
        assert_eq!(story.claims, [walked(91, 1_000), gap(0, 90, grade, reason)]);
        assert_eq!(story.filters.len(), 2, "no retry");
    }
}

#[test]
fn a_second_found_to_be_cut_is_no_proof_any_more() {
    // Only what is below the page shows it; what is merely suspect takes nothing back.
    let mut walk = Walk::new(WalkSpec { ceiling: 500, open_top: false, ..SPEC });
    let eose = PageEnd::Eose { hint: None };
    let page = |seconds: Vec<i64>| PageFacts { seen: events_at(seconds), ..PageFacts::default() };
    walk.next();
    assert!(walk.on_page(&page(vec![500; 20]), &eose).is_empty());
    walk.next();
    let mut below = page([vec![500; 20], vec![499, 498]].concat());
    below.seen.drain(..20);
    let cut = gap(500, 500, Grade::Partial, GapReason::DenseSecond).overriding();
    assert_eq!(walk.on_page(&below, &eose), [cut, walked(499, 499)]);
    let story = ModelRelay::honest(20, events_at(std::iter::repeat_n(0, 20))).walk(SPEC);
    assert!(story.claims.iter().all(|claim| !claim.overrides_proof));
}

#[test]
fn a_lone_second_is_whole_below_the_largest_page_the_relay_has_served() {
    let second = WalkSpec { floor: 500, ceiling: 500, open_top: false, limit: 500, ..SPEC };
    for (events, page_shown, proved) in [
        (9, 0, true),
        (12, 0, false),
        (12, 500, true),
        (499, 500, true),
        (500, 500, false),
        (120, 100, false),
    ] {
        let story = ModelRelay::honest(500, events_at(std::iter::repeat_n(500, events)))
            .walk(WalkSpec { page_shown, ..second });
        assert_eq!(story.proves(500), proved, "{events} events, pages of {page_shown} were seen");
    }
    // What this walk shows to be cut counts for more than what was measured once.
    let seconds = std::iter::repeat_n(500, 20).chain(501..540);
    let story = ModelRelay::honest(20, events_at(seconds)).walk(WalkSpec { page_shown: 500, ..SPEC });
    assert!(!story.proves(500));
}

#[test]
fn finish_is_believed_once_a_second_page_brings_nothing() {
    let mut relay = ModelRelay::honest(50, events_at([900, 500, 499, 498]));
    relay.hint = Hint::Honest;
    let story = relay.walk(SPEC);
    let finished = |second| story.at(second).is_some_and(|claim| claim.grade == Grade::Finished);
    assert!([0, 497, 498, 700, 1_000].into_iter().all(finished), "{story:#?}");
    assert_eq!(story.filters.len(), 3, "the page, its confirmation, the probe of its widest gap");
    relay.hint = Hint::AlwaysFinish;
    relay.cap = 2;
    let lied = relay.walk(SPEC);
    assert_eq!(lied.delivered.len(), 4);
    assert!(lied.claims.iter().all(|claim| claim.grade != Grade::Finished));
}

#[test]
fn more_on_an_empty_page_is_not_drained() {
    let mut walk = Walk::new(SPEC);
    walk.next();
    let end = PageEnd::Eose { hint: Some(EoseHint::More) };
    assert!(walk.on_page(&PageFacts::default(), &end).is_empty());
    assert_eq!(walk.next(), Next::Done);
    assert_eq!(walk.finish(GapReason::Stopped), [gap(0, 1_000, Grade::Partial, GapReason::NotServed)]);
}

#[test]
fn an_event_hidden_in_the_widest_gap_takes_back_all_of_the_walk() {
    let mut relay = ModelRelay::honest(20, events_at((880..900).chain([500]).chain(90..100)));
    relay.hides = Some((400, 600));
    let story = relay.walk(SPEC);
    let probe = story.filters.iter().find(|filter| filter.limit == Some(1)).unwrap();
    assert_eq!((probe.since, probe.until), (Some(100), Some(879)));
    assert_eq!(story.reason(500), Some(GapReason::NotServed));
    assert!(story.delivered.contains(&relay.events[20].1), "it is read in less time");
    assert!(
        (0..=1_000).all(|second| story.reason(second) == Some(GapReason::NotServed)),
        "nothing is proved"
    );
}

#[test]
fn the_last_allowed_request_is_the_probe() {
    let relay = ModelRelay::honest(10, events_at((0..100).map(|number| number * 10)));
    let story = relay.clone().walk(WalkSpec { max_requests: 3, ..SPEC });
    assert_eq!(story.filters.len(), 3);
    assert_eq!(story.filters[2].limit, Some(1));
    assert_eq!(story.claims.last(), Some(&gap(0, 810, Grade::Unknown, GapReason::Stopped)));
}

#[test]
fn a_caller_that_stops_gives_its_own_reason() {
    let mut walk = Walk::new(SPEC);
    walk.next();
    assert_eq!(walk.finish(GapReason::Quarantined), [gap(0, 1_000, Grade::Unknown, GapReason::Quarantined)]);
    let mut walk = Walk::new(WalkSpec { max_requests: 0, ..SPEC });
    assert_eq!(walk.next(), Next::Done);
    assert_eq!(walk.finish(GapReason::None), [gap(0, 1_000, Grade::Unknown, GapReason::Stopped)]);
}

#[test]
fn a_page_nobody_asked_for_is_ignored() {
    let mut walk = Walk::new(SPEC);
    assert!(walk.on_page(&PageFacts::default(), &PageEnd::Eose { hint: None }).is_empty());
    assert!(matches!(walk.next(), Next::Request(_)));
}

#[test]
fn a_page_of_nothing_that_can_be_read_is_no_empty_page() {
    // all of it is of a kind that does not exist: paged over, and in doubt
    let mut relay = ModelRelay::honest(20, events_at(500..600));
    relay.garbles = 1;
    relay.events = (500..600).zip((1..).step_by(2).map(id)).collect();
    let story = relay.walk(SPEC);
    assert!(story.delivered.is_empty() && story.filters.len() > 3);
    assert!(story.proves(499) && story.proves(600) && !story.proves(501));
    // not even the time can be read: the walk cannot go on, and nothing is proved
    let mut relay = ModelRelay::honest(20, events_at(500..600));
    relay.garbles = 2;
    relay.events = (500..600).zip((0..).step_by(2).map(id)).collect();
    let story = relay.walk(SPEC);
    assert_eq!(story.claims, [gap(0, 1_000, Grade::Partial, GapReason::Protocol)]);
}

#[test]
fn one_that_cannot_be_read_or_placed_puts_its_neighbourhood_in_doubt() {
    let mut relay = ModelRelay::honest(20, events_at((500..600).rev()));
    relay.garbles = 50;
    let story = relay.walk(SPEC);
    // number 0 stands at 599, number 50 at 549
    assert_eq!(story.doubts, [(598, i64::MAX), (548, 550)]);
    assert!(story.proves(597) && story.proves(551) && story.proves(547) && story.proves(500));
    // as the last of all, nothing says where it is not
    relay.events.retain(|(second, _)| *second >= 549);
    let story = relay.walk(SPEC);
    assert_eq!(story.at(549), Some(gap(0, 550, Grade::Partial, GapReason::Protocol)));
    assert_eq!(story.reason(550), Some(GapReason::Protocol));
    assert!(story.proves(551));
}
