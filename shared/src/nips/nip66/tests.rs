//! Drafts from facts that relays write, and reports that others write.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::text::is_unfit;
use super::*;
use crate::models::{AddressPolicy, MAX_URL_BYTES};
use crate::nips::InfoView;

const SECRET: &str = "67dea2ed018072d675f5415ecfaed7d2597555e202d85b3d65ea4e58d2d92ffa";

fn url(text: &str) -> RelayUrl {
    RelayUrl::parse(text, &AddressPolicy::public()).unwrap()
}

fn facts<'a>(
    url: &'a RelayUrl,
    document: Option<&'a str>,
    fields: &'a Map<String, Value>,
) -> DiscoveryFacts<'a> {
    DiscoveryFacts {
        url,
        open_ms: 120,
        read_ms: Some(45),
        write_ms: None,
        read_needs_auth: None,
        write_refused: None,
        document,
        fields,
        dns_ttl_s: None,
    }
}

fn object(value: Value) -> Map<String, Value> {
    let Value::Object(map) = value else { panic!("not an object") };
    map
}

fn all<'a>(draft: &'a Draft, name: &str) -> Vec<&'a str> {
    draft.tags.iter().filter(|tag| tag[0] == name).map(|tag| tag[1].as_str()).collect()
}

#[test]
fn a_look_at_a_relay_becomes_the_event_of_the_nip() {
    let document = r#"{"name":"r","supported_nips":[1,50,11],"tags":["art","art"],"limitation":{"auth_required":false,
        "payment_required":true,"min_pow_difficulty":0},"retention":[{"kinds":[4],"time":0},{"kinds":[1,[5,9]]}]}"#;
    let fields = object(json!({
        "ssl_valid": true, "ssl_expires": 1_800_000_000, "ssl_issuer": "CA", "net_asn": 64_500, "net_ip": "8.8.8.8",
        "geo_hash": "u33d", "geo_lat": 52.5, "geo_city": "Berlin", "dns_ips": ["8.8.8.8", "8.8.4.4"], "dns_ips_v6": [],
        "http_server": "nginx", "unheard": "x",
    }));
    let relay = url("wss://relay.example");
    let draft = discovery(&DiscoveryFacts { dns_ttl_s: Some(300), ..facts(&relay, Some(document), &fields) });
    assert_eq!((draft.kind, draft.d_tag()), (30_166, "wss://relay.example/"));
    assert_eq!(draft.content, document.replace('\n', " "));
    for (name, values) in [
        ("n", vec!["clearnet"]),
        ("rtt-open", vec!["120"]),
        ("rtt-read", vec!["45"]),
        ("rtt-write", vec![]),
        ("R", vec!["!auth", "!pow", "payment"]),
        ("T", vec!["PublicOutbox", "Search"]),
        ("N", vec!["1", "11", "50"]),
        ("k", vec!["1", "!4"]),
        ("t", vec!["art"]),
        ("g", vec!["u33d"]),
        ("ssl", vec!["valid"]),
        ("ssl-expires", vec!["1800000000"]),
        ("net-asn", vec!["64500"]),
        ("geo-lat", vec!["52.5"]),
        ("dns-ip", vec!["8.8.8.8"]),
        ("dns-ip6", vec![]),
        ("dns-ttl", vec!["300"]),
        ("http-server", vec!["nginx"]),
    ] {
        assert_eq!(all(&draft, name), values, "{name}");
    }
}

#[test]
fn what_was_measured_stands_above_what_the_relay_says() {
    let (relay, none) = (url("wss://relay.example"), Map::new());
    let says = r#"{"limitation":{"auth_required":true,"restricted_writes":true}}"#;
    let claimed = discovery(&facts(&relay, Some(says), &none));
    assert_eq!((all(&claimed, "R"), all(&claimed, "T")), (vec!["auth", "writes"], vec!["PrivateStorage"]));
    let open = DiscoveryFacts {
        read_needs_auth: Some(false),
        write_refused: Some(false),
        ..facts(&relay, Some(says), &none)
    };
    let measured = discovery(&open);
    assert_eq!((all(&measured, "R"), all(&measured, "T")), (vec!["!auth", "!writes"], vec!["PublicInbox"]));
    let silent = discovery(&facts(&relay, None, &none));
    assert!(all(&silent, "R").is_empty() && all(&silent, "T").is_empty(), "nothing is guessed: {silent:?}");
    assert_eq!(silent.content, "{}");
}

