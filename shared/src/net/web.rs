//! HTTP to places that an operator named: lists of relays, webhooks. Nothing a relay says leads here.
//!
//! A list may still be hijacked, so every hop passes the guard of the dial: its URL before anything is sent, and
//! each address its name resolves to, by the same resolver and the same policy. Redirects are walked by our own
//! hand, for reading only. No proxy variable, cookie, compression, or connection kept open.

use std::error::Error as StdError;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, LOCATION};
use reqwest::{Client, RequestBuilder, Response, Url, redirect, retry};
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use tokio::time::{Instant, timeout};

use super::dial::Dialer;
use super::failure::{DialFailure, NetError};
use crate::models::{AddressPolicy, Network, Reason, RelayUrl};

/// Redirects followed; a list that moves more often than that is a loop.
const HOPS_MAX: usize = 3;
/// The longest URL of a hop, bytes.
const URL_BYTES_MAX: usize = 2_048;
/// The longest content type kept.
const TYPE_CHARS: usize = 100;

/// Why nothing came back: a [`DialFailure`] like that of any other connection.
pub type WebFailure = DialFailure;

/// Why a request ended without an answer.
#[derive(Debug)]
pub enum NoReply<T> {
    /// What came back was none, or nothing did.
    Failed(WebFailure),
    /// A machine on the way was not to be dialled now.
    KeptOff(T),
}

impl<T> From<WebFailure> for NoReply<T> {
    fn from(failure: WebFailure) -> Self {
        Self::Failed(failure)
    }
}

/// A whole answer; any status is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebReply {
    /// The status code.
    pub status: u16,
    /// `Content-Type`, as sent, shortened.
    pub content_type: Option<String>,
    /// The body, never longer than asked for.
    pub body: Vec<u8>,
    /// Where it came from in the end.
    pub url: String,
}

/// The guarded client. Cheap to clone; clones share their set-up with each other and with the [`Dialer`].
#[derive(Clone)]
pub struct Web {
    dialer: Dialer,
    client: Client,
    limit: Duration,
}

impl Web {
    /// A client with the policy, the resolver and the roots of `dialer`, and `limit` for a whole request, its
    /// redirects included.
    ///
    /// # Errors
    /// When a root certificate is not one.
    pub fn new(dialer: &Dialer, limit: Duration) -> Result<Self, NetError> {
        let client = Client::builder()
            .tls_backend_preconfigured(tls(&dialer.config().trust)?)
            .dns_resolver(Guarded(dialer.clone()))
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .referer(false)
            .no_proxy()
            .http1_only()
            .pool_max_idle_per_host(0)
            .user_agent(dialer.user_agent())
            .build()
            .map_err(|error| NetError::Web(error.to_string()))?;
        Ok(Self { dialer: dialer.clone(), client, limit })
    }

    /// GETs `url`, following at most three redirects, each checked like the first URL. Before each machine is dialled
    /// `place` is asked with its host and address; what it gives ends the request. What is dialled passes the guard again.
    ///
    /// # Errors
    /// Why there is no answer; a status other than 200 is an answer.
    pub async fn get<T, F>(
        &self,
        url: &str,
        max_bytes: usize,
        place: impl Fn(String, IpAddr) -> F,
    ) -> Result<WebReply, NoReply<T>>
    where
        F: Future<Output = Option<T>>,
    {
        let mut left = self.limit;
        let mut at = self.admit(url)?;
        for _ in 0..=HOPS_MAX {
            let (host, address) = within(&mut left, self.limit, self.machine(&at)).await?;
            if let Some(kept_off) = place(host, address).await {
                return Err(NoReply::KeptOff(kept_off));
            }
            let hop = async {
                let request = self.client.get(at.clone()).header(ACCEPT, "application/json, */*;q=0.1");
                let response = self.send(request).await?;
                match location(&response) {
                    Some(next) => Ok(Hop::To(self.admit(next_hop(&at, &next)?.as_str())?)),
                    None => self.collect(response, &at, max_bytes).await.map(Hop::End),
                }
            };
            match within(&mut left, self.limit, hop).await? {
                Hop::To(next) => at = next,
                Hop::End(reply) => return Ok(reply),
            }
        }
        Err(refused("more than 3 redirects").into())
    }

