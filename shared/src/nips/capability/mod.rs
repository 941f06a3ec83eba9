//! What a relay can do, found out by at most [`REQUESTS_MAX`] small requests on one connection.
//!
//! Owns no socket and no clock: [`Survey::next_probe`] says what to ask, [`Survey::on_reply`] and [`Survey::on_page`]
//! take what came. Invariants: a limit is reported only when a page was proved to be cut at it; whoever says "too
//! often" or shuts us out is asked nothing more.
//!
//! # How limits are proved
//! Three pages, newest first: one without `limit` (`n0` events), one of `limit` L *below the first's oldest* (`n1`),
//! one of more than the limit claimed, from the top again (`n2`). Events below the first page show that it was cut:
//! `n0` is the default limit. The third was cut when it was shorter than asked for and than `n0 + n1`, which
//! exist; the second when the third shows that more exist than `n0 + n1`. An archive too small to fill a page
//! proves nothing, and nothing is reported.

use super::ask::{Question, Reply};
use super::filter::Filter;
use super::frame::EoseHint;
use super::nip11::InfoView;
use super::page::{PageEnd, PageFacts};
use super::refusal::{CloseClass, classify};
use crate::models::{Answer, AuthSeen, By, Claims, MEASURED_NIPS, Measured, Reason, Support, Until};

/// Requests made at most, all small but the three pages.
pub const REQUESTS_MAX: u32 = 7;
/// Notes, which every relay program serves, and reactions, which are small.
const PAGE_KINDS: [u16; 2] = [1, 7];
/// The limit asked for where none is claimed, or a larger one.
const PAGE: u32 = 500;
/// The most asked for: more would be no small request.
const PAGE_MAX: u32 = 1_001;
/// Events borne in one page.
const EVENTS_MAX: usize = 1_100;
/// How far back the events to count and to reconcile go, in seconds: a question must be cheap to answer.
const COUNT_SPAN_S: i64 = 3_600;
const NEG_SPAN_S: i64 = 60;
/// What nobody writes.
const SEARCH: &str = "qxzjvkwpfhqz";
/// What a refusal names that is about a filter.
const FILTER_WORDS: [&str; 10] =
    ["kind", "kinds", "filter", "filters", "author", "authors", "tag", "tags", "#p", "#e"];
/// A key that nobody has.
const NOBODY: [u8; 32] = [0x17; 32];

/// What to do next.
#[derive(Debug, Clone)]
pub enum Probe {
    /// A request with one answer.
    Ask(Question),
    /// A page, and how many events may come.
    Page(Filter, usize),
}

/// What the read probe before it saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadSeen {
    /// Time of the event it brought, if it brought one.
    pub newest: Option<i64>,
    /// Whether it ended with EOSE.
    pub eose: bool,
    /// The hint of that EOSE.
    pub hint: Option<EoseHint>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Count,
    Negentropy,
    Search,
    Kindless,
    Kinds,
    Authors,
    Mentions,
    KindsAuthors,
    Default,
    At,
    Above,
    Done,
}

/// A survey under way.
#[derive(Debug)]
pub struct Survey {
    measured: Measured,
    stage: Stage,
    now: i64,
    newest: Option<i64>,
    at: u32,
    above: u32,
    /// Events of the page without limit, and its oldest second; only of a whole page.
    default: Option<(u32, i64)>,
    /// Events of the page below it; only of a whole page.
    below: Option<u32>,
    hinted: bool,
    eoses: u32,
    /// The read probe, which names a kind, was not answered in full.
    unread: bool,
}

impl Survey {
    /// Plans a survey of a relay that the read probe found able to answer.
    pub fn new(read: ReadSeen, claimed: Option<&Claims>, now: i64) -> Self {
        let claim = claimed.and_then(|claimed| claimed.max_limit).and_then(|limit| u32::try_from(limit).ok());
        Self {
            measured: Measured::default(),
            stage: Stage::Count,
            now,
            // Beyond 32 bits no relay program reads a time alike.
            newest: read.newest.filter(|newest| (0..i64::from(u32::MAX)).contains(newest)),
            at: claim.unwrap_or(PAGE).clamp(1, PAGE),
            above: claim.map_or(PAGE_MAX, |claim| claim.saturating_add(1)).clamp(2, PAGE_MAX),
            default: None,
            below: None,
            hinted: read.hint.is_some(),
            eoses: u32::from(read.eose),
            unread: !read.eose,
        }
    }

