//! Signatures in certificates that have verified before are not verified again.
//!
//! A relay shows the same certificate at every look, and most relays' are signed by a few authorities, while a
//! verification is among the dearest things a look does. Invariant: remembered is only what has verified, by all that
//! went into it; dates, names and the chain itself are judged anew each time. The handshake's own signature, which
//! proves that the peer has the key, is never the same twice and does not pass here.

use std::collections::HashSet;
use std::mem;
use std::sync::{LazyLock, Mutex, PoisonError};

use rustls::crypto::ring;
use rustls::pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};
use sha2::{Digest, Sha256};

/// Remembered before the older half is forgotten, twice 32 bytes and a little more each: every relay known has one of its
/// own, and certificates live for months.
const GENERATION: usize = 16_384;

/// The provider's algorithms, with a memory for the whole process.
pub(super) fn algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    static ALGORITHMS: LazyLock<Vec<&'static dyn SignatureVerificationAlgorithm>> = LazyLock::new(|| {
        static SEEN: LazyLock<Mutex<Seen>> = LazyLock::new(Mutex::default);
        let provided = ring::default_provider().signature_verification_algorithms.all;
        // As many as the provider has, once: they have to live as long as any connection.
        let remembering = |of: &&'static dyn SignatureVerificationAlgorithm| {
            &*Box::leak(Box::new(Remembering { of: *of, seen: &SEEN }))
                as &'static dyn SignatureVerificationAlgorithm
        };
        provided.iter().map(remembering).collect()
    });
    &ALGORITHMS
}

#[derive(Debug, Default)]
struct Seen {
    young: HashSet<[u8; 32]>,
    old: HashSet<[u8; 32]>,
}

impl Seen {
    fn knows(&self, print: &[u8; 32]) -> bool {
        self.young.contains(print) || self.old.contains(print)
    }

    fn remember(&mut self, print: [u8; 32]) {
        if self.young.len() >= GENERATION {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(print);
    }
}

#[derive(Debug)]
struct Remembering {
    of: &'static dyn SignatureVerificationAlgorithm,
    seen: &'static LazyLock<Mutex<Seen>>,
}

impl Remembering {
    /// Everything that a verification depends on, each part with its length.
    fn print(&self, parts: [&[u8]; 3]) -> [u8; 32] {
        let (key, signature) = (self.of.public_key_alg_id(), self.of.signature_alg_id());
        let mut hash = Sha256::new();
        for part in [key.as_ref(), signature.as_ref()].into_iter().chain(parts) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }
}

impl SignatureVerificationAlgorithm for Remembering {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let seen = || self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let print = self.print([public_key, message, signature]);
        if seen().knows(&print) {
            return Ok(());
        }
        self.of.verify_signature(public_key, message, signature)?;
        seen().remember(print);
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.of.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.of.signature_alg_id()
    }

    fn fips(&self) -> bool {
        self.of.fips()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Takes a signature that is the message; counts what it was asked.
    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    impl SignatureVerificationAlgorithm for Counting {
        fn verify_signature(
            &self,
            _: &[u8],
            message: &[u8],
            signature: &[u8],
        ) -> Result<(), InvalidSignature> {
            self.0.fetch_add(1, Ordering::Relaxed);
            if message == signature { Ok(()) } else { Err(InvalidSignature) }
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            AlgorithmIdentifier::from_slice(b"key")
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            AlgorithmIdentifier::from_slice(b"signature")
        }
    }

    #[test]
    fn only_what_has_verified_with_the_same_key_message_and_signature_is_not_verified_again() {
        static SEEN: LazyLock<Mutex<Seen>> = LazyLock::new(Mutex::default);
        let counting: &'static Counting = Box::leak(Box::default());
        let remembering = Remembering { of: counting, seen: &SEEN };
        let asked = |key: &[u8], message: &[u8], signature: &[u8]| {
            let before = counting.0.load(Ordering::Relaxed);
            let verified = remembering.verify_signature(key, message, signature).is_ok();
            (verified, counting.0.load(Ordering::Relaxed) - before)
        };
        assert_eq!(asked(b"k", b"m", b"m"), (true, 1));
        assert_eq!(asked(b"k", b"m", b"m"), (true, 0));
        for _ in 0..2 {
            assert_eq!(asked(b"k", b"m", b"x"), (false, 1), "what failed is not remembered");
        }
        assert_eq!(asked(b"other", b"m", b"m"), (true, 1));
        assert_eq!(asked(b"km", b"", b""), (true, 1), "where one part ends is part of it");
        for i in 0..GENERATION * 2 {
            let message = i.to_le_bytes();
            assert_eq!(asked(b"k", &message, &message), (true, 1));
        }
        assert_eq!(asked(b"k", b"m", b"m"), (true, 1), "it forgets");
        let seen = SEEN.lock().unwrap();
        assert!(seen.young.len() + seen.old.len() <= 2 * GENERATION);
    }
}
