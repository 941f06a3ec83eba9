//! Signed events, the same ones for the same seed, as real relays hold them.
//!
//! Every event of one factory survives on an honest relay: none replaces, deletes or expires another, so that
//! "published" and "stored" are the same number.

use nostr::prelude::{Event, Keys, Kind, SecretKey, Tag, Timestamp, UnsignedEvent};
use sha2::{Digest as _, Sha256};

/// Authors of one factory; enough for pubkey counts to differ, few enough to derive at once.
const AUTHORS: usize = 40;

/// Default reach into the past, in seconds: six days, inside the default window of seven.
pub const SPAN_S: i64 = 6 * 86_400;

/// Makes events. Ids and signatures depend on seed, end, span and index alone.
#[derive(Debug, Clone)]
pub struct Factory {
    authors: Vec<Keys>,
    end: i64,
    span_s: i64,
}

impl Factory {
    /// A factory whose events end now and reach [`SPAN_S`] back.
    pub fn new(seed: u64) -> Self {
        let authors = (0..AUTHORS).map(|author| derive_keys(seed, author)).collect();
        // A few seconds back: no relay may call the newest one "from the future".
        Self { authors, end: shared::clock::unix_now() - 5, span_s: SPAN_S }
    }

    /// The second (Unix) of the newest event.
    #[must_use]
    pub fn ending_at(mut self, end: i64) -> Self {
        self.end = end;
        self
    }

    /// The seconds over which events are spread.
    #[must_use]
    pub fn over(mut self, span_s: i64) -> Self {
        self.span_s = span_s;
        self
    }

    /// The keys of an author; indexes wrap.
    pub fn author(&self, index: usize) -> &Keys {
        &self.authors[index % self.authors.len()]
    }

    /// `count` events, newest first, evenly spread, of mixed kinds.
    pub fn events(&self, count: usize) -> Vec<Event> {
        let mut newest_first = Vec::with_capacity(count);
        for index in 0..count {
            let event = self.nth(index, count, newest_first.last());
            newest_first.push(event);
        }
        newest_first
    }

    /// `count` events of one and the same second.
    pub fn dense(&self, count: usize, created_at: i64) -> Vec<Event> {
        (0..count).map(|i| self.sign(i, 1, vec![], &format!("dense {i}"), created_at)).collect()
    }

    /// Signs one event exactly as told, however odd.
    ///
    /// # Panics
    /// When `created_at` is negative: Nostr has no such time.
    pub fn sign(
        &self,
        author: usize,
        kind: u16,
        tags: Vec<Vec<String>>,
        content: &str,
        created_at: i64,
    ) -> Event {
        let keys = self.author(author);
        let tags = tags.into_iter().map(|tag| Tag::parse(tag).expect("a tag has a name"));
        let created_at = Timestamp::from(u64::try_from(created_at).expect("times start in 1970"));
        let mut unsigned = UnsignedEvent::new(keys.public_key(), created_at, Kind::from(kind), tags, content);
        let id = unsigned.id();
        // No auxiliary randomness: the same event gets the same signature at every run.
        let signature = keys.sign_schnorr_with_aux_rand(secp256k1::SECP256K1, id.as_bytes(), &[0; 32]);
        unsigned.add_signature(signature).expect("the signature was made for this id")
    }

    fn nth(&self, index: usize, count: usize, previous: Option<&Event>) -> Event {
        let step = i64::try_from(index).expect("counts are small");
        let count = i64::try_from(count.max(1)).expect("counts are small");
        let created_at = self.end - self.span_s * step / count;
        let (kind, mut tags, content) = shape(index, previous);
        tags.push(vec!["t".into(), format!("topic{}", index % 17)]);
        // Replaceable kinds come once per author, or they would replace one another.
        let kind = if index < AUTHORS { 10_002 } else { kind };
        self.sign(index, kind, tags, &content, created_at)
    }
}

/// Kind, tags and content by index: the mix an ordinary relay holds, no two alike.
fn shape(index: usize, previous: Option<&Event>) -> (u16, Vec<Vec<String>>, String) {
    let refers = |letter: &str, value: String| vec![letter.to_owned(), value];
    let to_previous = previous.map_or_else(Vec::new, |event| {
        vec![refers("e", event.id.to_hex()), refers("p", event.pubkey.to_hex())]
    });
    match index % 10 {
        0..=4 => {
            let text = "It is what relays hold most: short words. ".repeat(index % 7);
            (1, vec![], format!("note {index}: {text}"))
        }
        5 | 6 => (7, to_previous, if index.is_multiple_of(2) { "+".into() } else { format!("🤙 {index}") }),
        7 => (6, to_previous, format!("repost {index}")),
        8 => {
            let tags = vec![refers("d", format!("article-{index}")), refers("title", format!("第{index}章"))];
            (30_023, tags, "A longer text, with \"quotes\", \\ and\nnew lines. ".repeat(1 + index % 20))
        }
        _ => (1984, to_previous, format!("report {index}")),
    }
}

fn derive_keys(seed: u64, author: usize) -> Keys {
    let digest = Sha256::digest(format!("bigbrotr test author {seed} {author}"));
    Keys::new(SecretKey::from_slice(&digest).expect("a digest is a valid key but for odds of 2^-128"))
}
