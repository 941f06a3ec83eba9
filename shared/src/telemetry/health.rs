//! Whether the parts of a process turn, and whether they do their work: two questions, because restarting a process
//! helps when a part hangs, and does harm when the database is away.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock;

/// Longest a turn may take that does not hang: a call of the database with its time limit, and the wait for a
/// connection before it.
const TURN: Duration = Duration::from_secs(90);

/// What each part of a process last did. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Health {
    parts: Arc<Mutex<BTreeMap<&'static str, Part>>>,
}

#[derive(Debug, Clone, Copy)]
struct Part {
    /// When it last tried, whatever came of it; milliseconds, as all of these.
    turned: u64,
    /// When it last did its work, if ever.
    beaten: Option<u64>,
    /// Longest pause between two beats.
    limit: u64,
}

impl Health {
    /// Announces a part that is starting: not ready before its first beat.
    pub fn expect(&self, part: &'static str, limit: Duration) {
        let turned = clock::monotonic_ms();
        self.lock().insert(part, Part { turned, beaten: None, limit: millis(limit) });
    }

    /// The part has just done its work; it must do so again within `limit`.
    pub fn beat(&self, part: &'static str, limit: Duration) {
        let now = clock::monotonic_ms();
        self.lock().insert(part, Part { turned: now, beaten: Some(now), limit: millis(limit) });
    }

    /// The part has tried and failed, for no fault of its own: it lives.
    pub fn turn(&self, part: &'static str) {
        if let Some(part) = self.lock().get_mut(part) {
            part.turned = clock::monotonic_ms();
        }
    }

    /// Every part has done its work at least once, and within its limit.
    ///
    /// # Errors
    /// A sentence naming the parts that have not.
    pub fn ready(&self) -> Result<(), String> {
        self.ready_at(clock::monotonic_ms())
    }

    /// Every part turns, whether or not its work succeeds: what restarts a container.
    ///
    /// # Errors
    /// A sentence naming the parts that have stopped.
    pub fn live(&self) -> Result<(), String> {
        self.live_at(clock::monotonic_ms())
    }

    fn ready_at(&self, now: u64) -> Result<(), String> {
        told(self.lock().iter().filter_map(|(name, part)| match part.beaten {
            None => Some(format!("{name} has not started its work")),
            Some(at) if now.saturating_sub(at) > part.limit => {
                Some(format!("{name} has not done its work for {} s", now.saturating_sub(at) / 1000))
            }
            Some(_) => None,
        }))
    }

    fn live_at(&self, now: u64) -> Result<(), String> {
        told(self.lock().iter().filter_map(|(name, part)| {
            let silent = now.saturating_sub(part.turned);
            (silent > part.limit.saturating_mul(3).saturating_add(millis(TURN)))
                .then(|| format!("{name} has stopped: it tried nothing for {} s", silent / 1000))
        }))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Part>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn told(stopped: impl Iterator<Item = String>) -> Result<(), String> {
    let stopped: Vec<String> = stopped.collect();
    if stopped.is_empty() { Ok(()) } else { Err(stopped.join("; ")) }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn a_part_that_tries_in_vain_is_live_and_not_ready() {
        let health = Health::default();
        health.expect("work", LIMIT);
        let now = clock::monotonic_ms();
        assert!(health.ready_at(now).is_err() && health.live_at(now).is_ok(), "starting");
        health.beat("work", LIMIT);
        let hour = clock::monotonic_ms() + 3_600_000;
        // As after an hour of attempts that failed, the last of them just now.
        health.lock().entry("work").and_modify(|part| part.turned = hour);
        assert!(health.live_at(hour).is_ok());
        let said = health.ready_at(hour).unwrap_err();
        assert!(said.contains("work has not done its work for 3600 s"), "{said}");
    }

    #[test]
    fn a_part_that_hangs_is_neither() {
        let health = Health::default();
        health.beat("work", LIMIT);
        let now = clock::monotonic_ms();
        health.turn("work");
        assert!(health.live_at(now + 170_000).is_ok(), "a call of the database may take its time");
        let said = health.live_at(now + 190_000).unwrap_err();
        assert!(said.contains("work has stopped"), "{said}");
        assert!(health.ready_at(now + 31_000).is_err());
    }
}
