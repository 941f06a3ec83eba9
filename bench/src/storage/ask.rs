//! What is asked of the archive: whether events are known, a relay's month in order, who holds an event, and the newest
//! events by author, kind and tag.

use anyhow::Context;
use shared::clock;
use shared::models::{EventId, event_key, tag_hash};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tests::pg::{Role, TestDb};

use super::ours::{Ours, count};
use super::peer::Peer;
use super::workload::{Slice, author, hex, month_start, relay_url};
use crate::figure::median;
use crate::process::family_cpu_s;

/// A relay with many events.
const LISTED: usize = 9;
/// Groups of calls; the time is the median of the groups' means.
const GROUPS: u32 = 7;

/// One question's cost a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) wall_ms: f64,
    pub(super) cpu_ms: f64,
}

/// Asks again and again; a question that takes long is asked less often.
pub(super) async fn repeat<F>(postmaster: u32, mut ask: F) -> anyhow::Result<Cost>
where
    F: AsyncFnMut() -> anyhow::Result<()>,
{
    let began = clock::monotonic_ms();
    ask().await?;
    let first = clock::monotonic_ms() - began;
    let (groups, calls) = if first > 300 { (3, 1) } else { (GROUPS, (150 / first.max(1)).clamp(3, 60)) };
    let (mut walls, cpu) = (Vec::new(), family_cpu_s(postmaster));
    for _ in 0..groups {
        let began = clock::monotonic_ms();
        for _ in 0..calls {
            ask().await?;
        }
        walls.push(count(clock::monotonic_ms() - began) / count(calls));
    }
    let cpu = family_cpu_s(postmaster) - cpu;
    Ok(Cost { wall_ms: median(&walls), cpu_ms: cpu * 1_000.0 / count(calls) / f64::from(groups) })
}

/// One SQL text, its answer read and thrown away.
pub(super) async fn sql(postmaster: u32, test: &TestDb, sql: &str) -> anyhow::Result<Cost> {
    let mut connection = test.connect(Role::Superuser).await;
    connection.execute("SET jit = off").await?;
    let cost = repeat(postmaster, async || fetch(&mut connection, sql).await).await?;
    connection.close().await?;
    Ok(cost)
}

async fn fetch(connection: &mut PgConnection, sql: &str) -> anyhow::Result<()> {
    connection
        .fetch_all(AssertSqlSafe(sql.to_owned()))
        .await
        .with_context(|| sql.chars().take(120).collect::<String>())?;
    Ok(())
}

/// The questions in SQL, ours and the peer's.
pub(super) struct Question {
    pub(super) name: &'static str,
    pub(super) ours: String,
    peer: String,
}

/// A half of what a relay of the month delivers, and as many events that nobody knows.
pub(super) fn thousand(slice: &Slice, strangers: &Slice) -> Vec<(EventId, i64)> {
    let held = slice.relays[LISTED].iter().map(|at| &slice.events[*at as usize].event).take(500);
    let mut asked: Vec<(EventId, i64)> = held.map(|event| (event.id(), event.created_at())).collect();
    asked.extend(strangers.named().take(1_000 - asked.len()));
    asked
}

/// Between which keys a month lies.
pub(super) fn month_keys(month: u32) -> (i64, i64) {
    (month_start(month) << 31, month_start(month + 1) << 31)
}

pub(super) fn list_sql(relay_id: i32, month: u32) -> String {
    let (lo, hi) = month_keys(month);
    format!(
        "SELECT e.id, e.created_at FROM event_relay o JOIN event e ON e.event_key = o.event_key
         WHERE o.relay_id = {relay_id} AND o.event_key >= {lo} AND o.event_key < {hi} AND e.event_key >= {lo} AND e.event_key < {hi}
         ORDER BY o.event_key"
    )
}

