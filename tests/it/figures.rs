//! Numbers at their corners: clocks apart, nothing known yet, one second of a month.

use super::support::{migrated, value};

const RELAY: &str =
    "INSERT INTO relay (url, network, discovered_at) VALUES ('wss://a.example', 'clearnet', 1);
                     INSERT INTO vantage (name) VALUES ('here')";

#[tokio::test]
async fn a_clock_that_is_ahead_of_the_readers_breaks_no_view() {
    let Some(test) = migrated().await else { return };
    test.execute(RELAY).await;
    test.execute(
        "INSERT INTO relay_alert (relay_id, vantage_id, at, before, after, reason, settles, delivery)
         SELECT r.id, v.id, extract(epoch FROM now())::bigint + 600, NULL, 'down', 'connect_timeout', true, 'none' FROM relay r, vantage v",
    )
    .await;
    let seen =
        "SELECT concat_ws(' ', observed_s, down_s, availability_pct, failures) FROM relay_reliability_30d";
    assert_eq!(value(&test, seen).await, "0 0 0");
}

#[tokio::test]
async fn of_a_relay_that_nobody_has_judged_no_share_is_said() {
    let Some(test) = migrated().await else { return };
    test.execute(RELAY).await;
    test.execute(
        "INSERT INTO relay_uptime (relay_id, vantage_id, at, checks, up, refused, open_hist, read_hist, write_hist, seen_s, up_s)
         SELECT r.id, v.id, (extract(epoch FROM now())::bigint / 3600 - h) * 3600, 1, 0, 0, '', '', '', 3600, 0
         FROM relay r, vantage v, generate_series(1, 100) h",
    )
    .await;
    let said = "SELECT concat_ws(' ', observed_s, down_s, availability_pct) FROM relay_reliability_30d";
    assert_eq!(value(&test, said).await, "0 0", "no look has found it alive or down");
}

#[tokio::test]
async fn a_second_that_is_not_proved_keeps_a_month_from_being_whole() {
    let Some(test) = migrated().await else { return };
    test.execute(RELAY).await;
    test.execute(
        "INSERT INTO coverage (relay_id, class, since_at, until_at, grade, reason, observed_at)
         SELECT r.id, 'all', x.since_at, x.until_at, x.grade, x.reason, 1
         FROM relay r, (SELECT extract(epoch FROM timestamptz '2025-01-01Z')::bigint AS lo, extract(epoch FROM timestamptz '2025-02-01Z')::bigint - 1 AS hi) m,
              LATERAL (VALUES (lo, lo + 999, 'walked', 'none'), (lo + 1000, lo + 1000, 'partial', 'dense_second'), (lo + 1001, hi, 'walked', 'none')) x(since_at, until_at, grade, reason)",
    )
    .await;
    let month = "SELECT string_agg(grade || ' ' || (share > 0 AND share < 1), ', ' ORDER BY grade) FROM relay_coverage_month";
    assert_eq!(value(&test, month).await, "partial true, walked true");
    assert_eq!(value(&test, "SELECT (proved_share < 1)::text FROM relay_coverage_share").await, "true");
}
