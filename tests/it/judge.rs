//! The judgement over several vantages, each a worker with a dialer of its own, against relays that a test breaks.

use std::net::TcpListener;
use std::time::Duration;

use serde_json::Value;
use shared::db::Registration;
use shared::jobs::{Attempt, Ctx, Egress, Handler, JobError, JobsConfig};
use shared::models::{AddressPolicy, Fence, JobKind, Network, RelayUrl};
use shared::net::{Dialer, NetConfig};
use tests::pg::{Role, TestDb};
use tests::scripted::{Script, ScriptedRelay};
use tokio_util::sync::CancellationToken;

use super::cli::bigbrotr;
use super::jobs::{config, context};
use super::support::{claim_target, handle, job, migrated, pairs, value};

/// Looks after which a worker no longer waits for another vantage.
pub(crate) const INSIST: i32 = 6;
const QUEUE: &str = "monitor.clearnet";

/// A worker at a place of its own.
pub(crate) struct Vantage<'a> {
    test: &'a TestDb,
    pub(crate) ctx: Ctx,
    name: &'static str,
}

impl<'a> Vantage<'a> {
    pub(crate) async fn new(test: &'a TestDb, name: &'static str, for_down: u32) -> Self {
        let jobs = JobsConfig { vantage: name.to_owned(), vantages_for_down: for_down, ..config() };
        let mut net = NetConfig { policy: AddressPolicy::local(), ..NetConfig::default() };
        net.network_mut(Network::Clearnet).connect_timeout_ms = 300;
        let ctx = Ctx { dialer: Dialer::new(net).unwrap(), ..context(test, jobs) };
        let vantage = Self { test, ctx, name };
        vantage.register().await;
        vantage
    }

    async fn register(&self) {
        let registration = Registration {
            worker: self.name.to_owned(),
            lease: Duration::from_secs(60),
            vantage: self.name.to_owned(),
            queues: vec![(QUEUE.to_owned(), 8)],
            traffic: Vec::new(),
            listens: false,
        };
        self.ctx.db.job_heartbeat(&registration).await.unwrap();
    }

    /// One attempt, after as many as `spent`.
    pub(crate) async fn attempt(&self, url: &RelayUrl, spent: i32) -> Result<Value, JobError> {
        let db = &self.ctx.db;
        db.job_enqueue(&[job(JobKind::Monitor, url.as_str())]).await.unwrap();
        self.test
            .execute(&format!("UPDATE apalis.jobs SET attempts = {spent}, max_attempts = {spent} + 3"))
            .await;
        let claimed = claim_target(db, self.name, QUEUE, url.as_str()).await;
        let fence = Fence::new(claimed.job.clone(), self.name.to_owned(), claimed.attempt);
        let attempt = Attempt {
            kind: JobKind::Monitor,
            network: claimed.network,
            target: url.to_string(),
            fence,
            last: false,
            stop: CancellationToken::new(),
        };
        let ended = self.ctx.run(attempt).await;
        self.test.execute("DELETE FROM apalis.jobs").await;
        ended
    }

    /// A look, whoever else could make it.
    pub(crate) async fn look(&self, url: &RelayUrl) -> Value {
        self.attempt(url, INSIST).await.unwrap()
    }
}

pub(crate) async fn known(test: &TestDb, relay: &ScriptedRelay) -> RelayUrl {
    let url = RelayUrl::parse(&relay.url(), &AddressPolicy::local()).unwrap();
    handle(test, Role::Writer).relay_insert(&[(url.clone(), 1)]).await.unwrap();
    handle(test, Role::Writer).schedule_reconcile().await.unwrap();
    url
}

/// How a relay looks to somebody whom something on the way keeps from it.
fn blocking() -> Script {
    Script::honest(&[], 10).refusing_upgrade(404)
}

const OVERALL: &str = "SELECT state || ' ' || reason FROM relay_liveness";
const WHY: &str = "SELECT why FROM schedule WHERE kind = 'monitor'";
const HISTORY: &str =
    "SELECT string_agg(coalesce(before, '') || '>' || after, ' ' ORDER BY id) FROM relay_alert";

