//! Reconciliation with a relay: what we hold of it, what is archived, what a comparison settled.

use sqlx::postgres::PgRow;

use super::archive::CoverageColumns;
use super::capability::parsed;
use super::keep::archive_state;
use super::rows::{get, small_count};
use super::{ArchiveState, Db, DbError, NewCoverage};
use crate::models::{EventId, Fence, Measured, event_key};

/// What syncing knows of a relay besides its coverage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SyncFacts {
    /// It is not asked to reconcile before this, Unix seconds.
    pub neg_off_until: Option<i64>,
    /// Age in seconds, and the second up to which the timeline was read at that age, ascending.
    pub revisits: Vec<(i64, i64)>,
    /// Whether events are thought gone from it.
    pub has_gone: bool,
}

/// What a sync pass begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncBegin {
    /// The archive; its size may be ten seconds old.
    pub archive: ArchiveState,
    /// What syncing knows of the relay.
    pub facts: SyncFacts,
    /// What was measured of it, if anything was.
    pub measured: Option<Measured>,
}

/// What a reconciliation settled.
#[derive(Debug, Clone)]
pub struct ReconcileBatch<'a> {
    /// Proof that the job is still ours.
    pub fence: &'a Fence,
    /// `relay.id`.
    pub relay_id: i32,
    /// When, Unix seconds.
    pub at: i64,
    /// Archived events the relay says it has: id and `created_at`.
    pub claimed: &'a [(EventId, i64)],
    /// Events it has no more.
    pub gone: &'a [(EventId, i64)],
    /// Ids it lists and does not hand out.
    pub unserved: &'a [EventId],
    /// Coverage, if it changed.
    pub coverage: Option<NewCoverage<'a>>,
}

/// How far one age of a relay's timeline was read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revisited {
    /// The age, seconds.
    pub age_s: i64,
    /// Every second up to here was read at that age or later.
    pub until: i64,
    /// Seconds read again for it.
    pub seconds: i64,
    /// Observations that brought.
    pub found: i64,
}

impl Db {
    /// What we saw on a relay in `[since, until]` and is not gone from it, newest first, at most `limit`.
    pub async fn relay_items(
        &self,
        relay_id: i32,
        since: i64,
        until: i64,
        limit: usize,
    ) -> Result<Vec<(i64, EventId)>, DbError> {
        let rows = self
            .all(
                sqlx::query("SELECT created_at, id FROM relay_items($1, $2, $3, $4)")
                    .bind(relay_id)
                    .bind(since)
                    .bind(until)
                    .bind(i32::try_from(limit).unwrap_or(i32::MAX)),
            )
            .await?;
        items(&rows)
    }

