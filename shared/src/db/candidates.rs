//! Candidates: how they come, what validation makes of them, what operators see and do about them and exclusions.

use std::time::Duration;

use sqlx::postgres::PgRow;

use super::observe::{fences, lost, ms, position, slack_s};
use super::operate::Actor;
use super::rows::{count, get, small_count};
use super::{Db, DbError};
use crate::models::{Fence, Outcome, Reason, RelayUrl};

/// A URL seen somewhere that may be a relay.
#[derive(Debug, Clone)]
pub struct NewCandidate {
    /// Canonical URL.
    pub url: RelayUrl,
    /// Where it was seen: `seed`, `event`, `operator`.
    pub source: &'static str,
}

/// A candidate as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CandidateRow {
    /// Consecutive failed validations.
    pub failures: u32,
    /// First sighting, Unix seconds.
    pub first_seen_at: i64,
}

/// Result of one validation.
#[derive(Debug, Clone)]
pub struct ValidateResult {
    /// Proof that the job is still ours.
    pub fence: Fence,
    /// Which candidate.
    pub url: RelayUrl,
    /// Whether it spoke Nostr.
    pub alive: bool,
    /// What was found.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// When to try again, if not alive.
    pub next: Duration,
    /// How late that may be.
    pub slack: Duration,
    /// Never try again by itself.
    pub give_up: bool,
    /// By what it spoke Nostr: `eose`, `event`, `closed`, `auth`, `notice`; empty when it did not.
    pub proof: &'static str,
    /// What was seen, in words.
    pub detail: String,
    /// Milliseconds until open, and from REQ to EOSE.
    pub rtt_ms: [Option<u32>; 2],
}

/// A candidate, as `candidate list` shows it.
#[derive(Debug, Clone)]
pub struct CandidateLine {
    /// Canonical URL.
    pub url: RelayUrl,
    /// Kind of place where it was first seen.
    pub source: String,
    /// First sighting, Unix seconds.
    pub first_seen_at: i64,
    /// Latest sighting, Unix seconds.
    pub last_seen_at: i64,
    /// Sightings counted.
    pub seen_count: i32,
    /// Consecutive failed validations.
    pub failures: i32,
    /// Latest validation, Unix seconds.
    pub last_tried_at: Option<i64>,
    /// Its outcome.
    pub last_outcome: Option<String>,
    /// Its reason.
    pub last_reason: Option<String>,
    /// What it saw, in words.
    pub last_detail: Option<String>,
    /// Milliseconds until its WebSocket was open.
    pub last_open_ms: Option<i32>,
    /// Given up since, Unix seconds.
    pub tombstoned_at: Option<i64>,
    /// `opt_out` or `blocked`, when an operator excluded it.
    pub excluded: Option<String>,
    /// When it is next due, Unix seconds.
    pub due_at: Option<i64>,
}

/// Where a URL was seen.
#[derive(Debug, Clone)]
pub struct SourceLine {
    /// Kind of place.
    pub source: String,
    /// Which, where that is known.
    pub origin: String,
    /// First sighting there, Unix seconds.
    pub first_seen_at: i64,
    /// Latest, Unix seconds.
    pub last_seen_at: i64,
    /// Sightings counted.
    pub seen_count: i32,
}

/// What was refused on a host, and what sources a URL has.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Places where the URL was seen.
    pub lines: Vec<SourceLine>,
    /// URLs of its host that were not taken, when any was.
    pub refused_on_host: Option<u64>,
    /// URLs of hosts below its domain that were not taken, when any was.
    pub refused_on_site: Option<u64>,
    /// URLs of other customers of its hoster that were not taken, when any was.
    pub refused_on_hoster: Option<u64>,
    /// URLs of whomever that were not taken while there were as many candidates as there may be, when any was.
    pub refused_in_all: Option<u64>,
}

