//! What is kept, whatever way it comes in: by files as by relays, during an export, and behind a policy that has passed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nostr::event::Event;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use shared::db::Pace;
use shared::jobs::JobsConfig;
use shared::models::{JobKind, Retention};
use tests::factory::Factory;
use tests::pg::Role;
use tests::programs::Process;
use tests::scripted::{Script, ScriptedRelay, Stored};

use super::cli::bigbrotr;
use super::fleet::binary;
use super::jobs::{config, context, known_relay, run};
use super::retention::{archive, retire};
use super::scene::signal;
use super::support::{handle, migrated, pairs, value};
use super::transfer::{Folder, export, fill, import};

const DAY_S: i64 = 86_400;
const RELAY: &str = "wss://dumped.example";
/// Every event and what became of it.
const FATES: &str =
    "SELECT encode(id, 'hex'), fate || CASE WHEN content IS NULL THEN '' ELSE ' with a body' END FROM event";

fn kinds(rules: &[&str]) -> Retention {
    Retention { kinds: rules.iter().map(|rule| rule.parse().unwrap()).collect(), ..Retention::default() }
}

fn tag(name: &str, value: impl Into<String>) -> Vec<String> {
    vec![name.to_owned(), value.into()]
}

fn expiration(at: i64) -> Vec<String> {
    tag("expiration", at.to_string())
}

fn dump(folder: &Folder, name: &str, events: &[Event]) -> String {
    let file = folder.join(name);
    let lines: Vec<String> = events.iter().map(Event::as_json).collect();
    fs::write(&file, lines.join("\n")).unwrap();
    file
}

/// One event of every class, of both sides of every policy.
fn everything(factory: &Factory, now: i64) -> Vec<Event> {
    let mine = factory.sign(7, 1, vec![], "to be deleted", now - 20);
    vec![
        factory.sign(0, 1, vec![], "kept", now - 1),
        factory.sign(1, 20_001, vec![], "ephemeral", now - 2),
        factory.sign(2, 4, vec![], "private", now - 3),
        factory.sign(3, 1_059, vec![], "wrapped", now - 4),
        factory.sign(4, 1, vec![vec!["-".to_owned()]], "protected", now - 5),
        factory.sign(5, 1, vec![expiration(now - 50)], "expired", now - 60),
        factory.sign(6, 1, vec![expiration(now + DAY_S)], "not yet", now - 7),
        factory.sign(7, 5, vec![tag("e", mine.id.to_hex())], "", now - 8),
        mine,
        factory.sign(8, 7, vec![], "kept for two days", now - 9),
        factory.sign(9, 7, vec![], "not any more", now - 4 * DAY_S),
        factory.sign(10, 1984, vec![], "not at all", now - 11),
        factory.sign(11, 1, vec![], "before the horizon", now - 100 * DAY_S),
    ]
}

