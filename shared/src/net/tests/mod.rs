//! The guard, the resolver and the dial, against real sockets on loopback.

mod overlay;
mod tls;
mod web;
mod wire;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, NS, PTR};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::net::TcpStream;

use super::resolve::{Names, asking};
use super::testing::{
    DnsServer, TestServer, free_addr, local_config, local_dialer, request_head, silence, url,
};
use super::*;
use crate::models::{AddressPolicy, Outcome, Reason, RelayUrl};

fn record(name: &str, data: RData) -> Record {
    Record::from_rdata(Name::from_ascii(format!("{name}.")).unwrap(), 300, data)
}

fn a(name: &str, ip: [u8; 4]) -> Record {
    record(name, RData::A(A(ip.into())))
}

async fn fail(dialer: &Dialer, url: &RelayUrl) -> DialFailure {
    let target = match dialer.resolve(url).await {
        Ok(target) => target,
        Err(failure) => return failure,
    };
    dialer.websocket(&target).await.map(|_| ()).expect_err("this dial must fail")
}

#[tokio::test]
async fn the_guard_refuses_loopback_unless_the_policy_allows_it() {
    let server = TestServer::ws(silence).await;
    let public = Dialer::new(NetConfig { policy: AddressPolicy::public(), ..local_config() }).unwrap();
    let failure = fail(&public, &server.url()).await;
    assert_eq!((failure.outcome, failure.reason), (Outcome::Invalid, Reason::AddressRefused));
    assert!(local_dialer().resolve(&server.url()).await.is_ok());
}

#[tokio::test]
async fn one_address_in_a_denied_range_refuses_the_name_for_a_reason_of_ours() {
    let dns = DnsServer::start(|name, kind| match kind {
        RecordType::A => {
            Some((ResponseCode::NoError, vec![a(name, [127, 0, 0, 2]), a(name, [127, 0, 0, 1])]))
        }
        _ => Some((ResponseCode::NoError, Vec::new())),
    })
    .await;
    let policy = AddressPolicy::local().without_ranges(["127.0.0.2/32".parse().unwrap()]);
    let dialer = Dialer::new(NetConfig { policy, ..dns.config() }).unwrap();
    // What an operator names is no exception.
    for dialer in [dialer.permitting(&["127.0.0.0/8".parse().unwrap()]), dialer] {
        let failure = dialer.resolve(&url("ws://relay.example.com")).await.unwrap_err();
        assert_eq!((failure.outcome, failure.reason), (Outcome::Skipped, Reason::AddressDenied), "{failure}");
        assert!(dialer.resolve(&url("ws://127.0.0.1")).await.is_ok());
    }
}

#[tokio::test]
async fn one_private_address_among_public_ones_refuses_the_name() {
    let dns = DnsServer::start(|name, kind| match kind {
        RecordType::A => {
            Some((ResponseCode::NoError, vec![a(name, [93, 184, 216, 34]), a(name, [10, 0, 0, 1])]))
        }
        _ => Some((ResponseCode::NoError, Vec::new())),
    })
    .await;
    let public = Dialer::new(NetConfig { policy: AddressPolicy::public(), ..dns.config() }).unwrap();
    let failure = public.resolve(&url("wss://relay.example.com")).await.unwrap_err();
    assert_eq!(failure.reason, Reason::AddressRefused);
    assert!(failure.detail.contains("10.0.0.1"), "{failure}");
}

#[tokio::test]
async fn an_answer_keeps_families_aliases_and_ttl() {
    let dns = DnsServer::start(|name, kind| {
        let mut records = vec![
            record(name, RData::CNAME(CNAME(Name::from_ascii("Edge.Example.net.").unwrap()))),
            record("edge.example.net", RData::CNAME(CNAME(Name::from_ascii("pop.example.net.").unwrap()))),
        ];
        match kind {
            RecordType::A => {
                records.extend([a("pop.example.net", [127, 0, 0, 3]), a("pop.example.net", [127, 0, 0, 2])]);
            }
            RecordType::AAAA => {
                records.push(record("pop.example.net", RData::AAAA(AAAA("::1".parse().unwrap()))));
            }
            _ => records.clear(),
        }
        Some((ResponseCode::NoError, records))
    })
    .await;
    let dialer = Dialer::new(dns.config()).unwrap();
    let target = dialer.resolve(&url("ws://relay.example.com")).await.unwrap();
    let answer = target.dns().unwrap();
    assert_eq!(answer.name(), "relay.example.com");
    assert_eq!(answer.v4(), [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)]);
    assert_eq!(answer.cname(), ["edge.example.net", "pop.example.net"]);
    assert_eq!((answer.ttl_s(), answer.is_complete()), (Some(300), true));
    assert_eq!(target.addresses()[0], "::1".parse::<IpAddr>().unwrap(), "v6 goes first");
    assert_eq!(dns.asked(), 2, "one question per family");
}

