//! What the fleet may do at once: blocks of addresses, permits of networks, clocks and spellings that change.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use shared::db::{Actor, Claimed, Db, Exchange, Finished, FleetLimits, HostPermit, NewJob, Wanted};
use shared::models::{Fence, JobKind, Network, Verdict};
use tests::pg::{Role, TestDb};

use super::support::{handle, job, migrated, polite, register, value};

const LEASE: Duration = Duration::from_secs(60);

/// Jobs on one relay each, by different names.
fn names(range: std::ops::Range<u32>) -> Vec<NewJob> {
    range.map(|i| job(JobKind::Sync, &format!("wss://r{i}.example"))).collect()
}

/// Asks for a start on the address of each, all at once: relay n has address 192.0.2.n.
async fn ask(db: &Db, claimed: &[Claimed]) -> Vec<HostPermit> {
    let asked = claimed.iter().map(async |claimed| {
        let host = claimed.target.trim_start_matches("wss://");
        let address = format!("192.0.2.{}", host.trim_start_matches('r').trim_end_matches(".example"));
        let fence = Fence::new(claimed.job.clone(), "w1".to_owned(), claimed.attempt);
        db.host_permit(&fence, host, address.parse().unwrap()).await.unwrap()
    });
    futures_util::future::join_all(asked).await
}

fn ended<'a>(claimed: impl IntoIterator<Item = &'a Claimed>, verdict: Verdict) -> Vec<Finished> {
    claimed
        .into_iter()
        .map(|claimed| Finished {
            job: claimed.job.clone(),
            attempt: claimed.attempt,
            verdict,
            delay: Duration::ZERO,
            result: "{}".to_owned(),
        })
        .collect()
}

async fn sync(db: &Db, free: u32) -> Vec<Claimed> {
    db.job_claim("w1", &[("sync.clearnet".to_owned(), free)]).await.unwrap()
}

#[tokio::test]
async fn of_a_crowd_in_one_block_as_many_start_as_may_and_the_others_keep_nobody_out() {
    let Some(test) = polite().await else { return };
    let db = handle(&test, Role::Writer);
    register(&db, "w1", LEASE).await;
    db.job_enqueue(&names(1..41)).await.unwrap();
    let claimed = sync(&db, 64).await;
    assert_eq!(claimed.len(), 40, "nobody knows yet that they are neighbours");
    let permits = ask(&db, &claimed).await;
    assert!(permits.iter().all(|permit| permit.held));
    let soon = |permit: &HostPermit| permit.wait <= Db::HOST_WAIT;
    assert_eq!(permits.iter().filter(|permit| soon(permit)).count(), 16, "{permits:?}");
    let back: BTreeSet<Duration> = permits.iter().filter(|p| !soon(p)).map(|p| p.wait).collect();
    assert!(back.len() > 20, "they come back one by one: {back:?}");
    assert!(back.iter().all(|wait| (4..8).contains(&wait.as_secs())), "{back:?}");
    // The sixteen end; those that were sent away still run, and are in nobody's way.
    let (started, refused): (Vec<_>, Vec<_>) = claimed.iter().zip(&permits).partition(|(_, p)| soon(p));
    db.job_finish("w1", &ended(started.iter().map(|(c, _)| *c), Verdict::Complete)).await.unwrap();
    db.job_enqueue(&names(41..51)).await.unwrap();
    let next = sync(&db, 64).await;
    assert_eq!(next.len(), 10);
    let permits = ask(&db, &next).await;
    assert!(permits.iter().all(soon), "{permits:?}");
    // Back they come, and now everybody knows where they live: sixteen run, ten of them already.
    db.job_finish("w1", &ended(refused.iter().map(|(c, _)| *c), Verdict::Snooze)).await.unwrap();
    test.execute("UPDATE host_state SET next_at = '-infinity'").await;
    assert!(sync(&db, 64).await.len() <= 6);
}

