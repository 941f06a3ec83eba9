//! NIP-05: domains that profiles name are asked which relays a name of theirs uses.
//!
//! A sample, and a polite one: one name per domain, a domain once a month, so many domains a day. Over our own
//! dialled stream: no redirect is followed, as NIP-05 demands, and the answer is capped.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Value, json};

use super::super::validate::is_ours;
use super::super::{Attempt, Ctx, JobError, Report, cadence, lost};
use crate::clock;
use crate::db::{Asked, Found, Sighting};
use crate::models::{AddressPolicy, Network, PortRange, Reason, RelayUrl, Source};
use crate::net::{DialFailure, HttpReply};

/// Between two runs of the task; each asks its share of the day's domains.
const EVERY: Duration = Duration::from_secs(3_600);
const RUNS_PER_DAY: u32 = 24;
/// Domains asked at once.
const AT_ONCE: usize = 4;
/// How long one attempt asks before it leaves the rest to the next, milliseconds.
const TIME_BOX_MS: u64 = 200_000;
/// So many failures of our own, one after the other, end an attempt.
const OURS_IN_A_ROW: u32 = 8;
/// Largest document taken: some servers answer with every name they have.
const BODY_BYTES: usize = 256 * 1024;
/// Relays taken from one document.
const URLS_MAX: usize = 500;
const NAME_BYTES: usize = 64;
/// Between two domains of one machine, milliseconds: what the fleet keeps between two jobs, unless configured.
const SPACING_MS: u64 = 1_000;

/// A NIP-05 identifier whose domain may be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    name: String,
    domain: String,
}

impl Name {
    /// Reads `name@domain`, or a bare domain, which stands for `_@domain`.
    pub fn parse(text: &str, policy: &AddressPolicy) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        let (name, domain) = text.split_once('@').unwrap_or(("_", &text));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty()
            || name.len() > NAME_BYTES
            || !name.bytes().all(plain)
            || domain.contains(['/', '?', ':'])
        {
            return None;
        }
        let url = RelayUrl::parse(&format!("wss://{domain}"), policy).ok()?;
        if url.network() != Network::Clearnet || url.ip().is_some() {
            return None;
        }
        Some(Self { name: name.to_owned(), domain: url.host().to_owned() })
    }

    /// The part before the `@`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host that is asked.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    fn document(&self, policy: &AddressPolicy) -> Option<RelayUrl> {
        let text = format!("wss://{}/.well-known/nostr.json?name={}", self.domain, self.name);
        RelayUrl::parse(&text, policy).ok()
    }
}

pub(super) async fn run(ctx: &Ctx, attempt: &Attempt) -> Result<Report, JobError> {
    let due = cadence::local(EVERY, &attempt.target);
    let share = ctx.config.nip05_per_day.div_ceil(RUNS_PER_DAY);
    let names = if share == 0 { Vec::new() } else { ctx.db.nip05_take(share).await? };
    let until_ms = clock::monotonic_ms() + TIME_BOX_MS;
    let (mut asked, mut sightings, mut ours, mut busy) = (Vec::new(), Vec::new(), None, 0_u32);
    let (mut in_a_row, mut other_port) = (0_u32, 0_u32);
    let machines = &Machines::default();
    let mut answers = futures_util::stream::iter(names)
        .map(|(name, domain)| async move {
            let name = Name { name, domain };
            let answer = ask(ctx, attempt, &name, machines).await;
            (name, answer)
        })
        .buffer_unordered(AT_ONCE);
    while let Some((name, answer)) = answers.next().await {
        let (outcome, relays) = match answer? {
            Answer::Relays(relays) => ("ok", relays),
            // It says nothing about the domain, which comes after the others; unless all fail so.
            Answer::Failed(failure) if is_ours(ctx, failure.reason).await => {
                ours = Some(failure.to_string());
                in_a_row += 1;
                if in_a_row >= OURS_IN_A_ROW {
                    break;
                }
                continue;
            }
            Answer::Failed(failure) => (failure.reason.as_str(), Vec::new()),
            Answer::Busy => {
                busy += 1;
                continue;
            }
        };
        in_a_row = 0;
        asked.push(Asked {
            domain: name.domain.clone(),
            outcome,
            relays: u32::try_from(relays.len()).unwrap_or(u32::MAX),
        });
        let origin = name.domain;
        for url in relays {
            if PortRange::admit(&ctx.config.ports, &url) {
                sightings.push(Sighting { url, source: Source::Nip05, origin: origin.clone() });
            } else {
                other_port += 1;
            }
        }
        if attempt.stop.is_cancelled() || clock::monotonic_ms() >= until_ms {
            break;
        }
    }
    drop(answers);
    let (domains, urls) = (asked.len(), sightings.len());
    let next = Some((due.after, due.slack, due.why));
    let found = Found {
        sightings,
        asked,
        per_host: ctx.config.urls_per_host,
        per_site: ctx.config.urls_per_site,
        per_hoster: ctx.config.urls_per_hoster,
        in_all: ctx.config.candidates_max,
        next,
        ..Found::default()
    };
    let Some(stored) = ctx.db.discover_store(&attempt.fence, &found).await? else { return Err(lost()) };
    let forgotten = ctx.db.nip05_retire().await?;
    Ok(json!({
        "domains": domains, "urls": urls, "new_candidates": stored.new, "over_cap": stored.over_cap,
        "other_port": other_port, "excluded": stored.excluded, "forgotten": forgotten, "busy": busy, "our_fault": ours,
    }))
}

