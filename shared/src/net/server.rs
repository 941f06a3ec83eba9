//! The small HTTP endpoint of every process: metrics, health, readiness.
//!
//! It knows paths and replies, not what they mean. Bounded in connections, header size and time, since
//! it may listen where strangers reach it.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::failure::NetError;

/// Connections served at once; a scraper and two probes need three.
const CONNECTIONS_MAX: usize = 64;
/// A client must have sent its header by then.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection lives no longer, kept alive or not.
const CONNECTION_TIMEOUT: Duration = Duration::from_mins(1);
/// Bytes read ahead of a client's header.
const BUFFER_BYTES: usize = 16 * 1024;
/// Pause after a failed accept (no descriptor left), lest the loop spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a path answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status code; anything that is none becomes 500.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

impl Reply {
    /// A plain-text reply.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", body: body.into() }
    }
}

/// A bound endpoint, so that a taken port is known before any work begins.
#[derive(Debug)]
pub struct HttpServer {
    listener: TcpListener,
    addr: SocketAddr,
}

impl HttpServer {
    /// Binds; a taken port is [`NetError::PortTaken`], a sentence an operator can act on.
    pub async fn bind(addr: SocketAddr) -> Result<Self, NetError> {
        let failed = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::AddrInUse => NetError::PortTaken { host: addr.ip(), port: addr.port() },
            _ => NetError::Listen { addr, source },
        };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, addr })
    }

    /// Where it listens; the port is the real one when 0 was asked for.
    pub const fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Answers until `stop`, then drops what is open. `handler` must not block; None is 404.
    pub async fn run<H>(self, handler: H, stop: CancellationToken)
    where
        H: Fn(&str) -> Option<Reply> + Send + Sync + 'static,
    {
        let handler = Arc::new(handler);
        let mut open = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = open.join_next() => {}
                accepted = self.listener.accept(), if open.len() < CONNECTIONS_MAX => match accepted {
                    Ok((stream, _)) => {
                        open.spawn(connection(stream, Arc::clone(&handler)));
                    }
                    Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                },
            }
        }
        open.shutdown().await;
    }
}

/// Binds `addr` and answers with `handler` until `stop`.
pub async fn serve<H>(addr: SocketAddr, handler: H, stop: CancellationToken) -> Result<(), NetError>
where
    H: Fn(&str) -> Option<Reply> + Send + Sync + 'static,
{
    HttpServer::bind(addr).await?.run(handler, stop).await;
    Ok(())
}

/// Asks such an endpoint for `path`: its status and its words, at most 16 KiB of them.
///
/// # Errors
/// A sentence: nobody listens, or no answer came within five seconds.
#[expect(
    clippy::disallowed_methods,
    reason = "an operator's own process, named by address: no relay's word leads here"
)]
pub async fn ask(addr: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let asked = async {
        let mut stream = TcpStream::connect(addr).await?;
        let request = format!("GET {path} HTTP/1.0\r\nhost: {addr}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::new();
        stream.take(BUFFER_BYTES as u64).read_to_end(&mut bytes).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = match tokio::time::timeout(HEADER_TIMEOUT, asked).await {
        Ok(Ok(text)) => text,
        Ok(Err(error)) => return Err(format!("{addr} does not answer: {error}")),
        Err(_) => return Err(format!("{addr} does not answer within {} s", HEADER_TIMEOUT.as_secs())),
    };
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body).trim();
    status.map(|status| (status, body.to_owned())).ok_or_else(|| format!("{addr} does not speak HTTP"))
}

async fn connection<H>(stream: TcpStream, handler: Arc<H>)
where
    H: Fn(&str) -> Option<Reply> + Send + Sync + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| answer(&*handler, &request));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    // A client that breaks off is its own affair.
    tokio::time::timeout(CONNECTION_TIMEOUT, serving).await.ok();
}

fn answer<H>(
    handler: &H,
    request: &Request<Incoming>,
) -> impl Future<Output = Result<Response<Full<Bytes>>, Infallible>> + use<H>
where
    H: Fn(&str) -> Option<Reply>,
{
    let reply = if matches!(*request.method(), Method::GET | Method::HEAD) {
        handler(request.uri().path()).unwrap_or_else(|| Reply::text(404, "not found\n"))
    } else {
        Reply::text(405, "only GET\n")
    };
    let mut response = Response::new(Full::new(Bytes::from(reply.body)));
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    std::future::ready(Ok(response))
}
