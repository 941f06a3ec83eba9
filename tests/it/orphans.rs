//! Nothing is ever without what it belongs to, whatever runs beside what.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use shared::db::{Db, DbError, EventRow, Fate, NewCoverage, Pace, SetLine, StoreBatch, Stored};
use shared::models::{
    AddressPolicy, Coverage, EnvelopeFacts, Event, EventId, Fence, GapReason, Grade, Interval, JobKind,
    RelayUrl, Retention, Target, Tombstone,
};
use sqlx::Connection as _;
use tests::factory::Factory;
use tests::pg::{Role, TestDb};

use super::retention::{archive, retire};
use super::support::{claim_one, handle, migrated, value};

const DAY_S: i64 = 86_400;

fn url(n: usize) -> RelayUrl {
    RelayUrl::parse(&format!("wss://r{n}.example"), &AddressPolicy::public()).unwrap()
}

/// Which events of a page are known.
async fn known(db: &Db, page: &[Event]) -> Result<Vec<bool>, DbError> {
    let facts: Vec<EnvelopeFacts> = page.iter().map(Event::facts).collect();
    let known = db.event_known(&facts.iter().collect::<Vec<_>>()).await?;
    Ok((0..page.len()).map(|i| known.known(i).is_some()).collect())
}

/// What a sync job does with a page, from looking up to storing.
async fn store(
    db: &Db,
    fence: &Fence,
    relay_id: i32,
    page: &[Event],
    coverage: Option<&Coverage>,
) -> Result<Stored, DbError> {
    let asked: Vec<(EventId, i64)> = page.iter().map(|event| (event.id(), event.created_at())).collect();
    let known = known(db, page).await?;
    let new: Vec<EventRow> = page
        .iter()
        .enumerate()
        .filter(|(i, _)| !known[*i])
        .map(|(_, event)| EventRow::from(event.clone()))
        .collect();
    store_as(db, fence, relay_id, &asked, &new, coverage).await
}

async fn store_as(
    db: &Db,
    fence: &Fence,
    relay_id: i32,
    delivered: &[(EventId, i64)],
    new: &[EventRow],
    coverage: Option<&Coverage>,
) -> Result<Stored, DbError> {
    let coverage = coverage.map(|coverage| NewCoverage { class: "all", coverage });
    db.sync_store(&StoreBatch {
        fence,
        relay_id,
        seen_at: 5,
        delivered,
        new,
        light: false,
        coverage,
        next: None,
    })
    .await
}

#[tokio::test]
async fn an_event_that_is_deleted_while_it_comes_again_is_not_covered() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let events = Factory::new(61).events(3);
    archive(&db, "wss://r0.example", &events).await;
    db.relay_insert(&[(url(1), 1)]).await.unwrap();
    let page: Vec<Event> = events.iter().map(|event| Event::parse(&event.as_json()).unwrap()).collect();
    let asked: Vec<(EventId, i64)> = page.iter().map(|event| (event.id(), event.created_at())).collect();
    let relay: i32 =
        value(&test, "SELECT id::text FROM relay WHERE url = 'wss://r1.example'").await.parse().unwrap();
    let (_, fence) = claim_one(&db, "w1", JobKind::Sync, "wss://r1.example").await;
    // It is known when the page comes, and seen on no relay any more.
    assert_eq!(known(&db, &page).await.unwrap(), [true; 3]);
    test.execute("DELETE FROM event_relay WHERE event_key = (SELECT min(event_key) FROM event)").await;
    assert_eq!(db.orphan_event_delete(100).await.unwrap(), 1);
    let mut coverage = Coverage::empty();
    coverage.overlay(Interval::new(0, 100, Grade::Walked, GapReason::None, 5).unwrap());
    let error = store_as(&db, &fence, relay, &asked, &[], Some(&coverage)).await.unwrap_err();
    assert!(error.to_string().contains("deleted while it came"), "{error}");
    assert_eq!(
        value(
            &test,
            "SELECT count(*) || ' ' || (SELECT count(*) FROM event_relay WHERE relay_id > 1) FROM coverage"
        )
        .await,
        "0 0"
    );
    // The next attempt finds it unknown, and stores it.
    assert_eq!(store(&db, &fence, relay, &page, Some(&coverage)).await.unwrap().events, 1);
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_relay WHERE relay_id > 1").await, "3");
}

