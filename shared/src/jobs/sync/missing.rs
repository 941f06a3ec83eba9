//! What a relay was seen to have in a stretch that a walk proved whole, and did not serve in it: gone, or hidden.
//!
//! Knows of the pages what they brought, and of the walk what it claimed. Invariant: nothing counts as gone but where this
//! walk proved the second, nothing spoke against any of its proofs, and the relay was asked for some of it by id, together
//! with one that it served in this pass, if it served any, and handed out that one alone. What it hands out by id and leaves
//! out of its pages takes back what the walk proved.

use std::collections::HashSet;

use super::Pass;
use crate::clock;
use crate::db::Missing;
use crate::jobs::JobError;
use crate::models::{EventId, GapReason, Grade, event_key};
use crate::nips::{Claim, Filter, PageFacts};
use crate::relay::RelaySocket;

/// Events of a walk whose keys are kept to tell what else was there; of a larger one nothing is told.
const SERVED_MAX: usize = 20_000;
/// Most of what is missing that is told at once, newest first; the rest by the next walk.
const MISSING_MAX: i32 = 10_000;
/// So many are asked for by id, of those that relays keep and of the others.
const ASKED: usize = 10;

/// What one walk brought and proved.
#[derive(Debug)]
pub(super) struct Served {
    began: i64,
    keys: Vec<i64>,
    /// The last event that came.
    last: Option<EventId>,
    proved: Vec<(i64, i64)>,
    /// Something spoke against a proof.
    contradicted: bool,
}

impl Served {
    /// Nothing so far, of a walk that begins now.
    pub(super) fn begin() -> Self {
        Self {
            began: clock::unix_now(),
            keys: Vec::new(),
            last: None,
            proved: Vec::new(),
            contradicted: false,
        }
    }

    /// Takes what a page brought, true or not: under whatever comes, something was served.
    pub(super) fn see(&mut self, facts: &PageFacts) {
        self.last = facts.seen.last().map(|(_, id)| *id).or(self.last);
        if self.keys.len() <= SERVED_MAX {
            self.keys.extend(facts.seen.iter().map(|(at, id)| event_key(*at, id)));
        }
    }

    /// Takes what the walk claims.
    pub(super) fn settle(&mut self, claims: &[Claim]) {
        for claim in claims {
            if claim.grade.is_proof() {
                self.proved.push((claim.since, claim.until));
            }
            // That a second holds more than a page says nothing against others.
            self.contradicted |= claim.overrides_proof && claim.reason != GapReason::DenseSecond;
        }
    }

    /// Whether it can say of anything that it is missing.
    fn tells(&self) -> bool {
        !self.contradicted && self.keys.len() <= SERVED_MAX && !self.proved.is_empty()
    }
}

/// Up to `most` of these, spread over all of them.
fn spread(events: &[&Missing], most: usize) -> impl Iterator<Item = EventId> {
    let count = events.len().min(most);
    (0..count).filter_map(move |n| events.get(n * events.len() / count)).map(|event| event.id)
}

