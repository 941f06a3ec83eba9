//! The outbox: events of ours on their way to the publishing relays.

use std::time::Duration;

use sqlx::postgres::PgRow;

use super::rows::{count, get, small_count};
use super::{Db, DbError};
use crate::models::{Event, EventId, Fence, RelayUrl};

/// An event for the outbox.
#[derive(Debug, Clone)]
pub struct NewPublication {
    /// The event, signed.
    pub event: Event,
    /// Its `d` tag, empty without one; of a deletion that of the event taken back.
    pub d_tag: String,
    /// The relay it speaks of.
    pub relay: Option<RelayUrl>,
    /// SHA-256 of what it says, its time left out.
    pub digest: [u8; 32],
    /// The same is said again only after this long.
    pub refresh: Duration,
}

/// A relay we publish to.
#[derive(Debug, Clone)]
pub struct PublishingRelay {
    /// Key of its deliveries.
    pub id: i32,
    /// Which.
    pub url: RelayUrl,
    /// Connections in a row that brought nothing.
    pub failures: u32,
    /// Whether it may be visited now.
    pub due: bool,
}

/// A publication to be brought to a relay.
#[derive(Debug, Clone)]
pub struct PendingPublication {
    /// Author.
    pub pubkey: Vec<u8>,
    /// Kind.
    pub kind: i32,
    /// `d` tag.
    pub d_tag: String,
    /// Id.
    pub id: EventId,
    /// The event as JSON text.
    pub json: String,
}

/// What became of one publication at a relay.
#[derive(Debug, Clone)]
pub struct DeliveryRow {
    /// Which.
    pub of: PendingPublication,
    /// `accepted`, `refused` or `waiting`.
    pub state: &'static str,
    /// The relay's words.
    pub words: String,
    /// When to try again, if waiting.
    pub again: Duration,
}

/// What became of a visit to a relay.
#[derive(Debug, Clone)]
pub struct Visit {
    /// Connections in a row that brought nothing, with this one.
    pub failures: u32,
    /// Not again before.
    pub pause: Duration,
    /// Why it brought nothing; empty when it did.
    pub words: String,
}

/// A publishing relay, as `publish status` shows it.
#[derive(Debug, Clone)]
pub struct PublicationLine {
    /// Which.
    pub url: String,
    /// Not brought yet, accepted, refused, to be tried again.
    pub counts: [u64; 4],
    /// Connections in a row that brought nothing.
    pub failures: i32,
    /// Latest visit, Unix seconds.
    pub tried_at: Option<i64>,
    /// Not before, Unix seconds.
    pub next_at: i64,
    /// Why the latest visit brought nothing.
    pub words: String,
    /// Latest acceptance, Unix seconds.
    pub accepted_at: Option<i64>,
    /// The newest refusal: its words, when, of which kind and `d`.
    pub refusal: Option<(String, i64, i32, String)>,
}

fn seconds(durations: impl Iterator<Item = Duration>) -> Vec<i32> {
    durations.map(|d| i32::try_from(d.as_secs()).unwrap_or(i32::MAX)).collect()
}

impl Db {
    /// Puts events into the outbox under the fence of a job; how many were written, or nothing when it was lost.
    pub async fn publication_put(
        &self,
        fence: &Fence,
        new: &[NewPublication],
    ) -> Result<Option<u64>, DbError> {
        let row = self
            .one(
                sqlx::query(
                    "SELECT held, written FROM publication_put($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
                )
                .bind(fence.job())
                .bind(fence.worker())
                .bind(fence.attempt())
                .bind(new.iter().map(|n| n.event.pubkey().to_vec()).collect::<Vec<_>>())
                .bind(new.iter().map(|n| i32::from(n.event.kind())).collect::<Vec<_>>())
                .bind(new.iter().map(|n| n.d_tag.clone()).collect::<Vec<_>>())
                .bind(new.iter().map(|n| n.relay.as_ref().map(ToString::to_string)).collect::<Vec<_>>())
                .bind(new.iter().map(|n| n.event.id().as_bytes().to_vec()).collect::<Vec<_>>())
                .bind(new.iter().map(|n| n.event.created_at()).collect::<Vec<_>>())
                .bind(new.iter().map(|n| n.digest.to_vec()).collect::<Vec<_>>())
                .bind(new.iter().map(|n| n.event.to_json()).collect::<Vec<_>>())
                .bind(seconds(new.iter().map(|n| n.refresh))),
            )
            .await?;
        let held: bool = get(&row, "held")?;
        held.then(|| small_count(&row, "written")).transpose()
    }

