//! Closes the gap: stretches of a relay's timeline that we do not hold with proof.
//!
//! The planner ([`crate::nips::Walk`]) says what to ask and what each answer proves; this job carries the
//! pages to the database. Whatever a page proves is written in the same transaction as its events, so a
//! process may die at any moment and the next attempt goes on exactly there. A window that ended by
//! anything but proof becomes a recorded gap. A relay that compares sets (NIP-77) is reconciled instead, by
//! [`crate::nips::neg::Reconcile`], and whatever is old enough is read again for what came late.

mod claims;
mod class;
mod dense;
mod dialing;
mod doubts;
mod ending;
mod ingest;
mod kinds;
mod missing;
#[cfg(test)]
mod passes;
mod reconcile;
mod rest;
mod revisit;
mod room;
mod sift;
mod specimens;
mod walking;
mod windows;

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use serde_json::json;

use self::class::Class;
use self::dialing::connect;
use self::ingest::{Digest, TOMBSTONES_AT_ONCE, Tally};
use self::revisit::Revisit;
use self::windows::{Window, begun, plan};
use super::cadence::{self, SyncEnd};
use super::egress::is_answer;
use super::{ANSWERED, Attempt, Ctx, JobError, Report, SKIPPED, capability, lost, target_url};
use crate::clock;
use crate::db::{ArchiveState, Pace, Revisited, SyncBegin, SyncFacts};
use crate::models::{
    Coverage, EventId, Fill, GapReason, Grade, Interval, Measured, Narrowed, Outcome, REST_PERCENT, Reason,
    Support, Until, stricter,
};
use crate::net::Target;
use crate::nips::Claim;
use crate::relay::RelaySocket;

/// The archive is at its size limit: nothing is lost by asking again later.
const FULL: Duration = Duration::from_secs(600);
/// Most requests of one window in one attempt: a bound for relays that never come to an end.
const REQUESTS: u32 = 10_000;
/// Most events taken in one page: a relay that ignores `limit` is cut off here.
const PAGE_EVENTS: usize = 5_000;
/// Frames borne that are not about our subscription.
const PAGE_STRAY: u32 = 1_000;

/// Of the time of a pass one in so many parts is left to dense seconds.
const SPLIT_SHARE: u64 = 5;

/// Most intervals kept of one relay and class: a relay that invents gaps without end costs itself proofs, not us rows.
const INTERVALS: usize = 8_192;

/// What a pass over one relay goes by.
struct ReadBy {
    archive: ArchiveState,
    facts: SyncFacts,
    class: Class,
    measured: Measured,
}

/// The disk budget, as a pass last saw it.
struct Budget {
    looked_ms: u64,
    fill: Fill,
}

