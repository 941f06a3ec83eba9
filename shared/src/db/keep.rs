//! What the archive keeps: policies, horizons, fates, lightweight mode, the disk budget.
//!
//! Every deed is one bounded batch in one transaction; whoever wants all of it calls again.

use std::collections::HashMap;

use sqlx::postgres::PgRow;

use super::operate::Actor;
use super::pace::Pace;
use super::rows::{count, get, small_count};
use super::{Db, DbError};
use crate::clock;
use crate::models::{EventId, KindRule, RelayUrl, Retention, event_key};

/// What a sync must know of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveState {
    /// First second that is kept; 0: no horizon.
    pub before: i64,
    /// Whether only lightweight rows are kept.
    pub light: bool,
    /// Size of the database, and what the rollups will take of what waits to be counted.
    pub bytes: u64,
    /// The budget that the leading scheduler published.
    pub max_bytes: Option<u64>,
    /// Kinds that are not kept.
    pub kinds: Vec<KindRule>,
}

/// Times below which nothing is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Horizons {
    all: i64,
    relays: HashMap<String, i64>,
}

impl Horizons {
    /// First second of this relay that is kept; 0: all is.
    pub fn before(&self, relay: &RelayUrl) -> i64 {
        self.relays.get(relay.as_str()).map_or(self.all, |before| self.all.max(*before))
    }
}

/// Why a known event has no body, as an operator or a protocol decides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// A policy does not keep it.
    Skipped,
    /// Its author deleted it (NIP-09, NIP-62).
    Deleted,
    /// Its time was up (NIP-40).
    Expired,
}

impl Fate {
    const fn number(self) -> i16 {
        match self {
            Self::Skipped => 1,
            Self::Deleted => 2,
            Self::Expired => 3,
        }
    }
}

/// One piece of what the policies ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetentionStep {
    /// `horizon`, `coverage`, or the policy's name.
    pub what: String,
    /// Events that went, or lost their bodies.
    pub events: u64,
    /// Observations that went.
    pub observations: u64,
    /// Months dropped.
    pub months: u64,
}

/// What a policy would take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanLine {
    /// The policy, or the scope of a horizon that none wants.
    pub policy: String,
    /// First second that it keeps; `i64::MAX`: nothing is kept.
    pub before: i64,
    /// Months dropped whole.
    pub months: u64,
    /// Events.
    pub events: u64,
    /// Observations.
    pub observations: u64,
    /// Bytes, about.
    pub bytes: u64,
    /// The higher horizon that would come down, so that what lies between is fetched again.
    pub lowered_from: Option<i64>,
}

/// What making the archive lightweight would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LightenPlan {
    /// Whether it is lightweight already.
    pub light: bool,
    /// Events that have a body.
    pub events: u64,
    /// Events nobody has mined yet; they keep theirs until then.
    pub unmined: u64,
    /// Bytes of bodies.
    pub bytes: u64,
    /// Bytes of the index of tags.
    pub index_bytes: u64,
}

/// The parallel arrays of a set of policies.
struct Policies {
    whats: Vec<&'static str>,
    froms: Vec<Option<i32>>,
    tos: Vec<Option<i32>>,
    urls: Vec<Option<String>>,
    days: Vec<i32>,
}

impl Policies {
    fn of(retention: &Retention) -> Self {
        let mut all = Self { whats: vec![], froms: vec![], tos: vec![], urls: vec![], days: vec![] };
        let mut add = |what, kinds: Option<(u16, u16)>, url: Option<&String>, days: u32| {
            all.whats.push(what);
            all.froms.push(kinds.map(|(from, _)| from.into()));
            all.tos.push(kinds.map(|(_, to)| to.into()));
            all.urls.push(url.cloned());
            all.days.push(i32::try_from(days).unwrap_or(i32::MAX));
        };
        if let Some(days) = retention.days {
            add("age", None, None, days);
        }
        for rule in &retention.kinds {
            add("kind", Some((rule.from(), rule.to())), None, rule.days());
        }
        for (url, days) in &retention.relays {
            add("relay", None, Some(url), *days);
        }
        all
    }
}

