//! Closes the gap: a relay whose state is older than it should be.

use std::str::FromStr;
use std::time::Duration;

use serde_json::json;

use super::egress::is_answer;
use super::liveness::{Liveness, Look, Opinion, State, judge, overall, stands};
use super::validate::{ELSEWHERE, ELSEWHERE_TRIES, blame, is_ours, sick, unproved, unserved};
use super::{
    ANSWERED, Attempt, Ctx, JobError, Report, Standing, cadence, capability, lost, publish, target_url,
};
use crate::checks::{MonitorReport, run_on};
use crate::clock;
use crate::db::{CheckRow, MonitorResult, RelayRow};
use crate::models::{Reason, RelayUrl};
use crate::telemetry::Labels;

pub(super) async fn run(ctx: &Ctx, attempt: &Attempt) -> Result<Report, JobError> {
    let url = target_url(ctx, attempt).await?;
    let Some(relay) = ctx.db.relay_get(&url, &ctx.config.vantage).await? else {
        return Err(JobError::cancel("no such relay any more"));
    };
    leave_to_another_vantage(&relay, attempt)?;
    let resolved = ctx.dialer.resolve(&url).await;
    if let Ok(target) = &resolved {
        ctx.permit(attempt, target).await?;
    }
    let (looks, measured_before) = capability::looks(ctx, &url, relay.id).await?;
    let report = Box::pin(run_on(&ctx.dialer, &url, resolved, &looks)).await;
    if !report.up {
        unserved(ctx, attempt, url.network(), report.reason).await?;
    }
    let proved = prove(ctx, attempt, &url, &relay, &report).await?;
    let mut result = judge_report(ctx, attempt, &url, &relay, &report, proved)?;
    for seen in &report.observations {
        ctx.metrics.checks.get_or_create(&Labels::new(seen.kind.as_str(), "", seen.outcome.as_str())).inc();
    }
    capability::put(ctx, attempt, &url, &report, measured_before).await?;
    publish::record(ctx, attempt, &url, &relay, &report).await?;
    let answered = report.up
        || report.reached()
        || is_answer(report.reason)
        || (proved && ctx.egress.has_canary(url.network()));
    let said = json!({
        ANSWERED: answered, "state": result.state, "overall": result.overall, "up": report.up, "reason": report.reason,
        "evidence": report.evidence, "next_s": result.next.as_secs(),
    });
    // Last, and not copied: documents are long, and there are as many at once as there are slots.
    result.checks = checks(report);
    if ctx.calls.monitor_finish(result).await? { Ok(said) } else { Err(lost()) }
}

/// A second opinion: after a failed look from here the next one is another vantage's, while there is one. Not for
/// ever: its workers may be busy, and a look from here is better than none.
fn leave_to_another_vantage(relay: &RelayRow, attempt: &Attempt) -> Result<(), JobError> {
    let looked_last = relay.checked_at > relay.others_checked_at;
    if relay.rivals && looked_last && attempt.fence.attempt() <= ELSEWHERE_TRIES {
        return Err(JobError::snooze(ELSEWHERE, "the next look is another vantage's"));
    }
    Ok(())
}

