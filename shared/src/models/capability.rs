//! What a relay says it can do beside what it was seen to do.
//!
//! Claims come from its NIP-11 document, measurements from a handful of small requests. Both are kept, and
//! neither corrects the other. Invariant: a limit stands here only when a page was proved to be cut at it; what
//! a probe could not decide is `undecided`, never a guess.

use serde::{Deserialize, Serialize};

use super::closed::closed_set;
use super::outcome::Reason;

/// Longest words of a relay kept with an answer, in characters.
const WORDS_CHARS: usize = 200;

/// The NIPs whose claims are measured.
pub const MEASURED_NIPS: [u16; 5] = [42, 45, 50, 67, 77];

closed_set! {
    /// Whether a relay does what it was asked.
    Support, "capability" {
        /// Not asked.
        Untested = "untested",
        /// It does.
        Works = "works",
        /// It says that it does not, or not for us.
        Refused = "refused",
        /// It answers as if the member of the filter were not there.
        Ignored = "ignored",
        /// It does not answer.
        Silent = "silent",
        /// It answers, and the answer decides nothing.
        Undecided = "undecided",
    }
}

closed_set! {
    /// What the answer came in.
    By, "kind of answer" {
        /// Nothing came.
        Nothing = "nothing",
        /// EOSE.
        Eose = "eose",
        /// CLOSED.
        Closed = "closed",
        /// NOTICE, which names no request: taken for the answer to the only one outstanding.
        Notice = "notice",
        /// COUNT (NIP-45).
        Count = "count",
        /// NEG-MSG (NIP-77).
        NegMsg = "neg_msg",
        /// NEG-ERR (NIP-77): it speaks NIP-77, and refuses this.
        NegErr = "neg_err",
    }
}

closed_set! {
    /// How a relay reads `until`, which NIP-01 has inclusive.
    Until, "reading of until" {
        /// Not asked.
        Untested = "untested",
        /// As NIP-01 has it.
        Inclusive = "inclusive",
        /// It serves only what is older.
        Exclusive = "exclusive",
        /// It serves what is newer too.
        Ignored = "ignored",
        /// The answer decides nothing.
        Undecided = "undecided",
    }
}

closed_set! {
    /// How far NIP-42 went on one connection.
    AuthSeen, "state of authentication" {
        /// No challenge was seen.
        None = "none",
        /// It sent a challenge, and answers without.
        Offered = "offered",
        /// It answers only who authenticates.
        Required = "required",
        /// It required it, and took our key.
        Accepted = "accepted",
        /// It required it, and did not take our key.
        Refused = "refused",
    }
}

/// One measured answer with the relay's own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The verdict.
    pub seen: Support,
    /// What it came in.
    pub by: By,
    /// What the relay said with a refusal.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub words: String,
}

/// What a request must name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Narrowed {
    /// Kinds.
    Kinds,
    /// Authors.
    Authors,
    /// Whom the events mention (`#p`).
    Mentions,
    /// Kinds and authors together.
    KindsAuthors,
}

impl Default for Answer {
    fn default() -> Self {
        Self::UNTESTED
    }
}

impl Answer {
    /// Not asked.
    pub const UNTESTED: Self = Self { seen: Support::Untested, by: By::Nothing, words: String::new() };

    /// An answer; control characters leave the words, and what is too long.
    pub fn new(seen: Support, by: By, words: &str) -> Self {
        let words = words.chars().filter(|c| !c.is_control()).take(WORDS_CHARS).collect();
        Self { seen, by, words }
    }
}

