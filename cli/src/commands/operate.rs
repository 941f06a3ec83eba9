//! `queue`'s deeds: holding queues, cancelling, retrying, running now; and the book of what was done.

use serde_json::{Value, json};
use shared::db::{Actor, Db, Selection};
use shared::models::{AddressPolicy, RelayUrl};

use crate::args::{By, Hold, Queue, Select};
use crate::output::{Fail, line, row, table, utc};

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

fn selection(select: &Select) -> Result<Selection, Fail> {
    let selection = Selection {
        which: select.which.as_ref().map(|which| canonical(which)),
        kind: select.kind.map(|kind| kind.as_str().to_owned()),
        network: select.network.clone(),
    };
    if selection.which.is_none() && selection.kind.is_none() && selection.network.is_none() {
        return Err(Fail::Usage("name a job, a target, --kind or --network".to_owned()));
    }
    Ok(selection)
}

/// A relay URL in its one spelling; anything else as it is.
pub(super) fn canonical(text: &str) -> String {
    RelayUrl::parse(text, &AddressPolicy::any()).map_or_else(|_| text.to_owned(), |url| url.to_string())
}

/// Whether to go on: one job named by itself needs no second word, more do.
async fn agreed(db: &Db, select: &Select, selection: &Selection, json: bool) -> Result<bool, Fail> {
    let (jobs, sample) = db.job_preview(selection).await?;
    if select.yes || (jobs == 1 && selection.kind.is_none() && selection.network.is_none()) {
        return Ok(true);
    }
    if json {
        line(&json!({ "preview": true, "jobs": jobs, "sample": sample }).to_string());
        return Ok(false);
    }
    line(&format!("{jobs} live jobs are meant; nothing was done. Say --yes to do it."));
    for job in &sample {
        line(&format!("  {job}"));
    }
    if jobs > sample.len() as u64 {
        line("  …");
    }
    Ok(false)
}

async fn cancel(db: &Db, select: &Select, user: &str, json: bool) -> Result<(), Fail> {
    let selection = selection(select)?;
    if !agreed(db, select, &selection, json).await? {
        return Ok(());
    }
    let (cancelled, stopping) = db.job_cancel(&selection, &actor(&select.by, user)).await?;
    if cancelled + stopping == 0 {
        return Err(Fail::Failed("no live job is meant by that".to_owned()));
    }
    say(
        json,
        &json!({ "cancelled": cancelled, "stopping": stopping }),
        &format!("{cancelled} cancelled, {stopping} running ones are being stopped"),
    );
    Ok(())
}

async fn retry(db: &Db, select: &Select, since: u32, user: &str, json: bool) -> Result<(), Fail> {
    let selection = selection(select)?;
    if !select.yes && selection.which.is_none() && !agreed(db, select, &selection, json).await? {
        return Ok(());
    }
    let (woken, enqueued) = db.job_retry(&selection, f64::from(since), &actor(&select.by, user)).await?;
    say(
        json,
        &json!({ "woken": woken, "enqueued": enqueued }),
        &format!("{woken} that waited after a failure are due now, {enqueued} dead ones are enqueued anew"),
    );
    Ok(())
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
