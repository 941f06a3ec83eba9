//! HTTP answers that no library would send: byte by byte, without end, not what their head says.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::Shared;

/// A head, and one piece sent again and again.
#[derive(Debug, Clone, Default)]
pub struct Raw {
    /// All before the pieces, the blank line included where there is one.
    pub head: String,
    /// What is sent over and over.
    pub piece: Vec<u8>,
    /// How often.
    pub times: u64,
    /// Before each, milliseconds.
    pub pause_ms: u64,
    /// Whether it answers the upgrade to a WebSocket too.
    pub upgrade: bool,
}

impl Raw {
    /// A document of JSON with this head line, such as `Content-Encoding: gzip`, and this body.
    pub fn document(line: &str, body: Vec<u8>) -> Self {
        let length = body.len();
        let head = format!(
            "HTTP/1.1 200 Scripted\r\nContent-Type: application/nostr+json\r\n{line}\r\nContent-Length: {length}\r\n\r\n"
        );
        Self { head, piece: body, times: 1, ..Self::default() }
    }
}

/// Sends it all, or until the client goes away.
pub(super) async fn pour(stream: &mut TcpStream, raw: &Raw, shared: &Shared) -> anyhow::Result<()> {
    stream.write_all(raw.head.as_bytes()).await?;
    for _ in 0..raw.times {
        // bound: the script's own number of times and milliseconds.
        tokio::time::sleep(Duration::from_millis(raw.pause_ms)).await;
        stream.write_all(&raw.piece).await?;
        shared.counters.poured.fetch_add(raw.piece.len() as u64, Ordering::SeqCst);
    }
    stream.shutdown().await?;
    Ok(())
}
