//! What is published: from a look to the publishing relays and back, and what others publish.

use std::time::Duration;

use nostr::event::Event;
use serde_json::{Value, json};
use shared::clock;
use shared::config::Config;
use shared::jobs::publish::{About, Publishing, TASK};
use shared::jobs::{Attempt, Ctx, Handler, JobError, JobsConfig};
use shared::models::{AddressPolicy, Fence, JobKind, LOCAL, Network, RelayUrl};
use shared::nips::Keys;
use shared::nips::nip66::{Profile, parse_report};
use tests::pg::{Role, TestDb};
use tests::programs::{Kind, Program};
use tests::publish::Client;
use tests::scripted::{Answer, AuthScript, Script, ScriptedRelay, Speech, When, Writes};
use tokio_util::sync::CancellationToken;

use super::jobs::{config, context};
use super::support::{claim_target, handle, migrated, register, value};

pub(crate) fn keys() -> Keys {
    Keys::parse(&"67".repeat(32)).unwrap()
}

pub(crate) fn url(text: &str) -> RelayUrl {
    RelayUrl::parse(text, &AddressPolicy::local()).unwrap()
}

/// A configuration that publishes to these relays.
pub(crate) fn publishing(relays: &[&str]) -> JobsConfig {
    let about = About {
        relays: relays.iter().map(|text| url(text)).collect(),
        profile: Profile { name: Some("watcher".to_owned()), ..Profile::default() },
        geohash: Some("u33".to_owned()),
        networks: vec![Network::Clearnet],
        timeout: Duration::from_secs(1),
    };
    let publishing = Publishing { keys: keys(), about, policy: AddressPolicy::local() };
    JobsConfig { publish: Some(publishing), ..config() }
}

/// Runs one attempt of a monitor job: of a relay, or of the task that publishes.
pub(crate) async fn run(ctx: &Ctx, target: &str) -> Result<Value, JobError> {
    run_kind(ctx, JobKind::Monitor, if target == TASK { LOCAL } else { "clearnet" }, target).await
}

/// Runs one attempt of a job.
pub(crate) async fn run_kind(
    ctx: &Ctx,
    kind: JobKind,
    network: &str,
    target: &str,
) -> Result<Value, JobError> {
    let fence = claim(ctx, kind, network, target).await;
    let attempt = Attempt {
        kind,
        network: network.to_owned(),
        target: target.to_owned(),
        fence,
        last: false,
        stop: CancellationToken::new(),
    };
    let ended = ctx.run(attempt).await;
    ctx.db.worker_stop("w1").await.unwrap();
    ended
}

async fn claim(ctx: &Ctx, kind: JobKind, network: &str, target: &str) -> Fence {
    register(&ctx.db, "w1", Duration::from_secs(60)).await;
    let job = shared::db::NewJob {
        kind,
        network: network.to_owned(),
        target: target.to_owned(),
        class: 2,
        slack: Duration::from_secs(60),
        timeout: Duration::from_secs(60),
        max_attempts: 3,
    };
    ctx.db.job_enqueue(&[job]).await.unwrap();
    let claimed = claim_target(&ctx.db, "w1", &format!("{kind}.{network}"), target).await;
    Fence::new(claimed.job, "w1".to_owned(), claimed.attempt)
}

/// A relay that is looked at, known to the database.
pub(crate) async fn watched(ctx: &Ctx, script: Script) -> (ScriptedRelay, RelayUrl) {
    let relay = ScriptedRelay::start(script).await;
    let url = url(&relay.url());
    ctx.db.relay_insert(&[(url.clone(), 1)]).await.unwrap();
    (relay, url)
}

pub(crate) fn honest() -> Script {
    Script::honest(&[], 10)
}

/// Our events of a kind as a relay serves them.
async fn served(relay: &str, kind: u16) -> Vec<Value> {
    let filter = json!({ "kinds": [kind], "authors": [keys().pubkey_hex()], "limit": 50 });
    Client::connect(relay).await.unwrap().req(&filter).await.unwrap().events
}

async fn states(test: &TestDb) -> String {
    value(
        test,
        "SELECT string_agg(DISTINCT d.state || ':' || d.words, ', ' ORDER BY d.state || ':' || d.words) FROM publication_delivery d",
    )
    .await
}

