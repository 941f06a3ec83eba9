//! How attempts are acknowledged: what is written, and what is learnt from the answer.

use std::time::Duration;

use serde_json::{Value, json};

use super::backend::Ticket;
use super::run::{Shared, network_label};
use crate::clock;
use crate::db::{DbError, Finished, Unreadable};
use crate::jobs::{ANSWERED, Ending, spec};
use crate::models::{Network, Verdict};
use crate::telemetry::Labels;

/// An attempt that ended; holds its slot until the database knows.
pub(super) struct Ended {
    pub(super) ticket: Ticket,
    pub(super) ending: Ending,
    /// Delay before the next attempt: drawn once, so that saying it again says the same.
    pub(super) delay: Duration,
    /// The database was told, and its answer did not come.
    pub(super) told: bool,
}

impl Ended {
    pub(super) fn new(ticket: Ticket, ending: Ending) -> Self {
        ticket.holding.over();
        let claimed = &ticket.claimed;
        let delay = ending.delay.unwrap_or_else(|| {
            backoff(failures(claimed.attempt, claimed.max_attempts, spec(claimed.kind).max_attempts))
        });
        Self { ticket, ending, delay, told: false }
    }
}

/// The acknowledgement of an attempt.
pub(super) fn finished(ended: &Ended, with_result: bool) -> Finished {
    let mut result =
        if with_result { ended.ending.result.clone() } else { json!({ "error": "unstorable result" }) };
    strip_nul(&mut result);
    Finished {
        job: ended.ticket.claimed.job.clone(),
        attempt: ended.ticket.claimed.attempt,
        verdict: ended.ending.verdict,
        delay: ended.delay,
        result: result.to_string(),
    }
}

