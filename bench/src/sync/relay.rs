//! Honest relays in this process: sorted events, prepared frames, a cap. They cost as little as they can.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

/// An event as it is served.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) id: [u8; 32],
    pub(super) created_at: i64,
    pub(super) kind: u64,
    pub(super) author: String,
    /// The event's JSON.
    pub(super) json: String,
}

/// A relay; it ends when it is dropped.
pub(super) struct Relay {
    pub(super) address: SocketAddr,
    pub(super) items: Vec<Arc<Item>>,
    counts: Arc<Counts>,
    _acceptor: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    bytes: AtomicU64,
    /// Milliseconds from a request to its answer.
    away_ms: AtomicU64,
}

impl Relay {
    /// Serves these, newest first, at most `cap` a request, on the `n`th machine: an address in a block of its own.
    pub(super) async fn start(n: usize, mut items: Vec<Arc<Item>>, cap: usize) -> anyhow::Result<Self> {
        items.sort_by_key(|item| (std::cmp::Reverse(item.created_at), item.id));
        let listener = TcpListener::bind((Ipv4Addr::new(127, 1, u8::try_from(n)?, 1), 0)).await?;
        let address = listener.local_addr()?;
        let counts = Arc::<Counts>::default();
        let (held, counted) = (Arc::new(items.clone()), Arc::clone(&counts));
        let mut acceptor = JoinSet::new();
        acceptor.spawn(async move {
            let mut sessions = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (held, counted) = (Arc::clone(&held), Arc::clone(&counted));
                sessions.spawn(async move { drop(serve(stream, &held, &counted, cap).await) });
            }
        });
        Ok(Self { address, items, counts, _acceptor: acceptor })
    }

    /// Answers so many milliseconds later from now on, as if it were that far away.
    pub(super) fn move_away(&self, away_ms: u64) {
        self.counts.away_ms.store(away_ms, Ordering::SeqCst);
    }

    pub(super) fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// REQs answered, and bytes of text sent, so far.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.counts.requests.load(Ordering::SeqCst), self.counts.bytes.load(Ordering::SeqCst))
    }

    /// The same of all of these.
    pub(super) fn counted(relays: &[Self]) -> (u64, u64) {
        relays.iter().map(Self::counts).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1))
    }
}

async fn serve(stream: TcpStream, items: &[Arc<Item>], counts: &Counts, cap: usize) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut socket = tokio_tungstenite::accept_async(stream).await?;
    while let Some(message) = socket.next().await {
        let Message::Text(text) = message? else { continue };
        let frame: Value = serde_json::from_str(text.as_str())?;
        if frame[0] != "REQ" {
            continue;
        }
        counts.requests.fetch_add(1, Ordering::SeqCst);
        // A timer of no time at all would still take up to a millisecond of those that are near.
        let away_ms = counts.away_ms.load(Ordering::SeqCst);
        if away_ms > 0 {
            tokio::time::sleep(Duration::from_millis(away_ms)).await;
        }
        let sub = frame[1].to_string();
        for item in page(items, &frame[2], cap) {
            let text = format!(r#"["EVENT",{sub},{}]"#, item.json);
            counts.bytes.fetch_add(u64::try_from(text.len())?, Ordering::SeqCst);
            socket.feed(Message::text(text)).await?;
        }
        socket.send(Message::text(json!(["EOSE", frame[1]]).to_string())).await?;
    }
    Ok(())
}

fn page<'a>(items: &'a [Arc<Item>], filter: &'a Value, cap: usize) -> impl Iterator<Item = &'a Arc<Item>> {
    let number = |key: &str, otherwise| filter[key].as_i64().unwrap_or(otherwise);
    let (since, until) = (number("since", 0), number("until", i64::MAX));
    let limit = filter["limit"].as_u64().and_then(|limit| usize::try_from(limit).ok());
    let kinds: Option<HashSet<u64>> =
        filter["kinds"].as_array().map(|kinds| kinds.iter().filter_map(Value::as_u64).collect());
    let authors: Option<HashSet<&str>> =
        filter["authors"].as_array().map(|authors| authors.iter().filter_map(Value::as_str).collect());
    let from = items.partition_point(|item| item.created_at > until);
    items[from..]
        .iter()
        .take_while(move |item| item.created_at >= since)
        .filter(move |item| kinds.as_ref().is_none_or(|kinds| kinds.contains(&item.kind)))
        .filter(move |item| authors.as_ref().is_none_or(|authors| authors.contains(item.author.as_str())))
        .take(limit.unwrap_or(cap).min(cap))
}
