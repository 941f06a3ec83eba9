//! What operators do to the queues, and what the queues say of themselves.

use std::time::Duration;

use shared::db::{Actor, Db, Selection};
use shared::models::{JobKind, Verdict};
use tests::pg::{Role, TestDb};

use super::support::{claim_one, handle, job, migrated, polite, register, value};

const LEASE: Duration = Duration::from_secs(60);

fn actor() -> Actor {
    Actor { name: "ann".to_owned(), why: "test".to_owned() }
}

fn named(which: &str) -> Selection {
    Selection { which: Some(which.to_owned()), ..Selection::default() }
}

/// The words `why` gives for a name, as the reader.
async fn reasons(test: &TestDb, which: &str) -> Vec<String> {
    handle(test, Role::Reader).job_why(which).await.unwrap().into_iter().map(|line| line.reason).collect()
}

async fn clearnet_worker(db: &Db) {
    register(db, "w1", LEASE).await;
}

#[tokio::test]
async fn why_names_what_keeps_a_job_from_running() {
    let Some(test) = polite().await else { return };
    let db = handle(&test, Role::Writer);
    assert_eq!(reasons(&test, "wss://a.example").await, ["unknown"]);
    db.job_enqueue(&[job(JobKind::Sync, "wss://a.example")]).await.unwrap();
    assert_eq!(reasons(&test, "wss://a.example").await, ["no-worker"]);
    clearnet_worker(&db).await;
    assert_eq!(reasons(&test, "wss://a.example").await, ["ready"]);
    db.queue_hold(&["sync.*".to_owned()], "pause", &actor()).await.unwrap();
    assert_eq!(reasons(&test, "wss://a.example").await, ["paused"]);
    db.queue_hold(&["sync.*".to_owned()], "resume", &actor()).await.unwrap();
    db.worker_drain("w1", true, &actor()).await.unwrap();
    assert_eq!(reasons(&test, "wss://a.example").await, ["workers-draining"]);
    db.worker_drain("w1", false, &actor()).await.unwrap();
    for (sql, word) in [
        ("UPDATE network_limit SET permits = 0 WHERE network = 'clearnet'", "network-budget"),
        (
            "UPDATE network_limit SET permits = 9, bytes_per_day = 5; INSERT INTO network_usage VALUES ('clearnet', (now() AT TIME ZONE 'UTC')::date, 7)",
            "bytes-budget",
        ),
        (
            "DELETE FROM network_usage; INSERT INTO breaker VALUES ('clearnet', 'test', 1, now(), now() + interval '1 min', 'x', 'w1')",
            "breaker",
        ),
        ("UPDATE breaker SET until_at = now()", "breaker-half-open"),
        (
            "DELETE FROM breaker; UPDATE host_state SET next_at = now() + interval '5 s' WHERE host = 'a.example'",
            "host-cooling",
        ),
    ] {
        test.execute(sql).await;
        assert!(reasons(&test, "wss://a.example").await.contains(&word.to_owned()), "{word}");
    }
    test.execute("UPDATE host_state SET next_at = '-infinity'").await;
    let claimed = db.job_claim("w1", &[("sync.clearnet".to_owned(), 8)]).await.unwrap();
    assert_eq!(reasons(&test, &claimed[0].job).await, ["running"]);
    db.job_enqueue(&[job(JobKind::Sync, "wss://a.example")]).await.unwrap();
    assert_eq!(reasons(&test, "wss://a.example").await, ["running", "again"]);
    // The second path of the host waits for the first two, which are all the host bears.
    let more: Vec<_> = ["b", "c"].map(|path| job(JobKind::Sync, &format!("wss://a.example/{path}"))).into();
    db.job_enqueue(&more).await.unwrap();
    let (first, second) =
        (reasons(&test, "wss://a.example/b").await, reasons(&test, "wss://a.example/c").await);
    assert!(first.contains(&"host-cooling".to_owned()), "{first:?}");
    assert!(second.contains(&"behind".to_owned()), "{second:?}");
    test.execute("UPDATE fleet_limit SET host_jobs = 1").await;
    assert!(reasons(&test, "wss://a.example/b").await.contains(&"host-busy".to_owned()));
    // Another machine of an address block of which one runs, and one is all it bears.
    test.execute(
        "UPDATE apalis.jobs SET host = '192.0.2.1' WHERE status = 'Running';
         UPDATE apalis.jobs SET host = '192.0.2.9' WHERE target = 'wss://a.example/b'; UPDATE fleet_limit SET block_jobs = 1",
    )
    .await;
    let full = reasons(&test, "wss://a.example/b").await;
    assert!(full.contains(&"block-busy".to_owned()) && !full.contains(&"host-busy".to_owned()), "{full:?}");
}

