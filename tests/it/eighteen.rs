//! What is stored, counted, taken away and migrated once more, on PostgreSQL 18: what compose will pin.

use std::process::Command;

use tests::pg::Cluster;

/// Modules whose tests run again there.
const AGAIN: [&str; 14] = [
    "schema::",
    "archive::",
    "keep::",
    "orphans::",
    "retention::",
    "expiry::",
    "kept::",
    "latest::",
    "page::",
    "reconcile::",
    "rollup::",
    "storm::",
    "upgrade46::",
    "beside::",
];

#[test]
fn the_schema_the_archive_and_retention_are_the_same_on_postgresql_18() {
    if tests::env::var(tests::env::TEST_PG).is_none() {
        tests::skip("a private PostgreSQL (run ./test, or tests/tools/pg.sh start)");
        return;
    }
    let Some(bin) = Cluster::eighteen() else { return };
    let cluster = Cluster::start(Some(&bin), &[]);
    let output = Command::new(std::env::current_exe().unwrap())
        .args(AGAIN)
        .args(["--test-threads", "4"])
        .env(tests::env::TEST_PG, &cluster.url)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let passed = said.lines().find_map(|line| line.strip_prefix("test result: ok. ")?.split(' ').next());
    assert!(passed.and_then(|n| n.parse::<u32>().ok()) > Some(60), "{said}");
}
