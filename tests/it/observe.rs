//! Observations of one relay, however a page falls: new, known, mixed, moved to another key, or gone meanwhile.

use shared::db::{Db, EventRow, StoreBatch, Stored};
use shared::models::{AddressPolicy, Event, EventId, Fence, JobKind, RelayUrl};
use tests::factory::Factory;
use tests::pg::{Role, TestDb};

use super::retention::archive;
use super::support::{claim_one, handle, migrated, value};

const URL: &str = "wss://observed.example";

fn events(seed: u64, count: usize) -> Vec<Event> {
    Factory::new(seed).events(count).iter().map(|event| Event::parse(&event.as_json()).unwrap()).collect()
}

/// A relay, and a job that may write of it.
async fn scene(test: &TestDb) -> (Db, i32, Fence) {
    let db = handle(test, Role::Writer);
    db.relay_insert(&[(RelayUrl::parse(URL, &AddressPolicy::public()).unwrap(), 1)]).await.unwrap();
    let relay: i32 = value(test, "SELECT max(id)::text FROM relay").await.parse().unwrap();
    let (_, fence) = claim_one(&db, "w1", JobKind::Sync, URL).await;
    (db, relay, fence)
}

async fn store(db: &Db, relay_id: i32, fence: &Fence, delivered: &[Event], new: &[Event]) -> Stored {
    let delivered: Vec<(EventId, i64)> =
        delivered.iter().map(|event| (event.id(), event.created_at())).collect();
    let new: Vec<EventRow> = new.iter().cloned().map(EventRow::from).collect();
    let batch = StoreBatch {
        fence,
        relay_id,
        seen_at: 5,
        delivered: &delivered,
        new: &new,
        light: false,
        coverage: None,
        next: None,
    };
    db.sync_store(&batch).await.unwrap()
}

/// What the log says was observed, and what is there.
async fn counted(test: &TestDb) -> (String, String) {
    (
        value(test, "SELECT coalesce(sum(n), 0)::text FROM rollup_delta WHERE op = 1").await,
        value(test, "SELECT count(*)::text FROM event_relay").await,
    )
}

#[tokio::test]
async fn a_pair_is_stored_and_logged_once_however_the_page_falls() {
    let Some(test) = migrated().await else { return };
    let (db, relay, fence) = scene(&test).await;
    let all = events(81, 100);
    // New as a whole, then known as a whole.
    assert_eq!(store(&db, relay, &fence, &all[..40], &all[..40]).await.observations, 40);
    assert_eq!(store(&db, relay, &fence, &all[..40], &[]).await.observations, 0);
    // Eight are looked at, every fifth: one known pair among the others shows itself only when it is stored.
    let mut page = all[40..80].to_vec();
    page[3] = all[3].clone();
    let stored = store(&db, relay, &fence, &page, &all[40..80]).await;
    assert_eq!((stored.events, stored.observations), (40, 39));
    // Half of it known, and one of it twice.
    let mut page = all[60..100].to_vec();
    page.push(all[99].clone());
    assert_eq!(store(&db, relay, &fence, &page, &all[80..]).await.observations, 20);
    assert_eq!(counted(&test).await, ("99".to_owned(), "99".to_owned()));
    assert_eq!(store(&db, relay, &fence, &[], &[]).await.observations, 0);
    assert_eq!(store(&db, 99_999, &fence, &all[..3], &[]).await.observations, 0, "a relay nobody knows");
}

#[tokio::test]
async fn an_event_that_has_another_key_is_observed_by_it_and_not_by_its_own() {
    let Some(test) = migrated().await else { return };
    let (db, relay, fence) = scene(&test).await;
    let all = events(82, 12);
    store(&db, relay, &fence, &all[..11], &all[..11]).await;
    // Another event takes the key of the last one, which then gets the next free one.
    test.execute(&format!(
        "INSERT INTO event (event_key, created_at, kind, id, pubkey, fate) VALUES ({}, {}, 1, decode(repeat('77', 32), 'hex'), decode(repeat('11', 32), 'hex'), 1);
         INSERT INTO event_relay (event_key, relay_id, seen_at) VALUES ({0}, {relay}, 5)",
        all[11].key(),
        all[11].created_at()
    ))
    .await;
    let stored = store(&db, relay, &fence, &all, &all[11..]).await;
    assert_eq!((stored.events, stored.observations), (1, 1), "the pair at its own key is another event's");
    assert_eq!(store(&db, relay, &fence, &all[11..], &[]).await.observations, 0);
    assert_eq!(store(&db, relay, &fence, &all, &[]).await.observations, 0);
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_relay").await, "13");
}

#[tokio::test]
async fn what_was_known_without_a_body_is_skipped_for_workers_of_the_version_before() {
    let Some(test) = migrated().await else { return };
    let (_, _, fence) = scene(&test).await;
    let event = &events(83, 1)[0];
    let skip = format!(
        "SELECT sync_skip('{}', 'w1', 1, ARRAY[decode('{}', 'hex')], ARRAY[{}::bigint], ARRAY[{}::bigint], ARRAY[decode('{}', 'hex')], ARRAY[1])",
        fence.job(),
        event.id(),
        event.key(),
        event.created_at(),
        hex::encode(event.pubkey())
    );
    test.execute(&skip).await;
    test.execute(&skip).await;
    assert_eq!(value(&test, "SELECT string_agg(fate::text, ' ') FROM event").await, "1");
}

#[tokio::test]
async fn a_pass_begins_with_one_question_and_the_size_is_ten_seconds_old_at_most() {
    let Some(test) = migrated().await else { return };
    let (db, relay, _) = scene(&test).await;
    archive(&db, URL, &Factory::new(84).events(3)).await;
    let first = db.sync_begin(relay).await.unwrap();
    assert_eq!(first.archive.kinds, db.archive_get(Some(URL)).await.unwrap().kinds);
    assert!(first.archive.bytes > 1_000_000 && first.measured.is_none() && !first.facts.has_gone);
    test.execute("UPDATE archive_size SET bytes = 7").await;
    assert_eq!(db.sync_begin(relay).await.unwrap().archive.bytes, 7);
    test.execute("UPDATE archive_size SET measured_at = now() - interval '11 seconds'").await;
    assert!(db.sync_begin(relay).await.unwrap().archive.bytes > 1_000_000);
}
