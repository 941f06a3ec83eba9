//! From a page of raw events to rows: known ones become observations at once, the others are verified once.

use std::collections::HashSet;

use serde_json::{Map, json};

use super::super::{Ctx, JobError, lost};
use super::Pass;
use crate::clock;
use crate::db::{DbError, EventRow, NewCoverage, StoreBatch, Stored};
use crate::models::{EnvelopeFacts, Event, EventError, EventId, GapReason, Grade, Interval, KindRule};
use crate::relay::Page;
use crate::telemetry::Labels;

/// The filter class of a walk without restriction.
pub(super) const CLASS: &str = "all";

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
    bad: Map<String, serde_json::Value>,
}

impl Tally {
    fn bad(&mut self, ctx: &Ctx, error: &EventError) {
        ctx.metrics.events_received.get_or_create(&Labels::new("", "", error.as_str())).inc();
        let count = self.bad.get(error.as_str()).and_then(serde_json::Value::as_u64).unwrap_or(0);
        self.bad.insert(error.as_str().to_owned(), json!(count + 1));
    }

    pub(super) fn report(&self) -> serde_json::Value {
        json!({
            "requests": self.requests, "bytes": self.bytes, "delivered": self.delivered, "known": self.known,
            "new_events": self.new_events, "new_observations": self.new_observations,
            "mismatched": self.mismatched, "skipped": self.skipped, "quarantined": self.quarantined,
            "comparisons": self.comparisons, "gone": self.gone, "unserved": self.unserved, "bad": self.bad,
        })
    }
}

/// Seconds of forged events that one page may leave as gaps of their own; beyond that, all between them is one.
const FORGED_SECONDS: usize = 10;

/// A page after scanning and verifying: what may be stored.
struct Checked {
    delivered: Vec<(EventId, i64)>,
    new: Vec<EventRow>,
    /// Verified, and not kept by policy.
    skipped: Vec<Event>,
    /// `created_at` of what did not verify, ascending.
    forged: Vec<i64>,
}

