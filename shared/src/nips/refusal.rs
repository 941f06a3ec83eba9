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
    // Of one list, not of many requests: it helps to name fewer, and not to wait.
    ("too many kinds", CloseClass::InvalidRequest),
    ("too many", CloseClass::RateLimited),
    ("too fast", CloseClass::RateLimited),
    ("slow down", CloseClass::RateLimited),
    ("blocked", CloseClass::Blocked),
    ("banned", CloseClass::Blocked),
    ("restricted", CloseClass::Restricted),
    ("unauthorized", CloseClass::Restricted),
    ("not authorized", CloseClass::Restricted),
    ("forbidden", CloseClass::Restricted),
    ("payment required", CloseClass::Restricted),
    ("members only", CloseClass::Restricted),
    ("not on the whitelist", CloseClass::Restricted),
    ("not whitelisted", CloseClass::Restricted),
    ("not allowed", CloseClass::Restricted),
    ("unsupported", CloseClass::Unsupported),
    ("not supported", CloseClass::Unsupported),
    ("bad req", CloseClass::InvalidRequest),
    ("invalid", CloseClass::InvalidRequest),
    ("could not parse", CloseClass::InvalidRequest),
];

/// Words of a refusal that a request for less time would not meet.
const BROAD_PHRASES: &[&str] = &[
    "too broad",
    "range too",
    "range is too",
    "range exceeds",
    "too wide",
    "smaller range",
    "too many results",
    "too many events",
    "too expensive",
    "too slow",
    "too long",
    "timed out",
    "timeout",
    "deadline exceeded",
    "canceling statement",
];

/// Words that make a NOTICE an answer to a request, besides the refusals above. Whole words:
/// "be kindly welcome" and "blockchain" are greetings.
const NOTICE_WORDS: &[&str] = &[
    "req",
    "reqs",
    "request",
    "requests",
    "filter",
    "filters",
    "subscription",
    "subscriptions",
    "subid",
    "kind",
    "kinds",
    "auth",
    "limit",
    "limits",
    "rate",
    "query",
    "queries",
    "scan",
    "command",
];

