//! What of a page may be stored: looked up, verified, and judged by what the operator keeps.
//!
//! A known event that comes with our signature is an observation unread, but for a sample; with another one it is read in
//! full, and the first signature stays. What is not kept, or was deleted by its author, is verified like all else: a
//! forged copy must not keep the real event out.

use std::sync::Arc;

use std::collections::HashSet;

use super::super::keep::Policy;
use super::super::verify::{Need, Raw};
use super::super::{JobError, lost};
use super::Pass;
use super::ingest::digest;
use crate::clock;
use crate::db::{EventRow, ForgeryRow};
use crate::models::{EnvelopeFacts, Event, EventId, Tombstone};
use crate::relay::PageEvent;
use crate::telemetry::Labels;

/// A page after looking up and verifying: what may be stored.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// Every event that counts as delivered.
    pub(super) delivered: Vec<(EventId, i64)>,
    /// Those of them to archive.
    pub(super) new: Vec<EventRow>,
    /// Those of them to remember without a body, with their fate.
    pub(super) noted: Vec<(Arc<Event>, i16)>,
    /// `created_at` and id of what did not verify, ascending.
    pub(super) forged: Vec<(i64, EventId)>,
    /// Deletions asked for.
    pub(super) stones: Vec<Tombstone>,
    /// What came that the database was not asked about: this process remembers it.
    pub(super) remembered: Vec<PageEvent>,
}

impl Pass<'_> {
    /// Looks up, verifies and judges a page. Its events are distinct, and their envelopes were read when they came.
    /// What the page before has stored is passed over, since pages of a walk share a second: but only where it comes to the
    /// letter as it came then. Under one of those ids anything else is read in full.
    pub(super) async fn sift(&mut self, mut page: Vec<PageEvent>) -> Result<Checked, JobError> {
        self.tally.delivered += page.len() as u64;
        let mut altered: HashSet<EventId> = HashSet::new();
        page.retain(|event| {
            let id = event.facts().id;
            let Some(before) = self.edge.get(&id) else { return true };
            let again = *before == digest(event);
            self.tally.known += u64::from(again);
            if !again {
                altered.insert(id);
            }
            !again
        });
        let claimed = |event: &PageEvent| (event.facts().id, event.facts().created_at);
        let remembered = self.ctx.known.look(page.iter().map(claimed));
        let unheard = page.iter().zip(&remembered).filter(|(_, known)| known.is_none());
        let asked: Vec<&EnvelopeFacts> = unheard.map(|(event, _)| event.facts()).collect();
        let answer = self.ctx.db.event_known(&asked).await?;
        let mut checked = Checked::default();
        let (mut places, mut raw) = (Vec::new(), Vec::new());
        let mut positions = 0..;
        for (event, remembered) in page.into_iter().zip(remembered) {
            let facts = *event.facts();
            let position = if remembered.is_none() { positions.next() } else { None };
            let answered = position.and_then(|position| answer.known(position));
            self.ctx.known.learn(answered.map(|head| (facts.id, (facts.created_at, head))));
            let held = remembered.or(answered);
            let same = held.is_some_and(|ours| {
                ours.is_none() || event.sig().and_then(|sig| sig.first_chunk()) == ours.as_ref()
            });
            if remembered.is_some() {
                checked.remembered.push(event.clone());
            }
            let sampled = altered.contains(&facts.id) || self.ctx.verifier.samples(self.relay_id, &facts.id);
            if same && !sampled {
                checked.delivered.push((facts.id, facts.created_at));
                self.tally.known += 1;
                continue;
            }
            let marked = position.is_some_and(|position| answer.is_marked(position));
            places.push((facts, held.is_some(), marked));
            let need = if sampled || held.is_some() { Need::Text } else { Need::Event };
            let text = event.json().to_owned();
            raw.push(Raw { id: facts.id, sig: event.sig().copied(), text, need });
        }
        let verdicts = self.ctx.verifier.verify(raw).await?;
        let mut fresh: Vec<(Arc<Event>, bool)> = Vec::new();
        let mut forged = Vec::new();
        for ((facts, held, marked), verdict) in places.into_iter().zip(verdicts) {
            match verdict {
                Ok(event) => {
                    checked.delivered.push((event.id(), event.created_at()));
                    if held {
                        self.tally.known += 1;
                        self.tally.reread += 1;
                    } else {
                        fresh.push((event, marked));
                    }
                }
                Err((error, text)) => {
                    self.tally.bad(self.ctx, &error);
                    self.keep_specimen(error, Some(&facts), &text);
                    checked.forged.push((facts.created_at, facts.id));
                    if error.is_forgery() {
                        self.tally.forged += 1;
                        self.tally.forged_known += u64::from(held);
                        let reason = error.as_str();
                        forged.push(ForgeryRow { id: facts.id, reason, known: held });
                    }
                }
            }
        }
        checked.forged.sort_unstable();
        checked.forged.dedup();
        self.note_forged(&forged).await?;
        self.judge(fresh, &mut checked).await?;
        self.note_specimens().await?;
        Ok(checked)
    }

    /// Looks up after all what was only remembered, and may have been removed since; returns what does not verify of it.
    pub(super) async fn look_again(
        &mut self,
        checked: &mut Checked,
    ) -> Result<Vec<(i64, EventId)>, JobError> {
        let mut remembered = std::mem::take(&mut checked.remembered);
        let delivered: HashSet<EventId> = checked.delivered.iter().map(|(id, _)| *id).collect();
        remembered.retain(|event| delivered.contains(&event.facts().id));
        let ids: HashSet<EventId> = remembered.iter().map(|event| event.facts().id).collect();
        self.ctx.known.forget(ids.iter().copied());
        self.tally.delivered -= ids.len() as u64;
        self.tally.known -= ids.len() as u64;
        let again = self.sift(remembered).await?;
        checked.delivered.retain(|(id, _)| !ids.contains(id));
        checked.delivered.extend(again.delivered);
        checked.new.extend(again.new);
        checked.stones.extend(again.stones);
        if !again.noted.is_empty() && !self.ctx.db.sync_note(&self.attempt.fence, &again.noted).await? {
            return Err(lost());
        }
        checked.noted.extend(again.noted);
        Ok(again.forged)
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

    /// Parts what is archived from what is only remembered.
    async fn judge(&mut self, fresh: Vec<(Arc<Event>, bool)>, checked: &mut Checked) -> Result<(), JobError> {
        let ctx = self.ctx;
        let policy = Policy { unkept: &ctx.config.unkept, kinds: &self.archive.kinds };
        let Some(judged) = policy.judge(&ctx.db, Some(&self.attempt.fence), fresh).await? else {
            return Err(lost());
        };
        let count =
            |class, n| ctx.metrics.events_received.get_or_create(&Labels::new("", "", class)).inc_by(n);
        for (class, n) in judged.unkept {
            count(class, n);
            *self.tally.unkept.entry(class).or_default() += n;
        }
        count("skipped", judged.skipped);
        self.tally.skipped += judged.skipped;
        (checked.new, checked.noted, checked.stones) = (judged.new, judged.noted, judged.stones);
        Ok(())
    }
}
