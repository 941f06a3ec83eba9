//! What `up` shows while it works: a block redrawn each second on a terminal, else a line now and then.

use std::io::{IsTerminal as _, Write as _};

use serde_json::json;
use shared::db::{Db, DbError, FleetStats, QueueLine};
use shared::models::{Fill, REST_PERCENT};
use shared::telemetry::{Labels, Metrics};

use crate::commands::network_note;
use crate::output::{bytes, commas, line};

/// Seconds between two lines where nobody watches.
const LINE_EVERY_S: u64 = 10;
/// Seconds between two looks at what jobs wait for.
const NOTE_EVERY_S: u64 = 3;
/// Columns of the block: wider lines would wrap and not be erased.
const COLUMNS: usize = 79;

/// The counter of events that were stored.
const NEW_EVENTS: Labels = Labels::new("", "", "new");

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Block,
    Lines,
    Json,
}

/// Shows progress, once a second.
#[derive(Debug)]
pub(crate) struct Progress {
    db: Db,
    mode: Mode,
    max_bytes: Option<u64>,
    metrics: Metrics,
    known_before: Option<u64>,
    began_s: u64,
    shown_s: Option<u64>,
    noted_s: Option<u64>,
    note: Option<String>,
    drawn: usize,
}

impl Progress {
    pub(crate) fn new(db: Db, metrics: Metrics, json: bool, max_bytes: Option<u64>, now_s: u64) -> Self {
        let mode = match (json, std::io::stdout().is_terminal()) {
            (true, _) => Mode::Json,
            (false, true) => Mode::Block,
            (false, false) => Mode::Lines,
        };
        Self {
            db,
            mode,
            max_bytes,
            metrics,
            known_before: None,
            began_s: now_s,
            shown_s: None,
            noted_s: None,
            note: None,
            drawn: 0,
        }
    }

    /// Shows what is due to be shown; a database that is away for a moment is no reason to end.
    pub(crate) async fn show(&mut self, now_s: u64) {
        let every = if self.mode == Mode::Block { 1 } else { LINE_EVERY_S };
        if self.shown_s.is_none_or(|at| now_s >= at + every) {
            self.shown_s = Some(now_s);
            if let Err(error) = self.look(now_s).await {
                tracing::warn!(error = %error, "no progress to show");
            }
        }
    }

    /// Shows the state once more, whatever was shown last.
    pub(crate) async fn show_last(&mut self, now_s: u64) {
        (self.shown_s, self.noted_s) = (None, None);
        self.show(now_s).await;
    }

    async fn look(&mut self, now_s: u64) -> Result<(), DbError> {
        let queues = self.db.queue_stats().await?;
        let mut fleet = self.db.fleet_stats().await?;
        // The server's estimate lags by up to ten seconds; what this process has stored it knows itself.
        let before = match self.known_before {
            Some(before) => before,
            // After a crash the server has no estimate: then, once, it counts.
            None if fleet.events == 0 => self.db.archive_count().await?.0,
            None => fleet.events,
        };
        self.known_before = Some(before);
        fleet.events =
            fleet.events.max(before + self.metrics.events_received.get_or_create(&NEW_EVENTS).get());
        if self.noted_s.is_none_or(|at| now_s >= at + NOTE_EVERY_S) {
            self.noted_s = Some(now_s);
            self.note = network_note(&self.db).await?;
        }
        let elapsed_s = now_s.saturating_sub(self.began_s);
        let full = Fill::of(fleet.database_bytes, self.max_bytes).rests();
        match self.mode {
            Mode::Json => line(&self.object(elapsed_s, &queues, &fleet, full)),
            Mode::Lines => line(&self.sentence(elapsed_s, &queues, &fleet, full)),
            Mode::Block => self.block(elapsed_s, &queues, &fleet, full),
        }
        Ok(())
    }

    fn object(&self, elapsed_s: u64, queues: &[QueueLine], fleet: &FleetStats, full: bool) -> String {
        let queues: Vec<_> = queues.iter().map(crate::commands::queue_json).collect();
        json!({
            "elapsed_s": elapsed_s, "relays": fleet.relays, "alive": fleet.alive, "suspect": fleet.suspect,
            "down": fleet.down, "candidates": fleet.candidates, "events": fleet.events,
            "observations": fleet.observations, "database_bytes": fleet.database_bytes,
            "full": full, "note": self.note, "queues": queues,
        })
        .to_string()
    }

    fn sentence(&self, elapsed_s: u64, queues: &[QueueLine], fleet: &FleetStats, full: bool) -> String {
        let sum = |of: fn(&QueueLine) -> u64| queues.iter().map(of).sum::<u64>();
        let mut text = format!(
            "{}  {}; jobs: {} due, {} running, {} done and {} failed in the last minute",
            clock(elapsed_s),
            totals(fleet),
            sum(|queue| queue.due),
            sum(|queue| queue.running),
            sum(|queue| queue.done_per_min),
            sum(|queue| queue.dead_per_min),
        );
        for remark in self.remarks(full) {
            text.push_str("; ");
            text.push_str(&remark);
        }
        text
    }

    fn remarks(&self, full: bool) -> Vec<String> {
        let cap = full.then(|| {
            let limit = self.max_bytes.map(bytes).unwrap_or_default();
            format!(
                "the archive is at {REST_PERCENT} % of its limit of {limit}: syncing rests, monitoring goes on (--max-gb)"
            )
        });
        cap.into_iter().chain(self.note.clone()).collect()
    }

    fn block(&mut self, elapsed_s: u64, queues: &[QueueLine], fleet: &FleetStats, full: bool) {
        let mut lines = vec![format!(
            "{:<20} {:>8} {:>8} {:>9} {:>10}",
            "queue", "due", "running", "done/min", "failed/min"
        )];
        lines.extend(queues.iter().map(|queue| {
            format!(
                "{:<20} {:>8} {:>8} {:>9} {:>10}",
                format!("{}.{}", queue.kind, queue.network),
                queue.due,
                queue.running,
                queue.done_per_min,
                queue.dead_per_min
            )
        }));
        lines.push(format!("{}  {}", clock(elapsed_s), totals(fleet)));
        lines.extend(self.remarks(full));
        let mut text = if self.drawn > 0 { format!("\x1b[{}A\x1b[J", self.drawn) } else { String::new() };
        self.drawn = 0;
        for whole in &lines {
            let letters: Vec<char> = whole.chars().collect();
            for piece in letters.chunks(COLUMNS) {
                text.extend(piece);
                text.push('\n');
                self.drawn += 1;
            }
        }
        let mut out = std::io::stdout().lock();
        // A terminal that is gone takes its user with it; the signal says so.
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).ok();
    }
}

fn totals(fleet: &FleetStats) -> String {
    format!(
        "relays: {} alive, {} suspect, {} down; {} candidates; {} events; {}",
        fleet.alive,
        fleet.suspect,
        fleet.down,
        fleet.candidates,
        commas(fleet.events),
        bytes(fleet.database_bytes)
    )
}

fn clock(seconds: u64) -> String {
    format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}
