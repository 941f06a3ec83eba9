//! Seconds with more events than a page, and relays that answer only requests that name kinds.

use nostr::event::Event;
use shared::clock;
use shared::jobs::{Ctx, JobsConfig};
use shared::models::{JobKind, RelayUrl};
use tests::factory::Factory;
use tests::pg::{Role, TestDb};
use tests::scripted::{Answer, Script, ScriptedRelay, Speech};

use super::jobs::{config, context, known_relay, run};
use super::support::{migrated, value};

/// A dense second, and a little of everything around it.
fn crowd(factory: &Factory, second: i64) -> Vec<Event> {
    let mut events = factory.dense(3_000, second);
    events.extend((0..20).map(|n| {
        factory.sign(n, 7, vec![], &format!("around {n}"), second - 305 + 30 * i64::try_from(n).unwrap())
    }));
    events
}

async fn relay(ctx: &Ctx, script: Script) -> (ScriptedRelay, RelayUrl) {
    let relay = ScriptedRelay::start(script).await;
    let url = known_relay(&ctx.db, &relay).await;
    (relay, url)
}

async fn gaps(test: &TestDb) -> String {
    value(test, "SELECT string_agg(grade || '/' || reason || ' ' || since_at || ' ' || until_at, ', ') FROM coverage WHERE grade NOT IN ('walked', 'finished', 'reconciled')").await
}

#[tokio::test]
async fn three_thousand_events_of_one_second_are_archived_and_the_second_stays_a_gap() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let second = clock::unix_now() - 86_400;
    let factory = Factory::new(41);
    // The kinds and authors are known from elsewhere: another relay's events.
    let before = factory.sign(0, 1, vec![], "known before", second - 5_000);
    let authors: Vec<Event> =
        (0..40).map(|n| factory.sign(n, 1, vec![], "about then", second + 60)).collect();
    let (_first, first) = relay(&ctx, Script::honest(authors.iter().chain([&before]), 500)).await;
    run(&ctx, JobKind::Sync, first.as_str()).await.unwrap();
    let (crowded, url) = relay(&ctx, Script::honest(&crowd(&factory, second), 500)).await;
    let report = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    let dense = "SELECT count(*)::text FROM event WHERE created_at = (SELECT since_at FROM coverage WHERE reason = 'dense_second')";
    let held = value(&test, dense).await;
    assert_eq!(held, "3000", "{report}");
    assert_eq!((&report["new_events"], &report["dense_seconds"]), (&3_020.into(), &1.into()), "{report}");
    assert_eq!(gaps(&test).await, format!("partial/dense_second {second} {second}"));
    let requests = crowded.counts().reqs;
    assert!(requests <= 60, "{requests} requests");
    assert!(crowded.requests().iter().any(|filter| filter["authors"].is_array()));
}

#[tokio::test]
async fn a_dense_second_is_split_again_when_it_is_asked_again() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, JobsConfig { rescan: std::time::Duration::ZERO, ..config() });
    let second = clock::unix_now() - 86_400;
    let factory = Factory::new(42);
    let events = crowd(&factory, second);
    // Nothing is known of its kind when it is met first.
    let (crowded, url) = relay(&ctx, Script::honest(&events, 500)).await;
    run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    let late = factory.sign(3, 1_111, vec![], "of a kind nobody knew", second);
    crowded.set(Script::honest(events.iter().chain([&late]), 500));
    let other = factory.sign(4, 1_111, vec![], "the kind is known now", second + 1_000);
    let (_two, two) = relay(&ctx, Script::honest([&other], 500)).await;
    run(&ctx, JobKind::Sync, two.as_str()).await.unwrap();
    test.execute("SELECT kind_counts_refresh()").await;
    let rests = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    assert_eq!(rests["dense_seconds"], 0, "{rests}");
    test.execute("UPDATE coverage SET observed_at = observed_at - 7 * 3600 WHERE reason = 'dense_second'")
        .await;
    let again = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    assert_eq!((&again["dense_seconds"], &again["new_events"]), (&1.into(), &1.into()), "{again}");
    assert_eq!(gaps(&test).await, format!("partial/dense_second {second} {second}"));
}

