//! One visit to one publishing relay: one connection, some batches, and what to make of the answers.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::validate::is_ours;
use super::super::{Attempt, Ctx, JobError, Standing, lost};
use crate::clock;
use crate::db::{DeliveryRow, PendingPublication, PublishingRelay, Visit};
use crate::models::EventId;
use crate::nips::{CloseClass, Parcel, Settled};
use crate::relay::RelaySocket;

/// Events per batch; a relay that refused lately gets a few.
const BATCH: u32 = 100;
const BATCH_TIMID: u32 = 10;
/// How long one visit may take before the next goes on, milliseconds.
const TIME_BOX_MS: u64 = 240_000;
/// A relay that wants peace while it takes events; and until we look whether our own network works again.
const PEACE: Duration = Duration::from_secs(60);
/// One that could not be visited for a moment.
const SOON: Duration = Duration::from_secs(1);
/// An event that got no answer, or one of trouble, is brought again after this long.
const AGAIN: Duration = Duration::from_secs(900);
/// One that was refused to who is not authenticated.
const AGAIN_AUTH: Duration = Duration::from_secs(3_600);
/// Longest words of a relay kept, in characters.
const WORDS_CHARS: usize = 200;
/// Pauses after connections in a row that brought nothing, minutes; the last one stays.
const PAUSES_MIN: [u64; 6] = [1, 5, 30, 120, 360, 1_440];

/// Visits, unless there is nothing to bring; tells what came of it.
pub(super) async fn run(
    ctx: &Ctx,
    attempt: &Attempt,
    relay: &PublishingRelay,
) -> Result<Option<Value>, JobError> {
    let until_ms = clock::monotonic_ms() + TIME_BOX_MS;
    let mut failures = relay.failures;
    let mut batch = take(ctx, relay, failures).await?;
    if batch.is_empty() {
        return Ok(None);
    }
    let mut socket = match open(ctx, attempt, relay).await? {
        Ok(socket) => socket,
        Err(visit) => {
            settle(ctx, attempt, relay, &[], &visit).await?;
            return Ok(Some(json!({ "relay": relay.url, "error": visit.words })));
        }
    };
    // Our key signs what it gets: a relay the operator chose for that may ask for it.
    socket.identify(ctx.config.publish.as_ref().map(|publish| publish.keys.clone()));
    // As long as it may take to open, it may take to verify and store.
    let idle_ms = ctx.dialer.config().network(relay.url.network()).connect_timeout_ms;
    let mut sums = [0_usize; 3];
    while !batch.is_empty() {
        let parcels = batch.iter().map(|one| Parcel { id: one.id, json: one.json.clone() }).collect();
        let answers = socket.deliver(parcels, failures > 0, idle_ms).await;
        let (rows, visit) = judge(batch, answers, failures);
        for row in &rows {
            sums[["accepted", "refused", "waiting"]
                .iter()
                .position(|state| *state == row.state)
                .unwrap_or(2)] += 1;
        }
        settle(ctx, attempt, relay, &rows, &visit).await?;
        failures = visit.failures;
        let over = attempt.stop.is_cancelled() || clock::monotonic_ms() >= until_ms;
        // Nothing settled means nothing learnt: the next visit goes on.
        if over || rows.is_empty() || !visit.pause.is_zero() || !socket.is_usable() {
            break;
        }
        batch = take(ctx, relay, failures).await?;
    }
    socket.close().await;
    Ok(Some(json!({ "relay": relay.url, "accepted": sums[0], "refused": sums[1], "waiting": sums[2] })))
}

/// Connects; or what to make of it that this was not possible. What may be ours is not held against the relay.
async fn open(
    ctx: &Ctx,
    attempt: &Attempt,
    relay: &PublishingRelay,
) -> Result<Result<RelaySocket, Visit>, JobError> {
    let later = |pause: Duration, why: &str| Visit {
        failures: relay.failures,
        pause: pause.max(SOON),
        words: words(why),
    };
    let opened = match ctx.dialer.resolve(&relay.url).await {
        Ok(target) => {
            if let Some(address) = target.address()
                && let Some(wait) = ctx.place(attempt, relay.url.host(), address).await?
            {
                return Ok(Err(later(wait, "its machine has no place for another job yet")));
            }
            RelaySocket::open(&ctx.dialer, &target).await
        }
        Err(failure) => Err(failure),
    };
    let network = relay.url.network();
    ctx.egress.record(network, opened.as_ref().err().map(|failure| failure.reason), false);
    let failure = match opened {
        Ok(socket) => return Ok(Ok(socket)),
        Err(failure) => failure,
    };
    let said = failure.to_string();
    if is_ours(ctx, failure.reason).await
        || ctx.egress.standing(network, &ctx.dialer, false).await != Standing::Proved
    {
        return Ok(Err(later(PEACE, &said)));
    }
    Ok(Err(fruitless(relay.failures, &said)))
}

async fn take(
    ctx: &Ctx,
    relay: &PublishingRelay,
    failures: u32,
) -> Result<Vec<PendingPublication>, JobError> {
    let limit = if failures > 0 { BATCH_TIMID } else { BATCH };
    Ok(ctx.db.publication_take(relay.id, limit).await?)
}

async fn settle(
    ctx: &Ctx,
    attempt: &Attempt,
    relay: &PublishingRelay,
    rows: &[DeliveryRow],
    visit: &Visit,
) -> Result<(), JobError> {
    if ctx.db.publication_settle(&attempt.fence, relay.id, rows, visit).await? { Ok(()) } else { Err(lost()) }
}

