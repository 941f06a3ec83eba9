//! Which events are known without being kept, and what authors ask to have deleted.
//!
//! Pure: the event, the time and the operator's choice decide. A deletion request itself is always kept: it is what
//! says why something else is not.

use sha2::{Digest, Sha256};

use super::closed::closed_set;
use super::{Event, EventId, KindClass};

/// Kind of a deletion request (NIP-09).
const DELETION: u16 = 5;
/// Kind of a request to vanish (NIP-62).
const VANISH: u16 = 62;
/// Encrypted direct messages (NIP-04), seals, chat messages and files in them (NIP-59, NIP-17), gift wraps, and
/// messages of a double ratchet.
const PRIVATE: [u16; 6] = [4, 13, 14, 15, 1_059, 1_060];
/// Most targets taken from one deletion request.
const TARGETS_MAX: usize = 2_000;

closed_set! {
    /// Why an event is not kept.
    Unkept, "reason not to keep an event" {
        /// Kinds 20000 to 29999.
        Ephemeral = "ephemeral",
        /// Direct messages, seals, gift wraps.
        Private = "private",
        /// The author wants no copies (NIP-70).
        Protected = "protected",
        /// Its time was over when it came (NIP-40).
        Expired = "expired",
        /// Its author asked to have it deleted (NIP-09, NIP-62).
        Deleted = "deleted",
    }
}

impl Unkept {
    /// `event.fate` of such an event: 1 skipped, 2 deleted, 3 expired.
    pub const fn fate(self) -> i16 {
        match self {
            Self::Ephemeral | Self::Private | Self::Protected => 1,
            Self::Deleted => 2,
            Self::Expired => 3,
        }
    }

    /// Why this event is not kept, if it is one of the classes in `unkept`; never [`Unkept::Deleted`], which other
    /// events say. `now` in Unix seconds.
    pub fn of(event: &Event, unkept: &[Self], now: i64) -> Option<Self> {
        if matches!(event.kind(), DELETION | VANISH) {
            return None;
        }
        [Self::Expired, Self::Ephemeral, Self::Private, Self::Protected]
            .into_iter()
            .find(|class| unkept.contains(class) && class.covers(event, now))
    }

    /// Whether a text that is no event, or a forged one, says of itself that it is of one of the classes in `unkept`. It may be
    /// no JSON and is read as text, so that it is rather taken for one than not; `kinds` are those it is known to say. `now` in
    /// Unix seconds. Of what is [`Self::Deleted`] a text says nothing.
    pub fn is_said(text: &str, kinds: &[u16], unkept: &[Self], now: i64) -> bool {
        let passed = |at: &str| at.parse::<i64>().is_ok_and(|at| at <= now);
        unkept.iter().any(|class| match class {
            Self::Ephemeral => kinds.iter().any(|kind| KindClass::of(*kind) == KindClass::Ephemeral),
            Self::Private => kinds.iter().any(|kind| PRIVATE.contains(kind)),
            Self::Protected => tags_said(text, "\"-\"").next().is_some(),
            Self::Expired => tags_said(text, "\"expiration\"").any(passed),
            Self::Deleted => false,
        })
    }

    fn covers(self, event: &Event, now: i64) -> bool {
        let mut tags = event.tags().iter().filter_map(|tag| Some((tag.first()?.as_str(), tag.get(1))));
        match self {
            Self::Ephemeral => KindClass::of(event.kind()) == KindClass::Ephemeral,
            Self::Private => PRIVATE.contains(&event.kind()),
            Self::Protected => tags.any(|(name, _)| name == "-"),
            Self::Expired => tags
                .find(|(name, _)| *name == "expiration")
                .and_then(|(_, at)| at?.parse::<i64>().ok())
                .is_some_and(|at| at <= now),
            Self::Deleted => false,
        }
    }
}

/// The kinds that a text gives itself, which may be no JSON or have the key twice: the digits after each key `kind`, bare or
/// quoted, where they are a kind; none where it has no such key. Of a string in JSON nothing is taken for a key, since the quotes
/// in it are escaped.
pub fn kinds_said(text: &str) -> Option<Vec<u16>> {
    let mut said = values_said(text, "\"kind\"").peekable();
    said.peek()?;
    Some(said.filter_map(|value| number(unquoted(value)).parse().ok()).collect())
}

