//! The relay's information document (NIP-11), kept as the relay wrote it.
//!
//! The stored document is an envelope: the relay's own object under `data` (canonical, numbers exact),
//! `logs` beside it. A typed view is made from it by readers, leniently (`nips::nip11`).

use serde::de::IgnoredAny;

use super::{CheckKind, CheckSpec, Observation};
use crate::models::{DocumentError, MAX_DOCUMENT_BYTES, Metadata, MetadataError, MetadataType, Reason};
use crate::net::{DialFailure, Dialer, HttpReply, Target};
use crate::nips::InfoView;

pub(super) const SPEC: CheckSpec =
    CheckSpec { name: "nip11", document: Some(MetadataType::Nip11Info), applies: |_| true };

/// Largest document taken: what a stored document may be, less the envelope. The largest seen in the
/// wild are a few KiB.
const BODY_BYTES_MAX: usize = MAX_DOCUMENT_BYTES - 64;
const ACCEPT: &str = "application/nostr+json";
/// What may come back: many relays say plain JSON.
const CONTENT_TYPES: &[&str] = &[ACCEPT, "application/json"];

/// GETs the document on a connection of its own. A few redirects on the same machine are followed, as to a path with a
/// slash at its end; any other is a status.
pub(super) async fn observe(dialer: &Dialer, target: &Target) -> Result<HttpReply, DialFailure> {
    dialer.http_get_led(target, ACCEPT, BODY_BYTES_MAX).await
}

pub(super) fn judge(reply: Result<HttpReply, DialFailure>) -> (Observation, Option<InfoView>) {
    let taken = reply.and_then(|reply| {
        let document = document(&reply)?;
        Ok((document, std::str::from_utf8(&reply.body).ok().and_then(InfoView::from_json)))
    });
    match taken {
        Ok((document, info)) => (Observation::ok(CheckKind::Nip11, Some(document)), info),
        Err(failure) => (Observation::failed(CheckKind::Nip11, failure), None),
    }
}

fn document(reply: &HttpReply) -> Result<Metadata, DialFailure> {
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
    let envelope = format!(r#"{{"data":{text},"logs":{{"success":true}}}}"#);
    Metadata::new(MetadataType::Nip11Info, &envelope).map_err(|error| {
        let reason = match error {
            MetadataError::Document(DocumentError::TooLarge) => Reason::HttpBodyTooLarge,
            _ => Reason::HttpInvalid,
        };
        DialFailure::new(reason, error.to_string())
    })
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
            (200, ACCEPT, r#"{"name":"a\u0000b"}"#, Reason::HttpInvalid),
        ] {
            let seen = reply(status, content_type, body);
            assert_eq!(seen.reason, reason, "{status} {content_type} {body}");
            assert!(seen.document.is_none());
        }
    }
}
