//! Closes the gap: stretches of a relay's timeline that we do not hold with proof.
//!
//! The planner ([`crate::nips::Walk`]) says what to ask and what each answer proves; this job carries the
//! pages to the database. Whatever a page proves is written in the same transaction as its events, so a
//! process may die at any moment and the next attempt goes on exactly there. A window that ended by
//! anything but proof becomes a recorded gap.

mod ingest;
mod windows;

use std::time::Duration;

use serde_json::json;

use self::ingest::{CLASS, Tally};
use self::windows::{Window, plan};
use super::cadence::{self, SyncEnd};
use super::validate::blame;
use super::{Attempt, Ctx, JobError, Report, lost, target_url};
use crate::clock;
use crate::db::{ArchiveState, NewCoverage, StoreBatch};
use crate::models::{Coverage, Fill, GapReason, Grade, Interval, Outcome, REST_PERCENT, RelayUrl, stricter};
use crate::net::{DialFailure, Target};
use crate::nips::{Claim, Limits, Next, Walk, WalkSpec};
use crate::relay::RelaySocket;

/// The archive is at its size limit: nothing is lost by asking again later.
const FULL: Duration = Duration::from_secs(600);
/// Most requests of one window in one attempt: a bound for relays that never come to an end.
const REQUESTS: u32 = 10_000;
/// Most events taken in one page: a relay that ignores `limit` is cut off here.
const PAGE_EVENTS: usize = 5_000;
/// Most bytes taken in one page: what a worker slot may hold at once.
const PAGE_BYTES: u64 = 16 * 1024 * 1024;
/// Frames borne that are not about our subscription.
const PAGE_STRAY: u32 = 1_000;

/// One pass over one relay.
struct Pass<'a> {
    ctx: &'a Ctx,
    attempt: &'a Attempt,
    relay_id: i32,
    archive: ArchiveState,
    target: Option<Target>,
    coverage: Coverage,
    tally: Tally,
    until_ms: u64,
}

pub(super) async fn run(ctx: &Ctx, attempt: &Attempt) -> Result<Report, JobError> {
    let url = target_url(ctx, attempt).await?;
    let Some(relay) = ctx.db.relay_get(&url, &ctx.config.vantage).await? else {
        return Err(JobError::cancel("no such relay any more"));
    };
    // Where it was never looked at from here, what the other vantages say is all there is.
    if relay.state.as_deref().or(relay.overall.as_deref()) == Some("down") {
        let due = cadence::sync(SyncEnd::Down, ctx.config.sync_interval, url.as_str());
        let held = ctx.db.schedule_next(&attempt.fence, due.after, due.slack, due.why).await?;
        return if held { Ok(json!({ "skipped": "the relay is down" })) } else { Err(lost()) };
    }
    let archive = ctx.db.archive_get(Some(url.as_str())).await?;
    refuse_when_full(ctx, &archive)?;
    let coverage = ctx.db.coverage_get(relay.id, CLASS).await?;
    let now = clock::unix_now();
    // Nothing below the horizon is asked for: it was dropped, and would be again.
    let wanted = ctx.config.archive_days.map_or(0, |days| now - i64::from(days) * 86_400);
    let floor = wanted.max(archive.before).max(0);
    if floor > now {
        let due = cadence::sync(SyncEnd::UpToDate, ctx.config.sync_interval, url.as_str());
        let held = ctx.db.schedule_next(&attempt.fence, due.after, due.slack, due.why).await?;
        return if held { Ok(json!({ "skipped": "nothing of it is kept" })) } else { Err(lost()) };
    }
    let rescan = i64::try_from(ctx.config.rescan.as_secs()).unwrap_or(i64::MAX);
    let windows = plan(&coverage, floor, now, rescan);
    let until_ms =
        clock::monotonic_ms() + u64::try_from(ctx.config.sync_time_box.as_millis()).unwrap_or(u64::MAX);
    let mut pass = Pass {
        ctx,
        attempt,
        relay_id: relay.id,
        archive,
        target: None,
        coverage,
        tally: Tally::default(),
        until_ms,
    };
    let end = match connect(ctx, attempt, &url, relay.state.as_deref() == Some("alive")).await? {
        Ok((mut socket, target)) => {
            pass.target = Some(target);
            let end = pass.walk_all(&mut socket, &windows).await;
            socket.close().await;
            end?
        }
        Err(failure) => {
            let reason = if failure.outcome == Outcome::Timeout {
                GapReason::Timeout
            } else {
                GapReason::Disconnected
            };
            pass.leave_gaps(&windows, Grade::Unknown, reason);
            SyncEnd::Interrupted
        }
    };
    pass.finish(&url, end, floor, now).await
}

/// Dials the relay; a failure that may be ours is an error, the relay's own is a result.
async fn connect(
    ctx: &Ctx,
    attempt: &Attempt,
    url: &RelayUrl,
    was_alive: bool,
) -> Result<Result<(RelaySocket, Target), DialFailure>, JobError> {
    let opened = match ctx.dialer.resolve(url).await {
        Ok(target) => {
            ctx.permit(attempt, &target).await?;
            RelaySocket::open(&ctx.dialer, &target).await.map(|mut socket| {
                socket.identify(ctx.config.identity());
                (socket, target)
            })
        }
        Err(failure) => Err(failure),
    };
    ctx.egress.record(url.network(), opened.as_ref().err().map(|failure| failure.reason), was_alive);
    if let Err(failure) = &opened {
        blame(ctx, url.network(), failure.reason, false).await?;
    }
    Ok(opened)
}

