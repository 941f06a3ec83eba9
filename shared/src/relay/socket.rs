//! An open relay: one request at a time, drained until the session says that it has ended.
//!
//! Where it was given our key, it answers a challenge once, when a request was refused for want of it, and makes
//! that request once more (NIP-42).

use std::time::Duration;

use tokio::time::timeout;

use crate::clock;
use crate::models::EnvelopeFacts;
use crate::net::{DialFailure, Dialer, Seen, Target, Text, WsRead, WsStream, elapsed_ms};
use crate::nips::{
    Auth, AuthState, Cut, Delivered, Exchange, Filter, Keys, Limits, PageEnd, PageFacts, Question, Reply,
    Step, Subscription, auth, frame,
};

/// Random bytes of a subscription id: unguessable, so that nothing can answer before it was asked.
pub(super) const SUB_BYTES: usize = 8;
/// Pings, binary messages and greetings borne during one page; more is a flood.
const IGNORED_MAX: u32 = 1_000;
/// How long a challenge may come after the refusal that speaks of it, and how long the answer to ours may take,
/// in milliseconds; never longer than a page may stay idle.
const CHALLENGE_MS: u64 = 2_000;
const VERDICT_MS: u64 = 10_000;

/// A WebSocket to a relay, used for one subscription after another.
#[derive(Debug)]
pub struct RelaySocket {
    ws: WsStream,
    open_ms: u32,
    spent: bool,
    /// Whether what is asked next is the last: the end of the connection ends it, too.
    parting: bool,
    /// It has answered a REQ.
    greeted: bool,
    url: String,
    identity: Option<Keys>,
    pub(super) auth: Auth,
}

/// An event of a page: what its envelope says, and its JSON in the frame that brought it.
#[derive(Debug, Clone)]
pub struct PageEvent {
    read: Delivered,
    frame: Text,
}

impl PageEvent {
    /// What the event claims.
    pub const fn facts(&self) -> &EnvelopeFacts {
        &self.read.facts
    }

    /// Its signature, where it has one of the right shape.
    pub const fn sig(&self) -> Option<&[u8; 64]> {
        self.read.sig.as_ref()
    }

    /// Its JSON, unverified.
    pub fn json(&self) -> &str {
        &self.frame[self.read.span.clone()]
    }
}

/// What one REQ brought.
#[derive(Debug)]
pub struct Page {
    /// Each distinct event that matched the filter, in the order received. They hold the buffers they came in, which
    /// together are what was read of the page, at most what its limits allow.
    pub events: Vec<PageEvent>,
    /// Time and id of each of them, and what did not match, as the planner reads it.
    pub facts: PageFacts,
    /// The frames that brought [`PageFacts::unread`], in its order; they count like those of events.
    pub unread: Vec<Text>,
    /// How it ended; only an EOSE says anything about what the relay holds.
    pub end: PageEnd,
    /// Milliseconds from the REQ to the first event.
    pub first_ms: Option<u32>,
    /// Milliseconds from the REQ to the end.
    pub end_ms: u32,
    /// Text frames that were none of our business.
    pub stray: u32,
    /// Bytes of text received.
    pub bytes: u64,
}

/// A page with what only the probe asks for.
pub(super) struct Driven {
    pub(super) page: Page,
    pub(super) saw_auth: bool,
    pub(super) frames: u32,
    /// Those of them that were kept from the session: of a probe, well-formed NOTICEs that answer nothing.
    pub(super) notices: u32,
    /// A refusal by NOTICE after which the relay hung up.
    pub(super) refusal: Option<String>,
}

impl RelaySocket {
    /// Dials and upgrades.
    pub async fn open(dialer: &Dialer, target: &Target) -> Result<Self, DialFailure> {
        Self::open_seen(dialer, target, &mut Seen::default()).await
    }

    /// [`RelaySocket::open`], leaving in `seen` what showed on the way, also when it fails.
    pub async fn open_seen(dialer: &Dialer, target: &Target, seen: &mut Seen) -> Result<Self, DialFailure> {
        Ok(Self::of(Box::pin(dialer.websocket_seen(target, seen)).await?, target))
    }

    /// [`RelaySocket::open`], to read pages.
    pub async fn open_for_pages(dialer: &Dialer, target: &Target) -> Result<Self, DialFailure> {
        Ok(Self::of(dialer.websocket_for_pages(target).await?, target))
    }

    fn of((ws, open_ms): (WsStream, u32), target: &Target) -> Self {
        let url = target.url().to_string();
        Self {
            ws,
            open_ms,
            spent: false,
            parting: false,
            greeted: false,
            url,
            identity: None,
            auth: Auth::default(),
        }
    }

