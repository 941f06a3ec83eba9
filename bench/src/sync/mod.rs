//! `sync` and `ingest`: a worker of ours against honest relays in this process, into a durable PostgreSQL.
//!
//! Everything is signed, and the same at every run but for the dates, which end an hour ago. The relays take processor time
//! of the same machine, so that events per second are less than with relays elsewhere. The peer's figures are those of
//! `bigbrotr` 6.6.9 as measured before on a machine of this size; they are not taken in the same run.

mod edges;
mod ingest;
mod relay;
mod scene;

use std::collections::HashSet;

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
    /// Leaves the peer's figures out.
    #[arg(long)]
    no_peer: bool,
}

/// What the relays cap a page at.
const CAP: usize = 500;
const PEER: &str = "bigbrotr 6.6.9, measured before on such a machine";

impl Options {
    const fn share(self, count: usize) -> usize {
        if self.quick { count / 5 } else { count }
    }

    const fn peer(self, figure: f64) -> f64 {
        if self.no_peer { f64::NAN } else { figure }
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

/// Thirty relays, one large one, and one with a dense second.
pub(crate) async fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let cluster = Cluster::start("")?;
    let end = clock::unix_now() - 3_600;
    let (mut fleet, mut large) = (Vec::new(), Vec::new());
    let (mut missing, mut large_requests) = (0.0_f64, Vec::new());
    let mut downloads = Vec::new();
    let mut held = 0.0;
    for _ in 0..options.n {
        let pool = items(51, options.share(20_000), end, None);
        let mut relays = Vec::new();
        for n in 0..30 {
            let own = pool
                .iter()
                .enumerate()
                .filter(|(i, _)| (i * 7 + n * 11) % 60 < 10)
                .map(|(_, item)| item.clone());
            relays.push(Relay::start(n, own.collect(), CAP).await?);
        }
        held = observations(&relays);
        let mut scene = Scene::start(&cluster, &relays).await?;
        let cost = scene.pass(&cluster, &relays).await?;
        downloads.push(cost.bytes / least_bytes(&relays));
        missing = missing.max(held - scene.number("SELECT count(*) FROM event_relay").await?);
        fleet.push(cost);

        let one = [Relay::start(0, items(52, options.share(50_000), end, None), CAP).await?];
        let mut scene = Scene::start(&cluster, &one).await?;
        let cost = scene.pass(&cluster, &one).await?;
        large_requests.push(cost.requests / (observations(&one) / number(CAP)));
        missing = missing.max(observations(&one) - scene.number("SELECT count(*) FROM event_relay").await?);
        large.push(cost);

        let crowd = [Relay::start(0, items(53, 2_000, end, Some((3_000, end - 86_400))), CAP).await?];
        let distinct = crowd[0].items.iter().map(|item| item.id).collect::<HashSet<_>>().len();
        let mut scene = Scene::start(&cluster, &crowd).await?;
        scene.pass(&cluster, &crowd).await?;
        missing = missing.max(number(distinct) - scene.number("SELECT count(*) FROM event_relay").await?);
    }
    let of = |costs: &[Cost], what: fn(&Cost) -> f64| median(&costs.iter().map(what).collect::<Vec<_>>());
    let mut add = |name: &str, ours, reference, against, unit, goal| {
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
    let thousands = held / 1_000.0;
    add(
        "events_per_s",
        held / of(&fleet, |c| c.seconds),
        options.peer(582.0),
        PEER,
        "events/s",
        Goal::AtLeast(5_820.0),
    );
    add(
        "cpu_s_per_1k",
        of(&fleet, |c| c.worker_cpu_s) / thousands,
        options.peer(0.82),
        PEER,
        "s",
        Goal::AtMost(0.08),
    );
    add("pg_cpu_s_per_1k", of(&fleet, |c| c.pg_cpu_s) / thousands, f64::NAN, "nothing", "s", Goal::Stated);
    add("download", median(&downloads), options.peer(3.5), PEER, "times what is held", Goal::AtMost(1.1));
    add(
        "requests",
        median(&large_requests),
        options.peer(6.22),
        PEER,
        "times events over the cap",
        Goal::AtMost(1.3),
    );
    add(
        "large_events_per_s",
        number(options.share(50_000)) / of(&large, |c| c.seconds),
        f64::NAN,
        "nothing",
        "events/s",
        Goal::Stated,
    );
    add("missing", missing, options.peer(150.0), PEER, "events", Goal::AtMost(0.0));
    add("peak_rss_mib", of(&fleet, |c| c.peak_mib), f64::NAN, "nothing", "MiB", Goal::AtMost(200.0));
    Ok(())
}
