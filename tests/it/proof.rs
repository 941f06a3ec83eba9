//! What a proof rests on, and what is not lost when a relay gives more than we take, refuses, or changes between two passes.

use std::time::Duration;

use nostr::event::Event;
use serde_json::Value;
use shared::jobs::{Ctx, Egress, JobsConfig};
use shared::models::{AddressPolicy, JobKind, RelayUrl};
use tests::factory::Factory;
use tests::pg::{Role, TestDb};
use tests::scripted::{Answer, Endless, Extra, Script, ScriptedRelay, Sets, Speech};

use super::jobs::{config, context, known_relay, run};
use super::support::{migrated, value};

/// A little more than a gap rests, seconds.
pub(crate) const RESTED: i64 = 6 * 3_600 + 60;

pub(crate) async fn start(ctx: &Ctx, script: Script) -> (ScriptedRelay, RelayUrl) {
    let relay = ScriptedRelay::start(script).await;
    let url = known_relay(&ctx.db, &relay).await;
    (relay, url)
}

pub(crate) async fn sync(ctx: &Ctx, url: &RelayUrl) -> Value {
    run(ctx, JobKind::Sync, url.as_str()).await.unwrap()
}

pub(crate) fn second(event: &Event) -> i64 {
    i64::try_from(event.created_at.as_secs()).unwrap()
}

/// Every gap as grade, reason, first second and number of seconds, ascending.
pub(crate) async fn gaps(test: &TestDb) -> String {
    value(
        test,
        "SELECT coalesce(string_agg(grade || '/' || reason || ' ' || since_at || '+' || (until_at - since_at + 1), ', ' ORDER BY since_at), '')
         FROM coverage WHERE grade NOT IN ('walked', 'finished', 'reconciled')",
    )
    .await
}

async fn grades(test: &TestDb) -> String {
    value(test, "SELECT string_agg(DISTINCT grade || '/' || reason, ', ') FROM coverage").await
}

pub(crate) async fn held(test: &TestDb) -> String {
    value(test, "SELECT count(*)::text FROM event WHERE fate = 0").await
}

/// Notes of a relay that it compares sets and serves pages of so many, as a survey would.
async fn compares(test: &TestDb, url: &RelayUrl, page_max: usize) {
    let record = format!(
        r#"{{"nip42":"none","nip45":{{"seen":"untested","by":"nothing","words":""}},
        "nip50":{{"seen":"untested","by":"nothing","words":""}},"nip67":"untested",
        "nip77":{{"seen":"works","by":"neg_msg","words":""}},
        "without_kinds":{{"seen":"works","by":"eose","words":""}},"until":"inclusive","max_limit":null,
        "default_limit":null,"above_brings_less":null,"page_max":{page_max},"requests":1,"ended":"none"}}"#
    );
    let mut connection = test.connect(Role::Superuser).await;
    sqlx::query(
        "INSERT INTO relay_capability (relay_id, measured_at, measured) SELECT id, 1, $2::jsonb FROM relay WHERE url = $1",
    )
    .bind(url.as_str())
    .bind(record)
    .execute(&mut connection)
    .await
    .unwrap();
}

pub(crate) async fn start_comparing(
    test: &TestDb,
    ctx: &Ctx,
    script: Script,
    negentropy: Extra,
    sets: Sets,
) -> (ScriptedRelay, RelayUrl) {
    let (relay, url) = start(ctx, script.speaking(Speech { negentropy, sets, ..Speech::default() })).await;
    compares(test, &url, 1_000).await;
    (relay, url)
}

