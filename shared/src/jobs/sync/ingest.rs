//! From a page to rows, in one fenced transaction: events, observations, coverage.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, json};
use sha2::{Digest as _, Sha256};

use super::super::{Ctx, JobError, lost};
use super::Pass;
use super::sift::Checked;
use super::specimens::Specimens;
use crate::clock;
use crate::db::{DbError, EventRow, NewCoverage, StoreBatch, Stored};
use crate::models::{Event, EventError, EventId, GapReason};
use crate::nips::PageEnd;
use crate::relay::{Page, PageEvent};
use crate::telemetry::Labels;

/// What a sync pass brought.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) requests: u64,
    pub(super) bytes: u64,
    pub(super) delivered: u64,
    pub(super) known: u64,
    pub(super) new_events: u64,
    pub(super) new_observations: u64,
    pub(super) quarantined: u64,
    pub(super) skipped: u64,
    pub(super) mismatched: u64,
    pub(super) comparisons: u64,
    pub(super) gone: u64,
    pub(super) unserved: u64,
    /// Dense seconds split, and the requests that took.
    pub(super) dense_seconds: u64,
    pub(super) dense_requests: u64,
    /// Known events that came with another signature, or were sampled, and verified.
    pub(super) reread: u64,
    /// Events that do not verify.
    pub(super) forged: u64,
    /// Forged bodies under the id of a known event.
    pub(super) forged_known: u64,
    /// Held events that their authors asked to have deleted.
    pub(super) deleted: u64,
    /// The last page took too long as a whole.
    pub(super) drags: bool,
    /// A connection was not opened anew for want of a place or of a way out, which is no fault of the relay.
    pub(super) ours: bool,
    /// What is not kept, by class.
    pub(super) unkept: BTreeMap<&'static str, u64>,
    /// One text of each reason of what cannot be read or does not verify.
    pub(super) specimens: Specimens,
    bad: Map<String, serde_json::Value>,
}

impl Tally {
    pub(super) fn bad(&mut self, ctx: &Ctx, error: &EventError) {
        ctx.metrics.events_received.get_or_create(&Labels::new("", "", error.as_str())).inc();
        let count = self.bad.get(error.as_str()).and_then(serde_json::Value::as_u64).unwrap_or(0);
        self.bad.insert(error.as_str().to_owned(), json!(count + 1));
    }

    pub(super) fn report(&self) -> serde_json::Value {
        json!({
            "requests": self.requests, "bytes": self.bytes, "delivered": self.delivered, "known": self.known,
            "new_events": self.new_events, "new_observations": self.new_observations,
            "mismatched": self.mismatched, "skipped": self.skipped, "quarantined": self.quarantined, "comparisons": self.comparisons,
            "gone": self.gone, "unserved": self.unserved, "reread": self.reread, "forged": self.forged, "forged_known": self.forged_known,
            "deleted": self.deleted, "dense_seconds": self.dense_seconds, "dense_requests": self.dense_requests,
            "unkept": self.unkept, "bad": self.bad,
        })
    }
}

/// The events of a page's oldest second, with their digests.
fn edge(events: &[PageEvent]) -> Vec<(EventId, Digest)> {
    let oldest = events.iter().map(|event| event.facts().created_at).min();
    let last = events.iter().filter(|event| Some(event.facts().created_at) == oldest);
    last.map(|event| (event.facts().id, digest(event))).collect()
}

/// SHA-256 of an event's text: equal ones are the same event, whatever of it is true.
pub(super) type Digest = [u8; 32];

pub(super) fn digest(event: &PageEvent) -> Digest {
    Sha256::digest(event.json()).into()
}

/// What became of a page.
struct StoredPage {
    sum: Stored,
    /// What the database refused.
    refused: HashSet<EventId>,
}

/// Tombstones applied as soon as they are noted, and events of the archive looked at for others, to begin with.
pub(super) const TOMBSTONES_AT_ONCE: i32 = 2_000;

