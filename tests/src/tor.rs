//! A Tor network of this machine's own with one onion service, as real child processes.
//!
//! It takes half a minute until the service is known, and some 350 MB: one test, with everything in it.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::programs::{Process, StateDir};
use crate::space;

/// How long the network may take until its service is reached; 20 s on a quiet machine.
const READY: Duration = Duration::from_secs(120);
/// Longest wait for the answer to one attempt: a path that is not built by then will hardly be.
const TRY: Duration = Duration::from_secs(10);
/// Pause between two attempts.
const RETRY: Duration = Duration::from_millis(250);

/// A running network; it ends when dropped.
#[derive(Debug)]
pub struct TorNet {
    /// Where its client takes SOCKS5.
    pub socks: SocketAddr,
    /// The service's name, with `.onion`; its port is 80.
    pub onion: String,
    client: Option<Process>,
    processes: Vec<Process>,
    state: StateDir,
}

impl TorNet {
    /// A network whose service leads to `target`, started; its service is not yet waited for; a visible skip without tor.
    ///
    /// # Panics
    /// When it cannot be made, which the script explains.
    pub async fn start(target: SocketAddr) -> Option<Self> {
        let there = (space::installed("tor") && space::installed("tor-gencert")).then_some(());
        crate::require(there, "tor (tests/tools/setup.sh)")?;
        let state = StateDir::new("tor");
        let net = state.path.join("net");
        let mut script = Command::new(crate::env::tools().join("tornet.sh"));
        let made = script.arg(&net).arg(target.port().to_string()).output().expect("the script runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let names = String::from_utf8_lossy(&made.stdout).into_owned();
        let run = |name: &str| {
            let mut command = Command::new("tor");
            command.args(["--defaults-torrc", "/dev/null", "-f"]).arg(net.join(name).join("torrc"));
            Process::spawn(&command, &net.join(name).join("said"))
        };
        let (ends, carriers): (Vec<_>, Vec<_>) =
            names.split_whitespace().partition(|name| matches!(*name, "service" | "client"));
        let mut processes: Vec<_> = carriers.into_iter().map(run).collect();
        let socks = text(&net.join("socks")).trim().parse().expect("the script names an address");
        assert_eq!(ends, ["client", "service"], "who comes when the network is whole");
        let whole = || {
            let mut script = Command::new(crate::env::tools().join("tornet.sh"));
            script.arg("whole").arg(&net).status().is_ok_and(|status| status.success())
        };
        until("the network is not whole", &net.join("a1/log"), whole).await;
        processes.push(run("service"));
        let client = Some(run("client"));
        let hostname = net.join("service/onion/hostname");
        until("the service has no name", &net.join("service/said"), || !text(&hostname).trim().is_empty())
            .await;
        let onion = text(&hostname).trim().to_owned();
        Some(Self { socks, onion, client, processes, state })
    }

    /// Waits until the service is reached through the network.
    ///
    /// # Panics
    /// When that takes longer than two minutes.
    pub async fn wait_until_reached(&mut self) {
        let reached = async {
            while !matches!(tokio::time::timeout(TRY, self.reach()).await, Ok(Ok(true))) {
                // bound: READY, around the whole loop.
                tokio::time::sleep(RETRY).await;
            }
        };
        let ready = tokio::time::timeout(READY, reached).await.is_ok();
        let said = text(&self.state.path.join("net/client/log"));
        assert!(ready, "the onion service was not reached within {READY:?}:\n{said}");
    }

    /// Ends the client: nobody takes SOCKS5 any more.
    pub fn stop_client(&mut self) {
        self.client = None;
    }

    /// How many processes it has.
    pub fn size(&self) -> usize {
        self.processes.len() + usize::from(self.client.is_some())
    }

    /// Asks the client for the service, as RFC 1928 has it.
    async fn reach(&self) -> std::io::Result<bool> {
        let mut stream = crate::tcp::dial(self.socks).await?;
        stream.write_all(&[5, 1, 0]).await?;
        let mut method = [0; 2];
        stream.read_exact(&mut method).await?;
        let mut request = vec![5, 1, 0, 3, u8::try_from(self.onion.len()).expect("a short name")];
        request.extend(self.onion.as_bytes());
        request.extend(80_u16.to_be_bytes());
        stream.write_all(&request).await?;
        let mut reply = [0; 10];
        stream.read_exact(&mut reply).await?;
        Ok(reply[1] == 0)
    }
}

/// Waits for what the network does by itself.
///
/// # Panics
/// When it takes longer than `READY`, with what `said` holds.
async fn until(what: &str, said: &Path, done: impl Fn() -> bool) {
    let waited = async {
        while !done() {
            // bound: READY, around the whole loop.
            tokio::time::sleep(RETRY).await;
        }
    };
    let waited = tokio::time::timeout(READY, waited).await.is_ok();
    assert!(waited, "{what} within {READY:?}: {}", text(said));
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