/// One pass over one relay.
struct Pass<'a> {
    ctx: &'a Ctx,
    attempt: &'a Attempt,
    relay_id: i32,
    archive: ArchiveState,
    class: Class,
    /// How the relay wants its requests narrowed.
    narrowed: Option<Narrowed>,
    /// Whether it refused the first request of the class for its filter; none: it was asked nothing in it yet.
    filter_refused: Option<bool>,
    target: Option<Target>,
    coverage: Coverage,
    facts: SyncFacts,
    tally: Tally,
    until_ms: u64,
    split_ms: u64,
    budget: Budget,
    /// Events asked for per page.
    page_limit: u32,
    /// Events of the largest page the relay is known to have served.
    page_shown: usize,
    /// Events of the smallest page of this pass shown to be cut.
    smallest_cut: Option<usize>,
    /// The relay compares sets.
    reconciles: bool,
    /// It was found not to.
    neg_off: bool,
    /// Gaps that no later proof of this pass may cover.
    doubts: Coverage,
    /// What was read: with proof, or as a gap that the relay itself leaves.
    read: Vec<(i64, i64)>,
    /// Seconds found to hold more than a page.
    dense: BTreeSet<i64>,
    /// Events of the largest page of this pass.
    largest: usize,
    /// An event that it served in the class.
    heard: Option<EventId>,
    /// What the page before brought of its oldest second, and was stored, with its digest: the next page brings it again.
    edge: HashMap<EventId, Digest>,
    /// The relay takes `until` as exclusive, as far as its pages or its survey tell.
    until_exclusive: bool,
    revisited: Vec<Revisited>,
    room: room::Room,
    /// The gaps that are read again.
    rest: rest::Rest,
    /// How much is deleted at once.
    burying: Pace,
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
        return if held { Ok(json!({ SKIPPED: "the relay is down" })) } else { Err(lost()) };
    }
    if let Some(until) = ctx.db.relay_aside_until(relay.id).await? {
        let due = cadence::aside(until - clock::unix_now(), url.as_str());
        let held = ctx.db.schedule_next(&attempt.fence, due.after, due.slack, due.why).await?;
        return if held { Ok(json!({ "skipped": "set aside for what it forges" })) } else { Err(lost()) };
    }
    let SyncBegin { archive, facts, measured } = ctx.db.sync_begin(relay.id).await?;
    refuse_when_full(ctx, &archive)?;
    let now = clock::unix_now();
    let measured = measured.unwrap_or_default();
    let narrowed = measured.narrowed();
    let mut classes = Class::of_relay(&ctx.db, &attempt.fence, relay.id, narrowed, now).await?;
    if classes.len() > 1 && ctx.db.sync_interrupted_s(relay.id).await?.is_some() {
        // Another one first, so that those that break off do not keep the others from their turn.
        let first = clock::random() % classes.len() as u64;
        classes.rotate_left(usize::try_from(first).unwrap_or(0));
    }
    let mut classes = classes.into_iter();
    let Some(class) = classes.next() else { return Err(JobError::cancel("there is nothing to ask for")) };
    // What it begins with is of the class of most relays.
    let facts = if class.is_all() { facts } else { ctx.db.sync_facts(relay.id, &class.name).await? };
    let coverage = ctx.db.coverage_get(relay.id, &class.name).await?;
    // Nothing below the horizon is asked for: it was dropped, and would be again.
    let wanted = ctx.config.archive_days.map_or(0, |days| now - i64::from(days) * 86_400);
    let floor = wanted.max(archive.before).max(0);
    if floor > now {
        let due = cadence::sync(SyncEnd::UpToDate, ctx.config.sync_interval, url.as_str());
        let held = ctx.db.schedule_next(&attempt.fence, due.after, due.slack, due.why).await?;
        return if held { Ok(json!({ SKIPPED: "nothing of it is kept" })) } else { Err(lost()) };
    }
    let read_by = ReadBy { archive, facts, class, measured };
    let mut pass = Pass::new(ctx, attempt, relay.id, read_by, coverage, now);
    pass.wake(floor, now).await?;
    let opened = connect(ctx, attempt, &url, relay.was_up()).await?;
    let answered = opened.as_ref().err().is_none_or(|failure| is_answer(failure.reason));
    let end = match opened {
        Ok((mut socket, target)) => {
            pass.target = Some(target);
            let end = pass.read_classes(&mut socket, classes, floor, now).await;
            socket.close().await;
            end?
        }
        Err(failure) => {
            let reason = match failure.outcome {
                Outcome::Timeout => GapReason::Timeout,
                _ if failure.reason == Reason::RateLimited => GapReason::RateLimited,
                _ => GapReason::Disconnected,
            };
            pass.leave_gaps(&pass.windows(floor, now), Grade::Unknown, reason);
            ended_by((Grade::Unknown, reason))
        }
    };
    let mut report = pass.finish(&url, end, floor, now).await?;
    report[ANSWERED] = json!(answered || ctx.egress.has_canary(url.network()));
    Ok(report)
}

