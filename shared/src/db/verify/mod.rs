//! Validating again what is stored: URLs are re-parsed, documents and events re-hashed, signatures checked, and what
//! belongs together is looked for as a whole.
//!
//! A mismatch is a finding with table, column and row, not an error: one bad row must not hide the next. Memory is
//! bounded: rows come by the batch, and so many findings are kept.

mod events;
mod sets;

use super::rows::get;
use super::{Db, DbError};
use crate::models::Metadata;

pub(super) use events::rebuild;
pub use sets::SetLine;

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
    /// Archived events without a body, in an archive that is lightweight or once was: only their keys can be checked.
    pub bodiless: u64,
    /// Events that are known and not kept.
    pub unkept: u64,
    /// How many values do not validate.
    pub corrupt: u64,
    /// The first of them.
    pub corruptions: Vec<Corruption>,
}

/// Which events are looked at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sample {
    /// The newest so many.
    Newest(u64),
    /// A share of all, 0 to 1, drawn by the seed: the same seed draws the same events.
    Share(f64, i64),
    /// All.
    All,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifyProgress {
    /// What is looked at.
    pub stage: &'static str,
    /// How many of them were.
    pub done: u64,
    /// Of how many, about; `None`: unknown.
    pub of: Option<u64>,
}

/// Findings kept in memory and named; the others are counted.
const FINDINGS: usize = 1_000;

/// Rows per round trip.
const BATCH: i32 = 500;
/// Times something is looked at that may be seen in part, or not at all, because a month is made, moved or dropped.
const LOOKS: u32 = 3;

impl VerifyReport {
    fn add(&mut self, error: DbError) -> Result<(), DbError> {
        match error {
            DbError::Corrupt { table, column, row, problem } => {
                self.corrupt += 1;
                if self.corruptions.len() < FINDINGS {
                    let (table, column) = (table.to_owned(), column.to_owned());
                    self.corruptions.push(Corruption { table, column, row, problem });
                }
                Ok(())
            }
            other => Err(other),
        }
    }
}

/// Reads again where the server ended a statement to undo a deadlock: readers of every month meet whoever makes or moves one.
async fn patiently<T>(mut look: impl AsyncFnMut() -> Result<T, DbError>) -> Result<T, DbError> {
    for _ in 1..LOOKS {
        match look().await {
            Err(error) if error.is_deadlock() => {}
            other => return other,
        }
    }
    look().await
}

impl Db {
    /// Checks every relay URL and document, and the newest `events` events (`None` = all).
    pub async fn verify(&self, events: Option<u64>) -> Result<VerifyReport, DbError> {
        self.verify_rows(events.map_or(Sample::All, Sample::Newest), &mut |_| {}).await
    }

    /// Checks every relay URL and document, and a sample of the events, row by row.
    pub async fn verify_rows(
        &self,
        sample: Sample,
        progress: &mut (dyn FnMut(VerifyProgress) + Send),
    ) -> Result<VerifyReport, DbError> {
        let mut report = VerifyReport::default();
        self.verify_relays(&mut report).await?;
        progress(VerifyProgress { stage: "relays", done: report.relays, of: Some(report.relays) });
        self.verify_documents(&mut report).await?;
        progress(VerifyProgress { stage: "documents", done: report.documents, of: Some(report.documents) });
        self.verify_events(&mut report, sample, progress).await?;
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
}
