//! A relay behind TLS, with certificates good and bad.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::{TestServer, answering, raw_head};
use crate::net::NetConfig;

#[expect(unreachable_pub, reason = "the file is the test kit's, where it is public")]
#[path = "../../../../tests/src/certs.rs"]
mod certs;

pub(crate) use certs::{Authority, Identity};

/// Trusts an authority besides the public ones.
pub(crate) fn trusting(authority: &Authority, config: NetConfig) -> NetConfig {
    NetConfig { trust: vec![authority.root.clone()], ..config }
}

/// What a [`tls_relay`] has met: a line per connection, and one per request that came through it.
pub(crate) type Log = Arc<Mutex<Vec<String>>>;

/// A relay behind TLS: EOSE to every REQ, `http` to every other request, `headers` in its upgrade.
pub(crate) async fn tls_relay(acceptor: TlsAcceptor, headers: &str, http: &str) -> (TestServer, Log) {
    let log = Log::default();
    let (headers, http, met) = (headers.to_owned(), http.to_owned(), Arc::clone(&log));
    let server = TestServer::tcp(move |stream| {
        let (acceptor, headers, http) = (acceptor.clone(), headers.clone(), http.clone());
        let met = Arc::clone(&met);
        async move {
            met.lock().unwrap().push("connection".to_owned());
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let head = raw_head(&mut stream).await;
            let Some(first) = head.lines().next() else { return };
            met.lock().unwrap().push(first.to_owned());
            if let Some(ws) = upgrade(&mut stream, &head, &headers).await {
                answering(ws, |sub, _| vec![format!(r#"["EOSE","{sub}"]"#)]).await;
            } else {
                stream.write_all(http.as_bytes()).await.ok();
                stream.shutdown().await.ok();
            }
        }
    })
    .await;
    (server, log)
}

/// Accepts the upgrade with headers of the test's choice; none when none was asked for.
pub(crate) async fn upgrade<S>(mut stream: S, head: &str, headers: &str) -> Option<WebSocketStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim())
    })?;
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {}\r\n{headers}\r\n",
        derive_accept_key(key.as_bytes())
    );
    stream.write_all(answer.as_bytes()).await.ok()?;
    Some(WebSocketStream::from_raw_socket(stream, Role::Server, None).await)
}
