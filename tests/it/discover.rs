//! Discover end to end: where candidates come from, which are not taken, who is left alone, what proves a relay.

use std::sync::Arc;
use std::time::Duration;

use shared::db::{Actor, Db, NewCandidate};
use shared::jobs::{HttpSource, JobError, JobsConfig};
use shared::models::{AddressPolicy, JobKind, RelayUrl};
use tests::factory::Factory;
use tests::pg::{Role, TestDb};
use tests::scripted::{Script, ScriptedRelay};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::jobs::{config, context, run};
use super::support::{handle, job, migrated, value};

pub(super) fn url(text: &str) -> RelayUrl {
    RelayUrl::parse(text, &AddressPolicy::local()).unwrap()
}

fn actor() -> Actor {
    Actor { name: "tester".to_owned(), why: "a test".to_owned() }
}

pub(super) async fn candidates(db: &Db, urls: &[&str]) -> u64 {
    let new: Vec<_> = urls.iter().map(|text| NewCandidate { url: url(text), source: "seed" }).collect();
    db.candidate_insert(&new).await.unwrap()
}

pub(super) async fn candidate_urls(test: &TestDb) -> String {
    value(test, "SELECT string_agg(url, ' ' ORDER BY url) FROM candidate").await
}

/// A web server that gives every request the answer of its path; ends when dropped.
pub(super) struct Lists {
    addr: std::net::SocketAddr,
    _tasks: JoinSet<()>,
}

impl Lists {
    pub(super) async fn start(answers: &[(&'static str, String)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let answers: Arc<Vec<(&'static str, String)>> = Arc::new(answers.to_vec());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let answers = Arc::clone(&answers);
                open.spawn(async move {
                    let mut head = vec![0; 4096];
                    let size = stream.read(&mut head).await.unwrap_or(0);
                    let head = String::from_utf8_lossy(&head[..size]).into_owned();
                    let answer = answers.iter().find(|(path, _)| head.starts_with(&format!("GET {path} ")));
                    let answer =
                        answer.map_or("HTTP/1.1 404 None\r\ncontent-length: 0\r\n\r\n", |(_, text)| text);
                    stream.write_all(answer.as_bytes()).await.ok();
                    if answer.ends_with("endless") {
                        while stream.write_all(&[b' '; 8_192]).await.is_ok() {}
                    }
                });
            }
        });
        Self { addr, _tasks: tasks }
    }

    pub(super) fn source(&self, path: &str, expression: &str) -> HttpSource {
        HttpSource::parse(&format!("http://{}{path} {expression}", self.addr), &AddressPolicy::local())
            .unwrap()
    }
}

pub(super) fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn redirect(to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")
}

