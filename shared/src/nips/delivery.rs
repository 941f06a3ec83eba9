//! Events of ours brought to one relay over one connection: sent a few ahead, settled by their `OK`.
//!
//! Owns no socket and no clock. Invariants: an event is settled by an OK with its own id and by nothing else; only
//! such an OK prolongs the wait; every event given gets exactly one [`Settled`].

use std::collections::{HashMap, VecDeque};

use super::frame::{self, RelayFrame};
use super::refusal::{CloseClass, classify};
use crate::models::EventId;

/// Events sent ahead of their OKs: enough to hide the round trip, few enough for any relay's buffers.
const AHEAD: usize = 16;
/// Frames borne that settle nothing: greetings, notices, OKs of strangers.
const STRAY_MAX: u32 = 2_000;
/// Refusals in a row, none of them of the event alone, after which the rest is not even tried.
const REFUSALS_MAX: u32 = 8;

/// One event to be brought: its id and its JSON text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel {
    /// The event's id.
    pub id: EventId,
    /// The event, signed.
    pub json: String,
}

/// What became of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// The relay has it, now or from before.
    Accepted {
        /// What it said beside.
        words: String,
    },
    /// The relay does not take it.
    Refused {
        /// Why, sorted.
        class: CloseClass,
        /// What it said.
        words: String,
    },
    /// It was sent and nothing came back; the words of the last NOTICE, if there was one.
    Unanswered {
        /// That NOTICE.
        words: String,
    },
    /// It was not sent: the connection ended, or the relay asked for peace.
    Unsent,
}

/// One connection's work.
#[derive(Debug)]
pub struct Delivery {
    waiting: VecDeque<Parcel>,
    open: HashMap<String, Parcel>,
    answers: Vec<(EventId, Settled)>,
    /// Set while a relay that refused lately is asked about one event before the others.
    timid: bool,
    refused: u32,
    peace: bool,
    notice: String,
    stray: u32,
    idle_ms: u64,
    deadline_ms: u64,
    end_ms: u64,
}

impl Delivery {
    /// Begins; a `timid` one sends its first event alone. Ends after `idle_ms` without an OK of ours, and after
    /// `total_ms` in any case.
    pub fn start(parcels: Vec<Parcel>, timid: bool, idle_ms: u64, total_ms: u64, now_ms: u64) -> Self {
        let end_ms = now_ms.saturating_add(total_ms);
        Self {
            waiting: parcels.into(),
            open: HashMap::new(),
            answers: Vec::new(),
            timid,
            refused: 0,
            peace: false,
            notice: String::new(),
            stray: 0,
            idle_ms,
            deadline_ms: now_ms.saturating_add(idle_ms).min(end_ms),
            end_ms,
        }
    }