#[tokio::test]
async fn a_claim_takes_no_more_of_a_known_block_than_may_run_there() {
    let Some(test) = polite().await else { return };
    let db = handle(&test, Role::Writer);
    register(&db, "w1", LEASE).await;
    test.execute("INSERT INTO host_address SELECT 'r' || n || '.example', '192.0.2.' || n, now() FROM generate_series(1, 40) n").await;
    db.job_enqueue(&names(1..46)).await.unwrap();
    let claimed = sync(&db, 64).await;
    let inside =
        |claimed: &Claimed| !["41", "42", "43", "44", "45"].iter().any(|n| claimed.target.contains(n));
    assert_eq!(claimed.iter().filter(|c| inside(c)).count(), 16, "{claimed:?}");
    assert_eq!(claimed.len(), 21, "other blocks are not held up");
    let crowd: Vec<Claimed> = claimed.into_iter().filter(inside).collect();
    assert!(
        ask(&db, &crowd).await.iter().all(|permit| permit.wait <= Db::HOST_WAIT),
        "all that were claimed"
    );
    db.job_finish("w1", &ended(&crowd[..5], Verdict::Complete)).await.unwrap();
    test.execute("UPDATE queue_cursor SET ran_at = '-infinity'").await;
    assert_eq!(sync(&db, 64).await.len(), 5, "as places become free");
}

fn tor(n: u32) -> Vec<NewJob> {
    (0..n)
        .map(|i| NewJob { network: "tor".to_owned(), ..job(JobKind::Monitor, &format!("ws://{i}.onion")) })
        .collect()
}

/// Acknowledges, and asks for whatever fits beside what it runs.
async fn wants(db: &Db, worker: &str, slots: u32, running: usize, finished: Vec<Finished>) -> Vec<Claimed> {
    let running = u32::try_from(running).unwrap();
    let wanted =
        Wanted { queue: "monitor.tor".to_owned(), free: slots - running, running, floors: [None; 4] };
    let exchange = Exchange { finished, wanted: vec![wanted], ..Exchange::default() };
    db.job_exchange(worker, &exchange).await.unwrap().claimed
}

async fn hungry(db: &Db, worker: &str, running: usize, finished: Vec<Finished>) -> Vec<Claimed> {
    wants(db, worker, 8, running, finished).await
}

fn permits(n: u32) -> FleetLimits {
    FleetLimits {
        networks: vec![(Network::Tor, n, None)],
        host_jobs: 10_000,
        host_spacing: Duration::ZERO,
        block_jobs: 10_000,
        block_spacing: Duration::ZERO,
        vantages_for_down: None,
    }
}

#[tokio::test]
async fn lowered_permits_are_reached_as_jobs_end() {
    // Two that would have more than there is, and five of whom each has all it wants.
    for (workers, slots) in [(2, 8), (5, 2)] {
        let Some(test) = migrated().await else { return };
        let db = handle(&test, Role::Writer);
        db.job_enqueue(&tor(300)).await.unwrap();
        let mut runs: Vec<Vec<Claimed>> = Vec::new();
        for i in 0..workers {
            register(&db, &format!("w{i}"), LEASE).await;
            runs.push(wants(&db, &format!("w{i}"), slots, 0, Vec::new()).await);
        }
        assert_eq!(runs.iter().map(Vec::len).sum::<usize>(), 10);
        db.fleet_limits_set(&permits(4)).await.unwrap();
        let mut seen = Vec::new();
        for turn in 0..60 {
            let (worker, running) = (format!("w{}", turn % workers), &mut runs[turn % workers]);
            let done: Vec<Claimed> = running.pop().into_iter().collect();
            let more = wants(&db, &worker, slots, running.len(), ended(&done, Verdict::Complete)).await;
            running.extend(more);
            seen.push(runs.iter().map(Vec::len).sum::<usize>());
        }
        assert!(seen.windows(2).all(|two| two[1] <= two[0].max(4)), "{seen:?}");
        assert!(seen[30..].iter().all(|n| (3..=4).contains(n)), "{seen:?}");
        db.fleet_limits_set(&permits(10)).await.unwrap();
        for turn in 0..workers * 3 {
            let running = &mut runs[turn % workers];
            let more = wants(&db, &format!("w{}", turn % workers), slots, running.len(), Vec::new()).await;
            running.extend(more);
        }
        assert_eq!(runs.iter().map(Vec::len).sum::<usize>(), 10, "raised again");
    }
}

#[tokio::test]
async fn six_hungry_workers_use_every_permit_round_after_round() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    db.job_enqueue(&tor(300)).await.unwrap();
    let mut runs: [Vec<Claimed>; 6] = Default::default();
    for i in 0..6 {
        register(&db, &format!("w{i}"), LEASE).await;
    }
    for round in 0..12 {
        for (i, running) in runs.iter_mut().enumerate() {
            let done = ended(running.iter(), Verdict::Complete);
            *running = hungry(&db, &format!("w{i}"), 0, done).await;
        }
        let used: Vec<usize> = runs.iter().map(Vec::len).collect();
        assert_eq!(used.iter().sum::<usize>(), 10, "round {round}: {used:?}");
        assert!(round == 0 || used.iter().all(|n| *n <= 2), "round {round}: {used:?}");
    }
}

