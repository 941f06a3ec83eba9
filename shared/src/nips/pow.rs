//! NIP-13: what proof of work a relay asks for, and doing it.
//!
//! A relay writes the number, so the caller bounds it, in bits and in time.

use super::keys::Keys;
use crate::models::{Event, EventError, EventId};

/// Nonces tried between two looks at whether to go on.
const TRIES: u64 = 1_024;

/// The bits a refusal demands, if it is about proof of work: the largest number in it, for relays write both
/// what they want and what they got. [`u32::MAX`] when it names none that makes sense.
pub fn demanded(message: &str) -> Option<u32> {
    let message = message.to_ascii_lowercase();
    let prefix = message.split_once(':').map_or("", |(prefix, _)| prefix.trim());
    let words = ["proof of work", "proof-of-work", "pow difficulty", "difficulty"];
    if prefix != "pow" && !words.iter().any(|word| message.contains(word)) {
        return None;
    }
    let numbers = message.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let largest = numbers.filter_map(|word| word.parse::<u32>().ok()).max();
    Some(largest.unwrap_or(u32::MAX))
}

/// Leading zero bits of an id.
pub fn difficulty(id: &EventId) -> u32 {
    let mut bits = 0;
    for byte in id.as_bytes() {
        bits += byte.leading_zeros();
        if *byte != 0 {
            break;
        }
    }
    bits
}

/// An event of ours whose id begins with `bits` zero bits; nothing when `go_on` says so first. Blocks.
///
/// # Errors
/// `Range` for a negative time.
pub fn mine(
    keys: &Keys,
    created_at: i64,
    kind: u16,
    tags: &[Vec<String>],
    content: &str,
    bits: u32,
    mut go_on: impl FnMut() -> bool,
) -> Result<Option<Event>, EventError> {
    if bits == 0 {
        return keys.sign(created_at, kind, tags.to_vec(), content.to_owned()).map(Some);
    }
    let mut nonce = 0_u64;
    loop {
        if nonce.is_multiple_of(TRIES) && !go_on() {
            return Ok(None);
        }
        let mut worked = tags.to_vec();
        worked.push(vec!["nonce".to_owned(), nonce.to_string(), bits.to_string()]);
        if difficulty(&Event::id_of(keys.pubkey(), created_at, kind, worked.clone(), content)) >= bits {
            return keys.sign(created_at, kind, worked, content.to_owned()).map(Some);
        }
        nonce += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "67dea2ed018072d675f5415ecfaed7d2597555e202d85b3d65ea4e58d2d92ffa";

    #[test]
    fn a_demand_is_the_largest_number_of_a_refusal_about_work() {
        for (message, bits) in [
            ("pow: 28 bits needed", Some(28)),
            ("pow: difficulty 26 is less than 30", Some(30)),
            ("pow: 200", Some(200)),
            ("pow: 99999999999999999999 bits", Some(u32::MAX)),
            ("pow: try harder", Some(u32::MAX)),
            ("error: insufficient proof of work, need 20", Some(20)),
            ("invalid: difficulty 8 required", Some(8)),
            ("blocked: 30 days", None),
            ("powered by 30 nodes", None),
            ("", None),
        ] {
            assert_eq!(demanded(message), bits, "{message}");
        }
    }

    #[test]
    fn zero_bits_are_counted_across_bytes() {
        let mut id = [0; 32];
        assert_eq!(difficulty(&EventId(id)), 256);
        id[1] = 0b0001_0000;
        assert_eq!(difficulty(&EventId(id)), 11);
        id[0] = 0x80;
        assert_eq!(difficulty(&EventId(id)), 0);
    }

    #[test]
    fn the_work_is_done_committed_to_and_signed() {
        let keys = Keys::parse(SECRET).unwrap();
        let event = mine(&keys, 1_700_000_000, 22_456, &[], "x", 10, || true).unwrap().unwrap();
        assert!(difficulty(&event.id()) >= 10);
        assert_eq!((event.tags()[0][0].as_str(), event.tags()[0][2].as_str()), ("nonce", "10"));
        event.verify_signature().unwrap();
        assert!(mine(&keys, 1, 22_456, &[], "x", 0, || false).unwrap().unwrap().tags().is_empty());
    }

    #[test]
    fn impossible_work_ends_when_it_is_told_to() {
        let mut looks = 0;
        let stop = || {
            looks += 1;
            looks < 4
        };
        assert_eq!(mine(&Keys::parse(SECRET).unwrap(), 1, 1, &[], "", 250, stop).unwrap(), None);
        assert_eq!(looks, 4);
    }
}