impl Pass<'_> {
    /// Stores one page with the coverage it proves, if it changed, in one fenced transaction.
    pub(super) async fn store_page(&mut self, page: Page, changed: bool) -> Result<(), JobError> {
        self.tally.bytes += page.bytes;
        self.tally.mismatched += u64::from(page.facts.mismatched);
        let checked = check(self.ctx, page.events, &self.archive.kinds, &mut self.tally).await?;
        // First, so that they are known when their observations are stored.
        if !checked.skipped.is_empty()
            && !self.ctx.db.sync_skip(&self.attempt.fence, &checked.skipped).await?
        {
            return Err(lost());
        }
        let changed = self.doubt(&checked.forged) || changed;
        if checked.delivered.is_empty() && !changed {
            return Ok(());
        }
        let stored = self.store(&checked, changed).await?;
        if self.facts.has_gone {
            self.ctx.db.gone_clear(&self.attempt.fence, self.relay_id, &checked.delivered).await?;
        }
        self.tally.new_events += stored.events;
        self.tally.new_observations += stored.observations;
        self.ctx.metrics.events_received.get_or_create(&Labels::new("", "", "new")).inc_by(stored.events);
        self.ctx.metrics.observations_stored.inc_by(stored.observations);
        Ok(())
    }

    /// One transaction; if the database refuses a value, the batch is halved until the one at fault stands
    /// alone: it is set aside, and its second is no proof any more.
    async fn store(&mut self, checked: &Checked, changed: bool) -> Result<Stored, JobError> {
        match self.try_store(&checked.delivered, &checked.new, changed).await {
            Ok(stored) => return if stored.held { Ok(stored) } else { Err(lost()) },
            Err(error) if error.is_data() => {
                tracing::warn!(error = %error, "looking for the event the database refuses");
            }
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
        Ok(Stored { held: true, events: sum.events, observations: sum.observations + stored.observations })
    }

    /// A second in which the relay served something that does not verify is no proof of anything.
    fn doubt(&mut self, forged: &[i64]) -> bool {
        let (Some(first), Some(last)) = (forged.first(), forged.last()) else { return false };
        let now = clock::unix_now();
        let spans: Vec<(i64, i64)> = if forged.len() > FORGED_SECONDS {
            vec![(*first, *last)]
        } else {
            forged.iter().map(|at| (*at, *at)).collect()
        };
        for (since, until) in spans {
            if let Ok(gap) = Interval::new(since, until, Grade::Partial, GapReason::Protocol, now) {
                self.coverage.overrule(gap);
                self.doubts.push(gap);
            }
        }
        true
    }

    async fn quarantine(&mut self, event: &Event, error: &DbError) -> Result<(), JobError> {
        let now = clock::unix_now();
        let why = error.to_string();
        self.tally.quarantined +=
            self.ctx.db.event_quarantine_insert(self.relay_id, now, &why, event).await?;
        let at = event.created_at();
        if let Ok(gap) = Interval::new(at, at, Grade::Partial, GapReason::Quarantined, now) {
            self.coverage.overrule(gap);
            self.doubts.push(gap);
        }
        Ok(())
    }

    async fn try_store(
        &self,
        delivered: &[(EventId, i64)],
        new: &[EventRow],
        with_coverage: bool,
    ) -> Result<Stored, DbError> {
        let coverage = with_coverage.then_some(NewCoverage { class: CLASS, coverage: &self.coverage });
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

/// Scans ids, asks which are known, and parses, hashes and verifies the others off the async threads.
/// What a policy does not keep is verified like all else: a forged copy must not keep the real event out.
async fn check(
    ctx: &Ctx,
    raw: Vec<String>,
    unkept: &[KindRule],
    tally: &mut Tally,
) -> Result<Checked, JobError> {
    let mut scanned: Vec<(EventId, i64, String)> = Vec::with_capacity(raw.len());
    let mut seen = HashSet::new();
    for text in raw {
        match EnvelopeFacts::scan(&text) {
            Ok(facts) if seen.insert(facts.id) => scanned.push((facts.id, facts.created_at, text)),
            Ok(_) => {}
            Err(error) => tally.bad(ctx, &error),
        }
    }
    tally.delivered += scanned.len() as u64;
    let asked: Vec<(EventId, i64)> = scanned.iter().map(|(id, at, _)| (*id, *at)).collect();
    let known: HashSet<usize> =
        ctx.db.event_resolve(&asked).await?.iter().map(|known| known.position).collect();
    tally.known += known.len() as u64;
    ctx.metrics.events_received.get_or_create(&Labels::new("", "", "known")).inc_by(known.len() as u64);
    let mut delivered: Vec<(EventId, i64)> = known.iter().map(|position| asked[*position]).collect();
    let unknown: Vec<(i64, String)> = scanned
        .into_iter()
        .enumerate()
        .filter(|(position, _)| !known.contains(position))
        .map(|(_, (_, at, text))| (at, text))
        .collect();
    let verified = tokio::task::spawn_blocking(move || {
        let verify =
            |text: &str| Event::parse(text).and_then(|event| event.verify_signature().map(|()| event));
        unknown.iter().map(|(at, text)| (*at, verify(text))).collect::<Vec<_>>()
    })
    .await
    .map_err(|error| JobError::Retry { why: format!("verifying events failed: {error}") })?;
    let now = clock::unix_now();
    let (mut new, mut skipped) = (Vec::new(), Vec::new());
    let mut forged = Vec::new();
    for (at, event) in verified {
        match event {
            Ok(event) => {
                delivered.push((event.id(), event.created_at()));
                if unkept.iter().any(|rule| rule.skips(event.kind(), event.created_at(), now)) {
                    skipped.push(event);
                } else {
                    new.push(EventRow { event });
                }
            }
            Err(error) => {
                tally.bad(ctx, &error);
                forged.push(at);
            }
        }
    }
    forged.sort_unstable();
    forged.dedup();
    tally.skipped += skipped.len() as u64;
    ctx.metrics.events_received.get_or_create(&Labels::new("", "", "skipped")).inc_by(skipped.len() as u64);
    Ok(Checked { delivered, new, skipped, forged })
}
