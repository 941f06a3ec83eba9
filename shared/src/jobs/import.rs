//! Imports: lines of a dump, or of another archive's export, take the way of what a relay delivers.
//!
//! The gap it closes: an archive that begins empty although somebody has the events. Invariants: nothing is stored
//! whose id and signature do not verify; a line that is refused costs its neighbours nothing; an event comes with an
//! observation or not at all, because what no relay was seen to hold is an orphan and is deleted. A dump proves no
//! stretch of time, so it adds no coverage. What is known as skipped, deleted or expired stays that, and a deletion request
//! in it counts as one that a relay delivers.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Verifier;
use super::verify::{Need, Raw};
use crate::clock;
use crate::db::{Db, DbError, EventRow, Imported, ImportedObservation};
use crate::models::{EnvelopeFacts, Event, EventError, EventId, RelayUrl, Tombstone, Unkept, tombstones};

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
    /// New events that their authors asked to have deleted: known, without a body.
    pub deleted: u64,
    /// Events the database refused.
    pub quarantined: u64,
    /// Lines refused, with their reasons.
    pub bad: Vec<(u64, EventError)>,
}

/// Scans, looks up, hashes and verifies a batch of lines, and stores what is good.
///
/// A known event is parsed and hashed, not verified: a forged body under a known id is refused all the same.
///
/// # Errors
/// What the database says when it is not a value that it refuses.
pub async fn import(
    db: &Db,
    verifier: &Verifier,
    unkept: &[Unkept],
    lines: Vec<Line>,
    seen: &Seen,
) -> Result<Outcome, DbError> {
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
        places.push((line.number, is_known));
        let need = if is_known { Need::Hash } else { Need::Text };
        raw.push(Raw { id: facts.id, sig: None, text: line.text, need });
    }
    let verdicts = verifier
        .verify(raw)
        .await
        .map_err(|error| DbError::Unavailable(format!("verifying stopped: {error}")))?;
    let mut good: HashMap<EventId, i64> = HashMap::new();
    let mut new: Vec<EventRow> = Vec::new();
    for ((number, is_known), verdict) in places.into_iter().zip(verdicts) {
        match verdict {
            Err(error) => outcome.bad.push((number, error)),
            // The first that verifies counts, not the first that comes: a forgery before the original hides nothing.
            Ok(event) if good.insert(event.id(), event.created_at()).is_some() => outcome.repeated += 1,
            Ok(_) if is_known => outcome.known += 1,
            Ok(event) => new.push(EventRow { event }),
        }
    }
    outcome.bad.sort_unstable_by_key(|(number, _)| *number);
    outcome.good = good.len() as u64;
    let observed = observations(&good, seen);
    let named: HashSet<EventId> = observed.iter().map(|observation| observation.id).collect();
    let before = new.len();
    new.retain(|row| named.contains(&row.event.id()));
    outcome.unobserved = (before - new.len()) as u64;
    if unkept.contains(&Unkept::Deleted) {
        outcome.deleted = bury(db, &mut new).await?;
    }
    store(db, &new, &observed, &mut outcome).await?;
    Ok(outcome)
}

/// Notes the deletions that the new events ask for, and leaves of them only what nobody asked to have deleted; the others
/// are remembered without a body, as a sync job does. Returns how many.
async fn bury(db: &Db, new: &mut Vec<EventRow>) -> Result<u64, DbError> {
    let stones: Vec<Tombstone> = new.iter().flat_map(|row| tombstones(&row.event)).collect();
    if !stones.is_empty() {
        db.tombstone_add(&stones).await?;
    }
    let hits = db.tombstone_hits(&new.iter().map(|row| &*row.event).collect::<Vec<_>>()).await?;
    if hits.is_empty() {
        return Ok(0);
    }
    let hits: HashSet<usize> = hits.into_iter().collect();
    let (dead, rest): (Vec<_>, Vec<_>) =
        std::mem::take(new).into_iter().enumerate().partition(|(at, _)| hits.contains(at));
    new.extend(rest.into_iter().map(|(_, row)| row));
    let dead: Vec<_> = dead.into_iter().map(|(_, row)| (row.event, Unkept::Deleted.fate())).collect();
    db.import_note(&dead).await?;
    Ok(dead.len() as u64)
}

fn observations(good: &HashMap<EventId, i64>, seen: &Seen) -> Vec<ImportedObservation> {
    match seen {
        Seen::On(relay) => {
            let seen_at = clock::unix_now();
            let observe = |(id, at): (&EventId, &i64)| ImportedObservation {
                id: *id,
                created_at: *at,
                relay: relay.clone(),
                seen_at,
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
                    seen_at: sighting.seen_at,
                    claimed: sighting.claimed,
                })
            })
            .collect(),
    }
}

/// Stores a batch; if the database refuses a value, the batch is halved until the event at fault stands alone.
async fn store(
    db: &Db,
    new: &[EventRow],
    observed: &[ImportedObservation],
    outcome: &mut Outcome,
) -> Result<(), DbError> {
    if observed.is_empty() {
        return Ok(());
    }
    let now = clock::unix_now();
    match db.event_import(new, observed, now).await {
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
        match db.event_import(part, &theirs, now).await {
            Ok(imported) => add(&mut outcome.new, imported),
            Err(error) if error.is_data() && part.len() > 1 => {
                let (left, right) = part.split_at(part.len() / 2);
                parts.extend([left, right]);
            }
            Err(error) if error.is_data() => {
                let (Some(row), Some(first)) = (part.first(), theirs.first()) else { return Err(error) };
                quarantine(db, &row.event, first, now, &error).await?;
                outcome.quarantined += 1;
            }
            Err(error) => return Err(error),
        }
    }
    let fresh: HashSet<EventId> = new.iter().map(|row| row.event.id()).collect();
    let rest: Vec<ImportedObservation> =
        observed.iter().filter(|observation| !fresh.contains(&observation.id)).cloned().collect();
    add(&mut outcome.new, db.event_import(&[], &rest, now).await?);
    Ok(())
}

async fn quarantine(
    db: &Db,
    event: &Event,
    seen: &ImportedObservation,
    now: i64,
    why: &DbError,
) -> Result<(), DbError> {
    db.relay_insert(&[(seen.relay.clone(), now)]).await?;
    // An excluded relay has no row to be read; the event is counted all the same.
    if let Some(relay) = db.relay_get(&seen.relay, "").await? {
        db.event_quarantine_insert(relay.id, seen.seen_at, &why.to_string(), event).await?;
    }
    Ok(())
}

fn add(sum: &mut Imported, more: Imported) {
    sum.relays += more.relays;
    sum.events += more.events;
    sum.observations += more.observations;
}
