//! A Nostr event as NIP-01 defines it, kept as plain values.
//!
//! Nothing valid is lost: NUL, control characters, long and non-Latin tags are all content like any
//! other. Invariant: the id of an [`Event`] is the SHA-256 of its own fields; whether the signature
//! verifies is asked apart, because it costs a thousand times more.

mod authors;
mod json;

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

pub use self::authors::Authors;

/// The longest event text taken, in bytes: the WebSocket message cap, beyond which nothing arrives.
pub const MAX_EVENT_BYTES: usize = 2 * 1024 * 1024;

/// The largest time an [`event_key`] tells apart: the keys of later events share its bits.
const MAX_KEY_SECOND: i64 = u32::MAX as i64;

/// Bits of the id in an [`event_key`]: 32 bits of time and these make a non-negative `bigint`.
const KEY_ID_BITS: u32 = 31;

/// Why a text is not an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum EventError {
    /// The text is not JSON (lone surrogates included).
    #[error("the event is not JSON")]
    NotJson,
    /// A field is missing, doubled or of the wrong type; the word names it.
    #[error("the event's shape is wrong: {0}")]
    Shape(&'static str),
    /// A number is outside what Nostr and the database can hold; the word names the field.
    #[error("the event's {0} is out of range")]
    Range(&'static str),
    /// The id is not the hash of the event.
    #[error("the event's id is not the hash of its content")]
    BadId,
    /// The id is the hash of the event as its relay program writes JSON, and not as NIP-01 does.
    #[error("the event's id is the hash of another way to write it")]
    OtherEscape,
    /// The signature does not verify, or the public key is no point on the curve.
    #[error("the event's signature does not verify")]
    BadSignature,
    /// The text is longer than [`MAX_EVENT_BYTES`].
    #[error("the event is larger than {MAX_EVENT_BYTES} bytes")]
    TooLarge,
}

impl EventError {
    /// Every class.
    pub const WORDS: [&str; 7] =
        ["not_json", "shape", "range", "bad_id", "other_escape", "bad_signature", "too_large"];

    /// Whether somebody made up what it says; anything else may be how a relay program reads and writes.
    pub const fn is_forgery(self) -> bool {
        matches!(self, Self::BadId | Self::BadSignature)
    }

    /// The error's class, for counters: a closed set.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotJson => "not_json",
            Self::Shape(_) => "shape",
            Self::Range(_) => "range",
            Self::BadId => "bad_id",
            Self::OtherEscape => "other_escape",
            Self::BadSignature => "bad_signature",
            Self::TooLarge => "too_large",
        }
    }
}

/// An event's id: SHA-256 of its canonical form (NIP-01). Ordered as its hex text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(pub [u8; 32]);

impl EventId {
    /// The id's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl TryFrom<&[u8]> for EventId {
    type Error = EventError;

    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        bytes.try_into().map(Self).map_err(|_| EventError::Shape("id"))
    }
}

impl FromStr for EventId {
    type Err = EventError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        json::lower_hex(text).map(Self).ok_or(EventError::Shape("id"))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// The event's place in the archive: `created_at` clamped to 32 bits, then the top 31 bits of the id.
/// Ascending in time, never negative; two events may share one, rarely.
pub fn event_key(created_at: i64, id: &EventId) -> i64 {
    let [a, b, c, d, ..] = id.0;
    let top = u32::from_be_bytes([a, b, c, d]) >> (u32::BITS - KEY_ID_BITS);
    (created_at.clamp(0, MAX_KEY_SECOND) << KEY_ID_BITS) | i64::from(top)
}

/// The hash by which the archive finds a single-letter tag: the first eight bytes of
/// SHA-256 of `letter:value`, so that a value of any length fits an index.
pub fn tag_hash(letter: char, value: &str) -> i64 {
    let digest: [u8; 32] = Sha256::digest(format!("{letter}:{value}")).into();
    let (first, _) = digest.split_first_chunk().expect("a SHA-256 digest has more than eight bytes");
    i64::from_be_bytes(*first)
}

/// How relays keep events of a kind (NIP-01).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KindClass {
    /// Every event is kept.
    Regular,
    /// The latest per author and kind.
    Replaceable,
    /// None is kept.
    Ephemeral,
    /// The latest per author, kind and `d` tag.
    Addressable,
}

