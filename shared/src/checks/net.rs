//! Whose network the relay's addresses are in, by files an operator provides.

use std::net::IpAddr;

use maxminddb::PathElement::Key;
use serde_json::json;

use super::files::{DataFiles, Places, Records};
use super::{CheckKind, CheckSpec, Observation};
use crate::models::MetadataType;

pub(super) const SPEC: CheckSpec = CheckSpec {
    name: "net",
    document: Some(MetadataType::Nip66Net),
    applies: |url| !url.network().is_overlay(),
};

const NUMBER: Places<'_> = &[&[Key("autonomous_system_number")], &[Key("asn")]];
const OWNER: Places<'_> =
    &[&[Key("autonomous_system_organization")], &[Key("as_name")], &[Key("organization")], &[Key("name")]];

/// What the files say of one address.
struct Network {
    number: Option<u32>,
    owner: Option<String>,
    range: Option<String>,
}

/// Looks up the first address of each family; the number is that of v4 where both have one. May wait for a disk.
pub(super) fn judge(files: &DataFiles, addresses: &[IpAddr]) -> Observation {
    let first = |v6: bool| addresses.iter().copied().filter(|ip| ip.is_ipv6() == v6).min();
    let (v4, v6) = (first(false), first(true));
    let look = |address: Option<IpAddr>| address.map(|address| files.look(address, describe));
    let (of_v4, of_v6) = match (look(v4), look(v6)) {
        (None, None) => return Observation::ok(CheckKind::Net, None),
        (Some(Err(skip)), None | Some(Err(_))) | (None, Some(Err(skip))) => {
            return Observation::failed(CheckKind::Net, skip);
        }
        (of_v4, of_v6) => (of_v4.and_then(Result::ok), of_v6.and_then(Result::ok)),
    };
    let owner = of_v4.as_ref().filter(|network| network.number.is_some()).or(of_v6.as_ref());
    let data = json!({
        "net_ip": v4,
        "net_ipv6": v6,
        "net_asn": owner.and_then(|network| network.number),
        "net_asn_org": owner.and_then(|network| network.owner.as_deref()),
        "net_network": of_v4.as_ref().and_then(|network| network.range.as_deref()),
        "net_network_v6": of_v6.as_ref().and_then(|network| network.range.as_deref()),
    });
    Observation::documented(CheckKind::Net, &data)
}

fn describe(records: &Records<'_>) -> Network {
    let written = || {
        let text = records.text(NUMBER)?;
        text.trim_start_matches("AS").parse().ok()
    };
    Network {
        number: records.value::<u32>(NUMBER).or_else(written),
        owner: records.text(OWNER),
        range: records.network(),
    }
}
