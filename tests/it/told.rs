//! Alerts on their way out: from a metric through our rules and the example of an Alertmanager's configuration to a webhook
//! and a mail server of ours, when they fire and when they are over.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tests::pg::Role;
use tests::programs::Process;
use tests::proxy::ChaosProxy;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::alerts::{Answers, Webhook};
use super::fleet::{child_telling, environment};
use super::support::migrated;
use super::watch::{Folder, configuration, files, free, has, read, root, run};

/// How long one alert may take from its cause to the receiver, with the times of [`hurried`].
const TOLD: Duration = Duration::from_secs(60);

/// How long nothing must be told.
const QUIET: Duration = Duration::from_secs(3);

/// A mail server that takes everything and keeps it.
struct MailServer {
    address: String,
    taken: Arc<Mutex<Vec<String>>>,
    _server: JoinSet<()>,
}

impl MailServer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let taken = Arc::<Mutex<Vec<String>>>::default();
        let (mut server, to) = (JoinSet::new(), Arc::clone(&taken));
        server.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                take(stream, &to).await.ok();
            }
        });
        Self { address, taken, _server: server }
    }

    /// Whether a mail has this subject.
    fn has(&self, subject: &str) -> bool {
        let subject = format!("Subject: {subject}\r\n");
        self.taken.lock().unwrap().iter().any(|mail| mail.contains(&subject))
    }
}

/// One conversation of RFC 5321, to its end.
async fn take(stream: TcpStream, taken: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 mail\r\n").await?;
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
        if verb == "DATA" {
            stream.write_all(b"354 go on\r\n").await?;
            let mut mail = Vec::new();
            while !mail.ends_with(b"\r\n.\r\n") {
                mail.push(stream.read_u8().await?);
            }
            taken.lock().unwrap().push(String::from_utf8_lossy(&mail).into_owned());
        }
        stream.write_all(if verb == "QUIT" { b"221 bye\r\n" } else { b"250 yes\r\n" }).await?;
        line.clear();
    }
    Ok(())
}

/// The text with each of these once or more in it replaced.
fn replaced(mut text: String, pairs: &[(&str, &str)]) -> String {
    for (old, new) in pairs {
        assert!(text.contains(old), "{old:?} is not in {text}");
        text = text.replace(old, new);
    }
    text
}

/// Rules as they are, each waiting a second where it waits for minutes.
fn hurried(rules: &Path, into: &Path) {
    let hurry = |line: &str| match line.split_once("for: ") {
        Some((indent, wait)) if indent.trim().is_empty() => {
            assert!(wait.ends_with('m') || wait.ends_with('h'), "{line}");
            format!("{indent}for: 1s\n")
        }
        _ => format!("{line}\n"),
    };
    fs::write(into, fs::read_to_string(rules).unwrap().lines().map(hurry).collect::<String>()).unwrap();
}