#[tokio::test]
async fn twenty_dense_seconds_are_split_in_three_rounds() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, JobsConfig { rescan: Duration::ZERO, ..config() });
    let factory = Factory::new(201);
    let now = shared::clock::unix_now();
    let mut events = Vec::new();
    for n in 0..20 {
        let at = now - 5_000 - 100 * n;
        for i in 0..60 {
            let kind = if i % 2 == 0 { 1 } else { 7 };
            events.push(factory.sign(i, kind, vec![], &format!("{n} {i}"), at));
        }
        events.push(factory.sign(0, 1, vec![], &format!("between {n}"), at - 50));
    }
    let (_relay, url) = start(&ctx, Script::honest(&events, 50)).await;
    for (round, split) in [8, 8, 8].into_iter().enumerate() {
        let report = sync(&ctx, &url).await;
        assert_eq!(report["dense_seconds"], split, "{report}");
        if round < 2 {
            assert_ne!(held(&test).await, events.len().to_string(), "round {round}");
        }
        test.execute(&format!(
            "UPDATE coverage SET observed_at = observed_at - {RESTED} WHERE reason = 'dense_second'"
        ))
        .await;
    }
    assert_eq!(held(&test).await, events.len().to_string());
    let seconds = value(&test, "SELECT count(*)::text FROM coverage WHERE reason = 'dense_second'").await;
    assert_eq!(seconds, "20");
}

#[tokio::test]
async fn a_second_that_is_proved_and_then_found_to_be_cut_is_a_gap() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let factory = Factory::new(202);
    let at = shared::clock::unix_now() - 600;
    let mut events: Vec<Event> =
        (0..15).map(|i| factory.sign(i, 1, vec![], &format!("early {i}"), at)).collect();
    events.extend((0..30).map(|i| {
        factory.sign(i, 1, vec![], &format!("around {i}"), at - 300 + 20 * i64::try_from(i).unwrap())
    }));
    let (relay, url) = start(&ctx, Script::honest(&events, 50)).await;
    sync(&ctx, &url).await;
    assert_eq!(gaps(&test).await, "");
    let imported = factory.dense(300, at);
    relay.set(Script::honest(events.iter().chain(&imported), 50));
    let report = sync(&ctx, &url).await;
    assert_eq!(gaps(&test).await, format!("partial/dense_second {at}+1"), "{report}");
    assert_eq!(report["dense_seconds"], 1, "{report}");
}

#[tokio::test]
async fn a_second_reading_that_fails_does_not_count_as_one() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(203).events(200);
    let (late, early): (Vec<_>, Vec<_>) = events.iter().enumerate().partition(|(n, _)| n % 20 == 19);
    let script = Script::honest(early.iter().map(|(_, event)| *event), 500);
    let (relay, url) = start(&ctx, script.clone()).await;
    sync(&ctx, &url).await;
    test.execute("UPDATE relay_revisit SET until_at = until_at - 345600").await;
    // What is late has come, and the relay answers whatever it is asked with the newest it has.
    relay.set(Script { answer: Answer::IgnoreFilter, ..Script::honest(&events, 30) });
    sync(&ctx, &url).await;
    relay.set(Script::honest(&events, 500));
    sync(&ctx, &url).await;
    assert_eq!(held(&test).await, (late.len() + early.len()).to_string());
}

#[tokio::test]
async fn an_event_larger_than_a_frame_costs_its_second_and_nothing_older() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let factory = Factory::new(204);
    let events = factory.events(300);
    let at = second(&events[40]) - 7;
    let huge = factory.sign(0, 1, vec![], &"x".repeat(3 << 20), at);
    let (relay, url) = start(&ctx, Script::honest(events.iter().chain([&huge]), 100)).await;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["new_events"], &report["end"]), (&300.into(), &"up to date".into()), "{report}");
    assert_eq!(gaps(&test).await, format!("partial/oversize {at}+1"), "{report}");
    assert!(relay.counts().reqs <= 60, "{:?}", relay.counts());
    // It rests, and then costs one request.
    test.execute(&format!(
        "UPDATE coverage SET observed_at = observed_at - {RESTED} WHERE reason = 'oversize'"
    ))
    .await;
    let before = relay.counts().reqs;
    sync(&ctx, &url).await;
    assert!(relay.counts().reqs - before <= 8, "{} requests", relay.counts().reqs - before);
    assert_eq!(gaps(&test).await, format!("partial/oversize {at}+1"));
}

