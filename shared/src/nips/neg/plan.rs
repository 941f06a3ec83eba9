//! The planner of a reconciliation (NIP-77): which windows to compare, what to fetch of them, what that proves.
//!
//! Owns no socket, no clock and no database: [`Reconcile::next`] says what to do, one of the `on_` functions takes
//! what came of it, [`Reconcile::finish`] says what is left. Invariants: no claim without a comparison that both
//! probes confirmed; every window is below the one before; what is not compared is left to the caller by name.
//!
//! # Rules of proof
//! 1. **Windows** go downward from the ceiling. One that holds more than either side compares at once is cut; one
//!    second of that kind is *partial/dense_second*, and paged by the caller ([`Reconcile::take_aside`]). A relay that
//!    refuses one second before it compared anything, or [`REFUSED_MAX`] in a row, refuses for another reason than it
//!    says: the rest is left to paging.
//! 2. **Ids that only the relay has** are looked up in the archive first: those held become claimed observations
//!    without download. The others are fetched by id, twice at most, the second time in handfuls; what never comes
//!    is *unserved*, as is one that is more than we take by itself. Of that one in a hundred is borne, or ten if as
//!    many came. More, and the comparison is worth nothing: the rest is left to paging, and nothing is *gone*.
//! 3. **Truncation.** Some relays compare only the newest of a window, and say nothing. One event more asked for from
//!    the oldest second of the relay's set down shows it: what lies above that second is reconciled, and the next
//!    window begins there. No progress that way leaves the rest to paging.
//! 4. **Liars.** One event asked for in the widest gap of the relay's set, or one more than it has in a stretch of it drawn at
//!    random (ten of its gaps), shows that the comparison leaves things out: nothing is claimed, and paging takes over. So does an answer to a probe that lacks what the set has there, in either
//!    reading of `until`, or that brings what was not asked for. A set said to be empty is what a relay has, too, whose store
//!    does not answer, and so is the empty page that bears it out. So one event is asked for anywhere in such a window, and
//!    one where a probe above was last served some. Where none was, and anything is known of the relay
//!    ([`ReconcileSpec::is_known`]) or held of the window, paging takes over, whose rules listen for it.
//! 5. **The top.** Others compare only the oldest of a window, or what they had some time ago. One event asked for above
//!    the newest of the relay's set shows it: from that second up the window is paged by itself
//!    ([`Reconcile::take_aside`]), and below it is reconciled.
//! 6. **Ids that only we have** are *gone*: served once and no more. Reported only for what was reconciled, and only
//!    once the relay was asked for some of them by id and handed out none; if it does, paging takes over.
//! 7. **Any other end** claims nothing, and leaves the rest to paging, which says what is wrong; but for a limit of our rate.
//!
//! # Bound
//! At most `max_requests` comparisons and pages, and [`TOO_MUCH_MAX`] pages that are more than we take. An honest relay
//! that compares `c` ids at once and hands out pages of `p`: `2·n/c` comparisons and `n/p` pages for `n` ids, four
//! probes a window, and one page where something is gone.

use std::hash::{BuildHasher as _, RandomState};

use super::compare::NegEnd;
use super::probe::range;
use super::spec::{Job, Left, ReconcileSpec, Rest, Settlement, Stage};
use super::window::{SECOND_TRY, Window};
use crate::models::{EventId, GapReason, Grade};
use crate::nips::filter::Filter;
use crate::nips::page::{PageEnd, PageFacts};
use crate::nips::refusal::CloseClass;
use crate::nips::session::Cut;
use crate::nips::walk::{Claim, LATEST_SECOND, SMALLEST_CAP};

/// Seconds in a row that may be refused as too many.
pub(super) const REFUSED_MAX: u32 = 3;
/// Pages of one reconciliation that may be more than we take: each costs a connection.
const TOO_MUCH_MAX: u32 = 100;

