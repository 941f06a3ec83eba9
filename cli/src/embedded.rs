//! Where `bigbrotr up` keeps its database, so that the other commands find it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The database's name in the embedded server.
pub(crate) const DATABASE: &str = "bigbrotr";
/// The embedded server's superuser, for migrations.
pub(crate) const SUPERUSER: &str = "postgres";
/// Port number that names the socket; no TCP port is opened.
pub(crate) const PORT: u16 = 5432;
/// Longest path of a Unix socket on Linux, without the closing NUL.
const SOCKET_PATH_MAX: usize = 107;

/// The data directory and what lies in it.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// The directory named, else the one of this user.
    pub(crate) fn new(named: Option<&Path>, env: &BTreeMap<String, String>) -> Self {
        let dir = named.map_or_else(|| default_dir(env), Path::to_owned);
        Self { dir: std::path::absolute(&dir).unwrap_or(dir) }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The server's own files.
    pub(crate) fn cluster(&self) -> PathBuf {
        self.dir.join("pgdata")
    }

    /// What the server says.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("postgres.log")
    }

    /// Held by the one `up` that runs here.
    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join("up.lock")
    }

    /// Where the socket is: in the data directory, unless that path is one that a socket or the server's
    /// list of directories cannot take; then in a folder named after it.
    pub(crate) fn socket_dir(&self) -> PathBuf {
        let beside = self.dir.join("run");
        let plain = beside.to_str().is_some_and(|path| !path.contains([',', '"', '\'', '\\']));
        if plain && socket_file(&beside).as_os_str().len() <= SOCKET_PATH_MAX {
            return beside;
        }
        // FNV-1a: the same folder for the same directory, in every build.
        let hash =
            self.dir.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
        PathBuf::from(format!("/tmp/bigbrotr-{hash:016x}"))
    }

    /// Whether a server seems to listen.
    pub(crate) fn is_running(&self) -> bool {
        socket_file(&self.socket_dir()).exists()
    }

    /// The database as `role`. A socket file has no TLS, and what PGSSLMODE asks of other servers is not asked of ours.
    pub(crate) fn url(&self, role: &str) -> String {
        let socket = self.socket_dir();
        let host: String = socket
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    char::from(*byte).to_string()
                }
                byte => format!("%{byte:02X}"),
            })
            .collect();
        format!("postgres://{role}@localhost:{PORT}/{DATABASE}?host={host}&sslmode=disable")
    }

    /// A command that opens the database for reading.
    pub(crate) fn psql(&self) -> String {
        let socket = self.socket_dir().display().to_string();
        let host = if socket.contains(char::is_whitespace) { format!("'{socket}'") } else { socket };
        format!("psql \"host={host} user=bigbrotr_reader dbname={DATABASE}\"")
    }
}

fn socket_file(dir: &Path) -> PathBuf {
    dir.join(format!(".s.PGSQL.{PORT}"))
}

fn default_dir(env: &BTreeMap<String, String>) -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/bigbrotr");
    }
    let set = |name: &str| env.get(name).filter(|value| !value.is_empty());
    match (set("XDG_DATA_HOME"), set("HOME")) {
        (Some(data), _) => Path::new(data).join("bigbrotr"),
        (None, Some(home)) => Path::new(home).join(".local/share/bigbrotr"),
        (None, None) => PathBuf::from("bigbrotr-data"),
    }
}