#[tokio::test]
async fn a_source_that_leads_astray_is_reported_and_costs_the_others_nothing() {
    let Some(test) = migrated().await else { return };
    let lists = Lists::start(&[
        (
            "/good",
            ok(r#"{"relays":[{"u":"wss://a.example/"},{"u":"wss://b.example"},{"u":5},{"u":"nonsense"}]}"#),
        ),
        ("/linklocal", redirect("http://169.254.169.254/latest/meta-data")),
        ("/mapped", redirect("http://[::ffff:127.0.0.1]:80/")),
        ("/endless", "HTTP/1.1 200 OK\r\n\r\nendless".to_owned()),
        ("/html", ok("<html>")),
        ("/object", ok("{}")),
    ])
    .await;
    let sources = vec![
        lists.source("/linklocal", "[*]"),
        lists.source("/mapped", "[*]"),
        lists.source("/endless", "[*]"),
        lists.source("/html", "[*]"),
        lists.source("/object", "@"),
        lists.source("/gone", "[*]"),
        lists.source("/good", "relays[*].u"),
    ];
    let ctx = context(&test, JobsConfig { sources: sources.clone(), ..config() });
    test.execute("SELECT service_state_upsert(ARRAY['finder'], ARRAY['checkpoint'], ARRAY['http://gone.example/'], ARRAY['{}'])").await;
    let report = run(&ctx, JobKind::Discover, "http").await.unwrap();
    let said = |path: &str| {
        let outcome = &report["sources"][format!("http://{}{path}", lists.addr)]["outcome"];
        outcome.as_str().unwrap_or_else(|| panic!("{path}: {report}")).to_owned()
    };
    for (path, outcome) in [
        ("/linklocal", "address_refused"),
        ("/mapped", "address_refused"),
        ("/endless", "http_body_too_large"),
        ("/html", "not_json"),
        ("/object", "expression"),
        ("/gone", "http_status"),
        ("/good", "ok"),
    ] {
        assert_eq!(said(path), outcome, "{path}: {report}");
    }
    assert_eq!(report["new_candidates"], 2, "{report}");
    assert_eq!(candidate_urls(&test).await, "wss://a.example wss://b.example");
    assert_eq!(
        value(&test, "SELECT string_agg(DISTINCT source || ' ' || regexp_replace(origin, '.*/', ''), ',') FROM candidate_source").await,
        "http good"
    );
    // Each has its state, the failed ones are due sooner, and what is configured no more has none.
    let states = "SELECT count(*) || ' ' || count(*) FILTER (WHERE (state_value->>'due')::bigint - (state_value->>'timestamp')::bigint = 3600) FROM service_state";
    assert_eq!(value(&test, states).await, "7 6");
    let again = run(&ctx, JobKind::Discover, "http").await.unwrap();
    assert_eq!((&again["waiting"], &again["new_candidates"]), (&7.into(), &0.into()), "{again}");
}

#[tokio::test]
async fn why_has_a_word_for_who_is_left_alone() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    candidates(&db, &["wss://b.relay.example"]).await;
    db.relay_exclude(&["*.relay.example".to_owned()], "opt_out", &actor()).await.unwrap();
    db.relay_exclude(&["bad.example".to_owned()], "blocked", &actor()).await.unwrap();
    let reader = handle(&test, Role::Reader);
    let why = async |which: &str| {
        let lines = reader.job_why(which).await.unwrap();
        lines.into_iter().map(|line| (line.reason, line.detail)).collect::<Vec<_>>()
    };
    let said = why("wss://b.relay.example").await;
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(said[0].0, "opted-out");
    assert!(
        said[0].1.starts_with("*.relay.example is left alone since ") && said[0].1.contains("a test"),
        "{said:?}"
    );
    assert_eq!(why("wss://bad.example/never/seen").await[0].0, "blocked");
    assert_eq!(why("wss://relay.example").await[0].0, "unknown", "the domain itself is not below itself");
}

#[tokio::test]
async fn no_sighting_revives_what_was_given_up_and_an_operator_does() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    candidates(&db, &["wss://dead.example"]).await;
    test.execute("UPDATE candidate SET tombstoned_at = 5, failures = 14, last_seen_at = 1; UPDATE candidate_source SET last_seen_at = 1; DELETE FROM schedule").await;
    let state = "SELECT (tombstoned_at IS NOT NULL) || ' ' || failures || ' ' || seen_count || ' ' || (SELECT count(*) FROM schedule) FROM candidate";
    for _ in 0..3 {
        assert_eq!(candidates(&db, &["wss://dead.example"]).await, 0);
    }
    assert_eq!(value(&test, state).await, "true 14 2 0", "one sighting a day is noted");
    assert_eq!(
        db.candidate_revive(&[url("wss://dead.example"), url("wss://unknown.example")], &actor())
            .await
            .unwrap(),
        1
    );
    assert_eq!(value(&test, state).await, "false 0 2 1");
    assert_eq!(value(&test, "SELECT action || ' ' || jobs FROM operation").await, "revive 1");
}

#[tokio::test]
async fn who_is_excluded_is_no_candidate_has_no_schedule_and_no_job() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let db = &ctx.db;
    let relay = url("wss://a.relay.example/inbox");
    db.relay_insert(&[(relay.clone(), 1), (url("wss://relay.example.org"), 1)]).await.unwrap();
    candidates(db, &["wss://b.relay.example"]).await;
    db.schedule_reconcile().await.unwrap();
    db.job_enqueue(&[
        job(JobKind::Monitor, relay.as_str()),
        job(JobKind::Monitor, "wss://relay.example.org"),
    ])
    .await
    .unwrap();
    let excluded = db.relay_exclude(&["*.relay.example".to_owned()], "opt_out", &actor()).await.unwrap();
    assert_eq!(excluded, (2, 1, 0), "known, cancelled, stopping");
    db.schedule_reconcile().await.unwrap();
    let targets = "SELECT string_agg(DISTINCT target, ' ') FROM schedule";
    assert_eq!(value(&test, targets).await, "wss://relay.example.org");
    assert_eq!(
        candidates(db, &["wss://c.relay.example", "wss://relay.example"]).await,
        1,
        "*. is what lies below"
    );
    let listed = handle(&test, Role::Reader).relay_list("", None, Some(relay.as_str())).await.unwrap();
    assert_eq!(listed.lines[0].as_ref().unwrap().excluded.as_deref(), Some("opt_out"));
    // A job that was under way, or that somebody asks for by hand, ends by itself.
    for (kind, target) in [
        (JobKind::Monitor, relay.as_str()),
        (JobKind::Sync, relay.as_str()),
        (JobKind::Validate, "wss://b.relay.example"),
    ] {
        let error = run(&ctx, kind, target).await.unwrap_err();
        assert!(matches!(error, JobError::Cancel { .. }), "{kind}: {error}");
    }
    assert_eq!(db.relay_include(&["*.relay.example".to_owned()], &actor()).await.unwrap(), (1, 3));
    assert_eq!(db.relay_include(&["*.relay.example".to_owned()], &actor()).await.unwrap(), (0, 0));
    assert_eq!(
        value(&test, targets).await,
        "wss://a.relay.example/inbox wss://b.relay.example wss://relay.example wss://relay.example.org"
    );
    assert_eq!(
        value(&test, "SELECT string_agg(action, ' ' ORDER BY id) FROM operation").await,
        "exclude include include"
    );
}

