//! How much at once is taken away under a lock that others wait for.

use super::DbError;
use crate::clock;

/// Events looked at by one step: at first, at most and at least.
const LOOK: i32 = 200;
const LOOK_MAX: i32 = 2_000;
const LOOK_MIN: i32 = 50;
/// A step that keeps writers waiting longer is followed by smaller ones, one that is over so soon by larger ones.
const LONG_MS: u64 = 1_000;
const SHORT_MS: u64 = 300;

/// How much one step takes away, by how long the last one took: what an event costs depends on how much its author wrote. One
/// that ran into the time limit is tried again with an eighth, down to a single event: nothing is too much for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    look: i32,
    stuck: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self::of(LOOK)
    }
}

impl Pace {
    /// One that begins with so many events.
    pub const fn of(look: i32) -> Self {
        Self { look, stuck: false }
    }

    /// Whether a single event ran into the time limit.
    pub const fn is_stuck(self) -> bool {
        self.stuck
    }

    pub(super) const fn look(self) -> i32 {
        self.look
    }

    /// Goes by what a step that began then came to.
    pub(super) fn learn<T>(&mut self, began_ms: u64, came: &Result<T, DbError>) {
        let timed_out = matches!(came, Err(DbError::Timeout { .. }));
        // A lock that was busy says nothing of how much it was.
        if came.is_err() && !timed_out {
            return;
        }
        self.took(clock::monotonic_ms().saturating_sub(began_ms), timed_out);
    }

    fn took(&mut self, ms: u64, timed_out: bool) {
        self.stuck = timed_out && self.look <= 1;
        let least = if timed_out { 1 } else { LOOK_MIN.min(self.look) };
        self.look = match ms {
            _ if timed_out => self.look / 8,
            ms if ms > LONG_MS => self.look / 2,
            ms if ms < SHORT_MS => self.look * 2,
            _ => self.look,
        }
        .clamp(least, LOOK_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_shrink_while_they_take_long_and_grow_again() {
        let mut pace = Pace::default();
        for _ in 0..5 {
            pace.took(10, false);
        }
        assert_eq!(pace.look, LOOK_MAX);
        pace.took(58_000, true);
        assert_eq!(pace.look, LOOK_MAX / 8);
        pace.took(500, false);
        assert_eq!(pace.look, LOOK_MAX / 8, "right as it is");
        for _ in 0..9 {
            pace.took(5_000, false);
        }
        assert_eq!(pace.look, LOOK_MIN);
    }

    #[test]
    fn a_step_that_runs_into_the_limit_shrinks_to_a_single_event_and_grows_again_from_there() {
        let mut pace = Pace::of(500);
        let mut tried = vec![];
        while !pace.is_stuck() {
            pace.took(58_000, true);
            tried.push(pace.look);
        }
        assert_eq!(tried, [62, 7, 1, 1]);
        pace.took(5_000, false);
        assert_eq!(pace.look, 1, "as small as it has to be");
        pace.took(10, false);
        assert_eq!(pace.look, 2);
    }
}
