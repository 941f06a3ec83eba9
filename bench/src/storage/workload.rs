//! A deterministic archive: events of about 0.9 KB in the mix of kinds and with the copies that were counted in the
//! network (39 % notes, 19 % reactions, five copies on the mean, 42 % on one relay only), on 200 relays of which
//! twenty have more than half of everything. Signatures are not valid: the database does not look at them.

use std::collections::BTreeSet;

use shared::db::EventRow;
use shared::models::{Event, EventId};

/// Relays that hold the archive.
pub(super) const RELAYS: usize = 200;
/// Authors that write more than once.
const AUTHORS: u64 = 30_000;
/// Events of a month that others point to.
const POPULAR: u64 = 20_000;
/// Seconds of a month that are filled: every month has as many.
const MONTH_S: u64 = 28 * 86_400;
/// Kinds and their share, per mille; the rest is spread over many kinds.
const KINDS: [(u16, u64); 14] = [
    (1, 390),
    (7, 189),
    (4, 56),
    (9_735, 50),
    (0, 47),
    (3, 45),
    (6, 44),
    (1_059, 40),
    (10_002, 35),
    (30_078, 30),
    (1_111, 20),
    (30_023, 8),
    (5, 10),
    (1_984, 6),
];

/// SplitMix64.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) const fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// In (0, 1].
    #[expect(clippy::cast_precision_loss, reason = "53 bits")]
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 1.0) / 9_007_199_254_740_992.0
    }

    /// A rank below `n`, the first ones most often: each doubling of the rank is as likely as the one before.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "small and positive"
    )]
    fn rank(&mut self, n: u64) -> u64 {
        (((n + 1) as f64).powf(1.0 - self.unit()) as u64).clamp(1, n) - 1
    }

    /// Exponentially distributed.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and positive")]
    fn around(&mut self, mean: f64) -> usize {
        (-self.unit().ln() * mean) as usize
    }
}

/// 32 bytes that stand for a thing.
fn name(what: u64, which: u64) -> [u8; 32] {
    let mut random = Random::new(what.wrapping_mul(0xd6e8_feb8_6659_fd93) ^ which);
    let mut bytes = [0; 32];
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&random.next().to_be_bytes());
    }
    bytes
}

/// An author who writes often when `rank` is small.
pub(super) fn author(rank: u64) -> [u8; 32] {
    name(1, rank)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .map(char::from)
        .collect()
}

pub(super) fn relay_url(relay: usize) -> String {
    format!("wss://relay{relay:03}.nostr-network.example")
}

/// First second of a month, counted from January 2024.
pub(super) fn month_start(month: u32) -> i64 {
    let day = |month: u32| {
        let (year, month) = (2024 + i64::from(month / 12), month % 12);
        let leap = i64::from(year % 4 == 0 && month >= 2);
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        // Days since 1970: no century without a leap day is in reach.
        (year - 1970) * 365 + (year - 1969) / 4 + before[month as usize] + leap
    };
    day(month) * 86_400
}

/// The partition of a month, as `YYYYMM`.
pub(super) fn month_suffix(month: u32) -> String {
    format!("{}{:02}", 2024 + month / 12, month % 12 + 1)
}

/// What to make.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) seed: u64,
    /// The first month.
    pub(super) month: u32,
    /// So many months, at random.
    pub(super) months: u32,
    /// Which of so many equal parts of the month.
    pub(super) part: (u32, u32),
    pub(super) events: u32,
    /// Every event on one relay only.
    pub(super) single: bool,
}

/// Events, and which relay delivers which of them, in order.
#[derive(Debug)]
pub(super) struct Slice {
    pub(super) events: Vec<EventRow>,
    pub(super) relays: Vec<Vec<u32>>,
}

impl Slice {
    pub(super) fn make(plan: Plan) -> anyhow::Result<Self> {
        let mut random = Random::new(plan.seed ^ 0x5eed);
        let mut events = (0..plan.events)
            .map(|_| event(&plan, &mut random).map(EventRow::from))
            .collect::<Result<Vec<_>, _>>()?;
        if plan.months == 1 {
            events.sort_by_key(|row| row.event.key());
        }
        let mut relays = vec![Vec::new(); RELAYS];
        for at in 0..plan.events {
            for relay in holders(plan.single, &mut random) {
                relays[relay].push(at);
            }
        }
        Ok(Self { events, relays })
    }

