//! The floor: the cheapest ways into the tables of the archive, and what each thing that is proved on the way adds.
//!
//! The same rows once for each step into an archive of its own, a relay after the other, in pages as relays serve them.
//! Whose events are new is known beforehand but in the last steps, where it is asked.

use shared::models::Event;
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};
use tests::pg::Role;

use super::ours::{Ours, count};
use super::workload::{Plan, Slice};
use super::{Options, figure};
use crate::figure::{Goal, Report};
use crate::process::family_cpu_s;
use crate::queue::Cluster;

/// Events of a page.
const PAGE: usize = 500;

/// Events, in a hundred thousand observations.
const EVENTS: u32 = 20_000;

/// What a function does, each what those before it do and more: insert; note what the rollups have to count; make who takes
/// events away wait, and look every event up; hold the job's row.
const STEPS: [&str; 4] = ["bare", "logged", "proved", "fenced"];

/// The function of a step: those before it and its own part.
fn function(step: usize) -> String {
    let mut body = String::new();
    if step >= 3 {
        body.push_str(
            "PERFORM pg_advisory_xact_lock_shared(7310);
             IF NOT EXISTS (SELECT FROM job_fence(ARRAY[p_job], ARRAY['w'], ARRAY[1])) THEN RETURN; END IF;\n",
        );
    }
    body.push_str(
        "INSERT INTO event (event_key, created_at, kind, id, pubkey, sig, d_tag, tags, content, tag_hashes)
         SELECT u.key, u.at, u.kind, u.id, u.pubkey, u.sig, u.d_tag, u.tags, u.content, u.hashes::bigint[]
         FROM unnest(n_ids, n_keys, n_ats, n_pubkeys, n_kinds, n_tags, n_contents, n_sigs, n_d_tags, n_hashes)
              u(id, key, at, pubkey, kind, tags, content, sig, d_tag, hashes) ORDER BY u.key;
         INSERT INTO event_unmined SELECT k FROM unnest(n_keys) k ORDER BY 1;\n",
    );
    body.push_str(if step >= 2 {
        "LOCK TABLE ONLY event_relay IN ROW EXCLUSIVE MODE;
         SELECT min(k), max(k) INTO lo, hi FROM unnest(p_keys) k;
         INSERT INTO event_relay (event_key, relay_id, seen_at, evidence)
         SELECT e.event_key, p_relay_id, 1790000000, 0
         FROM event e JOIN unnest(p_ids, p_keys) u(id, key) ON u.key = e.event_key AND u.id = e.id
         WHERE e.event_key = ANY (p_keys) AND e.event_key BETWEEN lo AND hi ORDER BY 1;\n"
    } else {
        "INSERT INTO event_relay (event_key, relay_id, seen_at, evidence)
         SELECT k, p_relay_id, 1790000000, 0 FROM unnest(p_keys) k ORDER BY 1;\n"
    });
    if step >= 1 {
        body.push_str(
            "IF cardinality(n_keys) > 0 THEN INSERT INTO rollup_delta (op, n, keys) VALUES (0, cardinality(n_keys), n_keys); END IF;
             INSERT INTO rollup_delta (op, n, keys, relays) VALUES (1, cardinality(p_keys), p_keys, ARRAY[p_relay_id]);\n",
        );
    }
    format!(
        "CREATE FUNCTION floor_store(p_job text, p_relay_id integer, p_ids bytea[], p_keys bigint[],
             n_ids bytea[], n_keys bigint[], n_ats bigint[], n_pubkeys bytea[], n_kinds integer[], n_tags bytea[],
             n_contents bytea[], n_sigs bytea[], n_d_tags bytea[], n_hashes text[])
         RETURNS void LANGUAGE plpgsql SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
         SET enable_nestloop = off SET enable_mergejoin = off SET enable_bitmapscan = off SET jit = off
         AS $$ DECLARE lo bigint; hi bigint; BEGIN\n{body}END $$"
    )
}

/// One page: what a relay delivers, and what of it nobody delivered before.
struct Page<'a> {
    relay_id: i32,
    job: &'a str,
    all: Vec<&'a Event>,
    new: Vec<&'a Event>,
}

