//! Closes the gap: a relay whose state is older than it should be.

use std::str::FromStr;

use serde_json::json;

use super::liveness::{Liveness, State, judge};
use super::validate::{blame, sick};
use super::{Attempt, Ctx, JobError, Report, Standing, cadence, capability, lost, publish, target_url};
use crate::checks::{MonitorReport, run_on};
use crate::clock;
use crate::db::{CheckRow, MonitorResult, RelayRow};
use crate::models::RelayUrl;
use crate::telemetry::Labels;

pub(super) async fn run(ctx: &Ctx, attempt: &Attempt) -> Result<Report, JobError> {
    let url = target_url(ctx, attempt).await?;
    let Some(relay) = ctx.db.relay_get(&url, &ctx.config.vantage).await? else {
        return Err(JobError::cancel("no such relay any more"));
    };
    let resolved = ctx.dialer.resolve(&url).await;
    if let Ok(target) = &resolved {
        ctx.permit(attempt, target).await?;
    }
    let looks = capability::looks(ctx, &url, relay.id).await?;
    let report = Box::pin(run_on(&ctx.dialer, &url, resolved, &looks)).await;
    let reached = report.reached();
    let was_alive = relay.state.as_deref() == Some(State::Alive.as_str());
    ctx.egress.record(url.network(), (!reached).then_some(report.reason), was_alive);
    let standing = if report.up || reached {
        Standing::Proved
    } else {
        ctx.egress.standing(url.network(), &ctx.dialer).await
    };
    if standing == Standing::Sick {
        return Err(sick(
            url.network(),
            format!("relays of {} that were alive fail all at once: {}", url.network(), report.reason),
        ));
    }
    let proved = standing == Standing::Proved;
    if !report.up && report.ours {
        // A name server of the relay's own that fails looks like ours; if everything else works, it is theirs.
        blame(ctx, url.network(), report.reason, reached).await?;
    }
    let (state, result) = judge_report(ctx, attempt, &url, &relay, &report, proved)?;
    let next_s = result.next.as_secs();
    for check in &result.checks {
        ctx.metrics.checks.get_or_create(&Labels::new(check.kind, "", check.outcome.as_str())).inc();
    }
    capability::put(ctx, attempt, &url, &report).await?;
    publish::record(ctx, attempt, &url, &relay, &report).await?;
    if !ctx.db.monitor_finish(&ctx.config.vantage, &[result]).await?.is_empty() {
        return Err(lost());
    }
    Ok(
        json!({ "state": state.as_str(), "up": report.up, "reason": report.reason, "evidence": report.evidence, "next_s": next_s }),
    )
}

fn judge_report(
    ctx: &Ctx,
    attempt: &Attempt,
    url: &RelayUrl,
    relay: &RelayRow,
    report: &MonitorReport,
    proved: bool,
) -> Result<(State, MonitorResult), JobError> {
    let now = clock::unix_now();
    let before = relay.state.as_deref().map(State::from_str).transpose().map_err(|error| {
        JobError::Retry { why: format!("table relay_state, column state, row {url}: {error}") }
    })?;
    let (state, liveness) = judge(
        Liveness { state: before, failures: relay.failures, successes: relay.successes },
        report.up,
        proved,
    );
    let since = if before == Some(state) { now - relay.since_at.unwrap_or(now) } else { 0 };
    let due = cadence::monitor(state, liveness.failures, since, ctx.config.monitor_interval, url.as_str());
    let checks = report
        .observations
        .iter()
        .map(|o| CheckRow {
            kind: o.kind.as_str(),
            outcome: o.outcome,
            reason: o.reason,
            rtt_ms: o.rtt_ms,
            document: o.document.clone(),
        })
        .collect();
    let result = MonitorResult {
        fence: attempt.fence.clone(),
        url: url.clone(),
        state: state.as_str(),
        reason: report.reason,
        failures: liveness.failures,
        successes: liveness.successes,
        alive: report.up,
        checked_at: now,
        next: due.after,
        slack: due.slack,
        why: due.why.to_owned(),
        checks,
    };
    Ok((state, result))
}
