//! Driving a [`Survey`] over an open relay, within a bound.

use super::socket::RelaySocket;
use crate::clock;
use crate::models::{AuthSeen, Claims, Measured, Reason};
use crate::nips::{AuthState, Limits, Probe, ReadSeen, Survey};

/// Longest wait for one answer, in milliseconds: what is not there is silent, and there are seven questions.
const ANSWER_MS_MAX: u64 = 5_000;
/// Longest time for one page, and after which no further request is made.
const PAGE_MS_MAX: u64 = 20_000;
const SURVEY_MS_MAX: u64 = 45_000;
/// Bytes borne in one page.
const BYTES_MAX: u64 = 1024 * 1024;
/// What an earlier page left on the way is passed over.
const STRAY_MAX: u32 = 5_000;

impl RelaySocket {
    /// Finds out what the relay can do, in a few small requests after its read probe (`required`: it asked who
    /// we are).
    pub async fn survey(
        &mut self,
        read: ReadSeen,
        required: bool,
        claimed: Option<&Claims>,
        timeout_ms: u64,
    ) -> Measured {
        let timeout_ms = timeout_ms.min(ANSWER_MS_MAX);
        let until_ms = clock::monotonic_ms() + SURVEY_MS_MAX;
        let mut survey = Survey::new(read, claimed, clock::unix_now());
        while let Some(probe) = survey.next_probe() {
            match probe {
                Probe::Ask(question) => {
                    let (reply, _) = self.ask(&question, timeout_ms).await;
                    survey.on_reply(&reply);
                }
                Probe::Page(filter, max_events) => {
                    let limits = Limits {
                        idle_ms: timeout_ms,
                        total_ms: PAGE_MS_MAX,
                        max_events,
                        max_bytes: BYTES_MAX,
                        max_stray_frames: STRAY_MAX,
                    };
                    let page = self.fetch(filter, limits).await;
                    survey.on_page(&page.facts, &page.end);
                }
            }
            if clock::monotonic_ms() >= until_ms {
                survey.stop(Reason::TotalTimeout);
            }
        }
        survey.finish(self.auth_seen(required))
    }

    /// NIP-42 on this connection, in the words of a record.
    pub fn auth_seen(&self, required: bool) -> AuthSeen {
        match self.auth() {
            AuthState::Accepted => AuthSeen::Accepted,
            AuthState::Refused(_) => AuthSeen::Refused,
            _ if required => AuthSeen::Required,
            AuthState::Challenged | AuthState::Answered => AuthSeen::Offered,
            AuthState::Unasked => AuthSeen::None,
        }
    }
}