    /// What to ask now; nothing when it is over.
    pub fn next_probe(&mut self) -> Option<Probe> {
        let kinds = vec![PAGE_KINDS[0]];
        let page = |until: i64, limit: Option<u32>| Filter {
            kinds: PAGE_KINDS.to_vec(),
            until: Some(until),
            limit,
            ..Filter::default()
        };
        let probe = match (self.stage, self.newest) {
            (Stage::Count, _) => {
                let since = Some(self.now - COUNT_SPAN_S);
                Probe::Ask(Question::Count(Filter { kinds, since, ..Filter::default() }))
            }
            (Stage::Negentropy, _) => {
                let (since, until) = (Some(self.now - NEG_SPAN_S), Some(self.now));
                Probe::Ask(Question::NegOpen(Filter { kinds, since, until, ..Filter::default() }))
            }
            (Stage::Search, Some(_)) => {
                let search = Some(SEARCH.to_owned());
                Probe::Page(Filter { kinds, limit: Some(1), search, ..Filter::default() }, EVENTS_MAX)
            }
            (Stage::Search | Stage::Kindless, _) => {
                self.stage = Stage::Kindless;
                // With a time, as whoever reads a relay names one: some programs take a bare limit for no question at all.
                Probe::Page(Filter { since: Some(0), limit: Some(1), ..Filter::default() }, EVENTS_MAX)
            }
            (Stage::Kinds, _) => {
                let kinds = PAGE_KINDS.to_vec();
                Probe::Page(Filter { kinds, limit: Some(1), ..Filter::default() }, EVENTS_MAX)
            }
            (Stage::Authors, _) => {
                let authors = vec![NOBODY];
                Probe::Page(Filter { authors, limit: Some(1), ..Filter::default() }, EVENTS_MAX)
            }
            (Stage::Mentions, _) => {
                let mentioned = vec![NOBODY];
                Probe::Page(Filter { mentioned, limit: Some(1), ..Filter::default() }, EVENTS_MAX)
            }
            (Stage::KindsAuthors, _) => {
                let (kinds, authors) = (PAGE_KINDS.to_vec(), vec![NOBODY]);
                Probe::Page(Filter { kinds, authors, limit: Some(1), ..Filter::default() }, EVENTS_MAX)
            }
            (Stage::Default, Some(newest)) => Probe::Page(page(newest, None), EVENTS_MAX),
            (Stage::At, _) => {
                let (_, oldest) = self.default?;
                Probe::Page(page(oldest - 1, Some(self.at)), EVENTS_MAX)
            }
            (Stage::Above, Some(newest)) => Probe::Page(page(newest, Some(self.above)), EVENTS_MAX),
            (Stage::Default | Stage::Above, None) | (Stage::Done, _) => return None,
        };
        self.measured.requests += 1;
        Some(probe)
    }

    /// Takes the answer to a question.
    pub fn on_reply(&mut self, reply: &Reply) {
        let answer = match reply {
            Reply::Count { .. } => Answer::new(Support::Works, By::Count, ""),
            Reply::NegMsg { .. } => Answer::new(Support::Works, By::NegMsg, ""),
            Reply::NegErr { message } => Answer::new(Support::Refused, By::NegErr, message),
            Reply::Closed { message, .. } => Answer::new(Support::Refused, By::Closed, message),
            Reply::Notice { message, .. } => Answer::new(Support::Refused, By::Notice, message),
            Reply::Eose => Answer::new(Support::Undecided, By::Eose, ""),
            Reply::Silent => Answer::new(Support::Silent, By::Nothing, ""),
            Reply::Ok { .. } | Reply::Flood | Reply::Cut(_) => {
                Answer::new(Support::Undecided, By::Nothing, "")
            }
        };
        let next = if self.stage == Stage::Count { Stage::Negentropy } else { Stage::Search };
        match self.stage {
            Stage::Count => self.measured.count = answer,
            Stage::Negentropy => self.measured.negentropy = answer,
            _ => return,
        }
        self.stage = next;
        let (Reply::Closed { class, message } | Reply::Notice { class, message }) = reply else {
            if let Reply::Cut(cut) = reply {
                self.stop(cut.reason());
            } else if *reply == Reply::Flood {
                self.stop(Reason::TooManyFrames);
            }
            return;
        };
        self.mind(*class, message);
    }

