//! What a value may be, and reading it from TOML or from the text of an environment variable.

use std::net::{IpAddr, SocketAddr};

use crate::models::{DAYS_MAX, IpRange, KindRule, PortRange};
use crate::net::is_contact;

/// What the entries of a list are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Item {
    /// Any text that is not empty.
    Text,
    /// One of these words.
    Words(&'static [&'static str]),
    /// An address range.
    Range,
    /// An IP address, with or without a port.
    NameServer,
    /// A relay's URL; checked under the policy once that is known.
    Relay,
    /// A URL and a JMESPath expression; checked once the policy is known. Commas are part of expressions.
    Source,
    /// A kind or a range of kinds, and days.
    KindRule,
    /// A port or a range of ports.
    Port,
    /// A relay's URL and days; the URL is checked under the policy once that is known.
    RelayDays,
}

/// What a key may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// true or false.
    Bool,
    /// A whole number in a range.
    Int {
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
    },
    /// A whole number in a range, or a word that stands for no limit.
    IntOr {
        /// Smallest.
        min: i64,
        /// Largest.
        max: i64,
        /// The word.
        word: &'static str,
    },
    /// A number in a range, or a word that stands for no limit.
    AmountOr {
        /// Smallest.
        min: f64,
        /// Largest.
        max: f64,
        /// The word.
        word: &'static str,
    },
    /// A text that is not empty.
    Text {
        /// Most bytes.
        max: usize,
    },
    /// One of these words.
    Words(&'static [&'static str]),
    /// A PostgreSQL URL; holds a password.
    Url,
    /// An http or https URL; its path may be a secret.
    Web,
    /// What is shown to nobody.
    Secret {
        /// Fewest bytes.
        min: usize,
    },
    /// `host:port`.
    HostPort,
    /// An IP address and a port.
    Socket,
    /// A mail address or a URL, to be shown to everybody.
    Contact,
    /// A list.
    List(Item),
}

/// A value that was read and found right.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// Nothing, or no limit.
    Unset,
    /// A switch.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Amount(f64),
    /// A text.
    Text(String),
    /// Entries in order.
    List(Vec<String>),
}

impl Kind {
    /// What is expected, as the end of a sentence: "it must be …".
    pub(super) fn expects(&self) -> String {
        match self {
            Self::Bool => "true or false".to_owned(),
            Self::Int { min, max } => format!("a whole number between {min} and {max}"),
            Self::IntOr { min, max, word } => {
                format!("a whole number between {min} and {max}, or \"{word}\"")
            }
            Self::AmountOr { min, max, word } => format!("a number between {min} and {max}, or \"{word}\""),
            Self::Text { max } => format!("a text of 1 to {max} bytes without control characters"),
            Self::Words(words) => format!("one of {}", words.join(", ")),
            Self::Url => "a URL of the form postgres://user:password@host:port/name".to_owned(),
            Self::Web => "a URL of the form https://host/path, without user and password".to_owned(),
            Self::Secret { min } => format!("a text of {min} to 256 bytes without control characters"),
            Self::HostPort => "host:port".to_owned(),
            Self::Socket => "an IP address and a port, such as 127.0.0.1:8080".to_owned(),
            Self::Contact => {
                "a mail address or an https URL, of at most 128 visible ASCII characters".to_owned()
            }
            Self::List(item) => format!("a list of {}", item.expects()),
        }
    }

    /// Reads a value of the file.
    pub(super) fn read(&self, value: &toml::Value) -> Option<Value> {
        match (self, value) {
            (Self::Bool, toml::Value::Boolean(on)) => Some(Value::Bool(*on)),
            (Self::Int { .. } | Self::IntOr { .. }, toml::Value::Integer(number)) => {
                self.parse(&number.to_string())
            }
            (Self::AmountOr { .. }, toml::Value::Integer(number)) => self.parse(&number.to_string()),
            (Self::AmountOr { .. }, toml::Value::Float(number)) => self.parse(&number.to_string()),
            (Self::IntOr { word, .. } | Self::AmountOr { word, .. }, toml::Value::String(text)) => {
                (text == word).then_some(Value::Unset)
            }
            (
                Self::Text { .. }
                | Self::Words(_)
                | Self::Url
                | Self::Web
                | Self::Secret { .. }
                | Self::HostPort
                | Self::Socket
                | Self::Contact,
                toml::Value::String(text),
            ) => self.parse(text),
            (Self::List(item), toml::Value::Array(entries)) => entries
                .iter()
                .map(|entry| item.entry(entry).filter(|text| item.accepts(text)))
                .collect::<Option<Vec<String>>>()
                .map(Value::List),
            _ => None,
        }
    }