/// What [`Db::archive_get`] and [`Db::sync_begin`] say of the archive.
pub(super) fn archive_state(row: &PgRow) -> Result<ArchiveState, DbError> {
    let column = |name| get::<Vec<i32>>(row, name);
    let (froms, tos, days) = (column("kinds_from")?, column("kinds_to")?, column("kinds_days")?);
    let corrupt = |problem: String| DbError::Corrupt {
        table: "retention_policy",
        column: "kind_from",
        row: "what=kind".to_owned(),
        problem,
    };
    let rule = |from: i32, to: i32, days: i32| -> Option<KindRule> {
        KindRule::new(from.try_into().ok()?, to.try_into().ok()?, days.try_into().ok()?).ok()
    };
    let kinds = froms.iter().zip(&tos).zip(&days).map(|((from, to), days)| {
        rule(*from, *to, *days).ok_or_else(|| corrupt(format!("{from} to {to} for {days} days is no rule")))
    });
    let max: Option<i64> = get(row, "max_bytes")?;
    Ok(ArchiveState {
        before: get(row, "before_at")?,
        light: get(row, "light")?,
        bytes: count(row, "bytes")?,
        max_bytes: max.and_then(|max| u64::try_from(max).ok()),
        kinds: kinds.collect::<Result<_, _>>()?,
    })
}

