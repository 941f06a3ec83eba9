//! Bytes moved per network, for the fleet's budgets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::models::Network;

/// Counts what goes over the wire, both directions, until somebody takes the count. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    bytes: Arc<[AtomicU64; 4]>,
    received: Arc<[AtomicU64; 4]>,
    sent: Arc<[AtomicU64; 4]>,
}

impl Traffic {
    /// Bytes came from a network.
    pub(super) fn receive(&self, network: Network, bytes: u64) {
        self.received[network.index()].fetch_add(bytes, Ordering::Relaxed);
        self.add(network, bytes);
    }

    /// Bytes went into a network.
    pub(super) fn send(&self, network: Network, bytes: u64) {
        self.sent[network.index()].fetch_add(bytes, Ordering::Relaxed);
        self.add(network, bytes);
    }

    /// What was received and sent since the last time, per network: for the metrics, which nobody has to hear of.
    pub fn take_directions(&self) -> Vec<(Network, u64, u64)> {
        let taken =
            |counts: &[AtomicU64; 4], network: Network| counts[network.index()].swap(0, Ordering::Relaxed);
        Network::ALL.iter().map(|n| (*n, taken(&self.received, *n), taken(&self.sent, *n))).collect()
    }

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

    #[test]
    fn either_direction_counts_for_the_sum_and_by_itself() {
        let traffic = Traffic::default();
        traffic.receive(Network::I2p, 5);
        traffic.send(Network::I2p, 2);
        assert_eq!(traffic.take(), [(Network::I2p, 7)]);
        let moved = |(network, received, sent): &(Network, u64, u64)| {
            *network == Network::I2p && (*received, *sent) == (5, 2)
        };
        assert!(traffic.take_directions().iter().any(moved));
        assert!(traffic.take_directions().iter().all(|(_, received, sent)| received + sent == 0));
    }
}
