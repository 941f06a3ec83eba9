//! `mine`: how many archived events a core looks through for relay URLs, and what the whole job costs.

use std::fmt::Write as _;

use shared::db::UnminedEvent;
use shared::jobs::mine;
use shared::models::AddressPolicy;
use sqlx::PgConnection;
use tests::pg::Role;

use super::scene::{Crew, Stage};
use crate::figure::{Figure, Goal, Report, median};
use crate::process::cpu_s;
use crate::queue::Cluster;

/// Different events of the workload; it is gone through again and again.
const EVENTS: u32 = 20_000;
/// Events per batch, as the job takes them.
const BATCH: usize = 2_000;
/// Processor seconds measured: the kernel counts hundredths.
const CPU_S: f64 = 3.0;
/// Relays that people name, most of them the first few.
const RELAYS: u32 = 2_000;
/// Events of the whole job.
const ARCHIVED: u32 = 100_000;
/// A text of NIP-19 that carries two relays.
const PROFILE: &str = "nprofile1qqsrhuxx8l9ex335q7he0f09aej04zpazpl0ne2cgukyawd24mayt8gpp4mhxue69uhhytnc9e3k7mgpz4mhxue69uhkg6nzv9ejuumpv34kytnrdaksjlyr9p";
const WORDS: [&str; 16] = [
    "gm",
    "nostr",
    "the",
    "relay",
    "today",
    "bitcoin",
    "people",
    "https://image.example/a1b2.jpg",
    "and",
    "what",
    "is",
    "zaps",
    "love",
    "this",
    "a",
    "freedom",
];

/// Numbers that are the same in every run (a linear congruence, Knuth's constants).
struct Dice(u64);

impl Dice {
    fn next(&mut self, below: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u32::try_from((self.0 >> 33) % u64::from(below)).expect("less than a u32")
    }

    fn hex(&mut self) -> String {
        (0..8).fold(String::with_capacity(64), |mut text, _| {
            let part = self.next(u32::MAX);
            write!(text, "{part:08x}").expect("a String takes any text");
            text
        })
    }

    /// The few that everybody uses come up most.
    fn relay(&mut self) -> String {
        let range = 1 + self.next(RELAYS);
        format!("wss://relay{}.example", self.next(range))
    }

    fn words(&mut self, n: u32) -> String {
        (0..n).map(|_| WORDS[self.next(16) as usize]).collect::<Vec<_>>().join(" ")
    }

