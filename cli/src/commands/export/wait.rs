//! Waiting until all that was seen by the moment of an export is stored.
//!
//! On a standby it is as late as the last transaction that was replayed. Where none is replayed any more, what was seen by
//! then never comes, and nobody may take it for all there is: an earlier moment has to be asked for.

use std::path::Path;
use std::time::Duration;

use shared::clock;
use shared::db::{Db, SETTLE_S};

use super::state::State;
use crate::output::{Fail, utc, warn};

/// Between two looks at whether everything is there.
const LOOK: Duration = Duration::from_millis(500);
/// A second that lasts longer is that of a standby which replays nothing.
const STILL_MS: u64 = 1_000 * SETTLE_S.unsigned_abs();

/// Waits until all that was seen by `as_of` is there.
pub(super) async fn settled(db: &Db, dir: &Path, mut state: State) -> Result<State, Fail> {
    if state.settled {
        return Ok(state);
    }
    let as_of = utc(state.scope.as_of);
    warn(&format!(
        "relays are being synced: waiting until what was seen by {as_of} is stored, two minutes at most"
    ));
    let mut second = Second::default();
    loop {
        let (at, settled) = db.export_settled(state.scope.as_of).await?;
        if settled {
            break;
        }
        if second.lasts(at, clock::monotonic_ms()) {
            return Err(stands_still(at));
        }
        tokio::time::sleep(LOOK).await;
    }
    state.settled = true;
    state.save(dir)?;
    Ok(state)
}

fn stands_still(at: i64) -> Fail {
    Fail::Failed(format!(
        "the standby has replayed nothing since {}, and what was seen by then may be missing: --resume when it goes on, or \
         begin anew elsewhere with --as-of {}",
        utc(at),
        at - SETTLE_S
    ))
}

/// The second it is for the database, and since when.
#[derive(Debug, Default)]
struct Second {
    at: Option<i64>,
    since_ms: u64,
}

impl Second {
    /// Whether it has been this one for longer than whatever is on its way may take.
    fn lasts(&mut self, at: i64, now_ms: u64) -> bool {
        if self.at != Some(at) {
            *self = Self { at: Some(at), since_ms: now_ms };
        }
        now_ms.saturating_sub(self.since_ms) >= STILL_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lasts_only_where_the_clock_of_the_database_stands_still() {
        let mut second = Second::default();
        let mut lasts = |at, now_s: u64| second.lasts(at, now_s * 1_000);
        assert!((5..300).all(|s| !lasts(1_000 + i64::try_from(s).unwrap(), s)), "it goes on");
        assert!(!lasts(2_000, 300) && !lasts(2_000, 419), "it may yet");
        assert!(lasts(2_000, 420));
        assert!(!lasts(2_001, 421), "it goes on again");
        let Fail::Failed(said) = stands_still(1_700_000_000) else { panic!("not the caller's fault") };
        assert!(said.contains("since 2023-11-14") && said.contains("--as-of 1699999880"), "{said}");
    }
}