#[tokio::test]
async fn a_relay_keeps_what_it_was_proved_by_and_a_candidate_what_it_failed_by() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(1).events(5);
    let named = |name: &str| Script::named(name, &events).unwrap();
    let refusing = |why: &str| Script::honest(&events, 10).closing(1, why);
    for (script, proof) in [
        (named("honest"), "eose ok none t t"),
        (named("auth_required"), "closed refused auth_required"),
        (refusing("error: must specify kinds"), "closed refused closed_error error: must specify kinds t f"),
        (refusing("blocked: authors are required here"), "closed refused blocked blocked: authors"),
        (named("silent"), ""),
    ] {
        let relay = ScriptedRelay::start(script).await;
        candidates(&ctx.db, &[&relay.url()]).await;
        run(&ctx, JobKind::Validate, url(&relay.url()).as_str()).await.unwrap();
        let kept = value(&test, "SELECT concat_ws(' ', proof, proof_outcome, proof_reason, proof_detail, proof_open_ms IS NOT NULL, proof_read_ms IS NOT NULL) FROM relay ORDER BY id DESC LIMIT 1").await;
        let failed = value(
            &test,
            "SELECT string_agg(last_reason || ' ' || (last_open_ms IS NOT NULL), ' ') FROM candidate",
        )
        .await;
        if proof.is_empty() {
            assert_eq!(failed, "silent true");
        } else {
            assert!(kept.starts_with(proof), "{proof}: {kept}");
        }
    }
}

#[tokio::test]
async fn a_domain_that_a_profile_names_is_asked_once_for_its_relays() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let now = shared::clock::unix_now();
    let profile = |nip05: &str| format!(r#"{{"nip05":"{nip05}"}}"#);
    let factory = Factory::new(3);
    let events = [
        factory.sign(0, 0, vec![], &profile("bob@no-such-domain.invalid"), now - 5),
        factory.sign(1, 0, vec![], &profile("al@no-such-domain.invalid"), now - 6),
        factory.sign(2, 0, vec![], &profile("al@127.0.0.1"), now - 7),
    ];
    let relay = ScriptedRelay::start(Script::honest(&events, 100)).await;
    let relay_url = url(&relay.url());
    ctx.db.relay_insert(&[(relay_url.clone(), 1)]).await.unwrap();
    run(&ctx, JobKind::Sync, relay_url.as_str()).await.unwrap();
    let report = run(&ctx, JobKind::Discover, "archive").await.unwrap();
    assert_eq!(report["nip05_names"], 1, "{report}");
    // This machine may have no way to ask, which says nothing about the domain.
    let report = run(&ctx, JobKind::Discover, "nip05").await.unwrap();
    let asked = report["our_fault"].is_null();
    assert_eq!(
        value(&test, "SELECT (asked_at IS NOT NULL)::text FROM nip05_domain").await,
        asked.to_string(),
        "{report}"
    );
    test.execute("UPDATE nip05_domain SET asked_at = extract(epoch FROM now())").await;
    assert!(ctx.db.nip05_take(10).await.unwrap().is_empty(), "not again within a month");
    test.execute("UPDATE nip05_domain SET seen_at = 1").await;
    assert_eq!(ctx.db.nip05_retire().await.unwrap(), 1);
}

