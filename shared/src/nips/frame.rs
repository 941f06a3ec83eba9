//! The frames of NIP-01, NIP-42, NIP-45, NIP-67 and NIP-77: what a relay says, read from hostile text, and
//! those we send.
//!
//! Knows nothing of sockets, time or what a frame means for a subscription. Invariant: no text makes
//! [`parse`] panic, recurse without bound, or allocate more than a constant over the text's own size.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::filter::Filter;
use crate::models::{EnvelopeFacts, Event, SignedSeed};

/// Largest frame read, in bytes: twice the biggest message limit seen in NIP-11 documents (1 MiB), and
/// the cap of the WebSocket layer.
pub const FRAME_MAX_BYTES: usize = 2 * 1024 * 1024;

/// Longest message (CLOSED, NOTICE, OK) or unknown label kept, in bytes: they end in logs and rows, and
/// a relay writes them.
pub const MESSAGE_MAX_BYTES: usize = 512;

/// How an EVENT frame begins.
const EVENT_HEAD: &str = r#"["EVENT""#;

/// Elements of a frame that are looked at; NIP-01 needs four (OK), the rest is skipped unread.
const ELEMENTS_MAX: usize = 4;

/// One frame from a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayFrame<'a> {
    /// `["EVENT", sub, {…}]`: the event is its raw JSON object, unread.
    Event { sub: Cow<'a, str>, event: &'a str },
    /// `["EOSE", sub, […]?]` with the NIP-67 hint, if a known one was there.
    Eose { sub: Cow<'a, str>, hint: Option<EoseHint> },
    /// `["CLOSED", sub, message]`; a missing message reads as empty.
    Closed { sub: Cow<'a, str>, message: String },
    /// `["NOTICE", message]`: names no subscription.
    Notice { message: String },
    /// `["OK", event id, accepted, message]`; the id as sent.
    Ok { id: Cow<'a, str>, accepted: bool, message: String },
    /// `["AUTH", challenge]` (NIP-42).
    Auth { challenge: Cow<'a, str> },
    /// `["COUNT", sub, {"count": n, "approximate": bool?}]` (NIP-45).
    Count { sub: Cow<'a, str>, count: u64, approximate: bool },
    /// `["NEG-MSG", sub, hex]` (NIP-77): the message as sent.
    NegMsg { sub: Cow<'a, str>, message: Cow<'a, str> },
    /// `["NEG-ERR", sub, reason, max records?]` (NIP-77).
    NegErr { sub: Cow<'a, str>, message: String, most: Option<u64> },
    /// A frame of another label.
    Unknown { label: String },
}

/// What a relay says of an EOSE's completeness (NIP-67). Its absence means nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EoseHint {
    /// Every stored match was sent: a claim, to be verified.
    Finish,
    /// More is stored than was sent.
    More,
}

/// Why a text is no frame. A remote's doing: the caller counts it and goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`FRAME_MAX_BYTES`].
    #[error("the frame is larger than {FRAME_MAX_BYTES} bytes")]
    TooLarge,
    /// Not one JSON array.
    #[error("the frame is not a JSON array")]
    NotArray,
    /// An array without the elements its label asks for; names the missing one.
    #[error("the frame has no valid {0}")]
    Shape(&'static str),
}

/// Reads one text message of a relay. Unknown labels and surplus elements are no error.
///
/// # Errors
/// [`FrameError`] for anything that is not a frame; never a panic.
pub fn parse(text: &str) -> Result<RelayFrame<'_>, FrameError> {
    if text.len() > FRAME_MAX_BYTES {
        return Err(FrameError::TooLarge);
    }
    let head: Head<'_> = serde_json::from_str(text).map_err(|_| FrameError::NotArray)?;
    let label = head.text(0).ok_or(FrameError::Shape("label"))?;
    match label.as_ref() {
        "EVENT" => Ok(RelayFrame::Event { sub: head.sub()?, event: head.object(2)? }),
        "EOSE" => Ok(RelayFrame::Eose { sub: head.sub()?, hint: head.hint(2) }),
        "CLOSED" => Ok(RelayFrame::Closed { sub: head.sub()?, message: head.message(2) }),
        "NOTICE" => Ok(RelayFrame::Notice { message: head.message(1) }),
        "OK" => Ok(RelayFrame::Ok {
            id: head.text(1).ok_or(FrameError::Shape("event id"))?,
            accepted: head.flag(2).ok_or(FrameError::Shape("accepted"))?,
            message: head.message(3),
        }),
        "AUTH" => Ok(RelayFrame::Auth { challenge: head.text(1).ok_or(FrameError::Shape("challenge"))? }),
        "COUNT" => {
            let body: Counted =
                serde_json::from_str(head.object(2)?).map_err(|_| FrameError::Shape("count"))?;
            Ok(RelayFrame::Count { sub: head.sub()?, count: body.count, approximate: body.approximate })
        }
        "NEG-MSG" => Ok(RelayFrame::NegMsg {
            sub: head.sub()?,
            message: head.text(2).ok_or(FrameError::Shape("negentropy message"))?,
        }),
        "NEG-ERR" => Ok(RelayFrame::NegErr {
            sub: head.sub()?,
            message: head.message(2),
            most: head.raw(3).and_then(|raw| raw.parse().ok()),
        }),
        other => Ok(RelayFrame::Unknown { label: capped(other) }),
    }
}

/// An EVENT frame with what its event's envelope says, read in one pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventFrame<'a> {
    /// The subscription.
    pub sub: &'a str,
    /// What the event claims.
    pub facts: EnvelopeFacts,
    /// Its signature, where it has one of the right shape.
    pub sig: Option<[u8; 64]>,
    /// Where in the frame the event's JSON object stands.
    pub span: Range<usize>,
}

/// Reads an EVENT frame as nearly all are written: three elements, no escapes in the first two, an envelope of the right
/// shape. `None` for every other text, which [`parse`] then judges: what this takes, that takes too.
pub fn event(text: &str) -> Option<EventFrame<'_>> {
    if text.len() > FRAME_MAX_BYTES || !text.starts_with(EVENT_HEAD) {
        return None;
    }
    let mut source = serde_json::Deserializer::from_str(text);
    let (sub, facts, sig) = source.deserialize_seq(EventElements).ok()?;
    source.end().ok()?;
    // The object stands between the quote after the subscription and the bracket that ends the frame.
    let after_sub = sub.as_ptr() as usize - text.as_ptr() as usize + sub.len() + 1;
    let start = after_sub + text[after_sub..].find('{')?;
    let end = text.trim_end().strip_suffix(']')?.trim_end().len();
    text[start..end].ends_with('}').then_some(EventFrame { sub, facts, sig, span: start..end })
}

/// Label, subscription and event; anything else is an error.
struct EventElements;

impl<'de> Visitor<'de> for EventElements {
    type Value = (&'de str, EnvelopeFacts, Option<[u8; 64]>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an EVENT frame")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let short = || A::Error::custom("an element is missing");
        let _label: &str = seq.next_element()?.ok_or_else(short)?;
        let sub = seq.next_element()?.ok_or_else(short)?;
        let (facts, sig) = seq.next_element_seed(SignedSeed)?.ok_or_else(short)?;
        if seq.next_element::<IgnoredAny>()?.is_some() {
            return Err(A::Error::custom("surplus elements"));
        }
        Ok((sub, facts, sig))
    }
}

/// The body of a COUNT; the hyperloglog registers are passed over.
#[derive(Deserialize)]
struct Counted {
    count: u64,
    #[serde(default)]
    approximate: bool,
}

/// The first [`ELEMENTS_MAX`] elements of an array, unread. What follows is skipped by the parser's
/// iterative scanner, so neither depth nor count costs memory.
struct Head<'a>([Option<&'a RawValue>; ELEMENTS_MAX]);

