//! The capability record within a monitor job: when it is due, and where it goes.

use super::{Attempt, Ctx, JobError, WriteTo, lost};
use crate::checks::{Looks, MonitorReport};
use crate::clock;
use crate::db::{CapabilityResult, CapabilityRow, WriteRow};
use crate::models::{Measured, RelayUrl};

/// No fewer are asked for, whatever was measured: whoever serves one event a page gives no more for that.
const PAGE_LEAST: u32 = 20;
/// Asked for where nothing is known: most relay programs serve as many.
pub(super) const PAGE_USUAL: u32 = 500;

/// What this look at the relay is to find out, and what was measured of it before.
pub(super) async fn looks(
    ctx: &Ctx,
    url: &RelayUrl,
    relay_id: i32,
) -> Result<(Looks, Option<Measured>), JobError> {
    let known = ctx.db.capability_get(relay_id).await?;
    let interval_s = i64::try_from(ctx.config.capability_interval.as_secs()).unwrap_or(i64::MAX);
    let mut looks = ctx.config.looks.clone();
    let now = clock::unix_now();
    looks.speak.survey = is_due(known.as_ref().and_then(|known| known.measured_at), now, interval_s);
    let written_at = known.as_ref().and_then(CapabilityRow::written_at);
    looks.speak.write = match &ctx.config.write_probe {
        WriteTo::Nobody => false,
        WriteTo::Own(hosts) => owns(hosts, url),
        WriteTo::All(hosts) => owns(hosts, url) || is_due(written_at, now, interval_s),
    };
    Ok((looks, known.and_then(|known| known.measured)))
}

/// How many events to ask one page of a relay for: what its pages were measured to be cut at, or where none was cut the
/// usual number, or as many as one brought; never more than `most`, the operator's word. Asked for more than their limit
/// some relays give less, so that what is only claimed is not asked for.
pub(super) fn page_limit(most: u32, measured: &Measured) -> u32 {
    let best = measured.best_limit().map_or(measured.page_max.max(PAGE_USUAL), |best| best.max(PAGE_LEAST));
    best.min(most)
}

/// Stores what this look found out beyond its checks.
pub(super) async fn put(
    ctx: &Ctx,
    attempt: &Attempt,
    url: &RelayUrl,
    report: &MonitorReport,
    before: Option<Measured>,
) -> Result<(), JobError> {
    let spoken = &report.spoken;
    let write = spoken.write.as_ref().map(|write| WriteRow {
        outcome: write.outcome,
        reason: write.reason,
        detail: write.detail.clone(),
        write_ms: write.write_ms,
        pow: write.pow,
    });
    if spoken.measured.is_none() && write.is_none() {
        return Ok(());
    }
    let result = CapabilityResult {
        fence: attempt.fence.clone(),
        url: url.clone(),
        at: clock::unix_now(),
        claims: spoken.claims.clone(),
        measured: spoken.measured.clone().map(|measured| match before {
            Some(before) => measured.completed_by(before),
            None => measured,
        }),
        write,
    };
    if ctx.db.capability_put(&ctx.config.vantage, &[result]).await?.is_empty() { Ok(()) } else { Err(lost()) }
}

fn owns(hosts: &[String], url: &RelayUrl) -> bool {
    hosts.iter().any(|host| host == url.host())
}

fn is_due(last: Option<i64>, now: i64, interval_s: i64) -> bool {
    last.is_none_or(|last| now.saturating_sub(last) >= interval_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_asked_for_what_the_relay_was_seen_to_serve_and_no_more_than_the_operator_allows() {
        let limit =
            |max_limit, page_max| page_limit(1_000, &Measured { max_limit, page_max, ..Measured::default() });
        assert_eq!(
            [limit(None, 0), limit(None, 300), limit(None, 800), limit(None, 1_001)],
            [500, 500, 800, 1_000]
        );
        assert_eq!([limit(Some(1), 1), limit(Some(100), 100), limit(Some(500), 500)], [20, 100, 500]);
        assert_eq!(
            [limit(Some(700), 700), limit(Some(1_000), 1_000), limit(Some(5_000), 1)],
            [700, 1_000, 1_000]
        );
        let measured = Measured { max_limit: Some(1_000), ..Measured::default() };
        assert_eq!((page_limit(100, &measured), page_limit(100, &Measured::default())), (100, 100));
    }

    #[test]
    fn what_was_never_done_is_due_and_then_once_an_interval() {
        assert!(is_due(None, 5, 86_400));
        assert!(!is_due(Some(0), 86_399, 86_400));
        assert!(is_due(Some(0), 86_400, 86_400));
    }
}
