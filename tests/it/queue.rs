//! The queue's functions: claim, lease, fence, finish, rescue, lead.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::json;
use shared::db::{Finished, ValidateResult};
use shared::jobs::{Attempt, Handler, JobError, Report};
use shared::models::{AddressPolicy, Fence, JobKind, Outcome, Reason, RelayUrl, Verdict};
use shared::net::Traffic;
use shared::queue::{self, QueueOptions};
use shared::telemetry::{Health, Metrics};
use tests::pg::Role;
use tokio_util::sync::CancellationToken;

use super::fleet::until;
use super::support::{claim_one, handle, job, migrated, pairs, register, value};

const LEASE: Duration = Duration::from_secs(60);

fn finished(job: &str, attempt: i32, verdict: Verdict) -> Finished {
    Finished { job: job.to_owned(), attempt, verdict, delay: Duration::ZERO, result: "{\"x\":1}".to_owned() }
}

fn url(text: &str) -> RelayUrl {
    RelayUrl::parse(text, &AddressPolicy::public()).unwrap()
}

#[tokio::test]
async fn at_most_one_job_is_outstanding_per_kind_and_target() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let jobs = [job(JobKind::Sync, "wss://a.example"), job(JobKind::Monitor, "wss://a.example")];
    assert_eq!(db.job_enqueue(&jobs).await.unwrap(), 2);
    assert_eq!(db.job_enqueue(&jobs).await.unwrap(), 0);
    let many: Vec<_> = (0..10_000).map(|i| job(JobKind::Validate, &format!("wss://r{i}.example"))).collect();
    let (first, second) = tokio::join!(db.job_enqueue(&many), db.job_enqueue(&many));
    assert_eq!(first.unwrap() + second.unwrap(), 10_000);
}

#[tokio::test]
async fn claims_take_the_earliest_deadline_and_never_the_same_job_twice() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let mut jobs: Vec<_> = (0..50).map(|i| job(JobKind::Sync, &format!("wss://r{i:02}.example"))).collect();
    for (i, job) in jobs.iter_mut().enumerate() {
        job.slack = Duration::from_secs(1_000 - i as u64 * 10);
    }
    db.job_enqueue(&jobs).await.unwrap();
    register(&db, "w1", LEASE).await;
    register(&db, "w2", LEASE).await;
    let want = [("sync.clearnet".to_owned(), 25)];
    let (one, two) = tokio::join!(db.job_claim("w1", &want), db.job_claim("w2", &want));
    let (one, two) = (one.unwrap(), two.unwrap());
    let mut targets: Vec<_> = one.iter().chain(&two).map(|c| c.target.clone()).collect();
    targets.sort();
    targets.dedup();
    assert_eq!((one.len(), two.len(), targets.len()), (25, 25, 50));
    // A third is left with nothing; of two more jobs it takes the one with less slack first.
    let mut late = [job(JobKind::Sync, "wss://late.example"), job(JobKind::Sync, "wss://soon.example")];
    late[0].slack = Duration::from_secs(500);
    late[1].slack = Duration::from_secs(5);
    db.job_enqueue(&late).await.unwrap();
    let next = db.job_claim("w1", &[("sync.clearnet".to_owned(), 1)]).await.unwrap();
    assert_eq!(next[0].target, "wss://soon.example");
}

#[tokio::test]
async fn a_worker_without_a_standing_lease_claims_nothing() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    db.job_enqueue(&[job(JobKind::Sync, "wss://a.example")]).await.unwrap();
    let want = [("sync.clearnet".to_owned(), 1)];
    assert!(db.job_claim("stranger", &want).await.unwrap().is_empty());
    register(&db, "w1", Duration::ZERO).await;
    assert!(db.job_claim("w1", &want).await.unwrap().is_empty());
    register(&db, "w1", LEASE).await;
    assert_eq!(db.job_claim("w1", &want).await.unwrap().len(), 1);
}

