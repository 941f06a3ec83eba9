//! What is published from several vantages: under one key, and under a key for each.

use std::time::Duration;

use shared::db::{NewJob, Registration};
use shared::jobs::publish::TASK;
use shared::jobs::{Attempt, Ctx, Handler, JobsConfig};
use shared::models::{Fence, JobKind, LOCAL};
use shared::nips::Keys;
use tests::pg::TestDb;
use tests::programs::{Kind, Program};
use tests::scripted::{Answer, Script, ScriptedRelay};
use tokio_util::sync::CancellationToken;

use super::jobs::context;
use super::publish::{honest, next_second, publishing, run, watched};
use super::support::{claim_target, job, migrated, pairs, value};

/// A worker at another place, which signs with the same key, or with the one of this digit.
fn elsewhere(test: &TestDb, relays: &[&str], key: Option<char>) -> Ctx {
    let mut jobs = JobsConfig { vantage: "elsewhere".to_owned(), ..publishing(relays) };
    if let (Some(digit), Some(publishing)) = (key, &mut jobs.publish) {
        publishing.keys = Keys::parse(&digit.to_string().repeat(64)).unwrap();
    }
    context(test, jobs)
}

/// The kinds that are said of relays.
async fn said(test: &TestDb) -> String {
    let kinds = "SELECT string_agg(kind::text, ' ' ORDER BY kind) FROM publication WHERE kind IN (5, 30166)";
    value(test, kinds).await
}

async fn look(ctx: &Ctx, relay: &ScriptedRelay, script: Script, url: &str) {
    relay.set(script);
    next_second().await;
    run(ctx, url).await.unwrap();
}

#[tokio::test]
async fn what_only_one_vantage_takes_for_no_relay_is_not_taken_back() {
    let Some(test) = migrated().await else { return };
    let Some(local) = Program::start(Kind::Local).await else { return };
    let here = context(&test, publishing(&[&local.url]));
    let there = elsewhere(&test, &[&local.url], None);
    let (relay, watched) = watched(&here, honest()).await;
    run(&there, watched.as_str()).await.unwrap();
    run(&here, TASK).await.unwrap();
    assert_eq!(said(&test).await, "30166");
    let garbage = || honest().answering(Answer::Garbage);
    for _ in 0..3 {
        look(&here, &relay, garbage(), watched.as_str()).await;
    }
    assert_eq!(said(&test).await, "30166", "the other one has it alive");
    // Whose word has run out says nothing any more.
    test.execute("UPDATE relay_state SET stands_until = 1 WHERE state = 'alive'").await;
    look(&here, &relay, garbage(), watched.as_str()).await;
    assert_eq!(said(&test).await, "5");
}

/// One round of the outbox by a worker of this vantage, which looks at relays as well.
async fn publish(test: &TestDb, ctx: &Ctx) {
    let (db, vantage) = (&ctx.db, ctx.config.vantage.as_str());
    let registration = Registration {
        worker: vantage.to_owned(),
        lease: Duration::from_secs(60),
        vantage: vantage.to_owned(),
        queues: vec![("monitor.clearnet".to_owned(), 8), ("monitor.local".to_owned(), 1)],
        traffic: Vec::new(),
        listens: false,
    };
    db.job_heartbeat(&registration).await.unwrap();
    db.job_enqueue(&[NewJob { network: LOCAL.to_owned(), ..job(JobKind::Monitor, TASK) }]).await.unwrap();
    let claimed = claim_target(db, vantage, "monitor.local", TASK).await;
    let fence = Fence::new(claimed.job.clone(), vantage.to_owned(), claimed.attempt);
    let network = claimed.network;
    let target = TASK.to_owned();
    let stop = CancellationToken::new();
    next_second().await;
    ctx.run(Attempt { kind: JobKind::Monitor, network, target, fence, last: false, stop }).await.unwrap();
    test.execute("DELETE FROM apalis.jobs").await;
}

/// What each key says of how often it looks, seconds.
const FREQUENCIES: &str = "SELECT encode(p.pubkey, 'hex'), t ->> 1 FROM publication p
    CROSS JOIN jsonb_array_elements(p.event::jsonb -> 'tags') t WHERE p.kind = 10166 AND t ->> 0 = 'frequency'";

async fn frequencies<const N: usize>(test: &TestDb, of: [&Ctx; N]) -> [String; N] {
    let said = pairs(test, FREQUENCIES).await;
    of.map(|ctx| said[&ctx.config.publish.as_ref().unwrap().keys.pubkey_hex()].clone())
}

#[tokio::test]
async fn each_key_announces_how_often_its_own_vantages_look() {
    let Some(test) = migrated().await else { return };
    let nowhere = ["ws://127.0.0.1:1"];
    let here = context(&test, publishing(&nowhere));
    let there = elsewhere(&test, &nowhere, Some('5'));
    publish(&test, &here).await;
    assert_eq!(frequencies(&test, [&here]).await, ["3600"], "alone");
    publish(&test, &there).await;
    publish(&test, &here).await;
    assert_eq!(frequencies(&test, [&here, &there]).await, ["7200", "7200"]);
    // The other one takes our key: each look is published under it again.
    publish(&test, &elsewhere(&test, &nowhere, None)).await;
    assert_eq!(frequencies(&test, [&here]).await, ["3600"]);
    publish(&test, &here).await;
    assert_eq!(frequencies(&test, [&here]).await, ["3600"]);
    // And a third one, with a key of its own, which is gone again later.
    let own = elsewhere(&test, &nowhere, Some('3'));
    let third = context(&test, JobsConfig { vantage: "third".to_owned(), ..own.config.as_ref().clone() });
    publish(&test, &third).await;
    publish(&test, &here).await;
    // Two looks in three: rounded up, since a reader takes what is older for gone.
    assert_eq!(frequencies(&test, [&here, &third]).await, ["7200", "10800"]);
    let gone =
        "UPDATE apalis.workers SET lease_until = now() - interval '11 minutes' WHERE vantage = 'third'";
    test.execute(gone).await;
    publish(&test, &here).await;
    assert_eq!(frequencies(&test, [&here]).await, ["3600"]);
}
