//! Uptime by hour and day against a naive recomputation, and the figures made of it against naive ones.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use shared::db::{CheckRow, Db, MonitorResult};
use shared::models::{AddressPolicy, Fence, JobKind, Outcome, Reason, RelayUrl};
use tests::pg::{Role, TestDb};

use super::support::{claim_one, handle, migrated, pairs, value};

const HOUR: i64 = 3_600;
const DAY: i64 = 86_400;

/// One look, as the series would have it.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    relay: usize,
    vantage: usize,
    /// Seconds before now.
    ago: i64,
    up: bool,
    refused: bool,
    counted: bool,
    ms: [Option<u32>; 3],
}

/// Checks, up, refused; and how often each bucket of open, read and write.
type Sums = ([u32; 3], [BTreeMap<u32, u32>; 3]);

const VANTAGES: [&str; 2] = ["here", "there"];

/// Relays with a claimed job each: a fence that holds as long as the test writes.
pub(crate) struct Bench {
    db: Db,
    pub(crate) relays: Vec<(RelayUrl, Fence)>,
    now: i64,
    /// For how long an opinion counts.
    stands: Duration,
}

impl Bench {
    pub(crate) async fn new(test: &TestDb, relays: usize) -> Self {
        let db = handle(test, Role::Writer);
        let mut held = Vec::new();
        for i in 0..relays {
            let url = RelayUrl::parse(&format!("wss://r{i}.example"), &AddressPolicy::public()).unwrap();
            db.relay_insert(&[(url.clone(), 1)]).await.unwrap();
            let (_, fence) = claim_one(&db, "w1", JobKind::Monitor, url.as_str()).await;
            held.push((url, fence));
        }
        let stands = Duration::from_secs(40 * 86_400);
        Self { db, relays: held, now: shared::clock::unix_now(), stands }
    }

    pub(crate) async fn write(&self, look: &Look, overall: &'static str) {
        let (url, fence) = &self.relays[look.relay];
        let outcome = if !look.up {
            Outcome::Timeout
        } else if look.refused {
            Outcome::Refused
        } else {
            Outcome::Ok
        };
        let result = MonitorResult {
            fence: fence.clone(),
            url: url.clone(),
            state: overall,
            reason: if look.counted { Reason::None } else { Reason::RateLimited },
            failures: u32::from(!look.up),
            successes: u32::from(look.up),
            alive: look.up,
            checked_at: self.now - look.ago,
            next: Duration::from_secs(60),
            slack: Duration::from_secs(5),
            why: "test".to_owned(),
            stands: self.stands,
            overall,
            overall_reason: Reason::None,
            counted: look.counted,
            checks: vec![CheckRow {
                kind: "rtt",
                outcome,
                reason: Reason::None,
                rtt_ms: look.ms,
                document: None,
                status: None,
            }],
        };
        assert!(self.db.monitor_finish(VANTAGES[look.vantage], &[result]).await.unwrap().is_empty());
    }

    /// What hours (or days) should hold: checks, up, refused, and how often each time was measured.
    fn naive(&self, looks: &[Look], span: i64) -> BTreeMap<String, String> {
        let mut sums: BTreeMap<String, Sums> = BTreeMap::new();
        for look in looks.iter().filter(|look| look.counted) {
            let at = self.now - look.ago;
            let key = format!("{} {} {}", self.relays[look.relay].0, VANTAGES[look.vantage], at - at % span);
            let (counts, times) = sums.entry(key).or_default();
            for (count, add) in counts.iter_mut().zip([true, look.up, look.up && look.refused]) {
                *count += u32::from(add);
            }
            for (time, ms) in times.iter_mut().zip(look.ms) {
                if let Some(ms) = ms {
                    *time.entry(bucket(ms)).or_default() += 1;
                }
            }
        }
        sums.into_iter().map(|(key, (counts, times))| (key, format!("{counts:?} {times:?}"))).collect()
    }
}

/// By arithmetic on whole numbers: the largest b with 2^b <= ms^8.
fn bucket(ms: u32) -> u32 {
    (0..=255)
        .rev()
        .find(|b| *b == 0 || 2_f64.powf(f64::from(*b) / 8.0) <= f64::from(ms) * (1.0 + 1e-10))
        .unwrap()
}