fn pages<'a>(ours: &'a Ours, slice: &'a Slice) -> anyhow::Result<Vec<Page<'a>>> {
    let mut stored = vec![false; slice.events.len()];
    let mut pages = Vec::new();
    for (relay, held) in slice.relays.iter().enumerate() {
        for page in held.chunks(PAGE) {
            let event = |at: &u32| -> &'a Event { &slice.events[*at as usize].event };
            let new = page.iter().filter(|at| !std::mem::replace(&mut stored[**at as usize], true));
            pages.push(Page {
                relay_id: ours.relay_id(relay)?,
                job: ours.fence(relay)?.job(),
                new: new.map(event).collect(),
                all: page.iter().map(event).collect(),
            });
        }
    }
    Ok(pages)
}

fn hashes(event: &Event) -> String {
    let hashes: Vec<String> = event.tag_hashes().iter().map(i64::to_string).collect();
    format!("{{{}}}", hashes.join(","))
}

/// As a sync job brings it: a transaction, in it one statement without a name.
async fn store(connection: &mut PgConnection, page: &Page<'_>) -> anyhow::Result<()> {
    let new = || page.new.iter();
    let mut transaction = connection.begin_with("BEGIN; SET LOCAL statement_timeout = 58000").await?;
    sqlx::query("SELECT floor_store($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)")
        .persistent(false)
        .bind(page.job)
        .bind(page.relay_id)
        .bind(page.all.iter().map(|e| e.id_bytes().as_slice()).collect::<Vec<_>>())
        .bind(page.all.iter().map(|e| e.key()).collect::<Vec<_>>())
        .bind(new().map(|e| e.id_bytes().as_slice()).collect::<Vec<_>>())
        .bind(new().map(|e| e.key()).collect::<Vec<_>>())
        .bind(new().map(|e| e.created_at()).collect::<Vec<_>>())
        .bind(new().map(|e| e.pubkey().as_slice()).collect::<Vec<_>>())
        .bind(new().map(|e| i32::from(e.kind())).collect::<Vec<_>>())
        .bind(new().map(|e| e.tags_json().into_bytes()).collect::<Vec<_>>())
        .bind(new().map(|e| e.content().as_bytes()).collect::<Vec<_>>())
        .bind(new().map(|e| e.sig().as_slice()).collect::<Vec<_>>())
        .bind(new().map(|e| e.d_tag().map(str::as_bytes)).collect::<Vec<_>>())
        .bind(new().map(|e| hashes(e)).collect::<Vec<_>>())
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(())
}

/// A file of `COPY` in its binary form.
struct Binary(Vec<u8>);

impl Binary {
    fn new() -> Self {
        let mut file = b"PGCOPY\n\xff\r\n\0".to_vec();
        file.extend([0; 8]);
        Self(file)
    }

    fn row(&mut self, fields: &[Option<&[u8]>]) {
        self.0.extend(i16::try_from(fields.len()).unwrap_or(0).to_be_bytes());
        for field in fields {
            let length = field.map_or(-1, |field| i32::try_from(field.len()).unwrap_or(0));
            self.0.extend(length.to_be_bytes());
            self.0.extend(field.unwrap_or_default());
        }
    }

    async fn send(mut self, connection: &mut PgConnection, table: &str) -> anyhow::Result<()> {
        self.0.extend((-1_i16).to_be_bytes());
        let mut into = connection.copy_in_raw(&format!("COPY {table} FROM STDIN (FORMAT binary)")).await?;
        into.send(self.0).await?;
        into.finish().await?;
        Ok(())
    }
}

/// The binary form of an array of numbers.
fn array(numbers: &[i64]) -> Vec<u8> {
    const OID_OF_BIGINT: i32 = 20;
    let mut bytes = Vec::new();
    let dimensions = i32::from(!numbers.is_empty());
    for word in [dimensions, 0, OID_OF_BIGINT] {
        bytes.extend(word.to_be_bytes());
    }
    if dimensions > 0 {
        bytes.extend(i32::try_from(numbers.len()).unwrap_or(0).to_be_bytes());
        bytes.extend(1_i32.to_be_bytes());
    }
    for number in numbers {
        bytes.extend(8_i32.to_be_bytes());
        bytes.extend(number.to_be_bytes());
    }
    bytes
}

