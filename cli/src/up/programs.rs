//! PostgreSQL's server programs: where they are, and as whom they run.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::output::Fail;

/// Oldest PostgreSQL whose features the schema uses.
const OLDEST: u32 = 15;
/// Where Debian and its relatives put server programs, one folder per major version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// A directory with `initdb` and `postgres`.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    dir: PathBuf,
    major: u32,
}

impl Programs {
    /// The programs named, else the newest found that can read the data of version `data`, if there is any.
    pub(crate) fn find(
        named: Option<&Path>,
        env: &BTreeMap<String, String>,
        data: Option<u32>,
    ) -> Result<Self, Fail> {
        let variable = env.get("PG_BIN").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        if let Some((dir, source)) =
            named.map(|dir| (dir.to_owned(), "--pg-bin")).or_else(|| variable.map(|dir| (dir, "PG_BIN")))
        {
            let programs = Self::at(&dir).ok_or_else(|| {
                Fail::Usage(format!(
                    "{source} is {}: there are no PostgreSQL server programs in it",
                    dir.display()
                ))
            })?;
            return programs.fit(data);
        }
        let mut found: Vec<Self> = candidates(env).iter().filter_map(|dir| Self::at(dir)).collect();
        found.sort_by_key(|programs| programs.major);
        let fitting = found.iter().rfind(|programs| data.is_none_or(|major| programs.major == major));
        match fitting.or_else(|| found.last()) {
            Some(programs) => programs.clone().fit(data),
            None => Err(Fail::Failed(format!(
                "no PostgreSQL server programs were found: install them (Debian, Ubuntu: apt-get install postgresql; \
                 Fedora: dnf install postgresql-server; version {OLDEST} or newer), or name their directory with --pg-bin"
            ))),
        }
    }

    fn at(dir: &Path) -> Option<Self> {
        if !dir.join("initdb").is_file() {
            return None;
        }
        let said = Command::new(dir.join("postgres")).arg("--version").output().ok()?;
        // "postgres (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)"
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        let version = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        Some(Self { dir: dir.to_owned(), major: digits.parse().ok()? })
    }

    /// Refuses programs that are too old, or that cannot read the data there is.
    fn fit(self, data: Option<u32>) -> Result<Self, Fail> {
        let dir = self.dir.display();
        if let Some(data) = data.filter(|major| *major != self.major) {
            return Err(Fail::Failed(format!(
                "the data was made by PostgreSQL {data} and {dir} has version {}: install the server programs of version {data}, \
                 or start afresh with another --data",
                self.major
            )));
        }
        if self.major < OLDEST {
            return Err(Fail::Failed(format!(
                "PostgreSQL {} in {dir} is too old: version {OLDEST} or newer is needed",
                self.major
            )));
        }
        Ok(self)
    }

    pub(crate) const fn major(&self) -> u32 {
        self.major
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path(&self, program: &str) -> PathBuf {
        self.dir.join(program)
    }
}

/// Where server programs may be, the likelier places last.
fn candidates(env: &BTreeMap<String, String>) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> =
        env.get("PATH").map(|path| std::env::split_paths(path).collect()).unwrap_or_default();
    // What the search path names first is the better one, and a packaged server better than either.
    dirs.reverse();
    if let Ok(entries) = fs::read_dir(DEBIAN) {
        dirs.extend(entries.flatten().map(|entry| entry.path().join("bin")));
    }
    dirs
}

/// The user the server runs as.
#[derive(Debug, Clone)]
pub(crate) enum Owner {
    /// Whoever we are.
    Myself,
    /// Another user, because the server refuses to run as root.
    Other {
        /// Name, for messages.
        name: String,
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
}

impl Owner {
    /// As root `postgres`, else `nobody`; otherwise ourselves.
    pub(crate) fn find() -> Result<Self, Fail> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self::Myself);
        }
        let users = fs::read_to_string("/etc/passwd")
            .map_err(|error| Fail::Failed(format!("/etc/passwd cannot be read: {error}")))?;
        let user = |wanted: &str| {
            users.lines().find_map(|line| {
                let mut fields = line.split(':');
                let name = fields.next().filter(|name| *name == wanted)?;
                let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
                Some(Self::Other { name: name.to_owned(), uid, gid })
            })
        };
        user("postgres").or_else(|| user("nobody")).ok_or_else(|| {
            Fail::Failed(
                "PostgreSQL must not run as root, and there is neither a user postgres nor a user nobody"
                    .to_owned(),
            )
        })
    }

    /// Gives the directory to this user, and nobody else.
    pub(crate) fn private_dir(&self, dir: &Path) -> std::io::Result<()> {
        use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
        match fs::DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let found = fs::symlink_metadata(dir)?;
        let ours = [rustix::process::geteuid().as_raw(), self.uid()];
        if !found.is_dir() || !ours.contains(&found.uid()) {
            return Err(std::io::Error::other("it belongs to somebody else"));
        }
        if let Self::Other { uid, gid, .. } = self {
            chown(dir, Some(*uid), Some(*gid))?;
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
    }

    fn uid(&self) -> u32 {
        match self {
            Self::Myself => rustix::process::geteuid().as_raw(),
            Self::Other { uid, .. } => *uid,
        }
    }

    /// Who that is, for messages.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Myself => "this user",
            Self::Other { name, .. } => name,
        }
    }

    /// A program run as this user, with a clean environment, out of reach of the terminal's Ctrl-C, and
    /// interrupted by the kernel when the thread that started it ends: not even kill -9 leaves it behind.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "INT"]);
        if let Self::Other { uid, gid, .. } = self {
            command.arg(format!("--reuid={uid}")).arg(format!("--regid={gid}")).arg("--clear-groups");
        }
        command.arg("--").arg(program);
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC");
        command.current_dir("/").process_group(0).stdin(Stdio::null());
        command
    }
}
