//! What bears a comparison out: a few events asked for where the relay's set says that there are none, and some by id
//! that it says to have let go.
//!
//! Decides only what is asked and what an answer means. Invariant: a window is settled after all probes were answered by
//! EOSE, or by an event that says how far the set is whole.

use super::plan::Reconcile;
use super::spec::{Left, Settlement, Stage};
use crate::models::{EventId, GapReason};
use crate::nips::filter::Filter;
use crate::nips::page::{PageEnd, PageFacts};
use crate::nips::refusal::CloseClass;

/// Ids asked for at most before they count as gone.
const CONFIRMED: usize = 10;

/// One of them; both ends of its stretch are included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probe {
    /// Anywhere in a window of which the set is empty.
    Empty,
    /// Where the relay served something to the probe of a window above, before it is believed that it has nothing here.
    Echo { at: i64 },
    /// At and below the oldest second of the set, which has so many there. `again`: what it has did not come, and is
    /// asked for in the other reading of `until`.
    Below { oldest: i64, known: usize, again: bool },
    /// Between two neighbours of the set.
    Gap { since: i64, until: i64 },
    /// In a stretch of the set drawn at random, which has so many there.
    Sample { since: i64, until: i64, known: usize },
    /// Above the newest second of the set.
    Above { newest: i64 },
}

/// A filter of this stretch, for a relay that takes `until` as exclusive, or not.
pub(super) fn range(since: i64, until: i64, exclusive: bool) -> Filter {
    Filter { since: Some(since), until: Some(until + i64::from(exclusive)), ..Filter::default() }
}

impl Reconcile {
    /// First and last second of a probe, and how many of the set lie there.
    fn stretch(&self, probe: Probe) -> (i64, i64, usize) {
        let (since, until) = (self.window.since, self.window.until);
        match probe {
            Probe::Empty => (since, until, 0),
            Probe::Echo { at } => (at, at, 0),
            Probe::Below { oldest, known, .. } => (since, oldest, known),
            Probe::Gap { since, until } => (since, until, 0),
            Probe::Sample { since, until, known } => (since, until, known),
            Probe::Above { newest } => (newest + 1, until, 0),
        }
    }

    /// What a probe asks for.
    pub(super) fn asking(&self, probe: Probe) -> Filter {
        let (since, until, known) = self.stretch(probe);
        let again = matches!(probe, Probe::Below { again: true, .. });
        let limit = u32::try_from(known).ok().and_then(|known| known.checked_add(1));
        Filter { limit, ..range(since, until, self.exclusive != again) }
    }

    /// Rules 3 to 6, one after the other.
    pub(super) fn probe(&mut self) -> Settlement {
        self.window.whole = self.window.since;
        let Some((oldest, known)) = self.window.oldest() else {
            // So says a store that does not answer. Paging listens for the relay, where it was not heard so far.
            if self.heard.is_none() && (self.is_known || !self.window.items.is_empty()) {
                return self.leave_to_paging();
            }
            self.stage = Stage::Probe(Probe::Empty);
            return Settlement::default();
        };
        self.stage = Stage::Probe(Probe::Below { oldest, known, again: false });
        Settlement::default()
    }