    /// The machine behind a URL, by the resolver of the dial.
    async fn machine(&self, at: &Url) -> Result<(String, IpAddr), WebFailure> {
        let relay = RelayUrl::parse(
            &format!("wss://{}", at.host_str().unwrap_or_default()),
            &self.dialer.config().policy,
        )
        .map_err(|error| unfit(error.to_string()))?;
        let target = self.dialer.resolve(&relay).await?;
        let address = target.address().ok_or_else(|| unfit("no address".to_owned()))?;
        Ok((relay.host().to_owned(), address))
    }

    /// POSTs a JSON document, with a header more where one is given. A redirect is an answer like any other: what was said to one is not repeated to
    /// another. The status is the answer: of its body what comes is kept, up to `max_bytes`, and none of it fails.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn post_json(
        &self,
        url: &str,
        body: String,
        header: Option<(&'static str, &str)>,
        max_bytes: usize,
    ) -> Result<WebReply, WebFailure> {
        let mut left = self.limit;
        let at = self.admit(url)?;
        let mut response = within(&mut left, self.limit, async {
            let mut request =
                self.client.post(at.clone()).header(CONTENT_TYPE, "application/json").body(body);
            if let Some((name, value)) = header {
                request = request.header(name, value);
            }
            self.send(request).await
        })
        .await?;
        let mut body = Vec::new();
        let reading = async {
            while body.len() < max_bytes
                && let Ok(Some(chunk)) = response.chunk().await
            {
                self.dialer.traffic().receive(Network::Clearnet, chunk.len() as u64);
                body.extend_from_slice(&chunk[..chunk.len().min(max_bytes - body.len())]);
            }
        };
        timeout(left, reading).await.ok();
        Ok(reply(&response, body, &at))
    }

