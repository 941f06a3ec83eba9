//! What one page says of the time it was asked about.
//!
//! Reads wire order and counts; decides nothing. Invariant: nothing older or newer than the window that was
//! meant is ever used to settle time, even where more was asked for.

use std::collections::HashSet;

use crate::models::EventId;
use crate::nips::PageFacts;

/// Frames a relay may send that were not asked for before it counts as ignoring the filter: a live event
/// or an off-by-one at an edge is met in practice, a page of strangers is not.
pub const MISMATCH_MAX: usize = 10;

/// A page, seen from the window it answers.
#[derive(Debug)]
pub(super) struct PageView {
    /// Distinct events inside the window, in wire order, those that cannot be read but for their time among them.
    entries: Vec<(i64, EventId)>,
    /// Frames that took a place in the page, whatever they were: the size a cap counts.
    pub(super) frames: usize,
    /// Events newer than the window, yet within what was asked: an open top or a raised `until`.
    pub(super) beyond: usize,
    /// The oldest second of these.
    pub(super) beyond_low: Option<i64>,
    /// How often the page steps forward in time: 0 for newest first. What a raised `until` brought counts.
    pub(super) inversions: usize,
    /// Frames for our request that cannot be read, not even when they are from.
    pub(super) unplaced: usize,
    mismatched: usize,
}

impl PageView {
    /// Reads `facts` as what is known of `[floor, top]`, asked for up to `until` (`None` for an open top).
    pub(super) fn read(facts: &PageFacts, floor: i64, top: i64, until: Option<i64>) -> Self {
        let mut known = HashSet::with_capacity(facts.seen.len() + facts.unread.len());
        let mut view = Self {
            entries: Vec::with_capacity(facts.seen.len()),
            frames: facts.seen.len() + facts.unread.len(),
            beyond: 0,
            beyond_low: None,
            inversions: 0,
            unplaced: 0,
            mismatched: usize::try_from(facts.mismatched).unwrap_or(usize::MAX),
        };
        view.frames = view.frames.saturating_add(view.mismatched);
        let mut last = i64::MAX;
        for placed in facts.in_wire_order() {
            let Some((created_at, id)) = placed else {
                view.unplaced += 1;
                continue;
            };
            if created_at < floor || until.is_some_and(|until| created_at > until) {
                view.mismatched = view.mismatched.saturating_add(1);
            } else if !known.insert(id) {
                // a repeat says nothing new
            } else {
                let above = created_at > top;
                if !above || until.is_some() {
                    view.inversions += usize::from(last < created_at);
                    last = created_at;
                }
                if above {
                    view.beyond += 1;
                    view.beyond_low = Some(view.beyond_low.map_or(created_at, |low| low.min(created_at)));
                } else {
                    view.entries.push((created_at, id));
                }
            }
        }
        view
    }

    /// Whether the relay answers something else than what it was asked.
    pub(super) fn ignores_filter(&self) -> bool {
        let only_strangers = self.mismatched > 0 && self.entries.is_empty() && self.beyond == 0;
        self.mismatched > MISMATCH_MAX || only_strangers
    }

    /// Whether something came, and nothing that says when it is from.
    pub(super) const fn is_unclear(&self) -> bool {
        self.unplaced > 0 && self.entries.is_empty() && self.beyond == 0
    }

    /// Whether nothing came that takes a place in time, be it known or not.
    pub(super) const fn is_silent(&self) -> bool {
        self.entries.is_empty() && self.beyond == 0 && self.unplaced == 0
    }

    /// The newest second inside the window.
    pub(super) fn top(&self) -> Option<i64> {
        self.entries.iter().map(|&(second, _)| second).max()
    }

    /// The oldest second inside the window.
    pub(super) fn low(&self) -> Option<i64> {
        self.entries.iter().map(|&(second, _)| second).min()
    }

    /// Whether all events inside the window share one second.
    pub(super) fn spans_one_second(&self) -> bool {
        self.entries.windows(2).all(|pair| pair[0].0 == pair[1].0)
    }

    /// The events of one second.
    pub(super) fn ids_at(&self, second: i64) -> HashSet<EventId> {
        self.entries.iter().filter(|&&(at, _)| at == second).map(|&(_, id)| id).collect()
    }

    /// The seconds of the events that `known` does not hold, newest first.
    pub(super) fn seconds_beside(&self, known: &HashSet<EventId>) -> Vec<i64> {
        let beside = self.entries.iter().filter(|(_, id)| !known.contains(id));
        let mut seconds: Vec<i64> = beside.map(|&(second, _)| second).collect();
        seconds.sort_unstable_by(|a, b| b.cmp(a));
        seconds
    }

    /// Whether an event is here that `known` does not hold.
    pub(super) fn brings_new(&self, known: &HashSet<EventId>) -> bool {
        self.entries.iter().any(|(_, id)| !known.contains(id))
    }

    /// The distinct seconds inside the window, oldest first.
    pub(super) fn seconds(&self) -> Vec<i64> {
        let mut seconds: Vec<i64> = self.entries.iter().map(|&(second, _)| second).collect();
        seconds.sort_unstable();
        seconds.dedup();
        seconds
    }

    /// The events of a stretch, both ends included.
    pub(super) fn ids_within(&self, (since, until): (i64, i64)) -> Vec<EventId> {
        let inside = self.entries.iter().filter(|(second, _)| (since..=until).contains(second));
        inside.map(|&(_, id)| id).collect()
    }

    /// Whether an event is here that is none of these.
    pub(super) fn brings_beside(&self, known: &[EventId]) -> bool {
        self.entries.iter().any(|(_, id)| !known.contains(id))
    }

    /// The widest stretch between two neighbouring seconds of the page, both ends exclusive of events.
    pub(super) fn widest_gap(&self) -> Option<(i64, i64)> {
        let mut seconds: Vec<i64> = self.entries.iter().map(|&(second, _)| second).collect();
        seconds.sort_unstable();
        let gaps = seconds.windows(2).map(|pair| (pair[0] + 1, pair[1] - 1));
        gaps.filter(|(low, high)| low <= high).max_by_key(|(low, high)| high - low)
    }
}
