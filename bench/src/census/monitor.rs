//! `monitor`: how fast relays are checked, at what cost, whether the answers are right, and what they cost to keep.

use sqlx::{AssertSqlSafe, PgConnection};
use tests::pg::{Role, TestDb};

use super::mock::Conduct;
use super::scene::{Crew, Outcome, Stage};
use super::{Options, peer};
use crate::figure::{Figure, Goal, Report, median};
use crate::queue::Cluster;

/// The peer takes minutes for this many.
const PEER_RELAYS: usize = 200;

/// What a run showed beside its speed.
struct Kept {
    false_failures: f64,
    added_unchanged: f64,
    bytes_per_check: f64,
    checks_per_relay: f64,
}

pub(super) async fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let all = Stage::relays(options.relays);
    let (mut outcomes, mut kept): (Vec<Outcome>, Vec<Kept>) = (Vec::new(), Vec::new());
    for _ in 0..options.n {
        let cluster = Cluster::start("")?;
        let test = cluster.migrated().await?;
        enter(&test, &stage, &all).await;
        let mut admin = test.connect(Role::Superuser).await;
        let mut crew = Crew::start(&test, &stage.fleet, "monitor", &mut admin).await?;
        outcomes.push(crew.work(&cluster, &mut admin, "monitor", options.relays).await?);
        drop(crew);
        let documents = count(&mut admin, "SELECT count(*) FROM relay_metadata").await?;
        let false_failures = count(
            &mut admin,
            "SELECT count(DISTINCT r.url) FROM relay r WHERE r.url LIKE 'wss://r%' AND ( \
               NOT EXISTS (SELECT FROM relay_state s WHERE s.relay_id = r.id AND s.state = 'alive') \
               OR EXISTS (SELECT FROM relay_check c WHERE c.relay_id = r.id AND c.outcome NOT IN ('ok', 'skipped')) \
               OR NOT EXISTS (SELECT FROM relay_check c WHERE c.relay_id = r.id AND c.kind = 'rtt' AND c.read_ms IS NOT NULL))",
        )
        .await?;
        // The same relays once more, unchanged.
        test.execute("UPDATE schedule SET due_at = now(), why = 'alive' WHERE kind = 'monitor' AND target LIKE 'wss://r%'").await;
        let honest = u16::try_from(all.iter().filter(|(conduct, _)| *conduct == Conduct::Honest).count())?;
        let mut crew = Crew::start(&test, &stage.fleet, "monitor", &mut admin).await?;
        crew.work(&cluster, &mut admin, "monitor", honest).await?;
        drop(crew);
        let again = count(&mut admin, "SELECT count(*) FROM relay_metadata").await?;
        let checks = count(&mut admin, "SELECT count(*) FROM relay_check").await?;
        let looks =
            count(&mut admin, "SELECT count(DISTINCT (relay_id, checked_at)) FROM relay_check").await?;
        test.execute("VACUUM FULL relay_check").await;
        let bytes = count(
            &mut admin,
            "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid \
             WHERE i.inhparent = 'relay_check'::regclass",
        )
        .await?;
        kept.push(Kept {
            false_failures,
            added_unchanged: again - documents,
            bytes_per_check: bytes / checks,
            checks_per_relay: checks / looks,
        });
    }
    let middle = |what: fn(&Outcome) -> f64| median(&outcomes.iter().map(what).collect::<Vec<_>>());
    let worst = |what: fn(&Kept) -> f64| kept.iter().map(what).fold(0.0, f64::max);
    let few: Vec<_> = all.iter().copied().take(PEER_RELAYS).collect();
    let theirs = peer::measure(options, &stage, "monitor", &few)?;
    let figure = |name: &str, ours, reference, against, unit, goal| Figure {
        bench: "monitor",
        name: name.to_owned(),
        ours,
        reference,
        against,
        unit,
        goal,
        n: options.n,
    };
    for figure in [
        figure(
            "relays_per_s",
            middle(|o| o.per_s),
            theirs.per_s,
            peer::AGAINST,
            "relays/s",
            Goal::AtLeast(100.0),
        ),
        figure(
            "cpu_s_per_1k",
            middle(|o| o.worker_cpu_s_per_1k),
            theirs.cpu_s_per_1k,
            peer::AGAINST,
            "s",
            Goal::AtMost(4.0),
        ),
        figure("pg_cpu_s_per_1k", middle(|o| o.pg_cpu_s_per_1k), f64::NAN, "nothing", "s", Goal::Stated),
        figure(
            "peak_rss_mib",
            middle(|o| o.peak_mib),
            theirs.peak_mib,
            peer::AGAINST,
            "MiB",
            Goal::AtMost(150.0),
        ),
        figure(
            "false_failures",
            worst(|k| k.false_failures),
            theirs.missed,
            "healthy relays of its 200 that the peer failed",
            "relays",
            Goal::AtMost(0.0),
        ),
        figure(
            "metadata_rows_unchanged",
            worst(|k| k.added_unchanged),
            f64::NAN,
            "nothing",
            "rows",
            Goal::AtMost(0.0),
        ),
        figure(
            "checks_per_relay",
            worst(|k| k.checks_per_relay),
            7.0,
            "checks there are",
            "checks",
            Goal::Stated,
        ),
        figure("bytes_per_check", worst(|k| k.bytes_per_check), f64::NAN, "nothing", "bytes", Goal::Stated),
    ] {
        report.add(&figure);
    }
    Ok(())
}

/// The relays as if they had been validated just now.
async fn enter(test: &TestDb, stage: &Stage, all: &[(Conduct, u16)]) {
    let urls: Vec<String> =
        all.iter().map(|(conduct, n)| format!("'{}'", stage.fleet.url(*conduct, *n))).collect();
    let urls = urls.join(", ");
    test.execute(&format!(
        "INSERT INTO relay (url, network, discovered_at) SELECT u, 'clearnet', extract(epoch FROM now())::bigint FROM unnest(ARRAY[{urls}]) u"
    ))
    .await;
    test.execute(
        "INSERT INTO schedule (kind, target, network, due_at, slack_s, why) SELECT 'monitor', url, 'clearnet', now(), 60, 'new' FROM relay",
    )
    .await;
}

async fn count(admin: &mut PgConnection, sql: &'static str) -> anyhow::Result<f64> {
    let n: i64 = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(admin).await?;
    Ok(f64::from(i32::try_from(n)?))
}
