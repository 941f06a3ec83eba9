//! The guarded dial: the one place a connection to a relay is opened.
//!
//! Resolve once, refuse when any address is not permitted, connect to one of those addresses. Nothing
//! here asks DNS a second time, so a name that changes its mind between check and use gains nothing.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::agent::user_agent;
use super::config::{Caps, NetConfig, NetworkConfig};
use super::failure::{DialFailure, NetError};
use super::resolve::{DnsAnswer, Names};
use super::stream::{Inner, Stream};
use super::tls::Tls;
use super::{TlsFacts, Traffic, socks};
use crate::models::{IpRange, Network, Reason, RelayUrl};

/// Head start of one address over the next (RFC 8305 §8 recommends 250 ms).
const STAGGER: Duration = Duration::from_millis(250);

/// An address of either family that the whole internet knows: two of the root name servers.
const OUTSIDE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 41, 0, 4)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30)),
];

/// Opens every connection of the process. Cheap to clone; clones share resolver and TLS set-up.
#[derive(Clone)]
pub struct Dialer {
    shared: Arc<Shared>,
}

struct Shared {
    config: NetConfig,
    names: Arc<Names>,
    tls: Arc<Tls>,
    traffic: Traffic,
    user_agent: Arc<str>,
}

/// A relay whose addresses have passed the guard; what every further connection uses.
#[derive(Debug, Clone)]
pub struct Target {
    url: RelayUrl,
    addresses: Vec<IpAddr>,
    dns: Option<DnsAnswer>,
    any_certificate: bool,
}

impl Target {
    /// The relay.
    pub const fn url(&self) -> &RelayUrl {
        &self.url
    }

    /// Its permitted addresses in the order they are tried; empty for overlays.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The one that stands for the machine in the fleet's limits: the same whatever order DNS gives; none for
    /// overlays.
    pub fn address(&self) -> Option<IpAddr> {
        self.addresses.iter().copied().min_by_key(|ip| (ip.is_ipv6(), *ip))
    }

    /// The same, but its certificate is accepted whatever it is; what it is stays in [`super::Seen`].
    #[must_use]
    pub fn with_any_certificate(mut self) -> Self {
        self.any_certificate = true;
        self
    }

    /// The same machine under another URL of it.
    pub(super) fn under(&self, url: RelayUrl) -> Self {
        Self { url, ..self.clone() }
    }

    /// What DNS said; none for overlays and literal addresses.
    pub const fn dns(&self) -> Option<&DnsAnswer> {
        self.dns.as_ref()
    }
}

impl Dialer {
    /// Validates the configuration and loads roots and resolver. Opens no socket.
    pub fn new(config: NetConfig) -> Result<Self, NetError> {
        config.check()?;
        let tls = Arc::new(Tls::new(&config.trust)?);
        let names = Arc::new(Names::new(&config.name_servers));
        let user_agent = user_agent(config.contact.as_deref()).into();
        let traffic = Traffic::default();
        Ok(Self { shared: Arc::new(Shared { config, names, tls, traffic, user_agent }) })
    }

    /// The same for what an operator named: these ranges are permitted besides, and local names, which lead to permitted
    /// addresses only. Never for what strangers name.
    #[must_use]
    pub fn permitting(&self, ranges: &[IpRange]) -> Self {
        let Shared { config, names, tls, traffic, user_agent } = &*self.shared;
        let policy = config.policy.clone().with_ranges(ranges.iter().copied()).with_local_names();
        let config = NetConfig { policy, ..config.clone() };
        let (names, tls, traffic) = (Arc::clone(names), Arc::clone(tls), traffic.clone());
        let user_agent = Arc::clone(user_agent);
        Self { shared: Arc::new(Shared { config, names, tls, traffic, user_agent }) }
    }

    /// The configuration in force.
    pub fn config(&self) -> &NetConfig {
        &self.shared.config
    }

    /// The bytes its connections have moved.
    pub fn traffic(&self) -> Traffic {
        self.shared.traffic.clone()
    }

    /// How its connections present us.
    pub(super) fn user_agent(&self) -> &str {
        &self.shared.user_agent
    }

    /// Whether relays of `network` can be dialled as configured.
    pub fn serves(&self, network: Network) -> bool {
        let config = self.shared.config.network(network);
        config.enabled && (!network.is_overlay() || config.proxy.is_some())
    }

