//! Variables whose value stands in a file: `NAME_FILE` in place of `NAME`, as containers and service managers hand
//! over secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;

use super::ConfigError;
use super::identity;
use super::key::{Key, PREFIX};
use super::keys::KEYS;
use super::value::Kind;

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

/// Whether a variable holds a password of somebody's, which is taken as it stands.
fn is_secret(variable: &str) -> bool {
    let is_its = |key: &Key| matches!(key.kind, Kind::Secret { .. }) && key.variable() == variable;
    is_role_password(variable) || KEYS.iter().any(is_its)
}

/// Without the one line break at the end.
fn without_break(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

/// Reads every file that is named; without the line break at its end, as editors leave one. A secret
/// that was not given as a file is read in the same way, so that who sets a password and who logs in with it agree.
pub(super) fn resolve(env: &BTreeMap<String, String>) -> Result<Resolved, ConfigError> {
    let mut resolved = Resolved { env: env.clone(), files: BTreeSet::new() };
    let mut problems = Vec::new();
    for (name, path) in env {
        if is_secret(name) {
            resolved.env.insert(name.clone(), without_break(path).to_owned());
            continue;
        }
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
    let text = without_break(&text);
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::config::{Config, ConfigError};

    /// The URL to log in with, and the password that the writer is given.
    fn both(suffix: &str, value: &str) -> Result<(String, String), ConfigError> {
        let mut env = BTreeMap::from([("DATABASE_URL".to_owned(), "postgres://u@h/n".to_owned())]);
        for name in ["BIGBROTR_DATABASE_PASSWORD", "BIGBROTR_WRITER_PASSWORD"] {
            env.insert(format!("{name}{suffix}"), value.to_owned());
        }
        let given = Config::with_files(&env)?.remove("BIGBROTR_WRITER_PASSWORD").unwrap_or_default();
        Ok((Config::load(None, &env)?.database_url().to_owned(), given))
    }

    #[test]
    fn a_password_is_one_text_for_who_sets_it_and_who_logs_in_and_keeps_its_blanks() {
        let path = std::env::temp_dir().join(format!("bigbrotr-secret-{}", crate::clock::random_hex(8)));
        let wanted = ("postgres://u@h/n?password=%20s3cret%20".to_owned(), " s3cret ".to_owned());
        for text in [" s3cret ", " s3cret \n", " s3cret \r\n"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(both("", text).unwrap(), wanted, "{text:?}");
            assert_eq!(both("_FILE", path.to_str().unwrap()).unwrap(), wanted, "{text:?}");
        }
        std::fs::write(&path, "s3cret\n\n").unwrap();
        for (suffix, value) in [("", "s3cret\n\n"), ("_FILE", path.to_str().unwrap())] {
            let said = both(suffix, value).unwrap_err().to_string();
            assert!(said.contains("without control characters") && !said.contains("s3cret"), "{said}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
