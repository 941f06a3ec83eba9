//! `relay`: what is known of relays.

use serde_json::{Value, json};
use shared::config::Config;
use shared::db::{
    Actor, AsideLine, CoverageLine, Db, DbError, DifferenceLine, DisagreementLine, JobLine, LivenessLine,
    RelayLine, SpecimenLine,
};
use shared::models::{AddressPolicy, RelayUrl};

use super::exclusion::exclusion;
use super::operate::actor;
use super::queue::{job_json, job_row};
use crate::Session;
use crate::args::Relay;
use crate::output::{Fail, commas, line, row, table, utc, warn};

/// Finished jobs shown with a relay.
const JOBS: u32 = 5;
/// Characters shown of a text that a relay served.
const SHOWN: usize = 120;

pub(crate) async fn relay(session: &Session, config: &Config, args: &Relay) -> Result<(), Fail> {
    let json = session.global.json;
    if let Relay::Exclusion(args) = args {
        return exclusion(session, config, args).await;
    }
    if let Relay::Forgive { urls, by } = args {
        let db = session.database(config, "bigbrotr_writer").await?;
        let urls = urls.iter().map(|url| known(url)).collect::<Result<Vec<_>, Fail>>()?;
        return forgive(&db, &urls, &actor(by, &session.user()), json).await;
    }
    let db = session.database(config, "bigbrotr_reader").await?;
    match args {
        Relay::Exclusion(_) | Relay::Forgive { .. } => Ok(()),
        Relay::List { state } => list(&db, state.as_deref(), json).await,
        Relay::Show { url } => show(&db, &known(url)?, json).await,
        Relay::Coverage { url } => super::coverage::coverage(&db, &known(url)?, json).await,
        Relay::Uptime { url } => super::uptime::uptime(&db, &known(url)?, json).await,
    }
}

/// A relay's URL in any spelling; whatever policy let it in, it may be looked at.
fn known(url: &str) -> Result<RelayUrl, Fail> {
    RelayUrl::parse(url, &AddressPolicy::any())
        .map_err(|error| Fail::Failed(format!("{}: {error} ({})", url.escape_debug(), error.reason())))
}

async fn forgive(db: &Db, urls: &[RelayUrl], actor: &Actor, json: bool) -> Result<(), Fail> {
    let forgiven = db.relay_forgive(urls, actor).await?;
    if forgiven == 0 {
        let urls: Vec<&str> = urls.iter().map(RelayUrl::as_str).collect();
        return Err(Fail::Failed(format!("not set aside: {}", urls.join(", "))));
    }
    if json {
        line(&json!({ "forgiven": forgiven }).to_string());
    } else {
        line(&format!("{forgiven} relays are synced again, from now on"));
    }
    Ok(())
}

