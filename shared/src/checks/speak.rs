//! What else is asked on the WebSocket of a look, once the read probe is over: what the relay can do, and whether
//! it takes an event.
//!
//! The read probe itself stays anonymous, so that what is said of reading is true for everybody; our key comes into
//! play only here.

use crate::models::{Claims, Measured, Reason};
use crate::nips::{InfoView, Keys, claimed, speaks_of_filter};
use crate::relay::{ProbeVerdict, RelaySocket, Work, WriteProbe};

/// Most bits of proof of work done unless configured: a second of one core, about.
const POW_MAX: u32 = 16;

/// What is asked beyond reading. By default nothing.
#[derive(Debug, Clone)]
pub struct Speak {
    /// Our key.
    pub identity: Option<Keys>,
    /// Whether relays that ask who we are (NIP-42) are told.
    pub auth: bool,
    /// Whether to find out what the relay can do.
    pub survey: bool,
    /// Whether to publish an ephemeral event; needs a key.
    pub write: bool,
    /// Most bits of proof of work done for it.
    pub pow_max: u32,
}

impl Default for Speak {
    fn default() -> Self {
        Self { identity: None, auth: false, survey: false, write: false, pow_max: POW_MAX }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Spoken {
    /// What the relay's document claims of what is measured; none without a document.
    pub claims: Option<Claims>,
    /// What was measured, if anything was to be.
    pub measured: Option<Measured>,
    /// What became of our event, if one was to be published.
    pub write: Option<WriteProbe>,
}

impl Speak {
    pub(super) fn has_questions(&self, verdict: &ProbeVerdict) -> bool {
        verdict.alive && (self.survey || (self.write && self.identity.is_some()))
    }

    /// Asks on an open relay that spoke Nostr.
    pub(super) async fn ask(
        &self,
        socket: &mut RelaySocket,
        verdict: &ProbeVerdict,
        info: Option<&InfoView>,
        timeout_ms: u64,
    ) -> Spoken {
        if self.auth {
            socket.identify(self.identity.clone());
        }
        let claims = info.map(claimed);
        let required = verdict.reason == Reason::AuthRequired;
        let mut spoken = Spoken::default();
        if self.survey {
            let (mut read, mut reason, mut said) = (verdict.read, verdict.reason, verdict.detail.clone());
            if required && self.auth {
                // The same question again, as somebody.
                let again = socket.probe(timeout_ms).await;
                (read, reason, said) = (again.read, again.reason, again.detail);
            }
            let measured = if lets_us_ask(reason, &said) {
                Box::pin(socket.survey(read, required, claims.as_ref(), timeout_ms)).await
            } else {
                Measured { auth: socket.auth_seen(required), ended: reason, ..Measured::default() }
            };
            spoken.measured = Some(measured);
        }
        if let Some(keys) = self.identity.as_ref().filter(|_| self.write) {
            let asked = claims.as_ref().and_then(|claims| claims.min_pow_difficulty).unwrap_or(0);
            let work = Work { claimed: u32::try_from(asked).unwrap_or(u32::MAX), max: self.pow_max };
            spoken.write = Some(Box::pin(socket.probe_write(keys, work, timeout_ms)).await);
        }
        spoken.claims = claims;
        spoken
    }
}

/// Who did not let us read is asked nothing more, unless it was the filter that displeased.
fn lets_us_ask(reason: Reason, said: &str) -> bool {
    match reason {
        Reason::AuthRequired | Reason::RateLimited => false,
        Reason::Blocked | Reason::Restricted => speaks_of_filter(said),
        _ => true,
    }
}
