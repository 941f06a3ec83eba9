//! Authors' keys as points of the curve, so that an author whose events come one after another is worked out once: a tenth
//! of what a signature costs.
//!
//! Invariant: only who has signed something is remembered, so that made-up authors drive nobody out.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use secp256k1::schnorr::Signature;
use secp256k1::{SECP256K1, XOnlyPublicKey};

use super::{Event, EventError};

/// Authors remembered, about a megabyte; one more, and it begins anew.
const AUTHORS_MAX: usize = 8_192;

/// See the module.
#[derive(Debug, Default)]
pub struct Authors(Mutex<HashMap<[u8; 32], XOnlyPublicKey>>);

impl Authors {
    /// Whether the author signed this event (BIP-340 over the id).
    ///
    /// # Errors
    /// `BadSignature` where not, or where there is no such key.
    pub fn verify_signature(&self, event: &Event) -> Result<(), EventError> {
        let remembered = self.lock().get(&event.pubkey).copied();
        if let Some(author) = remembered {
            return signed_by(&author, event);
        }
        let author = key(event)?;
        signed_by(&author, event)?;
        let mut authors = self.lock();
        if authors.len() >= AUTHORS_MAX {
            authors.clear();
        }
        authors.insert(event.pubkey, author);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], XOnlyPublicKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn key(event: &Event) -> Result<XOnlyPublicKey, EventError> {
    XOnlyPublicKey::from_slice(&event.pubkey).map_err(|_| EventError::BadSignature)
}

pub(super) fn signed_by(author: &XOnlyPublicKey, event: &Event) -> Result<(), EventError> {
    SECP256K1
        .verify_schnorr(&Signature::from_byte_array(event.sig), &event.id.0, author)
        .map_err(|_| EventError::BadSignature)
}

#[cfg(test)]
mod tests {
    use secp256k1::{Keypair, SecretKey};

    use super::*;
    use crate::models::EventId;

    fn event(key: u8) -> Event {
        let pair = Keypair::from_secret_key(SECP256K1, &SecretKey::from_slice(&[key + 1; 32]).unwrap());
        let author = pair.x_only_public_key().0.serialize();
        let sign = |id: &EventId| SECP256K1.sign_schnorr_no_aux_rand(&id.0, &pair).to_byte_array();
        Event::signed(author, 1_700_000_000, 1, Vec::new(), String::new(), sign).unwrap()
    }

    #[test]
    fn who_is_remembered_is_believed_no_more_than_before() {
        let authors = Authors::default();
        let good = event(0);
        let mut forged = good.clone();
        forged.sig[63] ^= 1;
        let mut of_nobody = good.clone();
        of_nobody.pubkey = [0xff; 32];
        for _ in 0..2 {
            assert_eq!(authors.verify_signature(&forged), Err(EventError::BadSignature));
            assert_eq!(authors.verify_signature(&of_nobody), Err(EventError::BadSignature));
        }
        assert_eq!(authors.lock().len(), 0, "nobody has signed anything yet");
        for _ in 0..2 {
            assert_eq!(authors.verify_signature(&good), Ok(()));
            assert_eq!(authors.verify_signature(&forged), Err(EventError::BadSignature));
        }
        let mut of_another = event(1);
        of_another.sig = good.sig;
        assert_eq!(authors.verify_signature(&of_another), Err(EventError::BadSignature));
        assert_eq!(authors.lock().len(), 1);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let authors = Authors::default();
        let some = XOnlyPublicKey::from_slice(&event(0).pubkey).unwrap();
        let many = (0..AUTHORS_MAX).map(|n| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_be_bytes());
            (key, some)
        });
        authors.lock().extend(many);
        assert_eq!(authors.verify_signature(&event(0)), Ok(()));
        assert_eq!(authors.lock().len(), 1);
    }
}
