//! Whole runs against relays behind TLS, with certificates good and bad.

use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use super::*;
use crate::net::NetConfig;
use crate::net::testing::local_config;
use crate::net::testing::tls::{Authority, Log, tls_relay, trusting};

const HOST: &str = "127.0.0.1";

async fn look(
    config: NetConfig,
    server: &TestServer,
    log: &Log,
    looks: &Looks,
) -> (MonitorReport, Vec<String>) {
    let dialer = Dialer::new(config).unwrap();
    let report = run_all(&dialer, &url(&format!("wss://{}/a", server.addr)), looks).await;
    let met = log.lock().unwrap().clone();
    (report, met)
}

fn data(seen: &Observation) -> Json {
    let document = seen.document.as_ref().expect("a document").canonical();
    serde_json::from_str::<Json>(document).unwrap()["data"].clone()
}

#[tokio::test]
async fn two_connections_show_everything_of_a_relay_behind_tls() {
    let authority = Authority::new("Test Root");
    let identity = authority.issue(HOST, |params| {
        params.serial_number = Some(vec![1, 0xab, 3].into());
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2999, 1, 1);
    });
    let print: Vec<String> =
        Sha256::digest(&identity.leaf).iter().map(|byte| format!("{byte:02X}")).collect();
    // Of the control characters, HTTP lets a tab pass, and those of Latin-1.
    let headers = "server: strfry/1\t\u{85}x\r\n";
    let (server, log) = tls_relay(identity.acceptor(false), headers, DOCUMENT).await;
    let (report, met) = look(trusting(&authority, local_config()), &server, &log, &Looks::default()).await;
    assert!(report.up, "{report:?}");
    assert_eq!(
        met,
        ["connection", "GET /a HTTP/1.1", "connection", "GET /a HTTP/1.1"],
        "the WebSocket, and the document"
    );
    assert_eq!(
        data(of(&report, CheckKind::Ssl)),
        json!({
            "ssl_valid": true, "ssl_subject_cn": HOST, "ssl_issuer": "Test Authority", "ssl_issuer_cn": "Test Root",
            "ssl_san": [HOST], "ssl_not_before": 1_577_836_800, "ssl_expires": 32_472_144_000_u64,
            "ssl_serial": "01AB03", "ssl_version": 3, "ssl_fingerprint": format!("SHA256:{}", print.join(":")),
            "ssl_protocol": "TLSv1.3", "ssl_cipher": "TLS_AES_128_GCM_SHA256", "ssl_cipher_bits": 128,
        })
    );
    assert_eq!(data(of(&report, CheckKind::Http)), json!({"http_server": "strfry/1x"}));
    assert_eq!(of(&report, CheckKind::Nip11).outcome, Outcome::Ok);
    assert_eq!(report.info.unwrap().name.as_deref(), Some("test"));
    assert_eq!(report.tls.unwrap().distrust, None);
}

#[tokio::test]
async fn an_expired_certificate_has_its_document_and_nobody_is_spoken_to() {
    let authority = Authority::new("Test Root");
    let (server, log) = tls_relay(authority.expired(HOST).acceptor(false), "", DOCUMENT).await;
    let (report, met) = look(trusting(&authority, local_config()), &server, &log, &Looks::default()).await;
    assert!(!report.up && !report.ours && report.reached());
    assert_eq!(report.reason, Reason::TlsExpired);
    for seen in &report.observations {
        assert_eq!((seen.outcome, seen.reason), (Outcome::Invalid, Reason::TlsExpired), "{seen:?}");
        assert_eq!(seen.document.is_some(), seen.kind == CheckKind::Ssl);
    }
    let ssl = data(of(&report, CheckKind::Ssl));
    assert_eq!((&ssl["ssl_valid"], &ssl["ssl_expires"]), (&json!(false), &json!(978_307_200)));
    assert_eq!(met, ["connection"], "one handshake");
}

#[tokio::test]
async fn where_configured_a_relay_is_looked_at_although_its_certificate_does_not_verify() {
    let authority = Authority::new("Test Root");
    let (server, log) = tls_relay(authority.good("other.example.com").acceptor(false), "", DOCUMENT).await;
    let looks = Looks { insecure_tls: true, ..Looks::default() };
    let (report, met) = look(trusting(&authority, local_config()), &server, &log, &looks).await;
    assert!(report.up, "{report:?}");
    assert_eq!(met.len(), 4);
    let ssl = of(&report, CheckKind::Ssl);
    assert_eq!((ssl.outcome, ssl.reason), (Outcome::Invalid, Reason::TlsWrongHost), "the record of it");
    assert_eq!(data(ssl)["ssl_valid"], json!(false));
    for kind in [CheckKind::Rtt, CheckKind::Http, CheckKind::Nip11] {
        assert_eq!(of(&report, kind).outcome, Outcome::Ok, "{kind}");
    }
    assert!(report.tls.unwrap().distrust.is_some());
}

#[tokio::test]
async fn a_document_elsewhere_or_compressed_is_a_reason_and_nothing_is_followed() {
    let authority = Authority::new("Test Root");
    let elsewhere = TestServer::tcp(|_| async { panic!("a redirect was followed") }).await;
    for (http, reason) in [
        (
            format!(
                "HTTP/1.1 301 Moved\r\nlocation: http://{}/\r\ncontent-length: 0\r\n\r\n",
                elsewhere.addr
            ),
            Reason::HttpStatus,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\n\r\n{}"
                .to_owned(),
            Reason::HttpEncoding,
        ),
        ("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n\u{1f}\u{8b}".to_owned(), Reason::NotJson),
    ] {
        let (server, log) = tls_relay(authority.good(HOST).acceptor(false), "", &http).await;
        let (report, met) =
            look(trusting(&authority, local_config()), &server, &log, &Looks::default()).await;
        assert!(report.up);
        assert_eq!(of(&report, CheckKind::Nip11).reason, reason);
        assert_eq!(report.info, None);
        assert_eq!(met.len(), 4, "{met:?}");
    }
}
