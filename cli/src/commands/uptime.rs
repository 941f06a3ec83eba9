//! `relay uptime`: the last 30 days of one relay; and `alerts`: changes of liveness.

use serde_json::{Value, json};
use shared::config::Config;
use shared::db::{AlertLine, Db, ReliabilityLine, UptimeLine};
use shared::models::{AddressPolicy, RelayUrl};

use crate::Session;
use crate::args::Alerts;
use crate::output::{Fail, line, row, table, utc};

/// What was timed, in the order of [`UptimeLine::times`].
const TIMES: [&str; 3] = ["open", "read", "write"];

pub(crate) async fn uptime(db: &Db, url: &RelayUrl, json: bool) -> Result<(), Fail> {
    let Some(all) = db.relay_reliability(url).await? else {
        return Err(Fail::Failed(format!("{url} is not a known relay")));
    };
    let vantages = db.relay_uptime(url).await?;
    if json {
        let mut value = reliability_json(&all);
        value["url"] = url.as_str().into();
        value["vantages"] = vantages.iter().map(uptime_json).collect();
        line(&value.to_string());
        return Ok(());
    }
    line(&format!("{url}, the last 30 days"));
    for text in reliability(&all) {
        line(&format!("  {text}"));
    }
    let mut rows = vec![row(["VANTAGE", "LOOKS", "ALIVE", "REFUSED", "OF", "n", "p50", "p95", "p99"])];
    for vantage in &vantages {
        for (index, (what, (n, figures))) in TIMES.iter().zip(vantage.times).enumerate() {
            // What nobody measures has no line; the first one says the rest.
            if index > 0 && n == 0 {
                continue;
            }
            let mut cells = if index == 0 { looks(vantage) } else { vec![String::new(); 4] };
            cells.extend([(*what).to_owned(), n.to_string()]);
            cells.extend(figures.map(|ms| ms.map_or_else(|| TOO_FEW.to_owned(), |ms| format!("{ms} ms"))));
            rows.push(cells);
        }
    }
    if vantages.is_empty() {
        line("  nobody has looked yet");
    } else {
        table(&rows);
    }
    Ok(())
}

/// Where a figure would say more than is known.
const TOO_FEW: &str = "too few";

fn looks(vantage: &UptimeLine) -> Vec<String> {
    let share = match (vantage.availability_pct, vantage.availability_low_pct) {
        (Some(share), Some(low)) => format!("{share:.2} % of the time (at least {low:.2} %)"),
        _ => TOO_FEW.to_owned(),
    };
    vec![vantage.vantage.clone(), vantage.checks.to_string(), share, vantage.refused.to_string()]
}

fn reliability(all: &ReliabilityLine) -> [String; 3] {
    let share = all.availability_pct.map_or_else(
        || "less than a day observed: too little for a share".to_owned(),
        |share| format!("{share:.3} % of the time not down"),
    );
    let mean = |seconds: Option<i64>, none: &str| seconds.map_or_else(|| none.to_owned(), span);
    [
        format!(
            "observed for {}, down for {}: {share}",
            span(seconds(all.observed_s)),
            span(seconds(all.down_s))
        ),
        format!("{} failures, {} repairs, {} changes", all.failures, all.repairs, all.flaps),
        format!(
            "mean time between failures {}, to repair {}",
            mean(all.mtbf_s, "unknown: no failure"),
            mean(all.mttr_s, "unknown: no repair")
        ),
    ]
}

fn seconds(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// A stretch of time in its two largest units.
fn span(seconds: i64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds % 86_400 / 3_600, seconds % 3_600 / 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

fn reliability_json(all: &ReliabilityLine) -> Value {
    json!({
        "observed_s": all.observed_s, "down_s": all.down_s, "availability_pct": all.availability_pct,
        "failures": all.failures, "repairs": all.repairs, "flaps": all.flaps, "mtbf_s": all.mtbf_s, "mttr_s": all.mttr_s,
    })
}

fn uptime_json(vantage: &UptimeLine) -> Value {
    let times: Value = TIMES
        .iter()
        .zip(vantage.times)
        .map(|(what, (n, [p50, p95, p99]))| {
            ((*what).to_owned(), json!({ "n": n, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99 }))
        })
        .collect();
    json!({
        "vantage": vantage.vantage, "checks": vantage.checks, "up": vantage.up, "refused": vantage.refused,
        "availability_pct": vantage.availability_pct, "availability_low_pct": vantage.availability_low_pct, "times": times,
    })
}

pub(crate) async fn alerts(session: &Session, config: &Config, args: &Alerts) -> Result<(), Fail> {
    let db = session.database(config, "bigbrotr_reader").await?;
    let relay = match &args.url {
        None => None,
        Some(url) => Some(
            RelayUrl::parse(url, &AddressPolicy::any())
                .map_err(|error| Fail::Failed(format!("{}: {error}", url.escape_debug())))?,
        ),
    };
    let alerts = db.alert_list(relay.as_ref().map(RelayUrl::as_str), args.pending, args.last).await?;
    if session.global.json {
        for alert in &alerts {
            line(&alert_json(alert).to_string());
        }
        return Ok(());
    }
    let mut rows = vec![row(["AT", "RELAY", "CHANGE", "REASON", "VANTAGE", "DELIVERY"])];
    rows.extend(alerts.iter().map(alert_row));
    table(&rows);
    Ok(())
}

fn alert_row(line: &AlertLine) -> Vec<String> {
    let alert = &line.alert;
    let delivery = match (line.delivery.as_str(), &line.answer) {
        ("none", _) => String::new(),
        ("pending", Some(answer)) => format!("pending, failed {} times: {answer}", alert.tries),
        (delivery, _) => delivery.to_owned(),
    };
    vec![
        utc(alert.at),
        alert.relay_url.clone().unwrap_or_else(|| "(gone)".to_owned()),
        format!("{} -> {}", alert.before.as_deref().unwrap_or("-"), alert.after),
        alert.reason.clone(),
        alert.vantage.clone().unwrap_or_default(),
        delivery,
    ]
}

fn alert_json(line: &AlertLine) -> Value {
    let alert = &line.alert;
    json!({
        "id": alert.id, "at": alert.at, "relay": alert.relay_url, "network": alert.network, "before": alert.before,
        "after": alert.after, "reason": alert.reason, "vantage": alert.vantage, "delivery": line.delivery,
        "tries": alert.tries, "answer": line.answer,
    })
}
