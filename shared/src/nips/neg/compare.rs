//! One NEG-OPEN to its end, as a state machine: text and time go in, messages and one end come out.
//!
//! Like a subscription it is alone on its connection, so a NOTICE can only speak of it. Invariants: exactly one
//! [`NegStep::Done`] is given; strangers' frames neither answer nor prolong the wait; rounds, bytes and ids are
//! bounded, and rounds that bring no id are bounded more tightly.

use std::collections::HashSet;

use negentropy::{Id, Negentropy, NegentropyStorageVector};

use super::refused::{self, Refusal};
use crate::models::EventId;
use crate::nips::filter::Filter;
use crate::nips::frame::{self, RelayFrame};
use crate::nips::refusal::CloseClass;
use crate::nips::session::Cut;

/// Largest message sent, in bytes before hexadecimal: relays close on more than 64 KiB of text.
const MESSAGE_MAX_BYTES: u64 = 30_000;
/// How long a relay that said something by NOTICE may still begin to answer, in milliseconds.
const NOTICE_GRACE_MS: u64 = 1_000;
/// Frames borne that do not answer.
const STRAY_MAX: u32 = 5_000;
/// Rounds in a row that may bring no id: the tree over [`NegLimits::max_ids`] is a few levels deep.
const BARREN_ROUNDS_MAX: u32 = 16;

/// What one comparison may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NegLimits {
    /// Longest wait for one answer, in milliseconds.
    pub answer_ms: u64,
    /// Longest time for the whole, in milliseconds.
    pub total_ms: u64,
    /// Most messages of the relay.
    pub max_rounds: u32,
    /// Most ids that differ, either way.
    pub max_ids: usize,
    /// Most bytes of text, whatever it says.
    pub max_bytes: u64,
}

/// How a comparison ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NegEnd {
    /// Both sides are known: `have` are ours alone, `need` the relay's alone; each distinct.
    Compared { have: Vec<EventId>, need: Vec<EventId> },
    /// The window holds more than the relay, or we, compare at once.
    TooMany { most: Option<u64> },
    /// The relay does not do this.
    Unsupported,
    /// No answer at all.
    Silent,
    /// The relay refused for a reason of its own.
    Refused { class: CloseClass, message: String },
    /// The relay stopped answering in the middle, or the whole took too long.
    Timeout,
    /// Unreadable messages, too many of them, or none that lead anywhere.
    Violation,
    /// The connection ended.
    Cut(Cut),
}

/// What one input brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NegStep {
    /// Nothing yet.
    Continue,
    /// Send this and go on.
    Send(String),
    /// It is over; what follows is ignored.
    Done(NegEnd),
}

/// A comparison under way.
pub struct Comparison {
    sub: String,
    limits: NegLimits,
    negentropy: Negentropy<'static, NegentropyStorageVector>,
    have: HashSet<EventId>,
    need: HashSet<EventId>,
    rounds: u32,
    barren: u32,
    bytes: u64,
    stray: u32,
    deadline_ms: u64,
    total_deadline_ms: u64,
    notice: Option<String>,
    ended: bool,
}

impl std::fmt::Debug for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Comparison")
            .field("sub", &self.sub)
            .field("rounds", &self.rounds)
            .finish_non_exhaustive()
    }
}

impl Comparison {
    /// Opens the comparison of `items` (`created_at`, id) with what matches `filter`; the text is the NEG-OPEN.
    pub fn start(
        sub: impl Into<String>,
        filter: &Filter,
        items: &[(i64, EventId)],
        limits: NegLimits,
        now_ms: u64,
    ) -> (Self, String) {
        let sub = sub.into();
        let (negentropy, message) = opening(items);
        let text = frame::neg_open(&sub, filter, &hex::encode(message));
        let comparison = Self {
            sub,
            limits,
            negentropy,
            have: HashSet::new(),
            need: HashSet::new(),
            rounds: 0,
            barren: 0,
            bytes: 0,
            stray: 0,
            deadline_ms: now_ms.saturating_add(limits.answer_ms),
            total_deadline_ms: now_ms.saturating_add(limits.total_ms),
            notice: None,
            ended: false,
        };
        (comparison, text)
    }

    /// Takes one text message of the connection.
    pub fn on_text(&mut self, now_ms: u64, text: &str) -> NegStep {
        if self.ended {
            return NegStep::Continue;
        }
        self.bytes = self.bytes.saturating_add(u64::try_from(text.len()).unwrap_or(u64::MAX));
        if self.bytes > self.limits.max_bytes {
            return self.end(NegEnd::TooMany { most: None });
        }
        match frame::parse(text) {
            Ok(RelayFrame::NegMsg { sub, message }) if sub == self.sub => self.on_message(now_ms, &message),
            Ok(RelayFrame::NegErr { sub, message, most }) if sub == self.sub => self.refuse(message, most),
            Ok(RelayFrame::Closed { sub, message }) if sub == self.sub => self.refuse(message, None),
            Ok(RelayFrame::Notice { message }) => self.on_notice(now_ms, message),
            Ok(_) | Err(_) => self.on_stray(now_ms),
        }
    }

