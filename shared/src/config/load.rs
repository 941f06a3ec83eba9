//! Merging defaults, file, environment and flags into one checked table of values.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::files::Resolved;
use super::key::{Key, PREFIX, Preset};
use super::keys::{self, KEYS};
use super::password::with_password;
use super::print::{redact_url, redact_web};
use super::suggest::nearest;
use super::value::{Item, Kind, Value};
use super::{ConfigError, Flag};

/// Read when it exists and nothing else was named.
pub const DEFAULT_FILE: &str = "bigbrotr.toml";
/// Variable that names the file.
pub const FILE_VARIABLE: &str = "BIGBROTR_CONFIG";

/// Variables of ours that are not configuration: a file's name, the migrator's choices, the tests' own.
fn is_other(variable: &str) -> bool {
    matches!(
        variable,
        FILE_VARIABLE
            | super::identity::VARIABLE
            | "BIGBROTR_ROLE_PREFIX"
            | "BIGBROTR_SKIP_LOG"
            | "BIGBROTR_PG_STATE"
            | "BIGBROTR_DATABASE_URL"
    ) || variable.starts_with("BIGBROTR_TEST")
        || super::files::is_role_password(variable)
}

/// Checked values by path, and where each that is not a default came from.
#[derive(Debug, Clone)]
pub(super) struct Values {
    values: BTreeMap<&'static str, (Value, Option<String>)>,
    pub(super) file: Option<PathBuf>,
}

impl Values {
    pub(super) fn defaults() -> Self {
        Self { values: KEYS.iter().map(|key| (key.path, (preset(key), None))).collect(), file: None }
    }

    pub(super) fn get(&self, path: &'static str) -> &Value {
        self.values.get(path).map_or(&Value::Unset, |(value, _)| value)
    }

    /// Where the value came from; nothing for a default.
    pub(super) fn origin(&self, path: &str) -> Option<&str> {
        self.values.get(path).and_then(|(_, origin)| origin.as_deref())
    }

    /// Puts `database.password` into the URLs that have none.
    pub(super) fn fill_passwords(&mut self) {
        let Value::Text(password) = self.get("database.password").clone() else { return };
        for path in ["database.url", "database.direct_url"] {
            if let Some((Value::Text(url), _)) = self.values.get_mut(path) {
                *url = with_password(url, &password);
            }
        }
    }

    fn set(&mut self, key: &'static Key, value: Value, origin: &str) {
        self.values.insert(key.path, (value, Some(origin.to_owned())));
    }
}

pub(super) fn load(path: Option<&Path>, env: &Resolved, flags: &[Flag]) -> Result<Values, ConfigError> {
    let mut values = Values { file: find_file(path, &env.env), ..Values::defaults() };
    let mut problems = Vec::new();
    if let Some(file) = values.file.clone() {
        read_file(&file, &mut values, &mut problems)?;
    }
    read_environment(env, &mut values, &mut problems);
    for flag in flags {
        let key = keys::find(flag.key)
            .ok_or_else(|| ConfigError(vec![format!("no key is called {}", flag.key)]))?;
        match key.kind.parse(&flag.value) {
            Some(value) => values.set(key, value, flag.name),
            None => problems.push(wrong(flag.name, &flag.value, None, key)),
        }
    }
    values.fill_passwords();
    if problems.is_empty() { Ok(values) } else { Err(ConfigError(problems)) }
}

fn preset(key: &Key) -> Value {
    match key.preset {
        Preset::Unset => Value::Unset,
        Preset::Bool(on) => Value::Bool(on),
        Preset::Int(number) => Value::Int(number),
        Preset::Text(text) => Value::Text(text.to_owned()),
        Preset::Empty => Value::List(Vec::new()),
        Preset::Entries(entries) => Value::List(entries.iter().map(|entry| (*entry).to_owned()).collect()),
        Preset::Everything => match key.kind {
            Kind::List(Item::Words(words)) => {
                Value::List(words.iter().map(|word| (*word).to_owned()).collect())
            }
            _ => Value::List(Vec::new()),
        },
    }
}

fn find_file(path: Option<&Path>, env: &BTreeMap<String, String>) -> Option<PathBuf> {
    if let Some(path) = path {
        return Some(path.to_owned());
    }
    match env.get(FILE_VARIABLE).filter(|name| !name.is_empty()) {
        Some(name) => Some(PathBuf::from(name)),
        None => Path::new(DEFAULT_FILE).is_file().then(|| PathBuf::from(DEFAULT_FILE)),
    }
}

