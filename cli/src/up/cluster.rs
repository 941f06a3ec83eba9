//! The private PostgreSQL of `up`: made once, started with us, stopped with us.
//!
//! Invariant: one `up` per data directory (a lock), one server per cluster, and the server ends with this
//! process however that ends. Its data outlives both.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::programs::{Owner, Programs};
use crate::embedded::{DATABASE, Layout, PORT, SUPERUSER};
use crate::output::{Fail, warn};

/// Settings of a server that shares a machine with everything else. Commits are durable: what was
/// reported as archived is archived.
const SETTINGS: &[&str] = &[
    "shared_buffers=128MB",
    "jit=off",
    "synchronous_commit=on",
    "wal_compression=on",
    "max_wal_size=512MB",
    "listen_addresses=",
    "timezone=UTC",
    "log_timezone=UTC",
    "logging_collector=off",
];
/// Connections beside those that one part may take (`database.max_connections`): of the other parts, and of people.
const OTHERS: u32 = 30;
/// The log begins anew beyond this, bytes.
const LOG_MAX: u64 = 10 * 1024 * 1024;
/// How long the server of a killed `up` may take to end; the kernel has asked it to.
const LEFTOVER_TURNS: u32 = 600;
/// How long a start may take: recovery after a crash replays what was written since the last checkpoint.
const START_TURNS: u32 = 6_000;
/// How long a fast stop may take before it becomes an immediate one, which costs only a recovery.
const STOP_TURNS: u32 = 300;
/// Between two looks at the server.
const TURN: Duration = Duration::from_millis(100);

/// A running server.
#[derive(Debug)]
pub(crate) struct Cluster {
    child: Child,
    layout: Layout,
    _lock: File,
}

impl Cluster {
    /// Makes the cluster where there is none, and begins to start it, for parts that take up to so many connections. Must
    /// be called on a thread that lives as long as the process: the kernel stops the server when that thread ends.
    pub(crate) async fn start(
        layout: &Layout,
        programs: &Programs,
        owner: &Owner,
        connections: u32,
        lock: File,
    ) -> Result<Self, Fail> {
        end_leftover(layout).await?;
        let socket = layout.socket_dir();
        owner.private_dir(&socket).map_err(|error| failed(&socket, &error))?;
        if !layout.cluster().join("PG_VERSION").is_file() {
            create(layout, programs, owner)?;
        }
        let mut command = owner.command(&programs.path("postgres"));
        command.arg("-D").arg(layout.cluster()).arg("-k").arg(&socket).args(["-p", &PORT.to_string()]);
        for setting in settings(connections) {
            command.args(["-c", &setting]);
        }
        let log = open_log(layout)?;
        let errors = log.try_clone().map_err(|error| failed(&layout.log(), &error))?;
        let child = command.stdout(log).stderr(errors).spawn().map_err(|error| no_setpriv(&error))?;
        Ok(Self { child, layout: layout.clone(), _lock: lock })
    }

    /// Waits until it answers, through a recovery where one is needed.
    pub(crate) async fn wait_until_ready(&mut self) -> Result<(), Fail> {
        for turn in 0..START_TURNS {
            self.check()?;
            let state = fs::read_to_string(self.layout.cluster().join("postmaster.pid")).unwrap_or_default();
            let mut lines = state.lines();
            let ours = lines.next().is_some_and(|pid| pid == self.child.id().to_string());
            if ours && lines.nth(6).is_some_and(|status| status.trim() == "ready") {
                return Ok(());
            }
            if turn == 50 {
                warn("PostgreSQL is recovering; this may take a while");
            }
            tokio::time::sleep(TURN).await;
        }
        Err(Fail::Failed(format!(
            "PostgreSQL did not become ready; its log is {}",
            self.layout.log().display()
        )))
    }

