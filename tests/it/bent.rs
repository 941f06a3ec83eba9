//! Relays that leave out in order, end a page for somebody else, look at no `until` or no `ids`, or take no long range.

use std::collections::HashSet;
use std::time::Duration;

use nostr::event::Event;
use serde_json::Value;
use shared::clock;
use shared::models::JobKind;
use tests::factory::Factory;
use tests::pg::TestDb;
use tests::scripted::{Answer, Balk, Script, Speech};

use super::jobs::{config, context, run};
use super::support::{migrated, value};
use super::walked::{known_authors, relay, sync};

const DAY_S: i64 = 86_400;

/// Events whose second is proved although they are not held, and those that are held.
async fn lost_and_held(test: &TestDb, events: &[Event]) -> (usize, usize) {
    let held = value(test, "SELECT string_agg(encode(id, 'hex'), ' ') FROM event").await;
    let held: HashSet<&str> = held.split(' ').collect();
    let proved = "SELECT string_agg(since_at || ' ' || until_at, ',') FROM coverage WHERE grade IN ('walked', 'finished', 'reconciled')";
    let proved = value(test, proved).await;
    let proved: Vec<(i64, i64)> = proved
        .split(',')
        .filter_map(|range| range.split_once(' '))
        .map(|(since, until)| (since.parse().unwrap(), until.parse().unwrap()))
        .collect();
    let missing = events.iter().filter(|event| !held.contains(hex::encode(event.id.as_bytes()).as_str()));
    let missing: Vec<i64> = missing.map(|event| i64::try_from(event.created_at.as_secs()).unwrap()).collect();
    let is_proved = |at: &&i64| proved.iter().any(|(since, until)| (since..=until).contains(at));
    (missing.iter().filter(is_proved).count(), events.len() - missing.len())
}

/// What the timeline is, but for the seconds by which the floor moved.
async fn grades(test: &TestDb) -> String {
    let sql = "SELECT coalesce(string_agg(DISTINCT grade || '/' || reason, ', '), '') FROM coverage WHERE until_at - since_at > 600";
    value(test, sql).await
}

fn week(seed: u64, count: usize) -> Vec<Event> {
    Factory::new(seed).over(6 * DAY_S).events(count)
}

#[tokio::test]
async fn a_sorted_part_of_what_a_relay_has_is_found_out_read_whole_and_not_proved_till_it_is_honest() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    // It was away for two days, which is the widest gap of any page.
    let mut events = week(801, 300);
    events.drain(100..200);
    let (relay, url) = relay(&ctx, Script::honest(&events, 100).answering(Answer::SortedSubset(3))).await;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["new_events"], &report["end"]), (&200.into(), &"up to date".into()), "{report}");
    assert_eq!((&report["proved_share"], grades(&test).await), (&0.0.into(), "partial/not_served".into()));
    assert!(relay.counts().reqs <= 60, "{}", relay.counts().reqs);
    // Not before the gap has rested, but for the newest hour.
    let before = relay.counts().reqs;
    sync(&ctx, &url).await;
    assert!(relay.counts().reqs - before <= 12, "{}", relay.counts().reqs - before);
    relay.set(Script::honest(&events, 100));
    test.execute("UPDATE coverage SET observed_at = observed_at - 7 * 3600").await;
    let report = sync(&ctx, &url).await;
    assert_eq!(
        (&report["proved_share"], grades(&test).await),
        (&1.0.into(), "walked/none".into()),
        "{report}"
    );
}

#[tokio::test]
async fn what_pages_lack_in_their_middle_is_read_in_less_time() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = week(802, 300);
    let (_relay, url) = relay(&ctx, Script::honest(&events, 100).answering(Answer::DropMiddle)).await;
    let report = sync(&ctx, &url).await;
    let (lost, held) = lost_and_held(&test, &events).await;
    // Pages of ten and more lack a third however little is asked for: what is left is a gap, all of it.
    assert_eq!((lost, grades(&test).await), (0, "partial/not_served".into()), "{held}: {report}");
    assert!(held > 200, "{held}: {report}");
}

#[tokio::test]
async fn whatever_a_relay_does_to_its_pages_no_event_is_lost_behind_a_proof() {
    let ignoring = |field| Speech { ignores: vec![field], ..Speech::default() };
    let rows = [
        ("eose of another", Answer::EoseOfAnother, Speech::default(), 30),
        ("cut", Answer::CutSlow(20_000), Speech::default(), 10),
        ("no until", Answer::Serve, ignoring("until"), 30),
        ("no since", Answer::Serve, ignoring("since"), 30),
        ("no ids", Answer::Serve, ignoring("ids"), 120),
    ];
    for (name, answer, speech, least) in rows {
        let Some(test) = migrated().await else { return };
        let ctx = context(&test, config());
        let events = week(803, 120);
        let script = Script::honest(&events, 50).answering(answer).speaking(speech);
        let (relay, url) = relay(&ctx, script).await;
        let report = sync(&ctx, &url).await;
        let (lost, held) = lost_and_held(&test, &events).await;
        assert!(lost == 0 && held >= least, "{name}: {lost} lost, {held} held: {report}");
        assert!(relay.counts().reqs < 40, "{name}: {:?}", relay.counts());
    }
}

