//! A PostgreSQL of the benchmark's own that keeps what it commits, as in service: the figures are of durable
//! jobs. It ends with its handle.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use shared::clock;
use shared::db::{Db, MigrateOptions};
use tests::pg::{Role, TestDb};

/// See the module.
pub(crate) struct Cluster {
    pub(crate) url: String,
    state: PathBuf,
    /// Its process id.
    pub(crate) postmaster: u32,
}

impl Cluster {
    /// Starts it by `tests/tools/pg.sh`, with these options of the server beside those of durability.
    pub(crate) fn start(options: &str) -> anyhow::Result<Self> {
        let state = std::env::temp_dir().join(format!("bigbrotr-bench-{}.state", clock::random_hex(6)));
        let output = script("start", &state).env("PG_DURABLE", "1").env("PG_OPTIONS", options).output()?;
        ensure!(output.status.success(), "no private PostgreSQL: tests/tools/pg.sh start failed");
        let url = String::from_utf8(output.stdout)?.trim().to_owned();
        // Made before the rest is looked at, so that it is stopped whatever follows.
        let mut cluster = Self { url, state, postmaster: 0 };
        let said = std::fs::read_to_string(&cluster.state)?;
        let home = said.lines().next().context("the state names the directory")?;
        let pid = std::fs::read_to_string(PathBuf::from(home).join("data/postmaster.pid"))?;
        cluster.postmaster = pid.lines().next().context("a postmaster has a pid")?.trim().parse()?;
        Ok(cluster)
    }

    /// A migrated database, partitioned as the leading scheduler keeps it.
    pub(crate) async fn migrated(&self) -> anyhow::Result<TestDb> {
        let db = TestDb::empty_in(&self.url).await;
        shared::queue::migrate(&db.url(Role::Superuser), &MigrateOptions::default()).await?;
        db.execute("SELECT partition_maintain(extract(epoch FROM now())::bigint)").await;
        Ok(db)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(script("stop", &self.state).status());
    }
}

fn script(verb: &str, state: &PathBuf) -> Command {
    let mut command = Command::new(tests::env::tools().join("pg.sh"));
    command.arg(verb).env("BIGBROTR_PG_STATE", state).stdin(Stdio::null()).stderr(Stdio::inherit());
    command
}

/// The database as our programs see it.
pub(crate) fn writer(db: &TestDb) -> anyhow::Result<Db> {
    Ok(Db::lazy(&db.url(Role::Writer), "bigbrotr bench", 4)?)
}

/// Statistics up to date, dead rows gone, and no checkpoint in the middle of what follows.
pub(crate) async fn settle(db: &TestDb, tables: &[&str]) {
    for table in tables {
        db.execute(&format!("VACUUM (ANALYZE) {table}")).await;
    }
    db.execute("CHECKPOINT").await;
}
