//! The original: its package in a virtual environment, and its schema in a database of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::ensure;
use tests::pg::{Role, TestDb};

use crate::queue::Cluster;

/// One of `bench/tools`.
pub(crate) fn tool(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools").join(name)
}

/// The python that has it installed.
pub(crate) fn python() -> anyhow::Result<PathBuf> {
    let said = Command::new(tool("peer.sh")).stderr(Stdio::inherit()).output()?;
    ensure!(said.status.success(), "the peer could not be installed (bench/tools/peer.sh)");
    Ok(PathBuf::from(String::from_utf8(said.stdout)?.trim()))
}

/// A database with its schema.
pub(crate) async fn schema(cluster: &Cluster) -> anyhow::Result<TestDb> {
    let said = Command::new(tool("peer_sql.sh")).stderr(Stdio::inherit()).output()?;
    ensure!(said.status.success(), "the peer's schema is missing (bench/tools/peer_sql.sh)");
    let mut files: Vec<PathBuf> = std::fs::read_dir(String::from_utf8(said.stdout)?.trim())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension().is_some_and(|extension| extension == "sql") && !path.ends_with("99_verify.sql")
        })
        .collect();
    files.sort();
    let test = TestDb::empty_in(&cluster.url).await;
    // As it configures its server; and no compilation, which would cost it.
    test.execute(&format!(
        "ALTER DATABASE \"{0}\" SET enable_partitionwise_join = on; ALTER DATABASE \"{0}\" SET enable_partitionwise_aggregate = on;
         ALTER DATABASE \"{0}\" SET jit = off",
        test.name
    ))
    .await;
    let mut connection = test.connect(Role::Superuser).await;
    let lz4: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals))",
    )
    .fetch_one(&mut connection)
    .await?;
    for file in files {
        let mut sql = std::fs::read_to_string(file)?;
        // A server built without it compresses what is long in its other way.
        if !lz4 {
            sql = sql.replace("SET COMPRESSION lz4", "SET COMPRESSION pglz");
        }
        test.execute(&sql).await;
    }
    Ok(test)
}
