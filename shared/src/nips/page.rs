//! The answer to one REQ: what it brought and how it ended.
//!
//! Made by `session`, read by `walk`; knows neither. Invariant: only [`PageEnd::Eose`] can prove
//! anything, and every other end names its reason from a closed set.

use super::filter::Filter;
use super::frame::EoseHint;
use super::refusal::{CloseClass, classify, is_too_broad};
use crate::models::{EventError, EventId, GapReason, Grade, Reason};

/// What one REQ brought, valid or not: a forged event fills a page like any other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageFacts {
    /// `created_at` and id of every distinct event that matched our filter, in wire order.
    pub seen: Vec<(i64, EventId)>,
    /// Events under our subscription that our filter does not match.
    pub mismatched: u32,
    /// Events under our subscription that cannot be read, in wire order: they took their places in the page.
    pub unread: Vec<Unread>,
    /// Where those may lie, as far as the page tells; set when it ends.
    pub doubts: Vec<(i64, i64)>,
}

/// An event that is none: a kind, a time or an id that Nostr does not have, a key twice, broken JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unread {
    /// How many of [`PageFacts::seen`] came before it.
    pub after: usize,
    /// Its `created_at`, where at least that can be read.
    pub at: Option<i64>,
    /// A hash of its text, in place of an id that may be no better.
    pub key: EventId,
    /// Where in its frame the text stands: its first byte, and the one after it. All of it, where the frame is no JSON.
    pub span: (usize, usize),
    /// Why it cannot be read.
    pub why: EventError,
}

/// The time and the id, or the hash in place of one, of something that came.
pub type Placed = (i64, EventId);

impl PageFacts {
    /// Whether no event came for our subscription that our filter does not exclude.
    pub const fn is_empty(&self) -> bool {
        self.seen.is_empty() && self.unread.is_empty()
    }

    /// Everything that has a place in time, in wire order; `None` where something came that has none.
    pub fn in_wire_order(&self) -> impl Iterator<Item = Option<Placed>> {
        let mut unread = self.unread.iter().peekable();
        let mut seen = self.seen.iter().enumerate().peekable();
        std::iter::from_fn(move || {
            let next = seen.peek().map_or(usize::MAX, |(index, _)| *index);
            match unread.next_if(|one| one.after <= next) {
                Some(one) => Some(one.at.map(|at| (at, one.key))),
                None => seen.next().map(|(_, placed)| Some(*placed)),
            }
        })
    }

    /// Where the unread ones may lie, merged and ascending: at their own second, or, where that cannot be read,
    /// between their neighbours in the page. What came last has no neighbour below: the next page shows it again.
    pub fn locate(&self, filter: &Filter) -> Vec<(i64, i64)> {
        let mut spans: Vec<(i64, i64)> =
            self.unread.iter().filter_map(|one| one.at).map(|at| (at, at)).collect();
        // A page asked for by ids has no order that means anything.
        if filter.ids.is_empty() {
            let (mut above, mut unplaced) = (filter.until.unwrap_or(i64::MAX), false);
            for placed in self.in_wire_order() {
                let Some((at, _)) = placed else {
                    unplaced = true;
                    continue;
                };
                if std::mem::take(&mut unplaced) {
                    spans.push((at.min(above), at.max(above)));
                }
                above = at;
            }
        }
        spans.sort_unstable();
        let mut merged: Vec<(i64, i64)> = Vec::new();
        for (low, high) in spans {
            match merged.last_mut() {
                Some(last) if low <= last.1 => last.1 = last.1.max(high),
                _ => merged.push((low, high)),
            }
        }
        merged
    }
}

/// How one REQ ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PageEnd {
    /// The relay sent all it wanted to send, with its NIP-67 hint if it gave one.
    Eose { hint: Option<EoseHint> },
    /// CLOSED for our subscription.
    Closed { class: CloseClass, message: String },
    /// A NOTICE instead of an answer.
    Notice { message: String },
    /// An AUTH challenge and then silence.
    Auth,
    /// No progress for too long (`idle`), or the whole took too long.
    Timeout { idle: bool },
    /// The connection ended.
    Disconnected,
    /// A message, or the whole page, larger than we take.
    Oversize,
    /// More events or stray frames than we take.
    TooMany,
    /// The WebSocket stream broke its protocol.
    Violation,
}

impl PageEnd {
    /// Whether the relay itself ended the page.
    pub const fn is_eose(&self) -> bool {
        matches!(self, Self::Eose { .. })
    }

    /// Whether less would perhaps have come to its end.
    pub const fn is_too_much(&self) -> bool {
        matches!(self, Self::Oversize | Self::TooMany | Self::Timeout { idle: false })
    }

    /// Whether the relay calls the request too broad, in its own words.
    pub fn is_too_broad(&self) -> bool {
        matches!(self, Self::Closed { message, .. } | Self::Notice { message } if is_too_broad(message))
    }

