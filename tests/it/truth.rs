//! What coverage may claim, against relays that serve what is none, what is forged, or nothing at all.

use nostr::event::Event;
use serde_json::{Value, json};
use shared::db::ExportScope;
use shared::jobs::{Ctx, JobsConfig};
use shared::models::{Coverage, GapReason, Grade, Interval, JobKind, RelayUrl};
use tests::factory::Factory;
use tests::hostile;
use tests::pg::{Role, TestDb};
use tests::scripted::{Answer, Extra, Script, ScriptedRelay, Sets, Speech, Stored};

use super::jobs::{config, context, known_relay, run};
use super::support::{handle, migrated, value};

async fn scripted(ctx: &Ctx, script: Script) -> (ScriptedRelay, RelayUrl) {
    let relay = ScriptedRelay::start(script).await;
    let url = known_relay(&ctx.db, &relay).await;
    (relay, url)
}

async fn sync(ctx: &Ctx, url: &RelayUrl) -> Value {
    run(ctx, JobKind::Sync, url.as_str()).await.unwrap()
}

async fn coverage(ctx: &Ctx, url: &RelayUrl) -> Coverage {
    let relay = ctx.db.relay_get(url, "test").await.unwrap().unwrap();
    ctx.db.coverage_get(relay.id, "all").await.unwrap()
}

fn second(event: &Event) -> i64 {
    i64::try_from(event.created_at.as_secs()).unwrap()
}

fn proves(coverage: &Coverage, at: i64) -> bool {
    coverage.at(at).is_some_and(|known| known.grade().is_proof())
}

async fn gaps(test: &TestDb) -> String {
    value(test, "SELECT coalesce(string_agg(DISTINCT grade || '/' || reason, ' '), '') FROM coverage WHERE grade NOT IN ('walked', 'finished')").await
}

/// The text of an event with a kind that no event has.
fn of_no_kind(event: &Event) -> Stored {
    let kind = format!("\"kind\":{},", event.kind.as_u16());
    let text = event.as_json();
    assert!(text.contains(&kind), "{text}");
    Stored::raw(text.replacen(&kind, "\"kind\":70000,", 1))
}

/// The text of an event with a key twice, of which not even the time counts.
fn doubled(event: &Event) -> Stored {
    Stored::raw(event.as_json().replacen('{', "{\"content\":\"\",", 1))
}

#[tokio::test]
async fn events_that_cannot_be_read_are_no_empty_page() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(71).events(700);
    // Newer than all that is readable, and as many as a page takes.
    let stored = |spoil: fn(&Event) -> Stored| {
        let (newest, older) = events.split_at(600);
        newest.iter().map(spoil).chain(older.iter().map(Stored::from)).collect::<Vec<_>>()
    };
    let (_of_no_kind, url) = scripted(&ctx, Script::of_stored(stored(of_no_kind), 500)).await;
    let report = sync(&ctx, &url).await;
    // Some of them come again in a sample.
    let unreadable = report["bad"]["range"].as_u64().unwrap();
    assert!(report["new_events"] == 100 && (601..=650).contains(&unreadable), "{report}");
    let known = coverage(&ctx, &url).await;
    assert!(events[..600].iter().all(|event| !proves(&known, second(event))), "{known:?}");
    assert!(events[600..].iter().all(|event| proves(&known, second(event))), "{known:?}");
    assert_eq!(gaps(&test).await, "partial/protocol");
    // Where not even the time can be read there is nothing to page by, and nothing is proved.
    let (_doubled, url) = scripted(&ctx, Script::of_stored(stored(doubled), 500)).await;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["proved_share"], &report["bad"]["shape"]), (&0.0.into(), &500.into()), "{report}");
    assert_eq!(gaps(&test).await, "partial/protocol");
    // In the midst of others it is as narrow as its neighbours allow.
    let mixed =
        events.iter().enumerate().map(|(i, event)| if i == 50 { doubled(event) } else { event.into() });
    let (_mixed, url) = scripted(&ctx, Script::of_stored(mixed.collect(), 500)).await;
    sync(&ctx, &url).await;
    let known = coverage(&ctx, &url).await;
    let unproved: Vec<usize> = (0..700).filter(|i| !proves(&known, second(&events[*i]))).collect();
    assert_eq!(unproved, [49, 50, 51]);
}