pub(super) fn questions(ours: &Ours, slice: &Slice, month: u32) -> anyhow::Result<Vec<Question>> {
    let (since, until) = (month_start(month), month_start(month + 1));
    let some = || slice.events.iter().step_by(slice.events.len() / 1_000).take(1_000).map(|row| &row.event);
    let keys: Vec<String> = some().map(|event| event.key().to_string()).collect();
    let ids: Vec<String> = some().map(|event| format!("'\\x{}'", hex(event.id().as_bytes()))).collect();
    let url = relay_url(LISTED);
    let mut questions = vec![
        Question {
            name: "list_month",
            ours: list_sql(ours.relay_id(LISTED)?, month),
            peer: format!(
                "SELECT e.id, e.created_at FROM event_relay o JOIN event e ON e.id = o.event_id
                 WHERE o.relay_url = '{url}' AND e.created_at >= {since} AND e.created_at < {until} ORDER BY e.created_at, e.id"
            ),
        },
        Question {
            name: "relays_of_1000",
            ours: format!(
                "SELECT k.k, o.relay_id FROM unnest(ARRAY[{}]::bigint[]) k(k)
                 CROSS JOIN LATERAL (SELECT x.relay_id FROM event_relay x WHERE x.event_key = k.k OFFSET 0) o",
                keys.join(",")
            ),
            peer: format!("SELECT event_id, relay_url FROM event_relay WHERE event_id = ANY (ARRAY[{}]::bytea[])", ids.join(",")),
        },
    ];
    for (name, rank) in [("newest_by_author", 3), ("newest_by_rare_author", 25_000)] {
        let author = hex(&author(rank));
        questions.push(Question {
            name,
            ours: format!(
                "SELECT id FROM event WHERE pubkey = '\\x{author}' ORDER BY event_key DESC LIMIT 100"
            ),
            peer: format!(
                "SELECT id FROM event WHERE pubkey = '\\x{author}' ORDER BY created_at DESC LIMIT 100"
            ),
        });
    }
    for (name, kind) in [("newest_by_kind", 1), ("newest_by_rare_kind", 30_023)] {
        questions.push(Question {
            name,
            ours: format!("SELECT id FROM event WHERE kind = {kind} ORDER BY event_key DESC LIMIT 100"),
            peer: format!("SELECT id FROM event WHERE kind = {kind} ORDER BY created_at DESC LIMIT 100"),
        });
    }
    for (name, rank) in [("newest_by_tag", 3), ("newest_by_rare_tag", 5_000)] {
        let author = hex(&author(rank));
        questions.push(Question {
            name,
            ours: format!(
                "SELECT id, tags FROM event WHERE tag_hashes @> ARRAY[{}]::bigint[] ORDER BY event_key DESC LIMIT 100",
                tag_hash('p', &author)
            ),
            peer: format!("SELECT id, tags FROM event WHERE tagvalues @> ARRAY['p:{author}'] ORDER BY created_at DESC LIMIT 100"),
        });
    }
    Ok(questions)
}

/// Asked of ours through the function that resolves observations.
pub(super) async fn known(postmaster: u32, ours: &Ours, asked: &[(EventId, i64)]) -> anyhow::Result<Cost> {
    let mut connection = ours.test.connect(Role::Superuser).await;
    repeat(postmaster, async || resolve(&mut connection, asked).await).await
}

/// One call of `event_resolve`, which no program makes by itself: the functions that store do.
pub(super) async fn resolve(connection: &mut PgConnection, asked: &[(EventId, i64)]) -> anyhow::Result<()> {
    sqlx::query("SELECT o, fate FROM event_resolve($1, $2)")
        .bind(asked.iter().map(|(id, _)| id.as_bytes().to_vec()).collect::<Vec<_>>())
        .bind(asked.iter().map(|(id, at)| event_key(*at, id)).collect::<Vec<_>>())
        .fetch_all(connection)
        .await?;
    Ok(())
}

/// The same ids of the peer's table.
pub(super) async fn known_peer(
    postmaster: u32,
    peer: &Peer,
    asked: &[(EventId, i64)],
) -> anyhow::Result<Cost> {
    let ids: Vec<Vec<u8>> = asked.iter().map(|(id, _)| id.as_bytes().to_vec()).collect();
    let mut connection = peer.test.connect(Role::Superuser).await;
    repeat(postmaster, async || {
        sqlx::query("SELECT id FROM event WHERE id = ANY ($1)").bind(&ids).fetch_all(&mut connection).await?;
        Ok(())
    })
    .await
}

impl Question {
    pub(super) async fn peer(&self, postmaster: u32, peer: &Peer) -> anyhow::Result<Cost> {
        sql(postmaster, &peer.test, &self.peer).await
    }
}
