//! TLS towards relays: verified against the public authorities and the operator's own, by ring.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::failure::{DialFailure, NetError};
use crate::models::Reason;

/// One client configuration for every relay; `extra` are DER root certificates.
pub(super) fn connector(extra: &[Vec<u8>]) -> Result<TlsConnector, NetError> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for (index, der) in extra.iter().enumerate() {
        roots
            .add(CertificateDer::from(der.as_slice()))
            .map_err(|source| NetError::BadRoot { number: index + 1, source })?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(NetError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // A resumed session would measure another handshake than the one before it.
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The handshake over an open connection; `host` is what the certificate must name.
pub(super) async fn handshake(
    connector: &TlsConnector,
    host: &str,
    ip: Option<IpAddr>,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, DialFailure> {
    let name = match ip {
        Some(ip) => ServerName::IpAddress(ip.into()),
        None => ServerName::try_from(host.to_owned())
            .map_err(|_| DialFailure::new(Reason::TlsFailed, "the host cannot stand in a certificate"))?,
    };
    connector.connect(name, stream).await.map_err(|error| judge(&error))
}

/// A certificate that does not verify is the relay's; anything else is a failed handshake.
fn judge(error: &io::Error) -> DialFailure {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let reason = match inner {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            Reason::TlsInvalid
        }
        _ => Reason::TlsFailed,
    };
    DialFailure::new(reason, error.to_string())
}
