//! The sync planner of one window of one relay: pages downward from `ceiling` to `floor` and says of every
//! second what is proved and what is not.
//!
//! Owns no socket and no clock, keeps no event: [`Walk::next`] says what to ask, [`Walk::on_page`] takes
//! what came and returns what that settles, [`Walk::finish`] accounts for the rest. Invariants: every second
//! of `[floor, ceiling]` ends in some [`Claim`]; nothing but an EOSE proves; no claim exceeds the ceiling,
//! whatever dates a relay invents.
//!
//! # Rules of proof
//! `f` is the frontier: `[floor, f]` is unsettled. A page asks `{since: floor, until: f}`, inclusive, so that
//! the second where the last page broke off is asked again; only the first page may have an open top.
//!
//! 1. **Order.** A page that ended in EOSE, newest first, with oldest second `o < f`: `[o+1, f]` is *walked*,
//!    the frontier moves to `o`. A short page proves no more than that. A page of one second shows no order:
//!    if it may be full (rule 3) and no page showed order before, `[o+1, f]` is asked first, and must be empty
//!    (where rule 6 speaks against the relay too, it is *partial/unordered* unasked).
//! 2. **Disorder.** The same page out of order: `[o+1, f]` is *partial/unordered*. Gross disorder (more than
//!    [`INVERSIONS_SPARE`] + 1 % of the page) shows that order means nothing here: all above is taken back
//!    ([`Claim::overrides_proof`]), and order proves nothing for the rest of the walk.
//! 3. **One second.** A page that holds only second `f` is no progress. The next request asks below it,
//!    `until: f-1`. Events there show that the page was cut inside `f`: `[f, f]` is *partial/dense_second* and
//!    the walk goes on older. Nothing there: `f` is whole unless the page may have been full: it has as many
//!    frames as were asked for, or as the smallest page of this walk shown to be cut (a page is shown to be
//!    cut when the next one brings something older or new), or, when none was, [`SMALLEST_CAP`].
//! 4. **Drained.** An empty page and EOSE below the oldest event seen: `[floor, f]` is *walked*. So is a
//!    window that never showed an event. An empty page with the hint `more` is *partial/not_served*.
//! 5. **Finish.** The hint `finish` is a claim: the next page, asked as ever, must bring nothing new and not be
//!    full (rule 3). Then everything from the hint's own window down is *finished*; if anything new turns up,
//!    hints are ignored from there on. An empty page with the hint needs no second.
//! 6. **The frontier second is served again.** If a page from `f` lacks an event of `f` that was delivered
//!    before, the relay's `until` is exclusive or its archive moves: `[f, f]` is *partial/not_served*.
//! 7. **Foreign frames.** More than [`MISMATCH_MAX`] frames that were not asked for, or nothing else: the
//!    rest is *partial/ignores_filter*, and the walk stops.
//! 8. **Liars.** Once per walk, at its end (or in its last allowed request), the widest gap between two
//!    neighbouring events of a page proved by order or by `finish` is asked alone. An event in it was hidden:
//!    the page's span becomes *partial/not_served*, with [`Claim::overrides_proof`].
//! 9. **Any other end** settles nothing and stops the walk; the rest is *refused* or *unknown* with the
//!    end's reason. The one retry: the first oversize page is asked again with half the limit.
//!
//! # Bound
//! Requests ≤ `3·s + 4` and ≤ `max_requests`, where `s` is the number of distinct seconds in which the relay
//! delivered anything: each second is the frontier once, and costs a page, a look below and (while no order
//! is shown) a look above; beside these, the first page, one more from the ceiling, one oversize retry and
//! one probe. A relay that answers newest first in
//! pages of `c`, never more than `k < c` events in one second, takes ≤ `events / (c - k) + 6`.

mod spec;
mod view;

use std::collections::HashSet;

use self::spec::{Ask, Order, Suspect};
use self::view::PageView;
use super::filter::Filter;
use super::frame::EoseHint;
use super::page::{PageEnd, PageFacts};
use crate::models::{EventId, GapReason, Grade};

pub use self::spec::{Claim, Next, WalkSpec};
pub use self::view::MISMATCH_MAX;

/// The latest second ever sent or claimed: relay programs hold times in 32 bits (khatru) and misread others.
pub const LATEST_SECOND: i64 = u32::MAX as i64;

