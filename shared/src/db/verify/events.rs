//! Events row by row: hash, signature, key, and a body where there must be one and nowhere else.

use sqlx::postgres::PgRow;

use super::super::rows::get;
use super::super::{Db, DbError};
use super::{BATCH, Sample, VerifyProgress, VerifyReport, patiently};
use crate::models::{Event, EventError, EventId, event_key};

/// A share is told apart in so many steps: a power of two.
const STEPS: i64 = 1 << 20;

const COLUMNS: &str = "event_key, id, pubkey, created_at, kind, fate, tags, content, sig, d_tag, tag_hashes,
    EXISTS (SELECT FROM event_collision c WHERE c.id = event.id AND c.event_key = event.event_key) AS collided";

/// What a row turned out to be, or the column at fault and why.
type Finding = Result<Kept, (&'static str, String)>;

/// How much of an event is there.
enum Kept {
    Body,
    NoBody,
    Row,
}

impl Db {
    pub(super) async fn verify_events(
        &self,
        report: &mut VerifyReport,
        sample: Sample,
        progress: &mut (dyn FnMut(VerifyProgress) + Send),
    ) -> Result<(), DbError> {
        let light =
            self.one(sqlx::query("SELECT light_at IS NOT NULL AS light FROM archive_setting")).await?;
        let light: bool = get(&light, "light")?;
        let of = self.sample_size(sample).await?;
        let mut done = 0;
        let mut at = if matches!(sample, Sample::Newest(_)) { i64::MAX } else { -1 };
        loop {
            let look = async || match sample {
                Sample::Newest(n) => self.newest(at, n.saturating_sub(done)).await,
                Sample::Share(share, seed) => self.drawn(at, share, seed).await,
                Sample::All => self.following(at).await,
            };
            let rows = patiently(look).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            at = get(last, "event_key")?;
            done += rows.len() as u64;
            for row in &rows {
                match check_event(row, light)? {
                    Ok(Kept::Body) => report.events += 1,
                    Ok(Kept::NoBody) => report.bodiless += 1,
                    Ok(Kept::Row) => report.unkept += 1,
                    Err((column, problem)) => {
                        report.events += 1;
                        let key: i64 = get(row, "event_key")?;
                        report.add(DbError::Corrupt {
                            table: "event",
                            column,
                            row: format!("event_key={key}"),
                            problem,
                        })?;
                    }
                }
            }
            progress(VerifyProgress { stage: "events", done, of });
        }
    }

    /// How many events will be looked at, as the server estimates.
    async fn sample_size(&self, sample: Sample) -> Result<Option<u64>, DbError> {
        let all = self.fleet_stats().await?.events;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an estimate"
        )]
        let share = |share: f64| (all as f64 * share) as u64;
        Ok(match sample {
            // After a crash the server knows nothing of its rows.
            _ if all == 0 => None,
            Sample::Newest(n) => Some(n.min(all)),
            Sample::Share(of, _) => Some(share(of)),
            Sample::All => Some(all),
        })
    }

    async fn newest(&self, before: i64, left: u64) -> Result<Vec<PgRow>, DbError> {
        let batch = i32::try_from(left).unwrap_or(BATCH).min(BATCH);
        let sql =
            format!("SELECT {COLUMNS} FROM event WHERE event_key < $1 ORDER BY event_key DESC LIMIT $2");
        self.all(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(before).bind(batch)).await
    }

    async fn following(&self, after: i64) -> Result<Vec<PgRow>, DbError> {
        let sql = format!("SELECT {COLUMNS} FROM event WHERE event_key > $1 ORDER BY event_key LIMIT $2");
        self.all(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(after).bind(BATCH)).await
    }

    /// The draw reads keys only, out of their index; then the rows that were drawn.
    async fn drawn(&self, after: i64, share: f64, seed: i64) -> Result<Vec<PgRow>, DbError> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            reason = "between 0 and STEPS"
        )]
        let below = (share.clamp(0.0, 1.0) * STEPS as f64).ceil() as i64;
        let keys = self
            .all(
                sqlx::query(
                    "SELECT event_key FROM event WHERE event_key > $1 AND (hashint8extended(event_key, $2) & $3) < $4 \
                     ORDER BY event_key LIMIT $5",
                )
                .bind(after)
                .bind(seed)
                .bind(STEPS - 1)
                .bind(below)
                .bind(BATCH),
            )
            .await?;
        let keys: Vec<i64> = keys.iter().map(|row| get(row, "event_key")).collect::<Result<_, _>>()?;
        let sql = format!("SELECT {COLUMNS} FROM event WHERE event_key = ANY ($1) ORDER BY event_key");
        self.all(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(keys)).await
    }
}

