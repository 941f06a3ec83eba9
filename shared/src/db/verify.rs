//! Validating again what is stored: URLs are re-parsed, documents and events re-hashed.
//!
//! A mismatch is a finding with table, column and row, not an error: one bad row must not hide the next.

use super::rows::get;
use super::{Db, DbError};
use crate::models::{Event, EventError, EventId, Metadata};

/// A stored value that does not validate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corruption {
    /// Table.
    pub table: String,
    /// Column.
    pub column: String,
    /// The row's key.
    pub row: String,
    /// What is wrong.
    pub problem: String,
}

/// What was looked at and what was found.
#[derive(Debug, Clone, Default)]
pub struct VerifyReport {
    /// Relay URLs parsed.
    pub relays: u64,
    /// Documents re-hashed.
    pub documents: u64,
    /// Events re-hashed and their signatures checked.
    pub events: u64,
    /// What does not validate.
    pub corruptions: Vec<Corruption>,
}

/// Rows per round trip.
const BATCH: i32 = 500;

impl VerifyReport {
    fn add(&mut self, error: DbError) -> Result<(), DbError> {
        match error {
            DbError::Corrupt { table, column, row, problem } => {
                self.corruptions.push(Corruption {
                    table: table.to_owned(),
                    column: column.to_owned(),
                    row,
                    problem,
                });
                Ok(())
            }
            other => Err(other),
        }
    }
}

impl Db {
    /// Checks every relay URL and document, and the newest `events` events (`None` = all).
    pub async fn verify(&self, events: Option<u64>) -> Result<VerifyReport, DbError> {
        let mut report = VerifyReport::default();
        self.verify_relays(&mut report).await?;
        self.verify_documents(&mut report).await?;
        self.verify_events(&mut report, events).await?;
        Ok(report)
    }

    async fn verify_relays(&self, report: &mut VerifyReport) -> Result<(), DbError> {
        let mut after = 0_i32;
        loop {
            let rows = self
                .all(
                    sqlx::query("SELECT id, url, network FROM relay WHERE id > $1 ORDER BY id LIMIT $2")
                        .bind(after)
                        .bind(BATCH),
                )
                .await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = get(last, "id")?;
            for row in &rows {
                report.relays += 1;
                let (id, url, network): (i32, String, String) =
                    (get(row, "id")?, get(row, "url")?, get(row, "network")?);
                match Self::stored_url(&url, "relay", || format!("id={id}")) {
                    Ok(parsed) if parsed.network().as_str() == network => {}
                    Ok(parsed) => report.add(DbError::Corrupt {
                        table: "relay",
                        column: "network",
                        row: format!("id={id}"),
                        problem: format!("{network:?} is stored, {} follows from the URL", parsed.network()),
                    })?,
                    Err(error) => report.add(error)?,
                }
            }
        }
    }

    async fn verify_documents(&self, report: &mut VerifyReport) -> Result<(), DbError> {
        let mut after: (Vec<u8>, String) = (Vec::new(), String::new());
        loop {
            let rows = self
                .all(
                    sqlx::query(
                        "SELECT id, type, data::text AS data FROM metadata WHERE (id, type) > ($1, $2) ORDER BY id, type LIMIT $3",
                    )
                    .bind(&after.0)
                    .bind(&after.1)
                    .bind(BATCH),
                )
                .await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = (get(last, "id")?, get(last, "type")?);
            for row in &rows {
                report.documents += 1;
                let (id, kind, data): (Vec<u8>, String, String) =
                    (get(row, "id")?, get(row, "type")?, get(row, "data")?);
                if let Err(error) = Metadata::from_db(&kind, &id, &data) {
                    report.add(DbError::Corrupt {
                        table: "metadata",
                        column: "id",
                        row: format!("id={} type={kind}", hex::encode(&id)),
                        problem: error.to_string(),
                    })?;
                }
            }
        }
    }

    async fn verify_events(&self, report: &mut VerifyReport, limit: Option<u64>) -> Result<(), DbError> {
        let mut before = i64::MAX;
        let mut left = limit.unwrap_or(u64::MAX);
        while left > 0 {
            let batch = i32::try_from(left).unwrap_or(BATCH).min(BATCH);
            let rows = self
                .all(
                    sqlx::query(
                        "SELECT event_key, id, pubkey, created_at, kind, tags, content, sig FROM event \
                         WHERE event_key < $1 AND fate = 0 ORDER BY event_key DESC LIMIT $2",
                    )
                    .bind(before)
                    .bind(batch),
                )
                .await?;
            let Some(last) = rows.last() else { return Ok(()) };
            before = get(last, "event_key")?;
            left = left.saturating_sub(rows.len() as u64);
            for row in &rows {
                report.events += 1;
                let key: i64 = get(row, "event_key")?;
                if let Err((column, problem)) = check_event(row)? {
                    report.add(DbError::Corrupt {
                        table: "event",
                        column,
                        row: format!("event_key={key}"),
                        problem,
                    })?;
                }
            }
        }
        Ok(())
    }
}

type Finding = Result<(), (&'static str, String)>;

fn check_event(row: &sqlx::postgres::PgRow) -> Result<Finding, DbError> {
    let (id, pubkey): (Vec<u8>, Vec<u8>) = (get(row, "id")?, get(row, "pubkey")?);
    let (created_at, kind): (i64, i32) = (get(row, "created_at")?, get(row, "kind")?);
    let bytes = |column| get::<Option<Vec<u8>>>(row, column);
    let (Some(tags), Some(content), Some(sig)) = (bytes("tags")?, bytes("content")?, bytes("sig")?) else {
        return Ok(Err(("content", "an archived event has no body".to_owned())));
    };
    let event = match rebuild(&id, &pubkey, created_at, kind, &tags, content, &sig) {
        Ok(event) => event,
        Err((_, EventError::BadId)) => {
            return Ok(Err(("id", "the id is not the hash of the row".to_owned())));
        }
        Err((column, error)) => return Ok(Err((column, error.to_string()))),
    };
    Ok(event.verify_signature().map_err(|error| ("sig", error.to_string())))
}

/// The event of a row, or the column that cannot be part of one.
pub(super) fn rebuild(
    id: &[u8],
    pubkey: &[u8],
    created_at: i64,
    kind: i32,
    tags: &[u8],
    content: Vec<u8>,
    sig: &[u8],
) -> Result<Event, (&'static str, EventError)> {
    let id = EventId::try_from(id).map_err(|_| ("id", EventError::Shape("id")))?;
    let pubkey = <[u8; 32]>::try_from(pubkey).map_err(|_| ("pubkey", EventError::Shape("pubkey")))?;
    let kind = u16::try_from(kind).map_err(|_| ("kind", EventError::Range("kind")))?;
    let tags = std::str::from_utf8(tags).map_err(|_| ("tags", EventError::Shape("tags")))?;
    let tags = Event::parse_tags(tags).map_err(|error| ("tags", error))?;
    let content = String::from_utf8(content).map_err(|_| ("content", EventError::Shape("content")))?;
    let sig = <[u8; 64]>::try_from(sig).map_err(|_| ("sig", EventError::Shape("sig")))?;
    Event::from_parts(id, pubkey, created_at, kind, tags, content, sig).map_err(|error| ("id", error))
}
