//! alive, suspect, down: judged from consecutive checks, with hysteresis, and then over all vantages.
//!
//! Two failures make a relay down, two successes bring it back; and none of it counts for more than
//! `suspect` while our own network is not proved to work. Over all vantages a relay is alive when any
//! opinion that stands says so: a vantage that is blocked kills nobody.

use std::str::FromStr;
use std::time::Duration;

use crate::models::{Reason, UnknownWord};

/// An opinion that a relay is alive or suspect stands for so many intervals: a vantage whose turn does not come,
/// or that is gone, must not vouch for long.
const STANDS_INTERVALS: u32 = 3;
/// That it is down stands longer, since a dead relay is looked at seldom.
const DOWN_STANDS: Duration = Duration::from_secs(3 * 86_400);

/// Liveness of a relay from one vantage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It speaks Nostr.
    Alive,
    /// One look says otherwise, or ours is in doubt.
    Suspect,
    /// Two looks in a row failed while our network worked.
    Down,
}

impl State {
    /// As stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
        }
    }
}

impl FromStr for State {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "alive" => Ok(Self::Alive),
            "suspect" => Ok(Self::Suspect),
            "down" => Ok(Self::Down),
            other => Err(UnknownWord { set: "relay state", text: other.to_owned() }),
        }
    }
}

/// What is remembered between checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    /// State; none before the first check.
    pub state: Option<State>,
    /// Failed checks in a row.
    pub failures: u32,
    /// Good checks in a row.
    pub successes: u32,
}

/// The state after one more check: `up`, and whether our own network was proved to work.
pub fn judge(before: Liveness, up: bool, network_proved: bool) -> (State, Liveness) {
    let (failures, successes) = match (up, network_proved) {
        (true, _) => (0, before.successes.saturating_add(1)),
        (false, true) => (before.failures.saturating_add(1), 0),
        // A look that may have failed because of us is not held against the relay.
        (false, false) => (before.failures, 0),
    };
    let state = match (before.state, up) {
        (None | Some(State::Alive), true) => State::Alive,
        // Back from a single failure at once; back from down after two good looks.
        (Some(State::Suspect), true) if before.successes == 0 || successes >= 2 => State::Alive,
        (Some(State::Down), false) => State::Down,
        (Some(State::Suspect), false) if failures >= 2 && network_proved => State::Down,
        (None | Some(State::Alive | State::Suspect), false) | (Some(State::Suspect | State::Down), true) => {
            State::Suspect
        }
    };
    (state, Liveness { state: Some(state), failures, successes })
}

/// How long the opinion that a look leaves behind counts; one that our own network casts doubt on does not.
pub fn stands(state: State, up: bool, network_proved: bool, interval: Duration) -> Duration {
    match state {
        _ if !up && !network_proved => Duration::ZERO,
        State::Alive | State::Suspect => interval * STANDS_INTERVALS,
        State::Down => DOWN_STANDS.max(interval * STANDS_INTERVALS),
    }
}

/// What one vantage says of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opinion {
    /// Its state there.
    pub state: State,
    /// Why.
    pub reason: Reason,
    /// Whether it still counts.
    pub stands: bool,
}

