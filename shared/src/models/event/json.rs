//! Events as JSON text, in both directions, in one pass and without guessing.
//!
//! Reading by hand and not by a derived shape, because the difference between "not JSON", "wrong
//! type" and "out of range" is counted per relay, and because no key may come twice.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde::ser::{SerializeStruct, SerializeTuple};
use serde_json::value::RawValue;

use super::{EnvelopeFacts, Event, EventError, EventId, MAX_EVENT_BYTES, SignedSeed};

/// The seven keys of an event, in the order in which they are written.
const FIELDS: [&str; 7] = ["id", "pubkey", "created_at", "kind", "tags", "content", "sig"];

/// Reads and checks a whole event.
pub(super) fn parse(json: &str) -> Result<Event, EventError> {
    let parts = read(json, Depth::Whole)?;
    let facts = parts.facts()?;
    Event::from_parts(
        facts.id,
        facts.pubkey,
        facts.created_at,
        facts.kind,
        parts.tags.ok_or(EventError::Shape("tags"))?,
        parts.content.ok_or(EventError::Shape("content"))?,
        hex_field(parts.sig, "sig")?,
    )
}

/// Reads the four facts of an envelope.
pub(super) fn scan(json: &str) -> Result<EnvelopeFacts, EventError> {
    read(json, Depth::Facts)?.facts()
}

/// Reads the four facts of an envelope and its signature.
pub(super) fn scan_signed(json: &str) -> Result<(EnvelopeFacts, Option<[u8; 64]>), EventError> {
    let parts = read(json, Depth::Signed)?;
    Ok((parts.facts()?, hex_field(parts.sig, "sig").ok()))
}

/// What is no lower-case hex digit in [`DIGITS`].
const NO_DIGIT: u8 = 0xf0;

/// Each byte's value as a lower-case hex digit. A table: the digits of an id are random, and a branch on each would
/// be guessed wrong every third time.
const DIGITS: [u8; 256] = {
    let mut table = [NO_DIGIT; 256];
    let digits = b"0123456789abcdef";
    let mut value = 0;
    while value < 16 {
        table[digits[value as usize] as usize] = value;
        value += 1;
    }
    table
};

/// `N` bytes from exactly `2 N` lower-case hex digits.
pub(super) fn lower_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    let mut wrong = 0;
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        let (high, low) = (DIGITS[usize::from(*high)], DIGITS[usize::from(*low)]);
        wrong |= high | low;
        *byte = high << 4 | low;
    }
    (wrong & NO_DIGIT == 0).then_some(bytes)
}

impl<'de> DeserializeSeed<'de> for SignedSeed {
    type Value = (EnvelopeFacts, Option<[u8; 64]>);

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        let mut at = "object";
        let parts = PartsSeed { depth: Depth::Signed, at: &mut at }.deserialize(deserializer)?;
        if parts.doubled {
            return Err(serde::de::Error::custom(EventError::Shape("duplicate_key")));
        }
        let facts = parts.facts().map_err(serde::de::Error::custom)?;
        Ok((facts, hex_field(parts.sig, "sig").ok()))
    }
}

/// How much of the text is read into values.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    Facts,
    Signed,
    Whole,
}

/// The fields as they stood in the text; the small ones still as text, so that each can say what
/// is wrong with it.
#[derive(Default)]
struct Parts<'a> {
    id: Option<&'a RawValue>,
    pubkey: Option<&'a RawValue>,
    created_at: Option<&'a RawValue>,
    kind: Option<&'a RawValue>,
    sig: Option<&'a RawValue>,
    tags: Option<Vec<Vec<String>>>,
    content: Option<String>,
    doubled: bool,
}

impl Parts<'_> {
    fn facts(&self) -> Result<EnvelopeFacts, EventError> {
        Ok(EnvelopeFacts {
            id: EventId(hex_field(self.id, "id")?),
            pubkey: hex_field(self.pubkey, "pubkey")?,
            created_at: integer_field(self.created_at, "created_at")?,
            kind: integer_field(self.kind, "kind")?,
        })
    }
}

fn read(json: &str, depth: Depth) -> Result<Parts<'_>, EventError> {
    if json.len() > MAX_EVENT_BYTES {
        return Err(EventError::TooLarge);
    }
    let mut at = "object";
    let mut source = serde_json::Deserializer::from_str(json);
    let parts = PartsSeed { depth, at: &mut at }.deserialize(&mut source);
    let parts =
        parts.map_err(|error| if error.is_data() { EventError::Shape(at) } else { EventError::NotJson })?;
    source.end().map_err(|_| EventError::NotJson)?;
    if parts.doubled {
        return Err(EventError::Shape("duplicate_key"));
    }
    Ok(parts)
}