/// Waits for the next second: an event of the same second replaces no other.
pub(crate) async fn next_second() {
    let now = clock::unix_now();
    while clock::unix_now() == now {
        // bound: one second
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_live_relay_is_published_and_reads_back_from_two_programs_nobody_here_wrote() {
    let Some(test) = migrated().await else { return };
    let (Some(local), Some(python)) = (Program::start(Kind::Local).await, Program::start(Kind::Python).await)
    else {
        return;
    };
    let ctx = context(&test, publishing(&[&local.url, &python.url]));
    let (_relay, watched) = watched(&ctx, honest()).await;
    run(&ctx, watched.as_str()).await.unwrap();
    run(&ctx, TASK).await.unwrap();
    for program in [&local.url, &python.url] {
        for kind in [30_166, 10_166, 10_002, 0] {
            let events = served(program, kind).await;
            assert_eq!(events.len(), 1, "kind {kind} at {program}: {}", states(&test).await);
            // Judged by a program that is not ours.
            let event = Event::from_json(events[0].to_string()).unwrap();
            event.verify().unwrap();
            assert_eq!(event.pubkey.to_hex(), keys().pubkey_hex());
        }
        let event = &served(program, 30_166).await[0];
        let tags: Vec<Vec<String>> = serde_json::from_value(event["tags"].clone()).unwrap();
        assert_eq!(tags[0], ["d", &watched.to_nip66_d()]);
        assert!(event["tags"][0][1].as_str().unwrap().ends_with('/'));
        assert_eq!(
            serde_json::from_str::<Value>(event["content"].as_str().unwrap()).unwrap()["name"],
            "scripted relay"
        );
        let row = parse_report(30_166, [0; 32], 1, &tags, &AddressPolicy::local()).unwrap();
        assert!(row.url == watched && row.rtt_ms[0].is_some() && row.auth == Some(false), "{row:?}");
    }
    let again = run(&ctx, TASK).await.unwrap();
    assert_eq!(again, json!({ "said": 0, "visits": [] }), "what is there is not brought again");
    next_second().await;
    run(&ctx, watched.as_str()).await.unwrap();
    run(&ctx, TASK).await.unwrap();
    assert_eq!(served(&local.url, 30_166).await.len(), 1, "a newer look replaces the older");
    assert_eq!(
        value(&test, "SELECT pending || ' ' || accepted || ' ' || refused FROM publication_status LIMIT 1")
            .await,
        "0 4 0"
    );
}

#[tokio::test]
async fn nothing_is_said_of_a_relay_that_does_not_open() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, publishing(&["ws://127.0.0.1:1"]));
    let (relay, watched) = watched(&ctx, honest()).await;
    drop(relay);
    // Whatever becomes of the look, there is nothing to publish.
    drop(run(&ctx, watched.as_str()).await);
    for name in ["silent", "refuse_upgrade", "echo"] {
        let relay = ScriptedRelay::start(Script::named(name, &[]).unwrap()).await;
        let other = url(&relay.url());
        ctx.db.relay_insert(&[(other.clone(), 1)]).await.unwrap();
        drop(run(&ctx, other.as_str()).await);
    }
    assert_eq!(value(&test, "SELECT count(*)::text FROM publication").await, "0");
}

