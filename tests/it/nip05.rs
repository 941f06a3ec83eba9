//! NIP-05 from a profile in the archive to a relay that is alive, over HTTPS; and the pace of those that are asked.

use std::net::SocketAddr;

use serde_json::json;
use shared::db::{Db, Found};
use shared::jobs::{HttpSource, JobsConfig};
use shared::models::{AddressPolicy, Fence, JobKind};
use tests::factory::Factory;
use tests::pg::Role;
use tests::scripted::{Script, ScriptedRelay};
use tests::world::{Plan, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::fleet::{seed_relays, until};
use super::jobs::{config, context, run};
use super::names::{scheduler, worker};
use super::support::{claim_one, handle, migrated, pairs, polite, value};

const ZONE: &str = "\
relay.example     11.22.33.1    none
named.example     none          2a0f:ffff:1::1
good.example      11.22.33.2    none
twin.example      11.22.33.2    none
away.example      11.22.33.2    none
empty.example     11.22.33.2    none
inside.example    10.0.0.1      none
";

fn answer(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_in_the_archive_leads_over_https_to_a_relay_that_is_alive() {
    let Some(test) = migrated().await else { return };
    let now = shared::clock::unix_now();
    let factory = Factory::new(61);
    let hosts = ["good", "twin", "away", "empty", "inside"];
    let events: Vec<_> = hosts
        .iter()
        .enumerate()
        .map(|(i, host)| {
            let profile = json!({ "nip05": format!("bob@{host}.example") }).to_string();
            factory.sign(i, 0, vec![], &profile, now - 60 - i64::try_from(i).unwrap())
        })
        .collect();
    let document =
        json!({ "names": { "bob": "ab" }, "relays": { "ab": ["ws://named.example/", "ws://10.0.0.1", 7] } });
    let good = answer("200 OK", &document.to_string());
    let away = "HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\nContent-Length: 0\r\n\r\n";
    let site = [
        ("good.example", good.as_str()),
        ("twin.example", good.as_str()),
        ("away.example", away),
        ("empty.example", &answer("200 OK", "[]")),
        ("inside.example", good.as_str()),
    ];
    let Some(world) = World::start(Plan { zone: ZONE, events: &events, site: &site }).await else { return };
    let root = world.root();
    let trust = [("BIGBROTR_NETWORK_TRUST", root.to_str().unwrap())];
    let Some(_worker) = worker(&world, &test, &trust).await else { return };
    let _scheduler = scheduler(&test);
    seed_relays(&test, &["ws://relay.example".to_owned()]).await;
    until(&test, "SELECT count(*)::text FROM nip05_domain", "5").await;
    test.execute("UPDATE schedule SET due_at = now() WHERE kind = 'discover' AND target = 'nip05'").await;
    until(&test, "SELECT count(*)::text FROM relay_state s JOIN relay r ON r.id = s.relay_id WHERE r.url = 'ws://named.example' AND s.state = 'alive'", "1").await;

    let asked =
        pairs(&test, "SELECT domain, outcome || ' ' || relays FROM nip05_domain WHERE asked_at IS NOT NULL")
            .await;
    let expected = [
        ("away.example", "http_status 0"),
        ("empty.example", "not_json 0"),
        ("good.example", "ok 1"),
        ("inside.example", "address_refused 0"),
        ("twin.example", "ok 1"),
    ];
    assert_eq!(asked.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), expected);
    let origins = "SELECT string_agg(source || ' ' || origin, ',' ORDER BY origin) FROM candidate_source WHERE url = 'ws://named.example'";
    assert_eq!(value(&test, origins).await, "nip05 good.example,nip05 twin.example");
    // Each once, by the name it was asked for; and one machine sees its domains one after the other.
    let visits = world.visits();
    let mut seen: Vec<_> = visits.iter().map(|(_, host, path)| format!("{host}{path}")).collect();
    seen.sort();
    let paths = ["away", "empty", "good", "twin"]
        .map(|host| format!("{host}.example/.well-known/nostr.json?name=bob"));
    assert_eq!(seen, paths);
    for pair in visits.windows(2) {
        // bound: a second, less what lies between two clocks' readings on a busy machine
        assert!(pair[1].0 - pair[0].0 >= 700, "{visits:?}");
    }
    assert!(world.met().iter().all(|ip| ip.to_string() != "10.0.0.1"), "{:?}", world.met());
    assert_eq!(value(&test, "SELECT count(*)::text FROM host_state WHERE host = '11.22.33.2'").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn domains_that_cannot_be_asked_from_here_take_nobody_elses_turn() {
    let Some(test) = migrated().await else { return };
    let now = shared::clock::unix_now();
    let factory = Factory::new(62);
    // Of a family that has no route from here, and before the good one in every order.
    let mut hosts: Vec<String> = (0..12).map(|i| format!("a{i}")).collect();
    let lines: Vec<String> =
        hosts.iter().map(|host| format!("{host}.example none 2a0f:eeee:1::1\n")).collect();
    let zone = ZONE.to_owned() + &lines.concat();
    hosts.push("good".to_owned());
    let events: Vec<_> = hosts
        .iter()
        .enumerate()
        .map(|(i, host)| {
            let profile = json!({ "nip05": format!("bob@{host}.example") }).to_string();
            factory.sign(i, 0, vec![], &profile, now - 60)
        })
        .collect();
    let good = answer("200 OK", &json!({ "relays": { "ab": ["ws://named.example/"] } }).to_string());
    let site = [("good.example", good.as_str())];
    let Some(world) = World::start(Plan { zone: &zone, events: &events, site: &site }).await else { return };
    let root = world.root();
    let trust = [("BIGBROTR_NETWORK_TRUST", root.to_str().unwrap())];
    let Some(_worker) = worker(&world, &test, &trust).await else { return };
    let _scheduler = scheduler(&test);
    seed_relays(&test, &["ws://relay.example".to_owned()]).await;
    until(&test, "SELECT count(*)::text FROM nip05_domain", "13").await;
    // Two runs.
    for done in [
        "SELECT (count(*) >= 10)::text FROM nip05_domain WHERE asked_at IS NOT NULL",
        "SELECT (count(*) = 1)::text FROM nip05_domain WHERE domain = 'good.example' AND outcome || ' ' || relays = 'ok 1'",
    ] {
        test.execute("UPDATE schedule SET due_at = now() WHERE kind = 'discover' AND target = 'nip05'").await;
        until(&test, done, "true").await;
    }
}

/// Whose turn it is: those asked before, and those never asked, in order.
async fn turn(db: &Db, limit: u32) -> (Vec<String>, Vec<String>) {
    let mut domains: Vec<_> =
        db.nip05_take(limit).await.unwrap().into_iter().map(|(_, domain)| domain).collect();
    domains.sort();
    domains.into_iter().partition(|domain| domain.starts_with('z'))
}

#[tokio::test]
async fn domains_that_somebody_invents_leave_the_others_their_turn_whatever_they_are_called() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    test.execute(
        "INSERT INTO nip05_domain (domain, name, seen_at) SELECT 'a' || n || '.example', 'bob', 1 FROM generate_series(1001, 3000) n;
         INSERT INTO nip05_domain (domain, name, seen_at, asked_at) SELECT 'z' || n || '.example', 'bob', 1, n FROM generate_series(1, 7) n",
    )
    .await;
    let (again, never) = turn(&db, 10).await;
    assert_eq!(again, [1, 2, 3, 4, 5].map(|n| format!("z{n}.example")), "those whose turn is longest ago");
    // By lot they are these five once in ten million million runs.
    assert_ne!(never, [1001, 1002, 1003, 1004, 1005].map(|n| format!("a{n}.example")));
    let (others, more) = turn(&db, 10).await;
    assert!(
        others.contains(&"z6.example".to_owned()) && others.contains(&"z7.example".to_owned()),
        "{others:?}"
    );
    assert!(more.len() == 5 && more.iter().all(|domain| !never.contains(domain)), "{never:?} {more:?}");
    // What one half does not use the other has.
    test.execute("UPDATE nip05_domain SET asked_at = extract(epoch FROM now())::bigint WHERE domain >= 'z3'")
        .await;
    let (again, never) = turn(&db, 10).await;
    assert_eq!((again.len(), never.len()), (2, 8), "{again:?} {never:?}");
    test.execute("UPDATE nip05_domain SET asked_at = 1; UPDATE nip05_domain SET asked_at = NULL WHERE domain = 'a1001.example'").await;
    let (again, never) = turn(&db, 3_000).await;
    assert_eq!((again.len(), never.len()), (7, 2_000), "fewer than there are places");
    // Of one place neither has all, for ever.
    test.execute("UPDATE nip05_domain SET asked_at = NULL WHERE domain < 'b'").await;
    let mut had = (false, false);
    for _ in 0..64 {
        let (again, never) = turn(&db, 1).await;
        had = (had.0 || again.len() == 1, had.1 || never.len() == 1);
    }
    assert_eq!(had, (true, true));
}

#[tokio::test]
async fn a_full_sample_takes_no_more_domains_and_forgets_none_that_profiles_name() {
    let Some(test) = migrated().await else { return };
    let db = handle(&test, Role::Writer);
    test.execute("INSERT INTO nip05_domain (domain, name, seen_at) SELECT 'a' || n || '.example', 'bob', 1 FROM generate_series(1, 100000) n").await;
    let (_, fence) = claim_one(&db, "w1", JobKind::Discover, "archive").await;
    let names = ["a7.example", "new.example"].map(|domain| ("al".to_owned(), domain.to_owned())).to_vec();
    assert!(db.discover_store(&fence, &Found { names, ..Found::default() }).await.unwrap().is_some());
    assert_eq!(db.nip05_retire().await.unwrap(), 99_999);
    assert_eq!(
        value(&test, "SELECT string_agg(name || '@' || domain, ' ') FROM nip05_domain").await,
        "al@a7.example"
    );
}

/// Leads whoever asks to `to`; on another machine than the scripted relays are.
async fn redirecting(to: SocketAddr) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.9.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // A request has one head, which comes in one piece.
            let Ok(_head) = stream.read(&mut [0; 4_096]).await else { continue };
            let answer = format!("HTTP/1.1 302 Found\r\nLocation: http://{to}/\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.ok();
        }
    });
    (address, tasks)
}

