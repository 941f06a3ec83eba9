//! `health`: whether a process on this machine does its work, as its own endpoint says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::json;
use shared::config::Config;
use shared::net;

use crate::Session;
use crate::args::Health;
use crate::output::{Fail, line};

pub(crate) async fn health(session: &Session, config: &Config, args: &Health) -> Result<(), Fail> {
    let configured = || config.worker_metrics().or_else(|| config.scheduler_metrics());
    let Some(addr) = args.addr.or_else(configured) else {
        return Err(Fail::Usage(
            "no address to ask: name one, or set worker.metrics or scheduler.metrics".to_owned(),
        ));
    };
    let path = if args.live { "/healthz" } else { "/readyz" };
    let (status, words) = net::ask(reachable(addr), path).await.map_err(Fail::Failed)?;
    if session.global.json {
        line(&json!({ "address": addr.to_string(), "status": status, "words": words }).to_string());
    } else {
        line(&words);
    }
    if status == 200 { Ok(()) } else { Err(Fail::Found) }
}

/// A process that listens everywhere is asked on this machine.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}
