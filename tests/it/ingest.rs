//! From what relays send to what the archive holds: forged bodies, classes that are not kept, deletions.

use std::time::Duration;

use nostr::event::Event;
use serde_json::Value;
use shared::clock;
use shared::jobs::{Ctx, JobsConfig};
use shared::models::{JobKind, RelayUrl, Unkept};
use tests::factory::Factory;
use tests::pg::TestDb;
use tests::scripted::{Script, ScriptedRelay, Stored};

use super::jobs::{config, context, known_relay, run};
use super::support::{migrated, pairs, value};

/// Everything a pass reads is read again by the next one.
fn again() -> JobsConfig {
    JobsConfig { rescan: Duration::from_hours(200), ..config() }
}

async fn serving(ctx: &Ctx, events: Vec<Stored>) -> (ScriptedRelay, RelayUrl) {
    let relay = ScriptedRelay::start(Script::of_stored(events, 500)).await;
    let url = known_relay(&ctx.db, &relay).await;
    (relay, url)
}

async fn sync(ctx: &Ctx, url: &RelayUrl) -> Value {
    run(ctx, JobKind::Sync, url.as_str()).await.unwrap()
}

fn stored(events: &[Event]) -> Vec<Stored> {
    events.iter().map(Stored::from).collect()
}

/// The same id, signature and author over another body.
fn forged(event: &Event) -> Stored {
    let mut value: Value = serde_json::from_str(&event.as_json()).unwrap();
    value["content"] = "forged".into();
    Stored::raw(value.to_string())
}

/// The event under a signature that is none.
fn signed_by_nobody(event: &Event) -> Stored {
    let mut value: Value = serde_json::from_str(&event.as_json()).unwrap();
    value["sig"] = "ab".repeat(64).into();
    Stored::raw(value.to_string())
}

async fn fates(test: &TestDb) -> Vec<(String, String)> {
    let sql = "SELECT fate::text, count(*)::text FROM event GROUP BY 1";
    pairs(test, sql).await.into_iter().collect()
}

fn rows(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(fate, n)| ((*fate).to_owned(), (*n).to_owned())).collect()
}

#[tokio::test]
async fn a_known_event_under_another_signature_is_read_in_full() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(31).events(200);
    let (_honest, honest) = serving(&ctx, stored(&events)).await;
    sync(&ctx, &honest).await;
    let mut lies = stored(&events);
    lies[50] = signed_by_nobody(&events[50]);
    lies[60] = signed_by_nobody(&events[60]);
    let (_liar, liar) = serving(&ctx, lies).await;
    let report = sync(&ctx, &liar).await;
    // The oldest event comes twice, to show that nothing is below it, and 49 in a sample, be it with or without the forged ones.
    let forged = report["forged_known"].as_u64().unwrap();
    assert!((2..=4).contains(&forged), "{report}");
    assert_eq!(report["known"].as_u64(), Some(199 + 49 + 2 - forged), "{report}");
    assert_eq!(report["new_observations"], 198);
    let said = value(&test, "SELECT string_agg(relay_url || ' ' || reason || ' ' || events || ' ' || known, ',') FROM relay_forgeries").await;
    assert_eq!(said, format!("{liar} bad_signature {forged} {forged}"));
    let gaps = value(
        &test,
        "SELECT count(*)::text FROM coverage c JOIN relay r ON r.id = c.relay_id WHERE reason = 'protocol' AND grade = 'partial'",
    )
    .await;
    assert_eq!(gaps, "2");
    let metrics = ctx.metrics.encode();
    assert!(metrics.contains(&format!(r#"outcome="forged_known"}} {forged}"#)), "{metrics}");
}

#[tokio::test]
async fn forged_bodies_under_known_ids_and_signatures_are_caught_by_the_sample() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(32).events(2_000);
    let (_honest, honest) = serving(&ctx, stored(&events)).await;
    sync(&ctx, &honest).await;
    let (_liar, liar) = serving(&ctx, events.iter().map(forged).collect()).await;
    let read = ctx.verifier.verified();
    let report = sync(&ctx, &liar).await;
    let caught = report["forged_known"].as_u64().unwrap();
    // One in 64 is 31; the frontier's events come twice.
    assert!((8..=80).contains(&caught), "{report}");
    assert_eq!(ctx.verifier.verified() - read, caught, "nothing else was read");
    assert_eq!(value(&test, "SELECT sum(known)::text FROM relay_forgery").await, caught.to_string());
    assert_eq!(value(&test, "SELECT count(*)::text FROM event WHERE content = 'forged'::bytea").await, "0");
}

#[tokio::test]
async fn where_no_signature_is_held_another_one_tells_nothing_and_the_sample_is_all_there_is() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let (factory, now) = (Factory::new(41), clock::unix_now() - 100);
    // Of a class that is not kept: a row without a body, as every row of a lightweight archive is.
    let events: Vec<Event> = (0..2_000)
        .map(|n| factory.sign(n % 50, 20_001, vec![], &n.to_string(), now - i64::try_from(n).unwrap()))
        .collect();
    let (_honest, honest) = serving(&ctx, stored(&events)).await;
    sync(&ctx, &honest).await;
    let (_liar, liar) = serving(&ctx, events.iter().map(signed_by_nobody).collect()).await;
    let report = sync(&ctx, &liar).await;
    let caught = report["forged_known"].as_u64().unwrap();
    assert!((8..=80).contains(&caught), "one in 64 is 31: {report}");
}

