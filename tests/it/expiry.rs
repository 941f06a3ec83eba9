//! What expires while it is held, and what was archived before anybody asked when it does, or what it wants deleted.

use std::time::Duration;

use nostr::event::Event;
use shared::db::{Fate, SetLine};
use shared::jobs::JobsConfig;
use shared::models::JobKind;
use tests::factory::Factory;
use tests::pg::{Role, TestDb};
use tests::scripted::{Script, ScriptedRelay, Stored};

use super::jobs::{config, context, known_relay, run};
use super::keep::led;
use super::retention::archive;
use super::support::{handle, migrated, value};

const RELAY: &str = "wss://one.example";

fn tag(name: &str, value: impl Into<String>) -> Vec<String> {
    vec![name.to_owned(), value.into()]
}

fn expiration(at: i64) -> Vec<String> {
    tag("expiration", at.to_string())
}

/// Content and fate, by time.
async fn fates(test: &TestDb) -> String {
    value(test, "SELECT string_agg(fate || coalesce(' ' || convert_from(content, 'UTF8'), ''), ', ' ORDER BY created_at DESC) FROM event").await
}

/// One round of a leading scheduler with these variables.
pub(crate) async fn round(test: &TestDb, more: &[(&str, &str)]) {
    test.execute("UPDATE leader SET until = now()").await;
    let (mut scheduler, _) = led(test, more).await;
    scheduler.release().await.unwrap();
}

