//! The guarded HTTP client against servers that lead astray.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::testing::tls::{Authority, tls_relay};
use super::super::testing::{DnsServer, TestServer, local_config, local_dialer, request_head, silence, url};
use super::super::web::next_hop;
use super::super::*;
use super::a;
use crate::models::{AddressPolicy, Reason};

const LIMIT: Duration = Duration::from_millis(800);

fn web(dialer: &Dialer) -> Web {
    Web::new(dialer, LIMIT).unwrap()
}

#[test]
fn a_redirect_never_leaves_https_and_keeps_relative_paths() {
    let at = reqwest::Url::parse("https://lists.example/v1/online").unwrap();
    assert_eq!(next_hop(&at, "../v2").unwrap().as_str(), "https://lists.example/v2");
    assert_eq!(next_hop(&at, "//other.example/x").unwrap().as_str(), "https://other.example/x");
    for bad in ["http://lists.example/v1/online", "ftp://lists.example/", "javascript:1", "http://["] {
        assert_eq!(next_hop(&at, bad).unwrap_err().reason, Reason::HttpStatus, "{bad}");
    }
}

/// With nobody to ask.
async fn get(web: &Web, url: &str, max_bytes: usize) -> Result<WebReply, WebFailure> {
    let free = |_, _| std::future::ready(None::<()>);
    web.get(url, max_bytes, free).await.map_err(|why| match why {
        NoReply::Failed(failure) => failure,
        NoReply::KeptOff(()) => unreachable!("nothing was"),
    })
}

#[tokio::test]
async fn every_request_says_whom_to_tell_of_trouble() {
    let heard = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&heard);
    let server = TestServer::tcp(move |mut stream: TcpStream| {
        let log = Arc::clone(&log);
        async move {
            let request = request_head(&mut stream).await;
            log.lock().unwrap().push(request);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await.ok();
        }
    })
    .await;
    let dialer =
        Dialer::new(NetConfig { contact: Some("ops@example.org".to_owned()), ..local_config() }).unwrap();
    let target = dialer.resolve(&url(&format!("ws://{}", server.addr))).await.unwrap();
    dialer.http_get(&target, "*/*", 10).await.unwrap();
    dialer.websocket(&target).await.unwrap_err();
    let page = format!("http://{}/", server.addr);
    // What is made of it for an operator's own machines as well.
    get(&web(&dialer.permitting(&[])), &page, 10).await.unwrap();
    web(&dialer).post_json(&page, "{}".to_owned(), None, 10).await.unwrap();
    let heard = heard.lock().unwrap();
    assert_eq!(heard.len(), 4);
    for request in heard.iter() {
        assert!(
            request.contains("(+https://github.com/bigbrotr/bigbrotr; ops@example.org)\r\n"),
            "{request}"
        );
    }
    for bad in ["nobody", "ops@example.org\r\nx: y"] {
        let refused = Dialer::new(NetConfig { contact: Some(bad.to_owned()), ..local_config() });
        assert!(matches!(refused, Err(NetError::BadContact { .. })), "{bad}");
    }
}

