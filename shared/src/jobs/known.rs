//! Events that this process knows to be in the archive, so that a relay's copy of what another one has just delivered costs the
//! database no question, and no second writer.
//!
//! What is remembered was true once: an event may have been removed since. Then [`crate::db::Db::sync_store`] refuses the page
//! as a whole, and what of it was only remembered is looked up after all. Invariant: who waits for another one's writing is writing nothing
//! itself, so that nobody waits for a waiter.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::db::{EventRow, SigHead};
use crate::models::EventId;

/// Events remembered: some hours of a busy network, 8 MiB.
const KNOWN_MAX: usize = 65_536;

/// What is remembered. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Known {
    inner: Arc<Mutex<Inner>>,
    written: Arc<Notify>,
}

/// When an event says it was created, and the first bytes of the signature that we hold, if we hold one.
type Held = (i64, SigHead);

#[derive(Debug, Default)]
struct Inner {
    held: HashMap<EventId, Held>,
    order: VecDeque<EventId>,
    /// Being written now, by one page each.
    writing: HashSet<EventId>,
}

/// A page that writes these events: nobody else of this process does, until it goes.
#[derive(Debug)]
pub(super) struct Writing {
    known: Known,
    events: Vec<(EventId, Held)>,
}

impl Known {
    /// For each of these ids and times of creation, if such an event is known, what we hold of its signature. An id that
    /// comes with another time is not: that is for whoever verifies it to say.
    pub(super) fn look(&self, events: impl Iterator<Item = (EventId, i64)>) -> Vec<Option<SigHead>> {
        let inner = self.lock();
        let look =
            |(id, at): (EventId, i64)| inner.held.get(&id).filter(|held| held.0 == at).map(|held| held.1);
        events.map(look).collect()
    }

    /// The database has these.
    pub(super) fn learn(&self, events: impl IntoIterator<Item = (EventId, Held)>) {
        let mut inner = self.lock();
        for (id, held) in events {
            inner.learn(id, held);
        }
    }

    /// The database may not have all of these any more.
    pub(super) fn forget(&self, ids: impl IntoIterator<Item = EventId>) {
        let mut inner = self.lock();
        for id in ids {
            // Its place in the order stays until it is the oldest.
            inner.held.remove(&id);
        }
    }

    /// Waits until nobody else writes any of these events, takes away those that are known by then, and keeps the others
    /// for this page alone.
    pub(super) async fn write(&self, new: &mut Vec<EventRow>) -> Writing {
        loop {
            let written = self.written.notified();
            tokio::pin!(written);
            written.as_mut().enable();
            if let Some(writing) = self.try_write(new) {
                return writing;
            }
            written.await;
        }
    }

    fn try_write(&self, new: &mut Vec<EventRow>) -> Option<Writing> {
        let mut inner = self.lock();
        new.retain(|row| !inner.held.contains_key(&row.event.id()));
        if new.iter().any(|row| inner.writing.contains(&row.event.id())) {
            return None;
        }
        let held = |row: &EventRow| {
            let event = &row.event;
            (event.id(), (event.created_at(), event.sig().first_chunk().copied()))
        };
        let events: Vec<(EventId, Held)> = new.iter().map(held).collect();
        inner.writing.extend(events.iter().map(|(id, _)| *id));
        Some(Writing { known: self.clone(), events })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writing {
    /// All of them are stored.
    pub(super) fn done(self) {
        self.known.learn(self.events.iter().copied());
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut inner = self.known.lock();
        for (id, _) in &self.events {
            inner.writing.remove(id);
        }
        drop(inner);
        self.known.written.notify_waiters();
    }
}

impl Inner {
    fn learn(&mut self, id: EventId, held: Held) {
        if self.held.insert(id, held).is_none() {
            self.order.push_back(id);
        }
        while self.order.len() > KNOWN_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            self.held.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::nips::Keys;

    const AT: i64 = 1_700_000_000;

    fn rows(count: usize) -> Vec<EventRow> {
        let keys = Keys::parse(&"01".repeat(32)).unwrap();
        let event = |n| Arc::new(keys.sign(AT, 1, Vec::new(), format!("{n}")).unwrap());
        (0..count).map(|n| EventRow { event: event(n) }).collect()
    }

    fn ids(rows: &[EventRow]) -> Vec<EventId> {
        rows.iter().map(|row| row.event.id()).collect()
    }

    #[tokio::test]
    async fn two_pages_never_write_the_same_event() {
        let known = Known::default();
        let all = rows(5);
        let part = |places: &[usize]| places.iter().map(|place| all[*place].clone()).collect::<Vec<_>>();
        let (mut one, mut two, mut apart) = (part(&[0, 1, 2]), part(&[2, 3]), part(&[4]));
        let writing = known.write(&mut one).await;
        assert_eq!(apart.len(), known.write(&mut apart).await.events.len());
        {
            let mut waits = Box::pin(known.write(&mut two));
            assert!((&mut waits).now_or_never().is_none());
            writing.done();
            waits.await.done();
        }
        // What the first page stored is known to the second, which writes the rest.
        assert_eq!(ids(&two), ids(&part(&[3])));
        let look = known.look(ids(&part(&[0, 2, 3, 4])).into_iter().map(|id| (id, AT)));
        let head = |place: usize| all[place].event.sig().first_chunk().copied();
        assert_eq!(look, [Some(head(0)), Some(head(2)), Some(head(3)), None]);
    }

    #[tokio::test]
    async fn who_gives_up_writing_leaves_it_to_the_next_one() {
        let known = Known::default();
        let mut one = rows(2);
        let mut two = vec![one[1].clone()];
        let writing = known.write(&mut one).await;
        let mut waits = Box::pin(known.write(&mut two));
        assert!((&mut waits).now_or_never().is_none());
        drop(writing);
        assert_eq!(waits.await.events.len(), 1);
        assert_eq!(known.look(ids(&one).into_iter().map(|id| (id, AT))), [None, None]);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_can_be_forgotten() {
        let known = Known::default();
        let id = |n: usize| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.to_be_bytes());
            EventId(id)
        };
        known.learn((0..KNOWN_MAX + 10).map(|n| (id(n), (AT, None))));
        let look = |n| known.look([(id(n), AT), (id(n), AT + 1)].into_iter());
        assert_eq!(
            [look(9), look(10), look(KNOWN_MAX)],
            [[None, None], [Some(None), None], [Some(None), None]]
        );
        known.forget([id(10)]);
        assert_eq!(look(10), [None, None]);
        (0..3).for_each(|_| known.learn((0..KNOWN_MAX).map(|n| (id(n), (AT, None)))));
        let inner = known.lock();
        assert!(inner.held.len() <= KNOWN_MAX && inner.order.len() <= KNOWN_MAX);
    }
}
