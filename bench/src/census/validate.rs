//! `validate`: how fast candidates are asked, at what cost, and whether the answers are right.

use sqlx::PgConnection;
use tests::pg::Role;

use shared::db::NewCandidate;
use shared::models::{AddressPolicy, RelayUrl};

use super::mock::Conduct;
use super::scene::{Crew, Outcome, Stage};
use super::{Options, peer};
use crate::figure::{Figure, Goal, Report, median};
use crate::queue::{Cluster, writer};

/// Servers that open a WebSocket and are no relays.
const FAKES: [(Conduct, u16); 3] = [(Conduct::Mute, 20), (Conduct::Echo, 15), (Conduct::Garbage, 15)];
/// Seconds a server that hangs costs: the limit of one connect.
const TIMEOUT_S: f64 = 10.0;
/// Slots of one worker by default.
const SLOTS: f64 = 64.0;

/// What a run showed of right and wrong.
struct Verdicts {
    missed: f64,
    false_accepts: f64,
}

pub(super) async fn run(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let stage = Stage::start().await?;
    let mut all = Stage::relays(options.relays);
    // Spread among the others, or they would all be waited for together.
    for (i, fake) in FAKES.iter().flat_map(|(conduct, n)| (0..*n).map(|i| (*conduct, i))).enumerate() {
        all.insert(i * usize::from(options.relays) / 50 + 5, fake);
    }
    let honest = all.iter().filter(|(conduct, _)| *conduct == Conduct::Honest).count();
    let targets = u16::try_from(all.len())?;
    let (mut outcomes, mut verdicts): (Vec<Outcome>, Vec<Verdicts>) = (Vec::new(), Vec::new());
    for _ in 0..options.n {
        let cluster = Cluster::start("")?;
        let test = cluster.migrated().await?;
        let db = writer(&test)?;
        let candidates = all
            .iter()
            .map(|(conduct, n)| {
                let url = RelayUrl::parse(&stage.fleet.url(*conduct, *n), &AddressPolicy::local())?;
                Ok(NewCandidate { url, source: "seed" })
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        db.candidate_insert(&candidates).await?;
        let mut admin = test.connect(Role::Superuser).await;
        let mut crew = Crew::start(&test, &stage.fleet, "validate", &mut admin).await?;
        outcomes.push(crew.work(&cluster, &mut admin, "validate", targets).await?);
        verdicts.push(judge(&mut admin, honest).await?);
    }
    let middle = |what: fn(&Outcome) -> f64| median(&outcomes.iter().map(what).collect::<Vec<_>>());
    let worst = |what: fn(&Verdicts) -> f64| verdicts.iter().map(what).fold(0.0, f64::max);
    let theirs = peer::measure(options, &stage, "validate", &all)?;
    let hanging =
        all.iter().filter(|(conduct, _)| matches!(conduct, Conduct::Hanging | Conduct::Mute)).count();
    let waited = f64::from(u32::try_from(hanging)?) * 2.0 * TIMEOUT_S / SLOTS;
    let figure = |name: &str, ours, reference, against, unit, goal| Figure {
        bench: "validate",
        name: name.to_owned(),
        ours,
        reference,
        against,
        unit,
        goal,
        n: options.n,
    };
    let total = middle(|o| o.total_s);
    for figure in [
        figure(
            "relays_per_s",
            middle(|o| o.per_s),
            theirs.per_s,
            peer::AGAINST,
            "relays/s",
            Goal::AtLeast(200.0),
        ),
        figure(
            "cpu_s_per_1k",
            middle(|o| o.worker_cpu_s_per_1k),
            theirs.cpu_s_per_1k,
            peer::AGAINST,
            "s",
            Goal::AtMost(0.4),
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
            "false_accepts",
            worst(|v| v.false_accepts),
            theirs.wrong,
            "of 50 mute, echoing and talking servers, the peer's",
            "servers",
            Goal::AtMost(0.0),
        ),
        figure(
            "missed",
            worst(|v| v.missed),
            theirs.missed,
            "healthy relays the peer missed",
            "relays",
            Goal::AtMost(0.0),
        ),
        figure(
            "total_s",
            total,
            waited + 2.0 * TIMEOUT_S,
            "the waits of hanging servers over the slots, and one timeout",
            "s",
            Goal::RatioAtMost(1.0),
        ),
    ] {
        report.add(&figure);
    }
    Ok(())
}

async fn judge(admin: &mut PgConnection, honest: usize) -> anyhow::Result<Verdicts> {
    let (found, wrong): (i64, i64) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE url LIKE 'wss://r%'), count(*) FILTER (WHERE url NOT LIKE 'wss://r%') FROM relay",
    )
    .fetch_one(admin)
    .await?;
    let number = |n: i64| i32::try_from(n).map(f64::from);
    Ok(Verdicts { missed: f64::from(u32::try_from(honest)?) - number(found)?, false_accepts: number(wrong)? })
}