/// The smallest page cap taken as possible while none is known. Relay programs cap pages at 250 and more;
/// a handful of events in one second with nothing older is a small relay, not a cut page.
pub const SMALLEST_CAP: usize = 10;

/// Steps forward in time that one page may have, beside one in a hundred, before the relay counts as
/// unordered: an event published while the page is sent arrives in its middle.
pub const INVERSIONS_SPARE: usize = 1;

/// A walk under way.
#[derive(Debug)]
pub struct Walk {
    floor: i64,
    ceiling: i64,
    limit: u32,
    max_requests: u32,
    requests: u32,
    /// What the walk needs next; `None` once it is through or stopped.
    plan: Option<Ask>,
    outstanding: Option<Ask>,
    /// `[floor, frontier]` is unsettled.
    frontier: i64,
    /// Events of the frontier second delivered so far.
    boundary: HashSet<EventId>,
    /// Frames of the last page that was not empty.
    last_frames: Option<usize>,
    /// Frames of the smallest page shown to be cut.
    smallest_cut: Option<usize>,
    /// Top of the window that the relay says is finished.
    finish_top: Option<i64>,
    distrusts_hints: bool,
    order: Order,
    suspect: Option<Suspect>,
    halved: bool,
    stopped: Option<(Grade, GapReason)>,
}

impl Walk {
    /// Plans a walk. An empty window (`floor > ceiling`) is done at once and claims nothing.
    pub fn new(spec: WalkSpec) -> Self {
        let floor = spec.floor.max(0);
        let ceiling = spec.ceiling.min(LATEST_SECOND);
        let first = Ask::Page { until: (!spec.open_top).then_some(ceiling) };
        Self {
            floor,
            ceiling,
            limit: spec.limit.max(1),
            max_requests: spec.max_requests,
            requests: 0,
            plan: (floor <= ceiling).then_some(first),
            outstanding: None,
            frontier: ceiling,
            boundary: HashSet::new(),
            last_frames: None,
            smallest_cut: None,
            finish_top: None,
            distrusts_hints: false,
            order: Order::Unshown,
            suspect: None,
            halved: false,
            stopped: None,
        }
    }

    /// What to ask now; the same request again until its page is reported.
    #[expect(clippy::should_implement_trait, reason = "a walk is driven by its pages, it is no iterator")]
    pub fn next(&mut self) -> Next {
        if self.outstanding.is_none() {
            self.outstanding = self.choose();
            self.requests += u32::from(self.outstanding.is_some());
        }
        self.outstanding.map_or(Next::Done, |ask| Next::Request(self.filter(ask)))
    }

    /// Requests made so far.
    pub const fn requests(&self) -> u32 {
        self.requests
    }

    /// Takes the answer to the last request; returns what it settles. Without one outstanding, nothing.
    pub fn on_page(&mut self, facts: &PageFacts, end: &PageEnd) -> Vec<Claim> {
        let Some(ask) = self.outstanding.take() else { return Vec::new() };
        let Filter { since, until, .. } = self.filter(ask);
        let page = PageView::read(facts, since.unwrap_or(self.floor), until, self.ceiling);
        if let Ask::Gap(Suspect { span: (low, top), .. }) = ask {
            // a hit is a hit however the page ended; nothing found clears nothing and costs nothing
            let hidden = page.low().and(Claim::over(low, top, Grade::Partial, GapReason::NotServed));
            return hidden.map(Claim::overriding).into_iter().collect();
        }
        if page.ignores_filter() {
            return self.stop(Grade::Partial, GapReason::IgnoresFilter);
        }
        match end {
            PageEnd::Eose { hint } => match ask {
                Ask::Above { low } => self.on_above(&page, low),
                _ => self.on_eose(ask, &page, *hint),
            },
            PageEnd::Oversize if !self.halved && self.limit > 1 => {
                self.halved = true;
                self.limit /= 2;
                self.plan = Some(ask);
                Vec::new()
            }
            other => self.stop(other.grade(), other.gap()),
        }
    }

