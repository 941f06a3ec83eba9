//! Names to addresses, once per dial, with the whole answer kept for the DNS check.
//!
//! Distinguishes what the name's owner did (no such name, no address) from what our resolver did
//! (failure, silence): only the former says anything about a relay.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures_util::future::{Either, select};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts, ServerOrderingStrategy,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError as DnsNetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};

use tokio::time::{Instant, timeout_at};

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

/// The resolver, or the reason why this machine has none.
pub(super) struct Names {
    resolver: Result<TokioResolver, String>,
    servers: Vec<SocketAddr>,
}

impl Names {
    /// Uses `servers`, or the system's when empty. A machine without a usable resolver still dials
    /// overlays and literal addresses; names then fail as ours.
    pub(super) fn new(servers: &[SocketAddr]) -> Self {
        Self { resolver: build(servers, CACHE_ANSWERS), servers: servers.to_vec() }
    }

    pub(super) fn resolver(&self) -> Result<&TokioResolver, &str> {
        self.resolver.as_ref().map_err(String::as_str)
    }

    /// Whether a name server answers at all, by a question that everybody can answer: who serves the root.
    /// Nothing remembered counts.
    pub(super) async fn answer(&self, timeout: Duration) -> bool {
        let Ok(resolver) = build(&self.servers, 0) else { return false };
        let asked = Box::pin(ask(&resolver, Name::root(), RecordType::NS));
        matches!(
            timeout_at(Instant::now() + timeout, asked).await,
            Ok(Family::Records(_) | Family::NoName | Family::NoRecord)
        )
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
        let a = Box::pin(ask(resolver, name.clone(), RecordType::A));
        let aaaa = Box::pin(ask(resolver, name.clone(), RecordType::AAAA));
        let grace = FAMILY_GRACE.min(timeout / 2);
        let (first, second) = both(a, aaaa, Instant::now() + timeout, grace).await;
        let duration_ms = super::elapsed_ms(started);
        merge(host, &name, first, second, duration_ms)
    }
}

/// A resolver that asks `servers`, or the system's when there are none, and remembers so many answers.
fn build(servers: &[SocketAddr], remembered: u64) -> Result<TokioResolver, String> {
    let builder = if servers.is_empty() {
        TokioResolver::builder_tokio()
    } else {
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(name_server).collect());
        Ok(TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()))
    };
    let built = builder.and_then(|mut builder| {
        tune(builder.options_mut());
        builder.options_mut().cache_size = remembered;
        builder.build()
    });
    built.map_err(|error| error.to_string())
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

async fn ask(resolver: &TokioResolver, name: Name, kind: RecordType) -> Family {
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
