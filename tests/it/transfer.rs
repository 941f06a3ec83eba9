//! Exports and imports, through the real binary and PostgreSQL.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::RowAccessor as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use shared::db::EventRow;
use shared::models::{AddressPolicy, Event, RelayUrl};
use tests::factory::Factory;
use tests::pg::{Role, TestDb};
use tests::programs::Process;

use super::cli::bigbrotr;
use super::fleet::binary;
use super::support::{handle, migrated, value};

pub(crate) const RELAYS: [&str; 3] = ["wss://one.example", "wss://three.example", "wss://two.example"];

/// A folder of one test, gone when it passes.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bigbrotr-{}-{name}", std::process::id()));
        drop(fs::remove_dir_all(&path));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn join(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            drop(fs::remove_dir_all(&self.0));
        }
    }
}

/// Event `i` is on relay `i % 3`, and every fifth on the next one too; seen at `seen_at`.
pub(crate) async fn fill(test: &TestDb, events: &[nostr::event::Event], seen_at: i64) {
    let writer = handle(test, Role::Writer);
    let urls = RELAYS.map(|url| RelayUrl::parse(url, &AddressPolicy::public()).unwrap());
    let seen: Vec<(EventRow, RelayUrl, i64)> = events
        .iter()
        .enumerate()
        .flat_map(|(i, event)| {
            let event = Event::parse(&event.as_json()).unwrap();
            let on = if i % 5 == 0 { vec![i % 3, (i + 1) % 3] } else { vec![i % 3] };
            let urls = &urls;
            on.into_iter().map(move |r| (EventRow::from(event.clone()), urls[r].clone(), seen_at))
        })
        .collect();
    for batch in seen.chunks(1_000) {
        // The same event twice in one call is for the function to sort out.
        writer.event_relay_insert_cascade(batch).await.unwrap();
    }
}

pub(crate) fn export(test: &TestDb, out: &str, more: &[&str]) -> Output {
    let url = test.url(Role::Reader);
    let mut arguments = vec!["export", "--json", "--database-url", &url, "--out", out];
    arguments.extend(more);
    bigbrotr(&arguments)
}

pub(crate) fn import(test: &TestDb, files: &[&str]) -> (Option<i32>, Value, String) {
    let url = test.url(Role::Writer);
    let mut arguments = vec!["import", "--json", "--database-url", &url];
    arguments.extend(files);
    let output = bigbrotr(&arguments);
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = out.lines().last().map_or(Value::Null, |line| serde_json::from_str(line).unwrap());
    (output.status.code(), last, String::from_utf8_lossy(&output.stderr).into_owned())
}

fn succeeded(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(out.lines().last().unwrap()).unwrap()
}

/// Every file of a folder, by name.
fn contents(dir: &str) -> BTreeMap<String, Vec<u8>> {
    let read =
        |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    fs::read_dir(dir).unwrap().map(|entry| read(entry.unwrap())).collect()
}

