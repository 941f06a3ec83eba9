//! Addresses and connections on this machine, for everything the kit plays.

use std::net::SocketAddr;

use tokio::net::TcpStream;

/// Opens a TCP connection; the kit plays the outside world, which has no guard.
pub async fn dial(address: SocketAddr) -> std::io::Result<TcpStream> {
    #[expect(clippy::disallowed_methods, reason = "the kit is not the product: no guard to pass")]
    TcpStream::connect(address).await
}

/// `host:port` of a URL; `None` when it has none.
pub fn authority(url: &str) -> Option<String> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let host = authority.rsplit('@').next()?;
    host.contains(':').then(|| host.to_owned())
}
