//! The driver against small servers: who is a relay, and how pages end.

use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::{PageEvent, ProbeVerdict, RelaySocket, speaks_nostr};
use crate::models::{Outcome, Reason};
use crate::net::testing::{TestServer, answering, free_addr, local_dialer, silence, url};
use crate::nips::{Filter, Limits, PageEnd};

const PROBE_MS: u64 = 200;
/// A well-formed note; its signature is nobody's concern here.
const NOTE: &str = concat!(
    r#"{"id":"5c83da77af1dec6d7289834998ad7aafbd9e2191396d75ec3cc27f5a77226f36","#,
    r#""pubkey":"f7234bd4c1394dda46d09f35bd384dd30cc552ad5541990f98844fb06676e9ca","#,
    r#""created_at":1700000000,"kind":1,"tags":[],"content":"hi","sig":""#,
    "00000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "000000000000000000000000000000000000000000000000",
    r#""}"#
);

type Answer = fn(&str, &str) -> Vec<String>;

async fn server(answer: Answer) -> TestServer {
    TestServer::ws(move |ws| answering(ws, answer)).await
}

async fn probe(server: &TestServer) -> ProbeVerdict {
    let dialer = local_dialer();
    let target = dialer.resolve(&server.url()).await.unwrap();
    speaks_nostr(&dialer, &target, PROBE_MS).await
}

