//! Closes the gap: publishing relays that lack what we last said.

use std::time::Duration;

use futures_util::future::try_join_all;
use serde_json::{Value, json};

use super::super::{Attempt, Ctx, JobError, Report, cadence, lost};
use super::{Publishing, TASK, visit};

/// Between two looks at an outbox that is empty; what is put into it makes the task due at once.
const INTERVAL: Duration = Duration::from_secs(60);
/// A worker that does not publish leaves the task to one that does.
const UNSERVED: Duration = Duration::from_secs(60);
/// Relays taken back at a time.
const WITHDRAWN_MAX: u32 = 500;

pub(in crate::jobs) async fn run(ctx: &Ctx, attempt: &Attempt) -> Result<Report, JobError> {
    let Some(publishing) = &ctx.config.publish else {
        return Err(JobError::snooze(UNSERVED, "this worker does not publish: publish.enabled is false"));
    };
    let said = say(ctx, attempt, publishing).await?;
    let relays = ctx.db.publication_begin(&attempt.fence, &publishing.about.relays).await?;
    if relays.is_empty() {
        return Err(lost());
    }
    let due = relays.iter().filter(|relay| relay.due);
    let visits = try_join_all(due.map(|relay| Box::pin(visit::run(ctx, attempt, relay)))).await?;
    let next = cadence::local(INTERVAL, TASK);
    if !ctx.db.publication_next(&attempt.fence, next.after, next.slack, "outbox").await? {
        return Err(lost());
    }
    let visits: Vec<Value> = visits.into_iter().flatten().collect();
    Ok(json!({ "said": said, "visits": visits }))
}

/// What we say of ourselves, and what we take back of relays that are left alone now.
async fn say(ctx: &Ctx, attempt: &Attempt, publishing: &Publishing) -> Result<u64, JobError> {
    let pubkey = publishing.keys.pubkey();
    // A look is one vantage's, and a key speaks of no more than the looks of those that sign with it.
    let turns = ctx.db.publication_turns(&pubkey, &ctx.config.vantage).await?;
    let frequency = ctx.config.monitor_interval.saturating_mul(turns);
    let drafts = publishing.about.announcements(frequency, &ctx.config.looks, &ctx.config.write_probe);
    let mut new =
        drafts.into_iter().map(|draft| publishing.announcement(draft)).collect::<Result<Vec<_>, _>>()?;
    for d in ctx.db.publication_unwanted(&pubkey, WITHDRAWN_MAX).await? {
        new.push(publishing.withdrawal(ctx, &d, "the relay is not observed any more").await?);
    }
    ctx.db.publication_put(&attempt.fence, &new).await?.ok_or_else(lost)
}