/// Whether our own network was proved to work, so that a failure is the relay's.
async fn prove(
    ctx: &Ctx,
    attempt: &Attempt,
    url: &RelayUrl,
    relay: &RelayRow,
    report: &MonitorReport,
) -> Result<bool, JobError> {
    let reached = report.reached();
    ctx.egress.record(url.network(), (!reached).then_some(report.reason), relay.was_up());
    // First: silent name servers fail canaries, too, and only who asks them finds out that there are others by now.
    if !report.up && report.reason == Reason::DnsFailure && is_ours(ctx, report.reason).await {
        return Err(sick(url.network(), "our name servers do not answer".to_owned()));
    }
    let standing = if report.up || reached {
        Standing::Proved
    } else {
        ctx.egress.standing(url.network(), &ctx.dialer, relay.was_up()).await
    };
    if standing == Standing::Sick {
        return Err(sick(
            url.network(),
            format!("relays of {} that were alive fail all at once: {}", url.network(), report.reason),
        ));
    }
    if !report.up && report.ours {
        // A name server of the relay's own that fails looks like ours; if everything else works, it is theirs.
        blame(ctx, url.network(), report.reason, reached, relay.was_up()).await?;
    }
    if standing == Standing::Unproved && ctx.egress.most_fail(url.network()) {
        // What is written of it now would say nothing, and take away what stands.
        // A network of dead relays alone is asked ever more seldom.
        return Err(unproved(url.network(), report.reason, attempt.fence.attempt()));
    }
    // An outage of ours that has just begun fails a relay twice while what answered before it still proves us. The
    // latest look is no earlier than the first failure; a suspicion may be much older.
    let again = relay.state.as_deref() == Some(State::Suspect.as_str()) && relay.failures > 0;
    let since = relay.checked_at.filter(|_| again && !reached);
    Ok(standing == Standing::Proved && ctx.egress.answered_after(url.network(), report.reason, since))
}

/// What the look makes of the relay; its checks come to it in the end.
fn judge_report(
    ctx: &Ctx,
    attempt: &Attempt,
    url: &RelayUrl,
    relay: &RelayRow,
    report: &MonitorReport,
    proved: bool,
) -> Result<MonitorResult, JobError> {
    let now = clock::unix_now();
    let interval = ctx.config.monitor_interval;
    let before = relay.state.as_deref().map(|text| stored(text, "relay_state", url)).transpose()?;
    let look = Look::of(report.up, report.reason, proved);
    let (state, liveness) =
        judge(Liveness { state: before, failures: relay.failures, successes: relay.successes }, look);
    let stands = stands(state, look, interval);
    // What is down stays so until it answers: a look in doubt takes nothing back.
    let down = state == State::Down && before == Some(State::Down);
    let mine = Opinion { state, reason: report.reason, stands: down || !stands.is_zero() };
    let others = opinions(relay, url, now)?;
    let (overall, overall_reason) =
        overall(mine, &others, relay.for_down.unwrap_or(ctx.config.vantages_for_down));
    let overall_before =
        relay.overall.as_deref().map(|text| stored(text, "relay_overall", url)).transpose()?;
    let since_s =
        if overall_before == Some(overall) { now - relay.overall_since_at.unwrap_or(now) } else { 0 };
    let looked = cadence::Looked {
        overall,
        since_s,
        mine: state,
        changed: before != Some(state),
        failures: liveness.failures,
        refused: look == Look::Refused,
        retry_after: Duration::from_secs(report.retry_after_s.filter(|_| !report.up).unwrap_or(0)),
    };
    let due = cadence::monitor(looked, interval, url.as_str());
    Ok(MonitorResult {
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
        stands,
        overall: overall.as_str(),
        overall_reason,
        counted: look.counts(),
        checks: Vec::new(),
    })
}

fn opinions(relay: &RelayRow, url: &RelayUrl, now: i64) -> Result<Vec<Opinion>, JobError> {
    relay
        .others
        .iter()
        .map(|other| {
            let state = stored(&other.state, "relay_state", url)?;
            Ok(Opinion { state, reason: other.reason, stands: other.stands_until >= now })
        })
        .collect()
}

fn stored(text: &str, table: &str, url: &RelayUrl) -> Result<State, JobError> {
    State::from_str(text)
        .map_err(|error| JobError::Retry { why: format!("table {table}, column state, row {url}: {error}") })
}

fn checks(report: MonitorReport) -> Vec<CheckRow> {
    report
        .observations
        .into_iter()
        .map(|o| CheckRow {
            kind: o.kind.as_str(),
            outcome: o.outcome,
            reason: o.reason,
            rtt_ms: o.rtt_ms,
            document: o.document,
            status: o.status,
        })
        .collect()
}
