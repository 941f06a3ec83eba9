//! Names and addresses in the default policy, in a world of its own: what may be dialled, whose fault a failing name
//! is, and that a relay of either family is reached.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use shared::models::{AddressPolicy, RelayUrl};
use tests::factory::Factory;
use tests::pg::{Role, TestDb};
use tests::programs::Process;
use tests::world::{Plan, World};

use super::fleet::{binary, child, environment, seed_relays, until};
use super::support::{handle, migrated, pairs, value};

/// What every address of a name must be among, for the relay to be met there.
const GLOBAL: [&str; 4] = ["11.22.33.1", "11.22.33.2", "2a0f:ffff:1::1", "2a0f:ffff:1::2"];

const ONION: &str = "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid";

const ZONE: &str = "\
plain.example     11.22.33.1                        none
six.example       none                              2a0f:ffff:1::1
mute4.example     mute                              2a0f:ffff:1::1
mute6.example     11.22.33.1                        mute
lost4.example     11.22.44.9                        2a0f:ffff:1::1
lost6.example     11.22.33.1                        2a0f:ffff:2::9
rebind.example    11.22.33.2/10.0.0.1               none
back.example      10.0.0.1/11.22.33.2               none
mixed.example     11.22.33.1,10.0.0.1               none
mixed6.example    11.22.33.1                        2a0f:ffff:1::1,fd00::1
cgnat.example     100.64.0.1                        none
metadata.example  169.254.169.254                   none
loop.example      127.0.0.1                         none
loop6.example     11.22.33.1                        ::1
mapped.example    none                              ::ffff:10.0.0.1
nat64.example     none                              64:ff9b::a00:1
dns64.example     11.22.33.1                        64:ff9b::b16:2101
inside64.example  11.22.33.1                        64:ff9b::a00:1
broken.example    fail                              fail
broken2.example   fail                              fail
silent.example    mute                              mute
silent2.example   mute                              mute
empty.example     none                              none
far.example       none                              2a0f:eeee:1::1
away.example      none                              2a0f:eeee:1::2
";

/// `bigbrotr` or a process of the fleet without the environment of the tests.
fn clean(name: &str) -> Command {
    let mut command = Command::new(binary(name));
    for (variable, _) in std::env::vars_os() {
        let ours =
            variable.to_str().is_some_and(|name| name == "DATABASE_URL" || name.starts_with("BIGBROTR_"));
        if ours {
            command.env_remove(variable);
        }
    }
    command
}