#[tokio::test]
async fn an_import_keeps_what_a_sync_keeps_and_counts_the_rest_by_reason() {
    let Some(test) = migrated().await else { return };
    let Some(other) = migrated().await else { return };
    let now = shared::clock::unix_now() - 100;
    let events = everything(&Factory::new(81), now);
    let retention = Retention { days: Some(40), ..kinds(&["7:2", "1984"]) };
    for test in [&test, &other] {
        let db = handle(test, Role::Writer);
        db.retention_put(&retention, false).await.unwrap();
        retire(&db).await;
    }
    let ctx = context(&other, JobsConfig { archive_days: None, ..config() });
    let relay = ScriptedRelay::start(Script::of_stored(events.iter().map(Stored::from).collect(), 500)).await;
    let url = known_relay(&ctx.db, &relay).await;
    let synced = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();

    let folder = Folder::new("policy");
    let file = dump(&folder, "dump.jsonl", &events);
    let (code, found, said) = import(&test, &[&file, "--relay", RELAY]);
    let unkept = json!({ "ephemeral": 1, "private": 2, "protected": 1, "expired": 1, "deleted": 1 });
    assert_eq!((code, &found["unkept"], &found["skipped"]), (Some(0), &unkept, &json!(2)), "{said}");
    assert_eq!(
        (&found["retired"], &found["new_events"], &found["unobserved"]),
        (&json!(1), &json!(4), &json!(0))
    );
    assert_eq!(found["new_observations"], 12, "who has them is known");
    // The same of a relay, in the same words.
    assert_eq!((&synced["unkept"], &synced["skipped"]), (&unkept, &json!(2)), "{synced}");
    let fates = pairs(&test, FATES).await;
    assert_eq!((fates.len(), &fates), (12, &pairs(&other, FATES).await));
    assert_eq!(retire(&handle(&test, Role::Writer)).await.events, 0, "retention finds nothing left to do");
    let (_, again, _) = import(&test, &[&file, "--relay", RELAY]);
    assert_eq!((&again["known"], &again["retired"], &again["unkept"]), (&json!(12), &json!(1), &json!({})));
    let plain = bigbrotr(&["import", "--database-url", &test.url(Role::Writer), &file, "--relay", RELAY]);
    let plain = String::from_utf8_lossy(&plain.stdout).into_owned();
    assert!(plain.contains("1 events were not stored: they are older than what retention keeps"), "{plain}");

    // An operator who keeps more has more kept, by either way.
    let keeps = folder.join("keeps.toml");
    fs::write(&keeps, "[archive]\nunkept = [\"private\"]\n").unwrap();
    let more = everything(&Factory::new(82), now - 1_000);
    let file = dump(&folder, "more.jsonl", &more);
    let (code, found, said) = import(&test, &["--config", &keeps, &file, "--relay", RELAY]);
    assert_eq!(
        (code, &found["unkept"], &found["new_events"]),
        (Some(0), &json!({ "private": 2 }), &json!(8)),
        "{said}"
    );
}

#[tokio::test]
async fn an_import_brings_nothing_back_of_a_relay_of_which_nothing_is_kept() {
    let Some(test) = migrated().await else { return };
    let Some(source) = migrated().await else { return };
    let now = shared::clock::unix_now();
    // Every third event is on the second relay, every fifth on two of them.
    fill(&source, &Factory::new(83).events(30), now - 1_000).await;
    let folder = Folder::new("horizon");
    let out = folder.join("a");
    assert_eq!(export(&source, &out, &[]).status.code(), Some(0));
    let gone = super::transfer::RELAYS[1];
    let db = handle(&test, Role::Writer);
    let policy = Retention { relays: vec![(gone.to_owned(), 0)], ..Retention::default() };
    db.retention_put(&policy, false).await.unwrap();
    retire(&db).await;
    let (code, found, said) = import(&test, &[&out]);
    // Of thirty events ten were seen there, two of these on the next relay too, and two of others there too.
    assert_eq!((code, &found["retired"], &found["new_events"]), (Some(0), &json!(8), &json!(22)), "{said}");
    assert_eq!((&found["new_observations"], &found["unobserved"]), (&json!(24), &json!(0)), "{found}");
    let theirs = "SELECT count(*)::text FROM observation WHERE relay_url = 'wss://three.example'";
    assert_eq!(value(&test, theirs).await, "0");
    assert_eq!(value(&test, "SELECT orphan_event_delete()::text").await, "0");
}

fn counted(dir: &str, prefix: &str) -> (usize, BTreeMap<String, u64>) {
    let (mut lines, mut relays) = (0, BTreeMap::new());
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_str().unwrap().starts_with(prefix) {
            for line in fs::read_to_string(entry.path()).unwrap().lines() {
                lines += 1;
                let line: Value = serde_json::from_str(line).unwrap();
                if let Some(url) = line["relay_url"].as_str() {
                    *relays.entry(url.to_owned()).or_default() += 1;
                }
            }
        }
    }
    (lines, relays)
}

