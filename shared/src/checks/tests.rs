//! Whole runs against small servers on loopback.

mod places;
mod tls;

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::rdata::{A, NS};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

use super::{CheckKind, Looks, MonitorReport, Observation, run_all};
use crate::models::{Outcome, Reason};
use crate::net::Dialer;
use crate::net::testing::{DnsServer, TestServer, answering, free_addr, local_dialer, url};

const DOCUMENT: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: application/nostr+json\r\n\r\n{\"name\":\"test\",\"x\":1}";

fn eose(sub: &str, _: &str) -> Vec<String> {
    vec![format!(r#"["EOSE","{sub}"]"#)]
}

async fn relay(http: &str) -> TestServer {
    TestServer::relay(|ws| answering(ws, eose), http.to_owned()).await
}

fn of(report: &MonitorReport, kind: CheckKind) -> &Observation {
    report.observations.iter().find(|seen| seen.kind == kind).unwrap()
}

#[test]
fn every_check_reads_back_from_its_name() {
    for &kind in CheckKind::ALL {
        assert_eq!(kind.as_str().parse(), Ok(kind));
    }
    assert!("place".parse::<CheckKind>().is_err());
}

#[tokio::test]
async fn a_good_relay_is_up_with_documents_and_times() {
    let server = relay(DOCUMENT).await;
    let dns = DnsServer::start(|name, kind| {
        let record = |ip: [u8; 4]| {
            Record::from_rdata(Name::from_ascii(format!("{name}.")).unwrap(), 77, RData::A(A(ip.into())))
        };
        let server = RData::NS(NS(Name::from_ascii("ns.example.net.").unwrap()));
        let records = match (name, kind) {
            (_, RecordType::A) => vec![record([127, 0, 0, 1])],
            ("example.com", RecordType::NS) => {
                vec![Record::from_rdata(Name::from_ascii("example.com.").unwrap(), 77, server)]
            }
            _ => Vec::new(),
        };
        Some((ResponseCode::NoError, records))
    })
    .await;
    let dialer = Dialer::new(dns.config()).unwrap();
    let relay = url(&format!("ws://relay.example.com:{}", server.addr.port()));
    let report = run_all(&dialer, &relay, &Looks::default()).await;
    assert!(report.up && !report.ours, "{report:?}");
    assert_eq!((report.evidence, report.reason, report.observations.len()), ("eose", Reason::None, 4));
    assert_eq!(report.addresses[0].to_string(), "127.0.0.1");
    let rtt = of(&report, CheckKind::Rtt);
    assert!(matches!(rtt.rtt_ms, [Some(_), Some(_), None]), "{rtt:?}");
    assert!(rtt.document.is_none(), "measurements are no documents");
    let document = |kind| of(&report, kind).document.as_ref().unwrap().canonical();
    assert_eq!(document(CheckKind::Nip11), r#"{"data":{"name":"test","x":1},"logs":{"success":true}}"#);
    assert_eq!(
        document(CheckKind::Dns),
        r#"{"data":{"dns_ips":["127.0.0.1"],"dns_ns":["ns.example.net"],"dns_reverse":"localhost"},"logs":{"success":true}}"#
    );
    assert_eq!(document(CheckKind::Http), r#"{"logs":{"success":true}}"#, "a server that names nothing");
    assert_eq!(report.dns_ttl_s, Some(77), "kept, and in no document");
    assert_eq!(report.info.as_ref().and_then(|info| info.name.as_deref()), Some("test"));
    assert_eq!(dns.asked(), 4, "one resolution for all checks, and the zone on the way up");
}

#[tokio::test]
async fn what_is_switched_off_or_does_not_apply_is_not_reported() {
    let server = relay(DOCUMENT).await;
    let report = run_all(&local_dialer(), &server.url(), &Looks::default().only(&[CheckKind::Dns])).await;
    assert!(report.up, "up is known whatever is enabled");
    assert!(report.observations.is_empty(), "a literal address has no DNS: {report:?}");
}

#[tokio::test]
async fn a_refused_connection_gives_every_check_the_same_reason() {
    let relay = url(&format!("ws://{}", free_addr().await));
    let report = run_all(&local_dialer(), &relay, &Looks::default()).await;
    assert!(!report.up && !report.ours);
    assert_eq!(report.reason, Reason::ConnectRefused);
    assert_eq!(report.observations.len(), 3, "{report:?}");
    for seen in &report.observations {
        assert_eq!((seen.outcome, seen.reason), (Outcome::Refused, Reason::ConnectRefused), "{seen:?}");
    }
}

#[tokio::test]
async fn a_refused_upgrade_still_shows_the_document_and_is_not_up() {
    let server = TestServer::http(DOCUMENT).await;
    let report = run_all(&local_dialer(), &server.url(), &Looks::default()).await;
    assert_eq!((report.up, report.reason), (false, Reason::WsUpgradeRefused));
    assert_eq!(of(&report, CheckKind::Rtt).reason, Reason::WsUpgradeRefused);
    assert_eq!(of(&report, CheckKind::Nip11).outcome, Outcome::Ok);
}

#[tokio::test]
async fn a_bad_document_is_its_own_reason_and_the_relay_stays_up() {
    let huge =
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n\"{}\"", "x".repeat(1 << 20));
    for (http, reason) in [
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", Reason::HttpStatus),
        (
            "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n",
            Reason::HttpStatus,
        ),
        ("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n{}", Reason::HttpContentType),
        (&huge, Reason::HttpBodyTooLarge),
    ] {
        let server = relay(http).await;
        let report = run_all(&local_dialer(), &server.url(), &Looks::default()).await;
        assert!(report.up);
        assert_eq!(of(&report, CheckKind::Nip11).reason, reason);
    }
}

#[tokio::test]
async fn our_own_failures_call_nobody_down() {
    let dns = DnsServer::start(|_, _| Some((ResponseCode::ServFail, Vec::new()))).await;
    let dialer = Dialer::new(dns.config()).unwrap();
    let report = run_all(&dialer, &url("wss://relay.example.com"), &Looks::default()).await;
    assert!(report.ours && !report.up);
    assert_eq!(report.observations.len(), Looks::default().enabled.len());
    assert!(report.observations.iter().all(|seen| seen.outcome == Outcome::Skipped));
}
