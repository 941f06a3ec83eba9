//! Rule 14: some pages are asked again in part, since order alone says nothing of what is left out in order.
//!
//! Decides which, by a seed that the relay cannot foresee, and what it has shown there. Invariant: a page of a run of
//! [`PAGES`], and one of those at the end, is asked again with room for one event more than it had.

use super::spec::Claim;
use super::view::PageView;
use super::{SMALLEST_CAP, Walk};
use crate::models::{EventId, Grade};
use crate::nips::PageEnd;

/// Pages of which one is sampled.
pub(super) const PAGES: u32 = 25;
/// Most samples of one walk.
const SAMPLES: u32 = 8;
/// Of a page one in so many of its gaps is asked again, no fewer than [`SMALLEST_CAP`] (a page of fewer was not cut), and no
/// more than [`WIDEST`].
const SHARE: usize = 4;
const WIDEST: usize = 50;

/// A stretch of a page.
#[derive(Debug)]
struct Sample {
    stretch: (i64, i64),
    /// What the page had there.
    known: Vec<EventId>,
    /// What the page proved.
    span: (i64, i64),
}

/// Which pages are sampled.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    state: u64,
    /// Of the pages since the last sample, the one drawn so far.
    drawn: Option<Sample>,
    pages: u32,
    /// Gaps of the page that had most of them.
    most: usize,
    /// The sum of their weights.
    weight: u64,
    taken: u32,
    /// Being asked.
    asked: Option<Sample>,
    /// To be asked again, and at once.
    again: bool,
}

impl Sampler {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed, ..Self::default() }
    }

    /// The next number (splitmix64).
    const fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..=last`.
    fn up_to(&mut self, last: usize) -> usize {
        let drawn = self.draw() % (last as u64 + 1);
        usize::try_from(drawn).unwrap_or(last)
    }

    /// Takes a page that proves `span`. What may have been cut is full: pages less than half as full as the fullest weigh less.
    /// What lies from `fills_from` on may still come late, and is not asked again.
    pub(super) fn offer(&mut self, page: &PageView, span: (i64, i64), fills_from: i64) {
        let mut seconds = page.seconds();
        seconds.retain(|second| *second <= fills_from);
        let gaps = seconds.len().saturating_sub(1);
        self.pages += 1;
        if gaps < SMALLEST_CAP {
            return;
        }
        self.most = self.most.max(gaps);
        let weight = (gaps.min(self.most / 2) as u64).pow(2);
        self.weight = self.weight.saturating_add(weight);
        if self.draw() % self.weight >= weight {
            return;
        }
        let wide = gaps.div_ceil(SHARE).clamp(SMALLEST_CAP, WIDEST);
        // Three times of four around the widest gap of the page: what a queue dropped was in one piece.
        let (first, last) = if self.draw().is_multiple_of(4) {
            (0, gaps - wide)
        } else {
            let widest = (0..gaps).max_by_key(|&gap| seconds[gap + 1] - seconds[gap]).unwrap_or(0);
            ((widest + 1).saturating_sub(wide), widest.min(gaps - wide))
        };
        let first = first + self.up_to(last - first);
        let stretch = (seconds[first] + 1, seconds[first + wide] - 1);
        self.drawn = Some(Sample { stretch, known: page.ids_within(stretch), span });
    }

    /// Whether one is to be asked before the walk goes on.
    pub(super) const fn is_due(&self) -> bool {
        self.again || (self.pages >= PAGES && self.taken + 1 < SAMPLES)
    }

    /// Takes up the one drawn; whether there is one.
    pub(super) fn take_up(&mut self) -> bool {
        self.asked = self.drawn.take();
        self.again = false;
        if self.asked.is_some() {
            (self.pages, self.weight) = (0, 0);
            self.taken += 1;
        }
        self.asked.is_some()
    }

    /// The one that was taken up is not asked yet.
    pub(super) fn put_back(&mut self) {
        self.drawn = self.asked.take();
        self.again = true;
    }

    /// No page so far is worth a sample any more.
    pub(super) fn forget(&mut self) {
        (self.drawn, self.again) = (None, false);
        (self.pages, self.weight) = (0, 0);
    }

    /// The stretch of the one that is drawn, or was to be asked.
    pub(super) fn take_stretch(&mut self) -> Option<(i64, i64)> {
        self.asked.take().or_else(|| self.drawn.take()).map(|sample| sample.stretch)
    }

    /// First second, last second and limit of the request.
    pub(super) fn window(&self) -> (i64, Option<i64>, u32) {
        let Some(Sample { stretch: (since, until), known, .. }) = &self.asked else { return (0, Some(0), 1) };
        (*since, Some(*until), u32::try_from(known.len()).unwrap_or(u32::MAX).saturating_add(1))
    }
}

impl Walk {
    /// Whether what is asked now is a sample.
    #[cfg(test)]
    pub(super) const fn is_sampling(&self) -> bool {
        matches!(self.outstanding, Some(super::spec::Ask::Sample))
    }

    /// What is still to be sampled.
    #[cfg(test)]
    pub(super) fn unsampled(&self) -> Option<(i64, i64)> {
        self.sampler.asked.as_ref().or(self.sampler.drawn.as_ref()).map(|sample| sample.stretch)
    }

    /// Takes what came of a sample. A hit is a hit however the page ended; without an EOSE nothing found clears nothing.
    pub(super) fn on_sample(&mut self, page: &PageView, end: &PageEnd) -> Vec<Claim> {
        let Some(sample) = self.sampler.asked.take() else { return Vec::new() };
        if page.brings_beside(&sample.known) {
            return self.catch(sample.span);
        }
        if end.is_eose() && page.beyond > 0 {
            // What came from above took the place of what was asked for: now as meant.
            self.sampler.asked = Some(sample);
            self.sampler.put_back();
            self.sampler.taken -= 1;
            return Vec::new();
        }
        let (since, until) = sample.stretch;
        let open = Claim::over(since, until, Grade::Unknown, end.gap()).map(Claim::overriding);
        open.filter(|_| !end.is_eose()).into_iter().collect()
    }
}
