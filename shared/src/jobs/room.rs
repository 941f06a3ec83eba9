//! What the pages of all sync jobs of a process may hold together: a budget of bytes that a page takes its share of before it
//! is asked for.
//!
//! Invariant: a page is never larger than its share, and who waits for a share holds none, so that nobody waits for a waiter.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most bytes taken in one page.
pub(super) const PAGE_BYTES: u64 = 16 * 1024 * 1024;
/// The share of a page that nothing says is larger: at an average event, ten times the usual page.
pub(super) const SHARE_BYTES: u64 = 4 * 1024 * 1024;
/// What shares are counted in.
const UNIT_BYTES: u64 = 64 * 1024;

/// The budget; clones share it.
#[derive(Debug, Clone)]
pub struct PageRoom {
    units: Arc<Semaphore>,
    all: u32,
}

/// A share of it, given back when it goes.
#[derive(Debug)]
pub struct Share {
    bytes: u64,
    _units: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// How large a page may become.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl PageRoom {
    /// A budget of so many bytes; at least one page of the largest size fits.
    pub fn new(bytes: u64) -> Self {
        let all = u32::try_from(bytes.max(PAGE_BYTES) / UNIT_BYTES).unwrap_or(u32::MAX);
        Self { units: Arc::new(Semaphore::new(usize::try_from(all).unwrap_or(usize::MAX))), all }
    }

    /// The bytes of a share, and its units.
    fn measure(&self, bytes: u64) -> (u64, u32) {
        let bytes = bytes.clamp(UNIT_BYTES, PAGE_BYTES);
        (bytes, u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).min(self.all))
    }

    /// Waits, in the order of asking, for a share of so many bytes, at most what a page may ever take, 16 MiB.
    pub async fn share(&self, bytes: u64) -> Share {
        let (bytes, units) = self.measure(bytes);
        // The semaphore is never closed.
        Share { bytes, _units: Arc::clone(&self.units).acquire_many_owned(units).await.ok() }
    }

    /// The same at once, or not at all; none where somebody waits.
    pub fn spare(&self, bytes: u64) -> Option<Share> {
        let (bytes, units) = self.measure(bytes);
        let got = Arc::clone(&self.units).try_acquire_many_owned(units).ok()?;
        Some(Share { bytes, _units: Some(got) })
    }

    /// Bytes that nobody holds a share of.
    pub fn free(&self) -> u64 {
        u64::try_from(self.units.available_permits()).unwrap_or(u64::MAX).saturating_mul(UNIT_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn pages_hold_no_more_than_the_budget_and_who_waits_gets_its_turn() {
        let room = PageRoom::new(2 * PAGE_BYTES);
        let held: Vec<Share> = futures_util::future::join_all((0..8).map(|_| room.share(SHARE_BYTES))).await;
        assert_eq!(room.free(), 0);
        let mut large = Box::pin(room.share(10 * PAGE_BYTES));
        let mut small = Box::pin(room.share(1));
        assert!((&mut large).now_or_never().is_none() && (&mut small).now_or_never().is_none());
        // The large one asked first; four of eight make room for it.
        let rest: Vec<Share> = held.into_iter().skip(4).collect();
        let large = large.await;
        assert_eq!((large.bytes(), room.free()), (PAGE_BYTES, 0));
        assert!((&mut small).now_or_never().is_none());
        drop(rest);
        assert_eq!(small.await.bytes(), UNIT_BYTES);
        drop(large);
        assert_eq!(room.free(), 2 * PAGE_BYTES);
    }

    #[tokio::test]
    async fn the_smallest_budget_holds_one_page() {
        let room = PageRoom::new(1);
        assert_eq!(room.share(PAGE_BYTES).await.bytes(), PAGE_BYTES);
    }
}