#[test]
fn the_slash_is_added_only_where_there_is_no_path() {
    let none = Map::new();
    for (text, d) in [
        ("wss://a.example", "wss://a.example/"),
        ("wss://a.example/inbox/", "wss://a.example/inbox"),
        ("wss://a.example?x=1", "wss://a.example/?x=1"),
    ] {
        let relay = url(text);
        assert!(discovery(&facts(&relay, None, &none)).d_tag().starts_with(d), "{text}");
    }
}

#[test]
fn an_injected_header_never_reaches_a_tag() {
    let relay = url("wss://relay.example");
    for evil in [
        "nginx\r\nX-Evil: 1",
        "nginx\u{0}",
        "\u{1b}[31mred",
        "a\u{85}b",
        "a\u{2028}b",
        "\u{202e}txt",
        "\n",
        "",
        " \t ",
    ] {
        let fields =
            object(json!({ "http_server": evil, "geo_hash": evil, "dns_ips": [evil], "ssl_valid": evil }));
        let document = json!({ "tags": [evil], "name": evil }).to_string();
        let draft = discovery(&facts(&relay, Some(&document), &fields));
        for name in ["http-server", "g", "dns-ip", "ssl", "t"] {
            assert!(all(&draft, name).is_empty(), "{evil:?} came through as {name}");
        }
        assert!(!draft.content.contains(char::is_control), "{evil:?}");
        assert_eq!(
            serde_json::from_str::<Value>(&draft.content).unwrap()["name"],
            evil,
            "the document is exact"
        );
    }
    let long = "x".repeat(5_000);
    let draft = discovery(&facts(&relay, None, &object(json!({ "http_server": long })).clone()));
    assert_eq!(all(&draft, "http-server")[0].len(), TEXT_MAX_BYTES);
}

#[test]
fn a_document_too_large_for_relays_is_left_out_and_its_facts_are_not() {
    let (relay, none) = (url("wss://relay.example"), Map::new());
    let huge = json!({ "supported_nips": [1], "description": "x".repeat(CONTENT_MAX_BYTES) }).to_string();
    let draft = discovery(&facts(&relay, Some(&huge), &none));
    assert_eq!((draft.content.as_str(), all(&draft, "N")), ("{}", vec!["1"]));
}

#[test]
fn the_announcement_has_its_timeouts_in_the_order_of_the_example() {
    let draft = announcement(&MonitorFacts {
        frequency_s: 3_600,
        checks: &["open", "nip11"],
        timeouts_ms: &[("open", 5_000)],
        networks: &[crate::models::Network::Clearnet],
        geohash: Some("u33d"),
    });
    assert_eq!(
        json!(draft.tags),
        json!([
            ["frequency", "3600"],
            ["timeout", "open", "5000"],
            ["c", "open"],
            ["c", "nip11"],
            ["n", "clearnet"],
            ["g", "u33d"]
        ])
    );
    let nowhere = MonitorFacts {
        frequency_s: 1,
        checks: &[],
        timeouts_ms: &[],
        networks: &[],
        geohash: Some("Not a geohash"),
    };
    assert!(all(&announcement(&nowhere), "g").is_empty());
}

