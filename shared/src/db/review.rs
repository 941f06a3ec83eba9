//! What expires while it is held, and the one round through what was archived before somebody looked at it.

use super::ingest::laid;
use super::pace::Pace;
use super::rows::{get, small_count};
use super::verify::rebuild;
use super::{Db, DbError};
use crate::clock;
use crate::models::{Event, EventId, Tombstone};

/// A piece of the round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReviewPiece {
    after: i64,
    next: i64,
    /// Its requests to delete or to vanish; without those whose rows do not hash to their ids any more.
    pub requests: Vec<Event>,
}

impl Db {
    /// Makes archived events expired whose time has come, at most as many as `pace` lets it; how many it looked at, and how
    /// many it was. Call until it has looked at none.
    pub async fn event_expire(&self, pace: &mut Pace) -> Result<(u64, u64), DbError> {
        let query = sqlx::query("SELECT looked, expired FROM event_expire($1)").bind(pace.look());
        let began = clock::monotonic_ms();
        let came = self.one(query).await;
        pace.learn(began, &came);
        let row = came?;
        Ok((small_count(&row, "looked")?, small_count(&row, "expired")?))
    }

    /// Says whether requests to delete are heeded: where they are from now on, the round begins anew. Whether it did.
    pub async fn archive_review_begin(&self, deletes: bool) -> Result<bool, DbError> {
        let query = sqlx::query("SELECT archive_review_begin($1) AS again").bind(deletes);
        get(&self.one(query).await?, "again")
    }

    /// The next piece, of at most `look` events; `None`: the round is over.
    pub async fn archive_review_take(&self, look: u32) -> Result<Option<ReviewPiece>, DbError> {
        let look = i32::try_from(look).unwrap_or(i32::MAX);
        let rows = self
            .all(
                sqlx::query(
                    "SELECT after_key, next_key, coalesce(ids, '{}') AS ids, coalesce(pubkeys, '{}') AS pubkeys, \
                     coalesce(created_ats, '{}') AS created_ats, coalesce(kinds, '{}') AS kinds, coalesce(tags, '{}') AS tags, \
                     coalesce(contents, '{}') AS contents, coalesce(sigs, '{}') AS sigs FROM archive_review_take($1)",
                )
                .bind(look),
            )
            .await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let bytes = |column| get::<Vec<Vec<u8>>>(row, column);
        let (ids, pubkeys, tags, contents, sigs) =
            (bytes("ids")?, bytes("pubkeys")?, bytes("tags")?, bytes("contents")?, bytes("sigs")?);
        let (times, kinds): (Vec<i64>, Vec<i32>) = (get(row, "created_ats")?, get(row, "kinds")?);
        let requests = ids
            .iter()
            .zip(&pubkeys)
            .zip(times.iter().zip(&kinds))
            .zip(tags.iter().zip(contents).zip(&sigs))
            .filter_map(|(((id, pubkey), (at, kind)), ((tags, content), sig))| {
                let id = EventId::try_from(id.as_slice()).ok()?;
                rebuild(id, pubkey, *at, *kind, tags, content, sig).ok()
            });
        let (after, next) = (get(row, "after_key")?, get(row, "next_key")?);
        Ok(Some(ReviewPiece { after, next, requests: requests.collect() }))
    }

    /// What its requests ask for, and when its events expire, is noted; how many of both were new.
    pub async fn archive_review_store(
        &self,
        piece: &ReviewPiece,
        stones: &[Tombstone],
    ) -> Result<(u64, u64), DbError> {
        let query =
            sqlx::query("SELECT stones, expiries FROM archive_review_store($1, $2, $3, $4, $5, $6, $7, $8)")
                .bind(piece.after)
                .bind(piece.next);
        let row = self.one(laid(query, stones)).await?;
        Ok((small_count(&row, "stones")?, small_count(&row, "expiries")?))
    }
}
