//! `idle`: what an idle scheduler and worker hold in memory, beside the original's seven services.
//!
//! Ours are the release binaries against a migrated, empty database, after they have settled. The reference
//! is a lower bound of the peer: seven of its processes with everything imported and nothing running.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use shared::db::MigrateOptions;
use tests::pg::{Role, TestDb};

use crate::figure::{Figure, Goal, Report, median};
use crate::peer;
use crate::process::Process;

/// Services of the original that run continuously.
const PEER_SERVICES: usize = 7;
/// From ready to measured: connections, first ticks, first partitions.
const SETTLE: Duration = Duration::from_secs(10);
/// Budget, MiB.
const GOAL_MIB: f64 = 60.0;

/// Measures `n` times and takes medians.
pub(crate) async fn run(n: u32, report: &mut Report) -> anyhow::Result<()> {
    let binaries = std::env::current_exe()?.parent().context("a directory of binaries")?.to_path_buf();
    for name in ["scheduler", "worker"] {
        ensure!(
            binaries.join(name).exists(),
            "{name} is not built beside this program: cargo build --release"
        );
    }
    let Some(db) = TestDb::empty().await else {
        bail!("no private PostgreSQL: export BIGBROTR_TEST_PG=$(tests/tools/pg.sh start)");
    };
    shared::queue::migrate(&db.url(Role::Superuser), &MigrateOptions::default()).await?;
    let peer = peer::python()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..n {
        ours.push(our_rss(&binaries, &db).await?);
        theirs.push(peer_rss(&peer).await?);
    }
    report.add(&Figure {
        bench: "idle",
        name: "rss_mib".to_owned(),
        ours: median(&ours),
        reference: median(&theirs),
        against: "bigbrotr 6.6.9, seven processes, imported only",
        unit: "MiB",
        goal: Goal::AtMost(GOAL_MIB),
        n,
    });
    Ok(())
}

async fn our_rss(binaries: &Path, db: &TestDb) -> anyhow::Result<f64> {
    let start = |name: &str| {
        Process::start(
            &*Command::new(binaries.join(name)).arg("run").env("DATABASE_URL", db.url(Role::Writer)),
        )
    };
    let processes = [start("scheduler")?, start("worker")?];
    tokio::time::sleep(SETTLE).await;
    processes.iter().map(Process::rss_mib).sum()
}

async fn peer_rss(python: &Path) -> anyhow::Result<f64> {
    let mut processes = Vec::new();
    for _ in 0..PEER_SERVICES {
        processes.push(Process::start(
            &*Command::new(python).args(["-c", "import bigbrotr.__main__, time; time.sleep(600)"]),
        )?);
    }
    tokio::time::sleep(SETTLE).await;
    processes.iter().map(Process::rss_mib).sum()
}
