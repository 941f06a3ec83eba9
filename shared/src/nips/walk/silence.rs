//! Rule 13: an empty page proves something only of a relay that still answers.
//!
//! Decides what such a relay is asked for, and what its silence takes back. Invariant: whatever rests on an empty page alone,
//! although the relay is known to have served something, is proved only once it was heard again.

use super::Walk;
use super::spec::{Ask, Claim};
use super::view::PageView;
use crate::models::{GapReason, Grade};
use crate::nips::PageEnd;

/// What a relay is listened for by.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// A stretch in which it served something; open where that was ahead of an open top.
    echo: Option<(i64, Option<i64>)>,
    /// What counts as proved because a page was empty, while nothing came since.
    rests: Option<(i64, i64)>,
}

impl Silence {
    /// Of a relay that served something between these seconds, when it was read before.
    pub(super) fn after(echo: Option<(i64, i64)>) -> Self {
        Self { echo: echo.map(|(since, until)| (since, Some(until))), rests: None }
    }

    /// First and last second of the request that it is listened for by.
    pub(super) fn window(&self) -> (i64, Option<i64>) {
        self.echo.unwrap_or((0, None))
    }

    /// Takes what a page brought, asked for up to `until`.
    pub(super) fn hear(&mut self, page: &PageView, until: Option<i64>) {
        if page.is_silent() {
            return;
        }
        self.rests = None;
        self.echo = match (page.low().zip(page.top()), page.beyond_low) {
            (Some((low, top)), _) => Some((low, Some(top))),
            (None, Some(beyond)) => Some((beyond.min(super::LATEST_SECOND), until)),
            (None, None) => self.echo,
        };
    }

    /// Notes what an empty page alone has proved.
    pub(super) const fn rest(&mut self, since: i64, until: i64) {
        self.rests = Some((since, until));
    }

    /// What so rests on silence.
    pub(super) const fn rests(&self) -> Option<(i64, i64)> {
        self.rests
    }

    /// Listens in the first second alone, in which something was served; whether that is less than before.
    fn listen_in_less(&mut self) -> bool {
        let Some((since, _)) = self.echo.filter(|(since, until)| *until != Some(*since)) else {
            return false;
        };
        self.echo = Some((since, Some(since)));
        true
    }

    /// Nothing rests on silence any more.
    pub(super) const fn settle(&mut self) {
        self.rests = None;
    }

    /// What so rests on silence is proved no more.
    pub(super) fn take_back(&mut self, grade: Grade, reason: GapReason) -> Option<Claim> {
        let (since, until) = self.rests.take()?;
        Claim::over(since, until, grade, reason).map(Claim::overriding)
    }
}

impl Walk {
    /// Drains the window, once a relay that is known to have served something is heard again.
    pub(super) fn listen(&mut self, flaw: Option<GapReason>) -> Vec<Claim> {
        if self.silence.echo.is_none() {
            return self.drain(flaw);
        }
        self.plan = Some(Ask::Echo { flaw });
        Vec::new()
    }

    /// Takes what came in answer.
    pub(super) fn on_echo(&mut self, page: &PageView, flaw: Option<GapReason>, end: &PageEnd) -> Vec<Claim> {
        if end.asks_for_less() && page.is_silent() && self.silence.listen_in_less() {
            self.plan = Some(Ask::Echo { flaw });
            return Vec::new();
        }
        if !end.is_eose() {
            return self.stop(end.grade(), end.gap());
        }
        if page.is_silent() { self.fell_silent() } else { self.drain(flaw) }
    }

    /// The relay serves nothing of what it has served.
    pub(super) fn fell_silent(&mut self) -> Vec<Claim> {
        let mut claims = self.stop(Grade::Partial, GapReason::NotServed);
        claims.extend(self.silence.take_back(Grade::Partial, GapReason::NotServed));
        claims
    }
}