/// The authors that a text names as its own, read in the same way.
pub fn authors_said(text: &str) -> Vec<[u8; 32]> {
    let author = |value| hex::decode(unquoted(value).get(..64)?).ok()?.try_into().ok();
    values_said(text, "\"pubkey\"").filter_map(author).collect()
}

/// What follows each key (with its quotes) of a text that may be no JSON.
fn values_said<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    let value = |at: usize| Some(text[at + key.len()..].trim_start().strip_prefix(':')?.trim_start());
    text.match_indices(key).filter_map(move |(at, _)| value(at))
}

/// The number with which the value of each tag of this name (with its quotes) begins, in a text that may be no JSON.
fn tags_said<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    text.match_indices(name).filter(|(at, _)| text[..*at].trim_end().ends_with('[')).map(|(at, _)| {
        let value = text[at + name.len()..].trim_start().strip_prefix(',').unwrap_or_default().trim_start();
        number(unquoted(value))
    })
}

fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').unwrap_or(value)
}

fn number(text: &str) -> &str {
    let sign = usize::from(text.starts_with('-'));
    let digits = text.bytes().skip(sign).take_while(u8::is_ascii_digit).count();
    &text[..sign + digits]
}

/// What a deletion request speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// One event.
    Event(EventId),
    /// Every version of a replaceable or addressable event: kind, and SHA-256 of the d tag.
    Address(u16, [u8; 32]),
    /// Everything.
    All,
}

/// One thing that an author asked to have deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tombstone {
    /// The author, who alone may ask.
    pub pubkey: [u8; 32],
    /// What is meant.
    pub target: Target,
    /// `created_at` up to which it is meant, Unix seconds.
    pub until: i64,
    /// The request.
    pub request: EventId,
}

/// What a verified event asks to have deleted; nothing for events of other kinds.
///
/// A request to vanish counts where it speaks to all relays: we are none of those that it may name.
pub fn tombstones(event: &Event) -> Vec<Tombstone> {
    let pubkey = *event.pubkey();
    let tombstone = |target| Tombstone { pubkey, target, until: event.created_at(), request: event.id() };
    let tags = event.tags().iter().filter_map(|tag| Some((tag.first()?.as_str(), tag.get(1)?.as_str())));
    match event.kind() {
        DELETION => tags
            .filter_map(|(name, value)| match name {
                "e" => value.parse().ok().map(Target::Event),
                "a" => address(value, &pubkey),
                _ => None,
            })
            .take(TARGETS_MAX)
            .map(tombstone)
            .collect(),
        VANISH => {
            let mut relays = tags.filter(|(name, _)| *name == "relay");
            if relays.any(|(_, value)| value == "ALL_RELAYS") {
                vec![tombstone(Target::All)]
            } else {
                Vec::new()
            }
        }
        _ => Vec::new(),
    }
}

