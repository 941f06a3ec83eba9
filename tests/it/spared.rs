//! Who is left alone by address, whom a bad certificate keeps out, and whom servers may complain to.

use std::collections::BTreeMap;

use shared::checks::Looks;
use shared::config::Config;
use shared::db::NewCandidate;
use shared::jobs::{Ctx, JobError, JobsConfig};
use shared::models::{AddressPolicy, JobKind, Network, RelayUrl};
use shared::net::{Dialer, NetConfig};
use tests::certs::Identity;
use tests::names::NameServer;
use tests::scripted::{Script, ScriptedRelay};
use tests::tls::TlsFront;

use super::jobs::{config, context, run};
use super::support::{migrated, pairs, value};

fn at(text: &str) -> RelayUrl {
    RelayUrl::parse(text, &AddressPolicy::local()).unwrap()
}

#[tokio::test]
async fn a_relay_in_a_denied_range_is_not_dialled_and_neither_down_nor_given_up() {
    let Some(test) = migrated().await else { return };
    let relay = ScriptedRelay::start(Script::honest(&[], 10)).await;
    let names = NameServer::start("* 127.0.0.2,127.0.0.1 none").await;
    let net = |denied: &[&str]| NetConfig {
        policy: AddressPolicy::local().without_ranges(denied.iter().map(|range| range.parse().unwrap())),
        name_servers: vec![names.address],
        ..NetConfig::default()
    };
    let open = Ctx { dialer: Dialer::new(net(&[])).unwrap(), ..context(&test, config()) };
    let shut = Ctx { dialer: Dialer::new(net(&["127.0.0.0/30"])).unwrap(), ..context(&test, config()) };
    let port = relay.address().port();
    let (known, fresh) =
        (at(&format!("ws://known.example:{port}")), at(&format!("ws://fresh.example:{port}")));
    open.db.relay_insert(&[(known.clone(), 1)]).await.unwrap();
    open.db.candidate_insert(&[NewCandidate { url: fresh.clone(), source: "seed" }]).await.unwrap();
    test.execute("SELECT schedule_reconcile()").await;
    assert_eq!(run(&open, JobKind::Monitor, known.as_str()).await.unwrap()["state"], "alive");
    let met = relay.counts().connections;
    let state = "SELECT to_jsonb(s)::text || (SELECT count(*) FROM relay_check) FROM relay_state s";
    let before = value(&test, state).await;
    for kind in [JobKind::Monitor, JobKind::Sync] {
        for _ in 0..3 {
            let ended = run(&shut, kind, known.as_str()).await;
            let Err(JobError::Cancel { why }) = &ended else { panic!("{kind}: {ended:?}") };
            assert!(why.contains("network.deny"), "{why}");
        }
    }
    // A name that may be invented is given up in the end, as if nobody answered.
    for _ in 0..3 {
        let ended = run(&shut, JobKind::Validate, fresh.as_str()).await.unwrap();
        assert_eq!((&ended["alive"], &ended["reason"]), (&false.into(), &"address_denied".into()), "{ended}");
    }
    assert_eq!(relay.counts().connections, met, "somebody was dialled");
    assert_eq!(value(&test, state).await, before);
    let due = "SELECT kind, why || ' ' || round(extract(epoch FROM due_at - now()) / 86400) FROM schedule WHERE kind <> 'validate'";
    let tomorrow = pairs(&test, due).await;
    assert!(tomorrow.len() == 2 && tomorrow.values().all(|why| why == "refused by policy 1"), "{tomorrow:?}");
    let candidate = "SELECT failures || ' ' || (tombstoned_at IS NULL) FROM candidate";
    assert_eq!(value(&test, candidate).await, "3 true");
    // Whoever takes the range back goes on where it stood.
    assert_eq!(run(&open, JobKind::Validate, fresh.as_str()).await.unwrap()["alive"], true);
}

#[tokio::test]
async fn a_relay_nobody_vouches_for_is_found_where_the_operator_accepts_it_and_is_not_read() {
    let Some(test) = migrated().await else { return };
    let relay = ScriptedRelay::start(Script::honest(&[], 10)).await;
    let front =
        TlsFront::start(Identity::self_signed("127.0.0.1", false).acceptor(false), relay.address()).await;
    let url = at(&format!("wss://{}", front.address));
    let strict = context(&test, config());
    let looks = Looks { insecure_tls: true, ..Looks::default() };
    let lenient = context(&test, JobsConfig { looks, ..config() });
    strict.db.candidate_insert(&[NewCandidate { url: url.clone(), source: "seed" }]).await.unwrap();
    let report = run(&strict, JobKind::Validate, url.as_str()).await;
    assert!(format!("{report:?}").contains("tls_self_signed"), "{report:?}");
    assert_eq!(value(&test, "SELECT count(*)::text FROM relay").await, "0");
    let report = run(&lenient, JobKind::Validate, url.as_str()).await.unwrap();
    assert_eq!((&report["alive"], &report["evidence"]), (&true.into(), &"eose".into()), "{report}");
    assert_eq!(run(&lenient, JobKind::Monitor, url.as_str()).await.unwrap()["state"], "alive");
    let ssl = "SELECT m.data #>> '{data,ssl_valid}' FROM relay_check c JOIN metadata m ON m.id = c.metadata_id WHERE c.kind = 'ssl'";
    assert_eq!(value(&test, ssl).await, "false");
    let asked = relay.counts().reqs;
    let report = run(&lenient, JobKind::Sync, url.as_str()).await.unwrap();
    assert_eq!((&report["end"], &report["requests"]), (&"interrupted".into(), &0.into()), "{report}");
    assert_eq!(relay.counts().reqs, asked, "what it says could be anybody's");
}

#[test]
fn what_is_asked_through_tor_goes_by_circuits_of_its_own_unless_somebody_says_otherwise() {
    let isolate = |env: &[(&str, &str)], network| {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Config::load(None, &env).unwrap().net_config().unwrap().network(network).isolate
    };
    assert!(isolate(&[], Network::Tor) && NetConfig::default().network(Network::Tor).isolate);
    assert!(!isolate(&[("BIGBROTR_NETWORK_TOR_ISOLATE", "false")], Network::Tor));
    assert!(!isolate(&[], Network::I2p) && !isolate(&[], Network::Loki));
}

#[test]
fn whom_to_tell_is_checked_where_it_is_set() {
    let load = |text: &str| {
        Config::load(None, &BTreeMap::from([("BIGBROTR_NETWORK_CONTACT".to_owned(), text.to_owned())]))
    };
    let contact = |text: &str| load(text).unwrap().net_config().unwrap().contact;
    assert_eq!(contact("ops@example.org").as_deref(), Some("ops@example.org"));
    assert_eq!(contact(""), None);
    for bad in ["nobody", "ops@example.org) evil", "ops@example.org\r\nX-Evil: 1"] {
        let said = load(bad).unwrap_err().to_string();
        assert!(said.starts_with("BIGBROTR_NETWORK_CONTACT is ") && said.contains("mail address"), "{said}");
    }
}
