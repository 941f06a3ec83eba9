//! NIP-19 texts that carry relays: nprofile, nevent, naddr, and the old nrelay.
//!
//! Reads leniently: what is no such text, or is cut off, carries nothing; a value that is no text is passed over.
//! Whether a relay's URL is one is for the caller.

/// The longest text looked at: what NIP-19 allows.
pub const MAX_CHARS: usize = 5_000;
/// What comes before the `1` of texts that may carry relays.
pub const PREFIXES: [&str; 4] = ["nprofile", "nevent", "naddr", "nrelay"];

/// The type of a relay's URL in a profile, an event or an address.
const RELAY: u8 = 1;
/// The type of the thing itself.
const SPECIAL: u8 = 0;
/// What the checksum of a text comes to (BIP-173).
const BECH32: u32 = 1;
const CHECKSUM_CHARS: usize = 6;
const ALPHABET: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
/// What the alphabet has no letter for.
const NONE: u8 = 0xff;
const VALUES: [u8; 128] = values();

const fn values() -> [u8; 128] {
    let mut table = [NONE; 128];
    let mut value = 0;
    while value < 32 {
        // Fits: the alphabet has 32 letters.
        table[ALPHABET[value as usize] as usize] = value;
        value += 1;
    }
    table
}

/// The relays that a NIP-19 text names, in order; none when it is not one.
pub fn relays(text: &str) -> Vec<String> {
    if text.len() > MAX_CHARS {
        return Vec::new();
    }
    let Some((prefix, data)) = text.rsplit_once('1') else { return Vec::new() };
    if !PREFIXES.contains(&prefix) {
        return Vec::new();
    }
    let wanted = if prefix == "nrelay" { SPECIAL } else { RELAY };
    match decode(prefix, data) {
        Some(bytes) => values_of(&bytes, wanted),
        None => Vec::new(),
    }
}

/// The bytes behind a text whose checksum is right.
fn decode(prefix: &str, data: &str) -> Option<Vec<u8>> {
    let letters = data.bytes().map(|byte| VALUES.get(usize::from(byte)).copied().filter(|v| *v != NONE));
    let symbols: Vec<u8> = letters.collect::<Option<_>>()?;
    let payload = symbols.len().checked_sub(CHECKSUM_CHARS)?;
    let high = prefix.bytes().map(|byte| byte >> 5);
    let low = prefix.bytes().map(|byte| byte & 31);
    let checked = high.chain([0]).chain(low).chain(symbols.iter().copied());
    if checked.fold(1, polymod) != BECH32 {
        return None;
    }
    let mut bytes = Vec::with_capacity(payload * 5 / 8);
    let (mut held, mut bits) = (0_u32, 0);
    for symbol in &symbols[..payload] {
        held = (held << 5 | u32::from(*symbol)) & 0xfff;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits & 0xff) as u8);
        }
    }
    Some(bytes)
}

/// One step of the checksum (BIP-173).
fn polymod(sum: u32, value: u8) -> u32 {
    const GENERATOR: [u32; 5] = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
    let top = sum >> 25;
    let mut next = (sum & 0x01ff_ffff) << 5 ^ u32::from(value);
    for (bit, factor) in GENERATOR.iter().enumerate() {
        if top >> bit & 1 == 1 {
            next ^= factor;
        }
    }
    next
}

/// The texts of one type among type-length-value triples; what is cut off at the end is left out.
fn values_of(mut bytes: &[u8], wanted: u8) -> Vec<String> {
    let mut found = Vec::new();
    while let [kind, length, rest @ ..] = bytes {
        let Some((value, rest)) = rest.split_at_checked(usize::from(*length)) else { break };
        if *kind == wanted
            && let Ok(text) = std::str::from_utf8(value)
        {
            found.push(text.to_owned());
        }
        bytes = rest;
    }
    found
}

#[cfg(test)]
mod tests {
    use nostr::prelude::{
        Coordinate, EventId, Kind, Nip19Coordinate, Nip19Event, Nip19Profile, PublicKey, RelayUrl, ToBech32,
    };
    use proptest::prelude::proptest;

    use super::*;

    fn urls() -> Vec<RelayUrl> {
        ["wss://a.example", "wss://b.example/inbox"].iter().map(|url| RelayUrl::parse(url).unwrap()).collect()
    }

    #[test]
    fn relays_of_profiles_events_and_addresses_are_read_as_others_write_them() {
        let key = PublicKey::from_slice(&[0x79; 32]).unwrap();
        let profile = Nip19Profile::new(key, urls()).to_bech32().unwrap();
        let event = Nip19Event::new(EventId::from_byte_array([0; 32])).relays(urls()).to_bech32().unwrap();
        let address = Coordinate::new(Kind::LongFormTextNote, key).identifier("x");
        let address = Nip19Coordinate::new(address, urls()).to_bech32().unwrap();
        for text in [profile, event, address] {
            assert_eq!(relays(&text), ["wss://a.example", "wss://b.example/inbox"], "{text}");
            // One letter changed, and the checksum is wrong.
            let changed =
                format!("{}{}", &text[..text.len() - 1], if text.ends_with('q') { 'p' } else { 'q' });
            assert!(relays(&changed).is_empty(), "{changed}");
        }
    }

    #[test]
    fn an_old_relay_text_is_read_and_other_texts_carry_nothing() {
        // NIP-19 as it was: type 0 is the URL itself.
        assert_eq!(
            relays("nrelay1qqt8wumn8ghj7un9d3shjtnwdaehgu3wvfskueq4r295t"),
            ["wss://relay.nostr.band"]
        );
        for text in ["", "1", "nprofile1", "nevent1qqqqqq", "npub1xyz", "nprofile", "\u{130}1qqqqqqq"] {
            assert!(relays(text).is_empty(), "{text}");
        }
        assert!(relays(&format!("nprofile1{}", "q".repeat(MAX_CHARS))).is_empty());
    }

    #[test]
    fn a_value_that_is_cut_off_loses_only_itself() {
        assert_eq!(values_of(&[1, 1, b'a', 0, 0, 1, 2, b'b', b'c', 1, 9, b'd'], 1), ["a", "bc"]);
        assert_eq!(values_of(&[1, 1, 0xff, 1, 1, b'a'], 1), ["a"]);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,80}", data in "[a-z0-9]{0,80}") {
            relays(&text);
            for prefix in PREFIXES {
                relays(&format!("{prefix}1{data}"));
            }
        }
    }
}