    /// Makes these the publishing relays and returns them; none when the fence was lost.
    pub async fn publication_begin(
        &self,
        fence: &Fence,
        relays: &[RelayUrl],
    ) -> Result<Vec<PublishingRelay>, DbError> {
        let rows = self
            .all(
                sqlx::query(
                    "SELECT relay_id, relay_url, failures, due FROM publication_begin($1, $2, $3, $4)",
                )
                .bind(fence.job())
                .bind(fence.worker())
                .bind(fence.attempt())
                .bind(relays.iter().map(ToString::to_string).collect::<Vec<_>>()),
            )
            .await?;
        rows.iter()
            .map(|row| {
                let (id, url): (i32, String) = (get(row, "relay_id")?, get(row, "relay_url")?);
                let failures: i32 = get(row, "failures")?;
                Ok(PublishingRelay {
                    id,
                    url: Self::stored_url(&url, "publication_relay", || format!("id={id}"))?,
                    failures: u32::try_from(failures).unwrap_or(0),
                    due: get(row, "due")?,
                })
            })
            .collect()
    }

    /// What is to be brought to a publishing relay now.
    pub async fn publication_take(&self, relay: i32, limit: u32) -> Result<Vec<PendingPublication>, DbError> {
        let rows = self
            .all(
                sqlx::query("SELECT pubkey, kind, d_tag, event_id, event FROM publication_take($1, $2)")
                    .bind(relay)
                    .bind(i32::try_from(limit).unwrap_or(i32::MAX)),
            )
            .await?;
        rows.iter().map(pending).collect()
    }

    /// Stores what became of deliveries to a relay, and of the visit; false when the fence was lost.
    pub async fn publication_settle(
        &self,
        fence: &Fence,
        relay: i32,
        deliveries: &[DeliveryRow],
        visit: &Visit,
    ) -> Result<bool, DbError> {
        let row = self
            .one(
                sqlx::query(
                    "SELECT publication_settle($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) AS held",
                )
                .bind(fence.job())
                .bind(fence.worker())
                .bind(fence.attempt())
                .bind(relay)
                .bind(deliveries.iter().map(|d| d.of.pubkey.clone()).collect::<Vec<_>>())
                .bind(deliveries.iter().map(|d| d.of.kind).collect::<Vec<_>>())
                .bind(deliveries.iter().map(|d| d.of.d_tag.clone()).collect::<Vec<_>>())
                .bind(deliveries.iter().map(|d| d.of.id.as_bytes().to_vec()).collect::<Vec<_>>())
                .bind(deliveries.iter().map(|d| d.state.to_owned()).collect::<Vec<_>>())
                .bind(deliveries.iter().map(|d| d.words.clone()).collect::<Vec<_>>())
                .bind(deliveries.iter().map(|d| d.again.as_secs_f64()).collect::<Vec<_>>())
                .bind(i32::try_from(visit.failures).unwrap_or(i32::MAX))
                .bind(visit.pause.as_secs_f64())
                .bind(&visit.words),
            )
            .await?;
        get(&row, "held")
    }

