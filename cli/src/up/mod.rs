//! `bigbrotr up`: everything on one machine, in one process tree.
//!
//! A private PostgreSQL, migrated and seeded, and scheduler and worker as tasks of this process with the
//! writer's rights only. It stops cleanly, resumes at the next start, and leaves nothing running.

mod cluster;
mod programs;
mod progress;

use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use shared::clock;
use shared::config::{Config, Flag};
use shared::db::{Db, MigrateOptions, ReadCount, Unsettled};
use shared::jobs::{refresh, seed as seeder};
use shared::models::Fill;
use shared::process::{self, Surroundings};
use shared::queue;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Session;
use crate::args::Up;
use crate::commands::{read_lists, role_passwords};
use crate::embedded::{Layout, SUPERUSER};
use crate::output::{Fail, bytes, line, warn};
use cluster::Cluster;
use programs::{Owner, Programs};
use progress::Progress;

/// The archive's limits when nobody chose others: a week and a size that any machine has.
const DAYS: &str = "7";
const MAX_GB: &str = "5";
/// Seconds running jobs may finish after Ctrl-C, when nobody chose otherwise: a person waits.
const GRACE_S: &str = "10";
/// How long after the grace the two tasks may take to give back what they hold.
const AFTER_GRACE: Duration = Duration::from_secs(15);
/// Between two looks at everything.
const TICK: Duration = Duration::from_secs(1);
/// With `--once`: looks in a row that must find nothing to do, because a finished job may lead to another.
const SETTLED_LOOKS: u32 = 4;

/// What has been decided before anything is started.
struct Plan<'a> {
    session: &'a Session,
    args: &'a Up,
    config: Arc<Config>,
    layout: Layout,
    programs: Programs,
    owner: Owner,
}

/// Runs until a signal, until `--once` is satisfied, or until something fails.
pub(crate) fn run(
    session: &Session,
    config: &Config,
    flags: Vec<Flag>,
    args: &Up,
    runtime: &Runtime,
) -> Result<(), Fail> {
    let metrics = metrics_address(&args.metrics)?;
    let layout = session.layout.clone();
    let config = Arc::new(session.config(&all_flags(flags, config, args, &layout))?);
    worker::check(&config)?;
    process::prepare(&config);
    for (name, set) in [
        ("--database-url", session.global.database_url.is_some()),
        ("DATABASE_URL", config_names_database(session)),
    ] {
        if set {
            warn(&format!("{name} is set and not used: `up` runs on a database of its own"));
        }
    }
    let lock = cluster::take(&layout)?;
    let programs = Programs::find(args.pg_bin.as_deref(), &session.env, cluster::data_version(&layout))?;
    let plan = Plan { session, args, config, layout, programs, owner: Owner::find()? };
    let done = runtime.block_on(Box::pin(process::run(metrics, async |around| {
        let ended = Box::pin(work(&plan, lock, around)).await;
        ended.map_err(|fail| match fail {
            Fail::Usage(text) | Fail::Failed(text) => text,
            Fail::Found => String::new(),
        })
    })));
    done.map_err(|text| match text.as_str() {
        "" => Fail::Found,
        taken if taken.contains("is already in use") => {
            Fail::Failed(format!("{taken} (--metrics ADDR, or --metrics none)"))
        }
        _ => Fail::Failed(text),
    })
}

fn config_names_database(session: &Session) -> bool {
    session.env.get("DATABASE_URL").is_some_and(|url| !url.is_empty())
}

fn metrics_address(text: &str) -> Result<Option<SocketAddr>, Fail> {
    if text == "none" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        Fail::Usage(format!("--metrics is {text}: it must be an IP address and a port, or none"))
    })
}

/// Our choices where the operator made none, and the embedded database in any case.
fn all_flags(mut flags: Vec<Flag>, config: &Config, args: &Up, layout: &Layout) -> Vec<Flag> {
    let mut limit = |key: &'static str, name: &'static str, given: Option<&String>, preset: &str| {
        if let Some(value) = given {
            flags.push(Flag { key, value: value.clone(), name });
        } else if !config.is_set(key) {
            flags.push(Flag { key, value: preset.to_owned(), name });
        }
    };
    limit("archive.days", "--days", args.days.as_ref(), DAYS);
    limit("archive.max_gb", "--max-gb", args.max_gb.as_ref(), MAX_GB);
    limit("worker.grace_s", "bigbrotr up", None, GRACE_S);
    limit("log.level", "bigbrotr up", None, "warn");
    let writer = layout.url("bigbrotr_writer");
    for key in ["database.url", "database.direct_url"] {
        flags.push(Flag { key, value: writer.clone(), name: "bigbrotr up" });
    }
    flags
}

async fn work(plan: &Plan<'_>, lock: File, around: Surroundings) -> Result<(), Fail> {
    let connections = plan.config.max_connections();
    let start = Cluster::start(&plan.layout, &plan.programs, &plan.owner, connections, lock);
    let Some(started) = unless_stopped(&around, start).await else { return interrupted(plan) };
    let mut cluster = started?;
    let ended = Box::pin(observe(plan, &mut cluster, &around)).await;
    cluster.stop().await;
    if ended.is_ok() && !plan.session.global.json {
        line("stopped; `bigbrotr up` resumes where this ended");
    }
    ended
}

