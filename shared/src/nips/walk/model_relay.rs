//! A relay as a pure function, honest or lying as told: the other half of the planner's tests.

use std::collections::HashSet;

use super::{Claim, Next, Walk, WalkSpec};
use crate::models::{EnvelopeFacts, EventError, EventId, GapReason};
use crate::nips::page::Unread;
use crate::nips::{EoseHint, Filter, PageEnd, PageFacts};

/// More requests than any walk of these tests may make.
const RUNAWAY: usize = 5_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    NewestFirst,
    OldestFirst,
    /// Any `cap` of the matches, in no order (and visibly so wherever something is left out).
    Subset(u64),
    /// The same, sorted before it is sent: newest first, and no order to see that by.
    SortedSubset(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hint {
    None,
    Honest,
    /// Says `finish` whatever it left out.
    AlwaysFinish,
}

/// What a relay ignores of a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ignores {
    Nothing,
    Until,
    Limit,
}

/// From the n-th request on (the first is 0) the relay ends pages so, after half of the page.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) at: u32,
    pub(crate) end: PageEnd,
}

#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a behaviour of its own")]
pub(crate) struct ModelRelay {
    pub(crate) events: Vec<(i64, EventId)>,
    pub(crate) cap: usize,
    /// Asked for more than the cap, it gives a quarter of it (eventstore).
    pub(crate) quarters: bool,
    pub(crate) order: Order,
    pub(crate) ignores: Ignores,
    /// Takes `until` as exclusive.
    pub(crate) until_exclusive: bool,
    /// Answers nothing where `since` or `until` is no smaller.
    pub(crate) bounds_below: i64,
    /// Serves no event a second time (as a moving archive would).
    pub(crate) forgets: bool,
    pub(crate) served: HashSet<EventId>,
    pub(crate) hint: Hint,
    /// Hides these seconds from a REQ that goes down to 0.
    pub(crate) hides: Option<(i64, i64)>,
    pub(crate) failure: Option<Failure>,
    pub(crate) asked: u32,
    /// Of so many events one cannot be read, by its number: not even its time where that is even. 0: all can be read.
    pub(crate) garbles: usize,
    /// Events that are larger than we take: the page breaks off before one.
    pub(crate) heavy: HashSet<EventId>,
    /// Events that we take in one page.
    pub(crate) takes: usize,
    /// A subset's disorder is visible among the events up to here.
    pub(crate) disorder_shows_up_to: i64,
    /// Of so many requests for a stretch of time about one is answered by EOSE at once. 0: none.
    pub(crate) mutes: u64,
    /// From the n-th request for a stretch of time on all of them are.
    pub(crate) mute_from: Option<u32>,
    /// Ranges longer than so many seconds, open ones, and those with one of these seconds in them end so, and bring nothing.
    pub(crate) widest: i64,
    pub(crate) stuck: HashSet<i64>,
    pub(crate) balk: PageEnd,
    /// Of so many pages of twenty and more about one lacks a third of its events, in one piece. 0: none.
    pub(crate) drops: u64,
    /// Nor are requests by ids served.
    pub(crate) mutes_ids: bool,
    /// Samples are ended so, and bring nothing: it knows them by their limit.
    pub(crate) closes_samples: Option<PageEnd>,
    /// Requests after which whoever walks it stops, with the next one planned and not sent.
    pub(crate) stops_after: Option<usize>,
}

/// A walk's whole story.
#[derive(Debug)]
pub(crate) struct Story {
    pub(crate) claims: Vec<Claim>,
    pub(crate) delivered: HashSet<EventId>,
    /// What the pages put in doubt, which their caller keeps from proof.
    pub(crate) doubts: Vec<(i64, i64)>,
    pub(crate) filters: Vec<Filter>,
    /// Witnesses found to be gone.
    pub(crate) gone: Vec<(i64, EventId)>,
    /// Distinct seconds in which anything was delivered.
    pub(crate) seconds: usize,
    /// Pages that were too much, or too full of a relay that leaves out.
    pub(crate) failed: usize,
    /// The relay was found to leave out.
    pub(crate) caught: bool,
    /// Stretches that were sampled, or drawn for that and not asked when the walk was over.
    pub(crate) samples: Vec<(i64, i64)>,
}

pub(crate) fn id(number: usize) -> EventId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    EventId(bytes)
}

/// Events at these seconds, with ids of their own.
pub(crate) fn events_at(seconds: impl IntoIterator<Item = i64>) -> Vec<(i64, EventId)> {
    seconds.into_iter().enumerate().map(|(number, second)| (second, id(number))).collect()
}

