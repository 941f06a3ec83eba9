//! Databases as they are after long service: jobs scheduled ahead, history, a schedule, a host that cools.

use tests::pg::{Role, TestDb};

use super::cluster::settle;

/// Jobs per statement.
const AHEAD: u32 = 10_000;
/// Days the history is spread over.
const DAYS: u32 = 5;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amounts {
    /// Jobs due in the future, over every remote kind, network and class.
    pub(crate) ahead: u32,
    pub(crate) history: u32,
    /// Jobs of one host that is not to be visited.
    pub(crate) cooling: u32,
    /// Relays in the schedule, each with two kinds.
    pub(crate) relays: u32,
}

impl Amounts {
    pub(crate) const fn new(quick: bool) -> Self {
        if quick {
            Self { ahead: 100_000, history: 500_000, cooling: 10_000, relays: 2_000 }
        } else {
            Self { ahead: 1_000_000, history: 5_000_000, cooling: 100_000, relays: 50_000 }
        }
    }
}

/// Jobs ahead, history and schedule.
pub(crate) async fn fill(db: &TestDb, amounts: Amounts) -> anyhow::Result<()> {
    let mut connection = db.connect(Role::Superuser).await;
    let ahead = "
        SELECT job_enqueue(
            array_agg((ARRAY['validate', 'monitor', 'sync'])[1 + i % 3]),
            array_agg((ARRAY['clearnet', 'clearnet', 'clearnet', 'tor', 'i2p', 'loki'])[1 + i / 3 % 6]),
            array_agg('wss://f' || i || '.example'), array_agg(now() + make_interval(secs => 86400 + i % 86400)),
            array_agg(600), array_agg(600), array_agg(3), p_classes => array_agg((i % 4)::smallint))
        FROM generate_series($1::integer, $2) i";
    for from in (0..amounts.ahead).step_by(AHEAD as usize) {
        let (from, to) = (i32::try_from(from)?, i32::try_from(from + AHEAD - 1)?);
        sqlx::query(ahead).bind(from).bind(to).execute(&mut connection).await?;
        if from == 0 {
            db.execute("ANALYZE apalis.jobs; ANALYZE host_state").await;
        }
    }
    for day in 0..=DAYS {
        let sql = format!(
            "SELECT partition_maintain(extract(epoch FROM now())::bigint, p_now => now() - interval '{day} days')"
        );
        db.execute(&sql).await;
    }
    let history = "
        INSERT INTO job_history (job_id, kind, network, target, state, attempt, worker_id, due_at, enqueued_at, started_at, finished_at, result)
        SELECT job_id_new(), (ARRAY['validate', 'monitor', 'sync'])[1 + i % 3], 'clearnet', 'wss://r' || i % 20000 || '.example',
               CASE WHEN i % 100 = 0 THEN 'dead' ELSE 'complete' END, 1, 'worker-' || i % 8, t, t, t, t, '{\"checks\": 7, \"open_ms\": 180}'
        FROM generate_series($1::integer, $2) i,
             LATERAL (SELECT now() - make_interval(secs => 86400.0 * $3 * i / $4)) u(t)";
    for part in 0..DAYS {
        let size = amounts.history / DAYS;
        sqlx::query(history)
            .bind(i32::try_from(part * size)?)
            .bind(i32::try_from((part + 1) * size - 1)?)
            .bind(f64::from(DAYS))
            .bind(f64::from(amounts.history))
            .execute(&mut connection)
            .await?;
    }
    let schedule = "
        INSERT INTO schedule (kind, target, network, due_at, slack_s, why)
        SELECT k, 'wss://r' || i || '.example', 'clearnet', now() + make_interval(secs => i % 3600 - 300), 600, 'interval'
        FROM generate_series(1, $1::integer) i, unnest(ARRAY['monitor', 'sync']) k";
    sqlx::query(schedule).bind(i32::try_from(amounts.relays)?).execute(&mut connection).await?;
    settle(db, &["apalis.jobs", "job_history", "host_state", "schedule"]).await;
    Ok(())
}

/// Jobs of one cooling host, due before all others.
pub(crate) async fn cool(db: &TestDb, amounts: Amounts) -> anyhow::Result<()> {
    let mut connection = db.connect(Role::Superuser).await;
    let jobs = "
        SELECT job_enqueue(
            array_agg('monitor'::text), array_agg('clearnet'::text), array_agg('wss://cold.example/' || i),
            array_agg(now() - interval '1 hour' + make_interval(secs => i / 1000.0)),
            array_agg(600), array_agg(600), array_agg(3), p_classes => array_agg(2::smallint))
        FROM generate_series($1::integer, $2) i";
    let batch = amounts.cooling.min(AHEAD);
    for from in (0..amounts.cooling).step_by(batch as usize) {
        let (from, to) = (i32::try_from(from)?, i32::try_from(from + batch - 1)?);
        sqlx::query(jobs).bind(from).bind(to).execute(&mut connection).await?;
    }
    let host = "INSERT INTO host_state (host, next_at) VALUES ('cold.example', now() + interval '1 day')
                ON CONFLICT (host) DO UPDATE SET next_at = excluded.next_at";
    sqlx::query(host).execute(&mut connection).await?;
    settle(db, &["apalis.jobs", "host_state"]).await;
    Ok(())
}
