//! The words of the queue: kinds of jobs, how an attempt ends, and what a worker must show to write.

use super::closed::closed_set;

closed_set! {
    /// The five kinds of jobs.
    JobKind, "job kind" {
        /// Looks for relay URLs in what we have.
        Discover = "discover",
        /// Asks whether a candidate speaks Nostr.
        Validate = "validate",
        /// Checks a relay.
        Monitor = "monitor",
        /// Archives a relay's events.
        Sync = "sync",
        /// Brings the views up to date.
        Refresh = "refresh",
    }
}

impl JobKind {
    /// Whether the job talks to a relay, so that its queue belongs to a network.
    pub const fn is_remote(self) -> bool {
        matches!(self, Self::Validate | Self::Monitor | Self::Sync)
    }

    /// Position in [`JobKind::ALL`], for tables kept as arrays.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// The network part of a queue that needs none: `discover.local`, `refresh.local`.
pub const LOCAL: &str = "local";

closed_set! {
    /// How an attempt ends.
    Verdict, "verdict" {
        /// The gap is closed; the job moves to history.
        Complete = "complete",
        /// Our own fault: again after a delay, while attempts remain.
        Retry = "retry",
        /// Not now: again after a delay, the attempt given back.
        Snooze = "snooze",
        /// No longer wanted.
        Cancel = "cancel",
        /// Cannot ever work: dead at once.
        Kill = "kill",
    }
}

/// The proof a write must show: this worker holds this attempt of this job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fence {
    job: String,
    worker: String,
    attempt: i32,
}

impl Fence {
    /// The triple a claim handed out; `attempt` counts from 1.
    pub const fn new(job: String, worker: String, attempt: i32) -> Self {
        Self { job, worker, attempt }
    }

    /// Id of the job.
    pub fn job(&self) -> &str {
        &self.job
    }

    /// Id of the worker that claimed it.
    pub fn worker(&self) -> &str {
        &self.worker
    }

    /// Attempt, from 1.
    pub const fn attempt(&self) -> i32 {
        self.attempt
    }
}
