//! The attempts that run here, and how each is told to end before its time.
//!
//! Invariant: an attempt is noted exactly as long as a ticket of it exists, however its worker or its future came to an
//! end. What is not noted is not ours to keep: the heartbeat gives it back.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::telemetry::Metrics;

/// Why an attempt ends before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Another worker may have it.
    Lost,
    /// An operator wants so.
    Cancelled,
}

/// (job, attempt).
pub(super) type Key = (String, i32);

/// Tells a running attempt to end, and why.
#[derive(Debug, Clone, Default)]
struct End {
    token: CancellationToken,
    why: Arc<OnceLock<Why>>,
    /// It has ended by itself, and the database is being told.
    over: Arc<AtomicBool>,
}

impl End {
    fn now(&self, why: Why) {
        // The first reason stands.
        self.why.get_or_init(|| why);
        self.token.cancel();
    }
}

/// All attempts of this process. Cloning shares them.
#[derive(Debug, Clone)]
pub(super) struct Held {
    all: Arc<Mutex<HashMap<Key, End>>>,
    metrics: Metrics,
}

impl Held {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { all: Arc::default(), metrics }
    }

    /// Notes an attempt as running here.
    pub(super) fn remember(&self, job: &str, attempt: i32) -> Holding {
        let (key, end) = ((job.to_owned(), attempt), End::default());
        let mut all = self.lock();
        all.insert(key.clone(), end.clone());
        self.count(&all);
        drop(all);
        Holding { held: self.clone(), key, end }
    }

    /// It is not ours any more; a second time does nothing.
    pub(super) fn forget(&self, key: &Key) {
        let mut all = self.lock();
        all.remove(key);
        self.count(&all);
    }

    pub(super) fn keys(&self) -> HashSet<Key> {
        self.lock().keys().cloned().collect()
    }

    pub(super) fn contains(&self, key: &Key) -> bool {
        self.lock().contains_key(key)
    }

    /// Whether an attempt runs here still: one that is over and not forgotten is being acknowledged.
    pub(super) fn is_running(&self, key: &Key) -> bool {
        self.lock().get(key).is_some_and(|end| !end.over.load(Ordering::Relaxed))
    }

    /// Ends an attempt that runs here; none of that name is none to end.
    pub(super) fn end(&self, key: &Key, why: Why) {
        if let Some(end) = self.lock().get(key) {
            end.now(why);
        }
    }

    /// Ends everything that runs here; returns how many were not told yet.
    pub(super) fn end_all(&self, why: Why) -> usize {
        let all = self.lock();
        let told = all.values().filter(|end| !end.token.is_cancelled()).count();
        for end in all.values() {
            end.now(why);
        }
        told
    }

    fn count(&self, all: &HashMap<Key, End>) {
        self.metrics.jobs_running.set(i64::try_from(all.len()).unwrap_or(i64::MAX));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, End>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One attempt that runs here; forgotten when it is dropped.
#[derive(Debug)]
pub(super) struct Holding {
    held: Held,
    key: Key,
    end: End,
}

impl Holding {
    /// The attempt has ended by itself.
    pub(super) fn over(&self) {
        self.end.over.store(true, Ordering::Relaxed);
    }

    /// Waits until the attempt is told to end.
    pub(super) async fn told(&self) -> Why {
        self.end.token.cancelled().await;
        self.end.why.get().copied().unwrap_or(Why::Lost)
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.held.forget(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_whose_ticket_is_dropped_is_forgotten() {
        let metrics = Metrics::new();
        let held = Held::new(metrics.clone());
        let (first, second) = (held.remember("a", 1), held.remember("b", 2));
        assert_eq!(metrics.jobs_running.get(), 2);
        drop(first);
        assert_eq!((held.keys().len(), metrics.jobs_running.get()), (1, 1));
        held.forget(&("b".to_owned(), 2));
        drop(second);
        assert_eq!((held.keys().len(), metrics.jobs_running.get()), (0, 0));
    }

    #[tokio::test]
    async fn the_first_reason_to_end_stands_and_is_counted_once() {
        let held = Held::new(Metrics::new());
        let holding = held.remember("a", 1);
        held.end(&("a".to_owned(), 1), Why::Cancelled);
        let other = held.remember("b", 1);
        assert_eq!((held.end_all(Why::Lost), held.end_all(Why::Lost)), (1, 0));
        assert_eq!((holding.told().await, other.told().await), (Why::Cancelled, Why::Lost));
    }
}
