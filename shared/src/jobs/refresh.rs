//! Closes the gap: views that are older than the data under them.
//!
//! First what writers logged is counted into the rollups, in small transactions, so that no timeout takes more
//! than a step; then view by view, each in its own transaction over the direct connection, in dependency order.
//! What fails never stops the rest, and two refreshes never run at once.

use std::time::Duration;

use serde_json::{Map, json};

use super::{Attempt, Ctx, JobError, Report, cadence, lost};
use crate::db::{DbError, VIEWS};

/// Another worker refreshes right now.
const BUSY: Duration = Duration::from_secs(60);
/// Keys counted in one transaction: about a second's work.
const STEP: i32 = 50_000;
/// Retention holds the refreshes' lock too, for a moment at a time: so often and so long is waited for that.
const TRIES: u32 = 50;
const MOMENT: Duration = Duration::from_millis(100);

pub(super) async fn run(ctx: &Ctx, attempt: &Attempt) -> Result<Report, JobError> {
    let mut refreshed = 0_u32;
    let mut failed = Map::new();
    let mut counted = 0;
    loop {
        if attempt.stop.is_cancelled() {
            return Err(JobError::snooze(Duration::ZERO, "stopping"));
        }
        match patiently(|| ctx.direct.rollup_refresh(STEP)).await {
            Ok(step) => {
                counted += step.applied;
                if step.backlog == 0 || step.applied == 0 {
                    break;
                }
            }
            Err(error) if error.is_busy() => {
                return Err(JobError::snooze(BUSY, "another refresh is running"));
            }
            Err(error) => {
                tracing::error!(error = %error, "the rollups could not be brought up to date");
                failed.insert("rollups".to_owned(), json!(error.to_string()));
                break;
            }
        }
    }
    for (view, statement) in VIEWS {
        if attempt.stop.is_cancelled() {
            return Err(JobError::snooze(Duration::ZERO, "stopping"));
        }
        match patiently(|| ctx.direct.refresh(statement)).await {
            Ok(()) => refreshed += 1,
            Err(error) if error.is_busy() => {
                return Err(JobError::snooze(BUSY, "another refresh is running"));
            }
            Err(error) => {
                tracing::error!(view, error = %error, "a view could not be refreshed");
                failed.insert(view.to_owned(), json!(error.to_string()));
            }
        }
    }
    let due = cadence::local(ctx.config.refresh_interval, &attempt.target);
    if !ctx.db.schedule_next(&attempt.fence, due.after, due.slack, due.why).await? {
        return Err(lost());
    }
    if refreshed == 0 {
        return Err(JobError::Retry { why: format!("no view could be refreshed: {}", json!(failed)) });
    }
    Ok(json!({ "counted": counted, "refreshed": refreshed, "failed": failed }))
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
