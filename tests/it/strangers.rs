//! Where strangers may lead us, and what one of them costs the others.

use shared::jobs::{Ctx, JobsConfig};
use shared::models::{AddressPolicy, JobKind, PortRange};
use shared::net::{Dialer, NetConfig};
use tests::factory::Factory;
use tests::names::NameServer;
use tests::scripted::{Script, ScriptedRelay};

use super::jobs::{config, context, known_relay, run};
use super::support::{migrated, pairs, value};

#[tokio::test]
async fn a_url_on_a_port_that_is_no_relays_is_counted_and_not_taken() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, JobsConfig { ports: PortRange::usual(), ..config() });
    let tag = |url: &str| vec![vec!["r".to_owned(), url.to_owned()]];
    let now = shared::clock::unix_now();
    let urls = [
        "wss://found.example",
        "wss://found.example:7777",
        "ws://victim.example:22",
        "ws://victim.example:6379",
    ];
    let factory = Factory::new(81);
    let events: Vec<_> =
        urls.iter().enumerate().map(|(i, url)| factory.sign(i, 10_002, tag(url), "", now - 30)).collect();
    let relay = ScriptedRelay::start(Script::honest(&events, 100)).await;
    let url = known_relay(&ctx.db, &relay).await;
    run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    let report = run(&ctx, JobKind::Discover, "archive").await.unwrap();
    assert_eq!((&report["new_candidates"], &report["other_port"]), (&2.into(), &2.into()), "{report}");
    let known = value(&test, "SELECT string_agg(url, ' ' ORDER BY url) FROM candidate").await;
    assert_eq!(known, "wss://found.example wss://found.example:7777");
}

#[tokio::test]
async fn a_domain_whose_name_servers_fail_does_not_cost_the_others_their_turn() {
    let Some(test) = migrated().await else { return };
    let names = NameServer::start("lame.example fail fail\n* 127.0.0.1 none").await;
    let mut net = NetConfig {
        policy: AddressPolicy::local(),
        name_servers: vec![names.address],
        ..NetConfig::default()
    };
    net.network_mut(shared::models::Network::Clearnet).connect_timeout_ms = 1_000;
    let ctx = Ctx { dialer: Dialer::new(net).unwrap(), ..context(&test, config()) };
    // It is asked first, and never was before.
    test.execute("INSERT INTO nip05_domain (domain, name, seen_at) SELECT x, 'bob', extract(epoch FROM now())::bigint FROM unnest(ARRAY['lame.example', 'one.example', 'two.example']) x").await;
    test.execute("UPDATE nip05_domain SET asked_at = 1 WHERE domain <> 'lame.example'").await;
    let report = run(&ctx, JobKind::Discover, "nip05").await.unwrap();
    assert_eq!((&report["domains"], report["our_fault"].is_null()), (&3.into(), true), "{report}");
    let asked = pairs(&test, "SELECT domain, outcome FROM nip05_domain WHERE asked_at > 1").await;
    assert_eq!(asked["lame.example"], "dns_failure");
    assert_eq!(asked.len(), 3, "{asked:?}");
}
