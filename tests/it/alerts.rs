//! Changes of liveness on their way to a webhook that takes them, fails, redirects, hangs, or is not to be reached.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use shared::config::Config;
use shared::db::ScheduleTarget;
use shared::jobs::{Attempt, Ctx, Handler, JobError, JobsConfig, alerts};
use shared::models::{AddressPolicy, JobKind, LOCAL, Reason, RelayUrl};
use shared::net::{Dialer, NetConfig};
use shared::telemetry::{Health, Metrics};
use tests::names::NameServer;
use tests::pg::{Role, TestDb};
use tests::scripted::{Script, ScriptedRelay};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fleet::{environment, until};
use super::jobs::{config, context};
use super::judge::{Vantage, known};
use super::support::{claim_target, handle, migrated, register, value};

/// How a webhook answers one request.
#[derive(Debug, Clone)]
pub(crate) enum Answers {
    Status(u16),
    /// Yes, and then not the body that was announced.
    Broken,
    To(SocketAddr),
    Hang,
    /// The deliverer dies between the answer and its note of it.
    Crash(shared::db::Db),
}

/// A webhook that keeps what it is told.
pub(crate) struct Webhook {
    pub address: SocketAddr,
    pub told: Arc<Mutex<Vec<Value>>>,
    /// Head and body of each request, as they came.
    pub raw: Arc<Mutex<Vec<(String, String)>>>,
    script: Arc<Mutex<VecDeque<Answers>>>,
    _server: JoinSet<()>,
}

impl Webhook {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (told, script) =
            (Arc::<Mutex<Vec<Value>>>::default(), Arc::<Mutex<VecDeque<Answers>>>::default());
        let raw = Arc::<Mutex<Vec<(String, String)>>>::default();
        let mut server = JoinSet::new();
        let (to, by, kept) = (Arc::clone(&told), Arc::clone(&script), Arc::clone(&raw));
        server.spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                let answer = by.lock().unwrap().pop_front().unwrap_or(Answers::Status(204));
                held.extend(answer_one(stream, answer, &to, &kept).await);
            }
        });
        Self { address, told, raw, script, _server: server }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/hooks/secret-path", self.address)
    }

    pub(crate) fn answers(&self, answers: &[Answers]) {
        self.script.lock().unwrap().extend(answers.iter().cloned());
    }

    /// Ids told so far, request by request.
    fn ids(&self) -> Vec<Vec<i64>> {
        let ids = |body: &Value| {
            body["alerts"].as_array().unwrap().iter().map(|a| a["id"].as_i64().unwrap()).collect()
        };
        self.told.lock().unwrap().iter().map(ids).collect()
    }
}

async fn answer_one(
    mut stream: TcpStream,
    answer: Answers,
    told: &Mutex<Vec<Value>>,
    raw: &Mutex<Vec<(String, String)>>,
) -> Option<TcpStream> {
    let mut text = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let n = stream.read(&mut chunk).await.unwrap_or(0);
        text.extend_from_slice(&chunk[..n]);
        let said = String::from_utf8_lossy(&text).into_owned();
        if let Some((head, body)) = said.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                told.lock().unwrap().push(serde_json::from_str(body).unwrap());
                raw.lock().unwrap().push((head.to_lowercase(), body.to_owned()));
                break;
            }
        }
        if n == 0 {
            return None;
        }
    }
    let head = match answer {
        Answers::Hang => return Some(stream),
        Answers::Status(status) => format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n"),
        Answers::Broken => "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nthanks".to_owned(),
        Answers::To(to) => {
            format!("HTTP/1.1 307 Moved\r\nlocation: http://{to}/\r\ncontent-length: 0\r\n\r\n")
        }
        Answers::Crash(db) => {
            db.worker_stop("teller").await.unwrap();
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned()
        }
    };
    stream.write_all(head.as_bytes()).await.ok();
    None
}

fn teller(test: &TestDb, webhook: &Webhook) -> Ctx {
    context(test, JobsConfig { alert_webhook: Some(webhook.url()), ..config() })
}

/// As the leading scheduler does where a webhook is configured, and a worker that knows one.
pub(crate) async fn wanted(ctx: &Ctx) {
    let task = ScheduleTarget {
        kind: JobKind::Monitor,
        target: alerts::TASK.to_owned(),
        network: LOCAL.to_owned(),
        slack: std::time::Duration::from_secs(60),
    };
    ctx.db.schedule_ensure(&[task]).await.unwrap();
}