fn read_file(file: &Path, values: &mut Values, problems: &mut Vec<String>) -> Result<(), ConfigError> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|error| {
        ConfigError(vec![format!("the configuration file {name} cannot be read: {error}")])
    })?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // Only the place and the kind: the offending line may hold a password.
        let line =
            error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        ConfigError(vec![format!("{name} is not TOML, line {line}: {}", kind_of(error.message()))])
    })?;
    read_table("", &table, &name, values, problems);
    Ok(())
}

/// The first line of a parser's words, as far as it quotes nothing of the text.
fn kind_of(message: &str) -> &str {
    let line = message.lines().next().unwrap_or_default();
    line.split(['`', '"', '\'']).next().unwrap_or_default().trim_end()
}

fn read_table(
    section: &str,
    table: &toml::Table,
    file: &str,
    values: &mut Values,
    problems: &mut Vec<String>,
) {
    for (name, value) in table {
        let path = if section.is_empty() { name.clone() } else { format!("{section}.{name}") };
        if let Some(key) = keys::find(&path) {
            match key.kind.read(value) {
                Some(value) => values.set(key, value, file),
                None => problems.push(wrong(&path, &shown(value), Some(file), key)),
            }
        } else if path == super::identity::NOT_A_KEY {
            problems.push(super::identity::never_in_a_file(file));
        } else if let toml::Value::Table(inner) = value {
            read_table(&path, inner, file, values, problems);
        } else if KEYS.iter().any(|key| key.path.starts_with(&format!("{path}."))) {
            problems.push(format!("{path} (in {file}) must be a section, [{path}]"));
        } else {
            problems.push(unknown(
                &path,
                &format!("in {file}"),
                '.',
                KEYS.iter().map(|key| key.path.to_owned()),
            ));
        }
    }
}

fn read_environment(resolved: &Resolved, values: &mut Values, problems: &mut Vec<String>) {
    let env = &resolved.env;
    // The general name first: ours, the more specific one, wins.
    for (variable, path) in [("DATABASE_URL", "database.url"), ("BIGBROTR_DATABASE_URL", "database.url")] {
        if let (Some(text), Some(key)) = (env.get(variable).filter(|text| !text.is_empty()), keys::find(path))
        {
            read_variable(&resolved.origin(variable), text, key, values, problems);
        }
    }
    for (variable, text) in env.iter().filter(|(name, text)| name.starts_with(PREFIX) && !text.is_empty()) {
        if is_other(variable) {
            continue;
        }
        match KEYS.iter().find(|key| key.variable() == *variable) {
            Some(key) => read_variable(&resolved.origin(variable), text, key, values, problems),
            None => {
                problems.push(unknown(variable, "in the environment", '_', KEYS.iter().map(Key::variable)));
            }
        }
    }
}

fn read_variable(
    variable: &str,
    text: &str,
    key: &'static Key,
    values: &mut Values,
    problems: &mut Vec<String>,
) {
    // Blanks at the ends of a password are part of it: `migrate` sets it as it stands.
    let value = if matches!(key.kind, Kind::Secret { .. }) { text } else { text.trim() };
    match key.kind.parse(value) {
        Some(value) => values.set(key, value, variable),
        None => problems.push(wrong(variable, text, Some("the environment"), key)),
    }
}

fn wrong(name: &str, text: &str, place: Option<&str>, key: &Key) -> String {
    let text = match key.kind {
        Kind::Url => redact_url(text),
        Kind::Web => redact_web(text.trim_matches('"')),
        Kind::Secret { .. } => "***".to_owned(),
        _ => text.to_owned(),
    };
    let place = place.map(|place| format!(" (in {place})")).unwrap_or_default();
    format!("{name} is {text}{place}: it must be {}", key.kind.expects())
}

fn unknown(name: &str, place: &str, separator: char, known: impl Iterator<Item = String>) -> String {
    match nearest(name, separator, known) {
        Some(near) => format!("{name} ({place}) is not known: did you mean {near}?"),
        None => format!("{name} ({place}) is not known: `bigbrotr config --keys` lists every key"),
    }
}

/// A value of the file in one line.
fn shown(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => format!("{text:?}"),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(on) => on.to_string(),
        toml::Value::Datetime(time) => time.to_string(),
        toml::Value::Array(entries) => {
            format!("[{}]", entries.iter().map(shown).collect::<Vec<_>>().join(", "))
        }
        toml::Value::Table(_) => "a section".to_owned(),
    }
}
