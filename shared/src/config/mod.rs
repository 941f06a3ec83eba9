//! What an operator chooses: one TOML file and the environment, read once, checked at start.
//!
//! Flags win over the environment, that over the file, that over the defaults. Every key has a range; an
//! unknown key is an error that names the nearest right one. Later code never reads the environment, and
//! passwords are never printed. This room composes the options of the other rooms and decides nothing else.

mod files;
mod identity;
mod key;
mod keys;
mod load;
mod options;
mod password;
mod print;
mod publish;
mod retention;
mod suggest;
mod value;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::db::connect_options;
use crate::jobs::HttpSource;
use crate::models::{AddressPolicy, JobKind, Network, RelayUrl, Retention};
use crate::net::NetError;
use crate::nips::Keys;
use load::Values;
use value::Value;

pub use load::{DEFAULT_FILE, FILE_VARIABLE};
pub use options::SchedulerOptions;
pub use print::{key_lines, redact_url};

/// What is wrong with the configuration: one sentence per problem.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(Vec<String>);

impl From<NetError> for ConfigError {
    fn from(error: NetError) -> Self {
        Self(vec![error.to_string()])
    }
}

/// A key set on the command line.
#[derive(Debug, Clone)]
pub struct Flag {
    /// Which key.
    pub key: &'static str,
    /// To what.
    pub value: String,
    /// The flag, as error messages call it.
    pub name: &'static str,
}

/// Everything an operator may choose, checked.
#[derive(Clone)]
pub struct Config {
    values: Values,
    policy: AddressPolicy,
    canaries: Vec<RelayUrl>,
    sources: Vec<HttpSource>,
    kinds: Vec<JobKind>,
    identity: Option<Keys>,
    publish_relays: Vec<RelayUrl>,
    retention: Retention,
}

impl Config {
    /// Reads the file (`path`, else `$BIGBROTR_CONFIG`, else `bigbrotr.toml` where there is one) and the
    /// environment over it.
    ///
    /// # Errors
    /// A sentence per value that is wrong, naming key, value, place and range.
    pub fn load(path: Option<&Path>, env: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        Self::load_with(path, env, &[])
    }

    /// Like [`Config::load`], with flags over all of it.
    ///
    /// # Errors
    /// A sentence per value that is wrong.
    pub fn load_with(
        path: Option<&Path>,
        env: &BTreeMap<String, String>,
        flags: &[Flag],
    ) -> Result<Self, ConfigError> {
        let env = files::resolve(env)?;
        Self::from_values(load::load(path, &env, flags)?, identity::read(&env))
    }

