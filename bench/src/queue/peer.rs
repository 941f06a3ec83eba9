//! The peer of the queue's figures: apalis-postgres 1.0.0 as shipped.
//!
//! The one place outside `shared/src/queue` that names apalis (`tests/it/tidy.rs`): a peer that is measured
//! in the same run has to be run. Everything is left at its defaults (batches of 10, a pool of 10, no LISTEN)
//! but for the interval of its polls: without one it looks for work only at its heartbeat, every 30 s.

use std::time::Duration;

use apalis::prelude::*;
use apalis_postgres::{Config, PgPool, PostgresStorage};
use shared::clock;

use super::worker::{Arguments, JOB};

/// Its queue.
const QUEUE: &str = "bench";

fn storage(pool: &PgPool) -> PostgresStorage<u64> {
    PostgresStorage::new(pool).with_config(Config::default().queue(QUEUE))
}

/// Its tables in an empty database.
pub(crate) async fn migrate(url: &str) -> anyhow::Result<()> {
    let pool = PgPool::connect(url).await?;
    PostgresStorage::setup(&pool).await?;
    pool.close().await;
    Ok(())
}

/// A connection that enqueues.
pub(crate) struct Pusher(PostgresStorage<u64>);

impl Pusher {
    pub(crate) async fn connect(url: &str) -> anyhow::Result<Self> {
        Ok(Self(storage(&PgPool::connect(url).await?)))
    }

    /// Enqueues a job for each of these numbers.
    pub(crate) async fn push(&mut self, jobs: Vec<u64>) -> anyhow::Result<()> {
        let pushed = self.0.push_bulk(jobs).await;
        pushed.map_err(|error| anyhow::anyhow!("the peer did not take its jobs: {error}"))
    }
}

/// A worker process.
pub(crate) async fn work(arguments: &Arguments) -> anyhow::Result<()> {
    let pool = PgPool::connect(&arguments.url).await?;
    let name = format!("bench-{}-{}", std::process::id(), clock::random_hex(4));
    let slots = usize::try_from(arguments.slots)?;
    let interval = Duration::from_millis(arguments.poll_ms);
    let worker = WorkerBuilder::new(name);
    if arguments.listen {
        let backend = storage(&pool).with_pubsub().poll_with_interval(interval);
        worker.backend(backend).concurrency(slots).build(nothing).run().await?;
    } else {
        let backend = storage(&pool).poll_with_interval(interval);
        worker.backend(backend).concurrency(slots).build(nothing).run().await?;
    }
    Ok(())
}

/// Sleeps for the length of a job.
async fn nothing(_: u64) -> Result<(), BoxDynError> {
    tokio::time::sleep(JOB).await;
    Ok(())
}
