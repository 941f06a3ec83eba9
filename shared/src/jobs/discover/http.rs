//! Lists of relays over HTTP that an operator configured, each with the JMESPath expression that finds them in it.
//!
//! A source that fails is reported, keeps what it gave before, and is asked again sooner; the others are not
//! concerned. What a source is given to say is bounded: bytes, entries, time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jmespath::{Expression, Rcvar, Variable};
use serde_json::{Value, json};

use super::super::{Attempt, Ctx, JobError, Report, lost};
use crate::clock;
use crate::db::{Found, Sighting};
use crate::models::{AddressPolicy, PortRange, RelayUrl, Source};
use crate::net::{NoReply, Web, WebReply, check_url};

/// A whole request, redirects included.
const LIMIT: Duration = Duration::from_secs(40);
/// The largest list taken: the longest known has a tenth of it.
const BODY_BYTES: usize = 5 * 1024 * 1024;
/// Entries taken of one list.
const ENTRIES_MAX: usize = 20_000;
/// A source that failed is asked again after its interval divided by this, an hour for a day.
const SOONER: u32 = 24;
/// The task is never due sooner than this: a cooldown is no busy loop.
const AGAIN_MIN: Duration = Duration::from_secs(60);
/// Between two looks at whose turn it is.
const LOOK: Duration = Duration::from_secs(3_600);
/// The longest detail kept of a failure.
const DETAIL_CHARS: usize = 200;

/// A list and how to read it.
#[derive(Clone)]
pub struct HttpSource {
    url: String,
    expression: Arc<Expression<'static>>,
}

impl HttpSource {
    /// Reads `URL EXPRESSION`, and compiles the expression.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence.
    pub fn parse(text: &str, policy: &AddressPolicy) -> Result<Self, String> {
        let (url, expression) = text
            .trim()
            .split_once(char::is_whitespace)
            .ok_or("it must be a URL, a blank and a JMESPath expression")?;
        check_url(url, policy).map_err(|failure| failure.detail)?;
        let expression = expression.trim();
        let compiled = jmespath::compile(expression).map_err(|error| {
            let why = error.to_string();
            format!(
                "the expression {expression:?} is not JMESPath: {}",
                why.lines().next().unwrap_or_default()
            )
        })?;
        Ok(Self { url: url.to_owned(), expression: Arc::new(compiled) })
    }

    /// Where the list is.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl fmt::Debug for HttpSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.url, self.expression.as_str())
    }
}

/// What a list came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    urls: BTreeSet<RelayUrl>,
    /// Entries that are no relay's URL.
    refused: usize,
    /// Relays on a port that a stranger may not name.
    other_port: usize,
    /// Entries that are no text.
    not_text: usize,
    /// Entries beyond the limit.
    beyond: usize,
}

