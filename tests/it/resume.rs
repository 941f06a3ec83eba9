//! What becomes of a pass that ends before its work does: a value the database refuses, time that is over, a request that is
//! refused or not answered, a relay that serves any part of what it has.

use std::time::Duration;

use shared::jobs::{Attempt, Ctx, Handler as _, JobError, JobsConfig, PageRoom};
use shared::models::JobKind;
use tests::factory::Factory;
use tests::pg::Role;
use tests::scripted::{Answer, Script};
use tokio_util::sync::CancellationToken;

use super::jobs::{config, context, run};
use super::proof::{RESTED, gaps, held, second, start, sync};
use super::support::{claim_one, migrated, value};

/// The disk budget is used up by the first page that is stored.
const FILL_UP: &str = "CREATE FUNCTION fill_up() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN UPDATE archive_setting SET max_bytes = 1; RETURN NULL; END';
    CREATE TRIGGER fill_up AFTER INSERT ON rollup_delta FOR EACH STATEMENT EXECUTE FUNCTION fill_up()";

/// All of a timeline: its end stands still between two passes.
fn whole() -> JobsConfig {
    JobsConfig { archive_days: None, ..config() }
}

#[tokio::test]
async fn a_value_that_the_database_refuses_costs_its_second_and_stops_nothing() {
    let Some(test) = migrated().await else { return };
    test.execute("ALTER TABLE event ADD CONSTRAINT poison CHECK (content <> 'poison')").await;
    let ctx = context(&test, config());
    let factory = Factory::new(212);
    let mut events = factory.events(300);
    let at = [second(&events[120]) - 7, second(&events[200]) - 7];
    events.extend(at.iter().map(|at| factory.sign(1, 1, vec![], "poison", *at)));
    let (_relay, url) = start(&ctx, Script::honest(&events, 100)).await;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["new_events"], &report["quarantined"]), (&300.into(), &2.into()), "{report}");
    assert_eq!(report["end"], "up to date", "{report}");
    let [newer, older] = at;
    assert_eq!(gaps(&test).await, format!("partial/quarantined {older}+1, partial/quarantined {newer}+1"));
    let kept = value(
        &test,
        "SELECT count(*) || ' ' || count(*) FILTER (WHERE reason LIKE '%poison%') FROM event_quarantine",
    )
    .await;
    assert_eq!(kept, "2 2");
    // The row that was at fault is taken once the database takes it.
    test.execute("ALTER TABLE event DROP CONSTRAINT poison").await;
    test.execute(&format!(
        "UPDATE coverage SET observed_at = observed_at - {RESTED} WHERE reason = 'quarantined'"
    ))
    .await;
    sync(&ctx, &url).await;
    assert_eq!((held(&test).await.as_str(), gaps(&test).await.as_str()), ("302", ""));
}

#[tokio::test]
async fn a_pass_whose_time_is_over_goes_on_exactly_there() {
    let Some(test) = migrated().await else { return };
    let ctx = context(
        &test,
        JobsConfig { rescan: Duration::ZERO, sync_time_box: Duration::from_millis(700), ..whole() },
    );
    let events = Factory::new(213).events(400);
    let script = Script { answer: Answer::LateEose(150), ..Script::honest(&events, 50) };
    let (relay, url) = start(&ctx, script).await;
    let mut passes = 0;
    let mut last: Option<i64> = None;
    loop {
        let before = relay.counts().reqs;
        let report = sync(&ctx, &url).await;
        passes += 1;
        if let Some(last) = last {
            // The second page looks below what is proved: the first one at what came since.
            let requests = relay.requests();
            let mut pages =
                requests[usize::try_from(before).unwrap()..].iter().filter(|asked| asked["limit"] != 1);
            // A slow machine comes no further in so short a time.
            if let Some(asked) = pages.nth(1) {
                let until = asked["until"].as_i64().unwrap();
                assert!(
                    (last - 1..=last + 1).contains(&until),
                    "asked {asked} where {last} is the oldest proof"
                );
            }
        }
        if report["end"] == "up to date" {
            break;
        }
        assert_eq!(report["end"], "more to read", "{report}");
        assert!(passes < 20, "{report}");
        let oldest = value(&test, "SELECT min(since_at)::text FROM coverage WHERE grade = 'walked'").await;
        last = oldest.parse::<i64>().ok().filter(|oldest| *oldest > 0).map(|oldest| oldest - 1);
        if last.is_none() {
            // All that is left is to look whether something was hidden.
            continue;
        }
        let mut rest = value(
            &test,
            "SELECT string_agg(grade || '/' || reason, ',') FROM coverage WHERE grade <> 'walked'",
        )
        .await;
        rest.truncate(15);
        assert_eq!(rest, "unknown/stopped");
    }
    assert!(passes > 2, "{passes} passes");
    assert_eq!((held(&test).await.as_str(), gaps(&test).await.as_str()), ("400", ""));
    assert!(relay.counts().events_sent <= 500, "{:?}", relay.counts());
}