fn check_event(row: &PgRow, light: bool) -> Result<Finding, DbError> {
    let (id, pubkey): (Vec<u8>, Vec<u8>) = (get(row, "id")?, get(row, "pubkey")?);
    let (created_at, kind): (i64, i32) = (get(row, "created_at")?, get(row, "kind")?);
    let bytes = |column| get::<Option<Vec<u8>>>(row, column);
    let (tags, content, sig, d_tag) = (bytes("tags")?, bytes("content")?, bytes("sig")?, bytes("d_tag")?);
    let hashes: Option<Vec<i64>> = get(row, "tag_hashes")?;
    let Ok(event_id) = EventId::try_from(&id[..]) else {
        return Ok(Err(("id", EventError::Shape("id").to_string())));
    };
    let (key, collided): (i64, bool) = (get(row, "event_key")?, get(row, "collided")?);
    if key != event_key(created_at, &event_id) && !collided {
        return Ok(Err((
            "event_key",
            "it does not follow from time and id, and is no collision's".to_owned(),
        )));
    }
    let fate: i16 = get(row, "fate")?;
    if fate != 0 {
        let bare =
            tags.is_none() && content.is_none() && sig.is_none() && d_tag.is_none() && hashes.is_none();
        return Ok(if bare {
            Ok(Kept::Row)
        } else {
            Err(("fate", format!("an event of fate {fate} has a body")))
        });
    }
    let (tags, content) = match (tags, content) {
        (Some(tags), Some(content)) if sig.is_some() || light => (tags, content),
        (Some(_), Some(_)) => return Ok(Err(("sig", "an archived event has no signature".to_owned()))),
        (None, None) if light && sig.is_none() && hashes.is_none() => return Ok(Ok(Kept::NoBody)),
        _ => return Ok(Err(("content", "an archived event has no body".to_owned()))),
    };
    // Waiting to be mined in a lightweight archive: no signature is kept, the hash can be checked all the same.
    let signed = sig.is_some();
    let sig = sig.unwrap_or_else(|| vec![0; 64]);
    let event = match rebuild(event_id, &pubkey, created_at, kind, &tags, content, &sig) {
        Ok(event) => event,
        Err((_, EventError::BadId)) => {
            return Ok(Err(("id", "the id is not the hash of the row".to_owned())));
        }
        Err((column, error)) => return Ok(Err((column, error.to_string()))),
    };
    if event.d_tag().map(str::as_bytes) != d_tag.as_deref() {
        return Ok(Err(("d_tag", "it is not the event's".to_owned())));
    }
    if hashes.is_some_and(|hashes| hashes != event.tag_hashes()) {
        return Ok(Err(("tag_hashes", "they are not those of the tags".to_owned())));
    }
    let verified = if signed { event.verify_signature() } else { Ok(()) };
    Ok(verified.map(|()| Kept::Body).map_err(|error| ("sig", error.to_string())))
}

/// The event of a row, or the column that cannot be part of one.
pub(in crate::db) fn rebuild(
    id: EventId,
    pubkey: &[u8],
    created_at: i64,
    kind: i32,
    tags: &[u8],
    content: Vec<u8>,
    sig: &[u8],
) -> Result<Event, (&'static str, EventError)> {
    let pubkey = <[u8; 32]>::try_from(pubkey).map_err(|_| ("pubkey", EventError::Shape("pubkey")))?;
    let kind = u16::try_from(kind).map_err(|_| ("kind", EventError::Range("kind")))?;
    let tags = std::str::from_utf8(tags).map_err(|_| ("tags", EventError::Shape("tags")))?;
    let tags = Event::parse_tags(tags).map_err(|error| ("tags", error))?;
    let content = String::from_utf8(content).map_err(|_| ("content", EventError::Shape("content")))?;
    let sig = <[u8; 64]>::try_from(sig).map_err(|_| ("sig", EventError::Shape("sig")))?;
    Event::from_parts(id, pubkey, created_at, kind, tags, content, sig).map_err(|error| ("id", error))
}
