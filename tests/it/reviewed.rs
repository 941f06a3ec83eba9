//! Functions of the archive under what a second reading feared: races over coverage, authors who delete without end,
//! names that are nobody's, steps called by themselves.

use sqlx::{Connection as _, Executor as _, Row as _};
use tests::pg::Role;
use tokio::task::JoinSet;

use super::support::{migrated, value};

#[tokio::test]
async fn a_horizon_that_rises_while_a_page_is_stored_leaves_no_overlap() {
    let Some(test) = migrated().await else { return };
    test.execute(
        "SELECT relay_insert('{wss://a.example}', '{clearnet}', '{1}');
         SELECT coverage_put(1, 'all', '{100}', '{1000}', '{walked}', '{none}', '{1}');
         INSERT INTO archive_horizon (scope, before_at, set_at, reason) VALUES ('all', 500, now(), 'age')",
    )
    .await;
    let (mut keeper, mut store) = (test.connect(Role::Superuser).await, test.connect(Role::Superuser).await);
    let mut round = keeper.begin().await.unwrap();
    round.execute("SELECT coverage_retire(100)").await.unwrap();
    let mut storing = JoinSet::new();
    storing.spawn(async move {
        store.execute("SELECT coverage_put(1, 'all', '{100,900}', '{899,1100}', '{walked,reconciled}', '{none,none}', '{1,2}')").await
    });
    // Until it waits for the round, or has gone past it.
    let waits = "SELECT (EXISTS (SELECT FROM pg_locks WHERE NOT granted) OR EXISTS (SELECT FROM coverage WHERE until_at = 1100))::text";
    super::fleet::until(&test, waits, "true").await;
    round.commit().await.unwrap();
    storing.join_next().await.unwrap().unwrap().unwrap();
    let rows = "SELECT string_agg(since_at || '-' || until_at || ' ' || grade, ', ' ORDER BY since_at) FROM coverage";
    assert_eq!(value(&test, rows).await, "100-499 unknown, 500-899 walked, 900-1100 reconciled");
    // A horizon within what would have overlapped.
    test.execute("UPDATE archive_horizon SET before_at = 950; SELECT coverage_retire(100)").await;
    assert_eq!(value(&test, rows).await, "100-949 unknown, 950-1100 reconciled");
}

#[tokio::test]
async fn what_an_author_asked_to_delete_is_found_by_key_however_much_it_is() {
    let Some(test) = migrated().await else { return };
    test.execute(
        "INSERT INTO tombstone (pubkey, what, kind, target, until_at, request_id)
         SELECT sha256('author'), 0, -1, sha256(n::text::bytea), 0, sha256('request') FROM generate_series(1, 5000) n;
         INSERT INTO tombstone (pubkey, what, kind, target, until_at, request_id)
         SELECT sha256('author'), 1, 30023, sha256(n::text::bytea), 100, sha256('request') FROM generate_series(1, 5000) n;
         INSERT INTO tombstone (pubkey, what, kind, target, until_at, request_id)
         VALUES (sha256('gone'), 2, -1, '', 100, sha256('request'));
         ANALYZE tombstone",
    )
    .await;
    let mut connection = test.connect(Role::Superuser).await;
    let mut tx = connection.begin().await.unwrap();
    // By id; an id of another author; a request, which no id deletes; by address, and later than it; by vanishing, and the request for that.
    let hits = "WITH e(o, id, pubkey, kind, at, d) AS (VALUES
            (1, sha256('7'), sha256('author'), 1, 5, NULL), (2, sha256('7'), sha256('other'), 1, 5, NULL),
            (3, sha256('7'), sha256('author'), 5, 5, NULL), (4, sha256('x'), sha256('author'), 30023, 100, '9'::bytea),
            (5, sha256('y'), sha256('author'), 30023, 101, '9'), (6, sha256('z'), sha256('gone'), 5, 100, NULL),
            (7, sha256('z'), sha256('gone'), 62, 100, NULL))
        SELECT string_agg(h::text, ',' ORDER BY h) FROM tombstone_hits(
            (SELECT array_agg(id ORDER BY o) FROM e), (SELECT array_agg(pubkey ORDER BY o) FROM e), (SELECT array_agg(kind ORDER BY o) FROM e),
            (SELECT array_agg(at::bigint ORDER BY o) FROM e), (SELECT array_agg(d ORDER BY o) FROM e)) h";
    let found: String = sqlx::query(hits).fetch_one(&mut *tx).await.unwrap().get(0);
    assert_eq!(found, "1,4,6");
    let read = "SELECT (seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_xact_user_tables WHERE relname = 'tombstone'";
    let rows: i64 = sqlx::query(read).fetch_one(&mut *tx).await.unwrap().get(0);
    assert!(rows <= 7 * 4, "{rows} tombstones were read for 7 events");
}

#[tokio::test]
async fn addresses_of_i2p_are_not_one_site_and_steps_are_nobodys() {
    let Some(test) = migrated().await else { return };
    let sites = "SELECT string_agg(url_site(u), ' ' ORDER BY o) FROM unnest(ARRAY['ws://aaa.b32.i2p', 'ws://x.bbb.b32.i2p', 'ws://forum.i2p', 'wss://a.b.example', 'wss://a.b.co.uk']) WITH ORDINALITY v(u, o)";
    assert_eq!(value(&test, sites).await, "aaa.b32.i2p bbb.b32.i2p forum.i2p b.example b.co.uk");
    let step = |name: &str| {
        format!(
            "SELECT coalesce(string_agg(has_function_privilege('bigbrotr_writer', oid, 'EXECUTE')::text, ','), 'none') FROM pg_proc WHERE proname = '{name}'"
        )
    };
    for name in [
        "event_remove",
        "event_strip",
        "event_lay",
        "coverage_clip",
        "rollup_subtract",
        "job_hold",
        "schedule_move",
    ] {
        assert_eq!(test_value(&test, &step(name)).await, "false", "{name}");
    }
    assert_eq!(test_value(&test, &step("sync_store")).await.split(',').next(), Some("true"));
}

async fn test_value(test: &tests::pg::TestDb, sql: &str) -> String {
    let mut connection = test.connect(Role::Superuser).await;
    sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(&mut connection).await.unwrap().get(0)
}

#[tokio::test]
async fn a_gap_without_end_breaks_no_view() {
    let Some(test) = migrated().await else { return };
    test.execute(
        "SELECT relay_insert('{wss://a.example}', '{clearnet}', '{1}');
         SELECT coverage_put(1, 'all', '{0}', '{9223372036854775807}', '{partial}', '{protocol}', '{1}')",
    )
    .await;
    let whole = "SELECT (partial_seconds - extract(epoch FROM now())::bigint BETWEEN 0 AND 60)::text FROM relay_coverage_share";
    assert_eq!(value(&test, whole).await, "true");
}
