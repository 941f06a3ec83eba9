//! Names to addresses, once per dial, with the whole answer kept for the DNS check.
//!
//! Distinguishes what the name's owner did (no such name, no address) from what our resolver did
//! (failure, silence): only the former says anything about a relay.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::future::{Either, select};
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts, ServerOrderingStrategy,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::{DnsError, NetError as DnsNetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use tokio::time::{Instant, timeout_at};

use super::aliases::{Asking, Guarded};
use super::failure::DialFailure;
use crate::clock;
use crate::models::Reason;

/// Wait for one try of one name server; with two tries the answer comes before the dial's deadline.
const TRY_TIMEOUT: Duration = Duration::from_secs(2);
/// After one family answered with addresses, how long the other may still take: servers that
/// swallow AAAA queries are common, and must not cost the relay its check. At most half the timeout.
const FAMILY_GRACE: Duration = Duration::from_millis(1_500);
/// Answers remembered, for many relays on one host.
const CACHE_ANSWERS: u64 = 1_024;
/// The longest an absence is remembered, so that a repaired name is seen at the next check.
const NEGATIVE_TTL_MAX: Duration = Duration::from_mins(1);
/// The longest a presence is remembered; a check must not report an answer of yesterday.
const POSITIVE_TTL_MAX: Duration = Duration::from_mins(10);
/// Questions under way at once per TCP connection to a name server (32 as shipped starves a fleet).
const QUESTIONS_MAX: usize = 1_024;
/// Longest chain of aliases recorded.
const CNAME_CHAIN_MAX: usize = 16;

/// What DNS said about one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsAnswer {
    pub(super) name: String,
    pub(super) v4: Vec<Ipv4Addr>,
    pub(super) v6: Vec<Ipv6Addr>,
    pub(super) cname: Vec<String>,
    pub(super) ttl_s: Option<u32>,
    pub(super) duration_ms: u32,
    pub(super) complete: bool,
}

impl DnsAnswer {
    /// The name asked, without trailing dot.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A records, sorted, distinct.
    pub fn v4(&self) -> &[Ipv4Addr] {
        &self.v4
    }

    /// AAAA records, sorted, distinct.
    pub fn v6(&self) -> &[Ipv6Addr] {
        &self.v6
    }

    /// The alias chain in order, without trailing dots; empty when the name is canonical.
    pub fn cname(&self) -> &[String] {
        &self.cname
    }

    /// Smallest time to live among the address records, seconds.
    pub const fn ttl_s(&self) -> Option<u32> {
        self.ttl_s
    }

    /// How long the whole resolution took, milliseconds.
    pub const fn duration_ms(&self) -> u32 {
        self.duration_ms
    }

    /// Whether both families were answered; otherwise an empty list means "not known".
    pub const fn is_complete(&self) -> bool {
        self.complete
    }

    /// Every address, v6 first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.v6.iter().copied().map(IpAddr::V6).chain(self.v4.iter().copied().map(IpAddr::V4)).collect()
    }
}

/// Which servers are asked, and how.
pub(super) type Setup = (ResolverConfig, ResolverOpts);

/// A resolver, and what it was made of.
struct Made {
    resolver: Asking,
    setup: Setup,
}

/// The resolver in use, or the reason why this machine has none.
#[derive(Clone)]
struct InUse {
    made: Result<Arc<Made>, String>,
    /// When it took the place of another.
    since: Option<Instant>,
}

/// Names to addresses by the servers that the configuration names, also after it has changed.
pub(super) struct Names {
    /// What the configuration says now.
    read: Box<dyn Fn() -> Result<Setup, String> + Send + Sync>,
    in_use: RwLock<InUse>,
}

impl Names {
    /// Uses `servers`, or the system's when empty. A machine without a usable resolver still dials
    /// overlays and literal addresses; names then fail as ours.
    pub(super) fn new(servers: &[SocketAddr]) -> Self {
        if servers.is_empty() {
            return Self::reading(|| read_system_conf().map_err(|error| error.to_string()));
        }
        let setup = asking(servers);
        Self::reading(move || Ok(setup.clone()))
    }

    /// Uses what `read` says, and reads again when those servers are silent.
    pub(super) fn reading(read: impl Fn() -> Result<Setup, String> + Send + Sync + 'static) -> Self {
        let made = read().and_then(Made::of).map(Arc::new);
        Self { read: Box::new(read), in_use: RwLock::new(InUse { made, since: None }) }
    }

