//! `retention`: what the policies would take, and taking it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use shared::config::Config;
use shared::db::{Db, DbError, Pace, PlanLine, RetentionStep};
use shared::models::Retention as Policies;

use super::operate::actor;
use crate::Session;
use crate::args::Retention;
use crate::output::{Fail, bytes, commas, line, row, table, utc};

/// A plan reads the archive.
const STATEMENT: Duration = Duration::from_secs(3_600);
/// How often a lock may not be to be had, in a row.
const BUSY_MAX: u32 = 60;

pub(crate) async fn retention(session: &Session, config: &Config, args: &Retention) -> Result<(), Fail> {
    let json = session.global.json;
    let policies = config.retention();
    match args {
        Retention::Apply { yes: true, by } => {
            let db = session.database(config, "bigbrotr_writer").await?;
            let (changed, lowered) = db.retention_apply(policies, &actor(by, &session.user())).await?;
            let took = apply(&db).await?;
            if json {
                for step in took.values() {
                    let value = json!({ "policy": step.what, "events": step.events, "observations": step.observations, "months": step.months });
                    line(&value.to_string());
                }
                line(&json!({ "changed": changed, "lowered": lowered, "done": true }).to_string());
            } else {
                for step in took.values() {
                    line(&format!(
                        "{}: {} events, {} observations, {} months",
                        step.what,
                        commas(step.events),
                        commas(step.observations),
                        step.months
                    ));
                }
                if lowered > 0 {
                    line(&format!("{lowered} horizons came down: what lies above them is fetched again"));
                }
                line("done; new events are measured by it as they come");
            }
            Ok(())
        }
        Retention::Plan | Retention::Apply { .. } => {
            let db = session.database(config, "bigbrotr_reader").await?.with_timeout(STATEMENT);
            let plan = db.retention_plan(policies).await?;
            show(&plan, policies, json);
            if !json && matches!(args, Retention::Apply { .. }) {
                line("nothing was done. Say --yes to do it.");
            }
            Ok(())
        }
    }
}

/// Every step there is, added up by policy.
async fn apply(db: &Db) -> Result<BTreeMap<String, RetentionStep>, Fail> {
    let mut took: BTreeMap<String, RetentionStep> = BTreeMap::new();
    let (mut busy, mut pace) = (0, Pace::default());
    loop {
        match db.retention_step(&mut pace).await {
            Ok(None) => return Ok(took),
            Ok(Some(step)) => {
                busy = 0;
                // Horizons and coverage are not what anybody counts.
                if step.events + step.observations + step.months == 0 {
                    continue;
                }
                let sum = took
                    .entry(step.what.clone())
                    .or_insert_with(|| RetentionStep { what: step.what.clone(), ..RetentionStep::default() });
                sum.events += step.events;
                sum.observations += step.observations;
                sum.months += step.months;
            }
            // The next one is smaller.
            Err(DbError::Timeout { .. }) if busy < BUSY_MAX => busy += 1,
            Err(error) if error.is_busy() && busy < BUSY_MAX => {
                busy += 1;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            Err(error) => return Err(busy_or(error)),
        }
    }
}

fn busy_or(error: DbError) -> Fail {
    if error.is_busy() {
        Fail::Failed(
            "somebody else holds the archive: what is left is taken by the scheduler, or by another call"
                .to_owned(),
        )
    } else {
        error.into()
    }
}

fn show(plan: &[PlanLine], policies: &Policies, json: bool) {
    if json {
        for policy in plan {
            let before = (policy.before != i64::MAX).then_some(policy.before);
            let value = json!({
                "policy": policy.policy, "before": before, "months": policy.months, "events": policy.events,
                "observations": policy.observations, "bytes": policy.bytes, "lowered_from": policy.lowered_from,
            });
            line(&value.to_string());
        }
        return;
    }
    if policies.is_empty() {
        line("no policy is configured (section [retention]): everything is kept");
    }
    if plan.is_empty() {
        return;
    }
    let mut rows = vec![row(["POLICY", "KEEPS FROM", "MONTHS", "EVENTS", "OBSERVATIONS", "BYTES, ABOUT"])];
    rows.extend(plan.iter().map(|policy| {
        let from = match policy.before {
            i64::MAX => "nothing".to_owned(),
            0 => "everything".to_owned(),
            before => utc(before),
        };
        row([
            &policy.policy,
            &from,
            &policy.months.to_string(),
            &commas(policy.events),
            &commas(policy.observations),
            &bytes(policy.bytes),
        ])
    }));
    table(&rows);
    for policy in plan.iter().filter(|policy| policy.lowered_from.is_some()) {
        line(&format!(
            "{}: its horizon stands higher, at {}: `apply` lowers it, and what lies between is fetched again",
            policy.policy,
            policy
                .lowered_from
                .filter(|at| *at != i64::MAX)
                .map_or_else(|| "the end of time".to_owned(), utc)
        ));
    }
}
