//! What a monitor job keeps of a relay behind TLS: seven checks, their documents, and why there is none.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::Value as Json;
use shared::checks::Looks;
use shared::jobs::{Ctx, JobsConfig};
use shared::models::{AddressPolicy, JobKind, Network, RelayUrl};
use shared::net::{Dialer, NetConfig};
use tests::certs::{Authority, Identity};
use tests::mmdb::{self, Value};
use tests::pg::TestDb;
use tests::scripted::{Script, ScriptedRelay};
use tests::tls::TlsFront;

use super::jobs::{config, context, run};
use super::support::{migrated, pairs};

const HOST: &str = "127.0.0.1";

struct Scene {
    ctx: Ctx,
    relay: ScriptedRelay,
}

async fn scene(test: &TestDb, authority: &Authority, looks: Looks) -> Scene {
    let mut net = NetConfig {
        policy: AddressPolicy::local(),
        trust: vec![authority.root.clone()],
        ..NetConfig::default()
    };
    net.network_mut(Network::Clearnet).connect_timeout_ms = 2_000;
    let ctx = Ctx { dialer: Dialer::new(net).unwrap(), ..context(test, JobsConfig { looks, ..config() }) };
    Scene { ctx, relay: ScriptedRelay::start(Script::honest(&[], 10)).await }
}

impl Scene {
    async fn look_at(&self, identity: Identity) -> (Json, SocketAddr) {
        let front = TlsFront::start(identity.acceptor(false), self.relay.address()).await;
        let text = format!("wss://{}", front.address);
        let url = RelayUrl::parse(&text, &AddressPolicy::local()).unwrap();
        self.ctx.db.relay_insert(&[(url.clone(), 1)]).await.unwrap();
        (run(&self.ctx, JobKind::Monitor, url.as_str()).await.unwrap(), front.address)
    }
}

#[tokio::test]
async fn a_look_over_tls_keeps_every_check_with_its_document_or_the_reason_why_there_is_none() {
    let Some(test) = migrated().await else { return };
    let folder = std::env::temp_dir().join(format!("bigbrotr-looks-{}", shared::clock::random_hex(8)));
    std::fs::create_dir(&folder).unwrap();
    let places = folder.join("places.mmdb");
    let here = Value::Map(vec![("country_code", Value::Text("DE")), ("city", Value::Text("Berlin"))]);
    std::fs::write(&places, mmdb::write(4, &[("127.0.0.0", 8, here)])).unwrap();
    let authority = Authority::new("Test Root");
    let looks = Looks::with_files(vec![places], vec![folder.join("missing.mmdb")]);
    let scene = scene(&test, &authority, looks).await;
    let (report, _) = scene.look_at(authority.good(HOST)).await;
    assert_eq!((&report["state"], &report["up"]), (&"alive".into(), &true.into()), "{report}");
    let checks = pairs(
        &test,
        "SELECT kind, outcome || ' ' || reason || ' ' || (metadata_id IS NOT NULL) FROM relay_check",
    )
    .await;
    let expected = [
        ("geo", "ok none true"),
        ("http", "ok none true"),
        ("net", "skipped data_missing false"),
        ("nip11", "ok none true"),
        ("rtt", "ok none false"),
        ("ssl", "ok none true"),
    ];
    assert_eq!(checks.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), expected);
    test.execute("SELECT all_statistics_refresh()").await;
    let documents =
        pairs(&test, "SELECT metadata_type, coalesce(data ->> 'data', '{}') FROM relay_metadata_latest")
            .await;
    let document = |kind: &str| serde_json::from_str::<Json>(&documents[kind]).unwrap();
    assert_eq!(document("nip66_geo")["geo_city"], "Berlin");
    let ssl = document("nip66_ssl");
    assert_eq!((&ssl["ssl_valid"], &ssl["ssl_issuer_cn"]), (&true.into(), &"Test Root".into()));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test]
async fn a_certificate_that_does_not_verify_is_kept_with_the_reason_and_the_relay_is_not_spoken_to() {
    let Some(test) = migrated().await else { return };
    let authority = Authority::new("Test Root");
    let scene = scene(&test, &authority, Looks::default()).await;
    let mut expected = BTreeMap::new();
    for (identity, reason) in [
        (authority.expired(HOST), "tls_expired"),
        (authority.not_yet_valid(HOST), "tls_not_yet_valid"),
        (authority.good("other.example.com"), "tls_wrong_host"),
        (Authority::new("Stranger").good(HOST), "tls_unknown_issuer"),
        (Identity::self_signed(HOST, true), "tls_self_signed"),
    ] {
        let (report, address) = scene.look_at(identity).await;
        assert_eq!((&report["up"], &report["reason"]), (&false.into(), &reason.into()), "{report}");
        expected.insert(format!("wss://{address}"), format!("{reason} false"));
    }
    let kept = pairs(
        &test,
        "SELECT r.url, c.reason || ' ' || (m.data #>> '{data,ssl_valid}') FROM relay_check c JOIN relay r ON r.id = c.relay_id \
         JOIN metadata m ON m.id = c.metadata_id AND m.type = 'nip66_ssl' WHERE c.kind = 'ssl'",
    )
    .await;
    assert_eq!(kept, expected);
    let counts = scene.relay.counts();
    assert_eq!((counts.http_requests, counts.upgrades), (0, 0), "{counts:?}");
}
