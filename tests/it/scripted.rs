//! The scripted relay misbehaves exactly as its script says.

use std::time::Duration;

use serde_json::{Value, json};
use tests::factory::Factory;
use tests::hostile;
use tests::publish::{Client, read_ids};
use tests::scripted::{Answer, Script, ScriptedRelay};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Silence that proves a frame is not coming, on loopback.
const SILENCE: Duration = Duration::from_millis(150);

async fn start(name: &str) -> (ScriptedRelay, Client) {
    let relay = ScriptedRelay::start(Script::named(name, &Factory::new(1).events(40)).unwrap()).await;
    let client = Client::connect(&relay.url()).await.unwrap();
    (relay, client)
}

async fn frames(client: &mut Client, count: usize) -> Vec<Value> {
    let mut frames = vec![];
    for _ in 0..count {
        let text = client.next_text().await.unwrap().expect("the relay has more to say");
        frames.push(serde_json::from_str(&text).unwrap_or(Value::String(text)));
    }
    frames
}

async fn ask(client: &mut Client) {
    client.send(json!(["REQ", "kit", {}]).to_string()).await.unwrap();
}

async fn stays_silent(client: &mut Client) {
    tokio::time::timeout(SILENCE, client.next_text()).await.expect_err("the relay stays silent");
}

