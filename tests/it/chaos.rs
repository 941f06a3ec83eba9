//! Real worker and scheduler processes, killed, frozen and cut off: leases of two seconds, nothing lost or doubled.

use std::process::Command;
use std::time::Duration;

use shared::db::{Actor, Selection, TickKind};
use shared::models::JobKind;
use tests::journal::read;
use tests::pg::{Role, TestDb};
use tests::programs::Process;

use super::scene::{COMPLETE, Scene, signal};
use super::support::{claim_one, handle, job, value};

#[tokio::test]
async fn a_storm_of_kills_under_a_held_snapshot_loses_and_doubles_nothing() {
    let Some(mut scene) = Scene::new().await else { return };
    let mut held = scene.test.connect(Role::Superuser).await;
    for sql in ["BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT count(*) FROM apalis.jobs"] {
        sqlx::query(sql).execute(&mut held).await.unwrap();
    }
    scene.enqueue((0..400).map(|i| format!("t{i}")), 60, 100).await;
    let _schedulers = [scene.scheduler(), scene.scheduler()];
    let mut workers: Vec<Process> = (0..3).map(|_| scene.worker(120, 1)).collect();
    for round in 0..12 {
        // bound: 12 × 400 ms of storm
        tokio::time::sleep(Duration::from_millis(400)).await;
        let victim = workers.remove(round * 7 % 3);
        signal(&victim, "KILL");
        workers.push(scene.worker(120, 1));
    }
    scene.until(COMPLETE, "400 400", 60).await;
    scene.attempts_are_apart();
    let killed = value(
        &scene.test,
        "SELECT (count(*) > 0)::text FROM job_history WHERE attempt > 1 AND target LIKE 't%'",
    )
    .await;
    assert_eq!(killed, "true", "the kills came in the middle of work");
}

#[tokio::test]
async fn a_frozen_worker_loses_its_job_and_writes_nothing_when_it_wakes() {
    let Some(mut scene) = Scene::new().await else { return };
    let _scheduler = scene.scheduler();
    scene.enqueue(["t0".to_owned()].into_iter(), 60, 5).await;
    let frozen = scene.worker(6_000, 1);
    scene
        .until("SELECT count(*)::text FROM apalis.jobs WHERE target = 't0' AND status = 'Running'", "1", 20)
        .await;
    signal(&frozen, "STOP");
    let _other = scene.worker(6_000, 1);
    scene.until("SELECT (SELECT attempts::text FROM apalis.jobs WHERE target = 't0' AND status = 'Running' AND attempts = 2)", "2", 5).await;
    signal(&frozen, "CONT");
    scene.until(COMPLETE, "1 1", 20).await;
    assert_eq!(value(&scene.test, "SELECT attempt::text FROM job_history WHERE target = 't0'").await, "2");
    let ended: Vec<_> = read(&scene.journal())
        .into_iter()
        .filter(|e| !e.began && e.target == "t0")
        .map(|e| e.attempt)
        .collect();
    assert_eq!(ended, [2], "the attempt that was lost did not go on to its end");
}

#[tokio::test]
async fn a_restart_of_the_server_within_the_lease_repeats_nothing() {
    let state = std::env::temp_dir().join(format!("bigbrotr-chaos-pg-{}", shared::clock::random_hex(4)));
    let pg = |what: &str| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/pg.sh");
        Command::new(script)
            .arg(what)
            .env("BIGBROTR_PG_STATE", &state)
            .env_remove("BIGBROTR_TEST_PG")
            .output()
            .unwrap()
    };
    // Where there is no server for the other tests, there is none to be had for this one.
    if TestDb::empty().await.is_none() {
        return;
    }
    let started = pg("start");
    let cluster = String::from_utf8(started.stdout).unwrap().trim().to_owned();
    let test = TestDb::empty_in(&cluster).await;
    shared::queue::migrate(&test.url(Role::Superuser), &shared::db::MigrateOptions::default()).await.unwrap();
    let mut scene = Scene::on(test);
    let _scheduler = scene.scheduler();
    scene.enqueue((0..60).map(|i| format!("t{i}")), 60, 5).await;
    // Leases of two seconds outlive a restart that takes a few hundred milliseconds.
    let _workers = [scene.worker(300, 1), scene.worker(300, 1)];
    scene.until("SELECT (count(*) > 5)::text FROM job_history WHERE target LIKE 't%'", "true", 20).await;
    assert!(pg("restart").status.success());
    scene.until(COMPLETE, "60 60", 40).await;
    scene.attempts_are_apart();
    let repeated =
        value(&scene.test, "SELECT count(*)::text FROM job_history WHERE attempt > 1 AND target LIKE 't%'")
            .await;
    drop(scene);
    pg("stop");
    assert_eq!(repeated, "0");
}

