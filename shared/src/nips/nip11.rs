//! A lenient typed view of a relay information document (NIP-11).
//!
//! The document itself is stored raw elsewhere; this is what the program reads of it. Invariant: a field
//! of a wrong type is dropped and never spoils its neighbours; a document that is no object reads as
//! `None`; the view is bounded whatever the document holds.

use serde_json::{Map, Value};

/// Longest text kept of one field, in bytes: names and software URLs, not essays (the raw document keeps all).
pub const TEXT_MAX_BYTES: usize = 1024;

/// Most NIPs kept: there are about 100 assigned, and a list may hold every number.
pub const NIPS_MAX: usize = 256;

/// What a relay says of itself. Claims, to be measured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InfoView {
    /// The relay's name.
    pub name: Option<String>,
    /// A longer description.
    pub description: Option<String>,
    /// The administrator's public key, as written.
    pub pubkey: Option<String>,
    /// The relay's own public key (`self`), as written.
    pub self_pubkey: Option<String>,
    /// How to reach the operator.
    pub contact: Option<String>,
    /// The program, usually a URL.
    pub software: Option<String>,
    /// The program's version.
    pub version: Option<String>,
    /// Ascending, without repeats; from a list or a scalar, of numbers or numeric strings.
    pub supported_nips: Vec<u16>,
    /// The limits it states.
    pub limitation: Limitation,
    /// strfry's extension `negentropy: 1`: the version it speaks.
    pub negentropy: Option<u64>,
}

/// The `limitation` object. Bytes, counts or Unix seconds as NIP-11 gives them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limitation {
    /// Largest message, in bytes.
    pub max_message_length: Option<u64>,
    /// Most open subscriptions per connection.
    pub max_subscriptions: Option<u64>,
    /// A filter's `limit` is clamped to this, silently.
    pub max_limit: Option<u64>,
    /// The `limit` of a filter that has none.
    pub default_limit: Option<u64>,
    /// Longest subscription id.
    pub max_subid_length: Option<u64>,
    /// Most tags of an event.
    pub max_event_tags: Option<u64>,
    /// Longest content, in characters.
    pub max_content_length: Option<u64>,
    /// NIP-13 bits asked of an event.
    pub min_pow_difficulty: Option<u64>,
    /// NIP-42 before anything else.
    pub auth_required: Option<bool>,
    /// Payment before anything else.
    pub payment_required: Option<bool>,
    /// Some condition for writing.
    pub restricted_writes: Option<bool>,
    /// Oldest `created_at` accepted, in seconds before now (or as the relay means it).
    pub created_at_lower_limit: Option<u64>,
    /// Newest `created_at` accepted, in seconds after now (or as the relay means it).
    pub created_at_upper_limit: Option<u64>,
}

impl InfoView {
    /// Reads a document; `None` when the text is not one JSON object.
    pub fn from_json(text: &str) -> Option<Self> {
        let Ok(Value::Object(document)) = serde_json::from_str::<Value>(text) else { return None };
        let nested = document.get("limitation").and_then(Value::as_object);
        Some(Self {
            name: words(&document, "name"),
            description: words(&document, "description"),
            pubkey: words(&document, "pubkey"),
            self_pubkey: words(&document, "self"),
            contact: words(&document, "contact"),
            software: words(&document, "software"),
            version: words(&document, "version"),
            supported_nips: nips(document.get("supported_nips")),
            limitation: nested.map(Limitation::from_object).unwrap_or_default(),
            negentropy: count(&document, "negentropy"),
        })
    }

    /// Whether the relay says that it speaks this NIP.
    pub fn supports(&self, nip: u16) -> bool {
        self.supported_nips.binary_search(&nip).is_ok()
    }
}

impl Limitation {
    fn from_object(object: &Map<String, Value>) -> Self {
        Self {
            max_message_length: count(object, "max_message_length"),
            max_subscriptions: count(object, "max_subscriptions"),
            max_limit: count(object, "max_limit"),
            default_limit: count(object, "default_limit"),
            max_subid_length: count(object, "max_subid_length"),
            max_event_tags: count(object, "max_event_tags"),
            max_content_length: count(object, "max_content_length"),
            min_pow_difficulty: count(object, "min_pow_difficulty"),
            auth_required: flag(object, "auth_required"),
            payment_required: flag(object, "payment_required"),
            restricted_writes: flag(object, "restricted_writes"),
            created_at_lower_limit: count(object, "created_at_lower_limit"),
            created_at_upper_limit: count(object, "created_at_upper_limit"),
        }
    }
}

/// A text that says something, capped.
fn words(object: &Map<String, Value>, key: &str) -> Option<String> {
    let text = object.get(key)?.as_str()?.trim();
    let kept = &text[..text.floor_char_boundary(TEXT_MAX_BYTES)];
    (!kept.is_empty()).then(|| kept.to_owned())
}

/// A count, as a number or as its decimal text; negative and fractional values are dropped.
fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn count(object: &Map<String, Value>, key: &str) -> Option<u64> {
    number(object.get(key)?)
}

