//! Candidates for the indexes of `event` on the grown archive: what each takes, costs and gives.

use super::Options;
use super::ours::Ours;
use crate::figure::Report;
use crate::queue::Cluster;

pub(super) async fn run(_: &Cluster, _: &Ours, _: &Options, _: u32, _: &mut Report) -> anyhow::Result<()> {
    Ok(())
}