impl<'a> Head<'a> {
    fn raw(&self, index: usize) -> Option<&'a str> {
        self.0.get(index).copied().flatten().map(RawValue::get)
    }

    fn text(&self, index: usize) -> Option<Cow<'a, str>> {
        let raw = self.raw(index)?;
        let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
        if inner.contains('\\') {
            return serde_json::from_str::<String>(raw).ok().map(Cow::Owned);
        }
        Some(Cow::Borrowed(inner))
    }

    fn sub(&self) -> Result<Cow<'a, str>, FrameError> {
        self.text(1).ok_or(FrameError::Shape("subscription id"))
    }

    fn object(&self, index: usize) -> Result<&'a str, FrameError> {
        self.raw(index).filter(|raw| raw.starts_with('{')).ok_or(FrameError::Shape("event object"))
    }

    fn flag(&self, index: usize) -> Option<bool> {
        match self.raw(index)? {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }

    fn message(&self, index: usize) -> String {
        self.text(index).map(|text| capped(&text)).unwrap_or_default()
    }

    fn hint(&self, index: usize) -> Option<EoseHint> {
        let raw = self.raw(index)?;
        serde_json::from_str::<Hints>(raw).ok().and_then(Hints::verdict)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Head<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;
        impl<'de> Visitor<'de> for Elements {
            type Value = [Option<&'de RawValue>; ELEMENTS_MAX];
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut elements = [None; ELEMENTS_MAX];
                for slot in &mut elements {
                    *slot = seq.next_element::<&RawValue>()?;
                    if slot.is_none() {
                        return Ok(elements);
                    }
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(elements)
            }
        }
        deserializer.deserialize_seq(Elements).map(Head)
    }
}

/// The known values of a NIP-67 array, whatever else it holds.
#[derive(Default)]
struct Hints {
    finish: bool,
    more: bool,
}

impl Hints {
    /// A relay that says both is believed in the weaker.
    fn verdict(self) -> Option<EoseHint> {
        match (self.finish, self.more) {
            (_, true) => Some(EoseHint::More),
            (true, false) => Some(EoseHint::Finish),
            (false, false) => None,
        }
    }
}

impl<'de> Deserialize<'de> for Hints {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values;
        impl<'de> Visitor<'de> for Values {
            type Value = Hints;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Hints, A::Error> {
                let mut hints = Hints::default();
                while let Some(value) = seq.next_element::<&RawValue>()? {
                    hints.finish |= value.get() == "\"finish\"";
                    hints.more |= value.get() == "\"more\"";
                }
                Ok(hints)
            }
        }
        deserializer.deserialize_seq(Values)
    }
}

