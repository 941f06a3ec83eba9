//! One window under comparison: what we hold of it, what the relay has, and what is still wanted.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::models::EventId;
use crate::nips::walk::SMALLEST_CAP;

/// Ids asked for at once in the second try: small enough for every page cap known.
pub(super) const SECOND_TRY: usize = 10;

/// A window and its sets.
#[derive(Debug, Default)]
pub(super) struct Window {
    pub(super) since: i64,
    pub(super) until: i64,
    /// From here on nothing seems to be left out.
    pub(super) whole: i64,
    /// Ours, newest first.
    pub(super) items: Vec<(i64, EventId)>,
    /// Ours that the relay has not.
    pub(super) have: HashSet<EventId>,
    /// The relay's that we have not seen there, as far as nothing settled them.
    pub(super) need: HashSet<EventId>,
    /// The relay's own set, as far as we know its times.
    pub(super) set: Vec<(i64, EventId)>,
    first: VecDeque<EventId>,
    second: VecDeque<EventId>,
    /// The ids of the request under way, and whether it is their second.
    asked: Vec<EventId>,
    asks_again: bool,
    /// Ids the relay claims and does not hand out.
    pub(super) unserved: Vec<EventId>,
}

impl Window {
    pub(super) fn new(since: i64, until: i64) -> Self {
        Self { since, until, whole: since, ..Self::default() }
    }

    /// Takes both differences; ours that the relay shares tell where its set lies.
    pub(super) fn compared(&mut self, have: Vec<EventId>, need: Vec<EventId>) {
        self.have = have.into_iter().collect();
        self.need = need.into_iter().collect();
        self.set = self.items.iter().filter(|(_, id)| !self.have.contains(id)).copied().collect();
    }

    /// Ids that are archived already, with their times; returns those to note as claimed. One whose verified time
    /// lies outside the window was not compared in it, whatever the relay says.
    pub(super) fn known(&mut self, known: &[(EventId, i64)]) -> Vec<(EventId, i64)> {
        let mut claimed = Vec::new();
        for &(id, second) in known {
            if self.need.remove(&id) && (self.since..=self.until).contains(&second) {
                self.set.push((second, id));
                claimed.push((id, second));
            }
        }
        claimed
    }

    /// Begins to fetch what is needed still, in a fixed order.
    pub(super) fn begin_fetching(&mut self) {
        let mut wanted: Vec<EventId> = self.need.iter().copied().collect();
        wanted.sort_unstable_by_key(|id| id.0);
        self.first = wanted.into();
        self.second.clear();
    }

    /// The ids to ask for next: at most `most`, fewer in the second try.
    pub(super) fn next_ids(&mut self, most: usize) -> Option<Vec<EventId>> {
        self.asks_again = self.first.is_empty();
        if self.asks_again && self.is_bound_to_be_hollow() {
            self.second.clear();
        }
        let (queue, most) =
            if self.asks_again { (&mut self.second, most.min(SECOND_TRY)) } else { (&mut self.first, most) };
        let count = queue.len().min(most.max(1));
        self.asked = queue.drain(..count).collect();
        (!self.asked.is_empty()).then(|| self.asked.clone())
    }

    /// Takes a page of them. What did not come is asked for again, and after that is unserved; `cut`: the page may
    /// have been cut, and what did not come was perhaps not its turn.
    pub(super) fn fetched(&mut self, seen: &[(i64, EventId)], cut: bool) {
        for id in self.missing(seen) {
            if cut {
                self.first.push_back(id);
            } else if self.asks_again {
                self.unserved.push(id);
            } else {
                self.second.push_back(id);
            }
        }
    }

    /// Takes what came of a page that did not end well, and puts back the others, in front.
    pub(super) fn put_back(&mut self, seen: &[(i64, EventId)]) {
        let missing = self.missing(seen);
        let queue = if self.asks_again { &mut self.second } else { &mut self.first };
        for id in missing.into_iter().rev() {
            queue.push_front(id);
        }
    }

    /// What does not come of this page is unserved.
    pub(super) fn give_up(&mut self, seen: &[(i64, EventId)]) {
        let missing = self.missing(seen);
        self.unserved.extend(missing);
    }

