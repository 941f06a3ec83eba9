//! alive, suspect, down: judged from consecutive checks, with hysteresis, and then over all vantages.
//!
//! Two failures in a row make a relay down, two successes in a row bring it back; and none of it counts for
//! more than `suspect` while our own network is not proved to work, or where the relay answers and will not
//! have us: "down" and "refused" are different facts. Over all vantages a relay is alive when any opinion
//! that stands says so: a vantage that is blocked kills nobody.

use std::str::FromStr;
use std::time::Duration;

use crate::models::{Reason, UnknownWord};

/// An opinion that a relay is alive or suspect stands for so many intervals: a vantage whose turn does not come,
/// or that is gone, must not vouch for long.
const STANDS_INTERVALS: u32 = 3;
/// That it is down, or will not have us, stands longer: such a relay is looked at seldom.
const SELDOM_STANDS: Duration = Duration::from_secs(3 * 86_400);

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

/// What one look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// It spoke Nostr.
    Up,
    /// Its web server answered, and would not have us.
    Refused,
    /// Neither.
    Failed {
        /// Whether our own network was proved to work.
        proved: bool,
    },
}

impl Look {
    /// A look that ended for this reason.
    pub const fn of(up: bool, reason: Reason, proved: bool) -> Self {
        match reason {
            _ if up => Self::Up,
            // What does not speak Nostr says these by the status of its HTTP answer, and in no other way.
            Reason::RateLimited | Reason::AuthRequired | Reason::Blocked => Self::Refused,
            _ => Self::Failed { proved },
        }
    }

    /// Whether it says how the relay is, and not how we are, or what it makes of us.
    pub const fn counts(self) -> bool {
        matches!(self, Self::Up | Self::Failed { proved: true })
    }
}

/// What is remembered between checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    /// State; none before the first check.
    pub state: Option<State>,
    /// Failed checks in a row; of a relay that was down, kept until it is alive again.
    pub failures: u32,
    /// Good checks in a row.
    pub successes: u32,
}

/// Failures that make a relay down, and from which the way back takes as many good looks.
const DOWN: u32 = 2;

/// The state after one more look.
pub fn judge(before: Liveness, look: Look) -> (State, Liveness) {
    let was_down = before.failures >= DOWN;
    let (failures, successes) = match look {
        Look::Up => (before.failures, before.successes.saturating_add(1)),
        Look::Failed { proved: true } => (before.failures.saturating_add(1), 0),
        // A look that may have failed because of us is not held against the relay.
        Look::Failed { proved: false } => (before.failures, 0),
        Look::Refused => (if was_down { before.failures } else { 0 }, 0),
    };
    let state = match (before.state, look) {
        (None | Some(State::Alive), Look::Up) => State::Alive,
        // Back from a single failure at once; back from down after two good looks.
        (Some(State::Suspect | State::Down), Look::Up) if successes >= DOWN => State::Alive,
        (Some(State::Suspect), Look::Up) if !was_down && before.successes == 0 => State::Alive,
        (Some(State::Down), Look::Failed { .. }) => State::Down,
        (Some(State::Suspect), Look::Failed { proved: true }) if failures >= DOWN => State::Down,
        _ => State::Suspect,
    };
    let failures = if state == State::Alive { 0 } else { failures };
    (state, Liveness { state: Some(state), failures, successes })
}