/// Runs the task once, as the queue would.
async fn tell(test: &TestDb, ctx: &Ctx) -> Result<Value, JobError> {
    register(&ctx.db, "teller", std::time::Duration::from_secs(60)).await;
    let job = shared::db::NewJob {
        network: LOCAL.to_owned(),
        ..super::support::job(JobKind::Monitor, alerts::TASK)
    };
    ctx.db.job_enqueue(&[job]).await.unwrap();
    let claimed = claim_target(&ctx.db, "teller", "monitor.local", alerts::TASK).await;
    let fence = shared::models::Fence::new(claimed.job.clone(), "teller".to_owned(), claimed.attempt);
    let attempt = Attempt {
        kind: JobKind::Monitor,
        network: claimed.network,
        target: alerts::TASK.to_owned(),
        fence,
        last: false,
        stop: CancellationToken::new(),
    };
    let ended = ctx.run(attempt).await;
    test.execute("DELETE FROM apalis.jobs").await;
    ended
}

/// A relay that goes down and comes back.
pub(crate) async fn changes(test: &TestDb) -> ScriptedRelay {
    let vantage = Vantage::new(test, "one", 1).await;
    let relay = ScriptedRelay::start(Script::honest(&[], 10)).await;
    let url = known(test, &relay).await;
    vantage.look(&url).await;
    relay.set(Script::honest(&[], 10).refusing_upgrade(500));
    vantage.look(&url).await;
    vantage.look(&url).await;
    relay
}

const DELIVERY: &str =
    "SELECT string_agg(after || ' ' || delivery || ' ' || tries, ', ' ORDER BY id) FROM relay_alert";
const DUE: &str = "SELECT (due_at <= now())::text FROM schedule WHERE target = 'alerts'";

#[tokio::test]
async fn a_change_makes_the_task_due_and_what_was_told_before_a_crash_is_told_again() {
    let Some(test) = migrated().await else { return };
    let hook = Webhook::start().await;
    let ctx = teller(&test, &hook);
    wanted(&ctx).await;
    test.execute("UPDATE schedule SET due_at = now() + interval '1 hour'").await;
    let relay = changes(&test).await;
    assert_eq!(value(&test, DUE).await, "true");
    assert_eq!(value(&test, DELIVERY).await, "alive none 0, suspect pending 0, down pending 0");
    hook.answers(&[Answers::Crash(ctx.db.clone())]);
    let error = tell(&test, &ctx).await.unwrap_err();
    assert!(matches!(error, JobError::Cancel { .. }), "{error}");
    assert_eq!(
        value(&test, DELIVERY).await,
        "alive none 0, suspect pending 0, down pending 0",
        "no note of it"
    );
    assert_eq!(tell(&test, &ctx).await.unwrap()["sent"], 2);
    assert_eq!(hook.ids(), [[2, 3], [2, 3]], "at least once");
    assert!(hook.raw.lock().unwrap().iter().all(|(head, _)| !head.contains("signature")), "without a secret");
    assert_eq!(value(&test, DELIVERY).await, "alive none 0, suspect sent 0, down sent 0");
    assert_eq!(tell(&test, &ctx).await.unwrap()["sent"], 0);
    assert_eq!(hook.ids().len(), 2, "what was taken is not told again");
    assert_eq!(value(&test, DUE).await, "false");
    let told = hook.told.lock().unwrap()[1].clone();
    let down = &told["alerts"][1];
    assert_eq!(
        (&down["before"], &down["after"], &down["vantage"]),
        (&"suspect".into(), &"down".into(), &"one".into())
    );
    assert_eq!(
        (down["relay"].as_str(), &down["reason"]),
        (Some(relay.url().as_str()), &"ws_upgrade_refused".into())
    );
}