    /// Whether the server still runs; if not, why, as far as its log says.
    pub(crate) fn check(&mut self) -> Result<(), Fail> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                let log = self.layout.log();
                Err(Fail::Failed(format!(
                    "PostgreSQL ended ({status}); the end of {}:\n{}",
                    log.display(),
                    tail(&log)
                )))
            }
            Err(error) => Err(Fail::Failed(format!("PostgreSQL cannot be watched: {error}"))),
        }
    }

    /// Asks for a fast stop, insists after a while, and waits for the end.
    pub(crate) async fn stop(mut self) {
        let mut signal = Signal::INT;
        for turn in 0..STOP_TURNS * 2 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            if turn == STOP_TURNS {
                warn("PostgreSQL does not stop; insisting");
                signal = Signal::QUIT;
            }
            if turn % STOP_TURNS == 0
                && let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
                && let Err(error) = kill_process(pid, signal)
            {
                warn(&format!("PostgreSQL cannot be asked to stop: {error}"));
            }
            tokio::time::sleep(TURN).await;
        }
    }
}

/// The settings of a server whose parts take up to so many connections each.
fn settings(connections: u32) -> Vec<String> {
    let connections = connections.saturating_add(OTHERS);
    let fixed = SETTINGS.iter().map(|setting| (*setting).to_owned());
    fixed.chain([format!("max_connections={connections}")]).collect()
}

/// Makes the data directory and takes it for this process.
pub(crate) fn take(layout: &Layout) -> Result<File, Fail> {
    let dir = layout.dir();
    fs::create_dir_all(dir).map_err(|error| failed(dir, &error))?;
    let path = layout.lock();
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(PRIVATE)
        .custom_flags(NOFOLLOW)
        .open(&path)
        .map_err(|error| failed(&path, &error))?;
    if file.try_lock().is_err() {
        let mut pid = String::new();
        file.read_to_string(&mut pid).map_err(|error| failed(&path, &error))?;
        return Err(Fail::Failed(format!(
            "another `bigbrotr up` (process {}) uses {}: stop it, or name another folder with --data",
            pid.trim(),
            dir.display()
        )));
    }
    let note = |mut file: &File| -> std::io::Result<()> {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    note(&file).map_err(|error| failed(&path, &error))?;
    Ok(file)
}

/// The version of the data there is, if there is any.
pub(crate) fn data_version(layout: &Layout) -> Option<u32> {
    fs::read_to_string(layout.cluster().join("PG_VERSION")).ok()?.trim().parse().ok()
}

/// The server of a killed `up` is stopping; a pid file whose server is gone is only a file.
async fn end_leftover(layout: &Layout) -> Result<(), Fail> {
    let file = layout.cluster().join("postmaster.pid");
    let server = || {
        let text = fs::read_to_string(&file).ok()?;
        let pid: i32 = text.lines().next()?.trim().parse().ok()?;
        Some(pid.saturating_abs())
    };
    let runs = |pid: i32| {
        let here = fs::canonicalize(layout.cluster()).ok();
        // The server works in its data directory; another process that has its number by now does not.
        here.is_some() && fs::read_link(format!("/proc/{pid}/cwd")).ok() == here
    };
    for turn in 0..LEFTOVER_TURNS {
        let Some(pid) = server() else { return Ok(()) };
        if !runs(pid) {
            return match fs::remove_file(&file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(&file, &error)),
                _ => Ok(()),
            };
        }
        if turn == 20 {
            warn(&format!("the PostgreSQL of an earlier run (process {pid}) still stops; waiting for it"));
            if let Some(pid) = Pid::from_raw(pid) {
                kill_process(pid, Signal::INT).ok();
            }
        }
        tokio::time::sleep(TURN).await;
    }
    Err(Fail::Failed(format!(
        "the PostgreSQL of an earlier run still uses {}: end it before you start again",
        layout.cluster().display()
    )))
}

