//! PgBouncer in transaction mode, as the fleet meets it in production.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{Role, TestDb, url_at};
use crate::programs::{Process, StateDir, free_port};

/// How long PgBouncer may take until it listens; it needs a few milliseconds.
const READY: Duration = Duration::from_secs(10);

/// Pause between two attempts to reach it.
const RETRY: Duration = Duration::from_millis(20);

/// A running PgBouncer; it ends when dropped.
#[derive(Debug)]
pub struct Bouncer {
    address: SocketAddr,
    database: String,
    cluster: String,
    process: Process,
    _state: StateDir,
}

impl Bouncer {
    /// In front of the test's cluster; `None` is a visible skip.
    pub async fn start(db: &TestDb) -> Option<Self> {
        Self::start_before(db, db.address()).await
    }

    /// In front of another address of the same cluster, such as a `ChaosProxy`'s; `None` is a visible skip.
    ///
    /// # Panics
    /// When PgBouncer is there and does not listen within 10 s: its log is printed.
    pub async fn start_before(db: &TestDb, server: SocketAddr) -> Option<Self> {
        let places = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"];
        let program = crate::env::var("PGBOUNCER").or_else(|| {
            places.iter().find(|place| Path::new(place).exists()).map(|place| (*place).to_owned())
        });
        let program = crate::require(program, "PgBouncer (tests/tools/setup.sh)")?;
        let state = StateDir::new("pgbouncer");
        let port = free_port();
        let users = state.path.join("users.txt");
        std::fs::write(&users, user_list()).expect("a private file can be written");
        let config = state.path.join("pgbouncer.ini");
        std::fs::write(&config, config_text(server, port, &users)).expect("a private file can be written");
        let mut command = Command::new(program);
        command.arg(&config);
        if runs_as_root(&state.path) {
            command.args(["-u", "postgres"]);
        }
        let log = state.path.join("log");
        let process = Process::spawn(&command, &log);
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        wait_until_it_listens(address, &log).await;
        let (database, cluster) = (db.name.clone(), db.cluster.clone());
        Some(Self { address, database, cluster, process, _state: state })
    }

    /// The URL of the test's database through PgBouncer.
    pub fn url(&self, role: Role) -> String {
        url_at(&self.cluster, &self.address.to_string(), &self.database, role)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
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
