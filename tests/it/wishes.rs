//! What operators want: remembered while something runs, meant as it was written, and counted as it can be done.

use std::time::Duration;

use shared::db::{Actor, Claimed, Db, Finished, Selection};
use shared::models::{JobKind, Network, Verdict};
use tests::pg::Role;

use super::support::{claim_one, handle, job, migrated, polite, register, registration, value};

const LEASE: Duration = Duration::from_secs(60);

fn actor() -> Actor {
    Actor { name: "ann".to_owned(), why: String::new() }
}

fn named(which: &str) -> Selection {
    Selection { which: Some(which.to_owned()), ..Selection::default() }
}

fn ended(claimed: &Claimed, verdict: Verdict, delay: Duration) -> Vec<Finished> {
    let result = r#"{"error":"test"}"#.to_owned();
    vec![Finished { job: claimed.job.clone(), attempt: claimed.attempt, verdict, delay, result }]
}

/// Wants a relay synced now.
async fn run_now(db: &Db, url: &str) -> (u64, u64) {
    db.job_run_now(&[url.to_owned()], Some(&["sync".to_owned()]), &actor()).await.unwrap()
}

const A: &str = "wss://a.example";
const RELAY: &str =
    "INSERT INTO relay (url, network, discovered_at) VALUES ('wss://a.example', 'clearnet', 1)";
const LIVES: &str = "SELECT string_agg(status || ' ' || class || ' ' || attempts || ' of ' || max_attempts, ',') FROM apalis.jobs";
const ENDED: &str = "SELECT string_agg(state, ' ') FROM job_history";

#[tokio::test]
async fn what_is_wanted_after_a_cancel_follows_the_cancelled_job() {
    for verdict in [Verdict::Cancel, Verdict::Retry] {
        let Some(test) = migrated().await else { return };
        test.execute(RELAY).await;
        let db = handle(&test, Role::Writer);
        let (claimed, _) = claim_one(&db, "w1", JobKind::Sync, A).await;
        assert_eq!(db.job_cancel(&named(A), &actor()).await.unwrap(), (0, 1));
        assert_eq!(run_now(&db, A).await, (1, 0), "remembered");
        db.job_finish("w1", &ended(&claimed, verdict, LEASE)).await.unwrap();
        assert_eq!(value(&test, ENDED).await, "cancelled");
        assert_eq!(value(&test, LIVES).await, "Pending 0 1 of 4");
        let (again, _) = claim_one(&db, "w1", JobKind::Sync, A).await;
        assert!(again.job == claimed.job && again.attempt == 2, "{again:?}");
        assert!(
            db.job_finish("w1", &ended(&claimed, verdict, LEASE)).await.unwrap().is_empty(),
            "an attempt that ended"
        );
        db.job_finish("w1", &ended(&again, Verdict::Complete, LEASE)).await.unwrap();
        assert_eq!(value(&test, LIVES).await, "", "and nothing follows it");
    }
}

#[tokio::test]
async fn what_is_wanted_during_the_last_attempt_outlives_its_worker() {
    let Some(test) = migrated().await else { return };
    test.execute(RELAY).await;
    let db = handle(&test, Role::Writer);
    let (claimed, _) = claim_one(&db, "w1", JobKind::Sync, A).await;
    test.execute("UPDATE apalis.jobs SET max_attempts = 1").await;
    assert_eq!(run_now(&db, A).await, (1, 0));
    register(&db, "w1", Duration::ZERO).await;
    let rescued = db.job_rescue().await.unwrap();
    assert_eq!((rescued.again, rescued.dead), (0, 1));
    assert_eq!(value(&test, ENDED).await, "dead");
    assert_eq!(value(&test, LIVES).await, "Pending 0 1 of 4");
    // The same when the worker itself finds that it slept through its lease.
    let (again, _) = claim_one(&db, "w2", JobKind::Sync, A).await;
    assert!(again.job == claimed.job && again.attempt == 2, "{again:?}");
    test.execute("UPDATE apalis.jobs SET max_attempts = 2").await;
    assert_eq!(run_now(&db, A).await, (1, 0));
    register(&db, "w2", Duration::ZERO).await;
    register(&db, "w2", LEASE).await;
    assert_eq!(value(&test, LIVES).await, "Pending 0 2 of 5");
}