/// Whether these gaps are what is older, and the two that a walk which ended there could not ask: the widest, and its sample.
fn left_open(gaps: &str, reason: &str) -> bool {
    gaps.split(", ").count() <= 3 && gaps.split(", ").all(|gap| gap.starts_with(reason))
}

#[tokio::test]
async fn a_request_refused_at_any_place_costs_what_is_older_and_the_next_pass_reads_that() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, whole());
    let events = Factory::new(214).events(200);
    for refused in 1..=7 {
        let script = Script::honest(&events, 50).closing(refused, "error: not now");
        let (_relay, url) = start(&ctx, script).await;
        let report = sync(&ctx, &url).await;
        let gap = gaps(&test).await;
        assert_eq!(
            report["end"],
            if gap.is_empty() { "up to date" } else { "interrupted" },
            "{refused}: {report}"
        );
        assert!(gap.is_empty() || left_open(&gap, "unknown/closed "), "{refused}: {gap}");
        assert!(refused > 4 || !gap.is_empty(), "{refused}");
        let share = sync(&ctx, &url).await["proved_share"].clone();
        assert_eq!((share, gaps(&test).await.as_str()), (1.0.into(), ""), "{refused}");
    }
    assert_eq!(held(&test).await, "200");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_relay").await, "1400");
}

#[tokio::test]
async fn a_relay_that_drips_does_not_have_its_slot_back_at_once() {
    let Some(test) = migrated().await else { return };
    let time_box = Duration::from_secs(2);
    let ctx = context(&test, JobsConfig { sync_time_box: time_box, page_total: time_box / 2, ..whole() });
    let events = Factory::new(218).dense(400, shared::clock::unix_now() - 86_400);
    // From the first request on: given up. From the second on, it is found dripping when the time is up.
    for from in [1, 2] {
        let script = Script::honest(&events, 50).answering(Answer::Drip(100, from));
        let (relay, url) = start(&ctx, script).await;
        let report = sync(&ctx, &url).await;
        assert_eq!(report["end"], "interrupted", "from {from}: {report}");
        assert!(report["new_observations"].as_u64() > Some(3), "what came is kept: {report}");
        assert!(relay.counts().reqs <= 5 + from, "from {from}: {:?}", relay.counts());
    }
}

#[tokio::test]
async fn a_gap_that_brings_nothing_new_rests_twice_as_long_each_time() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, JobsConfig { rescan: Duration::from_secs(60), ..whole() });
    let events = Factory::new(220).events(300);
    let (late, early) = events.split_at(20);
    let (relay, url) = start(&ctx, Script::honest(early, 500).answering(Answer::OldestFirst)).await;
    let first = sync(&ctx, &url).await;
    assert_eq!(
        (&first["new_observations"], gaps(&test).await.contains("partial/unordered")),
        (&280.into(), true)
    );
    let rest = "SELECT coalesce(max(rest_s), 0) / 3600 || ' h' FROM relay_rest";
    // One rest after the other, of six hours each; whether all is read again, and how long it rests from then on.
    let later = format!("UPDATE coverage SET observed_at = observed_at - {RESTED}");
    for (read, rests) in [(false, "0 h"), (true, "12 h"), (false, "12 h"), (true, "24 h")] {
        if rests != "0 h" {
            test.execute(&later).await;
        }
        let report = sync(&ctx, &url).await;
        assert_eq!(report["delivered"].as_u64() > Some(250), read, "{rests}: {report}");
        assert_eq!(value(&test, rest).await, rests, "{report}");
    }
    // What is found begins anew, however much of the page is known.
    relay.set(Script::honest(early.iter().chain(late), 500).answering(Answer::OldestFirst));
    for _ in 0..4 {
        test.execute(&later).await;
    }
    let report = sync(&ctx, &url).await;
    assert_eq!(
        (&report["new_observations"], value(&test, rest).await.as_str()),
        (&20.into(), "6 h"),
        "{report}"
    );
}

