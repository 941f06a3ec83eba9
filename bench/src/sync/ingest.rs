//! `ingest`: every event five times over, and then everything again.

use shared::clock;
use tests::pg::Role;

use super::scene::{Cost, Scene};
use super::{Options, edges, least_bytes, many, number, observations, peer};
use crate::figure::{Figure, Goal, Report, median};
use crate::process::family_cpu_s;
use crate::queue::cluster::Cluster;

/// What the database costs when rows come by `COPY`, processor seconds per thousand observations.
async fn copied(cluster: &Cluster, scene: &Scene, held: f64) -> anyhow::Result<f64> {
    let dir = std::env::temp_dir().join(format!("bigbrotr-bench-copy-{}", clock::random_hex(6)));
    std::fs::create_dir_all(&dir)?;
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    let other = cluster.migrated().await?;
    other.execute("SELECT partition_maintain(extract(epoch FROM now() - interval '120 days')::bigint)").await;
    let tables = ["event", "event_unmined", "event_relay"];
    let file = |table: &str| dir.join(table).display().to_string();
    for table in tables {
        let order = if table == "event_relay" { "relay_id, event_key" } else { "event_key" };
        scene
            .db
            .execute(&format!(
                "COPY (SELECT * FROM {table} ORDER BY {order}) TO '{}' (FORMAT binary)",
                file(table)
            ))
            .await;
    }
    let mut admin = other.connect(Role::Superuser).await;
    let before = family_cpu_s(cluster.postmaster);
    for table in tables {
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("COPY {table} FROM '{}' (FORMAT binary)", file(table))))
            .execute(&mut admin)
            .await?;
    }
    let spent = family_cpu_s(cluster.postmaster) - before;
    std::fs::remove_dir_all(&dir)?;
    Ok(spent / held * 1_000.0)
}

/// See the module.
pub(crate) async fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let end = clock::unix_now() - 3_600;
    let peer = peer::ForIngest::measure(options, end).await?;
    let cluster = Cluster::start("")?;
    let (mut first, mut again, mut copy, mut bytes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut missing = 0.0_f64;
    let fleet = options.share(200);
    let mut held = 0.0;
    for _ in 0..options.n {
        let relays = many(fleet, options.share(100_000), end).await?;
        held = observations(&relays);
        let mut scene = Scene::start(&cluster, &relays).await?;
        let cost = scene.pass(&cluster, &relays).await?;
        missing = missing.max(held - scene.number("SELECT count(*) FROM event_relay").await?);
        bytes.push(cost.bytes / least_bytes(&relays));
        first.push(cost);
        copy.push(copied(&cluster, &scene, held).await?);
        // As if nothing had been read: every event comes once more, and is known.
        scene.db.execute("TRUNCATE coverage, relay_revisit").await;
        again.push(scene.pass(&cluster, &relays).await?);
    }
    let per_1k = |costs: &[Cost], what: fn(&Cost) -> f64| {
        median(&costs.iter().map(what).collect::<Vec<_>>()) / held * 1_000.0
    };
    let mut add = |name: &str, ours, reference, against, unit, goal| {
        report.add(&Figure {
            bench: "ingest",
            name: name.to_owned(),
            ours,
            reference,
            against,
            unit,
            goal,
            n: options.n,
        });
    };
    add(
        "cpu_s_per_1k",
        per_1k(&first, |c| c.worker_cpu_s),
        peer.cpu_s_per_1k,
        peer.against,
        "s",
        Goal::AtMost(0.012),
    );
    add(
        "pg_cpu_s_per_1k",
        per_1k(&first, |c| c.pg_cpu_s),
        median(&copy),
        "COPY of the same rows into the same tables",
        "s",
        Goal::RatioAtMost(1.5),
    );
    add(
        "duplicates_cpu_s_per_1k",
        per_1k(&again, |c| c.worker_cpu_s),
        peer.duplicates_cpu_s_per_1k,
        peer.against,
        "s",
        Goal::AtMost(0.006),
    );
    add(
        "duplicates_pg_cpu_s_per_1k",
        per_1k(&again, |c| c.pg_cpu_s),
        peer.duplicates_pg_cpu_s_per_1k,
        peer.against,
        "s",
        Goal::Stated,
    );
    add(
        "observations_per_s",
        held / median(&first.iter().map(|c| c.seconds).collect::<Vec<_>>()),
        f64::NAN,
        "nothing",
        "1/s",
        Goal::Stated,
    );
    add("missing", missing, f64::NAN, "nothing", "observations", Goal::AtMost(0.0));
    add(
        "peak_rss_mib",
        median(&first.iter().map(|c| c.peak_mib).collect::<Vec<_>>()),
        f64::NAN,
        "nothing",
        "MiB",
        Goal::AtMost(200.0),
    );
    add(
        "copies",
        held / number(options.share(100_000)),
        f64::NAN,
        "nothing",
        "relays per event",
        Goal::Stated,
    );
    edges::run(options, &cluster, report).await
}
