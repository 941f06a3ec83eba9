//! Events are parsed, hashed and verified here: on every core, and each once.
//!
//! One pool for all jobs of a process: as many pieces at a time as there are cores, the others wait. Results come back
//! in the order of the question, whatever order they were made in. Two relays that deliver the same new event at the
//! same moment cost one verification: the second takes what the first found. Invariant: what is shared is a success;
//! a text that does not verify says nothing about another one.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::available_parallelism;

use tokio::sync::Semaphore;

use super::JobError;
use crate::models::{Authors, Event, EventError, EventId};

/// Events verified in one go: long enough to be worth a thread, short enough to share the cores fairly.
const PIECE: usize = 32;
/// Verified events remembered until the database knows them: about what all sync jobs of a worker hold at once.
const RECENT_MAX: usize = 8_192;
/// Bytes of text they may have had.
const RECENT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// One in so many events that need not be read is read all the same.
const SAMPLE: u64 = 64;

type Key = (EventId, [u8; 64]);
type Reading = Result<Arc<Event>, EventError>;
/// The event; or why there is none, and the text.
pub(super) type Verdict = Result<Arc<Event>, (EventError, String)>;
type Cell = Arc<OnceLock<Reading>>;

/// A text to verify.
#[derive(Debug)]
pub(super) struct Raw {
    /// The id it claims.
    pub(super) id: EventId,
    /// Its signature, if it has one.
    pub(super) sig: Option<[u8; 64]>,
    /// The event's JSON.
    pub(super) text: String,
    /// How far it must be read.
    pub(super) need: Need,
}

/// How far a text is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// An event of this id and signature has to have been verified: this text, or another one lately.
    Event,
    /// This very text has to be verified, whatever is known of its id and signature.
    Text,
    /// This very text has to hash to its id; that its author signed the id is known.
    Hash,
}

/// The pool, and what it verified lately. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Verifier {
    cores: Arc<Semaphore>,
    recent: Arc<Mutex<Recent>>,
    authors: Arc<Authors>,
    secret: RandomState,
}

#[derive(Debug, Default)]
struct Recent {
    cells: HashMap<Key, Cell>,
    order: VecDeque<(Key, usize)>,
    bytes: usize,
    /// Texts read in full.
    verified: u64,
}

impl Default for Verifier {
    fn default() -> Self {
        Self::new(available_parallelism().map_or(1, usize::from))
    }
}

impl Verifier {
    /// A pool of so many threads at once.
    pub fn new(cores: usize) -> Self {
        Self {
            cores: Arc::new(Semaphore::new(cores.max(1))),
            recent: Arc::default(),
            authors: Arc::default(),
            secret: RandomState::new(),
        }
    }

    /// Whether an event that need not be read is read nevertheless. The choice is fixed for a relay and an event as
    /// long as the process lives, and keyed by a secret: no relay can know where it may forge.
    pub(super) fn samples(&self, relay_id: i32, id: &EventId) -> bool {
        self.secret.hash_one((relay_id, id)).is_multiple_of(SAMPLE)
    }

    /// Texts parsed and verified by this process so far.
    pub fn verified(&self) -> u64 {
        lock(&self.recent).verified
    }

    /// Parses, hashes and verifies; one verdict a text, in order.
    pub(super) async fn verify(&self, mut raw: Vec<Raw>) -> Result<Vec<Verdict>, JobError> {
        let mut pieces = Vec::new();
        while !raw.is_empty() {
            let rest = raw.split_off(raw.len().min(PIECE));
            let Ok(core) = Arc::clone(&self.cores).acquire_owned().await else {
                return Err(JobError::Retry { why: "the pool is closed".to_owned() });
            };
            let (recent, authors) = (Arc::clone(&self.recent), Arc::clone(&self.authors));
            pieces.push(tokio::task::spawn_blocking(move || {
                let judge = |raw: Raw| once(&recent, &authors, &raw).map_err(|error| (error, raw.text));
                let verdicts: Vec<Verdict> = raw.into_iter().map(judge).collect();
                drop(core);
                verdicts
            }));
            raw = rest;
        }
        let mut verdicts = Vec::new();
        for piece in pieces {
            let piece = piece.await;
            verdicts.extend(
                piece
                    .map_err(|error| JobError::Retry { why: format!("verifying events failed: {error}") })?,
            );
        }
        Ok(verdicts)
    }
}

/// Verifies a text unless the same id and signature were verified lately, or are being verified now.
fn once(recent: &Mutex<Recent>, authors: &Authors, raw: &Raw) -> Reading {
    let whole = || {
        lock(recent).verified += 1;
        let event = Event::parse(&raw.text)?;
        authors.verify_signature(&event).map(|()| Arc::new(event))
    };
    let sig = match raw.need {
        Need::Event => raw.sig,
        Need::Text => None,
        Need::Hash => return Event::parse(&raw.text).map(Arc::new),
    };
    let Some(sig) = sig else { return whole() };
    let key = (raw.id, sig);
    let cell = lock(recent).cell(key, raw.text.len());
    let mut mine = false;
    let verdict = cell.get_or_init(|| {
        mine = true;
        whole()
    });
    match verdict {
        Ok(event) => Ok(Arc::clone(event)),
        Err(error) => {
            lock(recent).forget(&key);
            if mine { Err(*error) } else { whole() }
        }
    }
}