#[tokio::test]
async fn a_relay_that_wants_to_be_asked_less_is_asked_less_each_time() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, whole());
    let events = Factory::new(219).events(100);
    let limited = Script::honest(&events, 50).closing(0, "rate-limited: slow down");
    let busy = Script { refuse_upgrade: Some(429), ..Script::honest(&events, 50) };
    let (relay, url) = start(&ctx, limited).await;
    test.execute("INSERT INTO schedule SELECT 'sync', url, 'clearnet', now(), 60, 'new' FROM relay").await;
    let pause = "SELECT why || ' ' || round(extract(epoch FROM due_at - now()) / 900) FROM schedule WHERE kind = 'sync'";
    let mut pauses = Vec::new();
    for pass in 0..3 {
        if pass == 2 {
            relay.set(busy.clone());
        }
        assert_eq!(sync(&ctx, &url).await["end"], "rate limited");
        pauses.push(value(&test, pause).await);
    }
    assert_eq!(pauses, ["rate limited 1", "rate limited 2", "rate limited 4"]);
    assert_eq!(gaps(&test).await.split(' ').next(), Some("unknown/rate_limited"));
    relay.set(Script::honest(&events, 50));
    assert_eq!(sync(&ctx, &url).await["end"], "up to date");
    assert_eq!(value(&test, pause).await, "up to date 1");
}

#[tokio::test]
async fn one_request_without_an_answer_costs_shorter_ones_and_leaves_nothing_unread() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, whole());
    let events = Factory::new(215).events(200);
    for silent in 1..=4 {
        let script = Script { unanswered: Some(silent), ..Script::honest(&events, 50) };
        let (relay, url) = start(&ctx, script).await;
        let report = sync(&ctx, &url).await;
        assert_eq!(
            (&report["end"], &report["proved_share"]),
            (&"up to date".into(), &1.0.into()),
            "{report}"
        );
        assert_eq!(gaps(&test).await, "", "{silent}");
        assert!(relay.counts().reqs <= 50, "{silent}: {:?}", relay.counts());
    }
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_relay").await, "800");
}

#[tokio::test]
async fn of_a_relay_that_serves_any_part_of_what_it_has_nothing_is_called_whole_that_is_not() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(216).events(400);
    let (mut urls, mut relays) = (Vec::new(), Vec::new());
    for seed in 1..=4 {
        let script = Script { answer: Answer::Subset(seed), ..Script::honest(&events, 30) };
        let (relay, url) = start(&ctx, script).await;
        for _ in 0..2 {
            sync(&ctx, &url).await;
            test.execute(&format!(
                "UPDATE coverage SET observed_at = observed_at - {RESTED} WHERE grade = 'partial'"
            ))
            .await;
        }
        urls.push(url);
        // Kept until the end: a port that is free again may be the next one's.
        relays.push(relay);
    }
    // All of it is known from a relay that serves everything.
    let (_whole, url) = start(&ctx, Script::honest(&events, 500)).await;
    assert_eq!(sync(&ctx, &url).await["proved_share"], 1.0);
    let mut connection = test.connect(Role::Superuser).await;
    for url in urls {
        let lost: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM event e
             WHERE NOT EXISTS (SELECT FROM event_relay o JOIN relay r ON r.id = o.relay_id WHERE o.event_key = e.event_key AND r.url = $1)
               AND EXISTS (SELECT FROM coverage c JOIN relay r ON r.id = c.relay_id WHERE r.url = $1
                           AND e.created_at BETWEEN c.since_at AND c.until_at AND c.grade IN ('walked', 'finished', 'reconciled'))",
        )
        .bind(url.as_str())
        .fetch_one(&mut connection)
        .await
        .unwrap();
        assert_eq!(lost, 0, "{url}");
    }
}

