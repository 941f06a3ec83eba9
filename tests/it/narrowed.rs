//! Relays that answer only requests for kinds and authors together, or allow some kinds only.

use nostr::event::Event;
use serde_json::{Value, json};
use shared::clock;
use shared::jobs::Ctx;
use shared::models::{JobKind, RelayUrl};
use sqlx::Row as _;
use tests::factory::Factory;
use tests::pg::{Role, TestDb};
use tests::scripted::{Script, ScriptedRelay, Speech};

use super::jobs::{config, context, run};
use super::support::{claim_one, migrated, value};
use super::walked::{known_authors, relay, sync};

/// What coverage speaks of beside the class of most relays, without the numbers of batches.
const CLASSES: &str = "SELECT string_agg(DISTINCT regexp_replace(class, '[0-9a-f]{16}', 'X') || ' ' || grade, ', ') FROM coverage WHERE class <> 'all'";
const LEARNT: &str = "SELECT string_agg(coalesce(kinds::text, 'null'), ' ') FROM relay_sync";

/// So many notes a kind, a minute apart, by authors of the factory that others know, too.
fn notes(factory: &Factory, kinds: &[u16], each: usize) -> Vec<Event> {
    let now = clock::unix_now() - 500;
    let one = |n: usize, kind: u16| {
        let (author, at) = (n % 20, now - 60 * i64::try_from(n).unwrap());
        factory.sign(author, kind, vec![], &format!("{kind} {n}"), at)
    };
    kinds.iter().flat_map(|kind| (0..each).map(move |n| (n, *kind))).map(|(n, kind)| one(n, kind)).collect()
}

/// A relay that speaks so, as a look at it found.
async fn picky(ctx: &Ctx, events: &[Event], speech: Speech) -> (ScriptedRelay, RelayUrl) {
    let (picky, url) = relay(ctx, Script::honest(events, 100).speaking(speech)).await;
    run(ctx, JobKind::Monitor, url.as_str()).await.unwrap();
    (picky, url)
}

fn allowing(kinds: &[u16]) -> Speech {
    Speech { needs_kinds: true, allows_kinds: kinds.to_vec(), ..Speech::default() }
}

fn together() -> Speech {
    Speech { needs_all_of: vec!["kinds", "authors"], ..Speech::default() }
}

/// The requests of one pass, and its report.
async fn pass(ctx: &Ctx, relay: &ScriptedRelay, url: &RelayUrl) -> (Vec<Value>, Value) {
    let before = relay.requests().len();
    let report = sync(ctx, url).await;
    (relay.requests().split_off(before), report)
}

/// Of these requests those by which kinds are found out.
fn searches(requests: &[Value]) -> usize {
    requests.iter().filter(|filter| filter["limit"] == 1 && filter["since"] == 0).count()
}

async fn archived(test: &TestDb, kind: u16) -> u64 {
    let mut connection = test.connect(Role::Superuser).await;
    let query = sqlx::query("SELECT count(*) AS n FROM event WHERE kind = $1").bind(i32::from(kind));
    let n: i64 = query.fetch_one(&mut connection).await.unwrap().get("n");
    n.unsigned_abs()
}

