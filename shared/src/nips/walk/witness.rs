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
    /// What was proved around it.
    span: Option<(i64, i64)>,
}

/// What of them is open.
#[derive(Debug, Default)]
pub(super) struct Witnesses {
    missing: Vec<Witness>,
    /// That the relay brings nothing at all is no news.
    silence_is_known: bool,
    /// It brought something.
    spoke: bool,
    gone: Vec<(i64, EventId)>,
}

impl Witnesses {
    pub(super) fn new(known: Vec<(i64, EventId)>, silence_is_known: bool) -> Self {
        let missing = known.into_iter().map(|(at, id)| Witness { at, id, span: None }).collect();
        Self { missing, silence_is_known, ..Self::default() }
    }

    /// Takes what a page brought.
    pub(super) fn see(&mut self, facts: &PageFacts) {
        self.spoke |= !facts.seen.is_empty();
        self.missing.retain(|witness| !facts.seen.contains(&(witness.at, witness.id)));
    }

    /// Takes what a page settled.
    pub(super) fn settle(&mut self, claims: &[Claim]) {
        for claim in claims.iter().filter(|claim| claim.grade.is_proof()) {
            for witness in &mut self.missing {
                if (claim.since..=claim.until).contains(&witness.at) {
                    witness.span = Some((claim.since, claim.until));
                }
            }
        }
    }

    /// Whether any of them contradicts what was proved.
    pub(super) fn contradict(&self) -> bool {
        self.missing.iter().any(|witness| witness.span.is_some())
    }

    /// Asks for those that do.
    pub(super) fn filter(&self) -> Filter {
        let ids: Vec<EventId> =
            self.missing.iter().filter(|witness| witness.span.is_some()).map(|witness| witness.id).collect();
        let limit = u32::try_from(ids.len()).ok();
        Filter { ids, limit, ..Filter::default() }
    }

    /// Takes the answer.
    pub(super) fn on_answer(&mut self, facts: &PageFacts, is_eose: bool) -> Vec<Claim> {
        let any = self.missing.iter().any(|witness| facts.seen.contains(&(witness.at, witness.id)));
        if any || !is_eose || !(self.spoke || self.silence_is_known) {
            return self.take_back(Grade::Partial, GapReason::NotServed);
        }
        let (asked, rest) = self.missing.drain(..).partition(|witness| witness.span.is_some());
        self.missing = rest;
        let asked: Vec<Witness> = asked;
        self.gone.extend(asked.iter().map(|witness| (witness.at, witness.id)));
        Vec::new()
    }

    /// What was proved around those that contradict it is proved no more.
    pub(super) fn take_back(&mut self, grade: Grade, reason: GapReason) -> Vec<Claim> {
        let mut spans: Vec<(i64, i64)> = self.missing.iter_mut().filter_map(|w| w.span.take()).collect();
        spans.sort_unstable();
        spans.dedup();
        let claims = spans.into_iter().filter_map(|(since, until)| Claim::over(since, until, grade, reason));
        claims.map(Claim::overriding).collect()
    }

    /// Those the relay was found not to have any more, once.
    pub(super) fn take_gone(&mut self) -> Vec<(i64, EventId)> {
        std::mem::take(&mut self.gone)
    }
}
