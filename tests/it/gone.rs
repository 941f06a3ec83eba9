//! What a stretch that is read again and proved whole lacks of what was seen there before.

use std::time::Duration;

use nostr::event::Event;
use shared::clock;
use shared::jobs::JobsConfig;
use shared::models::JobKind;
use tests::factory::Factory;
use tests::scripted::{Answer, Script, Speech};

use super::jobs::{config, context, run};
use super::proof::{gaps, start, sync};
use super::support::{migrated, value};
use super::walked::known_authors;

/// Everything a pass reads is read again by the next one.
fn again() -> JobsConfig {
    JobsConfig { rescan: Duration::from_hours(200), ..config() }
}

/// So many events, a minute apart, newest first; every third is addressable.
fn mixed(seed: u64, count: usize) -> Vec<Event> {
    let factory = Factory::new(seed);
    let now = clock::unix_now() - 1_000;
    let one = |n: usize| {
        let (kind, tags) = if n.is_multiple_of(3) {
            (30_023, vec![vec!["d".to_owned(), n.to_string()]])
        } else {
            (1, vec![])
        };
        factory.sign(n, kind, tags, &format!("event {n}"), now - 60 * i64::try_from(n).unwrap())
    };
    (0..count).map(one).collect()
}

#[tokio::test]
async fn what_a_relay_deleted_of_a_stretch_that_is_read_again_is_gone_all_of_it_and_comes_back() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, again());
    let events = mixed(401, 300);
    let (relay, url) = start(&ctx, Script::honest(&events, 500)).await;
    sync(&ctx, &url).await;
    let stays = |(n, event)| (n % 3 != 1 && n % 30 != 0).then_some(event);
    let kept: Vec<&Event> = events.iter().enumerate().filter_map(stays).collect();
    assert_eq!(kept.len(), 190);
    // What ends by anything but proof tells nothing.
    let refuses = relay.counts().reqs + 3;
    relay.set(Script::honest(kept.clone(), 50).closing(refuses, "error: not now"));
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["gone"], &report["end"]), (&0.into(), &"interrupted".into()), "{report}");
    relay.set(Script::honest(kept, 50));
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["gone"], &report["proved_share"]), (&110.into(), &1.0.into()), "{report}");
    let gone = "SELECT count(*) || ' ' || count(*) FILTER (WHERE e.kind = 30023) FROM event_gone g JOIN event e USING (event_key)";
    assert_eq!(value(&test, gone).await, "110 10");
    let (asked, again) = (relay.counts().reqs, sync(&ctx, &url).await);
    assert_eq!(again["gone"], 0, "told once: {again}");
    assert!(relay.requests()[usize::try_from(asked).unwrap()..].iter().all(|filter| filter["ids"].is_null()));
    relay.set(Script::honest(&events, 50));
    sync(&ctx, &url).await;
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_gone").await, "0");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_relay").await, "300");
}

#[tokio::test]
async fn one_event_that_is_handed_out_by_id_and_left_out_of_the_pages_takes_back_what_they_proved() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, again());
    let events = mixed(402, 41);
    let (relay, url) = start(&ctx, Script::honest(&events, 500)).await;
    sync(&ctx, &url).await;
    assert_eq!(gaps(&test).await, "");
    // None of those that are watched for: they are the oldest, and every fourth from there.
    let hidden = events[38].id.to_hex();
    relay.set(Script::honest(&events, 500).answering(Answer::ByIdOnly(vec![hidden.clone()])));
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["gone"], &report["proved_share"]), (&0.into(), &0.0.into()), "{report}");
    assert!(gaps(&test).await.starts_with("partial/not_served"), "{}", gaps(&test).await);
    // With one that it had just served.
    let served = events[40].id.to_hex();
    assert_eq!(relay.requests().last().unwrap()["ids"], serde_json::json!([hidden, served]));
}

#[tokio::test]
async fn what_is_replaced_and_still_handed_out_by_id_is_neither_gone_nor_hidden() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, again());
    let mut events = mixed(403, 41);
    let (relay, url) = start(&ctx, Script::honest(&events, 500)).await;
    sync(&ctx, &url).await;
    let replaced = events[39].id.to_hex();
    events.remove(38);
    relay.set(Script::honest(&events, 500).answering(Answer::ByIdOnly(vec![replaced])));
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["gone"], &report["proved_share"]), (&1.into(), &1.0.into()), "{report}");
    assert_eq!(
        value(&test, "SELECT e.kind::text FROM event_gone g JOIN event e USING (event_key)").await,
        "1"
    );
}

#[tokio::test]
async fn of_a_relay_that_is_read_by_authors_only_what_these_wrote_can_be_gone() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, again());
    let factories: Vec<Factory> = (404..408).map(Factory::new).collect();
    let _elsewhere = known_authors(&ctx, &factories, 40).await;
    let now = clock::unix_now() - 500;
    let note = |n: usize| {
        let (author, at) = (n % 160, now - 60 * i64::try_from(n).unwrap());
        factories[author / 40].sign(author % 40, 1, vec![], &format!("note {n}"), at)
    };
    let mut events: Vec<Event> = (0..320).map(note).collect();
    let speech = Speech { needs_one_of: vec!["authors"], ..Speech::default() };
    let (relay, url) = start(&ctx, Script::honest(&events, 500).speaking(speech.clone())).await;
    run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap();
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["new_events"], &report["end"]), (&200.into(), &"up to date".into()), "{report}");
    // Others wrote what was seen there too, somehow.
    test.execute(
        "INSERT INTO event_relay (event_key, seen_at, relay_id) SELECT e.event_key, 1, (SELECT max(relay_id) FROM event_relay)
         FROM event e WHERE NOT EXISTS (SELECT FROM relay_batch b WHERE e.pubkey = ANY (b.pubkeys)) LIMIT 20",
    )
    .await;
    let theirs = value(
        &test,
        "SELECT max(encode(e.id, 'hex')) FROM event e JOIN relay_batch b ON e.pubkey = ANY (b.pubkeys) WHERE e.content LIKE 'note%'",
    )
    .await;
    events.retain(|event| event.id.to_hex() != theirs);
    relay.set(Script::honest(&events, 500).speaking(speech));
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["gone"], &report["end"]), (&1.into(), &"up to date".into()), "{report}");
    let gone = "SELECT encode(e.id, 'hex') FROM event_gone g JOIN event e USING (event_key)";
    assert_eq!(value(&test, gone).await, theirs);
}

#[tokio::test]
async fn of_a_relay_that_hands_out_nothing_by_id_nothing_is_gone() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, again());
    let mut events = mixed(409, 41);
    let (relay, url) = start(&ctx, Script::honest(&events, 500)).await;
    sync(&ctx, &url).await;
    // None of those that are watched for.
    events.remove(38);
    let speech = Speech { hides_ids: true, ..Speech::default() };
    relay.set(Script::honest(&events, 500).speaking(speech));
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["gone"], &report["proved_share"]), (&0.into(), &1.0.into()), "{report}");
    assert!(relay.requests().last().unwrap()["ids"].is_array());
    relay.set(Script::honest(&events, 500));
    assert_eq!(sync(&ctx, &url).await["gone"], 1);
}