    /// Takes the end of the connection.
    pub fn on_closed(&mut self, cut: Cut) -> NegStep {
        self.end(NegEnd::Cut(cut))
    }

    /// Takes the time; due at [`Comparison::deadline_ms`], harmless before.
    pub fn on_tick(&mut self, now_ms: u64) -> NegStep {
        if self.ended || now_ms < self.deadline_ms() {
            return NegStep::Continue;
        }
        match self.notice.take() {
            Some(message) => self.refuse(message, None),
            None if self.rounds == 0 => self.end(NegEnd::Silent),
            None => self.end(NegEnd::Timeout),
        }
    }

    /// When [`Comparison::on_tick`] has to be called if nothing arrives; `u64::MAX` once over.
    pub fn deadline_ms(&self) -> u64 {
        if self.ended { u64::MAX } else { self.deadline_ms.min(self.total_deadline_ms) }
    }

    /// Bytes of text taken.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Messages of the relay.
    pub const fn rounds(&self) -> u32 {
        self.rounds
    }

    /// What to send when it is over, so that the relay may forget it.
    pub fn farewell(&self) -> String {
        frame::neg_close(&self.sub)
    }

    fn on_message(&mut self, now_ms: u64, message: &str) -> NegStep {
        self.rounds += 1;
        self.notice = None;
        let Ok(bytes) = hex::decode(message) else { return self.end(NegEnd::Violation) };
        let (mut have, mut need) = (Vec::new(), Vec::new());
        let answer = match self.negentropy.reconcile_with_ids(&bytes, &mut have, &mut need) {
            Ok(answer) => answer,
            Err(negentropy::Error::UnsupportedProtocolVersion) => return self.end(NegEnd::Unsupported),
            Err(_) => return self.end(NegEnd::Violation),
        };
        let before = self.have.len() + self.need.len();
        self.have.extend(have.iter().map(|id| EventId(*id.as_bytes())));
        self.need.extend(need.iter().map(|id| EventId(*id.as_bytes())));
        let after = self.have.len() + self.need.len();
        if after > self.limits.max_ids {
            return self.end(NegEnd::TooMany { most: None });
        }
        self.barren = if after > before { 0 } else { self.barren + 1 };
        let Some(answer) = answer else {
            let end =
                NegEnd::Compared { have: self.have.drain().collect(), need: self.need.drain().collect() };
            return self.end(end);
        };
        if self.rounds >= self.limits.max_rounds || self.barren >= BARREN_ROUNDS_MAX {
            return self.end(NegEnd::Violation);
        }
        if now_ms >= self.total_deadline_ms {
            return self.end(NegEnd::Timeout);
        }
        self.deadline_ms = now_ms.saturating_add(self.limits.answer_ms);
        NegStep::Send(frame::neg_msg(&self.sub, &hex::encode(answer)))
    }

    /// The NOTICE that says most is kept; it shortens the wait.
    fn on_notice(&mut self, now_ms: u64, message: String) -> NegStep {
        let says = |text: &str| refused::read(text, None) != Refusal::Other(CloseClass::Error);
        if self.notice.is_none() || says(&message) {
            self.notice = Some(message);
        }
        self.deadline_ms = self.deadline_ms.min(now_ms.saturating_add(NOTICE_GRACE_MS));
        self.on_stray(now_ms)
    }

    fn on_stray(&mut self, now_ms: u64) -> NegStep {
        self.stray = self.stray.saturating_add(1);
        if self.stray > STRAY_MAX { self.end(NegEnd::Violation) } else { self.on_tick(now_ms) }
    }

    fn refuse(&mut self, message: String, most: Option<u64>) -> NegStep {
        let end = match refused::read(&message, most) {
            Refusal::TooMany(most) => NegEnd::TooMany { most },
            Refusal::Unsupported => NegEnd::Unsupported,
            Refusal::Other(class) => NegEnd::Refused { class, message },
        };
        self.end(end)
    }

    fn end(&mut self, end: NegEnd) -> NegStep {
        if self.ended {
            return NegStep::Continue;
        }
        self.ended = true;
        NegStep::Done(end)
    }
}

/// Our side and the first message. None of the library's errors is possible here: the storage is sealed once, and
/// the limit is above its least.
fn opening(items: &[(i64, EventId)]) -> (Negentropy<'static, NegentropyStorageVector>, Vec<u8>) {
    let mut storage = NegentropyStorageVector::with_capacity(items.len());
    for (created_at, id) in items {
        let at = u64::try_from(*created_at).unwrap_or(0);
        storage.insert(at, Id::from_byte_array(id.0)).expect("an unsealed storage takes items");
    }
    storage.seal().expect("a storage is sealed once");
    let mut negentropy = Negentropy::owned(storage, MESSAGE_MAX_BYTES).expect("the limit is above the least");
    let message = negentropy.initiate().expect("a sealed storage has a first message");
    (negentropy, message)
}
