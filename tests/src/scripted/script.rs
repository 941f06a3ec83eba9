//! What a scripted relay does, as a data value.

use nostr::event::Event;
use serde_json::{Value, json};

use crate::factory::Factory;
use crate::hostile;

use super::raw::Raw;
use super::speech::Speech;

/// The whole behaviour of a scripted relay. [`Script::honest`] is the base; the fields are there to be changed.
#[derive(Debug, Clone)]
pub struct Script {
    /// Body answered to a plain GET, with its content type; `None` answers 404.
    pub http: Option<HttpBody>,
    /// Instead of that: bytes as they are.
    pub raw: Option<Raw>,
    /// Status that refuses the WebSocket upgrade; `None` accepts it.
    pub refuse_upgrade: Option<u16>,
    /// Frames sent as soon as a client is connected.
    pub greeting: Vec<String>,
    /// What is stored; a REQ is answered newest first.
    pub events: Vec<Stored>,
    /// Most events per REQ, whatever its limit.
    pub cap: usize,
    /// How a REQ is answered.
    pub answer: Answer,
    /// Makes one REQ end otherwise than `answer` says.
    pub exception: Option<Exception>,
    /// This one REQ, counted from 1, is not answered at all.
    pub unanswered: Option<u64>,
    /// What happens to a published event.
    pub writes: Writes,
    /// What it does beyond NIP-01.
    pub speech: Speech,
}

/// The body of an HTTP answer.
#[derive(Debug, Clone)]
pub struct HttpBody {
    /// The status line's number.
    pub status: u16,
    /// The header `Content-Type`.
    pub content_type: String,
    /// The body.
    pub body: Vec<u8>,
}

/// How a REQ is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Matching events, newest first, then EOSE.
    Serve,
    /// Matching events, oldest first, then EOSE: breaks paging by `until`.
    OldestFirst,
    /// The newest events whatever the filter says, then EOSE.
    IgnoreFilter,
    /// Nothing at all.
    Silent,
    /// The client's own frames, of every kind.
    Echo,
    /// Frames that are no Nostr: prose, broken JSON, wrong shapes, for every frame received.
    Garbage,
    /// A NOTICE with this text.
    Notice(String),
    /// Stored events for our subscription, over and over, without EOSE.
    Flood,
    /// Stored events for a subscription nobody opened, over and over, without EOSE.
    FloodStray,
    /// This many matching events, then the connection is dropped without a close frame.
    CloseMidPage(usize),
    /// One EVENT frame of this many bytes.
    HugeFrame(usize),
    /// Pings without end, and nothing else.
    Pings,
    /// Matching events, no EOSE.
    EoseNever,
    /// The same, one every so many milliseconds, from this REQ on (from 1).
    Drip(u64, u64),
    /// AUTH and `CLOSED auth-required`, until the client sends an AUTH event.
    AuthRequired,
    /// EOSE only after this many milliseconds of silence.
    LateEose(u64),
    /// Matching events, then EOSE; what this connection was sent before comes with another body, under the same id, and
    /// under the same signature or, where this is true, another.
    ForgeRepeats(bool),
    /// EOSE at once; where this is true, a request by ids is served.
    Mute(bool),
    /// Matching events; from this REQ on (from 1, over all connections), EOSE at once, after this NOTICE where it is not
    /// empty.
    MuteFrom(u64, String),
    /// Matching events, then EOSE; those of these ids (hexadecimal) only where a request names ids.
    ByIdOnly(Vec<String>),
    /// As many matching events as a page holds, any of them and in any order, by this number and the REQ; then EOSE.
    Subset(u64),
    /// The same, sorted newest first before they are sent.
    SortedSubset(u64),
    /// Pages in order, of which every one of ten events and more lacks its middle third (a queue that was full); then EOSE.
    DropMiddle,
    /// Matching events, and the EOSE of another subscription.
    EoseOfAnother,
    /// The connection is cut as soon as a page is more than so many bytes, as one that reads too slowly is.
    CutSlow(usize),
}

