//! `top` on a terminal, through an outage of the server and a while in which its own process is frozen.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use shared::db::MigrateOptions;
use tests::pg::{Role, TestDb};
use tests::programs::Process;

use super::fleet::binary;

/// A server of this test's own, which goes with it.
struct Server(std::path::PathBuf);

impl Server {
    fn tell(&self, what: &str) -> String {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tools/pg.sh");
        let said = Command::new(script)
            .arg(what)
            .env("BIGBROTR_PG_STATE", &self.0)
            .env_remove("BIGBROTR_TEST_PG")
            .output()
            .unwrap();
        assert!(said.status.success(), "{what}: {}", String::from_utf8_lossy(&said.stderr));
        String::from_utf8(said.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tell("stop");
    }
}

/// Waits until `top` has drawn so many screens with these words since `from`; returns how long the log is.
async fn until(log: &Path, from: usize, words: &str, screens: usize) -> usize {
    let mut said = String::new();
    for _ in 0..300 {
        said = String::from_utf8_lossy(&std::fs::read(log).unwrap()).into_owned();
        let since = said.get(from..).unwrap_or_default();
        if since.matches(words).count() >= screens {
            return said.len();
        }
        // bound: 300 × 100 ms
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{words} was to be drawn {screens} times after {from}:\n{said}");
}

#[tokio::test]
async fn top_says_that_the_database_is_away_and_goes_on_when_it_is_back() {
    if TestDb::empty().await.is_none() {
        return;
    }
    if tests::require(Path::new("/usr/bin/script").exists().then_some(()), "script (util-linux)").is_none() {
        return;
    }
    let name = format!("bigbrotr-top-{}", shared::clock::random_hex(4));
    let server = Server(std::env::temp_dir().join(&name));
    let test = TestDb::empty_in(&server.tell("start")).await;
    shared::queue::migrate(&test.url(Role::Superuser), &MigrateOptions::default()).await.unwrap();
    let log = std::env::temp_dir().join(format!("{name}.log"));
    // A terminal of its own: elsewhere it looks once.
    let mut command = Command::new("/usr/bin/script");
    let top = format!("exec {} top --interval 1", binary("bigbrotr").display());
    command.args(["-q", "-e", "-f", "-c", &top, "/dev/null"]).env("DATABASE_URL", test.url(Role::Reader));
    let mut running = Process::spawn(&command, &log);
    let before = until(&log, 0, "workers wanted", 2).await;
    server.tell("halt");
    until(&log, before, "no answer from the database for 2 s", 1).await;
    let away = until(&log, before, "looking again", 1).await;
    server.tell("restart");
    let back = until(&log, away, "workers wanted", 2).await;
    // As after the lid was shut: it goes on where it was, on whatever is left of its connections.
    // The terminal stops with its program, and both are woken.
    let (terminal, frozen) = (running.pid().to_string(), pid_of_top(running.pid()));
    for (signal, pids, pause) in [
        ("-STOP", vec![&frozen], Duration::from_secs(3)),
        ("-CONT", vec![&frozen, &terminal], Duration::ZERO),
    ] {
        assert!(Command::new("kill").arg(signal).args(pids).status().unwrap().success());
        // bound: three of its intervals
        tokio::time::sleep(pause).await;
    }
    until(&log, back, "workers wanted", 2).await;
    assert!(!running.has_ended());
    drop(running);
    drop(test);
    std::fs::remove_file(log).unwrap();
}

/// The process that `script` runs.
fn pid_of_top(script: u32) -> String {
    let children = Command::new("pgrep").args(["-P", &script.to_string()]).output().unwrap();
    let pids = String::from_utf8(children.stdout).unwrap();
    pids.lines().next().unwrap().to_owned()
}
