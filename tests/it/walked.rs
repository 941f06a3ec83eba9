//! Relays that leave out what we know they have, want their requests narrowed, or forge.

use std::time::Duration;

use nostr::event::Event;
use serde_json::Value;
use shared::clock;
use shared::db::ForgeryLimit;
use shared::jobs::{Ctx, JobsConfig};
use shared::models::{JobKind, RelayUrl};
use tests::factory::Factory;
use tests::pg::{Role, TestDb};
use tests::scripted::{Answer, Script, ScriptedRelay, Speech, Stored};

use super::cli::bigbrotr;
use super::jobs::{config, context, known_relay, run};
use super::support::{migrated, value};

/// Everything a pass reads is read again by the next one.
pub(super) fn again() -> JobsConfig {
    JobsConfig { rescan: Duration::from_hours(200), ..config() }
}

pub(super) async fn relay(ctx: &Ctx, script: Script) -> (ScriptedRelay, RelayUrl) {
    let relay = ScriptedRelay::start(script).await;
    let url = known_relay(&ctx.db, &relay).await;
    (relay, url)
}

pub(super) async fn sync(ctx: &Ctx, url: &RelayUrl) -> Value {
    run(ctx, JobKind::Sync, url.as_str()).await.unwrap()
}

/// What the timeline is, but for the seconds by which the floor moved.
async fn grades(test: &TestDb) -> String {
    let sql = "SELECT string_agg(DISTINCT class || ' ' || grade || '/' || reason, ', ') FROM coverage WHERE until_at - since_at > 600";
    value(test, sql).await
}

#[tokio::test]
async fn a_relay_that_hands_out_by_id_what_its_pages_leave_out_is_not_called_walked() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, again());
    let events = Factory::new(71).events(300);
    let (relay, url) = relay(&ctx, Script::honest(&events, 500)).await;
    let first = sync(&ctx, &url).await;
    assert_eq!((&first["proved_share"], grades(&test).await), (&1.0.into(), "all walked/none".into()));
    let asked = relay.counts().reqs;
    relay.set(Script::honest(&events, 500).answering(Answer::Mute(true)));
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["gone"], &report["proved_share"]), (&0.into(), &0.0.into()), "{report}");
    assert_eq!(grades(&test).await, "all partial/not_served");
    let requests = relay.requests();
    let ids = requests.last().unwrap()["ids"].as_array().unwrap();
    assert!((5..=10).contains(&ids.len()) && relay.counts().reqs - asked == 2, "{requests:?}");
    // Honest again, it is read again once the gap has rested.
    relay.set(Script::honest(&events, 500));
    test.execute("UPDATE coverage SET observed_at = observed_at - 7 * 3600").await;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["proved_share"], grades(&test).await), (&1.0.into(), "all walked/none".into()));
}

#[tokio::test]
async fn a_relay_that_has_lost_everything_is_believed_the_second_time() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, again());
    let events = Factory::new(72).events(300);
    let (relay, url) = relay(&ctx, Script::honest(&events, 500)).await;
    sync(&ctx, &url).await;
    relay.set(Script::honest(&events, 500).answering(Answer::Mute(false)));
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["gone"], grades(&test).await), (&0.into(), "all partial/not_served".into()));
    // Asked again once the gap has rested.
    test.execute("UPDATE coverage SET observed_at = observed_at - 7 * 3600").await;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["gone"], grades(&test).await), (&300.into(), "all walked/none".into()), "{report}");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_gone").await, "300");
    // What comes back is forgiven, as where sets are compared.
    relay.set(Script::honest(&events, 500));
    sync(&ctx, &url).await;
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_gone").await, "0");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_relay").await, "300");
}

#[tokio::test]
async fn what_an_honest_relay_deleted_is_gone_and_its_timeline_walked() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, again());
    let factory = Factory::new(73);
    let now = clock::unix_now() - 1_000;
    let events: Vec<_> =
        (0..40).map(|n| factory.sign(n, 1, vec![], "note", now - 60 * i64::try_from(n).unwrap())).collect();
    let (relay, url) = relay(&ctx, Script::honest(&events, 500)).await;
    sync(&ctx, &url).await;
    // The oldest is always among those asked about.
    relay.set(Script::honest(&events[..39], 500));
    let before = relay.counts().reqs;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["gone"], grades(&test).await), (&1.into(), "all walked/none".into()), "{report}");
    let cost = relay.counts().reqs - before;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["gone"], relay.counts().reqs - before - cost), (&0.into(), cost - 1), "asked once");
}

