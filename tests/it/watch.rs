//! Watching: rules, dashboards and documents hold together, and a real Prometheus that scrapes a real fleet answers
//! everything they ask.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use shared::telemetry::{Metric, MetricKind, metric_lines};
use tests::factory::Factory;
use tests::pg::Role;
use tests::programs::{Process, free_port};
use tests::scripted::{Script, ScriptedRelay};

use super::fleet::{child, environment, seed_relays};
use super::support::migrated;

/// What the exporter of PostgreSQL calls its metrics, by which alerts and dashboards may ask: the same from 0.11 to 0.20.
const EXPORTER: [&str; 18] = [
    "pg_up",
    "pg_database_size_bytes",
    "pg_locks_count",
    "pg_settings_max_connections",
    "pg_stat_activity_count",
    "pg_stat_activity_max_tx_duration",
    "pg_stat_archiver_archived_count",
    "pg_stat_archiver_failed_count",
    "pg_stat_database_blks_hit",
    "pg_stat_database_blks_read",
    "pg_stat_database_deadlocks",
    "pg_stat_database_temp_bytes",
    "pg_stat_database_tup_deleted",
    "pg_stat_database_tup_fetched",
    "pg_stat_database_tup_inserted",
    "pg_stat_database_tup_updated",
    "pg_stat_database_xact_commit",
    "pg_stat_database_xact_rollback",
];

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Files of a folder with this ending, by name.
pub(crate) fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.filter(|path| path.to_string_lossy().ends_with(ending)).collect();
    found.sort();
    assert!(!found.is_empty(), "{folder} has no {ending}");
    found
}

fn text_of(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// Whether a program of Debian's packages is here, or a visible skip.
pub(crate) fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    tests::require(found.then_some(()), &format!("{program} (tests/tools/setup.sh)")).is_some()
}

pub(crate) fn run(program: &str, args: &[&str]) -> (bool, String) {
    let Output { status, stdout, stderr } = Command::new(program)
        .args(args)
        .current_dir(root())
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    (status.success(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
}

/// Words that begin with a prefix, as names of metrics do.
fn names<'a>(text: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with(prefix)).collect()
}

#[test]
fn the_monitoring_document_has_every_metric_as_it_is() {
    let text = read("docs/MONITORING.md");
    let (_, rest) = text.split_once("\n## Metrics\n").unwrap();
    let written: Vec<&str> =
        rest.split("\n## ").next().unwrap().lines().filter(|line| line.starts_with("| `")).collect();
    let present: Vec<String> = metric_lines()
        .iter()
        .map(|[name, kind, of, labels, says]| format!("| `{name}` | {kind} | {of} | {labels} | {says} |"))
        .collect();
    assert_eq!(written, present, "docs/MONITORING.md: the table is `bigbrotr config --metrics`");
}

#[test]
fn rules_and_routes_are_sound_and_each_rules_tests_pass() {
    if !(has("promtool") && has("amtool")) {
        return;
    }
    let passes = |program: &str, args: &[&str]| {
        let (well, said) = run(program, args);
        assert!(well, "{program} {args:?}: {said}");
    };
    passes("promtool", &["check", "config", "deploy/prometheus/prometheus.yml"]);
    let tests = files("tests/watch", ".test.yml");
    for test in &tests {
        passes("promtool", &["test", "rules", &test.to_string_lossy()]);
    }
    for routes in files("deploy/alertmanager", ".yml") {
        passes("amtool", &["check-config", &routes.to_string_lossy()]);
    }
}

/// Each alert with what is written between its name and the next one's.
fn alerts() -> BTreeMap<String, String> {
    let text = text_of(&files("deploy/prometheus/rules", ".yml"));
    let rules = text.split("- alert: ").skip(1);
    rules
        .map(|rule| rule.split_once('\n').map(|(name, rest)| (name.to_owned(), rest.to_owned())).unwrap())
        .collect()
}

#[test]
fn every_alert_says_what_to_do_and_is_shown_silent_firing_and_silent_again() {
    let (document, scenarios) = (read("docs/MONITORING.md"), text_of(&files("tests/watch", ".test.yml")));
    for (name, rule) in alerts() {
        for part in ["severity: ", "summary: ", "description: ", "expr: "] {
            assert!(rule.contains(part), "{name} lacks {part:?}");
        }
        let runbook = format!("runbook_url: docs/MONITORING.md#{}\n", name.to_lowercase());
        assert!(rule.contains(&runbook), "{name}: {runbook:?}");
        assert!(document.contains(&format!("\n### {name}\n")), "docs/MONITORING.md does not explain {name}");
        let shown = scenarios.split("  - name: ").filter(|scenario| scenario.lines().next() == Some(&name));
        let mut seen = 0;
        for scenario in shown {
            let samples: Vec<&str> = scenario.split("exp_samples:").skip(1).collect();
            let silent = |sample: &&str| sample.trim_start().starts_with("[]");
            assert!(samples.len() >= 3, "{name}: {scenario}");
            assert!(
                samples.first().is_some_and(silent) && samples.last().is_some_and(silent),
                "{name}: {scenario}"
            );
            assert!(
                samples.iter().any(|sample| sample.contains(&format!("alertname=\"{name}\""))),
                "{name}: {scenario}"
            );
            seen += 1;
        }
        assert!(seen > 0, "tests/watch shows no {name}");
    }
    let explained = document.lines().filter_map(|line| line.strip_prefix("### "));
    let gone: Vec<_> = explained.filter(|name| !alerts().contains_key(*name)).collect();
    assert!(gone.is_empty(), "docs/MONITORING.md explains alerts that are not there: {gone:?}");
}

fn dashboards() -> Vec<(String, Value)> {
    let named = |path: &PathBuf| {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        (name, serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap())
    };
    files("deploy/grafana/dashboards", ".json").iter().map(named).collect()
}

fn list<'a>(value: &'a Value, name: &str) -> &'a Vec<Value> {
    value[name].as_array().unwrap_or_else(|| panic!("{name} is no list: {value}"))
}