    /// Whether less time would perhaps have been answered: more than we take, none in time, or more than the relay takes.
    pub fn asks_for_less(&self) -> bool {
        self.is_too_much() || matches!(self, Self::Timeout { .. }) || self.is_too_broad()
    }

    /// The end in the words of a check.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Eose { .. } => Reason::None,
            Self::Closed { class, .. } => match class {
                CloseClass::AuthRequired => Reason::AuthRequired,
                CloseClass::Restricted => Reason::Restricted,
                CloseClass::RateLimited => Reason::RateLimited,
                CloseClass::Blocked => Reason::Blocked,
                CloseClass::Unsupported => Reason::Unsupported,
                CloseClass::InvalidRequest => Reason::InvalidRequest,
                CloseClass::Error => Reason::ClosedError,
            },
            Self::Notice { .. } => Reason::Notice,
            Self::Auth => Reason::AuthRequired,
            Self::Timeout { idle: true } => Reason::IdleTimeout,
            Self::Timeout { idle: false } => Reason::TotalTimeout,
            Self::Disconnected => Reason::Disconnected,
            Self::Oversize => Reason::Oversize,
            Self::TooMany => Reason::TooManyFrames,
            Self::Violation => Reason::WsProtocol,
        }
    }

    /// The end as the reason of a gap in coverage. Being blocked counts as restricted; more than we take
    /// is oversize, whether one frame or the sum.
    pub fn gap(&self) -> GapReason {
        match self {
            Self::Eose { .. } => GapReason::None,
            Self::Closed { class, .. } => class_gap(*class),
            Self::Notice { message } => class_gap(classify(message)),
            Self::Auth => GapReason::AuthRequired,
            Self::Timeout { .. } => GapReason::Timeout,
            Self::Disconnected => GapReason::Disconnected,
            Self::Oversize | Self::TooMany => GapReason::Oversize,
            Self::Violation => GapReason::Protocol,
        }
    }

    /// What an end without proof leaves of the time it was asked about: refused when the relay said that
    /// it is not for us, else unknown.
    pub fn grade(&self) -> Grade {
        match self.gap() {
            GapReason::AuthRequired | GapReason::Restricted => Grade::Refused,
            _ => Grade::Unknown,
        }
    }
}

const fn class_gap(class: CloseClass) -> GapReason {
    match class {
        CloseClass::AuthRequired => GapReason::AuthRequired,
        CloseClass::Restricted | CloseClass::Blocked => GapReason::Restricted,
        CloseClass::RateLimited => GapReason::RateLimited,
        CloseClass::Unsupported | CloseClass::InvalidRequest | CloseClass::Error => GapReason::Closed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed(message: &str) -> PageEnd {
        PageEnd::Closed { class: classify(message), message: message.to_owned() }
    }

    #[test]
    fn every_end_names_its_reason_and_only_eose_has_none() {
        let notice = |message: &str| PageEnd::Notice { message: message.to_owned() };
        let table = [
            (PageEnd::Eose { hint: None }, Reason::None, GapReason::None, Grade::Unknown),
            (closed("auth-required: x"), Reason::AuthRequired, GapReason::AuthRequired, Grade::Refused),
            (closed("restricted: x"), Reason::Restricted, GapReason::Restricted, Grade::Refused),
            (closed("blocked: x"), Reason::Blocked, GapReason::Restricted, Grade::Refused),
            (closed("rate-limited: x"), Reason::RateLimited, GapReason::RateLimited, Grade::Unknown),
            (closed("unsupported: x"), Reason::Unsupported, GapReason::Closed, Grade::Unknown),
            (closed("invalid: x"), Reason::InvalidRequest, GapReason::Closed, Grade::Unknown),
            (closed("error: x"), Reason::ClosedError, GapReason::Closed, Grade::Unknown),
            (notice("rate-limited: x"), Reason::Notice, GapReason::RateLimited, Grade::Unknown),
            (notice("hello"), Reason::Notice, GapReason::Closed, Grade::Unknown),
            (PageEnd::Auth, Reason::AuthRequired, GapReason::AuthRequired, Grade::Refused),
            (PageEnd::Timeout { idle: true }, Reason::IdleTimeout, GapReason::Timeout, Grade::Unknown),
            (PageEnd::Timeout { idle: false }, Reason::TotalTimeout, GapReason::Timeout, Grade::Unknown),
            (PageEnd::Disconnected, Reason::Disconnected, GapReason::Disconnected, Grade::Unknown),
            (PageEnd::Oversize, Reason::Oversize, GapReason::Oversize, Grade::Unknown),
            (PageEnd::TooMany, Reason::TooManyFrames, GapReason::Oversize, Grade::Unknown),
            (PageEnd::Violation, Reason::WsProtocol, GapReason::Protocol, Grade::Unknown),
        ];
        for (end, reason, gap, grade) in table {
            assert_eq!((end.reason(), end.gap(), end.grade()), (reason, gap, grade), "{end:?}");
            assert_eq!(end.is_eose(), gap == GapReason::None, "{end:?}");
        }
    }
}
