//! Imports: lines of a dump, or of another archive's export, take the way of what a relay delivers.
//!
//! The gap it closes: an archive that begins empty although somebody has the events. Invariants: nothing is stored
//! whose id and signature do not verify; a line that is refused costs its neighbours nothing; an event comes with an
//! observation or not at all, because what no relay was seen to hold is an orphan and is deleted. A dump proves no
//! stretch of time, so it adds no coverage. What is known as skipped, deleted or expired stays that, and what is not kept
//! of what relays deliver is not kept here either: `jobs::keep` decides for both, and what lies below a horizon is
//! left alone. Whoever wrote a file makes no more relays known than whoever writes events: exclusions, limits per host
//! and ports hold; and at the disk budget nothing is imported.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::keep::{Judged, Policy};
use super::verify::{Need, Raw};
use super::{JobsConfig, Verifier};
use crate::clock;
use crate::db::{Db, DbError, EventRow, Horizons, Imported, ImportedObservation, Pace, UrlCaps};
use crate::models::{
    EnvelopeFacts, Event, EventError, EventId, Fill, PortRange, REST_PERCENT, RelayUrl, stricter,
};

/// Tombstones applied as soon as they are noted, to begin with.
pub const TOMBSTONES_AT_ONCE: i32 = 2_000;

/// Why a batch is not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// There is no room.
    #[error(
        "the archive is at its size limit ({bytes} of {max} bytes, {REST_PERCENT} % are enough): nothing more is imported"
    )]
    Full {
        /// Of the database.
        bytes: u64,
        /// The budget.
        max: u64,
    },
    /// What the database says when it is not a value that it refuses.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// A line of a file that may be an event.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its number in the file, from 1.
    pub number: u64,
    /// Its text.
    pub text: String,
}

/// An observation as another archive wrote it, before it is known of which time the event is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Of which event.
    pub id: EventId,
    /// Where.
    pub relay: RelayUrl,
    /// When, Unix seconds.
    pub seen_at: i64,
    /// Whether the relay only claimed it.
    pub claimed: bool,
}

/// Where the events of a batch were seen.
#[derive(Debug, Clone)]
pub enum Seen {
    /// All on this relay, as whoever imports them claims, now.
    On(RelayUrl),
    /// As these say; what none of them names is not stored.
    As(Vec<Sighting>),
}

/// What came of one batch.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Events that verified, or are known and hash to their id.
    pub good: u64,
    /// Good events that the archive knew.
    pub known: u64,
    /// Events that came twice in the batch.
    pub repeated: u64,
    /// What was new.
    pub new: Imported,
    /// Unknown events that no sighting names: not stored.
    pub unobserved: u64,
    /// Unknown events older than what is kept, of the archive or of every relay that had them: not stored.
    pub retired: u64,
    /// Observations left out because their relays may not become known, by why.
    pub left_out: BTreeMap<&'static str, u64>,
    /// Unknown events that only such relays had: not stored.
    pub unadmitted: u64,
    /// Held events that requests of the batch have deleted at once.
    pub deleted: u64,
    /// New events of classes that are not kept: known, without a body.
    pub unkept: BTreeMap<&'static str, u64>,
    /// New events of kinds that are not kept, or not for so long: likewise.
    pub skipped: u64,
    /// Events the database refused.
    pub quarantined: u64,
    /// Lines refused, with their reasons.
    pub bad: Vec<(u64, EventError)>,
}

