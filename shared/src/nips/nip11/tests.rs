//! Documents as relays write them.

use proptest::prelude::*;

use super::*;

#[test]
fn a_full_document_reads_whole() {
    let text = r#"{"name":" relay ","description":"d","pubkey":"aa","self":"bb","contact":"c","software":"s",
        "version":"1.0","supported_nips":[77,1,11,1],"negentropy":1,"limitation":{"max_limit":500,
        "default_limit":100,"auth_required":false,"payment_required":true,"restricted_writes":true,
        "created_at_lower_limit":94608000,"max_subid_length":64}}"#;
    let view = InfoView::from_json(text).unwrap();
    assert_eq!(view.name.as_deref(), Some("relay"));
    assert_eq!(view.self_pubkey.as_deref(), Some("bb"));
    assert_eq!(view.supported_nips, [1, 11, 77]);
    assert!(view.supports(77) && !view.supports(42));
    assert_eq!(view.limitation.max_limit, Some(500));
    assert_eq!(view.limitation.default_limit, Some(100));
    assert_eq!(view.limitation.auth_required, Some(false));
    assert_eq!(view.limitation.payment_required, Some(true));
    assert_eq!(view.limitation.created_at_lower_limit, Some(94_608_000));
    assert_eq!(view.negentropy, Some(1));
}

#[test]
fn wrong_types_are_dropped_and_spoil_nothing() {
    let text = r#"{"name":7,"description":null,"contact":["x"],"software":"","version":"2",
        "supported_nips":["11","C7",1,-1,70000,1.5,null,[9]],
        "limitation":{"max_limit":"500","default_limit":-1,"auth_required":"true","payment_required":2,
        "restricted_writes":1,"max_subscriptions":1e30}}"#;
    let view = InfoView::from_json(text).unwrap();
    assert_eq!((view.name, view.description, view.contact, view.software), (None, None, None, None));
    assert_eq!(view.version.as_deref(), Some("2"));
    assert_eq!(view.supported_nips, [1, 11]);
    assert_eq!(view.limitation.max_limit, Some(500));
    assert_eq!(view.limitation.default_limit, None);
    assert_eq!(view.limitation.auth_required, Some(true));
    assert_eq!(view.limitation.payment_required, None);
    assert_eq!(view.limitation.restricted_writes, Some(true));
    assert_eq!(view.limitation.max_subscriptions, None);
}

#[test]
fn supported_nips_may_be_a_scalar() {
    for (text, nips) in [
        (r#"{"supported_nips":11}"#, vec![11]),
        (r#"{"supported_nips":"11"}"#, vec![11]),
        (r#"{"supported_nips":{"1":true}}"#, vec![]),
        (r#"{"limitation":[]}"#, vec![]),
    ] {
        assert_eq!(InfoView::from_json(text).unwrap().supported_nips, nips, "{text}");
    }
}

#[test]
fn lists_and_prices_keep_what_can_be_read() {
    let text = r#"{"tags":["a","a"," b ","",7],"language_tags":"en","relay_countries":["DE"],
        "fees":{"admission":[{"amount":"1000","unit":"msats"},{"amount":1},"free"],"subscription":{},
        "publication":[{"amount":2,"unit":"msats","kinds":[4,"1"],"period":60}]},
        "retention":[{"kinds":[0,[5,7],[1],"x"],"time":3600},{"count":10,"time":null},3]}"#;
    let view = InfoView::from_json(text).unwrap();
    assert_eq!(view.tags, ["a", "b"]);
    assert!(view.language_tags.is_empty());
    assert_eq!(view.relay_countries, ["DE"]);
    let price = |amount, period, kinds| Fee { amount, unit: "msats".to_owned(), period, kinds };
    assert_eq!(view.fees.admission, [price(1_000, None, vec![])]);
    assert_eq!(view.fees.publication, [price(2, Some(60), vec![1, 4])]);
    assert!(view.fees.any() && view.fees.subscription.is_empty());
    let kept = |kinds, time, count| Retention { kinds, time, count };
    assert_eq!(view.retention, [kept(vec![(0, 0), (5, 7)], Some(3_600), None), kept(vec![], None, Some(10))]);
    let many: Vec<String> = (0..1_000).map(|n| n.to_string()).collect();
    let text = serde_json::json!({ "tags": many, "attributes": ["x".repeat(1_000)] }).to_string();
    let view = InfoView::from_json(&text).unwrap();
    assert_eq!((view.tags.len(), view.attributes.len()), (LIST_MAX, 0));
}

#[test]
fn what_is_no_object_is_no_view() {
    for text in ["", "[]", "null", "\"x\"", "<html>", "{", "{} {}"] {
        assert_eq!(InfoView::from_json(text), None, "{text}");
    }
    assert_eq!(InfoView::from_json("{}"), Some(InfoView::default()));
}

#[test]
fn what_nests_deeply_is_passed_over() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let text = format!(
        r#"{{"name":{deep},"x":{deep},"supported_nips":{deep},"fees":{{"admission":[{deep}]}},"version":"1"}}"#
    );
    let view = InfoView { version: Some("1".to_owned()), ..InfoView::default() };
    assert_eq!(InfoView::from_json(&text), Some(view));
}

#[test]
fn the_view_is_bounded() {
    let all: Vec<String> = (0..=u16::MAX).map(|nip| nip.to_string()).collect();
    let text = format!(r#"{{"name":"{}","supported_nips":[{}]}}"#, "é".repeat(5000), all.join(","));
    let view = InfoView::from_json(&text).unwrap();
    assert!(view.name.unwrap().len() <= TEXT_MAX_BYTES);
    assert_eq!(view.supported_nips.len(), NIPS_MAX);
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "\\{\"(name|supported_nips|limitation)\":\\PC{0,40}\\}") {
        let view = InfoView::from_json(&text);
        prop_assert!(view.is_none_or(|view| view.supported_nips.len() <= NIPS_MAX));
    }
}