/// Before the disk is full syncing stops, monitoring does not.
fn refuse_when_full(ctx: &Ctx, archive: &ArchiveState) -> Result<(), JobError> {
    let max = stricter(ctx.config.archive_max_bytes, archive.max_bytes);
    if let (Fill::Rests, Some(max)) = (Fill::of(archive.bytes, max), max) {
        let bytes = archive.bytes;
        return Err(JobError::snooze(
            FULL,
            format!(
                "the archive is at its size limit ({bytes} of {max} bytes, {REST_PERCENT} % are enough): syncing rests, monitoring goes on"
            ),
        ));
    }
    Ok(())
}

impl Pass<'_> {
    fn time_is_up(&self) -> bool {
        self.attempt.stop.is_cancelled() || clock::monotonic_ms() >= self.until_ms
    }

    /// Walks the windows, newest first, until all are walked, the time is up, or one ends without EOSE.
    async fn walk_all(&mut self, socket: &mut RelaySocket, windows: &[Window]) -> Result<SyncEnd, JobError> {
        for (index, window) in windows.iter().enumerate() {
            if self.time_is_up() {
                return Ok(SyncEnd::More);
            }
            let (end, gap) = self.walk(socket, *window).await?;
            if let Some((grade, reason)) = gap {
                // What stopped this window would stop the older ones too.
                self.leave_gaps(&windows[index + 1..], grade, reason);
            }
            if end != SyncEnd::UpToDate {
                return Ok(end);
            }
        }
        Ok(SyncEnd::UpToDate)
    }

    /// Walks one window; returns how that ended and, if the relay ended it, with which gap.
    async fn walk(
        &mut self,
        socket: &mut RelaySocket,
        window: Window,
    ) -> Result<(SyncEnd, Option<(Grade, GapReason)>), JobError> {
        let config = &self.ctx.config;
        let mut walk = Walk::new(WalkSpec {
            floor: window.floor,
            ceiling: window.ceiling,
            open_top: window.open_top,
            limit: config.page_limit,
            max_requests: REQUESTS,
        });
        let limits = Limits {
            idle_ms: u64::try_from(config.page_idle.as_millis()).unwrap_or(u64::MAX),
            total_ms: u64::try_from(config.page_total.as_millis()).unwrap_or(u64::MAX),
            max_events: PAGE_EVENTS,
            max_bytes: PAGE_BYTES,
            max_stray_frames: PAGE_STRAY,
        };
        let mut gap = None;
        let mut stopped = false;
        while let Next::Request(filter) = walk.next() {
            if self.time_is_up() {
                stopped = true;
                break;
            }
            self.tally.requests += 1;
            let page = socket.fetch(filter, limits).await;
            let claims = walk.on_page(&page.facts, &page.end);
            gap = (!page.end.is_eose()).then(|| (page.end.grade(), page.end.gap()));
            let changed = self.overlay(&claims);
            self.store_page(page, changed).await?;
            if !socket.is_usable() && !self.reopen(socket, &mut walk).await {
                break;
            }
        }
        let rest = walk.finish(gap.map_or(GapReason::Stopped, |(_, reason)| reason));
        self.overlay(&rest);
        let end = match gap {
            _ if stopped => SyncEnd::More,
            None => SyncEnd::UpToDate,
            Some((Grade::Refused, _)) => SyncEnd::Refused,
            Some(_) => SyncEnd::Interrupted,
        };
        Ok((end, if stopped { None } else { gap }))
    }

    /// A new connection for a walk that has more to ask (after an oversize page it asks for less, once).
    async fn reopen(&self, socket: &mut RelaySocket, walk: &mut Walk) -> bool {
        let (Next::Request(_), Some(target)) = (walk.next(), &self.target) else { return false };
        match RelaySocket::open(&self.ctx.dialer, target).await {
            Ok(fresh) => {
                *socket = fresh;
                socket.identify(self.ctx.config.identity());
                true
            }
            Err(_) => false,
        }
    }

    /// Lays claims over the coverage; whether there were any.
    fn overlay(&mut self, claims: &[Claim]) -> bool {
        let now = clock::unix_now();
        for claim in claims {
            match Interval::new(claim.since, claim.until, claim.grade, claim.reason, now) {
                Ok(interval) if claim.overrides_proof => self.coverage.overrule(interval),
                Ok(interval) => self.coverage.overlay(interval),
                Err(error) => {
                    tracing::error!(error = %error, ?claim, "the planner made a claim that is none");
                }
            }
        }
        !claims.is_empty()
    }

    fn leave_gaps(&mut self, windows: &[Window], grade: Grade, reason: GapReason) {
        let claims: Vec<Claim> = windows
            .iter()
            .map(|w| Claim { since: w.floor, until: w.ceiling, grade, reason, overrides_proof: false })
            .collect();
        self.overlay(&claims);
    }

    /// Writes the coverage as it stands and when the relay is next due.
    async fn finish(self, url: &RelayUrl, end: SyncEnd, floor: i64, now: i64) -> Result<Report, JobError> {
        let due = cadence::sync(end, self.ctx.config.sync_interval, url.as_str());
        let batch = StoreBatch {
            fence: &self.attempt.fence,
            relay_id: self.relay_id,
            seen_at: now,
            delivered: &[],
            new: &[],
            light: self.archive.light,
            coverage: Some(NewCoverage { class: CLASS, coverage: &self.coverage }),
            next: Some((due.after, due.slack, due.why)),
        };
        if !self.ctx.db.sync_store(&batch).await?.held {
            return Err(lost());
        }
        let mut report = self.tally.report();
        report["end"] = json!(due.why);
        report["proved_share"] = json!(self.coverage.proved_share(floor, now));
        Ok(report)
    }
}