#[tokio::test]
async fn pairs_that_share_something_are_shown_with_it_and_the_view_stays_cheap() {
    let Some(test) = migrated().await else { return };
    test.execute(
        "INSERT INTO relay (url, network, discovered_at)
         SELECT 'wss://r' || i || '.example', 'clearnet', 1 FROM generate_series(1, 10000) i;
         INSERT INTO relay (url, network, discovered_at) VALUES ('ws://r1.example', 'clearnet', 1);
         INSERT INTO host_address (host, address, seen_at) SELECT 'r' || i || '.example', '10.0.' || i / 250 || '.' || i % 250 / 100, now() FROM generate_series(1, 10000) i;
         INSERT INTO host_address (host, address, seen_at) VALUES ('x.example', '10.9.9.9', now());
         INSERT INTO metadata (id, type, data)
         SELECT sha256(('d' || i)::bytea), 'nip11_info', json_build_object('data', json_build_object('name', repeat('x', 1000), 'pubkey', lpad(to_hex(i / 2), 64, '0')))
         FROM generate_series(1, 10000) i;
         INSERT INTO relay_check_latest (relay_id, kind, vantage_id, checked_at, outcome, reason, metadata_id)
         SELECT r.id, 'nip11', 1, 1, 'ok', 'none', sha256(('d' || substring(r.url FROM 'r([0-9]+)'))::bytea) FROM relay r; ANALYZE",
    )
    .await;
    let of = "SELECT string_agg(relay_url || ' ' || array_to_string(evidence, ','), ' ' ORDER BY relay_url) FROM relay_alias WHERE relay_url = 'wss://r1.example'";
    assert_eq!(value(&test, of).await, "wss://r1.example document,host,pubkey");
    let pair = "SELECT string_agg(array_to_string(evidence, ','), ' ') FROM relay_alias WHERE relay_url = 'wss://r2.example' AND other_url = 'wss://r3.example'";
    assert_eq!(value(&test, pair).await, "pubkey", "what a hundred hosts have in common is no evidence");
    test.execute(
        "UPDATE host_address SET address = '10.99.0.1' WHERE host IN ('r7.example', 'r9.example');
         INSERT INTO metadata (id, type, data)
         SELECT sha256(('s' || i)::bytea), 'nip66_ssl', json_build_object('data', json_build_object('ssl_fingerprint', 'SHA256:' || repeat('AB:', 31) || 'AB', 'n', i))
         FROM generate_series(7, 9, 2) i;
         INSERT INTO relay_check_latest (relay_id, kind, vantage_id, checked_at, outcome, reason, metadata_id)
         SELECT r.id, 'ssl', 1, 1, 'ok', 'none', sha256(('s' || substring(r.url FROM 'r([0-9]+)'))::bytea)
         FROM relay r WHERE r.url IN ('wss://r7.example', 'wss://r9.example')",
    )
    .await;
    let pair = "SELECT string_agg(array_to_string(evidence, ','), ' ') FROM relay_alias WHERE relay_url = 'wss://r7.example' AND other_url = 'wss://r9.example'";
    assert_eq!(value(&test, pair).await, "address,certificate");
    let begun = shared::clock::monotonic_ms();
    let pairs: u64 = value(&test, "SELECT count(*)::text FROM relay_alias").await.parse().unwrap();
    let took = shared::clock::monotonic_ms() - begun;
    assert!((4_999..20_000).contains(&pairs), "{pairs}");
    // bound: a tenth of it was measured
    assert!(Duration::from_millis(took) < Duration::from_secs(5), "{took} ms");
}

#[tokio::test]
async fn a_relay_that_speaks_no_nostr_any_more_is_demoted_and_keeps_its_state() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let relay = ScriptedRelay::start(Script::honest(&[], 10)).await;
    let relay_url = url(&relay.url());
    ctx.db.relay_insert(&[(relay_url.clone(), 1)]).await.unwrap();
    run(&ctx, JobKind::Monitor, relay_url.as_str()).await.unwrap();
    relay.set(Script::named("garbage", &[]).unwrap());
    let demoted = "SELECT count(*) || ' ' || coalesce(max(reason), '') FROM relay_demoted";
    for expected in ["0 ", "0 ", "1 not_nostr"] {
        run(&ctx, JobKind::Monitor, relay_url.as_str()).await.unwrap();
        assert_eq!(value(&test, demoted).await, expected);
    }
    assert_eq!(value(&test, "SELECT count(*)::text FROM relay").await, "1");
}
