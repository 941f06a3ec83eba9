//! Relays that stop serving and go on to say EOSE: what was not read stays unproved.

use std::time::Duration;

use nostr::event::Event;
use shared::clock;
use shared::jobs::{Ctx, JobsConfig};
use shared::models::{Coverage, RelayUrl};
use tests::factory::Factory;
use tests::pg::TestDb;
use tests::scripted::{Answer, Script};

use super::jobs::{config, context};
use super::proof::{RESTED, gaps, held, second, start, sync};
use super::support::{migrated, value};

/// So many notes, a minute apart, from a while ago down.
fn notes(seed: u64, count: usize) -> Vec<Event> {
    let factory = Factory::new(seed);
    let now = clock::unix_now() - 1_000;
    let at = |n: usize| now - 60 * i64::try_from(n).unwrap();
    (0..count).map(|n| factory.sign(n, 1, vec![], &format!("note {n}"), at(n))).collect()
}

async fn coverage(ctx: &Ctx, url: &RelayUrl) -> Coverage {
    let relay = ctx.db.relay_get(url, "test").await.unwrap().unwrap();
    ctx.db.coverage_get(relay.id, "all").await.unwrap()
}

fn proved(coverage: &Coverage, event: &Event) -> bool {
    coverage.at(second(event)).is_some_and(|known| known.grade().is_proof())
}

async fn rest(test: &TestDb) {
    test.execute(&format!("UPDATE coverage SET observed_at = observed_at - {RESTED}")).await;
}

#[tokio::test]
async fn a_relay_that_falls_silent_within_a_pass_proves_no_more_than_it_served() {
    for (seed, words, gap) in [(301, "", "partial/not_served"), (302, "have a nice day", "unknown/closed")] {
        let Some(test) = migrated().await else { return };
        let ctx = context(&test, config());
        let events = notes(seed, 300);
        let script = Script::honest(&events, 50);
        let (relay, url) = start(&ctx, script.answering(Answer::MuteFrom(4, words.to_owned()))).await;
        let report = sync(&ctx, &url).await;
        let known = coverage(&ctx, &url).await;
        assert!((145..=150).contains(&report["new_events"].as_u64().unwrap()), "{report}");
        assert!(events[200..].iter().all(|event| !proved(&known, event)), "{known:?}");
        // But for the widest gap and the sample, a dozen events, which it no longer answered for.
        assert!(events[..140].iter().filter(|event| proved(&known, event)).count() >= 122, "{known:?}");
        assert!(gaps(&test).await.starts_with(gap), "{}", gaps(&test).await);
        // Speaking again, it is read to the end once the gap has rested.
        relay.set(Script::honest(&events, 50));
        rest(&test).await;
        sync(&ctx, &url).await;
        let known = coverage(&ctx, &url).await;
        assert!(events.iter().all(|event| proved(&known, event)), "{known:?}");
        assert_eq!(held(&test).await, "300");
    }
}

#[tokio::test]
async fn a_relay_that_is_silent_for_whole_passes_proves_nothing_that_was_never_read() {
    // Who does not even hand out by id what is held of it is believed to have lost it, the second time.
    for (serves_ids, passes) in [(true, 3), (false, 1)] {
        let Some(test) = migrated().await else { return };
        let ctx = context(&test, config());
        let mut events = notes(303, 300);
        // Nothing that is watched for lies where the first pass breaks off.
        let factory = Factory::new(304);
        for (n, event) in events.iter_mut().enumerate().skip(95).take(10) {
            *event = factory.sign(n, 10_002, vec![], "", second(event));
        }
        let (relay, url) =
            start(&ctx, Script::honest(&events, 50).closing(3, "rate-limited: slow down")).await;
        let report = sync(&ctx, &url).await;
        assert!((95..=101).contains(&report["new_events"].as_u64().unwrap()), "{report}");
        relay.set(Script::honest(&events, 50).answering(Answer::Mute(serves_ids)));
        for pass in 0..passes {
            sync(&ctx, &url).await;
            let known = coverage(&ctx, &url).await;
            assert!(events[110..].iter().all(|event| !proved(&known, event)), "pass {pass}: {known:?}");
            rest(&test).await;
        }
        relay.set(Script::honest(&events, 50));
        sync(&ctx, &url).await;
        assert_eq!(held(&test).await, "300");
        let known = coverage(&ctx, &url).await;
        assert!(events.iter().all(|event| proved(&known, event)), "{known:?}");
    }
}

/// As if all had been read up to ten minutes before it was.
const FORGET: &str =
    "UPDATE coverage SET until_at = until_at - 600; UPDATE relay_revisit SET until_at = 4000000000";