#[tokio::test]
async fn why_speaks_of_what_has_no_job_too() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    test.execute(
        "INSERT INTO schedule VALUES ('sync', 'wss://s.example', 'clearnet', now() + interval '1 h', 60, 'up to date');
         INSERT INTO candidate (url, network, source, first_seen_at, last_seen_at, failures, last_reason, tombstoned_at)
         VALUES ('wss://t.example', 'clearnet', 'seed', 1, 1, 14, 'connect_timeout', 5)",
    )
    .await;
    assert_eq!(reasons(&test, "wss://s.example").await, ["due"]);
    assert_eq!(reasons(&test, "wss://t.example").await, ["given-up"]);
    db.queue_hold(&["sync.clearnet".to_owned()], "drain", &actor()).await.unwrap();
    assert_eq!(reasons(&test, "wss://s.example").await, ["draining"]);
    let (claimed, _) = claim_one(&db, "w1", JobKind::Monitor, "wss://m.example").await;
    let ended = |verdict| {
        vec![shared::db::Finished {
            job: claimed.job.clone(),
            attempt: 1,
            verdict,
            delay: Duration::from_secs(60),
            result: r#"{"error":"busy"}"#.to_owned(),
        }]
    };
    db.job_finish("w1", &ended(Verdict::Retry)).await.unwrap();
    assert_eq!(reasons(&test, "wss://m.example").await[0], "put-back");
    let before = db.job_retry(&named("wss://m.example"), 60.0, &actor()).await.unwrap();
    assert_eq!(before, (1, 0), "what waits after a failure is due now");
    let (again, _) = claim_one(&db, "w1", JobKind::Monitor, "wss://m.example").await;
    assert_eq!((again.job.as_str(), again.attempt), (claimed.job.as_str(), 2));
}

#[tokio::test]
async fn a_preview_changes_nothing_and_a_cancel_reaches_pending_and_running_jobs() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let (running, fence) = claim_one(&db, "w1", JobKind::Sync, "wss://r.example").await;
    db.job_enqueue(&[job(JobKind::Sync, "wss://p.example")]).await.unwrap();
    let all = Selection { kind: Some("sync".to_owned()), ..Selection::default() };
    assert_eq!(db.job_preview(&all).await.unwrap().0, 2);
    assert_eq!(value(&test, "SELECT count(*)::text FROM apalis.jobs WHERE cancel_why IS NULL").await, "2");
    assert_eq!(db.job_cancel(&all, &actor()).await.unwrap(), (1, 1));
    assert_eq!(
        value(&test, "SELECT state || ' ' || (result ->> 'error') FROM job_history").await,
        "cancelled cancelled by ann: test"
    );
    let told = db.job_exchange("w1", &shared::db::Exchange::default()).await.unwrap().cancelled;
    assert_eq!(told, [(running.job.clone(), fence.attempt())], "its worker hears of it");
    // Whatever it ends with but success, the operator's word stands.
    let ended = shared::db::Finished {
        job: running.job.clone(),
        attempt: 1,
        verdict: Verdict::Retry,
        delay: Duration::ZERO,
        result: "{}".to_owned(),
    };
    assert_eq!(db.job_finish("w1", &[ended]).await.unwrap().len(), 1);
    assert_eq!(value(&test, "SELECT string_agg(state, ' ') FROM job_history").await, "cancelled cancelled");
    assert!(db.job_preview(&Selection::default()).await.is_err(), "nothing named is not everything");
    assert_eq!(
        value(&test, "SELECT string_agg(action || ' ' || jobs || ' ' || actor, ',') FROM operation").await,
        "cancel 2 ann (bigbrotr_writer)"
    );
}

