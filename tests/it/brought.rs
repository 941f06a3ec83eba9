//! What comes by files and not from relays: deleted, placed and bounded like everything else, with no sync anywhere.

use std::fs;

use nostr::event::Event;
use serde_json::{Value, json};
use tests::factory::Factory;
use tests::pg::{Role, TestDb};

use super::expiry::round;
use super::keep::led;
use super::retention::archive;
use super::support::{handle, migrated, pairs, value};
use super::transfer::{Folder, export, import};

const DAY_S: i64 = 86_400;
const RELAY: &str = "wss://dumped.example";
const FATES: &str = "SELECT string_agg(fate || coalesce(' ' || convert_from(content, 'UTF8'), ''), ', ' ORDER BY created_at DESC) FROM event";

fn tag(name: &str, value: impl Into<String>) -> Vec<String> {
    vec![name.to_owned(), value.into()]
}

/// Takes these in by a file of their own.
fn bring(test: &TestDb, events: &[Event]) -> (Option<i32>, Value, String) {
    let folder = Folder::new(&format!("brought-{}", events[0].id));
    let file = folder.join("dump.jsonl");
    fs::write(&file, events.iter().map(Event::as_json).collect::<Vec<_>>().join("\n")).unwrap();
    import(test, &[&file, "--relay", RELAY])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_imported_requests_want_deleted_goes_without_a_sync() {
    let Some(test) = migrated().await else { return };
    let factory = Factory::new(151);
    let now = shared::clock::unix_now();
    let named = factory.sign(1, 1, vec![], "named", now - 100);
    let later = factory.sign(1, 1, vec![], "named later", now - 110);
    let author = factory.author(2).public_key().to_hex();
    let held = [
        named.clone(),
        later.clone(),
        factory.sign(2, 30_023, vec![tag("d", "x")], "article", now - 120),
        factory.sign(3, 1, vec![], "of who vanished", now - 130),
        factory.sign(4, 1, vec![], "another's", now - 140),
    ];
    assert_eq!(bring(&test, &held).1["new_events"], 5);
    let asks = [
        factory.sign(1, 5, vec![tag("e", named.id.to_hex())], "1", now - 10),
        factory.sign(2, 5, vec![tag("a", format!("30023:{author}:x"))], "2", now - 20),
        factory.sign(3, 62, vec![tag("relay", "ALL_RELAYS")], "3", now - 30),
    ];
    let (code, found, said) = bring(&test, &asks);
    assert_eq!((code, &found["new_events"], &found["deleted"]), (Some(0), &json!(3), &json!(1)), "{said}");
    let by_id = "0 1, 0 2, 0 3, 2, 0 named later, 0 article, 0 of who vanished, 0 another's";
    assert_eq!(value(&test, FATES).await, by_id, "by id at once");
    // By a way that applies nothing; and a quarter of an hour later the others.
    let ask = factory.sign(1, 5, vec![tag("e", later.id.to_hex())], "4", now - 40);
    let ask = shared::models::Event::parse(&ask.as_json()).unwrap();
    handle(&test, Role::Writer).tombstone_add(&shared::models::tombstones(&ask)).await.unwrap();
    round(&test, &[("BIGBROTR_ARCHIVE_UNKEPT", "expired")]).await;
    assert_eq!(value(&test, FATES).await, by_id, "an operator who keeps them keeps them");
    round(&test, &[]).await;
    assert_eq!(value(&test, FATES).await, by_id.replace("0 named later", "2"));
    test.execute("UPDATE tombstone SET noted_at = now() - interval '16 minutes'").await;
    round(&test, &[]).await;
    assert_eq!(value(&test, FATES).await, "0 1, 0 2, 0 3, 2, 2, 2, 2, 0 another's");
    assert_eq!(value(&test, "SELECT tombstone_waits()::text").await, "false");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_events_of_who_vanishes_are_deleted_by_maintenance_alone() {
    let Some(test) = migrated().await else { return };
    test.execute(
        "SELECT relay_insert('{wss://one.example}', '{clearnet}', '{1}');
         CREATE TEMP TABLE x AS SELECT sha256(n::text::bytea) AS id, 1700000000 + n AS at,
             CASE WHEN n % 2 = 0 THEN sha256('gone') ELSE sha256('stays') END AS author FROM generate_series(1, 20000) n;
         SELECT event_insert(array_agg(id), array_agg(natural_key(at, id)), array_agg(at::bigint), array_agg(author), array_agg(1),
                             array_agg('[]'::bytea), array_agg('held'::bytea), array_agg(id || id), array_agg(NULL::bytea), array_agg('{}'::text)) FROM x;
         SELECT event_relay_insert(array_agg(id), array_agg(natural_key(at, id)), array_agg(1), array_agg(5::bigint), array_agg(0::smallint)) FROM x;
         SELECT all_statistics_refresh();
         SELECT tombstone_add(ARRAY[sha256('gone')], '{2}', '{-1}', ARRAY[''::bytea], '{1800000000}', ARRAY[sha256('request')]);
         UPDATE tombstone SET noted_at = now() - interval '16 minutes'",
    )
    .await;
    // Five seconds of a round are enough, unless the machine has other work.
    for _ in 0..20 {
        round(&test, &[]).await;
        if value(&test, "SELECT tombstone_waits()::text").await == "false" {
            break;
        }
    }
    let fates = pairs(&test, "SELECT fate::text, count(*)::text FROM event GROUP BY 1").await;
    assert_eq!(fates, [("0", "10000"), ("2", "10000")].map(|(f, n)| (f.to_owned(), n.to_owned())).into());
    assert_eq!(value(&test, "SELECT string_agg(settled::text, ' ') FROM tombstone").await, "2");
    test.execute("SELECT all_statistics_refresh()").await;
    assert_eq!(value(&test, "SELECT count(*)::text FROM rollup_check()").await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_size_limit_nothing_is_imported_whoever_set_it() {
    let Some(test) = migrated().await else { return };
    let bytes: f64 = value(&test, "SELECT pg_database_size(current_database())::text").await.parse().unwrap();
    let events = Factory::new(152).events(10);
    let rows = "SELECT (SELECT count(*) FROM event) || ' ' || (SELECT count(*) FROM relay)";
    let (mut scheduler, _) =
        led(&test, &[("BIGBROTR_ARCHIVE_MAX_GB", &format!("{:.6}", bytes / 0.93 / 1e9))]).await;
    let (code, found, said) = bring(&test, &events);
    assert_eq!((code, &found["new_events"]), (Some(1), &json!(0)), "{said}");
    assert!(said.contains("the archive is at its size limit") && said.contains("not imported"), "{said}");
    assert_eq!(value(&test, rows).await, "0 0");
    scheduler.release().await.unwrap();
    // The published one has gone, and the import's own configuration says the same.
    test.execute("UPDATE archive_setting SET max_bytes = NULL").await;
    let folder = Folder::new("at-the-limit");
    let (file, small) = (folder.join("dump.jsonl"), folder.join("small.toml"));
    fs::write(&file, events.iter().map(Event::as_json).collect::<Vec<_>>().join("\n")).unwrap();
    fs::write(&small, "[archive]\nmax_gb = 0.002\n").unwrap();
    let (code, _, said) = import(&test, &["--config", &small, &file, "--relay", RELAY]);
    assert!(code == Some(1) && said.contains("the archive is at its size limit"), "{said}");
    assert_eq!(value(&test, rows).await, "0 0");
    assert_eq!(import(&test, &[&file, "--relay", RELAY]).1["new_events"], 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_older_than_archive_days_lies_in_its_months() {
    let Some(test) = migrated().await else { return };
    let (db, reader) = (handle(&test, Role::Writer), handle(&test, Role::Reader));
    let now = shared::clock::unix_now();
    let days = [("BIGBROTR_ARCHIVE_DAYS", "7")];
    round(&test, &days).await;
    let mut old = Factory::new(153).ending_at(now - 400 * DAY_S).over(40 * DAY_S).events(60);
    old.push(Factory::new(154).sign(1, 1, vec![], "before Nostr", 5));
    old.push(Factory::new(154).sign(2, 1, vec![], "the far end", now + 900 * DAY_S));
    assert_eq!(bring(&test, &old).1["new_events"], 62);
    let absurd = [("event_default", 2), ("event_relay_default", 2)];
    assert_eq!(reader.default_rows(1_000).await.unwrap(), absurd, "an import makes the months");
    // By a way that makes none, as before: maintenance does, of those that hold something.
    archive(&db, RELAY, &Factory::new(155).ending_at(now - 900 * DAY_S).over(70 * DAY_S).events(60)).await;
    assert_eq!(reader.default_rows(1_000).await.unwrap()[0].1, 62);
    let months = "SELECT count(*)::text FROM pg_class WHERE relname ~ '^event_[0-9]{6}$'";
    let before: u64 = value(&test, months).await.parse().unwrap();
    round(&test, &days).await;
    assert_eq!(reader.default_rows(1_000).await.unwrap(), absurd, "and nothing else is left there");
    let made = value(&test, months).await.parse::<u64>().unwrap() - before;
    assert!((2..=4).contains(&made), "{made} months");
    // What lies below a horizon is left where it is: retention takes it.
    test.execute("INSERT INTO archive_horizon (scope, before_at, reason) SELECT 'all', extract(epoch FROM now() - interval '1000 days'), 'age'").await;
    archive(&db, RELAY, &Factory::new(156).ending_at(now - 1_100 * DAY_S).over(DAY_S).events(5)).await;
    round(&test, &days).await;
    assert_eq!(reader.default_rows(1_000).await.unwrap()[0].1, 7);
    // Nor is what would keep everybody waiting moved by itself.
    let light = "SELECT month_is_light(min(created_at), 4) || ' ' || month_is_light(min(created_at), 5) FROM event WHERE created_at > 5";
    assert_eq!(value(&test, light).await, "false true");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_makes_no_more_relays_known_than_strangers_may_name() {
    let Some(test) = migrated().await else { return };
    let Some(source) = migrated().await else { return };
    let events = Factory::new(157).events(6);
    let on = async |event: usize, url: &str| {
        archive(&handle(&source, Role::Writer), url, &events[event..=event]).await;
    };
    on(0, "wss://many.example").await;
    on(1, "wss://gone.example").await;
    on(2, "wss://gone.example").await;
    on(2, "wss://one.example").await;
    on(3, "wss://odd.example:4222").await;
    on(4, "wss://known.example:4222").await;
    on(5, "wss://many.example/n0777").await;
    source
        .execute(
            "SELECT relay_insert(array_agg(url), array_agg('clearnet'::text), array_agg(1::bigint))
             FROM (SELECT 'wss://many.example/n' || lpad(n::text, 4, '0') AS url FROM generate_series(1, 2000) n) x;
             INSERT INTO event_relay (event_key, relay_id, seen_at, evidence) SELECT e.event_key, r.id, 5, 0 FROM event e, relay r
             WHERE r.url LIKE 'wss://many.example/n%' AND e.event_key IN (SELECT o.event_key FROM event_relay o JOIN relay m ON m.id = o.relay_id WHERE m.url = 'wss://many.example')",
        )
        .await;
    let folder = Folder::new("strangers");
    let out = folder.join("a");
    assert_eq!(export(&source, &out, &[]).status.code(), Some(0));
    test.execute(
        "SELECT relay_exclude('{gone.example}', 'opt_out', 'me', '');
         SELECT relay_insert('{wss://known.example:4222}', '{clearnet}', '{1}')",
    )
    .await;
    let (code, found, said) = import(&test, &[&out]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(
        (&found["left_out"], &found["unadmitted"]),
        (&json!({ "excluded": 2, "over_cap": 1_970, "other_port": 1 }), &json!(3)),
        "{found}"
    );
    assert_eq!((&found["new_events"], &found["new_relays"]), (&json!(3), &json!(33)), "{found}");
    let hosts = pairs(&test, "SELECT url_host(url), count(*)::text FROM relay GROUP BY 1").await;
    let wanted = [("known.example", "1"), ("many.example", "32"), ("one.example", "1")];
    assert_eq!(hosts, wanted.map(|(host, n)| (host.to_owned(), n.to_owned())).into());
    assert_eq!(value(&test, "SELECT orphan_event_delete()::text").await, "0");
    // Who names a relay himself is not held to limits, and may not undo an exclusion by it.
    let file = folder.join("dump.jsonl");
    fs::write(&file, events[0].as_json()).unwrap();
    let (_, found, said) = import(&test, &[&file, "--relay", "wss://many.example:4222/mine"]);
    assert_eq!((&found["new_relays"], &found["new_observations"]), (&json!(1), &json!(1)), "{said}");
    fs::write(&file, events[1].as_json()).unwrap();
    let (_, found, said) = import(&test, &[&file, "--relay", "wss://gone.example"]);
    assert_eq!((&found["unadmitted"], &found["new_events"]), (&json!(1), &json!(0)), "{said}");
}