    /// Answers challenges with this key from now on, where a request is refused for want of it.
    pub fn identify(&mut self, identity: Option<Keys>) {
        self.identity = identity;
    }

    /// How far NIP-42 went.
    pub fn auth(&self) -> AuthState {
        self.auth.state()
    }

    /// Milliseconds the open took, without DNS.
    pub const fn open_ms(&self) -> u32 {
        self.open_ms
    }

    /// Whether another page may be asked for on this connection.
    pub const fn is_usable(&self) -> bool {
        !self.spent
    }

    /// Asks for `filter` and reads until the page ends. On a spent connection: disconnected at once.
    pub async fn fetch(&mut self, filter: Filter, limits: Limits) -> Page {
        self.drive(filter, limits, |_, _| true).await.page
    }

    /// Says goodbye and drops the connection.
    pub async fn close(self) {
        self.ws.close().await;
    }

    /// Asks one question and reads until it is answered. On a spent connection: cut at once. The milliseconds
    /// are those of the answer alone.
    pub async fn ask(&mut self, question: &Question, timeout_ms: u64) -> (Reply, u32) {
        let (reply, ms) = self.ask_once(question, timeout_ms).await;
        if !auth::wanted_by(&reply) || !self.authenticate(timeout_ms).await {
            return (reply, ms);
        }
        self.ask_once(question, timeout_ms).await
    }

    /// The page; `admit` may keep a text from the session, given the subscription id.
    pub(super) async fn drive(
        &mut self,
        filter: Filter,
        limits: Limits,
        admit: impl Fn(&str, &str) -> bool,
    ) -> Driven {
        let started = clock::monotonic_ms();
        let mut driven = self.drive_once(filter.clone(), limits, &admit).await;
        if !auth::wants_auth(&driven.page.end) || self.identity.is_none() {
            return driven;
        }
        if self.authenticate(limits.idle_ms).await {
            let spent_ms = clock::monotonic_ms().saturating_sub(started);
            let total_ms = limits.total_ms.saturating_sub(spent_ms).max(limits.idle_ms);
            return self.drive_once(filter, Limits { total_ms, ..limits }, &admit).await;
        }
        if let AuthState::Refused(message) = self.auth.state() {
            driven.page.end = auth::refused(&message);
        }
        driven
    }

    async fn ask_once(&mut self, question: &Question, timeout_ms: u64) -> (Reply, u32) {
        let started = clock::monotonic_ms();
        let (mut exchange, text) =
            Exchange::start(clock::random_hex(SUB_BYTES), question, timeout_ms, started);
        if self.spent || self.ws.send_text(text).await.is_err() {
            self.spent = true;
            return (Reply::Cut(Cut::Disconnected), 0);
        }
        let mut ignored = 0;
        let reply = loop {
            let reply = match self.read(exchange.deadline_ms()).await {
                None => exchange.on_tick(clock::monotonic_ms()),
                Some(WsRead::Text(text)) => {
                    self.auth.on_text(&text);
                    exchange.on_text(clock::monotonic_ms(), &text)
                }
                Some(WsRead::Ignored) => {
                    ignored += 1;
                    (ignored > IGNORED_MAX).then_some(Reply::Flood)
                }
                Some(over) => {
                    self.spent = true;
                    Some(exchange.on_closed(cut(&over)))
                }
            };
            if let Some(reply) = reply {
                break reply;
            }
        };
        let ms = elapsed_ms(started);
        if let Some(text) = exchange.farewell(&reply) {
            self.spent |= self.ws.send_text(text).await.is_err();
        }
        (reply, ms)
    }

    /// Says who we are, once per connection; whether the relay took it.
    pub(super) async fn authenticate(&mut self, wait_ms: u64) -> bool {
        let Some(keys) = self.identity.clone() else { return false };
        if self.auth.state() == AuthState::Unasked {
            self.listen(wait_ms.min(CHALLENGE_MS), AuthState::Unasked).await;
        }
        // A time before 1970 is the only error, and no clock of ours.
        let Ok(Some(text)) = self.auth.answer(&keys, &self.url, clock::unix_now()) else { return false };
        if self.spent || self.ws.send_text(text).await.is_err() {
            self.spent = true;
            return false;
        }
        self.listen(wait_ms.min(VERDICT_MS), AuthState::Answered).await;
        self.auth.state() == AuthState::Accepted
    }

    /// Reads until NIP-42 has left this state, or the time is up.
    async fn listen(&mut self, wait_ms: u64, state: AuthState) {
        let deadline = clock::monotonic_ms().saturating_add(wait_ms);
        while self.auth.state() == state {
            match self.read(deadline).await {
                None => return,
                Some(WsRead::Text(text)) => self.auth.on_text(&text),
                Some(WsRead::Ignored) => {}
                Some(_) => {
                    self.spent = true;
                    return;
                }
            }
        }
    }

