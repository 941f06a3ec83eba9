//! What the relay's certificate says, and whether it verifies; from the one handshake of the WebSocket.
//!
//! A certificate that does not verify makes its document like any other, with `ssl_valid` false and the
//! reason beside it.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::x509::AttributeTypeAndValue;

use super::{CheckKind, CheckSpec, Observation, clean, unseen};
use crate::models::{MetadataType, Reason};
use crate::net::{DialFailure, TlsFacts};

pub(super) const SPEC: CheckSpec = CheckSpec {
    name: "ssl",
    document: Some(MetadataType::Nip66Ssl),
    applies: |url| url.is_tls() && !url.network().is_overlay(),
};

/// Most names kept of a certificate; shared ones list a hundred.
const NAMES_MAX: usize = 128;

/// There is no I/O of its own.
pub(super) fn judge(facts: Option<&TlsFacts>, failure: Option<&DialFailure>) -> Observation {
    let Some(facts) = facts else { return unseen(CheckKind::Ssl, failure) };
    let Some(data) = describe(facts) else {
        let unreadable = || DialFailure::new(Reason::TlsInvalid, "the certificate cannot be read");
        return Observation::failed(CheckKind::Ssl, facts.distrust.clone().unwrap_or_else(unreadable));
    };
    let observation = Observation::documented(CheckKind::Ssl, &data);
    match &facts.distrust {
        None => observation,
        Some(why) => {
            Observation { document: observation.document, ..Observation::failed(CheckKind::Ssl, why.clone()) }
        }
    }
}

fn describe(facts: &TlsFacts) -> Option<Value> {
    let (_, cert) = x509_parser::parse_x509_certificate(&facts.leaf).ok()?;
    let validity = cert.validity();
    let print: Vec<String> = Sha256::digest(&facts.leaf).iter().map(|byte| format!("{byte:02X}")).collect();
    Some(json!({
        "ssl_valid": facts.distrust.is_none(),
        "ssl_subject_cn": first(cert.subject().iter_common_name()),
        "ssl_issuer": first(cert.issuer().iter_organization()),
        "ssl_issuer_cn": first(cert.issuer().iter_common_name()),
        "ssl_san": names(&cert),
        "ssl_not_before": validity.not_before.timestamp(),
        "ssl_expires": validity.not_after.timestamp(),
        "ssl_serial": hex::encode_upper(cert.raw_serial()),
        "ssl_version": u64::from(cert.version().0) + 1,
        "ssl_fingerprint": format!("SHA256:{}", print.join(":")),
        "ssl_protocol": facts.protocol,
        "ssl_cipher": facts.cipher,
        "ssl_cipher_bits": facts.cipher_bits,
    }))
}

fn first<'a>(mut values: impl Iterator<Item = &'a AttributeTypeAndValue<'a>>) -> Option<String> {
    values.next().and_then(|value| value.as_str().ok()).and_then(clean)
}

/// The host names and addresses it is for, sorted, distinct.
fn names(cert: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = cert.subject_alternative_name() else { return Vec::new() };
    let mut names: Vec<String> = extension
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => clean(name).map(|name| name.to_ascii_lowercase()),
            GeneralName::IPAddress(bytes) => address(bytes),
            _ => None,
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names.truncate(NAMES_MAX);
    names
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(v4).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Outcome;

    #[test]
    fn bytes_that_are_no_certificate_are_invalid_and_make_no_document() {
        for leaf in [Vec::new(), vec![0x30], vec![0xff; 2_000]] {
            let facts = TlsFacts {
                leaf,
                chain_len: 1,
                protocol: "TLSv1.3",
                cipher: String::new(),
                cipher_bits: 256,
                distrust: None,
            };
            let seen = judge(Some(&facts), None);
            assert_eq!((seen.outcome, seen.reason), (Outcome::Invalid, Reason::TlsInvalid));
            assert!(seen.document.is_none());
        }
    }
}
