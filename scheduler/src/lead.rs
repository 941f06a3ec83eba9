//! The lead as this process knows it: a term, and until when it stands by our own clock.
//!
//! Invariant: what is done on a term is begun only while that term stands, and gauges shown under it go with it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::clock;

/// Longest single sleep towards its end: a sleep does not count the time a machine is suspended.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
struct Standing {
    term: i64,
    until_ms: u64,
}

/// Shared by the round and what goes on beside it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lead(Arc<Mutex<Option<Standing>>>);

impl Lead {
    /// It is ours in this term, for so long from `asked_ms` on: the answer may have been long on its way.
    pub(crate) fn hold(&self, term: i64, asked_ms: u64, lease: Duration) {
        let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        *self.lock() = Some(Standing { term, until_ms: asked_ms.saturating_add(lease_ms) });
    }

    /// It is not ours; `cleanup` happens before anything else can be done under it. Returns whether it was.
    pub(crate) fn end(&self, cleanup: impl FnOnce()) -> bool {
        let mut standing = self.lock();
        cleanup();
        standing.take().is_some()
    }

    /// Whether it was ours the last time we heard.
    pub(crate) fn is_held(&self) -> bool {
        self.lock().is_some()
    }

    /// Whether it is ours, and its lease not over.
    pub(crate) fn is_standing(&self) -> bool {
        self.lock().is_some_and(|lead| lead.until_ms > clock::boot_ms())
    }

    /// Whether this term stands.
    pub(crate) fn stands(&self, term: i64) -> bool {
        self.under(term, || ())
    }

    /// Does something while this term stands, and nothing otherwise; returns whether it was done.
    pub(crate) fn under(&self, term: i64, deed: impl FnOnce()) -> bool {
        let standing = self.lock();
        let stands = standing.is_some_and(|lead| lead.term == term && lead.until_ms > clock::boot_ms());
        if stands {
            deed();
        }
        stands
    }

    /// Waits until its lease is over; for ever, while it is not ours.
    pub(crate) async fn over(&self) {
        loop {
            let now = clock::boot_ms();
            let left = self.lock().map_or(u64::MAX, |lead| lead.until_ms.saturating_sub(now));
            if left == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(left).min(LOOK)).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Standing>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_done_on_a_term_that_is_over_or_another() {
        let lead = Lead::default();
        assert!(!lead.stands(1) && !lead.is_held());
        lead.hold(1, clock::boot_ms(), Duration::from_secs(60));
        assert!(lead.stands(1) && !lead.stands(2));
        // Asked two minutes ago: over, though nobody said so.
        lead.hold(1, clock::boot_ms().saturating_sub(120_000), Duration::from_secs(60));
        assert!(!lead.stands(1) && lead.is_held());
        assert!(lead.end(|| ()) && !lead.end(|| ()));
    }

    #[tokio::test]
    async fn its_end_is_waited_for() {
        let lead = Lead::default();
        lead.hold(1, clock::boot_ms(), Duration::from_millis(50));
        tokio::time::timeout(Duration::from_secs(5), lead.over()).await.unwrap();
        assert!(!lead.stands(1));
    }
}
