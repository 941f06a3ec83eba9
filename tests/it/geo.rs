//! `deploy/geo/fetch.sh` with a key, against a server of ours in MaxMind's place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};
use tests::certs::Authority;
use tests::env::{self, tools};
use tests::tls::TlsFront;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::task::JoinSet;

const ACCOUNT: &str = "12345";
const KEY: &str = "sEcReT_kEy";
/// The two as HTTP's Basic has them.
const BASIC: &str = "MTIzNDU6c0VjUmVUX2tFeQ==";

type Files = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// MaxMind's address, as far as the script knows it.
struct Mirror {
    url: String,
    home: PathBuf,
    files: Files,
    heads: Arc<Mutex<Vec<String>>>,
    _tls: TlsFront,
    _tasks: JoinSet<()>,
}

impl Mirror {
    async fn start() -> Self {
        let home = std::env::temp_dir().join(format!("bigbrotr-geo-{}", shared::clock::random_hex(6)));
        std::fs::create_dir_all(home.join("out")).unwrap();
        let (files, heads) = (Files::default(), Arc::<Mutex<Vec<String>>>::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let plain = listener.local_addr().unwrap();
        let (served, kept) = (Arc::clone(&files), Arc::clone(&heads));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = vec![0; 4096];
                let n = stream.read(&mut head).await.unwrap_or(0);
                let head = String::from_utf8_lossy(&head[..n]).into_owned();
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let knows_us = head.contains(&format!("Basic {BASIC}"));
                let body = served.lock().unwrap().get(&path).filter(|_| knows_us).cloned();
                kept.lock().unwrap().push(head);
                let (status, body) = body.map_or((401, Vec::new()), |body| (200, body));
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                stream.write_all(&[head.into_bytes(), body].concat()).await.ok();
            }
        });
        let authority = Authority::new("mirror");
        let tls = TlsFront::start(authority.good("localhost").acceptor(false), plain).await;
        std::fs::write(home.join("root.der"), &authority.root).unwrap();
        let url = format!("https://localhost:{}", tls.address.port());
        let mirror = Self { url, home, files, heads, _tls: tls, _tasks: tasks };
        let pem = Command::new("openssl")
            .args(["x509", "-inform", "DER", "-in", "root.der", "-out", "root.pem"])
            .current_dir(&mirror.home)
            .output();
        assert!(pem.await.unwrap().status.success());
        // A curl that notes with which arguments it was started.
        let curl = Command::new("sh").args(["-c", "command -v curl"]).output().await.unwrap();
        let (log, real) = (mirror.home.join("started"), String::from_utf8(curl.stdout).unwrap());
        let shim = format!(
            "#!/bin/sh\nprintf '%s\\n' \"$*\" >>'{}'\nexec '{}' \"$@\"\n",
            log.display(),
            real.trim()
        );
        std::fs::create_dir_all(mirror.home.join("bin")).unwrap();
        std::fs::write(mirror.home.join("bin/curl"), shim).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(mirror.home.join("bin/curl"), mode).unwrap();
        mirror
    }

    /// Serves both editions with this content, and the sum of the second as stated.
    async fn serve(&self, content: &str, sum_of_second: Option<&str>) {
        for edition in ["GeoLite2-City", "GeoLite2-ASN"] {
            let dated = format!("{edition}_20260101");
            let folder = self.home.join(&dated);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(format!("{edition}.mmdb")), format!("{edition} {content}")).unwrap();
            let packed =
                Command::new("tar").args(["-czf", "p.tgz", &dated]).current_dir(&self.home).output().await;
            assert!(packed.unwrap().status.success());
            let archive = std::fs::read(self.home.join("p.tgz")).unwrap();
            let sum = hex::encode(Sha256::digest(&archive));
            let sum = sum_of_second.filter(|_| edition.ends_with("ASN")).unwrap_or(&sum).to_owned();
            let path = |suffix: &str| format!("/geoip/databases/{edition}/download?suffix={suffix}");
            let mut files = self.files.lock().unwrap();
            files.insert(path("tar.gz"), archive);
            files.insert(path("tar.gz.sha256"), format!("{sum}  {dated}.tar.gz\n").into_bytes());
        }
    }

    async fn fetch(&self, mirror: &str, account: &str, key: &str) -> Output {
        let script = tools().join("../../deploy/geo/fetch.sh");
        Command::new("sh")
            .arg(script)
            .arg(self.out())
            .env("GEOIP_MIRROR", mirror)
            .env("GEOIP_ACCOUNT_ID", account)
            .env("GEOIP_LICENSE_KEY", key)
            .env("CURL_CA_BUNDLE", self.home.join("root.pem"))
            .env(
                "PATH",
                format!("{}:{}", self.home.join("bin").display(), env::var("PATH").unwrap_or_default()),
            )
            .output()
            .await
            .unwrap()
    }

    fn out(&self) -> PathBuf {
        self.home.join("out")
    }

    /// What lies in the folder: names and contents.
    fn found(&self) -> Vec<(String, String)> {
        let entries = std::fs::read_dir(self.out()).unwrap().map(|entry| entry.unwrap().path());
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let mut found: Vec<_> = entries
            .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), read(&path)))
            .collect();
        found.sort();
        found
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.home));
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn is_there(program: &str) -> bool {
    let found = std::process::Command::new("sh").args(["-c", &format!("command -v {program}")]).output();
    found.is_ok_and(|output| output.status.success())
}

#[tokio::test]
async fn files_of_maxmind_are_checked_before_they_are_placed_and_the_key_is_told_to_nobody_else() {
    for program in ["curl", "openssl", "sha256sum", "tar"] {
        if !is_there(program) {
            return env::skip(program);
        }
    }
    let mirror = Mirror::start().await;
    mirror.serve("of January", None).await;
    let output = mirror.fetch(&mirror.url, ACCOUNT, KEY).await;
    assert!(output.status.success(), "{}", said(&output));
    let placed = |month: &str| {
        ["ASN", "City"].map(|what| (format!("GeoLite2-{what}.mmdb"), format!("GeoLite2-{what} of {month}")))
    };
    assert_eq!(mirror.found(), placed("January"));
    assert!(said(&output).contains("[geo]\nplaces = ["), "{}", said(&output));
    assert!(!said(&output).contains(KEY));
    let started = std::fs::read_to_string(mirror.home.join("started")).unwrap();
    assert_eq!(started.lines().count(), 4, "{started}");
    assert!(!started.contains(KEY), "an argument is seen by every user of the machine: {started}");
    assert_eq!(mirror.heads.lock().unwrap().len(), 4, "each file and each sum once");

    // One that is not what was stated: neither is replaced, and nothing is left behind.
    mirror.serve("of February", Some(&"0".repeat(64))).await;
    let output = mirror.fetch(&mirror.url, ACCOUNT, KEY).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("GeoLite2-ASN is not what MaxMind states"), "{}", said(&output));
    assert!(!said(&output).contains(KEY));
    assert_eq!(mirror.found(), placed("January"));

    for (mirror_url, account, key, word) in [
        (mirror.url.as_str(), ACCOUNT, "wrong", "GeoLite2-City cannot be fetched"),
        (mirror.url.as_str(), "", KEY, "GEOIP_ACCOUNT_ID is not"),
        // In the clear the key would be anybody's.
        ("http://localhost:9", ACCOUNT, KEY, "GeoLite2-City cannot be fetched"),
    ] {
        let output = mirror.fetch(mirror_url, account, key).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(said(&output).contains(word), "{word}: {}", said(&output));
        assert!(!said(&output).contains(KEY));
        assert_eq!(mirror.found(), placed("January"), "{word}");
    }
}
