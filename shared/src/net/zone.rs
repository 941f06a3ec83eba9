//! What else DNS says of a relay: the servers of its zone, and the name its address answers to.
//!
//! Facts beside the dial, never on its way: what cannot be learnt in time is not known, and costs the relay
//! nothing.

use std::net::IpAddr;
use std::time::Duration;

use hickory_resolver::net::{DnsError, NetError as DnsNetError};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::time::timeout;

use super::aliases::Asking;
use super::dial::{Dialer, Target};
use super::resolve::Names;

/// For all questions together; a name server of somebody's that swallows them costs a look no more.
const ZONE_TIMEOUT: Duration = Duration::from_secs(5);
/// Zones asked for their servers on the way up from a host.
const LEVELS_MAX: usize = 4;
/// Most servers kept of a zone; large ones have a dozen.
const SERVERS_MAX: usize = 32;

/// Sorted, distinct, lower case, without trailing dots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ZoneFacts {
    /// The servers of the zone the host is in; empty when nobody names any.
    pub servers: Vec<String>,
    /// The first name of the address that stands for the machine.
    pub reverse: Option<String>,
    /// Whether everything was answered; otherwise what is missing is not known to be absent.
    pub complete: bool,
}

impl Dialer {
    /// Asks for the zone of a relay that has been resolved; none for overlays and literal addresses.
    pub async fn zone(&self, target: &Target) -> Option<ZoneFacts> {
        let answer = target.dns()?;
        let within = self.config().network(target.url().network()).timeout().min(ZONE_TIMEOUT);
        Some(self.names().zone(answer.name(), target.address(), within).await)
    }
}

impl Names {
    async fn zone(&self, host: &str, address: Option<IpAddr>, within: Duration) -> ZoneFacts {
        let (Ok(resolver), Ok(name)) = (self.resolver(), Name::from_ascii(format!("{host}."))) else {
            return ZoneFacts::default();
        };
        let (servers, reverse) = tokio::join!(
            timeout(within, Box::pin(servers(&resolver, name))),
            timeout(within, Box::pin(reverse(&resolver, address)))
        );
        let (servers, reverse) = (servers.ok().flatten(), reverse.ok().flatten());
        let complete = servers.is_some() && reverse.is_some();
        ZoneFacts {
            servers: servers.unwrap_or_default(),
            reverse: reverse.and_then(|names| names.into_iter().next()),
            complete,
        }
    }
}

/// One question's answer.
enum Said {
    /// Names, sorted.
    Names(Vec<String>),
    /// None here; the zone that says so, where it does.
    Absent(Option<Name>),
    /// Nobody answered.
    Unknown,
}

/// The servers of the zone `host` is in, or none when that cannot be learnt.
async fn servers(resolver: &Asking, host: Name) -> Option<Vec<String>> {
    let mut at = host;
    // A name of one label is a top-level domain: its servers are not the relay's.
    for _ in 0..LEVELS_MAX {
        if at.num_labels() < 2 {
            break;
        }
        at = match ask(resolver, &at, RecordType::NS).await {
            Said::Names(names) => return Some(names),
            Said::Unknown => return None,
            // Behind an alias it is the zone of another name that answers.
            Said::Absent(Some(apex)) if apex != at && apex.zone_of(&at) => apex,
            Said::Absent(_) => at.base_name(),
        };
    }
    Some(Vec::new())
}

async fn reverse(resolver: &Asking, address: Option<IpAddr>) -> Option<Vec<String>> {
    let Some(address) = address else { return Some(Vec::new()) };
    match ask(resolver, &Name::from(address), RecordType::PTR).await {
        Said::Names(names) => Some(names),
        Said::Absent(_) => Some(Vec::new()),
        Said::Unknown => None,
    }
}

async fn ask(resolver: &Asking, name: &Name, kind: RecordType) -> Said {
    match resolver.lookup(name.clone(), kind).await {
        Ok(lookup) => {
            let own =
                lookup.answers().iter().filter(|record| kind == RecordType::PTR || record.name == *name);
            let mut names: Vec<String> = own
                .filter_map(|record| match &record.data {
                    RData::NS(ns) => Some(text(&ns.0)),
                    RData::PTR(ptr) => Some(text(&ptr.0)),
                    _ => None,
                })
                .collect();
            names.sort_unstable();
            names.dedup();
            names.truncate(SERVERS_MAX);
            if names.is_empty() { Said::Absent(None) } else { Said::Names(names) }
        }
        Err(DnsNetError::Dns(DnsError::NoRecordsFound(none))) => Said::Absent(none.soa.map(|soa| soa.name)),
        // A resolver that fails on a zone says so of the zone: the servers of many an address are dead for good.
        Err(DnsNetError::Dns(_)) => Said::Absent(None),
        Err(_) => Said::Unknown,
    }
}

/// Printable: what is not is escaped in DNS's own way.
fn text(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}
