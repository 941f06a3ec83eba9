//! What DNS says of the relay's name, as a document that changes only when the zone does.
//!
//! Lists are sorted and the time to live is left out, or every check would make a new document. An answer
//! for one family only, or silence about the zone, makes none: what is missing is not known to be absent.

use serde_json::json;

use super::{CheckKind, CheckSpec, Observation};
use crate::models::MetadataType;
use crate::net::{DnsAnswer, ZoneFacts};

pub(super) const SPEC: CheckSpec = CheckSpec {
    name: "dns",
    document: Some(MetadataType::Nip66Dns),
    applies: |url| !url.network().is_overlay() && url.ip().is_none(),
};

/// Judges the one resolution of the run and what was asked beside it; there is no I/O of its own.
pub(super) fn judge(answer: &DnsAnswer, zone: Option<&ZoneFacts>) -> Observation {
    let undocumented =
        |why: &str| Observation { detail: why.to_owned(), ..Observation::ok(CheckKind::Dns, None) };
    let Some(zone) = zone.filter(|zone| zone.complete) else {
        return undocumented("the name servers of the zone or of the address did not answer");
    };
    if !answer.is_complete() {
        return undocumented("only one address family was answered");
    }
    let data = json!({
        "dns_ips": answer.v4(),
        "dns_ips_v6": answer.v6(),
        "dns_cname": answer.cname().first(),
        "dns_ns": zone.servers,
        "dns_reverse": zone.reverse,
    });
    Observation::documented(CheckKind::Dns, &data)
}