#[tokio::test]
async fn a_wish_of_who_drains_or_fell_silent_halves_nobodys_share() {
    let actor = Actor { name: "ann".to_owned(), why: String::new() };
    for silent in [false, true] {
        let Some(test) = migrated().await else { return };
        let db = handle(&test, Role::Writer);
        db.job_enqueue(&tor(100)).await.unwrap();
        register(&db, "w1", LEASE).await;
        register(&db, "w2", LEASE).await;
        let running = hungry(&db, "w1", 0, Vec::new()).await;
        assert_eq!(running.len(), 8);
        assert_eq!(hungry(&db, "w2", 0, Vec::new()).await.len(), 2, "and it would have more");
        if silent {
            test.execute(
                "UPDATE network_lease SET asked_at = now() - interval '11 s' WHERE worker_id = 'w2'",
            )
            .await;
        } else {
            db.worker_drain("w2", true, &actor).await.unwrap();
        }
        let more = hungry(&db, "w1", 2, ended(&running[2..], Verdict::Complete)).await;
        assert_eq!(more.len(), 6, "silent: {silent}");
        assert_eq!(value(&test, "SELECT permits::text FROM network_lease WHERE worker_id = 'w1'").await, "8");
    }
}

/// One step of a worker of the property test.
#[derive(Debug, Clone)]
enum Step {
    /// Ends so many of its jobs and asks for more, if that.
    Exchange {
        done: usize,
        asks: bool,
    },
    Drain(bool),
    /// Gives its permits back that it does not use.
    Peaks,
    Limit(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0_usize..9, prop::bool::weighted(0.8)).prop_map(|(done, asks)| Step::Exchange { done, asks }),
        1 => any::<bool>().prop_map(Step::Drain),
        1 => Just(Step::Peaks),
        1 => (0_u32..14).prop_map(Step::Limit),
    ]
}

async fn walk(db: &Db, worker: String, steps: Vec<Step>) {
    let actor = Actor { name: "ann".to_owned(), why: String::new() };
    let mut running: Vec<Claimed> = Vec::new();
    for step in steps {
        match step {
            Step::Exchange { done, asks } => {
                let left = running.len().saturating_sub(done);
                let done = ended(&running.split_off(left), Verdict::Snooze);
                if asks {
                    running.extend(hungry(db, &worker, left, done).await);
                } else {
                    db.job_finish(&worker, &done).await.unwrap();
                }
            }
            Step::Drain(on) => assert!(db.worker_drain(&worker, on, &actor).await.unwrap()),
            Step::Peaks => {
                let peaks = vec![("tor".to_owned(), u32::try_from(running.len()).unwrap())];
                db.job_exchange(&worker, &Exchange { peaks, ..Exchange::default() }).await.unwrap();
            }
            Step::Limit(n) => drop(db.fleet_limits_set(&permits(n)).await.unwrap()),
        }
    }
    let left = db.job_finish(&worker, &ended(&running, Verdict::Complete)).await.unwrap().len();
    assert_eq!(left, running.len());
}

/// Refuses, as a trigger, what must never be: a loan beyond the limit, a job without a permit.
const AUDIT: &str = "
    CREATE FUNCTION audit_lease() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.permits > coalesce(OLD.permits, 0) THEN
            -- Loans that are not committed yet are waited for and seen.
            PERFORM pg_advisory_xact_lock(1);
            IF (SELECT sum(l.permits) FROM public.network_lease l) > (SELECT l.permits FROM public.network_limit l WHERE l.network = 'tor')
            THEN RAISE EXCEPTION 'more is lent than there is'; END IF;
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER audit AFTER INSERT OR UPDATE ON public.network_lease FOR EACH ROW EXECUTE FUNCTION audit_lease();
    CREATE FUNCTION audit_job() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF (SELECT count(*) FROM apalis.jobs j WHERE j.lock_by = NEW.lock_by AND j.status = 'Running')
           > (SELECT l.permits FROM public.network_lease l WHERE l.worker_id = NEW.lock_by)
        THEN RAISE EXCEPTION 'more runs than is lent'; END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER audit AFTER UPDATE ON apalis.jobs FOR EACH ROW WHEN (NEW.status = 'Running') EXECUTE FUNCTION audit_job();";