#[tokio::test]
async fn an_event_that_six_relays_have_is_read_once() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(33).events(400);
    let relays = futures_util::future::join_all((0..6).map(|_| serving(&ctx, stored(&events)))).await;
    for (_, url) in &relays {
        sync(&ctx, url).await;
    }
    let read = ctx.verifier.verified();
    assert!((400..600).contains(&read), "{read} texts read for 400 events on six relays");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_relay").await, "2400");
}

#[tokio::test]
async fn what_is_not_kept_is_known_and_never_fetched_for_its_body_again() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, again());
    let factory = Factory::new(34);
    let now = clock::unix_now() - 100;
    let tag = |name: &str, value: Option<i64>| {
        vec![std::iter::once(name.to_owned()).chain(value.map(|v| v.to_string())).collect()]
    };
    let events = vec![
        factory.sign(0, 1, vec![], "kept", now),
        factory.sign(1, 20_001, vec![], "ephemeral", now - 1),
        factory.sign(2, 4, vec![], "private", now - 2),
        factory.sign(3, 1_059, vec![], "wrapped", now - 3),
        factory.sign(4, 1, tag("-", None), "protected", now - 4),
        factory.sign(5, 1, tag("expiration", Some(now - 50)), "expired", now - 60),
        factory.sign(6, 1, tag("expiration", Some(now + 86_400)), "not yet", now - 7),
    ];
    let (_relay, url) = serving(&ctx, stored(&events)).await;
    let first = sync(&ctx, &url).await;
    let unkept = serde_json::json!({ "ephemeral": 1, "private": 2, "protected": 1, "expired": 1 });
    assert_eq!((&first["unkept"], &first["new_events"]), (&unkept, &2.into()), "{first}");
    assert_eq!(fates(&test).await, rows(&[("0", "2"), ("1", "4"), ("3", "1")]));
    assert_eq!(
        value(&test, "SELECT count(*)::text FROM event WHERE fate > 0 AND content IS NOT NULL").await,
        "0"
    );
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_relay").await, "7");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_unmined").await, "2");
    let second = sync(&ctx, &url).await;
    assert_eq!((&second["unkept"], &second["known"]), (&serde_json::json!({}), &8.into()), "{second}");
    let keeps = context(&test, JobsConfig { unkept: vec![Unkept::Private], ..again() });
    let other = Factory::new(35);
    let more = vec![other.sign(0, 20_001, vec![], "kept now", now), other.sign(1, 4, vec![], "not", now)];
    let (_two, two) = serving(&keeps, stored(&more)).await;
    assert_eq!(sync(&keeps, &two).await["unkept"], serde_json::json!({ "private": 1 }));
}

