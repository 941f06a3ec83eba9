//! Months that end: dropped against deleted, packed against left as they are, written anew; and rows that came before
//! their month was made.

use shared::clock;
use sqlx::{AssertSqlSafe, Executor as _};
use tests::pg::Role;

use super::ask;
use super::ours::{Ours, bytes_per_row, count};
use super::workload::{Plan, Slice, month_start, month_suffix};
use super::{Options, figure};
use crate::figure::{Goal, Report};
use crate::process::family_cpu_s;
use crate::queue::Cluster;

/// Wall milliseconds and processor seconds of a statement.
async fn timed(cluster: &Cluster, ours: &Ours, sql: &str) -> (f64, f64) {
    let (began, cpu) = (clock::monotonic_ms(), family_cpu_s(cluster.postmaster));
    ours.test.execute(sql).await;
    (count(clock::monotonic_ms() - began), family_cpu_s(cluster.postmaster) - cpu)
}

pub(super) async fn run(
    cluster: &Cluster,
    ours: &Ours,
    options: &Options,
    month: u32,
    report: &mut Report,
) -> anyhow::Result<()> {
    packed(cluster, ours, report).await?;
    early(cluster, ours, options, report).await?;
    dropped(cluster, ours, month, report).await
}

/// The first month as one row per relay and day, and one per event: bytes, and what reading costs.
async fn packed(cluster: &Cluster, ours: &Ours, report: &mut Report) -> anyhow::Result<()> {
    let suffix = month_suffix(0);
    let table = format!("event_relay_{suffix}");
    let n = ours.number(&format!("SELECT count(*) FROM {table}")).await?;
    let live = bytes_per_row(&ours.test, &table).await?;
    let (_, cpu) = timed(
        cluster,
        ours,
        &format!(
            "CREATE TABLE packed_day AS SELECT relay_id, (event_key >> 31) / 86400 AS day, array_agg(event_key ORDER BY event_key) AS keys,
                 array_agg(seen_at::integer ORDER BY event_key) AS seen FROM {table} GROUP BY 1, 2;
             CREATE UNIQUE INDEX ON packed_day (relay_id, day);
             CREATE TABLE packed_event AS SELECT event_key, array_agg(relay_id::smallint ORDER BY relay_id) AS relays FROM {table} GROUP BY 1;
             CREATE UNIQUE INDEX ON packed_event (event_key)"
        ),
    )
    .await;
    ours.test.execute("VACUUM (ANALYZE) packed_day").await;
    ours.test.execute("VACUUM (ANALYZE) packed_event").await;
    let bytes = |table: &str| format!("SELECT pg_total_relation_size('{table}') / {n}::float8");
    let (day, event) = (ours.number(&bytes("packed_day")).await?, ours.number(&bytes("packed_event")).await?);
    report.add(&figure(
        "packed_bytes_per_observation",
        day + event,
        live,
        "the month as it is",
        "bytes",
        Goal::Stated,
    ));
    report.add(&figure(
        "packed_without_event_side_bytes",
        day,
        live,
        "the month as it is",
        "bytes",
        Goal::Stated,
    ));
    report.add(&figure("pack_cpu_s_per_1k", cpu * 1_000.0 / n, f64::NAN, "nothing", "s", Goal::Stated));
    let pg = cluster.postmaster;
    let relay = ours.relay_id(9)?;
    let (lo, hi) = ask::month_keys(0);
    let plain = ask::sql(pg, &ours.test, &ask::list_sql(relay, 0)).await?.cpu_ms;
    let list = format!(
        "SELECT e.id, e.created_at FROM (SELECT k FROM packed_day, unnest(keys) k WHERE relay_id = {relay} AND day BETWEEN {0} / 86400 AND {1} / 86400) o
         JOIN event e ON e.event_key = o.k WHERE e.event_key >= {lo} AND e.event_key < {hi} ORDER BY e.event_key",
        month_start(0),
        month_start(1) - 1
    );
    let cost = ask::sql(pg, &ours.test, &list).await?.cpu_ms;
    report.add(&figure("packed_list_month_cpu_ms", cost, plain, "the month as it is", "ms", Goal::Stated));
    // A thousand observations that come late: a hundred events of each of ten days of ten relays.
    let late = "WITH late AS (
                    SELECT p.relay_id, p.day, (SELECT array_agg(k + 1) FROM unnest(p.keys[1:10]) k) AS keys
                    FROM packed_day p WHERE p.relay_id IN (SELECT id FROM relay ORDER BY id LIMIT 10) AND cardinality(p.keys) >= 10
                    ORDER BY p.day, p.relay_id LIMIT 100),
                day AS (UPDATE packed_day p SET keys = (SELECT array_agg(k ORDER BY k) FROM unnest(p.keys || l.keys) k),
                    seen = p.seen || array_fill(0, ARRAY[cardinality(l.keys)])
                    FROM late l WHERE l.relay_id = p.relay_id AND l.day = p.day)
                UPDATE packed_event e SET relays = e.relays || l.relay_id::smallint FROM late l CROSS JOIN LATERAL unnest(l.keys) k WHERE e.event_key = k - 1";
    let (_, cpu) = timed(cluster, ours, late).await;
    report.add(&figure(
        "packed_late_cpu_s_per_1k",
        cpu,
        f64::NAN,
        "nothing; one statement, ten keys a day and relay",
        "s",
        Goal::Stated,
    ));
    ours.test.execute("DROP TABLE packed_day, packed_event").await;
    let (_, cpu) = timed(cluster, ours, &format!("REINDEX TABLE {table}")).await;
    let anew = bytes_per_row(&ours.test, &table).await?;
    report.add(&figure(
        "reindexed_bytes_per_observation",
        anew,
        live,
        "the month as it was",
        "bytes",
        Goal::Stated,
    ));
    report.add(&figure("reindex_cpu_s_per_1k", cpu * 1_000.0 / n, f64::NAN, "nothing", "s", Goal::Stated));
    Ok(())
}

