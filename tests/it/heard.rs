//! What other monitors publish: from their events on a relay to the difference with what we say.

use serde_json::{Value, json};
use shared::clock;
use shared::db::{Actor, NewCandidate};
use shared::jobs::publish::TASK;
use shared::models::{AddressPolicy, JobKind, LOCAL, MonitorAnnouncementRow, MonitorReportRow, RelayUrl};
use shared::nips::nip66::parse_report;
use tests::factory::Factory;
use tests::pg::Role;
use tests::scripted::{Script, ScriptedRelay};

use super::cli::bigbrotr;
use super::jobs::context;
use super::publish::{honest, keys, publishing, run, run_kind, url, watched};
use super::support::{handle, migrated, value};

#[tokio::test]
async fn a_report_in_the_archive_stands_beside_our_own_words() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, publishing(&["ws://127.0.0.1:1"]));
    let (_seen, seen) = watched(&ctx, honest()).await;
    run(&ctx, seen.as_str()).await.unwrap();
    let tag = |name: &str, value: &str| vec![name.to_owned(), value.to_owned()];
    let factory = Factory::new(5);
    let now = clock::unix_now() - 5;
    let without_slash =
        vec![tag("d", seen.as_str()), tag("rtt-open", "31"), tag("R", "payment"), tag("R", "auth")];
    let events = [
        factory.sign(0, 30_166, without_slash, "{}", now),
        factory.sign(0, 10_166, vec![tag("frequency", "3600")], "", now),
    ];
    let (_source, source) = watched(&ctx, Script::honest(&events, 10)).await;
    run_kind(&ctx, JobKind::Sync, "clearnet", source.as_str()).await.unwrap();
    let mined = run_kind(&ctx, JobKind::Discover, LOCAL, "archive").await.unwrap();
    assert_eq!(mined["reports"], 2, "{mined}");
    let lines = handle(&test, Role::Reader).disagreement_list(&seen).await.unwrap();
    assert_eq!(lines[0].monitor, factory.author(0).public_key().to_hex());
    assert_eq!((lines[0].their_open_ms, &lines[0].disagrees), (Some(31), &vec!["auth".to_owned()]));
    assert_eq!(value(&test, "SELECT frequency_s::text FROM monitor_announcement").await, "3600");
}