#[tokio::test]
async fn absence_emptiness_failure_and_silence_are_four_facts() {
    let dns = DnsServer::start(|name, _| match name {
        "gone.example.com" => Some((ResponseCode::NXDomain, Vec::new())),
        "empty.example.com" => Some((ResponseCode::NoError, Vec::new())),
        "broken.example.com" => Some((ResponseCode::ServFail, Vec::new())),
        _ => None,
    })
    .await;
    let dialer = Dialer::new(dns.config()).unwrap();
    for (host, reason, ours) in [
        ("gone", Reason::DnsNxdomain, false),
        ("empty", Reason::DnsNoAddress, false),
        ("broken", Reason::DnsFailure, true),
        ("mute", Reason::DnsFailure, true),
    ] {
        let failure = dialer.resolve(&url(&format!("wss://{host}.example.com"))).await.unwrap_err();
        assert_eq!((failure.reason, failure.is_ours()), (reason, ours), "{host}: {failure}");
    }
}

#[tokio::test]
async fn name_servers_that_answer_anything_work_and_nothing_remembered_counts() {
    let works = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let now = Arc::clone(&works);
    let dns = DnsServer::start(move |name, _| {
        assert_eq!(name, "");
        now.load(std::sync::atomic::Ordering::Relaxed).then(|| (ResponseCode::NXDomain, Vec::new()))
    })
    .await;
    let dialer = Dialer::new(dns.config()).unwrap();
    assert!(dialer.names_answer().await);
    works.store(false, std::sync::atomic::Ordering::Relaxed);
    assert!(!dialer.names_answer().await);
    let broken = DnsServer::start(|_, _| Some((ResponseCode::ServFail, Vec::new()))).await;
    assert!(!Dialer::new(broken.config()).unwrap().names_answer().await);
}

#[tokio::test]
async fn other_name_servers_are_asked_once_those_in_use_are_silent_and_what_failed_until_then_is_ours() {
    let limit = Duration::from_millis(300);
    let silent = DnsServer::start(|_, _| None).await;
    let dns = DnsServer::start(|name, kind| match kind {
        RecordType::A => Some((ResponseCode::NoError, vec![a(name, [127, 0, 0, 1])])),
        _ => Some((ResponseCode::NoError, Vec::new())),
    })
    .await;
    for before in [Err("no resolv.conf".to_owned()), Ok(asking(&[silent.addr]))] {
        let configured = Arc::new(Mutex::new(before));
        let read = Arc::clone(&configured);
        let names = Names::reading(move || read.lock().unwrap().clone());
        let failure = names.lookup("relay.example.com", limit).await.unwrap_err();
        assert_eq!(failure.reason, Reason::DnsFailure);
        assert!(!names.answer(limit).await);
        *configured.lock().unwrap() = Ok(asking(&[dns.addr]));
        names.lookup("relay.example.com", limit).await.unwrap_err();
        assert!(!names.answer(limit).await, "those that failed are not those that answer");
        assert_eq!(names.lookup("relay.example.com", limit).await.unwrap().v4(), [Ipv4Addr::LOCALHOST]);
        assert!(!names.answer(limit).await, "nor is what failed beside it the name's own fault");
        // bound: what failed before the change has ended
        tokio::time::sleep(limit * 3).await;
        assert!(names.answer(limit).await);
    }
}

