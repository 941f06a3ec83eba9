//! What of verified, unknown events is archived, and what is only remembered: one place decides, for what relays
//! deliver and for what is imported.
//!
//! Invariant: the events were verified. What is remembered keeps the same id out for good, and a forged copy must not.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::clock;
use crate::db::{Db, DbError, EventRow};
use crate::models::{
    EnvelopeFacts, Event, EventId, Fence, KindRule, Tombstone, Unkept, kinds_said, tombstones,
};

/// `event.fate` of what a retention policy does not keep.
const SKIPPED: i16 = 1;

/// What the operator does not keep.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy<'a> {
    /// Classes.
    pub(super) unkept: &'a [Unkept],
    /// Kinds.
    pub(super) kinds: &'a [KindRule],
}

/// Events, judged.
#[derive(Debug, Default)]
pub(super) struct Judged {
    /// To archive.
    pub(super) new: Vec<EventRow>,
    /// To remember without a body, with their fate.
    pub(super) noted: Vec<(Arc<Event>, i16)>,
    /// Deletions that they ask for; noted already.
    pub(super) stones: Vec<Tombstone>,
    /// What is not kept, by class.
    pub(super) unkept: BTreeMap<&'static str, u64>,
    /// What is not kept by its kind.
    pub(super) skipped: u64,
}

impl Policy<'_> {
    /// Whether a text that is no event, or a forged one, may be kept as a sample of such: not where it says that it is of a
    /// class or a kind that is not kept, and, where any is not kept, only where it says of which kind it is. `facts` are what
    /// its envelope says, where that can be read.
    pub(super) fn may_show(&self, facts: Option<&EnvelopeFacts>, text: &str) -> bool {
        let now = clock::unix_now();
        let said = kinds_said(text);
        let keeps_all = self.unkept.is_empty() && self.kinds.is_empty();
        if said.is_none() && facts.is_none() && !keeps_all {
            return false;
        }
        let mut kinds = said.unwrap_or_default();
        kinds.extend(facts.map(|facts| facts.kind));
        // Of an unknown time is what is old enough for any rule.
        let at = facts.map(|facts| facts.created_at).or_else(|| EnvelopeFacts::time(text)).unwrap_or(0);
        let skips = |kind: &u16| self.kinds.iter().any(|rule| rule.skips(*kind, at, now));
        !Unkept::is_said(text, &kinds, self.unkept, now) && !kinds.iter().any(skips)
    }

    /// Parts what is archived from what is only remembered; whether the author of an event has asked for deletions
    /// before comes with it. Requests are noted first: they speak of these events too. `None`: the job was not ours.
    pub(super) async fn judge(
        &self,
        db: &Db,
        fence: Option<&Fence>,
        fresh: Vec<(Arc<Event>, bool)>,
    ) -> Result<Option<Judged>, DbError> {
        let mut judged = Judged::default();
        let mut dead: HashSet<EventId> = HashSet::new();
        if self.unkept.contains(&Unkept::Deleted) {
            judged.stones = fresh.iter().flat_map(|(event, _)| tombstones(event)).collect();
            if !judged.stones.is_empty() {
                match fence {
                    Some(fence) if !db.tombstone_note(fence, &judged.stones).await? => return Ok(None),
                    Some(_) => {}
                    None => drop(db.tombstone_add(&judged.stones).await?),
                }
            }
            let asking: HashSet<[u8; 32]> = judged.stones.iter().map(|stone| stone.pubkey).collect();
            let suspects: Vec<&Event> = fresh
                .iter()
                .filter(|(event, marked)| *marked || asking.contains(event.pubkey()))
                .map(|(event, _)| &**event)
                .collect();
            let hits = db.tombstone_hits(&suspects).await?;
            dead.extend(hits.into_iter().filter_map(|at| suspects.get(at).map(|event| event.id())));
        }
        let now = clock::unix_now();
        for (event, _) in fresh {
            let class = if dead.contains(&event.id()) {
                Some(Unkept::Deleted)
            } else {
                Unkept::of(&event, self.unkept, now)
            };
            let skips = || self.kinds.iter().any(|rule| rule.skips(event.kind(), event.created_at(), now));
            match class {
                Some(class) => {
                    *judged.unkept.entry(class.as_str()).or_default() += 1;
                    judged.noted.push((event, class.fate()));
                }
                None if skips() => {
                    judged.skipped += 1;
                    judged.noted.push((event, SKIPPED));
                }
                None => judged.new.push(EventRow { event }),
            }
        }
        Ok(Some(judged))
    }
}
