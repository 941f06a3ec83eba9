//! One subscription as a state machine: text and time go in, events and one end come out.
//!
//! Owns no socket and no clock: the driver passes what it read and when, asks [`Subscription::deadline_ms`]
//! when to wake, and calls [`Subscription::on_tick`]. One REQ of risk is open per connection, so a NOTICE
//! (which names no subscription) can only speak of this one. Invariants: exactly one [`Step::Done`] is
//! given; only a matching EVENT not yet seen feeds the idle timer, so that no flood keeps a subscription
//! alive; nothing held grows past [`Limits`].

use std::collections::HashSet;
use std::ops::Range;

use sha2::{Digest, Sha256};

use super::filter::Filter;
use super::frame::{self, EoseHint, EventFrame, RelayFrame};
use super::page::{PageEnd, PageFacts, Unread};
use super::refusal::{CloseClass, classify, is_greeting};
use crate::models::{EnvelopeFacts, EventError, EventId, Reason};

/// How long a relay that refused by NOTICE may still begin to answer, in milliseconds. strfry ≤ 1.0
/// refuses by NOTICE alone; waiting the whole idle time for nothing would cost a slot.
pub const NOTICE_GRACE_MS: u64 = 3_000;

/// What one subscription may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest time without a new matching event, in milliseconds.
    pub idle_ms: u64,
    /// Longest time for the whole, in milliseconds.
    pub total_ms: u64,
    /// Most events, those that cannot be read among them.
    pub max_events: usize,
    /// Most bytes of text, whatever it says.
    pub max_bytes: u64,
    /// Most frames that bring nothing: foreign, no frames at all, repeated or not asked for.
    pub max_stray_frames: u32,
}

/// How a connection ended under a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Closed or reset.
    Disconnected,
    /// A message larger than the WebSocket layer takes.
    Oversize,
    /// The WebSocket protocol was broken.
    Protocol,
}

impl Cut {
    /// The end in the words of a check.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Disconnected => Reason::Disconnected,
            Self::Oversize => Reason::Oversize,
            Self::Protocol => Reason::WsProtocol,
        }
    }
}

/// An event in a text that was taken: what its envelope says, and where it stands. Read once, so that nobody after
/// this has to read the text again before it is known to be worth it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// What it claims.
    pub facts: EnvelopeFacts,
    /// Its signature, where it has one of the right shape.
    pub sig: Option<[u8; 64]>,
    /// Where in the text its JSON object stands.
    pub span: Range<usize>,
}

/// What one input brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing yet.
    Continue,
    /// A new event under our subscription that our filter matches, unverified.
    Event(Delivered),
    /// The subscription is over; what follows is ignored.
    Done(PageEnd),
}

/// One open REQ.
#[derive(Debug)]
pub struct Subscription {
    sub: String,
    filter: Filter,
    limits: Limits,
    total_deadline_ms: u64,
    idle_deadline_ms: u64,
    facts: PageFacts,
    known: HashSet<EventId>,
    bytes: u64,
    stray: u32,
    /// The NOTICE since the last new event, the one that says most.
    notice: Option<(CloseClass, String)>,
    saw_auth: bool,
    /// The connection has answered before: no NOTICE greets any more.
    greeted: bool,
    ended: bool,
}

impl Subscription {
    /// Opens a subscription; the text is the REQ to send. `sub` is unique on its connection.
    pub fn start(sub: impl Into<String>, filter: Filter, limits: Limits, now_ms: u64) -> (Self, String) {
        let sub = sub.into();
        let text = frame::req(&sub, &filter);
        let subscription = Self {
            sub,
            filter,
            limits,
            total_deadline_ms: now_ms.saturating_add(limits.total_ms),
            idle_deadline_ms: now_ms.saturating_add(limits.idle_ms),
            facts: PageFacts::default(),
            known: HashSet::new(),
            bytes: 0,
            stray: 0,
            notice: None,
            saw_auth: false,
            greeted: false,
            ended: false,
        };
        (subscription, text)
    }

