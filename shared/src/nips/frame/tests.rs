//! Frames read from text, and ours written.

use proptest::prelude::*;

use super::*;

fn eose(hint: Option<EoseHint>) -> RelayFrame<'static> {
    RelayFrame::Eose { sub: "s".into(), hint }
}

#[test]
fn each_frame_reads_as_its_value() {
    let table = [
        (r#"["EVENT","s",{"id":1}]"#, RelayFrame::Event { sub: "s".into(), event: r#"{"id":1}"# }),
        (" [ \"EVENT\" , \"\\u0073\" , { } , 7 ] ", RelayFrame::Event { sub: "s".into(), event: "{ }" }),
        (r#"["EOSE","s"]"#, eose(None)),
        (r#"["EOSE","s",[]]"#, eose(None)),
        (r#"["EOSE","s",["finish"]]"#, eose(Some(EoseHint::Finish))),
        (r#"["EOSE","s",["more"]]"#, eose(Some(EoseHint::More))),
        (r#"["EOSE","s",["x",3,{"a":[]},"finish"]]"#, eose(Some(EoseHint::Finish))),
        (r#"["EOSE","s",["finish","more"]]"#, eose(Some(EoseHint::More))),
        (r#"["EOSE","s",["FINISH"]]"#, eose(None)),
        (r#"["EOSE","s","finish"]"#, eose(None)),
        (r#"["EOSE","s",null,["finish"]]"#, eose(None)),
        (r#"["CLOSED","s","error: x"]"#, RelayFrame::Closed { sub: "s".into(), message: "error: x".into() }),
        (r#"["CLOSED","s"]"#, RelayFrame::Closed { sub: "s".into(), message: String::new() }),
        (r#"["NOTICE","a\nb"]"#, RelayFrame::Notice { message: "a\nb".into() }),
        (r#"["NOTICE",{"a":1}]"#, RelayFrame::Notice { message: String::new() }),
        (
            r#"["OK","ab",false,"pow: 3"]"#,
            RelayFrame::Ok { id: "ab".into(), accepted: false, message: "pow: 3".into() },
        ),
        (r#"["OK","ab",true]"#, RelayFrame::Ok { id: "ab".into(), accepted: true, message: String::new() }),
        (r#"["AUTH","c"]"#, RelayFrame::Auth { challenge: "c".into() }),
        (r#"["NEG-MSG","s","61"]"#, RelayFrame::NegMsg { sub: "s".into(), message: "61".into() }),
        (
            r#"["NEG-ERR","s","blocked: too many",500]"#,
            RelayFrame::NegErr { sub: "s".into(), message: "blocked: too many".into(), most: Some(500) },
        ),
        (
            r#"["COUNT","s",{"approximate":true,"hll":"00","count":7}]"#,
            RelayFrame::Count { sub: "s".into(), count: 7, approximate: true },
        ),
        (r#"["HAVE","s"]"#, RelayFrame::Unknown { label: "HAVE".into() }),
        (r#"["event","s",{}]"#, RelayFrame::Unknown { label: "event".into() }),
    ];
    for (text, frame) in table {
        assert_eq!(parse(text), Ok(frame), "{text}");
    }
}

#[test]
fn what_is_no_frame_is_named_and_never_guessed() {
    let table = [
        ("", FrameError::NotArray),
        ("null", FrameError::NotArray),
        ("{}", FrameError::NotArray),
        (r#""EVENT""#, FrameError::NotArray),
        (r#"["EOSE","s"] x"#, FrameError::NotArray),
        (r#"["EOSE","s""#, FrameError::NotArray),
        ("\u{feff}[\"EOSE\",\"s\"]", FrameError::NotArray),
        ("[]", FrameError::Shape("label")),
        ("[7]", FrameError::Shape("label")),
        (r#"["\ud800"]"#, FrameError::Shape("label")),
        (r#"["EVENT"]"#, FrameError::Shape("subscription id")),
        (r#"["EVENT",1,{}]"#, FrameError::Shape("subscription id")),
        (r#"["EVENT","s"]"#, FrameError::Shape("event object")),
        (r#"["EVENT","s","{}"]"#, FrameError::Shape("event object")),
        (r#"["EVENT",{"id":1}]"#, FrameError::Shape("subscription id")),
        (r#"["EOSE",["s"]]"#, FrameError::Shape("subscription id")),
        (r#"["OK",1,true,""]"#, FrameError::Shape("event id")),
        (r#"["OK","ab","true",""]"#, FrameError::Shape("accepted")),
        (r#"["AUTH"]"#, FrameError::Shape("challenge")),
        (r#"["COUNT","s",{"count":-1}]"#, FrameError::Shape("count")),
        (r#"["NEG-MSG","s"]"#, FrameError::Shape("negentropy message")),
    ];
    for (text, error) in table {
        assert_eq!(parse(text), Err(error), "{text}");
    }
}

#[test]
fn depth_and_length_cost_neither_stack_nor_memory() {
    let deep = format!("[\"EVENT\",\"s\",{}", "[".repeat(FRAME_MAX_BYTES - 13));
    assert_eq!(parse(&deep), Err(FrameError::NotArray));
    let nested = format!("[\"X\",{}{}]", "[".repeat(900_000), "]".repeat(900_000));
    assert_eq!(parse(&nested), Ok(RelayFrame::Unknown { label: "X".into() }));
    let deep_hint = format!("[\"EOSE\",\"s\",[{}{}]]", "[".repeat(900_000), "]".repeat(900_000));
    assert_eq!(parse(&deep_hint), Ok(eose(None)));
    let wide = format!("[\"X\"{}]", ",1".repeat(900_000));
    assert_eq!(parse(&wide), Ok(RelayFrame::Unknown { label: "X".into() }));
    assert_eq!(parse(&" ".repeat(FRAME_MAX_BYTES + 1)), Err(FrameError::TooLarge));
    let notice = format!("[\"NOTICE\",\"{}\"]", "é".repeat(1000));
    let Ok(RelayFrame::Notice { message }) = parse(&notice) else { panic!("not a notice") };
    assert!(message.len() <= MESSAGE_MAX_BYTES && message.len() > MESSAGE_MAX_BYTES - 4);
}

#[test]
fn our_frames_escape_the_subscription_id() {
    assert_eq!(close("a\"b"), r#"["CLOSE","a\"b"]"#);
    assert_eq!(req("a\"b", &Filter::default()), r#"["REQ","a\"b",{}]"#);
}

/// Whatever the text is, it reads without a panic and what is kept of it is capped.
fn reads_within_caps(text: &str) -> bool {
    match parse(text) {
        Ok(RelayFrame::Notice { message } | RelayFrame::Unknown { label: message }) => {
            message.len() <= MESSAGE_MAX_BYTES
        }
        Ok(RelayFrame::Event { event, .. }) => event.len() < text.len(),
        Ok(_) | Err(_) => true,
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,80}") {
        prop_assert!(reads_within_caps(&text));
    }

    #[test]
    fn no_mutation_of_a_frame_makes_the_parser_panic(
        index in 0_usize..6, at in 0_usize..64, cut in 0_usize..8, put in "[\\[\\]{}\",:\\\\a-z0-9 \u{0}-\u{1f}é]{0,6}",
    ) {
        let seeds = [
            r#"["EVENT","sub",{"id":"00","tags":[["e","x"]]}]"#, r#"["EOSE","sub",["finish","more"]]"#,
            r#"["CLOSED","sub","auth-required: no"]"#, r#"["NOTICE","err\u00e9\ud83d\ude00"]"#,
            r#"["OK","abcd",true,"dup"]"#, r#"["AUTH","challenge"]"#,
        ];
        let mut chars: Vec<char> = seeds[index].chars().collect();
        let at = at.min(chars.len());
        let end = (at + cut).min(chars.len());
        chars.splice(at..end, put.chars());
        let text: String = chars.into_iter().collect();
        prop_assert!(reads_within_caps(&text));
    }
}

fn envelope() -> String {
    let (id, key, sig) = ("0a".repeat(32), "b1".repeat(32), "9f".repeat(64));
    format!(
        r#"{{"id":"{id}","pubkey":"{key}","created_at":1700000000,"kind":1,"tags":[["t","]}}"]],"content":"a\"}}]","sig":"{sig}"}}"#
    )
}

#[test]
fn an_event_frame_is_read_in_one_pass_with_its_envelope() {
    let envelope = envelope();
    for text in [format!(r#"["EVENT","s",{envelope}]"#), format!("[\"EVENT\" , \"s\" ,\n {envelope} \t] \n")]
    {
        let read = event(&text).unwrap();
        assert_eq!((read.sub, &text[read.span.clone()]), ("s", envelope.as_str()), "{text}");
        assert_eq!(
            (read.facts.kind, read.facts.created_at, read.facts.pubkey),
            (1, 1_700_000_000, [0xb1; 32])
        );
        assert_eq!((read.facts.id.0, read.sig), ([0x0a; 32], Some([0x9f; 64])));
    }
    let unsigned = envelope.replace("9f", "9F");
    assert_eq!(event(&format!(r#"["EVENT","s",{unsigned}]"#)).unwrap().sig, None);
}

#[test]
fn what_is_written_otherwise_is_left_to_the_slow_way() {
    let envelope = envelope();
    let twice = envelope.replacen('{', r#"{"kind":1,"#, 1);
    for text in [
        format!(r#" ["EVENT","s",{envelope}]"#),
        format!(r#"["EVENT","s",{envelope},7]"#),
        format!(r#"["EVENT","\u0073",{envelope}]"#),
        format!(r#"["EVENT","s",{envelope}"#),
        format!(r#"["EVENT","s",{envelope}] x"#),
        format!(r#"["EVENT",{envelope}]"#),
        format!(r#"["EVENT","s",{twice}]"#),
        r#"["EVENT","s",{}]"#.to_owned(),
        r#"["EVENTS","s",{}]"#.to_owned(),
        r#"["EOSE","s"]"#.to_owned(),
        r#"["EVENT""#.to_owned(),
    ] {
        assert_eq!(event(&text), None, "{text}");
    }
}

proptest! {
    #[test]
    fn what_the_fast_way_takes_the_slow_way_takes_too(at in 0_usize..400, byte in any::<u8>(), cut in any::<bool>()) {
        let mut text = format!(r#"["EVENT","s",{}]"#, envelope()).into_bytes();
        let at = at % text.len();
        if cut { text.remove(at); } else { text[at] = byte; }
        let Ok(text) = String::from_utf8(text) else { return Ok(()) };
        if let Some(read) = event(&text) {
            let Ok(RelayFrame::Event { sub, event }) = parse(&text) else { panic!("{text}") };
            prop_assert_eq!((&*sub, event), (read.sub, &text[read.span.clone()]));
            prop_assert_eq!(EnvelopeFacts::scan_signed(event), Ok((read.facts, read.sig)));
        }
    }
}
