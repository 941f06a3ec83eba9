//! Closes the gap: a candidate of which nobody knows whether it speaks Nostr.

use std::time::Duration;

use serde_json::json;

use super::egress::is_answer;
use super::liveness::Look;
use super::{ANSWERED, Attempt, Ctx, JobError, Report, Standing, cadence, lost, refused, target_url};
use crate::db::ValidateResult;
use crate::models::{Network, Reason, RelayUrl};
use crate::net::Target;
use crate::relay::{ProbeVerdict, RelaySocket};

/// While nothing has told us yet whether our own network works.
const UNPROVED: Duration = Duration::from_secs(60);
/// A network that this worker cannot serve.
const UNSERVED: Duration = Duration::from_secs(3_600);
/// How long a job waits for a worker of another vantage to claim it, and how often. Not a whole number of seconds:
/// workers poll every second, and the one that gave it back would be there first each time.
pub(super) const ELSEWHERE: Duration = Duration::from_millis(3_100);
pub(super) const ELSEWHERE_TRIES: i32 = 6;

pub(super) async fn run(ctx: &Ctx, attempt: &Attempt) -> Result<Report, JobError> {
    let url = target_url(ctx, attempt).await?;
    let Some(candidate) = ctx.calls.candidate_get(&url).await? else {
        return Err(JobError::cancel("no such candidate any more"));
    };
    let verdict = match ctx.dialer.resolve(&url).await {
        // A relay that takes the connection has as long again to speak.
        Ok(target) => {
            let target = ctx.config.looks.target(target);
            ctx.permit(attempt, &target).await?;
            probe(ctx, &target).await
        }
        Err(failure) => ProbeVerdict::unreached(&failure),
    };
    // A candidate that may not be dialled fails like any other, or names in a denied range would wait for ever.
    let denied = verdict.reason == Reason::AddressDenied;
    if !denied {
        unserved(ctx, attempt, url.network(), verdict.reason).await?;
        if let Some(failure) = reach_failure(&verdict) {
            ctx.egress.record(url.network(), Some(failure), false);
        }
    }
    if !verdict.alive && !denied {
        blame(ctx, url.network(), verdict.reason, verdict.open_ms.is_some(), false).await?;
    }
    let failures = candidate.failures.saturating_add(1);
    let refused = matches!(Look::of(verdict.alive, verdict.reason, true), Look::Refused);
    let due = cadence::candidate(failures, refused, url.as_str());
    let result = result(attempt, &url, &verdict, due);
    let give_up = result.give_up;
    if !ctx.calls.validate_finish(result).await? {
        return Err(lost());
    }
    let answered = verdict.alive || verdict.open_ms.is_some() || is_answer(verdict.reason);
    Ok(json!({
        ANSWERED: answered || ctx.egress.has_canary(url.network()), "alive": verdict.alive, "evidence": verdict.evidence, "outcome": verdict.outcome, "reason": verdict.reason,
        "detail": verdict.detail, "given_up": give_up,
    }))
}

/// Opens a WebSocket, probes it and closes it. That it opened is noted before the probe: what fails meanwhile elsewhere
/// fails with our own network proved.
async fn probe(ctx: &Ctx, target: &Target) -> ProbeVerdict {
    let network = target.url().network();
    match RelaySocket::open(&ctx.dialer, target).await {
        Ok(socket) => {
            ctx.egress.record(network, None, false);
            socket.probe_and_part(ctx.dialer.config().network(network).connect_timeout_ms).await
        }
        Err(failure) => ProbeVerdict::unreached(&failure),
    }
}

fn result(
    attempt: &Attempt,
    url: &RelayUrl,
    verdict: &ProbeVerdict,
    due: Option<cadence::Due>,
) -> ValidateResult {
    let give_up = !verdict.alive && due.is_none();
    let due = due.unwrap_or(cadence::Due { after: Duration::ZERO, slack: Duration::ZERO, why: "given up" });
    ValidateResult {
        fence: attempt.fence.clone(),
        url: url.clone(),
        alive: verdict.alive,
        outcome: verdict.outcome,
        reason: verdict.reason,
        next: due.after,
        slack: due.slack,
        give_up,
        proof: verdict.evidence,
        detail: verdict.detail.clone(),
        rtt_ms: [verdict.open_ms, verdict.read_ms],
    }
}

/// What kept the probe from a WebSocket, if anything did.
pub(super) fn reach_failure(verdict: &ProbeVerdict) -> Option<Reason> {
    if verdict.open_ms.is_some() { None } else { Some(verdict.reason) }
}

/// An error when this worker cannot serve a relay, and others may: it says nothing about the relay, nor about our own
/// way into its network.
pub(super) async fn unserved(
    ctx: &Ctx,
    attempt: &Attempt,
    network: Network,
    reason: Reason,
) -> Result<(), JobError> {
    match reason {
        Reason::NetworkDisabled | Reason::ProxyMissing => {
            Err(JobError::snooze(UNSERVED, format!("this worker does not serve {network}: {reason}")))
        }
        // Its machine's owner wants to be left alone: no look, hence neither a failure nor a state.
        Reason::AddressDenied => {
            Err(refused(ctx, attempt, "an address of it is in a range of network.deny").await)
        }
        // Of one family of addresses alone, which another vantage may have.
        Reason::NoRoute if ctx.dialer.has_route() => {
            let delay = if attempt.fence.attempt() <= ELSEWHERE_TRIES { ELSEWHERE } else { UNSERVED };
            Err(JobError::snooze(
                delay,
                "this machine has no route to the relay's addresses, and to others it has",
            ))
        }
        _ => Ok(()),
    }
}

/// Whether a failure that may be ours is: not where name servers fail for one name alone, or one family of addresses
/// has no route from here.
pub(super) async fn is_ours(ctx: &Ctx, reason: Reason) -> bool {
    match reason {
        // However lately something answered: a resolver that is silent for everybody says nothing about anybody.
        Reason::DnsFailure => !ctx.dialer.names_answer().await,
        Reason::NoRoute => !ctx.dialer.has_route(),
        // Our word about this one machine.
        Reason::AddressDenied => false,
        reason => reason.is_ours(),
    }
}

/// An error when the failure must not be laid at the relay's door. `was_up` as in [`super::Egress::standing`].
pub(super) async fn blame(
    ctx: &Ctx,
    network: Network,
    reason: Reason,
    reached: bool,
    was_up: bool,
) -> Result<(), JobError> {
    if is_ours(ctx, reason).await {
        let why = match reason {
            Reason::DnsFailure => "our name servers do not answer".to_owned(),
            _ => format!("our own way into {network} does not work: {reason}"),
        };
        return Err(sick(network, why));
    }
    if reached {
        return Ok(());
    }
    match ctx.egress.standing(network, &ctx.dialer, was_up).await {
        Standing::Proved => Ok(()),
        Standing::Unproved => Err(unproved(network, reason, 1)),
        Standing::Sick => {
            Err(sick(network, format!("relays of {network} that were alive fail all at once: {reason}")))
        }
    }
}

/// The same job later, the later the oftener it was put off.
pub(super) fn unproved(network: Network, reason: Reason, tries: i32) -> JobError {
    let why =
        format!("nothing on {network} has answered us lately, so {reason} says nothing about the relay");
    JobError::snooze(UNPROVED * u32::try_from(tries.clamp(1, 30)).unwrap_or(1), why)
}

pub(super) const fn sick(network: Network, why: String) -> JobError {
    JobError::Sick { network, why }
}
