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
mod tests;
