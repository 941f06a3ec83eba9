//! What relays serve and that is no event, or a forged one: one text of each reason is kept as it came.

use nostr::event::Event;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use shared::clock;
use shared::db::SpecimenRow;
use shared::jobs::{Ctx, JobsConfig};
use shared::models::{Fence, JobKind, RelayUrl};
use tests::factory::Factory;
use tests::hostile;
use tests::pg::{Role, TestDb};
use tests::scripted::{Script, Stored};

use super::cli::bigbrotr;
use super::jobs::{config, context};
use super::support::{claim_one, handle, migrated, pairs, value};
use super::walked::{again, relay, sync};

/// An event under another text: its JSON with one part of it replaced.
fn altered(event: &Event, from: &str, to: &str) -> Stored {
    let text = event.as_json();
    assert!(text.contains(from), "{text}");
    Stored::instead_of(event, text.replacen(from, to, 1))
}

/// The same with another time, which is no event any more.
fn dated(event: &Event, time: &str) -> Stored {
    let field = format!("\"created_at\":{}", event.created_at.as_secs());
    altered(event, &field, &format!("\"created_at\":{time}"))
}

/// Signed over an id that is the hash of DEL written as an escape.
fn escaped_otherwise(factory: &Factory, event: &Event) -> Stored {
    let canonical =
        json!([0, event.pubkey.to_hex(), event.created_at.as_secs(), event.kind.as_u16(), [], event.content]);
    let id: [u8; 32] = Sha256::digest(canonical.to_string().replace('\u{7f}', "\\u007f")).into();
    let sig = factory.author(0).sign_schnorr_with_aux_rand(secp256k1::SECP256K1, id, &[0; 32]);
    let text = event.as_json().replace(&event.id.to_hex(), &hex::encode(id));
    Stored::instead_of(event, text.replace(&event.sig.to_string(), &sig.to_string()))
}

async fn kept(test: &TestDb) -> Vec<(String, String)> {
    pairs(test, "SELECT reason, event FROM relay_specimens").await.into_iter().collect()
}

fn rows(of: &[(&str, &Stored)]) -> Vec<(String, String)> {
    let mut rows: Vec<_> =
        of.iter().map(|(reason, text)| ((*reason).to_owned(), text.json.clone())).collect();
    rows.sort();
    rows
}

/// A pass once every gap has rested.
async fn sync_again(test: &TestDb, ctx: &Ctx, url: &RelayUrl) -> Value {
    test.execute("UPDATE coverage SET observed_at = observed_at - 7 * 3600").await;
    sync(ctx, url).await
}

/// Which versions of rows there are, and who locked them last: the same as long as nothing is written.
async fn versions(test: &TestDb) -> String {
    let sql = "SELECT string_agg(concat_ws(' ', reason, ctid, xmin, xmax), ', ' ORDER BY reason) FROM relay_specimen";
    value(test, sql).await
}

