//! What of a page may be stored: scanned, looked up, verified, and judged by what the operator keeps.
//!
//! A known event that comes with our signature is an observation unread, but for a sample; with another one it is read in
//! full, and the first signature stays. What is not kept, or was deleted by its author, is verified like all else: a
//! forged copy must not keep the real event out.

use std::collections::{HashMap, HashSet};

use super::super::verify::Raw;
use super::super::{JobError, lost};
use super::Pass;
use super::ingest::Tally;
use crate::clock;
use crate::db::{EventRow, ForgeryRow};
use crate::models::{EnvelopeFacts, Event, EventId, Tombstone, Unkept, tombstones};
use crate::telemetry::Labels;

/// A page after scanning and verifying: what may be stored.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// Every event that counts as delivered.
    pub(super) delivered: Vec<(EventId, i64)>,
    /// Those of them to archive.
    pub(super) new: Vec<EventRow>,
    /// Those of them to remember without a body.
    pub(super) noted: Vec<(Event, Unkept)>,
    /// Those of them whose kind a retention policy does not keep: remembered likewise.
    pub(super) skipped: Vec<Event>,
    /// `created_at` of what did not verify, ascending.
    pub(super) forged: Vec<i64>,
    /// Deletions asked for.
    pub(super) stones: Vec<Tombstone>,
}

/// One text of a page, scanned.
struct Scanned {
    facts: EnvelopeFacts,
    sig: Option<[u8; 64]>,
    text: String,
}

impl Pass<'_> {
    /// Scans, looks up, verifies and judges a page.
    pub(super) async fn sift(&mut self, texts: Vec<String>) -> Result<Checked, JobError> {
        let scanned = self.scan(texts);
        let asked: Vec<_> =
            scanned.iter().map(|one| (one.facts.id, one.facts.created_at, one.facts.pubkey)).collect();
        let answer = self.ctx.db.event_known(&asked).await?;
        let known: HashMap<usize, Option<[u8; 8]>> = answer.known.into_iter().collect();
        let marked: HashSet<usize> = answer.marked.into_iter().collect();
        let mut checked = Checked::default();
        let (mut places, mut raw) = (Vec::new(), Vec::new());
        for (position, one) in scanned.into_iter().enumerate() {
            let Scanned { facts, sig, text } = one;
            let held = known.get(&position);
            let same = held.is_some_and(|ours| {
                ours.is_none() || sig.as_ref().and_then(|sig| sig.first_chunk()) == ours.as_ref()
            });
            let sampled = self.ctx.verifier.samples(self.relay_id, &facts.id);
            if same && !sampled {
                checked.delivered.push((facts.id, facts.created_at));
                self.tally.known += 1;
                continue;
            }
            places.push((facts, held.is_some(), marked.contains(&position)));
            raw.push(Raw { id: facts.id, sig, text, whole: sampled || held.is_some() });
        }
        let verdicts = self.ctx.verifier.verify(raw).await?;
        let mut fresh: Vec<(Event, bool)> = Vec::new();
        let mut forged = Vec::new();
        for ((facts, held, marked), verdict) in places.into_iter().zip(verdicts) {
            match verdict {
                Ok(event) => {
                    checked.delivered.push((event.id(), event.created_at()));
                    if held {
                        self.tally.known += 1;
                        self.tally.reread += 1;
                    } else {
                        fresh.push((Event::clone(&event), marked));
                    }
                }
                Err(error) => {
                    self.tally.bad(self.ctx, &error);
                    self.tally.forged_known += u64::from(held);
                    checked.forged.push(facts.created_at);
                    forged.push(ForgeryRow { id: facts.id, reason: error.as_str(), known: held });
                }
            }
        }
        checked.forged.sort_unstable();
        checked.forged.dedup();
        self.note_forged(&forged).await?;
        self.judge(fresh, &mut checked).await?;
        Ok(checked)
    }

    fn scan(&mut self, texts: Vec<String>) -> Vec<Scanned> {
        let mut scanned = Vec::with_capacity(texts.len());
        let mut seen = HashSet::new();
        for text in texts {
            match EnvelopeFacts::scan_signed(&text) {
                Ok((facts, sig)) if seen.insert(facts.id) => scanned.push(Scanned { facts, sig, text }),
                Ok(_) => {}
                Err(error) => self.tally.bad(self.ctx, &error),
            }
        }
        self.tally.delivered += scanned.len() as u64;
        scanned
    }

    async fn note_forged(&mut self, forged: &[ForgeryRow]) -> Result<(), JobError> {
        if forged.is_empty() {
            return Ok(());
        }
        let known = forged.iter().filter(|row| row.known).count() as u64;
        self.ctx.metrics.events_received.get_or_create(&Labels::new("", "", "forged_known")).inc_by(known);
        let (fence, now) = (&self.attempt.fence, clock::unix_now());
        if self.ctx.db.forgery_note(fence, self.relay_id, now, forged).await? { Ok(()) } else { Err(lost()) }
    }

    /// Parts what is archived from what is only remembered. Requests are noted first: they speak of this page too.
    async fn judge(&mut self, fresh: Vec<(Event, bool)>, checked: &mut Checked) -> Result<(), JobError> {
        let unkept = &self.ctx.config.unkept;
        let mut dead: HashSet<EventId> = HashSet::new();
        if unkept.contains(&Unkept::Deleted) {
            checked.stones = fresh.iter().flat_map(|(event, _)| tombstones(event)).collect();
            if !checked.stones.is_empty()
                && !self.ctx.db.tombstone_note(&self.attempt.fence, &checked.stones).await?
            {
                return Err(lost());
            }
            let asking: HashSet<[u8; 32]> = checked.stones.iter().map(|stone| stone.pubkey).collect();
            let suspects: Vec<&Event> = fresh
                .iter()
                .filter(|(event, marked)| *marked || asking.contains(event.pubkey()))
                .map(|(event, _)| event)
                .collect();
            let hits = self.ctx.db.tombstone_hits(&suspects).await?;
            dead.extend(hits.into_iter().filter_map(|at| suspects.get(at).map(|event| event.id())));
        }
        let now = clock::unix_now();
        for (event, _) in fresh {
            let class = if dead.contains(&event.id()) {
                Some(Unkept::Deleted)
            } else {
                Unkept::of(&event, unkept, now)
            };
            match class {
                Some(class) => checked.noted.push((event, class)),
                None if self
                    .archive
                    .kinds
                    .iter()
                    .any(|rule| rule.skips(event.kind(), event.created_at(), now)) =>
                {
                    checked.skipped.push(event);
                }
                None => checked.new.push(EventRow { event }),
            }
        }
        let skipped = checked.skipped.len() as u64;
        self.tally.skipped += skipped;
        self.ctx.metrics.events_received.get_or_create(&Labels::new("", "", "skipped")).inc_by(skipped);
        for (_, class) in &checked.noted {
            self.tally.unkept(self.ctx, *class);
        }
        Ok(())
    }
}

impl Tally {
    fn unkept(&mut self, ctx: &super::super::Ctx, class: Unkept) {
        ctx.metrics.events_received.get_or_create(&Labels::new("", "", class.as_str())).inc();
        *self.unkept.entry(class.as_str()).or_default() += 1;
    }
}
