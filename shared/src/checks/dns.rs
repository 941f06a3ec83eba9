//! What DNS says of the relay's name, as a document that changes only when the zone does.
//!
//! Lists are sorted and the time to live is left out, or every check would make a new document.
//! An answer for one family only makes none: the other is not known to be empty.

use serde_json::json;

use super::{CheckKind, CheckSpec, Observation};
use crate::models::MetadataType;
use crate::net::DnsAnswer;

pub(super) const SPEC: CheckSpec = CheckSpec {
    name: "dns",
    document: Some(MetadataType::Nip66Dns),
    applies: |url| !url.network().is_overlay() && url.ip().is_none(),
};

/// Judges the one resolution of the run; there is no I/O of its own.
pub(super) fn judge(answer: &DnsAnswer) -> Observation {
    if !answer.is_complete() {
        return Observation {
            detail: "only one address family was answered".to_owned(),
            ..Observation::ok(CheckKind::Dns, None)
        };
    }
    let data = json!({
        "dns_ips": answer.v4(),
        "dns_ips_v6": answer.v6(),
        "dns_cname": answer.cname().first(),
    });
    Observation::documented(CheckKind::Dns, &data)
}
