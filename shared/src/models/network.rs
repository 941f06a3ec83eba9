//! The four networks relays live on.

use super::closed::closed_set;

closed_set! {
    /// Where a relay is reached. Overlay networks are dialled through a SOCKS5 proxy
    /// with the name resolved by the proxy, never by DNS.
    Network, "network" {
        /// The ordinary internet.
        Clearnet = "clearnet",
        /// `.onion` services.
        Tor = "tor",
        /// `.i2p` services.
        I2p = "i2p",
        /// Lokinet's `.loki` services.
        Loki = "loki",
    }
}

impl Network {
    /// Whether names of this network must never reach DNS.
    pub const fn is_overlay(self) -> bool {
        !matches!(self, Self::Clearnet)
    }

    /// Position in [`Network::ALL`], for tables kept as arrays.
    pub const fn index(self) -> usize {
        self as usize
    }
}
