//! Fates, the lightweight mode, the disk budget, and `verify`.

use scheduler::Scheduler;
use serde_json::Value;
use shared::config::Config;
use shared::db::{Db, Fate, Pace, Sample, SetLine};
use shared::jobs::{JobError, JobsConfig};
use shared::models::{EventId, JobKind, Target, Tombstone};
use shared::telemetry::Metrics;
use sqlx::{AssertSqlSafe, Connection as _};
use tests::factory::Factory;
use tests::pg::{Role, TestDb};
use tests::scripted::{Script, ScriptedRelay};

use super::fleet::environment;
use super::jobs::{config, context, known_relay, run};
use super::operator::says;
use super::retention::archive;
use super::support::{handle, migrated, value};

/// One value of one row, of SQL made here.
async fn text(test: &TestDb, sql: String) -> String {
    let mut connection = test.connect(Role::Superuser).await;
    let query = sqlx::query_scalar::<_, Option<String>>(AssertSqlSafe(sql)).persistent(false);
    query.fetch_one(&mut connection).await.unwrap().unwrap_or_default()
}

fn known(event: &nostr::event::Event) -> (EventId, i64) {
    let event = shared::models::Event::parse(&event.as_json()).unwrap();
    (event.id(), event.created_at())
}

#[tokio::test]
async fn a_fate_takes_the_body_and_the_event_stays_known() {
    let Some(test) = migrated().await else { return };
    let (db, reader) = (handle(&test, Role::Writer), handle(&test, Role::Reader));
    let factory = Factory::new(51);
    let events = factory.events(120);
    archive(&db, "wss://one.example", &events).await;
    let all: Vec<_> = events.iter().map(known).collect();
    // An expired one twice is one; what is not known has no fate.
    let unknown = known(&Factory::new(52).events(1)[0]);
    let expired = [all[0], all[0], all[1], unknown];
    assert_eq!(db.event_fate_set(&expired, Fate::Expired).await.unwrap(), 2);
    assert_eq!(db.event_fate_set(&expired, Fate::Skipped).await.unwrap(), 0, "a fate is final");
    // NIP-09: by their author, and no deletion request.
    let author = events[2].pubkey.to_bytes();
    let request = factory.sign(2, 5, vec![], "", shared::clock::unix_now() - 60);
    archive(&db, "wss://one.example", std::slice::from_ref(&request)).await;
    let stone =
        |pubkey: [u8; 32], target, until| Tombstone { pubkey, target, until, request: known(&request).0 };
    let ids = [all[2].0, all[3].0, known(&request).0, unknown.0];
    let stones: Vec<_> = ids.iter().map(|id| stone(author, Target::Event(*id), 0)).collect();
    assert_eq!(db.tombstone_add(&stones).await.unwrap(), 4);
    assert_eq!(db.tombstone_step(&mut Pace::of(25)).await.unwrap(), 1);
    // NIP-62: up to a second, in pieces.
    let until = events[60].created_at.as_secs().cast_signed();
    let author = events[4].pubkey.to_bytes();
    let meant = events.iter().filter(|event| {
        event.pubkey == events[4].pubkey && event.created_at.as_secs().cast_signed() <= until
    });
    db.tombstone_add(&[stone(author, Target::All, until)]).await.unwrap();
    test.execute("UPDATE tombstone SET noted_at = now() - interval '1 hour'").await;
    let mut gone = 0;
    for _ in 0..10 {
        gone += db.tombstone_step(&mut Pace::of(25)).await.unwrap();
    }
    assert_eq!(value(&test, "SELECT count(*)::text FROM tombstone WHERE settled < 2").await, "0");
    assert!(gone > 0);
    assert_eq!(gone, meant.count() as u64);
    let fates = "SELECT string_agg(fate || ' ' || n, ', ' ORDER BY fate) FROM (SELECT fate, count(*) AS n FROM event GROUP BY 1) x";
    assert_eq!(value(&test, fates).await, format!("0 {}, 2 {}, 3 2", 121 - 2 - 1 - gone, 1 + gone));
    let newest = "SELECT string_agg(fate::text, ' ' ORDER BY created_at DESC) FROM (SELECT fate, created_at FROM event WHERE kind <> 5 ORDER BY created_at DESC LIMIT 3) x";
    assert_eq!(value(&test, newest).await, "3 3 2");
    assert_eq!(value(&test, "SELECT count(*)::text FROM event_relay").await, "121", "who has them is known");
    test.execute("SELECT all_statistics_refresh()").await;
    assert_eq!(value(&test, "SELECT event_count::text FROM event_stats").await, (118 - gone).to_string());
    let report = reader.verify(None).await.unwrap();
    assert_eq!((report.events, report.unkept, report.corruptions), (118 - gone, 3 + gone, vec![]));
}