    /// The environment of this process: the only place that reads it.
    pub fn environment() -> BTreeMap<String, String> {
        std::env::vars_os()
            .filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
            })
            .collect()
    }

    /// `env` with the contents of the files that variables `NAME_FILE` name, as `NAME`.
    ///
    /// # Errors
    /// A sentence per file that cannot be had, or that is named beside its own value.
    pub fn with_files(env: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ConfigError> {
        files::resolve(env).map(|resolved| resolved.env)
    }

    fn from_values(values: Values, identity: Result<Option<Keys>, ConfigError>) -> Result<Self, ConfigError> {
        let identity = identity?;
        let mut config = Self {
            policy: AddressPolicy::public(),
            canaries: Vec::new(),
            sources: Vec::new(),
            kinds: Vec::new(),
            identity,
            publish_relays: Vec::new(),
            retention: Retention::default(),
            values,
        };
        config.policy = options::policy(&config);
        config.kinds = config.list("worker.kinds").iter().filter_map(|word| word.parse().ok()).collect();
        let mut problems = Vec::new();
        config.canaries = options::canaries(&config, &mut problems);
        config.sources = options::sources(&config, &mut problems);
        config.publish_relays = publish::relays(&config, &mut problems);
        config.retention = retention::read(&config, &mut problems);
        config.check(&mut problems);
        if problems.is_empty() { Ok(config) } else { Err(ConfigError(problems)) }
    }

    /// What no single key can be blamed for.
    fn check(&self, problems: &mut Vec<String>) {
        for network in Network::ALL.iter().filter(|network| network.is_overlay()) {
            let (enabled, proxy) = options::network_keys(*network);
            if self.bool(enabled) && self.text(proxy).is_none() {
                problems.push(format!(
                    "{enabled} is true and {proxy} is not set: name the SOCKS5 proxy of {network}"
                ));
            }
        }
        if let Some(proxy) = self.text("network.clearnet.proxy") {
            problems.push(format!(
                "network.clearnet.proxy is {proxy}: clearnet relays are dialled directly, so that every address passes the guard"
            ));
        }
        let (idle, total) = (self.int("sync.page_idle_s"), self.int("sync.page_total_s"));
        if idle > total {
            problems.push(format!(
                "sync.page_idle_s is {idle}: it must not exceed sync.page_total_s, which is {total}"
            ));
        }
        if self.list("worker.kinds").is_empty() {
            problems.push("worker.kinds is []: a worker needs at least one kind of jobs".to_owned());
        }
    }

    /// Our key, if the environment holds one.
    pub fn identity(&self) -> Option<Keys> {
        self.identity.clone()
    }

    /// Where the file was, if one was read.
    pub fn file(&self) -> Option<&Path> {
        self.values.file.as_deref()
    }

    /// Whether somebody chose this key, instead of leaving it to its default.
    pub fn is_set(&self, path: &str) -> bool {
        self.values.origin(path).is_some()
    }

    /// Every key with the value in force, passwords hidden.
    pub fn to_redacted_toml(&self) -> String {
        print::to_toml(&self.values)
    }

    /// Every key with the value in force, passwords hidden, and where it came from unless it is a default.
    pub fn entries(&self) -> Vec<(&'static str, serde_json::Value, Option<String>)> {
        keys::KEYS
            .iter()
            .map(|key| {
                let value = print::to_json(key, self.values.get(key.path));
                (key.path, value, self.values.origin(key.path).map(str::to_owned))
            })
            .collect()
    }

    /// Says what is missing, or cannot be read, for a process that works on the database.
    ///
    /// # Errors
    /// A sentence that names the ways to give the URL, or one per URL that is none.
    pub fn require_database(&self) -> Result<&str, ConfigError> {
        let url = self.text("database.url").ok_or_else(|| {
            ConfigError(vec![
                "no database is named: set DATABASE_URL, or url in the section [database] of the configuration file".to_owned(),
            ])
        })?;
        let mut problems = Vec::new();
        for (key, url) in [("database.url", Some(url)), ("database.direct_url", self.listen_url())] {
            if let Some(Err(error)) = url.map(|url| connect_options(url, "")) {
                problems.push(format!("{key} cannot be used: {error}"));
            }
        }
        if problems.is_empty() { Ok(url) } else { Err(ConfigError(problems)) }
    }

    /// The database, possibly behind a pooler; empty when none is named ([`Config::require_database`]).
    pub fn database_url(&self) -> &str {
        self.text("database.url").unwrap_or_default()
    }

    /// A URL from elsewhere, with our password where it has none.
    pub fn with_password(&self, url: &str) -> String {
        self.text("database.password")
            .map_or_else(|| url.to_owned(), |password| password::with_password(url, password))
    }

    /// The database without a pooler.
    pub fn direct_url(&self) -> &str {
        self.text("database.direct_url").unwrap_or_else(|| self.database_url())
    }

    /// Where workers may hear of new jobs: only a URL that was named as direct is trusted to be.
    pub fn listen_url(&self) -> Option<&str> {
        self.text("database.direct_url")
    }

    /// Connections of a worker for its jobs.
    pub fn max_connections(&self) -> u32 {
        self.number("database.max_connections")
    }

    /// Which addresses may be dialled.
    pub fn policy(&self) -> AddressPolicy {
        self.policy.clone()
    }

    /// Networks whose relays are dialled.
    pub fn enabled_networks(&self) -> Vec<Network> {
        Network::ALL.iter().copied().filter(|network| self.bool(options::network_keys(*network).0)).collect()
    }

    /// Where the worker serves metrics and health.
    pub fn worker_metrics(&self) -> Option<SocketAddr> {
        self.text("worker.metrics").and_then(|text| text.parse().ok())
    }

    /// Where the scheduler serves metrics and health.
    pub fn scheduler_metrics(&self) -> Option<SocketAddr> {
        self.text("scheduler.metrics").and_then(|text| text.parse().ok())
    }

    fn text(&self, path: &'static str) -> Option<&str> {
        match self.values.get(path) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn bool(&self, path: &'static str) -> bool {
        matches!(self.values.get(path), Value::Bool(true))
    }

    fn list(&self, path: &'static str) -> &[String] {
        match self.values.get(path) {
            Value::List(entries) => entries,
            _ => &[],
        }
    }

    fn int(&self, path: &'static str) -> i64 {
        match self.values.get(path) {
            Value::Int(number) => *number,
            _ => 0,
        }
    }

    /// A number whose range, checked when it was read, lies within `u32`.
    fn number(&self, path: &'static str) -> u32 {
        u32::try_from(self.int(path)).unwrap_or(u32::MAX)
    }

    fn seconds(&self, path: &'static str) -> Duration {
        Duration::from_secs(u64::from(self.number(path)))
    }

    /// A number of days whose range lies within `u16`.
    fn days(&self, path: &'static str) -> u16 {
        u16::try_from(self.int(path)).unwrap_or(u16::MAX)
    }

    fn millis(&self, path: &'static str) -> Duration {
        Duration::from_millis(u64::from(self.number(path)))
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_redacted_toml())
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_redacted_toml())
    }
}
