//! Backup and restore, with the commands of docs/OPERATIONS.md: what comes back is the archive, and true.

use std::path::{Path, PathBuf};
use std::process::Command;

use shared::db::{Db, MigrateOptions};
use shared::queue;
use tests::factory::Factory;
use tests::pg::Cluster;

use super::fleet::binary;
use super::retention::archive;

/// Tables whose rows a dump of the small ones leaves out, as the document lists them.
const LARGE: [&str; 20] = [
    "public.event",
    "public.event_default",
    "public.event_2*",
    "public.event_relay*",
    "public.event_unmined",
    "public.event_collision",
    "public.event_quarantine",
    "public.event_gone",
    "public.coverage",
    "public.relay_check",
    "public.relay_check_default",
    "public.relay_check_2*",
    "public.relay_uptime",
    "public.relay_uptime_default",
    "public.relay_uptime_2*",
    "public.job_history*",
    "public.queue_sample",
    "public.rollup*",
    "apalis.jobs",
    "apalis.workers",
];

fn ran(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

fn psql(url: &str, sql: &str) -> String {
    ran(Command::new("psql").args(["-qAtX", "-v", "ON_ERROR_STOP=1", url, "-c", sql])).trim().to_owned()
}

/// A folder that a server of another user may enter, and that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("bigbrotr-backup-{}", shared::clock::random_hex(6)));
        std::fs::create_dir(&path).unwrap();
        ran(Command::new("chmod").arg("777").arg(&path));
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// A restored server; it is stopped when dropped.
struct Restored<'a>(&'a str);

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        Command::new(script()).args(["stop", self.0]).status().ok();
    }
}

fn script() -> PathBuf {
    tests::env::tools().join("restore.sh")
}

fn on(url: &str, database: &str) -> String {
    format!("{}/{database}", url.rsplit_once('/').unwrap().0)
}

