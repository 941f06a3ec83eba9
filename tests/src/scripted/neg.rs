//! The relay's side of a reconciliation (NIP-77), honest or bent as the script says.

use std::collections::HashMap;

use negentropy::{Id, Negentropy, NegentropyStorageVector};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::script::Stored;

/// How a set is bent before it is compared. The default does nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sets {
    /// Only so many of the newest are compared, without a word (khatru).
    pub truncates_at: Option<usize>,
    /// Windows of more are refused by NEG-ERR, naming this number (strfry).
    pub refuses_above: Option<usize>,
    /// Seconds left out.
    pub hides: Option<(i64, i64)>,
    /// Ids listed besides: time and id.
    pub invents: Vec<(i64, [u8; 32])>,
    /// Whether its rounds come to an end.
    pub endless: Endless,
}

/// How a reconciliation goes on for ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Endless {
    /// It does not.
    #[default]
    No,
    /// Each round says that everything differs, and no more.
    Barren,
    /// Each round lists one more id that does not exist, and says that all the rest differs.
    Drip,
}

impl Endless {
    /// The next message: one range up to infinity with a fingerprint of nothing, and for [`Self::Drip`] before it the first
    /// second (as NIP-77 writes it: one more, and no prefix) with a list of one id.
    fn message(self, round: u64) -> Vec<u8> {
        let mut message = vec![0x61];
        if self == Self::Drip {
            message.extend([2, 0, 2, 1]);
            message.extend(Sha256::digest(round.to_be_bytes()));
        }
        message.extend([0, 0, 1]);
        message.extend(&Sha256::digest(round.to_le_bytes())[..16]);
        message
    }
}

/// The reconciliations open on one connection.
#[derive(Default)]
pub(super) struct Open {
    sides: HashMap<String, Negentropy<'static, NegentropyStorageVector>>,
    endless: Endless,
    rounds: u64,
}

impl Open {
    /// Answers `["NEG-OPEN", sub, filter, hex]`.
    pub(super) fn open(&mut self, sets: &Sets, events: &[Stored], frame: &Value) -> Value {
        let (sub, filter) = (&frame[1], &frame[2]);
        let hidden = |at: i64| sets.hides.is_some_and(|(low, top)| (low..=top).contains(&at));
        let matching = events.iter().filter(|event| event.matches(filter) && !hidden(event.created_at()));
        let mut set: Vec<(i64, [u8; 32])> =
            matching.filter_map(|event| Some((event.created_at(), event.id()?))).collect();
        let window =
            filter["since"].as_i64().unwrap_or(i64::MIN)..=filter["until"].as_i64().unwrap_or(i64::MAX);
        set.extend(sets.invents.iter().filter(|(at, _)| window.contains(at)));
        if let Some(most) = sets.refuses_above.filter(|most| set.len() > *most) {
            let reason = format!("blocked: query matches too many records ({} > {most})", set.len());
            return json!(["NEG-ERR", sub, reason]);
        }
        set.sort_by_key(|(at, id)| (std::cmp::Reverse(*at), *id));
        set.truncate(sets.truncates_at.unwrap_or(usize::MAX));
        let mut storage = NegentropyStorageVector::with_capacity(set.len());
        for (at, id) in set {
            let at = u64::try_from(at).unwrap_or(0);
            storage.insert(at, Id::from_byte_array(id)).expect("an unsealed storage takes items");
        }
        storage.seal().expect("a storage is sealed once");
        let side = Negentropy::owned(storage, 60_000).expect("the limit is above the least");
        self.sides.insert(sub.to_string(), side);
        self.endless = sets.endless;
        self.message(sub, &frame[3])
    }

    /// Answers `["NEG-MSG", sub, hex]`.
    pub(super) fn message(&mut self, sub: &Value, message: &Value) -> Value {
        let Some(side) = self.sides.get_mut(&sub.to_string()) else {
            return json!(["NEG-ERR", sub, "closed: unknown subscription"]);
        };
        if self.endless != Endless::No {
            self.rounds += 1;
            return json!(["NEG-MSG", sub, hex::encode(self.endless.message(self.rounds))]);
        }
        let bytes = hex::decode(message.as_str().unwrap_or_default()).unwrap_or_default();
        match side.reconcile(&bytes) {
            Ok(answer) => json!(["NEG-MSG", sub, hex::encode(answer)]),
            Err(error) => json!(["NEG-ERR", sub, format!("invalid: {error}")]),
        }
    }

    /// Forgets one.
    pub(super) fn close(&mut self, sub: &Value) {
        self.sides.remove(&sub.to_string());
    }
}