#[tokio::test]
async fn one_bad_publishing_relay_costs_the_others_nothing_and_its_words_are_kept() {
    let Some(test) = migrated().await else { return };
    let bad = [
        (Writes::Refuse("blocked: not on the \u{0}list".into()), "refused:blocked: not on the list"),
        (Writes::Silent, "waiting:"),
        (Writes::AnotherId, "waiting:"),
        (Writes::Refuse("rate-limited: slow down".into()), "waiting:rate-limited: slow down"),
        (Writes::Refuse("invalid: too many tags".into()), "refused:invalid: too many tags"),
    ];
    let mut relays = Vec::new();
    for (writes, _) in &bad {
        relays.push(ScriptedRelay::start(Script { writes: writes.clone(), ..honest() }).await);
    }
    let good = ScriptedRelay::start(honest()).await;
    let mut urls: Vec<String> = relays.iter().map(ScriptedRelay::url).collect();
    urls.extend([good.url(), "ws://127.0.0.1:1".to_owned()]);
    let ctx = context(&test, publishing(&urls.iter().map(String::as_str).collect::<Vec<_>>()));
    let (_relay, watched) = watched(&ctx, honest()).await;
    run(&ctx, watched.as_str()).await.unwrap();
    let began = clock::monotonic_ms();
    run(&ctx, TASK).await.unwrap();
    assert!(clock::monotonic_ms() - began < 15_000, "the silent ones end by the clock");
    assert_eq!(good.counts().writes, 4);
    assert_eq!(served(&good.url(), 30_166).await.len(), 1);
    let lines = handle(&test, Role::Reader).publication_list().await.unwrap();
    let line = |url: &str| lines.iter().find(|line| line.url == url).unwrap();
    assert_eq!(line(&good.url()).counts, [0, 4, 0, 0]);
    assert_eq!(line(&good.url()).failures, 0);
    for ((_, said), relay) in bad.iter().zip(&relays) {
        let line = line(&relay.url());
        let (state, words) = said.split_once(':').unwrap();
        let (refusal, ..) = line.refusal.clone().unwrap();
        assert_eq!(refusal, words.trim(), "{line:?}");
        let counted = if state == "refused" { line.counts[2] } else { line.counts[3] };
        assert!(counted > 0 && line.counts[1] == 0, "{line:?}");
        assert_eq!(line.failures, u32::from(!words.starts_with("invalid")).cast_signed(), "{line:?}");
        assert_eq!(relay.counts().upgrades, 1, "one connection");
    }
    let gone = line("ws://127.0.0.1:1");
    assert!(gone.failures == 1 && gone.words.contains("connect_refused") && gone.counts[0] == 4, "{gone:?}");
    // They are left alone now.
    let writes: Vec<u64> = relays.iter().map(|relay| relay.counts().writes).collect();
    assert_eq!(run(&ctx, TASK).await.unwrap()["visits"], json!([]));
    assert_eq!(relays.iter().map(|relay| relay.counts().writes).collect::<Vec<_>>(), writes);
    // One that refused lately is asked about one event before the others.
    test.execute("UPDATE publication_relay SET next_at = now()").await;
    test.execute("UPDATE publication_delivery SET event_id = digest(event_id, 'sha256')").await;
    run(&ctx, TASK).await.unwrap();
    assert_eq!(relays[0].counts().writes, writes[0] + 1);
}

#[tokio::test]
async fn a_publishing_relay_that_asks_who_we_are_is_told_once_and_takes_everything() {
    let Some(test) = migrated().await else { return };
    let auth = Some(AuthScript::required(When::Asked));
    let to =
        ScriptedRelay::start(Script::honest(&[], 10).speaking(Speech { auth, ..Speech::default() })).await;
    let ctx = context(&test, publishing(&[&to.url()]));
    let report = run(&ctx, TASK).await.unwrap();
    // What we say of ourselves: 0, 10002, 10166; the first is refused, then all are brought.
    assert_eq!(report["visits"][0]["accepted"], 3, "{report}");
    assert_eq!((to.counts().auths, report["visits"][0]["waiting"].clone()), (1, 0.into()), "{report}");
}

#[tokio::test]
async fn what_proves_to_be_no_relay_twice_is_taken_back_and_said_again_when_it_is_one() {
    let Some(test) = migrated().await else { return };
    let Some(local) = Program::start(Kind::Local).await else { return };
    let ctx = context(&test, publishing(&[&local.url]));
    let (relay, watched) = watched(&ctx, honest()).await;
    run(&ctx, watched.as_str()).await.unwrap();
    run(&ctx, TASK).await.unwrap();
    assert_eq!(served(&local.url, 30_166).await.len(), 1);
    relay.set(honest().answering(Answer::Garbage));
    next_second().await;
    run(&ctx, watched.as_str()).await.unwrap();
    assert_eq!(
        value(
            &test,
            "SELECT string_agg(kind::text, ' ' ORDER BY kind) FROM publication WHERE kind IN (5, 30166)"
        )
        .await,
        "30166",
        "once may be an accident"
    );
    run(&ctx, watched.as_str()).await.unwrap();
    run(&ctx, TASK).await.unwrap();
    let deletion = &served(&local.url, 5).await[0];
    let address = format!("30166:{}:{}", keys().pubkey_hex(), watched.to_nip66_d());
    assert!(deletion["tags"].as_array().unwrap().contains(&json!(["a", address])), "{deletion}");
    assert_eq!(served(&local.url, 30_166).await.len(), 0, "the relay honours it");
    relay.set(honest());
    next_second().await;
    run(&ctx, watched.as_str()).await.unwrap();
    run(&ctx, TASK).await.unwrap();
    assert_eq!(served(&local.url, 30_166).await.len(), 1);
    assert_eq!(value(&test, "SELECT count(*)::text FROM publication WHERE kind = 5").await, "0");
}