/// Acknowledges a batch of which the database refuses a result: halves it until that one stands alone, and
/// acknowledges its attempt without it. Returns the jobs whose fence held.
pub(super) async fn bisect(shared: &Shared, batch: &[Ended]) -> Result<Vec<String>, DbError> {
    let mut held = Vec::new();
    let mut parts: Vec<(&[Ended], bool)> = vec![(batch, true)];
    while let Some((part, with_results)) = parts.pop() {
        let said: Vec<Finished> = part.iter().map(|ended| finished(ended, with_results)).collect();
        match shared.db.job_finish(&shared.options.worker, &said).await {
            Ok(ids) => held.extend(ids),
            Err(error) if error.is_data() && part.len() > 1 => {
                let (left, right) = part.split_at(part.len() / 2);
                parts.extend([(left, with_results), (right, with_results)]);
            }
            Err(error) if error.is_data() && with_results => {
                tracing::error!(error = %error, "the database refused a result; acknowledging without it");
                parts.push((part, false));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(held)
}

/// Networks reported as out of our reach whose breakers could not be opened yet.
pub(super) type Trips = Vec<Trip>;

/// A network that is reported as out of our reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trip {
    network: Network,
    why: String,
    /// When the newest attempt that says so was claimed, milliseconds of [`clock::boot_ms`].
    claimed_ms: u64,
}

/// Opens the breakers of the networks a batch reports as out of our reach, and of those still owed from before; how
/// long they stay open is how long the batch's jobs wait.
pub(super) async fn trip(shared: &Shared, batch: &mut [Ended], owed: &mut Trips) {
    for trip in reported(batch, std::mem::take(owed)) {
        let options = &shared.options;
        let age = Duration::from_millis(clock::boot_ms().saturating_sub(trip.claimed_ms));
        let Trip { network, why, .. } = &trip;
        match shared.db.breaker_trip(*network, &options.vantage, &options.worker, why, age).await {
            // It began before the breaker opened or closed: nothing new, and its job is due again as after any failure.
            Ok(Duration::ZERO) => {
                tracing::debug!(network = %network, reason = why, "a straggler opens no breaker");
            }
            Ok(open) => {
                tracing::warn!(network = %network, seconds = open.as_secs(), reason = why, "the breaker of a network opens");
                for ended in batch.iter_mut().filter(|ended| ended.ending.trip == Some(*network)) {
                    ended.ending.trip = None;
                    ended.delay = open;
                }
            }
            Err(error) if error.is_data() => {
                tracing::error!(error = %error, network = %network, "the breaker cannot be opened");
            }
            Err(error) => {
                tracing::debug!(error = %error, network = %network, "the breaker opens when the database answers");
                owed.push(trip);
            }
        }
    }
}

/// Each network once, with the first reason and the newest attempt.
fn reported(batch: &[Ended], mut trips: Trips) -> Trips {
    for ended in batch {
        let Some(network) = ended.ending.trip else { continue };
        let claimed_ms = ended.ticket.claimed_ms;
        if let Some(known) = trips.iter_mut().find(|known| known.network == network) {
            known.claimed_ms = known.claimed_ms.max(claimed_ms);
        } else {
            let why = ended.ending.result["error"].as_str().unwrap_or_default().replace('\0', "\u{fffd}");
            trips.push(Trip { network, why, claimed_ms });
        }
    }
    trips
}

/// Closes the breakers that probing jobs of the batch have found to be needless.
pub(super) async fn close(shared: &Shared, batch: &[Ended]) {
    for network in proved(batch) {
        match shared.db.breaker_close(network, &shared.options.vantage).await {
            Ok(_) => tracing::info!(network = %network, "the breaker of a network closes"),
            // The next probe closes it.
            Err(error) => {
                tracing::warn!(error = %error, network = %network, "the breaker could not be closed");
            }
        }
    }
}

/// The networks that probing jobs of the batch have found to work. A job that nothing answered, or that had nothing to ask
/// there, has found nothing: the next one probes.
fn proved(batch: &[Ended]) -> Vec<Network> {
    let found = |ending: &Ending| ending.verdict == Verdict::Complete && ending.result[ANSWERED] == true;
    let mut networks: Vec<Network> = batch
        .iter()
        .filter(|ended| ended.ticket.claimed.probe && found(&ended.ending))
        .filter_map(|ended| ended.ticket.claimed.network.parse().ok())
        .collect();
    networks.sort_unstable_by_key(|network| network.as_str());
    networks.dedup();
    networks
}

/// Ends jobs whose rows make no sense to us, each by itself; those the database could not be told of stay for the
/// next time.
pub(super) async fn condemn(shared: &Shared, unreadable: &mut Vec<Unreadable>) {
    for bad in std::mem::take(unreadable) {
        let dead = Finished {
            job: bad.job.clone(),
            attempt: bad.attempt,
            verdict: Verdict::Kill,
            delay: Duration::ZERO,
            result: json!({ "error": format!("unreadable: {}", bad.why) }).to_string(),
        };
        match shared.db.job_finish(&shared.options.worker, &[dead]).await {
            Ok(_) => {}
            Err(error) if error.is_data() => {
                tracing::error!(error = %error, job.id = bad.job, "an unreadable job cannot be ended; correct its row by hand");
            }
            Err(_) => unreadable.push(bad),
        }
    }
}

/// jsonb has no NUL; a remote's words, quoted in a report, may.
fn strip_nul(value: &mut Value) {
    match value {
        Value::String(text) if text.contains('\0') => *text = text.replace('\0', "\u{fffd}"),
        Value::Array(items) => items.iter_mut().for_each(strip_nul),
        Value::Object(fields) => {
            *fields = std::mem::take(fields)
                .into_iter()
                .map(|(name, mut value)| {
                    strip_nul(&mut value);
                    (name.replace('\0', "\u{fffd}"), value)
                })
                .collect();
        }
        _ => {}
    }
}

/// The how-manieth of its attempts that count this one is: whoever snoozes, or is asked for anew, is given one more.
fn failures(attempt: i32, max_attempts: i32, of_kind: u16) -> i32 {
    attempt.saturating_sub(max_attempts.saturating_sub(i32::from(of_kind))).max(1)
}

/// Delay before the next attempt when the handler names none: 5 s, 15 s, 45 s … at most 15 min, ± 25 %.
fn backoff(attempt: i32) -> Duration {
    let steps = u32::try_from(attempt.clamp(1, 10) - 1).unwrap_or(0);
    let base = 5_000_u64.saturating_mul(3_u64.saturating_pow(steps)).min(900_000);
    let jitter = u64::from_str_radix(&clock::random_hex(2), 16).unwrap_or(0) % (base / 2);
    Duration::from_millis(base * 3 / 4 + jitter)
}

/// Takes note of what the database said about a batch.
pub(super) fn settle(shared: &Shared, batch: &[Ended], held: &[String]) {
    for ended in batch {
        let claimed = &ended.ticket.claimed;
        shared.held.forget(&(claimed.job.clone(), claimed.attempt));
        ended.ticket.slot.settle();
        if held.contains(&claimed.job) {
            let labels = Labels::new(
                claimed.kind.as_str(),
                network_label(&claimed.network),
                ended.ending.verdict.as_str(),
            );
            shared.metrics.jobs_finished.get_or_create(&labels).inc();
            if ended.ending.verdict != Verdict::Complete {
                tracing::info!(
                    job.id = claimed.job, job.kind = %claimed.kind, job.target = claimed.target, job.attempt = claimed.attempt,
                    job.verdict = %ended.ending.verdict, reason = %ended.ending.result, "a job did not complete"
                );
            }
        } else if ended.told {
            tracing::info!(
                job.id = claimed.job,
                job.attempt = claimed.attempt,
                "an attempt was acknowledged when no answer came, or its lease was lost since; its history says which"
            );
        } else {
            shared.metrics.jobs_lost.inc();
            tracing::warn!(
                job.id = claimed.job,
                job.attempt = claimed.attempt,
                "the lease of a job was lost; its result was dropped"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::{Claimed, Db};
    use crate::jobs::JobError;
    use crate::models::JobKind;
    use crate::net::Traffic;
    use crate::queue::QueueOptions;
    use crate::queue::held::Held;
    use crate::queue::lanes::Lanes;
    use crate::telemetry::{Health, Metrics};

    /// An attempt on a network that ended like this, claimed to find out whether the network works.
    fn ended(network: &str, ending: Ending) -> Ended {
        let mut lanes = Lanes::new(std::sync::Arc::default());
        lanes.push("sync.x", 1, tokio::sync::mpsc::channel(1).0);
        let claimed = Claimed {
            job: network.to_owned(),
            queue: "sync.x".to_owned(),
            kind: JobKind::Sync,
            network: network.to_owned(),
            target: "wss://x.example".to_owned(),
            attempt: 1,
            max_attempts: 3,
            timeout: Duration::from_secs(60),
            class: 2,
            deadline: 0.0,
            probe: true,
        };
        let slot = lanes.take("sync.x").unwrap().0.into();
        let holding = Held::new(Metrics::new()).remember(network, 1).into();
        Ended::new(Ticket { claimed, claimed_ms: 7, slot, holding }, ending)
    }

    fn worker(url: &str) -> Shared {
        let options = QueueOptions {
            worker: "w".to_owned(),
            vantage: "test".to_owned(),
            queues: Vec::new(),
            lease: Duration::from_secs(1),
            poll: Duration::from_secs(1),
            grace: Duration::ZERO,
            listen_url: None,
            traffic: Traffic::default(),
        };
        let db = Db::lazy(url, "test", 1).unwrap().with_timeout(Duration::from_secs(1));
        Shared::new(db, options, Metrics::new(), Health::default())
    }

    fn sick(network: Network, why: &str) -> Ended {
        ended(network.as_str(), JobError::Sick { network, why: why.to_owned() }.into())
    }

    #[test]
    fn every_network_that_a_batch_has_probed_is_proved() {
        let done = || Ending::complete(json!({ ANSWERED: true }));
        let mut batch = vec![ended("tor", done()), ended("clearnet", done()), ended("tor", done())];
        batch.push(ended("i2p", Ending::retry("no")));
        batch.push(ended("i2p", Ending::complete(json!({ ANSWERED: false, "up": false }))));
        batch.push(ended("loki", Ending::complete(json!({ "skipped": "the relay is down" }))));
        assert_eq!(proved(&batch), [Network::Clearnet, Network::Tor]);
    }

    #[tokio::test]
    async fn a_breaker_that_could_not_be_opened_is_owed_and_its_reason_is_storable() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("postgres://u@{}/x", server.local_addr().unwrap());
        let hung_up = std::thread::spawn(move || drop(server.accept()));
        let shared = worker(&url);
        let mut batch = [sick(Network::Tor, "the proxy said \0"), sick(Network::Tor, "later")];
        let mut owed = Trips::new();
        trip(&shared, &mut batch, &mut owed).await;
        hung_up.join().unwrap();
        let first = Trip { network: Network::Tor, why: "the proxy said \u{fffd}".to_owned(), claimed_ms: 7 };
        assert_eq!(owed, [first]);
        assert_eq!(reported(&batch, Trips::new()), owed, "the batch, told again, reports it again");
        assert_eq!(reported(&[], owed.clone()), owed, "and without the batch it is still owed");
        batch[1].ticket.claimed_ms = 9;
        assert_eq!(reported(&batch, owed)[0].claimed_ms, 9, "the newest attempt counts");
    }

    #[tokio::test]
    async fn what_was_said_before_and_holds_no_more_is_not_called_lost() {
        let shared = worker("postgres://u@127.0.0.1:1/x");
        let done = |name: &str| ended(name, Ending::complete(json!({})));
        let said_again = Ended { told: true, ..done("a") };
        settle(&shared, &[said_again, done("b"), done("c")], &["c".to_owned()]);
        assert_eq!(shared.metrics.jobs_lost.get(), 1, "b alone");
    }

    #[test]
    fn nul_is_replaced_and_its_escape_is_left_alone() {
        let mut value = json!({ "a\0": ["x\0y", { "b": "\\u0000" }], "n": 1 });
        strip_nul(&mut value);
        assert_eq!(value, json!({ "a\u{fffd}": ["x\u{fffd}y", { "b": "\\u0000" }], "n": 1 }));
        assert_eq!(serde_json::from_str::<Value>(&value.to_string()).unwrap(), value);
    }

    #[test]
    fn the_back_off_grows_and_is_bounded() {
        for attempt in 1..=40 {
            let delay = backoff(attempt);
            assert!(
                delay >= Duration::from_millis(3_750) && delay <= Duration::from_secs(1_125),
                "{attempt}: {delay:?}"
            );
        }
        assert!(backoff(4) > backoff(1));
    }

    #[test]
    fn what_was_put_back_is_no_failure() {
        assert_eq!((failures(1, 3, 3), failures(3, 3, 3)), (1, 3));
        // Six snoozes, then the first failure; asked for anew after nine attempts, then the second.
        assert_eq!((failures(7, 9, 3), failures(11, 12, 3)), (1, 2));
        // A limit that was lowered since.
        assert_eq!(failures(1, 5, 3), 1);
    }
}
