//! The disk budget of the database, and what is done as it fills: pure.
//!
//! Invariant: nothing is stopped before [`REST_PERCENT`] of it, and nothing but syncing ever is.

/// From this share of the budget on syncing rests, percent: what is left is for checks, queues, and rows on their way.
pub const REST_PERCENT: u64 = 90;
/// From this share on people are told, percent.
pub const NEAR_PERCENT: u64 = 80;

/// How full the budget is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fill {
    /// There is room, or no budget.
    Free,
    /// It is getting full: said, and nothing else.
    Near,
    /// Syncing rests until there is room again; monitoring, discovery and refreshes go on.
    Rests,
}

impl Fill {
    /// How full `bytes` make a budget of `max` (`None` = no limit).
    pub const fn of(bytes: u64, max: Option<u64>) -> Self {
        let Some(max) = max else { return Self::Free };
        if bytes >= share(max, REST_PERCENT) {
            Self::Rests
        } else if bytes >= share(max, NEAR_PERCENT) {
            Self::Near
        } else {
            Self::Free
        }
    }

    /// Whether syncing rests.
    pub const fn rests(self) -> bool {
        matches!(self, Self::Rests)
    }
}

/// The stricter of two budgets.
pub fn stricter(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

const fn share(max: u64, percent: u64) -> u64 {
    // Without overflow, and never nothing.
    let share = max / 100 * percent + max % 100 * percent / 100;
    if share == 0 { 1 } else { share }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_fills_in_clear_steps() {
        let steps = [
            (0, Fill::Free),
            (799, Fill::Free),
            (800, Fill::Near),
            (899, Fill::Near),
            (900, Fill::Rests),
            (2_000, Fill::Rests),
        ];
        for (bytes, fill) in steps {
            assert_eq!(Fill::of(bytes, Some(1_000)), fill, "{bytes}");
            assert_eq!(Fill::of(bytes, None), Fill::Free);
        }
        assert_eq!(Fill::of(u64::MAX, Some(u64::MAX)), Fill::Rests);
        assert_eq!(Fill::of(1, Some(1)), Fill::Rests);
    }

    #[test]
    fn of_two_budgets_the_stricter_holds() {
        assert_eq!(stricter(Some(5), Some(3)), Some(3));
        assert_eq!(stricter(None, Some(3)), Some(3));
        assert_eq!(stricter(None, None), None);
    }
}
