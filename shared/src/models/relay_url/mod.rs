//! A relay's address in its one canonical spelling.
//!
//! Two spellings of one relay would be two rows, two states and twice the work; two relays under one
//! spelling would lose one of them. So what can be read in one way only is normalised, and what
//! cannot is refused, never repaired. Invariant: parsing a canonical text gives that very text.

mod host;
mod path;
mod site;

use std::fmt;
use std::net::IpAddr;

use super::network::Network;
use super::policy::AddressPolicy;

/// The longest canonical URL, in bytes: it is a key of B-tree indexes, which refuse far longer ones.
pub const MAX_URL_BYTES: usize = 2_048;

/// The longest text looked at, in bytes: a canonical URL with every byte percent-encoded.
const MAX_INPUT_BYTES: usize = 3 * MAX_URL_BYTES;

const SCHEME_WS: &str = "ws://";
const SCHEME_WSS: &str = "wss://";
const PORT_WS: u16 = 80;
const PORT_WSS: u16 = 443;

/// Why a text is not the address of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum UrlError {
    /// Longer than [`MAX_URL_BYTES`] in canonical form.
    #[error("the URL is longer than {MAX_URL_BYTES} bytes")]
    TooLong,
    /// No `scheme://` in it.
    #[error("the text is not a URL")]
    NotAUrl,
    /// A scheme other than ws and wss.
    #[error("the URL's scheme is neither ws nor wss")]
    Scheme,
    /// A blank or a control character inside the text.
    #[error("the URL has a blank or a control character in it")]
    Blank,
    /// A user name or password before the host.
    #[error("the URL carries a user name")]
    Userinfo,
    /// A `#` and what follows: it never reaches a server.
    #[error("the URL has a fragment")]
    Fragment,
    /// The host is no host name and no IP address.
    #[error("the URL's host is not valid")]
    Host,
    /// A host name without a dot, which only a local resolver knows.
    #[error("the URL's host is a single label")]
    SingleLabel,
    /// A name that exists only on a local network.
    #[error("the URL's host is a local name")]
    LocalName,
    /// An IP address that the policy does not permit.
    #[error("the URL's address is not a public one")]
    AddressRefused,
    /// A .onion, .i2p or .loki name that cannot be one.
    #[error("the URL's overlay address is not valid")]
    OverlayHost,
    /// A port that is no number in 1..=65535.
    #[error("the URL's port is not valid")]
    Port,
    /// A `%` without two hex digits, or a backslash.
    #[error("the URL's path or query is malformed")]
    Malformed,
    /// A blank or control character in the path, behind a percent sign.
    #[error("the URL's path or query hides a blank or a control character")]
    HiddenBlank,
    /// Another URL inside the path: a list that was taken for one address.
    #[error("the URL has another URL in its path")]
    NestedUrl,
    /// A stored URL that is not in canonical form.
    #[error("the stored URL is not in canonical form")]
    NotCanonical,
}

impl UrlError {
    /// The error's word, for counters and tables: a closed set.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::TooLong => "too_long",
            Self::NotAUrl => "not_a_url",
            Self::Scheme => "scheme",
            Self::Blank => "blank",
            Self::Userinfo => "userinfo",
            Self::Fragment => "fragment",
            Self::Host => "host",
            Self::SingleLabel => "single_label",
            Self::LocalName => "local_name",
            Self::AddressRefused => "address_refused",
            Self::OverlayHost => "overlay_host",
            Self::Port => "port",
            Self::Malformed => "malformed",
            Self::HiddenBlank => "hidden_blank",
            Self::NestedUrl => "nested_url",
            Self::NotCanonical => "not_canonical",
        }
    }
}

/// A relay's canonical URL. Everything else in it is derived from the text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayUrl {
    text: String,
    host: (usize, usize),
    path: usize,
    port: u16,
    network: Network,
    ip: Option<IpAddr>,
}

