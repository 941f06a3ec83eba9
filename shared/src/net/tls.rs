//! TLS towards relays: verified against the public authorities and the operator's own, by ring.
//!
//! Verification comes between the handshake and the first byte of anything else: the handshake proves that
//! the peer holds the key of the certificate it shows, then the certificate is judged. So a certificate that
//! does not verify is still seen whole, with protocol and cipher, and nothing is sent to its holder.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, ProtocolVersion,
    RootCertStore, SignatureScheme,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::failure::{DialFailure, NetError};
use super::proven;
use crate::clock;
use crate::models::Reason;

/// Most bytes kept of a certificate: the largest in use have a few KiB, thousands of names included.
const LEAF_BYTES_MAX: usize = 64 * 1024;

/// What one TLS handshake showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFacts {
    /// The peer's own certificate, DER, as presented; empty when it is absurdly large.
    pub leaf: Vec<u8>,
    /// Certificates presented, its own included.
    pub chain_len: usize,
    /// As people write it: `TLSv1.3`.
    pub protocol: &'static str,
    /// The cipher suite's registered name.
    pub cipher: String,
    /// Bits of its key.
    pub cipher_bits: u16,
    /// Why the certificate does not verify; none when it does.
    pub distrust: Option<DialFailure>,
}

/// One client set-up for every relay.
pub(super) struct Tls {
    connector: TlsConnector,
    authorities: Arc<WebPkiServerVerifier>,
}

impl Tls {
    /// `extra` are DER root certificates.
    pub(super) fn new(extra: &[Vec<u8>]) -> Result<Self, NetError> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        for (index, der) in extra.iter().enumerate() {
            roots
                .add(CertificateDer::from(der.as_slice()))
                .map_err(|source| NetError::BadRoot { number: index + 1, source })?;
        }
        let mut provider = ring::default_provider();
        // As browsers ask: SHA-256 has instructions of its own nearly everywhere, SHA-384 costs ten times as much.
        provider.cipher_suites.sort_by_key(|suite| cipher(*suite).1);
        provider.signature_verification_algorithms.all = proven::algorithms();
        let provider = Arc::new(provider);
        let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| NetError::Tls(Error::General(error.to_string())))?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(NetError::Tls)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(JudgedLater(Arc::clone(&authorities))))
            .with_no_client_auth();
        // A resumed session would measure another handshake than the one before it.
        config.resumption = Resumption::disabled();
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), authorities })
    }

    /// The handshake over an open connection; `host` is what the certificate must name. What was seen is left
    /// in `seen` also when the certificate is refused. With `insecure` it is seen, and not refused.
    pub(super) async fn handshake(
        &self,
        host: &str,
        ip: Option<IpAddr>,
        insecure: bool,
        stream: TcpStream,
        seen: &mut Option<TlsFacts>,
    ) -> Result<TlsStream<TcpStream>, DialFailure> {
        let name = match ip {
            Some(ip) => ServerName::IpAddress(ip.into()),
            None => ServerName::try_from(host.to_owned())
                .map_err(|_| DialFailure::new(Reason::TlsFailed, "the host cannot stand in a certificate"))?,
        };
        let stream = self.connector.connect(name.clone(), stream).await.map_err(|error| broken(&error))?;
        let facts = self.judge(&name, stream.get_ref().1);
        let distrust = facts.distrust.clone();
        *seen = Some(facts);
        match distrust {
            Some(failure) if !insecure => Err(failure),
            _ => Ok(stream),
        }
    }

    fn judge(&self, name: &ServerName<'_>, session: &ClientConnection) -> TlsFacts {
        let chain = session.peer_certificates().unwrap_or_default();
        let verified = match chain {
            [] => Err(Error::NoCertificatesPresented),
            [leaf, others @ ..] => {
                self.authorities.verify_server_cert(leaf, others, name, &[], now()).map(drop)
            }
        };
        let leaf = chain.first().map(AsRef::as_ref).filter(|leaf| leaf.len() <= LEAF_BYTES_MAX);
        let leaf = leaf.unwrap_or_default();
        let (cipher, cipher_bits) = session.negotiated_cipher_suite().map(cipher).unwrap_or_default();
        TlsFacts {
            leaf: leaf.to_vec(),
            chain_len: chain.len(),
            protocol: session.protocol_version().map_or("", protocol),
            cipher,
            cipher_bits,
            distrust: verified.err().map(|error| DialFailure::new(distrust(&error, leaf), error.to_string())),
        }
    }
}

/// Lets every certificate pass the handshake, whose signatures it checks all the same: [`Tls::handshake`]
/// judges the certificate before it hands out the stream.
#[derive(Debug)]
struct JudgedLater(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for JudgedLater {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(clock::unix_now()).unwrap_or(0)))
}

/// A handshake that did not end: a certificate no parser reads is invalid, anything else failed.
fn broken(error: &io::Error) -> DialFailure {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let reason = match inner {
        Some(Error::InvalidCertificate(_) | Error::NoCertificatesPresented) => Reason::TlsInvalid,
        _ => Reason::TlsFailed,
    };
    DialFailure::new(reason, error.to_string())
}

/// Why a certificate does not verify, in the words an operator can act on.
fn distrust(error: &Error, leaf: &[u8]) -> Reason {
    match error {
        Error::InvalidCertificate(error) => match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Reason::TlsExpired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Reason::TlsNotYetValid
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Reason::TlsWrongHost
            }
            // A self-signed certificate that also claims to be an authority is refused as such, not for its issuer.
            CertificateError::UnknownIssuer | CertificateError::Other(_) if self_signed(leaf) => {
                Reason::TlsSelfSigned
            }
            CertificateError::UnknownIssuer => Reason::TlsUnknownIssuer,
            _ => Reason::TlsInvalid,
        },
        _ => Reason::TlsInvalid,
    }
}

fn self_signed(leaf: &[u8]) -> bool {
    x509_parser::parse_x509_certificate(leaf)
        .is_ok_and(|(_, cert)| cert.subject().as_raw() == cert.issuer().as_raw())
}

const fn protocol(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::TLSv1_2 => "TLSv1.2",
        ProtocolVersion::TLSv1_3 => "TLSv1.3",
        _ => "unknown",
    }
}

/// The registered name (rustls marks the suites of 1.3 with a prefix of its own) and the bits of its key.
fn cipher(suite: rustls::SupportedCipherSuite) -> (String, u16) {
    let name = suite.suite().as_str().unwrap_or_default().replacen("TLS13_", "TLS_", 1);
    let bits = if name.contains("AES_128") { 128 } else { 256 };
    (name, bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_have_their_registered_names_and_the_bits_of_their_keys() {
        for suite in ring::ALL_CIPHER_SUITES {
            let (name, bits) = cipher(*suite);
            assert!(name.starts_with("TLS_"), "{name}");
            assert_eq!(bits, if name.contains("128") { 128 } else { 256 }, "{name}");
        }
    }
}
