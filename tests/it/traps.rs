//! Servers that mean harm, looked at by a monitor job: each costs a check its answer, and nobody anything else.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use shared::jobs::publish::TASK;
use shared::models::{AddressPolicy, JobKind, Network, RelayUrl};
use shared::net::{Dialer, NetConfig};
use tests::pg::Role;
use tests::publish::Client;
use tests::scripted::{Extra, Raw, Script, ScriptedRelay, Speech};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::fleet::{child, environment, until};
use super::jobs::{config, context, known_relay, run};
use super::publish;
use super::support::{migrated, pairs, value};

const GIGABYTE: u64 = 1 << 30;
const PIECE: u64 = 64 * 1024;

/// A gigabyte of a document, with its length said or not.
fn gigabyte(line: &str) -> Raw {
    let head = format!("HTTP/1.1 200 Scripted\r\nContent-Type: application/nostr+json\r\n{line}\r\n");
    let piece = vec![b' '; usize::try_from(PIECE).unwrap()];
    Raw { head, piece, times: GIGABYTE / PIECE, ..Raw::default() }
}

/// Answers what it is asked, so that a look takes no longer than what it is about.
fn honest() -> Script {
    Script::honest(&[], 10).speaking(Speech {
        count: Extra::Works,
        negentropy: Extra::Works,
        ..Speech::default()
    })
}

/// A stream of this head and then a byte each 20 ms.
fn drip(head: &str, upgrade: bool) -> Raw {
    Raw { head: head.to_owned(), piece: b"x".to_vec(), times: 10_000, pause_ms: 20, upgrade }
}

#[tokio::test]
async fn a_document_that_means_harm_is_a_reason_and_its_relay_is_alive() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    // Who is redirected to would be met here.
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let found = |to: String| Raw {
        head: format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"),
        ..Raw::default()
    };
    let bomb = Raw::document("Content-Encoding: gzip", vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0]);
    let deflated = Raw::document("Content-Encoding: br, identity", b"{}".to_vec());
    let deep = Raw::document("X: y", [b"{\"a\":".repeat(40_000), b"}".repeat(40_000)].concat());
    let long = Raw::document("X: y", vec![b' '; 256 * 1024 + 1]);
    let begun = "HTTP/1.1 200 OK\r\nContent-Type: application/nostr+json\r\n";
    let expected = [
        ("gzip", bomb, "http_encoding"),
        ("brotli", deflated, "http_encoding"),
        ("deep and cut short", deep, "not_json"),
        ("a byte too long", long, "http_body_too_large"),
        ("a gigabyte", gigabyte("Content-Length: 1073741824\r\n"), "http_body_too_large"),
        ("a gigabyte unsaid", gigabyte(""), "http_body_too_large"),
        ("redirect", found(format!("http://{}/", elsewhere.local_addr().unwrap())), "http_status"),
        ("metadata", found("http://169.254.169.254/latest".to_owned()), "http_status"),
        ("a body that drips", drip(&format!("{begun}Content-Length: 9999\r\n\r\n"), false), "total_timeout"),
        ("a head that drips", drip(&format!("{begun}X: "), false), "total_timeout"),
        (
            "a head without end",
            Raw { head: begun.to_owned(), piece: b"X: y\r\n".repeat(64), times: 10_000, ..Raw::default() },
            "http_invalid",
        ),
    ];
    for (name, raw, reason) in expected {
        let relay = ScriptedRelay::start(honest().pouring(raw)).await;
        let url = known_relay(&ctx.db, &relay).await;
        let report = run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap();
        assert_eq!(report["state"], "alive", "{name}: {report}");
        let check = "SELECT reason || ' ' || (metadata_id IS NULL) FROM relay_check WHERE kind = 'nip11' ORDER BY relay_id DESC LIMIT 1";
        assert_eq!(value(&test, check).await, format!("{reason} true"), "{name}");
        assert!(relay.counts().poured < 64 << 20, "{name}: {} bytes were taken", relay.counts().poured);
    }
    let nobody = tokio::time::timeout(Duration::from_millis(50), elsewhere.accept()).await;
    assert!(nobody.is_err(), "a redirect of a relay was followed");
}

