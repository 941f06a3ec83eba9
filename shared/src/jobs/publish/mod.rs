//! What we publish (NIP-66): each look that found a relay alive becomes an event in the outbox, and the task
//! `publish` brings the outbox to the publishing relays.
//!
//! Invariants: nothing is said of a relay that this look did not find alive; what is said is signed here and nowhere
//! else; every event passes the outbox, so that a publishing relay that is away costs nobody's time but its own.

mod facts;
mod outbox;
mod visit;

use std::time::Duration;

use super::{Attempt, Ctx, JobError, WriteTo, liveness::State, lost};
use crate::checks::{CheckKind, Looks, MonitorReport};
use crate::clock;
use crate::db::{NewPublication, RelayRow};
use crate::models::{AddressPolicy, Network, Reason, RelayUrl};
use crate::nips::Keys;
use crate::nips::nip66::{self, Draft, MonitorFacts, Profile};

pub use facts::{draft_of, may_be_said};
pub(super) use outbox::run;

/// The name of the task, kind `monitor`.
pub const TASK: &str = "publish";
/// What we say of ourselves is said again after this long, unchanged: relays forget.
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(86_400);

/// What an operator chooses about publishing.
#[derive(Debug, Clone)]
pub struct Publishing {
    /// Who signs.
    pub keys: Keys,
    /// What we say of ourselves, and where.
    pub about: About,
    /// Relays with other names and addresses are not spoken of.
    pub policy: AddressPolicy,
}

/// What we say of ourselves.
#[derive(Debug, Clone)]
pub struct About {
    /// Where we publish.
    pub relays: Vec<RelayUrl>,
    /// Who runs the monitor.
    pub profile: Profile,
    /// Where it is.
    pub geohash: Option<String>,
    /// Networks whose relays are looked at.
    pub networks: Vec<Network>,
    /// After which one step of a check gives up, on the first of them.
    pub timeout: Duration,
}

impl About {
    /// The events: how we look, who we are, where we write. `frequency`: between two looks at a stable relay that are
    /// published under this key (NIP-66).
    pub fn announcements(&self, frequency: Duration, looks: &Looks, write: &WriteTo) -> Vec<Draft> {
        let mut checks: Vec<&str> = looks
            .enabled
            .iter()
            .flat_map(|kind| match kind {
                CheckKind::Rtt => ["open", "read"].as_slice(),
                CheckKind::Nip11 => &["nip11"],
                CheckKind::Dns => &["dns"],
                CheckKind::Ssl => &["ssl"],
                CheckKind::Geo => &["geo"],
                CheckKind::Net => &["net"],
                CheckKind::Http => &["http"],
            })
            .copied()
            .collect();
        if *write != WriteTo::Nobody && looks.enabled.contains(&CheckKind::Rtt) {
            checks.push("write");
        }
        let limit = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        // The others come from connections that these limits end.
        let timed = ["open", "read", "write", "nip11", "dns"];
        let timeouts: Vec<(&str, u64)> =
            timed.into_iter().filter(|check| checks.contains(check)).map(|check| (check, limit)).collect();
        let monitor = nip66::announcement(&MonitorFacts {
            frequency_s: frequency.as_secs(),
            checks: &checks,
            timeouts_ms: &timeouts,
            networks: &self.networks,
            geohash: self.geohash.as_deref(),
        });
        let mut drafts = vec![monitor, nip66::relay_list(&self.relays)];
        drafts.extend(nip66::profile(&self.profile));
        drafts
    }
}

impl Publishing {
    /// Takes back what we said of a relay.
    async fn withdrawal(&self, ctx: &Ctx, d: &str, why: &str) -> Result<NewPublication, JobError> {
        let ids = ctx.db.publication_ids(&self.keys.pubkey(), nip66::DISCOVERY, d).await?;
        let draft = nip66::withdrawal(&self.keys.pubkey_hex(), d, &ids, why);
        self.put(draft, d.to_owned(), None, Duration::ZERO)
    }

    fn announcement(&self, draft: Draft) -> Result<NewPublication, JobError> {
        self.put(draft, String::new(), None, ANNOUNCE_AGAIN)
    }

    fn put(
        &self,
        draft: Draft,
        d_tag: String,
        relay: Option<RelayUrl>,
        refresh: Duration,
    ) -> Result<NewPublication, JobError> {
        let digest = draft.digest();
        let event = draft.sign(&self.keys, clock::unix_now()).map_err(|error| JobError::Retry {
            why: format!("an event of ours cannot be signed: {error}"),
        })?;
        Ok(NewPublication { event, d_tag, relay, digest, refresh })
    }
}