const KEEPS: [(&str, &str); 1] = [("BIGBROTR_ARCHIVE_UNKEPT", "private,deleted")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expires_while_it_is_held_loses_its_body_and_is_not_fetched_again() {
    let Some(test) = migrated().await else { return };
    let ctx =
        context(&test, JobsConfig { archive_days: None, rescan: Duration::from_hours(200), ..config() });
    let factory = Factory::new(91);
    let now = shared::clock::unix_now();
    let expires = |at: i64| vec![tag("t", "x"), expiration(at), expiration(5)];
    let soon = now + 60;
    let events: Vec<Event> = vec![
        factory.sign(0, 1, expires(soon), "soon", now - 10),
        factory.sign(1, 1, expires(now + 5_000), "later", now - 20),
        factory.sign(2, 1, vec![], "never", now - 30),
        // Neither of these says when it expires; and a request to delete does not expire.
        factory.sign(3, 1, vec![tag("t", format!("[\"expiration\",\"{soon}\"]"))], "in a string", now - 40),
        factory.sign(4, 1, vec![vec!["expiration".to_owned()], expiration(soon)], "no value", now - 50),
        factory.sign(5, 1, vec![tag("expiration", "soon"), expiration(soon)], "no number", now - 60),
        factory.sign(6, 5, vec![tag("e", "ab".repeat(32)), expiration(soon)], "a request", now - 70),
    ];
    let relay = ScriptedRelay::start(Script::of_stored(events.iter().map(Stored::from).collect(), 500)).await;
    let url = known_relay(&ctx.db, &relay).await;
    assert_eq!(run(&ctx, JobKind::Sync, url.as_str()).await.unwrap()["new_events"], 7);
    let noted = format!("{soon}, {}", now + 5_000);
    assert_eq!(
        value(&test, "SELECT string_agg(expires_at::text, ', ' ORDER BY 1) FROM event_expiry").await,
        noted
    );
    test.execute("SELECT all_statistics_refresh()").await;
    // A first round looks through what is archived, once.
    round(&test, &KEEPS).await;
    test.execute("UPDATE event_expiry SET expires_at = expires_at - 100").await;
    let all = "0 soon, 0 later, 0 never, 0 in a string, 0 no value, 0 no number, 0 a request";
    round(&test, &KEEPS).await;
    assert_eq!(fates(&test).await, all, "an operator who keeps them keeps them");
    round(&test, &[]).await;
    assert_eq!(fates(&test).await, all.replace("0 soon", "3"));
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_expiry").await, "1");
    test.execute("SELECT all_statistics_refresh()").await;
    assert_eq!(value(&test, "SELECT event_count::text FROM event_stats").await, "6");
    assert_eq!(value(&test, "SELECT count(*)::text FROM rollup_check()").await, "0");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_relay").await, "7", "who has it is known");
    let again = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    assert_eq!((&again["new_events"], &again["unkept"]), (&0.into(), &serde_json::json!({})), "{again}");
    assert_eq!(fates(&test).await, all.replace("0 soon", "3"));
}

/// Takes away what a version before 34 did not note.
const BEFORE: &str =
    "DELETE FROM event_expiry; DELETE FROM tombstone; DELETE FROM archive_cursor WHERE name = 'review'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_archived_before_is_looked_through_once() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, JobsConfig { archive_days: None, ..config() });
    let factory = Factory::new(92);
    let now = shared::clock::unix_now();
    let author = factory.author(1).public_key().to_hex();
    let meant = factory.sign(0, 1, vec![], "meant", now - 10);
    let others = factory.sign(1, 1, vec![], "another's", now - 20);
    let tags = vec![tag("e", meant.id.to_hex()), tag("e", others.id.to_hex())];
    let events = vec![
        factory.sign(0, 5, tags, "request", now - 5),
        meant,
        others,
        factory.sign(1, 30_023, vec![tag("d", "x")], "an article", now - 30),
        factory.sign(1, 5, vec![tag("a", format!("30023:{author}:x"))], "request by address", now - 25),
        factory.sign(2, 1, vec![expiration(now - 7)], "was to expire", now - 40),
        factory.sign(3, 1, vec![], "of who vanished", now - 50),
        factory.sign(3, 62, vec![tag("relay", "ALL_RELAYS")], "vanish", now - 45),
        factory.sign(4, 1, vec![expiration(now + 50_000)], "not yet", now - 60),
    ];
    archive(&ctx.db, RELAY, &events).await;
    test.execute(BEFORE).await;
    // In small pieces, one of which is asked for twice.
    let mut pieces = 0;
    while let Some(piece) = ctx.db.archive_review_take(2).await.unwrap() {
        let stones: Vec<_> = piece.requests.iter().flat_map(shared::models::tombstones).collect();
        ctx.db.archive_review_store(&piece, &stones).await.unwrap();
        if pieces == 1 {
            assert_eq!(ctx.db.archive_review_store(&piece, &stones).await.unwrap(), (0, 0));
        }
        pieces += 1;
    }
    assert_eq!(pieces, 6, "five of events, and the end");
    let found = "SELECT (SELECT count(*) FROM tombstone) || ' ' || (SELECT count(*) FROM event_expiry)";
    assert_eq!(value(&test, found).await, "4 2");
    // The same by the scheduler, once: what is archived after that notes itself.
    test.execute(BEFORE).await;
    round(&test, &[]).await;
    assert_eq!(value(&test, found).await, "4 1", "what was to expire has");
    test.execute("DELETE FROM event_expiry; DELETE FROM tombstone").await;
    round(&test, &[]).await;
    assert_eq!(value(&test, found).await, "0 0", "not a second time");
    test.execute(BEFORE).await;
    round(&test, &KEEPS).await;
    // What is found is applied by the rounds and passes that follow.
    let more = factory.sign(5, 1, vec![], "new", now - 70);
    let relay = ScriptedRelay::start(Script::of_stored(vec![Stored::from(&more)], 500)).await;
    let url = known_relay(&ctx.db, &relay).await;
    run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    test.execute("UPDATE tombstone SET noted_at = now() - interval '1 hour'").await;
    run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    let kept = "0 request, 2, 0 another's, 0 request by address, 2, 3, 0 vanish, 2, 0 not yet, 0 new";
    assert_eq!(fates(&test).await, kept);
    // Where requests are not honoured nothing is noted of them.
    test.execute(BEFORE).await;
    round(&test, &[("BIGBROTR_ARCHIVE_UNKEPT", "expired")]).await;
    assert_eq!(value(&test, found).await, "0 1");
    // Where they are honoured from some day on, those of the time before are; once.
    round(&test, &[]).await;
    assert_eq!(value(&test, found).await, "4 1");
    test.execute("DELETE FROM tombstone").await;
    round(&test, &[]).await;
    assert_eq!(value(&test, found).await, "0 1");
}

