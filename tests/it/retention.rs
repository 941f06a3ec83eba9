//! What is not kept is not fetched again, and what is said of it beforehand and afterwards is true.

use std::time::Duration;

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use shared::db::{Db, EventRow, Pace, RetentionStep};
use shared::jobs::JobsConfig;
use shared::models::{AddressPolicy, Event, JobKind, RelayUrl, Retention};
use sqlx::Connection as _;
use tests::factory::Factory;
use tests::hostile;
use tests::pg::{Role, TestDb};
use tests::programs::{Kind, Program};
use tests::publish::publish;
use tests::scripted::{Script, ScriptedRelay, Stored};

use super::jobs::{config, context, known_relay, run};
use super::operator::says;
use super::support::{handle, migrated, value};

const DAY_S: i64 = 86_400;

/// Reads everything, and nothing twice but the newest second.
fn whole() -> JobsConfig {
    JobsConfig { archive_days: None, rescan: Duration::ZERO, ..config() }
}

/// Everything that the policies ask for, added up.
pub(crate) async fn retire(db: &Db) -> RetentionStep {
    let (mut sum, mut pace) = (RetentionStep::default(), Pace::default());
    for _ in 0..10_000 {
        let Some(step) = db.retention_step(&mut pace).await.unwrap() else { return sum };
        sum.events += step.events;
        sum.observations += step.observations;
        sum.months += step.months;
    }
    panic!("retention does not end: {sum:?}")
}

fn kinds(rules: &[&str]) -> Retention {
    Retention { kinds: rules.iter().map(|rule| rule.parse().unwrap()).collect(), ..Retention::default() }
}

/// Events with their observations on one relay.
pub(crate) async fn archive(db: &Db, url: &str, events: &[nostr::event::Event]) {
    let url = RelayUrl::parse(url, &AddressPolicy::public()).unwrap();
    let row = |event: &nostr::event::Event| EventRow::from(Event::parse(&event.as_json()).unwrap());
    let seen: Vec<_> = events.iter().map(|event| (row(event), url.clone(), 5)).collect();
    db.event_relay_insert_cascade(&seen).await.unwrap();
}

const COVERAGE: &str = "SELECT string_agg(grade || '/' || reason, ', ' ORDER BY since_at) FROM coverage";

#[tokio::test]
async fn of_two_policies_the_stricter_one_holds_also_where_the_other_is_in_force() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let days = "SELECT string_agg(name || ' ' || days, ', ') FROM retention_policy";
    for (policies, held) in
        [(&["7:60"][..], "kind 7 60"), (&["7:60", "7:30"], "kind 7 30"), (&["7:60"], "kind 7 60")]
    {
        db.retention_put(&kinds(policies), false).await.unwrap();
        assert_eq!(value(&test, days).await, held);
    }
}

#[tokio::test]
async fn what_an_age_limit_took_is_not_fetched_again() {
    let Some(test) = migrated().await else { return };
    let Some(program) = Program::start(Kind::Local).await else { return };
    let events = Factory::new(41).over(150 * DAY_S).events(400);
    assert_eq!(publish(&program.url, &events).await.unwrap().accepted.len(), 400);
    let ctx = context(&test, whole());
    let url = RelayUrl::parse(&program.url, &AddressPolicy::local()).unwrap();
    ctx.db.relay_insert(&[(url.clone(), 1)]).await.unwrap();
    let now = shared::clock::unix_now();
    ctx.db.partition_maintain(now - 100 * DAY_S).await.unwrap();
    let first = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    assert_eq!((&first["new_events"], &first["proved_share"]), (&400.into(), &1.0.into()), "{first}");

    ctx.db.retention_put(&Retention { days: Some(30), ..Retention::default() }, false).await.unwrap();
    let took = retire(&ctx.db).await;
    let horizon: i64 = value(&test, "SELECT before_at::text FROM archive_horizon").await.parse().unwrap();
    assert!(horizon <= now - 30 * DAY_S && horizon > now - 62 * DAY_S, "the first of a month: {horizon}");
    let older = events.iter().filter(|event| event.created_at.as_secs().cast_signed() < horizon).count();
    assert_eq!((took.events, took.observations), (older as u64, older as u64), "{took:?}");
    assert!((2..=4).contains(&took.months), "the months of 70 to 100 days ago, whole: {took:?}");
    assert_eq!(value(&test, COVERAGE).await, "unknown/retired, walked/none");
    let proved = "SELECT since_at::text FROM coverage WHERE grade = 'walked'";
    assert_eq!(value(&test, proved).await, horizon.to_string());

    for _ in 0..2 {
        let again = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
        assert!(again["delivered"].as_u64() <= Some(2) && again["new_events"] == 0, "{again}");
        assert!(again["bytes"].as_u64().unwrap() * 50 < first["bytes"].as_u64().unwrap(), "{again}");
        assert_eq!(again["proved_share"], 1.0, "{again}");
    }
    assert_eq!(value(&test, COVERAGE).await, "unknown/retired, walked/none");
    // An operator who keeps more than before has it fetched again; no scheduler does.
    assert_eq!(retire(&ctx.db).await, RetentionStep::default());
    let actor = shared::db::Actor { name: "me".to_owned(), why: String::new() };
    assert_eq!(ctx.db.retention_apply(&Retention::default(), &actor).await.unwrap(), (1, 1));
    let again = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    assert_eq!(again["new_events"], older, "{again}");
    assert_eq!(value(&test, COVERAGE).await, "walked/none");
}

