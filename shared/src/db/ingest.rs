//! What ingest asks and notes beside events and observations.

use std::sync::Arc;

use sqlx::postgres::{PgArguments, Postgres};
use sqlx::query::Query;

use super::pace::Pace;
use super::rows::{get, small_count};
use super::{Db, DbError};
use crate::clock;
use crate::models::{EnvelopeFacts, Event, EventId, Fence, RelayUrl, Target, Tombstone, event_key};

/// What the database says about the events of a page, by their position in the question, from 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownPage {
    known: Vec<Option<SigHead>>,
    marked: Vec<usize>,
}

/// The first bytes of our signature, where we hold one.
pub type SigHead = Option<[u8; 8]>;

impl KnownPage {
    /// Whether the event is known, and with what signature.
    pub fn known(&self, position: usize) -> Option<SigHead> {
        self.known.get(position).copied().flatten()
    }

    /// Whether the event's author has asked for deletions.
    pub fn is_marked(&self, position: usize) -> bool {
        self.marked.binary_search(&position).is_ok()
    }
}

/// An event of a page that does not verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForgeryRow {
    /// The id it claims.
    pub id: EventId,
    /// What does not verify.
    pub reason: &'static str,
    /// Whether we know an event of that id.
    pub known: bool,
}

/// A text of a page that is no event, or a forged one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecimenRow {
    /// Why ([`crate::models::EventError::as_str`]).
    pub reason: &'static str,
    /// Its beginning, at most 8 KiB.
    pub text: String,
    /// Bytes of all of it.
    pub bytes: usize,
}

/// A specimen as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecimenLine {
    /// Why it is no event, or none of that author.
    pub reason: String,
    /// When it came, Unix seconds.
    pub at: i64,
    /// Bytes of all of it.
    pub bytes: i32,
    /// Its beginning, at most 8 KiB; escaped where it is no text.
    pub event: String,
}

/// By what a dense second may be split.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DenseFacts {
    /// Kinds, those to ask for first in front.
    pub kinds: Vec<u16>,
    /// Authors, likewise.
    pub authors: Vec<[u8; 32]>,
}

impl Db {
    /// Which of these events are known, by what their envelopes claim; one round trip a page.
    pub async fn event_known(&self, events: &[&EnvelopeFacts]) -> Result<KnownPage, DbError> {
        if events.is_empty() {
            return Ok(KnownPage::default());
        }
        // One row of arrays: a row of its own for each event costs both sides more than the look.
        let row = self
            .one(
                sqlx::query(
                    "SELECT coalesce(array_agg(o), '{}') AS os, coalesce(array_agg(fate), '{}') AS fates, \
                     coalesce(array_agg(sig_head), '{}') AS heads FROM event_known($1, $2, $3)",
                )
                .bind(events.iter().map(|facts| facts.id.as_bytes().as_slice()).collect::<Vec<_>>())
                .bind(events.iter().map(|facts| event_key(facts.created_at, &facts.id)).collect::<Vec<_>>())
                .bind(events.iter().map(|facts| facts.pubkey.as_slice()).collect::<Vec<_>>()),
            )
            .await?;
        let (positions, fates): (Vec<i32>, Vec<i16>) = (get(&row, "os")?, get(&row, "fates")?);
        let heads: Vec<SigHead> = get(&row, "heads")?;
        let mut page = KnownPage { known: vec![None; events.len()], marked: Vec::new() };
        for ((position, fate), head) in positions.into_iter().zip(fates).zip(heads) {
            let position = usize::try_from(position).unwrap_or(1).saturating_sub(1);
            if fate < 0 {
                page.marked.push(position);
            } else if let Some(known) = page.known.get_mut(position) {
                *known = Some(head);
            }
        }
        page.marked.sort_unstable();
        Ok(page)
    }

    /// Remembers verified events without a body, with their fate; false when the job was not ours.
    pub async fn sync_note(&self, fence: &Fence, events: &[(Arc<Event>, i16)]) -> Result<bool, DbError> {
        let query = sqlx::query("SELECT sync_note($1, $2, $3, $4, $5, $6, $7, $8, $9) AS held")
            .bind(fence.job())
            .bind(fence.worker())
            .bind(fence.attempt());
        get(&self.one(noted(query, events)).await?, "held")
    }

    /// The same for an import; returns how many were new.
    pub async fn import_note(&self, events: &[(Arc<Event>, i16)]) -> Result<u64, DbError> {
        let query = sqlx::query("SELECT import_note($1, $2, $3, $4, $5, $6) AS n");
        small_count(&self.one(noted(query, events)).await?, "n")
    }

