//! What keeps the house in order: maintenance whose one step is in difficulty, a queue that lost an index, statements that take
//! too long, and what the doctor says of all that.

use std::time::Duration;

use scheduler::Scheduler;
use shared::db::{Db, DbError};
use shared::jobs::Ctx;
use shared::models::{AddressPolicy, JobKind, RelayUrl, Verdict};
use sqlx::Connection as _;
use tests::pg::{Bouncer, Generation, Role, TestDb};

use super::jobs::{config, context, run};
use super::operator::says;
use super::scheduler::{round, scheduler, shown};
use super::support::{claim_one, handle, job, migrated, registration, value};

/// The first round of a new term, with everything that belongs to one: another had the lead meanwhile.
async fn anew(test: &TestDb, scheduler: &mut Scheduler) {
    test.execute("UPDATE leader SET holder = 'another', until = now() + interval '10 min', term = term + 1")
        .await;
    scheduler.tick().await.unwrap();
    test.execute("UPDATE leader SET until = now()").await;
    round(scheduler).await;
}

const FAILED: (&str, &[&str]) = ("bigbrotr_scheduler_errors_total{", &["outcome=\"maintenance\""]);

#[tokio::test]
async fn a_day_that_cannot_be_dropped_keeps_nothing_else_from_being_done_and_goes_when_it_can() {
    let Some(test) = migrated().await else { return };
    let (mut scheduler, metrics) = scheduler(&test.url(Role::Writer));
    test.execute(
        "SELECT partition_maintain(extract(epoch FROM timestamptz '2024-01-01Z')::bigint, 1000, '2024-01-02Z');
         INSERT INTO job_history SELECT 'j' || d, 'sync', 'clearnet', 't', 'complete', 1, 'w', d, d, d, d, '{}'
         FROM unnest(ARRAY['2024-01-01 12:00', now()]::timestamptz[]) d;
         INSERT INTO apalis.workers (id, worker_type, storage_name, layers, last_seen, started_at, lease_until)
         VALUES ('old', 'bigbrotr', 'bigbrotr', '', now(), now(), now() - interval '1 day')",
    )
    .await;
    // Somebody reads the history, and does not come to an end.
    let mut reader = test.connect(Role::Superuser).await;
    let mut reading = reader.begin().await.unwrap();
    sqlx::query("SELECT count(*) FROM job_history").execute(&mut *reading).await.unwrap();
    round(&mut scheduler).await;
    let left = "SELECT (SELECT count(*) FROM job_history) || ' ' || (SELECT count(*) FROM apalis.workers WHERE id = 'old')";
    assert_eq!(value(&test, left).await, "2 0", "the day is there, and a later step was done");
    assert_eq!(shown(&metrics, FAILED.0, FAILED.1).as_deref(), Some("1"), "and what failed is counted");
    reading.rollback().await.unwrap();
    anew(&test, &mut scheduler).await;
    assert_eq!(value(&test, left).await, "1 0", "a day within the memory stays");
    assert_eq!(value(&test, "SELECT (to_regclass('job_history_20240101') IS NULL)::text").await, "true");
    assert_eq!(shown(&metrics, FAILED.0, FAILED.1).as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_lost_an_index_is_an_error_of_the_upkeep_and_migrate_mends_it() {
    let Some(test) = migrated().await else { return };
    let (mut scheduler, metrics) = scheduler(&test.url(Role::Writer));
    round(&mut scheduler).await;
    assert_eq!(shown(&metrics, FAILED.0, FAILED.1), None, "all is as it was made");
    test.execute("DROP INDEX apalis.bigbrotr_ready; CREATE FUNCTION told() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
                  CREATE TRIGGER notify_workers AFTER INSERT ON apalis.jobs EXECUTE FUNCTION told()").await;
    anew(&test, &mut scheduler).await;
    assert_eq!(shown(&metrics, FAILED.0, FAILED.1).as_deref(), Some("1"));
    let (code, said) = says(&test, Role::Reader, &["doctor"]);
    for word in ["index bigbrotr_ready of apalis.jobs is missing", "trigger notify_workers notifies"] {
        let line = said.lines().find(|line| line.contains(word)).unwrap_or_default();
        assert!(code == 1 && line.starts_with("problem"), "{word}: {said}");
    }
    let (code, said) = says(&test, Role::Superuser, &["migrate"]);
    assert_eq!(code, 0, "{said}");
    assert!(says(&test, Role::Reader, &["doctor"]).1.contains("its indexes are there and valid"));
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_given_up_by_the_server_and_is_a_timeout() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer).with_timeout(Duration::from_secs(3));
    test.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(600); RETURN NEW; END';
         CREATE TRIGGER slow BEFORE INSERT ON relay FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    .await;
    let url = RelayUrl::parse("wss://slow.example", &AddressPolicy::public()).unwrap();
    let error = db.relay_insert(&[(url, 1)]).await.unwrap_err();
    assert!(matches!(error, DbError::Timeout { seconds: 3 }), "{error:?}");
    let left = "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    assert_eq!(value(&test, left).await, "0", "nothing goes on there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_speaks_of_the_fleet_as_it_is_and_not_of_its_own_settings() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    for (worker, listens) in [("w1", true), ("w2", false)] {
        let lease = Duration::from_secs(60);
        db.job_heartbeat(&shared::db::Registration { listens, ..registration(worker, lease) }).await.unwrap();
    }
    test.execute("UPDATE fleet_limit SET vantages_for_down = 3; UPDATE apalis.workers SET version = id")
        .await;
    let lines = |said: &str| said.lines().map(str::to_owned).collect::<Vec<_>>();
    let said = lines(&says(&test, Role::Reader, &["doctor"]).1);
    let has = |said: &[String], mark: &str, word: &str| {
        said.iter().any(|line| line.starts_with(mark) && line.contains(word))
    };
    for (mark, word) in [
        ("ok", "1 of 2 workers hear of new jobs"),
        ("note", "monitor.vantages_for_down is 3"),
        ("note", "workers of several: w1, w2"),
        ("ok", "the server's clock and ours agree"),
        ("ok", "the oldest snapshot is"),
        ("ok", "no job waits for our own network"),
    ] {
        assert!(has(&said, mark, word), "{word}: {said:#?}");
    }
    // Very many wait their turn before the few that wait for a proxy.
    let many: Vec<_> = (0..1_500).map(|n| job(JobKind::Sync, &format!("wss://r{n}.example"))).collect();
    db.job_enqueue(&many).await.unwrap();
    let (claimed, _) = claim_one(&db, "w1", JobKind::Monitor, "wss://waits.example").await;
    let finished = shared::db::Finished {
        job: claimed.job,
        attempt: 1,
        verdict: Verdict::Snooze,
        delay: Duration::from_secs(600),
        result: r#"{"error":"our own way into clearnet does not work: refused"}"#.to_owned(),
    };
    db.job_finish("w1", &[finished]).await.unwrap();
    let said = lines(&says(&test, Role::Reader, &["doctor"]).1);
    assert!(has(&said, "problem", "seems not to work (clearnet): 1 jobs wait for it"), "{said:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_takes_longer_than_the_pooler_lets_queries_run_is_refreshed_all_the_same() {
    let Some(test) = migrated().await else { return };
    let Some(mut bouncer) = Bouncer::start(&test, Generation::Installed).await else { return };
    bouncer.start_again_with("query_timeout = 1").await;
    test.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(2.5); RETURN NEW; END';
         CREATE TRIGGER slow BEFORE INSERT ON view_state FOR EACH ROW WHEN (NEW.view_name = 'event_stats') EXECUTE FUNCTION slow()",
    )
    .await;
    let pooled = Db::lazy(&bouncer.url(Role::Writer), "bigbrotr test", 4).unwrap();
    let error = pooled.refresh("SELECT event_stats_refresh()").await.unwrap_err();
    assert!(error.to_string().contains("query timeout"), "the pooler does cut such a query: {error}");
    let ctx = Ctx { db: pooled, direct: handle(&test, Role::Refresher), ..context(&test, config()) };
    let report = run(&ctx, JobKind::Refresh, "views").await.unwrap();
    assert_eq!((&report["refreshed"], &report["failed"]), (&13.into(), &serde_json::json!({})), "{report}");
}