#[tokio::test]
async fn an_event_that_comes_twice_is_read_again_where_it_is_not_the_same_to_the_letter() {
    for signs in [false, true] {
        let Some(test) = migrated().await else { return };
        let ctx = context(&test, config());
        let events = Factory::new(74).events(60);
        let script = Script::honest(&events, 20).answering(Answer::ForgeRepeats(signs));
        let (relay, url) = relay(&ctx, script).await;
        let report = sync(&ctx, &url).await;
        assert_eq!(report["new_events"], 60, "{report}");
        // Each page but the first begins with the second in which the one before broke off.
        let caught = report["forged_known"].as_u64().unwrap();
        assert!(caught >= 3 && report["forged"] == caught, "signs: {signs}: {report} {:?}", relay.requests());
        assert_eq!(value(&test, "SELECT sum(known)::text FROM relay_forgery").await, caught.to_string());
        assert_eq!(
            value(&test, "SELECT count(*)::text FROM event WHERE content = 'forged'::bytea").await,
            "0"
        );
        let doubted = value(
            &test,
            "SELECT count(*)::text FROM coverage WHERE grade = 'partial' AND reason = 'protocol'",
        )
        .await;
        assert!(doubted.parse::<u64>().unwrap() >= 3, "{doubted}");
    }
}

/// Another relay's events, so that their authors are known: so many of each factory.
pub(super) async fn known_authors(ctx: &Ctx, factories: &[Factory], each: usize) -> ScriptedRelay {
    let now = clock::unix_now() - 5_000;
    let at = |n: usize| now - i64::try_from(n).unwrap();
    let of = |factory: &Factory| -> Vec<Event> {
        (0..each).map(|n| factory.sign(n, 1, vec![], "elsewhere", at(n))).collect()
    };
    let events: Vec<Event> = factories.iter().flat_map(of).collect();
    let (relay, url) = relay(ctx, Script::honest(&events, 500)).await;
    sync(ctx, &url).await;
    relay
}

#[tokio::test]
async fn a_relay_that_wants_authors_is_walked_by_authors_known_anywhere_and_never_counts_as_whole() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let factories: Vec<Factory> = (750..754).map(Factory::new).collect();
    let _elsewhere = known_authors(&ctx, &factories, 40).await;
    let now = clock::unix_now() - 500;
    let note = |n: usize| {
        let (author, at) = (n % 160, now - 60 * i64::try_from(n).unwrap());
        factories[author / 40].sign(author % 40, 1, vec![], &format!("note {n}"), at)
    };
    let mut events: Vec<Event> = (0..640).map(note).collect();
    events.push(Factory::new(755).sign(0, 1, vec![], "by an author nobody knows", now));
    let speech = Speech { needs_one_of: vec!["authors", "#p", "#e"], ..Speech::default() };
    let (picky, url) = relay(&ctx, Script::honest(&events, 100).speaking(speech)).await;
    run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap();
    let seen = "SELECT concat_ws(' ', measured -> 'without_kinds' ->> 'seen', measured -> 'with_kinds' ->> 'seen', measured -> 'with_authors' ->> 'seen') FROM relay_capability";
    assert_eq!(value(&test, seen).await, "refused refused works");
    let report = sync(&ctx, &url).await;
    // One full batch: what is left of the authors is not enough for another.
    assert_eq!((&report["new_events"], &report["end"]), (&400.into(), &"up to date".into()), "{report}");
    let classes = value(&test, "SELECT string_agg(DISTINCT regexp_replace(class, '[0-9a-f]{16}', 'X') || ' ' || grade, ', ') FROM coverage WHERE class <> 'all'").await;
    assert_eq!(classes, "authors:X walked");
    assert_eq!(
        value(&test, "SELECT count(DISTINCT relay_id)::text FROM coverage WHERE class = 'all'").await,
        "1"
    );
    assert!(
        picky
            .requests()
            .iter()
            .rev()
            .take(5)
            .all(|filter| filter["authors"].as_array().is_some_and(|a| a.len() == 100))
    );
    // Forty more make it full, and what the first means stays what it was.
    let batch = "SELECT string_agg(class, ' ' ORDER BY begun_at, class) FROM relay_batch";
    let first = value(&test, batch).await;
    test.execute("UPDATE relay_batch SET begun_at = begun_at - 10").await;
    let _another = known_authors(&ctx, &[Factory::new(756)], 40).await;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["new_events"], &report["end"]), (&240.into(), &"up to date".into()), "{report}");
    let both = value(&test, batch).await;
    assert!(both.starts_with(&first) && both.len() == 2 * first.len() + 1, "{first}: {both}");
    assert_eq!(
        value(&test, "SELECT string_agg(cardinality(pubkeys)::text, ' ') FROM relay_batch").await,
        "100 100"
    );
    let before = picky.counts().reqs;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["new_events"], picky.counts().reqs - before <= 10), (&0.into(), true), "{report}");
}

