//! Events that this relay is known to have had: what is proved without one of them is asked about (rule 12).
//!
//! Knows nothing of pages but what came. Invariant: at the end no stretch counts as proved that holds one of them, unless
//! it came, or is gone by the relay's own answer.

use super::spec::Claim;
use crate::models::{EventId, GapReason, Grade};
use crate::nips::{Filter, PageFacts};

/// One of them, which did not come so far.
#[derive(Debug, Clone, Copy)]
struct Witness {
    at: i64,
    id: EventId,
    /// What is held back has it within.
    contradicts: bool,
}

/// What of them is open.
#[derive(Debug, Default)]
pub(super) struct Witnesses {
    missing: Vec<Witness>,
    /// Proofs that lack one of them: they are told once it was asked about, so that nobody who dies before has told them.
    held: Vec<Claim>,
    /// That the relay brings nothing at all is no news.
    silence_is_known: bool,
    /// It brought something.
    spoke: bool,
    gone: Vec<(i64, EventId)>,
}

impl Witnesses {
    pub(super) fn new(known: Vec<(i64, EventId)>, silence_is_known: bool) -> Self {
        let missing = known.into_iter().map(|(at, id)| Witness { at, id, contradicts: false }).collect();
        Self { missing, silence_is_known, ..Self::default() }
    }

    /// Takes what a page brought.
    pub(super) fn see(&mut self, facts: &PageFacts) {
        self.spoke |= !facts.seen.is_empty();
        self.missing.retain(|witness| !facts.seen.contains(&(witness.at, witness.id)));
    }

    /// Takes what a page settled; returns what of it can be told at once.
    pub(super) fn settle(&mut self, claims: Vec<Claim>) -> Vec<Claim> {
        let mut told = Vec::with_capacity(claims.len());
        for claim in claims {
            let within = |at: i64| (claim.since..=claim.until).contains(&at);
            if claim.overrides_proof {
                self.held =
                    self.held.iter().flat_map(|held| held.outside((claim.since, claim.until))).collect();
                self.missing.iter_mut().filter(|w| within(w.at)).for_each(|w| w.contradicts = false);
            } else if claim.grade.is_proof() && self.missing.iter().any(|w| within(w.at)) {
                self.missing.iter_mut().filter(|w| within(w.at)).for_each(|w| w.contradicts = true);
                self.held.push(claim);
                continue;
            }
            told.push(claim);
        }
        told
    }

    /// Whether any of them contradicts what was proved.
    pub(super) fn contradict(&self) -> bool {
        self.missing.iter().any(|witness| witness.contradicts)
    }

    /// Asks for those that do.
    pub(super) fn filter(&self) -> Filter {
        let ids: Vec<EventId> = self.missing.iter().filter(|w| w.contradicts).map(|w| w.id).collect();
        let limit = u32::try_from(ids.len()).ok();
        Filter { ids, limit, ..Filter::default() }
    }

    /// Takes the answer: what was held back is proved, or a lie.
    pub(super) fn on_answer(&mut self, facts: &PageFacts, is_eose: bool) -> Vec<Claim> {
        let any = self.missing.iter().any(|witness| facts.seen.contains(&(witness.at, witness.id)));
        let held = std::mem::take(&mut self.held);
        let (asked, rest) = self.missing.drain(..).partition(|witness| witness.contradicts);
        self.missing = rest;
        let asked: Vec<Witness> = asked;
        if any || !is_eose || !(self.spoke || self.silence_is_known) {
            let over =
                |held: Claim| Claim::over(held.since, held.until, Grade::Partial, GapReason::NotServed);
            return held.into_iter().filter_map(over).map(Claim::overriding).collect();
        }
        self.gone.extend(asked.iter().map(|witness| (witness.at, witness.id)));
        held
    }

    /// What was held back and could not be asked about: it is as unknown as before, but where it was proved before this walk.
    pub(super) fn give_up(&mut self, reason: GapReason) -> Vec<Claim> {
        let held = std::mem::take(&mut self.held).into_iter();
        held.filter_map(|held| Claim::over(held.since, held.until, Grade::Unknown, reason)).collect()
    }

    /// Those the relay was found not to have any more, once.
    pub(super) fn take_gone(&mut self) -> Vec<(i64, EventId)> {
        std::mem::take(&mut self.gone)
    }
}
