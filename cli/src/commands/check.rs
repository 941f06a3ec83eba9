//! `check`: what the monitor would see of one relay, now and without a database.

use serde_json::{Value, json};
use shared::checks::{CheckKind, Looks, MonitorReport, Observation, run_all};
use shared::clock;
use shared::config::Config;
use shared::models::{Outcome, RelayUrl};
use shared::net::Dialer;

use crate::Session;
use crate::args::Check;
use crate::output::{Fail, line, table};

/// The longest text of a relay's printed in a line.
const WORDS_CHARS: usize = 60;
const DAY_S: i64 = 86_400;

pub(crate) async fn check(session: &Session, config: &Config, args: &Check) -> Result<(), Fail> {
    let (url, report) = look(config, &args.url, &config.looks().only(CheckKind::ALL)).await?;
    if session.global.json {
        print_json(&url, &report);
    } else {
        print_text(&url, &report);
    }
    if report.up { Ok(()) } else { Err(Fail::Found) }
}

/// Looks at a relay from here.
pub(super) async fn look(
    config: &Config,
    text: &str,
    looks: &Looks,
) -> Result<(RelayUrl, MonitorReport), Fail> {
    let url = RelayUrl::parse(text, &config.policy())
        .map_err(|error| Fail::Failed(format!("{}: {error} ({})", text.escape_debug(), error.reason())))?;
    let dialer = Dialer::new(config.net_config()?).map_err(|error| Fail::Usage(error.to_string()))?;
    if !dialer.serves(url.network()) {
        let network = url.network();
        return Err(Fail::Usage(format!(
            "{url} is a relay of {network}, which is not enabled: set network.{network}.enabled{}",
            if network.is_overlay() { format!(" and network.{network}.proxy") } else { String::new() }
        )));
    }
    let report = Box::pin(run_all(&dialer, &url, looks)).await;
    Ok((url, report))
}

fn print_json(url: &RelayUrl, report: &MonitorReport) {
    let checks: Vec<_> = report
        .observations
        .iter()
        .map(|seen| {
            json!({
                "check": seen.kind.as_str(), "outcome": seen.outcome, "reason": seen.reason, "detail": seen.detail,
                "open_ms": seen.rtt_ms[0], "read_ms": seen.rtt_ms[1], "write_ms": seen.rtt_ms[2],
                "document": document(seen),
            })
        })
        .collect();
    let value = json!({
        "url": url.as_str(), "network": url.network(), "up": report.up, "evidence": report.evidence,
        "reason": report.reason, "ours": report.ours, "addresses": report.addresses, "dns_ttl_s": report.dns_ttl_s, "checks": checks,
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
            let mut notes = [why, times.join(", "), seen.detail.clone(), summary(seen)].to_vec();
            notes.retain(|note| !note.is_empty());
            vec![format!("  {}", seen.kind), seen.outcome.to_string(), notes.join("; ")]
        })
        .collect();
    table(&rows);
}

fn document(seen: &Observation) -> Option<Value> {
    seen.document.as_ref().and_then(|document| serde_json::from_str(document.canonical()).ok())
}

/// The half line of a check's document that a person looks for.
fn summary(seen: &Observation) -> String {
    let Some(document) = document(seen) else { return String::new() };
    let data = &document["data"];
    let text = |key: &str| match &data[key] {
        Value::Null => String::new(),
        Value::String(text) => text.chars().filter(|c| !c.is_control()).take(WORDS_CHARS).collect(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    };
    let of =
        |keys: &[&str]| keys.iter().map(|key| text(key)).filter(|text| !text.is_empty()).collect::<Vec<_>>();
    match seen.kind {
        CheckKind::Dns => of(&["dns_ips", "dns_ips_v6", "dns_cname", "dns_ns", "dns_reverse"]).join(", "),
        CheckKind::Geo => of(&["geo_city", "geo_region", "geo_country"]).join(", "),
        CheckKind::Net => {
            let number = data["net_asn"].as_u64().map(|asn| format!("AS{asn}"));
            number
                .into_iter()
                .chain(of(&["net_asn_org", "net_network", "net_network_v6"]))
                .collect::<Vec<_>>()
                .join(" ")
        }
        CheckKind::Ssl => {
            let left = data["ssl_expires"].as_i64().map(|at| at.saturating_sub(clock::unix_now()) / DAY_S);
            let left = left.filter(|days| *days > 0).map(|days| format!("{days} days left"));
            let names = of(&["ssl_subject_cn", "ssl_issuer_cn"]).join(" by ");
            [vec![names], left.into_iter().collect(), of(&["ssl_protocol"])].concat().join(", ")
        }
        CheckKind::Http => of(&["http_server", "http_powered_by"]).join(", "),
        CheckKind::Nip11 => of(&["name", "software", "version"]).join(", "),
        CheckKind::Rtt => String::new(),
    }
}