/// Every view without what a lightweight archive has not, and without what only the clock changes.
async fn views(test: &TestDb) -> Vec<String> {
    test.execute("SELECT all_statistics_refresh()").await;
    let mut all = Vec::new();
    for (view, _) in shared::db::VIEWS {
        let sql = format!(
            "SELECT coalesce(string_agg(x, E'\\n' ORDER BY x), '') FROM (SELECT (to_jsonb(v) - 'tags' - 'content' - 'sig' - 'tag_hashes'
                 - 'event_count_last_1h' - 'event_count_last_24h' - 'event_count_last_7d' - 'event_count_last_30d')::text AS x FROM {view} v) y"
        );
        all.push(format!("{view}\n{}", text(test, sql).await));
    }
    all
}

const BODIES: &str = "SELECT count(tags) || ' ' || count(content) || ' ' || count(sig) || ' ' || count(tag_hashes) || ' ' || count(d_tag) FROM event";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_view_is_right_in_a_lightweight_archive_and_what_is_lost_is_said_before() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, JobsConfig { archive_days: None, ..config() });
    let reader = handle(&test, Role::Reader);
    let factory = Factory::new(53);
    let mut events = factory.events(150);
    let now = shared::clock::unix_now();
    // Two versions of an article and of a list: which is the current one is told without a body.
    let d = |d: &str| vec![vec!["d".to_owned(), d.to_owned()]];
    for at in [now - 500, now - 400] {
        events.push(factory.sign(1, 30_023, d("x"), "version", at));
        events.push(factory.sign(1, 30_023, d("y"), "version", at));
        events.push(factory.sign(
            1,
            10_001,
            vec![vec!["r".to_owned(), "wss://found.example".to_owned()]],
            "",
            at,
        ));
    }
    archive(&ctx.db, "wss://one.example", &events).await;
    let full = views(&test).await;
    let bodies = value(&test, BODIES).await;
    let (code, said) = says(&test, Role::Reader, &["archive", "lighten", "--dry-run"]);
    assert!(
        code == 0
            && said.contains("156 events would lose")
            && said.contains("cannot be undone")
            && said.contains("goes on resting"),
        "{said}"
    );
    assert_eq!(value(&test, BODIES).await, bodies, "a dry run is dry");
    // Half of them have been mined.
    test.execute("DELETE FROM event_unmined WHERE event_key IN (SELECT event_key FROM event_unmined ORDER BY event_key LIMIT 78)").await;
    let (code, said) = says(&test, Role::Writer, &["archive", "lighten", "--yes", "--why", "small disk"]);
    assert!(code == 0 && said.contains("78 events lost their bodies"), "{said}");
    assert!(value(&test, BODIES).await.starts_with("78 78 78 78 "), "{}", value(&test, BODIES).await);
    let report = run(&ctx, JobKind::Discover, "archive").await.unwrap();
    assert_eq!(report["events"], 78, "{report}");
    let d_tags = value(&test, "SELECT count(*)::text FROM event WHERE kind BETWEEN 30000 AND 39999").await;
    assert_eq!(value(&test, BODIES).await, format!("0 0 0 0 {d_tags}"));
    assert_eq!(
        value(&test, "SELECT url FROM candidate WHERE url LIKE '%found%'").await,
        "wss://found.example"
    );
    assert_eq!(views(&test).await, full);

    // What comes from now on is mined first, and lightweight then.
    let more = Factory::new(54).events(30);
    let relay = ScriptedRelay::start(Script::honest(&more, 500)).await;
    let url = known_relay(&ctx.db, &relay).await;
    run(&ctx, JobKind::Sync, url.as_str()).await.unwrap();
    assert!(value(&test, BODIES).await.starts_with("30 30 0 0 "), "{}", value(&test, BODIES).await);
    let report = reader.verify(None).await.unwrap();
    assert_eq!((report.events, report.bodiless, report.corruptions), (30, 156, vec![]));
    run(&ctx, JobKind::Discover, "archive").await.unwrap();
    assert!(value(&test, BODIES).await.starts_with("0 0 0 0 "), "{}", value(&test, BODIES).await);
    let report = reader.verify(None).await.unwrap();
    assert_eq!((report.events, report.bodiless, report.corruptions), (0, 186, vec![]));
    let (code, said) = says(&test, Role::Reader, &["verify", "--all"]);
    assert!(code == 0 && said.contains("186 without a body"), "{said}");

    says(&test, Role::Writer, &["archive", "keep-bodies"]);
    archive(&ctx.db, "wss://one.example", &Factory::new(55).events(5)).await;
    assert!(value(&test, BODIES).await.starts_with("5 5 5 5 "), "{}", value(&test, BODIES).await);
    // In a whole archive a body that is missing is a fault, unless it was lightweight once.
    test.execute("UPDATE archive_setting SET light_at = NULL").await;
    assert_eq!(reader.verify(None).await.unwrap().corrupt, 186);
    let (_, audit) = says(&test, Role::Reader, &["queue", "audit"]);
    assert!(
        audit.contains("lighten") && audit.contains("small disk") && audit.contains("keep-bodies"),
        "{audit}"
    );
}

