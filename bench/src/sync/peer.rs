//! The original's own synchroniser over relays of ours: its service in a process of its own, its schema and stored
//! cascade on a server started like ours, no pooler between. Once, before ours: it takes minutes.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use shared::clock;
use tests::pg::{Role, TestDb};
use tokio::process::Command;

use super::relay::Relay;
use super::scene::Cost;
use super::{CAP, Options, crowd, distinct, large, least_bytes, many, number, observations, thirty};
use crate::peer;
use crate::process::family_cpu_s;
use crate::queue::cluster::Cluster;

/// Longest a pass of it may take.
const LIMIT: Duration = Duration::from_secs(900);
/// Of the thirty relays those that it reads in a quick run: whole, for what it downloads depends on how much a relay holds.
const FEW: usize = 6;
/// Relays and events of its `ingest`: a twenty-fifth, with relays as large as ours read and about as many copies.
const MANY: (usize, usize) = (8, 4_000);

/// What the figures of `sync` are held against.
pub(super) struct ForSync {
    pub(super) against: &'static str,
    pub(super) events_per_s: f64,
    pub(super) cpu_s_per_1k: f64,
    pub(super) pg_cpu_s_per_1k: f64,
    pub(super) download: f64,
    pub(super) requests: f64,
    pub(super) large_events_per_s: f64,
    pub(super) missing: f64,
    pub(super) peak_mib: f64,
}

impl ForSync {
    /// Figures of long ago, where the peer is left out.
    const BEFORE: Self = Self {
        against: BEFORE,
        events_per_s: 582.0,
        cpu_s_per_1k: 0.82,
        pg_cpu_s_per_1k: f64::NAN,
        download: 3.5,
        requests: 6.22,
        large_events_per_s: f64::NAN,
        missing: 150.0,
        peak_mib: f64::NAN,
    };

    pub(super) async fn measure(options: &Options, end: i64) -> anyhow::Result<Self> {
        if options.no_peer {
            return Ok(Self::BEFORE);
        }
        let peer = Peer::start()?;
        let fleet = thirty(20_000, if options.quick { FEW } else { 30 }, end).await?;
        let read = peer.first(&fleet, observations(&fleet)).await?;
        let one = [large(options, end).await?];
        let alone = peer.first(&one, observations(&one)).await?;
        let dense = [crowd(end).await?];
        let crowded = peer.first(&dense, distinct(&dense[0])).await?;
        let thousands = read.observed / 1_000.0;
        Ok(Self {
            against: "bigbrotr 6.6.9: its synchroniser, once, over the same relays (quick: six, whole), its schema on a server alike",
            events_per_s: read.observed / read.cost.seconds,
            cpu_s_per_1k: read.cost.worker_cpu_s / thousands,
            pg_cpu_s_per_1k: read.cost.pg_cpu_s / thousands,
            download: read.cost.bytes / least_bytes(&fleet),
            requests: alone.cost.requests / (observations(&one) / number(CAP)),
            large_events_per_s: alone.observed / alone.cost.seconds,
            missing: read.missing.max(alone.missing).max(crowded.missing),
            peak_mib: read.cost.peak_mib,
        })
    }
}

/// What the figures of `ingest` are held against.
pub(super) struct ForIngest {
    pub(super) against: &'static str,
    pub(super) cpu_s_per_1k: f64,
    pub(super) duplicates_cpu_s_per_1k: f64,
    pub(super) duplicates_pg_cpu_s_per_1k: f64,
}

impl ForIngest {
    /// Figures of long ago, where the peer is left out.
    const BEFORE: Self = Self {
        against: BEFORE,
        cpu_s_per_1k: 0.34,
        duplicates_cpu_s_per_1k: 0.34,
        duplicates_pg_cpu_s_per_1k: 0.075,
    };

