//! What a pass asks a relay for: everything, or what a relay that wants its requests narrowed lets itself be asked for.

use super::super::{JobError, lost};
use crate::db::{Batch, Db};
use crate::models::{Fence, Narrowed};

/// The filter class without restriction.
pub(super) const ALL: &str = "all";
/// First part of the name of a class restricted to kinds, which follow.
const BY_KINDS: &str = "kinds:";
/// Kinds of a restricted class: its name, which lists them, is part of every interval's key.
const KINDS_MAX: usize = 60;
/// Asked for whether or not the archive knows them: profiles, notes, follows, direct messages, deletions, reposts,
/// reactions, gift wraps, reports, zaps, lists, articles.
const USUAL: [u16; 14] = [0, 1, 3, 4, 5, 6, 7, 1_059, 1_984, 9_735, 10_000, 10_002, 30_000, 30_023];
/// Keys of one batch, in one request: lists of this length are taken everywhere.
const BATCH_KEYS: i32 = 100;
/// Batches of one relay, each of which costs every pass a request or two.
const BATCHES: usize = 20;
/// Of these begun in one pass.
const BATCHES_PER_PASS: usize = 4;

/// What a pass asks for, and what its coverage speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Class {
    pub(super) name: String,
    /// Empty: all.
    pub(super) kinds: Vec<u16>,
    /// Empty: all.
    pub(super) authors: Vec<[u8; 32]>,
    /// Empty: whether or not they mention anybody.
    pub(super) mentioned: Vec<[u8; 32]>,
}

impl Class {
    /// What this relay is to be asked for, in order; never nothing. What it holds beside that is of no class, and never
    /// counts as proved.
    pub(super) async fn of_relay(
        db: &Db,
        fence: &Fence,
        relay_id: i32,
        narrowed: Option<Narrowed>,
        now: i64,
    ) -> Result<Vec<Self>, JobError> {
        Ok(match narrowed {
            None => vec![Self::all()],
            Some(Narrowed::Kinds) => vec![Self::restricted(db, relay_id, now).await?],
            Some(narrowed) => {
                let batches = Self::batches(db, fence, relay_id, narrowed, now).await?;
                // Where nobody is known yet, it says itself that it refuses.
                if batches.is_empty() {
                    vec![Self::all()]
                } else {
                    batches.into_iter().map(|batch| Self::of_batch(batch, narrowed)).collect()
                }
            }
        })
    }

    /// Among what it is found out which kinds a relay allows that refuses these: these, and what else we know today.
    pub(super) async fn to_try(db: &Db, mut refused: Vec<u16>, now: i64) -> Result<Vec<u16>, JobError> {
        for kind in known_kinds(db, now).await? {
            if !refused.contains(&kind) {
                refused.push(kind);
            }
        }
        refused.truncate(KINDS_MAX);
        Ok(refused)
    }

    /// Whether it is what most relays are asked for.
    pub(super) fn is_all(&self) -> bool {
        self.name == ALL
    }

    fn all() -> Self {
        Self { name: ALL.to_owned(), kinds: Vec::new(), authors: Vec::new(), mentioned: Vec::new() }
    }

    fn of_batch(batch: Batch, narrowed: Narrowed) -> Self {
        let (mut authors, mut mentioned) = (batch.pubkeys, Vec::new());
        if narrowed == Narrowed::Mentions {
            std::mem::swap(&mut authors, &mut mentioned);
        }
        Self { name: batch.class, kinds: batch.kinds, authors, mentioned }
    }

    fn of_kinds(kinds: Vec<u16>) -> Self {
        let kinds = ascending(kinds);
        let words: Vec<String> = kinds.iter().map(u16::to_string).collect();
        Self { name: format!("{BY_KINDS}{}", words.join(",")), kinds, ..Self::all() }
    }

    fn parse(name: &str) -> Option<Self> {
        let kinds: Result<Vec<u16>, _> = name.strip_prefix(BY_KINDS)?.split(',').map(str::parse).collect();
        Some(Self { name: name.to_owned(), kinds: kinds.ok()?, ..Self::all() })
    }

