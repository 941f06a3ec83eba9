//! The mock fleet: thousands of relays in one process of its own, with their own DNS and authority.
//!
//! A relay is a name: our DNS gives each an address of 127.0.0.0/8 in a block of its own, and what the server does
//! is told by the address that was dialled. Real TCP, real TLS handshakes, real upgrades; loopback only.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use futures_util::{SinkExt, StreamExt};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tests::tcp;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

/// Under this name all of them live.
pub(crate) const ZONE: &str = "fleet.test";
/// Longest request head taken.
const HEAD_BYTES: usize = 16 * 1024;
/// The information document of every relay: as long as those in the wild.
const DOCUMENT: &str = r#"{"name":"mock relay","description":"One of many relays of a benchmark. It answers every request in order, keeps one note, and means nothing by it.","pubkey":"79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798","contact":"mailto:nobody@fleet.test","supported_nips":[1,2,4,9,11,12,15,16,20,22,28,33,40],"software":"git+https://fleet.test/mock.git","version":"1.0.0","limitation":{"max_message_length":131072,"max_subscriptions":20,"max_limit":500,"max_subid_length":71,"auth_required":false,"payment_required":false,"restricted_writes":false}}"#;
/// A well-formed note; whether its signature verifies is nobody's concern here.
const NOTE: &str = concat!(
    r#"{"id":"5c83da77af1dec6d7289834998ad7aafbd9e2191396d75ec3cc27f5a77226f36","#,
    r#""pubkey":"f7234bd4c1394dda46d09f35bd384dd30cc552ad5541990f98844fb06676e9ca","#,
    r#""created_at":1700000000,"kind":1,"tags":[],"content":"hi","sig":""#,
    "00000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "000000000000000000000000000000000000000000000000",
    r#""}"#
);

/// What a server does; the second byte of its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conduct {
    /// A relay.
    Honest,
    /// Nobody listens on its port.
    Refusing,
    /// Takes the connection and never says a word.
    Hanging,
    /// Opens the WebSocket and says nothing.
    Mute,
    /// Sends back what it gets.
    Echo,
    /// Answers prose and broken JSON.
    Garbage,
}

impl Conduct {
    const ALL: [Self; 6] =
        [Self::Honest, Self::Refusing, Self::Hanging, Self::Mute, Self::Echo, Self::Garbage];

    const fn letter(self) -> char {
        match self {
            Self::Honest => 'r',
            Self::Refusing => 'x',
            Self::Hanging => 'h',
            Self::Mute => 'm',
            Self::Echo => 'e',
            Self::Garbage => 'g',
        }
    }

    /// 16 second bytes each: 4,096 blocks.
    const fn base(self) -> u8 {
        match self {
            Self::Honest => 16,
            Self::Refusing => 32,
            Self::Hanging => 48,
            Self::Mute => 64,
            Self::Echo => 80,
            Self::Garbage => 96,
        }
    }

    fn of(address: IpAddr) -> Option<Self> {
        let IpAddr::V4(address) = address else { return None };
        let second = address.octets()[1];
        Self::ALL.into_iter().find(|conduct| (conduct.base()..conduct.base() + 16).contains(&second))
    }

    /// The address of the nth server of this conduct: a block of its own.
    fn address(self, n: u16) -> Ipv4Addr {
        let [high, low] = n.to_be_bytes();
        Ipv4Addr::new(127, self.base() + (high & 15), low, 1)
    }
}

/// What the process is told.
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    /// Where it writes its authority and its ports.
    #[arg(long)]
    dir: PathBuf,
}

/// Where a running fleet is found.
#[derive(Debug, Clone)]
pub(crate) struct Fleet {
    pub(crate) dns: SocketAddr,
    pub(crate) authority: PathBuf,
    port: u16,
    closed: u16,
}