#[tokio::test]
async fn what_is_wanted_now_does_not_wait_for_its_second_try() {
    let Some(test) = migrated().await else { return };
    test.execute(RELAY).await;
    let db = handle(&test, Role::Writer);
    register(&db, "w1", LEASE).await;
    let want = [("sync.clearnet".to_owned(), 1)];
    assert_eq!(run_now(&db, A).await, (1, 1));
    let claimed = db.job_claim("w1", &want).await.unwrap().remove(0);
    db.job_finish("w1", &ended(&claimed, Verdict::Retry, Duration::from_secs(3_600))).await.unwrap();
    assert!(db.job_claim("w1", &want).await.unwrap().is_empty());
    assert_eq!(run_now(&db, A).await, (1, 0));
    let again = db.job_claim("w1", &want).await.unwrap();
    assert_eq!(again.iter().map(|c| (c.job.as_str(), c.attempt)).collect::<Vec<_>>(), [(&*claimed.job, 2)]);
}

#[tokio::test]
async fn a_paused_queue_that_is_drained_stays_paused() {
    for modes in [["pause", "drain"], ["drain", "pause"]] {
        let Some(test) = migrated().await else { return };
        let db = handle(&test, Role::Writer);
        register(&db, "w1", LEASE).await;
        db.job_enqueue(&[job(JobKind::Sync, A)]).await.unwrap();
        test.execute("INSERT INTO schedule VALUES ('sync', 'wss://s.example', 'clearnet', now(), 60, 'new')")
            .await;
        for mode in modes {
            db.queue_hold(&["sync.clearnet".to_owned()], mode, &actor()).await.unwrap();
        }
        let held = handle(&test, Role::Reader).queue_holds().await.unwrap();
        assert_eq!(held, [("sync.clearnet".to_owned(), "both".to_owned())]);
        let want = [("sync.clearnet".to_owned(), 4)];
        assert!(db.job_claim("w1", &want).await.unwrap().is_empty());
        let nets = ["clearnet".to_owned()];
        let enqueue = async || db.schedule_enqueue(JobKind::Sync, &nets, 60, LEASE, 3, LEASE).await.unwrap();
        assert_eq!(enqueue().await.enqueued, 0);
        let why = async |which: &str| {
            let lines = handle(&test, Role::Reader).job_why(which).await.unwrap();
            lines.into_iter().map(|line| line.reason).collect::<Vec<_>>()
        };
        assert_eq!(
            (why(A).await, why("wss://s.example").await),
            (vec!["paused".into()], vec!["draining".into()])
        );
        assert_eq!(handle(&test, Role::Reader).autoscale().await.unwrap().desired, 0);
        db.queue_hold(&["sync.clearnet".to_owned()], "resume", &actor()).await.unwrap();
        assert_eq!((enqueue().await.enqueued, db.job_claim("w1", &want).await.unwrap().len()), (1, 2));
    }
}

#[tokio::test]
async fn in_a_name_only_the_star_is_special() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    for queue in ["sync.clear%", r"sync\.clearnet", "sync_clearnet", "%"] {
        assert!(db.queue_hold(&[queue.to_owned()], "pause", &actor()).await.is_err(), "{queue}");
    }
    let odd = ["wss://a.example/%", r"wss://a.example/\", "wss://a.example/_", "wss://a.example/x"];
    db.job_enqueue(&odd.map(|target| job(JobKind::Sync, target))).await.unwrap();
    for name in ["wss://%*", r"wss:/\/*", "wss:__a*"] {
        assert_eq!(db.job_preview(&named(name)).await.unwrap().0, 0, "{name}");
        assert_eq!(db.job_cancel(&named(name), &actor()).await.unwrap(), (0, 0), "{name}");
    }
    for target in &odd[..3] {
        assert_eq!(db.job_cancel(&named(&format!("{target}*")), &actor()).await.unwrap(), (1, 0), "{target}");
    }
    assert_eq!(value(&test, "SELECT string_agg(target, ' ') FROM apalis.jobs").await, odd[3]);
    test.execute("UPDATE job_history SET state = 'dead'").await;
    for name in ["wss://%*", r"wss:/\/*", "wss:__a*"] {
        assert_eq!(db.job_retry(&named(name), 60.0, &actor()).await.unwrap(), (0, 0), "{name}");
    }
    for target in &odd[..3] {
        let retried = db.job_retry(&named(&format!("{target}*")), 60.0, &actor()).await.unwrap();
        assert_eq!(retried, (0, 1), "{target}");
    }
}

