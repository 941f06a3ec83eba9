//! `sync` and `ingest`: a worker of ours against honest relays in this process, into a durable PostgreSQL.
//!
//! Everything is signed, and the same at every run but for the dates, which end an hour ago. The relays take processor time
//! of the same machine, so that events per second are less than with relays elsewhere. The peer is `bigbrotr` 6.6.9: its own synchroniser over the
//! same relays in the same run, once. `--no-peer` leaves it out and names figures measured before in its place.

mod edges;
mod ingest;
mod peer;
mod relay;
mod scene;

use std::collections::HashSet;

use anyhow::ensure;
use clap::Args;
use shared::clock;

use crate::figure::{Figure, Goal, Report, median};
use crate::queue::cluster::Cluster;
use relay::Relay;
use scene::{Cost, Scene, items};

pub(crate) use ingest::run as ingest;

/// How to measure.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Options {
    /// Repetitions; figures are medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    n: u32,
    /// A fifth of everything: a look, not the figures.
    #[arg(long)]
    quick: bool,
    /// Leaves the peer out: the reference is then what was measured before, not in the same run.
    #[arg(long)]
    no_peer: bool,
}

/// What the relays cap a page at.
const CAP: usize = 500;
/// How long the way to a relay that is far away takes, there and back.
const AWAY_MS: u64 = 100;
/// Copies of each event in `ingest`.
const COPIES: usize = 5;

impl Options {
    const fn share(self, count: usize) -> usize {
        if self.quick { count / 5 } else { count }
    }
}

fn number(n: usize) -> f64 {
    u32::try_from(n).map_or(f64::NAN, f64::from)
}