#[tokio::test]
async fn while_one_alert_waits_for_its_next_try_another_wakes_nobody() {
    let Some(test) = migrated().await else { return };
    let hook = Webhook::start().await;
    let ctx = teller(&test, &hook);
    wanted(&ctx).await;
    changes(&test).await;
    hook.answers(&[Answers::Status(503)]);
    tell(&test, &ctx).await.unwrap();
    test.execute(
        "INSERT INTO relay_alert (relay_id, vantage_id, at, before, after, reason, settles, delivery, due_at)
         SELECT relay_id, vantage_id, at + 1, after, before, '', false, 'pending', now() FROM relay_alert ORDER BY id DESC LIMIT 1;
         UPDATE schedule SET due_at = now() WHERE target = 'alerts'",
    )
    .await;
    // Once, for the new one; and then not before the first one's time.
    assert_eq!(tell(&test, &ctx).await.unwrap()["sent"], 0);
    assert_eq!(value(&test, DUE).await, "false");
}

#[tokio::test]
async fn a_webhook_that_fails_redirects_or_hangs_is_asked_again_later_and_nothing_overtakes() {
    let Some(test) = migrated().await else { return };
    let (hook, elsewhere) = (Webhook::start().await, Webhook::start().await);
    let ctx = teller(&test, &hook);
    wanted(&ctx).await;
    changes(&test).await;
    hook.answers(&[Answers::Status(503), Answers::To(elsewhere.address), Answers::Hang]);
    for (tries, why) in [(1, "HTTP 503"), (2, "HTTP 307"), (3, "total_timeout")] {
        let report = tell(&test, &ctx).await.unwrap();
        assert!(report["failure"].as_str().unwrap().contains(why), "{report}");
        let waits = format!("alive none 0, suspect pending {tries}, down pending {tries}");
        assert_eq!(value(&test, DELIVERY).await, waits);
        // It waits, and so does the task: a new change would wait behind it.
        assert_eq!(value(&test, DUE).await, "false");
        assert_eq!(tell(&test, &ctx).await.unwrap()["sent"], 0);
        assert_eq!(hook.ids().len(), tries, "not before its time");
        test.execute("UPDATE relay_alert SET due_at = now() WHERE due_at IS NOT NULL").await;
    }
    assert_eq!(elsewhere.ids().len(), 0, "what was said to one is not repeated to another");
    let pending = handle(&test, Role::Reader).alert_list(None, true, 10).await.unwrap();
    assert!(
        pending.iter().all(|line| line.answer.as_deref().unwrap().starts_with("total_timeout")),
        "{pending:?}"
    );
    assert_eq!(tell(&test, &ctx).await.unwrap()["sent"], 2);
    // What could not be told for a week is no news.
    test.execute(
        "UPDATE relay_alert SET delivery = 'pending', due_at = now(), at = at - 700000 WHERE after = 'down'",
    )
    .await;
    let told = hook.ids().len();
    assert_eq!(tell(&test, &ctx).await.unwrap()["sent"], 0);
    assert_eq!(value(&test, "SELECT delivery FROM relay_alert WHERE after = 'down'").await, "given_up");
    assert_eq!(hook.ids().len(), told, "nor is it told once more");
}

#[tokio::test]
async fn only_the_states_asked_for_are_told_and_only_where_the_guard_lets_us() {
    let Some(test) = migrated().await else { return };
    let hook = Webhook::start().await;
    let ctx = teller(&test, &hook);
    wanted(&ctx).await;
    changes(&test).await;
    let guarded = Ctx {
        dialer: Dialer::new(NetConfig { policy: AddressPolicy::public(), ..NetConfig::default() }).unwrap(),
        ..ctx.clone()
    };
    let report = tell(&test, &guarded).await.unwrap();
    assert!(report["failure"].as_str().unwrap().contains("address_refused"), "{report}");
    assert_eq!(hook.ids().len(), 0);
    test.execute("UPDATE relay_alert SET due_at = now() WHERE due_at IS NOT NULL").await;
    let jobs = JobsConfig { alert_states: vec!["down".to_owned()], ..(*ctx.config).clone() };
    let ctx = Ctx { config: Arc::new(jobs), ..ctx };
    assert_eq!(tell(&test, &ctx).await.unwrap()["sent"], 1);
    assert_eq!(value(&test, DELIVERY).await, "alive none 0, suspect skipped 1, down sent 1");
    let unwilling = context(&test, config());
    assert!(matches!(tell(&test, &unwilling).await.unwrap_err(), JobError::Cancel { .. }));
}