impl Recent {
    fn cell(&mut self, key: Key, bytes: usize) -> Cell {
        if let Some(cell) = self.cells.get(&key) {
            return Arc::clone(cell);
        }
        let cell = Cell::default();
        self.cells.insert(key, Arc::clone(&cell));
        self.order.push_back((key, bytes));
        self.bytes += bytes;
        while self.order.len() > RECENT_MAX || self.bytes > RECENT_BYTES_MAX {
            let Some((oldest, bytes)) = self.order.pop_front() else { break };
            self.cells.remove(&oldest);
            self.bytes -= bytes;
        }
        cell
    }

    /// Its place in the order stays until it is the oldest.
    fn forget(&mut self, key: &Key) {
        self.cells.remove(key);
    }
}

fn lock(recent: &Mutex<Recent>) -> MutexGuard<'_, Recent> {
    recent.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nips::Keys;

    fn events(count: usize) -> Vec<Event> {
        let keys = Keys::parse(&"01".repeat(32)).unwrap();
        (0..count).map(|i| keys.sign(1_700_000_000, 1, Vec::new(), format!("event {i}")).unwrap()).collect()
    }

    fn raw(event: &Event, text: String) -> Raw {
        Raw { id: event.id(), sig: Some(*event.sig()), text, need: Need::Event }
    }

    fn forged(event: &Event) -> String {
        event.to_json().replace("event ", "forged ")
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn verdicts_come_in_the_order_of_the_question() {
        let pool = Verifier::new(3);
        let events = events(200);
        let texts = |from: usize| -> Vec<Raw> {
            let text = |(i, event): (usize, &Event)| {
                raw(event, if i % 7 == from { forged(event) } else { event.to_json() })
            };
            events.iter().enumerate().map(text).collect()
        };
        // Two pages that lie about different events, at the same time.
        let (one, two) = tokio::join!(pool.verify(texts(1)), pool.verify(texts(1)));
        for verdicts in [one.unwrap(), two.unwrap()] {
            for (i, verdict) in verdicts.iter().enumerate() {
                match verdict {
                    Ok(event) => assert_eq!((event.id(), i % 7 != 1), (events[i].id(), true)),
                    Err((error, text)) => {
                        assert_eq!((*error, i % 7, text), (EventError::BadId, 1, &forged(&events[i])));
                    }
                }
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_same_event_from_many_relays_is_verified_once() {
        let pool = Verifier::new(2);
        let events = events(100);
        let page = || events.iter().map(|event| raw(event, event.to_json())).collect::<Vec<_>>();
        let pages = futures_util::future::join_all((0..8).map(|_| pool.verify(page()))).await;
        assert!(pages.iter().all(|page| page.as_ref().unwrap().iter().all(Result::is_ok)));
        assert_eq!(pool.verified(), 100);
    }

    #[tokio::test]
    async fn a_forgery_does_not_keep_the_real_one_out_and_is_read_where_it_must_be() {
        let pool = Verifier::new(2);
        let event = &events(1)[0];
        assert!(pool.verify(vec![raw(event, forged(event))]).await.unwrap()[0].is_err());
        assert!(pool.verify(vec![raw(event, event.to_json())]).await.unwrap()[0].is_ok());
        for need in [Need::Text, Need::Hash] {
            let lie = Raw { need, ..raw(event, forged(event)) };
            assert_eq!(pool.verify(vec![lie]).await.unwrap()[0].as_ref().unwrap_err().0, EventError::BadId);
        }
        let unsigned = event.to_json().replace(&hex::encode(event.sig()), &"00".repeat(64));
        for (need, good) in [(Need::Hash, true), (Need::Text, false)] {
            let text = Raw { need, ..raw(event, unsigned.clone()) };
            assert_eq!(pool.verify(vec![text]).await.unwrap()[0].is_ok(), good, "{need:?}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut recent = Recent::default();
        let key = |i: u64| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&i.to_be_bytes());
            (EventId(id), [0; 64])
        };
        (0..20_000).for_each(|i| drop(recent.cell(key(i), 100)));
        assert_eq!((recent.cells.len(), recent.order.len()), (RECENT_MAX, RECENT_MAX));
        (0..100).for_each(|i| drop(recent.cell(key(i), 1024 * 1024)));
        assert!(recent.bytes <= RECENT_BYTES_MAX && recent.cells.len() <= 16);
    }

    #[test]
    fn one_in_64_is_sampled_and_each_process_samples_others() {
        let sampled = |pool: &Verifier| -> Vec<u8> {
            (0..=255).filter(|i| (0..16).any(|relay| pool.samples(relay, &EventId([*i; 32])))).collect()
        };
        let (one, two) = (Verifier::new(1), Verifier::new(1));
        assert_eq!(sampled(&one), sampled(&one));
        assert!((10..=160).contains(&sampled(&one).len()), "{}", sampled(&one).len());
        assert_ne!(sampled(&one), sampled(&two));
    }
}
