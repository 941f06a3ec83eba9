//! How a pass ends: what it learnt, what it proved, when the relay is next due; and whether it forges too much.

use serde_json::json;

use super::super::cadence::{self, SyncEnd};
use super::super::{JobError, Report, lost};
use super::class::Class;
use super::revisit::{self, AGES};
use super::{Budget, Pass, reconcile};
use crate::clock;
use crate::db::{NewCoverage, Revisited, StoreBatch};
use crate::jobs::cadence::Due;
use crate::models::{Coverage, Fill, RelayUrl, stricter};

impl Pass<'_> {
    /// Whether the pass is over: its time or the disk budget is up, or what the relay serves is not worth it.
    pub(super) fn is_over(&self) -> bool {
        clock::monotonic_ms() >= self.until_ms || self.budget.fill.rests() || self.is_cut_short()
    }

    /// The same for reading, which leaves a share of the time to splitting where there is something to split.
    pub(super) fn reading_is_over(&self) -> bool {
        let left_ms = if self.dense.is_empty() { 0 } else { self.split_ms };
        self.is_over() || clock::monotonic_ms().saturating_add(left_ms) >= self.until_ms
    }

    /// Looks at the disk budget again, where the last look is long enough ago: a pass is as long as a time box, and many
    /// run at once.
    pub(super) async fn look_at_budget(&mut self) -> Result<(), JobError> {
        let now_ms = clock::monotonic_ms();
        let look_ms = u64::try_from(self.ctx.config.budget_look.as_millis()).unwrap_or(u64::MAX);
        if self.budget.fill.rests() || now_ms.saturating_sub(self.budget.looked_ms) < look_ms {
            return Ok(());
        }
        let (bytes, max) = self.ctx.db.archive_room().await?;
        let fill = Fill::of(bytes, stricter(self.ctx.config.archive_max_bytes, max));
        self.budget = Budget { looked_ms: now_ms, fill };
        Ok(())
    }

    /// Whether it is over, and not because its time is up: nothing more is asked.
    pub(super) fn is_cut_short(&self) -> bool {
        self.attempt.stop.is_cancelled() || self.forges()
    }

    /// Whether what came in this pass alone is more than is borne.
    fn forges(&self) -> bool {
        let limit = self.ctx.config.forgery;
        let share = self.tally.delivered.saturating_mul(u64::from(limit.percent));
        limit.days > 0
            && self.tally.forged >= u64::from(limit.floor)
            && self.tally.forged.saturating_mul(100) >= share
    }

    /// Ends with one filter class and begins with another.
    pub(super) async fn turn_to(&mut self, class: Class, floor: i64, now: i64) -> Result<(), JobError> {
        self.learn(floor, now).await?;
        self.write(now, None).await?;
        self.begin(class, floor, now).await
    }

    /// Begins with a filter class; what is known of the one before is written, or is not to be.
    pub(super) async fn begin(&mut self, class: Class, floor: i64, now: i64) -> Result<(), JobError> {
        self.facts = self.ctx.db.sync_facts(self.relay_id, &class.name).await?;
        self.coverage = self.ctx.db.coverage_get(self.relay_id, &class.name).await?;
        self.class = class;
        self.filter_refused = None;
        self.doubts = Coverage::empty();
        self.read.clear();
        self.dense.clear();
        self.heard = None;
        self.edge.clear();
        self.revisited.clear();
        self.wake(floor, now).await
    }

    /// Notes how far each age was read again, and that the relay does not reconcile.
    async fn learn(&mut self, floor: i64, now: i64) -> Result<(), JobError> {
        let mut learnt = Vec::new();
        for age_s in AGES {
            let reached = revisit::reached(&self.facts.revisits, &self.coverage, age_s, floor);
            let until = revisit::advance(reached, age_s, now, &self.read);
            let mine = self.revisited.iter().filter(|revisited| revisited.age_s == age_s);
            let (seconds, found) = mine.fold((0, 0), |(s, f), r| (s + r.seconds, f + r.found));
            if until > floor || found > 0 {
                learnt.push(Revisited { age_s, until, seconds, found });
            }
        }
        let off = self.neg_off.then_some(now + reconcile::NEG_OFF_S);
        let (fence, class) = (&self.attempt.fence, &self.class.name);
        if !self.ctx.db.sync_learn(fence, self.relay_id, now, off, class, &learnt).await? {
            return Err(lost());
        }
        self.lay_down().await
    }

    /// Writes the coverage of the class as it stands, and when the relay is next due.
    async fn write(&self, now: i64, due: Option<&Due>) -> Result<(), JobError> {
        let batch = StoreBatch {
            fence: &self.attempt.fence,
            relay_id: self.relay_id,
            seen_at: now,
            delivered: &[],
            new: &[],
            light: self.archive.light,
            coverage: Some(NewCoverage { class: &self.class.name, coverage: &self.coverage }),
            next: due.map(|due| (due.after, due.slack, due.why)),
        };
        if self.ctx.db.sync_store(&batch).await?.held { Ok(()) } else { Err(lost()) }
    }

    /// Sets the relay aside where too much of what it serves is forged; until when.
    async fn weigh(&self, now: i64) -> Result<Option<i64>, JobError> {
        let limit = self.ctx.config.forgery;
        if self.tally.forged == 0 || limit.days == 0 {
            return Ok(None);
        }
        let (fence, served) = (&self.attempt.fence, (self.tally.delivered, self.tally.forged));
        let weighed = self.ctx.db.forgery_weigh(fence, self.relay_id, now, served, limit).await?;
        if !weighed.ok_or_else(lost)? {
            return Ok(None);
        }
        let (relay, forged, days) = (self.relay_id, self.tally.forged, limit.days);
        tracing::warn!(relay.id = relay, forged, days, "a relay is set aside for what it forges");
        Ok(Some(now + i64::from(limit.days) * 86_400))
    }

    /// Writes the coverage as it stands and when the relay is next due.
    pub(super) async fn finish(
        mut self,
        url: &RelayUrl,
        end: SyncEnd,
        floor: i64,
        now: i64,
    ) -> Result<Report, JobError> {
        self.learn(floor, now).await?;
        self.bury().await;
        // Whoever drips when the time is up would drip on, and whoever forges would go on with that.
        let goes_on = self.tally.drags || self.forges();
        let end = if end == SyncEnd::More && goes_on { SyncEnd::Interrupted } else { end };
        let base = self.ctx.config.sync_interval;
        let due = if let Some(until) = self.weigh(now).await? {
            cadence::aside(until - now, url.as_str())
        } else if end == SyncEnd::RateLimited {
            cadence::limited(self.ctx.db.sync_limited_s(self.relay_id).await?, base, url.as_str())
        } else if end == SyncEnd::Interrupted && self.tally.new_observations == 0 {
            let before = self.ctx.db.sync_interrupted_s(self.relay_id).await?;
            // What was ours leaves its pause as it was.
            let before = before.map(|pause| if self.tally.ours { pause / 2 } else { pause });
            cadence::interrupted(before, base, url.as_str())
        } else {
            let due = cadence::sync(end, base, url.as_str());
            cadence::by_worth(due, end, self.tally.requests, self.tally.new_observations)
        };
        self.write(now, Some(&due)).await?;
        let mut report = self.tally.report();
        report["end"] = json!(due.why);
        report["proved_share"] = json!(self.coverage.proved_share(floor, now));
        Ok(report)
    }
}
