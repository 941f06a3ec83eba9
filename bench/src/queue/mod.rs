//! `queue`: what the queue does per second and what it costs, beside apalis-postgres as shipped.
//!
//! Everything runs in worker processes against a durable server of the benchmark's own; ours is the real
//! [`shared::queue`] with jobs of nothing. Measured by the times the database wrote down, not by the clients.

pub(crate) mod cluster;
mod enqueue;
mod fleet;
mod held;
mod jobs;
mod loaded;
mod peer;
mod seed;
mod throughput;
mod worker;

use clap::{Args, ValueEnum};

use crate::figure::Report;
pub(crate) use cluster::{Cluster, writer};
pub(crate) use worker::{Arguments as WorkerArguments, run as work};

/// How to measure.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Repetitions; figures are medians.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub(crate) n: u32,
    /// A tenth of the rows and shorter runs: a look, not the figures.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Only these groups of figures.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Group>,
}

/// Figures that are taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    /// Jobs per second, whole and split over processes, and their processor time.
    Throughput,
    /// Jobs enqueued per second.
    Enqueue,
    /// Claims and views with many jobs ahead and much history.
    Loaded,
    /// A fleet with nothing to do, and how soon it wakes up.
    Fleet,
    /// A snapshot held open for long.
    Held,
}

impl Group {
    const ALL: [Self; 5] = [Self::Throughput, Self::Enqueue, Self::Loaded, Self::Fleet, Self::Held];

    async fn measure(self, options: &Options, report: &mut Report) -> anyhow::Result<()> {
        let cluster = Cluster::start(if self == Self::Fleet { fleet::COUNTING } else { "" })?;
        match self {
            Self::Throughput => throughput::run(&cluster, options, report).await,
            Self::Enqueue => enqueue::run(&cluster, options, report).await,
            Self::Loaded => loaded::run(&cluster, options, report).await,
            Self::Fleet => fleet::run(&cluster, options, report).await,
            Self::Held => held::run(&cluster, options, report).await,
        }
    }
}

/// Every group; one that fails is reported, and the others go on.
pub(crate) async fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    for group in Group::ALL {
        if (options.only.is_empty() || options.only.contains(&group))
            && let Err(error) = Box::pin(group.measure(options, report)).await
        {
            report.missing(&format!("of queue: {group:?}"), &error);
        }
    }
    Ok(())
}
