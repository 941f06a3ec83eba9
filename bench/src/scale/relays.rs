//! Ten thousand relays in few processes: a relay is an address of 127.0.0.0/8 in a block of its own, with a small archive.
//!
//! Plain WebSockets by address, without TLS and names: what they take of the machine is not to be what is measured. Which
//! events a relay holds is told by its address; every event is on about five of them.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tests::factory::Factory;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::census::{Opened, open};
use crate::process::Process;

/// Second bytes of the relays' addresses begin here.
const BASE: usize = 64;
/// Relays at most: second bytes 64 to 126.
pub(super) const MOST: u16 = 16_000;
/// Events a relay holds.
pub(super) const HELD: usize = 20;
/// Relays that hold an event.
pub(super) const COPIES: usize = 5;
/// Longest until a process has made its events and listens.
const READY: Duration = Duration::from_secs(120);

/// What a process of relays is told.
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    /// Where it writes its port.
    #[arg(long)]
    file: PathBuf,
    /// Relays in all processes together.
    #[arg(long)]
    relays: u16,
    /// The second at which the events end.
    #[arg(long)]
    end: i64,
}

/// An event as it is served.
struct Item {
    created_at: i64,
    kind: u64,
    json: String,
}

/// Processes that each serve every relay, at a port of their own.
pub(super) struct Relays {
    ports: Vec<u16>,
    processes: Vec<Process>,
    dir: PathBuf,
}

impl Relays {
    /// Starts `processes` of them.
    pub(super) async fn start(processes: usize, relays: u16) -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join(format!("bigbrotr-bench-scale-{}", shared::clock::random_hex(6)));
        std::fs::create_dir_all(&dir)?;
        let mut started = Self { ports: Vec::new(), processes: Vec::new(), dir };
        let end = shared::clock::unix_now() - 60;
        let file = |n: usize, dir: &Path| dir.join(format!("port{n}"));
        for n in 0..processes {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("scale-relays").arg("--file").arg(file(n, &started.dir));
            command.args(["--relays", &relays.to_string(), "--end", &end.to_string()]);
            started.processes.push(Process::start(&command)?);
        }
        for n in 0..processes {
            let began = shared::clock::monotonic_ms();
            let port = loop {
                if let Ok(text) = std::fs::read_to_string(file(n, &started.dir)) {
                    break text.trim().parse()?;
                }
                let waited = Duration::from_millis(shared::clock::monotonic_ms() - began);
                ensure!(waited < READY, "the relays did not start within {READY:?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            };
            started.ports.push(port);
        }
        Ok(started)
    }

    /// The nth relay's URL.
    pub(super) fn url(&self, n: u16) -> String {
        format!("ws://{}:{}", address(n), self.ports[usize::from(n) % self.ports.len()])
    }

    pub(super) fn pids(&self) -> impl Iterator<Item = u32> {
        self.processes.iter().map(Process::pid)
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

fn address(n: u16) -> Ipv4Addr {
    let [high, low] = n.to_be_bytes();
    let base = u8::try_from(BASE).unwrap_or(u8::MAX);
    Ipv4Addr::new(127, base + high, low, 1)
}

/// The relay that has this address.
fn relay_at(address: IpAddr) -> Option<usize> {
    let IpAddr::V4(address) = address else { return None };
    let [_, high, low, _] = address.octets();
    Some((usize::from(high).checked_sub(BASE)? << 8) + usize::from(low))
}

/// Serves until it is killed.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let count = usize::from(arguments.relays) * HELD / COPIES;
    let factory = Factory::new(101).ending_at(arguments.end);
    // Newest first.
    let pool: Arc<Vec<Item>> = Arc::new(
        factory
            .events(count)
            .into_iter()
            .map(|event| Item {
                created_at: i64::try_from(event.created_at.as_secs()).unwrap_or(i64::MAX),
                kind: u64::from(event.kind.as_u16()),
                json: event.as_json(),
            })
            .collect(),
    );
    let listener = TcpListener::bind("0.0.0.0:0").await?;
    let half = arguments.file.with_extension("part");
    std::fs::write(&half, listener.local_addr()?.port().to_string())?;
    std::fs::rename(half, &arguments.file)?;
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let pool = Arc::clone(&pool);
                tasks.spawn(async move { drop(serve(stream, &pool).await); });
            }
            Some(_) = tasks.join_next() => {}
        }
    }
}

/// Which events a relay holds: [`HELD`] places of the pool, spread over it.
fn held(relay: usize, pool: usize) -> impl Iterator<Item = usize> {
    let stride = pool / HELD;
    (0..HELD).map(move |k| k * stride + relay % stride)
}

async fn serve(stream: TcpStream, pool: &[Item]) -> anyhow::Result<()> {
    let relay = relay_at(stream.local_addr()?.ip()).context("an address of a relay")?;
    stream.set_nodelay(true)?;
    let Opened::Socket(mut socket) = open(stream).await? else { return Ok(()) };
    while let Some(message) = socket.next().await {
        let Message::Text(text) = message? else { continue };
        let Ok(Value::Array(frame)) = serde_json::from_str(text.as_str()) else { continue };
        let (verb, sub) = (frame.first().and_then(Value::as_str), frame.get(1).and_then(Value::as_str));
        let (Some(verb), Some(sub)) = (verb, sub) else { continue };
        if verb.starts_with("NEG-") {
            socket.send(Message::text(json!(["NEG-ERR", sub, "unsupported"]).to_string())).await?;
        } else if verb == "COUNT" {
            socket.send(Message::text(json!(["COUNT", sub, { "count": HELD }]).to_string())).await?;
        } else if verb == "REQ" {
            let none = Value::Null;
            let filter = frame.get(2).unwrap_or(&none);
            let limit = filter["limit"].as_u64().and_then(|limit| usize::try_from(limit).ok());
            let wanted = held(relay, pool.len()).map(|at| &pool[at]).filter(|item| admits(filter, item));
            for item in wanted.take(limit.unwrap_or(HELD)) {
                socket.feed(Message::text(format!(r#"["EVENT","{sub}",{}]"#, item.json))).await?;
            }
            socket.send(Message::text(json!(["EOSE", sub]).to_string())).await?;
        }
    }
    Ok(())
}

/// By time and kind; whoever asks for ids, authors or tags gets nothing, which no job here does but the survey.
fn admits(filter: &Value, item: &Item) -> bool {
    let time = |key: &str| filter[key].as_i64();
    let kinds = filter["kinds"].as_array();
    let others = filter.as_object().is_some_and(|filter| {
        filter.keys().any(|key| !["since", "until", "limit", "kinds"].contains(&key.as_str()))
    });
    !others
        && time("since").is_none_or(|since| item.created_at >= since)
        && time("until").is_none_or(|until| item.created_at <= until)
        && kinds.is_none_or(|kinds| kinds.contains(&json!(item.kind)))
}