#[tokio::test]
async fn other_monitors_words_stand_beside_ours_and_differences_are_named() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, publishing(&["ws://127.0.0.1:1"]));
    let (_relay, watched) = watched(&ctx, honest()).await;
    run(&ctx, watched.as_str()).await.unwrap();
    let now = clock::unix_now();
    let report = |monitor: u8, at: i64, tags: Value| {
        let mut all: Vec<Vec<String>> = serde_json::from_value(tags).unwrap();
        all.insert(0, vec!["d".to_owned(), watched.to_nip66_d()]);
        parse_report(30_166, [monitor; 32], at, &all, &AddressPolicy::local()).unwrap()
    };
    let ours = report(0, now, json!([]));
    let own = MonitorReportRow { monitor: keys().pubkey(), ..ours };
    let rows = [
        report(1, now - 50, json!([["rtt-open", "9"], ["R", "auth"]])),
        report(1, now - 10, json!([["rtt-open", "7"], ["R", "auth"], ["N", "1"], ["N", "50"]])),
        report(2, now - 400_000, json!([["R", "!auth"]])),
        report(3, now + 5_000, json!([])),
        own,
    ];
    assert_eq!(ctx.db.monitor_report_put(&rows).await.unwrap(), 2);
    assert_eq!(ctx.db.monitor_report_put(&rows).await.unwrap(), 0, "the newest stands");
    let announced = MonitorAnnouncementRow {
        monitor: [2; 32],
        created_at: now,
        frequency_s: Some(3_600),
        checks: vec!["open".to_owned(), "a \"quoted\\\" one".to_owned()],
        timeouts_ms: vec![("open".to_owned(), 5_000), (String::new(), 1)],
        geohash: None,
    };
    let twice = [announced.clone(), announced.clone()];
    assert_eq!(ctx.db.monitor_announcement_put(&twice).await.unwrap(), 1);
    let reader = handle(&test, Role::Reader);
    let lines = reader.disagreement_list(&watched).await.unwrap();
    let said: Vec<(String, &str, Vec<String>, Option<i32>)> = lines
        .iter()
        .map(|line| {
            (
                line.monitor[..2].to_owned(),
                line.their_state.as_str(),
                line.disagrees.clone(),
                line.their_open_ms,
            )
        })
        .collect();
    assert_eq!(
        said,
        [
            ("01".to_owned(), "alive", vec!["auth".to_owned()], Some(7)),
            ("02".to_owned(), "absent", vec!["liveness".to_owned()], None),
        ]
    );
    assert_eq!(
        value(&test, "SELECT nips::text FROM monitor_report WHERE monitor = decode(repeat('01', 32), 'hex')")
            .await,
        "{1,50}"
    );
    assert_eq!(
        value(&test, "SELECT checks[2] || (timeouts ->> 'open') FROM monitor_announcement").await,
        "a \"quoted\\\" one5000"
    );
    // Keys cost nothing: who makes a thousand of them fills no table.
    let crowd: Vec<_> = (0..1_000_u16)
        .map(|i| {
            let mut row = report(9, now, json!([]));
            row.monitor[..2].copy_from_slice(&i.to_be_bytes());
            row
        })
        .collect();
    assert_eq!(ctx.db.monitor_report_put(&crowd).await.unwrap(), 98);
    // And shuts nobody out who reports on other relays as well.
    let elsewhere = RelayUrl::parse("wss://elsewhere.example", &AddressPolicy::public()).unwrap();
    ctx.db.relay_insert(&[(elsewhere.clone(), 1)]).await.unwrap();
    let real = report(7, now - 60, json!([]));
    let other = MonitorReportRow { url: elsewhere, ..real.clone() };
    ctx.db.monitor_report_put(&[other]).await.unwrap();
    ctx.db.monitor_report_put(&[real]).await.unwrap();
    let kept = "SELECT count(*) || ' ' || count(*) FILTER (WHERE monitor = decode(repeat('07', 32), 'hex')) FROM monitor_report
                WHERE relay_id = (SELECT id FROM relay WHERE url LIKE 'ws://%')";
    assert_eq!(value(&test, kept).await, "100 1");
    // Nor do keys that only announce themselves.
    let announced: Vec<_> = (0..1_200_u16)
        .map(|i| {
            let mut row = announced.clone();
            row.monitor[..2].copy_from_slice(&i.to_be_bytes());
            row
        })
        .collect();
    ctx.db.monitor_announcement_put(&announced).await.unwrap();
    let kept = "SELECT count(*) FILTER (WHERE m.monitor IS NULL) || ' ' || bool_or(a.monitor = decode(repeat('02', 32), 'hex'))
                FROM monitor_announcement a LEFT JOIN (SELECT DISTINCT monitor FROM monitor_report) m ON m.monitor = a.monitor";
    assert_eq!(value(&test, kept).await, "1000 true");
}

#[tokio::test]
async fn a_monitor_that_announces_a_century_vouches_for_three_weeks_and_breaks_nothing() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, publishing(&["ws://127.0.0.1:1"]));
    let (_relay, watched) = watched(&ctx, honest()).await;
    let now = clock::unix_now();
    let report = |monitor: u8, at: i64| {
        let tags = vec![vec!["d".to_owned(), watched.to_nip66_d()]];
        parse_report(30_166, [monitor; 32], at, &tags, &AddressPolicy::local()).unwrap()
    };
    ctx.db.monitor_report_put(&[report(1, now - 20 * 86_400), report(2, now - 22 * 86_400)]).await.unwrap();
    let announced = |monitor: u8| MonitorAnnouncementRow {
        monitor: [monitor; 32],
        created_at: now,
        frequency_s: Some(i32::MAX as u32),
        checks: Vec::new(),
        timeouts_ms: Vec::new(),
        geohash: None,
    };
    ctx.db.monitor_announcement_put(&[announced(1), announced(2)]).await.unwrap();
    let lines = handle(&test, Role::Reader).disagreement_list(&watched).await.unwrap();
    let mut said: Vec<_> = lines.iter().map(|line| (&line.monitor[..2], line.their_state.as_str())).collect();
    said.sort_unstable();
    assert_eq!(said, [("01", "alive"), ("02", "absent")]);
}

