//! WebSocket over a dialled stream: text in, text out, capped.
//!
//! No extension is offered (no permessage-deflate: compression bombs); pings are answered
//! by the protocol machine while reading.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::time::timeout_at;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error as WsError, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::http::{self, Request};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::dial::{Dialer, Target};
use super::elapsed_ms;
use super::failure::DialFailure;
use super::seen::{HttpHead, Seen};
use super::stream::Stream;
use crate::clock;
use crate::models::{Reason, RelayUrl};

/// Read buffer of a connection whose pages are read, allocated at once: a worker holds hundreds.
const READ_BUFFER_BYTES: usize = 16 * 1024;
/// The same where a few frames are expected: clearing a larger one costs a look a thirtieth of its processor time.
const LOOK_BUFFER_BYTES: usize = 4 * 1024;
/// What may wait to be written: a few requests; more means the peer stopped reading.
const WRITE_BUFFER_BYTES: usize = 256 * 1024;
/// The longest binary message that is passed over.
const BINARY_BYTES: usize = 1_024;
/// How long a request, and the goodbye, may take to leave.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_TIMEOUT: Duration = Duration::from_millis(250);

/// An open WebSocket.
#[derive(Debug)]
pub struct WsStream {
    inner: WebSocketStream<Stream>,
}

/// A text message; cloning shares the buffer.
pub type Text = Utf8Bytes;

/// One thing read from a WebSocket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WsRead {
    /// A whole text message, in the buffer it was read into.
    Text(Text),
    /// The connection is over, politely or not.
    Closed,
    /// A frame or message larger than the cap; the connection is of no further use.
    Oversize,
    /// The peer broke the WebSocket protocol; the connection is of no further use.
    Protocol(String),
    /// Binary, ping or pong: nothing for the layers above.
    Ignored,
}

impl Dialer {
    /// Connects and upgrades within the network's timeout. Returns the milliseconds from the first
    /// packet to the end of the upgrade (TCP or proxy, TLS and HTTP; not DNS).
    pub async fn websocket(&self, target: &Target) -> Result<(WsStream, u32), DialFailure> {
        Box::pin(self.websocket_seen(target, &mut Seen::default())).await
    }

    /// [`Dialer::websocket`], leaving in `seen` what showed on the way, also when it fails.
    pub async fn websocket_seen(
        &self,
        target: &Target,
        seen: &mut Seen,
    ) -> Result<(WsStream, u32), DialFailure> {
        self.upgrade(target, seen, LOOK_BUFFER_BYTES).await
    }

    /// [`Dialer::websocket`] with room for what a relay sends page after page.
    pub async fn websocket_for_pages(&self, target: &Target) -> Result<(WsStream, u32), DialFailure> {
        Box::pin(self.upgrade(target, &mut Seen::default(), READ_BUFFER_BYTES)).await
    }

    async fn upgrade(
        &self,
        target: &Target,
        seen: &mut Seen,
        read_buffer: usize,
    ) -> Result<(WsStream, u32), DialFailure> {
        let started = clock::monotonic_ms();
        let request = upgrade_request(target.url(), self.user_agent())?;
        let deadline = self.deadline(target)?;
        let stream = self.connect_by(target, deadline, &mut seen.tls).await?;
        let max = Some(self.caps().message_bytes);
        let config = WebSocketConfig::default()
            .read_buffer_size(read_buffer)
            .write_buffer_size(0)
            .max_write_buffer_size(WRITE_BUFFER_BYTES)
            .max_message_size(max)
            .max_frame_size(max);
        let upgrade = Box::pin(client_async_with_config(request, stream, Some(config)));
        match timeout_at(deadline, upgrade).await {
            Ok(Ok((inner, answer))) => {
                let open_ms = elapsed_ms(started);
                seen.head = Some(HttpHead::new(answer.status(), answer.headers()));
                Ok((WsStream { inner }, open_ms))
            }
            Ok(Err(error)) => {
                if let WsError::Http(answer) = &error {
                    seen.head = Some(HttpHead::new(answer.status(), answer.headers()));
                }
                Err(judge_upgrade(&error))
            }
            Err(_) => {
                let detail = "the WebSocket upgrade was not answered in time";
                Err(DialFailure::new(Reason::TotalTimeout, detail))
            }
        }
    }
}

