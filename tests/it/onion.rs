//! A real relay program behind a real onion service of a Tor network on this machine, from seed to archive.

use tests::factory::Factory;
use tests::names::NameServer;
use tests::pg::Role;
use tests::programs::{Kind, Program};
use tests::publish::publish;
use tests::scripted::{Script, ScriptedRelay};
use tests::tcp::authority;
use tests::tor::TorNet;

use super::fleet::{child, environment, seed_relays, until};
use super::support::{migrated, pairs, value};

/// A name of a service that is not in the network.
const NOBODY: &str = "ws://2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion";
const ONION_ALIVE: &str = "SELECT count(*)::text FROM relay_state s JOIN relay r ON r.id = s.relay_id WHERE r.network = 'tor' AND s.state = 'alive'";

// One test: the network takes a quarter of a minute until it works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_onion_relay_is_found_checked_and_archived_and_a_dead_proxy_calls_nothing_down() {
    let Some(test) = migrated().await else { return };
    let Some(program) = Program::start(Kind::Npm).await else { return };
    let address = authority(&program.url).unwrap().parse().unwrap();
    let Some(mut tor) = TorNet::start(address).await else { return };
    let events = Factory::new(51).events(60);
    assert_eq!(publish(&program.url, &events).await.unwrap().accepted.len(), 60);

    let names = NameServer::start("clear.test 127.0.0.1 none").await;
    let mut environment = environment(&test.url(Role::Writer), &test.url(Role::Refresher));
    environment.insert("BIGBROTR_NETWORK_NAME_SERVERS".to_owned(), names.address.to_string());
    let clear = ScriptedRelay::start(Script::honest(&[], 10)).await;
    let clear_url = format!("ws://clear.test:{}", clear.address().port());
    let onion_url = format!("ws://{}", tor.onion);

    let mut with = environment.clone();
    with.insert("BIGBROTR_NETWORK_TOR_ENABLED".to_owned(), "true".to_owned());
    with.insert("BIGBROTR_NETWORK_TOR_PROXY".to_owned(), tor.socks.to_string());
    with.insert("BIGBROTR_NETWORK_TOR_TIMEOUT_S".to_owned(), "60".to_owned());

    // A worker without the proxy leaves what is Tor's alone, whatever else it does.
    let _scheduler = child("scheduler", &with);
    let _without = child("worker", &environment);
    seed_relays(&test, &[onion_url.clone(), clear_url]).await;
    until(&test, "SELECT count(*)::text FROM relay_state WHERE state = 'alive'", "1").await;
    tor.wait_until_reached().await;
    let waiting = "SELECT count(*) || ' ' || max(attempts) FROM apalis.jobs WHERE network = 'tor'";
    until(&test, waiting, "1 0").await;
    assert_eq!(value(&test, "SELECT count(*)::text FROM job_history WHERE network = 'tor'").await, "0");

    let _with = child("worker", &with);
    until(&test, ONION_ALIVE, "1").await;
    let checks = pairs(&test, "SELECT c.kind, c.outcome FROM relay_check c JOIN relay r ON r.id = c.relay_id WHERE r.network = 'tor' AND c.kind <> 'nip11'").await;
    let expected = [("http", "ok"), ("rtt", "ok")];
    assert_eq!(
        checks.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(),
        expected,
        "no address, no certificate, no name"
    );
    until(
        &test,
        "SELECT count(*)::text FROM event_relay o JOIN relay r ON r.id = o.relay_id WHERE r.network = 'tor'",
        "60",
    )
    .await;
    until(&test, "SELECT (count(*) > 0)::text FROM coverage c JOIN relay r ON r.id = c.relay_id WHERE r.network = 'tor' AND c.grade IN ('walked', 'finished', 'reconciled')", "true").await;

    // A service that nobody offers is an answer of the network.
    seed_relays(&test, &[NOBODY.to_owned()]).await;
    until(&test, "SELECT coalesce(max(failures), 0)::text FROM candidate", "1").await;
    let reason = value(&test, "SELECT last_outcome || ' ' || last_reason FROM candidate").await;
    assert!(["refused proxy_refused", "timeout connect_timeout"].contains(&reason.as_str()), "{reason}");

    // Without the client nothing is said of either.
    tor.stop_client();
    test.execute("DELETE FROM breaker; UPDATE schedule SET due_at = now() WHERE network = 'tor'").await;
    until(&test, "SELECT count(*)::text FROM breaker WHERE network = 'tor'", "1").await;
    assert_eq!(value(&test, ONION_ALIVE).await, "1");
    assert_eq!(value(&test, "SELECT max(failures)::text FROM candidate").await, "1");
    assert_eq!(value(&test, "SELECT count(*)::text FROM relay_state WHERE state <> 'alive'").await, "0");

    let asked = names.asked();
    assert!(asked.contains(&"clear.test A".to_owned()), "{asked:?}");
    assert!(asked.iter().all(|name| !name.contains("onion")), "{asked:?}");
}
