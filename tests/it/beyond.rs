//! Past one machine, as docs/OPERATIONS.md describes it: readers on a standby, months on other disks, a server on which
//! nobody is a superuser, workers on other hosts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use shared::db::{Db, MigrateOptions};
use shared::queue;
use tests::factory::Factory;
use tests::pg::{Cluster, Role, TestDb};

use super::fleet::binary;
use super::retention::archive;
use super::support::{handle, pairs, ran, succeeded, value};

/// A folder that a server of another user may enter, and that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("bigbrotr-beyond-{}", shared::clock::random_hex(6)));
        std::fs::create_dir(&path).unwrap();
        let folder = Self(path);
        succeeded(Command::new("chmod").arg("777").arg(&folder.0));
        folder
    }

    /// A folder of the server's own in it.
    fn of_the_server(&self, name: &str) -> String {
        let path = self.0.join(name);
        std::fs::create_dir(&path).unwrap();
        // As root the server is another user, who must own the folder.
        ran(Command::new("chown").arg("postgres").arg(&path));
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// A standby; it is stopped when dropped.
struct Standby(String);

impl Drop for Standby {
    fn drop(&mut self) {
        Command::new(tests::env::tools().join("restore.sh")).args(["stop", &self.0]).status().ok();
    }
}

fn is_there() -> bool {
    let there = tests::env::var(tests::env::TEST_PG).is_some();
    if !there {
        tests::skip("a private PostgreSQL (run ./test, or tests/tools/pg.sh start)");
    }
    there
}

fn bigbrotr(url: &str, arguments: &[&str]) -> (bool, String) {
    ran(Command::new(binary("bigbrotr")).args(["--database-url", url]).args(arguments))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_answers_whoever_reads_and_says_so_to_whoever_writes() {
    if !is_there() {
        return;
    }
    let folder = Folder::new();
    let options = "-c wal_level=replica -c max_wal_senders=4 -c fsync=off";
    let cluster = Cluster::start(None, &[("PG_DURABLE", "1"), ("PG_OPTIONS", options)]);
    let test = TestDb::empty_in(&cluster.url).await;
    queue::migrate(&test.url(Role::Superuser), &MigrateOptions::default()).await.unwrap();
    let db = handle(&test, Role::Writer);
    let (first, later) = (Factory::new(95).events(100), Factory::new(96).events(50));
    let admin = handle(&test, Role::Superuser);
    archive(&admin, "wss://one.example", &first).await;
    let base = folder.0.join("standby").display().to_string();
    succeeded(Command::new("pg_basebackup").args([
        "-d",
        &cluster.url,
        "-D",
        &base,
        "-R",
        "-X",
        "stream",
        "-c",
        "fast",
        "--no-sync",
    ]));
    let url = succeeded(
        Command::new(tests::env::tools().join("restore.sh"))
            .args(["standby", &base])
            .env("PG_OPTIONS", "-c fsync=off"),
    );
    let standby = Standby(base);
    // What comes to the first server afterwards comes to the second.
    archive(&admin, "wss://two.example", &later).await;
    test.execute("SELECT all_statistics_refresh()").await;
    let (server, _) = url.trim().rsplit_once('/').unwrap();
    let there = format!("{server}/{}", test.name);
    let reader = there.replacen("postgres@", "bigbrotr_reader@", 1);
    let copy = Db::lazy(&reader, "test", 2).unwrap();
    for _ in 0..100 {
        if copy.archive_count().await.unwrap().0 == 150 {
            break;
        }
        // bound: 100 × 100 ms
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let out = folder.0.join("export").display().to_string();
    let one = first[0].id.to_hex();
    for (arguments, wanted) in [
        (&["relay", "list"][..], "wss://two.example"),
        (&["relay", "show", "wss://one.example"], "clearnet"),
        (&["relay", "coverage", "wss://one.example"], "nothing has been asked"),
        (&["relay", "uptime", "wss://one.example"], "30 days"),
        (&["relay", "excluded"], "nobody"),
        (&["event", &one], "wss://one.example"),
        (&["candidate", "list"], ""),
        (&["alerts"], "AT"),
        (&["publish", "status"], "nothing is published"),
        (&["queue", "list", "--jobs", "5"], ""),
        (&["queue", "audit"], "no operator"),
        (&["top", "--once"], "no scheduler leads"),
        (&["autoscale"], "1"),
        (&["verify", "--all"], "no fault"),
        (&["retention", "plan"], "everything is kept"),
        (&["archive", "status"], "bodies"),
        (&["archive", "lighten", "--dry-run"], "150 events"),
        (&["export", "--out", &out], "150 events, 150 observations"),
    ] {
        let (ok, said) = bigbrotr(&reader, arguments);
        assert!(ok && said.contains(wanted), "{arguments:?}: {said}");
    }
    // Both of these find problems, which nobody works on here, and go through to the end.
    for arguments in [&["doctor", "--verify"][..], &["why", "wss://one.example"]] {
        let (_, said) = bigbrotr(&reader, arguments);
        assert!(!said.contains("read-only") && !said.contains("recovery"), "{arguments:?}: {said}");
    }
    for view in pairs(&test, "SELECT relname::text, '' FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('v', 'm')").await.into_keys() {
        succeeded(Command::new("psql").args(["-qAtX", "-v", "ON_ERROR_STOP=1", &reader, "-c", &format!("SELECT count(*) FROM {view}")]));
    }
    let (ok, said) =
        bigbrotr(&there.replacen("postgres@", "bigbrotr_admin@", 1), &["queue", "pause", "*.tor"]);
    assert!(!ok && said.contains("read-only") && said.contains("a standby only reads"), "{said}");
    // Nothing is in the export of a standby that could still be added to on its way: it is as of the last word it has.
    let as_of = copy.export_as_of().await.unwrap();
    let heard: i64 = succeeded(Command::new("psql").args([
        "-qAtX",
        &reader,
        "-c",
        "SELECT floor(extract(epoch FROM pg_last_xact_replay_timestamp()))::bigint",
    ]))
    .trim()
    .parse()
    .unwrap();
    assert!(as_of <= heard, "{as_of}, heard until {heard}");
    copy.close().await;
    db.close().await;
    admin.close().await;
    // A failover.
    succeeded(Command::new("psql").args([
        "-qAtX",
        "-v",
        "ON_ERROR_STOP=1",
        &there,
        "-c",
        "SELECT pg_promote()",
    ]));
    let writer = there.replacen("postgres@", "bigbrotr_writer@", 1);
    for (url, arguments) in [(&writer, &["seed"][..]), (&reader, &["verify", "--all"])] {
        let (ok, said) = bigbrotr(url, arguments);
        assert!(ok, "{arguments:?}: {said}");
    }
    drop(standby);
}

/// Tables and indexes of event partitions by their tablespace.
const PLACES: &str = "SELECT c.relname::text, coalesce(t.spcname::text, 'default') FROM pg_class c
    LEFT JOIN pg_tablespace t ON t.oid = c.reltablespace
    WHERE c.relname ~ '^event_(relay_)?2' AND c.relkind IN ('r', 'i')";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_months_are_made_on_the_disk_that_is_named_and_old_ones_move() {
    if !is_there() {
        return;
    }
    let folder = Folder::new();
    let (fast, cold) = (folder.of_the_server("fast"), folder.of_the_server("cold"));
    let cluster = Cluster::start(None, &[]);
    let test = TestDb::empty_in(&cluster.url).await;
    queue::migrate(&test.url(Role::Superuser), &MigrateOptions::default()).await.unwrap();
    let db = handle(&test, Role::Writer);
    let events = Factory::new(97).over(40 * 86_400).events(200);
    archive(&handle(&test, Role::Superuser), "wss://one.example", &events).await;
    for (name, path) in [("fast", &fast), ("cold", &cold)] {
        test.execute(&format!("CREATE TABLESPACE {name} LOCATION '{path}'")).await;
    }
    let before = pairs(&test, PLACES).await;
    assert!(before.values().all(|place| place == "default"));
    test.execute(&format!("ALTER DATABASE \"{}\" SET default_tablespace = fast", test.name)).await;
    // A new connection: as the scheduler's next one.
    let again = handle(&test, Role::Writer);
    let since = shared::clock::unix_now() - 400 * 86_400;
    let refused = again.partition_maintain(since).await.unwrap_err().to_string();
    assert!(refused.contains("permission denied for tablespace fast"), "{refused}");
    test.execute("GRANT CREATE ON TABLESPACE fast TO bigbrotr_admin").await;
    // What was refused a moment ago may not have given up its turn yet.
    while again.partition_maintain(since).await.unwrap() == 0 {}
    let places = pairs(&test, PLACES).await;
    let new: Vec<_> = places.iter().filter(|(name, _)| !before.contains_key(*name)).collect();
    assert!(new.len() > 20 && new.iter().all(|(_, place)| *place == "fast"), "{new:?}");
    // What is in the way is moved by hand, a month with its indexes.
    let month = "SELECT right(min(c.relname), 6) FROM pg_class c WHERE c.relname ~ '^event_2' AND c.relkind = 'r' AND c.reltablespace = 0";
    let month = value(&test, month).await;
    for table in [format!("event_{month}"), format!("event_relay_{month}")] {
        test.execute(&format!("ALTER TABLE {table} SET TABLESPACE cold")).await;
        let indexes = pairs(
            &test,
            "SELECT indexname::text, tablename::text FROM pg_indexes WHERE schemaname = 'public'",
        )
        .await;
        for (index, _) in indexes.iter().filter(|(_, of)| **of == table) {
            test.execute(&format!("ALTER INDEX {index} SET TABLESPACE cold")).await;
        }
    }
    let places = pairs(&test, PLACES).await;
    let moved: Vec<_> = places.iter().filter(|(name, _)| name.contains(&month)).collect();
    assert!(moved.len() >= 6 && moved.iter().all(|(_, place)| *place == "cold"), "{moved:?}");
    // All of it is there, it is written to, and it is right.
    archive(&handle(&test, Role::Superuser), "wss://two.example", &events).await;
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_relay").await, "400");
    let (ok, said) = bigbrotr(&test.url(Role::Reader), &["verify", "--all"]);
    assert!(ok, "{said}");
    db.close().await;
    again.close().await;
}

#[test]
fn whoever_owns_the_database_and_may_make_roles_migrates_it_and_need_be_no_superuser() {
    if !is_there() {
        return;
    }
    let Some(eighteen) = Cluster::eighteen() else { return };
    for bin in [None, Some(eighteen.as_path())] {
        let cluster = Cluster::start(bin, &[("PG_PASSWORD", "super")]);
        let sql = "CREATE ROLE landlord LOGIN CREATEROLE PASSWORD 'own'; ";
        succeeded(Command::new("psql").args([
            "-qX",
            "-v",
            "ON_ERROR_STOP=1",
            &cluster.url,
            "-c",
            sql,
            "-c",
            "CREATE DATABASE let OWNER landlord",
        ]));
        let url = let_out(&cluster.url, "landlord:own");
        // Again, as at every upgrade.
        for _ in 0..2 {
            let (ok, said) = ran(Command::new(binary("bigbrotr"))
                .args(["migrate", "--database-url", &url])
                .envs([("BIGBROTR_WRITER_PASSWORD", "w"), ("BIGBROTR_READER_PASSWORD", "r")]));
            assert!(ok, "{bin:?}: {said}");
        }
        let (ok, said) = ran(Command::new(binary("bigbrotr")).args([
            "--database-url",
            &let_out(&cluster.url, "bigbrotr_writer:w"),
            "seed",
        ]));
        assert!(ok, "{bin:?}: {said}");
        let (_, said) = bigbrotr(&let_out(&cluster.url, "bigbrotr_reader:r"), &["doctor"]);
        assert!(said.contains("as this program's"), "{bin:?}: {said}");
    }
}

/// The database `let` of the cluster behind a superuser's URL, as somebody else.
fn let_out(cluster: &str, who: &str) -> String {
    let (_, server) = cluster.rsplit_once('@').unwrap();
    format!("postgres://{who}@{}/let", server.split('/').next().unwrap())
}

#[test]
fn workers_on_other_hosts_reach_the_database_over_tls_and_refuse_a_server_they_do_not_know() {
    if !is_there() {
        return;
    }
    let script = tests::env::tools().join("hosts.sh");
    let possible =
        ran(Command::new("unshare").args(["-nm", "true"])).0 && Path::new("/usr/bin/openssl").exists();
    let Some(()) = tests::require(possible.then_some(()), "namespaces (root) and openssl") else { return };
    let folder = Folder::new();
    let said = succeeded(
        Command::new("unshare")
            .args(["-nm", "--"])
            .arg(script)
            .arg(&folder.0)
            .arg(binary("worker").parent().unwrap()),
    );
    assert!(said.contains("two hosts hold leases"), "{said}");
}