#[tokio::test]
async fn a_handshake_without_end_costs_its_own_time_and_no_more() {
    let Some(test) = migrated().await else { return };
    let mut net = NetConfig { policy: AddressPolicy::local(), ..NetConfig::default() };
    net.network_mut(Network::Clearnet).connect_timeout_ms = 500;
    let ctx = shared::jobs::Ctx { dialer: Dialer::new(net).unwrap(), ..context(&test, config()) };
    // A record of TLS that never ends.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tls = RelayUrl::parse(&format!("wss://{}", listener.local_addr().unwrap()), &AddressPolicy::local())
        .unwrap();
    let mut served = JoinSet::new();
    served.spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            open.spawn(async move {
                let mut hello = [0; 5];
                stream.read_exact(&mut hello).await.ok();
                stream.write_all(&[22, 3, 3, 0x40, 0]).await.ok();
                while stream.write_all(&[2]).await.is_ok() {
                    // bound: the client's deadline, which closes the connection
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
        }
    });
    let upgrade = ScriptedRelay::start(honest().pouring(drip("HTTP/1.1 101 Switching\r\nX: ", true))).await;
    let upgrade = known_relay(&ctx.db, &upgrade).await;
    ctx.db.relay_insert(&[(tls.clone(), 1)]).await.unwrap();
    for url in [&tls, &upgrade] {
        let begun = shared::clock::monotonic_ms();
        let report = run(&ctx, JobKind::Monitor, url.as_str()).await;
        let took = shared::clock::monotonic_ms() - begun;
        // Alone it proves nothing about our own network, nor does it end otherwise than by the clock.
        let said = format!("{report:?}");
        assert!(said.contains("total_timeout"), "{url}: {said}");
        // bound: two connections of half a second on a busy machine
        assert!(took < 5_000, "{url}: {took} ms");
    }
}

