//! A TCP proxy on loopback that fails on command, to put between the fleet and PostgreSQL or a relay.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the proxy does at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Bytes flow.
    Pass,
    /// Connections stay open and nothing moves.
    Stall,
    /// Connections are closed, new ones at once.
    Cut,
    /// As `Cut`, by RST in place of FIN.
    Reset,
}

/// The proxy; it ends when dropped.
#[derive(Debug)]
pub struct ChaosProxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    _acceptor: JoinSet<()>,
}

impl ChaosProxy {
    /// Listens on a free loopback port and forwards to `target`.
    ///
    /// # Panics
    /// When no loopback port can be bound.
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port can be bound");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (mode, watched) = watch::channel(Mode::Pass);
        let mut acceptor = JoinSet::new();
        acceptor.spawn(accept(listener, target, watched));
        Self { address, mode, _acceptor: acceptor }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `url` with host and port replaced by the proxy's.
    ///
    /// # Panics
    /// When `url` has no `host:port` authority.
    pub fn url_of(&self, url: &str) -> String {
        let target = crate::tcp::authority(url).expect("a URL with host and port");
        url.replacen(&target, &self.address.to_string(), 1)
    }

    /// An outage: closes every connection, and new ones as soon as they come, until [`Self::restore`].
    pub fn cut(&self) {
        self.mode.send_replace(Mode::Cut);
    }

    /// Stops all bytes in both directions and keeps connections open, until [`Self::restore`].
    pub fn stall(&self) {
        self.mode.send_replace(Mode::Stall);
    }

    /// An outage by RST: every connection, and new ones as soon as they come, until [`Self::restore`].
    pub fn reset(&self) {
        self.mode.send_replace(Mode::Reset);
    }

    /// Lets bytes flow again.
    pub fn restore(&self) {
        self.mode.send_replace(Mode::Pass);
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, mode: watch::Receiver<Mode>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    connections.spawn(forward(client, target, mode.clone()));
                }
            }
            // Ended connections are forgotten as they end.
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn forward(mut client: TcpStream, target: SocketAddr, mut mode: watch::Receiver<Mode>) {
    if ends(*mode.borrow_and_update()) {
        finish(&[&client], *mode.borrow());
        return;
    }
    let Ok(mut server) = crate::tcp::dial(target).await else { return };
    let (mut up, mut down) = (vec![0_u8; 16 * 1024], vec![0_u8; 16 * 1024]);
    let mut ending = mode.clone();
    loop {
        let now = *mode.borrow_and_update();
        if ends(now) {
            break;
        }
        let flows = now == Mode::Pass;
        // A write may block on a peer that does not read: an outage must end that too.
        let alive = tokio::select! {
            biased;
            changed = mode.changed() => changed.is_ok(),
            read = client.read(&mut up), if flows => pass_on(read, &up, &mut server, &mut ending).await,
            read = server.read(&mut down), if flows => pass_on(read, &down, &mut client, &mut ending).await,
        };
        if !alive {
            break;
        }
    }
    finish(&[&client, &server], *mode.borrow());
}

/// Writes what was read; `false` when either side has ended or an outage began.
async fn pass_on(
    read: std::io::Result<usize>,
    buffer: &[u8],
    to: &mut TcpStream,
    mode: &mut watch::Receiver<Mode>,
) -> bool {
    let Ok(count @ 1..) = read else { return false };
    tokio::select! {
        written = to.write_all(&buffer[..count]) => written.is_ok(),
        _ = mode.wait_for(|mode| ends(*mode)) => false,
    }
}

fn ends(mode: Mode) -> bool {
    matches!(mode, Mode::Cut | Mode::Reset)
}

/// Before the sockets drop: makes the close an RST where that is the mode.
fn finish(streams: &[&TcpStream], mode: Mode) {
    if mode == Mode::Reset {
        for stream in streams {
            stream.set_zero_linger().expect("an open socket takes options");
        }
    }
}
