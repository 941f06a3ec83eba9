//! Classes, networks, machines: who may run, and when.

use std::time::Duration;

use shared::db::{Exchange, FleetLimits, NewJob, Wanted};
use shared::models::{Fence, JobKind, Network};
use tests::pg::{Role, TestDb};

use super::support::{handle, job, migrated, polite, register, registration, value};

const LEASE: Duration = Duration::from_secs(60);

fn wanted(queue: &str, free: u32, running: u32) -> Wanted {
    Wanted { queue: queue.to_owned(), free, running, floors: [None; 4] }
}

fn classed(class: u8, range: std::ops::Range<u32>) -> Vec<NewJob> {
    range.map(|i| NewJob { class, ..job(JobKind::Sync, &format!("wss://c{class}-{i}.example")) }).collect()
}

fn fence(claimed: &shared::db::Claimed, worker: &str) -> Fence {
    Fence::new(claimed.job.clone(), worker.to_owned(), claimed.attempt)
}

#[tokio::test]
async fn every_class_has_its_share_and_none_starves() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    register(&db, "w1", LEASE).await;
    for class in 0..4 {
        db.job_enqueue(&classed(class, 0..40)).await.unwrap();
    }
    // One slot at a time over forty claims, and forty slots at once: the same shares of ten.
    let mut counts = [0; 4];
    for turn in 0..40 {
        let exchange = Exchange { wanted: vec![wanted("sync.clearnet", 1, 0)], turn, ..Exchange::default() };
        for claimed in db.job_exchange("w1", &exchange).await.unwrap().claimed {
            counts[usize::from(claimed.class)] += 1;
        }
    }
    assert_eq!(counts, [20, 8, 8, 4]);
    let exchange = Exchange { wanted: vec![wanted("sync.clearnet", 40, 0)], ..Exchange::default() };
    let mut counts = [0; 4];
    for claimed in db.job_exchange("w1", &exchange).await.unwrap().claimed {
        counts[usize::from(claimed.class)] += 1;
    }
    assert_eq!(counts, [20, 8, 8, 4]);
    // What a class does not use goes to the next: nothing is left idle.
    let rest = db.job_claim("w1", &[("sync.clearnet".to_owned(), 100)]).await.unwrap();
    assert_eq!(rest.len(), 80);
}

#[tokio::test]
async fn a_network_never_runs_more_than_its_permits_however_many_workers_ask() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let jobs: Vec<NewJob> = (0..100)
        .map(|i| NewJob { network: "tor".to_owned(), ..job(JobKind::Monitor, &format!("ws://{i}.onion")) })
        .collect();
    db.job_enqueue(&jobs).await.unwrap();
    let workers: Vec<String> = (0..6).map(|i| format!("w{i}")).collect();
    for worker in &workers {
        register(&db, worker, LEASE).await;
    }
    let want = [("monitor.tor".to_owned(), 8)];
    let asked = workers.iter().map(|worker| db.job_claim(worker, &want));
    let claimed: usize =
        futures_util::future::join_all(asked).await.into_iter().map(|c| c.unwrap().len()).sum();
    assert_eq!(claimed, 10);
    let permits = "SELECT sum(permits)::text FROM network_lease";
    assert_eq!(value(&test, permits).await, "10");
    // A worker whose lease ended holds no permits any more; a lowered limit lends nothing new.
    db.job_heartbeat(&registration("w0", Duration::ZERO)).await.unwrap();
    assert_eq!(value(&test, "SELECT count(*)::text FROM network_limit WHERE permits = 10").await, "1");
    test.execute("UPDATE network_limit SET permits = 1 WHERE network = 'tor'").await;
    for worker in &workers[1..] {
        assert!(
            db.job_exchange(
                worker,
                &Exchange { wanted: vec![wanted("monitor.tor", 8, 2)], ..Exchange::default() }
            )
            .await
            .unwrap()
            .claimed
            .is_empty()
        );
    }
}

#[tokio::test]
async fn who_has_more_than_its_share_gives_back_when_another_is_short() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let jobs: Vec<NewJob> = (0..100)
        .map(|i| NewJob { network: "tor".to_owned(), ..job(JobKind::Monitor, &format!("ws://{i}.onion")) })
        .collect();
    db.job_enqueue(&jobs).await.unwrap();
    register(&db, "w1", LEASE).await;
    register(&db, "w2", LEASE).await;
    let want = async |worker: &str, running: u32| {
        let exchange = Exchange { wanted: vec![wanted("monitor.tor", 8, running)], ..Exchange::default() };
        db.job_exchange(worker, &exchange).await.unwrap().claimed
    };
    let first = want("w1", 0).await;
    assert_eq!(first.len(), 8);
    assert_eq!(want("w2", 0).await.len(), 2);
    assert!(want("w2", 2).await.is_empty(), "and says that it is short");
    // The first has finished four: it may keep five, so one more, and the rest is the other's.
    let done: Vec<_> = first[..4]
        .iter()
        .map(|c| shared::db::Finished {
            job: c.job.clone(),
            attempt: 1,
            verdict: shared::models::Verdict::Complete,
            delay: Duration::ZERO,
            result: "{}".to_owned(),
        })
        .collect();
    db.job_finish("w1", &done).await.unwrap();
    assert_eq!(want("w1", 4).await.len(), 1);
    assert_eq!(want("w2", 2).await.len(), 3);
    assert_eq!(
        value(&test, "SELECT string_agg(permits::text, ' ' ORDER BY worker_id) FROM network_lease").await,
        "5 5"
    );
}

