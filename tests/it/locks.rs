//! Calls that meet: none waits for what it does not need, and no two wait for each other.

use std::time::Duration;

use shared::db::{Actor, Claimed, Db, Exchange, Finished, NewJob, Selection, TickKind, Wanted};
use shared::models::{JobKind, Verdict};
use sqlx::{AssertSqlSafe, Executor as _, PgConnection};
use tests::pg::{Role, TestDb};

use super::support::{claim_one, handle, job, migrated, pairs, register, registration, value};

const LEASE: Duration = Duration::from_secs(60);
/// Longest a call may take that has nothing to wait for.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Runs SQL on a connection whose transaction stays open.
pub(crate) async fn run(connection: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await.map(drop)
}

/// A connection of the superuser in an open transaction that has done this.
pub(crate) async fn open(test: &TestDb, sql: &str) -> PgConnection {
    let mut connection = test.connect(Role::Superuser).await;
    run(&mut connection, "BEGIN").await.unwrap();
    run(&mut connection, sql).await.unwrap();
    connection
}

/// Waits until so many calls wait for a lock.
pub(crate) async fn until_waiting(test: &TestDb, calls: usize) {
    let waiting = "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    for _ in 0..250 {
        if value(test, waiting).await == calls.to_string() {
            return;
        }
        // bound: 250 × 20 ms
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{calls} calls were to wait for a lock");
}

/// New connections hear of deadlocks soon.
pub(crate) async fn impatient(test: &TestDb) {
    test.execute("DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET deadlock_timeout = ''20ms''', current_database()); END $$").await;
}

fn ended(claimed: &[Claimed], verdict: Verdict) -> Vec<Finished> {
    claimed
        .iter()
        .map(|claimed| Finished {
            job: claimed.job.clone(),
            attempt: claimed.attempt,
            verdict,
            delay: Duration::ZERO,
            result: r#"{"error":"test"}"#.to_owned(),
        })
        .collect()
}

fn named(which: &str) -> Selection {
    Selection { which: Some(which.to_owned()), ..Selection::default() }
}

fn actor() -> Actor {
    Actor { name: "ann".to_owned(), why: String::new() }
}

/// Five paths of each host.
fn crowd(n: u32) -> Vec<NewJob> {
    (0..n).map(|i| job(JobKind::Sync, &format!("wss://r{}.example/{}", i % (n / 5), i))).collect()
}

const ROUNDS: usize = 25;

