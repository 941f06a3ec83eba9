//! Renewing the lease, and noticing what was lost meanwhile.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::held::{Held, Key, Why};
use super::run::{HEARTBEAT, Shared};
use crate::clock;
use crate::db::{DbError, Finished};
use crate::models::Verdict;
use crate::telemetry::{Labels, Outage};

/// Between tries while the database is away: a lease is worth more than a quiet log.
const RETRY: Duration = Duration::from_secs(1);

/// Between two looks at what is left of the lease: a sleep does not count the time a machine is suspended.
const LOOK: Duration = Duration::from_secs(1);
/// The shortest: a lease that is over stays so until the next heartbeat.
const LOOK_LEAST: Duration = Duration::from_millis(100);

/// (job, attempt) pairs.
type Pairs = HashSet<Key>;

/// What the database thinks we run and we know nothing of, with the calls that had begun when it was first seen. The claim
/// may be on its way still: only when all of them are over, and it has not come, did its claim never reach us.
#[derive(Debug, Default)]
pub(super) struct Strays(HashMap<Key, u64>);

impl Strays {
    /// Takes what is unknown now, `begun` and `over` being how many calls that claim have begun and are over; what is to be
    /// given back.
    fn sight(&mut self, unknown: Pairs, begun: u64, over: u64) -> Vec<Key> {
        let before = std::mem::take(&mut self.0);
        let mut lost = Vec::new();
        for key in unknown {
            match before.get(&key) {
                Some(since) if over >= *since => lost.push(key),
                since => {
                    self.0.insert(key, since.copied().unwrap_or(begun));
                }
            }
        }
        lost
    }
}

/// Beats until told to stop. A lease that could not be renewed in time is over by our own clock: whatever runs
/// here is stopped then, for another worker may have it.
pub(super) async fn run(shared: Shared, stop: CancellationToken) {
    let mercy_ms = AtomicU64::new(0);
    tokio::select! {
        () = beats(&shared, &mercy_ms, &stop) => {}
        () = watch(&shared, &mercy_ms) => {}
    }
}

