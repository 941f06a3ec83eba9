//! What the words of a refused reconciliation mean.

use crate::nips::refusal::{CloseClass, classify};

/// Words by which relay programs say that a window holds more than they compare at once.
const TOO_MANY: &[&str] = &["too many", "too large", "too big", "records", "results"];
/// Words by which they say that they do not compare at all.
const NOT_HERE: &[&str] =
    &["disabled", "not supported", "unsupported", "unknown", "unrecognized", "unrecognised"];

/// Why a relay did not compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The window holds more than it compares at once, and how many that is, if it says so.
    TooMany(Option<u64>),
    /// It does not know or want NIP-77.
    Unsupported,
    /// Anything else.
    Other(CloseClass),
}

/// Reads the reason of a NEG-ERR, CLOSED or NOTICE; `most` is what a NEG-ERR names beside its words.
pub(super) fn read(message: &str, most: Option<u64>) -> Refusal {
    let words = message.to_ascii_lowercase();
    let has = |list: &[&str]| list.iter().any(|word| words.contains(word));
    let class = classify(message);
    if class == CloseClass::RateLimited && words.starts_with("rate") {
        return Refusal::Other(class);
    }
    if has(TOO_MANY) && !words.contains("request") && !words.contains("subscription") {
        return Refusal::TooMany(most.or_else(|| bound(&words)).filter(|most| *most > 0));
    }
    if class == CloseClass::Unsupported || has(NOT_HERE) {
        return Refusal::Unsupported;
    }
    Refusal::Other(class)
}

/// strfry writes `(N > M)`: M is what it compares at once.
fn bound(words: &str) -> Option<u64> {
    let tail = words.split_once('>')?.1;
    let digits: String = tail.trim_start().chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_the_wild_are_read() {
        for (message, most, refusal) in [
            ("blocked: too many query results", None, Refusal::TooMany(None)),
            (
                "blocked: query matches too many records (1500000 > 1000000)",
                None,
                Refusal::TooMany(Some(1_000_000)),
            ),
            ("blocked: too many records", Some(500), Refusal::TooMany(Some(500))),
            ("blocked: too many records", Some(0), Refusal::TooMany(None)),
            ("ERROR: negentropy disabled", None, Refusal::Unsupported),
            ("unknown envelope label", None, Refusal::Unsupported),
            ("unsupported: no", None, Refusal::Unsupported),
            ("rate-limited: too many requests", None, Refusal::Other(CloseClass::RateLimited)),
            ("error: too many concurrent requests", None, Refusal::Other(CloseClass::RateLimited)),
            ("auth-required: no", None, Refusal::Other(CloseClass::AuthRequired)),
            ("closed: you took too long to respond!", None, Refusal::Other(CloseClass::Error)),
            ("", None, Refusal::Other(CloseClass::Error)),
        ] {
            assert_eq!(read(message, most), refusal, "{message}");
        }
    }
}
