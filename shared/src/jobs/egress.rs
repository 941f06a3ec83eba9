//! Whether our own network works, per network: without proof of that, nothing is called down.
//!
//! Proof is an answer from any machine out there: a completed or a refused TCP connection. A name server
//! or a proxy that answers proves nothing about what lies behind it. Where the operator lists canaries,
//! they decide; otherwise a recent answer does, unless nearly everything fails at once; and a relay that
//! fails again is down only if something answered in between. Dead addresses are no sign of our own trouble, neither when
//! they are counted nor when they are asked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::clock;
use crate::models::{Network, Reason, RelayUrl};
use crate::net::Dialer;
use crate::telemetry::{Labels, Metrics};

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
    answered_at: i64,
    recent: VecDeque<bool>,
    canary: Option<(u64, bool)>,
}

impl Seen {
    fn most_fail(&self) -> bool {
        let failed = self.recent.iter().filter(|answered| !**answered).count();
        self.recent.len() >= WINDOW_MIN && failed * 100 >= self.recent.len() * MOST_PERCENT
    }
}

/// How our own way into a network stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A canary, or any machine out there, has answered lately: a failure is the relay's.
    Proved,
    /// Nothing has answered yet, or not lately: a failure says nothing.
    Unproved,
    /// The canaries fail, or nearly all relays that were alive do, at once: it is us.
    Sick,
}

impl Standing {
    /// Every one.
    pub(super) const ALL: [Self; 3] = [Self::Proved, Self::Unproved, Self::Sick];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Proved => "proved",
            Self::Unproved => "unproved",
            Self::Sick => "sick",
        }
    }
}

/// Shared by all jobs of a process.
#[derive(Debug, Clone)]
pub struct Egress {
    seen: Arc<[Mutex<Seen>; 4]>,
    canaries: Arc<Vec<RelayUrl>>,
    /// Held while the canaries of a network are asked, for all who want to know.
    asking: Arc<[tokio::sync::Mutex<()>; 4]>,
    standings: Family<Labels, Counter>,
}

impl Egress {
    /// With the operator's canaries.
    pub fn new(canaries: Vec<RelayUrl>) -> Self {
        let canaries = Arc::new(canaries);
        Self { seen: Arc::default(), canaries, asking: Arc::default(), standings: Family::default() }
    }

    /// Counts there how it stood.
    #[must_use]
    pub fn counted(self, metrics: &Metrics) -> Self {
        Self { standings: metrics.egress_standings.clone(), ..self }
    }

    /// Notes how a dial ended: `None` when it reached a WebSocket, else its reason. A failure counts as a sign
    /// of our own trouble only when nobody had called the relay down (`was_up`): dead addresses say nothing.
    pub fn record(&self, network: Network, failure: Option<Reason>, was_up: bool) {
        let answered = failure.is_none_or(is_answer);
        if !answered && !was_up {
            return;
        }
        let mut seen = self.lock(network);
        if answered {
            seen.answered_ms = Some(clock::monotonic_ms());
            seen.answered_at = clock::unix_now();
            if seen.most_fail() {
                // It works again: what failed meanwhile says nothing about what comes.
                seen.recent.clear();
            }
        }
        if seen.recent.len() == WINDOW {
            seen.recent.pop_front();
        }
        seen.recent.push_back(answered);
    }

    /// Whether something has answered after `since` (Unix seconds; none: at any time), a canary or a failure for this
    /// reason among it. What a canary said before, and is remembered, does not count.
    pub fn answered_after(&self, network: Network, reason: Reason, since: Option<i64>) -> bool {
        since.is_none_or(|since| self.lock(network).answered_at > since) || is_answer(reason)
    }

    /// How our own way into this network stands right now, for a failed dial to be judged by; may dial a canary. Of a relay
    /// that nobody had called down (`was_up`) it can say that we are sick; of any other at most that nothing is proved.
    pub async fn standing(&self, network: Network, dialer: &Dialer, was_up: bool) -> Standing {
        let standing = self.look(network, dialer, was_up).await;
        let labels = Labels::new("", network.as_str(), standing.as_str());
        self.standings.get_or_create(&labels).inc();
        standing
    }

    /// Whether canaries say how this network is.
    pub fn has_canary(&self, network: Network) -> bool {
        self.canaries.iter().any(|url| url.network() == network)
    }

    /// Whether nearly all relays that were alive fail at once.
    pub fn most_fail(&self, network: Network) -> bool {
        self.lock(network).most_fail()
    }

