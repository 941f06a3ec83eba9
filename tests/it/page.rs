//! A page is looked up and stored as a whole, whatever its shape and whoever stores beside it.

use std::time::Duration;

use shared::db::{Db, EventRow, StoreBatch, Stored};
use shared::models::{AddressPolicy, EnvelopeFacts, Event, EventId, Fence, JobKind, RelayUrl};
use sqlx::Connection as _;
use tests::factory::Factory;
use tests::pg::{Role, TestDb};

use super::retention::archive;
use super::support::{claim_one, handle, migrated, value};

const DAY_S: i64 = 86_400;
const RELAY: &str = "wss://pages.example";

fn parsed(events: &[nostr::event::Event]) -> Vec<Event> {
    events.iter().map(|event| Event::parse(&event.as_json()).unwrap()).collect()
}

/// A relay, and a job that syncs it.
async fn relay(test: &TestDb, db: &Db) -> (i32, Fence) {
    db.relay_insert(&[(RelayUrl::parse(RELAY, &AddressPolicy::public()).unwrap(), 1)]).await.unwrap();
    let id = value(test, "SELECT id::text FROM relay WHERE url = 'wss://pages.example'").await;
    let (_, fence) = claim_one(db, "w1", JobKind::Sync, RELAY).await;
    (id.parse().unwrap(), fence)
}

/// What a sync job does with a page: how many of it are known, by our signatures, and what storing it did.
async fn store(db: &Db, (relay_id, fence): &(i32, Fence), page: &[Event]) -> (usize, Stored) {
    let facts: Vec<EnvelopeFacts> =
        page.iter().map(|event| EnvelopeFacts::scan(&event.to_json()).unwrap()).collect();
    let known = db.event_known(&facts.iter().collect::<Vec<_>>()).await.unwrap();
    let mut new = Vec::new();
    for (at, event) in page.iter().enumerate() {
        match known.known(at) {
            Some(head) => assert_eq!(head, event.sig().first_chunk().copied()),
            None => new.push(EventRow::from(event.clone())),
        }
    }
    let delivered: Vec<(EventId, i64)> = page.iter().map(|event| (event.id(), event.created_at())).collect();
    let batch = StoreBatch {
        fence,
        relay_id: *relay_id,
        seen_at: 5,
        delivered: &delivered,
        new: &new,
        light: false,
        coverage: None,
        next: None,
    };
    (page.len() - new.len(), db.sync_store(&batch).await.unwrap())
}

const COUNTED: &str =
    "SELECT ((SELECT sum(n) FROM rollup_delta WHERE op = 0) = (SELECT count(*) FROM event) AND
    (SELECT sum(n) FROM rollup_delta WHERE op = 1) = (SELECT count(*) FROM event_relay) AND
    (SELECT count(*) FROM event_unmined) = (SELECT count(*) FROM event))::text";

#[tokio::test]
async fn a_page_of_any_shape_is_known_and_stored_once() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let relay = relay(&test, &db).await;
    let near = parsed(&Factory::new(81).over(DAY_S).events(400));
    let wide = parsed(&Factory::new(82).over(900 * DAY_S).events(60));
    // Ten of four hundred, far apart: what is known of the relay between them is much more than the page.
    let strewn: Vec<Event> = near.iter().step_by(40).cloned().collect();
    let mixed = |known: &[Event], fresh: Vec<Event>| -> Vec<Event> {
        let mut page: Vec<Event> = known.iter().take(25).cloned().chain(fresh).collect();
        page.sort_by_key(Event::id);
        page
    };
    let of_both = mixed(&near, parsed(&Factory::new(83).over(DAY_S).events(35)));
    let wide_of_both = mixed(&wide, parsed(&Factory::new(84).over(900 * DAY_S).events(35)));
    for (page, known) in [(&near, 0), (&strewn, 10), (&wide, 0), (&of_both, 25), (&wide_of_both, 25)] {
        let fresh = u64::try_from(page.len() - known).unwrap();
        let (said, stored) = store(&db, &relay, page).await;
        assert_eq!((said, stored.held, stored.events, stored.observations), (known, true, fresh, fresh));
        let (said, stored) = store(&db, &relay, page).await;
        assert_eq!((said, stored.held, stored.events, stored.observations), (page.len(), true, 0, 0));
    }
    // Known, and new on this relay; a few of the page are not.
    let elsewhere = Factory::new(85).over(DAY_S).events(30);
    archive(&db, "wss://other.example", &elsewhere).await;
    let page = mixed(&near, parsed(&elsewhere));
    let (said, stored) = store(&db, &relay, &page).await;
    assert_eq!((said, stored.events, stored.observations), (55, 0, 30));
    assert_eq!(value(&test, "SELECT count(*)::text FROM event").await, "560");
    assert_eq!(value(&test, COUNTED).await, "true");
}

