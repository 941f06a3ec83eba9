//! Hosts: names by UTS-46, addresses by their family's own text form, overlay names by the shape
//! of their keys.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};

use super::UrlError;
use super::path::percent_decoded;
use crate::models::network::Network;
use crate::models::policy::AddressPolicy;

/// The longest host name, in bytes (RFC 1035 §2.3.4, without the root's dot).
const MAX_NAME_BYTES: usize = 253;

/// The longest label of a name, in bytes (RFC 1035 §2.3.4).
const MAX_LABEL_BYTES: usize = 63;

/// Top-level names that no public resolver answers: RFC 6761, RFC 6762, ICANN's `.internal`.
const LOCAL_TOP: [&str; 4] = ["local", "internal", "localhost", "test"];

/// A host in canonical form.
pub(super) struct Host {
    pub(super) name: String,
    pub(super) network: Network,
    pub(super) ip: Option<IpAddr>,
}

pub(super) fn parse(raw: &str, policy: &AddressPolicy) -> Result<Host, UrlError> {
    if let Some(literal) = raw.strip_prefix('[') {
        let literal = literal.strip_suffix(']').ok_or(UrlError::Host)?;
        let ip: Ipv6Addr = literal.parse().map_err(|_| UrlError::Host)?;
        return address(IpAddr::V6(ip), policy);
    }
    let decoded = percent_decoded(raw).ok_or(UrlError::Host)?;
    let decoded = String::from_utf8(decoded).map_err(|_| UrlError::Host)?;
    let name = to_ascii(&decoded)?;
    let name = name.trim_end_matches('.');
    if let Ok(ip) = name.parse::<Ipv4Addr>() {
        return address(IpAddr::V4(ip), policy);
    }
    if !is_host_name(name) {
        return Err(UrlError::Host);
    }
    let network = network_of(name)?;
    if !network.is_overlay() && !policy.permits_local_names() {
        let (rest, top) = name.rsplit_once('.').unwrap_or(("", name));
        if LOCAL_TOP.contains(&top) || name == "localhost.localdomain" {
            return Err(UrlError::LocalName);
        }
        if rest.is_empty() {
            return Err(UrlError::SingleLabel);
        }
    }
    Ok(Host { name: name.to_owned(), network, ip: None })
}

fn address(ip: IpAddr, policy: &AddressPolicy) -> Result<Host, UrlError> {
    if !policy.permits(ip) {
        return Err(UrlError::AddressRefused);
    }
    Ok(Host { name: ip.to_string(), network: Network::Clearnet, ip: Some(ip) })
}

/// The lower-case ASCII form of a name. A name that needed UTS-46 must come out of it unchanged a
/// second time, or it would not be canonical.
fn to_ascii(name: &str) -> Result<Cow<'_, str>, UrlError> {
    let lower = name.to_ascii_lowercase();
    if lower.is_ascii() && !lower.contains("xn--") {
        return Ok(Cow::Owned(lower));
    }
    let once = uts46(name)?;
    if uts46(&once)? != once {
        return Err(UrlError::Host);
    }
    Ok(Cow::Owned(once))
}

fn uts46(name: &str) -> Result<String, UrlError> {
    Uts46::new()
        .to_ascii(name.as_bytes(), AsciiDenyList::URL, Hyphens::Allow, DnsLength::Ignore)
        .map(Cow::into_owned)
        .map_err(|_| UrlError::Host)
}

/// Whether a name could stand in DNS, underscores tolerated. Its last label must not read as a
/// number, or some resolvers would take the whole for an IPv4 address.
fn is_host_name(name: &str) -> bool {
    let top = name.rsplit('.').next().unwrap_or(name);
    let numeric = top.bytes().all(|b| b.is_ascii_digit())
        || top.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    name.len() <= MAX_NAME_BYTES && !numeric && name.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    (1..=MAX_LABEL_BYTES).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'))
}

/// The network of a valid host name, by its suffix.
///
/// Tor: the label before `.onion` is a v3 (56) or v2 (16) key, subdomains allowed. I2P: a key of 52
/// before `.b32.i2p`, or a name of its address book. Lokinet: a key of 52, no subdomain.
fn network_of(name: &str) -> Result<Network, UrlError> {
    let (network, valid) = if let Some(rest) = name.strip_suffix(".onion") {
        let key = rest.rsplit('.').next().unwrap_or(rest);
        (Network::Tor, matches!(key.len(), 16 | 56) && is_base32(key))
    } else if let Some(rest) = name.strip_suffix(".i2p") {
        (Network::I2p, rest.strip_suffix(".b32").is_none_or(|key| key.len() == 52 && is_base32(key)))
    } else if let Some(key) = name.strip_suffix(".loki") {
        (Network::Loki, key.len() == 52 && (is_base32(key) || is_zbase32(key)))
    } else {
        (Network::Clearnet, true)
    };
    if valid { Ok(network) } else { Err(UrlError::OverlayHost) }
}

/// RFC 4648 §6, lower-case.
fn is_base32(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'))
}

/// The alphabet in which Lokinet writes its keys.
fn is_zbase32(text: &str) -> bool {
    text.bytes().all(|b| b"ybndrfg8ejkmcpqxot1uwisza345h769".contains(&b))
}
