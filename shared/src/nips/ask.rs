//! One request with one answer, as a state machine: a COUNT, the opening of a reconciliation, an EVENT.
//!
//! Owns no socket and no clock. Like a subscription it is alone on its connection, so a NOTICE can only speak of
//! it. Invariants: exactly one [`Reply`] is given; strangers' frames neither answer nor prolong the wait.

use super::filter::Filter;
use super::frame::{self, RelayFrame};
use super::refusal::{CloseClass, classify};
use super::session::Cut;
use crate::models::Event;

/// How long a relay that said something by NOTICE may still begin to answer, in milliseconds.
const NOTICE_GRACE_MS: u64 = 1_000;
/// Frames borne that do not answer: what an earlier page left on the way.
const STRAY_MAX: u32 = 5_000;
/// A reconciliation opened by who has nothing: version 1, one range up to infinity, an empty list of ids.
const NEG_NOTHING: &str = "6100000200";

/// What is asked.
#[derive(Debug, Clone)]
pub enum Question {
    /// How many events match (NIP-45).
    Count(Filter),
    /// A reconciliation with an empty set (NIP-77).
    NegOpen(Filter),
    /// To take this event.
    Publish(Box<Event>),
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A number.
    Count { count: u64, approximate: bool },
    /// The first message of a reconciliation, of this many hexadecimal digits.
    NegMsg { digits: usize },
    /// A reconciliation refused.
    NegErr { message: String },
    /// A verdict on the event.
    Ok { accepted: bool, message: String },
    /// EOSE, which was not asked for.
    Eose,
    /// CLOSED for our request.
    Closed { class: CloseClass, message: String },
    /// A NOTICE, and then nothing.
    Notice { class: CloseClass, message: String },
    /// Nothing.
    Silent,
    /// More frames than we take.
    Flood,
    /// The connection ended.
    Cut(Cut),
}

/// One request under way.
#[derive(Debug)]
pub struct Exchange {
    sub: String,
    event: Option<String>,
    negentropy: bool,
    deadline_ms: u64,
    stray: u32,
    notice: Option<(CloseClass, String)>,
}

impl Exchange {
    /// Begins; the text is what to send. `sub` is unique on its connection.
    pub fn start(
        sub: impl Into<String>,
        question: &Question,
        timeout_ms: u64,
        now_ms: u64,
    ) -> (Self, String) {
        let sub = sub.into();
        let text = match question {
            Question::Count(filter) => frame::count(&sub, filter),
            Question::NegOpen(filter) => frame::neg_open(&sub, filter, NEG_NOTHING),
            Question::Publish(event) => frame::labelled("EVENT", event),
        };
        let event = if let Question::Publish(event) = question { Some(event.id().to_string()) } else { None };
        let exchange = Self {
            sub,
            event,
            negentropy: matches!(question, Question::NegOpen(_)),
            deadline_ms: now_ms.saturating_add(timeout_ms),
            stray: 0,
            notice: None,
        };
        (exchange, text)
    }

    /// Takes one text message of the connection.
    pub fn on_text(&mut self, now_ms: u64, text: &str) -> Option<Reply> {
        let asks = self.event.is_none();
        match frame::parse(text) {
            Ok(RelayFrame::Ok { id, accepted, message }) if self.event.as_deref() == Some(&*id) => {
                Some(Reply::Ok { accepted, message })
            }
            Ok(RelayFrame::Count { sub, count, approximate }) if asks && sub == self.sub => {
                Some(Reply::Count { count, approximate })
            }
            Ok(RelayFrame::NegMsg { sub, message }) if asks && sub == self.sub => {
                Some(Reply::NegMsg { digits: message.len() })
            }
            Ok(RelayFrame::NegErr { sub, message, .. }) if asks && sub == self.sub => {
                Some(Reply::NegErr { message })
            }
            Ok(RelayFrame::Eose { sub, .. }) if asks && sub == self.sub => Some(Reply::Eose),
            Ok(RelayFrame::Closed { sub, message }) if asks && sub == self.sub => {
                Some(Reply::Closed { class: classify(&message), message })
            }
            Ok(RelayFrame::Notice { message }) => {
                self.on_notice(now_ms, message);
                self.on_stray(now_ms)
            }
            Ok(_) | Err(_) => self.on_stray(now_ms),
        }
    }

    /// Takes the end of the connection.
    pub fn on_closed(&mut self, cut: Cut) -> Reply {
        Reply::Cut(cut)
    }

    /// Takes the time; due at [`Exchange::deadline_ms`], harmless before.
    pub fn on_tick(&mut self, now_ms: u64) -> Option<Reply> {
        if now_ms < self.deadline_ms {
            return None;
        }
        Some(match self.notice.take() {
            Some((class, message)) => Reply::Notice { class, message },
            None => Reply::Silent,
        })
    }

    /// When [`Exchange::on_tick`] has to be called if nothing arrives.
    pub const fn deadline_ms(&self) -> u64 {
        self.deadline_ms
    }

