use proptest::prelude::*;
use secp256k1::{Keypair, SECP256K1, SecretKey};

use super::*;

/// An event signed by a fixed key.
fn signed(created_at: i64, kind: u16, tags: Vec<Vec<String>>, content: &str) -> Event {
    let pair = Keypair::from_secret_key(SECP256K1, &SecretKey::from_slice(&[7; 32]).unwrap());
    let mut event = Event {
        id: EventId([0; 32]),
        pubkey: pair.x_only_public_key().0.serialize(),
        created_at,
        kind,
        tags,
        content: content.to_owned(),
        sig: [0; 64],
    };
    event.id = event.computed_id();
    event.sig = SECP256K1.sign_schnorr_no_aux_rand(&event.id.0, &pair).to_byte_array();
    event
}

fn tag(elements: &[&str]) -> Vec<String> {
    elements.iter().map(|e| (*e).to_owned()).collect()
}

fn plain() -> Event {
    signed(1_700_000_000, 1, vec![tag(&["t", "nostr"])], "hello")
}

/// A well-formed event text with one piece replaced.
fn altered(from: &str, to: &str) -> Result<Event, EventError> {
    let json = plain().to_json();
    assert!(json.contains(from), "{from} in {json}");
    Event::parse(&json.replace(from, to))
}

