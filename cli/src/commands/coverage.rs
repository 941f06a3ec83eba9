//! `relay coverage` and `event`: how much we hold of a relay, and which relays hold an event.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use shared::config::Config;
use shared::db::{Db, MonthLine};
use shared::models::{EventId, RelayUrl};

use crate::Session;
use crate::args::Event;
use crate::output::{Fail, line, row, table, utc};

/// Characters of a month's bar.
const WIDTH: u32 = 30;
/// Grades from best to worst, each with its mark.
const MARKS: [(&str, char); 6] = [
    ("reconciled", '█'),
    ("finished", '▓'),
    ("walked", '▒'),
    ("partial", '░'),
    ("refused", 'x'),
    ("unknown", '?'),
];

pub(super) async fn coverage(db: &Db, url: &RelayUrl, json: bool) -> Result<(), Fail> {
    let (months, shares) = (db.relay_months(url).await?, db.relay_shares(url).await?);
    if json {
        let months: Vec<Value> = months
            .iter()
            .map(|m| json!({ "class": m.class, "month": m.month, "grade": m.grade, "share": m.share }))
            .collect();
        let shares: Vec<Value> = shares
            .iter()
            .map(|s| {
                json!({
                    "class": s.class, "proved_share": s.proved_share, "since_at": s.since_at, "until_at": s.until_at,
                    "partial_seconds": s.partial_seconds,
                })
            })
            .collect();
        line(&json!({ "url": url.as_str(), "shares": shares, "months": months }).to_string());
        return Ok(());
    }
    if shares.is_empty() {
        line("nothing has been asked of it yet");
        return Ok(());
    }
    for share in &shares {
        let proved = share.proved_share.map_or_else(|| "?".to_owned(), percent);
        line(&format!(
            "{}: {proved} proved of {} to {}",
            share.class,
            utc(share.since_at),
            utc(share.until_at)
        ));
        let mine: Vec<&MonthLine> = months.iter().filter(|month| month.class == share.class).collect();
        let mut rows: BTreeMap<&str, Vec<&MonthLine>> = BTreeMap::new();
        for month in mine {
            rows.entry(&month.month).or_default().push(month);
        }
        table(&rows.iter().rev().map(|(month, grades)| month_row(month, grades)).collect::<Vec<_>>());
    }
    let legend: Vec<String> = MARKS.iter().map(|(grade, mark)| format!("{mark} {grade}")).collect();
    line(&format!("{}  · not asked", legend.join("  ")));
    Ok(())
}

fn month_row(month: &str, grades: &[&MonthLine]) -> Vec<String> {
    let share = |grade: &str| grades.iter().find(|line| line.grade == grade).map_or(0.0, |line| line.share);
    let proved: f64 = ["reconciled", "finished", "walked"].into_iter().map(share).sum();
    let words: Vec<String> = MARKS
        .iter()
        .filter(|(grade, _)| share(grade) > 0.0)
        .map(|(grade, _)| format!("{grade} {}", percent(share(grade))))
        .collect();
    row([&format!("  {month}"), &bar(share), &percent(proved), &words.join(", ")])
}

/// Best grades first; whatever there is shows at least one mark, and only a whole month fills the bar.
fn bar(share: impl Fn(&str) -> f64) -> String {
    let mut text = String::new();
    for (grade, mark) in MARKS {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of the width")]
        let marks = (share(grade).clamp(0.0, 1.0) * f64::from(WIDTH)).floor() as usize;
        let marks = if share(grade) > 0.0 { marks.max(1) } else { 0 };
        text.extend(std::iter::repeat_n(mark, marks));
    }
    let (filled, width) = (text.chars().count(), usize::try_from(WIDTH).unwrap_or(usize::MAX));
    if filled > width {
        return text.chars().take(width).collect();
    }
    text.extend(std::iter::repeat_n('·', width - filled));
    text
}

/// Rounded down, so that 100 % is said only of all of it.
fn percent(share: f64) -> String {
    format!("{:.1} %", (share * 1_000.0).floor() / 10.0)
}

pub(crate) async fn event(session: &Session, config: &Config, args: &Event) -> Result<(), Fail> {
    let id: EventId = args.id.trim().parse().map_err(|_| {
        Fail::Usage(format!("{} is no event id: 64 hexadecimal digits", args.id.escape_debug()))
    })?;
    let db = session.database(config, "bigbrotr_reader").await?;
    let lines = db.event_presence(id).await?;
    if session.global.json {
        let relays: Vec<Value> = lines
            .iter()
            .map(|l| json!({ "url": l.relay, "seen_at": l.seen_at, "evidence": l.evidence, "gone_at": l.gone_at }))
            .collect();
        let created_at = lines.first().map(|line| line.created_at);
        line(&json!({ "id": id.to_string(), "created_at": created_at, "relays": relays }).to_string());
    } else if lines.is_empty() {
        line("seen on no relay");
    } else {
        let mut rows = vec![row(["RELAY", "FIRST SEEN", "EVIDENCE", "GONE"])];
        rows.extend(lines.iter().map(|presence| {
            let gone = presence.gone_at.map(utc).unwrap_or_default();
            row([&presence.relay, &utc(presence.seen_at), &presence.evidence, &gone])
        }));
        table(&rows);
    }
    if lines.is_empty() { Err(Fail::Found) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_full_only_when_all_is_there() {
        let of = |shares: &'static [(&'static str, f64)]| {
            bar(move |grade| shares.iter().find(|(name, _)| *name == grade).map_or(0.0, |(_, share)| *share))
        };
        assert_eq!(of(&[("reconciled", 1.0)]), "█".repeat(30));
        assert_eq!(of(&[]), "·".repeat(30));
        let nearly = of(&[("walked", 0.999_9), ("partial", 0.000_1)]);
        assert_eq!((nearly.chars().count(), nearly.chars().last()), (30, Some('░')));
        assert_eq!(percent(0.999_99), "99.9 %");
        assert_eq!(percent(1.0), "100.0 %");
    }
}
