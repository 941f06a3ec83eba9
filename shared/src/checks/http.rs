//! What the server says of itself in the head of its answer to the upgrade, accepted or refused.

use serde_json::json;

use super::{CheckKind, CheckSpec, Observation, unseen};
use crate::models::MetadataType;
use crate::net::{DialFailure, HttpHead};

pub(super) const SPEC: CheckSpec =
    CheckSpec { name: "http", document: Some(MetadataType::Nip66Http), applies: |_| true };

/// A server that names nothing makes a document that says so. There is no I/O of its own.
pub(super) fn judge(head: Option<&HttpHead>, failure: Option<&DialFailure>) -> Observation {
    let Some(head) = head else { return unseen(CheckKind::Http, failure) };
    let data = json!({ "http_server": head.server, "http_powered_by": head.powered_by });
    Observation::documented(CheckKind::Http, &data)
}