    /// Turns a URL into addresses that may be dialled: one resolution, every address guarded.
    /// Overlay names are not resolved; their proxy must be configured.
    pub async fn resolve(&self, url: &RelayUrl) -> Result<Target, DialFailure> {
        let network = self.network(url)?;
        if url.network().is_overlay() {
            if network.proxy.is_none() {
                let detail = format!("no proxy for {}", url.network());
                return Err(DialFailure::new(Reason::ProxyMissing, detail));
            }
            return Ok(Target { url: url.clone(), addresses: Vec::new(), dns: None, any_certificate: false });
        }
        let (addresses, dns) = if let Some(ip) = url.ip() {
            (vec![ip], None)
        } else {
            let answer = self.shared.names.lookup(url.host(), network.timeout()).await?;
            (answer.addresses(), Some(answer))
        };
        self.guard(&addresses)?;
        Ok(Target { url: url.clone(), addresses: interleave(&addresses), dns, any_certificate: false })
    }

    /// The guard: refuses a relay for any one of its addresses. In a range that the operator never dials: a reason of
    /// ours, which says nothing about the relay.
    pub(super) fn guard(&self, addresses: &[IpAddr]) -> Result<(), DialFailure> {
        let policy = &self.shared.config.policy;
        if let Some(ip) = addresses.iter().find(|&&ip| policy.denies(ip)) {
            return Err(DialFailure::new(
                Reason::AddressDenied,
                format!("{ip} is in a range of network.deny"),
            ));
        }
        if let Some(ip) = addresses.iter().find(|&&ip| !policy.permits(ip)) {
            return Err(DialFailure::new(Reason::AddressRefused, format!("{ip} may not be dialled")));
        }
        Ok(())
    }

    /// Whether our name servers answer anything now: a name that fails while they do is its owner's fault.
    pub async fn names_answer(&self) -> bool {
        self.shared.names.answer(self.shared.config.network(Network::Clearnet).timeout()).await
    }

    /// Whether this machine has a way out for either family of addresses. Sends nothing.
    pub fn has_route(&self) -> bool {
        OUTSIDE.iter().any(|&ip| has_route(SocketAddr::new(ip, 443)))
    }

    /// TCP to one of the guarded addresses (or through the proxy), then TLS for wss, all within the
    /// network's timeout.
    pub async fn connect(&self, target: &Target) -> Result<Stream, DialFailure> {
        let deadline = self.deadline(target)?;
        self.connect_by(target, deadline, &mut None).await
    }

    /// When a dial begun now must have ended.
    pub(super) fn deadline(&self, target: &Target) -> Result<Instant, DialFailure> {
        Ok(Instant::now() + self.network(&target.url)?.timeout())
    }

    pub(super) fn names(&self) -> &Names {
        &self.shared.names
    }

    pub(super) fn caps(&self) -> &Caps {
        &self.shared.config.caps
    }

    pub(super) async fn connect_by(
        &self,
        target: &Target,
        deadline: Instant,
        seen: &mut Option<TlsFacts>,
    ) -> Result<Stream, DialFailure> {
        let url = &target.url;
        let tcp = if url.network().is_overlay() {
            self.through_proxy(url, deadline).await?
        } else {
            let port = url.port();
            let addresses = target.addresses.iter().take(self.caps().addresses);
            race(addresses.map(|&ip| SocketAddr::new(ip, port)).collect(), deadline).await?
        };
        // Without it every REQ waits for the acknowledgement of the frame before.
        tcp.set_nodelay(true).ok();
        if !url.is_tls() {
            return Ok(self.counted(Inner::Plain(tcp), url.network()));
        }
        let handshake = self.shared.tls.handshake(url.host(), url.ip(), target.any_certificate, tcp, seen);
        match timeout_at(deadline, handshake).await {
            Ok(stream) => Ok(self.counted(Inner::Tls(Box::new(stream?)), url.network())),
            Err(_) => Err(DialFailure::new(Reason::TotalTimeout, "the TLS handshake did not end in time")),
        }
    }

    fn counted(&self, inner: Inner, network: Network) -> Stream {
        Stream::new(inner, network, self.shared.traffic.clone())
    }

    fn network(&self, url: &RelayUrl) -> Result<&NetworkConfig, DialFailure> {
        let network = self.shared.config.network(url.network());
        if network.enabled {
            return Ok(network);
        }
        Err(DialFailure::new(Reason::NetworkDisabled, format!("{} is switched off here", url.network())))
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the operator's own proxy, and this is where dialling lives"
    )]
    async fn through_proxy(&self, url: &RelayUrl, deadline: Instant) -> Result<TcpStream, DialFailure> {
        let network = self.network(url)?;
        let missing = || DialFailure::new(Reason::ProxyMissing, format!("no proxy for {}", url.network()));
        let proxy = network.proxy.as_deref().ok_or_else(missing)?;
        let tcp = match timeout_at(deadline, TcpStream::connect(proxy)).await {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(error)) => {
                return Err(DialFailure::new(Reason::ProxyDead, format!("proxy {proxy}: {error}")));
            }
            Err(_) => {
                return Err(DialFailure::new(
                    Reason::ProxyDead,
                    format!("proxy {proxy} did not answer in time"),
                ));
            }
        };
        socks::through(tcp, url.host(), url.port(), network.isolate, deadline).await
    }
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