/// A scheduler that leads, with these variables, after one round.
pub(crate) async fn led(test: &TestDb, more: &[(&str, &str)]) -> (Scheduler, Metrics) {
    led_by(handle(test, Role::Writer), test, more).await
}

/// The same, which asks by this handle.
pub(crate) async fn led_by(db: Db, test: &TestDb, more: &[(&str, &str)]) -> (Scheduler, Metrics) {
    let url = test.url(Role::Writer);
    let mut environment = environment(&url, &url);
    environment.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let options = Config::load(None, &environment).unwrap().scheduler_options();
    let metrics = Metrics::new();
    let mut scheduler = Scheduler::new(db, metrics.clone(), options);
    scheduler.tick().await.unwrap();
    scheduler.settle().await;
    (scheduler, metrics)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_the_disk_is_full_syncing_rests_monitoring_goes_on_and_everybody_says_so() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    let relay = ScriptedRelay::start(Script::honest(&Factory::new(1).events(5), 20)).await;
    let url = known_relay(&ctx.db, &relay).await;
    let bytes: f64 = value(&test, "SELECT pg_database_size(current_database())::text").await.parse().unwrap();
    let gb = |share: f64| format!("{:.6}", bytes / share / 1e9);
    for (share, rests) in [(0.5, false), (0.93, true), (0.85, false)] {
        let (mut scheduler, metrics) = led(&test, &[("BIGBROTR_ARCHIVE_MAX_GB", &gb(share))]).await;
        let shown = metrics.encode();
        assert!(
            shown.contains(&format!(
                "bigbrotr_archive_rests{{kind=\"\",network=\"\",outcome=\"\"}} {}",
                i32::from(rests)
            )),
            "{shown}"
        );
        let ended = run(&ctx, JobKind::Sync, url.as_str()).await;
        let (_, doctor) = says(&test, Role::Reader, &["doctor"]);
        if rests {
            assert!(
                matches!(&ended, Err(JobError::Snooze { why, .. }) if why.contains("size limit")),
                "{ended:?}"
            );
            assert!(
                doctor.lines().any(|line| line.starts_with("problem")
                    && line.contains("syncing rests")
                    && line.contains("VACUUM FULL")),
                "{doctor}"
            );
        } else {
            ended.unwrap();
            assert!(!doctor.contains("%: syncing rests"), "{doctor}");
        }
        assert_eq!(share > 0.8, doctor.contains("over "), "{doctor}");
        assert_eq!(run(&ctx, JobKind::Monitor, url.as_str()).await.unwrap()["state"], "alive");
        scheduler.release().await.unwrap();
        assert!(
            !metrics.encode().contains("bigbrotr_archive_rests{"),
            "a scheduler that leads no more shows none"
        );
    }
    // No budget any more.
    let (_, _) = led(&test, &[]).await;
    assert_eq!(value(&test, "SELECT max_bytes::text FROM archive_setting").await, "");
}

