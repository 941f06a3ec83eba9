//! Carries a reconciliation ([`Reconcile`]) between relay and database.

use std::time::Duration;

use super::windows::Window;
use super::{Pass, REQUESTS, SyncEnd, ended_by};
use crate::clock;
use crate::db::{NewCoverage, ReconcileBatch};
use crate::jobs::room::{ID_BYTES, Share};
use crate::jobs::{JobError, lost};
use crate::models::{GapReason, Grade};
use crate::nips::Filter;
use crate::nips::neg::{Job, NegLimits, Reconcile, ReconcileSpec, Rest, Settlement};
use crate::relay::RelaySocket;

/// Ids asked for in one page: with their quotes they fit every message limit known.
const IDS_PER_PAGE: usize = 400;
/// Ids of one comparison, on either side: what a worker slot may hold at once.
const IDS_MAX: usize = 20_000;
/// Text of one comparison: the ids of both sides in hexadecimal, and as much again.
const BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Longest wait for one message of a comparison, in milliseconds.
const ANSWER_MS: u64 = 10_000;
/// Most messages of one comparison.
const ROUNDS_MAX: u32 = 400;
/// A relay that did not reconcile is not asked again for this long, seconds.
pub(super) const NEG_OFF_S: i64 = 7 * 86_400;

