//! The world outside, in a namespace of its own: addresses that count as global, and private ones, a relay and a web
//! server that answer at all of them, and the only name server there is.
//!
//! Why: the guard and the resolver must be met in their default policy, which refuses everything that a test could
//! have on a machine's own loopback.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use nostr::event::Event;
use rcgen::CertificateParams;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::certs::Authority;
use crate::names::{heard, note};
use crate::programs::{Process, StateDir};
use crate::scripted::{Script, ScriptedRelay, Stored};
use crate::space;

/// How long the world may take to come about.
const READY: Duration = Duration::from_secs(20);
/// Pause between two looks.
const RETRY: Duration = Duration::from_millis(20);
/// A request head longer than this is no client of ours.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// What a world is made of, beside its addresses.
#[derive(Debug, Default)]
pub struct Plan<'a> {
    /// Its names (see [`crate::names::serve`]).
    pub zone: &'a str,
    /// What its relay holds.
    pub events: &'a [Event],
    /// Whole HTTP answers by host, over TLS with certificates of an authority of its own.
    pub site: &'a [(&'a str, &'a str)],
}

/// A running world; it ends when dropped.
#[derive(Debug)]
pub struct World {
    holder: Process,
    state: StateDir,
}

impl World {
    /// A world of this plan; a visible skip where it cannot be.
    ///
    /// # Panics
    /// When it does not come about: what was said is printed.
    pub async fn start(plan: Plan<'_>) -> Option<Self> {
        crate::require(space::installed("ip").then_some(()), "iproute2 (tests/tools/setup.sh)")?;
        let testrelay = crate::require(crate::env::testrelay(), "the testrelay binary")?;
        let mut command = space::unshared("nm", &crate::env::tools().join("world.sh"))?;
        let state = StateDir::new("world");
        command.arg(&state.path).arg(testrelay);
        let write = |name: &str, text: &str| {
            std::fs::write(state.path.join(name), text).expect("a private file can be written");
        };
        write("zone", plan.zone);
        write("events", &plan.events.iter().map(Event::as_json).collect::<Vec<_>>().join("\n"));
        std::fs::create_dir(state.path.join("site")).expect("a private directory can be made");
        for (host, answer) in plan.site {
            write(&format!("site/{host}"), answer);
        }
        let holder = Process::spawn(&command, &state.path.join("log"));
        let mut world = Self { holder, state };
        let began = async {
            while heard(&world.state.path, "ready").is_empty() && !world.holder.has_ended() {
                // bound: READY, around the whole loop.
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::time::timeout(READY, began).await.ok();
        let said = std::fs::read_to_string(world.state.path.join("log")).unwrap_or_default();
        assert!(!heard(&world.state.path, "ready").is_empty(), "the world did not come about:\n{said}");
        Some(world)
    }

    /// Other names from now on.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn rename(&self, zone: &str) {
        // Whole or not at all: it is read while it is written.
        let new = self.state.path.join("zone.new");
        std::fs::write(&new, zone)
            .and_then(|()| std::fs::rename(&new, self.state.path.join("zone")))
            .expect("a private file can be written");
    }

    /// Another configuration of the resolver from now on.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn resolve_by(&self, text: &str) {
        // In its place: another file of this name would not be the one that is seen inside.
        std::fs::write(self.state.path.join("resolv.conf"), text).expect("a private file can be written");
    }

    /// The command, run in there.
    pub fn within(&self, command: &Command) -> Command {
        space::within(self.holder.pid(), command)
    }

    /// The certificate of its authority, as a file to trust.
    pub fn root(&self) -> PathBuf {
        self.state.path.join("root.pem")
    }

    /// What its web server was asked, in order: monotonic milliseconds, host, path.
    pub fn visits(&self) -> Vec<(u64, String, String)> {
        let visit = |line: String| {
            let mut words = line.split(' ').map(str::to_owned);
            Some((words.next()?.parse().ok()?, words.next()?, words.next()?))
        };
        heard(&self.state.path, "web").into_iter().filter_map(visit).collect()
    }