#[tokio::test]
async fn a_pass_that_began_before_the_horizon_brings_no_proof_back() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    archive(&db, "wss://one.example", &Factory::new(3).events(1)).await;
    test.execute(
        "INSERT INTO archive_horizon (scope, before_at, reason) VALUES ('all', 1000, 'age'), ('wss://one.example', 3000, 'x'), ('wss://two.example', 9000, 'x');
         SELECT coverage_put(1, 'all', ARRAY[0, 2500, 5001]::bigint[], ARRAY[2000, 5000, 6000]::bigint[], ARRAY['walked', 'walked', 'partial'],
                             ARRAY['none', 'none', 'timeout'], ARRAY[7, 8, 9]::bigint[])",
    )
    .await;
    let all = "SELECT string_agg(since_at || '-' || until_at || ' ' || reason, ', ' ORDER BY since_at) FROM coverage";
    let clipped = "0-2999 retired, 3000-5000 none, 5001-6000 timeout";
    assert_eq!(value(&test, all).await, clipped);
    // What is read back is coverage, and written again it stays.
    let coverage = db.coverage_get(1, "all").await.unwrap();
    assert_eq!(coverage.unproved(0, 5_000), [(0, 2_999)]);
    test.execute("SELECT coverage_put(1, 'all', array_agg(since_at), array_agg(until_at), array_agg(grade), array_agg(reason), array_agg(observed_at)) FROM coverage").await;
    assert_eq!(value(&test, all).await, clipped);
    assert_eq!(value(&test, "SELECT coverage_retire(100)::text").await, "0");
}

#[tokio::test]
async fn kinds_that_are_not_kept_are_known_without_a_body_and_not_fetched_again() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, whole());
    let events = Factory::new(42).events(100);
    let relay = ScriptedRelay::start(Script::honest(&events, 500)).await;
    let url = known_relay(&ctx.db, &relay).await;
    ctx.db.retention_put(&kinds(&["7"]), false).await.unwrap();
    let sevens = events.iter().filter(|event| event.kind.as_u16() == 7).count();
    let report = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    assert_eq!(
        (&report["skipped"], &report["new_events"]),
        (&sevens.into(), &(100 - sevens).into()),
        "{report}"
    );
    let shape = "SELECT string_agg(fate || ' ' || (tags IS NULL AND content IS NULL AND sig IS NULL AND tag_hashes IS NULL) || ' ' || n, ', ' ORDER BY fate)
                 FROM (SELECT fate, tags, content, sig, tag_hashes, count(*) OVER (PARTITION BY fate) AS n, row_number() OVER (PARTITION BY fate) AS i FROM event) x WHERE i = 1";
    assert_eq!(value(&test, shape).await, format!("0 false {}, 1 true {sevens}", 100 - sevens));
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_relay").await, "100", "who has them is known");
    let sent = relay.counts().events_sent;
    let report = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    assert!(relay.counts().events_sent <= sent + 1 && report["known"] == report["delivered"], "{report}");

    // Another kind later: what is there loses its body, and is not fetched for that either.
    ctx.db.retention_put(&kinds(&["7", "1984:1", "1"]), false).await.unwrap();
    let took = retire(&ctx.db).await;
    let unkept = value(&test, "SELECT count(*) || ' ' || count(*) FILTER (WHERE kind NOT IN (1, 7, 1984)) || ' ' || count(*) FILTER (WHERE kind = 1984 AND created_at > extract(epoch FROM now()) - 86400) FROM event WHERE fate = 1").await;
    assert_eq!(unkept, format!("{} 0 0", took.events + sevens as u64));
    let left = value(&test, "SELECT count(*)::text FROM event WHERE fate = 0 AND kind IN (1, 7)").await;
    assert_eq!(left, "0");
    assert_eq!(
        value(
            &test,
            "SELECT count(*)::text FROM event_unmined u JOIN event e USING (event_key) WHERE e.fate <> 0"
        )
        .await,
        "0"
    );
    let sent = relay.counts().events_sent;
    run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    assert!(relay.counts().events_sent <= sent + 1);
    let sets = handle(&test, Role::Reader).verify_sets(&mut |_| {}).await.unwrap();
    assert!(!sets.iter().any(shared::db::SetLine::is_fault), "{sets:?}");
}

