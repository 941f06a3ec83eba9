//! How far a long command is: a bar redrawn each second on a terminal, else a line now and then.

use std::io::{IsTerminal as _, Write as _};

use serde_json::{Value, json};
use shared::clock;

use crate::output::line;

/// Milliseconds between two bars, and between two lines where nobody watches.
const DRAW_EVERY_MS: u64 = 1_000;
const LINE_EVERY_MS: u64 = 10_000;
/// Characters of the bar.
const WIDTH: u64 = 24;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Bar,
    Lines,
    Json,
}

/// Shows how far it is, now and then.
#[derive(Debug)]
pub(crate) struct Bar {
    mode: Mode,
    began_ms: u64,
    /// What was done before this process began.
    before: u64,
    shown_ms: u64,
    drawn: bool,
}

impl Bar {
    pub(crate) fn new(json: bool, before: u64) -> Self {
        let mode = match (json, std::io::stdout().is_terminal()) {
            (true, _) => Mode::Json,
            (false, true) => Mode::Bar,
            (false, false) => Mode::Lines,
        };
        let began_ms = clock::monotonic_ms();
        Self { mode, began_ms, before, shown_ms: began_ms, drawn: false }
    }

    /// Shows `done` of `total` when it is time to; `detail` is for people and for programs.
    pub(crate) fn show(&mut self, done: u64, total: Option<u64>, detail: impl FnOnce() -> (String, Value)) {
        let now = clock::monotonic_ms();
        let every = if self.mode == Mode::Bar { DRAW_EVERY_MS } else { LINE_EVERY_MS };
        if now < self.shown_ms + every {
            return;
        }
        self.shown_ms = now;
        let (text, value) = detail();
        let left_s = self.left_s(now, done, total);
        let share = total.map(|total| permille(done, total));
        match self.mode {
            Mode::Json => line(
                &json!({ "done": done, "total": total, "left_s": left_s, "progress": value }).to_string(),
            ),
            Mode::Lines => line(&sentence(share, left_s, &text)),
            Mode::Bar => {
                let bar = share.map(|share| format!("[{}] ", bar(share))).unwrap_or_default();
                let whole: String =
                    format!("{bar}{}", sentence(share, left_s, &text)).chars().take(79).collect();
                let mut out = std::io::stdout().lock();
                // A terminal that is gone takes its user with it; the signal says so.
                write!(out, "\r\x1b[K{whole}").and_then(|()| out.flush()).ok();
                self.drawn = true;
            }
        }
    }

    /// Wipes the bar, so that what follows stands alone.
    pub(crate) fn clear(&mut self) {
        if self.drawn {
            let mut out = std::io::stdout().lock();
            write!(out, "\r\x1b[K").and_then(|()| out.flush()).ok();
            self.drawn = false;
        }
    }

    fn left_s(&self, now: u64, done: u64, total: Option<u64>) -> Option<u64> {
        let fresh = done.checked_sub(self.before).filter(|fresh| *fresh > 0)?;
        Some(total?.saturating_sub(done).saturating_mul(now - self.began_ms) / fresh / 1_000)
    }
}

fn permille(done: u64, total: u64) -> u64 {
    done.min(total).saturating_mul(1_000).checked_div(total).unwrap_or(1_000)
}

fn sentence(share: Option<u64>, left_s: Option<u64>, text: &str) -> String {
    let share = share.map(|share| format!("{}.{} %  ", share / 10, share % 10)).unwrap_or_default();
    let left = left_s
        .map(|left| format!("; {:02}:{:02}:{:02} left", left / 3_600, left / 60 % 60, left % 60))
        .unwrap_or_default();
    format!("{share}{text}{left}")
}

fn bar(share: u64) -> String {
    let full = share * WIDTH / 1_000;
    (0..WIDTH).map(|at| if at < full { '█' } else { '·' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_full_only_at_the_end_and_says_what_is_left() {
        assert_eq!(bar(permille(999, 1_000)).chars().filter(|mark| *mark == '█').count(), 23);
        assert_eq!(bar(permille(7, 7)), "█".repeat(24));
        assert_eq!((permille(9, 0), permille(12, 10)), (1_000, 1_000));
        assert_eq!(sentence(Some(425), Some(3_725), "x"), "42.5 %  x; 01:02:05 left");
        assert_eq!(sentence(None, None, "x"), "x");
        let bar = Bar { mode: Mode::Lines, began_ms: 0, before: 100, shown_ms: 0, drawn: false };
        assert_eq!(bar.left_s(10_000, 200, Some(400)), Some(20));
        assert_eq!(bar.left_s(10_000, 100, Some(400)), None);
    }
}
