//! What a walk asks next, and how that goes over the wire.
//!
//! Settles nothing. Invariant: what checks a proof is asked before the walk ends, as far as its requests allow.

use super::Walk;
use super::spec::{Ask, Reading, Suspect};
use crate::nips::Filter;

impl Walk {
    pub(super) fn choose(&mut self) -> Option<Ask> {
        if self.requests >= self.max_requests || self.stopped.is_some() {
            return None;
        }
        let last_chance = self.requests + 1 == self.max_requests;
        if self.plan.is_none() || last_chance || self.winds_up {
            // The probe lets go of a proof that may lack a witness; where only one can be asked, ids settle more.
            if let Some(suspect) = self.suspect.take_if(|_| !(last_chance && self.witnesses.contradict())) {
                return Some(Ask::Gap(suspect));
            }
            if !last_chance && self.sampler.take_up() {
                return Some(Ask::Sample);
            }
            if self.witnesses.contradict() {
                return Some(Ask::Known);
            }
        }
        if !last_chance && self.sampler.is_due() && self.sampler.take_up() {
            return Some(Ask::Sample);
        }
        if self.winds_up { None } else { self.plan.take() }
    }

    /// First second, last second (`None` for the open top) and limit of a request, as meant.
    pub(super) fn window(&self, ask: Ask) -> (i64, Option<i64>, u32) {
        match ask {
            Ask::Page { until } => (self.low(), until, self.limit),
            Ask::Below { .. } => (self.low(), Some(self.frontier - 1), self.limit),
            Ask::Above { low } => (low + 1, Some(self.frontier), self.limit),
            Ask::Gap(Suspect { gap: (since, until), .. }) => (since, Some(until), 1),
            Ask::Sample => self.sampler.window(),
            Ask::Known => (self.floor, None, self.limit),
            Ask::Echo { .. } => {
                let (since, until) = self.silence.window();
                (since, until, 1)
            }
        }
    }

    /// The request as sent: rule 10 may raise its `until`.
    pub(super) fn filter(&self, ask: Ask) -> Filter {
        if matches!(ask, Ask::Known) {
            return self.witnesses.filter();
        }
        let (since, until, limit) = self.window(ask);
        let raised = match self.reading {
            Reading::Inclusive => false,
            Reading::Raised => true,
            // the one event that a probe asks for beside what is known would be the known one at its end
            Reading::Untested => !self.tests_until(ask) && !matches!(ask, Ask::Gap(_) | Ask::Sample),
        };
        let until = until.map(|until| until + i64::from(raised));
        Filter { since: Some(since), until, limit: Some(limit), ..Filter::default() }
    }

    /// Whether this page is to show how the relay reads `until`.
    pub(super) fn tests_until(&self, ask: Ask) -> bool {
        matches!(ask, Ask::Page { .. }) && self.reading == Reading::Untested && !self.boundary.is_empty()
    }
}
