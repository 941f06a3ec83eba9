//! Certificates good and bad from an authority of our own, and a relay behind TLS that shows them.

use std::sync::{Arc, Mutex};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::{TestServer, answering, raw_head};
use crate::net::NetConfig;

/// A certificate authority.
pub(crate) struct Authority {
    pub(crate) root: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, or a key that is not its own.
pub(crate) struct Identity {
    pub(crate) leaf: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

fn params(host: &str) -> CertificateParams {
    let mut params = CertificateParams::new([host.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, host);
    params
}

fn key_of(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::try_from(key.serialize_der()).unwrap()
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self::named("Test Root")
    }

    pub(crate) fn named(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, "Test Authority");
        let root = params.self_signed(&key).unwrap().der().to_vec();
        Self { root, issuer: Issuer::new(params, key) }
    }

    /// A certificate for `host`, after `change`.
    pub(crate) fn issue(&self, host: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = params(host);
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Identity { leaf, key: key_of(&key) }
    }

    pub(crate) fn good(&self, host: &str) -> Identity {
        self.issue(host, |_| {})
    }

    pub(crate) fn expired(&self, host: &str) -> Identity {
        self.issue(host, |params| params.not_after = date_time_ymd(2001, 1, 1))
    }

    pub(crate) fn not_yet_valid(&self, host: &str) -> Identity {
        self.issue(host, |params| params.not_before = date_time_ymd(2999, 1, 1))
    }

    /// Trusts this authority besides the public ones.
    pub(crate) fn trusted(&self, config: NetConfig) -> NetConfig {
        NetConfig { trust: vec![self.root.clone()], ..config }
    }
}

impl Identity {
    pub(crate) fn self_signed(host: &str, claims_authority: bool) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = params(host);
        if claims_authority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        Self { leaf: params.self_signed(&key).unwrap().der().clone(), key: key_of(&key) }
    }

    /// The same certificate in the hands of somebody who does not hold its key.
    pub(crate) fn stolen(self) -> Self {
        Self { key: key_of(&KeyPair::generate().unwrap()), ..self }
    }

    /// A server set-up that shows it, of TLS 1.2 only when `old`.
    pub(crate) fn acceptor(self, old: bool) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let signing = provider.key_provider.load_private_key(self.key).unwrap();
        let versions = if old { [&rustls::version::TLS12] } else { [&rustls::version::TLS13] };
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .unwrap()
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

/// What a [`tls_relay`] has met: a line per connection, and one per request that came through it.
pub(crate) type Log = Arc<Mutex<Vec<String>>>;

/// A relay behind TLS: EOSE to every REQ, `http` to every other request, `headers` in its upgrade.
pub(crate) async fn tls_relay(acceptor: TlsAcceptor, headers: &str, http: &str) -> (TestServer, Log) {
    let log = Log::default();
    let (headers, http, met) = (headers.to_owned(), http.to_owned(), Arc::clone(&log));
    let server = TestServer::tcp(move |stream| {
        let (acceptor, headers, http) = (acceptor.clone(), headers.clone(), http.clone());
        let met = Arc::clone(&met);
        async move {
            met.lock().unwrap().push("connection".to_owned());
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let head = raw_head(&mut stream).await;
            let Some(first) = head.lines().next() else { return };
            met.lock().unwrap().push(first.to_owned());
            if let Some(ws) = upgrade(&mut stream, &head, &headers).await {
                answering(ws, |sub, _| vec![format!(r#"["EOSE","{sub}"]"#)]).await;
            } else {
                stream.write_all(http.as_bytes()).await.ok();
                stream.shutdown().await.ok();
            }
        }
    })
    .await;
    (server, log)
}

/// Accepts the upgrade with headers of the test's choice; none when none was asked for.
pub(crate) async fn upgrade<S>(mut stream: S, head: &str, headers: &str) -> Option<WebSocketStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let key = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("sec-websocket-key").then(|| value.trim())
    })?;
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {}\r\n{headers}\r\n",
        derive_accept_key(key.as_bytes())
    );
    stream.write_all(answer.as_bytes()).await.ok()?;
    Some(WebSocketStream::from_raw_socket(stream, Role::Server, None).await)
}