impl Fleet {
    /// What the process wrote once it was ready.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Self> {
        let ready: Value = serde_json::from_slice(&std::fs::read(dir.join("ready.json"))?)?;
        let port = |name: &str| ready[name].as_u64().and_then(|port| u16::try_from(port).ok());
        Ok(Self {
            dns: SocketAddr::from(([127, 0, 0, 1], port("dns").context("dns")?)),
            authority: dir.join("authority.pem"),
            port: port("port").context("port")?,
            closed: port("closed").context("closed")?,
        })
    }

    /// The URL of the nth server of a conduct.
    pub(crate) fn url(&self, conduct: Conduct, n: u16) -> String {
        let port = if conduct == Conduct::Refusing { self.closed } else { self.port };
        format!("wss://{}{n}.{ZONE}:{port}", conduct.letter())
    }

    /// A line of a hosts file for it.
    pub(crate) fn hosts_line(conduct: Conduct, n: u16) -> String {
        format!("{} {}{n}.{ZONE}\n", conduct.address(n), conduct.letter())
    }
}

/// Serves until it is killed.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let (authority, acceptor) = identity()?;
    std::fs::write(arguments.dir.join("authority.pem"), authority)?;
    let dns = UdpSocket::bind("127.0.0.1:0").await?;
    let listener = TcpListener::bind("0.0.0.0:0").await?;
    // A port that was free a moment ago; nobody listens on it.
    let closed = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let ready =
        json!({ "dns": dns.local_addr()?.port(), "port": listener.local_addr()?.port(), "closed": closed });
    let half = arguments.dir.join("ready.part");
    std::fs::write(&half, ready.to_string())?;
    std::fs::rename(half, arguments.dir.join("ready.json"))?;
    let mut tasks = JoinSet::new();
    tasks.spawn(names(dns));
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let acceptor = acceptor.clone();
                tasks.spawn(async move { drop(serve(stream, acceptor).await); });
            }
            Some(_) = tasks.join_next() => {}
        }
    }
}

/// An authority (PEM) and a server that it vouches for under every name of the zone.
fn identity() -> anyhow::Result<(String, TlsAcceptor)> {
    let mut root = CertificateParams::new(Vec::new())?;
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.distinguished_name.push(DnType::CommonName, "mock fleet");
    let root_key = KeyPair::generate()?;
    let root_certificate = root.self_signed(&root_key)?;
    let issuer = Issuer::new(root, root_key);
    let mut leaf = CertificateParams::new(vec![format!("*.{ZONE}")])?;
    leaf.distinguished_name.push(DnType::CommonName, ZONE);
    let key = KeyPair::generate()?;
    let certificate = leaf.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)?;
    Ok((root_certificate.pem(), TlsAcceptor::from(Arc::new(config))))
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor) -> anyhow::Result<()> {
    let conduct = Conduct::of(stream.local_addr()?.ip()).context("an address of the fleet")?;
    if conduct == Conduct::Hanging {
        // Held for as long as the other side has the patience.
        let mut stream = stream;
        while stream.read(&mut [0; 1024]).await? > 0 {}
        return Ok(());
    }
    stream.set_nodelay(true)?;
    let Opened::Socket(mut ws) = open(acceptor.accept(stream).await?).await? else { return Ok(()) };
    while let Some(message) = ws.next().await {
        let Message::Text(text) = message? else { continue };
        for answer in answers(conduct, text.as_str()) {
            ws.send(Message::text(answer)).await?;
        }
    }
    Ok(())
}

/// What a connection turned out to be.
pub(crate) enum Opened<S> {
    /// A WebSocket, open.
    Socket(Box<WebSocketStream<S>>),
    /// Somebody who wanted the information document, and has it, or who said nothing.
    Answered,
}

/// Reads the head of a request and answers it.
pub(crate) async fn open<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> anyhow::Result<Opened<S>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < HEAD_BYTES {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(Opened::Answered);
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let field = |name: &str| {
        head.lines().find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let Some(key) = field("sec-websocket-key") else {
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/nostr+json\r\nServer: mock\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{DOCUMENT}",
            DOCUMENT.len()
        );
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        return Ok(Opened::Answered);
    };
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nServer: mock\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        derive_accept_key(key.as_bytes())
    );
    stream.write_all(answer.as_bytes()).await?;
    Ok(Opened::Socket(Box::new(WebSocketStream::from_raw_socket(stream, Role::Server, None).await)))
}

