//! A directory that `bigbrotr export` made: which files, and where each event was seen.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use shared::clock;
use shared::jobs::import::Sighting;
use shared::models::{AddressPolicy, EventId, MAX_URL_BYTES, RelayUrl};

use super::lines::Lines;
use crate::commands::export::{FileEntry, MANIFEST, NAME, STATE, VERSION};

/// The longest manifest read, bytes.
const MANIFEST_MAX: u64 = 256 * 1024 * 1024;
/// Observations looked through for those of the next event, where some are of events that are not there.
const AHEAD: usize = 10_000;
/// Observations of one event that are read; more relays than that are not known anywhere.
const PER_EVENT: usize = 100_000;
/// Spellings of URLs that are remembered.
const URLS: usize = 50_000;
/// Lines refused that are named.
const NAMED: usize = 20;
/// How far ahead of our clock an observation may claim to be, seconds.
const AHEAD_S: i64 = 600;

#[derive(Debug, Deserialize)]
struct Manifest {
    format: String,
    format_version: u32,
    files_are: String,
    files: Vec<FileEntry>,
}

/// The pairs of files of an export, their hashes proved.
pub(super) fn pairs(dir: &Path) -> Result<Vec<(PathBuf, PathBuf)>, String> {
    let path = dir.join(MANIFEST);
    if !path.exists() {
        return Err(if dir.join(STATE).exists() {
            "the export is not finished: bigbrotr export --resume".to_owned()
        } else {
            format!("it has no {MANIFEST}")
        });
    }
    if fs::metadata(&path).map_err(|error| error.to_string())?.len() > MANIFEST_MAX {
        return Err(format!("its {MANIFEST} is too long"));
    }
    let text = fs::read(&path).map_err(|error| error.to_string())?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| format!("its {MANIFEST} is none: {error}"))?;
    if manifest.format != NAME || manifest.format_version != VERSION {
        return Err(format!("{} version {} is not known here", manifest.format, manifest.format_version));
    }
    if manifest.files_are != "jsonl" {
        return Err("import reads exports made with --format jsonl".to_owned());
    }
    for file in &manifest.files {
        let plain = Path::new(&file.name).file_name().is_some_and(|name| name == file.name.as_str());
        if !plain {
            return Err(format!("{:?} is no name of a file beside the manifest", file.name));
        }
        let found = hash(&dir.join(&file.name)).map_err(|error| format!("{}: {error}", file.name))?;
        if found != file.sha256 {
            return Err(format!("{} is not the file of the manifest: its SHA-256 is {found}", file.name));
        }
    }
    let of = |what: &str| -> Vec<PathBuf> {
        manifest.files.iter().filter(|file| file.holds == what).map(|file| dir.join(&file.name)).collect()
    };
    let (events, observations) = (of("events"), of("observations"));
    if events.len() != observations.len() {
        return Err("events and observations do not come in pairs".to_owned());
    }
    Ok(events.into_iter().zip(observations).collect())
}

fn hash(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 18]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

#[derive(Deserialize)]
struct Row {
    event_id: String,
    relay_url: String,
    seen_at: i64,
    evidence: String,
}

/// The observations of a pair, in the order of its events.
pub(super) struct Sightings {
    lines: Lines,
    policy: AddressPolicy,
    ahead: VecDeque<Sighting>,
    urls: HashMap<String, Option<RelayUrl>>,
    /// Lines that are no observation, or of a relay that may not be dialled.
    pub(super) bad: u64,
    /// The numbers of the first of them.
    pub(super) named: Vec<u64>,
    /// Observations of events that are not there, again of the same relay, or too many of one.
    pub(super) stray: u64,
}

impl Sightings {
    pub(super) fn open(path: &Path, policy: &AddressPolicy) -> io::Result<Self> {
        let lines = Lines::open(path)?;
        let policy = policy.clone();
        let (ahead, urls) = (VecDeque::new(), HashMap::new());
        Ok(Self { lines, policy, ahead, urls, bad: 0, named: Vec::new(), stray: 0 })
    }

    /// Those of this event, if they are next, or not far behind.
    pub(super) fn of(&mut self, id: EventId) -> io::Result<Vec<Sighting>> {
        self.fill(1)?;
        if self.ahead.front().is_none_or(|next| next.id != id) {
            self.fill(AHEAD)?;
            let Some(skip) = self.ahead.iter().position(|sighting| sighting.id == id) else {
                return Ok(vec![]);
            };
            self.stray += skip as u64;
            self.ahead.drain(..skip);
        }
        let (mut mine, mut relays) = (Vec::new(), HashSet::new());
        while let Some(sighting) = self.ahead.pop_front_if(|next| next.id == id) {
            // An export has one of each relay.
            if mine.len() < PER_EVENT && relays.insert(sighting.relay.clone()) {
                mine.push(sighting);
            } else {
                self.stray += 1;
            }
            self.fill(1)?;
        }
        Ok(mine)
    }

    /// Reads to the end; what is left is of events that are not there.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.stray += self.ahead.len() as u64;
        self.ahead.clear();
        while self.read()?.is_some() {
            self.stray += 1;
        }
        Ok(())
    }

    fn fill(&mut self, wanted: usize) -> io::Result<()> {
        while self.ahead.len() < wanted {
            let Some(sighting) = self.read()? else { return Ok(()) };
            self.ahead.push_back(sighting);
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<Option<Sighting>> {
        while let Some(line) = self.lines.next()? {
            let (number, sighting) = match line {
                Ok(line) => (line.number, self.parse(&line.text)),
                Err((number, _)) => (number, None),
            };
            if sighting.is_some() {
                return Ok(sighting);
            }
            self.bad += 1;
            if self.named.len() < NAMED {
                self.named.push(number);
            }
        }
        Ok(None)
    }

    fn parse(&mut self, text: &str) -> Option<Sighting> {
        let row: Row = serde_json::from_str(text).ok()?;
        let claimed = match row.evidence.as_str() {
            "claimed" => true,
            "delivered" => false,
            _ => return None,
        };
        if !(0..=clock::unix_now() + AHEAD_S).contains(&row.seen_at) {
            return None;
        }
        // Before it is remembered, which it is whether it is a URL or not.
        if row.relay_url.len() > MAX_URL_BYTES {
            return None;
        }
        if self.urls.len() >= URLS {
            self.urls.clear();
        }
        let policy = &self.policy;
        let relay = self
            .urls
            .entry(row.relay_url)
            .or_insert_with_key(|url| RelayUrl::from_db(url, policy).ok())
            .clone()?;
        Some(Sighting { id: row.event_id.parse().ok()?, relay, seen_at: row.seen_at, claimed })
    }
}