#[tokio::test]
async fn forged_events_are_counted_and_lose_nothing_else() {
    let Some(test) = migrated().await else { return };
    // The oldest and the newest are forged too; with a hint at the end, one claim covers them all.
    for (seed, hints) in [(5, false), (6, true)] {
        let ctx = context(&test, config());
        let events = Factory::new(seed).events(31);
        let forge = |(i, event): (usize, &Event)| match i % 3 {
            0 => Stored::raw(hostile::with_bad_id(event)),
            1 => Stored::from(event),
            _ => Stored::raw(hostile::with_bad_signature(event)),
        };
        let script = Script::of_stored(events.iter().enumerate().map(forge).collect(), 500);
        let (_relay, url) = scripted(&ctx, script.speaking(Speech { hints, ..Speech::default() })).await;
        let report = sync(&ctx, &url).await;
        assert_eq!(
            (&report["new_events"], &report["new_observations"]),
            (&10.into(), &10.into()),
            "{report}"
        );
        let bad = |what: &str| report["bad"][what].as_u64().unwrap();
        assert!(bad("bad_id") >= 11 && bad("bad_signature") >= 10, "{report}");
        // What does not verify leaves no proof where it stood, and the latest page of the walk does not bring it back.
        let known = coverage(&ctx, &url).await;
        for (i, event) in events.iter().enumerate().filter(|(i, _)| i % 3 != 1) {
            assert!(!proves(&known, second(event)), "{i}, hints {hints}: {known:?}");
        }
        let before = second(&events[30]) - 1;
        assert!(proves(&known, before) && proves(&known, second(&events[0]) + 1), "{known:?}");
        assert_eq!(gaps(&test).await, "partial/protocol");
    }
    assert_eq!(value(&test, "SELECT count(*)::text FROM event").await, "20");
}

#[tokio::test]
async fn what_is_forged_for_a_time_that_no_calendar_holds_breaks_no_view() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let (reader, events) = (handle(&test, Role::Reader), Factory::new(7).events(5));
    let far = Factory::new(7).sign(1, 1, vec![], "the far future", 9_000_000_000_000_000);
    let stored =
        [Stored::raw(hostile::with_bad_signature(&far))].into_iter().chain(events.iter().map(Stored::from));
    let (_relay, url) = scripted(&ctx, Script::of_stored(stored.collect(), 500)).await;
    let report = sync(&ctx, &url).await;
    assert_eq!(report["bad"]["bad_signature"], 1, "{report}");
    let ahead = "SELECT count(*)::text FROM coverage WHERE until_at > extract(epoch FROM now()) + 60";
    assert_eq!((value(&test, ahead).await, gaps(&test).await), ("0".to_owned(), String::new()));
    let months = reader.relay_months(&url).await.unwrap();
    // Nor does what a version before left there.
    test.execute("INSERT INTO coverage SELECT relay_id, class, 9000000000000000, 9000000000000000, 'partial', 'protocol', observed_at FROM coverage LIMIT 1").await;
    assert_eq!(reader.relay_months(&url).await.unwrap(), months);
    assert!(!months.is_empty() && reader.relay_shares(&url).await.is_ok());
}

#[tokio::test]
async fn a_greeting_does_not_make_a_quiet_relay_an_interrupted_one() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    for (words, end, share) in [
        ("Welcome to our relay!", "up to date", 1.0),
        ("ERROR: database is away", "interrupted", 0.0),
        ("payment required", "refused", 0.0),
        ("you are not on the whitelist", "refused", 0.0),
    ] {
        let mut script = Script::honest(&[], 500);
        script.greeting = vec![json!(["NOTICE", words]).to_string()];
        let (_relay, url) = scripted(&ctx, script).await;
        let report = sync(&ctx, &url).await;
        assert_eq!((&report["end"], &report["proved_share"]), (&end.into(), &share.into()), "{report}");
    }
}

