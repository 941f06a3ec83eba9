//! Reading what other monitors publish. They differ in spelling, and we take each: `d` with and without its slash,
//! `timeout` with its milliseconds first or last, numbers with a fraction.

use super::text::{clean, geohash};
use super::{ANNOUNCEMENT, DISCOVERY};
use crate::models::{AddressPolicy, MonitorAnnouncementRow, MonitorReportRow, RelayUrl};
use crate::nips::nip11::NIPS_MAX;

/// Tags looked at; ours have at most a few hundred.
const TAGS_READ: usize = 2_000;
/// Checks, and timeouts, kept of an announcement.
const CHECKS_MAX: usize = 32;
/// Longest name of a check, in bytes.
const CHECK_BYTES: usize = 32;
/// A time beyond this is no round trip.
const RTT_MAX_MS: u64 = 3_600_000;

/// What another monitor says of a relay; none when the event is no such thing: another kind, no `d`, or a `d` that
/// is no URL of a relay under `policy` (a public key may stand there).
pub fn parse_report(
    kind: u16,
    monitor: [u8; 32],
    created_at: i64,
    tags: &[Vec<String>],
    policy: &AddressPolicy,
) -> Option<MonitorReportRow> {
    if kind != DISCOVERY || created_at < 0 {
        return None;
    }
    let url = RelayUrl::parse(values(tags, "d").next()?, policy).ok()?;
    let ms = |name: &str| values(tags, name).next().and_then(milliseconds);
    let needs = |name: &str| {
        values(tags, "R").find_map(|value| match value.strip_prefix('!') {
            Some(refused) => (refused == name).then_some(false),
            None => (value == name).then_some(true),
        })
    };
    let mut nips: Vec<u16> = values(tags, "N").filter_map(|nip| nip.trim().parse().ok()).collect();
    nips.sort_unstable();
    nips.dedup();
    nips.truncate(NIPS_MAX);
    Some(MonitorReportRow {
        monitor,
        url,
        created_at,
        rtt_ms: [ms("rtt-open"), ms("rtt-read"), ms("rtt-write")],
        auth: needs("auth"),
        writes: needs("writes"),
        pow: needs("pow"),
        payment: needs("payment"),
        nips,
        geohash: values(tags, "g").find_map(geohash),
    })
}

/// What another monitor says of itself; none when the event is of another kind.
pub fn parse_announcement(
    kind: u16,
    monitor: [u8; 32],
    created_at: i64,
    tags: &[Vec<String>],
) -> Option<MonitorAnnouncementRow> {
    if kind != ANNOUNCEMENT || created_at < 0 {
        return None;
    }
    let frequency = values(tags, "frequency").find_map(|text| text.trim().parse::<u32>().ok());
    let mut checks: Vec<String> = values(tags, "c").filter_map(check).take(CHECKS_MAX).collect();
    checks.sort_unstable();
    checks.dedup();
    Some(MonitorAnnouncementRow {
        monitor,
        created_at,
        frequency_s: frequency.filter(|seconds| *seconds > 0),
        checks,
        timeouts_ms: named(tags, "timeout").filter_map(timeout).take(CHECKS_MAX).collect(),
        geohash: values(tags, "g").find_map(geohash),
    })
}

fn named<'a>(tags: &'a [Vec<String>], name: &'a str) -> impl Iterator<Item = &'a [String]> {
    tags.iter()
        .take(TAGS_READ)
        .map(Vec::as_slice)
        .filter(move |tag| tag.first().is_some_and(|first| first == name))
}

fn values<'a>(tags: &'a [Vec<String>], name: &'a str) -> impl Iterator<Item = &'a str> {
    named(tags, name).filter_map(|tag| tag.get(1)).map(String::as_str)
}

/// A count of milliseconds; some write a fraction.
fn milliseconds(text: &str) -> Option<u32> {
    let whole = text.trim().split('.').next().unwrap_or_default();
    let ms: u64 = whole.parse().ok()?;
    (ms <= RTT_MAX_MS).then(|| u32::try_from(ms).unwrap_or(u32::MAX))
}

fn check(text: &str) -> Option<String> {
    clean(text).map(|name| name.to_ascii_lowercase()).filter(|name| name.len() <= CHECK_BYTES)
}

/// `[timeout, check, ms]`, `[timeout, ms, check]`, or `[timeout, ms]` for all checks.
fn timeout(tag: &[String]) -> Option<(String, u32)> {
    let (first, second) = (tag.get(1)?, tag.get(2).map_or("", String::as_str));
    match (milliseconds(first), milliseconds(second)) {
        (None, Some(ms)) => Some((check(first)?, ms)),
        (Some(ms), _) if second.is_empty() => Some((String::new(), ms)),
        (Some(ms), None) => Some((check(second)?, ms)),
        _ => None,
    }
}
