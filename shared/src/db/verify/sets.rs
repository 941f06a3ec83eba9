//! What belongs together, looked for as a whole: observations and their events, coverage, rollups.

use std::collections::BTreeMap;

use sqlx::postgres::PgRow;

use super::super::rows::{count, get};
use super::super::{Db, DbError};
use super::{LOOKS, VerifyProgress, patiently};
use crate::models::GapReason;

/// Disagreements of the rollups that are named.
const ROLLUPS: i32 = 100;

const RANGE: &str = "SELECT problem, bad, n, first_key FROM archive_check($1, $2)";

/// One thing that was looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetLine {
    /// What it is.
    pub problem: String,
    /// Whether it is a fault, if there are any.
    pub bad: bool,
    /// How many there are.
    pub n: u64,
    /// One of them.
    pub sample: Option<String>,
}

impl SetLine {
    /// Whether this is a fault that was found.
    pub const fn is_fault(&self) -> bool {
        self.bad && self.n > 0
    }
}

impl Db {
    /// Looks for observations, keys and intervals that cannot be, month by month, and asks the rollups whether they agree
    /// with what they were made of, where there are any.
    pub async fn verify_sets(
        &self,
        progress: &mut (dyn FnMut(VerifyProgress) + Send),
    ) -> Result<Vec<SetLine>, DbError> {
        let ranges = self.all(sqlx::query("SELECT from_key, to_key FROM archive_ranges()")).await?;
        let mut lines: BTreeMap<String, SetLine> = BTreeMap::new();
        for (index, range) in ranges.iter().enumerate() {
            let (from, to): (i64, i64) = (get(range, "from_key")?, get(range, "to_key")?);
            for row in self.verify_range(from, to).await? {
                let (problem, bad): (String, bool) = (get(&row, "problem")?, get(&row, "bad")?);
                let first: Option<i64> = get(&row, "first_key")?;
                let line =
                    lines.entry(problem.clone()).or_insert(SetLine { problem, bad, n: 0, sample: None });
                line.n += count(&row, "n")?;
                line.sample = line.sample.take().or_else(|| first.map(|key| format!("event_key={key}")));
            }
            let of = Some(ranges.len() as u64);
            progress(VerifyProgress { stage: "months", done: index as u64 + 1, of });
        }
        let mut lines: Vec<SetLine> = lines.into_values().collect();
        lines.extend(self.verify_coverage().await?);
        lines.extend(self.verify_rollups().await?);
        Ok(lines)
    }

    /// A range in which a fault was found is looked at again. Partitions are no part of a snapshot: a statement that began before
    /// a month was made or dropped sees it in part. A fault is what is there whenever one looks.
    async fn verify_range(&self, from: i64, to: i64) -> Result<Vec<PgRow>, DbError> {
        let look = || patiently(async || self.all(sqlx::query(RANGE).bind(from).bind(to)).await);
        let mut rows = look().await?;
        for _ in 1..LOOKS {
            let faults = rows.iter().map(|row| Ok(get::<bool>(row, "bad")? && count(row, "n")? > 0));
            if !faults.collect::<Result<Vec<bool>, DbError>>()?.contains(&true) {
                break;
            }
            rows = look().await?;
        }
        Ok(rows)
    }

    async fn verify_coverage(&self) -> Result<Vec<SetLine>, DbError> {
        let reasons: Vec<&str> = GapReason::ALL.iter().map(|reason| reason.as_str()).collect();
        let rows =
            self.all(sqlx::query("SELECT problem, n, sample FROM coverage_check($1)").bind(reasons)).await?;
        let mut lines = rows
            .iter()
            .map(|row| {
                let problem: String = get(row, "problem")?;
                let problem = format!("coverage: {problem}");
                Ok(SetLine { problem, bad: true, n: count(row, "n")?, sample: get(row, "sample")? })
            })
            .collect::<Result<Vec<_>, DbError>>()?;
        if lines.is_empty() {
            lines.push(SetLine { problem: "coverage: faults".to_owned(), bad: true, n: 0, sample: None });
        }
        Ok(lines)
    }

    /// Each row of `rollup_check()` and of `relay_latest_check()` is a disagreement.
    async fn verify_rollups(&self) -> Result<Option<SetLine>, DbError> {
        let there = "SELECT to_regprocedure('public.rollup_check()') IS NOT NULL AS there";
        if !get::<bool>(&self.one(sqlx::query(there)).await?, "there")? {
            return Ok(None);
        }
        // One after the other: who reads the archive's months does not wait for those of the checks.
        let mut rows = Vec::new();
        for check in ["rollup_check", "relay_latest_check"] {
            let sql = format!("SELECT to_jsonb(r)::text AS row FROM {check}() r LIMIT $1");
            let look = async || self.all(sqlx::query(sqlx::AssertSqlSafe(sql.as_str())).bind(ROLLUPS)).await;
            rows.extend(patiently(look).await?);
        }
        let sample = rows.first().map(|row| get(row, "row")).transpose()?;
        let problem = "rollups that do not agree with the archive".to_owned();
        Ok(Some(SetLine { problem, bad: true, n: rows.len() as u64, sample }))
    }
}
