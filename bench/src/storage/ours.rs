//! Our archive, fed as a sync job feeds it: ask which events are known, store what is new with the observations.

use anyhow::{Context, ensure};
use shared::db::{Db, EventRow, StoreBatch};
use shared::models::{EnvelopeFacts, EventId, Fence};
use sqlx::Row as _;
use tests::pg::{Role, TestDb};

use super::workload::{RELAYS, Slice, month_suffix, relay_url};
use crate::process::family_cpu_s;
use crate::queue::{Cluster, writer};

/// Events a relay delivers at once.
pub(super) const BATCH: usize = 1_000;

/// A database of ours in the cluster, with a job that holds for each relay.
pub(super) struct Ours {
    pub(super) test: TestDb,
    pub(super) db: Db,
    /// Of each relay: its id in the database, and the job that delivers.
    relays: Vec<(i32, Fence)>,
    postmaster: u32,
}

/// What feeding did, and what the server spent on it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Fed {
    pub(super) events: u64,
    pub(super) observations: u64,
    pub(super) delivered: u64,
    pub(super) cpu_s: f64,
}

impl Fed {
    /// Processor seconds per 1,000 new observations.
    pub(super) fn per_1k(&self) -> f64 {
        self.cpu_s * 1_000.0 / count(self.observations)
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(super) const fn count(n: u64) -> f64 {
    n as f64
}

impl Ours {
    pub(super) async fn open(cluster: &Cluster) -> anyhow::Result<Self> {
        let test = cluster.migrated().await?;
        // Months back to the first of Nostr, as in service.
        test.execute(
            "SELECT partition_maintain(extract(epoch FROM timestamptz '2020-11-01 00:00:00+00')::bigint)",
        )
        .await;
        let urls: Vec<String> = (0..RELAYS).map(|relay| format!("'{}'", relay_url(relay))).collect();
        test.execute(&format!(
            "INSERT INTO relay (url, network, discovered_at) SELECT u, 'clearnet', 1 FROM unnest(ARRAY[{}]) u;
             SELECT schedule_reconcile();
             SELECT job_heartbeat('w', 86400, 'here', '0', ARRAY['sync.clearnet'], 1);
             SELECT job_enqueue(array_agg('sync'::text), array_agg('clearnet'::text), array_agg(r.url), array_agg(now()), array_agg(60), array_agg(86400), array_agg(3)) FROM relay r;
             UPDATE apalis.jobs SET status = 'Running', gate = NULL, lock_by = 'w', lock_at = now(), attempts = 1, run_deadline = now() + interval '1 day'",
            urls.join(", ")
        ))
        .await;
        // Autovacuum is off: what it would have seen by now.
        test.execute("ANALYZE relay; ANALYZE schedule; ANALYZE apalis.jobs").await;
        let mut admin = test.connect(Role::Superuser).await;
        let rows = sqlx::query(
            "SELECT r.id, j.id FROM relay r JOIN apalis.jobs j ON j.target = r.url ORDER BY r.url",
        )
        .fetch_all(&mut admin)
        .await?;
        ensure!(rows.len() == RELAYS, "a job is missing");
        let relays = rows
            .iter()
            .map(|row| Ok((row.try_get(0)?, Fence::new(row.try_get(1)?, "w".to_owned(), 1))))
            .collect::<Result<Vec<_>, sqlx::Error>>()?;
        let db = writer(&test)?;
        Ok(Self { test, db, relays, postmaster: cluster.postmaster })
    }

    pub(super) fn relay_id(&self, relay: usize) -> anyhow::Result<i32> {
        Ok(self.relays.get(relay).context("a relay")?.0)
    }

    /// Every relay delivers what it holds of the slice, a thousand at a time.
    pub(super) async fn feed(&self, slice: &Slice) -> anyhow::Result<Fed> {
        let cpu = family_cpu_s(self.postmaster);
        let mut fed = Fed::default();
        for ((relay_id, fence), held) in self.relays.iter().zip(&slice.relays) {
            for batch in held.chunks(BATCH) {
                let rows: Vec<&EventRow> = batch.iter().map(|at| &slice.events[*at as usize]).collect();
                let asked: Vec<(EventId, i64)> =
                    rows.iter().map(|row| (row.event.id(), row.event.created_at())).collect();
                let facts: Vec<EnvelopeFacts> = rows.iter().map(|row| row.event.facts()).collect();
                let known = self.db.event_known(&facts.iter().collect::<Vec<_>>()).await?;
                let new: Vec<EventRow> = rows
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| known.known(*at).is_none())
                    .map(|(_, row)| (*row).clone())
                    .collect();
                let stored = self
                    .db
                    .sync_store(&StoreBatch {
                        fence,
                        relay_id: *relay_id,
                        seen_at: 1_790_000_000,
                        delivered: &asked,
                        new: &new,
                        light: false,
                        coverage: None,
                        next: None,
                    })
                    .await?;
                ensure!(stored.held, "a fence was lost");
                fed.events += stored.events;
                fed.observations += stored.observations;
                fed.delivered += asked.len() as u64;
            }
        }
        fed.cpu_s = family_cpu_s(self.postmaster) - cpu;
        Ok(fed)
    }

    /// What autovacuum would do after a month, and the list of events to be mined, as emptied by discover.
    pub(super) async fn settle(&self, month: u32) -> f64 {
        let cpu = family_cpu_s(self.postmaster);
        let suffix = month_suffix(month);
        for table in [format!("event_{suffix}"), format!("event_relay_{suffix}"), "event_unmined".to_owned()]
        {
            self.test.execute(&format!("VACUUM (ANALYZE) {table}")).await;
        }
        let cpu = family_cpu_s(self.postmaster) - cpu;
        self.test.execute("TRUNCATE event_unmined").await;
        cpu
    }

    pub(super) async fn number(&self, sql: &str) -> anyhow::Result<f64> {
        number(&self.test, sql).await
    }
}

/// One number of one row.
pub(super) async fn number(test: &TestDb, sql: &str) -> anyhow::Result<f64> {
    let mut connection = test.connect(Role::Superuser).await;
    let number: f64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT ({sql})::float8")))
        .fetch_one(&mut connection)
        .await?;
    Ok(number)
}

/// Heap, indexes and the rest of a partitioned table, per row of it.
pub(super) async fn bytes_per_row(test: &TestDb, table: &str) -> anyhow::Result<f64> {
    let bytes = number(
        test,
        &format!("SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('{table}') WHERE isleaf"),
    )
    .await?;
    Ok(bytes / number(test, &format!("SELECT count(*) FROM {table}")).await?)
}