    /// The same on a connection that has answered a REQ before: a NOTICE is about this one then, whatever it says.
    #[must_use]
    pub fn greeted(self, greeted: bool) -> Self {
        Self { greeted, ..self }
    }

    /// Takes one text message of the connection.
    pub fn on_text(&mut self, now_ms: u64, text: &str) -> Step {
        if self.ended {
            return Step::Continue;
        }
        self.bytes = self.bytes.saturating_add(u64::try_from(text.len()).unwrap_or(u64::MAX));
        if self.bytes > self.limits.max_bytes {
            return self.end(PageEnd::Oversize);
        }
        let late = now_ms >= self.total_deadline_ms;
        if !late && let Some(read) = frame::event(text).filter(|read| read.sub == self.sub) {
            let EventFrame { facts, sig, span, .. } = read;
            return self.on_event(now_ms, Delivered { facts, sig, span });
        }
        match frame::parse(text) {
            Ok(RelayFrame::Eose { sub, hint }) if sub == self.sub => self.on_eose(hint),
            Ok(RelayFrame::Closed { sub, message }) if sub == self.sub => {
                self.end(PageEnd::Closed { class: classify(&message), message })
            }
            _ if late => self.end(PageEnd::Timeout { idle: false }),
            Ok(RelayFrame::Event { sub, event }) if sub == self.sub => {
                let start = event.as_ptr() as usize - text.as_ptr() as usize;
                let span = start..start + event.len();
                match EnvelopeFacts::scan_signed(event) {
                    Ok((facts, sig)) => self.on_event(now_ms, Delivered { facts, sig, span }),
                    Err(why) => self.on_unread(now_ms, text, span, why),
                }
            }
            Ok(RelayFrame::Notice { message }) => self.on_notice(now_ms, message),
            Ok(RelayFrame::Auth { .. }) => {
                self.saw_auth = true;
                self.on_stray(now_ms)
            }
            Err(_) if frame::claims_event(text, &self.sub) => {
                self.on_unread(now_ms, text, 0..text.len(), EventError::NotJson)
            }
            Ok(_) | Err(_) => self.on_stray(now_ms),
        }
    }

    /// Takes the end of the connection.
    pub fn on_closed(&mut self, _now_ms: u64, cut: Cut) -> Step {
        self.end(match cut {
            Cut::Disconnected => PageEnd::Disconnected,
            Cut::Oversize => PageEnd::Oversize,
            Cut::Protocol => PageEnd::Violation,
        })
    }

    /// Takes the time; due at [`Subscription::deadline_ms`], harmless before.
    pub fn on_tick(&mut self, now_ms: u64) -> Step {
        if self.ended {
            return Step::Continue;
        }
        if now_ms >= self.total_deadline_ms {
            return self.end(PageEnd::Timeout { idle: false });
        }
        if now_ms >= self.idle_deadline_ms {
            return self.on_silence();
        }
        Step::Continue
    }

    /// When [`Subscription::on_tick`] has to be called if nothing arrives; `u64::MAX` once over.
    pub fn deadline_ms(&self) -> u64 {
        if self.ended { u64::MAX } else { self.total_deadline_ms.min(self.idle_deadline_ms) }
    }

    /// What arrived so far, as the planner reads it.
    pub const fn facts(&self) -> &PageFacts {
        &self.facts
    }

    /// What arrived, without the state machine around it.
    pub fn into_facts(self) -> PageFacts {
        self.facts
    }

    /// Frames that brought nothing.
    pub const fn stray(&self) -> u32 {
        self.stray
    }

    /// Bytes of text taken.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The NOTICE that refuses, if one came and no new event since.
    pub fn refusal(&self) -> Option<&str> {
        let (class, message) = self.notice.as_ref()?;
        (*class != CloseClass::Error).then_some(message)
    }

    /// Whether the relay sent an AUTH challenge (NIP-42).
    pub const fn saw_auth(&self) -> bool {
        self.saw_auth
    }

