//! What a reconciliation is given, asks and tells.

use super::probe::Probe;
use crate::models::{EventId, GapReason, Grade};
use crate::nips::filter::Filter;
use crate::nips::walk::Claim;

/// What to reconcile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReconcileSpec {
    /// Oldest second (Unix, inclusive); raised to 0.
    pub floor: i64,
    /// Newest second (Unix, inclusive), usually now.
    pub ceiling: i64,
    /// Most comparisons and pages.
    pub max_requests: u32,
    /// Ids asked for per page; at least 1.
    pub ids_per_page: usize,
    /// Ids of ours per comparison; at least 1.
    pub max_items: usize,
    /// Events of the largest page this relay is known to have served; 0 where none is.
    pub page_shown: usize,
    /// Whether this relay is known to take `until` as exclusive.
    pub until_exclusive: bool,
    /// Whether this relay is known to have served anything, at any time.
    pub is_known: bool,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// Read our ids on this relay in `[since, until]`, newest first, at most `most`: [`super::Reconcile::on_items`].
    Items { since: i64, until: i64, most: usize },
    /// Compare [`super::Reconcile::items`] with what the relay has: [`super::Reconcile::on_compared`].
    Compare(Filter),
    /// Look up which of [`super::Reconcile::wanted`] are archived, in `[since, until]`: [`super::Reconcile::on_known`].
    Lookup { since: i64, until: i64 },
    /// Ask for a page: [`super::Reconcile::on_page`].
    Page(Filter),
    /// Nothing more: [`super::Reconcile::finish`].
    Done,
}

/// What is now known, to be stored together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settlement {
    /// What the window is worth.
    pub claims: Vec<Claim>,
    /// Ids with their time that are archived, and that the relay says it has.
    pub claimed: Vec<(EventId, i64)>,
    /// Ids with their time that we saw there and the relay has no more.
    pub gone: Vec<(EventId, i64)>,
    /// Ids that the relay says it has and does not hand out.
    pub unserved: Vec<EventId>,
}

/// What is left when the planner is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Nothing.
    None,
    /// The relay does not reconcile: page `[floor, ceiling]`, and do not ask it again soon.
    Unsupported { floor: i64, ceiling: i64 },
    /// Reconciling it leads nowhere this time: page `[floor, ceiling]`.
    Page { floor: i64, ceiling: i64 },
    /// The connection, or the budget, ended: `[floor, ceiling]` is not settled.
    Stopped { floor: i64, ceiling: i64, grade: Grade, reason: GapReason },
}

impl Rest {
    /// The same stretch, given up for this.
    #[must_use]
    pub const fn stopped(self, (grade, reason): (Grade, GapReason)) -> Self {
        match self {
            Self::None => Self::None,
            Self::Unsupported { floor, ceiling }
            | Self::Page { floor, ceiling }
            | Self::Stopped { floor, ceiling, .. } => Self::Stopped { floor, ceiling, grade, reason },
        }
    }
}

/// What is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Items,
    Compare,
    Lookup,
    Fetch,
    /// One event more than the set has there shows that the set is not whole.
    Probe(Probe),
    /// Some of what is gone is asked for.
    Confirm,
    Over,
}

/// Why it is over before everything is settled.
#[derive(Debug, Clone, Copy)]
pub(super) enum Left {
    Unsupported,
    Page,
    Stopped(Grade, GapReason),
}
