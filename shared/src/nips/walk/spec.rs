//! What a walk is given, asks and tells.

use crate::models::{GapReason, Grade};
use crate::nips::Filter;

/// What to walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalkSpec {
    /// Oldest second (Unix, inclusive); raised to 0.
    pub floor: i64,
    /// Newest second (Unix, inclusive), usually now; lowered below [`super::LATEST_SECOND`].
    pub ceiling: i64,
    /// Whether the first REQ has no `until`, so that events dated after the ceiling arrive too.
    pub open_top: bool,
    /// Events asked for per page; at least 1.
    pub limit: u32,
    /// Events of the largest page this relay is known to have served to such a request; 0 where none is.
    pub page_shown: usize,
    /// Most requests of the walk.
    pub max_requests: u32,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Ask this (the caller adds what its filter class restricts) and report by [`super::Walk::on_page`].
    Request(Filter),
    /// Nothing more to ask: call [`super::Walk::finish`].
    Done,
}

/// What is now known of `[since, until]`, to be stored with the events of the page that settled it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// First second (Unix, inclusive).
    pub since: i64,
    /// Last second (Unix, inclusive).
    pub until: i64,
    /// What it is worth.
    pub grade: Grade,
    /// Why it is worth no more; `None` for a proof.
    pub reason: GapReason,
    /// The claim takes back a proof, of this walk or an earlier one, and is written over it.
    pub overrides_proof: bool,
}

impl Claim {
    /// A claim, unless its stretch is empty.
    pub(in crate::nips) fn over(since: i64, until: i64, grade: Grade, reason: GapReason) -> Option<Self> {
        (since <= until).then_some(Self { since, until, grade, reason, overrides_proof: false })
    }

    /// What of it lies within these seconds.
    pub(super) fn inside(&self, (since, until): (i64, i64)) -> Option<Self> {
        let (since, until) = (self.since.max(since), self.until.min(until));
        (since <= until).then_some(Self { since, until, ..*self })
    }

    /// What of it lies outside these seconds.
    pub(super) fn outside(&self, (since, until): (i64, i64)) -> impl Iterator<Item = Self> + use<> {
        let below = self.inside((i64::MIN, since.saturating_sub(1)));
        let above = self.inside((until.saturating_add(1), i64::MAX));
        below.into_iter().chain(above)
    }

    /// The same claim, to be written over a proof.
    pub(super) fn overriding(self) -> Self {
        Self { overrides_proof: true, ..self }
    }
}

/// Whether the relay answers newest first, as far as its pages tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// No page of several seconds came yet.
    Unshown,
    /// A page of several seconds came newest first.
    Shown,
    /// Gross disorder: order proves nothing any more.
    Broken,
}

/// How the relay reads `until`, as far as its pages tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// No page was asked from a second known to have events.
    Untested,
    /// The test brought none of its events: perhaps exclusive, so sent raised by one.
    Raised,
    /// An event of the very second `until` was served: sent as meant.
    Inclusive,
}

/// One request, and why it is made.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ask {
    /// The page from the frontier down; `None` is the open top.
    Page { until: Option<i64> },
    /// Everything below the frontier second; `flaw` is what keeps that second from proof even so.
    Below { flaw: Option<GapReason> },
    /// Everything between the only second of a page and the frontier.
    Above { low: i64 },
    /// One event strictly inside a gap that a page showed.
    Gap(Suspect),
    /// A stretch of a page once more, with room for one event more than it had there.
    Sample,
    /// Events by their ids, which what was proved lacks.
    Known,
    /// Something that the relay is known to serve, before an empty page is believed; `flaw` as below.
    Echo { flaw: Option<GapReason> },
}

/// A gap to probe, and the span that the page around it proved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Suspect {
    pub(super) gap: (i64, i64),
    pub(super) span: (i64, i64),
}

impl Suspect {
    pub(super) const fn width(&self) -> i64 {
        self.gap.1 - self.gap.0
    }
}