/// Everything that needs the server.
async fn observe(plan: &Plan<'_>, cluster: &mut Cluster, around: &Surroundings) -> Result<(), Fail> {
    let Some(prepared) = unless_stopped(around, Box::pin(prepare(plan, cluster))).await else {
        return interrupted(plan);
    };
    let (writer, seeds, since) = prepared?;
    greet(plan, &seeds);
    let reader = Db::lazy(&plan.layout.url("bigbrotr_reader"), "bigbrotr up", 1)?;
    let mut tasks = JoinSet::new();
    let (config, all) = (Arc::clone(&plan.config), around.clone());
    tasks.spawn(async move { Box::pin(scheduler::run(&config, all.metrics, all.health, all.stop)).await });
    let (config, all) = (Arc::clone(&plan.config), around.clone());
    tasks.spawn(async move { Box::pin(worker::run(&config, all.metrics, all.health, all.stop)).await });
    let json = plan.session.global.json;
    let mut progress =
        Progress::new(reader.clone(), around.metrics.clone(), json, plan.config.archive_max_bytes(), now_s());
    let mut ended = watch(plan, cluster, around, &mut tasks, &mut progress, (&reader, since)).await;
    around.stop.cancel();
    if !json {
        line("stopping");
    }
    let grace = plan.config.queue_options("").grace + AFTER_GRACE;
    let rest = tokio::time::timeout(grace, async {
        while let Some(joined) = tasks.join_next().await {
            ended = ended.and(part_result(joined));
        }
        ended
    });
    ended = rest
        .await
        .unwrap_or_else(|_| Err(Fail::Failed("scheduler and worker did not stop in time".to_owned())));
    if plan.args.once && ended.is_ok() {
        ended = finish(&writer).await;
        progress.show_last(now_s()).await;
        ended = report(plan, &reader).await.and(ended);
    }
    reader.close().await;
    writer.close().await;
    ended
}

/// What the work ends with, or nothing when it is told to stop before: a recovery or a migration may take long.
async fn unless_stopped<T>(around: &Surroundings, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        () = around.stop.cancelled() => None,
    }
}

/// The end of what was told to stop.
fn interrupted(plan: &Plan<'_>) -> Result<(), Fail> {
    if plan.args.once {
        return Err(Fail::Failed("interrupted before everything was read once".to_owned()));
    }
    Ok(())
}

/// The server, its schema, what it is to begin with, and when by its clock.
async fn prepare(plan: &Plan<'_>, cluster: &mut Cluster) -> Result<(Db, String, f64), Fail> {
    cluster.wait_until_ready().await?;
    let options =
        MigrateOptions { passwords: role_passwords(&plan.session.env)?, ..MigrateOptions::default() };
    queue::migrate(&plan.layout.url(SUPERUSER), &options).await?;
    let writer = Db::connect(plan.config.database_url(), "bigbrotr up", 1).await?;
    let since = writer.now().await?;
    let seeds = seed(plan, &writer).await?;
    Ok((writer, seeds, since))
}