#[tokio::test]
async fn a_relay_that_looks_at_no_ids_is_not_asked_for_them_without_end() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = week(804, 120);
    let honest = Script::honest(&events, 50);
    let (relay, url) = relay(&ctx, honest.clone()).await;
    sync(&ctx, &url).await;
    // What it deleted is asked for by id, and what comes is something else.
    let speech = Speech { ignores: vec!["ids"], ..Speech::default() };
    relay.set(Script::honest(&events[..100], 50).speaking(speech));
    test.execute("DELETE FROM coverage").await;
    let before = relay.counts().reqs;
    let report = sync(&ctx, &url).await;
    assert!(relay.counts().reqs - before < 20, "{:?}", relay.counts());
    assert_eq!(report["new_events"], 0, "{report}");
}

#[tokio::test]
async fn a_relay_that_takes_no_long_range_is_read_by_shorter_ones() {
    let words = Balk::Closed("error: time range too large".to_owned());
    for balk in [words, Balk::Silent] {
        let Some(test) = migrated().await else { return };
        let ctx = context(&test, config());
        let events = week(805, 60);
        let speech = Speech { widest: Some((DAY_S, balk)), ..Speech::default() };
        let (relay, url) = relay(&ctx, Script::honest(&events, 500).speaking(speech)).await;
        let report = sync(&ctx, &url).await;
        assert_eq!((&report["new_events"], &report["end"]), (&60.into(), &"up to date".into()), "{report}");
        assert_eq!(report["proved_share"], 1.0, "{report}");
        assert!(relay.counts().reqs <= 150, "{:?}", relay.counts());
    }
}

#[tokio::test]
async fn a_class_that_is_never_answered_keeps_no_other_from_its_turn() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let factories: Vec<Factory> = (810..815).map(Factory::new).collect();
    let _elsewhere = known_authors(&ctx, &factories, 40).await;
    let now = clock::unix_now() - 500;
    let note = |n: usize| factories[n / 40].sign(n % 40, 1, vec![], "here", now - i64::try_from(n).unwrap());
    let events: Vec<Event> = (0..200).map(note).collect();
    let speech = Speech { needs_one_of: vec!["authors"], ..Speech::default() };
    let (picky, url) = relay(&ctx, Script::honest(&events, 500).speaking(speech.clone())).await;
    run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap();
    sync(&ctx, &url).await;
    let batches = "SELECT count(*)::text FROM relay_batch";
    assert_eq!(value(&test, batches).await, "2");
    // The first is never answered any more, and nothing is known of either.
    let key =
        value(&test, "SELECT encode(pubkeys[1], 'hex') FROM relay_batch ORDER BY begun_at, class LIMIT 1");
    picky.set(Script::honest(&events, 500).speaking(Speech { stuck: vec![key.await], ..speech }));
    test.execute("DELETE FROM coverage WHERE class LIKE 'authors:%'").await;
    let report: Value = sync(&ctx, &url).await;
    assert_eq!(report["end"], "interrupted", "{report}");
    let classes =
        "SELECT string_agg(DISTINCT grade, ' ' ORDER BY grade) FROM coverage WHERE class LIKE 'authors:%'";
    assert_eq!(value(&test, classes).await, "unknown walked");
}

#[tokio::test]
async fn a_relay_that_never_answers_is_asked_ever_more_seldom() {
    let Some(test) = migrated().await else { return };
    let ctx =
        context(&test, shared::jobs::JobsConfig { sync_interval: Duration::from_secs(900), ..config() });
    let events = week(806, 30);
    let (silent, url) = relay(&ctx, Script::honest(&events, 50).answering(Answer::Silent)).await;
    test.execute("INSERT INTO schedule SELECT 'sync', url, 'clearnet', now(), 60, 'new' FROM relay").await;
    let slack = "SELECT slack_s || ' ' || why FROM schedule WHERE kind = 'sync'";
    let mut slacks = Vec::new();
    for _ in 0..3 {
        sync(&ctx, &url).await;
        slacks.push(value(&test, slack).await);
    }
    assert_eq!(slacks, ["75 interrupted", "150 interrupted", "300 interrupted"]);
    silent.set(Script::honest(&events, 50));
    sync(&ctx, &url).await;
    silent.set(Script::honest(&events, 50).answering(Answer::Silent));
    sync(&ctx, &url).await;
    assert_eq!(value(&test, slack).await, "75 interrupted", "it begins anew");
}
