//! When each target is next due: pure functions of what was just seen.
//!
//! The scheduler asks the database what is due; the times in it come from here. Phases are spread by a
//! hash of the target, so that a thousand relays added at once are not due at once for ever.

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::liveness::State;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Failed validations after which a candidate becomes a tombstone: about a month with the ladder below.
pub const CANDIDATE_TRIES: u32 = 14;
/// Longest pause between two looks at a relay that is down: it may come back, and then soon be seen.
const DOWN_MAX: u64 = DAY;
/// Between two tries of a candidate that will not have us, at least.
const REFUSED: u64 = 6 * HOUR;
/// A relay that changed state this recently is looked at more often.
const FRESH: i64 = 6 * 3_600;
/// Longest pause that a relay's rate limit, or a fault that lasts, earns it. A job's slack, by which the pause before is known, is a quarter of it.
const LIMITED_MAX: u64 = 4 * HOUR;

/// A due time: from now, how late it may be, and what set it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// Not before this much later.
    pub after: Duration,
    /// How late the run may be without harm: a quarter of the interval.
    pub slack: Duration,
    /// What set it.
    pub why: &'static str,
}

fn due(seconds: u64, target: &str, why: &'static str) -> Due {
    let after = spread(Duration::from_secs(seconds), target);
    Due { after, slack: Duration::from_secs((seconds / 4).clamp(5, HOUR)), why }
}

/// The interval, between nine and eleven tenths of it by a hash of the target.
pub fn spread(interval: Duration, target: &str) -> Duration {
    let digest = Sha256::digest(target.as_bytes());
    let share = u32::from(u16::from_be_bytes([digest[0], digest[1]]));
    interval * 9 / 10 + interval / 5 * share / u32::from(u16::MAX)
}

/// After a failed validation; `failures` counts it. `refused`: it answers, and will not have us, who come less often
/// then. `None`: give the candidate up.
pub fn candidate(failures: u32, refused: bool, url: &str) -> Option<Due> {
    let seconds = match failures {
        0 | 1 => 10 * MINUTE,
        2 => HOUR,
        3 => 6 * HOUR,
        4..=7 => DAY,
        n if n < CANDIDATE_TRIES => 4 * DAY,
        _ => return None,
    };
    let seconds = if refused { seconds.max(REFUSED) } else { seconds };
    Some(due(seconds, url, "candidate back-off"))
}

/// What a look left behind, as far as the next one cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Looked {
    /// The judgement over all vantages.
    pub overall: State,
    /// How long it has stood, seconds.
    pub since_s: i64,
    /// The judgement from here.
    pub mine: State,
    /// Whether that is a new one.
    pub changed: bool,
    /// Failed looks in a row from here.
    pub failures: u32,
    /// Whether it answers, and will not have us.
    pub refused: bool,
    /// How long it wants to be left alone.
    pub retry_after: Duration,
}

/// After a check of a relay: the interval of a stable one is `base`. Not before it wants us again, within a day.
pub fn monitor(looked: Looked, base: Duration, url: &str) -> Due {
    let mut due = by_state(looked, base, url);
    due.after = due.after.max(looked.retry_after.min(Duration::from_secs(DOWN_MAX)));
    due
}

fn by_state(looked: Looked, base: Duration, url: &str) -> Due {
    let base = base.as_secs().max(1);
    let backed_off = |first: u64, why| {
        let doubled = first.max(1).saturating_mul(1 << looked.failures.saturating_sub(2).min(16));
        due(doubled.min(DOWN_MAX.max(base)), url, why)
    };
    match (looked.overall, looked.mine) {
        // Who asks to be left in peace is: more seldom than one that is stable, and the longer it lasts, the more so.
        (State::Alive, _) if looked.refused => due(base.saturating_mul(2), url, "refused, others are not"),
        _ if looked.refused => {
            let least = base.saturating_mul(2);
            let lasts = u64::try_from(looked.since_s).unwrap_or(0);
            due(lasts.max(least).min(DOWN_MAX.max(base)), url, "refused, backing off")
        }
        // Another vantage vouches for it: it is asked soon whether it still does, and then left in peace.
        (State::Alive, State::Suspect | State::Down) if looked.changed => {
            due((base / 12).max(1), url, "second opinion")
        }
        (State::Alive, State::Suspect | State::Down) => due(base, url, "vantages disagree"),
        (State::Alive, State::Alive) if looked.since_s < FRESH => {
            due((base / 4).max(1), url, "alive, changed recently")
        }
        (State::Alive, State::Alive) => due(base, url, "alive"),
        // As down as one vantage can see: what is missing is another one, for which it must not be asked for ever.
        (State::Suspect, State::Down) => backed_off(base / 12, "suspect, backing off"),
        (State::Suspect, _) => due((base / 12).max(1), url, "suspect"),
        (State::Down, _) => backed_off(base / 2, "down, backing off"),
    }
}

