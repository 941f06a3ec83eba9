//! What is published, where to, and as whom.

use super::{Config, ConfigError, identity};
use crate::jobs::publish::{About, Publishing};
use crate::models::{AddressPolicy, Network, RelayUrl};
use crate::nips::nip66::{Profile, is_geohash};

/// Most publishing relays: each event goes to all of them.
const RELAYS_MAX: usize = 16;

/// The publishing relays, each one that the policy permits.
pub(super) fn relays(config: &Config, problems: &mut Vec<String>) -> Vec<RelayUrl> {
    let mut all = Vec::new();
    for text in config.list("publish.relays") {
        match RelayUrl::parse(text, &config.policy) {
            Ok(url) if all.contains(&url) => {}
            Ok(url) => all.push(url),
            Err(error) => problems.push(format!("publish.relays holds {text}: {error}")),
        }
    }
    if all.len() > RELAYS_MAX {
        problems.push(format!("publish.relays holds {} relays: {RELAYS_MAX} at most", all.len()));
    }
    if config.publishes() && config.list("publish.relays").is_empty() {
        problems.push(
            "publish.enabled is true and publish.relays is []: name the relays to publish to".to_owned(),
        );
    }
    if let Some(place) = config.text("publish.geohash").filter(|place| !is_geohash(place)) {
        problems.push(format!("publish.geohash is {place}: it must be a geohash, such as u33d"));
    }
    all
}

impl Config {
    /// Whether what is found is published.
    pub fn publishes(&self) -> bool {
        self.bool("publish.enabled")
    }

    /// For a process that signs what is published or asked of it: says what is missing. Others need no key, whatever their
    /// configuration, which they may share with those who have it.
    ///
    /// # Errors
    /// A sentence per key of the configuration that needs ours; it names the variables.
    pub fn require_publishing(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        if self.identity.is_none() {
            let writes = self.text("monitor.write_probe").is_some_and(|whose| whose != "off");
            identity::wanted("publish.enabled", self.publishes(), &mut problems);
            identity::wanted("identity.auth", self.bool("identity.auth"), &mut problems);
            identity::wanted("monitor.write_probe", writes, &mut problems);
        }
        if problems.is_empty() { Ok(()) } else { Err(ConfigError(problems)) }
    }

    /// What is published, where an operator wants that.
    pub fn publishing(&self) -> Option<Publishing> {
        let keys = self.identity.clone().filter(|_| self.publishes())?;
        Some(Publishing { keys, about: self.about(), policy: self.published() })
    }

    /// Which names and addresses of relays are published.
    pub fn published(&self) -> AddressPolicy {
        if self.bool("publish.local") { AddressPolicy::any() } else { AddressPolicy::public() }
    }

    /// What a monitor configured so says of itself.
    pub fn about(&self) -> About {
        let text = |key: &'static str| self.text(key).map(str::to_owned);
        let networks = self.enabled_networks();
        let timed = networks.first().copied().unwrap_or(Network::Clearnet);
        About {
            relays: self.publish_relays.clone(),
            profile: Profile {
                name: text("publish.profile.name"),
                about: text("publish.profile.about"),
                picture: text("publish.profile.picture"),
                website: text("publish.profile.website"),
                nip05: text("publish.profile.nip05"),
                lud16: text("publish.profile.lud16"),
            },
            geohash: text("publish.geohash"),
            timeout: self.time_limit(timed),
            networks,
        }
    }
}
