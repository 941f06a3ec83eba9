//! What ours is held against: the original's schema with its stored cascade, and rows copied into our own tables
//! without a question asked.

use std::fmt::Write as _;

use shared::db::EventRow;
use sqlx::{Executor as _, PgConnection};
use tests::pg::{Role, TestDb};

use super::ours::{BATCH, Fed, Ours};
use super::workload::{Slice, hex, relay_url};
use crate::peer;
use crate::process::family_cpu_s;
use crate::queue::Cluster;

pub(super) const CASCADE: &str = "bigbrotr 6.6.9: event_relay_insert_cascade, same deliveries";

/// A database of the original's.
pub(super) struct Peer {
    pub(super) test: TestDb,
    connection: PgConnection,
    postmaster: u32,
}

impl Peer {
    pub(super) async fn open(cluster: &Cluster) -> anyhow::Result<Self> {
        let test = peer::schema(cluster).await?;
        let connection = test.connect(Role::Superuser).await;
        Ok(Self { test, connection, postmaster: cluster.postmaster })
    }

    /// No foreign keys from here on: to be filled sooner.
    pub(super) async fn unchecked(&mut self) -> anyhow::Result<()> {
        self.connection.execute("SET session_replication_role = replica").await?;
        Ok(())
    }

    /// Every relay delivers what it holds of the slice, as ours is fed.
    pub(super) async fn feed(&mut self, slice: &Slice) -> anyhow::Result<Fed> {
        let cpu = family_cpu_s(self.postmaster);
        let mut fed = Fed::default();
        for (relay, held) in slice.relays.iter().enumerate() {
            for batch in held.chunks(BATCH) {
                let rows: Vec<&EventRow> = batch.iter().map(|at| &slice.events[*at as usize]).collect();
                let n = rows.len();
                let new: i32 = sqlx::query_scalar(
                    "SELECT event_relay_insert_cascade($1, $2, $3, $4, $5::text[]::jsonb[], $6, $7, $8, $9, $10, $11)",
                )
                .bind(rows.iter().map(|row| row.event.id().as_bytes().to_vec()).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.event.pubkey().to_vec()).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.event.created_at()).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| i32::from(row.event.kind())).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.event.tags_json()).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.event.content().to_owned()).collect::<Vec<_>>())
                .bind(rows.iter().map(|row| row.event.sig().to_vec()).collect::<Vec<_>>())
                .bind(vec![relay_url(relay); n])
                .bind(vec!["clearnet"; n])
                .bind(vec![1_i64; n])
                .bind(vec![1_790_000_000_i64; n])
                .fetch_one(&mut self.connection)
                .await?;
                fed.observations += u64::try_from(new)?;
                fed.delivered += n as u64;
            }
        }
        fed.cpu_s = family_cpu_s(self.postmaster) - cpu;
        Ok(fed)
    }

    pub(super) async fn settle(&self) -> f64 {
        let cpu = family_cpu_s(self.postmaster);
        for table in ["relay", "event", "event_relay"] {
            self.test.execute(&format!("VACUUM (ANALYZE) {table}")).await;
        }
        family_cpu_s(self.postmaster) - cpu
    }
}

/// The same rows in the same order by `COPY` into our own tables: whose events are new is known beforehand.
pub(super) async fn copy(ours: &Ours, cluster: &Cluster, slice: &Slice) -> anyhow::Result<Fed> {
    let mut connection = ours.test.connect(Role::Superuser).await;
    let cpu = family_cpu_s(cluster.postmaster);
    let mut fed = Fed::default();
    let mut stored = vec![false; slice.events.len()];
    for (relay, held) in slice.relays.iter().enumerate() {
        let relay_id = ours.relay_id(relay)?;
        for batch in held.chunks(BATCH) {
            let (mut events, mut seen) = (String::new(), String::new());
            for at in batch {
                let event = &slice.events[*at as usize].event;
                if !std::mem::replace(&mut stored[*at as usize], true) {
                    let hashes: Vec<String> = event.tag_hashes().iter().map(i64::to_string).collect();
                    writeln!(
                        events,
                        "{}\t{}\t{}\t\\\\x{}\t\\\\x{}\t\\\\x{}\t{}\t\\\\x{}\t\\\\x{}\t{{{}}}",
                        event.key(),
                        event.created_at(),
                        event.kind(),
                        hex(event.id().as_bytes()),
                        hex(&event.pubkey()[..]),
                        hex(&event.sig()[..]),
                        event
                            .d_tag()
                            .map_or_else(|| "\\N".to_owned(), |d| format!("\\\\x{}", hex(d.as_bytes()))),
                        hex(event.tags_json().as_bytes()),
                        hex(event.content().as_bytes()),
                        hashes.join(","),
                    )?;
                    fed.events += 1;
                }
                writeln!(seen, "{}\t{relay_id}\t1790000000\t0", event.key())?;
                fed.observations += 1;
            }
            for (table, rows) in [
                (
                    "event (event_key, created_at, kind, id, pubkey, sig, d_tag, tags, content, tag_hashes)",
                    events,
                ),
                ("event_relay (event_key, relay_id, seen_at, evidence)", seen),
            ] {
                let statement = format!("COPY {table} FROM STDIN");
                let mut into = connection.copy_in_raw(&statement).await?;
                into.send(rows.into_bytes()).await?;
                into.finish().await?;
            }
        }
    }
    fed.cpu_s = family_cpu_s(cluster.postmaster) - cpu;
    Ok(fed)
}