/// Begins a look at `ws://name` from inside the world, in the default policy.
fn look(world: &World, name: &str) -> Child {
    let mut command = clean("bigbrotr");
    command.args(["check", "--json", &format!("ws://{name}")]);
    world.within(&command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn seen(look: Child) -> Value {
    let output = look.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

fn met(world: &World) -> BTreeSet<String> {
    world.met().iter().map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_every_address_of_a_name_permits_is_dialled_and_either_family_does() {
    let Some(world) = World::start(Plan { zone: ZONE, ..Plan::default() }).await else { return };
    let expected = [
        ("plain", "", "11.22.33.1"),
        ("six", "", "2a0f:ffff:1::1"),
        ("mute4", "", "2a0f:ffff:1::1"),
        ("mute6", "", "11.22.33.1"),
        ("lost4", "", "2a0f:ffff:1::1,11.22.44.9"),
        ("lost6", "", "2a0f:ffff:2::9,11.22.33.1"),
        ("rebind", "", "11.22.33.2"),
        ("back", "address_refused", ""),
        ("mixed", "address_refused", ""),
        ("mixed6", "address_refused", ""),
        ("cgnat", "address_refused", ""),
        ("metadata", "address_refused", ""),
        ("loop", "address_refused", ""),
        ("loop6", "address_refused", ""),
        ("mapped", "address_refused", ""),
        ("nat64", "address_refused", ""),
        ("dns64", "", "11.22.33.1"),
        ("inside64", "address_refused", ""),
        ("broken", "dns_failure ours", ""),
        ("silent", "dns_failure ours", ""),
        ("empty", "dns_no_address", ""),
        ("nowhere", "dns_nxdomain", ""),
    ];
    // All at once: those that wait, wait together.
    let looks: Vec<_> = expected.iter().map(|(name, ..)| look(&world, &format!("{name}.example"))).collect();
    for ((name, reason, addresses), look) in expected.iter().zip(looks) {
        let seen = seen(look);
        let found: Vec<_> = seen["addresses"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(found.join(","), *addresses, "{name}: {seen}");
        assert_eq!(seen["up"], reason.is_empty(), "{name}: {seen}");
        if !reason.is_empty() {
            let ours = if seen["ours"] == true { " ours" } else { "" };
            assert_eq!(format!("{}{ours}", seen["reason"].as_str().unwrap()), *reason, "{name}: {seen}");
        }
    }
    let addresses: BTreeSet<String> = GLOBAL.map(str::to_owned).into();
    assert!(met(&world).is_subset(&addresses), "{:?}", met(&world));
    // A name of an overlay goes to its proxy, here none, and is asked of nobody: by no resolver, not even the system's.
    for (name, network) in [(format!("{ONION}.onion"), "TOR"), ("relay.i2p".to_owned(), "I2P")] {
        let mut command = clean("bigbrotr");
        command.args(["check", "--json", &format!("ws://{name}")]);
        command.env(format!("BIGBROTR_NETWORK_{network}_ENABLED"), "true");
        command.env(format!("BIGBROTR_NETWORK_{network}_PROXY"), "127.0.0.1:9");
        let look = world.within(&command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let seen = seen(look);
        assert_eq!((&seen["reason"], &seen["ours"]), (&"proxy_dead".into(), &true.into()), "{seen}");
    }
    let leaked: Vec<_> =
        world.asked().into_iter().filter(|name| name.contains("onion") || name.contains("i2p")).collect();
    assert_eq!(leaked, Vec::<String>::new());
    // The address of the first answer served both connections: nobody asked for another.
    let asked = world.asked();
    for name in ["rebind.example A", "rebind.example AAAA"] {
        assert_eq!(asked.iter().filter(|line| *line == name).count(), 1, "{name}: {asked:?}");
    }
    // The second answer is asked for by the next look, and refused.
    let seen = seen(look(&world, "rebind.example"));
    assert_eq!(seen["reason"], "address_refused", "{seen}");
    assert!(met(&world).is_subset(&addresses), "{:?}", met(&world));
}

/// A worker inside the world, which reaches the database by its socket file.
pub(crate) async fn worker(world: &World, test: &TestDb, extra: &[(&str, &str)]) -> Option<Process> {
    let (pooled, direct) = (test.socket_url(Role::Writer).await?, test.socket_url(Role::Refresher).await?);
    let mut environment = environment(&pooled, &direct);
    environment.remove("BIGBROTR_NETWORK_ALLOW_LOCAL");
    environment.insert("BIGBROTR_NETWORK_CLEARNET_TIMEOUT_S".to_owned(), "4".to_owned());
    environment.extend(extra.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let mut command = clean("worker");
    command.arg("run").envs(environment);
    Some(Process::spawn(&world.within(&command), std::path::Path::new("/dev/null")))
}

/// A scheduler outside, which needs nothing of the world.
pub(crate) fn scheduler(test: &TestDb) -> Process {
    let mut environment: BTreeMap<String, String> =
        environment(&test.url(Role::Writer), &test.url(Role::Refresher));
    environment.remove("BIGBROTR_NETWORK_ALLOW_LOCAL");
    child("scheduler", &environment)
}

fn urls(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| format!("ws://{name}.example")).collect()
}

const STATES: &str =
    "SELECT r.url, s.state || ' ' || s.reason FROM relay_state s JOIN relay r ON r.id = s.relay_id";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_server_that_fails_is_ours_until_others_prove_that_it_is_the_names_own() {
    let Some(test) = migrated().await else { return };
    let events = Factory::new(41).events(20);
    let Some(world) = World::start(Plan { zone: ZONE, events: &events, ..Plan::default() }).await else {
        return;
    };
    let Some(_worker) = worker(&world, &test, &[]).await else { return };
    let _scheduler = scheduler(&test);

    // Nothing has answered yet: it may be us.
    seed_relays(&test, &urls(&["broken", "silent"])).await;
    until(&test, "SELECT count(*)::text FROM apalis.jobs WHERE kind = 'validate' AND attempts > 0 AND status <> 'Running'", "2").await;
    assert_eq!(value(&test, "SELECT sum(failures)::text FROM candidate").await, "0");

    // Other names resolve: what fails now is theirs.
    seed_relays(&test, &urls(&["plain", "six"])).await;
    until(&test, "SELECT count(*)::text FROM relay_state WHERE state = 'alive'", "2").await;
    seed_relays(&test, &urls(&["broken2", "silent2", "mixed", "nowhere", "rebind"])).await;
    until(&test, "SELECT count(*)::text FROM candidate WHERE failures = 1 AND url NOT IN ('ws://broken.example', 'ws://silent.example')", "4").await;
    let failed =
        pairs(&test, "SELECT url, last_outcome || ' ' || last_reason FROM candidate WHERE failures = 1 AND url NOT IN ('ws://broken.example', 'ws://silent.example')")
            .await;
    let expected = [
        ("ws://broken2.example", "skipped dns_failure"),
        ("ws://mixed.example", "invalid address_refused"),
        ("ws://nowhere.example", "refused dns_nxdomain"),
        ("ws://silent2.example", "skipped dns_failure"),
    ];
    assert_eq!(failed.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect::<Vec<_>>(), expected);
    // Proved at its first address, and refused when it came to name another.
    until(&test, "SELECT coalesce(max(s.reason), '') FROM relay_state s JOIN relay r ON r.id = s.relay_id WHERE r.url = 'ws://rebind.example'", "address_refused").await;
    until(&test, "SELECT count(*)::text FROM event", "20").await;

    // The name server falls silent for everybody: nothing is said of anybody.
    let before = pairs(&test, STATES).await;
    assert_eq!(before["ws://plain.example"], "alive none");
    world.rename("* mute mute\n");
    for _ in 0..2 {
        test.execute("DELETE FROM breaker; UPDATE schedule SET due_at = now() WHERE kind = 'monitor'; UPDATE apalis.jobs SET due_at = now(), run_at = now(), gate = 'ready' WHERE kind = 'monitor' AND status = 'Pending'").await;
        until(&test, "SELECT count(*)::text FROM breaker WHERE network = 'clearnet' AND why LIKE '%name servers do not answer%'", "1").await;
    }
    assert_eq!(pairs(&test, STATES).await, before);

    let addresses: BTreeSet<String> = GLOBAL.map(str::to_owned).into();
    assert!(met(&world).is_subset(&addresses), "{:?}", met(&world));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_whose_name_servers_have_changed_calls_nobody_down_and_goes_on_by_itself() {
    let Some(test) = migrated().await else { return };
    let Some(world) = World::start(Plan { zone: ZONE, ..Plan::default() }).await else { return };
    // Nobody is there.
    world.resolve_by("nameserver 127.0.0.9\n");
    let Some(_worker) = worker(&world, &test, &[]).await else { return };
    let _scheduler = scheduler(&test);
    let known = ["plain", "six"]
        .map(|name| RelayUrl::parse(&format!("ws://{name}.example"), &AddressPolicy::public()).unwrap());
    handle(&test, Role::Writer).relay_insert(&known.map(|url| (url, 1))).await.unwrap();
    seed_relays(&test, &urls(&["mute6"])).await;
    until(&test, "SELECT count(*)::text FROM breaker WHERE network = 'clearnet' AND why LIKE '%name servers do not answer%'", "1").await;
    world.resolve_by("nameserver 127.0.0.1\n");
    let said =
        "SELECT coalesce(string_agg(DISTINCT s.state || ' ' || s.reason, ', '), '') FROM relay_state s";
    // It tries again by itself; this hurries it.
    for _ in 0..100 {
        test.execute("DELETE FROM breaker; UPDATE schedule SET due_at = now() WHERE kind = 'monitor'; UPDATE apalis.jobs SET due_at = now(), run_at = now(), gate = 'ready' WHERE status = 'Pending'").await;
        if value(&test, "SELECT count(*)::text FROM relay_state").await == "3" {
            break;
        }
        // bound: 100 × 300 ms
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    assert_eq!(value(&test, said).await, "alive none");
    assert_eq!(value(&test, "SELECT coalesce(max(failures), 0)::text FROM candidate").await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_of_a_family_without_a_route_from_here_stops_nobody_and_is_left_to_others() {
    let Some(test) = migrated().await else { return };
    let events = Factory::new(42).events(5);
    let Some(world) = World::start(Plan { zone: ZONE, events: &events, ..Plan::default() }).await else {
        return;
    };
    let Some(_worker) = worker(&world, &test, &[]).await else { return };
    let _scheduler = scheduler(&test);
    let away = RelayUrl::parse("ws://away.example", &AddressPolicy::public()).unwrap();
    handle(&test, Role::Writer).relay_insert(&[(away, 1)]).await.unwrap();
    seed_relays(&test, &urls(&["far", "plain"])).await;
    until(&test, "SELECT count(DISTINCT kind)::text FROM apalis.jobs WHERE target IN ('ws://far.example', 'ws://away.example') AND attempts > 0 AND status <> 'Running'", "3").await;
    until(&test, "SELECT coalesce(max(s.state), '') FROM relay_state s JOIN relay r ON r.id = s.relay_id WHERE r.url = 'ws://plain.example'", "alive").await;
    until(
        &test,
        "SELECT count(*)::text FROM apalis.jobs WHERE target = 'ws://plain.example' AND kind = 'monitor'",
        "0",
    )
    .await;
    // They are tried again, and the one beside them is looked at again.
    test.execute("UPDATE apalis.jobs SET due_at = now(), run_at = now(), gate = 'ready' WHERE status = 'Pending'; UPDATE schedule SET due_at = now() WHERE kind = 'monitor'").await;
    until(&test, "SELECT (sum(u.up) > 1)::text FROM relay_uptime u JOIN relay r ON r.id = u.relay_id WHERE r.url = 'ws://plain.example'", "true").await;
    assert_eq!(
        value(&test, "SELECT (SELECT count(*) FROM breaker) || ' ' || (SELECT count(*) FROM breaker_closed)")
            .await,
        "0 0"
    );
    let said = "SELECT (SELECT count(*) FROM relay_state s JOIN relay r ON r.id = s.relay_id WHERE r.url = 'ws://away.example') || ' '
                || (SELECT failures FROM candidate WHERE url = 'ws://far.example')";
    assert_eq!(value(&test, said).await, "0 0", "nothing is said of them");
}