/// A REQ answered by CLOSED.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exception {
    /// Which REQ, counted from 1 over all connections; 0 means every one.
    pub request: u64,
    /// The CLOSED message, such as `rate-limited: slow down`.
    pub message: String,
}

/// What happens to a published event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writes {
    /// Verified, stored, `OK true`; a forged one gets `OK false`.
    Accept,
    /// `OK false` with this text.
    Refuse(String),
    /// No answer.
    Silent,
    /// `OK true`, for an event nobody sent.
    AnotherId,
    /// This many bits of proof of work (NIP-13), demanded in words, or this text where there is one.
    Work(u32, Option<String>),
}

/// An event as the relay sends it: raw text, and the fields a filter asks for.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The exact text sent.
    pub json: String,
    fields: Value,
}

impl Stored {
    /// Text that parses as a JSON object, honest or not.
    ///
    /// # Panics
    /// When the text is not JSON.
    pub fn raw(json: String) -> Self {
        let fields = serde_json::from_str(&json).expect("a stored event is JSON");
        Self { json, fields }
    }

    /// Any text in place of an event: asked for and sorted as that one is.
    pub fn instead_of(event: &Event, text: String) -> Self {
        Self { json: text, ..Self::from(event) }
    }

    /// The time it sorts by.
    pub fn created_at(&self) -> i64 {
        self.fields["created_at"].as_i64().unwrap_or(0)
    }

    /// Its id, if it has one.
    pub fn id(&self) -> Option<[u8; 32]> {
        hex::decode(self.fields["id"].as_str()?).ok()?.try_into().ok()
    }

    /// Whether a NIP-01 filter asks for it.
    pub fn matches(&self, filter: &Value) -> bool {
        let one_of = |name: &str, value: &Value| match filter.get(name).and_then(Value::as_array) {
            Some(wanted) => wanted.contains(value),
            None => true,
        };
        let since = filter["since"].as_i64().unwrap_or(i64::MIN);
        let until = filter["until"].as_i64().unwrap_or(i64::MAX);
        one_of("ids", &self.fields["id"])
            && one_of("authors", &self.fields["pubkey"])
            && one_of("kinds", &self.fields["kind"])
            && (since..=until).contains(&self.created_at())
            && self.matches_tags(filter)
    }

    fn matches_tags(&self, filter: &Value) -> bool {
        let Some(filter) = filter.as_object() else { return false };
        let tags = self.fields["tags"].as_array().map(Vec::as_slice).unwrap_or_default();
        filter.iter().filter_map(|(name, wanted)| Some((name.strip_prefix('#')?, wanted))).all(
            |(letter, wanted)| {
                let wanted = wanted.as_array().map(Vec::as_slice).unwrap_or_default();
                tags.iter().any(|tag| tag[0] == letter && wanted.contains(&tag[1]))
            },
        )
    }
}

impl From<&Event> for Stored {
    fn from(event: &Event) -> Self {
        Self::raw(event.as_json())
    }
}

impl HttpBody {
    /// A NIP-11 document.
    pub fn nip11(document: &Value) -> Self {
        let content_type = "application/nostr+json".to_owned();
        Self { status: 200, content_type, body: document.to_string().into_bytes() }
    }
}

