//! The configuration as each room wants it.

use std::path::PathBuf;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tracing::Level;

use super::value::{Value, name_server};
use super::{Config, ConfigError};
use crate::checks::{Looks, Speak};
use crate::db::{FleetLimits, ForgeryLimit};
use crate::jobs::alerts::Secret;
use crate::jobs::{ARCHIVE, HTTP, HttpSource, JobsConfig, NIP05, WriteTo};
use crate::models::{AddressPolicy, JobKind, LOCAL, Network, RelayUrl, Retention, Unkept};
use crate::net::{NetConfig, NetworkConfig, Traffic};
use crate::queue::QueueOptions;
use crate::telemetry::LogOptions;

/// Bytes of one GB, as `archive.max_gb` counts.
const GB: f64 = 1e9;

/// What the scheduler needs to know.
#[derive(Debug, Clone)]
pub struct SchedulerOptions {
    /// Between two looks at what is due.
    pub tick: Duration,
    /// After which another scheduler takes over from a dead leader.
    pub lease: Duration,
    /// Networks whose relays are dialled.
    pub networks: Vec<String>,
    /// How far back the archive goes; `None` = to the beginning.
    pub archive_days: Option<u32>,
    /// The disk budget, bytes; published while leading.
    pub archive_max_bytes: Option<u64>,
    /// Whether an empty archive is begun as a lightweight one.
    pub archive_light: bool,
    /// What is not kept; published while leading.
    pub retention: Retention,
    /// Classes that are not kept.
    pub unkept: Vec<Unkept>,
    /// Days finished jobs are remembered.
    pub history_days: u16,
    /// Days single checks are kept.
    pub checks_days: u16,
    /// Days uptime is kept by the hour.
    pub hours_days: u16,
    /// Whether somebody is told of changes of liveness.
    pub alerts: bool,
    /// What the fleet is allowed; published while leading.
    pub limits: FleetLimits,
    /// Tasks of discover that there is work for.
    pub discover_tasks: Vec<&'static str>,
    /// Whether what is found is published.
    pub publish: bool,
}

/// The keys that say whether a network is dialled, and through what.
pub(super) const fn network_keys(network: Network) -> (&'static str, &'static str) {
    match network {
        Network::Clearnet => ("network.clearnet.enabled", "network.clearnet.proxy"),
        Network::Tor => ("network.tor.enabled", "network.tor.proxy"),
        Network::I2p => ("network.i2p.enabled", "network.i2p.proxy"),
        Network::Loki => ("network.loki.enabled", "network.loki.proxy"),
    }
}

/// The keys of a network's time limit, isolation and canaries; clearnet has nothing to isolate.
const fn network_details(network: Network) -> (&'static str, Option<&'static str>, &'static str) {
    match network {
        Network::Clearnet => ("network.clearnet.timeout_s", None, "network.clearnet.canaries"),
        Network::Tor => ("network.tor.timeout_s", Some("network.tor.isolate"), "network.tor.canaries"),
        Network::I2p => ("network.i2p.timeout_s", Some("network.i2p.isolate"), "network.i2p.canaries"),
        Network::Loki => ("network.loki.timeout_s", Some("network.loki.isolate"), "network.loki.canaries"),
    }
}

/// The keys of what the fleet may do on a network at once and in a day.
const fn budget_keys(network: Network) -> (&'static str, &'static str) {
    match network {
        Network::Clearnet => ("network.clearnet.permits", "network.clearnet.gb_per_day"),
        Network::Tor => ("network.tor.permits", "network.tor.gb_per_day"),
        Network::I2p => ("network.i2p.permits", "network.i2p.gb_per_day"),
        Network::Loki => ("network.loki.permits", "network.loki.gb_per_day"),
    }
}

