//! `validate`, `monitor` and `mine`: a worker of ours against two thousand relays, beside the original's own probes.
//!
//! Ours is everything: release binaries, a durable PostgreSQL, the queue, politeness, results stored. The
//! reference is less than the peer: its probes in its own loop, without database, queue and publishing.

mod mine;
mod mock;
mod monitor;
mod peer;
mod scene;
mod validate;

use clap::Args;

use crate::figure::Report;

pub(crate) use mock::{Arguments as MockArguments, Opened, open, run as mock};

/// How to measure.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Repetitions; figures are medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub(crate) n: u32,
    /// Relays of the mock fleet.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u16).range(100..=4_000))]
    pub(crate) relays: u16,
    /// Leaves the peer out: then the figures have no reference, and the run does not count.
    #[arg(long)]
    pub(crate) no_peer: bool,
}

/// Candidates become relays.
pub(crate) async fn validate(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    validate::run(options, report).await
}

/// Archived events are looked through for relays.
pub(crate) async fn mining(n: u32, report: &mut Report) -> anyhow::Result<()> {
    mine::run(n, report).await
}

/// Relays are checked.
pub(crate) async fn monitor(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    monitor::run(options, report).await
}