async fn list(db: &Db, state: Option<&str>, json: bool) -> Result<(), Fail> {
    let mut after = String::new();
    let mut bad: Vec<DbError> = Vec::new();
    let mut rows = vec![row(["URL", "STATE", "VANTAGES", "REASON", "OPEN", "CHECKED"])];
    loop {
        let page = db.relay_list(&after, state, None).await?;
        for relay in page.lines {
            match relay {
                Ok(relay) if json => line(&relay_json(&relay).to_string()),
                Ok(relay) => rows.push(relay_row(&relay)),
                // One bad row hides no other; the exit code tells of it.
                Err(error) => bad.push(error),
            }
        }
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    if !json {
        table(&rows);
    }
    match bad.pop() {
        None => Ok(()),
        Some(last) => {
            for error in &bad {
                warn(&error.to_string());
            }
            Err(last.into())
        }
    }
}

fn relay_json(relay: &RelayLine) -> Value {
    let [alive, suspect, down] = relay.vantages;
    json!({
        "url": relay.url.as_str(), "network": relay.url.network(), "state": relay.state, "reason": relay.reason,
        "since_at": relay.since_at, "vantages": { "alive": alive, "suspect": suspect, "down": down },
        "discovered_at": relay.discovered_at, "checked_at": relay.checked_at, "open_ms": relay.open_ms,
        "read_ms": relay.read_ms, "checks": checks(relay), "excluded": relay.excluded, "proof": relay.proof,
    })
}

/// `kind=outcome` texts as an object.
fn checks(relay: &RelayLine) -> Value {
    relay
        .checks
        .iter()
        .filter_map(|text| text.split_once('='))
        .map(|(kind, outcome)| (kind.to_owned(), Value::from(outcome)))
        .collect()
}

fn relay_row(relay: &RelayLine) -> Vec<String> {
    vec![
        relay.url.to_string(),
        relay.excluded.clone().unwrap_or_else(|| relay.state.clone()),
        vantages(relay),
        relay.reason.clone(),
        relay.open_ms.map(|ms| format!("{ms} ms")).unwrap_or_default(),
        relay.checked_at.map(utc).unwrap_or_default(),
    ]
}

/// How many vantages say what, such as `2 alive, 1 down`.
fn vantages(relay: &RelayLine) -> String {
    let said = ["alive", "suspect", "down"].iter().zip(relay.vantages).filter(|(_, n)| *n > 0);
    said.map(|(state, n)| format!("{n} {state}")).collect::<Vec<_>>().join(", ")
}

async fn show(db: &Db, url: &RelayUrl, json: bool) -> Result<(), Fail> {
    let found = db.relay_list("", None, Some(url.as_str())).await?;
    let Some(relay) = found.lines.into_iter().next().transpose()? else {
        return Err(Fail::Failed(format!(
            "{url} is not a known relay (a candidate becomes one once it has spoken Nostr)"
        )));
    };
    let coverage = db.relay_coverage(url).await?;
    let others = db.disagreement_list(url).await?;
    let differences = db.relay_differences(url).await?;
    let opinions = db.relay_opinions(url).await?;
    let aside = db.relay_set_aside(url).await?;
    let specimens = db.relay_specimens(url).await?;
    let mut jobs = db.job_list(None, Some(url.as_str()), JOBS).await?;
    jobs.extend(db.job_past(None, url.as_str(), JOBS).await?);
    if json {
        let mut value = relay_json(&relay);
        value["set_aside"] = aside.map_or(Value::Null, aside_json);
        value["differences"] = differences.iter().map(difference_json).collect();
        value["specimens"] = specimens.iter().map(specimen_json).collect();
        value["opinions"] = opinions.iter().map(opinion_json).collect();
        value["coverage"] = coverage.iter().map(coverage_json).collect();
        value["monitors"] = others.iter().map(monitor_json).collect();
        value["jobs"] = jobs.iter().map(job_json).collect();
        line(&value.to_string());
    } else {
        print_relay(&relay, aside, &opinions, &coverage, &others, &jobs);
        print_differences(&differences);
        print_specimens(&specimens);
    }
    Ok(())
}

fn difference_json(difference: &DifferenceLine) -> Value {
    json!({
        "subject": difference.subject, "claimed": difference.claimed, "measured": difference.measured, "at": difference.at,
    })
}

fn print_differences(differences: &[DifferenceLine]) {
    if differences.is_empty() {
        return;
    }
    line("does otherwise than it says");
    let lines = differences.iter().map(|d| row([&format!("  {}", d.subject), &d.claimed, "->", &d.measured]));
    table(&lines.collect::<Vec<_>>());
}

fn specimen_json(specimen: &SpecimenLine) -> Value {
    json!({
        "reason": specimen.reason, "at": specimen.at, "bytes": specimen.bytes, "event": specimen.event,
    })
}

fn print_specimens(specimens: &[SpecimenLine]) {
    if specimens.is_empty() {
        return;
    }
    line("served what is no event, or a forged one (all that is kept of it: --json)");
    let shown = |s: &SpecimenLine| {
        let bytes = format!("{} bytes", commas(u64::from(s.bytes.unsigned_abs())));
        row([&format!("  {}", s.reason), &utc(s.at), &bytes, &beginning(&s.event)])
    };
    table(&specimens.iter().map(shown).collect::<Vec<_>>());
}

/// The first characters of a text that a stranger wrote; what a terminal would obey or not show is escaped.
fn beginning(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars().take(SHOWN) {
        if matches!(c, '"' | '\'' | '\\') {
            shown.push(c);
        } else {
            shown.extend(c.escape_debug());
        }
    }
    shown
}

fn opinion_json(opinion: &LivenessLine) -> Value {
    json!({
        "vantage": opinion.vantage, "state": opinion.state, "reason": opinion.reason, "since_at": opinion.since_at,
        "checked_at": opinion.checked_at, "stands": opinion.stands,
    })
}

fn coverage_json(stretch: &CoverageLine) -> Value {
    json!({
        "class": stretch.class, "since": stretch.since_at, "until": stretch.until_at, "grade": stretch.grade,
        "reason": stretch.reason, "observed_at": stretch.observed_at,
    })
}

pub(super) fn monitor_json(other: &DisagreementLine) -> Value {
    json!({
        "monitor": other.monitor, "seen_at": other.seen_at, "says": other.their_state, "open_ms": other.their_open_ms,
        "our_state": other.our_state, "our_outcome": other.our_end[0], "our_reason": other.our_end[1],
        "auth": other.their_needs[0], "payment": other.their_needs[1], "disagrees": other.disagrees,
    })
}

/// What other monitors say, each for itself.
pub(super) fn print_monitors(others: &[DisagreementLine]) {
    if others.is_empty() {
        return;
    }
    line("other monitors");
    let needs = |name: &str, says: Option<bool>| match says {
        Some(true) => format!("asks for {name}"),
        Some(false) => format!("no {name}"),
        None => String::new(),
    };
    let rows: Vec<Vec<String>> = others
        .iter()
        .map(|other| {
            let mut words = vec![
                other.their_state.clone(),
                other.their_open_ms.map(|ms| format!("open {ms} ms")).unwrap_or_default(),
                needs("auth", other.their_needs[0]),
                needs("payment", other.their_needs[1]),
            ];
            words.retain(|word| !word.is_empty());
            let differs = if other.disagrees.is_empty() {
                String::new()
            } else {
                format!("we differ: {}", other.disagrees.join(", "))
            };
            vec![
                format!("  {}", &other.monitor[..16.min(other.monitor.len())]),
                utc(other.seen_at),
                words.join(", "),
                differs,
            ]
        })
        .collect();
    table(&rows);
}

fn set_aside(aside: AsideLine) -> String {
    let AsideLine { aside_at, until_at, forged, delivered } = aside;
    format!(
        "{forged} of {delivered} events were forged: not synced since {}, until {} (or `relay forgive`)",
        utc(aside_at),
        utc(until_at)
    )
}

fn aside_json(aside: AsideLine) -> Value {
    json!({
        "since": aside.aside_at, "until": aside.until_at, "forged": aside.forged, "delivered": aside.delivered,
    })
}

fn print_relay(
    relay: &RelayLine,
    aside: Option<AsideLine>,
    opinions: &[LivenessLine],
    coverage: &[CoverageLine],
    others: &[DisagreementLine],
    jobs: &[JobLine],
) {
    line(&relay.url.to_string());
    let ms = |ms: Option<i32>| ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms} ms"));
    let because = |reason: &str| if reason == "none" { String::new() } else { format!(" ({reason})") };
    let since = relay.since_at.map(|at| format!(" since {}", utc(at))).unwrap_or_default();
    let checked = relay.checked_at.map_or_else(|| "never".to_owned(), utc);
    table(&[
        row(["  network", relay.url.network().as_str()]),
        row(["  state", &format!("{}{}{since}", relay.state, because(&relay.reason))]),
        row(["  excluded", relay.excluded.as_deref().unwrap_or("no")]),
        row(["  set aside", &aside.map_or_else(|| "no".to_owned(), set_aside)]),
        row([
            "  known since",
            &format!("{}, by {}", utc(relay.discovered_at), relay.proof.as_deref().unwrap_or("an import")),
        ]),
        row(["  checked", &checked]),
        row(["  rtt", &format!("open {}, read {}", ms(relay.open_ms), ms(relay.read_ms))]),
        row(["  checks", &relay.checks.join(", ")]),
    ]);
    line("vantages");
    let said = |opinion: &LivenessLine| {
        let old = if opinion.stands { "" } else { ", no longer counted" };
        let state = format!("{}{}", opinion.state, because(&opinion.reason));
        row([
            &format!("  {}", opinion.vantage),
            &state,
            &format!("looked at {}{old}", utc(opinion.checked_at)),
        ])
    };
    table(&opinions.iter().map(said).collect::<Vec<_>>());
    line("coverage");
    if coverage.is_empty() {
        line("  nothing has been asked yet");
    }
    let stretches: Vec<Vec<String>> = coverage
        .iter()
        .map(|stretch| {
            let reason = if stretch.reason == "none" { String::new() } else { stretch.reason.clone() };
            vec![
                format!("  {}", stretch.class),
                format!("{} to {}", utc(stretch.since_at), utc(stretch.until_at)),
                stretch.grade.clone(),
                reason,
            ]
        })
        .collect();
    table(&stretches);
    print_monitors(others);
    line("jobs");
    table(&jobs.iter().map(job_row).collect::<Vec<_>>());
}
