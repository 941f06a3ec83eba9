//! Small servers on loopback that behave well or badly, for the tests of this room and those above.

pub(crate) mod tls;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{SinkExt, StreamExt};
use hickory_resolver::proto::op::{Message as DnsMessage, OpCode, ResponseCode};
use hickory_resolver::proto::rr::{Record, RecordType};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::{Dialer, NetConfig};
use crate::models::{AddressPolicy, Network, RelayUrl};

/// Timeout of every network in tests, milliseconds.
pub(crate) const TIMEOUT_MS: u64 = 300;

/// Loopback allowed, short timeouts.
pub(crate) fn local_config() -> NetConfig {
    let mut config = NetConfig { policy: AddressPolicy::local(), ..NetConfig::default() };
    for &network in Network::ALL {
        config.network_mut(network).connect_timeout_ms = TIMEOUT_MS;
    }
    config
}

pub(crate) fn local_dialer() -> Dialer {
    Dialer::new(local_config()).unwrap()
}

pub(crate) fn url(text: &str) -> RelayUrl {
    RelayUrl::parse(text, &AddressPolicy::local()).unwrap()
}

/// A listener whose connections run one script; everything ends when it is dropped.
pub(crate) struct TestServer {
    pub(crate) addr: SocketAddr,
    _tasks: JoinSet<()>,
}

impl TestServer {
    pub(crate) async fn tcp<F, Fut>(script: F) -> Self
    where
        F: Fn(TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(script(stream));
            }
        });
        Self { addr, _tasks: tasks }
    }

    /// A WebSocket server.
    pub(crate) async fn ws<F, Fut>(script: F) -> Self
    where
        F: Fn(WebSocketStream<TcpStream>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        Self::relay(script, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned()).await
    }

    /// A WebSocket server that answers any other request with `http`.
    pub(crate) async fn relay<F, Fut>(script: F, http: String) -> Self
    where
        F: Fn(WebSocketStream<TcpStream>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        Self::tcp(move |mut stream| {
            let (script, http) = (script.clone(), http.clone());
            async move {
                let mut head = vec![0; 4096];
                let seen = stream.peek(&mut head).await.unwrap();
                if String::from_utf8_lossy(&head[..seen]).to_ascii_lowercase().contains("upgrade: websocket")
                {
                    if let Ok(ws) = tokio_tungstenite::accept_async(stream).await {
                        script(ws).await;
                    }
                } else {
                    respond(&mut stream, http.as_bytes()).await;
                }
            }
        })
        .await
    }

    /// A server that answers every request with `answer` and closes.
    pub(crate) async fn http(answer: impl Into<Vec<u8>>) -> Self {
        let answer = answer.into();
        Self::tcp(move |mut stream| {
            let answer = answer.clone();
            async move { respond(&mut stream, &answer).await }
        })
        .await
    }

    pub(crate) fn url(&self) -> RelayUrl {
        url(&format!("ws://{}", self.addr))
    }
}

/// [`raw_head`] in lower case.
pub(crate) async fn request_head(stream: &mut TcpStream) -> String {
    raw_head(stream).await.to_ascii_lowercase()
}

/// Reads one request head; what the client sent so far when it broke off.
pub(crate) async fn raw_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

async fn respond(stream: &mut TcpStream, answer: &[u8]) {
    request_head(stream).await;
    // The client may break off before the end: that is what some tests are about.
    stream.write_all(answer).await.ok();
    stream.shutdown().await.ok();
}

/// Keeps a connection open and says nothing.
pub(crate) async fn silence<T>(held: T) {
    std::future::pending::<()>().await;
    drop(held);
}

/// A port of loopback where nobody listens.
pub(crate) async fn free_addr() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap()
}

/// A name server answering from a function; None is silence.
pub(crate) struct DnsServer {
    pub(crate) addr: SocketAddr,
    asked: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl DnsServer {
    pub(crate) async fn start<Z>(zone: Z) -> Self
    where
        Z: Fn(&str, RecordType) -> Option<(ResponseCode, Vec<Record>)> + Send + 'static,
    {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = socket.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut packet = [0; 4096];
            while let Ok((size, from)) = socket.recv_from(&mut packet).await {
                count.fetch_add(1, Ordering::Relaxed);
                let question = DnsMessage::from_vec(&packet[..size]).unwrap();
                let query = question.queries[0].clone();
                let name = query.name().to_ascii();
                let Some((code, records)) = zone(name.trim_end_matches('.'), query.query_type()) else {
                    continue;
                };
                let mut answer = DnsMessage::response(question.metadata.id, OpCode::Query);
                answer.metadata.response_code = code;
                answer.metadata.recursion_available = true;
                answer.add_query(query);
                answer.add_answers(records);
                socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
            }
        });
        Self { addr, asked, _tasks: tasks }
    }

    /// Questions received so far.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Local configuration that asks this server.
    pub(crate) fn config(&self) -> NetConfig {
        NetConfig { name_servers: vec![self.addr], ..local_config() }
    }
}
/// A WebSocket script: for each text, sends what `answer` makes of it and of the subscription id in it.
pub(crate) async fn answering<S, A>(mut ws: WebSocketStream<S>, answer: A)
where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Fn(&str, &str) -> Vec<String>,
{
    while let Some(Ok(message)) = ws.next().await {
        let Message::Text(text) = message else { continue };
        let sub = text.split('"').nth(3).unwrap_or_default();
        if text.starts_with(r#"["CLOSE""#) {
            continue;
        }
        for reply in answer(sub, text.as_str()) {
            if ws.send(Message::text(reply)).await.is_err() {
                return;
            }
        }
    }
}