#[test]
fn dashboards_are_as_their_script_makes_them() {
    let (well, said) = run("python3", &["deploy/grafana/make.py", "--check"]);
    assert!(well, "{said}");
}

#[test]
fn dashboards_keep_the_shape_that_grafana_reads() {
    let mut uids = BTreeSet::new();
    for (file, dashboard) in dashboards() {
        let uid = dashboard["uid"].as_str().unwrap();
        assert!(uid == file && uid.len() <= 40 && uids.insert(uid.to_owned()), "{file}: uid {uid}");
        assert!(dashboard["title"].is_string() && dashboard["schemaVersion"].as_u64() >= Some(36), "{file}");
        let variables = list(&dashboard["templating"], "list");
        let declared: BTreeSet<&str> =
            variables.iter().filter_map(|variable| variable["name"].as_str()).collect();
        assert_eq!(variables[0]["type"], "datasource", "{file}: the source is chosen first");
        let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
        for panel in list(&dashboard, "panels") {
            let what = format!("{file}: {}", panel["title"]);
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{what}: its id is another's");
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
            assert!(x + w <= 24 && w > 0 && h > 0, "{what}: {}", panel["gridPos"]);
            for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                assert!(taken.insert(cell), "{what} lies over another at {cell:?}");
            }
            let kind = panel["type"].as_str().unwrap();
            assert!(["row", "stat", "timeseries"].contains(&kind), "{what}: {kind}");
            if kind == "row" {
                continue;
            }
            assert!(!panel["description"].as_str().unwrap().is_empty(), "{what} explains nothing");
            assert_eq!(panel["datasource"]["uid"], "${source}", "{what}");
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{what}");
            let targets = list(panel, "targets");
            let refs: BTreeSet<&str> =
                targets.iter().map(|target| target["refId"].as_str().unwrap()).collect();
            assert!(!targets.is_empty() && refs.len() == targets.len(), "{what}: {refs:?}");
            for target in targets {
                assert_eq!(target["datasource"]["uid"], "${source}", "{what}");
                let expr = target["expr"].as_str().unwrap();
                let used = expr
                    .split('$')
                    .skip(1)
                    .filter_map(|rest| rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next());
                let unknown: Vec<_> =
                    used.filter(|name| *name != "__rate_interval" && !declared.contains(name)).collect();
                assert!(unknown.is_empty(), "{what} uses {unknown:?}");
            }
        }
    }
    let provisioned = read("deploy/grafana/provisioning/datasources/prometheus.yml");
    assert!(provisioned.contains("uid: prometheus\n"), "{provisioned}");
}