impl Script {
    /// Serves `events` newest first, at most `cap` per REQ, with a NIP-11 document, and accepts writes.
    pub fn honest<'a>(events: impl IntoIterator<Item = &'a Event>, cap: usize) -> Self {
        Self::of_stored(events.into_iter().map(Stored::from).collect(), cap)
    }

    /// As [`Self::honest`], of texts that may be forged.
    pub fn of_stored(events: Vec<Stored>, cap: usize) -> Self {
        let document = json!({
            "name": "scripted relay",
            "supported_nips": [1, 11],
            "limitation": { "max_limit": cap },
        });
        Self {
            http: Some(HttpBody::nip11(&document)),
            raw: None,
            refuse_upgrade: None,
            greeting: vec![],
            events,
            cap,
            answer: Answer::Serve,
            exception: None,
            unanswered: None,
            writes: Writes::Accept,
            speech: Speech::default(),
        }
    }

    /// This script, answering REQs otherwise.
    #[must_use]
    pub fn answering(mut self, answer: Answer) -> Self {
        self.answer = answer;
        self
    }

    /// This script, its `request`-th REQ (from 1; 0: every one) answered by CLOSED with `message`.
    #[must_use]
    pub fn closing(mut self, request: u64, message: &str) -> Self {
        self.exception = Some(Exception { request, message: message.to_owned() });
        self
    }

    /// This script, speaking so.
    #[must_use]
    pub fn speaking(mut self, speech: Speech) -> Self {
        self.speech = speech;
        self
    }

    /// This script with another NIP-11 document.
    #[must_use]
    pub fn saying(mut self, document: &Value) -> Self {
        self.http = Some(HttpBody::nip11(document));
        self
    }

    /// This script, answering HTTP by bytes as they are.
    #[must_use]
    pub fn pouring(mut self, raw: Raw) -> Self {
        self.raw = Some(raw);
        self
    }

    /// This script, refusing the upgrade with an HTTP status.
    #[must_use]
    pub fn refusing_upgrade(mut self, status: u16) -> Self {
        self.refuse_upgrade = Some(status);
        self
    }

    /// Every name [`Self::named`] knows.
    pub const NAMES: &'static [&'static str] = &[
        "honest",
        "oldest_first",
        "ignore_filter",
        "silent",
        "echo",
        "garbage",
        "notice_only",
        "flood",
        "flood_stray",
        "close_mid_page",
        "huge_frame",
        "bad_id",
        "bad_sig",
        "closed",
        "eose_never",
        "refuse_upgrade",
        "auth_required",
        "late_eose",
        "forge_repeats",
        "mute",
        "mute_but_ids",
        "hostile_events",
        "refuse_writes",
    ];

    /// A script by its name, over `events`; `None` for an unknown name.
    pub fn named(name: &str, events: &[Event]) -> Option<Self> {
        let honest = Self::honest(events, 500);
        let forged = |forge: fn(&Event) -> String| {
            Self::of_stored(events.iter().map(|event| Stored::raw(forge(event))).collect(), 500)
        };
        Some(match name {
            "honest" => honest,
            "oldest_first" => honest.answering(Answer::OldestFirst),
            "ignore_filter" => honest.answering(Answer::IgnoreFilter),
            "silent" => honest.answering(Answer::Silent),
            "echo" => honest.answering(Answer::Echo),
            "garbage" => honest.answering(Answer::Garbage),
            "notice_only" => honest.answering(Answer::Notice("this is not the relay you look for".into())),
            "flood" => honest.answering(Answer::Flood),
            "flood_stray" => honest.answering(Answer::FloodStray),
            "close_mid_page" => honest.answering(Answer::CloseMidPage(events.len() / 2)),
            "huge_frame" => honest.answering(Answer::HugeFrame(50 * 1024 * 1024)),
            "bad_id" => forged(hostile::with_bad_id),
            "bad_sig" => forged(hostile::with_bad_signature),
            "closed" => honest.closing(2, "rate-limited: slow down"),
            "eose_never" => honest.answering(Answer::EoseNever),
            "refuse_upgrade" => honest.refusing_upgrade(403),
            "auth_required" => honest.answering(Answer::AuthRequired),
            "late_eose" => honest.answering(Answer::LateEose(3_000)),
            "forge_repeats" => honest.answering(Answer::ForgeRepeats(false)),
            "mute" => honest.answering(Answer::Mute(false)),
            "mute_but_ids" => honest.answering(Answer::Mute(true)),
            "hostile_events" => {
                let valid = hostile::valid(&Factory::new(0), shared::clock::unix_now());
                Self::honest(valid.iter().map(|(_, event)| event), 500)
            }
            "refuse_writes" => Self { writes: Writes::Refuse("blocked: read only".into()), ..honest },
            _ => return None,
        })
    }
}
