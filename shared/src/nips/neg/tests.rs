//! One relay at a time.

use std::collections::HashMap;

use negentropy::{Id, Negentropy, NegentropyStorageVector};

use super::compare::{Comparison, NegEnd, NegLimits, NegStep};
use super::model_relay::{ModelRelay, events_at, id};
use super::plan::Reconcile;
use super::spec::{Job, ReconcileSpec, Rest};
use super::window::Window;
use crate::models::{EventId, GapReason, Grade};
use crate::nips::{CloseClass, Cut, Filter};

pub(super) const SPEC: ReconcileSpec = ReconcileSpec {
    floor: 0,
    ceiling: 10_000,
    max_requests: 500,
    ids_per_page: 100,
    max_items: 1_000,
    page_shown: 0,
    until_exclusive: false,
    is_known: false,
};
const LIMITS: NegLimits =
    NegLimits { answer_ms: 1_000, total_ms: 60_000, max_rounds: 200, max_ids: 10_000, max_bytes: 10_000_000 };

/// The other side of a comparison, by the library.
struct Server(Negentropy<'static, NegentropyStorageVector>);

impl Server {
    fn new(items: &[(i64, EventId)], frame: u64) -> Self {
        let mut storage = NegentropyStorageVector::new();
        for (second, id) in items {
            storage.insert(u64::try_from(*second).unwrap(), Id::from_byte_array(id.0)).unwrap();
        }
        storage.seal().unwrap();
        Self(Negentropy::owned(storage, frame).unwrap())
    }

    fn answer(&mut self, text: &str) -> String {
        let frame: serde_json::Value = serde_json::from_str(text).unwrap();
        let message = frame.as_array().unwrap().last().unwrap().as_str().unwrap();
        assert!(message.len() <= 60_000, "a message of {} digits", message.len());
        let answer = self.0.reconcile(&hex::decode(message).unwrap()).unwrap();
        format!(r#"["NEG-MSG","s","{}"]"#, hex::encode(answer))
    }
}

fn start(items: &[(i64, EventId)], limits: NegLimits) -> (Comparison, String) {
    let filter = Filter { since: Some(0), until: Some(10_000), ..Filter::default() };
    Comparison::start("s", &filter, items, limits, 0)
}

fn compare(ours: &[(i64, EventId)], theirs: &[(i64, EventId)], frame: u64) -> (NegEnd, u32) {
    let mut server = Server::new(theirs, frame);
    let (mut comparison, mut text) = start(ours, LIMITS);
    assert!(text.starts_with(r#"["NEG-OPEN","s",{"since":0,"until":10000},"61"#), "{text}");
    loop {
        match comparison.on_text(1, &server.answer(&text)) {
            NegStep::Send(next) => text = next,
            NegStep::Done(end) => return (end, comparison.rounds()),
            NegStep::Continue => panic!("an answer of theirs went unnoticed"),
        }
    }
}

#[test]
fn both_differences_are_found_whatever_the_frames() {
    let all = events_at((0..5_000).map(|n| n / 3));
    let ours: Vec<_> = all.iter().copied().enumerate().filter(|(n, _)| n % 7 != 0).map(|(_, e)| e).collect();
    let theirs: Vec<_> =
        all.iter().copied().enumerate().filter(|(n, _)| n % 11 != 0).map(|(_, e)| e).collect();
    for frame in [0, 4_096, 60_000] {
        let (end, rounds) = compare(&ours, &theirs, frame);
        let NegEnd::Compared { have, need } = end else { panic!("{end:?}") };
        let (mut have, mut need): (Vec<_>, Vec<_>) =
            (have.iter().map(|id| id.0).collect(), need.iter().map(|id| id.0).collect());
        let only = |a: usize, b: usize| {
            let picked = all.iter().enumerate().filter(move |(n, _)| n % a == 0 && n % b != 0);
            let mut ids: Vec<_> = picked.map(|(_, (_, id))| id.0).collect();
            ids.sort_unstable();
            ids
        };
        have.sort_unstable();
        need.sort_unstable();
        assert_eq!(have, only(11, 7));
        assert_eq!(need, only(7, 11));
        assert!(rounds < 150, "{rounds} rounds");
    }
}

#[test]
fn equal_sets_end_in_one_round() {
    let all = events_at(0..2_000);
    let same = NegEnd::Compared { have: Vec::new(), need: Vec::new() };
    assert_eq!(compare(&all, &all, 0), (same.clone(), 1));
    assert_eq!(compare(&[], &[], 0), (same, 1));
}

#[test]
fn every_other_answer_is_an_end_of_its_own() {
    let cut = |text: &str| {
        let (mut comparison, _) = start(&[], LIMITS);
        match comparison.on_text(1, text) {
            NegStep::Done(end) => Some(end),
            _ => None,
        }
    };
    let refused = |class, message: &str| Some(NegEnd::Refused { class, message: message.to_owned() });
    for (text, end) in [
        (r#"["NEG-ERR","s","blocked: too many records",500]"#, Some(NegEnd::TooMany { most: Some(500) })),
        (r#"["NEG-ERR","s","unsupported: no"]"#, Some(NegEnd::Unsupported)),
        (r#"["NEG-ERR","s","auth-required: no"]"#, refused(CloseClass::AuthRequired, "auth-required: no")),
        (r#"["CLOSED","s","error: x"]"#, refused(CloseClass::Error, "error: x")),
        (r#"["NEG-MSG","s","60"]"#, Some(NegEnd::Unsupported)),
        (r#"["NEG-MSG","s","zz"]"#, Some(NegEnd::Violation)),
        (r#"["NEG-MSG","s",""]"#, Some(NegEnd::Violation)),
        (r#"["NEG-MSG","s","61000002c080808000"]"#, Some(NegEnd::Violation)),
        (r#"["NEG-MSG","t","61"]"#, None),
        (r#"["EVENT","s",{}]"#, None),
    ] {
        assert_eq!(cut(text), end, "{text}");
    }
    let (mut comparison, _) = start(&[], LIMITS);
    assert_eq!(comparison.on_closed(Cut::Oversize), NegStep::Done(NegEnd::Cut(Cut::Oversize)));
    assert_eq!(comparison.on_text(1, r#"["NEG-MSG","s","61"]"#), NegStep::Continue, "over is over");
}

#[test]
fn silence_a_notice_and_a_relay_that_goes_to_sleep_differ() {
    let (mut comparison, _) = start(&[], LIMITS);
    assert_eq!(comparison.on_tick(999), NegStep::Continue);
    assert_eq!(comparison.on_tick(1_000), NegStep::Done(NegEnd::Silent));
    let (mut comparison, _) = start(&[], NegLimits { answer_ms: 9_000, ..LIMITS });
    assert_eq!(comparison.on_text(10, r#"["NOTICE","ERROR: negentropy disabled"]"#), NegStep::Continue);
    assert_eq!(comparison.deadline_ms(), 1_010);
    assert_eq!(comparison.on_tick(1_010), NegStep::Done(NegEnd::Unsupported));
    let all = events_at(0..2_000);
    let (mut comparison, text) = start(&all[..1_000], LIMITS);
    let answer = Server::new(&all, 0).answer(&text);
    assert!(matches!(comparison.on_text(500, &answer), NegStep::Send(_)));
    assert_eq!(comparison.on_tick(1_500), NegStep::Done(NegEnd::Timeout));
}

#[test]
fn a_relay_that_never_agrees_is_left() {
    let all = events_at(0..1_000);
    let (mut comparison, _) = start(&all, LIMITS);
    // Always another fingerprint of everything: every answer of ours splits the same range.
    let lie = format!(r#"["NEG-MSG","s","610000 01{}"]"#, "ab".repeat(16)).replace(' ', "");
    let end = (0..1_000).find_map(|at| match comparison.on_text(at, &lie) {
        NegStep::Done(end) => Some(end),
        _ => None,
    });
    assert_eq!(end, Some(NegEnd::Violation));
    assert!(comparison.rounds() <= 17);
    let (mut flooded, _) = start(&all, LIMITS);
    let end = (0..9_000).find_map(|_| match flooded.on_text(1, "x") {
        NegStep::Done(end) => Some(end),
        _ => None,
    });
    assert_eq!(end, Some(NegEnd::Violation));
}

#[test]
fn more_ids_than_we_take_is_too_many() {
    let limits = NegLimits { max_ids: 50, ..LIMITS };
    let (mut comparison, text) = start(&[], limits);
    let answer = Server::new(&events_at(0..100), 0).answer(&text);
    assert_eq!(comparison.on_text(1, &answer), NegStep::Done(NegEnd::TooMany { most: None }));
}

#[test]
fn replicas_cost_ids_only_and_what_is_gone_is_told() {
    let relay = events_at((0..300).map(|n| n * 10));
    let archived: HashMap<_, _> = relay.iter().skip(100).map(|(second, id)| (*id, *second)).collect();
    let mut ours = relay[..100].to_vec();
    ours.push((55, id(900_000)));
    let story = ModelRelay::honest(relay.clone()).reconcile(SPEC, &ours, &archived);
    assert_eq!(story.rest, Rest::None);
    assert_eq!(story.claimed.len(), 200);
    assert!(story.fetched.is_empty(), "nothing is downloaded");
    assert_eq!(story.gone.into_iter().collect::<Vec<_>>(), [id(900_000)]);
    // One probe below the set, one inside its widest gap, one in a part of it, one above it, and what is gone asked for once more.
    assert_eq!((story.comparisons, story.pages), (1, 5));
}

#[test]
fn a_silently_truncated_set_is_found_out_and_walked_down_by_windows() {
    let relay = events_at((0..1_000).map(|n| n * 5 + 3));
    let truncating = ModelRelay { truncates_at: 100, ..ModelRelay::honest(relay.clone()) };
    let story = truncating.clone().reconcile(SPEC, &[], &HashMap::new());
    assert_eq!(story.rest, Rest::None);
    assert!((0..=10_000).all(|second| story.proves(second)));
    assert!(relay.iter().all(|(_, id)| story.held.contains(id)));
    assert!(story.comparisons <= 12, "{} comparisons", story.comparisons);
    // All it compares lies in one second: there is no way down by comparing.
    let dense = events_at(std::iter::repeat_n(500, 200).chain(0..100));
    let story = ModelRelay { events: dense, ..truncating }.reconcile(SPEC, &[], &HashMap::new());
    assert_eq!(story.rest, Rest::Page { floor: 0, ceiling: 500 });
}

#[test]
fn a_relay_that_leaves_the_middle_out_is_found_out() {
    let relay = events_at((0..500).map(|n| n * 20));
    let hiding = ModelRelay { hides: Some((4_000, 6_000)), ..ModelRelay::honest(relay) };
    let story = hiding.clone().reconcile(SPEC, &[], &HashMap::new());
    assert_eq!(story.rest, Rest::Page { floor: 0, ceiling: 10_000 });
    assert!(story.claims.is_empty());
    let mute = ModelRelay { hides: Some((0, 10_000)), ..hiding };
    let story = mute.clone().reconcile(SPEC, &[], &HashMap::new());
    assert_eq!(story.rest, Rest::Page { floor: 0, ceiling: 10_000 }, "an empty set is asked for one event");
}

#[test]
fn a_window_too_large_for_the_relay_is_halved_and_grows_again() {
    let relay = events_at(0..2_000);
    let strict = ModelRelay { refuses_above: 300, ..ModelRelay::honest(relay.clone()) };
    let story = strict.clone().reconcile(SPEC, &[], &HashMap::new());
    assert_eq!(story.rest, Rest::None);
    assert!(relay.iter().all(|(_, id)| story.held.contains(id)));
    assert!(story.comparisons <= 30, "{} comparisons", story.comparisons);
    let nothing = ModelRelay { refuses_above: 0, ..strict };
    let story = ModelRelay { events: events_at([7]), ..nothing }.reconcile(
        ReconcileSpec { ceiling: 7, floor: 7, ..SPEC },
        &[],
        &HashMap::new(),
    );
    assert_eq!(story.rest, Rest::Page { floor: 7, ceiling: 7 }, "it compares nothing at all");
}

#[test]
fn a_second_that_is_refused_is_set_aside_and_too_many_of_them_leave_it_to_paging() {
    let dense = |seconds: std::ops::Range<i64>| {
        let crowd = seconds.flat_map(|second| std::iter::repeat_n(second, 40));
        ModelRelay {
            refuses_above: 30,
            ..ModelRelay::honest(events_at(crowd.chain(1_000..1_010).chain(100..110)))
        }
    };
    let story = dense(500..502).reconcile(SPEC, &[], &HashMap::new());
    assert_eq!((story.aside.as_slice(), story.rest), ([(501, 501), (500, 500)].as_slice(), Rest::None));
    assert!(story.proves(502) && story.proves(499) && !story.proves(500));
    let story = dense(500..510).reconcile(SPEC, &[], &HashMap::new());
    assert_eq!(
        (story.aside.as_slice(), story.rest),
        ([(509, 509), (508, 508)].as_slice(), Rest::Page { floor: 0, ceiling: 507 })
    );
    // One that compares nothing is not asked second by second.
    let refuses = ModelRelay { refuses_above: 0, ..ModelRelay::honest(events_at(0..50)) };
    let story = ModelRelay { neg_end: Some((0, NegEnd::TooMany { most: None })), ..refuses }.reconcile(
        SPEC,
        &[],
        &HashMap::new(),
    );
    assert_eq!(story.rest, Rest::Page { floor: 0, ceiling: 10_000 });
    assert!(story.comparisons <= 16, "{} comparisons", story.comparisons);
}

#[test]
fn what_is_too_much_by_itself_is_unserved_and_costs_nothing_else() {
    // Nothing in the middle, where the probe asks.
    let relay = events_at((0..300).map(|n| if n < 150 { n * 10 } else { n * 10 + 3_000 }));
    let heavy = ModelRelay { heavy: [57, 58, 200].map(id).into(), ..ModelRelay::honest(relay.clone()) };
    let story = heavy.clone().reconcile(SPEC, &[], &HashMap::new());
    assert_eq!((story.rest, story.unserved.len()), (Rest::None, 3));
    assert!((0..=10_000).all(|second| story.proves(second)));
    assert_eq!(relay.iter().filter(|(_, id)| story.held.contains(id)).count(), 297);
    assert!(story.pages <= 60, "{} pages", story.pages);
    // All of it: given up, and paged.
    let all = ModelRelay { heavy: relay.iter().map(|(_, id)| *id).collect(), ..heavy };
    let story = all.clone().reconcile(SPEC, &[], &HashMap::new());
    assert!(
        !matches!(story.rest, Rest::None) && story.pages <= 110,
        "{:?}, {} pages",
        story.rest,
        story.pages
    );
}

#[test]
fn what_is_claimed_and_never_served_is_told_and_too_much_of_it_is_no_proof() {
    let relay = events_at((0..2_000).map(|n| n * 5));
    let inventing = |count: usize| {
        let invents = (0..count).map(|n| (i64::try_from(n).unwrap() * 50, id(700_000 + n))).collect();
        ModelRelay { invents, ..ModelRelay::honest(relay.clone()) }
    };
    let story = inventing(5).reconcile(ReconcileSpec { max_items: 5_000, ..SPEC }, &[], &HashMap::new());
    assert_eq!((story.unserved.len(), story.proves(100)), (5, true));
    let ours = [(100, id(900_000))];
    let story = inventing(60).reconcile(ReconcileSpec { max_items: 5_000, ..SPEC }, &ours, &HashMap::new());
    assert_eq!((story.rest, story.claims.len()), (Rest::Page { floor: 0, ceiling: 10_000 }, 0));
    assert!(story.unserved.len() > 20 && story.gone.is_empty(), "{story:?}");
}

#[test]
fn a_small_page_cap_is_learnt_and_nothing_is_given_up_for_it() {
    let relay = events_at(0..400);
    let capped = ModelRelay { cap: 30, ..ModelRelay::honest(relay.clone()) };
    let story = capped.clone().reconcile(SPEC, &[], &HashMap::new());
    assert!(relay.iter().all(|(_, id)| story.held.contains(id)));
    assert!(story.unserved.is_empty());
    assert!(story.pages <= 17, "{} pages", story.pages);
}

#[test]
fn what_does_not_reconcile_is_left_to_paging_by_name() {
    let relay = ModelRelay::honest(events_at(0..10));
    for (end, rest) in [
        (NegEnd::Silent, Rest::Unsupported { floor: 0, ceiling: 10_000 }),
        (NegEnd::Unsupported, Rest::Unsupported { floor: 0, ceiling: 10_000 }),
        (NegEnd::Violation, Rest::Page { floor: 0, ceiling: 10_000 }),
        (NegEnd::Cut(Cut::Disconnected), Rest::Page { floor: 0, ceiling: 10_000 }),
        (
            NegEnd::Refused { class: CloseClass::RateLimited, message: String::new() },
            Rest::Stopped {
                floor: 0,
                ceiling: 10_000,
                grade: Grade::Unknown,
                reason: GapReason::RateLimited,
            },
        ),
    ] {
        let mut relay = ModelRelay { neg_end: Some((0, end)), ..relay.clone() };
        assert_eq!(relay.reconcile(SPEC, &[], &HashMap::new()).rest, rest);
    }
}

#[test]
fn an_answer_that_is_more_than_we_take_is_asked_for_in_less_time() {
    let mut planner = Reconcile::new(SPEC);
    let mut asked = Vec::new();
    while asked.len() < 3 {
        match planner.next() {
            Job::Items { .. } => drop(planner.on_items(Vec::new())),
            Job::Compare(filter) => {
                asked.push((filter.since, filter.until));
                planner.on_compared(NegEnd::Cut(Cut::Oversize));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(asked, [(Some(0), Some(10_000)), (Some(5_001), Some(10_000)), (Some(7_501), Some(10_000))]);
}

#[test]
fn ids_that_are_invented_are_not_asked_for_twice_once_the_claim_is_worth_nothing() {
    let tries = |invented: usize, real: usize| {
        let mut window = Window::new(0, 100);
        window.compared(Vec::new(), (0..invented + real).map(id).collect());
        window.begin_fetching();
        let mut requests = 0;
        while let Some(ids) = window.next_ids(400) {
            requests += 1;
            let known: Vec<EventId> = (invented..invented + real).map(id).collect();
            let came: Vec<(i64, EventId)> =
                ids.into_iter().filter(|id| known.contains(id)).map(|id| (50, id)).collect();
            window.fetched(&came, false);
        }
        (requests, window.unserved.len(), window.is_mostly_hollow())
    };
    // One in a hundred in vain is enough, where the others would have to come: 20 requests and not 2,000.
    assert_eq!(tries(20_000, 0), (50 + 20, 200, true));
    // A few among many are asked for twice, each.
    assert_eq!(tries(30, 4_000), (11 + 3, 30, false));
}