    /// Accounts for what is unsettled: with the walk's own reason if it stopped or ran out of requests, else
    /// with the caller's for stopping it.
    pub fn finish(self, reason_if_stopped: GapReason) -> Vec<Claim> {
        let exhausted = self.plan.is_some() && self.requests >= self.max_requests;
        let (grade, reason) = match self.stopped {
            Some(stopped) => stopped,
            None if exhausted || reason_if_stopped == GapReason::None => (Grade::Unknown, GapReason::Stopped),
            None => (Grade::Unknown, reason_if_stopped),
        };
        Claim::over(self.floor, self.frontier, grade, reason).into_iter().collect()
    }

    fn choose(&mut self) -> Option<Ask> {
        if self.requests >= self.max_requests || self.stopped.is_some() {
            return None;
        }
        let last_chance = self.requests + 1 == self.max_requests;
        if (self.plan.is_none() || last_chance)
            && let Some(suspect) = self.suspect.take()
        {
            return Some(Ask::Gap(suspect));
        }
        self.plan.take()
    }

    fn filter(&self, ask: Ask) -> Filter {
        let (since, until, limit) = match ask {
            Ask::Page { until } => (self.floor, until, self.limit),
            Ask::Below { .. } => (self.floor, Some(self.frontier - 1), self.limit),
            Ask::Above { low } => (low + 1, Some(self.frontier), self.limit),
            Ask::Gap(Suspect { gap: (since, until), .. }) => (since, Some(until), 1),
        };
        Filter { since: Some(since), until, limit: Some(limit), ..Filter::default() }
    }

    fn on_eose(&mut self, ask: Ask, page: &PageView, hint: Option<EoseHint>) -> Vec<Claim> {
        if page.brings_new(&self.boundary) {
            self.learn_cut();
        }
        if page.frames > 0 {
            self.last_frames = Some(page.frames);
        }
        let Some(low) = page.low() else { return self.on_empty(ask, page, hint) };
        let mut claims = Vec::new();
        if let Ask::Below { flaw } = ask {
            let flaw = flaw.unwrap_or(GapReason::DenseSecond);
            claims.extend(Claim::over(self.frontier, self.frontier, Grade::Partial, flaw));
            self.frontier -= 1;
            self.boundary.clear();
        }
        if hint == Some(EoseHint::Finish) && !self.distrusts_hints && self.finish_top.is_none() {
            self.finish_top = Some(self.frontier);
        }
        if low == self.frontier {
            claims.extend(self.on_one_second(ask, page));
        } else {
            claims.extend(self.on_progress(page, low));
        }
        claims
    }

    /// Something new below the last page: that page was cut, and a relay that called it the end lied.
    fn learn_cut(&mut self) {
        self.smallest_cut = self.smallest_cut.into_iter().chain(self.last_frames).min();
        self.distrusts_hints |= self.finish_top.take().is_some();
    }

    fn may_be_full(&self, page: &PageView) -> bool {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        page.frames >= limit.min(self.smallest_cut.unwrap_or(SMALLEST_CAP))
    }

    fn on_empty(&mut self, ask: Ask, page: &PageView, hint: Option<EoseHint>) -> Vec<Claim> {
        if page.future > 0 {
            // the page went to events dated after the ceiling: ask again from the ceiling itself
            self.plan = Some(Ask::Page { until: Some(self.ceiling) });
            return Vec::new();
        }
        if hint == Some(EoseHint::More) {
            return self.stop(Grade::Partial, GapReason::NotServed);
        }
        match ask {
            Ask::Below { flaw } => self.drain(flaw),
            _ if !self.boundary.is_empty() => self.look_below(Some(GapReason::NotServed)),
            _ => {
                let trusted = hint == Some(EoseHint::Finish) && !self.distrusts_hints;
                self.finish_top = self.finish_top.or(trusted.then_some(self.frontier));
                self.drain(None)
            }
        }
    }

    /// Rule 3: the page holds only the frontier second. An open top shows neither how the relay reads
    /// `until` nor how full a page below the ceiling is, so there the second is asked once more.
    fn on_one_second(&mut self, ask: Ask, page: &PageView) -> Vec<Claim> {
        let ask_again = matches!(ask, Ask::Page { until: None });
        let ids = page.ids_at(self.frontier);
        let lacking = !self.boundary.is_subset(&ids);
        let repeats = ids.is_subset(&self.boundary);
        let flaw = (self.may_be_full(page) || lacking).then_some(GapReason::DenseSecond);
        self.boundary.extend(ids);
        if ask_again {
            self.plan = Some(Ask::Page { until: Some(self.frontier) });
            return Vec::new();
        }
        if repeats && flaw.is_none() && self.finish_top.is_some() {
            return self.drain(None);
        }
        self.look_below(flaw)
    }

