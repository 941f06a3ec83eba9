//! From version 6, the last before the fleet: its database in the middle of work is migrated, and its workers go on.

use std::time::Duration;

use shared::db::{Finished, MIGRATOR, MigrateOptions};
use shared::models::Verdict;
use shared::queue;
use sqlx::migrate::Migrator;
use sqlx::{Connection as _, PgConnection, Row as _};
use tests::pg::{Role, TestDb};

use super::support::{handle, pairs, registration, value};

/// The tables of the queue as version 6 completed them.
const TABLES: &str = include_str!("../fixtures/version6/tables.sql");
const POPULATE: &str = include_str!("../fixtures/version6/populate.sql");

/// A database of version 6, populated.
async fn version_six() -> Option<TestDb> {
    let test = TestDb::empty().await?;
    let options = MigrateOptions::default();
    let mut connection = shared::db::connect_direct(&test.url(Role::Superuser)).await.unwrap();
    shared::db::prepare_roles(&mut connection, &options).await.unwrap();
    let six = MIGRATOR.iter().take(6).cloned().collect();
    Migrator::with_migrations(six).run(&mut connection).await.unwrap();
    queue::set_up_apalis(&mut connection).await.unwrap();
    sqlx::raw_sql(TABLES).execute(&mut connection).await.unwrap();
    shared::db::apply_grants(&mut connection, &options).await.unwrap();
    connection.close().await.unwrap();
    test.execute(POPULATE).await;
    Some(test)
}

async fn migrate(test: &TestDb) {
    queue::migrate(&test.url(Role::Superuser), &MigrateOptions::default()).await.unwrap();
    // Every relay here is a host that bears anything: what is asked is whether all of it can be claimed.
    test.execute("UPDATE fleet_limit SET host_jobs = 1000, host_spacing_ms = 0").await;
}

const UNCHANGED: &str =
    "SELECT t, kept.changed(t, CASE WHEN t IN ('jobs', 'workers') THEN 'apalis.' ELSE 'public.' END || t)
    FROM unnest(ARRAY['jobs', 'workers', 'job_history', 'schedule', 'relay', 'candidate', 'leader']) t";

#[tokio::test]
async fn a_database_of_version_six_in_the_middle_of_its_work_is_migrated_and_loses_nothing() {
    let Some(test) = version_six().await else { return };
    migrate(&test).await;
    // A second set-up finds nothing left to do.
    migrate(&test).await;
    let changed = pairs(&test, UNCHANGED).await;
    assert!(changed.len() == 7 && changed.values().all(|rows| rows == "0"), "{changed:?}");
    let gates = pairs(
        &test,
        "SELECT status || ' ' || coalesce(kind || '.' || network, 'foreign'),
                string_agg(DISTINCT coalesce(gate, '-') || ' ' || class, ', ') || ' ' || count(*) || ' ' || count(DISTINCT host)
         FROM apalis.jobs GROUP BY 1",
    )
    .await;
    let wanted = [
        ("Pending foreign", "- 2 1 0"),
        ("Pending monitor.clearnet", "later 2 16 16"),
        ("Pending refresh.local", "later 1 1 0"),
        ("Pending sync.clearnet", "later 2, later 3 36 21"),
        ("Pending sync.i2p", "later 2 7 7"),
        ("Pending sync.tor", "later 2 12 12"),
        ("Pending validate.clearnet", "later 1 10 10"),
        ("Running monitor.clearnet", "- 2 2 2"),
        ("Running sync.clearnet", "- 2, - 3 4 4"),
    ];
    assert_eq!(gates, wanted.map(|(queue, seen)| (queue.to_owned(), seen.to_owned())).into());
    assert_eq!(
        value(
            &test,
            "SELECT string_agg(DISTINCT host, ' ') FROM apalis.jobs WHERE target LIKE 'wss://[%0]:%'"
        )
        .await,
        "2001:db8::0"
    );
}

