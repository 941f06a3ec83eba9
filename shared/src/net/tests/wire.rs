//! WebSocket and HTTP over dialled streams, with servers that misbehave; and our own endpoint.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::super::testing::{TestServer, local_dialer, request_head, silence, url};
use super::super::*;
use super::fail;
use crate::models::{Outcome, Reason};

#[tokio::test]
async fn a_web_server_refuses_the_upgrade_and_its_status_is_kept() {
    let server = TestServer::http("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
    let failure = fail(&local_dialer(), &server.url()).await;
    assert_eq!((failure.outcome, failure.reason), (Outcome::Refused, Reason::WsUpgradeRefused));
    assert_eq!(failure.detail, "HTTP status 200");
}

#[tokio::test]
async fn a_header_that_trickles_ends_at_the_deadline() {
    let server = TestServer::tcp(|mut stream: TcpStream| async move {
        request_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 101 Switching").await.unwrap();
        silence(stream).await;
    })
    .await;
    let dialer = local_dialer();
    let failure = fail(&dialer, &server.url()).await;
    assert_eq!((failure.outcome, failure.reason), (Outcome::Timeout, Reason::TotalTimeout));
    let target = dialer.resolve(&server.url()).await.unwrap();
    let failure = dialer.http_get(&target, "*/*", 1024).await.unwrap_err();
    assert_eq!((failure.outcome, failure.reason), (Outcome::Timeout, Reason::TotalTimeout));
}

#[tokio::test]
async fn a_fifty_megabyte_frame_is_refused_at_its_header() {
    let server = TestServer::ws(|ws| async move {
        let mut stream = ws.into_inner();
        stream.write_all(&[0x81, 127]).await.unwrap();
        stream.write_u64(50 * 1024 * 1024).await.unwrap();
        let piece = vec![b'x'; 64 * 1024];
        while stream.write_all(&piece).await.is_ok() {}
    })
    .await;
    let dialer = local_dialer();
    let target = dialer.resolve(&server.url()).await.unwrap();
    let (mut ws, _) = dialer.websocket(&target).await.unwrap();
    assert_eq!(ws.next().await, WsRead::Oversize);
}

#[tokio::test]
async fn a_message_assembled_beyond_the_cap_is_refused() {
    let server = TestServer::ws(|ws| async move {
        let mut stream = ws.into_inner();
        let mut opcode = 0x01;
        loop {
            let mut frame = vec![opcode, 127];
            frame.extend_from_slice(&(1_u64 << 20).to_be_bytes());
            frame.resize(frame.len() + (1 << 20), b'x');
            if stream.write_all(&frame).await.is_err() {
                break;
            }
            opcode = 0x00;
        }
    })
    .await;
    let dialer = local_dialer();
    let target = dialer.resolve(&server.url()).await.unwrap();
    let (mut ws, _) = dialer.websocket(&target).await.unwrap();
    assert_eq!(ws.next().await, WsRead::Oversize);
}

#[tokio::test]
async fn texts_pass_binaries_are_ignored_and_the_end_is_seen() {
    let server = TestServer::ws(|mut ws| async move {
        let Some(Ok(said)) = ws.next().await else { return };
        ws.send(Message::binary(vec![1])).await.unwrap();
        ws.send(said).await.unwrap();
        ws.send(Message::binary(vec![1; 2_000])).await.unwrap();
        ws.close(None).await.unwrap();
    })
    .await;
    let dialer = local_dialer();
    let target = dialer.resolve(&server.url()).await.unwrap();
    let (mut ws, _) = dialer.websocket(&target).await.unwrap();
    ws.send_text("hello").await.unwrap();
    assert_eq!(ws.next().await, WsRead::Ignored);
    assert_eq!(ws.next().await, WsRead::Text("hello".into()));
    assert_eq!(ws.next().await, WsRead::Oversize, "a large one would be held with what comes after it");
    assert_eq!(ws.next().await, WsRead::Closed);
    ws.close().await;
}

#[tokio::test]
async fn http_keeps_the_answer_and_caps_the_body() {
    let server = TestServer::http(
        "HTTP/1.1 200 OK\r\ncontent-type: application/nostr+json\r\nserver: test\r\n\r\n{\"name\":\"x\"}",
    )
    .await;
    let dialer = local_dialer();
    let target = dialer.resolve(&server.url()).await.unwrap();
    let reply = dialer.http_get(&target, "application/nostr+json", 12).await.unwrap();
    assert_eq!((reply.status, reply.body.as_slice()), (200, br#"{"name":"x"}"#.as_slice()));
    assert_eq!(reply.content_type.as_deref(), Some("application/nostr+json"));
    assert_eq!(reply.server.as_deref(), Some("test"));
    let failure = dialer.http_get(&target, "application/nostr+json", 11).await.unwrap_err();
    assert_eq!((failure.outcome, failure.reason), (Outcome::Invalid, Reason::HttpBodyTooLarge));
}

#[tokio::test]
async fn redirects_are_answers_and_garbage_is_invalid() {
    let elsewhere = TestServer::tcp(|_| async { panic!("a redirect was followed") }).await;
    let answer =
        format!("HTTP/1.1 302 Found\r\nlocation: http://{}/\r\ncontent-length: 0\r\n\r\n", elsewhere.addr);
    let server = TestServer::http(answer).await;
    let dialer = local_dialer();
    let target = dialer.resolve(&server.url()).await.unwrap();
    assert_eq!(dialer.http_get(&target, "*/*", 1024).await.unwrap().status, 302);
    for (answer, reason) in [
        ("SSH-2.0-OpenSSH_9.2\r\n".to_owned(), Reason::HttpInvalid),
        (format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(32 * 1024)), Reason::HttpInvalid),
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhi".to_owned(), Reason::Disconnected),
        (String::new(), Reason::Disconnected),
    ] {
        let server = TestServer::http(answer).await;
        let target = dialer.resolve(&server.url()).await.unwrap();
        let failure = dialer.http_get(&target, "*/*", 1024).await.unwrap_err();
        assert_eq!(failure.reason, reason, "{failure}");
    }
}

#[tokio::test]
async fn a_compressed_body_is_refused_unread_since_identity_was_asked_for() {
    let requests = Arc::new(Mutex::new(String::new()));
    let log = Arc::clone(&requests);
    let server = TestServer::tcp(move |mut stream: TcpStream| {
        let log = Arc::clone(&log);
        async move {
            let request = request_head(&mut stream).await;
            log.lock().unwrap().push_str(&request);
            let head =
                "HTTP/1.1 200 OK\r\ncontent-type: application/nostr+json\r\ncontent-encoding: GZIP\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            silence(stream).await;
        }
    })
    .await;
    let dialer = local_dialer();
    let target = dialer.resolve(&server.url()).await.unwrap();
    let failure = dialer.http_get(&target, "*/*", 1024).await.unwrap_err();
    assert_eq!((failure.outcome, failure.reason), (Outcome::Invalid, Reason::HttpEncoding), "{failure}");
    assert!(requests.lock().unwrap().contains("accept-encoding: identity\r\n"));
}

#[tokio::test]
async fn a_gigabyte_is_read_no_further_than_the_cap() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let server = TestServer::tcp(move |mut stream: TcpStream| {
        let count = Arc::clone(&count);
        async move {
            request_head(&mut stream).await;
            let head =
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1073741824\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            let piece = vec![b' '; 64 * 1024];
            for _ in 0..(1 << 30) / piece.len() {
                if stream.write_all(&piece).await.is_err() {
                    break;
                }
                count.fetch_add(piece.len(), Ordering::Relaxed);
            }
        }
    })
    .await;
    let dialer = local_dialer();
    let target = dialer.resolve(&server.url()).await.unwrap();
    let failure = dialer.http_get(&target, "*/*", 1024 * 1024).await.unwrap_err();
    assert_eq!((failure.outcome, failure.reason), (Outcome::Invalid, Reason::HttpBodyTooLarge));
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent < 64 << 20, "what the kernel buffers, and no more: {sent}");
}

