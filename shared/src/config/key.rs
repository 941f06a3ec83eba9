//! What a row of the table of keys is, and the rows' shorthands.

use super::value::{Item, Kind};
use crate::jobs::spec;
use crate::models::JobKind;

pub(super) const DAY_S: i64 = 86_400;
/// No interval of ours makes sense beyond a month.
pub(super) const MONTH_S: i64 = 30 * DAY_S;

/// What a key is when nobody sets it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Preset {
    /// Nothing; for an amount, no limit.
    Unset,
    /// A switch.
    Bool(bool),
    /// A number.
    Int(i64),
    /// A text.
    Text(&'static str),
    /// No entries.
    Empty,
    /// These entries.
    Entries(&'static [&'static str]),
    /// Every word the list may hold.
    Everything,
}

/// One key of the configuration.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    /// `section.key`, as in the file.
    pub(super) path: &'static str,
    /// What it may be.
    pub(super) kind: Kind,
    /// What it is by default.
    pub(super) preset: Preset,
    /// One line for people.
    pub(super) doc: &'static str,
}

impl Key {
    /// The environment variable that sets it.
    pub(super) fn variable(&self) -> String {
        match self.path {
            "database.url" => "DATABASE_URL".to_owned(),
            path => format!("{PREFIX}{}", path.replace('.', "_").to_uppercase()),
        }
    }
}

/// First part of our environment variables.
pub(super) const PREFIX: &str = "BIGBROTR_";

/// The words of `worker.kinds`, in the order of [`JobKind::ALL`].
pub(super) const WORKER_KINDS: &[&str] = &["discover", "validate", "monitor", "sync", "refresh"];
pub(super) const WRITE_PROBES: &[&str] = &["off", "own", "all"];
/// The words of `alert.states`, as `jobs::liveness` spells them.
pub(super) const STATES: &[&str] = &["alive", "suspect", "down"];
pub(super) const UNKEPT: &[&str] = &["ephemeral", "private", "protected", "expired", "deleted"];
pub(super) const LEVELS: &[&str] = &["error", "warn", "info", "debug", "trace"];

pub(super) const fn key(path: &'static str, kind: Kind, preset: Preset, doc: &'static str) -> Key {
    Key { path, kind, preset, doc }
}

pub(super) const fn int(path: &'static str, preset: i64, min: i64, max: i64, doc: &'static str) -> Key {
    key(path, Kind::Int { min, max }, Preset::Int(preset), doc)
}

pub(super) const fn slots(path: &'static str, kind: JobKind) -> Key {
    // A u32 always fits.
    let preset = spec(kind).slots as i64;
    int(path, preset, 0, 4_096, "Jobs of this kind that run at once, per network; 0 runs none.")
}

pub(super) const fn enabled(path: &'static str, preset: bool) -> Key {
    key(path, Kind::Bool, Preset::Bool(preset), "Whether relays of this network are dialled.")
}

pub(super) const fn proxy(path: &'static str) -> Key {
    key(
        path,
        Kind::HostPort,
        Preset::Unset,
        "SOCKS5 proxy, host:port; needed by overlay networks, refused for clearnet.",
    )
}

pub(super) const fn isolate(path: &'static str, preset: bool) -> Key {
    key(
        path,
        Kind::Bool,
        Preset::Bool(preset),
        "Own proxy credentials, hence own circuits, per host, where the proxy takes any.",
    )
}

pub(super) const fn timeout(path: &'static str, preset: i64) -> Key {
    int(path, preset, 1, 120, "Seconds for resolving, and again for one connect or request.")
}

pub(super) const fn canaries(path: &'static str) -> Key {
    key(
        path,
        Kind::List(Item::Relay),
        Preset::Empty,
        "Relays of this network that prove that our own network works.",
    )
}

pub(super) const fn permits(path: &'static str, preset: i64) -> Key {
    int(path, preset, 0, 100_000, "Jobs that run at once on this network, all workers together.")
}

pub(super) const fn profile(path: &'static str, max: usize, doc: &'static str) -> Key {
    key(path, Kind::Text { max }, Preset::Unset, doc)
}

pub(super) const fn gb_per_day(path: &'static str) -> Key {
    key(
        path,
        Kind::AmountOr { min: 0.001, max: 1_000_000.0, word: "unlimited" },
        Preset::Unset,
        "GB the fleet moves on this network in one UTC day, after which syncing rests, or \"unlimited\".",
    )
}

pub(super) const fn secret(path: &'static str, min: usize, doc: &'static str) -> Key {
    key(path, Kind::Secret { min }, Preset::Unset, doc)
}
