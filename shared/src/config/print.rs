//! Printing the configuration in force, without passwords.

use std::fmt::Write as _;

use super::key::Key;
use super::keys::KEYS;
use super::load::Values;
use super::value::{Kind, Value};

/// A URL with its password replaced; anything that is no URL is hidden whole.
pub fn redact_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "***".to_owned() };
    // An @ behind a ? means that the password holds the ?: nothing of it can be told apart.
    if let (Some(query), Some(at)) = (rest.find('?'), rest.rfind('@'))
        && query < at
    {
        return format!("{scheme}://***");
    }
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let rest = match rest.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((user, _)) => format!("{user}:***@{host}"),
            None => format!("{user}@{host}"),
        },
        None => rest.to_owned(),
    };
    let query = query.map(|query| {
        let hide = |pair: &str| match pair.split_once('=') {
            Some((name, _)) if name.contains("password") => format!("{name}=***"),
            _ => pair.to_owned(),
        };
        format!("?{}", query.split('&').map(hide).collect::<Vec<_>>().join("&"))
    });
    format!("{scheme}://{rest}{}", query.unwrap_or_default())
}

/// What stands for a secret.
const HIDDEN: &str = "***";

/// Scheme and host of an http URL: what stands behind them is often the key to the place.
pub(super) fn redact_web(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "***".to_owned() };
    match rest.find(['/', '?', '#']) {
        Some(end) if end + 1 < rest.len() => format!("{scheme}://{}/***", &rest[..end]),
        _ => url.to_owned(),
    }
}

/// The value as TOML; nothing for one that is unset and has no word for that.
fn literal(key: &Key, value: &Value) -> Option<String> {
    // JSON escapes are TOML escapes.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    match value {
        Value::Unset => match key.kind {
            Kind::IntOr { word, .. } | Kind::AmountOr { word, .. } => Some(quoted(word)),
            _ => None,
        },
        Value::Bool(on) => Some(on.to_string()),
        Value::Int(number) => Some(number.to_string()),
        Value::Amount(number) => Some(number.to_string()),
        Value::Text(text) if key.kind == Kind::Url => Some(quoted(&redact_url(text))),
        Value::Text(text) if key.kind == Kind::Web => Some(quoted(&redact_web(text))),
        Value::Text(_) if matches!(key.kind, Kind::Secret { .. }) => Some(quoted(HIDDEN)),
        Value::Text(text) => Some(quoted(text)),
        Value::List(entries) => {
            Some(format!("[{}]", entries.iter().map(|entry| quoted(entry)).collect::<Vec<_>>().join(", ")))
        }
    }
}

/// Every key with its value, as a file that could be read again but for passwords; says where values came from.
pub(super) fn to_toml(values: &Values) -> String {
    let mut text = String::new();
    let mut open = "";
    for key in KEYS {
        let (section, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        if section != open {
            let gap = if open.is_empty() { "" } else { "\n" };
            put(&mut text, format_args!("{gap}[{section}]\n"));
            open = section;
        }
        let origin = values.origin(key.path).map(|origin| format!("  # {origin}")).unwrap_or_default();
        match literal(key, values.get(key.path)) {
            Some(value) => put(&mut text, format_args!("{name} = {value}{origin}\n")),
            None => put(&mut text, format_args!("# {name} is not set\n")),
        }
    }
    text
}

/// The value as JSON, passwords hidden; null when unset.
pub(super) fn to_json(key: &Key, value: &Value) -> serde_json::Value {
    match value {
        Value::Text(text) if key.kind == Kind::Url => redact_url(text).into(),
        Value::Text(text) if key.kind == Kind::Web => redact_web(text).into(),
        Value::Text(_) if matches!(key.kind, Kind::Secret { .. }) => HIDDEN.into(),
        Value::Unset => match key.kind {
            Kind::IntOr { word, .. } | Kind::AmountOr { word, .. } => word.into(),
            _ => serde_json::Value::Null,
        },
        Value::Bool(on) => (*on).into(),
        Value::Int(number) => (*number).into(),
        Value::Amount(number) => (*number).into(),
        Value::Text(text) => text.as_str().into(),
        Value::List(entries) => entries.as_slice().into(),
    }
}

/// Every key with its meaning: what it must be, its default, its variable. One line per key, parted by tabs.
pub fn key_lines() -> Vec<[String; 5]> {
    let defaults = Values::defaults();
    KEYS.iter()
        .map(|key| {
            let default = literal(key, defaults.get(key.path)).unwrap_or_default();
            [key.path.to_owned(), key.variable(), default, key.kind.expects(), key.doc.to_owned()]
        })
        .collect()
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.write_fmt(line).expect("a String takes any text");
}

#[cfg(test)]
mod tests {
    use super::{redact_url, redact_web};

    #[test]
    fn passwords_never_show_wherever_they_stand() {
        assert_eq!(redact_url("postgres://u:p:w@d@h:5432/n"), "postgres://u:***@h:5432/n");
        assert_eq!(
            redact_url("postgres://u@h/n?sslmode=require&password=x"),
            "postgres://u@h/n?sslmode=require&password=***"
        );
        assert_eq!(redact_url("postgres:///n?host=/run/x"), "postgres:///n?host=/run/x");
        assert_eq!(redact_url("hunter2"), "***");
    }

    #[test]
    fn of_a_webhook_only_the_host_is_printed() {
        assert_eq!(redact_web("https://hooks.example/services/T0/secret?x=1"), "https://hooks.example/***");
        assert_eq!(redact_web("https://hooks.example?token=secret"), "https://hooks.example/***");
        assert_eq!(redact_web("http://127.0.0.1:9/"), "http://127.0.0.1:9/");
    }
}
