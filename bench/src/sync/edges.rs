//! What ingest does where it is hard: a slow database, many writers, and a second pass that should cost nothing.

use std::time::Duration;

use anyhow::ensure;
use shared::clock;
use tests::factory::Factory;
use tests::scripted::{Extra, Script, ScriptedRelay, Speech};

use super::relay::Relay;
use super::scene::{Scene, items};
use super::{CAP, Options, number, observations};
use crate::figure::{Figure, Goal, Report};
use crate::queue::cluster::Cluster;

/// Relays synced at once into the slow database, and how long it is watched.
const RELAYS: usize = 200;
const WATCHED: Duration = Duration::from_secs(60);
/// Worker processes that write at once.
const WRITERS: usize = 8;
/// Events of the relay that compares sets.
const COMPARED: usize = 10_000;
/// A kind that the policy of the second scene does not keep: a tenth of the events.
const UNKEPT_KIND: u16 = 1984;

/// Every page that brings observations takes the database five seconds more.
const SLOW: &str = "CREATE FUNCTION bench_slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(5); RETURN NULL; END $$;
    CREATE TRIGGER bench_slow BEFORE INSERT ON event_relay FOR EACH STATEMENT EXECUTE FUNCTION bench_slow()";

/// What a survey would have found at a relay that compares sets.
const MEASURED: &str = r#"{"nip42":"none","nip45":{"seen":"untested","by":"nothing","words":""},
    "nip50":{"seen":"untested","by":"nothing","words":""},"nip67":"untested",
    "nip77":{"seen":"works","by":"neg_msg","words":""},
    "without_kinds":{"seen":"works","by":"eose","words":""},"until":"inclusive","max_limit":null,
    "default_limit":null,"above_brings_less":null,"page_max":500,"requests":1,"ended":"none"}"#;

/// Takes these figures; once each.
pub(super) async fn run(options: &Options, cluster: &Cluster, report: &mut Report) -> anyhow::Result<()> {
    let mut add = |name: &str, ours: f64, unit, goal| {
        report.add(&Figure::alone("ingest", name.to_owned(), ours, unit, goal));
    };
    let slow = slow(options, cluster).await?;
    add("slow_peak_rss_mib", slow.peak_mib, "MiB", Goal::AtMost(200.0));
    add("slow_relays_stored", slow.stored, "relays", Goal::Stated);
    add("slow_jobs_failed", slow.failed, "attempts", Goal::AtMost(0.0));
    let crowd = crowd(options, cluster).await?;
    add("writers_8_deadlocks", crowd.deadlocks, "deadlocks", Goal::AtMost(0.0));
    add("writers_8_missing", crowd.missing, "observations", Goal::AtMost(0.0));
    add(
        "second_pass_compared",
        compared(options, cluster).await?,
        "of the first's bytes",
        Goal::AtMost(0.01),
    );
    let (paged, kept) = unkept(options, cluster).await?;
    add("second_pass_after_policy", paged, "of the first's bytes", Goal::AtMost(0.01));
    add("second_pass_after_policy_kept", kept, "events of the kind", Goal::AtMost(0.0));
    Ok(())
}

struct Slow {
    peak_mib: f64,
    stored: f64,
    failed: f64,
}

