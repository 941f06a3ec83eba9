//! One open connection, plain or under TLS, as the layers above read and write it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::Traffic;
use crate::models::Network;

/// A dialled connection; only [`super::Dialer`] makes one.
#[derive(Debug)]
pub struct Stream {
    inner: Inner,
    network: Network,
    traffic: Traffic,
}

#[derive(Debug)]
pub(super) enum Inner {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    pub(super) const fn new(inner: Inner, network: Network, traffic: Traffic) -> Self {
        Self { inner, network, traffic }
    }
}

macro_rules! forward {
    ($self:expr, $stream:ident => $call:expr) => {
        match &mut $self.get_mut().inner {
            Inner::Plain(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Inner::Tls(stream) => {
                let $stream = Pin::new(stream.as_mut());
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = forward!(self.as_mut(), stream => stream.poll_read(cx, buf));
        // Bytes of the layer above: what TLS adds is not counted.
        self.traffic.receive(self.network, buf.filled().len().saturating_sub(before) as u64);
        poll
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let poll = forward!(self.as_mut(), stream => stream.poll_write(cx, buf));
        if let Poll::Ready(Ok(written)) = &poll {
            self.traffic.send(self.network, *written as u64);
        }
        poll
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, stream => stream.poll_shutdown(cx))
    }
}
