//! How many URLs a host, a domain and a hoster may have, whoever names them, what is said of the rest,
//! and when candidates that were given up are forgotten.

use shared::clock;
use shared::db::{Actor, Found, Sighting};
use shared::jobs::JobsConfig;
use shared::models::{JobKind, Source};
use tests::factory::Factory;
use tests::pg::Role;
use tests::scripted::{Script, ScriptedRelay};

use super::discover::{Lists, candidate_urls, candidates, ok, url};
use super::jobs::{config, context, known_relay, run};
use super::scheduler::{round, scheduler};
use super::support::{claim_one, handle, job, migrated, value};

#[tokio::test]
async fn one_host_has_a_limited_number_of_urls_and_the_rest_is_counted() {
    let Some(test) = migrated().await else { return };
    let entries: Vec<String> = (0..50).map(|i| format!("wss://spam.example/npub{i:03}")).collect();
    let body = serde_json::json!([entries, ["wss://spam.example", "wss://other.example"]]).to_string();
    let lists = Lists::start(&[("/", ok(&body))]).await;
    let ctx =
        context(&test, JobsConfig { sources: vec![lists.source("/", "[][]")], urls_per_host: 5, ..config() });
    let report = run(&ctx, JobKind::Discover, "http").await.unwrap();
    assert_eq!(report["new_candidates"], 6, "{report}");
    assert_eq!(
        candidate_urls(&test).await,
        "wss://other.example wss://spam.example wss://spam.example/npub000 wss://spam.example/npub001 wss://spam.example/npub002 wss://spam.example/npub003"
    );
    assert_eq!(value(&test, "SELECT host || ' ' || refused FROM candidate_refusal").await, "spam.example 46");
    // Whoever names one on purpose is not concerned.
    assert_eq!(candidates(&ctx.db, &["wss://spam.example/mine"]).await, 1);
}

#[tokio::test]
async fn endless_hosts_below_one_domain_are_cut_off_and_counted_as_one() {
    let Some(test) = migrated().await else { return };
    let many = |count: usize, below: &str| {
        (0..count)
            .map(|i| format!("wss://r{i:02}.{}", below.replace('#', &i.to_string())))
            .collect::<Vec<_>>()
    };
    let entries = [
        many(40, "wild.example"),
        // Of a country that sells the third level, one shop and many; and of one that sells the second, however it looks.
        many(9, "shop.me.uk"),
        many(9, "#.me.uk"),
        many(12, "go.de"),
        // Six names of one customer of a hoster, and one each of twenty more.
        many(6, "nas.duckdns.org"),
        many(20, "nas#.duckdns.org"),
        // One block of addresses.
        (1..=9).map(|i| format!("wss://8.8.8.{i}")).collect(),
        // Another domain, which only ends like the first.
        vec!["wss://a.notwild.example".to_owned()],
    ];
    let body = serde_json::json!(entries.concat()).to_string();
    let lists = Lists::start(&[("/", ok(&body))]).await;
    let (urls_per_site, urls_per_hoster) = (7, 15);
    let sources = vec![lists.source("/", "[]")];
    let ctx = context(&test, JobsConfig { sources, urls_per_site, urls_per_hoster, ..config() });
    handle(&test, Role::Writer).relay_insert(&[(url("wss://own.wild.example"), 1)]).await.unwrap();
    let report = run(&ctx, JobKind::Discover, "http").await.unwrap();
    assert_eq!(report["new_candidates"], 6 + 7 + 9 + 7 + 15 + 7 + 1, "{report}");
    let reader = handle(&test, Role::Reader);
    let capped = reader.candidate_capped(100).await.unwrap();
    let capped: Vec<_> = capped.iter().map(|c| (c.name.as_str(), c.refused)).collect();
    let expected =
        [("*.wild.example", 34), ("*.duckdns.org", 11), ("*.go.de", 5), ("*.8.8.8", 2), ("*.shop.me.uk", 2)];
    assert_eq!(capped, expected, "one row, whatever they are called");
    for (named, of) in [
        ("wss://r39.wild.example", (None, Some(34), None)),
        ("wss://x.duckdns.org", (None, None, Some(11))),
        ("wss://8.8.8.200", (None, Some(2), None)),
    ] {
        let found = reader.candidate_sources(&url(named)).await.unwrap();
        assert_eq!((found.refused_on_host, found.refused_on_site, found.refused_on_hoster), of, "{named}");
    }
    assert_eq!(candidates(&ctx.db, &["wss://mine.wild.example"]).await, 1, "named on purpose");
    let again = "UPDATE service_state SET state_value = '{}'; SELECT 1";
    test.execute(again).await;
    let report = run(&ctx, JobKind::Discover, "http").await.unwrap();
    assert_eq!(report["new_candidates"], 0, "who is full stays full: {report}");
}

