//! What operators choose about jobs.

use std::time::Duration;

use super::alerts::Secret;
use super::{HttpSource, publish};
use crate::checks::Looks;
use crate::db::ForgeryLimit;
use crate::models::{IpRange, PortRange, RelayUrl, Unkept};
use crate::nips::Keys;

/// What operators choose about jobs.
#[derive(Debug, Clone)]
pub struct JobsConfig {
    /// Where this process observes from.
    pub vantage: String,
    /// Base interval of checks of a stable relay.
    pub monitor_interval: Duration,
    /// Vantages that must call a relay down before it is, until the fleet's number is published.
    pub vantages_for_down: u32,
    /// Who is told of changes of liveness.
    pub alert_webhook: Option<String>,
    /// Addresses that it alone may have beside those that may be dialled.
    pub alert_allow: Vec<IpRange>,
    /// What its requests are signed with.
    pub alert_secret: Option<Secret>,
    /// Of changes to which states.
    pub alert_states: Vec<String>,
    /// Between sync passes over a relay that is up to date.
    pub sync_interval: Duration,
    /// Between refreshes of the views.
    pub refresh_interval: Duration,
    /// Between looks for unmined events.
    pub discover_interval: Duration,
    /// Lists over HTTP.
    pub sources: Vec<HttpSource>,
    /// Between two looks at one of them.
    pub source_interval: Duration,
    /// URLs that one host may have among relays and candidates.
    pub urls_per_host: u32,
    /// And one domain with everything below it.
    pub urls_per_site: u32,
    /// And one hoster that gives strangers names under its domain.
    pub urls_per_hoster: u32,
    /// Candidates that strangers may bring the whole to.
    pub candidates_max: u32,
    /// Ports of clearnet URLs that strangers name; others are not taken.
    pub ports: Vec<PortRange>,
    /// NIP-05 domains asked in a day; 0 asks none.
    pub nip05_per_day: u32,
    /// How far back the archive goes; `None` = to the beginning.
    pub archive_days: Option<u32>,
    /// This worker's own word on the disk budget, bytes; the stricter of it and the published one holds.
    pub archive_max_bytes: Option<u64>,
    /// How long a look at the disk budget holds within a pass.
    pub budget_look: Duration,
    /// How much of what a relay serves may be forged.
    pub forgery: ForgeryLimit,
    /// What is known without being kept.
    pub unkept: Vec<Unkept>,
    /// Most events asked for per page; of a relay that was not seen to serve more than 500, no more than that.
    pub page_limit: u32,
    /// Longest pause between two new events of a page.
    pub page_idle: Duration,
    /// How long a whole page may take.
    pub page_total: Duration,
    /// What the pages and comparisons of all sync jobs of the process may hold together, bytes of text.
    pub sync_memory_bytes: u64,
    /// How long one sync attempt works before it hands over to the next.
    pub sync_time_box: Duration,
    /// How much of the newest proved stretch each pass reads again, for late arrivals.
    pub rescan: Duration,
    /// Endpoints that prove our own network, per network.
    pub canaries: Vec<RelayUrl>,
    /// What the monitor looks at.
    pub looks: Looks,
    /// What is published, where an operator wants that.
    pub publish: Option<publish::Publishing>,
    /// Between two surveys of what a relay can do.
    pub capability_interval: Duration,
    /// Whose relays events are published to as a probe.
    pub write_probe: WriteTo,
}

/// Whose relays the monitor publishes an ephemeral event to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum WriteTo {
    /// Nobody's.
    #[default]
    Nobody,
    /// At each look those of these hosts, which are the operator's own.
    Own(Vec<String>),
    /// Those as well, and everybody's as often as what they can do is surveyed.
    All(Vec<String>),
}

impl JobsConfig {
    /// The size is measured as seldom.
    pub(crate) const BUDGET_LOOK: Duration = Duration::from_secs(10);

    /// The key that relays which ask for one are shown, where the operator wants that.
    pub fn identity(&self) -> Option<Keys> {
        self.looks.speak.identity.clone().filter(|_| self.looks.speak.auth)
    }
}

impl Default for JobsConfig {
    fn default() -> Self {
        Self {
            vantage: "default".to_owned(),
            monitor_interval: Duration::from_secs(3_600),
            vantages_for_down: 1,
            alert_webhook: None,
            alert_allow: Vec::new(),
            alert_secret: None,
            alert_states: ["alive", "suspect", "down"].map(str::to_owned).to_vec(),
            sync_interval: Duration::from_secs(900),
            refresh_interval: Duration::from_secs(300),
            discover_interval: Duration::from_secs(60),
            sources: Vec::new(),
            source_interval: Duration::from_secs(86_400),
            urls_per_host: 32,
            urls_per_site: 1_024,
            urls_per_hoster: 16_384,
            candidates_max: 200_000,
            ports: PortRange::usual(),
            nip05_per_day: 240,
            archive_days: None,
            archive_max_bytes: None,
            budget_look: Self::BUDGET_LOOK,
            forgery: ForgeryLimit { floor: 200, percent: 10, days: 30 },
            unkept: Unkept::ALL.to_vec(),
            page_limit: 1_000,
            page_idle: Duration::from_secs(20),
            page_total: Duration::from_secs(120),
            sync_memory_bytes: 64 << 20,
            sync_time_box: Duration::from_secs(240),
            rescan: Duration::from_secs(3_600),
            canaries: Vec::new(),
            looks: Looks::default(),
            publish: None,
            capability_interval: Duration::from_secs(86_400),
            write_probe: WriteTo::Nobody,
        }
    }
}