/// Scans, looks up, hashes and verifies a batch of lines, and stores what is good.
///
/// A known event is parsed and hashed, not verified: a forged body under a known id is refused all the same. What its requests
/// have deleted is deleted at the pace of the import.
///
/// # Errors
/// [`ImportError`].
pub async fn import(
    db: &Db,
    verifier: &Verifier,
    config: &JobsConfig,
    lines: Vec<Line>,
    seen: &Seen,
    pace: &mut Pace,
) -> Result<Outcome, ImportError> {
    let archive = db.archive_get(None).await?;
    let max = stricter(config.archive_max_bytes, archive.max_bytes);
    if let (Fill::Rests, Some(max)) = (Fill::of(archive.bytes, max), max) {
        return Err(ImportError::Full { bytes: archive.bytes, max });
    }
    let mut outcome = Outcome::default();
    let mut scanned: Vec<(EnvelopeFacts, Line)> = Vec::with_capacity(lines.len());
    for line in lines {
        match EnvelopeFacts::scan(&line.text) {
            Ok(facts) => scanned.push((facts, line)),
            Err(error) => outcome.bad.push((line.number, error)),
        }
    }
    let asked: Vec<&EnvelopeFacts> = scanned.iter().map(|(facts, _)| facts).collect();
    let known = db.event_known(&asked).await?;
    let (mut places, mut raw) = (Vec::new(), Vec::new());
    for (position, (facts, line)) in scanned.into_iter().enumerate() {
        let is_known = known.known(position).is_some();
        places.push((line.number, is_known, known.is_marked(position)));
        let need = if is_known { Need::Hash } else { Need::Text };
        raw.push(Raw { id: facts.id, sig: None, text: line.text, need });
    }
    let verdicts = verifier
        .verify(raw)
        .await
        .map_err(|error| DbError::Unavailable(format!("verifying stopped: {error}")))?;
    let mut good: HashMap<EventId, i64> = HashMap::new();
    let mut fresh: Vec<(Arc<Event>, bool)> = Vec::new();
    for ((number, is_known, marked), verdict) in places.into_iter().zip(verdicts) {
        match verdict {
            Err((error, _)) => outcome.bad.push((number, error)),
            // The first that verifies counts, not the first that comes: a forgery before the original hides nothing.
            Ok(event) if good.insert(event.id(), event.created_at()).is_some() => outcome.repeated += 1,
            Ok(_) if is_known => outcome.known += 1,
            Ok(event) => fresh.push((event, marked)),
        }
    }
    outcome.bad.sort_unstable_by_key(|(number, _)| *number);
    outcome.good = good.len() as u64;
    let mut batch = Batch { observed: observations(&good, seen), fresh };
    outcome.unobserved = batch.keep(|_| true);
    outcome.retired = batch.retire(&db.archive_horizons().await?);
    let now = clock::unix_now();
    batch.admit(db, config, matches!(seen, Seen::On(_)), now, &mut outcome).await?;
    let Batch { observed, fresh } = batch;
    make_months(db, &observed).await?;
    let policy = Policy { unkept: &config.unkept, kinds: &archive.kinds };
    // An import has no fence that could be lost.
    let judged = policy.judge(db, None, fresh).await?.unwrap_or_default();
    let Judged { new, noted, stones, unkept, skipped } = judged;
    (outcome.unkept, outcome.skipped) = (unkept, skipped);
    // First, so that they are known when their observations are stored.
    if !noted.is_empty() {
        db.import_note(&noted).await?;
    }
    Store { db, light: archive.light, now }.all(&new, &observed, &mut outcome).await?;
    if !stones.is_empty() {
        match db.tombstone_step(pace).await {
            Ok(deleted) => outcome.deleted = deleted,
            Err(error) => tracing::warn!(error = %error, "deletions wait for the leading scheduler"),
        }
    }
    Ok(outcome)
}

/// Makes the months of a batch, so that it does not lie in the default partitions until somebody moves it.
async fn make_months(db: &Db, observed: &[ImportedObservation]) -> Result<(), DbError> {
    let seconds: BTreeSet<i64> = observed.iter().map(|observation| observation.created_at).collect();
    if seconds.is_empty() {
        return Ok(());
    }
    match db.month_of_import(&seconds.into_iter().collect::<Vec<_>>()).await {
        Ok(_) => Ok(()),
        // It lies there then; the leading scheduler moves it.
        Err(error) if error.is_busy() => Ok(()),
        Err(error) => Err(error),
    }
}

/// What is left of a batch on its way.
struct Batch {
    observed: Vec<ImportedObservation>,
    /// Unknown events, and whether their author has asked for deletions.
    fresh: Vec<(Arc<Event>, bool)>,
}

impl Batch {
    /// Takes observations away, and the new events that none is left of; how many events.
    fn keep(&mut self, wanted: impl Fn(&ImportedObservation) -> bool) -> u64 {
        self.observed.retain(wanted);
        let named: HashSet<EventId> = self.observed.iter().map(|observation| observation.id).collect();
        let before = self.fresh.len();
        self.fresh.retain(|(event, _)| named.contains(&event.id()));
        (before - self.fresh.len()) as u64
    }

    fn retire(&mut self, horizons: &Horizons) -> u64 {
        self.keep(|observation| observation.created_at >= horizons.before(&observation.relay))
    }

