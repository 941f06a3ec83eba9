//! Of what a relay served and that cannot be read or does not verify one text of each reason, as it came, so that somebody
//! can see what it was.
//!
//! Invariant: of each reason a pass notes one, whatever the relay serves; and nothing of what the operator does not keep, as
//! far as the text says what it is.

use std::collections::{BTreeMap, HashSet};

use super::super::keep::Policy;
use super::super::{JobError, lost};
use super::Pass;
use crate::clock;
use crate::db::SpecimenRow;
use crate::models::{EnvelopeFacts, EventError};

/// Most bytes kept of a text (`relay_specimen.event`).
const TEXT_BYTES: usize = 8 * 1024;

/// What a pass has of them.
#[derive(Debug, Default)]
pub(super) struct Specimens {
    /// Of these reasons the database was given one.
    noted: HashSet<&'static str>,
    /// Of these it is to be given one.
    fresh: BTreeMap<&'static str, SpecimenRow>,
}

impl Pass<'_> {
    /// Keeps a text, if it is the first of its reason and may be kept; `facts` are what its envelope says, where that can be
    /// read.
    pub(super) fn keep_specimen(&mut self, why: EventError, facts: Option<&EnvelopeFacts>, text: &str) {
        let (reason, specimens) = (why.as_str(), &mut self.tally.specimens);
        if specimens.noted.contains(reason) || specimens.fresh.contains_key(reason) {
            return;
        }
        let policy = Policy { unkept: &self.ctx.config.unkept, kinds: &self.archive.kinds };
        if policy.may_show(facts, text) {
            let shown = text[..text.floor_char_boundary(TEXT_BYTES)].to_owned();
            specimens.fresh.insert(reason, SpecimenRow { reason, text: shown, bytes: text.len() });
        }
    }

    /// Writes those that are not written.
    pub(super) async fn note_specimens(&mut self) -> Result<(), JobError> {
        let fresh = std::mem::take(&mut self.tally.specimens.fresh);
        if fresh.is_empty() {
            return Ok(());
        }
        self.tally.specimens.noted.extend(fresh.keys());
        let rows: Vec<SpecimenRow> = fresh.into_values().collect();
        let (fence, now) = (&self.attempt.fence, clock::unix_now());
        if self.ctx.db.specimen_note(fence, self.relay_id, now, &rows).await? { Ok(()) } else { Err(lost()) }
    }
}