/// A JSON string of lower-case hex digits.
fn hex_field<const N: usize>(raw: Option<&RawValue>, name: &'static str) -> Result<[u8; N], EventError> {
    let text = raw.ok_or(EventError::Shape(name))?.get();
    let inner = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let inner = inner.ok_or(EventError::Shape(name))?;
    let inner = if inner.contains('\\') {
        Cow::Owned(serde_json::from_str::<String>(text).map_err(|_| EventError::NotJson)?)
    } else {
        Cow::Borrowed(inner)
    };
    lower_hex(&inner).ok_or(EventError::Shape(name))
}

/// A JSON number written as an integer and held by `T`. Negative ones and those too large are out
/// of range; fractions, exponents and strings are no integers.
fn integer_field<T: TryFrom<i64>>(raw: Option<&RawValue>, name: &'static str) -> Result<T, EventError> {
    let text = raw.ok_or(EventError::Shape(name))?.get();
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(EventError::Shape(name));
    }
    let number: i64 = text.parse().map_err(|_| EventError::Range(name))?;
    if text.starts_with('-') {
        return Err(EventError::Range(name));
    }
    T::try_from(number).map_err(|_| EventError::Range(name))
}

/// Reads one object, remembering in `at` which field it stands in.
struct PartsSeed<'s> {
    depth: Depth,
    at: &'s mut &'static str,
}

impl<'de> DeserializeSeed<'de> for PartsSeed<'_> {
    type Value = Parts<'de>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for PartsSeed<'_> {
    type Value = Parts<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Nostr event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut parts = Parts::default();
        let mut seen = [false; FIELDS.len()];
        let mut others = BTreeSet::new();
        while let Some(key) = map.next_key_seed(KeySeed)? {
            let Key::Field(index) = key else {
                if let Key::Other(name) = key {
                    parts.doubled |= !others.insert(name);
                }
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            parts.doubled |= std::mem::replace(&mut seen[index], true);
            *self.at = FIELDS[index];
            match (FIELDS[index], self.depth) {
                ("id", _) => parts.id = Some(map.next_value()?),
                ("pubkey", _) => parts.pubkey = Some(map.next_value()?),
                ("created_at", _) => parts.created_at = Some(map.next_value()?),
                ("kind", _) => parts.kind = Some(map.next_value()?),
                ("sig", Depth::Signed | Depth::Whole) => parts.sig = Some(map.next_value()?),
                ("tags", Depth::Whole) => parts.tags = Some(map.next_value()?),
                ("content", Depth::Whole) => parts.content = Some(map.next_value()?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
            *self.at = "object";
        }
        Ok(parts)
    }
}

/// A key of the object: one of ours by its position in [`FIELDS`], or another.
enum Key {
    Field(usize),
    Other(String),
}

struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Key;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<Key, E> {
        let index = FIELDS.iter().position(|field| *field == key);
        Ok(index.map_or_else(|| Key::Other(key.to_owned()), Key::Field))
    }
}

impl Event {
    /// The tags as JSON text, one array of arrays of strings without blanks.
    pub fn tags_json(&self) -> String {
        written(&self.tags)
    }

    /// The event as JSON text, the keys in NIP-01's order, without blanks.
    pub fn to_json(&self) -> String {
        written(self)
    }

    /// The text that NIP-01 hashes.
    pub(super) fn canonical(&self) -> String {
        written(&Canonical(self))
    }
}

fn written<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("strings and numbers always have a JSON form")
}

impl serde::Serialize for Event {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Event", FIELDS.len())?;
        object.serialize_field("id", &hex::encode(self.id.0))?;
        object.serialize_field("pubkey", &hex::encode(self.pubkey))?;
        object.serialize_field("created_at", &self.created_at)?;
        object.serialize_field("kind", &self.kind)?;
        object.serialize_field("tags", &self.tags)?;
        object.serialize_field("content", &self.content)?;
        object.serialize_field("sig", &hex::encode(self.sig))?;
        object.end()
    }
}

struct Canonical<'a>(&'a Event);

impl serde::Serialize for Canonical<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let event = self.0;
        let mut array = serializer.serialize_tuple(6)?;
        array.serialize_element(&0)?;
        array.serialize_element(&hex::encode(event.pubkey))?;
        array.serialize_element(&event.created_at)?;
        array.serialize_element(&event.kind)?;
        array.serialize_element(&event.tags)?;
        array.serialize_element(&event.content)?;
        array.end()
    }
}
