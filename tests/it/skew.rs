//! Processes whose wall clock is ten minutes off. Every time of the queue is the database's: it must not matter.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use tests::journal::{read, uptime};
use tests::pg::Role;

use super::scene::{COMPLETE, Scene};
use super::support::value;

/// Gives what `command` starts another wall clock; what it measures by the monotonic one stays right.
fn skew(command: &mut Command, library: &Path, offset: &str) {
    command.env("LD_PRELOAD", library).env("FAKETIME", offset).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
}

/// By how many minutes the clocks of the journal's workers are off, as they themselves saw it.
fn minutes_off(journal: &Path) -> BTreeSet<i64> {
    let now = shared::clock::unix_now();
    let ago = |at: u64| i64::try_from((uptime() - at) / 100).unwrap();
    let off: BTreeMap<u32, i64> =
        read(journal).iter().map(|entry| (entry.pid, entry.clock - (now - ago(entry.at)))).collect();
    off.into_values().map(|seconds| (seconds + 30).div_euclid(60)).collect()
}

#[tokio::test]
async fn workers_ten_minutes_ahead_and_behind_lose_double_and_hasten_nothing() {
    let Some(mut scene) = Scene::new().await else { return };
    let Some(library) = tests::env::faketime() else { return };
    scene.test.execute("CREATE TABLE began AS SELECT now() AS at").await;
    // One attempt each: a lease that ended falsely would be the end of its jobs, which take longer than a lease.
    scene.enqueue((0..24).map(|i| format!("t{i}")), 60, 1).await;
    scene
        .test
        .execute(
            "SELECT job_enqueue(ARRAY['refresh', 'refresh'], ARRAY['local', 'local'], ARRAY['t-soon', 'later'],
                                ARRAY[now() + interval '3 seconds', now() + interval '5 minutes'], ARRAY[60, 60], ARRAY[60, 60], ARRAY[1, 1])",
        )
        .await;
    let _scheduler = scene.scheduler();
    let mut fleet = vec![scene.worker(2_500, 1)];
    for offset in ["+10m", "-10m"] {
        let mut command = scene.worker_command(2_500, 1);
        skew(&mut command, &library, offset);
        fleet.push(scene.start(&command));
    }
    scene.until(COMPLETE, "25 25", 40).await;
    scene.attempts_are_apart();
    assert_eq!(minutes_off(&scene.journal()), BTreeSet::from([-10, 0, 10]), "each worked, by its own clock");
    let count = async |sql| value(&scene.test, sql).await;
    assert_eq!(
        count("SELECT count(*)::text FROM job_history WHERE state <> 'complete' OR attempt <> 1").await,
        "0"
    );
    assert_eq!(
        count(
            "SELECT count(*)::text FROM job_history h CROSS JOIN began b
             WHERE NOT (b.at <= h.enqueued_at AND h.enqueued_at <= h.started_at AND h.due_at <= h.started_at
                        AND h.started_at + interval '2.4 seconds' < h.finished_at AND h.finished_at <= clock_timestamp())"
        )
        .await,
        "0",
        "times are the database's"
    );
    assert_eq!(
        count(
            "SELECT count(*)::text FROM apalis.workers w CROSS JOIN began b
             WHERE w.lease_until > now() AND w.lease_until <= now() + interval '2 seconds' AND w.started_at BETWEEN b.at AND now()"
        )
        .await,
        "3"
    );
    assert_eq!(
        count("SELECT string_agg(target || ' ' || status || ' ' || attempts, ', ') FROM apalis.jobs WHERE kind = 'refresh'").await,
        "later Pending 0"
    );
}

#[tokio::test]
async fn schedulers_ten_minutes_ahead_and_behind_lead_by_the_databases_clock() {
    let Some(mut scene) = Scene::new().await else { return };
    let Some(library) = tests::env::faketime() else { return };
    scene.test.execute("INSERT INTO schedule SELECT 'sync', 'wss://later' || n || '.example', 'clearnet', now() + interval '5 minutes', 60, 'new' FROM generate_series(1, 50) n").await;
    // Longer than the lease, with one attempt: who rescues by another clock kills them.
    scene.enqueue((0..12).map(|i| format!("t{i}")), 60, 1).await;
    let _worker = scene.worker(2_500, 1);
    let mut leader = None;
    for (term, offset) in ["+10m", "-10m"].into_iter().enumerate() {
        let mut command = scene.scheduler_command();
        skew(&mut command, &library, offset);
        let next = scene.start(&command);
        // The one before it ends as by SIGKILL: its lead ends by the database's clock.
        drop(leader.replace(next));
        let wanted = (term + 1).to_string();
        scene.until("SELECT coalesce(max(term), 0)::text FROM leader WHERE until > now() AND until <= now() + interval '2 seconds'", &wanted, 10).await;
        let log = std::fs::read_to_string(scene.last_log()).unwrap();
        let said = log.split_whitespace().next().unwrap().to_owned();
        let off = sqlx::query_scalar::<_, String>(
            "SELECT round(extract(epoch FROM $1::timestamptz - now()) / 60)::text || 'm'",
        )
        .bind(said)
        .fetch_one(&mut scene.test.connect(Role::Superuser).await)
        .await
        .unwrap();
        assert_eq!(off, offset.trim_start_matches('+'), "its clock is off");
        scene.test.execute("INSERT INTO schedule SELECT 'sync', 'wss://r' || n || '.example', 'clearnet', now(), 60, 'new' FROM generate_series((SELECT count(*) FROM apalis.jobs WHERE kind = 'sync') + 1, (SELECT count(*) FROM apalis.jobs WHERE kind = 'sync') + 50) n").await;
        let all = (50 * (term + 1)).to_string();
        scene
            .until(
                "SELECT count(*)::text FROM apalis.jobs WHERE kind = 'sync' AND target LIKE 'wss://r%'",
                &all,
                10,
            )
            .await;
    }
    scene.until(COMPLETE, "12 12", 30).await;
    let count = async |sql| value(&scene.test, sql).await;
    assert_eq!(
        count("SELECT count(*)::text FROM job_history WHERE state <> 'complete' OR attempt <> 1").await,
        "0"
    );
    assert_eq!(
        count("SELECT count(*)::text FROM apalis.jobs WHERE kind = 'sync'").await,
        "100",
        "what is due in five minutes is not due"
    );
    assert_eq!(count("SELECT (max(enqueued_at) <= now() AND min(enqueued_at) > now() - interval '1 minute')::text FROM apalis.jobs WHERE kind = 'sync'").await, "true");
}