/// A reconciliation under way.
#[derive(Debug)]
pub struct Reconcile {
    pub(super) floor: i64,
    /// `[floor, frontier]` is unsettled.
    pub(super) frontier: i64,
    pub(super) max_requests: u32,
    pub(super) requests: u32,
    pub(super) ids_per_page: usize,
    /// The same, for as long as pages of so many are more than we take.
    pub(super) ids_now: usize,
    pub(super) too_much: u32,
    /// Whether the relay compared anything, and how many single seconds it refused since.
    pub(super) has_compared: bool,
    pub(super) refused: u32,
    /// A stretch to be paged.
    pub(super) aside: Option<(i64, i64)>,
    pub(super) max_items: usize,
    /// Pages of so many events are not cut.
    pub(super) page_shown: usize,
    /// The relay takes `until` as exclusive, as far as that was seen.
    pub(super) exclusive: bool,
    /// It is known to have served something.
    pub(super) is_known: bool,
    /// Where it last served something to a probe.
    pub(super) heard: Option<i64>,
    /// Seconds per window, once the relay has shown that the whole is too much.
    pub(super) width: Option<i64>,
    pub(super) window: Window,
    pub(super) stage: Stage,
    pub(super) fetching: Option<Vec<EventId>>,
    pub(super) left: Option<Left>,
    /// By which stretches are drawn; not to be foreseen by the relay.
    pub(super) draw: u64,
}

impl Reconcile {
    /// Plans a reconciliation. An empty stretch (`floor > ceiling`) is done at once.
    pub fn new(spec: ReconcileSpec) -> Self {
        let mut planner = Self {
            floor: spec.floor.max(0),
            frontier: spec.ceiling.min(LATEST_SECOND - 1),
            max_requests: spec.max_requests,
            requests: 0,
            ids_per_page: spec.ids_per_page.max(1),
            ids_now: spec.ids_per_page.max(1),
            too_much: 0,
            has_compared: false,
            refused: 0,
            aside: None,
            max_items: spec.max_items.max(1),
            page_shown: spec.page_shown.max(SMALLEST_CAP),
            exclusive: spec.until_exclusive,
            is_known: spec.is_known,
            heard: None,
            width: None,
            window: Window::default(),
            stage: Stage::Items,
            fetching: None,
            left: None,
            draw: RandomState::new().hash_one(spec.ceiling),
        };
        planner.open_window();
        planner
    }

    /// The same, with stretches drawn by this seed.
    #[must_use]
    pub fn sampling(self, seed: u64) -> Self {
        Self { draw: seed, ..self }
    }

    /// What to do now; the same again until it is reported.
    #[expect(clippy::should_implement_trait, reason = "it is driven by what comes back, it is no iterator")]
    pub fn next(&mut self) -> Job {
        let (since, until) = (self.window.since, self.window.until);
        match self.stage {
            Stage::Over => Job::Done,
            Stage::Items => Job::Items { since, until, most: self.max_items.saturating_add(1) },
            Stage::Lookup => Job::Lookup { since, until },
            Stage::Compare | Stage::Fetch | Stage::Probe(_) | Stage::Confirm
                if self.requests >= self.max_requests =>
            {
                self.leave(Left::Stopped(Grade::Unknown, GapReason::Stopped));
                Job::Done
            }
            Stage::Compare => Job::Compare(range(since, until, self.exclusive)),
            Stage::Fetch | Stage::Confirm => {
                let ids = self.fetching.clone().unwrap_or_default();
                let limit = u32::try_from(ids.len()).ok();
                Job::Page(Filter { ids, limit, ..Filter::default() })
            }
            Stage::Probe(probe) => Job::Page(self.asking(probe)),
        }
    }

    /// Ours of the window, for [`Job::Compare`].
    pub fn items(&self) -> &[(i64, EventId)] {
        &self.window.items
    }

    /// The relay's ids that we have not seen there, for [`Job::Lookup`].
    pub fn wanted(&self) -> Vec<EventId> {
        self.window.need.iter().copied().collect()
    }

    /// Ids that are kept of the window: ours, and those of the relay that are still wanted.
    pub fn ids(&self) -> usize {
        self.window.items.len() + self.window.need.len()
    }

    /// A stretch (both ends included) that is not compared, and is to be paged before anything else is done.
    pub fn take_aside(&mut self) -> Option<(i64, i64)> {
        self.aside.take()
    }