#[tokio::test]
async fn of_a_relay_that_compares_an_event_larger_than_a_frame_is_unserved() {
    let Some(test) = migrated().await else { return };
    // Three million bytes take their time on a busy machine.
    let (page_idle, page_total) = (Duration::from_secs(10), Duration::from_secs(60));
    let ctx = context(&test, JobsConfig { page_idle, page_total, ..config() });
    let factory = Factory::new(205);
    let events = factory.events(300);
    let huge = factory.sign(0, 1, vec![], &"x".repeat(3 << 20), second(&events[40]) - 7);
    let script = Script::honest(events.iter().chain([&huge]), 500);
    let (relay, url) = start_comparing(&test, &ctx, script, Extra::Works, Sets::default()).await;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["new_events"], &report["unserved"]), (&300.into(), &1.into()), "{report}");
    assert_eq!((&report["end"], grades(&test).await.as_str()), (&"up to date".into(), "reconciled/none"));
    assert_eq!(value(&test, "SELECT encode(event_id, 'hex') FROM event_unserved").await, huge.id.to_hex());
    assert!(relay.counts().reqs <= 40, "{:?}", relay.counts());
}

#[tokio::test]
async fn a_relay_that_ignores_the_limit_is_read_in_shorter_windows() {
    let Some(test) = migrated().await else { return };
    // Six thousand events at once take their time on a busy machine.
    let (page_idle, page_total) = (Duration::from_secs(10), Duration::from_secs(60));
    let ctx = context(&test, JobsConfig { page_idle, page_total, ..config() });
    let events = Factory::new(206).events(6_000);
    // Asked for more than ten it gives all there is.
    let speech = Speech { above_cap: Some(100_000), ..Speech::default() };
    let (relay, url) = start(&ctx, Script::honest(&events, 10).speaking(speech)).await;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["new_events"], &report["end"]), (&6_000.into(), &"up to date".into()), "{report}");
    assert_eq!((gaps(&test).await.as_str(), &report["proved_share"]), ("", &1.0.into()), "{report}");
    assert!(relay.counts().reqs <= 20, "{:?}", relay.counts());
}

#[tokio::test]
async fn a_relay_that_refuses_every_comparison_as_too_many_is_paged() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(207).events(300);
    let refuses = Extra::NegErr("blocked: too many open sessions".to_owned());
    let (relay, url) =
        start_comparing(&test, &ctx, Script::honest(&events, 500), refuses, Sets::default()).await;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["new_events"], &report["proved_share"]), (&300.into(), &1.0.into()), "{report}");
    assert_eq!(grades(&test).await, "walked/none");
    assert!(relay.counts().extras <= 40, "{:?}", relay.counts());
}

#[tokio::test]
async fn a_second_that_a_relay_does_not_compare_and_serves_in_one_page_is_paged() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, JobsConfig { page_limit: 1_000, ..config() });
    let factory = Factory::new(208);
    let events = factory.events(300);
    let at = second(&events[100]) - 7;
    let dense = factory.dense(600, at);
    let sets = Sets { refuses_above: Some(500), ..Sets::default() };
    let script = Script::honest(events.iter().chain(&dense), 1_000);
    let (_relay, url) = start_comparing(&test, &ctx, script, Extra::Works, sets).await;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["new_events"], &report["proved_share"]), (&900.into(), &1.0.into()), "{report}");
    let paged = value(&test, "SELECT string_agg(since_at || '+' || (until_at - since_at + 1), ',') FROM coverage WHERE grade = 'walked'").await;
    assert_eq!((paged, &report["dense_seconds"]), (format!("{at}+1"), &0.into()), "{report}");
}

