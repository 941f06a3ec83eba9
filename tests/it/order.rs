//! The order in which rows are locked: jobs before the schedule, all of them by ids that never change.

use std::time::Duration;

use shared::db::{Actor, Pace, TickKind};
use shared::models::{JobKind, Retention};
use tests::pg::{Role, TestDb};

use super::locks::{impatient, meets, open, run, until_waiting};
use super::support::{handle, job, migrated, register, registration, value};

const LEASE: Duration = Duration::from_secs(60);

fn due(kind: JobKind) -> TickKind {
    TickKind { kind, timeout: LEASE, max_attempts: 3, again: LEASE }
}

/// The statement of whoever has locked jobs up to this one and goes on.
fn lock(id: &str) -> String {
    format!("SELECT FROM apalis.jobs WHERE id = '{id}' FOR UPDATE")
}

/// Gives the jobs of these targets ids whose order is known.
async fn given_ids(test: &TestDb, ids: &[(&str, &str)]) {
    for (target, id) in ids {
        test.execute(&format!("UPDATE apalis.jobs SET id = '{id}' WHERE target = '{target}'")).await;
    }
}

#[tokio::test]
async fn a_scheduler_locks_the_jobs_of_every_kind_in_one_order() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    // A backlog: both are due again while their jobs still wait.
    db.job_enqueue(&[job(JobKind::Monitor, "wss://m.example"), job(JobKind::Validate, "wss://v.example")])
        .await
        .unwrap();
    given_ids(&test, &[("wss://m.example", "00a"), ("wss://v.example", "00b")]).await;
    test.execute(
        "INSERT INTO schedule VALUES ('monitor', 'wss://m.example', 'clearnet', now(), 60, 'x'), ('validate', 'wss://v.example', 'clearnet', now(), 60, 'x')",
    )
    .await;
    let operator = open(&test, &lock("00a")).await;
    let (kinds, nets) = ([due(JobKind::Validate), due(JobKind::Monitor)], ["clearnet".to_owned()]);
    let tick = db.scheduler_tick("s", LEASE, &kinds, &nets, 300, true);
    let tick = meets(&test, operator, tick, &lock("00b")).await.unwrap();
    assert_eq!(tick.enqueued, [0, 0], "they wait already");
    let ahead = "SELECT count(*)::text FROM schedule WHERE due_at > now()";
    assert_eq!(value(&test, ahead).await, "2");
}

#[tokio::test]
async fn a_scheduler_takes_jobs_before_the_schedule_as_whoever_writes_results_does() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    db.job_enqueue(&[job(JobKind::Monitor, "wss://m.example")]).await.unwrap();
    test.execute("INSERT INTO schedule VALUES ('monitor', 'wss://m.example', 'clearnet', now(), 60, 'x')")
        .await;
    // The steps of an exclusion, and of every result: the job, then when its target is next due.
    let excluding = open(&test, "SELECT FROM apalis.jobs WHERE target = 'wss://m.example' FOR UPDATE").await;
    let (kinds, nets) = ([due(JobKind::Monitor)], ["clearnet".to_owned()]);
    let tick = db.scheduler_tick("s", LEASE, &kinds, &nets, 300, true);
    let then = "SELECT FROM schedule WHERE target = 'wss://m.example' FOR UPDATE";
    meets(&test, excluding, tick, then).await.unwrap();
}

#[tokio::test]
async fn what_is_claimed_while_a_scheduler_waits_is_left_to_its_worker() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    db.job_enqueue(&[job(JobKind::Sync, "wss://s.example")]).await.unwrap();
    test.execute("INSERT INTO schedule VALUES ('sync', 'wss://s.example', 'clearnet', now(), 60, 'x')").await;
    register(&db, "w1", LEASE).await;
    let claim = open(&test, "SELECT * FROM job_claim('w1', ARRAY['sync.clearnet'], ARRAY[1])").await;
    let (kinds, nets) = ([due(JobKind::Sync)], ["clearnet".to_owned()]);
    let tick = db.scheduler_tick("s", LEASE, &kinds, &nets, 300, true);
    meets(&test, claim, tick, "SELECT 1").await.unwrap();
    let wish = "SELECT status || coalesce(again_class::text, '') FROM apalis.jobs";
    assert_eq!(value(&test, wish).await, "Running", "it sets its next time itself");
    assert_eq!(value(&test, "SELECT (due_at <= now())::text FROM schedule").await, "true");
}