#[tokio::test]
async fn verdicts_move_jobs_where_they_belong() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    for (verdict, live, history) in [
        (Verdict::Complete, "", "complete"),
        (Verdict::Cancel, "", "cancelled"),
        (Verdict::Kill, "", "dead"),
        (Verdict::Retry, "Pending 2", ""),
        (Verdict::Snooze, "Pending 3", ""),
    ] {
        let target = format!("wss://{verdict}.example");
        let (claimed, _) = claim_one(&db, "w1", JobKind::Sync, &target).await;
        assert_eq!(
            db.job_finish("w1", &[finished(&claimed.job, 1, verdict)]).await.unwrap(),
            [claimed.job.as_str()]
        );
        let lives =
            pairs(&test, "SELECT target, status || ' ' || (max_attempts - attempts) FROM apalis.jobs").await;
        assert_eq!(lives.get(&target).map_or("", String::as_str), live, "{verdict}");
        let past = pairs(&test, "SELECT target, state FROM job_history").await;
        assert_eq!(past.get(&target).map_or("", String::as_str), history, "{verdict}");
    }
}

#[tokio::test]
async fn a_retry_beyond_the_last_attempt_is_dead_and_the_target_is_free_again() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    for attempt in 1..=3 {
        let (claimed, _) = claim_one(&db, "w1", JobKind::Sync, "wss://a.example").await;
        assert_eq!(claimed.attempt, attempt);
        db.job_finish("w1", &[finished(&claimed.job, attempt, Verdict::Retry)]).await.unwrap();
    }
    assert_eq!(value(&test, "SELECT state || ' ' || attempt FROM job_history").await, "dead 3");
    let (claimed, _) = claim_one(&db, "w1", JobKind::Sync, "wss://a.example").await;
    assert_eq!(claimed.attempt, 1);
}

#[tokio::test]
async fn a_lost_lease_cannot_finish_and_its_job_runs_elsewhere() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let (claimed, _) = claim_one(&db, "w1", JobKind::Sync, "wss://a.example").await;
    register(&db, "w1", Duration::ZERO).await;
    assert_eq!(db.job_rescue().await.unwrap().again, 1);
    let (again, _) = claim_one(&db, "w2", JobKind::Sync, "wss://a.example").await;
    assert_eq!((again.job.as_str(), again.attempt), (claimed.job.as_str(), 2));
    for attempt in [1, 2] {
        assert!(
            db.job_finish("w1", &[finished(&claimed.job, attempt, Verdict::Complete)])
                .await
                .unwrap()
                .is_empty()
        );
    }
    assert!(db.job_finish("w2", &[finished(&claimed.job, 1, Verdict::Complete)]).await.unwrap().is_empty());
    assert_eq!(db.job_finish("w2", &[finished(&claimed.job, 2, Verdict::Complete)]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_job_past_its_run_deadline_is_rescued_though_its_worker_lives() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let (claimed, _) = claim_one(&db, "w1", JobKind::Sync, "wss://a.example").await;
    assert_eq!(db.job_rescue().await.unwrap().again, 0);
    test.execute("UPDATE apalis.jobs SET run_deadline = now() - interval '1 second'").await;
    assert_eq!(db.job_rescue().await.unwrap().again, 1);
    // The heartbeat tells the worker what it has lost.
    let held = db.job_heartbeat(&super::support::registration("w1", LEASE)).await.unwrap();
    assert!(held.is_empty(), "{} is not w1's any more", claimed.job);
}

#[tokio::test]
async fn a_batch_with_stolen_leases_writes_exactly_the_others() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let urls: Vec<RelayUrl> = (0..8).map(|i| url(&format!("wss://r{i}.example"))).collect();
    let candidates: Vec<_> =
        urls.iter().map(|url| shared::db::NewCandidate { url: url.clone(), source: "seed" }).collect();
    db.candidate_insert(&candidates).await.unwrap();
    let mut results = Vec::new();
    for url in &urls {
        let (claimed, fence) = claim_one(&db, "w1", JobKind::Validate, url.as_str()).await;
        assert_eq!(claimed.kind, JobKind::Validate);
        results.push(ValidateResult {
            fence,
            url: url.clone(),
            alive: true,
            outcome: Outcome::Ok,
            reason: Reason::None,
            next: Duration::ZERO,
            slack: Duration::from_secs(60),
            give_up: false,
            proof: "eose",
            detail: String::new(),
            rtt_ms: [Some(1), Some(2)],
        });
    }
    for stolen in [2, 5] {
        let fence = &results[stolen].fence;
        results[stolen].fence = Fence::new(fence.job().to_owned(), "thief".to_owned(), fence.attempt());
    }
    assert_eq!(db.validate_finish(&results).await.unwrap(), [2, 5]);
    assert_eq!(
        value(&test, "SELECT string_agg(url, ' ' ORDER BY url) FROM candidate").await,
        "wss://r2.example wss://r5.example"
    );
    assert_eq!(value(&test, "SELECT count(*)::text FROM relay").await, "6");
    assert_eq!(value(&test, "SELECT string_agg(DISTINCT kind || ' ' || n, ' ' ORDER BY kind || ' ' || n) FROM (SELECT kind, count(*) n FROM schedule GROUP BY kind) x").await, "monitor 6 sync 6 validate 2");
}

