//! `queue`'s deeds: holding queues, cancelling, retrying, running now; and the book of what was done.

use serde_json::{Value, json};
use shared::db::{Actor, Db, Selection};
use shared::models::{AddressPolicy, RelayUrl};

use crate::args::{By, Hold, Queue, Select};
use crate::output::{Fail, line, row, table, utc, warn};

/// A retry is about jobs that died within so many seconds, unless it says otherwise.
const DEAD_S: u32 = 3_600;

/// The role a subcommand needs.
pub(super) const fn role(args: &Queue) -> &'static str {
    match args {
        Queue::List { .. } | Queue::Show { .. } | Queue::Audit { .. } => "bigbrotr_reader",
        _ => "bigbrotr_writer",
    }
}

/// `user` is who calls, for the audit.
pub(super) async fn run(db: &Db, args: &Queue, user: &str, json: bool) -> Result<(), Fail> {
    match args {
        Queue::List { .. } | Queue::Show { .. } => Ok(()),
        Queue::Pause(hold) => held(db, "pause", hold, user, json).await,
        Queue::Drain(hold) => held(db, "drain", hold, user, json).await,
        Queue::Resume(hold) => held(db, "resume", hold, user, json).await,
        Queue::Cancel(select) => cancel(db, select, user, json).await,
        Queue::Retry { select, since } => retry(db, select, *since, user, json).await,
        Queue::RunNow { targets, kind, by } => {
            let kinds = kind.map(|kind| vec![kind.as_str().to_owned()]);
            run_now(db, targets, kinds.as_deref(), &actor(by, user), json).await
        }
        Queue::Audit { last } => audit(db, *last, json).await,
    }
}

pub(super) fn actor(by: &By, user: &str) -> Actor {
    Actor { name: by.by.clone().unwrap_or_else(|| user.to_owned()), why: by.why.clone() }
}

/// The result as JSON, or as a sentence.
fn say(json: bool, value: &Value, text: &str) {
    if json { line(&value.to_string()) } else { line(text) }
}

async fn held(db: &Db, mode: &str, hold: &Hold, user: &str, json: bool) -> Result<(), Fail> {
    let actor = actor(&hold.by, user);
    if let Some(worker) = &hold.worker {
        if mode == "pause" {
            return Err(Fail::Usage("a worker is drained, not paused: its running jobs go on".to_owned()));
        }
        if !db.worker_drain(worker, mode == "drain", &actor).await? {
            return Err(Fail::Failed(format!("no live worker is called {worker}")));
        }
        say(json, &json!({ "worker": worker, "mode": mode }), &format!("{worker}: {mode}"));
        return Ok(());
    }
    let queues = db.queue_hold(&hold.queues, mode, &actor).await?;
    let done = match mode {
        "pause" => "paused",
        "drain" => "draining",
        _ => "goes on",
    };
    if json {
        line(&json!({ "mode": mode, "queues": queues }).to_string());
    } else {
        for queue in queues {
            line(&format!("{queue}: {done}"));
        }
    }
    Ok(())
}

fn selection(select: &Select, all: bool) -> Result<Selection, Fail> {
    let mut selection = Selection {
        which: select.which.as_ref().map(|which| canonical(which)),
        kind: select.kind.map(|kind| kind.as_str().to_owned()),
        network: select.network.clone(),
    };
    if selection.which.is_none() && selection.kind.is_none() && selection.network.is_none() {
        if !all {
            return Err(Fail::Usage("name a job, a target, --kind or --network".to_owned()));
        }
        selection.which = Some("*".to_owned());
    }
    Ok(selection)
}

/// A relay URL in its one spelling; anything else as it is.
pub(super) fn canonical(text: &str) -> String {
    RelayUrl::parse(text, &AddressPolicy::any()).map_or_else(|_| text.to_owned(), |url| url.to_string())
}

/// Whether to go on: one job named by itself needs no second word; a pattern, a filter or several jobs do.
fn agreed(select: &Select, meant: &Meant, json: bool) -> Result<bool, Fail> {
    let (jobs, sample) = (&meant.jobs, &meant.sample);
    if *jobs > 0 && (select.yes || (*jobs == 1 && names_one(select))) {
        return Ok(true);
    }
    if json {
        line(&json!({ "preview": true, "jobs": jobs, "sample": sample }).to_string());
    }
    if *jobs == 0 {
        return Err(Fail::Failed(meant.none.clone()));
    }
    if json {
        return Ok(false);
    }
    line(&format!("{jobs} {}; nothing was done. Say --yes to do it.", meant.what));
    for job in sample {
        line(&format!("  {job}"));
    }
    if *jobs > sample.len() as u64 {
        line("  …");
    }
    Ok(false)
}

/// What a deed would touch, asked with the deed's own conditions.
struct Meant {
    jobs: u64,
    sample: Vec<String>,
    what: &'static str,
    none: String,
}