    /// Takes a page.
    pub fn on_page(&mut self, facts: &PageFacts, end: &PageEnd) {
        let events = u32::try_from(facts.seen.len()).unwrap_or(u32::MAX);
        if let PageEnd::Eose { hint } = end {
            self.eoses += 1;
            self.hinted |= hint.is_some();
        }
        match self.stage {
            Stage::Search => {
                self.measured.search = narrowed(events, end, Support::Works, Support::Ignored);
                self.stage = Stage::Kindless;
            }
            Stage::Kindless => {
                // A relay that holds events and answers with none has refused, only silently.
                let none = if self.newest.is_some() { Support::Refused } else { Support::Undecided };
                self.measured.without_kinds = kindless(narrowed(events, end, none, Support::Works));
                // What names a kind was not answered either: perhaps it must name more.
                let more = self.measured.without_kinds.seen == Support::Refused && self.unread;
                self.stage = if more && self.newest.is_none() { Stage::Kinds } else { Stage::Default };
            }
            Stage::Kinds => {
                self.measured.with_kinds = answered(events, end);
                let refused = self.measured.with_kinds.seen == Support::Refused;
                self.stage = if refused { Stage::Authors } else { Stage::Default };
            }
            Stage::Authors => {
                self.measured.with_authors = answered(events, end);
                let works = self.measured.with_authors.seen == Support::Works;
                self.stage = if works { Stage::Default } else { Stage::Mentions };
            }
            Stage::Mentions => {
                self.measured.with_mentions = answered(events, end);
                let refused = self.measured.with_mentions.seen == Support::Refused;
                self.stage = if refused { Stage::KindsAuthors } else { Stage::Default };
            }
            Stage::KindsAuthors => {
                self.measured.with_kinds_authors = answered(events, end);
                self.stage = Stage::Default;
            }
            Stage::Default => self.on_default(facts, end, events),
            Stage::At => {
                self.below = end.is_eose().then_some(events);
                self.stage = Stage::Above;
            }
            Stage::Above => {
                self.on_above(end.is_eose().then_some(events));
                self.stage = Stage::Done;
            }
            Stage::Count | Stage::Negentropy | Stage::Done => return,
        }
        if matches!(self.stage, Stage::At | Stage::Above | Stage::Done) {
            self.measured.page_max = self.measured.page_max.max(events);
        }
        match end {
            PageEnd::Closed { class, message } => self.mind(*class, message),
            PageEnd::Notice { message } => self.mind(classify(message), message),
            PageEnd::Disconnected | PageEnd::Oversize | PageEnd::Violation => self.stop(end.reason()),
            _ => {}
        }
    }

    /// Asks nothing more, for this reason.
    pub fn stop(&mut self, reason: Reason) {
        if self.stage != Stage::Done || self.measured.ended == Reason::None {
            self.measured.ended = reason;
        }
        self.stage = Stage::Done;
    }

    /// The record; NIP-42 is the connection's to know.
    pub fn finish(self, auth: AuthSeen) -> Measured {
        let hint = match (self.hinted, self.eoses) {
            (true, _) => Support::Works,
            (false, 0) => Support::Untested,
            (false, _) => Support::Ignored,
        };
        Measured { auth, hint, ..self.measured }
    }

    fn on_default(&mut self, facts: &PageFacts, end: &PageEnd, events: u32) {
        let newest = self.newest.unwrap_or_default();
        let oldest = facts.seen.iter().map(|(second, _)| *second).min();
        let meets = facts.seen.iter().any(|(second, _)| *second == newest);
        self.measured.until = match (meets, facts.mismatched, events) {
            (_, 1.., _) => Until::Ignored,
            (true, 0, _) => Until::Inclusive,
            (false, 0, 1..) => Until::Exclusive,
            (false, 0, 0) => Until::Undecided,
        };
        self.default = oldest.filter(|oldest| end.is_eose() && *oldest > 0).map(|oldest| (events, oldest));
        // Who ignores `until` cannot be asked for what is below.
        self.stage = match (self.default, self.measured.until) {
            (Some(_), Until::Inclusive | Until::Exclusive) => Stage::At,
            _ => Stage::Done,
        };
    }

