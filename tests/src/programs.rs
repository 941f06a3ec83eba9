//! Relay programs nobody here wrote, as real child processes on loopback.
//!
//! Invariant: a program ends with its handle, and with this process even when that is killed.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::publish::Client;

/// How long a program may take until it answers a REQ; the Python one needs about a second on a quiet machine.
const READY: Duration = Duration::from_secs(40);

/// Pause between two attempts to reach a starting program.
const RETRY: Duration = Duration::from_millis(50);

/// Ports for [`free_port`]: below those that the kernel gives (`ip_local_port_range`).
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 12_000;

/// The programs `tests/tools/setup.sh` installs, and the one that is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// PyPI `nostr-relay`, with SQLite.
    Python,
    /// npm `@nostr-relay/core`, with SQLite.
    Npm,
    /// `nostr-relay-builder`'s LocalRelay, in memory, in the binary `testrelay`.
    Local,
    /// `nostr-rs-relay`, with SQLite; of the extended profile, which builds it (`EXTENDED=1 ./test`).
    Rust,
}

impl Kind {
    /// Every program that is always there.
    pub const ALL: [Self; 3] = [Self::Python, Self::Npm, Self::Local];

    /// Those, and in the extended profile what it builds, too.
    pub fn here() -> Vec<Self> {
        let extended = crate::env::var("EXTENDED").is_some_and(|value| value == "1");
        Self::ALL.into_iter().chain(extended.then_some(Self::Rust)).collect()
    }

    /// The word `tests/tools/relay.sh` knows it by.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Npm => "npm",
            Self::Local => "local",
            Self::Rust => "rust",
        }
    }

    /// The file that shows the program is installed.
    fn marker(self) -> Option<PathBuf> {
        match self {
            Self::Python => crate::env::testbed().map(|dir| dir.join("nostr-relay/installed")),
            Self::Npm => crate::env::testbed().map(|dir| dir.join("npm/installed")),
            Self::Local => crate::env::testrelay(),
            Self::Rust => crate::env::testbed().map(|dir| dir.join("nostr-rs-relay/installed")),
        }
    }
}

/// A running relay program; it ends when dropped.
#[derive(Debug)]
pub struct Program {
    /// `ws://127.0.0.1:port`.
    pub url: String,
    process: Process,
    state: StateDir,
}

impl Program {
    /// Starts the program on a free port and waits until it answers; `None` (a visible skip) where it is missing.
    ///
    /// # Panics
    /// When the program is there and does not answer within 40 s: its log is printed.
    pub async fn start(kind: Kind) -> Option<Self> {
        let installed = kind.marker().filter(|path| path.exists());
        crate::require(installed, &format!("the {} relay program (tests/tools/setup.sh)", kind.as_str()))?;
        let state = StateDir::new(kind.as_str());
        let port = free_port();
        let mut command = Command::new(crate::env::tools().join("relay.sh"));
        command.args([kind.as_str(), &port.to_string()]).arg(&state.path);
        if let Some(dir) = crate::env::testbed() {
            command.env("BIGBROTR_TESTBED", dir);
        }
        if let Some(path) = crate::env::testrelay() {
            command.env("TESTRELAY", path);
        }
        let process = Process::spawn(&command, &state.path.join("log"));
        let mut program = Self { url: format!("ws://127.0.0.1:{port}"), process, state };
        program.wait_until_ready().await;
        Some(program)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    async fn wait_until_ready(&mut self) {
        let answers = async {
            while !self.process.has_ended() {
                if let Ok(mut client) = Client::connect(&self.url).await
                    && client.req(&json!({ "limit": 1 })).await.is_ok_and(|answer| answer.is_eose())
                {
                    return true;
                }
                // bound: READY, around the whole loop.
                tokio::time::sleep(RETRY).await;
            }
            false
        };
        let ready = tokio::time::timeout(READY, answers).await.unwrap_or(false);
        let said = std::fs::read_to_string(self.state.path.join("log")).unwrap_or_default();
        assert!(ready, "{} did not answer a REQ within {READY:?}, or ended:\n{said}", self.url);
    }
}

/// A child process that is killed by its pid when dropped, and by the kernel when this thread ends first.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Runs `command` with its output in the file `log`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(command: &Command, log: &Path) -> Self {
        let log = std::fs::File::create(log).expect("the log can be made");
        let mut guarded = Command::new("setpriv");
        guarded.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => guarded.env(name, value),
                None => guarded.env_remove(name),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            guarded.current_dir(dir);
        }
        guarded.stdin(Stdio::null()).stdout(log.try_clone().expect("a file handle")).stderr(log);
        let child = guarded.spawn().unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
        Self { child }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A private directory, removed when dropped unless the test is failing.
#[derive(Debug)]
pub(crate) struct StateDir {
    pub(crate) path: PathBuf,
}

impl StateDir {
    pub(crate) fn new(word: &str) -> Self {
        let name = format!("bigbrotr-{word}-{}", shared::clock::random_hex(6));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).expect("a private directory can be made");
        Self { path }
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            drop(std::fs::remove_dir_all(&self.path));
        }
    }
}

/// A loopback port nobody listens on at this moment; none of those that the kernel gives to whoever asks for any, since what
/// is to listen there may start long after this.
///
/// # Panics
/// When there is none in a hundred tries.
pub fn free_port() -> u16 {
    let drawn = || FIRST_PORT + u16::try_from(shared::clock::random() % u64::from(PORTS)).expect("a port");
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    std::iter::repeat_with(drawn).take(100).find(is_free).expect("a free loopback port")
}
