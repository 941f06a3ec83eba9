//! Documents in the one form that is hashed and stored.
//!
//! The form is that of the original (reference, "Metadata canonical form"), byte for byte, so that
//! the same document has the same content address in both: keys by code point, no blanks, nothing
//! empty, floats as Python writes them, integers exact. Invariant: the canonical form of a
//! canonical text is that text.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// The longest document taken, and written, in bytes: the cap on a NIP-11 body.
pub const MAX_DOCUMENT_BYTES: usize = 1024 * 1024;

/// How deep values may lie below the document; what lies deeper is dropped, as in the original.
const MAX_DEPTH: usize = 50;

/// The longest integer kept, in digits: where the original's reader stops, and far below where
/// PostgreSQL's does. Longer ones are dropped like numbers that are infinite.
const MAX_INTEGER_DIGITS: usize = 4_300;

/// Why a text is not a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DocumentError {
    /// Longer than [`MAX_DOCUMENT_BYTES`], as it came or in canonical form.
    #[error("the document is larger than {MAX_DOCUMENT_BYTES} bytes")]
    TooLarge,
    /// Not JSON.
    #[error("the document is not JSON")]
    NotJson,
    /// JSON, but no object.
    #[error("the document is not a JSON object")]
    NotObject,
    /// NUL in a string or key, which PostgreSQL's text cannot hold.
    #[error("the document has a NUL character in it")]
    Nul,
    /// Half of a surrogate pair in a string or key: no text in any encoding.
    #[error("the document has a lone surrogate in it")]
    LoneSurrogate,
}

impl DocumentError {
    /// The error's word, for counters: a closed set.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::NotJson => "not_json",
            Self::NotObject => "not_object",
            Self::Nul => "nul",
            Self::LoneSurrogate => "lone_surrogate",
        }
    }
}

/// The canonical form of a JSON object.
pub(super) fn canonical_object(text: &str) -> Result<String, DocumentError> {
    if text.len() > MAX_DOCUMENT_BYTES {
        return Err(DocumentError::TooLarge);
    }
    let raw: &RawValue = serde_json::from_str(text).map_err(|_| DocumentError::NotJson)?;
    if !raw.get().starts_with('{') {
        return Err(DocumentError::NotObject);
    }
    let mut out = String::with_capacity(text.len());
    if !write_value(raw, 0, &mut out)? {
        out.push_str("{}");
    }
    if out.len() > MAX_DOCUMENT_BYTES {
        return Err(DocumentError::TooLarge);
    }
    Ok(out)
}

/// Appends a value that lies `depth` levels below the document; false, and nothing appended, when
/// it is empty. The text is known to be JSON, so that only its strings can still be wrong.
fn write_value(raw: &RawValue, depth: usize, out: &mut String) -> Result<bool, DocumentError> {
    if depth > MAX_DEPTH {
        return Ok(false);
    }
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'{') => write_object(text, depth, out),
        Some(b'[') => write_array(text, depth, out),
        Some(b'"') => {
            let string: String = serde_json::from_str(text).map_err(|_| DocumentError::LoneSurrogate)?;
            write_string(&string, out)?;
            Ok(true)
        }
        Some(b't' | b'f') => {
            out.push_str(text);
            Ok(true)
        }
        Some(b'-' | b'0'..=b'9') => {
            let number = canonical_number(text);
            out.push_str(number.as_deref().unwrap_or_default());
            Ok(number.is_some())
        }
        _ => Ok(false),
    }
}

/// Of a key that comes twice the last value counts, as in the original.
fn write_object(text: &str, depth: usize, out: &mut String) -> Result<bool, DocumentError> {
    let entries: BTreeMap<String, &RawValue> =
        serde_json::from_str(text).map_err(|_| DocumentError::LoneSurrogate)?;
    let start = out.len();
    for (key, value) in entries {
        let before = out.len();
        out.push(if before == start { '{' } else { ',' });
        write_string(&key, out)?;
        out.push(':');
        if !write_value(value, depth + 1, out)? {
            out.truncate(before);
        }
    }
    Ok(close(out, start, '}'))
}

fn write_array(text: &str, depth: usize, out: &mut String) -> Result<bool, DocumentError> {
    let items: Vec<&RawValue> = serde_json::from_str(text).map_err(|_| DocumentError::NotJson)?;
    let start = out.len();
    for item in items {
        let before = out.len();
        out.push(if before == start { '[' } else { ',' });
        if !write_value(item, depth + 1, out)? {
            out.truncate(before);
        }
    }
    Ok(close(out, start, ']'))
}

/// Ends a container unless nothing was written into it.
fn close(out: &mut String, start: usize, bracket: char) -> bool {
    let kept = out.len() > start;
    if kept {
        out.push(bracket);
    }
    kept
}

fn write_string(text: &str, out: &mut String) -> Result<(), DocumentError> {
    if text.contains('\0') {
        return Err(DocumentError::Nul);
    }
    out.push_str(&serde_json::to_string(text).expect("a string always has a JSON form"));
    Ok(())
}

/// A JSON number as the original writes it: integers digit for digit, floats in the shortest form
/// that reads back; `None` for what no float can hold.
fn canonical_number(text: &str) -> Option<String> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.bytes().all(|b| b.is_ascii_digit()) {
        let text = if digits == "0" { digits } else { text };
        return (digits.len() <= MAX_INTEGER_DIGITS).then(|| text.to_owned());
    }
    text.parse().ok().filter(|float: &f64| float.is_finite()).map(python_float)
}

/// Python's `repr` of a finite float: the fewest digits that read back, as a plain decimal from
/// 1e-4 up to 1e16, with a signed exponent of at least two digits beyond.
fn python_float(float: f64) -> String {
    let (sign, digits, exponent) = shortest_digits(float);
    match (usize::try_from(exponent), exponent) {
        (Ok(whole), ..16) if digits.len() <= whole + 1 => {
            format!("{sign}{digits:0<width$}.0", width = whole + 1)
        }
        (Ok(whole), ..16) => format!("{sign}{}.{}", &digits[..=whole], &digits[whole + 1..]),
        (Err(_), -4..) => {
            format!("{sign}0.{:0>width$}", digits, width = digits.len() + exponent.abs_diff(-1) as usize)
        }
        _ => {
            let (first, rest) = digits.split_at(1);
            let dot = if rest.is_empty() { "" } else { "." };
            let exponent_sign = if exponent < 0 { '-' } else { '+' };
            format!("{sign}{first}{dot}{rest}e{exponent_sign}{:02}", exponent.unsigned_abs())
        }
    }
}

/// Sign, digits and decimal exponent of the shortest text that reads back to the same float.
///
/// Where two such texts are equally near, Rust takes the greater and Python the one that ends in an
/// even digit. Writing as many digits exactly rounds to even; next to a power of two that may read
/// back to the neighbour, and then the first text is the only one.
fn shortest_digits(float: f64) -> (&'static str, String, i32) {
    let shortest = format!("{float:e}");
    let mantissa = shortest.split_once('e').map_or("", |(mantissa, _)| mantissa);
    let decimals = mantissa.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    let even = format!("{float:.decimals$e}");
    let text = if even.parse() == Ok(float) { even } else { shortest };
    let (mantissa, exponent) = text.split_once('e').expect("the format writes an exponent");
    let sign = if float.is_sign_negative() { "-" } else { "" };
    let digits = mantissa.bytes().filter(u8::is_ascii_digit).map(char::from).collect();
    (sign, digits, exponent.parse().expect("the exponent of a float is a small integer"))
}

#[cfg(test)]
#[path = "canonical_tests.rs"]
mod tests;