#[tokio::test]
async fn an_event_whose_observation_is_in_flight_is_no_orphan() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    archive(&db, "wss://r0.example", &Factory::new(62).events(1)).await;
    test.execute("DELETE FROM event_relay").await;
    let mut other = test.connect(Role::Superuser).await;
    let mut flight = other.begin().await.unwrap();
    sqlx::raw_sql("INSERT INTO event_relay SELECT event_key, 5, 1, 0 FROM event")
        .execute(&mut *flight)
        .await
        .unwrap();
    let error = db.orphan_event_delete(100).await.unwrap_err();
    assert!(error.is_busy(), "it waits a second and gives up: {error}");
    let error = db.orphan_event_sweep(100).await.unwrap_err();
    assert!(error.is_busy(), "{error}");
    flight.commit().await.unwrap();
    assert_eq!(db.orphan_event_delete(100).await.unwrap(), 0);
    assert_eq!(db.orphan_event_sweep(100).await.unwrap(), 0);
    test.execute("DELETE FROM event_relay").await;
    // The round begins anew when it has come to the end.
    assert_eq!(
        (db.orphan_event_sweep(100).await.unwrap(), db.orphan_event_sweep(100).await.unwrap()),
        (0, 1)
    );
    let left = "SELECT count(*) || ' ' || (SELECT count(*) FROM event_unmined) FROM event";
    assert_eq!(value(&test, left).await, "0 0", "with all that hung on it");
}

#[tokio::test]
async fn an_event_dated_next_year_moves_with_its_observations_and_is_counted_throughout() {
    let Some(test) = migrated().await else { return };
    let (db, reader) = (handle(&test, Role::Writer), handle(&test, Role::Reader));
    let now = shared::clock::unix_now();
    let ahead = Factory::new(63).ending_at(now + 365 * DAY_S).events(20);
    archive(&db, "wss://r0.example", &ahead).await;
    archive(&db, "wss://r1.example", &ahead[..10]).await;
    assert_eq!(reader.default_rows(100).await.unwrap(), [("event_default", 20), ("event_relay_default", 30)]);
    assert_eq!(reader.default_rows(5).await.unwrap()[0].1, 5, "counted up to a bound");
    let counts = "SELECT string_agg(event_count::text, ' ' ORDER BY relay_url) || ' ' || (SELECT event_count FROM event_stats) FROM relay_stats";
    test.execute("SELECT all_statistics_refresh()").await;
    assert_eq!(value(&test, counts).await, "20 10 20");
    test.execute(
        "SELECT partition_maintain(extract(epoch FROM now())::bigint, 1000, now() + interval '1 year')",
    )
    .await;
    assert_eq!(reader.default_rows(100).await.unwrap(), [("event_default", 0), ("event_relay_default", 0)]);
    test.execute("SELECT all_statistics_refresh()").await;
    assert_eq!(value(&test, counts).await, "20 10 20");
    let sets = reader.verify_sets(&mut |_| {}).await.unwrap();
    assert!(!sets.iter().any(SetLine::is_fault), "{sets:?}");
    assert_eq!(value(&test, "SELECT count(*)::text FROM observation WHERE created_at > extract(epoch FROM now() + interval '300 days')").await, "30");
}

/// Events over a hundred days, next year's and an absurd one among them.
fn pool() -> Vec<Event> {
    let now = shared::clock::unix_now();
    let mut events = Factory::new(64).over(100 * DAY_S).events(300);
    events.extend(Factory::new(65).ending_at(now + 300 * DAY_S).over(200 * DAY_S).events(40));
    events.extend(Factory::new(66).ending_at(8_000_000_000).over(DAY_S).events(5));
    events.iter().map(|event| Event::parse(&event.as_json()).unwrap()).collect()
}

/// Numbers without much meaning, the same at every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % n
    }
}

/// Whether doing it again may help: a lock, a deadlock, what came together.
fn passes(error: &DbError) -> bool {
    matches!(error, DbError::Server { code, .. } if ["55P03", "40P01", "40001", "23514"].contains(&code.as_str()))
}

/// Whether it went well, or may the next time.
fn fine<T>(done: &Result<T, DbError>) -> bool {
    done.as_ref().map_or_else(passes, |_| true)
}

