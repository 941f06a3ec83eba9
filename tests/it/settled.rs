//! What is left alone stays so, what is dead is counted, and what has been read is told from what was tried.

use std::time::Duration;

use shared::db::{Actor, DbError, Selection};
use shared::jobs::refresh;
use shared::models::JobKind;
use sqlx::{Connection as _, Row as _};
use tests::pg::{Role, TestDb};
use tokio_util::sync::CancellationToken;

use super::operator::says;
use super::support::{claim_one, handle, migrated, value};

fn actor() -> Actor {
    Actor { name: "ann".to_owned(), why: "they asked".to_owned() }
}

/// Relays, candidates and how their syncs ended.
const WORLD: &str = r#"
    INSERT INTO relay (url, network, discovered_at) SELECT 'wss://' || n || '.example', 'clearnet', 1
        FROM unnest(ARRAY['read', 'again', 'limited', 'killed', 'untried', 'left']) n;
    INSERT INTO candidate (url, network, source, first_seen_at, last_seen_at)
        VALUES ('wss://fresh.example', 'clearnet', 'seed', 1, 1), ('wss://left.example/2', 'clearnet', 'seed', 1, 1);
    INSERT INTO coverage SELECT id, 'all', 1, 2, 'unknown', 'rate_limited', 1 FROM relay WHERE url = 'wss://limited.example';
    INSERT INTO job_history
        SELECT h.target || h.at, 'sync', 'clearnet', 'wss://' || h.target || '.example', h.state, 1, 'w', now(), now(), now(), now() - h.at * interval '1 s', h.result::jsonb
        FROM (VALUES ('read', 1, 'complete', '{"end": "up to date"}'), ('again', 2, 'complete', '{"end": "up to date"}'),
                     ('again', 1, 'complete', '{"end": "interrupted"}'), ('limited', 1, 'complete', '{"end": "interrupted"}'),
                     ('killed', 2, 'complete', '{"end": "more to read"}'), ('killed', 1, 'dead', '{"error": "out of attempts"}')) h(target, at, state, result)"#;

#[tokio::test]
async fn what_is_excluded_is_not_waited_for_and_what_was_tried_is_not_taken_for_read() {
    let Some(test) = migrated().await else { return };
    test.execute(WORLD).await;
    let (db, networks) = (handle(&test, Role::Reader), ["clearnet".to_owned()]);
    let left = async || {
        let left = db.unsettled(&networks, 0.0).await.unwrap();
        (left.untried, left.unsynced)
    };
    assert_eq!(left().await, (2, 2));
    let writer = handle(&test, Role::Writer);
    writer.relay_exclude(&["left.example".to_owned()], "opt_out", &actor()).await.unwrap();
    assert_eq!(left().await, (1, 1), "nobody ever looks at what is left alone");
    let found = db.read_count(&networks).await.unwrap();
    assert_eq!((found.read, found.unread), (2, 3));
    let lines: Vec<_> = found
        .lines
        .iter()
        .map(|line| (line.url.as_str(), line.ended.as_str(), line.reason.as_deref()))
        .collect();
    assert_eq!(
        lines,
        [
            ("wss://killed.example", "dead", Some("out of attempts")),
            ("wss://limited.example", "interrupted", Some("rate_limited")),
            ("wss://untried.example", "not tried", None),
        ]
    );
    let onion = db.read_count(&["tor".to_owned()]).await.unwrap();
    assert_eq!(onion, shared::db::ReadCount::default());
}