impl Pass<'_> {
    /// After a walk that came to its end: notes what is missing. Returns with which gap the relay ended that, where it wants
    /// to be asked less.
    pub(super) async fn note_missing(
        &mut self,
        socket: &mut RelaySocket,
        served: Served,
    ) -> Result<Option<(Grade, GapReason)>, JobError> {
        self.heard = served.last.or(self.heard);
        // Whom an event mentions is not kept where it could be asked for.
        let can_tell = served.tells() && self.class.mentioned.is_empty();
        if !can_tell || self.reading_is_over() || !socket.is_usable() {
            return Ok(None);
        }
        let proved = self.still_proved(&served.proved);
        let missing = self
            .ctx
            .db
            .relay_missing(
                self.relay_id,
                &proved,
                &served.keys,
                served.began,
                (&self.class.kinds, &self.class.authors),
                MISSING_MAX,
            )
            .await?;
        let (kept, others): (Vec<&Missing>, Vec<&Missing>) = missing.iter().partition(|event| event.kept);
        let mut ids: Vec<EventId> = spread(&kept, ASKED).chain(spread(&others, ASKED)).collect();
        if ids.is_empty() {
            return Ok(None);
        }
        // Who serves ids at all hands out what it has just served.
        let served_last = self.heard.filter(|id| !ids.contains(id));
        ids.extend(served_last);
        let limit = u32::try_from(ids.len()).ok();
        let page = self.ask(socket, Filter { ids, limit, ..Filter::default() }).await;
        let (end, strays) = (page.end.clone(), page.facts.mismatched);
        let came: HashSet<EventId> = page.facts.seen.iter().map(|(_, id)| *id).collect();
        let lied = kept.iter().any(|event| came.contains(&event.id));
        if lied {
            let hidden = |&(since, until): &(i64, i64)| Claim {
                since,
                until,
                grade: Grade::Partial,
                reason: GapReason::NotServed,
                overrides_proof: true,
            };
            let hidden: Vec<Claim> = proved.iter().map(hidden).collect();
            self.overlay(&hidden);
        }
        // With it, since a worker that dies leaves no proof that was taken back.
        self.store_page(page, lied).await?;
        if end.gap() == GapReason::RateLimited {
            return Ok(Some((end.grade(), end.gap())));
        }
        // Who does not answer for ids has said nothing of them, nor has who hands out none by theirs.
        let serves_ids = served_last.is_none_or(|id| came.contains(&id));
        if lied || !end.is_eose() || strays > 0 || !serves_ids {
            return Ok(None);
        }
        // Some serve by id what is replaced, or expired, and never else: that is not gone, and nothing is hidden.
        let keeps_others = others.iter().any(|event| came.contains(&event.id));
        let gone = missing.iter().filter(|event| event.kept || !keeps_others);
        let gone: Vec<(i64, EventId)> = gone.map(|event| (event.created_at, event.id)).collect();
        self.note_gone(gone).await?;
        Ok(None)
    }

    /// What of these stretches the coverage has as proved, ascending, apart and not touching.
    fn still_proved(&self, stretches: &[(i64, i64)]) -> Vec<(i64, i64)> {
        let proofs = stretches.iter().flat_map(|(since, until)| self.coverage.within(*since, *until));
        let mut proofs: Vec<(i64, i64)> = proofs
            .filter(|known| known.grade().is_proof())
            .map(|known| (known.since(), known.until()))
            .collect();
        proofs.sort_unstable();
        let mut merged: Vec<(i64, i64)> = Vec::new();
        for (since, until) in proofs {
            match merged.last_mut() {
                Some(last) if since <= last.1.saturating_add(1) => last.1 = last.1.max(until),
                _ => merged.push((since, until)),
            }
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_spread_over_all_that_is_missing() {
        let of = |n: u8| Missing { created_at: i64::from(n), id: EventId([n; 32]), kept: true };
        let events: Vec<Missing> = (0..100).map(of).collect();
        let all: Vec<&Missing> = events.iter().collect();
        let asked: Vec<u8> = spread(&all, 10).map(|id| id.0[0]).collect();
        assert_eq!(asked, [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]);
        assert_eq!(spread(&all[..3], 10).count(), 3);
        assert_eq!(spread(&[], 10).count(), 0);
    }

    #[test]
    fn a_walk_that_was_contradicted_or_brought_too_much_tells_nothing() {
        let proof = Claim {
            since: 1,
            until: 9,
            grade: Grade::Walked,
            reason: GapReason::None,
            overrides_proof: false,
        };
        let cut = |reason| Claim { grade: Grade::Partial, reason, overrides_proof: true, ..proof };
        let tells = |claims: &[Claim], frames: i64| {
            let mut served = Served::begin();
            let seen = (0..frames).map(|at| (at, EventId([1; 32]))).collect();
            served.see(&PageFacts { seen, ..PageFacts::default() });
            served.settle(claims);
            served.tells()
        };
        assert!(tells(&[proof], 20_000) && tells(&[proof, cut(GapReason::DenseSecond)], 5));
        assert!(!tells(&[], 5) && !tells(&[proof], 20_001));
        assert!(
            !tells(&[proof, cut(GapReason::NotServed)], 5) && !tells(&[proof, cut(GapReason::Unordered)], 5)
        );
    }
}
