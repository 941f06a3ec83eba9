//! What a scheduler asks of the queue: its round, and the lease of the one that leads.

use std::time::Duration;

use super::jobs::{count32, seconds};
use super::maintain::Rescued;
use super::rows::{get, small_count};
use super::{Db, DbError};
use crate::models::JobKind;

/// A kind of jobs as [`Db::scheduler_tick`] enqueues it.
#[derive(Debug, Clone, Copy)]
pub struct TickKind {
    /// The kind.
    pub kind: JobKind,
    /// How long one attempt may run.
    pub timeout: Duration,
    /// Attempts before it is dead.
    pub max_attempts: u16,
    /// A target whose job vanished comes due again after this.
    pub again: Duration,
}

/// What [`Db::scheduler_tick`] did.
#[derive(Debug, Clone, Default)]
pub struct Tick {
    /// Term of the lead; none while another scheduler leads.
    pub term: Option<i64>,
    /// Jobs taken from lost workers.
    pub rescued: Rescued,
    /// New jobs, in the order of the kinds asked for.
    pub enqueued: Vec<u64>,
}

impl Db {
    /// One round of a scheduler, in one transaction; nothing but the claim of the lead while another leads.
    pub async fn scheduler_tick(
        &self,
        holder: &str,
        ttl: Duration,
        kinds: &[TickKind],
        networks: &[String],
        limit: u32,
        deadlines: bool,
    ) -> Result<Tick, DbError> {
        let row = self
            .one(
                sqlx::query(
                    "SELECT term, coalesce(rescued, 0) AS rescued, coalesce(killed, 0) AS killed, \
                     coalesce(enqueued, '{}') AS enqueued FROM scheduler_tick($1, $2, $3, $4, $5, $6, $7, $8, $9)",
                )
                .bind(holder)
                .bind(ttl.as_secs_f64())
                .bind(kinds.iter().map(|k| k.kind.as_str().to_owned()).collect::<Vec<_>>())
                .bind(networks)
                .bind(kinds.iter().map(|k| seconds(k.timeout)).collect::<Vec<_>>())
                .bind(kinds.iter().map(|k| i32::from(k.max_attempts)).collect::<Vec<_>>())
                .bind(kinds.iter().map(|k| seconds(k.again)).collect::<Vec<_>>())
                .bind(count32(limit))
                .bind(deadlines),
            )
            .await?;
        let enqueued: Vec<i32> = get(&row, "enqueued")?;
        Ok(Tick {
            term: get(&row, "term")?,
            rescued: Rescued { again: small_count(&row, "rescued")?, dead: small_count(&row, "killed")? },
            enqueued: enqueued.into_iter().map(|n| u64::try_from(n).unwrap_or(0)).collect(),
        })
    }

    /// Takes or renews a leader lease; `None` while another process holds it.
    pub async fn leader_claim(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<Option<i64>, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT leader_claim($1, $2, $3) AS term")
                    .bind(name)
                    .bind(holder)
                    .bind(ttl.as_secs_f64()),
            )
            .await?;
        get(&row, "term")
    }

    /// Ends a leader lease early.
    pub async fn leader_release(&self, name: &str, holder: &str) -> Result<bool, DbError> {
        let row =
            self.one(sqlx::query("SELECT leader_release($1, $2) AS held").bind(name).bind(holder)).await?;
        get(&row, "held")
    }
}
