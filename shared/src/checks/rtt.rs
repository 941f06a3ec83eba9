//! How long the relay takes to open and to answer a REQ.
//!
//! Read proof is EOSE: an empty relay reads well. Nothing is written to others'
//! relays. Measurements make no document: `relay_check` holds them, and nip66_rtt is built from it.

use super::{CheckKind, CheckSpec, Observation};
use crate::relay::{ProbeVerdict, RelaySocket};

pub(super) const SPEC: CheckSpec = CheckSpec { name: "rtt", document: None, applies: |_| true };

/// Asks for one note and closes.
pub(super) async fn observe(mut socket: RelaySocket, timeout_ms: u64) -> ProbeVerdict {
    let verdict = socket.probe(timeout_ms).await;
    socket.close().await;
    verdict
}

pub(super) fn judge(verdict: &ProbeVerdict) -> Observation {
    Observation {
        kind: CheckKind::Rtt,
        outcome: verdict.outcome,
        reason: verdict.reason,
        detail: verdict.detail.clone(),
        rtt_ms: [verdict.open_ms, verdict.read_ms, None],
        document: None,
    }
}
