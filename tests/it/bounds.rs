//! What is removed, moved, filled and dated ahead stays within bounds.

use std::process::{Command, Stdio};
use std::time::Duration;

use shared::db::Pace;
use shared::jobs::{JobError, JobsConfig};
use shared::models::JobKind;
use sqlx::Row as _;
use tests::factory::Factory;
use tests::pg::{Role, TestDb};
use tests::scripted::{Script, ScriptedRelay};

use super::fleet::binary;
use super::jobs::{config, context, known_relay, run as perform};
use super::keep::led;
use super::locks::{open, run};
use super::operator::says;
use super::retention::archive;
use super::rollup::storm;
use super::support::{handle, migrated, value};

const RELAY: &str = "wss://one.example";

/// One author's notes, a second apart: all on the first relay, every fiftieth on the second, the first and last ten on the third.
const MUCH: &str = "
    SELECT relay_insert('{wss://one.example,wss://two.example,wss://three.example}', '{clearnet,clearnet,clearnet}', '{1,1,1}');
    CREATE TABLE x AS SELECT n, sha256(n::text::bytea) AS id, 1700000000::bigint + n AS at FROM generate_series(1, 24000) n;
    SELECT event_insert(array_agg(id), array_agg(natural_key(at, id)), array_agg(at), array_agg(sha256('author')), array_agg(1),
                        array_agg('[]'::bytea), array_agg(''::bytea), array_agg(id || id), array_agg(NULL::bytea), array_agg('{}'::text)) FROM x;
    SELECT event_relay_insert(array_agg(x.id), array_agg(natural_key(x.at, x.id)), array_agg(r.id), array_agg(5::bigint), array_agg(0::smallint))
        FROM x JOIN relay r ON r.url = 'wss://one.example' OR r.url = 'wss://two.example' AND n % 50 = 0
                            OR r.url = 'wss://three.example' AND (n < 11 OR n > 23990);
    SELECT all_statistics_refresh()";

/// Removes these, and says how many rows of events and observations were read for it.
async fn removal(test: &TestDb, which: &'static str) -> i64 {
    let sql = format!(
        "SELECT event_fate_set(array_agg(id), array_agg(natural_key(at, id)), 2::smallint) FROM x WHERE {which}"
    );
    let mut connection = open(test, &sql).await;
    let read = "SELECT sum(idx_tup_fetch + seq_tup_read)::bigint AS n FROM pg_stat_xact_user_tables WHERE relname ~ '^event_(relay_)?(default|[0-9]{6})$'";
    let read: i64 = sqlx::query(read).fetch_one(&mut connection).await.unwrap().get("n");
    run(&mut connection, "COMMIT").await.unwrap();
    read
}