#[tokio::test]
async fn a_relay_whose_rounds_never_end_is_paged() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(231).events(300);
    // The fingerprint of nothing at all, for ever; and each time an id that does not exist before it.
    for (endless, most) in [(Endless::Barren, 20), (Endless::Drip, 400)] {
        let sets = Sets { endless, ..Sets::default() };
        let script = Script::honest(&events, 500);
        let (relay, url) = start_comparing(&test, &ctx, script, Extra::Works, sets).await;
        let report = sync(&ctx, &url).await;
        assert_eq!(
            (&report["new_observations"], &report["end"]),
            (&300.into(), &"up to date".into()),
            "{report}"
        );
        assert_eq!((&report["proved_share"], grades(&test).await), (&1.0.into(), "walked/none".into()));
        assert_eq!((&report["comparisons"], &report["unserved"]), (&1.into(), &0.into()), "{report}");
        assert!((10..=most).contains(&relay.counts().rounds), "{endless:?}: {:?}", relay.counts());
    }
}

#[tokio::test]
async fn a_relay_that_lists_what_it_hands_out_to_nobody_is_paged() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(209).events(300);
    let wraps = (0..200_u8).map(|n| (second(&events[usize::from(n)]), [n.wrapping_add(1); 32])).collect();
    let sets = Sets { invents: wraps, ..Sets::default() };
    let (_relay, url) = start_comparing(&test, &ctx, Script::honest(&events, 500), Extra::Works, sets).await;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["new_events"], &report["proved_share"]), (&300.into(), &1.0.into()), "{report}");
    assert_eq!((grades(&test).await.as_str(), &report["gone"]), ("walked/none", &0.into()), "{report}");
    assert!(report["unserved"].as_u64() > Some(10), "{report}");
}

#[tokio::test]
async fn who_refuses_what_a_comparison_showed_is_asked_again_as_who_refuses() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(210).events(50);
    let script = Script::honest(&events, 500).closing(0, "auth-required: who are you");
    let (_relay, url) = start_comparing(&test, &ctx, script, Extra::Works, Sets::default()).await;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["end"], grades(&test).await.as_str()), (&"refused".into(), "refused/auth_required"));
}

#[tokio::test]
async fn a_relay_that_takes_no_second_connection_is_noted_as_gone_only_where_our_own_way_works() {
    let Some(test) = migrated().await else { return };
    let works = context(&test, config());
    // Nobody listens there.
    let canary = RelayUrl::parse("ws://127.0.0.1:9", &AddressPolicy::local()).unwrap();
    let fails = Ctx { egress: Egress::new(vec![canary]), ..context(&test, config()) };
    let factory = Factory::new(211);
    let huge = factory.sign(0, 1, vec![], &"x".repeat(3 << 20), shared::clock::unix_now() - 900);
    for (ctx, comparing, gap) in [
        (&works, false, "unknown/disconnected"),
        (&works, true, "unknown/disconnected"),
        (&fails, false, "unknown/stopped"),
        (&fails, true, "unknown/stopped"),
    ] {
        test.execute("TRUNCATE coverage").await;
        let script = Script { answer: Answer::LateEose(300), ..Script::honest([&huge], 100) };
        let extra = if comparing { Extra::Works } else { Extra::Unknown };
        let (relay, url) = start_comparing(&test, ctx, script.clone(), extra.clone(), Sets::default()).await;
        if !comparing {
            test.execute("DELETE FROM relay_capability").await;
        }
        let closes = async {
            for _ in 0..500 {
                if relay.counts().reqs > 0 {
                    break;
                }
                // bound: 500 × 10 ms
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let speech = Speech { negentropy: extra, ..Speech::default() };
            relay.set(Script { refuse_upgrade: Some(503), ..script.speaking(speech) });
        };
        let pass = sync(ctx, &url);
        let (report, ()) = tokio::join!(pass, closes);
        assert_eq!(report["end"], "interrupted", "comparing: {comparing}: {report}");
        assert_eq!(grades(&test).await, gap, "comparing: {comparing}");
    }
}
