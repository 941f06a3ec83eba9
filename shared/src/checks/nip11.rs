//! The relay's information document (NIP-11), kept as the relay wrote it.
//!
//! The stored document is an envelope: the relay's own object under `data` (canonical, numbers exact),
//! `logs` beside it. A typed view is made from it by readers, leniently (`nips::nip11`). Of one that is too large to be
//! kept at every change, `logs` says how long it is and what it hashes to; it is read all the same.

use std::borrow::Cow;

use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::{CheckKind, CheckSpec, Observation};
use crate::models::{DocumentError, Metadata, MetadataError, MetadataType, Reason};
use crate::net::{DialFailure, Dialer, HttpReply, Target};
use crate::nips::InfoView;

pub(super) const SPEC: CheckSpec =
    CheckSpec { name: "nip11", document: Some(MetadataType::Nip11Info), applies: |_| true };

/// Largest document read, bytes as sent. The largest seen in the wild are below 16 KiB, and a worker holds one for each
/// relay that it looks at.
const BODY_BYTES_MAX: usize = 256 * 1024;
/// Largest envelope kept whole, bytes in canonical form: as long as the longest content that NIP-66 monitors publish.
const KEPT_BYTES_MAX: usize = 64 * 1024;
/// Documents read at once by a process, whatever its number of threads: of a hostile one the parts take some fifteen times
/// its length for a few milliseconds.
static READING: Semaphore = Semaphore::const_new(2);

const ACCEPT: &str = "application/nostr+json";
/// What may come back: many relays say plain JSON.
const CONTENT_TYPES: &[&str] = &[ACCEPT, "application/json"];

/// GETs the document on a connection of its own. A few redirects on the same machine are followed, as to a path with a
/// slash at its end; any other is a status.
pub(super) async fn observe(dialer: &Dialer, target: &Target) -> (Observation, Option<InfoView>) {
    let reply = dialer.http_get_led(target, ACCEPT, BODY_BYTES_MAX).await;
    // It is never closed.
    let _turn = READING.acquire().await.ok();
    judge(reply)
}

fn judge(reply: Result<HttpReply, DialFailure>) -> (Observation, Option<InfoView>) {
    match reply.and_then(|reply| read(&reply)) {
        Ok((document, info)) => (Observation::ok(CheckKind::Nip11, Some(document)), info),
        Err(failure) => (Observation::failed(CheckKind::Nip11, failure), None),
    }
}