#[test]
fn a_profile_of_nothing_replaces_nobodys() {
    assert_eq!(profile(&Profile::default()), None);
    assert_eq!(profile(&Profile { name: Some("\u{7}".to_owned()), ..Profile::default() }), None);
    let named = Profile { name: Some("a \"b\"".to_owned()), ..Profile::default() };
    assert_eq!(profile(&named).unwrap().content, r#"{"name":"a \"b\""}"#);
    let list = relay_list(&[url("wss://a.example"), url("wss://b.example/x")]);
    assert_eq!(
        json!(list.tags),
        json!([["r", "wss://a.example/", "write"], ["r", "wss://b.example/x", "write"]])
    );
}

#[test]
fn a_withdrawal_names_our_event_and_drafts_of_one_saying_have_one_digest() {
    let keys = Keys::parse(SECRET).unwrap();
    let draft =
        withdrawal(&keys.pubkey_hex(), "wss://a.example/", &[EventId([1; 32])], "it does not speak Nostr");
    assert_eq!(all(&draft, "a"), [format!("30166:{}:wss://a.example/", keys.pubkey_hex())]);
    assert_eq!((draft.kind, all(&draft, "k")), (5, vec!["30166"]));
    assert_eq!(all(&draft, "e"), ["01".repeat(32)]);
    assert_eq!(draft.digest(), draft.clone().digest());
    assert_ne!(draft.digest(), Draft { kind: 6, ..draft.clone() }.digest());
    draft.sign(&keys, 7).unwrap().verify_signature().unwrap();
}

#[test]
fn reports_are_read_in_every_spelling() {
    let read = |tags: Value| {
        let tags: Vec<Vec<String>> = serde_json::from_value(tags).unwrap();
        parse_report(30_166, [7; 32], 9, &tags, &AddressPolicy::public())
    };
    let slash = read(json!([
        ["d", "wss://A.example/"],
        ["rtt-open", "12.7"],
        ["rtt-read", "x"],
        ["R", "!auth"],
        ["R", "payment"],
        ["N", "50"],
        ["N", "1"],
        ["N", "C7"],
        ["g", "u33"],
        [],
        ["R"]
    ]))
    .unwrap();
    assert_eq!(slash.url, read(json!([["d", "wss://a.example"]])).unwrap().url);
    assert_eq!((slash.rtt_ms, slash.auth, slash.payment), ([Some(12), None, None], Some(false), Some(true)));
    assert_eq!((slash.writes, slash.nips, slash.geohash.as_deref()), (None, vec![1, 50], Some("u33")));
    for bad in [json!([]), json!([["d"]]), json!([["d", "ab".repeat(32)]]), json!([["d", "ws://127.0.0.1"]])]
    {
        assert_eq!(read(bad.clone()), None, "{bad}");
    }
    assert_eq!(parse_report(1, [7; 32], 9, &[], &AddressPolicy::public()), None);
}

#[test]
fn both_orders_of_a_timeout_are_read() {
    let tags: Vec<Vec<String>> = serde_json::from_value(json!([
        ["frequency", "x"],
        ["frequency", "3600"],
        ["timeout", "open", "5000"],
        ["timeout", "3000", "read"],
        ["timeout", "1000"],
        ["timeout"],
        ["timeout", "a", "b"],
        ["timeout", "1", "2"],
        ["c", "WS"],
        ["c", "open"],
        ["c", "open"]
    ]))
    .unwrap();
    let row = parse_announcement(10_166, [1; 32], 5, &tags).unwrap();
    let timeouts: Vec<(&str, u32)> =
        row.timeouts_ms.iter().map(|(check, ms)| (check.as_str(), *ms)).collect();
    assert_eq!(timeouts, [("open", 5_000), ("read", 3_000), ("", 1_000)]);
    assert_eq!((row.frequency_s, row.checks), (Some(3_600), vec!["open".to_owned(), "ws".to_owned()]));
    assert_eq!(parse_announcement(30_166, [1; 32], 5, &tags), None);
}

#[test]
fn what_we_publish_we_read_back() {
    let relay = url("wss://relay.example/x?y=1");
    let fields = object(json!({ "geo_hash": "u33d" }));
    let document = r#"{"supported_nips":[1,77],"limitation":{"payment_required":true}}"#;
    let draft = discovery(&facts(&relay, Some(document), &fields));
    let row = parse_report(draft.kind, [1; 32], 1, &draft.tags, &AddressPolicy::public()).unwrap();
    assert_eq!((row.url, row.rtt_ms, row.payment), (relay, [Some(120), Some(45), None], Some(true)));
    assert_eq!((row.nips, row.geohash.as_deref()), (vec![1, 77], Some("u33d")));
}

/// Anything a document or a field may hold.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "[\u{0}-\u{9f}\u{2020}-\u{2030}]{0,400}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 40, 20, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..20).prop_map(Value::from),
            proptest::collection::vec((any::<String>(), inner), 0..8)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

fn documents() -> impl Strategy<Value = String> {
    let retention = proptest::collection::vec(
        (proptest::collection::vec(any::<u32>(), 0..200), anything())
            .prop_map(|(kinds, time)| json!({ "kinds": kinds, "time": time })),
        0..4,
    );
    let nips =
        prop_oneof![anything(), proptest::collection::vec(any::<u16>(), 0..600).prop_map(|v| json!(v))];
    let topics =
        prop_oneof![anything(), proptest::collection::vec(any::<String>(), 0..100).prop_map(|v| json!(v))];
    (anything(), nips, topics, retention, anything()).prop_map(|(name, nips, tags, retention, limitation)| {
        json!({ "name": name, "supported_nips": nips, "tags": tags, "retention": retention, "limitation": limitation })
            .to_string()
    })
}

proptest! {
    // One case holds eighteen fields and a document.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_relays_write_drafts_are_bounded_strings_without_control_characters(
        document in prop_oneof![documents(), any::<String>()],
        values in proptest::collection::vec(anything(), 18),
        times in any::<(u32, Option<u32>, Option<u32>, Option<u32>)>(),
    ) {
        const NAMES: [&str; 18] = [
            "ssl_valid", "ssl_expires", "ssl_issuer", "net_ip", "net_ipv6", "net_asn", "net_asn_org", "geo_hash",
            "geo_country", "geo_city", "geo_lat", "geo_lon", "geo_tz", "dns_ips", "dns_ips_v6", "dns_cname",
            "http_server", "http_powered_by",
        ];
        let fields: Map<String, Value> = NAMES.iter().map(|name| (*name).to_owned()).zip(values).collect();
        let relay = url("wss://relay.example");
        let draft = discovery(&DiscoveryFacts {
            open_ms: times.0, read_ms: times.1, write_ms: times.2, dns_ttl_s: times.3,
            ..facts(&relay, Some(&document), &fields)
        });
        prop_assert!(draft.tags.len() <= TAGS_MAX);
        prop_assert!(draft.content.len() <= CONTENT_MAX_BYTES && !draft.content.contains(char::is_control));
        prop_assert!(matches!(serde_json::from_str(&draft.content), Ok(Value::Object(_))));
        for tag in &draft.tags {
            prop_assert_eq!(tag.len(), 2);
            prop_assert!(!tag[1].is_empty() && tag[1].len() <= TEXT_MAX_BYTES.max(MAX_URL_BYTES + 1), "{:?}", tag);
            prop_assert!(!tag.iter().any(|text| text.chars().any(is_unfit)), "{:?}", tag);
        }
        // What goes out is what the one signature covers, and it fits a relay's usual message.
        let event = draft.sign(&Keys::parse(SECRET).unwrap(), 1).unwrap();
        prop_assert!(event.to_json().len() < 2 * CONTENT_MAX_BYTES + TAGS_MAX * (TEXT_MAX_BYTES + 40));
    }

    #[test]
    fn no_tags_make_the_readers_panic(tags in proptest::collection::vec(proptest::collection::vec(
        prop_oneof!["(d|c|R|N|g|timeout|frequency|rtt-open)", "[!a-z0-9./:]{0,12}", any::<String>()], 0..4), 0..30),
    ) {
        let policy = AddressPolicy::public();
        let row = parse_report(30_166, [0; 32], 1, &tags, &policy);
        prop_assert!(row.is_none_or(|row| row.nips.len() <= crate::nips::nip11::NIPS_MAX));
        let row = parse_announcement(10_166, [0; 32], 1, &tags).unwrap();
        prop_assert!(row.checks.iter().all(|check| !check.chars().any(is_unfit)));
    }
}

#[test]
fn the_document_is_read_by_the_same_lenient_view() {
    assert!(InfoView::from_json("[]").is_none());
    let (relay, none) = (url("wss://relay.example"), Map::new());
    for text in ["[]", "null", "not json", "{} {}", ""] {
        assert_eq!(discovery(&facts(&relay, Some(text), &none)).content, "{}", "{text}");
    }
}