/// All relays at once into a database that takes five seconds for each page.
async fn slow(options: &Options, cluster: &Cluster) -> anyhow::Result<Slow> {
    let fleet = options.share(RELAYS);
    let pool = items(71, options.share(40_000), clock::unix_now() - 3_600, None);
    let mut relays = Vec::new();
    for n in 0..fleet {
        let own = pool.iter().enumerate().filter(|(i, _)| (0..5).any(|copy| (i + copy * 41) % fleet == n));
        relays.push(Relay::start(n, own.map(|(_, item)| item.clone()).collect(), CAP).await?);
    }
    let urls = relays.iter().map(Relay::url).collect::<Vec<_>>();
    let slots = fleet.to_string();
    let mut scene = Scene::fleet(cluster, &urls, 1, &[("BIGBROTR_WORKER_SLOTS_SYNC", &slots)]).await?;
    scene.db.execute(SLOW).await;
    scene.enqueue().await?;
    let until = clock::monotonic_ms() + u64::try_from(WATCHED.as_millis())?;
    while clock::monotonic_ms() < until {
        scene.check()?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let asked = relays.iter().filter(|relay| relay.counts().0 > 0).count();
    // Whoever has no room for a page waits with an open connection: as many are asked as the slow database lets go.
    eprintln!("bench: ingest: {asked} of {fleet} relays were asked for something");
    ensure!(asked > 0, "no relay was asked for anything");
    Ok(Slow {
        peak_mib: scene.peak_mib()?,
        stored: scene.number("SELECT count(DISTINCT relay_id) FROM event_relay").await?,
        failed: scene.number("SELECT count(*) FROM apalis.jobs WHERE kind = 'sync' AND attempts > 1").await?
            + scene.number("SELECT count(*) FROM job_history WHERE kind = 'sync' AND state = 'dead'").await?,
    })
}

struct Crowd {
    deadlocks: f64,
    missing: f64,
}

/// Eight workers over relays that hold the same events.
async fn crowd(options: &Options, cluster: &Cluster) -> anyhow::Result<Crowd> {
    let pool = items(72, options.share(10_000), clock::unix_now() - 3_600, None);
    let mut relays = Vec::new();
    for n in 0..32 {
        let own = pool.iter().enumerate().filter(|(i, _)| !(i + n).is_multiple_of(4));
        relays.push(Relay::start(n, own.map(|(_, item)| item.clone()).collect(), CAP).await?);
    }
    let urls = relays.iter().map(Relay::url).collect::<Vec<_>>();
    let mut scene = Scene::fleet(cluster, &urls, WRITERS, &[]).await?;
    scene.pass(cluster, &relays).await?;
    Ok(Crowd {
        deadlocks: scene
            .number("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
            .await?,
        missing: observations(&relays) - scene.number("SELECT count(*) FROM event_relay").await?,
    })
}

/// The bytes that a relay that compares sets (NIP-77) sends in a second pass, over those of the first.
async fn compared(options: &Options, cluster: &Cluster) -> anyhow::Result<f64> {
    let end = clock::unix_now() - 3_600;
    let events = Factory::new(73).ending_at(end).over(90 * 86_400).events(options.share(COMPARED));
    let speech = Speech { negentropy: Extra::Works, ..Speech::default() };
    let relay = ScriptedRelay::start(Script::honest(&events, CAP).speaking(speech)).await;
    let mut scene = Scene::fleet(cluster, &[relay.url()], 1, &[]).await?;
    scene
        .db
        .execute(&format!(
            "INSERT INTO relay_capability (relay_id, measured_at, measured) SELECT id, 1, '{MEASURED}' FROM relay"
        ))
        .await;
    scene.run(cluster).await?;
    let first = relay.counts().bytes_out;
    let held = scene.number("SELECT count(*) FROM event_relay").await?;
    ensure!((held - number(events.len())).abs() < 0.5, "{held} of {} events came", events.len());
    scene.run(cluster).await?;
    ratio(relay.counts().bytes_out - first, first)
}

/// The same of a relay that pages, where a policy keeps none of a kind; and how many bodies of that kind are held.
async fn unkept(options: &Options, cluster: &Cluster) -> anyhow::Result<(f64, f64)> {
    let pool = items(74, options.share(COMPARED), clock::unix_now() - 3_600, None);
    let relays = [Relay::start(0, pool, CAP).await?];
    let mut scene = Scene::start(cluster, &relays).await?;
    scene
        .db
        .execute(&format!(
            "SELECT retention_put(ARRAY['kind'], ARRAY[{UNKEPT_KIND}], ARRAY[{UNKEPT_KIND}], ARRAY[NULL::text], ARRAY[0], false)"
        ))
        .await;
    let first = scene.pass(cluster, &relays).await?;
    let held = scene.number("SELECT count(*) FROM event_relay").await?;
    ensure!((held - observations(&relays)).abs() < 0.5, "{held} observations of {}", observations(&relays));
    let second = scene.pass(cluster, &relays).await?;
    let kept = scene.number("SELECT count(*) FROM event WHERE kind = 1984 AND fate = 0").await?;
    Ok((second.bytes / first.bytes, kept))
}

fn ratio(part: u64, whole: u64) -> anyhow::Result<f64> {
    Ok(f64::from(u32::try_from(part)?) / f64::from(u32::try_from(whole)?))
}