/// How long the opinion that a look leaves behind counts; one that our own network casts doubt on does not.
pub fn stands(state: State, look: Look, interval: Duration) -> Duration {
    match state {
        _ if matches!(look, Look::Failed { proved: false }) => Duration::ZERO,
        _ if look == Look::Refused => SELDOM_STANDS.max(interval * STANDS_INTERVALS),
        State::Alive | State::Suspect => interval * STANDS_INTERVALS,
        State::Down => SELDOM_STANDS.max(interval * STANDS_INTERVALS),
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
        assert_eq!(stands(State::Suspect, DOUBT, HOUR), Duration::ZERO);
        assert!(stands(State::Alive, UP, HOUR) > HOUR, "an answer proves itself");
        assert_eq!(
            stands(State::Suspect, Look::Refused, HOUR),
            stands(State::Down, FAILED, HOUR),
            "who is refused is there as seldom as who finds it dead, and must not lapse before"
        );
        assert!(stands(State::Down, FAILED, HOUR) > stands(State::Alive, UP, HOUR));
    }

    const NEW: Liveness = Liveness { state: None, failures: 0, successes: 0 };

    const UP: Look = Look::Up;
    const FAILED: Look = Look::Failed { proved: true };
    const DOUBT: Look = Look::Failed { proved: false };

    fn walk(looks: &[Look]) -> Vec<State> {
        let mut liveness = NEW;
        looks
            .iter()
            .map(|look| {
                let (state, next) = judge(liveness, *look);
                liveness = next;
                state
            })
            .collect()
    }

    fn any_looks() -> impl Strategy<Value = Vec<Look>> {
        let look = prop_oneof![Just(UP), Just(FAILED), Just(DOUBT), Just(Look::Refused)];
        proptest::collection::vec(look, 2..40)
    }

    #[test]
    fn two_failures_make_down_and_two_successes_bring_back() {
        use State::{Alive, Down, Suspect};
        let looks = [UP, FAILED, FAILED, FAILED, UP, UP];
        assert_eq!(walk(&looks), [Alive, Suspect, Down, Down, Suspect, Alive]);
    }

    #[test]
    fn one_failure_is_forgiven_by_one_success() {
        assert_eq!(walk(&[UP, FAILED, UP]).last(), Some(&State::Alive));
    }

    #[test]
    fn a_failure_on_the_way_back_from_down_begins_it_anew() {
        use State::{Alive, Down, Suspect};
        assert_eq!(walk(&[FAILED, FAILED, UP, FAILED, UP]), [Suspect, Down, Suspect, Down, Suspect]);
        assert_eq!(
            walk(&[FAILED, FAILED, UP, DOUBT, UP, UP]),
            [Suspect, Down, Suspect, Suspect, Suspect, Alive]
        );
    }

    #[test]
    fn a_refusal_is_a_doubt_for_as_long_as_it_lasts() {
        use State::{Alive, Suspect};
        let refused = Look::Refused;
        assert_eq!(walk(&[UP, refused, refused, refused, UP]), [Alive, Suspect, Suspect, Suspect, Alive]);
        assert_eq!(walk(&[FAILED, refused, FAILED]), [Suspect; 3], "its machine answered in between");
        for (reason, look) in [
            (Reason::RateLimited, refused),
            (Reason::Blocked, refused),
            (Reason::AuthRequired, refused),
            (Reason::WsUpgradeRefused, FAILED),
            (Reason::ConnectRefused, FAILED),
        ] {
            assert_eq!(Look::of(false, reason, true), look, "{reason}");
            assert_eq!(Look::of(true, reason, true), UP, "who speaks Nostr is alive");
        }
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
            let looks: Vec<Look> = looks.into_iter().map(|up| if up { UP } else { DOUBT }).collect();
            prop_assert!(!walk(&looks).contains(&State::Down));
        }

        #[test]
        fn down_needs_two_failures_in_a_row_or_one_on_the_way_back(looks in any_looks()) {
            let states = walk(&looks);
            let mut was_down = false;
            for (i, state) in states.iter().enumerate() {
                if *state == State::Down && !was_down {
                    // Looks in doubt are passed over: they say nothing.
                    let told: Vec<Look> = looks[..=i].iter().copied().filter(|look| *look != DOUBT).collect();
                    prop_assert!(told.ends_with(&[FAILED, FAILED]), "{looks:?}");
                }
                was_down = *state == State::Down || was_down && *state != State::Alive;
            }
        }

        #[test]
        fn alive_after_down_needs_two_good_looks_in_a_row(looks in any_looks()) {
            let states = walk(&looks);
            let mut was_down = false;
            for (i, state) in states.iter().enumerate() {
                if *state == State::Alive && was_down {
                    prop_assert!(looks[..=i].ends_with(&[UP, UP]), "{looks:?}");
                }
                was_down = *state == State::Down || was_down && *state != State::Alive;
            }
        }

        #[test]
        fn a_refusal_never_ends_in_alive_or_down(looks in any_looks()) {
            for (look, state) in looks.iter().zip(walk(&looks)) {
                prop_assert!(*look != Look::Refused || state == State::Suspect);
            }
        }
    }
}
