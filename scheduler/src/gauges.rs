//! Gauges of the whole fleet: shown by the leader only, or N schedulers would multiply them.

use std::collections::HashMap;

use shared::db::{Db, DbError, GaugeLine};
use shared::models::{Fill, JobKind, LOCAL, Network, REST_PERCENT};
use shared::telemetry::{Labels, Metric, MetricOf, Metrics};

use crate::lead::Lead;

/// The words a gauge may have as its outcome: what the database says beyond is no label.
const WORDS: [&str; 16] = [
    "",
    "working",
    "draining",
    "alive",
    "suspect",
    "down",
    "unchecked",
    "tombstoned",
    "reconciled",
    "finished",
    "walked",
    "partial",
    "unknown",
    "accepted",
    "refused",
    "waiting",
];

/// Gauges whose lines come and go: a network without a limit, a fleet without a view.
const COMING_AND_GOING: [Metric; 2] = [Metric::NetworkBytesLimit, Metric::ViewAge];

/// Events dated ahead are counted up to here.
const AHEAD: u32 = 100_000;

/// One reading.
#[derive(Debug)]
pub(crate) struct Gauges {
    pub(crate) db: Db,
    pub(crate) metrics: Metrics,
    pub(crate) lead: Lead,
    pub(crate) term: i64,
    /// The disk budget.
    pub(crate) max_bytes: Option<u64>,
    /// Whether relays and the archive are counted, too.
    pub(crate) counts: bool,
}

impl Gauges {
    /// Reads them, and shows them if the lead is still ours then.
    pub(crate) async fn read(self) -> Result<(), DbError> {
        self.db.queue_sample_take().await?;
        let lines = self.db.queue_stats().await?;
        let backlog = self.db.rollup_backlog().await?;
        let held = self.db.archive_get(None).await?.bytes;
        let mut gauges = self.db.fleet_gauges().await?;
        let mut ahead = None;
        if self.counts {
            gauges.extend(self.db.archive_gauges().await?);
            ahead = Some(self.db.ahead_count(AHEAD).await?);
        }
        // A queue that has nothing is not among the lines: its zero is as true as any number.
        let mut queues: HashMap<Labels, [i64; 4]> = queues().map(|labels| (labels, [0; 4])).collect();
        for line in lines {
            let Ok(kind) = line.kind.parse::<JobKind>() else { continue };
            let network = line.network.parse().map_or(LOCAL, Network::as_str);
            #[expect(clippy::cast_possible_truncation, reason = "an age in whole seconds")]
            let oldest = line.oldest_due_s.unwrap_or(0.0) as i64;
            let numbers = [gauge(line.due), oldest, gauge(line.running), gauge(line.waiting)];
            queues.insert(Labels::new(kind.as_str(), network, ""), numbers);
        }
        self.lead.under(self.term, || {
            for (labels, [due, oldest, running, scheduled]) in queues {
                self.metrics.show(Metric::QueueDue, &labels, due);
                self.metrics.show(Metric::QueueOldestDueSeconds, &labels, oldest);
                self.metrics.show(Metric::QueueRunning, &labels, running);
                self.metrics.show(Metric::QueueScheduled, &labels, scheduled);
            }
            self.metrics.show(Metric::LeaderTerm, &Labels::default(), self.term);
            self.metrics.show(Metric::RollupBacklog, &Labels::default(), gauge(backlog.keys));
            self.metrics.show(Metric::RollupBacklogAge, &Labels::default(), backlog.age_s);
            if let Some(ahead) = ahead {
                self.metrics.show(Metric::EventsAhead, &Labels::default(), gauge(ahead));
            }
            for metric in COMING_AND_GOING {
                self.metrics.hide(metric);
            }
            for (metric, labels, value) in gauges.iter().filter_map(read) {
                if metric != Metric::ArchiveBytes {
                    self.metrics.show(metric, &labels, value);
                }
            }
            self.show_budget(held);
        });
        Ok(())
    }

    /// The step at which syncing begins to rest, or goes on, is said once; as workers see it, with what the rollups will take.
    fn show_budget(&self, bytes: u64) {
        let (rests, none) = (Fill::of(bytes, self.max_bytes).rests(), Labels::default());
        self.metrics.show(Metric::ArchiveBytes, &none, gauge(bytes));
        if let Some(max) = self.max_bytes {
            self.metrics.show(Metric::ArchiveLimit, &none, gauge(max));
        }
        let before = self.metrics.show(Metric::ArchiveRests, &none, i64::from(rests));
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

/// A line as a gauge of the fleet; none for one that this program does not know, or with a word of no closed set.
fn read(line: &GaugeLine) -> Option<(Metric, Labels, i64)> {
    let metric = Metric::named(&line.gauge).filter(|metric| metric.of() == MetricOf::Fleet)?;
    let kind = match line.kind.as_str() {
        "" => "",
        kind => kind.parse::<JobKind>().ok()?.as_str(),
    };
    let network = match line.network.as_str() {
        "" => "",
        LOCAL => LOCAL,
        network => network.parse::<Network>().ok()?.as_str(),
    };
    let word = WORDS.into_iter().find(|word| *word == line.word)?;
    Some((metric, Labels::new(kind, network, word), line.value))
}

/// Takes away what only a leader shows.
pub(crate) fn clear(metrics: &Metrics) {
    metrics.leader.set(0);
    metrics.hide_fleet();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_program_does_not_know_is_left_out() {
        let line = |gauge: &str, kind: &str, network: &str, word: &str| GaugeLine {
            gauge: gauge.to_owned(),
            kind: kind.to_owned(),
            network: network.to_owned(),
            word: word.to_owned(),
            value: 7,
        };
        let known = read(&line("relays", "", "tor", "alive"));
        assert_eq!(known, Some((Metric::Relays, Labels::new("", "tor", "alive"), 7)));
        assert_eq!(read(&line("queue_held", "monitor", LOCAL, "")).map(|known| known.2), Some(7));
        for odd in [
            line("tomorrow", "", "", ""),
            // A counter of workers is nobody's to set.
            line("jobs_lost", "", "", ""),
            line("relays", "", "wss://relay.example", "alive"),
            line("relays", "", "tor", "splendid"),
            line("queue_held", "walk", LOCAL, ""),
        ] {
            assert_eq!(read(&odd), None, "{odd:?}");
        }
    }
}
