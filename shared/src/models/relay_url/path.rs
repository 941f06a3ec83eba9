//! Paths and queries: percent-encoding in one form only (RFC 3986 §6.2.2), and never dropped.

use super::UrlError;

/// Words that begin a URL; a path that holds one is a list somebody failed to split.
const URL_MARKS: [&str; 5] = ["://", "wss:/", "ws:/", "https:/", "http:/"];

/// Normalises what follows the authority: empty, or a path without trailing slash, and `?query`
/// where there is one. A query behind no path stands behind `/`, as in the request target.
pub(super) fn normalise(tail: &str) -> Result<String, UrlError> {
    let (path, query) = tail.split_once('?').map_or((tail, ""), |(path, query)| (path, query));
    refuse_in_path(path)?;
    let mut text = String::with_capacity(tail.len());
    for segment in resolved(&percent_normalised(path, b"/")?) {
        text.push('/');
        text.push_str(segment);
    }
    if !query.is_empty() {
        if decoded_text(query)?.chars().any(char::is_control) {
            return Err(UrlError::HiddenBlank);
        }
        if text.is_empty() {
            text.push('/');
        }
        text.push('?');
        text.push_str(&percent_normalised(query, b"/?")?);
    }
    Ok(text)
}

/// Refuses a path that is no path of a relay, as it reads with its percent signs resolved.
fn refuse_in_path(path: &str) -> Result<(), UrlError> {
    let decoded = decoded_text(path)?.to_ascii_lowercase();
    if decoded.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(UrlError::HiddenBlank);
    }
    if URL_MARKS.iter().any(|mark| decoded.contains(mark)) {
        return Err(UrlError::NestedUrl);
    }
    Ok(())
}

/// The segments of a path without empty ones, `.` and `..` resolved (RFC 3986 §5.2.4).
fn resolved(path: &str) -> Vec<&str> {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    segments
}

/// Writes every byte in its one form: unreserved ones as they are, reserved ones as they came,
/// all others as `%XX`. `also` holds the delimiters that may stand as they are.
fn percent_normalised(text: &str, also: &[u8]) -> Result<String, UrlError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        let (byte, encoded) = match byte {
            b'\\' => return Err(UrlError::Malformed),
            b'%' => {
                let (byte, tail) = hex_pair(rest).ok_or(UrlError::Malformed)?;
                rest = tail;
                (byte, true)
            }
            byte => (*byte, false),
        };
        let plain = is_unreserved(byte) || (!encoded && (is_path_delimiter(byte) || also.contains(&byte)));
        if plain {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push_str(&hex::encode_upper([byte]));
        }
    }
    Ok(out)
}

/// The bytes of a text with every `%XX` resolved; `None` when a `%` lacks its digits.
pub(super) fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        if *byte == b'%' {
            let (byte, tail) = hex_pair(rest)?;
            rest = tail;
            out.push(byte);
        } else {
            out.push(*byte);
        }
    }
    Some(out)
}

fn decoded_text(text: &str) -> Result<String, UrlError> {
    let bytes = percent_decoded(text).ok_or(UrlError::Malformed)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The byte that two leading hex digits name, and what follows them.
fn hex_pair(text: &[u8]) -> Option<(u8, &[u8])> {
    let (pair, rest) = text.split_first_chunk::<2>()?;
    let mut byte = [0];
    hex::decode_to_slice(pair, &mut byte).ok()?;
    Some((byte[0], rest))
}

/// RFC 3986 §2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// What may stand in a segment besides unreserved characters (RFC 3986 §3.3).
const fn is_path_delimiter(byte: u8) -> bool {
    matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@')
}