/// Waits until it is so.
async fn until(what: &str, mut probe: impl FnMut() -> bool, said: impl Fn() -> String) {
    let waiting = async {
        while !probe() {
            // bound: TOLD, around the whole loop.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let done = tokio::time::timeout(TOLD, waiting).await.is_ok();
    assert!(done, "{what}: not within {TOLD:?}; {}", said());
}

/// (state, name) of each alert the webhook was told of, in order.
fn told(webhook: &Webhook) -> Vec<(String, String)> {
    let pair = |alert: &Value| {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&alert["status"]), text(&alert["labels"]["alertname"]))
    };
    let bodies = webhook.told.lock().unwrap();
    bodies.iter().flat_map(|body| body["alerts"].as_array().unwrap().iter().map(pair)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fires_reaches_webhook_and_mail_and_so_does_its_end_and_what_follows_from_it_is_held_back() {
    let programs = ["prometheus", "prometheus-alertmanager", "prometheus-postgres-exporter", "amtool"];
    if !programs.iter().all(|program| has(program)) {
        return;
    }
    let Some(test) = migrated().await else { return };
    let folder = Folder(std::env::temp_dir().join(format!("bigbrotr-told-{}", shared::clock::random_hex(6))));
    let place = |name: &str| folder.0.join(name).display().to_string();
    for name in ["rules", "alertmanager", "secrets"] {
        fs::create_dir_all(folder.0.join(name)).unwrap();
    }
    let (webhook, mails) = (Webhook::start().await, MailServer::start().await);
    let way = ChaosProxy::start(test.address()).await;
    let [scheduler_at, worker_at, exporter_at, alerts_at, at] = std::array::from_fn(|_| free());

    // The example, with receivers of ours, no TLS to the mail server, and seconds in the place of minutes.
    let example = replaced(
        read("deploy/alertmanager/alertmanager.example.yml"),
        &[
            ("https://hooks.example/alerts", &webhook.url()),
            (
                "smtp_smarthost: mail.example:587\n",
                &format!("smtp_smarthost: {}\n  smtp_require_tls: false\n", mails.address),
            ),
            ("/run/secrets/", &format!("{}/", place("secrets"))),
            ("group_wait: 30s", "group_wait: 1s"),
            ("group_wait: 10s", "group_wait: 1s"),
            ("group_interval: 5m", "group_interval: 1s"),
        ],
    );
    fs::write(place("alertmanager/alertmanager.yml"), example).unwrap();
    fs::write(place("secrets/webhook_token"), "a token of the webhook").unwrap();
    fs::write(place("secrets/smtp_password"), "a password of the mail server").unwrap();
    for rules in files("deploy/prometheus/rules", ".yml") {
        hurried(&rules, &folder.0.join("rules").join(rules.file_name().unwrap()));
    }
    let scraped = configuration(&[
        ("scheduler", &[&scheduler_at]),
        ("worker", &[&worker_at]),
        ("postgres-exporter:9187", &[&exporter_at]),
        ("alertmanager:9093", &[&alerts_at]),
        ("localhost:9090", &[&at]),
    ]);
    let (ours, hasty) = (root().join("deploy/prometheus/rules").display().to_string(), place("rules"));
    // The exporter rests a second before it says that the server is away.
    let changes = [
        (ours.as_str(), hasty.as_str()),
        ("scrape_interval: 1s", "scrape_interval: 3s"),
        ("scrape_timeout: 1s", "scrape_timeout: 3s"),
    ];
    fs::write(place("prometheus.yml"), replaced(scraped, &changes)).unwrap();

    let start = |program: &str, args: &[String], env: &[(&str, String)]| {
        let mut command = Command::new(program);
        command.args(args).envs(env.iter().map(|(name, value)| (name, value))).current_dir(&folder.0);
        Process::spawn(&command, &folder.0.join(format!("{program}.log")))
    };
    let database = format!("{}?sslmode=disable", way.url_of(&test.url(Role::Superuser)));
    let _watchers = [
        start(
            programs[2],
            &[format!("--web.listen-address={exporter_at}")],
            &[("DATA_SOURCE_NAME", database)],
        ),
        start(
            programs[1],
            &[
                format!("--config.file={}", place("alertmanager/alertmanager.yml")),
                format!("--storage.path={}", place("alerts")),
                format!("--web.listen-address={alerts_at}"),
                "--cluster.listen-address=".to_owned(),
            ],
            &[],
        ),
        start(
            programs[0],
            &[
                format!("--config.file={}", place("prometheus.yml")),
                format!("--storage.tsdb.path={}", place("data")),
                format!("--web.listen-address={at}"),
                // What fired before Alertmanager was found is said again after this, a minute by default.
                "--rules.alert.resend-delay=1s".to_owned(),
            ],
            &[],
        ),
    ];
    let logs = || {
        let log =
            |program: &&str| fs::read_to_string(folder.0.join(format!("{program}.log"))).unwrap_or_default();
        let tails: Vec<_> = programs
            .iter()
            .chain(&["scheduler"])
            .map(log)
            .flat_map(|log| log.lines().rev().take(4).map(str::to_owned).collect::<Vec<_>>())
            .collect();
        format!("the webhook was told {:?}; {tails:#?}", told(&webhook))
    };
    let knows = |state: &str, name: &str| told(&webhook).contains(&(state.to_owned(), name.to_owned()));

    // Nobody leads: no scheduler is there.
    until("no leader is told", || knows("firing", "BigBrotrNoLeader"), logs).await;
    until("and by mail", || mails.has("[FIRING:1] BigBrotrNoLeader (critical)"), logs).await;
    // Who refuses to hear what is next is told it again, and that it was not delivered: what is counted before the first
    // look at Alertmanager is not seen to grow.
    let prometheus = format!("http://{at}");
    let looked = || {
        let counter = "alertmanager_notifications_failed_total";
        let (well, said) = run("promtool", &["query", "instant", &prometheus, counter]);
        well && said.contains(counter)
    };
    until("Alertmanager is looked at", looked, logs).await;
    let refused = told(&webhook).len();
    webhook.answers(&[Answers::Status(400)]);
    let mut environment = environment(&test.url(Role::Writer), &test.url(Role::Refresher));
    environment.insert("BIGBROTR_SCHEDULER_METRICS".to_owned(), scheduler_at.clone());
    let scheduler = child_telling("scheduler", &environment, &folder.0.join("scheduler.log"));
    until("its end is told", || knows("resolved", "BigBrotrNoLeader"), logs).await;
    until("and by mail", || mails.has("[RESOLVED] BigBrotrNoLeader (critical)"), logs).await;
    until("what was refused is told", || knows("firing", "AlertsUndelivered"), logs).await;
    let since = told(&webhook).split_off(refused);
    assert!(since[1..].contains(&since[0]), "{since:?}");

    // The database is away, and what follows from that is known and told to nobody.
    way.cut();
    until("the database is missed", || knows("firing", "PostgresDown"), logs).await;
    drop(scheduler);
    let before = told(&webhook).len();
    let url = format!("--alertmanager.url=http://{alerts_at}");
    let held_back = || {
        let (well, said) =
            run("amtool", &[&url, "alert", "query", "--inhibited", "alertname=BigBrotrNoLeader"]);
        well && said.contains("BigBrotrNoLeader")
    };
    until("what follows is held back", held_back, logs).await;
    // Twice as long as a group waits, and then some.
    tokio::time::sleep(QUIET).await; // bound: QUIET
    assert_eq!(told(&webhook)[before..], [], "it follows from the other");
    way.restore();
    until("its end is told", || knows("resolved", "PostgresDown"), logs).await;

    // What is told is what the rule says, to whoever knows the token.
    let bodies = webhook.told.lock().unwrap().clone();
    let first = &bodies[0]["alerts"][0];
    assert_eq!(first["annotations"]["summary"], "No scheduler leads", "{first}");
    assert_eq!(first["annotations"]["runbook_url"], "docs/MONITORING.md#bigbrotrnoleader", "{first}");
    let (head, _) = webhook.raw.lock().unwrap()[0].clone();
    assert!(head.contains("\r\nauthorization: bearer a token of the webhook\r\n"), "{head}");
    // A warning is for the mail alone.
    assert!(
        bodies
            .iter()
            .flat_map(|body| body["alerts"].as_array().unwrap())
            .all(|alert| alert["labels"]["severity"] == "critical")
    );
}