#[tokio::test]
async fn a_relay_that_says_something_else_at_every_look_keeps_its_latest_hundred_documents() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, publishing(&["ws://127.0.0.1:1"]));
    let url = RelayUrl::parse("wss://chatty.example", &AddressPolicy::public()).unwrap();
    let say = |n: i64| {
        let json = format!(r#"{{"data":{{"name":"{n}"}},"logs":{{"success":true}}}}"#);
        let document = shared::models::Metadata::new(shared::models::MetadataType::Nip11Info, &json).unwrap();
        (url.clone(), document, 1_000 + n)
    };
    for batch in 0..11 {
        let said: Vec<_> = (batch * 10..batch * 10 + 10).map(say).collect();
        for one in said {
            ctx.db.relay_metadata_insert_cascade(&[one]).await.unwrap();
        }
    }
    let kept = "SELECT count(*) || ' ' || min(generated_at) || ' ' || max(generated_at) FROM relay_metadata";
    assert_eq!(value(&test, kept).await, "100 1010 1109");
    assert_eq!(value(&test, "SELECT orphan_metadata_delete(1000)::text").await, "10");
}

fn report_on(url: &RelayUrl, monitor: u8, at: i64) -> MonitorReportRow {
    let tags = vec![vec!["d".to_owned(), url.to_nip66_d()], vec!["rtt-open".to_owned(), "7".to_owned()]];
    parse_report(30_166, [monitor; 32], at, &tags, &AddressPolicy::local()).unwrap()
}

#[tokio::test]
async fn what_others_find_alive_and_never_spoke_to_us_is_shown_with_our_reason_and_is_the_relays_later() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, publishing(&["ws://127.0.0.1:1"]));
    let relay = ScriptedRelay::start(honest().refusing_upgrade(403)).await;
    let at = url(&relay.url());
    let [nobodys, excluded] = ["wss://unknown.example", "wss://left.example"].map(url);
    let actor = Actor { name: "tester".to_owned(), why: "a test".to_owned() };
    ctx.db.relay_exclude(&["left.example".to_owned()], "opt_out", &actor).await.unwrap();
    let now = clock::unix_now();
    let rows = [report_on(&at, 1, now - 50), report_on(&at, 1, now - 10), report_on(&nobodys, 1, now)];
    assert_eq!(ctx.db.monitor_report_put(&rows).await.unwrap(), 2);
    assert_eq!(ctx.db.monitor_report_put(&rows).await.unwrap(), 0, "the newest stands");
    let unwanted = [
        report_on(&excluded, 1, now),
        report_on(&nobodys, 2, now + 5_000),
        MonitorReportRow { monitor: keys().pubkey(), ..report_on(&nobodys, 3, now) },
    ];
    run(&ctx, TASK).await.unwrap();
    assert_eq!(ctx.db.monitor_report_put(&unwanted).await.unwrap(), 0);
    let reader = handle(&test, Role::Reader);
    let said = async |of: &RelayUrl| {
        let lines = reader.disagreement_list(of).await.unwrap();
        assert_eq!(lines.len(), 1);
        let line = lines.into_iter().next().unwrap();
        assert_eq!((line.their_state.as_str(), line.their_open_ms), ("alive", Some(7)));
        (line.our_state, line.our_end[1].clone().unwrap_or_default(), line.disagrees.join(" "))
    };
    let is =
        |state: &str, reason: &str, differs: &str| (state.to_owned(), reason.to_owned(), differs.to_owned());
    assert_eq!(said(&at).await, is("unknown", "", ""));
    ctx.db.candidate_insert(&[NewCandidate { url: at.clone(), source: "seed" }]).await.unwrap();
    assert_eq!(said(&at).await, is("untried", "", ""));
    run_kind(&ctx, JobKind::Validate, "clearnet", at.as_str()).await.unwrap();
    assert_eq!(said(&at).await, is("failing", "blocked", "unproved"));
    test.execute("UPDATE candidate SET tombstoned_at = 5").await;
    assert_eq!(said(&at).await, is("given-up", "blocked", "unproved"));
    for show in [at.as_str(), nobodys.as_str()] {
        let output =
            bigbrotr(&["candidate", "show", show, "--json", "--database-url", &test.url(Role::Reader)]);
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&shown["monitors"][0]["says"], shown["monitors"].as_array().unwrap().len()),
            (&"alive".into(), 1)
        );
        assert_eq!(shown["state"], if show == at.as_str() { "given-up" } else { "unknown" });
    }
    // It becomes a relay after all, and with it comes what was said of it.
    test.execute("UPDATE candidate SET tombstoned_at = NULL").await;
    relay.set(honest());
    run_kind(&ctx, JobKind::Validate, "clearnet", at.as_str()).await.unwrap();
    assert_eq!(said(&at).await, is("unchecked", "none", ""));
    let moved = "SELECT (SELECT count(*) FROM monitor_report) || ' ' || (SELECT string_agg(url, ' ') FROM candidate_report)";
    assert_eq!(value(&test, moved).await, "1 wss://unknown.example");
    assert_eq!(
        ctx.db.monitor_report_put(&[report_on(&at, 1, now)]).await.unwrap(),
        1,
        "and newer words as well"
    );
    // A relay that will not have us is neither alive nor down here.
    relay.set(honest().refusing_upgrade(403));
    run(&ctx, at.as_str()).await.unwrap();
    assert_eq!(said(&at).await, is("suspect", "blocked", "refused"));
}

