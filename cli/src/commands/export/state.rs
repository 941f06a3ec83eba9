//! What an export remembers: its scope, how far it is, and at the end the manifest that makes it citable.
//!
//! The state is written after each pair of files, whole and by renaming: it always speaks of files that are complete.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::db::{ExportCoverage, LeftOut};

use crate::args::{Format, Withheld};
use crate::output::{Fail, utc};

/// What `format` says in manifests, and the version of their shape.
pub(crate) const NAME: &str = "bigbrotr-export";
pub(crate) const VERSION: u32 = 1;
/// The finished record.
pub(crate) const MANIFEST: &str = "manifest.json";
/// The record of an export that is not finished.
pub(crate) const STATE: &str = "export.state.json";

/// Which events, and how they are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scope {
    pub(crate) since: Option<i64>,
    pub(crate) until: Option<i64>,
    pub(crate) kinds: Vec<u16>,
    pub(crate) relays: Vec<String>,
    pub(crate) format: Format,
    pub(crate) as_of: i64,
    pub(crate) part_events: u64,
    /// Classes that are there because somebody asked for them.
    #[serde(default)]
    pub(crate) with: Vec<Withheld>,
}

/// One complete file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    /// Its name in the directory.
    pub(crate) name: String,
    /// `events` or `observations`.
    pub(crate) holds: String,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// Where an export stands between two pairs of files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) program: String,
    pub(crate) schema_version: i64,
    pub(crate) scope: Scope,
    /// Whether all that was seen by `as_of` is known to be there.
    #[serde(default = "settled")]
    pub(crate) settled: bool,
    pub(crate) vantages: Vec<String>,
    pub(crate) coverage: Vec<Value>,
    /// Rows that are to be looked at, if they could be counted.
    pub(crate) total: Option<u64>,
    pub(crate) scanned: u64,
    /// Key of the last event written.
    pub(crate) cursor: i64,
    pub(crate) last_created_at: Option<i64>,
    pub(crate) first_created_at: Option<i64>,
    pub(crate) events: u64,
    pub(crate) observations: u64,
    pub(crate) left_out: BTreeMap<String, u64>,
    pub(crate) kinds: BTreeMap<u16, u64>,
    pub(crate) relays: BTreeMap<String, u64>,
    pub(crate) files: Vec<FileEntry>,
}

/// Versions that had no word for it waited before they began.
const fn settled() -> bool {
    true
}

impl State {
    /// Number of the next pair of files.
    pub(crate) fn part(&self) -> usize {
        self.files.len() / 2
    }

    /// The unfinished state in a directory, if there is one.
    pub(crate) fn load(dir: &Path) -> Result<Option<Self>, Fail> {
        let path = dir.join(STATE);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
                Fail::Failed(format!("{} is not the state of an export: {error}", path.display()))
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(&path, &error)),
        }
    }

    /// Writes it over the last one.
    pub(crate) fn save(&self, dir: &Path) -> Result<(), Fail> {
        put(dir, STATE, &serde_json::to_vec(self).map_err(|error| Fail::Failed(error.to_string()))?)
    }

    /// The last act: the manifest appears, then the state goes.
    pub(crate) fn finish(&self, dir: &Path) -> Result<Value, Fail> {
        let manifest = self.manifest();
        let text =
            serde_json::to_string_pretty(&manifest).map_err(|error| Fail::Failed(error.to_string()))?;
        put(dir, MANIFEST, format!("{text}\n").as_bytes())?;
        let state = dir.join(STATE);
        fs::remove_file(&state).map_err(|error| failed(&state, &error))?;
        Ok(manifest)
    }

    /// What a reader of the data set must know. It has no time but `as_of`, so that the same export is the same bytes.
    fn manifest(&self) -> Value {
        let scope = &self.scope;
        let left_out: BTreeMap<&str, u64> = LeftOut::ALL
            .iter()
            .map(|why| (why.as_str(), self.left_out.get(why.as_str()).copied().unwrap_or(0)))
            .collect();
        json!({
            "format": NAME,
            "format_version": VERSION,
            "program": { "name": "bigbrotr", "version": self.program },
            "schema_version": self.schema_version,
            "as_of": scope.as_of,
            "as_of_utc": utc(scope.as_of),
            "vantages": self.vantages,
            "filters": {
                "since": scope.since, "until": scope.until, "kinds": scope.kinds, "relays": scope.relays,
                "with": scope.with,
            },
            "files_are": scope.format,
            "part_events": scope.part_events,
            "last_key": self.cursor,
            "first_created_at": self.first_created_at,
            "last_created_at": self.last_created_at,
            "counts": {
                "events": self.events, "observations": self.observations,
                "events_per_kind": self.kinds, "observations_per_relay": self.relays,
            },
            "left_out": left_out,
            "coverage": self.coverage,
            "files": self.files,
        })
    }
}

/// A line of the manifest's coverage.
pub(crate) fn coverage_json(line: &ExportCoverage) -> Value {
    json!({
        "relay": line.relay, "class": line.class, "grade": line.grade, "reason": line.reason,
        "seconds": line.seconds, "since": line.since, "until": line.until,
    })
}

/// A file appears whole or not at all, and stays when the machine stops.
fn put(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), Fail> {
    let path = dir.join(format!("{name}.part"));
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| failed(&path, &error))?;
    publish(dir, &path, name)
}

/// Gives a complete file its name.
pub(crate) fn publish(dir: &Path, part: &Path, name: &str) -> Result<(), Fail> {
    let path: PathBuf = dir.join(name);
    fs::rename(part, &path).map_err(|error| failed(&path, &error))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| failed(dir, &error))
}

/// A file that did not do as told.
pub(crate) fn failed(path: &Path, error: &dyn std::fmt::Display) -> Fail {
    Fail::Failed(format!("{}: {error}", path.display()))
}
