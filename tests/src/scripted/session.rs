//! One connection to a scripted relay: the HTTP head, then either a document or WebSocket frames.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::{SinkExt as _, StreamExt as _};
use nostr::event::Event;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::neg::Open;
use super::page::{forge_repeats, page};
use super::script::{Answer, HttpBody, Script, Stored, Writes};
use super::speech::{AuthScript, Balk, CHALLENGE, When, answers, judge_auth};
use super::{Shared, Socket};

/// A request head longer than this is no client of ours.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Frames that are no Nostr, each wrong in its own way.
const GARBAGE: &[&str] =
    &["hello", "{", "[]", "[1,2]", "[\"EVENT\"]", "[\"EOSE\",{}]", "{\"EVENT\":1}", "\u{0}"];

struct Session<'a> {
    socket: WebSocketStream<TcpStream>,
    shared: &'a Shared,
    authenticated: bool,
    sets: Open,
    /// Ids sent, where the script minds.
    sent: HashSet<String>,
}

/// Serves one TCP connection to its end; an error is the client's going away.
pub(super) async fn serve(mut stream: TcpStream, shared: &Arc<Shared>) -> anyhow::Result<()> {
    let (head, rest) = read_head(&mut stream).await?;
    let script = shared.script();
    let key = header(&head, "sec-websocket-key");
    if let Some(raw) = script.raw.as_ref().filter(|raw| raw.upgrade || key.is_none()) {
        shared.counters.http_requests.fetch_add(u64::from(key.is_none()), Ordering::SeqCst);
        return super::raw::pour(&mut stream, raw, shared).await;
    }
    let Some(key) = key else {
        shared.counters.http_requests.fetch_add(1, Ordering::SeqCst);
        return reply(&mut stream, script.http.as_ref()).await;
    };
    if let Some(status) = script.refuse_upgrade {
        let refusal = HttpBody { status, content_type: "text/plain".into(), body: b"no upgrade".to_vec() };
        return reply(&mut stream, Some(&refusal)).await;
    }
    let accept = derive_accept_key(key.as_bytes());
    let switching = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(switching.as_bytes()).await?;
    shared.counters.upgrades.fetch_add(1, Ordering::SeqCst);
    let _open = Socket::new(shared);
    let socket = WebSocketStream::from_partially_read(stream, rest, Role::Server, None).await;
    Session { socket, shared, authenticated: false, sets: Open::default(), sent: HashSet::new() }
        .run(&script)
        .await
}

