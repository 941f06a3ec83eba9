//! Reconciliation (NIP-77) end to end: a real relay program, scripted ones that bend their sets, a real database.

use nostr::event::Event;
use serde_json::Value;
use shared::jobs::{Ctx, JobsConfig};
use shared::models::{AddressPolicy, JobKind, RelayUrl};
use tests::factory::Factory;
use tests::pg::{Role, TestDb};
use tests::programs::{Kind, Program};
use tests::publish::publish;
use tests::scripted::{Answer, Extra, Script, ScriptedRelay, Sets, Speech, Stored};

use super::cli::bigbrotr;
use super::jobs::{config, context, known_relay, run};
use super::support::{migrated, pairs, value};

fn reconciling(sets: Sets) -> Speech {
    Speech { negentropy: Extra::Works, sets, ..Speech::default() }
}

/// Notes of a relay that it reconciles, as a survey would.
async fn measured(test: &TestDb, url: &RelayUrl) {
    let record = r#"{"nip42":"none","nip45":{"seen":"untested","by":"nothing","words":""},
        "nip50":{"seen":"untested","by":"nothing","words":""},"nip67":"untested",
        "nip77":{"seen":"works","by":"neg_msg","words":""},
        "without_kinds":{"seen":"works","by":"eose","words":""},"until":"inclusive","max_limit":null,
        "default_limit":null,"above_brings_less":null,"page_max":500,"requests":1,"ended":"none"}"#;
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

async fn scripted(test: &TestDb, ctx: &Ctx, events: &[Event], sets: Sets) -> (ScriptedRelay, RelayUrl) {
    let relay = ScriptedRelay::start(Script::honest(events, 500).speaking(reconciling(sets))).await;
    let url = known_relay(&ctx.db, &relay).await;
    measured(test, &url).await;
    (relay, url)
}

async fn sync(ctx: &Ctx, url: &RelayUrl) -> Value {
    run(ctx, JobKind::Sync, url.as_str()).await.unwrap()
}

/// The coverage of one relay as `grade/reason` with the share of seconds it has, largest first.
async fn grades(test: &TestDb, url: &RelayUrl) -> String {
    let mut connection = test.connect(Role::Superuser).await;
    sqlx::query_scalar(
        "SELECT coalesce(string_agg(DISTINCT c.grade || '/' || c.reason, ', '), '') FROM coverage c
         JOIN relay r ON r.id = c.relay_id WHERE r.url = $1",
    )
    .bind(url.as_str())
    .fetch_one(&mut connection)
    .await
    .unwrap()
}

#[tokio::test]
async fn a_relay_program_is_surveyed_reconciled_and_then_costs_next_to_nothing() {
    let Some(test) = migrated().await else { return };
    let Some(program) = Program::start(Kind::Local).await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(7).events(2_000);
    assert_eq!(publish(&program.url, &events).await.unwrap().accepted.len(), 2_000);
    let url = RelayUrl::parse(&program.url, &AddressPolicy::local()).unwrap();
    ctx.db.relay_insert(&[(url.clone(), 1)]).await.unwrap();
    run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap();
    let first = sync(&ctx, &url).await;
    assert_eq!((&first["new_events"], &first["end"]), (&2_000.into(), &"up to date".into()), "{first}");
    assert!(first["comparisons"].as_u64() >= Some(1), "{first}");
    assert_eq!(first["proved_share"], 1.0);
    assert_eq!(grades(&test, &url).await, "reconciled/none");
    let second = sync(&ctx, &url).await;
    assert_eq!((&second["new_events"], &second["new_observations"]), (&0.into(), &0.into()), "{second}");
    let (bytes, before) = (second["bytes"].as_u64().unwrap(), first["bytes"].as_u64().unwrap());
    assert!(bytes * 100 <= before, "{bytes} bytes after {before}");
}

