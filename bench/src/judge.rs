//! `judge`: what one look at a relay costs the database in processor time and in bytes: `monitor_finish` with all
//! seven checks, a day of hourly looks at relays whose documents do not change.
//!
//! The reference is the function as it was before the judgement over vantages, uptime and alerts, on a database of
//! its own in the same server and run.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::json;
use shared::clock;
use shared::db::{CheckRow, Db, MonitorResult};
use shared::models::{AddressPolicy, Fence, Metadata, MetadataType, Outcome, Reason, RelayUrl};
use sqlx::Row as _;
use tests::pg::{Role, TestDb};
use tokio::task::JoinSet;

use crate::figure::{Figure, Goal, Report, median};
use crate::process::family_cpu_s;
use crate::queue::cluster::{Cluster, settle, writer};

/// How to measure.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Options {
    /// Repetitions; figures are medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    n: u32,
    /// Relays.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..=10_000))]
    relays: u32,
}

/// Looks at each relay: one an hour, for a day.
const LOOKS: u32 = 24;
/// Callers at once.
const CALLERS: usize = 4;
/// Checks of one look, with the document each makes.
const CHECKS: [(&str, Option<MetadataType>); 7] = [
    ("dns", Some(MetadataType::Nip66Dns)),
    ("rtt", None),
    ("nip11", Some(MetadataType::Nip11Info)),
    ("ssl", Some(MetadataType::Nip66Ssl)),
    ("geo", Some(MetadataType::Nip66Geo)),
    ("net", Some(MetadataType::Nip66Net)),
    ("http", Some(MetadataType::Nip66Http)),
];

/// One side's day.
struct Day {
    cpu_ms_per_look: f64,
    bytes_per_check: f64,
    /// Of these, what the series alone takes.
    series_bytes: f64,
    documents_added: f64,
}

/// A number of a day.
type Of = fn(&Day) -> f64;

/// Both sides, taking turns.
pub(crate) async fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let cluster = Cluster::start("")?;
    let (mut ours, mut before) = (Vec::new(), Vec::new());
    for _ in 0..options.n {
        before.push(day(&cluster, options.relays, true).await?);
        ours.push(day(&cluster, options.relays, false).await?);
    }
    let of = |days: &[Day], what: Of| median(&days.iter().map(what).collect::<Vec<_>>());
    let figures: [(&str, Of, &'static str, Goal); 4] = [
        ("pg_cpu_ms_per_look", |day| day.cpu_ms_per_look, "ms", Goal::AtMost(2.0)),
        ("bytes_per_check", |day| day.bytes_per_check, "bytes", Goal::Stated),
        ("series_bytes_per_check", |day| day.series_bytes, "bytes", Goal::Stated),
        ("metadata_rows_added", |day| day.documents_added, "rows", Goal::AtMost(0.0)),
    ];
    for (name, what, unit, goal) in figures {
        report.add(&Figure {
            bench: "judge",
            name: name.to_owned(),
            ours: of(&ours, what),
            reference: of(&before, what),
            against: "monitor_finish before the judgement",
            unit,
            goal,
            n: options.n,
        });
    }
    Ok(())
}

async fn day(cluster: &Cluster, relays: u32, before: bool) -> anyhow::Result<Day> {
    let test = cluster.migrated().await?;
    test.execute(
        "SELECT partition_maintain(extract(epoch FROM now())::bigint, p_now => now() - interval '1 day')",
    )
    .await;
    if before {
        test.execute(&function_before()?).await;
    }
    let held = Arc::new(prepare(&test, relays).await?);
    let db = writer(&test)?;
    let now = clock::unix_now();
    // The first look finds everything new; what follows is what is measured.
    round(&db, &held, now - i64::from(LOOKS) * 3_600).await?;
    settle(
        &test,
        &["relay_check", "relay_check_latest", "relay_state", "relay_uptime", "schedule", "apalis.jobs"],
    )
    .await;
    let (documents, size, series) =
        (documents(&test).await?, bytes(&test, ALL).await?, bytes(&test, SERIES).await?);
    let cpu = family_cpu_s(cluster.postmaster);
    for look in (0..LOOKS).rev() {
        round(&db, &held, now - i64::from(look) * 3_600).await?;
    }
    let cpu = family_cpu_s(cluster.postmaster) - cpu;
    let looks = f64::from(relays) * f64::from(LOOKS);
    let checks = looks * 7.0;
    let written: f64 = count(&test, "SELECT count(*) FROM relay_check").await?;
    ensure!((written - checks - f64::from(relays) * 7.0).abs() < 0.5, "{written} checks were written");
    Ok(Day {
        cpu_ms_per_look: cpu * 1_000.0 / looks,
        bytes_per_check: (bytes(&test, ALL).await? - size) / checks,
        series_bytes: (bytes(&test, SERIES).await? - series) / checks,
        documents_added: self::documents(&test).await? - documents,
    })
}

