//! Relay URLs in archived events: pure, and quick to pass over events that name none.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::Value;

use super::nip05::Name;
use super::tags::{self, Element};
use super::text::{Find, finds, worth, worth_json};
use crate::db::UnminedEvent;
use crate::models::{AddressPolicy, RelayUrl, Source};
use crate::nips::nip19;

/// URLs taken from one event: a contact list may be long, a spam event longer.
const URLS_PER_EVENT: usize = 500;
/// Texts of one event that are read as URLs or NIP-19 texts, before the rest of it is left.
const TRIES_PER_EVENT: usize = 2_000;
/// URLs taken from one batch; events beyond are left for the next. It bounds one transaction.
const URLS_PER_BATCH: usize = 20_000;
/// Texts remembered with what they were read as: the same few thousand relays are named again and again.
const MEMO_MAX: usize = 100_000;
/// NIP-05 names taken from one batch: a sample.
const NAMES_PER_BATCH: usize = 100;

const PROFILE: i32 = 0;
const RECOMMENDATION: i32 = 2;
const CONTACTS: i32 = 3;
/// Lists and sets of relays (NIP-51, NIP-17, NIP-EE, NIP-66's neighbours), besides kind 10002.
const LISTS: [i32; 9] = [RECOMMENDATION, 10_006, 10_007, 10_009, 10_012, 10_050, 10_051, 10_102, 30_002];
const RELAY_LIST: i32 = 10_002;
const MONITORS: [i32; 2] = [10_166, 30_166];

/// What a batch of events names.
#[derive(Debug, Default)]
pub struct Mined {
    /// Each URL with each kind of place it was seen in, in order.
    pub found: Vec<(RelayUrl, Source)>,
    /// Texts that began like a relay's URL and are none.
    pub refused: u64,
    /// A sample of the NIP-05 names that profiles give.
    pub names: Vec<Name>,
    /// How many of the events were looked at, from the first on.
    pub events: usize,
}

/// Mines events in order, until all are or the batch has named enough.
pub fn mine(events: &[UnminedEvent], policy: &AddressPolicy) -> Mined {
    let mut miner = Miner {
        policy,
        memo: HashMap::new(),
        urls: HashMap::new(),
        found: HashSet::new(),
        refused: 0,
        names: Vec::new(),
    };
    let mut looked_at = 0;
    for event in events {
        miner.event(event);
        looked_at += 1;
        if miner.found.len() >= URLS_PER_BATCH {
            break;
        }
    }
    let mut urls: Vec<(RelayUrl, u32)> = miner.urls.into_iter().collect();
    urls.sort_unstable_by_key(|(_, number)| *number);
    let place = |(number, source): (u32, Source)| {
        let (url, _) = urls.get(usize::try_from(number).ok()?)?;
        Some((url.clone(), source))
    };
    let mut found: Vec<_> = miner.found.into_iter().filter_map(place).collect();
    found.sort_unstable();
    Mined { found, refused: miner.refused, names: miner.names, events: looked_at }
}

struct Miner<'a> {
    policy: &'a AddressPolicy,
    /// Texts already read, with the number of the URL each is, if it is one.
    memo: HashMap<String, Option<u32>>,
    /// URLs by their number, counted from 0 on.
    urls: HashMap<RelayUrl, u32>,
    found: HashSet<(u32, Source)>,
    refused: u64,
    names: Vec<Name>,
}

/// What one event may still cost.
struct Budget {
    urls: usize,
    tries: usize,
}

impl Budget {
    const fn spent(&self) -> bool {
        self.urls == 0 || self.tries == 0
    }
}