#[tokio::test]
async fn a_relay_that_wants_kinds_and_authors_is_walked_by_both() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let factory = Factory::new(910);
    let _elsewhere = known_authors(&ctx, std::slice::from_ref(&factory), 20).await;
    let mut events = notes(&factory, &[0, 1, 7], 90);
    events.push(Factory::new(911).sign(0, 1, vec![], "by nobody known", clock::unix_now() - 400));
    events.push(factory.sign(1, 30_999, vec![], "of a kind nobody asks for", clock::unix_now() - 300));
    let (relay, url) = picky(&ctx, &events, together()).await;
    let seen = "SELECT concat_ws(' ', measured -> 'with_kinds' ->> 'seen', measured -> 'with_authors' ->> 'seen', measured -> 'with_mentions' ->> 'seen', measured -> 'with_kinds_authors' ->> 'seen') FROM relay_capability";
    assert_eq!(value(&test, seen).await, "refused refused refused works");
    let (requests, report) = pass(&ctx, &relay, &url).await;
    assert_eq!((&report["new_events"], &report["end"]), (&270.into(), &"up to date".into()), "{report}");
    assert_eq!((value(&test, CLASSES).await, searches(&requests)), ("kinds+authors:X walked".into(), 0));
    let all = "SELECT count(DISTINCT relay_id)::text FROM coverage WHERE class = 'all'";
    assert_eq!(value(&test, all).await, "1", "only elsewhere");
    let batch =
        "SELECT string_agg(class || ' ' || kinds::text, ' ' ORDER BY begun_at, class) FROM relay_batch";
    let begun = value(&test, batch).await;
    assert!(begun.contains("{0,1,3,4,5,") && !begun.contains("30999"), "{begun}");
    for filter in &requests {
        assert_eq!(filter["authors"].as_array().map(Vec::len), Some(20), "{filter}");
        let kinds = filter["kinds"].as_array().unwrap();
        assert!(kinds.contains(&json!(0)) && kinds.contains(&json!(7)), "{filter}");
    }
    // Who is learnt of later makes another batch, of the same kinds, and this one stays what it is.
    test.execute("UPDATE relay_batch SET begun_at = begun_at - 10").await;
    let others: Vec<Factory> = (912..915).map(Factory::new).collect();
    let _more = known_authors(&ctx, &others, 40).await;
    let odd = others[0].sign(3, 30_998, vec![], "of another kind", clock::unix_now() - 200);
    let (_odd, odd) = super::walked::relay(&ctx, Script::honest([&odd], 10)).await;
    sync(&ctx, &odd).await;
    test.execute("SELECT kind_counts_refresh()").await;
    let (_, report) = pass(&ctx, &relay, &url).await;
    assert_eq!((&report["new_events"], &report["end"]), (&0.into(), &"up to date".into()), "{report}");
    let both = value(&test, batch).await;
    let kinds = begun.split(' ').next_back().unwrap();
    assert!(both.starts_with(&begun) && both.ends_with(kinds) && both.len() > begun.len(), "{begun}: {both}");
}

#[tokio::test]
async fn a_relay_that_allows_some_kinds_only_is_walked_by_these_and_found_out_once() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = notes(&Factory::new(920), &[1, 7, 6], 90);
    let (relay, url) = picky(&ctx, &events, allowing(&[1, 7])).await;
    let (requests, report) = pass(&ctx, &relay, &url).await;
    assert_eq!((&report["new_events"], &report["end"]), (&180.into(), &"up to date".into()), "{report}");
    assert_eq!(report["proved_share"], 1.0, "{report}");
    // The class that was refused has left nothing behind.
    assert_eq!(value(&test, CLASSES).await, "kinds:1,7 walked");
    let left = "SELECT count(*)::text FROM (SELECT class FROM coverage UNION ALL SELECT class FROM relay_revisit UNION ALL SELECT class FROM relay_rest) c WHERE class <> 'kinds:1,7'";
    assert_eq!(value(&test, left).await, "0");
    assert_eq!(value(&test, LEARNT).await, "{1,7}");
    assert!((10..=87).contains(&searches(&requests)), "{requests:?}");
    let (again, report) = pass(&ctx, &relay, &url).await;
    assert_eq!((searches(&again), &report["new_events"]), (0, &0.into()), "{again:?}");
    assert!(again.iter().all(|filter| filter["kinds"] == json!([1, 7])), "{again:?}");
    // It changes its mind, and is found out again: also what it did not allow before.
    relay.set(Script::honest(&events, 100).speaking(allowing(&[1, 6])));
    let (requests, report) = pass(&ctx, &relay, &url).await;
    assert_eq!((&report["new_events"], &report["end"]), (&90.into(), &"up to date".into()), "{report}");
    assert_eq!(
        (value(&test, CLASSES).await, value(&test, LEARNT).await),
        ("kinds:1,6 walked".into(), "{1,6}".into())
    );
    assert!((1..=87).contains(&searches(&requests)), "{requests:?}");
}