    /// Takes the answer to a probe.
    pub(super) fn on_probed(&mut self, probe: Probe, facts: &PageFacts, end: &PageEnd) -> Settlement {
        let (since, until, known) = self.stretch(probe);
        let hit = self.window.is_surprised_by(&facts.seen, since, until);
        if let Probe::Above { newest } = probe
            && (hit || end.is_too_much())
        {
            return self.cut_above(newest);
        }
        if let Some((second, _)) = facts.seen.iter().find(|(second, _)| (since..=until).contains(second)) {
            self.heard = Some(*second);
        }
        if end.is_too_much() {
            // Paging finds its way around what is too much.
            return self.leave_to_paging();
        }
        if !end.is_eose() && !hit {
            return self.stop_or_page(end);
        }
        let again = matches!(probe, Probe::Below { again: true, .. });
        if !hit && self.exclusive != again && facts.seen.iter().any(|(second, _)| *second > until) {
            // Of the very second that was sent: it is inclusive here, and what came took the place of what was asked for.
            if again {
                return self.leave_to_paging();
            }
            self.exclusive = false;
            return Settlement::default();
        }
        if facts.mismatched > 0 && !hit {
            // What took the place of what was asked for hides it.
            return self.leave_to_paging();
        }
        match probe {
            Probe::Empty | Probe::Gap { .. } | Probe::Sample { .. } if hit => self.leave_to_paging(),
            Probe::Echo { .. } if !hit => self.leave_to_paging(),
            Probe::Empty => match self.heard {
                Some(at) => {
                    self.stage = Stage::Probe(Probe::Echo { at });
                    Settlement::default()
                }
                None => self.confirm(),
            },
            Probe::Echo { .. } | Probe::Above { .. } => self.confirm(),
            Probe::Gap { .. } => self.probe_sample(),
            Probe::Sample { .. } => self.probe_above(),
            Probe::Below { oldest, .. } if hit => self.probe_gap(oldest + 1),
            Probe::Below { oldest, again, .. } if !self.window.is_borne_out_by(&facts.seen, oldest) => {
                if again {
                    return self.leave_to_paging();
                }
                self.stage = Stage::Probe(Probe::Below { oldest, known, again: true });
                Settlement::default()
            }
            Probe::Below { oldest, again, .. } => {
                self.exclusive = self.exclusive != again;
                // What may be a full page says nothing of its last second.
                let vague = known >= self.page_shown && facts.seen.len() <= known;
                self.probe_gap(if vague { oldest + 1 } else { self.window.since })
            }
        }
    }

    /// What is whole from `whole` on is asked for one more event, in its widest gap.
    fn probe_gap(&mut self, whole: i64) -> Settlement {
        self.window.whole = whole;
        let Some((since, until)) = self.window.widest_gap() else { return self.probe_sample() };
        self.stage = Stage::Probe(Probe::Gap { since, until });
        Settlement::default()
    }

    /// The same somewhere, since what is left out need not lie in the widest gap.
    fn probe_sample(&mut self) -> Settlement {
        self.draw = self.draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let Some((since, until, known)) = self.window.stretch(self.draw >> 16, self.ids_per_page) else {
            return self.probe_above();
        };
        self.stage = Stage::Probe(Probe::Sample { since, until, known });
        Settlement::default()
    }

    /// The same above all of it.
    fn probe_above(&mut self) -> Settlement {
        match self.window.newest().filter(|newest| *newest < self.window.until) {
            Some(newest) => {
                self.stage = Stage::Probe(Probe::Above { newest });
                Settlement::default()
            }
            None => self.confirm(),
        }
    }

    /// The set is whole below its newest second, if at all. What is above is a stretch of its own.
    fn cut_above(&mut self, newest: i64) -> Settlement {
        self.aside = Some((newest, self.window.until));
        self.window.until = newest - 1;
        self.frontier = newest - 1;
        if self.frontier < self.floor {
            self.leave(Left::Page);
            return Settlement {
                unserved: std::mem::take(&mut self.window.unserved),
                ..Settlement::default()
            };
        }
        self.confirm()
    }

    /// Some of what would be gone are asked for by id, from all over the window.
    fn confirm(&mut self) -> Settlement {
        let gone = self.window.gone(self.window.whole);
        if gone.is_empty() {
            return self.settle(self.window.whole);
        }
        let step = gone.len().div_ceil(CONFIRMED);
        self.fetching = Some(gone.iter().step_by(step).map(|(id, _)| *id).collect());
        self.stage = Stage::Confirm;
        Settlement::default()
    }

    /// Takes the answer to that. Who does not answer for ids has said nothing of them.
    pub(super) fn on_confirmed(&mut self, facts: &PageFacts, end: &PageEnd) -> Settlement {
        let asked: Vec<EventId> = self.fetching.take().unwrap_or_default();
        if facts.seen.iter().any(|(_, id)| asked.contains(id)) || end.is_too_much() {
            return self.leave_to_paging();
        }
        match end {
            PageEnd::Eose { .. } => {}
            PageEnd::Closed { class, .. } if *class != CloseClass::RateLimited => self.window.have.clear(),
            other => return self.stop_or_page(other),
        }
        self.settle(self.window.whole)
    }

    /// Rule 7: who does not answer this has said nothing of the timeline, but for a limit of our rate.
    pub(super) fn stop_or_page(&mut self, end: &PageEnd) -> Settlement {
        if end.gap() != GapReason::RateLimited {
            return self.leave_to_paging();
        }
        self.leave(Left::Stopped(end.grade(), end.gap()));
        Settlement::default()
    }
}