#[tokio::test]
async fn replicas_cost_their_ids_and_are_noted_as_claimed() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(8).events(1_500);
    let (_one, one_url) = scripted(&test, &ctx, &events, Sets::default()).await;
    let (two, two_url) = scripted(&test, &ctx, &events[..1_200], Sets::default()).await;
    sync(&ctx, &one_url).await;
    let second = sync(&ctx, &two_url).await;
    assert_eq!(second["new_observations"], 1_200, "{second}");
    assert_eq!(second["new_events"], 0);
    assert!(two.counts().events_sent <= 20, "only probes are answered: {:?}", two.counts());
    assert!(two.counts().bytes_out < 200_000, "{:?}", two.counts());
    let evidence =
        pairs(&test, "SELECT relay_url || ' ' || evidence, count(*)::text FROM event_presence GROUP BY 1")
            .await;
    assert_eq!(evidence[&format!("{one_url} delivered")], "1500");
    assert_eq!(evidence[&format!("{two_url} claimed")], "1200");
    assert_eq!(grades(&test, &two_url).await, "reconciled/none");
}

#[tokio::test]
async fn what_a_relay_lets_go_is_noted_and_what_comes_back_is_forgiven() {
    let Some(test) = migrated().await else { return };
    let week = JobsConfig { rescan: std::time::Duration::from_hours(200), ..config() };
    let ctx = context(&test, week);
    let events = Factory::new(9).events(300);
    let (relay, url) = scripted(&test, &ctx, &events, Sets::default()).await;
    sync(&ctx, &url).await;
    let kept: Vec<&Event> = events.iter().enumerate().filter(|(n, _)| n % 10 != 3).map(|(_, e)| e).collect();
    relay.set(Script::honest(kept, 500).speaking(reconciling(Sets::default())));
    let report = sync(&ctx, &url).await;
    assert_eq!(report["gone"], 30, "{report}");
    assert_eq!(
        value(&test, "SELECT count(*)::text FROM event_presence WHERE gone_at IS NOT NULL").await,
        "30"
    );
    let again = sync(&ctx, &url).await;
    assert_eq!(again["gone"], 0, "told once: {again}");
    relay.set(Script::honest(&events, 500).speaking(reconciling(Sets::default())));
    sync(&ctx, &url).await;
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_gone").await, "0");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_relay").await, "300");
}

#[tokio::test]
async fn bent_sets_are_found_out_and_nothing_is_missing() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(10).events(900);
    let at = |n: usize| i64::try_from(events[n].created_at.as_secs()).unwrap();
    let bent = [
        ("truncated", Sets { truncates_at: Some(100), ..Sets::default() }, "reconciled/none"),
        ("too many", Sets { refuses_above: Some(150), ..Sets::default() }, "reconciled/none"),
        ("hidden", Sets { hides: Some((at(500), at(300))), ..Sets::default() }, "walked/none"),
        ("empty", Sets { truncates_at: Some(0), ..Sets::default() }, "walked/none"),
    ];
    for (name, sets, grade) in bent {
        let (_relay, url) = scripted(&test, &ctx, &events, sets).await;
        let report = sync(&ctx, &url).await;
        assert_eq!(report["new_observations"], 900, "{name}: {report}");
        assert_eq!(report["proved_share"], 1.0, "{name}: {report}");
        assert_eq!(grades(&test, &url).await, grade, "{name}");
    }
    assert_eq!(value(&test, "SELECT count(*)::text FROM event").await, "900");
}

#[tokio::test]
async fn ids_that_are_claimed_and_never_served_are_kept_by_name() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(11).events(600);
    let newest = i64::try_from(events[0].created_at.as_secs()).unwrap();
    let invents = (0..4_u8).map(|n| (newest - i64::from(n) * 1_000, [n + 1; 32])).collect();
    let (_relay, url) = scripted(&test, &ctx, &events, Sets { invents, ..Sets::default() }).await;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["unserved"], &report["new_events"]), (&4.into(), &600.into()), "{report}");
    let ids =
        value(&test, "SELECT string_agg(DISTINCT left(encode(event_id, 'hex'), 2), ',') FROM event_unserved")
            .await;
    assert_eq!(ids, "01,02,03,04");
    assert_eq!(grades(&test, &url).await, "reconciled/none");
}

