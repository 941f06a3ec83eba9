//! Kind 30166: what one look found of one relay.

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::text::{clean, escaped, geohash};
use super::{CONTENT_MAX_BYTES, DISCOVERY, Draft, spelled, tag};
use crate::models::RelayUrl;
use crate::nips::InfoView;

/// Topics a relay may name.
const TOPICS_MAX: usize = 32;
/// Kinds a relay may be said to take or refuse.
const KINDS_MAX: usize = 64;

/// Tags that hold one field of a check's document, or the first entry of a list.
const FIELDS: [(&str, &str); 16] = [
    ("ssl-expires", "ssl_expires"),
    ("ssl-issuer", "ssl_issuer"),
    ("net-ip", "net_ip"),
    ("net-ipv6", "net_ipv6"),
    ("net-asn", "net_asn"),
    ("net-asn-org", "net_asn_org"),
    ("geo-country", "geo_country"),
    ("geo-city", "geo_city"),
    ("geo-lat", "geo_lat"),
    ("geo-lon", "geo_lon"),
    ("geo-tz", "geo_tz"),
    ("dns-ip", "dns_ips"),
    ("dns-ip6", "dns_ips_v6"),
    ("dns-cname", "dns_cname"),
    ("http-server", "http_server"),
    ("http-powered-by", "http_powered_by"),
];

/// What a look found of a relay that is up. There is no such thing for one that is not: the time it took to open is
/// not optional.
#[derive(Debug, Clone, Copy)]
pub struct DiscoveryFacts<'a> {
    /// Which relay.
    pub url: &'a RelayUrl,
    /// Milliseconds until the WebSocket was open.
    pub open_ms: u32,
    /// Milliseconds from REQ to EOSE.
    pub read_ms: Option<u32>,
    /// Milliseconds from EVENT to OK.
    pub write_ms: Option<u32>,
    /// Whether reading was refused to who is not authenticated; measured, hence above what the relay says.
    pub read_needs_auth: Option<bool>,
    /// Whether an event of ours was refused; measured.
    pub write_refused: Option<bool>,
    /// The relay's own information document, JSON text.
    pub document: Option<&'a str>,
    /// The fields of the other documents, by their names (`ssl_valid`, `dns_ips`, …).
    pub fields: &'a Map<String, Value>,
    /// Time to live of its address records, seconds.
    pub dns_ttl_s: Option<u32>,
}

/// The event about a relay that is up.
pub fn discovery(facts: &DiscoveryFacts<'_>) -> Draft {
    let info = facts.document.and_then(InfoView::from_json);
    let mut tags = Vec::new();
    tag(&mut tags, "d", spelled(facts.url));
    tag(&mut tags, "n", facts.url.network().as_str());
    for (name, ms) in
        [("rtt-open", Some(facts.open_ms)), ("rtt-read", facts.read_ms), ("rtt-write", facts.write_ms)]
    {
        if let Some(ms) = ms {
            tag(&mut tags, name, ms.to_string());
        }
    }
    let needs = Needs::of(facts, info.as_ref());
    needs.write(&mut tags);
    for kind in needs.relay_types(info.as_ref()) {
        tag(&mut tags, "T", kind);
    }
    for nip in info.iter().flat_map(|info| &info.supported_nips) {
        tag(&mut tags, "N", nip.to_string());
    }
    if let Some(Value::Object(document)) = facts.document.and_then(|text| serde_json::from_str(text).ok()) {
        kinds(&mut tags, &document);
        topics(&mut tags, &document);
    }
    if let Some(place) = facts.fields.get("geo_hash").and_then(Value::as_str).and_then(geohash) {
        tag(&mut tags, "g", place);
    }
    if let Some(valid) = facts.fields.get("ssl_valid").and_then(Value::as_bool) {
        tag(&mut tags, "ssl", if valid { "valid" } else { "!valid" });
    }
    for (name, field) in FIELDS {
        if let Some(value) = facts.fields.get(field).and_then(word) {
            tag(&mut tags, name, value);
        }
    }
    if let Some(ttl) = facts.dns_ttl_s {
        tag(&mut tags, "dns-ttl", ttl.to_string());
    }
    Draft { kind: DISCOVERY, tags, content: content(facts.document) }
}

