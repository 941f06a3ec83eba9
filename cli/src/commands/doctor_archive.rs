//! `doctor` on what the archive keeps: budget, horizons, and rows that no month has taken.

use serde_json::json;
use shared::clock;
use shared::db::{Db, DbError};
use shared::models::{Fill, NEAR_PERCENT, REST_PERCENT, stricter};

use super::doctor::{Findings, Mark};
use crate::output::{bytes, commas, utc};

/// Rows in a default partition that are nobody's concern: events of absurd times.
const DEFAULT_ROWS: u64 = 10_000;

/// Events dated ahead are counted up to here.
const AHEAD: u32 = 100_000;

/// Whether a server that archives its WAL can: one that cannot keeps it until its disk is full.
pub(super) async fn wal(db: &Db, findings: &mut Findings) -> Result<(), DbError> {
    let Some(wal) = db.wal_archiving().await? else { return Ok(()) };
    let last = wal.archived_at.map_or_else(|| "never".to_owned(), utc);
    let (mark, text) = match &wal.failing {
        Some(file) => (
            Mark::Problem,
            format!(
                "{file} cannot be archived (the last that was: {last}): the server keeps all WAL until its disk is full; its log says why"
            ),
        ),
        None => (Mark::Ok, format!("finished WAL is archived, the last at: {last}")),
    };
    findings.add(mark, "wal", text, json!({ "failing": wal.failing, "archived_at": wal.archived_at }));
    Ok(())
}

pub(super) async fn keeping(
    db: &Db,
    configured: Option<u64>,
    findings: &mut Findings,
) -> Result<(), DbError> {
    let archive = db.archive_get(None).await?;
    let max = stricter(configured, archive.max_bytes);
    let size = bytes(archive.bytes);
    let data = json!({ "bytes": archive.bytes, "max_bytes": max });
    let (mark, text) = match (Fill::of(archive.bytes, max), max) {
        (_, None) => (
            Mark::Note,
            format!("{size}, without a budget (archive.max_gb): nothing rests before the disk is full"),
        ),
        (Fill::Free, Some(max)) => (Mark::Ok, format!("{size} of {}", bytes(max))),
        (Fill::Near, Some(max)) => (
            Mark::Note,
            format!("{size} of {}, over {NEAR_PERCENT} %: at {REST_PERCENT} % syncing rests", bytes(max)),
        ),
        (Fill::Rests, Some(max)) => (
            Mark::Problem,
            format!(
                "{size} of {}, over {REST_PERCENT} %: syncing rests, monitoring goes on. Room is made by archive.max_gb, and by [retention] days, which drops months; \
                 what other policies and `bigbrotr archive lighten` take is given back by VACUUM FULL",
                bytes(max)
            ),
        ),
    };
    findings.add(mark, "disk", text, data);
    if archive.light {
        let text = "lightweight: no tags, content and signatures are kept".to_owned();
        findings.add(Mark::Ok, "archive", text, json!({ "light": true }));
    }
    for h in db.horizon_list().await? {
        let from = if h.before == i64::MAX {
            "nothing is kept".to_owned()
        } else {
            format!("kept from {}", utc(h.before))
        };
        let text = format!("{}: {from} by {}; nothing below is asked for", h.scope, h.reason);
        findings.add(Mark::Ok, "horizon", text, json!({ "scope": h.scope, "before": h.before }));
    }
    for (table, rows) in db.default_rows(DEFAULT_ROWS + 1).await? {
        let (mark, more) = if rows > DEFAULT_ROWS { (Mark::Note, "more than ") } else { (Mark::Ok, "") };
        let text = format!(
            "{more}{} rows in {table}: no month has been made for them; they move when it is, and an age limit takes them \
             when their dates are that old",
            commas(rows.min(DEFAULT_ROWS))
        );
        if rows > 0 {
            findings.add(mark, "partitions", text, json!({ "table": table, "rows": rows }));
        }
    }
    heavy(db, archive.before, findings).await?;
    ahead(db, findings).await
}

/// Months that nobody makes by himself: moving what lies there already would keep everybody waiting.
async fn heavy(db: &Db, before: i64, findings: &mut Findings) -> Result<(), DbError> {
    let now = utc(clock::unix_now());
    for month in db.months_heavy(before).await? {
        // All that comes of a month that goes on lies there, too, and is more to move every day.
        let mark =
            if now.get(..7).is_some_and(|this| month.as_str() >= this) { Mark::Problem } else { Mark::Note };
        let text = format!(
            "{month} has no partition and is not given one: more than 200,000 rows of it are in the default partitions. Stop the workers \
             and, as the owner, SET statement_timeout = 0; SELECT month_ensure(extract(epoch FROM timestamptz '{month}-01Z')::bigint)"
        );
        findings.add(mark, "month", text, json!({ "month": month }));
    }
    Ok(())
}

/// Events dated ahead: no limit by age takes them before their date has passed.
async fn ahead(db: &Db, findings: &mut Findings) -> Result<(), DbError> {
    let events = db.ahead_count(AHEAD).await?;
    if events > 0 {
        let mark = if events > DEFAULT_ROWS { Mark::Note } else { Mark::Ok };
        let more = if events == u64::from(AHEAD) { "at least " } else { "" };
        let text = format!(
            "{more}{} archived events are dated more than 15 minutes ahead (events_ahead): an age limit takes them when their dates are that old",
            commas(events)
        );
        findings.add(mark, "ahead", text, json!({ "events": events }));
    }
    Ok(())
}