#[test]
fn whatever_is_asked_for_is_exported_and_whatever_is_exported_is_explained_once() {
    let asked = text_of(&files("deploy/prometheus/rules", ".yml"))
        + &text_of(&files("deploy/grafana/dashboards", ".json"))
        + &text_of(&files("tests/watch", ".test.yml"));
    let exported: BTreeSet<String> = Metric::ALL
        .iter()
        .flat_map(|metric| {
            let ends: &[&str] =
                if metric.kind() == MetricKind::Histogram { &["_bucket", "_sum", "_count"] } else { &[""] };
            ends.iter().map(|end| format!("{}{end}", metric.exported()))
        })
        .collect();
    let unknown: Vec<_> =
        names(&asked, "bigbrotr_").into_iter().filter(|name| !exported.contains(*name)).collect();
    assert!(unknown.is_empty(), "no program exports {unknown:?}");
    let unknown: Vec<_> = names(&asked, "pg_").into_iter().filter(|name| !EXPORTER.contains(name)).collect();
    assert!(unknown.is_empty(), "not every version of the exporter has {unknown:?}");
    let mut once = BTreeSet::new();
    assert!(Metric::ALL.iter().all(|metric| once.insert(metric.name())), "two metrics have one name");
}

/// A folder that is gone with its handle, unless the test is failing.
pub(crate) struct Folder(pub PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            drop(fs::remove_dir_all(&self.0));
        }
    }
}

/// A loopback address nobody listens on at this moment.
pub(crate) fn free() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// The shipped configuration, with addresses in the place of service names and a second in the place of every 15.
pub(crate) fn configuration(addresses: &[(&str, &[&String])]) -> String {
    let mut text = read("deploy/prometheus/prometheus.yml").replace("15s", "1s").replace("10s", "1s");
    let rules = root().join("deploy/prometheus/rules").display().to_string();
    text = text.replace("rules/*.yml", &format!("{rules}/*.yml"));
    for (name, at) in addresses {
        let list = at.iter().map(|address| format!("\"{address}\"")).collect::<Vec<_>>().join(", ");
        let by_name = format!(
            "dns_sd_configs:\n      - names: [{name}]\n        type: A\n        port: 9100\n        refresh_interval: 1s\n"
        );
        let by_host = format!("\"{name}\"");
        assert!(
            text.contains(&by_name) || text.contains(&by_host),
            "deploy/prometheus/prometheus.yml has no {name}"
        );
        text = text
            .replace(&by_name, &format!("static_configs:\n      - targets: [{list}]\n"))
            .replace(&by_host, &list);
    }
    text
}