#[tokio::test]
async fn a_relay_that_blocks_one_vantage_is_alive_and_the_contradiction_is_seen() {
    let Some(test) = migrated().await else { return };
    let (free, blocked) = (Vantage::new(&test, "free", 1).await, Vantage::new(&test, "blocked", 1).await);
    let relay = ScriptedRelay::start(Script::honest(&[], 10)).await;
    let url = known(&test, &relay).await;
    free.look(&url).await;
    relay.set(blocking());
    assert_eq!(blocked.look(&url).await["overall"], "alive");
    assert_eq!(value(&test, WHY).await, "second opinion");
    blocked.look(&url).await;
    assert_eq!(blocked.look(&url).await["state"], "down");
    assert_eq!(value(&test, WHY).await, "vantages disagree");
    assert_eq!(value(&test, OVERALL).await, "alive none");
    assert_eq!(value(&test, HISTORY).await, ">alive");
    let by_vantage =
        pairs(&test, "SELECT v.name, s.state FROM relay_state s JOIN vantage v ON v.id = s.vantage_id").await;
    assert_eq!((by_vantage["free"].as_str(), by_vantage["blocked"].as_str()), ("alive", "down"));
    let reader = handle(&test, Role::Reader);
    let stats = reader.fleet_stats().await.unwrap();
    assert_eq!((stats.relays, stats.alive, stats.suspect, stats.down), (1, 1, 0, 0));
    let line = reader.relay_list("", Some("alive"), None).await.unwrap().lines.remove(0).unwrap();
    assert_eq!(line.vantages, [1, 0, 1]);
    // A vantage that does not look any more vouches for nobody for ever.
    test.execute("UPDATE relay_state SET stands_until = 0 WHERE state = 'alive'").await;
    assert_eq!(value(&test, OVERALL).await, "suspect stale");
    assert_eq!(blocked.look(&url).await["overall"], "down");
}

#[tokio::test]
async fn down_needs_as_many_vantages_as_asked_for_and_coming_back_needs_two_looks() {
    let Some(test) = migrated().await else { return };
    let (one, two) = (Vantage::new(&test, "one", 2).await, Vantage::new(&test, "two", 2).await);
    let relay = ScriptedRelay::start(Script::honest(&[], 10)).await;
    let url = known(&test, &relay).await;
    one.look(&url).await;
    relay.set(blocking());
    for (vantage, state, overall) in [
        (&one, "suspect", "suspect"),
        (&one, "down", "suspect"),
        (&one, "down", "suspect"),
        (&two, "suspect", "suspect"),
        (&two, "down", "down"),
        (&one, "down", "down"),
    ] {
        let report = vantage.look(&url).await;
        assert_eq!(
            (&report["state"], &report["overall"]),
            (&state.into(), &overall.into()),
            "{}",
            vantage.name
        );
    }
    assert_eq!(value(&test, WHY).await, "down, backing off");
    relay.set(Script::honest(&[], 10));
    assert_eq!(two.look(&url).await["overall"], "suspect", "one good look is no proof yet");
    assert_eq!(two.look(&url).await["overall"], "alive");
    assert_eq!(value(&test, HISTORY).await, ">alive alive>suspect suspect>down down>suspect suspect>alive");
    let settled = "SELECT string_agg(after, ' ' ORDER BY id) FROM relay_alert WHERE settles";
    assert_eq!(value(&test, settled).await, "alive down alive");
    assert_eq!(handle(&test, Role::Reader).fleet_stats().await.unwrap().alive, 1);
}

