//! Seconds that hold more than a page: asked for in parts ([`Dense`]), and recorded as gaps all the same.

use super::{Pass, SyncEnd};
use crate::jobs::{JobError, lost};
use crate::models::{EnvelopeFacts, Event, GapReason};
use crate::nips::{Dense, DenseSpec};
use crate::relay::{PageEvent, RelaySocket};

/// Seconds split in one pass; the others when they are asked for again.
const SECONDS: usize = 8;
/// Most requests for one of them.
const REQUESTS: u32 = 200;
/// Kinds and authors by which one of them is asked for in one pass; half of each are drawn anew in each pass.
const KINDS: usize = 400;
const AUTHORS: usize = 1_000;
/// Those of the archive among whom they are drawn, those of the second first.
const KINDS_KNOWN: i32 = 4_000;
const AUTHORS_KNOWN: i32 = 10_000;

impl Pass<'_> {
    /// Splits some of the seconds that this pass found dense and did not prove after all, until the relay answers by
    /// anything but EOSE: it is not asked what it has just refused, and reconnected to once at most. Returns how the pass ends
    /// for it, where the relay wants to be asked less; what else it refuses there speaks of these kinds and authors alone.
    pub(super) async fn split_dense(
        &mut self,
        socket: &mut RelaySocket,
    ) -> Result<Option<SyncEnd>, JobError> {
        let is_open = |second: &i64| self.coverage.at(*second).is_none_or(|known| !known.grade().is_proof());
        let seconds: Vec<i64> = self.dense.iter().copied().filter(is_open).collect();
        if seconds.is_empty() {
            return Ok(None);
        }
        let takes_turns = seconds.len() > 1;
        let below = if takes_turns { self.ctx.db.dense_turn(self.relay_id).await? } else { None };
        let round = self.ctx.db.dense_round(&self.attempt.fence, self.relay_id).await?.ok_or_else(lost)?;
        for second in turn(&seconds, below) {
            let known = self.ctx.db.dense_facts(second, KINDS_KNOWN, AUTHORS_KNOWN).await?;
            self.look_at_budget().await?;
            if self.is_over() || (!socket.is_usable() && self.reconnect(socket).await?.is_some()) {
                return Ok(None);
            }
            // As it begins: of a relay too slow to end one, the next pass begins with another.
            if takes_turns && !self.ctx.db.dense_turn_set(&self.attempt.fence, self.relay_id, second).await? {
                return Err(lost());
            }
            let allowed = &self.class.kinds;
            let kinds =
                known.kinds.into_iter().filter(|kind| allowed.is_empty() || allowed.contains(kind)).collect();
            let mut plan = Dense::new(DenseSpec {
                second,
                limit: self.page_limit,
                page_shown: self.largest,
                kinds: share(kinds, KINDS, round),
                authors: if self.class.authors.is_empty() {
                    share(known.authors, AUTHORS, round)
                } else {
                    self.class.authors.clone()
                },
                max_requests: REQUESTS,
                until_exclusive: self.until_exclusive,
            });
            let (mut ended, mut limited) = (false, false);
            while let Some(filter) = plan.next().filter(|_| !ended) {
                self.look_at_budget().await?;
                if self.is_over() || (!socket.is_usable() && self.reconnect(socket).await?.is_some()) {
                    return Ok(None);
                }
                let page = self.ask(socket, filter).await;
                let facts: Vec<EnvelopeFacts> = page.events.iter().map(|event| *event.facts()).collect();
                (ended, limited) = (!page.end.is_eose(), page.end.gap() == GapReason::RateLimited);
                plan.on_page(&facts, &mentions(&page.events), !ended);
                self.store_page(page, false).await?;
            }
            self.tally.dense_requests += u64::from(plan.requests());
            self.tally.dense_seconds += 1;
            if ended {
                return Ok(limited.then_some(SyncEnd::RateLimited));
            }
        }
        Ok(None)
    }
}

/// Whose turn it is of these (ascending): those below the one that was begun last, newest first, and then from the top
/// again. Whatever is dense for long enough is split, however many there are.
fn turn(seconds: &[i64], below: Option<i64>) -> Vec<i64> {
    let next = below.map_or(seconds.len(), |below| seconds.partition_point(|second| *second < below));
    let (older, newer) = seconds.split_at(next);
    older.iter().rev().chain(newer.iter().rev()).copied().take(SECONDS).collect()
}

/// At most so many of a list: the first half of them always, and as many of the rest, from where the lot of the round falls,
/// so that all are met in the end, however many rounds lie between two that ask for the same second. Every other round they
/// come first, where requests do not suffice for all.
fn share<T: Clone>(list: Vec<T>, most: usize, round: u32) -> Vec<T> {
    if list.len() <= most {
        return list;
    }
    let (first, rest) = list.split_at(most / 2);
    let lot = u64::from(round).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let lot = (lot ^ (lot >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let start = usize::try_from(((lot >> 32) * rest.len() as u64) >> 32).unwrap_or(0);
    let drawn = rest.iter().cycle().skip(start).take(most - first.len());
    if round.is_multiple_of(2) {
        first.iter().chain(drawn).cloned().collect()
    } else {
        drawn.chain(first).cloned().collect()
    }
}

/// Public keys in p tags.
fn mentions(page: &[PageEvent]) -> Vec<[u8; 32]> {
    let events = page.iter().filter_map(|event| Event::parse(event.json()).ok());
    let keys = events.flat_map(|event| {
        let tags = event.tags().iter().filter(|tag| tag.first().is_some_and(|name| name == "p"));
        tags.filter_map(|tag| hex::decode(tag.get(1)?).ok()?.try_into().ok()).collect::<Vec<[u8; 32]>>()
    });
    keys.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_kind_and_author_is_drawn_in_the_end(
            known in 1_usize..400, most in 20_usize..100, begun in 0_u32..1_000_000, every in 1_u32..20,
        ) {
            let list: Vec<usize> = (0..known).collect();
            let mut asked = BTreeSet::new();
            // Of forty parts none is left out in a thousand draws.
            for round in 0..1_000 {
                let now = share(list.clone(), most, begun + round * every);
                prop_assert_eq!(now.len(), most.min(known));
                prop_assert!(now.contains(&0) && now.contains(&(most.min(known) / 2).saturating_sub(1)));
                asked.extend(now);
            }
            prop_assert_eq!(asked.len(), known);
        }

        #[test]
        fn every_dense_second_has_its_turn(
            seconds in prop::collection::btree_set(0_i64..500, 1..90), come in prop::collection::vec(0_i64..500, 0..6),
            begun in 1..=SECONDS,
        ) {
            let (mut dense, mut below) = (seconds.clone(), None);
            let mut split: BTreeSet<i64> = BTreeSet::new();
            // One more in each round, as others turn dense meanwhile; a slow relay leaves no time for all whose turn it is.
            for round in 0..(seconds.len() + come.len()).div_ceil(begun) {
                let all: Vec<i64> = dense.iter().copied().collect();
                let mut now = turn(&all, below);
                prop_assert_eq!(now.len(), SECONDS.min(all.len()));
                now.truncate(begun);
                below = now.last().copied();
                split.extend(now);
                dense.extend(come.get(round));
            }
            prop_assert!(seconds.is_subset(&split), "{:?} of {seconds:?}", split);
        }
    }
}