/// Claims and acknowledges, in an order of its own.
async fn exchanges(db: &Db, worker: &str, verdicts: [Verdict; 3]) {
    let mut running: Vec<Claimed> = Vec::new();
    for round in 0..ROUNDS {
        if round % 4 == 3 {
            // It sleeps through its lease: what it had is anybody's.
            register(db, worker, Duration::ZERO).await;
            running.clear();
        }
        register(db, worker, LEASE).await;
        running.reverse();
        let finished = ended(&running, verdicts[round % 3]);
        let wanted = Wanted { queue: "sync.clearnet".to_owned(), free: 60, running: 0, floors: [None; 4] };
        let exchange = Exchange { finished, wanted: vec![wanted], ..Exchange::default() };
        running = db.job_exchange(worker, &exchange).await.unwrap().claimed;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_schedulers_and_operators_over_the_same_targets_never_wait_for_each_other() {
    let Some(test) = migrated().await else { return };
    impatient(&test).await;
    test.execute("INSERT INTO schedule SELECT 'sync', 'wss://r' || n % 60 || '.example/' || n, 'clearnet', now(), 60, 'new' FROM generate_series(0, 299) n").await;
    let db = handle(&test, Role::Writer);
    let enqueue = async || {
        let mut jobs = crowd(300);
        for round in 0..ROUNDS {
            jobs.rotate_left(round * 7 % 300);
            for job in &mut jobs {
                job.class = u8::try_from(round % 4).unwrap();
            }
            db.job_enqueue(&jobs).await.unwrap();
        }
    };
    let cancel = async || {
        for round in 0..ROUNDS {
            db.job_cancel(&named(&format!("wss://r{}*", round % 6)), &actor()).await.unwrap();
            db.job_retry(&named("wss://r*"), 60.0, &actor()).await.unwrap();
        }
    };
    let tick = async || {
        let kind = TickKind { kind: JobKind::Sync, timeout: LEASE, max_attempts: 3, again: Duration::ZERO };
        for _ in 0..ROUNDS * 2 {
            db.scheduler_tick("s", LEASE, &[kind], &["clearnet".to_owned()], 300, true).await.unwrap();
        }
    };
    let stop = async || {
        for _ in 0..ROUNDS {
            db.worker_stop("w2").await.unwrap();
        }
    };
    tokio::join!(
        exchanges(&db, "w0", [Verdict::Complete, Verdict::Retry, Verdict::Snooze]),
        exchanges(&db, "w1", [Verdict::Retry, Verdict::Kill, Verdict::Complete]),
        exchanges(&db, "w2", [Verdict::Complete, Verdict::Cancel, Verdict::Retry]),
        enqueue(),
        cancel(),
        tick(),
        stop(),
    );
    assert_eq!(
        value(&test, "SELECT deadlocks::text FROM pg_stat_database WHERE datname = current_database()").await,
        "0"
    );
}

/// Lets `call` come to wait for what `holder` holds, then has the holder go on to `then`: neither may be a victim.
pub(crate) async fn meets<T>(
    test: &TestDb,
    mut holder: PgConnection,
    call: impl Future<Output = T>,
    then: &str,
) -> T {
    let go_on = async {
        until_waiting(test, 1).await;
        run(&mut holder, then).await.unwrap();
        run(&mut holder, "COMMIT").await.unwrap();
    };
    tokio::join!(call, go_on).0
}

#[tokio::test]
async fn a_scheduler_that_rescues_meets_whoever_enqueues_the_same_targets() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    claim_one(&db, "w1", JobKind::Sync, "wss://a.example").await;
    register(&db, "w1", Duration::ZERO).await;
    test.execute("INSERT INTO schedule VALUES ('sync', 'wss://b.example', 'clearnet', now(), 60, 'new')")
        .await;
    // The first step of every enqueuer; then its second, on the job that is being rescued.
    let enqueuer = open(&test, "SELECT pg_advisory_xact_lock(7304)").await;
    let kinds = [TickKind { kind: JobKind::Sync, timeout: LEASE, max_attempts: 3, again: LEASE }];
    let nets = ["clearnet".to_owned()];
    let tick = db.scheduler_tick("s", LEASE, &kinds, &nets, 300, true);
    let then = "SELECT job_enqueue(ARRAY['sync'], ARRAY['clearnet'], ARRAY['wss://a.example'], ARRAY[now()], ARRAY[60], ARRAY[60], ARRAY[3])";
    let tick = meets(&test, enqueuer, tick, then).await.unwrap();
    assert_eq!((tick.rescued.again, tick.enqueued), (1, vec![1]));
}

#[tokio::test]
async fn an_operator_who_retries_meets_whoever_enqueues_the_same_targets() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    for (target, verdict) in [("wss://a.example", Verdict::Kill), ("wss://b.example", Verdict::Retry)] {
        let (claimed, _) = claim_one(&db, "w1", JobKind::Sync, target).await;
        let mut done = ended(&[claimed], verdict);
        done[0].delay = LEASE;
        db.job_finish("w1", &done).await.unwrap();
    }
    let enqueuer = open(&test, "SELECT pg_advisory_xact_lock(7304)").await;
    let (selection, actor) = (named("wss://*"), actor());
    let then = "SELECT job_enqueue(ARRAY['sync'], ARRAY['clearnet'], ARRAY['wss://b.example'], ARRAY[now()], ARRAY[60], ARRAY[60], ARRAY[3])";
    let woken = meets(&test, enqueuer, db.job_retry(&selection, 60.0, &actor), then).await.unwrap();
    assert_eq!(woken, (1, 1));
}

#[tokio::test]
async fn a_worker_that_stops_meets_whoever_locks_jobs_in_their_order() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    register(&db, "w1", LEASE).await;
    for (target, id) in [("wss://a.example", "02"), ("wss://b.example", "01")] {
        // The younger job has the smaller id: where the rows lie is no order.
        db.job_enqueue(&[job(JobKind::Sync, target)]).await.unwrap();
        test.execute(&format!("UPDATE apalis.jobs SET id = '{id}' WHERE target = '{target}'")).await;
        assert_eq!(db.job_claim("w1", &[("sync.clearnet".to_owned(), 1)]).await.unwrap()[0].job, id);
    }
    let lock = |id: &str| format!("SELECT FROM apalis.jobs WHERE id = '{id}' FOR UPDATE");
    let operator = open(&test, &lock("01")).await;
    assert_eq!(meets(&test, operator, db.worker_stop("w1"), &lock("02")).await.unwrap(), 2);
}