#[tokio::test]
async fn a_paused_queue_is_not_claimed_from_and_a_drained_one_gets_nothing_new() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    clearnet_worker(&db).await;
    db.job_enqueue(&[job(JobKind::Sync, "wss://a.example")]).await.unwrap();
    let want = [("sync.clearnet".to_owned(), 4)];
    let held = db.queue_hold(&["*.clearnet".to_owned()], "pause", &actor()).await.unwrap();
    assert_eq!(held, ["monitor.clearnet", "sync.clearnet", "validate.clearnet"]);
    assert!(db.job_claim("w1", &want).await.unwrap().is_empty());
    db.queue_hold(&["*.*".to_owned()], "resume", &actor()).await.unwrap();
    test.execute("INSERT INTO schedule VALUES ('sync', 'wss://s.example', 'clearnet', now(), 60, 'new')")
        .await;
    db.queue_hold(&["sync.clearnet".to_owned()], "drain", &actor()).await.unwrap();
    let nets = ["clearnet".to_owned()];
    assert_eq!(db.schedule_enqueue(JobKind::Sync, &nets, 60, LEASE, 3, LEASE).await.unwrap().enqueued, 0);
    assert_eq!(db.job_claim("w1", &want).await.unwrap().len(), 1, "what is there is done");
    db.queue_hold(&["sync.clearnet".to_owned()], "resume", &actor()).await.unwrap();
    assert_eq!(db.schedule_enqueue(JobKind::Sync, &nets, 60, LEASE, 3, LEASE).await.unwrap().enqueued, 1);
    assert!(db.queue_hold(&["sync.moon".to_owned()], "pause", &actor()).await.is_err());
}

#[tokio::test]
async fn what_is_wanted_now_comes_first_whether_it_waits_runs_or_is_not_there() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    clearnet_worker(&db).await;
    test.execute("INSERT INTO relay (url, network, discovered_at) VALUES ('wss://a.example', 'clearnet', 1), ('wss://b.example', 'clearnet', 1)").await;
    let want = [("sync.clearnet".to_owned(), 1)];
    let only = ["sync".to_owned()];
    let now = async |url: &str| db.job_run_now(&[url.to_owned()], Some(&only), &actor()).await.unwrap();
    assert_eq!(now("wss://nobody.example").await, (0, 0));
    db.job_enqueue(&[job(JobKind::Sync, "wss://first.example"), job(JobKind::Sync, "wss://a.example")])
        .await
        .unwrap();
    test.execute("UPDATE apalis.jobs SET deadline_at = deadline_at - interval '1 h' WHERE target = 'wss://first.example'").await;
    assert_eq!(now("wss://a.example").await, (1, 0), "raised");
    let claimed = db.job_claim("w1", &want).await.unwrap();
    assert_eq!((claimed[0].target.as_str(), claimed[0].class), ("wss://a.example", 0));
    assert_eq!(now("wss://a.example").await, (1, 0), "remembered");
    assert_eq!(now("wss://b.example").await, (1, 1), "enqueued");
    let done = shared::db::Finished {
        job: claimed[0].job.clone(),
        attempt: 1,
        verdict: Verdict::Complete,
        delay: Duration::ZERO,
        result: "{}".to_owned(),
    };
    db.job_finish("w1", &[done]).await.unwrap();
    let next = db.job_claim("w1", &[("sync.clearnet".to_owned(), 3)]).await.unwrap();
    let targets: Vec<_> = next.iter().map(|c| (c.target.as_str(), c.class)).collect();
    assert!(
        targets[..2].contains(&("wss://b.example", 0)) && targets[..2].contains(&("wss://a.example", 0)),
        "{targets:?}"
    );
}