fn panels(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(root().join("tests/watch/panels")).args(args).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_prometheus_on_a_real_fleet_answers_every_panel_and_every_alert() {
    let programs = ["prometheus", "prometheus-alertmanager", "prometheus-postgres-exporter"];
    if !programs.iter().all(|program| has(program)) {
        return;
    }
    let Some(test) = migrated().await else { return };
    let events = Factory::new(71).events(300);
    let relays = [
        ScriptedRelay::start(Script::honest(&events[..200], 100)).await,
        ScriptedRelay::start(Script::honest(&events[100..], 100)).await,
    ];
    seed_relays(&test, &relays.iter().map(ScriptedRelay::url).collect::<Vec<_>>()).await;

    let folder =
        Folder(std::env::temp_dir().join(format!("bigbrotr-watch-{}", shared::clock::random_hex(6))));
    fs::create_dir(&folder.0).unwrap();
    let place = |name: &str| folder.0.join(name).display().to_string();
    let [scheduler_at, one_at, two_at, exporter_at, alerts_at, at] = std::array::from_fn(|_| free());
    let mut environment = environment(&test.url(Role::Writer), &test.url(Role::Refresher));
    for (name, value) in [
        ("BIGBROTR_MONITOR_INTERVAL_S", "2"),
        ("BIGBROTR_SYNC_INTERVAL_S", "2"),
        ("BIGBROTR_SCHEDULER_METRICS", &scheduler_at),
    ] {
        environment.insert(name.to_owned(), value.to_owned());
    }
    let mut fleet = vec![child("scheduler", &environment)];
    for worker in [&one_at, &two_at] {
        environment.insert("BIGBROTR_WORKER_METRICS".to_owned(), worker.clone());
        fleet.push(child("worker", &environment));
    }
    let start = |program: &str, args: &[String], env: &[(&str, String)]| {
        let mut command = Command::new(program);
        command.args(args).envs(env.iter().map(|(name, value)| (name, value))).current_dir(&folder.0);
        Process::spawn(&command, &folder.0.join(format!("{program}.log")))
    };
    let database = format!("{}?sslmode=disable", test.url(Role::Superuser));
    let file = place("prometheus.yml");
    let scraped = configuration(&[
        ("scheduler", &[&scheduler_at]),
        ("worker", &[&one_at, &two_at]),
        ("postgres-exporter:9187", &[&exporter_at]),
        ("alertmanager:9093", &[&alerts_at]),
        ("localhost:9090", &[&at]),
    ]);
    fs::write(&file, scraped).unwrap();
    let watchers = [
        start(
            programs[2],
            &[format!("--web.listen-address={exporter_at}")],
            &[("DATA_SOURCE_NAME", database)],
        ),
        start(
            programs[1],
            &[
                format!("--config.file={}", root().join("deploy/alertmanager/alertmanager.yml").display()),
                format!("--storage.path={}", place("alerts")),
                format!("--web.listen-address={alerts_at}"),
                "--cluster.listen-address=".to_owned(),
            ],
            &[],
        ),
        start(
            programs[0],
            &[
                format!("--config.file={file}"),
                format!("--storage.tsdb.path={}", place("data")),
                format!("--web.listen-address={at}"),
            ],
            &[],
        ),
    ];
    let url = format!("http://{at}");
    let (code, said) = panels(&[&url, "--wait", "40", "--rate", "15s"]);
    assert_eq!(code, Some(0), "{said}");

    // What is not there is missed, by name; and a Prometheus that does not answer is no success.
    let broken = folder.0.join("broken");
    fs::create_dir(&broken).unwrap();
    let made = read("deploy/grafana/dashboards/bigbrotr-fleet.json")
        .replace("bigbrotr_worker_slots", "bigbrotr_not_there");
    fs::write(broken.join("fleet.json"), made).unwrap();
    let (code, said) = panels(&[&url, "--dashboards", &broken.display().to_string()]);
    assert!(code == Some(1) && said.contains("BigBrotr: fleet / Slots in use / A: empty"), "{code:?} {said}");
    assert_eq!(panels(&[&format!("http://{}", free())]).0, Some(2));

    // Nothing of a fleet that is well fires, or is about to.
    let waiting = async {
        loop {
            let (well, said) = run("promtool", &["query", "instant", &url, "ALERTS"]);
            if well && said.trim().is_empty() {
                break;
            }
            // bound: 30 s, around the whole loop.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let quiet = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    assert!(quiet.is_ok(), "{}", run("promtool", &["query", "instant", &url, "ALERTS"]).1);
    drop((watchers, fleet));
}
