//! The sync planner of one window of one relay: pages downward from `ceiling` to `floor` and says of every
//! second what is proved and what is not.
//!
//! Owns no socket and no clock, keeps no event: [`Walk::next`] says what to ask, [`Walk::on_page`] takes
//! what came and returns what that settles, [`Walk::finish`] accounts for the rest. Invariants: every second
//! of `[floor, ceiling]` ends in some [`Claim`]; nothing but an EOSE proves; no claim exceeds the ceiling,
//! whatever dates a relay invents.
//!
//! # Rules of proof
//! `f` is the frontier: `[floor, f]` is unsettled. A page asks for `[floor, f]`, both ends inclusive, so that
//! the second where the last page broke off is asked again; only the first page may have an open top. How an
//! `until` is sent is rule 10; below, it is written as meant.
//!
//! 1. **Order.** A page that ended in EOSE, newest first, with oldest second `o < f`: `[o+1, f]` is *walked*,
//!    the frontier moves to `o`. A short page proves no more than that. A page of one second shows no order:
//!    if it may be full (rule 3) and no page showed order before, or one stepped forward in time, `[o+1, f]` is asked
//!    first, and must be empty
//!    (where rule 6 speaks against the relay too, it is *partial/unordered* unasked).
//! 2. **Disorder.** The same page out of order: `[o+1, f]` is *partial/unordered*. Gross disorder (more than
//!    [`INVERSIONS_SPARE`] + 1 % of the page) shows that order means nothing here: all above is taken back
//!    ([`Claim::overrides_proof`]), and order proves nothing for the rest of the walk.
//! 3. **One second.** A page that holds only second `f` is no progress. The next request asks below it,
//!    `until: f-1`. Events there show that the page was cut inside `f`: `[f, f]` is *partial/dense_second*, with
//!    [`Claim::overrides_proof`], since what proved it before was a page that was not cut, and the walk goes on
//!    older. Nothing there: `f` is whole unless the page may have been full: it has as many frames as were asked
//!    for, or as the smallest page of this walk shown to be cut (a page is shown to be cut when the next one
//!    brings something older or new), or, when none was, as the largest page that the relay is known to have
//!    served ([`WalkSpec::page_shown`]), at least [`SMALLEST_CAP`].
//! 4. **Drained.** An empty page and EOSE below the oldest event seen: `[floor, f]` is *walked*, where rule 13 does not speak
//!    against it. So is a window that never showed an event. An empty page with the hint `more` is *partial/not_served*.
//! 5. **Finish.** The hint `finish` is a claim: the next page, asked as ever, must bring nothing new and not be
//!    full (rule 3). Then everything from the hint's own window down is *finished*; if anything new turns up,
//!    hints are ignored from there on. An empty page with the hint needs no second.
//! 6. **The frontier second is served again.** If a page from `f` lacks an event of `f` that was delivered
//!    before, and rule 10 does not explain it, the archive moves: `[f, f]` is *partial/not_served*.
//! 7. **Foreign frames.** More than [`MISMATCH_MAX`] frames that were not asked for, or nothing else: the
//!    rest is *partial/ignores_filter*, and the walk stops.
//! 8. **Liars.** Once per walk, at its end (or in its last allowed request), the widest gap between two
//!    neighbouring events of a page proved by order or by `finish` is asked alone. An event in it was hidden (rule 14
//!    says what follows). Where the walk ends
//!    before that, or there is no EOSE, the gap is *unknown*, so that the next walk asks it alone; the page is not read again.
//!    What the page proves is held back until then, as is what rests on an empty page above (rule 13; `withheld.rs`).
//! 9. **Any other end** settles nothing and stops the walk; the rest is *refused* or *unknown* with the
//!    end's reason. But for a page that was more than we take, took too long, or is too broad by the relay's own words: it is
//!    asked for again in less time, above what came last, or half of it, down to one second. One that is too much by itself is *partial*
//!    with the end's reason, and the walk goes on older; beyond eight of them in a row 2, 4, 8 seconds and so on are
//!    passed over at once, up to nine minutes. More than that, three before any page ended well (or two pages in a row that
//!    took too long, before that; or five that nothing more came of in time, at any point), or more than [`FAILURES_MAX`] such pages stop the walk like any other end (`narrow.rs`). In a window so shortened these rules
//!    hold with its lowest second for the floor.
//! 10. **Exclusive `until`.** NIP-01 has `until` inclusive; some relay programs serve `created_at < until`. An
//!     event of the very second `until` shows that it is inclusive: from there on it is sent as meant. The
//!     first page whose frontier second has known events is the test. If it brings none of that second, it
//!     settles nothing and is asked once more, raised by one, as is every `until` from there on; so are those
//!     before the test, the ceiling's first of all. A raised `until` covers the window in either reading; what
//!     comes from the second above settles nothing, beside its place in the order, and is not foreign (rule
//!     7). A page of nothing else is asked again as meant: it has shown that `until` is inclusive.
//! 11. **What cannot be read** took its place in the page. Where its time can be read, the page has an entry there as
//!     of any event; where it cannot, the frame counts for fullness (rule 3), and a page of nothing else is no empty
//!     one: the rest is *partial/protocol*, and the walk stops. Where such events lie is the caller's to take out of
//!     what is proved, for good ([`PageFacts::doubts`]).
//! 12. **Witnesses.** The caller may name events that the relay is known to have had ([`Walk::knowing`]). One that lies in
//!     what a page would prove, and did not come, contradicts it: that claim is held back, and at the end all such are asked
//!     for by id, in one request. If any comes, or no EOSE, what was held back is *partial/not_served*, with
//!     [`Claim::overrides_proof`]. If none comes, they are gone ([`Walk::take_gone`]), and it is proved. A relay that brought
//!     nothing in the whole walk is believed that only where its silence is no news; the first time it is a gap like the
//!     other. A walk that is stopped before it can ask leaves these stretches *unknown*.
//! 13. **Silence.** A relay that stops serving goes on to say EOSE. Where the frontier second, which was served before, comes
//!     empty, and all below it too, the rest is *partial/not_served*, and the walk stops. Where an empty page is believed
//!     although the page before may have been full, or although the relay served something in this walk and nothing since
//!     the window was narrowed, or, with nothing served in the walk, although the caller knows a stretch outside where it
//!     did ([`Walk::listening`]), one event is asked for where it was served last: if none comes, the rest is
//!     *partial/not_served* like that. What an empty page above (rule 1) proved stands once anything comes after it.
//! 14. **Left out in order.** Of each run of 25 pages, seven times at most, and of the pages since at the end, one that
//!     order or `finish` proved is drawn by [`Walk::sampling`]'s seed, and a quarter of its gaps, from ten to fifty, is asked again
//!     with room for one event more than came. One that did not come before was left out. Then, as where rule 8 finds
//!     one, nothing that this walk proved is proved: all that is *partial/not_served*, with [`Claim::overrides_proof`], as is what it
//!     reads from there on. It goes back to the top of the page that lied, once, and down from there, where pages more
//!     than half as full as its fullest are asked for again in less time (`caught.rs`), so that what was left out comes. What
//!     was not read again by the end stays that gap. A stretch that was drawn and not asked when the walk ends, or of which no
//!     EOSE came, is *unknown*, so that the next walk reads it alone.
//!
//! # Bound
//! Requests ≤ `max_requests`, and without pages that were too much (rule 9) ≤ `3·s + 8`, where `s` is the number of
//! distinct seconds in which the relay delivered anything: each second is the frontier once, and costs a page, a
//! look below and (while no order is shown) a look above; beside these, the first page, one more from the ceiling,
//! one probe, a sample, one request by ids, one that listens, one failed test of `until` and one page asked again as meant. With `t` ≤
//! [`FAILURES_MAX`] pages that were too much, ≤ `5·s + 100·t + 8`: after each, windows double until they reach the floor, at
//! most 32 times, and an empty one costs two requests, or three where `until` is raised. A relay that answers newest first in
//! pages of `c`, never more than `k < c` events in one second, takes ≤ `1.04 · events / (c - k) + 9`, however it reads
//! `until`. A relay that was caught (rule 14) costs ≤ `8·s + 100·t + 16`, where pages that were too full count in `t`, which are 500 at
//! most. One that takes no range longer than `w` seconds costs three requests more for each `w / 4` seconds.