#[tokio::test]
async fn what_an_author_deletes_goes_and_does_not_come_back() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, again());
    let factory = Factory::new(36);
    let now = clock::unix_now() - 1_000;
    let tag = |name: &str, value: String| vec![name.to_owned(), value];
    let article = |n: &str, at: i64| factory.sign(0, 30_023, vec![tag("d", "x".into())], n, at);
    let author = factory.author(0).public_key().to_hex();
    let mine = factory.sign(0, 1, vec![], "mine", now);
    let late = factory.sign(0, 1, vec![], "mine, and late", now - 1);
    let others = factory.sign(1, 1, vec![], "another's", now);
    let (old, newer) = (article("old", now - 20), article("newer than the request", now + 20));
    let request = factory.sign(
        0,
        5,
        vec![
            tag("e", mine.id.to_hex()),
            tag("e", late.id.to_hex()),
            tag("e", others.id.to_hex()),
            tag("a", format!("30023:{author}:x")),
        ],
        "",
        now + 10,
    );
    let (relay, url) =
        serving(&ctx, stored(&[mine.clone(), others.clone(), old.clone(), newer.clone()])).await;
    sync(&ctx, &url).await;
    relay.set(Script::of_stored(stored(std::slice::from_ref(&request)), 500));
    sync(&ctx, &url).await;
    let bodies = "SELECT coalesce(string_agg(convert_from(content, 'UTF8'), ', ' ORDER BY created_at, kind, content), '') FROM event WHERE content IS NOT NULL AND kind <> 5";
    assert_eq!(value(&test, bodies).await, "old, another's, newer than the request", "by id at once");
    test.execute("UPDATE tombstone SET noted_at = now() - interval '1 hour'").await;
    sync(&ctx, &url).await;
    assert_eq!(value(&test, bodies).await, "another's, newer than the request", "by address in a round");
    assert_eq!(value(&test, "SELECT count(*)::text FROM tombstone WHERE settled < 2").await, "0");
    assert_eq!(value(&test, "SELECT count(*)::text FROM tombstone_round").await, "0");
    // A relay that has not heard of it serves all of it, and what we never saw.
    let older = article("an older version", now - 30);
    let everything = [mine, late, others, old, newer, older, request];
    let (_other, other) = serving(&ctx, stored(&everything)).await;
    let report = sync(&ctx, &other).await;
    assert_eq!(
        (&report["unkept"], &report["new_events"]),
        (&serde_json::json!({ "deleted": 2 }), &0.into()),
        "{report}"
    );
    assert_eq!(value(&test, bodies).await, "another's, newer than the request");
    assert_eq!(fates(&test).await, rows(&[("0", "3"), ("2", "4")]));
}

#[tokio::test]
async fn who_vanishes_is_forgotten_up_to_that_moment() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, again());
    let factory = Factory::new(37);
    let now = clock::unix_now() - 1_000;
    let vanish = |who: usize, relay: &str| {
        factory.sign(who, 62, vec![vec!["relay".to_owned(), relay.to_owned()]], "", now)
    };
    let events = [
        factory.sign(0, 1, vec![], "before", now - 10),
        factory.sign(0, 5, vec![vec!["e".to_owned(), "ab".repeat(32)]], "", now - 9),
        factory.sign(0, 1, vec![], "after", now + 10),
        factory.sign(1, 1, vec![], "left one relay only", now - 10),
        vanish(0, "ALL_RELAYS"),
        vanish(1, "wss://one.example"),
    ];
    let (relay, url) = serving(&ctx, stored(&events[..4])).await;
    sync(&ctx, &url).await;
    relay.set(Script::of_stored(stored(&events), 500));
    sync(&ctx, &url).await;
    test.execute("UPDATE tombstone SET noted_at = now() - interval '1 hour'").await;
    sync(&ctx, &url).await;
    let kept = "SELECT string_agg(kind || ' ' || convert_from(content, 'UTF8'), ', ' ORDER BY kind, content) FROM event WHERE fate = 0";
    assert_eq!(value(&test, kept).await, "1 after, 1 left one relay only, 62 , 62 ");
    assert_eq!(fates(&test).await, rows(&[("0", "4"), ("2", "2")]));
}
