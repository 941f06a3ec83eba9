//! The five handlers, run one attempt at a time against scripted relays and a real database.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use shared::db::{Db, NewCandidate};
use shared::jobs::{Attempt, Calls, Ctx, Egress, Handler, JobError, JobsConfig, Known, PageRoom, Verifier};
use shared::models::{AddressPolicy, JobKind, Network, PortRange, RelayUrl};
use shared::net::{Dialer, NetConfig};
use shared::telemetry::Metrics;
use tests::factory::Factory;
use tests::hostile;
use tests::pg::{Role, TestDb};
use tests::scripted::{Answer, Script, ScriptedRelay};
use tokio_util::sync::CancellationToken;

use super::support::{claim_one, handle, migrated, pairs, value};

/// A page may pause this long in these tests, and last twenty times as long.
const IDLE: Duration = Duration::from_millis(400);

/// A worker's context over a test database, allowed to dial loopback.
pub(crate) fn context(test: &TestDb, config: JobsConfig) -> Ctx {
    let mut net = NetConfig { policy: AddressPolicy::local(), ..NetConfig::default() };
    net.network_mut(Network::Clearnet).connect_timeout_ms = 1_000;
    let db = handle(test, Role::Writer);
    Ctx {
        pages: PageRoom::new(config.sync_memory_bytes),
        direct: db.clone(),
        dialer: Dialer::new(net).unwrap(),
        policy: AddressPolicy::local(),
        metrics: Metrics::new(),
        egress: Egress::new(Vec::new()),
        calls: Calls::new(&db, &config.vantage),
        config: Arc::new(config),
        db,
        verifier: Verifier::new(2),
        known: Known::default(),
    }
}

pub(crate) fn config() -> JobsConfig {
    JobsConfig {
        vantage: "test".to_owned(),
        page_idle: IDLE,
        page_total: IDLE * 20,
        archive_days: Some(7),
        ports: vec![PortRange::ANY],
        ..JobsConfig::default()
    }
}

/// Runs one attempt of one job to its end.
pub(crate) async fn run(ctx: &Ctx, kind: JobKind, target: &str) -> Result<Value, JobError> {
    let (claimed, fence) = claim_one(&ctx.db, "w1", kind, target).await;
    let attempt = Attempt {
        kind,
        network: claimed.network,
        target: target.to_owned(),
        fence,
        last: false,
        stop: CancellationToken::new(),
    };
    let ended = ctx.run(attempt).await;
    ctx.db.worker_stop("w1").await.unwrap();
    ended
}

fn url(relay: &ScriptedRelay) -> RelayUrl {
    RelayUrl::parse(&relay.url(), &AddressPolicy::local()).unwrap()
}

pub(crate) async fn known_relay(db: &Db, relay: &ScriptedRelay) -> RelayUrl {
    let url = url(relay);
    db.relay_insert(&[(url.clone(), 1)]).await.unwrap();
    url
}

async fn candidate(db: &Db, url: &RelayUrl) {
    db.candidate_insert(&[NewCandidate { url: url.clone(), source: "seed" }]).await.unwrap();
}

async fn counts(test: &TestDb) -> (String, String) {
    (
        value(test, "SELECT count(*)::text FROM event").await,
        value(test, "SELECT count(*)::text FROM event_relay").await,
    )
}

async fn grades(test: &TestDb) -> String {
    value(test, "SELECT string_agg(grade || '/' || reason || ' ' || (until_at - since_at + 1), ', ' ORDER BY since_at) FROM coverage").await
}

#[tokio::test]
async fn a_relay_is_promoted_and_servers_of_other_kinds_are_not() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let alive = ["honest", "auth_required", "closed"];
    let other = ["silent", "echo", "garbage", "notice_only", "refuse_upgrade"];
    // Kept until the end: a port that is free again may be the next one's, and so its URL.
    let mut relays = Vec::new();
    for name in alive.iter().chain(&other) {
        let relay = ScriptedRelay::start(Script::named(name, &Factory::new(1).events(5)).unwrap()).await;
        let url = url(&relay);
        candidate(&ctx.db, &url).await;
        let report = run(&ctx, JobKind::Validate, url.as_str()).await.unwrap();
        assert_eq!(report["alive"], alive.contains(name), "{name}: {report}");
        relays.push(relay);
    }
    assert_eq!(value(&test, "SELECT count(*)::text FROM relay").await, alive.len().to_string());
    assert_eq!(
        value(&test, "SELECT count(*)::text FROM candidate WHERE failures = 1 AND last_reason IS NOT NULL")
            .await,
        other.len().to_string()
    );
    assert_eq!(
        pairs(&test, "SELECT kind, count(*)::text FROM schedule GROUP BY kind")
            .await
            .into_iter()
            .collect::<Vec<_>>(),
        [("monitor", alive.len()), ("sync", alive.len()), ("validate", other.len())]
            .map(|(kind, n)| (kind.to_owned(), n.to_string()))
    );
}

