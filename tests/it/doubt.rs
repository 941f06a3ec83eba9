//! What a failed look does not say: that a relay which refuses us is down, that one is down which failed while our own
//! network did, that one refuses strangers which refused one event.

use std::net::{SocketAddr, UdpSocket};

use shared::jobs::publish::TASK;
use shared::jobs::{Ctx, Egress, JobError};
use shared::models::{AddressPolicy, Network, RelayUrl};
use shared::net::{Dialer, NetConfig};
use tests::names::NameServer;
use tests::scripted::{Script, ScriptedRelay};

use super::jobs::{config, context};
use super::judge::{INSIST, Vantage, known, mute};
use super::publish::{publishing, run};
use super::support::{migrated, pairs, value};

fn honest() -> Script {
    Script::honest(&[], 10)
}

#[tokio::test]
async fn a_relay_that_will_not_have_us_is_neither_down_nor_alive_and_is_asked_more_seldom() {
    let Some(test) = migrated().await else { return };
    let one = Vantage::new(&test, "one", 1).await;
    let base = config().monitor_interval.as_secs();
    let mut relays = Vec::new();
    for (status, reason) in [(429, "rate_limited"), (401, "auth_required"), (403, "blocked")] {
        let relay = ScriptedRelay::start(honest()).await;
        let url = known(&test, &relay).await;
        one.look(&url).await;
        relay.set(honest().refusing_upgrade(status));
        for _ in 0..3 {
            let report = one.look(&url).await;
            let said = [&report["state"], &report["overall"], &report["reason"]];
            assert_eq!(said, ["suspect", "suspect", reason], "{report}");
            assert!(report["next_s"].as_u64().unwrap() > base, "{report}");
        }
        relays.push((relay, url));
    }
    let absent = ScriptedRelay::start(honest()).await;
    let url = known(&test, &absent).await;
    one.look(&url).await;
    absent.set(honest().refusing_upgrade(404));
    one.look(&url).await;
    assert_eq!(one.look(&url).await["overall"], "down", "where nothing is, nobody is refused");
    let statuses = pairs(&test, "SELECT status::text, string_agg(kind || ' ' || reason, ', ' ORDER BY kind) FROM relay_check_latest WHERE status IS NOT NULL GROUP BY 1").await;
    let expected = [
        ("401", "rtt auth_required"),
        ("403", "rtt blocked"),
        ("404", "rtt ws_upgrade_refused"),
        ("429", "nip11 rate_limited, rtt rate_limited"),
    ];
    assert_eq!(statuses.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), expected);
    assert_eq!(value(&test, "SELECT count(*)::text FROM relay_alert WHERE after = 'down'").await, "1");
    let counted = "SELECT sum(checks) || ' ' || sum(up) FROM relay_uptime";
    assert_eq!(value(&test, counted).await, "6 4", "a refusal says nothing of how much it is up");
    for (relay, url) in &relays {
        relay.set(honest());
        assert_eq!(one.look(url).await["overall"], "alive");
    }
}

