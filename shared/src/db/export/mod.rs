//! Reading the archive out: batch after batch in key order, each in a transaction of its own.
//!
//! No snapshot is held, neither for hours nor through a pooler: what belongs to a data set is said by the rows
//! themselves. An event belongs to it when it is archived and an observation of it was made by `as_of`; observations
//! are written once and never changed, so the same scope gives the same rows whenever it is read, and again after an
//! interruption. What is read while a month moves out of the default partitions is read again: it was looked for where it
//! was. Two things are exceptions: what an operator or a policy deletes meanwhile is not there, and an import of
//! another archive's export adds observations with their old times. A third is meant: what its author asks to have deleted, or
//! what has expired, is left out from that moment on, whether maintenance has come to it or not.

mod left_out;

use std::collections::BTreeMap;

use super::rows::{count, get};
use super::verify::rebuild;
use super::{Db, DbError};
use crate::models::{Event, EventId, RelayUrl, Unkept, event_key};

pub use left_out::LeftOut;

/// Events looked at per round trip.
const BATCH: i32 = 1_000;
/// Bytes of tags and content per round trip, the first event aside.
const BATCH_BYTES: i64 = 8 * 1024 * 1024;
/// Observations per round trip, if every relay has every event.
const OBSERVATIONS: usize = 50_000;
/// An event whose key was taken has one of the next: by so much the stretch of keys is wider than that of time.
const KEY_SLACK: i64 = 1 << 12;
/// At the end of all keys the free one is looked for this far below (`event_insert`).
const KEY_END: i64 = i64::MAX - (1 << 33);

/// What is read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExportScope {
    /// First second of `created_at`, inclusive.
    pub since: i64,
    /// Last second, inclusive.
    pub until: i64,
    /// Kinds; empty: all.
    pub kinds: Vec<u16>,
    /// `relay.id`s; empty: all. Only their observations count then.
    pub relays: Vec<i32>,
    /// Observations made later are not there, Unix seconds.
    pub as_of: i64,
    /// Private and protected events are read out where their class is named here.
    pub with: Vec<Unkept>,
}

impl ExportScope {
    /// The keys that events of this stretch of time can have: (exclusive, inclusive).
    fn keys(&self) -> (i64, i64) {
        let low = event_key(self.since, &EventId([0; 32])).min(KEY_END);
        let high = event_key(self.until, &EventId([0xff; 32]));
        (low - 1, high.saturating_add(KEY_SLACK))
    }

    /// Where reading begins: a cursor before the first key.
    pub fn begin(&self) -> i64 {
        self.keys().0
    }
}

/// An event on one relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenOn {
    /// `relay.id`.
    pub relay_id: i32,
    /// When it was first seen there, Unix seconds.
    pub seen_at: i64,
    /// Whether the relay only claimed it.
    pub claimed: bool,
}

/// One event of the scope.
#[derive(Debug, Clone)]
pub struct ExportItem {
    /// `event.event_key`: the cursor behind it.
    pub key: i64,
    /// The event and where it was seen, by relay id; or why it is left out.
    pub event: Result<(Event, Vec<SeenOn>), LeftOut>,
}

/// What one round trip read.
#[derive(Debug, Clone)]
pub struct ExportBatch {
    /// Where to go on; `None`: this was the last.
    pub cursor: Option<i64>,
    /// Rows looked at, those out of the filter included.
    pub scanned: u64,
    /// Events of the scope, in key order.
    pub items: Vec<ExportItem>,
}

/// How much of a relay's timeline is known, by grade and reason, within the scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportCoverage {
    /// The relay.
    pub relay: String,
    /// Filter class.
    pub class: String,
    /// Grade.
    pub grade: String,
    /// Why not better; `none` for proof.
    pub reason: String,
    /// Seconds of `created_at`.
    pub seconds: i64,
    /// First of them.
    pub since: i64,
    /// Last of them.
    pub until: i64,
}

