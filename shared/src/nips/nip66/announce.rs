//! What a monitor says of itself: how often and what it looks at (10166), who it is (0), where it writes (10002).

use serde_json::{Map, Value};

use super::text::{clean, geohash};
use super::{ANNOUNCEMENT, Draft, PROFILE, RELAY_LIST, spelled, tag};
use crate::models::{Network, RelayUrl};

/// How a monitor works.
#[derive(Debug, Clone, Copy)]
pub struct MonitorFacts<'a> {
    /// Seconds between two of the monitor's looks at a stable relay.
    pub frequency_s: u64,
    /// What is looked at: `open`, `read`, `nip11`, …, in lower case.
    pub checks: &'a [&'a str],
    /// Milliseconds after which a check gives up, by check.
    pub timeouts_ms: &'a [(&'a str, u64)],
    /// Networks whose relays are looked at.
    pub networks: &'a [Network],
    /// Where the monitor is.
    pub geohash: Option<&'a str>,
}

/// The monitor's announcement.
pub fn announcement(facts: &MonitorFacts<'_>) -> Draft {
    let mut tags = Vec::new();
    tag(&mut tags, "frequency", facts.frequency_s.to_string());
    for (check, ms) in facts.timeouts_ms {
        // The order of the NIP's example and of everybody's code; its text has it the other way round.
        tags.push(vec!["timeout".to_owned(), (*check).to_owned(), ms.to_string()]);
    }
    for check in facts.checks {
        tag(&mut tags, "c", *check);
    }
    for network in facts.networks {
        tag(&mut tags, "n", network.as_str());
    }
    if let Some(place) = facts.geohash.and_then(geohash) {
        tag(&mut tags, "g", place);
    }
    Draft { kind: ANNOUNCEMENT, tags, content: String::new() }
}

/// Who runs the monitor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// Name.
    pub name: Option<String>,
    /// A sentence.
    pub about: Option<String>,
    /// URL of a picture.
    pub picture: Option<String>,
    /// URL of a site.
    pub website: Option<String>,
    /// Address that names the key (NIP-05).
    pub nip05: Option<String>,
    /// Lightning address.
    pub lud16: Option<String>,
}

/// The author's profile; none when nothing is said, so that one made elsewhere is not replaced by an empty one.
pub fn profile(profile: &Profile) -> Option<Draft> {
    let fields = [
        ("name", &profile.name),
        ("about", &profile.about),
        ("picture", &profile.picture),
        ("website", &profile.website),
        ("nip05", &profile.nip05),
        ("lud16", &profile.lud16),
    ];
    let object: Map<String, Value> = fields
        .into_iter()
        .filter_map(|(name, text)| Some((name.to_owned(), Value::from(clean(text.as_deref()?)?))))
        .collect();
    if object.is_empty() {
        return None;
    }
    Some(Draft { kind: PROFILE, tags: Vec::new(), content: Value::Object(object).to_string() })
}

/// Where the author writes.
pub fn relay_list(relays: &[RelayUrl]) -> Draft {
    let tags = relays.iter().map(|url| vec!["r".to_owned(), spelled(url), "write".to_owned()]).collect();
    Draft { kind: RELAY_LIST, tags, content: String::new() }
}
