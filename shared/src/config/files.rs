//! Variables whose value stands in a file: `NAME_FILE` in place of `NAME`, as containers and service managers hand
//! over secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;

use super::ConfigError;
use super::identity;
use super::key::{Key, PREFIX};
use super::keys::KEYS;

/// Ends the name of a variable that names a file.
const SUFFIX: &str = "_FILE";
/// No value of ours is longer; a larger file is the wrong one.
const BYTES_MAX: u64 = 64 * 1024;

/// The environment with the contents of files in it, and which variables came from one.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    pub(super) env: BTreeMap<String, String>,
    files: BTreeSet<String>,
}

impl Resolved {
    /// What was set in truth: the variable, or the one that names its file.
    pub(super) fn origin(&self, variable: &str) -> String {
        let suffix = if self.files.contains(variable) { SUFFIX } else { "" };
        format!("{variable}{suffix}")
    }
}

/// Whether `migrate` gives one of its roles the password in this variable.
pub(super) fn is_role_password(variable: &str) -> bool {
    let role = variable.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix("_PASSWORD"));
    role.is_some_and(|role| ["ADMIN", "WRITER", "REFRESHER", "READER"].contains(&role))
}

/// Whether a variable may be given as a file: every key's, our own key's, passwords of roles.
fn may_be_a_file(variable: &str) -> bool {
    matches!(variable, "BIGBROTR_DATABASE_URL" | identity::VARIABLE | identity::GENERAL)
        || is_role_password(variable)
        || KEYS.iter().map(Key::variable).any(|known| known == variable)
}

/// Reads every file that is named; without the line break at its end, as editors leave one.
pub(super) fn resolve(env: &BTreeMap<String, String>) -> Result<Resolved, ConfigError> {
    let mut resolved = Resolved { env: env.clone(), files: BTreeSet::new() };
    let mut problems = Vec::new();
    for (name, path) in env {
        let Some(variable) = name.strip_suffix(SUFFIX).filter(|variable| may_be_a_file(variable)) else {
            continue;
        };
        resolved.env.remove(name);
        if path.is_empty() {
            continue;
        }
        if env.get(variable).is_some_and(|text| !text.is_empty()) {
            problems.push(format!("{variable} and {name} are both set: leave one of them out"));
            continue;
        }
        match read(path) {
            Ok(text) => {
                resolved.env.insert(variable.to_owned(), text);
                resolved.files.insert(variable.to_owned());
            }
            Err(why) => problems.push(format!("{name} is {path}: the file {why}")),
        }
    }
    if problems.is_empty() { Ok(resolved) } else { Err(ConfigError(problems)) }
}

fn read(path: &str) -> Result<String, String> {
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "does not exist".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(format!("is larger than {BYTES_MAX} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
}
