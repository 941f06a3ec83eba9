//! How results and failures reach the caller.

use std::io::{self, Write as _};
use std::process::ExitCode;

use shared::config::ConfigError;
use shared::db::DbError;

/// Exit code where the reader of our output has gone away: as a shell reports it of other programs.
const NOBODY_READS: i32 = 141;

/// Why a command does not exit with 0.
#[derive(Debug)]
pub(crate) enum Fail {
    /// Wrong usage or configuration: exit code 2.
    Usage(String),
    /// The command failed: exit code 1.
    Failed(String),
    /// The command has said what it found: exit code 1.
    Found,
}

impl Fail {
    /// Says it on standard error and gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        match self {
            Self::Usage(text) => {
                warn(&text);
                ExitCode::from(2)
            }
            Self::Failed(text) => {
                warn(&text);
                ExitCode::FAILURE
            }
            Self::Found => ExitCode::FAILURE,
        }
    }
}

impl From<ConfigError> for Fail {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<DbError> for Fail {
    fn from(error: DbError) -> Self {
        match error {
            DbError::Url => Self::Usage(error.to_string()),
            DbError::Forbidden(_) => Self::Failed(format!(
                "{error}; use a role that may: bigbrotr_reader looks, bigbrotr_writer seeds, bigbrotr_admin does everything"
            )),
            // A function's own words about what it was given.
            DbError::Data { code, message } if code == "22023" => Self::Usage(message),
            other => Self::Failed(other.to_string()),
        }
    }
}

/// One line on standard error, with our name before it.
pub(crate) fn warn(text: &str) {
    eprintln!("bigbrotr: {text}");
}

/// One line on standard output; a reader that has gone away ends the process quietly.
pub(crate) fn line(text: &str) {
    let mut out = io::stdout().lock();
    if let Err(error) = writeln!(out, "{text}").and_then(|()| out.flush()) {
        // Not 0: who cut the output short has not heard all of it, nor whether it was well.
        std::process::exit(if error.kind() == io::ErrorKind::BrokenPipe { NOBODY_READS } else { 1 });
    }
}

/// Rows in columns as wide as their widest cell; the last column is left as it is.
pub(crate) fn table(rows: &[Vec<String>]) {
    for text in columns(rows) {
        line(&text);
    }
}

/// The lines of a [`table`].
pub(crate) fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect()
}

/// Shorthand for a row of a [`table`].
pub(crate) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// Unix seconds as `2026-11-23T20:54:52Z`.
pub(crate) fn utc(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a civil date, by eras of 400 years that begin in March (Howard Hinnant, chrono-compatible
    // low-level date algorithms).
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest % 3_600 / 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// A number with commas: 1,234,567.
pub(crate) fn commas(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes for people, in powers of ten as `archive.max_gb` counts.
pub(crate) fn bytes(bytes: u64) -> String {
    let tenths = |unit: u64| format!("{}.{}", bytes / unit, bytes % unit * 10 / unit);
    match bytes {
        0..1_000_000 => format!("{} kB", bytes / 1_000),
        1_000_000..1_000_000_000 => format!("{} MB", tenths(1_000_000)),
        _ => format!("{} GB", tenths(1_000_000_000)),
    }
}