const BY_TIME: &str = "
SELECT event_key, created_at, kind, fate, wanted, id, pubkey, tags, content, sig FROM (
    SELECT s.*, sum(s.size) OVER (ORDER BY s.event_key) - s.size AS before FROM (
        SELECT x.event_key, x.created_at, x.kind, x.fate, w.wanted, x.id, x.pubkey, x.sig,
               CASE WHEN w.wanted AND x.fate = 0 THEN x.tags END AS tags,
               CASE WHEN w.wanted AND x.fate = 0 THEN x.content END AS content,
               CASE WHEN w.wanted AND x.fate = 0 THEN coalesce(octet_length(x.tags) + octet_length(x.content), 0) ELSE 0 END AS size
        FROM event x
        CROSS JOIN LATERAL (SELECT x.created_at BETWEEN $3 AND $4 AND (cardinality($5::integer[]) = 0 OR x.kind = ANY($5)) AS wanted) w
        WHERE x.event_key > $1 AND x.event_key <= $2
        ORDER BY x.event_key LIMIT $6) s) b
WHERE before < $7 ORDER BY event_key";

/// The smallest keys of all these relays are among the smallest of each: every relay is read in the order of its index.
const BY_RELAY: &str = "
SELECT event_key, created_at, kind, fate, wanted, id, pubkey, tags, content, sig FROM (
    SELECT s.*, sum(s.size) OVER (ORDER BY s.event_key) - s.size AS before FROM (
        SELECT k.event_key, x.created_at, x.kind, x.fate, x.wanted, x.id, x.pubkey, x.sig,
               CASE WHEN x.wanted AND x.fate = 0 THEN x.tags END AS tags,
               CASE WHEN x.wanted AND x.fate = 0 THEN x.content END AS content,
               CASE WHEN x.wanted AND x.fate = 0 THEN coalesce(octet_length(x.tags) + octet_length(x.content), 0) ELSE 0 END AS size
        FROM (SELECT DISTINCT o.event_key FROM unnest($8::integer[]) r(id)
              CROSS JOIN LATERAL (
                  SELECT y.event_key FROM event_relay y
                  WHERE y.relay_id = r.id AND y.event_key > $1 AND y.event_key <= $2 AND y.seen_at <= $9
                  ORDER BY y.event_key LIMIT $6) o
              ORDER BY 1 LIMIT $6) k
        LEFT JOIN LATERAL (
            SELECT z.*, z.created_at BETWEEN $3 AND $4 AND (cardinality($5::integer[]) = 0 OR z.kind = ANY($5)) AS wanted
            FROM event z WHERE z.event_key = k.event_key AND z.event_key > $1 AND z.event_key <= $2 OFFSET 0) x ON true) s) b
WHERE before < $7 ORDER BY event_key";

const OBSERVED: &str = "
SELECT o.event_key, o.relay_id, o.seen_at, o.evidence FROM unnest($1::bigint[]) k(key)
CROSS JOIN LATERAL (
    SELECT x.event_key, x.relay_id, x.seen_at, x.evidence FROM event_relay x
    WHERE x.event_key = k.key AND x.event_key BETWEEN $2 AND $3 AND x.seen_at <= $4
      AND (cardinality($5::integer[]) = 0 OR x.relay_id = ANY($5)) OFFSET 0) o
ORDER BY 1, 2";

const COVERED: &str = "
SELECT r.url, c.class, s.grade, s.reason, min(greatest(c.since_at, $1)) AS since_at, max(least(c.until_at, $2)) AS until_at,
       sum(least(c.until_at, $2) - greatest(c.since_at, $1) + 1)::bigint AS seconds
FROM coverage c JOIN relay r ON r.id = c.relay_id
CROSS JOIN LATERAL (SELECT CASE WHEN c.settled_at <= $3 THEN c.grade ELSE 'unknown' END AS grade,
                           CASE WHEN c.settled_at <= $3 THEN c.reason ELSE 'changed_later' END AS reason) s
WHERE c.until_at >= $1 AND c.since_at <= $2 AND c.observed_at <= $3 AND (cardinality($4::integer[]) = 0 OR c.relay_id = ANY($4))
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4";

