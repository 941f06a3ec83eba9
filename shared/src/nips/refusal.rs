//! What the message of a CLOSED or NOTICE means.
//!
//! Knows only words: NIP-01's machine-readable prefixes, and the phrases relay programs use instead.
//! Invariant: an unknown wording is [`CloseClass::Error`], never a guess at something milder.

/// What a refusal says, from its machine-readable prefix (NIP-01) or, failing that, its words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseClass {
    /// NIP-42: authenticate first.
    AuthRequired,
    /// Not for us, authenticated or not.
    Restricted,
    /// Too often, too many at once: later is fine.
    RateLimited,
    /// We are shut out.
    Blocked,
    /// The relay does not do such requests.
    Unsupported,
    /// The relay calls the request malformed or too broad.
    InvalidRequest,
    /// Anything else.
    Error,
}

/// Prefixes in the wild, without their colon. `bad req` is strfry's; `pow` and `mute` refuse a person.
const PREFIXES: &[(&str, CloseClass)] = &[
    ("auth-required", CloseClass::AuthRequired),
    ("restricted", CloseClass::Restricted),
    ("pow", CloseClass::Restricted),
    ("mute", CloseClass::Restricted),
    ("rate-limited", CloseClass::RateLimited),
    ("blocked", CloseClass::Blocked),
    ("unsupported", CloseClass::Unsupported),
    ("invalid", CloseClass::InvalidRequest),
    ("bad req", CloseClass::InvalidRequest),
];

/// Words that tell the class where no known prefix does, in the order they are tried.
const PHRASES: &[(&str, CloseClass)] = &[
    ("auth-required", CloseClass::AuthRequired),
    ("auth required", CloseClass::AuthRequired),
    ("authentication required", CloseClass::AuthRequired),
    ("must authenticate", CloseClass::AuthRequired),
    ("need to authenticate", CloseClass::AuthRequired),
    ("rate limit", CloseClass::RateLimited),
    ("rate-limit", CloseClass::RateLimited),
    ("too many", CloseClass::RateLimited),
    ("too fast", CloseClass::RateLimited),
    ("slow down", CloseClass::RateLimited),
    ("blocked", CloseClass::Blocked),
    ("banned", CloseClass::Blocked),
    ("restricted", CloseClass::Restricted),
    ("not allowed", CloseClass::Restricted),
    ("unsupported", CloseClass::Unsupported),
    ("not supported", CloseClass::Unsupported),
    ("bad req", CloseClass::InvalidRequest),
    ("invalid", CloseClass::InvalidRequest),
    ("could not parse", CloseClass::InvalidRequest),
];

/// Sorts the message of a CLOSED or NOTICE. An unknown wording is [`CloseClass::Error`].
pub fn classify(message: &str) -> CloseClass {
    let message = message.trim().to_ascii_lowercase();
    let prefix = message.split_once(':').map_or("", |(prefix, _)| prefix.trim());
    let known = PREFIXES.iter().find(|(word, _)| *word == prefix);
    known
        .or_else(|| PHRASES.iter().find(|(words, _)| message.contains(words)))
        .map_or(CloseClass::Error, |(_, class)| *class)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_sorted_by_prefix_then_by_words() {
        let table = [
            ("auth-required: we only serve members", CloseClass::AuthRequired),
            ("AUTH-REQUIRED: x", CloseClass::AuthRequired),
            ("error: authentication required", CloseClass::AuthRequired),
            ("restricted: too many words", CloseClass::Restricted),
            ("pow: 28 bits needed", CloseClass::Restricted),
            ("rate-limited: slow down", CloseClass::RateLimited),
            ("error: too many concurrent REQs", CloseClass::RateLimited),
            ("blocked: go away", CloseClass::Blocked),
            ("you are banned", CloseClass::Blocked),
            ("unsupported: filter", CloseClass::Unsupported),
            ("invalid: no kinds", CloseClass::InvalidRequest),
            ("ERROR: bad req: filter has no kinds", CloseClass::InvalidRequest),
            ("bad req: x", CloseClass::InvalidRequest),
            ("error: shutting down", CloseClass::Error),
            ("", CloseClass::Error),
        ];
        for (message, class) in table {
            assert_eq!(classify(message), class, "{message}");
        }
    }
}