fn capped(text: &str) -> String {
    text[..text.floor_char_boundary(MESSAGE_MAX_BYTES)].to_owned()
}

/// The text of `["REQ", sub, filter]`.
pub fn req(sub: &str, filter: &Filter) -> String {
    format!(r#"["REQ",{},{}]"#, serde_json::Value::from(sub), filter.to_json())
}

/// The text of `["COUNT", sub, filter]` (NIP-45).
pub fn count(sub: &str, filter: &Filter) -> String {
    format!(r#"["COUNT",{},{}]"#, serde_json::Value::from(sub), filter.to_json())
}

/// The text of `["NEG-OPEN", sub, filter, hex]` (NIP-77).
pub fn neg_open(sub: &str, filter: &Filter, message: &str) -> String {
    format!(r#"["NEG-OPEN",{},{},"{message}"]"#, serde_json::Value::from(sub), filter.to_json())
}

/// The text of `["NEG-MSG", sub, hex]` (NIP-77).
pub fn neg_msg(sub: &str, message: &str) -> String {
    format!(r#"["NEG-MSG",{},"{message}"]"#, serde_json::Value::from(sub))
}

/// The text of `["NEG-CLOSE", sub]` (NIP-77).
pub fn neg_close(sub: &str) -> String {
    format!(r#"["NEG-CLOSE",{}]"#, serde_json::Value::from(sub))
}

/// The text of `["EVENT", event]` or `["AUTH", event]`.
pub fn labelled(label: &str, event: &Event) -> String {
    format!(r#"["{label}",{}]"#, event.to_json())
}

/// The text of `["CLOSE", sub]`.
pub fn close(sub: &str) -> String {
    format!(r#"["CLOSE",{}]"#, serde_json::Value::from(sub))
}

#[cfg(test)]
mod tests;
