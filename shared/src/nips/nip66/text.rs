//! Which texts of others we repeat.

use super::TEXT_MAX_BYTES;

/// A text as it may stand in a tag: trimmed, not empty, short. One with a control character inside, or one that
/// turns the direction of writing, says nothing that we repeat: what was injected behind a line break would be our word.
pub(super) fn clean(text: &str) -> Option<String> {
    let text = text.trim();
    if text.chars().any(is_unfit) {
        return None;
    }
    let kept = text[..text.floor_char_boundary(TEXT_MAX_BYTES)].trim_end();
    (!kept.is_empty()).then(|| kept.to_owned())
}

/// Control characters, line and paragraph separators, and what reorders the text around it.
pub(super) fn is_unfit(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{61c}' | '\u{feff}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// JSON text in which no control character stands raw: between values it becomes a blank, within a string, where JSON
/// permits only the later ones, it is escaped.
pub(super) fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\t' | '\n' | '\r' => text.push(' '),
            c if c.is_control() => {
                text.push_str("\\u00");
                text.push_str(&hex::encode([u8::try_from(u32::from(c)).unwrap_or(b' ')]));
            }
            c => text.push(c),
        }
    }
    text
}

/// A geohash: up to twelve of its thirty-two letters.
pub fn is_geohash(text: &str) -> bool {
    let is_letter =
        |b: u8| b.is_ascii_digit() || (b.is_ascii_lowercase() && !matches!(b, b'a' | b'i' | b'l' | b'o'));
    (1..=12).contains(&text.len()) && text.bytes().all(is_letter)
}

pub(super) fn geohash(text: &str) -> Option<String> {
    is_geohash(text).then(|| text.to_owned())
}
