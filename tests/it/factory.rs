//! The factory's events are real, the same at every run, and none drives out another.

use std::collections::BTreeSet;

use nostr::event::Event;
use tests::factory::Factory;
use tests::hostile;

const END: i64 = 1_790_000_000;

fn factory(seed: u64) -> Factory {
    Factory::new(seed).ending_at(END)
}

#[test]
fn same_seed_gives_the_same_events_and_another_gives_others() {
    let once: Vec<String> = factory(1).events(60).iter().map(Event::as_json).collect();
    let again: Vec<String> = factory(1).events(60).iter().map(Event::as_json).collect();
    assert_eq!(once, again);
    assert_ne!(once[0], factory(2).events(1)[0].as_json());
}

#[test]
fn events_are_distinct_signed_newest_first_and_within_the_span() {
    let events = factory(3).over(1_000).events(500);
    let ids: BTreeSet<_> = events.iter().map(|event| event.id).collect();
    assert_eq!(ids.len(), events.len());
    for event in &events {
        event.verify().unwrap();
    }
    assert!(events.windows(2).all(|pair| pair[0].created_at >= pair[1].created_at));
    assert_eq!(events[0].created_at.as_secs(), END.unsigned_abs());
    assert!(events[499].created_at.as_secs() >= END.unsigned_abs() - 1_000);
}

#[test]
fn no_event_replaces_another() {
    let events = factory(4).events(2_000);
    let replaceable =
        events.iter().filter(|event| event.kind.is_replaceable() || event.kind.is_addressable());
    let addresses: Vec<_> =
        replaceable.map(|event| (event.pubkey, event.kind, event.tags.identifier())).collect();
    let distinct: BTreeSet<_> = addresses.iter().collect();
    assert!(!addresses.is_empty());
    assert_eq!(distinct.len(), addresses.len());
}

#[test]
fn valid_hostile_events_verify() {
    for (trap, event) in hostile::valid(&factory(5), END) {
        assert!(event.verify().is_ok(), "{trap}");
        assert_eq!(Event::from_json(event.as_json()).unwrap().id, event.id, "{trap}");
    }
}

#[test]
fn forged_events_fail_each_in_its_own_way() {
    let event = &factory(6).events(1)[0];
    let bad_id = Event::from_json(hostile::with_bad_id(event)).unwrap();
    assert!(!bad_id.verify_id());
    let bad_signature = Event::from_json(hostile::with_bad_signature(event)).unwrap();
    assert!(bad_signature.verify_id() && !bad_signature.verify_signature());
}
