//! `candidate`: URLs that may be relays.

use serde_json::{Value, json};
use shared::config::Config;
use shared::db::{CandidateLine, Db, SourceLine, Sources};
use shared::models::{AddressPolicy, RelayUrl, Source};

use super::operate::actor;
use super::relay::{monitor_json, print_monitors};
use crate::Session;
use crate::args::Candidate;
use crate::output::{Fail, line, row, table, utc, warn};

pub(crate) async fn candidate(session: &Session, config: &Config, args: &Candidate) -> Result<(), Fail> {
    let json = session.global.json;
    let role = match args {
        Candidate::Revive { .. } => "bigbrotr_writer",
        _ => "bigbrotr_reader",
    };
    let db = session.database(config, role).await?;
    match args {
        Candidate::List { state, source, limit } => list(&db, state.as_deref(), *source, *limit, json).await,
        Candidate::Show { url } => show(&db, &parse(url)?, json).await,
        Candidate::Capped { limit } => capped(&db, *limit, json).await,
        Candidate::Revive { urls, by } => {
            let urls = urls.iter().map(|url| parse(url)).collect::<Result<Vec<_>, _>>()?;
            let revived = db.candidate_revive(&urls, &actor(by, &session.user())).await?;
            if revived == 0 {
                return Err(Fail::Failed("none of these is a candidate that nobody excluded".to_owned()));
            }
            if json {
                line(&json!({ "revived": revived }).to_string());
            } else {
                line(&format!("{revived} of {} are due now", urls.len()));
            }
            Ok(())
        }
    }
}

/// A URL in any spelling; whatever policy let it in, it may be named.
fn parse(text: &str) -> Result<RelayUrl, Fail> {
    RelayUrl::parse(text, &AddressPolicy::any())
        .map_err(|error| Fail::Failed(format!("{}: {error} ({})", text.escape_debug(), error.reason())))
}

async fn list(
    db: &Db,
    state: Option<&str>,
    source: Option<Source>,
    limit: u32,
    json: bool,
) -> Result<(), Fail> {
    let mut after = String::new();
    let mut left = limit;
    let mut rows = vec![row(["URL", "STATE", "SEEN IN", "FAILURES", "LATEST REASON", "NEXT"])];
    let mut bad = false;
    while left > 0 {
        let page = db.candidate_list(&after, None, state, source.map(Source::as_str), left).await?;
        let Some(last) = page.iter().rev().find_map(|found| found.as_ref().ok()) else { break };
        last.url.as_str().clone_into(&mut after);
        left = left.saturating_sub(u32::try_from(page.len()).unwrap_or(u32::MAX));
        for found in page {
            match found {
                Ok(found) if json => line(&candidate_json(&found).to_string()),
                Ok(found) => rows.push(candidate_row(&found)),
                Err(error) => {
                    bad = true;
                    warn(&error.to_string());
                }
            }
        }
    }
    if !json {
        table(&rows);
    }
    if bad { Err(Fail::Found) } else { Ok(()) }
}

fn state_of(candidate: &CandidateLine) -> &str {
    match candidate {
        CandidateLine { excluded: Some(kind), .. } => kind,
        CandidateLine { tombstoned_at: Some(_), .. } => "given-up",
        CandidateLine { last_tried_at: None, .. } => "untried",
        _ => "failing",
    }
}

fn candidate_json(c: &CandidateLine) -> Value {
    json!({
        "url": c.url.as_str(), "network": c.url.network(), "state": state_of(c), "source": c.source,
        "first_seen_at": c.first_seen_at, "last_seen_at": c.last_seen_at, "seen_count": c.seen_count, "failures": c.failures,
        "last_tried_at": c.last_tried_at, "outcome": c.last_outcome, "reason": c.last_reason, "detail": c.last_detail,
        "open_ms": c.last_open_ms, "given_up_at": c.tombstoned_at, "excluded": c.excluded, "due_at": c.due_at,
    })
}

fn candidate_row(c: &CandidateLine) -> Vec<String> {
    row([
        c.url.as_str(),
        state_of(c),
        &c.source,
        &c.failures.to_string(),
        c.last_reason.as_deref().unwrap_or_default(),
        &c.due_at.map(utc).unwrap_or_default(),
    ])
}