impl Pass<'_> {
    /// Reconciles one window; what cannot be reconciled is walked. Returns as [`Pass::walk`] does.
    pub(super) async fn reconcile(
        &mut self,
        socket: &mut RelaySocket,
        window: Window,
    ) -> Result<(SyncEnd, Option<(Grade, GapReason)>), JobError> {
        let page_limit = usize::try_from(self.page_limit).unwrap_or(usize::MAX);
        let is_known = self.tally.delivered > 0 || !self.witnesses((0, clock::unix_now())).await?.is_empty();
        let mut plan = Reconcile::new(ReconcileSpec {
            floor: window.floor,
            ceiling: window.ceiling,
            max_requests: REQUESTS,
            ids_per_page: IDS_PER_PAGE.min(page_limit),
            max_items: IDS_MAX,
            page_shown: self.page_shown,
            until_exclusive: self.until_exclusive,
            is_known,
        });
        let (mut stopped, mut ended) = (false, None);
        let mut held: Option<Share> = None;
        loop {
            let job = plan.next();
            if job == Job::Done {
                break;
            }
            self.look_at_budget().await?;
            if self.reading_is_over() {
                stopped = true;
                break;
            }
            if !socket.is_usable()
                && let Some(reason) = self.reconnect(socket).await?
            {
                ended = Some((Grade::Unknown, reason));
                break;
            }
            match (&job, &mut held) {
                (Job::Items { .. }, _) => {
                    // That of the window before goes first: who waits for one holds none.
                    drop(held.take());
                    self.room.leave();
                    let left = Duration::from_millis(self.until_ms.saturating_sub(clock::monotonic_ms()));
                    held = tokio::time::timeout(left, self.ctx.pages.set()).await.ok();
                    if held.is_none() {
                        stopped = true;
                        break;
                    }
                }
                // Compared, and most windows are small.
                (Job::Page(_), Some(share)) => share.shrink(ID_BYTES * plan.ids() as u64),
                _ => {}
            }
            let settled = self.work(socket, &mut plan, job).await?;
            self.settle(settled).await?;
            if let Some((floor, ceiling)) = plan.take_aside() {
                // Nothing of the next window is read yet, and a walk has its own.
                drop(held.take());
                let aside = Window { floor, ceiling, open_top: false };
                let (end, gap) = self.walk(socket, aside).await?;
                stopped = end == SyncEnd::More;
                ended = gap;
                if end != SyncEnd::UpToDate {
                    break;
                }
            }
        }
        drop(held);
        let rest = match (plan.finish(), ended) {
            (rest, None) => rest,
            (Rest::None, Some(gap)) => return Ok((ended_by(gap), Some(gap))),
            (rest, Some(gap)) => rest.stopped(gap),
        };
        self.after(socket, window, rest, stopped).await
    }

    /// Does one thing the plan asks for.
    async fn work(
        &mut self,
        socket: &mut RelaySocket,
        plan: &mut Reconcile,
        job: Job,
    ) -> Result<Settlement, JobError> {
        Ok(match job {
            Job::Done => Settlement::default(),
            Job::Items { since, until, most } => {
                plan.on_items(self.ctx.db.relay_items(self.relay_id, since, until, most).await?)
            }
            Job::Lookup { since, until } => {
                let wanted = plan.wanted();
                plan.on_known(&self.ctx.db.event_find(&wanted, since, until).await?)
            }
            Job::Compare(filter) => {
                let limits = NegLimits {
                    answer_ms: ANSWER_MS,
                    total_ms: self.limits(0).total_ms,
                    max_rounds: ROUNDS_MAX,
                    max_ids: IDS_MAX,
                    max_bytes: BYTES_MAX,
                };
                let compared = socket.compare(&filter, plan.items(), limits).await;
                self.tally.requests += 1;
                self.tally.comparisons += 1;
                self.tally.bytes += compared.bytes;
                plan.on_compared(compared.end)
            }
            Job::Page(filter) => {
                self.tally.requests += 1;
                let page = self.fetch(socket, filter).await;
                let (mut facts, end) = (page.facts.clone(), page.end.clone());
                // The events first: what they settle is worth nothing without them, and a forged one settles nothing.
                let forged = self.store_page(page, false).await?;
                facts.seen.retain(|(_, id)| !forged.contains(id));
                plan.on_page(&facts, &end)
            }
        })
    }

    /// Stores what was settled, in one fenced transaction.
    async fn settle(&mut self, settled: Settlement) -> Result<(), JobError> {
        if settled == Settlement::default() {
            return Ok(());
        }
        let changed = self.overlay(&settled.claims);
        self.tally.gone += settled.gone.len() as u64;
        self.tally.unserved += settled.unserved.len() as u64;
        self.tally.known += settled.claimed.len() as u64;
        let batch = ReconcileBatch {
            fence: &self.attempt.fence,
            relay_id: self.relay_id,
            at: clock::unix_now(),
            claimed: &settled.claimed,
            gone: &settled.gone,
            unserved: &settled.unserved,
            coverage: changed.then_some(NewCoverage { class: &self.class.name, coverage: &self.coverage }),
        };
        let new = self.ctx.db.reconcile_store(&batch).await?.ok_or_else(lost)?;
        self.tally.new_observations += new;
        self.ctx.metrics.observations_stored.inc_by(new);
        Ok(())
    }

    /// What is left goes to paging, or is a gap; and what is dated ahead of us is asked for once.
    async fn after(
        &mut self,
        socket: &mut RelaySocket,
        window: Window,
        rest: Rest,
        stopped: bool,
    ) -> Result<(SyncEnd, Option<(Grade, GapReason)>), JobError> {
        let walk = |floor, ceiling| Window {
            floor,
            ceiling,
            open_top: window.open_top && ceiling == window.ceiling,
        };
        // What a pass does not come to is the same gap whether it pages or compares.
        let out_of_time = (Grade::Unknown, GapReason::Stopped);
        match if stopped { rest.stopped(out_of_time) } else { rest } {
            Rest::None if stopped => Ok((SyncEnd::More, None)),
            Rest::None if window.open_top => self.look_ahead(socket, window.ceiling).await,
            Rest::None => Ok((SyncEnd::UpToDate, None)),
            Rest::Unsupported { floor, ceiling } => {
                self.reconciles = false;
                self.neg_off = true;
                self.walk(socket, walk(floor, ceiling)).await
            }
            Rest::Page { floor, ceiling } => self.walk(socket, walk(floor, ceiling)).await,
            Rest::Stopped { floor, ceiling, grade, reason } => {
                self.leave_gaps(&[walk(floor, ceiling)], grade, reason);
                if stopped {
                    return Ok((SyncEnd::More, None));
                }
                Ok((ended_by((grade, reason)), Some((grade, reason))))
            }
        }
    }

    /// One page of what is dated later than the window; it proves nothing.
    async fn look_ahead(
        &mut self,
        socket: &mut RelaySocket,
        ceiling: i64,
    ) -> Result<(SyncEnd, Option<(Grade, GapReason)>), JobError> {
        if !socket.is_usable() && self.reconnect(socket).await?.is_some() {
            return Ok((SyncEnd::UpToDate, None));
        }
        self.tally.requests += 1;
        let filter = Filter { since: Some(ceiling + 1), limit: Some(self.page_limit), ..Filter::default() };
        let page = self.fetch(socket, filter).await;
        let limited = page.end.gap() == GapReason::RateLimited;
        let gap = limited.then(|| (page.end.grade(), page.end.gap()));
        self.store_page(page, false).await?;
        Ok((gap.map_or(SyncEnd::UpToDate, ended_by), gap))
    }
}
