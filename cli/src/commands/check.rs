//! `check`: what the monitor would see of one relay, now and without a database.

use serde_json::json;
use shared::checks::{CheckKind, MonitorReport, run_all};
use shared::config::Config;
use shared::models::{Outcome, RelayUrl};
use shared::net::Dialer;

use crate::Session;
use crate::args::Check;
use crate::output::{Fail, line, table};

pub(crate) async fn check(session: &Session, config: &Config, args: &Check) -> Result<(), Fail> {
    let url = RelayUrl::parse(&args.url, &config.policy()).map_err(|error| {
        Fail::Failed(format!("{}: {error} ({})", args.url.escape_debug(), error.reason()))
    })?;
    let dialer = Dialer::new(config.net_config()?).map_err(|error| Fail::Usage(error.to_string()))?;
    if !dialer.serves(url.network()) {
        let network = url.network();
        return Err(Fail::Usage(format!(
            "{url} is a relay of {network}, which is not enabled: set network.{network}.enabled{}",
            if network.is_overlay() { format!(" and network.{network}.proxy") } else { String::new() }
        )));
    }
    let report = Box::pin(run_all(&dialer, &url, &config.looks().only(CheckKind::ALL))).await;
    if session.global.json {
        print_json(&url, &report);
    } else {
        print_text(&url, &report);
    }
    if report.up { Ok(()) } else { Err(Fail::Found) }
}

fn print_json(url: &RelayUrl, report: &MonitorReport) {
    let checks: Vec<_> = report
        .observations
        .iter()
        .map(|seen| {
            json!({
                "check": seen.kind.as_str(), "outcome": seen.outcome, "reason": seen.reason, "detail": seen.detail,
                "open_ms": seen.rtt_ms[0], "read_ms": seen.rtt_ms[1], "write_ms": seen.rtt_ms[2],
                "document": seen.document.as_ref().and_then(|d| serde_json::from_str::<serde_json::Value>(d.canonical()).ok()),
            })
        })
        .collect();
    let value = json!({
        "url": url.as_str(), "network": url.network(), "up": report.up, "evidence": report.evidence,
        "reason": report.reason, "ours": report.ours, "addresses": report.addresses, "checks": checks,
    });
    line(&value.to_string());
}

fn print_text(url: &RelayUrl, report: &MonitorReport) {
    let verdict = match (report.up, report.ours) {
        (true, _) => format!("speaks Nostr ({})", report.evidence),
        (false, true) => {
            format!("could not be asked: {} (our own fault, it says nothing about the relay)", report.reason)
        }
        (false, false) => format!("does not answer as a relay: {}", report.reason),
    };
    line(&format!("{url}  {verdict}"));
    let rows: Vec<Vec<String>> = report
        .observations
        .iter()
        .map(|seen| {
            let why = if seen.outcome == Outcome::Ok { String::new() } else { seen.reason.to_string() };
            let times = ["open", "read", "write"].iter().zip(seen.rtt_ms);
            let times: Vec<String> =
                times.filter_map(|(name, ms)| ms.map(|ms| format!("{name} {ms} ms"))).collect();
            let mut notes = [why, times.join(", "), seen.detail.clone()].to_vec();
            notes.retain(|note| !note.is_empty());
            vec![format!("  {}", seen.kind), seen.outcome.to_string(), notes.join("; ")]
        })
        .collect();
    table(&rows);
}