/// How a pass ends that this gap ended.
const fn ended_by(gap: (Grade, GapReason)) -> SyncEnd {
    match gap {
        (Grade::Refused, _) => SyncEnd::Refused,
        (_, GapReason::RateLimited) => SyncEnd::RateLimited,
        _ => SyncEnd::Interrupted,
    }
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

impl<'a> Pass<'a> {
    /// A pass with what is known of the relay.
    fn new(
        ctx: &'a Ctx,
        attempt: &'a Attempt,
        relay_id: i32,
        read_by: ReadBy,
        coverage: Coverage,
        now: i64,
    ) -> Self {
        let ReadBy { archive, facts, class, measured } = read_by;
        // A set by kinds or authors is not what we hold of the relay.
        let reconciles = class.is_all()
            && facts.neg_off_until.is_none_or(|until| until <= now)
            && measured.negentropy.seen == Support::Works;
        let time_box = u64::try_from(ctx.config.sync_time_box.as_millis()).unwrap_or(u64::MAX);
        Self {
            ctx,
            attempt,
            relay_id,
            archive,
            class,
            narrowed: measured.narrowed(),
            filter_refused: None,
            target: None,
            coverage,
            facts,
            tally: Tally::default(),
            until_ms: clock::monotonic_ms().saturating_add(time_box),
            split_ms: time_box / SPLIT_SHARE,
            budget: Budget { looked_ms: clock::monotonic_ms(), fill: Fill::Free },
            page_limit: capability::page_limit(ctx.config.page_limit, &measured),
            page_shown: usize::try_from(measured.page_max).unwrap_or(usize::MAX),
            smallest_cut: None,
            reconciles,
            neg_off: false,
            doubts: Coverage::empty(),
            read: Vec::new(),
            dense: BTreeSet::new(),
            largest: 0,
            heard: None,
            edge: HashMap::new(),
            until_exclusive: measured.until == Until::Exclusive,
            revisited: Vec::new(),
            room: room::Room::default(),
            rest: rest::Rest::default(),
            burying: Pace::of(TOMBSTONES_AT_ONCE),
        }
    }
}

impl Pass<'_> {
    /// What the coverage of the class leaves to ask for.
    fn windows(&self, floor: i64, now: i64) -> Vec<Window> {
        let rescan = i64::try_from(self.ctx.config.rescan.as_secs()).unwrap_or(i64::MAX);
        plan(&self.coverage, begun(&self.coverage, floor), now, rescan, self.rest.seconds())
    }

    /// Reads what is left of one class, and the seconds of it that are too dense for a page.
    async fn read_class(
        &mut self,
        socket: &mut RelaySocket,
        floor: i64,
        now: i64,
    ) -> Result<SyncEnd, JobError> {
        let windows = self.windows(floor, now);
        let revisits = revisit::due(&self.facts.revisits, &self.coverage, floor, now, self.reconciles);
        self.note_wanted(&windows);
        let end = self.read_all(socket, &windows, &revisits).await?;
        // Who refused, or went silent, is asked nothing more.
        if matches!(end, SyncEnd::UpToDate | SyncEnd::More) {
            return Ok(self.split_dense(socket).await?.unwrap_or(end));
        }
        Ok(end)
    }

    /// Reads the windows, newest first, and then again what is old enough, until all is read, the time is up, or
    /// one ends without EOSE.
    async fn read_all(
        &mut self,
        socket: &mut RelaySocket,
        windows: &[Window],
        revisits: &[Revisit],
    ) -> Result<SyncEnd, JobError> {
        let end = self.read_windows(socket, windows).await?;
        if end != SyncEnd::UpToDate {
            return Ok(end);
        }
        for revisit in revisits {
            if !revisit.is_worth_paging() && !self.reconciles {
                continue;
            }
            for (floor, ceiling) in revisit::left((revisit.since, revisit.until), &self.read) {
                let before = self.tally.new_observations;
                let end = self.read_windows(socket, &[Window { floor, ceiling, open_top: false }]).await?;
                let found = self.tally.new_observations - before;
                self.revisited.push(Revisited {
                    age_s: revisit.age_s,
                    until: 0,
                    seconds: ceiling - floor + 1,
                    found: i64::try_from(found).unwrap_or(i64::MAX),
                });
                if end != SyncEnd::UpToDate {
                    return Ok(end);
                }
            }
        }
        Ok(SyncEnd::UpToDate)
    }

    async fn read_windows(
        &mut self,
        socket: &mut RelaySocket,
        windows: &[Window],
    ) -> Result<SyncEnd, JobError> {
        for (index, window) in windows.iter().enumerate() {
            self.look_at_budget().await?;
            if self.reading_is_over() {
                return Ok(SyncEnd::More);
            }
            let (end, gap) = if self.reconciles {
                Box::pin(self.reconcile(socket, *window)).await?
            } else {
                self.walk(socket, *window).await?
            };
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
            self.note_claim(claim);
        }
        for claim in claims {
            self.keep_doubts(claim.since, claim.until);
        }
        self.coverage.coarsen(INTERVALS);
        !claims.is_empty()
    }

    /// Says of what is to be read, and was never spoken of, that it is wanted: wherever the pass ends, and if its worker dies,
    /// what it did not come to is a gap, and no stretch that nobody asked for.
    fn note_wanted(&mut self, windows: &[Window]) {
        let unheard =
            windows.iter().flat_map(|window| self.coverage.unheard_of(window.floor, window.ceiling));
        let gaps: Vec<Window> =
            unheard.map(|(floor, ceiling)| Window { floor, ceiling, open_top: false }).collect();
        self.leave_gaps(&gaps, Grade::Unknown, GapReason::Stopped);
    }

    fn leave_gaps(&mut self, windows: &[Window], grade: Grade, reason: GapReason) {
        let claims: Vec<Claim> = windows
            .iter()
            .map(|w| Claim { since: w.floor, until: w.ceiling, grade, reason, overrides_proof: false })
            .collect();
        self.overlay(&claims);
    }
}
