//! `doctor`: is everything in order? Each line is a finding; a bad one makes the exit code 1.

use serde_json::{Value, json};
use shared::clock;
use shared::config::{Config, redact_url};
use shared::db::{Board, Db, DbError, JobListener, is_beyond_any_lease};

use crate::Session;
use crate::args::Doctor;
use crate::output::{Fail, commas, line, row, table, utc};

use super::doctor_archive;

/// Events verified unless another number is asked for: a second's work.
const EVENTS: u64 = 1_000;
/// Queue times are the database's; what is measured carries ours. More than this between them misleads.
const SKEW_S: i64 = 5;
/// A snapshot held open over so many transactions keeps the server from cleaning up.
const SNAPSHOT_AGE: i64 = 1_000_000;
/// A view that was refreshed longer ago than this is called old.
const VIEW_AGE_S: i64 = 86_400;
/// Of a lease that ends later than any can.
const SET_BACK: &str = "more than any lease: the server's clock was set back";
/// Alerts counted that wait.
const ALERTS: u32 = 1_000;

/// How a finding is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Ok,
    Note,
    Problem,
}

impl Mark {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Problem => "problem",
        }
    }
}

/// What was found, in order.
#[derive(Debug, Default)]
pub(super) struct Findings(Vec<(Mark, &'static str, String, Value)>);

impl Findings {
    pub(super) fn add(&mut self, mark: Mark, about: &'static str, text: String, data: Value) {
        self.0.push((mark, about, text, data));
    }

    fn print(&self, json: bool) {
        if json {
            for (mark, about, text, data) in &self.0 {
                line(
                    &json!({ "mark": mark.as_str(), "about": about, "text": text, "data": data }).to_string(),
                );
            }
        } else {
            table(
                &self
                    .0
                    .iter()
                    .map(|(mark, about, text, _)| row([mark.as_str(), about, text]))
                    .collect::<Vec<_>>(),
            );
        }
    }
}

pub(crate) async fn doctor(session: &Session, config: &Config, args: &Doctor) -> Result<(), Fail> {
    let events = match args.verify.as_deref() {
        None => Some(EVENTS),
        Some("all") => None,
        Some(text) => Some(text.parse().map_err(|_| {
            Fail::Usage(format!("--verify is {text}: it must be a number of events, or all"))
        })?),
    };
    let url = session.database_url(config, "bigbrotr_reader")?;
    let db = session.database(config, "bigbrotr_reader").await?;
    let mut findings = Findings::default();
    server(&db, &url, &mut findings).await?;
    if schema(&db, &mut findings).await? {
        fleet(&db, &mut findings).await?;
        // What a scheduler has said goes for the fleet; until then each worker goes by its own configuration.
        let for_down = db.vantages_for_down().await?.unwrap_or(config.jobs_config().vantages_for_down);
        judgement(&db, for_down, &mut findings).await?;
        queues(&db, &mut findings).await?;
        order(&db, &mut findings).await?;
        listening(&db, config.listen_url(), &mut findings).await?;
        views(&db, &mut findings).await?;
        doctor_archive::keeping(&db, config.archive_max_bytes(), &mut findings).await?;
        doctor_archive::wal(&db, &mut findings).await?;
        verify(&db, events, &mut findings).await?;
    }
    findings.print(session.global.json);
    let bad = findings.0.iter().any(|(mark, ..)| *mark == Mark::Problem);
    if bad { Err(Fail::Found) } else { Ok(()) }
}

async fn server(db: &Db, url: &str, findings: &mut Findings) -> Result<(), DbError> {
    let version = db.ping().await?;
    let text = format!("PostgreSQL {}.{} at {}", version / 10_000, version % 10_000, redact_url(url));
    let mark = if version >= 150_000 { Mark::Ok } else { Mark::Problem };
    findings.add(mark, "server", text, json!({ "version": version }));
    let skew = db.clock_skew(clock::unix_now()).await?;
    let (mark, text) = if skew.abs() > SKEW_S {
        (Mark::Problem, format!("the server's clock is {skew} s ahead of ours: set both by NTP"))
    } else {
        (Mark::Ok, format!("the server's clock and ours agree within {SKEW_S} s"))
    };
    findings.add(mark, "clock", text, json!({ "skew_s": skew }));
    // Other roles' snapshots are shown only to some roles; none seen is no finding.
    if let Ok(Some((holder, age))) = db.oldest_snapshot_holder().await {
        let (mark, text) = if age > SNAPSHOT_AGE {
            (
                Mark::Problem,
                format!(
                    "a snapshot is held open over {} transactions by {holder}",
                    commas(age.unsigned_abs())
                ),
            )
        } else {
            (Mark::Ok, format!("the oldest snapshot is {age} transactions old, held by {holder}"))
        };
        findings.add(mark, "snapshot", text, json!({ "age": age, "holder": holder }));
    }
    Ok(())
}

/// Whether the rest can be asked.
async fn schema(db: &Db, findings: &mut Findings) -> Result<bool, DbError> {
    let program = Db::program_schema();
    let found = match db.schema_version().await {
        Ok(found) => found,
        Err(error @ DbError::Schema(_)) => {
            findings.add(Mark::Problem, "schema", error.to_string(), json!({ "program": program }));
            return Ok(false);
        }
        Err(other) => return Err(other),
    };
    let (mark, text) = match found.cmp(&program) {
        std::cmp::Ordering::Equal => (Mark::Ok, format!("version {found}, as this program's")),
        std::cmp::Ordering::Less => {
            (Mark::Problem, format!("version {found}, this program's is {program}: run `bigbrotr migrate`"))
        }
        std::cmp::Ordering::Greater => (
            Mark::Problem,
            format!("version {found}, newer than this program's {program}: update the program"),
        ),
    };
    findings.add(mark, "schema", text, json!({ "database": found, "program": program }));
    Ok(found == program)
}

async fn fleet(db: &Db, findings: &mut Findings) -> Result<(), DbError> {
    let workers = db.worker_list().await?;
    if workers.is_empty() {
        findings.add(
            Mark::Problem,
            "workers",
            "no worker holds a lease: nothing is executed".to_owned(),
            json!([]),
        );
    }
    for (id, vantage, version, slots, left_s) in workers {
        let text =
            format!("{id} at {vantage}, version {version}, {slots} slots, {left_s:.0} s of lease left");
        let data = json!({ "id": id, "vantage": vantage, "version": version, "slots": slots, "lease_left_s": left_s });
        if is_beyond_any_lease(left_s) {
            findings.add(Mark::Problem, "worker", format!("{text}, {SET_BACK}"), data);
        } else {
            findings.add(Mark::Ok, "worker", text, data);
        }
    }
    let leaders = db.leader_list().await?;
    let leads = leaders.iter().find(|leader| leader.stands());
    if let Some(leader) = leads {
        let text =
            format!("{} leads in term {}, {:.0} s of lease left", leader.holder, leader.term, leader.left_s);
        findings.add(
            Mark::Ok,
            "scheduler",
            text,
            json!({ "holder": leader.holder, "lease_left_s": leader.left_s }),
        );
    } else {
        let beyond = leaders.iter().find(|leader| leader.is_beyond());
        let why =
            beyond.map(|leader| format!(" ({} has {:.0} s left, {SET_BACK})", leader.holder, leader.left_s));
        let text = format!("no scheduler leads: nothing new is enqueued{}", why.unwrap_or_default());
        findings.add(Mark::Problem, "scheduler", text, Value::Null);
    }
    let fleet = db.fleet_stats().await?;
    let text = format!(
        "{} known: {} alive, {} suspect, {} down; {} candidates",
        fleet.relays, fleet.alive, fleet.suspect, fleet.down, fleet.candidates
    );
    let data = json!({
        "relays": fleet.relays, "alive": fleet.alive, "suspect": fleet.suspect, "down": fleet.down,
        "candidates": fleet.candidates, "database_bytes": fleet.database_bytes,
    });
    findings.add(Mark::Ok, "relays", text, data);
    Ok(())
}

/// Whether a relay can be called down at all, and whether those who want to hear of it do.
async fn judgement(db: &Db, for_down: u32, findings: &mut Findings) -> Result<(), DbError> {
    let vantages = db.monitoring_vantages().await?;
    let (n, wanted) = (vantages.len(), usize::try_from(for_down).unwrap_or(usize::MAX));
    let (mark, text) = if n < wanted {
        let text = format!(
            "{n} vantages monitor and monitor.vantages_for_down is {wanted}: no relay can become down, only suspect"
        );
        (Mark::Note, text)
    } else {
        (Mark::Ok, format!("{n} vantages monitor, {wanted} must agree that a relay is down"))
    };
    findings.add(mark, "vantages", text, json!({ "vantages": vantages, "for_down": for_down }));
    let waiting = db.alert_list(None, true, ALERTS).await?;
    if let Some(failed) = waiting.iter().find(|line| line.alert.tries > 0) {
        let answer = failed.answer.as_deref().unwrap_or("no answer");
        let text = format!("{} alerts wait for the webhook, which failed: {answer}", waiting.len());
        findings.add(Mark::Problem, "alerts", text, json!({ "waiting": waiting.len(), "answer": answer }));
    }
    Ok(())
}

async fn queues(db: &Db, findings: &mut Findings) -> Result<(), DbError> {
    for queue in db.queue_stats().await? {
        let oldest = queue.oldest_due_s.map(|age| format!(", the oldest for {age:.0} s")).unwrap_or_default();
        let text = format!(
            "{}.{}: {} due{oldest}, {} waiting, {} running, {} done and {} failed in the last minute",
            queue.kind,
            queue.network,
            queue.due,
            queue.waiting,
            queue.running,
            queue.done_per_min,
            queue.dead_per_min
        );
        let mark = if queue.dead_per_min > 0 { Mark::Note } else { Mark::Ok };
        findings.add(mark, "queue", text, super::queue::queue_json(&queue));
    }
    if let Some(note) = network_note(db).await? {
        findings.add(Mark::Problem, "network", note, Value::Null);
    } else {
        let text = "no job waits for our own network".to_owned();
        findings.add(Mark::Ok, "network", text, Value::Null);
    }
    Ok(())
}

/// Whether the queue's table is as we made it, and nothing stands in its way.
async fn order(db: &Db, findings: &mut Findings) -> Result<(), DbError> {
    let drift = db.queue_drift().await?;
    if drift.is_empty() {
        findings.add(Mark::Ok, "queue", "its indexes are there and valid".to_owned(), Value::Null);
    }
    for text in drift {
        findings.add(Mark::Problem, "queue", format!("{text}: run `bigbrotr migrate`"), Value::Null);
    }
    for (queue, mode) in db.queue_holds().await? {
        findings.add(
            Mark::Note,
            "held",
            format!("{queue}: {}", super::queue::held_word(&mode)),
            json!({ "queue": queue, "mode": mode }),
        );
    }
    for queue in db.queues_unserved().await? {
        findings.add(
            Mark::Problem,
            "unserved",
            format!("jobs of {queue} are due and no live worker serves it"),
            json!(queue),
        );
    }
    for cells in db.board(Board::Breakers).await? {
        findings.add(Mark::Problem, "breaker", cells.join(", "), json!(cells));
    }
    let mut versions: Vec<String> =
        db.worker_list().await?.into_iter().map(|(_, _, version, ..)| version).collect();
    versions.sort_unstable();
    versions.dedup();
    if versions.len() > 1 {
        findings.add(
            Mark::Note,
            "versions",
            format!("workers of several: {}", versions.join(", ")),
            json!(versions),
        );
    }
    Ok(())
}

/// Whether new jobs can be heard of.
async fn listening(db: &Db, url: Option<&str>, findings: &mut Findings) -> Result<(), DbError> {
    let (hear, all) = db.listening_workers().await?;
    findings.add(
        Mark::Ok,
        "listen",
        format!("{hear} of {all} workers hear of new jobs, the others poll, which suffices"),
        json!({ "listening": hear, "workers": all }),
    );
    let (mark, text) = match url {
        None => return Ok(()),
        Some(url) => match JobListener::connect(url).await {
            Ok(_) => (Mark::Ok, "a notification came back over the direct connection".to_owned()),
            Err(error) => (Mark::Problem, format!("new jobs cannot be heard of, workers poll: {error}")),
        },
    };
    findings.add(mark, "listen", text, Value::Null);
    Ok(())
}

/// What live jobs say of our own way out, if any waits for it.
pub(crate) async fn network_note(db: &Db) -> Result<Option<String>, DbError> {
    let waiting = db.jobs_without_way().await?;
    let networks: Vec<&str> = waiting.iter().map(|(network, _)| network.as_str()).collect();
    let jobs: u64 = waiting.iter().map(|(_, jobs)| jobs).sum();
    Ok((jobs > 0).then(|| {
        format!(
            "our own network seems not to work ({}): {} jobs wait for it, and no relay is called down meanwhile",
            networks.join(", "),
            commas(jobs)
        )
    }))
}

async fn views(db: &Db, findings: &mut Findings) -> Result<(), DbError> {
    let now = clock::unix_now();
    let views = db.view_states().await?;
    if views.is_empty() {
        findings.add(Mark::Note, "views", "never refreshed yet".to_owned(), json!([]));
        return Ok(());
    }
    let oldest = views.iter().min_by_key(|(_, at, _)| *at);
    if let Some((name, at, _)) = oldest {
        let age = now - at;
        let mark = if age > VIEW_AGE_S { Mark::Problem } else { Mark::Ok };
        let text = format!("{} refreshed, the oldest is {name}, {age} s ago ({})", views.len(), utc(*at));
        let data: Vec<Value> = views
            .iter()
            .map(|(name, at, ms)| json!({ "view": name, "refreshed_at": at, "duration_ms": ms }))
            .collect();
        findings.add(mark, "views", text, data.into());
    }
    let backlog = db.rollup_backlog().await?;
    let mark = if backlog.age_s > VIEW_AGE_S { Mark::Problem } else { Mark::Ok };
    let text =
        format!("{} keys wait to be counted, the oldest for {} s", commas(backlog.keys), backlog.age_s);
    findings.add(mark, "rollups", text, json!({ "keys": backlog.keys, "age_s": backlog.age_s }));
    Ok(())
}

async fn verify(db: &Db, events: Option<u64>, findings: &mut Findings) -> Result<(), DbError> {
    let report = db.verify(events).await?;
    for bad in &report.corruptions {
        let text = format!("table {}, column {}, row {}: {}", bad.table, bad.column, bad.row, bad.problem);
        let data =
            json!({ "table": bad.table, "column": bad.column, "row": bad.row, "problem": bad.problem });
        findings.add(Mark::Problem, "data", text, data);
    }
    let mark = if report.corrupt == 0 { Mark::Ok } else { Mark::Problem };
    let text = format!(
        "{} relays, {} documents and {} events verified, {} corrupt",
        commas(report.relays),
        commas(report.documents),
        commas(report.events),
        report.corrupt
    );
    let data = json!({
        "relays": report.relays, "documents": report.documents, "events": report.events,
        "corruptions": report.corrupt,
    });
    findings.add(mark, "data", text, data);
    Ok(())
}
