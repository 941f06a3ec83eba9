//! Events, observations and coverage.

use std::sync::Arc;
use std::time::Duration;

use super::rows::{get, small_count, word};
use super::{Db, DbError};
use crate::models::{Coverage, Event, EventId, Fence, Interval, RelayUrl, event_key};

/// An event to store; its id and signature were verified by the caller.
#[derive(Debug, Clone)]
pub struct EventRow {
    /// The event.
    pub event: Arc<Event>,
}

impl From<Event> for EventRow {
    fn from(event: Event) -> Self {
        Self { event: Arc::new(event) }
    }
}

/// Coverage to write, and when the relay is next due.
#[derive(Debug, Clone)]
pub struct NewCoverage<'a> {
    /// Filter class.
    pub class: &'a str,
    /// All intervals of the relay and class.
    pub coverage: &'a Coverage,
}

/// One batch of a sync job.
#[derive(Debug, Clone)]
pub struct StoreBatch<'a> {
    /// Proof that the job is still ours.
    pub fence: &'a Fence,
    /// `relay.id`.
    pub relay_id: i32,
    /// When they were seen, Unix seconds.
    pub seen_at: i64,
    /// Every event delivered: id and `created_at`.
    pub delivered: &'a [(EventId, i64)],
    /// Those of them that were unknown, verified.
    pub new: &'a [EventRow],
    /// Whether the archive is a lightweight one.
    pub light: bool,
    /// What the batch proves, if it proves something.
    pub coverage: Option<NewCoverage<'a>>,
    /// When the relay is next due, its slack, and why; `None` leaves that alone.
    pub next: Option<(Duration, Duration, &'a str)>,
}

/// What [`Db::sync_store`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// False: the job was not ours any more, and nothing was written.
    pub held: bool,
    /// Events that were new.
    pub events: u64,
    /// Observations that were new.
    pub observations: u64,
}

/// The parallel arrays of `event_insert`, in its order.
pub(super) struct Columns<'a> {
    pub(super) ids: Vec<&'a [u8]>,
    pub(super) keys: Vec<i64>,
    pub(super) created_ats: Vec<i64>,
    pub(super) pubkeys: Vec<&'a [u8]>,
    pub(super) kinds: Vec<i32>,
    pub(super) tags: Vec<Vec<u8>>,
    pub(super) contents: Vec<&'a [u8]>,
    pub(super) sigs: Vec<Option<&'a [u8]>>,
    pub(super) d_tags: Vec<Option<&'a [u8]>>,
    pub(super) tag_hashes: Vec<Option<String>>,
}

impl<'a> Columns<'a> {
    /// In a lightweight archive no signature is kept and no tag indexed; tags and content stay until they are mined.
    pub(super) fn of(rows: impl Iterator<Item = &'a EventRow>, light: bool) -> Self {
        let events: Vec<&'a Event> = rows.map(|row| &*row.event).collect();
        let events = || events.iter().copied();
        Self {
            ids: events().map(|e| e.id_bytes().as_slice()).collect(),
            keys: events().map(Event::key).collect(),
            created_ats: events().map(Event::created_at).collect(),
            pubkeys: events().map(|e| e.pubkey().as_slice()).collect(),
            kinds: events().map(|e| i32::from(e.kind())).collect(),
            tags: events().map(|e| e.tags_json().into_bytes()).collect(),
            contents: events().map(|e| e.content().as_bytes()).collect(),
            sigs: events().map(|e| (!light).then(|| e.sig().as_slice())).collect(),
            d_tags: events().map(|e| e.d_tag().map(str::as_bytes)).collect(),
            // One array literal per event: arrays of arrays must be rectangular in PostgreSQL.
            tag_hashes: events().map(|e| (!light).then(|| hashes_literal(e))).collect(),
        }
    }
}

fn hashes_literal(event: &Event) -> String {
    let hashes: Vec<String> = event.tag_hashes().iter().map(i64::to_string).collect();
    format!("{{{}}}", hashes.join(","))
}

/// The parallel arrays of `coverage_put`; all null when coverage stays as it is.
#[derive(Default)]
pub(super) struct CoverageColumns {
    pub(super) sinces: Option<Vec<i64>>,
    pub(super) untils: Option<Vec<i64>>,
    pub(super) grades: Option<Vec<String>>,
    pub(super) reasons: Option<Vec<String>>,
    pub(super) observed_ats: Option<Vec<i64>>,
}

impl CoverageColumns {
    pub(super) fn of(new: &NewCoverage<'_>) -> Self {
        let intervals = new.coverage.intervals();
        Self {
            sinces: Some(intervals.iter().map(Interval::since).collect()),
            untils: Some(intervals.iter().map(Interval::until).collect()),
            grades: Some(intervals.iter().map(|i| i.grade().to_string()).collect()),
            reasons: Some(intervals.iter().map(|i| i.reason().to_string()).collect()),
            observed_ats: Some(intervals.iter().map(Interval::observed_at).collect()),
        }
    }
}