/// Who has as many URLs as one may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CappedLine {
    /// A host, `*.domain` for a domain or a hoster with all hosts below it, or `*` for all candidates.
    pub name: String,
    /// How many more were named.
    pub refused: u64,
    /// One of the latest.
    pub last_url: String,
    /// When that was, Unix seconds.
    pub last_at: i64,
}

/// An exclusion, as `relay excluded` shows it.
#[derive(Debug, Clone)]
pub struct ExclusionLine {
    /// URL, host, or `*.host`.
    pub target: String,
    /// `opt_out` or `blocked`.
    pub kind: String,
    /// Reason.
    pub why: String,
    /// Who.
    pub actor: String,
    /// When, Unix seconds.
    pub excluded_at: i64,
    /// Known relays and candidates that it means.
    pub known: u64,
}

/// Rows per page of a list.
const PAGE: i32 = 1_000;

const CANDIDATES: &str = "
SELECT c.url, c.source, c.first_seen_at, c.last_seen_at, c.seen_count, c.failures, c.last_tried_at, c.last_outcome, c.last_reason,
       c.last_detail, c.last_open_ms, c.tombstoned_at, url_excluded(c.url) AS excluded, extract(epoch FROM s.due_at)::bigint AS due_at
FROM candidate c LEFT JOIN schedule s ON s.kind = 'validate' AND s.target = c.url
WHERE c.url > $1 AND ($2::text IS NULL OR c.url = $2)
  AND CASE $3::text WHEN 'untried' THEN c.last_tried_at IS NULL AND c.tombstoned_at IS NULL WHEN 'failing' THEN c.failures > 0 AND c.tombstoned_at IS NULL
                    WHEN 'given-up' THEN c.tombstoned_at IS NOT NULL ELSE true END
  AND ($4::text IS NULL OR EXISTS (SELECT FROM candidate_source x WHERE x.url = c.url AND x.source = $4))
ORDER BY c.url LIMIT $5";

const SOURCES: &str = "
SELECT source, origin, first_seen_at, last_seen_at, seen_count FROM candidate_source WHERE url = $1
ORDER BY first_seen_at, source, origin LIMIT $2";

const REFUSED: &str = "
SELECT CASE x.host WHEN $1 THEN 'host' WHEN '*' THEN 'all' WHEN '*.' || $4 THEN 'hoster' ELSE 'site' END AS what, x.refused
FROM candidate_refusal x WHERE x.host IN ($1, '*', '*.' || coalesce($3, url_site($2)), '*.' || $4)";

const CAPPED: &str = "
SELECT host, refused, last_url, last_at FROM candidate_refusal ORDER BY refused DESC, host LIMIT $1";

const EXCLUSIONS: &str = "
SELECT x.target, x.kind, x.why, x.actor, x.excluded_at, coalesce(k.known, 0) AS known
FROM relay_exclusion x
LEFT JOIN (SELECT t.target, count(*) AS known
           FROM (SELECT r.url FROM relay r UNION SELECT c.url FROM candidate c) u CROSS JOIN unnest(exclusion_targets(u.url)) t(target)
           GROUP BY t.target) k ON k.target = x.target
ORDER BY x.target LIMIT $1";

fn candidate_line(row: &PgRow) -> Result<CandidateLine, DbError> {
    let text: String = get(row, "url")?;
    Ok(CandidateLine {
        url: Db::stored_url(&text, "candidate", || text.clone())?,
        source: get(row, "source")?,
        first_seen_at: get(row, "first_seen_at")?,
        last_seen_at: get(row, "last_seen_at")?,
        seen_count: get(row, "seen_count")?,
        failures: get(row, "failures")?,
        last_tried_at: get(row, "last_tried_at")?,
        last_outcome: get(row, "last_outcome")?,
        last_reason: get(row, "last_reason")?,
        last_detail: get(row, "last_detail")?,
        last_open_ms: get(row, "last_open_ms")?,
        tombstoned_at: get(row, "tombstoned_at")?,
        excluded: get(row, "excluded")?,
        due_at: get(row, "due_at")?,
    })
}