#[tokio::test]
async fn of_each_reason_one_text_is_kept_to_the_letter() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, again());
    let (factory, now) = (Factory::new(311), clock::unix_now() - 1_000);
    let note = |n: i64, content: &str| factory.sign(0, 1, vec![], content, now - n);
    let signature = Stored::instead_of(&note(1, "a"), hostile::with_bad_signature(&note(1, "a")));
    let id = Stored::instead_of(&note(2, "b"), hostile::with_bad_id(&note(2, "b")));
    let range = dated(&note(3, "c"), "9223372036854775808");
    let shape = dated(&note(4, "\u{202e}漢 'x' \u{7f}"), "1700000000.5");
    let surrogate = altered(&note(5, "half: ?"), "half: ?", "half: \\ud800");
    let other = escaped_otherwise(&factory, &note(6, "a\u{7f}b"));
    // What comes after the first of its reason is not kept: a page is read newest first.
    let doubled = altered(&note(7, "d"), "\"kind\":1", "\"kind\":1,\"kind\":1");
    let second = Stored::instead_of(&note(8, "e"), hostile::with_bad_signature(&note(8, "e")));
    let good = Stored::from(&note(9, "good"));
    let first = [&signature, &id, &range, &shape, &surrogate, &other, &doubled, &second, &good];
    let (relay, url) = relay(&ctx, Script::of_stored(first.map(Clone::clone).to_vec(), 500)).await;
    let report = sync(&ctx, &url).await;
    assert_eq!(report["new_events"], 1, "{report}");
    let expected = rows(&[
        ("bad_signature", &signature),
        ("bad_id", &id),
        ("range", &range),
        ("shape", &shape),
        ("not_json", &surrogate),
        ("other_escape", &other),
    ]);
    assert_eq!(kept(&test).await, expected);
    let sizes = "SELECT bool_and(bytes = octet_length(event) AND relay_id = (SELECT id FROM relay))::text FROM relay_specimen";
    assert_eq!(value(&test, sizes).await, "true");

    // Within a day nothing is written, whatever comes; after it, another one of those reasons that still come.
    let before = versions(&test).await;
    relay.set(Script::of_stored(vec![doubled.clone(), second.clone(), good.clone()], 500));
    sync_again(&test, &ctx, &url).await;
    assert_eq!((kept(&test).await, versions(&test).await), (expected, before));
    test.execute("UPDATE relay_specimen SET at = at - 86400").await;
    sync_again(&test, &ctx, &url).await;
    let expected = rows(&[
        ("bad_signature", &second),
        ("bad_id", &id),
        ("range", &range),
        ("shape", &doubled),
        ("not_json", &surrogate),
        ("other_escape", &other),
    ]);
    assert_eq!(kept(&test).await, expected);

    let reader = test.url(Role::Reader);
    let said = |json: bool| {
        let mut arguments = vec!["relay", "show", url.as_str(), "--database-url", &reader];
        arguments.extend(json.then_some("--json"));
        let output = bigbrotr(&arguments);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let shown: Value = serde_json::from_str(&said(true)).unwrap();
    let specimens = shown["specimens"].as_array().unwrap();
    assert_eq!(specimens.len(), 6, "{shown}");
    assert_eq!(
        (&specimens[5]["reason"], &specimens[5]["event"]),
        (&"shape".into(), &doubled.json.clone().into())
    );
    assert_eq!(specimens[5]["bytes"], doubled.json.len());
    let shown = said(false);
    let told = shown.lines().find(|line| line.starts_with("  shape ")).unwrap();
    assert!(told.ends_with(&doubled.json[..120]), "{told}");
}

#[tokio::test]
async fn a_long_text_is_cut_and_its_size_told_and_no_terminal_obeys_it() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let (factory, now) = (Factory::new(312), clock::unix_now() - 1_000);
    let long = factory.sign(0, 1, vec![], &format!("x{}", "漢".repeat(9_000)), now);
    let long = Stored::instead_of(&long, hostile::with_bad_signature(&long));
    // A frame that is no JSON is kept as a whole: it begins with what a relay program did to it.
    let broken = factory.sign(0, 1, vec![], "x", now - 1);
    let broken = Stored::instead_of(&broken, "{\"kind\":1,\"content\":\"\0\u{1b}[2J\u{202e}\"}".to_owned());
    let (_relay, url) = relay(&ctx, Script::of_stored(vec![long.clone(), broken.clone()], 500)).await;
    sync(&ctx, &url).await;
    let sizes = "SELECT reason, bytes || ' ' || octet_length(event) FROM relay_specimen ORDER BY 1";
    let sizes = pairs(&test, sizes).await;
    let cut = long.json.floor_char_boundary(8_192);
    assert!(cut < 8_192, "no character is cut in two");
    assert_eq!(sizes["bad_signature"], format!("{} {cut}", long.json.len()));
    let kept = kept(&test).await;
    assert_eq!(kept[0].1, long.json[..cut]);
    let escaped = "{\"kind\":1,\"content\":\"\\000\u{1b}[2J\\342\\200\\256\"}]";
    assert!(kept[1].1.starts_with("[\"EVENT\",\"") && kept[1].1.ends_with(escaped), "{kept:?}");
    let output = bigbrotr(&["relay", "show", url.as_str(), "--database-url", &test.url(Role::Reader)]);
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(!shown.contains('\u{1b}') && shown.contains(r"\000\u{1b}[2J\342\200\256"), "{shown}");
    assert!(shown.contains(&format!("  27,{} bytes  ", long.json.len() % 1_000)), "{shown}");
}

