//! What an operator may set about the network, and the caps nobody may lift by accident.

use std::net::SocketAddr;
use std::time::Duration;

use super::agent::is_contact;
use super::failure::NetError;
use crate::models::{AddressPolicy, Network};

/// Largest WebSocket frame and message taken: strfry sends up to 64 KiB, sdk clients up to 5 MB;
/// 2 MiB keeps every known relay and bounds a worker's memory per connection.
pub const MESSAGE_BYTES: usize = 2 * 1024 * 1024;
/// Largest HTTP response head: ten times what relays behind large proxies send.
pub const HEADER_BYTES: usize = 16 * 1024;
/// Most addresses tried for one connection; hosts behind anycast publish up to 8.
pub const ADDRESSES_TRIED: usize = 8;

/// Limits of one connection. Wall clock is [`NetworkConfig::connect_timeout_ms`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caps {
    /// Bytes of a WebSocket frame and of a whole message.
    pub message_bytes: usize,
    /// Bytes of an HTTP response head.
    pub header_bytes: usize,
    /// Addresses tried for one connection.
    pub addresses: usize,
}

impl Default for Caps {
    fn default() -> Self {
        Self { message_bytes: MESSAGE_BYTES, header_bytes: HEADER_BYTES, addresses: ADDRESSES_TRIED }
    }
}

/// How one network is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Whether its relays are dialled at all.
    pub enabled: bool,
    /// SOCKS5 proxy as `host:port`; required for overlays, refused for clearnet.
    pub proxy: Option<String>,
    /// Whether each relay gets its own proxy credentials, hence (in Tor) its own circuits. They are offered beside
    /// going without (RFC 1928 §3), so that a proxy that knows none takes us as before.
    pub isolate: bool,
    /// Milliseconds for resolving, and again for one whole connect, upgrade or request.
    pub connect_timeout_ms: u64,
}

impl NetworkConfig {
    const fn new(enabled: bool, connect_timeout_ms: u64) -> Self {
        Self { enabled, proxy: None, isolate: false, connect_timeout_ms }
    }

    /// The timeout as a duration.
    pub const fn timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }
}

/// The room's configuration; [`super::Dialer::new`] validates it.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Which addresses may be dialled.
    pub policy: AddressPolicy,
    /// One entry per network, by [`Network::index`].
    pub networks: [NetworkConfig; 4],
    /// Limits of one connection.
    pub caps: Caps,
    /// Root certificates (DER) trusted besides the public ones.
    pub trust: Vec<Vec<u8>>,
    /// DNS servers to ask; empty means the system's.
    pub name_servers: Vec<SocketAddr>,
    /// Whom servers may tell of trouble with us ([`super::is_contact`]); sent to each.
    pub contact: Option<String>,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            policy: AddressPolicy::public(),
            networks: [
                NetworkConfig::new(true, 10_000),
                NetworkConfig { isolate: true, ..NetworkConfig::new(false, 30_000) },
                NetworkConfig::new(false, 45_000),
                NetworkConfig::new(false, 30_000),
            ],
            caps: Caps::default(),
            trust: Vec::new(),
            name_servers: Vec::new(),
            contact: None,
        }
    }
}

impl NetConfig {
    /// How `network` is reached.
    pub const fn network(&self, network: Network) -> &NetworkConfig {
        &self.networks[network.index()]
    }

    /// The same, to change it.
    pub const fn network_mut(&mut self, network: Network) -> &mut NetworkConfig {
        &mut self.networks[network.index()]
    }

    /// Refuses a proxy that is not `host:port`, any proxy for clearnet, and a contact that is none.
    pub(super) fn check(&self) -> Result<(), NetError> {
        if let Some(text) = self.contact.as_ref().filter(|text| !is_contact(text)) {
            return Err(NetError::BadContact { text: text.clone() });
        }
        for &network in Network::ALL {
            let Some(text) = &self.network(network).proxy else { continue };
            if !network.is_overlay() {
                return Err(NetError::ClearnetProxy);
            }
            let valid = text.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port > 0)
            });
            if !valid {
                return Err(NetError::BadProxy { network, text: text.clone() });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_host_and_port_and_never_for_clearnet() {
        let mut config = NetConfig::default();
        config.network_mut(Network::Tor).proxy = Some("tor:9050".to_owned());
        config.check().unwrap();
        for bad in ["tor", "tor:", ":9050", "tor:99999", "socks5://tor:9050"] {
            config.network_mut(Network::Tor).proxy = Some(bad.to_owned());
            assert!(matches!(config.check(), Err(NetError::BadProxy { .. })), "{bad}");
        }
        config.network_mut(Network::Tor).proxy = None;
        config.network_mut(Network::Clearnet).proxy = Some("proxy:1080".to_owned());
        assert!(matches!(config.check(), Err(NetError::ClearnetProxy)));
    }
}