impl KindClass {
    /// The class of a kind; kinds that NIP-01 leaves open are regular.
    pub const fn of(kind: u16) -> Self {
        match kind {
            0 | 3 | 10_000..=19_999 => Self::Replaceable,
            20_000..=29_999 => Self::Ephemeral,
            30_000..=39_999 => Self::Addressable,
            _ => Self::Regular,
        }
    }
}

/// What a look at an event's text tells without hashing or verifying anything: claims, not facts
/// about the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnvelopeFacts {
    /// The id that the event claims.
    pub id: EventId,
    /// Seconds since the epoch, 0..=`i64::MAX`.
    pub created_at: i64,
    /// The kind.
    pub kind: u16,
    /// The author's x-only public key.
    pub pubkey: [u8; 32],
}

impl EnvelopeFacts {
    /// Reads the four facts and skips the rest unread: `tags`, `content` and `sig` may be anything.
    pub fn scan(json: &str) -> Result<Self, EventError> {
        json::scan(json)
    }

    /// The time alone, of a text that [`EnvelopeFacts::scan`] refuses for something else; `None` where the text is no
    /// JSON object, or has a key twice.
    pub fn time(json: &str) -> Option<i64> {
        json::time(json)
    }

    /// As [`EnvelopeFacts::scan`], with the signature where the text has one of the right shape.
    pub fn scan_signed(json: &str) -> Result<(Self, Option<[u8; 64]>), EventError> {
        json::scan_signed(json)
    }
}

/// Reads what [`EnvelopeFacts::scan_signed`] reads where the event stands inside a larger JSON text, in the pass that
/// reads that one.
#[derive(Debug, Clone, Copy)]
pub struct SignedSeed;

/// An event whose id is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    id: EventId,
    pubkey: [u8; 32],
    created_at: i64,
    kind: u16,
    tags: Vec<Vec<String>>,
    content: String,
    sig: [u8; 64],
}

impl Event {
    /// Reads an event: shape, ranges, no key twice, id recomputed. Keys that Nostr does not know
    /// are passed over. The signature is not looked at: see [`Event::verify_signature`].
    pub fn parse(json: &str) -> Result<Self, EventError> {
        json::parse(json)
    }

    /// Puts an event together from its fields, as they come back from the database.
    ///
    /// # Errors
    /// `Range` for a negative time, `BadId` when the id is not the hash of the other fields.
    pub fn from_parts(
        id: EventId,
        pubkey: [u8; 32],
        created_at: i64,
        kind: u16,
        tags: Vec<Vec<String>>,
        content: String,
        sig: [u8; 64],
    ) -> Result<Self, EventError> {
        if created_at < 0 {
            return Err(EventError::Range("created_at"));
        }
        let event = Self { id, pubkey, created_at, kind, tags, content, sig };
        if event.computed_id() == event.id {
            return Ok(event);
        }
        Err(if event.is_escaped_otherwise() { EventError::OtherEscape } else { EventError::BadId })
    }

    /// Makes a new event; `sign` gives the BIP-340 signature over the id it is shown.
    ///
    /// # Errors
    /// `Range` for a negative time.
    pub fn signed(
        pubkey: [u8; 32],
        created_at: i64,
        kind: u16,
        tags: Vec<Vec<String>>,
        content: String,
        sign: impl FnOnce(&EventId) -> [u8; 64],
    ) -> Result<Self, EventError> {
        if created_at < 0 {
            return Err(EventError::Range("created_at"));
        }
        let mut event = Self { id: EventId([0; 32]), pubkey, created_at, kind, tags, content, sig: [0; 64] };
        event.id = event.computed_id();
        event.sig = sign(&event.id);
        Ok(event)
    }