impl Db {
    /// Every relay by its id.
    pub async fn export_relays(&self) -> Result<BTreeMap<i32, String>, DbError> {
        let rows = self.all(sqlx::query("SELECT id, url FROM relay")).await?;
        let mut relays = BTreeMap::new();
        for row in &rows {
            let (id, url): (i32, String) = (get(row, "id")?, get(row, "url")?);
            Self::stored_url(&url, "relay", || format!("id={id}"))?;
            relays.insert(id, url);
        }
        Ok(relays)
    }

    /// The ids of these relays; `None` in the place of one that is not known.
    pub async fn export_relay_ids(&self, urls: &[RelayUrl]) -> Result<Vec<Option<i32>>, DbError> {
        let texts: Vec<String> = urls.iter().map(|url| url.as_str().to_owned()).collect();
        let rows =
            self.all(sqlx::query("SELECT id, url FROM relay WHERE url = ANY($1)").bind(&texts)).await?;
        let mut known: BTreeMap<String, i32> = BTreeMap::new();
        for row in &rows {
            known.insert(get(row, "url")?, get(row, "id")?);
        }
        Ok(texts.iter().map(|text| known.get(text).copied()).collect())
    }

    /// The names of all vantages.
    pub async fn export_vantages(&self) -> Result<Vec<String>, DbError> {
        let rows = self.all(sqlx::query("SELECT name FROM vantage ORDER BY name")).await?;
        rows.iter().map(|row| get(row, "name")).collect()
    }

    /// How many rows a reading of the scope looks at, for a bar.
    pub async fn export_count(&self, scope: &ExportScope) -> Result<u64, DbError> {
        let (low, high) = scope.keys();
        let query = if scope.relays.is_empty() {
            sqlx::query("SELECT count(*) AS n FROM event WHERE event_key > $1 AND event_key <= $2")
        } else {
            sqlx::query(
                "SELECT count(DISTINCT event_key) AS n FROM event_relay
                 WHERE event_key > $1 AND event_key <= $2 AND relay_id = ANY($3) AND seen_at <= $4",
            )
        };
        let query = query.bind(low).bind(high);
        let query =
            if scope.relays.is_empty() { query } else { query.bind(scope.relays.clone()).bind(scope.as_of) };
        count(&self.one(query).await?, "n")
    }