#[tokio::test]
async fn a_relay_that_does_not_reconcile_after_all_is_walked_and_not_asked_for_a_week() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(12).events(200);
    for refusal in
        [Extra::Unknown, Extra::NegErr("unsupported: no".into()), Extra::Notice("negentropy disabled".into())]
    {
        let speech = Speech { negentropy: refusal.clone(), ..Speech::default() };
        let relay = ScriptedRelay::start(Script::honest(&events, 500).speaking(speech)).await;
        let url = known_relay(&ctx.db, &relay).await;
        measured(&test, &url).await;
        let report = sync(&ctx, &url).await;
        assert_eq!(report["new_observations"], 200, "{refusal:?}: {report}");
        assert_eq!(grades(&test, &url).await, "walked/none", "{refusal:?}");
        assert_eq!(relay.counts().extras, 1);
        sync(&ctx, &url).await;
        assert_eq!(relay.counts().extras, 1, "{refusal:?}: asked again");
    }
}

#[tokio::test]
async fn a_forged_event_fetched_by_its_id_leaves_a_gap_of_its_second_and_its_id_unserved() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(13).events(100);
    let second = events[40].created_at.as_secs();
    // With its own time, and with another one: as the list has it, and as the body says.
    let mut dated: Value = serde_json::from_str(&events[40].as_json()).unwrap();
    dated["created_at"] = 1.into();
    for (forged, reason, at) in [
        (tests::hostile::with_bad_signature(&events[40]), "bad_signature", second),
        (dated.to_string(), "bad_id", 1),
    ] {
        let mut stored: Vec<Stored> = events.iter().map(Stored::from).collect();
        stored[40] = Stored::raw(forged);
        let lists =
            Sets { invents: vec![(second.cast_signed(), events[40].id.to_bytes())], ..Sets::default() };
        let relay = ScriptedRelay::start(Script::of_stored(stored, 500).speaking(reconciling(lists))).await;
        let url = known_relay(&ctx.db, &relay).await;
        measured(&test, &url).await;
        let report = sync(&ctx, &url).await;
        assert_eq!((&report["new_observations"], &report["unserved"]), (&99.into(), &1.into()), "{report}");
        assert!(report["bad"][reason].as_u64() >= Some(2), "asked for twice: {report}");
        assert_eq!(grades(&test, &url).await, "partial/protocol, reconciled/none", "{report}");
        let gap = value(
            &test,
            "SELECT since_at::text || '-' || until_at FROM coverage
             WHERE grade = 'partial' AND relay_id = (SELECT max(id) FROM relay)",
        )
        .await;
        assert_eq!(gap, format!("{at}-{at}"));
        let named =
            value(&test, "SELECT string_agg(DISTINCT encode(event_id, 'hex'), ',') FROM event_unserved")
                .await;
        assert_eq!(named, events[40].id.to_hex());
    }
}

#[tokio::test]
async fn a_comparison_without_the_newest_is_found_out_and_nothing_counts_as_gone() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, JobsConfig { rescan: std::time::Duration::from_hours(2_000), ..config() });
    let events = Factory::new(16).events(600);
    let at = |n: usize| i64::try_from(events[n].created_at.as_secs()).unwrap();
    let stale = Sets { hides: Some((at(100), i64::MAX)), ..Sets::default() };
    let (_relay, url) = scripted(&test, &ctx, &events, stale).await;
    let first = sync(&ctx, &url).await;
    assert_eq!((&first["new_observations"], &first["proved_share"]), (&600.into(), &1.0.into()), "{first}");
    assert_eq!(grades(&test, &url).await, "reconciled/none, walked/none");
    let again = sync(&ctx, &url).await;
    assert_eq!((&again["gone"], &again["end"]), (&0.into(), &"up to date".into()), "{again}");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_gone").await, "0");
}

