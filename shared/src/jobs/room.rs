//! What the pages and comparisons of all sync jobs of a process may hold together: a budget of bytes that a page takes its
//! share of before it is asked for, and a comparison before its ids are read.
//!
//! Invariant: a page is never larger than its share. Who waits for one holds no other page's, and comparisons together never
//! hold so much that the largest page does not fit beside them, so that nobody waits for a waiter.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most bytes taken in one page.
pub(super) const PAGE_BYTES: u64 = 16 * 1024 * 1024;
/// The share of a page that nothing says is larger: at an average event, ten times the usual page.
pub(super) const SHARE_BYTES: u64 = 4 * 1024 * 1024;
/// The share of an id under comparison, on either side: what is made of it takes four times that, as of a page's text.
pub(super) const ID_BYTES: u64 = 100;
/// What shares are counted in.
const UNIT_BYTES: u64 = 64 * 1024;

/// The budget; clones share it.
#[derive(Debug, Clone)]
pub struct PageRoom {
    units: Arc<Semaphore>,
    /// Of these, what comparisons may hold.
    sets: Arc<Semaphore>,
    all: u32,
}

/// A share of it, given back when it goes.
#[derive(Debug)]
pub struct Share {
    bytes: u64,
    units: Option<OwnedSemaphorePermit>,
    /// Where it is a comparison's.
    set: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// How large a page may become.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives back what is more than this.
    pub fn shrink(&mut self, bytes: u64) {
        let bytes = bytes.clamp(UNIT_BYTES, self.bytes);
        let units = usize::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(usize::MAX);
        for held in [&mut self.units, &mut self.set].into_iter().flatten() {
            drop(held.split(held.num_permits().saturating_sub(units)));
        }
        self.bytes = bytes;
    }
}

impl PageRoom {
    /// A budget of so many bytes; at least one page of the largest size and one comparison fit.
    pub fn new(bytes: u64) -> Self {
        let units = |bytes: u64| u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX);
        let semaphore = |units: u32| Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(usize::MAX)));
        let all = units(bytes.max(PAGE_BYTES + SHARE_BYTES));
        Self { units: semaphore(all), sets: semaphore(all - units(PAGE_BYTES)), all }
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
        Share { bytes, units: Arc::clone(&self.units).acquire_many_owned(units).await.ok(), set: None }
    }

    /// Waits for the share of one comparison, 4 MiB; who holds it may wait for a page's beside it, and for no other.
    pub async fn set(&self) -> Share {
        let (bytes, units) = self.measure(SHARE_BYTES);
        let set = Arc::clone(&self.sets).acquire_many_owned(units).await.ok();
        Share { bytes, units: Arc::clone(&self.units).acquire_many_owned(units).await.ok(), set }
    }

    /// The same at once, or not at all; none where somebody waits.
    pub fn spare(&self, bytes: u64) -> Option<Share> {
        let (bytes, units) = self.measure(bytes);
        let got = Arc::clone(&self.units).try_acquire_many_owned(units).ok()?;
        Some(Share { bytes, units: Some(got), set: None })
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
    async fn the_smallest_budget_holds_one_page_and_one_comparison() {
        let room = PageRoom::new(1);
        let set = room.set().await;
        assert_eq!(room.share(PAGE_BYTES).await.bytes(), PAGE_BYTES);
        assert!(room.set().now_or_never().is_none());
        drop(set);
        assert!(room.set().now_or_never().is_some());
    }

    #[tokio::test]
    async fn comparisons_leave_room_for_the_largest_page_and_give_back_what_they_do_not_need() {
        let room = PageRoom::new(64 << 20);
        let mut held: Vec<Share> = Vec::new();
        while let Some(set) = room.set().now_or_never() {
            held.push(set);
        }
        assert_eq!((held.len(), room.free()), (12, PAGE_BYTES));
        assert!(room.share(PAGE_BYTES).now_or_never().is_some());
        for set in &mut held {
            set.shrink(300 * ID_BYTES);
        }
        assert_eq!(room.free(), (64 << 20) - 12 * UNIT_BYTES);
        held[0].shrink(SHARE_BYTES);
        assert_eq!((held[0].bytes(), room.set().now_or_never().is_some()), (UNIT_BYTES, true));
        held.clear();
        assert_eq!(room.free(), 64 << 20);
    }

    #[tokio::test]
    async fn all_who_compare_and_page_at_once_come_to_an_end_in_the_smallest_budget() {
        let room = PageRoom::new(1);
        let pass = |large: bool| {
            let room = room.clone();
            async move {
                for _ in 0..20 {
                    let _set = room.set().await;
                    tokio::task::yield_now().await;
                    let _page = room.share(if large { PAGE_BYTES } else { SHARE_BYTES }).await;
                    tokio::task::yield_now().await;
                }
            }
        };
        let all = futures_util::future::join_all((0..30).map(|n| pass(n % 2 == 0)));
        tokio::time::timeout(std::time::Duration::from_secs(20), all)
            .await
            .expect("nobody waits for a waiter");
        assert_eq!(room.free(), PAGE_BYTES + SHARE_BYTES);
    }
}