#[tokio::test(flavor = "multi_thread")]
async fn never_is_more_lent_than_the_limit_whatever_happens_at_once() {
    let Some(test) = migrated().await else { return };
    test.execute(AUDIT).await;
    let db = handle(&test, Role::Writer);
    db.job_enqueue(&tor(120)).await.unwrap();
    let mut runner = TestRunner::default();
    for _ in 0..5 {
        let steps =
            prop::collection::vec(prop::collection::vec(step(), 30), 5).new_tree(&mut runner).unwrap();
        let steps = steps.current();
        for i in 0..steps.len() {
            register(&db, &format!("w{i}"), LEASE).await;
        }
        futures_util::future::join_all(
            steps.into_iter().enumerate().map(|(i, steps)| walk(&db, format!("w{i}"), steps)),
        )
        .await;
        db.fleet_limits_set(&permits(10)).await.unwrap();
    }
}

/// What a worker of the version before calls: it does not say how many jobs it runs.
async fn claim_as_before(test: &TestDb, worker: &'static str) -> i64 {
    let mut connection = test.connect(Role::Writer).await;
    sqlx::query_scalar("SELECT count(*) FROM job_claim($1, ARRAY['monitor.tor'], ARRAY[8])")
        .bind(worker)
        .persistent(false)
        .fetch_one(&mut connection)
        .await
        .unwrap()
}

#[tokio::test]
async fn who_does_not_say_how_many_jobs_it_runs_keeps_to_the_limit_too() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    db.job_enqueue(&tor(100)).await.unwrap();
    register(&db, "w1", LEASE).await;
    register(&db, "w2", LEASE).await;
    let mut got = Vec::new();
    for worker in ["w1", "w1", "w2", "w1"] {
        got.push(claim_as_before(&test, worker).await);
    }
    assert_eq!(got, [8, 2, 0, 0]);
}

#[tokio::test]
async fn a_clock_that_was_set_back_freezes_no_host() {
    let Some(test) = polite().await else { return };
    let db = handle(&test, Role::Writer);
    register(&db, "w1", LEASE).await;
    db.job_enqueue(&[job(JobKind::Sync, "wss://r1.example/a"), job(JobKind::Sync, "wss://r1.example/b")])
        .await
        .unwrap();
    let far = "INSERT INTO host_state SELECT h, now() + interval '1 day' FROM unnest(ARRAY['r1.example', '192.0.2.1', 'net:192.0.2']) h
               ON CONFLICT (host) DO UPDATE SET next_at = excluded.next_at;
               UPDATE queue_cursor SET ran_at = now() + interval '1 day'";
    for _ in 0..2 {
        // The first stands in front; the second has to be let forward before it is claimed.
        test.execute(far).await;
        let claimed = sync(&db, 1).await;
        assert_eq!(claimed.len(), 1);
        let fence = Fence::new(claimed[0].job.clone(), "w1".to_owned(), 1);
        let permit = db.host_permit(&fence, "r1.example", "192.0.2.1".parse().unwrap()).await.unwrap();
        assert!(permit.wait <= Db::HOST_WAIT, "{permit:?}");
    }
    let ahead = "SELECT count(*)::text FROM host_state WHERE next_at > now() + interval '1 hour'";
    assert_eq!(value(&test, ahead).await, "0", "what was far ahead is put right");
}

#[tokio::test]
async fn one_block_of_addresses_is_one_however_it_is_spelt() {
    let Some(test) = polite().await else { return };
    test.execute("UPDATE fleet_limit SET block_jobs = 1").await;
    let db = handle(&test, Role::Writer);
    register(&db, "w1", LEASE).await;
    db.job_enqueue(&names(1..5)).await.unwrap();
    let claimed = sync(&db, 8).await;
    let mut soon = Vec::new();
    for (claimed, address) in
        claimed.iter().zip(["2606:4700::1", "2606:4700:0:1::1", "2606:4700:1::1", "2606:4700:0001:0:8::"])
    {
        let host = claimed.target.trim_start_matches("wss://");
        let fence = Fence::new(claimed.job.clone(), "w1".to_owned(), 1);
        let permit = db.host_permit(&fence, host, address.parse().unwrap()).await.unwrap();
        soon.push(permit.wait <= Db::HOST_WAIT);
    }
    assert_eq!(soon, [true, false, true, false]);
}
