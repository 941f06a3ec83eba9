//! What it costs to have every view fresh: after one new observation in a hundred and a look at one relay in a hundred,
//! after that look alone, and after nothing.

use shared::db::VIEWS;
use sqlx::{AssertSqlSafe, Executor as _};
use tests::pg::{Role, TestDb};

use super::ours::Ours;
use super::peer::Peer;
use super::relays::look;
use super::workload::{Plan, Slice};
use crate::process::family_cpu_s;
use crate::queue::Cluster;

/// Looks after each of which the views are refreshed.
pub(super) const LOOKS: u32 = 5;

/// Processor seconds of the whole server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refreshed {
    /// Everything that was stored since the last stop.
    pub(super) first: f64,
    pub(super) changed: f64,
    /// No observation, only the look.
    pub(super) looked: f64,
    pub(super) unchanged: f64,
}

/// One observation in a hundred of three million.
pub(super) fn change(month: u32, events: u32, seed: u64) -> anyhow::Result<Slice> {
    Slice::make(Plan { seed, month, months: 1, part: (0, 1), events, single: false })
}

/// `looks`: how many there were before.
pub(super) async fn ours(
    cluster: &Cluster,
    ours: &Ours,
    change: &Slice,
    looks: u32,
) -> anyhow::Result<Refreshed> {
    let statements: Vec<&str> = VIEWS.iter().map(|(_, statement)| *statement).collect();
    let first = timed(cluster, &ours.test, &statements).await?;
    ours.feed(change).await?;
    look(&ours.test, looks).await;
    let changed = timed(cluster, &ours.test, &statements).await?;
    // A clock of ten milliseconds says little about one.
    let mut looked = 0.0;
    for again in 1..=LOOKS {
        look(&ours.test, looks + again).await;
        looked += timed(cluster, &ours.test, &statements).await? / f64::from(LOOKS);
    }
    let (mut unchanged, mut times) = (0.0, 0.0);
    while times < 5.0 && unchanged < 1.0 {
        unchanged += timed(cluster, &ours.test, &statements).await?;
        times += 1.0;
    }
    Ok(Refreshed { first, changed, looked, unchanged: unchanged / times })
}

pub(super) async fn peer(cluster: &Cluster, peer: &mut Peer, change: &Slice) -> anyhow::Result<Refreshed> {
    let statements = ["SELECT all_statistics_refresh()"];
    let first = timed(cluster, &peer.test, &statements).await?;
    peer.feed(change).await?;
    let changed = timed(cluster, &peer.test, &statements).await?;
    let unchanged = timed(cluster, &peer.test, &statements).await?;
    Ok(Refreshed { first, changed, looked: f64::NAN, unchanged })
}

async fn timed(cluster: &Cluster, test: &TestDb, statements: &[&str]) -> anyhow::Result<f64> {
    let mut connection = test.connect(Role::Superuser).await;
    let cpu = family_cpu_s(cluster.postmaster);
    for statement in statements {
        connection.execute(AssertSqlSafe((*statement).to_owned())).await?;
    }
    Ok(family_cpu_s(cluster.postmaster) - cpu)
}
