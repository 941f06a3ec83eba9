//! `why`: what keeps a job from running.

use serde_json::json;
use shared::config::Config;

use super::operate::canonical;
use crate::Session;
use crate::args::Why;
use crate::output::{Fail, line, row, table, utc};

pub(crate) async fn why(session: &Session, config: &Config, args: &Why) -> Result<(), Fail> {
    let db = session.database(config, "bigbrotr_reader").await?;
    let reasons = db.job_why(&canonical(&args.which)).await?;
    if session.global.json {
        for reason in &reasons {
            let value = json!({
                "job": reason.job, "queue": reason.queue, "target": reason.target, "state": reason.state,
                "reason": reason.reason, "detail": reason.detail, "until": reason.until,
            });
            line(&value.to_string());
        }
    } else {
        let mut rows = vec![row(["QUEUE", "STATE", "REASON", "UNTIL", "JOB", "DETAIL"])];
        rows.extend(reasons.iter().map(|reason| {
            #[expect(clippy::cast_possible_truncation, reason = "whole seconds of a date")]
            let until = reason.until.map(|at| utc(at as i64)).unwrap_or_default();
            row([
                reason.queue.as_deref().unwrap_or("-"),
                &reason.state,
                &reason.reason,
                &until,
                reason.job.as_deref().unwrap_or("-"),
                &reason.detail,
            ])
        }));
        table(&rows);
    }
    if reasons.iter().all(|reason| reason.reason == "unknown") { Err(Fail::Found) } else { Ok(()) }
}
