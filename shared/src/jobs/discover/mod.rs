//! Closes the gap: relay URLs that our events name and nobody has tried yet.
//!
//! Each archived event is mined once, whichever relays it came from: its key waits in `event_unmined`
//! from the transaction that stored it to the one that stores what was found in it.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Attempt, Ctx, JobError, Report, cadence, lost};
use crate::clock;
use crate::db::{NewCandidate, UnminedEvent};
use crate::models::{AddressPolicy, RelayUrl};

/// Events per transaction.
const BATCH: u32 = 2_000;
/// How long one attempt mines before the next goes on, milliseconds.
const TIME_BOX_MS: u64 = 200_000;
/// URLs taken from one event: a contact list may be long, a spam event longer.
const URLS_PER_EVENT: usize = 500;
/// The kind whose content once held relays as the keys of a JSON object.
const CONTACTS: i32 = 3;

pub(super) async fn run(ctx: &Ctx, attempt: &Attempt) -> Result<Report, JobError> {
    let (mut events, mut urls, mut new) = (0_u64, 0_u64, 0_u64);
    let until_ms = clock::monotonic_ms() + TIME_BOX_MS;
    let due = cadence::local(ctx.config.discover_interval, &attempt.target);
    loop {
        let batch = ctx.db.discover_take(BATCH).await?;
        let done = batch.is_empty();
        let last = done || attempt.stop.is_cancelled() || clock::monotonic_ms() >= until_ms;
        let (found, mined) = mine_batch(batch, &ctx.policy).await?;
        events += mined.len() as u64;
        urls += found.len() as u64;
        // Out of time with more to mine: again at once.
        let after = if done { due.after } else { Duration::ZERO };
        let next = last.then_some((after, due.slack, due.why));
        match ctx.db.discover_store(&attempt.fence, &found, &mined, next).await? {
            Some(stored) => new += stored,
            None => return Err(lost()),
        }
        if last {
            return Ok(json!({ "events": events, "urls": urls, "new_candidates": new }));
        }
    }
}

/// Mines off the async threads: a batch of large events is work for a core.
async fn mine_batch(
    batch: Vec<UnminedEvent>,
    policy: &AddressPolicy,
) -> Result<(Vec<NewCandidate>, Vec<i64>), JobError> {
    let policy = policy.clone();
    let keys: Vec<i64> = batch.iter().map(|event| event.key).collect();
    let found = tokio::task::spawn_blocking(move || {
        let mut seen = HashSet::new();
        for event in &batch {
            seen.extend(mine(event, &policy));
        }
        let mut found: Vec<RelayUrl> = seen.into_iter().collect();
        found.sort();
        found
    })
    .await
    .map_err(|error| JobError::Retry { why: format!("mining events failed: {error}") })?;
    Ok((found.into_iter().map(|url| NewCandidate { url, source: "event" }).collect(), keys))
}

/// The relay URLs one event names: any tag element at any index, and the keys of a contact list's content.
fn mine(event: &UnminedEvent, policy: &AddressPolicy) -> Vec<RelayUrl> {
    let mut found = Vec::new();
    let tags: Vec<Vec<String>> =
        event.tags.as_deref().and_then(|tags| serde_json::from_slice(tags).ok()).unwrap_or_default();
    let mut texts: Vec<String> = tags.into_iter().flat_map(|tag| tag.into_iter().skip(1)).collect();
    if event.kind == Some(CONTACTS)
        && let Some(Ok(Value::Object(relays))) = event.content.as_deref().map(serde_json::from_slice)
    {
        texts.extend(relays.into_iter().map(|(url, _)| url));
    }
    for text in texts {
        if found.len() >= URLS_PER_EVENT {
            break;
        }
        if looks_like_relay(&text)
            && let Ok(url) = RelayUrl::parse(&text, policy)
        {
            found.push(url);
        }
    }
    found
}

fn looks_like_relay(text: &str) -> bool {
    let text = text.trim_start().as_bytes();
    text.len() > 5 && (text[..5].eq_ignore_ascii_case(b"ws://") || text[..5].eq_ignore_ascii_case(b"wss:/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mined(kind: i32, tags: &str, content: &str) -> Vec<String> {
        let event = UnminedEvent {
            key: 1,
            kind: Some(kind),
            tags: Some(tags.as_bytes().to_vec()),
            content: Some(content.as_bytes().to_vec()),
        };
        mine(&event, &AddressPolicy::public()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn relays_are_found_at_every_index_of_every_tag() {
        let tags = r#"[["r","wss://a.example/","read"],["e","00","wss://b.example"],["relays","x","WSS://C.example"]]"#;
        assert_eq!(
            mined(1, tags, "wss://not.read.example"),
            ["wss://a.example", "wss://b.example", "wss://c.example"]
        );
    }

    #[test]
    fn a_contact_lists_content_is_read_and_nonsense_is_not() {
        assert_eq!(mined(3, "[]", r#"{"wss://old.example":{"read":true},"x":1}"#), ["wss://old.example"]);
        assert!(mined(3, "[]", "not json").is_empty());
        assert!(
            mined(1, r#"[["r","ws://127.0.0.1"],["r","wss://"],["r","https://a.example"]]"#, "").is_empty()
        );
    }
}
