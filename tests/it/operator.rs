//! The commands an operator works with, as the real binary says them, with the role the documents name.

use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use shared::models::{JobKind, Verdict};
use tests::pg::{Role, TestDb};

use super::fleet::binary;
use super::support::{claim_one, handle, job, migrated, registration, value};

fn bigbrotr(test: &TestDb, role: Role, arguments: &[&str]) -> Output {
    let url = test.url(role);
    Command::new(binary("bigbrotr")).args(arguments).env("DATABASE_URL", url).output().unwrap()
}

/// Its exit code, and all it said.
pub(crate) fn says(test: &TestDb, role: Role, arguments: &[&str]) -> (i32, String) {
    let output = bigbrotr(test, role, arguments);
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), said.into_owned())
}

/// Ends an attempt of a fresh job of this target.
async fn ended(test: &TestDb, target: &str, verdict: Verdict) -> String {
    let db = handle(test, Role::Writer);
    let (claimed, _) = claim_one(&db, "w1", JobKind::Sync, target).await;
    let said = shared::db::Finished {
        job: claimed.job.clone(),
        attempt: 1,
        verdict,
        delay: Duration::from_secs(600),
        result: r#"{"error":"busy"}"#.to_owned(),
    };
    db.job_finish("w1", &[said]).await.unwrap();
    claimed.job
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_previews_what_it_does_and_a_pattern_or_a_filter_needs_a_second_word() {
    let Some(test) = migrated().await else { return };
    for (target, verdict) in [
        ("wss://dead.example/1", Verdict::Kill),
        ("wss://dead.example/2", Verdict::Kill),
        ("wss://again.example", Verdict::Kill),
        ("wss://waits.example", Verdict::Retry),
        ("wss://done.example", Verdict::Complete),
    ] {
        ended(&test, target, verdict).await;
    }
    let db = handle(&test, Role::Writer);
    // It died and has a job again: nothing is left to be retried.
    db.job_enqueue(&[job(JobKind::Sync, "wss://again.example"), job(JobKind::Sync, "wss://fresh.example")])
        .await
        .unwrap();
    test.execute("INSERT INTO job_history SELECT 'old', kind, network, 'wss://old.example', state, 1, NULL, due_at, enqueued_at, NULL, now() - interval '3 h', result FROM job_history WHERE state = 'dead' LIMIT 1").await;
    test.execute("INSERT INTO job_history SELECT 'odd', 'bogus', network, 'wss://odd.example', state, 1, NULL, due_at, enqueued_at, NULL, now(), result FROM job_history WHERE state = 'dead' LIMIT 1").await;
    let live = async || {
        value(&test, "SELECT count(*) || ' ' || count(*) FILTER (WHERE run_at <= now()) FROM apalis.jobs")
            .await
    };
    assert_eq!(live().await, "3 2");

    let admin = |arguments: &[&str]| says(&test, Role::Admin, arguments);
    for arguments in [
        ["queue", "retry", "--json", "--kind", "sync"].as_slice(),
        &["queue", "retry", "--json", "*"],
        &["queue", "retry", "--json", "wss://*.example*", "--network", "clearnet"],
    ] {
        let (code, said) = admin(arguments);
        let preview: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"));
        assert_eq!(
            (code, &preview["preview"], &preview["jobs"]),
            (0, &Value::Bool(true), &3.into()),
            "{said}"
        );
        let sample: Vec<&str> =
            preview["sample"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(sample[0], "sync.clearnet wss://waits.example waits");
        assert_eq!(
            sample[1..],
            ["sync.clearnet wss://dead.example/1 dead", "sync.clearnet wss://dead.example/2 dead"]
        );
    }
    let (code, said) = admin(&["queue", "retry", "wss://dead.example/*"]);
    assert!(code == 0 && said.contains("nothing was done") && said.contains("2 jobs"), "{said}");
    assert_eq!(live().await, "3 2", "a preview does nothing");
    // One named by itself, in another spelling, needs no second word.
    let (code, said) = admin(&["queue", "retry", "WSS://Dead.example:443/1"]);
    assert!(code == 0 && said.contains("1 dead ones are enqueued"), "{said}");
    let (code, said) = admin(&["queue", "retry", "--json", "--kind", "sync", "--yes"]);
    let done: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &done["woken"], &done["enqueued"]), (0, &1.into(), &1.into()), "what the preview said");
    assert_eq!(live().await, "5 5");
    let (code, said) = admin(&["queue", "retry", "--kind", "sync", "--yes"]);
    assert!(code == 1 && said.contains("nothing meant by that was put back"), "{code} {said}");
    let (code, _) = admin(&["queue", "retry", "wss://old.example", "--since", "86400"]);
    assert_eq!(code, 0, "a longer memory finds the older one");
    ended(&test, "wss://dead.example/3", Verdict::Kill).await;
    let (code, said) = admin(&["queue", "retry", "--yes"]);
    assert!(code == 2 && said.contains("name a job"), "{code} {said}");
    let (code, said) = admin(&["queue", "retry", "--since", "60"]);
    assert!(code == 0 && said.contains("nothing was done"), "a span is a filter: {said}");
    let (code, said) = admin(&["queue", "retry", "--since", "60", "--yes"]);
    assert!(code == 0 && said.contains("1 dead ones are enqueued"), "of every queue: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_touches_nothing_says_so_and_exits_with_one() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    db.job_enqueue(&[job(JobKind::Sync, "wss://one.example")]).await.unwrap();
    let admin = |arguments: &[&str]| says(&test, Role::Admin, arguments);
    for arguments in [
        ["queue", "cancel", "wss://nobody.example"].as_slice(),
        &["queue", "cancel", "wss://nobody.example/*"],
        &["queue", "cancel", "--kind", "monitor", "--yes"],
        &["queue", "cancel", "--kind", "monitor", "--json"],
        &["queue", "retry", "--kind", "sync"],
        &["queue", "show", "wss://nobody.example"],
        &["why", "wss://nobody.example"],
    ] {
        let (code, said) = admin(arguments);
        assert!(code == 1 && said.contains("no"), "{arguments:?}: {code} {said}");
    }
    // A pattern is not one job named by itself, though it meets one.
    let (code, said) = admin(&["queue", "cancel", "wss://one.*"]);
    assert!(code == 0 && said.contains("nothing was done"), "{said}");
    let id = value(&test, "SELECT id FROM apalis.jobs").await;
    for arguments in [["queue", "show"].as_slice(), &["why"]] {
        let (code, said) = admin(&[arguments, &["WSS://One.example:443/"]].concat());
        assert!(code == 0 && said.contains(&id), "{arguments:?}: the job in any spelling, by its id: {said}");
    }
    let (code, said) = admin(&["queue", "cancel", "WSS://One.example/"]);
    assert!(code == 0 && said.contains("1 cancelled"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_queues_and_an_absent_fleet_are_pointed_out() {
    let Some(test) = migrated().await else { return };
    test.execute("INSERT INTO relay (url, network, discovered_at) VALUES ('wss://a.example', 'clearnet', 1)")
        .await;
    let admin = |arguments: &[&str]| says(&test, Role::Admin, arguments);
    admin(&["queue", "pause", "sync.clearnet", "--why", "proxy moves"]);
    admin(&["queue", "drain", "sync.clearnet", "monitor.tor"]);
    let (_, listed) = admin(&["queue", "list"]);
    let row =
        |queue: &str| listed.lines().find(|line| line.starts_with(queue)).unwrap_or_default().to_owned();
    assert!(row("sync.clearnet").ends_with("paused, draining"), "{listed}");
    assert!(row("monitor.tor").ends_with("draining"), "without any job, too: {listed}");
    let (_, listed) = admin(&["queue", "list", "--json", "--kind", "monitor"]);
    assert_eq!(serde_json::from_str::<Value>(&listed).unwrap()["held"], "drain", "{listed}");
    let (code, said) = admin(&["queue", "run-now", "wss://a.example", "--by", "ann"]);
    assert!(code == 0 && said.contains("2 jobs come first"), "{said}");
    assert!(
        said.contains("sync.clearnet is paused by") && said.contains("waits until it is resumed"),
        "{said}"
    );
    assert_eq!(said.matches("is paused by").count(), 1, "the other queue is not: {said}");
    let (code, said) = admin(&["doctor"]);
    for missing in ["no worker holds a lease", "no scheduler leads"] {
        let line = said.lines().find(|line| line.contains(missing)).unwrap_or_default();
        assert!(code == 1 && line.starts_with("problem"), "{said}");
    }
}

/// The words of a line as a shell reads them, without its comment.
fn words(line: &str) -> Vec<String> {
    let mut found = vec![];
    let mut rest = line.split_once(" #").map_or(line, |(before, _)| before).trim();
    while !rest.is_empty() {
        let (next, left) = match rest.strip_prefix('\'') {
            Some(quoted) => quoted.split_once('\'').unwrap(),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        found.push(next.to_owned());
        rest = left.trim_start();
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_for_operators_works_as_the_role_the_document_names() {
    let Some(test) = migrated().await else { return };
    let document =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/OPERATIONS.md")).unwrap();
    let (_, block) = document.split_once("## What operators do\n").unwrap();
    assert!(
        block.split_once("```sh").unwrap().0.contains("`bigbrotr_admin`"),
        "the role stands before the commands"
    );
    let block = block.split_once("```sh\n").unwrap().1.split_once("```").unwrap().0;
    // What the commands speak of.
    test.execute(
        "INSERT INTO relay (url, network, discovered_at) VALUES ('wss://relay.example', 'clearnet', 1)",
    )
    .await;
    ended(&test, "wss://dead.example", Verdict::Kill).await;
    let db = handle(&test, Role::Writer);
    let worker = block
        .lines()
        .find_map(|line| line.split_once("--worker "))
        .map(|(_, rest)| words(rest)[0].clone())
        .unwrap();
    db.job_heartbeat(&registration(&worker, Duration::from_secs(60))).await.unwrap();
    let jobs = ["wss://relay.example", "wss://spam.example/a", "wss://spam.example/b"];
    db.job_enqueue(&jobs.map(|target| job(JobKind::Sync, target))).await.unwrap();
    let mut ran = 0;
    for line in block.lines() {
        let words = words(line);
        assert_eq!(words[0], "bigbrotr", "{line}");
        let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        let (code, said) = says(&test, Role::Admin, &arguments);
        assert_eq!(code, 0, "{line}: {said}");
        ran += 1;
        // The reader may look, also at what a deed would do, and do nothing.
        let looks = ["top", "why", "doctor", "autoscale"].contains(&arguments[0])
            || ["list", "show", "audit"].contains(arguments.get(1).unwrap_or(&""))
            || (arguments[1] == "cancel" && !arguments.contains(&"--yes"));
        let (code, said) = says(&test, Role::Reader, &arguments);
        assert_eq!(code == 0, looks, "{line}, as the reader: {said}");
    }
    assert!(ran > 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_of_a_runbook_is_one() {
    let Some(test) = migrated().await else { return };
    let document =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/MONITORING.md")).unwrap();
    let named: std::collections::BTreeSet<&str> =
        document.split('`').filter_map(|span| span.strip_prefix("bigbrotr ")).collect();
    assert!(named.len() > 8, "{named:?}");
    for command in named {
        let arguments: Vec<&str> = command.split(' ').collect();
        let (code, said) = says(&test, Role::Admin, &arguments);
        // What it speaks of may be missing here; how it is called may not be wrong.
        assert!(code < 2, "{command}: {said}");
    }
}
