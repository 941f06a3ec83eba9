//! `ingest`: every event five times over, and then everything again.

use shared::clock;
use tests::pg::Role;

use super::scene::{Cost, Scene};
use super::{Options, edges, least_bytes, many, number, observations, peer};
use crate::figure::{Figure, Goal, Report, median};
use crate::process::family_cpu_s;
use crate::queue::cluster::Cluster;

/// Events of a page, as relays serve them.
const PAGE: u32 = 500;

/// What the same rows cost by `COPY`, processor seconds per thousand observations.
#[derive(Debug, Clone, Copy)]
struct Copied {
    /// Three commands, each table in the order of its keys.
    at_once: f64,
    /// Relay after relay, newest first, a transaction for each page: as they come, and known beforehand whose events are new.
    by_pages: f64,
}

impl Copied {
    async fn measure(cluster: &Cluster, scene: &Scene, held: f64) -> anyhow::Result<Self> {
        let dir = std::env::temp_dir().join(format!("bigbrotr-bench-copy-{}", clock::random_hex(6)));
        std::fs::create_dir_all(&dir)?;
        std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
        let file = |name: &str| dir.join(name).display().to_string();
        let tables = ["event", "event_unmined", "event_relay"];
        let mut admin = scene.db.connect(Role::Superuser).await;
        let mut run = async |sql: String| sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut admin).await;
        run(format!(
            "CREATE TABLE bench_page AS
             SELECT x.event_key, x.relay_id, x.page, row_number() OVER (PARTITION BY x.event_key ORDER BY x.page) = 1 AS is_new
             FROM (SELECT n.event_key, n.relay_id, dense_rank() OVER (ORDER BY n.relay_id, n.nth / {PAGE}) AS page
                   FROM (SELECT o.event_key, o.relay_id, row_number() OVER (PARTITION BY o.relay_id ORDER BY o.event_key DESC) - 1 AS nth
                         FROM event_relay o) n) x;
             CREATE INDEX ON bench_page (page);
             ANALYZE bench_page"
        ))
        .await?;
        let pages: i64 = sqlx::query_scalar("SELECT max(page) FROM bench_page")
            .fetch_one(&mut scene.db.connect(Role::Superuser).await)
            .await?;
        for table in tables {
            let order = if table == "event_relay" { "relay_id, event_key" } else { "event_key" };
            let whole = format!("SELECT t.* FROM {table} t ORDER BY {order}");
            run(format!("COPY ({whole}) TO '{}' (FORMAT binary)", file(table))).await?;
            let mine = if table == "event_relay" { "p.relay_id = t.relay_id" } else { "p.is_new" };
            for page in 1..=pages {
                run(format!(
                    "COPY (SELECT t.* FROM bench_page p JOIN {table} t USING (event_key) WHERE p.page = {page} AND {mine} ORDER BY event_key)
                     TO '{}' (FORMAT binary)",
                    file(&format!("{table}.{page}"))
                ))
                .await?;
            }
        }
        run("DROP TABLE bench_page".to_owned()).await?;
        let per_1k = |cpu_s: f64| cpu_s / held * 1_000.0;
        let load = |table: &str, name: &str| format!("COPY {table} FROM '{}' (FORMAT binary);", file(name));
        let at_once = tables.map(|table| load(table, table)).to_vec();
        let page = |page| {
            let all: String = tables.iter().map(|table| load(table, &format!("{table}.{page}"))).collect();
            format!("BEGIN; {all} COMMIT")
        };
        let copied = Self {
            at_once: per_1k(fill(cluster, &at_once).await?),
            by_pages: per_1k(fill(cluster, &(1..=pages).map(page).collect::<Vec<_>>()).await?),
        };
        std::fs::remove_dir_all(&dir)?;
        Ok(copied)
    }
}

/// What these commands cost the server in an archive of their own, processor seconds.
async fn fill(cluster: &Cluster, commands: &[String]) -> anyhow::Result<f64> {
    let archive = cluster.migrated().await?;
    archive
        .execute("SELECT partition_maintain(extract(epoch FROM now() - interval '120 days')::bigint)")
        .await;
    let mut admin = archive.connect(Role::Superuser).await;
    let before = family_cpu_s(cluster.postmaster);
    for command in commands {
        sqlx::raw_sql(sqlx::AssertSqlSafe(command.clone())).execute(&mut admin).await?;
    }
    Ok(family_cpu_s(cluster.postmaster) - before)
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
        copy.push(Copied::measure(&cluster, &scene, held).await?);
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
        median(&copy.iter().map(|copied| copied.at_once).collect::<Vec<_>>()),
        "COPY of the same rows into the same tables, three commands in the order of keys",
        "s",
        Goal::RatioAtMost(1.5),
    );
    add(
        "pg_cpu_s_per_1k_by_pages",
        per_1k(&first, |c| c.pg_cpu_s),
        median(&copy.iter().map(|copied| copied.by_pages).collect::<Vec<_>>()),
        "COPY of the same rows into the same tables, in pages as relays serve them",
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