#[tokio::test]
async fn words_about_what_is_no_relay_have_an_end_and_who_reports_on_relays_keeps_his() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, publishing(&["ws://127.0.0.1:1"]));
    let (_relay, watched) = watched(&ctx, honest()).await;
    let now = clock::unix_now();
    let far = url("wss://far.example");
    ctx.db.monitor_report_put(&[report_on(&watched, 7, now), report_on(&far, 7, now - 60)]).await.unwrap();
    let crowd: Vec<_> = (0..150_u8)
        .map(|i| MonitorReportRow { monitor: [i.wrapping_add(20); 32], ..report_on(&far, 9, now) })
        .collect();
    assert_eq!(ctx.db.monitor_report_put(&crowd).await.unwrap(), 99, "a hundred for one URL");
    let kept = "SELECT count(*) || ' ' || count(*) FILTER (WHERE monitor = decode(repeat('07', 32), 'hex')) FROM candidate_report";
    assert_eq!(value(&test, kept).await, "100 1");
    // Twenty in all: a tenth less, once there are more.
    let strange = "SELECT monitor_report_put(ARRAY[decode(repeat('05', 32), 'hex')], ARRAY['wss://more.example'], ARRAY[1::bigint], ARRAY[NULL::integer],
        ARRAY[NULL::integer], ARRAY[NULL::integer], ARRAY[NULL::boolean], ARRAY[NULL::boolean], ARRAY[NULL::boolean], ARRAY[NULL::boolean],
        ARRAY['{}'], ARRAY[NULL::text], 20)";
    test.execute(strange).await;
    assert_eq!(value(&test, kept).await, "18 1");
    assert_eq!(
        value(&test, "SELECT n::text FROM stranger_count WHERE what = 'candidate_report'").await,
        "18"
    );
    // And what is old is forgotten with the rest.
    test.execute("UPDATE candidate_report SET created_at = 1").await;
    ctx.db.publication_retire(true, 90).await.unwrap();
    assert_eq!(value(&test, "SELECT count(*)::text FROM candidate_report").await, "0");
}

#[tokio::test]
async fn what_a_relay_says_at_length_is_kept_up_to_so_many_bytes() {
    let Some(test) = migrated().await else { return };
    let ctx = context(&test, publishing(&["ws://127.0.0.1:1"]));
    let url = RelayUrl::parse("wss://verbose.example", &AddressPolicy::public()).unwrap();
    let say = async |n: i64, bytes: usize| {
        // No text that could be made shorter.
        let name = clock::random_hex(bytes / 2);
        let json = format!(r#"{{"data":{{"name":"{name}"}},"logs":{{"success":true}}}}"#);
        let document = shared::models::Metadata::new(shared::models::MetadataType::Nip11Info, &json).unwrap();
        ctx.db.relay_metadata_insert_cascade(&[(url.clone(), document, 1_000 + n)]).await.unwrap();
    };
    for n in 0..20 {
        say(n, 60_000).await;
    }
    let kept = "SELECT count(*) || ' ' || max(r.generated_at) || ' ' || (sum(pg_column_size(m.data)) BETWEEN 150000 AND 262144) \
                FROM relay_metadata r JOIN metadata m ON m.id = r.metadata_id AND m.type = r.metadata_type";
    let said = value(&test, kept).await;
    assert!(said.ends_with(" 1019 true"), "{said}");
    test.execute("SELECT orphan_metadata_delete(1000)").await;
    let bytes = "SELECT (sum(pg_column_size(data)) <= 262144)::text FROM metadata";
    assert_eq!(value(&test, bytes).await, "true");
    // The latest stays, however long: it is what the relay says.
    say(99, 900_000).await;
    assert_eq!(
        value(&test, "SELECT count(*) || ' ' || max(generated_at) FROM relay_metadata").await,
        "1 1099"
    );
}
