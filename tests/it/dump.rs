//! Dumps nobody vouches for: what is good in them is kept, what is not costs its neighbours nothing.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use shared::db::EventRow;
use shared::models::Event;
use tests::factory::Factory;
use tests::pg::{Bouncer, Generation, Role};
use tests::programs::Process;

use super::cli::bigbrotr;
use super::fleet::binary;
use super::support::{handle, migrated, value};
use super::transfer::{Folder, export, fill, import};
use super::traps::peak_mib;

const RELAY: &str = "wss://dumped.example";

/// The same event with another content under its id.
fn forged(event: &nostr::event::Event) -> String {
    let mut value: Value = serde_json::from_str(&event.as_json()).unwrap();
    value["content"] = json!("forged");
    value.to_string()
}

#[tokio::test]
async fn a_hostile_dump_costs_its_bad_lines_and_nothing_else() {
    let Some(test) = migrated().await else { return };
    let now = shared::clock::unix_now();
    let factory = Factory::new(71);
    let events = factory.events(60);
    // Some are known, one of them as deleted.
    fill(&test, &events[..10], now - 1_000).await;
    test.execute("UPDATE event SET fate = 2, tags = NULL, content = NULL, sig = NULL WHERE id = (SELECT min(id::text)::bytea FROM event)").await;
    test.execute("ALTER TABLE event ADD CONSTRAINT poison CHECK (content <> 'poison')").await;
    let poison = factory.sign(1, 1, vec![], "poison", now - 50);
    let mut unsigned: Value =
        serde_json::from_str(&factory.sign(2, 1, vec![], "unsigned", now - 60).as_json()).unwrap();
    unsigned["sig"] = json!("00".repeat(64));

    let mut dump: Vec<Vec<u8>> = vec![
        b"\xef\xbb\xbf".to_vec(),                           // 1: not JSON
        forged(&events[20]).into_bytes(),                   // 2: a forgery before the original
        events[20].as_json().into_bytes(),                  // 3
        forged(&events[0]).into_bytes(),                    // 4: a forgery under a known id
        b"   ".to_vec(),                                    // 5: blank
        vec![b'x'; 3 * 1024 * 1024],                        // 6: too long
        b"{\"id\": \"\xff\xfe\"}".to_vec(),                 // 7: not UTF-8
        b"\0\0\0".to_vec(),                                 // 8: NUL
        b"{}".to_vec(),                                     // 9: no event
        unsigned.to_string().into_bytes(),                  // 10: bad signature
        poison.as_json().into_bytes(),                      // 11: the database refuses it
        format!("{}\r", events[21].as_json()).into_bytes(), // 12: as Windows ends a line
        events[20].as_json().into_bytes(),                  // 13: again
        b"[\"EVENT\",\"s\",{}]".to_vec(),                   // 14: a frame
    ];
    dump.extend(events.iter().map(|event| event.as_json().into_bytes()));
    let joined = dump.join(&b'\n');
    let folder = Folder::new("hostile");
    let plain = folder.join("dump.jsonl");
    fs::write(&plain, &joined).unwrap();

    assert_eq!(import(&test, &[&plain]).0, Some(2), "events of no relay would be orphans");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event").await, "10");
    let (code, found, said) = import(&test, &[&plain, "--relay", RELAY]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(
        found["bad"],
        json!({"not_json": 3, "bad_id": 2, "too_large": 1, "shape": 2, "bad_signature": 1}),
        "{said}"
    );
    for number in [1, 2, 4, 6, 7, 8, 9, 10, 14] {
        assert!(said.contains(&format!("line {number}:")), "{number}: {said}");
    }
    assert_eq!(
        [
            &found["new_events"],
            &found["known"],
            &found["repeated"],
            &found["quarantined"],
            &found["new_relays"]
        ],
        [50, 10, 3, 1, 1].map(|n| json!(n)).each_ref(),
        "{found}"
    );
    assert_eq!(found["new_observations"], 60);
    assert_eq!(value(&test, "SELECT count(*)::text FROM event WHERE content = 'forged'").await, "0");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event WHERE fate = 2").await, "1");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_quarantine").await, "1");
    assert_eq!(value(&test, "SELECT evidence || ' ' || count(*) FROM observation WHERE relay_url = 'wss://dumped.example' GROUP BY evidence").await, "claimed 60");
    assert_eq!(value(&test, "SELECT count(*)::text FROM coverage").await, "0");
    assert_eq!(value(&test, "SELECT orphan_event_delete()::text").await, "0");

    // The same, compressed: nothing is new. Cut off, it says so, and keeps what came.
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&joined).unwrap();
    let packed = gzip.finish().unwrap();
    let (whole, cut) = (folder.join("dump.gz"), folder.join("cut.gz"));
    fs::write(&whole, &packed).unwrap();
    fs::write(&cut, &packed[..packed.len() - 20]).unwrap();
    let (code, found, said) = import(&test, &[&whole, "--relay", RELAY]);
    assert_eq!((code, &found["new_events"], &found["lines"]), (Some(0), &json!(0), &json!(73)), "{said}");
    let (code, found, said) = import(&test, &[&cut, "--relay", RELAY]);
    assert_eq!((code, said.contains("ends badly")), (Some(1), true), "{said}");
    assert!(found["known"].as_u64().is_some_and(|known| known > 10), "{found}");
    fs::write(folder.join("z"), [0x28, 0xb5, 0x2f, 0xfd, 0]).unwrap();
    let (code, _, said) = import(&test, &[&folder.join("z"), "--relay", RELAY]);
    assert!(code == Some(1) && said.contains("zstd -dc"), "{said}");
    fs::write(folder.join("none"), "nothing\ngood\n").unwrap();
    assert_eq!(import(&test, &[&folder.join("none"), "--relay", RELAY]).0, Some(1));
}

