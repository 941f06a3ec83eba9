//! A relay that reconciles, honest or lying as told, and the caller around the planner: the other half of its tests.

use std::collections::{HashMap, HashSet};

use super::compare::NegEnd;
use super::plan::Reconcile;
use super::spec::{Job, ReconcileSpec, Rest};
use crate::models::{EventId, GapReason, Grade};
use crate::nips::{Claim, Filter, PageEnd, PageFacts};

/// More steps than any of these tests may take.
const RUNAWAY: usize = 20_000;

#[derive(Debug, Clone)]
pub(super) struct ModelRelay {
    pub(super) events: Vec<(i64, EventId)>,
    /// Events per page.
    pub(super) cap: usize,
    /// Most it compares; more is refused.
    pub(super) refuses_above: usize,
    /// Compares only so many of the newest, and says nothing.
    pub(super) truncates_at: usize,
    /// Compares only so many of the oldest.
    pub(super) truncates_oldest: usize,
    /// Answers no request for a stretch of time.
    pub(super) mutes: bool,
    /// Serves what is newer than `until`, too.
    pub(super) ignores_until: bool,
    /// Takes `until` as exclusive.
    pub(super) until_exclusive: bool,
    /// Claims these too, and serves them never.
    pub(super) invents: Vec<(i64, EventId)>,
    /// Larger than we take: a page breaks off before one.
    pub(super) heavy: HashSet<EventId>,
    /// Leaves these seconds out of the comparison.
    pub(super) hides: Option<(i64, i64)>,
    /// Leaves one in so many out of the comparison, by number. 0: none.
    pub(super) skips: usize,
    /// From the n-th request on, comparisons end so.
    pub(super) neg_end: Option<(u32, NegEnd)>,
    /// From the n-th request on, pages end so.
    pub(super) page_end: Option<(u32, PageEnd)>,
    pub(super) asked: u32,
    /// By which it is sampled.
    pub(super) seed: u64,
}

/// All that came of a reconciliation.
#[derive(Debug)]
pub(super) struct Story {
    pub(super) claims: Vec<Claim>,
    /// What we hold as seen on the relay: before, claimed, and fetched.
    pub(super) held: HashSet<EventId>,
    /// Fetched by id: what a probe brings is not asked for.
    pub(super) fetched: HashSet<EventId>,
    pub(super) claimed: HashSet<EventId>,
    pub(super) gone: HashSet<EventId>,
    pub(super) unserved: HashSet<EventId>,
    /// Stretches to be paged, which the caller does at once: they count as claims without proof.
    pub(super) aside: Vec<(i64, i64)>,
    pub(super) comparisons: u32,
    pub(super) pages: u32,
    pub(super) rest: Rest,
}

