//! Which addresses and names a relay may have.
//!
//! One policy serves the parser (literal addresses, local names) and the dialler (every resolved
//! address), so that a URL can never be accepted by one and mean something else to the other.
//! Invariant: an address in no global range is permitted only when a range says so, and none that is denied.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A block of addresses: `10.0.0.0/8`, `fd00::/8`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IpRange {
    base: IpAddr,
    prefix: u8,
}

/// A text that is not an address range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpRangeError {
    /// The part before the slash is no IP address.
    #[error("{0:?} is not an IP address range such as 10.0.0.0/8 or ::1")]
    Address(String),
    /// The prefix is no number, or longer than the address.
    #[error("{0:?} has a prefix length that its address family does not have")]
    Prefix(String),
    /// The address has bits set beyond the prefix: which range was meant is a guess.
    #[error("{0:?} has bits set beyond its prefix")]
    HostBits(String),
}

impl IpRange {
    const fn v4(octets: [u8; 4], prefix: u8) -> Self {
        let [a, b, c, d] = octets;
        Self { base: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix }
    }

    const fn v6(first: u16, second: u16, prefix: u8) -> Self {
        Self { base: IpAddr::V6(Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, 0)), prefix }
    }

    /// Whether `ip` lies in the range. The families never mix: an IPv4 address mapped into IPv6
    /// is an IPv6 address here.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.base, ip) {
            (IpAddr::V4(base), IpAddr::V4(ip)) => {
                same_prefix(u128::from(base.to_bits()), u128::from(ip.to_bits()), 32, self.prefix)
            }
            (IpAddr::V6(base), IpAddr::V6(ip)) => same_prefix(base.to_bits(), ip.to_bits(), 128, self.prefix),
            _ => false,
        }
    }
}

/// Whether two addresses of `width` bits agree in their first `prefix` bits.
fn same_prefix(a: u128, b: u128, width: u8, prefix: u8) -> bool {
    (a ^ b).checked_shr(u32::from(width - prefix)).unwrap_or(0) == 0
}

impl FromStr for IpRange {
    type Err = IpRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let base: IpAddr = address.parse().map_err(|_| IpRangeError::Address(text.to_owned()))?;
        let (width, bits) = match base {
            IpAddr::V4(v4) => (32, u128::from(v4.to_bits())),
            IpAddr::V6(v6) => (128, v6.to_bits()),
        };
        let prefix = match prefix {
            None => width,
            Some(p) if !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()) => {
                p.parse().ok().filter(|n| *n <= width).ok_or_else(|| IpRangeError::Prefix(text.to_owned()))?
            }
            Some(_) => return Err(IpRangeError::Prefix(text.to_owned())),
        };
        let host_mask = 1_u128.checked_shl(u32::from(width - prefix)).map_or(u128::MAX, |bit| bit - 1);
        if bits & host_mask != 0 {
            return Err(IpRangeError::HostBits(text.to_owned()));
        }
        Ok(Self { base, prefix })
    }
}

impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl<'de> serde::Deserialize<'de> for IpRange {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <String as serde::Deserialize>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// IPv4 blocks that are not global unicast (IANA special-purpose registry, RFC 6890 and successors).
const NOT_GLOBAL_V4: [IpRange; 15] = [
    IpRange::v4([0, 0, 0, 0], 8),
    IpRange::v4([10, 0, 0, 0], 8),
    IpRange::v4([100, 64, 0, 0], 10),
    IpRange::v4([127, 0, 0, 0], 8),
    IpRange::v4([169, 254, 0, 0], 16),
    IpRange::v4([172, 16, 0, 0], 12),
    IpRange::v4([192, 0, 0, 0], 24),
    IpRange::v4([192, 0, 2, 0], 24),
    IpRange::v4([192, 88, 99, 0], 24),
    IpRange::v4([192, 168, 0, 0], 16),
    IpRange::v4([198, 18, 0, 0], 15),
    IpRange::v4([198, 51, 100, 0], 24),
    IpRange::v4([203, 0, 113, 0], 24),
    IpRange::v4([224, 0, 0, 0], 4),
    IpRange::v4([240, 0, 0, 0], 4),
];

/// The only IPv6 block from which global unicast addresses are given (RFC 4291). All else is
/// refused by not being in it: loopback, mapped IPv4, NAT64, ULA, link-local, multicast.
const GLOBAL_V6: IpRange = IpRange::v6(0x2000, 0, 3);

/// Blocks inside [`GLOBAL_V6`] that are nobody's host: protocol assignments with Teredo,
/// benchmarking and ORCHID; both documentation blocks; 6to4, which hides an IPv4 address.
const NOT_GLOBAL_V6: [IpRange; 4] = [
    IpRange::v6(0x2001, 0, 23),
    IpRange::v6(0x2001, 0x0db8, 32),
    IpRange::v6(0x2002, 0, 16),
    IpRange::v6(0x3fff, 0, 20),
];

/// What `--allow-local` opens: loopback and the private blocks. Link-local stays shut, because
/// cloud metadata services live there.
const LOCAL: [IpRange; 6] = [
    IpRange::v4([127, 0, 0, 0], 8),
    IpRange::v4([10, 0, 0, 0], 8),
    IpRange::v4([172, 16, 0, 0], 12),
    IpRange::v4([192, 168, 0, 0], 16),
    IpRange { base: IpAddr::V6(Ipv6Addr::LOCALHOST), prefix: 128 },
    IpRange::v6(0xfc00, 0, 7),
];

/// Which addresses may be dialled and which names accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressPolicy {
    ranges: Vec<IpRange>,
    denied: Vec<IpRange>,
    local_names: bool,
}

impl AddressPolicy {
    /// Global unicast addresses and public names only.
    pub const fn public() -> Self {
        Self { ranges: Vec::new(), denied: Vec::new(), local_names: false }
    }

    /// Also loopback, the private ranges and local names (`--allow-local`, tests).
    pub fn local() -> Self {
        Self { ranges: LOCAL.to_vec(), denied: Vec::new(), local_names: true }
    }

    /// The same policy with more ranges permitted (`[network] allow`). Names are not concerned.
    #[must_use]
    pub fn with_ranges(mut self, ranges: impl IntoIterator<Item = IpRange>) -> Self {
        self.ranges.extend(ranges);
        self
    }

    /// The same policy with ranges that are never permitted, public or permitted otherwise (`[network] deny`): their
    /// owner asked to be left alone.
    #[must_use]
    pub fn without_ranges(mut self, ranges: impl IntoIterator<Item = IpRange>) -> Self {
        self.denied.extend(ranges);
        self
    }

    /// For reading back what some policy once let in: permits every address and name. Never for dialling.
    pub fn any() -> Self {
        let ranges = vec![IpRange::v4([0; 4], 0), IpRange::v6(0, 0, 0)];
        Self { ranges, denied: Vec::new(), local_names: true }
    }

    /// The same policy with local names (`localhost`, `.internal`, single labels) accepted.
    #[must_use]
    pub const fn with_local_names(mut self) -> Self {
        self.local_names = true;
        self
    }

    /// Whether `ip` may be dialled: it is global unicast, or a range of this policy has it; and it is not denied.
    pub fn permits(&self, ip: IpAddr) -> bool {
        !self.denies(ip) && (is_global(ip) || self.ranges.iter().any(|range| range.contains(ip)))
    }

    /// Whether the operator has said that `ip` is never dialled.
    pub fn denies(&self, ip: IpAddr) -> bool {
        self.denied.iter().any(|range| range.contains(ip))
    }

    /// Whether names that exist only on a local network are accepted.
    pub const fn permits_local_names(&self) -> bool {
        self.local_names
    }
}

impl Default for AddressPolicy {
    fn default() -> Self {
        Self::public()
    }
}

