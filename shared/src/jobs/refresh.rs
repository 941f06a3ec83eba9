//! Closes the gap: views that are older than the data under them.
//!
//! View by view, each in its own transaction over the direct connection, in dependency order; one that
//! fails never stops the rest, and two refreshes never run at once.

use std::time::Duration;

use serde_json::{Map, json};

use super::{Attempt, Ctx, JobError, Report, cadence, lost};
use crate::db::{DbError, VIEWS};

/// Another worker refreshes right now.
const BUSY: Duration = Duration::from_secs(60);
/// Retention holds the refreshes' lock too, for a moment at a time: so often and so long is waited for that.
const TRIES: u32 = 50;
const MOMENT: Duration = Duration::from_millis(100);

pub(super) async fn run(ctx: &Ctx, attempt: &Attempt) -> Result<Report, JobError> {
    let mut refreshed = 0_u32;
    let mut failed = Map::new();
    for (view, statement) in VIEWS {
        if attempt.stop.is_cancelled() {
            return Err(JobError::snooze(Duration::ZERO, "stopping"));
        }
        match refresh(ctx, statement).await {
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
    Ok(json!({ "refreshed": refreshed, "failed": failed }))
}

/// One view; somebody who holds the lock for a moment only is waited for.
async fn refresh(ctx: &Ctx, statement: &'static str) -> Result<(), DbError> {
    for _ in 1..TRIES {
        match ctx.direct.refresh(statement).await {
            Err(error) if error.is_busy() => tokio::time::sleep(MOMENT).await,
            other => return other,
        }
    }
    ctx.direct.refresh(statement).await
}