    /// Ids and times as a relay names them.
    pub(super) fn named(&self) -> impl Iterator<Item = (EventId, i64)> {
        self.events.iter().map(|row| (row.event.id(), row.event.created_at()))
    }
}

fn holders(single: bool, random: &mut Random) -> BTreeSet<usize> {
    let copies = if single || random.below(100) < 42 { 1 } else { (2 + random.around(6.4)).min(150) };
    let mut relays = BTreeSet::new();
    while relays.len() < copies {
        relays.insert(usize::try_from(random.rank(RELAYS as u64)).unwrap_or(0));
    }
    relays
}

fn event(plan: &Plan, random: &mut Random) -> Result<Event, shared::models::EventError> {
    let month = plan.month + u32::try_from(random.below(u64::from(plan.months))).unwrap_or(0);
    let (part, parts) = (u64::from(plan.part.0), u64::from(plan.part.1));
    let created_at =
        month_start(month).saturating_add_unsigned((part * MONTH_S + random.below(MONTH_S)) / parts);
    let pubkey = if random.below(100) < 7 { name(2, random.next()) } else { author(random.rank(AUTHORS)) };
    let kind = kind(random);
    let tags = tags(kind, month, random);
    let content = content(kind, random);
    let sig = |_: &EventId| {
        let mut sig = [0; 64];
        for chunk in sig.chunks_mut(8) {
            chunk.copy_from_slice(&random.next().to_be_bytes());
        }
        sig
    };
    Event::signed(pubkey, created_at, kind, tags, content, sig)
}

fn kind(random: &mut Random) -> u16 {
    let mut share = random.below(1_000);
    for (kind, of) in KINDS {
        if share < of {
            return kind;
        }
        share -= of;
    }
    let rare = u16::try_from(random.rank(60)).unwrap_or(0);
    if rare % 2 == 0 { 1_000 + rare * 7 } else { 30_000 + rare * 11 }
}

fn tags(kind: u16, month: u32, random: &mut Random) -> Vec<Vec<String>> {
    let p = |random: &mut Random| vec!["p".to_owned(), hex(&author(random.rank(AUTHORS)))];
    let e = |random: &mut Random| {
        let which = if random.below(2) == 0 { random.next() } else { random.rank(POPULAR) };
        let hint = relay_url(usize::try_from(random.rank(RELAYS as u64)).unwrap_or(0));
        vec!["e".to_owned(), hex(&name(3, which ^ (u64::from(month) << 40))), hint]
    };
    match kind {
        7 | 6 | 1_111 => vec![e(random), p(random)],
        3 => (0..=random.around(18.0).min(400)).map(|_| p(random)).collect(),
        30_000..=39_999 => {
            let d = vec!["d".to_owned(), format!("list-{}", random.below(5))];
            let t = vec!["t".to_owned(), word(random.rank(2_000))];
            vec![d, t, e(random), p(random)]
        }
        0 | 10_002 => (0..=random.around(2.0).min(20))
            .map(|_| {
                vec!["r".to_owned(), relay_url(usize::try_from(random.rank(RELAYS as u64)).unwrap_or(0))]
            })
            .collect(),
        _ => (0..random.around(2.3).min(40)).flat_map(|_| [e(random), p(random)]).collect(),
    }
}

fn word(which: u64) -> String {
    let mut random = Random::new(which.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let letters = 2 + random.below(8);
    (0..letters).map(|_| char::from(b'a' + u8::try_from(random.below(26)).unwrap_or(0))).collect()
}

fn content(kind: u16, random: &mut Random) -> String {
    if kind == 7 {
        return "+".to_owned();
    }
    let bytes = random.around(440.0).min(30_000);
    let mut content = String::with_capacity(bytes + 10);
    while content.len() < bytes {
        content.push_str(&word(random.rank(5_000)));
        content.push(' ');
    }
    content
}
