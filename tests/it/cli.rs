//! The command line, as a user runs it: the real binary and what it prints.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use tests::factory::Factory;
use tests::programs::Process;
use tests::scripted::{Script, ScriptedRelay};

use super::fleet::binary;

pub(crate) fn bigbrotr(arguments: &[&str]) -> Output {
    program("bigbrotr", arguments).output().unwrap()
}

/// A program without what this environment says to it.
fn program(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary(name));
    command.args(arguments);
    for (name, _) in std::env::vars_os() {
        let ours = name.to_str().is_some_and(|name| name == "DATABASE_URL" || name.starts_with("BIGBROTR_"));
        if ours {
            command.env_remove(name);
        }
    }
    command
}

fn lines(output: &Output) -> Vec<Value> {
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn url_prints_one_object_a_line_and_says_why_a_url_is_refused() {
    let output =
        bigbrotr(&["url", "--json", "WSS://Relay.Example:443/", "ws://127.0.0.1", "wss://u:p@relay.example"]);
    assert_eq!(output.status.code(), Some(1));
    let lines = lines(&output);
    assert_eq!(
        lines[0],
        serde_json::json!({ "input": "WSS://Relay.Example:443/", "url": "wss://relay.example", "network": "clearnet", "reason": null })
    );
    for line in &lines[1..] {
        assert!(line["url"].is_null() && line["network"].is_null() && line["reason"].is_string(), "{line}");
    }
    assert_eq!(bigbrotr(&["url", "wss://relay.example"]).status.code(), Some(0));
    assert_eq!(bigbrotr(&["dance"]).status.code(), Some(2));
}

#[test]
fn an_unreachable_database_is_one_clear_sentence() {
    let output = bigbrotr(&["relay", "list", "--database-url", "postgres://u:s3cr3t@127.0.0.1:1/x"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("not reachable") && said.contains("127.0.0.1:1"), "{said}");
    assert!(!said.contains("s3cr3t") && !said.contains("panicked") && said.lines().count() <= 3, "{said}");
}

#[test]
fn a_reader_that_closes_the_pipe_is_told_by_the_exit_code() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = program("bigbrotr", &["url", "wss://relay.example"]).stdout(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn what_a_service_cannot_be_configured_with_ends_it_with_two_so_that_it_is_not_started_again() {
    let publishing =
        [("BIGBROTR_PUBLISH_ENABLED", "true"), ("BIGBROTR_PUBLISH_RELAYS", "wss://relay.example")];
    for (name, env, wanted) in [
        ("worker", &publishing[..], "BIGBROTR_IDENTITY_KEY"),
        ("worker", &[("BIGBROTR_NETWORK_TRUST", "/nowhere.pem")][..], "network.trust names /nowhere.pem"),
        ("worker", &[("BIGBROTR_DATABASE_DIRECT_URL", "postgres://u@h:port/n")][..], "database.direct_url"),
        ("scheduler", &[("DATABASE_URL", "postgres://u:s3cret@h:port/n")][..], "database.url cannot be used"),
    ] {
        let mut command = program(name, &["run"]);
        command.env("DATABASE_URL", "postgres://u@127.0.0.1:1/n").envs(env.iter().copied());
        // A service that takes it waits for its database, for ever.
        let mut limited = Command::new("timeout");
        limited.arg("20").arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => limited.env(name, value),
                None => limited.env_remove(name),
            };
        }
        let output = limited.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(wanted) && !said.contains("s3cret"), "{said}");
    }
}

#[test]
fn a_password_that_nobody_could_log_in_with_is_given_to_no_role() {
    let arguments = ["migrate", "--database-url", "postgres://u@127.0.0.1:1/n"];
    let output =
        program("bigbrotr", &arguments).env("BIGBROTR_WRITER_PASSWORD", "s3cret\n\n").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("BIGBROTR_WRITER_PASSWORD") && !said.contains("s3cret"), "{said}");
}

/// A data directory of one test; its server has ended before it goes.
struct Data(PathBuf);