#[tokio::test]
async fn what_a_resolver_makes_of_an_address_that_is_there_is_passed_over_and_nothing_else_is() {
    let dns = DnsServer::start(|name, kind| {
        let made = match name {
            "alone.example.com" | "both.example.com" => "64:ff9b::5db8:d822",
            "other.example.com" => "64:ff9b::a00:1",
            _ => "64:ff9b:1::5db8:d822",
        };
        let records = match kind {
            RecordType::A if name == "alone.example.com" => Vec::new(),
            RecordType::A => vec![a(name, [93, 184, 216, 34])],
            RecordType::AAAA => vec![record(name, RData::AAAA(AAAA(made.parse().unwrap())))],
            _ => Vec::new(),
        };
        Some((ResponseCode::NoError, records))
    })
    .await;
    let public = Dialer::new(NetConfig { policy: AddressPolicy::public(), ..dns.config() }).unwrap();
    let target = public.resolve(&url("wss://both.example.com")).await.unwrap();
    assert_eq!(target.addresses(), [IpAddr::V4(Ipv4Addr::new(93, 184, 216, 34))]);
    assert_eq!(target.dns().unwrap().v6(), [] as [std::net::Ipv6Addr; 0]);
    for host in ["alone", "other", "elsewhere"] {
        let failure = public.resolve(&url(&format!("wss://{host}.example.com"))).await.unwrap_err();
        assert_eq!(failure.reason, Reason::AddressRefused, "{host}");
    }
}

