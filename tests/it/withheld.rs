//! What is held and not handed on: an export leaves it out before maintenance has come to it.

use nostr::event::Event;
use serde_json::{Value, json};
use shared::models::tombstones;
use tests::factory::Factory;
use tests::pg::{Role, TestDb};

use super::support::{handle, migrated, value};
use super::transfer::{Folder, RELAYS, export, fill};

fn tag(name: &str, value: impl Into<String>) -> Vec<String> {
    vec![name.to_owned(), value.into()]
}

/// Notes what these events ask for, as whoever stores them does.
async fn note(test: &TestDb, events: &[Event]) {
    let events = events.iter().map(|event| shared::models::Event::parse(&event.as_json()).unwrap());
    let stones: Vec<_> = events.flat_map(|event| tombstones(&event)).collect();
    handle(test, Role::Writer).tombstone_add(&stones).await.unwrap();
}

/// What an export with these arguments holds, sorted, and what it left out.
fn contents(test: &TestDb, folder: &Folder, name: &str, more: &[&str]) -> (Vec<String>, Value) {
    let out = folder.join(name);
    let output = export(test, &out, more);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let written = std::fs::read_to_string(format!("{out}/events-00000.jsonl")).unwrap();
    let content =
        |line: &str| serde_json::from_str::<Value>(line).unwrap()["content"].as_str().unwrap().to_owned();
    let mut read: Vec<String> = written.lines().map(content).collect();
    read.sort_unstable();
    let manifest: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{out}/manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["counts"]["events"], read.len());
    (read, manifest["left_out"].clone())
}

#[tokio::test]
async fn an_export_leaves_out_what_is_to_be_deleted_has_expired_or_was_not_meant_for_all() {
    let Some(test) = migrated().await else { return };
    let factory = Factory::new(104);
    let now = shared::clock::unix_now();
    let author = factory.author(1).public_key().to_hex();
    let meant = factory.sign(0, 1, vec![], "meant by id", now - 500);
    let others = factory.sign(1, 1, vec![], "of another author", now - 500);
    let named = vec![tag("e", meant.id.to_hex()), tag("e", others.id.to_hex())];
    let address = tag("a", format!("30023:{author}:x"));
    let article = |d: &str, content: &str, at: i64| factory.sign(1, 30_023, vec![tag("d", d)], content, at);
    let stones = [
        factory.sign(0, 5, named, "request by id", now - 400),
        factory.sign(1, 5, vec![address], "request by address", now - 400),
        factory.sign(3, 62, vec![tag("relay", "ALL_RELAYS")], "request to vanish", now - 400),
    ];
    let mut events = vec![
        meant,
        others,
        article("x", "meant by address", now - 450),
        article("x", "a later version", now - 300),
        article("y", "another article", now - 450),
        factory.sign(3, 1, vec![], "of who vanished", now - 450),
        factory.sign(3, 5, vec![tag("e", "ab".repeat(32))], "request of who vanished", now - 450),
        factory.sign(3, 1, vec![], "of who came back", now - 300),
        factory.sign(2, 1, vec![tag("expiration", (now - 5).to_string())], "expired", now - 500),
        factory.sign(2, 1, vec![tag("expiration", (now + 5_000).to_string())], "expires later", now - 500),
        factory.sign(2, 1, vec![vec!["-".to_owned()]], "protected", now - 500),
        factory.sign(2, 4, vec![], "private", now - 500),
    ];
    events.extend(stones.clone());
    fill(&test, &events, now - 100).await;
    note(&test, &stones).await;
    assert_eq!(value(&test, "SELECT count(*)::text FROM event WHERE fate <> 0").await, "0", "all are held");

    let folder = Folder::new("withheld");
    let mut handed_on = vec![
        "a later version",
        "another article",
        "expires later",
        "of another author",
        "of who came back",
        "request by address",
        "request by id",
        "request to vanish",
    ];
    let mut left_out = json!({
        "skipped": 0, "deleted": 4, "expired": 1, "private": 1, "protected": 1, "unseen": 0, "bodiless": 0, "corrupt": 0
    });
    let (read, left) = contents(&test, &folder, "all", &[]);
    assert_eq!((read, &left), (handed_on.iter().map(|&s| s.to_owned()).collect(), &left_out));
    let relays: Vec<&str> = RELAYS.iter().flat_map(|relay| ["--relay", relay]).collect();
    let (read, left) = contents(&test, &folder, "relays", &relays);
    assert_eq!((read.len(), &left), (8, &left_out));
    // Who asks for them has what is archived of them.
    handed_on.extend(["private", "protected"]);
    handed_on.sort_unstable();
    (left_out["private"], left_out["protected"]) = (json!(0), json!(0));
    let (read, left) = contents(&test, &folder, "with", &["--with", "private", "--with", "protected"]);
    assert_eq!((read, &left), (handed_on.iter().map(|&s| s.to_owned()).collect(), &left_out));
}
