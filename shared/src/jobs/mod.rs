//! The five kinds of jobs, one file each: idempotent reconcilers that read state, close a gap, and report.
//!
//! The payload names *which* target, never what to believe about it. A remote's behaviour is a result;
//! a [`JobError`] says that *we* could not do our work, and carries the verdict. Every write shows the
//! attempt's [`Fence`]. This room does not know how jobs are queued.

pub mod alerts;
pub mod cadence;
mod capability;
mod config;
mod discover;
mod egress;
mod heard;
pub mod import;
mod keep;
mod known;
pub mod liveness;
mod monitor;
mod permit;
pub mod publish;
pub mod refresh;
mod room;
pub mod seed;
mod sync;
mod together;
mod validate;
mod verify;
mod zeroes;

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::db::{Db, DbError};
use crate::models::{AddressPolicy, Fence, JobKind, LOCAL, Network, RelayUrl, Verdict};
use crate::net::Dialer;
use crate::telemetry::Metrics;

pub use config::{JobsConfig, WriteTo};
pub use discover::{ARCHIVE, HTTP, HttpSource, Mined, NIP05, mine};
pub use egress::{Egress, Standing};
pub use heard::Heard;
pub use known::Known;
pub use room::PageRoom;
pub use together::Calls;
pub use verify::Verifier;
pub use zeroes::begin_counters;

/// What every kind of job has, apart from its code.
#[derive(Debug, Clone, Copy)]
pub struct JobSpec {
    /// Kind.
    pub kind: JobKind,
    /// Which gap in the world it closes.
    pub doc: &'static str,
    /// How long one attempt may run.
    pub timeout: Duration,
    /// Attempts before it is dead; the next scheduled run is the real retry.
    pub max_attempts: u16,
    /// Jobs of the kind that one worker runs at once on one network, unless configured.
    pub slots: u32,
}

/// One row per kind, in the order of [`JobKind::ALL`].
pub const JOBS: [JobSpec; JobKind::ALL.len()] = [
    spec(JobKind::Discover),
    spec(JobKind::Validate),
    spec(JobKind::Monitor),
    spec(JobKind::Sync),
    spec(JobKind::Refresh),
];

/// The row of one kind; exhaustive, so that a new kind without a row does not compile.
pub const fn spec(kind: JobKind) -> JobSpec {
    let (doc, timeout_s, max_attempts, slots) = match kind {
        JobKind::Discover => ("relay URLs that somebody names and nobody has tried yet", 300, 3, 1),
        JobKind::Validate => ("candidates of which nobody knows whether they speak Nostr", 600, 3, 64),
        JobKind::Monitor => ("relays whose state is older than it should be", 900, 3, 64),
        JobKind::Sync => ("stretches of a relay's timeline that we do not hold with proof", 900, 3, 16),
        JobKind::Refresh => ("views that are older than the data under them", 3_600, 3, 1),
    };
    JobSpec { kind, doc, timeout: Duration::from_secs(timeout_s), max_attempts, slots }
}

/// What handlers work with; built once per process.
#[derive(Clone)]
pub struct Ctx {
    /// The pooled database.
    pub db: Db,
    /// The direct one, for refreshes.
    pub direct: Db,
    /// The only way out.
    pub dialer: Dialer,
    /// Which addresses stored URLs may name.
    pub policy: AddressPolicy,
    /// What the operator chose.
    pub config: Arc<JobsConfig>,
    /// Counters.
    pub metrics: Metrics,
    /// Whether our own network works.
    pub egress: Egress,
    /// What jobs ask the database together.
    pub calls: Calls,
    /// Where events are verified.
    pub verifier: Verifier,
    /// Events that are known to be archived.
    pub known: Known,
    /// What pages may hold together.
    pub pages: PageRoom,
}

/// One attempt as a handler sees it.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// What to do.
    pub kind: JobKind,
    /// Network, or `local`.
    pub network: String,
    /// Relay URL or task name.
    pub target: String,
    /// What every write shows.
    pub fence: Fence,
    /// Whether a failure now is final.
    pub last: bool,
    /// Cancelled when the process stops: finish early and keep what is done.
    pub stop: CancellationToken,
}

/// What a handler achieved, as counts.
pub type Report = Value;

/// Why a handler could not do its work; never a relay's behaviour.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Our own fault; again after a delay, while attempts remain.
    #[error("{why}")]
    Retry {
        /// What happened.
        why: String,
    },
    /// Not now; again after `delay`, the attempt given back.
    #[error("{why}")]
    Snooze {
        /// Not before this much later.
        delay: Duration,
        /// What we wait for.
        why: String,
    },
    /// Our own way into a network does not work: the attempt is given back, and the network's breaker opens.
    #[error("{why}")]
    Sick {
        /// Which network.
        network: Network,
        /// What was seen.
        why: String,
    },
    /// No longer wanted.
    #[error("{why}")]
    Cancel {
        /// Why not.
        why: String,
    },
    /// Cannot ever work.
    #[error("{why}")]
    Kill {
        /// Why not.
        why: String,
    },
}

