//! What is published from several vantages.

use shared::jobs::publish::TASK;
use shared::jobs::{Ctx, JobsConfig};
use tests::pg::TestDb;
use tests::programs::{Kind, Program};
use tests::scripted::{Answer, Script, ScriptedRelay};

use super::jobs::context;
use super::publish::{honest, next_second, publishing, run, watched};
use super::support::{migrated, value};

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
    let there = context(&test, JobsConfig { vantage: "elsewhere".to_owned(), ..publishing(&[&local.url]) });
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
