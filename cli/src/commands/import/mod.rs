//! `import`: lines of dumps and exports become events and observations.

mod archive;
mod lines;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use shared::config::Config;
use shared::db::{Db, Imported, Pace};
use shared::jobs::import::{ImportError, Line, Outcome, Seen, Sighting, TOMBSTONES_AT_ONCE, import as store};
use shared::jobs::{JobsConfig, Verifier};
use shared::models::{AddressPolicy, EnvelopeFacts, EventError, RelayUrl};

use super::bar::Bar;
use crate::Session;
use crate::args::Import;
use crate::output::{Fail, commas, line, warn};
use archive::Sightings;
use lines::Lines;

/// Lines, bytes of lines and observations of one transaction.
const BATCH_LINES: usize = 1_000;
const BATCH_BYTES: usize = 8 * 1024 * 1024;
const BATCH_SIGHTINGS: usize = 20_000;
/// Refused lines that are named, per file.
const NAMED: u64 = 20;

/// What came of it all.
#[derive(Debug, Default)]
struct Tally {
    lines: u64,
    good: u64,
    known: u64,
    repeated: u64,
    new: Imported,
    unobserved: u64,
    retired: u64,
    left_out: BTreeMap<&'static str, u64>,
    unadmitted: u64,
    deleted: u64,
    unkept: BTreeMap<&'static str, u64>,
    skipped: u64,
    quarantined: u64,
    stray: u64,
    bad: BTreeMap<&'static str, u64>,
    /// Files that were not read to their end, or had nothing good.
    failed: Vec<String>,
}

impl Tally {
    fn json(&self) -> Value {
        json!({
            "lines": self.lines, "good": self.good, "known": self.known, "repeated": self.repeated,
            "new_relays": self.new.relays, "new_events": self.new.events,
            "new_observations": self.new.observations, "unobserved": self.unobserved,
            "stray_observations": self.stray, "retired": self.retired, "skipped": self.skipped,
            "left_out": self.left_out, "unadmitted": self.unadmitted, "deleted": self.deleted,
            "quarantined": self.quarantined, "unkept": self.unkept, "bad": self.bad,
        })
    }

    fn sentence(&self) -> String {
        format!(
            "{} lines: {} new events, {} known, {} new observations",
            commas(self.lines),
            commas(self.new.events),
            commas(self.known),
            commas(self.new.observations)
        )
    }
}

pub(crate) async fn import(session: &Session, config: &Config, args: &Import) -> Result<(), Fail> {
    let policy = config.policy();
    let relay = args.relay.as_deref().map(|url| RelayUrl::parse(url, &policy)).transpose();
    let relay = relay.map_err(|error| Fail::Usage(format!("--relay: {error} ({})", error.reason())))?;
    for file in &args.files {
        if file.is_dir() && relay.is_some() {
            return Err(Fail::Usage(format!(
                "{} says itself where its events were seen: leave --relay out",
                file.display()
            )));
        }
        if !file.is_dir() && relay.is_none() {
            return Err(Fail::Usage(format!(
                "{}: name the relay it was taken from (--relay URL). Events that no relay was seen to hold are no part of \
                 the archive and would be deleted as orphans",
                file.display()
            )));
        }
    }
    let db = session.database(config, "bigbrotr_writer").await?;
    let verifier = Verifier::default();
    let json = session.global.json;
    let rules = config.jobs_config();
    let pace = Pace::of(TOMBSTONES_AT_ONCE);
    let mut import = Importer { db, verifier, rules, policy, json, pace, tally: Tally::default() };
    for file in &args.files {
        let before = (import.tally.lines, import.tally.good);
        let read = match &relay {
            Some(relay) => import.dump(file, relay).await?,
            None => import.export(file).await?,
        };
        let name = name(file);
        if let Err(why) = read {
            warn(&format!("{name}: {why}"));
            import.tally.failed.push(name);
        } else if import.tally.lines > before.0 && import.tally.good == before.1 {
            warn(&format!("{name}: no line of it is good"));
            import.tally.failed.push(name);
        }
    }
    import.report()
}

