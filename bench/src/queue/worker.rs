//! The worker process of the benchmark: our queue, or the peer's, with jobs that take a millisecond.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::json;
use shared::clock;
use shared::config::Config;
use shared::db::Db;
use shared::jobs::{Attempt, Handler, JobError, Report};
use shared::queue::QueueOptions;
use shared::telemetry::{Health, Metrics};
use tokio_util::sync::CancellationToken;

use super::peer;
use crate::process::Process;

/// What a job does.
pub(crate) const JOB: Duration = Duration::from_millis(1);
/// Connections of the real worker's queue pool.
const CONNECTIONS: u32 = 3;

/// What the process is told.
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    /// The database.
    #[arg(long)]
    pub(crate) url: String,
    /// Which queue, as `kind.network`.
    #[arg(long)]
    pub(crate) queue: String,
    /// Jobs at once.
    #[arg(long)]
    pub(crate) slots: u32,
    /// Between two looks for work.
    #[arg(long)]
    pub(crate) poll_ms: u64,
    /// Runs the peer instead.
    #[arg(long)]
    pub(crate) peer: bool,
    /// Hears of new jobs beside looking for them.
    #[arg(long)]
    pub(crate) listen: bool,
}

impl Arguments {
    /// The process, with this very program.
    pub(crate) fn start(&self) -> anyhow::Result<Process> {
        let program: PathBuf = std::env::current_exe()?;
        let mut command = Command::new(program);
        command.arg("queue-worker").args(["--url", &self.url, "--queue", &self.queue]);
        command.args(["--slots", &self.slots.to_string(), "--poll-ms", &self.poll_ms.to_string()]);
        command.args(self.peer.then_some("--peer")).args(self.listen.then_some("--listen"));
        Process::start(&command)
    }
}

/// What a worker does that nobody configured.
fn defaults() -> anyhow::Result<QueueOptions> {
    Ok(Config::load(None, &BTreeMap::new())?.queue_options(""))
}

/// The default of `worker.poll_ms`.
pub(crate) fn poll_ms() -> anyhow::Result<u64> {
    Ok(u64::try_from(defaults()?.poll.as_millis())?)
}

/// Works until it is killed.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    if arguments.peer {
        return peer::work(&arguments).await;
    }
    let db = Db::lazy(&arguments.url, "bigbrotr bench queue", CONNECTIONS)?;
    let worker = format!("bench-{}-{}", std::process::id(), clock::random_hex(4));
    let options = QueueOptions {
        worker,
        queues: vec![(arguments.queue.clone(), arguments.slots)],
        poll: Duration::from_millis(arguments.poll_ms),
        listen_url: arguments.listen.then(|| arguments.url.clone()),
        ..defaults()?
    };
    let (metrics, health, stop) = (Metrics::new(), Health::default(), CancellationToken::new());
    shared::queue::run(db, options, Arc::new(Nothing), metrics, health, stop).await;
    Ok(())
}

/// Sleeps for the length of a job.
struct Nothing;

impl Handler for Nothing {
    fn run(&self, _: Attempt) -> BoxFuture<'static, Result<Report, JobError>> {
        async {
            tokio::time::sleep(JOB).await;
            Ok(json!({}))
        }
        .boxed()
    }
}
