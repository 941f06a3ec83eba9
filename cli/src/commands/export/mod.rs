//! `export`: the archive, or a part of it, as files that others can read and cite.
//!
//! Files are cut by what is in them and by nothing else, so an export that was interrupted, however often, ends in the
//! same bytes. `db::ExportScope` says why that holds although the archive grows meanwhile.

mod columns;
mod part;
mod state;
mod wait;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use shared::config::Config;
use shared::db::{Db, DbError, ExportBatch, ExportItem, ExportScope};
use shared::models::{AddressPolicy, RelayUrl};

use super::bar::Bar;
use crate::Session;
use crate::args::{Export, Format};
use crate::output::{Fail, bytes, commas, line, utc, warn};
use part::{Part, Sighting};
use state::{Scope, State, coverage_json, failed};
use wait::settled;

pub(crate) use state::{FileEntry, MANIFEST, NAME, STATE, VERSION};

/// Events per pair of files, if nobody says otherwise.
const PART_EVENTS: u64 = 250_000;
/// Text of a file of events, after which the next one begins.
const PART_BYTES: u64 = 256 * 1024 * 1024;
/// For counting ahead; without a count there is no bar, and nothing else is missing.
const COUNT_TIMEOUT: Duration = Duration::from_secs(120);
/// Rows of one batch that do not hash to their id are named up to this many.
const NAMED: usize = 20;

pub(crate) async fn export(session: &Session, config: &Config, args: &Export) -> Result<(), Fail> {
    let dir = args.out.as_path();
    fs::create_dir_all(dir).map_err(|error| failed(dir, &error))?;
    let lock = File::open(dir).map_err(|error| failed(dir, &error))?;
    lock.try_lock().map_err(|error| failed(dir, &format!("another export writes here ({error})")))?;
    if dir.join(MANIFEST).exists() {
        if args.resume {
            line(&format!("{} is complete", dir.join(MANIFEST).display()));
            return Ok(());
        }
        return Err(Fail::Usage(format!("{} holds a finished export: name another --out", dir.display())));
    }
    let db = session.database(config, "bigbrotr_reader").await?;
    let state = match (State::load(dir)?, args.resume) {
        (Some(state), true) => continued(state, args)?,
        (Some(_), false) => {
            return Err(Fail::Usage(format!(
                "{} holds an export that was interrupted: --resume goes on with it",
                dir.display()
            )));
        }
        (None, true) => {
            return Err(Fail::Usage(format!("{} holds no interrupted export", dir.display())));
        }
        (None, false) => begun(&db, args, dir).await?,
    };
    let state = settled(&db, dir, state).await?;
    let mut run = Run::new(&db, dir, state, session.global.json).await?;
    run.all().await?;
    run.bar.clear();
    let manifest = run.state.finish(dir)?;
    let state = &run.state;
    if session.global.json {
        line(&manifest.to_string());
        return Ok(());
    }
    let size = state.files.iter().map(|file| file.bytes).sum();
    line(&format!(
        "{}: {} events, {} observations as of {}, {} in {} files; {} is what to cite",
        dir.display(),
        commas(state.events),
        commas(state.observations),
        utc(state.scope.as_of),
        bytes(size),
        state.files.len(),
        dir.join(MANIFEST).display(),
    ));
    for (why, count) in state.left_out.iter().filter(|(_, count)| **count > 0) {
        line(&format!("left out: {} {why}", commas(*count)));
    }
    Ok(())
}