async fn show(db: &Db, url: &RelayUrl, json: bool) -> Result<(), Fail> {
    let found = db.candidate_list("", Some(url.as_str()), None, None, 1).await?;
    let found = found.into_iter().next().transpose()?;
    let sources = db.candidate_sources(url).await?;
    let others = db.disagreement_list(url).await?;
    let is_relay = others.first().is_some_and(|other| other.our_state != "unknown");
    let strange = found.is_none() && sources.lines.is_empty() && !is_relay;
    if strange && others.is_empty() {
        return Err(Fail::Failed(format!("{url} is no candidate and never was{}", not_taken(url, &sources))));
    }
    if json {
        let state = if strange { "unknown" } else { "relay" };
        let mut value =
            found.as_ref().map_or_else(|| json!({ "url": url.as_str(), "state": state }), candidate_json);
        value["sources"] = sources.lines.iter().map(source_json).collect();
        value["refused_on_host"] = sources.refused_on_host.into();
        value["refused_on_site"] = sources.refused_on_site.into();
        value["refused_on_hoster"] = sources.refused_on_hoster.into();
        value["refused_in_all"] = sources.refused_in_all.into();
        value["monitors"] = others.iter().map(monitor_json).collect();
        line(&value.to_string());
        return Ok(());
    }
    line(url.as_str());
    match &found {
        Some(found) => table(&facts(found)),
        None if strange => {
            line(&format!("  no candidate, and never was{}", not_taken(url, &sources)));
            print_monitors(&others);
            return Ok(());
        }
        None => line("  a relay by now: `bigbrotr relay show` knows more"),
    }
    print_monitors(&others);
    line("seen in");
    let mut rows = vec![row(["  SOURCE", "WHERE", "FIRST", "LATEST", "TIMES"])];
    rows.extend(sources.lines.iter().map(|s| {
        let source = format!("  {}", s.source);
        row([&source, &s.origin, &utc(s.first_seen_at), &utc(s.last_seen_at), &s.seen_count.to_string()])
    }));
    table(&rows);
    if let Some(refused) = sources.refused_on_host {
        line(&format!("{refused} other URLs of {} were not taken", url.host()));
    }
    if let Some(refused) = sources.refused_on_site {
        line(&format!("{refused} URLs of other hosts of its domain were not taken"));
    }
    if let Some(refused) = sources.refused_on_hoster {
        line(&format!("{refused} URLs of other customers of its hoster were not taken"));
    }
    Ok(())
}

/// Why it may not have been taken, as the end of a sentence.
fn not_taken(url: &RelayUrl, sources: &Sources) -> String {
    let (n, of, who) = match sources {
        Sources { refused_on_host: Some(n), .. } => (n, url.host(), "it has as many as one host may have"),
        Sources { refused_on_site: Some(n), .. } => (n, "its domain", "it has as many as one may have"),
        Sources { refused_on_hoster: Some(n), .. } => (n, "its hoster", "it has as many as one may have"),
        Sources { refused_in_all: Some(n), .. } => {
            (n, "strangers", "there were as many candidates as may be")
        }
        _ => return String::new(),
    };
    format!("; {n} URLs of {of} were not taken: {who}")
}

async fn capped(db: &Db, limit: u32, json: bool) -> Result<(), Fail> {
    let capped = db.candidate_capped(limit).await?;
    if json {
        for c in &capped {
            let of =
                json!({ "name": c.name, "refused": c.refused, "last_url": c.last_url, "last_at": c.last_at });
            line(&of.to_string());
        }
        return Ok(());
    }
    let mut rows = vec![row(["NAME", "NOT TAKEN", "LATEST", "FOR EXAMPLE"])];
    rows.extend(capped.iter().map(|c| row([&c.name, &c.refused.to_string(), &utc(c.last_at), &c.last_url])));
    table(&rows);
    Ok(())
}

fn facts(c: &CandidateLine) -> Vec<Vec<String>> {
    let look = c.last_tried_at.map_or_else(
        || "never".to_owned(),
        |at| {
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            let open = c.last_open_ms.map(|ms| format!(", open after {ms} ms")).unwrap_or_default();
            format!(
                "{}: {} ({}){open} {}",
                utc(at),
                text(&c.last_outcome),
                text(&c.last_reason),
                text(&c.last_detail)
            )
        },
    );
    vec![
        row(["  network", c.url.network().as_str()]),
        row(["  state", state_of(c)]),
        row(["  first seen", &utc(c.first_seen_at)]),
        row(["  latest look", look.trim_end()]),
        row(["  failures", &c.failures.to_string()]),
        row(["  next look", &c.due_at.map_or_else(|| "none".to_owned(), utc)]),
    ]
}

fn source_json(s: &SourceLine) -> Value {
    json!({
        "source": s.source, "origin": s.origin, "first_seen_at": s.first_seen_at, "last_seen_at": s.last_seen_at,
        "seen_count": s.seen_count,
    })
}