const fn slots_key(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Discover => "worker.slots.discover",
        JobKind::Validate => "worker.slots.validate",
        JobKind::Monitor => "worker.slots.monitor",
        JobKind::Sync => "worker.slots.sync",
        JobKind::Refresh => "worker.slots.refresh",
    }
}

pub(super) fn policy(config: &Config) -> AddressPolicy {
    let base =
        if config.bool("network.allow_local") { AddressPolicy::local() } else { AddressPolicy::public() };
    let ranges = |key| config.list(key).iter().filter_map(|range| range.parse().ok());
    base.with_ranges(ranges("network.allow")).without_ranges(ranges("network.deny"))
}

/// Canaries of every network, each a relay of that network that the policy permits.
pub(super) fn canaries(config: &Config, problems: &mut Vec<String>) -> Vec<RelayUrl> {
    let mut all = Vec::new();
    for network in Network::ALL {
        let (_, _, key) = network_details(*network);
        for text in config.list(key) {
            match RelayUrl::parse(text, &config.policy) {
                Ok(url) if url.network() == *network => all.push(url),
                Ok(url) => problems.push(format!("{key} holds {text}: that is a relay of {}", url.network())),
                Err(error) => problems.push(format!("{key} holds {text}: {error}")),
            }
        }
    }
    all
}

/// Lists of relays with their expressions compiled; the same list twice would share one state.
pub(super) fn sources(config: &Config, problems: &mut Vec<String>) -> Vec<HttpSource> {
    let mut all: Vec<HttpSource> = Vec::new();
    for text in config.list("discover.sources") {
        match HttpSource::parse(text, &config.policy) {
            Ok(source) if all.iter().any(|other| other.url() == source.url()) => {
                problems.push(format!("discover.sources names {} twice", source.url()));
            }
            Ok(source) => all.push(source),
            Err(why) => problems.push(format!("discover.sources holds {text:?}: {why}")),
        }
    }
    all
}

impl Config {
    /// For [`crate::net::Dialer`]; reads the certificates of `network.trust`.
    ///
    /// # Errors
    /// A sentence that names the file that cannot be read or holds no certificate.
    pub fn net_config(&self) -> Result<NetConfig, ConfigError> {
        let networks = Network::ALL.iter().map(|network| self.network(*network)).collect::<Vec<_>>();
        let mut net = NetConfig { policy: self.policy(), ..NetConfig::default() };
        for (slot, network) in net.networks.iter_mut().zip(networks) {
            *slot = network;
        }
        net.trust = self.trust()?;
        net.name_servers =
            self.list("network.name_servers").iter().filter_map(|text| name_server(text)).collect();
        net.contact = self.text("network.contact").map(str::to_owned);
        Ok(net)
    }

    fn network(&self, network: Network) -> NetworkConfig {
        let (enabled, proxy) = network_keys(network);
        let (timeout, isolate, _) = network_details(network);
        NetworkConfig {
            enabled: self.bool(enabled),
            proxy: self.text(proxy).map(str::to_owned),
            isolate: isolate.is_some_and(|key| self.bool(key)),
            connect_timeout_ms: u64::from(self.number(timeout)) * 1_000,
        }
    }

    /// How long one step on a network may take.
    pub(super) fn time_limit(&self, network: Network) -> Duration {
        self.seconds(network_details(network).0)
    }

    fn trust(&self) -> Result<Vec<Vec<u8>>, ConfigError> {
        let mut roots = Vec::new();
        for path in self.list("network.trust") {
            let bad = |why: String| ConfigError(vec![format!("network.trust names {path}: {why}")]);
            let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
                .map_err(|error| bad(format!("it cannot be read ({error})")))?
                .collect();
            let found = found.map_err(|error| bad(format!("it is not PEM ({error})")))?;
            if found.is_empty() {
                return Err(bad("it holds no certificate".to_owned()));
            }
            roots.extend(found.into_iter().map(|root| root.to_vec()));
        }
        Ok(roots)
    }