/// Whether it is proved up to about now.
const NEWEST: &str = "SELECT (max(until_at) FILTER (WHERE grade = 'walked') >= extract(epoch FROM now()) - 60)::text FROM coverage";

#[tokio::test]
async fn that_a_quiet_relay_has_nothing_new_is_believed_once_it_was_heard() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, JobsConfig { rescan: Duration::from_secs(60), ..config() });
    let events = notes(305, 30);
    let (relay, url) = start(&ctx, Script::honest(&events, 50)).await;
    sync(&ctx, &url).await;
    test.execute(FORGET).await;
    let before = relay.counts().reqs;
    sync(&ctx, &url).await;
    assert_eq!(
        (value(&test, NEWEST).await, relay.counts().reqs - before),
        ("true".to_owned(), 2),
        "{:?}",
        relay.requests()
    );
    test.execute(FORGET).await;
    relay.set(Script::honest(&events, 50).answering(Answer::Mute(false)));
    for _ in 0..3 {
        sync(&ctx, &url).await;
        assert_eq!(value(&test, NEWEST).await, "false", "{}", gaps(&test).await);
    }
    relay.set(Script::honest(&events, 50));
    sync(&ctx, &url).await;
    assert_eq!(value(&test, NEWEST).await, "true", "{}", gaps(&test).await);
}

#[tokio::test]
async fn a_relay_that_keeps_a_month_is_listened_for_where_it_still_has_something() {
    let Some(test) = migrated().await else { return };
    let ctx =
        context(&test, JobsConfig { rescan: Duration::from_secs(60), archive_days: Some(365), ..config() });
    // One a day; of 330 that are held it keeps the newest thirty.
    let factory = Factory::new(306);
    let now = clock::unix_now() - 1_000;
    let at = |n: usize| now - 86_400 * i64::try_from(n).unwrap();
    let events: Vec<Event> =
        (0..330).map(|n| factory.sign(n, 1, vec![], &format!("day {n}"), at(n))).collect();
    let (relay, url) = start(&ctx, Script::honest(&events, 500)).await;
    sync(&ctx, &url).await;
    test.execute(FORGET).await;
    relay.set(Script::honest(&events[..30], 500));
    let before = relay.counts().reqs;
    let report = sync(&ctx, &url).await;
    assert_eq!(
        (value(&test, NEWEST).await, relay.counts().reqs - before),
        ("true".to_owned(), 2),
        "{report} {:?}",
        relay.requests()
    );
}

#[tokio::test]
async fn a_relay_that_falls_silent_before_a_stretch_is_read_again_has_lost_nothing_of_it() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, JobsConfig { rescan: Duration::from_secs(60), ..config() });
    // In five days, so that there is something of every age.
    let factory = Factory::new(307);
    let now = clock::unix_now() - 1_000;
    let at = |n: usize| now - 1_200 * i64::try_from(n).unwrap();
    let events: Vec<Event> =
        (0..300).map(|n| factory.sign(n, 1, vec![], &format!("note {n}"), at(n))).collect();
    let (relay, url) = start(&ctx, Script::honest(&events, 500)).await;
    sync(&ctx, &url).await;
    // A while ago, so that all but the newest is old enough to be read again.
    test.execute("UPDATE relay_revisit SET until_at = until_at - 345600").await;
    test.execute("UPDATE coverage SET until_at = until_at - 600").await;
    let marks = "SELECT string_agg(age_s || ' ' || until_at, ',' ORDER BY age_s) FROM relay_revisit";
    let before = (value(&test, marks).await, relay.counts().reqs);
    // It answers what is newest, and that it is heard outside, and from there on nothing.
    relay.set(Script::honest(&events, 500).answering(Answer::MuteFrom(before.1 + 3, String::new())));
    let report = sync(&ctx, &url).await;
    assert!(report["delivered"].as_u64() >= Some(1) && relay.counts().reqs > before.1 + 3, "{report}");
    assert_eq!((&report["gone"], value(&test, marks).await), (&0.into(), before.0.clone()), "{report}");
    let known = coverage(&ctx, &url).await;
    assert!(events.iter().all(|event| proved(&known, event)), "what was read before stands: {known:?}");
    // What it does not have any more, it says by being heard elsewhere.
    relay.set(Script::honest(&events[..5], 500));
    let report = sync(&ctx, &url).await;
    assert!(report["gone"].as_u64() > Some(0), "{report}");
    assert_ne!(value(&test, marks).await, before.0, "{report}");
}