/// What asking a domain came to.
enum Answer {
    Relays(Vec<RelayUrl>),
    Failed(DialFailure),
    /// Its machine has no place for us now: it keeps its turn.
    Busy,
}

/// Machines asked by this attempt: those of a hoster bear many domains, and the fleet's spacing is of jobs.
#[derive(Default)]
struct Machines(Mutex<BTreeMap<IpAddr, u64>>);

impl Machines {
    /// Reserves the next turn at `address`; milliseconds to wait for it.
    fn turn(&self, address: IpAddr) -> u64 {
        let now = clock::monotonic_ms();
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = turns.get(&address).map_or(now, |last| now.max(last + SPACING_MS));
        turns.insert(address, turn);
        turn - now
    }
}

async fn ask(ctx: &Ctx, attempt: &Attempt, name: &Name, machines: &Machines) -> Result<Answer, JobError> {
    let Some(url) = name.document(&ctx.policy) else {
        return Ok(Answer::Failed(DialFailure::new(Reason::HttpInvalid, "the domain may not be asked")));
    };
    let target = match ctx.dialer.resolve(&url).await {
        Ok(target) => target,
        Err(failure) => return Ok(Answer::Failed(failure)),
    };
    if let Some(address) = target.address() {
        let turn = Duration::from_millis(machines.turn(address));
        tokio::select! {
            () = attempt.stop.cancelled() => return Ok(Answer::Busy),
            () = tokio::time::sleep(turn) => {}
        }
        if ctx.place(attempt, target.url().host(), address).await?.is_some() {
            return Ok(Answer::Busy);
        }
    }
    Ok(read(ctx.dialer.http_get(&target, "application/json", BODY_BYTES).await, &ctx.policy))
}

fn read(reply: Result<HttpReply, DialFailure>, policy: &AddressPolicy) -> Answer {
    match reply {
        Err(failure) => Answer::Failed(failure),
        Ok(reply) if reply.status != 200 => {
            Answer::Failed(DialFailure::new(Reason::HttpStatus, format!("HTTP status {}", reply.status)))
        }
        Ok(reply) => match relays(&reply.body, policy) {
            Some(relays) => Answer::Relays(relays),
            None => Answer::Failed(DialFailure::new(Reason::NotJson, "")),
        },
    }
}

/// The relays a document names, for whatever keys; what is none is passed over. None: it is no such document.
fn relays(body: &[u8], policy: &AddressPolicy) -> Option<Vec<RelayUrl>> {
    let Ok(Value::Object(document)) = serde_json::from_slice(body) else { return None };
    let by_key = document.get("relays").and_then(Value::as_object);
    let lists = by_key.into_iter().flat_map(serde_json::Map::values).filter_map(Value::as_array);
    let texts = lists.flatten().filter_map(Value::as_str);
    let mut found: Vec<RelayUrl> =
        texts.filter_map(|text| RelayUrl::parse(text, policy).ok()).take(URLS_MAX).collect();
    found.sort();
    found.dedup();
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Option<String> {
        Name::parse(text, &AddressPolicy::public()).map(|name| format!("{}@{}", name.name, name.domain))
    }

    #[test]
    fn names_are_read_and_what_could_lead_elsewhere_is_not() {
        assert_eq!(name("Bob@Example.com").as_deref(), Some("bob@example.com"));
        assert_eq!(name(" example.com ").as_deref(), Some("_@example.com"));
        for bad in [
            "",
            "@",
            "bob@",
            "@example.com",
            "bob@localhost",
            "bob@127.0.0.1",
            "bob@[::1]",
            "bob@10.0.0.1",
            "bob@example.com/x",
            "bob@example.com?x",
            "bob@example.com:8080",
            "a b@example.com",
            "a&x=1@example.com",
            "bob@x.onion",
            "bob@a@example.com",
            "bob@exa\0mple.com",
        ] {
            assert_eq!(name(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_document_of_any_shape_gives_what_it_has() {
        let policy = AddressPolicy::public();
        let read = |body: &str| relays(body.as_bytes(), &policy).map(|urls| urls.len());
        assert_eq!(
            read(
                r#"{"names":{"x":"00"},"relays":{"00":["wss://a.example","wss://a.example/","x",5],"01":["ws://b.example"]}}"#
            ),
            Some(2)
        );
        for (body, found) in [
            ("{}", Some(0)),
            (r#"{"relays":[]}"#, Some(0)),
            (r#"{"relays":{"00":"wss://a.example"}}"#, Some(0)),
            (r#"{"relays":null}"#, Some(0)),
            ("[]", None),
            ("<html>", None),
            ("", None),
        ] {
            assert_eq!(read(body), found, "{body}");
        }
    }
}