async fn redirecting(to: &str) -> TestServer {
    TestServer::http(format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")).await
}

/// The answer, and how often it was given.
async fn counted(answer: &'static str) -> (Arc<AtomicUsize>, TestServer) {
    let hits = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&hits);
    let server = TestServer::tcp(move |mut stream: TcpStream| {
        let count = Arc::clone(&count);
        async move {
            count.fetch_add(1, Ordering::Relaxed);
            request_head(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.ok();
        }
    })
    .await;
    (hits, server)
}

/// Loopback by number only; names are answered by a server of ours.
async fn names() -> (DnsServer, Dialer) {
    let dns = DnsServer::start(|name, kind| match (name, kind) {
        ("good.example.com", RecordType::A) => Some((ResponseCode::NoError, vec![a(name, [127, 0, 0, 1])])),
        ("inside.example.com", RecordType::A) => Some((ResponseCode::NoError, vec![a(name, [10, 0, 0, 5])])),
        ("mixed.example.com", RecordType::A) => {
            Some((ResponseCode::NoError, vec![a(name, [127, 0, 0, 1]), a(name, [169, 254, 169, 254])]))
        }
        _ => Some((ResponseCode::NoError, Vec::new())),
    })
    .await;
    let policy = AddressPolicy::public().with_ranges(["127.0.0.0/8".parse().unwrap()]);
    let dialer = Dialer::new(NetConfig { policy, ..dns.config() }).unwrap();
    (dns, dialer)
}

#[tokio::test]
async fn an_answer_comes_whole_and_says_where_from() {
    let server =
        TestServer::http("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n[]")
            .await;
    let (_dns, dialer) = names().await;
    let url = format!("http://good.example.com:{}/list?x=1", server.addr.port());
    let reply = get(&web(&dialer), &url, 100).await.unwrap();
    assert_eq!((reply.status, reply.body.as_slice(), reply.url), (200, b"[]".as_slice(), url));
    assert_eq!(reply.content_type.as_deref(), Some("application/json"));
}

#[tokio::test]
async fn a_redirect_to_an_address_or_a_name_that_may_not_be_dialled_is_refused() {
    let (dns, dialer) = names().await;
    for to in [
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[fe80::1]/",
        "http://[::1]/",
        "http://0x0a000001/",
        "http://2852039166/",
        "http://localhost/",
        "http://intern/",
        "http://metadata.internal/",
        "http://someonionaddressxyz.onion/",
        "http://x.i2p/",
        "http://inside.example.com/",
        "http://mixed.example.com/",
        "//10.0.0.1/",
    ] {
        let server = redirecting(to).await;
        let failure = get(&web(&dialer), &format!("http://{}/", server.addr), 100).await.unwrap_err();
        assert_eq!(failure.reason, Reason::AddressRefused, "{to}: {failure}");
        let failure = get(&web(&dialer), to, 100).await.unwrap_err();
        let wanted = if to.starts_with("//") { Reason::HttpInvalid } else { Reason::AddressRefused };
        assert_eq!(failure.reason, wanted, "asked for at once, {to}: {failure}");
    }
    for to in ["ftp://127.0.0.1/", "http://user@127.0.0.1/", "file:///etc/passwd"] {
        let server = redirecting(to).await;
        let failure = get(&web(&dialer), &format!("http://{}/", server.addr), 100).await.unwrap_err();
        assert_eq!(failure.reason, Reason::HttpInvalid, "{to}: {failure}");
    }
    assert!(dns.asked() > 0);
}

#[tokio::test]
async fn three_redirects_are_followed_and_a_fourth_is_not() {
    let end = TestServer::http("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
    let third = redirecting(&format!("http://{}/", end.addr)).await;
    let second = redirecting(&format!("http://{}/", third.addr)).await;
    let first = redirecting(&format!("http://{}/", second.addr)).await;
    let before = redirecting(&format!("http://{}/", first.addr)).await;
    let web = web(&local_dialer());
    assert_eq!(get(&web, &format!("http://{}/", first.addr), 100).await.unwrap().body, b"hi");
    let failure = get(&web, &format!("http://{}/", before.addr), 100).await.unwrap_err();
    assert_eq!(failure.reason, Reason::HttpStatus, "{failure}");
}

#[tokio::test]
async fn each_machine_on_the_way_is_asked_for_before_it_is_dialled() {
    let (hits, end) = counted("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
    let second = redirecting(&format!("http://127.0.0.1:{}/", end.addr.port())).await;
    let (_dns, dialer) = names().await;
    let first = redirecting(&format!("http://good.example.com:{}/", second.addr.port())).await;
    let url = format!("http://{}/", first.addr);
    let asked = std::sync::Mutex::new(Vec::new());
    let until = |limit: usize| {
        let asked = &asked;
        move |host: String, address: std::net::IpAddr| {
            let mut asked = asked.lock().unwrap();
            asked.push(format!("{host} {address}"));
            std::future::ready((asked.len() == limit).then_some("enough"))
        }
    };
    let reply = web(&dialer).get(&url, 100, until(0)).await.unwrap();
    assert_eq!(reply.body, b"hi");
    let machines = ["127.0.0.1 127.0.0.1", "good.example.com 127.0.0.1", "127.0.0.1 127.0.0.1"];
    assert_eq!(std::mem::take(&mut *asked.lock().unwrap()), machines);
    let held = web(&dialer).get(&url, 100, until(3)).await.unwrap_err();
    assert!(matches!(held, NoReply::KeptOff("enough")), "{held:?}");
    assert_eq!(hits.load(Ordering::Relaxed), 1, "the third was dialled the first time only");
}

#[tokio::test]
async fn an_endless_body_a_trickle_and_a_silence_end_at_their_limits() {
    let endless = TestServer::tcp(|mut stream: TcpStream| async move {
        request_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n").await.ok();
        while stream.write_all(&[b'x'; 8192]).await.is_ok() {}
    })
    .await;
    let trickle = TestServer::tcp(|mut stream: TcpStream| async move {
        request_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nx").await.ok();
        silence(stream).await;
    })
    .await;
    let claims = TestServer::http("HTTP/1.1 200 OK\r\ncontent-length: 1073741824\r\n\r\n").await;
    let short = TestServer::http("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nx").await;
    let mute = TestServer::tcp(silence).await;
    let banner = TestServer::http("220 mail.example ESMTP\r\n").await;
    let web = web(&local_dialer());
    for (server, reason) in [
        (&endless, Reason::HttpBodyTooLarge),
        (&claims, Reason::HttpBodyTooLarge),
        (&trickle, Reason::TotalTimeout),
        (&mute, Reason::TotalTimeout),
        (&short, Reason::Disconnected),
        (&banner, Reason::HttpInvalid),
    ] {
        let failure = get(&web, &format!("http://{}/", server.addr), 100_000).await.unwrap_err();
        assert_eq!(failure.reason, reason, "{failure}");
    }
}

#[tokio::test]
async fn a_document_is_posted_once_and_a_redirect_of_it_is_an_answer() {
    let hits = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&hits);
    let server = TestServer::tcp(move |mut stream: TcpStream| {
        let count = Arc::clone(&count);
        async move {
            let head = request_head(&mut stream).await;
            assert!(head.contains("content-type: application/json\r\n"), "{head}");
            assert!(head.contains("content-length: 7\r\n"), "{head}");
            let mut body = [0; 7];
            stream.read_exact(&mut body).await.unwrap();
            assert_eq!(&body, br#"{"a":1}"#);
            count.fetch_add(1, Ordering::Relaxed);
            stream
                .write_all(b"HTTP/1.1 307 Elsewhere\r\nlocation: /\r\ncontent-length: 0\r\n\r\n")
                .await
                .unwrap();
        }
    })
    .await;
    let reply = web(&local_dialer())
        .post_json(&format!("http://{}/hook", server.addr), r#"{"a":1}"#.to_owned(), None, 100)
        .await
        .unwrap();
    assert_eq!((reply.status, hits.load(Ordering::Relaxed)), (307, 1));
    let failure = web(&Dialer::new(NetConfig { policy: AddressPolicy::public(), ..local_config() }).unwrap())
        .post_json(&format!("http://{}/hook", server.addr), String::new(), None, 100)
        .await
        .unwrap_err();
    assert_eq!((failure.reason, hits.load(Ordering::Relaxed)), (Reason::AddressRefused, 1));
}

#[tokio::test]
async fn whatever_becomes_of_the_body_who_took_a_document_has_taken_it() {
    let large = format!("HTTP/1.1 201 Created\r\ncontent-length: 1000\r\n\r\n{}", "x".repeat(1_000));
    for (answer, body) in [
        (large.as_str(), 100),
        ("HTTP/1.1 201 Created\r\ncontent-length: 1073741824\r\n\r\nxx", 2),
        ("HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n2\r\nxx\r\nno length", 2),
        ("HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nxx", 2),
    ] {
        let server = TestServer::http(answer).await;
        let url = format!("http://{}/hook", server.addr);
        let reply = web(&local_dialer()).post_json(&url, "{}".to_owned(), None, 100).await.unwrap();
        assert_eq!((reply.status, reply.body.len()), (201, body), "{answer:.80}");
    }
    let trickle = TestServer::tcp(|mut stream: TcpStream| async move {
        request_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 50\r\n\r\nx").await.ok();
        silence(stream).await;
    })
    .await;
    let url = format!("http://{}/hook", trickle.addr);
    let reply = web(&local_dialer()).post_json(&url, "{}".to_owned(), None, 100).await.unwrap();
    assert_eq!((reply.status, reply.body.as_slice()), (201, b"x".as_slice()));
}

#[tokio::test]
async fn its_roots_are_those_of_the_dial() {
    let authority = Authority::new("authority");
    let (server, _) = tls_relay(authority.good("good.example.com").acceptor(false), "", "").await;
    let (_dns, dialer) = names().await;
    let url = format!("https://good.example.com:{}/", server.addr.port());
    let failure = get(&web(&dialer), &url, 100).await.unwrap_err();
    assert_eq!(failure.reason, Reason::TlsInvalid, "{failure}");
    let trusting =
        Dialer::new(NetConfig { trust: vec![authority.root.clone()], ..dialer.config().clone() }).unwrap();
    let failure = get(&web(&trusting), &url, 100).await.unwrap_err();
    assert_ne!(failure.reason, Reason::TlsInvalid, "the handshake succeeds: {failure}");
}