    /// Comparisons and pages so far.
    pub const fn requests(&self) -> u32 {
        self.requests
    }

    /// Takes our ids of the window, newest first; one more than a comparison takes says that there are more.
    pub fn on_items(&mut self, mut items: Vec<(i64, EventId)>) -> Settlement {
        if self.stage != Stage::Items {
            return Settlement::default();
        }
        self.stage = Stage::Compare;
        if items.len() > self.max_items {
            let cut = items[self.max_items].0;
            items.retain(|(second, _)| *second > cut);
            if cut >= self.window.until {
                self.refused += 1;
                if self.refused >= REFUSED_MAX {
                    self.leave(Left::Page);
                    return Settlement::default();
                }
                self.aside = Some((self.window.until, self.window.until));
                return self.dense();
            }
            self.window.since = cut + 1;
        }
        self.window.items = items;
        Settlement::default()
    }

    /// Takes the end of a comparison.
    pub fn on_compared(&mut self, end: NegEnd) -> Settlement {
        if self.stage != Stage::Compare {
            return Settlement::default();
        }
        self.requests += 1;
        // A relay that sets its messages no limit may answer with more than we take: less time, smaller messages.
        let end = if end == NegEnd::Cut(Cut::Oversize) { NegEnd::TooMany { most: None } } else { end };
        match end {
            NegEnd::Compared { have, need } => {
                (self.has_compared, self.refused) = (true, 0);
                self.window.compared(have, need);
                if self.window.need.is_empty() {
                    return self.probe();
                }
                self.stage = Stage::Lookup;
            }
            NegEnd::TooMany { .. } if self.window.since == self.window.until => {
                self.refused += 1;
                if !self.has_compared || self.refused >= REFUSED_MAX {
                    self.leave(Left::Page);
                    return Settlement::default();
                }
                self.aside = Some((self.window.until, self.window.until));
                return self.dense();
            }
            NegEnd::TooMany { most } => {
                let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
                self.max_items = self.max_items.min(most).max(1);
                let width = (self.window.until - self.window.since + 1) / 2;
                self.width = Some(width.max(1));
                self.window.since = self.window.until - width.max(1) + 1;
                let since = self.window.since;
                self.window.items.retain(|(second, _)| *second >= since);
            }
            NegEnd::Unsupported | NegEnd::Silent => self.leave(Left::Unsupported),
            NegEnd::Refused { class: CloseClass::RateLimited, .. } => {
                self.leave(Left::Stopped(Grade::Unknown, GapReason::RateLimited));
            }
            // Who hangs up on a comparison may serve pages; paging says so if not.
            NegEnd::Refused { .. } | NegEnd::Timeout | NegEnd::Violation | NegEnd::Cut(_) => {
                self.leave(Left::Page);
            }
        }
        Settlement::default()
    }

    /// Takes which wanted ids are archived, with their times.
    pub fn on_known(&mut self, known: &[(EventId, i64)]) -> Settlement {
        if self.stage != Stage::Lookup {
            return Settlement::default();
        }
        let claimed = self.window.known(known);
        self.window.begin_fetching();
        let settled = self.fetch_next();
        Settlement { claimed, ..settled }
    }

    /// Takes the answer to a page, without what of it does not verify.
    pub fn on_page(&mut self, facts: &PageFacts, end: &PageEnd) -> Settlement {
        match self.stage {
            Stage::Fetch => {
                self.requests += 1;
                self.on_fetched(facts, end)
            }
            Stage::Probe(probe) => {
                self.requests += 1;
                self.on_probed(probe, facts, end)
            }
            Stage::Confirm => {
                self.requests += 1;
                self.on_confirmed(facts, end)
            }
            _ => Settlement::default(),
        }
    }