/// What a look means for the outbox: an event about a relay that is alive, or the end of what we said of one that
/// does not speak Nostr, twice, nor to any other vantage. Of any other relay we say nothing; the age of our last word
/// tells.
pub(super) async fn record(
    ctx: &Ctx,
    attempt: &Attempt,
    url: &RelayUrl,
    relay: &RelayRow,
    report: &MonitorReport,
) -> Result<(), JobError> {
    let Some(publishing) = &ctx.config.publish else { return Ok(()) };
    let new = match draft_of(url, report, &publishing.policy) {
        Some(draft) => {
            let d = draft.d_tag().to_owned();
            publishing.put(draft, d, Some(url.clone()), Duration::ZERO)?
        }
        None if is_fake(report.up, report.reason, relay.reason.as_deref())
            && !is_seen_elsewhere(relay, clock::unix_now()) =>
        {
            publishing.withdrawal(ctx, &url.to_nip66_d(), "it does not speak Nostr").await?
        }
        // Said before it was to be kept, or waiting to be.
        None if RelayUrl::parse(url.as_str(), &publishing.policy).is_err() => {
            publishing.withdrawal(ctx, &url.to_nip66_d(), "it is not spoken of").await?
        }
        None => return Ok(()),
    };
    ctx.db.publication_put(&attempt.fence, &[new]).await?.map(drop).ok_or_else(lost)
}

/// Whether something else than a relay answers there: found twice in a row. Silence may be a relay in trouble.
fn is_fake(up: bool, reason: Reason, before: Option<&str>) -> bool {
    !up && reason == Reason::NotNostr && before == Some(Reason::NotNostr.as_str())
}

/// Whether another vantage has it alive: what answers here in its place may stand on the way from here, and vantages that
/// sign with one key would take back and say again by turns.
fn is_seen_elsewhere(relay: &RelayRow, now: i64) -> bool {
    relay.others.iter().any(|other| other.state == State::Alive.as_str() && other.stands_until >= now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publishing() -> Publishing {
        let url = |text| RelayUrl::parse(text, &AddressPolicy::public()).unwrap();
        let about = About {
            relays: vec![url("wss://a.example")],
            profile: Profile { name: Some("watcher".to_owned()), ..Profile::default() },
            geohash: Some("u33".to_owned()),
            networks: vec![Network::Clearnet],
            timeout: Duration::from_secs(10),
        };
        Publishing { keys: Keys::parse(&"67".repeat(32)).unwrap(), about, policy: AddressPolicy::public() }
    }

    #[test]
    fn what_we_say_of_ourselves_is_true_of_the_configuration() {
        let looks = Looks::default().only(&[CheckKind::Rtt, CheckKind::Nip11]);
        let drafts = publishing().about.announcements(Duration::from_secs(1_800), &looks, &WriteTo::Nobody);
        assert_eq!(drafts.iter().map(|draft| draft.kind).collect::<Vec<_>>(), [10_166, 10_002, 0]);
        let said = serde_json::json!(drafts[0].tags).to_string();
        for tag in
            [r#"["frequency","1800"]"#, r#"["timeout","nip11","10000"]"#, r#"["c","read"]"#, r#"["g","u33"]"#]
        {
            assert!(said.contains(tag), "{tag} in {said}");
        }
        assert!(!said.contains("dns"), "what is not looked at is not announced: {said}");
        assert!(!said.contains("write"), "nor what is not probed: {said}");
        let writes =
            publishing().about.announcements(Duration::from_secs(1_800), &looks, &WriteTo::All(Vec::new()));
        let said = serde_json::json!(writes[0].tags).to_string();
        assert!(
            said.contains(r#"["c","write"]"#) && said.contains(r#"["timeout","write","10000"]"#),
            "{said}"
        );
    }

    #[test]
    fn only_what_twice_was_no_relay_is_fake() {
        assert!(is_fake(false, Reason::NotNostr, Some("not_nostr")));
        for (up, reason, before) in [
            (true, Reason::NotNostr, Some("not_nostr")),
            (false, Reason::NotNostr, Some("silent")),
            (false, Reason::NotNostr, None),
            (false, Reason::Silent, Some("not_nostr")),
            (false, Reason::ConnectRefused, Some("connect_refused")),
        ] {
            assert!(!is_fake(up, reason, before), "{up} {reason} {before:?}");
        }
    }

    #[test]
    fn the_secret_is_in_no_printed_form() {
        let printed = format!("{:?}", publishing());
        assert!(!printed.contains(&"67".repeat(32)), "{printed}");
    }
}