    /// Makes their relays known, or leaves out what they had. An operator's own word (`named`) has no limits but his
    /// exclusions.
    async fn admit(
        &mut self,
        db: &Db,
        config: &JobsConfig,
        named: bool,
        now: i64,
        outcome: &mut Outcome,
    ) -> Result<(), DbError> {
        let urls: BTreeSet<&RelayUrl> = self.observed.iter().map(|observation| &observation.relay).collect();
        if urls.is_empty() {
            return Ok(());
        }
        let open = |url: &RelayUrl| named || PortRange::admit(&config.ports, url);
        let relays: Vec<(&RelayUrl, bool)> = urls.into_iter().map(|url| (url, open(url))).collect();
        let caps = UrlCaps {
            per_host: config.urls_per_host,
            per_site: config.urls_per_site,
            per_hoster: config.urls_per_hoster,
        };
        let became = db.import_relays(&relays, (!named).then_some(caps), now).await?;
        outcome.new.relays += became.new;
        let whys = [
            ("excluded", &became.excluded),
            ("over_cap", &became.over_cap),
            ("other_port", &became.other_port),
        ];
        let why = |observation: &ImportedObservation| {
            let url = observation.relay.as_str();
            whys.iter().find(|(_, urls)| urls.contains(url)).map(|(why, _)| *why)
        };
        for why in self.observed.iter().filter_map(why) {
            *outcome.left_out.entry(why).or_default() += 1;
        }
        outcome.unadmitted = self.keep(|observation| why(observation).is_none());
        Ok(())
    }
}

fn observations(good: &HashMap<EventId, i64>, seen: &Seen) -> Vec<ImportedObservation> {
    match seen {
        Seen::On(relay) => {
            let observe = |(id, at): (&EventId, &i64)| ImportedObservation {
                id: *id,
                created_at: *at,
                relay: relay.clone(),
                // By the clock of the database, in the transaction: an export that begins meanwhile waits for it.
                seen_at: None,
                claimed: true,
            };
            good.iter().map(observe).collect()
        }
        Seen::As(sightings) => sightings
            .iter()
            .filter_map(|sighting| {
                Some(ImportedObservation {
                    id: sighting.id,
                    created_at: *good.get(&sighting.id)?,
                    relay: sighting.relay.clone(),
                    seen_at: Some(sighting.seen_at),
                    claimed: sighting.claimed,
                })
            })
            .collect(),
    }
}

/// How a batch is stored.
struct Store<'a> {
    db: &'a Db,
    light: bool,
    now: i64,
}

impl Store<'_> {
    /// Stores a batch; if the database refuses a value, the batch is halved until the event at fault stands alone.
    async fn all(
        &self,
        new: &[EventRow],
        observed: &[ImportedObservation],
        outcome: &mut Outcome,
    ) -> Result<(), DbError> {
        if observed.is_empty() {
            return Ok(());
        }
        match self.part(new, observed).await {
            Ok(imported) => {
                add(&mut outcome.new, imported);
                return Ok(());
            }
            Err(error) if error.is_data() && !new.is_empty() => {
                tracing::warn!(error = %error, "looking for the event the database refuses");
            }
            Err(error) => return Err(error),
        }
        let mut of: BTreeMap<EventId, Vec<ImportedObservation>> = BTreeMap::new();
        for observation in observed {
            of.entry(observation.id).or_default().push(observation.clone());
        }
        let mut parts: Vec<&[EventRow]> = vec![new];
        while let Some(part) = parts.pop() {
            let theirs: Vec<ImportedObservation> =
                part.iter().flat_map(|row| of.get(&row.event.id()).cloned().unwrap_or_default()).collect();
            match self.part(part, &theirs).await {
                Ok(imported) => add(&mut outcome.new, imported),
                Err(error) if error.is_data() && part.len() > 1 => {
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.extend([left, right]);
                }
                Err(error) if error.is_data() => {
                    let (Some(row), Some(first)) = (part.first(), theirs.first()) else { return Err(error) };
                    self.quarantine(&row.event, first, &error).await?;
                    outcome.quarantined += 1;
                }
                Err(error) => return Err(error),
            }
        }
        let fresh: HashSet<EventId> = new.iter().map(|row| row.event.id()).collect();
        let rest: Vec<ImportedObservation> =
            observed.iter().filter(|observation| !fresh.contains(&observation.id)).cloned().collect();
        add(&mut outcome.new, self.part(&[], &rest).await?);
        Ok(())
    }

    async fn part(&self, new: &[EventRow], observed: &[ImportedObservation]) -> Result<Imported, DbError> {
        self.db.event_import(new, observed, self.light, self.now).await
    }

    async fn quarantine(
        &self,
        event: &Event,
        seen: &ImportedObservation,
        why: &DbError,
    ) -> Result<(), DbError> {
        if let Some(relay) = self.db.relay_get(&seen.relay, "").await? {
            let seen_at = seen.seen_at.unwrap_or(self.now);
            self.db.event_quarantine_insert(relay.id, seen_at, &why.to_string(), event).await?;
        }
        Ok(())
    }
}

fn add(sum: &mut Imported, more: Imported) {
    sum.relays += more.relays;
    sum.events += more.events;
    sum.observations += more.observations;
}