mod asking;
mod caught;
mod narrow;
mod rules;
mod sample;
mod silence;
mod spec;
mod view;
mod withheld;
mod witness;

use std::collections::HashSet;

use self::caught::Proved;
use self::narrow::Narrow;
use self::sample::Sampler;
use self::silence::Silence;
use self::spec::{Ask, Order, Reading, Suspect};
use self::view::PageView;
use self::withheld::Withheld;
use self::witness::Witnesses;
use super::page::{PageEnd, PageFacts};
use crate::models::{EventId, GapReason, Grade};

pub use self::narrow::FAILURES_MAX;
pub use self::spec::{Claim, Next, WalkSpec};
pub use self::view::MISMATCH_MAX;

/// The latest second ever sent: relay programs hold times in 32 bits (khatru) and misread others. The latest
/// ever claimed is the one before it, so that its `until` can be raised (rule 10).
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
    page_shown: usize,
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
    /// Some page stepped forward in time.
    stepped: bool,
    reading: Reading,
    suspect: Option<Suspect>,
    narrow: Narrow,
    stopped: Option<(Grade, GapReason)>,
    withheld: Withheld,
    witnesses: Witnesses,
    silence: Silence,
    sampler: Sampler,
    /// From this second on events may still come late, which is no lie.
    fills_from: i64,
    /// What this walk has proved so far.
    proved: Proved,
    /// The frontier where the relay was found to leave events out in order (rule 14).
    caught: Option<i64>,
    /// Frames of the largest page.
    largest: usize,
    /// Only what checks a proof is still asked.
    winds_up: bool,
}

