//! How much at once is taken away under a lock that others wait for.

/// Events looked at by one step: at first, at most and at least.
const LOOK: i32 = 200;
const LOOK_MAX: i32 = 2_000;
const LOOK_MIN: i32 = 50;
/// A step that keeps writers waiting longer is followed by smaller ones, one that is over so soon by larger ones.
const LONG_MS: u64 = 1_000;
const SHORT_MS: u64 = 300;

/// How much one step of retention takes, by how long the last one took: what an event costs depends on how much its
/// author wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    look: i32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { look: LOOK }
    }
}

impl Pace {
    pub(super) const fn look(self) -> i32 {
        self.look
    }

    pub(super) fn took(&mut self, ms: u64, timed_out: bool) {
        self.look = match ms {
            _ if timed_out => self.look / 8,
            ms if ms > LONG_MS => self.look / 2,
            ms if ms < SHORT_MS => self.look * 2,
            _ => self.look,
        }
        .clamp(LOOK_MIN, LOOK_MAX);
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
}