#[tokio::test]
async fn a_relay_that_wants_kinds_is_walked_by_kinds_and_never_counts_as_whole() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let factory = Factory::new(43);
    let mut events = factory.events(1_200);
    events.push(factory.sign(1, 30_999, vec![], "of a kind nobody asks for", clock::unix_now() - 500));
    let speech = Speech { needs_kinds: true, ..Speech::default() };
    let (picky, url) = relay(&ctx, Script::honest(&events, 500).speaking(speech)).await;
    run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap();
    let seen = value(&test, "SELECT measured -> 'without_kinds' ->> 'seen' FROM relay_capability").await;
    assert_eq!(seen, "refused");
    let report = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    assert_eq!((&report["new_events"], &report["end"]), (&1_200.into(), &"up to date".into()), "{report}");
    let classes = value(&test, "SELECT string_agg(DISTINCT class || ' ' || grade, ', ') FROM coverage").await;
    assert!(classes.starts_with("kinds:0,1,3,") && classes.ends_with(" walked"), "{classes}");
    assert!(!classes.contains("30999") && !classes.contains("all"), "{classes}");
    // What is learnt later does not change what the class means.
    let other = factory.sign(2, 30_998, vec![], "", clock::unix_now() - 400);
    let (_two, two) = relay(&ctx, Script::honest([&other], 500)).await;
    run(&ctx, JobKind::Sync, two.as_str()).await.unwrap();
    test.execute("SELECT kind_counts_refresh()").await;
    run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    let mut connection = test.connect(Role::Superuser).await;
    let distinct: i64 =
        sqlx::query_scalar("SELECT count(DISTINCT class) FROM coverage WHERE class LIKE 'kinds:%'")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    assert_eq!(distinct, 1);
    assert!(picky.requests().iter().rev().take(3).all(|filter| filter["kinds"].is_array()));
}

#[tokio::test]
async fn every_author_of_a_dense_second_is_asked_for_however_crowded_the_hour_is() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let second = 1_700_000_000_i64;
    // 50,100 events of one author in the half hour before it, three authors in it.
    test.execute(&format!(
        "INSERT INTO event (event_key, created_at, kind, id, pubkey)
         SELECT (({second}::bigint - 1 - n % 1700) << 31) | n, {second} - 1 - n % 1700, 1, sha256(n::text::bytea), decode(repeat('aa', 32), 'hex')
         FROM generate_series(1, 50100) n;
         INSERT INTO event (event_key, created_at, kind, id, pubkey)
         SELECT ({second}::bigint << 31) | n, {second}, 1, sha256(n::text::bytea), decode(repeat('0' || n, 32), 'hex') FROM generate_series(1, 3) n;
         INSERT INTO rollup_author (events, first_at, last_at, kinds, on_clearnet, on_tor, on_i2p, on_loki, pubkey)
         VALUES (5, 1, 1, 1, 0, 0, 0, 0, decode(repeat('bb', 32), 'hex')), (9, 1, 1, 1, 0, 0, 0, 0, decode(repeat('cc', 32), 'hex'))"
    ))
    .await;
    let authors =
        |known: shared::db::DenseFacts| -> Vec<u8> { known.authors.iter().map(|author| author[0]).collect() };
    assert_eq!(authors(ctx.db.dense_facts(second, 10, 5).await.unwrap()), [1, 2, 3, 0xaa, 0xcc]);
    assert_eq!(authors(ctx.db.dense_facts(second, 10, 2).await.unwrap()), [1, 2]);
}

/// Notes pages of 500, as of requests that name kinds, which are larger.
async fn survey_of_500(test: &TestDb) {
    test.execute(
        r#"INSERT INTO relay_capability (relay_id, measured_at, measured) SELECT id, 1, '{"nip42":"none",
        "nip45":{"seen":"untested","by":"nothing","words":""},"nip50":{"seen":"untested","by":"nothing","words":""},
        "nip67":"untested","nip77":{"seen":"untested","by":"nothing","words":""},
        "without_kinds":{"seen":"works","by":"eose","words":""},"until":"inclusive","max_limit":null,
        "default_limit":null,"above_brings_less":null,"page_max":500,"requests":1,"ended":"none"}' FROM relay"#,
    )
    .await;
}

