//! What a worker remembers to be archived: it saves questions, and never the truth.

use serde_json::Value;
use shared::jobs::{Ctx, JobError, Verifier};
use shared::models::JobKind;
use tests::factory::Factory;
use tests::scripted::{Script, ScriptedRelay, Stored};

use super::jobs::{config, context, known_relay, run};
use super::support::{migrated, value};

/// A pass over a relay of its own, which stays, so that no other one gets its port.
async fn sync(ctx: &Ctx, script: Script) -> (ScriptedRelay, Result<Value, JobError>) {
    let relay = ScriptedRelay::start(script).await;
    let url = known_relay(&ctx.db, &relay).await;
    let report = run(ctx, JobKind::Sync, url.as_str()).await;
    (relay, report)
}

#[tokio::test]
async fn what_another_relay_has_delivered_is_not_looked_up_again() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(81).events(300);
    let (_first, report) = sync(&ctx, Script::honest(&events[..250], 100)).await;
    report.unwrap();
    test.execute(
        "REVOKE EXECUTE ON FUNCTION event_known FROM PUBLIC;
         REVOKE EXECUTE ON FUNCTION event_known FROM bigbrotr_writer",
    )
    .await;
    let (_second, report) = sync(&ctx, Script::honest(&events[..250], 100)).await;
    let report = report.unwrap();
    assert_eq!((&report["new_events"], &report["new_observations"]), (&0.into(), &250.into()), "{report}");
    // What it does not remember it has to ask for.
    let (_third, refused) = sync(&ctx, Script::honest(&events, 500)).await;
    let refused = refused.unwrap_err();
    assert!(refused.to_string().contains("event_known"), "{refused}");
}

#[tokio::test]
async fn an_id_that_comes_with_another_time_is_read_in_full() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(82).events(40);
    let (_first, report) = sync(&ctx, Script::honest(&events, 100)).await;
    report.unwrap();
    // Some of them a second earlier than they are, with their true ids and signatures.
    let moved = events.iter().enumerate().map(|(i, event)| {
        if i % 4 > 0 {
            return Stored::from(event);
        }
        let (at, body) = (event.created_at.as_secs(), event.as_json());
        let (from, to) = (format!("\"created_at\":{at},"), format!("\"created_at\":{},", at - 1));
        assert!(body.contains(&from), "{body}");
        Stored::raw(body.replacen(&from, &to, 1))
    });
    // That they were verified a moment ago is forgotten, that they are archived is not.
    let ctx = Ctx { verifier: Verifier::new(2), ..ctx };
    let (_second, report) = sync(&ctx, Script::of_stored(moved.collect(), 100)).await;
    let report = report.unwrap();
    assert!(report["forged"].as_u64().unwrap() >= 10, "{report}");
    assert_eq!((&report["new_events"], &report["new_observations"]), (&0.into(), &30.into()), "{report}");
    let stray = "SELECT count(*)::text FROM event_relay o WHERE NOT EXISTS (SELECT FROM event e WHERE e.event_key = o.event_key)";
    assert_eq!(value(&test, stray).await, "0");
}

#[tokio::test]
async fn what_was_removed_since_is_fetched_again() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let events = Factory::new(83).events(50);
    let (_first, report) = sync(&ctx, Script::honest(&events, 100)).await;
    report.unwrap();
    test.execute("DELETE FROM event_relay WHERE event_key < (SELECT max(event_key) FROM event)").await;
    assert_eq!(ctx.db.orphan_event_delete(100).await.unwrap(), 49);
    let relay = ScriptedRelay::start(Script::honest(&events, 100)).await;
    let url = known_relay(&ctx.db, &relay).await;
    // They are remembered, and are not there: the page is refused, and looked up after all.
    let report = run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    assert_eq!((&report["new_events"], &report["new_observations"]), (&49.into(), &50.into()), "{report}");
    // The oldest comes twice, and a dozen in a sample.
    assert_eq!((&report["delivered"], &report["known"]), (&62.into(), &13.into()), "{report}");
    let held = "SELECT (SELECT count(*) FROM event) || ' ' || (SELECT count(*) FROM event_relay)";
    assert_eq!(value(&test, held).await, "50 51");
}
