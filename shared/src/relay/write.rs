//! Whether a relay takes an event of ours: an ephemeral one, which it must not keep.
//!
//! `OK true` is the write proof; reading it back would prove nothing, for a right relay does not store it. A relay
//! names the proof of work it wants, so both bits and time are bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::socket::RelaySocket;
use crate::clock;
use crate::models::{Event, Outcome, Reason};
use crate::net::{DialFailure, outcome_of};
use crate::nips::{CloseClass, Keys, Question, Reply, classify, pow};

/// The kind written: ephemeral, and the one monitors use.
const WRITE_KIND: u16 = 22_456;
/// What it says, for who reads their relay's log.
const CONTENT: &str = "write probe of a relay monitor";
/// Longest time proof of work may take, in milliseconds.
const WORK_MS_MAX: u64 = 5_000;

/// How much proof of work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Bits asked for beforehand, by the relay's document.
    pub claimed: u32,
    /// Bits done at most.
    pub max: u32,
}

/// What became of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteProbe {
    /// `ok` only after `OK true`.
    pub outcome: Outcome,
    /// Why it was not taken, or not sent.
    pub reason: Reason,
    /// The relay's own words, or ours when nothing was sent.
    pub detail: String,
    /// Milliseconds from EVENT to `OK true`.
    pub write_ms: Option<u32>,
    /// Bits of proof of work it demanded.
    pub pow: Option<u32>,
}

impl WriteProbe {
    fn new(reason: Reason, detail: impl Into<String>, pow: Option<u32>) -> Self {
        let detail = DialFailure::new(reason, detail.into()).detail;
        Self { outcome: outcome_of(reason), reason, detail, write_ms: None, pow }
    }
}

impl RelaySocket {
    /// Publishes one ephemeral event. Work that the relay demands is done once, within bounds.
    pub async fn probe_write(&mut self, keys: &Keys, work: Work, timeout_ms: u64) -> WriteProbe {
        let mut bits = work.claimed;
        loop {
            let demanded = (bits > 0).then_some(bits);
            if bits > work.max {
                let detail = match bits {
                    u32::MAX => "it demands proof of work and does not say how much".to_owned(),
                    bits => format!("it demands {bits} bits of proof of work; {} are done at most", work.max),
                };
                return WriteProbe::new(
                    Reason::PowDemanded,
                    detail,
                    demanded.filter(|bits| *bits < u32::MAX),
                );
            }
            let Some(event) = worked(keys, bits).await else {
                let detail = format!("{bits} bits of proof of work took more than {WORK_MS_MAX} ms");
                return WriteProbe::new(Reason::PowDemanded, detail, demanded);
            };
            let (reply, ms) = self.ask(&Question::Publish(Box::new(event)), timeout_ms).await;
            match reply {
                Reply::Ok { accepted: true, message } => {
                    let probe = WriteProbe::new(Reason::None, message, demanded);
                    return WriteProbe { write_ms: Some(ms), ..probe };
                }
                Reply::Ok { accepted: false, message } => match pow::demanded(&message) {
                    // The second time it only repeats itself, whatever it says.
                    Some(wanted) if bits == work.claimed && wanted > bits => bits = wanted,
                    _ => return WriteProbe::new(refusal(classify(&message)), message, demanded),
                },
                Reply::Notice { class, message } => {
                    let reason = if class == CloseClass::Error { Reason::Notice } else { refusal(class) };
                    return WriteProbe::new(reason, message, demanded);
                }
                Reply::Cut(cut) => return WriteProbe::new(cut.reason(), "", demanded),
                Reply::Flood => return WriteProbe::new(Reason::TooManyFrames, "", demanded),
                _ => return WriteProbe::new(Reason::Silent, "", demanded),
            }
        }
    }
}

/// The event, worked for off the runtime's threads; nothing when the time is up. Dropped, it stops working.
async fn worked(keys: &Keys, bits: u32) -> Option<Event> {
    let (keys, now) = (keys.clone(), clock::unix_now());
    if bits == 0 {
        return pow::mine(&keys, now, WRITE_KIND, &[], CONTENT, 0, || true).ok()?;
    }
    let wanted = StopOnDrop(Arc::new(AtomicBool::new(true)));
    let still = Arc::clone(&wanted.0);
    let until_ms = clock::monotonic_ms() + WORK_MS_MAX;
    let work = tokio::task::spawn_blocking(move || {
        let go_on = || still.load(Ordering::Relaxed) && clock::monotonic_ms() < until_ms;
        pow::mine(&keys, now, WRITE_KIND, &[], CONTENT, bits, go_on)
    });
    work.await.ok()?.ok()?
}

struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

const fn refusal(class: CloseClass) -> Reason {
    match class {
        CloseClass::AuthRequired => Reason::AuthRequired,
        CloseClass::Restricted => Reason::Restricted,
        CloseClass::RateLimited => Reason::RateLimited,
        CloseClass::Blocked => Reason::Blocked,
        CloseClass::Unsupported => Reason::Unsupported,
        CloseClass::InvalidRequest => Reason::InvalidRequest,
        CloseClass::Error => Reason::WriteRefused,
    }
}