/// Makes a cluster with an empty database under another name and moves it into place when it is whole.
fn create(layout: &Layout, programs: &Programs, owner: &Owner) -> Result<(), Fail> {
    let new = layout.dir().join("pgdata.new");
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(&new, &error)),
        _ => {}
    }
    owner.private_dir(&new).map_err(|error| failed(&new, &error))?;
    let reached =
        owner.command(Path::new("test")).arg("-w").arg(&new).status().map_err(|error| no_setpriv(&error))?;
    if !reached.success() {
        return Err(Fail::Failed(format!(
            "{} cannot be reached by {}, as whom PostgreSQL runs: name a folder with --data whose parents everybody may enter",
            new.display(),
            owner.name()
        )));
    }
    let mut initdb = owner.command(&programs.path("initdb"));
    initdb.arg("-D").arg(&new).args([
        "-U",
        SUPERUSER,
        "-E",
        "UTF8",
        "--locale=C",
        "-A",
        "trust",
        "--data-checksums",
    ]);
    let said = initdb.output().map_err(|error| no_setpriv(&error))?;
    if !said.status.success() {
        return Err(Fail::Failed(format!("initdb failed: {}", String::from_utf8_lossy(&said.stderr).trim())));
    }
    // The single-user mode needs neither a socket nor a client program.
    let mut single = owner.command(&programs.path("postgres"));
    single.arg("--single").arg("-D").arg(&new).arg("postgres");
    single.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = single.spawn().map_err(|error| no_setpriv(&error))?;
    if let Some(mut input) = child.stdin.take() {
        writeln!(input, "CREATE DATABASE {DATABASE};").map_err(|error| failed(&new, &error))?;
    }
    let said = child.wait_with_output().map_err(|error| failed(&new, &error))?;
    let text = String::from_utf8_lossy(&said.stderr);
    if !said.status.success() || text.contains("ERROR") || text.contains("FATAL") {
        return Err(Fail::Failed(format!("the database could not be made: {}", text.trim())));
    }
    fs::rename(&new, layout.cluster()).map_err(|error| failed(&new, &error))
}

fn open_log(layout: &Layout) -> Result<File, Fail> {
    let path = layout.log();
    let long = fs::metadata(&path).is_ok_and(|found| found.len() > LOG_MAX);
    let mut options = File::options();
    options.create(true).mode(PRIVATE).custom_flags(NOFOLLOW);
    if long {
        options.write(true).truncate(true)
    } else {
        options.append(true)
    };
    options.open(&path).map_err(|error| failed(&path, &error))
}

/// Files of ours are the owner's alone, and never somebody's link to another.
const PRIVATE: u32 = 0o600;
/// `O_NOFOLLOW`, as Linux has it.
const NOFOLLOW: i32 = 0o400_000;

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    // The cause stands before the farewell: the last graver lines, then how it ended.
    let (earlier, last) = lines.split_at(lines.len().saturating_sub(5));
    let recent = &earlier[earlier.len().saturating_sub(200)..];
    let grave = recent
        .iter()
        .filter(|line| line.contains("PANIC:") || line.contains("FATAL:") || line.contains("No space left"));
    let grave: Vec<&str> = grave.copied().collect();
    [&grave[grave.len().saturating_sub(3)..], last].concat().join("\n")
}

fn failed(path: &Path, error: &std::io::Error) -> Fail {
    Fail::Failed(format!("{}: {error}", path.display()))
}

fn no_setpriv(error: &std::io::Error) -> Fail {
    Fail::Failed(format!("setpriv, of the package util-linux, is needed and cannot be run: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_has_room_for_what_a_part_may_take_and_for_the_others() {
        let room = |connections| {
            let all = settings(connections);
            let found: Vec<u32> = all
                .iter()
                .filter_map(|setting| setting.strip_prefix("max_connections=")?.parse().ok())
                .collect();
            assert_eq!((found.len(), all.len()), (1, SETTINGS.len() + 1), "{all:?}");
            found[0]
        };
        assert!(room(16) >= 16 + 20);
        assert!(room(200) >= 200 + 20, "the most that the configuration allows");
    }
}
