//! Whether our own network works, per network: without proof of that, nothing is called down.
//!
//! Proof is an answer from any machine out there: a completed or a refused TCP connection. A name server
//! or a proxy that answers proves nothing about what lies behind it. Where the operator lists canaries,
//! they decide; otherwise a recent answer does, unless nearly everything fails at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::clock;
use crate::models::{Network, Reason, RelayUrl};
use crate::net::Dialer;

/// How long an answer proves our network, milliseconds.
const PROOF_MS: u64 = 10 * 60 * 1000;
/// How long a canary's answer stands, milliseconds.
const CANARY_MS: u64 = 60 * 1000;
/// Results remembered per network.
const WINDOW: usize = 50;
/// Fewer results than this say nothing about "most".
const WINDOW_MIN: usize = 10;
/// At least this share of failures at once is our fault until a canary says otherwise (per cent).
const MOST_PERCENT: usize = 90;

#[derive(Debug, Default)]
struct Seen {
    answered_ms: Option<u64>,
    recent: VecDeque<bool>,
    canary: Option<(u64, bool)>,
}

/// Shared by all jobs of a process.
#[derive(Debug, Clone)]
pub struct Egress {
    seen: Arc<[Mutex<Seen>; 4]>,
    canaries: Arc<Vec<RelayUrl>>,
}

impl Egress {
    /// With the operator's canaries.
    pub fn new(canaries: Vec<RelayUrl>) -> Self {
        Self { seen: Arc::default(), canaries: Arc::new(canaries) }
    }

    /// Notes how a dial ended: `None` when it reached a WebSocket, else its reason. A failure counts as a sign
    /// of our own trouble only when the relay was alive before (`was_alive`): dead addresses say nothing.
    pub fn record(&self, network: Network, failure: Option<Reason>, was_alive: bool) {
        let answered = failure.is_none_or(is_answer);
        if !answered && !was_alive {
            return;
        }
        let mut seen = self.lock(network);
        if answered {
            seen.answered_ms = Some(clock::monotonic_ms());
        }
        if seen.recent.len() == WINDOW {
            seen.recent.pop_front();
        }
        seen.recent.push_back(answered);
    }

    /// Whether our own way into this network is proved to work right now; may dial a canary.
    pub async fn is_proved(&self, network: Network, dialer: &Dialer) -> bool {
        let listed: Vec<RelayUrl> =
            self.canaries.iter().filter(|url| url.network() == network).cloned().collect();
        if listed.is_empty() {
            return self.has_recent_answer(network);
        }
        let now = clock::monotonic_ms();
        if let Some((at, works)) = self.lock(network).canary
            && now.saturating_sub(at) < CANARY_MS
        {
            return works;
        }
        let mut works = false;
        for url in &listed {
            if let Ok(target) = dialer.resolve(url).await
                && dialer.connect(&target).await.is_ok()
            {
                works = true;
                break;
            }
        }
        self.lock(network).canary = Some((clock::monotonic_ms(), works));
        works
    }

    fn has_recent_answer(&self, network: Network) -> bool {
        let seen = self.lock(network);
        let recent = seen.answered_ms.is_some_and(|at| clock::monotonic_ms().saturating_sub(at) < PROOF_MS);
        let failed = seen.recent.iter().filter(|answered| !**answered).count();
        let most_fail = seen.recent.len() >= WINDOW_MIN && failed * 100 >= seen.recent.len() * MOST_PERCENT;
        recent && !most_fail
    }

    fn lock(&self, network: Network) -> std::sync::MutexGuard<'_, Seen> {
        self.seen[network.index()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a dial that failed for this reason was answered by some machine out there.
const fn is_answer(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::DnsFailure
            | Reason::DnsNxdomain
            | Reason::DnsNoAddress
            | Reason::AddressRefused
            | Reason::ConnectTimeout
            | Reason::ConnectFailed
            | Reason::NoRoute
            // A proxy may have taken the connection before it had one itself.
            | Reason::TotalTimeout
            | Reason::ProxyDead
            | Reason::ProxyRefused
            | Reason::ProxyMissing
            | Reason::NetworkDisabled
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_proves_nothing_and_a_refusal_proves_the_way() {
        let egress = Egress::new(Vec::new());
        assert!(!egress.has_recent_answer(Network::Clearnet));
        egress.record(Network::Clearnet, Some(Reason::DnsNxdomain), true);
        egress.record(Network::Clearnet, Some(Reason::ConnectTimeout), true);
        assert!(!egress.has_recent_answer(Network::Clearnet));
        egress.record(Network::Clearnet, Some(Reason::ConnectRefused), true);
        assert!(egress.has_recent_answer(Network::Clearnet));
        assert!(!egress.has_recent_answer(Network::Tor), "one network says nothing about another");
    }

    #[test]
    fn dead_addresses_are_no_sign_of_our_own_trouble() {
        let egress = Egress::new(Vec::new());
        egress.record(Network::Clearnet, None, false);
        for _ in 0..1_000 {
            egress.record(Network::Clearnet, Some(Reason::ConnectTimeout), false);
        }
        assert!(egress.has_recent_answer(Network::Clearnet));
    }

    #[test]
    fn when_nearly_everything_fails_it_is_us() {
        let egress = Egress::new(Vec::new());
        egress.record(Network::Clearnet, None, true);
        for _ in 0..9 {
            egress.record(Network::Clearnet, Some(Reason::ConnectTimeout), true);
        }
        assert!(!egress.has_recent_answer(Network::Clearnet));
        for _ in 0..5 {
            egress.record(Network::Clearnet, None, true);
        }
        assert!(egress.has_recent_answer(Network::Clearnet));
    }
}