#[tokio::test]
async fn the_leading_scheduler_does_what_its_configuration_keeps() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let (_scheduler, _) = led(&test, &[("BIGBROTR_ARCHIVE_LIGHT", "true")]).await;
    assert!(db.archive_get(None).await.unwrap().light, "an empty archive begins as a lightweight one");
    test.execute("UPDATE archive_setting SET light = false; UPDATE leader SET until = now()").await;
    archive(&db, "wss://one.example", &Factory::new(57).over(86_400 * 100).events(60)).await;
    // An orphan, as nobody makes one.
    test.execute("DELETE FROM event_relay WHERE event_key = (SELECT max(event_key) FROM event)").await;
    let more = [
        ("BIGBROTR_ARCHIVE_LIGHT", "true"),
        ("BIGBROTR_RETENTION_DAYS", "30"),
        ("BIGBROTR_RETENTION_KINDS", "7,1:20"),
    ];
    led(&test, &more).await;
    assert!(!db.archive_get(None).await.unwrap().light, "a full one does not lose its bodies by that");
    let left = "SELECT count(*) FILTER (WHERE created_at < (SELECT before_at FROM archive_horizon)) || ' ' || count(*) FILTER (WHERE kind = 7 AND fate = 0) || ' '
                || count(*) FILTER (WHERE NOT EXISTS (SELECT FROM event_relay o WHERE o.event_key = e.event_key)) || ' ' || (count(*) > 5) FROM event e";
    assert_eq!(value(&test, left).await, "0 0 0 true");
    assert_eq!(
        value(&test, "SELECT string_agg(name || ' ' || days, ', ' ORDER BY name) FROM retention_policy")
            .await,
        "age 30, kind 1 20, kind 7 0"
    );
}

#[tokio::test]
async fn a_refresh_waits_for_a_moment_of_retention() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, config());
    archive(&ctx.db, "wss://one.example", &Factory::new(59).events(10)).await;
    let mut other = test.connect(Role::Superuser).await;
    let mut retention = other.begin().await.unwrap();
    sqlx::raw_sql("SELECT archive_lock()").execute(&mut *retention).await.unwrap();
    let refresh = run(&ctx, JobKind::Refresh, "views");
    let end = async {
        // bound: half a second of somebody's retention
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        retention.commit().await.unwrap();
    };
    let (report, ()) = tokio::join!(refresh, end);
    assert_eq!(report.unwrap()["refreshed"], shared::db::VIEWS.len());
}