#[test]
fn a_written_event_reads_back_and_verifies() {
    let event = plain();
    let again = Event::parse(&event.to_json()).unwrap();
    assert_eq!(again, event);
    assert_eq!(again.verify_signature(), Ok(()));
    assert_eq!(EnvelopeFacts::scan(&event.to_json()), Ok(event.facts()));
    assert_eq!(event.tags_json(), r#"[["t","nostr"]]"#);
    assert_eq!(Event::parse_tags(&event.tags_json()).unwrap(), event.tags());
}

#[test]
fn nothing_valid_is_lost() {
    let long_cjk = "漢".repeat(3_000);
    for text in
        ["\0", "a\0b", "\u{1}\u{8}\u{b}\u{c}\u{1f}\u{7f}\u{85}", "\u{2028}\"\\/\n\r\t", "🦀", &long_cjk, ""]
    {
        let event = signed(0, 30_023, vec![tag(&["d", text]), tag(&[text]), vec![]], text);
        let again = Event::parse(&event.to_json()).unwrap();
        assert_eq!(again, event);
        assert_eq!(again.verify_signature(), Ok(()));
        let stored = Event::from_parts(
            again.id,
            again.pubkey,
            0,
            30_023,
            Event::parse_tags(&again.tags_json()).unwrap(),
            again.content.clone(),
            again.sig,
        );
        assert_eq!(stored, Ok(again));
    }
}

#[test]
fn another_implementation_agrees_on_id_and_signature() {
    for content in ["hello", "\"\\\n\r\t\u{8}\u{c}", "\0\u{1}\u{1f}\u{7f}\u{2028}", "é漢🦀"] {
        let event = signed(1_700_000_000, 1, vec![tag(&["p", content])], content);
        let theirs = nostr::event::Event::from_json(event.to_json()).unwrap();
        theirs.verify().unwrap();
        assert_eq!(Event::parse(&theirs.as_json()).unwrap(), event);
    }
}

#[test]
fn extra_keys_blanks_escapes_and_order_do_not_matter() {
    let event = plain();
    let json = event.to_json();
    let extra = json.replacen('{', r#"{"seen":[{"a":1,"a":2}],"":null,"#, 1);
    assert_eq!(Event::parse(&extra), Ok(event.clone()));
    assert_eq!(Event::parse(&format!(" \n{} ", json.replace("\":", "\" : "))), Ok(event.clone()));
    assert_eq!(Event::parse(&json.replace("hello", "\\u0068ello")), Ok(event.clone()));
    assert_eq!(Event::parse(&json.replace("\"kind\"", "\"\\u006bind\"")), Ok(event.clone()));
    let id = event.id().to_string();
    let escaped = format!("\\u{:04x}{}", u32::from(id.as_bytes()[0]), &id[1..]);
    assert_eq!(Event::parse(&json.replace(&id, &escaped)), Ok(event));
}

#[test]
fn a_key_that_comes_twice_is_refused() {
    let doubled = Err(EventError::Shape("duplicate_key"));
    assert_eq!(altered("\"kind\":1", "\"kind\":1,\"kind\":1"), doubled);
    assert_eq!(altered("\"kind\":1", "\"kind\":1,\"\\u006bind\":2"), doubled);
    assert_eq!(altered("\"kind\":1", "\"kind\":1,\"x\":1,\"x\":1"), doubled);
    let json = plain().to_json().replace("\"kind\":1", "\"kind\":1,\"kind\":1");
    assert_eq!(EnvelopeFacts::scan(&json), Err(EventError::Shape("duplicate_key")));
}

#[test]
fn times_and_kinds_out_of_range_are_told_apart_from_wrong_types() {
    let time = "1700000000";
    for text in ["-1", "-0", "9223372036854775808", "99999999999999999999999", "-9223372036854775809"] {
        assert_eq!(altered(time, text), Err(EventError::Range("created_at")), "{text}");
    }
    for text in ["1.0", "1.5", "1e9", "\"1700000000\"", "null", "true", "[1]", "{}"] {
        assert_eq!(altered(time, text), Err(EventError::Shape("created_at")), "{text}");
    }
    assert_eq!(altered("\"kind\":1", "\"kind\":65536"), Err(EventError::Range("kind")));
    assert_eq!(altered("\"kind\":1", "\"kind\":-1"), Err(EventError::Range("kind")));
    assert_eq!(altered("\"kind\":1", "\"kind\":1.0"), Err(EventError::Shape("kind")));
    for (at, kind) in [(i64::MAX, 65_535), (0, 0)] {
        let edge = signed(at, kind, vec![], "");
        assert_eq!(Event::parse(&edge.to_json()), Ok(edge));
    }
    let event = plain();
    let parts = Event::from_parts(event.id, event.pubkey, -1, 1, vec![], String::new(), event.sig);
    assert_eq!(parts, Err(EventError::Range("created_at")));
}

#[test]
fn a_wrong_shape_names_its_field() {
    assert_eq!(altered("[[\"t\",\"nostr\"]]", "[[\"t\",1]]"), Err(EventError::Shape("tags")));
    assert_eq!(altered("[[\"t\",\"nostr\"]]", "[\"t\"]"), Err(EventError::Shape("tags")));
    assert_eq!(altered("[[\"t\",\"nostr\"]]", "{}"), Err(EventError::Shape("tags")));
    assert_eq!(altered("\"hello\"", "null"), Err(EventError::Shape("content")));
    assert_eq!(altered("\"hello\"", "7"), Err(EventError::Shape("content")));
    assert_eq!(altered(",\"content\":\"hello\"", ""), Err(EventError::Shape("content")));
    let event = plain();
    for (field, value) in [
        ("id", event.id().to_string()),
        ("pubkey", hex::encode(event.pubkey())),
        ("sig", hex::encode(event.sig())),
    ] {
        assert_eq!(altered(&value, &value.to_uppercase()), Err(EventError::Shape(field)));
        assert_eq!(altered(&value, &value[2..]), Err(EventError::Shape(field)));
        assert_eq!(altered(&format!("\"{value}\""), "5"), Err(EventError::Shape(field)));
        assert_eq!(altered(&format!("\"{field}\""), "\"other\""), Err(EventError::Shape(field)));
    }
    for text in ["[]", "3", "null", "\"x\""] {
        assert_eq!(Event::parse(text), Err(EventError::Shape("object")), "{text}");
    }
}

#[test]
fn what_is_not_json_is_not_an_event() {
    let json = plain().to_json();
    for text in ["", "{", "nope", &json[..json.len() - 1], &format!("{json}x"), &format!("{json}{json}")] {
        assert_eq!(Event::parse(text), Err(EventError::NotJson), "{text}");
    }
    assert_eq!(altered("hello", "\\ud800"), Err(EventError::NotJson));
    assert_eq!(altered("hello", "\0"), Err(EventError::NotJson));
    let deep = json.replacen('{', &format!("{{\"x\":{}{},", "[".repeat(90_000), "]".repeat(90_000)), 1);
    assert_eq!(Event::parse(&deep), Ok(plain()));
    assert_eq!(Event::parse(&" ".repeat(MAX_EVENT_BYTES + 1)), Err(EventError::TooLarge));
}

#[test]
fn an_id_over_another_way_to_write_json_is_no_forgery() {
    let pair = Keypair::from_secret_key(SECP256K1, &SecretKey::from_slice(&[7; 32]).unwrap());
    let event = signed(1_700_000_000, 1, Vec::new(), "a\u{7f}b");
    let hash = |text: String| EventId(Sha256::digest(text).into());
    let read = |id, sig| {
        let Event { pubkey, created_at, kind, tags, content, .. } = event.clone();
        Event::from_parts(id, pubkey, created_at, kind, tags, content, sig)
    };
    assert!(read(hash(event.canonical()), event.sig).is_ok());
    let other = hash(event.canonical().replace('\u{7f}', "\\u007f"));
    let sig = SECP256K1.sign_schnorr_no_aux_rand(&other.0, &pair).to_byte_array();
    let error = read(other, sig).unwrap_err();
    assert_eq!((error, error.is_forgery()), (EventError::OtherEscape, false));
    assert!(read(other, event.sig).unwrap_err().is_forgery(), "its author signed no such thing");
    assert!(read(EventId([7; 32]), sig).unwrap_err().is_forgery());
}

#[test]
fn a_forged_body_or_signature_is_found() {
    assert_eq!(altered("hello", "hullo"), Err(EventError::BadId));
    assert_eq!(altered("1700000000", "1700000001"), Err(EventError::BadId));
    let mut event = plain();
    event.sig[5] ^= 1;
    assert_eq!(event.verify_signature(), Err(EventError::BadSignature));
    event.pubkey = [0xff; 32];
    assert_eq!(event.verify_signature(), Err(EventError::BadSignature));
}

#[test]
fn a_scan_looks_at_nothing_but_the_envelope() {
    let event = plain();
    let json = event.to_json();
    let odd = json.replace("[[\"t\",\"nostr\"]]", "7").replace("\"hello\"", "{}");
    assert_eq!(EnvelopeFacts::scan(&odd), Ok(event.facts()));
    assert_eq!(EnvelopeFacts::scan("{}"), Err(EventError::Shape("id")));
    assert_eq!(EnvelopeFacts::scan("[]"), Err(EventError::Shape("object")));
}

#[test]
fn keys_ascend_in_time_and_never_leave_bigint() {
    let ones = EventId([0xff; 32]);
    let zero = EventId([0; 32]);
    assert_eq!(event_key(0, &zero), 0);
    assert_eq!(event_key(0, &ones), (1 << 31) - 1);
    assert_eq!(event_key(1, &zero), 1 << 31);
    assert_eq!(event_key(i64::from(u32::MAX), &ones), i64::MAX);
    assert_eq!(event_key(i64::MAX, &ones), i64::MAX);
    assert_eq!(event_key(-5, &zero), 0);
    let mut id = [0; 32];
    id[3] = 0b11;
    assert_eq!(event_key(0, &EventId(id)), 1);
}

#[test]
fn the_d_tag_is_there_for_addressable_kinds_only() {
    let d = |kind, tags| signed(1, kind, tags, "").d_tag().map(str::to_owned);
    let two = vec![tag(&["e", "x"]), tag(&["d", "first"]), tag(&["d", "second"])];
    assert_eq!(d(30_000, two.clone()), Some("first".to_owned()));
    assert_eq!(d(39_999, vec![]), Some(String::new()));
    assert_eq!(d(39_999, vec![tag(&["d"]), tag(&["d", "late"])]), Some(String::new()));
    assert_eq!(d(29_999, two.clone()), None);
    assert_eq!(d(40_000, two), None);
}

#[test]
fn kinds_fall_into_the_classes_of_nip_01() {
    for (kind, class) in [
        (0, KindClass::Replaceable),
        (1, KindClass::Regular),
        (3, KindClass::Replaceable),
        (9_999, KindClass::Regular),
        (10_000, KindClass::Replaceable),
        (20_000, KindClass::Ephemeral),
        (30_000, KindClass::Addressable),
        (40_000, KindClass::Regular),
    ] {
        assert_eq!(KindClass::of(kind), class, "{kind}");
    }
}

#[test]
fn tag_hashes_are_of_single_letters_sorted_and_each_once() {
    let tags = vec![
        tag(&["t", "nostr", "more"]),
        tag(&["p", "x"]),
        tag(&["t", "nostr"]),
        tag(&["t"]),
        tag(&["relay", "r"]),
        tag(&["1", "digit"]),
        tag(&["é", "letter"]),
        tag(&["", "none"]),
        vec![],
    ];
    let mut expected = vec![tag_hash('t', "nostr"), tag_hash('p', "x")];
    expected.sort_unstable();
    assert_eq!(signed(1, 1, tags, "").tag_hashes(), expected);
    // printf 't:nostr' | sha256sum
    assert_eq!(tag_hash('t', "nostr").to_be_bytes(), [0x8b, 0xf7, 0x20, 0xe8, 0x14, 0x31, 0xdd, 0x22]);
}

#[test]
fn ids_read_back_from_their_text_and_bytes() {
    let id = plain().id();
    assert_eq!(id.to_string().parse(), Ok(id));
    assert_eq!(EventId::try_from(&id.as_bytes()[..]), Ok(id));
    assert!(EventId::try_from(&[0; 31][..]).is_err());
    assert!("é".repeat(32).parse::<EventId>().is_err());
}

proptest! {
    #[test]
    fn any_text_survives_the_way_out_and_back(
        content in any::<String>(),
        tags in prop::collection::vec(prop::collection::vec(any::<String>(), 0..4), 0..4),
        created_at in 0..=i64::MAX,
        kind in any::<u16>(),
    ) {
        let event = signed(created_at, kind, tags, &content);
        let again = Event::parse(&event.to_json()).unwrap();
        prop_assert_eq!(Event::parse_tags(&again.tags_json()).unwrap(), again.tags());
        prop_assert_eq!(again.verify_signature(), Ok(()));
        prop_assert_eq!(again, event);
    }

    #[test]
    fn no_text_makes_reading_panic(text in any::<String>(), cut in 0_usize..400, with in "[ -~]{0,3}") {
        prop_assert!(Event::parse(&text).is_err());
        let mut json = plain().to_json();
        let cut = cut.min(json.len());
        json.replace_range(cut..(cut + with.len()).min(json.len()), &with);
        if let Ok(event) = Event::parse(&json) {
            prop_assert_eq!(event.computed_id(), event.id());
            prop_assert_eq!(EnvelopeFacts::scan(&json), Ok(event.facts()));
        }
    }
}