#[tokio::test]
async fn a_candidate_that_was_given_up_is_revived_by_who_wants_it_looked_at() {
    let Some(test) = migrated().await else { return };
    test.execute("INSERT INTO candidate (url, network, source, first_seen_at, last_seen_at, failures, last_reason, tombstoned_at)
                  VALUES ('wss://a.example', 'clearnet', 'seed', 1, 1, 14, 'connect_timeout', 5)").await;
    let db = handle(&test, Role::Writer);
    let tombs = "SELECT count(*)::text FROM candidate WHERE tombstoned_at IS NOT NULL";
    assert_eq!(run_now(&db, A).await, (0, 0), "it has nothing to sync");
    assert_eq!(value(&test, tombs).await, "1");
    let validate = ["validate".to_owned()];
    assert_eq!(db.job_run_now(&[A.to_owned()], Some(&validate), &actor()).await.unwrap(), (1, 1));
    assert_eq!(value(&test, tombs).await, "0");
    let again = "SELECT (due_at > now())::text FROM schedule WHERE kind = 'validate'";
    assert_eq!(value(&test, again).await, "true", "and again, should this job end without a verdict");
}

#[tokio::test]
async fn a_breaker_that_no_worker_of_its_place_could_close_binds_nothing_and_is_forgotten() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    register(&db, "w1", LEASE).await;
    db.job_enqueue(&[job(JobKind::Sync, A)]).await.unwrap();
    test.execute("INSERT INTO breaker VALUES ('clearnet', 'gone', 3, now() - interval '1 h', now() + interval '1 min', 'x', 'w9'),
                                             ('tor', 'test', 3, now() - interval '1 h', now() - interval '11 min', 'x', 'w1')").await;
    let why = handle(&test, Role::Reader).job_why(A).await.unwrap();
    assert_eq!(why.iter().map(|line| line.reason.as_str()).collect::<Vec<_>>(), ["ready"]);
    test.execute("INSERT INTO breaker VALUES ('clearnet', 'test', 3, now() - interval '1 h', now() - interval '11 min', 'x', 'w1')").await;
    let left = async || {
        db.worker_retire(LEASE).await.unwrap();
        value(&test, "SELECT string_agg(network || ' ' || vantage, ', ' ORDER BY vantage) FROM breaker").await
    };
    // The first may still matter; the worker of the other place serves clearnet, and Tor not any more.
    assert_eq!(left().await, "clearnet gone, clearnet test");
    test.execute("UPDATE breaker SET until_at = now() - interval '11 min'").await;
    assert_eq!(left().await, "clearnet test");
    db.worker_stop("w1").await.unwrap();
    assert_eq!(left().await, "");
}

#[tokio::test]
async fn only_a_probe_that_began_after_a_breaker_opened_opens_it_further() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    register(&db, "w1", LEASE).await;
    db.job_enqueue(&["wss://a.example", "wss://b.example"].map(|target| job(JobKind::Sync, target)))
        .await
        .unwrap();
    let want = [("sync.clearnet".to_owned(), 1)];
    let trip =
        async |age: Duration| db.breaker_trip(Network::Clearnet, "test", "w1", "dead", age).await.unwrap();
    let level = async || {
        value(&test, "SELECT string_agg(level || ' ' || (until_at > now()), ',') FROM breaker").await
    };
    let straggler = db.job_claim("w1", &want).await.unwrap().remove(0);
    assert!(trip(Duration::ZERO).await > Duration::from_secs(10));
    for _ in 0..3 {
        // Its time is over: what fails now and began before that says nothing new.
        test.execute("UPDATE breaker SET until_at = now() - interval '5 s'").await;
        assert_eq!(trip(Duration::from_secs(30)).await, Duration::ZERO);
        assert_eq!(level().await, "1 false", "half open it stays");
    }
    db.job_finish("w1", &ended(&straggler, Verdict::Complete, LEASE)).await.unwrap();
    let probe = db.job_claim("w1", &want).await.unwrap();
    assert!(probe[0].probe);
    // A straggler of the worker that runs the probe is a straggler all the same.
    assert_eq!(trip(Duration::from_secs(30)).await, Duration::ZERO);
    assert_eq!(level().await, "1 false");
    let longer = trip(Duration::from_secs(1)).await;
    assert!(longer > Duration::from_secs(20), "{longer:?}");
    assert_eq!(level().await, "2 true");
    trip(Duration::from_secs(1)).await;
    assert_eq!(level().await, "2 true", "said twice");
    // Closed it stays closed, until something fails that began after that.
    assert!(db.breaker_close(Network::Clearnet, "test").await.unwrap());
    assert_eq!(trip(Duration::from_secs(30)).await, Duration::ZERO);
    assert_eq!(level().await, "");
    assert!(trip(Duration::ZERO).await > Duration::from_secs(10));
    assert_eq!(level().await, "1 true");
}

