//! Relay programs nobody here wrote take real signed events and give them back.

use std::collections::BTreeSet;

use tests::factory::Factory;
use tests::hostile;
use tests::programs::{Kind, Program};
use tests::publish::{Client, publish, read_ids};

/// More than one page of the reader, so that paging is met.
const EVENTS: usize = 700;

async fn publishes_and_reads_back(kind: Kind) {
    let Some(program) = Program::start(kind).await else { return };
    let events = Factory::new(7).events(EVENTS);
    let sent: BTreeSet<String> = events.iter().map(|event| event.id.to_hex()).collect();

    let published = publish(&program.url, &events).await.unwrap();
    assert_eq!(published.refused, Vec::<String>::new());
    assert!(published.accepted == sent, "accepted {} of {EVENTS}", published.accepted.len());
    let read = read_ids(&program.url).await.unwrap();
    assert!(read == sent, "read back {} of {EVENTS}", read.len());

    let mut client = Client::connect(&program.url).await.unwrap();
    let wanted = &events[EVENTS / 2];
    let answer = client.req(&serde_json::json!({ "ids": [wanted.id.to_hex()], "limit": 1 })).await.unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&wanted.as_json()).unwrap(), answer.events[0]);
}

async fn refuses_a_forged_signature(kind: Kind) {
    let Some(program) = Program::start(kind).await else { return };
    let forged = hostile::with_bad_signature(&Factory::new(8).events(1)[0]);
    let mut client = Client::connect(&program.url).await.unwrap();
    client.send(format!("[\"EVENT\",{forged}]")).await.unwrap();
    let answer = client.next_text().await.unwrap().unwrap();
    assert!(!answer.contains("true"), "{answer}");
    assert_eq!(read_ids(&program.url).await.unwrap().len(), 0);
}

#[tokio::test]
async fn python_relay_publishes_and_reads_back() {
    publishes_and_reads_back(Kind::Python).await;
}

#[tokio::test]
async fn npm_relay_publishes_and_reads_back() {
    publishes_and_reads_back(Kind::Npm).await;
}

#[tokio::test]
async fn local_relay_publishes_and_reads_back() {
    publishes_and_reads_back(Kind::Local).await;
}

#[tokio::test]
async fn python_relay_refuses_a_forged_signature() {
    refuses_a_forged_signature(Kind::Python).await;
}

#[tokio::test]
async fn npm_relay_refuses_a_forged_signature() {
    refuses_a_forged_signature(Kind::Npm).await;
}

#[tokio::test]
async fn what_the_extended_profile_builds_publishes_reads_back_and_refuses_forgeries() {
    for kind in Kind::here().into_iter().filter(|kind| !Kind::ALL.contains(kind)) {
        publishes_and_reads_back(kind).await;
        refuses_a_forged_signature(kind).await;
    }
}

#[tokio::test]
async fn a_program_ends_with_its_handle() {
    let Some(program) = Program::start(Kind::Local).await else { return };
    let (url, pid) = (program.url.clone(), program.pid());
    drop(program);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    Client::connect(&url).await.unwrap_err();
}
