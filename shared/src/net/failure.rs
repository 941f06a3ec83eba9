//! What a dial can end in: a value that names whose fault it is, and our own configuration errors.

use std::borrow::Cow;
use std::fmt;

use crate::models::{Network, Outcome, Reason};

/// The longest detail kept: it is read by people and must not carry a remote's megabytes.
const DETAIL_CHARS: usize = 200;

/// Why a connection, an upgrade or a request did not succeed. A value, not an error of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialFailure {
    /// The coarse result, always [`outcome_of`] the reason.
    pub outcome: Outcome,
    /// The closed-set reason.
    pub reason: Reason,
    /// A short sentence for people: which step, which address, which status.
    pub detail: String,
    /// The HTTP status it came with.
    pub status: Option<u16>,
}

impl DialFailure {
    /// A failure with the outcome its reason implies; control characters leave the detail.
    pub fn new(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        let detail = detail.into();
        let detail = detail.chars().filter(|c| !c.is_control()).take(DETAIL_CHARS).collect();
        Self { outcome: outcome_of(reason), reason, detail, status: None }
    }

    /// A failure that an HTTP status tells.
    pub fn of_status(reason: Reason, status: u16) -> Self {
        Self { status: Some(status), ..Self::new(reason, format!("HTTP status {status}")) }
    }

    /// Whether the failure speaks of us and says nothing about the relay.
    pub const fn is_ours(&self) -> bool {
        self.reason.is_ours()
    }
}

impl fmt::Display for DialFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.detail.is_empty() {
            return f.write_str(self.reason.as_str());
        }
        write!(f, "{}: {}", self.reason, self.detail)
    }
}

/// The coarse outcome each reason belongs to: one table, so that no two places can disagree.
pub const fn outcome_of(reason: Reason) -> Outcome {
    match reason {
        Reason::None => Outcome::Ok,
        Reason::DnsFailure
        | Reason::NoRoute
        | Reason::ProxyDead
        | Reason::ProxyMissing
        | Reason::NetworkDisabled
        | Reason::AddressDenied
        | Reason::DataMissing
        | Reason::DataCorrupt
        | Reason::DataNoRecord
        | Reason::PowDemanded => Outcome::Skipped,
        Reason::ConnectTimeout | Reason::Silent | Reason::IdleTimeout | Reason::TotalTimeout => {
            Outcome::Timeout
        }
        Reason::DnsNxdomain
        | Reason::DnsNoAddress
        | Reason::ConnectRefused
        | Reason::ConnectFailed
        | Reason::ProxyRefused
        | Reason::HttpStatus
        | Reason::WsUpgradeRefused
        | Reason::AuthRequired
        | Reason::Restricted
        | Reason::RateLimited
        | Reason::Blocked
        | Reason::Unsupported
        | Reason::InvalidRequest
        | Reason::ClosedError
        | Reason::WriteRefused
        | Reason::Notice => Outcome::Refused,
        Reason::AddressRefused
        | Reason::TlsExpired
        | Reason::TlsNotYetValid
        | Reason::TlsSelfSigned
        | Reason::TlsUnknownIssuer
        | Reason::TlsWrongHost
        | Reason::TlsInvalid
        | Reason::TlsFailed
        | Reason::HttpBodyTooLarge
        | Reason::HttpContentType
        | Reason::HttpEncoding
        | Reason::HttpInvalid
        | Reason::WsProtocol
        | Reason::Disconnected
        | Reason::Oversize
        | Reason::NotNostr
        | Reason::NotJson
        | Reason::NotObject
        | Reason::TooManyFrames => Outcome::Invalid,
    }
}

/// What is wrong with our own set-up; each is one sentence an operator can act on.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// A configured root certificate is not one.
    #[error("extra root certificate number {number} is not a usable certificate: {source}")]
    BadRoot {
        /// Its place in the list, from 1.
        number: usize,
        /// What the parser said.
        #[source]
        source: rustls::Error,
    },
    /// The TLS provider offers no usable protocol version.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[source] rustls::Error),
    /// The HTTP client cannot be set up.
    #[error("the HTTP client cannot be set up: {0}")]
    Web(String),
    /// A proxy that is not `host:port`.
    #[error("the proxy of network {network} is {text:?}; it must be host:port")]
    BadProxy {
        /// Whose proxy.
        network: Network,
        /// What was configured.
        text: String,
    },
    /// A contact that may not stand in a header.
    #[error(
        "{text:?} is no contact: it must be a mail address or an https URL of at most 128 visible ASCII characters"
    )]
    BadContact {
        /// What was configured.
        text: String,
    },
    /// Through a proxy the names of clearnet relays could not be guarded.
    #[error("clearnet relays are dialled directly, so that every address passes the guard: remove its proxy")]
    ClearnetProxy,
    /// The port of an HTTP endpoint is taken.
    #[error("port {port} on {host} is already in use: stop the other program, or set another port")]
    PortTaken {
        /// The address asked for.
        host: std::net::IpAddr,
        /// The port asked for.
        port: u16,
    },
    /// The HTTP endpoint cannot listen for another reason.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address asked for.
        addr: std::net::SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_could_not_or_would_not_do_is_a_skip_and_nothing_else_is() {
        for &reason in Reason::ALL {
            // Work that a relay demands and we refuse is its demand, though nothing was sent.
            let skipped = reason.is_ours() || reason == Reason::PowDemanded;
            assert_eq!(outcome_of(reason) == Outcome::Skipped, skipped, "{reason}");
        }
    }

    #[test]
    fn details_are_short_and_free_of_control_characters() {
        let failure = DialFailure::new(Reason::HttpStatus, "a\r\nb".repeat(400));
        assert_eq!(failure.detail.chars().count(), DETAIL_CHARS);
        assert!(!failure.detail.contains(char::is_control));
    }
}