#[tokio::test]
async fn without_a_network_nobody_is_called_down_and_nothing_is_counted_against_a_candidate() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let gone = RelayUrl::parse("wss://no-such-relay.invalid", &AddressPolicy::public()).unwrap();
    candidate(&ctx.db, &gone).await;
    let error = run(&ctx, JobKind::Validate, gone.as_str()).await.unwrap_err();
    assert!(matches!(error, JobError::Snooze { .. }), "{error}");
    assert_eq!(value(&test, "SELECT failures::text FROM candidate").await, "0");
    ctx.db.relay_insert(&[(gone.clone(), 1)]).await.unwrap();
    for _ in 0..4 {
        // A snooze writes nothing; a result may say suspect, never down.
        drop(run(&ctx, JobKind::Monitor, gone.as_str()).await);
    }
    assert_ne!(value(&test, "SELECT coalesce(max(state), '') FROM relay_state").await, "down");
}

#[tokio::test]
async fn a_dead_relay_is_down_after_two_looks_once_our_network_is_proved() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let relay = ScriptedRelay::start(Script::honest(&[], 10)).await;
    let url = known_relay(&ctx.db, &relay).await;
    let state = "SELECT state || ' ' || reason FROM relay_state";
    assert_eq!(run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap()["state"], "alive");
    drop(relay);
    for expected in ["suspect connect_refused", "down connect_refused"] {
        run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap();
        assert_eq!(value(&test, state).await, expected);
    }
    // A relay that is down is not dialled for its events.
    assert_eq!(run(&ctx, JobKind::Sync, url.as_str()).await.unwrap()["skipped"], "the relay is down");
}

#[tokio::test]
async fn checks_are_kept_and_an_unchanged_document_adds_no_row() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let relay = ScriptedRelay::start(Script::honest(&[], 10)).await;
    let url = known_relay(&ctx.db, &relay).await;
    for _ in 0..3 {
        run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap();
        // The series is keyed by the second: let three checks be three rows.
        test.execute("UPDATE relay_check SET checked_at = checked_at - 10; UPDATE relay_metadata SET generated_at = generated_at - 10").await;
    }
    assert_eq!(
        value(&test, "SELECT count(*)::text FROM relay_check WHERE kind = 'rtt' AND outcome = 'ok'").await,
        "3"
    );
    assert_eq!(value(&test, "SELECT count(*)::text FROM metadata WHERE type = 'nip11_info'").await, "1");
    let documents = "SELECT string_agg(metadata_type, ' ' ORDER BY metadata_type) FROM relay_metadata";
    assert_eq!(value(&test, documents).await, "nip11_info nip66_http");
    test.execute("SELECT all_statistics_refresh()").await;
    let latest = pairs(&test, "SELECT metadata_type, data::text FROM relay_metadata_latest").await;
    assert!(
        latest["nip11_info"].contains("scripted relay") && latest["nip66_rtt"].contains("rtt_open"),
        "{latest:?}"
    );
    assert_eq!(value(&test, "SELECT nip11_name FROM relay_stats").await, "scripted relay");
}