/// Hours or days as the database has them, their histograms counted out.
async fn stored(test: &TestDb, sql: &'static str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (key, text) in pairs(test, sql).await {
        let mut parts = text.split('|');
        let counts: Vec<u32> = parts.next().unwrap().split(' ').map(|n| n.parse().unwrap()).collect();
        let times: Vec<BTreeMap<u32, u32>> = parts
            .map(|hex| {
                let mut time = BTreeMap::new();
                for pair in hex::decode(hex).unwrap().chunks(2) {
                    *time.entry(u32::from(pair[0])).or_default() += u32::from(pair[1]);
                }
                time
            })
            .collect();
        found.insert(key, format!("{counts:?} {times:?}"));
    }
    found
}

const HOURS: &str = "
    SELECT r.url || ' ' || v.name || ' ' || u.at,
           concat_ws('|', u.checks || ' ' || u.up || ' ' || u.refused, encode(u.open_hist, 'hex'), encode(u.read_hist, 'hex'), encode(u.write_hist, 'hex'))
    FROM relay_uptime u JOIN relay r ON r.id = u.relay_id JOIN vantage v ON v.id = u.vantage_id
    WHERE u.checks > 0";
const DAYS: &str = "
    SELECT r.url || ' ' || v.name || ' ' || u.at,
           concat_ws('|', sum(u.checks) || ' ' || sum(u.up) || ' ' || sum(u.refused), encode(string_agg(u.open_hist, ''), 'hex'),
                     encode(string_agg(u.read_hist, ''), 'hex'), encode(string_agg(u.write_hist, ''), 'hex'))
    FROM relay_uptime_daily u JOIN relay r ON r.id = u.relay_id JOIN vantage v ON v.id = u.vantage_id GROUP BY r.url, v.name, u.at
    HAVING sum(u.checks) > 0";