#[tokio::test]
async fn an_import_during_an_export_leaves_its_manifest_true() {
    let Some(test) = migrated().await else { return };
    let Some(source) = migrated().await else { return };
    let factory = Factory::new(84);
    let now = shared::clock::unix_now();
    let (mut held, mut brought) = (vec![], vec![]);
    for (i, event) in factory.events(4_000).into_iter().enumerate() {
        if i % 20 == 0 { brought.push(event) } else { held.push(event) }
    }
    fill(&test, &held, now - 10_000).await;
    // What another archive saw before as_of, some of it on a relay that this one does not know; and what it saw later.
    let source_db = handle(&source, Role::Writer);
    let (mut before, mut after) = (vec![], vec![]);
    for (i, event) in brought.iter().enumerate() {
        if i % 2 == 0 { before.push(event.clone()) } else { after.push(event.clone()) }
    }
    fill(&source, &before, now - 8_000).await;
    fill(&source, &after, now - 1_000).await;
    for events in [&before, &held[..50], &held[3_750..]] {
        archive(&source_db, "wss://new.example", events).await;
    }
    let folder = Folder::new("beside");
    let other = folder.join("other");
    assert_eq!(export(&source, &other, &[]).status.code(), Some(0));

    let out = folder.join("out");
    let as_of = now - 5_000;
    let mut command = Command::new(binary("bigbrotr"));
    command.args(["export", "--database-url", &test.url(Role::Reader), "--out", &out]);
    command.args(["--part-events", "30", "--as-of", &as_of.to_string()]);
    let mut process = Process::spawn(&command, Path::new("/dev/null"));
    while !Path::new(&out).join("events-00020.jsonl").exists() && !process.has_ended() {
        // bound: the export ends by itself.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    signal(&process, "STOP");
    assert!(!process.has_ended(), "the import was to come in the middle");
    let (code, found, said) = import(&test, &[&other]);
    assert_eq!((code, &found["new_relays"]), (Some(0), &json!(1)), "{said}");
    assert_eq!(found["new_events"], brought.len(), "{found}");
    signal(&process, "CONT");
    while !process.has_ended() {
        // bound: the export ends by itself.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let manifest: Value =
        serde_json::from_slice(&fs::read(Path::new(&out).join("manifest.json")).unwrap()).unwrap();
    let (events, observations) = (counted(&out, "events-"), counted(&out, "observations-"));
    assert_eq!(manifest["counts"]["events"], events.0);
    assert_eq!(manifest["counts"]["observations"], observations.0);
    assert_eq!(manifest["counts"]["observations_per_relay"], json!(observations.1));
    for entry in manifest["files"].as_array().unwrap() {
        let bytes = fs::read(Path::new(&out).join(entry["name"].as_str().unwrap())).unwrap();
        assert_eq!(entry["sha256"], hex::encode(Sha256::digest(bytes)));
    }
    // Some of what was imported lay ahead and is in it, also of the new relay; nothing that was seen after as_of.
    assert!(events.0 > held.len() && events.0 < held.len() + before.len(), "{}", events.0);
    assert!(observations.1["wss://new.example"] > 50, "{:?}", observations.1);
    for entry in fs::read_dir(&out).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_str().unwrap().starts_with("observations-") {
            for line in fs::read_to_string(entry.path()).unwrap().lines() {
                let line: Value = serde_json::from_str(line).unwrap();
                assert!(line["seen_at"].as_i64().unwrap() <= as_of, "{line}");
            }
        }
    }
    assert_ne!(manifest["left_out"]["unseen"], 0, "what was seen later only is counted: {manifest}");
}

#[tokio::test]
async fn what_is_stored_behind_a_policy_that_has_passed_is_judged_where_it_is_stored() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let factory = Factory::new(85);
    let now = shared::clock::unix_now();
    let at = |author: usize, kind: u16, days: i64| {
        let tags = vec![expiration(now + DAY_S)];
        factory.sign(author, kind, tags, &format!("{kind}, {days} days old"), now - days * DAY_S)
    };
    archive(&db, RELAY, &[at(0, 7, 50), at(1, 7, 10), at(2, 1, 50), at(3, 30_023, 3)]).await;
    db.retention_put(&kinds(&["7:30", "1984"]), false).await.unwrap();
    assert_eq!(retire(&db).await.events, 1);
    // By whoever does not know the policy, or has another clock: of an age that the policy has passed, and of none.
    let late = [
        at(4, 7, 40),
        at(5, 7, 20),
        at(6, 1984, 1),
        at(7, 1984, 60),
        at(8, 1, 40),
        at(9, 7, 31),
        at(11, 7, 70),
    ];
    archive(&db, RELAY, &late).await;
    archive(&db, "wss://another.example", &[at(10, 7, 45)]).await;
    retire(&db).await;
    let fates = "SELECT string_agg(kind || ' ' || fate || ' ' || n, ', ' ORDER BY kind, fate) FROM (SELECT kind, fate, count(*) AS n FROM event GROUP BY 1, 2) x";
    assert_eq!(value(&test, fates).await, "1 0 2, 7 0 2, 7 1 5, 1984 1 2, 30023 0 1");
    let rest = "SELECT (SELECT count(*) FROM event WHERE fate = 1 AND (content IS NOT NULL OR tags IS NOT NULL)) || ' ' || (SELECT count(*) FROM event_relay)
                || ' ' || (SELECT count(*) FROM event_unmined u JOIN event e USING (event_key) WHERE e.fate = 1)
                || ' ' || (SELECT count(*) FROM event_expiry x JOIN event e USING (event_key) WHERE e.fate = 0)";
    assert_eq!(value(&test, rest).await, "0 12 0 5");
    test.execute("SELECT all_statistics_refresh()").await;
    assert_eq!(value(&test, "SELECT event_count::text FROM event_stats").await, "5");
    assert_eq!(value(&test, "SELECT count(*)::text FROM rollup_check()").await, "0");
}