#[tokio::test]
async fn of_what_is_not_kept_there_is_no_specimen() {
    let Some(test) = migrated().await else { return };
    let (factory, now) = (Factory::new(313), clock::unix_now() - 1_000);
    let tag = |name: &str, value: Option<String>| {
        vec![std::iter::once(name.to_owned()).chain(value).collect::<Vec<_>>()]
    };
    let asked = factory.sign(7, 1, vec![], "deleted", now - 70);
    let events = [
        factory.sign(0, 4, vec![], "private", now - 1),
        factory.sign(1, 1_059, vec![], "wrapped", now - 2),
        factory.sign(2, 20_001, vec![], "ephemeral", now - 3),
        factory.sign(3, 1, tag("-", None), "protected", now - 4),
        factory.sign(4, 1, tag("expiration", Some((now - 50).to_string())), "expired", now - 60),
        factory.sign(5, 9_000, vec![], "of a kind that is not kept", now - 6),
        asked.clone(),
    ];
    let request = factory.sign(7, 5, tag("e", Some(asked.id.to_hex())), "", now);
    let forged = |event: &Event| Stored::instead_of(event, hostile::with_bad_signature(event));
    let unread = |event: &Event| dated(event, "1700000000.5");
    let broken = |event: &Event| {
        Stored::instead_of(event, event.as_json().replacen("\"content\":\"", "\"content\":\"\u{1}", 1))
    };
    let lies: Vec<Stored> = events
        .iter()
        .map(forged)
        .chain(events.iter().flat_map(|event| [unread(event), broken(event)]))
        // Written twice over, as a text in a frame, it does not say of which kind it is.
        .chain([Stored::instead_of(&events[0], Value::from(events[0].as_json()).to_string())])
        .collect();
    test.execute("INSERT INTO retention_policy (name, what, kind_from, kind_to, days) VALUES ('kind 9000', 'kind', 9000, 9000, 0)").await;
    let ctx = context(&test, again());
    let (relay, url) = relay(&ctx, Script::honest([&request], 500)).await;
    sync(&ctx, &url).await;
    relay.set(Script::of_stored(lies.clone(), 500));
    let report = sync(&ctx, &url).await;
    // What is asked for again, to show that nothing is below it or left out, comes twice.
    for (reason, once) in [("bad_signature", 7), ("shape", 7), ("not_json", 8)] {
        assert!(report["bad"][reason].as_u64() >= Some(once), "{report}");
    }
    assert_eq!(kept(&test).await, []);
    // Where all that is kept, a text of each reason is.
    test.execute("DELETE FROM retention_policy").await;
    let keeps = context(&test, JobsConfig { unkept: Vec::new(), ..again() });
    sync_again(&test, &keeps, &url).await;
    let reasons: Vec<String> = kept(&test).await.into_iter().map(|(reason, _)| reason).collect();
    assert_eq!(reasons, ["bad_signature", "not_json", "shape"]);
}

#[tokio::test]
async fn under_an_id_that_is_known_without_a_body_nothing_is_kept_either() {
    let Some(test) = migrated().await else { return };
    let keeps = || context(&test, JobsConfig { unkept: Vec::new(), ..again() });
    let events = Factory::new(314).events(1_000);
    let (relay, url) = relay(&keeps(), Script::honest(&events, 500)).await;
    sync(&keeps(), &url).await;
    test.execute("SELECT event_fate_set(array_agg(id), array_agg(event_key), 2::smallint) FROM event").await;
    let lies = events.iter().map(|event| altered(event, "\"tags\":[", "\"tags\":[[\"x\"],")).collect();
    relay.set(Script::of_stored(lies, 500));
    let report = sync_again(&test, &keeps(), &url).await;
    // Only a sample of them is read, one in 64.
    assert!(report["bad"]["bad_id"].as_u64() > Some(0), "{report}");
    assert_eq!(kept(&test).await, []);
}