#[tokio::test]
async fn what_was_done_since_the_start_is_not_waited_for_again_unless_there_was_more_to_read() {
    let Some(test) = migrated().await else { return };
    let (db, networks) = (handle(&test, Role::Reader), ["clearnet".to_owned()]);
    let began = db.now().await.unwrap();
    let before = db.unsettled(&networks, began).await.unwrap();
    test.execute(
        r#"INSERT INTO schedule SELECT 'sync', 'wss://' || n || '.example', 'clearnet', now(), 60, 'up to date'
               FROM unnest(ARRAY['read', 'more', 'earlier']) n;
           INSERT INTO schedule VALUES ('monitor', 'wss://read.example', 'clearnet', now(), 60, 'steady');
           INSERT INTO job_history
               SELECT h.target, 'sync', 'clearnet', 'wss://' || h.target || '.example', 'complete', 1, 'w', now(), now(), now(), now() - h.ago, h.result::jsonb
               FROM (VALUES ('read', interval '0', '{"end": "up to date"}'), ('more', interval '0', '{"end": "more to read"}'),
                            ('earlier', interval '1 hour', '{"end": "up to date"}')) h(target, ago, result)"#,
    )
    .await;
    let left = async |since: f64| {
        let left = db.unsettled(&networks, since).await.unwrap();
        (left.due - before.due, left.running)
    };
    assert_eq!(left(began).await, (3, 0), "more to read, read before the start, and a job of another kind");
    assert_eq!(left(began - 7_200.0).await, (2, 0));
    assert_eq!(left(began + 7_200.0).await, (4, 0), "nothing was done since");
    let writer = handle(&test, Role::Writer);
    claim_one(&writer, "w1", JobKind::Sync, "wss://read.example").await;
    assert_eq!(left(began).await.1, 0, "a second read of it");
    claim_one(&writer, "w1", JobKind::Sync, "wss://more.example").await;
    assert_eq!(left(began).await.1, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_excluded_is_neither_run_now_nor_retried_and_both_say_why() {
    let Some(test) = migrated().await else { return };
    test.execute(
        "INSERT INTO relay (url, network, discovered_at) VALUES ('wss://a.example', 'clearnet', 1), ('wss://b.example', 'clearnet', 1);
         INSERT INTO candidate (url, network, source, first_seen_at, last_seen_at, tombstoned_at)
             VALUES ('wss://a.example/2', 'clearnet', 'seed', 1, 1, 5);
         INSERT INTO job_history SELECT t, 'sync', 'clearnet', t, 'dead', 3, 'w', now(), now(), now(), now(), '{}'
             FROM unnest(ARRAY['wss://a.example', 'wss://b.example']) t;
         INSERT INTO job_history VALUES ('v', 'refresh', 'local', 'views', 'dead', 3, 'w', now(), now(), now(), now(), '{}')",
    )
    .await;
    let db = handle(&test, Role::Writer);
    db.relay_exclude(&["a.example".to_owned()], "opt_out", &actor()).await.unwrap();
    let both = ["wss://a.example".to_owned(), "wss://b.example".to_owned()];
    let asked = db.job_run_now(&["wss://a.example/2".to_owned()], None, &actor()).await.unwrap();
    assert_eq!(asked, (0, 0));
    assert_eq!(value(&test, "SELECT tombstoned_at::text FROM candidate").await, "5");
    for arguments in [&["queue", "run-now"][..], &["queue", "retry"]] {
        let (code, said) = says(&test, Role::Admin, &[arguments, &["wss://a.example"]].concat());
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("wss://a.example is excluded (opted-out) and left alone"), "{said}");
        assert!(said.contains("they asked"), "{said}");
    }
    assert_eq!(value(&test, "SELECT count(*)::text FROM apalis.jobs").await, "0");
    // Beside others only they are done, and a retry of all does what is not excluded.
    assert_eq!(db.job_run_now(&both, Some(&["sync".to_owned()]), &actor()).await.unwrap(), (1, 1));
    assert_eq!(value(&test, "SELECT string_agg(target, ' ') FROM apalis.jobs").await, "wss://b.example");
    test.execute("DELETE FROM apalis.jobs").await;
    let all = Selection { which: Some("*".to_owned()), ..Selection::default() };
    assert_eq!(db.job_retry_preview(&all, 60.0).await.unwrap().0, 2);
    assert_eq!(db.job_retry(&all, 60.0, &actor()).await.unwrap(), (0, 2));
    let enqueued = value(&test, "SELECT string_agg(target, ' ' ORDER BY target) FROM apalis.jobs").await;
    assert_eq!(enqueued, "views wss://b.example");
}

#[tokio::test]
async fn a_job_that_dies_in_a_long_transaction_is_counted_when_that_is_over() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let (claimed, _) = claim_one(&db, "w1", JobKind::Sync, "wss://dies.example").await;
    let mut connection = test.connect(Role::Writer).await;
    let mut open = connection.begin().await.unwrap();
    let ended = sqlx::query(
        "SELECT job_finish('w1', ARRAY[$1], ARRAY[1], ARRAY['kill'], ARRAY[0.0]::double precision[], ARRAY['{}'])",
    )
    .bind(&claimed.job)
    .fetch_all(&mut *open)
    .await
    .unwrap();
    assert_eq!(ended.len(), 1);
    let dead = async |test: &TestDb, later_s: i32| {
        let mut connection = test.connect(Role::Writer).await;
        sqlx::query("SELECT queue_sample_take(now() + make_interval(secs => $1))")
            .bind(later_s)
            .execute(&mut connection)
            .await
            .unwrap();
        let gauge = "SELECT value FROM fleet_gauges(now() + make_interval(secs => $1)) WHERE gauge = 'queue_dead_jobs' AND kind = 'sync' AND network = 'clearnet'";
        sqlx::query(gauge).bind(later_s).fetch_one(&mut connection).await.unwrap().get::<i64, _>("value")
    };
    assert_eq!(dead(&test, 4).await, 0);
    open.commit().await.unwrap();
    assert_eq!(dead(&test, 8).await, 1, "its time was sampled before anybody could see it");
    assert_eq!(dead(&test, 3_700).await, 0, "an hour later it is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_of_everything_takes_a_long_log_in_steps() {
    let Some(test) = migrated().await else { return };
    // Three steps, each of which takes a second; a statement may take two.
    test.execute(
        // bound: one second
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.9); RETURN OLD; END';
         CREATE TRIGGER slow BEFORE DELETE ON rollup_delta FOR EACH ROW EXECUTE FUNCTION slow();
         INSERT INTO rollup_delta (op, n, keys) SELECT 0, 50000, ARRAY[n] FROM generate_series(1, 3) n",
    )
    .await;
    let db = handle(&test, Role::Writer).with_timeout(Duration::from_secs(3));
    let at_once = db.refresh("SELECT event_stats_refresh()").await;
    assert!(matches!(at_once, Err(DbError::Timeout { .. })), "{at_once:?}");
    let done = refresh::all(&db, &CancellationToken::new()).await.unwrap().unwrap();
    assert_eq!((done.counted, done.failed.len()), (150_000, 0), "{done:?}");
    assert_eq!(value(&test, "SELECT count(*)::text FROM rollup_delta").await, "0");
    assert_eq!(usize::try_from(done.refreshed).unwrap(), shared::db::VIEWS.len());
    let stopped = CancellationToken::new();
    stopped.cancel();
    assert_eq!(refresh::all(&db, &stopped).await.unwrap(), None);
}
