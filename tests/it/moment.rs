//! Of when an export is, whoever stores meanwhile.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use shared::db::{EventRow, ReconcileBatch, StoreBatch};
use shared::models::{AddressPolicy, Event, EventId, JobKind, RelayUrl};
use sqlx::Connection as _;
use tests::factory::Factory;
use tests::pg::{Role, TestDb};
use tests::programs::Process;

use super::fleet::binary;
use super::support::{claim_one, handle, migrated, value};
use super::transfer::{Folder, RELAYS, export, fill};

fn started(arguments: &[&str]) -> Process {
    let mut command = Command::new(binary("bigbrotr"));
    command.args(arguments);
    Process::spawn(&command, Path::new("/dev/null"))
}

fn exporting(test: &TestDb, out: &str) -> Process {
    started(&["export", "--database-url", &test.url(Role::Reader), "--out", out])
}

async fn ended(process: &mut Process) -> bool {
    for _ in 0..600 {
        if process.has_ended() {
            return true;
        }
        // bound: 600 × 50 ms
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    false
}

fn read(out: &str, name: &str) -> Option<Value> {
    serde_json::from_slice(&fs::read(Path::new(out).join(name)).ok()?).ok()
}

#[tokio::test]
async fn an_export_beside_a_sync_job_waits_for_it_and_keeps_the_proof_of_its_relay() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let now = shared::clock::unix_now();
    let events = Factory::new(101).events(40);
    fill(&test, &events[1..], now - 1_000).await;
    claim_one(&db, "w1", JobKind::Sync, RELAYS[0]).await;
    // Its pass has just lengthened what stood for years.
    test.execute("INSERT INTO coverage SELECT id, 'all', 0, extract(epoch FROM now())::bigint, 'walked', 'none', 5 FROM relay WHERE url = 'wss://one.example'").await;
    let folder = Folder::new("moment");
    let out = folder.join("a");
    let mut process = exporting(&test, &out);
    let mut as_of = None;
    for _ in 0..200 {
        as_of = read(&out, "export.state.json").and_then(|state| state["scope"]["as_of"].as_i64());
        if as_of.is_some() {
            break;
        }
        // bound: 200 × 50 ms
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let as_of = as_of.expect("the export has begun");
    assert!((now..=now + 60).contains(&as_of), "{as_of}, and it was {now}");
    // bound: longer than until as_of, so that it waits for the job and not for the clock
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!process.has_ended(), "the job may still store what it saw by then");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "nothing was read yet");
    fill(&test, &events[..1], as_of).await;
    test.execute("DELETE FROM apalis.jobs").await;
    assert!(ended(&mut process).await);
    let manifest = read(&out, "manifest.json").unwrap();
    assert_eq!((&manifest["as_of"], &manifest["counts"]["events"]), (&json!(as_of), &json!(40)));
    let coverage = &manifest["coverage"][0];
    assert_eq!((&coverage["relay"], &coverage["grade"]), (&json!(RELAYS[0]), &json!("walked")), "{manifest}");
    // The same scope, later: the same.
    let again = folder.join("b");
    assert_eq!(export(&test, &again, &["--as-of", &as_of.to_string()]).status.code(), Some(0));
    assert_eq!(read(&again, "manifest.json").unwrap()["files"], manifest["files"]);
}

#[tokio::test]
async fn an_export_waits_for_the_batch_of_an_import_that_is_under_way() {
    let Some(test) = migrated().await else { return };
    let now = shared::clock::unix_now();
    let events = Factory::new(102).events(40);
    fill(&test, &events[..30], now - 1_000).await;
    let folder = Folder::new("under-way");
    let (dump, out) = (folder.join("dump.jsonl"), folder.join("a"));
    let lines: Vec<String> = events[30..].iter().map(nostr::event::Event::as_json).collect();
    fs::write(&dump, lines.join("\n")).unwrap();
    // The import's batch has its time, and comes no further.
    let mut holder = test.connect(Role::Superuser).await;
    let mut held = holder.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE rollup_delta IN EXCLUSIVE MODE").execute(&mut *held).await.unwrap();
    let url = test.url(Role::Writer);
    let mut import = started(&["import", "--database-url", &url, &dump, "--relay", "wss://dumped.example"]);
    let waits = "SELECT count(*)::text FROM pg_locks WHERE locktype = 'advisory' AND objid = 7334 AND granted AND mode = 'ShareLock'
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    for _ in 0..200 {
        if value(&test, waits).await == "1" {
            break;
        }
        // bound: 200 × 50 ms
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(value(&test, waits).await, "1", "the batch is under way");
    // bound: a second and more, so that the batch is older than the export
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let mut process = exporting(&test, &out);
    // bound: an export of so little is long over by then
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!process.has_ended(), "it waits");
    held.commit().await.unwrap();
    assert!(ended(&mut import).await && ended(&mut process).await);
    let manifest = read(&out, "manifest.json").unwrap();
    assert_eq!(manifest["counts"]["events"], 40, "{manifest}");
    assert_eq!(manifest["counts"]["observations_per_relay"]["wss://dumped.example"], 10);
    let seen = "SELECT (max(seen_at) - min(seen_at))::text || ' ' || (max(seen_at) <= extract(epoch FROM now())) FROM observation WHERE relay_url = 'wss://dumped.example'";
    assert_eq!(value(&test, seen).await, "0 true");
}