#[tokio::test]
async fn an_export_that_was_tampered_with_is_refused() {
    let Some(test) = migrated().await else { return };
    let Some(other) = migrated().await else { return };
    let now = shared::clock::unix_now();
    fill(&test, &Factory::new(72).events(40), now - 1_000).await;
    let folder = Folder::new("tampered");
    let out = folder.join("a");
    assert_eq!(export(&test, &out, &[]).status.code(), Some(0));
    let (events, manifest) =
        (Path::new(&out).join("events-00000.jsonl"), Path::new(&out).join("manifest.json"));
    let (good, record) = (fs::read(&events).unwrap(), fs::read_to_string(&manifest).unwrap());
    fs::write(&events, &good[1..]).unwrap();
    let (code, _, said) = import(&other, &[&out]);
    assert!(code == Some(1) && said.contains("is not the file of the manifest"), "{said}");
    fs::write(&events, &good).unwrap();
    fs::write(&manifest, record.replace("events-00000", "../events-00000")).unwrap();
    let (code, _, said) = import(&other, &[&out]);
    assert!(code == Some(1) && said.contains("no name of a file"), "{said}");
    assert_eq!(value(&other, "SELECT count(*)::text FROM event").await, "0");
}

#[tokio::test]
async fn no_event_is_imported_without_where_it_was_seen() {
    let Some(test) = migrated().await else { return };
    let event = Event::parse(&Factory::new(73).events(1)[0].as_json()).unwrap();
    let writer = handle(&test, Role::Writer);
    let refused = writer.event_import(&[EventRow::from(event)], &[], false, 5).await.unwrap_err();
    assert!(refused.to_string().contains("was seen on no relay"), "{refused}");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event").await, "0");
}

#[tokio::test]
async fn a_pooler_in_between_changes_neither_an_export_nor_an_import() {
    let Some(test) = migrated().await else { return };
    let now = shared::clock::unix_now();
    fill(&test, &Factory::new(74).events(300), now - 1_000).await;
    let folder = Folder::new("pooler");
    let direct = folder.join("direct");
    let as_of = (now - 500).to_string();
    assert_eq!(export(&test, &direct, &["--as-of", &as_of]).status.code(), Some(0));
    let record = fs::read(Path::new(&direct).join("manifest.json")).unwrap();
    for generation in Generation::ALL {
        let Some(bouncer) = Bouncer::start(&test, generation).await else { continue };
        let out = folder.join(&format!("{generation:?}"));
        let url = bouncer.url(Role::Reader);
        let output = bigbrotr(&["export", "--database-url", &url, "--out", &out, "--as-of", &as_of]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        // The hashes of the files are in it.
        assert!(fs::read(Path::new(&out).join("manifest.json")).unwrap() == record);
        let output = bigbrotr(&["import", "--json", "--database-url", &bouncer.url(Role::Writer), &out]);
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&found["known"], &found["new_observations"]), (&json!(300), &json!(0)), "{found}");
    }
}

