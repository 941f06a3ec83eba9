//! What a pass wanted and did not come to is a recorded gap, whichever way it reads.

use std::time::Duration;

use shared::jobs::JobsConfig;
use tests::factory::Factory;
use tests::scripted::{Extra, Script, Sets};

use super::jobs::{config, context};
use super::proof::{gaps, start, start_comparing, sync};
use super::support::{migrated, value};

/// The disk budget is used up by the first proof that is stored: what is to be read after that waits for the next pass.
const FILL_UP: &str = "CREATE FUNCTION fill_up() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN UPDATE archive_setting SET max_bytes = 1; RETURN NULL; END';
    CREATE TRIGGER fill_up AFTER INSERT OR UPDATE ON coverage FOR EACH ROW WHEN (NEW.grade IN ('walked', 'reconciled')) EXECUTE FUNCTION fill_up()";
const ROOM: &str =
    "DROP TRIGGER fill_up ON coverage; DROP FUNCTION fill_up(); UPDATE archive_setting SET max_bytes = NULL";
const SHARE: &str =
    "SELECT (proved_share = 1) || ' ' || (until_at - since_at >= 7 * 86400 - 60) FROM relay_coverage_share";

fn hasty() -> JobsConfig {
    JobsConfig { rescan: Duration::ZERO, budget_look: Duration::ZERO, ..config() }
}

#[tokio::test]
async fn what_a_reconciliation_does_not_come_to_is_a_gap_of_the_stretch_whose_share_is_told() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, hasty());
    let events = Factory::new(411).events(600);
    let sets = Sets { refuses_above: Some(150), ..Sets::default() };
    let (_relay, url) = start_comparing(&test, &ctx, Script::honest(&events, 500), Extra::Works, sets).await;
    test.execute(FILL_UP).await;
    let report = sync(&ctx, &url).await;
    assert_eq!(report["end"], "more to read", "{report}");
    assert!(report["proved_share"].as_f64() > Some(0.0), "{report}");
    assert!(gaps(&test).await.starts_with("unknown/stopped"), "{}", gaps(&test).await);
    assert_eq!(value(&test, SHARE).await, "false true");
    test.execute(ROOM).await;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["end"], gaps(&test).await.as_str()), (&"up to date".into(), ""), "{report}");
    assert_eq!(value(&test, SHARE).await, "true true");
}

#[tokio::test]
async fn an_older_window_that_a_pass_does_not_begin_with_is_a_gap_as_well() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, JobsConfig { archive_days: Some(1), ..hasty() });
    let events = Factory::new(412).events(300);
    let (_relay, url) = start(&ctx, Script::honest(&events, 500)).await;
    assert_eq!((&sync(&ctx, &url).await["end"], gaps(&test).await.as_str()), (&"up to date".into(), ""));
    // More of the past is wanted ten minutes later, and the time ends with what is new.
    test.execute("UPDATE coverage SET until_at = until_at - 600").await;
    test.execute(FILL_UP).await;
    let older = context(&test, hasty());
    assert_eq!(sync(&older, &url).await["end"], "more to read");
    assert!(gaps(&test).await.starts_with("unknown/stopped"), "{}", gaps(&test).await);
    assert_eq!(value(&test, SHARE).await, "false true");
    test.execute(ROOM).await;
    sync(&older, &url).await;
    assert_eq!((gaps(&test).await.as_str(), value(&test, SHARE).await.as_str()), ("", "true true"));
}
