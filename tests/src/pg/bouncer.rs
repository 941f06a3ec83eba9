//! PgBouncer in transaction mode, as the fleet meets it in production.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::{Role, TestDb, url_at};
use crate::programs::{Process, StateDir};

/// How long PgBouncer may take until it listens; it needs a few milliseconds.
const READY: Duration = Duration::from_secs(10);

/// Pause between two attempts to reach it.
const RETRY: Duration = Duration::from_millis(20);

/// PgBouncers that treat named statements differently: the fleet must do with either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// The one this machine has installed; 1.18 on Debian 12, which loses named statements in transaction mode.
    Installed,
    /// 1.21 or newer, from the test bed: it keeps them.
    Newer,
}

impl Generation {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Installed, Self::Newer];

    /// The program, or a visible skip.
    fn program(self) -> Option<PathBuf> {
        match self {
            Self::Installed => {
                let places = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"];
                let installed = places.iter().map(PathBuf::from).find(|place| place.exists());
                let program = crate::env::var("PGBOUNCER").map(PathBuf::from).or(installed);
                crate::require(program, "PgBouncer (tests/tools/setup.sh)")
            }
            Self::Newer => {
                let unpacked = crate::env::testbed().filter(|dir| dir.join("pgbouncer/installed").exists());
                crate::require(unpacked, "a PgBouncer of 1.21 or newer (tests/tools/setup.sh)")?;
                Some(crate::env::tools().join("newer-pgbouncer.sh"))
            }
        }
    }
}

/// A running PgBouncer; it ends when dropped.
#[derive(Debug)]
pub struct Bouncer {
    address: SocketAddr,
    database: String,
    cluster: String,
    command: Command,
    process: Option<Process>,
    state: StateDir,
}

impl Bouncer {
    /// In front of the test's cluster; `None` is a visible skip.
    pub async fn start(db: &TestDb, generation: Generation) -> Option<Self> {
        Self::start_before(db, db.address(), generation).await
    }

    /// In front of another address of the same cluster, such as a `ChaosProxy`'s; `None` is a visible skip.
    ///
    /// # Panics
    /// When PgBouncer is there and does not listen within 10 s: its log is printed.
    pub async fn start_before(db: &TestDb, server: SocketAddr, generation: Generation) -> Option<Self> {
        let program = generation.program()?;
        let state = StateDir::new("pgbouncer");
        let port = lasting_port();
        let users = state.path.join("users.txt");
        std::fs::write(&users, user_list()).expect("a private file can be written");
        let config = state.path.join("pgbouncer.ini");
        std::fs::write(&config, config_text(server, port, &users)).expect("a private file can be written");
        let mut command = Command::new(program);
        command.arg(&config);
        if let Some(dir) = crate::env::testbed() {
            command.env("BIGBROTR_TESTBED", dir);
        }
        if runs_as_root(&state.path) {
            command.args(["-u", "postgres"]);
        }
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let (database, cluster) = (db.name.clone(), db.cluster.clone());
        let mut bouncer = Self { address, database, cluster, command, process: None, state };
        bouncer.start_again().await;
        Some(bouncer)
    }

    /// Starts it anew with one more line of configuration.
    ///
    /// # Panics
    /// When it does not listen within 10 s: its log is printed.
    pub async fn start_again_with(&mut self, line: &str) {
        use std::io::Write as _;
        self.kill();
        let path = self.state.path.join("pgbouncer.ini");
        let mut config =
            std::fs::File::options().append(true).open(path).expect("its configuration is there");
        writeln!(config, "{line}").expect("its configuration can be written");
        self.start_again().await;
    }

    /// Ends it as SIGKILL does: no goodbye to clients or server.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it where it was before [`Self::kill`].
    ///
    /// # Panics
    /// When it does not listen within 10 s: its log is printed.
    pub async fn start_again(&mut self) {
        let log = self.state.path.join("log");
        self.process = Some(Process::spawn(&self.command, &log));
        wait_until_it_listens(self.address, &log).await;
    }

    /// The URL of the test's database through PgBouncer.
    pub fn url(&self, role: Role) -> String {
        url_at(&self.cluster, &self.address.to_string(), &self.database, role)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A free loopback port below those the kernel gives to clients: one of theirs could be taken while PgBouncer is away.
fn lasting_port() -> u16 {
    let mut tries = std::iter::repeat_with(|| {
        let drawn = u16::from_str_radix(&shared::clock::random_hex(2), 16).expect("two bytes of hex");
        20_000 + drawn % 12_000
    });
    let free = tries.by_ref().take(50).find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.expect("a free loopback port is found in 50 tries")
}

/// Transaction mode and nothing that 1.18 does not know; sqlx sends `extra_float_digits` at start, and a test
/// cannot wait the default 15 s for the next login after an outage.
fn config_text(server: SocketAddr, port: u16, users: &Path) -> String {
    format!(
        "[databases]\n* = host={} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
         unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = transaction\n\
         max_client_conn = 200\ndefault_pool_size = 20\nignore_startup_parameters = extra_float_digits\n\
         server_login_retry = 1\n",
        server.ip(),
        server.port(),
        users.display()
    )
}

fn user_list() -> String {
    let made = Role::MADE.iter().filter_map(|role| role.user());
    let lines = std::iter::once("postgres".to_owned()).chain(made).map(|user| format!("\"{user}\" \"\""));
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

/// PgBouncer refuses to run as root; what root makes belongs to user 0.
fn runs_as_root(own: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(own).is_ok_and(|metadata| metadata.uid() == 0)
}

async fn wait_until_it_listens(address: SocketAddr, log: &Path) {
    let listens = async {
        while crate::tcp::dial(address).await.is_err() {
            // bound: READY, around the whole loop.
            tokio::time::sleep(RETRY).await;
        }
    };
    let listening = tokio::time::timeout(READY, listens).await.is_ok();
    let said = std::fs::read_to_string(log).unwrap_or_default();
    assert!(listening, "PgBouncer did not listen within {READY:?}:\n{said}");
}