    /// Every name that was asked for and the type, in order.
    pub fn asked(&self) -> Vec<String> {
        heard(&self.state.path, "dns")
    }

    /// The addresses at which the relay was met, one for each connection.
    ///
    /// # Panics
    /// When the journal holds something else.
    pub fn met(&self) -> Vec<IpAddr> {
        let addresses = heard(&self.state.path, "tcp");
        addresses.iter().map(|text| text.parse().expect("the journal has addresses")).collect()
    }
}

/// What runs inside, until it is killed: names at 127.0.0.1:53, a relay at port 80 and a site at port 443 of every
/// address.
pub async fn serve(folder: &Path) -> anyhow::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:53").await.context("the port of names")?;
    let door = TcpListener::bind("[::]:80").await.context("the port of relays")?;
    let web = TcpListener::bind("[::]:443").await.context("the port of the site")?;
    let text = std::fs::read_to_string(folder.join("events"))?;
    let relay = ScriptedRelay::start(Script::of_stored(
        text.lines().map(|line| Stored::raw(line.to_owned())).collect(),
        100,
    ))
    .await;
    let acceptor = certified(folder)?;
    note(folder, "ready now");
    let mut open = JoinSet::new();
    let names = crate::names::serve(&socket, folder);
    tokio::pin!(names);
    loop {
        tokio::select! {
            () = &mut names => anyhow::bail!("the name server ended"),
            accepted = door.accept() => {
                let mut client = accepted?.0;
                note(folder, &format!("tcp {}", client.local_addr()?.ip().to_canonical()));
                let target = relay.address();
                open.spawn(async move {
                    let Ok(mut server) = crate::tcp::dial(target).await else { return };
                    tokio::io::copy_bidirectional(&mut client, &mut server).await.ok();
                });
            }
            accepted = web.accept() => {
                let (client, acceptor, folder) = (accepted?.0, acceptor.clone(), folder.to_owned());
                note(&folder, &format!("tcp {}", client.local_addr()?.ip().to_canonical()));
                open.spawn(async move { visit(client, &acceptor, &folder).await.unwrap_or_default() });
            }
        }
    }
}

/// One certificate for all hosts of the site; its authority's own goes to `root.pem`.
fn certified(folder: &Path) -> anyhow::Result<TlsAcceptor> {
    let mut hosts = vec!["nobody.example".to_owned()];
    for entry in std::fs::read_dir(folder.join("site"))? {
        hosts.push(entry?.file_name().to_string_lossy().into_owned());
    }
    let authority = Authority::new("World Root");
    std::fs::write(folder.join("root.pem"), pem(&authority.root))?;
    let hosts = CertificateParams::new(hosts)?;
    Ok(authority.issue("nobody.example", |params| *params = hosts).acceptor(false))
}

/// A certificate as text (RFC 7468, the base64 of RFC 4648).
fn pem(der: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letters = |bytes: &[u8]| {
        let word =
            bytes.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - bytes.len()));
        (0..4)
            .map(move |i| {
                if i > bytes.len() { '=' } else { char::from(LETTERS[(word >> (18 - 6 * i)) as usize & 63]) }
            })
            .collect::<String>()
    };
    let lines: Vec<String> = der.chunks(48).map(|line| line.chunks(3).map(letters).collect()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// Answers one request with the file of its host.
async fn visit(client: TcpStream, acceptor: &TlsAcceptor, folder: &Path) -> anyhow::Result<()> {
    let mut stream = acceptor.accept(client).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_BYTES_MAX {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let host = head.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default().to_owned();
    note(folder, &format!("web {} {host} {path}", shared::clock::monotonic_ms()));
    let answer = std::fs::read(folder.join("site").join(&host)).unwrap_or_default();
    stream.write_all(&answer).await?;
    stream.shutdown().await?;
    Ok(())
}
