//! One HTTP GET over a dialled stream: no redirect followed unless asked for, and then only on the same machine, no
//! compression accepted, everything capped.
//!
//! What a status or a content type means is for the caller; here only transport and size are judged.

use std::error::Error as StdError;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper::header;
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use reqwest::Url;
use tokio::time::{Instant, timeout_at};

use super::dial::{Dialer, Target};
use super::elapsed_ms;
use super::failure::DialFailure;
use super::seen::value;
use super::stream::Stream;
use crate::clock;
use crate::models::{AddressPolicy, Reason, RelayUrl};

/// Most header lines taken in an answer.
const HEADERS_MAX: usize = 100;

/// Redirects followed where they are, and the longest one.
const HOPS: usize = 3;
const LOCATION_BYTES: usize = 2_048;

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpReply {
    /// The status code; redirects are answers like any other.
    pub status: u16,
    /// `Content-Type`, as sent, shortened.
    pub content_type: Option<String>,
    /// `Server`, as sent, shortened.
    pub server: Option<String>,
    /// `Location`, as sent.
    pub location: Option<String>,
    /// The body, never longer than asked for.
    pub body: Vec<u8>,
    /// Milliseconds from the first packet to the end of the body.
    pub elapsed_ms: u32,
}

impl Dialer {
    /// GETs the relay's own path on a connection of its own, within the network's timeout.
    pub async fn http_get(
        &self,
        target: &Target,
        accept: &str,
        max_bytes: usize,
    ) -> Result<HttpReply, DialFailure> {
        let deadline = self.deadline(target)?;
        self.http_get_by(target, target.url().path_and_query(), accept, max_bytes, deadline).await
    }

    /// The same, led on by a few redirects within the timeout: to other paths of the same host at the same port, or from
    /// plain HTTP to its HTTPS. Every connection goes to the addresses that the guard has passed.
    pub async fn http_get_led(
        &self,
        target: &Target,
        accept: &str,
        max_bytes: usize,
    ) -> Result<HttpReply, DialFailure> {
        let deadline = self.deadline(target)?;
        let (mut target, mut path) = (target.clone(), target.url().path_and_query().to_owned());
        for _ in 0..HOPS {
            let reply = self.http_get_by(&target, &path, accept, max_bytes, deadline).await?;
            match led_to(&reply, &target, &path, &self.config().policy) {
                Some(next) => (target, path) = next,
                None => return Ok(reply),
            }
        }
        self.http_get_by(&target, &path, accept, max_bytes, deadline).await
    }

    async fn http_get_by(
        &self,
        target: &Target,
        path: &str,
        accept: &str,
        max_bytes: usize,
        deadline: Instant,
    ) -> Result<HttpReply, DialFailure> {
        let started = clock::monotonic_ms();
        let request = get_request(target, path, accept, self.user_agent())?;
        let stream = self.connect_by(target, deadline, &mut None).await?;
        let exchange = Box::pin(exchange(stream, request, self.caps().header_bytes, max_bytes));
        match timeout_at(deadline, exchange).await {
            Ok(reply) => Ok(HttpReply { elapsed_ms: elapsed_ms(started), ..reply? }),
            Err(_) => Err(DialFailure::new(Reason::TotalTimeout, "HTTP was not answered in time")),
        }
    }
}

/// Where a redirect leads, if it may be followed.
fn led_to(
    reply: &HttpReply,
    target: &Target,
    path: &str,
    policy: &AddressPolicy,
) -> Option<(Target, String)> {
    if !matches!(reply.status, 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let url = target.url();
    let scheme = if url.is_tls() { "https" } else { "http" };
    let at = Url::parse(&format!("{scheme}://{}{path}", url.authority())).ok()?;
    let to = at.join(reply.location.as_deref()?).ok()?;
    let host = to.host_str().filter(|host| at.host_str() == Some(host))?;
    let next = match (to.scheme(), to.port_or_known_default()) {
        (same, port) if same == scheme && port == at.port_or_known_default() => target.clone(),
        ("https", Some(443)) => target.under(RelayUrl::parse(&format!("wss://{host}"), policy).ok()?),
        _ => return None,
    };
    let query = to.query().map_or_else(String::new, |query| format!("?{query}"));
    Some((next, format!("{}{query}", to.path())))
}

fn get_request(
    target: &Target,
    path: &str,
    accept: &str,
    user_agent: &str,
) -> Result<Request<Empty<Bytes>>, DialFailure> {
    let url = target.url();
    Request::get(path)
        .header(header::HOST, url.authority())
        .header(header::USER_AGENT, user_agent)
        .header(header::ACCEPT, accept)
        .header(header::ACCEPT_ENCODING, "identity")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| DialFailure::new(Reason::HttpInvalid, format!("not a request: {error}")))
}

async fn exchange(
    stream: Stream,
    request: Request<Empty<Bytes>>,
    header_bytes: usize,
    max_bytes: usize,
) -> Result<HttpReply, DialFailure> {
    let (mut sender, connection) = http1::Builder::new()
        .max_headers(HEADERS_MAX)
        .max_buf_size(header_bytes)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| judge(&error))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| judge(&error))?;
        collect(response, max_bytes).await
    };
    tokio::pin!(answer);
    // The connection is driven here and not by a task: dropping this future drops the socket.
    tokio::select! {
        reply = &mut answer => reply,
        _ended = connection => answer.await,
    }
}

async fn collect(response: Response<Incoming>, max_bytes: usize) -> Result<HttpReply, DialFailure> {
    if let Some(coding) = value(response.headers(), header::CONTENT_ENCODING)
        && !coding.eq_ignore_ascii_case("identity")
    {
        return Err(DialFailure::new(Reason::HttpEncoding, coding));
    }
    let status = response.status().as_u16();
    let content_type = value(response.headers(), header::CONTENT_TYPE);
    let server = value(response.headers(), header::SERVER);
    let location = response.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
    let location = location.filter(|location| location.len() <= LOCATION_BYTES).map(str::to_owned);
    let body = match Limited::new(response.into_body(), max_bytes).collect().await {
        Ok(body) => Vec::from(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let detail = format!("more than {max_bytes} bytes");
            return Err(DialFailure::new(Reason::HttpBodyTooLarge, detail));
        }
        Err(error) => return Err(DialFailure::new(Reason::Disconnected, chain(&*error))),
    };
    Ok(HttpReply { status, content_type, server, location, body, elapsed_ms: 0 })
}

/// What broke off is a disconnection; what arrived and is not HTTP (a banner, a huge head) is invalid.
fn judge(error: &hyper::Error) -> DialFailure {
    let broke_off = error.is_incomplete_message()
        || error.is_closed()
        || error.is_canceled()
        || error.source().is_some_and(<dyn StdError>::is::<std::io::Error>);
    let reason = if broke_off { Reason::Disconnected } else { Reason::HttpInvalid };
    DialFailure::new(reason, chain(error))
}

/// The error and its causes in one line; hyper hides the interesting half in the source.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
