//! The key of `event` as it is, which answers "do we know this" by itself, against one that has to look into the row:
//! asked for events of every month after everything else went through memory, and paid by late events.

use shared::clock;
use shared::models::EventId;
use tests::pg::Role;

use super::ask::resolve;
use super::ours::{Ours, count};
use super::workload::{Plan, Slice};
use super::{Options, figure};
use crate::figure::{Goal, Report};
use crate::process::family_cpu_s;
use crate::queue::Cluster;

/// Ids asked at once.
const ASKED: usize = 1_000;
/// Questions, each of other ids.
const QUESTIONS: usize = 20;

/// The key as ADR-002 had it.
const WITHOUT: &str =
    "ALTER TABLE event DROP CONSTRAINT event_pkey, ADD PRIMARY KEY (event_key) INCLUDE (id)";
const WITH: &str =
    "ALTER TABLE event DROP CONSTRAINT event_pkey, ADD PRIMARY KEY (event_key) INCLUDE (id, fate)";

/// What one key showed.
struct Shown {
    /// Milliseconds a question: first, and again.
    cold_ms: f64,
    warm_ms: f64,
    warm_cpu_ms: f64,
    late_cpu_s: f64,
    late_ms: f64,
    bytes: f64,
}

pub(super) async fn run(
    cluster: &Cluster,
    ours: &Ours,
    options: &Options,
    report: &mut Report,
) -> anyhow::Result<()> {
    let questions = questions(options)?;
    // The other one first and last, so that what was filled meanwhile is on neither's side.
    ours.test.execute(WITHOUT).await;
    let before = shown(cluster, ours, options, &questions, 40_001).await?;
    ours.test.execute(WITH).await;
    let now = shown(cluster, ours, options, &questions, 40_002).await?;
    let against = "the key without fate";
    for (name, ours, reference, unit) in [
        ("key_known_cold_ms", now.cold_ms, before.cold_ms, "ms"),
        ("key_known_warm_ms", now.warm_ms, before.warm_ms, "ms"),
        ("key_known_warm_cpu_ms", now.warm_cpu_ms, before.warm_cpu_ms, "ms"),
        ("key_late_pg_cpu_s_per_1k", now.late_cpu_s, before.late_cpu_s, "s"),
        ("key_late_ms_per_1k", now.late_ms, before.late_ms, "ms"),
        ("key_bytes_per_event", now.bytes, before.bytes, "bytes"),
    ] {
        report.add(&figure(name, ours, reference, against, unit, Goal::Stated));
    }
    Ok(())
}

/// Events of all months, taken apart so that each question has some of each month.
fn questions(options: &Options) -> anyhow::Result<Vec<Vec<(EventId, i64)>>> {
    let mut questions = vec![Vec::new(); QUESTIONS];
    let of_month = (QUESTIONS * ASKED).div_ceil(options.last() as usize);
    for step in 0..options.last() {
        let slice = super::grow::month(options, step)?;
        for (at, named) in
            slice.named().step_by((slice.events.len() / of_month).max(1)).take(of_month).enumerate()
        {
            questions[at % QUESTIONS].push(named);
        }
    }
    Ok(questions)
}

async fn shown(
    cluster: &Cluster,
    ours: &Ours,
    options: &Options,
    questions: &[Vec<(EventId, i64)>],
    seed: u64,
) -> anyhow::Result<Shown> {
    ours.test.execute("VACUUM (ANALYZE) event").await;
    // Everything passes once: what is kept is not what is asked next.
    ours.number("SELECT sum(octet_length(content)) FROM event").await?;
    let mut connection = ours.test.connect(Role::Superuser).await;
    let mut took = [0.0, 0.0];
    let mut warm_cpu = 0.0;
    for (pass, took) in took.iter_mut().enumerate() {
        let (began, cpu) = (clock::monotonic_ms(), family_cpu_s(cluster.postmaster));
        for asked in questions {
            resolve(&mut connection, asked).await?;
        }
        *took = count(clock::monotonic_ms() - began) / count(questions.len() as u64);
        if pass == 1 {
            warm_cpu = (family_cpu_s(cluster.postmaster) - cpu) * 1_000.0 / count(questions.len() as u64);
        }
    }
    let months = options.month(options.last() - 1) + 1;
    let late = Slice::make(Plan {
        seed,
        month: 0,
        months,
        part: (0, 1),
        events: options.events() / 5,
        single: false,
    })?;
    let began = clock::monotonic_ms();
    let fed = ours.feed(&late).await?;
    let late_ms = count(clock::monotonic_ms() - began) * 1_000.0 / count(fed.observations);
    let bytes = ours
        .number("SELECT sum(pg_relation_size(relid)) / (SELECT count(*)::float8 FROM event) FROM pg_partition_tree('event_pkey') WHERE isleaf")
        .await?;
    Ok(Shown {
        cold_ms: took[0],
        warm_ms: took[1],
        warm_cpu_ms: warm_cpu,
        late_cpu_s: fed.per_1k(),
        late_ms,
        bytes,
    })
}