/// `kind:pubkey:d` of this author, of a kind that has versions.
fn address(value: &str, author: &[u8; 32]) -> Option<Target> {
    let mut parts = value.splitn(3, ':');
    let kind: u16 = parts.next()?.parse().ok()?;
    let mine = parts.next()? == hex::encode(author);
    let versions = matches!(KindClass::of(kind), KindClass::Replaceable | KindClass::Addressable);
    let d_tag = parts.next().unwrap_or_default();
    (mine && versions).then(|| Target::Address(kind, Sha256::digest(d_tag).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000;

    fn event(kind: u16, tags: &[&[&str]]) -> Event {
        let tags = tags.iter().map(|tag| tag.iter().map(|&part| part.to_owned()).collect()).collect();
        Event::signed([7; 32], NOW, kind, tags, String::new(), |_| [0; 64]).unwrap()
    }

    #[test]
    fn classes_are_told_by_kind_and_tags() {
        let cases: [(Event, Option<Unkept>); 12] = [
            (event(1, &[]), None),
            (event(20_000, &[]), Some(Unkept::Ephemeral)),
            (event(29_999, &[&["-"]]), Some(Unkept::Ephemeral)),
            (event(30_000, &[]), None),
            (event(4, &[]), Some(Unkept::Private)),
            (event(1_059, &[&["-"]]), Some(Unkept::Private)),
            (event(1, &[&["-"]]), Some(Unkept::Protected)),
            (event(1, &[&["expiration", "1700000000"]]), Some(Unkept::Expired)),
            (event(1, &[&["expiration", "1700000001"]]), None),
            (event(1, &[&["expiration", "soon"]]), None),
            (event(5, &[&["-"], &["expiration", "1"]]), None),
            (event(4, &[&["expiration", "1"]]), Some(Unkept::Expired)),
        ];
        for (event, class) in cases {
            assert_eq!(Unkept::of(&event, Unkept::ALL, NOW), class, "{event:?}");
            assert_eq!(Unkept::of(&event, &[], NOW), None);
        }
    }

    #[test]
    fn a_text_that_is_no_event_says_what_it_is() {
        let said =
            |text: &str| Unkept::is_said(text, &kinds_said(text).unwrap_or_default(), Unkept::ALL, NOW);
        let unkept = [
            r#"{"kind":4,"created_at":1.5}"#,
            "{\"kind\" :\n1059.0,",
            r#"{"kind":"14"}"#,
            r#"{"kind":1,"kind":20001}"#,
            r#"{"kind":1,"tags":[["t","x"],[ "-" ]],"#,
            r#"{"kind":1,"tags":[["expiration", "1700000000"]]}"#,
            r#"{"kind":1,"tags":[["expiration",1700000000]]}"#,
            r#"{"kind":1,"tags":[["expiration","-5"]]}"#,
        ];
        let kept = [
            "",
            "null",
            r#"{"kind":70000,"content":"x"}"#,
            r#"{"kind":1,"content":"{\"kind\":4,\"tags\":[[\"-\"]]}","tags":[["kind","4"],["t","-"]]}"#,
            r#"{"kind":-4,"kind":,"tags":[["expiration"],["expiration","1700000001"],["expiration","soon"]]}"#,
        ];
        assert!(unkept.into_iter().all(said) && !kept.into_iter().any(said));
        assert!(!Unkept::is_said(unkept[0], &[4], &[Unkept::Ephemeral], NOW));
        assert_eq!(kinds_said(kept[4]), Some(vec![]), "it says one that is none");
        assert_eq!(kinds_said(r#"["EVENT","s","{\"kind\":4}"]"#), None, "written twice over, it says none");
        let author = "0a".repeat(32);
        let text = format!(
            r#"{{"pubkey" : "{author}","content":"\"pubkey\":\"{author}\"","pubkey":"0a","pubkey":"{author}"#
        );
        assert_eq!(authors_said(&text), [[10; 32]; 2]);
    }

    #[test]
    fn a_deletion_speaks_of_the_authors_own_only() {
        let mine = hex::encode([7; 32]);
        let id = "ab".repeat(32);
        let request = event(
            5,
            &[
                &["e", &id],
                &["e", "nonsense"],
                &["a", &format!("30023:{mine}:x:y")],
                &["a", &format!("0:{mine}:")],
                &["a", &format!("1:{mine}:")],
                &["a", &format!("30023:{}:x", "cd".repeat(32))],
                &["k", "30023"],
            ],
        );
        let targets: Vec<Target> = tombstones(&request).into_iter().map(|t| t.target).collect();
        let hash = |d: &str| <[u8; 32]>::from(Sha256::digest(d));
        assert_eq!(
            targets,
            [
                Target::Event(id.parse().unwrap()),
                Target::Address(30_023, hash("x:y")),
                Target::Address(0, hash(""))
            ]
        );
        assert!(tombstones(&event(1, &[&["e", &id]])).is_empty());
    }

    #[test]
    fn vanishing_counts_where_it_speaks_to_all() {
        assert_eq!(tombstones(&event(62, &[&["relay", "wss://one.example"]])), []);
        let all = tombstones(&event(62, &[&["relay", "wss://one.example"], &["relay", "ALL_RELAYS"]]));
        assert_eq!(all.iter().map(|t| (&t.target, t.until)).collect::<Vec<_>>(), [(&Target::All, NOW)]);
    }
}