#[tokio::test]
async fn a_relay_that_takes_short_lists_only_is_walked_by_the_longest_it_takes() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = notes(&Factory::new(930), &[0, 1, 3, 7], 40);
    let speech = Speech { needs_kinds: true, kinds_most: Some(3), ..Speech::default() };
    let (relay, url) = picky(&ctx, &events, speech).await;
    let (_, report) = pass(&ctx, &relay, &url).await;
    assert_eq!((&report["new_events"], &report["end"]), (&120.into(), &"up to date".into()), "{report}");
    assert_eq!(value(&test, CLASSES).await, "kinds:0,1,3 walked");
}

#[tokio::test]
async fn a_relay_that_allows_no_kind_keeps_its_refusal_and_has_its_rest() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = notes(&Factory::new(940), &[1], 10);
    let (relay, url) = picky(&ctx, &events, allowing(&[65_000])).await;
    let (requests, report) = pass(&ctx, &relay, &url).await;
    assert_eq!(report["new_events"], 0, "{report}");
    let refused = value(&test, CLASSES).await;
    assert!(refused.starts_with("kinds:0,1,3,") && refused.ends_with(" refused"), "{refused}");
    assert_eq!(value(&test, "SELECT concat_ws(' ', kinds, kinds_off_until > extract(epoch FROM now()) + 80000) FROM relay_sync").await, "t");
    let asked = searches(&requests);
    assert!((10..=87).contains(&asked), "{requests:?}");
    let (requests, _) = pass(&ctx, &relay, &url).await;
    assert_eq!((searches(&requests), value(&test, CLASSES).await), (0, refused));
    // After its rest it is tried again.
    relay.set(Script::honest(&events, 100).speaking(allowing(&[1])));
    test.execute("UPDATE relay_sync SET kinds_off_until = 5").await;
    let (_, report) = pass(&ctx, &relay, &url).await;
    assert_eq!((&report["new_events"], value(&test, CLASSES).await), (&10.into(), "kinds:1 walked".into()));
    assert_eq!(value(&test, "SELECT concat_ws(' ', kinds, kinds_off_until) FROM relay_sync").await, "{1}");
}

#[tokio::test]
async fn a_search_that_breaks_off_has_learnt_nothing() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = notes(&Factory::new(950), &[1, 7], 10);
    let (relay, url) = picky(&ctx, &events, allowing(&[1, 7])).await;
    let third = relay.counts().reqs + 4;
    relay.set(
        Script::honest(&events, 100).speaking(allowing(&[1, 7])).closing(third, "rate-limited: slow down"),
    );
    let (requests, report) = pass(&ctx, &relay, &url).await;
    assert_eq!((requests.len(), &report["end"]), (4, &"rate limited".into()), "{report}");
    assert_eq!(value(&test, LEARNT).await, "null");
    let refused = value(&test, CLASSES).await;
    assert!(refused.starts_with("kinds:0,1,3,") && refused.ends_with(" refused"), "{refused}");
    // Silence, or a lost connection, says as little, and none is begun again at once.
    let rested = "UPDATE relay_sync SET kinds_off_until = kinds_off_until - 90000";
    test.execute(rested).await;
    relay.set(Script {
        unanswered: Some(relay.counts().reqs + 3),
        ..Script::honest(&events, 100).speaking(allowing(&[1, 7]))
    });
    let (requests, _) = pass(&ctx, &relay, &url).await;
    assert_eq!((requests.len(), value(&test, LEARNT).await), (3, "null".to_owned()));
    let (requests, _) = pass(&ctx, &relay, &url).await;
    assert_eq!(searches(&requests), 0, "{requests:?}");
    test.execute(rested).await;
    let (_, report) = pass(&ctx, &relay, &url).await;
    assert_eq!((&report["new_events"], value(&test, CLASSES).await), (&20.into(), "kinds:1,7 walked".into()));
}

