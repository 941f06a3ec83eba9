//! The chaos proxy breaks connections on command, and only then.

use std::time::Duration;

use serde_json::json;
use tests::factory::Factory;
use tests::proxy::ChaosProxy;
use tests::publish::Client;
use tests::scripted::{Script, ScriptedRelay};

/// Long against loopback's microseconds, short against a test's patience.
const STALLED: Duration = Duration::from_millis(200);

async fn relay_behind_a_proxy() -> (ScriptedRelay, ChaosProxy) {
    let relay = ScriptedRelay::start(Script::honest(&Factory::new(1).events(10), 500)).await;
    let proxy = ChaosProxy::start(relay.address()).await;
    (relay, proxy)
}

#[tokio::test]
async fn passes_until_cut_and_again_after_restore() {
    let (relay, proxy) = relay_behind_a_proxy().await;
    let url = proxy.url_of(&relay.url());
    let mut client = Client::connect(&url).await.unwrap();
    assert_eq!(client.req(&json!({})).await.unwrap().events.len(), 10);

    proxy.cut();
    assert_eq!(client.next_text().await.unwrap(), None);
    Client::connect(&url).await.unwrap_err();

    proxy.restore();
    let mut client = Client::connect(&url).await.unwrap();
    assert_eq!(client.req(&json!({})).await.unwrap().events.len(), 10);
}

#[tokio::test]
async fn stall_delays_and_loses_nothing() {
    let (relay, proxy) = relay_behind_a_proxy().await;
    let mut client = Client::connect(&proxy.url_of(&relay.url())).await.unwrap();
    proxy.stall();
    client.send(json!(["REQ", "kit", {}]).to_string()).await.unwrap();
    tokio::time::timeout(STALLED, client.next_text()).await.unwrap_err();
    proxy.restore();
    for _ in 0..10 {
        assert!(client.next_text().await.unwrap().unwrap().starts_with("[\"EVENT\""));
    }
}

#[tokio::test]
async fn reset_is_felt_as_a_reset() {
    use tokio::io::AsyncReadExt as _;
    let (_relay, proxy) = relay_behind_a_proxy().await;
    let mut stream = tests::tcp::dial(proxy.address()).await.unwrap();
    proxy.reset();
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}