#[tokio::test]
async fn what_lies_between_two_that_go_is_passed_once_and_not_all_their_author_wrote() {
    let Some(test) = migrated().await else { return };
    test.execute(MUCH).await;
    for first in ["n = 50", "n = 100", "n = 150", "n = 24000", "n = 23950"] {
        let read = removal(&test, first).await;
        assert!(read < 2_000, "{read} rows were read to find the next one, fifty further on ({first})");
    }
    assert_eq!(value(&test, "SELECT count(*)::text FROM rollup_check()").await, "0");
    // Where there is nothing in between but what others have, that is read: once, and for all relays at once.
    let read = removal(&test, "n < 11").await;
    assert!((24_000..60_000).contains(&read), "{read} rows");
    let read = removal(&test, "n = 23991").await;
    assert!(read < 2_000, "{read} rows were read for the first of the last ten");
    assert_eq!(value(&test, "SELECT count(*)::text FROM rollup_check()").await, "0");
    let ends = "SELECT string_agg(relay_id || ' ' || events || ' ' || first_at - 1700000000 || ' ' || last_at - 1700000000, ', ' ORDER BY relay_id)
                FROM rollup_relay_author";
    assert_eq!(value(&test, ends).await, "1 23984 11 23999, 2 8 23992 23999, 3 475 200 23900");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollups_are_exact_where_every_author_wrote_much() {
    let few = "CREATE OR REPLACE FUNCTION rollup_much() RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 2::bigint'";
    storm(77, few).await;
}

#[tokio::test]
async fn a_month_that_much_lies_of_is_left_alone_and_keeps_nothing_else_from_being_made() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    archive(&db, RELAY, &Factory::new(171).events(1)).await;
    // Dated two months ahead of what is made: 200,001 observations, and what they are of does not matter here.
    test.execute(
        "CREATE TABLE m AS SELECT date_trunc('month', now() AT TIME ZONE 'UTC') + interval '3 months' AS at;
         INSERT INTO event_relay (relay_id, event_key, seen_at, evidence)
         SELECT 1, (extract(epoch FROM m.at)::bigint << 31) + n, 5, 0 FROM m CROSS JOIN generate_series(1, 200001) n",
    )
    .await;
    let made = "SELECT partition_maintain(extract(epoch FROM now())::bigint, 1000, (SELECT at AT TIME ZONE 'UTC' - interval '1 month' FROM m))::text";
    let there = "SELECT (to_regclass('event_' || to_char(m.at, 'YYYYMM')) IS NOT NULL) || ' ' || (to_regclass('event_' || to_char(m.at - interval '1 month', 'YYYYMM')) IS NOT NULL)
                 || ' ' || (to_regclass('relay_check_' || to_char(m.at - interval '1 month', 'YYYYMMDD')) IS NOT NULL) FROM m";
    assert_ne!(value(&test, made).await, "0");
    assert_eq!(value(&test, there).await, "false true true", "the month before it, and the days, are there");
    assert_eq!(value(&test, made).await, "0");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_relay_default").await, "200001");
    let heavy =
        "SELECT coalesce(string_agg(h, ' '), '') FROM m CROSS JOIN month_heavy(0, m.at AT TIME ZONE 'UTC') h";
    assert_eq!(value(&test, heavy).await, value(&test, "SELECT to_char(at, 'YYYY-MM') FROM m").await);
    test.execute("SELECT month_ensure(extract(epoch FROM at AT TIME ZONE 'UTC')::bigint) FROM m").await;
    assert_eq!(value(&test, heavy).await, "");
    assert_eq!(value(&test, there).await, "true true true");
}

