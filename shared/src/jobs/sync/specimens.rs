//! Of what a relay served and that cannot be read or does not verify one text of each reason, as it came, so that somebody
//! can see what it was.
//!
//! Invariant: of each reason a pass notes one, whatever the relay serves; and nothing of what the operator does not keep, as
//! far as the text says what it is: neither of a class or kind that is not kept, nor of an event without a body, nor of an
//! author who has asked for deletions. A lightweight archive keeps none.

use std::collections::BTreeMap;

use super::super::keep::Policy;
use super::super::{JobError, lost};
use super::Pass;
use crate::clock;
use crate::db::SpecimenRow;
use crate::models::{EnvelopeFacts, EventError, EventId, Unkept, authors_said};

/// Most bytes kept of a text (`relay_specimen.event`).
const TEXT_BYTES: usize = 8 * 1024;
/// Most authors that are looked up of a text that names more than one.
const AUTHORS: usize = 8;

/// What a pass has of them, by reason.
pub(super) type Specimens = BTreeMap<&'static str, Specimen>;

/// One that came.
#[derive(Debug)]
pub(super) enum Specimen {
    /// It is to be noted, unless one of the events that it says it is was taken away.
    Fresh(SpecimenRow, Vec<EnvelopeFacts>),
    /// The database was asked about it.
    Settled,
}

impl Pass<'_> {
    /// Keeps a text, if it is the first of its reason and may be kept; `facts` are what its envelope says, where that can be
    /// read.
    pub(super) fn keep_specimen(&mut self, why: EventError, facts: Option<&EnvelopeFacts>, text: &str) {
        let reason = why.as_str();
        let policy = Policy { unkept: &self.ctx.config.unkept, kinds: &self.archive.kinds };
        if self.archive.light || self.tally.specimens.contains_key(reason) || !policy.may_show(facts, text) {
            return;
        }
        let shown = text[..text.floor_char_boundary(TEXT_BYTES)].to_owned();
        let row = SpecimenRow { reason, text: shown, bytes: text.len() };
        let said = |pubkey| EnvelopeFacts { id: EventId([0; 32]), created_at: 0, kind: 0, pubkey };
        let authors = authors_said(text).into_iter().take(AUTHORS).map(said);
        let says = facts.copied().into_iter().chain(authors).collect();
        self.tally.specimens.insert(reason, Specimen::Fresh(row, says));
    }

    /// Writes those that are not written, once the page they came in is judged: it may bring the request to delete them.
    pub(super) async fn note_specimens(&mut self) -> Result<(), JobError> {
        let mut fresh = Vec::new();
        for specimen in self.tally.specimens.values_mut() {
            if let Specimen::Fresh(row, says) = std::mem::replace(specimen, Specimen::Settled) {
                fresh.push((row, says));
            }
        }
        if fresh.is_empty() {
            return Ok(());
        }
        let asked: Vec<&EnvelopeFacts> = fresh.iter().flat_map(|(_, says)| says).collect();
        // Whatever is remembered: bodies go meanwhile.
        let answer = self.ctx.db.event_known(&asked).await?;
        let heeds = self.ctx.config.unkept.contains(&Unkept::Deleted);
        let mut positions = 0..;
        let mut rows = Vec::new();
        for (row, says) in fresh {
            let is_gone = |at| answer.known(at) == Some(None) || heeds && answer.is_marked(at);
            // All of its positions are passed, whatever the first says.
            if positions.by_ref().take(says.len()).filter(|at| is_gone(*at)).count() == 0 {
                rows.push(row);
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        let (fence, now) = (&self.attempt.fence, clock::unix_now());
        if self.ctx.db.specimen_note(fence, self.relay_id, now, &rows).await? { Ok(()) } else { Err(lost()) }
    }
}