    /// Reads the text of a variable or a flag; entries of lists are parted by commas, sources by semicolons.
    pub(super) fn parse(&self, text: &str) -> Option<Value> {
        match self {
            Self::Bool => match text {
                "true" | "1" | "yes" | "on" => Some(Value::Bool(true)),
                "false" | "0" | "no" | "off" => Some(Value::Bool(false)),
                _ => None,
            },
            Self::Int { min, max } => {
                text.parse().ok().filter(|number| (min..=max).contains(&number)).map(Value::Int)
            }
            Self::IntOr { word, .. } | Self::AmountOr { word, .. } if text == *word => Some(Value::Unset),
            Self::IntOr { min, max, .. } => {
                text.parse().ok().filter(|number| (min..=max).contains(&number)).map(Value::Int)
            }
            Self::AmountOr { min, max, .. } => {
                text.parse().ok().filter(|number| (min..=max).contains(&number)).map(Value::Amount)
            }
            Self::Text { max } => ((1..=*max).contains(&text.len()) && !text.contains(char::is_control))
                .then(|| Value::Text(text.to_owned())),
            Self::Words(words) => words.contains(&text).then(|| Value::Text(text.to_owned())),
            Self::Url => (text.starts_with("postgres://") || text.starts_with("postgresql://"))
                .then(|| Value::Text(text.to_owned())),
            Self::Web => is_web(text).then(|| Value::Text(text.to_owned())),
            Self::Secret { min } => ((*min..=256).contains(&text.len()) && !text.contains(char::is_control))
                .then(|| Value::Text(text.to_owned())),
            Self::HostPort => is_host_port(text).then(|| Value::Text(text.to_owned())),
            Self::Contact => is_contact(text).then(|| Value::Text(text.to_owned())),
            Self::Socket => text.parse::<SocketAddr>().is_ok().then(|| Value::Text(text.to_owned())),
            Self::List(item) => text
                .split(item.separator())
                .map(str::trim)
                .filter(|entry| !entry.is_empty())
                .map(|entry| item.accepts(entry).then(|| entry.to_owned()))
                .collect::<Option<Vec<String>>>()
                .map(Value::List),
        }
    }
}

impl Item {
    fn expects(self) -> String {
        match self {
            Self::Text => "texts".to_owned(),
            Self::Words(words) => format!("words out of {}", words.join(", ")),
            Self::Range => "address ranges, such as 10.0.0.0/8".to_owned(),
            Self::NameServer => "IP addresses, with or without a port".to_owned(),
            Self::Relay => "relay URLs, such as wss://relay.example".to_owned(),
            Self::Port => "ports and ranges of ports, such as 443 or 7000-7999".to_owned(),
            Self::KindRule => "rules for kinds, such as 7, 7:30 (days) or 20000-29999:30".to_owned(),
            Self::RelayDays => "relay URLs, each with days behind a blank, such as \"wss://relay.example 30\"".to_owned(),
            Self::Source => {
                "texts \"URL EXPRESSION\" (parted by ; in variables) or tables { url, expression }, the expression in JMESPath".to_owned()
            }
        }
    }

    /// What parts the entries in a variable or a flag.
    const fn separator(self) -> char {
        if matches!(self, Self::Source) { ';' } else { ',' }
    }

    /// An entry of the file as one text; a source may also be a table.
    fn entry(self, value: &toml::Value) -> Option<String> {
        match (self, value) {
            (_, toml::Value::String(text)) => Some(text.clone()),
            (Self::Port, toml::Value::Integer(number)) => Some(number.to_string()),
            (Self::Source, toml::Value::Table(table)) if table.len() == 2 => {
                let text = |key| table.get(key).and_then(toml::Value::as_str);
                Some(format!("{} {}", text("url")?, text("expression")?))
            }
            _ => None,
        }
    }

    fn accepts(self, text: &str) -> bool {
        match self {
            Self::Text => !text.is_empty(),
            Self::Words(words) => words.contains(&text),
            Self::Range => text.parse::<IpRange>().is_ok(),
            Self::NameServer => name_server(text).is_some(),
            Self::Relay => text.starts_with("ws://") || text.starts_with("wss://"),
            Self::Port => text.parse::<PortRange>().is_ok(),
            Self::KindRule => text.parse::<KindRule>().is_ok(),
            Self::RelayDays => relay_days(text).is_some(),
            Self::Source => text.starts_with("http://") || text.starts_with("https://"),
        }
    }
}

/// A DNS server: port 53 unless another is named.
pub(super) fn name_server(text: &str) -> Option<SocketAddr> {
    let port_53 = |ip: IpAddr| SocketAddr::new(ip, 53);
    text.parse().ok().or_else(|| text.parse().ok().map(port_53))
}

/// A relay's URL and the days behind it.
pub(super) fn relay_days(text: &str) -> Option<(&str, u32)> {
    let (url, days) = text.split_once(' ')?;
    let days = days.trim().parse().ok().filter(|days| *days <= DAYS_MAX)?;
    Item::Relay.accepts(url).then_some((url, days))
}

fn is_web(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let authority = rest.and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
    let plain = !text.contains(|c: char| c.is_control() || c.is_whitespace());
    !authority.is_empty() && !authority.contains('@') && plain && text.len() <= 2_048
}

fn is_host_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(['/', '@']) && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}
