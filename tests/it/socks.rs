//! Relays behind SOCKS5 servers nobody here wrote: the name reaches the proxy and no name server; a proxy that does
//! not work is our fault, one that refuses is an answer.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use shared::db::NewCandidate;
use shared::jobs::{Ctx, JobError};
use shared::models::{AddressPolicy, JobKind, Network, RelayUrl};
use shared::net::{Dialer, NetConfig};
use tests::names::NameServer;
use tests::pg::TestDb;
use tests::scripted::{Script, ScriptedRelay};
use tests::socks::{Server, SocksProxy};

use super::jobs::{config, context};
use super::publish::run_kind;
use super::scene::signal;
use super::support::{migrated, pairs, value};

const ONION: &str = "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion";
/// A port that danted is told to bar; nobody connects to it.
const BARRED: u16 = 9;

fn url(port: u16) -> RelayUrl {
    at(ONION, port)
}

fn at(name: &str, port: u16) -> RelayUrl {
    RelayUrl::parse(&format!("ws://{name}:{port}"), &AddressPolicy::local()).unwrap()
}

/// A worker whose way into every overlay is this proxy, and whose name server is ours.
fn through(test: &TestDb, proxy: SocketAddr, isolate: bool, names: &NameServer) -> Ctx {
    let mut net = NetConfig {
        policy: AddressPolicy::local(),
        name_servers: vec![names.address],
        ..NetConfig::default()
    };
    for &network in Network::ALL.iter().filter(|network| network.is_overlay()) {
        let entry = net.network_mut(network);
        (entry.enabled, entry.proxy, entry.isolate) = (true, Some(proxy.to_string()), isolate);
        entry.connect_timeout_ms = 2_000;
    }
    Ctx { dialer: Dialer::new(net).unwrap(), ..context(test, config()) }
}

async fn run(ctx: &Ctx, kind: JobKind, url: &RelayUrl) -> Result<Value, JobError> {
    run_kind(ctx, kind, url.network().as_str(), url.as_str()).await
}

async fn candidate(ctx: &Ctx, url: &RelayUrl) {
    ctx.db.candidate_insert(&[NewCandidate { url: url.clone(), source: "seed" }]).await.unwrap();
}

fn is_sick(ended: &Result<Value, JobError>) -> bool {
    matches!(ended, Err(JobError::Sick { network: Network::Tor, .. }))
}

const FAILED: &str =
    "SELECT string_agg(url || ' ' || failures || ' ' || coalesce(last_reason, ''), ',') FROM candidate";
const STATE: &str = "SELECT string_agg(state || ' ' || failures, ',') FROM relay_state";

#[tokio::test]
async fn a_name_reaches_a_proxy_nobody_here_wrote_and_no_name_server() {
    // Neither knows credentials: offered some beside none, it takes none.
    for (server, isolate) in Server::ALL.into_iter().flat_map(|server| [(server, false), (server, true)]) {
        let Some(test) = migrated().await else { return };
        let loki = format!("{}.loki", "d".repeat(52));
        let hosts = [ONION, "relay.i2p", &loki];
        let Some(proxy) = SocksProxy::start(server, &hosts, BARRED, None).await else { return };
        let names = NameServer::start("* mute mute").await;
        let ctx = through(&test, proxy.address, isolate, &names);
        for host in hosts {
            let relay = ScriptedRelay::start(Script::honest(&[], 10)).await;
            let here = at(host, relay.address().port());
            candidate(&ctx, &here).await;
            let report = run(&ctx, JobKind::Validate, &here).await.unwrap();
            assert_eq!((&report["alive"], &report["evidence"]), (&true.into(), &"eose".into()), "{report}");
            let report = run(&ctx, JobKind::Monitor, &here).await.unwrap();
            assert_eq!(report["state"], "alive", "{server:?} {host}: {report}");
            // The proxy alone knows where the name leads: nothing else could have led there.
            let counts = relay.counts();
            assert_eq!((counts.upgrades, counts.http_requests), (2, 1), "{server:?} {host}: {counts:?}");
        }
        let checks =
            pairs(&test, "SELECT kind, outcome || ' ' || count(*) FROM relay_check GROUP BY kind, outcome")
                .await;
        let expected = ["http ok 3", "nip11 ok 3", "rtt ok 3"];
        assert_eq!(checks.iter().map(|(k, v)| format!("{k} {v}")).collect::<Vec<_>>(), expected);
        // It writes down what it was asked for; danted, where it went.
        assert!(server == Server::Dante || proxy.log().contains(ONION), "{}", proxy.log());
        assert_eq!(names.asked(), Vec::<String>::new(), "{server:?}");
    }
}

