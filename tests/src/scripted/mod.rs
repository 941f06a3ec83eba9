//! A relay on loopback whose every misbehaviour is a data value.
//!
//! Why: what real relays do wrong must be met on demand. It speaks WebSocket and NIP-11 over plain HTTP on one
//! port, and counts what it sees, so that a test asserts on requests made and not only on results. It must not
//! share code with the product's protocol rooms.

mod neg;
mod page;
mod raw;
mod script;
mod session;
mod speech;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub use neg::{Endless, Sets};
pub use raw::Raw;
pub use script::{Answer, Exception, HttpBody, Script, Stored, Writes};
pub use speech::{AuthScript, Balk, Extra, Speech, When};

/// A running scripted relay; it and its connections end when it is dropped.
#[derive(Debug)]
pub struct ScriptedRelay {
    address: SocketAddr,
    shared: Arc<Shared>,
    _acceptor: JoinSet<()>,
}

/// What the relay has seen so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// TCP connections accepted.
    pub connections: u64,
    /// TCP connections open now.
    pub open: u64,
    /// Plain HTTP requests answered.
    pub http_requests: u64,
    /// WebSocket upgrades accepted.
    pub upgrades: u64,
    /// REQ frames received.
    pub reqs: u64,
    /// CLOSE frames received.
    pub closes: u64,
    /// EVENT frames received.
    pub writes: u64,
    /// AUTH frames received.
    pub auths: u64,
    /// COUNT and NEG-OPEN frames received.
    pub extras: u64,
    /// NEG-MSG frames received.
    pub rounds: u64,
    /// EVENT frames sent.
    pub events_sent: u64,
    /// Bytes of frames received.
    pub bytes_in: u64,
    /// Bytes of frames sent.
    pub bytes_out: u64,
    /// Bytes of raw HTTP bodies that went out.
    pub poured: u64,
}

/// What its connections share.
#[derive(Debug)]
struct Shared {
    script: Mutex<Arc<Script>>,
    requests: Mutex<Vec<Value>>,
    sockets: Mutex<Vec<(u64, i64)>>,
    counters: Counters,
}

/// A WebSocket of the relay for as long as it is open.
struct Socket<'a>(&'a Shared);

impl<'a> Socket<'a> {
    fn new(shared: &'a Shared) -> Self {
        let mut sockets = shared.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.push((shared::clock::monotonic_ms(), 1));
        drop(sockets);
        Self(shared)
    }
}

impl Drop for Socket<'_> {
    fn drop(&mut self) {
        self.0
            .sockets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((shared::clock::monotonic_ms(), -1));
    }
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    open: AtomicU64,
    http_requests: AtomicU64,
    upgrades: AtomicU64,
    reqs: AtomicU64,
    closes: AtomicU64,
    writes: AtomicU64,
    auths: AtomicU64,
    extras: AtomicU64,
    rounds: AtomicU64,
    events_sent: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    poured: AtomicU64,
}

impl ScriptedRelay {
    /// Starts on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// When no loopback port can be bound.
    pub async fn start(script: Script) -> Self {
        Self::start_on(0, script).await.expect("a free loopback port can be bound")
    }

    /// Starts on this port of 127.0.0.1.
    pub async fn start_on(port: u16, mut script: Script) -> std::io::Result<Self> {
        newest_first(&mut script.events);
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            script: Mutex::new(Arc::new(script)),
            requests: Mutex::default(),
            sockets: Mutex::default(),
            counters: Counters::default(),
        });
        let mut acceptor = JoinSet::new();
        acceptor.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, _acceptor: acceptor })
    }

    /// `ws://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Replaces the script; a REQ is answered by the script of the moment it comes.
    pub fn set(&self, mut script: Script) {
        newest_first(&mut script.events);
        *lock(&self.shared.script) = Arc::new(script);
    }

    /// When WebSockets were opened (1) and closed (-1), monotonic milliseconds, in order.
    pub fn sockets(&self) -> Vec<(u64, i64)> {
        self.shared.sockets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What it has seen so far.
    pub fn counts(&self) -> Counts {
        let counters = &self.shared.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        Counts {
            connections: get(&counters.connections),
            open: get(&counters.open),
            http_requests: get(&counters.http_requests),
            upgrades: get(&counters.upgrades),
            reqs: get(&counters.reqs),
            closes: get(&counters.closes),
            writes: get(&counters.writes),
            auths: get(&counters.auths),
            extras: get(&counters.extras),
            rounds: get(&counters.rounds),
            events_sent: get(&counters.events_sent),
            bytes_in: get(&counters.bytes_in),
            bytes_out: get(&counters.bytes_out),
            poured: get(&counters.poured),
        }
    }

    /// The first filter of every REQ received, in order.
    pub fn requests(&self) -> Vec<Value> {
        lock(&self.shared.requests).clone()
    }
}

impl Shared {
    fn script(&self) -> Arc<Script> {
        Arc::clone(&lock(&self.script))
    }

    /// Stores a published event; a known one stays once.
    fn store(&self, event: Stored) {
        let mut slot = lock(&self.script);
        if slot.events.iter().any(|known| known.json == event.json) {
            return;
        }
        let script = Arc::make_mut(&mut slot);
        script.events.push(event);
        newest_first(&mut script.events);
    }

    /// Notes a REQ; returns its number, from 1.
    fn note_request(&self, filter: Value) -> u64 {
        lock(&self.requests).push(filter);
        self.counters.reqs.fetch_add(1, Ordering::SeqCst) + 1
    }
}

/// Counts a connection as open for as long as it lives.
struct Open(Arc<Shared>);

impl Open {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.counters.connections.fetch_add(1, Ordering::SeqCst);
        shared.counters.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.counters.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let open = Open::new(&shared);
                connections.spawn(async move {
                    // A client that goes away in mid-sentence is no fault of the script's.
                    drop(session::serve(stream, &open.0).await);
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

fn newest_first(events: &mut [Stored]) {
    events.sort_by_key(|event| std::cmp::Reverse(event.created_at()));
}

/// A poisoned lock only means that another test thread panicked; the data are counters and scripts.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