/// What the relay's NIP-11 document says of what is measured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Those of [`MEASURED_NIPS`] it lists; 77 also by strfry's `negentropy`.
    pub nips: Vec<u16>,
    /// `limitation.max_limit`.
    pub max_limit: Option<u64>,
    /// `limitation.default_limit`.
    pub default_limit: Option<u64>,
    /// `limitation.auth_required`.
    pub auth_required: Option<bool>,
    /// `limitation.restricted_writes`.
    pub restricted_writes: Option<bool>,
    /// `limitation.payment_required`.
    pub payment_required: Option<bool>,
    /// `limitation.min_pow_difficulty`.
    pub min_pow_difficulty: Option<u64>,
    /// `limitation.created_at_lower_limit`: only writing could measure it.
    pub created_at_lower_limit: Option<u64>,
    /// `limitation.created_at_upper_limit`: only writing could measure it.
    pub created_at_upper_limit: Option<u64>,
}

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// NIP-42.
    #[serde(rename = "nip42")]
    pub auth: AuthSeen,
    /// NIP-45.
    #[serde(rename = "nip45")]
    pub count: Answer,
    /// NIP-50: works when a search for what nobody wrote finds less than the same request without it.
    #[serde(rename = "nip50")]
    pub search: Answer,
    /// NIP-67: works when any EOSE carried a known hint.
    #[serde(rename = "nip67")]
    pub hint: Support,
    /// NIP-77.
    #[serde(rename = "nip77")]
    pub negentropy: Answer,
    /// A filter that names no kinds.
    pub without_kinds: Answer,
    /// A filter that names nothing but kinds; asked where that was refused.
    #[serde(default)]
    pub with_kinds: Answer,
    /// A filter that names nothing but authors; asked where that was refused, too.
    #[serde(default)]
    pub with_authors: Answer,
    /// A filter that names nothing but whom events mention; likewise.
    #[serde(default)]
    pub with_mentions: Answer,
    /// A filter that names kinds and authors; asked where each of these alone was refused.
    #[serde(default)]
    pub with_kinds_authors: Answer,
    /// How it reads `until`.
    pub until: Until,
    /// Events of a page that was proved to be cut although less was sent than asked for.
    pub max_limit: Option<u32>,
    /// Events of a page without `limit` that was proved to be cut.
    pub default_limit: Option<u32>,
    /// Whether asking for more than the limit brought less than asking for the limit.
    pub above_brings_less: Option<bool>,
    /// Most events that one page brought.
    pub page_max: u32,
    /// Requests made.
    pub requests: u32,
    /// What ended the probing early; none when everything was asked.
    pub ended: Reason,
}

impl Default for Measured {
    fn default() -> Self {
        Self {
            auth: AuthSeen::None,
            count: Answer::UNTESTED,
            search: Answer::UNTESTED,
            hint: Support::Untested,
            negentropy: Answer::UNTESTED,
            without_kinds: Answer::UNTESTED,
            with_kinds: Answer::UNTESTED,
            with_authors: Answer::UNTESTED,
            with_mentions: Answer::UNTESTED,
            with_kinds_authors: Answer::UNTESTED,
            until: Until::Untested,
            max_limit: None,
            default_limit: None,
            above_brings_less: None,
            page_max: 0,
            requests: 0,
            ended: Reason::None,
        }
    }
}

impl Measured {
    /// The same, and where the probing ended early, what it did not come to as it was measured before.
    #[must_use]
    pub fn completed_by(mut self, before: Self) -> Self {
        if self.ended == Reason::None {
            return self;
        }
        let keep = |answer: &mut Answer, before| {
            if answer.seen == Support::Untested {
                *answer = before;
            }
        };
        // How to narrow is asked only of who refuses to be asked without kinds.
        if matches!(self.without_kinds.seen, Support::Untested | Support::Refused) {
            keep(&mut self.with_kinds, before.with_kinds);
            keep(&mut self.with_authors, before.with_authors);
            keep(&mut self.with_mentions, before.with_mentions);
            keep(&mut self.with_kinds_authors, before.with_kinds_authors);
        }
        keep(&mut self.without_kinds, before.without_kinds);
        keep(&mut self.count, before.count);
        keep(&mut self.search, before.search);
        keep(&mut self.negentropy, before.negentropy);
        if self.hint == Support::Untested {
            self.hint = before.hint;
        }
        if self.until == Until::Untested {
            self.until = before.until;
        }
        if self.auth == AuthSeen::None {
            self.auth = before.auth;
        }
        self.max_limit = self.max_limit.or(before.max_limit);
        self.default_limit = self.default_limit.or(before.default_limit);
        self.above_brings_less = self.above_brings_less.or(before.above_brings_less);
        self.page_max = self.page_max.max(before.page_max);
        self
    }

    /// The `limit` that yields most, as far as is known: what a page was proved to be cut at.
    pub const fn best_limit(&self) -> Option<u32> {
        self.max_limit
    }

