//! Proofs that are not told yet: what speaks against them, if anything does, has not been asked (rules 8 and 13).
//!
//! Knows nothing of pages. Invariant: what was told as proved is taken back only for something that came later than it
//! and could not have been asked before, whenever the walk dies.

use super::Walk;
use super::spec::Claim;
use crate::models::{GapReason, Grade};

/// Those proofs, apart from one another.
#[derive(Debug, Default)]
pub(super) struct Withheld(Vec<Claim>);

impl Withheld {
    /// Takes what was settled; returns what of it, and of what was held back before, no stretch in doubt covers.
    fn sift(&mut self, claims: Vec<Claim>, doubtful: &[(i64, i64)]) -> Vec<Claim> {
        let mut proofs = std::mem::take(&mut self.0);
        let mut told = Vec::with_capacity(claims.len());
        for claim in claims {
            if claim.overrides_proof {
                proofs = proofs.iter().flat_map(|proof| proof.outside((claim.since, claim.until))).collect();
            }
            if claim.grade.is_proof() { proofs.push(claim) } else { told.push(claim) }
        }
        // Whole: what speaks against one stretch of a claim speaks against the claim (rule 12).
        let in_doubt = |proof: &Claim| doubtful.iter().any(|stretch| proof.inside(*stretch).is_some());
        let (held, proofs): (Vec<Claim>, Vec<Claim>) = proofs.into_iter().partition(in_doubt);
        self.0 = held;
        told.extend(proofs);
        told
    }
}

impl Walk {
    /// What is still to be checked when the walk ends: it is not proved.
    pub(super) fn take_unchecked(&mut self, reason: GapReason) -> Vec<Claim> {
        let gap = self.suspect.take().map(|suspect| suspect.gap);
        let stretches = gap.into_iter().chain(self.sampler.take_stretch());
        let open = stretches.filter_map(|(since, until)| Claim::over(since, until, Grade::Unknown, reason));
        let unheard = self.silence.take_back(Grade::Unknown, reason);
        open.map(Claim::overriding).chain(unheard).collect()
    }

    /// What of `claims` can be told now. An answer without an EOSE (`is_answer`) tells no proof, not even an older one.
    pub(super) fn hold_back(&mut self, claims: Vec<Claim>, is_answer: bool) -> Vec<Claim> {
        let all = (!is_answer).then_some((i64::MIN, i64::MAX));
        let doubtful: Vec<(i64, i64)> = all
            .into_iter()
            .chain(self.suspect.map(|suspect| suspect.span))
            .chain(self.silence.rests())
            .collect();
        self.withheld.sift(claims, &doubtful)
    }
}