impl Pass<'_> {
    /// Stores one page with the coverage it proves, if it changed, in one fenced transaction, when its turn has come.
    /// Returns the ids under which something came that does not verify.
    pub(super) async fn store_page(
        &mut self,
        page: Page,
        changed: bool,
    ) -> Result<HashSet<EventId>, JobError> {
        let stored = {
            // Until then no more is read: what waits here is one page.
            let _turn = self.ctx.db.turn().await;
            self.store_now(page, changed).await
        };
        self.room.leave();
        stored
    }

    /// The same, where that is so and the page's share of the room is given back by the caller.
    pub(super) async fn store_now(
        &mut self,
        page: Page,
        changed: bool,
    ) -> Result<HashSet<EventId>, JobError> {
        self.tally.bytes += page.bytes;
        self.tally.drags = page.end == PageEnd::Timeout { idle: false };
        self.tally.mismatched += u64::from(page.facts.mismatched);
        self.note_unread(&page);
        let known = self.tally.known;
        let edge = edge(&page.events);
        let mut checked = self.sift(page.events).await?;
        let labels = Labels::new("", "", "known");
        self.ctx.metrics.events_received.get_or_create(&labels).inc_by(self.tally.known - known);
        let doubts = checked.forged.iter().map(|(at, _)| (*at, *at)).chain(page.facts.doubts).collect();
        let changed = self.doubt(doubts, GapReason::Protocol) || changed;
        let mut forged: HashSet<EventId> = checked.forged.iter().map(|(_, id)| *id).collect();
        // First, so that they are known when their observations are stored.
        if !checked.noted.is_empty() && !self.ctx.db.sync_note(&self.attempt.fence, &checked.noted).await? {
            return Err(lost());
        }
        if checked.delivered.is_empty() && !changed {
            return Ok(forged);
        }
        let stored = if let Some(stored) = self.store(&mut checked, changed).await? {
            stored
        } else {
            let more = self.look_again(&mut checked).await?;
            forged.extend(more.iter().map(|(_, id)| *id));
            let doubts = more.iter().map(|(at, _)| (*at, *at)).collect();
            let changed = self.doubt(doubts, GapReason::Protocol) || changed;
            self.store(&mut checked, changed).await?.ok_or_else(lost)?
        };
        let delivered: HashSet<&EventId> = checked.delivered.iter().map(|(id, _)| id).collect();
        let is_stored = |id: &EventId| delivered.contains(id) && !stored.refused.contains(id);
        self.edge = edge.into_iter().filter(|(id, _)| is_stored(id)).collect();
        let stored = stored.sum;
        let new = checked.new.iter().map(|row| row.event.created_at());
        let noted = checked.noted.iter().map(|(event, _)| event.created_at());
        self.note_found(&checked.delivered, new.chain(noted), stored.observations);
        if self.facts.has_gone {
            self.ctx.db.gone_clear(&self.attempt.fence, self.relay_id, &checked.delivered).await?;
        }
        self.tally.new_events += stored.events;
        self.tally.new_observations += stored.observations;
        self.ctx.metrics.events_received.get_or_create(&Labels::new("", "", "new")).inc_by(stored.events);
        self.ctx.metrics.observations_stored.inc_by(stored.observations);
        if !checked.stones.is_empty() {
            self.bury().await;
        }
        Ok(forged)
    }

    /// Applies some of what authors asked to have deleted. What fails is written down and done by a later pass.
    pub(super) async fn bury(&mut self) {
        match self.ctx.db.tombstone_step(&mut self.burying).await {
            Ok(deleted) => self.tally.deleted += deleted,
            Err(error) => tracing::warn!(error = %error, "tombstones wait for the next pass"),
        }
    }

    /// One transaction; if the database refuses a value, the batch is halved until the one at fault stands
    /// alone: it is set aside, and its second is no proof any more.
    /// Nothing, where something that was only remembered has been removed since.
    async fn store(&mut self, checked: &mut Checked, changed: bool) -> Result<Option<StoredPage>, JobError> {
        let known = &self.ctx.known;
        // What others store meanwhile is observed, not stored once more.
        let writing = known.write(&mut checked.new).await;
        match self.try_store(&checked.delivered, &checked.new, changed).await {
            Ok(sum) if sum.held => {
                writing.done();
                return Ok(Some(StoredPage { sum, refused: HashSet::new() }));
            }
            Ok(_) => return Err(lost()),
            Err(error) if error.is_data() => {
                tracing::warn!(error = %error, "looking for the event the database refuses");
            }
            Err(error) if error.is_outdated() && !checked.remembered.is_empty() => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let mut sum = Stored { held: true, events: 0, observations: 0 };
        let mut poison: HashSet<EventId> = HashSet::new();
        let mut parts: Vec<&[EventRow]> = vec![&checked.new];
        while let Some(part) = parts.pop() {
            let delivered: Vec<(EventId, i64)> =
                part.iter().map(|row| (row.event.id(), row.event.created_at())).collect();
            match self.try_store(&delivered, part, false).await {
                Ok(stored) if stored.held => {
                    sum.events += stored.events;
                    sum.observations += stored.observations;
                }
                Ok(_) => return Err(lost()),
                Err(error) if error.is_data() && part.len() > 1 => {
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.extend([left, right]);
                }
                Err(error) if error.is_data() => {
                    let Some(row) = part.first() else { return Err(error.into()) };
                    self.quarantine(&row.event, &error).await?;
                    poison.insert(row.event.id());
                }
                Err(error) => return Err(error.into()),
            }
        }
        let rest: Vec<(EventId, i64)> =
            checked.delivered.iter().filter(|(id, _)| !poison.contains(id)).copied().collect();
        let stored = self.try_store(&rest, &[], changed || !poison.is_empty()).await?;
        if !stored.held {
            return Err(lost());
        }
        sum.observations += stored.observations;
        Ok(Some(StoredPage { sum, refused: poison }))
    }

    async fn quarantine(&mut self, event: &Event, error: &DbError) -> Result<(), JobError> {
        let now = clock::unix_now();
        let why = error.to_string();
        self.tally.quarantined +=
            self.ctx.db.event_quarantine_insert(self.relay_id, now, &why, event).await?;
        let at = event.created_at();
        self.doubt(vec![(at, at)], GapReason::Quarantined);
        Ok(())
    }

    async fn try_store(
        &self,
        delivered: &[(EventId, i64)],
        new: &[EventRow],
        with_coverage: bool,
    ) -> Result<Stored, DbError> {
        let coverage =
            with_coverage.then_some(NewCoverage { class: &self.class.name, coverage: &self.coverage });
        let batch = StoreBatch {
            fence: &self.attempt.fence,
            relay_id: self.relay_id,
            seen_at: clock::unix_now(),
            delivered,
            new,
            light: self.archive.light,
            coverage,
            next: None,
        };
        self.ctx.db.sync_store(&batch).await
    }
}