#[tokio::test]
async fn a_relay_that_wants_to_know_who_is_mentioned_is_walked_by_that() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let factory = Factory::new(77);
    let _elsewhere = known_authors(&ctx, std::slice::from_ref(&factory), 20).await;
    let now = clock::unix_now() - 500;
    let to = |n: usize| vec![vec!["p".to_owned(), factory.author(n % 25).public_key().to_hex()]];
    let events: Vec<_> = (0..50)
        .map(|n| {
            factory.sign(100 + n, 1, to(n), &format!("to somebody {n}"), now - 60 * i64::try_from(n).unwrap())
        })
        .collect();
    let speech = Speech { needs_one_of: vec!["#p"], ..Speech::default() };
    let (picky, url) = relay(&ctx, Script::honest(&events, 100).speaking(speech)).await;
    run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap();
    let report = sync(&ctx, &url).await;
    // Of 25 people mentioned the archive knows 20.
    assert_eq!((&report["new_events"], &report["end"]), (&40.into(), &"up to date".into()), "{report}");
    assert!(picky.requests().last().unwrap()["#p"].is_array());
    let classes = value(
        &test,
        "SELECT string_agg(DISTINCT left(class, 9) || ' ' || grade, ', ') FROM coverage WHERE class <> 'all'",
    )
    .await;
    assert_eq!(classes, "mentions: walked");
}

/// The event under a signature that is none.
fn forged(event: &Event) -> Stored {
    let mut value: Value = serde_json::from_str(&event.as_json()).unwrap();
    value["sig"] = "ab".repeat(64).into();
    Stored::raw(value.to_string())
}

#[tokio::test]
async fn a_pass_that_ends_for_forgeries_is_not_begun_again_at_once() {
    let Some(test) = migrated().await else { return };
    let forgery = ForgeryLimit { floor: 20, percent: 20, days: 30 };
    let ctx = context(&test, JobsConfig { forgery, ..again() });
    let events = Factory::new(79).events(200);
    let forge = |count: usize| -> Vec<Stored> {
        let newest = events.len() - count;
        let mut sorted = events.clone();
        sorted.sort_by_key(|event| event.created_at);
        let one = |(n, event): (usize, &Event)| if n >= newest { forged(event) } else { event.into() };
        sorted.iter().enumerate().map(one).collect()
    };
    let (_relay, url) = relay(&ctx, Script::of_stored(forge(40), 100)).await;
    // Of all that this relay brought lately it is little: it is not set aside.
    test.execute(
        "INSERT INTO relay_aside SELECT id, extract(epoch FROM now())::bigint, 100000, 10 FROM relay; SELECT schedule_reconcile()",
    )
    .await;
    let report = sync(&ctx, &url).await;
    assert!(report["forged"].as_u64() >= Some(40) && report["end"] != "set aside", "{report}");
    let due = "SELECT (due_at > now() + interval '30 s')::text FROM schedule WHERE kind = 'sync'";
    assert_eq!(value(&test, due).await, "true", "{report}");
}

