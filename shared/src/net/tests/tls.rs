//! TLS: what verifies, what does not and why, and what is seen of it either way.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::super::testing::tls::{Authority, Identity, tls_relay, trusting};
use super::super::testing::{TestServer, local_config, local_dialer, silence, url};
use super::super::*;
use super::fail;
use crate::models::{Outcome, Reason};

const HOST: &str = "127.0.0.1";
const NOTHING: &str = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";

async fn look(config: NetConfig, server: &TestServer) -> (Result<(), DialFailure>, Seen) {
    let dialer = Dialer::new(config).unwrap();
    let target = dialer.resolve(&url(&format!("wss://{}", server.addr))).await.unwrap();
    let mut seen = Seen::default();
    let ended = dialer.websocket_seen(&target, &mut seen).await;
    (ended.map(drop), seen)
}

#[tokio::test]
async fn a_certificate_that_does_not_verify_says_why_and_is_seen_all_the_same() {
    let authority = Authority::new("Test Root");
    let stranger = Authority::new("Stranger");
    for (identity, reason) in [
        (authority.expired(HOST), Reason::TlsExpired),
        (authority.not_yet_valid(HOST), Reason::TlsNotYetValid),
        (authority.good("relay.example.com"), Reason::TlsWrongHost),
        (stranger.good(HOST), Reason::TlsUnknownIssuer),
        (Identity::self_signed(HOST, false), Reason::TlsSelfSigned),
        (Identity::self_signed(HOST, true), Reason::TlsSelfSigned),
    ] {
        let leaf = identity.leaf.to_vec();
        let (server, log) = tls_relay(identity.acceptor(false), "", NOTHING).await;
        let (ended, seen) = look(trusting(&authority, local_config()), &server).await;
        let failure = ended.expect_err(reason.as_str());
        assert_eq!((failure.outcome, failure.reason), (Outcome::Invalid, reason), "{failure}");
        let facts = seen.tls.expect("the handshake was seen");
        assert_eq!(facts.distrust, Some(failure));
        assert_eq!((facts.leaf, facts.chain_len), (leaf, 1));
        assert_eq!((facts.protocol, facts.cipher_bits), ("TLSv1.3", 128), "{}", facts.cipher);
        assert_eq!(seen.head, None);
        assert_eq!(*log.lock().unwrap(), ["connection"], "one handshake, and nothing was said in it");
    }
}

#[tokio::test]
async fn a_certificate_that_verifies_is_seen_with_the_headers() {
    let authority = Authority::new("Test Root");
    for old in [false, true] {
        let headers = "Server: strfry\r\nX-Powered-By: caf\u{e9}\r\n";
        let (server, _) = tls_relay(authority.good(HOST).acceptor(old), headers, NOTHING).await;
        let (ended, seen) = look(trusting(&authority, local_config()), &server).await;
        ended.unwrap();
        let facts = seen.tls.unwrap();
        assert_eq!(facts.distrust, None);
        assert_eq!(facts.protocol, if old { "TLSv1.2" } else { "TLSv1.3" });
        let head = seen.head.unwrap();
        assert_eq!((head.status, head.server.as_deref()), (101, Some("strfry")));
        assert_eq!(head.powered_by.as_deref(), Some("caf\u{e9}"));
    }
}

#[tokio::test]
async fn a_certificate_that_has_verified_is_judged_anew_each_time() {
    let authority = Authority::new("Test Root");
    let (server, _) = tls_relay(authority.good(HOST).acceptor(false), "", NOTHING).await;
    for _ in 0..2 {
        look(trusting(&authority, local_config()), &server).await.0.unwrap();
    }
    let failure = look(local_config(), &server).await.0.unwrap_err();
    assert_eq!(failure.reason, Reason::TlsUnknownIssuer, "trusted by somebody else: {failure}");
}

#[tokio::test]
async fn any_certificate_is_accepted_only_where_that_was_asked_for() {
    let (server, _) = tls_relay(Authority::new("Test Root").expired(HOST).acceptor(false), "", NOTHING).await;
    let dialer = local_dialer();
    let target = dialer.resolve(&url(&format!("wss://{}", server.addr))).await.unwrap();
    assert!(dialer.websocket(&target).await.is_err());
    let target = target.with_any_certificate();
    let mut seen = Seen::default();
    dialer.websocket_seen(&target, &mut seen).await.unwrap();
    assert!(seen.tls.unwrap().distrust.is_some(), "what it is stays known");
    assert_eq!(dialer.http_get(&target, "*/*", 64).await.unwrap().status, 404);
}

#[tokio::test]
async fn whoever_does_not_hold_the_key_is_nobody_however_good_the_certificate() {
    let authority = Authority::new("Test Root");
    for old in [false, true] {
        let (server, log) = tls_relay(authority.good(HOST).stolen().acceptor(old), "", NOTHING).await;
        for insecure in [false, true] {
            let dialer = Dialer::new(trusting(&authority, local_config())).unwrap();
            let target = dialer.resolve(&url(&format!("wss://{}", server.addr))).await.unwrap();
            let target = if insecure { target.with_any_certificate() } else { target };
            let mut seen = Seen::default();
            let failure = dialer.websocket_seen(&target, &mut seen).await.map(drop).unwrap_err();
            assert_eq!(failure.outcome, Outcome::Invalid, "{failure}");
            assert_eq!(seen, Seen::default(), "a handshake that did not end shows nothing");
        }
        assert!(log.lock().unwrap().iter().all(|line| line == "connection"));
    }
}

#[tokio::test]
async fn a_server_without_tls_fails_the_handshake_and_a_mute_one_the_deadline() {
    let plain = TestServer::tcp(|mut stream: TcpStream| async move {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        silence(stream).await;
    })
    .await;
    let failure = fail(&local_dialer(), &url(&format!("wss://{}", plain.addr))).await;
    assert_eq!((failure.outcome, failure.reason), (Outcome::Invalid, Reason::TlsFailed));
    let mute = TestServer::tcp(silence).await;
    let failure = fail(&local_dialer(), &url(&format!("wss://{}", mute.addr))).await;
    assert_eq!((failure.outcome, failure.reason), (Outcome::Timeout, Reason::TotalTimeout));
}

#[tokio::test]
async fn a_handshake_that_never_ends_ends_at_the_deadline() {
    let endless = TestServer::tcp(|mut stream: TcpStream| async move {
        // The head of a handshake message of the largest length, and then a byte now and then.
        if stream.write_all(&[22, 3, 3, 0x3f, 0xff, 2, 0, 0x3f, 0xfb]).await.is_err() {
            return;
        }
        while stream.write_all(&[0]).await.is_ok() {
            // bound: the client's deadline, which closes the connection
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let started = crate::clock::monotonic_ms();
    let failure = fail(&local_dialer(), &url(&format!("wss://{}", endless.addr))).await;
    assert_eq!((failure.outcome, failure.reason), (Outcome::Timeout, Reason::TotalTimeout));
    assert!(elapsed_ms(started) < 5_000);
}

#[test]
fn a_root_that_is_no_certificate_is_our_error() {
    let config = NetConfig { trust: vec![b"nonsense".to_vec()], ..local_config() };
    let error = Dialer::new(config).unwrap_err().to_string();
    assert!(error.contains("number 1"), "{error}");
}
