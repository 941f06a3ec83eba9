//! Certificates good and bad, from authorities of our own.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

const MADE: &str = "a certificate can be made";

/// A certificate authority.
pub struct Authority {
    /// Its own certificate, DER: what to trust.
    pub root: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate, and a key that should be its own.
pub struct Identity {
    /// The certificate.
    pub leaf: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

fn params(host: &str) -> CertificateParams {
    let mut params = CertificateParams::new([host.to_owned()]).expect(MADE);
    params.distinguished_name.push(DnType::CommonName, host);
    params
}

fn key() -> (KeyPair, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().expect(MADE);
    let der = PrivatePkcs8KeyDer::from(key.serialize_der());
    (key, der.into())
}

impl Authority {
    /// An authority of this name. Two of one name contradict each other.
    pub fn new(name: &str) -> Self {
        let (key, _) = key();
        let mut params = CertificateParams::new([]).expect(MADE);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, "Test Authority");
        let root = params.self_signed(&key).expect(MADE).der().to_vec();
        Self { root, issuer: Issuer::new(params, key) }
    }

    /// A certificate for `host`, after `change`.
    pub fn issue(&self, host: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let (pair, key) = key();
        let mut params = params(host);
        change(&mut params);
        Identity { leaf: params.signed_by(&pair, &self.issuer).expect(MADE).der().clone(), key }
    }

    /// One that verifies.
    pub fn good(&self, host: &str) -> Identity {
        self.issue(host, |_| {})
    }

    /// One whose time ended with the year 2000.
    pub fn expired(&self, host: &str) -> Identity {
        self.issue(host, |params| params.not_after = date_time_ymd(2001, 1, 1))
    }

    /// One whose time begins in 2999.
    pub fn not_yet_valid(&self, host: &str) -> Identity {
        self.issue(host, |params| params.not_before = date_time_ymd(2999, 1, 1))
    }
}

impl Identity {
    /// One that nobody vouches for, which may say of itself that it is an authority.
    pub fn self_signed(host: &str, claims_authority: bool) -> Self {
        let (pair, key) = key();
        let mut params = params(host);
        if claims_authority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        Self { leaf: params.self_signed(&pair).expect(MADE).der().clone(), key }
    }

    /// The same certificate in the hands of somebody who does not hold its key.
    #[must_use]
    pub fn stolen(self) -> Self {
        Self { key: key().1, ..self }
    }

    /// A server that shows it; of TLS 1.2 only when `old`, else of 1.3 only.
    pub fn acceptor(self, old: bool) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let signing = provider.key_provider.load_private_key(self.key).expect(MADE);
        let versions = if old { [&rustls::version::TLS12] } else { [&rustls::version::TLS13] };
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .expect(MADE)
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Always(Arc::new(CertifiedKey::new(vec![self.leaf], signing)))));
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Shows one certificate, whether or not the key is its own.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesServerCert for Always {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}