#[tokio::test]
async fn a_forged_copy_of_a_kind_that_is_not_kept_keeps_nothing_out() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, whole());
    ctx.db.retention_put(&kinds(&["7"]), false).await.unwrap();
    let event = Factory::new(43).sign(1, 7, vec![], "+", shared::clock::unix_now() - 50);
    let forged = Script::of_stored(vec![Stored::raw(hostile::with_bad_signature(&event))], 500);
    let relay = ScriptedRelay::start(forged).await;
    let url = known_relay(&ctx.db, &relay).await;
    let report = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    assert!(report["skipped"] == 0 && report["bad"]["bad_signature"].as_u64() > Some(0), "{report}");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event").await, "0");
}

#[tokio::test]
async fn a_relay_of_which_nothing_is_kept_is_not_dialled_for_its_events() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, whole());
    let events = Factory::new(44).events(60);
    let relays = [
        ScriptedRelay::start(Script::honest(&events[..40], 500)).await,
        ScriptedRelay::start(Script::honest(&events[20..], 500)).await,
    ];
    for relay in &relays {
        let url = known_relay(&ctx.db, relay).await;
        run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    }
    let url = known_relay(&ctx.db, &relays[0]).await;
    ctx.db
        .retention_put(&Retention { relays: vec![(url.to_string(), 0)], ..Retention::default() }, false)
        .await
        .unwrap();
    let took = retire(&ctx.db).await;
    assert_eq!((took.events, took.observations), (20, 40), "what only it had, and all it showed: {took:?}");
    let before = relays[0].counts().connections;
    let report = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    assert_eq!(report["skipped"], "nothing of it is kept");
    assert_eq!(relays[0].counts().connections, before);
    let url = known_relay(&ctx.db, &relays[1]).await;
    let report = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    assert_eq!((&report["new_events"], &report["proved_share"]), (&0.into(), &1.0.into()), "{report}");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event").await, "40");
}

#[tokio::test]
async fn a_long_reader_keeps_months_from_being_dropped_and_nothing_else_from_being_done() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    archive(&db, "wss://one.example", &Factory::new(46).over(120 * DAY_S).events(200)).await;
    db.partition_maintain(shared::clock::unix_now() - 110 * DAY_S).await.unwrap();
    let policies = Retention { days: Some(60), ..kinds(&["7"]) };
    db.retention_put(&policies, false).await.unwrap();
    let mut other = test.connect(Role::Reader).await;
    let mut long = other.begin().await.unwrap();
    sqlx::query("SELECT count(*) FROM event").execute(&mut *long).await.unwrap();
    let took = retire(&db).await;
    assert!(took.months == 0 && took.events > 60, "{took:?}");
    let left = "SELECT count(*) FILTER (WHERE kind = 7 AND fate = 0) || ' ' || count(*) FILTER (WHERE created_at < (SELECT before_at FROM archive_horizon)) FROM event";
    assert_eq!(value(&test, left).await, "0 0");
    long.commit().await.unwrap();
    let took = retire(&db).await;
    assert!(took.months > 0 && took.events == 0, "{took:?}");
}