#[tokio::test]
async fn many_requests_are_looked_through_in_pieces_of_a_hundred() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let factory = Factory::new(93);
    let now = shared::clock::unix_now();
    let ask = |i: u8| factory.sign(1, 5, vec![tag("e", hex::encode([i; 32]))], "", now - i64::from(i));
    archive(&db, RELAY, &(0..250).map(ask).collect::<Vec<_>>()).await;
    test.execute(BEFORE).await;
    let mut sizes = vec![];
    while let Some(piece) = db.archive_review_take(1_000).await.unwrap() {
        sizes.push(piece.requests.len());
        let stones: Vec<_> = piece.requests.iter().flat_map(shared::models::tombstones).collect();
        db.archive_review_store(&piece, &stones).await.unwrap();
    }
    assert_eq!(sizes, [100, 100, 50, 0]);
    assert_eq!(value(&test, "SELECT count(*)::text FROM tombstone").await, "250");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_to_expire_goes_with_its_event_whatever_takes_it() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let factory = Factory::new(94);
    let now = shared::clock::unix_now();
    // In the year 2286: nobody would come by before.
    let never = || vec![expiration(9_999_999_999)];
    let events: Vec<Event> =
        (0..6).map(|i| factory.sign(i, 1, never(), "held", now - 10 - i64::try_from(i).unwrap())).collect();
    archive(&db, RELAY, &events).await;
    let noted = "SELECT count(*)::text FROM event_expiry";
    assert_eq!(value(&test, noted).await, "6");
    let of = |event: &Event| {
        let event = shared::models::Event::parse(&event.as_json()).unwrap();
        (event.id(), event.created_at())
    };
    assert_eq!(db.event_fate_set(&[of(&events[0])], Fate::Deleted).await.unwrap(), 1);
    assert_eq!(value(&test, noted).await, "5");
    test.execute(
        "DELETE FROM event_relay WHERE event_key = (SELECT max(event_key) FROM event WHERE fate = 0)",
    )
    .await;
    assert_eq!(db.orphan_event_delete(100).await.unwrap(), 1);
    assert_eq!(value(&test, noted).await, "4");
    // One that goes while the review notes it again.
    test.execute("DELETE FROM event_relay WHERE event_key = (SELECT min(event_key) FROM event); DELETE FROM archive_cursor WHERE name = 'review'").await;
    let piece = db.archive_review_take(100).await.unwrap().unwrap();
    let mut remover = test.connect(Role::Superuser).await;
    sqlx::raw_sql("BEGIN; SELECT orphan_event_delete(100)").execute(&mut remover).await.unwrap();
    let (reviewed, ()) = tokio::join!(db.archive_review_store(&piece, &[]), async {
        let waiting = "SELECT count(*)::text FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        for _ in 0..50 {
            if value(&test, waiting).await != "0" {
                break;
            }
            // bound: 50 × 20 ms; or it has not waited, and what comes of that is told below
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        sqlx::raw_sql("COMMIT").execute(&mut remover).await.unwrap();
    });
    assert_eq!(reviewed.unwrap(), (0, 0));
    assert_eq!(value(&test, noted).await, "3");
    let strays = |sets: Vec<SetLine>| {
        let strays = sets.into_iter().find(|set| set.problem.starts_with("times to expire")).unwrap();
        (strays.n, strays.bad)
    };
    let reader = handle(&test, Role::Reader);
    assert_eq!(strays(reader.verify_sets(&mut |_| {}).await.unwrap()), (0, false));
    test.execute("INSERT INTO event_expiry SELECT 5, event_key FROM event WHERE fate = 2").await;
    assert_eq!(strays(reader.verify_sets(&mut |_| {}).await.unwrap()), (1, false));
}
