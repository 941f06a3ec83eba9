//! Saying once that something is away, now and then that it still is, and once that it is back.

use std::fmt::Display;

use crate::clock;

/// Between two words about the same outage.
const AGAIN_MS: u64 = 60_000;

/// One outage after another of what a loop needs, as its log tells of them.
#[derive(Debug, Default)]
pub struct Outage {
    began_ms: Option<u64>,
    said_ms: u64,
    failures: u64,
}

/// What is worth a line.
#[derive(Debug, PartialEq, Eq)]
enum Word {
    First,
    Still { seconds: u64, failures: u64 },
    Nothing,
}

impl Outage {
    /// It failed; `doing` is what goes on once it answers again, as a sentence of the log.
    pub fn failed(&mut self, error: &dyn Display, doing: &str) {
        match self.failed_at(clock::monotonic_ms()) {
            Word::First => tracing::warn!(error = %error, "{doing}"),
            Word::Still { seconds, failures } => {
                tracing::warn!(error = %error, outage.seconds = seconds, outage.failures = failures, "still: {doing}");
            }
            Word::Nothing => tracing::debug!(error = %error, "{doing}"),
        }
    }

    /// It answered; `what` names it.
    pub fn answered(&mut self, what: &str) {
        let failures = self.failures;
        if let Some(seconds) = self.answered_at(clock::monotonic_ms()) {
            tracing::info!(outage.seconds = seconds, outage.failures = failures, "{what} answers again");
        }
    }

    /// Whether the last word was a failure.
    pub const fn is_on(&self) -> bool {
        self.began_ms.is_some()
    }

    fn failed_at(&mut self, now: u64) -> Word {
        self.failures += 1;
        let Some(began) = self.began_ms else {
            (self.began_ms, self.said_ms) = (Some(now), now);
            return Word::First;
        };
        if now.saturating_sub(self.said_ms) < AGAIN_MS {
            return Word::Nothing;
        }
        self.said_ms = now;
        Word::Still { seconds: now.saturating_sub(began) / 1000, failures: self.failures }
    }

    /// How long it was away, if it was.
    fn answered_at(&mut self, now: u64) -> Option<u64> {
        self.failures = 0;
        self.began_ms.take().map(|began| now.saturating_sub(began) / 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_at_its_beginning_once_a_minute_and_at_its_end() {
        let mut outage = Outage::default();
        assert_eq!(outage.answered_at(0), None);
        let said: Vec<Word> =
            (0..300).map(|i| outage.failed_at(i * 500)).filter(|word| *word != Word::Nothing).collect();
        assert_eq!(
            said,
            [
                Word::First,
                Word::Still { seconds: 60, failures: 121 },
                Word::Still { seconds: 120, failures: 241 }
            ]
        );
        assert_eq!(outage.answered_at(150_000), Some(150));
        assert_eq!(outage.failed_at(151_000), Word::First, "the next one is told anew");
    }
}