/// A boolean; `0`, `1`, `"true"` and `"false"` are met in the wild.
fn flag(object: &Map<String, Value>, key: &str) -> Option<bool> {
    match object.get(key)? {
        Value::Bool(flag) => Some(*flag),
        Value::Number(number) if number.as_u64() == Some(0) => Some(false),
        Value::Number(number) if number.as_u64() == Some(1) => Some(true),
        Value::String(text) => text.trim().to_ascii_lowercase().parse().ok(),
        _ => None,
    }
}

fn nips(value: Option<&Value>) -> Vec<u16> {
    let items = match value {
        None => return Vec::new(),
        Some(Value::Array(items)) => items.as_slice(),
        Some(scalar) => std::slice::from_ref(scalar),
    };
    let mut nips: Vec<u16> =
        items.iter().filter_map(number).filter_map(|number| u16::try_from(number).ok()).collect();
    nips.sort_unstable();
    nips.dedup();
    nips.truncate(NIPS_MAX);
    nips
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_document_reads_whole() {
        let text = r#"{"name":" relay ","description":"d","pubkey":"aa","self":"bb","contact":"c","software":"s",
            "version":"1.0","supported_nips":[77,1,11,1],"negentropy":1,"limitation":{"max_limit":500,
            "default_limit":100,"auth_required":false,"payment_required":true,"restricted_writes":true,
            "created_at_lower_limit":94608000,"max_subid_length":64}}"#;
        let view = InfoView::from_json(text).unwrap();
        assert_eq!(view.name.as_deref(), Some("relay"));
        assert_eq!(view.self_pubkey.as_deref(), Some("bb"));
        assert_eq!(view.supported_nips, [1, 11, 77]);
        assert!(view.supports(77) && !view.supports(42));
        assert_eq!(view.limitation.max_limit, Some(500));
        assert_eq!(view.limitation.default_limit, Some(100));
        assert_eq!(view.limitation.auth_required, Some(false));
        assert_eq!(view.limitation.payment_required, Some(true));
        assert_eq!(view.limitation.created_at_lower_limit, Some(94_608_000));
        assert_eq!(view.negentropy, Some(1));
    }

    #[test]
    fn wrong_types_are_dropped_and_spoil_nothing() {
        let text = r#"{"name":7,"description":null,"contact":["x"],"software":"","version":"2",
            "supported_nips":["11","C7",1,-1,70000,1.5,null,[9]],
            "limitation":{"max_limit":"500","default_limit":-1,"auth_required":"true","payment_required":2,
            "restricted_writes":1,"max_subscriptions":1e30}}"#;
        let view = InfoView::from_json(text).unwrap();
        assert_eq!((view.name, view.description, view.contact, view.software), (None, None, None, None));
        assert_eq!(view.version.as_deref(), Some("2"));
        assert_eq!(view.supported_nips, [1, 11]);
        assert_eq!(view.limitation.max_limit, Some(500));
        assert_eq!(view.limitation.default_limit, None);
        assert_eq!(view.limitation.auth_required, Some(true));
        assert_eq!(view.limitation.payment_required, None);
        assert_eq!(view.limitation.restricted_writes, Some(true));
        assert_eq!(view.limitation.max_subscriptions, None);
    }

    #[test]
    fn supported_nips_may_be_a_scalar() {
        for (text, nips) in [
            (r#"{"supported_nips":11}"#, vec![11]),
            (r#"{"supported_nips":"11"}"#, vec![11]),
            (r#"{"supported_nips":{"1":true}}"#, vec![]),
            (r#"{"limitation":[]}"#, vec![]),
        ] {
            assert_eq!(InfoView::from_json(text).unwrap().supported_nips, nips, "{text}");
        }
    }

    #[test]
    fn what_is_no_object_is_no_view() {
        for text in ["", "[]", "null", "\"x\"", "<html>", "{", "{} {}"] {
            assert_eq!(InfoView::from_json(text), None, "{text}");
        }
        assert_eq!(InfoView::from_json("{}"), Some(InfoView::default()));
        let deep = format!("{{\"name\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(InfoView::from_json(&deep), None);
    }

    #[test]
    fn the_view_is_bounded() {
        let all: Vec<String> = (0..=u16::MAX).map(|nip| nip.to_string()).collect();
        let text = format!(r#"{{"name":"{}","supported_nips":[{}]}}"#, "é".repeat(5000), all.join(","));
        let view = InfoView::from_json(&text).unwrap();
        assert!(view.name.unwrap().len() <= TEXT_MAX_BYTES);
        assert_eq!(view.supported_nips.len(), NIPS_MAX);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "\\{\"(name|supported_nips|limitation)\":\\PC{0,40}\\}") {
            let view = InfoView::from_json(&text);
            prop_assert!(view.is_none_or(|view| view.supported_nips.len() <= NIPS_MAX));
        }
    }
}