impl Data {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bigbrotr-{}-{name}", std::process::id()));
        drop(std::fs::remove_dir_all(&path));
        Self(path)
    }

    fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn up(data: &Data, seeds: &Path) -> Output {
    let arguments = [
        "up",
        "--json",
        "--allow-local",
        "--once",
        "--timeout",
        "60",
        "--metrics",
        "none",
        "--data",
        data.text(),
        seeds.to_str().unwrap(),
    ];
    // What the shell asks of other servers is not asked of the embedded one.
    program("bigbrotr", &arguments).env("PGSSLMODE", "require").output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_turns_a_seed_list_into_an_archive_and_a_second_run_adds_nothing() {
    let events = Factory::new(41).events(700);
    let relay = ScriptedRelay::start(Script::honest(&events, 200)).await;
    let garbage = ScriptedRelay::start(Script::named("garbage", &[]).unwrap()).await;
    let data = Data::new("up");
    let seeds = data.0.with_extension("txt");
    std::fs::write(&seeds, format!("# mine\n{}\nnot a url\n{}\n", relay.url(), garbage.url())).unwrap();
    for _ in 0..2 {
        let output = up(&data, &seeds);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&output.stdout));
    }
    // Between the runs and after them the server is not there; a third start finds what the first stored.
    let log = data.0.with_extension("log");
    let mut command = Command::new(binary("bigbrotr"));
    command.args(["up", "--allow-local", "--metrics", "none", "--data", data.text()]);
    let running = Process::spawn(&command, &log);
    let listed = wait_for(|| {
        let output = bigbrotr(&["relay", "list", "--json", "--data", data.text()]);
        (output.status.code() == Some(0)).then(|| lines(&output))
    });
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(
        (listed[0]["url"].as_str(), listed[0]["state"].as_str()),
        (Some(relay.url().as_str()), Some("alive"))
    );
    let doctor = bigbrotr(&["doctor", "--verify", "all", "--data", data.text()]);
    let report = String::from_utf8_lossy(&doctor.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&doctor.stderr);
    assert!(report.contains("700 events verified, 0 corrupt"), "{report}{complaint}");
    let server: u32 = std::fs::read_to_string(data.0.join("pgdata/postmaster.pid"))
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    // kill -9: the private server goes with it.
    drop(running);
    // Gone, or a zombie that nobody reaps.
    wait_for(|| std::fs::read_link(format!("/proc/{server}/cwd")).is_err().then_some(()));
    drop(std::fs::remove_file(seeds));
    drop(std::fs::remove_file(log));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn up_says_which_relays_it_could_not_read_and_ends_with_one() {
    let events = Factory::new(42).events(30);
    let good = ScriptedRelay::start(Script::honest(&events, 200)).await;
    let limited =
        ScriptedRelay::start(Script::honest(&events, 200).closing(0, "rate-limited: slow down")).await;
    let data = Data::new("unread");
    let seeds = data.0.with_extension("txt");
    std::fs::write(&seeds, format!("{}\n{}\n", good.url(), limited.url())).unwrap();
    let output = up(&data, &seeds);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let told = lines(&output);
    let last = told.iter().rfind(|line| line["done"] == true).unwrap_or_else(|| panic!("{said}{told:?}"));
    assert_eq!(output.status.code(), Some(1), "{said}{last}");
    assert_eq!((last["read"].as_u64(), last["unread"].as_u64()), (Some(1), Some(1)), "{last}");
    let unread = &last["relays_unread"][0];
    assert_eq!(unread["url"].as_str(), Some(limited.url().as_str()), "{last}");
    assert!(unread["end"].as_str().is_some_and(|end| end != "up to date"), "{last}");
    assert!(said.contains("1 relays read, 1 were tried once and could not be read"), "{said}");
    drop(std::fs::remove_file(seeds));
}

fn wait_for<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    for _ in 0..200 {
        if let Some(found) = attempt() {
            return found;
        }
        // bound: 200 turns.
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("it did not come about within 20 s");
}