#[tokio::test]
async fn what_nobody_has_is_not_taken_back() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, publishing(&["ws://127.0.0.1:1"]));
    let (relay, watched) = watched(&ctx, honest()).await;
    run(&ctx, watched.as_str()).await.unwrap();
    relay.set(honest().answering(Answer::Garbage));
    for _ in 0..2 {
        next_second().await;
        run(&ctx, watched.as_str()).await.unwrap();
    }
    assert_eq!(value(&test, "SELECT count(*)::text FROM publication").await, "0");
}

#[tokio::test]
async fn a_lost_lease_publishes_nothing_and_who_does_not_publish_leaves_it_to_others() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, publishing(&["ws://127.0.0.1:1"]));
    let stale = Fence::new("no-such-job".to_owned(), "w1".to_owned(), 1);
    assert_eq!(ctx.db.publication_put(&stale, &[]).await.unwrap(), None);
    assert!(ctx.db.publication_begin(&stale, &[url("ws://127.0.0.1:1")]).await.unwrap().is_empty());
    let quiet = context(&test, config());
    let error = run(&quiet, TASK).await.unwrap_err();
    assert!(matches!(error, JobError::Snooze { .. }), "{error}");
    let (_relay, watched) = watched(&quiet, honest()).await;
    run(&quiet, watched.as_str()).await.unwrap();
    assert_eq!(value(&test, "SELECT count(*)::text FROM publication").await, "0");
}

#[tokio::test]
async fn relays_of_a_private_network_are_published_only_where_that_is_wanted() {
    let Some(test) = migrated().await else { return };
    let key = "67".repeat(32);
    for (wanted, published) in [("", "0"), ("true", "1")] {
        let set = [
            ("BIGBROTR_PUBLISH_ENABLED", "true"),
            ("BIGBROTR_PUBLISH_RELAYS", "wss://relay.example"),
            ("BIGBROTR_PUBLISH_LOCAL", wanted),
            ("BIGBROTR_IDENTITY_KEY", &key),
        ];
        let set = set.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let ctx = context(&test, Config::load(None, &set).unwrap().jobs_config());
        let (_relay, watched) = watched(&ctx, honest()).await;
        assert_eq!(run(&ctx, watched.as_str()).await.unwrap()["up"], true);
        let said = value(&test, "SELECT count(*)::text FROM publication WHERE kind = 30166").await;
        assert_eq!(said, published);
    }
}

#[tokio::test]
async fn what_is_put_into_the_outbox_makes_the_task_due() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, publishing(&["ws://127.0.0.1:1"]));
    let due = "SELECT (due_at <= now() + interval '3 seconds')::text FROM schedule WHERE target = 'publish'";
    test.execute("INSERT INTO schedule (kind, target, network, due_at, slack_s, why) VALUES ('monitor', 'publish', 'local', now() + interval '1 hour', 60, 'test')").await;
    let (_relay, watched) = watched(&ctx, honest()).await;
    run(&ctx, watched.as_str()).await.unwrap();
    assert_eq!(value(&test, due).await, "true");
    run(&ctx, TASK).await.unwrap();
    assert_eq!(value(&test, due).await, "false", "a relay that is away waits for its own time");
    assert_eq!(ctx.db.publication_retire(false, 90).await.unwrap(), 0);
    assert_eq!(value(&test, "SELECT count(*)::text FROM schedule WHERE target = 'publish'").await, "0");
}

#[tokio::test]
async fn what_an_operator_excludes_is_taken_back() {
    let Some(test) = migrated().await else { return };
    let good = ScriptedRelay::start(honest()).await;
    let ctx = context(&test, publishing(&[&good.url()]));
    let (_relay, watched) = watched(&ctx, honest()).await;
    run(&ctx, watched.as_str()).await.unwrap();
    run(&ctx, TASK).await.unwrap();
    let actor = shared::db::Actor { name: "tester".to_owned(), why: "asked".to_owned() };
    ctx.db.relay_exclude(&[watched.to_string()], "opt_out", &actor).await.unwrap();
    assert_eq!(run(&ctx, TASK).await.unwrap()["said"], 1);
    let deletion = &served(&good.url(), 5).await[0];
    assert!(deletion.to_string().contains(&watched.to_nip66_d()), "{deletion}");
    assert_eq!(run(&ctx, TASK).await.unwrap()["said"], 0, "once");
}
