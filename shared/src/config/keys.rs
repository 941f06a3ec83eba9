//! Every key there is, one row each: the loader, the printer and the error messages read this table.

use super::key::{
    DAY_S, Key, LEVELS, MONTH_S, Preset, STATES, UNKEPT, WORKER_KINDS, WRITE_PROBES, canaries, enabled,
    gb_per_day, int, isolate, key, permits, profile, proxy, secret, slots, timeout,
};
use super::value::{Item, Kind};
use crate::models::{JobKind, RELAY_PORTS};

/// Every key, in the order in which they are printed.
pub(super) const KEYS: &[Key] = &[
    key(
        "database.url",
        Kind::Url,
        Preset::Unset,
        "PostgreSQL URL; may lead through PgBouncer in transaction mode.",
    ),
    key(
        "database.direct_url",
        Kind::Url,
        Preset::Unset,
        "PostgreSQL URL without a pooler, for refreshes; default: database.url.",
    ),
    secret(
        "database.password",
        1,
        "Password for the two URLs where they have none; best as a file, BIGBROTR_DATABASE_PASSWORD_FILE.",
    ),
    int("database.max_connections", 10, 1, 200, "Connections of a worker for its jobs."),
    key(
        "worker.vantage",
        Kind::Text { max: 64 },
        Preset::Text("default"),
        "Name of the place this worker observes from.",
    ),
    int("worker.lease_s", 20, 1, 3_600, "Seconds a worker's claims stand without a heartbeat."),
    int("worker.poll_ms", 1_000, 50, 60_000, "Milliseconds between two looks for work when idle."),
    int("worker.grace_s", 20, 0, 600, "Seconds running jobs may finish after a stop."),
    key(
        "worker.kinds",
        Kind::List(Item::Words(WORKER_KINDS)),
        Preset::Everything,
        "Kinds of jobs this worker executes.",
    ),
    key(
        "worker.metrics",
        Kind::Socket,
        Preset::Unset,
        "Address and port of /metrics, /healthz and /readyz; unset: none.",
    ),
    slots("worker.slots.discover", JobKind::Discover),
    slots("worker.slots.validate", JobKind::Validate),
    slots("worker.slots.monitor", JobKind::Monitor),
    slots("worker.slots.sync", JobKind::Sync),
    slots("worker.slots.refresh", JobKind::Refresh),
    int("scheduler.tick_ms", 1_000, 50, 60_000, "Milliseconds between two looks at what is due."),
    int(
        "scheduler.lease_s",
        15,
        2,
        600,
        "Seconds after which another scheduler takes over from a dead leader.",
    ),
    int("scheduler.history_days", 7, 1, 3_650, "Days finished jobs are remembered."),
    key(
        "scheduler.metrics",
        Kind::Socket,
        Preset::Unset,
        "Address and port of /metrics, /healthz and /readyz; unset: none.",
    ),
    int("fleet.host_jobs", 2, 1, 10_000, "Jobs that run at once on one machine, all workers together."),
    int("fleet.host_spacing_ms", 1_000, 0, 3_600_000, "Milliseconds between two starts on one machine."),
    int("fleet.block_jobs", 16, 1, 100_000, "Jobs that run at once in one address block (/24, /48)."),
    int("fleet.block_spacing_ms", 50, 0, 3_600_000, "Milliseconds between two starts in one address block."),
    key(
        "network.allow",
        Kind::List(Item::Range),
        Preset::Empty,
        "Address ranges that may be dialled although they are not public, whoever names an address in them: anybody on Nostr may.",
    ),
    key(
        "network.deny",
        Kind::List(Item::Range),
        Preset::Empty,
        "Address ranges that are never dialled, whatever permits them: a relay with an address there is left alone.",
    ),
    key(
        "network.allow_local",
        Kind::Bool,
        Preset::Bool(false),
        "Permit loopback, private ranges and local names to whoever names them: for tests and intranets.",
    ),
    key(
        "network.trust",
        Kind::List(Item::Text),
        Preset::Empty,
        "PEM files with root certificates trusted besides the public ones.",
    ),
    key(
        "network.name_servers",
        Kind::List(Item::NameServer),
        Preset::Empty,
        "DNS servers, ip or ip:port; empty: the system's.",
    ),
    key(
        "network.contact",
        Kind::Contact,
        Preset::Unset,
        "Whom servers may tell of trouble with this instance; in the User-Agent of every request.",
    ),
    enabled("network.clearnet.enabled", true),
    proxy("network.clearnet.proxy"),
    timeout("network.clearnet.timeout_s", 10),
    canaries("network.clearnet.canaries"),
    permits("network.clearnet.permits", 256),
    gb_per_day("network.clearnet.gb_per_day"),
    enabled("network.tor.enabled", false),
    proxy("network.tor.proxy"),
    isolate("network.tor.isolate", true),
    timeout("network.tor.timeout_s", 30),
    canaries("network.tor.canaries"),
    permits("network.tor.permits", 10),
    gb_per_day("network.tor.gb_per_day"),
    enabled("network.i2p.enabled", false),
    proxy("network.i2p.proxy"),
    isolate("network.i2p.isolate", false),
    timeout("network.i2p.timeout_s", 45),
    canaries("network.i2p.canaries"),
    permits("network.i2p.permits", 5),
    gb_per_day("network.i2p.gb_per_day"),
    enabled("network.loki.enabled", false),
    proxy("network.loki.proxy"),
    isolate("network.loki.isolate", false),
    timeout("network.loki.timeout_s", 30),
    canaries("network.loki.canaries"),
    permits("network.loki.permits", 5),
    gb_per_day("network.loki.gb_per_day"),
    int("monitor.interval_s", 3_600, 1, MONTH_S, "Seconds between two checks of a stable relay."),
    key(
        "monitor.insecure_tls",
        Kind::Bool,
        Preset::Bool(false),
        "Validate and monitor relays also when their certificate does not verify; the ssl check still says so, and syncing refuses.",
    ),
    int(
        "monitor.capability_interval_s",
        DAY_S,
        60,
        MONTH_S,
        "Seconds between two surveys of what a relay can do: seven small requests at most.",
    ),
    key(
        "monitor.write_probe",
        Kind::Words(WRITE_PROBES),
        Preset::Text("off"),
        "Whose relays an ephemeral event is published to: \"own\" at each check, \"all\" others too, at each survey.",
    ),
    key(
        "monitor.write_probe_relays",
        Kind::List(Item::Relay),
        Preset::Empty,
        "The operator's own relays; their hosts count.",
    ),
    int("monitor.pow_max", 16, 0, 28, "Most bits of proof of work done for a write probe."),
    int("monitor.vantages_for_down", 1, 1, 100, "Vantages that must agree that a relay is down."),
    int("monitor.checks_days", 90, 1, 3_650, "Days single checks are kept."),
    int("monitor.hours_days", 14, 1, 365, "Days uptime is kept by the hour, before it is by the day."),
    key(
        "identity.auth",
        Kind::Bool,
        Preset::Bool(false),
        "Whether relays that ask who we are (NIP-42) are told, by the key in BIGBROTR_IDENTITY_KEY or NOSTR_PRIVATE_KEY.",
    ),
    key(
        "geo.places",
        Kind::List(Item::Text),
        Preset::Empty,
        "Files (.mmdb) that know where addresses are, the first that knows believed; empty: no geo check.",
    ),
    key(
        "geo.networks",
        Kind::List(Item::Text),
        Preset::Empty,
        "Files (.mmdb) that know whose network addresses are in; empty: no net check.",
    ),
    key(
        "alert.webhook",
        Kind::Web,
        Preset::Unset,
        "http or https URL told of changes of relays' states; its path and query are hidden when printed.",
    ),
    key(
        "alert.allow",
        Kind::List(Item::Range),
        Preset::Empty,
        "Address ranges in which the webhook may be, and nothing else, beside those that may be dialled.",
    ),
    secret("alert.secret", 16, "Signs what the webhook is told (HMAC-SHA256); never printed."),
    key(
        "alert.states",
        Kind::List(Item::Words(STATES)),
        Preset::Everything,
        "States of which the webhook is told when a relay comes to them.",
    ),
    int("sync.interval_s", 900, 1, MONTH_S, "Seconds between two passes over a relay that is up to date."),
    int(
        "sync.page_limit",
        1_000,
        1,
        5_000,
        "Most events asked for per page; of a relay that was not seen to serve more than 500, no more than that.",
    ),
    int("sync.page_idle_s", 20, 1, 120, "Longest pause between two new events of a page, seconds."),
    int("sync.page_total_s", 120, 1, 240, "Seconds a whole page may take."),
    int(
        "sync.rescan_s",
        3_600,
        0,
        MONTH_S,
        "Seconds of the newest proved stretch that each pass reads again, for late arrivals.",
    ),
    int(
        "sync.memory_mib",
        64,
        16,
        4_096,
        "MiB of pages and comparisons that all sync jobs of a worker hold at once, as text; what is made of them takes about four times that.",
    ),
    int("sync.time_box_s", 240, 1, 300, "Seconds one pass works before it hands over to the next."),
    key(
        "archive.days",
        Kind::IntOr { min: 1, max: 36_500, word: "all" },
        Preset::Unset,
        "How many days back the archive goes, or \"all\".",
    ),
    key(
        "archive.max_gb",
        Kind::AmountOr { min: 0.001, max: 1_000_000.0, word: "unlimited" },
        Preset::Unset,
        "Disk budget of the database, GB: at nine tenths of it syncing rests; or \"unlimited\".",
    ),
    key(
        "archive.light",
        Kind::Bool,
        Preset::Bool(false),
        "Begin an empty archive as a lightweight one: no tags, content and signatures; a full one is made so by `bigbrotr archive lighten`.",
    ),
    key(
        "archive.unkept",
        Kind::List(Item::Words(UNKEPT)),
        Preset::Everything,
        "Classes of events that are known without being kept: who has them is noted, their content is not.",
    ),
    int(
        "archive.forgery_floor",
        200,
        1,
        1_000_000,
        "Forged events within a week below which a relay is borne, whatever their share.",
    ),
    int(
        "archive.forgery_percent",
        10,
        0,
        100,
        "Share of forged events, percent, from which a relay that served more is set aside: not synced, looked at as before.",
    ),
    int("archive.forgery_days", 30, 0, 3_650, "Days for which it is set aside; 0 sets nobody aside."),
    key(
        "retention.days",
        Kind::IntOr { min: 1, max: 36_500, word: "all" },
        Preset::Unset,
        "Days events are kept, by created_at and whole months, or \"all\".",
    ),
    key(
        "retention.kinds",
        Kind::List(Item::KindRule),
        Preset::Empty,
        "Kinds that are kept for so many days only, or not at all.",
    ),
    key(
        "retention.relays",
        Kind::List(Item::RelayDays),
        Preset::Empty,
        "Relays of which observations are kept for so many days only, or none.",
    ),
    key(
        "publish.enabled",
        Kind::Bool,
        Preset::Bool(false),
        "Publish what is found (NIP-66), signed with the key in BIGBROTR_IDENTITY_KEY or NOSTR_PRIVATE_KEY.",
    ),
    key("publish.relays", Kind::List(Item::Relay), Preset::Empty, "Relays to publish to, at most 16."),
    key(
        "publish.local",
        Kind::Bool,
        Preset::Bool(false),
        "Publish also relays with local names, or with addresses that are not public.",
    ),
    key("publish.geohash", Kind::Text { max: 12 }, Preset::Unset, "Where the monitor is, a geohash."),
    profile("publish.profile.name", 128, "Name of the monitor (kind 0)."),
    profile("publish.profile.about", 256, "What it is, in a sentence."),
    profile("publish.profile.picture", 256, "URL of its picture."),
    profile("publish.profile.website", 256, "URL of its site."),
    profile("publish.profile.nip05", 256, "Address that names its key (NIP-05)."),
    profile("publish.profile.lud16", 256, "Its Lightning address."),
    int("discover.interval_s", 60, 1, MONTH_S, "Seconds between two looks for relay URLs in new events."),
    key(
        "discover.sources",
        Kind::List(Item::Source),
        Preset::Empty,
        "Lists of relays over HTTP, and where in them the URLs are.",
    ),
    int(
        "discover.source_interval_s",
        86_400,
        60,
        MONTH_S,
        "Seconds between two looks at one of these lists.",
    ),
    int(
        "discover.urls_per_host",
        32,
        1,
        100_000,
        "URLs that one host may have among relays and candidates; others named for it are counted and not taken.",
    ),
    int("discover.urls_per_site", 1_024, 1, 1_000_000, "The same of a domain and all hosts below it."),
    int(
        "discover.urls_per_hoster",
        16_384,
        1,
        1_000_000,
        "The same of a hoster, under whose domain strangers register names as under a public suffix.",
    ),
    int(
        "discover.candidates_max",
        200_000,
        10,
        10_000_000,
        "Candidates of one network, still to be asked, beyond which no more URLs of strangers are taken; those of discover.sources, seeds and operators are.",
    ),
    key(
        "discover.ports",
        Kind::List(Item::Port),
        Preset::Entries(RELAY_PORTS),
        "Ports of clearnet URLs that strangers name (events, lists over HTTP, NIP-05); with another port they are counted and not taken.",
    ),
    int(
        "discover.nip05_per_day",
        240,
        0,
        100_000,
        "Domains of NIP-05 names that are asked for relays in a day, each at most once a month; 0 asks none.",
    ),
    int("refresh.interval_s", 300, 1, MONTH_S, "Seconds between two refreshes of the views."),
    key("log.json", Kind::Bool, Preset::Bool(false), "Log as JSON lines."),
    key("log.level", Kind::Words(LEVELS), Preset::Text("info"), "Most detailed level logged."),
];

/// The row of a path.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_one_row_one_variable_and_a_default_of_its_kind() {
        let mut variables: Vec<String> = KEYS.iter().map(Key::variable).collect();
        variables.sort();
        variables.dedup();
        assert_eq!(variables.len(), KEYS.len());
        for key in KEYS {
            assert!(key.doc.ends_with('.'), "{}", key.path);
            if let (Preset::Int(preset), Kind::Int { min, max }) = (key.preset, key.kind) {
                assert!((min..=max).contains(&preset), "{}", key.path);
            }
        }
    }

    #[test]
    fn the_words_of_worker_kinds_are_the_job_kinds() {
        assert_eq!(WORKER_KINDS, JobKind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>());
        assert_eq!(UNKEPT, crate::models::Unkept::ALL.iter().map(|class| class.as_str()).collect::<Vec<_>>());
    }
}