/// A worker ends a job that was asked for again and claims it anew in one call, while somebody enqueues its targets and
/// it has slept through its lease: seen once as a deadlock of its heartbeat and a scheduler's round.
#[tokio::test]
async fn a_lapsed_heartbeat_and_an_enqueuer_meet_over_a_job_that_was_asked_for_again() {
    let Some(test) = migrated().await else { return };
    impatient(&test).await;
    let db = handle(&test, Role::Writer);
    register(&db, "w1", LEASE).await;
    let jobs = ["wss://a.example", "wss://m.example", "wss://z.example"].map(|t| job(JobKind::Sync, t));
    db.job_enqueue(&jobs).await.unwrap();
    given_ids(&test, &[("wss://a.example", "00a"), ("wss://m.example", "00m"), ("wss://z.example", "00z")])
        .await;
    test.execute("UPDATE apalis.jobs SET gate = 'host' WHERE id = '00m'").await;
    assert_eq!(db.job_claim("w1", &[("sync.clearnet".to_owned(), 2)]).await.unwrap().len(), 2);
    assert_eq!(db.job_enqueue(&jobs[..1]).await.unwrap(), 0, "the wish is remembered");
    let between = open(&test, &lock("00m")).await;
    let mut exchange = open(
        &test,
        "SELECT * FROM job_exchange('w1', ARRAY['00a'], ARRAY[1], ARRAY['complete'], ARRAY[0::float8], ARRAY['{}'],
             ARRAY['sync.clearnet'], ARRAY[1], ARRAY[1], 0, NULL)",
    )
    .await;
    test.execute("UPDATE apalis.workers SET lease_until = now() - interval '1 s'").await;
    let worker = registration("w1", LEASE);
    let go_on = async {
        // The enqueuer waits for the first job, the heartbeat for its worker's row.
        until_waiting(&test, 2).await;
        run(&mut exchange, "COMMIT").await.unwrap();
        let mut between = between;
        // Now the enqueuer waits for the second; the heartbeat has what it could get, and waits or is done.
        // bound: long enough for both to come to their next lock
        tokio::time::sleep(Duration::from_millis(300)).await;
        run(&mut between, "COMMIT").await.unwrap();
    };
    let (enqueued, held, ()) = tokio::join!(db.job_enqueue(&jobs), db.job_heartbeat(&worker), go_on);
    assert_eq!(enqueued.unwrap(), 0);
    assert!(held.unwrap().is_empty(), "the lease was over");
    let deadlocks = "SELECT deadlocks::text FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(value(&test, deadlocks).await, "0");
}

#[tokio::test]
async fn who_waits_for_a_job_that_is_asked_for_again_still_locks_in_the_order_of_ids() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    register(&db, "w1", LEASE).await;
    let jobs = ["wss://a.example", "wss://z.example"].map(|target| job(JobKind::Sync, target));
    db.job_enqueue(&jobs).await.unwrap();
    given_ids(&test, &[("wss://a.example", "00a"), ("wss://z.example", "00z")]).await;
    assert_eq!(db.job_claim("w1", &[("sync.clearnet".to_owned(), 2)]).await.unwrap().len(), 2);
    assert_eq!(db.job_enqueue(&jobs[..1]).await.unwrap(), 0, "the wish is remembered");
    let mut finish = open(
        &test,
        "SELECT job_finish('w1', ARRAY['00a'], ARRAY[1], ARRAY['complete'], ARRAY[0::float8], ARRAY['{}'])",
    )
    .await;
    // Somebody else has got as far as the last of them, and goes on to what comes after it.
    let operator = open(&test, &lock("00z")).await;
    let enqueue = db.job_enqueue(&jobs);
    let go_on = async {
        until_waiting(&test, 1).await;
        run(&mut finish, "COMMIT").await.unwrap();
        let mut operator = operator;
        // bound: for the enqueuer to come to its next lock
        tokio::time::sleep(Duration::from_millis(200)).await;
        run(&mut operator, "SELECT FROM apalis.jobs WHERE id > '00z' ORDER BY id FOR UPDATE").await.unwrap();
        run(&mut operator, "COMMIT").await.unwrap();
    };
    let (enqueued, ()) = tokio::join!(enqueue, go_on);
    assert_eq!(enqueued.unwrap(), 0);
}

#[tokio::test]
async fn an_operator_who_lowers_horizons_and_retention_at_work_wait_in_one_order() {
    let Some(test) = migrated().await else { return };
    impatient(&test).await;
    let db = handle(&test, Role::Writer);
    let keeps = Retention { days: Some(30), ..Retention::default() };
    db.retention_put(&keeps, false).await.unwrap();
    db.retention_step(&mut Pace::default()).await.unwrap();
    // What retention_step takes first, and what it takes then.
    let mut step = open(&test, "SELECT FROM archive_horizon FOR UPDATE").await;
    let actor = Actor { name: "ann".to_owned(), why: String::new() };
    let none = Retention::default();
    let goes_on = async {
        until_waiting(&test, 1).await;
        let policies = run(&mut step, "UPDATE retention_policy SET cursor_key = cursor_key").await;
        run(&mut step, "COMMIT").await.and(policies)
    };
    let (applied, went_on) = tokio::join!(db.retention_apply(&none, &actor), goes_on);
    assert_eq!((applied.unwrap(), went_on.is_ok()), ((1, 1), true), "{went_on:?}");
}

#[tokio::test]
async fn deletions_that_are_being_noted_are_passed_over_and_the_others_applied() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let one = |n: u8, what: u8| {
        let target = if what == 0 { format!("{n:02x}").repeat(32) } else { String::new() };
        format!(
            "('\\x{}', {what}, '\\x{target}', 1, '\\x{}', now() - interval '1 hour')",
            "aa".repeat(32),
            format!("{n:02x}").repeat(32)
        )
    };
    let rows = [one(1, 0), one(2, 0), one(3, 0), one(4, 2)].join(", ");
    test.execute(&format!(
        "INSERT INTO tombstone (pubkey, what, target, until_at, request_id, noted_at) VALUES {rows}"
    ))
    .await;
    let mut writer =
        open(&test, "SELECT FROM tombstone WHERE target = decode(repeat('02', 32), 'hex') FOR UPDATE").await;
    db.tombstone_step(&mut Pace::of(10)).await.unwrap();
    let open =
        "SELECT string_agg(encode(substring(request_id FOR 1), 'hex'), ' ') FROM tombstone WHERE settled < 2";
    assert_eq!(value(&test, open).await, "02");
    run(&mut writer, "ROLLBACK").await.unwrap();
    db.tombstone_step(&mut Pace::of(10)).await.unwrap();
    assert_eq!(value(&test, "SELECT count(*)::text FROM tombstone WHERE settled < 2").await, "0");
}