impl RelayUrl {
    /// Normalises `text`, or says why it cannot be a relay's address under `policy`.
    pub fn parse(text: &str, policy: &AddressPolicy) -> Result<Self, UrlError> {
        let text = text.trim();
        if text.len() > MAX_INPUT_BYTES {
            return Err(UrlError::TooLong);
        }
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::NotAUrl)?;
        let asked_tls = match scheme {
            s if s.eq_ignore_ascii_case("wss") => true,
            s if s.eq_ignore_ascii_case("ws") => false,
            _ => return Err(UrlError::Scheme),
        };
        if rest.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(UrlError::Blank);
        }
        if rest.contains('#') {
            return Err(UrlError::Fragment);
        }
        let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(UrlError::Userinfo);
        }
        let (host, port) = split_port(authority)?;
        let host = host::parse(host, policy)?;
        // An overlay encrypts by itself, and its names can have no certificate.
        let tls = asked_tls && !host.network.is_overlay();
        Self::assemble(&host, tls, port, &path::normalise(tail)?)
    }

    /// Reads a URL back from the database.
    ///
    /// # Errors
    /// Those of [`RelayUrl::parse`], and `NotCanonical` when the text is not what parsing it gives.
    pub fn from_db(text: &str, policy: &AddressPolicy) -> Result<Self, UrlError> {
        let url = Self::parse(text, policy)?;
        if url.text == text { Ok(url) } else { Err(UrlError::NotCanonical) }
    }

    fn assemble(host: &host::Host, tls: bool, port: Option<u16>, tail: &str) -> Result<Self, UrlError> {
        let (scheme, default) = if tls { (SCHEME_WSS, PORT_WSS) } else { (SCHEME_WS, PORT_WS) };
        let port = port.unwrap_or(default);
        let bracketed = matches!(host.ip, Some(IpAddr::V6(_)));
        let mut text = String::from(scheme);
        if bracketed {
            text.push('[');
        }
        let start = text.len();
        text.push_str(&host.name);
        let end = text.len();
        if bracketed {
            text.push(']');
        }
        if port != default {
            text.push(':');
            text.push_str(&port.to_string());
        }
        let path = text.len();
        text.push_str(tail);
        if text.len() > MAX_URL_BYTES {
            return Err(UrlError::TooLong);
        }
        Ok(Self { text, host: (start, end), path, port, network: host.network, ip: host.ip })
    }

    /// The canonical text, ASCII, at most [`MAX_URL_BYTES`] long, without a trailing slash.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The network that the relay lives on.
    pub const fn network(&self) -> Network {
        self.network
    }

    /// The host's name or address, lower-case, without brackets.
    pub fn host(&self) -> &str {
        &self.text[self.host.0..self.host.1]
    }

    /// The address, when the host is one.
    pub const fn ip(&self) -> Option<IpAddr> {
        self.ip
    }

    /// The port to connect to, the scheme's own where the URL names none.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether the connection is wrapped in TLS; never on overlays.
    pub fn is_tls(&self) -> bool {
        self.text.starts_with(SCHEME_WSS)
    }

    /// The `Host` header: host, in brackets if it is an IPv6 address, and port unless it is the
    /// scheme's own (RFC 9110 §7.2).
    pub fn authority(&self) -> String {
        let scheme = if self.is_tls() { SCHEME_WSS } else { SCHEME_WS };
        self.text[scheme.len()..self.path].to_owned()
    }

    /// The request target: path and query, `/` when there is neither.
    pub fn path_and_query(&self) -> &str {
        let tail = &self.text[self.path..];
        if tail.is_empty() { "/" } else { tail }
    }

    /// The spelling of NIP-66 `d` tags (RFC 3986 §6.2.3): an empty path is written as `/`.
    pub fn to_nip66_d(&self) -> String {
        format!("{}{}", &self.text[..self.path], self.path_and_query())
    }
}

/// Splits `host:port`; an IPv6 address stays in its brackets. An empty port is none (RFC 3986 §6.2.3).
fn split_port(authority: &str) -> Result<(&str, Option<u16>), UrlError> {
    let after_bracket = authority.rfind(']').map_or(0, |at| at + 1);
    let Some(colon) = authority[after_bracket..].rfind(':') else {
        return Ok((authority, None));
    };
    let (host, port) = authority.split_at(after_bracket + colon);
    let digits = &port[1..];
    if digits.is_empty() {
        return Ok((host, None));
    }
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(UrlError::Port);
    }
    let port = digits.parse().ok().filter(|port: &u16| *port != 0);
    port.map(|port| (host, Some(port))).ok_or(UrlError::Port)
}

impl fmt::Display for RelayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl serde::Serialize for RelayUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

#[cfg(test)]
mod tests;
