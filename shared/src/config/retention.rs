//! The section `[retention]`: what is not kept.

use super::Config;
use super::value::{Value, relay_days};
use crate::models::{RelayUrl, Retention};

/// Reads it; each relay's URL must be one that the policy permits, in whatever spelling.
pub(super) fn read(config: &Config, problems: &mut Vec<String>) -> Retention {
    let days = match config.values.get("retention.days") {
        Value::Int(days) => u32::try_from(*days).ok(),
        _ => None,
    };
    let mut relays: Vec<(String, u32)> = Vec::new();
    for (url, days) in config.list("retention.relays").iter().filter_map(|text| relay_days(text)) {
        match RelayUrl::parse(url, &config.policy) {
            Ok(url) => relays.push((url.to_string(), days)),
            Err(error) => problems.push(format!("retention.relays holds {url}: {error}")),
        }
    }
    let kinds = config.list("retention.kinds").iter().filter_map(|text| text.parse().ok()).collect();
    Retention { days, kinds, relays }
}

impl Config {
    /// What is not kept.
    pub const fn retention(&self) -> &Retention {
        &self.retention
    }

    /// Whether an empty archive is begun as a lightweight one.
    pub fn archive_light(&self) -> bool {
        self.bool("archive.light")
    }
}