/// v6 and v4 in turn, v6 first (RFC 8305 §4).
fn interleave(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut v6 = addresses.iter().filter(|ip| ip.is_ipv6());
    let mut v4 = addresses.iter().filter(|ip| ip.is_ipv4());
    let mut ordered = Vec::with_capacity(addresses.len());
    while ordered.len() < addresses.len() {
        ordered.extend(v6.next());
        ordered.extend(v4.next());
    }
    ordered
}

/// Happy eyeballs: the first address to connect wins, the rest are dropped.
async fn race(mut waiting: VecDeque<SocketAddr>, deadline: Instant) -> Result<TcpStream, DialFailure> {
    let mut trying = FuturesUnordered::new();
    let mut failures = Vec::new();
    trying.extend(waiting.pop_front().map(tcp));
    loop {
        if trying.is_empty() {
            return Err(judge(&failures));
        }
        tokio::select! {
            () = sleep_until(deadline) => {
                return Err(DialFailure::new(Reason::ConnectTimeout, "no address answered in time"));
            }
            Some((addr, result)) = trying.next() => match result {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    failures.push((addr, error));
                    trying.extend(waiting.pop_front().map(tcp));
                }
            },
            () = sleep(STAGGER), if !waiting.is_empty() => {
                trying.extend(waiting.pop_front().map(tcp));
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place that connects, to an address the guard has passed"
)]
async fn tcp(addr: SocketAddr) -> (SocketAddr, io::Result<TcpStream>) {
    (addr, TcpStream::connect(addr).await)
}

/// The failure that says most about the relay; ours only when no attempt left this machine.
fn judge(failures: &[(SocketAddr, io::Error)]) -> DialFailure {
    let graded = failures.iter().map(|(addr, error)| (grade(*addr, error), addr, error));
    match graded.min_by_key(|(reason, ..)| rank(*reason)) {
        Some((reason, addr, error)) => DialFailure::new(reason, format!("{addr}: {error}")),
        None => DialFailure::new(Reason::DnsNoAddress, "no address to dial"),
    }
}

fn grade(addr: SocketAddr, error: &io::Error) -> Reason {
    match error.kind() {
        ErrorKind::ConnectionRefused => Reason::ConnectRefused,
        ErrorKind::TimedOut => Reason::ConnectTimeout,
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => Reason::ConnectFailed,
        // "Unreachable" is said by this machine's routing table and by routers near the relay alike.
        _ if has_route(addr) => Reason::ConnectFailed,
        _ => Reason::NoRoute,
    }
}

const fn rank(reason: Reason) -> u8 {
    match reason {
        Reason::ConnectRefused => 0,
        Reason::ConnectFailed => 1,
        Reason::ConnectTimeout => 2,
        _ => 3,
    }
}

/// Whether this machine could send to `addr` now: connecting a datagram socket looks up the route and
/// sends nothing. Also false when no descriptor is left, which is as much our own fault.
fn has_route(addr: SocketAddr) -> bool {
    let any: IpAddr = match addr {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0)).is_ok_and(|socket| socket.connect(addr).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_alternate_between_the_families() {
        let ips: Vec<IpAddr> =
            ["1.1.1.1", "2.2.2.2", "3.3.3.3", "2606::1"].iter().map(|ip| ip.parse().unwrap()).collect();
        let ordered: Vec<_> = interleave(&ips).iter().map(ToString::to_string).collect();
        assert_eq!(ordered, ["2606::1", "1.1.1.1", "2.2.2.2", "3.3.3.3"]);
    }

    #[test]
    fn what_the_relay_did_outweighs_a_missing_route() {
        let v6 = "[2606::1]:443".parse().unwrap();
        let v4 = "127.0.0.1:443".parse().unwrap();
        let unreachable = || io::Error::from(ErrorKind::NetworkUnreachable);
        let refused = io::Error::from(ErrorKind::ConnectionRefused);
        assert_eq!(judge(&[(v6, unreachable()), (v4, refused)]).reason, Reason::ConnectRefused);
        assert_eq!(
            judge(&[(v4, unreachable())]).reason,
            Reason::ConnectFailed,
            "there is a route to loopback"
        );
    }
}
