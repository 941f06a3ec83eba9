//! Gauges of the whole fleet: shown by the leader only, or N schedulers would multiply them.

use std::collections::HashMap;

use shared::db::{Db, DbError};
use shared::models::{Fill, JobKind, LOCAL, Network, REST_PERCENT};
use shared::telemetry::{Labels, Metrics};

use crate::lead::Lead;

/// One reading.
#[derive(Debug)]
pub(crate) struct Gauges {
    pub(crate) db: Db,
    pub(crate) metrics: Metrics,
    pub(crate) lead: Lead,
    pub(crate) term: i64,
    /// The disk budget.
    pub(crate) max_bytes: Option<u64>,
}

impl Gauges {
    /// Reads them, and shows them if the lead is still ours then.
    pub(crate) async fn read(self) -> Result<(), DbError> {
        self.db.queue_sample_take().await?;
        let lines = self.db.queue_stats().await?;
        let fleet = self.db.fleet_stats().await?;
        let backlog = self.db.rollup_backlog().await?;
        // A queue that has nothing is not among the lines: its zero is as true as any number.
        let mut queues: HashMap<Labels, (i64, i64)> = queues().map(|labels| (labels, (0, 0))).collect();
        for line in lines {
            let Ok(kind) = line.kind.parse::<JobKind>() else { continue };
            let network = line.network.parse().map_or(LOCAL, Network::as_str);
            #[expect(clippy::cast_possible_truncation, reason = "an age in whole seconds")]
            let oldest = line.oldest_due_s.unwrap_or(0.0) as i64;
            queues.insert(Labels::new(kind.as_str(), network, ""), (gauge(line.due), oldest));
        }
        self.lead.under(self.term, || {
            for (labels, (due, oldest)) in queues {
                self.metrics.queue_due.get_or_create(&labels).set(due);
                self.metrics.queue_oldest_due_seconds.get_or_create(&labels).set(oldest);
            }
            for (state, count) in [("alive", fleet.alive), ("suspect", fleet.suspect), ("down", fleet.down)] {
                self.metrics.relays.get_or_create(&Labels::new("", "", state)).set(gauge(count));
            }
            self.metrics.rollup_backlog.get_or_create(&Labels::default()).set(gauge(backlog.keys));
            self.show_budget(fleet.database_bytes);
        });
        Ok(())
    }

    /// The step at which syncing begins to rest, or goes on, is said once.
    fn show_budget(&self, bytes: u64) {
        let rests = Fill::of(bytes, self.max_bytes).rests();
        self.metrics.archive_bytes.get_or_create(&Labels::default()).set(gauge(bytes));
        let before = self.metrics.archive_rests.get_or_create(&Labels::default()).set(i64::from(rests));
        let max = self.max_bytes.unwrap_or_default();
        match (before == 1, rests) {
            (false, true) => tracing::warn!(
                archive.bytes = bytes,
                archive.max_bytes = max,
                "the archive is at {REST_PERCENT} % of its disk budget: syncing rests, monitoring goes on"
            ),
            (true, false) => tracing::info!(
                archive.bytes = bytes,
                archive.max_bytes = max,
                "there is room in the disk budget again: syncing goes on"
            ),
            _ => {}
        }
    }
}

/// Takes away what only a leader shows.
pub(crate) fn clear(metrics: &Metrics) {
    metrics.leader.set(0);
    metrics.queue_due.clear();
    metrics.queue_oldest_due_seconds.clear();
    metrics.relays.clear();
    metrics.rollup_backlog.clear();
    metrics.archive_bytes.clear();
    metrics.archive_rests.clear();
}

/// Every queue there is: `queue_list` in SQL.
fn queues() -> impl Iterator<Item = Labels> {
    JobKind::ALL.iter().flat_map(|kind| {
        let remote: &[Network] = if kind.is_remote() { Network::ALL } else { &[] };
        let local = matches!(kind, JobKind::Discover | JobKind::Monitor | JobKind::Refresh);
        let networks = remote.iter().map(|network| network.as_str()).chain(local.then_some(LOCAL));
        networks.map(|network| Labels::new(kind.as_str(), network, ""))
    })
}

fn gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
