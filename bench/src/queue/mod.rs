//! `queue`: what the queue does per second and what it costs, beside apalis-postgres as shipped.
//!
//! Everything runs in worker processes against a durable server of the benchmark's own; ours is the real
//! [`shared::queue`] with jobs of nothing. Measured by the times the database wrote down, not by the clients.

mod cluster;
mod peer;
mod throughput;
mod worker;

use clap::{Args, ValueEnum};

use crate::figure::Report;
use cluster::Cluster;

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
}

impl Group {
    const ALL: [Self; 1] = [Self::Throughput];

    async fn measure(self, options: &Options, report: &mut Report) -> anyhow::Result<()> {
        match self {
            Self::Throughput => throughput::run(&Cluster::start("")?, options, report).await,
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