fn scramble(seed: u64, event: EventId) -> u64 {
    let number = u64::from_be_bytes(event.0[..8].try_into().unwrap());
    (number ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

impl ModelRelay {
    /// Newest first, at most `cap` a page.
    pub(crate) fn honest(cap: usize, events: Vec<(i64, EventId)>) -> Self {
        Self {
            events,
            cap,
            quarters: false,
            order: Order::NewestFirst,
            ignores: Ignores::Nothing,
            until_exclusive: false,
            bounds_below: i64::MAX,
            forgets: false,
            served: HashSet::new(),
            hint: Hint::None,
            hides: None,
            failure: None,
            asked: 0,
            garbles: 0,
            heavy: HashSet::new(),
            takes: usize::MAX,
            disorder_shows_up_to: i64::MAX,
            mutes: 0,
            mute_from: None,
            widest: i64::MAX,
            stuck: HashSet::new(),
            balk: PageEnd::Timeout { idle: true },
            drops: 0,
            mutes_ids: false,
            closes_samples: None,
            stops_after: None,
        }
    }

    /// The page size for a `limit`.
    pub(crate) fn page_size(&self, limit: u32) -> usize {
        let asked = usize::try_from(limit).unwrap();
        match self.ignores {
            Ignores::Limit => usize::MAX,
            _ if asked > self.cap && self.quarters => self.cap / 4,
            _ => asked.min(self.cap),
        }
    }

    fn serves(&self, second: i64, filter: &Filter) -> bool {
        let until = filter.until.filter(|_| self.ignores != Ignores::Until);
        let until = until.map(|until| if self.until_exclusive { until - 1 } else { until });
        if filter.since.into_iter().chain(filter.until).any(|bound| bound >= self.bounds_below) {
            return false;
        }
        let everything = filter.since == Some(0);
        let hidden = everything && self.hides.is_some_and(|(low, high)| (low..=high).contains(&second));
        filter.since.is_none_or(|since| second >= since)
            && until.is_none_or(|until| second <= until)
            && !hidden
    }

    fn balks(&self, filter: &Filter) -> bool {
        let (since, until) = (filter.since.unwrap_or(0), filter.until.unwrap_or(i64::MAX));
        let long = self.widest < i64::MAX && until.saturating_sub(since) >= self.widest;
        filter.ids.is_empty() && (long || self.stuck.iter().any(|second| (since..=until).contains(second)))
    }

    fn is_mute(&self, filter: &Filter) -> bool {
        let draw = scramble(self.mutes, id(usize::try_from(self.asked).unwrap() + 1));
        let fell_silent = self.mute_from.is_some_and(|from| self.asked >= from);
        let is_mute = fell_silent || (self.mutes > 0 && draw.is_multiple_of(self.mutes));
        if filter.ids.is_empty() { is_mute } else { self.mutes_ids }
    }

    /// Whether this one cannot be read, and if so whether its time can.
    pub(crate) fn garbled(&self, event: EventId) -> Option<bool> {
        let number = usize::from_be_bytes(event.0[..8].try_into().unwrap());
        (self.garbles > 0 && number.is_multiple_of(self.garbles)).then_some(!number.is_multiple_of(2))
    }

    pub(crate) fn answer(&mut self, filter: &Filter) -> (PageFacts, PageEnd) {
        let mut page: Vec<_> =
            self.events.iter().copied().filter(|&(second, _)| self.serves(second, filter)).collect();
        page.retain(|(_, id)| filter.ids.is_empty() || filter.ids.contains(id));
        page.retain(|(_, id)| !self.served.contains(id));
        if self.is_mute(filter) {
            page.clear();
        }
        let matching = page.len();
        let size = self.page_size(filter.limit.unwrap());
        match self.order {
            Order::NewestFirst => page.sort_by_key(|&(second, id)| (std::cmp::Reverse(second), id)),
            Order::OldestFirst => page.sort_unstable(),
            Order::Subset(seed) | Order::SortedSubset(seed) => {
                page.sort_by_key(|&(_, id)| scramble(seed ^ u64::from(self.asked), id));
            }
        }
        page.truncate(size);
        if matches!(self.order, Order::SortedSubset(_)) {
            page.sort_by_key(|&(second, id)| (std::cmp::Reverse(second), id));
        }
        let draw = scramble(self.drops, id(usize::try_from(self.asked).unwrap() + 1));
        if self.drops > 0 && page.len() >= 20 && draw.is_multiple_of(self.drops) {
            let third = page.len() / 3;
            page.drain(third..2 * third);
        }
        let cut = page.len() < matching;
        let hint = match self.hint {
            Hint::None => None,
            Hint::Honest if cut => Some(EoseHint::More),
            Hint::Honest | Hint::AlwaysFinish => Some(EoseHint::Finish),
        };
        let mut end = PageEnd::Eose { hint };
        if self.balks(filter) {
            end = self.balk.clone();
            page.clear();
        }
        if let Some(failure) = self.failure.as_ref().filter(|failure| self.asked >= failure.at) {
            end = failure.end.clone();
            page.truncate(page.len() / 2);
        }
        if let Some(place) = page.iter().position(|(_, id)| self.heavy.contains(id)) {
            end = PageEnd::Oversize;
            page.truncate(place);
        }
        if page.len() > self.takes {
            end = PageEnd::TooMany;
            page.truncate(self.takes);
        }
        self.asked += 1;
        if self.forgets {
            self.served.extend(page.iter().map(|&(_, id)| id));
        }
        let mut facts = PageFacts::default();
        for (created_at, id) in page {
            if let Some(placed) = self.garbled(id) {
                let at = placed.then_some(created_at);
                let why = EventError::Range("kind");
                facts.unread.push(Unread { after: facts.seen.len(), at, key: id, span: (0, 0), why });
            } else if filter.matches(&EnvelopeFacts { id, created_at, kind: 1, pubkey: [0; 32] }) {
                facts.seen.push((created_at, id));
            } else {
                facts.mismatched += 1;
            }
        }
        let inside = facts.seen.iter().filter(|&&(second, _)| second <= self.disorder_shows_up_to);
        if matches!(self.order, Order::Subset(_)) && cut && inside.is_sorted_by(|a, b| a.0 >= b.0) {
            facts.seen.reverse();
        }
        facts.doubts = facts.locate(filter);
        (facts, end)
    }

    /// Walks the relay to the end; panics if the walk runs away or lets a page without EOSE prove anything.
    pub(crate) fn walk(&mut self, spec: WalkSpec) -> Story {
        self.walk_knowing(spec, Vec::new(), false)
    }

    /// The same, of a relay that is known to have had these.
    pub(crate) fn walk_knowing(
        &mut self,
        spec: WalkSpec,
        known: Vec<(i64, EventId)>,
        silence_is_known: bool,
    ) -> Story {
        self.go(spec, Walk::new(spec).knowing(known, silence_is_known))
    }

    /// The same, by another seed.
    pub(crate) fn walk_sampling(&mut self, spec: WalkSpec, seed: u64) -> Story {
        self.go(spec, Walk::new(spec).sampling(seed))
    }

    fn go(&mut self, spec: WalkSpec, mut walk: Walk) -> Story {
        self.disorder_shows_up_to = spec.ceiling;
        let mut story = Story {
            claims: Vec::new(),
            delivered: HashSet::new(),
            doubts: Vec::new(),
            filters: Vec::new(),
            gone: Vec::new(),
            seconds: 0,
            failed: 0,
            caught: false,
            samples: Vec::new(),
        };
        let mut seconds = HashSet::new();
        while let Next::Request(filter) = walk.next() {
            assert_eq!(walk.next(), Next::Request(filter.clone()), "asking twice changes nothing");
            if self.stops_after == Some(story.filters.len()) {
                break;
            }
            let sample = walk.is_sampling();
            story.samples.extend(walk.unsampled().filter(|_| sample));
            let (facts, mut end) = self.answer(&filter);
            if sample && let Some(closes) = &self.closes_samples {
                end = closes.clone();
            }
            let facts = if end.is_eose() || !sample { facts } else { PageFacts::default() };
            story.delivered.extend(facts.seen.iter().map(|&(_, id)| id));
            seconds.extend(facts.in_wire_order().flatten().map(|(second, _)| second));
            story.doubts.extend(&facts.doubts);
            story.filters.push(filter);
            story.failed += usize::from(end.asks_for_less());
            let claims = walk.on_page(&facts, &end);
            assert!(end.is_eose() || !claims.iter().any(|claim| claim.grade.is_proof()), "{end:?} proved");
            story.claims.extend(claims);
            story.gone.extend(walk.take_gone());
            assert!(story.filters.len() < RUNAWAY, "the walk runs away");
        }
        (story.caught, story.failed) = (walk.caught.is_some(), story.failed + walk.fulls());
        story.samples.extend(walk.unsampled());
        story.claims.extend(walk.finish(GapReason::Stopped));
        story.seconds = seconds.len();
        story
    }
}

impl Story {
    /// What a store that overlays the claims in order holds of one second.
    pub(crate) fn at(&self, second: i64) -> Option<Claim> {
        let mut known: Option<Claim> = None;
        for claim in self.claims.iter().filter(|claim| (claim.since..=claim.until).contains(&second)) {
            let keeps = known.is_some_and(|known| known.grade.is_proof());
            if !keeps || claim.grade.is_proof() || claim.overrides_proof {
                known = Some(*claim);
            }
        }
        known
    }

    pub(crate) fn proves(&self, second: i64) -> bool {
        let doubted = self.doubts.iter().any(|(low, high)| (*low..=*high).contains(&second));
        !doubted && self.at(second).is_some_and(|claim| claim.grade.is_proof())
    }

    pub(crate) fn reason(&self, second: i64) -> Option<GapReason> {
        self.at(second).map(|claim| claim.reason)
    }
}
