//! Closes the gap: relay URLs that somebody names and nobody has tried yet.
//!
//! Three tasks. `archive` mines events: each once, whichever relays it came from, since its key waits in
//! `event_unmined` from the transaction that stored it to the one that stores what was found in it. `http` asks
//! lists that an operator configured, `nip05` domains that profiles name. What is found is a candidate and no more.

mod http;
mod mine;
mod nip05;
mod tags;
mod text;

use std::time::Duration;

use serde_json::json;

use super::{Attempt, Ctx, Heard, JobError, Report, cadence, lost};
use crate::clock;
use crate::db::{Found, Sighted, Sighting, UnminedEvent};
use crate::models::{AddressPolicy, PortRange, RelayUrl, Source};

pub use http::HttpSource;
pub use mine::{Mined, mine};

/// The task that mines archived events.
pub const ARCHIVE: &str = "archive";
/// The task that asks configured lists.
pub const HTTP: &str = "http";
/// The task that asks domains.
pub const NIP05: &str = "nip05";

/// Events per transaction.
const BATCH: u32 = 2_000;
/// How long one attempt mines before the next goes on, milliseconds.
const TIME_BOX_MS: u64 = 200_000;

pub(super) async fn run(ctx: &Ctx, attempt: &Attempt) -> Result<Report, JobError> {
    match attempt.target.as_str() {
        HTTP => Box::pin(http::run(ctx, attempt)).await,
        NIP05 => Box::pin(nip05::run(ctx, attempt)).await,
        _ => archive(ctx, attempt).await,
    }
}

async fn archive(ctx: &Ctx, attempt: &Attempt) -> Result<Report, JobError> {
    let (mut events, mut urls, mut refused, mut names, mut reports) = (0_u64, 0_u64, 0_u64, 0_u64, 0_u64);
    let (mut sum, mut other_port) = (Sighted::default(), 0_u64);
    let until_ms = clock::monotonic_ms() + TIME_BOX_MS;
    let due = cadence::local(ctx.config.discover_interval, &attempt.target);
    loop {
        let batch = ctx.db.discover_take(BATCH).await?;
        let done = batch.is_empty();
        let last = done || attempt.stop.is_cancelled() || clock::monotonic_ms() >= until_ms;
        let (mined, keys, heard) = mine_batch(batch, &ctx.policy).await?;
        // Before the events count as mined: keeping it twice is keeping it once.
        reports += heard.keep(&ctx.db).await?;
        events += keys.len() as u64;
        urls += mined.found.len() as u64;
        refused += mined.refused;
        let before = mined.found.len();
        let found: Vec<(RelayUrl, Source)> =
            mined.found.into_iter().filter(|(url, _)| PortRange::admit(&ctx.config.ports, url)).collect();
        other_port += (before - found.len()) as u64;
        names += mined.names.len() as u64;
        // Out of time with more to mine: again at once.
        let after = if done { due.after } else { Duration::ZERO };
        let found = Found {
            sightings: found
                .into_iter()
                .map(|(url, source)| Sighting { url, source, origin: String::new() })
                .collect(),
            names: mined
                .names
                .iter()
                .map(|name| (name.name().to_owned(), name.domain().to_owned()))
                .collect(),
            mined: &keys,
            per_host: ctx.config.urls_per_host,
            per_site: ctx.config.urls_per_site,
            per_hoster: ctx.config.urls_per_hoster,
            in_all: ctx.config.candidates_max,
            next: last.then_some((after, due.slack, due.why)),
            ..Found::default()
        };
        let Some(stored) = ctx.db.discover_store(&attempt.fence, &found).await? else { return Err(lost()) };
        sum.new += stored.new;
        sum.over_cap += stored.over_cap;
        sum.excluded += stored.excluded;
        if last {
            return Ok(json!({
                "events": events, "urls": urls, "new_candidates": sum.new, "refused": refused, "over_cap": sum.over_cap, "other_port": other_port,
                "excluded": sum.excluded, "nip05_names": names, "reports": reports,
            }));
        }
    }
}

/// Mines off the async threads: a batch of large events is work for a core. Returns the keys of the events that
/// were looked at, and what other monitors say in them.
async fn mine_batch(
    batch: Vec<UnminedEvent>,
    policy: &AddressPolicy,
) -> Result<(Mined, Vec<i64>, Heard), JobError> {
    let policy = policy.clone();
    tokio::task::spawn_blocking(move || {
        let mined = mine(&batch, &policy);
        let keys = batch.iter().take(mined.events).map(|event| event.key).collect();
        let mut heard = Heard::default();
        for event in batch.iter().take(mined.events) {
            heard.hear(event, &policy);
        }
        (mined, keys, heard)
    })
    .await
    .map_err(|error| JobError::Retry { why: format!("mining events failed: {error}") })
}
