//! What several scenarios need: a migrated database, handles on it, and waiting with a bound.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use shared::db::{Claimed, Db, MigrateOptions, NewJob, Registration};
use shared::models::{Fence, JobKind};
use shared::queue;
use tests::pg::{Role, TestDb};

/// A clone of the migrated template whose hosts bear any number of jobs at once: every relay of a test is one machine.
pub(crate) async fn migrated() -> Option<TestDb> {
    let test = polite().await?;
    test.execute("UPDATE fleet_limit SET host_jobs = 10000, host_spacing_ms = 0, block_jobs = 10000, block_spacing_ms = 0").await;
    Some(test)
}

/// A clone of the migrated template, with the limits as they are shipped.
pub(crate) async fn polite() -> Option<TestDb> {
    let label = format!("schema-{}", schema_hash());
    TestDb::from_template(&label, async |url: String| {
        queue::migrate(&url, &MigrateOptions::default()).await?;
        Ok(())
    })
    .await
}

/// Names the template by everything that makes it, so that an old one is never taken for the new.
fn schema_hash() -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    for migration in shared::db::MIGRATOR.iter() {
        migration.checksum.hash(&mut hasher);
    }
    include_str!("../../shared/src/queue/tables.sql").hash(&mut hasher);
    include_str!("../../shared/src/queue/views.sql").hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// The database as `role` sees it.
pub(crate) fn handle(db: &TestDb, role: Role) -> Db {
    Db::lazy(&db.url(role), "bigbrotr test", 8).expect("the harness makes valid URLs")
}

/// A worker with a standing lease.
pub(crate) async fn register(db: &Db, worker: &str, lease: Duration) {
    db.job_heartbeat(&registration(worker, lease)).await.unwrap();
}

/// What a test worker announces.
pub(crate) fn registration(worker: &str, lease: Duration) -> Registration {
    Registration {
        worker: worker.to_owned(),
        lease,
        vantage: "test".to_owned(),
        queues: vec![("sync.clearnet".to_owned(), 8)],
        traffic: Vec::new(),
        listens: false,
    }
}

/// A job that is due now.
pub(crate) fn job(kind: JobKind, target: &str) -> NewJob {
    NewJob {
        kind,
        network: if kind.is_remote() { "clearnet" } else { "local" }.to_owned(),
        target: target.to_owned(),
        class: 2,
        slack: Duration::from_secs(60),
        timeout: Duration::from_secs(60),
        max_attempts: 3,
    }
}

/// Enqueues one job, claims it for `worker`, and returns the proof.
pub(crate) async fn claim_one(db: &Db, worker: &str, kind: JobKind, target: &str) -> (Claimed, Fence) {
    register(db, worker, Duration::from_secs(60)).await;
    db.job_enqueue(&[job(kind, target)]).await.unwrap();
    let queue = format!("{kind}.{}", if kind.is_remote() { "clearnet" } else { "local" });
    let claimed = claim_target(db, worker, &queue, target).await;
    let fence = Fence::new(claimed.job.clone(), worker.to_owned(), claimed.attempt);
    (claimed, fence)
}

/// Claims until it has the job of `target`.
pub(crate) async fn claim_target(db: &Db, worker: &str, queue: &str, target: &str) -> Claimed {
    for _ in 0..100 {
        let claimed = db.job_claim(worker, &[(queue.to_owned(), 100)]).await.unwrap();
        if let Some(found) = claimed.into_iter().find(|c| c.target == target) {
            return found;
        }
        // bound: 100 × 50 ms; jobs of one host step forward a few times a second
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the job was not claimable")
}

/// One value of one row, read as the superuser.
pub(crate) async fn value(db: &TestDb, sql: &'static str) -> String {
    let mut connection = db.connect(Role::Superuser).await;
    sqlx::query_scalar::<_, Option<String>>(sql)
        .persistent(false)
        .fetch_one(&mut connection)
        .await
        .unwrap()
        .unwrap_or_default()
}

/// Rows of two texts as a map, read as the superuser.
pub(crate) async fn pairs(db: &TestDb, sql: &'static str) -> BTreeMap<String, String> {
    let mut connection = db.connect(Role::Superuser).await;
    sqlx::query_as::<_, (String, String)>(sql)
        .persistent(false)
        .fetch_all(&mut connection)
        .await
        .unwrap()
        .into_iter()
        .collect()
}

/// Both outputs of a command, and whether it succeeded.
pub(crate) fn ran(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (output.status.success(), said.concat())
}

pub(crate) fn succeeded(command: &mut Command) -> String {
    let (ok, said) = ran(command);
    assert!(ok, "{command:?}: {said}");
    said
}
