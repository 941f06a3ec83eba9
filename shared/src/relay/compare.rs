//! Compares our ids with a relay's: the driver of a [`Comparison`].

use super::RelaySocket;
use super::socket::{SUB_BYTES, cut};
use crate::clock;
use crate::models::EventId;
use crate::net::WsRead;
use crate::nips::neg::{Comparison, NegEnd, NegLimits, NegStep};
use crate::nips::{CloseClass, Cut, Filter};

/// What one comparison brought.
#[derive(Debug)]
pub struct Compared {
    /// How it ended.
    pub end: NegEnd,
    /// Bytes of text received.
    pub bytes: u64,
    /// Messages of the relay.
    pub rounds: u32,
}

impl RelaySocket {
    /// Compares `items` with what matches `filter`; once more, when the relay first wants to know who we are
    /// (NIP-42). On a spent connection: cut at once.
    pub async fn compare(
        &mut self,
        filter: &Filter,
        items: &[(i64, EventId)],
        limits: NegLimits,
    ) -> Compared {
        let compared = self.compare_once(filter, items, limits).await;
        let asks = matches!(&compared.end, NegEnd::Refused { class: CloseClass::AuthRequired, .. });
        if !asks || !self.authenticate(limits.answer_ms).await {
            return compared;
        }
        let again = self.compare_once(filter, items, limits).await;
        Compared { bytes: again.bytes + compared.bytes, ..again }
    }

    async fn compare_once(
        &mut self,
        filter: &Filter,
        items: &[(i64, EventId)],
        limits: NegLimits,
    ) -> Compared {
        let sub = clock::random_hex(SUB_BYTES);
        let (mut comparison, opening) = Comparison::start(sub, filter, items, limits, clock::monotonic_ms());
        self.send(opening).await;
        let end = loop {
            if !self.is_usable() {
                break NegEnd::Cut(Cut::Disconnected);
            }
            let step = match self.read(comparison.deadline_ms()).await {
                None => comparison.on_tick(clock::monotonic_ms()),
                Some(WsRead::Text(text)) => {
                    self.auth.on_text(&text);
                    comparison.on_text(clock::monotonic_ms(), &text)
                }
                // Pings count as strays: a flood of them must not outlive the clock, and does not.
                Some(WsRead::Ignored) => comparison.on_text(clock::monotonic_ms(), ""),
                Some(over) => {
                    self.spend();
                    comparison.on_closed(cut(&over))
                }
            };
            match step {
                NegStep::Continue => {}
                NegStep::Send(text) => self.send(text).await,
                NegStep::Done(end) => break end,
            }
        };
        if self.is_usable() && !matches!(end, NegEnd::Unsupported | NegEnd::Refused { .. }) {
            self.send(comparison.farewell()).await;
        }
        Compared { end, bytes: comparison.bytes(), rounds: comparison.rounds() }
    }
}