fn read(reply: &HttpReply) -> Result<(Metadata, Option<InfoView>), DialFailure> {
    if reply.status != 200 {
        return Err(DialFailure::of_status(Reason::HttpStatus, reply.status));
    }
    let content_type = reply.content_type.as_deref().unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if !CONTENT_TYPES.iter().any(|known| media_type.eq_ignore_ascii_case(known)) {
        return Err(DialFailure::new(Reason::HttpContentType, content_type.to_owned()));
    }
    let not_json = |detail: String| DialFailure::new(Reason::NotJson, detail);
    let text = std::str::from_utf8(&reply.body).map_err(|error| not_json(error.to_string()))?.trim();
    // Checked as one whole value before it is spliced into the envelope.
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| not_json(error.to_string()))?;
    if !text.starts_with('{') {
        return Err(DialFailure::new(Reason::NotObject, "the document is JSON, but not an object"));
    }
    let (text, replaced) = storable(text);
    let info = InfoView::from_json(&text);
    let noted = if replaced == 0 { String::new() } else { format!(r#""replaced":{replaced},"#) };
    let whole = format!(r#"{{"data":{text},"logs":{{{noted}"success":true}}}}"#);
    let document = match Metadata::new(MetadataType::Nip11Info, &whole) {
        Ok(whole) if whole.canonical().len() <= KEPT_BYTES_MAX => Ok(whole),
        Ok(_) | Err(MetadataError::Document(DocumentError::TooLarge)) => {
            Metadata::new(MetadataType::Nip11Info, &described(&reply.body))
        }
        Err(error) => Err(error),
    };
    let document = document.map_err(|error| DialFailure::new(Reason::HttpInvalid, error.to_string()))?;
    Ok((document, info))
}

/// What is kept of a document that is too large to be kept: bytes and SHA-256 of what was sent.
fn described(body: &[u8]) -> String {
    let (bytes, hash) = (body.len(), hex::encode(Sha256::digest(body)));
    format!(r#"{{"logs":{{"bytes":{bytes},"kept":false,"sha256":"{hash}","success":true}}}}"#)
}

/// JSON with U+FFFD for each escape that stands for no character that a text in PostgreSQL holds, NUL and halves of
/// surrogate pairs; and how many those were. One such name must not cost everything else that a relay says.
fn storable(json: &str) -> (Cow<'_, str>, usize) {
    let (mut out, mut rest, mut replaced) = (String::new(), json, 0);
    while let Some(at) = rest.find('\\') {
        let escape = &rest[at..];
        let (length, held) = match (unit(escape), unit(escape.get(6..).unwrap_or_default())) {
            (None, _) => (2, true),
            (Some(0xd800..0xdc00), Some(0xdc00..0xe000)) => (12, true),
            (Some(0 | 0xd800..0xe000), _) => (6, false),
            (Some(_), _) => (6, true),
        };
        let end = (at + length).min(rest.len());
        if held {
            out.push_str(&rest[..end]);
        } else {
            out.push_str(&rest[..at]);
            out.push_str("\\ufffd");
            replaced += 1;
        }
        rest = &rest[end..];
    }
    if replaced == 0 {
        return (Cow::Borrowed(json), 0);
    }
    out.push_str(rest);
    (Cow::Owned(out), replaced)
}

/// The UTF-16 unit that a text begins with as `\uXXXX`.
fn unit(text: &str) -> Option<u16> {
    u16::from_str_radix(text.strip_prefix("\\u")?.get(..4)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Outcome;

    fn reply(status: u16, content_type: &str, body: &str) -> Observation {
        judge(Ok(HttpReply {
            status,
            content_type: Some(content_type.to_owned()),
            server: None,
            location: None,
            body: body.into(),
            elapsed_ms: 1,
        }))
        .0
    }

    #[test]
    fn the_relays_own_fields_are_kept_whole_and_exact() {
        let body = r#" {"name":"x","unheard_of":[1],"limitation":{"max_limit":18446744073709551617}} "#;
        let seen = reply(200, "application/nostr+json; charset=utf-8", body);
        assert_eq!((seen.outcome, seen.reason), (Outcome::Ok, Reason::None));
        assert_eq!(
            seen.document.unwrap().canonical(),
            r#"{"data":{"limitation":{"max_limit":18446744073709551617},"name":"x","unheard_of":[1]},"logs":{"success":true}}"#
        );
    }

    #[test]
    fn everything_else_has_its_reason() {
        for (status, content_type, body, reason) in [
            (404, ACCEPT, "{}", Reason::HttpStatus),
            (302, ACCEPT, "", Reason::HttpStatus),
            (200, "text/html", "<html>", Reason::HttpContentType),
            (200, "", "{}", Reason::HttpContentType),
            (200, "application/json", "", Reason::NotJson),
            (200, "application/json", r#"{"a":1}{"b":2}"#, Reason::NotJson),
            (200, "application/json", r#"{"a":1},"logs":{"success":false"#, Reason::NotJson),
            (200, "application/json", "[1]", Reason::NotObject),
            (200, "Application/JSON", "\"name\"", Reason::NotObject),
        ] {
            let seen = reply(status, content_type, body);
            assert_eq!(seen.reason, reason, "{status} {content_type} {body}");
            assert!(seen.document.is_none());
        }
    }

    fn said(body: &str) -> (String, Option<InfoView>) {
        let (seen, info) = judge(Ok(HttpReply {
            status: 200,
            content_type: Some(ACCEPT.to_owned()),
            server: None,
            location: None,
            body: body.into(),
            elapsed_ms: 1,
        }));
        (seen.document.unwrap().canonical().to_owned(), info)
    }

    #[test]
    fn what_no_text_holds_costs_itself_and_nothing_beside_it() {
        for (body, kept) in [
            (
                r#"{"name":"a\u0000b"}"#,
                r#"{"data":{"name":"a\ufffdb"},"logs":{"replaced":1,"success":true}}"#,
            ),
            (
                r#"{"name":"\ud800\ud83d\ude00\udc00","\u0000":1}"#,
                "{\"data\":{\"name\":\"\u{fffd}\u{1f600}\u{fffd}\",\"\u{fffd}\":1},\"logs\":{\"replaced\":3,\"success\":true}}",
            ),
            // Not what it looks like: a backslash, and letters behind it.
            (r#"{"name":"\\u0000\n\u00e9"}"#, r#"{"data":{"name":"\\u0000\né"},"logs":{"success":true}}"#),
        ] {
            let (document, info) = said(body);
            assert_eq!(document, kept.replace("\\ufffd", "\u{fffd}"), "{body}");
            assert!(info.unwrap().name.is_some());
        }
    }

    #[test]
    fn a_document_too_large_to_keep_is_read_and_described() {
        let of = |bytes: usize| format!(r#"{{"name":"n","x":"{}"}}"#, "x".repeat(bytes));
        let (whole, _) = said(&of(KEPT_BYTES_MAX - 64));
        assert!(whole.starts_with(r#"{"data":{"name":"n","x":"xx"#) && whole.len() <= KEPT_BYTES_MAX);
        // The last grows beyond what any document may be: of five bytes each number becomes nineteen.
        for body in [of(KEPT_BYTES_MAX), format!(r#"{{"name":"n","x":[{}0]}}"#, "1e15,".repeat(59_000))] {
            let (document, info) = said(&body);
            let hash = hex::encode(Sha256::digest(&body));
            let expected = format!(
                r#"{{"logs":{{"bytes":{},"kept":false,"sha256":"{hash}","success":true}}}}"#,
                body.len()
            );
            assert_eq!(document, expected);
            assert_eq!(info.unwrap().name.as_deref(), Some("n"));
        }
    }
}
