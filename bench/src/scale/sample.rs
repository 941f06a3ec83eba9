//! What the server is seen doing, once a second.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Sessions of others by what they are at; a session that works and waits for nothing runs, or waits for a processor.
const SESSIONS: &str = "
SELECT CASE WHEN a.state = 'active' THEN coalesce(a.wait_event_type, 'running')
            WHEN a.state LIKE 'idle in transaction%' THEN 'between statements' ELSE 'idle' END, count(*)
FROM pg_stat_activity a
WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid() AND a.datname = current_database()
GROUP BY 1";

/// Of many looks.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    looks: u32,
    seen: BTreeMap<String, i64>,
    /// Most sessions at once.
    pub(super) most: i64,
}

impl Sessions {
    /// Looks until it is told to stop.
    pub(super) async fn watch(mut admin: PgConnection, stop: CancellationToken) -> anyhow::Result<Self> {
        let mut sessions = Self::default();
        while !stop.is_cancelled() {
            let rows: Vec<(String, i64)> = sqlx::query_as(SESSIONS).fetch_all(&mut admin).await?;
            sessions.looks += 1;
            sessions.most = sessions.most.max(rows.iter().map(|(_, n)| n).sum());
            for (what, n) in rows {
                *sessions.seen.entry(what).or_default() += n;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        Ok(sessions)
    }

    /// Sessions at this on average.
    pub(super) fn mean(&self, what: &str) -> f64 {
        let seen = self.seen.get(what).copied().unwrap_or(0);
        i32::try_from(seen).map_or(f64::NAN, f64::from) / f64::from(self.looks.max(1))
    }

    /// All of it in a line.
    pub(super) fn line(&self) -> String {
        let of = |what: &String| format!("{what} {:.2}", self.mean(what));
        self.seen.keys().map(of).collect::<Vec<_>>().join(", ")
    }
}

/// Counters of the server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counters {
    pub(super) commits: i64,
    pub(super) deadlocks: i64,
    pub(super) wal_bytes: f64,
}

impl Counters {
    pub(super) async fn take(admin: &mut PgConnection) -> anyhow::Result<Self> {
        let (commits, deadlocks, wal_bytes): (i64, i64, f64) = sqlx::query_as(
            "SELECT d.xact_commit, d.deadlocks, (SELECT w.wal_bytes::float8 FROM pg_stat_wal w) \
             FROM pg_stat_database d WHERE d.datname = current_database()",
        )
        .fetch_one(admin)
        .await?;
        Ok(Self { commits, deadlocks, wal_bytes })
    }
}

/// The statements that took most of the server's time, as lines.
pub(super) async fn statements(admin: &mut PgConnection) -> anyhow::Result<Vec<String>> {
    let rows: Vec<(i64, f64, f64, String)> = sqlx::query_as(
        "SELECT sum(s.calls)::bigint, sum(s.total_exec_time)::float8, (sum(s.total_exec_time) / sum(sum(s.total_exec_time)) OVER ())::float8, \
                left(regexp_replace(s.query, '\\s+', ' ', 'g'), 90) \
         FROM pg_stat_statements s \
         WHERE s.toplevel AND s.dbid = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database()) \
           AND s.query NOT LIKE '%pg_stat_%' \
         GROUP BY 4 ORDER BY 2 DESC LIMIT 8",
    )
    .fetch_all(admin)
    .await?;
    let line = |(calls, ms, share, query): (i64, f64, f64, String)| {
        format!(
            "{:.0} % of the time in statements, {calls} calls, {:.1} s: {query}",
            share * 100.0,
            ms / 1_000.0
        )
    };
    Ok(rows.into_iter().map(line).collect())
}

/// Processor seconds of the machine: used, and there.
pub(super) fn machine_cpu_s() -> anyhow::Result<(f64, f64)> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat has a first line")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
    let all: f64 = ticks.iter().sum();
    // Idle, and waiting for a disk.
    let idle = ticks.get(3).context("idle")? + ticks.get(4).context("iowait")?;
    Ok(((all - idle) / 100.0, all / 100.0))
}