#[tokio::test]
async fn every_event_is_stored_once_with_proof_and_a_second_pass_adds_nothing() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(3).events(1_200);
    let one = ScriptedRelay::start(Script::honest(&events[..1_000], 300)).await;
    let two = ScriptedRelay::start(Script::honest(&events[400..], 300)).await;
    for relay in [&one, &two] {
        let url = known_relay(&ctx.db, relay).await;
        let report = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
        assert_eq!(report["proved_share"], 1.0, "{report}");
        assert!(relay.counts().reqs <= 9, "{:?} {report}", relay.counts());
    }
    assert_eq!(counts(&test).await, ("1200".to_owned(), "1800".to_owned()));
    assert_eq!(value(&test, "SELECT string_agg(DISTINCT grade, ' ') FROM coverage").await, "walked");
    let report = run(&ctx, JobKind::Sync, url(&one).as_str()).await.unwrap();
    assert_eq!(
        (report["new_events"].as_u64(), report["new_observations"].as_u64()),
        (Some(0), Some(0)),
        "{report}"
    );
    let verified = handle(&test, Role::Reader).verify(None).await.unwrap();
    assert_eq!((verified.events, verified.corruptions), (1_200, vec![]));
}

#[tokio::test]
async fn hostile_but_valid_events_are_stored_and_read_back_to_the_same_id() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, JobsConfig { archive_days: None, ..config() });
    let valid = hostile::valid(&Factory::new(0), shared::clock::unix_now());
    let relay = ScriptedRelay::start(Script::honest(valid.iter().map(|(_, event)| event), 500)).await;
    let url = known_relay(&ctx.db, &relay).await;
    let report = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    assert_eq!(report["new_events"], valid.len(), "{report}");
    let verified = handle(&test, Role::Reader).verify(None).await.unwrap();
    assert_eq!((verified.events, verified.corruptions), (valid.len() as u64, vec![]));
    test.execute("SELECT all_statistics_refresh()").await;
    assert_eq!(value(&test, "SELECT event_count::text FROM event_stats").await, valid.len().to_string());
    assert_eq!(value(&test, "SELECT max(day)::text FROM event_daily_counts").await, "9999-12-31");
}

#[tokio::test]
async fn a_page_that_does_not_end_in_proof_covers_nothing_and_what_came_is_kept() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(7).events(100);
    let honest = Script::honest(&events, 40);
    for (name, script, reason) in [
        (
            "closed at the second request",
            honest.clone().closing(2, "rate-limited: slow down"),
            "rate_limited",
        ),
        ("cut in the middle of a page", honest.clone().answering(Answer::CloseMidPage(10)), "disconnected"),
        ("no EOSE", honest.clone().answering(Answer::EoseNever), "timeout"),
        ("a frame of 50 MB", honest.clone().answering(Answer::HugeFrame(50 * 1024 * 1024)), "oversize"),
        ("a flood", honest.clone().answering(Answer::Flood), "oversize"),
    ] {
        let relay = ScriptedRelay::start(script).await;
        let url = known_relay(&ctx.db, &relay).await;
        test.execute("TRUNCATE coverage").await;
        let report = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
        let gaps = value(&test, "SELECT coalesce(string_agg(DISTINCT reason, ' '), '') FROM coverage WHERE grade NOT IN ('walked', 'finished')").await;
        assert_eq!(gaps, reason, "{name}: {report}, {}", grades(&test).await);
        assert!(report["proved_share"].as_f64().unwrap() < 1.0, "{name}: {report}");
        // Once the fault stops, nothing is missing.
        relay.set(honest.clone());
        let report = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
        assert_eq!(report["proved_share"], 1.0, "{name}: {report}, {}", grades(&test).await);
        let missing = value(
            &test,
            "SELECT (100 - count(*))::text FROM event_relay WHERE relay_id = (SELECT max(id) FROM relay)",
        )
        .await;
        assert_eq!(missing, "0", "{name}");
    }
}

#[tokio::test]
async fn a_refusal_is_recorded_as_one() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let relay =
        ScriptedRelay::start(Script::named("auth_required", &Factory::new(1).events(5)).unwrap()).await;
    let url = known_relay(&ctx.db, &relay).await;
    run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    assert!(grades(&test).await.starts_with("refused/auth_required"), "{}", grades(&test).await);
}

#[tokio::test]
async fn a_second_denser_than_a_page_is_exactly_one_recorded_gap() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let factory = Factory::new(9);
    let mut events = factory.events(200);
    let at = shared::clock::unix_now() - 86_400;
    events.extend(factory.dense(150, at));
    let relay = ScriptedRelay::start(Script::honest(&events, 100)).await;
    let url = known_relay(&ctx.db, &relay).await;
    run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    let gap = value(&test, "SELECT string_agg(since_at || '-' || until_at || ' ' || reason, ', ') FROM coverage WHERE grade = 'partial'").await;
    assert_eq!(gap, format!("{at}-{at} dense_second"));
    // Its authors are known, so that all of it is there; that this is all is not proved.
    assert_eq!(counts(&test).await.0, "350");
}