pub(super) fn id(number: usize) -> EventId {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&(number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    EventId(bytes)
}

pub(super) fn events_at(seconds: impl IntoIterator<Item = i64>) -> Vec<(i64, EventId)> {
    seconds.into_iter().enumerate().map(|(number, second)| (second, id(number))).collect()
}

impl ModelRelay {
    pub(super) fn honest(events: Vec<(i64, EventId)>) -> Self {
        Self {
            events,
            cap: 500,
            refuses_above: usize::MAX,
            truncates_at: usize::MAX,
            truncates_oldest: usize::MAX,
            mutes: false,
            ignores_until: false,
            until_exclusive: false,
            invents: Vec::new(),
            heavy: HashSet::new(),
            hides: None,
            skips: 0,
            neg_end: None,
            page_end: None,
            asked: 0,
            seed: 0,
        }
    }

    fn compare(&mut self, filter: &Filter, ours: &[(i64, EventId)]) -> NegEnd {
        self.asked += 1;
        if let Some((from, end)) = &self.neg_end
            && self.asked > *from
        {
            return end.clone();
        }
        let window = filter.since.unwrap()..=filter.until.unwrap() - i64::from(self.until_exclusive);
        let hidden = |second: i64| self.hides.is_some_and(|(low, high)| (low..=high).contains(&second));
        let listed = self.events.iter().enumerate();
        let listed = listed.filter(|(number, _)| self.skips == 0 || !(number + 1).is_multiple_of(self.skips));
        let mut set: Vec<_> = listed.map(|(_, event)| event).chain(&self.invents).copied().collect();
        set.retain(|(second, _)| window.contains(second) && !hidden(*second));
        if set.len() > self.refuses_above {
            return NegEnd::TooMany { most: Some(self.refuses_above as u64) };
        }
        set.sort_by_key(|(second, id)| (std::cmp::Reverse(*second), id.0));
        set.truncate(self.truncates_at);
        set.drain(..set.len().saturating_sub(self.truncates_oldest));
        let theirs: HashSet<EventId> = set.iter().map(|(_, id)| *id).collect();
        let mine: HashSet<EventId> = ours.iter().map(|(_, id)| *id).collect();
        NegEnd::Compared {
            have: mine.difference(&theirs).copied().collect(),
            need: theirs.difference(&mine).copied().collect(),
        }
    }

    fn page(&mut self, filter: &Filter) -> (PageFacts, PageEnd) {
        self.asked += 1;
        if let Some((from, end)) = &self.page_end
            && self.asked > *from
        {
            return (PageFacts::default(), end.clone());
        }
        let mut page: Vec<_> = self.events.clone();
        let until = filter.until.filter(|_| !self.ignores_until);
        let until = until.map(|until| until - i64::from(self.until_exclusive));
        page.retain(|(second, id)| {
            filter.since.is_none_or(|since| *second >= since)
                && until.is_none_or(|until| *second <= until)
                && (filter.ids.is_empty() || filter.ids.contains(id))
        });
        if self.mutes && filter.ids.is_empty() {
            page.clear();
        }
        page.sort_by_key(|(second, id)| (std::cmp::Reverse(*second), id.0));
        page.truncate(self.cap.min(filter.limit.map_or(usize::MAX, |limit| limit as usize)));
        let mut end = PageEnd::Eose { hint: None };
        if let Some(place) = page.iter().position(|(_, id)| self.heavy.contains(id)) {
            end = PageEnd::Oversize;
            page.truncate(place);
        }
        let came = page.len();
        page.retain(|(second, _)| filter.until.is_none_or(|until| *second <= until));
        let mismatched = u32::try_from(came - page.len()).unwrap();
        (PageFacts { seen: page, mismatched, ..PageFacts::default() }, end)
    }

    /// Reconciles what `ours` holds of this relay; `archived` is what we hold from elsewhere.
    pub(super) fn reconcile(
        &mut self,
        spec: ReconcileSpec,
        ours: &[(i64, EventId)],
        archived: &HashMap<EventId, i64>,
    ) -> Story {
        let mut planner = Reconcile::new(spec).sampling(self.seed);
        let mut story = Story {
            claims: Vec::new(),
            held: ours.iter().map(|(_, id)| *id).collect(),
            fetched: HashSet::new(),
            claimed: HashSet::new(),
            gone: HashSet::new(),
            unserved: HashSet::new(),
            aside: Vec::new(),
            comparisons: 0,
            pages: 0,
            rest: Rest::None,
        };
        for step in 0.. {
            assert!(step < RUNAWAY, "the reconciliation runs away");
            let job = planner.next();
            assert_eq!(planner.next(), job, "asking twice changes nothing");
            let settled = match job {
                Job::Done => break,
                Job::Items { since, until, most } => {
                    let mut items: Vec<_> = ours.to_vec();
                    items.retain(|(second, _)| (since..=until).contains(second));
                    items.sort_by_key(|(second, id)| (std::cmp::Reverse(*second), id.0));
                    items.truncate(most);
                    planner.on_items(items)
                }
                Job::Compare(filter) => {
                    story.comparisons += 1;
                    assert!(planner.items().len() <= spec.max_items);
                    let end = self.compare(&filter, planner.items());
                    planner.on_compared(end)
                }
                Job::Lookup { .. } => {
                    let known: Vec<_> = planner
                        .wanted()
                        .into_iter()
                        .filter_map(|id| archived.get(&id).map(|second| (id, *second)))
                        .collect();
                    planner.on_known(&known)
                }
                Job::Page(filter) => {
                    story.pages += 1;
                    let (facts, end) = self.page(&filter);
                    let ids = facts.seen.iter().map(|(_, id)| *id);
                    story.held.extend(ids.clone());
                    // Some of ours are asked for by themselves, before they count as gone.
                    let confirms = filter.ids.len() <= 10
                        && filter.ids.iter().all(|id| ours.iter().any(|(_, known)| known == id));
                    if !filter.ids.is_empty() && !confirms {
                        story.fetched.extend(ids);
                    }
                    planner.on_page(&facts, &end)
                }
            };
            if let Some((since, until)) = planner.take_aside() {
                story.aside.push((since, until));
                if settled.claims.iter().all(|claim| claim.until != until) {
                    story.claims.extend(Claim::over(since, until, Grade::Partial, GapReason::NotServed));
                }
            }
            story.claims.extend(settled.claims);
            story.held.extend(settled.claimed.iter().map(|(id, _)| *id));
            story.claimed.extend(settled.claimed.iter().map(|(id, _)| *id));
            story.gone.extend(settled.gone.iter().map(|(id, _)| *id));
            story.unserved.extend(settled.unserved);
        }
        assert!(story.comparisons + story.pages <= spec.max_requests);
        story.rest = planner.finish();
        story
    }
}

impl Story {
    pub(super) fn at(&self, second: i64) -> Option<Claim> {
        self.claims.iter().find(|claim| (claim.since..=claim.until).contains(&second)).copied()
    }

    pub(super) fn proves(&self, second: i64) -> bool {
        self.at(second).is_some_and(|claim| claim.grade == Grade::Reconciled)
    }
}
