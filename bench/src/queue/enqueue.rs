//! Jobs enqueued per second in bulk: uniqueness on, each relay on a host of its own.

use shared::clock;
use shared::db::NewJob;
use sqlx::Connection;
use tests::pg::{Role, TestDb};

use super::Options;
use super::cluster::{Cluster, settle, writer};
use super::jobs::{BATCH, relay};
use crate::figure::{Figure, Goal, Report, median};

/// Jobs per second.
const GOAL: f64 = 20_000.0;

/// The same values into a table without a rule.
const BARE: &str = "
INSERT INTO bare (kind, network, target, due_at, slack_s, timeout_s, max_attempts, class)
SELECT u.kind, u.network, u.target, now(), u.slack_s, u.timeout_s, u.max_attempts, u.class
FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::integer[], $6::integer[], $7::smallint[])
     u(kind, network, target, slack_s, timeout_s, max_attempts, class)";

/// Measures `n` times, ours and the bare table in turns.
pub(crate) async fn run(cluster: &Cluster, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let db = cluster.migrated().await?;
    db.execute(
        "CREATE TABLE bare (kind text, network text, target text, due_at timestamptz, slack_s integer, \
         timeout_s integer, max_attempts integer, class smallint)",
    )
    .await;
    let jobs: Vec<NewJob> = (0..if options.quick { 30_000 } else { 100_000 }).map(relay).collect();
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..options.n {
        db.execute("TRUNCATE apalis.jobs, apalis.workers, host_state, host_address, bare").await;
        settle(&db, &["apalis.jobs", "host_state", "bare"]).await;
        ours.push(into_queue(&db, &jobs).await?);
        bare.push(into_bare(&db, &jobs).await?);
    }
    report.add(&Figure {
        bench: "queue",
        name: "enqueue_per_s".to_owned(),
        ours: median(&ours),
        reference: median(&bare),
        against: "INSERT of the same values into a table without index or rule",
        unit: "jobs/s",
        goal: Goal::AtLeast(GOAL),
        n: options.n,
    });
    Ok(())
}

async fn into_queue(db: &TestDb, jobs: &[NewJob]) -> anyhow::Result<f64> {
    let writer = writer(db)?;
    writer.ping().await?;
    let began = clock::monotonic_ms();
    super::jobs::enqueue(&writer, jobs).await?;
    let rate = per_s(jobs.len(), began);
    writer.close().await;
    Ok(rate)
}

async fn into_bare(db: &TestDb, jobs: &[NewJob]) -> anyhow::Result<f64> {
    let mut connection = db.connect(Role::Superuser).await;
    let began = clock::monotonic_ms();
    for batch in jobs.chunks(BATCH) {
        sqlx::query(BARE)
            .bind(batch.iter().map(|job| job.kind.as_str().to_owned()).collect::<Vec<_>>())
            .bind(batch.iter().map(|job| job.network.clone()).collect::<Vec<_>>())
            .bind(batch.iter().map(|job| job.target.clone()).collect::<Vec<_>>())
            .bind(vec![600_i32; batch.len()])
            .bind(vec![600_i32; batch.len()])
            .bind(vec![3_i32; batch.len()])
            .bind(batch.iter().map(|job| i16::from(job.class)).collect::<Vec<_>>())
            .execute(&mut connection)
            .await?;
    }
    let rate = per_s(jobs.len(), began);
    connection.close().await?;
    Ok(rate)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn per_s(jobs: usize, began_ms: u64) -> f64 {
    jobs as f64 * 1_000.0 / (clock::monotonic_ms() - began_ms).max(1) as f64
}