#[tokio::test]
async fn a_webhook_inside_is_told_by_name_and_nobody_else_is_dialled_there() {
    let Some(test) = migrated().await else { return };
    let hook = Webhook::start().await;
    hook.answers(&[Answers::Broken]);
    let names = NameServer::start("hooks 127.0.0.1 none\nlured.example 127.0.0.1 none\n").await;
    let set = [
        ("BIGBROTR_ALERT_WEBHOOK", format!("http://hooks:{}/path", hook.address.port())),
        ("BIGBROTR_ALERT_ALLOW", "127.0.0.0/8".to_owned()),
        ("BIGBROTR_NETWORK_NAME_SERVERS", names.address.to_string()),
    ];
    let config = Config::load(None, &set.map(|(name, value)| (name.to_owned(), value)).into()).unwrap();
    let dialer = Dialer::new(config.net_config().unwrap()).unwrap();
    let ctx = Ctx { dialer, policy: config.policy(), ..context(&test, config.jobs_config()) };
    wanted(&ctx).await;
    changes(&test).await;
    assert_eq!(tell(&test, &ctx).await.unwrap()["sent"], 2);
    assert_eq!(hook.ids(), [[2, 3]], "its yes counts, whatever becomes of the rest");
    let lured = RelayUrl::parse("ws://lured.example", &ctx.policy).unwrap();
    assert_eq!(ctx.dialer.resolve(&lured).await.unwrap_err().reason, Reason::AddressRefused);
}

#[tokio::test]
async fn who_shares_the_secret_can_tell_that_it_was_us() {
    let Some(test) = migrated().await else { return };
    let hook = Webhook::start().await;
    let ctx = teller(&test, &hook);
    let secret = "0123456789abcdef-shared";
    let jobs = JobsConfig { alert_secret: Some(alerts::Secret::new(secret)), ..(*ctx.config).clone() };
    assert!(!format!("{jobs:?}").contains(secret));
    let ctx = Ctx { config: Arc::new(jobs), ..ctx };
    wanted(&ctx).await;
    changes(&test).await;
    assert_eq!(tell(&test, &ctx).await.unwrap()["sent"], 2);
    let (head, body) = hook.raw.lock().unwrap()[0].clone();
    // A second opinion: the database reckons the same (RFC 2104 spelled out, key padded to the block of 64 bytes).
    let key = |i: usize| *secret.as_bytes().get(i).unwrap_or(&0);
    let pad = |byte: u8| hex::encode((0..64).map(|i| key(i) ^ byte).collect::<Vec<u8>>());
    let body = hex::encode(body);
    let wanted = format!(
        "SELECT encode(sha256(decode('{}', 'hex') || sha256(decode('{}{body}', 'hex'))), 'hex')",
        pad(0x5c),
        pad(0x36)
    );
    let reckoned = value(&test, wanted.leak()).await;
    let signature = format!("x-bigbrotr-signature: sha256={reckoned}");
    assert!(head.contains(&signature), "{signature} in {head}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_only_workers_know_is_told() {
    let Some(test) = migrated().await else { return };
    let hook = Webhook::start().await;
    let unaware = environment(&test.url(Role::Writer), &test.url(Role::Refresher));
    let mut aware = unaware.clone();
    aware.insert("BIGBROTR_ALERT_WEBHOOK".to_owned(), hook.url());
    let (scheduling, working) = (Config::load(None, &unaware).unwrap(), Config::load(None, &aware).unwrap());
    let tasks = TaskTracker::new();
    let work = |stop: CancellationToken| {
        let config = working.clone();
        tasks.spawn(async move {
            worker::run(&config, Metrics::new(), Health::default(), stop).await.unwrap();
        })
    };
    let stop = CancellationToken::new();
    let first = work(stop.clone());
    until(&test, "SELECT count(*)::text FROM schedule WHERE target = 'alerts'", "1").await;
    stop.cancel();
    first.await.unwrap();
    changes(&test).await;
    let stop = CancellationToken::new();
    work(stop.clone());
    let until_then = stop.clone();
    tasks.spawn(async move {
        scheduler::run(&scheduling, Metrics::new(), Health::default(), until_then).await.unwrap();
    });
    until(&test, "SELECT (count(*) >= 2)::text FROM relay_alert WHERE delivery = 'sent'", "true").await;
    assert!(!hook.ids().is_empty());
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}
