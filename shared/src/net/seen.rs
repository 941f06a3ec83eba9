//! What a dial showed on its way, however it ended.

use hyper::StatusCode;
use hyper::header::{self, AsHeaderName, HeaderMap};

use super::TlsFacts;

/// The longest header value kept.
const HEADER_VALUE_CHARS: usize = 256;

/// Filled in while a connection is made: a refused certificate is still a certificate, and a refused upgrade
/// still has headers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The handshake; none without TLS, or when it did not end.
    pub tls: Option<TlsFacts>,
    /// The head of the answer to the upgrade; none when there was none.
    pub head: Option<HttpHead>,
}

/// What the head of an HTTP answer says of the server. No control characters, and short.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpHead {
    /// The status code.
    pub status: u16,
    /// `Server`.
    pub server: Option<String>,
    /// `X-Powered-By`.
    pub powered_by: Option<String>,
    /// `Retry-After`, where it is a number of seconds.
    pub retry_after_s: Option<u64>,
}

impl HttpHead {
    pub(super) fn new(status: StatusCode, headers: &HeaderMap) -> Self {
        Self {
            status: status.as_u16(),
            server: value(headers, header::SERVER),
            powered_by: value(headers, "x-powered-by"),
            retry_after_s: value(headers, header::RETRY_AFTER).and_then(|text| text.parse().ok()),
        }
    }
}

/// A header as text: without control characters, shortened, and none when nothing is left of it.
pub(super) fn value(headers: &HeaderMap, name: impl AsHeaderName) -> Option<String> {
    let bytes = headers.get(name)?.as_bytes();
    // A character is at most four bytes.
    let bytes = &bytes[..bytes.len().min(HEADER_VALUE_CHARS * 4)];
    let text = String::from_utf8_lossy(bytes);
    let text: String = text.chars().filter(|c| !c.is_control()).take(HEADER_VALUE_CHARS).collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn headers_become_short_text_without_control_characters() {
        let long = "x".repeat(5_000);
        for (sent, kept) in [
            (b" nginx/1.2\t ".as_slice(), Some("nginx/1.2")),
            (b"a\tb", Some("ab")),
            ("caf\u{e9}".as_bytes(), Some("caf\u{e9}")),
            ("x\u{9b}31m\u{85}y".as_bytes(), Some("x31my")),
            (b"\xff", Some("\u{fffd}")),
            (b" ", None),
            (b"", None),
            (long.as_bytes(), Some(&long[..HEADER_VALUE_CHARS])),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::SERVER, HeaderValue::from_bytes(sent).unwrap());
            assert_eq!(value(&headers, header::SERVER).as_deref(), kept, "{sent:?}");
        }
        assert_eq!(value(&HeaderMap::new(), header::SERVER), None);
    }
}