#[tokio::test]
async fn a_deletion_request_in_a_dump_counts_whenever_it_comes() {
    let Some(test) = migrated().await else { return };
    let now = shared::clock::unix_now();
    let factory = Factory::new(74);
    let note = |author: usize, text: &str| factory.sign(author, 1, vec![], text, now - 500);
    let ask = |author: usize, events: &[&nostr::event::Event]| {
        let tags = events.iter().map(|event| vec!["e".to_owned(), event.id.to_hex()]).collect();
        factory.sign(author, 5, tags, "", now - 100)
    };
    let (held, beside, late, others) =
        (note(1, "held"), note(1, "beside"), note(2, "late"), note(3, "other"));
    fill(&test, std::slice::from_ref(&held), now - 1_000).await;
    let folder = Folder::new("deleted");
    let file = folder.join("dump.jsonl");
    // One request is of the author of what is held and of what stands beside it; one speaks of another's event.
    let first = [beside.as_json(), ask(1, &[&held, &beside]).as_json(), ask(2, &[&late, &others]).as_json()];
    fs::write(&file, first.join("\n")).unwrap();
    let (code, found, said) = import(&test, &[&file, "--relay", RELAY]);
    assert_eq!(
        (code, &found["new_events"], &found["unkept"]["deleted"], &found["deleted"]),
        (Some(0), &json!(2), &json!(1), &json!(1)),
        "{said}"
    );
    fs::write(&file, [late.as_json(), others.as_json()].join("\n")).unwrap();
    let (code, found, said) = import(&test, &[&file, "--relay", RELAY]);
    assert_eq!(
        (code, &found["new_events"], &found["unkept"]["deleted"]),
        (Some(0), &json!(1), &json!(1)),
        "{said}"
    );
    let fates = "SELECT string_agg(fate || ' ' || n, ', ' ORDER BY fate) FROM (SELECT fate, count(*) AS n FROM event GROUP BY 1) x";
    // The two requests and the other author's note stay.
    assert_eq!(value(&test, fates).await, "0 3, 2 3");
    let observed = "SELECT count(DISTINCT event_key)::text FROM event_relay";
    assert_eq!(value(&test, observed).await, "6", "who has them is known");
}

#[tokio::test]
async fn what_a_hostile_export_says_of_relays_is_read_in_bounded_memory() {
    let Some(test) = migrated().await else { return };
    let Some(source) = migrated().await else { return };
    fill(&source, &Factory::new(75).events(3), shared::clock::unix_now() - 1_000).await;
    let folder = Folder::new("named");
    let (out, log) = (folder.join("a"), folder.join("log"));
    assert_eq!(export(&source, &out, &[]).status.code(), Some(0));
    let (observations, manifest) =
        (Path::new(&out).join("observations-00000.jsonl"), Path::new(&out).join("manifest.json"));
    let good = fs::read_to_string(&observations).unwrap();
    assert_eq!(good.lines().count(), 4);
    // Texts that are no URLs, of two megabytes each; lines that are none; and what is there, again and again.
    let row: Value = serde_json::from_str(good.lines().next().unwrap()).unwrap();
    let mut file = std::io::BufWriter::new(fs::File::create(&observations).unwrap());
    for i in 0..80 {
        let mut row = row.clone();
        row["relay_url"] = json!(format!("wss://{i}.example/{}", "x".repeat(1_900_000)));
        writeln!(file, "{row}").unwrap();
    }
    for _ in 0..5_000 {
        writeln!(file, "{{}}").unwrap();
    }
    for line in good.lines() {
        for _ in 0..2_000 {
            writeln!(file, "{line}").unwrap();
        }
    }
    file.into_inner().unwrap();
    let mut record: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    record["files"][1]["sha256"] = json!(hex::encode(Sha256::digest(fs::read(&observations).unwrap())));
    fs::write(&manifest, record.to_string()).unwrap();

    let mut command = Command::new(binary("bigbrotr"));
    command.args(["import", "--json", "--database-url", &test.url(Role::Writer), &out]);
    let mut process = Process::spawn(&command, Path::new(&log));
    let mut peak = 0;
    while !process.has_ended() {
        peak = peak.max(peak_mib(process.pid()).unwrap_or_default());
        // bound: the import ends by itself
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let said = fs::read_to_string(&log).unwrap();
    let found = said.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{said}"));
    let found: Value = serde_json::from_str(found).unwrap();
    assert_eq!(
        [&found["bad"]["observation"], &found["stray_observations"], &found["new_observations"]],
        [5_080, 4 * 1_999, 4].map(|n| json!(n)).each_ref(),
        "{found}"
    );
    assert_eq!(said.lines().filter(|line| line.contains("no observation of a relay")).count(), 20);
    // 150 MB were named.
    assert!(peak < 120, "{peak} MiB");
}