    /// Takes what came of what was asked for; the rest of that.
    fn missing(&mut self, seen: &[(i64, EventId)]) -> Vec<EventId> {
        let came: HashMap<EventId, i64> = seen.iter().map(|(second, id)| (*id, *second)).collect();
        let mut missing = std::mem::take(&mut self.asked);
        missing.retain(|id| {
            if let Some(second) = came.get(id) {
                self.need.remove(id);
                if (self.since..=self.until).contains(second) {
                    self.set.push((*second, *id));
                }
            }
            !came.contains_key(id)
        });
        missing
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.len()
    }

    pub(super) const fn asks_again(&self) -> bool {
        self.asks_again
    }

    /// The oldest second of the relay's set, and how many of it lie there.
    pub(super) fn oldest(&self) -> Option<(i64, usize)> {
        let oldest = self.set.iter().map(|(second, _)| *second).min()?;
        Some((oldest, self.set.iter().filter(|(second, _)| *second == oldest).count()))
    }

    /// The newest second of the relay's set.
    pub(super) fn newest(&self) -> Option<i64> {
        self.set.iter().map(|(second, _)| *second).max()
    }

    /// Whether anything of the relay's set came of this second.
    pub(super) fn is_borne_out_by(&self, seen: &[(i64, EventId)], second: i64) -> bool {
        seen.iter().any(|event| event.0 == second && self.set.contains(event))
    }

    /// Whether one of these lies in the window and not in the relay's set.
    pub(super) fn is_surprised_by(&self, seen: &[(i64, EventId)], since: i64, until: i64) -> bool {
        let inside = seen.iter().filter(|(second, _)| (since..=until).contains(second));
        inside.into_iter().any(|event| !self.set.contains(event))
    }

    /// The widest stretch between two neighbouring seconds of the relay's set, both ends exclusive.
    pub(super) fn widest_gap(&self) -> Option<(i64, i64)> {
        let mut seconds: Vec<i64> = self.set.iter().map(|(second, _)| *second).collect();
        seconds.sort_unstable();
        let gaps = seconds.windows(2).map(|pair| (pair[0] + 1, pair[1] - 1));
        gaps.filter(|(low, high)| low <= high).max_by_key(|(low, high)| high - low)
    }

    /// A stretch of the relay's set, drawn by this number: ten of the gaps between its seconds, and the events within them,
    /// fewer than `most`. None of a set of fewer gaps.
    pub(super) fn stretch(&self, draw: u64, most: usize) -> Option<(i64, i64, usize)> {
        let mut seconds: Vec<i64> = self.set.iter().map(|(second, _)| *second).collect();
        seconds.sort_unstable();
        seconds.dedup();
        let gaps = seconds.len().saturating_sub(1);
        if gaps < SMALLEST_CAP {
            return None;
        }
        let mut wide = SMALLEST_CAP;
        while wide > 0 {
            let first = usize::try_from(draw % (gaps - wide + 1) as u64).unwrap_or(0);
            let (since, until) = (seconds[first] + 1, seconds[first + wide] - 1);
            let known = self.set.iter().filter(|(second, _)| (since..=until).contains(second)).count();
            if known < most && since <= until {
                return Some((since, until, known));
            }
            wide /= 2;
        }
        None
    }

    /// Ours from `since` up to the end of the window that the relay serves no more.
    pub(super) fn gone(&self, since: i64) -> Vec<(EventId, i64)> {
        let compared = since..=self.until;
        let gone =
            self.items.iter().filter(|(second, id)| compared.contains(second) && self.have.contains(id));
        gone.map(|(second, id)| (*id, *second)).collect()
    }

    /// Whether so much was claimed and not served that the claim is worth nothing.
    pub(super) fn is_mostly_hollow(&self) -> bool {
        is_hollow(self.unserved.len(), self.set.len())
    }

    /// Whether it would be so even if all that is still to be asked for again came. Then nothing is gained by asking.
    fn is_bound_to_be_hollow(&self) -> bool {
        is_hollow(self.unserved.len(), self.set.len() + self.second.len())
    }

    /// Ids on either side.
    pub(super) fn size(&self) -> usize {
        self.items.len().max(self.set.len())
    }
}

/// One in a hundred is borne, or ten if as many came.
const fn is_hollow(unserved: usize, served: usize) -> bool {
    unserved > served / 100 && (unserved > SECOND_TRY || unserved > served)
}