#[tokio::test]
async fn what_is_due_becomes_jobs_once_and_comes_due_again_if_they_vanish() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let candidates: Vec<_> = (0..100)
        .map(|i| shared::db::NewCandidate { url: url(&format!("wss://r{i}.example")), source: "seed" })
        .collect();
    assert_eq!(db.candidate_insert(&candidates).await.unwrap(), 100);
    let nets = ["clearnet".to_owned()];
    let enqueue = || db.schedule_enqueue(JobKind::Validate, &nets, 60, LEASE, 3, Duration::ZERO);
    let (one, two) = tokio::join!(enqueue(), enqueue());
    assert_eq!(one.unwrap().enqueued + two.unwrap().enqueued, 100);
    assert_eq!(enqueue().await.unwrap().enqueued, 0, "targets with a job outstanding get no second one");
    test.execute("DELETE FROM apalis.jobs").await;
    assert_eq!(enqueue().await.unwrap().enqueued, 60);
}

#[tokio::test]
async fn one_scheduler_leads_and_another_follows_when_its_lease_ends() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    assert_eq!(db.leader_claim("scheduler", "a", LEASE).await.unwrap(), Some(1));
    assert_eq!(db.leader_claim("scheduler", "b", LEASE).await.unwrap(), None);
    assert_eq!(db.leader_claim("scheduler", "a", Duration::ZERO).await.unwrap(), Some(1));
    assert_eq!(db.leader_claim("scheduler", "b", LEASE).await.unwrap(), Some(2));
    assert!(db.leader_release("scheduler", "b").await.unwrap());
    assert_eq!(db.leader_claim("scheduler", "a", LEASE).await.unwrap(), Some(3));
}

#[tokio::test]
async fn a_stopping_worker_gives_its_jobs_back_unspent() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    claim_one(&db, "w1", JobKind::Sync, "wss://a.example").await;
    assert_eq!(db.worker_stop("w1").await.unwrap(), 1);
    assert_eq!(
        value(&test, "SELECT status || ' ' || (max_attempts - attempts) FROM apalis.jobs").await,
        "Pending 3"
    );
}

