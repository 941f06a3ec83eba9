//! The planner against a relay that holds one second and caps its pages.

use proptest::prelude::*;

use super::*;
use crate::models::EventId;

const SECOND: i64 = 1_700_000_000;

#[derive(Debug, Clone)]
struct Held {
    facts: EnvelopeFacts,
    mentioned: Vec<[u8; 32]>,
}

fn name(n: u8) -> [u8; 32] {
    [n; 32]
}

fn small(n: usize) -> u8 {
    u8::try_from(n).unwrap()
}

fn held(n: usize, kind: u16, author: u8, mentioned: &[u8]) -> Held {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&(n as u64).to_be_bytes());
    let facts = EnvelopeFacts { id: EventId(id), created_at: SECOND, kind, pubkey: name(author) };
    Held { facts, mentioned: mentioned.iter().map(|n| name(*n)).collect() }
}

fn serve<'a>(events: &'a [Held], filter: &Filter, cap: usize) -> Vec<&'a Held> {
    let wanted = |event: &&Held| {
        filter.matches(&event.facts)
            && (filter.mentioned.is_empty()
                || event.mentioned.iter().any(|key| filter.mentioned.contains(key)))
    };
    let limit = filter.limit.map_or(cap, |limit| cap.min(limit as usize));
    events.iter().filter(wanted).take(limit).collect()
}

struct Outcome {
    ids: HashSet<EventId>,
    requests: u32,
    unsplit: u32,
}

fn drive(events: &[Held], cap: usize, kinds: Vec<u16>, authors: Vec<[u8; 32]>, max_requests: u32) -> Outcome {
    let spec = DenseSpec {
        second: SECOND,
        limit: 500,
        page_shown: cap,
        kinds,
        authors,
        max_requests,
        until_exclusive: false,
    };
    let mut plan = Dense::new(spec);
    let mut ids = HashSet::new();
    while let Some(filter) = plan.next() {
        assert_eq!(plan.next().as_ref(), Some(&filter), "asked again until it is answered");
        assert!(filter.kinds.len() <= KINDS_PER_REQUEST && filter.authors.len() <= PER_REQUEST);
        let page = serve(events, &filter, cap);
        ids.extend(page.iter().map(|event| event.facts.id));
        let facts: Vec<EnvelopeFacts> = page.iter().map(|event| event.facts).collect();
        let mentions: Vec<[u8; 32]> = page.iter().flat_map(|event| event.mentioned.clone()).collect();
        plan.on_page(&facts, &mentions, true);
    }
    Outcome { ids, requests: plan.requests(), unsplit: plan.unsplit() }
}

#[test]
fn three_thousand_events_of_one_kind_are_found_by_author() {
    let events: Vec<Held> = (0..3_000).map(|n| held(n, 1, small(n % 40), &[])).collect();
    let outcome = drive(&events, 500, (0..120).collect(), (0..40).map(name).collect(), 200);
    assert_eq!((outcome.ids.len(), outcome.unsplit), (3_000, 0));
    assert!(outcome.requests <= 40, "{}", outcome.requests);
}

#[test]
fn authors_that_turn_up_on_the_way_are_asked_for() {
    let events: Vec<Held> = (0..600).map(|n| held(n, 1, small(n / 5), &[])).collect();
    let outcome = drive(&events, 50, vec![1], Vec::new(), 1_000);
    assert_eq!(outcome.ids.len(), 50, "nobody but the authors of the first page is known");
    let known = drive(&events, 50, vec![1], (60..80).map(name).collect(), 1_000);
    assert_eq!(known.ids.len(), 50 + 100);
}

#[test]
fn one_author_is_split_by_whom_he_mentions() {
    let events: Vec<Held> = (0..900).map(|n| held(n, 1_059, 1, &[small(n % 30)])).collect();
    let outcome = drive(&events, 300, vec![1_059], Vec::new(), 200);
    assert_eq!(outcome.ids.len(), 900);
    assert_eq!(outcome.unsplit, 1, "what mentions nobody could not be asked for");
}

#[test]
fn a_page_without_eose_ends_its_part() {
    let spec = DenseSpec {
        second: SECOND,
        limit: 10,
        page_shown: 10,
        kinds: vec![1],
        authors: Vec::new(),
        max_requests: 9,
        until_exclusive: false,
    };
    let mut plan = Dense::new(spec);
    assert!(plan.next().is_some());
    plan.on_page(&[], &[], false);
    assert_eq!((plan.next(), plan.unsplit(), plan.requests()), (None, 1, 1));
}

#[test]
fn an_exclusive_until_is_sent_raised() {
    for (until_exclusive, until) in [(false, SECOND), (true, SECOND + 1)] {
        let spec = DenseSpec {
            second: SECOND,
            limit: 10,
            page_shown: 10,
            kinds: vec![1],
            authors: Vec::new(),
            max_requests: 9,
            until_exclusive,
        };
        let filter = Dense::new(spec).next().unwrap();
        assert_eq!((filter.since, filter.until), (Some(SECOND), Some(until)));
    }
}

proptest! {
    #[test]
    fn it_ends_within_its_bound_and_misses_nothing_it_knows_the_names_of(
        shape in prop::collection::vec((0_u16..8, 0_u8..12, 0_u8..4), 1..400), cap in 1_usize..60, max in 1_u32..400,
    ) {
        let events: Vec<Held> =
            shape.iter().enumerate().map(|(n, (kind, author, other))| held(n, *kind, *author, &[*other])).collect();
        let bounded = drive(&events, cap, (0..8).collect(), (0..12).map(name).collect(), max);
        prop_assert!(bounded.requests <= max);
        let free = drive(&events, cap, (0..8).collect(), (0..12).map(name).collect(), 100_000);
        prop_assert!(free.requests < 3_000);
        if free.unsplit == 0 {
            prop_assert_eq!(free.ids.len(), events.len());
        }
    }
}
