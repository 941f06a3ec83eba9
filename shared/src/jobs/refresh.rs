//! Closes the gap: views that are older than the data under them.
//!
//! First what writers logged is counted into the rollups, in small transactions, so that no timeout takes more
//! than a step; then view by view, each in its own transaction over the direct connection, in one order.
//! What fails never stops the rest, and two refreshes never run at once.

use std::time::Duration;

use serde_json::{Map, json};
use tokio_util::sync::CancellationToken;

use super::{Attempt, Ctx, JobError, Report, cadence, lost};
use crate::db::{Db, DbError, VIEWS};

/// Another worker refreshes right now.
const BUSY: Duration = Duration::from_secs(60);
/// Keys counted in one transaction: about a second's work.
const STEP: i32 = 50_000;
/// Retention holds the refreshes' lock too, for a moment at a time: so often and so long is waited for that.
const TRIES: u32 = 50;
const MOMENT: Duration = Duration::from_millis(100);

/// A refresh of a large view takes as long as it takes; this only ends a hung one.
pub const LIMIT: Duration = Duration::from_secs(3_500);

/// What was brought up to date.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// Keys counted into the rollups.
    pub counted: u64,
    /// Views refreshed.
    pub refreshed: u32,
    /// What failed, with the error.
    pub failed: Vec<(&'static str, String)>,
}

pub(super) async fn run(ctx: &Ctx, attempt: &Attempt) -> Result<Report, JobError> {
    let done = match all(&ctx.direct, &attempt.stop).await {
        Ok(Some(done)) => done,
        Ok(None) => return Err(JobError::snooze(Duration::ZERO, "stopping")),
        Err(_) => return Err(JobError::snooze(BUSY, "another refresh is running")),
    };
    let failed: Map<_, _> =
        done.failed.into_iter().map(|(what, error)| (what.to_owned(), json!(error))).collect();
    let due = cadence::local(ctx.config.refresh_interval, &attempt.target);
    if !ctx.db.schedule_next(&attempt.fence, due.after, due.slack, due.why).await? {
        return Err(lost());
    }
    if done.refreshed == 0 {
        return Err(JobError::Retry { why: format!("no view could be refreshed: {}", json!(failed)) });
    }
    Ok(json!({ "counted": done.counted, "refreshed": done.refreshed, "failed": failed }))
}

/// Counts what waits, step by step, and refreshes view by view; `None` when stopped meanwhile.
///
/// # Errors
/// While another refresh runs. Whatever else fails is in the answer, and stops nothing.
pub async fn all(db: &Db, cancel: &CancellationToken) -> Result<Option<Refreshed>, DbError> {
    let mut done = Refreshed::default();
    loop {
        if cancel.is_cancelled() {
            return Ok(None);
        }
        match patiently(|| db.rollup_refresh(STEP)).await {
            Ok(step) => {
                done.counted += step.applied;
                if step.backlog == 0 || step.applied == 0 {
                    break;
                }
            }
            Err(error) if error.is_busy() => return Err(error),
            Err(error) => {
                tracing::error!(error = %error, "the rollups could not be brought up to date");
                done.failed.push(("rollups", error.to_string()));
                break;
            }
        }
    }
    for (view, statement) in VIEWS {
        if cancel.is_cancelled() {
            return Ok(None);
        }
        match patiently(|| db.refresh(statement)).await {
            Ok(()) => done.refreshed += 1,
            Err(error) if error.is_busy() => return Err(error),
            Err(error) => {
                tracing::error!(view, error = %error, "a view could not be refreshed");
                done.failed.push((view, error.to_string()));
            }
        }
    }
    Ok(Some(done))
}

/// Somebody who holds the lock for a moment only is waited for.
async fn patiently<T, F: Future<Output = Result<T, DbError>>>(work: impl Fn() -> F) -> Result<T, DbError> {
    for _ in 1..TRIES {
        match work().await {
            Err(error) if error.is_busy() => tokio::time::sleep(MOMENT).await,
            other => return other,
        }
    }
    work().await
}
