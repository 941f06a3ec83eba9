//! The planner of one second that holds more events than the relay gives in a page: it is asked for in parts.
//!
//! Owns no socket and no clock. First by kinds, in lists that are halved while their page comes full; a kind that alone
//! fills a page is asked for by author, and an author that alone still does, by `#p`. Authors and mentions are those
//! that the caller knows and those that turn up on the way. Invariants: every part is asked once; a part is split only
//! when its page came full; requests ≤ `max_requests`.
//!
//! # What that proves
//! Nothing. A page that is not full shows the whole of *its part*, but no finite list of parts makes the second: a relay
//! may hold an event of a kind that nobody has named, and within a full kind one of an author that nobody has. All
//! 65,536 kinds could be asked for, in lists no relay program is known to take, and authors could not. So the second
//! stays *partial/dense_second*, whatever came. Only a comparison of sets (NIP-77) proves such a second.
//!
//! # Bound
//! Without a full page: `kinds / KINDS_PER_REQUEST` requests, rounded up. Each full page adds two, or one per
//! [`PER_REQUEST`] authors or mentions where it opens a list of these.

use std::collections::{BTreeMap, HashSet};

use super::filter::Filter;
use crate::models::EnvelopeFacts;

/// Kinds named in one request: lists of this length are taken everywhere.
pub const KINDS_PER_REQUEST: usize = 50;
/// Authors or mentions named in one request.
pub const PER_REQUEST: usize = 100;
/// Most authors, and most mentions, that are remembered.
const LISTED_MAX: usize = 2_000;

/// What to split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DenseSpec {
    /// The second (Unix).
    pub second: i64,
    /// Events asked for per page.
    pub limit: u32,
    /// Events of the largest page that this relay served: one of as many may be cut.
    pub page_shown: usize,
    /// Kinds, those to ask for first in front.
    pub kinds: Vec<u16>,
    /// Authors, likewise.
    pub authors: Vec<[u8; 32]>,
    /// Most requests.
    pub max_requests: u32,
    /// The relay serves only what is older than `until`, which is sent raised by one.
    pub until_exclusive: bool,
}

/// One request's worth: empty lists restrict nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    kinds: Vec<u16>,
    authors: Vec<[u8; 32]>,
    mentioned: Vec<[u8; 32]>,
}

/// The parts of one second, under way.
#[derive(Debug)]
pub struct Dense {
    spec: DenseSpec,
    /// Asked last to first.
    parts: Vec<Part>,
    outstanding: Option<Part>,
    requests: u32,
    /// Smallest page that counts as full.
    full: usize,
    authors: Names,
    mentioned: Names,
    /// Kinds that are asked for by author, and how many of `authors` they were.
    by_author: BTreeMap<u16, usize>,
    unsplit: u32,
}

/// Keys in the order in which they turned up.
#[derive(Debug, Default)]
struct Names {
    order: Vec<[u8; 32]>,
    known: HashSet<[u8; 32]>,
}

impl Names {
    fn add(&mut self, name: [u8; 32]) {
        if self.order.len() < LISTED_MAX && self.known.insert(name) {
            self.order.push(name);
        }
    }
}

impl Dense {
    /// Plans; without kinds nothing is asked.
    pub fn new(spec: DenseSpec) -> Self {
        let mut authors = Names::default();
        for author in &spec.authors {
            authors.add(*author);
        }
        let lists = spec.kinds.chunks(KINDS_PER_REQUEST).rev();
        let parts =
            lists.map(|kinds| Part { kinds: kinds.to_vec(), authors: vec![], mentioned: vec![] }).collect();
        let limit = usize::try_from(spec.limit).unwrap_or(usize::MAX).max(1);
        let full = limit.min(spec.page_shown.max(1));
        Self {
            spec,
            parts,
            outstanding: None,
            requests: 0,
            full,
            authors,
            mentioned: Names::default(),
            by_author: BTreeMap::new(),
            unsplit: 0,
        }
    }

    /// What to ask now, the same until its page is reported; `None` when there is nothing more to ask.
    #[expect(clippy::should_implement_trait, reason = "it is driven by its pages, it is no iterator")]
    pub fn next(&mut self) -> Option<Filter> {
        if self.outstanding.is_none() && self.requests < self.spec.max_requests {
            if self.parts.is_empty() {
                self.late_authors();
            }
            self.outstanding = self.parts.pop();
            self.requests += u32::from(self.outstanding.is_some());
        }
        let part = self.outstanding.as_ref()?;
        Some(Filter {
            kinds: part.kinds.clone(),
            authors: part.authors.clone(),
            mentioned: part.mentioned.clone(),
            since: Some(self.spec.second),
            until: Some(self.spec.second + i64::from(self.spec.until_exclusive)),
            limit: Some(self.spec.limit),
            ..Filter::default()
        })
    }

    /// Takes the page of the last request: its events, and whom they mention. Without an EOSE it shows nothing, and
    /// its part is given up.
    pub fn on_page(&mut self, events: &[EnvelopeFacts], mentions: &[[u8; 32]], is_eose: bool) {
        let Some(part) = self.outstanding.take() else { return };
        for event in events {
            self.authors.add(event.pubkey);
        }
        for key in mentions {
            self.mentioned.add(*key);
        }
        if !is_eose {
            self.unsplit += 1;
            return;
        }
        if events.len() >= self.full {
            self.split(part);
        }
    }

    /// Requests made so far.
    pub const fn requests(&self) -> u32 {
        self.requests
    }

    /// Parts known to be incomplete: cut and not to be split further, or not answered.
    pub const fn unsplit(&self) -> u32 {
        self.unsplit
    }

    fn split(&mut self, part: Part) {
        let Part { kinds, authors, mentioned } = part;
        if mentioned.len() > 1 {
            for half in halves(&mentioned) {
                self.parts.push(Part { kinds: kinds.clone(), authors: authors.clone(), mentioned: half });
            }
        } else if !mentioned.is_empty() {
            self.unsplit += 1;
        } else if authors.len() > 1 {
            for half in halves(&authors) {
                self.parts.push(Part { kinds: kinds.clone(), authors: half, mentioned: vec![] });
            }
        } else if !authors.is_empty() {
            // The rest of this part, what mentions nobody, is out of reach.
            self.unsplit += 1;
            for list in self.mentioned.order.chunks(PER_REQUEST) {
                self.parts.push(Part {
                    kinds: kinds.clone(),
                    authors: authors.clone(),
                    mentioned: list.to_vec(),
                });
            }
        } else if kinds.len() > 1 {
            for half in halves(&kinds) {
                self.parts.push(Part { kinds: half, authors: vec![], mentioned: vec![] });
            }
        } else if let Some(kind) = kinds.first() {
            self.by_author.insert(*kind, 0);
            self.late_authors();
        }
    }

    /// Asks kinds that are split by author for those who turned up since.
    fn late_authors(&mut self) {
        let all = self.authors.order.len();
        for (kind, asked) in &mut self.by_author {
            for list in self.authors.order[*asked..].chunks(PER_REQUEST) {
                self.parts.push(Part { kinds: vec![*kind], authors: list.to_vec(), mentioned: vec![] });
            }
            *asked = all;
        }
    }
}

fn halves<T: Clone>(list: &[T]) -> [Vec<T>; 2] {
    let (front, back) = list.split_at(list.len() / 2);
    [back.to_vec(), front.to_vec()]
}

#[cfg(test)]
mod tests;
