//! What a scripted relay does beyond NIP-01, as data values.

use nostr::event::Event;
use serde_json::{Value, json};

use super::neg::Sets;

/// The challenge every script sends.
pub(super) const CHALLENGE: &str = "challenge-of-the-script";

/// How it speaks NIP-42, 45, 50, 67, 77, and how it bends filters. The default does none of it.
#[derive(Debug, Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a behaviour of its own")]
pub struct Speech {
    /// NIP-42; `None` is never.
    pub auth: Option<AuthScript>,
    /// How a COUNT is answered.
    pub count: Extra,
    /// How a NEG-OPEN is answered.
    pub negentropy: Extra,
    /// How its sets are bent before they are compared.
    pub sets: Sets,
    /// Whether `search` narrows a page; ignored otherwise.
    pub searches: bool,
    /// Whether EOSE says whether everything was sent (NIP-67).
    pub hints: bool,
    /// Whether a filter without kinds is refused.
    pub needs_kinds: bool,
    /// Lists of which a filter must have one, such as `authors` or `#p`, to be answered; none: any filter is.
    pub needs_one_of: Vec<&'static str>,
    /// Lists of which a filter must have every one, such as `kinds` and `authors`.
    pub needs_all_of: Vec<&'static str>,
    /// The only kinds a filter may name; none: any.
    pub allows_kinds: Vec<u16>,
    /// Most kinds a filter may name; `None` is any number.
    pub kinds_most: Option<usize>,
    /// Fields of a filter that it does not look at, such as `until`.
    pub ignores: Vec<&'static str>,
    /// Whether a request by ids gets nothing but EOSE.
    pub hides_ids: bool,
    /// The longest range of a filter, seconds, that it answers; what happens to a longer one, or an open one.
    pub widest: Option<(i64, Balk)>,
    /// Public keys (hex): a filter that names one as an author gets no answer.
    pub stuck: Vec<String>,
    /// Whether `until` means older than.
    pub exclusive_until: bool,
    /// Events for a filter without `limit`; `None` is the cap.
    pub default_limit: Option<usize>,
    /// Events for a `limit` above the cap; `None` is the cap.
    pub above_cap: Option<usize>,
}

impl Speech {
    /// What a REQ gets that asks for more than is answered; one by ids asks for no range.
    pub(super) fn balks(&self, frame: &Value) -> Option<&Balk> {
        let filter = &frame[2];
        let names =
            |key: &String| filter["authors"].as_array().is_some_and(|authors| authors.contains(&json!(key)));
        if self.stuck.iter().any(names) {
            return Some(&Balk::Silent);
        }
        let (most, balk) = self.widest.as_ref()?;
        let span = filter["until"].as_i64().zip(filter["since"].as_i64()).map(|(until, since)| until - since);
        let long = filter["ids"].is_null() && span.is_none_or(|span| span > *most);
        long.then_some(balk)
    }

    /// Why a message with this filter is refused, if it is; an EVENT has none.
    pub(super) fn displeased(&self, frame: &Value) -> Option<String> {
        let filter = &frame[2];
        let has = |name: &&str| !filter[*name].is_null();
        if frame[0] == "EVENT" {
            return None;
        }
        if !self.needs_one_of.is_empty() && !self.needs_one_of.iter().any(has) {
            return Some(format!("blocked: a filter must have {}", self.needs_one_of.join(" or ")));
        }
        if !self.needs_all_of.iter().all(has) {
            return Some(format!("blocked: a filter must have {}", self.needs_all_of.join(" and ")));
        }
        let kinds = filter["kinds"].as_array().map(Vec::as_slice).unwrap_or_default();
        if self.kinds_most.is_some_and(|most| kinds.len() > most) {
            return Some(format!("ERROR: bad req: too many kinds in filter: {}", kinds.len()));
        }
        let allowed = |kind: &&Value| self.allows_kinds.iter().any(|allowed| **kind == json!(allowed));
        if let Some(kind) = kinds.iter().find(|kind| !self.allows_kinds.is_empty() && !allowed(kind)) {
            return Some(format!("ERROR: bad req: kind not allowed: {kind}"));
        }
        let kindless = frame[0] == "REQ" && filter["kinds"].is_null();
        (self.needs_kinds && kindless).then(|| "invalid: must specify kinds".to_owned())
    }
}

/// What a filter that asks for too much gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Balk {
    /// CLOSED with this message.
    Closed(String),
    /// No answer.
    Silent,
}

/// How a message beyond NIP-01 is answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Extra {
    /// By a NOTICE that the message is unknown.
    #[default]
    Unknown,
    /// As its NIP says.
    Works,
    /// By CLOSED with this message.
    Closed(String),
    /// By NOTICE with this text.
    Notice(String),
    /// By NEG-ERR with this reason.
    NegErr(String),
    /// By EOSE.
    Eose,
    /// Not at all.
    Silent,
}

/// When a challenge comes, and what becomes of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthScript {
    /// When the challenge is sent.
    pub when: When,
    /// Whether a request of somebody unknown is refused with `auth-required`.
    pub required: bool,
    /// The message with which every answer is refused; `None` takes one that is right.
    pub refuses: Option<String>,
    /// The message with which requests are refused even then.
    pub restricted: Option<String>,
}

/// When a challenge is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// As soon as a client is connected.
    Connected,
    /// Before a request is refused.
    Asked,
    /// After it is refused.
    Refused,
}

impl AuthScript {
    /// Required, and given to whom answers rightly.
    pub const fn required(when: When) -> Self {
        Self { when, required: true, refuses: None, restricted: None }
    }
}

/// What a right answer to the challenge is: kind, tags, time and signature; else why it is none.
pub(super) fn judge_auth(event: &Value, host: &str) -> Result<(), &'static str> {
    let Ok(event) = Event::from_json(event.to_string()) else { return Err("invalid: no event") };
    let value = |name: &str| {
        let mut tags = event.tags.iter().map(nostr::event::Tag::as_slice);
        tags.find(|tag| tag.first().is_some_and(|first| first == name)).and_then(|tag| tag.get(1)).cloned()
    };
    let age = shared::clock::unix_now().abs_diff(i64::try_from(event.created_at.as_secs()).unwrap_or(0));
    if event.verify().is_err() {
        Err("invalid: bad signature")
    } else if event.kind.as_u16() != 22_242 || age > 60 {
        Err("invalid: wrong kind or time")
    } else if value("challenge").as_deref() != Some(CHALLENGE) {
        Err("invalid: wrong challenge")
    } else if !value("relay").is_some_and(|relay| relay.contains(host)) {
        Err("invalid: wrong relay")
    } else {
        Ok(())
    }
}

/// The answers to a COUNT or a NEG-OPEN of `sub`; `works` is the one its NIP says.
pub(super) fn answers(extra: &Extra, label: &str, sub: &Value, works: Value) -> Vec<Value> {
    match extra {
        Extra::Unknown => vec![json!(["NOTICE", format!("unknown message {label:?}")])],
        Extra::Works => vec![works],
        Extra::Closed(message) => vec![json!(["CLOSED", sub, message])],
        Extra::Notice(text) => vec![json!(["NOTICE", text])],
        Extra::NegErr(reason) => vec![json!(["NEG-ERR", sub, reason])],
        Extra::Eose => vec![json!(["EOSE", sub])],
        Extra::Silent => vec![],
    }
}
