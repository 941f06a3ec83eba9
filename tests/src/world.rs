//! The world outside, in a namespace of its own: addresses that count as global, and private ones, a relay that
//! answers at all of them, and the only name server there is.
//!
//! Why: the guard and the resolver must be met in their default policy, which refuses everything that a test could
//! have on a machine's own loopback.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

use crate::factory::Factory;
use crate::names::{heard, note};
use crate::programs::{Process, StateDir};
use crate::scripted::{Script, ScriptedRelay};
use crate::space;

/// How long the world may take to come about.
const READY: Duration = Duration::from_secs(20);
/// Pause between two looks.
const RETRY: Duration = Duration::from_millis(20);
/// Events of its relay.
pub const EVENTS: usize = 20;

/// A running world; it ends when dropped.
#[derive(Debug)]
pub struct World {
    holder: Process,
    state: StateDir,
}

impl World {
    /// A world whose names are those of `zone` (see [`crate::names::serve`]); a visible skip where it cannot be.
    ///
    /// # Panics
    /// When it does not come about: what was said is printed.
    pub async fn start(zone: &str) -> Option<Self> {
        crate::require(space::installed("ip").then_some(()), "iproute2 (tests/tools/setup.sh)")?;
        let testrelay = crate::require(crate::env::testrelay(), "the testrelay binary")?;
        let mut command = space::unshared("nm", &crate::env::tools().join("world.sh"))?;
        let state = StateDir::new("world");
        command.arg(&state.path).arg(testrelay);
        std::fs::write(state.path.join("zone"), zone).expect("a private file can be written");
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

    /// The command, run in there.
    pub fn within(&self, command: &Command) -> Command {
        space::within(self.holder.pid(), command)
    }

    /// Every name that was asked for, in order.
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

/// What runs inside, until it is killed: names at 127.0.0.1:53, a relay at port 80 of every address.
pub async fn serve(folder: &Path) -> anyhow::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:53").await.context("the port of names")?;
    let door = TcpListener::bind("[::]:80").await.context("the port of relays")?;
    let events = Factory::new(41).events(EVENTS);
    let relay = ScriptedRelay::start(Script::honest(&events, 100)).await;
    note(folder, "ready now");
    let mut open = JoinSet::new();
    let names = crate::names::serve(&socket, folder);
    tokio::pin!(names);
    loop {
        let mut client = tokio::select! {
            () = &mut names => anyhow::bail!("the name server ended"),
            accepted = door.accept() => accepted?.0,
        };
        note(folder, &format!("tcp {}", client.local_addr()?.ip().to_canonical()));
        let target = relay.address();
        open.spawn(async move {
            let Ok(mut server) = crate::tcp::dial(target).await else { return };
            tokio::io::copy_bidirectional(&mut client, &mut server).await.ok();
        });
    }
}
