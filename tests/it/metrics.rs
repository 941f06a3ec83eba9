//! The metrics of the network against values computed by hand.

use tests::pg::{Role, TestDb};

use super::support::{handle, migrated, pairs, value};

/// Six relays, and a function that stores event `n` of a kind, so many months ago, as seen on relays.
const PUT: &str = "
    INSERT INTO relay (url, network, discovered_at) SELECT 'wss://r' || n || '.example', 'clearnet', 1 FROM generate_series(1, 6) n;
    CREATE FUNCTION put(n integer, p_kind integer, months integer, relays integer[], tags text) RETURNS bigint LANGUAGE plpgsql AS $$
    DECLARE
        v_id bytea := sha256(n::text::bytea);
        v_at bigint := extract(epoch FROM date_trunc('month', now() AT TIME ZONE 'UTC') - make_interval(months => months))::bigint + n;
        v_key bigint := (v_at << 31) | n;
    BEGIN
        PERFORM event_insert(ARRAY[v_id], ARRAY[v_key], ARRAY[v_at], ARRAY[sha256('p')], ARRAY[p_kind], ARRAY[convert_to(tags, 'UTF8')], ARRAY[''::bytea],
                             ARRAY[v_id || v_id], ARRAY[NULL::bytea], ARRAY['{}']);
        PERFORM event_relay_insert(array_agg(v_id), array_agg(v_key), array_agg(r), array_agg(1::bigint), array_agg(0::smallint)) FROM unnest(relays) r;
        RETURN v_at;
    END $$;";

async fn with_relays() -> Option<TestDb> {
    let test = migrated().await?;
    test.execute(PUT).await;
    Some(test)
}

async fn count(test: &TestDb) {
    let db = handle(test, Role::Refresher);
    while db.rollup_refresh(1_000).await.unwrap().backlog > 0 {}
}

#[tokio::test]
async fn replication_and_unique_content_are_what_one_counts_by_hand() {
    let Some(test) = with_relays().await else { return };
    // Kind 1, this month: 1, 1, 3 copies; a year ago: 2 and none. Kind 7, two months ago: 4.
    test.execute(
        "SELECT put(1, 1, 0, '{1}', '[]'), put(2, 1, 0, '{2}', '[]'), put(3, 1, 0, '{1,2,3}', '[]'),
                put(4, 1, 12, '{1,4}', '[]'), put(5, 1, 12, '{}', '[]'), put(6, 7, 2, '{1,2,3,4}', '[]')",
    )
    .await;
    count(&test).await;
    let replication = "SELECT kind || ' ' || age_months, concat_ws(' ', events, mean_copies, median_copies, most_copies, single_share) FROM replication_factor";
    let wanted = [("1 0", "3 1.67 1 3 0.6667"), ("1 12", "2 1.00 0 2 0.5000"), ("7 1", "1 4.00 4 4 0.0000")];
    let map =
        |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
    assert_eq!(pairs(&test, replication).await, map(&wanted));
    let unique = "SELECT relay_url, concat_ws(' ', event_count, unique_events, unique_share) FROM relay_unique_content";
    let wanted = [
        ("wss://r1.example", "4 1 0.2500"),
        ("wss://r2.example", "3 1 0.3333"),
        ("wss://r3.example", "2 0 0.0000"),
        ("wss://r4.example", "2 0 0.0000"),
    ];
    assert_eq!(pairs(&test, unique).await, map(&wanted));
    // The copy on relay 4 goes: event 4 is relay 1's alone.
    test.execute(
        "DO $$ DECLARE v bigint[] := ARRAY(SELECT event_key FROM event WHERE id = sha256('4')); BEGIN
             PERFORM rollup_forget_observations(v, '{4}'); DELETE FROM event_relay WHERE event_key = ANY (v) AND relay_id = 4; END $$",
    )
    .await;
    assert_eq!(pairs(&test, unique).await["wss://r1.example"], "4 2 0.5000");
    assert_eq!(pairs(&test, replication).await["1 12"], "2 0.50 0 1 1.0000");
}