#[tokio::test]
async fn a_candidate_given_up_and_named_by_nobody_for_long_is_forgotten_and_new_when_named() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    let names = ["alone", "fresh", "gone1", "gone2", "named", "proved", "tried", "waits"];
    let urls = names.map(|name| format!("wss://{name}.example"));
    assert_eq!(candidates(&db, &urls.each_ref().map(String::as_str)).await, 8);
    db.relay_insert(&[(url("wss://proved.example"), 1)]).await.unwrap();
    db.job_enqueue(&[job(JobKind::Validate, "wss://waits.example")]).await.unwrap();
    test.execute(
        "DELETE FROM schedule;
         UPDATE candidate SET tombstoned_at = 5, last_seen_at = 5;
         UPDATE candidate SET tombstoned_at = extract(epoch FROM now())::bigint WHERE url = 'wss://fresh.example';
         UPDATE candidate SET last_seen_at = extract(epoch FROM now())::bigint WHERE url = 'wss://named.example';
         UPDATE candidate SET tombstoned_at = NULL WHERE url = 'wss://tried.example';
         INSERT INTO relay_exclusion (target, kind, why, actor, excluded_at) VALUES ('alone.example', 'opt_out', '', 'tester', 1)",
    )
    .await;
    assert_eq!(db.candidate_retire(1, 90).await.unwrap(), 1, "a batch is no larger than asked for");
    let (mut scheduler, _metrics) = scheduler(&test.url(Role::Writer));
    round(&mut scheduler).await;
    assert_eq!(db.candidate_retire(10, 90).await.unwrap(), 0, "the scheduler did the rest");
    let kept = "wss://fresh.example wss://named.example wss://tried.example wss://waits.example";
    assert_eq!(candidate_urls(&test).await, kept);
    let sources =
        "SELECT string_agg(url, ' ' ORDER BY url) FROM candidate_source WHERE url <> 'wss://proved.example'";
    assert_eq!(value(&test, sources).await, kept);
    let relay = "SELECT string_agg(source, ' ') FROM candidate_source WHERE url = 'wss://proved.example'";
    assert_eq!(value(&test, relay).await, "seed", "where a relay was seen stays known");
    assert_eq!(
        candidates(&db, &["wss://alone.example", "wss://gone1.example"]).await,
        1,
        "who is left alone stays so"
    );
    let due =
        "SELECT string_agg(target, ' ') FROM schedule WHERE kind = 'validate' AND why = 'new candidate'";
    assert_eq!(value(&test, due).await, "wss://gone1.example");
}

/// Where what is open was seen first.
const OPEN: &str = "SELECT string_agg(source || ' ' || n, ', ' ORDER BY source) FROM (
    SELECT source, count(*) AS n FROM candidate WHERE tombstoned_at IS NULL GROUP BY 1) x";

#[tokio::test]
async fn candidates_have_an_end_that_invented_domains_do_not_move_and_lists_do_not_meet() {
    let Some(test) = migrated().await else { return };
    let invented = |count: u32, below: &str| -> Vec<String> {
        (0..count).map(|n| format!("wss://{below}{n}.example")).collect()
    };
    let (factory, now) = (Factory::new(8), clock::unix_now() - 5);
    let named: Vec<_> = invented(40, "spam").into_iter().map(|url| vec!["x".to_owned(), url]).collect();
    let reported = vec![vec!["d".to_owned(), "wss://reported.example".to_owned()]];
    let events = [factory.sign(0, 1, named, "", now), factory.sign(1, 30_166, reported, "{}", now)];
    let relay = ScriptedRelay::start(Script::honest(&events, 50)).await;
    let lists = Lists::start(&[("/", ok(&serde_json::json!(invented(5, "listed")).to_string()))]).await;
    let sources = vec![lists.source("/", "[]")];
    let ctx = context(&test, JobsConfig { sources, candidates_max: 20, ..config() });
    let source = known_relay(&ctx.db, &relay).await;
    assert_eq!(candidates(&ctx.db, &["wss://seed0.example", "wss://seed1.example"]).await, 2);
    run(&ctx, JobKind::Sync, source.as_str()).await.unwrap();
    let mined = run(&ctx, JobKind::Discover, "archive").await.unwrap();
    // Two seeds, what is reported, and notes up to nine tenths of twenty.
    assert_eq!((&mined["new_candidates"], &mined["over_cap"]), (&16.into(), &25.into()), "{mined}");
    assert_eq!(value(&test, OPEN).await, "monitor 1, seed 2, tag 15");
    let reader = handle(&test, Role::Reader);
    let refused = reader.candidate_capped(10).await.unwrap();
    assert_eq!(refused.iter().map(|c| (c.name.as_str(), c.refused)).collect::<Vec<_>>(), [("*", 25)]);
    let of = reader.candidate_sources(&url("wss://spam39.example")).await.unwrap();
    assert_eq!((of.refused_on_host, of.refused_in_all), (None, Some(25)));
    // A list of the operator's, and what he names, have their place all the same.
    let report = run(&ctx, JobKind::Discover, "http").await.unwrap();
    assert_eq!(report["new_candidates"], 5, "{report}");
    assert_eq!(candidates(&ctx.db, &["wss://named.example"]).await, 1);
    assert_eq!(value(&test, OPEN).await, "http 5, monitor 1, seed 3, tag 15");
    // Names of another network, which cost nothing, have an end of their own; and what is excluded makes room, as soon as
    // it is counted again.
    let actor = Actor { name: "tester".to_owned(), why: "a test".to_owned() };
    let spam: Vec<String> = invented(40, "spam").iter().map(|url| url.replace("wss://", "")).collect();
    let store = async |target: &str, of: &str| {
        let late = Sighting { url: url(of), source: Source::Tag, origin: String::new() };
        let caps = Found { per_host: 9, per_site: 9, per_hoster: 9, in_all: 20, ..Found::default() };
        let (_, fence) = claim_one(&ctx.db, "w1", JobKind::Discover, target).await;
        ctx.db.discover_store(&fence, &Found { sightings: vec![late], ..caps }).await.unwrap().unwrap().new
    };
    assert_eq!(store("one", &format!("ws://{}.onion", "a".repeat(56))).await, 1);
    ctx.db.relay_exclude(&spam, "opt_out", &actor).await.unwrap();
    assert_eq!(store("two", "wss://late.example").await, 0);
    test.execute("UPDATE stranger_count SET counted_at = counted_at - interval '61 seconds'").await;
    assert_eq!(store("three", "wss://late.example").await, 1);
}
