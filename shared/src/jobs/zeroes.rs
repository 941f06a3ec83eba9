//! Every counter of the jobs begins at zero: a rate sees its first rise, and a board shows that nothing went wrong.

use crate::checks::CheckKind;
use crate::jobs::egress::Standing;
use crate::models::{EventError, Network, Outcome, Unkept};
use crate::telemetry::{Labels, Metrics};

/// What becomes of events beside what is not kept or refused.
const FATES: [&str; 4] = ["new", "known", "skipped", "forged_known"];

/// Begins the counters of a process that runs jobs on these networks.
pub fn begin_counters(metrics: &Metrics, networks: &[Network]) {
    let fates =
        FATES.into_iter().chain(EventError::WORDS).chain(Unkept::ALL.iter().map(|class| class.as_str()));
    for fate in fates {
        metrics.events_received.get_or_create(&Labels::new("", "", fate)).inc_by(0);
    }
    for kind in CheckKind::ALL {
        for outcome in Outcome::ALL {
            metrics.checks.get_or_create(&Labels::new(kind.as_str(), "", outcome.as_str())).inc_by(0);
        }
    }
    for network in networks {
        let labels = Labels::new("", network.as_str(), "");
        metrics.received_bytes.get_or_create(&labels).inc_by(0);
        metrics.sent_bytes.get_or_create(&labels).inc_by(0);
        for standing in Standing::ALL {
            metrics
                .egress_standings
                .get_or_create(&Labels { outcome: standing.as_str(), ..labels.clone() })
                .inc_by(0);
        }
    }
}