impl Db {
    /// Takes candidates that somebody named on purpose; returns how many URLs were new.
    pub async fn candidate_insert(&self, candidates: &[NewCandidate]) -> Result<u64, DbError> {
        let row = self
            .one(
                sqlx::query("SELECT candidate_insert($1, $2, $3) AS n")
                    .bind(candidates.iter().map(|c| c.url.as_str().to_owned()).collect::<Vec<_>>())
                    .bind(candidates.iter().map(|c| c.url.network().as_str().to_owned()).collect::<Vec<_>>())
                    .bind(candidates.iter().map(|c| c.source.to_owned()).collect::<Vec<_>>()),
            )
            .await?;
        small_count(&row, "n")
    }

    /// The candidates of these URLs; none of one that is unknown, excluded or given up.
    pub async fn candidate_get(&self, urls: &[RelayUrl]) -> Result<Vec<Option<CandidateRow>>, DbError> {
        let query = sqlx::query("SELECT o, failures, first_seen_at FROM candidate_get($1)")
            .bind(urls.iter().map(|url| url.as_str().to_owned()).collect::<Vec<_>>());
        let mut found = vec![None; urls.len()];
        for row in &self.all(query).await? {
            let failures: i32 = get(row, "failures")?;
            if let Some(place) = found.get_mut(position(row)?) {
                let first_seen_at = get(row, "first_seen_at")?;
                *place = Some(CandidateRow { failures: u32::try_from(failures).unwrap_or(0), first_seen_at });
            }
        }
        Ok(found)
    }