impl Session<'_> {
    async fn run(mut self, script: &Script) -> anyhow::Result<()> {
        for frame in &script.greeting {
            self.send(frame.clone()).await?;
        }
        let at_once = script.speech.auth.as_ref().is_some_and(|auth| auth.when == When::Connected);
        if script.answer == Answer::AuthRequired || at_once {
            self.challenge().await?;
        }
        while let Some(message) = self.socket.next().await {
            let Message::Text(text) = message? else { continue };
            self.shared.counters.bytes_in.fetch_add(text.len() as u64, Ordering::SeqCst);
            self.on_text(text.as_str()).await?;
        }
        Ok(())
    }

    async fn on_text(&mut self, text: &str) -> anyhow::Result<()> {
        let script = self.shared.script();
        let frame: Value = serde_json::from_str(text).unwrap_or_default();
        let request = match frame[0].as_str() {
            Some("REQ") => Some(self.shared.note_request(frame[2].clone())),
            Some("CLOSE") => {
                self.shared.counters.closes.fetch_add(1, Ordering::SeqCst);
                None
            }
            Some("EVENT") => {
                self.shared.counters.writes.fetch_add(1, Ordering::SeqCst);
                None
            }
            _ => None,
        };
        match (&script.answer, frame[0].as_str(), request) {
            (Answer::Silent, ..) => Ok(()),
            (Answer::Echo, ..) => self.send(text.to_owned()).await,
            (Answer::Garbage, ..) => self.send_all(GARBAGE).await,
            (Answer::Notice(text), ..) => self.send(json!(["NOTICE", text]).to_string()).await,
            (_, Some("REQ"), Some(request)) => self.on_req(&script, &frame, request).await,
            (_, Some("EVENT"), _) => self.on_event(&script, &frame[1]).await,
            (_, Some("AUTH"), _) => self.on_auth(&script, &frame[1]).await,
            (_, Some("CLOSE"), _) => Ok(()),
            (_, Some("NEG-CLOSE"), _) => {
                self.sets.close(&frame[1]);
                Ok(())
            }
            (_, Some("NEG-MSG"), _) => {
                self.shared.counters.rounds.fetch_add(1, Ordering::SeqCst);
                let answer = self.sets.message(&frame[1], &frame[2]);
                self.send(answer.to_string()).await
            }
            (_, Some(label @ ("COUNT" | "NEG-OPEN")), _) => self.on_extra(&script, label, &frame).await,
            (_, label, _) => {
                self.send(json!(["NOTICE", format!("unknown message {label:?}")]).to_string()).await
            }
        }
    }

    async fn on_req(&mut self, script: &Script, frame: &Value, request: u64) -> anyhow::Result<()> {
        let sub = &frame[1];
        if let Some(exception) = &script.exception
            && (exception.request == 0 || exception.request == request)
        {
            return self.closed(sub, &exception.message).await;
        }
        if script.unanswered == Some(request) {
            return Ok(());
        }
        if let Some(refusal) = self.refusal(script, frame) {
            return self.refuse(script, refusal, |message| json!(["CLOSED", sub, message])).await;
        }
        match script.speech.balks(frame) {
            Some(Balk::Closed(message)) => return self.closed(sub, message).await,
            Some(Balk::Silent) => return Ok(()),
            None => {}
        }
        match &script.answer {
            Answer::AuthRequired if !self.authenticated => {
                self.closed(sub, "auth-required: who are you").await
            }
            Answer::Flood => self.flood(script, sub).await,
            Answer::Pings => loop {
                self.socket.send(Message::Ping(vec![0; 8].into())).await?;
            },
            Answer::FloodStray => self.flood(script, &json!("nobody-asked")).await,
            Answer::HugeFrame(bytes) => {
                let frame = json!(["EVENT", sub, { "content": "x".repeat(*bytes) }]);
                self.send(frame.to_string()).await
            }
            Answer::CloseMidPage(count) => {
                self.send_events(sub, page(script, frame).into_iter().take(*count)).await?;
                bail!("the script says: drop the connection here")
            }
            Answer::EoseOfAnother => {
                self.send_events(sub, page(script, frame)).await?;
                self.send(json!(["EOSE", "nobody-asked"]).to_string()).await
            }
            Answer::CutSlow(bytes) if page_bytes(&page(script, frame)) > *bytes => {
                let mut room = *bytes;
                let fits = |event: &&Stored| {
                    room = room.saturating_sub(event.json.len());
                    room > 0
                };
                self.send_events(sub, page(script, frame).into_iter().take_while(fits)).await?;
                bail!("the script says: cut who reads so slowly")
            }
            Answer::EoseNever => self.send_events(sub, page(script, frame)).await,
            Answer::Drip(ms, from) if request >= *from => {
                for event in page(script, frame) {
                    self.send_events(sub, [event]).await?;
                    // bound: the script's own number of milliseconds, for each event of a page.
                    tokio::time::sleep(Duration::from_millis(*ms)).await;
                }
                Ok(())
            }
            Answer::MuteFrom(from, words) if request >= *from => {
                if !words.is_empty() {
                    self.send(json!(["NOTICE", words]).to_string()).await?;
                }
                self.send(json!(["EOSE", sub]).to_string()).await
            }
            Answer::LateEose(late_ms) => {
                // bound: the script's own number of milliseconds.
                tokio::time::sleep(Duration::from_millis(*late_ms)).await;
                self.serve_page(script, frame).await
            }
            _ => self.serve_page(script, frame).await,
        }
    }

    async fn serve_page(&mut self, script: &Script, frame: &Value) -> anyhow::Result<()> {
        let events = page(script, frame);
        let altered;
        let events = if let Answer::ForgeRepeats(signs) = script.answer {
            altered = forge_repeats(&mut self.sent, events, signs);
            altered.iter().collect()
        } else {
            events
        };
        let all = frame[2]["limit"].as_u64().map_or(script.cap, |limit| usize::try_from(limit).unwrap_or(0));
        let hint = if events.len() < all.min(script.cap) { "finish" } else { "more" };
        self.send_events(&frame[1], events).await?;
        let eose =
            if script.speech.hints { json!(["EOSE", frame[1], [hint]]) } else { json!(["EOSE", frame[1]]) };
        self.send(eose.to_string()).await
    }

    async fn challenge(&mut self) -> anyhow::Result<()> {
        self.send(json!(["AUTH", CHALLENGE]).to_string()).await
    }

    /// Why this client is refused, if it is.
    fn refusal(&self, script: &Script, frame: &Value) -> Option<String> {
        let speech = &script.speech;
        if let Some(auth) = &speech.auth {
            if auth.required && !self.authenticated {
                return Some("auth-required: who are you".to_owned());
            }
            if let Some(message) = &auth.restricted {
                return Some(message.clone());
            }
        }
        speech.displeased(frame)
    }

    /// Refuses, with the challenge before or after it where the script says so.
    async fn refuse(
        &mut self,
        script: &Script,
        message: String,
        frame: impl FnOnce(String) -> Value,
    ) -> anyhow::Result<()> {
        let when = script.speech.auth.as_ref().map(|auth| auth.when).filter(|_| !self.authenticated);
        if when == Some(When::Asked) {
            self.challenge().await?;
        }
        self.send(frame(message).to_string()).await?;
        if when == Some(When::Refused) {
            self.challenge().await?;
        }
        Ok(())
    }

    async fn on_auth(&mut self, script: &Script, event: &Value) -> anyhow::Result<()> {
        self.shared.counters.auths.fetch_add(1, Ordering::SeqCst);
        let host = self.socket.get_ref().local_addr()?.to_string();
        let refused = match &script.speech.auth {
            None => None,
            Some(AuthScript { refuses: Some(message), .. }) => Some(message.as_str()),
            Some(_) => judge_auth(event, &host).err(),
        };
        self.authenticated = refused.is_none();
        self.send(json!(["OK", event["id"], refused.is_none(), refused.unwrap_or_default()]).to_string())
            .await
    }

    async fn on_extra(&mut self, script: &Script, label: &str, frame: &Value) -> anyhow::Result<()> {
        self.shared.counters.extras.fetch_add(1, Ordering::SeqCst);
        let sub = &frame[1];
        if let Some(refusal) = self.refusal(script, frame) {
            return self.refuse(script, refusal, |message| json!(["CLOSED", sub, message])).await;
        }
        let frames = if label == "COUNT" {
            let count = script.events.iter().filter(|event| event.matches(&frame[2])).count();
            answers(&script.speech.count, label, sub, json!(["COUNT", sub, { "count": count }]))
        } else {
            let works = self.sets.open(&script.speech.sets, &script.events, frame);
            answers(&script.speech.negentropy, label, sub, works)
        };
        for frame in frames {
            self.send(frame.to_string()).await?;
        }
        Ok(())
    }

    async fn closed(&mut self, sub: &Value, message: &str) -> anyhow::Result<()> {
        self.send(json!(["CLOSED", sub, message]).to_string()).await
    }

    /// Ends only when the client does, or when there is nothing to send.
    async fn flood(&mut self, script: &Script, sub: &Value) -> anyhow::Result<()> {
        while !script.events.is_empty() {
            self.send_events(sub, &script.events).await?;
        }
        Ok(())
    }

    async fn on_event(&mut self, script: &Script, event: &Value) -> anyhow::Result<()> {
        if let Some(refusal) = self.refusal(script, &json!(["EVENT"])) {
            return self.refuse(script, refusal, |message| json!(["OK", event["id"], false, message])).await;
        }
        let verified = Event::from_json(event.to_string()).is_ok_and(|event| event.verify().is_ok());
        let demand;
        let (accepted, message) = match &script.writes {
            Writes::Silent => return Ok(()),
            Writes::AnotherId => {
                return self.send(json!(["OK", "ab".repeat(32), true, ""]).to_string()).await;
            }
            Writes::Work(bits, text) if !worked(event, *bits) => {
                demand = text.clone().unwrap_or_else(|| format!("pow: {bits} bits needed"));
                (false, demand.as_str())
            }
            Writes::Refuse(message) => (false, message.as_str()),
            Writes::Accept if !verified => (false, "invalid: the id or signature is wrong"),
            Writes::Accept | Writes::Work(..) => {
                self.shared.store(Stored::raw(event.to_string()));
                (true, "")
            }
        };
        self.send(json!(["OK", event["id"], accepted, message]).to_string()).await
    }

    async fn send_events<'a>(
        &mut self,
        sub: &Value,
        events: impl IntoIterator<Item = &'a Stored>,
    ) -> anyhow::Result<()> {
        for event in events {
            self.send(format!("[\"EVENT\",{sub},{}]", event.json)).await?;
            self.shared.counters.events_sent.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    async fn send_all(&mut self, frames: &[&str]) -> anyhow::Result<()> {
        for frame in frames {
            self.send((*frame).to_owned()).await?;
        }
        Ok(())
    }

    async fn send(&mut self, text: String) -> anyhow::Result<()> {
        let bytes = text.len() as u64;
        self.socket.send(Message::text(text)).await?;
        self.shared.counters.bytes_out.fetch_add(bytes, Ordering::SeqCst);
        Ok(())
    }
}

/// What these events weigh, as text.
fn page_bytes(events: &[&Stored]) -> usize {
    events.iter().map(|event| event.json.len()).sum()
}

/// Whether an event's id begins with so many zero bits.
fn worked(event: &Value, bits: u32) -> bool {
    let digits = event["id"].as_str().unwrap_or_default().chars();
    let zeros: u32 = digits
        .map(|digit| digit.to_digit(16).unwrap_or(0))
        .scan(true, |open, digit| {
            let counted = open.then(|| digit.leading_zeros() - 28);
            *open = digit == 0;
            counted
        })
        .sum();
    zeros >= bits
}

/// Reads to the end of the request's head; what came after it is returned apart.
async fn read_head(stream: &mut TcpStream) -> anyhow::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((String::from_utf8(bytes).context("a head that is not text")?, rest));
        }
        if bytes.len() > HEAD_BYTES_MAX || stream.read_buf(&mut bytes).await? == 0 {
            bail!("no HTTP request");
        }
    }
}

fn header(head: &str, name: &str) -> Option<String> {
    let mut fields = head.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
}

async fn reply(stream: &mut TcpStream, body: Option<&HttpBody>) -> anyhow::Result<()> {
    let missing = HttpBody { status: 404, content_type: "text/plain".into(), body: b"not here".to_vec() };
    let HttpBody { status, content_type, body } = body.unwrap_or(&missing);
    let head = format!(
        "HTTP/1.1 {status} Scripted\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    stream.shutdown().await?;
    Ok(())
}