/// Until a signal, the end of `--once`, or a failure; `since` is the start by the database's clock.
async fn watch(
    plan: &Plan<'_>,
    cluster: &mut Cluster,
    around: &Surroundings,
    tasks: &mut JoinSet<anyhow::Result<()>>,
    progress: &mut Progress,
    (reader, since): (&Db, f64),
) -> Result<(), Fail> {
    let networks = plan.config.scheduler_options().networks;
    let began_s = now_s();
    let (mut settled, mut full) = (0, 0);
    loop {
        cluster.check()?;
        // A person who stops it does not wait for a database that is slow to answer.
        if unless_stopped(around, Box::pin(progress.show(now_s()))).await.is_none() {
            return interrupted(plan);
        }
        if plan.args.once {
            let look = unless_stopped(around, Box::pin(reader.unsettled(&networks, since)));
            let Some(looked) = look.await else { return interrupted(plan) };
            let left = looked.unwrap_or_else(|_| unknown());
            settled = if left.is_settled() { settled + 1 } else { 0 };
            if settled >= SETTLED_LOOKS {
                return Ok(());
            }
            full =
                if left.is_settled_but_for_syncing() && is_full(plan, reader).await { full + 1 } else { 0 };
            if full >= SETTLED_LOOKS {
                return Err(Fail::Failed(format!(
                    "the archive is at its limit: {} relays were not read (--max-gb)",
                    left.unsynced
                )));
            }
            if plan.args.timeout.is_some_and(|limit| now_s() >= began_s + limit) {
                return Err(Fail::Failed(format!(
                    "not done after --timeout: {} due, {} running, {} candidates untried, {} relays not yet read",
                    left.due, left.running, left.untried, left.unsynced
                )));
            }
        }
        tokio::select! {
            // The stop first: it ends the two tasks, too, and they have not failed then.
            biased;
            () = around.stop.cancelled() => {
                return interrupted(plan);
            }
            Some(joined) = tasks.join_next() => {
                part_result(joined)?;
                return Err(Fail::Failed("scheduler or worker ended by itself".to_owned()));
            }
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

/// Whether the archive is at its limit, so that syncing rests.
async fn is_full(plan: &Plan<'_>, reader: &Db) -> bool {
    let max = plan.config.archive_max_bytes();
    reader.fleet_stats().await.is_ok_and(|fleet| Fill::of(fleet.database_bytes, max).rests())
}

/// A database that does not answer leaves everything to do.
const fn unknown() -> Unsettled {
    Unsettled { due: 1, running: 0, untried: 0, unsynced: 0 }
}

fn part_result(joined: Result<anyhow::Result<()>, tokio::task::JoinError>) -> Result<(), Fail> {
    match joined {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Fail::Failed(format!("{error:#}"))),
        Err(error) => Err(Fail::Failed(format!("scheduler or worker failed: {error}"))),
    }
}

/// The files named, or the shipped list when nothing is known yet.
async fn seed(plan: &Plan<'_>, writer: &Db) -> Result<String, Fail> {
    let fleet = writer.fleet_stats().await?;
    if plan.args.files.is_empty() && fleet.relays + fleet.candidates > 0 {
        return Ok(format!(
            "{} relays and {} candidates are known from before",
            fleet.relays, fleet.candidates
        ));
    }
    let lists = read_lists(&plan.args.files, &plan.config.policy())?;
    let new = seeder::insert(writer, &lists.urls).await?;
    Ok(format!("{}: {} relay URLs, {new} of them new", lists.names, lists.urls.len()))
}

/// What a person wants to know at the start.
fn greet(plan: &Plan<'_>, seeds: &str) {
    let days = plan.config.archive_days();
    let max = plan.config.archive_max_bytes();
    if plan.session.global.json {
        let value = json!({
            "data": plan.layout.dir().display().to_string(), "psql": plan.layout.psql(), "days": days, "max_bytes": max,
            "metrics": plan.args.metrics, "seeds": seeds, "postgresql": plan.programs.major(),
        });
        line(&value.to_string());
        return;
    }
    let reach = days.map_or_else(|| "everything".to_owned(), |days| format!("the last {days} days"));
    let size = max.map_or_else(|| "of any size".to_owned(), |max| format!("up to {}", bytes(max)));
    let metrics = match plan.args.metrics.as_str() {
        "none" => "none".to_owned(),
        address => format!("http://{address}/metrics"),
    };
    crate::output::table(&[
        vec!["data".to_owned(), plan.layout.dir().display().to_string()],
        vec![
            "postgres".to_owned(),
            format!("version {} from {}", plan.programs.major(), plan.programs.dir().display()),
        ],
        vec!["psql".to_owned(), plan.layout.psql()],
        vec![
            "archive".to_owned(),
            format!("{reach}, {size} (change with --days N|all and --max-gb N|unlimited)"),
        ],
        vec!["metrics".to_owned(), metrics],
        vec!["seeds".to_owned(), seeds.to_owned()],
    ]);
    line("Ctrl-C stops; the next start resumes");
}

/// After `--once`: the views show what was just read.
async fn finish(writer: &Db) -> Result<(), Fail> {
    let done = refresh::all(&writer.with_timeout(refresh::LIMIT), &CancellationToken::new()).await?;
    match done.unwrap_or_default().failed.first() {
        None => Ok(()),
        Some((what, error)) => Err(Fail::Failed(format!(
            "what was read is archived, but {what} could not be brought up to date: {error}"
        ))),
    }
}

/// After `--once`: what there is now, and which relays were tried and could not be read.
async fn report(plan: &Plan<'_>, reader: &Db) -> Result<(), Fail> {
    let (events, observations) = reader.archive_count().await?;
    let relays = reader.read_count(&plan.config.scheduler_options().networks).await?;
    let ReadCount { read, unread, .. } = relays;
    if plan.session.global.json {
        let lines: Vec<_> = relays
            .lines
            .iter()
            .map(|of| json!({ "url": of.url, "end": of.ended, "reason": of.reason }))
            .collect();
        let value = json!({ "done": true, "events": events, "observations": observations, "read": read, "unread": unread, "relays_unread": lines });
        line(&value.to_string());
    } else {
        for of in &relays.lines {
            let reason = of.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            line(&format!("not read: {}: {}{reason}", of.url, of.ended));
        }
        line(&format!("{read} relays have been read once: {events} events, {observations} observations"));
    }
    if unread == 0 {
        return Ok(());
    }
    Err(Fail::Failed(format!(
        "{read} relays read, {unread} were tried once and could not be read; `bigbrotr up` goes on trying"
    )))
}

fn now_s() -> u64 {
    clock::monotonic_ms() / 1_000
}