    /// What to send when it is over: a reconciliation that the relay holds open is closed.
    pub fn farewell(&self, reply: &Reply) -> Option<String> {
        let open = matches!(reply, Reply::NegMsg { .. } | Reply::Silent);
        (self.negentropy && open).then(|| frame::neg_close(&self.sub))
    }

    /// The notice that says most is kept; it shortens the wait, as old relays answer by nothing else.
    fn on_notice(&mut self, now_ms: u64, message: String) {
        let class = classify(&message);
        if class != CloseClass::Error || self.notice.is_none() {
            self.notice = Some((class, message));
        }
        self.deadline_ms = self.deadline_ms.min(now_ms.saturating_add(NOTICE_GRACE_MS));
    }

    fn on_stray(&mut self, now_ms: u64) -> Option<Reply> {
        self.stray = self.stray.saturating_add(1);
        if self.stray > STRAY_MAX { Some(Reply::Flood) } else { self.on_tick(now_ms) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::Keys;
    use super::*;

    fn count() -> Exchange {
        let filter = Filter { kinds: vec![1], ..Filter::default() };
        let (exchange, text) = Exchange::start("s", &Question::Count(filter), 5_000, 0);
        assert_eq!(text, r#"["COUNT","s",{"kinds":[1]}]"#);
        exchange
    }

    fn event() -> Event {
        let keys = Keys::parse("67dea2ed018072d675f5415ecfaed7d2597555e202d85b3d65ea4e58d2d92ffa").unwrap();
        keys.sign(1, 22_456, Vec::new(), String::new()).unwrap()
    }

    #[test]
    fn each_frame_for_our_request_is_the_answer() {
        let closed = Reply::Closed { class: CloseClass::Unsupported, message: "unsupported: no".into() };
        for (text, reply) in [
            (r#"["COUNT","s",{"count":3}]"#, Reply::Count { count: 3, approximate: false }),
            (r#"["NEG-MSG","s","6100"]"#, Reply::NegMsg { digits: 4 }),
            (r#"["NEG-ERR","s","blocked: no"]"#, Reply::NegErr { message: "blocked: no".into() }),
            (r#"["EOSE","s"]"#, Reply::Eose),
            (r#"["CLOSED","s","unsupported: no"]"#, closed),
        ] {
            assert_eq!(count().on_text(1, text), Some(reply), "{text}");
            assert_eq!(count().on_text(1, &text.replace("\"s\"", "\"t\"")), None, "another's: {text}");
        }
    }

    #[test]
    fn a_notice_answers_when_nothing_follows_it() {
        let mut exchange = count();
        assert_eq!(exchange.on_text(100, r#"["NOTICE","unsupported: COUNT"]"#), None);
        assert_eq!(exchange.on_text(200, r#"["NOTICE","bye"]"#), None, "the one that says more is kept");
        assert_eq!(exchange.deadline_ms(), 1_100);
        let notice = Reply::Notice { class: CloseClass::Unsupported, message: "unsupported: COUNT".into() };
        assert_eq!(exchange.on_tick(1_100), Some(notice));
        let mut greeted = count();
        greeted.on_text(100, r#"["NOTICE","hello"]"#);
        assert_eq!(greeted.on_text(200, r#"["COUNT","s",{"count":0}]"#).map(|_| ()), Some(()));
    }

    #[test]
    fn strangers_neither_answer_nor_prolong() {
        let mut exchange = count();
        for at in 1..5_000 {
            assert_eq!(exchange.on_text(at, r#"["EVENT","t",{}]"#), None);
        }
        assert_eq!(exchange.on_text(5_000, r#"["EVENT","t",{}]"#), Some(Reply::Silent));
        let mut flooded = count();
        let first = (0..9_000).find_map(|_| flooded.on_text(1, "x"));
        assert_eq!(first, Some(Reply::Flood));
    }

    #[test]
    fn an_event_is_answered_by_the_ok_that_names_it() {
        let event = event();
        let (mut exchange, text) =
            Exchange::start("s", &Question::Publish(Box::new(event.clone())), 5_000, 0);
        assert_eq!(text, format!(r#"["EVENT",{}]"#, event.to_json()));
        assert_eq!(exchange.on_text(1, r#"["OK","ab",true,""]"#), None);
        assert_eq!(exchange.on_text(1, r#"["CLOSED","s","error: x"]"#), None);
        let ok = format!(r#"["OK","{}",false,"pow: 20"]"#, event.id());
        assert_eq!(exchange.on_text(1, &ok), Some(Reply::Ok { accepted: false, message: "pow: 20".into() }));
    }

    #[test]
    fn a_reconciliation_left_open_is_closed() {
        let (exchange, text) = Exchange::start("s", &Question::NegOpen(Filter::default()), 5_000, 0);
        assert_eq!(text, r#"["NEG-OPEN","s",{},"6100000200"]"#);
        let close = Some(r#"["NEG-CLOSE","s"]"#.to_owned());
        assert_eq!(exchange.farewell(&Reply::NegMsg { digits: 4 }), close);
        assert_eq!(exchange.farewell(&Reply::NegErr { message: String::new() }), None);
        assert_eq!(count().farewell(&Reply::Silent), None);
    }
}
