//! Relays and events by hand: what the integration tests use, as commands for scripts and people.
#![expect(clippy::print_stdout, reason = "a command line tool prints its results")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use futures_util::future::try_join_all;
use nostr_relay_builder::LocalRelay;
use nostr_relay_builder::builder::{RateLimit, RelayBuilder};
use nostr_relay_builder::prelude::{MemoryDatabase, MemoryDatabaseOptions};
use serde_json::{Value, json};
use tests::factory::Factory;
use tests::journal::{self, Watched};
use tests::scripted::{Script, ScriptedRelay};

/// Local relays, and events published to any.
#[derive(Debug, Parser)]
#[command(name = "testrelay")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run nostr-relay-builder's LocalRelay until killed
    Local {
        /// Port
        #[arg(long)]
        port: u16,
        /// Address to listen on
        #[arg(long, default_value_t = Ipv4Addr::LOCALHOST.into())]
        host: IpAddr,
        /// Where events go
        #[arg(long, value_enum, default_value_t = Database::Memory)]
        db: Database,
    },
    /// Run a scripted relay until killed
    Scripted {
        /// Port on 127.0.0.1; 0 takes a free one
        #[arg(long)]
        port: u16,
        /// Name of the behaviour; an unknown one lists all
        #[arg(long)]
        script: String,
        /// How many events it stores
        #[arg(long, default_value_t = 1_000)]
        count: usize,
    },
    /// Publish distinct events, each to several of the relays, and print what was accepted
    Publish {
        /// How many distinct events
        #[arg(long)]
        count: usize,
        /// The same seed makes the same authors and texts
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Days into the past over which events are spread
        #[arg(long, default_value_t = 6)]
        span_days: u16,
        /// Seconds into the past instead
        #[arg(long)]
        span_s: Option<u32>,
        /// Print what was accepted one by one, as `ID URL`, instead of counts
        #[arg(long)]
        list: bool,
        /// Relays per event: a number, or `mixed` for 1, 2, … all in turn
        #[arg(long, default_value = "1")]
        copies: String,
        /// ws://127.0.0.1:port
        #[arg(required = true)]
        urls: Vec<String>,
    },
    /// Run a worker of `refresh.local` that journals when each attempt began and ended
    Worker {
        /// Database
        #[arg(long)]
        url: String,
        /// Jobs at once
        #[arg(long, default_value_t = 4)]
        slots: u32,
        /// Seconds its claims stand
        #[arg(long, default_value_t = 2)]
        lease_s: u64,
        /// Milliseconds a job takes
        #[arg(long, default_value_t = 50)]
        work_ms: u64,
        /// Seconds running jobs may finish after SIGTERM
        #[arg(long, default_value_t = 5)]
        grace_s: u64,
        /// File to append to
        #[arg(long)]
        journal: std::path::PathBuf,
    },
    /// Be the world outside, in the namespaces of `tests/tools/world.sh`, until killed
    World {
        /// Where its zone is and its journal goes
        folder: std::path::PathBuf,
    },
    /// Count the events a relay serves
    Read {
        /// ws://127.0.0.1:port
        url: String,
    },
}

/// Where a LocalRelay keeps events.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Database {
    /// Until it ends
    Memory,
    /// Nowhere: it answers every REQ with EOSE
    None,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Local { port, host, db } => local(host, port, db).await,
        Command::Scripted { port, script, count } => scripted(port, &script, count).await,
        Command::Publish { count, seed, span_days, span_s, list, copies, urls } => {
            let span_s = span_s.map_or(i64::from(span_days) * 86_400, i64::from);
            publish(&Factory::new(seed).over(span_s), count, &copies, list, &urls).await
        }
        Command::Worker { url, slots, lease_s, work_ms, grace_s, journal } => {
            let seconds = std::time::Duration::from_secs;
            let work = std::time::Duration::from_millis(work_ms);
            let watched = Watched { url, slots, lease: seconds(lease_s), work, grace: seconds(grace_s) };
            let stop = tokio_util::sync::CancellationToken::new();
            let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
            let working = journal::work(watched, &journal, stop.clone());
            tokio::pin!(working);
            tokio::select! {
                done = &mut working => done,
                _ = term.recv() => {
                    stop.cancel();
                    working.await
                }
            }
        }
        Command::World { folder } => tests::world::serve(&folder).await,
        Command::Read { url } => {
            let ids = tests::publish::read_ids(&url).await?;
            println!("{}", json!({ "url": url, "events": ids.len() }));
            Ok(())
        }
    }
}

async fn local(host: IpAddr, port: u16, db: Database) -> anyhow::Result<()> {
    let options =
        MemoryDatabaseOptions { events: matches!(db, Database::Memory), max_events: Some(1_000_000) };
    // Its default of 60 events a minute is for the open internet.
    let limits = RateLimit { max_reqs: 10_000, notes_per_minute: u32::MAX };
    let database = MemoryDatabase::with_opts(options);
    let relay =
        LocalRelay::new(RelayBuilder::default().addr(host).port(port).rate_limit(limits).database(database));
    relay.run().await.context("starting the relay")?;
    println!("listening {}", relay.url().await);
    std::future::pending().await
}

async fn scripted(port: u16, name: &str, count: usize) -> anyhow::Result<()> {
    let events = Factory::new(1).events(count);
    let Some(script) = Script::named(name, &events) else {
        bail!("no script is called {name:?}; there are: {}", Script::NAMES.join(" "));
    };
    let relay = ScriptedRelay::start_on(port, script).await.context("binding the port")?;
    println!("listening {}", relay.url());
    std::future::pending().await
}

async fn publish(
    factory: &Factory,
    count: usize,
    copies: &str,
    list: bool,
    urls: &[String],
) -> anyhow::Result<()> {
    let copies_of = |index: usize| match copies {
        "mixed" => Ok(1 + index % urls.len()),
        number => number.parse::<usize>().context("--copies takes a number or `mixed`"),
    };
    let mut shares = vec![Vec::new(); urls.len()];
    for (index, event) in factory.events(count).into_iter().enumerate() {
        let copies = copies_of(index)?;
        ensure!(
            (1..=urls.len()).contains(&copies),
            "--copies must be 1 to {}, the number of relays",
            urls.len()
        );
        for copy in 0..copies {
            // Relays take turns as the first; the turn is slower than the copies, or `mixed` would favour some.
            shares[(index / urls.len() + copy) % urls.len()].push(event.clone());
        }
    }
    // All relays at once: each is one process with one writer.
    let published = try_join_all(urls.iter().zip(&shares).map(async |(url, share)| {
        tests::publish::publish(url, share).await.with_context(|| format!("publishing to {url}"))
    }))
    .await?;
    if list {
        for (url, published) in urls.iter().zip(&published) {
            for id in &published.accepted {
                println!("{id} {url}");
            }
        }
        return Ok(());
    }
    let relays: Vec<Value> = urls
        .iter()
        .zip(&shares)
        .zip(&published)
        .map(|((url, share), published)| {
            let accepted = published.accepted.len();
            json!({ "url": url, "sent": share.len(), "accepted": accepted, "refused": published.refused.first() })
        })
        .collect();
    let distinct: BTreeSet<&String> = published.iter().flat_map(|relay| &relay.accepted).collect();
    let pairs: u64 = relays.iter().filter_map(|relay| relay["accepted"].as_u64()).sum();
    println!("{}", json!({ "distinct": distinct.len(), "pairs": pairs, "relays": relays }));
    Ok(())
}