    /// How requests must be narrowed for the relay to answer them; `None`: not at all, as far as is known.
    pub fn narrowed(&self) -> Option<Narrowed> {
        let refused = |answer: &Answer| answer.seen == Support::Refused;
        let works = |answer: &Answer| answer.seen == Support::Works;
        if !refused(&self.without_kinds) {
            None
        } else if !refused(&self.with_kinds) {
            Some(Narrowed::Kinds)
        } else if works(&self.with_authors) {
            Some(Narrowed::Authors)
        } else if works(&self.with_mentions) {
            Some(Narrowed::Mentions)
        } else if refused(&self.with_authors)
            && refused(&self.with_mentions)
            && works(&self.with_kinds_authors)
        {
            Some(Narrowed::KindsAuthors)
        } else {
            Some(Narrowed::Kinds)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let measured = Measured {
            auth: AuthSeen::Offered,
            count: Answer::new(Support::Works, By::Count, ""),
            negentropy: Answer::new(Support::Refused, By::NegErr, "blocked: \u{0}no\n"),
            max_limit: Some(500),
            ..Measured::default()
        };
        let text = serde_json::to_string(&measured).unwrap();
        assert!(
            text.contains(r#""nip77":{"seen":"refused","by":"neg_err","words":"blocked: no"}"#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Measured>(&text).unwrap(), measured);
    }

    #[test]
    fn a_word_of_no_set_is_no_record() {
        let text = serde_json::to_string(&Measured::default()).unwrap();
        assert!(serde_json::from_str::<Measured>(&text.replace("untested", "perhaps")).is_err());
    }

    #[test]
    fn a_record_of_an_older_version_is_read_and_says_by_what_to_narrow() {
        let refused = Answer::new(Support::Refused, By::Closed, "invalid: kinds");
        let by_kinds = Measured { without_kinds: refused.clone(), ..Measured::default() };
        let mut old = serde_json::to_value(&by_kinds).unwrap();
        for field in ["with_kinds", "with_authors", "with_mentions", "with_kinds_authors"] {
            old.as_object_mut().unwrap().remove(field);
        }
        assert_eq!(serde_json::from_value::<Measured>(old).unwrap(), by_kinds);
        assert_eq!(Measured::default().narrowed(), None);
        assert_eq!(by_kinds.narrowed(), Some(Narrowed::Kinds));
        let works = Answer::new(Support::Works, By::Eose, "");
        let mut both = Measured { with_kinds: refused.clone(), with_mentions: works.clone(), ..by_kinds };
        assert_eq!(both.narrowed(), Some(Narrowed::Mentions));
        both.with_authors = works;
        assert_eq!(both.narrowed(), Some(Narrowed::Authors));
        both.without_kinds = Answer::UNTESTED;
        assert_eq!(both.narrowed(), None);
    }

    #[test]
    fn kinds_and_authors_are_named_together_where_each_alone_was_refused() {
        let refused = || Answer::new(Support::Refused, By::Closed, "invalid: kinds and authors");
        let measured = Measured {
            without_kinds: refused(),
            with_kinds: refused(),
            with_authors: refused(),
            with_mentions: refused(),
            with_kinds_authors: Answer::new(Support::Works, By::Eose, ""),
            ..Measured::default()
        };
        assert_eq!(measured.narrowed(), Some(Narrowed::KindsAuthors));
        for other in [
            Measured { with_authors: Answer::UNTESTED, ..measured.clone() },
            Measured { with_mentions: Answer::UNTESTED, ..measured.clone() },
            Measured { with_kinds_authors: refused(), ..measured.clone() },
        ] {
            assert_eq!(other.narrowed(), Some(Narrowed::Kinds), "{other:?}");
        }
        // An early end takes it back as little as the others.
        let cut = Measured { ended: Reason::RateLimited, ..Measured::default() };
        assert_eq!(cut.completed_by(measured).narrowed(), Some(Narrowed::KindsAuthors));
    }

    #[test]
    fn a_probing_that_ended_early_takes_nothing_back() {
        let works = |by| Answer::new(Support::Works, by, "");
        let refused = Answer::new(Support::Refused, By::Closed, "invalid: kinds");
        let before = Measured {
            count: works(By::Count),
            negentropy: works(By::NegMsg),
            without_kinds: refused.clone(),
            with_kinds: refused,
            with_authors: works(By::Eose),
            until: Until::Exclusive,
            max_limit: Some(500),
            page_max: 500,
            requests: 7,
            ..Measured::default()
        };
        let cut = Measured { ended: Reason::RateLimited, requests: 1, ..Measured::default() };
        let kept = cut.clone().completed_by(before.clone());
        assert_eq!(kept, Measured { ended: Reason::RateLimited, requests: 1, ..before.clone() });
        // What it did come to stands, and what follows from it.
        let without_kinds = works(By::Eose);
        let count = Answer::new(Support::Refused, By::Closed, "no");
        let opened = Measured { without_kinds, count: count.clone(), ..cut }.completed_by(before.clone());
        assert_eq!((opened.narrowed(), opened.with_authors.seen), (None, Support::Untested));
        assert_eq!((opened.count, opened.negentropy), (count, works(By::NegMsg)));
        // A whole one stands for itself.
        assert_eq!(Measured::default().completed_by(before), Measured::default());
    }

    #[test]
    fn words_are_bounded() {
        assert_eq!(Answer::new(Support::Refused, By::Closed, &"é".repeat(9_000)).words.chars().count(), 200);
    }
}
