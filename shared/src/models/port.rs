//! Ports that may be dialled where a stranger named them.
//!
//! Whoever publishes a URL chooses where we knock: without a bound, an archive of notes is a port scanner that others
//! steer, and the complaints are ours.

use std::str::FromStr;

use super::{Network, RelayUrl};

/// The ports of the two schemes, and those on which relays are often found: a choice. What is missing in it, operators add.
pub const RELAY_PORTS: &[&str] =
    &["80", "443", "3334", "3355", "4848", "4869", "7000", "7447", "7777", "8008", "8080", "8443"];

/// A port, or all from one to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    low: u16,
    high: u16,
}

impl PortRange {
    /// Every port.
    pub const ANY: Self = Self { low: 1, high: u16::MAX };

    /// What is permitted unless an operator says otherwise.
    pub fn usual() -> Vec<Self> {
        RELAY_PORTS.iter().filter_map(|text| text.parse().ok()).collect()
    }

    /// Whether a URL that a stranger named may be dialled. An overlay has no machines that others could complain of.
    pub fn admit(ranges: &[Self], url: &RelayUrl) -> bool {
        url.network() != Network::Clearnet
            || ranges.iter().any(|range| (range.low..=range.high).contains(&url.port()))
    }
}

/// Why a text is no port and no range of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is neither a port nor two with a dash between them")]
pub struct PortError;

impl FromStr for PortRange {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.trim().parse::<u16>().map_err(|_| PortError);
        let (low, high) = (port(low)?, port(high)?);
        if low == 0 || high < low { Err(PortError) } else { Ok(Self { low, high }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::AddressPolicy;

    #[test]
    fn strangers_lead_to_ports_of_relays_and_nowhere_else() {
        let usual = PortRange::usual();
        assert_eq!(usual.len(), RELAY_PORTS.len());
        let admitted =
            |text: &str| PortRange::admit(&usual, &RelayUrl::parse(text, &AddressPolicy::public()).unwrap());
        let onion = "ws://2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion:25";
        for text in ["wss://a.example", "ws://a.example", "wss://a.example:7777", onion] {
            assert!(admitted(text), "{text}");
        }
        for text in ["ws://a.example:22", "ws://a.example:25", "wss://a.example:6379", "ws://a.example:5432"]
        {
            assert!(!admitted(text), "{text}");
        }
    }

    #[test]
    fn a_range_has_two_ends_in_order() {
        assert_eq!("1-65535".parse(), Ok(PortRange::ANY));
        assert_eq!("7000 - 7010".parse(), Ok(PortRange { low: 7_000, high: 7_010 }));
        for text in ["", "0", "-1", "9-8", "65536", "http"] {
            assert_eq!(text.parse::<PortRange>(), Err(PortError), "{text}");
        }
    }
}