/// Whether an address belongs to a host of the public internet.
fn is_global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => !NOT_GLOBAL_V4.iter().any(|range| range.contains(ip)),
        IpAddr::V6(_) => GLOBAL_V6.contains(ip) && !NOT_GLOBAL_V6.iter().any(|range| range.contains(ip)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn public_policy_permits_only_global_addresses() {
        let policy = AddressPolicy::public();
        for global in
            ["8.8.8.8", "1.1.1.1", "100.63.0.1", "172.32.0.1", "2606:4700::1111", "2a00::1", "2003::1"]
        {
            assert!(policy.permits(ip(global)), "{global}");
        }
        for other in [
            "0.0.0.0",
            "10.1.1.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.5",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::8.8.8.8",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:2::1",
            "2001:10::1",
            "2001:db8::1",
            "2002:808:808::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!policy.permits(ip(other)), "{other}");
        }
    }

    #[test]
    fn local_policy_opens_loopback_and_private_ranges_but_not_link_local() {
        let policy = AddressPolicy::local();
        for open in
            ["127.0.0.1", "127.8.8.8", "10.1.1.1", "172.16.0.1", "192.168.0.1", "::1", "fd12::1", "8.8.8.8"]
        {
            assert!(policy.permits(ip(open)), "{open}");
        }
        for shut in ["169.254.169.254", "fe80::1", "0.0.0.0", "::ffff:127.0.0.1", "224.0.0.1", "100.64.0.1"] {
            assert!(!policy.permits(ip(shut)), "{shut}");
        }
        assert!(policy.permits_local_names());
        assert!(!AddressPolicy::public().permits_local_names());
    }

    #[test]
    fn a_permitted_range_opens_itself_and_nothing_else() {
        let policy =
            AddressPolicy::public().with_ranges(["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()]);
        assert!(policy.permits(ip("10.255.0.1")));
        assert!(policy.permits(ip("::1")));
        assert!(!policy.permits(ip("127.0.0.1")));
        assert!(!policy.permits(ip("::2")));
        assert!(!policy.permits_local_names());
        assert!(policy.with_local_names().permits_local_names());
        assert!(
            AddressPolicy::public().with_ranges(["::/0".parse().unwrap()]).permits(ip("::ffff:127.0.0.1"))
        );
    }

    #[test]
    fn a_denied_range_is_shut_whatever_opens_it() {
        let denied: Vec<IpRange> =
            ["8.8.8.0/24", "10.1.0.0/16"].iter().map(|range| range.parse().unwrap()).collect();
        let policy = AddressPolicy::local().without_ranges(denied).with_ranges(["8.8.8.8".parse().unwrap()]);
        for (text, permitted) in
            [("8.8.8.8", false), ("8.8.9.8", true), ("10.1.2.3", false), ("10.2.2.3", true)]
        {
            assert_eq!(
                (policy.permits(ip(text)), policy.denies(ip(text))),
                (permitted, !permitted),
                "{text}"
            );
        }
        assert!(!policy.denies(ip("169.254.169.254")), "refused, and by nobody's word");
    }

    #[test]
    fn a_range_is_read_exactly_or_refused() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("::1", "::1/128"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("1.2.3.4", "1.2.3.4/32"),
        ] {
            assert_eq!(text.parse::<IpRange>().unwrap().to_string(), shown);
        }
        let refused = |text: &str| text.parse::<IpRange>().unwrap_err();
        assert!(matches!(refused("relay.com"), IpRangeError::Address(_)));
        assert!(matches!(refused(""), IpRangeError::Address(_)));
        assert!(matches!(refused("10.0.0.0/33"), IpRangeError::Prefix(_)));
        assert!(matches!(refused("10.0.0.0/"), IpRangeError::Prefix(_)));
        assert!(matches!(refused("10.0.0.0/+8"), IpRangeError::Prefix(_)));
        assert!(matches!(refused("10.0.0.1/8"), IpRangeError::HostBits(_)));
        assert!(matches!(refused("::1/0"), IpRangeError::HostBits(_)));
    }
}
