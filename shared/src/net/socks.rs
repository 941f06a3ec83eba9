//! The SOCKS5 conversation with an overlay's proxy: the name goes to the proxy, never to DNS.

use std::borrow::Cow;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_socks::io::AsyncSocket;
use tokio_socks::tcp::Socks5Stream;
use tokio_socks::{Error, TargetAddr};

use super::failure::DialFailure;
use crate::models::Reason;

/// The longest credential SOCKS5 carries (RFC 1929).
const CREDENTIAL_BYTES: usize = 255;

/// Asks the proxy behind `stream` for `host:port`; with `isolate` under credentials of the host's own.
pub(super) async fn through(
    stream: TcpStream,
    host: &str,
    port: u16,
    isolate: bool,
    deadline: Instant,
) -> Result<TcpStream, DialFailure> {
    let mut socket = Proxy { stream, heard: 0, method: None };
    let target = TargetAddr::Domain(Cow::Borrowed(host), port);
    let done = timeout_at(deadline, async {
        if isolate {
            let user = &host[..host.len().min(CREDENTIAL_BYTES)];
            let proxied =
                Socks5Stream::connect_with_password_and_socket(&mut socket, target, user, "-").await;
            proxied.map(drop)
        } else {
            Socks5Stream::connect_with_socket(&mut socket, target).await.map(drop)
        }
    })
    .await;
    match done {
        Ok(Ok(())) => Ok(socket.stream),
        Ok(Err(error)) => Err(judge(&error, socket.greeted())),
        // A proxy that greeted and then waits is building a path to a relay that does not answer.
        Err(_) if socket.heard > 0 => {
            Err(DialFailure::new(Reason::ConnectTimeout, "the proxy did not reach the host in time"))
        }
        Err(_) => Err(DialFailure::new(Reason::ProxyDead, "the proxy accepted and said nothing")),
    }
}

/// A reply code is the network's answer about the relay, and so is a proxy that speaks and then hangs up on this one host;
/// anything else is a proxy that does not work.
fn judge(error: &Error, greeted: bool) -> DialFailure {
    let reason = match error {
        Error::Io(io) if greeted && hangs_up(io.kind()) => Reason::ProxyRefused,
        Error::GeneralSocksServerFailure
        | Error::ConnectionNotAllowedByRuleset
        | Error::NetworkUnreachable
        | Error::HostUnreachable
        | Error::ConnectionRefused
        | Error::TtlExpired
        | Error::UnknownError
        | Error::AddressTypeNotSupported => Reason::ProxyRefused,
        _ => Reason::ProxyDead,
    };
    DialFailure::new(reason, format!("SOCKS5: {error}"))
}

const fn hangs_up(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(kind, UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}

/// The connection to the proxy, remembering what it said.
struct Proxy {
    stream: TcpStream,
    /// Bytes it sent.
    heard: usize,
    /// The second of them: how it wants to know who asks.
    method: Option<u8>,
}

impl Proxy {
    /// Whether it took us in: two bytes, and two more where it asked for credentials. What it says next is about the host.
    fn greeted(&self) -> bool {
        self.heard >= if self.method == Some(0) { 2 } else { 4 }
    }
}

impl AsyncSocket for &mut Proxy {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let proxy = &mut **self.get_mut();
        let mut buf = ReadBuf::new(buf);
        ready!(Pin::new(&mut proxy.stream).poll_read(cx, &mut buf))?;
        let read = buf.filled().len();
        if proxy.heard < 2 {
            proxy.method = buf.filled().get(1 - proxy.heard).copied();
        }
        proxy.heard = proxy.heard.saturating_add(read);
        Poll::Ready(Ok(read))
    }

    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }
}