    /// The next frame to send, if one may be sent now.
    pub fn next_frame(&mut self) -> Option<String> {
        let most = if self.timid { 1 } else { AHEAD };
        if self.peace || self.open.len() >= most {
            return None;
        }
        let parcel = self.waiting.pop_front()?;
        let text = format!(r#"["EVENT",{}]"#, parcel.json);
        self.open.insert(parcel.id.to_string(), parcel);
        Some(text)
    }

    /// Takes one text message of the connection.
    pub fn on_text(&mut self, now_ms: u64, text: &str) {
        match frame::parse(text) {
            Ok(RelayFrame::Ok { id, accepted, message }) => {
                if let Some(parcel) = self.open.remove(id.as_ref()) {
                    self.deadline_ms = now_ms.saturating_add(self.idle_ms).min(self.end_ms);
                    self.settle(parcel.id, accepted, message);
                    return;
                }
            }
            Ok(RelayFrame::Notice { message }) => self.notice = message,
            _ => {}
        }
        self.stray = self.stray.saturating_add(1);
    }

    fn settle(&mut self, id: EventId, accepted: bool, words: String) {
        // One that it has already is one that it has, whatever flag comes with it.
        if accepted || words.trim_start().to_ascii_lowercase().starts_with("duplicate") {
            (self.timid, self.refused) = (false, 0);
            self.answers.push((id, Settled::Accepted { words }));
            return;
        }
        let class = classify(&words);
        self.refused += 1;
        let policy = matches!(class, CloseClass::AuthRequired | CloseClass::Restricted | CloseClass::Blocked);
        self.peace |= class == CloseClass::RateLimited
            || (policy && self.timid)
            || (policy && self.refused >= REFUSALS_MAX);
        self.answers.push((id, Settled::Refused { class, words }));
    }

    /// When to call [`Delivery::is_over`] again if nothing arrives.
    pub const fn deadline_ms(&self) -> u64 {
        self.deadline_ms
    }

    /// Whether there is nothing more to wait for.
    pub fn is_over(&self, now_ms: u64) -> bool {
        let idle = self.open.is_empty() && (self.waiting.is_empty() || self.peace);
        idle || self.stray > STRAY_MAX || now_ms >= self.deadline_ms
    }

    /// What became of each event, those without an answer last.
    pub fn finish(mut self) -> Vec<(EventId, Settled)> {
        for (_, parcel) in self.open.drain() {
            self.answers.push((parcel.id, Settled::Unanswered { words: self.notice.clone() }));
        }
        self.answers.extend(self.waiting.drain(..).map(|parcel| (parcel.id, Settled::Unsent)));
        self.answers
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parcels(count: u8) -> Vec<Parcel> {
        (0..count).map(|i| Parcel { id: EventId([i; 32]), json: format!("{{\"n\":{i}}}") }).collect()
    }

    fn id(i: u8) -> String {
        EventId([i; 32]).to_string()
    }

    fn ok(i: u8, accepted: bool, words: &str) -> String {
        format!(r#"["OK","{}",{accepted},"{words}"]"#, id(i))
    }

    fn sent(delivery: &mut Delivery) -> usize {
        std::iter::from_fn(|| delivery.next_frame()).count()
    }

    #[test]
    fn a_few_go_ahead_and_each_ok_lets_the_next_go() {
        let mut delivery = Delivery::start(parcels(20), false, 100, 1_000, 0);
        assert_eq!(delivery.next_frame().as_deref(), Some(r#"["EVENT",{"n":0}]"#));
        assert_eq!(sent(&mut delivery), AHEAD - 1);
        delivery.on_text(50, &ok(3, true, ""));
        assert_eq!((sent(&mut delivery), delivery.deadline_ms()), (1, 150));
        assert!(!delivery.is_over(149) && delivery.is_over(150));
        let answers = delivery.finish();
        assert_eq!(answers.len(), 20);
        assert_eq!(answers[0], (EventId([3; 32]), Settled::Accepted { words: String::new() }));
        assert_eq!(answers.iter().filter(|(_, answer)| *answer == Settled::Unsent).count(), 3);
    }

    #[test]
    fn an_ok_for_another_event_settles_nothing_and_prolongs_nothing() {
        let mut delivery = Delivery::start(parcels(1), false, 100, 1_000, 0);
        sent(&mut delivery);
        delivery.on_text(90, &ok(9, true, ""));
        delivery.on_text(90, r#"["NOTICE","hello"]"#);
        delivery.on_text(90, r#"["OK",1,true,""]"#);
        assert!(!delivery.is_over(99) && delivery.is_over(100));
        assert_eq!(delivery.finish(), [(EventId([0; 32]), Settled::Unanswered { words: "hello".into() })]);
    }

    #[test]
    fn a_duplicate_is_accepted_and_a_second_ok_counts_for_nothing() {
        let mut delivery = Delivery::start(parcels(1), false, 100, 1_000, 0);
        sent(&mut delivery);
        delivery.on_text(1, &ok(0, false, "duplicate: have it"));
        delivery.on_text(2, &ok(0, false, "blocked: no"));
        assert!(delivery.is_over(2));
        let words = "duplicate: have it".to_owned();
        assert_eq!(delivery.finish(), [(EventId([0; 32]), Settled::Accepted { words })]);
    }

    #[test]
    fn a_relay_that_wants_peace_gets_it() {
        let mut delivery = Delivery::start(parcels(30), false, 100, 1_000, 0);
        sent(&mut delivery);
        delivery.on_text(1, &ok(0, false, "rate-limited: slow down"));
        assert_eq!(sent(&mut delivery), 0);
        (1..16).for_each(|i| delivery.on_text(2, &ok(i, true, "")));
        assert!(delivery.is_over(2));
        assert_eq!(delivery.finish().iter().filter(|(_, answer)| *answer == Settled::Unsent).count(), 14);
    }

    #[test]
    fn a_relay_that_refused_lately_is_asked_about_one_event_first() {
        let mut refusing = Delivery::start(parcels(5), true, 100, 1_000, 0);
        assert_eq!(sent(&mut refusing), 1);
        refusing.on_text(1, &ok(0, false, "blocked: not on the list"));
        assert_eq!((sent(&mut refusing), refusing.is_over(1)), (0, true));
        let mut taking = Delivery::start(parcels(5), true, 100, 1_000, 0);
        sent(&mut taking);
        taking.on_text(1, &ok(0, true, ""));
        assert_eq!(sent(&mut taking), 4);
        // A fault of one event says nothing of the others.
        let mut picky = Delivery::start(parcels(5), true, 100, 1_000, 0);
        sent(&mut picky);
        picky.on_text(1, &ok(0, false, "invalid: too large"));
        assert_eq!(sent(&mut picky), 1);
    }

    #[test]
    fn a_flood_ends_it_before_the_clock() {
        let mut delivery = Delivery::start(parcels(1), false, 60_000, 60_000, 0);
        sent(&mut delivery);
        (0..=STRAY_MAX).for_each(|_| delivery.on_text(1, "noise"));
        assert!(delivery.is_over(1));
    }

    proptest! {
        #[test]
        fn every_event_gets_exactly_one_answer(
            count in 0_u8..40, timid in any::<bool>(),
            texts in proptest::collection::vec((0_u8..50, any::<bool>(), prop_oneof![
                Just(""), Just("rate-limited: x"), Just("blocked: x"), Just("error: x"), Just("duplicate: x")]), 0..80),
        ) {
            let mut delivery = Delivery::start(parcels(count), timid, 100, 1_000, 0);
            for (now, (i, accepted, words)) in texts.iter().enumerate() {
                sent(&mut delivery);
                delivery.on_text(now as u64, &ok(*i, *accepted, words));
            }
            let mut ids: Vec<EventId> = delivery.finish().into_iter().map(|(id, _)| id).collect();
            ids.sort();
            prop_assert_eq!(ids, parcels(count).into_iter().map(|parcel| parcel.id).collect::<Vec<_>>());
        }
    }
}
