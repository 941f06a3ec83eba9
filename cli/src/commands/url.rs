//! `url`: the one spelling of a relay's URL, or why it has none.

use std::io::Read as _;

use serde::Serialize;
use shared::config::Config;
use shared::models::{AddressPolicy, RelayUrl};

use crate::Session;
use crate::args::Url;
use crate::output::{Fail, line};

/// One text and what became of it; exactly the fields that are promised.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    input: &'a str,
    url: Option<&'a str>,
    network: Option<&'static str>,
    reason: Option<&'static str>,
}

pub(crate) fn url(session: &Session, config: &Config, args: &Url) -> Result<(), Fail> {
    let policy = config.policy();
    let mut refused = false;
    for text in &args.texts {
        if text == "-" {
            let mut bytes = Vec::new();
            std::io::stdin()
                .read_to_end(&mut bytes)
                .map_err(|error| Fail::Failed(format!("standard input cannot be read: {error}")))?;
            for text in String::from_utf8_lossy(&bytes).lines() {
                refused |= !answer(text, &policy, session.global.json);
            }
        } else {
            refused |= !answer(text, &policy, session.global.json);
        }
    }
    if refused { Err(Fail::Found) } else { Ok(()) }
}

/// Prints the answer; whether the text is a URL.
fn answer(text: &str, policy: &AddressPolicy, json: bool) -> bool {
    let parsed = RelayUrl::parse(text, policy);
    if json {
        let answer = Answer {
            input: text,
            url: parsed.as_ref().ok().map(RelayUrl::as_str),
            network: parsed.as_ref().ok().map(|url| url.network().as_str()),
            reason: parsed.as_ref().err().map(|error| error.reason()),
        };
        line(&serde_json::to_string(&answer).unwrap_or_default());
    } else {
        match &parsed {
            Ok(url) => line(&format!("{url}  {}", url.network())),
            Err(error) => line(&format!("refused  {}: {error} ({})", text.escape_debug(), error.reason())),
        }
    }
    parsed.is_ok()
}