#[tokio::test]
async fn a_worker_that_stops_meets_its_own_last_exchange() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let (claimed, _) = claim_one(&db, "w1", JobKind::Sync, "wss://a.example").await;
    // The first step of stopping, and of renewing a lease that ended; then the second.
    let stopping = open(&test, "SELECT FROM apalis.workers WHERE id = 'w1' FOR UPDATE").await;
    let wanted = Wanted { queue: "sync.clearnet".to_owned(), free: 1, running: 0, floors: [None; 4] };
    let finished = ended(&[claimed], Verdict::Complete);
    let exchange = Exchange { finished, wanted: vec![wanted], ..Exchange::default() };
    let lock = "SELECT FROM apalis.jobs WHERE lock_by = 'w1' FOR UPDATE";
    let exchanged = meets(&test, stopping, db.job_exchange("w1", &exchange), lock).await.unwrap();
    assert_eq!(exchanged.finished.len(), 1);
}

#[tokio::test]
async fn an_acknowledgement_meets_whoever_locks_jobs_in_their_order() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    register(&db, "w1", LEASE).await;
    let jobs = ["wss://a.example", "wss://b.example"].map(|target| job(JobKind::Sync, target));
    db.job_enqueue(&jobs).await.unwrap();
    test.execute("UPDATE apalis.jobs SET id = CASE target WHEN 'wss://a.example' THEN '01' ELSE '02' END")
        .await;
    let claimed = db.job_claim("w1", &[("sync.clearnet".to_owned(), 2)]).await.unwrap();
    // The first is asked for again, so that it does not simply go.
    assert_eq!(db.job_enqueue(&jobs[..1]).await.unwrap(), 0);
    let lock = |id: &str| format!("SELECT FROM apalis.jobs WHERE id = '{id}' FOR UPDATE");
    let operator = open(&test, &lock("01")).await;
    let done = ended(&claimed, Verdict::Complete);
    let held = meets(&test, operator, db.job_finish("w1", &done), &lock("02")).await.unwrap();
    assert_eq!(held.len(), 2);
}

#[tokio::test]
async fn claims_on_several_networks_wait_for_them_in_one_order() {
    let Some(test) = migrated().await else { return };
    impatient(&test).await;
    let nets = ["clearnet", "i2p", "loki", "tor"];
    let db = handle(&test, Role::Writer);
    let jobs: Vec<NewJob> = (0..400)
        .map(|i| NewJob {
            network: nets[i % 4].to_owned(),
            ..job(JobKind::Monitor, &format!("ws://{i}.{}", nets[i % 4]))
        })
        .collect();
    db.job_enqueue(&jobs).await.unwrap();
    let sets: [&[usize]; 6] = [&[3, 0, 1], &[0, 3], &[1, 3, 2], &[2, 0], &[3, 2, 1, 0], &[0, 1, 2, 3]];
    for i in 0..sets.len() {
        register(&db, &format!("w{i}"), LEASE).await;
    }
    let holder = open(&test, "SELECT FROM network_limit ORDER BY network FOR UPDATE").await;
    let claims = async {
        let asked = sets.iter().enumerate().map(async |(i, set)| {
            let free: Vec<_> = set.iter().map(|n| (format!("monitor.{}", nets[*n]), 2)).collect();
            db.job_claim(&format!("w{i}"), &free).await.map(|claimed| claimed.len())
        });
        futures_util::future::join_all(asked).await
    };
    let go_on = async {
        let mut holder = holder;
        until_waiting(&test, sets.len()).await;
        run(&mut holder, "COMMIT").await.unwrap();
    };
    let (claimed, ()) = tokio::join!(claims, go_on);
    let claimed: Vec<usize> = claimed.into_iter().map(Result::unwrap).collect();
    assert!(claimed.iter().all(|n| *n > 0), "{claimed:?}");
}