    /// For the handlers.
    pub fn jobs_config(&self) -> JobsConfig {
        JobsConfig {
            vantage: self.text("worker.vantage").unwrap_or_default().to_owned(),
            monitor_interval: self.seconds("monitor.interval_s"),
            vantages_for_down: self.number("monitor.vantages_for_down"),
            alert_webhook: self.text("alert.webhook").map(str::to_owned),
            alert_allow: self.list("alert.allow").iter().filter_map(|range| range.parse().ok()).collect(),
            alert_secret: self.text("alert.secret").map(Secret::new),
            alert_states: self.list("alert.states").to_vec(),
            sync_interval: self.seconds("sync.interval_s"),
            refresh_interval: self.seconds("refresh.interval_s"),
            discover_interval: self.seconds("discover.interval_s"),
            sources: self.sources.clone(),
            source_interval: self.seconds("discover.source_interval_s"),
            urls_per_host: self.number("discover.urls_per_host"),
            urls_per_site: self.number("discover.urls_per_site"),
            urls_per_hoster: self.number("discover.urls_per_hoster"),
            candidates_max: self.number("discover.candidates_max"),
            ports: self.list("discover.ports").iter().filter_map(|text| text.parse().ok()).collect(),
            nip05_per_day: self.number("discover.nip05_per_day"),
            archive_days: self.archive_days(),
            archive_max_bytes: self.archive_max_bytes(),
            budget_look: JobsConfig::BUDGET_LOOK,
            forgery: ForgeryLimit {
                floor: self.number("archive.forgery_floor"),
                percent: self.number("archive.forgery_percent"),
                days: self.number("archive.forgery_days"),
            },
            unkept: self.unkept(),
            page_limit: self.number("sync.page_limit"),
            page_idle: self.seconds("sync.page_idle_s"),
            page_total: self.seconds("sync.page_total_s"),
            sync_memory_bytes: u64::from(self.number("sync.memory_mib")) << 20,
            sync_time_box: self.seconds("sync.time_box_s"),
            rescan: self.seconds("sync.rescan_s"),
            canaries: self.canaries.clone(),
            looks: self.looks(),
            publish: self.publishing(),
            capability_interval: self.seconds("monitor.capability_interval_s"),
            write_probe: self.write_probe(),
        }
    }

    /// For [`crate::checks`].
    pub fn looks(&self) -> Looks {
        let speak = Speak {
            identity: self.identity.clone(),
            auth: self.bool("identity.auth"),
            pow_max: self.number("monitor.pow_max"),
            ..Speak::default()
        };
        let paths = |key| self.list(key).iter().map(PathBuf::from).collect();
        Looks {
            insecure_tls: self.bool("monitor.insecure_tls"),
            speak,
            ..Looks::with_files(paths("geo.places"), paths("geo.networks"))
        }
    }

    fn write_probe(&self) -> WriteTo {
        let relays = self.list("monitor.write_probe_relays");
        let urls = relays.iter().filter_map(|text| RelayUrl::parse(text, &self.policy).ok());
        let hosts = urls.map(|url| url.host().to_owned()).collect();
        match self.text("monitor.write_probe") {
            Some("own") => WriteTo::Own(hosts),
            Some("all") => WriteTo::All(hosts),
            _ => WriteTo::Nobody,
        }
    }

    /// How far back the archive goes; `None` = to the beginning.
    pub fn archive_days(&self) -> Option<u32> {
        match self.values.get("archive.days") {
            Value::Int(days) => u32::try_from(*days).ok(),
            _ => None,
        }
    }

