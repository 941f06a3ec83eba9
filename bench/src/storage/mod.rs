//! `storage`: what the archive takes on disk and costs the server as it grows, beside the original's schema on the same
//! server with the same deliveries.
//!
//! The archive grows by months of 100,000 events and 500,000 observations; ours is fed through the functions a sync
//! job calls. Autovacuum is off and its work is done, and counted, after each month.

mod ask;
mod confine;
mod floor;
mod grow;
mod key;
mod layout;
mod lifecycle;
mod ours;
mod peer;
mod refresh;
mod relays;
mod workload;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use crate::figure::{Figure, Goal, Report};
use crate::queue::Cluster;

/// How to measure.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// A twentieth of the events and three months: a look, not the figures.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Months to grow to; six are 3 million observations, twenty are 10 million.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..=30))]
    months: u32,
    /// Everything in one month: what a partition costs as it fills.
    #[arg(long, value_enum)]
    dense: Option<Dense>,
    /// Only these groups of figures; `ingest` always runs, but where `floor` is all that is asked for.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Group>,
    /// Leaves the peer out: then the figures have no reference, and the run does not count.
    #[arg(long)]
    no_peer: bool,
    /// The server and its page cache get this much memory in all (needs root and the memory controller).
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(256..=65_536))]
    memory: Option<u32>,
}

/// How a month fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Dense {
    /// From its first day to its last, as an archive that follows the present.
    Live,
    /// All of it again and again, as relays that are found one after the other and know other events.
    Waves,
}

/// Figures that are taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Processor time of storing, bytes, growth.
    Ingest,
    /// The cheapest ways into the tables, step by step.
    Floor,
    /// What is asked of the archive.
    Ask,
    /// The views.
    Refresh,
    /// The key of events.
    Key,
    /// Candidates for indexes.
    Layout,
    /// Months that are dropped, packed, or come late.
    Lifecycle,
}

impl Options {
    fn wants(&self, group: Group) -> bool {
        self.only.is_empty() || self.only.contains(&group)
    }

    /// Events of a month.
    const fn events(&self) -> u32 {
        if self.quick { 5_000 } else { 100_000 }
    }

    /// Months at the first stop.
    const fn middle(&self) -> u32 {
        if self.quick || self.months < 6 { 2 } else { 6 }
    }

    /// The month in which the events of a step lie.
    const fn month(&self, step: u32) -> u32 {
        if self.dense.is_some() { 0 } else { step }
    }

    /// Which part of its month a step fills.
    fn part(&self, step: u32) -> (u32, u32) {
        if self.dense == Some(Dense::Live) { (step, self.last()) } else { (0, 1) }
    }

    const fn last(&self) -> u32 {
        if self.quick { 3 } else { self.months }
    }
}

/// Grows an archive and measures on the way.
pub(crate) async fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    // As both projects set up their server, but for autovacuum.
    // As docs/OPERATIONS.md has it: a quarter of the memory.
    let buffers =
        if options.memory.is_some() { "128MB".to_owned() } else { format!("{}kB", memory_kib()? / 4) };
    let cluster = Cluster::start(&format!(
        "-c shared_buffers={buffers} -c synchronous_commit=off -c work_mem=8MB -c maintenance_work_mem=256MB \
         -c random_page_cost=1.1 -c autovacuum=off -c checkpoint_timeout=10min"
    ))?;
    let confined = options.memory.map(|mib| confine::Confined::to(cluster.postmaster, mib)).transpose()?;
    let result = Box::pin(measure(&cluster, options, report)).await;
    drop(cluster);
    drop(confined);
    result
}

/// The memory of this machine, KiB.
fn memory_kib() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).context("MemTotal")?;
    Ok(total.trim().trim_end_matches(" kB").parse()?)
}

async fn measure(cluster: &Cluster, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    if options.wants(Group::Floor) {
        floor::run(cluster, options, report).await?;
    }
    if options.only.as_slice() == [Group::Floor] { Ok(()) } else { grow::run(cluster, options, report).await }
}

/// A figure of this bench, taken once.
fn figure(
    name: impl Into<String>,
    ours: f64,
    reference: f64,
    against: &'static str,
    unit: &'static str,
    goal: Goal,
) -> Figure {
    Figure { bench: "storage", name: name.into(), ours, reference, against, unit, goal, n: 1 }
}