#[tokio::test]
async fn pages_of_large_events_share_one_budget_and_none_waits_for_ever() {
    let Some(test) = migrated().await else { return };
    let ctx = Ctx { pages: PageRoom::new(16 << 20), ..context(&test, whole()) };
    let factory = Factory::new(217);
    let now = shared::clock::unix_now();
    // Six million bytes a page, three times what a page may take before one was large.
    let events: Vec<_> = (0..200)
        .map(|n: usize| {
            factory.sign(n, 1, vec![], &"x".repeat(60_000), now - 60 * i64::try_from(n).unwrap() - 90)
        })
        .collect();
    let free = ctx.pages.free();
    let (mut passes, mut relays) = (tokio::task::JoinSet::new(), Vec::new());
    for n in 0..4 {
        let (relay, url) = start(&ctx, Script::honest(&events[n * 10..], 100)).await;
        let worker = format!("w{n}");
        let (claimed, fence) = claim_one(&ctx.db, &worker, JobKind::Sync, url.as_str()).await;
        let (network, target) = (claimed.network, url.to_string());
        let stop = CancellationToken::new();
        let attempt = Attempt { kind: JobKind::Sync, network, target, fence, last: false, stop };
        let ctx = ctx.clone();
        passes.spawn(async move { ctx.run(attempt).await.unwrap() });
        relays.push(relay);
    }
    let (mut least, mut ended) = (free, 0);
    for _ in 0..10_000 {
        least = least.min(ctx.pages.free());
        if let Some(report) = passes.try_join_next() {
            let report = report.unwrap();
            assert_eq!(
                (&report["end"], &report["proved_share"]),
                (&"up to date".into(), &1.0.into()),
                "{report}"
            );
            ended += 1;
        }
        if ended == 4 {
            break;
        }
        // bound: 10,000 × 3 ms
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    assert!(ended == 4 && least == 0, "{ended} passes ended, {least} bytes were left at least");
    assert_eq!((held(&test).await.as_str(), ctx.pages.free()), ("200", free));
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_relay").await, "740");
}

#[tokio::test]
async fn a_pass_ends_when_the_disk_budget_is_reached_while_it_runs_and_goes_on_when_there_is_room() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, JobsConfig { rescan: Duration::ZERO, budget_look: Duration::ZERO, ..whole() });
    let (_relay, url) = start(&ctx, Script::honest(&Factory::new(219).events(400), 20)).await;
    // The first page that is stored fills it.
    test.execute(FILL_UP).await;
    let report = sync(&ctx, &url).await;
    assert_eq!(report["end"], "more to read", "{report}");
    let first = report["new_events"].as_u64().unwrap();
    assert!((20..=80).contains(&first), "one page, and those on their way: {report}");
    assert!(report["proved_share"].as_f64().unwrap() > 0.0, "{report}");
    let rests = run(&ctx, JobKind::Sync, url.as_str()).await;
    assert!(matches!(&rests, Err(JobError::Snooze { why, .. }) if why.contains("size limit")), "{rests:?}");
    test.execute("DROP TRIGGER fill_up ON rollup_delta; UPDATE archive_setting SET max_bytes = NULL").await;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["new_events"], &report["proved_share"]), (&(400 - first).into(), &1.0.into()));
}

#[tokio::test]
async fn a_relay_that_limits_our_rate_when_time_is_up_is_not_asked_again_at_once() {
    let events = Factory::new(221).events(400);
    let mut probe = 0;
    for end in ["more to read", "rate limited"] {
        let Some(test) = migrated().await else { return };
        let ctx =
            context(&test, JobsConfig { rescan: Duration::ZERO, budget_look: Duration::ZERO, ..whole() });
        // The first page that is stored leaves no room: a second is on its way, and what is proved is checked.
        test.execute(FILL_UP).await;
        let script = Script::honest(&events, 20);
        let script = if probe > 0 { script.closing(probe, "rate-limited: slow down") } else { script };
        let (relay, url) = start(&ctx, script).await;
        assert_eq!(sync(&ctx, &url).await["end"], end);
        let asked = relay.requests();
        let gap = asked.iter().position(|filter| filter["limit"] == 1).expect("the widest gap is asked");
        // And a sample, unless it wants to be asked less.
        assert_eq!(asked.len() - gap, if probe == 0 { 2 } else { 1 }, "{asked:?}");
        probe = u64::try_from(gap).unwrap() + 1;
    }
}

#[tokio::test]
async fn a_limit_of_our_rate_is_not_forgotten_for_what_else_is_to_be_checked() {
    let Some(test) = migrated().await else { return };
    let again = JobsConfig { rescan: Duration::from_hours(200), ..config() };
    let ctx = context(&test, again);
    let factory = Factory::new(222);
    let now = shared::clock::unix_now() - 1_000;
    let note = |n: usize| factory.sign(n, 1, vec![], "note", now - 60 * i64::try_from(n).unwrap());
    let events: Vec<_> = (0..40).map(note).collect();
    let mut probe = 0;
    for refuses in [false, true] {
        let (relay, url) = start(&ctx, Script::honest(&events, 500)).await;
        sync(&ctx, &url).await;
        // The oldest, which is watched for, is gone.
        let script = Script::honest(&events[..39], 500);
        let message = "rate-limited: slow down";
        relay.set(if refuses { script.closing(probe, message) } else { script });
        let before = relay.requests().len();
        let report = sync(&ctx, &url).await;
        let asked = relay.requests();
        assert_eq!(report["gone"], i32::from(!refuses), "{report}");
        if refuses {
            assert_eq!((&report["end"], relay.counts().reqs), (&"rate limited".into(), probe), "{asked:?}");
        } else {
            let place = asked[before..].iter().position(|filter| filter["limit"] == 1).unwrap();
            assert!(asked.last().unwrap()["ids"].is_array() && report["end"] == "up to date", "{asked:?}");
            probe = u64::try_from(before + place).unwrap() + 1;
        }
    }
}