#[tokio::test]
async fn a_dense_second_that_is_read_alone_is_no_proof_where_pages_are_smaller_than_the_survey_saw() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, JobsConfig { rescan: std::time::Duration::ZERO, ..config() });
    let second = clock::unix_now() - 86_400;
    let factory = Factory::new(44);
    let mut events = factory.dense(150, second);
    events.extend((0..150).map(|n| {
        factory.sign(n, 7, vec![], &format!("around {n}"), second - 3_050 + 40 * i64::try_from(n).unwrap())
    }));
    let (_relay, url) = relay(&ctx, Script::honest(&events, 100)).await;
    survey_of_500(&test).await;
    for pass in 0..3 {
        run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
        assert_eq!(gaps(&test).await, format!("partial/dense_second {second} {second}"), "pass {pass}");
        test.execute(
            "UPDATE coverage SET observed_at = observed_at - 7 * 3600 WHERE reason = 'dense_second'",
        )
        .await;
    }
}

#[tokio::test]
async fn each_pass_that_splits_has_a_number_of_its_own() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let second = clock::unix_now() - 86_400;
    let (_crowded, url) = relay(&ctx, Script::honest(&crowd(&Factory::new(45), second), 500)).await;
    for round in ["1", "2"] {
        run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
        assert_eq!(value(&test, "SELECT dense_round::text FROM relay_sync").await, round);
        test.execute(
            "UPDATE coverage SET observed_at = observed_at - 7 * 3600 WHERE reason = 'dense_second'",
        )
        .await;
    }
}

#[tokio::test]
async fn a_pass_that_is_interrupted_does_not_forget_that_a_second_is_dense() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, JobsConfig { rescan: std::time::Duration::ZERO, ..config() });
    let second = clock::unix_now() - 86_400;
    let factory = Factory::new(46);
    let mut events = factory.dense(150, second);
    events.extend((0..150).map(|n| {
        factory.sign(n, 7, vec![], &format!("around {n}"), second - 3_050 + 40 * i64::try_from(n).unwrap())
    }));
    let (crowded, url) = relay(&ctx, Script::honest(&events, 100)).await;
    survey_of_500(&test).await;
    let dense = format!("partial/dense_second {second} {second}");
    run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    assert_eq!(gaps(&test).await, dense);
    // It has rested, and is in turn, when the relay refuses what is newer.
    for (closing, end) in [(true, "rate limited"), (false, "up to date")] {
        test.execute(
            "UPDATE coverage SET observed_at = observed_at - 7 * 3600 WHERE reason = 'dense_second'",
        )
        .await;
        let script = Script::honest(&events, 100);
        crowded.set(if closing { script.closing(0, "rate-limited: slow down") } else { script });
        let report = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
        assert_eq!(report["end"], end, "{report}");
        assert!(gaps(&test).await.contains(&dense), "{end}: {}", gaps(&test).await);
    }
    assert_eq!(gaps(&test).await, dense);
}

#[tokio::test]
async fn dense_seconds_take_turns_as_they_are_begun_however_few_they_are() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, JobsConfig { rescan: std::time::Duration::ZERO, ..config() });
    let factory = Factory::new(47);
    let newer = clock::unix_now() - 86_400;
    let older = newer - 10_000;
    let mut events = factory.dense(150, newer);
    events.extend(factory.dense(150, older));
    let (slow, url) = relay(&ctx, Script::honest(&events, 100)).await;
    let below = "SELECT coalesce(dense_below::text, 'none') FROM relay_sync";
    run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    // The one that was begun last, and that with which the next pass begins, before it asks for anything of it.
    for (last, next) in [(newer, older), (older, newer)] {
        test.execute(&format!("UPDATE relay_sync SET dense_below = {last}")).await;
        test.execute(
            "UPDATE coverage SET observed_at = observed_at - 48 * 3600 WHERE reason = 'dense_second'",
        )
        .await;
        let before = slow.requests().len();
        let watch = async {
            for _ in 0..2_000 {
                let requests = slow.requests();
                if let Some(part) = requests[before..].iter().find(|filter| filter["kinds"].is_array()) {
                    return (part["since"].as_i64().unwrap(), value(&test, below).await);
                }
                // bound: 2,000 × 5 ms
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            panic!("nothing was split")
        };
        slow.set(Script::honest(&events, 100).answering(Answer::LateEose(100)));
        let (report, seen) = tokio::join!(run(&ctx, JobKind::Sync, url.as_str()), watch);
        assert_eq!(seen, (next, next.to_string()), "{report:?}");
    }
}
