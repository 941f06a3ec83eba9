//! How long the relay takes to open and to answer a REQ.
//!
//! Read proof is EOSE: an empty relay reads well. Write proof is `OK true`, where writing was wanted.
//! Measurements make no document: `relay_check` holds them, and nip66_rtt is built from it.

use super::{CheckKind, CheckSpec, Observation};
use crate::net::DialFailure;
use crate::relay::{ProbeVerdict, WriteProbe};

pub(super) const SPEC: CheckSpec = CheckSpec { name: "rtt", document: None, applies: |_| true };

pub(super) fn judge(
    verdict: &ProbeVerdict,
    write: Option<&WriteProbe>,
    failure: Option<&DialFailure>,
) -> Observation {
    Observation {
        kind: CheckKind::Rtt,
        outcome: verdict.outcome,
        reason: verdict.reason,
        detail: verdict.detail.clone(),
        rtt_ms: [verdict.open_ms, verdict.read_ms, write.and_then(|write| write.write_ms)],
        document: None,
        status: failure.and_then(|failure| failure.status),
    }
}