#[tokio::test]
async fn an_outage_that_has_just_begun_calls_nobody_down_without_a_canary() {
    let Some(test) = migrated().await else { return };
    let one = Vantage::new(&test, "one", 1).await;
    let (mut relays, mut urls) = (Vec::new(), Vec::new());
    for _ in 0..12 {
        let relay = ScriptedRelay::start(honest()).await;
        urls.push(known(&test, &relay).await);
        one.look(&urls[urls.len() - 1]).await;
        relays.push(relay);
    }
    // All fall silent. What answered just before still proves our network.
    let ports: Vec<u16> = relays.iter().map(|relay| relay.address().port()).collect();
    drop(relays);
    let mut mutes = Vec::new();
    for port in &ports {
        mutes.push(mute(*port).await);
    }
    for _ in 0..2 {
        for url in &urls {
            let ended = one.attempt(url, INSIST).await;
            assert!(matches!(ended, Ok(_) | Err(JobError::Sick { .. })), "{ended:?}");
        }
    }
    let states = "SELECT string_agg(DISTINCT state || ' ' || failures, ', ') FROM relay_state";
    assert_eq!(value(&test, states).await, "suspect 1");
    // One is there again, and another is not: now that is the other's own.
    test.execute("UPDATE relay_state SET checked_at = checked_at - 10").await;
    drop(mutes.remove(0));
    let mut back = None;
    for _ in 0..100 {
        back = ScriptedRelay::start_on(ports[0], honest()).await.ok();
        if back.is_some() {
            break;
        }
        // bound: 100 × 10 ms; the port is on its way to be free
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(one.look(&urls[0]).await["state"], "alive", "{}", back.is_some());
    assert_eq!(one.look(&urls[1]).await["state"], "down");
}

#[tokio::test]
async fn what_answered_before_the_first_failure_calls_nobody_down_be_it_a_canary_or_the_begin_of_a_doubt() {
    let Some(test) = migrated().await else { return };
    for remembered in [true, false] {
        let mut one = Vantage::new(&test, if remembered { "one" } else { "two" }, 1).await;
        let canary = ScriptedRelay::start(honest()).await;
        let canary_url = RelayUrl::parse(&canary.url(), &AddressPolicy::local()).unwrap();
        let relay = ScriptedRelay::start(honest()).await;
        let url = known(&test, &relay).await;
        one.look(&url).await;
        // It has refused us for a while, and others have answered since.
        relay.set(honest().refusing_upgrade(429));
        assert_eq!(one.look(&url).await["state"], "suspect");
        test.execute("UPDATE relay_state SET since_at = since_at - 3600, checked_at = checked_at - 5").await;
        if remembered {
            one.ctx.egress = Egress::new(vec![canary_url.clone()]);
        }
        one.ctx.egress.record(Network::Clearnet, None, false);
        let port = relay.address().port();
        drop(relay);
        let _mute = mute(port).await;
        assert_eq!(one.look(&url).await["state"], "suspect");
        // What the canary said then still stands; it is not there any more, and nothing else has answered.
        drop(canary);
        let again = one.look(&url).await;
        assert_eq!(
            (&again["state"], &again["reason"]),
            (&"suspect".into(), &"total_timeout".into()),
            "{again}"
        );
        // Something has: now it is the relay's own.
        test.execute("UPDATE relay_state SET checked_at = checked_at - 10").await;
        one.ctx.egress.record(Network::Clearnet, None, false);
        assert_eq!(one.look(&url).await["state"], "down", "{remembered}");
    }
}

#[tokio::test]
async fn a_look_in_doubt_takes_down_back_from_nobody() {
    let Some(test) = migrated().await else { return };
    let mut one = Vantage::new(&test, "one", 1).await;
    let relay = ScriptedRelay::start(honest()).await;
    let url = known(&test, &relay).await;
    one.look(&url).await;
    relay.set(honest().refusing_upgrade(404));
    one.look(&url).await;
    assert_eq!(one.look(&url).await["overall"], "down");
    let stands = value(&test, "SELECT stands_until::text FROM relay_state").await;
    // A worker that has just begun has no proof that its own network works.
    let port = relay.address().port();
    drop(relay);
    let mute = mute(port).await;
    one.ctx.egress = Egress::new(Vec::new());
    for _ in 0..2 {
        let report = one.look(&url).await;
        assert_eq!([&report["state"], &report["overall"]], ["down", "down"], "{report}");
        assert_eq!(report["up"], false);
    }
    assert_eq!(value(&test, "SELECT stands_until::text FROM relay_state").await, stands, "as long as before");
    assert_eq!(value(&test, "SELECT state FROM relay_liveness").await, "down");
    let told = "SELECT string_agg(after, ' ' ORDER BY id) FROM relay_alert";
    assert_eq!(value(&test, told).await, "alive suspect down");
    // A first failure in doubt stands for no time, as ever.
    test.execute("UPDATE relay_state SET state = 'suspect', failures = 0").await;
    assert_eq!(one.look(&url).await["state"], "suspect");
    let lapsed = "SELECT (stands_until = checked_at)::text FROM relay_state";
    assert_eq!(value(&test, lapsed).await, "true");
    drop(mute);
}

#[tokio::test]
async fn an_outage_of_ours_does_not_silence_a_publishing_relay_for_a_day() {
    let Some(test) = migrated().await else { return };
    let to = ScriptedRelay::start(honest()).await;
    let name = format!("ws://publisher.example:{}", to.address().port());
    let ctx = context(&test, publishing(&[&name]));
    let asking = |server: SocketAddr| {
        let mut net = NetConfig { policy: AddressPolicy::local(), ..NetConfig::default() };
        net.name_servers = vec![server];
        net.network_mut(Network::Clearnet).connect_timeout_ms = 300;
        Ctx { dialer: Dialer::new(net).unwrap(), ..ctx.clone() }
    };
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let dead = asking(silent.local_addr().unwrap());
    for _ in 0..5 {
        test.execute("UPDATE publication_relay SET next_at = now()").await;
        run(&dead, TASK).await.unwrap();
        let left =
            "SELECT failures || ' ' || (next_at < now() + interval '2 minutes') FROM publication_relay";
        assert_eq!(value(&test, left).await, "0 true");
    }
    let names = NameServer::start("publisher.example 127.0.0.1 none\n").await;
    test.execute("UPDATE publication_relay SET next_at = now()").await;
    run(&asking(names.address), TASK).await.unwrap();
    assert!(to.counts().writes > 0, "{:?}", to.counts());
}

#[tokio::test]
async fn only_a_write_refused_for_what_we_are_contradicts_a_claim_that_everybody_may() {
    let Some(test) = migrated().await else { return };
    let reasons = [
        "none",
        "auth_required",
        "restricted",
        "blocked",
        "rate_limited",
        "invalid_request",
        "write_refused",
        "closed_error",
    ];
    for reason in reasons {
        let outcome = if reason == "none" { "ok" } else { "refused" };
        test.execute(&format!(
            "WITH r AS (INSERT INTO relay (url, network, discovered_at) VALUES ('wss://{reason}.example', 'clearnet', 1) RETURNING id)
             INSERT INTO relay_capability (relay_id, claimed, write_at, write_outcome, write_reason)
             SELECT id, '{{\"restricted_writes\": false, \"nips\": []}}', 1, '{outcome}', '{reason}' FROM r"
        ))
        .await;
    }
    let named = "SELECT string_agg(measured, ', ' ORDER BY measured) FROM relay_capability_difference";
    assert_eq!(value(&test, named).await, "refused: auth_required, refused: blocked, refused: restricted");
}