#[tokio::test]
async fn a_frozen_leader_is_followed_and_does_nothing_on_its_old_lead() {
    let Some(mut scene) = Scene::new().await else { return };
    let first = scene.scheduler();
    let log = scene.last_log();
    scene.until("SELECT coalesce(max(term), 0)::text FROM leader WHERE until > now()", "1", 20).await;
    let second = scene.scheduler();
    signal(&first, "STOP");
    // Its lease of two seconds, and five more where it was frozen in the middle of a transaction.
    scene.until("SELECT max(term)::text FROM leader WHERE until > now()", "2", 15).await;
    // The second leads and says nothing more: whatever is done from here on, the first one did on its old lead.
    signal(&second, "STOP");
    scene.test.execute("UPDATE leader SET until = now() + interval '10 min'").await;
    scene.test.execute("INSERT INTO schedule SELECT 'sync', 'wss://r' || n || '.example', 'clearnet', now(), 60, 'new' FROM generate_series(1, 500) n").await;
    claim_one(&handle(&scene.test, Role::Writer), "gone", JobKind::Refresh, "lost").await;
    scene.test.execute("UPDATE apalis.workers SET lease_until = now() - interval '1 min'").await;
    signal(&first, "CONT");
    // Its late rounds come, and it hears that it does not lead.
    for _ in 0..100 {
        if std::fs::read_to_string(&log).unwrap().contains("leads=false") {
            break;
        }
        // bound: 100 × 100 ms
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(std::fs::read_to_string(&log).unwrap().contains("leads=false"), "the first has woken up");
    // bound: ten rounds more
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        value(&scene.test, "SELECT string_agg(target || ' ' || status, ',') FROM apalis.jobs WHERE kind = 'sync' OR target = 'lost'").await,
        "lost Running",
        "nothing is enqueued, and nothing rescued"
    );
    assert_eq!(value(&scene.test, "SELECT max(term)::text FROM leader").await, "2");
    signal(&second, "CONT");
    scene.until("SELECT count(*)::text FROM apalis.jobs WHERE kind = 'sync'", "500", 10).await;
    scene.until("SELECT status FROM apalis.jobs WHERE target = 'lost'", "Pending", 5).await;
}

#[tokio::test]
async fn twenty_schedulers_enqueue_each_target_once() {
    let Some(scene) = Scene::new().await else { return };
    scene.test.execute("INSERT INTO schedule SELECT 'sync', 'wss://r' || n || '.example', 'clearnet', now(), 60, 'new' FROM generate_series(1, 1000) n").await;
    let db = handle(&scene.test, Role::Writer);
    let kinds = [TickKind {
        kind: JobKind::Sync,
        timeout: Duration::from_secs(60),
        max_attempts: 3,
        again: Duration::from_secs(900),
    }];
    let nets = ["clearnet".to_owned()];
    let direct = (0..10).map(|_| {
        db.schedule_enqueue(JobKind::Sync, &nets, 300, Duration::from_secs(60), 3, Duration::from_secs(900))
    });
    let names: Vec<String> = (0..10).map(|i| format!("s{i}")).collect();
    let ticks =
        names.iter().map(|name| db.scheduler_tick(name, Duration::from_secs(5), &kinds, &nets, 300, true));
    let (direct, ticks) =
        tokio::join!(futures_util::future::join_all(direct), futures_util::future::join_all(ticks));
    let ticks: Vec<_> = ticks.into_iter().map(Result::unwrap).collect();
    let enqueued: u64 = direct.into_iter().map(|done| done.unwrap().enqueued).sum::<u64>()
        + ticks.iter().flat_map(|tick| &tick.enqueued).sum::<u64>();
    assert_eq!(ticks.iter().filter(|tick| tick.term.is_some()).count(), 1, "one of ten leads");
    assert_eq!(enqueued, 1_000);
    assert_eq!(
        value(&scene.test, "SELECT count(*) || ' ' || count(DISTINCT target) FROM apalis.jobs").await,
        "1000 1000"
    );
}

#[tokio::test]
async fn a_rolling_restart_spends_no_attempt() {
    let Some(mut scene) = Scene::new().await else { return };
    let _scheduler = scene.scheduler();
    // One attempt each: a spent one would be the end of its job.
    scene.enqueue((0..150).map(|i| format!("t{i}")), 60, 1).await;
    let mut workers = vec![scene.worker(200, 1), scene.worker(200, 1)];
    let mut gone = Vec::new();
    for _ in 0..4 {
        // bound: 4 × 500 ms under load
        tokio::time::sleep(Duration::from_millis(500)).await;
        let leaving = workers.remove(0);
        signal(&leaving, "TERM");
        gone.push(leaving);
        workers.push(scene.worker(200, 1));
    }
    scene.until(COMPLETE, "150 150", 40).await;
    assert_eq!(
        value(
            &scene.test,
            "SELECT count(*)::text FROM job_history WHERE state <> 'complete' AND target LIKE 't%'"
        )
        .await,
        "0"
    );
}

