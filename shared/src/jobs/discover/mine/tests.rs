//! What is found in which event, and what nobody should find.

use proptest::prelude::*;

use super::*;

fn event(kind: i32, tags: &str, content: &str) -> UnminedEvent {
    UnminedEvent {
        key: 1,
        kind: Some(kind),
        tags: Some(tags.as_bytes().to_vec()),
        content: Some(content.as_bytes().to_vec()),
        ..UnminedEvent::default()
    }
}

fn mined(kind: i32, tags: &str, content: &str) -> Vec<String> {
    let mined = mine(&[event(kind, tags, content)], &AddressPolicy::public());
    mined.found.iter().map(|(url, source)| format!("{url} {source}")).collect()
}

#[test]
fn relays_are_found_at_every_index_of_every_tag_and_the_place_is_told() {
    let tags = r#"[["r","wss://a.example/","read"],["e","00","wss://b.example"],["relays","x","WSS://C.example"],["p","00"," wss://d.example "],["client","x","31990:00:y","wss://e.example"]]"#;
    assert_eq!(
        mined(1, tags, ""),
        [
            "wss://a.example tag",
            "wss://b.example hint",
            "wss://c.example tag",
            "wss://d.example hint",
            "wss://e.example tag"
        ]
    );
    assert_eq!(mined(10_002, r#"[["r","wss://a.example"]]"#, ""), ["wss://a.example relay_list"]);
    assert_eq!(mined(10_050, r#"[["relay","wss://a.example"]]"#, ""), ["wss://a.example list"]);
    assert_eq!(
        mined(30_166, r#"[["d","wss://a.example/"],["rtt-open","5"]]"#, "{}"),
        ["wss://a.example monitor"]
    );
    assert_eq!(mined(2, "[]", "wss://a.example"), ["wss://a.example list"]);
    let lines = r#"[["r","wss://a.example\nwss://b.example, wss://c.example"]]"#;
    assert_eq!(mined(1, lines, ""), ["wss://a.example tag", "wss://b.example tag", "wss://c.example tag"]);
}

#[test]
fn a_zap_receipt_names_the_relays_of_its_request() {
    let tags = r#"[["description","{\"kind\":9734,\"tags\":[[\"relays\",\"wss://a.example\",\"wss://b.example/\"],[\"p\",\"00\"]]}"]]"#;
    assert_eq!(mined(9735, tags, ""), ["wss://a.example text", "wss://b.example text"]);
}

#[test]
fn contact_lists_prose_and_codes_are_read() {
    assert_eq!(
        mined(3, "[]", r#"{"wss://a.example":{"read":true},"wss:\/\/b.example":{},"x":1}"#),
        ["wss://a.example contacts", "wss://b.example contacts"]
    );
    assert_eq!(mined(3, "[]", r#"{"wss://a.example":{"read":true}"#), ["wss://a.example text"], "cut off");
    assert!(mined(3, "[]", "not json").is_empty());
    assert_eq!(mined(1, "[]", "join wss://a.example!"), ["wss://a.example text"]);
    let code = "nostr:nrelay1qqt8wumn8ghj7un9d3shjtnwdaehgu3wvfskueq4r295t";
    assert_eq!(mined(1, "[]", &format!("see {code}.")), ["wss://relay.nostr.band nip19"]);
    assert_eq!(mined(1, &format!(r#"[["x","{code}"]]"#), ""), ["wss://relay.nostr.band nip19"]);
}

#[test]
fn hostile_and_useless_texts_are_refused_and_lose_nothing_else() {
    let long = format!("wss://long.example/{}", "x".repeat(29_000));
    let tags = serde_json::json!([
        ["r", "ws://127.0.0.1"],
        ["r", "wss://"],
        ["r", "https://a.example"],
        ["r", long],
        ["r", "wss://a.example\u{0}"],
        ["r", "wss://b.ex\nample"],
        ["r", "wss://c.example/wss://d.example"],
        ["r", "ws://[::ffff:10.0.0.1]"],
        ["r", "wss://user@e.example"],
        ["r", "wss://localhost"],
        ["r", "wss://good.example"]
    ]);
    let found = mine(&[event(1, &tags.to_string(), &long)], &AddressPolicy::public());
    let urls: Vec<_> = found.found.iter().map(|(url, _)| url.as_str()).collect();
    assert_eq!(urls, ["wss://good.example"]);
    assert!(found.refused >= 8, "{found:?}");
}

#[test]
fn an_event_and_a_batch_cost_no_more_than_their_limit() {
    let many = |from: usize, n: usize| {
        (from..from + n).map(|i| format!("wss://h{i}.example")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(mine(&[event(1, "[]", &many(0, 900))], &AddressPolicy::public()).found.len(), URLS_PER_EVENT);
    let bad = "wss://x ".repeat(5_000);
    let mined = mine(&[event(1, "[]", &bad), event(1, "[]", "wss://a.example")], &AddressPolicy::public());
    assert_eq!((mined.found.len(), mined.refused, mined.events), (1, TRIES_PER_EVENT as u64, 2));
    let spam: Vec<_> = (0..60).map(|i| event(1, "[]", &many(i * 1_000, 500))).collect();
    let mined = mine(&spam, &AddressPolicy::public());
    assert_eq!((mined.found.len(), mined.events), (URLS_PER_BATCH, 40), "the rest is for the next batch");
}

#[test]
fn profiles_give_names_to_ask_one_per_domain() {
    let profile = |nip05: &str| {
        event(0, "[]", &format!(r#"{{"name":"x","nip05":{nip05},"about":"wss://a.example\nhi"}}"#))
    };
    let mined = mine(
        &[
            profile(r#""bob@b.example""#),
            profile(r#""al@b.example""#),
            profile("5"),
            profile(r#""_@127.0.0.1""#),
            profile(r#""c.example""#),
        ],
        &AddressPolicy::public(),
    );
    let names: Vec<_> = mined.names.iter().map(|name| format!("{}@{}", name.name(), name.domain())).collect();
    assert_eq!(names, ["bob@b.example", "_@c.example"]);
    assert_eq!(mined.found.len(), 1);
}

#[test]
fn events_that_are_gone_or_empty_are_done_with() {
    let mined =
        mine(&[UnminedEvent::default(), event(1, "", ""), event(1, "[]", "")], &AddressPolicy::public());
    assert_eq!((mined.found.len(), mined.events), (0, 3));
}

proptest! {
    #[test]
    fn no_event_panics(kind in prop_oneof![Just(0), Just(2), Just(3), Just(30_166), 0..40_000_i32],
                       tags in proptest::collection::vec(any::<u8>(), 0..80),
                       content in "(wss?://|nprofile1|\"nip05\"|[{}\\[\\]\":,a-z1\\\\]){0,30}") {
        let event = UnminedEvent { kind: Some(kind), tags: Some(tags), content: Some(content.into_bytes()), ..UnminedEvent::default() };
        mine(&[event], &AddressPolicy::public());
    }
}
