//! What operators poll, at the size of a full observatory: answers come from indexes, and at once.

use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use tests::pg::{Role, TestDb};

use super::support::polite;

/// 50,000 relays, all of them overdue, and a backlog of 20,000 jobs: a fleet that was away for a day.
async fn away_for_a_day() -> Option<TestDb> {
    let test = polite().await?;
    test.execute(
        "INSERT INTO schedule
         SELECT k, 'wss://r' || n || '.example', 'clearnet', now() - interval '1 day' + n * interval '1 s', 600, 'interval'
         FROM generate_series(1, 50000) n, unnest(ARRAY['monitor', 'sync']) k;
         INSERT INTO apalis.jobs (id, job_type, job, status, attempts, max_attempts, run_at, idempotency_key, kind, network, target, due_at, deadline_at, slack_s, timeout_s, enqueued_at, gate, host)
         SELECT s.kind || s.target, s.kind || '.clearnet', '{}', 'Pending', 0, 3, s.due_at, s.target, s.kind, 'clearnet', s.target, s.due_at, s.due_at, 1, 60, now(),
                CASE s.kind WHEN 'sync' THEN 'ready' ELSE 'host' END, 'r' || (s.slack_s % 7) || '.example' FROM schedule s ORDER BY s.due_at LIMIT 20000;
         ANALYZE schedule; ANALYZE apalis.jobs",
    )
    .await;
    Some(test)
}

async fn plan(reader: &mut PgConnection, sql: &str) -> String {
    let lines =
        sqlx::query(AssertSqlSafe(format!("EXPLAIN {sql}"))).persistent(false).fetch_all(reader).await;
    lines.unwrap().iter().map(|row| row.get::<String, _>(0) + "\n").collect()
}

/// Pages of tables and indexes that an answer takes.
pub(crate) async fn pages(reader: &mut PgConnection, sql: &str) -> u64 {
    let explain = format!("EXPLAIN (ANALYZE, BUFFERS, TIMING off) {sql}");
    let lines = sqlx::query(AssertSqlSafe(explain)).persistent(false).fetch_all(reader).await.unwrap();
    let lines: Vec<String> = lines.iter().map(|row| row.get(0)).collect();
    // The first line of its kind is of the whole.
    let whole = lines.iter().find(|line| line.trim_start().starts_with("Buffers: shared")).unwrap();
    let number = |word| {
        let found = whole.split_once(word).map(|(_, rest)| rest.split(' ').next().unwrap().parse::<u64>());
        found.map_or(0, |number| number.unwrap())
    };
    number("hit=") + number("read=")
}

#[tokio::test]
async fn operators_are_answered_at_once_after_a_day_away() {
    let Some(test) = away_for_a_day().await else { return };
    let mut reader = test.connect(Role::Reader).await;
    let page = "SELECT relay_url, kind, overdue_s, why, job FROM relay_due WHERE due_at < now() - interval '1 minute' ORDER BY due_at LIMIT 20";
    let relay = "SELECT * FROM relay_due WHERE relay_url = 'wss://r77.example'";
    for (sql, index) in [(page, "schedule_due_at"), (relay, "schedule_pkey")] {
        let plan = plan(&mut reader, sql).await;
        assert!(plan.contains(index) && !plan.contains("Seq Scan"), "{sql}:\n{plan}");
    }
    let mut read = Vec::new();
    for sql in [
        page,
        relay,
        "SELECT * FROM relay_due ORDER BY due_at LIMIT 1000",
        "SELECT * FROM queue_depth",
        "SELECT * FROM autoscale_desired",
        "SELECT * FROM jobs_running",
        "SELECT * FROM workers",
        "SELECT * FROM queue_stats()",
    ] {
        // How long that takes bench/queue says; how much is read does not depend on what runs beside this.
        read.push((pages(&mut reader, sql).await, sql));
        let plan = plan(&mut reader, sql).await;
        let cost = plan.split("..").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        // From 100,000 on the server compiles a query.
        assert!(cost.parse::<f64>().unwrap() < 100_000.0, "{plan}");
    }
    // A page of it cost some hundreds of thousands when every relay was looked at.
    assert!(read.iter().all(|(pages, _)| *pages < 10_000), "{read:#?}");
    let depth = "SELECT string_agg(kind || ' ' || due, ', ' ORDER BY kind) FROM queue_depth WHERE due > 0";
    let depth: String = sqlx::query_scalar(depth).persistent(false).fetch_one(&mut reader).await.unwrap();
    assert_eq!(depth, "monitor 10000, sync 10000");
}