/// A page and a comparison of a worker that takes this for the present moment.
async fn stored_at(test: &TestDb, at: i64) {
    let db = handle(test, Role::Writer);
    let rows: Vec<EventRow> = Factory::new(103)
        .events(20)
        .iter()
        .map(|event| EventRow::from(Event::parse(&event.as_json()).unwrap()))
        .collect();
    let delivered: Vec<(EventId, i64)> =
        rows.iter().map(|row| (row.event.id(), row.event.created_at())).collect();
    let urls = RELAYS.map(|url| RelayUrl::parse(url, &AddressPolicy::public()).unwrap());
    for url in &urls[..2] {
        db.relay_insert(&[(url.clone(), 1)]).await.unwrap();
    }
    let (_, fence) = claim_one(&db, "w1", JobKind::Sync, RELAYS[0]).await;
    let batch = StoreBatch {
        fence: &fence,
        relay_id: 1,
        seen_at: at,
        delivered: &delivered,
        new: &rows,
        light: false,
        coverage: None,
        next: None,
    };
    assert!(db.sync_store(&batch).await.unwrap().held);
    let batch = ReconcileBatch {
        fence: &fence,
        relay_id: 2,
        at,
        claimed: &delivered[..5],
        gone: &delivered[5..6],
        unserved: &["07".repeat(32).parse().unwrap()],
        coverage: None,
    };
    assert_eq!(db.reconcile_store(&batch).await.unwrap(), Some(5));
}

#[tokio::test]
async fn a_worker_whose_clock_is_behind_puts_nothing_into_an_export_of_before() {
    let Some(test) = migrated().await else { return };
    stored_at(&test, shared::clock::unix_now() - 30).await;
    let seen = "SELECT ((SELECT min(o.seen_at) FROM event_relay o) >= j.at AND (SELECT min(g.gone_at) FROM event_gone g) >= j.at)::text
                FROM (SELECT floor(extract(epoch FROM min(lock_at))) AS at FROM apalis.jobs) j";
    assert_eq!(
        value(&test, seen).await,
        "true",
        "not before its job began, which such an export did not wait for"
    );
}

#[tokio::test]
async fn a_worker_whose_clock_is_ahead_takes_nothing_out_of_an_export() {
    let Some(test) = migrated().await else { return };
    stored_at(&test, shared::clock::unix_now() + 600).await;
    test.execute(
        "DELETE FROM apalis.jobs;
         INSERT INTO coverage SELECT id, 'all', 0, extract(epoch FROM now())::bigint, 'walked', 'none', 5, 5 FROM relay WHERE id = 1",
    )
    .await;
    // bound: a second and more, so that what was stored is older than the export
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let folder = Folder::new("ahead");
    let out = folder.join("a");
    assert_eq!(export(&test, &out, &[]).status.code(), Some(0));
    let manifest = read(&out, "manifest.json").unwrap();
    assert_eq!((&manifest["counts"]["events"], &manifest["left_out"]["unseen"]), (&json!(20), &json!(0)));
    assert_eq!(manifest["counts"]["observations"], 25, "{manifest}");
    assert_eq!(manifest["coverage"][0]["grade"], "walked", "what is proved is there: {manifest}");
    let late = "SELECT ((SELECT max(gone_at) FROM event_gone) <= extract(epoch FROM now()) AND (SELECT max(last_at) FROM event_unserved) <= extract(epoch FROM now()))::text";
    assert_eq!(value(&test, late).await, "true");
}