#[tokio::test]
async fn a_job_behind_others_that_somebody_holds_keeps_no_claim_waiting() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    register(&db, "w1", LEASE).await;
    db.job_enqueue(&crowd(10)).await.unwrap();
    let want = [("sync.clearnet".to_owned(), 8)];
    assert_eq!(db.job_claim("w1", &want).await.unwrap().len(), 2, "those in front");
    let held = open(
        &test,
        "SELECT FROM apalis.jobs WHERE gate = 'host' AND target = 'wss://r0.example/2' FOR UPDATE",
    )
    .await;
    test.execute("UPDATE queue_cursor SET ran_at = '-infinity'").await;
    let claimed = tokio::time::timeout(AT_ONCE, db.job_claim("w1", &want)).await.expect("it waits").unwrap();
    assert!(claimed.iter().any(|c| c.target.starts_with("wss://r1.example")), "{claimed:?}");
    drop(held);
}

#[tokio::test]
async fn a_heartbeat_does_not_wait_for_a_claim_that_is_still_open() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    register(&db, "w1", LEASE).await;
    db.job_enqueue(&crowd(10)).await.unwrap();
    let claim = open(&test, "SELECT * FROM job_claim('w1', ARRAY['sync.clearnet'], ARRAY[2])").await;
    let worker = registration("w1", LEASE);
    let held = tokio::time::timeout(AT_ONCE, db.job_heartbeat(&worker)).await.expect("it waits").unwrap();
    assert!(held.is_empty(), "what is not committed is not told: {held:?}");
    drop(claim);
}

#[tokio::test]
async fn a_claim_that_waits_for_its_worker_to_stop_claims_nothing() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    register(&db, "w1", LEASE).await;
    db.job_enqueue(&crowd(10)).await.unwrap();
    // The claim's transaction is the older one: by its own clock the lease still stands.
    let mut claim = open(&test, "SELECT now()").await;
    let stop = open(&test, "SELECT worker_stop('w1')").await;
    let claim = run(&mut claim, "SELECT * FROM job_claim('w1', ARRAY['sync.clearnet'], ARRAY[2]); COMMIT");
    meets(&test, stop, claim, "SELECT 1").await.unwrap();
    assert_eq!(value(&test, "SELECT count(*)::text FROM apalis.jobs WHERE status = 'Running'").await, "0");
}

#[tokio::test]
async fn a_lease_that_is_renewed_in_time_is_not_rescued_meanwhile() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let (claimed, _) = claim_one(&db, "w1", JobKind::Sync, "wss://a.example").await;
    test.execute("UPDATE apalis.workers SET lease_until = now() + interval '1 s'").await;
    // Times are given: it renews before its lease ends, and is looked at after that.
    let beat = "SELECT * FROM job_heartbeat('w1', 600, 'test', '1', ARRAY['sync.clearnet'], 8, now() - interval '1 s')";
    let mut beat = open(&test, beat).await;
    test.execute("DO $$ BEGIN ASSERT (SELECT r.rescued FROM job_rescue(1000, now() + interval '10 s') r) = 0, 'rescued'; END $$").await;
    run(&mut beat, "COMMIT").await.unwrap();
    test.execute("DO $$ BEGIN ASSERT (SELECT r.rescued FROM job_rescue(1000, now() + interval '10 s') r) = 0, 'rescued'; END $$").await;
    assert_eq!(db.job_finish("w1", &ended(&[claimed], Verdict::Complete)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_cancel_that_comes_while_an_attempt_is_put_back_ends_it() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    for verdict in [Verdict::Retry, Verdict::Snooze, Verdict::Kill] {
        let target = format!("wss://{verdict}.example");
        let (claimed, _) = claim_one(&db, "w1", JobKind::Sync, &target).await;
        let cancel = open(&test, &format!("SELECT job_cancel('{target}', NULL, NULL, 'ann', '')")).await;
        let done = ended(&[claimed], verdict);
        let held = meets(&test, cancel, db.job_finish("w1", &done), "SELECT 1").await.unwrap();
        assert_eq!(held.len(), 1, "{verdict}");
        let states = pairs(&test, "SELECT target, state FROM job_history").await;
        assert_eq!(states.get(&target).map(String::as_str), Some("cancelled"), "{verdict}");
    }
    assert_eq!(value(&test, "SELECT count(*)::text FROM apalis.jobs").await, "0");
}