#[tokio::test]
async fn everything_a_database_of_version_six_had_to_do_is_claimed_once_it_is_due() {
    let Some(test) = version_six().await else { return };
    migrate(&test).await;
    let db = handle(&test, Role::Writer);
    db.job_heartbeat(&registration("new", Duration::from_secs(600))).await.unwrap();
    let rescued = db.job_rescue().await.unwrap();
    assert_eq!((rescued.again, rescued.dead), (4, 0), "what the lost worker held");
    test.execute("UPDATE apalis.jobs SET run_at = now() WHERE run_at > now() AND kind IS NOT NULL").await;
    let queues =
        ["monitor.clearnet", "sync.clearnet", "sync.tor", "sync.i2p", "validate.clearnet", "refresh.local"]
            .map(|queue| (queue.to_owned(), 100));
    let mut done = 0;
    for _ in 0..50 {
        let claimed = db.job_claim("new", &queues).await.unwrap();
        let finished: Vec<Finished> = claimed
            .iter()
            .map(|claimed| Finished {
                job: claimed.job.clone(),
                attempt: claimed.attempt,
                verdict: Verdict::Complete,
                delay: Duration::ZERO,
                result: "{}".to_owned(),
            })
            .collect();
        done += db.job_finish("new", &finished).await.unwrap().len();
        // bound: 50 × 50 ms; jobs of one host step forward a few times a second
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(done, 86);
    assert_eq!(
        value(&test, "SELECT string_agg(coalesce(lock_by, id), ' ' ORDER BY id) FROM apalis.jobs").await,
        "worker-alive worker-alive FOREIGN"
    );
    let history =
        "SELECT count(DISTINCT job_id) || ' ' || count(*) FROM job_history WHERE state = 'complete'";
    assert_eq!(value(&test, history).await, "88 88");
}

/// The statements of the worker and scheduler of version 6, with its arguments, as the role it has.
struct Old(PgConnection);

impl Old {
    async fn heartbeat(&mut self, worker: &str, queues: &[&str], slots: i32) -> Vec<(String, i32)> {
        sqlx::query_as("SELECT job_id, attempt FROM job_heartbeat($1, $2, $3, $4, $5, $6)")
            .bind(worker)
            .bind(60.0_f64)
            .bind("here")
            .bind("6")
            .bind(queues.iter().map(|queue| (*queue).to_owned()).collect::<Vec<_>>())
            .bind(slots)
            .fetch_all(&mut self.0)
            .await
            .unwrap()
    }

    async fn claim(&mut self, worker: &str, queue: &str, free: i32) -> Vec<(String, i32)> {
        let rows = sqlx::query(
            "SELECT job_id, queue, kind, network, target, attempt, max_attempts, timeout_s FROM job_claim($1, $2, $3)",
        )
        .bind(worker)
        .bind(vec![queue.to_owned()])
        .bind(vec![free])
        .fetch_all(&mut self.0)
        .await
        .unwrap();
        assert!(
            rows.iter()
                .all(|row| row.get::<String, _>("queue") == queue && row.get::<i32, _>("timeout_s") == 60)
        );
        rows.iter().map(|row| (row.get("job_id"), row.get("attempt"))).collect()
    }

    async fn finish(&mut self, worker: &str, held: &[(String, i32)], verdict: &str) -> usize {
        sqlx::query("SELECT id FROM job_finish($1, $2, $3, $4, $5, $6) AS id")
            .bind(worker)
            .bind(held.iter().map(|(job, _)| job.clone()).collect::<Vec<_>>())
            .bind(held.iter().map(|(_, attempt)| *attempt).collect::<Vec<_>>())
            .bind(vec![verdict.to_owned(); held.len()])
            .bind(vec![0.0_f64; held.len()])
            .bind(vec!["{}".to_owned(); held.len()])
            .fetch_all(&mut self.0)
            .await
            .unwrap()
            .len()
    }

    async fn one(&mut self, sql: &'static str) -> String {
        sqlx::query_scalar(sql).fetch_one(&mut self.0).await.unwrap()
    }
}

#[tokio::test]
async fn a_worker_and_a_scheduler_of_version_six_go_on_after_the_migration() {
    let Some(test) = version_six().await else { return };
    migrate(&test).await;
    let mut old = Old(test.connect(Role::Writer).await);
    let held = old.heartbeat("worker-alive", &["monitor.clearnet"], 64).await;
    assert_eq!(held.len(), 2, "what it ran before is its own");
    assert_eq!(old.finish("worker-alive", &held, "complete").await, 2);
    let claimed = old.claim("worker-alive", "monitor.clearnet", 4).await;
    assert_eq!(claimed.len(), 4);
    assert_eq!(old.finish("worker-alive", &claimed[..1], "retry").await, 1);
    assert_eq!(old.finish("worker-alive", &claimed[1..2], "snooze").await, 1);
    assert_eq!(old.one("SELECT worker_stop('worker-alive')::text").await, "2");
    assert_eq!(old.finish("worker-alive", &claimed, "complete").await, 0, "the fence holds");
    assert_eq!(old.one("SELECT rescued || ' ' || killed FROM job_rescue()").await, "4 0");
    assert_eq!(old.one("SELECT leader_claim('scheduler', 'scheduler-old', 60)::text").await, "1");
    let enqueue = "SELECT job_enqueue(ARRAY['sync'], ARRAY['clearnet'], ARRAY['wss://new.example'], array_fill(now(), ARRAY[1]), ARRAY[60], ARRAY[60], ARRAY[3])::text";
    assert_eq!(old.one(enqueue).await, "1");
    test.execute("UPDATE schedule SET due_at = now() WHERE kind = 'refresh'; DELETE FROM apalis.jobs WHERE kind = 'refresh'").await;
    assert_eq!(
        old.one(
            "SELECT due || ' ' || enqueued FROM schedule_enqueue('refresh', ARRAY['local'], 100, 60, 3, 900)"
        )
        .await,
        "1 1"
    );
    assert_eq!(
        value(&test, "SELECT count(*)::text FROM apalis.jobs WHERE kind IS NOT NULL AND status = 'Pending' AND gate IS NULL").await,
        "0"
    );
}

#[tokio::test]
async fn a_worker_of_version_six_keeps_to_the_permits_of_a_network() {
    let Some(test) = version_six().await else { return };
    migrate(&test).await;
    let mut old = Old(test.connect(Role::Writer).await);
    old.heartbeat("worker-old", &["sync.tor"], 64).await;
    let permits: usize =
        value(&test, "SELECT permits::text FROM network_limit WHERE network = 'tor'").await.parse().unwrap();
    let mut held = old.claim("worker-old", "sync.tor", 64).await;
    assert_eq!(held.len(), permits);
    assert_eq!(old.claim("worker-old", "sync.tor", 54).await, [], "it runs all that may run");
    assert_eq!(old.finish("worker-old", &held.split_off(permits - 1), "complete").await, 1);
    assert_eq!(old.claim("worker-old", "sync.tor", 55).await.len(), 1);
    let why = "SELECT string_agg(reason, ' ') FROM job_why((SELECT target FROM apalis.jobs WHERE job_type = 'sync.tor' AND status = 'Pending'))";
    assert_eq!(value(&test, why).await, "network-budget", "its slots are known");
}

#[tokio::test]
async fn every_function_of_version_six_can_be_called_as_it_was() {
    let Some(test) = version_six().await else { return };
    migrate(&test).await;
    let gone = value(
        &test,
        "SELECT string_agg(k.proname, ', ') FROM kept.function k WHERE NOT EXISTS (
             SELECT FROM pg_proc p
             WHERE p.pronamespace = 'public'::regnamespace AND p.proname = k.proname AND p.pronargs >= k.pronargs
               AND (p.proargtypes::oid[])[0:k.pronargs - 1] = k.arguments[0:k.pronargs - 1]
               -- What could be left out can still be, and what came later is left out.
               AND p.pronargs - p.pronargdefaults <= k.pronargs - k.pronargdefaults)",
    )
    .await;
    assert_eq!(gone, "");
}
