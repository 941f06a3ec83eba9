//! A lenient typed view of a relay information document (NIP-11).
//!
//! The document itself is stored raw elsewhere; this is what the program reads of it. Invariant: a field
//! of a wrong type is dropped and never spoils its neighbours; a document that is no object reads as
//! `None`; the view is bounded whatever the document holds, and so is what reading takes: one level at a time,
//! at most some fifteen times the text. A tree of the whole takes a hundred times as much of a list like
//! `[{"":0},{"":0},…]`.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

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
    /// Reads a document; `None` when the text is not one JSON object. However deep it nests, only the levels that
    /// the fields lie on are looked at.
    pub fn from_json(text: &str) -> Option<Self> {
        let document: Object<'_> = serde_json::from_str(text).ok()?;
        let value = |key: &str| document.get(key).copied();
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
            supported_nips: value("supported_nips").map(nips).unwrap_or_default(),
            limitation: value("limitation")
                .and_then(object)
                .map(|limits| Limitation::of(&limits))
                .unwrap_or_default(),
            fees: value("fees").and_then(object).map(|fees| Fees::of(&fees)).unwrap_or_default(),
            retention: value("retention")
                .into_iter()
                .flat_map(objects)
                .map(|entry| Retention::of(&entry))
                .collect(),
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
    fn of(object: &Object<'_>) -> Self {
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

impl Fees {
    fn of(object: &Object<'_>) -> Self {
        let prices = |key: &str| {
            object.get(key).copied().into_iter().flat_map(objects).filter_map(|entry| price(&entry))
        };
        Self {
            admission: prices("admission").collect(),
            subscription: prices("subscription").collect(),
            publication: prices("publication").collect(),
        }
    }
}

impl Retention {
    fn of(object: &Object<'_>) -> Self {
        let kind = |raw: &RawValue| number(raw).and_then(|kind| u16::try_from(kind).ok());
        let ranges = object.get("kinds").copied().into_iter().flat_map(list).filter_map(|item| {
            match list(item).as_slice() {
                [first, last] => Some((kind(first)?, kind(last)?)),
                _ => kind(item).map(|kind| (kind, kind)),
            }
        });
        Self {
            kinds: ranges.take(LIST_MAX).collect(),
            time: count(object, "time"),
            count: count(object, "count"),
        }
    }
}

/// The members of a JSON object, unread; of a name that comes twice the last value counts.
type Object<'a> = BTreeMap<String, &'a RawValue>;

fn object(raw: &RawValue) -> Option<Object<'_>> {
    serde_json::from_str(raw.get()).ok()
}

/// The entries of a list, unread; none of what is no list.
fn list(raw: &RawValue) -> Vec<&RawValue> {
    serde_json::from_str(raw.get()).unwrap_or_default()
}

fn string(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok()
}

/// A text that says something, capped.
fn words(object: &Object<'_>, key: &str) -> Option<String> {
    let text = string(object.get(key)?)?;
    let text = text.trim();
    let kept = &text[..text.floor_char_boundary(TEXT_MAX_BYTES)];
    (!kept.is_empty()).then(|| kept.to_owned())
}

/// The texts of a list, distinct, in the relay's order.
fn texts(object: &Object<'_>, key: &str) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for item in object.get(key).copied().into_iter().flat_map(list) {
        if kept.len() == LIST_MAX {
            break;
        }
        let text = string(item).unwrap_or_default();
        let text = text.trim();
        if !text.is_empty() && text.len() <= ITEM_MAX_BYTES && !kept.iter().any(|known| known == text) {
            kept.push(text.to_owned());
        }
    }
    kept
}

/// The objects of a list, no more than [`LIST_MAX`].
fn objects(raw: &RawValue) -> impl Iterator<Item = Object<'_>> {
    list(raw).into_iter().filter_map(object).take(LIST_MAX)
}

fn price(price: &Object<'_>) -> Option<Fee> {
    let amount = count(price, "amount")?;
    let unit = words(price, "unit").filter(|unit| unit.len() <= ITEM_MAX_BYTES)?;
    let kinds = price.get("kinds").copied().map(nips).unwrap_or_default();
    Some(Fee { amount, unit, period: count(price, "period"), kinds })
}

/// A count, as a number or as its decimal text; negative and fractional values are dropped.
fn number(raw: &RawValue) -> Option<u64> {
    match string(raw) {
        Some(text) => text.trim().parse().ok(),
        None => raw.get().parse().ok(),
    }
}

fn count(object: &Object<'_>, key: &str) -> Option<u64> {
    number(object.get(key)?)
}

/// A boolean; `0`, `1`, `"true"` and `"false"` are met in the wild.
fn flag(object: &Object<'_>, key: &str) -> Option<bool> {
    let raw = object.get(key)?;
    match raw.get() {
        "0" => Some(false),
        "1" => Some(true),
        bare => string(raw)
            .map_or_else(|| bare.parse().ok(), |text| text.trim().to_ascii_lowercase().parse().ok()),
    }
}

/// The numbers of a list, or the one that stands in its place.
fn nips(raw: &RawValue) -> Vec<u16> {
    let items = if raw.get().starts_with('[') { list(raw) } else { vec![raw] };
    let mut nips: Vec<u16> =
        items.into_iter().filter_map(number).filter_map(|number| u16::try_from(number).ok()).collect();
    nips.sort_unstable();
    nips.dedup();
    nips.truncate(NIPS_MAX);
    nips
}

#[cfg(test)]
mod tests;