    fn on_above(&mut self, above: Option<u32>) {
        let (Some((default, _)), Some(below)) = (self.default, self.below) else { return };
        let exist = default.saturating_add(below);
        if below > 0 {
            self.measured.default_limit = Some(default);
        }
        let Some(above) = above else { return };
        let above_cut = above < self.above && above < exist;
        let below_cut = below > 0 && below < self.at && above > exist;
        if above_cut || below_cut {
            self.measured.max_limit = Some(default.max(below).max(above));
        }
        if above_cut || above >= self.above {
            self.measured.above_brings_less = Some(above_cut && above < below);
        }
    }

    fn mind(&mut self, class: CloseClass, message: &str) {
        match class {
            CloseClass::RateLimited => self.stop(Reason::RateLimited),
            // Who blocks a filter shuts nobody out.
            CloseClass::Blocked if !speaks_of_filter(message) => self.stop(Reason::Blocked),
            _ => {}
        }
    }
}

/// The verdict on a filter that should change how much comes: by whether anything came.
fn narrowed(events: u32, end: &PageEnd, none: Support, some: Support) -> Answer {
    match end {
        _ if events > 0 => Answer::new(some, By::Eose, ""),
        PageEnd::Eose { .. } => Answer::new(none, By::Eose, ""),
        PageEnd::Closed { message, .. } => Answer::new(Support::Refused, By::Closed, message),
        PageEnd::Notice { message } => Answer::new(Support::Refused, By::Notice, message),
        PageEnd::Timeout { .. } => Answer::new(Support::Silent, By::Nothing, ""),
        _ => Answer::new(Support::Undecided, By::Nothing, ""),
    }
}

/// A refusal of a filter without kinds counts only where it is about the filter: whoever has no time now, or wants to know
/// who asks, has said nothing about kinds.
fn kindless(answer: Answer) -> Answer {
    let about = answer.by == By::Eose || speaks_of_filter(&answer.words);
    if answer.seen == Support::Refused && !about {
        return Answer { seen: Support::Undecided, ..answer };
    }
    answer
}

/// Whether a filter is answered at all.
fn answered(events: u32, end: &PageEnd) -> Answer {
    kindless(narrowed(events, end, Support::Works, Support::Works))
}

/// Whether a refusal is about what was asked for, not about who asks or how often.
pub fn speaks_of_filter(message: &str) -> bool {
    let lower = message.to_ascii_lowercase();
    let mut words = lower.split(|c: char| !c.is_ascii_alphanumeric() && c != '#');
    match classify(message) {
        CloseClass::InvalidRequest | CloseClass::Unsupported => true,
        CloseClass::RateLimited | CloseClass::AuthRequired => false,
        _ => words.any(|word| FILTER_WORDS.contains(&word)),
    }
}

/// What a NIP-11 document claims of what is measured.
pub fn claimed(view: &InfoView) -> Claims {
    let supports = |nip: &u16| view.supports(*nip) || (*nip == 77 && view.negentropy.is_some_and(|v| v > 0));
    let limits = &view.limitation;
    // JSON of ours is read back as signed numbers.
    let sane = |number: Option<u64>| number.filter(|number| i64::try_from(*number).is_ok());
    Claims {
        nips: MEASURED_NIPS.into_iter().filter(supports).collect(),
        max_limit: sane(limits.max_limit),
        default_limit: sane(limits.default_limit),
        auth_required: limits.auth_required,
        restricted_writes: limits.restricted_writes,
        payment_required: limits.payment_required,
        min_pow_difficulty: sane(limits.min_pow_difficulty),
        created_at_lower_limit: sane(limits.created_at_lower_limit),
        created_at_upper_limit: sane(limits.created_at_upper_limit),
    }
}

#[cfg(test)]
mod tests;
