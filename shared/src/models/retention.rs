//! What is not kept: policies as an operator writes them, and whether one of them means an event. Pure.

use std::fmt;
use std::str::FromStr;

const DAY_S: i64 = 86_400;
/// Longest a policy may keep something, days: a century.
pub const DAYS_MAX: u32 = 36_500;

/// Why a policy is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "kinds are written 7, 7:30 or 20000-29999:30: a kind or a range, and the days it is kept, none if left out"
)]
pub struct KindRuleError;

/// Kinds that are kept for so many days only, or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KindRule {
    from: u16,
    to: u16,
    days: u32,
}

impl KindRule {
    /// Kinds `from..=to`, kept for `days` (0: not at all).
    ///
    /// # Errors
    /// When the range is reversed or the days are too many.
    pub const fn new(from: u16, to: u16, days: u32) -> Result<Self, KindRuleError> {
        if from > to || days > DAYS_MAX {
            return Err(KindRuleError);
        }
        Ok(Self { from, to, days })
    }

    /// First kind.
    pub const fn from(&self) -> u16 {
        self.from
    }

    /// Last kind.
    pub const fn to(&self) -> u16 {
        self.to
    }

    /// Days by `created_at` that they are kept.
    pub const fn days(&self) -> u32 {
        self.days
    }

    /// Whether an event of this kind and time (Unix seconds) is not kept any more at `now`.
    pub const fn skips(&self, kind: u16, created_at: i64, now: i64) -> bool {
        // A whole UTC day at a time, as `retention_before` in SQL, which gives a day 15 minutes more.
        let before = if self.days == 0 { i64::MAX } else { (now / DAY_S - self.days as i64) * DAY_S };
        self.from <= kind && kind <= self.to && created_at < before
    }
}

impl FromStr for KindRule {
    type Err = KindRuleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kinds, days) = text.split_once(':').unwrap_or((text, "0"));
        let (from, to) = kinds.split_once('-').unwrap_or((kinds, kinds));
        let number = |digits: &str| digits.parse().map_err(|_| KindRuleError);
        Self::new(number(from)?, number(to)?, days.parse().map_err(|_| KindRuleError)?)
    }
}

impl fmt::Display for KindRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}:{}", self.from, self.to, self.days)
    }
}

/// Everything that is not kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    /// Days by `created_at` after which everything goes, by whole months; `None` = never.
    pub days: Option<u32>,
    /// Kinds.
    pub kinds: Vec<KindRule>,
    /// Canonical URLs of relays, and the days by `created_at` that what they showed us is kept; 0: not at all.
    pub relays: Vec<(String, u32)>,
}

impl Retention {
    /// Whether everything is kept.
    pub const fn is_empty(&self) -> bool {
        self.days.is_none() && self.kinds.is_empty() && self.relays.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_a_kind_or_a_range_and_days() {
        let rule = |text: &str| text.parse::<KindRule>();
        assert_eq!(rule("7"), KindRule::new(7, 7, 0));
        assert_eq!(rule("7:30"), KindRule::new(7, 7, 30));
        assert_eq!(rule("20000-29999:2"), KindRule::new(20_000, 29_999, 2));
        assert_eq!(rule("0-65535").map(|rule| rule.to_string()), Ok("0-65535:0".to_owned()));
        for wrong in ["", "x", "-7", "7:", "9-7", "65536", "7:36501", "7-8-9", "7:1:2"] {
            assert_eq!(rule(wrong), Err(KindRuleError), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_kept_is_told_by_kind_and_whole_days() {
        let now = 100 * DAY_S + 5;
        let none: KindRule = "7".parse().unwrap();
        assert!(none.skips(7, now, now) && none.skips(7, i64::MAX - 1, now) && !none.skips(8, 0, now));
        let month: KindRule = "7-9:30".parse().unwrap();
        assert!(month.skips(9, 70 * DAY_S - 1, now) && !month.skips(9, 70 * DAY_S, now));
    }
}