#[tokio::test]
async fn the_number_of_workers_wanted_follows_the_work_that_workers_can_do() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let wanted = async || handle(&test, Role::Reader).autoscale().await.unwrap();
    assert_eq!((wanted().await.desired, wanted().await.binding.as_str()), (0, "nothing to do"));
    let many: Vec<_> = (0..4_000).map(|i| job(JobKind::Sync, &format!("wss://r{i}.example"))).collect();
    db.job_enqueue(&many).await.unwrap();
    // 4,000 × 60 s / 16 slots / 300 s = 50, and 256 permits are what 16 workers use.
    assert_eq!((wanted().await.desired, wanted().await.binding.as_str()), (16, "the permits of a network"));
    test.execute("UPDATE network_limit SET permits = 100000").await;
    assert_eq!((wanted().await.desired, wanted().await.binding.as_str()), (50, "workers"));
    test.execute("INSERT INTO queue_sample VALUES (now(), 'sync', 'clearnet', 10, 0, 0, 60, 0, 0)").await;
    assert_eq!(wanted().await.desired, 5, "measured: 6 s a job");
    test.execute(
        "INSERT INTO breaker VALUES ('clearnet', 'test', 1, now(), now() + interval '1 min', 'x', 'w')",
    )
    .await;
    assert_eq!(
        (wanted().await.desired, wanted().await.binding.as_str()),
        (0, "queues are paused, out of reach or out of traffic")
    );
}

#[tokio::test]
async fn the_sample_counts_what_ended_once() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    test.execute(
        "INSERT INTO job_history SELECT 'j' || n, 'sync', 'clearnet', 't', 'complete', 1, 'w', now() - interval '20 s', now(), now() - interval '15 s', now() - interval '10 s', '{}'
         FROM generate_series(1, 7) n",
    )
    .await;
    db.queue_sample_take().await.unwrap();
    db.queue_sample_take().await.unwrap();
    assert_eq!(
        value(
            &test,
            "SELECT sum(complete) || ' ' || round(sum(run_s)) || ' ' || round(sum(wait_s)) FROM queue_sample"
        )
        .await,
        "7 35 35"
    );
    let line = handle(&test, Role::Reader).queue_stats().await.unwrap();
    assert_eq!(line.iter().map(|line| line.done_per_min).sum::<u64>(), 7);
    // Nobody led for nine minutes: what ended in them is no minute's work.
    test.execute(
        "DELETE FROM queue_sample; INSERT INTO queue_sample (sampled_at, kind, network, complete, cancelled, dead, run_s, wait_s)
             VALUES (now() - interval '9 min', 'sync', 'clearnet', 0, 0, 0, 0, 0);
         INSERT INTO job_history SELECT 'k' || n, 'sync', 'clearnet', 't', 'complete', 1, 'w', now(), now(), now(), now() - interval '10 s' - n * interval '1 s', '{}'
         FROM generate_series(1, 500) n",
    )
    .await;
    db.queue_sample_take().await.unwrap();
    let line = handle(&test, Role::Reader).queue_stats().await.unwrap();
    let done = line.iter().map(|line| line.done_per_min).sum::<u64>();
    assert!((50..70).contains(&done), "one a second: {done} a minute");
}

#[tokio::test]
async fn the_manifest_for_kubernetes_asks_what_the_reader_may_ask() {
    let Some(test) = migrated().await else { return };
    let read = |file: &str| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes/");
        std::fs::read_to_string(format!("{folder}{file}")).unwrap()
    };
    let (manifest, worker) = (read("worker-scaledobject.yaml"), read("worker.yaml"));
    let query =
        manifest.lines().find_map(|line| line.trim().strip_prefix("query: ")).unwrap().trim_matches('"');
    let mut reader = test.connect(Role::Reader).await;
    let number: f64 =
        sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT x.desired::float8 FROM ({query}) x")))
            .fetch_one(&mut reader)
            .await
            .unwrap();
    assert!(number.abs() < f64::EPSILON);
    let grace =
        worker.lines().find_map(|line| line.trim().strip_prefix("terminationGracePeriodSeconds: ")).unwrap();
    assert!(grace.parse::<u64>().unwrap() > 20, "longer than worker.grace_s");
}
