//! A plain Nostr client: publishes real events to a relay and reads them back.
//!
//! It is written apart from the product's own client on purpose: the two must agree through the relay alone.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::{SinkExt as _, StreamExt as _};
use nostr::event::Event;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use crate::tcp::{authority, dial};

/// How long a relay may stay silent before the kit gives up on it.
const SILENCE: Duration = Duration::from_secs(30);

/// Events sent ahead of their OKs: enough to hide the round trip, few enough for any relay's buffers.
const IN_FLIGHT: usize = 64;

/// Events asked for per REQ: what every relay program in use answers in full.
const PAGE: usize = 500;

/// Pages read at most from one relay; a relay that ignores `until` ends here.
const PAGES_MAX: usize = 10_000;

/// What a relay said to a batch of events.
#[derive(Debug, Default)]
pub struct Published {
    /// Ids (hex) answered with `OK true`.
    pub accepted: BTreeSet<String>,
    /// Messages of each `OK false`.
    pub refused: Vec<String>,
}

/// One REQ's answer.
#[derive(Debug, Default)]
pub struct Answer {
    /// The events for our subscription, as JSON values in the order of arrival.
    pub events: Vec<Value>,
    /// Every other frame, the ending EOSE or CLOSED included.
    pub others: Vec<Value>,
}

impl Answer {
    /// The events' ids, in the order of arrival.
    pub fn ids(&self) -> Vec<&str> {
        self.events.iter().filter_map(|event| event["id"].as_str()).collect()
    }

    /// Whether the answer ended with EOSE.
    pub fn is_eose(&self) -> bool {
        self.others.last().is_some_and(|frame| frame[0] == "EOSE")
    }
}

/// A connection to a relay.
#[derive(Debug)]
pub struct Client {
    socket: WebSocketStream<TcpStream>,
}

impl Client {
    /// Connects to a `ws://address:port/…` URL of this machine.
    pub async fn connect(url: &str) -> anyhow::Result<Self> {
        let authority = authority(url).with_context(|| format!("{url} has no host and port"))?;
        let address: SocketAddr = authority.parse().with_context(|| format!("{url} is not on loopback"))?;
        let stream = dial(address).await.with_context(|| format!("connecting to {url}"))?;
        // Hostile frames are the kit's own: it reads them whole.
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let opened = tokio_tungstenite::client_async_with_config(url, stream, Some(config));
        let (socket, _) = opened.await.with_context(|| format!("upgrading {url}"))?;
        Ok(Self { socket })
    }

    /// Sends one frame of text.
    pub async fn send(&mut self, text: impl Into<String>) -> anyhow::Result<()> {
        self.socket.send(Message::text(text.into())).await.context("sending a frame")
    }

    /// The next frame of text; `None` when the relay has closed.
    pub async fn next_text(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            let next =
                tokio::time::timeout(SILENCE, self.socket.next()).await.context("the relay is silent")?;
            match next {
                Some(Ok(Message::Text(text))) => return Ok(Some(text.as_str().to_owned())),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(None),
                Some(Ok(_)) => {}
            }
        }
    }

    /// Publishes `events`, several in flight, and counts the answers.
    pub async fn publish(&mut self, events: &[Event]) -> anyhow::Result<Published> {
        let mut published = Published::default();
        let mut waiting = events.iter();
        let mut open = 0;
        loop {
            while open < IN_FLIGHT {
                let Some(event) = waiting.next() else { break };
                self.send(format!("[\"EVENT\",{}]", event.as_json())).await?;
                open += 1;
            }
            if open == 0 {
                return Ok(published);
            }
            let text = self.next_text().await?.context("the relay closed before it answered")?;
            let frame: Value = serde_json::from_str(&text).context("a frame that is not JSON")?;
            if frame[0] != "OK" {
                continue;
            }
            open -= 1;
            match (frame[1].as_str(), frame[2].as_bool()) {
                (Some(id), Some(true)) => drop(published.accepted.insert(id.to_owned())),
                _ => published.refused.push(frame[3].as_str().unwrap_or_default().to_owned()),
            }
        }
    }

    /// Sends a REQ and reads until EOSE, CLOSED or the relay's close.
    pub async fn req(&mut self, filter: &Value) -> anyhow::Result<Answer> {
        self.send(json!(["REQ", "kit", filter]).to_string()).await?;
        let mut answer = Answer::default();
        while let Some(text) = self.next_text().await? {
            let mut frame: Value = serde_json::from_str(&text).context("a frame that is not JSON")?;
            if frame[0] == "EVENT" && frame[1] == "kit" {
                answer.events.push(frame[2].take());
                continue;
            }
            let ends = frame[0] == "EOSE" || frame[0] == "CLOSED";
            answer.others.push(frame);
            if ends {
                break;
            }
        }
        if answer.is_eose() {
            self.send(json!(["CLOSE", "kit"]).to_string()).await?;
        }
        Ok(answer)
    }
}

/// Publishes `events` to the relay at `url`.
pub async fn publish(url: &str, events: &[Event]) -> anyhow::Result<Published> {
    Client::connect(url).await?.publish(events).await
}

/// Every id (hex) the relay serves, paged downward by `until`.
///
/// Right for relays whose seconds hold fewer than a page: the kit's own factory makes no others.
pub async fn read_ids(url: &str) -> anyhow::Result<BTreeSet<String>> {
    let mut client = Client::connect(url).await?;
    let mut ids = BTreeSet::new();
    // A bound from the first page on: the Python relay answers a filter of nothing but a limit with nothing,
    // and so it does with an `until` beyond 2037.
    let mut filter = json!({ "limit": PAGE, "until": shared::clock::unix_now() + 86_400 });
    for _ in 0..PAGES_MAX {
        let answer = client.req(&filter).await?;
        if !answer.is_eose() {
            bail!("{url} ended a page with {:?}", answer.others.last());
        }
        let known = ids.len();
        ids.extend(answer.ids().into_iter().map(str::to_owned));
        let oldest = answer.events.iter().filter_map(|event| event["created_at"].as_i64()).min();
        let Some(oldest) = oldest.filter(|_| ids.len() > known) else { return Ok(ids) };
        // One more than the oldest: the Python relay takes `until` as exclusive, against NIP-01.
        filter["until"] = json!(oldest + 1);
    }
    bail!("{url} served more than {PAGES_MAX} pages")
}