    /// The id that an event of these fields has, whoever signs it.
    pub fn id_of(
        pubkey: [u8; 32],
        created_at: i64,
        kind: u16,
        tags: Vec<Vec<String>>,
        content: &str,
    ) -> EventId {
        let content = content.to_owned();
        Self { id: EventId([0; 32]), pubkey, created_at, kind, tags, content, sig: [0; 64] }.computed_id()
    }

    /// Reads what [`Event::tags_json`] wrote.
    pub fn parse_tags(json: &str) -> Result<Vec<Vec<String>>, EventError> {
        serde_json::from_str(json)
            .map_err(|error| if error.is_data() { EventError::Shape("tags") } else { EventError::NotJson })
    }

    /// Whether the author signed this event (BIP-340 over the id).
    pub fn verify_signature(&self) -> Result<(), EventError> {
        authors::signed_by(&authors::key(self)?, self)
    }

    /// Whether the author signed an id that is the hash of the same fields with DEL written as `\u007f`, as the JSON writer of
    /// some relay programs does.
    fn is_escaped_otherwise(&self) -> bool {
        let canonical = self.canonical();
        canonical.contains('\u{7f}')
            && EventId(Sha256::digest(canonical.replace('\u{7f}', "\\u007f")).into()) == self.id
            && self.verify_signature().is_ok()
    }

    /// The SHA-256 of `[0,pubkey,created_at,kind,tags,content]` without blanks (NIP-01), control
    /// characters as `\u00xx`, as everybody writes them.
    fn computed_id(&self) -> EventId {
        EventId(Sha256::digest(self.canonical()).into())
    }

    /// The id.
    pub const fn id(&self) -> EventId {
        self.id
    }

    /// The id's bytes.
    pub const fn id_bytes(&self) -> &[u8; 32] {
        &self.id.0
    }

    /// The author's x-only public key.
    pub const fn pubkey(&self) -> &[u8; 32] {
        &self.pubkey
    }

    /// Seconds since the epoch as the author claims them, 0..=`i64::MAX`.
    pub const fn created_at(&self) -> i64 {
        self.created_at
    }

    /// The kind.
    pub const fn kind(&self) -> u16 {
        self.kind
    }

    /// The tags, in order; a tag may be empty.
    pub fn tags(&self) -> &[Vec<String>] {
        &self.tags
    }

    /// The content, which may hold any character, NUL included.
    pub fn content(&self) -> &str {
        &self.content
    }

    /// The signature, verified or not.
    pub const fn sig(&self) -> &[u8; 64] {
        &self.sig
    }

    /// The event's place in the archive.
    pub fn key(&self) -> i64 {
        event_key(self.created_at, &self.id)
    }

    /// What [`EnvelopeFacts::scan`] would say of this event.
    pub const fn facts(&self) -> EnvelopeFacts {
        EnvelopeFacts { id: self.id, created_at: self.created_at, kind: self.kind, pubkey: self.pubkey }
    }

    /// The value of the first `d` tag for addressable kinds, empty when there is none; `None` for
    /// all other kinds, where `d` means nothing.
    pub fn d_tag(&self) -> Option<&str> {
        if KindClass::of(self.kind) != KindClass::Addressable {
            return None;
        }
        let first = self.tags.iter().find(|tag| tag.first().is_some_and(|name| name == "d"));
        Some(first.and_then(|tag| tag.get(1)).map_or("", String::as_str))
    }

    /// [`tag_hash`] of every single-letter tag with a value, ascending, each once.
    pub fn tag_hashes(&self) -> Vec<i64> {
        let mut hashes: Vec<i64> = self
            .tags
            .iter()
            .filter_map(|tag| {
                let [name, value, ..] = tag.as_slice() else { return None };
                let mut letters = name.chars();
                let letter = letters.next().filter(char::is_ascii_alphabetic)?;
                letters.next().is_none().then(|| tag_hash(letter, value))
            })
            .collect();
        hashes.sort_unstable();
        hashes.dedup();
        hashes
    }
}

#[cfg(test)]
mod tests;