#[tokio::test]
async fn a_document_of_wrong_types_everywhere_spoils_no_view_and_injects_no_tag() {
    let Some(test) = migrated().await else { return };
    let home = ScriptedRelay::start(Script::honest(&[], 100)).await;
    let ctx = context(&test, publish::publishing(&[&home.url()]));
    let wrong = [
        json!(null),
        json!(7),
        json!(-1.5e300),
        json!("7"),
        json!([[["x"]]]),
        json!({ "a": {} }),
        json!(true),
    ];
    let fields = [
        "name",
        "description",
        "banner",
        "icon",
        "pubkey",
        "self",
        "contact",
        "supported_nips",
        "software",
        "version",
        "terms_of_service",
        "payments_url",
        "limitation",
        "fees",
        "retention",
        "relay_countries",
        "language_tags",
        "tags",
        "posting_policy",
        "negentropy",
    ];
    let mut documents: Vec<Value> = wrong
        .iter()
        .map(|value| {
            fields
                .iter()
                .map(|field| ((*field).to_owned(), value.clone()))
                .collect::<serde_json::Map<_, _>>()
                .into()
        })
        .collect();
    let limits = [
        "max_message_length",
        "max_limit",
        "default_limit",
        "min_pow_difficulty",
        "auth_required",
        "created_at_lower_limit",
    ];
    documents.extend(wrong.iter().map(|value| {
        let limits: BTreeMap<_, _> = limits.iter().map(|name| (*name, value)).collect();
        json!({ "limitation": limits, "supported_nips": [value, value], "fees": { "admission": [value] }, "retention": [value], "tags": [value] })
    }));
    let evil = "evil\r\nd: wss://victim.example/\u{202e}";
    for evil in [evil, "nul\u{0}"] {
        documents.push(json!({
            "name": evil, "software": evil, "version": evil, "tags": [evil], "language_tags": [evil], "pubkey": evil,
            "limitation": { "min_pow_difficulty": 200 },
        }));
    }
    let mut urls = Vec::new();
    for document in &documents {
        let relay = ScriptedRelay::start(honest().saying(document)).await;
        let url = known_relay(&ctx.db, &relay).await;
        let report = run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap();
        assert_eq!(report["state"], "alive", "{document}: {report}");
        urls.push(url.to_string());
    }
    test.execute("SELECT all_statistics_refresh()").await;
    let stats = value(
        &test,
        "SELECT count(*) || ' ' || count(*) FILTER (WHERE nip11_name LIKE 'evil%') FROM relay_stats",
    )
    .await;
    assert!(stats.starts_with(&documents.len().to_string()), "{stats}");
    publish::run(&ctx, TASK).await.unwrap();
    let filter = json!({ "kinds": [30166], "limit": 100 });
    let published = Client::connect(&home.url()).await.unwrap().req(&filter).await.unwrap().events;
    assert_eq!(published.len(), documents.len());
    for event in &published {
        let tags = event["tags"].as_array().unwrap();
        let named: Vec<_> =
            tags.iter().filter(|tag| tag[0] == "d").map(|tag| tag[1].as_str().unwrap()).collect();
        assert!(named.len() == 1 && urls.contains(&named[0].trim_end_matches('/').to_owned()), "{named:?}");
        let texts = tags.iter().flat_map(|tag| tag.as_array().unwrap()).map(|text| text.as_str().unwrap());
        for text in texts {
            assert!(
                !text.contains(|c: char| c.is_control() || c == '\u{202e}') && text.len() <= 300,
                "{text:?}"
            );
        }
    }
}

/// The most memory a process had, MiB; of one that has ended nothing is known.
pub(crate) fn peak_mib(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1_024)
}

