//! What every long-running binary does around its work: signals, the metrics endpoint, an orderly end.
//!
//! It knows nothing of what the work is. Invariant: the work is told to stop once, by a token, and the
//! endpoint answers until the work has ended; only a second signal ends the process at once.

use std::fmt::Display;
use std::future::Future;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, ConfigError};
use crate::net::{HttpServer, Reply};
use crate::telemetry::{self, Health, Metrics};

/// Exit code of a process that a second signal ended: as a shell reports an interrupt.
const INTERRUPTED: i32 = 130;
/// What Prometheus expects of the text we encode.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Once per process, before anything else: one TLS provider, one log subscriber.
pub fn prepare(config: &Config) {
    // A second call finds the provider installed already, which is all it wants.
    rustls::crypto::ring::default_provider().install_default().ok();
    telemetry::init(config.log_options());
}

/// What the work of a process is given.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// Counters, served as `/metrics`.
    pub metrics: Metrics,
    /// Heartbeats of the parts, served as `/healthz` and `/readyz`.
    pub health: Health,
    /// Cancelled by the first SIGINT or SIGTERM.
    pub stop: CancellationToken,
}

/// Exit code for a usage or configuration error, as clap's own.
const USAGE: u8 = 2;

/// The whole of a service's `run`: reads and checks the configuration, or prints it; then works until a signal.
///
/// `check` says what this service in particular cannot work with. It comes before the work, because a service manager
/// starts again what failed, and leaves alone what was configured wrongly.
pub fn serve<W, F, E>(
    name: &str,
    file: Option<&Path>,
    print_config: bool,
    check: fn(&Config) -> Result<(), ConfigError>,
    address: fn(&Config) -> Option<SocketAddr>,
    work: W,
) -> ExitCode
where
    W: FnOnce(Config, Surroundings) -> F,
    F: Future<Output = Result<(), E>>,
    E: Display,
{
    let fail = |error: &dyn Display, code: u8| {
        // Nobody is left to tell when standard error is closed.
        writeln!(std::io::stderr(), "{name}: {error}").ok();
        ExitCode::from(code)
    };
    let config = match Config::load(file, &Config::environment()) {
        Ok(config) => config,
        Err(error) => return fail(&error, USAGE),
    };
    if print_config {
        return match write!(std::io::stdout(), "{config}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error, 1),
        };
    }
    if let Err(error) = config.require_database().and_then(|_| check(&config)) {
        return fail(&error, USAGE);
    }
    prepare(&config);
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("the runtime cannot start: {error}"), 1),
    };
    let address = address(&config);
    match runtime.block_on(run(address, |around| work(config, around))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

/// Runs `work` until it ends, with the endpoint at `address` and the two signals.
///
/// # Errors
/// A sentence: the port is taken, signals cannot be had, or the work's own.
pub async fn run<W, F, E>(address: Option<SocketAddr>, work: W) -> Result<(), String>
where
    W: FnOnce(Surroundings) -> F,
    F: Future<Output = Result<(), E>>,
    E: Display,
{
    let surroundings =
        Surroundings { metrics: Metrics::new(), health: Health::default(), stop: CancellationToken::new() };
    let server = match address {
        Some(address) => Some(HttpServer::bind(address).await.map_err(|error| error.to_string())?),
        None => None,
    };
    let (interrupt, terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let ended = CancellationToken::new();
    let tasks = TaskTracker::new();
    if let Some(server) = server {
        tracing::info!(http.address = %server.local_addr(), "serving /metrics, /healthz and /readyz");
        let (metrics, health) = (surroundings.metrics.clone(), surroundings.health.clone());
        tasks.spawn(server.run(move |path| answer(path, &metrics, &health), ended.clone()));
    }
    tasks.spawn(watch(interrupt, terminate, surroundings.stop.clone(), ended.clone()));
    let result = work(surroundings).await;
    ended.cancel();
    tasks.close();
    tasks.wait().await;
    result.map_err(|error| format!("{error:#}"))
}

fn listen(kind: SignalKind) -> Result<Signal, String> {
    signal(kind).map_err(|error| format!("signals cannot be received: {error}"))
}

/// The first signal asks for an orderly end, the second does not ask.
async fn watch(
    mut interrupt: Signal,
    mut terminate: Signal,
    stop: CancellationToken,
    ended: CancellationToken,
) {
    // The work may have stopped by itself: only signals count signals.
    let mut asked = false;
    loop {
        tokio::select! {
            () = ended.cancelled() => return,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if asked {
            tracing::warn!("second signal: ending at once");
            std::process::exit(INTERRUPTED);
        }
        asked = true;
        tracing::info!("stopping; a second signal ends at once");
        stop.cancel();
    }
}

/// The three paths of every process.
fn answer(path: &str, metrics: &Metrics, health: &Health) -> Option<Reply> {
    let probe = |state: Result<(), String>| match state {
        Ok(()) => Reply::text(200, "ok\n"),
        Err(why) => Reply::text(503, format!("{why}\n")),
    };
    match path {
        "/metrics" => {
            metrics.ready.set(i64::from(health.ready().is_ok()));
            Some(Reply { status: 200, content_type: OPENMETRICS, body: metrics.encode() })
        }
        "/healthz" => Some(probe(health.live())),
        "/readyz" => Some(probe(health.ready())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn probes_fail_when_work_has_not_begun_and_pass_when_it_has() {
        let (metrics, health) = (Metrics::new(), Health::default());
        health.expect("work", Duration::from_secs(60));
        let status = |path: &str| answer(path, &metrics, &health).map(|reply| reply.status);
        let ready = || {
            answer("/metrics", &metrics, &health)
                .is_some_and(|reply| reply.body.contains("bigbrotr_ready 1\n"))
        };
        assert_eq!((status("/healthz"), status("/readyz"), ready()), (Some(200), Some(503), false));
        health.beat("work", Duration::from_secs(60));
        assert_eq!((status("/readyz"), status("/metrics"), status("/")), (Some(200), Some(200), None));
        assert!(ready(), "the metrics say it, too");
    }

    #[tokio::test]
    async fn a_taken_port_is_one_sentence_and_no_work_begins() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let said = run(Some(address), async |_| -> Result<(), String> { panic!("must not begin") })
            .await
            .unwrap_err();
        assert!(said.contains(&format!("port {} on 127.0.0.1 is already in use", address.port())), "{said}");
    }

    #[tokio::test]
    async fn the_endpoint_ends_with_the_work() {
        let any = "127.0.0.1:0".parse().unwrap();
        run(Some(any), async |_| Ok::<(), String>(())).await.unwrap();
        assert_eq!(run(None, async |_| Err::<(), _>("why")).await.unwrap_err(), "why");
    }
}
