//! Whether a WebSocket server is a Nostr relay.
//!
//! Alive means it *spoke Nostr* about our own REQ: EOSE or CLOSED naming our subscription, an EVENT that
//! matches our filter, or an AUTH challenge. NOTICE names no subscription: it counts only when it was
//! read after our REQ, as a well-formed relay frame, and its words are about a request
//! ([`answers_request`]): a server that merely greets is not a relay. Silence,
//! echo, garbage or a bare WebSocket are not relays either.

use super::socket::{Driven, RelaySocket};
use crate::models::{Outcome, Reason};
use crate::net::{DialFailure, Dialer, Target, outcome_of};
use crate::nips::{
    CloseClass, Filter, Limits, PageEnd, ReadSeen, RelayFrame, answers_request, classify, frame,
};

/// The kind asked for: filters without a kind are refused by some relays.
const PROBE_KIND: u16 = 1;
/// Events borne when one was asked for: a relay that ignores `limit` is alive all the same.
const EVENTS_MAX: usize = 32;
/// Bytes borne in one probe.
const BYTES_MAX: u64 = 1024 * 1024;
/// Frames borne that are not about our subscription.
const STRAY_MAX: u32 = 64;

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeVerdict {
    /// Whether it spoke Nostr.
    pub alive: bool,
    /// By what: `eose`, `event`, `closed`, `auth`, `notice`, or empty.
    pub evidence: &'static str,
    /// Coarse result of the read: `ok` only after EOSE.
    pub outcome: Outcome,
    /// Why the read, or the open, did not succeed.
    pub reason: Reason,
    /// A short sentence for people.
    pub detail: String,
    /// Milliseconds to open; none when it did not.
    pub open_ms: Option<u32>,
    /// Milliseconds from REQ to EOSE; none without EOSE.
    pub read_ms: Option<u32>,
    /// What a survey of the relay goes on from.
    pub read: ReadSeen,
}

impl ProbeVerdict {
    /// The verdict when no WebSocket could be opened.
    pub fn unreached(failure: &DialFailure) -> Self {
        Self {
            alive: false,
            evidence: "",
            outcome: failure.outcome,
            reason: failure.reason,
            detail: failure.detail.clone(),
            open_ms: None,
            read_ms: None,
            read: ReadSeen::default(),
        }
    }

    /// Whether the failure is ours and says nothing about the relay.
    pub const fn is_ours(&self) -> bool {
        self.reason.is_ours()
    }
}

/// Opens a WebSocket, probes it ([`RelaySocket::probe`]), and closes it.
pub async fn speaks_nostr(dialer: &Dialer, target: &Target, timeout_ms: u64) -> ProbeVerdict {
    match RelaySocket::open(dialer, target).await {
        Ok(socket) => socket.probe_and_part(timeout_ms).await,
        Err(failure) => ProbeVerdict::unreached(&failure),
    }
}

impl RelaySocket {
    /// [`RelaySocket::probe`] on a connection that is of no use after that.
    pub async fn probe_and_part(mut self, timeout_ms: u64) -> ProbeVerdict {
        self.part();
        let verdict = self.probe(timeout_ms).await;
        self.close().await;
        verdict
    }

    /// Asks for one note and judges what comes back. Ends after `timeout_ms` of silence, and after twice
    /// that in any case.
    pub async fn probe(&mut self, timeout_ms: u64) -> ProbeVerdict {
        let filter = Filter { kinds: vec![PROBE_KIND], limit: Some(1), ..Filter::default() };
        let limits = Limits {
            idle_ms: timeout_ms,
            total_ms: timeout_ms.saturating_mul(2),
            max_events: EVENTS_MAX,
            max_bytes: BYTES_MAX,
            max_stray_frames: STRAY_MAX,
        };
        let mut driven = Box::pin(self.drive(filter, limits, |sub, text| !is_greeting(sub, text))).await;
        // Who says why and hangs up has answered all the same.
        if driven.page.end == PageEnd::Disconnected
            && let Some(message) = driven.refusal.take()
        {
            driven.page.end = PageEnd::Notice { message };
        }
        judge(&driven, self.open_ms())
    }
}

fn judge(driven: &Driven, open_ms: u32) -> ProbeVerdict {
    let page = &driven.page;
    let evidence = match &page.end {
        PageEnd::Eose { .. } => "eose",
        _ if !page.events.is_empty() => "event",
        PageEnd::Closed { .. } => "closed",
        PageEnd::Auth => "auth",
        _ if driven.saw_auth => "auth",
        PageEnd::Notice { .. } => "notice",
        _ => "",
    };
    let reason = match (&page.end, evidence) {
        // A challenge alone says who is known here, and not that who is unknown may not read: many relays greet by one.
        (PageEnd::Eose { .. }, _) => Reason::None,
        // Who greets, or says what ails it, speaks Nostr so far, and is no fake.
        (PageEnd::Timeout { .. }, "") if driven.frames == driven.notices => Reason::Silent,
        (PageEnd::Timeout { .. } | PageEnd::Violation | PageEnd::TooMany, "") => Reason::NotNostr,
        (PageEnd::Notice { message }, _) => refused(message),
        (end, _) => end.reason(),
    };
    let detail = match &page.end {
        PageEnd::Closed { message, .. } | PageEnd::Notice { message } => message.clone(),
        _ => String::new(),
    };
    ProbeVerdict {
        alive: !evidence.is_empty(),
        evidence,
        outcome: outcome_of(reason),
        reason,
        detail: DialFailure::new(reason, detail).detail,
        open_ms: Some(open_ms),
        read_ms: (evidence == "eose").then_some(page.end_ms),
        read: ReadSeen {
            newest: page.facts.seen.first().map(|(second, _)| *second),
            eose: page.end.is_eose(),
            hint: if let PageEnd::Eose { hint } = page.end { hint } else { None },
        },
    }
}

/// What a NOTICE says that refuses; old relay programs have no other way to say it.
fn refused(message: &str) -> Reason {
    match classify(message) {
        CloseClass::AuthRequired => Reason::AuthRequired,
        CloseClass::Restricted => Reason::Restricted,
        CloseClass::RateLimited => Reason::RateLimited,
        CloseClass::Blocked => Reason::Blocked,
        _ => Reason::Notice,
    }
}

/// A NOTICE that does not speak of a request; the session must not take it for an answer.
fn is_greeting(sub: &str, text: &str) -> bool {
    match frame::parse(text) {
        Ok(RelayFrame::Notice { message }) => !answers_request(sub, &message),
        _ => false,
    }
}