    /// Nothing is below the floor, so there the look is spared.
    fn look_below(&mut self, flaw: Option<GapReason>) -> Vec<Claim> {
        if self.frontier <= self.floor {
            return self.drain(flaw);
        }
        self.plan = Some(Ask::Below { flaw });
        Vec::new()
    }

    /// Rules 1, 2 and 6: the page goes below the frontier second, down to `low`.
    fn on_progress(&mut self, page: &PageView, low: i64) -> Vec<Claim> {
        let mut claims = Vec::new();
        let lacking = !self.boundary.is_subset(&page.ids_at(self.frontier));
        if lacking {
            claims.extend(Claim::over(self.frontier, self.frontier, Grade::Partial, GapReason::NotServed));
            self.frontier -= 1;
            self.finish_top = self.finish_top.map(|finish| finish.min(self.frontier));
        }
        let inversions = page.inversions();
        if inversions > INVERSIONS_SPARE + page.frames / 100 {
            claims.extend(self.take_back());
        }
        self.boundary = page.ids_at(low);
        let mut ordered = inversions == 0 && self.order != Order::Broken;
        if ordered && !page.spans_one_second() {
            self.order = Order::Shown;
        } else if ordered && self.order == Order::Unshown && self.may_be_full(page) {
            if !lacking && low < self.frontier {
                self.plan = Some(Ask::Above { low });
                return claims;
            }
            ordered = false;
        }
        if ordered || self.finish_top.is_some() {
            self.suspect_gap(page, low);
        }
        claims.extend(self.settle_above(low, ordered));
        claims
    }

    /// Rule 1 for a page that could not show its order: whether anything lies above its only second.
    fn on_above(&mut self, page: &PageView, low: i64) -> Vec<Claim> {
        let mut claims = Vec::new();
        if page.low().is_some() {
            self.distrusts_hints |= self.finish_top.take().is_some();
            claims.extend(self.take_back());
        }
        claims.extend(self.settle_above(low, self.order != Order::Broken));
        claims
    }

    /// Moves the frontier to `low` and says what is above it.
    fn settle_above(&mut self, low: i64, ordered: bool) -> Option<Claim> {
        let top = std::mem::replace(&mut self.frontier, low);
        self.plan = Some(Ask::Page { until: Some(low) });
        if ordered {
            Claim::over(low + 1, top, Grade::Walked, GapReason::None)
        } else {
            Claim::over(low + 1, top, Grade::Partial, GapReason::Unordered)
        }
    }

    /// Order means nothing on this relay: what it proved above the frontier is proved no more.
    fn take_back(&mut self) -> Option<Claim> {
        self.order = Order::Broken;
        self.suspect = None;
        let proved = Claim::over(self.frontier + 1, self.ceiling, Grade::Partial, GapReason::Unordered);
        proved.map(Claim::overriding)
    }

    fn suspect_gap(&mut self, page: &PageView, low: i64) {
        let Some(gap) = page.widest_gap() else { return };
        let suspect = Suspect { gap, span: (low + 1, self.frontier) };
        if self.suspect.is_none_or(|known| known.width() < suspect.width()) {
            self.suspect = Some(suspect);
        }
    }

    /// Everything from the frontier down is settled; a flaw keeps the frontier second from proof.
    fn drain(&mut self, flaw: Option<GapReason>) -> Vec<Claim> {
        let (grade, top) = match self.finish_top {
            Some(top) => (Grade::Finished, top),
            None => (Grade::Walked, self.frontier),
        };
        let second = self.frontier;
        self.frontier = self.floor - 1;
        self.plan = None;
        let Some(flaw) = flaw else {
            return Claim::over(self.floor, top, grade, GapReason::None).into_iter().collect();
        };
        [
            Claim::over(second + 1, top, grade, GapReason::None),
            Claim::over(second, second, Grade::Partial, flaw),
            Claim::over(self.floor, second - 1, grade, GapReason::None),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn stop(&mut self, grade: Grade, reason: GapReason) -> Vec<Claim> {
        self.stopped = Some((grade, reason));
        Vec::new()
    }
}

#[cfg(test)]
mod model_relay;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
