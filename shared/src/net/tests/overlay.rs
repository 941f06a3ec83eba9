//! Overlay networks: the name goes to the proxy and nowhere else.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::testing::{DnsServer, TestServer, free_addr, local_config, silence, url};
use super::super::*;
use super::fail;
use crate::models::{Network, Outcome, Reason};

const ONION: &str = "ws://2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion";

#[tokio::test]
async fn an_overlay_without_proxy_touches_neither_dns_nor_network() {
    let dns = DnsServer::start(|_, _| None).await;
    let mut config = dns.config();
    let onion = url(ONION);
    assert_eq!(fail(&Dialer::new(config.clone()).unwrap(), &onion).await.reason, Reason::NetworkDisabled);
    config.network_mut(Network::Tor).enabled = true;
    let dialer = Dialer::new(config).unwrap();
    assert!(!dialer.serves(Network::Tor));
    let failure = fail(&dialer, &onion).await;
    assert_eq!((failure.outcome, failure.reason), (Outcome::Skipped, Reason::ProxyMissing));
    assert_eq!(dns.asked(), 0);
}

/// A SOCKS5 proxy that records credentials and name, answers `code`, and then is the relay itself.
async fn socks(code: u8, log: Arc<Mutex<Vec<String>>>) -> TestServer {
    TestServer::tcp(move |mut stream| {
        let log = Arc::clone(&log);
        async move {
            let mut greeting = [0; 2];
            stream.read_exact(&mut greeting).await.unwrap();
            let mut methods = vec![0; greeting[1].into()];
            stream.read_exact(&mut methods).await.unwrap();
            let password = methods.contains(&2);
            stream.write_all(&[5, if password { 2 } else { 0 }]).await.unwrap();
            if password {
                stream.read_exact(&mut greeting).await.unwrap();
                let mut user = vec![0; greeting[1].into()];
                stream.read_exact(&mut user).await.unwrap();
                log.lock().unwrap().push(format!("user {}", String::from_utf8(user).unwrap()));
                let size = stream.read_u8().await.unwrap();
                stream.read_exact(&mut vec![0; size.into()]).await.unwrap();
                stream.write_all(&[1, 0]).await.unwrap();
            }
            let mut request = [0; 5];
            stream.read_exact(&mut request).await.unwrap();
            assert_eq!(request[3], 3, "the name goes to the proxy unresolved");
            let mut name = vec![0; request[4].into()];
            stream.read_exact(&mut name).await.unwrap();
            let port = stream.read_u16().await.unwrap();
            log.lock().unwrap().push(format!("{}:{port}", String::from_utf8(name).unwrap()));
            stream.write_all(&[5, code, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
            if code == 0 {
                silence(tokio_tungstenite::accept_async(stream).await.unwrap()).await;
            }
        }
    })
    .await
}

fn through(proxy: std::net::SocketAddr, isolate: bool) -> NetConfig {
    let mut config = local_config();
    for &network in Network::ALL.iter().filter(|network| network.is_overlay()) {
        let entry = config.network_mut(network);
        (entry.enabled, entry.proxy, entry.isolate) = (true, Some(proxy.to_string()), isolate);
    }
    config
}

#[tokio::test]
async fn every_overlay_reaches_its_proxy_with_the_unresolved_name() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let proxy = socks(0, Arc::clone(&log)).await;
    let dns = DnsServer::start(|_, _| None).await;
    let config = NetConfig { name_servers: vec![dns.addr], ..through(proxy.addr, false) };
    let dialer = Dialer::new(config).unwrap();
    let loki = format!("ws://{}.loki", "d".repeat(52));
    for text in [ONION, "ws://relay.i2p", &loki] {
        let target = dialer.resolve(&url(text)).await.unwrap();
        dialer.websocket(&target).await.unwrap();
        let name = text.trim_start_matches("ws://");
        assert_eq!(log.lock().unwrap().pop(), Some(format!("{name}:80")));
    }
    assert_eq!(dns.asked(), 0);
    let isolating = Dialer::new(through(proxy.addr, true)).unwrap();
    let target = isolating.resolve(&url("ws://relay.i2p")).await.unwrap();
    isolating.websocket(&target).await.unwrap();
    assert_eq!(log.lock().unwrap()[0], "user relay.i2p");
}

#[tokio::test]
async fn a_dead_proxy_is_ours_and_a_refusing_one_is_not() {
    let onion = url(ONION);
    let nobody = Dialer::new(through(free_addr().await, false)).unwrap();
    let mute = TestServer::tcp(silence).await;
    let mute = Dialer::new(through(mute.addr, false)).unwrap();
    let web = TestServer::http("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let web = Dialer::new(through(web.addr, false)).unwrap();
    for dialer in [nobody, mute, web] {
        let failure = fail(&dialer, &onion).await;
        assert_eq!((failure.reason, failure.is_ours()), (Reason::ProxyDead, true), "{failure}");
    }
    let refusing = socks(4, Arc::default()).await;
    let failure = fail(&Dialer::new(through(refusing.addr, false)).unwrap(), &onion).await;
    assert_eq!((failure.outcome, failure.reason), (Outcome::Refused, Reason::ProxyRefused), "{failure}");
}

#[tokio::test]
async fn a_proxy_that_greets_and_then_waits_tells_of_the_relay() {
    let slow = TestServer::tcp(|mut stream| async move {
        stream.read_exact(&mut [0; 3]).await.unwrap();
        stream.write_all(&[5, 0]).await.unwrap();
        silence(stream).await;
    })
    .await;
    let failure = fail(&Dialer::new(through(slow.addr, false)).unwrap(), &url(ONION)).await;
    assert_eq!((failure.outcome, failure.reason), (Outcome::Timeout, Reason::ConnectTimeout), "{failure}");
}

#[tokio::test]
async fn a_proxy_that_hangs_up_once_it_was_told_the_host_tells_of_the_relay() {
    // Where it hangs up at once, or over who we are, it is the proxy that does not work.
    for (isolate, says, reason) in [
        (false, &[5_u8, 0][..], Reason::ProxyRefused),
        (true, &[5, 2, 1, 0], Reason::ProxyRefused),
        (false, &[], Reason::ProxyDead),
        (true, &[5, 2], Reason::ProxyDead),
    ] {
        let proxy = TestServer::tcp(move |mut stream| async move {
            let mut greeting = [0; 2];
            stream.read_exact(&mut greeting).await.unwrap();
            stream.read_exact(&mut vec![0; usize::from(greeting[1])]).await.unwrap();
            for step in says.chunks(2) {
                stream.write_all(step).await.unwrap();
                // what the client says to that: its credentials, or the host
                drop(stream.read(&mut [0; 512]).await);
            }
        })
        .await;
        let failure = fail(&Dialer::new(through(proxy.addr, isolate)).unwrap(), &url(ONION)).await;
        assert_eq!(
            (failure.reason, failure.is_ours()),
            (reason, reason == Reason::ProxyDead),
            "{says:?}: {failure}"
        );
    }
}
