//! `relay exclude`, `include`, `excluded`: who is left alone.

use serde_json::json;
use shared::config::Config;
use shared::models::{AddressPolicy, IpRange, RelayUrl};

use super::operate::actor;
use crate::Session;
use crate::args::Exclusion;
use crate::output::{Fail, line, row, table, utc};

pub(super) async fn exclusion(session: &Session, config: &Config, args: &Exclusion) -> Result<(), Fail> {
    let json = session.global.json;
    let role = match args {
        Exclusion::Excluded => "bigbrotr_reader",
        _ => "bigbrotr_writer",
    };
    let db = session.database(config, role).await?;
    match args {
        Exclusion::Exclude { targets, blocked, by } => {
            let targets = parse_all(&targets.targets)?;
            let kind = if *blocked { "blocked" } else { "opt_out" };
            let (known, cancelled, stopping) =
                db.relay_exclude(&targets, kind, &actor(by, &session.user())).await?;
            if json {
                let value = json!({
                    "targets": targets, "kind": kind, "known": known, "cancelled": cancelled, "stopping": stopping,
                });
                line(&value.to_string());
            } else {
                line(&format!(
                    "left alone from now on: {}; {known} known URLs, {cancelled} jobs cancelled, {stopping} being stopped",
                    targets.join(", ")
                ));
            }
        }
        Exclusion::Include { targets, by } => {
            let targets = parse_all(&targets.targets)?;
            let (removed, scheduled) = db.relay_include(&targets, &actor(by, &session.user())).await?;
            if removed == 0 {
                return Err(Fail::Failed(format!("not excluded: {}", targets.join(", "))));
            }
            if json {
                line(&json!({ "removed": removed, "scheduled": scheduled }).to_string());
            } else {
                line(&format!("{removed} exclusions taken back, {scheduled} jobs scheduled"));
            }
        }
        Exclusion::Excluded => {
            let excluded = db.exclusion_list().await?;
            let mut rows = vec![row(["TARGET", "KIND", "KNOWN", "SINCE", "WHO", "WHY"])];
            for x in &excluded {
                if json {
                    let value = json!({
                        "target": x.target, "kind": x.kind, "known": x.known, "excluded_at": x.excluded_at,
                        "actor": x.actor, "why": x.why,
                    });
                    line(&value.to_string());
                }
                rows.push(row([
                    &x.target,
                    &x.kind,
                    &x.known.to_string(),
                    &utc(x.excluded_at),
                    &x.actor,
                    &x.why,
                ]));
            }
            match (json, excluded.is_empty()) {
                (true, _) => {}
                (false, true) => line("nobody is left alone"),
                (false, false) => table(&rows),
            }
        }
    }
    Ok(())
}

fn parse_all(texts: &[String]) -> Result<Vec<String>, Fail> {
    texts.iter().map(|text| parse(text)).collect()
}

/// A URL, a host or `*.host`, each in its one spelling.
fn parse(text: &str) -> Result<String, Fail> {
    let policy = AddressPolicy::any();
    let wrong = |error: shared::models::UrlError| {
        Fail::Usage(format!("{}: {error}; a relay's URL, a host, or *.host", text.escape_debug()))
    };
    if text.contains("://") {
        return RelayUrl::parse(text, &policy).map(|url| url.to_string()).map_err(wrong);
    }
    if text.contains('/') && text.parse::<IpRange>().is_ok() {
        let why = "which names lead to a range of addresses is known to the dial alone: network.deny in the configuration of the workers";
        return Err(Fail::Usage(format!("{text}: {why}")));
    }
    let (star, host) = text.strip_prefix("*.").map_or(("", text), |host| ("*.", host));
    let bracketed =
        if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
    match RelayUrl::parse(&format!("wss://{bracketed}"), &policy) {
        Ok(url) if url.path_and_query() == "/" && url.authority().trim_matches(['[', ']']) == url.host() => {
            Ok(format!("{star}{}", url.host()))
        }
        // An overlay's own parent is not a host that one could dial.
        Err(_)
            if !star.is_empty()
                && !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) =>
        {
            Ok(format!("{star}{}", host.to_ascii_lowercase()))
        }
        Ok(_) => {
            Err(Fail::Usage(format!("{}: a host has no port and no path; name the URL", text.escape_debug())))
        }
        Err(error) => Err(wrong(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_have_one_spelling() {
        for (text, target) in [
            ("WSS://Relay.Example:443/", "wss://relay.example"),
            ("Relay.Example", "relay.example"),
            ("*.Spam.example", "*.spam.example"),
            ("2001:DB8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("10.0.0.1", "10.0.0.1"),
            ("*.onion", "*.onion"),
        ] {
            assert_eq!(parse(text).ok().as_deref(), Some(target), "{text}");
        }
        for text in
            ["", "relay.example:8080", "relay.example/x", "https://relay.example", "a b", "*", "*.", "*.a b"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        let Err(Fail::Usage(said)) = parse("203.0.113.0/24") else { panic!("a range is no target") };
        assert!(said.contains("network.deny"), "{said}");
    }
}