#[tokio::test]
async fn what_cannot_be_kept_of_a_document_is_said_and_the_rest_is_read() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, publish::publishing(&["ws://127.0.0.1:1"]));
    let name = r#""name":"kept","limitation":{"max_limit":77}"#;
    let deep = format!("{}1{}", "[".repeat(60_000), "]".repeat(60_000));
    let bodies = [
        format!(r#"{{{name},"x":"nul \u0000 and half \ud800"}}"#),
        format!(r#"{{{name},"x":{deep}}}"#),
        format!(r#"{{{name},"x":"{}"}}"#, "x".repeat(70_000)),
    ];
    for body in bodies {
        let relay = ScriptedRelay::start(honest().pouring(Raw::document("X: y", body.into_bytes()))).await;
        let url = known_relay(&ctx.db, &relay).await;
        run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap();
    }
    let seen = "SELECT string_agg(concat_ws(' ', coalesce(m.data #>> '{data,name}', '-'), coalesce(m.data #>> '{logs,replaced}', '-'), \
                coalesce(m.data #>> '{logs,kept}', '-'), c.outcome, b.claimed ->> 'max_limit'), ', ' ORDER BY c.relay_id) \
                FROM relay_check c JOIN metadata m ON m.id = c.metadata_id LEFT JOIN relay_capability b ON b.relay_id = c.relay_id WHERE c.kind = 'nip11'";
    assert_eq!(value(&test, seen).await, "kept 2 - ok 77, kept - - ok 77, - - false ok 77");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_documents_of_a_gigabyte_each_fit_a_small_worker() {
    let Some(test) = migrated().await else { return };
    let mut relays = Vec::new();
    for i in 0..20 {
        let line = if i % 2 == 0 { "Content-Length: 1073741824\r\n" } else { "" };
        relays.push(ScriptedRelay::start(honest().pouring(gigabyte(line))).await);
    }
    let ctx = context(&test, config());
    for relay in &relays {
        known_relay(&ctx.db, relay).await;
    }
    let mut environment = environment(&test.url(Role::Writer), &test.url(Role::Refresher));
    environment.insert("BIGBROTR_WORKER_KINDS".to_owned(), "monitor".to_owned());
    let worker = child("worker", &environment);
    let _scheduler = child("scheduler", &environment);
    until(&test, "SELECT count(DISTINCT relay_id)::text FROM relay_check WHERE kind = 'nip11'", "20").await;
    let checks = pairs(
        &test,
        "SELECT reason, count(DISTINCT relay_id)::text FROM relay_check WHERE kind = 'nip11' GROUP BY reason",
    )
    .await;
    assert_eq!(checks, BTreeMap::from([("http_body_too_large".to_owned(), "20".to_owned())]));
    let (peak, poured) =
        (peak_mib(worker.pid()).unwrap(), relays.iter().map(|relay| relay.counts().poured).max().unwrap());
    // bound: the budget of a worker that monitors (DESIGN), although this is a debug build; each body a gigabyte
    assert!(peak <= 150, "{peak} MiB");
    assert!(poured < 64 << 20, "{poured} bytes were taken of one of them");
}

/// Bodies up to so many bytes that cost their reader most: kept whole, kept as their hash, and refused by their length.
fn costly(bytes: usize) -> Vec<Vec<u8>> {
    let of = |head: &str, item: &str, tail: &str, bytes: usize| {
        format!("{head}{}{tail}", item.repeat((bytes - head.len() - tail.len()) / item.len())).into_bytes()
    };
    let members: String = (0..)
        .map(|n| format!("\"{n:x}\":0,"))
        .scan(12, |sum, member| {
            *sum += member.len();
            (*sum < bytes).then_some(member)
        })
        .collect();
    vec![
        of(r#"{"x":["#, r#"{"":0},"#, "0]}", bytes),
        of(r#"{"supported_nips":["#, "1,", "1]}", bytes),
        of(r#"{"x":["#, "1e15,", "0]}", bytes),
        format!("{{{members}\"name\":0}}").into_bytes(),
        of(r#"{"name":""#, "n", r#""}"#, bytes),
        of(r#"{"name":""#, "n", r#""}"#, 65_000),
        of(r#"{"x":["#, r#"{"":0},"#, "0]}", 65_000),
        of(r#"{"x":["#, r#"{"":0},"#, "0]}", (1 << 20) - 100),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_just_below_the_cap_in_every_slot_fits_a_worker() {
    let Some(test) = migrated().await else { return };
    let bodies = costly(256 * 1024);
    let mut relays = Vec::new();
    for i in 0..64 {
        let raw = Raw::document("X: y", bodies[i % bodies.len()].clone());
        relays.push(ScriptedRelay::start(honest().pouring(raw)).await);
    }
    let ctx = context(&test, config());
    for relay in &relays {
        known_relay(&ctx.db, relay).await;
    }
    let mut environment = environment(&test.url(Role::Writer), &test.url(Role::Refresher));
    environment.insert("BIGBROTR_WORKER_KINDS".to_owned(), "monitor".to_owned());
    let worker = child("worker", &environment);
    let _scheduler = child("scheduler", &environment);
    until(&test, "SELECT count(DISTINCT relay_id)::text FROM relay_check WHERE kind = 'nip11'", "64").await;
    let peak = peak_mib(worker.pid()).unwrap();
    // bound: the budget of a worker that monitors (DESIGN), although this is a debug build
    assert!(peak <= 150, "{peak} MiB");
    let kept = "SELECT count(*) || ' ' || count(*) FILTER (WHERE (data #>> '{logs,kept}') = 'false') || ' ' || max(octet_length(data::text)) FROM metadata WHERE type = 'nip11_info'";
    // Seven of the eight are read; of the larger ones their hashes are kept.
    assert_eq!(value(&test, kept).await, "7 5 65033");
}