    /// Sets when the outbox is next due, at the latest `next`; false when the fence was lost.
    pub async fn publication_next(
        &self,
        fence: &Fence,
        next: Duration,
        slack: Duration,
        why: &str,
    ) -> Result<bool, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT publication_next($1, $2, $3, $4, $5, $6) AS held")
                    .bind(fence.job())
                    .bind(fence.worker())
                    .bind(fence.attempt())
                    .bind(next.as_secs_f64())
                    .bind(i32::try_from(slack.as_secs()).unwrap_or(i32::MAX))
                    .bind(why),
            )
            .await?;
        get(&row, "held")
    }

    /// The `d` of what this author says of relays that operators have excluded.
    pub async fn publication_unwanted(&self, pubkey: &[u8], limit: u32) -> Result<Vec<String>, DbError> {
        let query = sqlx::query("SELECT d FROM publication_unwanted($1, $2) d").bind(pubkey);
        let rows = self.all(query.bind(i32::try_from(limit).unwrap_or(i32::MAX))).await?;
        rows.iter().map(|row| get(row, "d")).collect()
    }

    /// Of how many looks at a relay one, on average, is published under this key, with which `vantage` signs: 1 where all
    /// vantages sign with it.
    pub async fn publication_turns(&self, pubkey: &[u8], vantage: &str) -> Result<u32, DbError> {
        let query = sqlx::query("SELECT publication_turns($1, $2) AS n").bind(pubkey).bind(vantage);
        let turns: i32 = get(&self.one(query).await?, "n")?;
        Ok(u32::try_from(turns).unwrap_or(1).max(1))
    }

    /// The events of one author, kind and `d` that some relay may have now.
    pub async fn publication_ids(&self, pubkey: &[u8], kind: u16, d: &str) -> Result<Vec<EventId>, DbError> {
        let query = sqlx::query("SELECT id FROM publication_ids($1, $2, $3) id");
        let rows = self.all(query.bind(pubkey).bind(i32::from(kind)).bind(d)).await?;
        rows.iter().map(|row| event_id(row, "id")).collect()
    }

    /// Forgets old publications and old words of others; where nothing is published also the task that does.
    pub async fn publication_retire(&self, publish: bool, keep_days: u16) -> Result<u64, DbError> {
        let query = sqlx::query("SELECT publication_retire($1, $2) AS n").bind(publish);
        small_count(&self.one(query.bind(i32::from(keep_days))).await?, "n")
    }

    /// Every publishing relay; needs a role that may read.
    pub async fn publication_list(&self) -> Result<Vec<PublicationLine>, DbError> {
        let rows = self
            .all(sqlx::query(
                "SELECT relay_url, pending, accepted, refused, waiting, failures, extract(epoch FROM tried_at)::bigint AS tried_at, \
                 extract(epoch FROM next_at)::bigint AS next_at, words, accepted_at, refusal, refused_at, refused_kind, refused_d \
                 FROM publication_status ORDER BY relay_url LIMIT 1000",
            ))
            .await?;
        rows.iter()
            .map(|row| {
                let refusal: Option<String> = get(row, "refusal")?;
                Ok(PublicationLine {
                    url: get(row, "relay_url")?,
                    counts: [
                        count(row, "pending")?,
                        count(row, "accepted")?,
                        count(row, "refused")?,
                        count(row, "waiting")?,
                    ],
                    failures: get(row, "failures")?,
                    tried_at: get(row, "tried_at")?,
                    next_at: get(row, "next_at")?,
                    words: get(row, "words")?,
                    accepted_at: get(row, "accepted_at")?,
                    refusal: refusal
                        .map(|words| {
                            let (at, kind) = (get(row, "refused_at")?, get(row, "refused_kind")?);
                            Ok::<_, DbError>((words, at, kind, get(row, "refused_d")?))
                        })
                        .transpose()?,
                })
            })
            .collect()
    }
}

fn pending(row: &PgRow) -> Result<PendingPublication, DbError> {
    let id = event_id(row, "event_id")?;
    Ok(PendingPublication {
        pubkey: get(row, "pubkey")?,
        kind: get(row, "kind")?,
        d_tag: get(row, "d_tag")?,
        id,
        json: get(row, "event")?,
    })
}

fn event_id(row: &PgRow, column: &'static str) -> Result<EventId, DbError> {
    let id: Vec<u8> = get(row, column)?;
    EventId::try_from(id.as_slice()).map_err(|error| DbError::Decode { column, problem: error.to_string() })
}
