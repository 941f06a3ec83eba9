//! One pair of files: events, and where they were seen.
//!
//! They are written under a name that says they are not complete, hashed on the way, and renamed at the end.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest as _, Sha256};
use shared::models::Event;

use super::columns::{EventTable, SightingTable};
use super::state::{FileEntry, failed, publish};
use crate::args::Format;
use crate::output::Fail;

/// An observation, ready to be written.
#[derive(Debug, Clone)]
pub(crate) struct Sighting<'a> {
    pub(crate) relay: &'a str,
    pub(crate) seen_at: i64,
    pub(crate) claimed: bool,
}

impl Sighting<'_> {
    /// Its word for how the relay showed the event.
    pub(crate) const fn evidence(&self) -> &'static str {
        if self.claimed { "claimed" } else { "delivered" }
    }
}

/// A file that counts and hashes what is written to it.
#[derive(Debug)]
pub(crate) struct Hashed {
    file: BufWriter<File>,
    hash: Sha256,
    bytes: u64,
}

impl Write for Hashed {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A pair of files being written.
pub(crate) struct Part {
    dir: PathBuf,
    names: [String; 2],
    rows: [u64; 2],
    /// Bytes of tags and content, whatever the format makes of them.
    text: u64,
    writers: Writers,
}

enum Writers {
    Jsonl(Box<[Hashed; 2]>),
    Parquet(Box<(EventTable, SightingTable)>),
}

impl Part {
    /// Begins the pair with this number; what an interrupted run left of it is written over.
    pub(crate) fn begin(dir: &Path, format: Format, number: usize) -> Result<Self, Fail> {
        let names = ["events", "observations"].map(|what| format!("{what}-{number:05}.{}", format.ending()));
        let open = |name: &String| -> Result<Hashed, Fail> {
            let path = unfinished(dir, name);
            let file = File::create(&path).map_err(|error| failed(&path, &error))?;
            Ok(Hashed { file: BufWriter::with_capacity(1 << 18, file), hash: Sha256::new(), bytes: 0 })
        };
        let [events, observations] = [open(&names[0])?, open(&names[1])?];
        let writers = match format {
            Format::Jsonl => Writers::Jsonl(Box::new([events, observations])),
            Format::Parquet => Writers::Parquet(Box::new((
                EventTable::new(events).map_err(|error| failed(dir, &error))?,
                SightingTable::new(observations).map_err(|error| failed(dir, &error))?,
            ))),
        };
        Ok(Self { dir: dir.to_owned(), names, rows: [0, 0], text: 0, writers })
    }

    /// Events and bytes of text in it.
    pub(crate) const fn size(&self) -> (u64, u64) {
        (self.rows[0], self.text)
    }

    /// One event and where it was seen.
    pub(crate) fn write(&mut self, event: &Event, seen: &[Sighting<'_>]) -> Result<(), Fail> {
        let name = &self.names[0];
        let wrong = |error: &dyn std::fmt::Display| failed(&unfinished(&self.dir, name), error);
        let id = event.id().to_string();
        match &mut self.writers {
            Writers::Jsonl(files) => {
                let [events, observations] = &mut **files;
                let text = event.to_json();
                self.text += text.len() as u64;
                writeln!(events, "{text}").map_err(|error| wrong(&error))?;
                for sighting in seen {
                    let line = json!({
                        "event_id": id, "relay_url": sighting.relay, "seen_at": sighting.seen_at,
                        "evidence": sighting.evidence(),
                    });
                    writeln!(observations, "{line}").map_err(|error| wrong(&error))?;
                }
            }
            Writers::Parquet(tables) => {
                self.text += tables.0.add(event, &id).map_err(|error| wrong(&error))? as u64;
                for sighting in seen {
                    tables.1.add(&id, sighting).map_err(|error| wrong(&error))?;
                }
            }
        }
        self.rows[0] += 1;
        self.rows[1] += seen.len() as u64;
        Ok(())
    }

    /// Completes both files.
    pub(crate) fn finish(self) -> Result<[FileEntry; 2], Fail> {
        let wrong = |error: &dyn std::fmt::Display| failed(&self.dir, error);
        let files = match self.writers {
            Writers::Jsonl(files) => *files,
            Writers::Parquet(tables) => [
                tables.0.finish().map_err(|error| wrong(&error))?,
                tables.1.finish().map_err(|error| wrong(&error))?,
            ],
        };
        let [events, observations] = files;
        Ok([
            complete(&self.dir, &self.names[0], "events", self.rows[0], events)?,
            complete(&self.dir, &self.names[1], "observations", self.rows[1], observations)?,
        ])
    }
}

fn complete(dir: &Path, name: &str, holds: &str, rows: u64, file: Hashed) -> Result<FileEntry, Fail> {
    let path = unfinished(dir, name);
    let Hashed { file, hash, bytes } = file;
    let synced = file.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| file.sync_all());
    synced.map_err(|error| failed(&path, &error))?;
    publish(dir, &path, name)?;
    Ok(FileEntry {
        name: name.to_owned(),
        holds: holds.to_owned(),
        rows,
        bytes,
        sha256: hex::encode(hash.finalize()),
    })
}

fn unfinished(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.part"))
}
