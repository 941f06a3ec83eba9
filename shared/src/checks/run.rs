//! One relay, all checks: one resolution, then the WebSocket, then the document beside the read.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::time::timeout;

use super::{CheckKind, Looks, Observation, Spoken, dns, geo, http, net, nip11, rtt, ssl};
use crate::models::{Outcome, Reason, RelayUrl};
use crate::net::{DialFailure, Dialer, Seen, Target, TlsFacts};
use crate::nips::InfoView;
use crate::relay::{ProbeVerdict, RelaySocket};

/// How long name servers may still take when everything else is known: those that swallow questions are
/// many, and a slot of the fleet is worth more than the name of an address.
const ZONE_GRACE: Duration = Duration::from_secs(1);

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
    /// What the relay says of itself, as we read it; none when it gave no document.
    pub info: Option<InfoView>,
    /// What the handshake of the WebSocket showed; none without TLS, or when there was no handshake.
    pub tls: Option<TlsFacts>,
    /// Smallest time to live of the address records, seconds: volatile, hence in no document.
    pub dns_ttl_s: Option<u32>,
    /// What was found out beyond reading.
    pub spoken: Spoken,
    /// How long it wants to be left alone, seconds.
    pub retry_after_s: Option<u64>,
}

impl MonitorReport {
    /// Whether anything of the relay's machine answered us; a name server that does proves nothing.
    pub fn reached(&self) -> bool {
        let from_there = |kind| matches!(kind, CheckKind::Nip11 | CheckKind::Ssl | CheckKind::Http);
        self.tls.is_some()
            || self.observations.iter().any(|o| o.status.is_some())
            || self
                .observations
                .iter()
                .any(|o| o.rtt_ms[0].is_some() || (o.outcome == Outcome::Ok && from_there(o.kind)))
    }
}

/// Resolves and looks. The WebSocket is opened whatever is enabled: `up` needs it.
///
/// When DNS, TCP, the proxy or TLS fails, the remaining checks end with the same reason unattempted;
/// when only the upgrade fails, the document is still asked for.
pub async fn run_all(dialer: &Dialer, url: &RelayUrl, looks: &Looks) -> MonitorReport {
    let resolved = dialer.resolve(url).await;
    run_on(dialer, url, resolved, looks).await
}

/// [`run_all`] on what a relay's name has already resolved to.
pub async fn run_on(
    dialer: &Dialer,
    url: &RelayUrl,
    resolved: Result<Target, DialFailure>,
    looks: &Looks,
) -> MonitorReport {
    let wanted = |kind: CheckKind| looks.wants(kind) && (kind.spec().applies)(url);
    let target = match resolved {
        Ok(target) => looks.target(target),
        Err(failure) => {
            return unreached(&failure, CheckKind::ALL.iter().copied().filter(|&kind| wanted(kind)));
        }
    };
    let mut seen = Seen::default();
    let placed = placed(looks, target.addresses(), wanted(CheckKind::Geo), wanted(CheckKind::Net));
    let zone = async { if wanted(CheckKind::Dns) { dialer.zone(&target).await } else { None } };
    let read = Box::pin(read(dialer, &target, &mut seen, looks, wanted(CheckKind::Nip11)));
    let ((read, zone), (mut geo, mut net)) = tokio::join!(beside(read, Box::pin(zone)), placed);
    let Read { verdict, failure, document, info, spoken } = read;
    let mut observations: Vec<Observation> = CheckKind::ALL
        .iter()
        .filter(|&&kind| wanted(kind))
        .filter_map(|&kind| match kind {
            CheckKind::Dns => target.dns().map(|answer| dns::judge(answer, zone.as_ref())),
            CheckKind::Geo => geo.take(),
            CheckKind::Net => net.take(),
            CheckKind::Rtt => Some(rtt::judge(&verdict, spoken.write.as_ref(), failure.as_ref())),
            CheckKind::Ssl => Some(ssl::judge(seen.tls.as_ref(), failure.as_ref())),
            CheckKind::Http => Some(http::judge(seen.head.as_ref(), failure.as_ref())),
            CheckKind::Nip11 => None,
        })
        .collect();
    observations.extend(document);
    MonitorReport {
        observations,
        up: verdict.alive,
        evidence: verdict.evidence,
        reason: verdict.reason,
        ours: !verdict.alive && verdict.is_ours(),
        addresses: target.addresses().to_vec(),
        info,
        tls: seen.tls,
        dns_ttl_s: target.dns().and_then(crate::net::DnsAnswer::ttl_s),
        spoken,
        retry_after_s: seen.head.as_ref().and_then(|head| head.retry_after_s),
    }
}