    /// What is left.
    pub fn finish(self) -> Rest {
        let (floor, ceiling) = (self.floor, self.frontier);
        match self.left {
            _ if floor > ceiling => Rest::None,
            Some(Left::Unsupported) => Rest::Unsupported { floor, ceiling },
            Some(Left::Page) => Rest::Page { floor, ceiling },
            Some(Left::Stopped(grade, reason)) => Rest::Stopped { floor, ceiling, grade, reason },
            None => Rest::Stopped { floor, ceiling, grade: Grade::Unknown, reason: GapReason::Stopped },
        }
    }

    pub(super) fn open_window(&mut self) {
        if self.floor > self.frontier {
            self.stage = Stage::Over;
            return;
        }
        let since = self.width.map_or(self.floor, |width| (self.frontier - width + 1).max(self.floor));
        self.window = Window::new(since, self.frontier);
        self.stage = Stage::Items;
    }

    pub(super) fn leave(&mut self, left: Left) {
        self.left = Some(left);
        self.stage = Stage::Over;
    }

    /// Nothing is claimed; what was asked for in vain is told.
    pub(super) fn leave_to_paging(&mut self) -> Settlement {
        self.leave(Left::Page);
        Settlement { unserved: std::mem::take(&mut self.window.unserved), ..Settlement::default() }
    }

    /// One second holds more than can be compared.
    fn dense(&mut self) -> Settlement {
        let second = self.window.until;
        self.frontier = second - 1;
        self.open_window();
        let claim = Claim::over(second, second, Grade::Partial, GapReason::DenseSecond);
        Settlement { claims: claim.into_iter().collect(), ..Settlement::default() }
    }

    fn fetch_next(&mut self) -> Settlement {
        self.fetching = self.window.next_ids(self.ids_per_page.min(self.ids_now));
        if self.fetching.is_none() {
            return self.probe();
        }
        self.stage = Stage::Fetch;
        Settlement::default()
    }

    fn on_fetched(&mut self, facts: &PageFacts, end: &PageEnd) -> Settlement {
        let (asked, came) = (self.window.asked(), facts.seen.len());
        let half = (asked / 2).max(1);
        match end {
            PageEnd::Eose { .. } => {
                self.page_shown = self.page_shown.max(came);
                self.ids_now = self.ids_now.saturating_mul(2).min(self.ids_per_page);
                // Fewer than asked for, yet some: perhaps all that one page holds. Asked for less, it shows.
                let cut =
                    !self.window.asks_again() && came > 0 && came < asked && self.ids_per_page > SECOND_TRY;
                self.window.fetched(&facts.seen, cut);
                if cut {
                    self.ids_per_page = came.min(self.ids_per_page * 3 / 4).max(SECOND_TRY);
                }
                self.fetch_next()
            }
            PageEnd::Closed { class: CloseClass::InvalidRequest, .. } if half < asked => {
                self.ids_per_page = half;
                self.window.put_back(&facts.seen);
                self.fetch_next()
            }
            // What came is settled; the others are asked for in less, and one that is too much by itself not again.
            end if end.is_too_much()
                && self.too_much < TOO_MUCH_MAX
                && (asked > 1 || *end != PageEnd::TooMany) =>
            {
                self.too_much += 1;
                self.ids_now = half;
                if asked > 1 {
                    self.window.put_back(&facts.seen);
                } else {
                    self.window.give_up(&facts.seen);
                }
                self.fetch_next()
            }
            other => self.stop_or_page(other),
        }
    }

    /// The window is compared from `since` on, and the next one begins below.
    pub(super) fn settle(&mut self, since: i64) -> Settlement {
        let until = self.window.until;
        if since > until {
            // All that was compared lies in the newest second: nothing to go on by.
            self.leave(Left::Page);
            return Settlement::default();
        }
        if self.window.is_mostly_hollow() {
            return self.leave_to_paging();
        }
        let settlement = Settlement {
            claims: Claim::over(since, until, Grade::Reconciled, GapReason::None).into_iter().collect(),
            claimed: Vec::new(),
            gone: self.window.gone(since),
            unserved: std::mem::take(&mut self.window.unserved),
        };
        if self.window.size() < self.max_items / 4 {
            self.width = self.width.map(|width| width.saturating_mul(2));
        }
        self.frontier = since - 1;
        self.open_window();
        settlement
    }
}