    /// Counts forgeries for the relay that served them; false when the job was not ours.
    pub async fn forgery_note(
        &self,
        fence: &Fence,
        relay_id: i32,
        at: i64,
        forged: &[ForgeryRow],
    ) -> Result<bool, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT forgery_note($1, $2, $3, $4, $5, $6, $7, $8) AS held")
                    .bind(fence.job())
                    .bind(fence.worker())
                    .bind(fence.attempt())
                    .bind(relay_id)
                    .bind(at)
                    .bind(forged.iter().map(|row| row.id.as_bytes().to_vec()).collect::<Vec<_>>())
                    .bind(forged.iter().map(|row| row.reason).collect::<Vec<_>>())
                    .bind(forged.iter().map(|row| row.known).collect::<Vec<_>>()),
            )
            .await?;
        get(&row, "held")
    }

    /// Keeps one text of each reason, where the relay has none of the last 24 hours; false when the job was not ours.
    pub async fn specimen_note(
        &self,
        fence: &Fence,
        relay_id: i32,
        at: i64,
        specimens: &[SpecimenRow],
    ) -> Result<bool, DbError> {
        let size = |row: &SpecimenRow| i32::try_from(row.bytes).unwrap_or(i32::MAX);
        let row = self
            .one(
                sqlx::query("SELECT specimen_note($1, $2, $3, $4, $5, $6, $7, $8) AS held")
                    .bind(fence.job())
                    .bind(fence.worker())
                    .bind(fence.attempt())
                    .bind(relay_id)
                    .bind(at)
                    .bind(specimens.iter().map(|row| row.reason).collect::<Vec<_>>())
                    .bind(specimens.iter().map(|row| row.text.as_bytes()).collect::<Vec<_>>())
                    .bind(specimens.iter().map(size).collect::<Vec<_>>()),
            )
            .await?;
        get(&row, "held")
    }

    /// The specimens of one relay, by reason; for who may SELECT.
    pub async fn relay_specimens(&self, url: &RelayUrl) -> Result<Vec<SpecimenLine>, DbError> {
        let sql = "SELECT reason, at, bytes, event FROM relay_specimens WHERE relay_url = $1 ORDER BY reason LIMIT 100";
        let rows = self.all(sqlx::query(sql).bind(url.as_str().to_owned())).await?;
        let line = |row| -> Result<SpecimenLine, DbError> {
            Ok(SpecimenLine {
                reason: get(row, "reason")?,
                at: get(row, "at")?,
                bytes: get(row, "bytes")?,
                event: get(row, "event")?,
            })
        };
        rows.iter().map(line).collect()
    }

    /// Notes what verified requests ask to have deleted; false when the job was not ours.
    pub async fn tombstone_note(&self, fence: &Fence, stones: &[Tombstone]) -> Result<bool, DbError> {
        let query = sqlx::query("SELECT tombstone_note($1, $2, $3, $4, $5, $6, $7, $8, $9) AS held")
            .bind(fence.job())
            .bind(fence.worker())
            .bind(fence.attempt());
        get(&self.one(laid(query, stones)).await?, "held")
    }

    /// The same for an import; returns how many that changed.
    pub async fn tombstone_add(&self, stones: &[Tombstone]) -> Result<u64, DbError> {
        let query = sqlx::query("SELECT tombstone_add($1, $2, $3, $4, $5, $6) AS n");
        small_count(&self.one(laid(query, stones)).await?, "n")
    }

    /// Positions of those of these events that their authors asked to have deleted.
    pub async fn tombstone_hits(&self, events: &[&Event]) -> Result<Vec<usize>, DbError> {
        if events.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self
            .all(
                sqlx::query("SELECT o FROM tombstone_hits($1, $2, $3, $4, $5) o")
                    .bind(events.iter().map(|event| event.id().as_bytes().to_vec()).collect::<Vec<_>>())
                    .bind(events.iter().map(|event| event.pubkey().to_vec()).collect::<Vec<_>>())
                    .bind(events.iter().map(|event| i32::from(event.kind())).collect::<Vec<_>>())
                    .bind(events.iter().map(|event| event.created_at()).collect::<Vec<_>>())
                    .bind(
                        events
                            .iter()
                            .map(|event| event.d_tag().map(|d| d.as_bytes().to_vec()))
                            .collect::<Vec<_>>(),
                    ),
            )
            .await?;
        rows.iter()
            .map(|row| Ok(usize::try_from(get::<i32>(row, "o")?).unwrap_or(1).saturating_sub(1)))
            .collect()
    }

    /// Applies tombstones to what is held, looking at as many events as `pace` lets it; how many became deleted.
    pub async fn tombstone_step(&self, pace: &mut Pace) -> Result<u64, DbError> {
        let query = sqlx::query("SELECT deleted FROM tombstone_step($1)").bind(pace.look());
        let began = clock::monotonic_ms();
        let came = self.one(query).await;
        pace.learn(began, &came);
        small_count(&came?, "deleted")
    }

    /// Whether [`Self::tombstone_step`] has something to do.
    pub async fn tombstone_waits(&self) -> Result<bool, DbError> {
        get(&self.one(sqlx::query("SELECT tombstone_waits() AS waits")).await?, "waits")
    }

    /// By what a second may be split: at most so many kinds and authors.
    pub async fn dense_facts(&self, second: i64, kinds: i32, authors: i32) -> Result<DenseFacts, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT kinds, authors FROM dense_facts($1, $2, $3)")
                    .bind(second)
                    .bind(kinds)
                    .bind(authors),
            )
            .await?;
        let (kinds, authors): (Vec<i32>, Vec<Vec<u8>>) = (get(&row, "kinds")?, get(&row, "authors")?);
        Ok(DenseFacts {
            kinds: kinds.into_iter().filter_map(|kind| kind.try_into().ok()).collect(),
            authors: authors.into_iter().filter_map(|author| author.try_into().ok()).collect(),
        })
    }

    /// Below which second the dense ones of a relay are split next.
    pub async fn dense_turn(&self, relay_id: i32) -> Result<Option<i64>, DbError> {
        let row = self.one(sqlx::query("SELECT dense_turn($1) AS below").bind(relay_id)).await?;
        get(&row, "below")
    }

    /// Notes which dense second of a relay was split last; false when the job was not ours.
    pub async fn dense_turn_set(&self, fence: &Fence, relay_id: i32, second: i64) -> Result<bool, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT dense_turn_set($1, $2, $3, $4, $5) AS held")
                    .bind(fence.job())
                    .bind(fence.worker())
                    .bind(fence.attempt())
                    .bind(relay_id)
                    .bind(second),
            )
            .await?;
        get(&row, "held")
    }

    /// The number of a pass that splits dense seconds of a relay, each of its own; `None` when the job was not ours.
    pub async fn dense_round(&self, fence: &Fence, relay_id: i32) -> Result<Option<u32>, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT dense_round($1, $2, $3, $4) AS round")
                    .bind(fence.job())
                    .bind(fence.worker())
                    .bind(fence.attempt())
                    .bind(relay_id),
            )
            .await?;
        let round: Option<i32> = get(&row, "round")?;
        Ok(round.map(i32::unsigned_abs))
    }

    /// The filter classes in which something is known of a relay's coverage.
    pub async fn coverage_classes(&self, relay_id: i32) -> Result<Vec<String>, DbError> {
        let rows = self.all(sqlx::query("SELECT c FROM coverage_classes($1) c").bind(relay_id)).await?;
        rows.iter().map(|row| get(row, "c")).collect()
    }
}

