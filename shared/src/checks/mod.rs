//! What the monitor looks at, one file per check: `observe` touches the network, `judge` is pure.
//!
//! All checks of one relay come from one resolution and at most two connections. This room must not
//! know jobs or the database. Invariant: every [`CheckKind`] has a row in the table ([`CheckKind::spec`]).

mod dns;
mod files;
mod geo;
mod http;
mod looks;
mod net;
mod nip11;
mod rtt;
mod run;
mod speak;
mod ssl;

#[cfg(test)]
#[expect(unreachable_pub, reason = "the file is the test kit's, where it is public")]
#[path = "../../../tests/src/mmdb.rs"]
mod mmdb;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use crate::models::{Metadata, MetadataType, Outcome, Reason, RelayUrl, UnknownWord};
use crate::net::DialFailure;

pub use files::DataFiles;
pub use geo::geohash;
pub use looks::Looks;
pub use run::{MonitorReport, run_all, run_on};
pub use speak::{Speak, Spoken};

/// A check the monitor makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CheckKind {
    /// The relay's information document (NIP-11).
    Nip11,
    /// Time to open and to answer a REQ (NIP-66 `rtt-open`, `rtt-read`).
    Rtt,
    /// What DNS says of its name.
    Dns,
    /// Where its address is.
    Geo,
    /// Whose network its addresses are in.
    Net,
    /// The certificate, and whether it verifies.
    Ssl,
    /// What its web server says of itself.
    Http,
}

/// One row of the table of checks.
#[derive(Debug, Clone, Copy)]
pub struct CheckSpec {
    /// The check's one spelling, as stored and published.
    pub name: &'static str,
    /// The document it makes; measurements make none.
    pub document: Option<MetadataType>,
    /// Whether it means anything for a relay.
    pub applies: fn(&RelayUrl) -> bool,
}

impl CheckKind {
    /// Every check, in the order they run.
    pub const ALL: &'static [Self] =
        &[Self::Dns, Self::Geo, Self::Net, Self::Rtt, Self::Ssl, Self::Http, Self::Nip11];

    /// The check's row.
    pub const fn spec(self) -> CheckSpec {
        match self {
            Self::Nip11 => nip11::SPEC,
            Self::Rtt => rtt::SPEC,
            Self::Dns => dns::SPEC,
            Self::Geo => geo::SPEC,
            Self::Net => net::SPEC,
            Self::Ssl => ssl::SPEC,
            Self::Http => http::SPEC,
        }
    }

    /// The check's one spelling.
    pub const fn as_str(self) -> &'static str {
        self.spec().name
    }
}

impl fmt::Display for CheckKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CheckKind {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.iter().find(|kind| kind.as_str() == text);
        found.copied().ok_or_else(|| UnknownWord { set: "check", text: text.to_owned() })
    }
}

/// What one check saw.
#[derive(Debug, Clone)]
pub struct Observation {
    /// Which check.
    pub kind: CheckKind,
    /// The coarse result.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// A short sentence for people; never stored under a hash.
    pub detail: String,
    /// Milliseconds to open, to read, to write; only the rtt check has any.
    pub rtt_ms: [Option<u32>; 3],
    /// The document, when the check makes one and succeeded.
    pub document: Option<Metadata>,
    /// The HTTP status that it failed by.
    pub status: Option<u16>,
}

impl Observation {
    /// A check that succeeded, with `data` as its document.
    fn documented(kind: CheckKind, data: &serde_json::Value) -> Self {
        let Some(of) = kind.spec().document else { return Self::ok(kind, None) };
        let envelope = serde_json::json!({"data": data, "logs": {"success": true}});
        match Metadata::from_value(of, &envelope) {
            Ok(document) => Self::ok(kind, Some(document)),
            Err(error) => Self::failed(kind, DialFailure::new(Reason::HttpInvalid, error.to_string())),
        }
    }

    const fn ok(kind: CheckKind, document: Option<Metadata>) -> Self {
        let (outcome, reason) = (Outcome::Ok, Reason::None);
        Self { kind, outcome, reason, detail: String::new(), rtt_ms: [None; 3], document, status: None }
    }

    fn failed(kind: CheckKind, failure: DialFailure) -> Self {
        let DialFailure { outcome, reason, detail, status } = failure;
        Self { kind, outcome, reason, detail, rtt_ms: [None; 3], document: None, status }
    }
}

/// A check that rests on a connection that was not made, or broke off before the check's turn.
fn unseen(kind: CheckKind, failure: Option<&DialFailure>) -> Observation {
    let broke_off = || DialFailure::new(Reason::Disconnected, "the connection ended before that was seen");
    Observation::failed(kind, failure.cloned().unwrap_or_else(broke_off))
}

/// The longest text of others kept in a document of ours.
const TEXT_CHARS: usize = 256;

/// A text of others as it may stand in a document: without control characters, short, and not empty.
fn clean(text: &str) -> Option<String> {
    let text: String = text.chars().filter(|c| !c.is_control()).take(TEXT_CHARS).collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}