    fn in_use(&self) -> InUse {
        self.in_use.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The resolver of this moment.
    pub(super) fn resolver(&self) -> Result<Asking, String> {
        self.in_use().made.map(|made| made.resolver.clone())
    }

    /// Whether the name servers that were asked lately answer at all. Nothing remembered counts. Where they do not, and
    /// the configuration names others by now that do, those are asked from then on.
    pub(super) async fn answer(&self, timeout: Duration) -> bool {
        let InUse { made, since } = self.in_use();
        if let Ok(made) = &made
            && let Ok(resolver) = build(&made.setup, 0)
            && answers(&resolver, timeout).await
        {
            // What failed just before may have asked those whose place they took, and is judged a while after it failed.
            return since.is_none_or(|since| since.elapsed() > timeout * 3);
        }
        let Ok(setup) = (self.read)() else { return false };
        if made.is_ok_and(|made| servers(&made.setup) == servers(&setup)) {
            return false;
        }
        if let Ok(made) = Made::of(setup)
            && answers(&made.resolver, timeout).await
        {
            tracing::info!(servers = ?servers(&made.setup), "other name servers are asked from now on");
            let new = InUse { made: Ok(Arc::new(made)), since: Some(Instant::now()) };
            *self.in_use.write().unwrap_or_else(PoisonError::into_inner) = new;
        }
        // Whatever failed has asked none of these.
        false
    }

    /// Both families of `host`, within `timeout`.
    pub(super) async fn lookup(&self, host: &str, timeout: Duration) -> Result<DnsAnswer, DialFailure> {
        let started = clock::monotonic_ms();
        let resolver = self
            .resolver()
            .map_err(|error| DialFailure::new(Reason::DnsFailure, format!("no resolver: {error}")))?;
        // The trailing dot keeps the machine's search list out of it.
        let name = Name::from_ascii(format!("{host}."))
            .map_err(|error| DialFailure::new(Reason::DnsNxdomain, format!("not a DNS name: {error}")))?;
        let a = Box::pin(ask(&resolver, name.clone(), RecordType::A));
        let aaaa = Box::pin(ask(&resolver, name.clone(), RecordType::AAAA));
        let grace = FAMILY_GRACE.min(timeout / 2);
        let (first, second) = both(a, aaaa, Instant::now() + timeout, grace).await;
        let duration_ms = super::elapsed_ms(started);
        merge(host, &name, first, second, duration_ms)
    }
}

impl Made {
    fn of(setup: Setup) -> Result<Self, String> {
        Ok(Self { resolver: build(&setup, CACHE_ANSWERS)?, setup })
    }
}

/// A resolver that remembers so many answers.
fn build((config, options): &Setup, remembered: u64) -> Result<Asking, String> {
    let mut builder =
        Asking::builder_with_config(config.clone(), Guarded::default()).with_options(options.clone());
    tune(builder.options_mut());
    builder.options_mut().cache_size = remembered;
    builder.build().map_err(|error| error.to_string())
}

/// Where it asks, in order.
fn servers((config, _): &Setup) -> Vec<SocketAddr> {
    let servers = config.name_servers().iter();
    servers
        .flat_map(|server| server.connections.iter().map(|to| SocketAddr::new(server.ip, to.port)))
        .collect()
}

/// Whether a name server answers, by a question that everybody can answer: who serves the root.
async fn answers(resolver: &Asking, timeout: Duration) -> bool {
    let asked = Box::pin(ask(resolver, Name::root(), RecordType::NS));
    matches!(
        timeout_at(Instant::now() + timeout, asked).await,
        Ok(Family::Records(_) | Family::NoName | Family::NoRecord)
    )
}

/// What asks these.
pub(super) fn asking(servers: &[SocketAddr]) -> Setup {
    let servers = servers.iter().map(name_server).collect();
    (ResolverConfig::from_parts(None, Vec::new(), servers), ResolverOpts::default())
}

fn name_server(server: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()]
        .into_iter()
        .map(|mut connection| {
            connection.port = server.port();
            connection
        })
        .collect();
    NameServerConfig::new(server.ip(), true, connections)
}

fn tune(options: &mut ResolverOpts) {
    options.timeout = TRY_TIMEOUT;
    options.attempts = 1; // one retry after the first try
    options.negative_max_ttl = Some(NEGATIVE_TTL_MAX);
    options.positive_max_ttl = Some(POSITIVE_TTL_MAX);
    options.max_active_requests = QUESTIONS_MAX;
    options.server_ordering_strategy = ServerOrderingStrategy::QueryStatistics;
    options.preserve_intermediates = true;
}

/// One family's answer.
enum Family {
    Records(Lookup),
    NoName,
    NoRecord,
    Failed(String),
}