#[tokio::test]
async fn after_a_failed_look_the_next_one_is_another_vantages_while_there_is_one() {
    let Some(test) = migrated().await else { return };
    let (one, two) = (Vantage::new(&test, "one", 2).await, Vantage::new(&test, "two", 2).await);
    let relay = ScriptedRelay::start(blocking()).await;
    let url = known(&test, &relay).await;
    one.attempt(&url, 0).await.unwrap();
    let before = relay.counts().connections;
    for spent in 0..INSIST {
        let error = one.attempt(&url, spent).await.unwrap_err();
        assert!(matches!(&error, JobError::Snooze { why, .. } if why.contains("another vantage")), "{error}");
    }
    assert_eq!(relay.counts().connections, before, "a look that is left to others dials nothing");
    one.attempt(&url, INSIST).await.unwrap();
    two.attempt(&url, 0).await.unwrap();
    // It was the other's turn, and now it is the first one's again.
    one.attempt(&url, 0).await.unwrap();
    test.execute("UPDATE relay_state s SET checked_at = s.checked_at - 10 FROM vantage v WHERE v.id = s.vantage_id AND v.name = 'two'").await;
    one.attempt(&url, 0).await.unwrap_err();
    // A vantage whose way there is broken is no other vantage; nor is one that is gone.
    test.execute("INSERT INTO breaker (network, vantage, level, opened_at, until_at, why, worker_id) VALUES ('clearnet', 'two', 1, now(), now() + interval '1 hour', 'x', 'two')").await;
    one.attempt(&url, 0).await.unwrap();
    test.execute("DELETE FROM breaker").await;
    two.ctx.db.worker_stop("two").await.unwrap();
    one.attempt(&url, 0).await.unwrap();
}

#[tokio::test]
async fn an_outage_of_our_own_network_calls_nobody_down_and_costs_no_uptime() {
    let Some(test) = migrated().await else { return };
    let canary = ScriptedRelay::start(Script::honest(&[], 10)).await;
    let canaries = vec![RelayUrl::parse(&canary.url(), &AddressPolicy::local()).unwrap()];
    let mut vantages = Vec::new();
    for name in ["one", "two"] {
        let mut vantage = Vantage::new(&test, name, 2).await;
        vantage.ctx.egress = Egress::new(canaries.clone());
        vantages.push(vantage);
    }
    let mut urls = Vec::new();
    let mut relays = Vec::new();
    for _ in 0..3 {
        let relay = ScriptedRelay::start(Script::honest(&[], 10)).await;
        let url = known(&test, &relay).await;
        for vantage in &vantages {
            vantage.look(&url).await;
        }
        urls.push(url);
        relays.push(relay);
    }
    // Nothing answers any more, neither relays nor the canary.
    drop(canary);
    let ports: Vec<u16> = relays.iter().map(|relay| relay.address().port()).collect();
    drop(relays);
    let mut mutes = Vec::new();
    for port in ports {
        mutes.push(mute(port).await);
    }
    for url in &urls {
        for _ in 0..3 {
            for vantage in &vantages {
                let error = vantage.attempt(url, INSIST).await.unwrap_err();
                assert!(matches!(error, JobError::Sick { .. }), "{error}");
            }
        }
    }
    // A worker that has just started and has no canary knows nothing: suspect at most, and not counted.
    for vantage in &mut vantages {
        vantage.ctx.egress = Egress::new(Vec::new());
        for _ in 0..3 {
            drop(vantage.attempt(&urls[0], INSIST).await);
        }
    }
    let stats = handle(&test, Role::Reader).fleet_stats().await.unwrap();
    assert_eq!((stats.down, stats.alive + stats.suspect), (0, 3));
    assert_eq!(value(&test, "SELECT count(*)::text FROM relay_state WHERE state = 'down'").await, "0");
    assert_eq!(value(&test, "SELECT sum(checks) || ' ' || sum(up) FROM relay_uptime").await, "6 6");
}

/// Takes connections and says nothing, in place of a relay that has just ended.
pub(crate) async fn mute(port: u16) -> TcpListener {
    for _ in 0..100 {
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return listener;
        }
        // bound: 100 × 10 ms; the relay's tasks are on their way out
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("port {port} does not become free")
}

