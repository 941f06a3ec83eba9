//! `queue`: queues with their numbers, jobs with their past.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use shared::config::Config;
use shared::db::{Db, JobLine, QueueLine};
use shared::models::JobKind;

use super::operate;
use crate::Session;
use crate::args::Queue;
use crate::output::{Fail, line, row, table, utc};

/// Jobs shown of one target.
const JOBS: u32 = 50;
/// Characters of a result shown in a table.
const RESULT_CHARS: usize = 120;

pub(crate) async fn queue(session: &Session, config: &Config, args: &Queue) -> Result<(), Fail> {
    let json = session.global.json;
    let db = session.database(config, operate::role(args)).await?;
    match args {
        Queue::List { kind, jobs } => list(&db, *kind, *jobs, json).await,
        Queue::Show { which } => show(&db, which, json).await,
        deed => {
            operate::run(&db, deed, session.env.get("USER").map_or("operator", String::as_str), json).await
        }
    }
}

async fn list(db: &Db, kind: Option<JobKind>, jobs: u32, json: bool) -> Result<(), Fail> {
    let kind = kind.map(JobKind::as_str);
    let mut queues = db.queue_stats().await?;
    let held: BTreeMap<String, String> = db.queue_holds().await?.into_iter().collect();
    // A queue that is held is listed whether or not it has any job.
    for name in held.keys() {
        let Some((kind, network)) = name.split_once('.') else { continue };
        if !queues.iter().any(|queue| (queue.kind.as_str(), queue.network.as_str()) == (kind, network)) {
            let (kind, network) = (kind.to_owned(), network.to_owned());
            queues.push(QueueLine { kind, network, ..QueueLine::default() });
        }
    }
    queues.retain(|queue| kind.is_none_or(|kind| kind == queue.kind));
    let live = if jobs > 0 { db.job_list(kind, None, jobs).await? } else { Vec::new() };
    if json {
        queues
            .iter()
            .map(|queue| {
                let mut value = queue_json(queue);
                value["held"] = json!(held.get(&name(queue)));
                value
            })
            .chain(live.iter().map(job_json))
            .for_each(|value| line(&value.to_string()));
        return Ok(());
    }
    if queues.is_empty() {
        line("no job is live and none ended within the last minute");
        return Ok(());
    }
    let mut rows =
        vec![row(["QUEUE", "DUE", "WAITING", "RUNNING", "OLDEST", "DONE/MIN", "FAILED/MIN", "HELD"])];
    rows.extend(queues.iter().map(|queue| {
        vec![
            name(queue),
            queue.due.to_string(),
            queue.waiting.to_string(),
            queue.running.to_string(),
            queue.oldest_due_s.map(|age| format!("{age:.0} s")).unwrap_or_default(),
            queue.done_per_min.to_string(),
            queue.dead_per_min.to_string(),
            held.get(&name(queue)).map(|mode| held_word(mode).to_owned()).unwrap_or_default(),
        ]
    }));
    table(&rows);
    table(&live.iter().map(job_row).collect::<Vec<_>>());
    Ok(())
}

fn name(queue: &QueueLine) -> String {
    format!("{}.{}", queue.kind, queue.network)
}

/// What a mode of holding does, in a word.
pub(crate) fn held_word(mode: &str) -> &str {
    match mode {
        "pause" => "paused",
        "drain" => "draining",
        "both" => "paused, draining",
        other => other,
    }
}

pub(crate) fn queue_json(queue: &QueueLine) -> Value {
    json!({
        "kind": queue.kind, "network": queue.network, "due": queue.due, "waiting": queue.waiting,
        "running": queue.running, "oldest_due_s": queue.oldest_due_s, "done_per_min": queue.done_per_min,
        "failed_per_min": queue.dead_per_min,
    })
}

async fn show(db: &Db, which: &str, json: bool) -> Result<(), Fail> {
    let which = &operate::canonical(which);
    let mut jobs = db.job_list(None, Some(which), JOBS).await?;
    jobs.extend(db.job_past(None, which, JOBS).await?);
    if jobs.is_empty() {
        return Err(Fail::Failed(format!("no live or remembered job has the id or the target {which}")));
    }
    if json {
        for job in &jobs {
            line(&job_json(job).to_string());
        }
        return Ok(());
    }
    for job in &jobs {
        line(&format!("{}  {}.{}  {}", job.job, job.kind, job.network, job.target));
        let ended = job.finished_at.map(|at| format!(", ended {}", utc(at))).unwrap_or_default();
        let worker = job.worker.as_ref().map(|worker| format!(", {worker}")).unwrap_or_default();
        line(&format!("  {}, attempt {}{worker}, due {}{ended}", job.state, job.attempt, utc(job.due_at)));
        if let Some(result) = &job.result {
            line(&format!("  {result}"));
        }
    }
    Ok(())
}

pub(crate) fn job_json(job: &JobLine) -> Value {
    let result = job.result.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok());
    json!({
        "job": job.job, "kind": job.kind, "network": job.network, "target": job.target, "state": job.state,
        "attempt": job.attempt, "worker": job.worker, "due_at": job.due_at, "finished_at": job.finished_at,
        "result": result,
    })
}

pub(crate) fn job_row(job: &JobLine) -> Vec<String> {
    let when = match job.finished_at {
        Some(at) => format!("ended {}", utc(at)),
        None => format!("due {}", utc(job.due_at)),
    };
    let result: String = job.result.as_deref().unwrap_or_default().chars().take(RESULT_CHARS).collect();
    vec![format!("  {}.{}", job.kind, job.network), job.state.clone(), when, job.job.clone(), result]
}