/// A new export: everything that is to be the same after an interruption is settled here.
async fn begun(db: &Db, args: &Export, dir: &Path) -> Result<State, Fail> {
    let empty = fs::read_dir(dir).map_err(|error| failed(dir, &error))?.next().is_none();
    if !empty {
        return Err(Fail::Usage(format!("{} is not empty: name another --out", dir.display())));
    }
    if args.since.zip(args.until).is_some_and(|(since, until)| since > until) {
        return Err(Fail::Usage("--since is later than --until".to_owned()));
    }
    let relays = sorted(urls(&args.relay)?);
    let (as_of, settled) = match args.as_of {
        None => db.export_moment().await?,
        Some(as_of) => {
            let latest = db.export_as_of().await?;
            if as_of > latest {
                return Err(Fail::Usage(format!(
                    "--as-of {as_of}: what was seen after {} ({latest}) may still be on its way into the archive",
                    utc(latest)
                )));
            }
            (as_of, true)
        }
    };
    let scope = Scope {
        since: args.since,
        until: args.until,
        kinds: sorted(args.kind.clone()),
        relays: relays.iter().map(ToString::to_string).collect(),
        format: args.format.unwrap_or(Format::Jsonl),
        as_of,
        part_events: args.part_events.unwrap_or(PART_EVENTS),
        with: sorted(args.with.clone()),
    };
    let query = query(db, &scope).await?;
    // At once: of what grows after as_of nothing can be said.
    let coverage = db.export_coverage(&query).await?.iter().map(coverage_json).collect();
    let total = match db.with_timeout(COUNT_TIMEOUT).export_count(&query).await {
        Ok(total) => Some(total),
        Err(DbError::Timeout { .. } | DbError::Server { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let state = State {
        program: env!("CARGO_PKG_VERSION").to_owned(),
        schema_version: db.schema_version().await?,
        vantages: db.export_vantages().await?,
        coverage,
        settled,
        total,
        scanned: 0,
        cursor: query.begin(),
        first_created_at: None,
        last_created_at: None,
        events: 0,
        observations: 0,
        left_out: BTreeMap::new(),
        kinds: BTreeMap::new(),
        relays: BTreeMap::new(),
        files: Vec::new(),
        scope,
    };
    state.save(dir)?;
    Ok(state)
}

/// The export that was interrupted, if these arguments do not ask for another one.
fn continued(state: State, args: &Export) -> Result<State, Fail> {
    let scope = &state.scope;
    let relays: Vec<String> = sorted(urls(&args.relay)?).iter().map(ToString::to_string).collect();
    let other = |name: &str| {
        Err(Fail::Usage(format!(
            "{name} is not what it was when this export began: leave it out, or begin anew"
        )))
    };
    if args.since.is_some() && args.since != scope.since {
        return other("--since");
    }
    if args.until.is_some() && args.until != scope.until {
        return other("--until");
    }
    if !args.kind.is_empty() && sorted(args.kind.clone()) != scope.kinds {
        return other("--kind");
    }
    if !relays.is_empty() && relays != scope.relays {
        return other("--relay");
    }
    if !args.with.is_empty() && sorted(args.with.clone()) != scope.with {
        return other("--with");
    }
    if args.format.is_some_and(|format| format != scope.format) {
        return other("--format");
    }
    if args.as_of.is_some_and(|as_of| as_of != scope.as_of) {
        return other("--as-of");
    }
    if args.part_events.is_some_and(|part| part != scope.part_events) {
        return other("--part-events");
    }
    if state.program != env!("CARGO_PKG_VERSION") {
        return Err(Fail::Failed(format!(
            "this export was begun by version {}, which may write differently: resume with that one, or begin anew",
            state.program
        )));
    }
    Ok(state)
}

fn sorted<T: Ord>(mut values: Vec<T>) -> Vec<T> {
    values.sort_unstable();
    values.dedup();
    values
}

fn urls(texts: &[String]) -> Result<Vec<RelayUrl>, Fail> {
    let parse = |text: &String| {
        RelayUrl::parse(text, &AddressPolicy::any())
            .map_err(|error| Fail::Usage(format!("{}: {error} ({})", text.escape_debug(), error.reason())))
    };
    texts.iter().map(parse).collect()
}

/// The scope as the database reads it.
async fn query(db: &Db, scope: &Scope) -> Result<ExportScope, Fail> {
    let urls = urls(&scope.relays)?;
    let mut relays = Vec::new();
    for (url, id) in urls.iter().zip(db.export_relay_ids(&urls).await?) {
        relays.push(id.ok_or_else(|| Fail::Failed(format!("{url} is not a known relay")))?);
    }
    Ok(ExportScope {
        since: scope.since.unwrap_or(0),
        until: scope.until.unwrap_or(i64::MAX),
        kinds: scope.kinds.clone(),
        relays,
        as_of: scope.as_of,
        with: scope.with.iter().map(|class| class.class()).collect(),
    })
}

/// An export on its way.
struct Run<'a> {
    db: &'a Db,
    dir: &'a Path,
    query: ExportScope,
    urls: BTreeMap<i32, String>,
    /// As of the last pair of files.
    state: State,
    /// As of the last event written; becomes `state` when the pair is complete.
    next: State,
    part: Option<Part>,
    bar: Bar,
}

impl<'a> Run<'a> {
    async fn new(db: &'a Db, dir: &'a Path, state: State, json: bool) -> Result<Self, Fail> {
        let query = query(db, &state.scope).await?;
        let urls = db.export_relays().await?;
        let bar = Bar::new(json, state.scanned);
        Ok(Self { db, dir, query, urls, next: state.clone(), state, part: None, bar })
    }

    async fn all(&mut self) -> Result<(), Fail> {
        let mut after = self.state.cursor;
        let relays = if self.query.relays.is_empty() { self.urls.len() } else { self.query.relays.len() };
        loop {
            let ExportBatch { cursor, scanned, items } =
                self.db.export_batch(&self.query, after, relays).await?;
            let Some(cursor) = cursor else { break };
            after = cursor;
            // Within a batch only the last event knows; a bar needs no better.
            self.next.scanned += scanned;
            // An import may have brought relays since the list was read.
            let seen = items.iter().filter_map(|item| item.event.as_ref().ok()).flat_map(|(_, seen)| seen);
            if seen.into_iter().any(|on| !self.urls.contains_key(&on.relay_id)) {
                self.urls = self.db.export_relays().await?;
            }
            self.take(&items)?;
            let next = &self.next;
            self.bar.show(next.scanned, next.total, || {
                let text =
                    format!("{} events, {} observations", commas(next.events), commas(next.observations));
                (text, json!({ "events": next.events, "observations": next.observations }))
            });
        }
        // An export of nothing has its pair of files too, for who reads them by their names.
        if self.part.is_some() || self.state.part() == 0 {
            self.part()?;
            self.complete()?;
        } else {
            self.state = self.next.clone();
        }
        Ok(())
    }

    fn take(&mut self, items: &[ExportItem]) -> Result<(), Fail> {
        let mut named = 0;
        for item in items {
            let (event, seen) = match &item.event {
                Ok(both) => both,
                Err(why) => {
                    *self.next.left_out.entry(why.as_str().to_owned()).or_default() += 1;
                    if *why == shared::db::LeftOut::Corrupt && named < NAMED {
                        named += 1;
                        warn(&format!("event_key={} does not hash to its id and is left out", item.key));
                    }
                    continue;
                }
            };
            let seen = seen.iter().map(|on| {
                let relay = self.urls.get(&on.relay_id).ok_or_else(|| {
                    Fail::Failed(format!(
                        "event_key={} was seen on relay {}, which is not there",
                        item.key, on.relay_id
                    ))
                })?;
                Ok(Sighting { relay, seen_at: on.seen_at, claimed: on.claimed })
            });
            let mut seen: Vec<Sighting<'_>> = seen.collect::<Result<_, Fail>>()?;
            // Not by their ids, which another archive of the same has given otherwise.
            seen.sort_unstable_by_key(|sighting| sighting.relay);
            let part = match &mut self.part {
                Some(part) => part,
                empty => empty.insert(Part::begin(self.dir, self.state.scope.format, self.state.part())?),
            };
            part.write(event, &seen)?;
            let (rows, text) = part.size();
            let next = &mut self.next;
            next.cursor = item.key;
            next.events += 1;
            next.observations += seen.len() as u64;
            *next.kinds.entry(event.kind()).or_default() += 1;
            for sighting in &seen {
                match next.relays.get_mut(sighting.relay) {
                    Some(count) => *count += 1,
                    None => drop(next.relays.insert(sighting.relay.to_owned(), 1)),
                }
            }
            let at = event.created_at();
            next.first_created_at = Some(next.first_created_at.map_or(at, |first| first.min(at)));
            next.last_created_at = Some(next.last_created_at.map_or(at, |last| last.max(at)));
            if rows >= self.state.scope.part_events || text >= PART_BYTES {
                self.complete()?;
            }
        }
        Ok(())
    }

    fn part(&mut self) -> Result<(), Fail> {
        if self.part.is_none() {
            self.part = Some(Part::begin(self.dir, self.state.scope.format, self.state.part())?);
        }
        Ok(())
    }

    /// The pair is complete, then the state says so.
    fn complete(&mut self) -> Result<(), Fail> {
        if let Some(part) = self.part.take() {
            self.next.files.extend(part.finish()?);
            self.state = self.next.clone();
            self.state.save(self.dir)?;
        }
        Ok(())
    }
}