/// What is asked beside the read has ended with it, or soon after.
async fn beside<T, Z>(
    read: impl Future<Output = T> + Unpin,
    zone: impl Future<Output = Option<Z>> + Unpin,
) -> (T, Option<Z>) {
    match select(read, zone).await {
        Either::Left((read, zone)) => (read, timeout(ZONE_GRACE, zone).await.ok().flatten()),
        Either::Right((zone, read)) => (read.await, zone),
    }
}

/// The geo and net checks, which need nothing but the addresses; their files may be slow.
async fn placed(
    looks: &Looks,
    addresses: &[IpAddr],
    geo: bool,
    net: bool,
) -> (Option<Observation>, Option<Observation>) {
    if !geo && !net {
        return (None, None);
    }
    let (places, networks, addresses) = (looks.places.clone(), looks.networks.clone(), addresses.to_vec());
    let looked = tokio::task::spawn_blocking(move || {
        (geo.then(|| geo::judge(&places, &addresses)), net.then(|| net::judge(&networks, &addresses)))
    });
    looked.await.unwrap_or_else(|error| {
        let failed =
            |kind| Observation::failed(kind, DialFailure::new(Reason::DataCorrupt, error.to_string()));
        (geo.then(|| failed(CheckKind::Geo)), net.then(|| failed(CheckKind::Net)))
    })
}

/// What came over the two connections.
struct Read {
    verdict: ProbeVerdict,
    /// Why the WebSocket did not open.
    failure: Option<DialFailure>,
    document: Option<Observation>,
    info: Option<InfoView>,
    spoken: Spoken,
}

/// Opens; then the read probe and the document, side by side on their two connections; then
/// what the document may bear on.
async fn read(dialer: &Dialer, target: &Target, seen: &mut Seen, looks: &Looks, document: bool) -> Read {
    let get = async || {
        if !document {
            return (None, None);
        }
        let (observation, info) = nip11::observe(dialer, target).await;
        (Some(observation), info)
    };
    match RelaySocket::open_seen(dialer, target, seen).await {
        Ok(mut socket) => {
            let timeout_ms = dialer.config().network(target.url().network()).connect_timeout_ms;
            let probe = async {
                let verdict = socket.probe(timeout_ms).await;
                if looks.speak.has_questions(&verdict) {
                    return (verdict, Some(socket));
                }
                socket.close().await;
                (verdict, None)
            };
            let ((verdict, socket), (document, info)) = tokio::join!(probe, get());
            let mut spoken = Spoken::default();
            if let Some(mut socket) = socket {
                spoken = looks.speak.ask(&mut socket, &verdict, info.as_ref(), timeout_ms).await;
                socket.close().await;
            }
            Read { verdict, failure: None, document, info, spoken }
        }
        Err(failure) => {
            let (document, info) = if only_the_upgrade_failed(failure.reason) {
                get().await
            } else {
                (document.then(|| Observation::failed(CheckKind::Nip11, failure.clone())), None)
            };
            Read {
                verdict: ProbeVerdict::unreached(&failure),
                failure: Some(failure),
                document,
                info,
                spoken: Spoken::default(),
            }
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
        info: None,
        tls: None,
        dns_ttl_s: None,
        spoken: Spoken::default(),
        retry_after_s: None,
    }
}

/// The host answered, only not with a WebSocket. One that let the deadline pass is not asked again, nor is one that
/// was asked too often.
const fn only_the_upgrade_failed(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::WsUpgradeRefused
            | Reason::AuthRequired
            | Reason::Blocked
            | Reason::WsProtocol
            | Reason::Oversize
            | Reason::Disconnected
    )
}