#[tokio::test]
async fn what_moved_off_its_key_is_known_and_observed_among_others() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let relay = relay(&test, &db).await;
    let mut page = parsed(&Factory::new(86).over(DAY_S).events(40));
    assert_eq!(store(&db, &relay, &page).await.1.events, 40);
    // As if another event had held the key of one of them when it came.
    test.execute(
        "CREATE TABLE moved AS SELECT event_key AS k, id FROM event ORDER BY 1 OFFSET 20 LIMIT 1;
         INSERT INTO event_collision SELECT id, k + 1 FROM moved;
         UPDATE event SET event_key = event_key + 1 WHERE event_key = (SELECT k FROM moved);
         UPDATE event_relay SET event_key = event_key + 1 WHERE event_key = (SELECT k FROM moved);
         INSERT INTO event (event_key, created_at, kind, id, pubkey, fate) SELECT k, 1, 1, sha256('holder'), sha256('author'), 1 FROM moved",
    )
    .await;
    page.extend(parsed(&Factory::new(87).over(DAY_S).events(10)));
    let (said, stored) = store(&db, &relay, &page).await;
    assert_eq!((said, stored.events, stored.observations), (40, 10, 10));
    test.execute("DELETE FROM event_relay").await;
    let (said, stored) = store(&db, &relay, &page).await;
    assert_eq!((said, stored.events, stored.observations), (50, 0, 50));
    let right = "SELECT count(*)::text FROM moved m JOIN event_relay o ON o.event_key = m.k + 1";
    assert_eq!(value(&test, right).await, "1", "by the key it has");
    let wrong = "SELECT count(*)::text FROM moved m JOIN event_relay o ON o.event_key = m.k";
    assert_eq!(value(&test, wrong).await, "0", "not by another's");
}

#[tokio::test]
async fn an_event_that_another_writer_is_storing_is_waited_for_and_observed() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let relay = relay(&test, &db).await;
    let events = Factory::new(88).over(DAY_S).events(20);
    archive(&db, "wss://other.example", &events).await;
    test.execute(
        "CREATE TABLE kept AS SELECT * FROM event ORDER BY event_key OFFSET 10 LIMIT 1;
         DELETE FROM event_relay; DELETE FROM event; DELETE FROM event_unmined; DELETE FROM rollup_delta",
    )
    .await;
    for ends_well in [false, true] {
        let mut connection = test.connect(Role::Superuser).await;
        let mut other = connection.begin().await.unwrap();
        sqlx::raw_sql(
            "INSERT INTO event SELECT * FROM kept; INSERT INTO event_unmined SELECT event_key FROM kept;
             INSERT INTO rollup_delta (op, n, keys) SELECT 0, 1, ARRAY[event_key] FROM kept",
        )
        .execute(&mut *other)
        .await
        .unwrap();
        let page = parsed(&events);
        let waits = async {
            let waiting = "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            for _ in 0..200 {
                if value(&test, waiting).await == "1" {
                    break;
                }
                // bound: 200 × 50 ms
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            assert_eq!(value(&test, waiting).await, "1", "it waits for the other one");
            if ends_well { other.commit().await } else { other.rollback().await }.unwrap();
        };
        let ((said, stored), ()) = tokio::join!(store(&db, &relay, &page), waits);
        let new = if ends_well { 19 } else { 20 };
        assert_eq!((said, stored.held, stored.events, stored.observations), (0, true, new, 20));
        assert_eq!(value(&test, COUNTED).await, "true");
        test.execute(
            "DELETE FROM event_relay; DELETE FROM event; DELETE FROM event_unmined; DELETE FROM rollup_delta",
        )
        .await;
    }
}