impl Db {
    /// Stores one batch of a sync job in one fenced transaction.
    pub async fn sync_store(&self, batch: &StoreBatch<'_>) -> Result<Stored, DbError> {
        let new = Columns::of(batch.new.iter(), batch.light);
        let coverage = batch.coverage.as_ref().map(CoverageColumns::of).unwrap_or_default();
        let row = self
            .one(
                sqlx::query(
                    "SELECT held, new_events, new_observations FROM sync_store($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, \
                     $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26)",
                )
                .bind(batch.fence.job())
                .bind(batch.fence.worker())
                .bind(batch.fence.attempt())
                .bind(batch.relay_id)
                .bind(batch.seen_at)
                .bind(batch.delivered.iter().map(|(id, _)| id.as_bytes().as_slice()).collect::<Vec<_>>())
                .bind(batch.delivered.iter().map(|(id, at)| event_key(*at, id)).collect::<Vec<_>>())
                .bind(new.ids)
                .bind(new.keys)
                .bind(new.created_ats)
                .bind(new.pubkeys)
                .bind(new.kinds)
                .bind(new.tags)
                .bind(new.contents)
                .bind(new.sigs)
                .bind(new.d_tags)
                .bind(new.tag_hashes)
                .bind(batch.coverage.as_ref().map(|c| c.class))
                .bind(coverage.sinces)
                .bind(coverage.untils)
                .bind(coverage.grades)
                .bind(coverage.reasons)
                .bind(coverage.observed_ats)
                .bind(batch.next.map(|(next, _, _)| next.as_secs_f64()))
                .bind(batch.next.map(|(_, slack, _)| i32::try_from(slack.as_secs()).unwrap_or(i32::MAX)))
                .bind(batch.next.map(|(_, _, why)| why)),
            )
            .await?;
        Ok(Stored {
            held: get(&row, "held")?,
            events: small_count(&row, "new_events")?,
            observations: small_count(&row, "new_observations")?,
        })
    }

    /// Relays, events and observations in one call, for imports; returns how many observations were new.
    pub async fn event_relay_insert_cascade(
        &self,
        seen: &[(EventRow, RelayUrl, i64)],
    ) -> Result<u64, DbError> {
        let new = Columns::of(seen.iter().map(|(row, _, _)| row), false);
        let row = self
            .one(
                sqlx::query(
                    "SELECT event_relay_insert_cascade($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $13) AS n",
                )
                .bind(new.ids)
                .bind(new.keys)
                .bind(new.created_ats)
                .bind(new.pubkeys)
                .bind(new.kinds)
                .bind(new.tags)
                .bind(new.contents)
                .bind(new.sigs)
                .bind(new.d_tags)
                .bind(new.tag_hashes)
                .bind(seen.iter().map(|(_, url, _)| url.as_str().to_owned()).collect::<Vec<_>>())
                .bind(seen.iter().map(|(_, url, _)| url.network().as_str().to_owned()).collect::<Vec<_>>())
                .bind(seen.iter().map(|(_, _, at)| *at).collect::<Vec<_>>()),
            )
            .await?;
        small_count(&row, "n")
    }

    /// Sets aside one event the database refused, with its reason.
    pub async fn event_quarantine_insert(
        &self,
        relay_id: i32,
        seen_at: i64,
        reason: &str,
        event: &Event,
    ) -> Result<u64, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT event_quarantine_insert($1, $2, $3, $4, $5) AS n")
                    .bind(vec![relay_id])
                    .bind(vec![seen_at])
                    .bind(vec![reason.to_owned()])
                    .bind(vec![event.id().as_bytes().to_vec()])
                    .bind(vec![event.to_json().into_bytes()]),
            )
            .await?;
        small_count(&row, "n")
    }

    /// The coverage of one relay and filter class.
    pub async fn coverage_get(&self, relay_id: i32, class: &str) -> Result<Coverage, DbError> {
        let rows = self
            .all(
                sqlx::query(
                    "SELECT since_at, until_at, grade, reason, observed_at FROM coverage_get($1, $2)",
                )
                .bind(relay_id)
                .bind(class),
            )
            .await?;
        let corrupt = |row: String, problem: String| DbError::Corrupt {
            table: "coverage",
            column: "since_at",
            row,
            problem,
        };
        let mut intervals = Vec::with_capacity(rows.len());
        for row in &rows {
            let (since, until): (i64, i64) = (get(row, "since_at")?, get(row, "until_at")?);
            let key = || format!("relay_id={relay_id} class={class} since_at={since}");
            let grade: String = get(row, "grade")?;
            let reason: String = get(row, "reason")?;
            intervals.push(
                Interval::new(
                    since,
                    until,
                    word(&grade, "coverage", "grade", key)?,
                    word(&reason, "coverage", "reason", key)?,
                    get(row, "observed_at")?,
                )
                .map_err(|error| corrupt(key(), error.to_string()))?,
            );
        }
        Coverage::from_intervals(intervals)
            .map_err(|error| corrupt(format!("relay_id={relay_id} class={class}"), error.to_string()))
    }
}
