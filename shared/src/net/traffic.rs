//! Bytes moved per network, for the fleet's budgets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::models::Network;

/// Counts what goes over the wire, both directions, until somebody takes the count. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    bytes: Arc<[AtomicU64; 4]>,
}

impl Traffic {
    /// Adds to a network's count; also gives back what was taken and not reported.
    pub fn add(&self, network: Network, bytes: u64) {
        self.bytes[network.index()].fetch_add(bytes, Ordering::Relaxed);
    }

    /// The counts since the last time, which begin again at nothing; networks without traffic are left out.
    pub fn take(&self) -> Vec<(Network, u64)> {
        Network::ALL
            .iter()
            .map(|network| (*network, self.bytes[network.index()].swap(0, Ordering::Relaxed)))
            .filter(|(_, bytes)| *bytes > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_taken_once_and_can_be_given_back() {
        let traffic = Traffic::default();
        let other = traffic.clone();
        traffic.add(Network::Tor, 5);
        other.add(Network::Tor, 2);
        assert_eq!(traffic.take(), [(Network::Tor, 7)]);
        assert!(other.take().is_empty());
        traffic.add(Network::Tor, 7);
        assert_eq!(traffic.take(), [(Network::Tor, 7)]);
    }
}
