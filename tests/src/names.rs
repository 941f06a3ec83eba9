//! A name server whose every answer is a data value, and which writes down what it was asked.
//!
//! Why: rebinding, mixed answers, failure and silence must be met on demand; and whether a name ever left this
//! machine can only be said by whoever would have been asked. It shares no code with the product's resolver.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::programs::StateDir;

const A: u16 = 1;
const AAAA: u16 = 28;

/// What is said to one question.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    /// These addresses; none: the name has none of this family.
    Addresses(Vec<IpAddr>),
    /// There is no such name.
    NoName,
    /// The server failed.
    Failure,
    /// Nothing.
    Silence,
}

/// A running name server on loopback; it ends when dropped.
#[derive(Debug)]
pub struct NameServer {
    /// Where it is asked.
    pub address: SocketAddr,
    state: StateDir,
    _tasks: JoinSet<()>,
}

impl NameServer {
    /// Answers by `zone`, see [`serve`].
    ///
    /// # Panics
    /// When no loopback port can be bound.
    pub async fn start(zone: &str) -> Self {
        let state = StateDir::new("names");
        std::fs::write(state.path.join("zone"), zone).expect("a private file can be written");
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a loopback port can be bound");
        let address = socket.local_addr().expect("a bound socket has an address");
        let folder = state.path.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { serve(&socket, &folder).await });
        Self { address, state, _tasks: tasks }
    }

    /// Every name it was asked for and the type, in order.
    pub fn asked(&self) -> Vec<String> {
        heard(&self.state.path, "dns")
    }
}

/// Answers questions by the file `zone` in `folder`, read anew for each, and appends each to `journal` there.
///
/// A line of a zone is a name, what is said of its A and what of its AAAA records, between blanks. Successive answers
/// stand between `/`, the last is repeated. An answer is addresses between commas, or `none`, `nx`, `fail`, `mute`.
/// No answer may be remembered. A name that has no line does not exist; a last line for `*` is all others'.
pub async fn serve(socket: &UdpSocket, folder: &Path) {
    let mut before: BTreeMap<(String, u16), usize> = BTreeMap::new();
    let mut packet = [0; 1_500];
    while let Ok((size, from)) = socket.recv_from(&mut packet).await {
        let Some((name, kind, end)) = question(&packet[..size]) else { continue };
        note(folder, &format!("dns {name} {}", word(kind)));
        let zone = std::fs::read_to_string(folder.join("zone")).unwrap_or_default();
        let times = before.entry((name.clone(), kind)).or_default();
        let said = look_up(&zone, &name, kind, *times);
        *times += 1;
        if let Some(answer) = answer(&packet[..end], &said) {
            socket.send_to(&answer, from).await.ok();
        }
    }
}

/// Appends a line to the journal of `folder`.
pub(crate) fn note(folder: &Path, line: &str) {
    let file = std::fs::File::options().create(true).append(true).open(journal(folder));
    file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
        .expect("the journal can be written");
}

/// What the journal of `folder` has of this word, in order.
pub(crate) fn heard(folder: &Path, word: &str) -> Vec<String> {
    let text = std::fs::read_to_string(journal(folder)).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.filter(|(first, _)| *first == word).map(|(_, rest)| rest.to_owned()).collect()
}

fn journal(folder: &Path) -> PathBuf {
    folder.join("journal")
}

/// The type in words.
fn word(kind: u16) -> String {
    match kind {
        A => "A".to_owned(),
        AAAA => "AAAA".to_owned(),
        other => other.to_string(),
    }
}

fn look_up(zone: &str, name: &str, kind: u16, times: usize) -> Said {
    let mut lines = zone.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let Some(line) = lines.find(|line| line.first().is_some_and(|first| [name, "*"].contains(first))) else {
        return Said::NoName;
    };
    let column = if kind == AAAA { 2 } else { 1 };
    let answers: Vec<&str> = line.get(column).copied().unwrap_or("none").split('/').collect();
    match (answers[times.min(answers.len() - 1)], kind) {
        ("nx", _) => Said::NoName,
        ("fail", _) => Said::Failure,
        ("mute", _) => Said::Silence,
        (addresses, A | AAAA) if addresses != "none" => Said::Addresses(
            addresses.split(',').map(|text| text.parse().expect("the zone has addresses")).collect(),
        ),
        _ => Said::Addresses(Vec::new()),
    }
}

/// Name in lower case without the last dot, type, and where the question ends in the packet.
fn question(packet: &[u8]) -> Option<(String, u16, usize)> {
    let mut at = 12;
    let mut labels: Vec<String> = Vec::new();
    loop {
        let length = usize::from(*packet.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(packet.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]);
    (packet.len() >= at + 4).then(|| (labels.join("."), kind, at + 4))
}

/// The answer to a packet cut after its one question; none: silence.
fn answer(asked: &[u8], said: &Said) -> Option<Vec<u8>> {
    let (code, addresses): (u8, &[IpAddr]) = match said {
        Said::Addresses(addresses) => (0, addresses),
        Said::NoName => (3, &[]),
        Said::Failure => (2, &[]),
        Said::Silence => return None,
    };
    let mut packet = asked.to_vec();
    // An answer, with recursion wished for and to be had.
    packet[2] = 0x81;
    packet[3] = 0x80 | code;
    // One question, so many answers, nothing beside.
    packet[4..12].copy_from_slice(&[0, 1, 0, u8::try_from(addresses.len()).ok()?, 0, 0, 0, 0]);
    for address in addresses {
        let (kind, bytes) = match address {
            IpAddr::V4(ip) => (A, ip.octets().to_vec()),
            IpAddr::V6(ip) => (AAAA, ip.octets().to_vec()),
        };
        // The name of the question, by a pointer to it; class IN; 0 seconds to live.
        packet.extend([0xc0, 12]);
        packet.extend(kind.to_be_bytes());
        packet.extend([0, 1, 0, 0, 0, 0, 0, u8::try_from(bytes.len()).ok()?]);
        packet.extend(bytes);
    }
    Some(packet)
}