impl Walk {
    /// Plans a walk. An empty window (`floor > ceiling`) is done at once and claims nothing.
    pub fn new(spec: WalkSpec) -> Self {
        let floor = spec.floor.max(0);
        let ceiling = spec.ceiling.min(LATEST_SECOND - 1);
        let first = Ask::Page { until: (!spec.open_top).then_some(ceiling) };
        Self {
            floor,
            ceiling,
            limit: spec.limit.max(1),
            page_shown: spec.page_shown.max(SMALLEST_CAP),
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
            stepped: false,
            reading: Reading::Untested,
            suspect: None,
            narrow: Narrow::default(),
            stopped: None,
            withheld: Withheld::default(),
            witnesses: Witnesses::default(),
            silence: Silence::default(),
            sampler: Sampler::default(),
            fills_from: i64::MAX,
            proved: Proved::default(),
            caught: None,
            largest: 0,
            winds_up: false,
        }
    }

    /// The same walk, over a relay known to have had these events (time and id; few, and the oldest of the window among
    /// them). `silence_is_known`: that it brings nothing at all would be no news.
    #[must_use]
    pub fn knowing(self, events: Vec<(i64, EventId)>, silence_is_known: bool) -> Self {
        Self { witnesses: Witnesses::new(events, silence_is_known), ..self }
    }

    /// The same walk, over a relay known to have served something between these seconds, outside the window: an empty page
    /// is believed only once it was heard there.
    #[must_use]
    pub fn listening(self, echo: Option<(i64, i64)>) -> Self {
        Self { silence: Silence::after(echo), ..self }
    }

    /// The same walk, with a seed by which pages are sampled (rule 14): one that the relay cannot foresee.
    #[must_use]
    pub fn sampling(self, seed: u64) -> Self {
        Self { sampler: Sampler::new(seed), ..self }
    }

    /// The same walk, where events dated from this second on (Unix) may still come late: none of them shows a lie.
    #[must_use]
    pub fn filling(self, fills_from: i64) -> Self {
        Self { fills_from, ..self }
    }

