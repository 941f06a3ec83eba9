//! PgBouncer killed and started again in the middle of work: the fleet goes on by itself, whichever generation it is.

use std::collections::{BTreeMap, BTreeSet};

use tests::journal::{Entry, read, uptime};
use tests::pg::{Bouncer, Generation, Role};
use tests::programs::Process;

use super::scene::{COMPLETE, Scene};
use super::support::value;

const LIVE: &str = "SELECT count(*)::text FROM apalis.workers WHERE lease_until > now()";
const BUSY: &str = "SELECT (count(*) > 6)::text FROM apalis.jobs WHERE status = 'Running'";
const BEGUN: &str = "SELECT (count(*) > 8)::text FROM job_history WHERE target LIKE 't%'";

/// Two schedulers and three workers behind PgBouncer, which has been killed while most of their slots were taken.
struct Cut {
    scene: Scene,
    bouncer: Bouncer,
    _fleet: Vec<Process>,
}

impl Cut {
    async fn new(generation: Generation, jobs: u16, work_ms: u32) -> Option<Self> {
        let mut scene = Scene::new().await?;
        let mut bouncer = Bouncer::start(&scene.test, generation).await?;
        scene.through(bouncer.url(Role::Writer));
        scene.enqueue((0..jobs).map(|i| format!("t{i}")), 60, 5).await;
        let mut fleet = vec![scene.scheduler(), scene.scheduler()];
        fleet.extend((0..3).map(|_| scene.worker(work_ms, 1)));
        scene.until(BEGUN, "true", 20).await;
        scene.until(BUSY, "true", 5).await;
        bouncer.kill();
        Some(Self { scene, bouncer, _fleet: fleet })
    }

    /// Waits until all jobs are done, each once, by every worker, and no two attempts of one at the same time.
    async fn ends(mut self, jobs: u16) -> Scene {
        let back = uptime();
        self.bouncer.start_again().await;
        self.scene.until(COMPLETE, &format!("{jobs} {jobs}"), 40).await;
        self.scene.attempts_are_apart();
        let after = read(&self.scene.journal()).into_iter().filter(|entry| entry.began && entry.at >= back);
        let workers: BTreeSet<u32> = after.map(|entry| entry.pid).collect();
        assert_eq!(workers.len(), 3, "every worker goes on by itself");
        assert_eq!(
            value(&self.scene.test, "SELECT count(*)::text FROM apalis.jobs WHERE target LIKE 't%'").await,
            "0"
        );
        self.scene
    }
}

/// Side by side: they wait more than they work.
async fn both(scenario: impl AsyncFn(Generation)) {
    futures_util::future::join_all(Generation::ALL.map(|generation| scenario(generation))).await;
}

#[tokio::test]
async fn a_pooler_that_is_killed_and_back_within_the_lease_repeats_nothing() {
    both(async |generation| {
        let Some(cut) = Cut::new(generation, 150, 300).await else { return };
        let scene = cut.ends(150).await;
        // By the journal: a claim whose answer was lost on the way has spent its number, and nobody has begun it.
        let mut begun: BTreeMap<String, u32> = BTreeMap::new();
        let ours = |entry: &Entry| entry.began && entry.target.starts_with('t');
        for entry in read(&scene.journal()).into_iter().filter(ours) {
            *begun.entry(entry.target).or_default() += 1;
        }
        assert!(begun.len() == 150 && begun.values().all(|times| *times == 1), "{generation:?}: {begun:?}");
    })
    .await;
}

#[tokio::test]
async fn a_pooler_away_for_longer_than_a_lease_costs_one_attempt_and_doubles_nothing() {
    both(async |generation| {
        // Jobs longer than the lease: what runs when the pooler goes is lost before it can end.
        let Some(cut) = Cut::new(generation, 24, 3_000).await else { return };
        cut.scene.until(LIVE, "0", 10).await;
        let scene = cut.ends(24).await;
        let most = "SELECT max(attempt)::text FROM job_history WHERE target LIKE 't%'";
        assert_eq!(
            value(&scene.test, most).await,
            "2",
            "{generation:?}: the gap cost one attempt, and no more"
        );
    })
    .await;
}