const PLACES: &str = "SELECT count(*) FILTER (WHERE c.relname ~ '_[0-9]{6}$')::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'event'::regclass";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_deleters_retention_and_moves_at_once_leave_nothing_without_what_it_belongs_to() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let relays: Vec<(RelayUrl, i64)> = (0..4).map(|n| (url(n), 1)).collect();
    db.relay_insert(&relays).await.unwrap();
    db.retention_put(
        &Retention {
            days: Some(40),
            kinds: vec!["1984".parse().unwrap(), "7:60".parse().unwrap()],
            relays: vec![(url(3).to_string(), 20)],
        },
        false,
    )
    .await
    .unwrap();
    let (pool, over, stored, took) = (pool(), AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let mut fences = Vec::new();
    for n in 0..4 {
        fences.push(claim_one(&db, &format!("w{n}"), JobKind::Sync, url(n).as_str()).await.1);
    }
    let writer = async |n: usize| {
        let mut dice = Dice(n as u64 + 1);
        while !over.load(Ordering::Relaxed) {
            let from = dice.roll(pool.len());
            let page: Vec<Event> = pool.iter().skip(from).take(1 + dice.roll(60)).cloned().collect();
            match store(&db, &fences[n], i32::try_from(n).unwrap() + 1, &page, None).await {
                Ok(done) => {
                    assert!(done.held);
                    stored.fetch_add(done.observations, Ordering::Relaxed);
                }
                Err(error) => assert!(passes(&error), "{error}"),
            }
        }
    };
    let deleter = async {
        let mut dice = Dice(99);
        while !over.load(Ordering::Relaxed) {
            let event = &pool[dice.roll(pool.len())];
            let done = match dice.roll(5) {
                0 => db.event_fate_set(&[(event.id(), event.created_at())], Fate::Expired).await,
                1 => {
                    let target = Target::Event(event.id());
                    let request = EventId([7; 32]);
                    let stone = Tombstone { pubkey: *event.pubkey(), target, until: 0, request };
                    match db.tombstone_add(&[stone]).await {
                        Ok(_) => db.tombstone_step(&mut Pace::of(200)).await,
                        Err(error) => Err(error),
                    }
                }
                2 => db.orphan_event_delete(50).await,
                3 => db.orphan_event_sweep(100).await,
                _ => {
                    db.retention_put(
                        &Retention {
                            days: Some(30 + u32::try_from(dice.roll(3)).unwrap()),
                            ..Retention::default()
                        },
                        true,
                    )
                    .await
                }
            };
            assert!(fine(&done), "{done:?}");
        }
    };
    let retention = async {
        while !over.load(Ordering::Relaxed) {
            match db.retention_step(&mut Pace::default()).await {
                Ok(step) => {
                    let step = step.unwrap_or_default();
                    took.fetch_add(step.events + step.observations, Ordering::Relaxed);
                }
                Err(error) => assert!(passes(&error), "{error}"),
            }
        }
    };
    let mover = async {
        let mut connection = test.connect(Role::Superuser).await;
        let mut dice = Dice(7);
        while !over.load(Ordering::Relaxed) {
            // Months are made one by one, and go again with the age limit where they are old.
            let made = sqlx::query("SELECT partition_maintain(extract(epoch FROM now())::bigint - 9000000, 1, now() + make_interval(months => $1))")
                .bind(i32::try_from(dice.roll(12)).unwrap());
            let done = made.execute(&mut connection).await.map_err(DbError::from);
            assert!(fine(&done), "{done:?}");
        }
    };
    let reader = async {
        let reader = handle(&test, Role::Reader);
        while !over.load(Ordering::Relaxed) {
            let sets = reader.verify_sets(&mut |_| {}).await;
            // What is found at any moment is whole, but for months that are made or dropped while it is looked at.
            assert!(fine(&sets), "{sets:?}");
            let faults: Vec<SetLine> =
                sets.unwrap_or_default().into_iter().filter(SetLine::is_fault).collect();
            assert!(faults.is_empty(), "{faults:?}");
        }
    };
    let end = async {
        let enough = || stored.load(Ordering::Relaxed) > 500 && took.load(Ordering::Relaxed) > 100;
        for tenth in 0..500 {
            if tenth >= 60 && enough() {
                break;
            }
            // bound: 500 × 100 ms; a storm of six seconds where the machine is quick enough
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(writer(0), writer(1), writer(2), writer(3), deleter, retention, mover, reader, end);
    let (stored, took) = (stored.into_inner(), took.into_inner());
    assert!(stored > 500 && took > 100, "a storm it was not: {stored} stored, {took} taken");
    // What the storm kept from being made is made now, over rows that came before it.
    db.partition_maintain(shared::clock::unix_now()).await.unwrap();
    retire(&db).await;
    // The storm may have given or taken away whatever fates it gave: what comes after it has one for certain.
    let late = Factory::new(67).ending_at(shared::clock::unix_now() - DAY_S).events(40);
    archive(&db, "wss://r4.example", &late).await;
    let late: Vec<_> = late.iter().map(|event| Event::parse(&event.as_json()).unwrap()).collect();
    let late: Vec<_> = late.iter().map(|event| (event.id(), event.created_at())).collect();
    assert_eq!(db.event_fate_set(&late, Fate::Expired).await.unwrap(), 40);
    check(&test, &db, stored).await;
}

async fn check(test: &TestDb, db: &Db, stored: u64) {
    let reader = handle(test, Role::Reader);
    let sets = reader.verify_sets(&mut |_| {}).await.unwrap();
    assert!(!sets.iter().any(SetLine::is_fault), "{sets:?}");
    let report = reader.verify(None).await.unwrap();
    assert!(report.corruptions.is_empty() && report.events > 50 && report.unkept > 0, "{report:?}");
    while db.orphan_event_delete(100).await.unwrap() > 0 {}
    let sets = reader.verify_sets(&mut |_| {}).await.unwrap();
    assert!(sets.iter().all(|set| set.n == 0), "not even orphans are left: {sets:?}");
    let below = "SELECT count(*)::text FROM event_relay WHERE event_key < second_key((SELECT before_at FROM archive_horizon WHERE scope = 'all'))";
    assert_eq!(value(test, below).await, "0");
    assert!(value(test, PLACES).await.parse::<u32>().unwrap() > 2, "months were made: {stored}");
}