/// Events and observations by `COPY`, each list as it comes.
async fn copy(connection: &mut PgConnection, events: &[&Event], seen: &[(i32, i64)]) -> anyhow::Result<()> {
    let (mut bodies, mut unmined, mut pairs) = (Binary::new(), Binary::new(), Binary::new());
    for event in events {
        let key = event.key().to_be_bytes();
        let tags = event.tags_json();
        bodies.row(&[
            Some(&key),
            Some(&event.created_at().to_be_bytes()),
            Some(&i32::from(event.kind()).to_be_bytes()),
            Some(event.id_bytes()),
            Some(event.pubkey()),
            Some(event.sig()),
            event.d_tag().map(str::as_bytes),
            Some(tags.as_bytes()),
            Some(event.content().as_bytes()),
            Some(&array(&event.tag_hashes())),
        ]);
        unmined.row(&[Some(&key)]);
    }
    for (relay, key) in seen {
        let at = 1_790_000_000_i64.to_be_bytes();
        pairs.row(&[Some(&key.to_be_bytes()), Some(&at), Some(&relay.to_be_bytes()), Some(&[0, 0])]);
    }
    let columns = "event (event_key, created_at, kind, id, pubkey, sig, d_tag, tags, content, tag_hashes)";
    bodies.send(connection, columns).await?;
    unmined.send(connection, "event_unmined").await?;
    pairs.send(connection, "event_relay (event_key, seen_at, relay_id, evidence)").await
}

/// How a step fills its archive.
enum Way {
    CopyAtOnce,
    CopyByPages,
    Function(usize),
}

async fn fill(cluster: &Cluster, slice: &Slice, way: &Way) -> anyhow::Result<f64> {
    let ours = Ours::open(cluster).await?;
    if let Way::Function(step) = way {
        ours.test.execute(&function(*step)).await;
    }
    let mut connection = ours.test.connect(Role::Superuser).await;
    let pages = pages(&ours, slice)?;
    ours.test.execute("CHECKPOINT").await;
    let cpu = family_cpu_s(cluster.postmaster);
    match way {
        Way::CopyAtOnce => {
            let mut events: Vec<&Event> = slice.events.iter().map(|row| &*row.event).collect();
            events.sort_unstable_by_key(|event| event.key());
            let mut seen: Vec<(i32, i64)> =
                pages.iter().flat_map(|page| page.all.iter().map(|e| (page.relay_id, e.key()))).collect();
            seen.sort_unstable();
            copy(&mut connection, &events, &seen).await?;
        }
        Way::CopyByPages => {
            for page in &pages {
                let seen: Vec<(i32, i64)> = page.all.iter().map(|e| (page.relay_id, e.key())).collect();
                connection.execute("BEGIN").await?;
                copy(&mut connection, &page.new, &seen).await?;
                connection.execute("COMMIT").await?;
            }
        }
        Way::Function(_) => {
            for page in &pages {
                store(&mut connection, page).await?;
            }
        }
    }
    let cpu = family_cpu_s(cluster.postmaster) - cpu;
    let observations = ours.number("SELECT count(*) FROM event_relay").await?;
    let events = ours.number("SELECT count(*) FROM event").await?;
    anyhow::ensure!((events - count(slice.events.len() as u64)).abs() < 0.5, "not everything was stored");
    Ok(cpu * 1_000.0 / observations)
}

/// Measures every step.
pub(super) async fn run(cluster: &Cluster, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let events = if options.quick { EVENTS / 4 } else { EVENTS };
    let slice = Slice::make(Plan { seed: 0, month: 0, months: 1, part: (0, 1), events, single: false })?;
    let against = "COPY at once, in the order of keys";
    let least = fill(cluster, &slice, &Way::CopyAtOnce).await?;
    let mut add = |name: String, cost: f64| {
        report.add(&figure(name, cost, least, against, "s", Goal::Stated));
    };
    add("floor_0_copy_at_once_pg_cpu_s_per_1k".to_owned(), least);
    add("floor_1_copy_by_pages_pg_cpu_s_per_1k".to_owned(), fill(cluster, &slice, &Way::CopyByPages).await?);
    for (at, name) in STEPS.iter().enumerate() {
        let cost = fill(cluster, &slice, &Way::Function(at)).await?;
        add(format!("floor_{}_{name}_pg_cpu_s_per_1k", at + 2), cost);
    }
    let ours = Ours::open(cluster).await?;
    ours.test.execute("CHECKPOINT").await;
    let fed = ours.feed_by(&slice, PAGE).await?;
    add("floor_6_ours_pg_cpu_s_per_1k".to_owned(), fed.per_1k());
    add("floor_7_ours_again_pg_cpu_s_per_1k".to_owned(), ours.feed_by(&slice, PAGE).await?.delivered_1k());
    Ok(())
}