    /// Stores results of validations; returns the positions whose fence was lost.
    pub async fn validate_finish(&self, results: &[ValidateResult]) -> Result<Vec<usize>, DbError> {
        let (jobs, workers, attempts) = fences(results.iter().map(|r| &r.fence));
        let rows = self
            .all(
                sqlx::query(
                    "SELECT o FROM validate_finish($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) AS o",
                )
                .bind(jobs)
                .bind(workers)
                .bind(attempts)
                .bind(results.iter().map(|r| r.url.as_str().to_owned()).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.url.network().as_str().to_owned()).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.alive).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.outcome.as_str().to_owned()).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.reason.as_str().to_owned()).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.next.as_secs_f64()).collect::<Vec<_>>())
                .bind(results.iter().map(|r| slack_s(r.slack)).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.give_up).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.proof.to_owned()).collect::<Vec<_>>())
                .bind(results.iter().map(|r| r.detail.clone()).collect::<Vec<_>>())
                .bind(results.iter().map(|r| ms(r.rtt_ms[0])).collect::<Vec<_>>())
                .bind(results.iter().map(|r| ms(r.rtt_ms[1])).collect::<Vec<_>>()),
            )
            .await?;
        lost(&rows)
    }

    /// Candidates after `after` in URL order, at most a page of 1,000 or `limit`: those in a state, from a source, or
    /// the one. A row that does not validate is an error in its place.
    pub async fn candidate_list(
        &self,
        after: &str,
        only: Option<&str>,
        state: Option<&str>,
        source: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Result<CandidateLine, DbError>>, DbError> {
        let limit = i32::try_from(limit).unwrap_or(PAGE).min(PAGE);
        let query = sqlx::query(CANDIDATES).bind(after).bind(only).bind(state).bind(source).bind(limit);
        Ok(self.all(query).await?.iter().map(candidate_line).collect())
    }

    /// Where a URL was seen, and how many others of its host were not taken.
    pub async fn candidate_sources(&self, url: &RelayUrl) -> Result<Sources, DbError> {
        let rows = self.all(sqlx::query(SOURCES).bind(url.as_str()).bind(PAGE)).await?;
        let lines = rows.iter().map(|row| {
            Ok(SourceLine {
                source: get(row, "source")?,
                origin: get(row, "origin")?,
                first_seen_at: get(row, "first_seen_at")?,
                last_seen_at: get(row, "last_seen_at")?,
                seen_count: get(row, "seen_count")?,
            })
        });
        let lines = lines.collect::<Result<_, DbError>>()?;
        let query = sqlx::query(REFUSED).bind(url.host()).bind(url.as_str());
        let refused = self.all(query.bind(url.site()).bind(url.hoster())).await?;
        let refused = |what: &str| {
            let row = refused.iter().find(|row| get::<String>(row, "what").is_ok_and(|it| it == what));
            row.map(|row| count(row, "refused")).transpose()
        };
        Ok(Sources {
            lines,
            refused_on_host: refused("host")?,
            refused_on_site: refused("site")?,
            refused_on_hoster: refused("hoster")?,
            refused_in_all: refused("all")?,
        })
    }

    /// Who has as many URLs as one may have, the most refused first, at most a page of 1,000 or `limit`.
    pub async fn candidate_capped(&self, limit: u32) -> Result<Vec<CappedLine>, DbError> {
        let limit = i32::try_from(limit).unwrap_or(PAGE).min(PAGE);
        let rows = self.all(sqlx::query(CAPPED).bind(limit)).await?;
        rows.iter()
            .map(|row| {
                Ok(CappedLine {
                    name: get(row, "host")?,
                    refused: count(row, "refused")?,
                    last_url: get(row, "last_url")?,
                    last_at: get(row, "last_at")?,
                })
            })
            .collect()
    }

    /// Gives candidates a new life; returns how many.
    pub async fn candidate_revive(&self, urls: &[RelayUrl], actor: &Actor) -> Result<u64, DbError> {
        let urls: Vec<String> = urls.iter().map(|url| url.as_str().to_owned()).collect();
        let query = sqlx::query("SELECT candidate_revive($1, $2, $3) AS n").bind(urls);
        small_count(&self.one(query.bind(&actor.name).bind(&actor.why)).await?, "n")
    }

    /// Forgets candidates that were given up, and named by nobody, for `keep_days`, at most `limit`; returns how many.
    pub async fn candidate_retire(&self, limit: u32, keep_days: u16) -> Result<u64, DbError> {
        let query = sqlx::query("SELECT candidate_retire($1, $2) AS n");
        let query = query.bind(i32::try_from(limit).unwrap_or(i32::MAX)).bind(i32::from(keep_days));
        small_count(&self.one(query).await?, "n")
    }

    /// Leaves relays alone from now on; returns the known URLs concerned, the jobs cancelled, and those being stopped.
    pub async fn relay_exclude(
        &self,
        targets: &[String],
        kind: &str,
        actor: &Actor,
    ) -> Result<(u64, u64, u64), DbError> {
        let query = sqlx::query("SELECT known, cancelled, stopping FROM relay_exclude($1, $2, $3, $4)");
        let row = self.one(query.bind(targets).bind(kind).bind(&actor.name).bind(&actor.why)).await?;
        Ok((small_count(&row, "known")?, small_count(&row, "cancelled")?, small_count(&row, "stopping")?))
    }

    /// Takes exclusions back; returns how many there were, and how many schedule rows were made.
    pub async fn relay_include(&self, targets: &[String], actor: &Actor) -> Result<(u64, u64), DbError> {
        let query = sqlx::query("SELECT removed, scheduled FROM relay_include($1, $2, $3)").bind(targets);
        let row = self.one(query.bind(&actor.name).bind(&actor.why)).await?;
        Ok((small_count(&row, "removed")?, small_count(&row, "scheduled")?))
    }

    /// Every exclusion, at most 1,000.
    pub async fn exclusion_list(&self) -> Result<Vec<ExclusionLine>, DbError> {
        let rows = self.all(sqlx::query(EXCLUSIONS).bind(PAGE)).await?;
        rows.iter()
            .map(|row| {
                Ok(ExclusionLine {
                    target: get(row, "target")?,
                    kind: get(row, "kind")?,
                    why: get(row, "why")?,
                    actor: get(row, "actor")?,
                    excluded_at: get(row, "excluded_at")?,
                    known: count(row, "known")?,
                })
            })
            .collect()
    }
}