#[tokio::test]
async fn a_relay_known_to_the_version_before_keeps_its_state_and_its_workers_still_write() {
    let Some(test) = migrated().await else { return };
    let vantage = Vantage::new(&test, "one", 1).await;
    let relay = ScriptedRelay::start(Script::honest(&[], 10)).await;
    let url = known(&test, &relay).await;
    vantage.look(&url).await;
    // As a worker of the version before calls it: without the arguments that came later.
    vantage.ctx.db.job_enqueue(&[job(JobKind::Monitor, url.as_str())]).await.unwrap();
    let claimed = claim_target(&vantage.ctx.db, "one", QUEUE, url.as_str()).await;
    test.execute(&format!(
        "SELECT monitor_finish(ARRAY['{}'], ARRAY['one'], ARRAY[{}], ARRAY['{url}'], 'one', ARRAY['suspect'], ARRAY['silent'], ARRAY[1], ARRAY[0],
            ARRAY[false], ARRAY[extract(epoch FROM now())::bigint], ARRAY[60.0], ARRAY[5], ARRAY['suspect'],
            ARRAY[1], ARRAY['rtt'], ARRAY['timeout'], ARRAY['silent'], ARRAY[NULL]::integer[], ARRAY[NULL]::integer[], ARRAY[NULL]::integer[],
            ARRAY[NULL]::bytea[], ARRAY[NULL]::text[], ARRAY[NULL]::text[])",
        claimed.job, claimed.attempt
    ))
    .await;
    assert_eq!(value(&test, "SELECT state || ' ' || failures FROM relay_state").await, "suspect 1");
    assert_eq!(value(&test, "SELECT checks || ' ' || up FROM relay_uptime_daily").await, "2 1");
}

#[tokio::test]
async fn what_is_judged_is_shown_to_people_and_to_programs() {
    let Some(test) = migrated().await else { return };
    let (one, two) = (Vantage::new(&test, "one", 1).await, Vantage::new(&test, "two", 1).await);
    let relay = ScriptedRelay::start(Script::honest(&[], 10)).await;
    let url = known(&test, &relay).await;
    one.look(&url).await;
    relay.set(blocking());
    two.look(&url).await;
    one.look(&url).await;
    let said = |arguments: &[&str]| {
        let database = test.url(Role::Reader);
        let output = bigbrotr(&[arguments, &["--database-url", &database]].concat());
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{arguments:?}: {printed}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        printed
    };
    let listed = said(&["relay", "list", "--state", "suspect"]);
    assert!(listed.contains("suspect  2 suspect  ws_upgrade_refused"), "{listed}");
    let shown = said(&["relay", "show", url.as_str()]);
    assert!(shown.contains("  two ") && shown.contains("suspect (ws_upgrade_refused)"), "{shown}");
    let uptime = said(&["relay", "uptime", url.as_str()]);
    assert!(uptime.contains("unknown: no failure") && uptime.contains("too few"), "{uptime}");
    let uptime: Value = serde_json::from_str(&said(&["relay", "uptime", url.as_str(), "--json"])).unwrap();
    let vantage = &uptime["vantages"][0];
    assert_eq!(
        (&vantage["vantage"], &vantage["checks"], &vantage["up"]),
        (&"one".into(), &2.into(), &1.into())
    );
    assert_eq!((&vantage["times"]["open"]["n"], &vantage["availability_pct"]), (&1.into(), &Value::Null));
    let alerts = said(&["alerts", url.as_str()]);
    assert!(alerts.contains("alive -> suspect  ws_upgrade_refused  one"), "{alerts}");
}

#[tokio::test]
async fn how_many_must_agree_is_one_number_for_the_whole_fleet() {
    let Some(test) = migrated().await else { return };
    // Two workers whose own configurations disagree.
    let (strict, lax) = (Vantage::new(&test, "strict", 2).await, Vantage::new(&test, "lax", 1).await);
    let relay = ScriptedRelay::start(Script::honest(&[], 10)).await;
    let url = known(&test, &relay).await;
    relay.set(blocking());
    lax.look(&url).await;
    assert_eq!(lax.look(&url).await["overall"], "down", "before a scheduler has spoken, each by itself");
    let limits = shared::db::FleetLimits {
        networks: Vec::new(),
        host_jobs: 100,
        host_spacing: Duration::ZERO,
        block_jobs: 100,
        block_spacing: Duration::ZERO,
        vantages_for_down: Some(2),
    };
    lax.ctx.db.fleet_limits_set(&limits).await.unwrap();
    assert_eq!(lax.look(&url).await["overall"], "suspect");
    strict.look(&url).await;
    assert_eq!(strict.look(&url).await["overall"], "down");
    let again = shared::db::FleetLimits { vantages_for_down: None, ..limits };
    assert_eq!(
        lax.ctx.db.fleet_limits_set(&again).await.unwrap(),
        0,
        "an older scheduler changes nothing of it"
    );
    assert_eq!(lax.look(&url).await["overall"], "down");
}