    /// Which of these ids are known within `[since, until]`, with their times.
    pub async fn event_find(
        &self,
        ids: &[EventId],
        since: i64,
        until: i64,
    ) -> Result<Vec<(EventId, i64)>, DbError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = self
            .all(
                sqlx::query("SELECT o, created_at FROM event_find($1, $2, $3)")
                    .bind(ids.iter().map(|id| id.as_bytes().to_vec()).collect::<Vec<_>>())
                    .bind(since)
                    .bind(until),
            )
            .await?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let position: i32 = get(row, "o")?;
            let index = usize::try_from(position).unwrap_or(0).wrapping_sub(1);
            if let Some(id) = ids.get(index) {
                found.push((*id, get(row, "created_at")?));
            }
        }
        Ok(found)
    }

    /// Stores what a reconciliation settled; how many observations were new, or `None` when the job was not ours.
    pub async fn reconcile_store(&self, batch: &ReconcileBatch<'_>) -> Result<Option<u64>, DbError> {
        let ids = |events: &[(EventId, i64)]| -> Vec<Vec<u8>> {
            events.iter().map(|(id, _)| id.as_bytes().to_vec()).collect()
        };
        let keys = |events: &[(EventId, i64)]| -> Vec<i64> {
            events.iter().map(|(id, at)| event_key(*at, id)).collect()
        };
        let coverage = batch.coverage.as_ref().map(CoverageColumns::of).unwrap_or_default();
        let row = self
            .one(
                sqlx::query(
                    "SELECT held, new_observations FROM reconcile_store($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, \
                     $12, $13, $14, $15, $16)",
                )
                .bind(batch.fence.job())
                .bind(batch.fence.worker())
                .bind(batch.fence.attempt())
                .bind(batch.relay_id)
                .bind(batch.at)
                .bind(ids(batch.claimed))
                .bind(keys(batch.claimed))
                .bind(ids(batch.gone))
                .bind(keys(batch.gone))
                .bind(batch.unserved.iter().map(|id| id.as_bytes().to_vec()).collect::<Vec<_>>())
                .bind(batch.coverage.as_ref().map(|c| c.class))
                .bind(coverage.sinces)
                .bind(coverage.untils)
                .bind(coverage.grades)
                .bind(coverage.reasons)
                .bind(coverage.observed_ats),
            )
            .await?;
        let held: bool = get(&row, "held")?;
        Ok(if held { Some(small_count(&row, "new_observations")?) } else { None })
    }

    /// Delivered events are not gone from the relay; returns how many were thought to be.
    pub async fn gone_clear(
        &self,
        fence: &Fence,
        relay_id: i32,
        delivered: &[(EventId, i64)],
    ) -> Result<u64, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT gone_clear($1, $2, $3, $4, $5, $6) AS n")
                    .bind(fence.job())
                    .bind(fence.worker())
                    .bind(fence.attempt())
                    .bind(relay_id)
                    .bind(delivered.iter().map(|(id, _)| id.as_bytes().to_vec()).collect::<Vec<_>>())
                    .bind(delivered.iter().map(|(id, at)| event_key(*at, id)).collect::<Vec<_>>()),
            )
            .await?;
        small_count(&row, "n")
    }

    /// What syncing knows of a relay besides its coverage, read in this filter class.
    pub async fn sync_facts(&self, relay_id: i32, class: &str) -> Result<SyncFacts, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT neg_off_until, ages, untils, has_gone FROM sync_facts_of($1, $2)")
                    .bind(relay_id)
                    .bind(class),
            )
            .await?;
        facts(&row)
    }

    /// How long syncing paused before this pass because of the relay's rate limit, seconds; `None` where it did not.
    pub async fn sync_limited_s(&self, relay_id: i32) -> Result<Option<u64>, DbError> {
        let row = self.one(sqlx::query("SELECT sync_limited_s($1) AS pause").bind(relay_id)).await?;
        let pause: Option<i32> = get(&row, "pause")?;
        Ok(pause.and_then(|pause| u64::try_from(pause).ok()))
    }

    /// How long syncing paused before this pass because a fault ended the one before, seconds; `None` where it did not.
    pub async fn sync_interrupted_s(&self, relay_id: i32) -> Result<Option<u64>, DbError> {
        let row = self.one(sqlx::query("SELECT sync_interrupted_s($1) AS pause").bind(relay_id)).await?;
        let pause: Option<i32> = get(&row, "pause")?;
        Ok(pause.and_then(|pause| u64::try_from(pause).ok()))
    }

    /// How long gaps of this relay in this class rest, seconds; `None`: as short as any.
    pub async fn gap_rest(&self, relay_id: i32, class: &str) -> Result<Option<i64>, DbError> {
        let query = sqlx::query("SELECT gap_rest($1, $2) AS rest").bind(relay_id).bind(class);
        get(&self.one(query).await?, "rest")
    }

    /// Notes how long they rest from now on; false when the job was not ours.
    pub async fn gap_rest_set(
        &self,
        fence: &Fence,
        relay_id: i32,
        class: &str,
        rest_s: i64,
    ) -> Result<bool, DbError> {
        let query = sqlx::query("SELECT gap_rest_set($1, $2, $3, $4, $5, $6) AS held")
            .bind(fence.job())
            .bind(fence.worker())
            .bind(fence.attempt())
            .bind(relay_id)
            .bind(class)
            .bind(rest_s);
        get(&self.one(query).await?, "held")
    }

    /// What a sync pass over a relay begins with, in one question.
    pub async fn sync_begin(&self, relay_id: i32) -> Result<SyncBegin, DbError> {
        let row = self
            .one(
                sqlx::query(
                    "SELECT before_at, light, bytes, max_bytes, kinds_from, kinds_to, kinds_days, neg_off_until, ages, \
                     untils, has_gone, measured FROM sync_begin($1)",
                )
                .bind(relay_id),
            )
            .await?;
        Ok(SyncBegin {
            archive: archive_state(&row)?,
            facts: facts(&row)?,
            measured: parsed(get(&row, "measured")?, "measured", relay_id)?,
        })
    }

    /// Notes what a pass learnt; false when the job was not ours.
    pub async fn sync_learn(
        &self,
        fence: &Fence,
        relay_id: i32,
        at: i64,
        neg_off_until: Option<i64>,
        class: &str,
        revisited: &[Revisited],
    ) -> Result<bool, DbError> {
        let pick = |of: fn(&Revisited) -> i64| revisited.iter().map(of).collect::<Vec<_>>();
        let row = self
            .one(
                sqlx::query("SELECT sync_learn_of($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) AS held")
                    .bind(fence.job())
                    .bind(fence.worker())
                    .bind(fence.attempt())
                    .bind(relay_id)
                    .bind(at)
                    .bind(neg_off_until)
                    .bind(pick(|r| r.age_s))
                    .bind(pick(|r| r.until))
                    .bind(pick(|r| r.seconds))
                    .bind(pick(|r| r.found))
                    .bind(class),
            )
            .await?;
        get(&row, "held")
    }
}

fn facts(row: &PgRow) -> Result<SyncFacts, DbError> {
    let (ages, untils): (Vec<i64>, Vec<i64>) = (get(row, "ages")?, get(row, "untils")?);
    Ok(SyncFacts {
        neg_off_until: get(row, "neg_off_until")?,
        revisits: ages.into_iter().zip(untils).collect(),
        has_gone: get(row, "has_gone")?,
    })
}

/// Times and ids of events.
pub(super) fn items(rows: &[PgRow]) -> Result<Vec<(i64, EventId)>, DbError> {
    rows.iter()
        .map(|row| {
            let id: Vec<u8> = get(row, "id")?;
            let id = <[u8; 32]>::try_from(id).map_err(|id| DbError::Corrupt {
                table: "event",
                column: "id",
                row: format!("id={}", hex::encode(&id)),
                problem: format!("{} bytes instead of 32", id.len()),
            })?;
            Ok((get(row, "created_at")?, EventId(id)))
        })
        .collect()
}