/// The judgement over all vantages: alive if a standing opinion says so; down only if every standing one says
/// so and they are at least `for_down`; suspect otherwise. With its reason: that of the deciding opinion, the
/// latest look's (`mine`) first.
pub fn overall(mine: Opinion, others: &[Opinion], for_down: u32) -> (State, Reason) {
    let standing: Vec<Opinion> =
        std::iter::once(mine).chain(others.iter().copied()).filter(|opinion| opinion.stands).collect();
    let says = |state: State| standing.iter().filter(move |opinion| opinion.state == state);
    let downs = u32::try_from(says(State::Down).count()).unwrap_or(u32::MAX);
    let decided = if says(State::Alive).next().is_some() {
        State::Alive
    } else if says(State::Suspect).next().is_none() && downs >= for_down.max(1) {
        State::Down
    } else {
        State::Suspect
    };
    let reason = says(decided).next().map_or(mine.reason, |opinion| opinion.reason);
    (decided, reason)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn opinion(state: State) -> Opinion {
        Opinion { state, reason: Reason::None, stands: true }
    }

    #[test]
    fn a_blocked_vantage_kills_nobody() {
        use State::{Alive, Down, Suspect};
        for blocked in [Suspect, Down] {
            assert_eq!(overall(opinion(blocked), &[opinion(Alive)], 1).0, Alive);
        }
        let lapsed = Opinion { stands: false, ..opinion(Alive) };
        assert_eq!(
            overall(opinion(Down), &[lapsed], 1).0,
            Down,
            "who does not look any more vouches for nobody"
        );
    }

    #[test]
    fn down_needs_as_many_vantages_as_asked_for_and_no_doubt() {
        use State::{Down, Suspect};
        assert_eq!(overall(opinion(Down), &[], 1).0, Down);
        assert_eq!(overall(opinion(Down), &[], 2).0, Suspect);
        assert_eq!(
            overall(opinion(Down), &[opinion(Suspect)], 1).0,
            Suspect,
            "one good look brings back doubt"
        );
        assert_eq!(overall(opinion(Down), &[opinion(Down)], 2).0, Down);
    }

    #[test]
    fn the_reason_is_that_of_who_decided() {
        let refused = Opinion { reason: Reason::AuthRequired, ..opinion(State::Alive) };
        let blocked = Opinion { reason: Reason::ConnectRefused, ..opinion(State::Down) };
        assert_eq!(overall(blocked, &[refused], 1), (State::Alive, Reason::AuthRequired));
        assert_eq!(overall(blocked, &[], 2), (State::Suspect, Reason::ConnectRefused));
    }

    #[test]
    fn an_opinion_formed_in_doubt_does_not_stand() {
        assert_eq!(stands(State::Suspect, false, false, HOUR), Duration::ZERO);
        assert!(stands(State::Alive, true, false, HOUR) > HOUR, "an answer proves itself");
        assert!(stands(State::Down, false, true, HOUR) > stands(State::Alive, true, true, HOUR));
    }

    const NEW: Liveness = Liveness { state: None, failures: 0, successes: 0 };

    fn walk(looks: &[(bool, bool)]) -> Vec<State> {
        let mut liveness = NEW;
        looks
            .iter()
            .map(|(up, proved)| {
                let (state, next) = judge(liveness, *up, *proved);
                liveness = next;
                state
            })
            .collect()
    }

    #[test]
    fn two_failures_make_down_and_two_successes_bring_back() {
        use State::{Alive, Down, Suspect};
        let looks = [(true, true), (false, true), (false, true), (false, true), (true, true), (true, true)];
        assert_eq!(walk(&looks), [Alive, Suspect, Down, Down, Suspect, Alive]);
    }

    #[test]
    fn one_failure_is_forgiven_by_one_success() {
        assert_eq!(walk(&[(true, true), (false, true), (true, true)]).last(), Some(&State::Alive));
    }

    proptest! {
        #[test]
        fn one_vantage_alone_is_the_judgement(state in prop_oneof![Just(State::Alive), Just(State::Suspect), Just(State::Down)]) {
            prop_assert_eq!(overall(opinion(state), &[], 1).0, state);
        }

        #[test]
        fn down_is_said_by_enough_and_contradicted_by_none(
            all in proptest::collection::vec((0..3_usize, any::<bool>()), 1..6), for_down in 1_u32..4,
        ) {
            let all: Vec<Opinion> = all
                .into_iter()
                .map(|(state, stands)| Opinion { stands, ..opinion([State::Alive, State::Suspect, State::Down][state]) })
                .collect();
            let (state, _) = overall(all[0], &all[1..], for_down);
            let standing: Vec<State> = all.iter().filter(|o| o.stands).map(|o| o.state).collect();
            prop_assert_eq!(state == State::Alive, standing.contains(&State::Alive));
            let unanimous = standing.iter().all(|s| *s == State::Down) && standing.len() >= for_down as usize;
            prop_assert_eq!(state == State::Down, unanimous);
        }

        #[test]
        fn nothing_is_called_down_while_our_network_is_in_doubt(looks in proptest::collection::vec(any::<bool>(), 1..40)) {
            let looks: Vec<(bool, bool)> = looks.into_iter().map(|up| (up, false)).collect();
            prop_assert!(!walk(&looks).contains(&State::Down));
        }

        #[test]
        fn down_needs_two_failures_in_a_row(looks in proptest::collection::vec(any::<bool>(), 2..40)) {
            let states = walk(&looks.iter().map(|up| (*up, true)).collect::<Vec<_>>());
            for (i, state) in states.iter().enumerate() {
                if *state == State::Down && (i == 0 || states[i - 1] != State::Down) {
                    prop_assert!(i >= 1 && !looks[i] && !looks[i - 1]);
                }
            }
        }
    }
}
