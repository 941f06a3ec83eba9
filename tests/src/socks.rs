//! SOCKS5 servers nobody here wrote, as real child processes on loopback.
//!
//! Each has its own file of hosts and its own resolver that answers nothing: a name that only the proxy knows is
//! proof that the name, and not an address, was given to it.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::programs::{Process, StateDir, free_port};
use crate::space;

/// How long a server may take until it listens; both need milliseconds.
const READY: Duration = Duration::from_secs(10);
/// Pause between two attempts to reach it.
const RETRY: Duration = Duration::from_millis(20);

/// Which program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// `microsocks`.
    Microsocks,
    /// `danted` of dante-server.
    Dante,
}

impl Server {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Microsocks, Self::Dante];

    const fn program(self) -> &'static str {
        match self {
            Self::Microsocks => "microsocks",
            Self::Dante => "danted",
        }
    }
}

/// A running SOCKS5 server; it ends when dropped.
#[derive(Debug)]
pub struct SocksProxy {
    /// Where it listens.
    pub address: SocketAddr,
    process: Process,
    state: StateDir,
}

impl SocksProxy {
    /// A server that knows `names` as 127.0.0.1 and no other name, that refuses to go to port `barred` (danted only),
    /// and that asks for `login` where there is one (microsocks only); a visible skip where it is missing.
    ///
    /// # Panics
    /// When it does not listen within 10 s: its log is printed.
    pub async fn start(
        server: Server,
        names: &[&str],
        barred: u16,
        login: Option<(&str, &str)>,
    ) -> Option<Self> {
        let program = server.program();
        let there = space::installed(program).then_some(());
        crate::require(there, &format!("the SOCKS5 server {program} (tests/tools/setup.sh)"))?;
        let mut command = space::unshared("m", &crate::env::tools().join("socks.sh"))?;
        let state = StateDir::new(program);
        let port = free_port();
        let mut hosts = "127.0.0.1 localhost\n".to_owned();
        for name in names {
            writeln!(hosts, "127.0.0.1 {name}").expect("a string takes text");
        }
        std::fs::write(state.path.join("hosts"), hosts).expect("a private file can be written");
        command.args([program, &port.to_string()]).arg(&state.path).arg(barred.to_string());
        if let Some((user, password)) = login {
            command.args([user, password]);
        }
        let process = Process::spawn(&command, &state.path.join("log"));
        let mut proxy = Self { address: SocketAddr::from(([127, 0, 0, 1], port)), process, state };
        proxy.wait_until_it_listens().await;
        Some(proxy)
    }

    /// What it wrote down.
    pub fn log(&self) -> String {
        log(&self.state.path)
    }

    /// The process, to send it signals.
    pub const fn process(&self) -> &Process {
        &self.process
    }

    async fn wait_until_it_listens(&mut self) {
        let listens = async {
            while !self.process.has_ended() {
                if crate::tcp::dial(self.address).await.is_ok() {
                    return true;
                }
                // bound: READY, around the whole loop.
                tokio::time::sleep(RETRY).await;
            }
            false
        };
        let ready = tokio::time::timeout(READY, listens).await.unwrap_or(false);
        assert!(ready, "{} does not listen:\n{}", self.address, self.log());
    }
}

fn log(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("log")).unwrap_or_default()
}
