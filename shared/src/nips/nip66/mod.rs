//! What monitors publish about relays and about themselves (NIP-66), written and read.
//!
//! Pure: facts go in, drafts come out, and somebody else signs and sends them. Relays write the facts, so no text
//! enters a tag but through `text::clean`. Invariants: every value is a string without control characters, and a
//! draft is bounded ([`TAGS_MAX`], [`CONTENT_MAX_BYTES`]) whatever the facts hold.

mod announce;
mod discovery;
mod parse;
mod text;

#[cfg(test)]
mod tests;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::keys::Keys;
use crate::models::{Event, EventError, EventId, RelayUrl};

pub use announce::{MonitorFacts, Profile, announcement, profile, relay_list};
pub use discovery::{DiscoveryFacts, discovery};
pub use parse::{parse_announcement, parse_report};
pub use text::is_geohash;

/// What a monitor found of a relay; addressable by the relay's URL.
pub const DISCOVERY: u16 = 30_166;
/// What a monitor says of itself; replaceable.
pub const ANNOUNCEMENT: u16 = 10_166;
/// Who the author is (NIP-01).
pub const PROFILE: u16 = 0;
/// Where the author writes (NIP-65).
pub const RELAY_LIST: u16 = 10_002;
/// Events of the author's own that are to go (NIP-09).
pub const DELETION: u16 = 5;

/// Longest text that enters a tag, in bytes, except a URL in `d` or `r`: names, cities, server banners.
pub const TEXT_MAX_BYTES: usize = 256;
/// Longest content: the largest information documents in the wild have a few KiB, and relays take events of 64.
pub const CONTENT_MAX_BYTES: usize = 32 * 1024;
/// Most tags of a draft: 256 NIPs, 64 kinds, 32 topics and what there is one of.
pub const TAGS_MAX: usize = 420;

/// An event of ours before it is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// Kind.
    pub kind: u16,
    /// Tags.
    pub tags: Vec<Vec<String>>,
    /// Content.
    pub content: String,
}

impl Draft {
    /// The value of its `d` tag, empty without one.
    pub fn d_tag(&self) -> &str {
        self.tags.iter().find(|tag| tag[0] == "d").and_then(|tag| tag.get(1)).map_or("", String::as_str)
    }

    /// What it says, whenever it is signed: two drafts of one digest say the same.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(json!([self.kind, self.tags, self.content]).to_string()).into()
    }

    /// Makes it an event.
    ///
    /// # Errors
    /// `Range` for a negative time.
    pub fn sign(self, keys: &Keys, created_at: i64) -> Result<Event, EventError> {
        keys.sign(created_at, self.kind, self.tags, self.content)
    }
}

/// Takes back what we said of a relay: a deletion of our event about it (NIP-09). By address, which holds for all its
/// versions, and by the ids that are known: relay programs read an address up to its third colon, and a URL has one.
pub fn withdrawal(pubkey_hex: &str, d: &str, ids: &[EventId], why: &str) -> Draft {
    let mut tags = Vec::new();
    for id in ids {
        tag(&mut tags, "e", id.to_string());
    }
    tag(&mut tags, "a", format!("{DISCOVERY}:{pubkey_hex}:{d}"));
    tag(&mut tags, "k", DISCOVERY.to_string());
    Draft { kind: DELETION, tags, content: text::clean(why).unwrap_or_default() }
}

/// The relay as a `d` or `r` tag spells it.
fn spelled(url: &RelayUrl) -> String {
    url.to_nip66_d()
}

fn tag(tags: &mut Vec<Vec<String>>, name: &str, value: impl Into<String>) {
    tags.push(vec![name.to_owned(), value.into()]);
}
