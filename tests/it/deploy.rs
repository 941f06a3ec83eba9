//! What is deployed without compose: systemd units and Kubernetes manifests are valid, confined, and hand the programs
//! what they understand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::pg::Cluster;

use super::fleet::binary;
use super::support::{ran, succeeded};

/// Exposure that `systemd-analyze security` may find at most, in tenths: 10 is the worst of 100.
const EXPOSURE: &str = "15";
/// Seconds a stopping worker may take by default (`worker.grace_s`).
const GRACE_S: u64 = 20;

fn deploy() -> PathBuf {
    tests::env::tools().join("../../deploy").canonicalize().unwrap()
}

/// A folder of a test's own.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    fn below(parent: &Path) -> Self {
        let path = parent.join(format!("bigbrotr-deploy-{}", shared::clock::random_hex(6)));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn made(&self, path: &str) -> PathBuf {
        let path = self.0.join(path);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    fn written(&self, path: &str, text: &str) -> String {
        let path = self.0.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::fs::remove_dir_all(&self.0).ok();
        }
    }
}

/// The values of a key of a unit.
fn values<'a>(unit: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    unit.lines().filter_map(move |line| line.strip_prefix(key)?.strip_prefix('='))
}

/// The configuration that a program has when it is started with nothing but these variables.
fn in_force(program: &str, variables: &BTreeMap<String, String>) -> String {
    succeeded(Command::new(binary(program)).args(["run", "--print-config"]).env_clear().envs(variables))
}

fn units() -> Vec<(String, String)> {
    let files = std::fs::read_dir(deploy().join("systemd")).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.extension().is_none_or(|end| end != "sh"))
        .map(|path| {
            (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read_to_string(path).unwrap())
        })
        .collect()
}

#[test]
fn the_units_are_valid_and_confined() {
    let there = ran(Command::new("sh").args(["-c", "command -v systemd-analyze"])).0.then_some(());
    let Some(()) = tests::require(there, "systemd-analyze (tests/tools/setup.sh)") else { return };
    let root = Folder::new();
    let system = root.made("usr/lib/systemd/system");
    // What ours refer to: targets of the system.
    succeeded(Command::new("cp").args(["-a", "/lib/systemd/system/.", &system.display().to_string()]));
    let mut names = Vec::new();
    for (name, text) in units() {
        root.written(&format!("etc/systemd/system/{name}"), &text);
        for program in values(&text, "ExecStart") {
            let path =
                root.written(program.split(' ').next().unwrap().trim_start_matches('/'), "#!/bin/sh\n");
            succeeded(Command::new("chmod").args(["755", &path]));
        }
        names.push(name.replace('@', "@01"));
    }
    let said = succeeded(
        Command::new("systemd-analyze")
            .args(["--recursive-errors=one", "--root"])
            .arg(&root.0)
            .arg("verify")
            .args(&names),
    );
    assert_eq!(said, "", "a warning is a fault");
    for (name, _) in units().into_iter().filter(|(name, _)| name.ends_with(".service")) {
        let unit = deploy().join("systemd").join(name);
        let threshold = format!("--threshold={EXPOSURE}");
        succeeded(
            Command::new("systemd-analyze")
                .args(["security", "--offline=yes", "--no-pager", &threshold])
                .arg(unit),
        );
    }
}

