//! Brings events of ours to a relay: the driver of a [`Delivery`].

use std::collections::HashSet;

use super::RelaySocket;
use crate::clock;
use crate::models::EventId;
use crate::net::WsRead;
use crate::nips::{CloseClass, Delivery, Parcel, Settled};

/// How many times longer than one answer a whole batch may take.
const TOTAL_TIMES: u64 = 6;

impl RelaySocket {
    /// Sends the events and waits for their OKs, `idle_ms` for each; those refused to who is not authenticated are
    /// sent once more when that could be done (NIP-42). On a spent connection nothing is sent.
    pub async fn deliver(
        &mut self,
        parcels: Vec<Parcel>,
        timid: bool,
        idle_ms: u64,
    ) -> Vec<(EventId, Settled)> {
        let mut answers = self.deliver_once(parcels.clone(), timid, idle_ms).await;
        let asks =
            |answer: &Settled| matches!(answer, Settled::Refused { class: CloseClass::AuthRequired, .. });
        if !answers.iter().any(|(_, answer)| asks(answer)) || !self.authenticate(idle_ms).await {
            return answers;
        }
        let open: HashSet<EventId> = answers
            .iter()
            .filter(|(_, answer)| asks(answer) || *answer == Settled::Unsent)
            .map(|(id, _)| *id)
            .collect();
        answers.retain(|(id, _)| !open.contains(id));
        let again = parcels.into_iter().filter(|parcel| open.contains(&parcel.id)).collect();
        answers.extend(self.deliver_once(again, timid, idle_ms).await);
        answers
    }

    async fn deliver_once(
        &mut self,
        parcels: Vec<Parcel>,
        timid: bool,
        idle_ms: u64,
    ) -> Vec<(EventId, Settled)> {
        let total_ms = idle_ms.saturating_mul(TOTAL_TIMES);
        let mut delivery = Delivery::start(parcels, timid, idle_ms, total_ms, clock::monotonic_ms());
        while self.is_usable() && !delivery.is_over(clock::monotonic_ms()) {
            if let Some(frame) = delivery.next_frame() {
                self.send(frame).await;
                continue;
            }
            match self.read(delivery.deadline_ms()).await {
                Some(WsRead::Text(text)) => {
                    self.auth.on_text(&text);
                    delivery.on_text(clock::monotonic_ms(), &text);
                }
                // Pings count as strays: a flood of them must not outlive the clock, and does not.
                Some(WsRead::Ignored) => delivery.on_text(clock::monotonic_ms(), ""),
                Some(WsRead::Closed | WsRead::Oversize | WsRead::Protocol(_)) => self.spend(),
                None => {}
            }
        }
        delivery.finish()
    }
}
