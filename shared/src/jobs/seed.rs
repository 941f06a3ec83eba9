//! The Seeder: turns lists of URLs into candidates.

use std::collections::HashSet;

use crate::db::{Db, DbError, NewCandidate};
use crate::models::{AddressPolicy, RelayUrl};

/// The list shipped with this program.
pub const SHIPPED: &str = include_str!("../../seeds.txt");
/// Candidates per call.
const BATCH: usize = 1_000;

/// A line that is no relay URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadLine {
    /// Line number, from 1.
    pub line: usize,
    /// What it says, shortened.
    pub text: String,
    /// Why it is refused.
    pub reason: String,
}

/// What a list holds.
#[derive(Debug, Clone, Default)]
pub struct SeedList {
    /// Canonical URLs, each once, in order of appearance.
    pub urls: Vec<RelayUrl>,
    /// Lines that repeat one.
    pub repeated: usize,
    /// Lines that are refused.
    pub bad: Vec<BadLine>,
}

/// Reads a list: one URL a line; blank lines and lines that begin with `#` are skipped.
pub fn parse(text: &str, policy: &AddressPolicy) -> SeedList {
    let mut list = SeedList::default();
    let mut seen = HashSet::new();
    // Editors of some systems begin a file with a byte order mark.
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match RelayUrl::parse(line, policy) {
            Ok(url) if seen.insert(url.clone()) => list.urls.push(url),
            Ok(_) => list.repeated += 1,
            Err(error) => list.bad.push(BadLine {
                line: index + 1,
                text: line.chars().take(80).collect(),
                reason: error.to_string(),
            }),
        }
    }
    list
}

/// Inserts the URLs as candidates; returns how many were new.
pub async fn insert(db: &Db, urls: &[RelayUrl]) -> Result<u64, DbError> {
    let mut new = 0;
    for chunk in urls.chunks(BATCH) {
        let candidates: Vec<NewCandidate> =
            chunk.iter().map(|url| NewCandidate { url: url.clone(), source: "seed" }).collect();
        new += db.candidate_insert(&candidates).await?;
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_lines_are_reported_with_their_number_and_lose_nothing_else() {
        let list = parse(
            "\u{feff}# comment\n\nwss://a.example\nnot a url\nWSS://A.example/\nhttp://b.example\nwss://c.example\n",
            &AddressPolicy::public(),
        );
        assert_eq!(
            list.urls.iter().map(RelayUrl::as_str).collect::<Vec<_>>(),
            ["wss://a.example", "wss://c.example"]
        );
        assert_eq!(list.repeated, 1);
        assert_eq!(list.bad.iter().map(|bad| bad.line).collect::<Vec<_>>(), [4, 6]);
    }

    #[test]
    fn every_shipped_seed_is_a_canonical_public_relay_url() {
        let list = parse(SHIPPED, &AddressPolicy::public());
        assert!(list.bad.is_empty(), "{:?}", list.bad);
        assert_eq!(list.repeated, 0);
        assert!(list.urls.len() >= 50, "only {}", list.urls.len());
    }
}