/// How a sync pass ended, as far as the next one cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncEnd {
    /// Everything wanted is proved, or recorded as a gap that another look will not close.
    UpToDate,
    /// The time box ended first.
    More,
    /// A fault that may pass: timeout, disconnect.
    Interrupted,
    /// The relay wants to be asked less.
    RateLimited,
    /// The relay does not let us read.
    Refused,
    /// The relay is down.
    Down,
}

/// After a sync pass over a relay.
pub fn sync(end: SyncEnd, base: Duration, url: &str) -> Due {
    let base = base.as_secs().max(1);
    match end {
        SyncEnd::UpToDate => due(base, url, "up to date"),
        SyncEnd::More => {
            Due { after: Duration::ZERO, slack: Duration::from_secs(MINUTE), why: "more to read" }
        }
        SyncEnd::Interrupted => interrupted(None, Duration::from_secs(base), url),
        SyncEnd::RateLimited => limited(None, Duration::from_secs(base), url),
        SyncEnd::Refused => due(base.max(6 * HOUR), url, "refused"),
        SyncEnd::Down => due(base.max(HOUR), url, "down"),
    }
}

/// After a pass that a relay's rate limit ended: never sooner than after any other, and twice the pause before (seconds),
/// where that was for the same reason.
pub fn limited(before: Option<u64>, base: Duration, url: &str) -> Due {
    let base = base.as_secs().max(1);
    let pause = before.map_or(base, |before| before.saturating_mul(2)).clamp(base, LIMITED_MAX.max(base));
    let mut due = due(pause, url, "rate limited");
    // The interval of others is spread to both sides.
    due.after = due.after.max(Duration::from_secs(base));
    due
}

/// After a pass that a fault ended: soon, for faults pass; and where the pass before was so and this one brought nothing, twice
/// as long after it as that one had been put off (seconds).
pub fn interrupted(before: Option<u64>, base: Duration, url: &str) -> Due {
    let least = (base.as_secs() / 3).max(1);
    let pause = before.map_or(least, |before| before.saturating_mul(2));
    due(pause.clamp(least, LIMITED_MAX.max(least)), url, "interrupted")
}

/// Of a relay that is set aside for so many more seconds: looked after once a day, and when that is over.
pub fn aside(left_s: i64, url: &str) -> Due {
    due(u64::try_from(left_s).unwrap_or(0).clamp(MINUTE, DAY), url, "set aside")
}

/// The same due time, with the slack that what the pass brought deserves: jobs that are due are done in the order in
/// which their slack ends, so that where work waits, relays that bring much come first. What a relay brings is what is
/// new of it per request; one that faltered gains nothing by it. Who has more to read and brought little lets the others go
/// first for some minutes, and who brought nothing for half an hour: no longer, since nobody may wait for ever.
pub fn by_worth(mut due: Due, end: SyncEnd, requests: u64, new: u64) -> Due {
    let worth = new / requests.max(1);
    due.slack = match end {
        SyncEnd::UpToDate | SyncEnd::More if worth >= 50 => due.slack / 4,
        SyncEnd::UpToDate if worth >= 5 => due.slack / 2,
        SyncEnd::UpToDate if new == 0 => due.slack * 2,
        SyncEnd::More if new == 0 => due.slack * 30,
        SyncEnd::More if worth < 5 => due.slack * 5,
        _ => due.slack,
    };
    due
}