async fn beats(shared: &Shared, mercy_ms: &AtomicU64, stop: &CancellationToken) {
    let (mut strays, mut outage) = (Strays::default(), Outage::default());
    loop {
        let pause = match beat(shared, &mut strays).await {
            Ok(()) => {
                outage.answered("the database");
                let third = shared.options.lease / 3;
                // An answer that was longer on its way than the lease: since when that stands nobody here knows, so it is
                // renewed once more at once, and given the time an answer may take. Stopping what was claimed under it
                // would spend attempts after every outage.
                if shared.lease_left().is_zero() {
                    mercy_ms.store(clock::boot_ms() + millis(third), Ordering::Relaxed);
                    Duration::ZERO
                } else {
                    third
                }
            }
            Err(error) => {
                outage.failed(&error, "the lease is renewed when the database answers");
                shared.metrics.queue_errors.inc();
                shared.turn(HEARTBEAT);
                RETRY.min(shared.options.lease / 3)
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.tell.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Stops what runs here whenever the lease is over; beside the beats, for one may take long, or none come.
async fn watch(shared: &Shared, mercy_ms: &AtomicU64) {
    let mut told = false;
    loop {
        let mercy = mercy_ms.load(Ordering::Relaxed).saturating_sub(clock::boot_ms());
        let left = shared.lease_left().max(Duration::from_millis(mercy));
        // Once: what comes in afterwards was claimed under a lease whose word is still on its way.
        if left.is_zero() && !told {
            let jobs = shared.held.end_all(Why::Lost);
            if jobs > 0 {
                tracing::warn!(jobs, "the lease could not be renewed in time; stopping what runs");
            }
        }
        told = left.is_zero();
        tokio::time::sleep(left.clamp(LOOK_LEAST, LOOK)).await;
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// One heartbeat: renews the lease, stops the attempts that another worker has taken over, and gives back
/// those the database thinks we run although their claim never reached us.
pub(super) async fn beat(shared: &Shared, strays: &mut Strays) -> Result<(), DbError> {
    let before = shared.held.keys();
    // The lease counts from before the question: the answer may have been long on its way.
    let asked_ms = clock::boot_ms();
    for (network, received, sent) in shared.options.traffic.take_directions() {
        let labels = Labels::new("", network.as_str(), "");
        shared.metrics.received_bytes.get_or_create(&labels).inc_by(received);
        shared.metrics.sent_bytes.get_or_create(&labels).inc_by(sent);
    }
    let registration = shared.registration(shared.options.traffic.take());
    // On a connection that has gone silent no answer ever comes: another try must still be in time.
    let db = shared.db.with_timeout(shared.options.lease / 3);
    let held: Pairs = match db.job_heartbeat(&registration).await {
        Ok(held) => held.into_iter().collect(),
        Err(error) => {
            for (network, bytes) in registration.traffic {
                shared.options.traffic.add(network, bytes);
            }
            return Err(error);
        }
    };
    shared.renewed(asked_ms);
    shared.beat(HEARTBEAT);
    for key in lost(before, &held, &shared.held) {
        tracing::warn!(
            job.id = key.0,
            job.attempt = key.1,
            "this job is not ours any more; stopping it here"
        );
        shared.held.end(&key, Why::Lost);
    }
    // In this order: a call that is over by now has handed out what it claimed.
    let over = shared.claims.over();
    let unknown: Pairs = held.into_iter().filter(|key| !shared.held.contains(key)).collect();
    let give_back: Vec<Finished> =
        strays.sight(unknown, shared.claims.begun(), over).iter().map(given_back).collect();
    if !give_back.is_empty() {
        tracing::warn!(jobs = give_back.len(), "giving back jobs whose claim never arrived");
        shared.db.job_finish(&shared.options.worker, &give_back).await?;
    }
    Ok(())
}

/// What ran here before the question, runs here still, and is not ours by the answer. An attempt that has ended by itself
/// meanwhile may be acknowledged already: whoever acknowledges it hears whether it was ours.
fn lost(before: Pairs, ours: &Pairs, here: &Held) -> Vec<Key> {
    before.into_iter().filter(|key| !ours.contains(key) && here.is_running(key)).collect()
}

fn given_back((job, attempt): &Key) -> Finished {
    Finished {
        job: job.clone(),
        attempt: *attempt,
        verdict: Verdict::Snooze,
        delay: Duration::ZERO,
        result: r#"{"error":"the claim never reached its worker"}"#.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Db;
    use crate::net::Traffic;
    use crate::queue::QueueOptions;
    use crate::telemetry::{Health, Metrics};

    /// A server that hangs up at once: every beat fails fast, and the pauses between them are what passes.
    async fn hang_up(server: tokio::net::TcpListener) {
        while let Ok((socket, _)) = server.accept().await {
            drop(socket);
        }
    }

    #[test]
    fn a_claim_that_is_long_on_its_way_is_not_given_back() {
        let key: Key = ("a".to_owned(), 1);
        let unknown = || Pairs::from([key.clone()]);
        let mut strays = Strays::default();
        // Seen while call 7 is under way, again and again; then it is over, and the claim has not come.
        for _ in 0..3 {
            assert!(strays.sight(unknown(), 7, 6).is_empty());
        }
        assert_eq!(strays.sight(unknown(), 9, 7), std::slice::from_ref(&key));
        // What comes in between is forgotten, and a later sighting is a new one.
        assert!(strays.sight(unknown(), 10, 9).is_empty());
        assert!(strays.sight(Pairs::new(), 10, 10).is_empty());
        assert!(strays.sight(unknown(), 11, 10).is_empty());
    }

    #[test]
    fn what_is_being_acknowledged_was_not_lost() {
        let here = Held::new(Metrics::new());
        let (running, over, gone) = (here.remember("a", 1), here.remember("b", 1), here.remember("c", 1));
        let kept = here.remember("d", 1);
        let before = here.keys();
        over.over();
        drop(gone);
        let ours = Pairs::from([("d".to_owned(), 1)]);
        assert_eq!(lost(before, &ours, &here), [("a".to_owned(), 1)]);
        drop((running, over, kept));
    }

    #[tokio::test]
    async fn what_runs_is_stopped_when_the_lease_ends_and_not_at_the_next_beat() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("postgres://u@{}/x", server.local_addr().unwrap());
        // A beat a second: at 2.0 s and at 3.0 s, or a little later.
        let lease = Duration::from_millis(3_100);
        let options = QueueOptions {
            worker: "w".to_owned(),
            vantage: "test".to_owned(),
            queues: Vec::new(),
            lease,
            poll: Duration::from_secs(1),
            grace: Duration::ZERO,
            listen_url: None,
            traffic: Traffic::default(),
        };
        let shared =
            Shared::new(Db::lazy(&url, "test", 1).unwrap(), options, Metrics::new(), Health::default());
        let holding = shared.held.remember("a", 1);
        let began = clock::boot_ms();
        let stop = CancellationToken::new();
        let why = tokio::select! {
            why = holding.told() => why,
            () = run(shared, stop.clone()) => unreachable!("it was not told to stop"),
            () = hang_up(server) => unreachable!("the server stays"),
        };
        let after = clock::boot_ms() - began;
        assert_eq!(why, Why::Lost);
        assert!((3_000..3_400).contains(&after), "after {after} ms");
    }
}
