//! What a pass must not call proved, whatever its pages prove later: seconds in which the relay served something that
//! does not verify, that cannot be read, or that the database would not take.
//!
//! Invariant: no proof of the pass covers a doubt of the pass, in whichever order they came.

use super::{INTERVALS, Pass};
use crate::clock;
use crate::models::{GapReason, Grade, Interval};
use crate::relay::Page;

/// Doubtful stretches that one page may leave as gaps of their own; beyond that, all between them is one.
const SPANS: usize = 10;

impl Pass<'_> {
    /// Takes these stretches out of what is proved, for the rest of the pass; whether there were any.
    pub(super) fn doubt(&mut self, mut spans: Vec<(i64, i64)>, reason: GapReason) -> bool {
        let now = clock::unix_now();
        // What stood above all that could be placed came from an open top, and what is dated ahead of us lies in no window:
        // nothing is claimed beyond now.
        spans = spans.into_iter().map(|(since, until)| (since, until.min(now))).collect();
        spans.retain(|(since, until)| since <= until);
        if spans.len() > SPANS {
            let since = spans.iter().map(|span| span.0).min().unwrap_or(0);
            let until = spans.iter().map(|span| span.1).max().unwrap_or(0);
            spans = vec![(since, until)];
        }
        for (since, until) in &spans {
            if let Ok(gap) = Interval::new(*since, *until, Grade::Partial, reason, now) {
                self.coverage.overrule(gap);
                self.doubts.overlay(gap);
            }
        }
        self.coverage.coarsen(INTERVALS);
        self.doubts.coarsen(INTERVALS);
        !spans.is_empty()
    }

    /// Lays the doubts over a stretch again, after something was laid over it.
    pub(super) fn keep_doubts(&mut self, since: i64, until: i64) {
        for gap in self.doubts.within(since, until) {
            self.coverage.overrule(gap);
        }
    }

    /// Counts what cannot be read, keeps samples, and says what was wrong with the first of it.
    pub(super) fn note_unread(&mut self, page: &Page) {
        let unread = &page.facts.unread;
        let Some(first) = unread.first() else { return };
        for (one, frame) in unread.iter().zip(&page.unread) {
            self.tally.bad(self.ctx, &one.why);
            self.keep_specimen(one.why, None, &frame[one.span.0..one.span.1]);
        }
        let (count, why, relay) = (unread.len(), first.why, self.relay_id);
        let created_at = first.at;
        tracing::info!(relay.id = relay, count, created_at, error = %why, "a relay sent events that cannot be read");
    }
}