fn name(file: &Path) -> String {
    if file == Path::new("-") { "standard input".to_owned() } else { file.display().to_string() }
}

struct Importer {
    db: Db,
    verifier: Verifier,
    rules: JobsConfig,
    policy: AddressPolicy,
    json: bool,
    /// How much is deleted at once.
    pace: Pace,
    tally: Tally,
}

/// Lines that wait for their transaction.
#[derive(Default)]
struct Batch {
    lines: Vec<Line>,
    bytes: usize,
    sightings: Vec<Sighting>,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.lines.len() >= BATCH_LINES
            || self.bytes >= BATCH_BYTES
            || self.sightings.len() >= BATCH_SIGHTINGS
    }
}

impl Importer {
    /// A directory made by `export`. What keeps it from being read is the inner error.
    async fn export(&mut self, dir: &Path) -> Result<Result<(), String>, Fail> {
        let pairs: Vec<(PathBuf, PathBuf)> = match archive::pairs(dir) {
            Ok(pairs) => pairs,
            Err(why) => return Ok(Err(why)),
        };
        for (events, observations) in pairs {
            let mut sightings = match Sightings::open(&observations, &self.policy) {
                Ok(sightings) => sightings,
                Err(error) => return Ok(Err(format!("{}: {error}", observations.display()))),
            };
            if let Err(why) = self.file(&events, None, Some(&mut sightings)).await? {
                return Ok(Err(why));
            }
            if let Err(error) = sightings.end() {
                return Ok(Err(format!("{}: {error}", observations.display())));
            }
            self.tally.stray += sightings.stray;
            if sightings.bad > 0 {
                *self.tally.bad.entry("observation").or_default() += sightings.bad;
                for number in &sightings.named {
                    warn(&format!(
                        "{}, line {number}: no observation of a relay that may be known",
                        observations.display()
                    ));
                }
            }
        }
        Ok(Ok(()))
    }

    /// A plain file, of a relay.
    async fn dump(&mut self, file: &Path, relay: &RelayUrl) -> Result<Result<(), String>, Fail> {
        self.file(file, Some(relay), None).await
    }