#[tokio::test]
async fn a_lost_lease_writes_nothing() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let relay = ScriptedRelay::start(Script::honest(&Factory::new(1).events(50), 20)).await;
    let url = known_relay(&ctx.db, &relay).await;
    for kind in [JobKind::Sync, JobKind::Monitor, JobKind::Discover, JobKind::Refresh] {
        let (claimed, fence) = claim_one(&ctx.db, "w1", kind, url.as_str()).await;
        // Another worker has it by now.
        ctx.db.worker_stop("w1").await.unwrap();
        let attempt = Attempt {
            kind,
            network: claimed.network,
            target: url.to_string(),
            fence,
            last: false,
            stop: CancellationToken::new(),
        };
        let error = ctx.run(attempt).await.unwrap_err();
        assert!(matches!(error, JobError::Cancel { .. }), "{kind}: {error}");
    }
    assert_eq!(counts(&test).await, ("0".to_owned(), "0".to_owned()));
    assert_eq!(value(&test, "SELECT ((SELECT count(*) FROM coverage) + (SELECT count(*) FROM relay_check) + (SELECT count(*) FROM relay_state) + (SELECT count(*) FROM relay_capability))::text").await, "0");
}

#[tokio::test]
async fn urls_in_archived_events_become_candidates_and_each_event_is_mined_once() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let factory = Factory::new(11);
    let now = shared::clock::unix_now();
    let tag = |values: &[&str]| vec![values.iter().map(ToString::to_string).collect::<Vec<_>>()];
    let events = [
        factory.sign(0, 10_002, tag(&["r", "wss://found.example/", "read"]), "", now - 30),
        factory.sign(1, 1, tag(&["e", "00", "wss://hint.example"]), "", now - 31),
        factory.sign(2, 3, vec![], r#"{"wss://legacy.example":{}}"#, now - 32),
        factory.sign(3, 1, tag(&["r", "not a url"]), "in wss://prose.example!", now - 33),
    ];
    let relay = ScriptedRelay::start(Script::honest(&events, 100)).await;
    let url = known_relay(&ctx.db, &relay).await;
    run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    let report = run(&ctx, JobKind::Discover, "archive").await.unwrap();
    assert_eq!((&report["events"], &report["new_candidates"]), (&4.into(), &4.into()), "{report}");
    assert_eq!(
        value(&test, "SELECT string_agg(url, ' ' ORDER BY url) FROM candidate").await,
        "wss://found.example wss://hint.example wss://legacy.example wss://prose.example"
    );
    assert_eq!(
        value(&test, "SELECT string_agg(source, ' ' ORDER BY url) FROM candidate_source").await,
        "relay_list hint contacts text"
    );
    assert_eq!(run(&ctx, JobKind::Discover, "archive").await.unwrap()["events"], 0);
}

#[tokio::test]
async fn one_failing_view_does_not_stop_the_others() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    test.execute("DROP FUNCTION event_stats_refresh()").await;
    let report = run(&ctx, JobKind::Refresh, "views").await.unwrap();
    assert_eq!(report["refreshed"], 12, "{report}");
    assert!(report["failed"]["event_stats"].is_string(), "{report}");
    assert_eq!(value(&test, "SELECT count(*)::text FROM view_state").await, "12");
}

#[tokio::test]
async fn at_its_size_limit_the_archive_rests() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, JobsConfig { archive_max_bytes: Some(1), ..config() });
    let relay = ScriptedRelay::start(Script::honest(&Factory::new(1).events(5), 20)).await;
    let url = known_relay(&ctx.db, &relay).await;
    let error = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap_err();
    assert!(matches!(&error, JobError::Snooze { why, .. } if why.contains("size limit")), "{error}");
    run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap();
    let asked = relay.requests();
    assert!(
        !asked.is_empty() && asked.iter().all(|filter| filter["limit"] == 1),
        "looks, and no page: {asked:?}"
    );
}