fn answers(conduct: Conduct, text: &str) -> Vec<String> {
    match conduct {
        Conduct::Echo => return vec![text.to_owned()],
        Conduct::Garbage => return vec!["welcome".to_owned(), "{]".to_owned(), "[1,2]".to_owned()],
        Conduct::Honest => {}
        Conduct::Mute | Conduct::Hanging | Conduct::Refusing => return Vec::new(),
    }
    let Ok(Value::Array(frame)) = serde_json::from_str(text) else { return Vec::new() };
    let (verb, sub) = (frame.first().and_then(Value::as_str), frame.get(1).and_then(Value::as_str));
    match (verb, sub) {
        (Some("REQ"), Some(sub)) => {
            let wants = |filter: &Value| {
                let admits = |key: &str, value: Value| {
                    filter[key].as_array().is_none_or(|values| values.contains(&value))
                };
                let time = |key: &str| filter[key].as_i64();
                admits("kinds", json!(1))
                    && filter["ids"].is_null()
                    && filter["authors"].is_null()
                    && time("until").is_none_or(|until| until >= 1_700_000_000)
                    && time("since").is_none_or(|since| since <= 1_700_000_000)
                    && filter["limit"] != json!(0)
            };
            let mut answers = Vec::new();
            if frame.iter().skip(2).any(wants) {
                answers.push(format!(r#"["EVENT","{sub}",{NOTE}]"#));
            }
            answers.push(json!(["EOSE", sub]).to_string());
            answers
        }
        (Some("COUNT"), Some(sub)) => vec![json!(["COUNT", sub, { "count": 1 }]).to_string()],
        (Some(verb), Some(sub)) if verb.starts_with("NEG-") => {
            vec![json!(["NEG-ERR", sub, "unsupported"]).to_string()]
        }
        _ => Vec::new(),
    }
}

/// Answers A questions for the zone, and nothing else with anything.
async fn names(socket: UdpSocket) {
    let mut question = [0; 512];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut question).await else { continue };
        if let Some(answer) = question.get(..length).and_then(answer_name) {
            drop(socket.send_to(&answer, from).await);
        }
    }
}

fn answer_name(question: &[u8]) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(question.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*question.get(at)?, *question.get(at + 1)?]);
    let end = at + 4;
    let name = labels.join(".");
    if name == ZONE {
        return Some(answer_zone(question, kind, end));
    }
    let host = name.strip_suffix(ZONE)?.strip_suffix('.')?;
    let conduct = Conduct::ALL.into_iter().find(|conduct| host.starts_with(conduct.letter()));
    let address = conduct.and_then(|conduct| Some(conduct.address(host.get(1..)?.parse().ok()?)));
    let mut answer = question.get(..2)?.to_vec();
    // An answer with authority; no such name unless it is one of ours.
    answer.extend([0x85, if address.is_some() { 0x80 } else { 0x83 }]);
    let found = u16::from(kind == 1 && address.is_some());
    for count in [1, found, 0, 0] {
        answer.extend(u16::to_be_bytes(count));
    }
    answer.extend(question.get(12..end)?);
    if let (1, Some(address)) = (found, address) {
        answer.extend([0xc0, 12, 0, 1, 0, 1]);
        answer.extend(300_u32.to_be_bytes());
        answer.extend([0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

/// The zone itself has a name server and nothing else.
fn answer_zone(question: &[u8], kind: u16, end: usize) -> Vec<u8> {
    const NS: u16 = 2;
    let mut answer = [&question[..2], &[0x85, 0x80]].concat();
    for count in [1, u16::from(kind == NS), 0, 0] {
        answer.extend(u16::to_be_bytes(count));
    }
    answer.extend(&question[12..end]);
    if kind == NS {
        answer.extend([0xc0, 12, 0, 2, 0, 1]);
        answer.extend(300_u32.to_be_bytes());
        answer.extend([0, 5, 2, b'n', b's', 0xc0, 12]);
    }
    answer
}

/// Waits until the fleet has said where it is.
pub(crate) async fn ready(dir: &Path) -> anyhow::Result<Fleet> {
    for _ in 0..200 {
        if let Ok(fleet) = Fleet::read(dir) {
            tcp::dial(SocketAddr::from(([127, 0, 0, 1], fleet.port))).await?;
            return Ok(fleet);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("the mock fleet did not start within 10 s")
}