    /// The URL, if its scheme, its host and a literal address in it may be asked.
    fn admit(&self, text: &str) -> Result<Url, WebFailure> {
        admit(text, &self.dialer.config().policy)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, WebFailure> {
        request.header(ACCEPT_ENCODING, "identity").send().await.map_err(|error| judge(&error))
    }

    async fn collect(&self, mut response: Response, at: &Url, max: usize) -> Result<WebReply, WebFailure> {
        let too_large = || DialFailure::new(Reason::HttpBodyTooLarge, format!("more than {max} bytes"));
        if response.content_length().is_some_and(|length| length > max as u64) {
            return Err(too_large());
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| judge(&error))? {
            self.dialer.traffic().receive(Network::Clearnet, chunk.len() as u64);
            if body.len() + chunk.len() > max {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(reply(&response, body, at))
    }
}

fn reply(response: &Response, body: Vec<u8>, at: &Url) -> WebReply {
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    WebReply {
        status: response.status().as_u16(),
        content_type: content_type.map(|text| text.chars().take(TYPE_CHARS).collect()),
        body,
        url: at.to_string(),
    }
}

impl fmt::Debug for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Web")
            .field("dialer", &self.dialer)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

/// Where one request of several leads.
enum Hop {
    To(Url),
    End(WebReply),
}

/// Does `work` in what is `left` of `limit`, and takes what it took from that.
async fn within<T>(
    left: &mut Duration,
    limit: Duration,
    work: impl Future<Output = Result<T, WebFailure>>,
) -> Result<T, WebFailure> {
    let begun = Instant::now();
    // Boxed: the future of a request is large, and callers hold it across awaits.
    let done = timeout(*left, Box::pin(work)).await;
    *left = left.saturating_sub(begun.elapsed());
    done.unwrap_or_else(|_| {
        let why = format!("no whole answer within {} s", limit.as_secs_f32());
        Err(DialFailure::new(Reason::TotalTimeout, why))
    })
}

/// Whether a text could be asked for under `policy`, without asking: for checking a configuration.
///
/// # Errors
/// Why not.
pub fn check_url(text: &str, policy: &AddressPolicy) -> Result<(), WebFailure> {
    admit(text, policy).map(drop)
}

fn admit(text: &str, policy: &AddressPolicy) -> Result<Url, WebFailure> {
    if text.len() > URL_BYTES_MAX {
        return Err(invalid(format!("the URL is longer than {URL_BYTES_MAX} bytes")));
    }
    let url = Url::parse(text).map_err(|error| invalid(format!("not a URL: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(invalid(format!("the scheme is {}, neither http nor https", url.scheme())));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid("the URL carries a user name".to_owned()));
    }
    // The parser of relay URLs knows which names and addresses the policy permits, and which are overlays'.
    let host = url.host_str().unwrap_or_default();
    match RelayUrl::parse(&format!("wss://{host}"), policy) {
        Ok(relay) if relay.network() == Network::Clearnet => Ok(url),
        Ok(relay) => Err(unfit(format!("{host} is a name of {}", relay.network()))),
        Err(error) => Err(unfit(format!("{host}: {error}"))),
    }
}

/// Where a redirect leads; never from https to http.
pub(super) fn next_hop(at: &Url, location: &str) -> Result<Url, WebFailure> {
    let next = at.join(location).map_err(|error| refused(&format!("redirect to no URL: {error}")))?;
    if at.scheme() == "https" && next.scheme() != "https" {
        return Err(refused(&format!("redirect from https to {}", next.scheme())));
    }
    Ok(next)
}

fn location(response: &Response) -> Option<String> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    response.headers().get(LOCATION)?.to_str().ok().map(str::to_owned)
}

fn invalid(detail: String) -> WebFailure {
    DialFailure::new(Reason::HttpInvalid, detail)
}

fn unfit(detail: String) -> WebFailure {
    DialFailure::new(Reason::AddressRefused, detail)
}

fn refused(detail: &str) -> WebFailure {
    DialFailure::new(Reason::HttpStatus, detail.to_owned())
}

/// The one TLS provider, and the roots that the dial trusts.
fn tls(extra: &[Vec<u8>]) -> Result<ClientConfig, NetError> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for (index, der) in extra.iter().enumerate() {
        roots
            .add(CertificateDer::from(der.as_slice()))
            .map_err(|source| NetError::BadRoot { number: index + 1, source })?;
    }
    Ok(ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(NetError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// Names to addresses, all of them permitted or none given out.
struct Guarded(Dialer);

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let dialer = self.0.clone();
        Box::pin(async move {
            let addresses = guarded(&dialer, name.as_str()).await.map_err(Refused)?;
            let sockets = addresses.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(sockets) as Addrs)
        })
    }
}

async fn guarded(dialer: &Dialer, host: &str) -> Result<Vec<IpAddr>, DialFailure> {
    let limit = dialer.config().network(Network::Clearnet).timeout();
    let addresses = dialer.names().lookup(host.trim_end_matches('.'), limit).await?.addresses();
    dialer.guard(&addresses)?;
    Ok(addresses)
}

/// A guard's word on its way through reqwest's errors.
#[derive(Debug)]
struct Refused(DialFailure);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Refused {}

/// What went wrong, from the innermost cause that says so; the URL is left out of the detail.
fn judge(error: &reqwest::Error) -> WebFailure {
    let mut source = error.source();
    let mut words = String::new();
    while let Some(cause) = source {
        if let Some(Refused(failure)) = cause.downcast_ref() {
            return failure.clone();
        }
        let io = cause.downcast_ref::<std::io::Error>();
        let tls = io.and_then(std::io::Error::get_ref).and_then(tls_error);
        if let Some(tls) = tls {
            let other = !matches!(tls, rustls::Error::InvalidCertificate(_));
            return DialFailure::new(
                if other { Reason::TlsFailed } else { Reason::TlsInvalid },
                tls.to_string(),
            );
        }
        if let Some(io) = io
            && io.kind() == std::io::ErrorKind::ConnectionRefused
        {
            return DialFailure::new(Reason::ConnectRefused, io.to_string());
        }
        words = cause.to_string();
        source = cause.source();
    }
    let reason = if error.is_connect() {
        Reason::ConnectFailed
    } else if error.is_body() || error.is_decode() {
        Reason::Disconnected
    } else {
        Reason::HttpInvalid
    };
    DialFailure::new(reason, words)
}

/// TLS speaks through errors of I/O, one within the other.
fn tls_error<'a>(cause: &'a (dyn StdError + Send + Sync + 'static)) -> Option<&'a rustls::Error> {
    match cause.downcast_ref::<std::io::Error>() {
        Some(io) => io.get_ref().and_then(tls_error),
        None => cause.downcast_ref(),
    }
}
