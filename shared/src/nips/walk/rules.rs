//! The rules of proof, as the planner's `mod.rs` numbers them: what a page that ended in EOSE settles.
//!
//! Knows nothing of requests beyond what to ask next. Invariant: the frontier only goes down, and what it
//! leaves behind is claimed.

use super::spec::{Ask, Claim, Order, Suspect};
use super::view::PageView;
use super::{INVERSIONS_SPARE, Walk};
use crate::models::{GapReason, Grade};
use crate::nips::{EoseHint, PageEnd};

impl Walk {
    pub(super) fn on_eose(&mut self, ask: Ask, page: &PageView, hint: Option<EoseHint>) -> Vec<Claim> {
        if page.brings_new(&self.boundary) {
            self.learn_cut();
        }
        if page.frames > 0 {
            self.last_frames = Some(page.frames);
        }
        if page.is_unclear() {
            return self.stop(Grade::Partial, GapReason::Protocol);
        }
        let Some(low) = page.low() else { return self.on_empty(ask, page, hint) };
        let mut claims = Vec::new();
        if let Ask::Below { flaw } = ask {
            let flaw = flaw.unwrap_or(GapReason::DenseSecond);
            let cut = Claim::over(self.frontier, self.frontier, Grade::Partial, flaw);
            claims.extend(cut.map(Claim::overriding));
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
        page.frames >= limit.min(self.smallest_cut.unwrap_or(self.page_shown))
    }

    fn on_empty(&mut self, ask: Ask, page: &PageView, hint: Option<EoseHint>) -> Vec<Claim> {
        if page.beyond > 0 {
            // the page went to events above the window: an open top is closed, a raised `until` now as meant
            let open = matches!(ask, Ask::Page { until: None });
            self.plan = Some(if open { Ask::Page { until: Some(self.ceiling) } } else { ask });
            return Vec::new();
        }
        if hint == Some(EoseHint::More) {
            return self.stop(Grade::Partial, GapReason::NotServed);
        }
        match ask {
            // The frontier second, which was served, has just come empty too.
            Ask::Below { flaw: Some(GapReason::NotServed) } => self.fell_silent(),
            Ask::Below { flaw: None } => self.drain(None),
            Ask::Below { flaw } => self.listen(flaw),
            _ if !self.boundary.is_empty() => self.look_below(Some(GapReason::NotServed)),
            _ => {
                let trusted = hint == Some(EoseHint::Finish) && !self.distrusts_hints;
                self.finish_top = self.finish_top.or(trusted.then_some(self.frontier));
                self.listen(None)
            }
        }
    }

    /// Rule 3: the page holds only the frontier second. With an open top, or events above the window, it does
    /// not show how full a page from the frontier is, so there the second is asked once more.
    fn on_one_second(&mut self, ask: Ask, page: &PageView) -> Vec<Claim> {
        let ask_again = matches!(ask, Ask::Page { until: None }) || page.beyond > 0;
        let ids = page.ids_at(self.frontier);
        let lacking = !self.boundary.is_subset(&ids);
        let repeats = ids.is_subset(&self.boundary);
        let unclear = (page.unplaced > 0).then_some(GapReason::Protocol);
        let flaw = (self.may_be_full(page) || lacking).then_some(GapReason::DenseSecond).or(unclear);
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
        if self.frontier <= self.low() {
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
        let inversions = page.inversions;
        if inversions > INVERSIONS_SPARE + page.frames / 100 {
            claims.extend(self.take_back());
        }
        self.stepped |= inversions > 0;
        self.boundary = page.ids_at(low);
        let mut ordered = inversions == 0 && self.order != Order::Broken;
        if ordered && !page.spans_one_second() {
            self.order = Order::Shown;
        } else if ordered && (self.order == Order::Unshown || self.stepped) && self.may_be_full(page) {
            if !lacking && low < self.frontier {
                self.plan = Some(Ask::Above { low });
                return claims;
            }
            ordered = false;
        }
        if page.unplaced > 0 && !(ordered && self.order == Order::Shown) {
            // what cannot be placed may stand above: this page shows no order by which it could not
            ordered = false;
            self.finish_top = None;
            self.distrusts_hints = true;
        }
        if ordered || self.finish_top.is_some() {
            self.suspect_gap(page, low);
        }
        claims.extend(self.settle_above(low, ordered));
        claims
    }

    /// Rule 1 for a page that could not show its order: whether anything lies above its only second.
    pub(super) fn on_above(&mut self, page: &PageView, low: i64) -> Vec<Claim> {
        let mut claims = Vec::new();
        if page.is_unclear() {
            return self.stop(Grade::Partial, GapReason::Protocol);
        }
        if page.low().is_none() && page.beyond > 0 {
            self.plan = Some(Ask::Above { low });
            return claims;
        }
        if page.low().is_some() {
            self.distrusts_hints |= self.finish_top.take().is_some();
            claims.extend(self.take_back());
        } else {
            self.silence.rest(low + 1, self.frontier);
        }
        claims.extend(self.settle_above(low, self.order != Order::Broken));
        claims
    }

    /// Rule 8: a hit is a hit however the page ended; without an EOSE nothing found clears nothing.
    pub(super) fn on_gap(&mut self, page: &PageView, suspect: Suspect, end: &PageEnd) -> Vec<Claim> {
        if page.low().is_none() {
            self.suspect = (end.is_eose() && page.beyond > 0).then_some(suspect);
            let (since, until) = suspect.gap;
            let open = Claim::over(since, until, Grade::Unknown, end.gap()).map(Claim::overriding);
            return open.filter(|_| !end.is_eose()).into_iter().collect();
        }
        if suspect.gap.1 >= self.fills_from {
            // It may have come since, and costs that page alone.
            let (since, until) = suspect.span;
            let late = Claim::over(since, until, Grade::Partial, GapReason::NotServed);
            return late.map(Claim::overriding).into_iter().collect();
        }
        self.catch(suspect.span)
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
        self.sampler.forget();
        let proved = Claim::over(self.frontier + 1, self.ceiling, Grade::Partial, GapReason::Unordered);
        proved.map(Claim::overriding)
    }

    fn suspect_gap(&mut self, page: &PageView, low: i64) {
        if self.caught.is_some() {
            return;
        }
        self.sampler.offer(page, (low + 1, self.frontier), self.fills_from);
        let Some(gap) = page.widest_gap() else { return };
        let suspect = Suspect { gap, span: (low + 1, self.frontier) };
        if self.suspect.is_none_or(|known| known.width() < suspect.width()) {
            self.suspect = Some(suspect);
        }
    }

    /// Everything from the frontier down is settled; a flaw keeps the frontier second from proof.
    pub(super) fn drain(&mut self, flaw: Option<GapReason>) -> Vec<Claim> {
        let (grade, top) = match self.finish_top {
            Some(top) => (Grade::Finished, top),
            None => (Grade::Walked, self.frontier),
        };
        let (second, low) = (self.frontier, self.low());
        self.frontier = low - 1;
        self.plan = None;
        self.go_below();
        let Some(flaw) = flaw else {
            return Claim::over(low, top, grade, GapReason::None).into_iter().collect();
        };
        [
            Claim::over(second + 1, top, grade, GapReason::None),
            Claim::over(second, second, Grade::Partial, flaw),
            Claim::over(low, second - 1, grade, GapReason::None),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    pub(super) fn stop(&mut self, grade: Grade, reason: GapReason) -> Vec<Claim> {
        self.stopped = Some((grade, reason));
        Vec::new()
    }
}