#[tokio::test]
async fn a_job_longer_than_the_grace_is_given_back_unspent() {
    let Some(mut scene) = Scene::new().await else { return };
    scene.enqueue(["t0".to_owned()].into_iter(), 60, 3).await;
    let worker = scene.worker(30_000, 1);
    scene
        .until("SELECT count(*)::text FROM apalis.jobs WHERE target = 't0' AND status = 'Running'", "1", 20)
        .await;
    signal(&worker, "TERM");
    scene
        .until(
            "SELECT status || ' ' || (max_attempts - attempts) FROM apalis.jobs WHERE target = 't0'",
            "Pending 3",
            10,
        )
        .await;
}

#[tokio::test]
async fn hangs_panics_failures_and_strangers_rows_do_a_worker_no_harm() {
    let Some(mut scene) = Scene::new().await else { return };
    let _scheduler = scene.scheduler();
    // What apalis's own tools push lacks our columns, and its payload is not ours to decode.
    scene.test.execute("INSERT INTO apalis.jobs (id, job_type, job, status, attempts, max_attempts, run_at) VALUES ('FOREIGN', 'refresh.local', 'garbage', 'Pending', 0, 3, now())").await;
    scene.enqueue(["hang-1", "panic-1", "fail-1"].map(str::to_owned).into_iter(), 2, 1).await;
    let mut worker = scene.worker(50, 1);
    scene.until("SELECT string_agg(target || ' ' || state || ' ' || (result ->> 'error'), ', ' ORDER BY target) FROM job_history WHERE target LIKE '%-1'",
        "fail-1 dead as the target wants, hang-1 dead the attempt ran into its time limit, panic-1 dead the handler panicked", 20).await;
    scene.enqueue((0..10).map(|i| format!("t{i}")), 60, 1).await;
    scene.until(COMPLETE, "10 10", 20).await;
    assert!(!worker.has_ended());
    assert_eq!(
        value(&scene.test, "SELECT status || ' ' || attempts FROM apalis.jobs WHERE id = 'FOREIGN'").await,
        "Pending 0"
    );
}

#[tokio::test]
async fn a_row_that_cannot_be_read_dies_with_its_reason_and_costs_its_neighbours_nothing() {
    let Some(mut scene) = Scene::new().await else { return };
    scene.enqueue((0..20).map(|i| format!("t{i}")), 60, 3).await;
    scene.test.execute("UPDATE apalis.jobs SET kind = 'bogus' WHERE target = 't7'").await;
    let _worker = scene.worker(20, 1);
    scene.until(COMPLETE, "19 19", 20).await;
    scene
        .until(
            "SELECT string_agg(target || ' ' || attempt || ' ' || replace(result ->> 'error', job_id, 'ID'), ',') FROM job_history WHERE state = 'dead'",
            "t7 1 unreadable: table apalis.jobs, column kind, row ID: \"bogus\" is not a job kind",
            5,
        )
        .await;
    assert_eq!(
        value(&scene.test, "SELECT max(attempt)::text FROM job_history").await,
        "1",
        "nobody ran twice"
    );
}

#[tokio::test]
async fn a_cancelled_job_stops_within_seconds_and_one_asked_for_while_it_ran_runs_again() {
    let Some(mut scene) = Scene::new().await else { return };
    scene.enqueue(["t0", "t1"].map(str::to_owned).into_iter(), 60, 3).await;
    let _worker = scene.worker(2_500, 1);
    scene.until("SELECT count(*)::text FROM apalis.jobs WHERE status = 'Running'", "2", 20).await;
    let db = handle(&scene.test, Role::Writer);
    assert_eq!(
        db.job_enqueue(&[job(JobKind::Refresh, "t1")]).await.unwrap(),
        0,
        "it runs: the wish is remembered"
    );
    let selection = Selection { which: Some("t0".to_owned()), ..Selection::default() };
    let actor = Actor { name: "ann".to_owned(), why: String::new() };
    assert_eq!(db.job_cancel(&selection, &actor).await.unwrap(), (0, 1));
    scene
        .until(
            "SELECT (SELECT state || ' ' || (result ->> 'error') FROM job_history WHERE target = 't0')",
            "cancelled cancelled by ann",
            2,
        )
        .await;
    scene
        .until("SELECT count(*)::text FROM job_history WHERE target = 't1' AND state = 'complete'", "2", 20)
        .await;
    scene.attempts_are_apart();
}