    fn on_event(&mut self, now_ms: u64, event: Delivered) -> Step {
        let facts = &event.facts;
        if !self.filter.matches(facts) {
            self.facts.mismatched = self.facts.mismatched.saturating_add(1);
            return self.on_stray(now_ms);
        }
        if self.is_full() {
            return if self.known.contains(&facts.id) {
                self.on_stray(now_ms)
            } else {
                self.end(PageEnd::TooMany)
            };
        }
        if !self.known.insert(facts.id) {
            return self.on_stray(now_ms);
        }
        self.facts.seen.push((facts.created_at, facts.id));
        self.idle_deadline_ms = now_ms.saturating_add(self.limits.idle_ms);
        self.notice = None;
        Step::Event(event)
    }

    /// An event that is none took a place in the page, and may hide what would have come in its stead.
    fn on_unread(&mut self, now_ms: u64, frame: &str, span: Range<usize>, why: EventError) -> Step {
        let (text, span) = (&frame[span.clone()], (span.start, span.end));
        let at = EnvelopeFacts::time(text);
        let (since, until) = (self.filter.since.unwrap_or(0), self.filter.until.unwrap_or(i64::MAX));
        if at.is_some_and(|at| !(since..=until).contains(&at)) {
            self.facts.mismatched = self.facts.mismatched.saturating_add(1);
            return self.on_stray(now_ms);
        }
        let key = EventId(Sha256::digest(text).into());
        if self.known.contains(&key) {
            return self.on_stray(now_ms);
        }
        if self.is_full() {
            return self.end(PageEnd::TooMany);
        }
        self.known.insert(key);
        self.facts.unread.push(Unread { after: self.facts.seen.len(), at, key, span, why });
        self.on_tick(now_ms)
    }

    const fn is_full(&self) -> bool {
        self.facts.seen.len().saturating_add(self.facts.unread.len()) >= self.limits.max_events
    }

    /// An EOSE after a NOTICE and nothing else is the refusal's echo, not an empty archive.
    fn on_eose(&mut self, hint: Option<EoseHint>) -> Step {
        match self.notice.take() {
            Some((_, message)) if self.facts.is_empty() => self.end(PageEnd::Notice { message }),
            _ => self.end(PageEnd::Eose { hint }),
        }
    }

    /// A NOTICE is no end: many relays greet by one, and a greeting explains nothing, before the first page of a connection
    /// has ended. A refusal shortens the wait if nothing came yet.
    fn on_notice(&mut self, now_ms: u64, message: String) -> Step {
        if !self.greeted && is_greeting(&self.sub, &message) {
            return self.on_stray(now_ms);
        }
        let class = classify(&message);
        let refusal = class != CloseClass::Error;
        if refusal && self.facts.is_empty() {
            self.idle_deadline_ms = self.idle_deadline_ms.min(now_ms.saturating_add(NOTICE_GRACE_MS));
        }
        if refusal || self.notice.is_none() {
            self.notice = Some((class, message));
        }
        self.on_stray(now_ms)
    }

    fn on_stray(&mut self, now_ms: u64) -> Step {
        self.stray = self.stray.saturating_add(1);
        if self.stray > self.limits.max_stray_frames {
            return self.end(PageEnd::TooMany);
        }
        self.on_tick(now_ms)
    }

    /// Silence explains itself by what was said last: a refusal, a challenge, a notice, or nothing.
    fn on_silence(&mut self) -> Step {
        let empty = self.facts.is_empty();
        let end = match self.notice.take() {
            Some((class, message)) if class != CloseClass::Error => PageEnd::Notice { message },
            _ if empty && self.saw_auth => PageEnd::Auth,
            Some((_, message)) if empty => PageEnd::Notice { message },
            _ => PageEnd::Timeout { idle: true },
        };
        self.end(end)
    }

    fn end(&mut self, end: PageEnd) -> Step {
        if self.ended {
            return Step::Continue;
        }
        self.ended = true;
        self.facts.doubts = self.facts.locate(&self.filter);
        Step::Done(end)
    }
}

#[cfg(test)]
mod tests;