/// The function of `0004_observe.sql`, which takes what was added later and does nothing with it.
fn function_before() -> anyhow::Result<String> {
    let file = include_str!("../../migrations/0004_observe.sql");
    let from = file.find("CREATE FUNCTION monitor_finish(").context("0004 makes it")?;
    let text = &file[from..];
    let text = &text[..text.find("END $$;").context("it ends")? + "END $$;".len()];
    let text = text.replacen(
        "c_data text[])",
        "c_data text[], p_stands integer[], p_overalls text[], p_overall_reasons text[], p_counted boolean[])",
        1,
    );
    Ok(format!(
        "DO $do$ DECLARE f regprocedure; BEGIN
             FOR f IN SELECT p.oid::regprocedure FROM pg_proc p WHERE p.proname = 'monitor_finish' LOOP EXECUTE 'DROP FUNCTION ' || f; END LOOP;
         END $do$;
         ALTER TABLE relay_state ALTER COLUMN stands_until SET DEFAULT 0;
         ALTER TABLE relay_state RESET (fillfactor); ALTER TABLE relay_check_latest RESET (fillfactor);
         {text}
         SELECT roles_grant('bigbrotr')"
    ))
}

/// Relays with a running job each, whose fence holds for the whole day.
async fn prepare(test: &TestDb, relays: u32) -> anyhow::Result<Vec<(RelayUrl, Fence)>> {
    test.execute(&format!(
        "INSERT INTO relay (url, network, discovered_at) SELECT 'wss://r' || i || '.example', 'clearnet', 1 FROM generate_series(1, {relays}) i;
         SELECT schedule_reconcile();
         SELECT job_heartbeat('w', 86400, 'here', '0', ARRAY['monitor.clearnet'], 1);
         SELECT job_enqueue(array_agg('monitor'::text), array_agg('clearnet'::text), array_agg(r.url), array_agg(now()), array_agg(60), array_agg(86400), array_agg(3)) FROM relay r;
         UPDATE apalis.jobs SET status = 'Running', gate = NULL, lock_by = 'w', lock_at = now(), attempts = 1, run_deadline = now() + interval '1 day'"
    ))
    .await;
    let mut connection = test.connect(Role::Superuser).await;
    let rows =
        sqlx::query("SELECT id, target FROM apalis.jobs ORDER BY target").fetch_all(&mut connection).await?;
    rows.iter()
        .map(|row| {
            let (job, target): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            Ok((RelayUrl::parse(&target, &AddressPolicy::public())?, Fence::new(job, "w".to_owned(), 1)))
        })
        .collect()
}

/// One look at every relay.
async fn round(db: &Db, held: &Arc<Vec<(RelayUrl, Fence)>>, at: i64) -> anyhow::Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (db, held, next) = (db.clone(), Arc::clone(held), Arc::clone(&next));
        callers.spawn(async move {
            while let Some((url, fence)) = held.get(next.fetch_add(1, Ordering::Relaxed)) {
                let lost = db.monitor_finish("here", &[look(url, fence, at)?]).await?;
                ensure!(lost.is_empty(), "a fence was lost");
            }
            Ok(())
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended??;
    }
    Ok(())
}

fn look(url: &RelayUrl, fence: &Fence, at: i64) -> anyhow::Result<MonitorResult> {
    let ms = 100 + u32::try_from(at.rem_euclid(97))?;
    let checks = CHECKS
        .iter()
        .map(|(kind, document)| {
            let document = document
                .map(|kind| Metadata::from_value(kind, &json!({ "data": { "of": url.as_str(), "kind": kind.as_str(), "text": "x".repeat(300) } })))
                .transpose()?;
            let rtt_ms = if *kind == "rtt" { [Some(ms), Some(ms / 2), None] } else { [None; 3] };
            Ok(CheckRow { kind, outcome: Outcome::Ok, reason: Reason::None, rtt_ms, document, status: None })
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok(MonitorResult {
        fence: fence.clone(),
        url: url.clone(),
        state: "alive",
        reason: Reason::None,
        failures: 0,
        successes: 9,
        alive: true,
        checked_at: at,
        next: Duration::from_secs(3_600),
        slack: Duration::from_secs(900),
        why: "alive".to_owned(),
        stands: Duration::from_secs(10_800),
        overall: "alive",
        overall_reason: Reason::None,
        counted: true,
        checks,
    })
}

/// Heap, indexes and the rest of the check series; and with it of everything else a look writes.
const SERIES: &str = "
    SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c WHERE c.relkind = 'r' AND c.relname LIKE 'relay\\_check\\_%'
    AND c.relname <> 'relay_check_latest'";
const ALL: &str = "
    SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace
    AND (c.relname LIKE 'relay\\_check%' OR c.relname LIKE 'relay\\_uptime%' OR c.relname IN ('relay_state', 'relay_overall', 'relay_alert'))";

async fn bytes(test: &TestDb, sql: &'static str) -> anyhow::Result<f64> {
    count(test, sql).await
}

async fn documents(test: &TestDb) -> anyhow::Result<f64> {
    count(test, "SELECT (SELECT count(*) FROM metadata) + (SELECT count(*) FROM relay_metadata)").await
}

async fn count(test: &TestDb, sql: &'static str) -> anyhow::Result<f64> {
    let mut connection = test.connect(Role::Superuser).await;
    let number: String = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT ({sql})::text")))
        .fetch_one(&mut connection)
        .await?;
    Ok(number.parse()?)
}
