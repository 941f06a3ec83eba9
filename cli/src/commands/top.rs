//! `top`: the fleet at a glance, redrawn; and `autoscale`: one number of it.

use std::io::IsTerminal;
use std::pin::pin;
use std::time::Duration;

use serde_json::json;
use shared::config::Config;
use shared::db::{Board, Db, DbError, QueueLine};

use super::queue::{held_word, queue_json};
use crate::Session;
use crate::args::{AutoscaleArgs, Top};
use crate::output::{Fail, columns, line, row, utc};

/// Clears the screen and goes to its first place (ECMA-48).
const CLEAR: &str = "\x1b[2J\x1b[H";

pub(crate) async fn top(session: &Session, config: &Config, args: &Top) -> Result<(), Fail> {
    let db = session.database(config, "bigbrotr_reader").await?;
    if session.global.json {
        return board_json(&db).await;
    }
    let once = args.once || !std::io::stdout().is_terminal();
    let interval = Duration::from_secs(args.interval);
    loop {
        // Looked at first and drawn then: an outage leaves the last picture until it is known, and says how long it takes.
        let mut look = pin!(board(&db));
        let mut waited = Duration::ZERO;
        let seen = loop {
            match tokio::time::timeout(interval, &mut look).await {
                Ok(seen) => break seen,
                Err(_) => waited += interval,
            }
            if !once {
                line(&format!("no answer from the database for {} s; waiting", waited.as_secs()));
            }
        };
        let drawn = match seen {
            Err(error) if !once => {
                vec![format!("{}   {error}; looking again", utc(shared::clock::unix_now()))]
            }
            drawn => drawn?,
        };
        if !once {
            line(CLEAR);
        }
        for text in drawn {
            line(&text);
        }
        if once {
            return Ok(());
        }
        tokio::time::sleep(interval).await;
    }
}

/// The board, line by line.
async fn board(db: &Db) -> Result<Vec<String>, DbError> {
    let mut lines = Vec::new();
    let leaders = db.leader_list().await?;
    let leader = leaders.iter().find(|leader| leader.stands()).map_or_else(
        || "no scheduler leads".to_owned(),
        |leader| format!("{} leads, term {}, {:.0} s left", leader.holder, leader.term, leader.left_s),
    );
    let wanted = db.autoscale().await?;
    lines.push(format!("{}   {leader}", utc(shared::clock::unix_now())));
    lines.push(format!(
        "{} workers wanted, {:.0} s of work in the queues ({})",
        wanted.desired, wanted.backlog_s, wanted.binding
    ));
    lines.push(String::new());
    let mut rows = vec![row(["QUEUE", "DUE", "AHEAD", "RUNNING", "OLDEST", "DONE/MIN", "FAILED/MIN"])];
    rows.extend(db.queue_stats().await?.iter().map(queue_row));
    lines.extend(columns(&rows));
    for (board, heading) in [
        (Board::Budgets, row(["NETWORK", "JOBS", "TRAFFIC"])),
        (Board::Workers, row(["WORKER", "VANTAGE", "VERSION", "SLOTS", "LEASE", ""])),
        (Board::Breakers, row(["BREAKER", "VANTAGE", "STATE", "WHY"])),
        (Board::Hosts, row(["CROWDED HOST", "WAITING", "COOLING"])),
    ] {
        let cells = db.board(board).await?;
        if !cells.is_empty() {
            lines.push(String::new());
            lines.extend(columns(&[vec![heading], cells].concat()));
        }
    }
    lines.extend(db.queue_holds().await?.iter().map(|(queue, mode)| format!("{queue}: {}", held_word(mode))));
    Ok(lines)
}

fn queue_row(queue: &QueueLine) -> Vec<String> {
    row([
        &format!("{}.{}", queue.kind, queue.network),
        &queue.due.to_string(),
        &queue.waiting.to_string(),
        &queue.running.to_string(),
        &queue.oldest_due_s.map(|age| format!("{age:.0} s")).unwrap_or_default(),
        &queue.done_per_min.to_string(),
        &queue.dead_per_min.to_string(),
    ])
}

async fn board_json(db: &Db) -> Result<(), Fail> {
    let wanted = db.autoscale().await?;
    let value = json!({
        "queues": db.queue_stats().await?.iter().map(queue_json).collect::<Vec<_>>(),
        "workers": db.board(Board::Workers).await?, "budgets": db.board(Board::Budgets).await?,
        "breakers": db.board(Board::Breakers).await?, "hosts": db.board(Board::Hosts).await?,
        "held": db.queue_holds().await?, "workers_wanted": wanted.desired, "backlog_s": wanted.backlog_s,
        "binding": wanted.binding,
    });
    line(&value.to_string());
    Ok(())
}

pub(crate) async fn autoscale(session: &Session, config: &Config, args: &AutoscaleArgs) -> Result<(), Fail> {
    if args.min > args.max {
        return Err(Fail::Usage(format!("--min {} is more than --max {}", args.min, args.max)));
    }
    let db = session.database(config, "bigbrotr_reader").await?;
    let wanted = db.autoscale().await?;
    let workers = wanted.desired.clamp(args.min, args.max);
    if session.global.json {
        line(&json!({ "workers": workers, "desired": wanted.desired, "backlog_s": wanted.backlog_s, "binding": wanted.binding }).to_string());
    } else {
        line(&workers.to_string());
    }
    Ok(())
}