#[tokio::test]
async fn what_was_taken_away_since_a_worker_saw_it_is_kept_nowhere_else() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, again());
    let (factory, now) = (Factory::new(315), clock::unix_now() - 1_000);
    let gone = factory.sign(0, 1, vec![], "its body goes", now - 9);
    // Remembered is what the database has said that it knows.
    for _ in 0..2 {
        let (_relay, url) = relay(&ctx, Script::honest([&gone], 500)).await;
        sync(&ctx, &url).await;
    }
    test.execute("SELECT event_fate_set(array_agg(id), array_agg(event_key), 2::smallint) FROM event").await;
    // With it comes what its author asks to have deleted, under another signature, and the request itself.
    let asked = factory.sign(1, 1, vec![], "deleted", now - 7);
    let request = factory.sign(1, 5, vec![vec!["e".to_owned(), asked.id.to_hex()]], "", now - 8);
    // A signature is known by how it begins.
    let forged = |event: &Event| altered(event, &event.sig.to_string()[..16], "0123456789abcdef");
    let page = |event: &Event| vec![forged(event), Stored::from(&request)];
    for event in [&gone, &asked] {
        let (_relay, url) = relay(&ctx, Script::of_stored(page(event), 500)).await;
        let report = sync(&ctx, &url).await;
        assert!(report["bad"]["bad_signature"].as_u64() >= Some(1), "{report}");
        assert_eq!(kept(&test).await, []);
    }
}

#[tokio::test]
async fn a_lightweight_archive_has_no_specimens_and_others_have_theirs_for_thirty_days() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, again());
    let note = Factory::new(316).sign(0, 1, vec![], "a", clock::unix_now() - 1_000);
    let forged = Stored::instead_of(&note, hostile::with_bad_signature(&note));
    let (_relay, url) = relay(&ctx, Script::of_stored(vec![forged.clone()], 500)).await;
    test.execute("UPDATE archive_setting SET light = true, light_at = now()").await;
    sync(&ctx, &url).await;
    assert_eq!(kept(&test).await, []);
    test.execute("UPDATE archive_setting SET light = false, light_at = NULL").await;
    sync_again(&test, &ctx, &url).await;
    assert_eq!(kept(&test).await, rows(&[("bad_signature", &forged)]));
    let retire = "SELECT specimen_retire(30, to_timestamp(at + 30 * 86400))::text FROM relay_specimen";
    assert_eq!(value(&test, retire).await, "0");
    test.execute("UPDATE relay_specimen SET at = extract(epoch FROM now())::bigint - 30 * 86400 - 1").await;
    assert_eq!(handle(&test, Role::Writer).specimen_retire(30).await.unwrap(), 1);
    assert_eq!(kept(&test).await, []);
}

#[tokio::test]
async fn a_lost_fence_writes_no_specimen_and_a_clock_that_was_ahead_keeps_none_out() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let (_, fence) = claim_one(&db, "w1", JobKind::Sync, "wss://one.example").await;
    let row = |text: &str| SpecimenRow { reason: "shape", text: text.to_owned(), bytes: text.len() };
    let another = Fence::new(fence.job().to_owned(), "w2".to_owned(), fence.attempt());
    assert!(!db.specimen_note(&another, 1, 5, &[row("lost")]).await.unwrap());
    assert_eq!(value(&test, "SELECT count(*)::text FROM relay_specimen").await, "0");
    for (at, text, stays) in [
        (1_000_000, "one", "one"),
        (1_086_399, "two", "one"),
        (913_601, "three", "one"),
        (1_086_400, "four", "four"),
        (1_000_000, "five", "five"),
    ] {
        assert!(db.specimen_note(&fence, 1, at, &[row(text), row("another")]).await.unwrap());
        let kept = value(&test, "SELECT convert_from(event, 'UTF8') FROM relay_specimen").await;
        assert_eq!(kept, stays, "{at}");
    }
}
