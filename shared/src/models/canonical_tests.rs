use proptest::prelude::*;

use super::*;

#[track_caller]
fn becomes(text: &str, want: &str) {
    assert_eq!(canonical_object(text).as_deref(), Ok(want), "{text}");
    assert_eq!(canonical_object(want).as_deref(), Ok(want), "again: {text}");
}

#[test]
fn empty_values_vanish_and_false_zero_and_blank_stay() {
    for text in [
        "{}",
        " { } ",
        r#"{"a":null,"b":[],"c":{}}"#,
        r#"{"a":{"b":{"c":null}},"l":[[],{},null,[[]]]}"#,
        r#"{"inf":1e999,"neg":-1e999,"l":[1e400]}"#,
    ] {
        becomes(text, "{}");
    }
    becomes(r#"{"a":false,"b":0,"c":""}"#, r#"{"a":false,"b":0,"c":""}"#);
    becomes(r#"{"z":[null,1,[],{"x":null},2,null],"a":null,"b":true}"#, r#"{"b":true,"z":[1,2]}"#);
}

#[test]
fn keys_stand_in_the_order_of_their_code_points() {
    becomes("{\"b\" : 2,\n\"a\":1}", r#"{"a":1,"b":2}"#);
    becomes(
        "{\"\u{1f980}\":1,\"\u{fffd}\":2,\"\u{e9}\":3,\"Z\":4,\"a\":5,\"\":6}",
        "{\"\":6,\"Z\":4,\"a\":5,\"\u{e9}\":3,\"\u{fffd}\":2,\"\u{1f980}\":1}",
    );
    becomes(r#"{"a":1,"\u0061":2}"#, r#"{"a":2}"#);
    becomes(r#"{"a":1,"a":null}"#, "{}");
}

#[test]
fn numbers_are_written_as_the_original_writes_them() {
    for (number, want) in [
        ("0", "0"),
        ("-0", "0"),
        ("-7", "-7"),
        ("1180591620717411303424", "1180591620717411303424"),
        ("-99999999999999999999999999", "-99999999999999999999999999"),
        ("18446744073709551616", "18446744073709551616"),
        ("1.0", "1.0"),
        ("-0.0", "-0.0"),
        ("0.0", "0.0"),
        ("1e0", "1.0"),
        ("1E2", "100.0"),
        ("0.10", "0.1"),
        ("1e15", "1000000000000000.0"),
        ("1e16", "1e+16"),
        ("1e+16", "1e+16"),
        ("9999999999999998.0", "9999999999999998.0"),
        ("12345678901234567.0", "1.2345678901234568e+16"),
        ("1e22", "1e+22"),
        ("0.0001", "0.0001"),
        ("0.00001", "1e-05"),
        ("1e-7", "1e-07"),
        ("1.5e-7", "1.5e-07"),
        ("1e-10", "1e-10"),
        ("1e100", "1e+100"),
        ("1.7976931348623157e308", "1.7976931348623157e+308"),
        ("5e-324", "5e-324"),
        ("1e-400", "0.0"),
        ("0.1", "0.1"),
        ("2.675", "2.675"),
        // Two texts equally near: the one that ends in an even digit.
        ("83023425861544.125", "83023425861544.12"),
        ("230750669184281.125", "230750669184281.12"),
        ("889255583323764.25", "889255583323764.2"),
        ("889255583323764.75", "889255583323764.8"),
        ("-1267506540649794.25", "-1267506540649794.2"),
        // Next to a power of two the nearest text of that length is another float.
        ("9007199254740993.0", "9007199254740992.0"),
        ("5.684341886080802e-14", "5.684341886080802e-14"),
        ("2.2250738585072014e-308", "2.2250738585072014e-308"),
        ("9.5367431640625e-07", "9.5367431640625e-07"),
        ("3.141592653589793238", "3.141592653589793"),
    ] {
        becomes(&format!("{{\"n\":{number}}}"), &format!("{{\"n\":{want}}}"));
    }
    let long = "9".repeat(MAX_INTEGER_DIGITS);
    becomes(&format!("{{\"n\":{long}}}"), &format!("{{\"n\":{long}}}"));
    becomes(&format!("{{\"n\":{long}9}}"), "{}");
}

#[test]
fn strings_are_raw_but_for_quotes_backslashes_and_controls() {
    becomes(
        r#"{"s":"\u0022\\\/\b\f\n\r\t\u0001\u001F\u007f\u2028\u00e9\ud83e\udd80"}"#,
        "{\"s\":\"\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u001f\u{7f}\u{2028}\u{e9}\u{1f980}\"}",
    );
}

#[test]
fn what_no_text_column_can_hold_is_an_error() {
    for text in [r#"{"a":"x\u0000"}"#, r#"{"\u0000":1}"#, r#"{"a":[{"b\u0000":null}]}"#] {
        assert_eq!(canonical_object(text), Err(DocumentError::Nul), "{text}");
    }
    for text in [r#"{"a":"\ud800"}"#, r#"{"\udc00":1}"#, r#"{"a":["\ud800\u0041"]}"#] {
        assert_eq!(canonical_object(text), Err(DocumentError::LoneSurrogate), "{text}");
    }
    for text in ["", "{", "nope", "{}x", "{\"a\":NaN}", "{\"a\":01}", "{\"a\":\"\n\"}", "{'a':1}"] {
        assert_eq!(canonical_object(text), Err(DocumentError::NotJson), "{text}");
    }
    for text in ["[]", "null", "1", "\"a\""] {
        assert_eq!(canonical_object(text), Err(DocumentError::NotObject), "{text}");
    }
}

#[test]
fn what_lies_too_deep_is_dropped() {
    let nested =
        |levels: usize, leaf: &str| format!("{}{leaf}{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
    becomes(&nested(MAX_DEPTH, "1"), &nested(MAX_DEPTH, "1"));
    becomes(&nested(MAX_DEPTH + 1, "1"), "{}");
    becomes(&nested(MAX_DEPTH + 1, r#""\u0000""#), "{}");
    let arrays = format!("{{\"a\":{}{},\"b\":1}}", "[".repeat(300_000), "]".repeat(300_000));
    becomes(&arrays, r#"{"b":1}"#);
}

#[test]
fn size_is_capped_on_both_sides() {
    let of_size = |size: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(size - 8));
    becomes(&of_size(MAX_DOCUMENT_BYTES), &of_size(MAX_DOCUMENT_BYTES));
    assert_eq!(canonical_object(&of_size(MAX_DOCUMENT_BYTES + 1)), Err(DocumentError::TooLarge));
    // 1e15 is four bytes, and eighteen in canonical form.
    let swelling = format!("{{\"a\":[{}1]}}", "1e15,".repeat(200_000));
    assert_eq!(canonical_object(&swelling), Err(DocumentError::TooLarge));
}

/// JSON values of every kind, as text.
fn json() -> impl Strategy<Value = String> {
    let string = any::<String>().prop_map(|s| serde_json::to_string(&s).unwrap());
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|b| b.to_string()),
        "-?[1-9][0-9]{0,30}",
        "-?[0-9]\\.[0-9]{1,20}([eE][+-]?[0-9]{1,3})?",
        any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(|f| format!("{f:e}")),
        string.clone(),
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec((string.clone(), inner), 0..6).prop_map(|entries| {
                let entries: Vec<_> = entries.iter().map(|(k, v)| format!("{k}:{v}")).collect();
                format!("{{{}}}", entries.join(","))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn the_canonical_form_of_a_canonical_text_is_that_text(value in json()) {
        let document = format!("{{\"a\":{value}}}");
        match canonical_object(&document) {
            Ok(once) => prop_assert_eq!(canonical_object(&once), Ok(once)),
            Err(error) => prop_assert_eq!(error, DocumentError::Nul),
        }
    }

    #[test]
    fn every_float_reads_back_to_itself(float in any::<f64>()) {
        if float.is_finite() {
            prop_assert_eq!(python_float(float).parse::<f64>().unwrap().to_bits(), float.to_bits());
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in any::<String>(), inner in "[\\[\\]{}\",:0-9a-z\\\\ue.-]{0,40}") {
        prop_assert!(canonical_object(&text).is_err());
        for text in [inner.clone(), format!("{{{inner}}}"), format!("{{\"a\":{inner}}}")] {
            if let Ok(once) = canonical_object(&text) {
                prop_assert_eq!(canonical_object(&once), Ok(once));
            }
        }
    }
}
