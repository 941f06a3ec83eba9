//! What goes out of the archive as files, and what comes in.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use shared::models::Unkept;

/// How an export is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// One event a line, as NIP-01 writes it
    Jsonl,
    /// Columns, compressed
    Parquet,
}

impl Format {
    /// The ending of its files.
    pub(crate) const fn ending(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Parquet => "parquet",
        }
    }
}

/// What is handed on only where somebody asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Withheld {
    /// Direct messages, seals, gift wraps
    Private,
    /// Events whose authors want no copies (NIP-70)
    Protected,
}

impl Withheld {
    /// The class of events that it is.
    pub(crate) const fn class(self) -> Unkept {
        match self {
            Self::Private => Unkept::Private,
            Self::Protected => Unkept::Protected,
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:
  bigbrotr export --out january --since 2026-01-01 --until 2026-01-31T23:59:59Z
  bigbrotr export --out notes --kind 1 --kind 30023 --format parquet
  bigbrotr export --out one --relay wss://relay.example
  bigbrotr export --out january --resume        goes on where it was interrupted

DIR gets events-N and observations-N (which event on which relay, when), and at the end
manifest.json: as of when, from which vantages, by which filters, with what proof per relay,
how many of what, what was left out and why, and the SHA-256 of each file. An interrupted
export has no manifest; --resume makes the same files that it would have made. What has
expired, or what its author asked to have deleted, is never there; private and protected
events, which are not archived unless archive.unkept is changed, are by --with only.
Times are Unix seconds, 2026-01-31 (its first second) or 2026-01-31T12:00:00Z.
Needs a role that may read, such as bigbrotr_reader.")]
pub(crate) struct Export {
    /// Directory to write into; made if need be
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Only events created at this time or later
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) since: Option<i64>,
    /// Only events created at this time or earlier
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) until: Option<i64>,
    /// Only this kind; may be given again
    #[arg(long, value_name = "N")]
    pub(crate) kind: Vec<u16>,
    /// Only events seen on this relay, and only its observations; may be given again
    #[arg(long, value_name = "URL")]
    pub(crate) relay: Vec<String>,
    /// Also what is archived of this class; may be given again
    #[arg(long, value_enum, value_name = "CLASS")]
    pub(crate) with: Vec<Withheld>,
    /// How to write [default: jsonl]
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    /// Only what had been seen by then [default: now; while relays are being synced it waits, two minutes at most, until that is stored]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) as_of: Option<i64>,
    /// Events per file; a file of events is also cut at 256 MiB of text [default: 250000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) part_events: Option<u64>,
    /// Go on with the export that was interrupted in DIR
    #[arg(long)]
    pub(crate) resume: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "EXAMPLES:
  bigbrotr import january                                   an export, with its observations
  bigbrotr import dump.jsonl --relay wss://relay.example    what somebody took from a relay
  zstd -dc dump.jsonl.zst | bigbrotr import - --relay wss://relay.example

A FILE has one event a line (NIP-01); gzip is read as it is. Every id is hashed, every new
signature is checked; lines that fail are counted by class and named by number, and cost the
others nothing. What no relay was seen to hold is no part of the archive: events of a plain file
are noted as claimed by the relay named, those of an export by its own observations. Importing
again adds nothing. An export makes no relays known that are excluded, too many of one host, site
or hoster, or on other ports than discover.ports; what only those had is left out, and counted.
Needs a role that may write, such as bigbrotr_writer. Exit code 1 when a file could not be read to
its end, no line of it was good, or the archive is at its size limit (archive.max_gb).")]
pub(crate) struct Import {
    /// Files, - for standard input, or directories made by `bigbrotr export --format jsonl`
    #[arg(value_name = "FILE|DIR", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// The relay these events were taken from; becomes known if it is not
    #[arg(long, value_name = "URL")]
    pub(crate) relay: Option<String>,
    /// Accept relays on loopback, private addresses and local names
    #[arg(long)]
    pub(crate) allow_local: bool,
}

/// Unix seconds, a day, or a second of a day, UTC.
fn parse_time(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is no time: Unix seconds, 2026-01-31 or 2026-01-31T12:00:00Z");
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().map_err(|_| wrong());
    }
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00Z"));
    let parts = |text: &str, by: char, lengths: [usize; 3]| -> Option<[i64; 3]> {
        let pieces: Vec<&str> = text.split(by).collect();
        let right = |(piece, length): (&&str, usize)| {
            piece.len() == length && piece.bytes().all(|byte| byte.is_ascii_digit())
        };
        if pieces.len() != 3 || !pieces.iter().zip(lengths).all(right) {
            return None;
        }
        let numbers: Vec<i64> = pieces.iter().filter_map(|piece| piece.parse().ok()).collect();
        numbers.try_into().ok()
    };
    let [year, month, day] = parts(date, '-', [4, 2, 2]).ok_or_else(wrong)?;
    let time = time.strip_suffix('Z').ok_or_else(wrong)?;
    let [hour, minute, second] = parts(time, ':', [2, 2, 2]).ok_or_else(wrong)?;
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let days = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => 0,
    };
    if year < 1970 || !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return Err(wrong());
    }
    // Days since 1970 of a civil date, by years that begin in March (Howard Hinnant, days_from_civil).
    let shifted = year - i64::from(month <= 2);
    let (era, year_of_era) = (shifted / 400, shifted % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days =
        era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Ok(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::utc;

    #[test]
    fn a_time_is_read_exactly_or_refused() {
        assert_eq!(parse_time("1700000000"), Ok(1_700_000_000));
        assert_eq!(parse_time("1970-01-01"), Ok(0));
        for text in
            ["2024-02-29T23:59:59Z", "2026-03-01T00:00:00Z", "2000-12-31T12:30:01Z", "2100-02-28T01:02:03Z"]
        {
            assert_eq!(utc(parse_time(text).unwrap()), text);
        }
        for text in [
            "",
            "-5",
            "2026-02-29",
            "2026-13-01",
            "2026-1-1",
            "2026-01-01T24:00:00Z",
            "2026-01-01T10:00:00",
            "now",
            "１２",
        ] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
