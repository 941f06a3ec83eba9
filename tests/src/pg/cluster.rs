//! A cluster of a test's own, beside the one all share: another version, or one that is restored.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A private cluster; it is stopped and removed when dropped.
#[derive(Debug)]
pub struct Cluster {
    /// The superuser's URL.
    pub url: String,
    state: PathBuf,
    bin: Option<PathBuf>,
}

impl Cluster {
    /// Starts one with `tests/tools/pg.sh`, with the server programs in `bin` and these variables.
    ///
    /// # Panics
    /// When it does not start: the script says why.
    pub fn start(bin: Option<&Path>, variables: &[(&str, &str)]) -> Self {
        let unique = format!("bigbrotr-cluster-{}-{}", std::process::id(), shared::clock::random_hex(4));
        let state = std::env::temp_dir().join(unique);
        let mut command = script(&state, bin);
        command.arg("start").envs(variables.iter().copied());
        let output = command.output().expect("pg.sh can be run");
        assert!(output.status.success(), "pg.sh start: {}", String::from_utf8_lossy(&output.stderr));
        let url = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Self { url, state, bin: bin.map(Path::to_owned) }
    }

    /// The server programs of PostgreSQL 18 that `tests/tools/setup.sh` installs, or a visible skip.
    pub fn eighteen() -> Option<PathBuf> {
        let bin = crate::env::testbed().map(|dir| dir.join("postgres18/server"));
        crate::require(
            bin.filter(|bin| bin.join("postgres").exists()),
            "PostgreSQL 18 (tests/tools/setup.sh)",
        )
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let stopped = script(&self.state, self.bin.as_deref()).arg("stop").status();
        assert!(stopped.is_ok_and(|status| status.success()) || std::thread::panicking(), "pg.sh stop");
    }
}

fn script(state: &Path, bin: Option<&Path>) -> Command {
    let mut command = Command::new(crate::env::tools().join("pg.sh"));
    command.env("BIGBROTR_PG_STATE", state);
    if let Some(bin) = bin {
        command.env("PG_BIN", bin);
    }
    command
}
