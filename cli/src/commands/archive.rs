//! `archive`: how much of each event is kept.

use std::time::Duration;

use serde_json::json;
use shared::config::Config;
use shared::db::{Db, DbError, LightenPlan, Pace};
use shared::models::{Fill, stricter};

use super::operate::actor;
use crate::Session;
use crate::args::{Archive, By};
use crate::output::{Fail, bytes, commas, line, row, table, utc, warn};

/// A preview reads the archive.
const STATEMENT: Duration = Duration::from_secs(3_600);
/// Events looked at by the first batch.
const LOOK: i32 = 1_000;
/// A batch that somebody is in the way of is tried again so often.
const TRIES: u32 = 60;
/// After so long.
const BREATH: Duration = Duration::from_secs(1);

pub(crate) async fn archive(session: &Session, config: &Config, args: &Archive) -> Result<(), Fail> {
    let json = session.global.json;
    match args {
        Archive::Status => {
            let db = session.database(config, "bigbrotr_reader").await?;
            status(&db, config.archive_max_bytes(), json).await
        }
        Archive::Lighten { yes: true, by, .. } => {
            let db = session.database(config, "bigbrotr_writer").await?;
            lighten(&db, by, &session.user(), json).await
        }
        Archive::Lighten { .. } => {
            let db = session.database(config, "bigbrotr_reader").await?.with_timeout(STATEMENT);
            preview(&db.archive_lighten_plan().await?, json);
            Ok(())
        }
        Archive::KeepBodies { by } => {
            let db = session.database(config, "bigbrotr_writer").await?;
            let was = db.archive_mode_set(false, &actor(by, &session.user())).await?;
            if json {
                line(&json!({ "light": false, "changed": was }).to_string());
            } else {
                line("bodies are kept of what comes from now on; those that are gone stay gone");
            }
            Ok(())
        }
    }
}

fn preview(plan: &LightenPlan, json: bool) {
    if json {
        let value = json!({
            "light": plan.light, "events": plan.events, "unmined": plan.unmined, "bytes": plan.bytes,
            "index_bytes": plan.index_bytes,
        });
        line(&value.to_string());
        return;
    }
    line(&format!(
        "{} events would lose tags, content, signature and tag hashes: {} of bodies, and {} of the index of tags",
        commas(plan.events),
        bytes(plan.bytes),
        bytes(plan.index_bytes)
    ));
    line(&format!(
        "{} of them keep tags and content until relay URLs have been looked for in them",
        commas(plan.unmined)
    ));
    line("what stays: id, time, kind, author, d tag, who has it; every view");
    line("what cannot be undone: no body comes back, and without signatures nothing can be proved to others");
    line(
        "the space is used again by new rows; to give it back to the system, VACUUM FULL each month of event",
    );
    line(
        "until then the database is as large as before, and syncing that rests for archive.max_gb goes on resting",
    );
    line(if plan.light {
        "the archive is lightweight already"
    } else {
        "nothing was done. Say --yes to do it."
    });
}

async fn lighten(db: &Db, by: &By, user: &str, json: bool) -> Result<(), Fail> {
    db.archive_mode_set(true, &actor(by, user)).await?;
    let (mut all, mut pace, mut tries) = (0, Pace::of(LOOK), 0);
    loop {
        match db.archive_lighten(&mut pace).await {
            Ok((0, _)) => break,
            Ok((_, stripped)) => {
                all += stripped;
                tries = 0;
            }
            // The next one is smaller, down to a single event.
            Err(DbError::Timeout { .. }) if !pace.is_stuck() => {}
            Err(error) if may_pass(&error) && tries < TRIES => {
                tries += 1;
                tokio::time::sleep(BREATH).await;
            }
            Err(error) => {
                warn(&format!(
                    "{} events lost their bodies, and no more did: the same command goes on from there",
                    commas(all)
                ));
                return Err(error.into());
            }
        }
    }
    if json {
        line(&json!({ "light": true, "stripped": all }).to_string());
    } else {
        line(&format!("{} events lost their bodies; the archive is lightweight", commas(all)));
    }
    Ok(())
}

/// Whether somebody was in the way of a batch, or the server was.
fn may_pass(error: &DbError) -> bool {
    error.is_busy() || error.is_deadlock() || error.is_outdated() || matches!(error, DbError::Unavailable(_))
}

async fn status(db: &Db, configured: Option<u64>, json: bool) -> Result<(), Fail> {
    let archive = db.archive_get(None).await?;
    let (horizons, policies) = (db.horizon_list().await?, db.policy_list().await?);
    let max = stricter(configured, archive.max_bytes);
    let fill = Fill::of(archive.bytes, max);
    if json {
        let horizons: Vec<_> = horizons
            .iter()
            .map(|h| json!({ "scope": h.scope, "before": h.before, "set_at": h.set_at, "reason": h.reason }))
            .collect();
        let policies: Vec<_> =
            policies.iter().map(|(name, days)| json!({ "policy": name, "days": days })).collect();
        let value = json!({
            "light": archive.light, "bytes": archive.bytes, "max_bytes": max, "syncing_rests": fill.rests(),
            "horizons": horizons, "policies": policies,
        });
        line(&value.to_string());
        return Ok(());
    }
    let budget = max.map_or_else(|| "no budget".to_owned(), |max| format!("of {}", bytes(max)));
    let rests = if fill.rests() { ", syncing rests" } else { "" };
    let mut rows = vec![
        row(["bodies", if archive.light { "not kept: lightweight" } else { "kept" }]),
        row(["size", &format!("{} {budget}{rests}", bytes(archive.bytes))]),
    ];
    rows.extend(policies.iter().map(|(name, days)| {
        row([
            "policy",
            &if *days == 0 { format!("{name}: not kept") } else { format!("{name}: kept for {days} days") },
        ])
    }));
    rows.extend(horizons.iter().map(|h| {
        let from = if h.before == i64::MAX {
            "nothing is kept".to_owned()
        } else {
            format!("kept from {}", utc(h.before))
        };
        row(["horizon", &format!("{}: {from}, since {}", h.scope, utc(h.set_at))])
    }));
    table(&rows);
    Ok(())
}
