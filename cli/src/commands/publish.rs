//! `publish`: where the outbox stands, and what would be said.

use serde_json::{Value, json};
use shared::clock;
use shared::config::Config;
use shared::db::{Db, PublicationLine};
use shared::jobs::publish::{draft_of, may_be_said};
use shared::nips::nip66::Draft;

use super::check::look;
use crate::Session;
use crate::args::Publish;
use crate::output::{Fail, line, row, table, utc};

pub(crate) async fn publish(session: &Session, config: &Config, args: &Publish) -> Result<(), Fail> {
    let json = session.global.json;
    match args {
        Publish::Status => status(&session.database(config, "bigbrotr_reader").await?, json).await,
        Publish::Preview { url: Some(url), .. } => {
            let (url, report) = look(config, url, &config.looks()).await?;
            let draft = draft_of(&url, &report, &config.published()).ok_or_else(|| {
                let why = if !report.up {
                    format!("it is not up ({})", report.reason)
                } else if may_be_said(&url, &report, &config.published()) {
                    "the check rtt is off".to_owned()
                } else {
                    "its name or an address is not public, and publish.local is false".to_owned()
                };
                Fail::Failed(format!("nothing would be said of {url}: {why}"))
            })?;
            show(config, draft, json)
        }
        Publish::Preview { url: None, .. } => {
            let interval = config.jobs_config().monitor_interval;
            let drafts =
                config.about().announcements(interval, &config.looks(), &config.jobs_config().write_probe);
            drafts.into_iter().try_for_each(|draft| show(config, draft, json))
        }
    }
}

/// The event as it would be sent, or without id and signature where there is no key.
fn show(config: &Config, draft: Draft, json: bool) -> Result<(), Fail> {
    let now = clock::unix_now();
    let value: Value = match config.identity() {
        Some(keys) => {
            let event = draft.sign(&keys, now).map_err(|error| Fail::Failed(error.to_string()))?;
            serde_json::from_str(&event.to_json()).map_err(|error| Fail::Failed(error.to_string()))?
        }
        None => {
            json!({ "created_at": now, "kind": draft.kind, "tags": draft.tags, "content": draft.content })
        }
    };
    if json {
        line(&value.to_string());
        return Ok(());
    }
    // One tag a line: that is what one reads here.
    let Value::Object(event) = value else { return Ok(()) };
    for (name, value) in event {
        match value {
            Value::Array(tags) => {
                line("tags");
                for tag in tags {
                    line(&format!("  {tag}"));
                }
            }
            Value::String(text) => line(&format!("{name}  {text}")),
            other => line(&format!("{name}  {other}")),
        }
    }
    Ok(())
}

async fn status(db: &Db, json: bool) -> Result<(), Fail> {
    let relays = db.publication_list().await?;
    if json {
        for relay in &relays {
            line(&status_json(relay).to_string());
        }
    } else if relays.is_empty() {
        line("nothing is published yet (publish.enabled, publish.relays)");
    } else {
        let mut rows =
            vec![row(["RELAY", "PENDING", "ACCEPTED", "REFUSED", "AGAIN", "LAST ACCEPTED", "TROUBLE"])];
        rows.extend(relays.iter().map(|relay| {
            let [pending, accepted, refused, waiting] = relay.counts.map(|count| count.to_string());
            let last = relay.accepted_at.map(utc).unwrap_or_default();
            row([&relay.url, &pending, &accepted, &refused, &waiting, &last, &trouble(relay)])
        }));
        table(&rows);
    }
    let bad = relays.iter().any(|relay| relay.failures > 0 || relay.counts[2] > 0);
    if bad { Err(Fail::Found) } else { Ok(()) }
}

fn trouble(relay: &PublicationLine) -> String {
    let mut text = Vec::new();
    if relay.failures > 0 {
        text.push(format!("{} ({} in a row, again at {})", relay.words, relay.failures, utc(relay.next_at)));
    }
    if let Some((words, at, kind, d)) = &relay.refusal {
        let words = if words.is_empty() { "no answer" } else { words.as_str() };
        text.push(format!("{} kind {kind} {d}: {words}", utc(*at)));
    }
    text.join("; ")
}

fn status_json(relay: &PublicationLine) -> Value {
    let refusal = relay
        .refusal
        .as_ref()
        .map(|(words, at, kind, d)| json!({ "words": words, "at": at, "kind": kind, "d": d }));
    let [pending, accepted, refused, waiting] = relay.counts;
    json!({
        "relay": relay.url, "pending": pending, "accepted": accepted, "refused": refused, "waiting": waiting,
        "failures": relay.failures, "words": relay.words, "tried_at": relay.tried_at, "next_at": relay.next_at,
        "accepted_at": relay.accepted_at, "refusal": refusal,
    })
}