#[tokio::test]
async fn batches_of_kinds_that_are_refused_are_replaced() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let factory = Factory::new(960);
    let _elsewhere = known_authors(&ctx, std::slice::from_ref(&factory), 20).await;
    let events = notes(&factory, &[1, 7, 6], 60);
    let (relay, url) = picky(&ctx, &events, together()).await;
    sync(&ctx, &url).await;
    let batch = "SELECT string_agg(class || ' ' || kinds::text, ', ') FROM relay_batch";
    let first = value(&test, batch).await;
    let speech = Speech { allows_kinds: vec![1, 7], ..together() };
    relay.set(Script::honest(&events, 100).speaking(speech));
    let (requests, report) = pass(&ctx, &relay, &url).await;
    assert_eq!(
        (&report["end"], value(&test, LEARNT).await),
        (&"up to date".into(), "{1,7}".into()),
        "{report}"
    );
    assert!(searches(&requests) > 0 && requests.iter().all(|filter| filter["authors"].is_array()));
    let second = value(&test, batch).await;
    assert!(second.ends_with(" {1,7}") && !second.contains(", "), "{second}");
    assert_ne!(first.split(' ').next(), second.split(' ').next(), "another meaning has another name");
    assert_eq!(value(&test, CLASSES).await, "kinds+authors:X walked");
    let classes = "SELECT count(DISTINCT class)::text FROM coverage WHERE class <> 'all'";
    assert_eq!(value(&test, classes).await, "1");
    // What was read by the batch before stays, and is known.
    assert_eq!((archived(&test, 6).await, archived(&test, 7).await), (60, 60));
    let (requests, report) = pass(&ctx, &relay, &url).await;
    assert_eq!((searches(&requests), &report["new_events"]), (0, &0.into()), "{report}");
    assert_eq!(value(&test, batch).await, second);
}

#[tokio::test]
async fn what_was_asked_by_kinds_alone_is_forgotten_where_authors_are_wanted_too() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let factory = Factory::new(970);
    let _elsewhere = known_authors(&ctx, std::slice::from_ref(&factory), 20).await;
    let events = notes(&factory, &[1, 7], 20);
    let (relay, url) = picky(&ctx, &events, Speech { needs_kinds: true, ..Speech::default() }).await;
    sync(&ctx, &url).await;
    assert!(value(&test, CLASSES).await.starts_with("kinds:0,1,3,"));
    relay.set(Script::honest(&events, 100).speaking(together()));
    test.execute("UPDATE relay_capability SET measured_at = 1").await;
    run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap();
    sync(&ctx, &url).await;
    assert_eq!(value(&test, CLASSES).await, "kinds+authors:X walked");
}

#[tokio::test]
async fn a_worker_of_the_version_before_begins_batches_as_before() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let factory = Factory::new(980);
    let elsewhere = known_authors(&ctx, std::slice::from_ref(&factory), 5).await;
    let (_, fence) = claim_one(&ctx.db, "w1", JobKind::Sync, &elsewhere.url()).await;
    let mut writer = test.connect(Role::Writer).await;
    let begun = sqlx::query("SELECT held, class, cardinality(pubkeys) AS keys FROM relay_batch_begin($1, $2, $3, 1, 5, 'authors', 100, 20)")
        .bind(fence.job())
        .bind(fence.worker())
        .bind(fence.attempt())
        .fetch_one(&mut writer)
        .await
        .unwrap();
    let (held, class, keys): (bool, String, i32) = (begun.get("held"), begun.get("class"), begun.get("keys"));
    assert!(held && class.starts_with("authors:") && keys == 5, "{held} {class} {keys}");
    let rows =
        sqlx::query("SELECT class FROM relay_batches(1, 'authors')").fetch_all(&mut writer).await.unwrap();
    assert!(rows.len() == 1 && rows[0].get::<String, _>("class") == class);
    let now = ctx.db.relay_batches(1, "authors").await.unwrap();
    assert_eq!(
        now.iter().map(|batch| (batch.class.as_str(), batch.kinds.len())).collect::<Vec<_>>(),
        [(class.as_str(), 0)]
    );
    // A fence that is lost writes nothing.
    let lost = shared::models::Fence::new(fence.job().to_owned(), "w2".to_owned(), fence.attempt());
    assert!(!ctx.db.relay_kinds_set(&lost, 1, &[1, 7]).await.unwrap());
    assert!(!ctx.db.relay_kinds_rest(&lost, 1, 5).await.unwrap());
    assert_eq!(ctx.db.relay_kinds(1).await.unwrap(), shared::db::RelayKinds::default());
}