fn looks() -> impl Strategy<Value = Vec<Look>> {
    let ms = || proptest::option::weighted(0.8, prop_oneof![0_u32..20, 1_u32..2_000, 1_u32..3_000_000]);
    let look = (0..3_usize, 0..2_usize, 0..4 * DAY, any::<[bool; 3]>(), [ms(), ms(), ms()]);
    proptest::collection::vec(look, 1..60).prop_map(|looks| {
        looks
            .into_iter()
            .map(|(relay, vantage, ago, [up, refused, counted], ms)| Look {
                relay,
                vantage,
                ago,
                up,
                refused,
                counted: counted || up,
                ms,
            })
            .collect()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hours_and_days_are_what_a_naive_recomputation_says_at_any_time_of_the_rollup() {
    let Some(test) = migrated().await else { return };
    let bench = Bench::new(&test, 3).await;
    let runtime = tokio::runtime::Handle::current();
    let mut runner = TestRunner::new(Config { cases: 12, failure_persistence: None, ..Config::default() });
    let ran = tokio::task::block_in_place(|| {
        runner.run(&(looks(), 1_u16..5), |(looks, keep)| {
            runtime.block_on(async {
                test.execute("TRUNCATE relay_uptime, relay_uptime_day, relay_check").await;
                // The first half before the days are rolled up, the second after: late looks are not lost.
                let (early, late) = looks.split_at(looks.len() / 2);
                test.execute("SELECT partition_maintain(extract(epoch FROM now())::bigint, p_now => now() - interval '2 days')").await;
                for look in early {
                    bench.write(look, "alive").await;
                }
                let hours = stored(&test, HOURS).await;
                bench.db.uptime_rollup(keep).await.unwrap();
                for look in late {
                    bench.write(look, "alive").await;
                }
                bench.db.uptime_rollup(keep).await.unwrap();
                prop_assert_eq!(hours, bench.naive(early, HOUR));
                prop_assert_eq!(stored(&test, DAYS).await, bench.naive(&looks, DAY));
                Ok(())
            })
        })
    });
    ran.unwrap();
    let left = value(
        &test,
        "SELECT count(*)::text FROM relay_uptime WHERE at < extract(epoch FROM now()) - 6 * 86400",
    )
    .await;
    assert_eq!(left, "0");
}

#[tokio::test]
async fn percentiles_are_within_a_bucket_of_the_true_ones_and_too_few_looks_give_none() {
    let Some(test) = migrated().await else { return };
    let bench = Bench::new(&test, 1).await;
    let reader = handle(&test, Role::Reader);
    let mut times = Vec::new();
    let mut random = 12_345_u64;
    for n in (0_i64..130).rev() {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let ms = 3 + u32::try_from((random >> 33) % 1_000).unwrap().pow(2) / 300;
        times.push(ms);
        // Every thirteenth finds nothing.
        let up = n % 13 != 0;
        let look = Look {
            relay: 0,
            vantage: 0,
            ago: n * 7_000,
            up,
            refused: false,
            counted: true,
            ms: [Some(ms), None, None],
        };
        bench.write(&look, "alive").await;
        if n == 121 {
            let few = reader.relay_uptime(&bench.relays[0].0).await.unwrap().remove(0);
            assert_eq!(
                (few.checks, few.availability_pct, few.times[0]),
                (9, None, (9, [None; 3])),
                "too few"
            );
        }
    }
    let line = reader.relay_uptime(&bench.relays[0].0).await.unwrap().remove(0);
    assert_eq!(
        (line.vantage.as_str(), line.checks, line.up, line.times[1]),
        ("here", 130, 120, (0, [None; 3]))
    );
    // Looks as far apart as each other, and the last one, at this moment, stands for nothing yet: 9 of 129 stretches.
    let share = line.availability_pct.unwrap();
    assert!((share - 100.0 * 120.0 / 129.0).abs() < 0.01, "{share}");
    times.sort_unstable();
    let (n, found) = line.times[0];
    assert_eq!(n, 130);
    for (percent, found) in [50, 95, 99].into_iter().zip(found) {
        let truth = f64::from(times[(times.len() * percent).div_ceil(100) - 1]);
        let found = f64::from(found.unwrap());
        assert!((found - truth).abs() <= truth * 0.045 + 1.0, "p{percent}: {found}, truly {truth}");
    }
}

#[tokio::test]
async fn failures_repairs_and_the_time_between_are_those_of_a_scripted_history() {
    let Some(test) = migrated().await else { return };
    let bench = Bench::new(&test, 3).await;
    let reader = handle(&test, Role::Reader);
    let history = [
        // Down before the window began, and back within it.
        (40 * DAY, "alive"),
        (31 * DAY, "down"),
        (29 * DAY, "suspect"),
        (29 * DAY - HOUR, "alive"),
        // A doubt that came to nothing is no failure.
        (20 * DAY, "suspect"),
        (20 * DAY - 300, "alive"),
        // Four hours.
        (10 * DAY + 300, "suspect"),
        (10 * DAY, "down"),
        (10 * DAY - 4 * HOUR, "alive"),
        // And down until now.
        (2 * HOUR, "down"),
    ];
    for (ago, state) in history {
        let look = Look {
            relay: 0,
            vantage: 0,
            ago,
            up: state == "alive",
            refused: false,
            counted: true,
            ms: [None; 3],
        };
        bench.write(&look, state).await;
    }
    let all = reader.relay_reliability(&bench.relays[0].0).await.unwrap().unwrap();
    // The test itself takes a few seconds.
    let near = |found: i64, wanted: i64| (found - wanted).abs() <= 20;
    let down = (DAY + HOUR) + 4 * HOUR + 2 * HOUR;
    assert_eq!((all.failures, all.repairs, all.flaps), (2, 2, 4), "{all:?}");
    assert!(
        near(i64::try_from(all.observed_s).unwrap(), 30 * DAY)
            && near(i64::try_from(all.down_s).unwrap(), down),
        "{all:?}"
    );
    assert!(near(all.mtbf_s.unwrap(), (30 * DAY - down) / 2), "{all:?}");
    assert_eq!(all.mttr_s.unwrap(), ((2 * DAY + HOUR) + 4 * HOUR) / 2, "{all:?}");
    assert!((all.availability_pct.unwrap() - 100.0 * (1.0 - 31.0 / 720.0)).abs() < 0.01, "{all:?}");

    // Alive for two hours: nothing is known yet of failures, and a share would mislead.
    let young =
        Look { relay: 1, vantage: 0, ago: 2 * HOUR, up: true, refused: false, counted: true, ms: [None; 3] };
    bench.write(&young, "alive").await;
    let all = reader.relay_reliability(&bench.relays[1].0).await.unwrap().unwrap();
    assert_eq!((all.availability_pct, all.mtbf_s, all.mttr_s, all.failures), (None, None, None, 0));
    assert!(near(i64::try_from(all.observed_s).unwrap(), 2 * HOUR));
    let all = reader.relay_reliability(&bench.relays[2].0).await.unwrap().unwrap();
    assert_eq!((all.observed_s, all.flaps), (0, 0), "never looked at");

    // Retention keeps where the history begins.
    let forgotten = bench.db.alert_retire(35, false).await.unwrap();
    assert_eq!(forgotten, 1);
    let kept = value(
        &test,
        "SELECT after || ' ' || count(*) OVER () FROM relay_alert WHERE relay_id = 1 ORDER BY at LIMIT 1",
    )
    .await;
    assert_eq!(kept, "down 9");
}

#[tokio::test]
async fn a_look_that_does_not_count_ends_the_time_for_which_the_one_before_stood() {
    let Some(test) = migrated().await else { return };
    let bench = Bench { stands: Duration::from_secs(3 * 86_400), ..Bench::new(&test, 1).await };
    for hours in (1..=4).rev() {
        let good = hours % 2 == 0;
        bench.write(&Look { counted: good, ..look(hours * HOUR, good) }, "alive").await;
    }
    let sums =
        "SELECT sum(checks) || ' ' || sum(up) || ' ' || sum(seen_s) || ' ' || sum(up_s) FROM relay_uptime";
    assert_eq!(
        value(&test, sums).await,
        "2 2 7200 7200",
        "an hour after each good look; of the refused ones nothing"
    );
}

pub(crate) fn look(ago: i64, up: bool) -> Look {
    Look { relay: 0, vantage: 0, ago, up, refused: false, counted: true, ms: [None; 3] }
}

#[tokio::test]
async fn a_share_is_one_of_time_however_often_anybody_looked() {
    let Some(test) = migrated().await else { return };
    let bench = Bench { stands: Duration::from_secs(3 * 86_400), ..Bench::new(&test, 1).await };
    // Up for ten days and looked at every two hours; down for ten days and looked at once a day.
    for n in (1..=120).rev() {
        bench.write(&look(10 * DAY + n * 2 * HOUR, true), "alive").await;
    }
    for n in (0..=10).rev() {
        bench.write(&look(n * DAY, false), "down").await;
    }
    let reader = handle(&test, Role::Reader);
    let url = &bench.relays[0].0;
    let share = async || {
        let line = reader.relay_uptime(url).await.unwrap().remove(0);
        (line.availability_pct.unwrap(), line.availability_low_pct.unwrap())
    };
    let (pct, low) = share().await;
    assert!((pct - 50.0).abs() < 0.1 && low <= pct, "{pct} {low}");
    bench.db.uptime_rollup(5).await.unwrap();
    let (later, _) = share().await;
    assert!((later - pct).abs() < 0.1, "{later} after the rollup");
    // Time for which nobody knows is at worst not alive.
    test.execute("UPDATE relay SET discovered_at = extract(epoch FROM now()) - 29 * 86400; UPDATE relay_uptime_day SET at = at - 8 * 86400").await;
    let (pct, low) = share().await;
    assert!((pct - 50.0).abs() < 0.1 && (low - 100.0 * 10.0 / 28.5).abs() < 1.5, "{pct} {low}");
}

#[tokio::test]
async fn time_in_which_nobody_looked_is_not_observed_time() {
    let Some(test) = migrated().await else { return };
    let bench = Bench { stands: Duration::from_secs(3 * 3_600), ..Bench::new(&test, 1).await };
    bench.write(&look(21 * DAY + 4 * HOUR, true), "alive").await;
    bench.write(&look(21 * DAY + 2 * HOUR, false), "suspect").await;
    bench.write(&look(21 * DAY + HOUR, false), "down").await;
    // The fleet rests for three weeks.
    bench.write(&look(HOUR, true), "alive").await;
    let reader = handle(&test, Role::Reader);
    let all = reader.relay_reliability(&bench.relays[0].0).await.unwrap().unwrap();
    assert_eq!((all.failures, all.repairs), (1, 1), "{all:?}");
    // Three hours before the failure, three after it, one now; to the hour at three edges.
    assert!((4 * HOUR..=10 * HOUR).contains(&i64::try_from(all.observed_s).unwrap()), "{all:?}");
    assert!((HOUR..=5 * HOUR).contains(&i64::try_from(all.down_s).unwrap()), "{all:?}");
    assert!(all.mttr_s.unwrap() <= 5 * HOUR && all.availability_pct.is_none(), "{all:?}");
}