/// Whole words of a NOTICE about something that went wrong, whatever it was about: what follows it may be no answer.
const TROUBLE_WORDS: &[&str] = &[
    "error",
    "errors",
    "fail",
    "failed",
    "failure",
    "unavailable",
    "timeout",
    "timed",
    "overloaded",
    "maintenance",
    "shutdown",
    "closing",
    "refused",
    "denied",
    "cannot",
    "unable",
    "unknown",
    "unauthorized",
    "unauthorised",
    "authorized",
    "authorised",
    "forbidden",
    "payment",
    "members",
    "whitelist",
    "whitelisted",
    "allowlist",
    "permission",
    "permitted",
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

/// Whether a CLOSED or NOTICE says that the request covers too much, or takes the relay too long: less time may be answered.
/// What says by its prefix that it is about us, our rate or what the relay does is none, nor what says by its words that it is
/// about us or our rate, whatever time that takes.
pub fn is_too_broad(message: &str) -> bool {
    let message = message.trim().to_ascii_lowercase();
    let prefix = message.split_once(':').map_or("", |(prefix, _)| prefix.trim());
    let known = PREFIXES.iter().find(|(word, _)| *word == prefix);
    let about_request = match known {
        Some((_, class)) => *class == CloseClass::InvalidRequest,
        None => match PHRASES.iter().find(|(words, _)| message.contains(words)) {
            Some(("too many", _)) => {
                ["too many results", "too many events"].iter().any(|words| message.contains(words))
            }
            Some((_, class)) => {
                matches!(class, CloseClass::Unsupported | CloseClass::InvalidRequest | CloseClass::Error)
            }
            None => true,
        },
    };
    about_request && BROAD_PHRASES.iter().any(|words| message.contains(words))
}

/// Whether a NOTICE only greets: it speaks neither of a request nor of anything that went wrong.
pub fn is_greeting(sub: &str, message: &str) -> bool {
    let lower = message.to_ascii_lowercase();
    let mut words = lower.split(|c: char| !c.is_ascii_alphanumeric());
    !answers_request(sub, message) && !words.any(|word| TROUBLE_WORDS.contains(&word))
}

/// Whether a NOTICE speaks of a request, ours being `sub`: by its class or by its words. Anything else is a greeting.
pub fn answers_request(sub: &str, message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    let mut words = message.split(|c: char| !c.is_ascii_alphanumeric());
    message.contains(sub)
        || message.contains("sub id")
        || classify(&message) != CloseClass::Error
        || words.any(|word| NOTICE_WORDS.contains(&word))
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
            ("ERROR: bad req: too many kinds in filter: 60", CloseClass::InvalidRequest),
            ("rate-limited: too many kinds of requests", CloseClass::RateLimited),
            ("blocked: go away", CloseClass::Blocked),
            ("you are banned", CloseClass::Blocked),
            ("unsupported: filter", CloseClass::Unsupported),
            ("invalid: no kinds", CloseClass::InvalidRequest),
            ("error: unauthorized", CloseClass::Restricted),
            ("You are not authorized here", CloseClass::Restricted),
            ("403 Forbidden", CloseClass::Restricted),
            ("payment required", CloseClass::Restricted),
            ("members only", CloseClass::Restricted),
            ("you are not on the whitelist", CloseClass::Restricted),
            ("ERROR: bad req: filter has no kinds", CloseClass::InvalidRequest),
            ("bad req: x", CloseClass::InvalidRequest),
            ("error: shutting down", CloseClass::Error),
            ("", CloseClass::Error),
        ];
        for (message, class) in table {
            assert_eq!(classify(message), class, "{message}");
        }
    }

    #[test]
    fn a_refusal_of_much_is_told_from_a_refusal() {
        for broad in [
            "error: time range too large",
            "invalid: filter too broad",
            "ERROR: query timed out",
            "error: too many results",
            "pq: canceling statement due to statement timeout",
            "error: too many events, slow down",
            "unsupported range: range is too long",
        ] {
            assert!(is_too_broad(broad), "{broad}");
        }
        for other in [
            "rate-limited: too many events",
            "restricted: too broad for strangers",
            "auth-required: timeout",
            "error: rate limit exceeded, timeout 60 s",
            "error: rate limit exceeded: too many events",
            "error: too many requests, timeout 60 s",
            "error: you must authenticate, timed out",
            "you are banned, timeout 1 h",
            "error: payment required for ranges too long",
            "error: shutting down",
            "ERROR: bad req: too many kinds in filter: 60",
            "",
        ] {
            assert!(!is_too_broad(other), "{other}");
        }
    }

    #[test]
    fn a_notice_counts_only_when_it_is_about_a_request() {
        for refusal in [
            "ERROR: bad req: filter item too large",
            "could not parse command",
            "Subscription rejected",
            "rate-limited: slow down",
            "auth-required: we can't serve unauthenticated users",
            "kinds is required",
            "too many concurrent REQs",
            "closed s1a2",
            "sub id too long",
            "unauthorized",
            "forbidden",
            "not authorized",
            "payment required",
            "members only",
            "you are not on the whitelist",
        ] {
            assert!(answers_request("s1a2", refusal) && !is_greeting("s1a2", refusal), "{refusal}");
        }
        for trouble in [
            "ERROR: database is away",
            "internal error",
            "Operation timed out",
            "the relay is closing",
            "reading is for members",
            "whitelisted keys only",
            "no permission",
        ] {
            assert!(!answers_request("s1a2", trouble) && !is_greeting("s1a2", trouble), "{trouble}");
        }
        for greeting in [
            "",
            "Welcome to our server!",
            "hello",
            "powered by operator",
            "see you at the corporate site",
            "blockchain node, kindly operated",
        ] {
            assert!(!answers_request("s1a2", greeting) && is_greeting("s1a2", greeting), "{greeting}");
        }
    }
}
