//! alive, suspect, down: judged from consecutive checks, with hysteresis.
//!
//! Two failures make a relay down, two successes bring it back; and none of it counts for more than
//! `suspect` while our own network is not proved to work.

use std::str::FromStr;

use crate::models::UnknownWord;

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
