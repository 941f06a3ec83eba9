//! What discover reads and writes.

use std::time::Duration;

use super::rows::{get, small_count};
use super::{Db, DbError};
use crate::models::{Fence, RelayUrl, Source};

/// An archived event for the discover job to look into.
#[derive(Debug, Clone, Default)]
pub struct UnminedEvent {
    /// `event.event_key`.
    pub key: i64,
    /// Kind, if the event is still there; so with all below.
    pub kind: Option<i32>,
    /// Tags as JSON text bytes.
    pub tags: Option<Vec<u8>>,
    /// Content bytes.
    pub content: Option<Vec<u8>>,
    /// Author.
    pub pubkey: Option<Vec<u8>>,
    /// When, as the author says.
    pub created_at: Option<i64>,
}

/// A URL, and where it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Canonical URL.
    pub url: RelayUrl,
    /// Kind of place.
    pub source: Source,
    /// Which place, where that is known: a list's URL, a domain; empty otherwise.
    pub origin: String,
}

/// A domain asked for the relays of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Which domain.
    pub domain: String,
    /// What came of it: a word of a closed set.
    pub outcome: &'static str,
    /// How many relays it named.
    pub relays: u32,
}

/// One batch of a discover job.
#[derive(Debug, Clone, Default)]
pub struct Found<'a> {
    /// URLs.
    pub sightings: Vec<Sighting>,
    /// Events looked into.
    pub mined: &'a [i64],
    /// NIP-05 names seen, as name and domain.
    pub names: Vec<(String, String)>,
    /// Domains asked.
    pub asked: Vec<Asked>,
    /// State of an HTTP source: its URL, and a JSON object.
    pub state: Option<(String, String)>,
    /// URLs that one host may have.
    pub per_host: u32,
    /// URLs that one domain may have, all hosts below it together.
    pub per_site: u32,
    /// URLs that the customers of one hoster may have together.
    pub per_hoster: u32,
    /// Candidates there may be in all; what operators list and have lists of is taken beyond.
    pub in_all: u32,
    /// When the task is next due, its slack, and why; `None` leaves that alone.
    pub next: Option<(Duration, Duration, &'a str)>,
}

/// What became of the URLs of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sighted {
    /// New candidates.
    pub new: u64,
    /// Not taken: their host, its domain or its hoster has as many as one may have, or there are as many as there may be.
    pub over_cap: u64,
    /// Not taken: excluded by an operator.
    pub excluded: u64,
}

impl Db {
    /// Archived events that nobody has mined yet, at most `limit`, in key order.
    pub async fn discover_take(&self, limit: u32) -> Result<Vec<UnminedEvent>, DbError> {
        let rows = self
            .all(
                sqlx::query(
                    "SELECT event_key, kind, tags, content, pubkey, created_at FROM discover_take($1)",
                )
                .bind(i32::try_from(limit).unwrap_or(i32::MAX)),
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(UnminedEvent {
                    key: get(row, "event_key")?,
                    kind: get(row, "kind")?,
                    tags: get(row, "tags")?,
                    content: get(row, "content")?,
                    pubkey: get(row, "pubkey")?,
                    created_at: get(row, "created_at")?,
                })
            })
            .collect()
    }

    /// Stores what one discover batch found, in one transaction; `None` when the fence was lost.
    pub async fn discover_store(&self, fence: &Fence, found: &Found<'_>) -> Result<Option<Sighted>, DbError> {
        let sightings = || found.sightings.iter();
        let next = found.next;
        let row = self
            .one(
                sqlx::query(
                    "SELECT held, new_candidates, over_cap, left_alone FROM discover_store($1, $2, $3, $4, $5, $6, $7, $8, \
                     $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24)",
                )
                .bind(fence.job())
                .bind(fence.worker())
                .bind(fence.attempt())
                .bind(sightings().map(|s| s.url.as_str().to_owned()).collect::<Vec<_>>())
                .bind(sightings().map(|s| s.url.network().as_str().to_owned()).collect::<Vec<_>>())
                .bind(sightings().map(|s| s.source.as_str().to_owned()).collect::<Vec<_>>())
                .bind(found.mined)
                .bind(next.map(|(next, _, _)| next.as_secs_f64()))
                .bind(next.map(|(_, slack, _)| i32::try_from(slack.as_secs()).unwrap_or(i32::MAX)))
                .bind(next.map(|(_, _, why)| why))
                .bind(sightings().map(|s| s.origin.clone()).collect::<Vec<_>>())
                .bind(i32::try_from(found.per_host).unwrap_or(i32::MAX))
                .bind(found.names.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>())
                .bind(found.names.iter().map(|(_, domain)| domain.clone()).collect::<Vec<_>>())
                .bind(found.asked.iter().map(|a| a.domain.clone()).collect::<Vec<_>>())
                .bind(found.asked.iter().map(|a| a.outcome.to_owned()).collect::<Vec<_>>())
                .bind(found.asked.iter().map(|a| i32::try_from(a.relays).unwrap_or(i32::MAX)).collect::<Vec<_>>())
                .bind(found.state.as_ref().map(|(key, _)| key))
                .bind(found.state.as_ref().map(|(_, value)| value))
                .bind(i32::try_from(found.per_site).unwrap_or(i32::MAX))
                .bind(sightings().map(|s| s.url.site().map(str::to_owned)).collect::<Vec<_>>())
                .bind(sightings().map(|s| s.url.hoster().map(str::to_owned)).collect::<Vec<_>>())
                .bind(i32::try_from(found.per_hoster).unwrap_or(i32::MAX))
                .bind(i32::try_from(found.in_all).unwrap_or(i32::MAX)),
            )
            .await?;
        let held: bool = get(&row, "held")?;
        if !held {
            return Ok(None);
        }
        Ok(Some(Sighted {
            new: small_count(&row, "new_candidates")?,
            over_cap: small_count(&row, "over_cap")?,
            excluded: small_count(&row, "left_alone")?,
        }))
    }

    /// NIP-05 domains whose turn it is, as name and domain, at most `limit`.
    pub async fn nip05_take(&self, limit: u32) -> Result<Vec<(String, String)>, DbError> {
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        let rows = self.all(sqlx::query("SELECT name, domain FROM nip05_take($1)").bind(limit)).await?;
        rows.iter().map(|row| Ok((get(row, "name")?, get(row, "domain")?))).collect()
    }

    /// Forgets domains that no profile names any more; returns how many.
    pub async fn nip05_retire(&self) -> Result<u64, DbError> {
        small_count(&self.one(sqlx::query("SELECT nip05_retire() AS n")).await?, "n")
    }
}
