//! Nothing is ever without what it belongs to, whatever runs beside what.

use shared::db::{Db, DbError, EventRow, NewCoverage, SetLine, StoreBatch, Stored};
use shared::models::{
    AddressPolicy, Coverage, EnvelopeFacts, Event, EventId, Fence, GapReason, Grade, Interval, JobKind,
    RelayUrl,
};
use sqlx::Connection as _;
use tests::factory::Factory;
use tests::pg::Role;

use super::retention::archive;
use super::support::{claim_one, handle, migrated, value};

const DAY_S: i64 = 86_400;

pub(crate) fn url(n: usize) -> RelayUrl {
    RelayUrl::parse(&format!("wss://r{n}.example"), &AddressPolicy::public()).unwrap()
}

/// Which events of a page are known.
pub(crate) async fn known(db: &Db, page: &[Event]) -> Result<Vec<bool>, DbError> {
    let facts: Vec<EnvelopeFacts> = page.iter().map(Event::facts).collect();
    let known = db.event_known(&facts.iter().collect::<Vec<_>>()).await?;
    Ok((0..page.len()).map(|i| known.known(i).is_some()).collect())
}

/// What a sync job does with a page, from looking up to storing.
pub(crate) async fn store(
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