/// Waits until the server answers so.
async fn until(url: &str, sql: &str, wanted: &str) {
    for _ in 0..100 {
        if psql(url, sql) == wanted {
            return;
        }
        // bound: 100 × 100 ms
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{sql}: {}", psql(url, "SELECT a FROM pg_stat_archiver a"));
}

/// What the doctor says of a database, well or not.
fn doctor(url: &str) -> String {
    let output = Command::new(binary("bigbrotr")).args(["doctor", "--database-url", url]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn verified(url: &str) {
    let said = ran(Command::new(binary("bigbrotr")).args(["verify", "--all", "--database-url", url]));
    assert!(said.contains("no fault"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_backup_with_its_wal_and_a_dump_of_the_small_tables_come_back_and_are_true() {
    if tests::env::var(tests::env::TEST_PG).is_none() {
        tests::skip("a private PostgreSQL (run ./test, or tests/tools/pg.sh start)");
        return;
    }
    let folder = Folder::new();
    let (wal, base, dump) = (folder.path("wal"), folder.path("base"), folder.path("small.dump"));
    std::fs::create_dir(&wal).unwrap();
    ran(Command::new("chmod").args(["777", &wal]));
    let cluster = Cluster::start(
        None,
        &[("PG_DURABLE", "1"), ("PG_OPTIONS", "-c archive_mode=on -c wal_level=replica -c fsync=off")],
    );
    psql(&cluster.url, "ALTER SYSTEM SET archive_command = 'false'");
    psql(&cluster.url, "SELECT pg_reload_conf()");
    psql(&cluster.url, "CREATE DATABASE bigbrotr");
    let url = on(&cluster.url, "bigbrotr");
    queue::migrate(&url, &MigrateOptions::default()).await.unwrap();
    // What cannot be archived is said by the doctor, to whoever may read; then it can be.
    psql(&cluster.url, "SELECT pg_switch_wal()");
    until(&cluster.url, "SELECT failed_count > 0 FROM pg_stat_archiver", "t").await;
    let reader = url.replace("://postgres@", "://bigbrotr_reader@");
    assert!(
        doctor(&reader)
            .lines()
            .any(|line| line.starts_with("problem") && line.contains("cannot be archived"))
    );
    let program = folder.path("archive.sh");
    std::fs::copy(tests::env::tools().join("../../deploy/postgres/archive.sh"), &program).unwrap();
    psql(&cluster.url, &format!("ALTER SYSTEM SET archive_command = '{program} %p %f {wal}'"));
    psql(&cluster.url, "SELECT pg_reload_conf()");
    until(&cluster.url, "SELECT last_archived_time > last_failed_time FROM pg_stat_archiver", "t").await;
    assert!(
        doctor(&reader)
            .lines()
            .any(|line| line.starts_with("ok") && line.contains("finished WAL is archived"))
    );
    let db = Db::lazy(&url, "test", 2).unwrap();
    let events = Factory::new(81).events(300);
    archive(&db, "wss://one.example", &events[..100]).await;
    psql(&url, "INSERT INTO coverage VALUES (1, 'all', 0, 2000000000, 'walked', 'none', 5)");
    // A base backup, then what the WAL alone has, then what came too late.
    ran(Command::new("pg_basebackup").args([
        "-d",
        &cluster.url,
        "-D",
        &base,
        "-c",
        "fast",
        "-X",
        "none",
        "--no-sync",
    ]));
    archive(&db, "wss://two.example", &events[50..200]).await;
    psql(&url, "SELECT pg_create_restore_point('before_the_loss')");
    archive(&db, "wss://two.example", &events[200..]).await;
    psql(
        &url,
        "INSERT INTO event_gone (relay_id, event_key, gone_at) SELECT 1, min(event_key), 5 FROM event",
    );
    let mut command = Command::new("pg_dump");
    command.args(["-Fc", "-f", &dump, &url]);
    command.args(LARGE.map(|table| format!("--exclude-table-data={table}")));
    ran(&mut command);
    psql(&url, "SELECT pg_switch_wal()");
    let archived = "SELECT count(*) FROM pg_stat_archiver WHERE last_archived_wal >= pg_walfile_name(pg_current_wal_lsn() - 1)";
    until(&cluster.url, archived, "1").await;
    db.close().await;
    drop(cluster);

    let mut command = Command::new(script());
    command.args(["start", &base, &wal, "before_the_loss"]).env("PG_OPTIONS", "-c fsync=off");
    let restored = ran(&mut command);
    let _server = Restored(&base);
    let restored = restored.trim();
    let url = on(restored, "bigbrotr");
    assert_eq!(
        psql(&url, "SELECT count(*) || ' ' || (SELECT count(*) FROM event_relay) FROM event"),
        "200 250"
    );
    verified(&url);
    let above = "SELECT setval(pg_get_serial_sequence('relay_alert', 'id'), coalesce(max(id), 0) + 1000000) FROM relay_alert";
    assert_eq!(psql(&url, above), "1000000", "numbers of alerts go on where nobody has seen them");

    // The small tables, into an empty database.
    psql(restored, "CREATE DATABASE small");
    let small = on(restored, "small");
    ran(Command::new("pg_restore").args(["--exit-on-error", "-d", &small, &dump]));
    queue::migrate(&small, &MigrateOptions::default()).await.unwrap();
    let rows = "SELECT (SELECT count(*) FROM relay) || ' ' || (SELECT count(*) FROM event) || ' ' || (SELECT count(*) FROM coverage)";
    assert_eq!(psql(&small, rows), "2 0 0", "relays, no event, and no claim to have any");
    verified(&small);
    psql(&small, "SELECT all_statistics_refresh()");
    let document = std::fs::read_to_string(tests::env::tools().join("../../docs/OPERATIONS.md")).unwrap();
    assert!(LARGE.iter().all(|table| document.contains(&format!("'{table}'"))), "the document lists them");
    assert!(document.contains(&format!("{above};")));
    assert!(Path::new(&dump).metadata().unwrap().len() < 2_000_000);
}
