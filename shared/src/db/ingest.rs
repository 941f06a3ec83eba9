//! What ingest asks and notes beside events and observations.

use super::rows::{get, small_count};
use super::{Db, DbError};
use crate::models::{Event, EventId, Fence, Target, Tombstone, Unkept, event_key};

/// What the database says about the events of a page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KnownPage {
    /// Position in the question, from 0, and the first bytes of our signature where we hold one.
    pub known: Vec<(usize, Option<[u8; 8]>)>,
    /// Positions of events whose author has asked for deletions.
    pub marked: Vec<usize>,
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

/// By what a dense second may be split.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DenseFacts {
    /// Kinds, those to ask for first in front.
    pub kinds: Vec<u16>,
    /// Authors, likewise.
    pub authors: Vec<[u8; 32]>,
}

impl Db {
    /// Which of these events (id, `created_at`, author as claimed) are known; one round trip a page.
    pub async fn event_known(&self, events: &[(EventId, i64, [u8; 32])]) -> Result<KnownPage, DbError> {
        if events.is_empty() {
            return Ok(KnownPage::default());
        }
        let rows = self
            .all(
                sqlx::query("SELECT o, fate, sig_head FROM event_known($1, $2, $3)")
                    .bind(events.iter().map(|(id, ..)| id.as_bytes().to_vec()).collect::<Vec<_>>())
                    .bind(events.iter().map(|(id, at, _)| event_key(*at, id)).collect::<Vec<_>>())
                    .bind(events.iter().map(|(_, _, pubkey)| pubkey.to_vec()).collect::<Vec<_>>()),
            )
            .await?;
        let mut page = KnownPage::default();
        for row in &rows {
            let position: i32 = get(row, "o")?;
            let position = usize::try_from(position).unwrap_or(1).saturating_sub(1);
            if get::<i16>(row, "fate")? < 0 {
                page.marked.push(position);
                continue;
            }
            let head: Option<Vec<u8>> = get(row, "sig_head")?;
            page.known.push((position, head.and_then(|head| head.try_into().ok())));
        }
        Ok(page)
    }

    /// Remembers verified events without a body; false when the job was not ours.
    pub async fn sync_note(&self, fence: &Fence, events: &[(Event, Unkept)]) -> Result<bool, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT sync_note($1, $2, $3, $4, $5, $6, $7, $8, $9) AS held")
                    .bind(fence.job())
                    .bind(fence.worker())
                    .bind(fence.attempt())
                    .bind(events.iter().map(|(event, _)| event.id().as_bytes().to_vec()).collect::<Vec<_>>())
                    .bind(events.iter().map(|(event, _)| event.key()).collect::<Vec<_>>())
                    .bind(events.iter().map(|(event, _)| event.created_at()).collect::<Vec<_>>())
                    .bind(events.iter().map(|(event, _)| event.pubkey().to_vec()).collect::<Vec<_>>())
                    .bind(events.iter().map(|(event, _)| i32::from(event.kind())).collect::<Vec<_>>())
                    .bind(events.iter().map(|(_, class)| class.fate()).collect::<Vec<_>>()),
            )
            .await?;
        get(&row, "held")
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

    /// Notes what verified requests ask to have deleted; false when the job was not ours.
    pub async fn tombstone_note(&self, fence: &Fence, stones: &[Tombstone]) -> Result<bool, DbError> {
        let parts: Vec<(i16, i32, Vec<u8>)> = stones
            .iter()
            .map(|stone| match &stone.target {
                Target::Event(id) => (0, -1, id.as_bytes().to_vec()),
                Target::Address(kind, hash) => (1, i32::from(*kind), hash.to_vec()),
                Target::All => (2, -1, Vec::new()),
            })
            .collect();
        let row = self
            .one(
                sqlx::query("SELECT tombstone_note($1, $2, $3, $4, $5, $6, $7, $8, $9) AS held")
                    .bind(fence.job())
                    .bind(fence.worker())
                    .bind(fence.attempt())
                    .bind(stones.iter().map(|stone| stone.pubkey.to_vec()).collect::<Vec<_>>())
                    .bind(parts.iter().map(|part| part.0).collect::<Vec<_>>())
                    .bind(parts.iter().map(|part| part.1).collect::<Vec<_>>())
                    .bind(parts.into_iter().map(|part| part.2).collect::<Vec<_>>())
                    .bind(stones.iter().map(|stone| stone.until).collect::<Vec<_>>())
                    .bind(stones.iter().map(|stone| stone.request.as_bytes().to_vec()).collect::<Vec<_>>()),
            )
            .await?;
        get(&row, "held")
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

    /// Applies tombstones to what is held, looking at `look` events; how many became deleted.
    pub async fn tombstone_step(&self, look: i32) -> Result<u64, DbError> {
        let row = self.one(sqlx::query("SELECT deleted FROM tombstone_step($1)").bind(look)).await?;
        small_count(&row, "deleted")
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

    /// The filter classes in which something is known of a relay's coverage.
    pub async fn coverage_classes(&self, relay_id: i32) -> Result<Vec<String>, DbError> {
        let rows = self.all(sqlx::query("SELECT c FROM coverage_classes($1) c").bind(relay_id)).await?;
        rows.iter().map(|row| get(row, "c")).collect()
    }
}
