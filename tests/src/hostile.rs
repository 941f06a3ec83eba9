//! Events and frames meant to break an archive: all of them are seen on real relays or allowed by NIP-01.

use nostr::event::Event;

use crate::factory::Factory;

/// The largest integer JSON readers agree on, 2^53: no clock will show it.
pub const FAR_FUTURE: i64 = 9_007_199_254_740_992;

/// Validly signed events, each with the name of its trap. Every one must be stored and read back to the same id.
pub fn valid(factory: &Factory, now: i64) -> Vec<(&'static str, Event)> {
    let tag = |name: &str, value: String| vec![vec![name.to_owned(), value]];
    vec![
        ("nul_byte", factory.sign(0, 1, tag("t", "a\0b".into()), "before\0after", now - 10)),
        ("cjk_tag_900", factory.sign(1, 1, tag("t", "漢".repeat(900)), "long tag", now - 11)),
        ("created_at_0", factory.sign(2, 1, vec![], "the first second", 0)),
        ("created_at_2_53", factory.sign(3, 1, vec![], "the far future", FAR_FUTURE)),
        (
            "control_characters",
            factory.sign(4, 1, vec![], "\u{1}\u{8}\u{b}\u{c}\u{1f}\u{7f}\u{85}", now - 12),
        ),
        ("emoji_and_rtl", factory.sign(5, 1, tag("t", "👩‍👩‍👧‍👦".into()), "\u{202e}שלום\u{feff}", now - 13)),
        ("many_tags", factory.sign(6, 1, many_tags(2_000), "", now - 14)),
        ("long_content", factory.sign(7, 1, vec![], &"x".repeat(60_000), now - 15)),
        ("empty_tag_value", factory.sign(8, 30_023, tag("d", String::new()), "", now - 16)),
        ("tag_without_value", factory.sign(9, 1, vec![vec!["t".to_owned()]], "", now - 17)),
        ("highest_kind", factory.sign(10, 65_535, vec![], "", now - 18)),
    ]
}

/// The event's JSON with another id: well formed, and a lie.
pub fn with_bad_id(event: &Event) -> String {
    let id = event.id.to_hex();
    let flipped = if id.starts_with('0') { "1" } else { "0" };
    event.as_json().replacen(&id, &format!("{flipped}{}", &id[1..]), 1)
}

/// The event's JSON with a signature over something else; the id still is the hash.
pub fn with_bad_signature(event: &Event) -> String {
    let signature = event.sig.to_string();
    let last = if signature.ends_with('0') { "1" } else { "0" };
    event.as_json().replacen(&signature, &format!("{}{last}", &signature[..signature.len() - 1]), 1)
}

fn many_tags(count: usize) -> Vec<Vec<String>> {
    (0..count).map(|i| vec!["p".to_owned(), format!("{i:064x}")]).collect()
}