    pub(super) async fn measure(options: &Options, end: i64) -> anyhow::Result<Self> {
        if options.no_peer {
            return Ok(Self::BEFORE);
        }
        let peer = Peer::start()?;
        let (relays, events) = MANY;
        let relays = many(relays, events, end).await?;
        let db = peer.database().await?;
        let first = peer.pass(&db, &relays, observations(&relays)).await?;
        // As if nothing had been read: every event comes once more, and is known.
        db.execute("TRUNCATE service_state").await;
        let again = peer.pass(&db, &relays, observations(&relays)).await?;
        ensure!(again.cost.bytes >= least_bytes(&relays), "the peer did not read everything once more");
        let thousands = first.observed / 1_000.0;
        Ok(Self {
            against: "bigbrotr 6.6.9: its synchroniser, once, over a twenty-fifth, its schema on a server alike",
            cpu_s_per_1k: first.cost.worker_cpu_s / thousands,
            duplicates_cpu_s_per_1k: again.cost.worker_cpu_s / thousands,
            duplicates_pg_cpu_s_per_1k: again.cost.pg_cpu_s / thousands,
        })
    }
}

const BEFORE: &str = "bigbrotr 6.6.9 as measured before on such a machine, not in this run";

/// The package, and a server.
struct Peer {
    python: PathBuf,
    cluster: Cluster,
}

/// What a pass of it cost, and what is stored after it.
struct Pass {
    cost: Cost,
    observed: f64,
    missing: f64,
}

impl Peer {
    fn start() -> anyhow::Result<Self> {
        Ok(Self { python: peer::python()?, cluster: Cluster::start("")? })
    }

    async fn database(&self) -> anyhow::Result<TestDb> {
        let db = peer::schema(&self.cluster).await?;
        // As it configures its server.
        db.execute(&format!("ALTER DATABASE \"{}\" SET synchronous_commit = off", db.name)).await;
        Ok(db)
    }

    /// From an empty archive.
    async fn first(&self, relays: &[Relay], there: f64) -> anyhow::Result<Pass> {
        self.pass(&self.database().await?, relays, there).await
    }

    /// One cycle over all of these, which hold so many events.
    async fn pass(&self, db: &TestDb, relays: &[Relay], there: f64) -> anyhow::Result<Pass> {
        let urls = relays.iter().map(Relay::url).collect::<Vec<_>>().join("\n");
        let list = std::env::temp_dir().join(format!("bigbrotr-bench-peer-{}", clock::random_hex(6)));
        std::fs::write(&list, urls)?;
        let before = Relay::counted(relays);
        let server = family_cpu_s(self.cluster.postmaster);
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.python)
            .arg(peer::tool("peer_sync.py"))
            .arg(&list)
            .env("DATABASE_URL", db.url(Role::Superuser))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the peer")?;
        let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await;
        std::fs::remove_file(&list)?;
        let output = output.with_context(|| format!("the peer was not done within {LIMIT:?}"))??;
        ensure!(output.status.success(), "the peer failed");
        let pg_cpu_s = family_cpu_s(self.cluster.postmaster) - server;
        let after = Relay::counted(relays);
        let said = String::from_utf8(output.stdout)?;
        let said: Value = serde_json::from_str(said.lines().last().context("the peer said nothing")?)?;
        let word = |key: &str| said[key].as_f64().with_context(|| format!("the peer did not say {key}"));
        let counted = |n: u64| u32::try_from(n).map(f64::from);
        let mut admin = db.connect(Role::Superuser).await;
        let observed: i64 =
            sqlx::query_scalar("SELECT count(*) FROM event_relay").fetch_one(&mut admin).await?;
        let observed = f64::from(u32::try_from(observed)?);
        ensure!(observed > 0.0, "the peer stored nothing");
        let cost = Cost {
            seconds: word("seconds")?,
            worker_cpu_s: word("cpu_s")?,
            pg_cpu_s,
            peak_mib: word("peak_mib")?,
            requests: counted(after.0 - before.0)?,
            bytes: counted(after.1 - before.1)?,
        };
        eprintln!("bench: of {there} observations the peer has {observed}: {cost:?}");
        Ok(Pass { cost, observed, missing: there - observed })
    }
}