/// One fault each, and the words by which it is found.
const FAULTS: &[(&str, &str)] = &[
    (
        "INSERT INTO event_relay SELECT event_key + 1, 5, 1, 0 FROM event LIMIT 1",
        "observations without their event",
    ),
    (
        "INSERT INTO event_relay SELECT event_key, 5, 99, 0 FROM event LIMIT 1",
        "observations without their relay",
    ),
    (
        "DELETE FROM event_relay WHERE event_key = (SELECT min(event_key) FROM event)",
        "archived events seen on no relay",
    ),
    ("INSERT INTO event_unmined VALUES (5)", "waiting to be mined"),
    ("INSERT INTO event_collision VALUES (sha256('x'), 5)", "collisions whose event"),
    ("UPDATE event SET fate = 2 WHERE event_key = (SELECT min(event_key) FROM event)", "have a body"),
    (
        "UPDATE event SET created_at = created_at + 1 WHERE event_key = (SELECT min(event_key) FROM event)",
        "a key that is not theirs",
    ),
    (
        "INSERT INTO coverage VALUES (1, 'all', 10, 20, 'walked', 'none', 1), (1, 'all', 20, 30, 'walked', 'none', 1)",
        "intervals that overlap",
    ),
    ("INSERT INTO coverage VALUES (1, 'all', 10, 20, 'walked', 'timeout', 1)", "proofs with a reason"),
    ("INSERT INTO coverage VALUES (1, 'all', 10, 20, 'unknown', 'whim', 1)", "reasons that are none"),
    ("INSERT INTO coverage VALUES (77, 'all', 10, 20, 'unknown', 'timeout', 1)", "intervals of no relay"),
    (
        "INSERT INTO coverage VALUES (1, 'all', 10, 20, 'walked', 'none', 1); INSERT INTO archive_horizon VALUES ('all', 15, now(), 'age')",
        "below a horizon",
    ),
    (
        "UPDATE event SET sig = set_byte(sig, 3, 255 - get_byte(sig, 3)) WHERE event_key = (SELECT max(event_key) FROM event)",
        "column sig",
    ),
    ("UPDATE event SET d_tag = 'zz' WHERE kind = 30023", "column d_tag"),
    (
        "UPDATE event SET tag_hashes = '{1}' WHERE event_key = (SELECT max(event_key) FROM event)",
        "column tag_hashes",
    ),
    (
        "CREATE OR REPLACE FUNCTION rollup_check() RETURNS TABLE (what text) LANGUAGE sql AS 'SELECT ''kind_counts''::text'",
        "rollups that do not agree",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_finds_every_kind_of_fault_and_names_it() {
    let Some(test) = migrated().await else { return };
    let (db, reader) = (handle(&test, Role::Writer), handle(&test, Role::Reader));
    archive(&db, "wss://one.example", &Factory::new(58).events(100)).await;
    db.partition_maintain(shared::clock::unix_now()).await.unwrap();
    let (code, said) = says(&test, Role::Reader, &["verify"]);
    assert!(code == 0 && said.contains("100 events verified") && said.contains("no fault"), "{said}");
    // The same seed draws the same.
    let mut drawn = Vec::new();
    for seed in [1, 1, 2] {
        drawn.push(reader.verify_rows(Sample::Share(0.3, seed), &mut |_| {}).await.unwrap().events);
    }
    assert!(drawn[0] == drawn[1] && drawn.iter().all(|n| (10..60).contains(n)), "{drawn:?}");
    let quiet: Vec<SetLine> = reader.verify_sets(&mut |_| {}).await.unwrap();
    assert!(quiet.len() >= 8 && !quiet.iter().any(SetLine::is_fault), "{quiet:?}");
    let actual = |said: &str| -> Value { serde_json::from_str(said.lines().last().unwrap()).unwrap() };
    for (fault, words) in FAULTS {
        let template = format!(
            "CREATE SCHEMA kept; CREATE TABLE kept.event AS TABLE event; CREATE TABLE kept.event_relay AS TABLE event_relay; CREATE TABLE kept.event_unmined AS TABLE event_unmined; {fault}"
        );
        test.execute(&template).await;
        let (code, said) = says(&test, Role::Reader, &["verify", "--all"]);
        assert!(code == 1 && said.lines().any(|line| line.contains(words) && (line.contains("problem") || line.contains("column"))), "{fault}: {said}");
        let (code, said) = says(&test, Role::Reader, &["verify", "--all", "--json"]);
        assert!(code == 1 && actual(&said)["faults"].as_u64() > Some(0), "{fault}: {said}");
        test.execute(
            "TRUNCATE event, event_relay, event_unmined, event_collision, coverage, archive_horizon; DROP FUNCTION IF EXISTS rollup_check();
             INSERT INTO event SELECT * FROM kept.event; INSERT INTO event_relay SELECT * FROM kept.event_relay; INSERT INTO event_unmined SELECT * FROM kept.event_unmined;
             DROP SCHEMA kept CASCADE",
        )
        .await;
    }
    let (code, _) = says(&test, Role::Reader, &["verify", "--sample", "50%", "--seed", "9"]);
    assert_eq!(code, 0);
    assert_eq!(says(&test, Role::Reader, &["verify", "--sample", "0%"]).0, 2);
}
