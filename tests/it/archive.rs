//! What the archive must never lose or mix up.

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use shared::db::EventRow;
use shared::models::{AddressPolicy, Event, Metadata, MetadataType, RelayUrl};
use tests::factory::Factory;
use tests::pg::Role;

use super::support::{handle, migrated, value};

/// Two events of one second whose ids share their top 31 bits, in every order and at the end of time.
#[tokio::test]
async fn events_that_share_a_key_are_kept_apart() {
    let Some(test) = migrated().await else { return };
    test.execute(
        "CREATE FUNCTION twin(n int, key bigint) RETURNS int LANGUAGE sql AS $$
         SELECT event_insert(ARRAY[decode('aaaaaaaa' || lpad(to_hex(n), 56, '0'), 'hex')], ARRAY[key], ARRAY[100::bigint],
             ARRAY[decode(repeat('cd', 32), 'hex')], ARRAY[1], ARRAY['[]'::bytea], ARRAY[''::bytea],
             ARRAY[decode(repeat('ef', 64), 'hex')], ARRAY[NULL::bytea], ARRAY['{}']) $$",
    )
    .await;
    for key in ["214748364800", "9223372036854775807"] {
        for (n, new) in [(1, "1"), (2, "1"), (3, "1"), (2, "0"), (1, "0"), (3, "0")] {
            let n = if key.len() > 12 { n + 10 } else { n };
            test.execute(&format!(
                "CREATE TABLE IF NOT EXISTS seen (new int); INSERT INTO seen SELECT twin({n}, {key})"
            ))
            .await;
            assert_eq!(value(&test, "SELECT sum(new)::text FROM seen").await, new, "{n} at {key}");
            test.execute("DROP TABLE seen").await;
        }
    }
    assert_eq!(value(&test, "SELECT count(*) || ' ' || count(DISTINCT id) FROM event").await, "6 6");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_collision").await, "4");
    // Each is found by its natural key.
    assert_eq!(
        value(&test, "SELECT count(DISTINCT r.event_key)::text FROM (SELECT array_agg(id) ids FROM event WHERE event_key < 9000000000000000000) e,
                      event_resolve(e.ids, array_fill(214748364800, ARRAY[cardinality(e.ids)])) r").await,
        "3"
    );
}

#[tokio::test]
async fn nothing_the_models_accept_is_refused_by_the_database() {
    let Some(test) = migrated().await else { return };
    let (writer, reader) = (handle(&test, Role::Writer), handle(&test, Role::Reader));
    let mut runner = TestRunner::deterministic();
    // Any characters, NUL among them, sometimes many; and what a path may look like.
    let wild = proptest::collection::vec(proptest::char::any(), 0..200).prop_map(String::from_iter);
    let path = "[a-zA-Z0-9~._/?=&éß漢%-]{0,60}";
    let factory = Factory::new(31);
    let (mut relays, mut seen, mut documents) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..300_i64 {
        let mut any = || wild.new_tree(&mut runner).unwrap().current();
        let (tags, content) = (vec![vec!["d".to_owned(), any()], vec!["t".to_owned(), any(), any()]], any());
        let json =
            serde_json::json!({ "data": { "name": any().replace('\0', ""), "n": [i, 1e16, i64::MAX] } })
                .to_string();
        let url = format!("wss://r{i}.example/{}", path.new_tree(&mut runner).unwrap().current());
        relays.extend(RelayUrl::parse(&url, &AddressPolicy::public()).ok().map(|url| (url, i)));
        let kind = [1, 0, 30_023, 3, 65_535][usize::try_from(i).unwrap() % 5];
        let event = factory.sign(usize::try_from(i).unwrap(), kind, tags, &content, i * 40_000_000);
        let event = Event::parse(&event.as_json()).unwrap();
        seen.push((
            EventRow::from(event),
            RelayUrl::parse("wss://one.example", &AddressPolicy::public()).unwrap(),
            i,
        ));
        documents.extend(Metadata::new(MetadataType::Nip11Info, &json).ok());
    }
    assert!(relays.len() > 50 && documents.len() == 300, "{} {}", relays.len(), documents.len());
    writer.relay_insert(&relays).await.unwrap();
    assert_eq!(writer.event_relay_insert_cascade(&seen).await.unwrap(), 300);
    writer.metadata_insert(&documents).await.unwrap();
    let report = reader.verify(None).await.unwrap();
    assert_eq!((report.events, &report.corruptions[..]), (300, &[][..]));
    writer.all_statistics_refresh().await.unwrap();
    assert_eq!(value(&test, "SELECT event_count::text FROM event_stats").await, "300");
}

#[tokio::test]
async fn a_row_corrupted_by_hand_is_reported_with_table_column_and_row() {
    let Some(test) = migrated().await else { return };
    let (writer, reader) = (handle(&test, Role::Writer), handle(&test, Role::Reader));
    let url = RelayUrl::parse("wss://one.example", &AddressPolicy::public()).unwrap();
    let document = Metadata::new(MetadataType::Nip11Info, r#"{"data":{"name":"x"}}"#).unwrap();
    writer.relay_metadata_insert_cascade(&[(url.clone(), document, 5)]).await.unwrap();
    let event = Event::parse(&Factory::new(1).events(1)[0].as_json()).unwrap();
    writer.event_relay_insert_cascade(&[(EventRow::from(event), url, 5)]).await.unwrap();
    // A range that an operator once allowed is no corruption.
    let allowed = AddressPolicy::public().with_ranges(["100.64.0.0/10".parse().unwrap()]);
    writer.relay_insert(&[(RelayUrl::parse("ws://100.64.0.1:1", &allowed).unwrap(), 5)]).await.unwrap();
    assert_eq!(reader.verify(None).await.unwrap().corruptions, vec![]);
    test.execute(
        "UPDATE relay SET url = 'wss://ONE.example/../x' WHERE id = 1; UPDATE metadata SET data = '{\"data\":{\"name\":\"y\"}}';
         UPDATE event SET content = 'forged'",
    )
    .await;
    let found: Vec<_> = reader
        .verify(None)
        .await
        .unwrap()
        .corruptions
        .into_iter()
        .map(|c| (c.table, c.column, c.row))
        .collect();
    assert_eq!(
        found.iter().map(|c| (c.0.as_str(), c.1.as_str())).collect::<Vec<_>>(),
        [("relay", "url"), ("metadata", "id"), ("event", "id")]
    );
    assert!(found[0].2.contains("id=1") && found[2].2.contains("event_key="), "{found:?}");
}

/// Whether events are known is asked more often than anything else; their rows are twenty times the size of the key and
/// need not be read for it (`migrations/0024_storage.sql`).
#[tokio::test]
async fn what_is_known_is_answered_from_the_key_alone() {
    let Some(test) = migrated().await else { return };
    let url = RelayUrl::parse("wss://one.example", &AddressPolicy::public()).unwrap();
    let events = Factory::new(7).events(100);
    let seen: Vec<_> = events
        .iter()
        .map(|event| (EventRow::from(Event::parse(&event.as_json()).unwrap()), url.clone(), 5))
        .collect();
    handle(&test, Role::Writer).event_relay_insert_cascade(&seen).await.unwrap();
    // Another transaction of the server may keep the map of what is visible from being set.
    let whole = "SELECT bool_and(relallvisible = relpages)::text FROM pg_class WHERE relkind = 'r' AND relname ~ '^event_(default|[0-9])'";
    for _ in 0..200 {
        test.execute("VACUUM event").await;
        if value(&test, whole).await == "true" {
            break;
        }
        // bound: 200 × 50 ms.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(value(&test, whole).await, "true");
    test.execute(
        "CREATE TABLE asked AS SELECT array_agg(id) AS ids, array_agg(event_key) AS keys FROM event; \
         SELECT pg_stat_force_next_flush()",
    )
    .await;
    let rows = "SELECT coalesce(sum(idx_tup_fetch), 0)::text FROM pg_stat_user_tables WHERE relname ~ '^event_(default|[0-9])'";
    let before = value(&test, rows).await;
    test.execute(
        "DO $$ BEGIN ASSERT (SELECT count(*) FROM asked a, event_resolve(a.ids, a.keys)) = 100; END $$; \
         SELECT pg_stat_force_next_flush()",
    )
    .await;
    assert_eq!(value(&test, rows).await, before, "rows of events were read");
}
