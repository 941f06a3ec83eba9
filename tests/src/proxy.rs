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

/// What it does, and with which connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    mode: Mode,
    /// How often connections were stranded; those from before stay so.
    strandings: u32,
}

/// The proxy; it ends when dropped.
#[derive(Debug)]
pub struct ChaosProxy {
    address: SocketAddr,
    state: watch::Sender<State>,
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
        let (state, watched) = watch::channel(State { mode: Mode::Pass, strandings: 0 });
        let mut acceptor = JoinSet::new();
        acceptor.spawn(accept(listener, target, watched));
        Self { address, state, _acceptor: acceptor }
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
        self.turn(Mode::Cut);
    }

    /// Stops all bytes in both directions and keeps connections open, until [`Self::restore`].
    pub fn stall(&self) {
        self.turn(Mode::Stall);
    }

    /// An outage by RST: every connection, and new ones as soon as they come, until [`Self::restore`].
    pub fn reset(&self) {
        self.turn(Mode::Reset);
    }

    /// Lets bytes flow again.
    pub fn restore(&self) {
        self.turn(Mode::Pass);
    }

    /// What a machine that lost its power leaves behind: connections of before stay open and never move again, new ones work.
    pub fn strand(&self) {
        self.state.send_modify(|state| state.strandings += 1);
    }

    fn turn(&self, mode: Mode) {
        self.state.send_modify(|state| state.mode = mode);
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, state: watch::Receiver<State>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    connections.spawn(forward(client, target, state.clone()));
                }
            }
            // Ended connections are forgotten as they end.
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn forward(mut client: TcpStream, target: SocketAddr, mut state: watch::Receiver<State>) {
    let born = *state.borrow_and_update();
    if ends(born.mode) {
        finish(&[&client], born.mode);
        return;
    }
    let Ok(mut server) = crate::tcp::dial(target).await else { return };
    let (mut up, mut down) = (vec![0_u8; 16 * 1024], vec![0_u8; 16 * 1024]);
    let mut ending = state.clone();
    loop {
        let now = *state.borrow_and_update();
        if ends(now.mode) {
            break;
        }
        let flows = now.mode == Mode::Pass && now.strandings == born.strandings;
        // A write may block on a peer that does not read: an outage must end that too.
        let alive = tokio::select! {
            biased;
            changed = state.changed() => changed.is_ok(),
            read = client.read(&mut up), if flows => pass_on(read, &up, &mut server, &mut ending).await,
            read = server.read(&mut down), if flows => pass_on(read, &down, &mut client, &mut ending).await,
        };
        if !alive {
            break;
        }
    }
    finish(&[&client, &server], state.borrow().mode);
}

/// Writes what was read; `false` when either side has ended or an outage began.
async fn pass_on(
    read: std::io::Result<usize>,
    buffer: &[u8],
    to: &mut TcpStream,
    state: &mut watch::Receiver<State>,
) -> bool {
    let Ok(count @ 1..) = read else { return false };
    tokio::select! {
        written = to.write_all(&buffer[..count]) => written.is_ok(),
        _ = state.wait_for(|state| ends(state.mode)) => false,
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
