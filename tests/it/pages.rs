//! How much is asked for in one page, and what pages and comparisons may hold together.

use std::time::Duration;

use serde_json::Value;
use shared::jobs::{Attempt, Ctx, Handler as _, JobsConfig, PageRoom};
use shared::models::{JobKind, Measured, RelayUrl};
use tests::factory::Factory;
use tests::pg::{Role, TestDb};
use tests::scripted::{Extra, Script, Sets, Speech};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::jobs::{config, context, run};
use super::proof::{gaps, held, start, start_comparing, sync};
use super::support::{claim_one, migrated, value};

/// What a comparison and the largest page take.
const SET: u64 = 4 << 20;
const PAGE: u64 = 16 << 20;

/// A thousand events at once take their time on a busy machine.
fn patient() -> JobsConfig {
    JobsConfig { page_idle: Duration::from_secs(10), page_total: Duration::from_secs(60), ..config() }
}

/// Notes of a relay that its pages are cut at so many, as a survey would.
async fn cut_at(test: &TestDb, url: &RelayUrl, limit: u32) {
    let measured = Measured { max_limit: Some(limit), page_max: limit, ..Measured::default() };
    let mut connection = test.connect(Role::Superuser).await;
    sqlx::query(
        "INSERT INTO relay_capability (relay_id, measured_at, measured) SELECT id, 1, $2::jsonb FROM relay WHERE url = $1",
    )
    .bind(url.as_str())
    .bind(serde_json::to_string(&measured).unwrap())
    .execute(&mut connection)
    .await
    .unwrap();
}

/// The limits of these requests, but for those that check something.
fn limits(requests: &[Value]) -> Vec<u64> {
    requests.iter().filter_map(|filter| filter["limit"].as_u64()).filter(|limit| *limit > 100).collect()
}

#[tokio::test]
async fn a_relay_that_serves_a_thousand_in_a_page_is_asked_for_a_thousand() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, patient());
    let (count, cap) = (17_000, 1_000);
    let (relay, url) = start(&ctx, Script::honest(&Factory::new(421).events(count), cap)).await;
    run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap();
    let before = relay.requests().len();
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["new_events"], &report["proved_share"]), (&count.into(), &1.0.into()), "{report}");
    assert_eq!(gaps(&test).await, "");
    let asked = &relay.requests()[before..];
    assert!(limits(asked).iter().all(|limit| *limit == 1_000), "{asked:?}");
    assert!(asked.len() * 10 <= 13 * count / cap, "{} requests", asked.len());
}

#[tokio::test]
async fn a_relay_that_gives_less_where_more_is_asked_for_is_asked_for_less() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, patient());
    let events = Factory::new(422).events(3_000);
    let speech = Speech { above_cap: Some(250), ..Speech::default() };
    let (relay, url) = start(&ctx, Script::honest(&events, 500).speaking(speech)).await;
    // It served a thousand when it was looked at last.
    cut_at(&test, &url, 1_000).await;
    let report = sync(&ctx, &url).await;
    assert_eq!((&report["new_events"], &report["proved_share"]), (&3_000.into(), &1.0.into()), "{report}");
    let limits = limits(&relay.requests());
    assert_eq!(limits[..2], [1_000, 1_000]);
    assert!(limits[2..].iter().all(|limit| *limit == 500), "{limits:?}");
    assert!(relay.counts().reqs <= 12, "{limits:?}");
}

/// Begins a pass of each; they run until the set is dropped.
async fn begin(ctx: &Ctx, urls: &[RelayUrl]) -> JoinSet<Value> {
    let mut passes = JoinSet::new();
    for (n, url) in urls.iter().enumerate() {
        let (claimed, fence) = claim_one(&ctx.db, &format!("w{n}"), JobKind::Sync, url.as_str()).await;
        let (network, target) = (claimed.network, url.to_string());
        let stop = CancellationToken::new();
        let attempt = Attempt { kind: JobKind::Sync, network, target, fence, last: false, stop };
        let ctx = ctx.clone();
        passes.spawn(async move { ctx.run(attempt).await.unwrap() });
    }
    passes
}

#[tokio::test]
async fn a_comparison_has_its_share_of_what_pages_may_hold_before_it_begins() {
    let Some(test) = migrated().await else { return };
    let ctx = Ctx { pages: PageRoom::new(1), ..context(&test, config()) };
    let events = Factory::new(423).events(100);
    let script = Script::honest(&events, 500);
    let (relay, url) = start_comparing(&test, &ctx, script, Extra::Silent, Sets::default()).await;
    assert_eq!(ctx.pages.free(), PAGE + SET);
    let mut passes = begin(&ctx, std::slice::from_ref(&url)).await;
    // bound: the wait for an answer, 10 s
    while relay.counts().extras == 0 {
        assert!(passes.try_join_next().is_none());
        tokio::task::yield_now().await;
    }
    assert_eq!(ctx.pages.free(), PAGE);
    passes.shutdown().await;
    assert_eq!(ctx.pages.free(), PAGE + SET);
}

#[tokio::test]
async fn relays_that_are_compared_at_once_in_the_smallest_room_come_to_their_end() {
    let Some(test) = migrated().await else { return };
    let ctx = Ctx { pages: PageRoom::new(1), ..context(&test, patient()) };
    let events = Factory::new(424).events(400);
    let (mut relays, mut urls) = (Vec::new(), Vec::new());
    for n in 0..4 {
        let sets = Sets { refuses_above: Some(150), ..Sets::default() };
        let script = Script::honest(&events[n * 10..], 500);
        let (relay, url) = start_comparing(&test, &ctx, script, Extra::Works, sets).await;
        relays.push(relay);
        urls.push(url);
    }
    let reports = begin(&ctx, &urls).await.join_all().await;
    for report in reports {
        assert_eq!(
            (&report["end"], &report["proved_share"]),
            (&"up to date".into(), &1.0.into()),
            "{report}"
        );
        assert!(report["comparisons"].as_u64() > Some(2), "{report}");
    }
    assert_eq!((held(&test).await.as_str(), ctx.pages.free()), ("400", PAGE + SET));
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_relay").await, "1540");
}