impl Miner<'_> {
    fn event(&mut self, event: &UnminedEvent) {
        let Some(kind) = event.kind else { return };
        let mut budget = Budget { urls: URLS_PER_EVENT, tries: TRIES_PER_EVENT };
        if let Some(json) = event.tags.as_deref().filter(|json| worth(json)) {
            tags::walk(json, |element| {
                self.element(kind, &element, &mut budget);
                !budget.spent()
            });
        }
        let Some(content) = event.content.as_deref().filter(|content| !content.is_empty()) else { return };
        if kind == PROFILE {
            self.profile(content);
        }
        if kind == CONTACTS && worth_json(content) && self.contacts(content, &mut budget) {
            return;
        }
        if worth(content) {
            let source = if kind == RECOMMENDATION { Source::List } else { Source::Text };
            self.prose(content, source, &mut budget);
        }
    }

    fn element(&mut self, kind: i32, element: &Element<'_>, budget: &mut Budget) {
        // A slash is never escaped in what we store; hexadecimal ids and keys end here.
        if !worth(element.raw()) {
            return;
        }
        let Some(text) = element.text() else { return };
        if !begins_like_url(text.trim_start()) {
            return self.prose(text.as_bytes(), Source::Text, budget);
        }
        // One URL, or a list of them in one element; anything else is refused and not repaired.
        let pieces = || text.split([' ', ',', '\n', '\t']).filter(|piece| !piece.is_empty());
        if !pieces().all(begins_like_url) {
            budget.tries -= 1;
            self.refused += 1;
            return;
        }
        for piece in pieces() {
            if budget.spent() {
                break;
            }
            self.url(piece, place(kind, element), budget);
        }
    }

    /// The keys of a contact list's content; false when it is no JSON object.
    fn contacts(&mut self, content: &[u8], budget: &mut Budget) -> bool {
        let Ok(Value::Object(relays)) = serde_json::from_slice(content) else { return false };
        for text in relays.keys().filter(|text| begins_like_url(text.trim())) {
            if budget.spent() {
                break;
            }
            self.url(text.trim(), Source::Contacts, budget);
        }
        true
    }

    fn profile(&mut self, content: &[u8]) {
        #[derive(Deserialize)]
        struct Profile {
            nip05: Option<String>,
        }
        if self.names.len() >= NAMES_PER_BATCH || !content.windows(7).any(|window| window == b"\"nip05\"") {
            return;
        }
        let name = serde_json::from_slice::<Profile>(content).ok().and_then(|profile| profile.nip05);
        if let Some(name) = name.and_then(|text| Name::parse(&text, self.policy))
            && !self.names.iter().any(|known| known.domain() == name.domain())
        {
            self.names.push(name);
        }
    }

    fn prose(&mut self, text: &[u8], source: Source, budget: &mut Budget) {
        for find in finds(text) {
            if budget.spent() {
                break;
            }
            match find {
                Find::Url(url) => self.url(url, source, budget),
                Find::Code(code) => {
                    budget.tries -= 1;
                    for url in nip19::relays(code) {
                        if budget.spent() {
                            break;
                        }
                        self.url(&url, Source::Nip19, budget);
                    }
                }
            }
        }
    }

    fn url(&mut self, text: &str, source: Source, budget: &mut Budget) {
        budget.tries -= 1;
        let number = if let Some(number) = self.memo.get(text) { *number } else { self.read(text) };
        match number {
            Some(number) => {
                budget.urls -= 1;
                self.found.insert((number, source));
            }
            None => self.refused += 1,
        }
    }

    fn read(&mut self, text: &str) -> Option<u32> {
        let number = RelayUrl::parse(text, self.policy).ok().map(|url| {
            let next = u32::try_from(self.urls.len()).unwrap_or(u32::MAX);
            *self.urls.entry(url).or_insert(next)
        });
        if self.memo.len() < MEMO_MAX {
            self.memo.insert(text.to_owned(), number);
        }
        number
    }
}

fn place(kind: i32, element: &Element<'_>) -> Source {
    match element.name {
        b"r" if kind == RELAY_LIST => Source::RelayList,
        b"d" if MONITORS.contains(&kind) => Source::Monitor,
        _ if LISTS.contains(&kind) => Source::List,
        b"e" | b"q" | b"a" | b"p" if element.index >= 2 => Source::Hint,
        _ => Source::Tag,
    }
}

fn begins_like_url(text: &str) -> bool {
    let begins =
        |scheme: &str| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    begins("wss://") || begins("ws://")
}

#[cfg(test)]
mod tests;