#[tokio::test]
async fn a_relay_whose_store_does_not_answer_has_neither_lost_what_is_held_nor_proved_what_was_not_read() {
    let Some(test) = migrated().await else { return };
    let again = JobsConfig { rescan: std::time::Duration::from_hours(200), ..config() };
    let ctx = context(&test, again.clone());
    let events = Factory::new(17).events(300);
    let (relay, url) = scripted(&test, &ctx, &events, Sets::default()).await;
    sync(&ctx, &url).await;
    assert_eq!(grades(&test, &url).await, "reconciled/none");
    // More of the past is wanted, when sets are empty and so is every page.
    let nothing = Sets { truncates_at: Some(0), ..Sets::default() };
    let silent = Script::honest(&events, 500).speaking(reconciling(nothing)).answering(Answer::Mute(false));
    relay.set(silent);
    let older = context(&test, JobsConfig { archive_days: Some(60), ..again });
    let report = sync(&older, &url).await;
    assert!(report["comparisons"].as_u64() > Some(0), "{report}");
    assert_eq!((&report["gone"], &report["proved_share"]), (&0.into(), &0.0.into()), "{report}");
    assert_eq!(grades(&test, &url).await, "partial/not_served");
    // Answering again, it is believed, and all is there.
    relay.set(Script::honest(&events, 500).speaking(reconciling(Sets::default())));
    test.execute("UPDATE coverage SET observed_at = observed_at - 7 * 3600").await;
    let report = sync(&older, &url).await;
    assert_eq!((&report["gone"], &report["proved_share"]), (&0.into(), &1.0.into()), "{report}");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_gone").await, "0");
}

#[tokio::test]
async fn late_arrivals_are_found_by_the_revisit_of_their_age_and_counted() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(14).events(200);
    let late: Vec<&Event> = events.iter().enumerate().filter(|(n, _)| n % 20 == 19).map(|(_, e)| e).collect();
    let early: Vec<&Event> =
        events.iter().enumerate().filter(|(n, _)| n % 20 != 19).map(|(_, e)| e).collect();
    for reconciles in [true, false] {
        let speech = if reconciles { reconciling(Sets::default()) } else { Speech::default() };
        let relay = ScriptedRelay::start(Script::honest(early.clone(), 500).speaking(speech.clone())).await;
        let url = known_relay(&ctx.db, &relay).await;
        if reconciles {
            measured(&test, &url).await;
        }
        sync(&ctx, &url).await;
        // As if that had been four days ago: all of it is old enough to be due once more.
        test.execute("UPDATE relay_revisit SET until_at = until_at - 345600").await;
        relay.set(Script::honest(&events, 500).speaking(speech));
        let report = sync(&ctx, &url).await;
        assert_eq!(report["new_observations"], late.len(), "reconciles: {reconciles}: {report}");
        let found = value(&test, "SELECT sum(found)::text FROM relay_revisit").await;
        assert_eq!(found, late.len().to_string(), "reconciles: {reconciles}");
        test.execute("DELETE FROM relay_revisit").await;
    }
}

#[tokio::test]
async fn what_we_hold_of_a_relay_and_where_an_event_is_can_be_asked() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(15).events(50);
    let (_one, one) = scripted(&test, &ctx, &events, Sets::default()).await;
    let other = ScriptedRelay::start(Script::honest(&events[..10], 500)).await;
    let two = known_relay(&ctx.db, &other).await;
    sync(&ctx, &one).await;
    sync(&ctx, &two).await;
    let database = test.url(Role::Superuser);
    let ask = |arguments: &[&str]| {
        let output = bigbrotr(&[arguments, &["--json", "--database-url", &database]].concat());
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), serde_json::from_str::<Value>(&said).unwrap_or_else(|_| panic!("{output:?}")))
    };
    let (code, coverage) = ask(&["relay", "coverage", one.as_str()]);
    assert_eq!((code, &coverage["shares"][0]["proved_share"]), (Some(0), &1.0.into()), "{coverage}");
    let months = coverage["months"].as_array().unwrap();
    assert!(!months.is_empty() && months.iter().all(|month| month["grade"] == "reconciled"), "{coverage}");
    let (code, held) = ask(&["event", &events[3].id.to_hex()]);
    let relays: Vec<&str> =
        held["relays"].as_array().unwrap().iter().filter_map(|r| r["url"].as_str()).collect();
    assert_eq!((code, relays.len()), (Some(0), 2), "{held}");
    assert!(relays.contains(&one.as_str()) && relays.contains(&two.as_str()));
    assert_eq!(ask(&["event", &events[30].id.to_hex()]).1["relays"].as_array().unwrap().len(), 1);
    assert_eq!(ask(&["event", &"ab".repeat(32)]).0, Some(1), "an event nobody has");
    let output = bigbrotr(&["relay", "coverage", one.as_str(), "--database-url", &database]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("100.0 % proved") && said.contains('█'), "{said}");
    assert_eq!(bigbrotr(&["event", "abc", "--database-url", &database]).status.code(), Some(2));
}