#[tokio::test]
async fn what_a_proxy_refuses_is_an_outcome() {
    for server in Server::ALL {
        let Some(test) = migrated().await else { return };
        let Some(proxy) = SocksProxy::start(server, &[ONION], BARRED, None).await else { return };
        let names = NameServer::start("* mute mute").await;
        let ctx = through(&test, proxy.address, false, &names);
        let relay = ScriptedRelay::start(Script::honest(&[], 10)).await;
        let alive = url(relay.address().port());
        let unknown = "expyuzz4wqqyqhjn.onion";
        let unknown = RelayUrl::parse(&format!("ws://{unknown}"), &AddressPolicy::local()).unwrap();
        for url in [&alive, &url(BARRED), &unknown] {
            candidate(&ctx, url).await;
        }
        // Proof that the way into the network works; without it a failure says nothing.
        assert_eq!(run(&ctx, JobKind::Validate, &alive).await.unwrap()["alive"], true);
        for url in [&url(BARRED), &unknown] {
            let report = run(&ctx, JobKind::Validate, url).await.unwrap();
            assert_eq!(
                (&report["alive"], &report["reason"]),
                (&false.into(), &"proxy_refused".into()),
                "{server:?} {url}: {report}"
            );
        }
        let failed = "SELECT count(*)::text FROM candidate WHERE failures = 1 AND last_reason = 'proxy_refused' AND last_outcome = 'refused'";
        assert_eq!(value(&test, failed).await, "2");
        assert_eq!(names.asked(), Vec::<String>::new(), "{server:?}");
    }
}

#[tokio::test]
async fn a_frozen_or_dead_proxy_is_our_fault_and_nothing_is_called_down() {
    let Some(test) = migrated().await else { return };
    let Some(proxy) = SocksProxy::start(Server::Microsocks, &[ONION], BARRED, None).await else { return };
    let names = NameServer::start("* mute mute").await;
    let ctx = through(&test, proxy.address, false, &names);
    let relay = ScriptedRelay::start(Script::honest(&[], 10)).await;
    let (here, other) = (url(relay.address().port()), url(BARRED));
    candidate(&ctx, &other).await;
    ctx.db.relay_insert(&[(here.clone(), 1)]).await.unwrap();
    assert_eq!(run(&ctx, JobKind::Monitor, &here).await.unwrap()["state"], "alive");
    signal(proxy.process(), "STOP");
    // It still takes connections, by the kernel's hand, and says nothing.
    for (kind, url) in [(JobKind::Monitor, &here), (JobKind::Validate, &other)] {
        let ended = run(&ctx, kind, url).await;
        assert!(is_sick(&ended), "{kind}: {ended:?}");
    }
    signal(proxy.process(), "CONT");
    assert_eq!(run(&ctx, JobKind::Monitor, &here).await.unwrap()["state"], "alive");
    drop(proxy);
    for _ in 0..3 {
        for (kind, url) in [(JobKind::Monitor, &here), (JobKind::Validate, &other)] {
            let ended = run(&ctx, kind, url).await;
            assert!(is_sick(&ended), "{kind}: {ended:?}");
        }
    }
    assert_eq!(value(&test, STATE).await, "alive 0");
    assert_eq!(value(&test, FAILED).await, format!("{other} 0 "));
}

#[tokio::test]
async fn a_proxy_that_asks_who_we_are_is_told_the_relay_and_one_that_does_not_know_it_is_our_fault() {
    let relay = ScriptedRelay::start(Script::honest(&[], 10)).await;
    let here = url(relay.address().port());
    for (login, isolate, works) in
        [((ONION, "-"), true, true), ((ONION, "-"), false, false), (("somebody", "-"), true, false)]
    {
        let Some(test) = migrated().await else { return };
        let proxy = SocksProxy::start(Server::Microsocks, &[ONION], BARRED, Some(login)).await;
        let Some(proxy) = proxy else { return };
        let names = NameServer::start("* mute mute").await;
        let ctx = through(&test, proxy.address, isolate, &names);
        ctx.db.relay_insert(&[(here.clone(), 1)]).await.unwrap();
        let ended =
            tokio::time::timeout(Duration::from_secs(20), run(&ctx, JobKind::Monitor, &here)).await.unwrap();
        if works {
            assert_eq!(ended.unwrap()["state"], "alive");
        } else {
            assert!(is_sick(&ended), "{login:?} {isolate}: {ended:?}");
            assert_eq!(value(&test, "SELECT count(*)::text FROM relay_state").await, "0");
        }
    }
}