#[tokio::test]
async fn the_overlap_of_small_relays_is_exact_and_that_of_large_ones_within_its_error() {
    let Some(test) = with_relays().await else { return };
    // Relay 1: 1 to 3,000; relay 2: 2,001 to 3,000, all of them on relay 1; relay 3: 2,901 to 3,100.
    test.execute(
        "SELECT put(n, 1, 0, '{1}', '[]') FROM generate_series(1, 2000) n;
         SELECT put(n, 1, 0, '{1,2}', '[]') FROM generate_series(2001, 2900) n;
         SELECT put(n, 1, 0, '{1,2,3}', '[]') FROM generate_series(2901, 3000) n;
         SELECT put(n, 1, 0, '{3,4}', '[]') FROM generate_series(3001, 3100) n",
    )
    .await;
    count(&test).await;
    assert_eq!(value(&test, "SELECT string_agg(concat_ws(' ', shared_events, standard_error, share, sampled), ',') FROM relay_overlap
        WHERE relay_url = 'wss://r3.example' AND other_url = 'wss://r4.example'").await, "100 0.0 0.5000 100");
    assert_eq!(value(&test, "SELECT string_agg(level || ' ' || (n BETWEEN 1 AND 1024), ', ' ORDER BY relay_id) FROM rollup_sketch").await,
        "2 true, 0 true, 0 true, 0 true");
    let within = "SELECT string_agg(concat_ws(' ', abs(shared_events - 1000) < 4 * standard_error, standard_error BETWEEN 40 AND 70,
            abs(share - 0.3333) < 4 * standard_error / 3000, sampled > 100), ',') FROM relay_overlap
        WHERE relay_url = 'wss://r1.example' AND other_url = 'wss://r2.example'";
    assert_eq!(value(&test, within).await, "t t t t");
    assert_eq!(value(&test, "SELECT count(*)::text FROM rollup_check()").await, "0");
    // An author who wrote much: the first and last events of each relay go, by both ways to find the next ones.
    test.execute(
        "DO $$ DECLARE v bigint[] := ARRAY(SELECT event_key FROM event WHERE event_key & 2147483647 < 9 OR event_key & 2147483647 BETWEEN 1995 AND 2005
                 OR event_key & 2147483647 BETWEEN 2899 AND 2910 OR event_key & 2147483647 BETWEEN 2998 AND 3003 OR event_key & 2147483647 > 3090);
         BEGIN PERFORM rollup_forget_events(v); DELETE FROM event_relay WHERE event_key = ANY (v); DELETE FROM event WHERE event_key = ANY (v); END $$",
    )
    .await;
    assert_eq!(value(&test, "SELECT count(*)::text FROM rollup_check()").await, "0");
    assert_eq!(
        value(&test, "SELECT string_agg(events::text, ' ' ORDER BY relay_id) FROM rollup_relay").await,
        "2966 980 174 87"
    );
}

#[tokio::test]
async fn concentration_is_the_sum_of_squared_shares_of_what_is_known() {
    let Some(test) = with_relays().await else { return };
    test.execute(
        "INSERT INTO metadata SELECT sha256((t || d)::bytea), t, json_build_object('data', d::json) FROM (VALUES
             ('nip66_net', '{\"net_asn\": 64500}'), ('nip66_net', '{\"net_asn\": 64501}'), ('nip66_net', '{}'),
             ('nip66_geo', '{\"geo_country\": \"DE\"}'), ('nip11_info', '{\"software\": \"s\"}')) x(t, d);
         INSERT INTO relay_metadata SELECT r, t, 5, sha256((t || d)::bytea) FROM (VALUES
             (1, 'nip66_net', '{\"net_asn\": 64500}'), (2, 'nip66_net', '{\"net_asn\": 64500}'), (3, 'nip66_net', '{\"net_asn\": 64500}'),
             (4, 'nip66_net', '{\"net_asn\": 64501}'), (5, 'nip66_net', '{}'), (6, 'nip66_net', '{\"net_asn\": 64501}'),
             (1, 'nip66_geo', '{\"geo_country\": \"DE\"}'), (2, 'nip11_info', '{\"software\": \"s\"}')) x(r, t, d);
         INSERT INTO relay_overall (relay_id, state, reason, since_at) VALUES (6, 'down', 'none', 1);
         SELECT put(1, 1, 0, '{1}', '[]'), put(2, 1, 0, '{4}', '[]'), all_statistics_refresh()",
    )
    .await;
    let concentration = "SELECT dimension, concat_ws(' ', relays, known, groups, hhi, largest, largest_share, observation_hhi) FROM relay_concentration";
    let seen = pairs(&test, concentration).await;
    // (3/4)^2 + (1/4)^2 of relays; of the two observations one each.
    assert_eq!(seen["asn"], "5 4 2 0.6250 64500 0.7500 0.5000");
    assert_eq!(seen["country"], "5 1 1 1.0000 DE 1.0000 1.0000");
    assert_eq!(seen["software"], "5 1 1 1.0000 s 1.0000");
}

#[tokio::test]
async fn a_hint_is_right_wrong_or_not_to_be_judged() {
    let Some(test) = with_relays().await else { return };
    test.execute(
        r#"DO $$ DECLARE
               at bigint := put(1, 1, 0, '{1}', '[]');
               target text := encode(sha256('1'), 'hex');
           BEGIN
               INSERT INTO coverage VALUES (2, 'all', at - 10, at + 10, 'walked', 'none', 1), (3, 'all', at - 10, at + 10, 'partial', 'none', 1);
               -- Right twice (the second time written otherwise), wrong on a relay that was proved, not judged on one that was not,
               -- a relay nobody knows, an event nobody has, no hint, no event id.
               PERFORM put(2, 1, 0, '{1}', json_build_array(json_build_array('e', target, 'wss://r1.example'))::text),
                   put(3, 1, 0, '{1}', json_build_array(json_build_array('e', target, 'WSS://R1.example/'), json_build_array('e', target, 'wss://r2.example'),
                       json_build_array('e', target, 'wss://r3.example'), json_build_array('e', target, 'wss://nobody.example'),
                       json_build_array('e', encode(sha256('x'), 'hex'), 'wss://r1.example'), json_build_array('e', target),
                       json_build_array('e', 'x', 'wss://r1.example'), 5)::text),
                   put(4, 1, 0, '{1}', '[["e", "\u0000", "\ud800"]]');
           END $$"#,
    )
    .await;
    let sql = "SELECT concat_ws(' ', events, hints, relay_known, target_known, judged, hits, accuracy) FROM hint_accuracy()";
    assert_eq!(value(&test, sql).await, "4 6 5 4 3 2 0.6667");
    assert_eq!(value(&test, "SELECT concat_ws(' ', events, hints) FROM hint_accuracy(0)").await, "0 0");
}