#[tokio::test]
async fn doctor_names_the_month_that_only_an_operator_makes() {
    let Some(test) = migrated().await else { return };
    let (_, said) = says(&test, Role::Reader, &["doctor"]);
    assert!(
        !said.contains("month_ensure") && said.contains("nothing rests before the disk is full"),
        "{said}"
    );
    test.execute(
        "DROP TABLE IF EXISTS event_202101, event_relay_202101;
         INSERT INTO event_relay (relay_id, event_key, seen_at, evidence)
         SELECT 1, (1610000000::bigint << 31) + n, 5, 0 FROM generate_series(1, 200001) n",
    )
    .await;
    let (_, said) = says(&test, Role::Reader, &["doctor"]);
    let line = said.lines().find(|line| line.contains("month_ensure")).unwrap_or_default();
    assert!(line.starts_with("note") && line.contains("2021-01"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_rollups_will_take_counts_as_taken() {
    let Some(test) = migrated().await else { return };
    let bytes: u64 = value(&test, "SELECT pg_database_size(current_database())::text").await.parse().unwrap();
    // Room for 50 MB before syncing rests, and a million observations that no refresh has counted.
    let max = (bytes + 50_000_000) * 10 / 9;
    let ctx = context(&test, JobsConfig { archive_max_bytes: Some(max), ..config() });
    let relay = ScriptedRelay::start(Script::honest(&Factory::new(1).events(5), 20)).await;
    let url = known_relay(&ctx.db, &relay).await;
    test.execute("INSERT INTO rollup_delta (op, n, keys, relays) VALUES (1, 1000000, '{}', '{}'), (0, 1000000, '{}', NULL)").await;
    let error = perform(&ctx, JobKind::Sync, url.as_str()).await.unwrap_err();
    assert!(matches!(&error, JobError::Snooze { why, .. } if why.contains("size limit")), "{error}");
    for from in [
        "SELECT (bytes - pg_database_size(current_database()) BETWEEN 123000000 AND 125000000)::text FROM archive_room()",
        "SELECT (bytes - pg_database_size(current_database()) BETWEEN 123000000 AND 125000000)::text FROM archive_get(NULL)",
    ] {
        assert_eq!(value(&test, from).await, "true", "{from}");
    }
    let gb = format!("{:.6}", f64::from(u32::try_from(max / 1_000).unwrap()) / 1e6);
    let (mut scheduler, metrics) = led(&test, &[("BIGBROTR_ARCHIVE_MAX_GB", &gb)]).await;
    let rests = |shown: &str| shown.contains("bigbrotr_archive_rests{kind=\"\",network=\"\",outcome=\"\"} 1");
    assert!(rests(&metrics.encode()), "{}", metrics.encode());
    scheduler.release().await.unwrap();
    test.execute("DELETE FROM rollup_delta; UPDATE archive_size SET measured_at = now() - interval '1 hour'")
        .await;
    perform(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lightening_waits_for_whoever_is_in_its_way_and_goes_on_where_it_was() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let events = Factory::new(172).events(40);
    archive(&db, RELAY, &events).await;
    test.execute("DELETE FROM event_unmined; UPDATE archive_setting SET light = true, light_at = now()")
        .await;
    assert_eq!(db.archive_lighten(&mut Pace::of(15)).await.unwrap(), (15, 15));
    let cursor = "SELECT coalesce(max(cursor_key), -1)::text FROM archive_cursor WHERE name = 'bodies'";
    let there = value(&test, cursor).await;
    test.execute("SELECT archive_mode_set(true, 'somebody', 'who asks again')").await;
    assert!(there != "-1" && value(&test, cursor).await == there, "it goes on there");
    // One that a batch cannot have: the command is begun again, and comes by it when it is free.
    test.execute(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET lock_timeout = ''200ms''', current_database()); END $$",
    )
    .await;
    let mut holder =
        open(&test, "SELECT FROM event WHERE event_key = (SELECT max(event_key) FROM event) FOR UPDATE")
            .await;
    let mut command = Command::new(binary("bigbrotr"));
    command
        .args([
            "--database-url",
            &test.url(Role::Writer),
            "--json",
            "archive",
            "lighten",
            "--yes",
            "--why",
            "small",
        ])
        .stdout(Stdio::piped());
    let mut process = command.spawn().unwrap();
    // bound: longer than a few times the time limit of its locks
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(process.try_wait().unwrap().is_none(), "it waits");
    run(&mut holder, "COMMIT").await.unwrap();
    let output = process.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("\"stripped\":25"), "{said}");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event WHERE content IS NOT NULL").await, "0");
    // What came to its end begins anew, and so does what was undone meanwhile.
    assert_eq!(value(&test, cursor).await, "-1");
    db.archive_lighten(&mut Pace::of(15)).await.unwrap();
    let (code, _) = says(&test, Role::Writer, &["archive", "keep-bodies", "--why", "more disk"]);
    assert_eq!((code, value(&test, cursor).await.as_str()), (0, "-1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_dated_ahead_are_counted_and_shown() {
    let Some(test) = migrated().await else { return };
    let (db, factory, now) = (handle(&test, Role::Writer), Factory::new(173), shared::clock::unix_now());
    let event = |i: usize, at: i64| factory.sign(i, 1, vec![], &at.to_string(), at);
    let (_, said) = says(&test, Role::Reader, &["doctor"]);
    assert!(!said.contains("events_ahead"), "{said}");
    archive(
        &db,
        RELAY,
        &[
            event(1, now),
            event(2, now + 600),
            event(3, now + 7_200),
            event(4, now + 400 * 86_400),
            event(5, i64::from(u32::MAX) + 77),
        ],
    )
    .await;
    let shown = "SELECT string_agg(created_at || ' ' || seen_at, ', ' ORDER BY created_at) FROM events_ahead";
    let (hour, year) = (now + 7_200, now + 400 * 86_400);
    let seen = value(&test, "SELECT min(seen_at)::text FROM event_relay").await;
    assert_eq!(
        value(&test, shown).await,
        format!("{hour} {seen}, {year} {seen}, 4294967372 {seen}"),
        "whoever is a quarter of an hour ahead has a clock that is wrong"
    );
    let (_, said) = says(&test, Role::Reader, &["doctor"]);
    assert!(said.contains("3 archived events are dated more than 15 minutes ahead"), "{said}");
    let (_scheduler, metrics) = led(&test, &[]).await;
    let line = "bigbrotr_archive_events_ahead{kind=\"\",network=\"\",outcome=\"\"} 3";
    assert!(metrics.encode().contains(line), "{}", metrics.encode());
}