#[tokio::test]
async fn what_is_dense_is_not_split_after_a_refusal_and_a_raised_until_reaches_it() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let factory = Factory::new(72);
    let mut events = factory.events(200);
    let at = shared::clock::unix_now() - 86_400;
    events.extend(factory.dense(150, at));
    let exclusive = Speech { exclusive_until: true, ..Speech::default() };
    let (relay, url) = scripted(&ctx, Script::honest(&events, 100).speaking(exclusive)).await;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["new_events"], &report["dense_seconds"]), (&350.into(), &1.into()), "{report}");
    let asked = relay.requests();
    let first = asked.iter().position(|filter| filter["kinds"].is_array()).unwrap();
    assert_eq!((&asked[first]["since"], &asked[first]["until"]), (&at.into(), &(at + 1).into()));

    let (relay, url) = scripted(&ctx, Script::honest(&events, 100)).await;
    sync(&ctx, &url).await;
    let first = relay.requests().iter().position(|filter| filter["kinds"].is_array()).unwrap() + 1;
    let number = u64::try_from(first).unwrap();
    assert!(relay.counts().reqs > number + 1, "more would be asked");
    let refusing = Script::honest(&events, 100).closing(number, "rate-limited: slow down");
    let (relay, url) = scripted(&ctx, refusing).await;
    let report = sync(&ctx, &url).await;
    assert_eq!((relay.counts().reqs, relay.counts().connections), (number, 1), "{report}");
    assert_eq!(report["end"], "rate limited", "{report}");
    // Nor where the walk itself was refused.
    let (relay, url) =
        scripted(&ctx, Script::honest(&events, 100).closing(number - 1, "rate-limited: no")).await;
    sync(&ctx, &url).await;
    assert_eq!(relay.counts().reqs, number - 1);
}

#[tokio::test]
async fn a_pass_by_kinds_says_nothing_of_what_was_read_again_in_full() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(73).events(50);
    let (relay, url) = scripted(&ctx, Script::honest(&events, 500)).await;
    sync(&ctx, &url).await;
    let marks = "SELECT string_agg(age_s || ' ' || until_at, ',' ORDER BY age_s) FROM relay_revisit WHERE class = 'all'";
    // As if that had been a while ago, so that everything is due.
    test.execute("UPDATE relay_revisit SET until_at = until_at - 345600").await;
    let before = value(&test, marks).await;
    relay.set(Script::honest(&events, 500).speaking(Speech { needs_kinds: true, ..Speech::default() }));
    run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap();
    sync(&ctx, &url).await;
    assert_eq!(value(&test, marks).await, before);
    let by_kinds = "SELECT (count(*) > 0)::text FROM relay_revisit WHERE class LIKE 'kinds:%'";
    assert_eq!(value(&test, by_kinds).await, "true");
}

#[tokio::test]
async fn every_way_of_not_answering_the_question_ends_and_proves_nothing_of_it() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(74).events(1_200);
    let exclusive = Speech { exclusive_until: true, ..Speech::default() };
    let honest = || Script::honest(&events, 500);
    for (name, script, held, gap) in [
        ("oldest_first", honest().answering(Answer::OldestFirst), 500, "partial/unordered"),
        (
            "ignore_filter",
            honest().answering(Answer::IgnoreFilter),
            500,
            "partial/ignores_filter unknown/ignores_filter",
        ),
        ("exclusive_until", honest().speaking(exclusive), 1_200, ""),
        ("pings", honest().answering(Answer::Pings), 0, "unknown/protocol"),
    ] {
        let (relay, url) = scripted(&ctx, script).await;
        test.execute("TRUNCATE coverage").await;
        let report = sync(&ctx, &url).await;
        let known = coverage(&ctx, &url).await;
        assert_eq!(gaps(&test).await, gap, "{name}: {report}");
        let lost = events.iter().filter(|event| proves(&known, second(event))).count();
        assert!(lost <= held, "{name}: {lost} of {held} proved");
        assert_eq!(report["new_observations"], held, "{name}: {report}");
        assert!(relay.counts().reqs <= 12, "{name}: {:?}", relay.counts());
    }
}