    async fn drive_once(
        &mut self,
        filter: Filter,
        limits: Limits,
        admit: &impl Fn(&str, &str) -> bool,
    ) -> Driven {
        let started = clock::monotonic_ms();
        let sub = clock::random_hex(SUB_BYTES);
        let (session, request) = Subscription::start(sub.clone(), filter, limits, started);
        let mut session = session.greeted(self.greeted);
        let mut driven = Driven::new();
        if self.spent || self.ws.send_text(request).await.is_err() {
            self.spent = true;
            return driven;
        }
        let mut ignored = 0;
        driven.page.end = loop {
            let step = match self.read(session.deadline_ms()).await {
                None => session.on_tick(clock::monotonic_ms()),
                Some(WsRead::Text(text)) => {
                    driven.frames += 1;
                    driven.page.bytes += text.len() as u64;
                    self.auth.on_text(&text);
                    if admit(&sub, &text) {
                        match session.on_text(clock::monotonic_ms(), &text) {
                            Step::Event(read) => {
                                driven.page.first_ms.get_or_insert_with(|| elapsed_ms(started));
                                driven.page.events.push(PageEvent { read, frame: text });
                                continue;
                            }
                            other => {
                                if driven.page.unread.len() < session.facts().unread.len() {
                                    driven.page.unread.push(text);
                                }
                                other
                            }
                        }
                    } else {
                        ignored += 1;
                        driven.notices += 1;
                        Step::Continue
                    }
                }
                Some(WsRead::Ignored) => {
                    ignored += 1;
                    Step::Continue
                }
                Some(over) => {
                    self.spent = true;
                    session.on_closed(clock::monotonic_ms(), cut(&over))
                }
            };
            match step {
                Step::Continue if ignored > IGNORED_MAX => break PageEnd::Violation,
                // An event comes from a text alone, and went into the page above.
                Step::Continue | Step::Event(_) => {}
                Step::Done(end) => break end,
            }
        };
        self.greeted |= driven.page.end.is_eose();
        driven.page.end_ms = elapsed_ms(started);
        driven.page.stray = session.stray();
        driven.saw_auth = session.saw_auth();
        driven.refusal = session.refusal().map(str::to_owned);
        driven.page.facts = session.into_facts();
        self.finish(&sub, &driven.page.end).await;
        driven
    }

    /// The next thing read before `deadline_ms`; a peer that never pauses cannot outrun the clock.
    pub(super) async fn read(&mut self, deadline_ms: u64) -> Option<WsRead> {
        let left = deadline_ms.saturating_sub(clock::monotonic_ms());
        if left == 0 {
            return None;
        }
        timeout(Duration::from_millis(left), self.ws.next()).await.ok()
    }

    /// Sends one frame; a connection that does not take it is of no further use.
    pub(super) async fn send(&mut self, text: String) {
        self.spent |= self.ws.send_text(text).await.is_err();
    }

    /// Marks the connection as of no further use.
    pub(super) const fn spend(&mut self) {
        self.spent = true;
    }

    /// The next request is the last one.
    pub(super) const fn part(&mut self) {
        self.parting = true;
    }

    /// Ends the subscription on the relay's side, unless the relay did, or the connection is about to.
    async fn finish(&mut self, sub: &str, end: &PageEnd) {
        match end {
            PageEnd::Closed { .. } => {}
            PageEnd::Eose { .. } if self.parting => {}
            // Of what was too much or took too long, the rest is still on its way, and in that of the next page.
            PageEnd::Disconnected
            | PageEnd::Oversize
            | PageEnd::Violation
            | PageEnd::TooMany
            | PageEnd::Timeout { idle: false } => self.spent = true,
            _ => self.spent |= self.ws.send_text(frame::close(sub)).await.is_err(),
        }
    }
}

impl Driven {
    fn new() -> Self {
        let page = Page {
            events: Vec::new(),
            facts: PageFacts::default(),
            unread: Vec::new(),
            end: PageEnd::Disconnected,
            first_ms: None,
            end_ms: 0,
            stray: 0,
            bytes: 0,
        };
        Self { page, saw_auth: false, frames: 0, notices: 0, refusal: None }
    }
}

pub(super) fn cut(over: &WsRead) -> Cut {
    match over {
        WsRead::Oversize => Cut::Oversize,
        WsRead::Protocol(_) => Cut::Protocol,
        _ => Cut::Disconnected,
    }
}
