//! The way to the relay, and whose fault it is when there is none.

use super::super::validate::{blame, is_ours, unserved};
use super::super::{Attempt, Ctx, JobError, Standing};
use crate::models::{Reason, RelayUrl};
use crate::net::{DialFailure, Target};
use crate::relay::RelaySocket;

/// Dials the relay; a failure that may be ours is an error, the relay's own is a result.
pub(super) async fn connect(
    ctx: &Ctx,
    attempt: &Attempt,
    url: &RelayUrl,
    was_alive: bool,
) -> Result<Result<(RelaySocket, Target), DialFailure>, JobError> {
    let opened = match ctx.dialer.resolve(url).await {
        Ok(target) => {
            ctx.permit(attempt, &target).await?;
            RelaySocket::open_for_pages(&ctx.dialer, &target).await.map(|mut socket| {
                socket.identify(ctx.config.identity());
                (socket, target)
            })
        }
        Err(failure) => Err(failure),
    };
    let failure = opened.as_ref().err().map(|failure| failure.reason);
    if let Some(reason) = failure {
        unserved(ctx, attempt, url.network(), reason).await?;
    }
    ctx.egress.record(url.network(), failure, was_alive);
    if let Err(failure) = &opened {
        blame(ctx, url.network(), failure.reason, false, was_alive).await?;
    }
    Ok(opened)
}

/// Whether a relay that was there a moment ago may be out of reach because of us. That is noted like any dial; what is to
/// be done about it is for the next job that meets it.
pub(super) async fn may_be_ours(ctx: &Ctx, target: &Target, reason: Reason) -> bool {
    let network = target.url().network();
    ctx.egress.record(network, Some(reason), true);
    is_ours(ctx, reason).await || ctx.egress.standing(network, &ctx.dialer, true).await != Standing::Proved
}