fn names_one(select: &Select) -> bool {
    select.kind.is_none()
        && select.network.is_none()
        && select.which.as_ref().is_some_and(|w| !w.contains('*'))
}

async fn cancel(db: &Db, select: &Select, user: &str, json: bool) -> Result<(), Fail> {
    let selection = selection(select, false)?;
    let none = "no live job is meant by that".to_owned();
    let (jobs, sample) = db.job_preview(&selection).await?;
    let meant = Meant { jobs, sample, what: "live jobs are meant", none: none.clone() };
    if !agreed(select, &meant, json)? {
        return Ok(());
    }
    let (cancelled, stopping) = db.job_cancel(&selection, &actor(&select.by, user)).await?;
    if cancelled + stopping == 0 {
        return Err(Fail::Failed(none));
    }
    say(
        json,
        &json!({ "cancelled": cancelled, "stopping": stopping }),
        &format!(
            "{cancelled} cancelled, {stopping} running ones are being stopped; the schedule brings their targets back"
        ),
    );
    Ok(())
}

async fn retry(db: &Db, select: &Select, since: Option<u32>, user: &str, json: bool) -> Result<(), Fail> {
    let selection = selection(select, since.is_some())?;
    let since = since.unwrap_or(DEAD_S);
    let left_alone = excluded(db, selection.which.as_slice()).await?;
    let none = if left_alone.is_empty() {
        format!("nothing meant by that was put back, or died within the last {since} s")
    } else {
        left_alone.join("; ")
    };
    let (jobs, sample) = db.job_retry_preview(&selection, f64::from(since)).await?;
    let what = "jobs that were put back, or are dead, are meant";
    if !agreed(select, &Meant { jobs, sample, what, none: none.clone() }, json)? {
        return Ok(());
    }
    let (woken, enqueued) = db.job_retry(&selection, f64::from(since), &actor(&select.by, user)).await?;
    if woken + enqueued == 0 {
        return Err(Fail::Failed(none));
    }
    say(
        json,
        &json!({ "woken": woken, "enqueued": enqueued }),
        &format!("{woken} that were put back are due now, {enqueued} dead ones are enqueued anew"),
    );
    Ok(())
}

/// A sentence for each of these names that is excluded, so that nothing of it is ever run.
async fn excluded(db: &Db, targets: &[String]) -> Result<Vec<String>, Fail> {
    let mut sentences = Vec::new();
    for target in targets {
        let reasons = db.job_why(target).await?;
        if let Some(line) =
            reasons.iter().find(|line| ["opted-out", "blocked"].contains(&line.reason.as_str()))
        {
            sentences.push(format!("{target} is excluded ({}) and left alone: {}", line.reason, line.detail));
        }
    }
    Ok(sentences)
}

async fn run_now(
    db: &Db,
    targets: &[String],
    kinds: Option<&[String]>,
    actor: &Actor,
    json: bool,
) -> Result<(), Fail> {
    let targets: Vec<String> = targets.iter().map(|target| canonical(target)).collect();
    let (asked, enqueued) = db.job_run_now(&targets, kinds, actor).await?;
    let left_alone = excluded(db, &targets).await?;
    if asked == 0 && !left_alone.is_empty() {
        return Err(Fail::Failed(left_alone.join("; ")));
    }
    for sentence in left_alone {
        warn(&sentence);
    }
    if asked == 0 {
        return Err(Fail::Failed(format!(
            "no relay, candidate or task of these names has such jobs: {}",
            targets.join(", ")
        )));
    }
    say(
        json,
        &json!({ "jobs": asked, "enqueued": enqueued }),
        &format!(
            "{asked} jobs come first: {enqueued} enqueued, {} already waited or run (those run again)",
            asked.saturating_sub(enqueued)
        ),
    );
    let mut held = Vec::new();
    for target in &targets {
        let reasons = db.job_why(target).await?;
        held.extend(reasons.into_iter().filter(|line| line.reason == "paused").map(|line| line.detail));
    }
    held.sort_unstable();
    held.dedup();
    for detail in held {
        warn(&format!("{detail}; what was asked for waits until it is resumed"));
    }
    Ok(())
}

async fn audit(db: &Db, last: u32, json: bool) -> Result<(), Fail> {
    let done = db.operation_list(last).await?;
    if json {
        for op in &done {
            let selector: Value = serde_json::from_str(&op.selector).unwrap_or(Value::Null);
            let value = json!({ "at": op.at, "actor": op.actor, "action": op.action, "selector": selector, "jobs": op.jobs, "why": op.why });
            line(&value.to_string());
        }
        return Ok(());
    }
    if done.is_empty() {
        line("no operator has done anything yet");
        return Ok(());
    }
    let mut rows = vec![row(["WHEN", "WHO", "WHAT", "HOW MANY", "ON", "WHY"])];
    rows.extend(
        done.iter()
            .map(|op| row([&utc(op.at), &op.actor, &op.action, &op.jobs.to_string(), &op.selector, &op.why])),
    );
    table(&rows);
    Ok(())
}