    /// Tags `e` and `p`, as so often with an empty or a named relay.
    fn tag(&mut self, letter: &str) -> String {
        let id = self.hex();
        match self.next(10) {
            0..5 => format!(r#"["{letter}","{id}"]"#),
            5..7 => format!(r#"["{letter}","{id}",""]"#),
            _ => format!(r#"["{letter}","{id}","{}"]"#, self.relay()),
        }
    }
}

/// The shares are those of the kinds on public relays, rounded.
fn event(dice: &mut Dice, key: i64) -> UnminedEvent {
    let (kind, tags, content) = match dice.next(100) {
        0..40 => {
            let tags = (0..dice.next(4)).map(|i| dice.tag(if i == 0 { "e" } else { "p" })).collect();
            let n = 5 + dice.next(60);
            let mut content = dice.words(n);
            if dice.next(20) == 0 {
                content = format!("{content} nostr:{PROFILE} {}", dice.relay());
            }
            (1, tags, content)
        }
        40..65 => (7, vec![dice.tag("e"), dice.tag("p")], "+".to_owned()),
        65..72 => {
            let note =
                format!(r#"{{"id":"{}","kind":1,"content":"{}","tags":[]}}"#, dice.hex(), dice.words(30));
            (6, vec![dice.tag("e"), dice.tag("p")], note)
        }
        72..77 => {
            let about = dice.words(12);
            let profile = format!(
                r#"{{"name":"n{key}","about":"{about}","nip05":"n{key}@domain{}.example"}}"#,
                dice.next(500)
            );
            (0, Vec::new(), profile)
        }
        77..80 => {
            let tags = (0..100 + dice.next(200)).map(|_| dice.tag("p")).collect();
            let relays: Vec<String> =
                (0..8).map(|_| format!(r#""{}":{{"read":true,"write":true}}"#, dice.relay())).collect();
            (3, tags, format!("{{{}}}", relays.join(",")))
        }
        80..85 => {
            let tags = (0..3 + dice.next(6)).map(|_| format!(r#"["r","{}"]"#, dice.relay())).collect();
            (10_002, tags, String::new())
        }
        85..93 => (
            9_735,
            vec![dice.tag("p"), dice.tag("e"), format!(r#"["description","{}"]"#, dice.words(60))],
            String::new(),
        ),
        93..97 => {
            let sealed: String = (0..16).map(|_| dice.hex()).collect();
            (1_059, vec![dice.tag("p")], sealed)
        }
        _ => (30_023, vec![r#"["d","a"]"#.to_owned(), r#"["title","t"]"#.to_owned()], dice.words(800)),
    };
    UnminedEvent {
        key,
        kind: Some(kind),
        tags: Some(format!("[{}]", tags.join(",")).into_bytes()),
        content: Some(content.into_bytes()),
        pubkey: None,
        created_at: Some(1_700_000_000),
    }
}

fn workload(n: u32) -> Vec<UnminedEvent> {
    let mut dice = Dice(19);
    (0..n).map(|key| event(&mut dice, i64::from(key))).collect()
}

/// Per processor second of this process, going through all of them until enough was measured.
fn per_cpu_s(events: &[UnminedEvent], mut look: impl FnMut(&[UnminedEvent])) -> f64 {
    let (began, mut seen) = (cpu_s(std::process::id()), 0_u32);
    loop {
        for batch in events.chunks(BATCH) {
            look(batch);
        }
        seen += u32::try_from(events.len()).expect("a workload is small");
        let spent = cpu_s(std::process::id()) - began;
        if spent >= CPU_S {
            return f64::from(seen) / spent;
        }
    }
}

pub(super) async fn run(n: u32, report: &mut Report) -> anyhow::Result<()> {
    let events = workload(EVENTS);
    let policy = AddressPolicy::public();
    let (mut ours, mut reference, mut urls) = (Vec::new(), Vec::new(), 0);
    for _ in 0..n {
        ours.push(per_cpu_s(&events, |batch| urls = mine(batch, &policy).found.len().max(urls)));
        reference.push(per_cpu_s(&events, |batch| {
            // Every byte once: the least that looking through them can cost.
            let colons = batch
                .iter()
                .flat_map(|e| [&e.tags, &e.content])
                .flatten()
                .flatten()
                .filter(|byte| **byte == b':');
            std::hint::black_box(colons.count());
        }));
    }
    anyhow::ensure!(urls > 100, "the workload names {urls} relays a batch: that is none");
    let figure = |name: &str, ours, reference, against, unit, goal| Figure {
        bench: "mine",
        name: name.to_owned(),
        ours,
        reference,
        against,
        unit,
        goal,
        n,
    };
    report.add(&figure(
        "events_per_cpu_s",
        median(&ours),
        median(&reference),
        "counting the colons in the same bytes",
        "events/s",
        Goal::AtLeast(100_000.0),
    ));
    let (mut worker, mut server, mut speed) = (Vec::new(), Vec::new(), Vec::new());
    let stage = Stage::start().await?;
    for _ in 0..n {
        let cluster = Cluster::start("")?;
        let test = cluster.migrated().await?;
        let mut admin = test.connect(Role::Superuser).await;
        archive(&mut admin).await?;
        let mut crew = Crew::start(&test, &stage.fleet, "discover", &mut admin).await?;
        let outcome = crew.mine(&cluster, &mut admin, ARCHIVED).await?;
        worker.push(outcome.worker_cpu_s_per_1k);
        server.push(outcome.pg_cpu_s_per_1k);
        speed.push(outcome.per_s);
    }
    for (name, values, unit) in [
        ("job_events_per_s", &speed, "events/s"),
        ("worker_cpu_s_per_1k", &worker, "s"),
        ("pg_cpu_s_per_1k", &server, "s"),
    ] {
        report.add(&figure(name, median(values), f64::NAN, "nothing", unit, Goal::Stated));
    }
    Ok(())
}

/// Puts the workload where the job finds it.
async fn archive(admin: &mut PgConnection) -> anyhow::Result<()> {
    let mut events = workload(ARCHIVED).into_iter();
    loop {
        let batch: Vec<UnminedEvent> = events.by_ref().take(5_000).collect();
        if batch.is_empty() {
            break;
        }
        sqlx::query(
            "WITH e AS (SELECT (1700000000::bigint << 31) + u.key AS event_key, u.* FROM unnest($1::bigint[], $2::integer[], $3::bytea[], $4::bytea[]) u(key, kind, tags, content)), \
             stored AS (INSERT INTO event (event_key, created_at, kind, id, pubkey, tags, content) \
                        SELECT e.event_key, 1700000000, e.kind, sha256(e.key::text::bytea), sha256('author'), e.tags, e.content FROM e) \
             INSERT INTO event_unmined SELECT e.event_key FROM e",
        )
        .bind(batch.iter().map(|e| e.key).collect::<Vec<_>>())
        .bind(batch.iter().map(|e| e.kind).collect::<Vec<_>>())
        .bind(batch.iter().map(|e| e.tags.clone()).collect::<Vec<_>>())
        .bind(batch.iter().map(|e| e.content.clone()).collect::<Vec<_>>())
        .execute(&mut *admin)
        .await?;
    }
    sqlx::query("ANALYZE event, event_unmined").execute(admin).await?;
    Ok(())
}