#[tokio::test]
async fn a_list_keeps_its_turn_when_a_machine_on_the_way_to_it_has_no_place_for_another_job() {
    let list = ScriptedRelay::start(Script::honest(&[], 1).saying(&json!(["wss://a.example"]))).await;
    let (elsewhere, _tasks) = redirecting(list.address()).await;
    for first in [list.address(), elsewhere] {
        keeps_its_turn(&list, first).await;
    }
}

async fn keeps_its_turn(list: &ScriptedRelay, first: SocketAddr) {
    let Some(test) = polite().await else { return };
    test.execute("UPDATE fleet_limit SET host_jobs = 1, host_spacing_ms = 0, block_spacing_ms = 0").await;
    let (address, before) = (list.address(), list.counts().connections);
    let source = HttpSource::parse(&format!("http://{first}/ [*]"), &AddressPolicy::local()).unwrap();
    let ctx = context(&test, JobsConfig { sources: vec![source], ..config() });
    let db = handle(&test, Role::Writer);
    let (claimed, _) = claim_one(&db, "w2", JobKind::Monitor, "ws://127.0.0.1:9").await;
    let other = Fence::new(claimed.job, "w2".to_owned(), claimed.attempt);
    assert!(db.host_permit(&other, "127.0.0.1", address.ip()).await.unwrap().held);
    let report = run(&ctx, JobKind::Discover, "http").await.unwrap();
    assert_eq!((&report["waiting"], &report["new_candidates"]), (&1.into(), &0.into()), "{report}");
    assert_eq!(list.counts().connections, before, "asked first at {first}");
    db.worker_stop("w2").await.unwrap();
    test.execute("DELETE FROM apalis.jobs").await;
    let report = run(&ctx, JobKind::Discover, "http").await.unwrap();
    assert_eq!((&report["waiting"], &report["new_candidates"]), (&0.into(), &1.into()), "{report}");
}
