//! Our own key: it signs what we publish and answers relays that ask who we are (NIP-42).
//!
//! Invariant: the secret is never printed, by `Debug` no more than by an error.

use std::fmt;

use crate::models::{Event, EventError};

/// A secret key and its public one.
#[derive(Clone)]
pub struct Keys(nostr::key::Keys);

/// The text is no secret key; it is not quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a secret key: 64 hexadecimal digits or an nsec1… text are wanted")]
pub struct KeyError;

impl Keys {
    /// Reads 64 hexadecimal digits or an `nsec1…` text (NIP-19).
    ///
    /// # Errors
    /// When the text is neither, or no valid key.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        nostr::key::Keys::parse(text.trim()).map(Self).map_err(|_| KeyError)
    }

    /// The x-only public key.
    pub fn pubkey(&self) -> [u8; 32] {
        self.0.public_key().to_bytes()
    }

    /// The public key as Nostr writes it: 64 hexadecimal digits.
    pub fn pubkey_hex(&self) -> String {
        hex::encode(self.pubkey())
    }

    /// Signs an event of ours (NIP-01).
    ///
    /// # Errors
    /// `Range` for a negative time.
    pub fn sign(
        &self,
        created_at: i64,
        kind: u16,
        tags: Vec<Vec<String>>,
        content: String,
    ) -> Result<Event, EventError> {
        Event::signed(self.pubkey(), created_at, kind, tags, content, |id| {
            self.0.sign_schnorr(id.as_bytes()).to_bytes()
        })
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.pubkey_hex())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "67dea2ed018072d675f5415ecfaed7d2597555e202d85b3d65ea4e58d2d92ffa";
    const NSEC: &str = "nsec1vl029mgpspedva04g90vltkh6fvh240zqtv9k0t9af8935ke9laqsnlfe5";
    const PUBKEY: &str = "7e7e9c42a91bfef19fa929e5fda1b72e0ebc1a4c1141673e2794234d86addf4e";

    #[test]
    fn both_spellings_of_a_key_are_the_same_key() {
        for text in [HEX, NSEC, &format!(" {NSEC}\n")] {
            assert_eq!(Keys::parse(text).unwrap().pubkey_hex(), PUBKEY);
        }
    }

    #[test]
    fn what_we_sign_verifies() {
        let keys = Keys::parse(HEX).unwrap();
        let tags = vec![vec!["d".to_owned(), "wss://relay.example/".to_owned()]];
        let event = keys.sign(1_700_000_000, 30_166, tags, "{}".to_owned()).unwrap();
        event.verify_signature().unwrap();
        assert_eq!(Event::parse(&event.to_json()).unwrap(), event);
    }

    #[test]
    fn nobody_reads_the_secret_from_us() {
        let printed = format!("{:?}", Keys::parse(HEX).unwrap());
        assert!(!printed.contains(HEX) && printed.contains(PUBKEY));
        let error = Keys::parse(&HEX.replace('6', "x")).unwrap_err().to_string();
        assert!(!error.contains("x7dea2ed"));
    }
}