#[tokio::test]
async fn a_head_of_one_byte_at_a_time_ends_at_the_deadline() {
    let server = TestServer::tcp(|mut stream: TcpStream| async move {
        request_head(&mut stream).await;
        for byte in b"HTTP/1.1 200 OK\r\nx: ".iter().chain(std::iter::repeat(&b'y')) {
            if stream.write_all(&[*byte]).await.is_err() {
                return;
            }
            // bound: the client's deadline, which closes the connection
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    let dialer = local_dialer();
    let target = dialer.resolve(&server.url()).await.unwrap();
    assert_eq!(dialer.http_get(&target, "*/*", 64).await.unwrap_err().reason, Reason::TotalTimeout);
    assert_eq!(fail(&dialer, &server.url()).await.reason, Reason::TotalTimeout);
}

#[tokio::test]
async fn a_refused_upgrade_still_shows_its_headers() {
    let server = TestServer::http(
        "HTTP/1.1 403 Forbidden\r\nserver: cloud\r\nx-powered-by: a\tb\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    let dialer = local_dialer();
    let target = dialer.resolve(&server.url()).await.unwrap();
    let mut seen = Seen::default();
    let failure = dialer.websocket_seen(&target, &mut seen).await.map(drop).unwrap_err();
    assert_eq!((failure.reason, failure.status), (Reason::Blocked, Some(403)));
    let head = seen.head.unwrap();
    assert_eq!(
        (head.status, head.server.as_deref(), head.powered_by.as_deref(), head.retry_after_s),
        (403, Some("cloud"), Some("ab"), Some(7))
    );
    assert_eq!(seen.tls, None);
}

#[tokio::test]
async fn the_endpoint_answers_paths_and_names_a_taken_port() {
    let stop = CancellationToken::new();
    let server = HttpServer::bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
    let addr = server.local_addr();
    let taken = HttpServer::bind(addr).await.unwrap_err().to_string();
    assert!(taken.starts_with(&format!("port {} on 127.0.0.1 is already in use: ", addr.port())), "{taken}");
    let handler = |path: &str| (path == "/healthz").then(|| Reply::text(200, "ok\n"));
    let client = async {
        let dialer = local_dialer();
        let health = dialer.resolve(&url(&format!("ws://{addr}/healthz"))).await.unwrap();
        let reply = dialer.http_get(&health, "*/*", 64).await.unwrap();
        assert_eq!((reply.status, reply.body.as_slice()), (200, b"ok\n".as_slice()));
        let other = dialer.resolve(&url(&format!("ws://{addr}/other"))).await.unwrap();
        assert_eq!(dialer.http_get(&other, "*/*", 64).await.unwrap().status, 404);
        stop.cancel();
    };
    tokio::join!(server.run(handler, stop.clone()), client);
}

#[tokio::test]
async fn a_redirect_leads_to_another_path_of_the_same_machine_and_nowhere_else() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let elsewhere = TestServer::tcp(move |stream: TcpStream| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move { drop(stream) }
    })
    .await;
    let other = elsewhere.addr;
    let server = TestServer::tcp(move |mut stream: TcpStream| async move {
        let head = request_head(&mut stream).await;
        let path = head.split(' ').nth(1).unwrap_or_default();
        let to = match path {
            "/one" => "/one/?a=1".to_owned(),
            "/one/?a=1" => "three".to_owned(),
            "/round" => "/round".to_owned(),
            "/away" => format!("http://{other}/"),
            "/user" => "//somebody@localhost/".to_owned(),
            _ => String::new(),
        };
        let answer = if to.is_empty() {
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len())
        } else {
            format!("HTTP/1.1 301 Moved\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n")
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let dialer = local_dialer();
    for (path, status, body) in [
        ("/one", 200, "/one/three"),
        ("/round", 301, ""),
        ("/away", 301, ""),
        ("/user", 301, ""),
        ("/", 200, "/"),
    ] {
        let target = dialer.resolve(&url(&format!("ws://{}{path}", server.addr))).await.unwrap();
        let reply = dialer.http_get_led(&target, "*/*", 1_024).await.unwrap();
        assert_eq!((reply.status, reply.body.as_slice()), (status, body.as_bytes()), "{path}");
        if path == "/one" {
            assert_eq!(
                dialer.http_get(&target, "*/*", 1_024).await.unwrap().status,
                301,
                "not unless asked for"
            );
        }
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}