impl JobError {
    /// A snooze.
    pub fn snooze(delay: Duration, why: impl Into<String>) -> Self {
        Self::Snooze { delay, why: why.into() }
    }

    /// A cancellation.
    pub fn cancel(why: impl Into<String>) -> Self {
        Self::Cancel { why: why.into() }
    }
}

impl From<DbError> for JobError {
    fn from(error: DbError) -> Self {
        // Every failure of the database is ours: the same attempt may well succeed later.
        Self::Retry { why: error.to_string() }
    }
}

/// How long a job waits for a network that does not work, when the breaker cannot be asked.
const SICK: Duration = Duration::from_secs(15);

/// The field of a report that says whether anything out there answered, so that our own way into the network works.
pub const ANSWERED: &str = "answered";

/// The field of a report of an attempt that had nothing to ask its relay: why.
pub const SKIPPED: &str = "skipped";

/// How an attempt ended, for the queue.
#[derive(Debug, Clone)]
pub struct Ending {
    /// How.
    pub verdict: Verdict,
    /// Delay of a snooze; a retry without one backs off by its attempt.
    pub delay: Option<Duration>,
    /// Report or error.
    pub result: Value,
    /// A network into which our own way does not work: its breaker opens, and its word is the delay.
    pub trip: Option<Network>,
}

impl Ending {
    /// Done.
    pub const fn complete(report: Report) -> Self {
        Self { verdict: Verdict::Complete, delay: Some(Duration::ZERO), result: report, trip: None }
    }

    /// Our fault, with the usual back-off.
    pub fn retry(why: &str) -> Self {
        Self { verdict: Verdict::Retry, delay: None, result: json!({ "error": why }), trip: None }
    }
}

impl From<JobError> for Ending {
    fn from(error: JobError) -> Self {
        let trip = if let JobError::Sick { network, .. } = &error { Some(*network) } else { None };
        let (verdict, delay, why) = match error {
            JobError::Sick { why, .. } => (Verdict::Snooze, Some(SICK), why),
            JobError::Retry { why } => (Verdict::Retry, None, why),
            JobError::Snooze { delay, why } => (Verdict::Snooze, Some(delay), why),
            JobError::Cancel { why } => (Verdict::Cancel, Some(Duration::ZERO), why),
            JobError::Kill { why } => (Verdict::Kill, Some(Duration::ZERO), why),
        };
        Self { verdict, delay, result: json!({ "error": why }), trip }
    }
}

/// What the queue runs: the seam that lets tests and benches run other work.
pub trait Handler: Send + Sync + 'static {
    /// Runs one attempt to its end.
    fn run(&self, attempt: Attempt) -> BoxFuture<'static, Result<Report, JobError>>;
}

impl Handler for Ctx {
    fn run(&self, attempt: Attempt) -> BoxFuture<'static, Result<Report, JobError>> {
        let ctx = self.clone();
        // Each on its own: together they would all take, and move, what the largest needs.
        async move {
            match attempt.kind {
                JobKind::Discover => Box::pin(discover::run(&ctx, &attempt)).await,
                JobKind::Validate => Box::pin(validate::run(&ctx, &attempt)).await,
                JobKind::Monitor if attempt.network == LOCAL => Box::pin(local(&ctx, &attempt)).await,
                JobKind::Monitor => Box::pin(monitor::run(&ctx, &attempt)).await,
                JobKind::Sync => Box::pin(sync::run(&ctx, &attempt)).await,
                JobKind::Refresh => Box::pin(refresh::run(&ctx, &attempt)).await,
            }
        }
        .boxed()
    }
}

/// The tasks of the monitor that visit no relay it looks at.
async fn local(ctx: &Ctx, attempt: &Attempt) -> Result<Report, JobError> {
    match attempt.target.as_str() {
        alerts::TASK => alerts::run(ctx, attempt).await,
        publish::TASK => publish::run(ctx, attempt).await,
        other => Err(JobError::cancel(format!("no task is called {other}"))),
    }
}

/// A target that this fleet's policy refuses is looked at again this much later: policies change seldom.
const REFUSED_AGAIN: Duration = Duration::from_secs(86_400);

/// The relay URL of a remote job, parsed again under this process's policy.
async fn target_url(ctx: &Ctx, attempt: &Attempt) -> Result<RelayUrl, JobError> {
    match RelayUrl::from_db(&attempt.target, &ctx.policy) {
        Ok(url) => Ok(url),
        Err(error) => Err(refused(ctx, attempt, error).await),
    }
}

/// Ends the job of a target that this process may not dial, which is due again tomorrow.
async fn refused(ctx: &Ctx, attempt: &Attempt, why: impl std::fmt::Display) -> JobError {
    let why = format!("this worker may not dial {}: {why}", attempt.target);
    let slack = Duration::from_secs(3_600);
    match ctx.db.schedule_next(&attempt.fence, REFUSED_AGAIN, slack, "refused by policy").await {
        Ok(_) => JobError::cancel(why),
        Err(error) => error.into(),
    }
}

/// The answer to a write whose fence was lost.
fn lost() -> JobError {
    JobError::cancel("the lease was lost; nothing was written")
}