impl Family {
    fn late() -> Self {
        Self::Failed("the resolver did not answer in time".to_owned())
    }
}

async fn ask(resolver: &Asking, name: Name, kind: RecordType) -> Family {
    match resolver.lookup(name, kind).await {
        Ok(lookup) if lookup.message().metadata.response_code == ResponseCode::NXDomain => Family::NoName,
        Ok(lookup) if lookup.answers().iter().any(|record| record.record_type() == kind) => {
            Family::Records(lookup)
        }
        Err(error) if error.is_nx_domain() => Family::NoName,
        Ok(_) | Err(DnsNetError::Dns(DnsError::NoRecordsFound(_))) => Family::NoRecord,
        Err(error) => Family::Failed(error.to_string()),
    }
}

/// Both families before `deadline`; once one has addresses the other gets only `grace`.
async fn both<A, B>(a: A, b: B, deadline: Instant, grace: Duration) -> (Family, Family)
where
    A: Future<Output = Family> + Unpin,
    B: Future<Output = Family> + Unpin,
{
    match timeout_at(deadline, select(a, b)).await {
        Ok(Either::Left((first, other))) => {
            let second = rest(&first, other, deadline, grace).await;
            (first, second)
        }
        Ok(Either::Right((first, other))) => {
            let second = rest(&first, other, deadline, grace).await;
            (first, second)
        }
        Err(_) => (Family::late(), Family::late()),
    }
}

async fn rest(
    first: &Family,
    other: impl Future<Output = Family>,
    deadline: Instant,
    grace: Duration,
) -> Family {
    let until = match first {
        Family::Records(_) => deadline.min(Instant::now() + grace),
        _ => deadline,
    };
    timeout_at(until, other).await.unwrap_or_else(|_| Family::late())
}

fn merge(
    host: &str,
    name: &Name,
    first: Family,
    second: Family,
    duration_ms: u32,
) -> Result<DnsAnswer, DialFailure> {
    let mut answer = DnsAnswer {
        name: host.to_owned(),
        v4: Vec::new(),
        v6: Vec::new(),
        cname: Vec::new(),
        ttl_s: None,
        duration_ms,
        complete: true,
    };
    let (mut no_name, mut failed) = (false, None);
    for family in [first, second] {
        match family {
            Family::Records(lookup) => read(&mut answer, name, &lookup),
            Family::NoName => no_name = true,
            Family::NoRecord => {}
            Family::Failed(error) => failed = Some(error),
        }
    }
    answer.v4.sort_unstable();
    answer.v4.dedup();
    answer.v6.sort_unstable();
    answer.v6.dedup();
    // What a resolver made of an address that is there (DNS64) says nothing of its own, and the guard would refuse it.
    let DnsAnswer { v4, v6, .. } = &mut answer;
    v6.retain(|ip| embedded(*ip).is_none_or(|ip| !v4.contains(&ip)));
    answer.complete = failed.is_none();
    if !answer.v4.is_empty() || !answer.v6.is_empty() {
        return Ok(answer);
    }
    Err(match failed {
        _ if no_name => DialFailure::new(Reason::DnsNxdomain, format!("{host} does not exist")),
        Some(error) => DialFailure::new(Reason::DnsFailure, error),
        None => DialFailure::new(Reason::DnsNoAddress, format!("{host} has no address")),
    })
}

/// The address of the old family that a resolver has put into one of the new (64:ff9b::/96, RFC 6052).
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    match ip.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some((u32::from(high) << 16 | u32::from(low)).into()),
        _ => None,
    }
}

fn read(answer: &mut DnsAnswer, name: &Name, lookup: &Lookup) {
    for record in lookup.answers() {
        match &record.data {
            RData::A(a) => answer.v4.push(a.0),
            RData::AAAA(aaaa) => answer.v6.push(aaaa.0),
            _ => continue,
        }
        answer.ttl_s = Some(answer.ttl_s.map_or(record.ttl, |ttl| ttl.min(record.ttl)));
    }
    if answer.cname.is_empty() {
        answer.cname = chain(name, lookup);
    }
}

/// The aliases from `name` on, in the order they lead to the addresses.
fn chain(name: &Name, lookup: &Lookup) -> Vec<String> {
    let mut at = name.clone();
    let mut found = Vec::new();
    while found.len() < CNAME_CHAIN_MAX {
        let next = lookup.answers().iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == at => Some(target.0.clone()),
            _ => None,
        });
        let Some(next) = next else { break };
        found.push(next.to_ascii().trim_end_matches('.').to_ascii_lowercase());
        at = next;
    }
    found
}
