//! The one place where a look at a relay becomes what is published of it.

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::checks::{CheckKind, MonitorReport};
use crate::models::{AddressPolicy, Outcome, Reason, RelayUrl};
use crate::nips::nip66::{DiscoveryFacts, Draft, discovery};

/// A stored document: what the check saw stands under `data`.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

/// Whether a relay may be spoken of: `policy` permits its name and every address of it. Where somebody's own network has
/// relays is nobody else's business.
pub fn may_be_said(url: &RelayUrl, report: &MonitorReport, policy: &AddressPolicy) -> bool {
    RelayUrl::parse(url.as_str(), policy).is_ok() && report.addresses.iter().all(|ip| policy.permits(*ip))
}

/// The event about a relay that this look found alive; nothing for any other, nor for one that may not be spoken of.
pub fn draft_of(url: &RelayUrl, report: &MonitorReport, policy: &AddressPolicy) -> Option<Draft> {
    if !may_be_said(url, report, policy) {
        return None;
    }
    let seen = |kind: CheckKind| report.observations.iter().find(|seen| seen.kind == kind);
    let rtt = seen(CheckKind::Rtt)?;
    let open_ms = rtt.rtt_ms[0].filter(|_| report.up)?;
    let mut fields = Map::new();
    for seen in report.observations.iter().filter(|seen| seen.kind != CheckKind::Nip11) {
        if let Some(Value::Object(data)) =
            seen.document.as_ref().and_then(|document| data(document.canonical()))
        {
            fields.extend(data);
        }
    }
    let document = seen(CheckKind::Nip11).and_then(|seen| seen.document.as_ref());
    let document: Option<Envelope<'_>> =
        document.and_then(|document| serde_json::from_str(document.canonical()).ok());
    Some(discovery(&DiscoveryFacts {
        url,
        open_ms,
        read_ms: rtt.rtt_ms[1],
        write_ms: rtt.rtt_ms[2],
        read_needs_auth: needs_auth(rtt.outcome, report.reason),
        write_refused: report.spoken.write.as_ref().and_then(|write| refused(write.outcome, write.reason)),
        document: document.and_then(|envelope| envelope.data).map(RawValue::get),
        fields: &fields,
        dns_ttl_s: report.dns_ttl_s,
    }))
}

fn data(canonical: &str) -> Option<Value> {
    let envelope: Envelope<'_> = serde_json::from_str(canonical).ok()?;
    serde_json::from_str(envelope.data?.get()).ok()
}

/// A relay that answered a request of nobody in particular does not ask who that is.
const fn needs_auth(outcome: Outcome, reason: Reason) -> Option<bool> {
    match (outcome, reason) {
        (Outcome::Ok, _) => Some(false),
        (_, Reason::AuthRequired) => Some(true),
        _ => None,
    }
}

/// Whether writing has conditions: an event that was taken says no, one refused for what we are says yes.
const fn refused(outcome: Outcome, reason: Reason) -> Option<bool> {
    match (outcome, reason) {
        (Outcome::Ok, _) => Some(false),
        (_, Reason::AuthRequired | Reason::Restricted | Reason::Blocked) => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::checks::{Observation, Spoken};
    use crate::models::{Metadata, MetadataType};

    fn observation(
        kind: CheckKind,
        rtt_ms: [Option<u32>; 3],
        document: Option<(MetadataType, &str)>,
    ) -> Observation {
        Observation {
            kind,
            outcome: Outcome::Ok,
            reason: Reason::None,
            detail: String::new(),
            rtt_ms,
            document: document.map(|(kind, text)| Metadata::new(kind, text).unwrap()),
            status: None,
        }
    }

    fn report(up: bool, open_ms: Option<u32>) -> MonitorReport {
        let nip11 = r#"{"data":{"name":"r","supported_nips":[1]},"logs":{"success":true}}"#;
        let dns = r#"{"data":{"dns_ips":["8.8.8.8"]},"logs":{"success":true}}"#;
        MonitorReport {
            observations: vec![
                observation(CheckKind::Dns, [None; 3], Some((MetadataType::Nip66Dns, dns))),
                observation(CheckKind::Rtt, [open_ms, Some(7), None], None),
                observation(CheckKind::Nip11, [None; 3], Some((MetadataType::Nip11Info, nip11))),
            ],
            up,
            evidence: if up { "eose" } else { "" },
            reason: Reason::None,
            ours: false,
            addresses: Vec::new(),
            info: None,
            tls: None,
            dns_ttl_s: Some(60),
            spoken: Spoken::default(),
            retry_after_s: None,
        }
    }

    fn url() -> RelayUrl {
        RelayUrl::parse("wss://relay.example", &AddressPolicy::public()).unwrap()
    }

    #[test]
    fn a_look_gives_its_times_its_documents_and_what_it_measured() {
        let draft = draft_of(&url(), &report(true, Some(5)), &AddressPolicy::public()).unwrap();
        let tags = serde_json::json!(draft.tags).to_string();
        for tag in [
            r#"["rtt-open","5"]"#,
            r#"["rtt-read","7"]"#,
            r#"["N","1"]"#,
            r#"["dns-ip","8.8.8.8"]"#,
            r#"["dns-ttl","60"]"#,
            r#"["R","!auth"]"#,
        ] {
            assert!(tags.contains(tag), "{tag} in {tags}");
        }
        assert_eq!(draft.content, r#"{"name":"r","supported_nips":[1]}"#, "the document, not its envelope");
    }

    #[test]
    fn a_policy_refusal_is_alive_and_says_so() {
        let mut refused = report(true, Some(5));
        refused.reason = Reason::AuthRequired;
        refused.observations[1].outcome = Outcome::Refused;
        let draft = draft_of(&url(), &refused, &AddressPolicy::public()).unwrap();
        assert!(draft.tags.contains(&vec!["R".to_owned(), "auth".to_owned()]), "{draft:?}");
    }

    #[test]
    fn nothing_is_said_of_a_private_network() {
        let (public, any) = (AddressPolicy::public(), AddressPolicy::any());
        let onion = format!("ws://{}.onion", "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid");
        for (name, addresses, said) in [
            ("wss://relay.example", vec!["8.8.8.8"], true),
            ("wss://relay.example", vec!["8.8.8.8", "10.1.2.3"], false),
            ("wss://relay.example", vec!["fd00::1"], false),
            ("ws://192.168.0.7", vec!["192.168.0.7"], false),
            ("ws://relay.internal", vec!["8.8.8.8"], false),
            (&onion, Vec::new(), true),
        ] {
            let url = RelayUrl::parse(name, &any).unwrap();
            let mut report = report(true, Some(5));
            report.addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
            assert_eq!(draft_of(&url, &report, &public).is_some(), said, "{name} {addresses:?}");
            assert!(draft_of(&url, &report, &any).is_some(), "where that is wanted: {name}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_said_of_a_relay_that_is_not_up(
            open in proptest::option::of(any::<u32>()), reason in 0..Reason::ALL.len(), kept in 0_usize..8,
        ) {
            let mut looked = report(false, open);
            looked.reason = Reason::ALL[reason];
            let mut index = 0;
            looked.observations.retain(|_| { index += 1; kept & (1 << (index - 1)) != 0 });
            prop_assert_eq!(draft_of(&url(), &looked, &AddressPolicy::any()), None);
        }
    }
}