impl WsStream {
    /// Sends one text message and flushes it; a peer that stopped reading is a disconnection.
    pub async fn send_text(&mut self, text: impl Into<String>) -> Result<(), DialFailure> {
        let message = Message::Text(Utf8Bytes::from(text.into()));
        match tokio::time::timeout(SEND_TIMEOUT, self.inner.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(DialFailure::new(Reason::Disconnected, error.to_string())),
            Err(_) => Err(DialFailure::new(Reason::Disconnected, "the peer stopped reading")),
        }
    }

    /// The next thing the peer sent. Cancelling loses nothing. No deadline of its own.
    pub async fn next(&mut self) -> WsRead {
        match self.inner.next().await {
            Some(Ok(Message::Text(text))) => WsRead::Text(text),
            None | Some(Ok(Message::Close(_))) => WsRead::Closed,
            // Nostr has none; and what follows one shares its memory for as long as it is kept.
            Some(Ok(Message::Binary(bytes))) if bytes.len() > BINARY_BYTES => WsRead::Oversize,
            Some(Ok(_)) => WsRead::Ignored,
            Some(Err(error)) => judge_read(&error),
        }
    }

    /// Says goodbye if that is possible at once, and drops the connection.
    pub async fn close(mut self) {
        tokio::time::timeout(CLOSE_TIMEOUT, self.inner.close(None)).await.ok();
    }
}

fn upgrade_request(url: &RelayUrl, user_agent: &str) -> Result<Request<()>, DialFailure> {
    let scheme = if url.is_tls() { "wss" } else { "ws" };
    let authority = url.authority();
    Request::builder()
        .uri(format!("{scheme}://{authority}{}", url.path_and_query()))
        .header(http::header::HOST, authority)
        .header(http::header::CONNECTION, "Upgrade")
        .header(http::header::UPGRADE, "websocket")
        .header(http::header::SEC_WEBSOCKET_VERSION, "13")
        .header(http::header::SEC_WEBSOCKET_KEY, generate_key())
        .header(http::header::USER_AGENT, user_agent)
        .body(())
        .map_err(|error| DialFailure::new(Reason::HttpInvalid, format!("not a URI: {error}")))
}

fn judge_upgrade(error: &WsError) -> DialFailure {
    match error {
        WsError::Http(response) => {
            let status = response.status().as_u16();
            DialFailure::of_status(refused_by(status), status)
        }
        WsError::Io(error) => DialFailure::new(Reason::Disconnected, format!("during the upgrade: {error}")),
        WsError::Protocol(ProtocolError::HandshakeIncomplete) | WsError::ConnectionClosed => {
            DialFailure::new(Reason::Disconnected, "the connection ended during the upgrade")
        }
        WsError::Capacity(_) | WsError::AttackAttempt => {
            DialFailure::new(Reason::Oversize, "the answer to the upgrade is too long")
        }
        other => DialFailure::new(Reason::WsProtocol, other.to_string()),
    }
}

/// Whom the status of a refused upgrade speaks of: us, or the address.
const fn refused_by(status: u16) -> Reason {
    match status {
        401 => Reason::AuthRequired,
        403 => Reason::Blocked,
        429 => Reason::RateLimited,
        _ => Reason::WsUpgradeRefused,
    }
}

fn judge_read(error: &WsError) -> WsRead {
    match error {
        WsError::Capacity(CapacityError::MessageTooLong { .. }) => WsRead::Oversize,
        WsError::ConnectionClosed
        | WsError::AlreadyClosed
        | WsError::Io(_)
        | WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => WsRead::Closed,
        other => WsRead::Protocol(other.to_string()),
    }
}
