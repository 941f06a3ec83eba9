//! `bigbrotr health`, as a container asks it, and secrets that come as files.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::Duration;

use serde_json::Value;
use tests::pg::Role;

use super::cli::bigbrotr;
use super::fleet::{child, environment};
use super::support::migrated;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_says_whether_a_process_does_its_work_and_its_url_may_be_a_file() {
    let Some(test) = migrated().await else { return };
    let file = std::env::temp_dir().join(format!("bigbrotr-health-{}", shared::clock::random_hex(6)));
    std::fs::write(&file, format!("{}\n", test.url(Role::Writer))).unwrap();
    let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let ask = |more: &[&str]| bigbrotr(&[&["health", &addr], more].concat());

    let nobody = ask(&[]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("does not answer"), "{nobody:?}");
    assert_eq!(bigbrotr(&["health"]).status.code(), Some(2), "nowhere to ask");

    let mut env: BTreeMap<String, String> = environment("", "");
    env.remove("DATABASE_URL");
    env.insert("DATABASE_URL_FILE".to_owned(), file.to_str().unwrap().to_owned());
    env.insert("BIGBROTR_SCHEDULER_METRICS".to_owned(), addr.clone());
    let scheduler = child("scheduler", &env);
    let ready = async {
        while ask(&[]).status.code() != Some(0) {
            // bound: the timeout around the whole loop.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ready).await.expect("it becomes ready");
    let live = ask(&["--live", "--json"]);
    assert_eq!(live.status.code(), Some(0));
    let said: Value = serde_json::from_slice(&live.stdout).unwrap();
    assert_eq!(said["status"], 200, "{said}");
    drop(scheduler);
    assert_eq!(ask(&["--live"]).status.code(), Some(1));
    std::fs::remove_file(&file).unwrap();
}
