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

/// Most entries kept of any other list, and longest text of one.
pub const LIST_MAX: usize = 64;
const ITEM_MAX_BYTES: usize = 64;

/// What a relay says of itself. Claims, to be measured.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InfoView {
    /// The relay's name.
    pub name: Option<String>,
    /// A longer description.
    pub description: Option<String>,
    /// A picture at the top of its page.
    pub banner: Option<String>,
    /// A small picture.
    pub icon: Option<String>,
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
    /// What it charges.
    pub fees: Fees,
    /// How long it says it keeps what.
    pub retention: Vec<Retention>,
    /// Countries whose law it is under.
    pub relay_countries: Vec<String>,
    /// Languages spoken on it.
    pub language_tags: Vec<String>,
    /// What it is about.
    pub tags: Vec<String>,
    /// What it is like, in the words of NIP-66 monitors.
    pub attributes: Vec<String>,
    /// Where to read what happens to what one sends.
    pub privacy_policy: Option<String>,
    /// Where to read the terms.
    pub terms_of_service: Option<String>,
    /// Where to read what may be posted.
    pub posting_policy: Option<String>,
    /// Where to pay.
    pub payments_url: Option<String>,
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
    /// Most filters of a subscription (no longer in NIP-11, and met).
    pub max_filters: Option<u64>,
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

/// The `fees` object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fees {
    /// To be let in, once.
    pub admission: Vec<Fee>,
    /// To stay.
    pub subscription: Vec<Fee>,
    /// To publish.
    pub publication: Vec<Fee>,
}

/// One price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fee {
    /// How much.
    pub amount: u64,
    /// Of what.
    pub unit: String,
    /// For how long, seconds.
    pub period: Option<u64>,
    /// For which kinds; empty: whatever the kind.
    pub kinds: Vec<u16>,
}

/// One entry of `retention`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// First and last kind of each range it is about; empty: all others.
    pub kinds: Vec<(u16, u16)>,
    /// Seconds kept; none: for ever, or not said.
    pub time: Option<u64>,
    /// Events kept.
    pub count: Option<u64>,
}

impl Fees {
    /// Whether it charges for anything.
    pub fn any(&self) -> bool {
        !(self.admission.is_empty() && self.subscription.is_empty() && self.publication.is_empty())
    }
}

impl InfoView {
    /// Reads a document; `None` when the text is not one JSON object.
    pub fn from_json(text: &str) -> Option<Self> {
        let Ok(Value::Object(document)) = serde_json::from_str::<Value>(text) else { return None };
        let nested = document.get("limitation").and_then(Value::as_object);
        Some(Self {
            name: words(&document, "name"),
            description: words(&document, "description"),
            banner: words(&document, "banner"),
            icon: words(&document, "icon"),
            pubkey: words(&document, "pubkey"),
            self_pubkey: words(&document, "self"),
            contact: words(&document, "contact"),
            software: words(&document, "software"),
            version: words(&document, "version"),
            supported_nips: nips(document.get("supported_nips")),
            limitation: nested.map(Limitation::from_object).unwrap_or_default(),
            fees: fees(document.get("fees")),
            retention: objects(document.get("retention")).map(retention).collect(),
            relay_countries: texts(&document, "relay_countries"),
            language_tags: texts(&document, "language_tags"),
            tags: texts(&document, "tags"),
            attributes: texts(&document, "attributes"),
            privacy_policy: words(&document, "privacy_policy"),
            terms_of_service: words(&document, "terms_of_service"),
            posting_policy: words(&document, "posting_policy"),
            payments_url: words(&document, "payments_url"),
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
            max_filters: count(object, "max_filters"),
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

/// The texts of a list, distinct, in the relay's order.
fn texts(object: &Map<String, Value>, key: &str) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for item in object.get(key).and_then(Value::as_array).into_iter().flatten() {
        if kept.len() == LIST_MAX {
            break;
        }
        let text = item.as_str().map(str::trim).unwrap_or_default();
        if !text.is_empty() && text.len() <= ITEM_MAX_BYTES && !kept.iter().any(|known| known == text) {
            kept.push(text.to_owned());
        }
    }
    kept
}

/// The objects of a list, no more than [`LIST_MAX`].
fn objects(value: Option<&Value>) -> impl Iterator<Item = &Map<String, Value>> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object).take(LIST_MAX)
}

fn fees(value: Option<&Value>) -> Fees {
    let prices = |key: &str| {
        objects(value.and_then(|fees| fees.get(key)))
            .filter_map(|price| {
                let amount = count(price, "amount")?;
                let unit = words(price, "unit").filter(|unit| unit.len() <= ITEM_MAX_BYTES)?;
                let kinds = nips(price.get("kinds"));
                Some(Fee { amount, unit, period: count(price, "period"), kinds })
            })
            .collect()
    };
    Fees {
        admission: prices("admission"),
        subscription: prices("subscription"),
        publication: prices("publication"),
    }
}

fn retention(object: &Map<String, Value>) -> Retention {
    let kind = |value: &Value| number(value).and_then(|kind| u16::try_from(kind).ok());
    let kinds =
        object.get("kinds").and_then(Value::as_array).into_iter().flatten().filter_map(|item| match item {
            Value::Array(ends) if ends.len() == 2 => Some((kind(&ends[0])?, kind(&ends[1])?)),
            one => kind(one).map(|kind| (kind, kind)),
        });
    Retention {
        kinds: kinds.take(LIST_MAX).collect(),
        time: count(object, "time"),
        count: count(object, "count"),
    }
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
    fn lists_and_prices_keep_what_can_be_read() {
        let text = r#"{"tags":["a","a"," b ","",7],"language_tags":"en","relay_countries":["DE"],
            "fees":{"admission":[{"amount":"1000","unit":"msats"},{"amount":1},"free"],"subscription":{},
            "publication":[{"amount":2,"unit":"msats","kinds":[4,"1"],"period":60}]},
            "retention":[{"kinds":[0,[5,7],[1],"x"],"time":3600},{"count":10,"time":null},3]}"#;
        let view = InfoView::from_json(text).unwrap();
        assert_eq!(view.tags, ["a", "b"]);
        assert!(view.language_tags.is_empty());
        assert_eq!(view.relay_countries, ["DE"]);
        let price = |amount, period, kinds| Fee { amount, unit: "msats".to_owned(), period, kinds };
        assert_eq!(view.fees.admission, [price(1_000, None, vec![])]);
        assert_eq!(view.fees.publication, [price(2, Some(60), vec![1, 4])]);
        assert!(view.fees.any() && view.fees.subscription.is_empty());
        let kept = |kinds, time, count| Retention { kinds, time, count };
        assert_eq!(
            view.retention,
            [kept(vec![(0, 0), (5, 7)], Some(3_600), None), kept(vec![], None, Some(10))]
        );
        let many: Vec<String> = (0..1_000).map(|n| n.to_string()).collect();
        let text = serde_json::json!({ "tags": many, "attributes": ["x".repeat(1_000)] }).to_string();
        let view = InfoView::from_json(&text).unwrap();
        assert_eq!((view.tags.len(), view.attributes.len()), (LIST_MAX, 0));
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