#[test]
fn the_units_hand_the_programs_what_they_understand() {
    let folder = Folder::new();
    let config =
        folder.written("bigbrotr.toml", "[database]\nurl = \"postgres://bigbrotr_writer@db/bigbrotr\"\n");
    let mut seen = 0;
    for (name, text) in units().into_iter().filter(|(name, _)| name.ends_with(".service")) {
        let mut variables: BTreeMap<String, String> = BTreeMap::new();
        for credential in values(&text, "LoadCredential") {
            let (id, path) = credential.split_once(':').unwrap();
            assert_eq!(path, format!("/etc/bigbrotr/credentials/{id}"), "{name}");
            let secret =
                if id.ends_with("-url") { "postgres://owner:secret@db/bigbrotr\n" } else { "secret\n" };
            folder.written(id, secret);
        }
        for variable in values(&text, "Environment") {
            let (variable, value) = variable.split_once('=').unwrap();
            let value = value
                .replace("%d", &folder.0.display().to_string())
                .replace("%i", "07")
                .replace("/etc/bigbrotr/bigbrotr.toml", &config);
            if variable.ends_with("_FILE") {
                assert!(Path::new(&value).exists(), "{name}: {variable} names no credential of the unit");
            }
            variables.insert(variable.to_owned(), value);
        }
        let stop = values(&text, "TimeoutStopSec").next().map_or(0, |seconds| seconds.parse().unwrap());
        match values(&text, "ExecStart").next().unwrap() {
            "/usr/local/bin/scheduler run" => {
                assert!(in_force("scheduler", &variables).contains("127.0.0.1:9100"));
            }
            "/usr/local/bin/worker run" => {
                assert!(stop > GRACE_S, "{name} is killed before its grace is over");
                assert!(in_force("worker", &variables).contains("127.0.0.1:9107"));
            }
            // Nobody listens there: that it got as far as dialling shows that it had understood the rest.
            "/usr/local/bin/bigbrotr migrate" => {
                folder.written("migrate-url", "postgres://owner:secret@127.0.0.1:1/bigbrotr\n");
                let (ok, said) =
                    ran(Command::new(binary("bigbrotr")).arg("migrate").env_clear().envs(&variables));
                assert!(!ok && said.contains("not reachable") && !said.contains("ignored"), "{said}");
            }
            "/usr/local/lib/bigbrotr/backup.sh" => {}
            other => panic!("{name} starts {other}"),
        }
        seen += 1;
    }
    assert_eq!(seen, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_script_for_backups_makes_ones_that_start_and_keeps_the_last_two() {
    if tests::env::var(tests::env::TEST_PG).is_none() {
        tests::skip("a private PostgreSQL (run ./test, or tests/tools/pg.sh start)");
        return;
    }
    let folder = Folder::new();
    let options = "-c wal_level=replica -c max_wal_senders=4 -c fsync=off";
    let cluster =
        Cluster::start(None, &[("PG_PASSWORD", "super"), ("PG_DURABLE", "1"), ("PG_OPTIONS", options)]);
    let psql = |url: &str, sql: &str| {
        succeeded(Command::new("psql").args(["-qAtX", "-v", "ON_ERROR_STOP=1", url, "-c", sql]))
    };
    psql(&cluster.url, "CREATE ROLE bigbrotr_backup LOGIN REPLICATION PASSWORD 'kept apart'");
    let (_, server) = cluster.url.rsplit_once('@').unwrap();
    let password = folder.written("password", "kept apart\n");
    let mut script = Command::new(deploy().join("systemd/backup.sh"));
    script.arg(folder.made("backups")).envs([
        ("BACKUP_URL", format!("postgres://bigbrotr_backup@{server}")),
        ("BACKUP_PASSWORD_FILE", password),
    ]);
    let made = |said: &str| said.trim().strip_prefix("backup: ").unwrap().to_owned();
    let mut all = Vec::new();
    for round in 0..3 {
        psql(&cluster.url, &format!("CREATE TABLE round_{round} ()"));
        all.push(made(&succeeded(&mut script)));
        // bound: names are by the second
        tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    }
    assert!(!Path::new(&all[0]).exists() && Path::new(&all[1]).exists());
    folder.written("password", "wrong");
    let (ok, said) = ran(&mut script);
    assert!(!ok && said.contains("older backups are untouched"), "{said}");
    let open = |verb: &str| {
        Command::new(tests::env::tools().join("restore.sh")).args([verb, &all[1]]).output().unwrap()
    };
    let output = open("open");
    let url = String::from_utf8_lossy(&output.stdout).trim().replacen("postgres@", "postgres:super@", 1);
    let tables = ran(Command::new("psql").args([
        "-qAtX",
        &url,
        "-c",
        "SELECT string_agg(relname, ' ' ORDER BY 1) FROM pg_class WHERE relname ~ '^round_'",
    ]));
    open("stop");
    assert_eq!(tables, (true, "round_0 round_1\n".to_owned()));
}

#[test]
fn the_manifests_are_valid_and_hand_the_programs_what_they_understand() {
    let home =
        tests::env::testbed().map(|dir| dir.join("kubernetes")).filter(|dir| dir.join("installed").exists());
    let Some(home) = tests::require(home, "the schemas of Kubernetes (tests/tools/setup.sh)") else { return };
    let out = Folder::new();
    let said = succeeded(
        Command::new(home.join("bin/python"))
            .arg(tests::env::tools().join("manifests.py"))
            .arg(deploy().join("kubernetes"))
            .arg(&out.0),
    );
    assert!(said.starts_with("17 resources, 0 faults"), "{said}");
    let (config, secrets) = (out.0.join("bigbrotr.toml"), out.made("secrets"));
    out.written("secrets/password", "secret\n");
    for program in ["scheduler", "worker"] {
        let text = std::fs::read_to_string(out.0.join(format!("{program}.env"))).unwrap();
        let variables = text
            .lines()
            .map(|line| {
                let (name, value) = line.split_once('=').unwrap();
                let value = value
                    .replace("/etc/bigbrotr/bigbrotr.toml", &config.display().to_string())
                    .replace("/run/secrets/bigbrotr", &secrets.display().to_string());
                (name.to_owned(), value)
            })
            .collect();
        let said = in_force(program, &variables);
        assert!(said.contains("0.0.0.0:9100") && said.contains("pgbouncer.database:6432"), "{said}");
    }
    // Nothing would be done without a relay: whoever installs it names some, from where the database is reached.
    let document = std::fs::read_to_string(deploy().join("../docs/OPERATIONS.md")).unwrap();
    let (pod, command) = document
        .lines()
        .find_map(|line| line.strip_prefix("kubectl exec -n bigbrotr deploy/")?.split_once(" -- "))
        .unwrap();
    let scheduler = std::fs::read_to_string(deploy().join("kubernetes/scheduler.yaml")).unwrap();
    assert!(scheduler.contains(&format!("kind: Deployment\nmetadata:\n  name: {pod}\n")), "{pod}");
    assert!(command.starts_with("bigbrotr seed "), "{command}");
}

#[test]
fn a_manifest_with_a_mistake_is_a_fault() {
    let home =
        tests::env::testbed().map(|dir| dir.join("kubernetes")).filter(|dir| dir.join("installed").exists());
    let Some(home) = tests::require(home, "the schemas of Kubernetes (tests/tools/setup.sh)") else { return };
    for (file, from, to, fault) in [
        ("worker.yaml", "automountServiceAccountToken", "automountServiceAccountTokens", "was unexpected"),
        ("worker.yaml", "Seconds: 45", "Seconds: 15", "before its grace"),
        (
            "worker.yaml",
            "enableServiceLinks: false",
            "enableServiceLinks: true",
            "a variable for each Service",
        ),
        ("migrate.yaml", "  labels: {app: bigbrotr-migrate}\nspec", "spec", "cannot be applied by its label"),
        ("scheduler.yaml", "bigbrotr-writer", "bigbrotr-reader", "names no file that is mounted"),
        ("network.yaml", "app: bigbrotr-worker}", "app: worker}", "selects no pod"),
        ("worker-scaledobject.yaml", "minReplicaCount", "minReplicas", "KEDA knows no"),
    ] {
        let (folder, out) = (Folder::new(), Folder::new());
        let source = deploy().join("kubernetes");
        succeeded(Command::new("cp").arg("-a").arg(format!("{}/.", source.display())).arg(&folder.0));
        let text = std::fs::read_to_string(source.join(file)).unwrap();
        assert!(text.contains(from), "{file}");
        folder.written(file, &text.replace(from, to));
        let (ok, said) = ran(Command::new(home.join("bin/python"))
            .arg(tests::env::tools().join("manifests.py"))
            .args([&folder.0, &out.0]));
        assert!(!ok && said.contains(fault), "{file}, {to}: {said}");
    }
}

#[test]
fn the_units_work_under_a_systemd_that_was_booted() {
    if tests::env::var(tests::env::TEST_PG).is_none() {
        tests::skip("a private PostgreSQL (run ./test, or tests/tools/pg.sh start)");
        return;
    }
    let root =
        std::fs::metadata("/proc/self").is_ok_and(|entry| std::os::unix::fs::MetadataExt::uid(&entry) == 0);
    let can =
        root && ran(Command::new("sh").args(["-c", "findmnt -nt cgroup2 && test -x /lib/systemd/systemd"])).0;
    let Some(()) = tests::require(can.then_some(()), "root, cgroup2 and systemd (tests/tools/setup.sh)")
    else {
        return;
    };
    // Not below /tmp, in whose place the booted system has an empty one.
    let folder = Folder::below(Path::new("/var/tmp"));
    let copy = |from: &Path, to: &str| {
        succeeded(Command::new("cp").arg("-r").arg(from).arg(folder.0.join(to)));
    };
    let (bin, tools) = (folder.made("bin"), folder.made("tools"));
    for program in ["bigbrotr", "scheduler", "worker"] {
        succeeded(Command::new("strip").arg("-o").arg(bin.join(program)).arg(binary(program)));
    }
    for script in ["pg.sh", "common.sh"] {
        succeeded(Command::new("cp").arg(tests::env::tools().join(script)).arg(&tools));
    }
    copy(&deploy(), "deploy");
    copy(&tests::env::tools().join("units.sh"), "driver");
    let (ok, said) = ran(Command::new(tests::env::tools().join("booted.sh")).arg(&folder.0));
    assert!(ok && said.contains("all seen"), "{said}");
}
