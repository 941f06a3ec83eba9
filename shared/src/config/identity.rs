//! Our own key, which the environment holds and nothing else: a file is copied, printed and checked in.

use super::ConfigError;
use super::files::Resolved;
use crate::nips::Keys;

/// The variable of ours that holds the key.
pub(super) const VARIABLE: &str = "BIGBROTR_IDENTITY_KEY";
/// The variable that other programs know it by.
pub(super) const GENERAL: &str = "NOSTR_PRIVATE_KEY";
/// Where one might look for it in the file.
pub(super) const NOT_A_KEY: &str = "identity.key";

/// The key, if a variable holds one; ours wins over the general one.
pub(super) fn read(resolved: &Resolved) -> Result<Option<Keys>, ConfigError> {
    let set =
        |name: &'static str| resolved.env.get(name).filter(|text| !text.is_empty()).map(|text| (name, text));
    let Some((name, text)) = set(VARIABLE).or_else(|| set(GENERAL)) else { return Ok(None) };
    Keys::parse(text)
        .map(Some)
        .map_err(|error| ConfigError(vec![format!("{} is {error}", resolved.origin(name))]))
}

pub(super) fn never_in_a_file(file: &str) -> String {
    format!(
        "{NOT_A_KEY} (in {file}) is not read, so that no file holds a secret: set the variable {VARIABLE}"
    )
}

/// A complaint when a key that needs our own is set without it.
pub(super) fn wanted(key: &str, is_set: bool, problems: &mut Vec<String>) {
    if is_set {
        problems.push(format!("{key} needs a key of ours: set {VARIABLE} or {GENERAL} (hex or nsec1…)"));
    }
}