/// The lines of all files whose name begins so, in order.
fn lines(dir: &str, prefix: &str) -> Vec<String> {
    let files = contents(dir).into_iter().filter(|(name, _)| name.starts_with(prefix));
    files
        .flat_map(|(_, bytes)| {
            String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect()
}

fn wild(factory: &Factory, at: i64) -> Vec<nostr::event::Event> {
    vec![
        factory.sign(1, 1, vec![vec!["t".into(), "\u{0}".into()]], "NUL \u{0} and \u{2028}\n\"\\", at),
        factory.sign(2, 30_023, vec![vec!["d".into(), "漢字".repeat(300)]], "🤙", at - 1),
        factory.sign(3, 65_535, vec![], "", 0),
        factory.sign(4, 1, vec![], "the far end", i64::from(u32::MAX) + 77),
    ]
}

#[tokio::test]
async fn an_export_is_read_by_others_and_its_import_is_the_same_archive() {
    let Some(test) = migrated().await else { return };
    let Some(other) = migrated().await else { return };
    let now = shared::clock::unix_now();
    let factory = Factory::new(61);
    let mut events = factory.events(1_200);
    events.extend(wild(&factory, now - 9_000));
    fill(&test, &events, now - 1_000).await;
    fill(&test, &[factory.sign(5, 1, vec![], "late", now - 5_000)], now + 500).await;
    test.execute(
        "UPDATE event_relay SET evidence = 1, seen_at = seen_at - 7 WHERE event_key % 4 = 0;
         UPDATE event SET fate = 2, tags = NULL, content = NULL, sig = NULL WHERE id = (SELECT id FROM event WHERE content = 'the far end');
         UPDATE event SET fate = 1, tags = NULL, content = NULL, sig = NULL WHERE id IN (SELECT id FROM event WHERE kind = 7 ORDER BY id LIMIT 3);
         UPDATE event SET sig = NULL WHERE id = (SELECT max(id::text)::bytea FROM event WHERE kind = 6 AND fate = 0);
         UPDATE event SET content = 'forged' WHERE id = (SELECT min(id::text)::bytea FROM event WHERE kind = 6 AND fate = 0);
         INSERT INTO vantage (name) VALUES ('here');
         INSERT INTO coverage SELECT id, 'all', 1000, 1999, 'walked', 'none', 5, 5 FROM relay;
         INSERT INTO coverage SELECT id, 'all', 2000, 2009, 'partial', 'timeout', 5, 5 FROM relay WHERE url = 'wss://one.example';
         INSERT INTO coverage SELECT id, 'all', 3000, 3009, 'walked', 'none', 99999999999, 5 FROM relay",
    )
    .await;
    let folder = Folder::new("roundtrip");
    let out = folder.join("a");
    let manifest = succeeded(&export(&test, &out, &["--part-events", "500"]));
    let read = lines(&out, "events-");
    for line in &read {
        nostr::event::Event::from_json(line).unwrap().verify().unwrap();
        assert_eq!(*line, Event::parse(line).unwrap().to_json());
    }
    let (count, observations) = (events.len() - 6, lines(&out, "observations-").len());
    assert_eq!(read.len(), count);
    assert_eq!(read.iter().collect::<BTreeSet<_>>().len(), count);
    assert_eq!(manifest["counts"]["events"], count);
    assert_eq!(manifest["counts"]["observations"], observations);
    assert_eq!(
        manifest["left_out"],
        json!({
            "skipped": 3, "deleted": 1, "expired": 0, "private": 0, "protected": 0, "unseen": 1, "bodiless": 1, "corrupt": 1
        })
    );
    assert_eq!(manifest["vantages"], json!(["here"]));
    assert_eq!(manifest["schema_version"], shared::db::Db::program_schema());
    let per_relay: u64 = manifest["counts"]["observations_per_relay"]
        .as_object()
        .unwrap()
        .values()
        .filter_map(Value::as_u64)
        .sum();
    assert_eq!(per_relay, observations as u64);
    // What was established after as_of is no part of it.
    assert_eq!(manifest["coverage"].as_array().unwrap().len(), 4);
    assert_eq!(
        manifest["coverage"][0],
        json!({"relay": RELAYS[0], "class": "all", "grade": "partial", "reason": "timeout", "seconds": 10, "since": 2000, "until": 2009})
    );
    let files = contents(&out);
    assert_eq!(files.len(), 7, "three pairs and the manifest: {:?}", files.keys());
    for entry in manifest["files"].as_array().unwrap() {
        let bytes = &files[entry["name"].as_str().unwrap()];
        assert_eq!(entry["sha256"], hex::encode(Sha256::digest(bytes)));
        assert_eq!((&entry["bytes"], bytes.last()), (&json!(bytes.len()), Some(&b'\n')));
    }

    let (code, first, said) = import(&other, &[&out]);
    assert_eq!(
        (code, &first["new_events"], &first["new_observations"]),
        (Some(0), &json!(count), &json!(observations)),
        "{said}"
    );
    let (code, second, _) = import(&other, &[&out]);
    assert_eq!((code, &second["new_events"], &second["new_observations"]), (Some(0), &json!(0), &json!(0)));
    assert_eq!(second["known"], count);
    assert_eq!(value(&other, "SELECT orphan_event_delete()::text").await, "0");
    let as_of = manifest["as_of"].to_string();
    let again = folder.join("b");
    succeeded(&export(&other, &again, &["--part-events", "500", "--as-of", &as_of]));
    let data = |dir: &str| {
        contents(dir).into_iter().filter(|(name, _)| name != "manifest.json").collect::<BTreeMap<_, _>>()
    };
    assert!(data(&out) == data(&again), "the copy of the archive exports other bytes");
}

#[tokio::test]
async fn an_export_killed_in_the_middle_resumes_to_the_same_bytes() {
    let Some(test) = migrated().await else { return };
    let factory = Factory::new(62);
    let (mut early, mut late) = (vec![], vec![]);
    for (i, event) in factory.events(4_000).into_iter().enumerate() {
        if i % 10 == 0 { late.push(event) } else { early.push(event) }
    }
    let now = shared::clock::unix_now();
    fill(&test, &early, now - 1_000).await;
    let folder = Folder::new("killed");
    for format in ["jsonl", "parquet"] {
        let (whole, torn) = (folder.join(&format!("whole-{format}")), folder.join(&format!("torn-{format}")));
        let more = ["--part-events", "30", "--format", format];
        let manifest = succeeded(&export(&test, &whole, &more));
        let as_of = manifest["as_of"].to_string();
        for run in 0..3 {
            let mut command = Command::new(binary("bigbrotr"));
            command.args(["export", "--database-url", &test.url(Role::Reader), "--out", &torn]);
            if run == 0 {
                command.args(more).args(["--as-of", &as_of]);
            } else {
                command.arg("--resume");
            }
            let mut process = Process::spawn(&command, Path::new("/dev/null"));
            let next = Path::new(&torn).join(format!("events-{:05}.{format}", 20 * (run + 1)));
            while !next.exists() && !process.has_ended() {
                // bound: the export ends by itself.
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(!process.has_ended(), "it was to be killed in the middle");
            drop(process);
            assert!(!Path::new(&torn).join("manifest.json").exists());
        }
        let refused = export(&test, &torn, &[]);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("--resume"));
        assert_eq!(export(&test, &torn, &["--resume", "--kind", "1"]).status.code(), Some(2));
        // Half a line of a file that was never complete, and an archive that has grown into the past.
        fs::write(Path::new(&torn).join(format!("events-00099.{format}.part")), "{\"id\":").unwrap();
        if format == "jsonl" {
            fill(&test, &late, now + 100).await;
        }
        let mut resumed = succeeded(&export(&test, &torn, &["--resume"]));
        let (whole, mut torn) = (contents(&whole), contents(&torn));
        torn.retain(|name, _| name != "manifest.json");
        assert_eq!(torn.len(), 240, "{:?}", torn.keys());
        assert!(torn.iter().all(|(name, bytes)| whole[name] == *bytes));
        if format == "jsonl" {
            assert_ne!(resumed["left_out"]["unseen"], 0);
            resumed["left_out"]["unseen"] = json!(0);
        }
        assert_eq!(resumed, manifest);
    }
}

#[tokio::test]
async fn filters_say_what_is_exported_and_both_formats_hold_the_same() {
    let Some(test) = migrated().await else { return };
    let factory = Factory::new(63);
    let now = shared::clock::unix_now();
    let events = factory.events(2_500);
    fill(&test, &events, now - 1_000).await;
    let folder = Folder::new("filters");
    let (since, until) = (now - 4 * 86_400, now - 2 * 86_400);
    let times = [since.to_string(), until.to_string()];
    let base = [
        "--since",
        &times[0],
        "--until",
        &times[1],
        "--kind",
        "7",
        "--kind",
        "1",
        "--relay",
        RELAYS[0],
        "--relay",
        "WSS://Two.example/",
    ];
    let mut wanted = BTreeSet::new();
    for (i, event) in events.iter().enumerate() {
        let at = i64::try_from(event.created_at.as_secs()).unwrap();
        let on = if i % 5 == 0 { vec![i % 3, (i + 1) % 3] } else { vec![i % 3] };
        let in_time = (since..=until).contains(&at);
        for relay in on.into_iter().filter(|relay| RELAYS[*relay] != RELAYS[1]) {
            if in_time && [1, 7].contains(&event.kind.as_u16()) {
                wanted.insert((event.id.to_hex(), RELAYS[relay].to_owned()));
            }
        }
    }
    assert!(wanted.len() > 300);
    let (jsonl, parquet) = (folder.join("jsonl"), folder.join("parquet"));
    succeeded(&export(&test, &jsonl, &base));
    let mut more = base.to_vec();
    more.extend(["--format", "parquet"]);
    let manifest = succeeded(&export(&test, &parquet, &more));
    assert_eq!(manifest["filters"]["relays"], json!([RELAYS[0], RELAYS[2]]));

    let written = lines(&jsonl, "observations-");
    let written: Vec<Value> = written.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let found: BTreeSet<_> = written.iter().map(|o| (word(&o["event_id"]), word(&o["relay_url"]))).collect();
    assert_eq!(found, wanted);
    let ids: BTreeSet<_> = wanted.iter().map(|(id, _)| id.clone()).collect();
    let read: Vec<Value> =
        lines(&jsonl, "events-").iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(read.iter().map(|event| word(&event["id"])).collect::<BTreeSet<_>>(), ids);

    let table =
        |name: &str| SerializedFileReader::new(File::open(Path::new(&parquet).join(name)).unwrap()).unwrap();
    let rows: Vec<Value> = table("events-00000.parquet")
        .get_row_iter(None)
        .unwrap()
        .map(|row| {
            let row = row.unwrap();
            let cell = |at| row.get_string(at).unwrap().clone();
            let tags: Value = serde_json::from_str(&cell(4)).unwrap();
            json!({"id": cell(0), "pubkey": cell(1), "created_at": row.get_long(2).unwrap(), "kind": row.get_int(3).unwrap(),
                   "tags": tags, "content": cell(5), "sig": cell(6)})
        })
        .collect();
    assert_eq!(rows, read);
    let rows: Vec<Value> = table("observations-00000.parquet")
        .get_row_iter(None)
        .unwrap()
        .map(|row| {
            let row = row.unwrap();
            let cell = |at| row.get_string(at).unwrap().clone();
            json!({"event_id": cell(0), "relay_url": cell(1), "seen_at": row.get_long(2).unwrap(), "evidence": cell(3)})
        })
        .collect();
    assert_eq!(rows, written);
    // An export of nothing is one too.
    let nothing = succeeded(&export(&test, &folder.join("nothing"), &["--kind", "40000"]));
    assert_eq!((&nothing["counts"]["events"], nothing["files"].as_array().unwrap().len()), (&json!(0), 2));
    let unknown = export(&test, &folder.join("unknown"), &["--relay", "wss://nobody.example"]);
    assert_eq!(unknown.status.code(), Some(1));
}