/// The relay's own document, or an empty one when there is none or it is larger than anybody would store.
fn content(document: Option<&str>) -> String {
    document
        .filter(|text| serde_json::from_str::<&RawValue>(text).is_ok_and(|raw| raw.get().starts_with('{')))
        .map(escaped)
        .filter(|text| text.len() <= CONTENT_MAX_BYTES)
        .unwrap_or_else(|| "{}".to_owned())
}

/// What a relay asks of who uses it; unknown where nobody said or measured it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Needs {
    auth: Option<bool>,
    writes: Option<bool>,
    pow: Option<bool>,
    payment: Option<bool>,
}

impl Needs {
    /// What was measured stands above what the relay says of itself.
    fn of(facts: &DiscoveryFacts<'_>, info: Option<&InfoView>) -> Self {
        let says = info.map(|info| &info.limitation);
        Self {
            auth: facts.read_needs_auth.or_else(|| says?.auth_required),
            writes: facts.write_refused.or_else(|| says?.restricted_writes),
            pow: says.and_then(|says| says.min_pow_difficulty).map(|bits| bits > 0),
            payment: says.and_then(|says| says.payment_required),
        }
    }

    fn write(self, tags: &mut Vec<Vec<String>>) {
        let all =
            [("auth", self.auth), ("writes", self.writes), ("pow", self.pow), ("payment", self.payment)];
        for (name, needed) in all {
            match needed {
                Some(true) => tag(tags, "R", name),
                Some(false) => tag(tags, "R", format!("!{name}")),
                None => {}
            }
        }
    }

    /// The types one can tell: what a relay is for, as far as its doors show it.
    fn relay_types(self, info: Option<&InfoView>) -> Vec<&'static str> {
        let mut types = Vec::new();
        // Who must pay to write is restricted in writing, whatever else the document says.
        let writes = if self.payment == Some(true) { Some(true) } else { self.writes };
        types.extend(match (self.auth, writes) {
            (Some(true), Some(true)) => Some("PrivateStorage"),
            (Some(true), Some(false)) => Some("PrivateInbox"),
            (Some(false), Some(true)) => Some("PublicOutbox"),
            (Some(false), Some(false)) => Some("PublicInbox"),
            _ => None,
        });
        for (nip, name) in [(50, "Search"), (29, "Community")] {
            if info.is_some_and(|info| info.supports(nip)) {
                types.push(name);
            }
        }
        types
    }
}

/// Kinds kept and kinds refused (kept for no time), where the document still has a retention list.
fn kinds(tags: &mut Vec<Vec<String>>, document: &Map<String, Value>) {
    let Some(entries) = document.get("retention").and_then(Value::as_array) else { return };
    let mut seen = std::collections::BTreeMap::new();
    for entry in entries {
        let refused = entry.get("time").and_then(Value::as_u64) == Some(0);
        let kinds = entry.get("kinds").and_then(Value::as_array).into_iter().flatten();
        for kind in kinds.filter_map(Value::as_u64).filter_map(|kind| u16::try_from(kind).ok()) {
            seen.entry(kind).or_insert(refused);
            if seen.len() >= KINDS_MAX {
                break;
            }
        }
        if seen.len() >= KINDS_MAX {
            break;
        }
    }
    for (kind, refused) in seen {
        tag(tags, "k", if refused { format!("!{kind}") } else { kind.to_string() });
    }
}

fn topics(tags: &mut Vec<Vec<String>>, document: &Map<String, Value>) {
    let Some(topics) = document.get("tags").and_then(Value::as_array) else { return };
    let mut seen = std::collections::BTreeSet::new();
    for topic in topics.iter().take(TOPICS_MAX).filter_map(Value::as_str).filter_map(clean) {
        if seen.insert(topic.clone()) {
            tag(tags, "t", topic);
        }
    }
}

/// A field as a text: the first entry of a list, a number in its decimal form.
fn word(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => clean(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(entries) => match entries.first()? {
            Value::Array(_) => None,
            first => word(first),
        },
        _ => None,
    }
}
