//! Passes one after the other over a relay that changes between them: coverage, late arrivals and the marks of what was read
//! again, without a socket and a database.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::claims;
use super::revisit::{self, AGES};
use super::windows::{REST_S, Window, plan};
use crate::models::{Coverage, EventId, Interval};
use crate::nips::walk::model_relay::{Failure, Ignores, ModelRelay, Story, events_at};
use crate::nips::{PageEnd, WalkSpec};

/// The first pass is at this second.
const BEGIN: i64 = 400_000;
const FLOOR: i64 = 100;
const RESCAN: i64 = 3_600;

/// What happens between two passes.
#[derive(Debug, Clone)]
struct Change {
    /// Seconds until the next pass.
    later: i64,
    /// Arrivals: so many at so many seconds before the pass.
    arrivals: Vec<(i64, usize)>,
    /// How the relay answers in that pass.
    ignores: Ignores,
    failure: Option<Failure>,
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let later = prop::sample::select(vec![600_i64, 3_700, 30_000, 90_000, 280_000]);
    let arrivals = prop::collection::vec(
        (
            prop_oneof![0_i64..50, 0_i64..5_000, 0_i64..400_000],
            prop_oneof![4 => Just(1_usize), 1 => 2_usize..60],
        ),
        0..12,
    );
    let ends =
        prop::sample::select(vec![PageEnd::Disconnected, PageEnd::Oversize, PageEnd::Timeout { idle: true }]);
    let failure = prop::option::weighted(0.3, (0_u32..6, ends).prop_map(|(at, end)| Failure { at, end }));
    let ignores = prop_oneof![4 => Just(Ignores::Nothing), 1 => Just(Ignores::Until)];
    let change = (later, arrivals, ignores, failure).prop_map(|(later, arrivals, ignores, failure)| Change {
        later,
        arrivals,
        ignores,
        failure,
    });
    prop::collection::vec(change, 2..7)
}

/// What we know of the relay.
#[derive(Default)]
struct Ours {
    coverage: Coverage,
    marks: Vec<(i64, i64)>,
    held: HashSet<EventId>,
}

impl Ours {
    /// One pass, as the job makes it.
    fn pass(&mut self, relay: &mut ModelRelay, now: i64, page_shown: usize) {
        let mut read: Vec<(i64, i64)> = Vec::new();
        let windows = plan(&self.coverage, FLOOR, now, RESCAN, REST_S);
        let revisits = revisit::due(&self.marks, &self.coverage, FLOOR, now, false);
        let mut ended = false;
        for window in &windows {
            ended = ended || self.walk(relay, *window, now, page_shown, &mut read);
        }
        for revisit in revisits {
            for (floor, ceiling) in revisit::left((revisit.since, revisit.until), &read) {
                let window = Window { floor, ceiling, open_top: false };
                ended = ended || self.walk(relay, window, now, page_shown, &mut read);
            }
        }
        let moved = |age| {
            let reached = revisit::reached(&self.marks, &self.coverage, age, FLOOR);
            (age, revisit::advance(reached, age, now, &read))
        };
        self.marks = AGES.into_iter().map(moved).filter(|(_, until)| *until > FLOOR).collect();
    }

    /// One window; whether the relay ended it.
    fn walk(
        &mut self,
        relay: &mut ModelRelay,
        window: Window,
        now: i64,
        page_shown: usize,
        read: &mut Vec<(i64, i64)>,
    ) -> bool {
        let Window { floor, ceiling, open_top } = window;
        let spec = WalkSpec { floor, ceiling, open_top, limit: 30, page_shown, max_requests: 500 };
        let Story { claims, delivered, .. } = relay.walk(spec);
        self.held.extend(delivered);
        for claim in &claims {
            let interval = Interval::new(claim.since, claim.until, claim.grade, claim.reason, now).unwrap();
            if claim.overrides_proof {
                self.coverage.overrule(interval);
            } else {
                self.coverage.overlay(interval);
            }
            read.extend(claims::read(claim, &self.coverage));
        }
        relay.failure.as_ref().is_some_and(|failure| relay.asked > failure.at)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn passes_over_a_changing_relay_prove_what_was_there_and_read_again_what_they_say(
        changes in changes(), cap in 12_usize..40,
    ) {
        let page = cap.min(30);
        let mut relay = ModelRelay::honest(cap, Vec::new());
        let mut ours = Ours::default();
        let mut arrived: HashMap<EventId, i64> = HashMap::new();
        let mut seconds: Vec<i64> = Vec::new();
        let mut now = BEGIN;
        for change in changes {
            now += change.later;
            for (ago, count) in change.arrivals {
                seconds.extend(std::iter::repeat_n((now - ago).max(FLOOR), count));
            }
            relay.events = events_at(seconds.iter().copied());
            for (_, id) in &relay.events {
                arrived.entry(*id).or_insert(now);
            }
            (relay.ignores, relay.failure, relay.asked) = (change.ignores, change.failure, 0);
            ours.pass(&mut relay, now, page);
            let mut crowd: HashMap<i64, usize> = HashMap::new();
            for (second, _) in &relay.events {
                *crowd.entry(*second).or_default() += 1;
            }
            for (second, id) in relay.events.iter().filter(|(_, id)| !ours.held.contains(id)) {
                let known = ours.coverage.at(*second).filter(|known| known.grade().is_proof());
                let Some(known) = known else { continue };
                prop_assert!(known.observed_at() < arrived[id], "{second} is proved without what was there");
                // What fills a page is more than paging can tell.
                for (age, until) in ours.marks.iter().filter(|_| crowd[second] < page) {
                    prop_assert!(
                        second > until || arrived[id] > second + age,
                        "{second} counts as read again after {age} s, without what came before that"
                    );
                }
            }
        }
    }
}
