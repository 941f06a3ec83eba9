//! One relay, all checks: one resolution, then the WebSocket, then the document beside the read.

use std::net::IpAddr;

use super::{CheckKind, Observation, dns, nip11, rtt};
use crate::models::{Reason, RelayUrl};
use crate::net::{DialFailure, Dialer, Target};
use crate::relay::{ProbeVerdict, RelaySocket};

/// What the monitor learnt of one relay.
#[derive(Debug, Clone)]
pub struct MonitorReport {
    /// One per enabled check that applies to the relay, in the table's order.
    pub observations: Vec<Observation>,
    /// Whether the WebSocket opened and spoke Nostr; nothing else makes a relay up.
    pub up: bool,
    /// By what it spoke: `eose`, `event`, `closed`, `auth`, `notice`, or empty.
    pub evidence: &'static str,
    /// Why it is not up, or why an up relay does not let us read.
    pub reason: Reason,
    /// Whether it is not up for a reason of ours, which says nothing about the relay.
    pub ours: bool,
    /// The addresses dialled; empty for overlays.
    pub addresses: Vec<IpAddr>,
}

/// Runs the `enabled` checks. The WebSocket is opened whatever is enabled: `up` needs it.
///
/// When DNS, TCP, the proxy or TLS fails, the remaining checks end with the same reason unattempted;
/// when only the upgrade fails, the document is still asked for.
pub async fn run_all(dialer: &Dialer, url: &RelayUrl, enabled: &[CheckKind]) -> MonitorReport {
    let resolved = dialer.resolve(url).await;
    run_on(dialer, url, resolved, enabled).await
}

/// [`run_all`] on what a relay's name has already resolved to.
pub async fn run_on(
    dialer: &Dialer,
    url: &RelayUrl,
    resolved: Result<Target, DialFailure>,
    enabled: &[CheckKind],
) -> MonitorReport {
    let wanted = |kind: CheckKind| enabled.contains(&kind) && (kind.spec().applies)(url);
    let target = match resolved {
        Ok(target) => target,
        Err(failure) => {
            return unreached(&failure, CheckKind::ALL.iter().copied().filter(|&kind| wanted(kind)));
        }
    };
    let mut observations = Vec::with_capacity(CheckKind::ALL.len());
    if let Some(answer) = target.dns().filter(|_| wanted(CheckKind::Dns)) {
        observations.push(dns::judge(answer));
    }
    let opened = rtt::open(dialer, &target).await;
    let (verdict, document) = Box::pin(read(dialer, &target, opened, wanted(CheckKind::Nip11))).await;
    if wanted(CheckKind::Rtt) {
        observations.push(rtt::judge(&verdict));
    }
    observations.extend(document);
    MonitorReport {
        observations,
        up: verdict.alive,
        evidence: verdict.evidence,
        reason: verdict.reason,
        ours: !verdict.alive && verdict.is_ours(),
        addresses: target.addresses().to_vec(),
    }
}

/// The read probe and the document, side by side on their two connections.
async fn read(
    dialer: &Dialer,
    target: &Target,
    opened: Result<RelaySocket, DialFailure>,
    document: bool,
) -> (ProbeVerdict, Option<Observation>) {
    let get = async || {
        if !document {
            return None;
        }
        Some(nip11::judge(nip11::observe(dialer, target).await))
    };
    match opened {
        Ok(socket) => {
            let timeout_ms = dialer.config().network(target.url().network()).connect_timeout_ms;
            tokio::join!(rtt::observe(socket, timeout_ms), get())
        }
        Err(failure) if only_the_upgrade_failed(failure.reason) => {
            (ProbeVerdict::unreached(&failure), get().await)
        }
        Err(failure) => {
            let verdict = ProbeVerdict::unreached(&failure);
            (verdict, document.then(|| Observation::failed(CheckKind::Nip11, failure)))
        }
    }
}

fn unreached(failure: &DialFailure, kinds: impl Iterator<Item = CheckKind>) -> MonitorReport {
    MonitorReport {
        observations: kinds.map(|kind| Observation::failed(kind, failure.clone())).collect(),
        up: false,
        evidence: "",
        reason: failure.reason,
        ours: failure.is_ours(),
        addresses: Vec::new(),
    }
}

/// The host answered, only not with a WebSocket. A host that let the deadline pass is not asked again.
const fn only_the_upgrade_failed(reason: Reason) -> bool {
    matches!(reason, Reason::WsUpgradeRefused | Reason::WsProtocol | Reason::Oversize | Reason::Disconnected)
}