    /// How well the relays of the scope are known within it, as established by `as_of`; what is later than that is not
    /// counted. An interval that grew since has the grade `unknown` and the reason `changed_later`: how much of it was
    /// established by then is not kept.
    pub async fn export_coverage(&self, scope: &ExportScope) -> Result<Vec<ExportCoverage>, DbError> {
        let rows = self
            .all(
                sqlx::query(COVERED)
                    .bind(scope.since)
                    .bind(scope.until.min(scope.as_of))
                    .bind(scope.as_of)
                    .bind(scope.relays.clone()),
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(ExportCoverage {
                    relay: get(row, "url")?,
                    class: get(row, "class")?,
                    grade: get(row, "grade")?,
                    reason: get(row, "reason")?,
                    seconds: get(row, "seconds")?,
                    since: get(row, "since_at")?,
                    until: get(row, "until_at")?,
                })
            })
            .collect()
    }

    /// The next events of the scope behind `after`, at most 1,000 and about 8 MiB; `relays` is how many there are.
    pub async fn export_batch(
        &self,
        scope: &ExportScope,
        after: i64,
        relays: usize,
    ) -> Result<ExportBatch, DbError> {
        let mut parts = self.export_parts().await?;
        loop {
            let batch = self.read_batch(scope, after, relays).await?;
            let now = self.export_parts().await?;
            if now == parts {
                return Ok(batch);
            }
            parts = now;
        }
    }

    /// Of which parts the archive consists.
    async fn export_parts(&self) -> Result<Vec<i64>, DbError> {
        let row = self
            .one(sqlx::query(
                "SELECT coalesce(array_agg(inhrelid::bigint ORDER BY inhrelid), '{}') AS parts FROM pg_inherits
                 WHERE inhparent IN ('public.event'::regclass, 'public.event_relay'::regclass)",
            ))
            .await?;
        get(&row, "parts")
    }

    async fn read_batch(
        &self,
        scope: &ExportScope,
        after: i64,
        relays: usize,
    ) -> Result<ExportBatch, DbError> {
        let sql = if scope.relays.is_empty() { BY_TIME } else { BY_RELAY };
        let mut query = sqlx::query(sql)
            .bind(after)
            .bind(scope.keys().1)
            .bind(scope.since)
            .bind(scope.until)
            .bind(scope.kinds.iter().copied().map(i32::from).collect::<Vec<_>>())
            .bind(BATCH)
            .bind(BATCH_BYTES);
        if !scope.relays.is_empty() {
            query = query.bind(scope.relays.clone()).bind(scope.as_of);
        }
        let rows = self.all(query).await?;
        let mut items = Vec::with_capacity(rows.len());
        for row in &rows {
            if get::<Option<bool>>(row, "wanted")? == Some(true) {
                items.push(ExportItem { key: get(row, "event_key")?, event: read(row)? });
            }
        }
        self.withhold(&scope.with, &mut items).await?;
        self.observe(scope, &mut items, relays).await?;
        let cursor = rows.last().map(|row| get(row, "event_key")).transpose()?;
        Ok(ExportBatch { cursor, scanned: rows.len() as u64, items })
    }

    /// Adds to each event where it was seen, and leaves out what nobody had seen.
    async fn observe(
        &self,
        scope: &ExportScope,
        items: &mut [ExportItem],
        relays: usize,
    ) -> Result<(), DbError> {
        let keys: Vec<i64> = items.iter().filter(|item| item.event.is_ok()).map(|item| item.key).collect();
        let mut seen: BTreeMap<i64, Vec<SeenOn>> = BTreeMap::new();
        for part in keys.chunks((OBSERVATIONS / relays.max(1)).max(1)) {
            let (Some(first), Some(last)) = (part.first(), part.last()) else { continue };
            let rows = self
                .all(
                    sqlx::query(OBSERVED)
                        .bind(part.to_vec())
                        .bind(first)
                        .bind(last)
                        .bind(scope.as_of)
                        .bind(scope.relays.clone()),
                )
                .await?;
            for row in &rows {
                seen.entry(get(row, "event_key")?).or_default().push(SeenOn {
                    relay_id: get(row, "relay_id")?,
                    seen_at: get(row, "seen_at")?,
                    claimed: get::<i16>(row, "evidence")? == 1,
                });
            }
        }
        for item in items.iter_mut() {
            if let Ok((_, on)) = &mut item.event {
                match seen.remove(&item.key) {
                    Some(found) => *on = found,
                    None => item.event = Err(LeftOut::Unseen),
                }
            }
        }
        Ok(())
    }
}

/// The event of a row, or why it is none that may be read out.
fn read(row: &sqlx::postgres::PgRow) -> Result<Result<(Event, Vec<SeenOn>), LeftOut>, DbError> {
    match get::<i16>(row, "fate")? {
        0 => {}
        1 => return Ok(Err(LeftOut::Skipped)),
        2 => return Ok(Err(LeftOut::Deleted)),
        _ => return Ok(Err(LeftOut::Expired)),
    }
    let bytes = |column| get::<Option<Vec<u8>>>(row, column);
    let (Some(tags), Some(content), Some(sig)) = (bytes("tags")?, bytes("content")?, bytes("sig")?) else {
        return Ok(Err(LeftOut::Bodiless));
    };
    let (id, pubkey): (Vec<u8>, Vec<u8>) = (get(row, "id")?, get(row, "pubkey")?);
    let Ok(id) = EventId::try_from(id.as_slice()) else { return Ok(Err(LeftOut::Corrupt)) };
    let event = rebuild(id, &pubkey, get(row, "created_at")?, get(row, "kind")?, &tags, content, &sig);
    Ok(event.map(|event| (event, Vec::new())).map_err(|_| LeftOut::Corrupt))
}