#[tokio::test]
async fn a_crowd_on_one_machine_goes_two_at_a_time_and_blocks_nobody() {
    let Some(test) = polite().await else { return };
    test.execute("UPDATE fleet_limit SET host_spacing_ms = 0").await;
    let db = handle(&test, Role::Writer);
    register(&db, "w1", LEASE).await;
    let mut jobs: Vec<NewJob> =
        (0..2_000).map(|i| job(JobKind::Sync, &format!("wss://crowd.example/{i}"))).collect();
    let late = Duration::from_secs(3_600);
    jobs.extend(
        (0..20).map(|i| NewJob { slack: late, ..job(JobKind::Sync, &format!("wss://r{i}.example")) }),
    );
    db.job_enqueue(&jobs).await.unwrap();
    let mut crowd = 0;
    let mut others = 0;
    for _ in 0..10 {
        for claimed in db.job_claim("w1", &[("sync.clearnet".to_owned(), 64)]).await.unwrap() {
            if claimed.target.contains("crowd") { crowd += 1 } else { others += 1 }
        }
        // bound: 10 × 250 ms, more than between two looks for places that became free
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert_eq!((crowd, others), (2, 20));
}

#[tokio::test]
async fn starts_on_one_machine_keep_their_distance_by_name_and_by_address() {
    let Some(test) = polite().await else { return };
    let db = handle(&test, Role::Writer);
    register(&db, "w1", LEASE).await;
    let claim = async || db.job_claim("w1", &[("sync.clearnet".to_owned(), 8)]).await.unwrap();
    db.job_enqueue(&[job(JobKind::Sync, "wss://a.example/1"), job(JobKind::Sync, "wss://b.example")])
        .await
        .unwrap();
    let first = claim().await;
    assert_eq!(first.len(), 2, "two names are two machines as far as anybody knows");
    let address = "192.0.2.7".parse().unwrap();
    let ask = async |index: usize, host: &str| {
        db.host_permit(&fence(&first[index], "w1"), host, address).await.unwrap()
    };
    let (one, two) = (ask(0, "a.example").await, ask(1, "b.example").await);
    assert!(one.held && one.wait < Duration::from_millis(100), "{one:?}");
    assert!(
        two.held && two.wait > Duration::from_millis(500) && two.wait <= Duration::from_secs(1),
        "{two:?}"
    );
    // From now on the names are known to be one machine, which is full.
    db.job_enqueue(&[job(JobKind::Sync, "wss://a.example/2")]).await.unwrap();
    assert_eq!(
        value(&test, "SELECT host FROM apalis.jobs WHERE target = 'wss://a.example/2'").await,
        "192.0.2.7"
    );
    test.execute("UPDATE host_state SET next_at = '-infinity'").await;
    assert!(claim().await.is_empty());
    let stranger = Fence::new(first[0].job.clone(), "w2".to_owned(), 1);
    assert!(!db.host_permit(&stranger, "a.example", address).await.unwrap().held);
}

#[tokio::test]
async fn an_address_block_has_a_limit_of_its_own() {
    let Some(test) = polite().await else { return };
    test.execute("UPDATE fleet_limit SET block_jobs = 3").await;
    let db = handle(&test, Role::Writer);
    register(&db, "w1", LEASE).await;
    let jobs: Vec<_> = (0..5).map(|i| job(JobKind::Sync, &format!("wss://r{i}.example"))).collect();
    db.job_enqueue(&jobs).await.unwrap();
    let claimed = db.job_claim("w1", &[("sync.clearnet".to_owned(), 8)]).await.unwrap();
    let mut waits = Vec::new();
    for (i, claimed) in claimed.iter().enumerate() {
        let address = format!("192.0.2.{i}").parse().unwrap();
        waits.push(
            db.host_permit(&fence(claimed, "w1"), &format!("r{i}.example"), address).await.unwrap().wait,
        );
    }
    assert!(waits[..3].iter().all(|wait| *wait < Duration::from_secs(1)), "{waits:?}");
    assert!(waits[3..].iter().all(|wait| *wait > shared::db::Db::HOST_WAIT), "{waits:?}");
}

/// A database with one job on tor and two workers of one vantage.
async fn on_tor() -> Option<TestDb> {
    let test = migrated().await?;
    let db = handle(&test, Role::Writer);
    let jobs: Vec<NewJob> = (0..5)
        .map(|i| NewJob { network: "tor".to_owned(), ..job(JobKind::Monitor, &format!("ws://{i}.onion")) })
        .collect();
    db.job_enqueue(&jobs).await.unwrap();
    register(&db, "w1", LEASE).await;
    register(&db, "w2", LEASE).await;
    Some(test)
}

#[tokio::test]
async fn an_open_breaker_stops_a_network_and_one_job_finds_out_when_it_may_close() {
    let Some(test) = on_tor().await else { return };
    let db = handle(&test, Role::Writer);
    let want = [("monitor.tor".to_owned(), 4)];
    let open = db.breaker_trip(Network::Tor, "test", "w1", "proxy dead", Duration::ZERO).await.unwrap();
    assert!(open > Duration::from_secs(10), "{open:?}");
    assert!(db.job_claim("w1", &want).await.unwrap().is_empty());
    test.execute("UPDATE breaker SET until_at = now() - interval '1 ms'").await;
    let probe = db.job_claim("w1", &want).await.unwrap();
    assert_eq!(probe.iter().map(|c| c.probe).collect::<Vec<_>>(), [true]);
    assert!(db.job_claim("w2", &want).await.unwrap().is_empty(), "one probe of the whole vantage");
    let longer = db.breaker_trip(Network::Tor, "test", "w1", "still dead", Duration::ZERO).await.unwrap();
    assert!(longer > open, "{longer:?}");
    assert!(db.breaker_close(Network::Tor, "test").await.unwrap());
    assert_eq!(db.job_claim("w2", &want).await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_short_job_finds_out_before_a_long_one_and_a_long_one_where_no_other_is_ready() {
    let Some(test) = on_tor().await else { return };
    let db = handle(&test, Role::Writer);
    let sync = NewJob { network: "tor".to_owned(), class: 0, ..job(JobKind::Sync, "ws://0.onion") };
    db.job_enqueue(&[sync]).await.unwrap();
    let want = ["sync.tor", "monitor.tor"].map(|queue| (queue.to_owned(), 4));
    for kind in [JobKind::Monitor, JobKind::Sync] {
        db.breaker_trip(Network::Tor, "test", "w1", "proxy dead", Duration::ZERO).await.unwrap();
        test.execute("UPDATE breaker SET until_at = now() - interval '1 ms'").await;
        let probe = db.job_claim("w1", &want).await.unwrap();
        assert_eq!(probe.iter().map(|c| (c.kind, c.probe)).collect::<Vec<_>>(), [(kind, true)]);
        test.execute("DELETE FROM apalis.jobs WHERE kind = 'monitor'").await;
    }
}

#[tokio::test]
async fn a_day_used_up_rests_syncing_and_nothing_else() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let limits = FleetLimits {
        networks: vec![(Network::Clearnet, 50, Some(1_000))],
        host_jobs: 1_000,
        host_spacing: Duration::ZERO,
        block_jobs: 1_000,
        block_spacing: Duration::ZERO,
        vantages_for_down: None,
    };
    assert_eq!(db.fleet_limits_set(&limits).await.unwrap(), 2);
    assert_eq!(db.fleet_limits_set(&limits).await.unwrap(), 0, "said again is nothing new");
    let mut worker = registration("w1", LEASE);
    for bytes in [400, 700] {
        worker.traffic = vec![(Network::Clearnet, bytes)];
        db.job_heartbeat(&worker).await.unwrap();
    }
    assert_eq!(value(&test, "SELECT bytes::text FROM network_usage").await, "1100");
    db.job_enqueue(&[job(JobKind::Sync, "wss://a.example"), job(JobKind::Monitor, "wss://b.example")])
        .await
        .unwrap();
    let want = ["sync.clearnet", "monitor.clearnet"].map(|queue| (queue.to_owned(), 4));
    let kinds: Vec<_> = db.job_claim("w1", &want).await.unwrap().iter().map(|c| c.kind).collect();
    assert_eq!(kinds, [JobKind::Monitor]);
    test.execute("UPDATE network_usage SET day = day - 1").await;
    assert_eq!(db.job_claim("w1", &want).await.unwrap().len(), 1, "a new day");
}

#[tokio::test]
async fn a_lease_that_ended_is_over_even_if_nobody_took_the_jobs() {
    let Some(test) = on_tor().await else { return };
    let db = handle(&test, Role::Writer);
    assert_eq!(db.job_claim("w1", &[("monitor.tor".to_owned(), 3)]).await.unwrap().len(), 3);
    test.execute("UPDATE apalis.workers SET lease_until = now() - interval '1 s' WHERE id = 'w1'").await;
    let held = db.job_heartbeat(&registration("w1", LEASE)).await.unwrap();
    assert!(held.is_empty(), "{held:?}");
    assert_eq!(value(&test, "SELECT count(*)::text FROM network_lease WHERE worker_id = 'w1'").await, "0");
    let again = db.job_claim("w2", &[("monitor.tor".to_owned(), 8)]).await.unwrap();
    assert_eq!(again.iter().map(|c| c.attempt).max(), Some(2));
}