    /// Of those events the ones that the relay was now found not to have; each is told once.
    pub fn take_gone(&mut self) -> Vec<(i64, EventId)> {
        self.witnesses.take_gone()
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

    /// Goes no further down: [`Walk::next`] asks only what checks the proofs that were given.
    pub fn wind_up(&mut self) {
        self.winds_up = true;
        let Some(ask) = self.outstanding.take() else { return };
        self.requests -= 1;
        match ask {
            Ask::Gap(suspect) => self.suspect = Some(suspect),
            Ask::Sample => self.sampler.put_back(),
            Ask::Known => {}
            other => self.plan = Some(other),
        }
    }

    /// Frames of the smallest page that this walk showed to be cut.
    pub const fn smallest_cut(&self) -> Option<usize> {
        self.smallest_cut
    }

    /// Requests made so far.
    pub const fn requests(&self) -> u32 {
        self.requests
    }

    /// Whether the relay takes `until` as exclusive (rule 10); `None` while no page showed it.
    pub const fn reads_exclusive(&self) -> Option<bool> {
        match self.reading {
            Reading::Untested => None,
            Reading::Raised => Some(true),
            Reading::Inclusive => Some(false),
        }
    }

    /// Takes the answer to the last request; returns what it settles. Without one outstanding, nothing.
    pub fn on_page(&mut self, facts: &PageFacts, end: &PageEnd) -> Vec<Claim> {
        let Some(ask) = self.outstanding.take() else { return Vec::new() };
        if matches!(ask, Ask::Known) {
            return self.witnesses.on_answer(facts, end.is_eose());
        }
        self.witnesses.see(facts);
        let claims = self.settle(ask, facts, end);
        let claims = self.disbelieve(claims);
        let claims = self.hold_back(claims, end.is_eose());
        self.witnesses.settle(claims)
    }

    fn settle(&mut self, ask: Ask, facts: &PageFacts, end: &PageEnd) -> Vec<Claim> {
        let (since, top, _) = self.window(ask);
        let asked = self.filter(ask).until;
        let page = PageView::read(facts, since, top.unwrap_or(self.ceiling), asked);
        if asked.is_some_and(|until| facts.in_wire_order().flatten().any(|(second, _)| second == until)) {
            self.reading = Reading::Inclusive;
        }
        if let Ask::Gap(suspect) = ask {
            return self.on_gap(&page, suspect, end);
        }
        if matches!(ask, Ask::Sample) {
            return self.on_sample(&page, end);
        }
        if let Ask::Echo { flaw } = ask {
            return self.on_echo(&page, flaw, end);
        }
        if page.ignores_filter() {
            return self.stop(Grade::Partial, GapReason::IgnoresFilter);
        }
        if end.is_eose() || end.asks_for_less() {
            self.silence.hear(&page, asked);
        }
        match end {
            PageEnd::Eose { hint } => {
                self.narrow.went_well(page.frames);
                self.largest = self.largest.max(page.frames);
                let mut claims = self.passed_over();
                claims.extend(match ask {
                    // still untested: nothing of the second `until` came
                    Ask::Page { .. } if self.tests_until(ask) => {
                        self.reading = Reading::Raised;
                        self.plan = Some(ask);
                        Vec::new()
                    }
                    Ask::Page { until: Some(_) } if self.is_too_full(&page) => self.read_in_less(&page),
                    Ask::Above { low } => self.on_above(&page, low),
                    _ => self.on_eose(ask, &page, *hint),
                });
                claims
            }
            end if end.asks_for_less() => self.on_too_much(ask, &page, end),
            other => self.stop(other.grade(), other.gap()),
        }
    }

    /// Whether the relay's last answer ended the walk before all was settled.
    pub const fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// Accounts for what is unsettled: with the walk's own reason if it stopped or ran out of requests, else
    /// with the caller's for stopping it.
    pub fn finish(mut self, reason_if_stopped: GapReason) -> Vec<Claim> {
        // What was planned was not asked.
        if let Some(Ask::Gap(suspect)) = self.outstanding.take() {
            self.suspect = Some(suspect);
        }
        let exhausted = self.plan.is_some() && self.requests >= self.max_requests;
        let (grade, reason) = match self.stopped {
            Some(stopped) => stopped,
            None if exhausted || reason_if_stopped == GapReason::None => (Grade::Unknown, GapReason::Stopped),
            None => (Grade::Unknown, reason_if_stopped),
        };
        // What was to be read again is a gap already.
        let unread = self.caught.map_or(self.unclaimed(), |deepest| deepest.min(self.unclaimed()));
        let rest = Claim::over(self.floor, unread, grade, reason);
        let unchecked = self.take_unchecked(reason);
        let told = self.hold_back(unchecked, true);
        let told = self.witnesses.settle(told);
        let unasked = self.witnesses.give_up(reason);
        rest.into_iter().chain(told).chain(unasked).collect()
    }
}

#[cfg(test)]
mod broad;
#[cfg(test)]
mod heavy;
#[cfg(test)]
mod known;
#[cfg(test)]
mod left_out;
#[cfg(test)]
pub(crate) mod model_relay;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod silent;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod until;