/// A local task that runs every `base`.
pub fn local(base: Duration, task: &str) -> Due {
    due(base.as_secs().max(1), task, "interval")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOOKED: Looked = Looked {
        overall: State::Alive,
        since_s: 0,
        mine: State::Alive,
        changed: false,
        failures: 0,
        refused: false,
        retry_after: Duration::ZERO,
    };

    #[test]
    fn who_will_not_have_us_is_asked_more_seldom_and_when_it_says() {
        let base = Duration::from_secs(HOUR);
        let after = |since_s, retry_after_s| {
            let retry_after = Duration::from_secs(retry_after_s);
            let mine = State::Suspect;
            let looked = Looked { overall: mine, since_s, mine, refused: true, retry_after, ..LOOKED };
            monitor(looked, base, "wss://relay.example").after
        };
        assert!(after(0, 0) > base && after(40_000, 0) > after(0, 0) && after(1 << 40, 0) > after(40_000, 0));
        assert_eq!(after(0, 50_000), Duration::from_secs(50_000));
        assert!(after(0, u64::MAX) == Duration::from_secs(DAY), "within a day");
        let candidate = |refused| candidate(1, refused, "wss://relay.example").map(|due| due.after);
        assert!(candidate(true) > candidate(false));
    }

    #[test]
    fn candidates_back_off_and_are_given_up_after_about_a_month() {
        let mut total = Duration::ZERO;
        let mut last = Duration::ZERO;
        for failures in 1..CANDIDATE_TRIES {
            let due = candidate(failures, false, "wss://relay.example").expect("not given up yet");
            assert!(due.after >= last, "try {failures} comes sooner than the one before");
            last = due.after;
            total += due.after;
        }
        assert!(candidate(CANDIDATE_TRIES, false, "wss://relay.example").is_none());
        assert!((20 * DAY..60 * DAY).contains(&total.as_secs()), "{total:?}");
    }

    #[test]
    fn a_change_shortens_and_death_lengthens_the_interval() {
        let base = Duration::from_secs(HOUR);
        let at = |state, failures, since_s| {
            let looked = Looked { overall: state, since_s, mine: state, failures, ..LOOKED };
            monitor(looked, base, "wss://relay.example").after
        };
        assert!(at(State::Alive, 0, 60) < at(State::Alive, 0, 1_000_000));
        assert!(at(State::Suspect, 1, 0) < at(State::Alive, 0, 60));
        assert!(at(State::Down, 2, 0) < at(State::Down, 5, 0));
        assert!(at(State::Down, 1_000, 0) <= Duration::from_secs(DAY * 11 / 10));
    }

    #[test]
    fn relays_that_bring_much_come_first_and_faults_gain_nothing() {
        let base = Duration::from_secs(HOUR);
        let slack = |end, requests, new| {
            let due = sync(end, base, "wss://relay.example");
            by_worth(due, end, requests, new).slack
        };
        let order = [(10, 5_000), (10, 100), (10, 1), (10, 0)];
        let slacks = order.map(|(requests, new)| slack(SyncEnd::UpToDate, requests, new));
        assert!(slacks.is_sorted_by(|a, b| a < b), "{slacks:?}");
        let slacks = [5_000, 100, 10, 0].map(|new| slack(SyncEnd::More, 10, new));
        assert!(slacks.is_sorted_by(|a, b| a < b), "{slacks:?}");
        assert!(slacks[3] <= Duration::from_secs(HOUR), "nobody waits for ever");
        let fault = |new| slack(SyncEnd::Interrupted, 10, new);
        assert_eq!(fault(5_000), fault(0));
    }

    #[test]
    fn a_contradiction_is_looked_into_once_and_then_left_in_peace() {
        let at = |mine, changed, failures| {
            let looked = Looked { since_s: 1_000_000, mine, changed, failures, ..LOOKED };
            monitor(looked, Duration::from_secs(HOUR), "wss://relay.example")
        };
        let (news, known) = (at(State::Suspect, true, 1), at(State::Down, false, 9));
        assert_eq!((news.why, known.why), ("second opinion", "vantages disagree"));
        assert!(news.after < known.after && known.after == at(State::Alive, false, 0).after);
    }

    #[test]
    fn a_relay_that_waits_for_another_vantage_is_asked_ever_more_seldom() {
        let at = |failures| {
            let looked = Looked { overall: State::Suspect, mine: State::Down, failures, ..LOOKED };
            monitor(looked, Duration::from_secs(HOUR), "wss://relay.example").after
        };
        assert!(at(2) < at(5) && at(5) < at(12));
        assert!(at(1_000) > Duration::from_secs(DAY * 8 / 10));
    }

    #[test]
    fn a_rate_limit_is_answered_by_ever_longer_pauses_and_never_by_shorter_ones() {
        let base = Duration::from_secs(900);
        let mut before = None;
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let due = limited(before, base, "wss://a.example");
            before = Some(4 * due.slack.as_secs());
            pauses.push(due.after);
        }
        assert!(pauses[0] >= base && pauses.is_sorted(), "{pauses:?}");
        assert!(pauses[2] > base * 3, "{pauses:?}");
        assert!(pauses[6] > base * 12 && pauses[6] == pauses[5], "{pauses:?}");
        assert_eq!(
            sync(SyncEnd::RateLimited, base, "wss://a.example"),
            limited(None, base, "wss://a.example")
        );
        let long = Duration::from_secs(10 * HOUR);
        assert!(limited(Some(4 * HOUR), long, "wss://a.example").after >= long);
    }

    #[test]
    fn a_fault_that_lasts_is_looked_at_ever_more_seldom() {
        let base = Duration::from_secs(900);
        let mut before = None;
        let pauses: Vec<Duration> = (0..9)
            .map(|_| {
                let due = interrupted(before, base, "wss://a.example");
                before = Some(4 * due.slack.as_secs());
                due.after
            })
            .collect();
        assert_eq!(pauses[0], sync(SyncEnd::Interrupted, base, "wss://a.example").after);
        assert!(pauses[0] < base && pauses.is_sorted() && pauses[2] > base, "{pauses:?}");
        assert!(
            pauses[8] == pauses[7] && pauses[8] <= Duration::from_secs(LIMITED_MAX * 11 / 10),
            "{pauses:?}"
        );
    }

    #[test]
    fn a_pass_with_more_to_read_goes_on_at_once_and_a_refusal_waits() {
        let base = Duration::from_secs(900);
        assert_eq!(sync(SyncEnd::More, base, "wss://a.example").after, Duration::ZERO);
        assert!(sync(SyncEnd::Interrupted, base, "wss://a.example").after < base);
        assert!(sync(SyncEnd::Refused, base, "wss://a.example").after > Duration::from_secs(5 * HOUR));
    }

    proptest! {
        #[test]
        fn spreading_stays_within_a_tenth(seconds in 1_u64..10_000_000, target in ".{0,40}") {
            let interval = Duration::from_secs(seconds);
            let spread = spread(interval, &target);
            prop_assert!(spread >= interval * 9 / 10 && spread <= interval * 11 / 10 + Duration::from_millis(1));
        }

        #[test]
        fn every_next_look_at_a_relay_is_ahead_and_bounded(
            failures in 0_u32..5_000, since_s in 0_i64..100_000_000, base in 1_u64..1_000_000,
            (changed, refused) in any::<(bool, bool)>(),
        ) {
            for overall in [State::Alive, State::Suspect, State::Down] {
                for mine in [State::Alive, State::Suspect, State::Down] {
                    let looked = Looked { overall, since_s, mine, changed, failures, refused, ..LOOKED };
                    let due = monitor(looked, Duration::from_secs(base), "wss://relay.example");
                    prop_assert!(due.after > Duration::ZERO);
                    prop_assert!(due.after.as_secs() <= DAY.max(2 * base) * 12 / 10 + 1);
                }
            }
        }
    }
}