/// The relay's view of a connection's end comes a moment after the client's.
async fn until_all_closed(relay: &ScriptedRelay) {
    for _ in 0..200 {
        if relay.counts().open == 0 {
            return;
        }
        // bound: 200 turns.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("connections stay open: {:?}", relay.counts());
}

async fn get(relay: &ScriptedRelay) -> String {
    let mut stream = tests::tcp::dial(relay.address()).await.unwrap();
    let request = "GET / HTTP/1.1\r\nHost: x\r\nAccept: application/nostr+json\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    reply
}

#[test]
fn every_name_is_a_script() {
    for name in Script::NAMES {
        assert!(Script::named(name, &[]).is_some(), "{name}");
    }
    assert!(Script::named("nonsense", &[]).is_none());
}

#[tokio::test]
async fn honest_serves_newest_first_up_to_its_cap_and_counts() {
    let events = Factory::new(1).events(40);
    let relay = ScriptedRelay::start(Script::honest(events.iter().rev(), 15)).await;
    let mut client = Client::connect(&relay.url()).await.unwrap();
    let answer = client.req(&json!({ "limit": 100 })).await.unwrap();
    let newest: Vec<String> = events[..15].iter().map(|event| event.id.to_hex()).collect();
    assert_eq!(answer.ids(), newest);
    assert!(answer.is_eose());
    let kinds = client.req(&json!({ "kinds": [1984] })).await.unwrap();
    assert!(kinds.events.iter().all(|event| event["kind"] == 1984));
    let window =
        client.req(&json!({ "since": events[20].created_at, "until": events[18].created_at })).await.unwrap();
    assert_eq!(window.events.len(), 3);

    assert_eq!(read_ids(&relay.url()).await.unwrap().len(), 40);
    drop(client);
    until_all_closed(&relay).await;
    let counts = relay.counts();
    assert_eq!((counts.connections, counts.upgrades, counts.open), (2, 2, 0));
    assert_eq!(counts.reqs, relay.requests().len() as u64);
    assert_eq!(relay.requests()[0], json!({ "limit": 100 }));
    assert!(counts.bytes_out > counts.bytes_in && counts.events_sent >= 15 + 3 + 40);
}

#[tokio::test]
async fn tags_are_filtered() {
    let (_relay, mut client) = start("honest").await;
    let answer = client.req(&json!({ "#t": ["topic3"] })).await.unwrap();
    assert_eq!(answer.events.len(), 3);
}

#[tokio::test]
async fn nip11_is_served_over_plain_http() {
    let (relay, _client) = start("honest").await;
    let reply = get(&relay).await;
    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("application/nostr+json"), "{reply}");
    assert!(reply.contains("\"name\":\"scripted relay\""), "{reply}");
    assert_eq!(relay.counts().http_requests, 1);
    relay.set(Script { http: None, ..Script::honest([], 1) });
    assert!(get(&relay).await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn published_events_are_stored_once_and_forgeries_refused() {
    let relay = ScriptedRelay::start(Script::honest([], 500)).await;
    let mut client = Client::connect(&relay.url()).await.unwrap();
    let events = Factory::new(2).events(3);
    assert_eq!(client.publish(&events).await.unwrap().accepted.len(), 3);
    assert_eq!(client.publish(&events).await.unwrap().accepted.len(), 3);
    client.send(format!("[\"EVENT\",{}]", hostile::with_bad_signature(&events[0]))).await.unwrap();
    assert_eq!(frames(&mut client, 1).await[0][2], false);
    assert_eq!(client.req(&json!({})).await.unwrap().events.len(), 3);
    assert_eq!(relay.counts().writes, 7);
}

#[tokio::test]
async fn silent_echo_garbage_and_notice_never_speak_nostr() {
    let (_silent, mut client) = start("silent").await;
    ask(&mut client).await;
    stays_silent(&mut client).await;

    let (_echo, mut client) = start("echo").await;
    ask(&mut client).await;
    assert_eq!(frames(&mut client, 1).await, [json!(["REQ", "kit", {}])]);

    let (_garbage, mut client) = start("garbage").await;
    ask(&mut client).await;
    assert!(frames(&mut client, 8).await.contains(&json!("hello")));

    let (_notice, mut client) = start("notice_only").await;
    ask(&mut client).await;
    assert_eq!(frames(&mut client, 1).await[0][0], "NOTICE");
    stays_silent(&mut client).await;
}

#[tokio::test]
async fn floods_do_not_end_until_the_client_leaves() {
    for (name, sub) in [("flood", "kit"), ("flood_stray", "nobody-asked")] {
        let (relay, mut client) = start(name).await;
        ask(&mut client).await;
        let frames = frames(&mut client, 200).await;
        assert!(frames.iter().all(|frame| frame[0] == "EVENT" && frame[1] == sub), "{name}");
        drop(client);
        until_all_closed(&relay).await;
    }
}

#[tokio::test]
async fn close_mid_page_ends_without_eose() {
    let (_relay, mut client) = start("close_mid_page").await;
    let answer = client.req(&json!({})).await.unwrap();
    assert_eq!((answer.events.len(), answer.others), (20, vec![]));
}

#[tokio::test]
async fn eose_never_serves_and_falls_silent() {
    let (_relay, mut client) = start("eose_never").await;
    ask(&mut client).await;
    assert!(frames(&mut client, 40).await.iter().all(|frame| frame[0] == "EVENT"));
    stays_silent(&mut client).await;
}

#[tokio::test]
async fn late_eose_comes_late() {
    let script = Script::honest(&Factory::new(1).events(5), 500).answering(Answer::LateEose(300));
    let relay = ScriptedRelay::start(script).await;
    let mut client = Client::connect(&relay.url()).await.unwrap();
    ask(&mut client).await;
    stays_silent(&mut client).await;
    assert_eq!(frames(&mut client, 6).await[5][0], "EOSE");
}

#[tokio::test]
async fn huge_frame_is_one_event_of_fifty_mebibytes() {
    let (_relay, mut client) = start("huge_frame").await;
    ask(&mut client).await;
    let text = client.next_text().await.unwrap().unwrap();
    assert!(text.len() > 50 * 1024 * 1024 && text.starts_with("[\"EVENT\",\"kit\""));
}

#[tokio::test]
async fn forged_events_are_served_forged() {
    for (name, id_holds) in [("bad_id", false), ("bad_sig", true)] {
        let (_relay, mut client) = start(name).await;
        let answer = client.req(&json!({})).await.unwrap();
        assert_eq!(answer.events.len(), 40);
        for event in answer.events {
            let event = nostr::event::Event::from_json(event.to_string()).unwrap();
            assert_eq!(event.verify_id(), id_holds, "{name}");
            assert!(event.verify().is_err(), "{name}");
        }
    }
}

#[tokio::test]
async fn closed_strikes_the_request_named() {
    let (_relay, mut client) = start("closed").await;
    assert!(client.req(&json!({})).await.unwrap().is_eose());
    let second = client.req(&json!({})).await.unwrap();
    assert_eq!(second.others, [json!(["CLOSED", "kit", "rate-limited: slow down"])]);
    assert!(client.req(&json!({})).await.unwrap().is_eose());
}

#[tokio::test]
async fn order_and_filter_lies() {
    let (_relay, mut client) = start("oldest_first").await;
    let times = |answer: &tests::publish::Answer| -> Vec<i64> {
        answer.events.iter().map(|event| event["created_at"].as_i64().unwrap()).collect()
    };
    assert!(times(&client.req(&json!({ "limit": 9 })).await.unwrap()).is_sorted());

    let (_relay, mut client) = start("ignore_filter").await;
    let answer = client.req(&json!({ "until": 5, "limit": 9 })).await.unwrap();
    assert!(answer.events.len() == 9 && times(&answer).iter().all(|time| *time > 5));
}

#[tokio::test]
async fn auth_is_required_until_given() {
    let (_relay, mut client) = start("auth_required").await;
    let answer = client.req(&json!({})).await.unwrap();
    assert_eq!(answer.others[0][0], "AUTH");
    assert!(answer.others[1][2].as_str().unwrap().starts_with("auth-required:"));
    client.send(json!(["AUTH", { "id": "x" }]).to_string()).await.unwrap();
    assert_eq!(frames(&mut client, 1).await[0][0], "OK");
    assert_eq!(client.req(&json!({})).await.unwrap().events.len(), 40);
}

#[tokio::test]
async fn refused_upgrade_still_serves_http() {
    let script = Script::named("refuse_upgrade", &[]).unwrap();
    let relay = ScriptedRelay::start(script).await;
    let error = Client::connect(&relay.url()).await.unwrap_err();
    assert!(format!("{error:#}").contains("403"), "{error:#}");
    assert!(get(&relay).await.starts_with("HTTP/1.1 200"));
    assert_eq!(relay.counts().upgrades, 0);
}

#[tokio::test]
async fn refuse_writes_refuses() {
    let (_relay, mut client) = start("refuse_writes").await;
    let published = client.publish(&Factory::new(3).events(2)).await.unwrap();
    assert_eq!(published.refused, ["blocked: read only", "blocked: read only"]);
}

#[tokio::test]
async fn hostile_events_travel_unharmed() {
    let (_relay, mut client) = start("hostile_events").await;
    let answer = client.req(&json!({})).await.unwrap();
    let times: Vec<i64> = answer.events.iter().map(|event| event["created_at"].as_i64().unwrap()).collect();
    assert_eq!((times[0], times[times.len() - 1]), (hostile::FAR_FUTURE, 0));
    for event in &answer.events {
        nostr::event::Event::from_json(event.to_string()).unwrap().verify().unwrap();
    }
    assert!(answer.events.iter().any(|event| event["content"] == "before\0after"));
}
