//! A worker whose work can be watched from outside: it writes down when each attempt began and ended.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::json;
use shared::db::Db;
use shared::jobs::{Attempt, Handler, JobError, Report};
use shared::queue::{self, QueueOptions};
use shared::telemetry::{Health, Metrics};
use tokio_util::sync::CancellationToken;

/// What such a worker is told.
#[derive(Debug, Clone)]
pub struct Watched {
    /// Database.
    pub url: String,
    /// Jobs of `refresh.local` at once.
    pub slots: u32,
    /// How long its claims stand.
    pub lease: Duration,
    /// How long a job takes, unless its target begins with `hang-`, `fail-` or `panic-`.
    pub work: Duration,
    /// How long running jobs may finish after a stop.
    pub grace: Duration,
}

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Whether the attempt began; otherwise it ended.
    pub began: bool,
    /// Job.
    pub job: String,
    /// Attempt, from 1.
    pub attempt: i32,
    /// Process.
    pub pid: u32,
    /// What.
    pub target: String,
    /// When, centiseconds since the machine started.
    pub at: u64,
    /// When by the worker's own clock, Unix seconds.
    pub clock: i64,
}

/// The whole lines of a journal.
pub fn read(path: &Path) -> Vec<Entry> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let [word, job, attempt, pid, target, at, clock] = words[..] else { return None };
            Some(Entry {
                began: word == "began",
                job: job.to_owned(),
                attempt: attempt.parse().ok()?,
                pid: pid.parse().ok()?,
                target: target.to_owned(),
                at: at.parse().ok()?,
                clock: clock.parse().ok()?,
            })
        })
        .collect()
}

/// Centiseconds since the machine started: the same for every process, whatever its own clock says.
pub fn uptime() -> u64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let digits: String = text.split(' ').next().unwrap_or("0").chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

struct Writer {
    file: File,
    work: Duration,
}

impl Writer {
    /// One write per line, appended: what several processes write does not mix.
    fn note(&self, word: &str, attempt: &Attempt) {
        let (at, clock) = (uptime(), shared::clock::unix_now());
        let fence = &attempt.fence;
        let line = format!(
            "{word} {} {} {} {} {at} {clock}\n",
            fence.job(),
            fence.attempt(),
            std::process::id(),
            attempt.target
        );
        (&self.file).write_all(line.as_bytes()).ok();
    }
}

/// The seam: the queue runs this instead of jobs.
struct Journal(Arc<Writer>);

impl Handler for Journal {
    fn run(&self, attempt: Attempt) -> BoxFuture<'static, Result<Report, JobError>> {
        let writer = Arc::clone(&self.0);
        async move {
            writer.note("began", &attempt);
            let target = attempt.target.as_str();
            assert!(!target.starts_with("panic-"), "as the target wants");
            if target.starts_with("hang-") {
                std::future::pending::<()>().await;
            }
            // bound: the length of a job
            tokio::time::sleep(writer.work).await;
            writer.note("ended", &attempt);
            if target.starts_with("fail-") {
                return Err(JobError::Retry { why: "as the target wants".to_owned() });
            }
            Ok(json!({}))
        }
        .boxed()
    }
}

/// Runs until `stop`.
///
/// # Errors
/// When the journal cannot be written or the URL does not parse.
pub async fn work(watched: Watched, journal: &Path, stop: CancellationToken) -> anyhow::Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(journal)?;
    let db = Db::lazy(&watched.url, "bigbrotr watched worker", 2)?;
    let options = QueueOptions {
        worker: format!("watched-{}-{}", std::process::id(), shared::clock::random_hex(3)),
        vantage: "test".to_owned(),
        queues: vec![("refresh.local".to_owned(), watched.slots)],
        lease: watched.lease,
        poll: Duration::from_millis(100),
        grace: watched.grace,
        listen_url: None,
        traffic: shared::net::Traffic::default(),
    };
    let handler = Arc::new(Journal(Arc::new(Writer { file, work: watched.work })));
    queue::run(db, options, handler, Metrics::new(), Health::default(), stop).await;
    Ok(())
}