pub(super) async fn run(ctx: &Ctx, attempt: &Attempt) -> Result<Report, JobError> {
    let web = Web::new(&ctx.dialer, LIMIT).map_err(|error| JobError::Kill { why: error.to_string() })?;
    let interval = ctx.config.source_interval;
    let mut states = states(ctx).await?;
    let mut report = BTreeMap::new();
    // A source that is new in the configuration waits no longer than this for its first turn.
    let (mut wait, mut new) = (interval.min(LOOK), 0);
    for source in &ctx.config.sources {
        let now = clock::unix_now();
        let due = states.remove(source.url()).unwrap_or(0);
        if due > now {
            wait = wait.min(seconds(due - now));
            continue;
        }
        if attempt.stop.is_cancelled() {
            wait = Duration::ZERO;
            break;
        }
        let mut read = match ask(ctx, attempt, &web, source).await {
            Ok(read) => Ok(read),
            Err(NoList::Failed(said)) => Err(said),
            // A machine on the way to it is being looked at: it keeps its turn.
            Err(NoList::Busy) => {
                wait = wait.min(AGAIN_MIN);
                continue;
            }
            Err(NoList::Error(error)) => return Err(error),
        };
        let after = if read.is_ok() { interval } else { interval / SOONER };
        let after = after.max(AGAIN_MIN);
        wait = wait.min(after);
        if let Ok(read) = &mut read {
            let named = read.urls.len();
            read.urls.retain(|url| PortRange::admit(&ctx.config.ports, url));
            read.other_port = named - read.urls.len();
        }
        let mut state = outcome(&read);
        state["timestamp"] = now.into();
        state["due"] = now.saturating_add(i64::try_from(after.as_secs()).unwrap_or(i64::MAX)).into();
        let urls = read.map(|read| read.urls).unwrap_or_default();
        let sightings = urls
            .into_iter()
            .map(|url| Sighting { url, source: Source::Http, origin: source.url.clone() })
            .collect();
        let state_text = Some((source.url.clone(), state.to_string()));
        let found = Found {
            sightings,
            state: state_text,
            per_host: ctx.config.urls_per_host,
            per_site: ctx.config.urls_per_site,
            per_hoster: ctx.config.urls_per_hoster,
            in_all: ctx.config.candidates_max,
            ..Found::default()
        };
        let Some(stored) = ctx.db.discover_store(&attempt.fence, &found).await? else { return Err(lost()) };
        new += stored.new;
        state["new_candidates"] = stored.new.into();
        report.insert(source.url.clone(), state);
    }
    // What is left belongs to sources that are configured no more, or was not looked at because we are to stop.
    states.retain(|url, _| !ctx.config.sources.iter().any(|source| source.url() == url));
    let gone: Vec<[String; 3]> =
        states.into_keys().map(|url| ["finder".to_owned(), "checkpoint".to_owned(), url]).collect();
    if !gone.is_empty() {
        ctx.db.service_state_delete(&gone).await?;
    }
    let wait = if wait.is_zero() { wait } else { wait.max(AGAIN_MIN) };
    if !ctx.db.schedule_next(&attempt.fence, wait, wait / 4, "interval").await? {
        return Err(lost());
    }
    Ok(
        json!({ "sources": report, "new_candidates": new, "waiting": ctx.config.sources.len() - report.len() }),
    )
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// When each source known from before is next due, Unix seconds.
async fn states(ctx: &Ctx) -> Result<BTreeMap<String, i64>, JobError> {
    let states = ctx.db.service_state_get("finder", "checkpoint", None).await?;
    let due = |text: &str| {
        serde_json::from_str::<Value>(text).ok().and_then(|state| state.get("due").and_then(Value::as_i64))
    };
    Ok(states.into_iter().map(|(url, text)| (url, due(&text).unwrap_or(0))).collect())
}

fn outcome(read: &Result<Read, Failed>) -> Value {
    match read {
        Ok(read) => json!({
            "outcome": "ok", "urls": read.urls.len(), "refused": read.refused, "other_port": read.other_port, "not_text": read.not_text,
            "beyond": read.beyond,
        }),
        Err((reason, detail)) => json!({ "outcome": reason, "detail": detail }),
    }
}

/// A failure's word and its sentence.
type Failed = (&'static str, String);

/// Why a source gave no list.
enum NoList {
    Failed(Failed),
    /// A machine has no place for us now.
    Busy,
    /// It is our own trouble.
    Error(JobError),
}

/// Asks one source, and the fleet for a start on each machine that it leads over.
async fn ask(ctx: &Ctx, attempt: &Attempt, web: &Web, source: &HttpSource) -> Result<Read, NoList> {
    let place = |host: String, address| async move {
        match ctx.place(attempt, &host, address).await {
            Ok(None) => None,
            Ok(Some(_)) => Some(NoList::Busy),
            Err(error) => Some(NoList::Error(error)),
        }
    };
    let reply = web.get(source.url(), BODY_BYTES, place).await.map_err(|why| match why {
        NoReply::Failed(failure) => NoList::Failed((failure.reason.as_str(), failure.detail)),
        NoReply::KeptOff(why) => why,
    })?;
    if reply.status != 200 {
        return Err(NoList::Failed(("http_status", format!("HTTP status {}", reply.status))));
    }
    let (expression, policy) = (Arc::clone(&source.expression), ctx.policy.clone());
    // A large list is work for a core.
    match tokio::task::spawn_blocking(move || read(&reply, &expression, &policy)).await {
        Ok(read) => read.map_err(NoList::Failed),
        Err(error) => Err(NoList::Failed(("expression", error.to_string()))),
    }
}

fn read(reply: &WebReply, expression: &Expression<'_>, policy: &AddressPolicy) -> Result<Read, Failed> {
    let short =
        |text: String| text.chars().filter(|c| !c.is_control()).take(DETAIL_CHARS).collect::<String>();
    let text = std::str::from_utf8(&reply.body).map_err(|error| ("not_json", error.to_string()))?;
    let document = Variable::from_json(text).map_err(|error| ("not_json", short(error)))?;
    let result = expression.search(document).map_err(|error| ("expression", short(error.to_string())))?;
    let Some(entries) = result.as_array() else {
        return Err(("expression", format!("it gives {}, no list", result.get_type())));
    };
    Ok(collect(entries, policy))
}

fn collect(entries: &[Rcvar], policy: &AddressPolicy) -> Read {
    let mut read = Read { beyond: entries.len().saturating_sub(ENTRIES_MAX), ..Read::default() };
    for entry in entries.iter().take(ENTRIES_MAX) {
        match entry.as_string().map(|text| RelayUrl::parse(text, policy)) {
            Some(Ok(url)) => {
                read.urls.insert(url);
            }
            Some(Err(_)) => read.refused += 1,
            None => read.not_text += 1,
        }
    }
    read
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Result<HttpSource, String> {
        HttpSource::parse(text, &AddressPolicy::public())
    }

    fn said(expression: &str, body: &[u8]) -> Result<Read, Failed> {
        let reply = WebReply { status: 200, content_type: None, body: body.to_vec(), url: String::new() };
        read(&reply, &jmespath::compile(expression).unwrap(), &AddressPolicy::public())
    }

    #[test]
    fn a_source_is_a_url_and_an_expression_that_compiles() {
        let good = source("https://lists.example/v1  [?alive].url ").unwrap();
        assert_eq!(format!("{good:?}"), "https://lists.example/v1 [?alive].url");
        for (bad, word) in [
            ("https://lists.example/", "JMESPath"),
            ("https://lists.example/ [", "not JMESPath"),
            ("ftp://lists.example/ [*]", "scheme"),
            ("https://u:p@lists.example/ [*]", "user name"),
            ("http://169.254.169.254/ [*]", "not a public"),
            ("http://[::ffff:127.0.0.1]/ [*]", "not a public"),
            ("http://localhost/ [*]", "local"),
            ("http://x.onion/ [*]", "overlay"),
        ] {
            let error = source(bad).unwrap_err();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }

    #[test]
    fn what_a_list_says_is_read_and_the_rest_counted() {
        let long = format!("wss://a.example/{}", "x".repeat(29_000));
        let body = json!([
            "wss://A.example/", "wss://a.example", "ws://b.example", 5, null, {"x": 1}, "not a url", "wss://c.example\0",
            "wss://d.exa\nmple", long, "wss://e.example/wss://f.example", "ws://127.0.0.1", "https://g.example"
        ])
        .to_string();
        let read = said("[*]", body.as_bytes()).unwrap();
        assert_eq!(
            read.urls.iter().map(RelayUrl::as_str).collect::<Vec<_>>(),
            ["ws://b.example", "wss://a.example"]
        );
        // null does not survive a projection.
        assert_eq!((read.refused, read.not_text, read.beyond), (7, 2, 0));
    }

    #[test]
    fn an_answer_that_does_not_fit_is_an_outcome_with_a_word() {
        for (expression, body, word) in [
            ("[*]", &b"<html>"[..], "not_json"),
            ("[*]", b"", "not_json"),
            ("[*]", b"[\xff]", "not_json"),
            ("[*]", br#"{"a":1}"#, "expression"),
            ("a", br#"{"a":"wss://a.example"}"#, "expression"),
            ("length(@)", b"5", "expression"),
        ] {
            assert_eq!(said(expression, body).unwrap_err().0, word, "{expression} on {body:?}");
        }
        let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
        assert_eq!(said("[*]", &deep).unwrap_err().0, "not_json");
        let many = Value::from(vec!["wss://a.example"; ENTRIES_MAX + 3]).to_string();
        assert_eq!(said("[*]", many.as_bytes()).unwrap().beyond, 3);
    }
}