#[tokio::test]
async fn the_last_quarter_of_an_hour_before_a_policy_looks_is_not_taken_yet() {
    let Some(test) = migrated().await else { return };
    let before = "SELECT string_agg(retention_before(what, 2, '2026-03-10 00:14:59Z') || ' ' || retention_before(what, 2, '2026-03-10 00:15:00Z'), ', ' ORDER BY what)
                  FROM unnest(ARRAY['kind', 'relay']) what";
    // 7 March, 8 March; and of a relay, which is looked through anew each time, 8 March at once.
    assert_eq!(value(&test, before).await, "1772841600 1772928000, 1772928000 1772928000");
}

#[tokio::test]
async fn a_removal_waits_until_the_log_is_short_and_counts_it_itself() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    archive(&db, RELAY, &Factory::new(86).events(60)).await;
    // A long backlog, of events that have gone since.
    test.execute(
        "INSERT INTO rollup_delta (op, n, keys, relays)
         SELECT 1, 1000, ARRAY(SELECT -1000 * n - i FROM generate_series(1, 1000) i), ARRAY[1] FROM generate_series(1, 250) n",
    )
    .await;
    db.retention_put(&kinds(&["7"]), false).await.unwrap();
    let mut pace = Pace::default();
    let (mut counted, mut waiting) = (0, vec![]);
    loop {
        let step = db.retention_step(&mut pace).await.unwrap().unwrap();
        waiting.push(db.rollup_backlog().await.unwrap().keys);
        if step.what != "log" {
            assert_eq!((step.what.as_str(), step.events), ("kind 7", 4), "{step:?}");
            break;
        }
        assert_eq!((step.events, step.observations, step.months), (0, 0, 0), "{step:?}");
        counted += 1;
    }
    assert!(counted >= 2, "250,000 keys are no piece: {waiting:?}");
    assert!(waiting.is_sorted_by(|a, b| a >= b) && waiting[counted] <= 100_000, "{waiting:?}");
    assert_eq!(value(&test, "SELECT count(*)::text FROM rollup_check()").await, "0");
}