impl Db {
    /// What a sync of the relay `url` must know (`None`: of any).
    pub async fn archive_get(&self, url: Option<&str>) -> Result<ArchiveState, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT before_at, light, bytes, max_bytes, kinds_from, kinds_to, kinds_days FROM archive_get($1)")
                    .bind(url),
            )
            .await?;
        archive_state(&row)
    }

    /// The size as [`ArchiveState::bytes`], which may be ten seconds old, and its published budget, bytes.
    pub async fn archive_room(&self) -> Result<(u64, Option<u64>), DbError> {
        let row = self.one(sqlx::query("SELECT bytes, max_bytes FROM archive_room()")).await?;
        let max: Option<i64> = get(&row, "max_bytes")?;
        Ok((count(&row, "bytes")?, max.and_then(|max| u64::try_from(max).ok())))
    }

    /// Every horizon.
    pub async fn archive_horizons(&self) -> Result<Horizons, DbError> {
        let rows = self.all(sqlx::query("SELECT scope, before_at FROM archive_horizons()")).await?;
        let mut horizons = Horizons::default();
        for row in &rows {
            let (scope, before): (String, i64) = (get(row, "scope")?, get(row, "before_at")?);
            if scope == "all" {
                horizons.all = before;
            } else {
                horizons.relays.insert(scope, before);
            }
        }
        Ok(horizons)
    }

    /// Publishes the disk budget; whether that changed it.
    pub async fn archive_budget_set(&self, max_bytes: Option<u64>) -> Result<bool, DbError> {
        let max = max_bytes.map(|max| i64::try_from(max).unwrap_or(i64::MAX));
        get(&self.one(sqlx::query("SELECT archive_budget_set($1) AS changed").bind(max)).await?, "changed")
    }

    /// Makes these the policies; `again` has unchanged ones begin anew. Returns how many changed.
    pub async fn retention_put(&self, retention: &Retention, again: bool) -> Result<u64, DbError> {
        let all = Policies::of(retention);
        let row = self
            .one(
                sqlx::query("SELECT retention_put($1, $2, $3, $4, $5, $6) AS n")
                    .bind(all.whats)
                    .bind(all.froms)
                    .bind(all.tos)
                    .bind(all.urls)
                    .bind(all.days)
                    .bind(again),
            )
            .await?;
        small_count(&row, "n")
    }

    /// What these policies would take now, each by itself.
    pub async fn retention_plan(&self, retention: &Retention) -> Result<Vec<PlanLine>, DbError> {
        let all = Policies::of(retention);
        let rows = self
            .all(
                sqlx::query("SELECT policy, before_at, months, events, observations, bytes, lowered_from FROM retention_plan($1, $2, $3, $4, $5)")
                    .bind(all.whats)
                    .bind(all.froms)
                    .bind(all.tos)
                    .bind(all.urls)
                    .bind(all.days),
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(PlanLine {
                    policy: get(row, "policy")?,
                    before: get(row, "before_at")?,
                    months: small_count(row, "months")?,
                    events: count(row, "events")?,
                    observations: count(row, "observations")?,
                    bytes: count(row, "bytes")?,
                    lowered_from: get(row, "lowered_from")?,
                })
            })
            .collect()
    }

    /// The next piece of what the policies ask for, as large as `pace` lets it be; `None`: nothing is left to do.
    pub async fn retention_step(&self, pace: &mut Pace) -> Result<Option<RetentionStep>, DbError> {
        let query = sqlx::query("SELECT what, events, observations, months FROM retention_step($1)")
            .bind(pace.look());
        let began = clock::monotonic_ms();
        let came = self.all(query).await;
        pace.learn(began, &came);
        let rows = came?;
        let step = |row| -> Result<RetentionStep, DbError> {
            Ok(RetentionStep {
                what: get(row, "what")?,
                events: small_count(row, "events")?,
                observations: small_count(row, "observations")?,
                months: small_count(row, "months")?,
            })
        };
        rows.first().map(step).transpose()
    }

    /// Goes on with the round for archived events that no relay has; returns how many went.
    pub async fn orphan_event_sweep(&self, look: u32) -> Result<u64, DbError> {
        let look = i32::try_from(look).unwrap_or(i32::MAX);
        small_count(&self.one(sqlx::query("SELECT orphan_event_sweep($1) AS n").bind(look)).await?, "n")
    }

    /// Archived events get another fate: the row stays, the body goes. Returns how many.
    pub async fn event_fate_set(&self, events: &[(EventId, i64)], fate: Fate) -> Result<u64, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT event_fate_set($1, $2, $3) AS n")
                    .bind(events.iter().map(|(id, _)| id.as_bytes().to_vec()).collect::<Vec<_>>())
                    .bind(events.iter().map(|(id, at)| event_key(*at, id)).collect::<Vec<_>>())
                    .bind(fate.number()),
            )
            .await?;
        small_count(&row, "n")
    }

    /// Makes an archive without events lightweight; whether it is lightweight now.
    pub async fn archive_light_begin(&self) -> Result<bool, DbError> {
        get(&self.one(sqlx::query("SELECT archive_light_begin() AS light")).await?, "light")
    }

    /// What making the archive lightweight would take.
    pub async fn archive_lighten_plan(&self) -> Result<LightenPlan, DbError> {
        let row = self
            .one(sqlx::query("SELECT light, events, unmined, bytes::bigint AS bytes, index_bytes FROM archive_lighten_plan()"))
            .await?;
        Ok(LightenPlan {
            light: get(&row, "light")?,
            events: count(&row, "events")?,
            unmined: count(&row, "unmined")?,
            bytes: count(&row, "bytes")?,
            index_bytes: count(&row, "index_bytes")?,
        })
    }

    /// Takes the bodies of the next events of a lightweight archive, as many as `pace` lets it look at; returns how many it
    /// looked at and how many lost theirs. Call until it has looked at none.
    pub async fn archive_lighten(&self, pace: &mut Pace) -> Result<(u64, u64), DbError> {
        let query = sqlx::query("SELECT looked, stripped FROM archive_lighten($1)").bind(pace.look());
        let began = clock::monotonic_ms();
        let came = self.one(query).await;
        pace.learn(began, &came);
        let row = came?;
        Ok((small_count(&row, "looked")?, small_count(&row, "stripped")?))
    }

    /// An operator has the archive be lightweight, or keep bodies again, from now on; whether that changed it.
    pub async fn archive_mode_set(&self, light: bool, actor: &Actor) -> Result<bool, DbError> {
        let query = sqlx::query("SELECT archive_mode_set($1, $2, $3) AS changed");
        get(&self.one(query.bind(light).bind(&actor.name).bind(&actor.why)).await?, "changed")
    }

    /// An operator makes these the policies; returns how many rows of policies changed, and how many horizons came down.
    pub async fn retention_apply(&self, retention: &Retention, actor: &Actor) -> Result<(u64, u64), DbError> {
        let all = Policies::of(retention);
        let row = self
            .one(
                sqlx::query("SELECT changed, lowered FROM retention_apply($1, $2, $3, $4, $5, $6, $7)")
                    .bind(all.whats)
                    .bind(all.froms)
                    .bind(all.tos)
                    .bind(all.urls)
                    .bind(all.days)
                    .bind(&actor.name)
                    .bind(&actor.why),
            )
            .await?;
        Ok((small_count(&row, "changed")?, small_count(&row, "lowered")?))
    }
}
