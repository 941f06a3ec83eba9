//! What other monitors say: of relays, and of themselves. Claims, kept beside ours and never averaged with them.

use super::relay_url::RelayUrl;

/// What one monitor says of one relay (kind 30166).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MonitorReportRow {
    /// The monitor's public key.
    pub monitor: [u8; 32],
    /// Which relay.
    pub url: RelayUrl,
    /// When, Unix seconds, as the monitor says.
    pub created_at: i64,
    /// Milliseconds until open, to read, to write.
    pub rtt_ms: [Option<u32>; 3],
    /// Whether authentication is asked for.
    pub auth: Option<bool>,
    /// Whether writing is restricted.
    pub writes: Option<bool>,
    /// Whether proof of work is asked for.
    pub pow: Option<bool>,
    /// Whether payment is asked for.
    pub payment: Option<bool>,
    /// NIPs it is said to support, ascending.
    pub nips: Vec<u16>,
    /// Where it is said to be.
    pub geohash: Option<String>,
}

/// What one monitor says of itself (kind 10166).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MonitorAnnouncementRow {
    /// The monitor's public key.
    pub monitor: [u8; 32],
    /// When, Unix seconds, as the monitor says.
    pub created_at: i64,
    /// Seconds between two looks at a relay.
    pub frequency_s: Option<u32>,
    /// What it looks at.
    pub checks: Vec<String>,
    /// Milliseconds after which it gives up, by check; an empty name stands for all of them.
    pub timeouts_ms: Vec<(String, u32)>,
    /// Where it is.
    pub geohash: Option<String>,
}
