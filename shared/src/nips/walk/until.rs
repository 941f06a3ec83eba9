//! How a relay reads `until`, and what the planner makes of it.

use super::model_relay::{ModelRelay, events_at};
use super::*;

const SPEC: WalkSpec =
    WalkSpec { floor: 0, ceiling: 1_000, open_top: true, limit: 50, page_shown: 0, max_requests: 100 };

fn exclusive(cap: usize, seconds: impl IntoIterator<Item = i64>) -> ModelRelay {
    ModelRelay { until_exclusive: true, ..ModelRelay::honest(cap, events_at(seconds)) }
}

fn page(events: &[(i64, EventId)]) -> PageFacts {
    PageFacts { seen: events.to_vec(), ..PageFacts::default() }
}

const EOSE: PageEnd = PageEnd::Eose { hint: None };

fn asked(walk: &mut Walk) -> (i64, i64) {
    let Next::Request(filter) = walk.next() else { panic!("the walk is over") };
    (filter.since.unwrap(), filter.until.unwrap())
}

#[test]
fn an_exclusive_until_is_found_out_by_one_request_and_leaves_no_gap() {
    let seconds = || (0..60).flat_map(|second| [second, second, second]);
    let inclusive = ModelRelay::honest(20, events_at(seconds())).walk(SPEC);
    let story = exclusive(20, seconds()).walk(SPEC);
    assert!((0..=1_000).all(|second| story.proves(second)), "{story:#?}");
    assert_eq!(story.delivered.len(), 180);
    let asked: Vec<_> = story.filters.iter().map(|filter| filter.until).collect();
    assert_eq!(asked[..4], [None, Some(53), Some(54), Some(48)]);
    assert!(story.filters.len() <= inclusive.filters.len() + 1, "{} requests", story.filters.len());
}

#[test]
fn a_small_exclusive_relay_is_walked_whole() {
    for seconds in
        [vec![0], vec![1_000], vec![0, 0, 1_000, 1_000], vec![500], vec![1_000; 9], vec![999, 1_000]]
    {
        for open_top in [true, false] {
            let count = seconds.len();
            let story = exclusive(50, seconds.clone()).walk(WalkSpec { open_top, ..SPEC });
            assert!((0..=1_000).all(|second| story.proves(second)), "{seconds:?}: {story:#?}");
            assert_eq!(story.delivered.len(), count, "{seconds:?}");
            assert!(story.filters.len() <= 5, "{seconds:?}: {} requests", story.filters.len());
        }
    }
}

#[test]
fn the_python_relay_is_walked_whole() {
    let now = 1_750_000_000;
    let mut relay = exclusive(20, (0..200).map(|number| now - number * 7).chain([now + 1, now + 90]));
    relay.bounds_below = 2_145_934_800;
    for open_top in [true, false] {
        let story = relay.clone().walk(WalkSpec { ceiling: now, open_top, ..SPEC });
        assert!(story.claims.iter().all(|claim| claim.grade.is_proof()), "{story:#?}");
        assert!(story.proves(0) && story.proves(now));
        assert!(story.delivered.len() >= 200);
        assert!(story.filters.iter().all(|filter| filter.until.is_none_or(|until| until <= now + 1)));
    }
}

#[test]
fn what_lies_just_above_a_closed_ceiling_is_ignored() {
    // a page full of the second above is asked again as meant
    let seconds = std::iter::repeat_n(1_001, 30).chain([1_000, 1_000, 7]);
    let story = ModelRelay::honest(20, events_at(seconds)).walk(WalkSpec { open_top: false, ..SPEC });
    let asked: Vec<_> = story.filters.iter().map(|filter| filter.until.unwrap()).collect();
    assert_eq!(asked[..3], [1_001, 1_000, 7]);
    assert!((0..=1_000).all(|second| story.proves(second)));
    assert!(story.claims.iter().all(|claim| claim.until <= 1_000));
    // nor does it make the ceiling look dense
    let seconds = std::iter::repeat_n(1_001, 15).chain([1_000; 5]).chain([7]);
    let story = ModelRelay::honest(20, events_at(seconds)).walk(WalkSpec { open_top: false, ..SPEC });
    assert!((0..=1_000).all(|second| story.proves(second)), "{story:#?}");
}

#[test]
fn a_boundary_that_stays_away_is_a_gap_of_its_second() {
    let events = events_at([900, 800, 700, 600]);
    let mut walk = Walk::new(SPEC);
    walk.next();
    walk.on_page(&page(&events[..2]), &EOSE);
    assert_eq!(asked(&mut walk), (0, 800));
    assert!(walk.on_page(&page(&events[2..]), &EOSE).is_empty(), "the failed test settles nothing");
    assert_eq!(asked(&mut walk), (0, 801));
    let gone = Claim::over(800, 800, Grade::Partial, GapReason::NotServed).unwrap();
    let walked = Claim::over(601, 799, Grade::Walked, GapReason::None).unwrap();
    assert_eq!(walk.on_page(&page(&events[2..]), &EOSE), [gone, walked]);
    assert_eq!(asked(&mut walk), (0, 601), "either reading is covered from here on");
}

#[test]
fn a_second_served_in_part_is_no_exclusive_until() {
    let events = events_at([900, 800, 800, 700]);
    let mut walk = Walk::new(SPEC);
    walk.next();
    walk.on_page(&page(&events[..3]), &EOSE);
    assert_eq!(asked(&mut walk), (0, 800));
    let claims = walk.on_page(&page(&events[2..]), &EOSE);
    assert_eq!(claims[0], Claim::over(800, 800, Grade::Partial, GapReason::NotServed).unwrap());
    assert_eq!(asked(&mut walk), (0, 700));
}

#[test]
fn a_raised_until_that_brings_its_second_is_lowered_again() {
    let events = events_at([900, 800, 701, 700, 600]);
    let late = page(&events[2..]);
    let pages = [page(&events[..2]), page(&[]), page(&[events[1], events[3]]), late];
    let mut walk = Walk::new(SPEC);
    for (wanted, facts) in [None, Some(800), Some(801), Some(701)].into_iter().zip(&pages) {
        let Next::Request(filter) = walk.next() else { panic!("the walk is over") };
        assert_eq!(filter.until, wanted);
        walk.on_page(facts, &EOSE);
    }
    assert_eq!(asked(&mut walk), (0, 600));
    let foreign = PageFacts { seen: vec![(601, EventId([9; 32]))], ..PageFacts::default() };
    walk.on_page(&foreign, &EOSE);
    let rest = walk.finish(GapReason::Stopped);
    assert_eq!(rest[0].reason, GapReason::IgnoresFilter, "only what was asked for is borne");
}

#[test]
fn what_an_exclusive_relay_hides_is_probed_to_the_end_of_the_gap() {
    let mut relay = exclusive(20, (880..900).chain([879]).chain(90..100));
    relay.hides = Some((400, 879));
    let story = relay.walk(SPEC);
    let probe = story.filters.iter().find(|filter| filter.limit == Some(1)).unwrap();
    assert_eq!((probe.since, probe.until), (Some(100), Some(880)));
    assert_eq!(story.reason(879), Some(GapReason::NotServed));
}