#[tokio::test]
async fn a_server_that_swallows_one_family_costs_the_relay_nothing() {
    let dns = DnsServer::start(|name, kind| match kind {
        RecordType::A => Some((ResponseCode::NoError, vec![a(name, [127, 0, 0, 1])])),
        _ => None,
    })
    .await;
    let dialer = Dialer::new(dns.config()).unwrap();
    let target = dialer.resolve(&url("ws://relay.example.com")).await.unwrap();
    assert_eq!(target.addresses(), [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    assert!(!target.dns().unwrap().is_complete());
}

#[tokio::test]
async fn the_pinned_address_is_dialled_with_the_name_as_host() {
    let heard = Arc::new(Mutex::new(String::new()));
    let log = Arc::clone(&heard);
    let server = TestServer::tcp(move |mut stream: TcpStream| {
        let log = Arc::clone(&log);
        async move {
            let request = request_head(&mut stream).await;
            log.lock().unwrap().push_str(&request);
        }
    })
    .await;
    // Nobody listens on v6: the next address must follow at once.
    let dns = DnsServer::start(|name, kind| match kind {
        RecordType::A => Some((ResponseCode::NoError, vec![a(name, [127, 0, 0, 1])])),
        _ => Some((ResponseCode::NoError, vec![record(name, RData::AAAA(AAAA("::1".parse().unwrap())))])),
    })
    .await;
    let contact = Some("ops@example.org".to_owned());
    let dialer = Dialer::new(NetConfig { contact, ..dns.config() }).unwrap();
    let url = url(&format!("ws://relay.example.com:{}/inbox?x=1", server.addr.port()));
    let failure = fail(&dialer, &url).await;
    assert_eq!(failure.reason, Reason::Disconnected, "{failure}");
    let heard = heard.lock().unwrap();
    assert!(heard.starts_with("get /inbox?x=1 http/1.1\r\n"), "{heard}");
    assert!(heard.contains(&format!("host: relay.example.com:{}\r\n", server.addr.port())), "{heard}");
    assert!(heard.contains("user-agent: bigbrotr/"), "{heard}");
    assert!(heard.contains("(+https://github.com/bigbrotr/bigbrotr; ops@example.org)\r\n"), "{heard}");
    assert!(!heard.contains("permessage-deflate"), "{heard}");
}

#[tokio::test]
async fn nobody_listening_is_a_refused_connection() {
    let addr = free_addr().await;
    let failure = fail(&local_dialer(), &url(&format!("ws://{addr}"))).await;
    assert_eq!((failure.outcome, failure.reason), (Outcome::Refused, Reason::ConnectRefused));
}

#[tokio::test]
async fn the_zones_servers_are_found_on_the_way_up_and_the_address_has_a_name() {
    let dns = DnsServer::start(|name, kind| {
        let records = match (name, kind) {
            ("relay.eu.example.com" | "alias.example.com", RecordType::A) => {
                vec![a(name, [93, 184, 216, 34])]
            }
            ("example.com", RecordType::NS) => vec![
                record(name, RData::NS(NS(Name::from_ascii("NS2.example.net.").unwrap()))),
                record(name, RData::NS(NS(Name::from_ascii("ns1.example.net.").unwrap()))),
            ],
            // Behind an alias another zone answers: its servers are not the relay's.
            ("alias.example.com", RecordType::NS) => vec![
                record(name, RData::CNAME(CNAME(Name::from_ascii("cdn.example.org.").unwrap()))),
                record("cdn.example.org", RData::NS(NS(Name::from_ascii("ns.example.org.").unwrap()))),
            ],
            ("34.216.184.93.in-addr.arpa", RecordType::PTR) => {
                vec![record(name, RData::PTR(PTR(Name::from_ascii("Host.example.net.").unwrap())))]
            }
            ("com", RecordType::NS) => panic!("a top-level domain was asked for its servers"),
            _ => Vec::new(),
        };
        Some((ResponseCode::NoError, records))
    })
    .await;
    let dialer = Dialer::new(NetConfig { policy: AddressPolicy::public(), ..dns.config() }).unwrap();
    for host in ["relay.eu.example.com", "alias.example.com"] {
        let target = dialer.resolve(&url(&format!("wss://{host}"))).await.unwrap();
        let zone = dialer.zone(&target).await.unwrap();
        assert_eq!(zone.servers, ["ns1.example.net", "ns2.example.net"], "{host}");
        assert_eq!(zone.reverse.as_deref(), Some("host.example.net"));
        assert!(zone.complete);
    }
    assert_eq!(
        local_dialer().zone(&local_dialer().resolve(&url("ws://127.0.0.1:9")).await.unwrap()).await,
        None
    );
}

#[tokio::test]
async fn a_zone_that_fails_is_absent_and_one_that_is_silent_is_unknown() {
    for (silent, complete) in [(false, true), (true, false)] {
        let dns = DnsServer::start(move |name, kind| match kind {
            RecordType::A => Some((ResponseCode::NoError, vec![a(name, [93, 184, 216, 34])])),
            RecordType::AAAA => Some((ResponseCode::NoError, Vec::new())),
            _ => (!silent).then(|| (ResponseCode::ServFail, Vec::new())),
        })
        .await;
        let dialer = Dialer::new(NetConfig { policy: AddressPolicy::public(), ..dns.config() }).unwrap();
        let target = dialer.resolve(&url("wss://relay.example.com")).await.unwrap();
        let zone = dialer.zone(&target).await.unwrap();
        assert_eq!(zone, ZoneFacts { complete, ..ZoneFacts::default() });
    }
}

#[tokio::test]
async fn a_name_server_that_is_gone_leaves_the_zone_unknown() {
    let dns = DnsServer::start(|name, kind| match kind {
        RecordType::A => Some((ResponseCode::NoError, vec![a(name, [93, 184, 216, 34])])),
        _ => Some((ResponseCode::NoError, Vec::new())),
    })
    .await;
    let mut config = NetConfig { policy: AddressPolicy::public(), ..dns.config() };
    // Long enough for the resolver to give up by itself.
    config.network_mut(crate::models::Network::Clearnet).connect_timeout_ms = 60_000;
    let dialer = Dialer::new(config).unwrap();
    let target = dialer.resolve(&url("wss://relay.example.com")).await.unwrap();
    drop(dns);
    let zone = dialer.zone(&target).await.unwrap();
    assert_eq!(zone, ZoneFacts { complete: false, ..ZoneFacts::default() });
}

#[tokio::test]
async fn an_alias_into_an_overlay_is_a_name_that_does_not_exist_and_is_asked_for_nowhere() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&asked);
    let dns = DnsServer::start(move |name, kind| {
        heard.lock().unwrap().push(name.to_owned());
        let to = format!("Relay.{}.", name.split('.').next().unwrap());
        let alias = record(name, RData::CNAME(CNAME(Name::from_ascii(to).unwrap())));
        Some((
            ResponseCode::NoError,
            if kind == RecordType::A || kind == RecordType::AAAA { vec![alias] } else { Vec::new() },
        ))
    })
    .await;
    let dialer = Dialer::new(dns.config()).unwrap();
    for overlay in ["onion", "i2p", "LOKI"] {
        let failure = fail(&dialer, &url(&format!("ws://{overlay}.example.com"))).await;
        assert_eq!(failure.reason, Reason::DnsNxdomain, "{failure}");
    }
    let asked = asked.lock().unwrap();
    assert!(asked.len() >= 6 && asked.iter().all(|name| name.ends_with(".example.com")), "{asked:?}");
}