    /// The batches by which a relay is asked, with those begun now.
    async fn batches(
        db: &Db,
        fence: &Fence,
        relay_id: i32,
        narrowed: Narrowed,
        now: i64,
    ) -> Result<Vec<Batch>, JobError> {
        let what = match narrowed {
            Narrowed::Kinds => return Ok(Vec::new()),
            Narrowed::Authors => "authors",
            Narrowed::Mentions => "mentions",
            Narrowed::KindsAuthors => "kinds+authors",
        };
        let mut batches = db.relay_batches(relay_id, what).await?;
        if batches.len() >= BATCHES {
            return Ok(batches);
        }
        let kinds = if narrowed == Narrowed::KindsAuthors {
            // One list for all: what is known today is another one each week.
            match (db.relay_kinds(relay_id).await?.allowed, batches.first()) {
                (Some(allowed), _) => allowed,
                (None, Some(first)) => first.kinds.clone(),
                (None, None) => ascending(known_kinds(db, now).await?),
            }
        } else {
            Vec::new()
        };
        let most = i32::try_from(BATCHES).unwrap_or(i32::MAX);
        for _ in 0..BATCHES_PER_PASS {
            let begun = db.relay_batch_begin(fence, relay_id, now, what, (BATCH_KEYS, most), &kinds).await?;
            let Some(batch) = begun.ok_or_else(lost)? else { break };
            batches.push(batch);
        }
        Ok(batches)
    }

    /// The class of a relay that wants kinds named: those it was found to allow, or the class it was begun with, or the kinds
    /// we know today.
    async fn restricted(db: &Db, relay_id: i32, now: i64) -> Result<Self, JobError> {
        if let Some(allowed) = db.relay_kinds(relay_id).await?.allowed {
            return Ok(Self::of_kinds(allowed));
        }
        let begun = db.coverage_classes(relay_id).await?;
        if let Some(class) = begun.iter().find_map(|name| Self::parse(name)) {
            return Ok(class);
        }
        Ok(Self::of_kinds(known_kinds(db, now).await?))
    }
}

/// The kinds by which a relay may be asked: the usual ones, and the most frequent of the archive; at most [`KINDS_MAX`].
async fn known_kinds(db: &Db, now: i64) -> Result<Vec<u16>, JobError> {
    let most = i32::try_from(KINDS_MAX - USUAL.len()).unwrap_or(0);
    let known = db.dense_facts(now, most, 0).await?;
    Ok(USUAL.into_iter().chain(known.kinds).collect())
}

/// Each of them once.
fn ascending(mut kinds: Vec<u16>) -> Vec<u16> {
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_read_back_from_its_name() {
        let class = Class::of_kinds(vec![7, 1, 30_023, 1]);
        assert_eq!(class.name, "kinds:1,7,30023");
        assert_eq!(Class::parse(&class.name), Some(class));
        assert_eq!(Class::parse("all"), None);
        assert_eq!(Class::parse("kinds+authors:0123456789012345"), None);
        assert_eq!(Class::parse("kinds:1,x"), None);
    }

    #[test]
    fn a_batch_is_of_authors_or_of_whom_events_mention() {
        let batch = Batch { class: "authors:00".to_owned(), pubkeys: vec![[1; 32]], kinds: vec![] };
        let authors = Class::of_batch(batch.clone(), Narrowed::Authors);
        assert_eq!((authors.authors.len(), authors.mentioned.len(), authors.is_all()), (1, 0, false));
        let mentions = Class::of_batch(batch.clone(), Narrowed::Mentions);
        assert_eq!((mentions.authors.len(), mentions.mentioned.len()), (0, 1));
        let both = Class::of_batch(Batch { kinds: vec![1, 7], ..batch }, Narrowed::KindsAuthors);
        assert_eq!((both.authors.len(), both.mentioned.len(), both.kinds), (1, 0, vec![1, 7]));
    }
}