    /// The disk budget of the database, bytes.
    pub fn archive_max_bytes(&self) -> Option<u64> {
        self.gigabytes("archive.max_gb")
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be within 1e6 and 1e15"
    )]
    fn gigabytes(&self, path: &'static str) -> Option<u64> {
        match self.values.get(path) {
            Value::Amount(gb) => Some((gb * GB) as u64),
            _ => None,
        }
    }

    fn fleet_limits(&self) -> FleetLimits {
        let networks = Network::ALL
            .iter()
            .map(|network| {
                let (permits, gb) = budget_keys(*network);
                (*network, self.number(permits), self.gigabytes(gb))
            })
            .collect();
        FleetLimits {
            networks,
            host_jobs: self.number("fleet.host_jobs"),
            host_spacing: self.millis("fleet.host_spacing_ms"),
            block_jobs: self.number("fleet.block_jobs"),
            block_spacing: self.millis("fleet.block_spacing_ms"),
            vantages_for_down: Some(self.number("monitor.vantages_for_down")),
        }
    }

    /// Networks whose relays a worker configured so can dial: enabled, and overlays with their proxy.
    pub fn served_networks(&self) -> Vec<Network> {
        let mut networks = self.enabled_networks();
        networks.retain(|network| !network.is_overlay() || self.text(network_keys(*network).1).is_some());
        networks
    }

    /// For the queue, as the worker `worker`: a queue per remote kind and enabled network, one per local kind.
    pub fn queue_options(&self, worker: &str) -> QueueOptions {
        let networks = self.served_networks();
        let mut queues = Vec::new();
        for kind in &self.kinds {
            let slots = self.number(slots_key(*kind));
            if slots == 0 {
                continue;
            }
            if *kind == JobKind::Monitor && (self.publishes() || self.alerts()) {
                queues.push((format!("{kind}.{LOCAL}"), 1));
            }
            if kind.is_remote() {
                queues.extend(networks.iter().map(|network| (format!("{kind}.{network}"), slots)));
            } else {
                queues.push((format!("{kind}.{LOCAL}"), slots));
            }
        }
        QueueOptions {
            worker: worker.to_owned(),
            vantage: self.text("worker.vantage").unwrap_or_default().to_owned(),
            queues,
            lease: self.seconds("worker.lease_s"),
            poll: self.millis("worker.poll_ms"),
            grace: self.seconds("worker.grace_s"),
            listen_url: self.listen_url().map(str::to_owned),
            traffic: Traffic::default(),
        }
    }

    /// For the scheduler.
    pub fn scheduler_options(&self) -> SchedulerOptions {
        SchedulerOptions {
            tick: self.millis("scheduler.tick_ms"),
            lease: self.seconds("scheduler.lease_s"),
            networks: self.enabled_networks().iter().map(|network| network.as_str().to_owned()).collect(),
            archive_days: self.archive_days(),
            archive_max_bytes: self.archive_max_bytes(),
            archive_light: self.archive_light(),
            retention: self.retention().clone(),
            unkept: self.unkept(),
            limits: self.fleet_limits(),
            discover_tasks: self.discover_tasks(),
            publish: self.publishes(),
            history_days: self.days("scheduler.history_days"),
            checks_days: self.days("monitor.checks_days"),
            hours_days: self.days("monitor.hours_days"),
            alerts: self.alerts(),
        }
    }

    /// Classes of events that are not kept.
    fn unkept(&self) -> Vec<Unkept> {
        self.list("archive.unkept").iter().filter_map(|word| word.parse().ok()).collect()
    }

    /// Whether somebody is told of changes of liveness.
    fn alerts(&self) -> bool {
        self.text("alert.webhook").is_some()
    }

    fn discover_tasks(&self) -> Vec<&'static str> {
        let mut tasks = vec![ARCHIVE];
        tasks.extend((!self.sources.is_empty()).then_some(HTTP));
        tasks.extend((self.number("discover.nip05_per_day") > 0).then_some(NIP05));
        tasks
    }

    /// For the logs.
    pub fn log_options(&self) -> LogOptions {
        let level = self.text("log.level").and_then(|level| level.parse().ok()).unwrap_or(Level::INFO);
        LogOptions { json: self.bool("log.json"), level }
    }
}
