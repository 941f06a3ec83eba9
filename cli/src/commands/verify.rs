//! `verify`: whether what is stored is true; reads only.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use serde_json::json;
use shared::config::Config;
use shared::db::{Db, Sample, VerifyProgress};

use crate::Session;
use crate::args::Verify;
use crate::output::{Fail, commas, line, row, table};

/// Looking through a month may take this long.
const STATEMENT: Duration = Duration::from_secs(3_600);

pub(crate) async fn verify(session: &Session, config: &Config, args: &Verify) -> Result<(), Fail> {
    let asked = asked(args)?;
    let db = session.database(config, "bigbrotr_reader").await?.with_timeout(STATEMENT);
    let sample = draw(&db, asked, args.seed).await?;
    let json = session.global.json;
    let mut bar = Bar::new();
    let report = db.verify_rows(sample, &mut |at| bar.show(at)).await?;
    let sets = db.verify_sets(&mut |at| bar.show(at)).await?;
    bar.end();
    for bad in &report.corruptions {
        if json {
            let value =
                json!({ "table": bad.table, "column": bad.column, "row": bad.row, "problem": bad.problem });
            line(&value.to_string());
        } else {
            line(&format!("table {}, column {}, row {}: {}", bad.table, bad.column, bad.row, bad.problem));
        }
    }
    let faults = report.corrupt + sets.iter().filter(|set| set.is_fault()).count() as u64;
    if json {
        for set in &sets {
            line(
                &json!({ "set": set.problem, "fault": set.is_fault(), "n": set.n, "sample": set.sample })
                    .to_string(),
            );
        }
        let value = json!({
            "relays": report.relays, "documents": report.documents, "events": report.events,
            "bodiless": report.bodiless, "unkept": report.unkept, "corrupt": report.corrupt, "faults": faults,
            "seed": args.seed,
        });
        line(&value.to_string());
    } else {
        let rows = sets.iter().map(|set| {
            let mark = if set.is_fault() { "problem" } else { "ok" };
            row([mark, &set.problem, &commas(set.n), set.sample.as_deref().unwrap_or_default()])
        });
        table(&rows.collect::<Vec<_>>());
        line(&format!(
            "{} relays, {} documents and {} events verified, {} without a body, {} not kept: {}",
            commas(report.relays),
            commas(report.documents),
            commas(report.events),
            commas(report.bodiless),
            commas(report.unkept),
            if faults == 0 { "no fault".to_owned() } else { format!("{} faults", commas(faults)) }
        ));
    }
    if faults == 0 { Ok(()) } else { Err(Fail::Found) }
}

/// What the caller named.
enum Asked {
    All,
    Share(f64),
    About(u64),
}

fn asked(args: &Verify) -> Result<Asked, Fail> {
    if args.all {
        return Ok(Asked::All);
    }
    let wrong = || {
        Fail::Usage(format!(
            "--sample is {}: it must be a number of events, or a share such as 2%",
            args.sample
        ))
    };
    match args.sample.strip_suffix('%') {
        Some(share) => {
            let percent: f64 = share.parse().map_err(|_| wrong())?;
            if percent > 0.0 && percent <= 100.0 { Ok(Asked::Share(percent / 100.0)) } else { Err(wrong()) }
        }
        None => args.sample.parse().map(Asked::About).map_err(|_| wrong()),
    }
}

/// A number of events as a share of what there is.
async fn draw(db: &Db, asked: Asked, seed: i64) -> Result<Sample, Fail> {
    Ok(match asked {
        Asked::All => Sample::All,
        Asked::Share(share) => Sample::Share(share, seed),
        Asked::About(n) => {
            // The server's estimate; after a crash it has none, and then all are counted.
            let all = match db.fleet_stats().await?.events {
                0 => db.archive_count().await?.0,
                all => all,
            };
            if n >= all {
                Sample::All
            } else {
                #[expect(clippy::cast_precision_loss, reason = "a share is about")]
                let share = n as f64 / all as f64;
                Sample::Share(share, seed)
            }
        }
    })
}

/// A line on standard error that is written anew, where that is a terminal.
struct Bar {
    shown: bool,
    last: Option<(&'static str, u64)>,
}

impl Bar {
    fn new() -> Self {
        Self { shown: std::io::stderr().is_terminal(), last: None }
    }

    fn show(&mut self, at: VerifyProgress) {
        let percent = at.of.map(|of| at.done.saturating_mul(100).checked_div(of).unwrap_or(100).min(100));
        let step = (at.stage, percent.unwrap_or(at.done));
        if !self.shown || self.last == Some(step) {
            return;
        }
        self.last = Some(step);
        let share = percent.map_or_else(String::new, |percent| {
            let full = usize::try_from(percent / 5).unwrap_or(20);
            format!(" [{:<20}] {percent:>3} %", "#".repeat(full))
        });
        let mut out = std::io::stderr().lock();
        // A terminal that is gone takes its user with it.
        write!(out, "\r\x1b[K{} {}{share}", commas(at.done), at.stage).and_then(|()| out.flush()).ok();
    }

    fn end(&self) {
        if self.shown && self.last.is_some() {
            write!(std::io::stderr().lock(), "\r\x1b[K").ok();
        }
    }
}