#[tokio::test]
async fn a_relay_silent_when_sets_are_to_be_compared_is_paged_and_not_asked_again_for_a_week() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, JobsConfig { rescan: std::time::Duration::ZERO, ..config() });
    let events = Factory::new(75).events(60);
    let works = Speech { negentropy: Extra::Works, sets: Sets::default(), ..Speech::default() };
    let (relay, url) = scripted(&ctx, Script::honest(&events, 500).speaking(works.clone())).await;
    run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap();
    let asked = relay.counts().extras;
    relay.set(Script::honest(&events, 500).speaking(Speech { negentropy: Extra::Silent, ..works }));
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["comparisons"], &report["new_events"]), (&1.into(), &60.into()), "{report}");
    assert_eq!(gaps(&test).await, "");
    assert_eq!(relay.counts().extras, asked + 1);
    let again = sync(&ctx, &url).await;
    assert_eq!((&again["comparisons"], relay.counts().extras), (&0.into(), asked + 1), "{again}");
    let days = "SELECT ((neg_off_until - extract(epoch FROM now())) / 86400)::integer::text FROM relay_sync";
    assert_eq!(value(&test, days).await, "7");
}

#[tokio::test]
async fn an_export_counts_no_coverage_that_was_found_out_later() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let (_relay, url) = scripted(&ctx, Script::honest(&[], 500)).await;
    let relay = ctx.db.relay_get(&url, "test").await.unwrap().unwrap().id;
    let walked = |since, until, at| Interval::new(since, until, Grade::Walked, GapReason::None, at).unwrap();
    let put = async |coverage: &Coverage| {
        let mut connection = test.connect(Role::Superuser).await;
        let parts = coverage.intervals();
        sqlx::query("SELECT coverage_put($1, 'all', $2, $3, $4, $5, $6)")
            .bind(relay)
            .bind(parts.iter().map(Interval::since).collect::<Vec<_>>())
            .bind(parts.iter().map(Interval::until).collect::<Vec<_>>())
            .bind(parts.iter().map(|part| part.grade().as_str()).collect::<Vec<_>>())
            .bind(parts.iter().map(|part| part.reason().as_str()).collect::<Vec<_>>())
            .bind(parts.iter().map(Interval::observed_at).collect::<Vec<_>>())
            .execute(&mut connection)
            .await
            .unwrap();
    };
    let scope = ExportScope { since: 0, until: 10_000, as_of: 20_000, ..ExportScope::default() };
    let said = async || {
        let lines = handle(&test, Role::Reader).export_coverage(&scope).await.unwrap();
        lines
            .iter()
            .map(|line| format!("{}/{} {}", line.grade, line.reason, line.seconds))
            .collect::<Vec<_>>()
    };
    let mut coverage = Coverage::empty();
    coverage.overlay(walked(0, 99, 15_000));
    put(&coverage).await;
    // As if that had been then.
    test.execute("UPDATE coverage SET settled_at = 15000").await;
    assert_eq!(said().await, ["walked/none 100"]);
    // What is found out after it becomes one interval with it, observed when its oldest part was.
    coverage.overlay(walked(100, 199, 30_000));
    assert_eq!(coverage.intervals(), [walked(0, 199, 15_000)]);
    put(&coverage).await;
    assert_eq!(said().await, ["unknown/changed_later 200"]);
}

#[tokio::test]
async fn ids_that_are_not_served_are_remembered_within_a_bound() {
    let Some(test) = migrated().await else { return };
    test.execute("INSERT INTO event_unserved (relay_id, event_id, first_at, last_at) SELECT 1, sha256(x::text::bytea), 1, 100000000 - x FROM generate_series(1, 12000) x").await;
    test.execute("INSERT INTO event_unserved (relay_id, event_id, first_at, last_at) VALUES (1, sha256('old'), 1, 100000000 - 91 * 86400), (2, sha256('old'), 1, 1)").await;
    assert_eq!(value(&test, "SELECT unserved_bound(1, 100000000)::text").await, "2001");
    let left = "SELECT string_agg(n::text, ' ' ORDER BY relay_id) FROM (SELECT relay_id, count(*) AS n FROM event_unserved GROUP BY 1) x";
    assert_eq!(value(&test, left).await, "10000 1");
    assert_eq!(
        value(&test, "SELECT min(last_at)::text FROM event_unserved WHERE relay_id = 1").await,
        "99990000"
    );
}
