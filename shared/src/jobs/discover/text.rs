//! URLs and NIP-19 texts in bytes nobody has parsed.
//!
//! One pass looks for the two marks that either must have: the colon of `ws://`, the `1` of `nprofile1`. Most
//! events have neither, and most text is passed over in strides.

use crate::nips::nip19;

/// Bytes looked at in one stride.
const STRIDE: usize = 32;
/// The longest text taken for a URL: far more than one may have.
const URL_BYTES_MAX: usize = 8_192;

/// Something that may name a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Find<'a> {
    /// Begins with `ws://` or `wss://`.
    Url(&'a str),
    /// Begins like a NIP-19 text that may carry relays.
    Code(&'a str),
}

/// Whether there is anything to find.
pub(super) fn worth(text: &[u8]) -> bool {
    let mut at = 0;
    while let Some(mark) = next_mark(text, at) {
        if url_start(text, mark, false).is_some() || code_start(text, mark).is_some() {
            return true;
        }
        at = mark + 1;
    }
    false
}

/// The same for JSON within a string, where a slash may be written `\/`.
pub(super) fn worth_json(text: &[u8]) -> bool {
    let mut at = 0;
    while let Some(mark) = next_mark(text, at) {
        if url_start(text, mark, true).is_some() {
            return true;
        }
        at = mark + 1;
    }
    false
}

/// Everything in `text` that may name a relay, in order; a URL inside another is part of it.
pub(super) fn finds(text: &[u8]) -> impl Iterator<Item = Find<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while let Some(mark) = next_mark(text, at) {
            let found = match (url_start(text, mark, false), code_start(text, mark)) {
                (Some(start), _) => {
                    let end = run(text, start, URL_BYTES_MAX, in_url);
                    (end, std::str::from_utf8(&text[start..end]).ok().map(bare).map(Find::Url))
                }
                (_, Some(start)) => {
                    let end = run(text, start, nip19::MAX_CHARS + 1, |byte| {
                        byte.is_ascii_lowercase() || byte.is_ascii_digit()
                    });
                    (end, std::str::from_utf8(&text[start..end]).ok().map(Find::Code))
                }
                _ => (mark + 1, None),
            };
            at = found.0.max(mark + 1);
            if let (_, Some(find)) = found {
                return Some(find);
            }
        }
        None
    })
}

/// The next colon or `1`.
fn next_mark(text: &[u8], mut at: usize) -> Option<usize> {
    let is_mark = |byte: u8| byte == b':' || byte == b'1';
    while let Some(stride) = text.get(at..at + STRIDE) {
        // No early exit: this way the compiler compares many bytes at once.
        if stride.iter().fold(false, |any, byte| any | is_mark(*byte)) {
            break;
        }
        at += STRIDE;
    }
    text.get(at..)?.iter().position(|byte| is_mark(*byte)).map(|found| at + found)
}

/// Where the scheme begins whose colon is at `colon`.
fn url_start(text: &[u8], colon: usize, escaped: bool) -> Option<usize> {
    let slashes: &[u8] = text.get(colon + 1..)?;
    if text[colon] != b':' || !(slashes.starts_with(b"//") || (escaped && slashes.starts_with(br"\/\/"))) {
        return None;
    }
    let start = ["wss", "ws"].iter().find_map(|scheme| {
        let start = colon.checked_sub(scheme.len())?;
        text[start..colon].eq_ignore_ascii_case(scheme.as_bytes()).then_some(start)
    })?;
    alone(text, start)
}

/// Where the prefix begins that ends before the `1` at `one`.
fn code_start(text: &[u8], one: usize) -> Option<usize> {
    if text[one] != b'1' {
        return None;
    }
    let start = nip19::PREFIXES.iter().find_map(|prefix| {
        let start = one.checked_sub(prefix.len())?;
        (&text[start..one] == prefix.as_bytes()).then_some(start)
    })?;
    alone(text, start)
}

/// Only where a word begins.
fn alone(text: &[u8], start: usize) -> Option<usize> {
    let before = start.checked_sub(1).map(|at| text[at]);
    before.is_none_or(|byte| !byte.is_ascii_alphanumeric()).then_some(start)
}

