//! What is given up because nobody does it any more, what is not, and what a clock that was set back does not hold up.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use scheduler::Scheduler;
use shared::config::Config;
use shared::db::{Actor, Claimed, Db, Finished, NewJob};
use shared::models::{JobKind, LOCAL, Verdict};
use shared::telemetry::Metrics;
use tests::pg::{Role, TestDb};

use super::alerts::{changes, wanted};
use super::fleet::binary;
use super::jobs::{config, context};
use super::operator::says;
use super::scheduler::{round, scheduler};
use super::support::{claim_one, claim_target, handle, job, migrated, ran, register, registration, value};

const LEASE: Duration = Duration::from_secs(60);

async fn finish(db: &Db, claimed: &Claimed, verdict: Verdict) {
    let result = "{}".to_owned();
    let (job, attempt) = (claimed.job.clone(), claimed.attempt);
    let ended = Finished { job, attempt, verdict, delay: Duration::ZERO, result };
    assert_eq!(db.job_finish("w1", &[ended]).await.unwrap().len(), 1);
}

/// A job of a relay behind Tor.
fn onion(kind: JobKind, name: &str) -> NewJob {
    NewJob { network: "tor".to_owned(), ..job(kind, &format!("ws://{name}.onion")) }
}

#[tokio::test]
async fn jobs_of_a_network_that_is_off_and_unserved_are_cancelled_and_come_back_with_it() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let on = |networks: &[&str]| networks.iter().map(|network| (*network).to_owned()).collect::<Vec<_>>();
    test.execute("INSERT INTO schedule SELECT k, 'ws://' || n || '.onion', 'tor', now(), 60, 'new' FROM unnest(ARRAY['monitor', 'sync']) k, unnest(ARRAY['a', 'b']) n").await;
    let enabled: BTreeMap<String, String> = [
        ("BIGBROTR_NETWORK_TOR_ENABLED", "true"),
        ("BIGBROTR_NETWORK_TOR_PROXY", "127.0.0.1:1"),
        ("DATABASE_URL", "postgres://nobody@nowhere/nothing"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let options = Config::load(None, &enabled).unwrap().scheduler_options();
    let mut served = Scheduler::new(handle(&test, Role::Writer), Metrics::new(), options);
    round(&mut served).await;
    db.job_enqueue(&[job(JobKind::Sync, "wss://clear.example"), onion(JobKind::Monitor, "later")])
        .await
        .unwrap();
    let due = "SELECT string_agg(target, ' ' ORDER BY target) FROM apalis.jobs WHERE network = 'tor'";
    let all = "ws://a.onion ws://a.onion ws://b.onion ws://b.onion ws://later.onion";
    assert_eq!(value(&test, due).await, all);
    let (mut off, _) = scheduler(&test.url(Role::Writer));
    assert_eq!(db.queue_retire(&on(&["clearnet"]), 100).await.unwrap(), 0, "workers have time to come");
    test.execute(
        "UPDATE apalis.jobs SET run_at = now() - interval '11 minutes' WHERE target <> 'ws://later.onion'",
    )
    .await;
    assert_eq!(db.queue_retire(&on(&["clearnet", "tor"]), 100).await.unwrap(), 0, "its proxy may be down");
    let mut tor = registration("w2", LEASE);
    tor.queues = vec![("sync.tor".to_owned(), 8)];
    db.job_heartbeat(&tor).await.unwrap();
    assert_eq!(db.queue_retire(&on(&["clearnet"]), 1).await.unwrap(), 1, "as many as asked for");
    // Another scheduler leads, and has it off: what some worker serves all the same is left to it.
    test.execute("UPDATE leader SET until = now()").await;
    round(&mut off).await;
    assert_eq!(value(&test, due).await, "ws://a.onion ws://b.onion ws://later.onion");
    db.worker_stop("w2").await.unwrap();
    assert_eq!(db.queue_retire(&on(&["clearnet"]), 100).await.unwrap(), 0, "it may start anew");
    test.execute("UPDATE apalis.workers SET lease_until = lease_until - interval '11 minutes'").await;
    assert_eq!(db.queue_retire(&on(&["clearnet"]), 100).await.unwrap(), 2);
    assert_eq!(value(&test, due).await, "ws://later.onion");
    assert_eq!(value(&test, "SELECT string_agg(DISTINCT state || ' ' || (result ->> 'error'), ',') || ' ' || count(*) FROM job_history").await,
               "cancelled the network is switched off and nobody serves it 4");
    assert_eq!(value(&test, "SELECT count(*)::text FROM apalis.jobs WHERE network = 'clearnet'").await, "1");
    // And on again.
    test.execute("UPDATE leader SET until = now(); UPDATE schedule SET due_at = now() WHERE network = 'tor'")
        .await;
    round(&mut served).await;
    assert_eq!(value(&test, due).await, all);
}

const TASKS: &str = "SELECT (SELECT count(*) FROM schedule WHERE target = 'alerts') || ' ' || (SELECT count(*) FROM apalis.jobs WHERE target = 'alerts')
    || ' ' || (SELECT count(*) FROM relay_alert WHERE delivery = 'pending')";
/// A day of [`waiting`] is over, by the server's clock.
const OVER: &str =
    "SELECT alert_retire(365, false, (SELECT max(finished_at) FROM job_history) + interval '30 minutes')";
/// And another one, in which nobody was at work.
const A_DAY_LATER: &str = "SELECT alert_retire(365, false, (SELECT max(finished_at) FROM job_history) + interval '23 hours 20 minutes')";

/// Changes that wait for a webhook which some worker knew, the task enqueued by a scheduler that knows none, and a fleet at
/// work since, for nearly a day.
async fn waiting() -> Option<(TestDb, Db)> {
    let test = migrated().await?;
    wanted(&context(&test, config())).await;
    changes(&test).await;
    let (mut scheduler, _) = scheduler(&test.url(Role::Writer));
    round(&mut scheduler).await;
    assert_eq!(value(&test, TASKS).await, "1 1 2", "a scheduler that knows no webhook gives nothing up");
    let db = handle(&test, Role::Writer);
    let (claimed, _) = claim_one(&db, "w1", JobKind::Refresh, "views").await;
    finish(&db, &claimed, Verdict::Complete).await;
    test.execute(
        "UPDATE job_history SET finished_at = finished_at - interval '22 hours 50 minutes';
         UPDATE apalis.jobs SET enqueued_at = enqueued_at - interval '23 hours 45 minutes' WHERE target = 'alerts'",
    )
    .await;
    let (claimed, _) = claim_one(&db, "w1", JobKind::Refresh, "others").await;
    finish(&db, &claimed, Verdict::Complete).await;
    Some((test, db))
}

#[tokio::test]
async fn alerts_that_nobody_is_there_to_tell_are_given_up_after_a_day_and_not_while_their_queue_is_held() {
    let Some((test, db)) = waiting().await else { return };
    test.execute(A_DAY_LATER).await;
    assert_eq!(value(&test, TASKS).await, "1 1 2", "a fleet that was off has left nothing undone");
    let actor = Actor { name: "ann".to_owned(), why: String::new() };
    for mode in ["drain", "pause"] {
        db.queue_hold(&["*.local".to_owned()], mode, &actor).await.unwrap();
        test.execute(OVER).await;
        assert_eq!(value(&test, TASKS).await, "1 1 2", "{mode}");
        db.queue_hold(&["*.local".to_owned()], "resume", &actor).await.unwrap();
    }
    let mut worker = registration("w2", Duration::from_secs(2 * 86_400));
    worker.queues = vec![(format!("monitor.{LOCAL}"), 1)];
    db.job_heartbeat(&worker).await.unwrap();
    test.execute(OVER).await;
    assert_eq!(value(&test, TASKS).await, "1 1 2", "somebody is there, and will say whether it knows one");
    db.worker_stop("w2").await.unwrap();
    db.alert_retire(365, false).await.unwrap();
    assert_eq!(value(&test, TASKS).await, "1 1 2", "it is not a day yet");
    test.execute(OVER).await;
    assert_eq!(value(&test, TASKS).await, "0 0 0");
    assert_eq!(value(&test, "SELECT count(*)::text FROM relay_alert WHERE delivery = 'given_up'").await, "2");
}

#[tokio::test]
async fn alerts_are_given_up_when_all_who_took_the_task_for_a_day_knew_no_webhook_and_kept_when_one_did() {
    for (verdicts, kept) in
        [(&[Verdict::Cancel][..], "0 0 0"), (&[Verdict::Complete, Verdict::Cancel][..], "1 0 2")]
    {
        let Some((test, db)) = waiting().await else { return };
        for verdict in verdicts {
            register(&db, "w1", LEASE).await;
            let task = NewJob { network: LOCAL.to_owned(), ..job(JobKind::Monitor, "alerts") };
            db.job_enqueue(&[task]).await.unwrap();
            let claimed = claim_target(&db, "w1", "monitor.local", "alerts").await;
            finish(&db, &claimed, *verdict).await;
        }
        db.alert_retire(365, false).await.unwrap();
        assert_eq!(value(&test, TASKS).await, "1 0 2", "it is not a day yet");
        test.execute("UPDATE job_history SET finished_at = finished_at + interval '10 minutes' WHERE state = 'complete' AND target = 'alerts'").await;
        test.execute("SELECT alert_retire(365, false, (SELECT max(finished_at) FROM job_history WHERE state = 'cancelled') + interval '24 hours')").await;
        assert_eq!(value(&test, TASKS).await, kept, "{verdicts:?}");
    }
}

#[tokio::test]
async fn a_servers_clock_that_is_set_back_holds_up_neither_the_lead_nor_jobs_nor_the_size_of_the_archive() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let lead = async |who| db.leader_claim("scheduler", who, Duration::from_secs(600)).await.unwrap();
    assert_eq!((lead("a").await, lead("b").await), (Some(1), None), "the longest lease is respected");
    for worker in ["lives", "gone"] {
        claim_one(&db, worker, JobKind::Refresh, worker).await;
    }
    db.archive_room().await.unwrap();
    // What everything looks like three hours back.
    test.execute("UPDATE leader SET until = until + interval '3 h';
                  UPDATE apalis.workers SET last_seen = last_seen + interval '3 h', lease_until = lease_until + interval '3 h';
                  UPDATE apalis.jobs SET lock_at = lock_at + interval '3 h', run_deadline = run_deadline + interval '3 h';
                  UPDATE archive_size SET bytes = 0, measured_at = now() + interval '3 h'").await;
    let (_, said) = says(&test, Role::Reader, &["doctor"]);
    for about in ["scheduler", "worker"] {
        let told =
            |line: &str| line.starts_with("problem") && line.contains(about) && line.contains("set back");
        assert!(said.lines().any(told), "{about}: {said}");
    }
    assert_eq!((lead("b").await, lead("a").await), (Some(2), None));
    assert_eq!(db.job_rescue().await.unwrap().again, 0, "who lives has time to say so");
    let ends = "SELECT bool_and(lease_until BETWEEN now() + interval '50 s' AND now() + interval '61 s')::text FROM apalis.workers";
    assert_eq!(value(&test, ends).await, "true");
    db.job_heartbeat(&registration("lives", Duration::from_secs(180))).await.unwrap();
    let running = "SELECT string_agg(target, ' ') FROM apalis.jobs WHERE status = 'Running'";
    test.execute("SELECT job_rescue(1000, now() + interval '61 s', false)").await;
    assert_eq!(value(&test, running).await, "lives");
    test.execute("SELECT job_rescue(1000, now() + interval '61 s')").await;
    assert_eq!(value(&test, running).await, "", "an attempt runs no longer than it may");
    for sql in ["SELECT bytes FROM archive_room()", "SELECT bytes FROM sync_begin(1)"] {
        test.execute("UPDATE archive_size SET bytes = 0, measured_at = now() + interval '1 h'").await;
        test.execute(sql).await;
        assert_eq!(value(&test, "SELECT (bytes > 0)::text FROM archive_size").await, "true", "{sql}");
    }
}

#[test]
fn who_signs_nothing_needs_no_key_whatever_the_configuration_wants_signed() {
    let said = |program: &str, arguments: &[&str]| {
        ran(Command::new(binary(program)).args(arguments).env_clear().envs([
            ("DATABASE_URL", "postgres://bigbrotr_writer@127.0.0.1:1/bigbrotr"),
            ("BIGBROTR_IDENTITY_AUTH", "true"),
            ("BIGBROTR_MONITOR_WRITE_PROBE", "all"),
        ]))
    };
    let (ok, told) = said("scheduler", &["run", "--print-config"]);
    assert!(ok, "{told}");
    // Nobody listens there: it got as far as dialling.
    let (_, told) = said("bigbrotr", &["top"]);
    assert!(told.contains("not reachable") && !told.contains("needs a key"), "{told}");
    let (ok, told) = said("worker", &["run"]);
    for key in ["identity.auth", "monitor.write_probe"] {
        assert!(!ok && told.contains(&format!("{key} needs a key of ours")), "{told}");
    }
}