/// What the answers mean for each event and for the relay; what was not sent leaves no row and comes again.
fn judge(
    batch: Vec<PendingPublication>,
    answers: Vec<(EventId, Settled)>,
    failures: u32,
) -> (Vec<DeliveryRow>, Visit) {
    let mut by_id: HashMap<EventId, PendingPublication> =
        batch.into_iter().map(|one| (one.id, one)).collect();
    let (mut accepted, mut refused_us, mut peace) = (false, None, false);
    let mut rows = Vec::new();
    let mut unsent = 0_usize;
    for (id, answer) in answers {
        let Some(of) = by_id.remove(&id) else { continue };
        let (state, said, again) = match answer {
            Settled::Accepted { words } => ("accepted", words, Duration::ZERO),
            Settled::Refused { class, words } => match class {
                // Its own fault: this event, or any of its kind.
                CloseClass::InvalidRequest | CloseClass::Unsupported => ("refused", words, Duration::ZERO),
                CloseClass::Restricted | CloseClass::Blocked => {
                    refused_us.get_or_insert_with(|| words.clone());
                    ("refused", words, Duration::ZERO)
                }
                CloseClass::RateLimited => {
                    peace = true;
                    ("waiting", words, PEACE)
                }
                CloseClass::AuthRequired => {
                    refused_us.get_or_insert_with(|| words.clone());
                    ("waiting", words, AGAIN_AUTH)
                }
                CloseClass::Error => {
                    refused_us.get_or_insert_with(|| words.clone());
                    ("waiting", words, AGAIN)
                }
            },
            Settled::Unanswered { words } => {
                refused_us.get_or_insert_with(|| format!("no answer {words}"));
                ("waiting", words, AGAIN)
            }
            Settled::Unsent => {
                unsent += 1;
                continue;
            }
        };
        accepted |= state == "accepted";
        rows.push(DeliveryRow { of, state, words: words(&said), again });
    }
    let visit = match refused_us {
        _ if accepted => {
            Visit { failures: 0, pause: if peace { PEACE } else { Duration::ZERO }, words: String::new() }
        }
        Some(why) => fruitless(failures, &why),
        None if peace => fruitless(failures, "it wants fewer events"),
        None if rows.is_empty() && unsent > 0 => fruitless(failures, "the connection ended"),
        // Refusals that speak of the events alone.
        None => Visit { failures, pause: Duration::ZERO, words: String::new() },
    };
    (rows, visit)
}

fn fruitless(failures: u32, why: &str) -> Visit {
    let failures = failures.saturating_add(1);
    let step = usize::try_from(failures).unwrap_or(usize::MAX).saturating_sub(1).min(PAUSES_MIN.len() - 1);
    Visit { failures, pause: Duration::from_secs(PAUSES_MIN[step] * 60), words: words(why) }
}

/// A relay's words as we keep them.
fn words(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(WORDS_CHARS).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(count: u8) -> Vec<PendingPublication> {
        let one = |i| PendingPublication {
            pubkey: vec![1; 32],
            kind: 30_166,
            d_tag: format!("wss://{i}.example/"),
            id: EventId([i; 32]),
            json: "{}".to_owned(),
        };
        (0..count).map(one).collect()
    }

    fn refused(class: CloseClass, words: &str) -> Settled {
        Settled::Refused { class, words: words.to_owned() }
    }

    fn judged(answers: Vec<Settled>, failures: u32) -> (Vec<&'static str>, Visit) {
        let count = u8::try_from(answers.len()).unwrap();
        let answers = (0..count).map(|i| EventId([i; 32])).zip(answers).collect();
        let (rows, visit) = judge(batch(count), answers, failures);
        (rows.iter().map(|row| row.state).collect(), visit)
    }

    #[test]
    fn one_event_taken_makes_a_relay_good_and_its_refusals_its_own() {
        let accepted = Settled::Accepted { words: String::new() };
        let (states, visit) =
            judged(vec![accepted, refused(CloseClass::InvalidRequest, "invalid: x"), Settled::Unsent], 3);
        assert_eq!(states, ["accepted", "refused"]);
        assert_eq!((visit.failures, visit.pause), (0, Duration::ZERO));
    }

    #[test]
    fn a_relay_that_does_not_want_us_is_left_alone_longer_and_longer() {
        let blocked = || vec![refused(CloseClass::Blocked, "blocked: \u{0}go\r\naway")];
        let (states, visit) = judged(blocked(), 0);
        assert_eq!((states, visit.words.as_str()), (vec!["refused"], "blocked: goaway"));
        let pauses: Vec<u64> =
            (0..9).map(|failures| judged(blocked(), failures).1.pause.as_secs() / 60).collect();
        assert_eq!(pauses, [1, 5, 30, 120, 360, 1_440, 1_440, 1_440, 1_440]);
    }

    #[test]
    fn silence_trouble_and_rate_limits_are_tried_again() {
        let (states, visit) = judged(vec![Settled::Unanswered { words: String::new() }], 0);
        assert_eq!((states, visit.failures, visit.words.as_str()), (vec!["waiting"], 1, "no answer"));
        assert_eq!(judged(vec![refused(CloseClass::Error, "error: disk")], 0).0, ["waiting"]);
        assert_eq!(judged(vec![refused(CloseClass::AuthRequired, "auth-required: x")], 0).0, ["waiting"]);
        assert_eq!(judged(vec![refused(CloseClass::RateLimited, "rate-limited: x")], 0).1.failures, 1);
        assert_eq!(judged(vec![Settled::Unsent], 0).1.failures, 1);
    }

    #[test]
    fn a_fault_of_the_event_says_nothing_of_the_relay() {
        let (states, visit) = judged(vec![refused(CloseClass::InvalidRequest, "invalid: too large")], 0);
        assert_eq!((states, visit.failures, visit.pause), (vec!["refused"], 0, Duration::ZERO));
    }
}