/// Rows of a month that is not made yet: how long they keep everybody out of the default partition when it is.
async fn early(cluster: &Cluster, ours: &Ours, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let [first, second] = [60, 61];
    for month in [first, second] {
        let events = options.events() / 10;
        let slice = Slice::make(Plan {
            seed: u64::from(month),
            month,
            months: 1,
            part: (0, 1),
            events,
            single: true,
        })?;
        ours.feed(&slice).await?;
        ours.test.execute("TRUNCATE event_unmined").await;
    }
    let rows = ours.number("SELECT count(*) FROM event_default").await? / 2.0;
    let (lo, hi) = ask::month_keys(first);
    let (moved, cpu) = timed(
        cluster,
        ours,
        &format!("SELECT partition_ensure('event', {lo}, {hi}, '{}')", month_suffix(first)),
    )
    .await;
    // The other way: copied, indexed and checked before the lock; what came meanwhile follows under it.
    let (lo, hi) = ask::month_keys(second);
    let made = format!("event_{}", month_suffix(second));
    ours.test
        .execute(&format!(
            "CREATE TABLE {made} (LIKE event INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES);
             INSERT INTO {made} SELECT * FROM event_default WHERE event_key >= {lo} AND event_key < {hi};
             ALTER TABLE {made} ADD CONSTRAINT bounds CHECK (event_key IS NOT NULL AND event_key >= {lo} AND event_key < {hi})"
        ))
        .await;
    let mut connection = ours.test.connect(Role::Superuser).await;
    let began = clock::monotonic_ms();
    connection
        .execute(sqlx::raw_sql(AssertSqlSafe(format!(
            "BEGIN; LOCK TABLE event_default IN ACCESS EXCLUSIVE MODE;
             WITH gone AS (DELETE FROM event_default WHERE event_key >= {lo} AND event_key < {hi} RETURNING *)
             INSERT INTO {made} SELECT * FROM gone ON CONFLICT DO NOTHING;
             ALTER TABLE event ATTACH PARTITION {made} FOR VALUES FROM ({lo}) TO ({hi}); COMMIT"
        ))))
        .await?;
    let before = count(clock::monotonic_ms() - began);
    report.add(&figure("early_rows", rows, f64::NAN, "nothing", "events", Goal::Stated));
    report.add(&figure("early_moved_ms", moved, before, "copied before the lock", "ms", Goal::Stated));
    report.add(&figure(
        "early_moved_cpu_us_per_event",
        cpu * 1_000_000.0 / rows,
        f64::NAN,
        "nothing",
        "us",
        Goal::Stated,
    ));
    Ok(())
}

async fn dropped(cluster: &Cluster, ours: &Ours, month: u32, report: &mut Report) -> anyhow::Result<()> {
    let gone = month_suffix(0);
    let (drop_ms, drop_cpu) =
        timed(cluster, ours, &format!("DROP TABLE event_relay_{gone}; DROP TABLE event_{gone}")).await;
    let (lo, hi) = ask::month_keys(1.min(month));
    let delete = format!(
        "DELETE FROM event_relay WHERE event_key >= {lo} AND event_key < {hi}; DELETE FROM event WHERE event_key >= {lo} AND event_key < {hi}"
    );
    let (delete_ms, mut delete_cpu) = timed(cluster, ours, &delete).await;
    for table in ["event_relay", "event"] {
        delete_cpu += timed(cluster, ours, &format!("VACUUM {table}_{}", month_suffix(1.min(month)))).await.1;
    }
    report.add(&figure(
        "drop_month_ms",
        drop_ms,
        delete_ms,
        "deleting the rows of a month",
        "ms",
        Goal::Stated,
    ));
    report.add(&figure(
        "drop_month_cpu_s",
        drop_cpu,
        delete_cpu,
        "deleting them and the vacuum",
        "s",
        Goal::Stated,
    ));
    Ok(())
}