#[tokio::test]
async fn as_many_workers_are_wanted_as_permits_traffic_places_and_machines_allow() {
    let Some(test) = polite().await else { return };
    let db = handle(&test, Role::Writer);
    let wanted = async || handle(&test, Role::Reader).autoscale().await.unwrap();
    let jobs = "INSERT INTO apalis.jobs (id, job_type, job, status, attempts, max_attempts, run_at, idempotency_key, kind, network, target, due_at, deadline_at, slack_s, timeout_s, enqueued_at, gate, host)
         SELECT k || n, k || '.clearnet', '{}', 'Pending', 0, 3, now(), 't' || n, k, 'clearnet', 't' || n, now(), now(), 1, 60, now(), 'ready', 't' || n
         FROM generate_series(1, 4000) n, unnest(ARRAY['sync', 'monitor', 'validate']) k";
    test.execute(jobs).await;
    // 256 permits are what not quite two workers of 16 + 64 + 64 slots can use, whatever of it they do.
    assert_eq!((wanted().await.desired, wanted().await.binding.as_str()), (2, "the permits of a network"));
    test.execute("DELETE FROM apalis.jobs WHERE kind <> 'sync'").await;
    assert_eq!(wanted().await.desired, 16);
    // Another place cannot reach the network: this one can.
    let mut worker = registration("w1", LEASE);
    worker.queues[0].1 = 16;
    db.job_heartbeat(&worker).await.unwrap();
    test.execute(
        "INSERT INTO breaker VALUES ('clearnet', 'elsewhere', 1, now(), now() + interval '1 min', 'x', 'w9')",
    )
    .await;
    assert_eq!(wanted().await.desired, 16);
    test.execute("UPDATE breaker SET vantage = 'test'").await;
    assert_eq!(wanted().await.desired, 0);
    test.execute("DELETE FROM breaker; UPDATE network_limit SET bytes_per_day = 5; INSERT INTO network_usage VALUES ('clearnet', (now() AT TIME ZONE 'UTC')::date, 7)").await;
    let stuck = "queues are paused, out of reach or out of traffic";
    assert_eq!((wanted().await.desired, wanted().await.binding.as_str()), (0, stuck));
    test.execute("UPDATE network_limit SET bytes_per_day = NULL").await;
    // What is paused asks for nobody, but what runs needs who runs it.
    test.execute("INSERT INTO queue_pause VALUES ('sync.clearnet', 'pause', now(), 'ann', '')").await;
    assert_eq!((wanted().await.desired, wanted().await.binding.as_str()), (0, stuck));
    assert!(wanted().await.backlog_s.abs() < f64::EPSILON);
    test.execute(
        "UPDATE apalis.jobs SET status = 'Running', gate = NULL, lock_by = 'w1' WHERE target = 't1'",
    )
    .await;
    assert_eq!(wanted().await.desired, 1);
    // A crowd on one machine is no work for a crowd of workers.
    test.execute("DELETE FROM queue_pause; DELETE FROM apalis.jobs").await;
    test.execute(
        &jobs
            .replace("4000", "20000")
            .replace("'ready', 't' || n", "CASE n WHEN 1 THEN 'ready' ELSE 'host' END, 'one'")
            .replace(", 'monitor', 'validate'", ""),
    )
    .await;
    let line = wanted().await;
    assert_eq!((line.desired, line.binding.as_str()), (1, "workers"));
    assert!((60.0..=180.0).contains(&line.backlog_s), "{line:?}");
}

#[tokio::test]
async fn the_number_of_workers_wanted_costs_little() {
    let Some(test) = migrated().await else { return };
    let mut reader = test.connect(Role::Reader).await;
    let plan: String = sqlx::query_scalar("EXPLAIN SELECT desired FROM autoscale_desired")
        .persistent(false)
        .fetch_all(&mut reader)
        .await
        .unwrap()
        .remove(0);
    let cost = plan.split("..").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    // From 100,000 on the server compiles a query, which takes it seconds.
    assert!(cost.parse::<f64>().unwrap() < 20_000.0, "{plan}");
}