#[tokio::test]
async fn each_way_of_speaking_nostr_is_alive() {
    let cases: [(Answer, &str, Reason); 7] = [
        (|sub, _| vec![format!(r#"["EOSE","{sub}"]"#)], "eose", Reason::None),
        (
            |sub, _| vec![format!(r#"["EVENT","{sub}",{NOTE}]"#), format!(r#"["EOSE","{sub}"]"#)],
            "eose",
            Reason::None,
        ),
        (|sub, _| vec![format!(r#"["EVENT","{sub}",{NOTE}]"#)], "event", Reason::IdleTimeout),
        (|_, _| vec![r#"["AUTH","challenge"]"#.to_owned()], "auth", Reason::AuthRequired),
        (
            |sub, _| vec![format!(r#"["CLOSED","{sub}","auth-required: who are you"]"#)],
            "closed",
            Reason::AuthRequired,
        ),
        (|_, _| vec![r#"["NOTICE","ERROR: bad req: kinds missing"]"#.to_owned()], "notice", Reason::Notice),
        (
            |sub, _| vec![r#"["NOTICE","Welcome!"]"#.to_owned(), format!(r#"["EOSE","{sub}"]"#)],
            "eose",
            Reason::None,
        ),
    ];
    for (answer, evidence, reason) in cases {
        let verdict = probe(&server(answer).await).await;
        assert!(verdict.alive, "{evidence}: {verdict:?}");
        assert_eq!((verdict.evidence, verdict.reason), (evidence, reason), "{verdict:?}");
        assert_eq!(verdict.read_ms.is_some(), evidence == "eose", "only EOSE proves a read");
        assert!(verdict.open_ms.is_some());
    }
}

#[tokio::test]
async fn silence_echo_garbage_greetings_and_strangers_frames_are_no_relay() {
    let cases: [(Answer, Reason); 9] = [
        (|_, _| Vec::new(), Reason::Silent),
        (|_, text| vec![text.to_owned()], Reason::NotNostr),
        (|_, _| vec!["hello".to_owned(), "{}".to_owned(), "[]".to_owned()], Reason::NotNostr),
        // A relay in trouble does so, too: what is alike is silence.
        (|_, _| vec![r#"["NOTICE","Welcome to our server"]"#.to_owned()], Reason::Silent),
        (|_, _| vec![r#"["NOTICE","ERROR: the database is away"]"#.to_owned()], Reason::Silent),
        (|_, _| vec![r#"["NOTICE","Welcome"]"#.to_owned(), "hello".to_owned()], Reason::NotNostr),
        (|_, _| vec![r#"["EOSE","other"]"#.to_owned()], Reason::NotNostr),
        (|_, _| vec![r#"["CLOSED","other","error: no"]"#.to_owned()], Reason::NotNostr),
        (|_, _| vec![r#"["OK","00",true,""]"#.to_owned()], Reason::NotNostr),
    ];
    for (answer, reason) in cases {
        let verdict = probe(&server(answer).await).await;
        assert!(!verdict.alive, "{verdict:?}");
        assert_eq!((verdict.evidence, verdict.reason), ("", reason), "{verdict:?}");
        assert_eq!(verdict.read_ms, None);
    }
}

#[tokio::test]
async fn who_refuses_or_greets_by_a_challenge_and_hangs_up_is_alive_with_the_reason_that_is_true() {
    for (frame, evidence, reason) in [
        (r#"["NOTICE","rate-limited: too many requests"]"#, "notice", Reason::RateLimited),
        (r#"["NOTICE","blocked: not from your network"]"#, "notice", Reason::Blocked),
        // Nobody said that reading needs it.
        (r#"["AUTH","challenge"]"#, "auth", Reason::Disconnected),
        (r#"["NOTICE","Welcome to our server"]"#, "", Reason::Disconnected),
        (r#"["NOTICE","ERROR: the database is away"]"#, "", Reason::Disconnected),
    ] {
        let server = TestServer::ws(move |mut ws: WebSocketStream<TcpStream>| async move {
            ws.next().await;
            ws.send(Message::text(frame)).await.ok();
            ws.close(None).await.ok();
        })
        .await;
        let verdict = probe(&server).await;
        assert_eq!((verdict.evidence, verdict.reason), (evidence, reason), "{frame}: {verdict:?}");
        assert_eq!(verdict.alive, !evidence.is_empty());
    }
}

#[tokio::test]
async fn a_connection_that_drops_after_the_request_is_no_relay() {
    let server = TestServer::ws(|ws: WebSocketStream<TcpStream>| async move { drop(ws) }).await;
    let verdict = probe(&server).await;
    assert_eq!((verdict.alive, verdict.reason), (false, Reason::Disconnected));
}

#[tokio::test]
async fn an_endless_talker_ends_at_the_limit_and_not_at_the_clock() {
    let server = TestServer::ws(|ws: WebSocketStream<TcpStream>| async move {
        let mut stream = ws.into_inner();
        while stream.write_all(b"\x81\x02hi").await.is_ok() {}
    })
    .await;
    let verdict = probe(&server).await;
    assert_eq!((verdict.alive, verdict.reason), (false, Reason::NotNostr));
    // With a clock that is far away, the count of strange frames ends it.
    let dialer = local_dialer();
    let target = dialer.resolve(&server.url()).await.unwrap();
    let mut socket = RelaySocket::open(&dialer, &target).await.unwrap();
    let limits = Limits {
        idle_ms: 60_000,
        total_ms: 60_000,
        max_events: 10,
        max_bytes: 1_000_000,
        max_stray_frames: 100,
    };
    let page =
        tokio::time::timeout(std::time::Duration::from_secs(20), socket.fetch(Filter::default(), limits));
    let end = page.await.expect("it ends long before the clock").end;
    assert!(matches!(end, PageEnd::TooMany), "{end:?}");
}

#[tokio::test]
async fn an_unreachable_relay_keeps_the_dials_reason() {
    let dialer = local_dialer();
    let target = dialer.resolve(&url(&format!("ws://{}", free_addr().await))).await.unwrap();
    let verdict = speaks_nostr(&dialer, &target, PROBE_MS).await;
    assert_eq!((verdict.alive, verdict.outcome), (false, Outcome::Refused));
    assert_eq!((verdict.reason, verdict.open_ms), (Reason::ConnectRefused, None));
}

fn limits() -> Limits {
    Limits { idle_ms: 200, total_ms: 250, max_events: 10, max_bytes: 1 << 20, max_stray_frames: 10 }
}

#[tokio::test]
async fn pages_follow_one_another_on_one_connection() {
    let server = server(|sub, _| {
        vec![
            format!(r#"["EVENT","{sub}",{NOTE}]"#),
            "noise".to_owned(),
            format!(r#"["EOSE","{sub}",["finish"]]"#),
        ]
    })
    .await;
    let dialer = local_dialer();
    let target = dialer.resolve(&server.url()).await.unwrap();
    let mut socket = RelaySocket::open(&dialer, &target).await.unwrap();
    for _ in 0..2 {
        let page = socket.fetch(Filter { kinds: vec![1], ..Filter::default() }, limits()).await;
        assert!(page.end.is_eose(), "{:?}", page.end);
        let texts: Vec<&str> = page.events.iter().map(PageEvent::json).collect();
        assert_eq!((texts, page.stray), (vec![NOTE], 1));
        assert_eq!((page.events[0].facts().kind, page.events[0].sig()), (1, Some(&[0; 64])));
        assert!(page.first_ms.is_some() && page.bytes > NOTE.len() as u64);
    }
    assert!(socket.is_usable());
    socket.close().await;
}

#[tokio::test]
async fn an_oversized_frame_ends_the_page_and_the_connection() {
    let server = TestServer::ws(|ws: WebSocketStream<TcpStream>| async move {
        let mut stream = ws.into_inner();
        stream.write_all(&[0x81, 127]).await.unwrap();
        stream.write_u64(50 << 20).await.unwrap();
        silence(stream).await;
    })
    .await;
    let dialer = local_dialer();
    let target = dialer.resolve(&server.url()).await.unwrap();
    let mut socket = RelaySocket::open(&dialer, &target).await.unwrap();
    let page = socket.fetch(Filter::default(), limits()).await;
    assert!(matches!(page.end, PageEnd::Oversize), "{:?}", page.end);
    assert!(!socket.is_usable());
    let page = socket.fetch(Filter::default(), limits()).await;
    assert!(matches!(page.end, PageEnd::Disconnected), "{:?}", page.end);
}