fn run(text: &[u8], start: usize, most: usize, taken: impl Fn(u8) -> bool) -> usize {
    text[start..]
        .iter()
        .take(most)
        .position(|byte| !taken(*byte))
        .map_or_else(|| text.len().min(start + most), |length| start + length)
}

/// What a URL in prose is made of. Lists are parted by commas, and brackets and quotes stand around it. Unicode
/// ends it: a sentence that goes on without a blank is more common in prose than a host written in it.
fn in_url(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&*+=%".contains(&byte)
}

/// Without what ends a sentence, or closes a bracket that it did not open.
fn bare(url: &str) -> &str {
    let url = url.trim_end_matches(['.', ':', '!', '?', '*', '&', '=', '~', '_']);
    match url.strip_suffix(']') {
        // `[::1]` has its own.
        Some(inner) if !inner.contains('[') => bare(inner),
        _ => url,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn urls(text: &str) -> Vec<&str> {
        finds(text.as_bytes())
            .map(|find| match find {
                Find::Url(text) | Find::Code(text) => text,
            })
            .collect()
    }

    #[test]
    fn urls_in_prose_are_found_without_the_prose() {
        assert_eq!(
            urls(
                "Join wss://a.example, (ws://b.example/x) or \"WSS://C.example\". [d](wss://d.example) <wss://e.example>!"
            ),
            ["wss://a.example", "ws://b.example/x", "WSS://C.example", "wss://d.example", "wss://e.example"]
        );
        assert_eq!(
            urls("wss://a.example,wss://b.example;wss://c.example"),
            ["wss://a.example", "wss://b.example", "wss://c.example"]
        );
        assert_eq!(
            urls("リレーwss://a.exampleです「wss://b.example」"),
            ["wss://a.example", "wss://b.example"]
        );
        assert_eq!(
            urls("ws://[2001:db8::1]:80/x [wss://a.example]"),
            ["ws://[2001:db8::1]:80/x", "wss://a.example"]
        );
        assert_eq!(
            urls("wss://a.example?x=1&y=2 wss://b.example/%20?"),
            ["wss://a.example?x=1&y=2", "wss://b.example/%20"]
        );
    }

    #[test]
    fn what_only_looks_like_one_is_passed_over() {
        for text in [
            "",
            ":",
            "://",
            "s://a.example",
            "news://a.example",
            "1ws://a.example",
            "ws:/a",
            "https://a.example",
        ] {
            assert!(urls(text).is_empty(), "{text}");
            assert!(!worth(text.as_bytes()), "{text}");
        }
        // A URL inside another is part of it: the parser refuses the whole.
        assert_eq!(urls("wss://a.example/wss://b.example x"), ["wss://a.example/wss://b.example"]);
        assert_eq!(urls("wss://a.example\0wss://b.example\u{7}"), ["wss://a.example", "wss://b.example"]);
    }

    #[test]
    fn codes_are_found_with_and_without_their_scheme() {
        assert_eq!(
            urls("nostr:nprofile1qq9z and naddr1xyz. xnevent1abc npub1aaa NEVENT1ABC"),
            ["nprofile1qq9z", "naddr1xyz"]
        );
    }

    #[test]
    fn endless_texts_are_cut() {
        let long = format!("wss://a.example/{} nprofile1{}", "x".repeat(29_000), "q".repeat(20_000));
        assert_eq!(urls(&long).iter().map(|text| text.len()).collect::<Vec<_>>(), [URL_BYTES_MAX, 5_001]);
    }

    proptest! {
        #[test]
        fn worth_and_finds_agree_and_never_panic(text in proptest::collection::vec(
            prop_oneof![Just(b"wss://".to_vec()), Just(b"nevent1".to_vec()), Just(b":".to_vec()), proptest::collection::vec(any::<u8>(), 0..40)],
            0..12,
        )) {
            let text = text.concat();
            prop_assert_eq!(worth(&text), finds(&text).next().is_some());
        }
    }
}