pub(super) type Statement<'q> = Query<'q, Postgres, PgArguments>;

/// Binds the arrays of `event_note`.
fn noted<'q>(query: Statement<'q>, events: &'q [(Arc<Event>, i16)]) -> Statement<'q> {
    query
        .bind(events.iter().map(|(event, _)| event.id_bytes().as_slice()).collect::<Vec<_>>())
        .bind(events.iter().map(|(event, _)| event.key()).collect::<Vec<_>>())
        .bind(events.iter().map(|(event, _)| event.created_at()).collect::<Vec<_>>())
        .bind(events.iter().map(|(event, _)| event.pubkey().as_slice()).collect::<Vec<_>>())
        .bind(events.iter().map(|(event, _)| i32::from(event.kind())).collect::<Vec<_>>())
        .bind(events.iter().map(|(_, fate)| *fate).collect::<Vec<_>>())
}

/// Binds the arrays of `tombstone_add`.
pub(super) fn laid<'q>(query: Statement<'q>, stones: &'q [Tombstone]) -> Statement<'q> {
    let parts: Vec<(i16, i32, &[u8])> = stones
        .iter()
        .map(|stone| match &stone.target {
            Target::Event(id) => (0, -1, id.as_bytes().as_slice()),
            Target::Address(kind, hash) => (1, i32::from(*kind), hash.as_slice()),
            Target::All => (2, -1, &[][..]),
        })
        .collect();
    query
        .bind(stones.iter().map(|stone| stone.pubkey.as_slice()).collect::<Vec<_>>())
        .bind(parts.iter().map(|part| part.0).collect::<Vec<_>>())
        .bind(parts.iter().map(|part| part.1).collect::<Vec<_>>())
        .bind(parts.into_iter().map(|part| part.2).collect::<Vec<_>>())
        .bind(stones.iter().map(|stone| stone.until).collect::<Vec<_>>())
        .bind(stones.iter().map(|stone| stone.request.as_bytes().as_slice()).collect::<Vec<_>>())
}