#[tokio::test]
async fn a_relay_that_forges_is_set_aside_and_looked_at_until_somebody_forgives_it() {
    let Some(test) = migrated().await else { return };
    let forgery = ForgeryLimit { floor: 50, percent: 20, days: 30 };
    let ctx = context(&test, JobsConfig { forgery, ..again() });
    let events = Factory::new(78).events(400);
    let forge = |every: usize| -> Vec<Stored> {
        let one = |(n, event): (usize, &Event)| {
            if n % every == 0 { forged(event) } else { event.into() }
        };
        events.iter().enumerate().map(one).collect()
    };
    let (_honest, honest) = relay(&ctx, Script::honest(&events, 500)).await;
    sync(&ctx, &honest).await;
    // One in ten is borne, whatever their number.
    let (liar, url) = relay(&ctx, Script::of_stored(forge(10), 100)).await;
    for _ in 0..2 {
        let report = sync(&ctx, &url).await;
        assert_eq!(report["end"], "up to date", "{report}");
    }
    assert_eq!(value(&test, "SELECT concat_ws(' ', forged >= 80, until_at) FROM relay_aside").await, "t");
    let held = value(&test, "SELECT count(*)::text FROM event_relay").await;
    // One in two is not: the pass ends where that shows.
    liar.set(Script::of_stored(forge(2), 100));
    test.execute("DELETE FROM relay_aside; SELECT schedule_reconcile()").await;
    let before = liar.counts().reqs;
    let report = sync(&ctx, &url).await;
    assert_eq!(report["end"], "set aside", "{report}");
    assert!(liar.counts().reqs - before <= 2, "{:?}", liar.counts());
    assert_eq!(value(&test, "SELECT why || (due_at > now() + interval '20 hours') FROM schedule WHERE kind = 'sync' AND why = 'set aside'").await, "set asidetrue");
    let (before, report) = (liar.counts(), sync(&ctx, &url).await);
    assert_eq!((&report["skipped"], liar.counts()), (&"set aside for what it forges".into(), before));
    assert_eq!(
        run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap()["state"],
        "alive",
        "looked at as before"
    );
    // What is held, of it and of others, stays.
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_relay").await, held);
    assert_eq!(value(&test, "SELECT count(*)::text FROM event WHERE fate = 0").await, "400");
    let (reader, writer) = (test.url(Role::Reader), test.url(Role::Writer));
    let show = |as_json: bool| {
        let mut arguments = vec!["relay", "show", url.as_str(), "--database-url", &reader];
        arguments.extend(as_json.then_some("--json"));
        String::from_utf8_lossy(&bigbrotr(&arguments).stdout).into_owned()
    };
    let said = show(false);
    assert!(said.contains("events were forged: not synced since"), "{said}");
    // The page that was on its way counts, too.
    assert_eq!(serde_json::from_str::<Value>(&show(true)).unwrap()["set_aside"]["forged"], 100, "{said}");
    let forgive =
        || bigbrotr(&["relay", "forgive", url.as_str(), "--why", "restored", "--database-url", &writer]);
    assert_eq!(forgive().status.code(), Some(0));
    assert_eq!(forgive().status.code(), Some(1), "it is set aside no more");
    assert_eq!(
        value(&test, "SELECT string_agg(action || ' ' || why, ',') FROM operation WHERE jobs > 0").await,
        "forgive restored"
    );
    assert_eq!(value(&test, "SELECT string_agg((due_at <= now())::text, ',') FROM schedule WHERE kind = 'sync' AND why = 'forgiven'").await, "true");
    liar.set(Script::honest(&events, 100));
    assert_eq!(sync(&ctx, &url).await["end"], "up to date");
    // A period that is over does the same.
    test.execute("INSERT INTO relay_aside SELECT id, 1, 10, 10, 1, 2 FROM relay").await;
    assert_eq!(sync(&ctx, &url).await["end"], "up to date");
}

#[tokio::test]
async fn the_next_page_is_asked_for_while_the_last_one_is_stored() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(79).events(300);
    let (relay, url) = relay(&ctx, Script::honest(&events, 100)).await;
    let mut held = test.connect(Role::Superuser).await;
    let run_sql = async |held: &mut sqlx::PgConnection, sql: &'static str| {
        sqlx::raw_sql(sql).execute(held).await.unwrap();
    };
    run_sql(&mut held, "BEGIN; LOCK TABLE event IN SHARE MODE").await;
    let watch = async {
        for _ in 0..200 {
            if relay.counts().reqs >= 2 {
                break;
            }
            // bound: 200 × 10 ms.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let stored = value(&test, "SELECT count(*)::text FROM event_relay").await;
        // Longer than a page takes: no third one is asked for.
        tokio::time::sleep(Duration::from_millis(200)).await; // bound: one.
        let asked = relay.counts().reqs;
        run_sql(&mut held, "ROLLBACK").await;
        (stored, asked)
    };
    let (report, seen) = tokio::join!(sync(&ctx, &url), watch);
    assert_eq!(seen, ("0".to_owned(), 2), "{report}");
    assert_eq!((&report["new_events"], &report["proved_share"]), (&300.into(), &1.0.into()), "{report}");
}