/// The archive in numbers: events, archived ones, observations.
async fn numbers(test: &TestDb) -> [u64; 3] {
    let said = value(test, "SELECT count(*) || ' ' || count(*) FILTER (WHERE fate = 0) || ' ' || (SELECT count(*) FROM event_relay) FROM event").await;
    let numbers: Vec<u64> = said.split(' ').map(|number| number.parse().unwrap()).collect();
    [numbers[0], numbers[1], numbers[2]]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_says_what_the_deed_takes_and_the_deed_is_written_down() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let events = Factory::new(45).over(200 * DAY_S).events(300);
    archive(&db, "wss://one.example", &events[..200]).await;
    archive(&db, "wss://two.example", &events[100..]).await;
    db.partition_maintain(shared::clock::unix_now() - 210 * DAY_S).await.unwrap();
    let nothing = says(&test, Role::Reader, &["retention", "plan"]);
    assert!(nothing.0 == 0 && nothing.1.contains("everything is kept"), "{nothing:?}");
    for (section, taken) in [
        ("kinds = [\"1\", \"30000-39999:40\"]", 1),
        ("relays = [\"wss://ONE.example/ 50\"]", 2),
        ("days = 60", 0),
    ] {
        let file = std::env::temp_dir().join(format!("bigbrotr-keep-{}.toml", shared::clock::random_hex(4)));
        std::fs::write(&file, format!("[retention]\n{section}\n")).unwrap();
        let file = file.to_str().unwrap();
        let before = numbers(&test).await;
        let (code, said) = says(&test, Role::Reader, &["--config", file, "--json", "retention", "plan"]);
        assert_eq!(code, 0, "{said}");
        let plan: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let sum = |what: &str| -> u64 { plan.iter().map(|line| line[what].as_u64().unwrap()).sum() };
        assert!(sum("bytes") > 0 && sum("events") > 0, "{said}");
        let (_, preview) = says(&test, Role::Reader, &["--config", file, "retention", "apply"]);
        assert!(preview.contains("nothing was done") && numbers(&test).await == before, "{preview}");
        let (code, done) = says(&test, Role::Writer, &["--config", file, "retention", "apply", "--yes"]);
        assert_eq!(code, 0, "{done}");
        let after = numbers(&test).await;
        let gone = if taken == 1 { before[1] - after[1] } else { before[0] - after[0] };
        assert_eq!(
            (gone, before[2] - after[2]),
            (sum("events"), sum("observations")),
            "{section}: {said} {done}"
        );
        assert!(taken != 0 || sum("months") > 3, "{said}");
        std::fs::remove_file(file).unwrap();
    }
    let (_, audit) = says(&test, Role::Reader, &["queue", "audit"]);
    assert_eq!(audit.matches("retention-apply").count(), 3, "{audit}");
    let (code, status) = says(&test, Role::Reader, &["archive", "status"]);
    assert!(
        code == 0 && status.contains("age: kept for 60 days") && status.contains("all: kept from"),
        "{status}"
    );
}

#[tokio::test]
async fn what_lightening_takes_is_given_back_by_a_full_vacuum_only() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let now = shared::clock::unix_now();
    let factory = Factory::new(49);
    // Nothing that could be compressed, and nothing that lies in a file of its own.
    let noise = |i: i64| (0..14).map(|k| hex::encode(Sha256::digest(format!("{i} {k}")))).collect::<String>();
    let long = |i: i64| factory.sign(1, 1, vec![], &noise(i), now - i);
    archive(&db, "wss://one.example", &(0..1_500).map(long).collect::<Vec<_>>()).await;
    test.execute("DELETE FROM event_unmined").await;
    let before = db.archive_get(None).await.unwrap().bytes;
    let actor = shared::db::Actor { name: "me".to_owned(), why: String::new() };
    db.archive_mode_set(true, &actor).await.unwrap();
    while db.archive_lighten(&mut Pace::of(5_000)).await.unwrap().0 > 0 {}
    test.execute("VACUUM event").await;
    assert!(db.archive_get(None).await.unwrap().bytes >= before, "the files are as large as before");
    test.execute("VACUUM FULL event").await;
    let after = db.archive_get(None).await.unwrap().bytes;
    assert!(after + 800_000 < before, "{after} of {before}");
}