/// Waits until the statistics of closed connections say `wanted`, in the form `sql` gives it.
async fn scans(test: &tests::pg::TestDb, sql: &'static str, wanted: &str) {
    let mut seen = String::new();
    for _ in 0..100 {
        seen = value(test, sql).await;
        if seen == wanted {
            return;
        }
        // bound: 100 × 50 ms for the statistics of a closed connection to arrive
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("sequential and index scans are {seen}, not {wanted}");
}

#[tokio::test]
async fn what_is_due_is_found_by_index_and_not_by_looking_at_every_target() {
    let Some(test) = migrated().await else { return };
    test.execute(
        "INSERT INTO schedule SELECT 'monitor', 't' || n, 'clearnet', now() + n * interval '1 min' - interval '610 s', 60, 'test'
         FROM generate_series(1, 50000) n; ANALYZE schedule; SELECT pg_stat_reset()",
    )
    .await;
    let db = handle(&test, Role::Writer);
    for wanted in [10, 0] {
        let due = db
            .schedule_enqueue(JobKind::Monitor, &["clearnet".to_owned()], 5_000, LEASE, 3, LEASE)
            .await
            .unwrap()
            .due;
        assert_eq!(due, wanted);
    }
    db.close().await;
    scans(&test, "SELECT seq_scan || ' ' || (SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'schedule_due') FROM pg_stat_user_tables WHERE relname = 'schedule'", "0 2").await;
}

#[tokio::test]
async fn the_claim_is_an_index_scan_whatever_the_backlog() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    test.execute(
        "INSERT INTO apalis.jobs (id, job_type, job, status, attempts, max_attempts, run_at, idempotency_key, kind, network, target, due_at, deadline_at, slack_s, timeout_s, enqueued_at, gate)
         SELECT 'J' || n, 'sync.clearnet', '{}', 'Pending', 0, 3, now(), 't' || n, 'sync', 'clearnet', 't' || n, now(), now() + n * interval '1 ms', 1, 60, now(), 'ready'
         FROM generate_series(1, 20000) n",
    )
    .await;
    register(&db, "w1", LEASE).await;
    test.execute("SELECT pg_stat_reset()").await;
    for _ in 0..5 {
        assert_eq!(db.job_claim("w1", &[("sync.clearnet".to_owned(), 10)]).await.unwrap().len(), 10);
    }
    // A backend reports its counters when it goes. Each claim looks at ten entries a few times over: for what is
    // there, for how much to borrow, and to take it.
    db.close().await;
    scans(
        &test,
        "SELECT seq_scan || ' ' || (SELECT idx_scan > 0 AND idx_tup_read < 2000 FROM pg_stat_user_indexes WHERE indexrelname = 'bigbrotr_ready')
         FROM pg_stat_user_tables WHERE relname = 'jobs' AND schemaname = 'apalis'",
        "0 true",
    )
    .await;
}

/// The seam: jobs that are done at once.
struct Nothing;

impl Handler for Nothing {
    fn run(&self, _: Attempt) -> BoxFuture<'static, Result<Report, JobError>> {
        std::future::ready(Ok(json!({}))).boxed()
    }
}

#[tokio::test]
async fn who_hears_of_new_jobs_is_known_to_at_once_and_needs_no_poll() {
    const LISTENS: &str = "SELECT coalesce(string_agg(listens::text, ' '), 'none') FROM apalis.workers";
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    // No heartbeat and no poll comes by itself before this test is given up.
    let options = QueueOptions {
        worker: "hears".to_owned(),
        vantage: "test".to_owned(),
        queues: vec![("refresh.local".to_owned(), 1)],
        lease: Duration::from_secs(3_600),
        poll: Duration::from_secs(3_600),
        grace: Duration::from_secs(5),
        listen_url: Some(test.url(Role::Writer)),
        traffic: Traffic::default(),
    };
    let stop = CancellationToken::new();
    let work =
        queue::run(db.clone(), options, Arc::new(Nothing), Metrics::new(), Health::default(), stop.clone());
    let watch = async {
        until(&test, LISTENS, "true").await;
        db.job_enqueue(&[job(JobKind::Refresh, "heard")]).await.unwrap();
        until(&test, "SELECT count(*)::text FROM job_history", "1").await;
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'bigbrotr listen' AND datname = current_database()";
        test.execute(cut).await;
        until(&test, LISTENS, "false").await;
        until(&test, LISTENS, "true").await;
        stop.cancel();
    };
    tokio::join!(work, watch);
}