    async fn file(
        &mut self,
        file: &Path,
        relay: Option<&RelayUrl>,
        mut sightings: Option<&mut Sightings>,
    ) -> Result<Result<(), String>, Fail> {
        let mut lines = match Lines::open(file) {
            Ok(lines) => lines,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let mut bar = Bar::new(self.json, 0);
        let (mut batch, mut named) = (Batch::default(), 0);
        let broken = loop {
            match gather(&mut lines, &mut batch, sightings.as_deref_mut()) {
                Ok(Some(Ok(()))) => self.tally.lines += 1,
                Ok(Some(Err((number, error)))) => {
                    self.tally.lines += 1;
                    self.bad(file, number, error, &mut named);
                }
                Ok(None) => break None,
                Err(error) => break Some(format!("it ends badly: {error}")),
            }
            if batch.is_full() {
                let full = self.flush(file, std::mem::take(&mut batch), relay, &mut named).await?;
                if full.is_some() {
                    break full;
                }
                let tally = &self.tally;
                bar.show(lines.bytes.get(), lines.length, || (tally.sentence(), tally.json()));
            }
        };
        let full = self.flush(file, batch, relay, &mut named).await?;
        bar.clear();
        if named > NAMED {
            warn(&format!("{}: {} more lines were refused", name(file), named - NAMED));
        }
        Ok(broken.or(full).map_or(Ok(()), Err))
    }

    /// Stores a batch; that there is no room for it is what it returns.
    async fn flush(
        &mut self,
        file: &Path,
        batch: Batch,
        relay: Option<&RelayUrl>,
        named: &mut u64,
    ) -> Result<Option<String>, Fail> {
        if batch.lines.is_empty() {
            return Ok(None);
        }
        let seen = relay.map_or(Seen::As(batch.sightings), |relay| Seen::On(relay.clone()));
        let stored = store(&self.db, &self.verifier, &self.rules, batch.lines, &seen, &mut self.pace).await;
        let outcome = match stored {
            Ok(outcome) => outcome,
            Err(full @ ImportError::Full { .. }) => return Ok(Some(full.to_string())),
            Err(ImportError::Db(error)) => return Err(error.into()),
        };
        let Outcome {
            good,
            known,
            repeated,
            new,
            unobserved,
            retired,
            unkept,
            skipped,
            quarantined,
            bad,
            ..
        } = outcome;
        let tally = &mut self.tally;
        tally.good += good;
        tally.known += known;
        tally.repeated += repeated;
        tally.unobserved += unobserved;
        tally.retired += retired;
        tally.skipped += skipped;
        tally.unadmitted += outcome.unadmitted;
        tally.deleted += outcome.deleted;
        for (why, count) in outcome.left_out {
            *tally.left_out.entry(why).or_default() += count;
        }
        for (class, count) in unkept {
            *tally.unkept.entry(class).or_default() += count;
        }
        tally.quarantined += quarantined;
        tally.new.relays += new.relays;
        tally.new.events += new.events;
        tally.new.observations += new.observations;
        for (number, error) in bad {
            self.bad(file, number, error, named);
        }
        Ok(None)
    }

    /// Counts a refused line, and names it while there are few.
    fn bad(&mut self, file: &Path, number: u64, error: EventError, named: &mut u64) {
        *self.tally.bad.entry(error.as_str()).or_default() += 1;
        *named += 1;
        if *named <= NAMED {
            warn(&format!("{}, line {number}: {error}", name(file)));
        }
    }

    fn report(&self) -> Result<(), Fail> {
        let tally = &self.tally;
        if self.json {
            line(&tally.json().to_string());
        } else {
            line(&tally.sentence());
            for (what, classes) in [
                ("refused", &tally.bad),
                ("known now, and not kept", &tally.unkept),
                ("observations left out, of relays that may not become known", &tally.left_out),
            ] {
                let classes: Vec<String> =
                    classes.iter().map(|(class, count)| format!("{} {class}", commas(*count))).collect();
                if !classes.is_empty() {
                    line(&format!("{what}: {}", classes.join(", ")));
                }
            }
            for (count, what) in [
                (tally.repeated, "came twice within a thousand lines"),
                (tally.unobserved, "events were not stored: nothing says which relay had them"),
                (tally.stray, "observations were of events that are not there, or came again"),
                (tally.skipped, "events are known now, and not kept: retention keeps no such kinds"),
                (tally.unadmitted, "events were not stored: only relays that may not become known had them"),
                (tally.deleted, "events were held, and are deleted as their authors ask"),
                (tally.retired, "events were not stored: they are older than what retention keeps"),
                (tally.quarantined, "events were refused by the database and set aside"),
            ] {
                if count > 0 {
                    line(&format!("{} {what}", commas(count)));
                }
            }
        }
        if tally.failed.is_empty() {
            Ok(())
        } else {
            Err(Fail::Failed(format!("not imported, or not to the end: {}", tally.failed.join(", "))))
        }
    }
}

/// One more line, with its observations where they lie beside it.
fn gather(
    lines: &mut Lines,
    batch: &mut Batch,
    sightings: Option<&mut Sightings>,
) -> io::Result<Option<Result<(), (u64, EventError)>>> {
    let line = match lines.next()? {
        Some(Ok(line)) => line,
        Some(Err(bad)) => return Ok(Some(Err(bad))),
        None => return Ok(None),
    };
    if let (Some(sightings), Ok(facts)) = (sightings, EnvelopeFacts::scan(&line.text)) {
        batch.sightings.extend(sightings.of(facts.id)?);
    }
    batch.bytes += line.text.len();
    batch.lines.push(line);
    Ok(Some(Ok(())))
}
