//! What a claim is worth to the pass, once it lies in the coverage: which stretches count as read, and which dense seconds
//! are open.
//!
//! Invariant: a stretch counts as read where a page proved it, or where the coverage says that it is not proved, so that it
//! is asked for again for itself. A reading that failed over an older proof is neither.

use super::Pass;
use crate::models::{Coverage, GapReason, Grade};
use crate::nips::Claim;

/// What of a claim that lies in this coverage was read.
pub(super) fn read(claim: &Claim, coverage: &Coverage) -> Vec<(i64, i64)> {
    // What a whole page brings is all that paging brings, in whatever order, and however full of one second.
    let paged = matches!(claim.reason, GapReason::DenseSecond | GapReason::Unordered);
    if claim.grade.is_proof() || paged {
        return vec![(claim.since, claim.until)];
    }
    if claim.grade != Grade::Partial {
        return Vec::new();
    }
    let shown = coverage.within(claim.since, claim.until);
    shown
        .filter(|known| known.grade() == Grade::Partial)
        .map(|known| (known.since(), known.until()))
        .collect()
}

impl Pass<'_> {
    /// Notes a claim that was just laid over the coverage.
    pub(super) fn note_claim(&mut self, claim: &Claim) {
        self.read.extend(read(claim, &self.coverage));
        if claim.reason == GapReason::DenseSecond {
            self.dense.insert(claim.since);
        }
    }
}