/// Bytes of the frames in which these relays serve everything once, but for the name of the subscription.
fn least_bytes(relays: &[Relay]) -> f64 {
    relays
        .iter()
        .flat_map(|relay| &relay.items)
        .map(|item| number(item.json.len() + r#"["EVENT","0123456789abcdef",]"#.len()))
        .sum()
}

fn observations(relays: &[Relay]) -> f64 {
    relays.iter().map(|relay| number(relay.items.len())).sum()
}

/// The first of thirty relays that hold each of so many events five times.
async fn thirty(events: usize, first: usize, end: i64) -> anyhow::Result<Vec<Relay>> {
    let pool = items(51, events, end, None);
    let mut relays = Vec::new();
    for n in 0..first {
        let own = pool.iter().enumerate().filter(|(i, _)| (i * 7 + n * 11) % 60 < 10);
        relays.push(Relay::start(n, own.map(|(_, item)| item.clone()).collect(), CAP).await?);
    }
    Ok(relays)
}

/// A large one.
async fn large(options: &Options, end: i64) -> anyhow::Result<Relay> {
    Relay::start(0, items(52, options.share(50_000), end, None), CAP).await
}

/// One with more in a second than a page holds.
async fn crowd(end: i64) -> anyhow::Result<Relay> {
    Relay::start(0, items(53, 2_000, end, Some((3_000, end - 86_400))), CAP).await
}

fn distinct(relay: &Relay) -> f64 {
    number(relay.items.iter().map(|item| item.id).collect::<HashSet<_>>().len())
}

/// So many relays that hold so many events, each event about five times.
async fn many(fleet: usize, events: usize, end: i64) -> anyhow::Result<Vec<Relay>> {
    let pool = items(61, events, end, None);
    let mut relays = Vec::new();
    for n in 0..fleet {
        let own = pool.iter().enumerate().filter(|(i, _)| {
            (0..COPIES).any(|copy| (i * (2 * copy + 3) + copy * 37 + i / fleet) % fleet == n)
        });
        relays.push(Relay::start(n, own.map(|(_, item)| item.clone()).collect(), CAP).await?);
    }
    Ok(relays)
}

/// Events per second from relays that are all so far away.
async fn far(cluster: &Cluster, relays: &[Relay]) -> anyhow::Result<f64> {
    for relay in relays {
        relay.move_away(AWAY_MS);
    }
    let mut scene = Scene::start(cluster, relays).await?;
    let cost = scene.pass(cluster, relays).await?;
    let held = observations(relays);
    let missing = held - scene.number("SELECT count(*) FROM event_relay").await?;
    ensure!(missing == 0.0, "{missing} events of relays that are far away did not come");
    Ok(held / cost.seconds)
}

/// Thirty relays, one large one, and one with a dense second; the first two once more from far away.
pub(crate) async fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let end = clock::unix_now() - 3_600;
    let peer = peer::ForSync::measure(options, end).await?;
    let cluster = Cluster::start("")?;
    let (mut fleet, mut alone) = (Vec::new(), Vec::new());
    let (mut missing, mut large_requests) = (0.0_f64, Vec::new());
    let mut downloads = Vec::new();
    let mut held = 0.0;
    for _ in 0..options.n {
        let relays = thirty(options.share(20_000), 30, end).await?;
        held = observations(&relays);
        let mut scene = Scene::start(&cluster, &relays).await?;
        let cost = scene.pass(&cluster, &relays).await?;
        downloads.push(cost.bytes / least_bytes(&relays));
        missing = missing.max(held - scene.number("SELECT count(*) FROM event_relay").await?);
        fleet.push(cost);

        let one = [large(options, end).await?];
        let mut scene = Scene::start(&cluster, &one).await?;
        let cost = scene.pass(&cluster, &one).await?;
        large_requests.push(cost.requests / (observations(&one) / number(CAP)));
        missing = missing.max(observations(&one) - scene.number("SELECT count(*) FROM event_relay").await?);
        alone.push(cost);

        let dense = [crowd(end).await?];
        let mut scene = Scene::start(&cluster, &dense).await?;
        scene.pass(&cluster, &dense).await?;
        missing = missing.max(distinct(&dense[0]) - scene.number("SELECT count(*) FROM event_relay").await?);
    }
    let far_fleet = far(&cluster, &thirty(options.share(20_000), 30, end).await?).await?;
    let far_alone = far(&cluster, &[large(options, end).await?]).await?;
    let of = |costs: &[Cost], what: fn(&Cost) -> f64| median(&costs.iter().map(what).collect::<Vec<_>>());
    let mut add = |name: &str, ours, reference: f64, unit, goal| {
        let against = if reference.is_nan() { "nothing" } else { peer.against };
        report.add(&Figure {
            bench: "sync",
            name: name.to_owned(),
            ours,
            reference,
            against,
            unit,
            goal,
            n: options.n,
        });
    };
    let per_1k = |what| of(&fleet, what) / held * 1_000.0;
    let events_per_s = held / of(&fleet, |c| c.seconds);
    add("events_per_s", events_per_s, peer.events_per_s, "events/s", Goal::AtLeast(5_820.0));
    add("cpu_s_per_1k", per_1k(|c| c.worker_cpu_s), peer.cpu_s_per_1k, "s", Goal::AtMost(0.08));
    add("pg_cpu_s_per_1k", per_1k(|c| c.pg_cpu_s), peer.pg_cpu_s_per_1k, "s", Goal::Stated);
    add("download", median(&downloads), peer.download, "times what is held", Goal::AtMost(1.1));
    add("requests", median(&large_requests), peer.requests, "times events over the cap", Goal::AtMost(1.3));
    let large_per_s = number(options.share(50_000)) / of(&alone, |c| c.seconds);
    add("large_events_per_s", large_per_s, peer.large_events_per_s, "events/s", Goal::Stated);
    add("far_events_per_s", far_fleet, f64::NAN, "events/s", Goal::Stated);
    add("far_large_events_per_s", far_alone, f64::NAN, "events/s", Goal::Stated);
    add("missing", missing, peer.missing, "events", Goal::AtMost(0.0));
    add("peak_rss_mib", of(&fleet, |c| c.peak_mib), peer.peak_mib, "MiB", Goal::AtMost(200.0));
    Ok(())
}