    async fn look(&self, network: Network, dialer: &Dialer, was_up: bool) -> Standing {
        if !self.has_canary(network) {
            return self.without_canary(network, was_up);
        }
        let listed: Vec<RelayUrl> =
            self.canaries.iter().filter(|url| url.network() == network).cloned().collect();
        let standing = |works| if works { Standing::Proved } else { Standing::Sick };
        let _asking = self.asking[network.index()].lock().await;
        let now = clock::monotonic_ms();
        if let Some((at, works)) = self.lock(network).canary
            && now.saturating_sub(at) < CANARY_MS
        {
            return standing(works);
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
        let mut seen = self.lock(network);
        seen.canary = Some((clock::monotonic_ms(), works));
        if works {
            seen.answered_at = clock::unix_now();
        }
        standing(works)
    }

    fn without_canary(&self, network: Network, was_up: bool) -> Standing {
        let seen = self.lock(network);
        if seen.most_fail() {
            // A dead address finds nothing out: while it is asked, the trouble may be over.
            return if was_up { Standing::Sick } else { Standing::Unproved };
        }
        match seen.answered_ms {
            Some(at) if clock::monotonic_ms().saturating_sub(at) < PROOF_MS => Standing::Proved,
            _ => Standing::Unproved,
        }
    }

    fn lock(&self, network: Network) -> std::sync::MutexGuard<'_, Seen> {
        self.seen[network.index()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a dial that failed for this reason was answered by some machine out there.
pub(super) const fn is_answer(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::DnsFailure
            | Reason::DnsNxdomain
            | Reason::DnsNoAddress
            | Reason::AddressRefused
            | Reason::AddressDenied
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::net::testing::{TestServer, local_dialer};

    #[test]
    fn silence_proves_nothing_and_a_refusal_proves_the_way() {
        let egress = Egress::new(Vec::new());
        assert_eq!(egress.without_canary(Network::Clearnet, true), Standing::Unproved);
        egress.record(Network::Clearnet, Some(Reason::DnsNxdomain), true);
        egress.record(Network::Clearnet, Some(Reason::ConnectTimeout), true);
        assert_eq!(egress.without_canary(Network::Clearnet, true), Standing::Unproved);
        egress.record(Network::Clearnet, Some(Reason::ConnectRefused), true);
        assert_eq!(egress.without_canary(Network::Clearnet, true), Standing::Proved);
        assert_eq!(
            egress.without_canary(Network::Tor, true),
            Standing::Unproved,
            "one network says nothing about another"
        );
    }

    #[tokio::test]
    async fn canaries_are_asked_once_for_all_who_want_to_know() {
        let met = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&met);
        let server = TestServer::tcp(move |stream| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move { drop(stream) }
        })
        .await;
        let (egress, dialer) = (Egress::new(vec![server.url()]), local_dialer());
        let asked = (0..50).map(|_| egress.standing(Network::Clearnet, &dialer, true));
        let standings = futures_util::future::join_all(asked).await;
        assert!(standings.iter().all(|standing| *standing == Standing::Proved), "{standings:?}");
        // Whoever is at the door by now is let in.
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(met.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_canary_proves_what_comes_before_its_answer_and_nothing_after_it() {
        let server = TestServer::tcp(|stream| async move { drop(stream) }).await;
        let (egress, dialer) = (Egress::new(vec![server.url()]), local_dialer());
        let begun = clock::unix_now();
        let after = |since| egress.answered_after(Network::Clearnet, Reason::ConnectTimeout, Some(since));
        assert!(!after(begun - 1), "it has not been asked");
        for _ in 0..2 {
            let standing = egress.standing(Network::Clearnet, &dialer, true).await;
            assert_eq!(standing, Standing::Proved, "now, or as remembered");
            assert!(after(begun - 1) && !after(clock::unix_now()));
        }
    }

    #[test]
    fn dead_addresses_are_no_sign_of_our_own_trouble() {
        let egress = Egress::new(Vec::new());
        egress.record(Network::Clearnet, None, false);
        for _ in 0..1_000 {
            egress.record(Network::Clearnet, Some(Reason::ConnectTimeout), false);
        }
        assert_eq!(egress.without_canary(Network::Clearnet, true), Standing::Proved);
    }

    #[test]
    fn when_nearly_everything_fails_it_is_us() {
        let egress = Egress::new(Vec::new());
        egress.record(Network::Clearnet, None, true);
        for _ in 0..9 {
            egress.record(Network::Clearnet, Some(Reason::ConnectTimeout), true);
        }
        assert_eq!(egress.without_canary(Network::Clearnet, true), Standing::Sick);
        // The trouble may be over by now: a dead address is not who would know.
        assert_eq!(egress.without_canary(Network::Clearnet, false), Standing::Unproved);
        egress.record(Network::Clearnet, None, true);
        assert_eq!(
            egress.without_canary(Network::Clearnet, true),
            Standing::Proved,
            "the first answer ends it"
        );
    }
}
